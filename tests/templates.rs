//! Chat templates render what transformers renders, byte for byte (`tests/golden/templates.py`).

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use pellucid::prompt::template::{ChatTemplate, RenderOptions};
use proptest::prelude::*;
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

fn error_of(source: &str) -> String {
    let messages = [serde_json::json!({"role": "user", "content": "x"})];
    match ChatTemplate::new(source, "folder/chat_template.jinja", Map::new()) {
        Ok(template) => template.render(&messages, &RenderOptions::default()).unwrap_err().to_string(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_template_may_refuse_in_its_own_words() {
    assert_eq!(
        error_of("{{ raise_exception('Rôles must alternate!') }}"),
        "chat template: Rôles must alternate!"
    );
}

#[test]
fn errors_name_file_and_line() {
    for (source, expected) in [
        ("a\n{{ x", "line 2: syntax error"),
        ("\n\n{{ missing.x }}", "line 3: undefined value"),
        ("{{ messages[0].content + none }}", "line 1: invalid operation"),
        ("{{ x | unheard }}", "line 1: unknown filter"),
        ("{{ strftime_now('%Q') }}", "unknown directive `%Q`"),
    ] {
        let error = error_of(source);
        assert!(error.starts_with("folder/chat_template.jinja: chat template: "), "{error}");
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn templates_that_do_not_end_well_end_in_an_error() {
    let nested = "(".repeat(20_000);
    for (source, expected) in [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "loop forever"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion limit"),
        ("{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}", "recursion limit"),
        ("{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}", "writes more than"),
        ("{{ range(999999999999) | list }}", "range has too many elements"),
        ("{{ 'x' * 99999999999 }}", "invalid operation"),
        ("{{ x }}{% if %}", "syntax error"),
        (&format!("{{{{ {nested} }}}}"), "syntax error"),
        (&"{% if 1 %}".repeat(20_000), "syntax error"),
        (&"{{ [[".repeat(20_000), "syntax error"),
    ] {
        let shown: String = source.chars().take(80).collect();
        let error = error_of(source);
        assert!(error.contains(expected), "{shown}: {error}");
    }
    let huge = "x".repeat(5 << 20);
    assert!(error_of(&huge).contains("5242880 bytes"));
}

/// Values nested deeper than any stack of a caller are printed, compared and dropped, or refused.
#[test]
fn deep_values_do_not_exhaust_the_stack() {
    let (open, close) = ("[".repeat(40), "]".repeat(40));
    let nest = |rounds: usize| {
        format!(
            "{{% set ns = namespace(x=[]) %}}{{% for i in range({rounds}) %}}{{% set ns.x = {open}ns.x{close} %}}{{% endfor %}}"
        )
    };
    let messages = [serde_json::json!({"role": "user", "content": "x"})];
    for rounds in [8_500, 50_000] {
        for end in ["", "{{ ns.x }}", "{{ ns.x | tojson }}", "{{ ns.x == [ns.x] }}", "{{ 'x' ~ ns.x }}"] {
            let source = nest(rounds) + end;
            let template = ChatTemplate::new(&source, "chat_template.jinja", Map::new()).unwrap();
            let rendered = template.render(&messages, &RenderOptions::default());
            assert_eq!(rendered.is_ok(), rounds == 8_500, "{rounds} {end}");
        }
    }
}

#[test]
fn long_conversations_have_steps_enough() {
    let turn = serde_json::json!([
        {"role": "user", "content": "question"},
        {"role": "assistant", "content": "", "reasoning_content": "why", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
        {"role": "tool", "content": "result"},
        {"role": "assistant", "content": "answer"},
    ]);
    let messages: Vec<Value> =
        std::iter::repeat_n(turn.as_array().unwrap(), 1000).flatten().cloned().collect();
    for entry in std::fs::read_dir("tests/golden/templates").unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "jinja") {
            let source = std::fs::read_to_string(&path).unwrap();
            let template =
                ChatTemplate::new(&source, &path, Map::from_iter([("bos_token".into(), "".into())])).unwrap();
            let rendered = template.render(&messages, &RenderOptions::default()).unwrap();
            assert_eq!(rendered.matches("question").count(), 1000, "{}", path.display());
        }
    }
}

/// Scraps of templates, valid and not.
fn scrap() -> impl Strategy<Value = String> {
    let words = "{{ }} {% %} {# #} {%- -%} for if in not endfor endif else elif set macro endmacro call endcall generation \
        endgeneration raw endraw block extends include import with endwith filter endfilter break continue recursive \
        messages message role content tools loop loop.index0 ns namespace range(3) namespace(a=1) x x.y [0] [-1] [::-1] \
        [0:5:-1] [5:0:-2] [-9:] ( ) [ ] { } , : . | ~ + - * / // % ** == != < > is defined string mapping none true 'a' \
        \"b\" 1 0 -1 1.5 9223372036854775807 tojson trim length join items map('upper') list sort first last split \
        .split('a') .strip() .get('a') .items() .format(1) .title() indent(4) replace('a','b') batch(2) slice(3) \
        round int float string default('d') raise_exception('no') strftime_now('%Y') loop(x) caller()";
    let words: Vec<&'static str> = words.split_whitespace().collect();
    let word = prop_oneof![
        20 => prop::sample::select(words).prop_map(str::to_owned),
        3 => Just("\n".to_owned()),
        1 => any::<String>(),
    ];
    prop::collection::vec(word, 0..40).prop_map(|words| words.join(" "))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_template_renders_or_refuses(source in prop_oneof![scrap(), scrap().prop_map(|s| format!("{{{{ {s} }}}}")), any::<String>()]) {
        let messages = [serde_json::json!({"role": "user", "content": ["a", {"b": null}], "x": 1.5})];
        let rendered = ChatTemplate::new(&source, "chat_template.jinja", Map::new())
            .and_then(|template| template.render(&messages, &RenderOptions::default()));
        if let Err(error) = rendered {
            prop_assert!(!error.to_string().contains("bug in pellucid"), "{error}");
        }
    }

    /// `tojson` is the JSON of its value, whatever the value.
    #[test]
    fn tojson_reads_back(text in any::<String>(), number in any::<i64>(), float in -1e300f64..1e300, flags in prop::collection::vec(any::<bool>(), 0..4)) {
        let value = serde_json::json!({"text": text.clone(), text: [number, float, null, flags, {}]});
        for filter in ["tojson", "tojson(indent=3)", "tojson(ensure_ascii=true)", "tojson(separators=(',', ':'))"] {
            let template = ChatTemplate::new(&format!("{{{{ messages[0] | {filter} }}}}"), "t", Map::new()).unwrap();
            let written = template.render(std::slice::from_ref(&value), &RenderOptions::default()).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Value>(&written).unwrap(), &value, "{}", filter);
        }
    }
}
