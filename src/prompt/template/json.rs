//! `json.dumps`: the `tojson` of transformers, which unlike Jinja's own escapes no markup and keeps order.

use std::fmt::Write as _;

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, Value};

use super::python::{float_text, number_as_float, pairs};

/// `json.dumps(value, ensure_ascii, indent, separators, sort_keys)`, the arguments by place or by name.
pub(super) fn tojson(value: &Value, places: Rest<Value>, names: Kwargs) -> Result<String, Error> {
    let argument = |place: usize, name: &str| -> Result<Value, Error> {
        let named: Option<Value> = names.get(name)?;
        Ok(named.or_else(|| places.get(place).cloned()).unwrap_or_else(|| Value::from(())))
    };
    let indent = argument(1, "indent")?;
    let indent = match indent.kind() {
        ValueKind::None => None,
        ValueKind::String => Some(indent.to_string()),
        _ => Some(" ".repeat(usize::try_from(indent)?.min(64))),
    };
    let separators = argument(2, "separators")?;
    let (item, key) = if separators.is_none() {
        (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned())
    } else {
        (separators.get_item_by_index(0)?.to_string(), separators.get_item_by_index(1)?.to_string())
    };
    let style = JsonStyle {
        ascii: argument(0, "ensure_ascii")?.is_true(),
        sorted: argument(3, "sort_keys")?.is_true(),
        indent,
        item,
        key,
    };
    names.assert_all_used()?;
    let mut out = String::new();
    style.write(value, 0, &mut out)?;
    Ok(out)
}

struct JsonStyle {
    ascii: bool,
    sorted: bool,
    indent: Option<String>,
    item: String,
    key: String,
}

impl JsonStyle {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&json_number(value)),
            ValueKind::String => self.write_text(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.write_all("[", "]", &items, depth, out, |item, out| self.write(item, depth + 1, out))?;
            }
            ValueKind::Map => {
                let mut fields = pairs(value);
                if self.sorted {
                    fields.sort();
                }
                self.write_all("{", "}", &fields, depth, out, |(key, item), out| {
                    self.write_key(key, out)?;
                    out.push_str(&self.key);
                    self.write(item, depth + 1, out)
                })?;
            }
            kind => {
                let detail = format!("a value of type {kind} is not JSON serializable");
                return Err(Error::new(ErrorKind::InvalidOperation, detail));
            }
        }
        Ok(())
    }

    fn write_all<T>(
        &self,
        open: &str,
        close: &str,
        items: &[T],
        depth: usize,
        out: &mut String,
        mut write: impl FnMut(&T, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push_str(open);
        for (index, item) in items.iter().enumerate() {
            out.push_str(if index == 0 { "" } else { &self.item });
            self.new_line(depth + 1, out);
            write(item, out)?;
        }
        if !items.is_empty() {
            self.new_line(depth, out);
        }
        out.push_str(close);
        Ok(())
    }

    fn new_line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    }

    fn write_key(&self, key: &Value, out: &mut String) -> Result<(), Error> {
        match key.kind() {
            ValueKind::String => self.write_text(key.as_str().unwrap_or_default(), out),
            ValueKind::None => out.push_str("\"null\""),
            ValueKind::Bool => out.push_str(if key.is_true() { "\"true\"" } else { "\"false\"" }),
            ValueKind::Number => _ = write!(out, "\"{}\"", json_number(key)),
            kind => {
                let detail = format!("a key of type {kind} is not JSON serializable");
                return Err(Error::new(ErrorKind::InvalidOperation, detail));
            }
        }
        Ok(())
    }

    fn write_text(&self, text: &str, out: &mut String) {
        out.push('"');
        for character in text.chars() {
            match character {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\x08' => out.push_str("\\b"),
                '\x0c' => out.push_str("\\f"),
                '\0'..='\x1f' => _ = write!(out, "\\u{:04x}", character as u32),
                '\x7f'.. if self.ascii => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        _ = write!(out, "\\u{unit:04x}");
                    }
                }
                _ => out.push(character),
            }
        }
        out.push('"');
    }
}

fn json_number(value: &Value) -> String {
    match number_as_float(value) {
        Some(float) => float_text(float, ["NaN", "Infinity", "-Infinity"]),
        None => value.to_string(),
    }
}
