//! The decoder learning: a pass over packed passages that keeps what each block began with, and the walk back, which
//! computes each block again before it goes through it.
//!
//! The pass forward is the engine's, op for op, but for attention over the passages' own rows in place of pages; keys
//! and values are rounded as the cache rounds them. So its log-probs are the engine's, bit for bit.

use super::{Block, Decoder, Workspace};
use crate::backend::{Activation, AttentionGrads, Backend, Epilogue, LinearGrads};
use crate::error::{Error, Result};
use crate::format::config::DecoderConfig;
use crate::model::adapter::{Adapter, AdapterRows, Projection, lora_rows};
use crate::model::gradients::{BlockGradients, Gradients};
use crate::model::passages::{Passage, Passages, place};
use crate::tensor::{Dtype, Tensor};

/// Activations of a training pass and their gradients, kept between passes.
#[derive(Debug)]
pub struct TrainWorkspace {
    forward: Workspace,
    /// What every block began with.
    inputs: Vec<Tensor>, // L of [T, C]
    /// Keys and values as the cache would hold them, where that is another dtype.
    cached: [Tensor; 2], // [T, G, 1, D]
    lse: Tensor,  // [T, H]
    gate: Tensor, // [T, F] and, on the way back, its gradient
    up: Tensor,   // [T, F] and its gradient
    /// Gradients of the residual stream, of normed rows, and of what their names say.
    stream: Tensor, // [T, C]
    normed: Tensor, // [T, C]
    states: AttentionGrads,
    raw: [Tensor; 2], // [T, H, D], [T, G, D]
    attended: Tensor, // [T, H, D]
    gated: Tensor,    // [T, F]
    /// Gradients of normed rows, summed over the targets they predict.
    summed: Tensor, // [T, C] statistic
    /// Gradients of the image features, where the embedding is trained.
    images: Tensor, // [·, C]
    /// Of the first blocks, as many as are to be kept.
    kept: Vec<Kept>,
}

/// What a block's attention came to, kept for the way back in place of being computed again.
#[derive(Debug)]
struct Kept {
    hidden: Tensor,   // [T, C] behind the attention
    queries: Tensor,  // [T, H, D]
    keys: Tensor,     // [T, G, D]
    values: Tensor,   // [T, G, D]
    raw: [Tensor; 2], // as in a Workspace
    attended: Tensor, // [T, H, D]
    lse: Tensor,      // [T, H]
}

impl Kept {
    fn new(backend: &dyn Backend) -> Result<Self> {
        let empty = || backend.alloc(backend.activation(), &[0]);
        Ok(Kept {
            hidden: empty()?,
            queries: empty()?,
            keys: empty()?,
            values: empty()?,
            raw: [empty()?, empty()?],
            attended: empty()?,
            lse: backend.alloc(backend.statistic(), &[0])?,
        })
    }

    /// Changes places with what a pass holds, but for the residual stream.
    fn swap(&mut self, forward: &mut Workspace, lse: &mut Tensor) {
        std::mem::swap(&mut self.queries, &mut forward.queries);
        std::mem::swap(&mut self.keys, &mut forward.keys);
        std::mem::swap(&mut self.values, &mut forward.values);
        std::mem::swap(&mut self.raw, &mut forward.raw);
        std::mem::swap(&mut self.attended, &mut forward.attended);
        std::mem::swap(&mut self.lse, lse);
    }

    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let Kept { hidden, queries, keys, values, raw, attended, lse } = self;
        [hidden, queries, keys, values, attended, lse].into_iter().chain(raw)
    }
}

/// Bytes that keeping a block takes on top of [`train_bytes`].
pub fn kept_block_bytes(config: &DecoderConfig, dtype: Dtype, rows: usize) -> usize {
    let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let raw = if config.qk_norm { queries + keys } else { 0 };
    let statistic = if dtype == Dtype::F64 { 8 } else { 4 };
    rows * ((config.hidden + 2 * queries + 2 * keys + raw) * dtype.size() + config.heads * statistic)
}

/// Bytes of a [`TrainWorkspace`] for `rows` tokens with activations in `dtype`.
pub fn train_bytes(config: &DecoderConfig, dtype: Dtype, cache: Dtype, rows: usize) -> usize {
    let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let raw = if config.qk_norm { queries + keys } else { 0 };
    let forward = super::workspace_bytes_per_row(config, dtype);
    let inputs = config.layers * config.hidden;
    let back = 2 * config.hidden + 2 * queries + 2 * keys + raw + 3 * config.ffn;
    let statistic = if dtype == Dtype::F64 { 8 } else { 4 };
    let cached = if cache == dtype { 0 } else { 2 * keys * cache.size() };
    let per_row =
        forward + (inputs + back) * dtype.size() + cached + (config.hidden + config.heads) * statistic;
    per_row * rows
}

impl TrainWorkspace {
    /// Room for nothing yet. Of `kept` blocks attention is not computed again on the way back.
    pub fn new(backend: &dyn Backend, decoder: &Decoder, kept: usize) -> Result<Self> {
        let empty = || backend.alloc(backend.activation(), &[0]);
        let cached = || backend.alloc(decoder.cache_dtype(backend), &[0]);
        Ok(TrainWorkspace {
            forward: decoder.workspace(backend)?,
            inputs: (0..decoder.config.layers).map(|_| empty()).collect::<Result<_>>()?,
            cached: [cached()?, cached()?],
            lse: backend.alloc(backend.statistic(), &[0])?,
            gate: empty()?,
            up: empty()?,
            stream: empty()?,
            normed: empty()?,
            states: AttentionGrads { dq: empty()?, dk: empty()?, dv: empty()? },
            raw: [empty()?, empty()?],
            attended: empty()?,
            gated: empty()?,
            summed: backend.alloc(backend.statistic(), &[0])?,
            images: empty()?,
            kept: (0..kept.min(decoder.config.layers)).map(|_| Kept::new(backend)).collect::<Result<_>>()?,
        })
    }

    /// Gradients `[·, C]` of the image features a walk back has met, passage by passage, image by image; of walks in
    /// which the embedding is trained.
    pub fn images(&self) -> &Tensor {
        &self.images
    }

    /// Tokens it has room for.
    pub fn rows(&self) -> usize {
        self.lse.shape().first().copied().unwrap_or(0)
    }

    /// Bytes it holds.
    pub fn bytes(&self) -> usize {
        let Workspace { hidden, normed, queries, keys, values, raw, attended, gated, .. } = &self.forward;
        let forward = [hidden, normed, queries, keys, values, attended, gated];
        let AttentionGrads { dq, dk, dv } = &self.states;
        let own = [&self.lse, &self.gate, &self.up, &self.stream, &self.normed, dq, dk, dv];
        let more = [&self.attended, &self.gated, &self.summed, &self.images];
        let lists = raw.iter().chain(&self.raw).chain(&self.cached).chain(&self.inputs);
        let kept = self.kept.iter().flat_map(Kept::tensors);
        forward.into_iter().chain(own).chain(more).chain(lists).chain(kept).map(Tensor::byte_len).sum()
    }
}

impl Decoder {
    /// Lays passages out for this decoder.
    pub fn lay_out(&self, backend: &dyn Backend, passages: &[Passage<'_>]) -> Result<Passages> {
        let vocab = self.config.vocab;
        let mut tokens = passages.iter().flat_map(|passage| passage.tokens);
        if let Some(token) = tokens.find(|&&token| token as usize >= vocab) {
            let what = format!("token id {token} is not below the vocabulary of {vocab}");
            return Err(Error::caller("train", what));
        }
        Passages::build(backend, passages, super::axes(&self.config))
    }

    /// Runs all blocks over the passages and returns the normed output `[T, C]`; `keep` what a walk back needs.
    pub fn read<'w>(
        &self,
        backend: &dyn Backend,
        passages: &[Passage<'_>],
        packed: &Passages,
        adapter: Option<&Adapter>,
        keep: bool,
        work: &'w mut TrainWorkspace,
    ) -> Result<&'w Tensor> {
        let adapters = &whole(adapter, packed.rows);
        work.forward.fit(backend, &self.config, packed.rows)?;
        backend.gather_rows(&mut work.forward.hidden, &self.embedding, &packed.tokens)?;
        place(backend, &mut work.forward.hidden, passages)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            if keep {
                let input = &mut work.inputs[layer];
                backend.fit(input, work.forward.hidden.shape())?;
                backend.gather_rows(input, &work.forward.hidden, &packed.identity)?;
            }
            self.attend_passages(backend, layer, block, packed, adapters, work)?;
            if let (Some(kept), true) = (work.kept.get_mut(layer), keep) {
                backend.fit(&mut kept.hidden, work.forward.hidden.shape())?;
                backend.gather_rows(&mut kept.hidden, &work.forward.hidden, &packed.identity)?;
                kept.swap(&mut work.forward, &mut work.lse);
                work.forward.fit(backend, &self.config, packed.rows)?;
            }
            self.transform(backend, layer, block, adapters, &mut work.forward)?;
        }
        let eps = self.config.rms_eps as f32;
        backend.rms_norm(&mut work.forward.normed, &work.forward.hidden, &self.norm, eps)?;
        Ok(&work.forward.normed)
    }

    /// hidden += attention(norm(hidden)), within and before the passages.
    fn attend_passages(
        &self,
        backend: &dyn Backend,
        layer: usize,
        block: &Block,
        packed: &Passages,
        adapters: &[AdapterRows<'_>],
        work: &mut TrainWorkspace,
    ) -> Result<()> {
        self.project(backend, layer, block, &packed.positions, adapters, &mut work.forward)?;
        backend.fit(&mut work.lse, &[packed.rows, self.config.heads])?;
        let TrainWorkspace { forward, cached, lse, .. } = work;
        let (keys, values) = self.seen(backend, packed, &forward.keys, &forward.values, cached)?;
        let (segments, scale) = (packed.segments(), self.attention_scale());
        let queries = &forward.queries;
        backend.attention(&mut forward.attended, Some(lse), queries, keys, values, &segments, true, scale)?;
        let lora = lora_rows(adapters, layer, Projection::Output);
        let output = block.linear(Projection::Output).with(&lora);
        backend.linear(&mut forward.hidden, &forward.attended, &output, Epilogue::Add)
    }

    /// Keys and values as attention sees them: those of the pass, or what a narrower cache would hold of them.
    fn seen<'w>(
        &self,
        backend: &dyn Backend,
        packed: &Passages,
        keys: &'w Tensor,
        values: &'w Tensor,
        cached: &'w mut [Tensor; 2],
    ) -> Result<(&'w Tensor, &'w Tensor)> {
        if self.cache_dtype(backend) == backend.activation() {
            return Ok((keys, values));
        }
        let [rows, heads, width] = [packed.rows, self.config.kv_heads, self.config.head_dim];
        let [cached_keys, cached_values] = cached;
        // A row is a page of one position.
        backend.fit(cached_keys, &[rows, heads, 1, width])?;
        backend.fit(cached_values, &[rows, heads, 1, width])?;
        backend.kv_append(cached_keys, cached_values, keys, values, &packed.identity)?;
        cached_keys.reshape(&[rows, heads, width])?;
        cached_values.reshape(&[rows, heads, width])?;
        Ok((cached_keys, cached_values))
    }

    /// From the slopes of the loss by log-probs to the gradients of everything `gradients` has room for, added to it.
    /// What [`Decoder::read`] kept is used up. `targets` are those whose log-probs `scored` are: `rows` of the normed
    /// output predict them.
    pub fn backward(
        &self,
        backend: &dyn Backend,
        packed: &Passages,
        adapter: Option<&Adapter>,
        slopes: &Slopes<'_>,
        work: &mut TrainWorkspace,
        gradients: &mut Gradients,
    ) -> Result<()> {
        self.head_backward(backend, packed, slopes, work, gradients)?;
        let adapters = &whole(adapter, packed.rows);
        for (layer, block) in self.blocks.iter().enumerate().rev() {
            let below = layer > 0 || gradients.embedding.is_some();
            let room = &mut gradients.blocks[layer];
            self.again(backend, layer, block, packed, adapters, work)?;
            self.transform_backward(backend, layer, block, adapters, work, room)?;
            self.attend_backward(backend, layer, block, packed, adapters, below, work, room)?;
        }
        if let Some(table) = &mut gradients.embedding {
            backend.fit(&mut work.images, &[packed.image_rows.len(), self.config.hidden])?;
            if !packed.image_rows.is_empty() {
                backend.gather_rows(&mut work.images, &work.stream, &packed.image_rows)?;
            }
            blank(backend, &mut work.stream, &packed.image_rows)?;
            backend.gather_rows_backward(table, &work.stream, &packed.tokens)?;
        }
        Ok(())
    }

    /// The gradient of the residual stream behind the last block.
    fn head_backward(
        &self,
        backend: &dyn Backend,
        packed: &Passages,
        slopes: &Slopes<'_>,
        work: &mut TrainWorkspace,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let Slopes { hidden, rows, targets, lse, dlogp, temperature } = *slopes;
        let mut predicting = backend.alloc(hidden.dtype(), hidden.shape())?;
        let room = match self.head {
            Some(_) => gradients.head.as_mut(),
            None => gradients.embedding.as_mut(),
        };
        let head = self.head();
        backend.logprobs_backward(&mut predicting, room, dlogp, lse, hidden, head, targets, temperature)?;
        let shape = [packed.rows, self.config.hidden];
        backend.fit(&mut work.summed, &shape)?;
        backend.zero(&mut work.summed)?;
        backend.gather_rows_backward(&mut work.summed, &predicting, rows)?;
        backend.fit(&mut work.normed, &shape)?;
        backend.gather_rows(&mut work.normed, &work.summed, &packed.identity)?;
        backend.fit(&mut work.stream, &shape)?;
        let (eps, room) = (self.config.rms_eps as f32, gradients.norm.as_mut());
        let (stream, hidden) = (&mut work.stream, &work.forward.hidden);
        backend.rms_norm_backward(stream, false, room, &work.normed, hidden, &self.norm, eps)
    }

    /// Computes a block again, what was not kept of it, up to the products of its gate and its up.
    fn again(
        &self,
        backend: &dyn Backend,
        layer: usize,
        block: &Block,
        packed: &Passages,
        adapters: &[AdapterRows<'_>],
        work: &mut TrainWorkspace,
    ) -> Result<()> {
        match work.kept.get_mut(layer) {
            Some(kept) => {
                backend.gather_rows(&mut work.forward.hidden, &kept.hidden, &packed.identity)?;
                kept.swap(&mut work.forward, &mut work.lse);
                let TrainWorkspace { forward, cached, .. } = &mut *work;
                self.seen(backend, packed, &forward.keys, &forward.values, cached)?;
            }
            None => {
                backend.gather_rows(&mut work.forward.hidden, &work.inputs[layer], &packed.identity)?;
                self.attend_passages(backend, layer, block, packed, adapters, work)?;
            }
        }
        let Workspace { hidden, normed, gated, .. } = &mut work.forward;
        backend.rms_norm(normed, hidden, &block.ffn_norm, self.config.rms_eps as f32)?;
        for (projection, out) in [(Projection::Gate, &mut work.gate), (Projection::Up, &mut work.up)] {
            backend.fit(out, gated.shape())?;
            let lora = lora_rows(adapters, layer, projection);
            backend.linear(out, normed, &block.linear(projection).with(&lora), Epilogue::Store)?;
        }
        Ok(())
    }

    /// Through hidden + down(silu(gate(norm(hidden))) * up(norm(hidden))).
    fn transform_backward(
        &self,
        backend: &dyn Backend,
        layer: usize,
        block: &Block,
        adapters: &[AdapterRows<'_>],
        work: &mut TrainWorkspace,
        room: &mut BlockGradients,
    ) -> Result<()> {
        let TrainWorkspace { forward, gate, up, stream, normed, gated, .. } = work;
        let mut back =
            |projection: Projection, dx: Option<&mut Tensor>, add, dy: &Tensor, x: Option<&Tensor>| {
                let lora = lora_rows(adapters, layer, projection);
                let linear = block.linear(projection).with(&lora);
                let targets = match x {
                    Some(_) => room.linears[projection as usize].targets(),
                    None => LinearGrads::default(),
                };
                // Without targets nobody reads x; it only has its shape.
                backend.linear_backward(dx, add, targets, dy, x.unwrap_or(&forward.gated), &linear)
            };
        backend.fit(gated, forward.gated.shape())?;
        backend.fit(normed, forward.normed.shape())?;
        back(Projection::Down, Some(gated), false, stream, None)?;
        // The product itself takes the place of its gradient, in time for the adapter of the linear behind it.
        backend.gated_backward(gate, up, gated, Activation::Silu)?;
        back(Projection::Down, None, false, stream, Some(gated))?;
        back(Projection::Gate, Some(normed), false, gate, Some(&forward.normed))?;
        back(Projection::Up, Some(normed), true, up, Some(&forward.normed))?;
        let (eps, weight) = (self.config.rms_eps as f32, room.ffn_norm.as_mut());
        backend.rms_norm_backward(stream, true, weight, normed, &forward.hidden, &block.ffn_norm, eps)
    }

    /// Through hidden + output(attention(norm(hidden))), to the stream below where somebody wants it.
    #[expect(clippy::too_many_arguments, reason = "one block's inputs")]
    fn attend_backward(
        &self,
        backend: &dyn Backend,
        layer: usize,
        block: &Block,
        packed: &Passages,
        adapters: &[AdapterRows<'_>],
        below: bool,
        work: &mut TrainWorkspace,
        room: &mut BlockGradients,
    ) -> Result<()> {
        let eps = self.config.rms_eps as f32;
        let TrainWorkspace { forward, inputs, cached, lse, stream, normed, states, .. } = work;
        let both = [(&mut states.dq, &forward.queries), (&mut states.dk, &forward.keys)];
        for (gradient, state) in both.into_iter().chain([(&mut states.dv, &forward.values)]) {
            backend.fit(gradient, state.shape())?;
        }
        backend.fit(&mut work.attended, forward.attended.shape())?;
        let lora = lora_rows(adapters, layer, Projection::Output);
        let output = block.linear(Projection::Output).with(&lora);
        let targets = room.linears[Projection::Output as usize].targets();
        let (dattended, attended) = (&mut work.attended, &forward.attended);
        backend.linear_backward(Some(dattended), false, targets, stream, attended, &output)?;
        let [keys, values] = match self.cache_dtype(backend) == backend.activation() {
            true => [&forward.keys, &forward.values],
            false => [&cached[0], &cached[1]],
        };
        let (segments, scale, queries) = (packed.segments(), self.attention_scale(), &forward.queries);
        backend.attention_backward(
            states, dattended, attended, lse, queries, keys, values, &segments, true, scale,
        )?;
        backend.rope(&mut states.dq, &packed.positions, &self.rope, true)?;
        backend.rope(&mut states.dk, &packed.positions, &self.rope, true)?;
        if let Some((query_norm, key_norm)) = &block.head_norms {
            let [spare_queries, spare_keys] = &mut work.raw;
            let rooms = room.head_norms.as_mut().map_or([None, None], |[q, k]| [Some(q), Some(k)]);
            let sides = [(&mut states.dq, spare_queries, query_norm), (&mut states.dk, spare_keys, key_norm)];
            for (((gradient, spare, weight), raw), room) in sides.into_iter().zip(&forward.raw).zip(rooms) {
                backend.fit(spare, gradient.shape())?;
                std::mem::swap(spare, gradient);
                backend.rms_norm_backward(gradient, false, room, spare, raw, weight, eps)?;
            }
        }
        backend.rms_norm(&mut forward.normed, &inputs[layer], &block.attention_norm, eps)?;
        let sides =
            [(Projection::Query, &states.dq), (Projection::Key, &states.dk), (Projection::Value, &states.dv)];
        for (number, (projection, gradient)) in sides.into_iter().enumerate() {
            let lora = lora_rows(adapters, layer, projection);
            let targets = room.linears[projection as usize].targets();
            let linear = block.linear(projection).with(&lora);
            let dx = below.then_some(&mut *normed);
            backend.linear_backward(dx, number > 0, targets, gradient, &forward.normed, &linear)?;
        }
        if !below && room.attention_norm.is_none() {
            return Ok(());
        }
        let weight = room.attention_norm.as_mut();
        backend.rms_norm_backward(stream, true, weight, normed, &inputs[layer], &block.attention_norm, eps)
    }
}

/// How the loss changes with the log-probs of some targets.
#[derive(Debug, Clone, Copy)]
pub struct Slopes<'a> {
    /// The normed rows that predict them, gathered `[N, C]`.
    pub hidden: &'a Tensor,
    /// Which rows of the pass those are; a row may predict several. i32 `[N]`.
    pub rows: &'a Tensor,
    /// The targets, i32 `[N]`.
    pub targets: &'a Tensor,
    /// log Σ exp of the tempered logits, as `logprobs` gave it `[N]`.
    pub lse: &'a Tensor,
    /// The slopes `[N]`.
    pub dlogp: &'a Tensor,
    /// The temperature of the log-probs.
    pub temperature: f32,
}

/// An adapter for every row, or none.
fn whole(adapter: Option<&Adapter>, rows: usize) -> Vec<AdapterRows<'_>> {
    adapter.map(|adapter| AdapterRows { rows: 0..rows, adapter }).into_iter().collect()
}

/// Sets some rows to zero.
fn blank(backend: &dyn Backend, out: &mut Tensor, rows: &Tensor) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut nothing = backend.alloc(out.dtype(), &[rows.len(), out.row_len()])?;
    backend.zero(&mut nothing)?;
    backend.scatter_rows(out, &nothing, rows)
}
