//! `pellucid verify`: grades answers by rule, one or a file of them.

use super::Global;
use super::records::Lines;
use anyhow::{Context, Result, anyhow, bail};
use pellucid::task::verify::{
    AnswerType, Gold, Grade, InvalidGold, OnInvalidGold, Policy, Rule, Verdict, extract,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::{fmt, io::Write, path::PathBuf};

/// Say whether answers are right, and by which rule
///
/// One answer: --pred is the answer, or a response with the answer in a \boxed{}. Many: --input holds JSON lines with
/// "response", "gold", and perhaps "choices" and "answer_type"; stdout gets a line with "verdict" (1, 0 or
/// "invalid_gold"), "extracted" and "rule" for each, stderr the count and every gold that cannot be read.
///
/// Example: pellucid verify --pred '\frac{1}{2}' --gold 0.5
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// An answer
    #[arg(
        long,
        value_name = "TEXT",
        requires = "gold",
        required_unless_present = "input",
        allow_hyphen_values = true
    )]
    pred: Option<String>,

    /// The right answer
    #[arg(long, value_name = "TEXT", requires = "pred", allow_hyphen_values = true)]
    gold: Option<String>,

    /// The options, one after the other
    #[arg(long, value_name = "TEXT", num_args = 1.., requires = "gold", allow_hyphen_values = true)]
    choices: Vec<String>,

    #[arg(long, value_name = "TYPE", requires = "gold", value_parser = parse_type,
        help = format!("What the gold is, where that is not what it looks like: {}", AnswerType::names()))]
    answer_type: Option<AnswerType>,

    /// JSON lines to grade
    #[arg(long, value_name = "FILE", conflicts_with = "gold")]
    input: Option<PathBuf>,

    /// Without a box, take what follows "answer is", or the last number or letter
    #[arg(long)]
    lenient: bool,

    /// What a gold that cannot be read leads to: drop, zero, or one
    #[arg(long, value_name = "CHOICE", default_value = "drop", value_parser = parse_invalid)]
    invalid_gold: OnInvalidGold,

    /// 50% is only 50, and not 0.5, too
    #[arg(long)]
    no_percent: bool,

    /// Convert units that are known; otherwise all are ignored
    #[arg(long)]
    convert_units: bool,

    /// An option's content will not do for its letter
    #[arg(long)]
    letters_only: bool,

    /// How far from a gold that is not whole an answer may lie
    #[arg(long, value_name = "X", default_value_t = Policy::default().abs_tol, value_parser = parse_tolerance)]
    abs_tol: f64,

    /// The same, relative to the gold; the larger of the two counts
    #[arg(long, value_name = "X", default_value_t = Policy::default().rel_tol, value_parser = parse_tolerance)]
    rel_tol: f64,

    /// How many characters at the end of a response are read
    #[arg(long, value_name = "N", default_value_t = Policy::default().tail_chars)]
    tail_chars: usize,
}

fn parse_type(name: &str) -> Result<AnswerType, String> {
    AnswerType::named(name).ok_or_else(|| format!("expected one of {}", AnswerType::names()))
}

fn parse_invalid(name: &str) -> Result<OnInvalidGold, String> {
    match name {
        "drop" => Ok(OnInvalidGold::Drop),
        "zero" => Ok(OnInvalidGold::Zero),
        "one" => Ok(OnInvalidGold::One),
        _ => Err("expected drop, zero or one".into()),
    }
}

fn parse_tolerance(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0);
    number.ok_or_else(|| "expected a number from 0 up".into())
}

/// What stands in a line.
#[derive(Deserialize)]
#[serde(expecting = "an object with response and gold")]
struct Record {
    response: String,
    gold: Value,
    #[serde(default)]
    choices: Vec<Value>,
    answer_type: Option<String>,
}

impl Arguments {
    fn policy(&self) -> Policy {
        Policy {
            strict_box: !self.lenient,
            invalid_gold: self.invalid_gold,
            percent: !self.no_percent,
            convert_units: self.convert_units,
            abs_tol: self.abs_tol,
            rel_tol: self.rel_tol,
            map_choices: !self.letters_only,
            tail_chars: self.tail_chars,
        }
    }
}

pub(crate) fn run(arguments: &Arguments, global: &Global) -> Result<()> {
    let policy = arguments.policy();
    match (&arguments.input, &arguments.pred, &arguments.gold) {
        (Some(_), ..) => grade_lines(arguments, &policy, global),
        (None, Some(answer), Some(gold)) => {
            global.print(&Graded(grade_one(arguments, answer, gold, &policy)?))
        }
        _ => bail!("give --pred and --gold, or --input"),
    }
}

fn grade_one(arguments: &Arguments, answer: &str, gold: &str, policy: &Policy) -> Result<Grade> {
    let gold = match Gold::parse(gold, arguments.answer_type, &arguments.choices, policy) {
        Ok(gold) => gold,
        Err(fault) if policy.invalid_gold == OnInvalidGold::Drop => return Err(fault.into()),
        Err(fault) => return Ok(fault.grade(answer, policy)),
    };
    let boxed = extract(answer, &Policy { strict_box: true, ..policy.clone() });
    let whole = boxed.is_none() && policy.strict_box;
    Ok(if whole { gold.grade_answer(answer, policy) } else { gold.grade(answer, policy) })
}

/// A verdict as people read it.
#[derive(Serialize)]
#[serde(transparent)]
struct Graded(Grade);

impl fmt::Display for Graded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.0.verdict {
            Verdict::Right => "right",
            Verdict::Wrong => "wrong",
            Verdict::InvalidGold => "invalid gold",
        };
        write!(f, "{verdict} by rule {}", self.0.rule)?;
        match &self.0.extracted {
            Some(answer) => writeln!(f, ", answer {answer:?}"),
            None => writeln!(f, ", no answer found"),
        }
    }
}

/// What a file came to.
#[derive(Default, Serialize)]
struct Summary {
    graded: u64,
    right: u64,
    invalid_gold: Vec<Fault>,
    rules: BTreeMap<Rule, u64>,
}

#[derive(Serialize)]
struct Fault {
    line: u64,
    fault: String,
}

fn grade_lines(arguments: &Arguments, policy: &Policy, global: &Global) -> Result<()> {
    let input = arguments.input.as_ref().context("no input")?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut summary = Summary::default();
    for line in Lines::<Record>::open(input)? {
        let (place, record) = line?;
        let (grade, fault) = grade_record(record, policy).with_context(|| place.to_string())?;
        writeln!(out, "{}", serde_json::to_string(&grade)?)?;
        summary.graded += 1;
        summary.right += u64::from(grade.verdict == Verdict::Right);
        *summary.rules.entry(grade.rule).or_default() += 1;
        if let Some(fault) = fault {
            if !global.quiet && !global.json {
                eprintln!("{place}: {fault}");
            }
            summary.invalid_gold.push(Fault { line: place.line(), fault: fault.to_string() });
        }
    }
    if global.json {
        writeln!(out, "{}", serde_json::to_string(&summary)?)?;
    } else if !global.quiet {
        let Summary { graded, right, invalid_gold, .. } = &summary;
        eprintln!("{graded} graded, {right} right, {} with a gold that cannot be read", invalid_gold.len());
    }
    Ok(out.flush()?)
}

fn grade_record(record: Record, policy: &Policy) -> Result<(Grade, Option<InvalidGold>)> {
    let kind = |name: &String| parse_type(name).map_err(|what| anyhow!("answer_type {name:?}: {what}"));
    let kind = record.answer_type.as_ref().map(kind).transpose()?;
    let gold = plain_text(&record.gold).context("gold: expected a text or a number")?;
    let choices: Option<Vec<String>> = record.choices.iter().map(plain_text).collect();
    let choices = choices.context("choices: expected texts or numbers")?;
    Ok(match Gold::parse(&gold, kind, &choices, policy) {
        Ok(gold) => (gold.grade(&record.response, policy), None),
        Err(fault) => (fault.grade(&record.response, policy), Some(fault)),
    })
}

/// A text, or a number or truth value as one.
fn plain_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}
