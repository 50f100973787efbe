//! libFuzzer drives [`receptor_fuzz::link_frames`].

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| receptor_fuzz::link_frames(input));
