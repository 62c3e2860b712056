//! Parquet: every kind of column, and other writers' files.

use std::sync::Arc;

use arrow_array::builder::{Int32Builder, ListBuilder, MapBuilder, StringBuilder};
use arrow_array::types::Int8Type;
use arrow_array::{
    Array, ArrayRef, BinaryArray, BinaryViewArray, BooleanArray, Date32Array, Decimal128Array,
    DictionaryArray, FixedSizeBinaryArray, Float16Array, Float32Array, Float64Array, Int8Array, Int16Array,
    Int64Array, LargeBinaryArray, LargeStringArray, NullArray, RecordBatch, StringArray, StringViewArray,
    StructArray, Time32SecondArray, TimestampMicrosecondArray, TimestampMillisecondArray,
    TimestampNanosecondArray, UInt8Array, UInt16Array, UInt32Array, UInt64Array,
};
use arrow_schema::{DataType, Field};
use parquet::arrow::ArrowWriter;
use polity_rows::{Format, Rows, RowsError};
use serde_json::{Value, json};

use crate::corpus::directory;

fn parquet_bytes(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    let batch = RecordBatch::try_from_iter_with_nullable(
        columns.into_iter().map(|(name, array)| (name, array, true)),
    );
    let batch = batch.unwrap();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

fn read(bytes: Vec<u8>) -> Vec<Value> {
    let rows = Rows::from_reader("t.parquet", std::io::Cursor::new(bytes)).unwrap();
    assert_eq!(rows.format(), Format::Parquet);
    rows.map(|row| Value::Object(row.unwrap().value)).collect()
}

/// One column of values, as read back; a missing key stands as null.
#[track_caller]
fn check(array: impl Array + 'static, expect: Value) {
    let found: Vec<Value> = read(parquet_bytes(vec![("x", Arc::new(array))]))
        .into_iter()
        .map(|row| row.get("x").cloned().unwrap_or(Value::Null))
        .collect();
    assert_eq!(Value::Array(found), expect);
}

#[test]
fn scalars() {
    check(BooleanArray::from(vec![Some(true), None, Some(false)]), json!([true, null, false]));
    check(Int8Array::from(vec![-128, 127]), json!([-128, 127]));
    check(Int16Array::from(vec![i16::MIN]), json!([i16::MIN]));
    check(Int64Array::from(vec![i64::MIN, i64::MAX]), json!([i64::MIN, i64::MAX]));
    check(UInt8Array::from(vec![255]), json!([255]));
    check(UInt16Array::from(vec![65535]), json!([65535]));
    check(UInt32Array::from(vec![u32::MAX]), json!([u32::MAX]));
    check(UInt64Array::from(vec![u64::MAX]), json!([u64::MAX]));
    check(Float16Array::from(vec![half::f16::from_f32(0.5)]), json!([0.5]));
    check(Float32Array::from(vec![0.25, f32::NAN]), json!([0.25, "NaN"]));
    check(Float64Array::from(vec![0.1, f64::INFINITY, f64::NEG_INFINITY]), json!([0.1, "inf", "-inf"]));
    check(NullArray::new(2), json!([null, null]));
    let decimals = Decimal128Array::from(vec![150, -5]).with_precision_and_scale(10, 2).unwrap();
    check(decimals, json!([1.5, -0.05]));
    check(Decimal128Array::from(vec![12]).with_precision_and_scale(10, 0).unwrap(), json!([12]));
}

#[test]
fn texts_and_bytes() {
    check(StringArray::from(vec![Some("é"), None, Some("")]), json!(["é", null, ""]));
    check(LargeStringArray::from(vec!["a"]), json!(["a"]));
    check(
        StringViewArray::from(vec!["a view that is longer than twelve bytes"]),
        json!(["a view that is longer than twelve bytes"]),
    );
    let unreadable = json!({"unreadable": "bytes that are not UTF-8"});
    check(BinaryArray::from_vec(vec![b"ab", b"\xff"]), json!(["ab", unreadable]));
    check(LargeBinaryArray::from_vec(vec![b"ab"]), json!(["ab"]));
    check(BinaryViewArray::from(vec![&b"ab"[..]]), json!(["ab"]));
    check(
        FixedSizeBinaryArray::try_from_iter([b"ab", b"\xff\xff"].into_iter()).unwrap(),
        json!(["ab", unreadable]),
    );
    let categories: DictionaryArray<Int8Type> =
        vec![Some("tone"), None, Some("tone"), Some("fact")].into_iter().collect();
    check(categories, json!(["tone", null, "tone", "fact"]));
}

#[test]
fn moments() {
    check(
        Date32Array::from(vec![0, 20_000, i32::MAX]),
        json!(["1970-01-01", "2024-10-04", {"unreadable": "a date outside the calendar"}]),
    );
    check(TimestampMillisecondArray::from(vec![1_500]), json!(["1970-01-01T00:00:01.500"]));
    check(
        TimestampMicrosecondArray::from(vec![1]).with_timezone("+02:00"),
        json!(["1970-01-01T00:00:00.000001Z"]),
    );
    check(TimestampNanosecondArray::from(vec![-1]), json!(["1969-12-31T23:59:59.999999999"]));
    check(Time32SecondArray::from(vec![1]), json!([{"unreadable": "a value of type Time32(s)"}]));
}

#[test]
fn nested() {
    let mut lists = ListBuilder::new(Int32Builder::new());
    lists.append_value([Some(1), None, Some(3)]);
    lists.append_value([]);
    lists.append_null();
    check(lists.finish(), json!([[1, null, 3], [], null]));

    let role: ArrayRef = Arc::new(StringArray::from(vec![Some("user"), Some("tool")]));
    let name: ArrayRef = Arc::new(StringArray::from(vec![None, Some("add")]));
    let messages = StructArray::from(vec![
        (Arc::new(Field::new("role", DataType::Utf8, true)), role),
        (Arc::new(Field::new("name", DataType::Utf8, true)), name),
    ]);
    check(messages, json!([{"role": "user"}, {"role": "tool", "name": "add"}]));

    let mut map = MapBuilder::new(None, StringBuilder::new(), Int32Builder::new());
    map.keys().append_value("a");
    map.values().append_value(1);
    map.append(true).unwrap();
    check(map.finish(), json!([[{"key": "a", "value": 1}]]));
}

#[test]
fn rows_are_counted_across_batches_and_row_groups() {
    let n = 5000;
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..n));
    let batch = RecordBatch::try_from_iter([("id", ids)]).unwrap();
    let properties =
        parquet::file::properties::WriterProperties::builder().set_max_row_group_row_count(Some(700)).build();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let rows = Rows::from_reader("t", std::io::Cursor::new(bytes)).unwrap();
    for (i, row) in rows.enumerate() {
        let row = row.unwrap();
        assert_eq!((row.index, row.line, &row.value["id"]), (i, None, &json!(i)));
    }
}

#[test]
fn a_column_may_appear_once() {
    let one: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let bytes = parquet_bytes(vec![("x", one.clone()), ("x", one)]);
    let error = Rows::from_reader("t", std::io::Cursor::new(bytes)).err().unwrap();
    assert!(matches!(&error, RowsError::DuplicateKey { key, .. } if key == "x"), "{error}");
}

#[test]
fn pyarrow_tables_read_alike_however_they_are_packed() {
    let rows = |name: &str| -> Vec<_> {
        polity_rows::open(directory().join(name)).unwrap().collect::<Result<_, _>>().unwrap()
    };
    let expect = json!({
        "chosen": [{"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "Blue."}],
        "rejected": [{"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "Green."}],
        "margin": 0.5, "category": "tone", "id": 7,
    });
    for name in ["ok_messages.parquet", "ok_gzip_pages.parquet", "ok_packed.parquet.gz"] {
        let rows = rows(name);
        assert_eq!(Value::Object(rows[0].value.clone()), expect, "{name}");
        assert!(!rows[1].value.contains_key("margin"), "{name}");
        assert_eq!(rows.len(), 2, "{name}");
    }
}
