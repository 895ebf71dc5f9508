//! The memory that running a model takes on the CPU, from its configuration and the types in its files.

use super::model::part_of;
use crate::cli::text::bytes;
use pellucid::{
    engine::PREFILL_CHUNK,
    format::{Checkpoint, FileDtype, config::DecoderConfig},
    model::{PAGE, bytes_per_position, pages_for, workspace_bytes_per_row},
    tensor::Dtype,
};
use serde::Serialize;

/// What running the model takes on the CPU.
#[derive(Debug, Serialize)]
pub(super) struct Memory {
    /// Weights used where they lie in the mapped file.
    mapped_bytes: u64,
    /// Weights converted to another type when the model is loaded.
    converted_bytes: u64,
    kv_dtype: &'static str,
    kv_bytes_per_token: u64,
    context: usize,
    kv_bytes: u64,
    /// Activations of the decoder while it reads a prompt.
    workspace_bytes: u64,
}

impl Memory {
    pub(super) fn plan(decoder: &DecoderConfig, checkpoint: &Checkpoint, context: usize) -> Self {
        // As the loader has it: f32 and matrices in bf16 are used where they lie, all else becomes f32.
        let (mut mapped, mut converted) = (0, 0);
        for view in checkpoint.views() {
            match view.dtype() {
                FileDtype::F32 => mapped += view.bytes().len() as u64,
                FileDtype::BF16 if view.shape().len() > 1 => mapped += view.bytes().len() as u64,
                _ => converted += 4 * view.elements() as u64,
            }
        }
        let mut embeddings = checkpoint.views().filter(|view| part_of(view.name()) == "embedding");
        let bf16 = embeddings.any(|view| view.dtype() == FileDtype::BF16);
        let kv_dtype = if bf16 { Dtype::BF16 } else { Dtype::F32 };
        let per_token = bytes_per_position(decoder, kv_dtype) as u64;
        Memory {
            mapped_bytes: mapped,
            converted_bytes: converted,
            kv_dtype: kv_dtype.name(),
            kv_bytes_per_token: per_token,
            context,
            kv_bytes: per_token * (pages_for(context) * PAGE) as u64,
            workspace_bytes: (workspace_bytes_per_row(decoder, Dtype::F32) * PREFILL_CHUNK.min(context))
                as u64,
        }
    }

    fn total(&self) -> u64 {
        self.mapped_bytes + self.converted_bytes + self.kv_bytes + self.workspace_bytes
    }

    /// For people.
    pub(super) fn lines(&self, max_positions: usize) -> Vec<String> {
        let Memory { context, kv_dtype, .. } = self;
        let mut lines = vec![
            format!("{:>11} weights, used where they lie in the file", bytes(self.mapped_bytes)),
            format!("{:>11} weights, converted to f32 when loaded", bytes(self.converted_bytes)),
            format!(
                "{:>11} keys and values in {kv_dtype} for {context} tokens, {} each",
                bytes(self.kv_bytes),
                bytes(self.kv_bytes_per_token)
            ),
            format!("{:>11} work space of the decoder", bytes(self.workspace_bytes)),
            format!("{:>11} together", bytes(self.total())),
        ];
        if *context > max_positions {
            lines.push(format!("the model was made for {max_positions} tokens, not for {context}"));
        }
        lines
    }
}
