//! A run's folder: one process at a time, no word in it that is not so, and nothing lost on the way.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use pellucid::prompt::message::ImageReference;
use pellucid::task::world::Example;
use serde_json::{Value, json};
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

fn head(out: &Path) -> Vec<String> {
    let text = fs::read_to_string(out.join("config.toml")).unwrap();
    text.lines().take_while(|line| line.starts_with('#')).map(str::to_owned).collect()
}

#[test]
fn a_run_that_goes_on_is_the_run_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let [out, branch] = ["run", "branch"].map(|name| folder.path().join(name));
    finished(&mut train(&out, &[]));
    let resume = ["--resume", "latest"];
    let on = |changes: &[&'static str]| -> Vec<&'static str> { [&resume[..], changes].concat() };

    // What its numbers mean may not change, and the refusal says what it was, is and could be.
    let before = fs::read(out.join("config.toml")).unwrap();
    let said = refused(&mut train(&out, &on(&["seed=7", "optim.group_size=3", "run.steps=3"])));
    for part in ["seed = 7 (0 before)", "optim.group_size = 3 (2 before)", "another run.out and --resume"] {
        assert!(said.contains(part), "{said}");
    }
    assert!(!said.contains("run.steps"), "{said}");
    let said = refused(&mut train(&out, &on(&["captioner.lora.rank=4"])));
    assert!(said.contains("rank = 4 (16 before)") && said.contains("captioner.adapter="), "{said}");
    assert_eq!(fs::read(out.join("config.toml")).unwrap(), before);

    // How it goes on may, and is written down.
    let said = finished(&mut train(&out, &on(&["run.steps=3", "optim.lr=1e-4"])));
    assert!(said.contains("optim.lr = 0.0001 (0.0009 before), run.steps = 3 (2 before)"), "{said}");
    let said = finished(&mut train(&out, &on(&["run.steps=4", "optim.lr=1e-4"])));
    assert!(said.contains("run.steps = 4 (3 before)") && !said.contains("optim.lr"), "{said}");
    let history = [
        "# after step 2: optim.lr = 0.0001 (0.0009 before)",
        "# after step 2: run.steps = 3 (2 before)",
        "# after step 3: run.steps = 4 (3 before)",
    ];
    assert_eq!(head(&out), history);

    // In a folder of its own it may mean something else, but not be other weights. Killed at once, it goes on from there.
    let from = out.join("checkpoint-3");
    let from = from.to_str().unwrap();
    let said = refused(&mut train(&branch, &["--resume", from, "captioner.lora.rank=4"]));
    assert!(said.contains("rank = 4 (16 before)") && !branch.exists(), "{said}");
    let begins = ["--resume", from, "seed=7", "run.steps=1000000", "run.save_every=1000000"];
    let mut killed = train(&branch, &begins).stderr(Stdio::null()).spawn().unwrap();
    while !branch.join("metrics.jsonl").exists() {
        assert!(killed.try_wait().unwrap().is_none(), "the branch ended");
        std::thread::sleep(Duration::from_millis(5));
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    finished(&mut train(&branch, &on(&["seed=7", "run.steps=4"])));
    let lines = fs::read_to_string(branch.join("metrics.jsonl")).unwrap();
    assert!(lines.starts_with("{\"step\":4,") && lines.lines().count() == 1, "{lines}");
    assert_eq!(head(&branch)[0], format!("# after step 3: from {from}"));
    // Nor do two runs come into one folder.
    let said = refused(&mut train(&out, &["--resume", branch.join("checkpoint-4").to_str().unwrap()]));
    assert!(said.contains("holds a run already"), "{said}");

    // Where nothing is whole nothing is thrown away.
    let checkpoints = || {
        let entries = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.join("trainer_state.json").exists()).collect::<Vec<_>>()
    };
    let kept = checkpoints();
    kept.iter().for_each(|path| fs::write(path.join("optimizer.safetensors"), "broken").unwrap());
    let said = refused(&mut train(&out, &resume));
    assert!(said.contains(&format!("none of its {} checkpoints is whole", kept.len())), "{said}");
    assert_eq!(checkpoints(), kept);
}

#[test]
fn an_evaluation_that_a_kill_cut_off_is_made_up() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let measured = ["run.eval_every=1"];
    // Where nobody looks on, a log says how it goes.
    let said = finished(&mut train(&out, &measured));
    for line in
        ["\nstep 0/2  measured by 4 of 4 problems", "\nstep 2, measured by 4 problems: ", "report.html"]
    {
        assert!(said.contains(line), "{said}");
    }
    // As a kill would leave it, between the checkpoint and what comes after.
    let [first, last] = [1, 2].map(|step| out.join(format!("eval-{step}-greedy.json")));
    let (kept, cut_off) = (fs::metadata(&first).unwrap().modified().unwrap(), fs::read(&last).unwrap());
    let written = || fs::metadata(&last).unwrap().modified().unwrap();
    for name in ["eval-2-greedy.json", "report.html"] {
        fs::remove_file(out.join(name)).unwrap();
    }
    let on = [&["--resume", "latest"], &measured[..]].concat();
    let said = finished(train(&out, &on).arg("--quiet"));
    assert!(said.is_empty(), "{said}");
    assert!(fs::read(&last).unwrap() == cut_off && out.join("report.html").exists());
    // What is there is not made again, and no step is taken twice.
    let made_up = written();
    finished(&mut train(&out, &on));
    assert_eq!((written(), fs::metadata(&first).unwrap().modified().unwrap()), (made_up, kept));
    assert_eq!(fs::read_to_string(out.join("metrics.jsonl")).unwrap().lines().count(), 2);
}

/// Problems of the world in a file, and between them rows that are none.
fn with_faults(path: &Path, faults: usize) {
    let problem = |index: u64| {
        let problem = Example::new(3, index).problem().unwrap();
        let ImageReference::Bytes(picture) = &problem.images[0] else { panic!("{problem:?}") };
        let file = path.with_file_name(format!("{index}.png"));
        fs::write(&file, picture).unwrap();
        json!({"id": format!("p{index}"), "image": file, "question": problem.question, "answer": problem.answer})
    };
    let mut rows: Vec<String> = (0..3).map(|index| problem(index).to_string()).collect();
    rows.push("{".into());
    rows.extend(
        (1..faults).map(|number| json!({"id": format!("f{number}"), "question": "why ?"}).to_string()),
    );
    fs::write(path, rows.join("\n")).unwrap();
}

#[test]
fn rows_that_are_left_out_are_all_on_record() {
    let folder = tempfile::tempdir().unwrap();
    let [out, data, held_out] = ["run", "data.jsonl", "held_out.jsonl"].map(|name| folder.path().join(name));
    with_faults(&data, 7);
    with_faults(&held_out, 2);
    let change = |key: &str, path: &Path| format!("{key}={:?}", path.display().to_string());
    let (trained, measured) = (change("data.train", &data), change("data.eval", &held_out));
    let said = finished(&mut train(&out, &[&trained, &measured, "run.eval_every=2"]));
    assert!(said.contains("7 rows of data.train") && said.contains("and 2 more; all are in"), "{said}");
    assert!(said.contains("2 rows of data.eval"), "{said}");
    let lines = |key: &str| -> Vec<Value> {
        let text = fs::read_to_string(out.join("faults.jsonl")).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|line| line["data"] == key).collect()
    };
    let known = lines("data.train");
    assert_eq!(known.len(), 7);
    assert_eq!((&known[0]["line"], &known[0]["id"]), (&json!(4), &Value::Null));
    assert_eq!(
        (&known[1]["line"], &known[1]["id"], &known[1]["file"]),
        (&json!(5), &json!("f1"), &json!(data))
    );
    assert!(known[1]["what"].as_str().unwrap().contains("picture"), "{known:?}");
    assert_eq!(lines("data.eval").len(), 2);

    // An evaluation of its own says what it leaves out, and takes back nothing that the run said.
    with_faults(&held_out, 8);
    let mut eval = Command::new(env!("CARGO_BIN_EXE_pellucid"));
    eval.args(["eval", "-c", "assets/demo.toml", "--threads", "2", &measured, "--out"]).arg(&out);
    let said = finished(&mut eval);
    assert!(said.contains("8 rows of data.eval") && said.contains("and 3 more; all are in"), "{said}");
    assert_eq!((lines("data.train"), lines("data.eval").len()), (known, 8));
}

#[test]
fn problems_that_an_evaluation_leaves_out_have_names() {
    let folder = tempfile::tempdir().unwrap();
    let [run, eval, none] = ["run", "eval", "none"].map(|name| folder.path().join(name));
    let data = folder.path().join("held_out.jsonl");
    with_faults(&data, 1);
    fs::write(folder.path().join("0.png"), "no picture").unwrap();
    let measured = format!("data.eval={:?}", data.display().to_string());
    let evaluate = |out: &Path, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pellucid"));
        command.args(["eval", "-c", "assets/demo.toml", "--threads", "2", &measured, "--out"]).arg(out);
        command.args(more);
        command
    };
    for (file, said) in [
        (run.join("eval-2-greedy.json"), finished(&mut train(&run, &[&measured, "run.eval_every=2"]))),
        (eval.join("eval-0-single-pass-greedy.json"), finished(&mut evaluate(&eval, &[]))),
    ] {
        assert!(said.contains("1 problems of data.eval are left out:\n  p0: "), "{said}");
        let saved: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
        assert_eq!((&saved["metrics"]["items"], &saved["left_out"][0]["id"]), (&json!(2), &json!("p0")));
        let what = saved["left_out"][0]["what"].as_str().unwrap();
        assert!(what.contains("not an image") && said.contains(what), "{said}");
    }

    // By nothing nobody is measured. What there is to know is written all the same.
    let said = refused(&mut evaluate(&none, &["--mode", "clarification", "data.eval_limit=1"]));
    assert!(said.contains("none of 1 problems could be measured by; p0: "), "{said}");
    let left = fs::read_to_string(none.join("eval-0-greedy.json")).unwrap();
    assert!(left.contains("\"left_out\":[{\"id\":\"p0\"") && none.join("report.html").exists(), "{left}");
}

/// What `sft` leaves is where `train` begins, not where it goes on; nor the other way round.
#[test]
fn each_verb_goes_on_from_its_own_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    let [taught, trained] = ["taught", "trained"].map(|name| folder.path().join(name));
    let lines = folder.path().join("lines.jsonl");
    fs::write(&lines, r#"{"prompt_token_ids": [5, 6], "completion_token_ids": [7, 2]}"#).unwrap();
    let sft = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pellucid"));
        command.args(["sft", "-c", "assets/demo.toml", "--threads", "2", "run.steps=1"]);
        command.arg(format!("run.out={:?}", taught.display().to_string()));
        command.arg(format!("data.train={:?}", lines.display().to_string())).args(more);
        command
    };
    finished(&mut sft(&[]));
    let checkpoint = taught.join("checkpoint-1");
    let checkpoint = checkpoint.to_str().unwrap();
    let said = refused(&mut train(&trained, &["--resume", checkpoint]));
    assert!(said.contains("was not left by train") && said.contains("captioner.adapter="), "{said}");
    finished(&mut train(&trained, &[&format!("captioner.adapter={checkpoint}")]));
    fs::remove_dir_all(&taught).unwrap();
    let said = refused(&mut sft(&[
        "--resume",
        trained.join("checkpoint-2").to_str().unwrap(),
        "captioner.adapter=x",
    ]));
    assert!(said.contains("captioner.adapter"), "{said}");
}

#[test]
fn a_checkpoint_is_measured_as_its_run_measured_it() {
    let folder = tempfile::tempdir().unwrap();
    let [out, again] = ["run", "again"].map(|name| folder.path().join(name));
    let learning = "reasoner.learn={lr=3e-2,lora={rank=4,alpha=8}}";
    let steep = ["reasoner.temperature=1.0", "optim.lr=1e-2", "data.eval_limit=20", "run.eval_every=2"];
    finished(&mut train(&out, &[&steep[..], &["optim.prompts_per_step=4", learning]].concat()));
    let mut eval = Command::new(env!("CARGO_BIN_EXE_pellucid"));
    eval.args(["eval", "--mode", "clarification", "--threads", "2", "-c"]).arg(out.join("config.toml"));
    eval.arg("--adapter").arg(out.join("checkpoint-2"));
    finished(eval.arg(format!("run.out={:?}", again.display().to_string())));
    let items = |out: &Path| -> Value {
        let text = fs::read_to_string(out.join("eval-2-greedy.json")).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["items"].take()
    };
    assert_eq!(items(&out), items(&again));
    // Of the same it may be written anew where the run wrote it, of nothing else.
    finished(eval.arg(format!("run.out={:?}", out.display().to_string())));
    let said = refused(eval.arg("data.eval_limit=5"));
    assert!(said.contains("eval-2-greedy.json is an evaluation of something else: limit = 5 (20"), "{said}");
    // A reasoner that learnt is not passed over without a word.
    let mut other = Command::new(env!("CARGO_BIN_EXE_pellucid"));
    other.args(["eval", "-c", "assets/demo.toml", "data.eval_limit=2", "--threads", "2", "--adapter"]);
    let said = finished(other.arg(out.join("checkpoint-2")).arg("--out").arg(folder.path().join("other")));
    assert!(said.contains("checkpoint-2/reasoner: the reasoner that learnt is not used"), "{said}");
}
