//! `holdfast_fuzz::device_server` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| holdfast_fuzz::device_server(data));
