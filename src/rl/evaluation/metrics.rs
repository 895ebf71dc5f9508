//! Numbers over items.

use super::statistics::quantile;
use super::{Answer, Item, Rate};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Items a cell of a breakdown must have: over fewer a rate says too little to be shown.
pub const LEAST_IN_CELL: u64 = 20;

/// Numbers over items; what was not asked of all of them is none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Items that count.
    pub items: u64,
    /// Items left out because their gold cannot be read.
    pub invalid_golds: u64,
    /// Problems left out because their pictures or words cannot be shown to a model.
    #[serde(default)]
    pub unshown: u64,
    /// Problems left out because the reasoner gave no reply that could be used.
    #[serde(default)]
    pub unanswered: u64,
    /// Right in a single pass.
    pub accuracy_single: Option<Rate>,
    /// Right in the training flow.
    pub accuracy_clarified: Option<Rate>,
    /// Asked.
    pub clarification_rate: Option<Rate>,
    /// Right in the training flow without asking.
    pub first_pass_right: Option<Rate>,
    /// Wrong in the training flow without asking.
    pub first_pass_wrong: Option<Rate>,
    /// Accuracy in the training flow less that of a single pass: below 0, asking hurts.
    pub gap: Option<f64>,
    /// Right from the caption alone, of those that asked.
    pub accuracy_denied: Option<Rate>,
    /// Right after the reply, of those that asked.
    pub accuracy_granted: Option<Rate>,
    /// The latter less the former: what asking brought.
    pub criticality: Option<f64>,
    /// Right after the reply, of those that asked and are wrong without it.
    pub rescue_rate: Option<Rate>,
    /// Wrong after the reply, of those that asked and are right without it.
    pub harm_rate: Option<Rate>,
    /// Tokens of captions.
    pub caption_tokens: Option<Lengths>,
    /// Captions that the limit ended.
    pub captions_truncated: Option<Rate>,
    /// Answers that the limit ended, of all in either way of asking.
    pub answers_truncated: Option<Rate>,
    /// How often which decision had to be guessed.
    pub fallbacks: BTreeMap<String, u64>,
}

/// How long things are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Lengths {
    /// On average.
    pub mean: f64,
    /// 95 % are no longer.
    pub p95: f64,
}

impl Metrics {
    /// Takes the numbers.
    pub fn of(items: &[Item]) -> Self {
        let graded: Vec<&Item> = items.iter().filter(|item| item.graded()).collect();
        let all = |of: fn(&Item) -> Option<bool>| Rate::among_all(graded.iter().map(|item| of(item)));
        let (single, clarified) = (all(Item::single_right), all(Item::clarified_right));
        let difference = |a: Option<Rate>, b: Option<Rate>| Some(a?.rate - b?.rate);

        let asked: Vec<&Item> = graded.iter().copied().filter(|item| item.asked() == Some(true)).collect();
        let denied = Rate::among_all(asked.iter().map(|item| item.single_right()));
        let granted = Rate::among_all(asked.iter().map(|item| item.clarified_right()));
        // Of those whose answer without the reply was (or was not) right: whether the reply changed it.
        let changed = |from: bool| {
            let those = asked.iter().filter(|item| item.single_right() == Some(from));
            Rate::among_all(those.map(|item| item.clarified_right().map(|right| right != from)))
        };
        let answers = graded.iter().flat_map(|item| item.answers());
        let lengths: Vec<usize> = graded.iter().map(|item| item.caption_tokens).collect();
        let mut fallbacks = BTreeMap::new();
        for name in graded.iter().filter_map(|item| item.clarified.as_ref()).flat_map(|c| &c.fallbacks) {
            *fallbacks.entry(name.clone()).or_default() += 1;
        }
        Metrics {
            items: graded.len() as u64,
            invalid_golds: (items.len() - graded.len()) as u64,
            unshown: 0,
            unanswered: 0,
            accuracy_single: single,
            accuracy_clarified: clarified,
            clarification_rate: all(Item::asked),
            first_pass_right: all(Item::first_pass_right),
            first_pass_wrong: all(Item::first_pass_wrong),
            gap: difference(clarified, single),
            accuracy_denied: denied,
            accuracy_granted: granted,
            criticality: difference(granted, denied),
            rescue_rate: denied.and(changed(false)),
            harm_rate: denied.and(changed(true)),
            caption_tokens: quantile(&lengths, 0.95).map(|p95| Lengths {
                mean: lengths.iter().sum::<usize>() as f64 / lengths.len() as f64,
                p95,
            }),
            captions_truncated: Rate::among(graded.iter().map(|item| item.caption_truncated)),
            answers_truncated: Rate::among(answers.map(|answer| answer.truncated)),
            fallbacks,
        }
    }
}

impl Item {
    fn answers(&self) -> impl Iterator<Item = &Answer> {
        self.single.iter().chain(self.clarified.iter().map(|clarified| &clarified.answer))
    }

    fn first_pass_wrong(&self) -> Option<bool> {
        Some(!self.clarified_right()? && !self.asked()?)
    }
}

/// Numbers per value of one property of problems.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Breakdown {
    /// Which property.
    pub by: String,
    /// Its values, in order of their names.
    pub cells: Vec<Cell>,
}

/// Numbers over the items of one value; none where there are fewer than [`LEAST_IN_CELL`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// The value.
    pub name: String,
    /// Items that count.
    pub items: u64,
    /// Right in a single pass.
    pub accuracy_single: Option<Rate>,
    /// Right in the training flow without asking.
    pub first_pass_right: Option<Rate>,
    /// Right in the training flow.
    pub accuracy_clarified: Option<Rate>,
    /// Asked.
    pub clarification_rate: Option<Rate>,
}

impl Breakdown {
    /// By subject and by difficulty, as far as items have them.
    pub fn all(items: &[Item]) -> Vec<Self> {
        type Property = fn(&Item) -> &Option<String>;
        let by: [(&str, Property); 2] =
            [("subject", |item| &item.subject), ("difficulty", |item| &item.difficulty)];
        let broken_down = by.map(|(by, value)| {
            let mut groups: BTreeMap<&str, Vec<&Item>> = BTreeMap::new();
            for item in items.iter().filter(|item| item.graded()) {
                if let Some(value) = value(item) {
                    groups.entry(value).or_default().push(item);
                }
            }
            let cells = groups.into_iter().map(|(name, items)| Cell::of(name, &items)).collect();
            Breakdown { by: by.to_owned(), cells }
        });
        broken_down.into_iter().filter(|breakdown| !breakdown.cells.is_empty()).collect()
    }
}

impl Cell {
    fn of(name: &str, items: &[&Item]) -> Self {
        let shown = items.len() as u64 >= LEAST_IN_CELL;
        let all = |of: fn(&Item) -> Option<bool>| {
            shown.then(|| Rate::among_all(items.iter().map(|item| of(item)))).flatten()
        };
        Cell {
            name: name.to_owned(),
            items: items.len() as u64,
            accuracy_single: all(Item::single_right),
            first_pass_right: all(Item::first_pass_right),
            accuracy_clarified: all(Item::clarified_right),
            clarification_rate: all(Item::asked),
        }
    }

    /// Whether it has too few items to be shown.
    pub fn suppressed(&self) -> bool {
        self.items < LEAST_IN_CELL
    }
}
