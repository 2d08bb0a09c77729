#![no_main]

#[path = "../silence.rs"]
mod silence;

libfuzzer_sys::fuzz_target!(|data: &[u8]| silence::silence(data));
