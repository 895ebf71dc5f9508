//! From problems to an evaluation: each captioned once, answered from the caption alone and with a request allowed.

use super::cast::rules;
use super::config::Config;
use super::episode::{Failure, Outcome};
use super::evaluation::{
    Answer, Clarified, Conditions, Evaluation, Item, LeftOut, Mode, Subject, Turn, UNANSWERED,
};
use super::run::{REASONER, Run};
use super::stage::{Member, Played};
use crate::engine::{Finish, Sampling};
use crate::error::{Error, Result};
use crate::task::data::Problem;
use std::{collections::HashMap, path::Path, sync::Arc};

/// Problems whose captions are under way together.
const AT_ONCE: usize = 256;

/// Who plays in an evaluation: the policy as it is, or as it was before it learned anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roles {
    /// Captions are the learned policy's.
    pub observer: bool,
    /// So are answers, where the policy answers.
    pub solver: bool,
}

impl Run<'_> {
    /// Evaluates the captioner as it is now. Temperature 0 is greedy; `requests` is how often a reasoner may ask, 0 for a
    /// single pass alone.
    pub fn evaluate(
        &mut self,
        problems: &[Arc<Problem>],
        temperature: f32,
        requests: usize,
        progress: impl FnMut(usize),
    ) -> Result<Evaluation> {
        self.evaluate_roles(problems, temperature, requests, Roles { observer: true, solver: true }, progress)
    }

    /// Evaluates with some of the roles as they were.
    pub fn evaluate_roles(
        &mut self,
        problems: &[Arc<Problem>],
        temperature: f32,
        requests: usize,
        roles: Roles,
        mut progress: impl FnMut(usize),
    ) -> Result<Evaluation> {
        let config = self.config();
        let mut ways = vec![rules(config, 0)?];
        if requests > 0 {
            ways.push(rules(config, requests)?);
        }
        // The Solver is measured with what it sees in the end.
        let sees = config.episode.sees(u64::MAX, 0);
        ways.iter_mut().for_each(|way| way.sees = sees);
        let sampling =
            Sampling { max_tokens: config.captioner.max_tokens, temperature, ..Sampling::default() };
        let conditions = conditions(config, self.state().step, temperature);
        let mut items = Vec::with_capacity(problems.len());
        let (mut left_out, mut unshown) = (Vec::new(), 0);
        for (number, some) in problems.chunks(AT_ONCE).enumerate() {
            let Played { groups, refused, .. } =
                self.play(some, number * AT_ONCE, &ways, &sampling, roles)?;
            let refused: HashMap<usize, Error> = refused.into_iter().collect();
            for (at, (problem, group)) in some.iter().zip(&groups).enumerate() {
                let known = group.iter().flat_map(|group| &group.members);
                match known.filter_map(|member| item(problem, member)).next() {
                    Some(item) => items.push(item),
                    // A problem that could not be shown, a reasoner that gave no usable reply: there is nothing to grade.
                    None => {
                        unshown += u64::from(group.is_none());
                        let what = refused.get(&at).map_or_else(|| UNANSWERED.to_owned(), Error::to_string);
                        left_out.push(LeftOut { id: problem.id.clone(), what });
                    }
                }
            }
            progress(number * AT_ONCE + some.len());
        }
        let mode = if requests > 0 { Mode::Clarification } else { Mode::SinglePass };
        Ok(Evaluation { mode, ..Evaluation::of(conditions, items).leaving_out(left_out, unshown) })
    }
}

/// What an evaluation is of, after so many steps of a run, by the data that it is measured by.
pub fn conditions(config: &Config, step: u64, temperature: f32) -> Conditions {
    let Config { captioner, reasoner, data, run, .. } = config;
    let whole = |path: &Path| path.canonicalize().unwrap_or(path.to_owned());
    let out = whole(&run.out);
    // One name from wherever it is called; what lies in the run's folder moves with it, and what is nowhere is a name.
    let named = |path: &Path| {
        let path = whole(path);
        path.strip_prefix(&out).unwrap_or(&path).display().to_string()
    };
    let name = |name: &String| named(Path::new(name));
    let learned = (step > 0).then(|| format!("checkpoint-{step}"));
    let pupil = learned.as_ref().filter(|_| reasoner.learn.is_some());
    let pupil = pupil.map(|checkpoint| format!("{checkpoint}/{REASONER}"));
    let of = Subject {
        data: named(data.eval.as_ref().unwrap_or(&data.train)),
        limit: data.eval_limit,
        captioner: name(&captioner.model),
        adapter: learned.or_else(|| captioner.adapter.as_deref().map(named)),
        // A server's model is a name alone.
        reasoner: reasoner.local().map(|model| named(Path::new(model))).or_else(|| reasoner.model.clone()),
        url: reasoner.url.clone(),
        reasoner_adapter: pupil.or_else(|| reasoner.adapter.as_deref().map(named)),
        clarifier: name(&config.reference.clarifier),
    };
    Conditions { step, temperature, seed: config.seed, of: Some(of) }
}

fn item(problem: &Problem, member: &Member) -> Option<Item> {
    let mut outcomes = member.outcomes.iter();
    let single = outcomes.next()?.as_ref()?;
    let clarified = match outcomes.next() {
        Some(outcome) => Some(outcome.as_ref()?),
        None => None,
    };
    let turn = |exchange: &super::protocol::Exchange| Turn {
        request: exchange.request.clone(),
        reply: exchange.reply.clone(),
    };
    Some(Item {
        id: problem.id.clone(),
        subject: problem.subject.clone(),
        difficulty: problem.difficulty.clone(),
        question: problem.asked(),
        gold: problem.answer.clone(),
        caption: member.caption.text.clone(),
        caption_tokens: member.caption.tokens.len(),
        caption_truncated: member.caption.finish == Finish::Length,
        single: Some(answer(single)),
        clarified: clarified.map(|outcome| Clarified {
            turns: outcome.exchanges.iter().map(turn).collect(),
            answer: answer(outcome),
            fallbacks: outcome.fallbacks.iter().map(|fallback| fallback.name().to_owned()).collect(),
        }),
    })
}

fn answer(outcome: &Outcome) -> Answer {
    Answer {
        text: outcome.answer.clone(),
        truncated: outcome.failure == Some(Failure::ReasonerTruncated),
        grade: outcome.grade.clone(),
    }
}
