//! What a backend can do that decodes by itself: a chain of ops is kept and done again at once, draws read their settings
//! from the device, and what was drawn becomes the next pass's input there.

use super::{Draw, Drawn};
use crate::{error::Result, tensor::Tensor};
use std::fmt;

/// What [`Recorder::record`] kept.
pub trait Replay: fmt::Debug + Send {
    /// Does it.
    fn replay(&mut self) -> Result<()>;
}

/// A tensor on its way to the host.
pub trait Landing: fmt::Debug + Send {
    /// Waits for it.
    fn land(self: Box<Self>) -> Result<Tensor>;
}

/// One that is there.
#[derive(Debug)]
pub(super) struct Landed(pub(super) Tensor);

impl Landing for Landed {
    fn land(self: Box<Self>) -> Result<Tensor> {
        Ok(self.0)
    }
}

/// How rows are drawn, on the device.
#[derive(Debug, Clone, Copy)]
pub struct DrawTable<'a> {
    /// What [`Recorder::settings`] gave; i32 `[B, words]`.
    pub settings: &'a Tensor,
    /// Whether rows keep their logits, because some have a penalty or filters.
    pub kept: bool,
    /// Where some have a penalty, the tokens of each so far; i32 `[B, room]`.
    pub seen: Option<&'a Tensor>,
}

/// What one decoding pass leaves for the next, of a token each; all tensors are the device's, i32 where not said
/// otherwise, and need not be anybody's alone: recordings hold windows into one.
#[derive(Debug, Clone, Copy)]
pub struct Advance<'a> {
    /// What was drawn, with its entropy.
    pub drawn: &'a Drawn,
    /// How, and where the next token will be drawn.
    pub table: DrawTable<'a>,
    /// The pass's tokens `[B]`.
    pub tokens: &'a Tensor,
    /// Its positions `[axes, B]`.
    pub positions: &'a Tensor,
    /// Its cache slots `[B]`.
    pub slots: &'a Tensor,
    /// Keys per sequence, the pass's own included `[B]`.
    pub lengths: &'a Tensor,
    /// Pages per sequence `[B, max pages]`, with room for what is to come.
    pub tables: &'a Tensor,
    /// Positions per page.
    pub page_len: usize,
    /// Which seat each row has, below 0 if none `[B]`.
    pub seat: &'a Tensor,
    /// The last token drawn in each seat.
    pub seats: &'a Tensor,
    /// The length at which a row stands still `[B]`: it then computes the same again, to the same place.
    pub until: &'a Tensor,
    /// Of each row the last K draws `[B, K, 3]`, by length modulo K: token, log-prob and entropy, these by their bits.
    pub log: &'a Tensor,
}

/// A backend that decodes by itself.
pub trait Recorder {
    /// Keeps what `work` would do, a chain of ops, to do it again at once with what is then in the tensors it reads;
    /// nothing is done yet. These tensors, and those it writes, have to stay where they are until the recording is gone.
    /// Work space of the ops is what all recordings share, so `work` gives back whatever it allocates.
    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Replay>>;

    /// Replaces what a tensor holds, where it is.
    fn overwrite(&self, to: &Tensor, host: &Tensor) -> Result<()>;

    /// Draws as rows of a table, i32 `[B, words]`, for tokens seen that have `room` each.
    fn settings(&self, draws: &[Draw<'_>], vocabulary: usize, room: usize) -> Result<Tensor>;

    /// As [`super::Backend::sample`], with draws that the device has.
    fn sample_by(
        &self,
        out: &mut Drawn,
        hidden: &Tensor,
        weight: &Tensor,
        table: &DrawTable<'_>,
    ) -> Result<()>;

    /// `tokens[t] = seats[!tokens[t]]` where a token is below 0: one that the host has not seen. All i32.
    fn take_seats(&self, tokens: &Tensor, seats: &Tensor) -> Result<()>;

    /// `seats[seat[b]] = drawn[b]`; all i32, and seats distinct.
    fn keep_seats(&self, seats: &Tensor, seat: &Tensor, drawn: &Tensor) -> Result<()>;

    /// Makes what was drawn the next pass's input, and keeps it in the log and in its row's seat.
    fn advance(&self, step: &Advance<'_>) -> Result<()>;
}
