//! A reasoner behind an OpenAI-compatible server: vLLM, SGLang, llama.cpp's, a hosted one.
//!
//! Questions are asked without waiting, and replies come back under the caller's keys in any order, while captions go on
//! being sampled. What can go wrong is of two kinds. *Trouble* is one question's: the server refused it, never finished
//! it, or answered with something that is no reply. It is handed over and counted, and there is no text in it that could
//! be graded. An *error* is the run's: nobody answers for longer than anybody would wait, nothing gets a reply any more,
//! or the budget is spent. The run stops there, and when it is taken up again, the cache has all that was answered.

mod body;
mod cache;
mod pause;
mod reply;
mod server;
pub mod settings;
mod worker;

use crate::error::{Error, Result};
use crate::prompt::message::Message;
use crate::rl::reply::Said;
use body::{Name, Question};
use cache::Cache;
use reply::Reply;
use serde::Serialize;
use settings::RemoteSettings;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use worker::{End, Shared};

const OP: &str = "reasoner";

/// Why a question has no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// The server would not have it.
    #[error("refused with status {status}: {what}")]
    Refused {
        /// Of HTTP.
        status: u16,
        /// The server's words.
        what: String,
    },
    /// It was not finished in time.
    #[error("not finished in time")]
    Stalled,
    /// What came is no reply.
    #[error("garbage: {0}")]
    Garbage(String),
}

/// What has happened so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RemoteCounters {
    /// Questions that were sent, each once.
    pub questions: u64,
    /// Requests that were made for them.
    pub requests: u64,
    /// Of these, ones made again because something went wrong.
    pub retries: u64,
    /// Ones made again because the server was down or too busy.
    pub waits: u64,
    /// Questions answered from the cache.
    pub cache_hits: u64,
    /// Questions that were under way already, for somebody else.
    pub joined: u64,
    /// Lines of the cache that are no entries.
    pub cache_torn: u64,
    /// Replies from the server.
    pub replies: u64,
    /// Of these, ones that ran out of tokens.
    pub truncated: u64,
    /// Ones whose tokens the server did not count.
    pub unmetered: u64,
    /// Tokens the server read.
    pub tokens_in: u64,
    /// Tokens it wrote.
    pub tokens_out: u64,
    /// Questions it would not have.
    pub refused: u64,
    /// Questions it never finished.
    pub stalled: u64,
    /// Questions it answered with something that is no reply.
    pub garbage: u64,
}

/// Who hears what a person who waits should know.
pub type Notice = fn(&str);

/// What became of a question.
pub type Answered = (u64, Result<Said, Trouble>);

/// A reasoner somewhere else.
#[derive(Debug)]
pub struct Remote {
    shared: Arc<Shared>,
    model: String,
    replies: Receiver<(Name, End<Reply>)>,
    /// Who waits for each question that is out.
    under_way: HashMap<Name, Vec<u64>>,
    /// What can be handed over.
    ready: VecDeque<Answered>,
    cache: Option<Cache>,
    /// Questions in a row that came to nothing.
    in_a_row: usize,
}

impl Remote {
    /// Gets ready to ask. Only a server whose model is not said is asked something already.
    pub fn new(settings: RemoteSettings, notice: Notice) -> Result<Self> {
        let cache = settings.cache.as_deref().map(Cache::open).transpose()?;
        let (concurrency, said) = (settings.concurrency.max(1), settings.model.clone());
        let shared = Arc::new(Shared::new(settings, notice)?);
        let torn = cache.as_ref().map_or(0, |cache| cache.torn as u64);
        shared.count(|counters| counters.cache_torn = torn);
        let model = match said {
            Some(model) => model,
            None => match shared.persist(blake3::hash(b"models"), |server| server.model()) {
                Some(End::Replied(model)) => model,
                Some(End::Trouble(trouble)) => return Err(down(&shared, &trouble.to_string())),
                Some(End::Down(what)) => return Err(down(&shared, &what)),
                None => return Err(Error::internal(OP, "it ended before it began")),
            },
        };
        let (sender, replies) = channel();
        for _ in 0..concurrency {
            worker::start(&shared, sender.clone())?;
        }
        let (under_way, ready) = (HashMap::new(), VecDeque::new());
        Ok(Remote { shared, model, replies, under_way, ready, cache, in_a_row: 0 })
    }

    /// Which model answers.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Whether chance plays a part in its replies: where it does not, the seed says nothing.
    pub fn draws(&self) -> bool {
        self.shared.settings.temperature > 0.0
    }

    /// Asks without waiting; `key` comes back with what becomes of it. A last message of the assistant's is gone on with.
    pub fn ask(&mut self, key: u64, messages: &[Message], seed: u64) -> Result<()> {
        let question = Question::new(&self.shared.settings, &self.model, messages, seed)?;
        if let Some(keys) = self.under_way.get_mut(&question.name) {
            keys.push(key);
            self.shared.count(|counters| counters.joined += 1);
            return Ok(());
        }
        if let Some(said) = self.cache.as_mut().map_or(Ok(None), |cache| cache.find(question.name))? {
            self.ready.push_back((key, Ok(said)));
            self.shared.count(|counters| counters.cache_hits += 1);
            return Ok(());
        }
        within_budget(&self.shared.settings, &self.shared.counters())?;
        self.shared.count(|counters| counters.questions += 1);
        self.under_way.insert(question.name, vec![key]);
        self.shared.push(question);
        Ok(())
    }

    /// What becomes of the next question. None if nothing is under way or, without `wait`, if nothing has come.
    pub fn receive(&mut self, wait: bool) -> Result<Option<Answered>> {
        while self.ready.is_empty() && !self.under_way.is_empty() {
            let came = match wait {
                true => self.replies.recv().map_err(|_| TryRecvError::Disconnected),
                false => self.replies.try_recv(),
            };
            match came {
                Ok((name, end)) => self.take(name, end)?,
                Err(TryRecvError::Empty) => return Ok(None),
                Err(TryRecvError::Disconnected) => return Err(Error::internal(OP, "its threads are gone")),
            }
        }
        Ok(self.ready.pop_front())
    }

    /// Questions that have not been handed over yet.
    pub fn waiting(&self) -> usize {
        self.under_way.values().map(Vec::len).sum::<usize>() + self.ready.len()
    }

    /// What has happened so far.
    pub fn counters(&self) -> RemoteCounters {
        self.shared.counters()
    }

    fn take(&mut self, name: Name, end: End<Reply>) -> Result<()> {
        let keys = self.under_way.remove(&name).unwrap_or_default();
        let outcome = match end {
            End::Replied(reply) => {
                self.in_a_row = 0;
                self.shared.count(|counters| counters.reply(&reply));
                if let Some(cache) = &mut self.cache {
                    cache.keep(name, &reply.said)?;
                }
                Ok(reply.said)
            }
            End::Trouble(trouble) => {
                self.in_a_row += 1;
                self.shared.count(|counters| counters.trouble(&trouble));
                if self.in_a_row >= self.shared.settings.max_troubles {
                    let what =
                        format!("{} questions in a row had no reply, the last: {trouble}", self.in_a_row);
                    return Err(down(&self.shared, &what));
                }
                Err(trouble)
            }
            End::Down(what) => return Err(down(&self.shared, &what)),
        };
        self.ready.extend(keys.into_iter().map(|key| (key, outcome.clone())));
        Ok(())
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.shared.end();
    }
}

impl RemoteCounters {
    fn reply(&mut self, reply: &Reply) {
        self.replies += 1;
        self.truncated += u64::from(reply.said.truncated);
        match reply.usage {
            Some((read, written)) => {
                (self.tokens_in, self.tokens_out) = (self.tokens_in + read, self.tokens_out + written)
            }
            None => self.unmetered += 1,
        }
    }

    fn trouble(&mut self, trouble: &Trouble) {
        *match trouble {
            Trouble::Refused { .. } => &mut self.refused,
            Trouble::Stalled => &mut self.stalled,
            Trouble::Garbage(_) => &mut self.garbage,
        } += 1;
    }
}

/// Whether one more question may be sent.
fn within_budget(settings: &RemoteSettings, counters: &RemoteCounters) -> Result<()> {
    let refuse = |what: String| Err(Error::caller(OP, what));
    if let Some(most) = settings.max_requests.filter(|most| counters.questions >= *most) {
        return refuse(format!(
            "the {most} questions of reasoner.server.max_requests are asked; raise it to go on"
        ));
    }
    let Some(most) = settings.max_total_tokens else { return Ok(()) };
    if counters.unmetered > 0 {
        let what = "the server counts no tokens, so reasoner.server.max_total_tokens cannot be kept; use reasoner.server.max_requests";
        return refuse(what.to_owned());
    }
    match counters.tokens_in + counters.tokens_out {
        spent if spent < most => Ok(()),
        spent => refuse(format!(
            "{spent} tokens of the {most} of reasoner.server.max_total_tokens are spent; raise it to go on"
        )),
    }
}

fn down(shared: &Shared, what: &str) -> Error {
    let RemoteSettings { patience, .. } = shared.settings;
    let what = format!(
        "the server at {} gives no replies: {what} (reasoner.server.patience is {} s); see that it runs, and take the run up \
         again",
        shared.server.base,
        patience.as_secs_f64()
    );
    Error::machine(OP, what)
}
