//! libFuzzer drives [`receptor_fuzz::holder_packet`].

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| receptor_fuzz::holder_packet(input));
