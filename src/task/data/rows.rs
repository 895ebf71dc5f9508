//! Rows of the files that data comes in: JSON lines, JSON, parquet (feature `parquet`), and folders of those.

use super::Place;
use super::cell::Cell;
use super::record::Row;
use crate::error::{Error, Result};
use crate::format::read_bytes;
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// The longest line that is read; pictures as base64 are the largest thing one holds.
const LONGEST: u64 = 1 << 30;

/// Gives every row of a file or folder, or what keeps one from being read, until told to stop by an error.
pub(super) fn each(path: &Path, take: &mut dyn FnMut(Result<Row, (Place, String)>)) -> Result<()> {
    if path.is_dir() {
        return folder(path, take);
    }
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("jsonl" | "ndjson") => lines(path, take),
        Some("json") => document(path, take),
        #[cfg(feature = "parquet")]
        Some("parquet") => super::parquet::rows(path, take),
        #[cfg(not(feature = "parquet"))]
        Some("parquet") => {
            Err(Error::file(path, "this build does not read parquet; build with the feature `parquet`"))
        }
        _ => Err(Error::file(path, "expected a folder, or a file ending in .jsonl, .json or .parquet")),
    }
}

fn lines(path: &Path, take: &mut dyn FnMut(Result<Row, (Place, String)>)) -> Result<()> {
    let unreadable = |cause| Error::file_because(path, "cannot be read", cause);
    let mut reader = BufReader::new(File::open(path).map_err(unreadable)?);
    for line in 1.. {
        let mut bytes = Vec::new();
        let read = reader.by_ref().take(LONGEST).read_until(b'\n', &mut bytes).map_err(unreadable)?;
        if read == 0 {
            break;
        }
        if read as u64 == LONGEST {
            return Err(Error::file(path, format!("line {line} is longer than {LONGEST} bytes")));
        }
        if bytes.trim_ascii().is_empty() {
            continue;
        }
        let place = Place { file: path.to_owned(), row: line };
        take(match serde_json::from_slice::<Value>(&bytes) {
            Ok(value) => Ok(Row { place, key: None, cells: value.into() }),
            Err(broken) => Err((place, format!("not valid json at column {}", broken.column()))),
        });
    }
    Ok(())
}

/// A list of rows, or an object with rows under their ids.
fn document(path: &Path, take: &mut dyn FnMut(Result<Row, (Place, String)>)) -> Result<()> {
    let value: Value = serde_json::from_slice(&read_bytes(path)?).map_err(|broken| {
        let what = format!("line {}, column {}: not valid json", broken.line(), broken.column());
        Error::file_because(path, what, broken)
    })?;
    let rows: Vec<(Option<String>, Value)> = match value {
        Value::Array(rows) => rows.into_iter().map(|row| (None, row)).collect(),
        Value::Object(rows) => rows.into_iter().map(|(key, row)| (Some(key), row)).collect(),
        _ => return Err(Error::file(path, "expected a list of rows, or an object of them")),
    };
    for (row, (key, value)) in (1..).zip(rows) {
        take(Ok(Row { place: Place { file: path.to_owned(), row }, key, cells: value.into() }));
    }
    Ok(())
}

/// The data files of a folder, in order of their names; where there are none, a problem per folder, as Geometry3K's
/// authors publish it.
fn folder(path: &Path, take: &mut dyn FnMut(Result<Row, (Place, String)>)) -> Result<()> {
    let files = entries(path)?;
    let data: Vec<&PathBuf> = files.iter().filter(|file| is_data(file)).collect();
    if !data.is_empty() {
        return data.into_iter().try_for_each(|file| each(file, take));
    }
    let problems: Vec<PathBuf> = files.iter().map(|folder| folder.join("data.json")).collect();
    let mut problems: Vec<&PathBuf> = problems.iter().filter(|file| file.is_file()).collect();
    if problems.is_empty() {
        return Err(Error::file(path, "holds no .jsonl or .parquet file, and no folders with data.json"));
    }
    let number = |file: &&PathBuf| folder_name(file).parse::<u64>().unwrap_or(u64::MAX);
    problems.sort_by_key(|file| (number(file), (*file).clone()));
    for file in problems {
        let place = Place { file: file.clone(), row: 1 };
        take(match serde_json::from_slice::<Value>(&read_bytes(file)?) {
            Ok(value) => {
                let mut cells = Cell::from(value);
                if let Cell::Record(columns) = &mut cells {
                    columns.push(("images".into(), Cell::Text("img_diagram.png".into())));
                }
                Ok(Row { place, key: Some(folder_name(file)), cells })
            }
            Err(broken) => Err((place, format!("not valid json: {broken}"))),
        });
    }
    Ok(())
}

fn entries(path: &Path) -> Result<Vec<PathBuf>> {
    let unreadable = |cause| Error::file_because(path, "cannot be listed", cause);
    let entries = std::fs::read_dir(path).map_err(unreadable)?;
    let mut files =
        entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>().map_err(unreadable)?;
    files.sort();
    Ok(files)
}

fn is_data(file: &Path) -> bool {
    let extension = file.extension().and_then(|extension| extension.to_str());
    file.is_file() && matches!(extension, Some("jsonl" | "ndjson" | "parquet"))
}

fn folder_name(file: &Path) -> String {
    let folder = file.parent().and_then(Path::file_name);
    folder.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
