//! Reads an answer from normalised text: a value, or several of them in some bracket.
//!
//! Commas, relations and brackets are found at the outermost level first, and what stands between them is read as a
//! formula with perhaps a unit behind it.

use super::expression::Expression;
use super::formula::{self, Letters, Manner};
use super::fuel::{DEEPEST, Fuel, Stop};
use super::literal;
use super::number::Number;
use super::units::{self, Tail};

/// What an answer says.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Answer {
    Value(Value),
    Relation(Relation),
    /// A point, or an interval: order and brackets matter.
    Bracketed(char, Vec<Answer>, char),
    Set(Vec<Answer>),
    /// Values with commas or words between them.
    List(Vec<Answer>),
    /// Intervals or inequalities.
    Union(Vec<Answer>),
    /// Three or more numbers with colons between them.
    Ratio(Vec<Expression>),
    Matrix {
        determinant: bool,
        rows: Vec<Vec<Answer>>,
    },
}

/// A formula with what stands behind it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Value {
    pub(super) expression: Expression,
    pub(super) tail: Tail,
}

/// Sides with signs between them.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Relation {
    /// The first side where it is a name for what follows: `x`, `AB`, `f(x)`, `area`.
    pub(super) label: Option<String>,
    /// None where the first side is a name and no formula.
    pub(super) sides: Vec<Option<Answer>>,
    /// Each one of `= ≠ < > ≤ ≥ ≈`.
    pub(super) signs: Vec<char>,
}

impl Relation {
    pub(super) fn is_equation(&self) -> bool {
        self.signs.iter().all(|sign| ['=', '≈'].contains(sign))
    }

    pub(super) fn last(&self) -> Option<&Answer> {
        self.sides.last().and_then(Option::as_ref)
    }
}

impl Answer {
    /// A formula with nothing behind it.
    pub(super) fn plain(expression: Expression) -> Self {
        Answer::Value(Value { expression, tail: Tail::default() })
    }

    /// Whether no variable occurs in its values.
    pub(super) fn is_constant(&self) -> bool {
        match self {
            Answer::Value(value) => value.expression.variables().is_empty(),
            Answer::Relation(_) => false,
            Answer::Ratio(parts) => parts.iter().all(|part| part.variables().is_empty()),
            Answer::Matrix { rows, .. } => rows.iter().flatten().all(Answer::is_constant),
            Answer::Bracketed(_, items, _)
            | Answer::Set(items)
            | Answer::List(items)
            | Answer::Union(items) => items.iter().all(Answer::is_constant),
        }
    }
}

const SIGNS: &str = "=≠<>≤≥≈";
const OPENING: &str = "([{⦃⟨";
const CLOSING: &str = ")]}⦄⟩";

/// How to read what can be read in several ways.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader {
    pub(super) letters: Letters,
    /// Whether `1,234` outside brackets is one number.
    pub(super) grouped: bool,
}

/// Reads a normalised text.
pub(super) fn read(text: &str, reader: Reader, fuel: &mut Fuel) -> Result<Answer, Stop> {
    let text: Vec<char> = text.chars().collect();
    check_brackets(&text)?;
    Reading { reader, plus: None, fuel }.whole(&text)
}

/// Refuses brackets that do not match or lie too deep. `[0, 1)` is fine.
fn check_brackets(text: &[char]) -> Result<(), Stop> {
    let mut open = Vec::new();
    for &c in text {
        if OPENING.contains(c) {
            open.push(c);
        } else if CLOSING.contains(c) {
            let square = |c| "([)]".contains(c);
            let fits = |o: char| {
                square(o) && square(c)
                    || CLOSING.chars().nth(OPENING.chars().position(|x| x == o).unwrap_or(0)) == Some(c)
            };
            if !open.pop().is_some_and(fits) {
                return Err(Stop::Unbalanced);
            }
        }
        if open.len() > DEEPEST {
            return Err(Stop::Guard);
        }
    }
    if open.is_empty() { Ok(()) } else { Err(Stop::Unbalanced) }
}

struct Reading<'a> {
    reader: Reader,
    /// What `±` stands for, once that is decided.
    plus: Option<bool>,
    fuel: &'a mut Fuel,
}

impl Reading<'_> {
    /// A whole answer: perhaps several.
    fn whole(&mut self, text: &[char]) -> Result<Answer, Stop> {
        let (parts, words) = split(text, self.reader.grouped, self.fuel)?;
        match parts.as_slice() {
            [] => Err(Stop::Unreadable),
            [part] => self.part(part),
            parts => {
                let items = self.items(parts)?;
                let ranges = |item: &Answer| match item {
                    Answer::Relation(relation) => !relation.is_equation(),
                    Answer::Bracketed(..) | Answer::Union(_) => true,
                    _ => false,
                };
                let union = words == Some("or") && items.iter().all(ranges);
                Ok(if union { Answer::Union(items) } else { Answer::List(items) })
            }
        }
    }

    /// Several answers; one that stands for two counts as two.
    fn items(&mut self, parts: &[&[char]]) -> Result<Vec<Answer>, Stop> {
        let mut items = Vec::new();
        for part in parts {
            match self.part(part)? {
                Answer::List(more) => items.extend(more),
                item => items.push(item),
            }
        }
        Ok(items)
    }

    /// One answer.
    fn part(&mut self, text: &[char]) -> Result<Answer, Stop> {
        self.fuel.spend(text.len() as u32 + 1)?;
        let text = strip_lead(trimmed(text));
        if text.is_empty() {
            return Err(Stop::Unreadable);
        }
        if let Some(answer) = self.special(text) {
            return answer;
        }
        if spans(text, '⦃') {
            return self.set(&text[1..text.len() - 1]);
        }
        let double = text.iter().any(|c| ['±', '∓'].contains(c));
        if self.plus.is_none() && double {
            self.plus = Some(true);
            let above = self.part(text)?;
            self.plus = Some(false);
            let below = self.part(text)?;
            self.plus = None;
            return Ok(Answer::List(vec![above, below]));
        }
        if let Some(at) = find(text, |c| c == '∈') {
            return self.part(&text[at + 1..]);
        }
        let unions = separate(text, |c| c == '∪');
        if unions.len() > 1 {
            let items = unions.into_iter().map(|part| self.part(part)).collect::<Result<_, _>>()?;
            return Ok(Answer::Union(items));
        }
        if find(text, |c| SIGNS.contains(c)).is_some() {
            return self.relation(text);
        }
        if let Some(bracketed) = self.bracketed(text)? {
            return Ok(bracketed);
        }
        if text.starts_with(&['\\', 'b', 'e', 'g', 'i', 'n']) {
            return self.matrix(text);
        }
        let parts = separate(text, |c| c == ':');
        if parts.len() > 1 {
            return self.ratio(&parts);
        }
        self.value(text).map(Answer::Value)
    }

    /// Signs that are an answer by themselves.
    fn special(&self, text: &[char]) -> Option<Result<Answer, Stop>> {
        let infinite = |number| Answer::plain(Expression::Number(number));
        match text {
            ['∅'] => Some(Ok(Answer::Set(Vec::new()))),
            ['ℝ'] => {
                let ends = vec![infinite(Number::INFINITY.negated()), infinite(Number::INFINITY)];
                Some(Ok(Answer::Bracketed('(', ends, ')')))
            }
            [set @ ('ℕ' | 'ℤ' | 'ℚ' | 'ℂ')] => {
                Some(Ok(Answer::plain(Expression::Variable(set.to_string()))))
            }
            _ => None,
        }
    }

    /// What stands in set braces: items, or a condition behind a bar.
    fn set(&mut self, inside: &[char]) -> Result<Answer, Stop> {
        if let Some(bar) = find(inside, |c| c == '|' || c == ':') {
            let condition = &inside[bar + 1..];
            if find(condition, |c| SIGNS.contains(c) || c == '∈').is_some() {
                return self.part(condition);
            }
        }
        let (parts, _) = split(inside, false, self.fuel)?;
        Ok(Answer::Set(self.items(&parts)?))
    }

    /// A point or an interval, perhaps with a point's name before it.
    fn bracketed(&mut self, text: &[char]) -> Result<Option<Answer>, Stop> {
        let named = text[0].is_ascii_uppercase();
        let name = text.iter().take_while(|c| c.is_ascii_alphanumeric() || "_' ".contains(**c)).count();
        let start = if named && name <= 4 { name } else { 0 };
        let Some(&first) = text.get(start).filter(|c| "([⟨".contains(**c)) else { return Ok(None) };
        let body = &text[start..];
        if !spans(body, first) {
            return Ok(None);
        }
        let (parts, _) = split(&body[1..body.len() - 1], false, self.fuel)?;
        if parts.len() < 2 {
            return Ok(None);
        }
        let items = parts.iter().map(|part| self.part(part)).collect::<Result<_, _>>()?;
        let round = |c| match c {
            '⟨' => '(',
            '⟩' => ')',
            other => other,
        };
        Ok(Some(Answer::Bracketed(round(first), items, round(body[body.len() - 1]))))
    }

    fn relation(&mut self, text: &[char]) -> Result<Answer, Stop> {
        let mut signs = Vec::new();
        let parts = separate(text, |c| {
            let sign = SIGNS.contains(c);
            if sign {
                signs.push(c);
            }
            sign
        });
        let label = is_label(parts[0]).then(|| parts[0].iter().filter(|c| **c != ' ').collect());
        let mut sides = Vec::new();
        for (i, part) in parts.iter().enumerate() {
            sides.push(match self.part(part) {
                Ok(side) => Some(side),
                Err(Stop::Unreadable) if i == 0 && label.is_some() => None,
                Err(stop) => return Err(stop),
            });
        }
        Ok(Answer::Relation(Relation { label, sides, signs }))
    }

    fn matrix(&mut self, text: &[char]) -> Result<Answer, Stop> {
        let text: String = text.iter().collect();
        let kinds = ["pmatrix", "bmatrix", "matrix", "Bmatrix", "smallmatrix", "vmatrix"];
        for kind in kinds {
            let inside = text.strip_prefix(&format!("\\begin{{{kind}}}"));
            let Some(inside) = inside.and_then(|rest| rest.strip_suffix(&format!("\\end{{{kind}}}"))) else {
                continue;
            };
            let mut rows = Vec::new();
            for row in inside.split("\\\\").filter(|row| !row.trim().is_empty()) {
                let row: Vec<char> = row.chars().collect();
                let cells = separate(&row, |c| c == '&');
                rows.push(cells.into_iter().map(|cell| self.part(cell)).collect::<Result<Vec<_>, _>>()?);
            }
            let determinant = kind == "vmatrix";
            return if rows.is_empty() {
                Err(Stop::Unreadable)
            } else {
                Ok(Answer::Matrix { determinant, rows })
            };
        }
        Err(Stop::Unreadable)
    }

    fn ratio(&mut self, parts: &[&[char]]) -> Result<Answer, Stop> {
        let mut values = Vec::new();
        for part in parts {
            values.push(self.value(trimmed(part))?.expression);
        }
        if let [above, below] = values.as_slice() {
            return Ok(Answer::plain(Expression::Quotient(Box::new(above.clone()), Box::new(below.clone()))));
        }
        Ok(Answer::Ratio(values))
    }

    fn value(&mut self, text: &[char]) -> Result<Value, Stop> {
        let manner = Manner { letters: self.reader.letters, plus: self.plus.unwrap_or(true) };
        let (mut expression, end) = formula::read(text, manner, self.fuel)?;
        let rest: String = text[end..].iter().collect();
        let tail = if rest.trim().is_empty() { Some(Tail::default()) } else { units::tail(&rest) };
        let tail = tail.ok_or(Stop::Unreadable)?;
        if tail.scale > 0 {
            let scale = Expression::Number(Number::literal("1", "", "", tail.scale));
            expression = Expression::Product(vec![expression, scale]);
        }
        Ok(Value { expression, tail })
    }
}

/// The change of depth that a place of the text makes.
fn depth_change(text: &[char], at: usize) -> i32 {
    let c = text[at];
    if OPENING.contains(c) {
        return 1;
    }
    if CLOSING.contains(c) {
        return -1;
    }
    if c == '\\' {
        let is = |name: &str| name.chars().enumerate().all(|(i, c)| text.get(at + 1 + i) == Some(&c));
        return i32::from(is("begin{")) - i32::from(is("end{"));
    }
    0
}

/// The parts between characters of the outermost level.
fn separate(text: &[char], mut separates: impl FnMut(char) -> bool) -> Vec<&[char]> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0);
    for at in 0..text.len() {
        depth += depth_change(text, at);
        if depth == 0 && separates(text[at]) {
            parts.push(&text[start..at]);
            start = at + 1;
        }
    }
    parts.push(&text[start..]);
    parts
}

/// The first such character of the outermost level.
fn find(text: &[char], wanted: impl Fn(char) -> bool) -> Option<usize> {
    let mut depth = 0;
    (0..text.len()).find(|&at| {
        depth += depth_change(text, at);
        depth == 0 && wanted(text[at])
    })
}

/// Parts between commas, semicolons and the words "or" and "and" of the outermost level, and the last such word.
fn split<'a>(
    text: &'a [char],
    grouped: bool,
    fuel: &mut Fuel,
) -> Result<(Vec<&'a [char]>, Option<&'static str>), Stop> {
    fuel.spend(text.len() as u32)?;
    let (mut parts, mut start, mut depth, mut joint) = (Vec::new(), 0, 0, None);
    let mut at = 0;
    while at < text.len() {
        depth += depth_change(text, at);
        let word = word_at(text, at);
        let comma = [',', ';'].contains(&text[at]) && !(grouped && literal::is_grouping(text, at));
        let length = word.map_or(1, |(_, length)| length);
        if depth == 0 && (comma || word.is_some()) {
            parts.push(&text[start..at]);
            start = at + length;
            joint = word.map(|(word, _)| word).or(joint);
        }
        at += length;
    }
    parts.push(&text[start..]);
    parts.retain(|part| part.iter().any(|c| *c != ' '));
    Ok((parts, joint))
}

/// The word that joins answers here, if one does, and its length.
fn word_at(text: &[char], at: usize) -> Option<(&'static str, usize)> {
    match text[at] {
        '∨' => return Some(("or", 1)),
        '∧' => return Some(("and", 1)),
        _ => {}
    }
    let before = at.checked_sub(1).map(|i| text[i]);
    if before.is_some_and(|c| c.is_ascii_alphabetic() || c == '\\') {
        return None;
    }
    ["or", "and", "OR", "AND", "Or", "And"].into_iter().find_map(|word| {
        let here = word.chars().enumerate().all(|(i, c)| text.get(at + i) == Some(&c));
        let ends = text.get(at + word.len()).is_none_or(|c| !c.is_ascii_alphabetic());
        let joint = if word.eq_ignore_ascii_case("or") { "or" } else { "and" };
        (here && ends).then_some((joint, word.len()))
    })
}

fn trimmed(text: &[char]) -> &[char] {
    let start = text.iter().take_while(|c| **c == ' ').count();
    let end = text.iter().rev().take_while(|c| [' ', '.'].contains(*c)).count();
    if start + end >= text.len() { &[] } else { &text[start..text.len() - end] }
}

/// Without words and signs before an answer that change nothing.
fn strip_lead(mut text: &[char]) -> &[char] {
    const LEADS: [&str; 12] = [
        "≈",
        "the final answer is",
        "the answer is",
        "final answer:",
        "answer is",
        "answer:",
        "approximately",
        "approx.",
        "about",
        "roughly",
        "around",
        "exactly",
    ];
    while let Some(lead) = LEADS.iter().find(|lead| {
        lead.chars().enumerate().all(|(i, c)| text.get(i).is_some_and(|t| t.to_ascii_lowercase() == c))
    }) {
        text = trimmed(&text[lead.chars().count()..]);
    }
    text
}

/// Whether the bracket at the start is closed by the last character and not before.
fn spans(text: &[char], open: char) -> bool {
    if text.first() != Some(&open) || text.len() < 2 {
        return false;
    }
    let mut depth = 0;
    let first = (0..text.len()).find(|&at| {
        depth += depth_change(text, at);
        depth == 0
    });
    first == Some(text.len() - 1)
}

/// Whether the left of an equation only names what is on its right.
fn is_label(text: &[char]) -> bool {
    let text = trimmed(text);
    let letter = text.iter().any(|c| c.is_alphabetic());
    let plain = !text.iter().any(|c| "+*/^<>-,".contains(*c));
    letter && plain && text.first().is_some_and(|c| !c.is_ascii_digit())
}
