//! Cases of training: backward ops, the optimiser, and what they are given.

use super::{
    arguments::{Axis, Kind},
    call::{Call, EPS, Inputs, Op, TEMPERATURE, scale, taken},
    case::Case,
    make::{Maker, PLAIN},
    random,
};
use pellucid::{
    backend::{
        Activation, AdamwParameter, AdamwSettings, AttentionGrads, Backend, LinearGrads, LoraGrads, Segments,
    },
    error::{Error, Result},
    tensor::Tensor,
};

/// An op of training, and what of its arguments is no tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backward {
    Linear { adapted: bool },
    Gated,
    Activate,
    RmsNorm,
    Attention,
    Logprobs,
    GatherRows,
    Zero,
    SqNorm,
    Adamw,
}

impl Maker {
    /// Arguments of a case of training.
    pub(super) fn backward(&mut self, case: &Case) -> Result<Backward> {
        use Axis::{Other, Rows};
        use Kind::{Activation, Held, Statistic};
        Ok(match *case {
            Case::LinearBackward { t, k, n, r } => {
                self.input("x", Activation, Rows, &[t, k], 1.0)?;
                self.input("dy", Activation, Rows, &[t, n], 1.0)?;
                self.linear(PLAIN, [n, k, r], false)?;
                self.output("dx", Activation, Rows, &[t, k])?;
                if r > 0 {
                    self.in_place("da", Statistic, Other, &[r, k])?;
                    self.in_place("db", Statistic, Other, &[n, r])?;
                } else {
                    self.in_place("dweight", Statistic, Other, &[n, k])?;
                }
                Backward::Linear { adapted: r > 0 }
            }
            Case::GatedBackward { t, f } => {
                for name in ["gate", "up", "dout"] {
                    self.in_place(name, Activation, Rows, &[t, f])?;
                }
                Backward::Gated
            }
            Case::ActivateBackward { t, f } => {
                self.input("dout", Activation, Rows, &[t, f], 1.0)?;
                self.in_place("x", Activation, Rows, &[t, f])?;
                Backward::Activate
            }
            Case::RmsNormBackward { t, c, d } => {
                self.input("x", Activation, Rows, &[t, c], 1.0)?;
                self.input("dy", Activation, Rows, &[t, c], 1.0)?;
                self.input("weight", Held, Other, &[d], 1.0)?;
                self.in_place("dx", Activation, Rows, &[t, c])?;
                self.in_place("dweight", Statistic, Other, &[d])?;
                Backward::RmsNorm
            }
            Case::AttentionBackward { prefix, b, length, h, g, d } => {
                self.attention_backward(prefix, b, length, [h, g, d])?;
                Backward::Attention
            }
            Case::LogprobsBackward { t, c, v } => {
                self.input("hidden", Activation, Rows, &[t, c], 2.0)?;
                self.matrix("weight", Other, [v, c])?;
                let targets = random::indices(self.next(), t, v);
                self.indices("targets", Rows, &[t], &targets)?;
                self.input("dlogp", Statistic, Rows, &[t], 1.0)?;
                // About what logits of this deviation sum up to: log V and half their variance.
                let lse = (v as f32).ln() + 0.5 * (2.0 / TEMPERATURE).powi(2);
                self.numbers("lse", &[t], &vec![lse; t])?;
                self.output("dhidden", Activation, Rows, &[t, c])?;
                Backward::Logprobs
            }
            Case::GatherRowsBackward { t, c, v } => {
                self.input("dout", Activation, Rows, &[t, c], 1.0)?;
                let rows = random::indices(self.next(), t, v);
                self.indices("rows", Rows, &[t], &rows)?;
                self.in_place("dtable", Statistic, Other, &[v, c])?;
                Backward::GatherRows
            }
            Case::Zero { n } => {
                self.in_place("out", Statistic, Other, &[n])?;
                Backward::Zero
            }
            Case::SqNorm { tensors, n } => {
                for _ in 0..tensors {
                    self.input("tensor", Statistic, Other, &[n], 1.0)?;
                }
                self.output("out", Statistic, Other, &[tensors])?;
                Backward::SqNorm
            }
            Case::Adamw { tensors, n } => {
                for _ in 0..tensors {
                    self.input("gradient", Statistic, Other, &[n], 1.0)?;
                }
                for name in ["master", "first", "second"] {
                    for _ in 0..tensors {
                        self.in_place(name, Statistic, Other, &[n])?;
                        if name == "second" {
                            self.positive()?;
                        }
                    }
                }
                for _ in 0..tensors {
                    self.output("weight", Activation, Other, &[n])?;
                }
                Backward::Adamw
            }
            _ => return Err(Error::internal("kernels", format!("{case} is no op of training"))),
        })
    }

    /// What attention would have given and read, but for out, which is any: nobody asks whether it is the forward's.
    fn attention_backward(
        &mut self,
        prefix: usize,
        b: usize,
        length: usize,
        [h, g, d]: [usize; 3],
    ) -> Result<()> {
        use Axis::{Other, Rows};
        use Kind::{Activation, Held};
        let t = prefix + b * length;
        self.input("q", Activation, Rows, &[t, h, d], 1.0)?;
        self.input("k", Held, Rows, &[t, g, d], 1.0)?;
        self.input("v", Held, Rows, &[t, g, d], 1.0)?;
        self.input("dout", Activation, Rows, &[t, h, d], 1.0)?;
        self.input("out", Activation, Rows, &[t, h, d], 0.1)?;
        let seen = |row: usize| if row < prefix { row } else { prefix + (row - prefix) % length };
        // Scores have variance 1, so that they sum up to about this.
        let lse: Vec<f32> = (0..t * h).map(|line| ((seen(line / h) + 1) as f32).ln() + 0.5).collect();
        self.numbers("lse", &[t, h], &lse)?;
        let first = (prefix > 0).then_some(0);
        let starts: Vec<i32> =
            first.into_iter().chain((0..=b).map(|child| (prefix + child * length) as i32)).collect();
        self.indices("starts", Other, &[starts.len()], &starts)?;
        if prefix > 0 {
            self.indices("parents", Other, &[b + 1], &vec![0; b + 1])?;
        }
        self.output("dq", Activation, Rows, &[t, h, d])?;
        self.output("dk", Activation, Rows, &[t, g, d])?;
        self.output("dv", Activation, Rows, &[t, g, d])
    }
}

impl Call {
    /// The same with gradients that come in at some rows alone: what rows sum up to is then these rows' doing.
    pub(crate) fn with_gradients_at(&self, rows: &[usize]) -> Result<Call> {
        let mut call = self.clone();
        if matches!(self.op, Op::Backward(Backward::Linear { .. } | Backward::RmsNorm)) {
            for input in call.inputs.iter_mut().filter(|input| input.name == "dy") {
                *input = input.emptied(rows)?;
            }
        }
        Ok(call)
    }
}

/// Runs an op of training on the arguments of a call.
pub(super) fn run(
    op: Backward,
    outputs: &mut [&mut Tensor],
    inputs: Inputs<'_>,
    backend: &dyn Backend,
) -> Result<()> {
    let missing = || Error::internal("kernels", "an output is missing");
    match (op, outputs) {
        (Backward::Linear { adapted }, [dx, gradients @ ..]) => {
            let [x, dy] = inputs.all(["x", "dy"])?;
            let lora = inputs.lora(PLAIN, x.rows());
            let linear = inputs.linear(PLAIN, lora.as_slice())?;
            let mut grads = LinearGrads::default();
            match (adapted, gradients) {
                (true, [a, b]) => grads.lora.push(LoraGrads { a, b }),
                (false, [weight]) => grads.weight = Some(weight),
                _ => return Err(missing()),
            }
            backend.linear_backward(Some(dx), false, grads, dy, x, &linear)
        }
        (Backward::Gated, [gate, up, dout]) => backend.gated_backward(gate, up, dout, Activation::Silu),
        (Backward::Activate, [x]) => backend.activate_backward(x, inputs.get("dout")?, Activation::GeluTanh),
        (Backward::RmsNorm, [dx, dweight]) => {
            let [dy, x, weight] = inputs.all(["dy", "x", "weight"])?;
            backend.rms_norm_backward(dx, true, Some(dweight), dy, x, weight, EPS)
        }
        (Backward::Attention, [dq, dk, dv]) => {
            let [dout, out, lse] = inputs.all(["dout", "out", "lse"])?;
            let [q, k, v, starts] = inputs.all(["q", "k", "v", "starts"])?;
            let segments = Segments { starts, parents: inputs.optional("parents") };
            let [dq, dk, dv] = [dq, dk, dv].map(|place| taken(place));
            let mut grads = AttentionGrads { dq: dq.0, dk: dk.0, dv: dv.0 };
            let outcome =
                backend.attention_backward(&mut grads, dout, out, lse, q, k, v, &segments, true, scale(q));
            *dq.1 = grads.dq;
            *dk.1 = grads.dk;
            *dv.1 = grads.dv;
            outcome
        }
        (Backward::Logprobs, [dhidden]) => {
            let [dlogp, lse, targets] = inputs.all(["dlogp", "lse", "targets"])?;
            let [hidden, weight] = inputs.all(["hidden", "weight"])?;
            backend.logprobs_backward(dhidden, None, dlogp, lse, hidden, weight, targets, TEMPERATURE)
        }
        (Backward::GatherRows, [dtable]) => {
            backend.gather_rows_backward(dtable, inputs.get("dout")?, inputs.get("rows")?)
        }
        (Backward::Zero, [out]) => backend.zero(out),
        (Backward::SqNorm, [out]) => backend.sq_norm(out, &inputs.named("tensor")),
        (Backward::Adamw, outputs) => step(outputs, &inputs.named("gradient"), backend),
        _ => Err(missing()),
    }
}

/// Outputs are all masters, all first moments, all second moments, all weights.
fn step(outputs: &mut [&mut Tensor], gradients: &[&Tensor], backend: &dyn Backend) -> Result<()> {
    let count = gradients.len();
    let (masters, rest) = outputs.split_at_mut(count);
    let (firsts, rest) = rest.split_at_mut(count);
    let (seconds, weights) = rest.split_at_mut(count);
    let states = masters.iter_mut().zip(firsts).zip(seconds).zip(weights).zip(gradients);
    let mut parameters: Vec<AdamwParameter<'_>> = states
        .map(|((((master, first), second), weight), gradient)| AdamwParameter {
            master,
            first,
            second,
            gradient,
            weight: Some(weight),
            decay: 0.01,
        })
        .collect();
    let settings =
        AdamwSettings { learning_rate: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, step: 10, scale: 0.5 };
    backend.adamw(&mut parameters, &settings)
}
