//! Run and train vision-language captioners for text reasoners by reinforcement learning.
//!
//! The crate is a column: each module uses only the modules above it in this list
//! (`tests/architecture.rs` holds it to that). *Tensors* live on a *backend*; *formats* bring weights,
//! *prompts* bring words and pictures; a *model* turns them into logits; an *engine* turns logits into
//! completions; *train* turns graded completions into a better adapter; a *task* asks and grades; *rl*
//! closes the loop; the *cli* is how people reach it.

pub mod error;
pub mod tensor;
pub mod backend;
pub mod format;
pub mod prompt;
pub mod model;
pub mod engine;
pub mod train;
pub mod task;
pub mod rl;

pub use error::{Error, Result};
