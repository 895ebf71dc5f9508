//! What `sft` teaches: an adapter of a model, or a whole model.

use super::sft::Lessons;
use anyhow::{Context, Result};
use pellucid::engine::{Features, Input};
use pellucid::format::ModelFolder;
use pellucid::model::Model;
use pellucid::rl::cast::first;
use pellucid::rl::config::{Config, Run};
use pellucid::train::{
    Checkpoint, FullTrainer, Lesson, Sample, Stats, TrainSettings, Trainer, save, save_full,
};
use serde_json::Value;
use std::sync::Arc;

/// A trainer, and all it is taught.
pub(crate) enum Pupil {
    /// Pictures are seen once: the tower stays as it is.
    Adapter(Box<Trainer>, Vec<Sample>),
    /// And the folder of the model it was.
    Whole(Box<FullTrainer>, Vec<Lesson>, ModelFolder),
}

impl Pupil {
    /// As the configuration has it, or as a checkpoint left it.
    pub(crate) fn begin(
        config: &Config,
        model: Model,
        source: ModelFolder,
        lessons: &Lessons<'_>,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<Self> {
        let mut settings = config.train_settings()?;
        if let (None, Some(free)) = (config.optim.keep_bytes, model.backend.free_memory()?) {
            settings.keep_bytes = free as usize / 4;
        }
        if config.captioner.full {
            let mut all = Vec::new();
            lessons.each(|prompt, tokens| {
                all.push(Lesson { prompt: Arc::new(prompt), weights: vec![1.0; tokens.len()], tokens });
                Ok(())
            })?;
            let TrainSettings { optimiser, microbatch_tokens, .. } = settings;
            let tower = !config.captioner.freeze_tower;
            let trainer = match checkpoint {
                Some(checkpoint) => checkpoint.full_trainer(model, tower, optimiser, microbatch_tokens)?,
                None => FullTrainer::new(model, tower, optimiser, microbatch_tokens)?,
            };
            return Ok(Pupil::Whole(Box::new(trainer), all, source));
        }
        let model = Arc::new(model);
        let (mut features, mut all) = (Features::default(), Vec::new());
        lessons.each(|prompt, tokens| {
            let input = Input::prepare_with(&model, &prompt, &mut features);
            let input = Arc::new(input.context("cannot prepare the prompt")?);
            all.push(Sample { input, tokens, old: Vec::new(), advantage: 1.0, part: 0 });
            Ok(())
        })?;
        let trainer = match checkpoint {
            Some(checkpoint) => checkpoint.trainer(model, settings)?,
            None => Trainer::new(model.clone(), first(&model.config, config)?, settings)?,
        };
        Ok(Pupil::Adapter(Box::new(trainer), all))
    }

    /// How many lessons there are.
    pub(crate) fn lessons(&self) -> usize {
        match self {
            Pupil::Adapter(_, samples) => samples.len(),
            Pupil::Whole(_, lessons, _) => lessons.len(),
        }
    }

    /// Bytes of activations it holds.
    pub(crate) fn activation_bytes(&self) -> usize {
        match self {
            Pupil::Adapter(trainer, _) => trainer.activation_bytes(),
            Pupil::Whole(trainer, ..) => trainer.activation_bytes(),
        }
    }

    /// Learns some of them.
    pub(crate) fn learn(&mut self, which: &[usize]) -> Result<Stats> {
        fn some<T: Clone>(all: &[T], which: &[usize]) -> Vec<T> {
            which.iter().map(|&at| all[at].clone()).collect()
        }
        Ok(match self {
            Pupil::Adapter(trainer, samples) => trainer.supervise(&some(samples, which))?,
            Pupil::Whole(trainer, lessons, _) => {
                let mut lessons = some(lessons, which);
                Lesson::count_alike(&mut lessons);
                trainer.supervise(&lessons)?
            }
        })
    }

    /// Leaves a checkpoint.
    pub(crate) fn save(&self, run: &Run, step: u64, state: &Value) -> Result<()> {
        match self {
            Pupil::Adapter(trainer, _) => save(trainer, &[], &run.out, step, run.keep, state)?,
            Pupil::Whole(trainer, _, source) => save_full(trainer, source, &run.out, step, run.keep, state)?,
        };
        Ok(())
    }
}
