//! What running a model takes, from its configuration and the types in its files, before anything runs.

use super::cache::{PAGE, bytes_per_position, pages_for};
use super::decoder::workspace_bytes_per_row;
use crate::error::{Error, Result};
use crate::format::config::DecoderConfig;
use crate::format::{Checkpoint, FileDtype};
use crate::tensor::Dtype;

/// Bytes a model takes on a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Weights used where they lie in the mapped file; none on a device.
    pub mapped: u64,
    /// Weights the backend holds itself.
    pub held: u64,
    /// The dtype of those.
    pub held_dtype: Dtype,
    /// The dtype of keys and values.
    pub kv_dtype: Dtype,
    /// Keys and values of one token.
    pub kv_per_token: u64,
    /// Keys and values of all pages.
    pub kv: u64,
    /// Activations of the decoder in one pass.
    pub workspace: u64,
}

impl MemoryPlan {
    /// What it takes to hold `positions` tokens in pages and to run `rows` of them in one pass, where activations
    /// have this dtype.
    pub fn new(
        decoder: &DecoderConfig,
        checkpoint: &Checkpoint,
        activation: Dtype,
        positions: usize,
        rows: usize,
    ) -> Self {
        let device = activation == Dtype::BF16;
        // As the loader has it: on the CPU f32 and matrices in bf16 are used where they lie, all else becomes f32.
        let (mut mapped, mut held) = (0, 0);
        for view in checkpoint.views() {
            let in_place = match view.dtype() {
                FileDtype::F32 => true,
                FileDtype::BF16 => view.shape().len() > 1,
                _ => false,
            };
            match !device && in_place {
                true => mapped += view.bytes().len() as u64,
                false => held += (view.elements() * activation.size()) as u64,
            }
        }
        let embedding = checkpoint.views().find(|view| view.name().contains("embed_tokens."));
        let narrow = device || embedding.is_some_and(|view| view.dtype() == FileDtype::BF16);
        let kv_dtype = if narrow { Dtype::BF16 } else { activation };
        let kv_per_token = bytes_per_position(decoder, kv_dtype) as u64;
        MemoryPlan {
            mapped,
            held,
            held_dtype: activation,
            kv_dtype,
            kv_per_token,
            kv: kv_per_token * (pages_for(positions) * PAGE) as u64,
            workspace: (workspace_bytes_per_row(decoder, activation) * rows) as u64,
        }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.mapped + self.held + self.kv + self.workspace
    }

    /// Refuses what `free` bytes do not hold.
    pub fn check(&self, free: u64) -> Result<()> {
        let needed = self.total() - self.mapped;
        if needed <= free {
            return Ok(());
        }
        let what = format!(
            "{needed} bytes are needed ({} of weights, {} of keys and values, {} of work space) and {free} are free; \
             use fewer tokens or sequences, or a smaller model",
            self.held, self.kv, self.workspace
        );
        Err(Error::machine("memory", what))
    }
}
