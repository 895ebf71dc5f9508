//! A gold answer, read once, and the grading of answers against it.

use super::answer::{Answer, Reader, read};
use super::compare::{Comparer, Outcome};
use super::extract;
use super::formula::Letters;
use super::fuel::{Fuel, LONGEST, Stop};
use super::normalise::normalise;
use super::words::{Named, folded, named, unlabelled, yes_or_no};
use super::{AnswerType, Grade, OnInvalidGold, Policy, Rule, Verdict};
use std::collections::BTreeSet;

/// Letters that stand for options where the options are not known.
const OPTIONS: usize = 10;

/// A gold answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Gold {
    text: String,
    folded: String,
    meaning: Meaning,
}

#[derive(Debug, Clone, PartialEq)]
enum Meaning {
    Choice(char, Options),
    MultiChoice(BTreeSet<char>, usize),
    YesNo(bool),
    Formula { answer: Answer, wanted: Option<AnswerType> },
    Text,
}

/// What an option may be named by.
#[derive(Debug, Clone, PartialEq)]
struct Options {
    count: usize,
    contents: Vec<Gold>,
}

/// Why a gold cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("gold {gold:?}: {reason}")]
pub struct InvalidGold {
    /// The gold's text, or its beginning.
    pub gold: String,
    /// What is wrong with it.
    pub reason: String,
}

impl InvalidGold {
    /// The verdict on any response, as the policy says.
    pub fn grade(&self, response: &str, policy: &Policy) -> Grade {
        let verdict = match policy.invalid_gold {
            OnInvalidGold::Drop => Verdict::InvalidGold,
            OnInvalidGold::Zero => Verdict::Wrong,
            OnInvalidGold::One => Verdict::Right,
        };
        let extracted = extract(response, policy).map(str::to_owned);
        Grade { verdict, extracted, rule: Rule::InvalidGold }
    }
}

impl Gold {
    /// Reads a gold. Its kind is `wanted`, or what it looks like; with options, it is one of them.
    pub fn parse(
        gold: &str,
        wanted: Option<AnswerType>,
        choices: &[String],
        policy: &Policy,
    ) -> Result<Self, InvalidGold> {
        let invalid = |reason: String| InvalidGold { gold: gold.chars().take(80).collect(), reason };
        let inner = extract::boxed(gold).unwrap_or(gold);
        if inner.chars().count() > LONGEST {
            return Err(invalid(format!("longer than {LONGEST} characters")));
        }
        let text = normalise(inner);
        if text.is_empty() {
            return Err(invalid("empty".into()));
        }
        let meaning = if choices.is_empty()
            || !matches!(wanted, None | Some(AnswerType::Choice | AnswerType::MultiChoice))
        {
            meaning(&text, wanted)
        } else {
            among(&text, wanted, choices, policy)
        };
        let folded = folded(&text);
        meaning.map(|meaning| Gold { text, folded, meaning }).map_err(invalid)
    }

    /// Its kind, as read.
    pub fn answer_type(&self) -> AnswerType {
        match &self.meaning {
            Meaning::Choice(..) => AnswerType::Choice,
            Meaning::MultiChoice(..) => AnswerType::MultiChoice,
            Meaning::YesNo(_) => AnswerType::YesNo,
            Meaning::Text => AnswerType::Text,
            Meaning::Formula { wanted: Some(kind), .. } => *kind,
            Meaning::Formula { answer, .. } => match answer {
                Answer::Value(value) => match value.expression.constant(&mut Fuel::default()) {
                    Ok(Some(number)) if number.is_whole() => AnswerType::Integer,
                    Ok(Some(_)) => AnswerType::Float,
                    _ => AnswerType::Expression,
                },
                Answer::Relation(_) => AnswerType::Equation,
                Answer::Bracketed(..) | Answer::Union(_) | Answer::Ratio(_) => AnswerType::Tuple,
                Answer::Set(_) | Answer::List(_) => AnswerType::Set,
                Answer::Matrix { .. } => AnswerType::Matrix,
            },
        }
    }

    /// The letters of the options that are right, if it is a choice.
    pub fn letters(&self) -> BTreeSet<char> {
        match &self.meaning {
            Meaning::Choice(letter, _) => BTreeSet::from([*letter]),
            Meaning::MultiChoice(letters, _) => letters.clone(),
            Meaning::YesNo(_) | Meaning::Text | Meaning::Formula { .. } => BTreeSet::new(),
        }
    }

    /// Grades a response.
    pub fn grade(&self, response: &str, policy: &Policy) -> Grade {
        let Some(answer) = extract(response, policy) else {
            return Grade { verdict: Verdict::Wrong, extracted: None, rule: Rule::NoAnswer };
        };
        let grade = self.grade_answer(answer, policy);
        // A sentence may hold more than the answer: the last number or letter in it is what is left to try.
        let loose = !policy.strict_box && [Rule::Unreadable, Rule::NoAnswer].contains(&grade.rule);
        let last = match self.meaning {
            _ if !loose || extract::boxed(response).is_some() => None,
            Meaning::Choice(..) | Meaning::MultiChoice(..) => extract::last_letter(answer),
            Meaning::Formula { .. } => extract::last_number(answer),
            Meaning::YesNo(_) | Meaning::Text => None,
        };
        last.map_or(grade, |last| self.grade_answer(last, policy))
    }

    /// Grades an answer that was found already.
    pub fn grade_answer(&self, answer: &str, policy: &Policy) -> Grade {
        let outcome = if answer.chars().count() > LONGEST {
            Err(Stop::Guard)
        } else {
            self.decide(&normalise(answer), policy, &mut Fuel::default())
        };
        let Outcome { right, rule } = outcome.unwrap_or_else(|stop| {
            let rule = match stop {
                Stop::Unreadable | Stop::Unbalanced => Rule::Unreadable,
                Stop::Guard => Rule::Guard,
                Stop::Budget => Rule::Budget,
            };
            Outcome { right: false, rule }
        });
        let verdict = if right { Verdict::Right } else { Verdict::Wrong };
        Grade { verdict, extracted: Some(answer.to_owned()), rule }
    }

    fn decide(&self, answer: &str, policy: &Policy, fuel: &mut Fuel) -> Result<Outcome, Stop> {
        let outcome = |right, rule| Ok(Outcome { right, rule });
        match &self.meaning {
            Meaning::Choice(letter, options) => options.decide(*letter, answer, policy, fuel),
            Meaning::MultiChoice(letters, count) => match named(answer, *count) {
                Named::Letters(_) if answer.split(' ').any(|word| word.eq_ignore_ascii_case("or")) => {
                    outcome(false, Rule::Hedge)
                }
                Named::Letters(answers) => outcome(answers == *letters, Rule::MultiChoice),
                Named::Nothing => outcome(false, Rule::Unreadable),
            },
            Meaning::YesNo(gold) => match yes_or_no(answer) {
                Some(answer) => outcome(answer == *gold, Rule::YesNo),
                None => outcome(false, Rule::Unreadable),
            },
            Meaning::Text => outcome(folded(answer) == self.folded, Rule::Text),
            Meaning::Formula { answer: gold, wanted } => {
                let spaceless = |text: &str| text.replace(' ', "");
                if spaceless(answer) == spaceless(&self.text) {
                    return outcome(true, Rule::Identical);
                }
                decide_formula(gold, *wanted, answer, policy, fuel)
            }
        }
    }
}

/// Reads an answer in each way it can be meant, until one is right; the first that can be read decides the rule.
fn decide_formula(
    gold: &Answer,
    wanted: Option<AnswerType>,
    answer: &str,
    policy: &Policy,
    fuel: &mut Fuel,
) -> Result<Outcome, Stop> {
    let several = matches!(gold, Answer::Set(_) | Answer::List(_) | Answer::Bracketed(..));
    let mut readers = vec![Reader { letters: Letters::Units, grouped: true }];
    readers.push(Reader { letters: Letters::Variables, grouped: true });
    if gold.is_constant() {
        readers.push(Reader { letters: Letters::TightUnits, grouped: true });
    }
    if several && answer.contains(',') {
        readers.push(Reader { letters: Letters::Units, grouped: false });
    }
    let mut first = Err(Stop::Unreadable);
    for reader in readers {
        let reading = read(answer, reader, fuel).map(|answer| as_wanted(answer, wanted));
        let inexact = wanted == Some(AnswerType::Float);
        let result = reading.and_then(|reading| Comparer { policy, inexact, fuel }.compare(gold, &reading));
        match result {
            Ok(Outcome { right: true, .. }) | Err(Stop::Guard | Stop::Budget) => return result,
            Ok(_) if first.is_err() => first = result,
            _ => {}
        }
    }
    first
}

/// A list is wanted whatever its brackets.
fn as_wanted(answer: Answer, wanted: Option<AnswerType>) -> Answer {
    match answer {
        Answer::Bracketed(_, items, _) if wanted == Some(AnswerType::Set) => Answer::List(items),
        Answer::Set(items) if wanted == Some(AnswerType::Set) => Answer::List(items),
        Answer::Value(value) if wanted == Some(AnswerType::Set) => Answer::List(vec![Answer::Value(value)]),
        other => other,
    }
}

impl Options {
    fn decide(&self, gold: char, answer: &str, policy: &Policy, fuel: &mut Fuel) -> Result<Outcome, Stop> {
        let outcome = |right, rule| Ok(Outcome { right, rule });
        if let Named::Letters(letters) = named(answer, self.count) {
            if letters.len() > 1 {
                return outcome(false, Rule::Hedge);
            }
            return outcome(letters.contains(&gold), Rule::Choice);
        }
        if !policy.map_choices || self.contents.is_empty() {
            return outcome(false, Rule::Unreadable);
        }
        let mut fitting = Vec::new();
        for (i, content) in self.contents.iter().enumerate() {
            let right = match content.decide(answer, policy, fuel) {
                Ok(outcome) => outcome.right,
                Err(Stop::Unreadable | Stop::Unbalanced) => false,
                Err(stop) => return Err(stop),
            };
            if right {
                fitting.push(i);
            }
        }
        match fitting.as_slice() {
            [] => outcome(false, Rule::ChoiceContent),
            [i] => outcome(*i == gold as usize - 'A' as usize, Rule::ChoiceContent),
            _ => outcome(false, Rule::ChoiceAmbiguous),
        }
    }
}

/// What a gold means that is one or several of the options.
fn among(
    text: &str,
    wanted: Option<AnswerType>,
    choices: &[String],
    policy: &Policy,
) -> Result<Meaning, String> {
    let count = choices.len();
    if count > 26 {
        return Err(format!("{count} options, which letters cannot name"));
    }
    let named = named(text, count);
    if let Named::Letters(letters) = &named
        && (wanted == Some(AnswerType::MultiChoice) || letters.len() > 1)
    {
        return if wanted == Some(AnswerType::Choice) {
            Err("several letters for one choice".into())
        } else {
            Ok(Meaning::MultiChoice(letters.clone(), count))
        };
    }
    let content = |choice: &String| {
        let text = normalise(choice);
        let meaning = meaning(&text, None).unwrap_or(Meaning::Text);
        // An option that is a letter or several is compared as the text it is.
        let meaning = match meaning {
            Meaning::Choice(..) | Meaning::MultiChoice(..) => Meaning::Text,
            other => other,
        };
        Gold { folded: folded(&text), text, meaning }
    };
    let contents: Vec<Gold> = unlabelled(choices).iter().map(content).collect();
    let letter = match named {
        Named::Letters(letters) => letters.into_iter().next(),
        Named::Nothing => option_of(text, &contents, policy)?,
    };
    letter
        .map(|letter| Meaning::Choice(letter, Options { count, contents }))
        .ok_or_else(|| format!("none of the {count} options"))
}

/// The letter of the one option that says the same, the same words first.
fn option_of(text: &str, contents: &[Gold], policy: &Policy) -> Result<Option<char>, String> {
    let words = folded(text);
    let alike: Vec<usize> = (0..contents.len()).filter(|&i| contents[i].folded == words).collect();
    let equal = |i: &usize| {
        contents[*i].decide(text, policy, &mut Fuel::default()).is_ok_and(|outcome| outcome.right)
    };
    let fitting = if alike.is_empty() { (0..contents.len()).filter(equal).collect() } else { alike };
    match fitting.as_slice() {
        [] => Ok(None),
        [i] => Ok(char::from_u32('A' as u32 + *i as u32)),
        several => Err(format!("fits {} options", several.len())),
    }
}

/// What a gold means by itself.
fn meaning(text: &str, wanted: Option<AnswerType>) -> Result<Meaning, String> {
    use AnswerType::*;
    let fault = |kind: &str| Err(format!("is no {kind}"));
    match wanted {
        Some(Text) => return Ok(Meaning::Text),
        Some(YesNo) => {
            return yes_or_no(text).map(Meaning::YesNo).ok_or_else(|| "is neither yes nor no".into());
        }
        Some(Choice | MultiChoice) => {
            return match named(text, 26) {
                Named::Letters(letters) if wanted == Some(MultiChoice) => {
                    Ok(Meaning::MultiChoice(letters, 26))
                }
                Named::Letters(letters) if letters.len() == 1 => Ok(choice(letters, 26)),
                _ => fault("letter of an option"),
            };
        }
        None => {
            if let Some(meaning) = by_words(text) {
                return Ok(meaning);
            }
        }
        Some(_) => {}
    }
    let mut fuel = Fuel::default();
    let reading = [Letters::Units, Letters::Variables]
        .into_iter()
        .map(|letters| read(text, Reader { letters, grouped: true }, &mut fuel))
        .reduce(|first, second| if first == Err(Stop::Unreadable) { second } else { first })
        .unwrap_or(Err(Stop::Unreadable));
    let answer = match reading {
        Ok(answer) => as_wanted(answer, wanted),
        Err(Stop::Unreadable) if wanted.is_none() && is_words(text) => return Ok(Meaning::Text),
        Err(Stop::Unreadable) => return Err("cannot be read".into()),
        Err(Stop::Unbalanced) => return Err("its brackets do not match".into()),
        Err(Stop::Guard | Stop::Budget) => return Err("too large to compute".into()),
    };
    let numbers = worth(&answer, &mut fuel)?;
    let fits = match (wanted, &answer) {
        (None | Some(Set), _) => true,
        (Some(Integer), Answer::Value(_)) => numbers.is_some_and(|number| number.fract() == 0.0),
        (Some(Float), Answer::Value(_)) => numbers.is_some(),
        (Some(Expression), Answer::Value(_)) | (Some(Equation), Answer::Relation(_)) => true,
        (Some(Tuple), Answer::Bracketed(..) | Answer::Union(_) | Answer::Ratio(_)) => true,
        (Some(Matrix), Answer::Matrix { .. }) => true,
        _ => false,
    };
    if fits { Ok(Meaning::Formula { answer, wanted }) } else { fault("answer of the stated type") }
}

/// What a constant value is worth; refuses what is worth nothing, as 1/0.
fn worth(answer: &Answer, fuel: &mut Fuel) -> Result<Option<f64>, String> {
    let Answer::Value(value) = answer else { return Ok(None) };
    match value.expression.constant(fuel) {
        Ok(Some(number)) if number.re.is_nan() || number.im.is_nan() => Err("has no value".into()),
        Ok(number) => Ok(number.map(|number| number.re)),
        Err(_) => Err("too large to compute".into()),
    }
}

fn choice(letters: BTreeSet<char>, count: usize) -> Meaning {
    let letter = letters.into_iter().next().unwrap_or('A');
    Meaning::Choice(letter, Options { count, contents: Vec::new() })
}

/// Golds that are letters, yes or no, or words and no formula.
fn by_words(text: &str) -> Option<Meaning> {
    let bare: String = text.chars().filter(|c| !"()., ".contains(*c)).collect();
    let capitals = !bare.is_empty() && bare.chars().all(|c| c.is_ascii_uppercase());
    if let Named::Letters(letters) = named(text, OPTIONS)
        && capitals
        && (letters.len() == 1 || text.contains(','))
    {
        let several = letters.len() > 1;
        return Some(if several { Meaning::MultiChoice(letters, OPTIONS) } else { choice(letters, OPTIONS) });
    }
    if let (Named::Letters(letters), true) = (named(text, OPTIONS), begins_as_option(text)) {
        return (letters.len() == 1).then(|| choice(letters, OPTIONS));
    }
    let lone_word = !text.contains(' ');
    if let Some(says) = yes_or_no(text).filter(|_| lone_word) {
        return Some(Meaning::YesNo(says));
    }
    // Names of points (AB, ABC) and words; a function or a name with a value behind it is a formula.
    let run: String = text.chars().take_while(|c| c.is_ascii_alphabetic()).collect();
    let named_value = text.contains(['=', '<', '>', '≤', '≥', '≈', '∈', '(', '+', '*', '/', '^']);
    let points = names_points(text) && !named_value && !text.contains(|c: char| c.is_ascii_digit());
    let word = run.len() >= 3 && !named_value && !is_number_word(&run) && !is_function(&run);
    (points || word).then_some(Meaning::Text)
}

/// `C. 12` or `(C) 12`.
fn begins_as_option(text: &str) -> bool {
    let mut chars = text.trim_start_matches('(').chars();
    let letter = chars.next().is_some_and(|c| c.is_ascii_uppercase());
    letter && chars.next().is_some_and(|c| ".):".contains(c)) && !chars.as_str().is_empty()
}

/// Whether two capitals stand together, as in `AB` and `\triangle ABC`: names of points, in this order.
fn names_points(text: &str) -> bool {
    text.as_bytes().windows(2).any(|pair| pair.iter().all(u8::is_ascii_uppercase))
}

fn is_function(run: &str) -> bool {
    super::expression::Function::named(run).is_some() || ["pi", "infinity", "infty"].contains(&run)
}

fn is_number_word(run: &str) -> bool {
    super::literal::number_word(run).is_some()
}

/// Whether a text that is no formula is words, or a statement about figures, rather than a broken formula.
fn is_words(text: &str) -> bool {
    let mut run = 0;
    let long = text.chars().any(|c| {
        run = if c.is_alphabetic() { run + 1 } else { 0 };
        run >= 2
    });
    long || text.chars().any(|c| c.is_alphabetic() && !c.is_ascii())
}
