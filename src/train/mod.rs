//! Graded completions into a better adapter.

mod checkpoint;
mod full;
mod learner;
mod lora;
pub mod objective;
mod optimiser;
mod pack;
mod trainer;
mod whole;

pub use checkpoint::{Checkpoint, State, save, save_full};
pub use full::{FullTrainer, Lesson};
pub use learner::{Learner, Reading, Sample};
pub use lora::{Lora, LoraSpec};
pub use optimiser::{Optimiser, OptimiserSettings, OptimiserState, Schedule, Update};
pub use pack::{Lengths, Microbatch, pack};
pub use trainer::{Objective, Stats, TrainSettings, Trainer};
