//! Answers that are letters, yes or no, or words.

use super::normalise::normalise;
use std::collections::BTreeSet;

/// How an answer names options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Named {
    /// These letters, capital.
    Letters(BTreeSet<char>),
    /// No letter that we can tell.
    Nothing,
}

/// Words before a letter.
const LEADS: &[&str] = &[
    "the correct answer is",
    "the answer is",
    "answer is",
    "answer:",
    "answer",
    "options",
    "option",
    "choices",
    "choice",
    "only",
    ":",
];

/// The options, of `count`, that a normalised text names: `C`, `(c)`, `C. 45°`, `A and D`, `AD`.
pub(super) fn named(text: &str, count: usize) -> Named {
    let mut text = text.trim();
    while let Some(lead) = LEADS.iter().find(|lead| starts_with(text, lead)) {
        text = text[lead.len()..].trim_start();
    }
    let text = text.trim_matches(['.', ' ', ':']);
    let parts = parts(text);
    let letters: Option<BTreeSet<char>> = parts.iter().map(|part| lone(part, count)).collect();
    if let Some(letters) = letters.filter(|_| !parts.is_empty()) {
        return Named::Letters(letters);
    }
    if let Some(letters) = together(text, count) {
        return Named::Letters(letters);
    }
    // Letters with what they stand for: of every part that begins with one.
    let first = parts.first().and_then(|part| labelled(part, count));
    match first {
        Some(first) => {
            let others = parts[1..].iter().filter_map(|part| labelled(part, count).or(lone(part, count)));
            Named::Letters(std::iter::once(first).chain(others).collect())
        }
        None => Named::Nothing,
    }
}

fn starts_with(text: &str, lead: &str) -> bool {
    let head = text.get(..lead.len()).is_some_and(|head| head.eq_ignore_ascii_case(lead));
    let wordy = lead.ends_with(|c: char| c.is_ascii_alphabetic());
    head && !(wordy && text[lead.len()..].starts_with(|c: char| c.is_ascii_alphanumeric()))
}

/// What stands between commas, semicolons, slashes and the words or and and.
fn parts(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    for part in text.split([',', ';', '/', '&']) {
        let mut start = 0;
        let mut from = 0;
        for word in part.split(' ') {
            if ["or", "and"].iter().any(|joint| word.eq_ignore_ascii_case(joint)) {
                parts.push(&part[start..from]);
                start = from + word.len();
            }
            from += word.len() + 1;
        }
        parts.push(&part[start.min(part.len())..]);
    }
    parts.into_iter().map(str::trim).filter(|part| !part.is_empty()).collect()
}

fn option(letter: char, count: usize) -> Option<char> {
    let letter = letter.to_ascii_uppercase();
    let index = u32::from(letter).checked_sub(u32::from('A'))?;
    (letter.is_ascii_uppercase() && (index as usize) < count).then_some(letter)
}

/// A letter by itself, perhaps in brackets or with a point.
fn lone(part: &str, count: usize) -> Option<char> {
    let part = part.trim_matches(|c: char| "()[]{}.: ".contains(c));
    let mut letters = part.chars();
    let letter = letters.next().filter(|_| letters.as_str().is_empty())?;
    option(letter, count)
}

/// Several capital letters written together or with spaces, each once.
fn together(text: &str, count: usize) -> Option<BTreeSet<char>> {
    let letters: Vec<char> = text.chars().filter(|c| *c != ' ').collect();
    let capital = letters.iter().all(char::is_ascii_uppercase);
    let set: Option<BTreeSet<char>> = letters.iter().map(|letter| option(*letter, count)).collect();
    set.filter(|set| capital && set.len() == letters.len() && set.len() > 1)
}

/// A letter, a mark, and what it stands for: `B. 45°`, `(B) 45°`, `b) 45°`.
fn labelled(part: &str, count: usize) -> Option<char> {
    let (bracket, rest) = match part.strip_prefix(['(', '[']) {
        Some(rest) => (true, rest),
        None => (false, part),
    };
    let mut characters = rest.chars();
    let letter = option(characters.next()?, count)?;
    let mark = characters.next()?;
    let marks = if bracket { ")]" } else { ".):" };
    marks.contains(mark).then_some(letter)
}

/// Whether a normalised text says yes or no; none where it says neither, or both.
pub(super) fn yes_or_no(text: &str) -> Option<bool> {
    let lower = text.to_lowercase();
    let mut words = lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    let say = |word: &str| match word {
        "yes" | "true" => Some(true),
        "no" | "false" => Some(false),
        _ => None,
    };
    let first = say(words.next()?)?;
    words.all(|word| say(word).is_none_or(|other| other == first)).then_some(first)
}

/// A text for comparison: case, spaces, articles and marks at the ends do not count.
pub(super) fn folded(text: &str) -> String {
    let text = normalise(text).to_lowercase();
    let text = text.trim_matches(|c: char| c.is_ascii_punctuation() && !"\\()[]{}|%-+!".contains(c));
    let text = ["the ", "an ", "a "].iter().find_map(|article| text.strip_prefix(article)).unwrap_or(text);
    text.chars().filter(|c| !c.is_whitespace() && !"_-".contains(*c)).collect()
}

/// Options without the letters they begin with, where all of them do, in order.
pub fn unlabelled(choices: &[String]) -> Vec<String> {
    let strip = |(i, choice): (usize, &String)| {
        let text = choice.trim();
        let label = labelled(text, choices.len()).filter(|letter| (*letter as usize) == 'A' as usize + i)?;
        let rest = text.trim_start_matches(['(', '[']).strip_prefix([label, label.to_ascii_lowercase()])?;
        Some(rest[1..].trim().to_owned())
    };
    let stripped: Option<Vec<String>> = choices.iter().enumerate().map(strip).collect();
    stripped.unwrap_or_else(|| choices.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_in_all_their_forms() {
        let letters = |text: &str| match named(text, 5) {
            Named::Letters(letters) => letters.into_iter().collect(),
            Named::Nothing => String::new(),
        };
        for (text, wanted) in [
            ("C", "C"),
            ("(c)", "C"),
            ("C.", "C"),
            ("[C]", "C"),
            ("option C", "C"),
            ("The answer is (C)", "C"),
            ("C: 45°", "C"),
            ("(C) 45°", "C"),
            ("c) 45", "C"),
            ("A or B", "AB"),
            ("A. 3 or B. 4", "AB"),
            ("B, A", "AB"),
            ("ACD", "ACD"),
            ("A C", "AC"),
            ("A. apples, pears", "A"),
            ("F", ""),
            ("ABA", ""),
            ("cab", ""),
            ("A triangle", ""),
            ("45°", ""),
            ("", ""),
            ("optional", ""),
        ] {
            assert_eq!(letters(text), wanted, "{text}");
        }
    }

    #[test]
    fn yes_no_and_both() {
        let says = ["Yes.", "True", "No, never", "yes and no", "maybe", ""].map(yes_or_no);
        assert_eq!(says, [Some(true), Some(true), Some(false), None, None, None]);
    }

    #[test]
    fn texts_fold_together() {
        assert_eq!(folded("The red-circle."), folded("red circle"));
        assert_ne!(folded("red"), folded("blue"));
    }

    #[test]
    fn options_lose_their_letters() {
        let given = ["A. 30°", "B. 45°"].map(String::from);
        assert_eq!(unlabelled(&given), ["30°", "45°"]);
        let mixed = ["A. 30°", "45°"].map(String::from);
        assert_eq!(unlabelled(&mixed), mixed);
    }
}
