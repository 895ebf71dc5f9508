//! What is optimised, as pure functions on slices: rewards into advantages, log-probs into losses and their slopes.

mod advantage;
mod beta;
mod surrogate;
mod tier;

pub use advantage::{Advantages, Normalizer, advantages, by_component};
pub use beta::{BetaDensity, BetaFit};
pub use surrogate::{Aggregation, Clip, Kl, Slope, kl, part_weights, surrogate, token_weights};
pub use tier::{Outcome, Tiers, by_outcome, shape_reward};
