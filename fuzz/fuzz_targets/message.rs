//! Messages of a request: any JSON is read or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pellucid::prompt::message::{Message, images};

fuzz_target!(|bytes: &[u8]| {
    let Ok(value) = serde_json::from_slice(bytes) else { return };
    let Ok(messages) = Message::list_from_json(value) else { return };
    _ = images(&messages, &[]);
    for message in &messages {
        _ = message.to_template(&str::to_owned);
    }
});
