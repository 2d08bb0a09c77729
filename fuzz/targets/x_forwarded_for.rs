#![no_main]

#[path = "../fields.rs"]
#[allow(dead_code)]
mod fields;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fields::x_forwarded_for(data));
