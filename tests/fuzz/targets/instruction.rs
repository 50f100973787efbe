//! libFuzzer drives [`receptor_fuzz::instruction`].

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| receptor_fuzz::instruction(input));
