//! `kernels/head.cu` against the oracle and against itself: whatever tile a row lies in, and whoever lies beside it.

use super::{blank, distance, download, gpu, gpus, launch, normal, on_device, read, upload};
use half::bf16;
use pellucid::{
    backend::{
        Backend, Draw, Drawn, Epilogue, Linear, LogProbs,
        cpu::Cpu,
        gpu::{
            Address,
            Argument::{Address as At, F32, I32},
            Emulator, Gpu,
        },
        plain::Plain,
    },
    tensor::{Dtype, Tensor},
};

/// A head and rows before it.
struct Case {
    inner: usize,
    hidden: Vec<bf16>,
    weight: Vec<bf16>,
    targets: Vec<i32>,
}

impl Case {
    fn new(rows: usize, inner: usize, vocabulary: usize) -> Self {
        let scale = bf16::from_f32(3.0 / (inner as f32).sqrt());
        let weight = normal(vocabulary * inner, 1).iter().map(|w| w * scale).collect();
        let targets = (0..rows).map(|row| (row * 7919 % vocabulary) as i32).collect();
        Case { inner, hidden: normal(rows * inner, 2), weight, targets }
    }

    fn rows(&self, rows: std::ops::Range<usize>) -> Self {
        let hidden = self.hidden[rows.start * self.inner..rows.end * self.inner].to_vec();
        Case { inner: self.inner, hidden, weight: self.weight.clone(), targets: self.targets[rows].to_vec() }
    }

    fn shapes(&self) -> [[usize; 2]; 2] {
        [self.hidden.len(), self.weight.len()].map(|len| [len / self.inner, self.inner])
    }

    /// logp, lse, entropy and the likeliest token of each row.
    fn logprobs(&self, backend: &dyn Backend, temperature: f32) -> [Vec<f64>; 4] {
        let ([hidden, weight], count) = (self.shapes(), [self.targets.len()]);
        let hidden = Tensor::from_slice(&hidden, &self.hidden).unwrap();
        let hidden = backend.upload(hidden.converted(backend.activation()).unwrap()).unwrap();
        let weight = on_device(backend, &weight, &self.weight);
        let targets = on_device(backend, &count, &self.targets);
        let float = || backend.alloc(backend.statistic(), &count).unwrap();
        let (logp, lse, entropy) = (float(), float(), float());
        let mut out = LogProbs { logp, lse, entropy, greedy: backend.alloc(Dtype::I32, &count).unwrap() };
        backend.logprobs(&mut out, &hidden, &weight, &targets, temperature).unwrap();
        [&out.logp, &out.lse, &out.entropy, &out.greedy]
            .map(|tensor| backend.download(tensor).unwrap().to_f64())
    }

    /// Token and log-prob of each row.
    fn sample(&self, gpu: &Gpu<Emulator>, draws: &[Draw<'_>]) -> (Vec<i32>, Vec<f32>) {
        let [hidden, weight] = self.shapes();
        let hidden = on_device(gpu, &hidden, &self.hidden);
        let weight = on_device(gpu, &weight, &self.weight);
        let mut out = Drawn::alloc(gpu, draws.len(), false).unwrap();
        gpu.sample(&mut out, &hidden, &weight, draws).unwrap();
        (read(gpu, &out.token), read(gpu, &out.logp))
    }
}

#[test]
fn agrees_with_the_oracle_over_ragged_sizes_in_all_orders() {
    let sizes = [(17, 33, 1000), (2, 1031, 4097), (1, 7, 129), (70, 64, 257), (5, 520, 95), (1, 8, 32_000)];
    for (gpu, (rows, inner, vocabulary)) in gpus().iter().cycle().zip(sizes) {
        let case = Case::new(rows, inner, vocabulary);
        for temperature in [1.0, 0.35] {
            let got = case.logprobs(gpu, temperature);
            let exact = case.logprobs(&Cpu::oracle(), temperature);
            let plain = case.logprobs(&Plain::<f32>::default(), temperature);
            for (what, at) in [("logp", 0), ("lse", 1), ("entropy", 2)] {
                let (error, plain) = (distance(&got[at], &exact[at]), distance(&plain[at], &exact[at]));
                let allowed = 2.0 * plain + f64::from(f32::EPSILON);
                assert!(
                    error <= allowed,
                    "{what} of {rows}x{inner}x{vocabulary}: {error:.2e} > {allowed:.2e}"
                );
            }
            assert_eq!(got[3], exact[3]);
        }
    }
}

/// One row goes by a low tile, many by taller ones.
#[test]
fn a_row_has_the_same_bits_alone_and_in_company() {
    let gpu = gpu();
    let case = Case::new(70, 600, 300);
    let seen = [4, 5, 6];
    let kinds = [
        Draw::default(),
        Draw { temperature: 0.0, ..Draw::default() },
        Draw { top_k: 9, top_p: 0.9, temperature: 1.7, ..Draw::default() },
        Draw { penalty: 1.3, seen: &seen, ..Draw::default() },
    ];
    let draws: Vec<_> = (0..70).map(|row| Draw { position: row as u32, ..kinds[row % 4] }).collect();
    let (all, drawn) = (case.logprobs(&gpu, 0.8), case.sample(&gpu, &draws));
    for rows in [0..1, 17..18, 3..19, 30..70, 67..70] {
        let part = case.rows(rows.clone());
        for (part, all) in part.logprobs(&gpu, 0.8).iter().zip(&all) {
            assert_eq!(part, &all[rows.clone()], "{rows:?}");
        }
        let (token, logp) = part.sample(&gpu, &draws[rows.clone()]);
        assert_eq!((&token[..], &logp[..]), (&drawn.0[rows.clone()], &drawn.1[rows.clone()]), "{rows:?}");
    }
    // What is drawn has the log-prob that scoring gives it.
    for (row, draw) in draws.iter().enumerate().step_by(5) {
        let mut alone = case.rows(row..row + 1);
        alone.targets = vec![drawn.0[row]];
        assert_eq!(alone.logprobs(&gpu, draw.divisor())[0], [f64::from(drawn.1[row])], "{draw:?}");
    }
}

/// More rows than one launch takes go in parts; what is beside the last ones does not matter.
#[test]
fn parts_meet_without_a_seam() {
    let (gpu, case) = (gpu(), Case::new(4100, 3, 5));
    let (all, end) = (case.logprobs(&gpu, 1.0), case.rows(4080..4100).logprobs(&gpu, 1.0));
    assert!((0..4).all(|at| all[at][4080..] == end[at]));
    let case = case.rows(0..259);
    let draws: Vec<_> =
        (0..259).map(|row| Draw { position: row, top_k: row as usize % 3, ..Draw::default() }).collect();
    let (all, end) = (case.sample(&gpu, &draws), case.rows(250..259).sample(&gpu, &draws[250..]));
    assert_eq!((&all.0[250..], &all.1[250..]), (&end.0[..], &end.1[..]));
}

/// What rows with filters keep is what `linear` makes, bit for bit, in every tile.
#[test]
fn kept_logits_are_those_of_a_linear() {
    let vocabulary = 131;
    for (kernel, rows, threads, shared) in
        [("head_narrow", 5, 128, 73_728), ("head_middle", 20, 256, 98_304), ("head_wide", 66, 256, 98_304)]
    {
        for inner in [40, 1100] {
            let case = Case::new(rows, inner, vocabulary);
            let (gpu, device) = (gpu(), super::device());
            let [hidden, weight] = case.shapes();
            let (x, weight) =
                (on_device(&gpu, &hidden, &case.hidden), on_device(&gpu, &weight, &case.weight));
            let mut expected = gpu.alloc(Dtype::F32, &[rows, vocabulary]).unwrap();
            let linear = Linear { weight: &weight, bias: None, lora: &[] };
            gpu.linear(&mut expected, &x, &linear, Epilogue::Store).unwrap();

            // Greedy, nothing else set, each row with a slot of its own.
            let draws: Vec<[f32; 12]> = (0..rows)
                .map(|row| {
                    let mut draw = [0.0; 12];
                    (draw[0], draw[1], draw[5]) = (1.0, f32::from_bits(1), f32::from_bits(row as u32));
                    draw
                })
                .collect();
            let [summaries, leaders] = [(); 2].map(|()| blank::<[f32; 4]>(&device, 2 * rows));
            let logits = blank::<f32>(&device, rows * 132);
            let arguments = [
                At(summaries),
                At(Address(0)),
                At(leaders),
                At(logits),
                At(upload(&device, &case.hidden)),
                At(upload(&device, &case.weight)),
                At(Address(0)),
                At(upload(&device, &draws)),
                I32(rows as i32),
                I32(inner as i32),
                I32(vocabulary as i32),
                I32(132),
                F32(1.0),
            ];
            launch(&device, kernel, [2, threads], shared, &arguments).unwrap();
            let kept: Vec<f32> = download(&device, logits, rows * 132);
            let kept: Vec<f32> = kept.chunks(132).flat_map(|row| row[..vocabulary].to_vec()).collect();
            assert_eq!(kept, read::<f32>(&gpu, &expected), "{kernel}, {inner}");
        }
    }
}

#[test]
fn one_broken_row_leaves_the_others_alone() {
    let (gpu, case) = (gpu(), Case::new(18, 40, 200));
    let draws = vec![Draw { temperature: 0.5, ..Draw::default() }; 18];
    let (clean, drawn) = (case.logprobs(&gpu, 0.5), case.sample(&gpu, &draws));
    for value in [bf16::NAN, bf16::INFINITY] {
        let mut broken = case.rows(0..18);
        broken.hidden[7 * 40 + 39] = value;
        let (got, (token, logp)) = (broken.logprobs(&gpu, 0.5), broken.sample(&gpu, &draws));
        assert!(got[0][7].is_nan() && got[1][7].is_nan() && got[2][7].is_nan(), "{value}: {got:?}");
        assert!(token[7] == !0 && !logp[7].is_finite(), "{value}: {} {}", token[7], logp[7]);
        for row in (0..18).filter(|&row| row != 7) {
            assert!((0..4).all(|at| got[at][row] == clean[at][row]), "row {row}");
            assert_eq!((token[row], logp[row]), (drawn.0[row], drawn.1[row]), "row {row}");
        }
    }
}

/// Draws without filters are the CPU's from the device's own logits, where no rounding can matter.
#[test]
fn noise_meets_its_token() {
    let gpu = gpu();
    let vocabulary = 700;
    let logits: Vec<bf16> = (0..vocabulary).map(|token| bf16::from_f32((token % 5) as f32)).collect();
    let case = Case { inner: 1, hidden: vec![bf16::ONE; 33], weight: logits.clone(), targets: vec![0; 33] };
    let draws: Vec<_> = (0..33)
        .map(|row| Draw { seed: row << 33 | 5, position: 900 + row as u32, ..Draw::default() })
        .collect();
    let logits: Vec<f32> = logits.iter().map(|logit| logit.to_f32()).collect();
    let expected: Vec<i32> = draws.iter().map(|draw| draw.pick(&mut logits.clone()) as i32).collect();
    assert_eq!(case.sample(&gpu, &draws).0, expected);
}
