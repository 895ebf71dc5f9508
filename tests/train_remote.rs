//! A run whose reasoner is a server: what the server does to it, and what it must not do.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "support/server.rs"]
mod server;

use serde_json::{Map, Value};
use server::{Act, Request, Server, completion, with_status};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{fs, thread};

const STEPS: usize = 5;
const CAPTIONS: usize = 2 * 4;

/// A number that depends on all that was said.
fn draw(request: &Request) -> u64 {
    let bytes = request.body["messages"].to_string().into_bytes();
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// A reasoner of the tiny world that guesses, and now and then asks the question back: always the same to the same words.
fn guess(request: &Request) -> Act {
    let first = request.body["messages"].as_array().unwrap().len() == 1;
    let words = request.words();
    let question = words.split("question : ").last().unwrap();
    match draw(request) >> 8 {
        drawn if first && drawn % 3 == 0 => completion(&format!("NEED MORE INFO : {question}"), "stop"),
        drawn => completion(&format!("SOLVED : {}", drawn % 9 + 1), "stop"),
    }
}

fn train(url: &str, out: &Path, more: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pellucid"));
    let quoted = |path: &Path| format!("{:?}", path.display().to_string());
    command.args(["train", "-c", "assets/demo.toml", "--threads", "2", "--quiet"]);
    command.args([
        "optim.prompts_per_step=2",
        "optim.group_size=4",
        "run.save_every=2",
        "data.train=builtin:world/sum",
    ]);
    command.args([
        format!("run.steps={STEPS}"),
        format!("run.out={}", quoted(out)),
        format!("reasoner.url={url:?}"),
    ]);
    command.args(["reasoner.model=guesser", "data.eval_limit=4"]).args(more);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn finished(child: Child) {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn lines(path: &Path) -> Vec<Map<String, Value>> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Metrics without what the clock or the server has to do with.
fn timeless(out: &Path) -> Vec<Map<String, Value>> {
    let mut all = lines(&out.join("metrics.jsonl"));
    all.iter_mut()
        .for_each(|line| line.retain(|name, _| !name.starts_with("time/") && !name.starts_with("server/")));
    all
}

fn learned(out: &Path) -> Vec<Vec<u8>> {
    let last = out.join(format!("checkpoint-{STEPS}"));
    let files = ["adapter_model.safetensors", "optimizer.safetensors"].map(|name| last.join(name));
    files.iter().chain([&out.join("samples.jsonl")]).map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn a_server_that_fails_and_goes_and_comes_back_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let [straight, troubled] = ["straight", "troubled"].map(|name| folder.path().join(name));
    let steady = Server::start(guess);
    finished(train(&steady.url(), &straight, &[]));
    assert_eq!(lines(&straight.join("samples.jsonl")).len(), STEPS * CAPTIONS);

    // This one is busy, breaks off, answers garbage, and ever again something.
    let moody = |request: &Request| match request.number % 9 {
        2 => with_status(503, "retry-after: 0.01\r\n", b"busy"),
        4 => Act::Send(Vec::new()),
        6 => with_status(200, "", b"<html>"),
        8 => with_status(500, "", b"oops"),
        _ => guess(request),
    };
    let cache =
        format!("reasoner.server.cache={:?}", folder.path().join("replies.jsonl").display().to_string());
    let more = [cache.as_str(), "reasoner.server.retries=20", "--resume", "latest"];
    let mut first = Server::start(moody);
    let address = first.address.to_string();
    let mut run = train(&first.url(), &troubled, &more);
    let asked = |server: &Server, count: usize| {
        while server.requests().len() < count {
            thread::sleep(Duration::from_millis(2));
        }
    };
    // It is gone for a while in the middle of a run, and back; then the run itself is killed, and taken up.
    asked(&first, 12);
    first.stop();
    thread::sleep(Duration::from_millis(300));
    let second = Server::start_at(&address, moody);
    asked(&second, 12);
    run.kill().unwrap();
    run.wait().unwrap();
    finished(train(&second.url(), &troubled, &more));

    assert_eq!(timeless(&troubled), timeless(&straight));
    assert!(learned(&troubled) == learned(&straight), "weights or samples differ");
    // What was answered was not asked again: the cache, which both halves wrote, has every reply once.
    let text = fs::read_to_string(folder.path().join("replies.jsonl")).unwrap();
    let mut names: Vec<String> = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .map(|entry| entry["reply"].as_str().unwrap().to_owned())
        .collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert!(count > 20 && names.len() == count, "{count} replies to {} questions", names.len());
}

#[test]
fn what_has_no_reply_has_no_reward() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let fussy = |request: &Request| match draw(request) % 4 {
        0 => with_status(400, "", br#"{"error": {"message": "not that"}}"#),
        1 if request.body["messages"].as_array().unwrap().len() > 1 => completion("", "stop"),
        _ => guess(request),
    };
    let server = Server::start(fussy);
    finished(train(&server.url(), &out, &["reasoner.server.retries=0"]));
    let (why, samples): (Vec<_>, Vec<_>) =
        lines(&out.join("samples.jsonl")).into_iter().partition(|line| line.contains_key("left_out"));
    assert_eq!(samples.len(), STEPS * CAPTIONS);
    let said =
        |why: &Map<String, Value>| why["left_out"].as_str().unwrap().contains("no answer to a caption");
    assert!(!why.is_empty() && why.iter().all(said), "{why:?}");
    let (dropped, graded): (Vec<_>, Vec<_>) =
        samples.iter().partition(|sample| sample["trials"][0].is_null());
    assert!(!dropped.is_empty() && !graded.is_empty());
    assert!(dropped.iter().all(|sample| sample["reward"].is_null() && sample["advantage"].is_null()));
    assert!(graded.iter().all(|sample| sample["reward"].is_number()));
    let metrics = lines(&out.join("metrics.jsonl"));
    let last = metrics.last().unwrap();
    // Captions with the same words are one question; each that came to nothing is counted, once.
    let count = |name: &str| last[name].as_u64().unwrap() as usize;
    assert!(count("server/refused") > 0 && count("server/garbage") > 0, "{last:?}");
    assert!(count("server/refused") + count("server/garbage") <= dropped.len());
    assert_eq!(
        count("server/questions"),
        count("server/replies") + count("server/refused") + count("server/garbage")
    );
}

#[test]
fn of_nothing_there_are_no_rates() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let server = Server::start(|_| with_status(200, "", b"<html>"));
    finished(train(&server.url(), &out, &["reasoner.server.retries=0", "run.steps=2"]));
    let metrics = lines(&out.join("metrics.jsonl"));
    assert_eq!(metrics.len(), 2);
    for line in &metrics {
        assert_eq!((&line["episodes"], &line["groups/dropped_members"]), (&0.into(), &CAPTIONS.into()));
        for name in ["reward", "reward_std", "accuracy", "single_pass", "frac_reward_zero_std"] {
            assert!(line[name].is_null(), "{name} is {}", line[name]);
        }
        let alarms = pellucid::rl::alarms::of_training(std::slice::from_ref(line));
        assert!(alarms.iter().any(|alarm| alarm.name == "answers lost"), "{alarms:?}");
    }
    let total = |line: &Map<String, Value>| line["num_tokens"].as_u64().unwrap();
    assert!(total(&metrics[1]) > total(&metrics[0]) + metrics[1]["completions/tokens"].as_u64().unwrap());
}

#[test]
fn what_has_no_reply_is_counted_where_it_is_missing() {
    const PROBLEMS: usize = 24;
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let server = Server::start(|request| match draw(request) % 4 {
        0 => with_status(400, "", br#"{"error": {"message": "not that"}}"#),
        _ => guess(request),
    });
    let mut command = Command::new(env!("CARGO_BIN_EXE_pellucid"));
    command.args(["eval", "-c", "assets/demo.toml", "--threads", "2", "--quiet", "--out"]).arg(&out);
    command.args([format!("reasoner.url={:?}", server.url()), format!("data.eval_limit={PROBLEMS}")]);
    let output = command.args(["reasoner.model=guesser", "data.eval=builtin:world/sum"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = fs::read_to_string(out.join("eval-0-single-pass-greedy.json")).unwrap();
    let saved: Value = serde_json::from_str(&text).unwrap();
    let graded = saved["items"].as_array().unwrap().len();
    let unanswered = saved["metrics"]["unanswered"].as_u64().unwrap() as usize;
    assert!(graded > 0 && unanswered > 0, "{graded} and {unanswered}");
    assert_eq!(graded + unanswered, PROBLEMS);
    let said = format!("{unanswered} problems are left out: the reasoner gave no usable reply");
    assert!(String::from_utf8_lossy(&output.stdout).contains(&said));
    assert!(fs::read_to_string(out.join("report.html")).unwrap().contains(&said));
}

#[test]
fn a_server_that_is_not_there_ends_the_run_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(guess);
    server.stop();
    let run = train(&server.url(), &folder.path().join("run"), &["reasoner.server.patience=0.05"]);
    let output = run.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && stderr.contains(&server.url()), "{stderr}");
}
