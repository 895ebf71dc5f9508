//! What the whole-model benches share: their command line, a clock, the machine's bandwidth.
#![allow(dead_code, reason = "each bench uses its part")]

pub(crate) mod machine;
pub(crate) mod timing;

use std::path::PathBuf;

/// A checkpoint folder and some `--name value` pairs.
pub(crate) struct Arguments(Vec<String>);

impl Arguments {
    /// The process's own; cargo adds `--bench`, which means nothing here.
    pub(crate) fn read() -> Self {
        Arguments(std::env::args().skip(1).filter(|argument| argument != "--bench").collect())
    }

    /// The folder, or a word on how to make one: a plain `cargo bench` must pass without.
    pub(crate) fn folder(&self, bench: &str) -> Option<PathBuf> {
        let folder = self.0.first().filter(|first| !first.starts_with("--")).map(PathBuf::from);
        if folder.is_none() {
            println!(
                "{bench}: skipped, no checkpoint folder given; make one with\n    \
                 python benches/peers/checkpoint.py FOLDER\nand run\n    \
                 cargo bench --bench {bench} -- FOLDER"
            );
        }
        folder
    }

    /// The value behind `name`.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        let at = self.0.iter().position(|argument| argument == name)?;
        self.0.get(at + 1).map(String::as_str)
    }

    /// The number behind `name`, or `default`.
    pub(crate) fn number(&self, name: &str, default: usize) -> usize {
        self.value(name).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name}: {value}?")))
    }

    /// Writes a record where `--json` says.
    pub(crate) fn write_json(&self, record: &serde_json::Value) {
        if let Some(path) = self.value("--json") {
            std::fs::write(path, format!("{record:#}\n")).unwrap_or_else(|e| panic!("{path}: {e}"));
        }
    }
}
