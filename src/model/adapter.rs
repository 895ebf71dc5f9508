//! LoRA adapters on a backend, looked up by block and projection.

use super::weights::host_tensor;
use crate::backend::{Backend, LoraRows};
use crate::error::{Error, Result};
use crate::format::TensorView;
use crate::format::adapter::{Adapter as AdapterFile, canonical_module};
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
pub(super) struct Pair {
    pub(super) a: Tensor, // [R, K]
    pub(super) b: Tensor, // [N, R]
    scale: f32,
}

/// An adapter of a decoder. Its matrices are as precise as the backend has them: they are small.
#[derive(Debug)]
pub struct Adapter {
    pub(super) pairs: Vec<[Option<Pair>; 7]>, // L
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
        let mut adapter = Adapter::empty(config);
        let dtype = backend.matrix(Dtype::F32);
        for (module, pair) in file.pairs() {
            let slot = adapter.slot(config, module, &pair.module, pair.a.shape(), pair.b.shape());
            let slot = slot.map_err(|what| pair.a.fault(what))?;
            let upload = |view: &TensorView| backend.upload(host_tensor(view, dtype)?);
            *slot = Some(Pair { a: upload(&pair.a)?, b: upload(&pair.b)?, scale: pair.scale as f32 });
        }
        Ok(adapter)
    }

    /// An adapter of these modules, each with its A, its B and its scale; host tensors in any float dtype.
    pub fn new<'a>(
        backend: &dyn Backend,
        config: &DecoderConfig,
        pairs: impl IntoIterator<Item = (&'a str, &'a Tensor, &'a Tensor, f64)>,
    ) -> Result<Self> {
        let mut adapter = Adapter::empty(config);
        let dtype = backend.matrix(Dtype::F32);
        for (module, a, b, scale) in pairs {
            let slot = adapter.slot(config, canonical_module(module), module, a.shape(), b.shape());
            let slot = slot.map_err(|what| Error::caller("adapter", what))?;
            // Copies: a trainer writes to them.
            let upload = |host: &Tensor| backend.upload(host.copied(dtype)?);
            *slot = Some(Pair { a: upload(a)?, b: upload(b)?, scale: scale as f32 });
        }
        Ok(adapter)
    }

    /// Room for another adapter of the same shapes; its contents are unspecified.
    pub fn like(&self, backend: &dyn Backend) -> Result<Self> {
        let pair = |pair: &Pair| -> Result<Pair> {
            let room = |tensor: &Tensor| backend.alloc(tensor.dtype(), tensor.shape());
            Ok(Pair { a: room(&pair.a)?, b: room(&pair.b)?, scale: pair.scale })
        };
        let mut like = Adapter { pairs: (0..self.pairs.len()).map(|_| Default::default()).collect() };
        for (to, from) in like.pairs.iter_mut().flatten().zip(self.pairs.iter().flatten()) {
            *to = from.as_ref().map(pair).transpose()?;
        }
        Ok(like)
    }

    /// Every A and B, block by block, linear by linear.
    pub fn tensors_mut(&mut self) -> Vec<&mut Tensor> {
        self.pairs.iter_mut().flatten().flatten().flat_map(|Pair { a, b, .. }| [a, b]).collect()
    }

    fn empty(config: &DecoderConfig) -> Self {
        Adapter { pairs: (0..config.layers).map(|_| Default::default()).collect() }
    }

    /// The place of a module's pair of these shapes, or why it has none. `path` is the module's name for people.
    fn slot(
        &mut self,
        config: &DecoderConfig,
        module: &str,
        path: &str,
        a: &[usize],
        b: &[usize],
    ) -> Result<&mut Option<Pair>, String> {
        let Some((layer, projection)) = place(module) else {
            return Err(format!(
                "{path} is not a linear of the decoder; only those can carry an adapter here"
            ));
        };
        let (outputs, inputs) = projection.shape(config);
        let rank = a.first().copied().unwrap_or(0);
        if a != [rank, inputs] || b != [outputs, rank] {
            return Err(format!(
                "lora_A {a:?} and lora_B {b:?} do not fit a linear of {inputs} inputs and {outputs} outputs; \
                 the adapter was made for another model"
            ));
        }
        let slot = self.pairs.get_mut(layer).map(|block| &mut block[projection as usize]);
        slot.ok_or_else(|| format!("block {layer} of a model with {} blocks", config.layers))
    }
}

/// The linears of a decoder block: paths below the block, and their shapes `[N, K]`.
pub fn linears(config: &DecoderConfig) -> [(&'static str, [usize; 2]); 7] {
    Projection::ALL.map(|projection| {
        let (outputs, inputs) = projection.shape(config);
        (projection.module(), [outputs, inputs])
    })
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
