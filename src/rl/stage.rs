//! Captions and what becomes of them: every episode of a batch under way at once, whoever can speak speaks.
//!
//! The policy, the clarifier and a reasoner in this process each run on an engine; a remote reasoner answers when it
//! answers, and captions go on being sampled meanwhile. As a completion depends on its request alone, nothing of what
//! comes out depends on who was faster.

mod batch;

use super::actor::Actor;
use super::episode::{Episode, Failure, Next, Outcome, Rules};
use super::protocol::{Places, filled};
use super::remote::{Remote, RemoteCounters};
use super::reply::Said;
use crate::engine::{Completion, Finish, Input, Published, Sampling, Ticket};
use crate::error::{Error, Result};
use crate::model::Adapter;
use crate::prompt::message::{Content, Message};
use crate::task::data::Problem;
use batch::{Asked, Batch, Open, Purpose, Role, Running, Shown};
use std::{
    collections::HashMap,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

const OP: &str = "rollout";

/// Keeps the draws of trials and turns apart: 2^64 over the golden ratio, odd.
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// Who reasons.
#[derive(Debug)]
pub enum Reasoner<'m> {
    /// A model in this process, with an adapter if one is trained.
    Local(Box<Actor<'m>>, Option<Published>),
    /// A server.
    Remote(Box<Remote>),
}

/// How a reasoner spoke before.
#[derive(Debug)]
#[must_use = "the reasoner has to be given back"]
pub struct Lent(Option<(Option<Published>, f32)>);

/// Everybody who plays.
#[derive(Debug)]
pub struct Stage<'m> {
    /// Writes captions; replies, too, where nobody else does.
    pub policy: Actor<'m>,
    /// Replies to requests with these weights instead of the policy's own without its adapter.
    pub clarifier: Option<Actor<'m>>,
    /// The adapter clarifications are written with: a fixed one, never the policy's.
    pub clarifier_adapter: Option<Published>,
    /// How clarifications are drawn.
    pub clarifying: Sampling,
    /// Decides, asks and answers.
    pub reasoner: Reasoner<'m>,
    /// Captions that were cut off fail unread.
    pub fail_truncated: bool,
    /// Keep what the reasoner says: it learns from it.
    pub record: bool,
}

/// A question put to the reasoner about a caption, under rules.
#[derive(Debug, Clone, Copy)]
pub struct Trial<'a> {
    /// The rules.
    pub rules: &'a Rules,
    /// The question; most often the one the caption is for.
    pub problem: &'a Problem,
}

/// A problem whose captions are wanted.
#[derive(Debug, Clone)]
pub struct Scene<'a> {
    /// The problem.
    pub problem: &'a Problem,
    /// What becomes of each caption.
    pub trials: Vec<Trial<'a>>,
    /// A caption for each.
    pub seeds: Vec<u64>,
}

/// A caption and what became of it.
#[derive(Debug, Clone)]
pub struct Member {
    /// The caption.
    pub caption: Completion,
    /// How its trials ended; none where a remote reasoner gave no reply that could be used.
    pub outcomes: Vec<Option<Outcome>>,
    /// Whether it gives the answer away; none where nobody looked, or nobody could tell.
    pub leaks: Option<bool>,
    /// What a reasoner that learns said in each trial, turn by turn; empty where it does not learn.
    pub spoken: Vec<Vec<Spoken>>,
}

/// Words that may be learned from.
#[derive(Debug, Clone)]
pub struct Spoken {
    /// To what.
    pub input: Arc<Input>,
    /// The words.
    pub completion: Completion,
}

/// The captions of a problem.
#[derive(Debug, Clone)]
pub struct Group {
    /// The prompt they were written for.
    pub input: Arc<Input>,
    /// The captions, in the order of their seeds.
    pub members: Vec<Member>,
}

/// What became of scenes.
#[derive(Debug)]
pub struct Played {
    /// In the order of the scenes; none for one that could not be shown.
    pub groups: Vec<Option<Group>>,
    /// What could not be put to somebody, or was not answered, by the scenes' numbers: a picture that is damaged, words that
    /// do not fit into a context, a server's garbage. Captions that this befell have no outcome.
    pub refused: Vec<(usize, Error)>,
    /// Where time went.
    pub spent: Spent,
}

/// Where time went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// Passes of the policy, clarifications with it where they run on the same engine.
    pub captions: Duration,
    /// Passes of a clarifier with an engine of its own.
    pub clarifications: Duration,
    /// Passes of the reasoner, or waiting for it.
    pub reasoning: Duration,
    /// Everything.
    pub total: Duration,
}

impl<'m> Stage<'m> {
    /// Plays all scenes to their ends. Captions are drawn as `sampling` says and written with `adapter`.
    pub fn play(
        &mut self,
        scenes: &[Scene<'_>],
        sampling: &Sampling,
        adapter: Option<&Published>,
    ) -> Result<Played> {
        let start = Instant::now();
        let mut waited = Duration::ZERO;
        let mut batch = Batch {
            scenes,
            sampling,
            adapter,
            open: HashMap::new(),
            known: HashMap::new(),
            running: Vec::new(),
            groups: scenes.iter().map(|_| None).collect(),
            refused: Vec::new(),
            left: 0,
        };
        for number in 0..scenes.len() {
            self.begin(&mut batch, number).or_else(|error| batch.refuse(number, error))?;
        }
        while batch.left > 0 {
            if !self.policy.is_idle() {
                let finished = self.policy.speak()?;
                self.heard(&mut batch, Role::Policy, finished)?;
            } else if let Some(clarifier) = self.clarifier.as_mut().filter(|actor| !actor.is_idle()) {
                let finished = clarifier.speak()?;
                self.heard(&mut batch, Role::Clarifier, finished)?;
            } else if let Reasoner::Local(actor, _) = &mut self.reasoner {
                if actor.is_idle() {
                    return Err(Error::internal(OP, format!("{} episodes wait for nobody", batch.left)));
                }
                // The whole batch reasons together: its captions are all there.
                let finished = actor.speak()?;
                self.heard(&mut batch, Role::Reasoner, finished)?;
            }
            // Take what a server has sent; wait for it if nobody here has anything to say.
            while let Reasoner::Remote(remote) = &mut self.reasoner {
                let idle = self.policy.is_idle() && self.clarifier.as_ref().is_none_or(Actor::is_idle);
                let asked = Instant::now();
                let reply = remote.receive(idle && batch.left > 0)?;
                waited += asked.elapsed();
                match reply {
                    None if idle && batch.left > 0 => {
                        return Err(Error::internal(OP, format!("{} episodes wait for nobody", batch.left)));
                    }
                    None => break,
                    Some((episode, Ok(said))) => self.go_on(&mut batch, episode as usize, &said)?,
                    // The remote has counted it. There is nothing to grade.
                    Some((episode, Err(trouble))) => {
                        let what = format!("no answer to a caption: {trouble}");
                        batch.note(batch.running[episode as usize].scene, Error::machine("reasoner", what));
                        batch.end(episode as usize, None);
                    }
                }
            }
        }
        let reasoning = match &mut self.reasoner {
            Reasoner::Local(actor, _) => actor.take_spent(),
            Reasoner::Remote(_) => waited,
        };
        let spent = Spent {
            captions: self.policy.take_spent(),
            clarifications: self.clarifier.as_mut().map_or(Duration::ZERO, Actor::take_spent),
            reasoning,
            total: start.elapsed(),
        };
        batch.played(spent)
    }

    /// What has happened between us and a server.
    pub fn remote(&self) -> Option<RemoteCounters> {
        match &self.reasoner {
            Reasoner::Remote(remote) => Some(remote.counters()),
            Reasoner::Local(..) => None,
        }
    }

    /// Gives a reasoner in this process another adapter.
    pub fn publish_reasoner(&mut self, adapter: Arc<Adapter>) {
        if let Reasoner::Local(actor, published) = &mut self.reasoner {
            *published = Some(actor.engine().publish(adapter));
        }
    }

    /// Lets a reasoner in this process speak with or without its adapter, at a temperature. What is given out has to be
    /// given back.
    pub fn lend_reasoner(&mut self, learned: bool, temperature: f32) -> Lent {
        let Reasoner::Local(actor, published) = &mut self.reasoner else { return Lent(None) };
        let before = (published.clone(), actor.set_temperature(temperature));
        published.take_if(|_| !learned);
        Lent(Some(before))
    }

    /// As it was before.
    pub fn return_reasoner(&mut self, lent: Lent) {
        if let (Reasoner::Local(actor, published), Some((adapter, temperature))) =
            (&mut self.reasoner, lent.0)
        {
            actor.set_temperature(temperature);
            *published = adapter;
        }
    }

    /// What the policy says to some texts without its adapter, in its likeliest words: as many of them as there are tokens
    /// left in its context, and at most `most`; nothing to a text that leaves no room.
    pub fn consult(&mut self, texts: &[String], most: usize) -> Result<Vec<Option<Said>>> {
        let mut replies = vec![None; texts.len()];
        let (mut asked, mut requests) = (Vec::new(), Vec::new());
        for (number, text) in texts.iter().enumerate() {
            let input = match self.policy.input(&[Message::text("user", text)], "") {
                Ok(input) => input,
                Err(error) if error.is_of_input() => continue,
                Err(error) => return Err(error),
            };
            let max_tokens = most.min(self.policy.room(&input));
            if max_tokens > 0 {
                let sampling = Sampling { temperature: 0.0, max_tokens, ..Sampling::default() };
                requests.push((Arc::new(input), sampling, vec![0]));
                asked.push(number);
            }
        }
        let completions = self.policy.complete(requests, None)?;
        for (number, completion) in asked.into_iter().zip(completions.iter().flatten()) {
            replies[number] = Some(said(completion));
        }
        Ok(replies)
    }

    /// Asks for the captions of a scene.
    fn begin(&mut self, batch: &mut Batch<'_, '_>, number: usize) -> Result<()> {
        let scene = &batch.scenes[number];
        let Some(trial) = scene.trials.first() else {
            return Err(Error::caller(OP, "a problem without anything to be done with its captions"));
        };
        let question = scene.problem.asked();
        let text =
            filled(&trial.rules.protocol.caption, &Places { question: &question, ..Places::default() });
        let messages = [Message::user(scene.problem.images.iter().cloned(), text)];
        let input = Arc::new(self.policy.input(&messages, "")?);
        let sampling = batch.sampling.clone();
        self.policy.fits("captioner", &sampling, &input)?;
        let ticket = self.policy.ask(input.clone(), sampling, scene.seeds.clone(), batch.adapter)?;
        let members = scene.seeds.iter().map(|_| None).collect();
        batch.groups[number] = Some(Shown { input: input.clone(), members });
        batch.left += scene.seeds.len();
        let open = Open { purpose: Purpose::Captions(number), input, key: None };
        batch.open.insert((Role::Policy, ticket), open);
        Ok(())
    }

    fn heard(
        &mut self,
        batch: &mut Batch<'_, '_>,
        role: Role,
        finished: Vec<(Ticket, usize, Completion)>,
    ) -> Result<()> {
        for (ticket, lane, completion) in finished {
            let Some(Open { purpose, input, key }) = batch.open.get_mut(&(role, ticket)) else {
                return Err(Error::internal(OP, "an engine finished what nobody asked for"));
            };
            let episodes = match purpose {
                Purpose::Captions(scene) => {
                    let scene = *scene;
                    self.captioned(batch, scene, lane, completion)?;
                    continue;
                }
                Purpose::Draws(episodes) => vec![episodes[lane]],
                Purpose::Words(episodes) => std::mem::take(episodes),
            };
            let spoken = Spoken { input: input.clone(), completion };
            let said = said(&spoken.completion);
            if let Some(key) = key.take() {
                batch.known.insert(key, Asked::Said(said.clone()));
            }
            for at in episodes {
                if self.record && role == Role::Reasoner {
                    batch.running[at].spoken.push(spoken.clone());
                }
                self.go_on(batch, at, &said)?;
            }
        }
        Ok(())
    }

    /// A caption has been written: its episodes begin.
    fn captioned(
        &mut self,
        batch: &mut Batch<'_, '_>,
        number: usize,
        member: usize,
        caption: Completion,
    ) -> Result<()> {
        let scene = &batch.scenes[number];
        let cut = caption.finish == Finish::Length;
        let text = caption.text.clone();
        let (trials, caption_cut) = (&scene.trials, cut && self.fail_truncated);
        let outcomes = trials.iter().map(|_| None).collect();
        let spoken = trials.iter().map(|_| Vec::new()).collect();
        if let Some(shown) = &mut batch.groups[number] {
            shown.members[member] = Some(Member { caption, outcomes, leaks: None, spoken });
        }
        batch.left += trials.len();
        batch.left -= 1;
        let mut first: Option<(usize, Next)> = None;
        for (trial, &Trial { rules, problem }) in trials.iter().enumerate() {
            let (episode, next) = Episode::begin(rules, problem, &text);
            let spoken = Vec::new();
            batch.running.push(Running { scene: number, member, trial, rules, problem, episode, spoken });
            let at = batch.running.len() - 1;
            if caption_cut {
                batch.end(at, Some(Outcome::failed(Failure::CaptionTruncated)));
                continue;
            }
            // Trials that begin alike, one beside the other, are drawn from one reading of their prompt.
            match &first {
                Some((_, same)) if *same == next => {}
                _ => {
                    if let Some((from, next)) = first.replace((at, next)) {
                        self.draw(batch, from..at, next)?;
                    }
                }
            }
        }
        let end = batch.running.len();
        first.map_or(Ok(()), |(from, next)| self.draw(batch, from..end, next))
    }

    /// Asks for the first words of neighbouring episodes.
    fn draw(&mut self, batch: &mut Batch<'_, '_>, episodes: Range<usize>, next: Next) -> Result<()> {
        if let Next::Reason { messages, prefix } = &next
            && let Reasoner::Local(actor, adapter) = &mut self.reasoner
            && actor.sampling().temperature > 0.0
            && episodes.len() > 1
        {
            let messages = seen(&batch.running[episodes.start], messages);
            let asked = actor.input(&messages, prefix).and_then(|input| {
                actor.fits("reasoner", actor.sampling(), &input)?;
                let input = Arc::new(input);
                let seeds = episodes.clone().map(|at| batch.seed(at, &input)).collect();
                let ticket = actor.ask(input.clone(), actor.sampling().clone(), seeds, adapter.as_ref())?;
                Ok((ticket, input))
            });
            match asked {
                Ok((ticket, input)) => {
                    let open = Open { purpose: Purpose::Draws(episodes.collect()), input, key: None };
                    batch.open.insert((Role::Reasoner, ticket), open);
                }
                Err(error) => {
                    batch.refuse(batch.running[episodes.start].scene, error)?;
                    episodes.for_each(|at| batch.end(at, None));
                }
            }
            return Ok(());
        }
        for at in episodes {
            self.next(batch, at, next.clone())?;
        }
        Ok(())
    }

    fn go_on(&mut self, batch: &mut Batch<'_, '_>, at: usize, said: &Said) -> Result<()> {
        let Running { rules, problem, episode, .. } = &mut batch.running[at];
        let next = episode.hear(rules, problem, said);
        self.next(batch, at, next)
    }

    /// Asks whoever speaks next. Who cannot be asked says nothing, and the episode has no outcome.
    fn next(&mut self, batch: &mut Batch<'_, '_>, at: usize, next: Next) -> Result<()> {
        self.put(batch, at, next).or_else(|error| {
            batch.refuse(batch.running[at].scene, error)?;
            batch.end(at, None);
            Ok(())
        })
    }

    fn put(&mut self, batch: &mut Batch<'_, '_>, at: usize, next: Next) -> Result<()> {
        match next {
            Next::Done(outcome) => {
                batch.end(at, Some(outcome));
                Ok(())
            }
            Next::Clarify { text } => {
                let Running { scene, problem, .. } = batch.running[at];
                let messages = [Message::user(problem.images.iter().cloned(), text)];
                let (role, actor) = match &mut self.clarifier {
                    Some(actor) => (Role::Clarifier, actor),
                    None => (Role::Policy, &mut self.policy),
                };
                let input = actor.input(&messages, "")?;
                let key = (role, scene, input.tokens().to_vec());
                let adapter = self.clarifier_adapter.as_ref();
                let said = batch.ask(actor, key, input, &self.clarifying, adapter, at)?;
                said.map_or(Ok(()), |said| self.go_on(batch, at, &said))
            }
            Next::Reason { mut messages, prefix } => match &mut self.reasoner {
                Reasoner::Remote(remote) => {
                    if !prefix.is_empty() {
                        messages.push(Message::text("assistant", prefix));
                    }
                    let Running { scene, member, trial, .. } = batch.running[at];
                    // Servers take seeds of 63 bits. Where nothing is drawn all may share a reply.
                    let drawn = batch.scenes[scene].seeds[member] ^ (trial as u64).wrapping_mul(MIX);
                    let seed = if remote.draws() { drawn >> 1 } else { 0 };
                    remote.ask(at as u64, &messages, seed)
                }
                Reasoner::Local(actor, adapter) => {
                    let input = actor.input(&seen(&batch.running[at], &messages), &prefix)?;
                    // Words alone say who is asked what, unless there are pictures beside them.
                    let scene = if batch.running[at].rules.sees { batch.running[at].scene } else { 0 };
                    let key = (Role::Reasoner, scene, input.tokens().to_vec());
                    let sampling = actor.sampling().clone();
                    let said = batch.ask(actor, key, input, &sampling, adapter.as_ref(), at)?;
                    said.map_or(Ok(()), |said| self.go_on(batch, at, &said))
                }
            },
        }
    }
}

fn said(completion: &Completion) -> Said {
    let truncated = completion.finish == Finish::Length;
    Said { text: completion.text.clone(), tokens: completion.tokens.len(), truncated }
}

/// A conversation with the pictures before its first words, where the rules say that a reasoner sees them.
fn seen(running: &Running<'_>, messages: &[Message]) -> Vec<Message> {
    let mut messages = messages.to_vec();
    if running.rules.sees
        && let Some(first) = messages.first_mut()
        && let Content::Text(text) = &first.content
    {
        *first = Message::user(running.problem.images.iter().cloned(), text.clone());
    }
    messages
}
