//! libFuzzer drives [`receptor_fuzz::words`].

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| receptor_fuzz::words(input));
