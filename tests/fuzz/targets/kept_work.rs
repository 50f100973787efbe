//! libFuzzer drives [`receptor_fuzz::kept_work`].

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| receptor_fuzz::kept_work(input));
