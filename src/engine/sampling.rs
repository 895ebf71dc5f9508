//! How the next token is drawn from logits.
//!
//! Steps in the order transformers applies them: repetition penalty, temperature, top-k, top-p, min-p. What
//! is left is drawn by adding Gumbel noise and taking the largest, so the draw depends on the seed, the
//! position and the logits alone.

use super::philox::gumbel;
use crate::error::{Error, Result};

/// Settings of one completion.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// The most tokens to generate.
    pub max_tokens: usize,
    /// 0 takes the likeliest token.
    pub temperature: f32,
    /// Keep the likeliest tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Keep this many of the likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep tokens at least this probable relative to the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Above 1: logits of tokens already seen are pushed down.
    pub repetition_penalty: f32,
    /// Texts that end a completion; they are not part of it.
    pub stop: Vec<String>,
    /// Go on past the model's end tokens.
    pub ignore_eos: bool,
    /// The seed of the noise.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            max_tokens: 256,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            stop: Vec::new(),
            ignore_eos: false,
            seed: 0,
        }
    }
}

impl Sampling {
    /// Refuses settings that mean nothing.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::caller("sampling", what));
        if self.max_tokens == 0 {
            return refuse("max-tokens is 0; ask for at least one token".into());
        }
        if self.temperature != 0.0 && !divides(self.temperature) {
            return refuse(format!("temperature {} is neither 0 nor from {COLDEST} up", self.temperature));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return refuse(format!("top-p {} does not lie in (0, 1]", self.top_p));
        }
        if !(0.0..1.0).contains(&self.min_p) {
            return refuse(format!("min-p {} does not lie in [0, 1)", self.min_p));
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            return refuse(format!("repetition-penalty {} is not above 0", self.repetition_penalty));
        }
        if self.stop.iter().any(String::is_empty) {
            return refuse("an empty stop text would end every completion".into());
        }
        Ok(())
    }

    /// Draws a token for `position`. `seen` are the tokens of the sequence so far.
    pub fn draw(&self, logits: &mut [f32], seen: &[u32], position: usize) -> Result<u32> {
        if let Some(bad) = logits.iter().position(|logit| !logit.is_finite()) {
            let what = format!(
                "the logit of token {bad} at position {position} is {}; look at the weights with `inspect`",
                logits[bad]
            );
            return Err(Error::caller("sample", what));
        }
        penalise(logits, seen, self.repetition_penalty);
        if self.temperature == 0.0 {
            return Ok(largest((0..).zip(logits.iter().copied())));
        }
        for logit in logits.iter_mut() {
            *logit /= self.temperature;
        }
        let noisy = |token: u32| logits[token as usize] + gumbel(self.seed, position as u32, token);
        match self.kept(logits) {
            None => Ok(largest((0..logits.len() as u32).map(|token| (token, noisy(token))))),
            Some(kept) => Ok(largest(kept.into_iter().map(|token| (token, noisy(token))))),
        }
    }

    /// The tokens the filters leave, or none if there are no filters.
    fn kept(&self, logits: &[f32]) -> Option<Vec<u32>> {
        let top_k = if self.top_k == 0 { logits.len() } else { self.top_k.min(logits.len()) };
        if top_k == logits.len() && self.top_p == 1.0 && self.min_p == 0.0 {
            return None;
        }
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let falling = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        if top_k < order.len() {
            order.select_nth_unstable_by(top_k - 1, falling);
            order.truncate(top_k);
        }
        order.sort_unstable_by(falling);
        let likeliest = logits[order[0] as usize];
        let weights: Vec<f64> =
            order.iter().map(|&token| f64::from(logits[token as usize] - likeliest).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut before = 0.0;
        let mut nucleus = 0;
        // A token stays while the ones before it have not reached top-p; the likeliest always stays.
        while nucleus < weights.len() && (nucleus == 0 || before < f64::from(self.top_p) * total) {
            before += weights[nucleus];
            nucleus += 1;
        }
        let probable = weights.partition_point(|&weight| weight >= f64::from(self.min_p));
        order.truncate(nucleus.min(probable).max(1));
        Some(order)
    }
}

/// Colder than this, logits divided by the temperature could leave the range of f32.
pub(super) const COLDEST: f32 = 1e-6;

/// Whether logits can be divided by this temperature.
pub(super) fn divides(temperature: f32) -> bool {
    temperature >= COLDEST && temperature.is_finite()
}

fn penalise(logits: &mut [f32], seen: &[u32], penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    let mut tokens = seen.to_vec();
    tokens.sort_unstable();
    tokens.dedup();
    for token in tokens {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
    }
}

/// The token with the largest score, the lowest id among equals.
fn largest(scores: impl Iterator<Item = (u32, f32)>) -> u32 {
    let best = scores.reduce(|best, next| if next.1 > best.1 { next } else { best });
    best.map_or(0, |(token, _)| token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(sampling: &Sampling, logits: &[f32], position: usize) -> u32 {
        sampling.draw(&mut logits.to_vec(), &[], position).unwrap()
    }

    #[test]
    fn temperature_zero_takes_the_first_of_the_likeliest() {
        let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
        assert_eq!(draw(&greedy, &[1.0, 3.0, 3.0, -1.0], 0), 1);
    }

    #[test]
    fn draws_follow_the_softmax() {
        let logits = [0.0, 1.0, 2.0, -1.0];
        let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        let mut counts = [0usize; 4];
        for position in 0..20_000 {
            counts[draw(&Sampling::default(), &logits, position) as usize] += 1;
        }
        for (count, logit) in counts.into_iter().zip(logits) {
            let expected = f64::from(logit).exp() / total;
            let seen = count as f64 / 20_000.0;
            assert!(
                (seen - expected).abs() < 4.0 * (expected / 20_000.0).sqrt(),
                "{seen} against {expected}"
            );
        }
    }

    #[test]
    fn filters_keep_what_they_say() {
        // Probabilities 0.5, 0.25, 0.125, 0.125.
        let logits = [0.5f32, 0.25, 0.125, 0.125].map(f32::ln);
        let kept = |sampling: Sampling| sampling.kept(&logits).map(|kept| kept.len());
        assert_eq!(kept(Sampling::default()), None);
        assert_eq!(kept(Sampling { top_k: 2, ..Default::default() }), Some(2));
        assert_eq!(kept(Sampling { top_p: 0.6, ..Default::default() }), Some(2));
        assert_eq!(kept(Sampling { top_p: 0.01, ..Default::default() }), Some(1));
        assert_eq!(kept(Sampling { min_p: 0.4, ..Default::default() }), Some(2));
        assert_eq!(kept(Sampling { min_p: 0.9, top_k: 3, ..Default::default() }), Some(1));
    }

    #[test]
    fn a_repetition_penalty_pushes_both_signs_down() {
        let mut logits = [2.0, -2.0, 1.0];
        penalise(&mut logits, &[0, 1, 1, 99], 2.0);
        assert_eq!(logits, [1.0, -4.0, 1.0]);
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for (sampling, name) in [
            (Sampling { max_tokens: 0, ..Default::default() }, "max-tokens"),
            (Sampling { temperature: f32::NAN, ..Default::default() }, "temperature"),
            (Sampling { temperature: 1e-40, ..Default::default() }, "temperature"),
            (Sampling { top_p: 0.0, ..Default::default() }, "top-p"),
            (Sampling { min_p: 1.0, ..Default::default() }, "min-p"),
            (Sampling { repetition_penalty: 0.0, ..Default::default() }, "repetition-penalty"),
            (Sampling { stop: vec![String::new()], ..Default::default() }, "stop"),
        ] {
            assert!(sampling.check().unwrap_err().to_string().contains(name));
        }
        for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = Sampling::default().draw(&mut [0.0, broken], &[], 0).unwrap_err().to_string();
            assert!(error.contains("token 1") && error.contains(&broken.to_string()), "{error}");
        }
    }
}
