//! From what became of captions to what is learned from them: pure, on a whole batch.

use super::config::Credit;
use super::episode;
use super::stage::{Group, Member, Spoken};
use crate::error::Result;
use crate::task::verify::Verdict;
use crate::train::Sample;
use crate::train::objective::{Kl, Normalizer, Outcome, advantages, by_outcome, shape_reward};

/// A batch that is graded.
#[derive(Debug, Clone, Default)]
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
    /// More numbers for the log.
    pub more: Vec<(&'static str, f64)>,
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

/// Takes the pull of the reference off the rewards and finds the advantages anew. `reference` are the log-probs of the
/// samples' tokens by the reference.
pub fn shape(
    graded: &mut Graded,
    reference: &[Vec<f32>],
    pull: (Kl, f64),
    normalizer: &Normalizer,
) -> Result<()> {
    let mut pairs = graded.samples.iter().zip(reference);
    for reward in graded.rewards.iter_mut().flatten() {
        if let Some((sample, reference)) = pairs.next() {
            *reward = shape_reward(*reward, &sample.old, reference, pull)?;
        }
    }
    let found = advantages(&graded.rewards, normalizer)?;
    for (sample, advantage) in graded.samples.iter_mut().zip(found.values.into_iter().flatten()) {
        sample.advantage = advantage;
    }
    Ok(())
}

/// What a reasoner learns from that is trained beside the captioner: all it said, by whether its answers were right, less
/// `kappa` for a request.
pub fn grade_reasoner(groups: &[Group], kappa: f64, credit: &Credit) -> Result<Vec<Sample>> {
    let trials = |group| -> Vec<(&episode::Outcome, &[Spoken])> {
        let Group { members, .. }: &Group = group;
        let told = members.iter().flat_map(|member| member.outcomes.iter().zip(&member.spoken));
        let known = told.filter_map(|(outcome, spoken)| Some((outcome.as_ref()?, spoken.as_slice())));
        known.filter(|(outcome, _)| outcome.grade.verdict != Verdict::InvalidGold).collect()
    };
    let all: Vec<_> = groups.iter().map(trials).filter(|trials| trials.len() > 1).collect();
    if all.is_empty() {
        return Ok(Vec::new());
    }
    let paid = |outcome: &episode::Outcome| {
        let asked = if outcome.exchanges.is_empty() { 0.0 } else { kappa };
        f64::from(u8::from(outcome.right())) - asked
    };
    let rewards: Vec<Vec<f64>> =
        all.iter().map(|trials| trials.iter().map(|(outcome, _)| paid(outcome)).collect()).collect();
    // Its rewards lie between -kappa and 1: a density over [0, 1] takes them shifted, and only differences matter.
    let shifted: Vec<Vec<f64>> = rewards
        .iter()
        .map(|group| group.iter().map(|reward| (reward + kappa) / (1.0 + kappa)).collect())
        .collect();
    let advantages = advantages(&shifted, &credit.normalizer)?.values;
    let mut samples = Vec::new();
    for (trials, advantages) in all.into_iter().zip(advantages) {
        for ((_, spoken), advantage) in trials.into_iter().zip(advantages) {
            samples.extend(spoken.iter().map(|Spoken { input, completion }| Sample {
                input: input.clone(),
                tokens: completion.tokens.clone(),
                old: completion.logprobs.clone(),
                advantage,
                part: 0,
            }));
        }
    }
    Ok(samples)
}

/// Rewards, advantages, samples. `payment` is what a right answer pays by the requests it took.
pub fn grade(groups: &[Group], payment: &[f64], credit: &Credit) -> Result<Graded> {
    let mut graded = Graded::default();
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
