//! What goes into an engine and what comes out.

use super::input::Input;
use super::sampling::Sampling;
use crate::error::{Error, Result};
use crate::model::{Adapter, Model, pages_for};
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
    /// The engine that counted so far.
    pub(super) by: Arc<()>,
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

impl Request {
    /// Refuses what an engine of these limits could never run.
    pub fn check(&self, model: &Model, limits: Limits) -> Result<()> {
        const OP: &str = "submit";
        let (lanes, Limits { pages, sequences, .. }) = (self.seeds.len(), limits);
        self.sampling.check_for(lanes, model.config.decoder.vocab)?;
        let most = self.input.check_length(model, self.sampling.max_tokens)?;
        let vocab = model.config.decoder.vocab;
        if let Some(token) = self.input.tokens().iter().find(|&&token| token as usize >= vocab) {
            let what = format!(
                "token {token}, but the vocabulary has {vocab} ids; the prompt was prepared for another model"
            );
            return Err(Error::caller(OP, what));
        }
        if lanes == 0 || lanes > sequences {
            let what =
                format!("{lanes} completions of one prompt; this engine runs 1 to {sequences} at a time");
            return Err(Error::caller(OP, what));
        }
        let needed = pages_needed(self.input.tokens().len(), most, lanes);
        if needed > pages {
            let what = format!(
                "{most} tokens in {lanes} completions need {needed} pages, but the engine has {pages}; raise it to \
                 {needed} or ask for fewer tokens"
            );
            return Err(Error::caller(OP, what));
        }
        Ok(())
    }
}

/// The fewest pages a request can run in: alone, one lane has to be able to end, and all have to be able to begin.
pub fn pages_needed(prompt: usize, most: usize, lanes: usize) -> usize {
    pages_for(most - 1).max(pages_for(prompt) + lanes - 1)
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

impl Event {
    /// Whose it is.
    pub fn ticket(&self) -> Ticket {
        match *self {
            Event::Text { ticket, .. } | Event::Finished { ticket, .. } | Event::Failed { ticket, .. } => {
                ticket
            }
        }
    }

    /// Whether the completion goes no further.
    pub fn ends(&self) -> bool {
        !matches!(self, Event::Text { .. })
    }
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
