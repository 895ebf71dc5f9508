//! Reading the golden fixtures.

use serde::Deserialize;
use std::path::PathBuf;

/// One case of `tests/golden`.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) expected: Expected,
}

#[derive(Deserialize)]
pub(crate) struct Expected {
    pub(crate) prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
pub(crate) struct Prompt {
    pub(crate) name: String,
    pub(crate) messages: serde_json::Value,
    pub(crate) prompt_ids: Vec<u32>,
    pub(crate) completion: String,
    pub(crate) completion_ids: Vec<u32>,
    pub(crate) logprobs: LogProbs,
    pub(crate) entropy: Vec<f64>,
    pub(crate) greedy: Greedy,
}

#[derive(Deserialize)]
pub(crate) struct LogProbs {
    pub(crate) f32: Vec<f64>,
    pub(crate) bf16: Vec<f64>,
    pub(crate) bf16_truth: Vec<f64>,
}

#[derive(Deserialize)]
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
