//! Rewards into advantages: how much better a completion was than its group.
//!
//! Every normalizer but `rloo` and `whiten` is the centred reward times a factor; they differ in the factor. A group
//! whose rewards are all equal teaches nothing: its advantages are exactly 0 under all of them.

use super::beta::{BetaDensity, BetaFit, Normalised};
use crate::error::{Error, Result, unknown};
use serde::{Deserialize, Serialize};

const OP: &str = "advantages";

/// Rewards closer than this count as equal.
pub(super) const EQUAL: f64 = 1e-9;

/// How centred rewards are scaled.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Normalizer {
    /// R − r̄ (Dr. GRPO).
    None,
    /// Over the group's standard deviation plus `eps` (GRPO).
    GroupStd {
        /// Added to the deviation.
        #[serde(default = "usual_eps")]
        eps: f64,
        /// What is taken off the count: 1 is unbiased.
        #[serde(default = "usual_ddof")]
        ddof: usize,
    },
    /// Over the standard deviation of all rewards plus `eps`.
    BatchStd {
        /// Added to the deviation.
        #[serde(default = "usual_eps")]
        eps: f64,
    },
    /// Centred rewards whitened over the batch (REINFORCE++ with a group baseline).
    Whiten,
    /// R less the mean of the others in its group.
    Rloo,
    /// Over a Beta density fitted to the batch, at the group's mean (Xiao et al., arXiv 2506.02864).
    BetaDensity(BetaDensity),
}

fn usual_eps() -> f64 {
    1e-4
}

fn usual_ddof() -> usize {
    1
}

impl Normalizer {
    /// By the name a configuration gives it, with its usual settings.
    pub fn named(name: &str) -> Result<Self> {
        Ok(match name {
            "none" => Normalizer::None,
            "group_std" => Normalizer::GroupStd { eps: usual_eps(), ddof: usual_ddof() },
            "batch_std" => Normalizer::BatchStd { eps: usual_eps() },
            "whiten" => Normalizer::Whiten,
            "rloo" => Normalizer::Rloo,
            "beta_density" => Normalizer::BetaDensity(BetaDensity::default()),
            "bnpo" => {
                return Err(Error::caller(
                    "advantage",
                    "\"bnpo\" means two things: for the Beta normalisation of Xiao et al. say advantage = \
                     \"beta_density\"; for TRL's loss_type say advantage = \"group_std\" with aggregation = \
                     \"token_mean_local\"",
                ));
            }
            other => {
                let known = ["none", "group_std", "batch_std", "whiten", "rloo", "beta_density"];
                return Err(Error::caller("advantage", unknown(other, &known)));
            }
        })
    }

    /// Refuses settings that mean nothing.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::caller("advantage", what));
        match *self {
            Normalizer::GroupStd { eps, .. } | Normalizer::BatchStd { eps } => {
                if !(eps.is_finite() && eps >= 0.0) {
                    return refuse(format!("eps {eps} is to be added to a deviation; it is 0 or above"));
                }
            }
            Normalizer::BetaDensity(BetaDensity { range: [low, high], largest_weight, fixed, .. }) => {
                if !(low.is_finite() && high.is_finite() && low < high) {
                    return refuse(format!("a range of rewards from {low} to {high}"));
                }
                if largest_weight.is_nan() || largest_weight <= 0.0 {
                    return refuse(format!("largest_weight {largest_weight} is not above 0"));
                }
                if let Some(odd) = fixed.iter().flatten().find(|odd| !(odd.is_finite() && **odd > 0.0)) {
                    return refuse(format!("fixed holds {odd}; a density's parameters are above 0"));
                }
            }
            Normalizer::None | Normalizer::Whiten | Normalizer::Rloo => {}
        }
        Ok(())
    }
}

/// Advantages and what they were made with.
#[derive(Debug, Clone, PartialEq)]
pub struct Advantages {
    /// As the rewards came: a row for each group.
    pub values: Vec<Vec<f64>>,
    /// The fitted density, where one was.
    pub fit: Option<BetaFit>,
    /// Share of groups whose rewards are all equal.
    pub uniform: f64,
    /// What whoever reads the log should know.
    pub warning: Option<&'static str>,
}

/// Advantages of groups of rewards.
pub fn advantages(rewards: &[Vec<f64>], normalizer: &Normalizer) -> Result<Advantages> {
    check(rewards)?;
    let uniform = rewards.iter().filter(|group| is_uniform(group)).count() as f64 / rewards.len() as f64;
    let plain = |values| Advantages { values, fit: None, uniform, warning: None };
    let scaled = |factor: &dyn Fn(&[f64]) -> f64| -> Vec<Vec<f64>> {
        rewards.iter().map(|group| times(&centred(group), factor(group))).collect()
    };
    Ok(match normalizer {
        Normalizer::None => plain(scaled(&|_| 1.0)),
        Normalizer::GroupStd { eps, ddof } => plain(scaled(&|group| inverse(deviation(group, *ddof) + eps))),
        Normalizer::BatchStd { eps } => {
            let all: Vec<f64> = rewards.iter().flatten().copied().collect();
            let factor = inverse(deviation(&all, 1) + eps);
            plain(scaled(&|_| factor))
        }
        Normalizer::Whiten => {
            let all: Vec<f64> = rewards.iter().flat_map(|group| centred(group)).collect();
            let factor = inverse(deviation(&all, 1));
            plain(scaled(&|_| factor))
        }
        Normalizer::Rloo => plain(scaled(&|group| group.len() as f64 / (group.len() as f64 - 1.0).max(1.0))),
        Normalizer::BetaDensity(settings) => {
            let Normalised { values, fit, warning } = settings.advantages(rewards)?;
            Advantages { values, fit: Some(fit), uniform, warning }
        }
    })
}

/// Several rewards of the same completions, each normalised by itself, then averaged by weight. A reward that is the
/// same everywhere has nothing to say and takes no part.
pub fn by_component(components: &[(&[Vec<f64>], f64)], normalizer: &Normalizer) -> Result<Vec<Vec<f64>>> {
    let Some((first, _)) = components.first() else {
        return Err(Error::caller(OP, "no rewards at all; give at least one component"));
    };
    let mut sum: Vec<Vec<f64>> = first.iter().map(|group| vec![0.0; group.len()]).collect();
    let mut total = 0.0;
    for (number, &(rewards, weight)) in components.iter().enumerate() {
        check(rewards)?;
        if !rewards.iter().map(Vec::len).eq(first.iter().map(Vec::len)) {
            return Err(Error::caller(
                OP,
                format!("component {number} has groups of another shape than the first"),
            ));
        }
        let all: Vec<f64> = rewards.iter().flatten().copied().collect();
        if !is_uniform(&all) {
            add(&mut sum, &advantages(rewards, normalizer)?.values, weight);
            total += weight;
        }
    }
    let factor = inverse(total);
    Ok(sum.iter().map(|group| times(group, factor)).collect())
}

pub(super) fn check(rewards: &[Vec<f64>]) -> Result<()> {
    if rewards.is_empty() {
        return Err(Error::caller(OP, "no groups; a step needs at least one"));
    }
    for (number, group) in rewards.iter().enumerate() {
        if group.is_empty() {
            return Err(Error::caller(OP, format!("group {number} is empty")));
        }
        if let Some(at) = group.iter().position(|reward| !reward.is_finite()) {
            return Err(Error::caller(OP, format!("reward {at} of group {number} is {}", group[at])));
        }
    }
    Ok(())
}

pub(super) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Variance with `ddof` taken off the count; 0 where too few are left.
pub(super) fn variance(values: &[f64], ddof: usize) -> f64 {
    let mean = mean(values);
    let sum: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    if values.len() > ddof { sum / (values.len() - ddof) as f64 } else { 0.0 }
}

fn deviation(values: &[f64], ddof: usize) -> f64 {
    variance(values, ddof).sqrt()
}

/// Whether all are as good as equal.
pub(super) fn is_uniform(values: &[f64]) -> bool {
    let (least, most) =
        values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, m), &v| (l.min(v), m.max(v)));
    most - least <= EQUAL
}

/// A group less its mean; exactly 0 where all are equal.
pub(super) fn centred(group: &[f64]) -> Vec<f64> {
    if is_uniform(group) {
        return vec![0.0; group.len()];
    }
    let mean = mean(group);
    group.iter().map(|reward| reward - mean).collect()
}

pub(super) fn times(values: &[f64], factor: f64) -> Vec<f64> {
    values.iter().map(|value| value * factor).collect()
}

/// 1/x, and 0 for 0: what it multiplies is 0, too.
fn inverse(x: f64) -> f64 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}

pub(super) fn add(sum: &mut [Vec<f64>], values: &[Vec<f64>], weight: f64) {
    for (sum, values) in sum.iter_mut().zip(values) {
        sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += weight * value);
    }
}
