//! Token ids are those of Python's `tokenizers` (`tests/golden/tokenizer_parity.py`), and streaming loses nothing.

#![allow(clippy::unwrap_used)]

use pellucid::prompt::tokenizer::Tokenizer;
use proptest::prelude::*;

fn tokenizer() -> Tokenizer {
    Tokenizer::load("tests/golden/tokenizer/tokenizer.json").unwrap()
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> String {
    let mut stream = tokenizer.stream(skip_special);
    let mut text: String = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    text += &stream.finish().unwrap();
    text
}

#[test]
fn ids_are_those_of_python() {
    let tokenizer = tokenizer();
    let cases = std::fs::read_to_string("tests/golden/tokenizer/lines.json").unwrap();
    let cases: Vec<(String, Vec<u32>)> = serde_json::from_str(&cases).unwrap();
    assert!(cases.len() >= 250);
    for (text, ids) in cases {
        assert_eq!(tokenizer.encode(&text).unwrap(), ids, "{text:?}");
        let whole = tokenizer.decode(&ids, false).unwrap();
        assert_eq!(streamed(&tokenizer, &ids, false), whole, "{text:?}");
    }
}

/// Taken apart into the files older writers leave, the tokenizer is the same.
#[test]
fn parts_make_the_same_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let error = Tokenizer::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("neither tokenizer.json nor vocab.json"), "{error}");
    let whole = std::fs::read_to_string("tests/golden/qwen2/model/tokenizer.json").unwrap();
    let whole: serde_json::Value = serde_json::from_str(&whole).unwrap();
    let merges = whole["model"]["merges"].as_array().unwrap().iter().map(|merge| match merge {
        serde_json::Value::Array(pair) => {
            format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap())
        }
        merge => merge.as_str().unwrap().to_owned(),
    });
    write("vocab.json", &whole["model"]["vocab"].to_string());
    write(
        "merges.txt",
        &(["#version: 0.2".to_owned()].into_iter().chain(merges).collect::<Vec<_>>().join("\n")),
    );
    let lines = std::fs::read_to_string("tests/golden/tokenizer/lines.json").unwrap();
    let lines: Vec<(String, Vec<u32>)> = serde_json::from_str(&lines).unwrap();
    let lines = lines.iter().map(|(text, _)| format!("{text}<|im_end|>\n"));
    let lines: Vec<String> = lines.chain(["<|im_start|>user".into(), "don't\u{301}".into()]).collect();
    let reference = Tokenizer::open("tests/golden/qwen2/model".as_ref()).unwrap();
    let config = std::fs::read_to_string("tests/golden/qwen2/model/tokenizer_config.json").unwrap();
    let table: serde_json::Map<_, _> = whole["added_tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|token| (token["content"].as_str().unwrap().to_owned(), token["id"].clone()))
        .collect();
    write("added_tokens.json", &serde_json::Value::Object(table).to_string());
    for config in [config.as_str(), r#"{"tokenizer_class": "Qwen2Tokenizer"}"#] {
        write("tokenizer_config.json", config);
        let parts = Tokenizer::open(folder.path()).unwrap();
        for line in &lines {
            assert_eq!(parts.encode(line).unwrap(), reference.encode(line).unwrap(), "{line:?}");
        }
    }
    write("tokenizer_config.json", r#"{"tokenizer_class": "LlamaTokenizer"}"#);
    let error = Tokenizer::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("LlamaTokenizer in parts"), "{error}");
}

#[test]
fn special_tokens_are_found_and_skipped() {
    let tokenizer = tokenizer();
    let end = tokenizer.require("<|im_end|>").unwrap();
    let ids = tokenizer.encode("ab<|im_end|>").unwrap();
    assert_eq!(ids.last(), Some(&end));
    assert_eq!(tokenizer.token(end).unwrap(), "<|im_end|>");
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "ab");
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), "ab<|im_end|>");
    assert_eq!(tokenizer.id("<|nothing|>"), None);
    let error = tokenizer.require("<|nothing|>").unwrap_err().to_string();
    assert!(error.contains("tokenizer.json") && error.contains("<|nothing|>"), "{error}");
}

/// Models have more rows than tokenizers have tokens, and may draw one.
#[test]
fn an_id_beyond_the_vocabulary_has_no_text() {
    let tokenizer = tokenizer();
    let beyond = u32::try_from(tokenizer.vocab_size()).unwrap();
    assert!(tokenizer.contains(beyond - 1) && !tokenizer.contains(beyond));
    let mut ids = tokenizer.encode("a𓀀b").unwrap();
    let last = ids.len() - 1;
    ids.splice(last..last, [beyond, u32::MAX]);
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), "a𓀀b");
    assert_eq!(streamed(&tokenizer, &ids, false), "a𓀀b");
    assert_eq!(tokenizer.stream(true).push(beyond).unwrap(), "");
}

#[test]
fn a_character_in_pieces_comes_out_whole() {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode("𓀀!").unwrap();
    assert!(ids.len() > 2, "the fixture must split this character: {ids:?}");
    let mut stream = tokenizer.stream(false);
    let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    assert_eq!(pieces.concat(), "𓀀!");
    assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')), "{pieces:?}");
}

/// A begin-of-text token is what a raw prompt gets and a rendered template brings itself.
#[test]
fn begin_of_text_is_put_once() {
    let mut file: serde_json::Value =
        serde_json::from_slice(&std::fs::read("tests/golden/tokenizer/tokenizer.json").unwrap()).unwrap();
    let begin = tokenizer().require("<|im_start|>").unwrap();
    file["post_processor"] = serde_json::json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [begin], "tokens": ["<|im_start|>"]}},
    });
    let tokenizer = Tokenizer::from_bytes(file.to_string().as_bytes(), "tokenizer.json").unwrap();
    let bare = tokenizer.encode("ab").unwrap();
    let opened = [&[begin], bare.as_slice()].concat();
    assert_eq!(tokenizer.encode_raw("ab").unwrap(), opened);
    assert_eq!(tokenizer.encode_raw("<|im_start|>ab").unwrap(), opened);
    assert_eq!(tokenizer.encode_raw("").unwrap(), [begin]);
}

/// Truncation asked for by the file would silently shorten prompts.
#[test]
fn truncation_and_padding_of_the_file_are_off() {
    let mut file: serde_json::Value =
        serde_json::from_slice(&std::fs::read("tests/golden/tokenizer/tokenizer.json").unwrap()).unwrap();
    file["truncation"] =
        serde_json::json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    file["padding"] = serde_json::json!({
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    });
    let other = Tokenizer::from_bytes(file.to_string().as_bytes(), "tokenizer.json").unwrap();
    let text = "the quick brown fox";
    assert_eq!(other.encode(text).unwrap(), tokenizer().encode(text).unwrap());
}

#[test]
fn a_broken_file_is_an_error_that_names_it() {
    let good = std::fs::read_to_string("tests/golden/tokenizer/tokenizer.json").unwrap();
    let files = [
        String::new(),
        "{}".into(),
        "[1, 2]".into(),
        "null".into(),
        good.split_once("merges").unwrap().0.into(),
        good.replace("\"BPE\"", "\"Nonsense\""),
        good.replace("\\\\p{L}", "\\\\p{Nonsense}"),
        good.replace("(?i:", "(((?i:"),
        good.replace("\"vocab\": {", "\"vocab\": {\"extra\": -1, "),
        good.replace("\"merges\": [", "\"merges\": [[\"no such\", \"token\"], "),
        good.replace("\"normalized\": false", "\"normalized\": 7"),
    ];
    for (index, file) in files.iter().enumerate() {
        assert!(*file != good, "case {index} changes nothing");
        let error = Tokenizer::from_bytes(file.as_bytes(), "folder/tokenizer.json").unwrap_err();
        assert!(error.to_string().starts_with("folder/tokenizer.json: "), "{error}");
    }
    let error = Tokenizer::load("no/such/tokenizer.json").unwrap_err().to_string();
    assert!(error.starts_with("no/such/tokenizer.json: "), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Composed text (the fixture normalises to NFC, as Qwen does) comes back as it was.
    #[test]
    fn text_survives(text in "[ -~äöü\u{4e00}-\u{4e20}\u{1f600}-\u{1f610}\n\t]{0,60}") {
        let tokenizer = tokenizer();
        let ids = tokenizer.encode(&text).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }

    #[test]
    fn any_text_encodes(text in any::<String>()) {
        let tokenizer = tokenizer();
        let ids = tokenizer.encode(&text).unwrap();
        prop_assert_eq!(streamed(&tokenizer, &ids, true), tokenizer.decode(&ids, true).unwrap());
    }

    /// Any ids at all, most of them no UTF-8 together.
    #[test]
    fn streaming_is_whole_decoding(ids in prop::collection::vec(0u32..811, 0..200), skip in any::<bool>()) {
        let tokenizer = tokenizer();
        prop_assert_eq!(streamed(&tokenizer, &ids, skip), tokenizer.decode(&ids, skip).unwrap());
    }

    /// Bytes alone (the first 256 tokens): long stretches without a whole character.
    #[test]
    fn streaming_bytes_is_whole_decoding(ids in prop::collection::vec(128u32..256, 0..200)) {
        let tokenizer = tokenizer();
        prop_assert_eq!(streamed(&tokenizer, &ids, false), tokenizer.decode(&ids, false).unwrap());
    }

    /// One value of the file replaced by another: a tokenizer that works, or an error, never a panic.
    #[test]
    fn a_changed_file_works_or_is_an_error(steps in prop::collection::vec(any::<prop::sample::Index>(), 1..6), with in 0usize..12) {
        let values = serde_json::json!([
            null, true, -1, 0, 4294967295u32, 1e300, "", "a", "(", [], {}, {"type": "ByteLevel", "add_prefix_space": true},
        ]);
        let file = std::fs::read("tests/golden/tokenizer/tokenizer.json").unwrap();
        let mut file: serde_json::Value = serde_json::from_slice(&file).unwrap();
        let mut place = String::new();
        for step in steps {
            match file.pointer(&place) {
                Some(serde_json::Value::Array(items)) if !items.is_empty() => {
                    place += &format!("/{}", step.index(items.len()));
                }
                Some(serde_json::Value::Object(fields)) if !fields.is_empty() => {
                    let key = fields.keys().nth(step.index(fields.len())).unwrap();
                    place += &format!("/{}", key.replace('~', "~0").replace('/', "~1"));
                }
                _ => break,
            }
        }
        *file.pointer_mut(&place).unwrap() = values[with].clone();
        if let Ok(tokenizer) = Tokenizer::from_bytes(file.to_string().as_bytes(), "tokenizer.json") {
            for text in ["the quick <|im_end|> 你好", "", "e\u{301}"] {
                if let Ok(ids) = tokenizer.encode_raw(text) {
                    _ = tokenizer.decode(&ids, true);
                    let mut stream = tokenizer.stream(false);
                    _ = ids.iter().try_for_each(|&id| stream.push(id).map(drop));
                    _ = stream.finish();
                }
            }
        }
    }
}
