//! Signs that a run is going wrong, as pure functions of what it logged.
//!
//! A sign is no proof: the run goes on, and whoever reads its report decides. What is looked at is a line of
//! `metrics.jsonl` per step, and the evaluations so far.

use super::decision::Fallback;
use super::episode::Failure;
use super::evaluation::{Cell, Evaluation};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::fmt;

/// One sign.
#[derive(Debug, Clone, PartialEq)]
pub struct Alarm {
    /// Which, in a word.
    pub name: &'static str,
    /// What was seen.
    pub what: String,
    /// What it may mean, and what to try.
    pub remedy: &'static str,
}

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.name, self.what, self.remedy)
    }
}

/// Steps whose average a step is compared with, and steps that are averaged to see a trend.
const FEW: usize = 5;
const WINDOW: usize = 20;

/// What shows that a reasoner does not keep to the format; asking where asking is over is another matter.
const GUESSES: [Fallback; 4] =
    [Fallback::NoMarkerBoxed, Fallback::NoMarker, Fallback::EmptyQuestion, Fallback::SolvedUnanswered];

/// Signs in the last of a run's steps, given every step so far; a step's line may lack any key.
///
/// What the keys mean is said where they are written, in `metrics`.
pub fn of_training(steps: &[Map<String, Value>]) -> Vec<Alarm> {
    let Some(last) = steps.last() else { return Vec::new() };
    let mut alarms = Vec::new();
    let mut raise = |name, what, remedy| alarms.push(Alarm { name, what, remedy });
    let above = |key: &str, limit: f64| number(last, key).filter(|value| *value > limit);

    if let Some(share) = above("frac_reward_zero_std", 0.5) {
        let what = format!("{} of groups earn the same reward throughout", percent(share));
        raise("uniform rewards", what, "nothing is learnt from them: harder problems, or another alpha");
    }
    if let Some((before, now)) = collapse(steps) {
        let what = format!("captions have {now:.1} tokens, {before:.1} when the run began");
        raise("short captions", what, "look at samples: the clarifier may be doing the captioner's work");
    }
    if let Some(difference) = above("sampling/sampling_logp_difference/max", 0.0) {
        let what = format!("sampler and trainer differ by up to {difference:.1e} in a log-probability");
        raise("log-probs differ", what, "they compute the same numbers in the same order: please report it");
    }
    let episodes = number(last, "episodes").unwrap_or(0.0);
    let count = |name: &str| number(last, &format!("count/{name}")).unwrap_or(0.0);
    let guessed = GUESSES.iter().map(|fallback| count(fallback.name())).sum::<f64>();
    if guessed > 0.05 * episodes {
        let what = format!("{guessed} guesses in reading the decisions of {episodes} episodes");
        raise("decisions guessed", what, "the reasoner does not keep to the format: try wire = \"two_call\"");
    }
    let truncated = count(Failure::ReasonerTruncated.name());
    if truncated > 0.05 * episodes {
        let what = format!("{truncated} answers of {episodes} are cut off");
        raise("answers cut off", what, "raise reasoner.max_tokens rather than train on it");
    }
    let lost = number(last, "groups/dropped_members").unwrap_or(0.0);
    if lost > 0.05 * (lost + episodes) {
        let what = format!("{lost} captions were not answered, {episodes} were");
        raise("answers lost", what, "the lines with left_out in samples.jsonl say why");
    }
    if let Some(share) = above("leak_unclear", 0.5) {
        let what = format!("the captioner could not say of {} of captions whether they leak", percent(share));
        raise("leaks not judged", what, "they count as none: set episode.leaks = \"rule\"");
    }
    let invalid = count("invalid_gold");
    if invalid > 0.0 {
        let what = format!("{invalid} answers cannot be graded: their golds cannot be read");
        raise("invalid golds", what, "their groups are left out: mend the data");
    }
    let window = &steps[steps.len().saturating_sub(WINDOW)..];
    let types = last.keys().filter_map(|key| key.strip_prefix("clarification_rate/"));
    for kind in types.filter(|_| window.len() == WINDOW) {
        let mean = |key: &str, half: &[Map<String, Value>]| {
            mean(half.iter().filter_map(|line| number(line, &format!("{key}/{kind}"))))
        };
        let half = |half| Some((mean("clarification_rate", half)?, mean("accuracy", half)?));
        let (first, second) = window.split_at(WINDOW / 2);
        let series: Vec<_> = [half(first), half(second)].into_iter().flatten().collect();
        alarms.extend(lazy(kind, &series));
    }
    alarms
}

/// Signs in the last of a run's evaluations; those before it in order.
pub fn of_evaluations(evaluations: &[&Evaluation]) -> Vec<Alarm> {
    let Some(last) = evaluations.last() else { return Vec::new() };
    let mut alarms = Vec::new();
    if let Some(rate) = last.metrics.clarification_rate.filter(|rate| rate.rate > 0.4) {
        let what = format!("asked on {} of problems at step {}", percent(rate.rate), last.conditions.step);
        let remedy = "single passes will lack what the reply said: train longer, or lower alpha";
        alarms.push(Alarm { name: "many requests", what, remedy });
    }
    if let Some(gap) = last.metrics.gap.filter(|gap| *gap < -0.01) {
        let what = format!("accuracy is {:.1} points lower where asking is allowed", -100.0 * gap);
        let remedy = "replies mislead the reasoner: look at the clarifier";
        alarms.push(Alarm { name: "asking hurts", what, remedy });
    }
    let cells = |evaluation: &Evaluation| -> Vec<_> {
        let named = evaluation.breakdowns.iter().filter(|breakdown| breakdown.by == "subject");
        named.flat_map(|breakdown| breakdown.cells.clone()).collect()
    };
    let subjects: BTreeSet<String> = cells(last).into_iter().map(|cell| cell.name).collect();
    for subject in &subjects {
        let every = evaluations.iter().map(|evaluation| cells(evaluation));
        let series: Vec<_> =
            every.filter_map(|cells| cells.into_iter().find(|cell| cell.name == *subject)).collect();
        let asking = series
            .iter()
            .filter_map(|cell| Some((cell.clarification_rate?.rate, cell.accuracy_clarified?.rate)));
        alarms.extend(lazy(subject, &asking.collect::<Vec<_>>()));
        let single = |cell: Option<&Cell>| cell.and_then(|cell| cell.accuracy_single);
        if let (Some(first), Some(now)) = (single(series.first()), single(series.last()))
            && now.high < first.low
        {
            let what = format!(
                "single-pass accuracy of {subject} fell from {} to {}",
                percent(first.rate),
                percent(now.rate)
            );
            alarms.push(Alarm {
                name: "a subject regressed",
                what,
                remedy: "look at its captions before and after",
            });
        }
    }
    alarms
}

/// A caption that leaves a gap and lets the clarifier fill it earns alpha for ever: a type of question keeps being asked
/// about (every time more than 80 %) while its accuracy, clarified, rises.
fn lazy(kind: &str, series: &[(f64, f64)]) -> Option<Alarm> {
    let [(_, first), .., (asked, last)] = series else { return None };
    let stays = series.iter().all(|(asked, _)| *asked > 0.8);
    (stays && last - first >= 0.05).then(|| Alarm {
        name: "lazy captions",
        what: format!(
            "{kind} still asks on {}, while its accuracy with replies rose from {} to {}",
            percent(*asked),
            percent(*first),
            percent(*last)
        ),
        remedy: "half a caption and a reply is paid for: lower alpha, or a reasoner that can use whole captions",
    })
}

/// The average length when the run began and of late, if the latter is less than half the former.
fn collapse(steps: &[Map<String, Value>]) -> Option<(f64, f64)> {
    if steps.len() < 2 * FEW {
        return None;
    }
    let length = |lines: &[Map<String, Value>]| {
        mean(lines.iter().filter_map(|line| number(line, "completions/mean_length")))
    };
    let (before, now) = (length(&steps[..FEW])?, length(&steps[steps.len() - FEW..])?);
    (now < before / 2.0).then_some((before, now))
}

fn number(line: &Map<String, Value>, key: &str) -> Option<f64> {
    line.get(key)?.as_f64()
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0);
    for value in values {
        sum += value;
        count += 1;
    }
    (count > 0).then(|| sum / f64::from(count))
}

fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn line(values: Value) -> Map<String, Value> {
        values.as_object().cloned().expect("is an object")
    }

    fn names(steps: &[Map<String, Value>]) -> Vec<&'static str> {
        of_training(steps).into_iter().map(|alarm| alarm.name).collect()
    }

    #[test]
    fn a_healthy_step_raises_nothing() {
        let healthy = json!({
            "step": 1, "frac_reward_zero_std": 0.5, "episodes": 100, "count/no_marker": 5, "count/insisted": 90,
            "count/reasoner_truncated": 5, "sampling/sampling_logp_difference/max": 0.0,
            "completions/mean_length": 9.0,
        });
        assert!(names(&vec![line(healthy); 30]).is_empty());
        assert!(names(&[Map::new()]).is_empty() && names(&[]).is_empty());
    }

    #[test]
    fn each_sign_is_seen_by_itself() {
        for (values, name) in [
            (json!({"frac_reward_zero_std": 0.51}), "uniform rewards"),
            (json!({"sampling/sampling_logp_difference/max": 1e-7}), "log-probs differ"),
            (json!({"episodes": 100, "count/no_marker": 4, "count/empty_question": 2}), "decisions guessed"),
            (json!({"episodes": 100, "count/reasoner_truncated": 6}), "answers cut off"),
            (json!({"episodes": 100, "count/invalid_gold": 1}), "invalid golds"),
        ] {
            // Only the last step counts.
            assert_eq!(names(&[Map::new(), line(values.clone())]), [name], "{values}");
            assert!(names(&[line(values), Map::new()]).is_empty());
        }
    }

    #[test]
    fn captions_that_dwindle_are_noticed() {
        let length = |length: f64| line(json!({"completions/mean_length": length}));
        let mut steps = vec![length(10.0); 5];
        steps.extend(vec![length(5.1); 5]);
        assert!(names(&steps).is_empty());
        steps.extend(vec![length(4.9); 5]);
        assert_eq!(names(&steps), ["short captions"]);
        assert!(names(&[length(10.0), length(1.0)]).is_empty(), "too early to tell");
    }

    #[test]
    fn half_captions_that_pay_are_noticed() {
        let steps = |asked: [f64; 2], accuracy: [f64; 2]| -> Vec<_> {
            let at = |n: usize| {
                let (asked, accuracy) = (asked[n / 10], accuracy[n / 10]);
                line(json!({"clarification_rate/sum": asked, "accuracy/sum": accuracy}))
            };
            (0..20).map(at).collect()
        };
        assert_eq!(names(&steps([0.95, 0.93], [0.4, 0.6])), ["lazy captions"]);
        assert!(names(&steps([0.95, 0.7], [0.4, 0.6])).is_empty(), "asks less");
        assert!(names(&steps([0.95, 0.93], [0.4, 0.42])).is_empty(), "learns nothing yet");
        assert!(names(&steps([0.95, 0.93], [0.4, 0.6])[..19]).is_empty(), "too early to tell");
    }
}
