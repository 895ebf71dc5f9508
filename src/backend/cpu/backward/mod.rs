//! The backward ops and the optimiser. Products go through `combine`; what sums over rows does so in an order that the
//! number of rows fixes.

mod attention;
mod head;
mod linear;
mod optimiser;
mod pointwise;

pub(super) use attention::attention;
pub(super) use head::logprobs;
pub(super) use linear::linear;
pub(super) use optimiser::{adamw, gather_rows, sq_norm, zero};
pub(super) use pointwise::{activate, gated, rms_norm};
