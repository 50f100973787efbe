//! libFuzzer drives [`receptor_fuzz::tls_records`].

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| receptor_fuzz::tls_records(input));
