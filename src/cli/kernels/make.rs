//! Random arguments of a case, on the host. All are numbers of bf16, so that every backend gets the same ones and the
//! rounding of a backend's inputs is no part of its error.

use super::arguments::{Argument, Axis, Kind, lent, poisoned};
use super::call::{Call, Op, TEMPERATURE};
use super::case::{Case, Then};
use super::random;
use half::bf16;
use pellucid::{
    backend::{Draw, Rope},
    error::Result,
    model::PAGE,
    tensor::{Dtype, Tensor},
};

/// The base of every rope's frequencies.
const THETA: f32 = 1e6;

/// Names of a linear's parts; a gated one has two of each.
pub(super) const PLAIN: [&str; 4] = ["weight", "bias", "a", "b"];
pub(super) const UP: [&str; 4] = ["up weight", "up bias", "up a", "up b"];

/// Arguments as they are made, one after another.
#[derive(Default)]
pub(super) struct Maker {
    seed: u64,
    outputs: Vec<Argument>,
    inputs: Vec<Argument>,
}

impl Call {
    /// The case with random arguments, on the host; the same seed makes the same ones.
    pub(crate) fn new(case: &Case, seed: u64) -> Result<Call> {
        let mut make = Maker { seed: seed << 16, ..Maker::default() };
        let (op, rope) = make.case(case)?;
        let draws = match *case {
            Case::Sample { t, top_p, .. } => draws(t, top_p),
            _ => Vec::new(),
        };
        Ok(Call { op, outputs: make.outputs, inputs: make.inputs, rope, draws })
    }
}

impl Call {
    /// The call that scores the tokens which this one, a sample, drew.
    pub(crate) fn scoring(&self, token: &Tensor) -> Result<Call> {
        let count = token.len();
        let mut make = Maker::default();
        make.scores(count)?;
        make.inputs = self.inputs.clone();
        make.indices("targets", Axis::Rows, &[count], token.as_slice()?)?;
        let (outputs, inputs) = (make.outputs, make.inputs);
        Ok(Call { op: Op::Logprobs, outputs, inputs, rope: None, draws: Vec::new() })
    }
}

impl Maker {
    fn case(&mut self, case: &Case) -> Result<(Op, Option<Rope>)> {
        use Axis::{ByRows, Other, Rows, RowsByColumns};
        use Kind::{Activation, Held, Statistic};
        let mut turn = None;
        let op = match *case {
            Case::Linear { t, k, n, r, bias, then } => {
                self.input("x", Activation, Rows, &[t, k], 1.0)?;
                self.linear(PLAIN, [n, k, r], bias)?;
                match then {
                    Then::Add | Then::AddScaled => {
                        self.in_place("out", Activation, RowsByColumns, &[t, n])?
                    }
                    _ => self.output("out", Activation, RowsByColumns, &[t, n])?,
                }
                if then == Then::AddScaled {
                    self.input("gain", Held, Axis::Columns, &[n], 0.5)?;
                }
                Op::Linear(then)
            }
            Case::GatedLinear { t, k, n, r, bias } => {
                self.input("x", Activation, Rows, &[t, k], 1.0)?;
                self.linear(PLAIN, [n, k, r], bias)?;
                self.linear(UP, [n, k, r], bias)?;
                self.output("out", Activation, RowsByColumns, &[t, n])?;
                Op::GatedLinear
            }
            Case::RmsNorm { t, c, d } => {
                self.input("x", Activation, Rows, &[t, c], 1.0)?;
                self.input("weight", Held, Other, &[d], 1.0)?;
                self.output("out", Activation, Rows, &[t, c])?;
                Op::RmsNorm
            }
            Case::LayerNorm { t, c } => {
                self.input("x", Activation, Rows, &[t, c], 1.0)?;
                self.input("weight", Held, Other, &[c], 1.0)?;
                self.input("bias", Held, Other, &[c], 1.0)?;
                self.output("out", Activation, Rows, &[t, c])?;
                Op::LayerNorm
            }
            Case::Rope { t, h, d, axes } => {
                self.in_place("x", Activation, Rows, &[t, h * d])?;
                let positions = random::indices(self.next(), axes * t, 4096);
                self.indices("positions", ByRows, &[axes, t], &positions)?;
                turn = Some(rope(d, axes)?);
                Op::Rope
            }
            Case::Attention { b, length, h, g, d, causal } => {
                let t = b * length;
                self.input("q", Activation, Rows, &[t, h, d], 1.0)?;
                self.input("k", Held, Rows, &[t, g, d], 1.0)?;
                self.input("v", Held, Rows, &[t, g, d], 1.0)?;
                let starts: Vec<i32> = (0..=b).map(|sequence| (sequence * length) as i32).collect();
                self.indices("starts", Other, &[b + 1], &starts)?;
                self.attended(t, h, d)?;
                Op::Attention { causal }
            }
            Case::KvAppend { t, g, d } => {
                self.input("k", Activation, Rows, &[t, g * d], 1.0)?;
                self.input("v", Activation, Rows, &[t, g * d], 1.0)?;
                let table = random::permutation(self.next(), t.div_ceil(PAGE) + 2);
                let slots: Vec<i32> =
                    (0..t).map(|row| table[row / PAGE] * PAGE as i32 + (row % PAGE) as i32).collect();
                self.indices("slots", Rows, &[t], &slots)?;
                for name in ["k_pool", "v_pool"] {
                    self.in_place(name, Held, Other, &[table.len(), g, PAGE, d])?;
                }
                Op::KvAppend
            }
            Case::PagedAttention { b, queries, keys, h, g, d } => {
                self.input("q", Activation, Rows, &[b * queries, h, d], 1.0)?;
                let width = keys.div_ceil(PAGE);
                let tables = random::permutation(self.next(), b * width);
                for name in ["k_pool", "v_pool"] {
                    self.input(name, Held, Other, &[b * width, g, PAGE, d], 1.0)?;
                }
                let starts: Vec<i32> = (0..=b).map(|sequence| (sequence * queries) as i32).collect();
                self.indices("query_starts", Other, &[b + 1], &starts)?;
                self.indices("lengths", Other, &[b], &vec![keys as i32; b])?;
                self.indices("tables", Other, &[b, width], &tables)?;
                self.attended(b * queries, h, d)?;
                Op::PagedAttention
            }
            Case::GroupAttention { b, members, shared, keys, h, g, d } => {
                let (rows, width, common) = (b * members, keys.div_ceil(PAGE), shared / PAGE);
                self.input("q", Activation, Rows, &[rows, h, d], 1.0)?;
                let pages = b * common + rows * (width - common);
                let mut numbers = random::permutation(self.next(), pages).into_iter();
                let mut tables = Vec::with_capacity(rows * width);
                for _ in 0..b {
                    let prefix: Vec<i32> = numbers.by_ref().take(common).collect();
                    for _ in 0..members {
                        tables.extend(&prefix);
                        tables.extend(numbers.by_ref().take(width - common));
                    }
                }
                for name in ["k_pool", "v_pool"] {
                    self.input(name, Held, Other, &[pages, g, PAGE, d], 1.0)?;
                }
                self.indices("query_starts", Other, &[rows + 1], &(0..=rows as i32).collect::<Vec<_>>())?;
                self.indices("lengths", Other, &[rows], &vec![keys as i32; rows])?;
                self.indices("tables", Other, &[rows, width], &tables)?;
                let groups: Vec<i32> = (0..=b).map(|group| (group * members) as i32).collect();
                self.indices("group_starts", Other, &[b + 1], &groups)?;
                self.indices("shared", Other, &[rows], &vec![(common * PAGE) as i32; rows])?;
                self.attended(rows, h, d)?;
                Op::PagedAttention
            }
            Case::GatherRows { t, c, v } => {
                self.input("table", Held, Other, &[v, c], 1.0)?;
                let rows = random::indices(self.next(), t, v);
                self.indices("rows", Rows, &[t], &rows)?;
                self.output("out", Activation, Rows, &[t, c])?;
                Op::GatherRows
            }
            Case::ScatterRows { t, c } => {
                self.input("source", Activation, Rows, &[t, c], 1.0)?;
                let rows = random::permutation(self.next(), 2 * t);
                self.indices("rows", Rows, &[t], &rows[..t])?;
                self.in_place("out", Activation, Other, &[2 * t, c])?;
                Op::ScatterRows
            }
            Case::Logprobs { t, c, v } => {
                self.input("hidden", Activation, Rows, &[t, c], 2.0)?;
                self.matrix("weight", Other, [v, c])?;
                let targets = random::indices(self.next(), t, v);
                self.indices("targets", Rows, &[t], &targets)?;
                self.scores(t)?;
                Op::Logprobs
            }
            Case::Sample { t, c, v, .. } => {
                self.input("hidden", Activation, Rows, &[t, c], 2.0)?;
                self.matrix("weight", Other, [v, c])?;
                self.output("logp", Statistic, Rows, &[t])?;
                self.chosen("token", t)?;
                Op::Sample
            }
            _ => Op::Backward(self.backward(case)?),
        };
        Ok((op, turn))
    }

    /// A seed of its own for each argument.
    pub(super) fn next(&mut self) -> u64 {
        self.seed += 1;
        self.seed
    }

    /// Random numbers of this deviation.
    pub(super) fn input(
        &mut self,
        name: &'static str,
        kind: Kind,
        axis: Axis,
        shape: &[usize],
        deviation: f32,
    ) -> Result<()> {
        let tensor = lent(random::tensor(self.next(), shape, deviation)?)?;
        self.inputs.push(Argument { name, tensor, kind, axis });
        Ok(())
    }

    /// Rows so small that products with them keep the size of what they multiply.
    pub(super) fn matrix(&mut self, name: &'static str, axis: Axis, shape: [usize; 2]) -> Result<()> {
        self.input(name, Kind::Held, axis, &shape, (shape[1] as f32).powf(-0.5))
    }

    /// A linear's weight, bias and adapter.
    pub(super) fn linear(
        &mut self,
        names: [&'static str; 4],
        [n, k, r]: [usize; 3],
        bias: bool,
    ) -> Result<()> {
        self.matrix(names[0], Axis::Columns, [n, k])?;
        if bias {
            self.input(names[1], Kind::Held, Axis::Columns, &[n], 1.0)?;
        }
        if r > 0 {
            self.matrix(names[2], Axis::Other, [r, k])?;
            self.matrix(names[3], Axis::Columns, [n, r])?;
        }
        Ok(())
    }

    pub(super) fn indices(
        &mut self,
        name: &'static str,
        axis: Axis,
        shape: &[usize],
        values: &[i32],
    ) -> Result<()> {
        let tensor = Tensor::from_slice(shape, values)?;
        self.inputs.push(Argument { name, tensor, kind: Kind::Held, axis });
        Ok(())
    }

    /// An output that is only written.
    pub(super) fn output(
        &mut self,
        name: &'static str,
        kind: Kind,
        axis: Axis,
        shape: &[usize],
    ) -> Result<()> {
        let tensor = poisoned(Dtype::F32, shape)?;
        self.outputs.push(Argument { name, tensor, kind, axis });
        Ok(())
    }

    /// An output whose values before count.
    pub(super) fn in_place(
        &mut self,
        name: &'static str,
        kind: Kind,
        axis: Axis,
        shape: &[usize],
    ) -> Result<()> {
        let tensor = random::tensor(self.next(), shape, 1.0)?;
        self.outputs.push(Argument { name, tensor, kind, axis });
        Ok(())
    }

    /// Given numbers.
    pub(super) fn numbers(&mut self, name: &'static str, shape: &[usize], values: &[f32]) -> Result<()> {
        let tensor = Tensor::from_slice(shape, values)?;
        self.inputs.push(Argument { name, tensor, kind: Kind::Statistic, axis: Axis::Rows });
        Ok(())
    }

    /// Makes the numbers of the last output positive.
    pub(super) fn positive(&mut self) -> Result<()> {
        if let Some(last) = self.outputs.last_mut() {
            last.tensor
                .as_mut_slice::<bf16>()?
                .iter_mut()
                .for_each(|value| *value = bf16::from_f32(value.to_f32().abs()));
        }
        Ok(())
    }

    /// Token ids that an op chooses.
    fn chosen(&mut self, name: &'static str, count: usize) -> Result<()> {
        let tensor = poisoned(Dtype::I32, &[count])?;
        self.outputs.push(Argument { name, tensor, kind: Kind::Held, axis: Axis::Rows });
        Ok(())
    }

    /// What the head says of each row.
    fn scores(&mut self, count: usize) -> Result<()> {
        for name in ["logp", "lse", "entropy"] {
            self.output(name, Kind::Statistic, Axis::Rows, &[count])?;
        }
        self.chosen("greedy", count)
    }

    fn attended(&mut self, t: usize, h: usize, d: usize) -> Result<()> {
        self.output("out", Kind::Activation, Axis::Rows, &[t, h, d])?;
        self.output("lse", Kind::Statistic, Axis::Rows, &[t, h])
    }
}

/// How the rows of a sample are drawn, each with noise of its own.
fn draws(count: usize, top_p: bool) -> Vec<Draw<'static>> {
    let top_p = if top_p { 0.9 } else { 1.0 };
    let draw = Draw { temperature: TEMPERATURE, top_p, seed: 7, ..Draw::default() };
    (0..count).map(|row| Draw { position: row as u32, ..draw }).collect()
}

/// Frequencies of a head, the axes in turn.
fn rope(d: usize, axes: usize) -> Result<Rope> {
    let half = d / 2;
    let inv_freq: Vec<f32> = (0..half).map(|i| THETA.powf(-(i as f32) / half as f32)).collect();
    let axis: Vec<i32> = (0..half).map(|i| (i % axes) as i32).collect();
    Ok(Rope { inv_freq: Tensor::from_slice(&[half], &inv_freq)?, axis: Tensor::from_slice(&[half], &axis)? })
}
