//! From what became of captions to what is learned from them: pure, on a whole batch.

use super::config::Credit;
use super::episode;
use super::stage::{Group, Member};
use crate::error::Result;
use crate::task::verify::Verdict;
use crate::train::Sample;
use crate::train::objective::{Outcome, by_outcome};

/// A batch that is graded.
#[derive(Debug, Clone)]
pub struct Graded {
    /// What is learned from; completions of a prompt stand side by side.
    pub samples: Vec<Sample>,
    /// Rewards of the groups that take part.
    pub rewards: Vec<Vec<f64>>,
    /// Groups that take part, by their numbers.
    pub groups: Vec<usize>,
    /// Members left out because a reasoner could not be reached or understood.
    pub dropped: usize,
    /// Groups left out: fewer than two members were left, or nobody can tell what is right.
    pub masked: usize,
    /// What whoever reads the log should know.
    pub warning: Option<&'static str>,
}

/// What a caption earns by its trials; none where it cannot be told.
pub fn reward(member: &Member, payment: &[f64]) -> Option<f64> {
    let mut sum = 0.0;
    for outcome in &member.outcomes {
        let outcome = outcome.as_ref()?;
        sum += if outcome.right() { payment[asked(outcome, payment)] } else { 0.0 };
    }
    Some(sum / member.outcomes.len().max(1) as f64)
}

/// Requests an outcome took. More than there are payments were not offered; they would earn the least.
fn asked(outcome: &episode::Outcome, payment: &[f64]) -> usize {
    outcome.exchanges.len().min(payment.len().saturating_sub(1))
}

/// Rewards, advantages, samples. `payment` is what a right answer pays by the requests it took.
pub fn grade(groups: &[Group], payment: &[f64], credit: &Credit) -> Result<Graded> {
    let mut graded = Graded {
        samples: Vec::new(),
        rewards: Vec::new(),
        groups: Vec::new(),
        dropped: 0,
        masked: 0,
        warning: None,
    };
    let mut kept: Vec<(&Group, Vec<&Member>)> = Vec::new();
    for (number, group) in groups.iter().enumerate() {
        let rewarded: Vec<(&Member, f64)> =
            group.members.iter().filter_map(|member| Some((member, reward(member, payment)?))).collect();
        graded.dropped += group.members.len() - rewarded.len();
        let unknown = |member: &Member| {
            member.outcomes.iter().flatten().any(|outcome| outcome.grade.verdict == Verdict::InvalidGold)
        };
        // A group of one by design has no baseline and takes part; one that was left over does not.
        let alone = rewarded.len() < group.members.len().min(2);
        if alone || rewarded.iter().any(|(member, _)| unknown(member)) {
            graded.masked += 1;
            continue;
        }
        graded.rewards.push(rewarded.iter().map(|(_, reward)| *reward).collect());
        graded.groups.push(number);
        kept.push((group, rewarded.into_iter().map(|(member, _)| member).collect()));
    }
    if kept.is_empty() {
        return Ok(graded);
    }
    let tried = |member: &&Member| {
        let tried = member.outcomes.iter().flatten();
        tried.map(|one| Outcome { correct: one.right(), asked: asked(one, payment) }).collect()
    };
    let outcomes: Vec<Vec<Vec<Outcome>>> =
        kept.iter().map(|(_, members)| members.iter().map(tried).collect()).collect();
    let found = by_outcome(&outcomes, payment, credit.tiers, &credit.normalizer)?;
    graded.warning = found.warning;
    for ((group, members), advantages) in kept.into_iter().zip(&found.values) {
        graded.samples.extend(members.into_iter().zip(advantages).map(|(member, &advantage)| Sample {
            input: group.input.clone(),
            tokens: member.caption.tokens.clone(),
            old: member.caption.logprobs.clone(),
            advantage,
            part: 0,
        }));
    }
    Ok(graded)
}
