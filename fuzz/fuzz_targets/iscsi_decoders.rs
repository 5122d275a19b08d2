//! `holdfast_fuzz::iscsi_decoders` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| holdfast_fuzz::iscsi_decoders(data));
