//! `holdfast_fuzz::scsi_decoders` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| holdfast_fuzz::scsi_decoders(data));
