//! libFuzzer drives [`receptor_fuzz::packet_body`].

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| receptor_fuzz::packet_body(input));
