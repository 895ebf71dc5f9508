//! `model.safetensors.index.json`: any bytes are a map to files in the index's own folder, or are refused.
#![no_main]

#[path = "../../tests/support/format.rs"]
#[allow(dead_code)]
mod properties;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| properties::weight_index(bytes));
