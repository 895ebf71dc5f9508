//! Chat templates render what transformers renders, byte for byte (`tests/golden/templates.py`).

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use pellucid::prompt::template::{ChatTemplate, RenderOptions};
use serde_json::{Map, Value};

const LOOPS_OVER_CONTENT: [&str; 2] = ["internvl3-hf.jinja", "qwen2-vl-instruct.jinja"];

fn golden() -> Value {
    let text = std::fs::read_to_string("tests/golden/templates.json").unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The arguments of a rendering, as the script passes them.
fn options(arguments: &Value, add_generation_prompt: bool) -> RenderOptions {
    let mut arguments = arguments.as_object().unwrap().clone();
    arguments.shift_remove("messages");
    RenderOptions {
        tools: arguments.shift_remove("tools").unwrap_or_default(),
        documents: arguments.shift_remove("documents").unwrap_or_default(),
        add_generation_prompt,
        arguments,
        // 2026-02-03 04:05:06
        now: Some(UNIX_EPOCH + Duration::from_secs(1_770_091_506)),
    }
}

fn render(
    source: &str,
    special: &Map<String, Value>,
    messages: &Value,
    options: &RenderOptions,
) -> Option<String> {
    let template = ChatTemplate::new(source, "chat_template.jinja", special.clone()).ok()?;
    template.render(messages.as_array().unwrap(), options).ok()
}

#[test]
fn published_templates_render_as_in_transformers() {
    let golden = golden();
    let special = golden["special"].as_object().unwrap();
    let mut different = Vec::new();
    let cases = golden["cases"].as_array().unwrap();
    for case in cases {
        let (name, conversation) =
            (case["template"].as_str().unwrap(), case["conversation"].as_str().unwrap());
        let source = std::fs::read_to_string(Path::new("tests/golden/templates").join(name)).unwrap();
        let given = &golden["conversations"][conversation];
        let options = options(&given["arguments"], case["prompt"].as_bool().unwrap());
        let found = render(&source, special, &given["messages"], &options);
        // Python cannot iterate over `None`; minijinja takes it for an empty list.
        let lenient =
            case["text"].is_null() && conversation.contains("content") && LOOPS_OVER_CONTENT.contains(&name);
        if found.as_deref() != case["text"].as_str() && !lenient {
            different.push(format!("{name}, {conversation}:\n  {found:?}\n  {}", case["text"]));
        }
    }
    assert!(cases.len() >= 8 * 25 * 2);
    assert!(different.is_empty(), "{} of {} differ:\n{}", different.len(), cases.len(), different.join("\n"));
}

#[test]
fn constructs_of_templates_render_as_in_transformers() {
    let golden = golden();
    let special = golden["special"].as_object().unwrap();
    let options = options(&golden["data"], false);
    let mut different = Vec::new();
    for case in golden["snippets"].as_array().unwrap() {
        let source = case["source"].as_str().unwrap();
        let found = render(source, special, &golden["data"]["messages"], &options);
        if found.as_deref() != case["text"].as_str() {
            different.push(format!("{source}\n  {found:?}\n  {}", case["text"]));
        }
    }
    assert!(different.is_empty(), "{} differ:\n{}", different.len(), different.join("\n"));
}
