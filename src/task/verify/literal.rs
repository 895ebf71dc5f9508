//! Reads numbers as people write them: `1,234`, `.5`, `3e-5`, `0.1\overline{6}`, `2\frac{1}{2}`, `three`.

use super::expression::Expression;
use super::formula::Parser;
use super::fuel::Stop;
use super::number::Number;

const NUMBER_WORDS: &[&str] = &[
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
];

pub(super) fn number_word(run: &str) -> Option<Number> {
    let lower = run.to_ascii_lowercase();
    NUMBER_WORDS.iter().position(|word| *word == lower).map(|value| Number::whole(value as i64))
}

impl Parser<'_> {
    pub(super) fn number(&mut self) -> Result<Expression, Stop> {
        let whole = self.digits(true);
        let (mut decimals, mut repeating) = (String::new(), String::new());
        let point = self.here(0) == Some('.') && whole_or_digit(&whole, self.here(1));
        if point {
            self.at += 1;
            decimals = self.digits(false);
            if self.here(0) == Some('\\') && (self.command_is("overline") || self.command_is("bar")) {
                while self.here(0).is_some_and(|c| c != '{') {
                    self.at += 1;
                }
                self.expect('{')?;
                repeating = self.digits(false);
                self.expect('}')?;
                if repeating.is_empty() {
                    return Err(Stop::Unreadable);
                }
            }
        }
        let exponent = self.power_of_ten()?;
        let value = Expression::Number(Number::literal(&whole, &decimals, &repeating, exponent));
        let mixed = !point && exponent == 0 && !whole.is_empty();
        match self.mixed_part().filter(|_| mixed) {
            Some((part, end)) => {
                self.at = end;
                Ok(Expression::Sum(vec![value, part]))
            }
            None => Ok(value),
        }
    }

    /// Digits, with the commas between groups of three where they may stand.
    fn digits(&mut self, grouped: bool) -> String {
        let mut digits = String::new();
        loop {
            match self.here(0) {
                Some(c) if c.is_ascii_digit() => digits.push(c),
                Some(',') if grouped && is_grouping(self.text, self.at) => {}
                _ => return digits,
            }
            self.at += 1;
        }
    }

    /// `e-5` right behind a number.
    fn power_of_ten(&mut self) -> Result<i32, Stop> {
        if !matches!(self.here(0), Some('e' | 'E')) {
            return Ok(0);
        }
        let signed = matches!(self.here(1), Some('+' | '-'));
        let start = 1 + usize::from(signed);
        let count = (start..).take_while(|&i| self.here(i).is_some_and(|c| c.is_ascii_digit())).count();
        if count == 0 {
            return Ok(0);
        }
        let digits: String = self.text[self.at + start..self.at + start + count].iter().collect();
        let size = digits.parse::<i32>().ok().filter(|size| *size <= 10_000).ok_or(Stop::Guard)?;
        let negative = self.here(1) == Some('-');
        self.at += start + count;
        Ok(if negative { -size } else { size })
    }

    /// The fraction of `2\frac{1}{2}` or `2 1/2`, whole numbers above and below, and where it ends.
    fn mixed_part(&self) -> Option<(Expression, usize)> {
        let rest: String = self.text[self.at..].iter().take(40).collect();
        let (above, below, length) = if let Some(frac) = rest.trim_start().strip_prefix("\\frac") {
            let (above, after) = argument(frac)?;
            let (below, after) = argument(after)?;
            (above, below, rest.len() - after.len())
        } else {
            let (above, after) = rest.strip_prefix(' ')?.split_once('/')?;
            let digits = after.bytes().take_while(u8::is_ascii_digit).count();
            (above, &after[..digits], rest.len() - after.len() + digits)
        };
        let whole = |text: &str| {
            let digits = !text.is_empty() && text.len() < 10 && text.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| Expression::Number(Number::literal(text, "", "", 0)))
        };
        let part = Expression::Quotient(Box::new(whole(above)?), Box::new(whole(below)?));
        // What was measured is all ASCII but for what follows it.
        Some((part, self.at + rest[..length].chars().count()))
    }
}

fn whole_or_digit(whole: &str, next: Option<char>) -> bool {
    let digit = next.is_some_and(|c| c.is_ascii_digit());
    digit || (!whole.is_empty() && (next.is_none() || next == Some('\\') || next == Some(' ')))
}

/// The first argument of a command, in braces or one digit, and what follows it.
fn argument(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start();
    match text.strip_prefix('{') {
        Some(rest) => rest.split_once('}').map(|(inside, rest)| (inside.trim(), rest)),
        None => text.as_bytes().first().filter(|b| b.is_ascii_digit()).map(|_| text.split_at(1)),
    }
}

/// Whether the comma at this place stands inside a number, as in `1,234,567`: groups of three digits after it, one
/// to three before the first, which does not begin with 0.
pub(super) fn is_grouping(text: &[char], at: usize) -> bool {
    let digit = |i: usize| text.get(i).is_some_and(|c: &char| c.is_ascii_digit());
    let group_after = |i: usize| (1..=3).all(|k| digit(i + k)) && !digit(i + 4);
    // To the first comma of the number, then check every group.
    let mut first = at;
    while first >= 4 && text[first - 4] == ',' && group_after(first - 4) {
        first -= 4;
    }
    let before = (1..=4).take_while(|k| first >= *k && digit(first - k)).count();
    let start = first - before;
    let plain =
        start == 0 || !matches!(text[start - 1], '.' | ',') && !text[start - 1].is_ascii_alphanumeric();
    text[at] == ',' && (1..=3).contains(&before) && text[start] != '0' && plain && group_after(at)
}
