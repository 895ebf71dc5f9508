//! `kernels/sample.cu` and `kernels/common/philox.cuh` against `backend::draw` and `backend::philox`.

use super::{blank, device, devices, download, launch, upload};
use bytemuck::{Pod, Zeroable};
use pellucid::backend::{
    Draw,
    gpu::{
        Argument::{Address as At, I32, U32},
        Emulator,
    },
    philox::{gumbel, philox},
};

#[test]
fn noise_is_that_of_the_cpu() {
    let device = device();
    for (seed, position, first) in [(0, 0, 0), (7, 3, 1), (u64::MAX, u32::MAX, 151_900), (1 << 32, 5, 2)] {
        let (words, noise) = (blank::<u32>(&device, 64), blank::<f32>(&device, 64));
        let [low, high] = [seed as u32, (seed >> 32) as u32];
        let arguments = [At(words), At(noise), U32(low), U32(high), U32(position), U32(first)];
        launch(&device, "noise", [1, 64], 0, &arguments).unwrap();
        let tokens = first..first + 64;
        let expected: Vec<u32> =
            tokens.clone().map(|t| philox([t / 4, position, 0, 0], [low, high])[t as usize % 4]).collect();
        assert_eq!(download::<u32>(&device, words, 64), expected);
        for (got, token) in download::<f32>(&device, noise, 64).into_iter().zip(tokens) {
            let expected = gumbel(seed, position, token);
            assert!((got - expected).abs() <= 1e-6 * expected.abs().max(1.0), "{got} against {expected}");
        }
    }
    // The ends, where noise must stay finite.
    let words = [0, u32::MAX, 0xffff_ff00, 0x8000_0000];
    let (at, noise) = (upload(&device, &words), blank::<f32>(&device, 4));
    launch(&device, "noise_of", [1, 4], 0, &[At(noise), At(at)]).unwrap();
    assert!(download::<f32>(&device, noise, 4).iter().all(|noise| noise.is_finite()));
}

/// As the kernel has it.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Settings {
    divisor: f32,
    greedy: i32,
    seed: [u32; 2],
    position: u32,
    slot: i32,
    top_k: i32,
    top_p: f32,
    min_p: f32,
    penalty: f32,
    seen: [i32; 2],
}

/// Score, token, logit of each row, drawn from rows of logits in reverse order.
fn sample(device: &Emulator, logits: &[Vec<f32>], draws: &[Draw<'_>]) -> Vec<(f32, i32, f32)> {
    let (columns, count) = (logits[0].len(), draws.len());
    let pitch = columns.next_multiple_of(4);
    let mut seen = Vec::new();
    let settings: Vec<Settings> = draws
        .iter()
        .enumerate()
        .map(|(row, draw)| {
            let first = seen.len() as i32;
            if draw.penalises() {
                seen.extend(draw.seen.iter().filter(|&&token| (token as usize) < columns));
            }
            Settings {
                divisor: draw.divisor(),
                greedy: draw.is_greedy().into(),
                seed: [draw.seed as u32, (draw.seed >> 32) as u32],
                position: draw.position,
                slot: (count - 1 - row) as i32,
                top_k: draw.top_k as i32,
                top_p: draw.top_p,
                min_p: draw.min_p,
                penalty: draw.penalty,
                seen: [first, seen.len() as i32],
            }
        })
        .collect();
    let padded: Vec<f32> =
        logits.iter().rev().flat_map(|row| [row, &vec![f32::NAN; pitch - columns][..]].concat()).collect();
    let rows: Vec<i32> = (0..count as i32).rev().collect();
    seen.push(0); // no allocation is empty
    let leaders = blank::<[u32; 4]>(device, count);
    let [logits, settings] = [upload(device, &padded), upload(device, &settings)];
    let [rows, seen] = [upload(device, &rows), upload(device, &seen)];
    let arguments =
        [At(leaders), At(logits), At(settings), At(rows), At(seen), I32(columns as i32), I32(pitch as i32)];
    let shared = 16_896 + columns.div_ceil(32) as u32 * 4;
    launch(device, "sample", [count as u32, 1024], shared, &arguments).unwrap();
    let leaders = download::<[u32; 4]>(device, leaders, count);
    leaders.iter().map(|l| (f32::from_bits(l[0]), l[1] as i32, f32::from_bits(l[2]))).collect()
}

/// A row of logits, some tokens far ahead as in a language model.
fn row_of(columns: usize, seed: u64) -> Vec<f32> {
    let spread = |token: u32| if gumbel(seed, 1, 4 * token) > 2.5 { 6.0 } else { 1.5 };
    (0..columns as u32).map(|token| gumbel(seed, 2, token) * spread(token)).collect()
}

fn kinds(columns: usize, seen: &[u32]) -> Vec<Draw<'_>> {
    let top_k = |top_k: usize| Draw { top_k, ..Draw::default() };
    let top_p = |top_p: f32| Draw { top_p, ..Draw::default() };
    vec![
        top_k(1),
        top_k(2),
        top_k(50),
        top_k(columns),
        Draw { temperature: 30.0, ..top_k(columns / 2) },
        top_p(1e-7),
        top_p(0.3),
        top_p(0.95),
        Draw { temperature: 20.0, ..top_p(0.5) },
        Draw { min_p: 0.05, ..Draw::default() },
        Draw { min_p: 0.999, temperature: 3.0, ..Draw::default() },
        Draw { top_p: 0.9, min_p: 0.01, temperature: 0.6, ..top_k(20) },
        Draw { penalty: 1.7, seen, ..Draw::default() },
        Draw { penalty: 0.6, seen, temperature: 0.0, ..Draw::default() },
        Draw { penalty: 2.5, seen, temperature: 2.0, top_p: 0.8, ..top_k(100) },
    ]
}

/// Whether roundings cannot matter: nearby settings draw the same.
fn well_separated(draw: &Draw<'_>, logits: &[f32], token: u32) -> bool {
    [0.9999, 1.0001].iter().all(|factor| {
        let top_p = if draw.top_p < 1.0 { draw.top_p * factor } else { 1.0 };
        let near =
            Draw { temperature: draw.temperature * factor, top_p, min_p: draw.min_p * factor, ..*draw };
        near.pick(&mut logits.to_vec()) == token
    })
}

fn compare(device: &Emulator, columns: usize, rounds: u32) {
    let seen: Vec<u32> = (0..60).map(|i| i * 7919 % (columns as u32 + 5)).collect();
    for round in 0..rounds {
        let mut draws = kinds(columns, &seen);
        for (i, draw) in draws.iter_mut().enumerate() {
            (draw.seed, draw.position) = (u64::from(round) << 40 | 11, i as u32 + 100 * round);
        }
        let logits: Vec<Vec<f32>> = (0..draws.len() as u64).map(|i| row_of(columns, i)).collect();
        let mut compared = 0;
        for ((draw, logits), drawn) in draws.iter().zip(&logits).zip(sample(device, &logits, &draws)) {
            let token = draw.pick(&mut logits.clone());
            if well_separated(draw, logits, token) {
                assert_eq!(drawn.1, token as i32, "{columns} columns, {draw:?}");
                assert_eq!(drawn.2.to_bits(), (logits[token as usize] / draw.divisor()).to_bits());
                compared += 1;
            }
        }
        assert!(compared >= draws.len() - 2, "only {compared} draws were well separated");
    }
}

#[test]
fn draws_are_those_of_the_cpu_in_all_orders_of_threads() {
    for (device, columns) in devices().iter().zip([1000, 4097, 1023, 5, 2048]) {
        compare(device, columns, 2);
    }
    compare(&device(), 32_000, 1);
}

/// All alike: filters keep the lowest ids, exactly as many as they should.
#[test]
fn among_equals_the_lowest_ids_are_kept() {
    let device = device();
    for (columns, draw, kept) in [
        (1000, Draw { top_k: 7, ..Draw::default() }, 7),
        (3000, Draw { top_k: 1500, ..Draw::default() }, 1500),
        (1000, Draw { top_p: 0.0155, ..Draw::default() }, 16),
        (3000, Draw { top_k: 2, top_p: 0.3, ..Draw::default() }, 1),
        (1000, Draw { top_k: 40, min_p: 0.9, ..Draw::default() }, 40),
    ] {
        for value in [-0.0, 1e-40] {
            let draws: Vec<_> =
                (0..12).map(|position| Draw { position, seed: f32::to_bits(value).into(), ..draw }).collect();
            let drawn = sample(&device, &vec![vec![value; columns]; draws.len()], &draws);
            let mut greatest = 0;
            for (draw, (_, token, logit)) in draws.iter().zip(drawn) {
                assert_eq!(token, draw.pick(&mut vec![value; columns]) as i32, "{draw:?}");
                assert!(token < kept && logit == value, "{draw:?}: {token}");
                greatest = greatest.max(token);
            }
            assert!(greatest >= kept / 2, "{draw:?}: none above {greatest}");
        }
    }
}

/// Sums pass 32 bits: one token has a sixth of the probability, thousands share the rest.
#[test]
fn a_long_tail_weighs_what_it_weighs() {
    let logits = [vec![0.0], vec![-6.2f32; 3000]].concat();
    let draws: Vec<_> = (0..8).map(|position| Draw { position, top_p: 0.5, ..Draw::default() }).collect();
    let drawn = sample(&device(), &vec![logits.clone(); draws.len()], &draws);
    for (draw, &(_, token, _)) in draws.iter().zip(&drawn) {
        assert_eq!(token, draw.pick(&mut logits.clone()) as i32);
    }
    assert!(drawn.iter().any(|&(_, token, _)| token > 600));
}

/// The head reports such a row; here it may draw what it likes, but comes to an end within the vocabulary.
#[test]
fn logits_that_are_not_finite_do_no_harm() {
    let device = device();
    let draws = kinds(300, &[5]);
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
        for count in [1, 300] {
            let row = [vec![value; count], vec![0.5; 300 - count]].concat();
            for (_, token, _) in sample(&device, &vec![row; draws.len()], &draws) {
                assert!((0..300).contains(&token), "{value} {count}: {token}");
            }
        }
    }
}
