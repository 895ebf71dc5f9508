//! Chat templates: any text compiles and renders, or is refused. (Give it `-rss_limit_mb=8192`: the memory of a
//! value that a template keeps doubling is not limited.)
#![no_main]

use libfuzzer_sys::fuzz_target;
use pellucid::prompt::template::{ChatTemplate, RenderOptions};

// A panic that our code catches is an error like any other; one that gets past it still ends the run.
fuzz_target!(init: std::panic::set_hook(Box::new(|_| {})), |source: &str| {
    let Ok(template) = ChatTemplate::new(source, "chat_template.jinja", serde_json::Map::new()) else { return };
    let messages = [
        serde_json::json!({"role": "system", "content": "be brief"}),
        serde_json::json!({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a\n"}]}),
        serde_json::json!({"role": "assistant", "content": null, "tool_calls": [{"name": "f", "arguments": {"x": 1.5}}]}),
    ];
    _ = template.render(&messages, &RenderOptions::default());
});
