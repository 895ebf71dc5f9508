//! The backward half of `kernels/linear.cu` against the oracle; and the same bits however products are cut into tiles.

use super::linear::{cuts, same_bits};
use super::{devices, distance, normal, on_device};
use half::bf16;
use pellucid::{
    backend::{
        Backend, Linear, LinearGrads, LoraGrads, LoraRows,
        cpu::Cpu,
        gpu::{Emulator, Gpu},
        plain::Plain,
    },
    tensor::{Dtype, Tensor},
};
use std::ops::Range;

/// One op with all its numbers; T, K and N, and which rows have an adapter of what rank.
struct Case {
    sizes: [usize; 3],
    add: bool,
    x: Vec<bf16>,
    dy: Vec<bf16>,
    weight: Vec<bf16>,
    lora: Vec<Lora>,
}

struct Lora {
    rows: Range<usize>,
    rank: usize,
    a: Vec<bf16>,
    b: Vec<bf16>,
    scale: f32,
}

impl Case {
    fn new([t, k, n]: [usize; 3], add: bool, adapters: &[(Range<usize>, usize)]) -> Case {
        let small = |count, seed| -> Vec<bf16> {
            normal(count, seed).into_iter().map(|v| bf16::from_f32(v.to_f32() * 0.2)).collect()
        };
        let adapter = |(i, (rows, rank)): (usize, &(Range<usize>, usize))| Lora {
            rows: rows.clone(),
            rank: *rank,
            a: small(rank * k, 10 + i as u64),
            b: small(n * rank, 50 + i as u64),
            scale: 0.7 - i as f32,
        };
        Case {
            sizes: [t, k, n],
            add,
            x: normal(t * k, 1),
            dy: normal(t * n, 2),
            weight: small(n * k, 3),
            lora: adapters.iter().enumerate().map(adapter).collect(),
        }
    }

    /// dx of some rows; and, of all parameters, gradients that begin as numbers, not zeros.
    fn run(&self, backend: &dyn Backend, activation: Dtype, rows: Range<usize>) -> Vec<Vec<f64>> {
        let [_, k, n] = self.sizes;
        let statistic = backend.statistic();
        let host = |dtype, shape: &[usize], values: &[bf16]| {
            Tensor::from_slice(shape, values).unwrap().converted(dtype).unwrap()
        };
        let part = |values: &[bf16], width: usize| {
            let values = &values[rows.start * width..rows.end * width];
            backend.upload(host(activation, &[rows.len(), width], values)).unwrap()
        };
        let weights = |shape: &[usize], values: &[bf16]| on_device(backend, shape, values);
        let gradient = |shape: &[usize], seed| {
            backend.upload(host(statistic, shape, &normal(shape.iter().product(), seed))).unwrap()
        };
        let (x, dy) = (part(&self.x, k), part(&self.dy, n));
        let mut dx = match self.add {
            true => backend.upload(host(activation, &[rows.len(), k], &normal(rows.len() * k, 4))).unwrap(),
            false => backend.alloc(activation, &[rows.len(), k]).unwrap(),
        };
        let (weight, bias) = (weights(&[n, k], &self.weight), weights(&[n], &normal(n, 5)));
        let pairs: Vec<[Tensor; 2]> =
            self.lora.iter().map(|l| [weights(&[l.rank, k], &l.a), weights(&[n, l.rank], &l.b)]).collect();
        let shift = |row: usize| row.clamp(rows.start, rows.end) - rows.start;
        let lora: Vec<LoraRows<'_>> = self
            .lora
            .iter()
            .zip(&pairs)
            .map(|(l, [a, b])| {
                let rows = shift(l.rows.start)..shift(l.rows.end);
                LoraRows { rows, a, b, scale: l.scale }
            })
            .collect();
        let (mut dw, mut db) = (gradient(&[n, k], 6), gradient(&[n], 7));
        let mut grads: Vec<[Tensor; 2]> =
            self.lora.iter().map(|l| [gradient(&[l.rank, k], 8), gradient(&[n, l.rank], 9)]).collect();
        let linear = Linear { weight: &weight, bias: Some(&bias), lora: &lora };
        let wanted = LinearGrads {
            weight: Some(&mut dw),
            bias: Some(&mut db),
            lora: grads.iter_mut().map(|[a, b]| LoraGrads { a, b }).collect(),
        };
        backend.linear_backward(Some(&mut dx), self.add, wanted, &dy, &x, &linear).unwrap();
        let all = [&dx, &dw, &db].into_iter().chain(grads.iter().flatten());
        all.map(|tensor| backend.download(tensor).unwrap().to_f64()).collect()
    }

    fn on(&self, gpu: &Gpu<Emulator>) -> Vec<Vec<f64>> {
        self.run(gpu, Dtype::BF16, 0..self.sizes[0])
    }
}

/// At most twice as far from the oracle as the plain computation in the same dtypes, plus a unit; and the same however cut.
fn holds(case: &Case) {
    let all = 0..case.sizes[0];
    let exact = case.run(&Cpu::oracle(), Dtype::F64, all.clone());
    let plain = case.run(&Plain::<f32>::default(), Dtype::F32, all);
    let results: Vec<_> = cuts().iter().map(|gpu| case.on(gpu)).collect();
    for (index, exact) in exact.iter().enumerate() {
        let round = |v: f64| if index == 0 { bf16::from_f64(v).to_f64() } else { v };
        let plain: Vec<f64> = plain[index].iter().map(|&v| round(v)).collect();
        let (error, allowed) =
            (distance(&results[0][index], exact), 2.0 * distance(&plain, exact) + f64::from(f32::EPSILON));
        let what = format!("{:?}, result {index}", case.sizes);
        assert!(error <= allowed, "{what}: error {error:.3e}, allowed {allowed:.3e}");
        for other in &results[1..] {
            same_bits(&format!("{what}, cut differently"), &results[0][index], &other[index]);
        }
    }
}

#[test]
fn ragged_gradients_agree_with_the_oracle_however_cut() {
    for sizes in [
        [1, 1, 1],
        [1, 9, 513],
        [3, 5, 7],
        [2, 130, 1030],
        [16, 33, 588],
        [17, 130, 588],
        [130, 140, 64],
        [131, 72, 520],
        [600, 17, 40],
        [1030, 16, 24],
    ] {
        holds(&Case::new(sizes, sizes[0] % 2 == 1, &[]));
    }
}

#[test]
fn adapters_of_all_ranks_get_the_gradients_of_their_rows() {
    holds(&Case::new([9, 33, 1030], true, &[(7..9, 16), (0..3, 1), (3..5, 65)]));
    holds(&Case::new([131, 130, 520], false, &[(0..3, 64), (60..70, 3), (100..131, 16)]));
    holds(&Case::new([33, 24, 40], false, &[(0..33, 512)]));
    holds(&Case::new([700, 72, 33], true, &[(3..600, 16), (601..700, 8)]));
    let adapters: Vec<_> = (0..40).map(|i| (i * 2..i * 2 + 1 + i % 2, 1 + i % 5)).collect();
    holds(&Case::new([81, 24, 16], false, &adapters));
}

#[test]
fn a_row_of_dx_has_the_same_bits_alone_and_in_company() {
    let case = Case::new([131, 120, 1032], false, &[(0..20, 16), (64..100, 5)]);
    let width = case.sizes[1];
    for gpu in cuts() {
        let together = case.on(&gpu);
        for rows in [0..1, 19..20, 64..65, 130..131, 18..24, 50..115] {
            let part = &together[0][rows.start * width..rows.end * width];
            let alone = case.run(&gpu, Dtype::BF16, rows.clone());
            same_bits(&format!("rows {rows:?}"), &alone[0], part);
        }
    }
}

#[test]
fn threads_may_run_in_any_order() {
    let case = Case::new([530, 40, 33], true, &[(3..520, 3)]);
    let results: Vec<_> = devices().into_iter().map(Gpu::new).map(|gpu| case.on(&gpu).concat()).collect();
    for other in &results[1..] {
        same_bits("another order", &results[0], other);
    }
}

/// A policy's reference, or an adapter with no rows: its gradients stay what they are.
#[test]
fn an_adapter_that_serves_nothing_gets_nothing() {
    let gpu = &cuts()[0];
    let mut case = Case::new([9, 24, 16], false, &[(0..3, 4), (5..5, 2)]);
    case.lora[0].scale = 0.0;
    let bare = Case::new([9, 24, 16], false, &[]).on(gpu);
    let got = case.on(gpu);
    same_bits("dx", &got[0], &bare[0]);
    for (index, rank) in [(3, 4), (5, 2)] {
        for (got, (size, seed)) in got[index..].iter().zip([(rank * 24, 8), (rank * 16, 9)]) {
            let before: Vec<f64> = normal(size, seed).iter().map(|v| v.to_f64()).collect();
            same_bits("a gradient", got, &before);
        }
    }
}
