//! CSV and TSV with a header line, as rows of text.
//!
//! An empty cell counts as absent. Errors name the line a record starts on, quotes that span lines included.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use csv::{ReaderBuilder, StringRecord};
use polity_rows::{Place, Row, RowsError};
use serde_json::{Map, Value};

use crate::error::Result;

pub(super) fn open(
    path: &Path,
    delimiter: u8,
) -> Result<Box<dyn Iterator<Item = std::result::Result<Row, RowsError>>>> {
    let file = File::open(path).map_err(|source| RowsError::Open { file: path.to_owned(), source })?;
    let mut reader = ReaderBuilder::new().delimiter(delimiter).from_reader(BufReader::new(file));
    let headers = reader.headers().map_err(|error| refused(path, &error))?.clone();
    let headers: Vec<String> =
        headers.iter().map(|name| name.trim_start_matches('\u{feff}').trim().to_owned()).collect();
    let place = Box::new(Place { file: path.into(), line: Some(1), row: None });
    for (i, name) in headers.iter().enumerate() {
        if headers[..i].contains(name) {
            return Err(RowsError::DuplicateKey { place, key: name.clone() }.into());
        }
    }
    let path = path.to_owned();
    let mut index = 0;
    Ok(Box::new(reader.into_records().map(move |record| {
        let record = record.map_err(|error| refused(&path, &error))?;
        let line = record.position().map(|position| position.line() as usize);
        let row = Row { index, line, value: object(&headers, &record) };
        index += 1;
        Ok(row)
    })))
}

fn object(headers: &[String], record: &StringRecord) -> Map<String, Value> {
    let cells = headers.iter().zip(record).filter(|(_, cell)| !cell.trim().is_empty());
    cells.map(|(name, cell)| (name.clone(), Value::String(cell.to_owned()))).collect()
}

fn refused(path: &Path, error: &csv::Error) -> RowsError {
    let line = error.position().map(|position| position.line() as usize);
    let place = Box::new(Place { file: path.into(), line, row: None });
    let (found, hint) = match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => (
            format!("a record of {len} fields where the header has {expected_len}"),
            "a field with a comma, a quote or a line break needs quotes around it".to_owned(),
        ),
        csv::ErrorKind::Utf8 { .. } => {
            ("bytes that are not UTF-8".to_owned(), "save the file as UTF-8".to_owned())
        }
        _ => (error.to_string(), String::new()),
    };
    RowsError::Format { place, found, hint }
}
