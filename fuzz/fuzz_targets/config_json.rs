//! `config.json`: any bytes are a model that cannot surprise its reader, or are refused.
#![no_main]

#[path = "../../tests/support/format.rs"]
#[allow(dead_code)]
mod properties;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| properties::config_json(bytes));
