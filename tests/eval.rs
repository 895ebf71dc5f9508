//! `pellucid eval` as scripts use it, on the models that come with the program.
#![cfg(feature = "cli")]

use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn eval(out: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pellucid"));
    command.args(["eval", "-c", "assets/demo.toml", "data.eval_limit=40", "--threads", "2", "--json"]);
    command.arg("--out").arg(out).args(more).output().expect("the program starts")
}

fn summary(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(text.lines().last().expect("a line of JSON")).expect("JSON")
}

/// What was said of each problem.
fn captions(file: &Path) -> Vec<Value> {
    let saved: Value = serde_json::from_slice(&fs::read(file).expect("is there")).expect("JSON");
    saved["items"].as_array().expect("items").iter().map(|item| item["caption"].clone()).collect()
}

#[test]
fn both_ways_of_asking_agree_where_they_ask_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (clarified, single) = (folder.path().join("clarified"), folder.path().join("single"));
    let asking = summary(&eval(&clarified, &["--mode", "clarification"]));
    let metrics = &asking["metrics"];
    assert_eq!(
        (&metrics["items"], &asking["mode"], &asking["step"]),
        (&40.into(), &"clarification".into(), &0.into())
    );
    // Every number of the paper's is there, and those over the items that asked are over as many as asked.
    for name in ["accuracy_single", "accuracy_clarified", "clarification_rate", "first_pass_right"] {
        assert_eq!(metrics[name]["of"], 40, "{name}");
    }
    assert!(metrics["gap"].is_number());
    let asked = metrics["clarification_rate"]["count"].as_u64();
    for name in ["accuracy_denied", "accuracy_granted"] {
        assert_eq!(metrics[name]["of"].as_u64().unwrap_or(0), asked.unwrap_or(0), "{name}");
    }
    assert!(asking.get("items").is_none());
    let file = clarified.join("eval-0-greedy.json");
    assert_eq!(captions(&file).len(), 40);
    let report = fs::read_to_string(clarified.join("report.html")).unwrap();
    assert!(report.contains("40 problems, greedy captions"));

    let against = file.to_str().expect("a plain path");
    let alone = summary(&eval(&single, &["--against", against]));
    assert_eq!(alone["mode"], "single_pass");
    assert!(alone["metrics"]["clarification_rate"].is_null());
    assert_eq!(alone["metrics"]["accuracy_single"], metrics["accuracy_single"]);
    let change = &alone["comparison"]["accuracy_single"];
    assert_eq!((&change["lost"], &change["gained"], change["p"].as_f64()), (&0.into(), &0.into(), Some(1.0)));
    assert!(single.join("eval-0-single-pass-greedy.json").exists());

    // Captions drawn at random differ from greedy ones, and are the same every time.
    let drawn = || {
        summary(&eval(&single, &["--temperature", "1"]));
        captions(&single.join("eval-0-single-pass.json"))
    };
    let first = drawn();
    assert_ne!(first, captions(&file));
    assert_eq!(first, drawn());
}

#[test]
fn an_evaluation_of_something_else_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let file = out.join("eval-0-single-pass-greedy.json");
    summary(&eval(&out, &["data.eval_limit=3"]));
    let before = fs::read(&file).unwrap();
    let saved: Value = serde_json::from_slice(&before).unwrap();
    let (data, limit, reasoner) = (&saved["of"]["data"], &saved["of"]["limit"], &saved["of"]["reasoner"]);
    assert_eq!(
        (data, limit, reasoner),
        (&"builtin:world".into(), &3.into(), &"builtin:tiny-reasoner".into())
    );
    for (changes, said) in [
        (["data.eval=builtin:world/sum"], "data = builtin:world/sum (builtin:world before)"),
        (["data.eval_limit=2"], "limit = 2 (3 before)"),
        (["reasoner.model=builtin:tiny-captioner"], "reasoner = builtin:tiny-captioner (builtin:"),
        (["seed=1"], "seed = 1 (0 before)"),
    ] {
        let output = eval(&out, &[&["data.eval_limit=3"], &changes[..]].concat());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        for part in ["single-pass-greedy.json is an evaluation of", said, "another run.out or --out"] {
            assert!(stderr.contains(part), "{stderr}");
        }
        assert_eq!(fs::read(&file).unwrap(), before);
    }
    // The same is written anew.
    summary(&eval(&out, &["data.eval_limit=3"]));
    assert_eq!(fs::read(&file).unwrap(), before);
}

#[test]
fn a_demo_is_measured_by_something() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("demo");
    let mut command = Command::new(env!("CARGO_BIN_EXE_pellucid"));
    let output =
        command.args(["demo", "--held-out", "0", "--steps", "1", "--out"]).arg(&out).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("--held-out is 0"), "{said}");
    assert!(!out.exists());
}

#[test]
fn what_cannot_be_measured_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let refusal = |more: &[&str]| {
        let output = eval(&folder.path().join("out"), more);
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let other = folder.path().join("eval-0.json");
    fs::write(&other, "{}").unwrap();
    assert!(refusal(&["--against", other.to_str().expect("a plain path")]).contains("is no evaluation"));
    assert!(refusal(&["data.eval=nowhere.jsonl"]).contains("nowhere.jsonl"));
    assert!(refusal(&["--adapter", "nowhere"]).contains("nowhere"));
    assert!(refusal(&["--mode", "twice"]).contains("single_pass or clarification"));
    assert!(refusal(&["--temperature=-1"]).contains("from 0 to 100"));
    let dry = eval(&folder.path().join("out"), &["--dry-run", "episode.alpha=0.5"]);
    assert!(dry.status.success() && String::from_utf8_lossy(&dry.stdout).contains("alpha = 0.5"));
    assert!(!folder.path().join("out").exists(), "nothing is written before it is known to work");
}
