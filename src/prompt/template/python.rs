//! Values as Python prints and tests them, and the environment in which a template finds all of that.

use std::fmt::Write as _;
use std::sync::LazyLock;

use fancy_regex::Regex;
use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, Value};
use serde_json::Value as Json;

use super::{json, method};

/// Makes `environment` behave as the one transformers renders in.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.set_formatter(|out, _, value| {
        out.write_str(&text_of(value)).map_err(|e| Error::from(ErrorKind::WriteFailure).with_source(e))
    });
    environment.set_unknown_method_callback(method::call);
    environment.add_function("raise_exception", |message: &Value| -> Result<Value, Error> {
        Err(Error::from(ErrorKind::InvalidOperation).with_source(Raised(message.to_string())))
    });
    environment.add_filter("tojson", json::tojson);
    environment.add_filter("string", text_of);
    environment.add_filter("trim", |value: &Value, characters: Option<&str>| {
        method::strip(&text_of(value), characters, true, true).to_owned()
    });
    environment.add_filter("int", method::int);
    environment.add_filter("float", method::float);
    environment.add_filter("escape", method::escape);
    environment.add_filter("e", method::escape);
    // To Python, text is a sequence and so is a mapping.
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map | ValueKind::Undefined)
    });
    environment.add_test("iterable", |value: &Value| {
        !matches!(value.kind(), ValueKind::None | ValueKind::Bool | ValueKind::Number | ValueKind::Plain)
    });
}

/// A template's own complaint, kept apart from the engine's errors.
#[derive(Debug)]
struct Raised(String);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// The message of `raise_exception`, if that is what ended the rendering.
pub(super) fn raised(error: &Error) -> Option<String> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(raised) = error.downcast_ref::<Raised>() {
            return Some(raised.0.clone());
        }
        cause = error.source();
    }
    None
}

/// JSON as the values a template works on.
pub(super) fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(*flag),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::from(number),
            (_, Some(number)) => Value::from(number),
            _ => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => Value::from(items.iter().map(value).collect::<Vec<_>>()),
        Json::Object(fields) => {
            Value::from_pairs(fields.iter().map(|(key, field)| (key.as_str(), value(field))))
        }
    }
}

/// `str(value)`.
pub(super) fn text_of(value: &Value) -> String {
    let mut text = String::new();
    match value.kind() {
        ValueKind::String => text.push_str(value.as_str().unwrap_or_default()),
        ValueKind::Undefined => {}
        _ => represent(value, &mut text),
    }
    text
}

/// `repr(value)`.
fn represent(value: &Value, out: &mut String) {
    match value.kind() {
        ValueKind::String => represent_text(value.as_str().unwrap_or_default(), out),
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::Number => match number_as_float(value) {
            Some(float) => out.push_str(&float_text(float, ["nan", "inf", "-inf"])),
            None => _ = write!(out, "{value}"),
        },
        ValueKind::Seq | ValueKind::Iterable => {
            let (open, close) = if value.is_tuple() { ("(", ")") } else { ("[", "]") };
            let items: Vec<Value> = value.try_iter().map(Iterator::collect).unwrap_or_default();
            out.push_str(open);
            for (index, item) in items.iter().enumerate() {
                out.push_str(if index == 0 { "" } else { ", " });
                represent(item, out);
            }
            out.push_str(if value.is_tuple() && items.len() == 1 { "," } else { "" });
            out.push_str(close);
        }
        ValueKind::Map => {
            out.push('{');
            for (index, (key, item)) in pairs(value).into_iter().enumerate() {
                out.push_str(if index == 0 { "" } else { ", " });
                represent(&key, out);
                out.push_str(": ");
                represent(&item, out);
            }
            out.push('}');
        }
        _ => _ = write!(out, "{value}"),
    }
}

fn represent_text(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for character in text.chars() {
        match character {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            _ if character == quote => _ = write!(out, "\\{quote}"),
            ' '..='~' => out.push(character),
            _ if is_printable(character) => out.push(character),
            _ => {
                _ = match character as u32 {
                    code @ ..0x100 => write!(out, "\\x{code:02x}"),
                    code @ ..0x1_0000 => write!(out, "\\u{code:04x}"),
                    code => write!(out, "\\U{code:08x}"),
                }
            }
        }
    }
    out.push(quote);
}

/// `str.isprintable` of one character.
fn is_printable(character: char) -> bool {
    static UNPRINTABLE: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"[\p{C}\p{Z}]").expect("a valid pattern"));
    !UNPRINTABLE.is_match(character.encode_utf8(&mut [0; 4])).unwrap_or(false)
}

/// The entries of a map, in order.
pub(super) fn pairs(map: &Value) -> Vec<(Value, Value)> {
    let keys = map.try_iter().into_iter().flatten();
    keys.map(|key| (key.clone(), map.get_item(&key).unwrap_or_default())).collect()
}

/// The value of a number that is not whole in type.
pub(super) fn number_as_float(value: &Value) -> Option<f64> {
    if value.is_integer() { None } else { f64::try_from(value.clone()).ok() }
}

/// `repr(float)`: the shortest digits, in exponent form below 1e-4 and from 1e16 on.
pub(super) fn float_text(float: f64, [nan, infinity, minus_infinity]: [&str; 3]) -> String {
    if float.is_nan() {
        return nan.into();
    }
    if float.is_infinite() {
        return if float > 0.0 { infinity } else { minus_infinity }.into();
    }
    if float != 0.0 && !(1e-4..1e16).contains(&float.abs()) {
        let text = format!("{float:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, size) = exponent.strip_prefix('-').map_or(('+', exponent), |size| ('-', size));
        return format!("{digits}e{sign}{size:0>2}");
    }
    let text = float.to_string();
    if text.contains('.') { text } else { text + ".0" }
}
