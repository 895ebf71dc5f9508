//! Threads that carry questions to the server: as many as there may be requests under way, each with one at a time.

use super::body::{Name, Question};
use super::reply::Reply;
use super::server::{Failure, Server};
use super::settings::RemoteSettings;
use super::{Notice, RemoteCounters, Trouble};
use crate::error::{Error, Result};
use std::collections::VecDeque;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The longest pause, in times the first.
const LONGEST_PAUSE: f64 = 60.0;

/// What became of a question.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum End<T> {
    Replied(T),
    /// Of this question.
    Trouble(Trouble),
    /// Of every question.
    Down(String),
}

/// What the threads and their owner have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) server: Server,
    pub(super) settings: RemoteSettings,
    state: Mutex<State>,
    /// A question has come, or the end.
    work: Condvar,
    /// The end has come.
    end: Condvar,
    /// Hears that the server is down, and that it is back.
    notice: Notice,
}

#[derive(Debug, Default)]
struct State {
    questions: VecDeque<Question>,
    counters: RemoteCounters,
    ended: bool,
    /// The server was not there when it was asked last.
    away: bool,
}

impl Shared {
    pub(super) fn new(settings: RemoteSettings, notice: Notice) -> Result<Self> {
        let server = Server::new(&settings)?;
        let state = Mutex::default();
        Ok(Shared { server, settings, state, work: Condvar::new(), end: Condvar::new(), notice })
    }

    /// The server is there, or away and why; says so when that changes.
    fn heard(&self, why: Option<&str>) {
        let before = std::mem::replace(&mut self.lock().away, why.is_some());
        let (url, patience) = (&self.settings.url, self.settings.patience.as_secs());
        match why {
            Some(why) if !before => {
                (self.notice)(&format!("the reasoner at {url} is away ({why}); waiting up to {patience} s"));
            }
            None if before => (self.notice)(&format!("the reasoner at {url} is back")),
            _ => {}
        }
    }

    pub(super) fn push(&self, question: Question) {
        self.lock().questions.push_back(question);
        self.work.notify_one();
    }

    /// Lets the threads go, once each has done with its request.
    pub(super) fn end(&self) {
        self.lock().ended = true;
        self.work.notify_all();
        self.end.notify_all();
    }

    pub(super) fn counters(&self) -> RemoteCounters {
        self.lock().counters.clone()
    }

    pub(super) fn count(&self, with: impl FnOnce(&mut RemoteCounters)) {
        with(&mut self.lock().counters);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that holds the lock leaves a change half made.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<Question> {
        let waiting = |state: &mut State| state.questions.is_empty() && !state.ended;
        let mut state = self.work.wait_while(self.lock(), waiting).unwrap_or_else(PoisonError::into_inner);
        if state.ended { None } else { state.questions.pop_front() }
    }

    /// Waits; false if the end came first.
    fn pause(&self, pause: Duration) -> bool {
        let waited = self.end.wait_timeout_while(self.lock(), pause, |state| !state.ended);
        !waited.unwrap_or_else(PoisonError::into_inner).0.ended
    }

    /// Tries until something comes of it, or nothing will. None if the end came first.
    pub(super) fn persist<T>(
        &self,
        name: Name,
        attempt: impl Fn(&Server) -> Result<T, Failure>,
    ) -> Option<End<T>> {
        let RemoteSettings { retries, patience, pause: first, .. } = self.settings;
        let (mut failures, mut waits, mut since) = (0, 0, None);
        loop {
            self.count(|counters| counters.requests += 1);
            let (asked, trouble) = match attempt(&self.server) {
                Ok(got) => {
                    self.heard(None);
                    return Some(End::Replied(got));
                }
                Err(Failure::Final(trouble)) => return Some(End::Trouble(trouble)),
                Err(Failure::Hopeless(what)) => return Some(End::Down(what)),
                Err(Failure::Passing(trouble)) if failures == retries => return Some(End::Trouble(trouble)),
                Err(Failure::Passing(_)) => {
                    failures += 1;
                    // Whatever it did, it was there.
                    (waits, since) = (0, None);
                    self.count(|counters| counters.retries += 1);
                    if !self.pause(backoff(first, failures, name)) {
                        return None;
                    }
                    continue;
                }
                Err(Failure::Busy(trouble, asked)) => (asked, End::Trouble(trouble)),
                Err(Failure::Away(what)) => {
                    self.heard(Some(&what));
                    (None, End::Down(what))
                }
            };
            let waited = since.get_or_insert_with(Instant::now).elapsed();
            if waited >= patience {
                return Some(trouble);
            }
            waits += 1;
            self.count(|counters| counters.waits += 1);
            let pause = asked.unwrap_or_else(|| backoff(first, waits, name));
            if !self.pause(pause.min(patience - waited)) {
                return None;
            }
        }
    }
}

/// Starts a thread that carries questions until the end.
pub(super) fn start(shared: &Arc<Shared>, replies: Sender<(Name, End<Reply>)>) -> Result<()> {
    let shared = Arc::clone(shared);
    let carry = move || {
        while let Some(Question { name, body }) = shared.next() {
            let end = shared.persist(name, |server| server.ask(&body));
            let Some(end) = end else { return };
            if replies.send((name, end)).is_err() {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("reasoner".to_owned()).spawn(carry);
    thread.map(drop).map_err(|cause| Error::machine_because("reasoner", "no thread could be started", cause))
}

/// The pause before a further try: twice the last, and up to a half less, as the question's name has it, so that those
/// who were turned away together do not come back together.
fn backoff(first: Duration, attempt: usize, name: Name) -> Duration {
    let mut drawn = blake3::Hasher::new();
    drawn.update(name.as_bytes()).update(&(attempt as u64).to_le_bytes());
    let [a, b, ..] = *drawn.finalize().as_bytes();
    let jitter = f64::from(u16::from_le_bytes([a, b])) / 65536.0;
    let doubled = f64::powi(2.0, attempt.min(64) as i32 - 1).min(LONGEST_PAUSE);
    first.mul_f64(doubled * (1.0 - jitter / 2.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_differ_by_question() {
        let first = Duration::from_secs(1);
        let pauses = |name: &str| -> Vec<Duration> {
            (1..12).map(|attempt| backoff(first, attempt, blake3::hash(name.as_bytes()))).collect()
        };
        for (i, pause) in pauses("a").iter().enumerate() {
            let most = f64::powi(2.0, i as i32).min(LONGEST_PAUSE);
            assert!((most / 2.0..=most).contains(&pause.as_secs_f64()), "{i}: {pause:?}");
        }
        assert_eq!(pauses("a"), pauses("a"));
        assert!(pauses("a").iter().zip(pauses("b")).all(|(a, b)| *a != b));
        assert!(backoff(first, usize::MAX, blake3::hash(b"a")) <= Duration::from_secs(60));
    }
}
