//! What goes into an engine and what comes out.

use super::input::Input;
use super::sampling::Sampling;
use crate::error::Error;
use crate::model::Adapter;
use std::sync::Arc;

/// What an engine may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Pages of keys and values.
    pub pages: usize,
    /// Tokens of one pass.
    pub tokens: usize,
    /// Sequences in the batch.
    pub sequences: usize,
}

/// An adapter as an engine serves it. Two of them with the same weights are still two: what one computed is not
/// reused for the other.
#[derive(Debug, Clone)]
pub struct Published {
    pub(super) adapter: Arc<Adapter>,
    pub(super) generation: u64,
}

/// Some completions of one prompt.
#[derive(Debug, Clone)]
pub struct Request {
    /// The prompt.
    pub input: Arc<Input>,
    /// How tokens are drawn; its own seed is not used.
    pub sampling: Sampling,
    /// A completion for each seed.
    pub seeds: Vec<u64>,
    /// The adapter, or the base weights.
    pub adapter: Option<Published>,
}

/// A request in an engine, by the order of submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Why a completion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// An end token, a stop token or a stop text.
    Stop,
    /// The most tokens asked for.
    Length,
}

impl Finish {
    /// The name in records.
    pub fn name(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
        }
    }
}

/// A finished completion.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// Its text, without end tokens, stop tokens and stop texts.
    pub text: String,
    /// Every drawn token, an end or stop token included.
    pub tokens: Vec<u32>,
    /// Log-prob of every drawn token at the sampling temperature (1 when greedy), over the full vocabulary.
    pub logprobs: Vec<f32>,
    /// If asked for, the entropy in nats of that same distribution where each token was drawn; else empty.
    pub entropy: Vec<f32>,
    /// Why it ended.
    pub finish: Finish,
}

/// What a pass brought about.
#[derive(Debug)]
pub enum Event {
    /// More text of a completion that goes on or has just ended.
    Text {
        /// Whose.
        ticket: Ticket,
        /// Which of its completions.
        lane: usize,
        /// What became certain.
        text: String,
    },
    /// A completion has ended.
    Finished {
        /// Whose.
        ticket: Ticket,
        /// Which of its completions.
        lane: usize,
        /// All of it.
        completion: Completion,
    },
    /// A completion cannot go on; others can.
    Failed {
        /// Whose.
        ticket: Ticket,
        /// Which of its completions.
        lane: usize,
        /// What happened.
        error: Error,
    },
}

/// What an engine has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Forward passes.
    pub passes: u64,
    /// Tokens run through the model, those computed again included.
    pub computed: u64,
    /// Prompt tokens that were found in pages.
    pub reused: u64,
    /// Tokens drawn.
    pub drawn: u64,
    /// Times a sequence was put out of the batch.
    pub preempted: u64,
}
