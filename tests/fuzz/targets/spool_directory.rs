//! libFuzzer drives [`receptor_fuzz::spool_directory`].

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| receptor_fuzz::spool_directory(input));
