//! A run: sample, play, grade, learn, publish, and again.

use super::cast::{Cast, captioning, rules};
use super::config::{Config, Credit};
use super::credit::{Graded, grade};
use super::episode::Rules;
use super::frozen::Frozen;
use super::source::Source;
use super::stage::{Group, Scene, Spent, Stage, Trial};
use crate::backend::philox::philox;
use crate::engine::{Published, Sampling};
use crate::error::{Error, Result};
use crate::format::adapter::Adapter as AdapterFile;
use crate::task::data::{Cursor, Fault, Problem};
use crate::task::verify::Policy;
use crate::train::{Checkpoint, Lora, LoraSpec, Stats, Trainer};
use serde::{Deserialize, Serialize};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// A run under way.
#[derive(Debug)]
pub struct Run<'m> {
    config: Config,
    stage: Stage<'m>,
    trainer: Trainer,
    credit: Credit,
    rules: Rules,
    source: Source,
    frozen: Frozen,
    state: RunState,
    adapter: Published,
}

/// What a run has to remember beside its weights.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunState {
    /// Steps taken.
    #[serde(skip)]
    pub step: u64,
    /// Where it is in its data.
    pub cursor: Cursor,
    /// Steps that nothing was learned in: no group had anything to say.
    pub skipped: u64,
}

/// What a step did.
#[derive(Debug)]
pub struct Step {
    /// Its number, from 1.
    pub step: u64,
    /// What it was about.
    pub problems: Vec<Arc<Problem>>,
    /// The captions and what became of them.
    pub groups: Vec<Group>,
    /// What they earned.
    pub graded: Graded,
    /// What right answers paid, by the requests they took.
    pub payment: Vec<f64>,
    /// What each update did.
    pub stats: Vec<Stats>,
    /// Where the time of sampling went.
    pub spent: Spent,
    /// Time of the updates.
    pub update: Duration,
}

impl<'m> Run<'m> {
    /// Begins, or goes on from a checkpoint. Rows of the data that are no problems are given beside it.
    pub fn begin(
        cast: &'m Cast,
        config: &Config,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<(Self, Vec<Fault>)> {
        let model = &cast.policy.model;
        let mut stage = cast.stage(config)?;
        let (trainer, state) = match checkpoint {
            Some(checkpoint) => {
                let state = RunState::deserialize(&checkpoint.state.run).map_err(|cause| {
                    let what = format!("the checkpoint does not say where the run was: {cause}");
                    Error::file(checkpoint.folder(), what)
                })?;
                let trainer = checkpoint.trainer(model.clone(), config.train_settings()?)?;
                (trainer, RunState { step: checkpoint.state.global_step, ..state })
            }
            None => (
                Trainer::new(model.clone(), first(cast, config)?, config.train_settings()?)?,
                RunState::default(),
            ),
        };
        let adapter = stage.policy.engine().publish(trainer.adapter());
        let policy = Policy::default();
        let (source, faults) =
            Source::open(&config.data.train, &config.layout()?, &policy, config.seed, config.data.shuffle)?;
        let run = Run {
            frozen: Frozen::listen(&mut stage)?,
            credit: config.credit()?,
            rules: rules(config, config.episode.requests())?,
            config: config.clone(),
            stage,
            trainer,
            source,
            state,
            adapter,
        };
        Ok((run, faults))
    }

    /// One step, of which this is all.
    pub fn step(&mut self) -> Result<Step> {
        let Config { optim, episode, .. } = &self.config;
        let step = self.state.step;
        let problems = self.source.take(&mut self.state.cursor, optim.prompts_per_step)?;
        let scenes: Vec<Scene<'_>> = problems
            .iter()
            .enumerate()
            .map(|(number, problem)| Scene {
                problem,
                trials: vec![Trial { rules: &self.rules, problem }],
                seeds: (0..optim.group_size)
                    .map(|member| seed(self.config.seed, step, number, member))
                    .collect(),
            })
            .collect();
        let sampling = captioning(&self.config);
        let (groups, spent) = self.stage.play(&scenes, &sampling, Some(&self.adapter))?;
        let payment = episode.payment(step);
        let graded = grade(&groups, &payment, &self.credit)?;
        self.frozen.check(&mut self.stage)?;
        let start = Instant::now();
        let stats =
            if graded.samples.is_empty() { Vec::new() } else { self.trainer.step(&graded.samples)? };
        self.adapter = self.stage.policy.engine().publish(self.trainer.adapter());
        self.state.skipped += u64::from(stats.is_empty());
        self.state.step += 1;
        let update = start.elapsed();
        Ok(Step { step: step + 1, problems, groups, graded, payment, stats, spent, update })
    }

    /// Problems captioned once each, drawn as `sampling` says, and what becomes of the captions under several rules.
    pub fn play(
        &mut self,
        problems: &[Arc<Problem>],
        rules: &[Rules],
        sampling: &Sampling,
    ) -> Result<Vec<Group>> {
        let scenes: Vec<Scene<'_>> = problems
            .iter()
            .enumerate()
            .map(|(number, problem)| Scene {
                problem,
                trials: rules.iter().map(|rules| Trial { rules, problem }).collect(),
                // The same for every checkpoint: differences are the captioner's.
                seeds: vec![seed(self.config.seed, u64::MAX, number, 0)],
            })
            .collect();
        let played = self.stage.play(&scenes, sampling, Some(&self.adapter))?;
        Ok(played.0)
    }

    /// The trainer, to be saved.
    pub fn trainer(&self) -> &Trainer {
        &self.trainer
    }

    /// What has to be remembered.
    pub fn state(&self) -> &RunState {
        &self.state
    }

    /// The run's configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }
}

/// The seed of a caption: a function of where it stands in the run.
fn seed(run: u64, step: u64, problem: usize, member: usize) -> u64 {
    let at = [step as u32, (step >> 32) as u32, problem as u32, member as u32];
    let drawn = philox(at, [run as u32, (run >> 32) as u32]);
    u64::from(drawn[0]) << 32 | u64::from(drawn[1])
}

/// The adapter a run begins with.
pub fn first(cast: &Cast, config: &Config) -> Result<Lora> {
    let model = &cast.policy.model.config;
    match &config.captioner.adapter {
        Some(path) => Lora::of(model, &AdapterFile::open(path)?),
        None => {
            let spec = LoraSpec {
                rank: config.captioner.lora.rank,
                alpha: config.captioner.lora.alpha,
                targets: config.targets()?,
                base_model: Some(config.captioner.model.clone()),
            };
            Lora::fresh(model, spec, config.seed)
        }
    }
}
