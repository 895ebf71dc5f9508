//! `kernels/linear_sm90.cu` against the oracle, and each row alone against the same row in company.

use half::bf16;
use pellucid::{
    backend::{
        Activation, Backend, Epilogue, Linear, LoraRows,
        cpu::Cpu,
        gpu::{Emulator, Gpu, Order, Settings},
        plain::Plain,
    },
    tensor::{Dtype, Tensor},
};
use std::ops::Range;

/// A device whose blocks have to take turns at the tiles.
fn hopper(order: Order) -> Gpu<Emulator> {
    Gpu::new(Emulator::new(Settings { order, ..Settings::default() }).unwrap()).on_hopper(3)
}

/// Roughly normal, rounded to bf16.
fn normal(shape: &[usize], seed: u64, scale: f32) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let count = shape.iter().product();
    let values: Vec<bf16> =
        (0..count).map(|_| bf16::from_f32((0..6).map(|_| uniform()).sum::<f32>() * 1.4 * scale)).collect();
    Tensor::from_slice(shape, &values).unwrap()
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Store,
    Add,
    AddScaled,
    Activate(Activation),
    Gated(Activation),
}

/// A linear whose numbers follow from its sizes, in bf16.
struct Case {
    end: End,
    x: Tensor,
    before: Tensor,
    gain: Tensor,
    sides: [Side; 2],
}

struct Side {
    weight: Tensor,
    bias: Option<Tensor>,
    lora: Vec<(Range<usize>, Tensor, Tensor)>,
}

impl Case {
    /// T, K, N; ranks by row ranges.
    fn new([t, k, n]: [usize; 3], bias: bool, lora: &[(Range<usize>, usize)], end: End) -> Self {
        let scale = 1.0 / (k as f32).sqrt();
        let side = |seed: u64| Side {
            weight: normal(&[n, k], seed, scale),
            bias: bias.then(|| normal(&[n], seed + 1, 1.0)),
            lora: lora
                .iter()
                .zip(seed..)
                .map(|((rows, rank), seed)| {
                    let (a, b) = (normal(&[*rank, k], seed + 2, scale), normal(&[n, *rank], seed + 3, 0.5));
                    (rows.clone(), a, b)
                })
                .collect(),
        };
        Case {
            end,
            x: normal(&[t, k], 1, 1.0),
            before: normal(&[t, n], 2, 1.0),
            gain: normal(&[n], 3, 1.0),
            sides: [side(100), side(200)],
        }
    }

    /// Some of the rows.
    fn rows(&self, rows: Range<usize>) -> Self {
        let part = |tensor: &Tensor| tensor.rows_of(rows.clone()).unwrap();
        let side = |side: &Side| Side {
            weight: side.weight.clone(),
            bias: side.bias.clone(),
            lora: (side.lora.iter())
                .map(|(own, a, b)| {
                    let clip = |row: usize| row.clamp(rows.start, rows.end) - rows.start;
                    (clip(own.start)..clip(own.end), a.clone(), b.clone())
                })
                .collect(),
        };
        let [first, second] = &self.sides;
        Case {
            end: self.end,
            x: part(&self.x),
            before: part(&self.before),
            gain: self.gain.clone(),
            sides: [side(first), side(second)],
        }
    }

    /// On a backend with activations of this dtype.
    fn run(&self, backend: &dyn Backend, dtype: Dtype) -> Vec<f64> {
        let put = |tensor: &Tensor| backend.upload(tensor.clone()).unwrap();
        let wide = |tensor: &Tensor| put(&tensor.converted(dtype).unwrap());
        let (x, mut out, gain) = (wide(&self.x), wide(&self.before), put(&self.gain));
        let mut sides: Vec<Side> = Vec::new();
        for side in &self.sides {
            sides.push(Side {
                weight: put(&side.weight),
                bias: side.bias.as_ref().map(put),
                lora: side.lora.iter().map(|(rows, a, b)| (rows.clone(), put(a), put(b))).collect(),
            });
        }
        let lora: Vec<Vec<LoraRows<'_>>> = (sides.iter().zip([0.75, -1.5]))
            .map(|(side, scale)| {
                let each = side.lora.iter();
                each.map(|(rows, a, b)| LoraRows { rows: rows.clone(), a, b, scale }).collect()
            })
            .collect();
        let linear =
            |i: usize| Linear { weight: &sides[i].weight, bias: sides[i].bias.as_ref(), lora: &lora[i] };
        let epilogue = match self.end {
            End::Store => Epilogue::Store,
            End::Add => Epilogue::Add,
            End::AddScaled => Epilogue::AddScaled(&gain),
            End::Activate(activation) => Epilogue::Activate(activation),
            End::Gated(activation) => {
                backend.gated_linear(&mut out, &x, &linear(0), &linear(1), activation).unwrap();
                return backend.download(&out).unwrap().to_f64();
            }
        };
        backend.linear(&mut out, &x, &linear(0), epilogue).unwrap();
        backend.download(&out).unwrap().to_f64()
    }

    #[track_caller]
    fn agrees(&self, device: &Gpu<Emulator>, what: &str) {
        let exact = self.run(&Cpu::oracle(), Dtype::F64);
        let plain = self.run(&Plain::<f32>::default(), Dtype::F32);
        let rounded: Vec<f64> = plain.iter().map(|&v| bf16::from_f64(v).to_f64()).collect();
        let got = self.run(device, Dtype::BF16);
        let (error, allowed) =
            (distance(&got, &exact), 2.0 * distance(&rounded, &exact) + f64::from(f32::EPSILON));
        assert!(error <= allowed, "{what}: error {error:.3e}, allowed {allowed:.3e}");
    }
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied()).max(1e-30)
}

const ENDS: [End; 5] =
    [End::Store, End::Add, End::AddScaled, End::Activate(Activation::Gelu), End::Gated(Activation::Silu)];

#[test]
fn agrees_with_the_oracle_over_ragged_sizes() {
    for (t, k, n) in [(1, 8, 8), (63, 72, 40), (130, 520, 72), (300, 64, 392), (5, 1104, 200)] {
        for (order, end) in [Order::Ascending, Order::Descending, Order::Random(1)].into_iter().zip(ENDS) {
            Case::new([t, k, n], end != End::Store, &[], end)
                .agrees(&hopper(order), &format!("{t} x {k} x {n}, {end:?}"));
        }
        for end in &ENDS[3..] {
            Case::new([t, k, n], true, &[], *end)
                .agrees(&hopper(Order::Random(2)), &format!("{t} x {k} x {n}, {end:?}"));
        }
    }
}

#[test]
fn adapters_serve_their_rows_and_no_others() {
    let several: [(Range<usize>, usize); 4] = [(0..1, 8), (5..60, 16), (60..131, 40), (140..150, 72)];
    let many: Vec<(Range<usize>, usize)> = (0..10).map(|i| (i * 13 + 2..i * 13 + 12, 8)).collect();
    for (index, lora) in [&several[..1], &several[..], &many, &[(128..150, 64)]].into_iter().enumerate() {
        for (order, end) in [Order::Descending, Order::Random(3)].into_iter().zip([End::Add, ENDS[4]]) {
            Case::new([150, 136, 104], true, lora, end)
                .agrees(&hopper(order), &format!("adapters {index}, {end:?}"));
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_company() {
    let device = hopper(Order::Ascending);
    let lora = [(3..70, 16), (100..140, 24)];
    for end in [End::Store, End::AddScaled, End::Gated(Activation::GeluTanh)] {
        let case = Case::new([140, 1040, 80], true, &lora, end);
        let together = case.run(&device, Dtype::BF16);
        for rows in [0..1, 2..4, 69..71, 90..140, 139..140] {
            let alone = case.rows(rows.clone()).run(&device, Dtype::BF16);
            assert!(alone == together[rows.start * 80..rows.end * 80], "{end:?}, rows {rows:?}");
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_blocks() {
    let case = Case::new([300, 80, 400], true, &[(0..300, 8)], End::Add);
    let run = |blocks| {
        let emulator = Emulator::new(Settings::default()).unwrap();
        case.run(&Gpu::new(emulator).on_hopper(blocks), Dtype::BF16)
    };
    let one = run(1);
    assert!([2, 4, 132].into_iter().all(|blocks| run(blocks) == one));
}

#[test]
fn what_tma_cannot_read_is_not_the_twins() {
    let device = hopper(Order::Ascending);
    let put = |shape: &[usize]| device.upload(normal(shape, 1, 1.0)).unwrap();
    let (x, weight, mut out) = (put(&[2, 16]), put(&[8, 16]), put(&[2, 8]));
    let (a, b) = (put(&[4, 16]), put(&[8, 4]));
    let lora = [LoraRows { rows: 0..2, a: &a, b: &b, scale: 1.0 }];
    let linear = Linear { weight: &weight, bias: None, lora: &lora };
    let error = device.linear(&mut out, &x, &linear, Epilogue::Store).unwrap_err().to_string();
    assert!(error.contains("rank 4") && error.contains("multiple of 8"), "{error}");
}
