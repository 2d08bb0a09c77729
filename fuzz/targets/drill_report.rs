#![no_main]

#[path = "../drill.rs"]
#[allow(dead_code)]
mod drill;

libfuzzer_sys::fuzz_target!(|data: &[u8]| drill::report(data));
