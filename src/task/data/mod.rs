//! Problems to train and evaluate on, from the files people have.
//!
//! A file's rows are read as cells (`rows`), a [`Layout`] says which column means what, and `record` makes each row a
//! [`Problem`] or a [`Fault`] that names its line. Faulty rows are left out and listed, never guessed at. [`Order`] says in
//! which order problems are taken.
//!
//! Pictures given as bytes are kept in memory as they are encoded; those given as files stay files.

mod cell;
mod layout;
mod order;
#[cfg(feature = "parquet")]
mod parquet;
mod record;
mod rows;

pub use layout::{Layout, Names};
pub use order::{Cursor, Order, permutation};

use crate::error::{Error, Result};
use crate::prompt::message::ImageReference;
use crate::task::verify::{Gold, Grade, Policy, unlabelled};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// Pictures, a question about them, and the right answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// A name that no other problem has.
    pub id: String,
    /// Pictures; files by a path that leads there.
    pub images: Vec<ImageReference>,
    /// What is asked, without the options.
    pub question: String,
    /// The options, if it is a choice and they do not stand in the question.
    pub choices: Vec<String>,
    /// The right answer as it was given.
    pub answer: String,
    /// The right answer as the verifier reads it.
    pub gold: Gold,
    /// How far from the answer a number may lie, if the data set says so.
    pub tolerance: Option<f64>,
    /// What it is about.
    pub subject: Option<String>,
    /// How hard it is.
    pub difficulty: Option<String>,
    /// What else is asked about the same pictures, each without them; where there is anything, the problem's own question
    /// is the first.
    pub questions: Vec<Problem>,
    /// Every other column, for breakdowns and rewards.
    pub extra: Map<String, Value>,
    /// Where it came from.
    pub place: Place,
}

impl Problem {
    /// The question with its options, a line each.
    pub fn asked(&self) -> String {
        let options = self.choices.iter().zip('A'..).map(|(choice, letter)| format!("\n({letter}) {choice}"));
        self.question.clone() + &options.collect::<String>()
    }

    /// Grades a response.
    pub fn grade(&self, response: &str, policy: &Policy) -> Grade {
        let abs_tol = self.tolerance.map_or(policy.abs_tol, |tolerance| tolerance.max(policy.abs_tol));
        self.gold.grade(response, &Policy { abs_tol, ..policy.clone() })
    }
}

impl Problem {
    /// The same choice with its options in another order: where `order` has a number, that option. What is no choice by
    /// letters stays as it is, and so do options that speak of those above them.
    pub fn reordered(&self, order: &[u32], policy: &Policy) -> Result<Self> {
        let wrong = |what: String| Error::caller("options", format!("problem {}: {what}", self.id));
        let mut sorted = order.to_vec();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..self.choices.len() as u32) {
            return Err(wrong(format!("{order:?} is no order of {} options", self.choices.len())));
        }
        let letters = self.gold.letters();
        let speaks = |choice: &String| choice.to_lowercase().contains("above");
        if letters.is_empty() || self.choices.iter().any(speaks) {
            return Ok(self.clone());
        }
        let contents = unlabelled(&self.choices);
        let choices: Vec<String> = order.iter().map(|&from| contents[from as usize].clone()).collect();
        let right = |from: &u32| letters.contains(&char::from(b'A' + *from as u8));
        let answer: String =
            ('A'..).zip(order).filter(|(_, from)| right(from)).map(|(letter, _)| letter).collect();
        let gold = Gold::parse(&answer, Some(self.gold.answer_type()), &choices, policy);
        let gold = gold.map_err(|fault| wrong(fault.to_string()))?;
        Ok(Problem { choices, answer, gold, ..self.clone() })
    }
}

/// A row of a file: the line of JSON lines, the how-manyth row of others, from 1.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// The line or row.
    pub row: u64,
}

impl Place {
    fn stem(&self) -> String {
        self.file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.row)
    }
}

/// A row that is left out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {what}")]
pub struct Fault {
    /// Where it stands.
    pub place: Place,
    /// The name its problem would have had; none where it cannot be read at all.
    pub id: Option<String>,
    /// What is wrong with it.
    pub what: String,
}

/// What a file held.
#[derive(Debug, Clone, Default)]
pub struct Loaded {
    /// Problems, in the file's order.
    pub problems: Vec<Problem>,
    /// Rows that are none.
    pub faults: Vec<Fault>,
}

impl Loaded {
    /// Reads a file or a folder of them. It is an error if nothing in it is a problem.
    pub fn open(path: &Path, layout: &Layout, policy: &Policy) -> Result<Self> {
        let mut loaded = Loaded::default();
        let mut known: HashMap<String, Place> = HashMap::new();
        let mut number = 0;
        let mut unseen = layout.asked.clone();
        rows::each(path, &mut |row| {
            let (place, id, problem) = match row {
                Ok(row) => {
                    unseen.retain(|column| !record::has(&row, layout, column));
                    let id = record::id(&row, layout, number);
                    (row.place.clone(), Some(id.clone()), record::problem(&row, layout, policy, id))
                }
                Err((place, what)) => (place, None, Err(what)),
            };
            number += 1;
            let unique = problem.and_then(|problem| match known.get(&problem.id) {
                Some(other) => Err(format!("id {:?} was used at {other}", problem.id)),
                None => Ok(problem),
            });
            match unique {
                Ok(problem) => {
                    known.insert(problem.id.clone(), place);
                    loaded.problems.push(problem);
                }
                Err(what) => loaded.faults.push(Fault { place, id, what }),
            }
        })?;
        if let Some(column) = unseen.first().filter(|_| number > 0) {
            return Err(Error::file(path, format!("no row has the column {column:?} that data.keys names")));
        }
        match (loaded.problems.is_empty(), loaded.faults.first()) {
            (false, _) => Ok(loaded),
            (true, None) => Err(Error::file(path, "holds no rows")),
            (true, Some(fault)) => {
                let count = loaded.faults.len();
                Err(Error::file(path, format!("none of its {count} rows is a problem; the first: {fault}")))
            }
        }
    }
}
