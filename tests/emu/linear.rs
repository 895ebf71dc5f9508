//! `kernels/linear.cu` against the oracle; and the same bits for a row whatever stands beside it and however the
//! product is cut into tiles.

use super::{devices, distance, normal, on_device, poisoned};
use half::bf16;
use pellucid::{
    backend::{
        Activation, Backend, Epilogue, Linear, LoraRows,
        cpu::Cpu,
        gpu::{Emulator, Gpu, Settings},
        plain::Plain,
    },
    tensor::{Dtype, Tensor},
};
use std::ops::Range;

/// The rows of an adapter, A and B, and s.
type Pair = (Range<usize>, [Tensor; 2], f32);

/// What becomes of y.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum End {
    Store,
    StoreF32,
    Add,
    AddScaled,
    Activate(Activation),
    Gate(Activation),
}

/// One op with all its numbers, so that any part of its rows can be asked of any backend.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) sizes: [usize; 3],
    pub(super) end: End,
    x: Vec<bf16>,
    before: Vec<bf16>,
    gain: Vec<bf16>,
    sides: Vec<Side>,
}

#[derive(Debug)]
struct Side {
    weight: Vec<bf16>,
    bias: Option<Vec<bf16>>,
    lora: Vec<Lora>,
}

#[derive(Debug)]
struct Lora {
    rows: Range<usize>,
    rank: usize,
    a: Vec<bf16>,
    b: Vec<bf16>,
    scale: f32,
}

impl Case {
    /// T, K and N; which rows have an adapter of what rank, the same for both sides of a gate.
    pub(super) fn new(
        [t, k, n]: [usize; 3],
        end: End,
        bias: bool,
        adapters: &[(Range<usize>, usize)],
    ) -> Case {
        let small = |count, seed| -> Vec<bf16> {
            normal(count, seed).into_iter().map(|v| bf16::from_f32(v.to_f32() * 0.2)).collect()
        };
        let side = |seed: u64| Side {
            weight: small(n * k, seed),
            bias: bias.then(|| normal(n, seed + 1)),
            lora: adapters
                .iter()
                .enumerate()
                .map(|(i, (rows, rank))| Lora {
                    rows: rows.clone(),
                    rank: *rank,
                    a: small(rank * k, seed + 10 + i as u64),
                    b: small(n * rank, seed + 50 + i as u64),
                    scale: 0.7 - i as f32,
                })
                .collect(),
        };
        let sides = if matches!(end, End::Gate(_)) { vec![side(100), side(200)] } else { vec![side(100)] };
        Case {
            sizes: [t, k, n],
            end,
            x: normal(t * k, 1),
            before: normal(t * n, 2),
            gain: normal(n, 3),
            sides,
        }
    }

    /// Some of its rows, by a backend whose activations have this dtype.
    pub(super) fn run(&self, backend: &dyn Backend, activation: Dtype, rows: Range<usize>) -> Vec<f64> {
        let [_, k, n] = self.sizes;
        let put = |dtype, shape: &[usize], values: &[bf16]| {
            let host = Tensor::from_slice(shape, values).unwrap().converted(dtype).unwrap();
            backend.upload(host).unwrap()
        };
        let weights = |shape: &[usize], values: &[bf16]| on_device(backend, shape, values);
        let part = |values: &[bf16], width: usize| {
            put(activation, &[rows.len(), width], &values[rows.start * width..rows.end * width])
        };
        let x = part(&self.x, k);
        let gain = weights(&[n], &self.gain);
        let mut out = match self.end {
            End::Add | End::AddScaled => part(&self.before, n),
            End::StoreF32 if activation == Dtype::BF16 => {
                backend.alloc(Dtype::F32, &[rows.len(), n]).unwrap()
            }
            _ if activation == Dtype::BF16 => poisoned(backend, &[rows.len(), n]),
            _ => backend.alloc(activation, &[rows.len(), n]).unwrap(),
        };
        let pairs: Vec<Vec<Pair>> = self
            .sides
            .iter()
            .map(|side| {
                let here = |l: &&Lora| l.rows.start < rows.end && rows.start < l.rows.end;
                let shift = |row: usize| row.clamp(rows.start, rows.end) - rows.start;
                let pair = |l: &Lora| {
                    let pair = [weights(&[l.rank, k], &l.a), weights(&[n, l.rank], &l.b)];
                    (shift(l.rows.start)..shift(l.rows.end), pair, l.scale)
                };
                side.lora.iter().filter(here).map(pair).collect()
            })
            .collect();
        let lora: Vec<Vec<LoraRows<'_>>> = pairs
            .iter()
            .map(|pairs| {
                let adapters = pairs.iter();
                adapters
                    .map(|(rows, [a, b], scale)| LoraRows { rows: rows.clone(), a, b, scale: *scale })
                    .collect()
            })
            .collect();
        let tensors: Vec<(Tensor, Option<Tensor>)> = self
            .sides
            .iter()
            .map(|side| (weights(&[n, k], &side.weight), side.bias.as_ref().map(|b| weights(&[n], b))))
            .collect();
        let linears: Vec<Linear<'_>> = tensors
            .iter()
            .zip(&lora)
            .map(|((weight, bias), lora)| Linear { weight, bias: bias.as_ref(), lora })
            .collect();
        let epilogue = match self.end {
            End::Gate(activation) => {
                backend.gated_linear(&mut out, &x, &linears[0], &linears[1], activation).unwrap();
                return backend.download(&out).unwrap().to_f64();
            }
            End::Store | End::StoreF32 => Epilogue::Store,
            End::Add => Epilogue::Add,
            End::AddScaled => Epilogue::AddScaled(&gain),
            End::Activate(activation) => Epilogue::Activate(activation),
        };
        backend.linear(&mut out, &x, &linears[0], epilogue).unwrap();
        backend.download(&out).unwrap().to_f64()
    }

    pub(super) fn on(&self, gpu: &Gpu<Emulator>) -> Vec<f64> {
        self.run(gpu, Dtype::BF16, 0..self.sizes[0])
    }

    /// The same with an infinite B in the first adapter.
    pub(super) fn spoiled(mut self) -> Case {
        self.sides.iter_mut().for_each(|side| side.lora[0].b.fill(bf16::INFINITY));
        self
    }

    /// At most twice as far from the oracle as the plain computation in the same dtypes, plus a unit.
    pub(super) fn check(&self, got: &[f64]) {
        let all = 0..self.sizes[0];
        let exact = self.run(&Cpu::oracle(), Dtype::F64, all.clone());
        let plain = self.run(&Plain::<f32>::default(), Dtype::F32, all);
        let bf16 = self.end != End::StoreF32;
        let rounded: Vec<f64> =
            plain.iter().map(|&v| if bf16 { bf16::from_f64(v).to_f64() } else { v }).collect();
        let (error, allowed) =
            (distance(got, &exact), 2.0 * distance(&rounded, &exact) + f64::from(f32::EPSILON));
        let (sizes, end) = (self.sizes, self.end);
        assert!(error <= allowed, "{sizes:?} {end:?}: error {error:.3e}, allowed {allowed:.3e}");
    }
}

/// Devices that cut products differently: large tiles, middle ones, and tiles split by chunks of K.
pub(super) fn cuts() -> Vec<Gpu<Emulator>> {
    let gpu = |multiprocessors| {
        Gpu::new(Emulator::new(Settings { multiprocessors, ..Settings::default() }).unwrap())
    };
    [1, 5, 132].into_iter().map(gpu).collect()
}

#[track_caller]
pub(super) fn same_bits(what: &str, a: &[f64], b: &[f64]) {
    let differ = a.iter().zip(b).position(|(a, b)| a.to_bits() != b.to_bits());
    assert!(differ.is_none() && a.len() == b.len(), "{what}: bits differ at {differ:?}");
}

fn holds(case: &Case) {
    let all: Vec<Vec<f64>> = cuts().iter().map(|gpu| case.on(gpu)).collect();
    case.check(&all[0]);
    for other in &all[1..] {
        same_bits(&format!("{:?} {:?}, cut differently", case.sizes, case.end), &all[0], other);
    }
}

#[test]
fn ragged_products_agree_with_the_oracle_however_cut() {
    for sizes in [
        [1, 1, 1],
        [1, 513, 9],
        [3, 7, 5],
        [2, 1030, 130],
        [16, 588, 33],
        [17, 588, 130],
        [130, 64, 140],
        [131, 520, 72],
        [67, 1032, 65],
        [250, 72, 250],
    ] {
        holds(&Case::new(sizes, End::Store, sizes[0] % 2 == 1, &[]));
    }
}

#[test]
fn every_ending_agrees_with_the_oracle() {
    use Activation::{Gelu, GeluTanh, QuickGelu, Silu};
    let endings =
        [Silu, Gelu, GeluTanh, QuickGelu].into_iter().flat_map(|f| [End::Activate(f), End::Gate(f)]);
    for end in endings.chain([End::Add, End::AddScaled, End::StoreF32]) {
        holds(&Case::new([5, 600, 40], end, true, &[(1..3, 3)]));
        holds(&Case::new([70, 72, 45], end, false, &[(1..3, 3)]));
    }
}

#[test]
fn adapters_of_all_ranks_serve_their_rows_alone() {
    for end in [End::Store, End::Gate(Activation::Silu)] {
        holds(&Case::new([9, 1030, 33], end, true, &[(7..9, 16), (0..3, 1), (3..5, 65)]));
        holds(&Case::new([131, 520, 130], end, true, &[(0..3, 64), (60..70, 3), (100..131, 16)]));
        holds(&Case::new([33, 40, 24], end, false, &[(0..33, 512)]));
        holds(&Case::new([250, 72, 120], end, true, &[(3..130, 16), (130..131, 8)]));
    }
}

/// More than a launch takes.
#[test]
fn forty_adapters_in_one_batch() {
    let adapters: Vec<_> = (0..40).map(|i| (i * 2..i * 2 + 1 + i % 2, 1 + i % 5)).collect();
    holds(&Case::new([81, 24, 16], End::Store, false, &adapters));
    holds(&Case::new([81, 24, 16], End::Gate(Activation::Silu), false, &adapters));
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_company() {
    for end in [End::Add, End::Gate(Activation::Silu)] {
        let case = Case::new([131, 1032, 120], end, true, &[(0..20, 16), (64..100, 5)]);
        let width = case.sizes[2];
        for gpu in cuts() {
            let together = case.on(&gpu);
            for rows in [0..1, 19..20, 64..65, 130..131, 18..24, 60..76, 50..115] {
                let part = &together[rows.start * width..rows.end * width];
                same_bits(&format!("rows {rows:?}"), &case.run(&gpu, Dtype::BF16, rows.clone()), part);
            }
        }
    }
}

/// What no distance would show: one formula for another that is nearly the same.
#[test]
fn activations_are_their_formulas_rounded_once() {
    use Activation::{Gelu, GeluTanh, QuickGelu, Silu};
    let gpu = Gpu::new(Emulator::new(Settings::default()).unwrap());
    let inputs: Vec<bf16> = (0..2000).map(|i| bf16::from_f32((i - 1000) as f32 * 0.006)).collect();
    for function in [Silu, Gelu, GeluTanh, QuickGelu] {
        let mut case = Case::new([1, 1, inputs.len()], End::Activate(function), false, &[]);
        case.x = vec![bf16::ONE];
        case.sides[0].weight = inputs.clone();
        let exact = case.run(&Cpu::oracle(), Dtype::F64, 0..1);
        let got = case.on(&gpu);
        let differ = |&(got, exact): &(&f64, &f64)| *got != bf16::from_f64(*exact).to_f64();
        let wrong = got.iter().zip(&exact).filter(differ).count();
        assert!(wrong <= 10, "{function:?}: {wrong} of {} are not the nearest", inputs.len());
    }
}

/// q, k and v in one: parts begin where no 16 bytes do.
#[test]
fn windows_of_a_fused_weight_give_the_same_bits() {
    let gpu = Gpu::new(Emulator::new(Settings::default()).unwrap());
    for inner in [33, 40] {
        let (x, weight, bias) = (normal(3 * inner, 1), normal(30 * inner, 2), normal(30, 3));
        let (x, weight) = (on_device(&gpu, &[3, inner], &x), on_device(&gpu, &[30, inner], &weight));
        let bias = on_device(&gpu, &[30], &bias);
        let run = |rows: Range<usize>| {
            let (weight, bias) = (weight.rows_of(rows.clone()).unwrap(), bias.rows_of(rows.clone()).unwrap());
            let mut out = poisoned(&gpu, &[3, rows.len()]);
            let linear = Linear { weight: &weight, bias: Some(&bias), lora: &[] };
            gpu.linear(&mut out, &x, &linear, Epilogue::Store).unwrap();
            gpu.download(&out).unwrap().to_f64()
        };
        let whole = run(0..30);
        for columns in [0..13, 13..29, 29..30] {
            let part: Vec<f64> = (0..3).flat_map(|row| whole[row * 30..][columns.clone()].to_vec()).collect();
            same_bits(&format!("columns {columns:?}"), &run(columns.clone()), &part);
        }
    }
}

#[test]
fn a_spoiled_adapter_spoils_its_own_rows_alone() {
    for end in [End::Add, End::Gate(Activation::Silu)] {
        let case = || Case::new([70, 72, 40], end, true, &[(3..60, 8), (60..65, 16)]);
        for gpu in cuts() {
            let (sound, spoiled) = (case().on(&gpu), case().spoiled().on(&gpu));
            assert!(spoiled[3 * 40..60 * 40].iter().all(|v| !v.is_finite()));
            same_bits("rows before", &sound[..3 * 40], &spoiled[..3 * 40]);
            same_bits("rows behind", &sound[60 * 40..], &spoiled[60 * 40..]);
        }
    }
}

#[test]
fn threads_may_run_in_any_order() {
    let case = Case::new([18, 1030, 70], End::Gate(Activation::Silu), true, &[(3..7, 3)]);
    let decode = Case::new([4, 1030, 70], End::Add, true, &[(1..3, 3)]);
    let results: Vec<_> =
        devices().into_iter().map(Gpu::new).map(|gpu| [case.on(&gpu), decode.on(&gpu)].concat()).collect();
    for other in &results[1..] {
        same_bits("another order", &results[0], other);
    }
}

#[test]
fn what_kernels_cannot_do_is_refused_by_name() {
    let gpu = Gpu::new(Emulator::new(Settings::default()).unwrap());
    let refusal = |rank: usize, dtype: Dtype, scale: f32| {
        let tensor = |dtype, shape: &[usize]| gpu.upload(Tensor::zeros(dtype, shape).unwrap()).unwrap();
        let (weight, x) = (tensor(dtype, &[8, 16]), tensor(Dtype::BF16, &[2, 16]));
        let (a, b) = (tensor(Dtype::BF16, &[rank, 16]), tensor(Dtype::BF16, &[8, rank]));
        let lora = [LoraRows { rows: 0..2, a: &a, b: &b, scale }];
        let linear = Linear { weight: &weight, bias: None, lora: &lora };
        let mut out = tensor(Dtype::BF16, &[2, 8]);
        gpu.linear(&mut out, &x, &linear, Epilogue::Store).map_err(|e| e.to_string())
    };
    assert_eq!(refusal(512, Dtype::BF16, 1.0), Ok(()));
    for (refused, words) in [
        (refusal(513, Dtype::BF16, 1.0), ["rank 513", "at most 512"]),
        (refusal(8, Dtype::F32, 1.0), ["weight", "bf16"]),
        (refusal(8, Dtype::BF16, f32::NAN), ["scale NaN", "finite"]),
    ] {
        let refused = refused.unwrap_err();
        assert!(words.iter().all(|word| refused.contains(word)), "{refused}");
    }
}
