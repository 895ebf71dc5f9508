//! Typed reading of JSON files whose every complaint names file, key and value.
//!
//! The files of a model folder are written by many programs over many years, so they are read key by key
//! from a parsed tree rather than by derived deserialisers: a key may have three spellings, and an error
//! has to say which one was wrong. [`Object`] is a position in such a tree. `null` counts as absent, as it
//! does in the Python that wrote it.

use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// Nothing a model folder keeps as JSON is larger, tokenizers included.
const LARGEST_FILE: u64 = 256 << 20;

/// A parsed JSON file and where it came from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Document {
    path: PathBuf,
    value: Value,
}

impl Document {
    /// Reads and parses `path`.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        Self::parse(path, &read_bytes(path)?)
    }

    /// Parses the bytes of `path`. The parser refuses nesting deeper than 128, so depth cannot exhaust the stack.
    pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let value = serde_json::from_slice(bytes).map_err(|broken| {
            let what = format!("line {}, column {}: not valid json", broken.line(), broken.column());
            Error::file_because(path, what, broken)
        })?;
        Ok(Self { path: path.to_owned(), value })
    }

    /// The file's outermost object.
    pub(crate) fn root(&self) -> Result<Object<'_>> {
        match &self.value {
            Value::Object(map) => Ok(Object { file: &self.path, at: String::new(), map }),
            other => Err(Error::file(&self.path, format!("expected a json object, got {}", brief(other)))),
        }
    }
}

/// The bytes of a plain file of reasonable size (a pipe or a device would block or never end).
pub(crate) fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let unreadable = |cause| Error::file_because(path, "cannot be read", cause);
    let facts = std::fs::metadata(path).map_err(unreadable)?;
    if !facts.is_file() {
        return Err(Error::file(path, "expected a plain file"));
    }
    if facts.len() > LARGEST_FILE {
        let what = format!("{} bytes is more than the {LARGEST_FILE} such a file may have", facts.len());
        return Err(Error::file(path, what));
    }
    std::fs::read(path).map_err(unreadable)
}

/// An object inside a [`Document`], knowing its file and its path of keys.
#[derive(Debug, Clone)]
pub(crate) struct Object<'a> {
    file: &'a Path,
    at: String,
    map: &'a Map<String, Value>,
}

impl<'a> Object<'a> {
    /// The value under `key`, unless it is absent or `null`.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// True where `key` is written, even as `null`.
    pub(crate) fn mentions(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// Every key and value, in the file's order.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.map.iter()
    }

    /// An error about `key` of this object.
    pub(crate) fn fault(&self, key: &str, what: impl std::fmt::Display) -> Error {
        Error::file(self.file, format!("{}{key}: {what}", self.at))
    }

    fn expected<T>(&self, key: &str, value: &Value, kind: impl std::fmt::Display) -> Result<T> {
        Err(self.fault(key, format!("expected {kind}, got {}", brief(value))))
    }

    /// The object under `key`.
    pub(crate) fn object(&self, key: &str) -> Result<Option<Object<'a>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => {
                Ok(Some(Object { file: self.file, at: format!("{}{key}.", self.at), map }))
            }
            Some(other) => self.expected(key, other, "an object"),
        }
    }

    /// The object under `key`, which must be there.
    pub(crate) fn required_object(&self, key: &str) -> Result<Object<'a>> {
        self.object(key)?.ok_or_else(|| self.fault(key, "missing, expected an object"))
    }

    /// The string under `key`.
    pub(crate) fn string(&self, key: &str) -> Result<Option<&'a str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => self.expected(key, other, "a string"),
        }
    }

    /// The boolean under `key`.
    pub(crate) fn boolean(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => self.expected(key, other, "true or false"),
        }
    }

    /// The finite number under `key`.
    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) if number.is_finite() => Ok(Some(number)),
                _ => self.expected(key, value, "a finite number"),
            },
        }
    }

    /// The number above zero under `key`.
    pub(crate) fn positive(&self, key: &str) -> Result<Option<f64>> {
        match self.number(key)? {
            Some(number) if number <= 0.0 => {
                Err(self.fault(key, format!("expected a number above 0, got {number}")))
            }
            number => Ok(number),
        }
    }

    /// The whole number under `key`, within `range`.
    pub(crate) fn whole(&self, key: &str, range: RangeInclusive<usize>) -> Result<Option<usize>> {
        self.get(key).map(|value| self.whole_value(key, value, range)).transpose()
    }

    /// The list of whole numbers under `key`, each within `range`; a lone number is a list of one.
    pub(crate) fn wholes(&self, key: &str, range: RangeInclusive<usize>) -> Result<Option<Vec<usize>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let items = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        items.iter().map(|item| self.whole_value(key, item, range.clone())).collect::<Result<_>>().map(Some)
    }

    fn whole_value(&self, key: &str, value: &Value, range: RangeInclusive<usize>) -> Result<usize> {
        let whole = value.as_u64().and_then(|number| usize::try_from(number).ok());
        match whole.filter(|number| range.contains(number)) {
            Some(number) => Ok(number),
            None => {
                let kind = format!("a whole number from {} to {}", range.start(), range.end());
                self.expected(key, value, kind)
            }
        }
    }

    /// The list of finite numbers under `key`.
    pub(crate) fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let numbers: Option<Vec<f64>> =
            value.as_array().and_then(|items| items.iter().map(Value::as_f64).collect());
        match numbers {
            Some(numbers) if numbers.iter().all(|number| number.is_finite()) => Ok(Some(numbers)),
            _ => self.expected(key, value, "a list of finite numbers"),
        }
    }

    /// The list of strings under `key`.
    pub(crate) fn strings(&self, key: &str) -> Result<Option<Vec<&'a str>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let texts: Option<Vec<&str>> =
            value.as_array().and_then(|items| items.iter().map(Value::as_str).collect());
        match texts {
            Some(texts) => Ok(Some(texts)),
            None => self.expected(key, value, "a list of strings"),
        }
    }
}

/// A value as an error message shows it: short, whatever its size.
pub(crate) fn brief(value: &Value) -> String {
    const LONGEST: usize = 60;
    match value {
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(map) => format!("an object of {} keys", map.len()),
        plain => {
            let text = plain.to_string();
            match text.char_indices().nth(LONGEST) {
                Some((end, _)) => format!("{}…", &text[..end]),
                None => text,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Document> {
        Document::parse(Path::new("config.json"), text.as_bytes())
    }

    #[test]
    fn broken_json_names_line_and_column() {
        let error = parse("{\n  \"a\": }").unwrap_err();
        assert_eq!(error.to_string(), "config.json: line 2, column 8: not valid json");
    }

    #[test]
    fn deep_nesting_is_an_error_not_an_overflow() {
        let deep = format!("{}{}", "[".repeat(1_000_000), "]".repeat(1_000_000));
        assert!(parse(&deep).unwrap_err().to_string().contains("line 1, column 128"));
    }

    #[test]
    fn faults_name_the_whole_path_of_keys_and_the_value() {
        let document =
            parse(r#"{"text_config": {"heads": -3, "list": [1, 2], "ok": 7, "none": null}}"#).unwrap();
        let text = document.root().unwrap().required_object("text_config").unwrap();
        assert_eq!(text.whole("ok", 1..=9).unwrap(), Some(7));
        assert_eq!(text.whole("none", 1..=9).unwrap(), None);
        assert_eq!(text.wholes("list", 1..=9).unwrap(), Some(vec![1, 2]));
        assert_eq!(text.wholes("ok", 1..=9).unwrap(), Some(vec![7]));
        let faults = [
            text.whole("heads", 1..=9).unwrap_err(),
            text.whole("ok", 1..=6).unwrap_err(),
            text.boolean("list").unwrap_err(),
            text.required_object("gone").unwrap_err(),
        ];
        let expected = [
            "config.json: text_config.heads: expected a whole number from 1 to 9, got -3",
            "config.json: text_config.ok: expected a whole number from 1 to 6, got 7",
            "config.json: text_config.list: expected true or false, got a list of 2",
            "config.json: text_config.gone: missing, expected an object",
        ];
        assert_eq!(faults.map(|fault| fault.to_string()), expected);
    }
}
