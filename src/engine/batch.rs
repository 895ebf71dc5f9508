//! The engine: requests go in, completions come out, and every pass works on all of them.
//!
//! Each [`Engine::step`] is the same four moves: look at what every sequence needs, let `schedule` decide, run the
//! model once over what it decided, draw a token for every sequence that has reached its end. A request for several
//! completions reads its prompt once and then goes on as several sequences that hold the same pages; whoever first
//! writes to a page that others hold copies it.
//!
//! Where a device decodes by itself, the draws of one step are read in the next, after that has given the device its own
//! work: the device has the tokens, and all else is known beforehand, but for who ends with which token. Who turns out to
//! have ended was in one step too many, in pages of its own, and what it drew there is dropped. What is done on a device is
//! done in order, so pages and seats that it gives back are written by their next owner after that. The host looks first
//! where it would take something away, or has to have the tokens.

use super::pages::PagePool;
use super::prefix::Key;
use super::request::{Event, Limits, Published, Request, Ticket, Totals};
use super::schedule::{Room, Running, Turn, Waiting, schedule};
use super::sequence::{Lane, Sequence, Shared};
use super::stop::StopWatch;
use crate::backend::{DrawnToken, FetchedDraws};
use crate::error::{Error, Result};
use crate::model::{
    AHEAD, Adapter, AdapterRows, Decoded, Decoding, KvCache, Model, PAGE, PlacedImage, Run, Workspace,
    pages_for,
};
use crate::prompt::tokenizer::Tokenizer;
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

/// What a sequence has drawn, one token behind the other.
type Draws = Vec<Result<DrawnToken>>;

/// Draws that nobody has read yet, of lanes in this order.
#[derive(Debug)]
struct Flight {
    lanes: Vec<(Ticket, usize)>,
    drawn: Flown,
}

#[derive(Debug)]
enum Flown {
    /// One of each.
    Once(FetchedDraws),
    /// As many as the device drew by itself.
    Ahead(Decoded),
}

impl Flown {
    fn land(self) -> Result<Vec<Draws>> {
        match self {
            Flown::Once(drawn) => Ok(drawn.land()?.into_iter().map(|outcome| vec![outcome]).collect()),
            Flown::Ahead(decoded) => decoded.land(),
        }
    }
}

/// Who draws in a pass: its place in the batch, its row, and seats for its lanes.
struct End {
    at: usize,
    row: usize,
    seats: Vec<u32>,
}

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
    /// Seats that nobody has.
    seats: Vec<u32>,
    /// What the backend has been given and was not read, in that order.
    flights: VecDeque<Flight>,
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
        let mut work = model.workspace()?;
        if model.backend.recorder().is_some() {
            work.reserve_seats(&*model.backend, sequences)?;
        }
        Ok(Engine {
            model,
            tokenizer,
            end_tokens,
            limits,
            cache: model.cache(pages)?,
            work,
            pool: PagePool::new(pages),
            seats: (0..sequences as u32).rev().collect(),
            flights: VecDeque::new(),
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
        let (table, keys) = (Vec::new(), Vec::new());
        let mut sequence =
            Sequence { shared, tokens, unread: 0, seat: None, computed: 0, table, keys, lanes };
        sequence.extend_keys();
        self.waiting.push_back(sequence);
        Ok(ticket)
    }

    /// Takes a request out, wherever it is, and says whether it was there.
    pub fn cancel(&mut self, ticket: Ticket) -> bool {
        let before = self.running.len() + self.waiting.len();
        for sequence in self.running.iter_mut().filter(|sequence| sequence.shared.ticket == ticket) {
            sequence.release(&mut self.pool, &mut self.seats);
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

    /// One pass, or several if the device makes them by itself: what was read of draws, and what ended with them.
    pub fn step(&mut self) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        let launched = self.launch()?;
        let unread = usize::from(launched && self.model.backend.recorder().is_some());
        while self.flights.len() > unread
            && let Some(flight) = self.flights.pop_front()
        {
            self.land(flight, &mut events)?;
        }
        if self.running.is_empty() {
            self.flights.clear(); // of sequences that have ended or were cancelled
        }
        Ok(events)
    }

    /// Gives the backend what comes next, unless draws have to be read first, and says whether it did.
    fn launch(&mut self) -> Result<bool> {
        let Some(Work { counts, ahead }) = self.admit_and_preempt()? else { return Ok(false) };
        self.make_room(&counts)?;
        let ends = self.forward(&counts, ahead)?;
        self.totals.passes += ahead.max(1) as u64;
        self.totals.computed += counts.iter().sum::<usize>() as u64;
        for (sequence, &count) in self.running.iter_mut().zip(&counts).filter(|(_, count)| **count > 0) {
            sequence.computed += count;
            sequence.publish(&mut self.pool);
        }
        let mut drawn: HashMap<usize, Vec<u32>> = ends.into_iter().map(|end| (end.at, end.seats)).collect();
        for (at, sequence) in std::mem::take(&mut self.running).into_iter().enumerate() {
            match drawn.remove(&at) {
                Some(seats) => {
                    let draws = if ahead > 0 { counts[at] } else { 1 };
                    self.running.extend(sequence.split(draws, &seats, &mut self.pool));
                }
                None => self.running.push(sequence),
            }
        }
        Ok(true)
    }

    /// Changes the batch as the schedule says, and returns what each sequence in it computes now; nothing if draws have to be
    /// read first.
    fn admit_and_preempt(&mut self) -> Result<Option<Work>> {
        let running: Vec<Running> = self.running.iter().map(|sequence| sequence.state(&self.pool)).collect();
        let waiting = self.line();
        let room = Room {
            pages: self.pool.available(),
            tokens: self.limits.tokens,
            lanes: self.limits.sequences,
            ahead: self.model.backend.recorder().map_or(0, |_| AHEAD),
        };
        let plan = schedule(&running, &waiting, room);
        let penalised = |sequence: &Sequence<'_>| {
            sequence.unread > 0 && sequence.shared.sampling.repetition_penalty != 1.0
        };
        let stuck = plan.turns.is_empty() || !plan.preempted.is_empty();
        if !self.flights.is_empty() && (stuck || self.running.iter().any(penalised)) {
            return Ok(None);
        }
        if plan.turns.is_empty() && !self.is_idle() {
            return Err(Error::internal("schedule", format!("nobody can move: {running:?}, {waiting:?}")));
        }
        for &at in &plan.preempted {
            let mut sequence = self.running.remove(at);
            sequence.release(&mut self.pool, &mut self.seats);
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
        Ok(Some(Work { counts, ahead: plan.ahead }))
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

    /// Runs the model, lets those draw who have reached their end, and returns who they are.
    fn forward(&mut self, counts: &[usize], ahead: usize) -> Result<Vec<End>> {
        let mut order: Vec<usize> = (0..self.running.len()).filter(|&at| counts[at] > 0).collect();
        // Adapters serve ranges of rows, and pages that neighbours begin with are read once for all of them.
        order.sort_by_key(|&at| (self.running[at].shared.generation(), &self.running[at].table));
        let images: Vec<Vec<PlacedImage<'_>>> = order.iter().map(|&at| self.running[at].images()).collect();
        let mut runs = Vec::with_capacity(order.len());
        let mut adapters: Vec<AdapterRows<'_>> = Vec::new();
        let mut served = None;
        let mut ends = Vec::new();
        let mut row = 0;
        for (&at, images) in order.iter().zip(&images) {
            let sequence = &self.running[at];
            let (tokens, seat) = sequence.next(counts[at]);
            let rows = row..row + tokens.len();
            row = rows.end;
            match (&sequence.shared.adapter, adapters.last_mut()) {
                (Some(_), Some(last)) if served == sequence.shared.generation() => last.rows.end = rows.end,
                (Some(published), _) => adapters.push(AdapterRows { rows, adapter: &published.adapter }),
                (None, _) => {}
            }
            served = sequence.shared.generation();
            if sequence.computed + tokens.len() == sequence.length() {
                let left = self.seats.len().checked_sub(sequence.lanes.len());
                let seats = match (sequence.seat, left) {
                    (Some(seat), _) => vec![seat],
                    (None, Some(left)) => self.seats.split_off(left),
                    (None, None) => return Err(Error::internal("seats", "fewer than lanes in the batch")),
                };
                ends.push(End { at, row: row - 1, seats });
            }
            runs.push(Run {
                tokens,
                seat,
                start: sequence.computed,
                positions: sequence.shared.input.positions(),
                pages: &sequence.table,
                images,
            });
        }
        if runs.is_empty() {
            return Ok(ends);
        }
        let (backend, decoder) = (&*self.model.backend, &self.model.decoder);
        let lanes = ends.iter().flat_map(|end| {
            let Sequence { shared, lanes, .. } = &self.running[end.at];
            lanes.iter().map(|lane| (shared.ticket, lane.index))
        });
        let lanes: Vec<(Ticket, usize)> = lanes.collect();
        let drawn = if ahead > 0 {
            let decoding = ends.iter().zip(runs).map(|(end, run)| {
                let sequence = &self.running[end.at];
                let draw = sequence.draw(&sequence.lanes[0]);
                Decoding { run, draw, tokens: counts[end.at], seat: end.seats[0] }
            });
            let decoding: Vec<Decoding<'_>> = decoding.collect();
            Flown::Ahead(decoder.decode(backend, &decoding, &adapters, &mut self.cache, &mut self.work)?)
        } else {
            decoder.forward(backend, &runs, &adapters, &mut self.cache, &mut self.work)?;
            if ends.is_empty() {
                return Ok(ends);
            }
            Flown::Once(self.draw(&ends)?)
        };
        self.flights.push_back(Flight { lanes, drawn });
        Ok(ends)
    }

    /// Draws a token for every lane of the sequences that have reached their end.
    fn draw(&mut self, ends: &[End]) -> Result<FetchedDraws> {
        let mut rows = Vec::new();
        let mut draws = Vec::new();
        for &End { at, row, .. } in ends {
            let sequence = &self.running[at];
            rows.extend(sequence.lanes.iter().map(|_| row));
            draws.extend(sequence.lanes.iter().map(|lane| sequence.draw(lane)));
        }
        let (backend, decoder) = (&*self.model.backend, &self.model.decoder);
        let entropy = ends.iter().any(|end| self.running[end.at].shared.sampling.entropy);
        let hidden = decoder.rows(backend, self.work.normed(), &rows)?;
        let drawn = decoder.sample(backend, &hidden, &draws, entropy)?;
        if backend.recorder().is_some() {
            let seats: Vec<u32> = ends.iter().flat_map(|end| end.seats.iter().copied()).collect();
            decoder.keep_seats(backend, &drawn, &seats, &mut self.work)?;
        }
        drawn.fetch(backend)
    }

    /// Gives sequences what they have drawn. Of several tokens in a row those behind a completion's end are dropped, and so
    /// are those of sequences that have gone.
    fn land(&mut self, flight: Flight, events: &mut Vec<Event>) -> Result<()> {
        let Flight { lanes, drawn } = flight;
        let mut drawn: HashMap<(Ticket, usize), Draws> = lanes.into_iter().zip(drawn.land()?).collect();
        for mut sequence in std::mem::take(&mut self.running) {
            let draws = match &sequence.lanes[..] {
                [lane] => drawn.remove(&(sequence.shared.ticket, lane.index)),
                _ => None,
            };
            let goes_on = draws.into_iter().flatten().all(|outcome| {
                self.totals.drawn += 1;
                sequence.take(outcome, self.end_tokens, events)
            });
            if goes_on {
                self.running.push(sequence);
            } else {
                sequence.publish(&mut self.pool);
                sequence.release(&mut self.pool, &mut self.seats);
            }
        }
        Ok(())
    }
}
