//! `pellucid sft` and `merge` as scripts use them: what a run leaves behind, and what killing it costs.
#![cfg(feature = "cli")]

use serde_json::{Value, json};
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

const MODEL: &str = "tests/golden/qwen2_5_vl/model";
const STEPS: u64 = 30;

fn pellucid(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_pellucid")).args(arguments).output().expect("starts");
    let text = |bytes| String::from_utf8(bytes).expect("prints text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// Lines to learn from, in all the shapes they come in, and a configuration.
fn prepare(folder: &Path) -> String {
    let picture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/images/files/odd.png");
    let lines = (0..7).map(|number| match number % 3 {
        0 => json!({"messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": format!("what is {number}")}]},
            {"role": "assistant", "content": format!("it is {number}")}
        ], "images": [picture]}),
        1 => json!({"prompt": format!("number {number} is"), "completion": "odd"}),
        _ => json!({"prompt_token_ids": [number, 1, 2, 3], "completion_token_ids": [4, 5, 6]}),
    });
    let text: String = lines.map(|line| format!("{line}\n")).collect();
    fs::write(folder.join("lines.jsonl"), text).expect("there is room");
    let config = format!(
        "seed = 3\n[captioner]\nmodel = {MODEL:?}\nlora = {{ rank = 4, alpha = 8 }}\n[data]\ntrain = {:?}\n\
         [optim]\nlr = 5e-3\nwarmup_steps = 2\nschedule = \"cosine\"\nprompts_per_step = 4\n\
         [run]\nsteps = {STEPS}\nout = \"unset\"\nsave_every = 4\n",
        folder.join("lines.jsonl")
    );
    let path = folder.join("run.toml");
    fs::write(&path, config).expect("there is room");
    path.to_str().expect("is text").to_owned()
}

fn metrics(out: &Path) -> Vec<Value> {
    let text = fs::read_to_string(out.join("metrics.jsonl")).expect("is there");
    text.lines().map(|line| serde_json::from_str(line).expect("is JSON")).collect()
}

#[test]
fn a_killed_run_ends_as_one_that_was_not() {
    ends_as_one_that_was_not(&[], 20, "adapter_model.safetensors");
}

/// Every weight trained, and the image tower's too: checkpoints are models.
#[test]
fn a_killed_run_of_a_whole_model_ends_as_one_that_was_not() {
    let folder = ends_as_one_that_was_not(&["captioner.full=true"], 8, "model.safetensors");
    let checkpoint = folder.path().join(format!("straight/checkpoint-{STEPS}"));
    let checkpoint = checkpoint.to_str().expect("is text");
    let generate = ["generate", checkpoint, "--raw", "--prompt", "number 1 is", "--max-tokens", "3"];
    let (code, stdout, stderr) = pellucid(&generate);
    assert!(code == Some(0) && stdout.contains("odd"), "{stdout} {stderr}");
    // What a trainer left beside a model is no part of the model that is made of it.
    let out = folder.path().join("again");
    let again = format!("run.out={}", out.display());
    let model = format!("captioner.model={checkpoint:?}");
    let config = folder.path().join("run.toml");
    let config = config.to_str().expect("is text");
    let more = ["captioner.full=true", "captioner.freeze_tower=true", "run.steps=1", "run.save_every=1"];
    let (code, _, stderr) = pellucid(&[&["sft", "-c", config, &again, &model], &more[..]].concat());
    assert_eq!(code, Some(0), "{stderr}");
    // An adapter's run does not go on with a whole model, nor the other way round.
    let (code, _, stderr) = pellucid(&["sft", "-c", config, &again, "run.steps=2", "--resume", "latest"]);
    assert!(code == Some(1) && stderr.contains("captioner.full = false"), "{stderr}");
}

/// Runs to the end, and again with so many kills; gives the folder of both.
fn ends_as_one_that_was_not(changes: &[&str], most: u32, weights: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("there is room");
    let config = prepare(folder.path());
    let [straight, killed] = ["straight", "killed"].map(|name| folder.path().join(name));
    let out = |path: &Path| format!("run.out={}", path.display());
    let sft = |path: &Path, more: &[&str]| -> Vec<String> {
        let fixed = ["sft", "-c", &config, &out(path)];
        [&fixed[..], changes, more].concat().into_iter().map(str::to_owned).collect()
    };
    let pellucid =
        |arguments: Vec<String>| pellucid(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let (code, stdout, stderr) = pellucid(sft(&straight, &["--json"]));
    assert_eq!(code, Some(0), "{stderr}");
    let summary: Value = serde_json::from_str(stdout.lines().last().expect("a line")).expect("is JSON");
    assert_eq!(summary["step"], STEPS);
    let lines = metrics(&straight);
    assert_eq!(lines.len(), STEPS as usize);
    let loss = |line: &Value| line["loss"].as_f64().expect("is a number");
    assert!(loss(&lines[STEPS as usize - 1]) < 0.7 * loss(&lines[0]), "{} {}", lines[0], lines[29]);

    let same = |killed: &Path| {
        let read = |out: &Path, name: &str| fs::read(out.join(name)).expect("is there");
        let last = format!("checkpoint-{STEPS}");
        let names = [
            "metrics.jsonl".to_owned(),
            format!("{last}/{weights}"),
            format!("{last}/optimizer.safetensors"),
        ];
        for name in names {
            assert_eq!(read(killed, &name), read(&straight, &name), "{name}");
        }
    };
    // How long it lives is drawn. A run that comes to its end is looked at, and the next begins.
    let (mut state, mut kills) = (12345u32, 0);
    while kills < most {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let mut child = Command::new(env!("CARGO_BIN_EXE_pellucid"))
            .args(sft(&killed, &["--resume", "latest", "--quiet"]))
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        std::thread::sleep(Duration::from_millis(20 + u64::from(state >> 25)));
        let alive = child.try_wait().expect("is ours").is_none();
        child.kill().expect("can be killed");
        child.wait().expect("ends");
        kills += u32::from(alive);
        if !alive {
            same(&killed);
            fs::remove_dir_all(&killed).expect("is there");
        }
    }
    let (code, _, stderr) = pellucid(sft(&killed, &["--resume", "latest"]));
    assert_eq!(code, Some(0), "{stderr}");
    same(&killed);

    // A finished run has nothing left to do, and a new one does not write over it.
    let (code, ..) = pellucid(sft(&straight, &["--resume", "latest"]));
    assert_eq!((code, metrics(&straight)), (Some(0), lines));
    let (code, _, stderr) = pellucid(sft(&straight, &[]));
    assert!(code == Some(1) && stderr.contains("--resume latest"), "{stderr}");
    folder
}

/// A disk of exactly so much room, as only this run sees it: what is in it outlives each of its parts.
const FULL_DISK: &str = r#"
set -u
mount -t tmpfs -o size="$PAGES"k tmpfs "$DISK" || exit 99
"$PELLUCID" sft -c "$CONFIG" run.out="$DISK/out" "$@"
echo "full $?" >&2
cp -r "$DISK/out" "$KEPT/full"
mount -o remount,size=64m "$DISK" || exit 99
"$PELLUCID" sft -c "$CONFIG" run.out="$DISK/out" "$@" --resume latest
echo "roomy $?" >&2
cp -r "$DISK/out" "$KEPT/roomy"
"#;

/// The disk fills while a checkpoint is saved, or while a line is added to the metrics: one error, the checkpoint before
/// stays, and with more room the run ends as one that never knew.
#[test]
fn a_full_disk_costs_nothing() {
    let folder = tempfile::tempdir().expect("there is room");
    let config = prepare(folder.path());
    let straight = folder.path().join("straight");
    let most = ["run.keep=1", "run.save_every=13"];
    let out = format!("run.out={}", straight.display());
    let (code, _, stderr) = pellucid(&[&["sft", "-c", &config, &out], &most[..]].concat());
    assert_eq!(code, Some(0), "{stderr}");
    // A tmpfs counts files by pages of 4 KiB; folders are free.
    let last = format!("checkpoint-{STEPS}");
    let kib = |path: &Path| -> u64 {
        let files = fs::read_dir(path).expect("is there").map(|entry| entry.expect("is there").path());
        let pages = |path: std::path::PathBuf| fs::metadata(path).expect("is there").len().div_ceil(4096);
        files.filter(|path| path.is_file()).map(pages).sum::<u64>() * 4
    };
    let (one, metrics_size) = (kib(&straight.join(&last)), fs::metadata(straight.join("metrics.jsonl")));
    assert!(metrics_size.expect("is there").len() > 4096, "the metrics have to need a second page");
    // The configuration and the first page of the metrics take two pages.
    for (kib, named, expected) in [
        (8 + one, "metrics.jsonl", Some(13)),
        (12 + one + one / 2, "checkpoint-26", Some(13)),
        (8 + one / 2, "checkpoint-13", None),
        (4, "metrics.jsonl", None),
    ] {
        let kept = folder.path().join(format!("kept-{kib}"));
        let disk = folder.path().join("disk");
        fs::create_dir_all(&kept).expect("there is room");
        fs::create_dir_all(&disk).expect("there is room");
        let output = Command::new("unshare")
            .args(["-rm", "sh", "-c", FULL_DISK, "sh"])
            .args(most)
            .env("PAGES", kib.to_string())
            .env("DISK", &disk)
            .env("KEPT", &kept)
            .env("CONFIG", &config)
            .env("PELLUCID", env!("CARGO_BIN_EXE_pellucid"))
            .output();
        let stderr = match &output {
            Ok(output) if output.status.code() != Some(99) && output.status.code() != Some(1) => {
                String::from_utf8_lossy(&output.stderr).into_owned()
            }
            refused => {
                eprintln!(
                    "not tried on a full disk: no file system of one's own may be mounted here: {refused:?}"
                );
                break;
            }
        };
        assert!(stderr.contains("full 1\n") && stderr.contains("roomy 0\n"), "{kib} KiB: {stderr}");
        let (error, _) = stderr.split_once("full 1").expect("is there");
        assert!(error.contains(named) && error.contains("make room"), "{kib} KiB: {error}");
        let left = |name: &str| -> Vec<String> {
            let entries = fs::read_dir(kept.join(name)).expect("is there");
            let names =
                entries.map(|entry| entry.expect("is there").file_name().into_string().expect("is text"));
            let mut names: Vec<String> = names.filter(|name| name.starts_with("checkpoint")).collect();
            names.sort();
            names
        };
        assert_eq!(
            left("full"),
            Vec::from_iter(expected.map(|step| format!("checkpoint-{step}"))),
            "{error}"
        );
        assert_eq!(left("roomy"), std::slice::from_ref(&last));
        for name in [
            "metrics.jsonl".into(),
            format!("{last}/adapter_model.safetensors"),
            format!("{last}/optimizer.safetensors"),
        ] {
            let read = |out: &Path| fs::read(out.join(&name)).expect("is there");
            assert!(read(&kept.join("roomy")) == read(&straight), "{kib} KiB: {name}");
        }
    }
}

/// The same where nothing can be mounted: no file may grow beyond what the optimiser's need.
#[test]
fn a_file_that_may_not_grow_is_like_a_full_disk() {
    let folder = tempfile::tempdir().expect("there is room");
    let config = prepare(folder.path());
    let out = format!("run.out={}", folder.path().join("out").display());
    // Ignored, the signal becomes an error of the write.
    let limited = r#"trap "" XFSZ; ulimit -f 16; exec "$0" "$@""#;
    let output = Command::new("sh")
        .args(["-c", limited, env!("CARGO_BIN_EXE_pellucid"), "sft", "-c", &config, &out])
        .output()
        .expect("starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && stderr.contains("make room"), "{stderr}");
    let (code, _, stderr) = pellucid(&["sft", "-c", &config, &out, "--resume", "latest"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(metrics(&folder.path().join("out")).len(), STEPS as usize);
}

#[test]
fn a_merged_model_says_what_its_adapter_said() {
    let folder = tempfile::tempdir().expect("there is room");
    let merged = folder.path().join("merged");
    let adapter = "tests/golden/qwen2_5_vl/adapter";
    let merged = merged.to_str().expect("is text");
    let (code, _, stderr) = pellucid(&["merge", "--model", MODEL, "--adapter", adapter, "--out", merged]);
    assert_eq!(code, Some(0), "{stderr}");
    let lines = r#"{"prompt": "What is 3 + 4?", "completion": "It is 7."}"#;
    let input = folder.path().join("lines.jsonl");
    fs::write(&input, lines).expect("there is room");
    let score = |model: &str, more: &[&str]| -> Vec<f64> {
        let output = folder.path().join("scores.jsonl");
        let paths = [&input, &output].map(|path| path.to_str().expect("is text"));
        let fixed = ["score", "--model", model, "--dtype", "f32", "--input", paths[0], "--output", paths[1]];
        let (code, _, stderr) = pellucid(&[&fixed[..], more].concat());
        assert_eq!(code, Some(0), "{stderr}");
        let line: Value =
            serde_json::from_str(&fs::read_to_string(output).expect("is there")).expect("is JSON");
        line["logprobs"]
            .as_array()
            .expect("is a list")
            .iter()
            .map(|l| l.as_f64().expect("is a number"))
            .collect()
    };
    let (base, with, merged_scores) =
        (score(MODEL, &[]), score(MODEL, &["--adapter", adapter]), score(merged, &[]));
    let far = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    // The checkpoint is bf16: its weights are rounded once more.
    let (change, rounding) = (far(&base, &with), far(&with, &merged_scores));
    assert!(change > 0.3 && rounding < change / 8.0, "{change} and {rounding}");

    let (code, _, stderr) = pellucid(&["merge", "--model", MODEL, "--adapter", adapter, "--out", merged]);
    assert!(code == Some(1) && stderr.contains("is there already"), "{stderr}");
    let other = "tests/golden/smollm2/model";
    let out = folder.path().join("other");
    let (code, _, stderr) =
        pellucid(&["merge", "--model", other, "--adapter", adapter, "--out", out.to_str().expect("is text")]);
    assert!(code == Some(1) && !out.exists(), "{stderr}");
}

#[test]
fn what_cannot_be_learned_is_named() {
    let folder = tempfile::tempdir().expect("there is room");
    let config = prepare(folder.path());
    let out = format!("run.out={}", folder.path().join("out").display());
    let refused = |line: &str, changes: &[&str], named: &[&str]| {
        fs::write(folder.path().join("lines.jsonl"), line).expect("there is room");
        let (code, _, stderr) = pellucid(&[&["sft", "-c", &config, &out], changes].concat());
        assert_eq!(code, Some(1), "{stderr}");
        assert!(named.iter().all(|name| stderr.contains(name)), "{stderr}");
    };
    refused("{\"prompt\": \"a\"}\n", &[], &["line 1", "completion"]);
    refused("{\"prompt\": \"a\"}\n", &["--dry-run"], &["line 1", "completion"]);
    refused("\n", &[], &["no lines"]);
    fs::write(folder.path().join("lines.jsonl"), "{\"prompt\": \"a\", \"completion\": \"b\"}\n")
        .expect("there is room");
    let (code, stdout, stderr) = pellucid(&["sft", "-c", &config, &out, "--dry-run"]);
    assert!(code == Some(0) && stdout.contains("rank = 4"), "{stderr}");
    assert!(!folder.path().join("out").exists());
    refused("{\"prompt\": \"a\", \"completion_token_ids\": []}\n", &[], &["line 1", "nothing to learn"]);
    refused("{\"prompt\": \"a\", \"completion\": \"b\"}\n", &["captioner.lora.rank=0"], &["rank 0"]);
    refused(
        "{\"prompt\": \"a\", \"completion\": \"b\"}\n",
        &["captioner.lora.rank=1000000000"],
        &["rank 1000000000"],
    );
    refused(
        "{\"prompt\": \"a\", \"completion\": \"b\"}\n",
        &["captioner.lora.targets=[\"wq\"]"],
        &["no linear"],
    );
    refused("{\"prompt\": \"a\", \"completion\": \"b\"}\n", &["optim.learningrate=1"], &["unknown field"]);
    refused(
        "{\"prompt\": \"a\", \"completion\": \"b\"}\n",
        &["optim.microbatch_tokens=1"],
        &["microbatch_tokens"],
    );
}
