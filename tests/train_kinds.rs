//! Runs of the other kinds of episodes, as far as `tests/train.rs` does not have them: a step or two of each.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "support/server.rs"]
mod server;

use serde_json::{Map, Value, json};
use server::{Server, completion};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// What a file of JSON lines holds.
type Lines = Vec<Map<String, Value>>;

/// Metrics and samples of a run.
fn trained(recipe: &str, out: &Path, more: &[String]) -> (Lines, Lines) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pellucid"));
    command.args(["train", "-c", recipe, "--threads", "2", "--quiet", "run.steps=2", "run.save_every=2"]);
    command.args(["optim.prompts_per_step=2", "optim.group_size=3", "data.eval_limit=2"]);
    command.arg(format!("run.out={:?}", out.display().to_string())).args(more);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = |name: &str| -> Lines {
        let text = fs::read_to_string(out.join(name)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    (lines("metrics.jsonl"), lines("samples.jsonl"))
}

/// Three questions to a picture, put to a reasoner that always takes the first option.
#[test]
fn captions_of_a_quiz_earn_their_share_of_right_answers() {
    let server = Server::start(|_| completion("SOLVED : A", "stop"));
    let folder = tempfile::tempdir().unwrap();
    let question = |text: &str, answer: &str| json!({"question": text, "choices": ["red", "green", "blue", "white"], "answer": answer});
    let rows: Vec<Value> = (0..4)
        .map(|row| {
            let picture = format!("{row}.png");
            let pixels =
                image::RgbImage::from_fn(28, 28, |x, y| image::Rgb([x as u8 * 9, y as u8 * 9, row * 60]));
            pixels.save(folder.path().join(&picture)).unwrap();
            let questions = [question("which ?", "B"), question("what ?", "red"), question("where ?", "D")];
            json!({"image": picture, "questions": questions})
        })
        .collect();
    let data = folder.path().join("rows.jsonl");
    fs::write(&data, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
    let more = [
        "episode.kind=caprl".to_owned(),
        format!("reasoner.url={:?}", server.url()),
        "reasoner.model=first".to_owned(),
        format!("data.train={:?}", data.display().to_string()),
    ];
    let (_, samples) = trained("assets/demo.toml", &folder.path().join("run"), &more);
    assert_eq!(samples.len(), 2 * 6);
    let mut earned = BTreeSet::new();
    for sample in &samples {
        let trials = sample["trials"].as_array().unwrap();
        assert_eq!(trials.len(), 3);
        let right = trials.iter().filter(|trial| trial["verdict"] == 1).count();
        assert!((sample["reward"].as_f64().unwrap() - right as f64 / 3.0).abs() < 1e-12, "{sample:?}");
        earned.insert(right);
    }
    // The first option is right now and then, as it is put in front.
    assert!(earned.len() > 1, "{earned:?}");
    let orders: BTreeSet<String> = server
        .requests()
        .iter()
        .filter_map(|request| Some(request.words().split_once("(A)")?.1.to_owned()))
        .collect();
    assert!(orders.len() > 3, "{orders:?}");
}
