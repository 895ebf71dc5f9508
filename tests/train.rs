//! `pellucid train` as scripts use it: what a run leaves behind, and what killing it costs.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use serde_json::{Map, Value};
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

const STEPS: usize = 8;
const SMALL: [&str; 5] = [
    "optim.prompts_per_step=2",
    "optim.group_size=3",
    "optim.warmup_steps=0",
    "run.save_every=3",
    "run.steps=8",
];

fn command(recipe: &str, out: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pellucid"));
    command.args(["train", "-c", recipe, &format!("run.out={:?}", out.display().to_string())]);
    command.args(SMALL).args(["--threads", "2"]).args(more);
    command
}

fn finished(command: &mut Command) -> (String, String) {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    assert!(output.status.success(), "{stderr}");
    (stdout, stderr)
}

fn lines(path: &Path) -> Vec<Map<String, Value>> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Metrics without what the clock says.
fn timeless(out: &Path) -> Vec<Map<String, Value>> {
    let mut all = lines(&out.join("metrics.jsonl"));
    all.iter_mut().for_each(|line| line.retain(|name, _| !name.starts_with("time/")));
    all
}

#[test]
fn a_killed_run_ends_as_one_that_was_not() {
    for recipe in ["assets/demo.toml", "assets/demo-prco.toml"] {
        let folder = tempfile::tempdir().unwrap();
        let [straight, killed] = ["straight", "killed"].map(|name| folder.path().join(name));
        let (stdout, _) = finished(&mut command(recipe, &straight, &["--json"]));
        let summary: Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
        assert_eq!(summary["step"], STEPS);
        assert_eq!(lines(&straight.join("samples.jsonl")).len(), STEPS * 6);
        assert!(straight.join("report.html").exists());
        let same = || {
            assert_eq!(timeless(&killed), timeless(&straight));
            let last = format!("checkpoint-{STEPS}");
            let names =
                ["adapter_model.safetensors", "optimizer.safetensors"].map(|name| format!("{last}/{name}"));
            for name in names.iter().map(String::as_str).chain(["samples.jsonl"]) {
                let read = |out: &Path| fs::read(out.join(name)).unwrap();
                assert_eq!(read(&killed), read(&straight), "{name}");
            }
        };
        let (mut state, mut kills) = (2025u32, 0);
        while kills < 10 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let resumed = ["--resume", "latest", "--quiet"];
            let mut child = command(recipe, &killed, &resumed).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(20 + u64::from(state >> 22)));
            let alive = child.try_wait().unwrap().is_none();
            child.kill().unwrap();
            child.wait().unwrap();
            kills += u32::from(alive);
            if !alive {
                same();
                fs::remove_dir_all(&killed).unwrap();
            }
        }
        finished(&mut command(recipe, &killed, &["--resume", "latest"]));
        same();
        // A new run does not write over a finished one.
        let refused = command(recipe, &straight, &[]).output().unwrap();
        assert!(String::from_utf8_lossy(&refused.stderr).contains("--resume latest"));
        assert_eq!(refused.status.code(), Some(1));
    }
}

#[test]
fn what_makes_no_sense_is_said_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    for (change, said) in [
        ("episode.alpha=1.5", "payments lie between 0 and 1"),
        ("episode.kind=acrll", "unknown variant"),
        ("prompts=worlds", "there are default and world"),
        ("reasoner.model=nowhere/nothing", "nowhere/nothing"),
        ("data.train=builtin:world/product", "kind of question \"product\" is not known"),
        ("reasoner.learn={}", "temperature above 0"),
        ("reasoner.max_tokenss=3", "unknown field"),
    ] {
        let output = command("assets/demo.toml", &out, &[change]).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && stderr.contains(said), "{change}: {stderr}");
    }
    // What no context holds is refused beforehand, what one prompt leaves no room for when it comes.
    for (recipe, changes, said) in [
        (
            "assets/demo-prco.toml",
            ["--dry-run", "reasoner.max_tokens=4096"],
            "reasoner.max_tokens to 511 at most",
        ),
        (
            "assets/demo.toml",
            ["--dry-run", "captioner.max_tokens=512"],
            "captioner.max_tokens to 511 at most",
        ),
        (
            "assets/demo.toml",
            ["--dry-run", "reference.max_tokens=512"],
            "reference.max_tokens to 511 at most",
        ),
        (
            "assets/demo-prco.toml",
            ["run.steps=1", "reasoner.max_tokens=505"],
            "but builtin:tiny-captioner has",
        ),
        ("assets/demo.toml", ["run.steps=1", "captioner.max_tokens=505"], "captioner.max_tokens is 505"),
    ] {
        let output = command(recipe, &folder.path().join("long"), &changes).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && stderr.contains(said), "{changes:?}: {stderr}");
    }
    let (stdout, _) = finished(&mut command("assets/demo.toml", &out, &["--dry-run", "episode.alpha=0.5"]));
    assert!(stdout.contains("alpha = 0.5") && !out.exists(), "{stdout}");
}
