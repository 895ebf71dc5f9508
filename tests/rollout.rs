//! `pellucid rollout` as scripts use it: what is in its lines, and what an interruption costs.
#![cfg(feature = "cli")]

use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, path::Path, process::Command};

const MODEL: &str = "tests/golden/qwen2_5_vl/model";

struct Run {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn pellucid(arguments: &[&str]) -> Run {
    let output = Command::new(env!("CARGO_BIN_EXE_pellucid")).args(arguments).output().expect("starts");
    let text = |bytes| String::from_utf8(bytes).expect("prints text");
    Run { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

impl Run {
    #[track_caller]
    fn fails_with(&self, words: &str) {
        assert_eq!((self.code, self.stderr.lines().count()), (Some(1), 1), "{}", self.stderr);
        assert!(self.stderr.contains(words), "{}", self.stderr);
    }
}

fn rollout(folder: &Path, output: &str, more: &[&str]) -> Run {
    rollout_of(3, folder, output, more)
}

fn rollout_of(n: usize, folder: &Path, output: &str, more: &[&str]) -> Run {
    let n = n.to_string();
    let path = |name: &str| folder.join(name).to_str().expect("is text").to_owned();
    let (input, output) = (path("prompts.jsonl"), path(output));
    let arguments = ["rollout", "--model", MODEL, "--input", &input, "--output", &output, "--n", &n];
    let sampling = ["--max-tokens", "12", "--temperature", "0.9", "--seed", "5", "--ignore-eos"];
    pellucid(&[&arguments[..], &sampling, more].concat())
}

/// The ids at which a completion stops are those given, and the same in every lane.
#[test]
fn stop_tokens_are_given_as_a_list() {
    let folder = tempfile::tempdir().expect("there is room");
    let folder = folder.path();
    prompts(folder);
    assert_eq!(rollout(folder, "free.jsonl", &["--quiet"]).code, Some(0));
    let free = lines(folder, "free.jsonl");
    let ids = |line: &Value, lane: usize| line["completions"][lane]["token_ids"].clone();
    let first: Vec<String> = (0..2).map(|lane| ids(&free["2"], lane)[4].to_string()).collect();
    assert_eq!(
        rollout(folder, "stop.jsonl", &["--quiet", "--stop-token-ids", &first.join(",")]).code,
        Some(0)
    );
    for (id, line) in &lines(folder, "stop.jsonl") {
        for lane in 0..3 {
            let (free, stopped) = (ids(&free[id], lane), ids(line, lane));
            let is_stop = |token: &Value| first.contains(&token.to_string());
            let free = free.as_array().expect("is a list");
            let end = free.iter().position(is_stop).map_or(free.len(), |at| at + 1);
            assert_eq!(stopped.as_array().expect("is a list"), &free[..end], "{id} {lane}");
            let reason = if free[..end].iter().any(is_stop) { "stop" } else { "length" };
            assert_eq!(line["completions"][lane]["finish_reason"], reason, "{id} {lane}");
        }
    }
    let run = rollout(folder, "far.jsonl", &["--quiet", "--stop-token-ids", "999999"]);
    run.fails_with("stop token 999999");
}

/// Twelve prompts, with pictures, words and token ids.
fn prompts(folder: &Path) {
    fs::copy("tests/golden/images/files/odd.png", folder.join("odd.png")).expect("there is room");
    let lines = (0..12).map(|number| match number % 3 {
        0 => json!({"id": format!("p{number}"), "images": ["odd.png"], "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": format!("what is {number}")}]}
        ]}),
        1 => json!({"id": number, "prompt": format!("number {number} is")}),
        _ => json!({"prompt_token_ids": [number, 1, 2, 3]}),
    });
    let text: String = lines.map(|line| format!("{line}\n")).collect();
    fs::write(folder.join("prompts.jsonl"), text).expect("there is room");
}

fn lines(folder: &Path, name: &str) -> BTreeMap<String, Value> {
    let text = fs::read_to_string(folder.join(name)).expect("is there");
    let parse = |line: &str| serde_json::from_str::<Value>(line).expect("is JSON");
    let all: Vec<Value> = text.lines().map(parse).collect();
    let by_id: BTreeMap<String, Value> =
        all.iter().map(|line| (line["id"].to_string(), line.clone())).collect();
    assert_eq!(by_id.len(), all.len(), "a line is there twice");
    by_id
}

#[test]
fn an_interrupted_file_is_gone_on_with() {
    let folder = tempfile::tempdir().expect("there is room");
    let folder = folder.path();
    prompts(folder);
    let run = rollout(folder, "whole.jsonl", &["--json", "--quiet"]);
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
    let summary: Value = serde_json::from_str(run.stdout.trim()).expect("is JSON");
    assert_eq!((&summary["completions"], &summary["tokens"]), (&json!(36), &json!(36 * 12)));
    let whole = lines(folder, "whole.jsonl");
    assert_eq!(whole.len(), 12);
    for line in whole.values() {
        let completions = line["completions"].as_array().expect("is a list");
        assert_eq!((completions.len(), &line["weight_version"]), (3, &json!(0)));
        for completion in completions {
            let ids = completion["token_ids"].as_array().expect("is a list");
            assert_eq!((ids.len(), completion["logprobs"].as_array().map(Vec::len)), (12, Some(12)));
            assert_eq!(completion["finish_reason"], "length");
        }
        assert_ne!(completions[0]["token_ids"], completions[1]["token_ids"]);
        assert_eq!(completions[0].get("entropy"), None);
    }
    rollout(folder, "whole.jsonl", &["--entropy"]).fails_with("no entropy, but --entropy is given");
    // Cut off in the middle of a line, and with other limits from there on: the same lines in the end.
    let bytes = fs::read(folder.join("whole.jsonl")).expect("is there");
    for cut in [0, 1, bytes.len() / 3, bytes.len() / 2, bytes.len() - 1] {
        fs::write(folder.join("cut.jsonl"), &bytes[..cut]).expect("there is room");
        let run =
            rollout(folder, "cut.jsonl", &["--quiet", "--sequences", "4", "--pages", "9", "--budget", "50"]);
        assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
        assert_eq!(lines(folder, "cut.jsonl"), whole, "cut at {cut} of {}", bytes.len());
    }
    let before = fs::read(folder.join("whole.jsonl")).expect("is there");
    assert_eq!(rollout(folder, "whole.jsonl", &["--quiet"]).code, Some(0));
    assert_eq!(fs::read(folder.join("whole.jsonl")).expect("is there"), before);
}

/// What `score` says of the same tokens is what was recorded, to the last digit.
#[test]
fn scores_are_the_recorded_logprobs_and_entropies() {
    let folder = tempfile::tempdir().expect("there is room");
    let folder = folder.path();
    prompts(folder);
    assert_eq!(rollout(folder, "out.jsonl", &["--quiet", "--entropy"]).code, Some(0));
    rollout(folder, "out.jsonl", &["--quiet"]).fails_with("entropy, but --entropy is not given");
    let rolled = lines(folder, "out.jsonl");
    let mut requests = String::new();
    for (number, line) in
        fs::read_to_string(folder.join("prompts.jsonl")).expect("is there").lines().enumerate()
    {
        let mut request: Value = serde_json::from_str(line).expect("is JSON");
        let id = request.get("id").cloned().unwrap_or(json!(number));
        for (lane, completion) in
            rolled[&id.to_string()]["completions"].as_array().expect("is a list").iter().enumerate()
        {
            request["id"] = json!(format!("{id} {lane}"));
            request["completion_token_ids"] = completion["token_ids"].clone();
            requests.push_str(&format!("{request}\n"));
        }
    }
    fs::write(folder.join("requests.jsonl"), requests).expect("there is room");
    let path = |name: &str| folder.join(name).to_str().expect("is text").to_owned();
    let (input, output) = (path("requests.jsonl"), path("scores.jsonl"));
    let files = ["--model", MODEL, "--input", &input, "--output", &output, "--temperature", "0.9", "--quiet"];
    let run = pellucid(&[&["score"][..], &files].concat());
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
    let scores = lines(folder, "scores.jsonl");
    assert_eq!(scores.len(), 36);
    for (id, line) in &rolled {
        for (lane, completion) in line["completions"].as_array().expect("is a list").iter().enumerate() {
            let scored = &scores[&json!(format!("{id} {lane}")).to_string()];
            assert_eq!(scored["logprobs"], completion["logprobs"], "{id} {lane}");
            assert_eq!(scored["entropy"], completion["entropy"], "{id} {lane}");
        }
    }
}

#[test]
fn a_broken_line_does_not_cost_what_was_at_work() {
    let folder = tempfile::tempdir().expect("there is room");
    let folder = folder.path();
    let lines_of = |broken: &str| format!("{{\"prompt_token_ids\": [1, 2]}}\n{broken}\n");
    for (broken, words) in [
        ("{\"prompt_token_ids\": [1, 999999]}", ["line 2", "999999"]),
        ("{\"prompt_token_ids\": [1]", ["line 2", "column"]),
        ("{\"id\": 0, \"prompt_token_ids\": [1]}", ["line 2", "id 0"]),
        ("{\"prompt_token_ids\": [1], \"images\": [\"none.png\"]}", ["line 2", "none.png"]),
    ] {
        let _ = fs::remove_file(folder.join("out.jsonl"));
        fs::write(folder.join("prompts.jsonl"), lines_of(broken)).expect("there is room");
        let run = rollout(folder, "out.jsonl", &["--quiet"]);
        assert_eq!((run.code, run.stderr.lines().count()), (Some(1), 1), "{}", run.stderr);
        assert!(words.iter().all(|word| run.stderr.contains(word)), "{}", run.stderr);
        assert_eq!(lines(folder, "out.jsonl").len(), 1, "the line before is finished");
    }
    fs::write(folder.join("prompts.jsonl"), lines_of("")).expect("there is room");
    let run = rollout_of(2, folder, "out.jsonl", &["--quiet"]);
    assert!(run.stderr.contains("3 completions, but --n is 2"), "{}", run.stderr);
    let run = rollout(folder, "prompts.jsonl", &["--quiet"]);
    assert!(run.stderr.contains("is the input too"), "{}", run.stderr);
}
