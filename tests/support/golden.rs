//! Reading the golden fixtures.

#![allow(dead_code, reason = "each test file uses some of it")]

use pellucid::format::Checkpoint;
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// One case of `tests/golden`.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) expected: Expected,
}

#[derive(Clone, Deserialize)]
pub(crate) struct Expected {
    pub(crate) prompts: Vec<Prompt>,
}

#[derive(Clone, Deserialize)]
pub(crate) struct Prompt {
    pub(crate) name: String,
    pub(crate) messages: serde_json::Value,
    pub(crate) prompt_ids: Vec<u32>,
    pub(crate) completion: String,
    pub(crate) completion_ids: Vec<u32>,
    pub(crate) logprobs: LogProbs,
    /// With the case's adapter on, where it has one.
    pub(crate) adapter_logprobs: Option<LogProbs>,
    pub(crate) entropy: Vec<f64>,
    pub(crate) greedy: Greedy,
}

#[derive(Clone, Deserialize)]
pub(crate) struct LogProbs {
    pub(crate) f32: Vec<f64>,
    pub(crate) bf16: Vec<f64>,
    pub(crate) bf16_truth: Vec<f64>,
}

#[derive(Clone, Deserialize)]
pub(crate) struct Greedy {
    pub(crate) ids: Vec<u32>,
    pub(crate) text: String,
    pub(crate) finish_reason: String,
}

impl Case {
    pub(crate) fn read(name: &'static str) -> Self {
        let file = folder(name).join("expected.json");
        let text =
            std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        Case { name, expected: serde_json::from_str(&text).unwrap() }
    }

    pub(crate) fn model(&self) -> PathBuf {
        folder(self.name).join("model")
    }

    /// The folder of the case's adapter.
    pub(crate) fn adapter(&self) -> PathBuf {
        folder(self.name).join("adapter")
    }

    /// The model as other writers lay it out: names, and folders made in `scratch`.
    pub(crate) fn variants(&self, scratch: &Path) -> Vec<(String, PathBuf)> {
        let Ok(entries) = std::fs::read_dir(folder(self.name).join("variants")) else { return Vec::new() };
        let entries = entries.map(|entry| entry.unwrap());
        entries.map(|entry| entry.path()).map(|from| self.variant(&from, scratch)).collect()
    }

    fn variant(&self, from: &Path, scratch: &Path) -> (String, PathBuf) {
        let name = from.file_name().unwrap().to_string_lossy().into_owned();
        let to = scratch.join(format!("{}-{name}", self.name));
        std::fs::create_dir(&to).unwrap();
        for file in std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
            std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
        let table = std::fs::read_to_string(to.join("tensors.json")).unwrap();
        let table: BTreeMap<String, Vec<String>> = serde_json::from_str(&table).unwrap();
        let checkpoint = Checkpoint::open(&self.model()).unwrap();
        let joined: Vec<_> = table
            .iter()
            .map(|(name, parts)| {
                let parts: Vec<_> = parts.iter().map(|part| checkpoint.view(part).unwrap()).collect();
                let bytes: Vec<u8> = parts.iter().flat_map(|part| part.bytes().to_vec()).collect();
                let mut shape = parts[0].shape().to_vec();
                shape[0] = parts.iter().map(|part| part.shape()[0]).sum();
                (name, parts[0].dtype(), shape, bytes)
            })
            .collect();
        let views = joined.iter().map(|(name, dtype, shape, bytes)| {
            (name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        safetensors::serialize_to_file(views, None, &to.join("model.safetensors")).unwrap();
        (name, to)
    }

    pub(crate) fn end_tokens(&self) -> Vec<u32> {
        let text = std::fs::read_to_string(self.model().join("generation_config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&text).unwrap();
        match &config["eos_token_id"] {
            serde_json::Value::Array(ids) => ids.iter().map(|id| id.as_u64().unwrap() as u32).collect(),
            id => vec![id.as_u64().unwrap() as u32],
        }
    }
}

/// Where the pictures of the prompts are.
pub(crate) fn images() -> PathBuf {
    folder("images").join("files")
}

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}
