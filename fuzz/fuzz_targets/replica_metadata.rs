//! `holdfast_fuzz::replica_metadata` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| holdfast_fuzz::replica_metadata(data));
