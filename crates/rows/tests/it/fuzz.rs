//! Random damage: no input panics, hangs, or is silently misread.
//!
//! `PROPTEST_CASES=1000000 cargo test -p polity-rows --test it fuzz` runs it for longer.

use std::fs;
use std::io::{Cursor, Read, Write};
use std::sync::LazyLock;

use polity_rows::{
    CompletionRow, Format, FromRow, PreferenceRow, PromptRow, Row, Rows, RowsError, UnpairedRow, write_jsonl,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Map, Value};

use crate::corpus::directory;

/// No regression files: what a run finds becomes a file of the corpus.
fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

/// Every row and every error of some bytes, each row also read as each kind.
fn read_all(bytes: &[u8]) -> Vec<Result<Row, RowsError>> {
    let rows = match Rows::from_reader("some file", Cursor::new(bytes.to_vec())) {
        Ok(rows) => rows,
        Err(error) => return vec![Err(error)],
    };
    let file = rows.file().to_owned();
    let parquet = rows.format() == Format::Parquet;
    let mut all = Vec::new();
    for row in rows {
        match &row {
            Ok(row) => {
                fn typed<T: FromRow>(row: &Row, file: &std::path::Path) -> Result<(), String> {
                    T::from_row(row.clone(), file).map(drop).map_err(|error| error.to_string())
                }
                for result in [
                    typed::<PromptRow>(row, &file),
                    typed::<CompletionRow>(row, &file),
                    typed::<PreferenceRow>(row, &file),
                    typed::<UnpairedRow>(row, &file),
                ] {
                    assert!(result.err().is_none_or(|message| message.starts_with("some file")));
                }
                if let Ok(pair) = PreferenceRow::from_row(row.clone(), &file) {
                    pair.transcript_to_messages();
                }
            }
            Err(error) => assert!(error.to_string().starts_with("some file"), "{error}"),
        }
        all.push(row);
        // A damaged Parquet footer can claim any number of rows of nothing; text cannot.
        if parquet && all.len() > 10_000 {
            break;
        }
        assert!(parquet || all.len() <= 100_000, "more rows than text");
    }
    assert!(!all.is_empty(), "a file without rows is an error");
    all
}

#[derive(Clone, Debug)]
enum Damage {
    Flip(Index, u8),
    Set(Index, u8),
    Insert(Index, &'static [u8]),
    Delete(Index, usize),
    Repeat(Index, usize),
    Truncate(Index),
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let range = |at: &Index, length: usize, bytes: &[u8]| {
            let start = at.index(bytes.len());
            start..(start + length).min(bytes.len())
        };
        match self {
            Damage::Flip(at, bit) => {
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << (bit % 8);
            }
            Damage::Set(at, byte) => {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            Damage::Insert(at, token) => {
                let at = at.index(bytes.len());
                bytes.splice(at..at, token.iter().copied());
            }
            Damage::Delete(at, length) => {
                let range = range(at, *length, bytes);
                bytes.drain(range);
            }
            Damage::Repeat(at, length) => {
                let range = range(at, *length, bytes);
                let copy = bytes[range.clone()].to_vec();
                bytes.splice(range.start..range.start, copy);
            }
            Damage::Truncate(at) => bytes.truncate(at.index(bytes.len())),
        }
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    let tokens: Vec<&'static [u8]> = vec![
        b"\"",
        b"\\",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"\n",
        b"\r\n",
        b"\n\n",
        b"null",
        b"NaN",
        b"1e999",
        b"-0",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\0",
        b"\\ud800",
        b"\xf0\x9f\x98\x80",
        b"\"chosen\":",
        b"\"prompt\":1,",
        b"\n\nHuman:",
        b"\n\nAssistant:",
        b"PAR1",
        b"\x1f\x8b\x08",
        b"\xff\xff\xff\x7f",
        b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
    ];
    prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Damage::Set(at, byte)),
        (any::<Index>(), select(tokens)).prop_map(|(at, token)| Damage::Insert(at, token)),
        (any::<Index>(), 1..40_usize).prop_map(|(at, length)| Damage::Delete(at, length)),
        (any::<Index>(), 1..40_usize).prop_map(|(at, length)| Damage::Repeat(at, length)),
        any::<Index>().prop_map(Damage::Truncate),
    ]
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Whole files to damage.
static SEEDS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let lines = concat!(
        r#"{"prompt":"p é","chosen":"c \"x\" \u00e9","rejected":"r","margin":1.5,"label":0.5,"meta":{"a":[1,null]}}"#,
        "\n",
        r#"{"chosen":"\n\nHuman: q\n\nAssistant: a","rejected":"\n\nHuman: q\n\nAssistant: b"}"#,
        "\n\r\n",
        r#"{"chosen":[{"role":"user","content":"p"},{"role":"assistant","content":"c"}],"rejected":[{"role":"user","content":"p"},{"role":"assistant","content":"r","tool_calls":[{}]}]}"#,
        "\n",
        r#"{"prompt_ids":[1,2],"completion_ids":[3],"chosen_ids":[4],"rejected_ids":[5],"ids":[6],"text":"t","label":true}"#,
        "\n",
    );
    let rows: Vec<Value> = lines
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let list = serde_json::to_vec_pretty(&rows).unwrap();
    let mut seeds = vec![lines.as_bytes().to_vec(), list];
    for name in ["ok_messages.parquet", "ok_gzip_pages.parquet", "label_two.parquet", "no_rows.parquet"] {
        seeds.push(fs::read(directory().join(name)).unwrap());
    }
    seeds
});

/// Gives a few bytes at a time, as a slow pipe does.
struct Trickle(Cursor<Vec<u8>>, usize);

impl Read for Trickle {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let limit = out.len().min(self.1);
        self.0.read(&mut out[..limit])
    }
}

/// Any JSON value with text that exercises escapes.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::from),
        (-1e9..1e9_f64).prop_map(Value::from),
        "[a-z\"\\\\\\n\\t{}\\[\\],:é😀 ]{0,12}".prop_map(Value::String),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![vec(inner.clone(), 0..4).prop_map(Value::Array), object(inner).prop_map(Value::Object),]
    })
}

fn object(values: impl Strategy<Value = Value>) -> impl Strategy<Value = Map<String, Value>> {
    vec(("[a-z\"\\\\{é]{0,4}", values), 0..4).prop_map(|entries| entries.into_iter().collect())
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn noise(
        start in select(vec![&b""[..], b"[", b"{", b"[{", b"PAR1", b"\x1f\x8b\x08", b"\x1f\x8b\x08\0\0\0\0\0\0\xff", b"\xef\xbb\xbf"]),
        noise in vec(any::<u8>(), 0..600),
        end in select(vec![&b""[..], b"]", b"}", b"\x04\0\0\0PAR1"]),
    ) {
        read_all(&[start, &noise[..], end].concat());
    }

    #[test]
    fn damaged_files(seed in any::<Index>(), packed in any::<bool>(), inside in vec(damage(), 0..6), outside in vec(damage(), 0..3)) {
        let mut bytes = SEEDS[seed.index(SEEDS.len())].clone();
        inside.iter().for_each(|damage| damage.apply(&mut bytes));
        if packed {
            bytes = gzip(&bytes);
            outside.iter().for_each(|damage| damage.apply(&mut bytes));
        }
        read_all(&bytes);
    }

    /// A damaged list is read if and only if serde_json reads it as a list of objects, and to the same rows;
    /// our one addition is that a repeated key is refused.
    #[test]
    fn damaged_lists_agree_with_serde_json(damages in vec(damage(), 0..4)) {
        let mut bytes = SEEDS[1].clone();
        damages.iter().for_each(|damage| damage.apply(&mut bytes));
        let ours: Result<Vec<_>, _> = read_all(&bytes).into_iter().map(|row| row.map(|row| row.value)).collect();
        let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
        prop_assume!(text.trim_ascii_start().starts_with(b"["));
        match (ours, serde_json::from_slice::<Vec<Map<String, Value>>>(text)) {
            (Ok(ours), Ok(theirs)) => prop_assert_eq!(ours, theirs),
            (Err(RowsError::DuplicateKey { .. }), Ok(_)) => {}
            (Err(RowsError::Empty { .. }), Ok(theirs)) => prop_assert!(theirs.is_empty()),
            (Err(_), Err(_)) => {}
            (ours, theirs) => prop_assert!(false, "ours {:?}, serde_json {:?}", ours, theirs),
        }
    }

    /// What is written is what is read: as lines, packed lines, or a list, in one piece or a few bytes at a
    /// time.
    #[test]
    fn rows_survive_the_round_trip(rows in vec(object(value()), 1..5), chunk in 1..9_usize) {
        let directory = tempfile::tempdir().unwrap();
        let lines = directory.path().join("rows.jsonl");
        let packed = directory.path().join("rows.jsonl.gz");
        prop_assert_eq!(write_jsonl(&lines, &rows).unwrap(), rows.len());
        write_jsonl(&packed, &rows).unwrap();
        let list = directory.path().join("rows.json");
        fs::write(&list, serde_json::to_vec_pretty(&rows).unwrap()).unwrap();
        for path in [lines, packed, list] {
            let read: Vec<_> = polity_rows::open(&path).unwrap().map(|row| row.unwrap().value).collect();
            prop_assert_eq!(&read, &rows);
            let trickle = Trickle(Cursor::new(fs::read(&path).unwrap()), chunk);
            let read: Vec<_> = Rows::from_reader("t", trickle).unwrap().map(|row| row.unwrap().value).collect();
            prop_assert_eq!(&read, &rows);
        }
    }
}
