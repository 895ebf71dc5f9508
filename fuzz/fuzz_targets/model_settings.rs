//! The smaller files beside a model: any bytes are read or refused.
#![no_main]

#[path = "../../tests/support/format.rs"]
#[allow(dead_code)]
mod properties;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| properties::model_settings(bytes));
