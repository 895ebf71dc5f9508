//! `adapter_config.json`: any bytes are an adapter that is written as it was read, or are refused.
#![no_main]

#[path = "../../tests/support/format.rs"]
#[allow(dead_code)]
mod properties;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| properties::adapter_config(bytes));
