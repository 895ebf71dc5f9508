//! Backward ops of the CPU backend, one line of input to one line of output: what `benches/peers/backward.py` asks for
//! in turn with PyTorch. A line is an op, a dtype of weights or keys, and sizes: `dx bf16 2048 576 1536` for T, K, N.
//! The answer is the median in seconds. Without input there is nothing to do, so a plain `cargo bench` passes.
#![allow(clippy::unwrap_used, reason = "a bench that cannot go on says where")]

#[path = "support/timing.rs"]
mod timing;

use pellucid::{
    backend::{
        Activation, AdamwParameter, AdamwSettings, AttentionGrads, Backend, Linear, LinearGrads, LogProbs,
        LoraGrads, LoraRows, Segments, cpu::Cpu,
    },
    tensor::{Dtype, Tensor},
};
use std::io::{self, BufRead, IsTerminal, Write};

/// Seconds that an op is repeated for, after once to warm up.
const ENOUGH: f64 = 0.4;

fn random(dtype: Dtype, shape: &[usize]) -> Tensor {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        })
        .collect();
    Tensor::from_slice(shape, &values).unwrap().converted(dtype).unwrap()
}

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(Dtype::F32, shape).unwrap()
}

fn indices(values: impl Iterator<Item = usize>) -> Tensor {
    let values: Vec<i32> = values.map(|value| value as i32).collect();
    Tensor::from_slice(&[values.len()], &values).unwrap()
}

fn median(mut work: impl FnMut()) -> f64 {
    work();
    let (mut seconds, mut total) = (Vec::new(), 0.0);
    while total < ENOUGH || seconds.len() < 3 {
        seconds.push(timing::timed(&mut work).1);
        total += seconds.last().unwrap();
    }
    timing::median(seconds)
}

fn run(cpu: &Cpu, op: &str, dtype: Dtype, sizes: &[usize]) -> f64 {
    match (op, sizes) {
        ("dx" | "dw" | "lora", &[t, k, n]) => {
            let (x, dy) = (random(Dtype::F32, &[t, k]), random(Dtype::F32, &[t, n]));
            let weight = random(dtype, &[n, k]);
            let (a, b) = (random(Dtype::F32, &[16, k]), random(Dtype::F32, &[n, 16]));
            let lora = [LoraRows { rows: 0..t, a: &a, b: &b, scale: 2.0 }];
            let lora: &[LoraRows<'_>] = if op == "lora" { &lora } else { &[] };
            let linear = Linear { weight: &weight, bias: None, lora };
            let (mut dx, mut dw) = (zeros(&[t, k]), zeros(&[n, k]));
            let (mut da, mut db) = (zeros(&[16, k]), zeros(&[n, 16]));
            median(|| {
                let mut grads = LinearGrads::default();
                match op {
                    "dw" => grads.weight = Some(&mut dw),
                    "lora" => grads.lora = vec![LoraGrads { a: &mut da, b: &mut db }],
                    _ => {}
                }
                let dx = (op != "dw").then_some(&mut dx);
                cpu.linear_backward(dx, false, grads, &dy, &x, &linear).unwrap();
            })
        }
        ("head" | "head-frozen", &[t, c, v]) => {
            let (hidden, weight) = (random(Dtype::F32, &[t, c]), random(dtype, &[v, c]));
            let (dlogp, targets) = (random(Dtype::F32, &[t]), indices((0..t).map(|row| row * 7919 % v)));
            let [logp, lse, entropy] = [(); 3].map(|()| zeros(&[t]));
            let mut out = LogProbs { logp, lse, entropy, greedy: targets.clone() };
            cpu.logprobs(&mut out, &hidden, &weight, &targets, 1.0).unwrap();
            let (mut dhidden, mut dweight) = (zeros(&[t, c]), zeros(&[v, c]));
            median(|| {
                let dweight = (op == "head").then_some(&mut dweight);
                let (dhidden, lse) = (&mut dhidden, &out.lse);
                cpu.logprobs_backward(dhidden, dweight, &dlogp, lse, &hidden, &weight, &targets, 1.0)
                    .unwrap();
            })
        }
        ("attention", &[length, b, h, g, d]) => {
            let t = length * b;
            let (q, dout) = (random(Dtype::F32, &[t, h, d]), random(Dtype::F32, &[t, h, d]));
            let (k, v) = (random(dtype, &[t, g, d]), random(dtype, &[t, g, d]));
            let starts = indices((0..=b).map(|at| at * length));
            let segments = Segments { starts: &starts, parents: None };
            let (mut out, mut lse) = (zeros(&[t, h, d]), zeros(&[t, h]));
            cpu.attention(&mut out, Some(&mut lse), &q, &k, &v, &segments, true, 0.125).unwrap();
            let mut grads =
                AttentionGrads { dq: zeros(&[t, h, d]), dk: zeros(&[t, g, d]), dv: zeros(&[t, g, d]) };
            median(|| {
                let grads = &mut grads;
                cpu.attention_backward(grads, &dout, &out, &lse, &q, &k, &v, &segments, true, 0.125).unwrap();
            })
        }
        ("norm", &[t, c]) => {
            let (x, dy, weight) =
                (random(Dtype::F32, &[t, c]), random(Dtype::F32, &[t, c]), random(dtype, &[c]));
            let (mut dx, mut dweight) = (zeros(&[t, c]), zeros(&[c]));
            median(|| {
                cpu.rms_norm_backward(&mut dx, false, Some(&mut dweight), &dy, &x, &weight, 1e-6).unwrap();
            })
        }
        ("gated", &[t, f]) => {
            let [mut gate, mut up, mut dout] = [(); 3].map(|()| random(Dtype::F32, &[t, f]));
            median(|| cpu.gated_backward(&mut gate, &mut up, &mut dout, Activation::Silu).unwrap())
        }
        ("adamw", &[n]) => {
            let (mut master, gradient) = (random(Dtype::F32, &[n]), random(Dtype::F32, &[n]));
            let (mut first, mut second) = (zeros(&[n]), zeros(&[n]));
            let mut weight = random(dtype, &[n]);
            let settings = AdamwSettings {
                learning_rate: 1e-3,
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-8,
                step: 9,
                scale: 1.0,
            };
            median(|| {
                let parameter = AdamwParameter {
                    master: &mut master,
                    first: &mut first,
                    second: &mut second,
                    gradient: &gradient,
                    weight: Some(&mut weight),
                    decay: 0.1,
                };
                cpu.adamw(&mut [parameter], &settings).unwrap();
            })
        }
        ("sq_norm", &[n]) => {
            let (gradient, mut out) = (random(Dtype::F32, &[n]), zeros(&[1]));
            median(|| cpu.sq_norm(&mut out, &[&gradient]).unwrap())
        }
        _ => panic!("{op} of {} sizes is not known", sizes.len()),
    }
}

fn main() {
    let input = io::stdin();
    if input.is_terminal() {
        return println!("backward: skipped, run benches/peers/backward.py");
    }
    let threads = std::env::var("PELLUCID_THREADS").ok().map(|threads| threads.parse().unwrap());
    let cpu = Cpu::new(threads).unwrap();
    for line in input.lock().lines() {
        let line = line.unwrap();
        let mut words = line.split_whitespace();
        let Some(op) = words.next() else { continue };
        let dtype = if words.next() == Some("bf16") { Dtype::BF16 } else { Dtype::F32 };
        let sizes: Vec<usize> = words.map(|word| word.parse().unwrap()).collect();
        println!("{}", run(&cpu, op, dtype, &sizes));
        io::stdout().flush().unwrap();
    }
}
