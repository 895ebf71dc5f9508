//! How the built-in models come to be: weights drawn afresh, lessons from the tiny world, and an examination.
//!
//! The captioner first learns to see: its image tower alone, by what stands in each cell ([`Eyes`]). Then it learns to
//! speak, and the reasoner to read, by completions ([`Class`]). None of it is reinforcement: what to mention in a caption
//! stays open, and that is what the demo trains.

mod exam;
mod eyes;
mod fresh;
mod lessons;

pub use exam::{Exam, Marks, Rate};
pub use eyes::{Eyes, Sight};
pub use fresh::fresh;
pub use lessons::{Curriculum, Kind, Lessons};

use crate::error::Result;
use crate::model::Model;
use crate::task::world::{Chance, Purpose};
use crate::train::{FullTrainer, Lesson, OptimiserSettings, Schedule, Stats};

/// Tokens of one pass; all lessons of a step fit.
const PASS: usize = 8192;

/// Steps of warming up.
const WARMUP: u64 = 50;

/// What the optimiser is told in every stage.
fn optimiser(learning_rate: f64, steps: u64) -> OptimiserSettings {
    OptimiserSettings {
        learning_rate,
        betas: [0.9, 0.98],
        weight_decay: 0.01,
        warmup_steps: WARMUP.min(steps / 2),
        schedule: Schedule::Cosine { floor: 0.02 },
        steps,
        ..OptimiserSettings::default()
    }
}

/// Draws for a step of one of several stages that share a seed.
fn chance(seed: u64, stage: u64, step: u64) -> Chance {
    Chance::new(seed, step << 2 | stage, Purpose::Lesson)
}

/// A model that learns from completions. Its image tower stays as it is.
#[derive(Debug)]
pub struct Class {
    trainer: FullTrainer,
    lessons: Lessons,
    curriculum: Curriculum,
    seed: u64,
    step: u64,
}

impl Class {
    /// A class of this many steps.
    pub fn new(model: Model, curriculum: Curriculum, seed: u64, steps: u64) -> Result<Self> {
        let lessons = Lessons::new(&model)?;
        let settings = optimiser(curriculum.learning_rate(), steps);
        let trainer = FullTrainer::new(model, false, settings, PASS)?;
        Ok(Class { trainer, lessons, curriculum, seed, step: 0 })
    }

    /// The model as it is now.
    pub fn model(&self) -> &Model {
        self.trainer.model()
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Learns from the next lessons.
    pub fn step(&mut self) -> Result<Stats> {
        let lessons: Vec<Lesson> = self.next_lessons()?.into_iter().map(|(_, lesson)| lesson).collect();
        let stats = self.trainer.supervise(&lessons)?;
        self.step += 1;
        Ok(stats)
    }

    /// Mean loss of the next lessons, which are new to it, kind by kind.
    pub fn losses(&mut self) -> Result<Vec<(Kind, f64)>> {
        let lessons = self.next_lessons()?;
        let mut kinds: Vec<Kind> = lessons.iter().map(|(kind, _)| *kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        let loss = |kind: Kind| {
            let of = lessons.iter().filter(|(other, _)| *other == kind).map(|(_, lesson)| lesson.clone());
            Ok((kind, self.trainer.cross_entropy(&of.collect::<Vec<_>>())? / kind.weight()))
        };
        kinds.into_iter().map(loss).collect()
    }

    fn next_lessons(&self) -> Result<Vec<(Kind, Lesson)>> {
        let mut chance = chance(self.seed, self.curriculum.stage(), self.step);
        self.lessons.draw(self.curriculum, self.step, &mut chance)
    }
}
