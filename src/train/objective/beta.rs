//! Beta normalisation (Xiao, Zhang, Cao; arXiv 2506.02864): the share of right answers varies over prompts as a Beta
//! distribution; its parameters give the density that advantages are divided by for the least variance.

use super::advantage::{EQUAL, centred, is_uniform, mean, times, variance};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Settings of Beta normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BetaDensity {
    /// The rewards that mean nothing right and all right.
    pub range: [f64; 2],
    /// No group weighs more than this. The authors' code has 1e6; ordinary batches stay below 5.
    pub largest_weight: f64,
    /// Take the noise of counting few samples out of the spread of the means before the fit.
    pub debias: bool,
    /// Scale weights so that groups with something to say weigh 1 on average.
    pub rescale: bool,
    /// These parameters of the density instead of fitted ones.
    pub fixed: Option<[f64; 2]>,
}

impl Default for BetaDensity {
    fn default() -> Self {
        BetaDensity { range: [0.0, 1.0], largest_weight: 10.0, debias: false, rescale: false, fixed: None }
    }
}

/// What was fitted.
#[derive(Debug, Clone, PartialEq)]
pub struct BetaFit {
    /// Mean of the groups' means.
    pub mean: f64,
    /// Their variance, unbiased.
    pub variance: f64,
    /// The data's parameters by the method of moments; none where the moments belong to no Beta distribution.
    pub data: Option<[f64; 2]>,
    /// The density's parameters.
    pub density: [f64; 2],
}

/// Advantages by group, the fit, and what to warn of.
pub(super) struct Normalised {
    pub(super) values: Vec<Vec<f64>>,
    pub(super) fit: BetaFit,
    pub(super) warning: Option<&'static str>,
}

impl BetaDensity {
    /// Advantages, and what they were made with.
    pub(super) fn advantages(&self, rewards: &[Vec<f64>]) -> Result<Normalised> {
        let mapped = self.mapped(rewards)?;
        if mapped.iter().all(|group| group.len() == 1) {
            let fit = BetaFit { mean: 0.0, variance: 0.0, data: None, density: [1.0, 1.0] };
            let warning = "groups of one completion have no baseline; advantages are the rewards themselves";
            return Ok(Normalised { values: mapped, fit, warning: Some(warning) });
        }
        let means: Vec<f64> = mapped.iter().map(|group| baseline(group)).collect();
        let fit = self.fit(&means, &mapped);
        let mut weights: Vec<f64> = means.iter().map(|&p| self.weight(p, fit.density)).collect();
        if self.rescale {
            let active: Vec<f64> = weights
                .iter()
                .zip(&mapped)
                .filter(|(_, group)| !is_uniform(group))
                .map(|(w, _)| *w)
                .collect();
            if !active.is_empty() {
                weights = times(&weights, 1.0 / mean(&active));
            }
        }
        let values = mapped.iter().zip(&weights).map(|(group, &weight)| match group.len() {
            1 => times(group, weight),
            // A uniform group is 0 whatever its weight, and infinity times 0 is never asked for.
            _ if is_uniform(group) => vec![0.0; group.len()],
            _ => times(&centred(group), weight),
        });
        Ok(Normalised { values: values.collect(), fit, warning: None })
    }

    /// Rewards on the scale from 0 to 1.
    fn mapped(&self, rewards: &[Vec<f64>]) -> Result<Vec<Vec<f64>>> {
        let [low, high] = self.range;
        if low >= high || low.is_nan() || high.is_nan() {
            return Err(Error::caller("beta_density", format!("a range of rewards from {low} to {high}")));
        }
        if let Some(odd) = rewards.iter().flatten().find(|&&r| r < low - EQUAL || r > high + EQUAL) {
            let what =
                format!("reward {odd} lies outside of {low} to {high}; set the range to what rewards can be");
            return Err(Error::caller("beta_density", what));
        }
        let map = |&reward: &f64| ((reward - low) / (high - low)).clamp(0.0, 1.0);
        Ok(rewards.iter().map(|group| group.iter().map(map).collect()).collect())
    }

    fn fit(&self, means: &[f64], rewards: &[Vec<f64>]) -> BetaFit {
        let (centre, mut spread) = (mean(means), variance(means, 1));
        if self.debias {
            let noise = means
                .iter()
                .zip(rewards)
                .map(|(p, group)| p * (1.0 - p) / (group.len() as f64 - 1.0).max(1.0));
            spread = (spread - noise.sum::<f64>() / means.len() as f64).max(1e-6);
        }
        let mut fit = BetaFit { mean: centre, variance: spread, data: None, density: [1.0, 1.0] };
        if let Some(fixed) = self.fixed {
            fit.density = fixed;
            return fit;
        }
        // One prompt, equal means, or means that are all 0 or all 1 say nothing about a distribution.
        if means.len() < 2 || spread <= EQUAL * EQUAL || centre <= 0.0 || centre >= 1.0 {
            return fit;
        }
        let kappa = centre * (1.0 - centre) / spread - 1.0;
        let data = [kappa * centre, kappa * (1.0 - centre)];
        fit.data = Some(data);
        // Below 1 the density would be lowest where answers vary most.
        fit.density = data.map(|parameter| (1.0 + parameter / 3.0).max(1.0));
        fit
    }

    /// 1 / density at p, within the limit.
    fn weight(&self, p: f64, [alpha, beta]: [f64; 2]) -> f64 {
        let power = |base: f64, exponent: f64| if exponent == 0.0 { 0.0 } else { exponent * base.ln() };
        let log_beta = libm::lgamma(alpha) + libm::lgamma(beta) - libm::lgamma(alpha + beta);
        let log_density = power(p, alpha - 1.0) + power(1.0 - p, beta - 1.0) - log_beta;
        (-log_density).exp().min(self.largest_weight)
    }
}

/// A group's mean, its common reward where all are equal; a single completion has none to compare with.
fn baseline(group: &[f64]) -> f64 {
    match group.len() {
        1 => 0.0,
        _ if is_uniform(group) => group[0],
        _ => mean(group),
    }
}
