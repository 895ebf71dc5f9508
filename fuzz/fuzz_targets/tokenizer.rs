//! `tokenizer.json`: any bytes are a tokenizer that encodes, decodes and streams, or are refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pellucid::prompt::tokenizer::Tokenizer;

// A panic that our code catches is an error like any other; one that gets past it still ends the run.
fuzz_target!(init: std::panic::set_hook(Box::new(|_| {})), |bytes: &[u8]| {
    let Ok(tokenizer) = Tokenizer::from_bytes(bytes, "tokenizer.json") else { return };
    let Ok(ids) = tokenizer.encode_raw("Hello 你好 <|im_end|> \u{1f600}") else { return };
    _ = tokenizer.decode(&ids, true);
    let mut stream = tokenizer.stream(false);
    for id in ids {
        if stream.push(id).is_err() {
            return;
        }
    }
    _ = stream.finish();
});
