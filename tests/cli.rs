//! The program as people and scripts meet it: what it prints where, and how it exits.
#![cfg(feature = "cli")]

use serde_json::Value;
use std::{
    path::Path,
    process::{Command, Stdio},
};

/// What one run of the program left behind.
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
    /// The line for programs, which is the last on stdout.
    fn json(&self) -> Value {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""));
        serde_json::from_str(self.stdout.lines().last().expect("prints a line")).expect("prints JSON")
    }
}

#[test]
fn doctor_reports_on_any_machine() {
    let run = pellucid(&["doctor"]);
    assert_eq!(run.code, Some(0));
    for name in ["cpu", "memory", "speed", "gpu", "nvcc", "hub cache"] {
        assert!(run.stdout.lines().any(|line| line.starts_with(name)), "{name} in {}", run.stdout);
    }
    let json = pellucid(&["doctor", "--json", "--threads", "2"]).json();
    assert!(json["processor"]["cores"].as_u64().unwrap() > 0);
    if cfg!(not(feature = "cuda")) {
        assert_eq!(json["gpu"]["usable_by_this_build"], false);
    }
}

#[test]
fn a_command_line_that_makes_no_sense_exits_with_2() {
    for (arguments, hint) in [
        (&[][..], "Usage"),
        (&["doctro"], "'doctor'"),
        (&["doctor", "--jsom"], "--json"),
        (&["doctor", "--threads", "0"], "1 to 1024"),
        #[cfg(not(feature = "cuda"))]
        (&["doctor", "--device", "cuda:0"], "no CUDA backend"),
        (&["doctor", "--device", "tpu"], "no such device"),
    ] {
        let run = pellucid(arguments);
        assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(run.stderr.contains(hint), "{arguments:?}: {}", run.stderr);
    }
}

#[cfg(feature = "cuda")]
#[test]
fn a_gpu_that_is_not_there_is_one_error_with_the_remedy() {
    let run = pellucid(&["generate", MODEL, "--prompt", "Hello", "--device", "cuda:99"]);
    assert_eq!(
        (run.code, run.stdout.as_str(), run.stderr.lines().count()),
        (Some(1), "", 1),
        "{}",
        run.stderr
    );
    // Without a driver, with one that is too old or sees no GPU, and with some other number of GPUs.
    let lacks = ["no NVIDIA driver", "the driver is for CUDA", "lists no GPU", "there is no device 99"];
    assert!(lacks.iter().any(|lack| run.stderr.contains(lack)), "{}", run.stderr);
}

#[test]
fn a_reader_that_hangs_up_is_no_failure() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_pellucid"))
        .args(["doctor", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_one_error_and_exits_with_1() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let command = Command::new(env!("CARGO_BIN_EXE_pellucid")).arg("doctor").stdout(full).output().unwrap();
    let stderr = String::from_utf8(command.stderr).unwrap();
    assert_eq!(command.status.code(), Some(1));
    assert!(stderr.starts_with("error: ") && stderr.lines().count() == 1, "{stderr}");
}

/// A fixture of `tests/golden` copied to a folder of its own, to be damaged there.
fn copy(fixture: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("there is room");
    for entry in std::fs::read_dir(Path::new("tests/golden").join(fixture)).expect("fixtures are there") {
        let path = entry.expect("can be listed").path();
        std::fs::copy(&path, folder.path().join(path.file_name().expect("is a file")))
            .expect("there is room");
    }
    folder
}

/// Rewrites a file of the folder.
fn damage(folder: &tempfile::TempDir, name: &str, change: impl Fn(Vec<u8>) -> Vec<u8>) {
    let path = folder.path().join(name);
    std::fs::write(&path, change(std::fs::read(&path).expect("is there"))).expect("there is room");
}

/// The same bytes with one text in place of another.
fn replaced(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).expect("the text occurs");
    [&bytes[..at], to.as_bytes(), &bytes[at + from.len()..]].concat()
}

fn inspect(folder: &tempfile::TempDir) -> Run {
    pellucid(&["inspect", folder.path().to_str().expect("is text")])
}

impl Run {
    /// Asserts one line of error that says all this, and exit code 1.
    #[track_caller]
    fn fails_with(&self, parts: &[&str]) {
        assert_eq!((self.code, self.stderr.lines().count()), (Some(1), 1), "{}", self.stderr);
        for part in ["error: "].iter().chain(parts) {
            assert!(self.stderr.contains(part), "{part:?} in {}", self.stderr);
        }
    }
}

#[test]
fn inspect_finds_every_golden_model_and_adapter_sound() {
    let mut models = 0;
    for entry in std::fs::read_dir("tests/golden").unwrap() {
        let folder = entry.unwrap().path().join("model");
        if folder.join("config.json").exists() {
            let json = pellucid(&["inspect", "--json", folder.to_str().unwrap()]).json();
            let sum = |shares: &Value| {
                shares.as_array().unwrap().iter().map(|s| s["bytes"].as_u64().unwrap()).sum::<u64>()
            };
            assert_eq!(json["bytes"], sum(&json["parts"]), "{folder:?}");
            assert_eq!(json["bytes"], sum(&json["dtypes"]), "{folder:?}");
            assert_eq!(json["non_finite"], serde_json::json!([]), "{folder:?}");
            assert!(
                json["parts"].as_array().unwrap().iter().all(|part| part["name"] != "other"),
                "{folder:?}"
            );
            models += 1;
        }
    }
    assert!(models > 3);
    let json = pellucid(&["inspect", "--json", "tests/golden/adapters/names"]).json();
    assert_eq!((&json["kind"], &json["zero_pairs"]), (&"adapter".into(), &0.into()));
}

#[test]
fn inspect_plans_memory_for_the_context_asked_for() {
    let plan = |context: &str| {
        let run = pellucid(&["inspect", "--json", "tests/golden/qwen2/model", "--context", context]);
        run.json()["memory"].clone()
    };
    let (short, long) = (plan("64"), plan("6400"));
    // 2 (keys and values) x 2 layers x 2 heads of 16 x 2 bytes
    assert_eq!(short["kv_bytes_per_token"], 256);
    assert_eq!((&short["kv_bytes"], &long["kv_bytes"]), (&(64 * 256).into(), &(6400 * 256).into()));
}

#[test]
fn inspect_divides_memory_between_two_models() {
    let with = |more: &[&str]| {
        let both = ["inspect", "tests/golden/qwen2_5_vl/model", "--reasoner", "tests/golden/llama3/model"];
        pellucid(&[&both[..], &["--context", "128", "--sequences", "50", "--json"], more].concat())
    };
    let plan = with(&["--memory", "0.003"]).json()["together"].clone();
    let [captioner, reasoner] = [0, 1].map(|at| plan["models"][at].clone());
    assert_eq!((&captioner["name"], &reasoner["name"]), (&"captioner".into(), &"reasoner".into()));
    let sum: u64 = ["weight_bytes", "workspace_bytes", "kv_bytes"]
        .iter()
        .map(|part| captioner[part].as_u64().unwrap() + reasoner[part].as_u64().unwrap())
        .sum();
    let free = plan["free_bytes"].as_u64().unwrap();
    assert!(sum <= free && free - sum < 64 * 1024, "{plan}");
    let pages = |model: &Value| model["pages"].as_u64().unwrap();
    assert!((2..100).contains(&pages(&captioner)) && (2..100).contains(&pages(&reasoner)), "{plan}");
    let plan = with(&[]).json()["together"].clone();
    assert_eq!((pages(&plan["models"][0]), pages(&plan["models"][1])), (100, 100));
    with(&["--memory", "0.0001"]).fails_with(&["captioner", "reasoner", "are free"]);
    with(&["--memory=-1"]).fails_with(&["--memory -1"]);
    assert_eq!(pellucid(&["inspect", "tests/golden/llama3/model", "--memory", "3"]).code, Some(2));
}

#[test]
fn inspect_lists_all_that_is_wrong_and_fails() {
    let folder = copy("qwen2/model");
    damage(&folder, "model.safetensors", |bytes| {
        let mut bytes =
            replaced(&bytes, "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.UP_proj.weight");
        let end = bytes.len();
        bytes[end - 2..].fill(0xff);
        bytes
    });
    let run = inspect(&folder);
    for line in [
        "tensor model.layers.0.mlp.up_proj.weight: missing",
        "model.layers.0.mlp.UP_proj.weight",
        "1 NaN, 0 infinite",
    ] {
        assert!(run.stdout.contains(line), "{line} in {}", run.stdout);
    }
    run.fails_with(&["up_proj.weight: missing", "and 2 more"]);
}

#[test]
fn an_untrained_adapter_is_called_so() {
    let folder = copy("adapters/names");
    assert!(!inspect(&folder).stdout.contains("untrained"));
    damage(&folder, "adapter_model.safetensors", |mut bytes| {
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        bytes[8 + header..].fill(0);
        bytes
    });
    assert!(inspect(&folder).stdout.contains("untrained"));
}

#[test]
fn unusable_input_is_one_error_that_names_it() {
    pellucid(&["inspect", "no/such folder"]).fails_with(&["no/such folder"]);
    pellucid(&["inspect", "Cargo.toml"]).fails_with(&["Cargo.toml", "is a file"]);
    pellucid(&["inspect", "tests"]).fails_with(&["tests", "neither config.json nor adapter_config.json"]);

    let broken = |name: &str, change: &dyn Fn(Vec<u8>) -> Vec<u8>| {
        let folder = copy("qwen2/model");
        damage(&folder, name, change);
        inspect(&folder)
    };
    broken("model.safetensors", &|bytes| bytes[..bytes.len() / 2].to_vec())
        .fails_with(&["model.safetensors"]);
    broken("model.safetensors", &|_| Vec::new()).fails_with(&["model.safetensors"]);
    broken("config.json", &|bytes| bytes[..bytes.len() / 2].to_vec()).fails_with(&["config.json"]);
    let renamed = |bytes: Vec<u8>| replaced(&bytes, "\"model_type\": \"qwen2\"", "\"model_type\": \"mamba\"");
    broken("config.json", &renamed).fails_with(&["config.json", "mamba"]);

    let folder = copy("qwen2/model");
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    inspect(&folder).fails_with(&["model.safetensors"]);
}

const MODEL: &str = "tests/golden/qwen2/model";

#[test]
fn generate_streams_the_text_that_its_record_holds() {
    let generate = |more: &[&str]| {
        let arguments = ["generate", MODEL, "--prompt", "Hello", "--max_tokens", "12", "--seed", "3"];
        pellucid(&[&arguments, more].concat())
    };
    let record = generate(&["--json", "--quiet"]).json();
    assert_eq!(record["token_ids"].as_array().unwrap().len(), record["logprobs"].as_array().unwrap().len());
    assert_eq!(record["seed"], 3);
    let streamed = generate(&[]);
    assert_eq!(
        streamed.stdout.trim_end_matches('\n'),
        record["text"].as_str().unwrap().trim_end_matches('\n')
    );
    assert!(streamed.stderr.contains("prompt tokens"), "{}", streamed.stderr);
    // Neither the number of threads nor another run changes a bit of it.
    assert_eq!(generate(&["--json", "--quiet", "--threads", "1"]).json(), record);
    assert_eq!(generate(&["--json", "--quiet", "--threads", "3"]).json(), record);
}

#[test]
fn generate_refuses_what_it_cannot_do_in_one_line() {
    let generate =
        |more: &[&str]| pellucid(&[&["generate", MODEL, "--prompt", "Hello", "--quiet"], more].concat());
    generate(&["--image", "tests/golden/images/files/absent.png"]).fails_with(&["image"]);
    generate(&["--adapter", "tests"]).fails_with(&["tests/adapter_config.json"]);
    generate(&["--temperature=-1"]).fails_with(&["temperature"]);
    generate(&["--temperature", "1e-40"]).fails_with(&["temperature"]);
    generate(&["--max-tokens", &usize::MAX.to_string()]).fails_with(&["the model's context is 4096"]);
    let vision = ["generate", "tests/golden/qwen2_vl/model", "--prompt", "Hello", "--image"];
    pellucid(&[&vision[..], &["tests/absent.png"]].concat()).fails_with(&["tests/absent.png"]);
    pellucid(&[&vision[..], &["Cargo.toml"]].concat()).fails_with(&["Cargo.toml"]);

    let folder = copy("qwen2_vl/model");
    damage(&folder, "preprocessor_config.json", |bytes| {
        replaced(&bytes, "\"merge_size\": 2", "\"merge_size\": 3")
    });
    pellucid(&["generate", folder.path().to_str().unwrap(), "--prompt", "Hello"]).fails_with(&[
        "preprocessor_config.json",
        "merge_size: 3",
        "built for 2",
    ]);
}

#[test]
fn score_answers_every_line_and_names_the_line_it_cannot_read() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let score = |lines: &str| {
        std::fs::write(at("in.jsonl"), lines).unwrap();
        pellucid(&[
            "score",
            "--json",
            "--model",
            MODEL,
            "--input",
            &at("in.jsonl"),
            "--output",
            &at("out.jsonl"),
        ])
    };
    let good = r#"{"id": "a", "prompt": "Hello", "completion": " there"}"#;
    let ids = r#"{"prompt_token_ids": [1, 2], "completion_token_ids": [3, 4, 5]}"#;
    let summary = score(&format!("{good}\n\n{ids}\n")).json();
    let written = std::fs::read_to_string(at("out.jsonl")).unwrap();
    let records: Vec<Value> = written.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((records.len(), &records[0]["id"], &summary["sequences"]), (2, &"a".into(), &2.into()));
    for record in &records {
        let length = |key: &str| record[key].as_array().unwrap().len();
        let lengths = ["logprobs", "greedy", "entropy"].map(length);
        assert_eq!(lengths, [length("completion_token_ids"); 3]);
        assert!(record["logprobs"].as_array().unwrap().iter().all(|logp| logp.as_f64().unwrap() <= 0.0));
    }
    score(&format!("{good}\n{{\"prompt")).fails_with(&["in.jsonl line 2, column 8: EOF"]);
    score(r#"{"prompt": "Hello"}"#).fails_with(&["in.jsonl line 1", "completion"]);
    score(r#"{"prompt_token_ids": [1], "completion_token_ids": [999999]}"#)
        .fails_with(&["in.jsonl line 1", "999999"]);
    // A picture is never left out in silence, whichever name it goes by.
    for key in ["images", "image"] {
        score(&format!(r#"{{"prompt": "Hello", "completion": "x", "{key}": "a.png"}}"#))
            .fails_with(&["in.jsonl line 1", "reads text only"]);
    }
}

#[test]
fn score_never_empties_its_input() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lines.jsonl");
    let lines = r#"{"prompt": "Hello", "completion": " there"}"#;
    std::fs::write(&path, lines).unwrap();
    let path = path.to_str().unwrap();
    pellucid(&["score", "--model", MODEL, "--input", path, "--output", path])
        .fails_with(&["lines.jsonl is the input too"]);
    assert_eq!(std::fs::read_to_string(path).unwrap(), lines);
}

#[test]
fn numbers_that_are_none_end_in_an_error_not_in_a_record() {
    let model = copy("qwen2/model");
    // The last two bytes of the file are weights.
    damage(&model, "model.safetensors", |mut bytes| {
        let end = bytes.len();
        bytes[end - 2..].fill(0xff);
        bytes
    });
    let model = model.path().to_str().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(at("in.jsonl"), r#"{"prompt": "Hello", "completion": " there"}"#).unwrap();
    pellucid(&["generate", model, "--prompt", "Hello", "--quiet"]).fails_with(&["logit", "NaN", "inspect"]);
    pellucid(&["score", "--model", model, "--input", &at("in.jsonl"), "--output", &at("out.jsonl")])
        .fails_with(&["log-prob", "NaN", "inspect"]);
}

#[test]
fn selftest_passes_on_the_cpu() {
    let run = pellucid(&["selftest", "--quick", "--shapes", "rms_norm,attention G=2 causal,gather_rows"]);
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{}", run.stdout);
    assert!(run.stdout.contains("row by row in pages") && run.stdout.contains("quick: "), "{}", run.stdout);
    let json = pellucid(&["selftest", "--quick", "--shapes", "layer_norm C=1024", "--json"]).json();
    assert_eq!(json["failed"], 0);
    assert!(json["checks"][0]["error"].as_f64().unwrap() <= json["checks"][0]["allowed"].as_f64().unwrap());
    let none = pellucid(&["selftest", "--shapes", "lineal"]);
    assert_eq!(none.code, Some(1));
    assert!(none.stderr.contains("no case has these words"), "{}", none.stderr);
}

#[test]
fn kernels_are_timed_and_their_record_compares_with_itself() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ours.json");
    let file = file.to_str().unwrap();
    let run = pellucid(&["bench", "kernels", "--shapes", "rms_norm T=1 C=1536", "--out", file]);
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
    assert!(run.stdout.contains("ceilings: ") && run.stdout.contains("rms_norm T=1 C=1536 D=128"));
    let record: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let timing = &record["kernels"][0];
    assert!(timing["us"].as_f64().unwrap() > 0.0 && timing["samples"].as_u64().unwrap() >= 20);
    let ratios = pellucid(&["bench", "compare", file, file, "--json"]).json();
    assert!(ratios["ratios"].as_array().unwrap().iter().all(|ratio| ratio["b_over_a"] == 1.0));
}

/// Whole passes of the tiny shape: bytes and operations are its weights, keys and values, counted by hand.
#[test]
fn passes_are_timed_beside_what_they_must_read() {
    // Three blocks of width 128: queries and outputs 128, keys and values 64, three of 256; 512 ids.
    let blocks = 3 * 128 * (2 * 128 + 2 * 64 + 3 * 256);
    let head = 512 * 128;
    let kv = 2 * 3 * 64 * 2; // of a token, in bf16
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("passes.json");
    let file = file.to_str().unwrap();
    let decode = ["bench", "decode", "--shapes", "tiny", "--batch", "1,3", "--context", "70", "--out", file];
    let prefill = ["bench", "prefill", "--shapes", "tiny", "--tokens", "5"];
    let record = pellucid(&[&decode[..], &["--json"]].concat()).json();
    let of_five = pellucid(&[&prefill[..], &["--json"]].concat()).json();
    let timings = record["kernels"].as_array().unwrap().iter().chain(of_five["kernels"].as_array().unwrap());
    let pairs = |tokens: u64| 4 * tokens * 128 * 3;
    for (timing, (name, tokens, bytes, flops)) in timings.zip([
        ("decode tiny B=1 keys=70", 1, 70 * kv, 2 * (blocks + head) + pairs(70)),
        ("decode tiny B=3 keys=70", 3, 3 * 70 * kv, 3 * (2 * (blocks + head) + pairs(70))),
        ("prefill tiny T=5", 5, 5 * kv, 2 * (5 * blocks + head) + pairs(15)),
    ]) {
        let number = |name: &str| timing[name].as_f64().unwrap();
        assert_eq!(timing["name"], name);
        assert_eq!((number("bytes"), number("flops")), ((2 * (blocks + head) + bytes) as f64, flops as f64));
        let rate = 1e6 * f64::from(tokens) / number("us");
        assert!((number("tokens_per_second") / rate - 1.0).abs() < 1e-9 && number("share_of_floor") > 0.0);
    }
    let ratios = pellucid(&["bench", "compare", file, file, "--json"]).json();
    assert_eq!(ratios["ratios"].as_array().unwrap().len(), 2);
    for (more, words) in [
        (["--batch", "0"], "at least 1"),
        (["--batch", "99999999999"], "are needed and"),
        (["--context", "99999999999999999"], "are needed and"),
    ] {
        pellucid(&[&["bench", "decode", "--shapes", "tiny"][..], &more].concat()).fails_with(&[words]);
    }
    let model = ["bench", "decode", "--model", "tests/golden/qwen2/model", "--batch", "2", "--context", "9"];
    assert_eq!(
        pellucid(&[&model[..], &["--json"]].concat()).json()["kernels"][0]["name"],
        "decode model B=2 keys=9"
    );
}

/// What peers write, with what differs named and nothing failing for it.
#[test]
fn compare_matches_by_shape_and_names_what_differs() {
    let timing = |side: &str, name: &str, us: f64| {
        serde_json::json!({
            "side": side, "name": name, "us": us, "us_fastest": us, "us_slowest": us, "samples": 20, "copies": 1,
            "bytes": 8.0, "flops": 2.0, "gigabytes_per_second": 1.0, "teraflops_per_second": 1.0, "floor_us": 1.0,
            "share_of_floor": 0.5,
        })
    };
    let record = |cpu: &str, date: &str, kernels: Value| {
        let ceilings = serde_json::json!({"bytes_per_second": 1e9, "flops_per_second": 1e9, "by": "a test"});
        serde_json::json!({
            "date": date, "commit": null, "cpu": cpu, "threads": 4, "device": "a test", "note": "", "load_before": null,
            "ceilings": ceilings, "kernels": kernels,
        })
    };
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let ours = [timing("pellucid", "linear T=1", 2.0), timing("pellucid", "linear T=8", 4.0)];
    let theirs = [
        timing("torch", "linear T=1", 3.0),
        timing("liger", "linear T=1", 1.0),
        timing("torch", "rope T=1", 1.0),
    ];
    let a =
        write("a.json", record("one", "2026-01-01T00:00:00+00:00", Value::from(ours.to_vec())).to_string());
    let b = write(
        "b.json",
        record("other", "2026-01-02T00:00:00+00:00", Value::from(theirs.to_vec())).to_string(),
    );

    let run = pellucid(&["bench", "compare", &a, &b]);
    assert_eq!(run.code, Some(0));
    let has = |words: &[&str]| run.stdout.lines().any(|line| words.iter().all(|word| line.contains(word)));
    for words in [
        &["linear T=1 ", "1.50", "pellucid, torch"][..],
        &["linear T=1 ", "0.50", "pellucid, liger"],
        &["linear, geometric mean of 1", "1.50", "torch"],
        &["linear T=8", "only in A"],
        &["rope T=1", "only in B"],
    ] {
        assert!(has(words), "{words:?} in {}", run.stdout);
    }
    assert!(
        run.stderr.contains("the machine differs: one and other") && run.stderr.contains("the day differs")
    );

    let timeless =
        write("c.json", record("one", "", Value::from(vec![timing("x", "rope T=1", 0.0)])).to_string());
    for (file, reason) in [
        (write("d.json", "{}".into()), "not a record of `bench kernels`"),
        (timeless, "rope T=1 takes 0 µs"),
        ("absent.json".into(), "absent.json: cannot read it"),
    ] {
        let run = pellucid(&["bench", "compare", &a, &file]);
        assert_eq!((run.code, run.stdout.as_str()), (Some(1), ""));
        assert!(run.stderr.contains(reason), "{reason} in {}", run.stderr);
    }
}

#[cfg(feature = "emu")]
#[test]
fn every_kernel_passes_the_selftest_on_the_emulated_device() {
    let run = pellucid(&["selftest", "--device", "emu"]);
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{}", run.stdout);
    for check in ["linear T=5", "scored", "row by row in pages", "sequence alone", "row alone"] {
        assert!(run.stdout.contains(check), "{check} in {}", run.stdout);
    }
    let refused = pellucid(&["bench", "kernels", "--device", "emu"]);
    assert_eq!((refused.code, refused.stdout.as_str()), (Some(1), ""));
    assert!(refused.stderr.contains("says nothing about a device"), "{}", refused.stderr);
}

#[test]
fn verify_grades_one_answer() {
    for (arguments, code, out) in [
        (&["--pred", "1/2", "--gold", "0.5"][..], 0, "right by rule float, answer \"1/2\"\n"),
        (&["--pred", "so \\boxed{-3}", "--gold", "-3"], 0, "right by rule identical, answer \"-3\"\n"),
        (
            &["--pred", "30", "--gold", "B", "--choices", "30", "45"],
            0,
            "wrong by rule choice_content, answer \"30\"\n",
        ),
        (
            &["--pred", "104", "--gold", "100", "--answer-type", "float", "--rel-tol", "0.05"],
            0,
            "right by rule float, answer \"104\"\n",
        ),
        (&["--pred", "It is 7", "--gold", "7", "--lenient"], 0, "right by rule identical, answer \"7\"\n"),
        (&["--pred", "7", "--gold", "\\frac{1"], 1, ""),
        (&["--pred", "7"], 2, ""),
        (&["--pred", "7", "--gold", "7", "--answer-type", "prose"], 2, ""),
    ] {
        let run = pellucid(&[&["verify"], arguments].concat());
        assert_eq!((run.code, run.stdout.as_str()), (Some(code), out), "{arguments:?}: {}", run.stderr);
    }
    let json = pellucid(&["verify", "--pred", "50%", "--gold", "0.5", "--json"]).json();
    assert_eq!(json, serde_json::json!({"verdict": 1, "extracted": "50%", "rule": "percent"}));
}

#[test]
fn verify_grades_a_file_and_lists_its_invalid_golds() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("answers.jsonl");
    let lines = [
        r#"{"response": "\\boxed{7}", "gold": 7}"#,
        "",
        r#"{"response": "7", "gold": "7"}"#,
        r#"{"response": "\\boxed{B}", "gold": "30", "choices": [20, 30]}"#,
        r#"{"response": "\\boxed{7}", "gold": "\\frac{7"}"#,
    ];
    std::fs::write(&file, lines.join("\n")).unwrap();
    let run = pellucid(&["verify", "--input", file.to_str().unwrap()]);
    let wanted = [
        r#"{"verdict":1,"extracted":"7","rule":"identical"}"#,
        r#"{"verdict":0,"extracted":null,"rule":"no_answer"}"#,
        r#"{"verdict":1,"extracted":"B","rule":"choice"}"#,
        r#"{"verdict":"invalid_gold","extracted":"7","rule":"invalid_gold"}"#,
    ];
    assert_eq!((run.code, run.stdout.lines().collect::<Vec<_>>()), (Some(0), wanted.to_vec()));
    assert!(
        run.stderr.contains("line 5: gold") && run.stderr.contains("4 graded, 2 right, 1 with"),
        "{}",
        run.stderr
    );
    let summary = pellucid(&["verify", "--input", file.to_str().unwrap(), "--json"]).json();
    assert_eq!((&summary["right"], &summary["invalid_gold"][0]["line"]), (&Value::from(2), &Value::from(5)));
    assert_eq!(summary["rules"]["choice"], 1);
    std::fs::write(&file, "{\"response\": 3}").unwrap();
    let run = pellucid(&["verify", "--input", file.to_str().unwrap()]);
    assert_eq!(run.code, Some(1));
    assert!(run.stderr.contains("answers.jsonl line 1"), "{}", run.stderr);
}
