//! Logits into completions: prompts made ready for a model, tokens drawn and scored.

mod batch;
mod generate;
mod input;
mod pages;
mod prefix;
mod request;
mod sampling;
mod schedule;
mod score;
mod sequence;
mod service;
mod stop;

pub use batch::Engine;
pub use generate::{Generation, PREFILL_CHUNK, generate};
pub(crate) use input::patches;
pub use input::{Features, Input};
pub use request::{Completion, Event, Finish, Limits, Published, Request, Ticket, Totals, pages_needed};
pub use sampling::Sampling;
pub use score::{Score, ScoreRequest, score};
pub use service::{Pending, Service, Serving};
