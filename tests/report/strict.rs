//! A parser that accepts less than browsers do: what it accepts, they all read alike.

use std::collections::HashSet;

/// Elements of HTML that have no end tag; of SVG those that have nothing inside.
const EMPTY: [&str; 8] = ["meta", "img", "line", "circle", "rect", "polyline", "polygon", "br"];

/// Attributes that name what is to be fetched, and those that run something.
const FETCHING: [&str; 6] = ["src", "href", "srcset", "action", "data", "poster"];

/// Whether every element closes in order, every attribute is quoted, every `&` begins a character's number, every id is
/// unique, and nothing is fetched or run.
pub(crate) fn check(page: &str) -> Result<(), String> {
    let mut rest = page.strip_prefix("<!DOCTYPE html>\n").ok_or("no doctype")?.trim_end();
    let mut open: Vec<&str> = Vec::new();
    let mut ids = HashSet::new();
    while !rest.is_empty() {
        if let Some(style) = rest.strip_prefix("<style>") {
            let (sheet, after) = style.split_once("</style>").ok_or("a style without an end")?;
            for wrong in ["<", "url(", "@import", "expression("] {
                if sheet.contains(wrong) {
                    return Err(format!("the style holds {wrong}"));
                }
            }
            rest = after;
        } else if let Some(end) = rest.strip_prefix("</") {
            let (name, after) = end.split_once('>').ok_or("an end tag without an end")?;
            if open.pop() != Some(name) {
                return Err(format!("</{name}> closes what is not open"));
            }
            rest = after;
        } else if let Some(tag) = rest.strip_prefix('<') {
            let (name, empty, after) = element(tag, &mut ids)?;
            if empty != EMPTY.contains(&name) {
                return Err(format!("<{name}> must {}be empty", if empty { "not " } else { "" }));
            }
            if ["script", "iframe", "object", "embed", "link", "form", "base"].contains(&name) {
                return Err(format!("<{name}> has no place here"));
            }
            if !empty {
                open.push(name);
            }
            rest = after;
        } else {
            let (words, after) = rest.split_at(rest.find('<').unwrap_or(rest.len()));
            if open.is_empty() {
                return Err(format!("words outside: {words:?}"));
            }
            text(words)?;
            rest = after;
        }
    }
    if open.is_empty() { Ok(()) } else { Err(format!("left open: {open:?}")) }
}

/// What follows `<`: its name, whether it is empty, and the rest.
fn element<'a>(tag: &'a str, ids: &mut HashSet<&'a str>) -> Result<(&'a str, bool, &'a str), String> {
    let length = tag.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(tag.len());
    let (name, mut rest) = tag.split_at(length);
    if name.is_empty() {
        return Err(format!("a bare < before {:?}", tag.chars().take(20).collect::<String>()));
    }
    let mut known = HashSet::new();
    loop {
        if let Some(after) = rest.strip_prefix("/>") {
            return Ok((name, true, after));
        }
        if let Some(after) = rest.strip_prefix('>') {
            return Ok((name, false, after));
        }
        let attribute = rest.strip_prefix(' ').ok_or_else(|| format!("<{name} is not closed"))?;
        let (key, value) = attribute.split_once("=\"").ok_or_else(|| format!("<{name}: no value"))?;
        if key.is_empty() || !key.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
            return Err(format!("<{name}: {key:?} is no name"));
        }
        let (value, after) = value.split_once('"').ok_or_else(|| format!("<{name} {key}: no end"))?;
        text(value)?;
        if value.contains('<') || !known.insert(key) || (key == "id" && !ids.insert(value)) {
            return Err(format!("<{name} {key}={value:?}: twice, or not escaped"));
        }
        if key.starts_with("on") || key == "style" {
            return Err(format!("<{name} {key}> runs, or is styled by itself"));
        }
        if FETCHING.contains(&key) && !value.starts_with("data:image/png;base64,") {
            return Err(format!("<{name} {key}={value:?} is fetched"));
        }
        rest = after;
    }
}

fn text(words: &str) -> Result<(), String> {
    if words.contains('>') {
        return Err(format!("a bare > in {words:?}"));
    }
    for after in words.split('&').skip(1) {
        let number = after.strip_prefix('#').and_then(|rest| rest.split_once(';')).map(|(number, _)| number);
        if number.is_none_or(|number| number.parse::<u32>().is_err()) {
            return Err(format!("a bare & before {after:?}"));
        }
    }
    match words.chars().find(|c| c.is_control() && !"\n\t".contains(*c)) {
        Some(odd) => Err(format!("{odd:?} in {words:?}")),
        None => Ok(()),
    }
}

#[test]
fn the_parser_refuses_what_it_should() {
    let page = |body: &str| check(&format!("<!DOCTYPE html>\n<html><body>{body}</body></html>\n"));
    page("<p id=\"a\">x &#60; y</p><img src=\"data:image/png;base64,\" alt=\"\"/>").unwrap();
    for wrong in [
        "<p>",
        "</p>",
        "<p><b></p></b>",
        "a & b",
        "a > b",
        "<p/>",
        "<img>",
        "<p id=a></p>",
        "<p id=\"a\"></p><p id=\"a\"></p>",
        "<img src=\"https://example.org/a.png\"/>",
        "<a href=\"//example.org\"></a>",
        "<script></script>",
        "<p onclick=\"x\"></p>",
        "<style>@import \"x\"</style>",
        "\u{7}",
    ] {
        assert!(page(wrong).is_err(), "{wrong}");
    }
}
