#![no_main]

#[path = "../sniff.rs"]
mod sniff;

libfuzzer_sys::fuzz_target!(|data: &[u8]| sniff::sniff(data));
