//! LoRA adapters on a backend, looked up by block and projection.

use super::weights::host_tensor;
use crate::backend::{Backend, LoraRows};
use crate::error::{Error, Result};
use crate::format::TensorView;
use crate::format::adapter::Adapter as AdapterFile;
use crate::format::config::DecoderConfig;
use crate::tensor::{Dtype, Tensor};
use std::ops::Range;

/// The seven linears of a decoder block, in PEFT's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Projection {
    Query,
    Key,
    Value,
    Output,
    Gate,
    Up,
    Down,
}

impl Projection {
    pub(crate) const ALL: [Projection; 7] = [
        Projection::Query,
        Projection::Key,
        Projection::Value,
        Projection::Output,
        Projection::Gate,
        Projection::Up,
        Projection::Down,
    ];

    /// The module's path inside a block.
    pub(crate) fn module(self) -> &'static str {
        match self {
            Projection::Query => "self_attn.q_proj",
            Projection::Key => "self_attn.k_proj",
            Projection::Value => "self_attn.v_proj",
            Projection::Output => "self_attn.o_proj",
            Projection::Gate => "mlp.gate_proj",
            Projection::Up => "mlp.up_proj",
            Projection::Down => "mlp.down_proj",
        }
    }

    /// (outputs, inputs)
    pub(crate) fn shape(self, config: &DecoderConfig) -> (usize, usize) {
        let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        match self {
            Projection::Query => (queries, config.hidden),
            Projection::Key | Projection::Value => (keys, config.hidden),
            Projection::Output => (config.hidden, queries),
            Projection::Gate | Projection::Up => (config.ffn, config.hidden),
            Projection::Down => (config.hidden, config.ffn),
        }
    }
}

/// One low-rank pair.
#[derive(Debug)]
struct Pair {
    a: Tensor, // [R, K]
    b: Tensor, // [N, R]
    scale: f32,
}

/// An adapter of a decoder. Its matrices are as precise as the backend has them: they are small.
#[derive(Debug)]
pub struct Adapter {
    pairs: Vec<[Option<Pair>; 7]>, // L
}

/// An adapter and the packed rows it serves.
#[derive(Debug, Clone)]
pub struct AdapterRows<'a> {
    /// Rows of the packed input.
    pub rows: Range<usize>,
    /// The adapter.
    pub adapter: &'a Adapter,
}

impl Adapter {
    /// Brings a PEFT adapter to the backend; every pair must fit a linear of the decoder.
    pub fn load(backend: &dyn Backend, config: &DecoderConfig, file: &AdapterFile) -> Result<Self> {
        let mut pairs: Vec<[Option<Pair>; 7]> = (0..config.layers).map(|_| Default::default()).collect();
        let dtype = backend.matrix(Dtype::F32);
        for (module, pair) in file.pairs() {
            let refuse = |what: String| Err(pair.a.fault(what));
            let Some((layer, projection)) = place(module) else {
                return refuse(format!(
                    "{} is not a linear of the decoder; only those can carry an adapter here",
                    pair.module
                ));
            };
            let Some(slot) = pairs.get_mut(layer).map(|block| &mut block[projection as usize]) else {
                return refuse(format!("block {layer} of a model with {} blocks", config.layers));
            };
            let (outputs, inputs) = projection.shape(config);
            let rank = pair.a.shape().first().copied().unwrap_or(0);
            if pair.a.shape() != [rank, inputs] || pair.b.shape() != [outputs, rank] {
                return refuse(format!(
                    "lora_A {:?} and lora_B {:?} do not fit a linear of {inputs} inputs and {outputs} outputs; \
                     the adapter was made for another model",
                    pair.a.shape(),
                    pair.b.shape()
                ));
            }
            let upload = |view: &TensorView| backend.upload(host_tensor(view, dtype)?);
            *slot = Some(Pair { a: upload(&pair.a)?, b: upload(&pair.b)?, scale: pair.scale as f32 });
        }
        Ok(Adapter { pairs })
    }
}

/// The adapters' pairs for one linear.
pub(crate) fn lora_rows<'a>(
    adapters: &[AdapterRows<'a>],
    layer: usize,
    projection: Projection,
) -> Vec<LoraRows<'a>> {
    let rows = adapters.iter().filter_map(|entry| {
        let pair = entry.adapter.pairs.get(layer)?[projection as usize].as_ref()?;
        Some(LoraRows { rows: entry.rows.clone(), a: &pair.a, b: &pair.b, scale: pair.scale })
    });
    rows.collect()
}

/// `layers.3.mlp.up_proj` -> (3, Up)
fn place(module: &str) -> Option<(usize, Projection)> {
    let (layer, path) = module.strip_prefix("layers.")?.split_once('.')?;
    let projection = Projection::ALL.into_iter().find(|projection| projection.module() == path)?;
    Some((layer.parse().ok()?, projection))
}

/// An adapter whose rows do not lie in the batch is the caller's mistake.
pub(crate) fn check_rows(adapters: &[AdapterRows<'_>], config: &DecoderConfig, rows: usize) -> Result<()> {
    for entry in adapters {
        if entry.rows.end > rows || entry.adapter.pairs.len() != config.layers {
            return Err(Error::internal(
                "adapter",
                format!(
                    "rows {:?} of {rows}, {} blocks of {}",
                    entry.rows,
                    entry.adapter.pairs.len(),
                    config.layers
                ),
            ));
        }
    }
    Ok(())
}
