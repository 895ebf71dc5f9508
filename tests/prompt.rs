//! From messages to tokens: ids equal transformers' on the golden checkpoints, images stand where they belong.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use pellucid::format::config::Family;
use pellucid::prompt::expand::{ImageMarkup, Prompt, Prompter, Span};
use pellucid::prompt::message::{Content, ImageReference, Message, Part};
use pellucid::prompt::template::{ChatTemplate, RenderOptions};
use pellucid::prompt::tokenizer::Tokenizer;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// Opens the assistant's turn.
fn open() -> RenderOptions {
    RenderOptions { add_generation_prompt: true, ..RenderOptions::default() }
}

fn tokenizer() -> Tokenizer {
    Tokenizer::load("tests/golden/tokenizer/tokenizer.json").unwrap()
}

fn template(name: &str) -> ChatTemplate {
    let path = Path::new("tests/golden/templates").join(name);
    ChatTemplate::new(&std::fs::read_to_string(&path).unwrap(), path, Map::new()).unwrap()
}

/// Family and template: Qwen's marks are the template's, InternVL's are ours; the last knows only text.
const FAMILIES: [(Family, &str); 4] = [
    (Family::Qwen2Vl, "qwen2-vl-instruct.jinja"),
    (Family::Qwen25Vl, "qwen2-vl-instruct.jinja"),
    (Family::InternVl, "internvl3-hf.jinja"),
    (Family::InternVl, "qwen2.5-instruct.jinja"),
];

fn with_prompter<T>((family, name): (Family, &str), body: impl FnOnce(&Prompter, &Tokenizer) -> T) -> T {
    let (tokenizer, template) = (tokenizer(), template(name));
    let markup = ImageMarkup::of(family, &tokenizer).unwrap();
    let prompter = Prompter::new(tokenizer, Some(template), markup);
    body(&prompter, prompter.tokenizer())
}

fn messages(list: Value) -> Vec<Message> {
    Message::list_from_json(list).unwrap()
}

/// Spans in order, inside the prompt, filled with one token and bounded by others.
fn check_spans(prompt: &Prompt, image_tokens: &[usize]) {
    assert_eq!(prompt.spans.len(), image_tokens.len());
    let mut end = 0;
    for (index, (Span { image, tokens }, &length)) in prompt.spans.iter().zip(image_tokens).enumerate() {
        assert_eq!((*image, tokens.len()), (index, length));
        assert!(tokens.start >= end && tokens.end <= prompt.tokens.len());
        assert!(prompt.tokens[tokens.clone()].windows(2).all(|pair| pair[0] == pair[1]));
        end = tokens.end;
    }
}

#[test]
fn golden_prompts_have_the_ids_of_transformers() {
    let mut compared = 0;
    for entry in std::fs::read_dir("tests/golden").unwrap() {
        let folder: PathBuf = entry.unwrap().path();
        let Ok(expected) = std::fs::read_to_string(folder.join("expected.json")) else { continue };
        let expected: Value = serde_json::from_str(&expected).unwrap();
        if !folder.join("model/tokenizer.json").exists() || !expected["prompts"].is_array() {
            continue;
        }
        let config = pellucid::format::config::ModelConfig::read(&folder.join("model")).unwrap();
        let tokenizer = Tokenizer::load(folder.join("model/tokenizer.json")).unwrap();
        let template = ChatTemplate::load(folder.join("model")).unwrap();
        let markup = ImageMarkup::of(config.family, &tokenizer).unwrap();
        let image_token = match config.family {
            Family::InternVl => tokenizer.id("<IMG_CONTEXT>"),
            _ => tokenizer.id("<|image_pad|>"),
        };
        let prompter = Prompter::new(tokenizer, template, markup);
        for prompt in expected["prompts"].as_array().unwrap() {
            let ids: Vec<u32> = serde_json::from_value(prompt["prompt_ids"].clone()).unwrap();
            // How long each image is, is the image processor's affair: taken from the answer.
            let runs = ids.chunk_by(|a, b| a == b).filter(|run| Some(run[0]) == image_token);
            let image_tokens: Vec<usize> = runs.map(<[u32]>::len).collect();
            let messages = messages(prompt["messages"].clone());
            assert_eq!(prompter.render(&messages, &open()).unwrap(), prompt["rendered"].as_str().unwrap());
            let found = prompter.chat(&messages, &open(), &image_tokens).unwrap();
            assert_eq!(found.tokens, ids, "{} {}", folder.display(), prompt["name"]);
            check_spans(&found, &image_tokens);
            // Tokens that are already expanded find their images again.
            assert_eq!(prompter.ids(ids, &image_tokens).unwrap(), found);
            compared += 1;
        }
    }
    assert!(compared >= 38, "only {compared} golden prompts");
}

#[test]
fn images_stand_between_the_words() {
    let messages = messages(json!([{"role": "user", "content": [
        {"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}, {"type": "image"},
    ]}]));
    for family in FAMILIES {
        with_prompter(family, |prompter, tokenizer| {
            let prompt = prompter.chat(&messages, &open(), &[3, 5]).unwrap();
            check_spans(&prompt, &[3, 5]);
            let (open, pad, close, line) = match family.0 {
                Family::InternVl => ("<img>", "<IMG_CONTEXT>", "</img>", "\n"),
                _ => ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>", ""),
            };
            let text = tokenizer.decode(&prompt.tokens, false).unwrap();
            let expected =
                format!("a{open}{}{close}{line}b{open}{}{close}{line}", pad.repeat(3), pad.repeat(5));
            assert!(text.contains(&expected), "{text}");
        });
    }
}

/// What people type stays text: no image appears, none goes missing, and it reads as it was typed.
#[test]
fn a_typed_placeholder_is_text() {
    for family in FAMILIES {
        with_prompter(family, |prompter, tokenizer| {
            let typed = "typed <|image_pad|> <IMG_CONTEXT> <image>, e.g. <|image_pad|>";
            let messages = messages(json!([
                {"role": "user", "content": typed},
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": typed}]},
            ]));
            let prompt = prompter.chat(&messages, &open(), &[4]).unwrap();
            check_spans(&prompt, &[4]);
            let pad = prompt.tokens[prompt.spans[0].tokens.start];
            assert_eq!(prompt.tokens.iter().filter(|&&id| id == pad).count(), 4);
            assert_eq!(tokenizer.decode(&prompt.tokens, false).unwrap().matches(typed).count(), 2);
            assert_eq!(prompter.render(&messages, &open()).unwrap().matches(typed).count(), 2);
        });
    }
}

#[test]
fn counts_that_differ_are_named() {
    let two = messages(json!([{"role": "user", "content": [{"type": "image"}, {"type": "image"}]}]));
    with_prompter(FAMILIES[0], |prompter, _| {
        for given in [&[][..], &[1], &[1, 2, 3]] {
            let error = prompter.chat(&two, &open(), given).unwrap_err().to_string();
            assert!(
                error.contains("2 image placeholder") && error.contains(&given.len().to_string()),
                "{error}"
            );
        }
        let error = prompter.text("<|image_pad|>", &[]).unwrap_err().to_string();
        assert!(error.contains("1 image placeholder") && error.contains("0 image"), "{error}");
        let error = prompter.text("no place", &[7]).unwrap_err().to_string();
        assert!(error.contains("0 image placeholder") && error.contains("1 image"), "{error}");
    });
    let prompter = Prompter::new(tokenizer(), Some(template("qwen3.jinja")), None);
    let error = prompter.chat(&two, &open(), &[1, 2]).unwrap_err().to_string();
    assert!(error.contains("2 image(s) for a model that reads text only"), "{error}");
    let silent = ChatTemplate::new("{{ messages[0].role }}", "chat_template.jinja", Map::new()).unwrap();
    let markup = ImageMarkup::of(Family::Qwen2Vl, &tokenizer()).unwrap();
    let error = Prompter::new(tokenizer(), Some(silent), markup)
        .chat(&two, &open(), &[1, 2])
        .unwrap_err()
        .to_string();
    assert!(error.contains("hold 2 image(s)") && error.contains("writes 0"), "{error}");
    let error = Prompter::new(tokenizer(), None, None).chat(&two, &open(), &[1, 2]).unwrap_err().to_string();
    assert!(error.contains("no chat template"), "{error}");
}

#[test]
fn raw_prompts_and_given_tokens() {
    with_prompter(FAMILIES[0], |prompter, tokenizer| {
        let text = "see <|vision_start|><|image_pad|><|vision_end|> and <|image_pad|>";
        let prompt = prompter.text(text, &[2, 3]).unwrap();
        check_spans(&prompt, &[2, 3]);
        assert_eq!(prompter.ids(prompt.tokens.clone(), &[2, 3]).unwrap(), prompt);
        assert_eq!(prompter.text("plain", &[]).unwrap().tokens, tokenizer.encode("plain").unwrap());
        let plain = prompter.ids(vec![1, 2, 3], &[]).unwrap();
        assert_eq!((plain.tokens, plain.spans), (vec![1, 2, 3], vec![]));
        for (wanted, message) in
            [(&[2, 4][..], "image 1 takes 4"), (&[2], "2 image placeholder"), (&[1; 9], "5 image")]
        {
            let error = prompter.ids(prompt.tokens.clone(), wanted).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
        // Two images side by side, told apart by their lengths.
        let pad = tokenizer.require("<|image_pad|>").unwrap();
        let beside = prompter.ids(vec![pad; 5], &[2, 3]).unwrap();
        check_spans(&beside, &[2, 3]);
    });
}

fn part() -> impl Strategy<Value = Part> {
    let typed = prop::sample::select(vec![
        "<|image_pad|>",
        "<IMG_CONTEXT>",
        "<image>",
        "<|im_end|>",
        "<|vision_end|>",
    ]);
    prop_oneof![
        any::<String>().prop_map(Part::Text),
        ("[a-z<|> \u{e000}]{0,8}", typed).prop_map(|(text, typed)| Part::Text(text + typed)),
        Just(Part::Image(None)),
        Just(Part::Image(Some(ImageReference::Bytes(vec![1])))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever people write, each image has one span of its own length and nothing else looks like an image.
    #[test]
    fn every_image_has_its_span(
        contents in prop::collection::vec(prop::collection::vec(part(), 0..5), 1..4),
        lengths in prop::collection::vec(1usize..9, 15),
        family in 0usize..4,
    ) {
        let messages: Vec<Message> = contents
            .into_iter()
            .map(|parts| Message { role: "user".into(), content: Content::Parts(parts), fields: Map::new() })
            .collect();
        let count: usize = messages.iter().map(Message::image_count).sum();
        with_prompter(FAMILIES[family], |prompter, tokenizer| {
            let prompt = prompter.chat(&messages, &open(), &lengths[..count]).unwrap();
            check_spans(&prompt, &lengths[..count]);
            let pad = if FAMILIES[family].0 == Family::InternVl { "<IMG_CONTEXT>" } else { "<|image_pad|>" };
            let pad = tokenizer.require(pad).unwrap();
            let pads = prompt.tokens.iter().filter(|&&id| id == pad).count();
            assert_eq!(pads, lengths[..count].iter().sum::<usize>());
        });
    }
}
