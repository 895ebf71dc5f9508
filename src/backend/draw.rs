//! How a token is drawn from logits: the decisions, made once for every backend.
//!
//! Steps in the order transformers applies them: repetition penalty, temperature, top-k, top-p, min-p. What
//! is left is drawn by adding Gumbel noise and taking the largest, the lowest id among equals, so a draw depends on
//! the seed, the position and the logits alone.

use super::{
    Backend, Landing,
    philox::{MOST, gumbel, gumbel_of, most, words},
};
use crate::{
    error::{Error, Result},
    tensor::{Dtype, Tensor},
};

/// How a row's token is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw<'a> {
    /// 0 takes the likeliest token.
    pub temperature: f32,
    /// Keep this many of the likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the likeliest tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this probable relative to the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Above 1: logits of seen tokens are pushed down.
    pub penalty: f32,
    /// The tokens seen so far, in any order; ids the vocabulary lacks do not matter.
    pub seen: &'a [u32],
    /// The seed of the noise.
    pub seed: u64,
    /// Where in its sequence the token will stand.
    pub position: u32,
}

impl Default for Draw<'_> {
    fn default() -> Self {
        Draw {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            penalty: 1.0,
            seen: &[],
            seed: 0,
            position: 0,
        }
    }
}

/// Colder than this, logits divided by the temperature could leave the range of f32.
pub const COLDEST: f32 = 1e-6;

/// Whether logits can be divided by this temperature.
pub fn divides(temperature: f32) -> bool {
    temperature >= COLDEST && temperature.is_finite()
}

impl Draw<'_> {
    /// Refuses settings that mean nothing.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::caller("sampling", what));
        if self.temperature != 0.0 && !divides(self.temperature) {
            return refuse(format!("temperature {} is neither 0 nor from {COLDEST} up", self.temperature));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return refuse(format!("top-p {} does not lie in (0, 1]", self.top_p));
        }
        if !(0.0..1.0).contains(&self.min_p) {
            return refuse(format!("min-p {} does not lie in [0, 1)", self.min_p));
        }
        if !(self.penalty > 0.0 && self.penalty.is_finite()) {
            return refuse(format!("repetition-penalty {} is not above 0", self.penalty));
        }
        Ok(())
    }

    /// Whether the likeliest token is taken.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// What logits are divided by.
    pub fn divisor(&self) -> f32 {
        if self.is_greedy() { 1.0 } else { self.temperature }
    }

    /// Whether the penalty changes logits.
    pub fn penalises(&self) -> bool {
        self.penalty != 1.0 && !self.seen.is_empty()
    }

    /// Whether some tokens of a vocabulary of this size may be left out. The likeliest never is.
    pub fn filters(&self, vocabulary: usize) -> bool {
        let top_k = self.top_k != 0 && self.top_k < vocabulary;
        !self.is_greedy() && (top_k || self.top_p < 1.0 || self.min_p > 0.0)
    }

    /// Whether every token takes part with its own logit.
    pub fn is_plain(&self, vocabulary: usize) -> bool {
        !self.penalises() && !self.filters(vocabulary)
    }

    /// The winner among tempered logits of the tokens from `first` on, a multiple of 4: the score and the token. Who
    /// cannot reach `floor`, a score that somebody has, may be left out: four random words say how much their noise is
    /// at most, so that few have to be turned into noise.
    pub fn best(&self, first: u32, tempered: &[f32], floor: f32) -> (f32, u32) {
        if self.is_greedy() {
            return largest((f32::NEG_INFINITY, first), (first..).zip(tempered.iter().copied()));
        }
        let mut best = (f32::NEG_INFINITY, first);
        for (quad, logits) in (first / 4..).zip(tempered.chunks(4)) {
            let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let hopeless = |most: f32| highest + most < floor || highest + most < best.0;
            if hopeless(MOST) {
                continue;
            }
            let words = words(self.seed, self.position, quad);
            if hopeless(most(words)) {
                continue;
            }
            let noise = words.map(gumbel_of);
            best =
                largest(best, (4 * quad..).zip(logits.iter().zip(noise).map(|(logit, noise)| logit + noise)));
        }
        best
    }

    /// Draws from a row of finite logits, which are used up.
    pub fn pick(&self, logits: &mut [f32]) -> u32 {
        if self.penalises() {
            penalise(logits, self.seen, self.penalty);
        }
        logits.iter_mut().for_each(|logit| *logit /= self.divisor());
        if !self.filters(logits.len()) {
            return self.best(0, logits, f32::NEG_INFINITY).1;
        }
        let noisy = |token: u32| (token, logits[token as usize] + gumbel(self.seed, self.position, token));
        largest((f32::NEG_INFINITY, 0), self.kept(logits).into_iter().map(noisy)).1
    }

    /// The tokens the filters leave of tempered logits, the likeliest first.
    fn kept(&self, logits: &[f32]) -> Vec<u32> {
        let top_k = if self.top_k == 0 { logits.len() } else { self.top_k.min(logits.len()) };
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
        order
    }
}

fn penalise(logits: &mut [f32], seen: &[u32], penalty: f32) {
    let mut tokens = seen.to_vec();
    tokens.sort_unstable();
    tokens.dedup();
    for token in tokens {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
    }
}

/// The largest score and its token: the best so far or the first among equals.
fn largest(best: (f32, u32), scores: impl Iterator<Item = (u32, f32)>) -> (f32, u32) {
    scores.fold(best, |best, (token, score)| if score > best.0 { (score, token) } else { best })
}

/// Results of [`Backend::sample`], each `[B]`.
#[derive(Debug)]
pub struct Drawn {
    /// The token; i32. In a row with a logit that is not finite: `!token` of the first such one, below 0.
    pub token: Tensor,
    /// The token's log-prob, or the logit that is not finite; f32 (f64 in the oracle).
    pub logp: Tensor,
    /// Where it is asked for: entropy of the tempered distribution, as [`super::LogProbs`] has it.
    pub entropy: Option<Tensor>,
}

/// A drawn token on the host.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DrawnToken {
    /// Its id.
    pub id: u32,
    /// Its log-prob.
    pub logp: f32,
    /// The entropy of what it was drawn from, before penalty and filters, if that was asked for.
    pub entropy: Option<f32>,
}

impl Drawn {
    /// Room for `count` draws on a backend.
    pub fn alloc(backend: &dyn Backend, count: usize, entropy: bool) -> Result<Self> {
        let float = || backend.alloc(backend.statistic(), &[count]);
        let token = backend.alloc(Dtype::I32, &[count])?;
        Ok(Drawn { token, logp: float()?, entropy: entropy.then(float).transpose()? })
    }

    /// Begins to bring what was drawn to the host.
    pub fn fetch(&self, backend: &dyn Backend) -> Result<FetchedDraws> {
        let entropy = self.entropy.as_ref().map(|entropy| backend.fetch(entropy)).transpose()?;
        Ok(FetchedDraws { token: backend.fetch(&self.token)?, logp: backend.fetch(&self.logp)?, entropy })
    }

    /// What was drawn, on the host.
    pub fn read(&self, backend: &dyn Backend) -> Result<Vec<Result<DrawnToken>>> {
        self.fetch(backend)?.land()
    }
}

/// Draws on their way to the host.
#[derive(Debug)]
pub struct FetchedDraws {
    token: Box<dyn Landing>,
    logp: Box<dyn Landing>,
    entropy: Option<Box<dyn Landing>>,
}

impl FetchedDraws {
    /// What was drawn; for a row whose logits are not finite, what is wrong with it.
    pub fn land(self) -> Result<Vec<Result<DrawnToken>>> {
        let entropy = self.entropy.map(|entropy| entropy.land()).transpose()?.map(|entropy| entropy.to_f64());
        let (token, logp) = (self.token.land()?, self.logp.land()?);
        let rows = token.as_slice::<i32>()?.iter().zip(logp.to_f64()).enumerate();
        let rows = rows.map(|(row, (&token, logp))| {
            DrawnToken::of(row, token, logp as f32, entropy.as_ref().map(|entropy| entropy[row] as f32))
        });
        Ok(rows.collect())
    }
}

impl DrawnToken {
    /// What a backend has drawn in a row, as [`Drawn`] has it.
    pub fn of(row: usize, token: i32, logp: f32, entropy: Option<f32>) -> Result<Self> {
        let id = u32::try_from(token).map_err(|_| {
            let what = format!("row {row}: the logit of token {} is {logp}", !token);
            Error::caller("sample", format!("{what}; look at the weights with `inspect`"))
        })?;
        Ok(DrawnToken { id, logp, entropy })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(draw: Draw<'_>, logits: &[f32]) -> u32 {
        draw.pick(&mut logits.to_vec())
    }

    #[test]
    fn temperature_zero_takes_the_first_of_the_likeliest() {
        let greedy = Draw { temperature: 0.0, top_k: 2, ..Draw::default() };
        assert_eq!(pick(greedy, &[1.0, 3.0, 3.0, -1.0]), 1);
    }

    #[test]
    fn draws_follow_the_softmax() {
        let logits = [0.0, 1.0, 2.0, -1.0];
        let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        let mut counts = [0usize; 4];
        for position in 0..20_000 {
            counts[pick(Draw { position, ..Draw::default() }, &logits) as usize] += 1;
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
        assert!(!Draw { top_k: 4, ..Draw::default() }.filters(4));
        for (draw, kept) in [
            (Draw { top_k: 2, ..Draw::default() }, 2),
            (Draw { top_p: 0.6, ..Draw::default() }, 2),
            (Draw { top_p: 0.01, ..Draw::default() }, 1),
            (Draw { min_p: 0.4, ..Draw::default() }, 2),
            (Draw { min_p: 0.9, top_k: 3, ..Draw::default() }, 1),
        ] {
            assert!(draw.filters(4));
            assert_eq!(draw.kept(&logits), [0, 1][..kept]);
        }
    }

    #[test]
    fn tokens_are_drawn_alike_whole_and_in_parts() {
        // So far apart that most tokens cannot win, and so that some can.
        let logits: Vec<f32> = (0..103u32).map(|token| 8.0 * gumbel(1, 2, token)).collect();
        for position in 0..500 {
            let draw = Draw { seed: 3, position, ..Draw::default() };
            let slow = (0..).zip(&logits).map(|(token, logit)| (token, logit + gumbel(3, position, token)));
            let slow = largest((f32::NEG_INFINITY, 0), slow);
            for order in [[0, 40, 80], [80, 0, 40]] {
                let mut floor = f32::NEG_INFINITY;
                let parts = order.map(|first| {
                    let best =
                        draw.best(first, &logits[first as usize..][..40.min(103 - first as usize)], floor);
                    floor = floor.max(best.0);
                    best
                });
                assert!(parts.contains(&slow) && parts.iter().all(|part| part.0 <= slow.0));
            }
            assert_eq!(slow.1, pick(draw, &logits));
        }
    }

    #[test]
    fn a_repetition_penalty_pushes_both_signs_down() {
        let mut logits = [2.0, -2.0, 1.0];
        penalise(&mut logits, &[0, 1, 1, 99], 2.0);
        assert_eq!(logits, [1.0, -4.0, 1.0]);
    }
}
