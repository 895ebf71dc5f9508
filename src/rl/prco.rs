//! PRCO's credit: one policy in two roles, each with a reward of its own (arXiv 2603.28618).
//!
//! The Observer writes captions; the Solver answers from each of them several times. A caption earns the share of right
//! answers it led to, unless it gives the answer away; an answer earns mostly by being right and a little by its form.
//! Both are centred within their groups and not scaled. Of a problem's captions the answers to one are learned from: one
//! whose answers differ, if there is any.

use super::config::Credit;
use super::credit::Graded;
use super::episode::Outcome;
use super::leak::LeakCheck;
use super::stage::{Group, Member, Spoken};
use crate::error::Result;
use crate::task::verify::Verdict;
use crate::train::Sample;
use crate::train::objective::advantages;

/// The part of the loss that captions are.
pub const OBSERVER: u32 = 0;
/// The part that answers are.
pub const SOLVER: u32 = 1;

/// A caption, and the answers it led to.
#[derive(Debug, Clone, PartialEq)]
pub struct Branch {
    /// Whether it gives the answer away.
    pub leaks: bool,
    /// For each answer: whether it is right, and the score of its form, from 0 to 1.
    pub answers: Vec<(bool, f64)>,
}

/// What a caption earns.
pub fn observer_reward(branch: &Branch) -> f64 {
    if branch.leaks || branch.answers.is_empty() {
        return 0.0;
    }
    branch.answers.iter().filter(|(right, _)| *right).count() as f64 / branch.answers.len() as f64
}

/// What each answer earns, `lambda` of it by being right.
pub fn solver_rewards(branch: &Branch, lambda: f64) -> Vec<f64> {
    branch
        .answers
        .iter()
        .map(|&(right, form)| lambda * f64::from(u8::from(right)) + (1.0 - lambda) * form)
        .collect()
}

/// The caption whose answers are learned from: among those whose answers earn differently, or among all where none does.
/// `draw` is a number below 1.
pub fn chosen(rewards: &[Vec<f64>], draw: f64) -> usize {
    let differ = |row: &Vec<f64>| row.iter().any(|reward| (reward - row[0]).abs() > 1e-9);
    let mut eligible: Vec<usize> = (0..rewards.len()).filter(|&at| differ(&rewards[at])).collect();
    if eligible.is_empty() {
        eligible = (0..rewards.len()).collect();
    }
    let at = ((draw * eligible.len() as f64) as usize).min(eligible.len().saturating_sub(1));
    eligible.get(at).copied().unwrap_or(0)
}

/// How PRCO grades.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grading {
    /// The weight of being right in an answer's reward; its form has the rest.
    pub lambda: f64,
    /// How captions that give the answer away were looked for.
    pub leaks: LeakCheck,
    /// The baseline: a caption and the answer to it earn the same, by whether that is right.
    pub shared: bool,
}

/// Both roles of a batch graded. `draw` gives a number below 1 for each group.
pub fn grade(
    groups: &[Group],
    grading: &Grading,
    credit: &Credit,
    draw: impl Fn(usize) -> f64,
) -> Result<Graded> {
    let mut graded = Graded::default();
    let mut kept: Vec<(&Group, usize)> = Vec::new();
    let (mut solver, mut right, mut leaks) = (Vec::new(), Vec::new(), Vec::new());
    for (number, group) in groups.iter().enumerate() {
        let known = |outcome: &Outcome| outcome.grade.verdict != Verdict::InvalidGold;
        let told = |member: &Member| member.outcomes.iter().all(|one| one.as_ref().is_some_and(known));
        if !group.members.iter().all(told) {
            graded.masked += 1;
            continue;
        }
        let branches: Vec<Branch> = group.members.iter().map(branch).collect();
        leaks.extend(group.members.iter().map(|member| member.leaks));
        right.extend(branches.iter().flat_map(|branch| branch.answers.iter().map(|(right, _)| *right)));
        let rewards: Vec<Vec<f64>> =
            branches.iter().map(|branch| solver_rewards(branch, grading.lambda)).collect();
        let at = chosen(&rewards, draw(number));
        graded.groups.push(number);
        graded.rewards.push(branches.iter().map(observer_reward).collect());
        solver.push(rewards[at].clone());
        kept.push((group, at));
    }
    let share = |part: usize, whole: usize| part as f64 / whole.max(1) as f64;
    let answers: Vec<f64> = solver.iter().flatten().copied().collect();
    graded.more = vec![
        ("solver/accuracy", share(right.iter().filter(|right| **right).count(), right.len())),
        ("solver/reward", answers.iter().sum::<f64>() / answers.len().max(1) as f64),
    ];
    if grading.leaks != LeakCheck::Off {
        let known: Vec<bool> = leaks.iter().flatten().copied().collect();
        // Of captions nobody could tell about there is no rate.
        if !known.is_empty() {
            graded.more.push(("leak_rate", share(known.iter().filter(|leaks| **leaks).count(), known.len())));
        }
        graded.more.push(("leak_unclear", share(leaks.len() - known.len(), leaks.len())));
    }
    if kept.is_empty() {
        return Ok(graded);
    }
    let observer = advantages(&graded.rewards, &credit.normalizer)?;
    graded.warning = observer.warning;
    for ((group, _), advantages) in kept.iter().zip(&observer.values) {
        let sample = |(member, &advantage): (&Member, &f64)| Sample {
            input: group.input.clone(),
            tokens: member.caption.tokens.clone(),
            old: member.caption.logprobs.clone(),
            advantage,
            part: OBSERVER,
        };
        graded.samples.extend(group.members.iter().zip(advantages).map(sample));
    }
    if grading.shared {
        for ((group, _), advantages) in kept.iter().zip(&observer.values) {
            for (member, &advantage) in group.members.iter().zip(advantages) {
                graded.samples.extend(member.spoken.iter().flatten().map(|spoken| answer(spoken, advantage)));
            }
        }
        return Ok(graded);
    }
    for ((group, at), advantages) in kept.iter().zip(advantages(&solver, &credit.normalizer)?.values) {
        for (spoken, advantage) in group.members[*at].spoken.iter().zip(advantages) {
            graded.samples.extend(spoken.iter().map(|spoken| answer(spoken, advantage)));
        }
    }
    Ok(graded)
}

fn branch(member: &Member) -> Branch {
    let answer = |outcome: &Outcome| (outcome.right(), form(&outcome.answer));
    Branch {
        leaks: member.leaks == Some(true),
        answers: member.outcomes.iter().flatten().map(answer).collect(),
    }
}

fn answer(spoken: &Spoken, advantage: f64) -> Sample {
    Sample {
        input: spoken.input.clone(),
        tokens: spoken.completion.tokens.clone(),
        old: spoken.completion.logprobs.clone(),
        advantage,
        part: SOLVER,
    }
}

/// The score of an answer's form: reasoning between think tags, then an answer in a box, and nothing before.
pub fn form(answer: &str) -> f64 {
    let rest = answer.trim().strip_prefix("<think>").and_then(|rest| rest.split_once("</think>"));
    let well = rest.is_some_and(|(_, after)| {
        after.find("\\boxed{").is_some_and(|at| after[at..].contains('}')) && !after.contains("<think>")
    });
    f64::from(u8::from(well))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::objective::Normalizer;

    fn near(found: &[f64], wanted: &[f64]) {
        assert_eq!(found.len(), wanted.len());
        assert!(found.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-12), "{found:?} {wanted:?}");
    }

    #[test]
    fn the_worked_example() {
        let branch = |leaks, rights: [bool; 4], form: [f64; 4]| Branch {
            leaks,
            answers: rights.into_iter().zip(form).collect(),
        };
        let (y, n) = (true, false);
        let branches = [
            branch(n, [y, y, y, n], [1.0; 4]),
            branch(n, [y, n, n, n], [1.0, 1.0, 0.0, 1.0]),
            branch(n, [n; 4], [1.0; 4]),
            branch(y, [y; 4], [1.0; 4]),
        ];
        let observer: Vec<f64> = branches.iter().map(observer_reward).collect();
        near(&observer, &[0.75, 0.25, 0.0, 0.0]);
        let centred =
            |rewards: &[f64]| advantages(&[rewards.to_vec()], &Normalizer::None).unwrap().values.remove(0);
        near(&centred(&observer), &[0.5, 0.0, -0.25, -0.25]);
        let solver: Vec<Vec<f64>> = branches.iter().map(|branch| solver_rewards(branch, 0.9)).collect();
        near(&solver[0], &[1.0, 1.0, 1.0, 0.1]);
        near(&solver[1], &[1.0, 0.1, 0.0, 0.1]);
        near(&solver[2], &[0.1; 4]);
        near(&centred(&solver[0]), &[0.225, 0.225, 0.225, -0.675]);
        near(&centred(&solver[1]), &[0.7, -0.2, -0.3, -0.2]);
        // Captions 0 and 1 have answers that differ.
        assert_eq!([0.0, 0.49, 0.5, 0.999].map(|draw| chosen(&solver, draw)), [0, 0, 1, 1]);
        assert_eq!([0.0, 0.999].map(|draw| chosen(&solver[2..], draw)), [0, 1]);
    }

    #[test]
    fn form_is_reasoning_and_then_a_box() {
        assert_eq!(form("<think>so</think> It is \\boxed{4}."), 1.0);
        for odd in ["\\boxed{4}", "<think>so \\boxed{4}", "a <think>b</think>\\boxed{4}", "<think>a</think>4"]
        {
            assert_eq!(form(odd), 0.0, "{odd}");
        }
    }
}
