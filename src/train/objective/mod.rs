//! What is optimised, as pure functions on slices: rewards into advantages, log-probs into losses and their slopes.

mod advantage;
mod beta;
mod surrogate;

pub use advantage::{Advantages, Normalizer, advantages, by_component, by_tier};
pub use beta::{BetaDensity, BetaFit};
pub use surrogate::{Aggregation, Clip, Kl, Slope, kl, part_weights, surrogate, token_weights};
