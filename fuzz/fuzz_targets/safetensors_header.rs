//! A safetensors file: its header is believed exactly when the reference implementation believes it.
#![no_main]

#[path = "../../tests/support/format.rs"]
#[allow(dead_code)]
mod properties;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| properties::safetensors_header(bytes));
