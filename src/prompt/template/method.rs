//! Python's text methods where minijinja's compatibility set differs from Python or lacks one.

use minijinja::value::Kwargs;
use minijinja::{Error, State, Value};

use super::python::text_of;

/// `str.isspace` of one character: to Python the separators U+001C to U+001F are space too.
fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\x1c'..='\x1f').contains(&character)
}

/// `str.strip` and its halves; the `trim` filter is the whole.
pub(super) fn strip<'a>(text: &'a str, characters: Option<&str>, left: bool, right: bool) -> &'a str {
    let stripped = |c: char| characters.map_or_else(|| is_space(c), |characters| characters.contains(c));
    let text = if left { text.trim_start_matches(stripped) } else { text };
    if right { text.trim_end_matches(stripped) } else { text }
}

/// The method `name` of a value that minijinja does not know by itself.
pub(super) fn call(
    state: &mut State,
    value: &Value,
    name: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str()
        && let Some(result) = of_text(text, name, arguments)
    {
        return Ok(result);
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, arguments)
}

fn of_text(text: &str, name: &str, arguments: &[Value]) -> Option<Value> {
    // Every argument here is text, none (left out) or a number: anything else is left to the general set.
    let absent = |argument: Option<&Value>| argument.is_none_or(Value::is_none);
    let word = arguments.first().and_then(Value::as_str);
    let words = if word.is_some() || absent(arguments.first()) { Some(word) } else { None };
    let limit = match arguments.get(1) {
        None => Some(usize::MAX),
        Some(limit) => limit.as_i64().map(|limit| usize::try_from(limit).unwrap_or(usize::MAX)),
    };
    Some(match (name, arguments.len()) {
        ("strip", 0 | 1) => strip(text, words?, true, true).into(),
        ("lstrip", 0 | 1) => strip(text, words?, true, false).into(),
        ("rstrip", 0 | 1) => strip(text, words?, false, true).into(),
        ("removeprefix", 1) => text.strip_prefix(word?).unwrap_or(text).into(),
        ("removesuffix", 1) => text.strip_suffix(word?).unwrap_or(text).into(),
        ("title", 0) => title(text).into(),
        ("split", 0..=2) => match words? {
            None => split_at_space(text, limit?).into_iter().collect(),
            Some("") => return None,
            Some(separator) => text.splitn(limit?.saturating_add(1), separator).collect(),
        },
        ("rsplit", 1 | 2) => {
            let separator = word.filter(|separator| !separator.is_empty())?;
            let mut pieces: Vec<&str> = text.rsplitn(limit?.saturating_add(1), separator).collect();
            pieces.reverse();
            pieces.into_iter().collect()
        }
        ("partition" | "rpartition", 1) => {
            let separator = word.filter(|separator| !separator.is_empty())?;
            let first = name == "partition";
            match if first { text.split_once(separator) } else { text.rsplit_once(separator) } {
                Some((head, tail)) => Value::from_iter([head, separator, tail]),
                None if first => Value::from_iter([text, "", ""]),
                None => Value::from_iter(["", "", text]),
            }
        }
        _ => return None,
    })
}

/// `str.split()` without a separator: at runs of space, none at the ends.
fn split_at_space(text: &str, limit: usize) -> Vec<&str> {
    let mut rest = strip(text, None, true, false);
    let mut pieces = Vec::new();
    while !rest.is_empty() {
        let end = if pieces.len() < limit { rest.find(is_space).unwrap_or(rest.len()) } else { rest.len() };
        pieces.push(if end == rest.len() && pieces.len() == limit {
            strip(rest, None, false, true)
        } else {
            &rest[..end]
        });
        rest = strip(&rest[end..], None, true, false);
    }
    pieces
}

/// `str.title`: a letter after a letter is small, any other is large.
fn title(text: &str) -> String {
    let mut titled = String::with_capacity(text.len());
    let mut inside = false;
    for character in text.chars() {
        match inside {
            true => titled.extend(character.to_lowercase()),
            false => titled.extend(character.to_uppercase()),
        }
        inside = character.is_lowercase() || character.is_uppercase();
    }
    titled
}

/// The `escape` filter, as markupsafe spells it.
pub(super) fn escape(value: &Value) -> String {
    let mut escaped = String::new();
    for character in text_of(value).chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\'' => escaped.push_str("&#39;"),
            '"' => escaped.push_str("&#34;"),
            _ => escaped.push(character),
        }
    }
    escaped
}

/// The `int` filter: the default stands for what is no number.
pub(super) fn int(value: &Value, default: Option<Value>, names: Kwargs) -> Result<Value, Error> {
    let named: Option<Value> = names.get("default")?;
    names.assert_all_used()?;
    let from_text = |text: &str| {
        let text = strip(text, None, true, true);
        text.parse::<i64>()
            .ok()
            .or_else(|| text.parse::<f64>().ok().filter(|x| x.is_finite()).map(|x| x as i64))
    };
    let number = match value.as_str() {
        Some(text) => from_text(text).map(Value::from),
        None if value.is_integer() => Some(value.clone()),
        None => f64::try_from(value.clone()).ok().filter(|x| x.is_finite()).map(|x| Value::from(x as i64)),
    };
    Ok(number.or(default).or(named).unwrap_or_else(|| Value::from(0)))
}

/// The `float` filter: the default stands for what is no number.
pub(super) fn float(value: &Value, default: Option<Value>, names: Kwargs) -> Result<Value, Error> {
    let named: Option<Value> = names.get("default")?;
    names.assert_all_used()?;
    let number = match value.as_str() {
        Some(text) => strip(text, None, true, true).parse::<f64>().ok(),
        None => f64::try_from(value.clone()).ok(),
    };
    Ok(number.map(Value::from).or(default).or(named).unwrap_or_else(|| Value::from(0.0)))
}
