//! libFuzzer drives [`receptor_fuzz::plugin_output`].

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| receptor_fuzz::plugin_output(input));
