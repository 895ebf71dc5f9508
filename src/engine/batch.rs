//! The engine: requests go in, completions come out, and every pass works on all of them.
//!
//! Each [`Engine::step`] is the same four moves: look at what every sequence needs, let `schedule` decide, run the
//! model once over what it decided, draw a token for every sequence that has reached its end. A request for several
//! completions reads its prompt once and then goes on as several sequences that hold the same pages; whoever first
//! writes to a page that others hold copies it.

use super::pages::PagePool;
use super::prefix::Key;
use super::request::{Event, Limits, Published, Request, Ticket, Totals};
use super::schedule::{Room, Running, Turn, Waiting, schedule};
use super::sequence::{Lane, Sequence, Shared};
use super::stop::StopWatch;
use crate::backend::{Draw, DrawnToken};
use crate::error::{Error, Result};
use crate::model::{
    AHEAD, Adapter, AdapterRows, Decoding, KvCache, Model, PAGE, PlacedImage, Run, Workspace, pages_for,
};
use crate::prompt::tokenizer::Tokenizer;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

/// What a sequence has drawn, one token behind the other.
type Draws = Vec<Result<DrawnToken>>;

/// What comes next.
struct Work {
    /// Tokens that each sequence computes.
    counts: Vec<usize>,
    /// Passes that the device makes by itself, if that.
    ahead: usize,
}

/// Runs requests on one model.
#[derive(Debug)]
pub struct Engine<'m> {
    model: &'m Model,
    tokenizer: &'m Tokenizer,
    end_tokens: &'m [u32],
    limits: Limits,
    cache: KvCache,
    work: Workspace,
    pool: PagePool,
    /// In the batch, the oldest first.
    running: Vec<Sequence<'m>>,
    waiting: VecDeque<Sequence<'m>>,
    totals: Totals,
    submitted: u64,
    published: u64,
    /// What adapters it publishes are known by.
    identity: Arc<()>,
}

impl<'m> Engine<'m> {
    /// An engine with nothing to do.
    pub fn new(
        model: &'m Model,
        tokenizer: &'m Tokenizer,
        end_tokens: &'m [u32],
        limits: Limits,
    ) -> Result<Self> {
        let Limits { pages, tokens, sequences } = limits;
        if pages == 0 || tokens == 0 || sequences == 0 {
            return Err(Error::caller("engine", format!("{limits:?}: every limit has to be at least 1")));
        }
        Ok(Engine {
            model,
            tokenizer,
            end_tokens,
            limits,
            cache: model.cache(pages)?,
            work: model.workspace()?,
            pool: PagePool::new(pages),
            running: Vec::new(),
            waiting: VecDeque::new(),
            totals: Totals::default(),
            submitted: 0,
            published: 0,
            identity: Arc::default(),
        })
    }

    /// Serves an adapter from now on. Publish it again after it has changed: pages computed before then no longer
    /// match.
    pub fn publish(&mut self, adapter: Arc<Adapter>) -> Published {
        self.published += 1;
        Published { adapter, generation: self.published, by: self.identity.clone() }
    }

    /// Puts a request in the line. Refuses what could never run.
    pub fn submit(&mut self, request: Request) -> Result<Ticket> {
        request.check(self.model, self.limits)?;
        let Request { input, sampling, seeds, adapter } = request;
        if adapter.as_ref().is_some_and(|adapter| !Arc::ptr_eq(&adapter.by, &self.identity)) {
            let what = "the adapter was published by another engine; publish it here, too";
            return Err(Error::caller("submit", what));
        }
        let ticket = Ticket(self.submitted);
        self.submitted += 1;
        let lane = |(index, &seed)| Lane {
            index,
            seed,
            stream: self.tokenizer.stream(true),
            watch: StopWatch::new(sampling.stop.clone()),
            logprobs: Vec::new(),
            entropy: Vec::new(),
        };
        let lanes = seeds.iter().enumerate().map(lane).collect();
        let tokens = input.tokens().to_vec();
        let shared = Arc::new(Shared { ticket, input, sampling, adapter });
        let mut sequence =
            Sequence { shared, tokens, computed: 0, table: Vec::new(), keys: Vec::new(), lanes };
        sequence.extend_keys();
        self.waiting.push_back(sequence);
        Ok(ticket)
    }

    /// Takes a request out, wherever it is, and says whether it was there.
    pub fn cancel(&mut self, ticket: Ticket) -> bool {
        let before = self.running.len() + self.waiting.len();
        for sequence in self.running.iter_mut().filter(|sequence| sequence.shared.ticket == ticket) {
            sequence.release(&mut self.pool);
        }
        self.running.retain(|sequence| sequence.shared.ticket != ticket);
        self.waiting.retain(|sequence| sequence.shared.ticket != ticket);
        before != self.running.len() + self.waiting.len()
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// What has been done so far.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Forgets the pages of prompts that nobody is working on.
    pub fn reset_prefixes(&mut self) {
        self.pool.reset();
    }

    /// Whether the books on pages agree with who uses them.
    pub fn check(&self) -> Result<()> {
        self.pool.check(self.running.iter().map(|sequence| sequence.table.as_slice()))
    }

    /// One pass, or several if the device makes them by itself: what they drew and what ended with it.
    pub fn step(&mut self) -> Result<Vec<Event>> {
        let Work { counts, ahead } = self.admit_and_preempt()?;
        self.make_room(&counts)?;
        let drawn = self.forward(&counts, ahead)?;
        self.totals.passes += ahead.max(1) as u64;
        self.totals.computed += counts.iter().sum::<usize>() as u64;
        for (sequence, count) in self.running.iter_mut().zip(&counts) {
            sequence.computed += count;
        }
        Ok(self.take(drawn))
    }

    /// Changes the batch as the schedule says, and returns what each sequence in it computes now.
    fn admit_and_preempt(&mut self) -> Result<Work> {
        let running: Vec<Running> = self.running.iter().map(|sequence| sequence.state(&self.pool)).collect();
        let waiting = self.line();
        let room = Room {
            pages: self.pool.available(),
            tokens: self.limits.tokens,
            lanes: self.limits.sequences,
            ahead: self.model.backend.recorder().map_or(0, |_| AHEAD),
        };
        let plan = schedule(&running, &waiting, room);
        if plan.turns.is_empty() && !self.is_idle() {
            return Err(Error::internal("schedule", format!("nobody can move: {running:?}, {waiting:?}")));
        }
        for &at in &plan.preempted {
            let mut sequence = self.running.remove(at);
            sequence.release(&mut self.pool);
            self.waiting.push_front(sequence);
            self.totals.preempted += 1;
        }
        let mut counts = vec![0; self.running.len()];
        let mut admitted = 0;
        for turn in plan.turns {
            match turn {
                Turn::Running { at, tokens } => counts[at] = tokens,
                Turn::Waiting { at, tokens } => {
                    let newcomer = self.waiting.remove(at - admitted);
                    let mut sequence = newcomer.ok_or_else(|| Error::internal("schedule", "nobody there"))?;
                    admitted += 1;
                    sequence.adopt(&mut self.pool);
                    self.totals.reused += sequence.computed as u64;
                    self.running.push(sequence);
                    counts.push(tokens);
                }
            }
        }
        Ok(Work { counts, ahead: plan.ahead })
    }

    /// The line as the schedule sees it.
    fn line(&self) -> Vec<Waiting> {
        // What is being computed, or will be by somebody earlier in the line.
        let mut coming: Vec<Key> = self
            .running
            .iter()
            .filter_map(|sequence| sequence.keys.get(sequence.computed / PAGE))
            .copied()
            .collect();
        // Beyond so many newcomers nobody is admitted in one pass anyway.
        let near = self.waiting.iter().take(self.limits.sequences + 1);
        near.map(|sequence| {
            let found = sequence.known(&self.pool);
            let next = sequence.keys.get(found.len()).filter(|_| found.len() < sequence.reusable());
            let held = next.is_some_and(|key| coming.contains(key));
            coming.extend(next.filter(|_| !held));
            Waiting {
                length: sequence.tokens.len(),
                cached: found.len() * PAGE,
                idle: found.iter().filter(|&&page| self.pool.holders(page) == 0).count(),
                lanes: sequence.lanes.len(),
                held,
            }
        })
        .collect()
    }

    /// Pages for the tokens about to be computed, each page the sequence's own from where it writes.
    fn make_room(&mut self, counts: &[usize]) -> Result<()> {
        for (sequence, &count) in self.running.iter_mut().zip(counts).filter(|(_, count)| **count > 0) {
            if let Some(tail) = sequence.shared_tail(&self.pool) {
                let copy = self.pool.take()?;
                self.cache.copy_page(&*self.model.backend, tail, copy)?;
                self.pool.release(tail);
                sequence.table.pop();
                sequence.table.push(copy);
            }
            while sequence.table.len() < pages_for(sequence.computed + count) {
                sequence.table.push(self.pool.take()?);
            }
        }
        Ok(())
    }

    /// Runs the model, and returns what those who have reached their end have drawn, by their place in the batch and in
    /// order of their lanes.
    fn forward(&mut self, counts: &[usize], ahead: usize) -> Result<BTreeMap<usize, Vec<Draws>>> {
        let mut order: Vec<usize> = (0..self.running.len()).filter(|&at| counts[at] > 0).collect();
        // Adapters serve ranges of rows, and pages that neighbours begin with are read once for all of them.
        order.sort_by_key(|&at| (self.running[at].shared.generation(), &self.running[at].table));
        let images: Vec<Vec<PlacedImage<'_>>> = order.iter().map(|&at| self.running[at].images()).collect();
        let mut runs = Vec::with_capacity(order.len());
        let mut adapters: Vec<AdapterRows<'_>> = Vec::new();
        let mut served = None;
        let mut row = 0;
        for (&at, images) in order.iter().zip(&images) {
            let sequence = &self.running[at];
            // A device that goes ahead draws all but the first token of these itself.
            let end = sequence.tokens.len().min(sequence.computed + counts[at]);
            let rows = row..row + end - sequence.computed;
            row = rows.end;
            match (&sequence.shared.adapter, adapters.last_mut()) {
                (Some(_), Some(last)) if served == sequence.shared.generation() => last.rows.end = rows.end,
                (Some(published), _) => adapters.push(AdapterRows { rows, adapter: &published.adapter }),
                (None, _) => {}
            }
            served = sequence.shared.generation();
            runs.push(Run {
                tokens: &sequence.tokens[sequence.computed..end],
                start: sequence.computed,
                positions: sequence.shared.input.positions(),
                pages: &sequence.table,
                images,
            });
        }
        let (backend, decoder) = (&*self.model.backend, &self.model.decoder);
        if runs.is_empty() {
            return Ok(BTreeMap::new());
        }
        if ahead > 0 {
            let decoding = order.iter().zip(runs).map(|(&at, run)| {
                let Sequence { shared, tokens, lanes, .. } = &self.running[at];
                let draw = Draw { seed: lanes[0].seed, ..shared.sampling.draw(tokens) };
                Decoding { run, draw, tokens: counts[at] }
            });
            let decoding: Vec<Decoding<'_>> = decoding.collect();
            let drawn = decoder.decode(backend, &decoding, &adapters, &mut self.cache, &mut self.work)?;
            return Ok(order.into_iter().zip(drawn.into_iter().map(|draws| vec![draws])).collect());
        }
        decoder.forward(backend, &runs, &adapters, &mut self.cache, &mut self.work)?;
        let mut ends = Vec::new();
        let mut row = 0;
        for (&at, run) in order.iter().zip(&runs) {
            row += run.tokens.len();
            if run.start + run.tokens.len() == self.running[at].tokens.len() {
                ends.push((at, row - 1));
            }
        }
        self.draw(&ends)
    }

    /// Draws a token for every lane of the sequences that have reached their end in these rows.
    fn draw(&self, ends: &[(usize, usize)]) -> Result<BTreeMap<usize, Vec<Draws>>> {
        if ends.is_empty() {
            return Ok(BTreeMap::new());
        }
        let mut rows = Vec::new();
        let mut draws = Vec::new();
        for &(at, row) in ends {
            let Sequence { shared, tokens, lanes, .. } = &self.running[at];
            rows.extend(lanes.iter().map(|_| row));
            draws.extend(lanes.iter().map(|lane| Draw { seed: lane.seed, ..shared.sampling.draw(tokens) }));
        }
        let (backend, decoder) = (&*self.model.backend, &self.model.decoder);
        let entropy = ends.iter().any(|&(at, _)| self.running[at].shared.sampling.entropy);
        let hidden = decoder.rows(backend, self.work.normed(), &rows)?;
        let mut drawn = decoder.sample(backend, &hidden, &draws, entropy)?.read(backend)?.into_iter();
        let of = |&(at, _): &(usize, usize)| {
            let lanes = self.running[at].lanes.len();
            (at, drawn.by_ref().take(lanes).map(|outcome| vec![outcome]).collect())
        };
        Ok(ends.iter().map(of).collect())
    }

    /// Gives sequences what they have drawn. Of several tokens in a row those behind a completion's end are dropped.
    fn take(&mut self, mut drawn: BTreeMap<usize, Vec<Draws>>) -> Vec<Event> {
        let mut events = Vec::new();
        for (at, sequence) in std::mem::take(&mut self.running).into_iter().enumerate() {
            let Some(lanes) = drawn.remove(&at) else {
                sequence.publish(&mut self.pool);
                self.running.push(sequence);
                continue;
            };
            for (mut sequence, draws) in sequence.split(&mut self.pool).into_iter().zip(lanes) {
                let goes_on = draws.into_iter().all(|outcome| {
                    self.totals.drawn += 1;
                    sequence.take(outcome, self.end_tokens, &mut events)
                });
                sequence.publish(&mut self.pool);
                if goes_on {
                    self.running.push(sequence);
                } else {
                    sequence.release(&mut self.pool);
                }
            }
        }
        events
    }
}
