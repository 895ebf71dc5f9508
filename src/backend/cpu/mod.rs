//! The embedded default: f32 activations, bf16 or f32 weights used where they lie, vectors and threads.
//!
//! Everything fast is written once over a small set of vector operations (`isa`) and compiled per
//! instruction set; the best one the processor has is chosen at run time (`PELLUCID_CPU` forces another).
//! Threads own tiles of an output and never share a sum, so their number cannot change a bit.

mod attention;
mod backward;
mod combine;
mod dot;
mod head;
mod isa;
mod linear;
mod math;
mod norm;
mod pack;
#[cfg(target_arch = "x86_64")]
mod panel;
mod pool;
mod portable;
mod probe;
mod rows;
mod scratch;
mod tile;
mod values;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

use super::{
    Activation, AdamwParameter, AdamwSettings, AttentionGrads, Backend, Draw, Drawn, Epilogue, Linear,
    LinearGrads, LogProbs, Pages, Rope, Segments, plain::Plain,
};
use crate::{
    error::Result,
    tensor::{Dtype, Tensor},
};
use isa::Level;
use pool::Pool;
pub use probe::Ceilings;

/// The CPU backend.
#[derive(Debug)]
pub struct Cpu {
    level: Level,
    threads: usize,
    pool: Pool,
}

impl Cpu {
    /// The backend with this many threads, or one per core.
    pub fn new(threads: Option<usize>) -> Result<Self> {
        Cpu::with_instructions(threads, None)
    }

    /// The backend with one of [`Cpu::instruction_sets`].
    pub fn with_instructions(threads: Option<usize>, instructions: Option<&str>) -> Result<Self> {
        let cores = || std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let threads = threads.filter(|&threads| threads > 0).unwrap_or_else(cores);
        Ok(Cpu { level: Level::choose(instructions)?, threads, pool: Pool::new(threads)? })
    }

    /// The instruction sets this processor has kernels for, the best last.
    pub fn instruction_sets() -> Vec<&'static str> {
        Level::available().iter().map(Level::name).collect()
    }

    /// The same ops in f64, for tests.
    pub fn oracle() -> Plain<f64> {
        Plain::default()
    }

    /// Does each piece of work, on whichever thread comes first.
    fn spread<T: Send>(&self, pieces: Vec<T>, work: impl Fn(T) + Sync) {
        self.pool.spread(pieces, work);
    }

    /// [`Cpu::spread`], with the results in order.
    fn map<T: Send, R: Send>(&self, pieces: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
        let mut results: Vec<Option<R>> = pieces.iter().map(|_| None).collect();
        let pieces = pieces.into_iter().zip(&mut results).collect();
        self.spread(pieces, |(piece, result)| *result = Some(work(piece)));
        results.into_iter().map(|result| result.expect("every piece was done")).collect()
    }
}

impl Backend for Cpu {
    fn describe(&self) -> String {
        format!("cpu, {} kernels, {} threads", self.level.name(), self.threads)
    }

    fn activation(&self) -> Dtype {
        Dtype::F32
    }

    fn attention_scratch(&self, heads: usize, head_dim: usize) -> usize {
        // Each head's part of dq, dk and dv.
        3 * heads * head_dim * size_of::<f32>()
    }

    fn alloc(&self, dtype: Dtype, shape: &[usize]) -> Result<Tensor> {
        Tensor::zeros(dtype, shape)
    }

    fn upload(&self, host: Tensor) -> Result<Tensor> {
        Ok(host)
    }

    fn download(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.clone())
    }

    fn gather_rows(&self, out: &mut Tensor, table: &Tensor, rows: &Tensor) -> Result<()> {
        rows::gather_rows(self, out, table, rows)
    }

    fn scatter_rows(&self, out: &mut Tensor, source: &Tensor, rows: &Tensor) -> Result<()> {
        rows::scatter_rows(out, source, rows)
    }

    fn linear(
        &self,
        out: &mut Tensor,
        x: &Tensor,
        linear: &Linear<'_>,
        epilogue: Epilogue<'_>,
    ) -> Result<()> {
        linear::linear(self, out, x, linear, epilogue)
    }

    fn linears(&self, outs: &mut [&mut Tensor], x: &Tensor, linears: &[Linear<'_>]) -> Result<()> {
        linear::linears(self, outs, x, linears)
    }

    fn gated_linear(
        &self,
        out: &mut Tensor,
        x: &Tensor,
        gate: &Linear<'_>,
        up: &Linear<'_>,
        activation: Activation,
    ) -> Result<()> {
        linear::gated_linear(self, out, x, gate, up, activation)
    }

    fn rms_norm(&self, out: &mut Tensor, x: &Tensor, weight: &Tensor, eps: f32) -> Result<()> {
        norm::rms_norm(self, out, x, weight, eps)
    }

    fn layer_norm(
        &self,
        out: &mut Tensor,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        eps: f32,
    ) -> Result<()> {
        norm::layer_norm(self, out, x, weight, bias, eps)
    }

    fn rope(&self, x: &mut Tensor, positions: &Tensor, rope: &Rope, inverse: bool) -> Result<()> {
        norm::rope(self, x, positions, rope, inverse)
    }

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
    ) -> Result<()> {
        attention::attention(self, out, lse, q, k, v, segments, causal, scale)
    }

    fn kv_append(
        &self,
        k_pool: &mut Tensor,
        v_pool: &mut Tensor,
        k: &Tensor,
        v: &Tensor,
        slots: &Tensor,
    ) -> Result<()> {
        rows::kv_append(self, k_pool, v_pool, k, v, slots)
    }

    fn paged_attention(
        &self,
        out: &mut Tensor,
        lse: Option<&mut Tensor>,
        q: &Tensor,
        k_pool: &Tensor,
        v_pool: &Tensor,
        pages: &Pages<'_>,
        scale: f32,
    ) -> Result<()> {
        attention::paged_attention(self, out, lse, q, k_pool, v_pool, pages, scale)
    }

    fn logprobs(
        &self,
        out: &mut LogProbs,
        hidden: &Tensor,
        weight: &Tensor,
        targets: &Tensor,
        temperature: f32,
    ) -> Result<()> {
        head::logprobs(self, out, hidden, weight, targets, temperature)
    }

    fn sample(&self, out: &mut Drawn, hidden: &Tensor, weight: &Tensor, draws: &[Draw<'_>]) -> Result<()> {
        head::sample(self, out, hidden, weight, draws)
    }

    fn zero(&self, out: &mut Tensor) -> Result<()> {
        backward::zero(self, out)
    }

    fn gather_rows_backward(&self, dtable: &mut Tensor, dout: &Tensor, rows: &Tensor) -> Result<()> {
        backward::gather_rows(self, dtable, dout, rows)
    }

    fn linear_backward(
        &self,
        dx: Option<&mut Tensor>,
        add: bool,
        grads: LinearGrads<'_>,
        dy: &Tensor,
        x: &Tensor,
        linear: &Linear<'_>,
    ) -> Result<()> {
        backward::linear(self, dx, add, grads, dy, x, linear)
    }

    fn gated_backward(
        &self,
        gate: &mut Tensor,
        up: &mut Tensor,
        dout: &mut Tensor,
        activation: Activation,
    ) -> Result<()> {
        backward::gated(self, gate, up, dout, activation)
    }

    fn activate_backward(&self, x: &mut Tensor, dout: &Tensor, activation: Activation) -> Result<()> {
        backward::activate(self, x, dout, activation)
    }

    fn rms_norm_backward(
        &self,
        dx: &mut Tensor,
        add: bool,
        dweight: Option<&mut Tensor>,
        dy: &Tensor,
        x: &Tensor,
        weight: &Tensor,
        eps: f32,
    ) -> Result<()> {
        backward::rms_norm(self, dx, add, dweight, dy, x, weight, eps)
    }

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
    ) -> Result<()> {
        backward::attention(self, grads, dout, out, lse, q, k, v, segments, causal, scale)
    }

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
    ) -> Result<()> {
        backward::logprobs(self, dhidden, dweight, dlogp, lse, hidden, weight, targets, temperature)
    }

    fn sq_norm(&self, out: &mut Tensor, tensors: &[&Tensor]) -> Result<()> {
        backward::sq_norm(self, out, tensors)
    }

    fn adamw(&self, parameters: &mut [AdamwParameter<'_>], settings: &AdamwSettings) -> Result<()> {
        backward::adamw(self, parameters, settings)
    }
}
