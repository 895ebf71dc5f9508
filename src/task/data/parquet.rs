//! Rows of parquet files, as the hub publishes data sets.

use super::Place;
use super::cell::Cell;
use super::record::Row;
use crate::error::{Error, Result};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use serde_json::Number;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Gives every row of a file.
pub(super) fn rows(path: &Path, take: &mut dyn FnMut(Result<Row, (Place, String)>)) -> Result<()> {
    let file = File::open(path).map_err(|cause| Error::file_because(path, "cannot be read", cause))?;
    let reader = guarded(path, || SerializedFileReader::new(file))?;
    let mut rows = guarded(path, || reader.get_row_iter(None))?;
    for number in 1.. {
        let Some(row) = guarded(path, || rows.next().transpose())? else { break };
        let columns = row.into_columns();
        let cells = Cell::Record(columns.into_iter().map(|(name, field)| (name, cell(field))).collect());
        take(Ok(Row { place: Place { file: path.to_owned(), row: number }, key: None, cells }));
    }
    Ok(())
}

/// Does one step of the reader. On some damaged files it panics where it should fail; to us that is the same.
fn guarded<T>(path: &Path, step: impl FnOnce() -> Result<T, ParquetError>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(step)) {
        Ok(result) => result.map_err(|cause| Error::file_because(path, "not valid parquet", cause)),
        Err(_) => Err(Error::file(path, "not valid parquet: the file is damaged")),
    }
}

fn cell(field: Field) -> Cell {
    let float = |number: f64| Number::from_f64(number).map_or(Cell::Null, Cell::Number);
    match field {
        Field::Null => Cell::Null,
        Field::Bool(flag) => Cell::Bool(flag),
        Field::Byte(number) => Cell::Number(number.into()),
        Field::Short(number) => Cell::Number(number.into()),
        Field::Int(number) => Cell::Number(number.into()),
        Field::Long(number) => Cell::Number(number.into()),
        Field::UByte(number) => Cell::Number(number.into()),
        Field::UShort(number) => Cell::Number(number.into()),
        Field::UInt(number) => Cell::Number(number.into()),
        Field::ULong(number) => Cell::Number(number.into()),
        Field::Float(number) => float(f64::from(number)),
        Field::Double(number) => float(number),
        Field::Str(text) => Cell::Text(text),
        Field::Bytes(bytes) => Cell::Bytes(bytes.data().to_vec()),
        Field::Group(row) => {
            Cell::Record(row.into_columns().into_iter().map(|(name, field)| (name, cell(field))).collect())
        }
        Field::ListInternal(list) => Cell::List(list.elements().iter().cloned().map(cell).collect()),
        // Dates, decimals and maps, which no problem is made of.
        other => Cell::Text(other.to_string()),
    }
}
