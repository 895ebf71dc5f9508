//! A run's configuration: one TOML file, key=value changes to it, presets below both.
//!
//! What nobody knows is an error: a key that is misspelt would otherwise change nothing and say nothing.

mod objective;
mod sections;

pub use objective::{Credit, KlConfig, ObjectiveConfig, Preset};
pub use sections::{Captioner, Data, LoraConfig, Optim, Run, Targets};

use super::parts::{EpisodeConfig, Prompts, ReasonerConfig, ReferenceConfig};
use crate::engine::Sampling;
use crate::error::{Error, Result, nearest, unknown};
use crate::task::data::Layout;
use crate::train::{OptimiserSettings, Schedule, TrainSettings};
use serde::{Deserialize, Serialize};
use std::path::Path;

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

/// Completions a step may have: more are a slip of the pen.
const MOST_COMPLETIONS: usize = 1 << 20;

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

    /// Itself with its objective resolved, if it can be meant.
    fn checked(mut self) -> Result<Self> {
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
            ("run.positions", self.run.positions),
            // What is to be measured by nothing says so by run.eval_every = 0.
            ("data.eval_limit", self.data.eval_limit.unwrap_or(usize::MAX)),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return refuse(format!("{name} is 0; it has to be at least 1"));
        }
        let completions = self.optim.prompts_per_step.saturating_mul(self.optim.group_size);
        if completions > MOST_COMPLETIONS {
            return refuse(format!(
                "optim.prompts_per_step times optim.group_size is {completions} completions a step; {MOST_COMPLETIONS} \
                 are the most"
            ));
        }
        for (part, temperature, top_p) in [
            ("captioner", self.captioner.temperature, 1.0),
            ("reasoner", self.reasoner.temperature, self.reasoner.top_p),
            ("reference", self.reference.temperature, 1.0),
        ] {
            let sampling = Sampling { temperature, top_p, ..Sampling::default() };
            sampling.check().map_err(|odd| match odd {
                Error::Caller { what, .. } => {
                    Error::caller(OP, format!("{part}.{}", what.replace("top-p", "top_p")))
                }
                other => other,
            })?;
        }
        if self.captioner.temperature == 0.0 {
            return refuse(
                "captioner.temperature is 0; the captions of a group would all be the same, and nothing is learned from \
                 them; `eval` takes greedy captions by its --temperature"
                    .into(),
            );
        }
        self.objective = self.objective.resolved(self.episode.kind, &self.captioner)?;
        self.episode.check()?;
        self.reasoner.check()?;
        self.prompts.protocol()?;
        self.layout()?;
        self.train_settings()?.optimiser.check()?;
        Ok(self)
    }

    /// What a trainer is told.
    pub fn train_settings(&self) -> Result<TrainSettings> {
        let Optim { lr, betas, eps, weight_decay, warmup_steps, max_grad_norm, max_bad_steps, .. } =
            self.optim;
        let steps =
            self.reasoner.learn.as_ref().map_or(self.run.steps, |learn| learn.shares(self.run.steps).0);
        let optimiser = OptimiserSettings {
            learning_rate: lr,
            betas,
            eps,
            weight_decay,
            warmup_steps,
            schedule: Schedule::named(&self.optim.schedule)?,
            steps: steps * self.optim.epochs_per_batch as u64,
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

    /// How rewards become a loss.
    pub fn credit(&self) -> Result<Credit> {
        self.objective.credit(self.episode.kind, &self.captioner)
    }

    /// The layout of the data's files.
    pub fn layout(&self) -> Result<Layout> {
        let mut layout = match self.data.layout.as_deref() {
            None => Layout::default(),
            Some(name) => Layout::named(name)
                .ok_or_else(|| Error::caller(OP, format!("data.layout {}", unknown(name, &Layout::NAMES))))?,
        };
        self.data.keys.iter().try_for_each(|(what, column)| layout.set(what, column))?;
        Ok(layout)
    }
}

/// What serde says, and which of the names it knows may have been meant: it puts names in backquotes, the odd one first.
fn broken(error: toml::de::Error) -> Error {
    let mut what = error.to_string().trim_end().replace('\n', "\n  ");
    let mut names = error.message().split('`').skip(1).step_by(2);
    if error.message().starts_with("unknown ")
        && let Some(odd) = names.next()
        && let Some(meant) = nearest(odd, names)
    {
        what += &format!("; did you mean `{meant}`?");
    }
    Error::caller(OP, what)
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
