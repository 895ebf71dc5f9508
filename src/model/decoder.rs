//! One decoder, a stack of one block with toggles: Qwen2, Qwen2.5, Qwen3, Llama and the language half of the
//! vision models differ in biases, per-head norms and the rotary frequencies, and in nothing else.

mod parameters;
mod train;

pub use train::{Slopes, TrainWorkspace, kept_block_bytes, train_bytes};

use super::adapter::{AdapterRows, Projection, check_rows, lora_rows};
use super::cache::KvCache;
use super::packed::{Packed, Run, place_images};
use super::positions::{axes, decoder_rope};
use super::recorded::Recordings;
use super::weights::{Bias, LinearWeights, Loader, Origin};
use crate::backend::{Activation, Backend, Draw, Drawn, Epilogue, Linear, LogProbs, Recorder, Rope};
use crate::error::{Error, Result};
use crate::format::config::DecoderConfig;
use crate::tensor::{Dtype, Tensor};
use std::array::from_fn;

/// The weights of a decoder.
#[derive(Debug)]
pub struct Decoder {
    config: DecoderConfig,
    /// What the names of its tensors begin with in the checkpoint, and what an untied head is called there.
    prefix: String,
    head_name: String,
    pub(super) embedding: Tensor, // [V, C]
    pub(super) blocks: Vec<Block>,
    pub(super) norm: Tensor, // [C]
    /// None where the head is the embedding.
    pub(super) head: Option<Tensor>, // [V, C]
    rope: Rope,
}

#[derive(Debug)]
pub(super) struct Block {
    pub(super) attention_norm: Tensor,               // [C]
    pub(super) head_norms: Option<(Tensor, Tensor)>, // queries [D], keys [D]
    pub(super) ffn_norm: Tensor,                     // [C]
    pub(super) linears: [LinearWeights; 7],          // by Projection
}

/// Activations of one forward pass; kept between passes so that decoding does not allocate.
#[derive(Debug)]
pub struct Workspace {
    hidden: Tensor,   // [T, C] the residual stream
    normed: Tensor,   // [T, C]
    queries: Tensor,  // [T, H, D]
    keys: Tensor,     // [T, G, D]
    values: Tensor,   // [T, G, D]
    raw: [Tensor; 2], // queries and keys before their norms, where they have such
    attended: Tensor, // [T, H, D]
    gated: Tensor,    // [T, F]
    seats: Tensor,    // i32 [S]
    /// Passes that wrote here and can be done again.
    pub(super) recordings: Recordings,
}

impl Decoder {
    /// Loads the decoder whose tensor names begin with `prefix`; `head_name` names an untied head.
    pub(crate) fn load(
        loader: &Loader<'_>,
        config: &DecoderConfig,
        prefix: &str,
        head_name: &str,
    ) -> Result<Self> {
        let (hidden, vocab) = (config.hidden, config.vocab);
        let head_weight = format!("{head_name}.weight");
        // A head in the file has the last word over what the config says about tying.
        let head = match loader.contains(&head_weight) || !config.tied_head {
            true => Some(loader.matrix(&head_weight, &[vocab, hidden])?),
            false => None,
        };
        let blocks =
            (0..config.layers).map(|layer| Block::load(loader, config, &format!("{prefix}layers.{layer}")));
        Ok(Decoder {
            embedding: loader.matrix(&format!("{prefix}embed_tokens.weight"), &[vocab, hidden])?,
            blocks: blocks.collect::<Result<_>>()?,
            norm: loader.vector(&format!("{prefix}norm.weight"), hidden)?,
            head,
            rope: decoder_rope(loader.backend, config)?,
            config: config.clone(),
            prefix: prefix.to_owned(),
            head_name: head_name.to_owned(),
        })
    }

    /// A decoder whose tensors are made rather than read: `make` gives each on the host, by its name and shape.
    pub fn made(
        backend: &dyn Backend,
        config: &DecoderConfig,
        make: &dyn Fn(&str, &[usize]) -> Result<Tensor>,
    ) -> Result<Self> {
        let loader = Loader { origin: Origin::Made(make), backend, dtype: None };
        Decoder::load(&loader, config, "model.", "lm_head")
    }

    /// The shape of the decoder.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The dtype its key/value cache has on `backend`: bf16 where its weights are bf16, the activation dtype
    /// otherwise.
    pub fn cache_dtype(&self, backend: &dyn Backend) -> Dtype {
        match self.embedding.dtype() {
            Dtype::BF16 => Dtype::BF16,
            _ => backend.activation(),
        }
    }

    /// Lays runs out for this decoder.
    pub fn pack(&self, backend: &dyn Backend, runs: &[Run<'_>]) -> Result<Packed> {
        self.check_tokens(runs)?;
        Packed::build(backend, runs, axes(&self.config))
    }

    pub(super) fn check_tokens<'r>(&self, runs: impl IntoIterator<Item = &'r Run<'r>>) -> Result<()> {
        let vocab = self.config.vocab;
        if let Some(token) =
            runs.into_iter().flat_map(|run| run.tokens).find(|&&token| token as usize >= vocab)
        {
            return Err(Error::caller(
                "forward",
                format!("token id {token} is not below the vocabulary of {vocab}"),
            ));
        }
        Ok(())
    }

    /// Work space for this decoder.
    pub fn workspace(&self, backend: &dyn Backend) -> Result<Workspace> {
        let empty = || backend.alloc(backend.activation(), &[0]);
        Ok(Workspace {
            hidden: empty()?,
            normed: empty()?,
            queries: empty()?,
            keys: empty()?,
            values: empty()?,
            raw: [empty()?, empty()?],
            attended: empty()?,
            gated: empty()?,
            seats: backend.alloc(Dtype::I32, &[0])?,
            recordings: Recordings::default(),
        })
    }

    /// Runs all blocks over `runs`, appending to the cache, and returns the normed output `[T, C]`.
    pub fn forward<'w>(
        &self,
        backend: &dyn Backend,
        runs: &[Run<'_>],
        adapters: &[AdapterRows<'_>],
        cache: &mut KvCache,
        work: &'w mut Workspace,
    ) -> Result<&'w Tensor> {
        let packed = self.pack(backend, runs)?;
        check_rows(adapters, &self.config, packed.rows)?;
        work.fit(backend, &self.config, packed.rows)?;
        if runs.iter().any(|run| run.seat.is_some()) {
            recorder(backend)?.take_seats(&packed.tokens, &work.seats)?;
        }
        self.walk(backend, runs, &packed, adapters, cache, work)?;
        Ok(&work.normed)
    }

    /// From token ids to the normed output.
    pub(super) fn walk(
        &self,
        backend: &dyn Backend,
        runs: &[Run<'_>],
        packed: &Packed,
        adapters: &[AdapterRows<'_>],
        cache: &mut KvCache,
        work: &mut Workspace,
    ) -> Result<()> {
        backend.gather_rows(&mut work.hidden, &self.embedding, &packed.tokens)?;
        place_images(backend, &mut work.hidden, runs)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            self.attend(backend, layer, block, packed, adapters, cache, work)?;
            self.transform(backend, layer, block, adapters, work)?;
        }
        backend.rms_norm(&mut work.normed, &work.hidden, &self.norm, self.config.rms_eps as f32)
    }

    /// hidden += attention(norm(hidden))
    #[expect(clippy::too_many_arguments, reason = "one block's inputs")]
    fn attend(
        &self,
        backend: &dyn Backend,
        layer: usize,
        block: &Block,
        packed: &Packed,
        adapters: &[AdapterRows<'_>],
        cache: &mut KvCache,
        work: &mut Workspace,
    ) -> Result<()> {
        self.project(backend, layer, block, &packed.positions, adapters, work)?;
        let (k_pool, v_pool) = (&mut cache.keys[layer], &mut cache.values[layer]);
        backend.kv_append(k_pool, v_pool, &work.keys, &work.values, &packed.slots)?;
        let (pages, scale) = (packed.pages(), self.attention_scale());
        backend.paged_attention(&mut work.attended, None, &work.queries, k_pool, v_pool, &pages, scale)?;
        let lora = lora_rows(adapters, layer, Projection::Output);
        let output = block.linear(Projection::Output).with(&lora);
        backend.linear(&mut work.hidden, &work.attended, &output, Epilogue::Add)
    }

    /// Queries, keys and values of norm(hidden), normed by head and turned to their positions.
    fn project(
        &self,
        backend: &dyn Backend,
        layer: usize,
        block: &Block,
        positions: &Tensor,
        adapters: &[AdapterRows<'_>],
        work: &mut Workspace,
    ) -> Result<()> {
        let eps = self.config.rms_eps as f32;
        backend.rms_norm(&mut work.normed, &work.hidden, &block.attention_norm, eps)?;
        let projections = [Projection::Query, Projection::Key, Projection::Value];
        let lora = projections.map(|projection| lora_rows(adapters, layer, projection));
        let linears: [_; 3] = from_fn(|at| block.linear(projections[at]).with(&lora[at]));
        let outs = &mut [&mut work.queries, &mut work.keys, &mut work.values];
        backend.linears(outs, &work.normed, &linears)?;
        if let Some((queries, keys)) = &block.head_norms {
            let [raw_queries, raw_keys] = &mut work.raw;
            let both = [(queries, &mut work.queries, raw_queries), (keys, &mut work.keys, raw_keys)];
            for (weight, states, raw) in both {
                backend.fit(raw, states.shape())?;
                std::mem::swap(raw, states);
                backend.rms_norm(states, raw, weight, eps)?;
            }
        }
        backend.rope(&mut work.queries, positions, &self.rope, false)?;
        backend.rope(&mut work.keys, positions, &self.rope, false)
    }

    fn attention_scale(&self) -> f32 {
        (self.config.head_dim as f32).powf(-0.5)
    }

    /// hidden += down(silu(gate(norm(hidden))) * up(norm(hidden)))
    fn transform(
        &self,
        backend: &dyn Backend,
        layer: usize,
        block: &Block,
        adapters: &[AdapterRows<'_>],
        work: &mut Workspace,
    ) -> Result<()> {
        backend.rms_norm(&mut work.normed, &work.hidden, &block.ffn_norm, self.config.rms_eps as f32)?;
        let [gate, up, down] = [Projection::Gate, Projection::Up, Projection::Down];
        let (gate_lora, up_lora) = (lora_rows(adapters, layer, gate), lora_rows(adapters, layer, up));
        let (gate, up) = (block.linear(gate).with(&gate_lora), block.linear(up).with(&up_lora));
        backend.gated_linear(&mut work.gated, &work.normed, &gate, &up, Activation::Silu)?;
        let lora = lora_rows(adapters, layer, down);
        backend.linear(&mut work.hidden, &work.gated, &block.linear(down).with(&lora), Epilogue::Add)
    }

    /// The head's weight `[V, C]`.
    pub fn head(&self) -> &Tensor {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// Rows `rows` of the normed output, `[rows, C]`.
    pub fn rows(&self, backend: &dyn Backend, normed: &Tensor, rows: &[usize]) -> Result<Tensor> {
        let index: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
        let index = backend.upload(Tensor::from_slice(&[rows.len()], &index)?)?;
        let mut out = backend.alloc(normed.dtype(), &[rows.len(), normed.row_len()])?;
        backend.gather_rows(&mut out, normed, &index)?;
        Ok(out)
    }

    /// Logits `[B, V]` of normed rows `[B, C]`.
    pub fn logits(&self, backend: &dyn Backend, normed: &Tensor) -> Result<Tensor> {
        let mut out = backend.alloc(backend.statistic(), &[normed.rows(), self.config.vocab])?;
        let head = Linear { weight: self.head(), bias: None, lora: &[] };
        backend.linear(&mut out, normed, &head, Epilogue::Store)?;
        Ok(out)
    }

    /// Log-probs of `targets` after normed rows `[T, C]`.
    pub fn logprobs(
        &self,
        backend: &dyn Backend,
        normed: &Tensor,
        targets: &[u32],
        temperature: f32,
    ) -> Result<LogProbs> {
        let targets: Vec<i32> = targets.iter().map(|&token| token as i32).collect();
        let targets = backend.upload(Tensor::from_slice(&[targets.len()], &targets)?)?;
        self.scores(backend, normed, &targets, temperature)
    }

    /// As [`Decoder::logprobs`], of targets that are on the backend, i32 `[T]`.
    pub fn scores(
        &self,
        backend: &dyn Backend,
        normed: &Tensor,
        targets: &Tensor,
        temperature: f32,
    ) -> Result<LogProbs> {
        let count = targets.len();
        let float = || backend.alloc(backend.statistic(), &[count]);
        let mut out = LogProbs {
            logp: float()?,
            lse: float()?,
            entropy: float()?,
            greedy: backend.alloc(Dtype::I32, &[count])?,
        };
        backend.logprobs(&mut out, normed, self.head(), targets, temperature)?;
        Ok(out)
    }

    /// Keeps what was drawn in seats, one for each draw.
    pub fn keep_seats(
        &self,
        backend: &dyn Backend,
        drawn: &Drawn,
        seats: &[u32],
        work: &mut Workspace,
    ) -> Result<()> {
        let seats: Vec<i32> = seats.iter().map(|&seat| seat as i32).collect();
        let seats = backend.upload(Tensor::from_slice(&[seats.len()], &seats)?)?;
        recorder(backend)?.keep_seats(&work.seats, &seats, &drawn.token)
    }

    /// Draws a token after each of the normed rows `[B, C]`, with the entropy of what it is drawn from if asked to.
    pub fn sample(
        &self,
        backend: &dyn Backend,
        normed: &Tensor,
        draws: &[Draw<'_>],
        entropy: bool,
    ) -> Result<Drawn> {
        let mut out = Drawn::alloc(backend, draws.len(), entropy)?;
        backend.sample(&mut out, normed, self.head(), draws)?;
        Ok(out)
    }
}

impl Block {
    fn load(loader: &Loader<'_>, config: &DecoderConfig, prefix: &str) -> Result<Self> {
        let linear = |projection: Projection| {
            let (outputs, inputs) = projection.shape(config);
            let bias = match projection {
                Projection::Query | Projection::Key | Projection::Value => config.qkv_bias,
                Projection::Output => config.attention_out_bias,
                Projection::Gate | Projection::Up | Projection::Down => config.mlp_bias,
            };
            loader.linear(&format!("{prefix}.{}", projection.module()), outputs, inputs, Bias::from(bias))
        };
        let linears = Projection::ALL.into_iter().map(linear).collect::<Result<Vec<_>>>()?;
        let vector = |name: &str, length| loader.vector(&format!("{prefix}.{name}.weight"), length);
        let head_norms = match config.qk_norm {
            true => Some((
                vector("self_attn.q_norm", config.head_dim)?,
                vector("self_attn.k_norm", config.head_dim)?,
            )),
            false => None,
        };
        Ok(Block {
            attention_norm: vector("input_layernorm", config.hidden)?,
            head_norms,
            ffn_norm: vector("post_attention_layernorm", config.hidden)?,
            linears: linears.try_into().map_err(|_| Error::internal("load", "a block has seven linears"))?,
        })
    }

    pub(super) fn linear(&self, projection: Projection) -> &LinearWeights {
        &self.linears[projection as usize]
    }
}

/// What decodes by itself on a backend that does.
pub(super) fn recorder(backend: &dyn Backend) -> Result<&dyn Recorder> {
    let refusal = || Error::internal("decode", format!("{} does not decode by itself", backend.describe()));
    backend.recorder().ok_or_else(refusal)
}

/// Bytes of a [`Workspace`] per row of activations in `dtype`.
pub fn workspace_bytes_per_row(config: &DecoderConfig, dtype: Dtype) -> usize {
    let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let raw = if config.qk_norm { queries + keys } else { 0 };
    let widths = [2 * config.hidden, 2 * queries, 2 * keys, raw, config.ffn];
    widths.iter().sum::<usize>() * dtype.size()
}

impl Workspace {
    /// Makes room for so many seats: where a device that decodes by itself keeps the last token that each sequence has
    /// drawn, until a pass of it begins that may be laid out before the host has seen the token. What they held is lost.
    pub fn reserve_seats(&mut self, backend: &dyn Backend, seats: usize) -> Result<()> {
        backend.fit(&mut self.seats, &[seats])
    }

    /// See [`Workspace::reserve_seats`]; i32 `[S]`.
    pub(super) fn seats(&self) -> &Tensor {
        &self.seats
    }

    /// The normed output `[T, C]` of the last pass.
    pub fn normed(&self) -> &Tensor {
        &self.normed
    }

    /// Where its tensors are on a device, whichever of them is which: blocks swap some.
    pub(super) fn places(&self) -> [Option<u64>; 10] {
        let Workspace { hidden, normed, queries, keys, values, raw: [q, k], attended, gated, seats, .. } =
            self;
        let all = [hidden, normed, queries, keys, values, q, k, attended, gated, seats];
        let mut places = all.map(Tensor::device_address);
        places.sort_unstable();
        places
    }

    pub(super) fn fit(&mut self, backend: &dyn Backend, config: &DecoderConfig, rows: usize) -> Result<()> {
        let (heads, kv_heads, width) = (config.heads, config.kv_heads, config.head_dim);
        backend.fit(&mut self.hidden, &[rows, config.hidden])?;
        backend.fit(&mut self.normed, &[rows, config.hidden])?;
        backend.fit(&mut self.queries, &[rows, heads, width])?;
        if config.qk_norm {
            // Blocks swap these with the normed ones, so they have to be as large before the first does.
            backend.fit(&mut self.raw[0], &[rows, heads, width])?;
            backend.fit(&mut self.raw[1], &[rows, kv_heads, width])?;
        }
        backend.fit(&mut self.keys, &[rows, kv_heads, width])?;
        backend.fit(&mut self.values, &[rows, kv_heads, width])?;
        backend.fit(&mut self.attended, &[rows, heads, width])?;
        backend.fit(&mut self.gated, &[rows, config.ffn])
    }
}
