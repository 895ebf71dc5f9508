//! How good a captioner is: its captions, what a reasoner made of each, and the numbers that follow.
//!
//! There are two ways to ask. In a single pass the reasoner answers from the caption and is not offered to ask; in the
//! training flow it may, and a frozen captioner replies. An [`Item`] holds what happened to one problem, an
//! [`Evaluation`] all of them with the [`Metrics`] over them, and a [`Comparison`] says what two evaluations of the same
//! problems tell about two captioners. Everything here is a pure function of the items.

mod comparison;
mod conditions;
mod metrics;
mod statistics;
mod text;

pub use comparison::{Change, Comparison, relative_reduction};
pub use conditions::{Conditions, Subject};
pub use metrics::{Breakdown, Cell, LEAST_IN_CELL, Lengths, Metrics};
pub use statistics::{Rate, mcnemar};

use crate::error::{Error, Result};
use crate::format::save::write_file;
use crate::task::verify::{Grade, Verdict};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};

/// What happened to one problem.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// The problem's name, by which evaluations are compared.
    pub id: String,
    /// What it is about.
    pub subject: Option<String>,
    /// How hard it is.
    pub difficulty: Option<String>,
    /// What was asked, with its options.
    pub question: String,
    /// The right answer.
    pub gold: String,
    /// What the captioner said.
    pub caption: String,
    /// In how many tokens, its end token included.
    pub caption_tokens: usize,
    /// Whether the limit of tokens ended it.
    pub caption_truncated: bool,
    /// The answer from the caption alone, asking not offered: of every item for the accuracy of a single pass, or at
    /// least of those that asked, to see what asking brought.
    pub single: Option<Answer>,
    /// The training flow.
    pub clarified: Option<Clarified>,
}

/// An answer of the reasoner, and its grade.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// All it wrote.
    pub text: String,
    /// Whether the limit of tokens ended it.
    pub truncated: bool,
    /// What was made of it.
    #[serde(flatten)]
    pub grade: Grade,
}

/// A problem in the training flow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Clarified {
    /// What the reasoner asked and was told; empty where it answered at once.
    pub turns: Vec<Turn>,
    /// What it answered in the end.
    pub answer: Answer,
    /// Names of what had to be guessed in reading its decisions.
    #[serde(default)]
    pub fallbacks: Vec<String>,
}

/// A request and the reply to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// Of the reasoner.
    pub request: String,
    /// Of the frozen captioner.
    pub reply: String,
}

/// A problem that became no item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// The problem's name.
    pub id: String,
    /// Why.
    pub what: String,
}

/// Why a problem that could be shown became no item, where nothing more is known.
pub const UNANSWERED: &str = "the reasoner gave no usable reply";

/// How it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Answers from captions alone.
    SinglePass,
    /// The reasoner may ask.
    Clarification,
}

/// Problems, what happened to them, and the numbers over them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// What it was of.
    #[serde(flatten)]
    pub conditions: Conditions,
    /// How it was asked.
    pub mode: Mode,
    /// Numbers over all items.
    pub metrics: Metrics,
    /// The same per subject and per difficulty.
    pub breakdowns: Vec<Breakdown>,
    /// The problems that became no items.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
    /// What they were made from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub items: Vec<Item>,
}

impl Evaluation {
    /// Takes the numbers of items.
    pub fn of(conditions: Conditions, items: Vec<Item>) -> Self {
        let asks = items.iter().any(|item| item.clarified.is_some());
        Evaluation {
            conditions,
            mode: if asks { Mode::Clarification } else { Mode::SinglePass },
            metrics: Metrics::of(&items),
            breakdowns: Breakdown::all(&items),
            left_out: Vec::new(),
            items,
        }
    }

    /// Names the problems that became no items: so many could not be shown, the others nobody answered.
    pub fn leaving_out(mut self, left_out: Vec<LeftOut>, unshown: u64) -> Self {
        (self.metrics.unshown, self.metrics.unanswered) = (unshown, left_out.len() as u64 - unshown);
        self.left_out = left_out;
        self
    }

    /// The numbers without the items, and without the names of those left out.
    pub fn summary(&self) -> Evaluation {
        Evaluation {
            items: Vec::new(),
            left_out: Vec::new(),
            conditions: self.conditions.clone(),
            metrics: self.metrics.clone(),
            breakdowns: self.breakdowns.clone(),
            ..*self
        }
    }

    /// Its name in a run's folder.
    pub fn file_name(&self) -> String {
        self.conditions.file_name(self.mode)
    }

    /// Writes it into a folder, under its name.
    pub fn save(&self, folder: &Path) -> Result<PathBuf> {
        let path = folder.join(self.file_name());
        let fresh = path.with_extension("json.new");
        let text = serde_json::to_string(self)
            .map_err(|cause| Error::internal("evaluation", format!("cannot be written as JSON: {cause}")))?;
        write_file(&fresh, text.as_bytes())?;
        fs::rename(&fresh, &path).map_err(|cause| Error::file_because(&path, "cannot be replaced", cause))?;
        Ok(path)
    }

    /// Reads one.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).map_err(|cause| Error::file_because(path, "cannot be read", cause))?;
        serde_json::from_slice(&bytes).map_err(|cause| Error::file_because(path, "is no evaluation", cause))
    }

    /// Those of a run's folder, by step; of each step those where asking was allowed first, the sampled before the greedy.
    pub fn all_in(folder: &Path) -> Result<Vec<Self>> {
        let unreadable = |cause| Error::file_because(folder, "cannot be listed", cause);
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if name.starts_with("eval-") && name.ends_with(".json") {
                found.push(Evaluation::open(&path)?);
            }
        }
        found.sort_by(|a, b| {
            let alone = |e: &Evaluation| e.mode == Mode::SinglePass;
            let order = a.conditions.step.cmp(&b.conditions.step).then(alone(a).cmp(&alone(b)));
            order.then(b.conditions.temperature.total_cmp(&a.conditions.temperature))
        });
        Ok(found)
    }
}

impl Item {
    /// Whether its gold could be read: only then it counts.
    pub fn graded(&self) -> bool {
        let verdicts = [self.single_right(), self.clarified_right()];
        let invalid = |answer: &Answer| answer.grade.verdict == Verdict::InvalidGold;
        verdicts.iter().any(Option::is_some)
            && !self.single.as_ref().is_some_and(invalid)
            && !self.clarified.as_ref().is_some_and(|clarified| invalid(&clarified.answer))
    }

    /// Whether the answer from the caption alone is right.
    pub fn single_right(&self) -> Option<bool> {
        self.single.as_ref().map(Answer::right)
    }

    /// Whether the answer of the training flow is right.
    pub fn clarified_right(&self) -> Option<bool> {
        self.clarified.as_ref().map(|clarified| clarified.answer.right())
    }

    /// Whether the reasoner asked.
    pub fn asked(&self) -> Option<bool> {
        self.clarified.as_ref().map(|clarified| !clarified.turns.is_empty())
    }

    /// Whether it answered rightly and without asking, though it might have.
    pub fn first_pass_right(&self) -> Option<bool> {
        Some(self.clarified_right()? && !self.asked()?)
    }
}

impl Answer {
    /// Whether it is right.
    pub fn right(&self) -> bool {
        self.grade.verdict == Verdict::Right
    }
}
