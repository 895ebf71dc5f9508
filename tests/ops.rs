//! Every op against the f64 oracle, and against itself: same row, same bits.
//!
//! Bodies take `&dyn Backend`, so another backend joins by joining [`backends`]. An error against the
//! oracle may be at most twice that of the plain computation in the same dtypes plus one perturbation (a
//! unit in the last place); NaN never passes. Outputs are filled with NaN beforehand, so
//! that what an op forgets to write is seen.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "ops/attention_backward.rs"]
mod attention_backward;
#[path = "ops/backward.rs"]
mod backward;
#[path = "ops/draws.rs"]
mod draws;
#[path = "ops/gradients.rs"]
mod gradients;
#[path = "ops/groups.rs"]
mod groups;
#[path = "ops/harness.rs"]
mod harness;
#[path = "support/narrow.rs"]
mod narrow;
#[path = "ops/optimiser.rs"]
mod optimiser;

use harness::{Candidate, Random, backends, compare, indices, packed, poisoned, rows, same_bits, wide};
use pellucid::{
    backend::{
        Activation, Backend, Draw, Drawn, Epilogue, Linear, LogProbs, LoraRows, Pages, Rope, cpu::Cpu,
        plain::Plain,
    },
    tensor::{Dtype, Tensor},
};

const WEIGHTS: [Dtype; 2] = [Dtype::F32, Dtype::BF16];

#[test]
fn linear_equals_the_oracle() {
    let mut random = Random(1);
    for (t, k, n) in
        [(1, 1, 1), (1, 31, 5), (7, 33, 18), (2, 64, 4), (13, 100, 33), (100, 48, 131), (3, 4999, 7)]
    {
        for dtype in WEIGHTS {
            let (x, w) = (random.tensor(Dtype::F32, &[t, k]), random.tensor(dtype, &[n, k]));
            let (bias, gain) = (random.tensor(dtype, &[n]), random.tensor(Dtype::F32, &[n]));
            let before = random.tensor(Dtype::F32, &[t, n]);
            let (a, b) = (random.tensor(dtype, &[3, k]), random.tensor(dtype, &[n, 3]));
            let (a2, b2) = (random.tensor(Dtype::F32, &[33, k]), random.tensor(Dtype::F32, &[n, 33]));
            let lora = [
                LoraRows { rows: 0..t / 3, a: &a, b: &b, scale: 0.7 },
                LoraRows { rows: t / 2..t, a: &a2, b: &b2, scale: -0.1 },
            ];
            for backend in backends() {
                compare(&format!("linear {dtype} {t}x{k}x{n}"), &backend, |backend, activation| {
                    let x = wide(&x, activation);
                    let bare = Linear { weight: &w, bias: None, lora: &[] };
                    let full = Linear { weight: &w, bias: Some(&bias), lora: &lora };
                    let mut outs = Vec::new();
                    for (linear, epilogue) in [
                        (&bare, Epilogue::Store),
                        (&full, Epilogue::Store),
                        (&bare, Epilogue::Add),
                        (&full, Epilogue::AddScaled(&gain)),
                        (&bare, Epilogue::Activate(Activation::Silu)),
                        (&bare, Epilogue::Activate(Activation::Gelu)),
                        (&bare, Epilogue::Activate(Activation::GeluTanh)),
                        (&bare, Epilogue::Activate(Activation::QuickGelu)),
                    ] {
                        let adds = matches!(epilogue, Epilogue::Add | Epilogue::AddScaled(_));
                        let mut out =
                            if adds { wide(&before, activation) } else { poisoned(activation, &[t, n]) };
                        backend.linear(&mut out, &x, linear, epilogue).unwrap();
                        outs.push(out);
                    }
                    let mut out = poisoned(activation, &[t, n]);
                    backend.gated_linear(&mut out, &x, &full, &bare, Activation::Silu).unwrap();
                    outs.push(out);
                    outs
                });
            }
        }
    }
}

#[test]
fn a_row_of_a_linear_is_the_same_alone() {
    let mut random = Random(2);
    let (k, n) = (2100, 150);
    for dtype in WEIGHTS {
        let x = random.tensor(Dtype::F32, &[230, k]);
        let (w, a, b) =
            (random.tensor(dtype, &[n, k]), random.tensor(dtype, &[8, k]), random.tensor(dtype, &[n, 8]));
        for backend in backends() {
            let run = |range: std::ops::Range<usize>| {
                let lora = [LoraRows { rows: 0..range.len(), a: &a, b: &b, scale: 0.5 }];
                let linear = Linear { weight: &w, bias: None, lora: &lora };
                let mut out = poisoned(Dtype::F32, &[range.len(), n]);
                backend.linear(&mut out, &rows(&x, range), &linear, Epilogue::Store).unwrap();
                out
            };
            let all = run(0..230);
            same_bits("again", &all, &run(0..230));
            for height in (1..40).chain([97, 200]) {
                let start = random.below(230 - height);
                same_bits(
                    &format!("{height} rows, {}", backend.describe()),
                    &run(start..start + height),
                    &rows(&all, start..start + height),
                );
            }
        }
    }
}

/// Threads own tiles; their number is no part of the result.
#[test]
fn threads_do_not_change_bits() {
    let mut random = Random(3);
    let (x, w) = (random.tensor(Dtype::F32, &[130, 96]), random.tensor(Dtype::BF16, &[700, 96]));
    let (q, k) = (random.tensor(Dtype::F32, &[130, 4, 24]), random.tensor(Dtype::F32, &[130, 2, 24]));
    let targets = indices(&(0..130).collect::<Vec<_>>());
    for set in Cpu::instruction_sets() {
        let results = [1, 2, 3, 4].map(|threads| {
            let cpu = Cpu::with_instructions(Some(threads), Some(set)).unwrap();
            let mut y = poisoned(Dtype::F32, &[130, 700]);
            let linear = Linear { weight: &w, bias: None, lora: &[] };
            cpu.linear(&mut y, &x, &linear, Epilogue::Store).unwrap();
            let mut attended = poisoned(Dtype::F32, &[130, 4, 24]);
            cpu.attention(&mut attended, None, &q, &k, &k, &packed(&indices(&[0, 130])), true, 0.2).unwrap();
            let scored = score(&cpu, &x, &w, &targets, 1.0, Dtype::F32);
            [vec![y, attended], scored].concat()
        });
        for other in &results[1..] {
            results[0].iter().zip(other).for_each(|(a, b)| same_bits(set, a, b));
        }
    }
}

#[test]
fn norms_equal_the_oracle_and_keep_rows_apart() {
    let mut random = Random(4);
    for (t, c, d) in [(1, 1, 1), (3, 24, 8), (5, 896, 896), (40, 1280, 80), (17, 100, 100)] {
        for dtype in WEIGHTS {
            let x = random.tensor(Dtype::F32, &[t, c]);
            let (w, b) = (random.tensor(dtype, &[c]), random.tensor(dtype, &[c]));
            let per_head = random.tensor(dtype, &[d]);
            for backend in backends() {
                let op = |backend: &dyn Backend, activation, x: &Tensor| {
                    let mut outs = [(); 2].map(|()| poisoned(activation, x.shape()));
                    backend.rms_norm(&mut outs[0], x, &per_head, 1e-6).unwrap();
                    // A row of one element has no variance: an ε that is not tiny keeps it well-posed.
                    backend.layer_norm(&mut outs[1], x, &w, &b, if c == 1 { 1.0 } else { 1e-5 }).unwrap();
                    outs.to_vec()
                };
                compare(&format!("norms {t}x{c}"), &backend, |backend, activation| {
                    op(backend, activation, &wide(&x, activation))
                });
                let all = op(&*backend, Dtype::F32, &x);
                let one = op(&*backend, Dtype::F32, &rows(&x, t - 1..t));
                for (all, one) in all.iter().zip(&one) {
                    same_bits("norm", &rows(all, t - 1..t), one);
                }
            }
        }
    }
}

#[test]
fn rope_equals_the_oracle_and_turns_back() {
    let mut random = Random(5);
    for (t, heads, d, axes) in [(1, 1, 2, 1), (9, 3, 16, 3), (300, 2, 64, 1), (11, 5, 80, 2)] {
        let x = random.tensor(Dtype::F32, &[t, heads * d]);
        let inv_freq: Vec<f32> = (0..d / 2).map(|i| 1e4f32.powf(-2.0 * i as f32 / d as f32)).collect();
        let axis: Vec<i32> = (0..d / 2).map(|i| (i % axes) as i32).collect();
        let rope = Rope { inv_freq: Tensor::from_slice(&[d / 2], &inv_freq).unwrap(), axis: indices(&axis) };
        let positions: Vec<i32> = (0..axes * t).map(|_| random.below(60) as i32).collect();
        let positions = Tensor::from_slice(&[axes, t], &positions).unwrap();
        for backend in backends() {
            compare(&format!("rope {t}x{heads}x{d}"), &backend, |backend, activation| {
                let mut y = wide(&x, activation);
                backend.rope(&mut y, &positions, &rope, false).unwrap();
                let mut back = y.clone();
                backend.rope(&mut back, &positions, &rope, true).unwrap();
                vec![y, back]
            });
        }
    }
}

#[test]
fn attention_equals_the_oracle() {
    let mut random = Random(6);
    for (starts, heads, kv_heads, d) in [
        (vec![0, 1], 1, 1, 8),
        (vec![0, 0, 5, 5, 22], 4, 2, 16),
        (vec![0, 300], 7, 1, 64),
        (vec![0, 256, 513, 514], 2, 2, 72),
        (vec![0, 40, 41], 6, 3, 256),
    ] {
        let t = *starts.last().unwrap() as usize;
        let q = random.tensor(Dtype::F32, &[t, heads, d]);
        for dtype in WEIGHTS {
            let (k, v) = (random.tensor(dtype, &[t, kv_heads, d]), random.tensor(dtype, &[t, kv_heads, d]));
            for backend in backends() {
                for causal in [true, false] {
                    let what =
                        format!("attention {dtype} {starts:?} {heads}/{kv_heads} of {d}, causal {causal}");
                    compare(&what, &backend, |backend, activation| {
                        let (q, k, v) = (wide(&q, activation), wide(&k, activation), wide(&v, activation));
                        let mut out = poisoned(activation, &[t, heads, d]);
                        let mut lse = poisoned(activation, &[t, heads]);
                        let starts = indices(&starts);
                        backend
                            .attention(&mut out, Some(&mut lse), &q, &k, &v, &packed(&starts), causal, 0.3)
                            .unwrap();
                        vec![out, lse]
                    });
                }
            }
        }
    }
}

/// Whole, in chunks, token by token; contiguous or in scrambled pages; alone or among others: same bits.
#[test]
fn attention_does_not_depend_on_chunks_or_pages() {
    let mut random = Random(7);
    let (heads, kv_heads, d) = (6, 2, 40);
    let lengths = [3usize, 530, 257];
    let total: usize = lengths.iter().sum();
    for (dtype, page) in [(Dtype::F32, 16), (Dtype::BF16, 16), (Dtype::BF16, 64)] {
        let q = random.tensor(Dtype::F32, &[total, heads, d]);
        // What the pages hold is what contiguous attention reads.
        let (k, v) =
            (random.tensor(dtype, &[total, kv_heads, d]), random.tensor(dtype, &[total, kv_heads, d]));
        let starts = indices(&[0, 3, 533, 790]);
        let pages: usize = lengths.iter().map(|length| length.div_ceil(page)).sum::<usize>() + 3;
        let mut numbers = random.permutation(pages).into_iter();
        let width = 40;
        let tables: Vec<Vec<i32>> = lengths
            .iter()
            .map(|length| {
                let mut table: Vec<i32> = numbers.by_ref().take(length.div_ceil(page)).collect();
                table.resize(width, -1);
                table
            })
            .collect();
        // Devices have pages of 64.
        for backend in backends().into_iter().filter(|backend| page == 64 || !backend.narrow) {
            let mut whole = poisoned(Dtype::F32, &[total, heads, d]);
            let mut whole_lse = poisoned(Dtype::F32, &[total, heads]);
            let segments = packed(&starts);
            backend.attention(&mut whole, Some(&mut whole_lse), &q, &k, &v, &segments, true, 0.2).unwrap();

            let pool = || poisoned(dtype, &[pages, kv_heads, page, d]);
            let (mut k_pool, mut v_pool) = (pool(), pool());
            let mut done = [0; 3];
            let mut step = 0;
            while done != lengths {
                // Ragged steps: whole prompts, odd chunks, single tokens.
                let counts: Vec<usize> =
                    (0..3).map(|s| [1, 7, 300, 1, 64][(step + s) % 5].min(lengths[s] - done[s])).collect();
                step += 1;
                let mut packed = Vec::new(); // rows of the whole, in packed order
                let (mut slots, mut bounds) = (Vec::new(), vec![0]);
                for s in 0..3 {
                    let first: usize = lengths[..s].iter().sum();
                    for position in done[s]..done[s] + counts[s] {
                        packed.push((first + position) as i32);
                        slots.push(tables[s][position / page] * page as i32 + (position % page) as i32);
                    }
                    done[s] += counts[s];
                    bounds.push(packed.len() as i32);
                }
                let take = |from: &Tensor, dtype| {
                    let mut shape = from.shape().to_vec();
                    shape[0] = packed.len();
                    let mut out = poisoned(dtype, &shape);
                    Plain::<f32>::default().gather_rows(&mut out, from, &indices(&packed)).unwrap();
                    out
                };
                let (k, v) = (take(&k, dtype), take(&v, dtype));
                backend.kv_append(&mut k_pool, &mut v_pool, &k, &v, &indices(&slots)).unwrap();
                let mut out = poisoned(Dtype::F32, &[packed.len(), heads, d]);
                let mut lse = poisoned(Dtype::F32, &[packed.len(), heads]);
                let q = take(&q, Dtype::F32);
                let pages = Pages {
                    query_starts: &indices(&bounds),
                    lengths: &indices(&done.map(|length| length as i32)),
                    tables: &Tensor::from_slice(&[3, width], &tables.concat()).unwrap(),
                    groups: None,
                };
                backend.paged_attention(&mut out, Some(&mut lse), &q, &k_pool, &v_pool, &pages, 0.2).unwrap();
                let what = format!("{dtype}, step {step}, {}", backend.describe());
                same_bits(&what, &out, &take(&whole, Dtype::F32));
                same_bits(&what, &lse, &take(&whole_lse, Dtype::F32));
            }
        }
    }
}

fn score(
    backend: &dyn Backend,
    hidden: &Tensor,
    weight: &Tensor,
    targets: &Tensor,
    temperature: f32,
    activation: Dtype,
) -> Vec<Tensor> {
    let t = [hidden.rows()];
    let [logp, lse, entropy] = [(); 3].map(|()| poisoned(activation, &t));
    let mut out = LogProbs { logp, lse, entropy, greedy: indices(&vec![-1; t[0]]) };
    backend.logprobs(&mut out, hidden, weight, targets, temperature).unwrap();
    vec![out.logp, out.lse, out.entropy, out.greedy]
}

#[test]
fn logprobs_equal_the_oracle_and_keep_rows_apart() {
    let mut random = Random(8);
    for (t, c, vocabulary) in [(1, 8, 1), (40, 33, 511), (101, 32, 1300), (5, 64, 5000)] {
        for dtype in WEIGHTS {
            let (hidden, w) = (random.tensor(Dtype::F32, &[t, c]), random.tensor(dtype, &[vocabulary, c]));
            // Exact in bf16, so that the oracle's greedy token cannot differ by the contract's rounding.
            let hidden = hidden.converted(Dtype::BF16).unwrap().converted(Dtype::F32).unwrap();
            let targets: Vec<i32> = (0..t).map(|_| random.below(vocabulary) as i32).collect();
            let targets = indices(&targets);
            for backend in backends() {
                for temperature in [1.0, 0.6] {
                    compare(
                        &format!("logprobs {dtype} {t}x{c}x{vocabulary}"),
                        &backend,
                        |backend, activation| {
                            score(backend, &wide(&hidden, activation), &w, &targets, temperature, activation)
                        },
                    );
                    let all = score(&*backend, &hidden, &w, &targets, temperature, Dtype::F32);
                    for range in [0..1, t - 1..t, t / 2..t] {
                        let (x, target) = (rows(&hidden, range.clone()), rows(&targets, range.clone()));
                        let part = score(&*backend, &x, &w, &target, temperature, Dtype::F32);
                        for (all, part) in all.iter().zip(&part) {
                            same_bits("logprobs", &rows(all, range.clone()), part);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn greedy_is_the_lowest_id_among_equals() {
    let hidden = Tensor::from_slice(&[1, 1], &[1f32]).unwrap();
    let mut values = vec![0f32; 2000];
    [700, 701, 1900].iter().for_each(|&token: &usize| values[token] = 3.0);
    let weight = Tensor::from_slice(&[2000, 1], &values).unwrap();
    for backend in backends() {
        let out = score(&*backend, &hidden, &weight, &indices(&[0]), 1.0, Dtype::F32);
        assert_eq!(out[3].to_f64(), [700.0]);
    }
}

#[test]
fn rows_are_moved_and_neighbours_left_alone() {
    let mut random = Random(9);
    let table = random.tensor(Dtype::BF16, &[50, 12]);
    for backend in backends() {
        let picked = [49, 0, 7, 7];
        let mut out = poisoned(Dtype::F32, &[4, 12]);
        backend.gather_rows(&mut out, &table, &indices(&picked)).unwrap();
        for (row, &from) in picked.iter().enumerate() {
            let expected = rows(&table, from as usize..from as usize + 1);
            assert_eq!(rows(&out, row..row + 1).to_f64(), expected.to_f64());
        }
        let before = random.tensor(Dtype::BF16, &[9, 12]).converted(Dtype::F32).unwrap();
        let mut after = before.clone();
        backend.scatter_rows(&mut after, &rows(&out, 0..2), &indices(&[8, 3])).unwrap();
        for row in 0..9 {
            let (expected, from) = match row {
                8 => (&out, 0),
                3 => (&out, 1),
                _ => (&before, row),
            };
            same_bits("scatter", &rows(&after, row..row + 1), &rows(expected, from..from + 1));
        }
    }
}

fn f32s(shape: &[usize]) -> Tensor {
    Tensor::zeros(Dtype::F32, shape).unwrap()
}

#[track_caller]
fn refused(result: pellucid::Result<()>, words: &[&str]) {
    let message = result.expect_err("is refused").to_string();
    assert!(words.iter().all(|word| message.contains(word)), "{message:?} lacks one of {words:?}");
}

fn all_backends() -> Vec<Candidate> {
    let mut all = backends();
    all.push(Candidate { backend: Box::new(Cpu::oracle()), narrow: false });
    all
}

/// Bad arguments are refused by name, before anything is written.
#[test]
fn bad_arguments_are_refused() {
    for backend in all_backends() {
        let (x, w) = (f32s(&[2, 8]), f32s(&[3, 9]));
        let linear = Linear { weight: &w, bias: None, lora: &[] };
        let result = backend.linear(&mut f32s(&[2, 3]), &x, &linear, Epilogue::Store);
        refused(result, &["linear", "weight", "[3, 9]", "[3, 8]"]);

        let (w, a, b) = (f32s(&[3, 8]), f32s(&[1, 8]), f32s(&[3, 1]));
        let lora = [(); 2].map(|()| LoraRows { rows: 0..2, a: &a, b: &b, scale: 1.0 });
        let linear = Linear { weight: &w, bias: None, lora: &lora };
        refused(backend.linear(&mut f32s(&[2, 3]), &x, &linear, Epilogue::Store), &["adapter 1", "0..2"]);

        refused(backend.rms_norm(&mut f32s(&[2, 8]), &x, &f32s(&[3]), 1e-6), &["rms_norm", "divides"]);

        let q = f32s(&[4, 2, 8]);
        let result = backend.attention(
            &mut q.clone(),
            None,
            &q,
            &f32s(&[4, 3, 8]),
            &f32s(&[4, 3, 8]),
            &packed(&indices(&[0, 4])),
            true,
            1.0,
        );
        refused(result, &["attention", "divides 2"]);

        let mut out =
            LogProbs { logp: f32s(&[2]), lse: f32s(&[2]), entropy: f32s(&[2]), greedy: indices(&[0, 0]) };
        refused(backend.logprobs(&mut out, &x, &w, &indices(&[0, 0]), 0.0), &["temperature is 0"]);

        let mut out = Drawn { token: indices(&[0, 0]), logp: f32s(&[2]), entropy: None };
        let draw = Draw::default();
        refused(backend.sample(&mut out, &x, &w, &[draw]), &["sample", "hidden", "1 draws"]);
        let cold = Draw { temperature: -1.0, ..draw };
        refused(backend.sample(&mut out, &x, &w, &[draw, cold]), &["temperature -1"]);
        out.entropy = Some(f32s(&[3]));
        refused(backend.sample(&mut out, &x, &w, &[draw, draw]), &["sample", "entropy"]);
    }
}

/// What index tensors hold is checked by who can read it: a device's kernels trust the host.
#[test]
fn bad_indices_are_refused_in_host_memory() {
    for backend in all_backends().into_iter().filter(|backend| !backend.narrow) {
        let (x, w) = (f32s(&[2, 8]), f32s(&[3, 8]));
        let result = backend.gather_rows(&mut f32s(&[1, 8]), &x, &indices(&[2]));
        refused(result, &["gather_rows", "rows[0] is 2", "index < 2"]);
        let result = backend.scatter_rows(&mut f32s(&[2, 8]), &f32s(&[1, 8]), &indices(&[-1]));
        refused(result, &["scatter_rows", "rows[0] is -1"]);

        let q = f32s(&[4, 2, 8]);
        let result =
            backend.attention(&mut q.clone(), None, &q, &q, &q, &packed(&indices(&[0, 3])), true, 1.0);
        refused(result, &["attention", "starts", "0 to 4"]);

        let pool = f32s(&[2, 2, 16, 8]);
        let table = Tensor::from_slice(&[1, 2], &[1, 5]).unwrap();
        for (length, words) in
            [(20, ["page 5", "< 2"]), (3, ["lengths[0] is 3", "4 queries"]), (40, ["lengths[0]", "32"])]
        {
            let pages = Pages {
                query_starts: &indices(&[0, 4]),
                lengths: &indices(&[length]),
                tables: &table,
                groups: None,
            };
            let result = backend.paged_attention(&mut q.clone(), None, &q, &pool, &pool, &pages, 1.0);
            refused(result, &words);
        }
        let result =
            backend.kv_append(&mut pool.clone(), &mut pool.clone(), &q, &q, &indices(&[0, 1, 2, 32]));
        refused(result, &["kv_append", "slots[3] is 32"]);

        let mut out =
            LogProbs { logp: f32s(&[2]), lse: f32s(&[2]), entropy: f32s(&[2]), greedy: indices(&[0, 0]) };
        refused(backend.logprobs(&mut out, &x, &w, &indices(&[0, 3]), 1.0), &["targets[1] is 3"]);
    }
}
