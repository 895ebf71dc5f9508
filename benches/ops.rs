//! Ops of the CPU backend in the shapes of Qwen2.5-0.5B, beside the machine's ceilings measured in the same run.
//!
//! `cargo bench --bench ops -- decode` runs a part; `PELLUCID_THREADS` and `PELLUCID_CPU` choose threads and
//! instructions. Weights are used round robin out of a quarter of a gigabyte, so that decode reads memory
//! and not a cache. `benches/peers/linear.py` sets the results beside PyTorch's.
#![allow(clippy::unwrap_used, reason = "a bench that cannot go on says where")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use pellucid::{
    backend::{Activation, Backend, Draw, Drawn, Epilogue, Linear, LogProbs, Pages, Segments, cpu::Cpu},
    tensor::{Dtype, Tensor},
};
use std::time::Duration;

const HIDDEN: usize = 896;
const FFN: usize = 4864;
const HEADS: usize = 14;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;
const VOCABULARY: usize = 151_936;

/// Bytes of weights used in turn.
const WEIGHTS: usize = 256 << 20;

/// Numbers without structure; zeros would flatter a multiplier.
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
    if dtype == Dtype::F32 {
        return Tensor::from_slice(shape, &values).unwrap();
    }
    let values: Vec<bf16> = values.into_iter().map(bf16::from_f32).collect();
    Tensor::from_slice(shape, &values).unwrap()
}

fn indices(values: Vec<i32>) -> Tensor {
    Tensor::from_slice(&[values.len()], &values).unwrap()
}

fn cpu() -> Cpu {
    let threads = std::env::var("PELLUCID_THREADS").ok().map(|threads| threads.parse().unwrap());
    Cpu::new(threads).unwrap()
}

/// Few rows are counted in the weight's bytes, many in operations.
fn throughput(rows: usize, weights: usize) -> Throughput {
    if rows < 64 {
        Throughput::Bytes(2 * weights as u64)
    } else {
        Throughput::Elements(2 * (rows * weights) as u64)
    }
}

fn ceilings(_: &mut Criterion) {
    let cpu = cpu();
    let ceilings = cpu.ceilings(5).unwrap();
    println!("{}", cpu.describe());
    println!(
        "ceilings: read {:.1} GB/s, bf16 {:.0} GFLOP/s, f32 {:.0} GFLOP/s",
        ceilings.read / 1e9,
        ceilings.bf16 / 1e9,
        ceilings.f32 / 1e9
    );
}

fn linears(criterion: &mut Criterion) {
    let cpu = cpu();
    for (rows, name) in [(1, "decode1"), (8, "decode8"), (512, "prefill")] {
        let mut group = criterion.benchmark_group(format!("linear-{name}"));
        for (k, n) in [(HIDDEN, HIDDEN), (HIDDEN, 128), (HIDDEN, FFN), (FFN, HIDDEN)] {
            let weight = random(Dtype::BF16, &[n, k]);
            let weights = vec![weight; WEIGHTS / (2 * n * k)];
            let mut weights = weights.iter().cycle();
            let x = random(Dtype::F32, &[rows, k]);
            let mut out = Tensor::zeros(Dtype::F32, &[rows, n]).unwrap();
            group.throughput(throughput(rows, n * k));
            group.bench_function(format!("{k}x{n}"), |bencher| {
                bencher.iter(|| {
                    let linear = Linear { weight: weights.next().unwrap(), bias: None, lora: &[] };
                    cpu.linear(&mut out, &x, &linear, Epilogue::Store).unwrap();
                });
            });
        }
        let weights = vec![random(Dtype::BF16, &[FFN, HIDDEN]); WEIGHTS / (2 * FFN * HIDDEN)];
        let mut weights = weights.iter().cycle();
        let x = random(Dtype::F32, &[rows, HIDDEN]);
        let mut out = Tensor::zeros(Dtype::F32, &[rows, FFN]).unwrap();
        group.throughput(throughput(rows, 2 * FFN * HIDDEN));
        group.bench_function("gated", |bencher| {
            bencher.iter(|| {
                let mut linear = || Linear { weight: weights.next().unwrap(), bias: None, lora: &[] };
                cpu.gated_linear(&mut out, &x, &linear(), &linear(), Activation::Silu).unwrap();
            });
        });
    }
}

fn attentions(criterion: &mut Criterion) {
    let cpu = cpu();
    let mut group = criterion.benchmark_group("attention");
    for length in [512, 4096] {
        let q = random(Dtype::F32, &[length, HEADS, HEAD_DIM]);
        let k = random(Dtype::BF16, &[length, KV_HEADS, HEAD_DIM]);
        let mut out = Tensor::zeros(Dtype::F32, q.shape()).unwrap();
        let starts = indices(vec![0, length as i32]);
        group.throughput(Throughput::Elements((2 * length * length * HEADS * HEAD_DIM) as u64));
        group.bench_function(BenchmarkId::new("prefill", length), |bencher| {
            let segments = Segments { starts: &starts, parents: None };
            bencher.iter(|| cpu.attention(&mut out, None, &q, &k, &k, &segments, true, 0.125).unwrap());
        });
    }
    for (sequences, length) in [(1, 4096), (8, 1024)] {
        let page = 64;
        let pool = random(Dtype::BF16, &[sequences * length / page, KV_HEADS, page, HEAD_DIM]);
        let q = random(Dtype::F32, &[sequences, HEADS, HEAD_DIM]);
        let mut out = Tensor::zeros(Dtype::F32, q.shape()).unwrap();
        let pages = Pages {
            query_starts: &indices((0..=sequences as i32).collect()),
            lengths: &indices(vec![length as i32; sequences]),
            tables: &indices((0..pool.rows() as i32).collect())
                .reshaped(&[sequences, length / page])
                .unwrap(),
            groups: None,
        };
        group.throughput(Throughput::Bytes(2 * pool.byte_len() as u64));
        group.bench_function(BenchmarkId::new("decode", format!("{sequences}x{length}")), |bencher| {
            bencher.iter(|| cpu.paged_attention(&mut out, None, &q, &pool, &pool, &pages, 0.125).unwrap());
        });
    }
}

fn rest(criterion: &mut Criterion) {
    let cpu = cpu();
    let mut group = criterion.benchmark_group("rest");
    let (x, w) = (random(Dtype::F32, &[512, HIDDEN]), random(Dtype::BF16, &[HIDDEN]));
    let mut out = x.clone();
    group.throughput(Throughput::Bytes(2 * x.byte_len() as u64));
    group.bench_function("rms_norm-512", |b| b.iter(|| cpu.rms_norm(&mut out, &x, &w, 1e-6).unwrap()));
    let weight = random(Dtype::BF16, &[VOCABULARY, HIDDEN]);
    for rows in [1, 8, 128] {
        let hidden = random(Dtype::F32, &[rows, HIDDEN]);
        let zeros = || Tensor::zeros(Dtype::F32, &[rows]).unwrap();
        let greedy = indices(vec![0; rows]);
        let mut out = LogProbs { logp: zeros(), lse: zeros(), entropy: zeros(), greedy };
        let targets = indices((0..rows as i32).collect());
        group.throughput(throughput(rows, VOCABULARY * HIDDEN));
        group.bench_function(BenchmarkId::new("logprobs", rows), |bencher| {
            bencher.iter(|| cpu.logprobs(&mut out, &hidden, &weight, &targets, 1.0).unwrap());
        });
        let mut out = Drawn { token: indices(vec![0; rows]), logp: zeros(), entropy: None };
        for (name, draw) in [("sample", Draw::default()), ("top_p", Draw { top_p: 0.9, ..Draw::default() })] {
            let draws = vec![draw; rows];
            group.bench_function(BenchmarkId::new(name, rows), |bencher| {
                bencher.iter(|| cpu.sample(&mut out, &hidden, &weight, &draws).unwrap());
            });
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(15)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1200));
    targets = ceilings, linears, attentions, rest
}
criterion_main!(benches);
