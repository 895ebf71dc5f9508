//! An engine on a thread of its own: requests from any thread, answers to whoever asked.
//!
//! The thread does what a loop around [`Engine::step`] would: take what has been asked for since the last pass, let go of
//! what nobody waits for any more, make a pass, hand out what came of it. It sleeps while there is nothing to do. What a
//! request gets depends on the request alone, as in any engine, so it does not matter who asks first.

use super::batch::Engine;
use super::request::{Completion, Event, Limits, Published, Request, Ticket};
use crate::error::{Error, Result};
use crate::model::{Adapter, Model};
use crate::prompt::tokenizer::Tokenizer;
use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock, Weak,
        mpsc::{Receiver, RecvError, Sender, TryRecvError, channel},
    },
    thread::{Builder, JoinHandle},
};

const OP: &str = "engine";

/// What a service runs.
#[derive(Debug, Clone)]
pub struct Serving {
    /// The model.
    pub model: Arc<Model>,
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// Tokens that end a completion.
    pub end_tokens: Vec<u32>,
    /// What its engine may use.
    pub limits: Limits,
}

/// An engine that runs by itself until this is dropped.
#[derive(Debug)]
pub struct Service {
    serving: Serving,
    /// Taken when the service ends.
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
    end: End,
}

/// Why the thread ended, once it has.
type End = Arc<OnceLock<Arc<Error>>>;

/// A request in a service. Dropping it cancels the request.
#[derive(Debug)]
pub struct Pending {
    events: Receiver<Result<Event>>,
    /// Completions that have not ended.
    open: usize,
    lanes: usize,
    end: End,
    _held: Arc<()>,
}

/// What the thread is asked.
enum Order {
    Run { request: Request, waiter: Waiter },
    Visit(Box<dyn FnOnce(&mut Engine<'_>) + Send>),
}

type Waiters = HashMap<Ticket, Waiter>;

/// Who waits for a request.
struct Waiter {
    events: Sender<Result<Event>>,
    open: usize,
    /// Dead once nobody waits.
    held: Weak<()>,
}

impl Service {
    /// Makes an engine and lets it run.
    pub fn start(serving: Serving) -> Result<Self> {
        let (orders, taken) = channel();
        let (ready, made) = channel();
        let end = End::default();
        let thread = {
            let (serving, end) = (serving.clone(), end.clone());
            let run = move || match serving.engine() {
                Ok(engine) => {
                    let _ = ready.send(Ok(())); // whoever starts a service waits for this
                    // Lines close after the reason is known: they, and the orders, outlive the engine.
                    let mut waiters = HashMap::new();
                    if let Err(error) = serve(engine, &taken, &mut waiters) {
                        let _ = end.set(Arc::new(error)); // by nobody else
                    }
                }
                Err(error) => drop(ready.send(Err(error))),
            };
            let thread = Builder::new().name("pellucid-engine".into()).spawn(run);
            thread.map_err(|source| Error::machine_because(OP, "its thread could not be started", source))?
        };
        let service = Service { serving, orders: Some(orders), thread: Some(thread), end };
        made.recv().map_err(|_: RecvError| service.ended())??;
        Ok(service)
    }

    /// What it runs.
    pub fn serving(&self) -> &Serving {
        &self.serving
    }

    /// Asks for completions, and does not wait for them. Refuses what could never run, an adapter of another engine when
    /// its turn comes.
    pub fn submit(&self, request: Request) -> Result<Pending> {
        request.check(&self.serving.model, self.serving.limits)?;
        let lanes = request.seeds.len();
        let (sender, events) = channel();
        let held = Arc::new(());
        let waiter = Waiter { events: sender, open: lanes, held: Arc::downgrade(&held) };
        self.order(Order::Run { request, waiter })?;
        Ok(Pending { events, open: lanes, lanes, end: self.end.clone(), _held: held })
    }

    /// Does something with the engine between two passes, and waits for it.
    pub fn visit<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Engine<'_>) -> R + Send + 'static,
    ) -> Result<R> {
        let (sender, result) = channel();
        let work = move |engine: &mut Engine<'_>| drop(sender.send(work(engine)));
        self.order(Order::Visit(Box::new(work)))?;
        result.recv().map_err(|_: RecvError| self.ended())
    }

    /// Serves an adapter from now on, as [`Engine::publish`] does.
    pub fn publish(&self, adapter: Arc<Adapter>) -> Result<Published> {
        self.visit(|engine| engine.publish(adapter))
    }

    fn order(&self, order: Order) -> Result<()> {
        let sent = self.orders.as_ref().is_some_and(|orders| orders.send(order).is_ok());
        if sent { Ok(()) } else { Err(self.ended()) }
    }

    fn ended(&self) -> Error {
        ended(&self.end)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Without anybody to give orders the thread ends after the pass it is in.
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            // What it threw, if it did, has been printed; those who wait hear that it is gone.
            let _ = thread.join();
        }
    }
}

impl Serving {
    fn engine(&self) -> Result<Engine<'_>> {
        Engine::new(&self.model, &self.tokenizer, &self.end_tokens, self.limits)
    }
}

impl Pending {
    /// What happens next, or nothing once every completion has ended. Fails if the request was refused after all, or the
    /// service has ended.
    pub fn next_event(&mut self) -> Result<Option<Event>> {
        if self.is_finished() {
            return Ok(None);
        }
        let event = self.events.recv().unwrap_or_else(|_: RecvError| Err(ended(&self.end)));
        self.noted(event).map(Some)
    }

    /// What has happened and was not asked for yet, if anything. Fails as [`Pending::next_event`] does.
    pub fn try_next_event(&mut self) -> Result<Option<Event>> {
        match self.events.try_recv() {
            Ok(event) => self.noted(event).map(Some),
            Err(TryRecvError::Disconnected) if !self.is_finished() => {
                self.noted(Err(ended(&self.end))).map(Some)
            }
            Err(_) => Ok(None),
        }
    }

    /// Whether every completion has ended, and that was told.
    pub fn is_finished(&self) -> bool {
        self.open == 0
    }

    /// All completions, by their seeds' order. If one of them fails, that is the result.
    pub fn wait(mut self) -> Result<Vec<Completion>> {
        let mut all: Vec<Option<Completion>> = (0..self.lanes).map(|_| None).collect();
        while let Some(event) = self.next_event()? {
            match event {
                Event::Text { .. } => {}
                Event::Finished { lane, completion, .. } => all[lane] = Some(completion),
                Event::Failed { error, .. } => return Err(error),
            }
        }
        let all: Option<Vec<Completion>> = all.into_iter().collect();
        all.ok_or_else(|| Error::internal(OP, "a completion was told of before"))
    }

    /// Gives the request up. The engine lets go of its pages before its next pass.
    pub fn cancel(self) {}

    fn noted(&mut self, event: Result<Event>) -> Result<Event> {
        // An error here is about all of them.
        self.open = event.as_ref().map_or(0, |event| self.open - usize::from(event.ends()));
        event
    }
}

/// Serves until nobody is left to give orders, or a pass fails. Whoever still waits then learns it from their end of
/// the line, which closes.
fn serve(mut engine: Engine<'_>, orders: &Receiver<Order>, waiters: &mut Waiters) -> Result<()> {
    loop {
        if engine.is_idle() {
            match orders.recv() {
                Ok(order) => take(order, &mut engine, waiters),
                Err(RecvError) => return Ok(()),
            }
        }
        loop {
            match orders.try_recv() {
                Ok(order) => take(order, &mut engine, waiters),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    return Err(Error::caller(OP, "the service was dropped before this request had ended"));
                }
            }
        }
        waiters.retain(|&ticket, waiter| {
            let wanted = waiter.held.strong_count() > 0;
            if !wanted {
                engine.cancel(ticket);
            }
            wanted
        });
        if engine.is_idle() {
            continue;
        }
        for event in engine.step()? {
            let ticket = event.ticket();
            let Some(waiter) = waiters.get_mut(&ticket) else { continue };
            waiter.open -= usize::from(event.ends());
            let open = waiter.open;
            let _ = waiter.events.send(Ok(event)); // who has just gone is noticed before the next pass
            if open == 0 {
                waiters.remove(&ticket);
            }
        }
    }
}

fn take(order: Order, engine: &mut Engine<'_>, waiters: &mut Waiters) {
    match order {
        Order::Run { request, waiter } => match engine.submit(request) {
            Ok(ticket) => drop(waiters.insert(ticket, waiter)),
            Err(refusal) => drop(waiter.events.send(Err(refusal))), // unless nobody waits any more
        },
        Order::Visit(work) => work(engine),
    }
}

/// What somebody is told who still waits, or comes too late.
fn ended(end: &OnceLock<Arc<Error>>) -> Error {
    match end.get() {
        Some(cause) => Error::machine_because(OP, "it ended, and every request in it with it", cause.clone()),
        None => Error::internal(OP, "its thread is gone"),
    }
}
