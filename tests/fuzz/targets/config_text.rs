//! libFuzzer drives [`receptor_fuzz::config_text`].

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| receptor_fuzz::config_text(input));
