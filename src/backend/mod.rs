//! The narrow waist: the few operations everything above is made of.
//!
//! Four properties keep it narrow. Tensors are contiguous. Ops have the size of language-model steps, so
//! that fusion is in the signature. Outputs come first and are allocated by the caller, who also gave them
//! their shape; an op never allocates on a device. Dtypes are few: activations are f32 (f64 in the oracle;
//! bf16 on devices), weights and key/value caches bf16 or f32, indices i32.
//!
//! **Numerics contract.** A row of an output depends on that row's inputs and on nothing else: not on how
//! many rows stand beside it, how they were chunked, where its keys lie in memory, or how many threads run.
//! * `linear`: the order of summation over the inner axis is fixed by its length. With bf16 weights the
//!   activation is rounded to bf16 first (nearest even); products are exact and sums are f32. An adapter's
//!   two products are linears of their own under the same rule.
//!   On a device the inner axis is cut into chunks of 512, each summed from zero by tensor-core steps of 16 in order,
//!   and chunks are added in order of index; then the bias, then the scaled product h·Bᵀ as one more chunk (h rounded
//!   to bf16), then the epilogue, and one rounding. Who sums which chunk does not matter, so prefill and decode agree.
//! * `attention`, `paged_attention`: keys are reduced in splits of [`SPLIT`] positions counted from the start
//!   of the sequence, splits are merged in order; contiguous and paged keys give the same bits, read by each sequence or
//!   once for all that share them. With a bf16 cache the query is rounded to bf16 for the scores; probabilities and
//!   sums stay f32. On a device a split is walked in tiles of 64 keys with a running maximum, and probabilities are
//!   rounded to bf16 for the product with the values.
//! * norms, softmax and log-probs: one row, one fixed reduction tree, by the row's length alone.
//! * backward ops: a product rounds both of its operands to bf16 where the forward's product had a bf16 weight (dy and
//!   x for dW, too). So it is with bf16 keys and values, where q, dout, probabilities and their gradients are
//!   rounded. What sums over rows does so in an order fixed by their number. On a device a key's gradients sum over
//!   tiles of 64 queries times heads, its own sequence's first, then its children's in order; other sums over rows go
//!   by chunks of 512 as a linear's over its inner axis; and the head goes through its vocabulary in slabs of 4096
//!   tokens.
//! * `rope`: the angle is the f32 product of position and frequency; its sine and cosine err no more than if it were
//!   rounded once more.
//! * `sample`: the log-prob of the drawn token is, bit for bit, what `logprobs` gives for it; noise is a function of
//!   seed, position and token ([`philox`]). Backends may differ in a kept token or a winner where roundings decide:
//!   a CPU weighs tokens in f64, a device in integers, whose sums no order of threads can change.

pub mod check;
pub mod cpu;
pub mod draw;
pub mod gradient;
#[cfg(any(feature = "cuda", feature = "emu"))]
pub mod gpu;
pub mod philox;
pub mod plain;
mod recorder;

pub use draw::{Draw, Drawn, DrawnToken, FetchedDraws};
pub use gradient::{AdamwParameter, AdamwSettings, AttentionGrads, LinearGrads, LoraGrads};
pub use recorder::{Advance, DrawTable, Landing, Recorder, Replay};

use crate::{
    error::Result,
    tensor::{Dtype, Tensor},
};
use std::{fmt, ops::Range, time::Instant};

/// Key positions per attention split; part of the numerics contract.
pub const SPLIT: usize = 256;

/// y = x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ, the last term for the rows each adapter is given.
#[derive(Debug, Clone, Copy)]
pub struct Linear<'a> {
    /// W `[N, K]`.
    pub weight: &'a Tensor,
    /// b `[N]`.
    pub bias: Option<&'a Tensor>,
    /// Adapters by row range; ranges do not overlap, rows in none of them get the base weights alone.
    pub lora: &'a [LoraRows<'a>],
}

/// One adapter's pair, applied to a range of packed rows.
#[derive(Debug, Clone)]
pub struct LoraRows<'a> {
    /// Rows of x this adapter serves.
    pub rows: Range<usize>,
    /// A `[R, K]`.
    pub a: &'a Tensor,
    /// B `[N, R]`.
    pub b: &'a Tensor,
    /// s, already alpha/r or alpha/√r.
    pub scale: f32,
}

/// What a linear does with its result y.
#[derive(Debug, Clone, Copy)]
pub enum Epilogue<'a> {
    /// out = y
    Store,
    /// out += y, the residual stream
    Add,
    /// out += g ∘ y with a gain per column `[N]` (layer scale)
    AddScaled(&'a Tensor),
    /// out = f(y)
    Activate(Activation),
}

/// Pointwise functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// x·σ(x)
    Silu,
    /// x·Φ(x), by erf
    Gelu,
    /// the tanh approximation of GELU
    GeluTanh,
    /// x·σ(1.702x)
    QuickGelu,
}

/// Rotary position embedding, one- or many-axis: pair (i, i + D/2) turns by `position[axis[i]] · inv_freq[i]`.
#[derive(Debug, Clone)]
pub struct Rope {
    /// f32 `[D/2]`.
    pub inv_freq: Tensor,
    /// Which row of the positions each frequency reads; i32 `[D/2]`.
    pub axis: Tensor,
}

/// How packed rows fall into sequences, and whose rows come before a sequence's own as its keys; all i32.
#[derive(Debug, Clone, Copy)]
pub struct Segments<'a> {
    /// Where each sequence starts; `[B+1]`.
    pub starts: &'a Tensor,
    /// Per sequence itself, or an earlier one that has no parent of its own; `[B]`. A child's row sees all of its
    /// parent's rows, then its own up to itself: what many completions of one prompt need. For causal attention.
    pub parents: Option<&'a Tensor>,
}

/// Which keys the packed queries see in a paged cache; all i32.
#[derive(Debug, Clone, Copy)]
pub struct Pages<'a> {
    /// Where each sequence's queries start in the packed rows; `[B+1]`.
    pub query_starts: &'a Tensor,
    /// Keys in the cache per sequence, the queries' own included; `[B]`. The queries are its last positions.
    pub lengths: &'a Tensor,
    /// Page numbers per sequence; `[B, max pages]`, unused entries are ignored.
    pub tables: &'a Tensor,
    /// Sequences whose tables begin alike, where somebody has looked.
    pub groups: Option<Groups<'a>>,
}

/// Neighbours with the same first pages, which can be read once for all of them. What comes out is the same, bit for bit,
/// as without; all i32.
#[derive(Debug, Clone, Copy)]
pub struct Groups<'a> {
    /// Which sequence each group begins with, and B at the end; every sequence is in one.
    pub starts: &'a Tensor,
    /// Leading keys that a sequence has in common with its group: whole pages before its first query, the same number
    /// for the whole group, 0 for one alone; `[B]`.
    pub shared: &'a Tensor,
}

/// Results of [`Backend::logprobs`], each `[T]`.
#[derive(Debug)]
pub struct LogProbs {
    /// Log-prob of the target; f32 (f64 in the oracle).
    pub logp: Tensor,
    /// log Σ exp(logit/temperature); f32 (f64 in the oracle).
    pub lse: Tensor,
    /// Entropy of the tempered distribution in nats; f32 (f64 in the oracle).
    pub entropy: Tensor,
    /// The likeliest token, the lowest id among equals; i32.
    pub greedy: Tensor,
}

/// A device that can run a model. See the module's numerics contract.
pub trait Backend: fmt::Debug + Send + Sync {
    /// What this is, for people: kind, vector units, threads.
    fn describe(&self) -> String;

    /// The dtype activations have on this backend.
    fn activation(&self) -> Dtype;

    /// The dtype of logits, log-probs and their like: at least f32.
    fn statistic(&self) -> Dtype {
        match self.activation() {
            Dtype::BF16 => Dtype::F32,
            wide => wide,
        }
    }

    /// The dtype this backend computes with where a file holds `held`: f32 stays f32 where activations are f32,
    /// devices round it to bf16, and the oracle widens everything.
    fn matrix(&self, held: Dtype) -> Dtype {
        match self.activation() {
            Dtype::F32 => held,
            activation => activation,
        }
    }

    /// Bytes of memory that are left, where the backend has memory of its own.
    fn free_memory(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    /// Bytes the walk back through attention takes for the gradients of one query of these heads, beside its arguments.
    fn attention_scratch(&self, _heads: usize, _head_dim: usize) -> usize {
        0
    }

    /// Seconds of each of `rounds` runs of `work`, a chain of this backend's ops on arguments that stay; on a device by
    /// its own clock, without what launching costs.
    fn time(&self, rounds: usize, work: &mut (dyn FnMut() -> Result<()> + Send)) -> Result<Vec<f64>> {
        let run = |_| {
            let start = Instant::now();
            work().map(|()| start.elapsed().as_secs_f64())
        };
        (0..rounds).map(run).collect()
    }

    /// What decodes by itself here, if anything.
    fn recorder(&self) -> Option<&dyn Recorder> {
        None
    }

    /// A tensor whose contents are unspecified.
    fn alloc(&self, dtype: Dtype, shape: &[usize]) -> Result<Tensor>;

    /// Makes room for `shape` in work space that is kept between passes; what it held is lost. Memory grows when it
    /// must and never shrinks.
    fn fit(&self, work: &mut Tensor, shape: &[usize]) -> Result<()> {
        if !work.reuse_as(shape)? {
            *work = self.alloc(work.dtype(), shape)?;
        }
        Ok(())
    }

    /// Brings a host tensor to the backend; on the CPU this is the tensor itself.
    fn upload(&self, host: Tensor) -> Result<Tensor>;

    /// Brings a tensor back to the host.
    fn download(&self, tensor: &Tensor) -> Result<Tensor>;

    /// Begins to bring a tensor to the host as it is now, while ops after this one may go on.
    fn fetch(&self, tensor: &Tensor) -> Result<Box<dyn Landing>> {
        Ok(Box::new(recorder::Landed(self.download(tensor)?)))
    }

    /// `out[i] = table[rows[i]]`, converted to out's dtype. out `[T, C]`, table `[·, C]`, rows i32 `[T]`.
    fn gather_rows(&self, out: &mut Tensor, table: &Tensor, rows: &Tensor) -> Result<()>;

    /// `out[rows[i]] = source[i]`; rows are distinct. out `[·, C]`, source `[T, C]`, rows i32 `[T]`.
    fn scatter_rows(&self, out: &mut Tensor, source: &Tensor, rows: &Tensor) -> Result<()>;

    /// out = epilogue(x·Wᵀ + …). out `[T, N]`, x `[T, K]`.
    fn linear(&self, out: &mut Tensor, x: &Tensor, linear: &Linear<'_>, epilogue: Epilogue<'_>)
    -> Result<()>;

    /// Several linears of one x, all stored; the same as one after the other.
    fn linears(&self, outs: &mut [&mut Tensor], x: &Tensor, linears: &[Linear<'_>]) -> Result<()> {
        let mut each = outs.iter_mut().zip(linears);
        each.try_for_each(|(out, linear)| self.linear(out, x, linear, Epilogue::Store))
    }

    /// out = f(gate(x)) ∘ up(x). out `[T, F]`, x `[T, C]`.
    fn gated_linear(
        &self,
        out: &mut Tensor,
        x: &Tensor,
        gate: &Linear<'_>,
        up: &Linear<'_>,
        activation: Activation,
    ) -> Result<()>;

    /// out = x / rms(x) ∘ w over groups of w's length, so `[T, H·D]` with w `[D]` is the per-head norm.
    fn rms_norm(&self, out: &mut Tensor, x: &Tensor, weight: &Tensor, eps: f32) -> Result<()>;

    /// out = (x − mean) / std ∘ w + b. out, x `[T, C]`.
    fn layer_norm(
        &self,
        out: &mut Tensor,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        eps: f32,
    ) -> Result<()>;

    /// Turns x `[T, H·D]` in place by positions i32 `[axes, T]`; `inverse` turns back.
    fn rope(&self, x: &mut Tensor, positions: &Tensor, rope: &Rope, inverse: bool) -> Result<()>;

    /// Attention within packed sequences: out, q `[T, H, D]`; k, v `[T, G, D]`; lse `[T, H]`, like out.
    #[expect(clippy::too_many_arguments, reason = "the op's inputs are what they are")]
    fn attention(
        &self,
        out: &mut Tensor,
        lse: Option<&mut Tensor>,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        segments: &Segments<'_>,
        causal: bool,
        scale: f32,
    ) -> Result<()>;

    /// Writes keys and values `[T, G, D]` into a paged cache `[N, G, P, D]`; slot = page·P + offset, i32 `[T]`.
    fn kv_append(
        &self,
        k_pool: &mut Tensor,
        v_pool: &mut Tensor,
        k: &Tensor,
        v: &Tensor,
        slots: &Tensor,
    ) -> Result<()>;

    /// Causal attention of packed queries over a paged cache, for prefill chunks and decode alike:
    /// out, q `[T, H, D]`; pools `[N, G, P, D]`; lse `[T, H]`, like out.
    #[expect(clippy::too_many_arguments, reason = "the op's inputs are what they are")]
    fn paged_attention(
        &self,
        out: &mut Tensor,
        lse: Option<&mut Tensor>,
        q: &Tensor,
        k_pool: &Tensor,
        v_pool: &Tensor,
        pages: &Pages<'_>,
        scale: f32,
    ) -> Result<()>;

    /// Log-probs of targets under softmax(hidden·Wᵀ / temperature), without a `[T, V]` matrix.
    /// hidden `[T, C]`, weight `[V, C]`, targets i32 `[T]`.
    fn logprobs(
        &self,
        out: &mut LogProbs,
        hidden: &Tensor,
        weight: &Tensor,
        targets: &Tensor,
        temperature: f32,
    ) -> Result<()>;

    /// Draws a token per row from hidden·Wᵀ, and its log-prob under softmax(hidden·Wᵀ / temperature) over the whole
    /// vocabulary, before penalty and filters, with that distribution's entropy where `out` has room for it; the
    /// temperature counts as 1 when greedy.
    /// hidden `[B, C]`, weight `[V, C]`, draws `[B]`.
    fn sample(&self, out: &mut Drawn, hidden: &Tensor, weight: &Tensor, draws: &[Draw<'_>]) -> Result<()>;

    /// Sets every element to 0.
    fn zero(&self, out: &mut Tensor) -> Result<()>;

    /// `dtable[rows[i]] += dout[i]`. dtable `[V, C]` in the statistic dtype, dout `[T, C]`, rows i32 `[T]`, which may
    /// repeat.
    fn gather_rows_backward(&self, dtable: &mut Tensor, dout: &Tensor, rows: &Tensor) -> Result<()>;

    /// Of y = linear(x): dx = dy·W + s·(dy·B)·A, stored or (`add`) added, and the parameters' gradients that are asked
    /// for. dx, x `[T, K]`, dy `[T, N]`.
    fn linear_backward(
        &self,
        dx: Option<&mut Tensor>,
        add: bool,
        grads: LinearGrads<'_>,
        dy: &Tensor,
        x: &Tensor,
        linear: &Linear<'_>,
    ) -> Result<()>;

    /// Of out = f(gate) ∘ up, in place: what the two linears gave becomes its gradient, and dout becomes out, which the
    /// linear behind it needs for its own. All `[T, F]`.
    fn gated_backward(
        &self,
        gate: &mut Tensor,
        up: &mut Tensor,
        dout: &mut Tensor,
        activation: Activation,
    ) -> Result<()>;

    /// Of out = f(x), in place: x becomes its gradient.
    fn activate_backward(&self, x: &mut Tensor, dout: &Tensor, activation: Activation) -> Result<()>;

    /// Of [`Backend::rms_norm`]: dx, stored or (`add`) added, and dweight (in the statistic dtype), added to.
    #[expect(clippy::too_many_arguments, reason = "the op's inputs are what they are")]
    fn rms_norm_backward(
        &self,
        dx: &mut Tensor,
        add: bool,
        dweight: Option<&mut Tensor>,
        dy: &Tensor,
        x: &Tensor,
        weight: &Tensor,
        eps: f32,
    ) -> Result<()>;

    /// Of [`Backend::attention`], from what it gave and read: dout and out like q, lse `[T, H]`.
    #[expect(clippy::too_many_arguments, reason = "the op's inputs are what they are")]
    fn attention_backward(
        &self,
        grads: &mut AttentionGrads,
        dout: &Tensor,
        out: &Tensor,
        lse: &Tensor,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        segments: &Segments<'_>,
        causal: bool,
        scale: f32,
    ) -> Result<()>;

    /// Of the log-probs of [`Backend::logprobs`] alone, without a `[T, V]` matrix either: dhidden `[T, C]`, stored;
    /// dweight `[V, C]` in the statistic dtype, added to. dlogp, and lse as it gave it, `[T]`.
    #[expect(clippy::too_many_arguments, reason = "the op's inputs are what they are")]
    fn logprobs_backward(
        &self,
        dhidden: &mut Tensor,
        dweight: Option<&mut Tensor>,
        dlogp: &Tensor,
        lse: &Tensor,
        hidden: &Tensor,
        weight: &Tensor,
        targets: &Tensor,
        temperature: f32,
    ) -> Result<()>;

    /// `out[i] = Σ tensors[i]²`. out `[n]` in the statistic dtype.
    fn sq_norm(&self, out: &mut Tensor, tensors: &[&Tensor]) -> Result<()>;

    /// One step of AdamW on each parameter w with gradient g:
    /// m = β₁m + (1 − β₁)·s·g, v = β₂v + (1 − β₂)·(s·g)², w −= η·(m / (1 − β₁ᵗ) / (√(v / (1 − β₂ᵗ)) + ε) + decay·w).
    fn adamw(&self, parameters: &mut [AdamwParameter<'_>], settings: &AdamwSettings) -> Result<()>;
}
