//! A run's folder: one process at a time, no word in it that is not so, and nothing lost on the way.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

/// A run of a few small steps.
fn train(out: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pellucid"));
    let small = [
        "optim.prompts_per_step=1",
        "optim.group_size=2",
        "optim.warmup_steps=0",
        "run.save_every=1",
        "run.steps=2",
        "data.eval_limit=4",
    ];
    command.args(["train", "-c", "assets/demo.toml", &format!("run.out={:?}", out.display().to_string())]);
    command.args(small).args(["--threads", "2"]).args(more);
    command
}

/// What it says on stderr, being done.
fn finished(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    stderr
}

/// What it says on stderr, having refused.
fn refused(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    stderr
}

#[test]
fn two_processes_do_not_share_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let long = ["--quiet", "run.steps=1000000", "run.save_every=1000000"];
    let mut first = train(&out, &long).stderr(Stdio::null()).spawn().unwrap();
    while !out.join("metrics.jsonl").exists() {
        assert!(first.try_wait().unwrap().is_none(), "the first run ended");
        std::thread::sleep(Duration::from_millis(5));
    }
    let said = refused(&mut train(&out, &["--resume", "latest"]));
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(said.contains("run: another process is at work there"), "{said}");
    // What is killed leaves no lock behind.
    finished(&mut train(&out, &["--resume", "latest"]));
    assert_eq!(fs::read_to_string(out.join("metrics.jsonl")).unwrap().lines().count(), 2);
    let held = File::options().append(true).open(out.join(".lock")).unwrap();
    held.try_lock().unwrap();
    let said = refused(&mut train(&out, &["--resume", "latest"]));
    assert!(said.contains("another process"), "{said}");
}
