//! Grades answers by rule: whether a response says what the gold answer says.
//!
//! A response goes through five steps, each a file here: its answer is found (`extract`), brought to one spelling
//! (`normalise`), read as a formula or several (`answer`, `formula`, `literal`, `units`) or as letters and words
//! (`words`), and compared by the kind of the gold (`compare`). Everything is a pure function whose work is
//! bounded by a budget of steps (`fuel`); numbers are compared without rounding where they are rational
//! (`number`), formulas by their values at points (`expression`).
//!
//! The gold and the answer are not interchangeable. `x > 2` asked for may be answered `(2, ∞)`; the other way round
//! the answer would repeat the problem. A gold that cannot be read is nobody's mistake: it is an [`InvalidGold`],
//! found when problems are loaded, and never a verdict on the response unless [`Policy::invalid_gold`] says so.

mod answer;
mod compare;
mod expression;
mod extract;
mod formula;
mod fuel;
mod gold;
mod literal;
mod normalise;
mod number;
mod units;
mod words;

pub use gold::{Gold, InvalidGold};
pub use words::unlabelled;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;

/// What kind of answer is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerType {
    /// One of the options, by letter or content.
    Choice,
    /// A set of options.
    MultiChoice,
    /// Yes or no, true or false.
    YesNo,
    /// A whole number, exactly.
    Integer,
    /// A number, within the policy's tolerance even where the gold is whole.
    Float,
    /// A formula.
    Expression,
    /// An equation or inequality.
    Equation,
    /// A point or an interval, in order and with its brackets.
    Tuple,
    /// Several values in any order, whatever their brackets.
    Set,
    /// A matrix.
    Matrix,
    /// Words.
    Text,
}

impl AnswerType {
    /// Every kind under its name, and the other names data sets give it.
    const NAMES: [(&'static str, AnswerType); 19] = [
        ("choice", AnswerType::Choice),
        ("multi_choice", AnswerType::MultiChoice),
        ("yesno", AnswerType::YesNo),
        ("integer", AnswerType::Integer),
        ("float", AnswerType::Float),
        ("expression", AnswerType::Expression),
        ("equation", AnswerType::Equation),
        ("tuple", AnswerType::Tuple),
        ("set", AnswerType::Set),
        ("matrix", AnswerType::Matrix),
        ("text", AnswerType::Text),
        ("interval", AnswerType::Tuple),
        ("list", AnswerType::Set),
        ("inequality", AnswerType::Equation),
        ("bool", AnswerType::YesNo),
        ("boolean", AnswerType::YesNo),
        ("int", AnswerType::Integer),
        ("multiple_choice", AnswerType::Choice),
        ("string", AnswerType::Text),
    ];

    /// The kind of this name.
    pub fn named(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase().replace([' ', '-'], "_");
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind)
    }

    /// The names of all kinds, for messages.
    pub fn names() -> String {
        Self::NAMES[..11].iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    }
}

/// What a verdict on an invalid gold is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnInvalidGold {
    /// None: the sample is to be left out.
    #[default]
    Drop,
    /// Wrong, whatever the response says.
    Zero,
    /// Right, whatever the response says.
    One,
}

/// The choices that graders differ in.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Only `\boxed{…}` holds an answer. Otherwise what follows "answer is", or the last number or letter, will do.
    pub strict_box: bool,
    /// What a gold that cannot be read leads to.
    pub invalid_gold: OnInvalidGold,
    /// 50% equals 50 and 0.5, where one side alone carries the sign.
    pub percent: bool,
    /// Units that are known are converted; otherwise all units are ignored.
    pub convert_units: bool,
    /// How far from a gold that is not whole an answer may lie.
    pub abs_tol: f64,
    /// The same, relative to the gold; the larger of the two counts.
    pub rel_tol: f64,
    /// The content of an option will do for its letter.
    pub map_choices: bool,
    /// How many characters at the end of a response are read.
    pub tail_chars: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            strict_box: true,
            invalid_gold: OnInvalidGold::Drop,
            percent: true,
            convert_units: false,
            abs_tol: 1e-6,
            rel_tol: 0.0,
            map_choices: true,
            tail_chars: 200_000,
        }
    }
}

/// Whether a response is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It says what the gold says.
    Right,
    /// It does not.
    Wrong,
    /// Nobody can tell.
    InvalidGold,
}

impl Serialize for Verdict {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Verdict::Right => serializer.serialize_u8(1),
            Verdict::Wrong => serializer.serialize_u8(0),
            Verdict::InvalidGold => serializer.serialize_str("invalid_gold"),
        }
    }
}

impl<'de> Deserialize<'de> for Verdict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u8),
            Word(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(1) => Ok(Verdict::Right),
            Written::Number(0) => Ok(Verdict::Wrong),
            Written::Word(word) if word == "invalid_gold" => Ok(Verdict::InvalidGold),
            _ => Err(de::Error::custom("a verdict is 0, 1 or \"invalid_gold\"")),
        }
    }
}

/// What decided a verdict: a comparison, or what kept it from being made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "most are the kinds of answers above")]
pub enum Rule {
    /// The same text, up to spelling.
    Identical,
    Choice,
    /// An option's content instead of its letter.
    ChoiceContent,
    /// Content that fits several options.
    ChoiceAmbiguous,
    MultiChoice,
    #[serde(rename = "yesno")]
    YesNo,
    Integer,
    Float,
    /// One side carries a percent sign.
    Percent,
    /// Both sides carry units that were converted.
    Units,
    Expression,
    Equation,
    Inequality,
    Tuple,
    Interval,
    Set,
    Ratio,
    Matrix,
    Text,
    /// Several values where one is asked for.
    Hedge,
    /// No answer was found in the response.
    NoAnswer,
    /// The answer cannot be read as what the gold is.
    Unreadable,
    /// The answer is too long, too deep, or its exponents and factorials are too large.
    Guard,
    /// Comparing took too many steps.
    Budget,
    /// The gold cannot be read.
    InvalidGold,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// A graded response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grade {
    /// Whether it is right.
    pub verdict: Verdict,
    /// The answer it gives; none is not the text "None".
    pub extracted: Option<String>,
    /// What decided.
    pub rule: Rule,
}

/// Grades one response; where a gold is used more than once, read it once by [`Gold::parse`].
pub fn grade(
    response: &str,
    gold: &str,
    answer_type: Option<AnswerType>,
    choices: &[String],
    policy: &Policy,
) -> Grade {
    match Gold::parse(gold, answer_type, choices, policy) {
        Ok(gold) => gold.grade(response, policy),
        Err(fault) => fault.grade(response, policy),
    }
}

/// What a response gives as its answer, under the policy.
pub fn extract<'a>(response: &'a str, policy: &Policy) -> Option<&'a str> {
    let response = extract::after_reasoning(extract::tail(response, policy.tail_chars));
    match extract::boxed(response) {
        None if !policy.strict_box => {
            let last = || extract::last_number(response).or_else(|| extract::last_letter(response));
            extract::announced(response).or_else(last)
        }
        boxed => boxed,
    }
}
