//! Log-probs into losses: the clipped surrogate, the distance to a reference, and how tokens count.
//!
//! Every function gives a value and its slope, the derivative by the policy's log-prob of the token.

use crate::error::{Error, Result, unknown};
use std::collections::BTreeSet;

/// A value, and its derivative by the policy's log-prob.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slope {
    /// The value.
    pub value: f64,
    /// Its derivative.
    pub slope: f64,
}

/// How far one update may move a token's probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clip {
    /// The ratio counts down to 1 − low.
    pub low: f64,
    /// And up to 1 + high.
    pub high: f64,
    /// The most that a bad token costs, in times its advantage.
    pub dual: Option<f64>,
}

/// Log-ratios beyond this are as good as infinite.
const FARTHEST: f64 = 20.0;

/// The loss of a token with this advantage, and whether the clip holds it.
pub fn surrogate(logp: f64, old: f64, advantage: f64, clip: &Clip) -> (Slope, bool) {
    let log_ratio = logp - old;
    let inside = log_ratio.abs() <= FARTHEST;
    let ratio = log_ratio.clamp(-FARTHEST, FARTHEST).exp();
    let (free, held) = (-advantage * ratio, -advantage * ratio.clamp(1.0 - clip.low, 1.0 + clip.high));
    let mut loss = Slope { value: free, slope: if inside { free } else { 0.0 } };
    let mut clipped = false;
    if held > free {
        loss = Slope { value: held, slope: 0.0 };
        clipped = true;
    }
    if let Some(dual) = clip.dual
        && advantage < 0.0
        && -advantage * dual < loss.value
    {
        loss = Slope { value: -advantage * dual, slope: 0.0 };
        clipped = true;
    }
    (loss, clipped)
}

/// An estimate of the divergence from a reference, from one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kl {
    /// d, the difference of log-probs. As a loss its slope is 0 on average: it belongs into the reward.
    K1,
    /// d²/2.
    K2,
    /// e^−d + d − 1.
    K3,
}

impl Kl {
    /// The name a configuration gives it.
    pub fn name(self) -> &'static str {
        match self {
            Kl::K1 => "k1",
            Kl::K2 => "k2",
            Kl::K3 => "k3",
        }
    }
}

/// The estimate for a token.
pub fn kl(kind: Kl, logp: f64, reference: f64) -> Slope {
    let d = logp - reference;
    match kind {
        Kl::K1 => Slope { value: d, slope: 1.0 },
        Kl::K2 => Slope { value: d * d / 2.0, slope: d },
        Kl::K3 => Slope { value: (-d).exp_m1() + d, slope: -(-d).exp_m1() },
    }
}

/// How the losses of tokens become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aggregation {
    /// The mean over sequences of the mean over tokens (GRPO).
    SeqMeanTokenMean,
    /// The mean over a microbatch's tokens, averaged over microbatches (TRL's `bnpo`).
    TokenMeanLocal,
    /// The mean over all tokens of a step (DAPO).
    TokenMeanGlobal,
    /// The sum over B times the longest completion allowed (Dr. GRPO).
    Const {
        /// That length.
        longest: usize,
    },
    /// The mean over sequences of the sum over tokens (Beta normalisation's authors).
    SeqMeanTokenSum,
}

impl Aggregation {
    /// By the name a configuration gives it; `longest` is for `const`.
    pub fn named(name: &str, longest: usize) -> Result<Self> {
        Ok(match name {
            "seq_mean_token_mean" => Aggregation::SeqMeanTokenMean,
            "token_mean_local" => Aggregation::TokenMeanLocal,
            "token_mean_global" => Aggregation::TokenMeanGlobal,
            "const" => Aggregation::Const { longest },
            "seq_mean_token_sum" => Aggregation::SeqMeanTokenSum,
            other => {
                let known = [
                    "seq_mean_token_mean",
                    "token_mean_local",
                    "token_mean_global",
                    "const",
                    "seq_mean_token_sum",
                ];
                return Err(Error::caller("aggregation", unknown(other, &known)));
            }
        })
    }

    /// The name a configuration gives it.
    pub fn name(self) -> &'static str {
        match self {
            Aggregation::SeqMeanTokenMean => "seq_mean_token_mean",
            Aggregation::TokenMeanLocal => "token_mean_local",
            Aggregation::TokenMeanGlobal => "token_mean_global",
            Aggregation::Const { .. } => "const",
            Aggregation::SeqMeanTokenSum => "seq_mean_token_sum",
        }
    }
}

/// What a token of each sequence weighs in the loss of the whole step: `microbatches` holds the number of tokens that
/// count in each sequence, microbatch by microbatch. A denominator is at least 1.
pub fn token_weights(microbatches: &[Vec<usize>], aggregation: Aggregation) -> Vec<Vec<f64>> {
    let over = |count: usize| 1.0 / count.max(1) as f64;
    let sequences = over(microbatches.iter().map(Vec::len).sum());
    let tokens = over(microbatches.iter().flatten().sum());
    let weight = |batch: &Vec<usize>, length: usize| match aggregation {
        Aggregation::SeqMeanTokenMean => sequences * over(length),
        Aggregation::TokenMeanLocal => over(microbatches.len()) * over(batch.iter().sum()),
        Aggregation::TokenMeanGlobal => tokens,
        Aggregation::Const { longest } => sequences * over(longest),
        Aggregation::SeqMeanTokenSum => sequences,
    };
    microbatches.iter().map(|batch| batch.iter().map(|&length| weight(batch, length)).collect()).collect()
}

/// As [`token_weights`], where a sequence belongs to a part of the loss: each part is weighed as if the step held
/// nothing else, so that the losses of the parts add up. A microbatch that holds nothing of a part does not count in it.
pub fn part_weights(microbatches: &[Vec<(u32, usize)>], aggregation: Aggregation) -> Vec<Vec<f64>> {
    let mut weights: Vec<Vec<f64>> = microbatches.iter().map(|batch| vec![0.0; batch.len()]).collect();
    let parts: BTreeSet<u32> = microbatches.iter().flatten().map(|&(part, _)| part).collect();
    for part in parts {
        let lengths = |batch: &Vec<(u32, usize)>| -> Vec<usize> {
            batch.iter().filter(|(of, _)| *of == part).map(|&(_, length)| length).collect()
        };
        let alone: Vec<Vec<usize>> =
            microbatches.iter().map(lengths).filter(|batch| !batch.is_empty()).collect();
        let places = weights.iter_mut().zip(microbatches).flat_map(|(row, batch)| row.iter_mut().zip(batch));
        let mine = places.filter(|(_, (of, _))| *of == part).map(|(place, _)| place);
        mine.zip(token_weights(&alone, aggregation).concat()).for_each(|(place, weight)| *place = weight);
    }
    weights
}
