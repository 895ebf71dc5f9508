//! Logits into completions: prompts made ready for a model, tokens drawn and scored.

mod generate;
mod input;
mod pages;
mod sampling;
mod score;
mod stop;

pub use generate::{Completion, Finish, Generation, PREFILL_CHUNK, generate};
pub use input::Input;
pub use sampling::Sampling;
pub use score::{Score, ScoreRequest, score};
