//! Tokens on their way: what is in the cache, which pages hold it, and what becomes of the next token.

use super::input::Input;
use super::pages::PagePool;
use super::prefix::Key;
use super::request::{Completion, Event, Finish, Published, Ticket};
use super::sampling::Sampling;
use super::schedule::Running;
use super::stop::StopWatch;
use crate::backend::{Draw, DrawnToken};
use crate::error::Result;
use crate::model::{PAGE, PlacedImage};
use crate::prompt::tokenizer::TextStream;
use std::sync::Arc;

/// What the sequences of one request have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) ticket: Ticket,
    pub(super) input: Arc<Input>,
    pub(super) sampling: Sampling,
    pub(super) adapter: Option<Published>,
}

/// Tokens that have been chosen so far, and the lanes that share all of them.
#[derive(Debug)]
pub(super) struct Sequence<'m> {
    pub(super) shared: Arc<Shared>,
    pub(super) tokens: Vec<u32>,
    /// How many more its only lane has drawn that nobody has read yet.
    pub(super) unread: usize,
    /// Where the backend keeps the last of them.
    pub(super) seat: Option<u32>,
    /// How many of all these are in the cache.
    pub(super) computed: usize,
    pub(super) table: Vec<u32>,
    /// Keys of the pages that the tokens fill.
    pub(super) keys: Vec<Key>,
    pub(super) lanes: Vec<Lane<'m>>,
}

/// One completion on its way.
#[derive(Debug)]
pub(super) struct Lane<'m> {
    pub(super) index: usize,
    pub(super) seed: u64,
    pub(super) stream: TextStream<'m>,
    pub(super) watch: StopWatch,
    pub(super) logprobs: Vec<f32>,
    pub(super) entropy: Vec<f32>,
}

impl Shared {
    pub(super) fn generation(&self) -> Option<u64> {
        self.adapter.as_ref().map(|published| published.generation)
    }
}

impl<'m> Sequence<'m> {
    /// What the schedule asks.
    pub(super) fn state(&self, pool: &PagePool) -> Running {
        Running {
            length: self.length(),
            computed: self.computed,
            pages: self.table.len(),
            exclusive: self.table.iter().filter(|&&page| pool.holders(page) == 1).count(),
            shared_tail: self.shared_tail(pool).is_some(),
            lanes: self.lanes.len(),
            decodes: self.length() > self.shared.input.tokens().len(),
            left: self.shared.input.tokens().len() + self.shared.sampling.max_tokens - self.length(),
        }
    }

    /// Tokens it has, read or not.
    pub(super) fn length(&self) -> usize {
        self.tokens.len() + self.unread
    }

    /// What it computes next, `count` tokens of it or those that it has: a token that nobody has read is where the backend
    /// keeps it.
    pub(super) fn next(&self, count: usize) -> (&[u32], Option<u32>) {
        match self.unread {
            0 => (&self.tokens[self.computed..self.tokens.len().min(self.computed + count)], None),
            _ => (&[0], self.seat),
        }
    }

    /// How a lane draws the token behind all of these.
    pub(super) fn draw(&self, lane: &Lane<'_>) -> Draw<'_> {
        Draw { seed: lane.seed, position: self.length() as u32, ..self.shared.sampling.draw(&self.tokens) }
    }

    /// The last page, if it is partly filled and others hold it too.
    pub(super) fn shared_tail(&self, pool: &PagePool) -> Option<u32> {
        let partly = !self.computed.is_multiple_of(PAGE);
        self.table.last().copied().filter(|&page| partly && pool.holders(page) > 1)
    }

    /// Full pages that may come from others: the last token is always computed, for its output is needed.
    pub(super) fn reusable(&self) -> usize {
        ((self.tokens.len() - 1) / PAGE).min(self.keys.len())
    }

    /// Known pages that hold the beginning of this sequence.
    pub(super) fn known(&self, pool: &PagePool) -> Vec<u32> {
        self.keys[..self.reusable()].iter().map_while(|key| pool.find(key)).collect()
    }

    /// Begins with what known pages hold.
    pub(super) fn adopt(&mut self, pool: &mut PagePool) {
        self.table = self.known(pool);
        self.table.iter().for_each(|&page| pool.share(page));
        self.computed = self.table.len() * PAGE;
    }

    /// Gives all pages and its seat back; what pages held is computed again when the sequence returns.
    pub(super) fn release(&mut self, pool: &mut PagePool, seats: &mut Vec<u32>) {
        std::mem::take(&mut self.table).into_iter().rev().for_each(|page| pool.release(page));
        seats.extend(self.seat.take());
        self.computed = 0;
    }

    /// Makes full pages known.
    pub(super) fn publish(&self, pool: &mut PagePool) {
        let full = self.computed / PAGE;
        for (&page, key) in self.table.iter().zip(&self.keys).take(full) {
            pool.publish(page, *key);
        }
    }

    /// Keys for all pages that the tokens fill.
    pub(super) fn extend_keys(&mut self) {
        while (self.keys.len() + 1) * PAGE <= self.tokens.len() {
            let page = self.keys.len() * PAGE..(self.keys.len() + 1) * PAGE;
            let parent = self.keys.last().copied().unwrap_or(Key::root(self.shared.generation()));
            let seen = self.shared.input.seen(&page);
            self.keys.push(parent.page(&self.tokens[page], &seen));
        }
    }

    /// Pictures whose features are still to be placed.
    pub(super) fn images(&self) -> Vec<PlacedImage<'_>> {
        self.shared.input.images().into_iter().filter(|image| image.tokens.end > self.computed).collect()
    }

    /// Each of its lanes as a sequence of its own that has drawn `unread` tokens, and has one of the seats; all hold the same
    /// pages.
    pub(super) fn split(mut self, unread: usize, seats: &[u32], pool: &mut PagePool) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::with_capacity(self.lanes.len());
        for (lane, &seat) in self.lanes.split_off(1).into_iter().zip(seats.iter().skip(1)) {
            self.table.iter().for_each(|&page| pool.share(page));
            let (shared, tokens) = (self.shared.clone(), self.tokens.clone());
            let (table, keys, seat) = (self.table.clone(), self.keys.clone(), Some(seat));
            let (computed, lanes) = (self.computed, vec![lane]);
            all.push(Sequence { shared, tokens, unread, seat, computed, table, keys, lanes });
        }
        self.unread += unread;
        self.seat = seats.first().copied();
        all.insert(0, self);
        all
    }

    /// Takes a token that its only lane has drawn, and says whether the completion goes on.
    pub(super) fn take(
        &mut self,
        outcome: Result<DrawnToken>,
        end_tokens: &[u32],
        events: &mut Vec<Event>,
    ) -> bool {
        let Shared { ticket, input, sampling, .. } = &*self.shared;
        let (ticket, prompt) = (*ticket, input.tokens().len());
        let last = self.tokens.len() + 1 == prompt + sampling.max_tokens;
        self.unread = self.unread.saturating_sub(1);
        let Some(lane) = self.lanes.first_mut() else { return false };
        let index = lane.index;
        let (token, mut text, finish) = match lane.advance(outcome, sampling, end_tokens, last) {
            Ok(advanced) => advanced,
            Err(error) => {
                events.push(Event::Failed { ticket, lane: index, error });
                return false;
            }
        };
        let ended = finish.map(|finish| {
            let lane = self.lanes.remove(0);
            let (whole, rest) = lane.watch.finish();
            text.push_str(&rest);
            (finish, whole, lane.logprobs, lane.entropy)
        });
        if !text.is_empty() {
            events.push(Event::Text { ticket, lane: index, text });
        }
        self.tokens.push(token);
        let Some((finish, text, logprobs, entropy)) = ended else {
            self.extend_keys();
            return true;
        };
        let tokens = self.tokens.split_off(prompt);
        let completion = Completion { text, tokens, logprobs, entropy, finish };
        events.push(Event::Finished { ticket, lane: index, completion });
        false
    }
}

impl Lane<'_> {
    /// The token drawn, the text that becomes certain with it, and whether the completion ends there.
    fn advance(
        &mut self,
        outcome: Result<DrawnToken>,
        sampling: &Sampling,
        end_tokens: &[u32],
        last: bool,
    ) -> Result<(u32, String, Option<Finish>)> {
        let DrawnToken { id: token, logp, entropy } = outcome?;
        self.logprobs.push(logp);
        self.entropy.extend(entropy.filter(|_| sampling.entropy));
        if sampling.ends(token, end_tokens) {
            let (text, _) = self.watch.push(&self.stream.finish()?);
            return Ok((token, text, Some(Finish::Stop)));
        }
        let (mut text, met) = self.watch.push(&self.stream.push(token)?);
        if met {
            return Ok((token, text, Some(Finish::Stop)));
        }
        if !last {
            return Ok((token, text, None));
        }
        let (rest, met) = self.watch.push(&self.stream.finish()?);
        text.push_str(&rest);
        Ok((token, text, Some(if met { Finish::Stop } else { Finish::Length })))
    }
}
