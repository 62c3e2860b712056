//! Preference rows into a Parquet file, in the columns that this crate reads back.
//!
//! `prompt`, `chosen` and `rejected` are text, or lists of `{role, content}`; a column has one type, so rows of both kinds do not go together.
//! `label`, `margin` and `weight` are columns if any row has them, null where a row has not.
//!
//! Not here: JSONL (`atomic::write_jsonl`), other rows.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use arrow_array::builder::{ListBuilder, StringBuilder, StructBuilder};
use arrow_array::{ArrayRef, Float64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Fields};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

use crate::atomic::atomic_write;
use crate::error::RowsError;
use crate::text::Text;

/// A comparison, as it is written.
#[derive(Clone, Debug, PartialEq)]
pub struct PairToWrite<'a> {
    /// What is responded to.
    pub prompt: &'a Text,
    /// The better response.
    pub chosen: &'a Text,
    /// The worse one.
    pub rejected: &'a Text,
    /// See [`PreferenceRow`](crate::PreferenceRow).
    pub label: Option<f64>,
    /// See [`PreferenceRow`](crate::PreferenceRow).
    pub margin: Option<f64>,
    /// See [`PreferenceRow`](crate::PreferenceRow).
    pub weight: Option<f64>,
    /// The prompt's category.
    pub category: &'a str,
    /// The comparison it was made from.
    pub comparison_id: &'a str,
}

/// Writes the rows, atomically. Fails if some are plain text and others messages, or a message holds more than a role and a content.
pub fn write_parquet(path: impl AsRef<Path>, rows: &[PairToWrite<'_>]) -> Result<(), RowsError> {
    atomic_write(path, |file| {
        let batch = batch(rows)?;
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
        let mut writer =
            ArrowWriter::try_new(&mut *file, batch.schema(), Some(properties)).map_err(io::Error::other)?;
        writer.write(&batch).map_err(io::Error::other)?;
        writer.close().map_err(io::Error::other)?;
        file.flush()
    })
}

fn batch(rows: &[PairToWrite<'_>]) -> io::Result<RecordBatch> {
    let mut columns: Vec<(&str, ArrayRef)> = vec![
        ("prompt", texts("prompt", rows.iter().map(|row| row.prompt))?),
        ("chosen", texts("chosen", rows.iter().map(|row| row.chosen))?),
        ("rejected", texts("rejected", rows.iter().map(|row| row.rejected))?),
    ];
    let numbers = [
        ("label", rows.iter().map(|row| row.label).collect::<Vec<_>>()),
        ("margin", rows.iter().map(|row| row.margin).collect()),
        ("weight", rows.iter().map(|row| row.weight).collect()),
    ];
    for (name, values) in numbers {
        if values.iter().any(Option::is_some) {
            columns.push((name, Arc::new(Float64Array::from(values))));
        }
    }
    columns.push(("category", Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.category)))));
    columns.push((
        "comparison_id",
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.comparison_id))),
    ));
    RecordBatch::try_from_iter(columns).map_err(io::Error::other)
}

fn texts<'a>(key: &str, texts: impl Iterator<Item = &'a Text> + Clone) -> io::Result<ArrayRef> {
    let plain: Option<Vec<&str>> = texts
        .clone()
        .map(|text| match text {
            Text::Plain(text) => Some(text.as_str()),
            Text::Messages(_) => None,
        })
        .collect();
    if let Some(plain) = plain {
        return Ok(Arc::new(StringArray::from_iter_values(plain)));
    }
    let fields = Fields::from(vec![
        Field::new("role", DataType::Utf8, true),
        Field::new("content", DataType::Utf8, true),
    ]);
    let mut list = ListBuilder::new(StructBuilder::from_fields(fields, 0));
    for (row, text) in texts.enumerate() {
        let Text::Messages(messages) = text else {
            return Err(io::Error::other(format!(
                "row {row} (counted from 0): `{key}` is plain text and others are messages, which no Parquet column can hold \
                 together; write JSONL"
            )));
        };
        for message in messages {
            if let Some(key) = message.extra.keys().next() {
                return Err(io::Error::other(format!(
                    "row {row} (counted from 0): a message has the key `{key}` beside role and content; write JSONL"
                )));
            }
            let person = list.values();
            for (i, text) in [&message.role, &message.content].into_iter().enumerate() {
                person.field_builder::<StringBuilder>(i).expect("both fields are text").append_value(text);
            }
            person.append(true);
        }
        list.append(true);
    }
    Ok(Arc::new(list.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Message, Pair, PreferenceRow};

    fn pair<'a>(
        prompt: &'a Text,
        chosen: &'a Text,
        rejected: &'a Text,
        label: Option<f64>,
    ) -> PairToWrite<'a> {
        let (category, comparison_id) = ("facts", "c1");
        PairToWrite {
            prompt,
            chosen,
            rejected,
            label,
            margin: None,
            weight: Some(3.0),
            category,
            comparison_id,
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.parquet");
        let plain = ["p é", "c", "r"].map(|text| Text::Plain(text.to_owned()));
        let messages = [
            vec![Message::new("user", "p"), Message::new("assistant", "x"), Message::new("user", "q")],
            vec![Message::new("assistant", "c")],
            vec![Message::new("assistant", "r")],
        ]
        .map(Text::Messages);
        for [prompt, chosen, rejected] in [&plain, &messages] {
            let written = [pair(prompt, chosen, rejected, Some(0.75)), pair(prompt, rejected, chosen, None)];
            write_parquet(&path, &written).unwrap();
            let read: Vec<PreferenceRow> = crate::read(&path).unwrap();
            assert_eq!(read.len(), 2);
            let texts = |prompt: &Text, chosen: &Text, rejected: &Text| Pair::Text {
                prompt: prompt.clone(),
                chosen: chosen.clone(),
                rejected: rejected.clone(),
            };
            assert_eq!(read[0].pair, texts(prompt, chosen, rejected));
            assert_eq!((read[0].label, read[0].margin, read[0].weight), (Some(0.75), None, Some(3.0)));
            assert_eq!(read[1].pair, texts(prompt, rejected, chosen));
            assert_eq!(read[1].label, None);
            assert_eq!(read[1].info.extra["category"], "facts");
        }
        let [p, c, r] = &plain;
        let [mp, mc, mr] = &messages;
        let mixed = write_parquet(&path, &[pair(mp, mc, mr, None), pair(p, c, r, None)]).unwrap_err();
        assert!(mixed.to_string().contains("row 1") && mixed.to_string().contains("write JSONL"), "{mixed}");
    }
}
