//! Backward of norms, gates and gathers, and the optimiser, against the oracle over ragged sizes and in all orders of
//! threads. Linears, attention and the head have files of their own.

use super::{devices, distance, gpu, gpus, normal, on_device, read};
use half::bf16;
use pellucid::{
    backend::{
        Activation, AdamwParameter, AdamwSettings, Backend, LogProbs, cpu::Cpu, gpu::Gpu, plain::Plain,
    },
    tensor::{Dtype, Tensor},
};

/// Small enough that the epsilon of a norm matters.
const EPS: f32 = 1e-3;

/// Host numbers as a backend holds them: activations in its dtype, statistics in its.
fn put(backend: &dyn Backend, dtype: Dtype, shape: &[usize], values: &[bf16]) -> Tensor {
    backend.upload(Tensor::from_slice(shape, values).unwrap().converted(dtype).unwrap()).unwrap()
}

/// Runs `op` on every device, the oracle and the plain twin. Results have to agree with the oracle, at most twice as
/// badly as the plain twin rounded to their dtype, plus a unit; and on all devices bit for bit.
fn holds(what: &str, all_orders: bool, op: impl Fn(&dyn Backend, Dtype) -> Vec<Tensor>) {
    let exact = op(&Cpu::oracle(), Dtype::F64);
    let plain = op(&Plain::<f32>::default(), Dtype::F32);
    let gpus = gpus();
    let mut first: Option<Vec<Vec<u8>>> = None;
    for gpu in if all_orders { &gpus[..] } else { &gpus[2..3] } {
        let host = |tensor: &Tensor| gpu.download(tensor).unwrap();
        let got: Vec<Tensor> = op(gpu, Dtype::BF16).iter().map(host).collect();
        for (index, ((got, plain), exact)) in got.iter().zip(&plain).zip(&exact).enumerate() {
            let (rounded, exact) = (plain.converted(got.dtype()).unwrap().to_f64(), exact.to_f64());
            let (error, allowed) =
                (distance(&got.to_f64(), &exact), 2.0 * distance(&rounded, &exact) + f64::from(f32::EPSILON));
            assert!(error <= allowed, "{what}, result {index}: error {error:.3e}, allowed {allowed:.3e}");
        }
        let bits: Vec<Vec<u8>> = got.iter().map(|tensor| tensor.bytes().to_vec()).collect();
        assert!(*first.get_or_insert_with(|| bits.clone()) == bits, "{what}: another order, other bits");
    }
}

/// Rows, their length, and the length of w. Rows that share warps, fill a few, fill a block; of sums over rows one block
/// and several.
const NORMS: [[usize; 3]; 9] = [
    [1, 1, 1],
    [3, 7, 7],
    [300, 8, 8],
    [9, 80, 80],
    [5, 6 * 64, 64],
    [17, 3 * 36, 36],
    [2, 333, 333],
    [131, 896, 896],
    [1, 9001, 9001],
];

#[test]
fn gradients_of_rms_norm_agree_with_the_oracle() {
    for [rows, columns, group] in NORMS {
        let small = |at: usize| if (at / group).is_multiple_of(2) { 1.0 } else { 0.03 };
        let x: Vec<bf16> = normal(rows * columns, 1)
            .iter()
            .enumerate()
            .map(|(at, x)| bf16::from_f32(x.to_f32() * small(at) + 0.25))
            .collect();
        for (add, wanted) in [(false, true), (true, false), (true, true)] {
            let what = format!("{rows} rows of {columns} by {group}, add {add}, dweight {wanted}");
            holds(&what, columns < 800, |backend, activation| {
                let x = put(backend, activation, &[rows, columns], &x);
                let dy = put(backend, activation, &[rows, columns], &normal(rows * columns, 2));
                let weight = on_device(backend, &[group], &normal(group, 3));
                let mut dx = match add {
                    true => put(backend, activation, &[rows, columns], &normal(rows * columns, 4)),
                    false => backend.alloc(activation, &[rows, columns]).unwrap(),
                };
                let mut dweight = put(backend, backend.statistic(), &[group], &normal(group, 5));
                let place = wanted.then_some(&mut dweight);
                backend.rms_norm_backward(&mut dx, add, place, &dy, &x, &weight, EPS).unwrap();
                vec![dx, dweight]
            });
        }
    }
}

#[test]
fn a_row_of_a_norms_gradient_has_the_same_bits_alone_and_in_company() {
    let gpu = gpu();
    for (columns, group) in [(128, 64), (100, 100), (896, 896)] {
        let run = |rows: std::ops::Range<usize>| -> Vec<bf16> {
            let part = |seed| {
                let all = normal(6 * columns, seed);
                on_device(&gpu, &[rows.len(), columns], &all[rows.start * columns..rows.end * columns])
            };
            let mut dx = gpu.alloc(Dtype::BF16, &[rows.len(), columns]).unwrap();
            let weight = on_device(&gpu, &[group], &normal(group, 3));
            gpu.rms_norm_backward(&mut dx, false, None, &part(1), &part(2), &weight, EPS).unwrap();
            read(&gpu, &dx)
        };
        let together = run(0..6);
        for row in 0..6 {
            assert_eq!(run(row..row + 1), together[row * columns..(row + 1) * columns]);
        }
    }
}

#[test]
fn gradients_of_gates_and_activations_agree_with_the_oracle() {
    use Activation::{Gelu, GeluTanh, QuickGelu, Silu};
    for (rows, columns) in [(1, 1), (3, 7), (5, 8), (2, 2050)] {
        for function in [Silu, Gelu, GeluTanh, QuickGelu] {
            holds(&format!("{function:?} of {rows} x {columns}"), columns < 2000, |backend, activation| {
                let of = |seed| put(backend, activation, &[rows, columns], &normal(rows * columns, seed));
                let (mut gate, mut up, mut x, mut dout) = (of(1), of(2), of(1), of(3));
                backend.activate_backward(&mut x, &dout, function).unwrap();
                backend.gated_backward(&mut gate, &mut up, &mut dout, function).unwrap();
                vec![gate, up, x, dout]
            });
        }
    }
}

/// What no distance would show: one formula for another that is nearly the same. Far from zero, too.
#[test]
fn slopes_are_their_formulas_rounded_once() {
    use Activation::{Gelu, GeluTanh, QuickGelu, Silu};
    let gpu = gpu();
    let inputs: Vec<bf16> = (0..2000).map(|i| bf16::from_f32((i - 1000) as f32 * 0.02)).collect();
    let ones = vec![bf16::ONE; inputs.len()];
    for function in [Silu, Gelu, GeluTanh, QuickGelu] {
        let run = |backend: &dyn Backend, activation| {
            let mut x = put(backend, activation, &[inputs.len()], &inputs);
            backend
                .activate_backward(&mut x, &put(backend, activation, &[ones.len()], &ones), function)
                .unwrap();
            backend.download(&x).unwrap().to_f64()
        };
        let (got, exact) = (run(&gpu, Dtype::BF16), run(&Cpu::oracle(), Dtype::F64));
        // Where f32 cancels, next to nothing is left.
        let differ = |&(got, exact): &(&f64, &f64)| {
            *got != bf16::from_f64(*exact).to_f64() && (got - exact).abs() > 1e-6
        };
        let wrong = got.iter().zip(&exact).filter(differ).count();
        assert!(wrong <= 10, "{function:?}: {wrong} of {} are not the nearest", inputs.len());
    }
}

#[test]
fn rows_that_repeat_add_up_in_order() {
    for (tokens, columns, vocabulary) in [(1, 1, 1), (70, 7, 5), (40, 24, 200), (33, 2056, 3)] {
        let rows: Vec<i32> = (0..tokens).map(|t| (t * t % 7 * 31 % vocabulary) as i32).collect();
        holds(
            &format!("{tokens} of {vocabulary} rows of {columns}"),
            columns < 100,
            |backend, activation| {
                let before = normal(vocabulary * columns, 1);
                let mut table = put(backend, backend.statistic(), &[vocabulary, columns], &before);
                let dout = put(backend, activation, &[tokens, columns], &normal(tokens * columns, 2));
                let rows = on_device(backend, &[tokens], &rows);
                backend.gather_rows_backward(&mut table, &dout, &rows).unwrap();
                vec![table]
            },
        );
    }
}

/// Scores of rows and what their gradients give, with a vocabulary of one slab or more.
#[test]
fn gradients_of_log_probs_agree_with_the_oracle() {
    for (tokens, columns, vocabulary, wanted) in
        [(1, 1, 1, true), (3, 7, 5, true), (2, 16, 4200, true), (20, 520, 130, false), (130, 24, 140, true)]
    {
        let what = format!("{tokens} rows of {columns} under {vocabulary} tokens");
        holds(&what, tokens < 5 && vocabulary < 1000, |backend, activation| {
            let statistic = backend.statistic();
            let hidden = put(backend, activation, &[tokens, columns], &normal(tokens * columns, 1));
            let weight = on_device(backend, &[vocabulary, columns], &normal(vocabulary * columns, 2));
            let targets: Vec<i32> = (0..tokens).map(|t| (t * 37 % vocabulary) as i32).collect();
            let targets = on_device(backend, &[tokens], &targets);
            let row = || backend.alloc(statistic, &[tokens]).unwrap();
            let greedy = backend.alloc(Dtype::I32, &[tokens]).unwrap();
            let mut scores = LogProbs { logp: row(), lse: row(), entropy: row(), greedy };
            backend.logprobs(&mut scores, &hidden, &weight, &targets, 0.7).unwrap();
            let dlogp = put(backend, statistic, &[tokens], &normal(tokens, 3));
            let mut dhidden = backend.alloc(activation, &[tokens, columns]).unwrap();
            let before = normal(vocabulary * columns, 4);
            let mut dweight = put(backend, statistic, &[vocabulary, columns], &before);
            let place = wanted.then_some(&mut dweight);
            let lse = &scores.lse;
            backend
                .logprobs_backward(&mut dhidden, place, &dlogp, lse, &hidden, &weight, &targets, 0.7)
                .unwrap();
            vec![dhidden, dweight]
        });
    }
}

#[test]
fn a_row_of_the_heads_gradient_has_the_same_bits_alone_and_in_company() {
    let gpu = gpu();
    let (count, columns, vocabulary) = (70, 40, 4100);
    let weight = on_device(&gpu, &[vocabulary, columns], &normal(vocabulary * columns, 2));
    let hidden = normal(count * columns, 1);
    let run = |rows: std::ops::Range<usize>| -> Vec<bf16> {
        let part = &hidden[rows.start * columns..rows.end * columns];
        let part = on_device(&gpu, &[rows.len(), columns], part);
        let targets: Vec<i32> = rows.clone().map(|row| row as i32).collect();
        let numbers = |by: f32| -> Vec<f32> { rows.clone().map(|row| 3.0 + by * row as f32).collect() };
        let [dlogp, lse] = [0.1, 0.01].map(|by| on_device(&gpu, &[rows.len()], &numbers(by)));
        let targets = on_device(&gpu, &[rows.len()], &targets);
        let mut dhidden = gpu.alloc(Dtype::BF16, part.shape()).unwrap();
        gpu.logprobs_backward(&mut dhidden, None, &dlogp, &lse, &part, &weight, &targets, 1.0).unwrap();
        read(&gpu, &dhidden)
    };
    let together = run(0..count);
    for rows in [0..1, 69..70, 3..30] {
        assert_eq!(run(rows.clone()), together[rows.start * columns..rows.end * columns]);
    }
}

#[test]
fn zero_is_zero_to_the_last_byte_and_no_further() {
    let gpu = gpu();
    for count in [1, 7, 8, 4099] {
        let mut odd = on_device(&gpu, &[count + 3], &normal(count + 3, 1));
        let before: Vec<bf16> = read(&gpu, &odd);
        let mut part = odd.rows_of(1..count + 1).unwrap();
        // A window is held twice, so the whole has to be zeroed.
        gpu.zero(&mut part).unwrap_err();
        drop(part);
        gpu.zero(&mut odd).unwrap();
        assert!(before.iter().any(|v| v.to_f32() != 0.0));
        assert!(read::<bf16>(&gpu, &odd).iter().all(|v| v.to_bits() == 0));
    }
}

#[test]
fn squares_of_many_tensors_add_up() {
    let lengths: Vec<usize> = (0..140).map(|i| [1, 5, 8, 0, 1000][i % 5]).chain([16_384, 50_001]).collect();
    holds("142 tensors", true, |backend, _| {
        let statistic = backend.statistic();
        let one = |(i, &n): (usize, &usize)| put(backend, statistic, &[n], &normal(n, i as u64));
        let tensors: Vec<Tensor> = lengths.iter().enumerate().map(one).collect();
        let mut out = backend.alloc(statistic, &[tensors.len()]).unwrap();
        backend.sq_norm(&mut out, &tensors.iter().collect::<Vec<_>>()).unwrap();
        vec![out]
    });
}

/// State and parameters after three steps; some parameters have a copy for the forward ops.
#[test]
fn steps_of_adamw_agree_with_the_oracle() {
    let lengths: Vec<usize> = (0..60).map(|i| [1, 6, 0, 300][i % 4]).chain([2500]).collect();
    for (eps, scale) in [(1e-8, 1.0), (0.1, 0.3)] {
        holds("61 parameters", false, |backend, activation| {
            let statistic = backend.statistic();
            let of = |seed: usize| -> Vec<Tensor> {
                let one = |(i, &n): (usize, &usize)| {
                    put(backend, statistic, &[n], &normal(n, (seed * 100 + i) as u64))
                };
                lengths.iter().enumerate().map(one).collect()
            };
            let zeros =
                || lengths.iter().map(|&n| put(backend, statistic, &[n], &vec![bf16::ZERO; n])).collect();
            let (mut master, mut first, mut second): (_, Vec<Tensor>, Vec<Tensor>) =
                (of(1), zeros(), zeros());
            let mut copies: Vec<Tensor> =
                lengths.iter().map(|&n| backend.alloc(activation, &[n]).unwrap()).collect();
            for step in 1..=3 {
                let gradients = of(1 + step);
                let states = master.iter_mut().zip(&mut first).zip(&mut second);
                let mut parameters: Vec<AdamwParameter<'_>> = states
                    .zip(&mut copies)
                    .zip(&gradients)
                    .enumerate()
                    .map(|(i, ((((master, first), second), copy), gradient))| AdamwParameter {
                        master,
                        first,
                        second,
                        gradient,
                        weight: (i % 3 != 1).then_some(copy),
                        decay: 0.1 * (i % 2) as f32,
                    })
                    .collect();
                let settings = AdamwSettings {
                    learning_rate: 0.05,
                    beta1: 0.9,
                    beta2: 0.99,
                    eps,
                    step: step as u64,
                    scale,
                };
                backend.adamw(&mut parameters, &settings).unwrap();
            }
            // As one: single numbers may be right by luck.
            let joined = |tensors: &[Tensor], kept: &dyn Fn(usize) -> bool| {
                let kept = tensors.iter().enumerate().filter(|(i, tensor)| kept(*i) && !tensor.is_empty());
                let host: Vec<Tensor> = kept.map(|(_, tensor)| backend.download(tensor).unwrap()).collect();
                let dtype = host[0].dtype();
                let values: Vec<f64> = host.iter().flat_map(Tensor::to_f64).collect();
                let all = Tensor::from_slice(&[values.len()], &values).unwrap().converted(dtype).unwrap();
                backend.upload(all).unwrap()
            };
            let mut all: Vec<Tensor> = [&master, &first, &second].map(|one| joined(one, &|_| true)).into();
            all.push(joined(&copies, &|i| i % 3 != 1));
            all
        });
    }
}

#[test]
fn what_kernels_cannot_do_is_refused_by_name() {
    let gpu = Gpu::new(devices().remove(0));
    let tensor = |dtype, shape: &[usize]| gpu.upload(Tensor::zeros(dtype, shape).unwrap()).unwrap();
    let (wide, narrow) = (tensor(Dtype::F32, &[2, 8]), tensor(Dtype::BF16, &[2, 8]));
    let mut out = tensor(Dtype::F32, &[2, 8]);
    let weight = tensor(Dtype::BF16, &[8]);
    for (refusal, words) in [
        (
            gpu.rms_norm_backward(&mut out, false, None, &narrow, &narrow, &weight, EPS),
            "rms_norm_backward: dx",
        ),
        (gpu.activate_backward(&mut out, &narrow, Activation::Silu), "activate_backward: x"),
        (gpu.sq_norm(&mut tensor(Dtype::F32, &[1]), &[&narrow]), "sq_norm: a tensor"),
        (gpu.gather_rows_backward(&mut out, &wide, &tensor(Dtype::I32, &[2])), "gather_rows_backward: dout"),
    ] {
        let refusal = refusal.unwrap_err().to_string();
        assert!(
            refusal.starts_with(words) && refusal.contains("bf16") | refusal.contains("f32"),
            "{refusal}"
        );
    }
}
