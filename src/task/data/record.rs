//! One row as a [`Problem`], or what is wrong with it.

use super::cell::Cell;
use super::layout::{Layout, Names};
use super::{Place, Problem};
use crate::prompt::message::ImageReference;
use crate::task::verify::{AnswerType, Gold, Policy};
use serde_json::Map;
use std::path::Path;

/// A row of a file.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) place: Place,
    /// The name by which its file knows it, if it has one beside its columns.
    pub(super) key: Option<String>,
    pub(super) cells: Cell,
}

type Read<T> = Result<T, String>;

/// The name of a row's problem; `number` where the row has none.
pub(super) fn id(row: &Row, layout: &Layout, number: usize) -> String {
    let own = first(&row.cells, &layout.id).and_then(Cell::to_text).or_else(|| row.key.clone());
    match own.unwrap_or_else(|| number.to_string()) {
        id if layout.ids_per_file => format!("{}/{id}", row.place.stem()),
        id => id,
    }
}

/// Reads a row, whose problem is called `id`.
pub(super) fn problem(row: &Row, layout: &Layout, policy: &Policy, id: String) -> Read<Problem> {
    let cells = &row.cells;
    if !matches!(cells, Cell::Record(_)) {
        return Err(format!("expected an object, got {}", cells.brief()));
    }
    let base = row.place.file.parent().unwrap_or(Path::new(""));
    let images = images(cells, layout, base)?;
    if images.is_empty() && layout.needs_image {
        return Err(format!("no picture in {}", listed(&layout.images)));
    }
    let several = match first(cells, &layout.questions) {
        None => &[],
        Some(Cell::List(items)) => items.as_slice(),
        Some(other) => return Err(format!("the questions are {}, expected a list", other.brief())),
    };
    // A row that asks nothing of its own asks the first of several.
    let own = first(cells, &layout.question).or(first(cells, &layout.answer));
    let asking = if own.is_some() { cells } else { several.first().unwrap_or(cells) };
    let alone = asked(asking, row, layout, policy, images.len())?;
    let question = |(number, cells): (usize, &Cell)| -> Read<Problem> {
        let asked = asked(cells, row, layout, policy, images.len());
        let asked = asked.map_err(|fault| format!("question {}: {fault}", number + 1))?;
        Ok(Problem { id: format!("{id}/{}", number + 1), ..asked })
    };
    let mut questions = several.iter().enumerate().map(question).collect::<Read<Vec<Problem>>>()?;
    if own.is_some() && !questions.is_empty() {
        questions.insert(0, Problem { id: format!("{id}/0"), ..alone.clone() });
    }
    Ok(Problem {
        id,
        images,
        subject: label(cells, &layout.subject),
        difficulty: label(cells, &layout.difficulty),
        questions,
        extra: extra(cells, layout),
        ..alone
    })
}

/// Whether a row has this column, or one of its questions has.
pub(super) fn has(row: &Row, layout: &Layout, column: &str) -> bool {
    let several = match first(&row.cells, &layout.questions) {
        Some(Cell::List(items)) => items.as_slice(),
        _ => &[],
    };
    several.iter().chain([&row.cells]).any(|cells| cells.get(column).is_some())
}

/// What is asked in some cells, about pictures that stand elsewhere.
fn asked(cells: &Cell, row: &Row, layout: &Layout, policy: &Policy, pictures: usize) -> Read<Problem> {
    let question = question(cells, layout, pictures)?;
    let choices = choices(cells, layout)?;
    let answer = answer(cells, layout)?;
    let wanted = answer_type(cells, layout, !choices.is_empty());
    let gold = Gold::parse(&answer, wanted, &choices, policy).map_err(|fault| fault.to_string())?;
    Ok(Problem {
        id: String::new(),
        images: Vec::new(),
        question,
        choices,
        answer,
        tolerance: tolerance(cells, layout, gold.answer_type()),
        gold,
        subject: None,
        difficulty: None,
        questions: Vec::new(),
        extra: Map::new(),
        place: row.place.clone(),
    })
}

fn listed(names: &Names) -> String {
    names.join(", ")
}

fn first<'a>(cells: &'a Cell, names: &Names) -> Option<&'a Cell> {
    names.iter().find_map(|name| cells.get(name))
}

fn question(cells: &Cell, layout: &Layout, pictures: usize) -> Read<String> {
    let mut unfit = None;
    for cell in layout.question.iter().filter_map(|name| cells.get(name)) {
        match said(cell) {
            Some(text) => {
                let text = without_marks(&text, pictures);
                if !text.is_empty() {
                    return Ok(text);
                }
            }
            None => unfit = Some(format!("the question is {}, expected a text or messages", cell.brief())),
        }
    }
    match (unfit, layout.fallback_question) {
        (Some(unfit), _) => Err(unfit),
        (None, Some(text)) => Ok(text.to_owned()),
        (None, None) => Err(format!("no question in {}", listed(&layout.question))),
    }
}

/// A text, or what the last user turn of a conversation says.
fn said(cell: &Cell) -> Option<String> {
    let Cell::List(turns) = cell else { return cell.to_text() };
    let user = |turn: &&Cell| turn.get("role").and_then(Cell::to_text).as_deref() == Some("user");
    match turns.iter().rfind(user)?.get("content")? {
        Cell::List(parts) => {
            Some(parts.iter().filter_map(|part| part.get("text")?.to_text()).collect::<Vec<_>>().join("\n"))
        }
        content => content.to_text(),
    }
}

/// Without the marks where pictures stand: they come first. Numbered marks of several pictures are kept, since the words
/// around them say which is meant.
fn without_marks(text: &str, pictures: usize) -> String {
    let mut text = text.replace("<image>", "");
    if pictures < 2 {
        for mark in ["<image1>", "<image 1>"] {
            text = text.replace(mark, "");
        }
    }
    text.trim().to_owned()
}

fn answer(cells: &Cell, layout: &Layout) -> Read<String> {
    let Some(cell) = first(cells, &layout.answer) else {
        return Err(format!("no answer in {}", listed(&layout.answer)));
    };
    let alone = match cell {
        Cell::List(items) if items.len() == 1 => &items[0],
        other => other,
    };
    alone.to_text().ok_or_else(|| format!("the answer is {}, expected a text or a number", cell.brief()))
}

fn answer_type(cells: &Cell, layout: &Layout, options: bool) -> Option<AnswerType> {
    let name = first(cells, &layout.answer_type).and_then(Cell::to_text)?;
    match name.as_str() {
        // Words in which a data set calls for anything that is not a number or a letter.
        "text" | "free-form" | "free_form" => None,
        "multi-choice" | "multiple choice" => Some(AnswerType::Choice),
        // The type of an option's content says nothing about its letter.
        _ if options => AnswerType::named(&name)
            .filter(|kind| matches!(kind, AnswerType::Choice | AnswerType::MultiChoice)),
        name => AnswerType::named(name),
    }
}

fn choices(cells: &Cell, layout: &Layout) -> Read<Vec<String>> {
    match first(cells, &layout.choices) {
        None => Ok(Vec::new()),
        Some(Cell::List(items)) => {
            let texts: Option<Vec<String>> = items.iter().map(Cell::to_text).collect();
            texts.ok_or_else(|| "an option is neither a text nor a number".into())
        }
        // By letter: {"A": ..., "B": ...}.
        Some(Cell::Record(entries)) => {
            let lettered =
                entries.iter().enumerate().all(|(i, (letter, _))| letter.bytes().eq([b'A' + i as u8]));
            let texts: Option<Vec<String>> = entries.iter().map(|(_, option)| option.to_text()).collect();
            texts.filter(|_| lettered).ok_or_else(|| "options: expected texts under A, B, ...".into())
        }
        Some(Cell::Text(text)) if text.trim().is_empty() => Ok(Vec::new()),
        Some(Cell::Text(text)) => {
            let options = if text.trim().starts_with('[') { python_list(text) } else { lettered(text) };
            options.ok_or_else(|| format!("options {text:.60?}: expected a list, or A. ...; B. ..."))
        }
        Some(other) => Err(format!("options are {}, expected a list", other.brief())),
    }
}

/// The texts of a list as Python prints it: `['1', "don't", 3]`.
pub(super) fn python_list(text: &str) -> Option<Vec<String>> {
    let inside = text.trim().strip_prefix('[')?.strip_suffix(']')?;
    let (mut items, mut rest) = (Vec::new(), inside.trim());
    while !rest.is_empty() {
        let quote = rest.chars().next().filter(|c| ['\'', '"'].contains(c));
        let (item, after) = match quote {
            Some(quote) => quoted(&rest[1..], quote)?,
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                (rest[..end].trim().to_owned(), &rest[end..])
            }
        };
        items.push(item);
        rest = after.trim();
        match rest.strip_prefix(',') {
            Some(after) => rest = after.trim(),
            None if rest.is_empty() => break,
            None => return None,
        }
    }
    Some(items)
}

fn quoted(text: &str, quote: char) -> Option<(String, &str)> {
    let mut item = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => match chars.next()?.1 {
                'n' => item.push('\n'),
                't' => item.push('\t'),
                other if ['\\', '\'', '"'].contains(&other) => item.push(other),
                other => item.extend(['\\', other]),
            },
            c if c == quote => return Some((item, &text[at + c.len_utf8()..])),
            c => item.push(c),
        }
    }
    None
}

/// The texts of `A. 1; B. 2; C. 3`, whatever stands between.
fn lettered(text: &str) -> Option<Vec<String>> {
    let mut starts = Vec::new();
    let mut from = 0;
    for letter in 'A'..='Z' {
        let found = ['.', ')', ':', '．', '、'].iter().filter_map(|mark| {
            let label = format!("{letter}{mark}");
            let at = text[from..].match_indices(&label).map(|(at, _)| from + at);
            let apart = |at: &usize| text[..*at].chars().next_back().is_none_or(|c| !c.is_alphanumeric());
            let at = at.filter(apart).min()?;
            Some((at, at + label.len()))
        });
        let Some((start, end)) = found.min() else { break };
        starts.push((start, end));
        from = end;
    }
    if starts.len() < 2 || !text[..starts[0].0].trim().is_empty() {
        return None;
    }
    let ends = starts[1..].iter().map(|(start, _)| *start).chain([text.len()]);
    let trim = |text: &str| text.trim().trim_end_matches([';', ',', '；']).trim().to_owned();
    Some(starts.iter().zip(ends).map(|(&(_, start), end)| trim(&text[start..end])).collect())
}

fn images(cells: &Cell, layout: &Layout, base: &Path) -> Read<Vec<ImageReference>> {
    let numbered: Vec<&Cell> = layout.numbered_images.iter().filter_map(|name| cells.get(name)).collect();
    let found = if numbered.is_empty() {
        layout.images.iter().filter_map(|name| cells.get(name)).map(|cell| vec![cell]).collect()
    } else {
        vec![numbered]
    };
    // A path beside the picture itself need not lead anywhere, so that only the last column's fault counts.
    let mut result = Ok(Vec::new());
    for cells in found {
        let mut images = Vec::new();
        let read: Read<()> = cells.into_iter().try_for_each(|cell| pictures(cell, layout, base, &mut images));
        result = read.map(|()| images);
        if result.as_ref().is_ok_and(|images| !images.is_empty()) {
            break;
        }
    }
    result
}

fn pictures(cell: &Cell, layout: &Layout, base: &Path, images: &mut Vec<ImageReference>) -> Read<()> {
    match cell {
        Cell::List(items) => return items.iter().try_for_each(|item| pictures(item, layout, base, images)),
        Cell::Null => {}
        Cell::Bytes(bytes) => images.push(encoded(bytes.clone())?),
        Cell::Text(text) => images.push(written(text, layout, base)?),
        Cell::Record(_) => match (cell.get("bytes"), cell.get("path")) {
            (Some(Cell::Bytes(bytes)), _) => images.push(encoded(bytes.clone())?),
            (Some(Cell::Text(text)), _) => {
                let reference = ImageReference::from_base64(text).map_err(|fault| fault.to_string())?;
                images.push(reference);
            }
            (None, Some(Cell::Text(path))) => images.push(written(path, layout, base)?),
            _ => return Err(format!("a picture is {}, expected bytes or a path in it", cell.brief())),
        },
        Cell::Bool(_) | Cell::Number(_) => return Err(format!("a picture is {}", cell.brief())),
    }
    Ok(())
}

fn encoded(bytes: Vec<u8>) -> Read<ImageReference> {
    if bytes.is_empty() { Err("a picture of no bytes".into()) } else { Ok(ImageReference::Bytes(bytes)) }
}

/// A path, a data URL, or base64.
fn written(text: &str, layout: &Layout, base: &Path) -> Read<ImageReference> {
    const SHORTEST: usize = 64;
    if text.trim().is_empty() {
        return Err("a picture without a path".into());
    }
    if let Some(bytes) = ImageReference::from_base64(text).ok().filter(|_| text.len() >= SHORTEST)
        && !base.join(text).is_file()
    {
        return Ok(bytes);
    }
    match ImageReference::parse(text).map_err(|fault| fault.to_string())? {
        ImageReference::Path(path) => {
            let places = [base.join(layout.folder).join(&path), base.join(&path)];
            let found = places.iter().find(|place| place.is_file());
            found
                .cloned()
                .map(ImageReference::Path)
                .ok_or_else(|| format!("picture {} is missing", path.display()))
        }
        bytes => Ok(bytes),
    }
}

/// How far from a number an answer may lie: half of the last decimal that counts.
fn tolerance(cells: &Cell, layout: &Layout, kind: AnswerType) -> Option<f64> {
    let decimals = first(cells, &layout.precision).and_then(Cell::to_number);
    let decimals = decimals.filter(|decimals| (0.0..=12.0).contains(decimals));
    let half = decimals.map(|decimals| 0.5 * libm::pow(10.0, -decimals));
    half.or(layout.tolerance).filter(|_| kind == AnswerType::Float)
}

/// A text, or texts with commas between.
fn label(cells: &Cell, names: &Names) -> Option<String> {
    let label = match first(cells, names)? {
        Cell::List(items) => items.iter().filter_map(Cell::to_text).collect::<Vec<_>>().join(", "),
        other => other.to_text()?,
    };
    Some(label.trim().to_owned()).filter(|label| !label.is_empty())
}

/// Every column that is no picture and nothing that a problem has a field for.
fn extra(cells: &Cell, layout: &Layout) -> Map<String, serde_json::Value> {
    let Cell::Record(entries) = cells else { return Map::new() };
    let fields = [
        &layout.id,
        &layout.images,
        &layout.question,
        &layout.answer,
        &layout.choices,
        &layout.numbered_images,
        &layout.questions,
    ];
    let taken = |key: &String| fields.iter().any(|names| names.iter().any(|name| name == key));
    let free =
        entries.iter().filter(|(key, cell)| !taken(key) && !matches!(cell, Cell::Null | Cell::Bytes(_)));
    free.map(|(key, cell)| (key.clone(), cell.to_json())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_in_one_text() {
        assert_eq!(python_list(r#"['1', "don't", 'a\'b', 3]"#).unwrap(), ["1", "don't", "a'b", "3"]);
        assert_eq!(python_list(r"['\\alpha', '\beta']").unwrap(), [r"\alpha", r"\beta"]);
        assert_eq!(python_list("[]"), Some(Vec::new()));
        assert_eq!([python_list("['a"), python_list("['a' 'b']"), python_list("")], [None, None, None]);
        assert_eq!(lettered("A. 1;B. 2 ; C. No answer").unwrap(), ["1", "2", "No answer"]);
        assert_eq!(lettered("A) CA. x\nB) y").unwrap(), ["CA. x", "y"]);
        assert_eq!(lettered("no options"), None);
    }

    #[test]
    fn marks_of_pictures_go_where_there_is_one() {
        assert_eq!(without_marks("<image>Find x.", 1), "Find x.");
        assert_eq!(without_marks("In <image1>, find x.", 1), "In , find x.");
        assert_eq!(without_marks("<image 1> or <image 2>?", 2), "<image 1> or <image 2>?");
    }
}
