//! libFuzzer drives [`receptor_fuzz::disk_record`].

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| receptor_fuzz::disk_record(input));
