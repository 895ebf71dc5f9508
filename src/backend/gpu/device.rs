//! A device as a backend: tensors in its memory, ops as launches.
//!
//! Everything here is written over [`Runtime`], so a machine without a GPU runs the same shape checks, tile choices,
//! grids and kernels as one with a GPU. Each op's host side stands in a file of its own beside this one: it checks,
//! chooses, launches.

use super::{
    Address, Launch, Runtime, activation, attention, attention_backward, decode, head, head_backward, linear,
    linear_backward, norm, optimiser, rows,
};
use crate::{
    backend::{
        Activation, AdamwParameter, AdamwSettings, Advance, AttentionGrads, Backend, Draw, DrawTable, Drawn,
        Epilogue, Landing, Linear, LinearGrads, LogProbs, Pages, Recorder, Replay, Rope, Segments,
    },
    error::{Error, Result},
    tensor::{DeviceMemory, Dtype, Tensor, byte_length},
};
use std::{
    fmt,
    sync::{Arc, OnceLock},
};

/// Counters that [`Gpu::tickets`] gives.
pub(super) const TICKETS: usize = 1024;

/// A device of any kind as a backend.
pub struct Gpu<R: Runtime> {
    runtime: Arc<R>,
    /// Whether the kernels written for Hopper are to run.
    hopper: bool,
    /// Whether passes are recorded.
    recording: bool,
    tickets: OnceLock<Tensor>,
}

impl<R: Runtime> fmt::Debug for Gpu<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gpu({})", self.runtime.describe())
    }
}

/// Memory that goes back to its runtime when the last tensor in it is gone.
struct Held<R: Runtime> {
    runtime: Arc<R>,
    address: Address,
    bytes: usize,
}

/// A graph and what runs it.
struct Recording<R: Runtime> {
    runtime: Arc<R>,
    graph: R::Graph,
}

impl<R: Runtime> Replay for Recording<R> {
    fn replay(&mut self) -> Result<()> {
        self.runtime.replay(&self.graph)
    }
}

/// A tensor that a runtime brings to the host.
struct Fetched<R: Runtime> {
    runtime: Arc<R>,
    landing: R::Landing,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl<R: Runtime> Landing for Fetched<R> {
    fn land(self: Box<Self>) -> Result<Tensor> {
        let Fetched { runtime, landing, dtype, shape } = *self;
        let mut host = Tensor::zeros(dtype, &shape)?;
        runtime.land(landing, host.bytes_mut()?)?;
        Ok(host)
    }
}

impl<R: Runtime> fmt::Debug for Fetched<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fetched({} {:?} from {})", self.dtype, self.shape, self.runtime.describe())
    }
}

impl<R: Runtime> fmt::Debug for Recording<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recording on {}", self.runtime.describe())
    }
}

impl<R: Runtime> DeviceMemory for Held<R> {
    fn address(&self) -> u64 {
        self.address.0
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}

impl<R: Runtime> Drop for Held<R> {
    fn drop(&mut self) {
        // Nobody is left to hear of a failure; a device that has one says so at the next call.
        let _ = self.runtime.release(self.address);
    }
}

impl<R: Runtime> Gpu<R> {
    /// A backend on this runtime.
    pub fn new(runtime: R) -> Self {
        Gpu { runtime: Arc::new(runtime), hopper: false, recording: true, tickets: OnceLock::new() }
    }

    /// Uses the kernels written for Hopper where there are such, or not, which is the default.
    pub fn on_hopper(self, hopper: bool) -> Self {
        Gpu { hopper, ..self }
    }

    /// Records passes to run them again at once, which is the default, or not.
    pub fn recording(self, recording: bool) -> Self {
        Gpu { recording, ..self }
    }

    pub(super) fn uses_hopper(&self) -> bool {
        self.hopper
    }

    /// What runs its kernels.
    pub fn runtime(&self) -> &R {
        &self.runtime
    }

    /// Where a tensor's elements are.
    pub(super) fn at(&self, tensor: &Tensor) -> Result<Address> {
        let address = tensor.device_address().map(Address);
        address.ok_or_else(|| Error::internal("device", format!("{tensor:?} was not uploaded")))
    }

    /// Where an output's elements go.
    pub(super) fn target(&self, tensor: &mut Tensor) -> Result<Address> {
        let address = self.at(tensor)?;
        match tensor.is_exclusive() {
            true => Ok(address),
            false => Err(Error::internal("device", format!("{tensor:?} is held twice and written to"))),
        }
    }

    /// Where a tensor's elements are, or null.
    pub(super) fn at_or_null(&self, tensor: Option<&Tensor>) -> Result<Address> {
        tensor.map_or(Ok(Address(0)), |tensor| self.at(tensor))
    }

    /// Work space of one op. Launches run in order, so it may be dropped as soon as its last user is launched.
    pub(super) fn temporary(&self, dtype: Dtype, shape: &[usize]) -> Result<Tensor> {
        let bytes = byte_length(dtype, shape)?;
        let address = self.runtime.alloc(bytes.max(1))?;
        Tensor::on_device(dtype, shape, Arc::new(Held { runtime: self.runtime.clone(), address, bytes }))
    }

    /// Counters, i32 `[TICKETS]`, that are zero when a kernel begins and when it ends: by them blocks learn which is last.
    pub(super) fn tickets(&self) -> Result<Address> {
        if let Some(tickets) = self.tickets.get() {
            return self.at(tickets);
        }
        let tickets = self.upload(Tensor::zeros(Dtype::I32, &[TICKETS])?)?;
        self.at(self.tickets.get_or_init(|| tickets))
    }

    /// Runs a kernel after all before it.
    pub(super) fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        self.runtime.launch(launch)
    }
}

/// Refuses a tensor of another dtype than kernels are written for.
pub(super) fn expect_dtype(op: &'static str, name: &str, tensor: &Tensor, dtype: Dtype) -> Result<()> {
    if tensor.dtype() == dtype {
        return Ok(());
    }
    Err(Error::caller(op, format!("{name} is {tensor:?}; on a device it has to be {dtype}")))
}

/// A size as kernels take it.
pub(super) fn int(op: &'static str, name: &str, size: usize) -> Result<i32> {
    i32::try_from(size)
        .map_err(|_| Error::caller(op, format!("{name} is {size}; kernels count to {}", i32::MAX)))
}

impl<R: Runtime> Backend for Gpu<R> {
    fn describe(&self) -> String {
        self.runtime.describe()
    }

    fn activation(&self) -> Dtype {
        Dtype::BF16
    }

    fn free_memory(&self) -> Result<Option<u64>> {
        Ok(Some(self.runtime.free_memory()? as u64))
    }

    fn time(&self, rounds: usize, work: &mut (dyn FnMut() -> Result<()> + Send)) -> Result<Vec<f64>> {
        let graph = self.runtime.capture(work)?;
        (0..rounds).map(|_| self.runtime.seconds(&graph)).collect()
    }

    fn recorder(&self) -> Option<&dyn Recorder> {
        self.recording.then_some(self)
    }

    fn alloc(&self, dtype: Dtype, shape: &[usize]) -> Result<Tensor> {
        self.temporary(dtype, shape)
    }

    fn upload(&self, host: Tensor) -> Result<Tensor> {
        if host.device_address().is_some() {
            return Ok(host);
        }
        let tensor = self.temporary(host.dtype(), host.shape())?;
        self.runtime.upload(self.at(&tensor)?, host.bytes())?;
        Ok(tensor)
    }

    fn download(&self, tensor: &Tensor) -> Result<Tensor> {
        let mut host = Tensor::zeros(tensor.dtype(), tensor.shape())?;
        self.runtime.download(self.at(tensor)?, host.bytes_mut()?)?;
        Ok(host)
    }

    fn fetch(&self, tensor: &Tensor) -> Result<Box<dyn Landing>> {
        let landing = self.runtime.fetch(self.at(tensor)?, tensor.byte_len())?;
        let (dtype, shape) = (tensor.dtype(), tensor.shape().to_vec());
        Ok(Box::new(Fetched { runtime: self.runtime.clone(), landing, dtype, shape }))
    }

    fn gather_rows(&self, out: &mut Tensor, table: &Tensor, rows: &Tensor) -> Result<()> {
        rows::gather_rows(self, out, table, rows)
    }

    fn scatter_rows(&self, out: &mut Tensor, source: &Tensor, rows: &Tensor) -> Result<()> {
        rows::scatter_rows(self, out, source, rows)
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
        super::rope::rope(self, x, positions, rope, inverse)
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
        rows::zero(self, out)
    }

    fn gather_rows_backward(&self, dtable: &mut Tensor, dout: &Tensor, rows: &Tensor) -> Result<()> {
        rows::gather_rows_backward(self, dtable, dout, rows)
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
        linear_backward::linear_backward(self, dx, add, grads, dy, x, linear)
    }

    fn gated_backward(
        &self,
        gate: &mut Tensor,
        up: &mut Tensor,
        dout: &mut Tensor,
        activation: Activation,
    ) -> Result<()> {
        activation::gated_backward(self, gate, up, dout, activation)
    }

    fn activate_backward(&self, x: &mut Tensor, dout: &Tensor, activation: Activation) -> Result<()> {
        activation::activate_backward(self, x, dout, activation)
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
        norm::rms_norm_backward(self, dx, add, dweight, dy, x, weight, eps)
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
        attention_backward::attention_backward(
            self,
            grads,
            [dout, out, lse],
            [q, k, v],
            segments,
            causal,
            scale,
        )
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
        let given = [dlogp, lse, targets];
        head_backward::logprobs_backward(self, dhidden, dweight, given, hidden, weight, temperature)
    }

    fn sq_norm(&self, out: &mut Tensor, tensors: &[&Tensor]) -> Result<()> {
        optimiser::sq_norm(self, out, tensors)
    }

    fn adamw(&self, parameters: &mut [AdamwParameter<'_>], settings: &AdamwSettings) -> Result<()> {
        optimiser::adamw(self, parameters, settings)
    }
}

impl<R: Runtime> Recorder for Gpu<R> {
    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Replay>> {
        let graph = self.runtime.capture(work)?;
        Ok(Box::new(Recording { runtime: self.runtime.clone(), graph }))
    }

    fn overwrite(&self, to: &Tensor, host: &Tensor) -> Result<()> {
        if (to.dtype(), to.shape()) != (host.dtype(), host.shape()) {
            return Err(Error::internal("overwrite", format!("{host:?} into {to:?}")));
        }
        self.runtime.upload(self.at(to)?, host.bytes())
    }

    fn settings(&self, draws: &[Draw<'_>], vocabulary: usize, room: usize) -> Result<Tensor> {
        head::settings(draws, vocabulary, room)
    }

    fn sample_by(
        &self,
        out: &mut Drawn,
        hidden: &Tensor,
        weight: &Tensor,
        table: &DrawTable<'_>,
    ) -> Result<()> {
        head::sample_by(self, out, hidden, weight, table)
    }

    fn take_seats(&self, tokens: &Tensor, seats: &Tensor) -> Result<()> {
        decode::take_seats(self, tokens, seats)
    }

    fn keep_seats(&self, seats: &Tensor, seat: &Tensor, drawn: &Tensor) -> Result<()> {
        decode::keep_seats(self, seats, seat, drawn)
    }

    fn advance(&self, step: &Advance<'_>) -> Result<()> {
        decode::advance(self, step)
    }
}
