//! What people have on disk: safetensors, Hugging Face folders and the hub cache, PEFT adapters.
//!
//! Readers of files, each a function from bytes to a plain struct. A [`ModelFolder`] is found by path or hub
//! id and knows what its files are called; a [`ModelConfig`] says what the model is; a [`Checkpoint`] holds
//! its tensors, mapped and unread until touched. Whatever is wrong with a file is one error that names the
//! file and the key or tensor.

pub mod adapter;
mod builtin;
pub mod config;
mod folder;
pub mod header;
mod hub;
mod json;
mod map;
mod merge;
mod processor;
pub mod save;
mod scan;
mod weights;

pub use adapter::{Adapter, AdapterConfig};
pub use builtin::BUILTIN;
pub use config::ModelConfig;
pub use folder::{GenerationConfig, ModelFolder, TokenizerConfig};
pub use hub::hub_cache;
pub(crate) use json::read_bytes;
pub use merge::merge;
pub use processor::{ImageProcessorConfig, PatchLayout, Resample};
pub use scan::{NonFinite, non_finite};
pub use weights::{Checkpoint, FileDtype, TensorView, parse_index};
