//! The program as people and scripts meet it: what it prints where, and how it exits.
#![cfg(feature = "cli")]

use serde_json::Value;
use std::process::{Command, Stdio};

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
    for name in ["cpu", "memory", "gpu", "nvcc", "hub cache"] {
        assert!(run.stdout.lines().any(|line| line.starts_with(name)), "{name} in {}", run.stdout);
    }
    let json = pellucid(&["doctor", "--json", "--threads", "2"]).json();
    assert!(json["processor"]["cores"].as_u64().unwrap() > 0);
    assert_eq!(json["gpu"]["usable_by_this_build"], false);
}

#[test]
fn a_command_line_that_makes_no_sense_exits_with_2() {
    for (arguments, hint) in [
        (&[][..], "Usage"),
        (&["doctro"], "'doctor'"),
        (&["doctor", "--jsom"], "--json"),
        (&["doctor", "--threads", "0"], "1 to 1024"),
        (&["doctor", "--device", "cuda:0"], "no CUDA backend"),
    ] {
        let run = pellucid(arguments);
        assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(run.stderr.contains(hint), "{arguments:?}: {}", run.stderr);
    }
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
