//! libFuzzer drives [`receptor_fuzz::bundle`].

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| receptor_fuzz::bundle(input));
