//! A case with its arguments: moved to a backend, run there, cut down to some rows.

use super::arguments::Argument;
use super::backward::{self, Backward};
use super::case::Then;
use super::make::{PLAIN, UP};
use pellucid::{
    backend::{
        Activation, Backend, Draw, Drawn, Epilogue, Groups, Linear, LogProbs, LoraRows, Pages, Rope, Segments,
    },
    error::{Error, Result},
    tensor::{Dtype, Tensor},
};
use std::mem;

/// s of every adapter, ε of every norm, the temperature of every head.
const SCALE: f32 = 0.5;
pub(super) const EPS: f32 = 1e-6;
pub(super) const TEMPERATURE: f32 = 0.7;

/// An op with its arguments, all on the host or all on one backend.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(super) op: Op,
    pub(super) outputs: Vec<Argument>,
    pub(super) inputs: Vec<Argument>,
    pub(super) rope: Option<Rope>,
    /// A sample's, one a row.
    pub(super) draws: Vec<Draw<'static>>,
}

/// The op, and what of its arguments is no tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Linear(Then),
    GatedLinear,
    RmsNorm,
    LayerNorm,
    Rope,
    Attention {
        causal: bool,
    },
    KvAppend,
    PagedAttention,
    GatherRows,
    ScatterRows,
    Logprobs,
    Sample,
    /// One of `backward.rs`.
    Backward(Backward),
}

impl Call {
    /// The same call with its tensors on a backend, in memory of its own.
    pub(crate) fn on(&self, backend: &dyn Backend) -> Result<Call> {
        let rope = |rope: &Rope| {
            let [inv_freq, axis] = [&rope.inv_freq, &rope.axis].map(|tensor| backend.upload(tensor.clone()));
            Ok::<_, Error>(Rope { inv_freq: inv_freq?, axis: axis? })
        };
        Ok(Call {
            op: self.op,
            outputs: self.outputs.iter().map(|output| output.on(backend)).collect::<Result<_>>()?,
            inputs: self.inputs.iter().map(|input| input.on(backend)).collect::<Result<_>>()?,
            rope: self.rope.as_ref().map(rope).transpose()?,
            draws: self.draws.clone(),
        })
    }

    /// The same call with copies of its tensors: calls on the host may share what they only read.
    pub(crate) fn copied(&self) -> Result<Call> {
        let mut call = self.clone();
        for argument in call.inputs.iter_mut().chain(&mut call.outputs) {
            argument.tensor = argument.copied()?;
        }
        Ok(call)
    }

    /// Bytes of all its tensors.
    pub(crate) fn bytes(&self) -> usize {
        self.inputs.iter().chain(&self.outputs).map(|argument| argument.tensor.byte_len()).sum()
    }

    /// The same op on some rows, and some columns or all of them.
    pub(crate) fn narrowed(&self, rows: &[usize], columns: Option<&[usize]>) -> Result<Call> {
        let some = |argument: &Argument| argument.narrowed(rows, columns);
        Ok(Call {
            op: self.op,
            outputs: self.outputs.iter().map(some).collect::<Result<_>>()?,
            inputs: self.inputs.iter().map(some).collect::<Result<_>>()?,
            rope: self.rope.clone(),
            draws: rows.iter().filter_map(|&row| self.draws.get(row).copied()).collect(),
        })
    }

    /// The outputs, on the host.
    pub(crate) fn results(&self, backend: &dyn Backend) -> Result<Vec<Argument>> {
        let one = |output: &Argument| Ok(Argument { tensor: backend.download(&output.tensor)?, ..*output });
        self.outputs.iter().map(one).collect()
    }

    /// The outputs, to be broken.
    #[cfg(test)]
    pub(crate) fn outputs(&mut self) -> &mut [Argument] {
        &mut self.outputs
    }

    pub(super) fn input(&self, name: &'static str) -> Result<&Tensor> {
        Inputs(&self.inputs).get(name)
    }

    /// Runs it once on the backend it is on.
    pub(crate) fn run(&mut self, backend: &dyn Backend) -> Result<()> {
        let inputs = Inputs(&self.inputs);
        let mut outputs = self.outputs.iter_mut().map(|output| &mut output.tensor);
        if let Op::Backward(op) = self.op {
            return backward::run(op, &mut outputs.collect::<Vec<_>>(), inputs, backend);
        }
        let mut out = || outputs.next().ok_or_else(|| Error::internal("kernels", "an output is missing"));
        match self.op {
            Op::Linear(then) => {
                let (out, x) = (out()?, inputs.get("x")?);
                let lora = inputs.lora(PLAIN, x.rows());
                let linear = inputs.linear(PLAIN, lora.as_slice())?;
                let epilogue = match then {
                    Then::Store => Epilogue::Store,
                    Then::Add => Epilogue::Add,
                    Then::AddScaled => Epilogue::AddScaled(inputs.get("gain")?),
                    Then::Gelu => Epilogue::Activate(Activation::Gelu),
                    Then::QuickGelu => Epilogue::Activate(Activation::QuickGelu),
                };
                backend.linear(out, x, &linear, epilogue)
            }
            Op::GatedLinear => {
                let (out, x) = (out()?, inputs.get("x")?);
                let [gate, up] = [PLAIN, UP].map(|names| inputs.lora(names, x.rows()));
                let (gate, up) = (inputs.linear(PLAIN, gate.as_slice())?, inputs.linear(UP, up.as_slice())?);
                backend.gated_linear(out, x, &gate, &up, Activation::Silu)
            }
            Op::RmsNorm => backend.rms_norm(out()?, inputs.get("x")?, inputs.get("weight")?, EPS),
            Op::LayerNorm => {
                let [x, weight, bias] = inputs.all(["x", "weight", "bias"])?;
                backend.layer_norm(out()?, x, weight, bias, EPS)
            }
            Op::Rope => {
                let rope =
                    self.rope.as_ref().ok_or_else(|| Error::internal("kernels", "a rope is missing"))?;
                backend.rope(out()?, inputs.get("positions")?, rope, false)
            }
            Op::Attention { causal } => {
                let [q, k, v, starts] = inputs.all(["q", "k", "v", "starts"])?;
                let segments = Segments { starts, parents: None };
                backend.attention(out()?, Some(out()?), q, k, v, &segments, causal, scale(q))
            }
            Op::KvAppend => {
                let [k, v, slots] = inputs.all(["k", "v", "slots"])?;
                backend.kv_append(out()?, out()?, k, v, slots)
            }
            Op::PagedAttention => {
                let [q, k_pool, v_pool] = inputs.all(["q", "k_pool", "v_pool"])?;
                let [query_starts, lengths, tables] = inputs.all(["query_starts", "lengths", "tables"])?;
                let groups = inputs.optional("group_starts").zip(inputs.optional("shared"));
                let groups = groups.map(|(starts, shared)| Groups { starts, shared });
                let pages = Pages { query_starts, lengths, tables, groups };
                backend.paged_attention(out()?, Some(out()?), q, k_pool, v_pool, &pages, scale(q))
            }
            Op::GatherRows => backend.gather_rows(out()?, inputs.get("table")?, inputs.get("rows")?),
            Op::ScatterRows => backend.scatter_rows(out()?, inputs.get("source")?, inputs.get("rows")?),
            Op::Logprobs => {
                let [hidden, weight, targets] = inputs.all(["hidden", "weight", "targets"])?;
                let places = [out()?, out()?, out()?, out()?];
                let [logp, lse, entropy, greedy] = places.map(taken);
                let mut results = LogProbs { logp: logp.0, lse: lse.0, entropy: entropy.0, greedy: greedy.0 };
                let outcome = backend.logprobs(&mut results, hidden, weight, targets, TEMPERATURE);
                *logp.1 = results.logp;
                *lse.1 = results.lse;
                *entropy.1 = results.entropy;
                *greedy.1 = results.greedy;
                outcome
            }
            Op::Sample => {
                let [hidden, weight] = inputs.all(["hidden", "weight"])?;
                let [logp, token] = [out()?, out()?].map(taken);
                let mut results = Drawn { token: token.0, logp: logp.0, entropy: None };
                let outcome = backend.sample(&mut results, hidden, weight, &self.draws);
                *token.1 = results.token;
                *logp.1 = results.logp;
                outcome
            }
            Op::Backward(_) => Ok(()), // done above
        }
    }
}

/// A tensor out of its place, to be put back: a device writes to what nobody else holds.
pub(super) fn taken(place: &mut Tensor) -> (Tensor, &mut Tensor) {
    let nothing = Tensor::zeros(Dtype::I32, &[0]).expect("an empty tensor needs no memory");
    (mem::replace(place, nothing), place)
}

pub(super) fn scale(q: &Tensor) -> f32 {
    let head_dim = q.shape().last().copied().unwrap_or(1);
    (head_dim as f32).powf(-0.5)
}

/// Inputs by name.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a>(&'a [Argument]);

impl<'a> Inputs<'a> {
    /// All of this name.
    pub(super) fn named(self, name: &str) -> Vec<&'a Tensor> {
        self.0.iter().filter(|argument| argument.name == name).map(|argument| &argument.tensor).collect()
    }

    pub(super) fn optional(self, name: &str) -> Option<&'a Tensor> {
        self.0.iter().find(|argument| argument.name == name).map(|argument| &argument.tensor)
    }

    pub(super) fn get(self, name: &str) -> Result<&'a Tensor> {
        self.optional(name).ok_or_else(|| Error::internal("kernels", format!("the input {name} is missing")))
    }

    pub(super) fn all<const N: usize>(self, names: [&str; N]) -> Result<[&'a Tensor; N]> {
        let found: Vec<&Tensor> = names.iter().map(|name| self.get(name)).collect::<Result<_>>()?;
        Ok(found.try_into().expect("as many as were named"))
    }

    pub(super) fn lora(self, [_, _, a, b]: [&str; 4], rows: usize) -> Option<LoraRows<'a>> {
        Some(LoraRows { rows: 0..rows, a: self.optional(a)?, b: self.optional(b)?, scale: SCALE })
    }

    pub(super) fn linear(
        self,
        [weight, bias, ..]: [&str; 4],
        lora: &'a [LoraRows<'a>],
    ) -> Result<Linear<'a>> {
        Ok(Linear { weight: self.get(weight)?, bias: self.optional(bias), lora })
    }
}
