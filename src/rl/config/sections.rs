//! Sections of a run's configuration: what is trained, on what, how its weights move, and for how long.

use crate::error::Result;
use crate::format::adapter::{ModuleSet, Pattern};
use crate::train::LoraSpec;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The model that is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Captioner {
    /// A folder, or a hub id in the offline cache.
    pub model: String,
    /// An adapter to begin with.
    pub adapter: Option<PathBuf>,
    /// A new adapter, where there is none to begin with.
    #[serde(default)]
    pub lora: LoraConfig,
    /// Every weight is trained instead of an adapter; for `sft` of small models.
    #[serde(default)]
    pub full: bool,
    /// With `full`: the image tower stays as it is.
    #[serde(default)]
    pub freeze_tower: bool,
    /// Smallest area of a picture after resizing.
    pub min_pixels: Option<usize>,
    /// Largest area of a picture after resizing.
    pub max_pixels: Option<usize>,
    /// The most tokens of a caption.
    #[serde(default = "default_max_tokens")]
    pub max_tokens: usize,
    /// The temperature captions are drawn at.
    #[serde(default = "one")]
    pub temperature: f32,
}

fn default_max_tokens() -> usize {
    1024
}

fn one() -> f32 {
    1.0
}

/// A new adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// `R`.
    pub rank: usize,
    /// The numerator of the scale.
    pub alpha: f64,
    /// Names of linears, an expression, or "all-linear".
    pub targets: Targets,
    /// Only 0: the log-probs of training would not be the sampler's.
    pub dropout: f64,
}

impl Default for LoraConfig {
    fn default() -> Self {
        let all = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
        let targets = Targets::Names(all.map(str::to_owned).to_vec());
        LoraConfig { rank: 128, alpha: 256.0, targets, dropout: 0.0 }
    }
}

impl LoraConfig {
    /// Which linears it is for.
    pub fn modules(&self) -> Result<ModuleSet> {
        Ok(match &self.targets {
            Targets::Text(text) if text == "all-linear" => ModuleSet::AllLinear,
            Targets::Text(text) => ModuleSet::Matching(Pattern::whole(text)?),
            Targets::Names(names) => ModuleSet::Named(names.clone()),
        })
    }

    /// A new adapter of a model by that name.
    pub fn spec(&self, model: &str) -> Result<LoraSpec> {
        let (rank, alpha, targets) = (self.rank, self.alpha, self.modules()?);
        Ok(LoraSpec { rank, alpha, targets, base_model: Some(model.to_owned()) })
    }
}

/// Which linears an adapter is for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a list of names, an expression, or \"all-linear\"")]
pub enum Targets {
    /// "all-linear", or an expression over whole paths.
    Text(String),
    /// Names.
    Names(Vec<String>),
}

/// What is read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// To learn from.
    pub train: PathBuf,
    /// To be measured by.
    pub eval: Option<PathBuf>,
    /// The most problems to be measured by.
    pub eval_limit: Option<usize>,
    /// The layout of the files, by the name of a published data set.
    pub layout: Option<String>,
    /// Columns by what they hold, in place of the layout's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub keys: BTreeMap<String, String>,
    /// In another order every epoch.
    #[serde(default = "yes")]
    pub shuffle: bool,
}

fn yes() -> bool {
    true
}

/// How weights move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Optim {
    /// The rate when warm.
    pub lr: f64,
    /// Decay of the averages.
    pub betas: [f64; 2],
    /// Added to the root of the second.
    pub eps: f64,
    /// Decoupled decay.
    pub weight_decay: f64,
    /// Steps of warming up.
    pub warmup_steps: u64,
    /// "constant", "linear" or "cosine".
    pub schedule: String,
    /// The longest gradient.
    pub max_grad_norm: f64,
    /// Steps in a row without a finite gradient, until the run stops.
    pub max_bad_steps: u32,
    /// Problems of a step; of `sft`, completions.
    pub prompts_per_step: usize,
    /// Completions of a problem.
    pub group_size: usize,
    /// Tokens of one pass.
    pub microbatch_tokens: usize,
    /// Updates on the same completions.
    pub epochs_per_batch: usize,
    /// Bytes for activations that are kept for the way back in place of being computed again. Left out, `sft` takes a
    /// quarter of the memory that is free, other verbs none.
    pub keep_bytes: Option<usize>,
}

impl Default for Optim {
    fn default() -> Self {
        Optim {
            lr: 1e-5,
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 0.0,
            warmup_steps: 0,
            schedule: "constant".to_owned(),
            max_grad_norm: 1.0,
            max_bad_steps: 5,
            prompts_per_step: 32,
            group_size: 8,
            microbatch_tokens: 8192,
            epochs_per_batch: 1,
            keep_bytes: None,
        }
    }
}

/// How long, and where it goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Steps in all.
    pub steps: u64,
    /// The run's folder.
    pub out: PathBuf,
    /// Steps between checkpoints; the last step always leaves one.
    #[serde(default = "default_save_every")]
    pub save_every: u64,
    /// Steps between evaluations; 0 is never.
    #[serde(default)]
    pub eval_every: u64,
    /// Checkpoints that are kept.
    #[serde(default = "default_keep")]
    pub keep: usize,
    /// Completions at work at a time.
    #[serde(default = "default_sequences")]
    pub sequences: usize,
    /// Tokens of a rollout's pass.
    #[serde(default = "default_pass_tokens")]
    pub pass_tokens: usize,
    /// Sample the next batch during the update, with the adapter of before it: captions are one update old at most.
    #[serde(default)]
    pub overlap: bool,
    /// The longest prompt with what follows it, in tokens: pages are reserved for that.
    #[serde(default = "default_positions")]
    pub positions: usize,
}

fn default_save_every() -> u64 {
    50
}

fn default_sequences() -> usize {
    64
}

fn default_pass_tokens() -> usize {
    2048
}

fn default_positions() -> usize {
    4096
}

fn default_keep() -> usize {
    3
}
