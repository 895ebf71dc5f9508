//! The built-in models: folders like any other, that speak the tiny world's language.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use pellucid::backend::cpu::Cpu;
use pellucid::format::ModelFolder;
use pellucid::format::config::Family;
use pellucid::model::Model;
use pellucid::prompt::image::Arithmetic;
use pellucid::prompt::message::{ImageReference, Message};
use pellucid::prompt::reader::{ImageOptions, Reader, Words};
use pellucid::prompt::template::RenderOptions;
use pellucid::task::school::Exam;
use pellucid::task::world::*;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

const BOTH: [&str; 2] = ["builtin:tiny-captioner", "builtin:tiny-reasoner"];

fn open(name: &str) -> (Model, Reader, Vec<u32>) {
    let folder = ModelFolder::find(name).unwrap();
    let model = Model::load(folder.path(), Arc::new(Cpu::new(None).unwrap()), None).unwrap();
    let reader = Reader::open(&folder, &model.config, ImageOptions::default()).unwrap();
    let end = folder.eos(&model.config).unwrap();
    (model, reader, end)
}

#[test]
fn they_are_small_models_of_known_families() {
    let counted = BOTH.map(|name| {
        let (model, reader, end) = open(name);
        let vocabulary = Vocabulary::default();
        assert_eq!((reader.tokenizer().vocab_size(), end), (105, vocabulary.encode("<|im_end|>").unwrap()));
        let parameters: usize = model.parameters().iter().map(|(_, tensor)| tensor.len()).sum();
        (model.config.family, parameters)
    });
    assert_eq!(counted, [(Family::Qwen25Vl, 714_816), (Family::Qwen2, 457_472)]);
}

#[test]
fn their_tokens_are_the_words_of_the_world() {
    let vocabulary = Vocabulary::default();
    for name in BOTH {
        let (_, reader, _) = open(name);
        let tokenizer = reader.tokenizer();
        for (id, word) in (0..).zip(words()) {
            assert_eq!(
                (tokenizer.token(id).as_deref(), tokenizer.id(&word)),
                (Some(word.as_str()), Some(id))
            );
        }
        let text = "<|im_start|> user where is the red-circle ? <|im_end|>";
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(ids, vocabulary.encode(text).unwrap());
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), "user where is the red-circle ?");
        assert_eq!(
            tokenizer.decode(&tokenizer.encode("the elephant").unwrap(), true).unwrap(),
            "the unknown"
        );
    }
}

/// Text comes word by word as it would all at once, special tokens among the words or not.
#[test]
fn a_stream_of_words_is_their_text() {
    let (_, reader, _) = open(BOTH[1]);
    let tokenizer = reader.tokenizer();
    let mut chance = Chance::new(1, 2, Purpose::Caption);
    for length in 1..40 {
        // The first six are special.
        let ids: Vec<u32> = (0..length)
            .map(|_| {
                let among = chance.one(&[6, 105]);
                chance.below(among) as u32
            })
            .collect();
        for skip in [true, false] {
            let mut stream = tokenizer.stream(skip);
            let mut text: String = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
            text += &stream.finish().unwrap();
            assert_eq!(text, tokenizer.decode(&ids, skip).unwrap(), "{ids:?}");
        }
    }
}

/// What the command that made them found on more examples.
#[test]
fn they_can_do_what_they_were_taught() {
    let [captioner, reasoner] = BOTH.map(|name| open(name).0);
    let exam = Exam::new(&captioner, &reasoner).unwrap();
    let skills = exam.skills(HELD_OUT - 2, 100).unwrap();
    assert_eq!(skills.0.len(), 7, "{skills}");
    for (name, rate) in &skills.0 {
        // One slip, where few were asked, and one in twenty.
        assert!(rate.of - rate.right <= 1 + rate.of / 20, "{name}: {rate}");
    }
    // The reasoner asks about four of five questions, and one clarification lets it answer.
    let marks = exam.problems(HELD_OUT, 200, 1.0).unwrap();
    let share = |name: &str| marks.rate(name).share();
    assert!((0.72..0.90).contains(&share("asks")), "{marks}");
    assert!((0.12..0.28).contains(&share("right if made to answer")), "{marks}");
    assert!((0.70..0.90).contains(&share("right, clarified once")), "{marks}");
}

/// Messages come out as the prompts the models were taught with.
#[test]
fn their_templates_write_the_prompts_of_the_world() {
    let example = Example::new(HELD_OUT, 0);
    let question = example.question.to_string();
    let read = |name: &str, messages: Value, images: &[ImageReference]| {
        let (_, reader, _) = open(name);
        let words = Words::Messages(Message::list_from_json(messages).unwrap());
        let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        reader.read(&words, images, Path::new(""), &options).unwrap()
    };
    let encode = |text: &str| Vocabulary::default().encode(text).unwrap();

    let png = ImageReference::Bytes(Picture::draw(&example.scene).png().unwrap());
    let content = json!([
        {"type": "image"},
        {"type": "text", "text": format!("describe the image for the question : {question}")}
    ]);
    let seen = read(BOTH[0], json!([{"role": "user", "content": content}]), &[png]);
    assert_eq!(seen.prompt.tokens, encode(&prompt(&[message(Role::User, &ask_for_caption(&question))])));
    assert_eq!((seen.prompt.spans[0].tokens.clone(), seen.images[0].tokens), (3..12, PICTURE_TOKENS));

    let [caption, verdict, told] = [
        "red-circle .",
        "red-circle unknown . NEED MORE INFO : where is the red-circle ?",
        "red-circle center .",
    ];
    let heard = read(
        BOTH[1],
        json!([
            {"role": "user", "content": ask_for_answer(caption, &question)},
            {"role": "assistant", "content": verdict},
            {"role": "user", "content": tell(told)}
        ]),
        &[],
    );
    let turns = [
        message(Role::User, &ask_for_answer(caption, &question)),
        message(Role::Assistant, verdict),
        message(Role::User, &tell(told)),
    ];
    assert_eq!(heard.prompt.tokens, encode(&prompt(&turns)));
}

/// A picture of the world keeps its pixels: nothing is resized, whatever arithmetic would do it.
#[test]
fn pictures_of_the_world_are_not_resized() {
    let scene = Example::new(HELD_OUT, 1).scene;
    let picture = Picture::draw(&scene);
    let folder = ModelFolder::find(BOTH[0]).unwrap();
    let config = folder.config().unwrap();
    let processed = [Arithmetic::Torch, Arithmetic::Pil].map(|arithmetic| {
        let options = ImageOptions { arithmetic: Some(arithmetic), ..ImageOptions::default() };
        let reader = Reader::open(&folder, &config, options).unwrap();
        let png = ImageReference::Bytes(picture.png().unwrap());
        let text = Words::Text("<|image_pad|>".into());
        reader.read(&text, &[png], Path::new(""), &RenderOptions::default()).unwrap().images.remove(0)
    });
    // The first patch of the first cell: channel, frame, row, column.
    let red = |x: usize, y: usize| (f64::from(picture.at(x, y)[0]) / 255.0 - 0.481_454_66) / 0.268_629_54;
    for image in &processed {
        assert_eq!(image.shape, [36, 1176]);
        for (x, y) in [(0, 0), (1, 0), (13, 13), (5, 9)] {
            for frame in 0..2 {
                let pixel = f64::from(image.pixels[frame * 196 + y * 14 + x]);
                assert!((pixel - red(x, y)).abs() < 1e-5, "{x} {y}: {pixel}");
            }
        }
    }
}

#[cfg(feature = "cli")]
#[test]
#[ignore = "needs tests/golden/requirements.txt: PYTHON=python cargo test --test tiny -- --ignored"]
fn transformers_reads_them_and_computes_the_same() {
    let python = std::env::var_os("PYTHON").unwrap_or("python3".into());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/builtin.py");
    let mut command = std::process::Command::new(python);
    let run = command.arg(script).arg(env!("CARGO_BIN_EXE_pellucid")).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
}
