//! Rows from Parquet, one row group and one batch in memory at a time.
//!
//! Each cell becomes the JSON value it would have had in a JSONL file, so that everything after this file is
//! the same for all formats:
//!
//! | Parquet | JSON |
//! |---|---|
//! | null | the key is left out (a table has every column in every row, JSONL does not) |
//! | boolean, integers, floats, decimals | `true`/`false`, number; a float that is not finite becomes the text `"NaN"`, `"inf"` or `"-inf"`, because JSON has no such number and `null` would hide it |
//! | strings, and bytes that are UTF-8 | text |
//! | lists, structs, maps | list, object, list of `{key, value}` |
//! | dates, timestamps | ISO 8601 text |
//! | categories (dictionary) | the value itself |
//! | anything else | `{"unreadable": "a value of type …"}`: harmless in a column that nobody asks for, an error in one that is needed |
//!
//! The decoder is the `parquet` crate, which panics on some damaged files (60.1.0 divides by zero at a page
//! that claims no values). A panic inside it is caught and reported as any other damage; see [`decode`].
//!
//! Not here: writing Parquet, partitioned directories.

use std::any::Any;
use std::cell::Cell;
use std::fmt::Display;
use std::panic;
use std::path::Path;
use std::sync::{Arc, Once};

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Date32Type, Date64Type, Decimal32Type, Decimal64Type, Decimal128Type, Decimal256Type, Float16Type,
    Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrowPrimitiveType, RecordBatch, StructArray};
use arrow_schema::{DataType, TimeUnit};
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::file::reader::ChunkReader;
use serde_json::{Map, Number, Value};

use crate::Row;
use crate::error::{Place, RowsError};
use crate::footer;
use crate::show::unreadable;

/// Rows decoded at a time. Rows are texts of some kilobytes, so a batch is a few megabytes.
const BATCH_ROWS: usize = 1024;

/// The deepest nesting of columns that is read: as deep as serde_json's, and far from where the decoder's
/// recursion overflows a thread's stack.
const NESTING_MAX: usize = 128;

/// An iterator over the rows of one Parquet file.
pub(crate) struct Table {
    file: Arc<Path>,
    batches: ParquetRecordBatchReader,
    batch: Option<RecordBatch>,
    /// The next row of `batch`.
    batch_row: usize,
    /// The next row of the file.
    row: usize,
}

impl Table {
    pub fn open(file: Arc<Path>, bytes: impl ChunkReader + 'static) -> Result<Table, RowsError> {
        let damaged = |found: String| refused(&file, None, &found);
        if footer::schema_depth(&bytes, NESTING_MAX).is_some_and(|depth| depth > NESTING_MAX) {
            return Err(damaged(format!("columns nested more than {NESTING_MAX} deep")));
        }
        let builder = decode(|| ParquetRecordBatchReaderBuilder::try_new(bytes)).map_err(damaged)?;
        let schema = builder.schema().clone();
        for (i, field) in schema.fields().iter().enumerate() {
            if schema.fields()[..i].iter().any(|before| before.name() == field.name()) {
                return Err(RowsError::DuplicateKey { place: Place::file(&file), key: field.name().clone() });
            }
        }
        let batches = decode(|| builder.with_batch_size(BATCH_ROWS).build()).map_err(damaged)?;
        Ok(Table { file, batches, batch: None, batch_row: 0, row: 0 })
    }

    /// The next row. An error ends the file: its batch is lost.
    pub fn next_row(&mut self) -> Option<Result<Row, (RowsError, bool)>> {
        loop {
            if let Some(batch) = &self.batch
                && self.batch_row < batch.num_rows()
            {
                let mut value = Map::new();
                for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
                    if let Some(cell) = cell(column, self.batch_row) {
                        value.insert(field.name().clone(), cell);
                    }
                }
                let index = self.row;
                self.batch_row += 1;
                self.row += 1;
                return Some(Ok(Row { index, line: None, value }));
            }
            match decode(|| self.batches.next().transpose()) {
                Ok(None) => return None,
                Ok(Some(batch)) => (self.batch, self.batch_row) = (Some(batch), 0),
                Err(error) => return Some(Err((refused(&self.file, Some(self.row), &error), false))),
            }
        }
    }
}

/// Runs the decoder; its errors, and its panics, become text.
///
/// The message that a panic prints is held back, because the error says it. That takes a hook for the whole
/// process, which passes on every panic but those of this thread during `work`. After a panic the decoder
/// must not be used again.
fn decode<T, E: Display>(work: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    thread_local! { static DECODING: Cell<bool> = const { Cell::new(false) } }
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !DECODING.get() {
                before(info);
            }
        }));
    });

    DECODING.set(true);
    let result = panic::catch_unwind(panic::AssertUnwindSafe(work));
    DECODING.set(false);
    match result {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(payload) => Err(panic_text(&*payload).to_owned()),
    }
}

fn panic_text(payload: &(dyn Any + Send)) -> &str {
    match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text,
        _ => "the decoder gave up",
    }
}

fn refused(file: &Path, row: Option<usize>, found: &str) -> RowsError {
    // Each layer of the decoder adds its own, and "unreadable Parquet" says as much.
    const PREFIXES: [&str; 3] = ["Parquet argument error: ", "Parquet error: ", "External: "];
    let mut found = found;
    while let Some(rest) = PREFIXES.iter().find_map(|prefix| found.strip_prefix(prefix)) {
        found = rest;
    }
    let hint = if found.starts_with("columns nested") {
        "is this a file of rows?"
    } else if found.contains("ooter") || found.contains("EOF") || found.contains("eof") {
        "the file was cut short: copy or download it again"
    } else if found.contains("Disabled feature") {
        "write it again with snappy, zstd, gzip or lz4 compression"
    } else {
        "the file is damaged: copy or download it again"
    };
    let place = Box::new(Place { file: file.into(), line: None, row });
    RowsError::Parquet { place, found: found.to_owned(), hint: hint.to_owned() }
}

/// One cell as JSON; `None` for null.
fn cell(array: &dyn Array, i: usize) -> Option<Value> {
    if array.is_null(i) {
        return None;
    }
    fn int<T: ArrowPrimitiveType<Native: Into<Number>>>(array: &dyn Array, i: usize) -> Value {
        Value::Number(array.as_primitive::<T>().value(i).into())
    }
    Some(match array.data_type() {
        DataType::Null => return None,
        DataType::Boolean => Value::Bool(array.as_boolean().value(i)),
        DataType::Int8 => int::<Int8Type>(array, i),
        DataType::Int16 => int::<Int16Type>(array, i),
        DataType::Int32 => int::<Int32Type>(array, i),
        DataType::Int64 => int::<Int64Type>(array, i),
        DataType::UInt8 => int::<UInt8Type>(array, i),
        DataType::UInt16 => int::<UInt16Type>(array, i),
        DataType::UInt32 => int::<UInt32Type>(array, i),
        DataType::UInt64 => int::<UInt64Type>(array, i),
        DataType::Float16 => float(array.as_primitive::<Float16Type>().value(i).into()),
        DataType::Float32 => float(array.as_primitive::<Float32Type>().value(i).into()),
        DataType::Float64 => float(array.as_primitive::<Float64Type>().value(i)),
        DataType::Decimal32(..) => decimal(&array.as_primitive::<Decimal32Type>().value_as_string(i)),
        DataType::Decimal64(..) => decimal(&array.as_primitive::<Decimal64Type>().value_as_string(i)),
        DataType::Decimal128(..) => decimal(&array.as_primitive::<Decimal128Type>().value_as_string(i)),
        DataType::Decimal256(..) => decimal(&array.as_primitive::<Decimal256Type>().value_as_string(i)),
        DataType::Utf8 => array.as_string::<i32>().value(i).into(),
        DataType::LargeUtf8 => array.as_string::<i64>().value(i).into(),
        DataType::Utf8View => array.as_string_view().value(i).into(),
        DataType::Binary => bytes(array.as_binary::<i32>().value(i)),
        DataType::LargeBinary => bytes(array.as_binary::<i64>().value(i)),
        DataType::BinaryView => bytes(array.as_binary_view().value(i)),
        DataType::FixedSizeBinary(_) => bytes(array.as_fixed_size_binary().value(i)),
        DataType::Date32 => iso(array.as_primitive::<Date32Type>().value_as_date(i), ""),
        DataType::Date64 => iso(array.as_primitive::<Date64Type>().value_as_date(i), ""),
        DataType::Timestamp(unit, zone) => {
            // Parquet keeps instants in UTC whatever zone the column shows them in.
            let suffix = if zone.is_some() { "Z" } else { "" };
            match unit {
                TimeUnit::Second => {
                    iso(array.as_primitive::<TimestampSecondType>().value_as_datetime(i), suffix)
                }
                TimeUnit::Millisecond => {
                    iso(array.as_primitive::<TimestampMillisecondType>().value_as_datetime(i), suffix)
                }
                TimeUnit::Microsecond => {
                    iso(array.as_primitive::<TimestampMicrosecondType>().value_as_datetime(i), suffix)
                }
                TimeUnit::Nanosecond => {
                    iso(array.as_primitive::<TimestampNanosecondType>().value_as_datetime(i), suffix)
                }
            }
        }
        DataType::List(_) => list(&array.as_list::<i32>().value(i)),
        DataType::LargeList(_) => list(&array.as_list::<i64>().value(i)),
        DataType::FixedSizeList(..) => list(&array.as_fixed_size_list().value(i)),
        DataType::Struct(_) => object(array.as_struct(), i),
        DataType::Map(..) => {
            let entries = array.as_map().value(i);
            Value::Array((0..entries.len()).map(|k| object(&entries, k)).collect())
        }
        DataType::Dictionary(..) => {
            let dictionary = array.as_any_dictionary();
            let key = usize::try_from(cell(dictionary.keys(), i)?.as_u64()?).ok()?;
            // A damaged file may hold a key past the end of its dictionary.
            return if key < dictionary.values().len() { cell(dictionary.values(), key) } else { None };
        }
        other => unreadable(&format!("a value of type {other}")),
    })
}

fn list(items: &dyn Array) -> Value {
    Value::Array((0..items.len()).map(|k| cell(items, k).unwrap_or(Value::Null)).collect())
}

fn object(fields: &StructArray, i: usize) -> Value {
    let columns = fields.column_names().into_iter().zip(fields.columns());
    Value::Object(columns.filter_map(|(name, column)| Some((name.to_owned(), cell(column, i)?))).collect())
}

fn float(value: f64) -> Value {
    match Number::from_f64(value) {
        Some(number) => Value::Number(number),
        None => Value::String(value.to_string()),
    }
}

/// A decimal as an integer where it is one, otherwise as the nearest float.
fn decimal(text: &str) -> Value {
    match (text.parse::<i64>(), text.parse::<f64>()) {
        (Ok(integer), _) => integer.into(),
        (_, Ok(value)) => float(value),
        _ => unreadable("a decimal"),
    }
}

fn bytes(bytes: &[u8]) -> Value {
    match str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => unreadable("bytes that are not UTF-8"),
    }
}

/// chrono's `Debug` is ISO 8601; a moment outside its calendar (the year 262143) has none.
fn iso(moment: Option<impl std::fmt::Debug>, suffix: &str) -> Value {
    match moment {
        Some(moment) => Value::String(format!("{moment:?}{suffix}")),
        None => unreadable("a date outside the calendar"),
    }
}
