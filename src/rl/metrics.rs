//! A step in numbers: under TRL's names where it has one, and what matters to captions beside them.

use super::run::Step;
use crate::engine::Finish;
use crate::task::verify::Verdict;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashSet};

/// A line of `metrics.jsonl`.
pub fn metrics(step: &Step) -> Map<String, Value> {
    let mut line = Map::new();
    let mut put = |name: &str, value: Value| drop(line.insert(name.to_owned(), value));
    put("step", json!(step.step));
    rewards(step, &mut put);
    episodes(step, &mut put);
    subjects(step, &mut put);
    captions(step, &mut put);
    updates(step, &mut put);
    pupil(step, &mut put);
    if let Some(Value::Object(counters)) =
        step.remote.as_ref().and_then(|remote| serde_json::to_value(remote).ok())
    {
        counters.into_iter().for_each(|(name, count)| put(&format!("server/{name}"), count));
    }
    let seconds = |time: std::time::Duration| json!(time.as_secs_f64());
    put("time/rollout", seconds(step.spent.total));
    put("time/captions", seconds(step.spent.captions));
    put("time/clarifications", seconds(step.spent.clarifications));
    put("time/reasoning", seconds(step.spent.reasoning));
    put("time/update", seconds(step.update));
    line
}

fn rewards(step: &Step, put: &mut dyn FnMut(&str, Value)) {
    let rewards = &step.graded.rewards;
    let all: Vec<f64> = rewards.iter().flatten().copied().collect();
    put("reward", json!(mean(&all)));
    let spreads: Vec<f64> = rewards.iter().map(|group| deviation(group)).collect();
    put("reward_std", json!(mean(&spreads)));
    let uniform = |group: &&Vec<f64>| spread(group) <= 1e-9;
    let count = rewards.len() as f64;
    put("frac_reward_zero_std", json!(rewards.iter().filter(uniform).count() as f64 / count));
    // Which tier the groups without a difference are stuck in, the best first.
    for (requests, pay) in step.payment.iter().enumerate() {
        let stuck =
            rewards.iter().filter(uniform).filter(|group| (group[0] - pay).abs() <= 1e-9 && *pay > 0.0);
        put(&format!("uniform/after_{requests}"), json!(stuck.count() as f64 / count));
    }
    put(
        "uniform/nothing",
        json!(rewards.iter().filter(uniform).filter(|group| group[0] <= 1e-9).count() as f64 / count),
    );
    step.graded.more.iter().for_each(|(name, value)| put(name, json!(value)));
    put("groups/masked", json!(step.graded.masked));
    put("groups/dropped_members", json!(step.graded.dropped));
    put("problems/left_out", json!(step.left_out.len()));
}

fn episodes(step: &Step, put: &mut dyn FnMut(&str, Value)) {
    let members = || step.groups.iter().flat_map(|group| &group.members);
    let outcomes: Vec<_> = members().flat_map(|member| member.outcomes.iter().flatten()).collect();
    // Of nothing there is no share.
    let share = |count: usize| match outcomes.len() {
        0 => Value::Null,
        all => json!(count as f64 / all as f64),
    };
    let asked = |n: usize| move |o: &&&super::episode::Outcome| o.exchanges.len() == n;
    put("episodes", json!(outcomes.len()));
    put("single_pass", share(outcomes.iter().filter(asked(0)).filter(|o| o.right()).count()));
    put("accuracy", share(outcomes.iter().filter(|o| o.right()).count()));
    put("clarification_rate", share(outcomes.iter().filter(|o| !o.exchanges.is_empty()).count()));
    for requests in 0..step.payment.len() {
        let earned = outcomes.iter().filter(asked(requests)).filter(|o| o.right()).count();
        put(&format!("tier/after_{requests}"), share(earned));
    }
    let calls: usize = outcomes.iter().map(|o| o.calls).sum();
    let tokens: usize = outcomes.iter().map(|o| o.tokens).sum();
    put("reasoner/calls", json!(calls));
    put("reasoner/mean_tokens", json!(tokens as f64 / calls as f64));
    let mut counted: BTreeMap<&str, usize> = BTreeMap::new();
    for outcome in &outcomes {
        outcome.fallbacks.iter().for_each(|fallback| *counted.entry(fallback.name()).or_default() += 1);
        outcome.failure.iter().for_each(|failure| *counted.entry(failure.name()).or_default() += 1);
        if outcome.grade.verdict == Verdict::InvalidGold {
            *counted.entry("invalid_gold").or_default() += 1;
        }
    }
    for (name, count) in counted {
        put(&format!("count/{name}"), json!(count));
    }
}

/// Subjects that get numbers of their own.
const MOST_SUBJECTS: usize = 32;

/// By what problems are about: a type of question may go its own way.
fn subjects(step: &Step, put: &mut dyn FnMut(&str, Value)) {
    let mut subjects: BTreeMap<&str, (usize, usize, usize)> = BTreeMap::new();
    for (problem, group) in step.problems.iter().zip(&step.groups) {
        let Some(subject) = &problem.subject else { continue };
        let (all, asked, right) = subjects.entry(subject).or_default();
        for outcome in group.members.iter().flat_map(|member| member.outcomes.iter().flatten()) {
            *all += 1;
            *asked += usize::from(!outcome.exchanges.is_empty());
            *right += usize::from(outcome.right());
        }
    }
    // A run over very many subjects would say more about them than about itself.
    let known = subjects.into_iter().filter(|(_, counts)| counts.0 > 0).take(MOST_SUBJECTS);
    for (subject, (all, asked, right)) in known {
        put(&format!("clarification_rate/{subject}"), json!(asked as f64 / all as f64));
        put(&format!("accuracy/{subject}"), json!(right as f64 / all as f64));
    }
}

fn captions(step: &Step, put: &mut dyn FnMut(&str, Value)) {
    let all = || step.groups.iter().flat_map(|group| &group.members).map(|member| &member.caption);
    let mut lengths: Vec<usize> = all().map(|caption| caption.tokens.len()).collect();
    lengths.sort_unstable();
    let count = lengths.len().max(1);
    put("completions/mean_length", json!(lengths.iter().sum::<usize>() as f64 / count as f64));
    put("completions/min_length", json!(lengths.first()));
    put("completions/max_length", json!(lengths.last()));
    put("completions/p95_length", json!(lengths.get((count * 95).div_ceil(100) - 1)));
    let cut = all().filter(|caption| caption.finish == Finish::Length).count();
    put("completions/clipped_ratio", json!(cut as f64 / count as f64));
    let distinct: usize = step
        .groups
        .iter()
        .map(|group| group.members.iter().map(|member| &member.caption.tokens).collect::<HashSet<_>>().len())
        .sum();
    put("completions/distinct", json!(distinct as f64 / count as f64));
    put("completions/tokens", json!(lengths.iter().sum::<usize>()));
    put("num_tokens", json!(step.tokens));
}

fn updates(step: &Step, put: &mut dyn FnMut(&str, Value)) {
    // The first update's, whose ratio is 1; norms and rates are the last's.
    let (Some(first), Some(last)) = (step.stats.first(), step.stats.last()) else { return };
    put("loss", json!(last.loss));
    put("kl", json!(first.kl));
    put("entropy", json!(first.entropy));
    put("clip_ratio/region_mean", json!(last.clip_fraction));
    put("grad_norm", json!(last.grad_norm));
    put("learning_rate", json!(last.learning_rate));
    // Captions of an older adapter differ by what was learned since; that is no fault.
    let name = if step.stale {
        "sampling/staleness_difference/max"
    } else {
        "sampling/sampling_logp_difference/max"
    };
    put(name, json!(first.sampling_difference));
    put("computed_tokens", json!(first.computed));
    put("microbatches", json!(first.microbatches));
    put("skipped", json!(step.stats.iter().find_map(|stats| stats.bad.clone())));
}

/// Of a reasoner that learns, too.
fn pupil(step: &Step, put: &mut dyn FnMut(&str, Value)) {
    let (Some(first), Some(last)) = (step.reasoner.first(), step.reasoner.last()) else { return };
    put("reasoner/loss", json!(last.loss));
    put("reasoner/kl", json!(first.kl));
    put("reasoner/entropy", json!(first.entropy));
    put("reasoner/grad_norm", json!(last.grad_norm));
    put("reasoner/learning_rate", json!(last.learning_rate));
    put("reasoner/sampling_logp_difference/max", json!(first.sampling_difference));
    put("reasoner/skipped", json!(step.reasoner.iter().find_map(|stats| stats.bad.clone())));
}

/// Lines of `samples.jsonl`: every caption and what became of it, every problem that was left out and why.
pub fn samples(step: &Step) -> Vec<Value> {
    let left_out = step.left_out.iter().map(|(problem, error)| {
        json!({"step": step.step, "id": problem.id, "question": problem.question, "left_out": error.to_string()})
    });
    let mut lines: Vec<Value> = left_out.collect();
    let captions = step.graded.samples.iter().filter(|sample| sample.part == 0);
    let mut advantages = captions.map(|sample| sample.advantage);
    for (number, (problem, group)) in step.problems.iter().zip(&step.groups).enumerate() {
        let takes_part = step.graded.groups.contains(&number);
        for (at, member) in group.members.iter().enumerate() {
            let reward = super::credit::reward(member, &step.payment);
            let advantage = if takes_part && reward.is_some() { advantages.next() } else { None };
            let trial = |outcome: &Option<super::episode::Outcome>| match outcome {
                None => Value::Null,
                Some(outcome) => json!({
                    "exchanges": outcome.exchanges,
                    "answer": outcome.answer,
                    "extracted": outcome.grade.extracted,
                    "rule": outcome.grade.rule,
                    "verdict": outcome.grade.verdict,
                    "failure": outcome.failure,
                    "fallbacks": outcome.fallbacks,
                }),
            };
            lines.push(json!({
                "step": step.step,
                "id": problem.id,
                "member": at,
                "question": problem.question,
                "gold": problem.answer,
                "subject": problem.subject,
                "caption": member.caption.text,
                "tokens": member.caption.tokens.len(),
                "finish_reason": member.caption.finish.name(),
                "trials": member.outcomes.iter().map(trial).collect::<Vec<_>>(),
                "reward": reward,
                "advantage": advantage,
            }));
        }
    }
    lines
}

/// Of nothing it is not a number, which JSON writes as null.
fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// As TRL reports it: unbiased.
fn deviation(values: &[f64]) -> f64 {
    let mean = mean(values);
    let sum: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (sum / values.len().saturating_sub(1).max(1) as f64).sqrt()
}

fn spread(values: &[f64]) -> f64 {
    let (low, high) =
        values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), &v| (l.min(v), h.max(v)));
    high - low
}
