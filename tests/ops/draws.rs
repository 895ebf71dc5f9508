//! Draws: their log-probs are those of scoring, they follow the distribution, and filters keep what they say.

use super::*;
use pellucid::backend::{Draw, Drawn};

/// Token and log-prob of each row.
fn sample(backend: &dyn Backend, hidden: &Tensor, weight: &Tensor, draws: &[Draw<'_>]) -> [Tensor; 2] {
    let Drawn { token, logp, .. } = sample_into(None, backend, hidden, weight, draws);
    [token, logp]
}

/// Token, log-prob and, with room for it, entropy of each row.
fn sample_into(
    entropy: Option<Tensor>,
    backend: &dyn Backend,
    hidden: &Tensor,
    weight: &Tensor,
    draws: &[Draw<'_>],
) -> Drawn {
    let token = indices(&vec![-1; draws.len()]);
    let mut out = Drawn { token, logp: poisoned(Dtype::F32, &[draws.len()]), entropy };
    backend.sample(&mut out, hidden, weight, draws).unwrap();
    out
}

/// One of each kind, over and over, at different positions.
fn all_kinds<'a>(count: usize, seen: &'a [u32]) -> Vec<Draw<'a>> {
    let kinds = [
        Draw::default(),
        Draw { temperature: 0.0, ..Draw::default() },
        Draw { temperature: 0.7, seed: 1 << 40, ..Draw::default() },
        Draw { top_k: 5, temperature: 1.3, ..Draw::default() },
        Draw { top_p: 0.8, ..Draw::default() },
        Draw { min_p: 0.1, temperature: 0.5, ..Draw::default() },
        Draw { top_k: 40, top_p: 0.9, min_p: 0.02, penalty: 1.4, seen, ..Draw::default() },
        Draw { temperature: 0.0, penalty: 1.8, seen, ..Draw::default() },
    ];
    (0..count).map(|row| Draw { position: row as u32 / 3, ..kinds[row % kinds.len()] }).collect()
}

#[test]
fn the_logprob_and_entropy_of_a_draw_are_those_of_scoring_it_and_rows_are_kept_apart() {
    let mut random = Random(20);
    for (b, c, vocabulary) in [(1, 8, 1), (8, 33, 511), (140, 32, 1300), (9, 64, 5003)] {
        for dtype in WEIGHTS {
            let (hidden, w) = (random.tensor(Dtype::F32, &[b, c]), random.tensor(dtype, &[vocabulary, c]));
            let seen: Vec<u32> = (0..40).map(|_| random.below(vocabulary + 3) as u32).collect();
            let draws = all_kinds(b, &seen);
            for backend in backends() {
                let what = format!("{dtype} {b}x{c}x{vocabulary}, {}", backend.describe());
                let room = poisoned(Dtype::F32, &[b]);
                let Drawn { token, logp, entropy } = sample_into(Some(room), &*backend, &hidden, &w, &draws);
                let entropy = entropy.unwrap();
                for (row, draw) in draws.iter().enumerate() {
                    let alone = rows(&hidden, row..row + 1);
                    let target = rows(&token, row..row + 1);
                    let scored = score(&*backend, &alone, &w, &target, draw.divisor(), Dtype::F32);
                    same_bits(&what, &rows(&logp, row..row + 1), &scored[0]);
                    same_bits(&what, &rows(&entropy, row..row + 1), &scored[2]);
                    if draw.is_greedy() && draw.penalty == 1.0 {
                        same_bits(&what, &target, &scored[3]);
                    }
                    if row % 8 == row / 8 {
                        let [token, logp_alone] = sample(&*backend, &alone, &w, &draws[row..row + 1]);
                        same_bits(&what, &target, &token);
                        same_bits(&what, &rows(&logp, row..row + 1), &logp_alone);
                    }
                }
            }
        }
    }
}

/// Backends that draw by the thousand. The emulated device's draws are held to the CPU's one by one in `tests/emu/`.
fn fast() -> impl Iterator<Item = Candidate> {
    backends().into_iter().filter(|backend| !backend.narrow)
}

/// Each row has the same distribution and noise of its own.
#[test]
fn draws_follow_what_the_filters_leave_of_the_distribution() {
    const DRAWS: usize = 4000;
    // Exact in bf16, and no filter cuts near a boundary.
    let logits = [0.5f32, 2.0, -1.0, 1.0, 0.0, -3.0];
    let weight = Tensor::from_slice(&[logits.len(), 1], &logits).unwrap();
    let hidden = Tensor::from_slice(&[DRAWS, 1], &vec![1f32; DRAWS]).unwrap();
    let seen = [3];
    for (draw, kept, penalised) in [
        (Draw::default(), &[0, 1, 2, 3, 4, 5][..], false),
        (Draw { temperature: 2.0, ..Draw::default() }, &[0, 1, 2, 3, 4, 5], false),
        (Draw { top_k: 3, ..Draw::default() }, &[0, 1, 3], false),
        (Draw { top_p: 0.75, ..Draw::default() }, &[1, 3], false),
        (Draw { min_p: 0.2, ..Draw::default() }, &[0, 1, 3], false),
        (Draw { top_k: 4, top_p: 0.99, min_p: 0.2, ..Draw::default() }, &[0, 1, 3], false),
        (Draw { penalty: 2.0, seen: &seen, ..Draw::default() }, &[0, 1, 2, 3, 4, 5], true),
    ] {
        let mass = |token: usize| {
            let logit = logits[token] / if penalised && token == 3 { 2.0 } else { 1.0 };
            if kept.contains(&token) { f64::from(logit / draw.temperature).exp() } else { 0.0 }
        };
        let total: f64 = (0..logits.len()).map(mass).sum();
        let draws: Vec<_> = (0..DRAWS).map(|at| Draw { position: at as u32, seed: 9, ..draw }).collect();
        for backend in fast() {
            let [token, _] = sample(&*backend, &hidden, &weight, &draws);
            let mut counts = [0; 6];
            token.as_slice::<i32>().unwrap().iter().for_each(|&token| counts[token as usize] += 1);
            for (token, &count) in counts.iter().enumerate() {
                let (expected, seen) = (mass(token) / total, f64::from(count) / DRAWS as f64);
                assert!(
                    (seen - expected).abs() <= 4.0 * (expected / DRAWS as f64).sqrt(),
                    "token {token} of {draw:?}: {seen} against {expected} on {}",
                    backend.describe()
                );
            }
        }
    }
}

/// Over a vocabulary of many blocks: exactly the likeliest are drawn, ties by the lowest id.
#[test]
fn filters_keep_exactly_the_likeliest() {
    let vocabulary = 3000;
    // 50 levels a whole step apart, each of 60 tokens; the likeliest level holds tokens 49, 99, 149, …
    let logits: Vec<f32> = (0..vocabulary).map(|token| (token % 50) as f32).collect();
    let weight = Tensor::from_slice(&[vocabulary, 1], &logits).unwrap();
    let hidden = Tensor::from_slice(&[400, 1], &vec![1f32; 400]).unwrap();
    for (draw, kept) in [
        (Draw { top_k: 10, ..Draw::default() }, 10),
        (Draw { top_k: 75, temperature: 50.0, ..Draw::default() }, 75),
        (Draw { top_p: 1e-6, ..Draw::default() }, 1),
        // The likeliest level has 0.632 of the probability, so 0.3 in all are 28.5 of its tokens.
        (Draw { top_p: 0.3, ..Draw::default() }, 29),
        (Draw { top_p: 0.28, top_k: 20, ..Draw::default() }, 6),
        (Draw { min_p: 0.5, ..Draw::default() }, 60),
    ] {
        let level = |place: usize| 49 - place / 60;
        let order: Vec<usize> = (0..vocabulary).map(|place| level(place) + 50 * (place % 60)).collect();
        let draws: Vec<_> = (0..400).map(|at| Draw { position: at, ..draw }).collect();
        for backend in fast() {
            let [token, _] = sample(&*backend, &hidden, &weight, &draws);
            let mut drawn: Vec<usize> = token.to_f64().iter().map(|&token| token as usize).collect();
            assert!(drawn.iter().all(|token| order[..kept].contains(token)), "{draw:?}: {drawn:?}");
            drawn.sort_unstable();
            drawn.dedup();
            assert!(drawn.len() >= kept.min(60) * 2 / 3, "{draw:?}: only {drawn:?}");
            assert!(kept > 60 || drawn.contains(&order[kept - 1]), "{draw:?}: {} never", order[kept - 1]);
        }
    }
}

#[test]
fn a_logit_that_is_not_finite_is_refused_with_row_and_token() {
    for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut values = vec![1f32; 1200];
        values[1000] = broken;
        values[1100] = broken;
        let weight = Tensor::from_slice(&[1200, 1], &values).unwrap();
        let hidden = Tensor::from_slice(&[1, 1], &[1f32]).unwrap();
        for draw in all_kinds(8, &[3]) {
            for backend in backends() {
                let [token, logp] = sample(&*backend, &hidden, &weight, &[draw]);
                let read = Drawn { token, logp, entropy: None }.read(&*backend).unwrap().remove(0);
                let error = read.unwrap_err().to_string();
                let words = format!("row 0: the logit of token 1000 is {broken}");
                assert!(error.contains(&words), "{error} on {}", backend.describe());
            }
        }
    }
}
