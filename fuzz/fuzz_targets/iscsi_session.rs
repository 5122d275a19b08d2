//! `holdfast_fuzz::iscsi_session` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| holdfast_fuzz::iscsi_session(data));
