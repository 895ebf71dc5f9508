//! What stands in one column of one row, whichever file it came from.

use serde_json::{Map, Number, Value};

/// A value, or the bytes that JSON has no way to say.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Cell {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    #[cfg_attr(not(feature = "parquet"), expect(dead_code, reason = "JSON has none"))]
    Bytes(Vec<u8>),
    List(Vec<Cell>),
    Record(Vec<(String, Cell)>),
}

impl From<Value> for Cell {
    fn from(value: Value) -> Self {
        match value {
            Value::Null => Cell::Null,
            Value::Bool(flag) => Cell::Bool(flag),
            Value::Number(number) => Cell::Number(number),
            Value::String(text) => Cell::Text(text),
            Value::Array(items) => Cell::List(items.into_iter().map(Cell::from).collect()),
            Value::Object(map) => {
                Cell::Record(map.into_iter().map(|(key, value)| (key, value.into())).collect())
            }
        }
    }
}

impl Cell {
    /// The cell under a path of keys like `reward_model.ground_truth`, unless it is absent or null.
    pub(super) fn get(&self, path: &str) -> Option<&Cell> {
        let Cell::Record(entries) = self else { return None };
        let entry = |key: &str| entries.iter().find(|(name, _)| name == key).map(|(_, cell)| cell);
        let found = match entry(path) {
            None => path.split_once('.').and_then(|(key, rest)| entry(key)?.get(rest)),
            found => found,
        };
        found.filter(|cell| **cell != Cell::Null)
    }

    /// A text, or a number or truth value as one.
    pub(super) fn to_text(&self) -> Option<String> {
        match self {
            Cell::Text(text) => Some(text.clone()),
            Cell::Number(number) => Some(number.to_string()),
            Cell::Bool(flag) => Some(flag.to_string()),
            _ => None,
        }
    }

    pub(super) fn to_number(&self) -> Option<f64> {
        match self {
            Cell::Number(number) => number.as_f64(),
            Cell::Text(text) => text.trim().parse().ok(),
            _ => None,
        }
    }

    /// As JSON, bytes left out.
    pub(super) fn to_json(&self) -> Value {
        match self {
            Cell::Null | Cell::Bytes(_) => Value::Null,
            Cell::Bool(flag) => Value::Bool(*flag),
            Cell::Number(number) => Value::Number(number.clone()),
            Cell::Text(text) => Value::String(text.clone()),
            Cell::List(items) => Value::Array(items.iter().map(Cell::to_json).collect()),
            Cell::Record(entries) => {
                let entry = |(key, cell): &(String, Cell)| (key.clone(), cell.to_json());
                Value::Object(entries.iter().map(entry).collect::<Map<_, _>>())
            }
        }
    }

    /// How a message shows it.
    pub(super) fn brief(&self) -> String {
        match self {
            Cell::Bytes(bytes) => format!("{} bytes", bytes.len()),
            Cell::List(items) => format!("a list of {}", items.len()),
            Cell::Record(entries) => format!("an object of {} keys", entries.len()),
            plain => format!("{:.60}", plain.to_json().to_string()),
        }
    }
}
