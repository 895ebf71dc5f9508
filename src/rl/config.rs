//! A run's configuration: one TOML file, key=value changes to it, presets below both.
//!
//! What nobody knows is an error: a key that is misspelt would otherwise change nothing and say nothing.

use super::parts::{EpisodeConfig, Kind, Prompts, ReasonerConfig, ReferenceConfig};
use crate::error::{Error, Result};
use crate::format::adapter::{ModuleSet, Pattern};
use crate::task::data::Layout;
use crate::train::objective::{Aggregation, BetaDensity, Clip, Kl, Normalizer, Tiers};
use crate::train::{LoraSpec, Objective, OptimiserSettings, Schedule, TrainSettings};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

const OP: &str = "config";

/// Everything a run is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Of all that is drawn.
    #[serde(default)]
    pub seed: u64,
    /// In which words.
    #[serde(default)]
    pub prompts: Prompts,
    /// What is trained.
    pub captioner: Captioner,
    /// Who reasons.
    #[serde(default)]
    pub reasoner: ReasonerConfig,
    /// What stays as it is.
    #[serde(default)]
    pub reference: ReferenceConfig,
    /// What happens to captions.
    #[serde(default)]
    pub episode: EpisodeConfig,
    /// How it is graded into a loss.
    #[serde(default)]
    pub objective: ObjectiveConfig,
    /// From what.
    pub data: Data,
    /// By what.
    #[serde(default)]
    pub optim: Optim,
    /// For how long, and where it goes.
    pub run: Run,
}

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

/// How graded completions become a loss; what is left out is the preset's.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ObjectiveConfig {
    /// Settings that belong together, by name.
    pub preset: Option<Preset>,
    /// How rewards become advantages.
    pub advantage: Option<String>,
    /// "direct" normalises rewards as they are, "decompose" each tier by itself.
    pub tiers: Option<String>,
    /// How tokens count.
    pub aggregation: Option<String>,
    /// The ratio counts down to 1 − this.
    pub clip_low: Option<f64>,
    /// And up to 1 + this.
    pub clip_high: Option<f64>,
    /// The most that a bad token costs, in times its advantage.
    pub dual_clip: Option<f64>,
    /// The pull towards the reference.
    pub kl: Option<KlConfig>,
}

/// The pull towards the reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KlConfig {
    /// "k1", "k2" or "k3" in the loss, or any of them as "k1_in_reward".
    pub kind: String,
    /// Its weight; 0 is none.
    pub coef: f64,
}

/// Settings that were published together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// AC-RL with the Beta normalisation of Xiao et al.
    AcrlXiao,
    /// AC-RL as TRL's `bnpo` loss has it.
    AcrlTrl,
    /// The Beta normalisation as its authors ran it.
    BnpoPaper,
    /// PRCO.
    Prco,
    /// RACRO.
    Racro,
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

/// Rewards into advantages and a loss.
#[derive(Debug, Clone, PartialEq)]
pub struct Credit {
    /// Rewards into advantages.
    pub normalizer: Normalizer,
    /// As they are, or tier by tier.
    pub tiers: Tiers,
    /// Advantages into a loss.
    pub objective: Objective,
    /// The pull of the reference that is taken off rewards, if one is; the loss then has none.
    pub kl_in_reward: Option<(Kl, f64)>,
}

impl Config {
    /// Reads a file and changes it by `key=value` with dotted keys.
    pub fn read(path: &Path, changes: &[String]) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|cause| Error::file_because(path, "cannot be read", cause))?;
        Config::parse(&text, changes).map_err(|broken| match broken {
            Error::Caller { what, .. } => Error::file(path, what),
            other => other,
        })
    }

    /// As [`Config::read`], from a text.
    pub fn parse(text: &str, changes: &[String]) -> Result<Self> {
        let broken =
            |error: toml::de::Error| Error::caller(OP, error.to_string().trim_end().replace('\n', "\n  "));
        if changes.is_empty() {
            // Without changes errors can show the line.
            let config: Config = toml::from_str(text).map_err(broken)?;
            return config.checked();
        }
        let mut table: toml::Table = toml::from_str(text).map_err(broken)?;
        for change in changes {
            let Some((key, value)) = change.split_once('=') else {
                return Err(Error::caller(OP, format!("{change:?} is no key=value")));
            };
            // What is no value by itself is a text: out=runs/one needs no quotes.
            let parsed = toml::from_str::<toml::Table>(&format!("value = {value}"));
            let value = parsed.ok().and_then(|mut table| table.remove("value"));
            set(&mut table, key, value.unwrap_or_else(|| change[key.len() + 1..].into()))?;
        }
        Config::deserialize(toml::Value::Table(table)).map_err(broken)?.checked()
    }

    fn checked(self) -> Result<Self> {
        let refuse = |what: String| Err(Error::caller(OP, what));
        if self.captioner.lora.dropout != 0.0 {
            return refuse(format!(
                "captioner.lora.dropout is {}; only 0 is supported: with dropout the trainer's log-probs would not \
                 be the sampler's",
                self.captioner.lora.dropout
            ));
        }
        if self.captioner.full && self.captioner.adapter.is_some() {
            return refuse(
                "captioner.full trains weights, captioner.adapter an adapter; give one of them".into(),
            );
        }
        if self.captioner.freeze_tower && !self.captioner.full {
            return refuse(
                "captioner.freeze_tower says nothing without captioner.full: an adapter has no tower".into(),
            );
        }
        let counts = [
            ("run.steps", self.run.steps as usize),
            ("run.save_every", self.run.save_every as usize),
            ("run.keep", self.run.keep),
            ("run.sequences", self.run.sequences),
            ("run.pass_tokens", self.run.pass_tokens),
            ("reasoner.max_tokens", self.reasoner.max_tokens),
            ("reference.max_tokens", self.reference.max_tokens),
            ("optim.prompts_per_step", self.optim.prompts_per_step),
            ("optim.group_size", self.optim.group_size),
            ("optim.microbatch_tokens", self.optim.microbatch_tokens),
            ("optim.epochs_per_batch", self.optim.epochs_per_batch),
            ("captioner.max_tokens", self.captioner.max_tokens),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return refuse(format!("{name} is 0; it has to be at least 1"));
        }
        self.credit()?;
        self.episode.check()?;
        self.reasoner.check()?;
        self.prompts.protocol()?;
        self.train_settings()?.optimiser.check()?;
        Ok(self)
    }

    /// What a trainer is told.
    pub fn train_settings(&self) -> Result<TrainSettings> {
        let Optim { lr, betas, eps, weight_decay, warmup_steps, max_grad_norm, max_bad_steps, .. } =
            self.optim;
        let optimiser = OptimiserSettings {
            learning_rate: lr,
            betas,
            eps,
            weight_decay,
            warmup_steps,
            schedule: Schedule::named(&self.optim.schedule)?,
            steps: self.run.steps * self.optim.epochs_per_batch as u64,
            max_grad_norm,
            max_bad_steps,
        };
        Ok(TrainSettings {
            objective: self.credit()?.objective,
            optimiser,
            microbatch_tokens: self.optim.microbatch_tokens,
            updates: self.optim.epochs_per_batch,
            keep_bytes: self.optim.keep_bytes.unwrap_or(0),
        })
    }

    /// The layout of the data's files.
    pub fn layout(&self) -> Result<Layout> {
        match self.data.layout.as_deref() {
            None => Ok(Layout::default()),
            Some(name) => Layout::named(name).ok_or_else(|| {
                let known = Layout::NAMES.join(", ");
                Error::caller(OP, format!("data.layout {name:?} is not known; there are {known}"))
            }),
        }
    }

    /// How rewards become a loss: the preset, and what is said beside it.
    pub fn credit(&self) -> Result<Credit> {
        let said = &self.objective;
        let usual = match self.episode.kind {
            Kind::Prco => Preset::Prco,
            Kind::Racro => Preset::Racro,
            Kind::Acrl | Kind::Binary | Kind::Caprl => Preset::AcrlTrl,
        };
        let preset = self.objective.preset.unwrap_or(usual).settings();
        let normalizer = match &said.advantage {
            Some(name) => Normalizer::named(name)?,
            None => preset.normalizer,
        };
        let aggregation = match &said.aggregation {
            Some(name) => Aggregation::named(name, self.captioner.max_tokens)?,
            None => preset.objective.aggregation,
        };
        let base = preset.objective.clip;
        let clip = Clip {
            low: said.clip_low.unwrap_or(base.low),
            high: said.clip_high.unwrap_or(base.high),
            dual: said.dual_clip.or(base.dual),
        };
        if !(0.0..1.0).contains(&clip.low)
            || clip.high.is_nan()
            || clip.high < 0.0
            || clip.dual.is_some_and(|d| d.is_nan() || d <= 1.0)
        {
            let what = format!("{clip:?}: clip_low is from 0 to 1, clip_high from 0 up, dual_clip above 1");
            return Err(Error::caller(OP, what));
        }
        let (kl, kl_in_reward) = match &said.kl {
            None => (preset.objective.kl, None),
            Some(KlConfig { coef, .. }) if *coef == 0.0 => (None, None),
            Some(KlConfig { kind, coef }) => {
                let (name, in_reward) = match kind.strip_suffix("_in_reward") {
                    Some(name) => (name, true),
                    None => (kind.as_str(), false),
                };
                let kind = match name {
                    "k1" => Kl::K1,
                    "k2" => Kl::K2,
                    "k3" => Kl::K3,
                    other => {
                        let what = format!(
                            "objective.kl.kind {other:?} is not known; there are k1, k2, k3, k1_in_reward, …"
                        );
                        return Err(Error::caller(OP, what));
                    }
                };
                if !coef.is_finite() || *coef < 0.0 {
                    return Err(Error::caller(OP, format!("objective.kl.coef {coef} is no weight")));
                }
                if kind == Kl::K1 && !in_reward {
                    return Err(Error::caller(
                        OP,
                        "k1 in the loss has no slope on average; use k1_in_reward, k2 or k3",
                    ));
                }
                let pull = Some((kind, *coef));
                if in_reward { (None, pull) } else { (pull, None) }
            }
        };
        let tiers = said.tiers.as_deref().map_or(Ok(Tiers::Direct), Tiers::named)?;
        let bounded = matches!(normalizer, Normalizer::BetaDensity(_)) || tiers == Tiers::Decompose;
        if kl_in_reward.is_some() && bounded {
            return Err(Error::caller(
                OP,
                "objective.kl in the reward takes rewards out of 0 to 1, where beta_density and tiers = \"decompose\" \
                 need them; use k2 or k3 in the loss, or another advantage with tiers = \"direct\"",
            ));
        }
        let objective = Objective { clip, kl, aggregation, temperature: self.captioner.temperature };
        Ok(Credit { normalizer, tiers, objective, kl_in_reward })
    }
}

impl Preset {
    fn settings(self) -> Credit {
        let clip = |low, high, dual| Clip { low, high, dual };
        let group_std = |eps| Normalizer::GroupStd { eps, ddof: 1 };
        let k3 = |weight| Some((Kl::K3, weight));
        use Aggregation::{SeqMeanTokenSum, TokenMeanGlobal, TokenMeanLocal};
        let (normalizer, aggregation, clip, kl) = match self {
            Preset::AcrlXiao => {
                let density = BetaDensity { largest_weight: 10.0, ..BetaDensity::default() };
                (Normalizer::BetaDensity(density), SeqMeanTokenSum, clip(0.2, 0.28, Some(10.0)), k3(0.04))
            }
            Preset::AcrlTrl => (group_std(1e-4), TokenMeanLocal, clip(0.2, 0.2, None), k3(0.04)),
            Preset::BnpoPaper => {
                let density = BetaDensity { largest_weight: 1e6, ..BetaDensity::default() };
                (Normalizer::BetaDensity(density), SeqMeanTokenSum, clip(0.2, 0.28, Some(10.0)), None)
            }
            Preset::Prco => (Normalizer::None, TokenMeanGlobal, clip(0.2, 0.28, Some(3.0)), None),
            Preset::Racro => (group_std(1e-6), TokenMeanGlobal, clip(0.2, 0.2, Some(3.0)), k3(0.001)),
        };
        let objective = Objective { clip, kl, aggregation, temperature: 1.0 };
        Credit { normalizer, tiers: Tiers::Direct, objective, kl_in_reward: None }
    }
}

/// Puts a value at a dotted key.
fn set(table: &mut toml::Table, key: &str, value: toml::Value) -> Result<()> {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
            Ok(())
        }
        Some((section, rest)) => {
            let below = table.entry(section).or_insert_with(|| toml::Table::new().into());
            match below.as_table_mut() {
                Some(below) => set(below, rest, value),
                None => Err(Error::caller(OP, format!("{section} is a value, {rest} cannot be set in it"))),
            }
        }
    }
}

#[cfg(test)]
mod tests;
