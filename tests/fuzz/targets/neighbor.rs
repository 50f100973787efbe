//! libFuzzer drives [`receptor_fuzz::neighbor`].

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| receptor_fuzz::neighbor(input));
