//! Rewards in tiers: a right answer pays less the more requests it took. And what is taken off a reward for leaving the
//! reference.

use super::advantage::{Advantages, Normalizer, add, advantages, check, is_uniform};
use super::surrogate::{Kl, kl};
use crate::error::{Error, Result, unknown};

const OP: &str = "tiers";

/// What became of a completion in one trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Whether the answer was right.
    pub correct: bool,
    /// Requests it took.
    pub asked: usize,
}

impl Outcome {
    /// What it earns: `payment` is what a right answer pays by the requests it took; beyond its end, nothing.
    pub fn reward(self, payment: &[f64]) -> f64 {
        if self.correct { payment.get(self.asked).copied().unwrap_or(0.0) } else { 0.0 }
    }
}

/// How tiers become advantages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Tiers {
    /// The reward is normalised as it is.
    #[default]
    Direct,
    /// It is a sum of rewards that are 0 or 1, R = Σ (`payment[k]` − `payment[k + 1]`) · right after at most k requests; each
    /// is normalised by itself.
    Decompose,
}

impl Tiers {
    /// By the name a configuration gives it.
    pub fn named(name: &str) -> Result<Self> {
        match name {
            "direct" => Ok(Tiers::Direct),
            "decompose" => Ok(Tiers::Decompose),
            other => Err(Error::caller(OP, unknown(other, &["direct", "decompose"]))),
        }
    }

    /// The name a configuration gives it.
    pub fn name(self) -> &'static str {
        match self {
            Tiers::Direct => "direct",
            Tiers::Decompose => "decompose",
        }
    }
}

/// Advantages of groups of completions, each with its trials, whose rewards are averaged. `payment` does not rise.
pub fn by_outcome(
    groups: &[Vec<Vec<Outcome>>],
    payment: &[f64],
    tiers: Tiers,
    normalizer: &Normalizer,
) -> Result<Advantages> {
    let falls = payment.windows(2).all(|pair| pair[0] >= pair[1]);
    if !falls || payment.iter().any(|pay| !(0.0..).contains(pay)) {
        let what = format!("payments {payment:?}; they are 0 at least and do not rise with requests");
        return Err(Error::caller(OP, what));
    }
    if groups.iter().flatten().any(Vec::is_empty) {
        return Err(Error::caller(OP, "a completion without a trial; leave it out of its group"));
    }
    let rewards = means(groups, |outcome| outcome.reward(payment));
    check(&rewards)?;
    if tiers == Tiers::Direct {
        return advantages(&rewards, normalizer);
    }
    let mut values: Vec<Vec<f64>> = rewards.iter().map(|group| vec![0.0; group.len()]).collect();
    let mut warning = None;
    for (most, &pay) in payment.iter().enumerate() {
        let weight = pay - payment.get(most + 1).copied().unwrap_or(0.0);
        let within = means(groups, |outcome| f64::from(u8::from(outcome.correct && outcome.asked <= most)));
        let part = advantages(&within, normalizer)?;
        add(&mut values, &part.values, weight);
        warning = warning.or(part.warning);
    }
    let uniform = rewards.iter().filter(|group| is_uniform(group)).count() as f64 / rewards.len() as f64;
    Ok(Advantages { values, fit: None, uniform, warning })
}

fn means(groups: &[Vec<Vec<Outcome>>], value: impl Fn(Outcome) -> f64) -> Vec<Vec<f64>> {
    let mean =
        |trials: &Vec<Outcome>| trials.iter().map(|&trial| value(trial)).sum::<f64>() / trials.len() as f64;
    groups.iter().map(|group| group.iter().map(mean).collect()).collect()
}

/// A reward less `coefficient` times the divergence from the reference, estimated over all tokens of a completion:
/// `logp` by the policy that drew them, `reference` by the reference.
pub fn shape_reward(
    reward: f64,
    logp: &[f32],
    reference: &[f32],
    (kind, coefficient): (Kl, f64),
) -> Result<f64> {
    if logp.len() != reference.len() {
        let what = format!("{} log-probs of a completion, {} of the reference", logp.len(), reference.len());
        return Err(Error::caller("kl", what));
    }
    let far =
        logp.iter().zip(reference).map(|(&logp, &reference)| kl(kind, logp.into(), reference.into()).value);
    Ok(reward - coefficient * far.sum::<f64>())
}
