//! Two evaluations of the same problems.

use super::{Evaluation, Item, Rate, mcnemar};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// What changed from one evaluation to another, over the problems that count in both.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Problems in both.
    pub items: u64,
    /// Right in a single pass.
    pub accuracy_single: Option<Change>,
    /// Right in the training flow without asking.
    pub first_pass_right: Option<Change>,
    /// Right in the training flow.
    pub accuracy_clarified: Option<Change>,
    /// Asked.
    pub clarification_rate: Option<Change>,
    /// The share of its former rate by which asking went down.
    pub relative_reduction: Option<f64>,
}

/// A rate before and after, over pairs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Before.
    pub before: f64,
    /// After.
    pub after: f64,
    /// Pairs that were and no longer are.
    pub lost: u64,
    /// Pairs that were not and now are.
    pub gained: u64,
    /// McNemar's exact p of as lopsided a change by chance.
    pub p: f64,
}

impl Comparison {
    /// Compares problem by problem. It is an error if there is none in both, or one has another answer.
    pub fn between(before: &Evaluation, after: &Evaluation) -> Result<Self> {
        let earlier: HashMap<&str, &Item> =
            before.items.iter().filter(|item| item.graded()).map(|item| (item.id.as_str(), item)).collect();
        let later = after.items.iter().filter(|item| item.graded());
        let pairs: Vec<(&Item, &Item)> =
            later.filter_map(|item| Some((*earlier.get(item.id.as_str())?, item))).collect();
        if pairs.is_empty() {
            let what = "the two evaluations share no problem; compare evaluations of the same data";
            return Err(Error::caller("compare", what));
        }
        if let Some((was, is)) = pairs.iter().find(|(was, is)| was.gold != is.gold) {
            let what = format!(
                "problem {:?} has answer {:?} in one and {:?} in the other",
                is.id, was.gold, is.gold
            );
            return Err(Error::caller("compare", what));
        }
        let change = |of: fn(&Item) -> Option<bool>| {
            let both = |(was, is): &(&Item, &Item)| Some((of(was)?, of(is)?));
            Some(Change::of(&pairs.iter().map(both).collect::<Option<Vec<_>>>()?))
        };
        let asked = change(Item::asked);
        Ok(Comparison {
            items: pairs.len() as u64,
            accuracy_single: change(Item::single_right),
            first_pass_right: change(Item::first_pass_right),
            accuracy_clarified: change(Item::clarified_right),
            clarification_rate: asked,
            relative_reduction: asked.and_then(|asked| relative_reduction(asked.before, asked.after)),
        })
    }
}

/// By what share of it a rate went down; of nothing there is none.
pub fn relative_reduction(before: f64, after: f64) -> Option<f64> {
    (before > 0.0).then(|| (before - after) / before)
}

impl Change {
    fn of(pairs: &[(bool, bool)]) -> Self {
        let count = |is: fn(&(bool, bool)) -> bool| pairs.iter().filter(|pair| is(pair)).count() as u64;
        let (lost, gained) = (count(|&(was, is)| was && !is), count(|&(was, is)| !was && is));
        let rate = |count| Rate::new(count, pairs.len() as u64).map_or(0.0, |rate| rate.rate);
        Change {
            before: rate(count(|&(was, _)| was)),
            after: rate(count(|&(_, is)| is)),
            lost,
            gained,
            p: mcnemar(lost, gained),
        }
    }
}
