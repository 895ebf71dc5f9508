//! What people have on disk: safetensors, Hugging Face folders and the hub cache, PEFT adapters.

pub mod config;
pub mod header;
mod json;
mod map;
mod weights;

pub use config::ModelConfig;
pub use weights::{Checkpoint, FileDtype, TensorView};
