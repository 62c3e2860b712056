//! Rows from text: JSONL (one object a line) and JSON (one list of objects).
//!
//! Both are streamed: one row is in memory at a time. A row is cut out of the stream as bytes (by the line
//! break, or by counting brackets outside strings), checked to be UTF-8, and parsed by serde_json, with one
//! addition: a key that appears twice in one object is an error, where serde_json keeps the last.
//!
//! Accepted without a word: a byte order mark at the start, CRLF line ends, blank lines, no line break at the
//! end.
//!
//! Not here: unpacking and the choice of format (`source.rs`), what the keys mean (`typed.rs`).

use std::io::{self, BufRead, Read};
use std::path::Path;
use std::sync::Arc;

use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::Row;
use crate::error::{Place, RowsError};
use crate::show::kind_of;
use crate::source::Input;

/// The longest row that is read, in bytes: a guard against a file that is not rows at all, or that unpacks to
/// gigabytes without a line break.
pub const ROW_BYTES_MAX: u64 = 1 << 28;

/// JSONL: an iterator over the lines that are not blank.
pub(crate) struct Lines {
    file: Arc<Path>,
    input: Input,
    buffer: Vec<u8>,
    line: usize,
    /// Offset of the current line's first byte in the unpacked file.
    byte: u64,
    row: usize,
}

impl Lines {
    /// `byte` is how much of the stream was read already: the byte order mark.
    pub fn new(file: Arc<Path>, input: Input, byte: u64) -> Lines {
        Lines { file, input, buffer: Vec::new(), line: 0, byte, row: 0 }
    }

    /// The next row; the flag says whether a later row can still be read after an error.
    pub fn next_row(&mut self) -> Option<Result<Row, (RowsError, bool)>> {
        loop {
            self.byte += self.buffer.len() as u64;
            self.buffer.clear();
            self.line += 1;
            let read = (&mut self.input).take(ROW_BYTES_MAX + 1).read_until(b'\n', &mut self.buffer);
            match read {
                Err(error) => {
                    let last = (self.line > 1).then_some(self.line - 1);
                    return Some(Err((read_error(&self.file, last, error), false)));
                }
                Ok(0) => return None,
                Ok(_) => {}
            }
            if self.buffer.len() as u64 > ROW_BYTES_MAX {
                return Some(Err((too_long(&self.file, self.line), false)));
            }
            if self.buffer.trim_ascii().is_empty() {
                continue;
            }
            let index = self.row;
            self.row += 1;
            // Without its line break, so that an error at its end is on this line and not the next.
            let bytes = self.buffer.trim_ascii_end();
            let piece = Piece { bytes, line: self.line, column: 1, byte: self.byte, lines: true };
            return Some(
                piece
                    .parse(&self.file)
                    .map(|value| Row { index, line: Some(self.line), value })
                    .map_err(|error| (error, true)),
            );
        }
    }
}

/// JSON: an iterator over the elements of the one list in the file.
pub(crate) struct List {
    file: Arc<Path>,
    input: Input,
    buffer: Vec<u8>,
    at: At,
    row: usize,
    state: ListState,
}

#[derive(Clone, Copy, PartialEq)]
enum ListState {
    Before,
    Inside,
    After,
}

/// A position in the unpacked file.
#[derive(Clone, Copy)]
struct At {
    /// Counted from 1.
    line: usize,
    /// Bytes since the last line break, counted from 1.
    column: usize,
    /// Counted from 0.
    byte: u64,
}

impl At {
    fn step(&mut self, byte: u8) {
        self.byte += 1;
        if byte == b'\n' {
            self.line += 1;
            self.column = 1;
        } else {
            self.column += 1;
        }
    }
}

impl List {
    /// `byte` is how much of the stream was read already: the byte order mark.
    pub fn new(file: Arc<Path>, input: Input, byte: u64) -> List {
        let at = At { line: 1, column: 1, byte };
        List { file, input, buffer: Vec::new(), at, row: 0, state: ListState::Before }
    }

    /// The next row. Every error but a wrong type ends the file: after malformed JSON there is no telling
    /// where the next row starts.
    pub fn next_row(&mut self) -> Option<Result<Row, (RowsError, bool)>> {
        let start = match self.next_element() {
            Err(error) => return Some(Err((error, false))),
            Ok(None) => return None,
            Ok(Some(start)) => start,
        };
        let index = self.row;
        self.row += 1;
        let piece = Piece {
            bytes: &self.buffer,
            line: start.line,
            column: start.column,
            byte: start.byte,
            lines: false,
        };
        Some(piece.parse(&self.file).map(|value| Row { index, line: Some(start.line), value }).map_err(
            |error| {
                let readable =
                    matches!(error, RowsError::NotAnObject { .. } | RowsError::DuplicateKey { .. });
                (error, readable)
            },
        ))
    }

    /// Copies the next element's bytes into `buffer` and returns where it starts.
    fn next_element(&mut self) -> Result<Option<At>, RowsError> {
        if self.state == ListState::Before {
            match self.peek()? {
                Some(b'[') => self.bump(b'['),
                Some(_) => {
                    return Err(self.malformed("expected `[`", "a JSON file of rows is one list of objects"));
                }
                None => return Ok(None),
            }
            self.state = ListState::Inside;
            if self.peek()? == Some(b']') {
                return self.finish();
            }
        } else if self.state == ListState::Inside {
            match self.peek()? {
                Some(b',') => self.bump(b','),
                Some(b']') => return self.finish(),
                Some(_) => return Err(self.malformed("expected `,` or `]` after a row", "")),
                None => return Err(self.cut_short()),
            }
        } else {
            return Ok(None);
        }
        match self.peek()? {
            None => return Err(self.cut_short()),
            Some(b']' | b',') => {
                return Err(self.malformed("a comma with no row beside it", "remove the comma"));
            }
            Some(_) => {}
        }
        let start = self.at;
        self.take_element(start)?;
        Ok(Some(start))
    }

    fn finish(&mut self) -> Result<Option<At>, RowsError> {
        self.bump(b']');
        self.state = ListState::After;
        match self.peek()? {
            None => Ok(None),
            Some(_) => Err(self
                .malformed("text after the end of the list", "a JSON file of rows is one list of objects")),
        }
    }

    /// Reads one value: up to the bracket that closes it, or, for a value without brackets, up to the next
    /// separator. Brackets are counted without telling `}` from `]`; the parser does that.
    fn take_element(&mut self, start: At) -> Result<(), RowsError> {
        self.buffer.clear();
        let (mut depth, mut in_string, mut escaped) = (0_u64, false, false);
        loop {
            let chunk = match self.input.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(read_error(&self.file, Some(self.at.line), error)),
                Ok(chunk) => chunk,
            };
            // At the end of the file the parser says what is missing.
            let (mut used, mut done) = (0, chunk.is_empty());
            for &byte in chunk {
                if in_string {
                    in_string = escaped || byte != b'"';
                    escaped = !escaped && byte == b'\\';
                } else {
                    match byte {
                        b'"' => in_string = true,
                        b'{' | b'[' => depth += 1,
                        b'}' | b']' if depth > 1 => depth -= 1,
                        b'}' if depth == 0 => {} // A stray bracket: part of this value, for the parser to refuse.
                        b'}' | b']' => {
                            // Closes the value, unless there is none to close: then it closes the list.
                            if depth == 1 {
                                self.at.step(byte);
                                used += 1;
                            }
                            done = true;
                        }
                        b',' if depth == 0 => done = true,
                        _ => {}
                    }
                    if done {
                        break;
                    }
                }
                self.at.step(byte);
                used += 1;
            }
            self.buffer.extend_from_slice(&chunk[..used]);
            self.input.consume(used);
            if self.buffer.len() as u64 > ROW_BYTES_MAX {
                return Err(too_long(&self.file, start.line));
            }
            if done {
                return Ok(());
            }
        }
    }

    /// Skips white space and looks at the next byte.
    fn peek(&mut self) -> Result<Option<u8>, RowsError> {
        loop {
            let chunk = match self.input.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(read_error(&self.file, Some(self.at.line), error)),
                Ok(chunk) => chunk,
            };
            let Some(&byte) = chunk.first() else { return Ok(None) };
            if !byte.is_ascii_whitespace() {
                return Ok(Some(byte));
            }
            self.bump(byte);
        }
    }

    /// Consumes the byte that `peek` returned.
    fn bump(&mut self, byte: u8) {
        self.input.consume(1);
        self.at.step(byte);
    }

    fn malformed(&self, found: &str, hint: &str) -> RowsError {
        RowsError::Json {
            place: Place::line(&self.file, self.at.line),
            column: self.at.column,
            found: found.to_owned(),
            hint: hint.to_owned(),
        }
    }

    fn cut_short(&self) -> RowsError {
        self.malformed("the file ends inside the list", "it was cut short: copy or download it again")
    }
}

/// The bytes of one row and where they lie.
struct Piece<'a> {
    bytes: &'a [u8],
    line: usize,
    column: usize,
    byte: u64,
    /// Whether the piece is a line of a JSONL file.
    lines: bool,
}

impl Piece<'_> {
    fn parse(&self, file: &Arc<Path>) -> Result<Map<String, Value>, RowsError> {
        let text = str::from_utf8(self.bytes).map_err(|error| {
            let good = error.valid_up_to();
            let breaks = self.bytes[..good].iter().filter(|&&byte| byte == b'\n').count();
            RowsError::Utf8 {
                place: Place::line(file, self.line + breaks),
                byte: self.byte + good as u64,
                found: self.bytes.get(good).copied().unwrap_or_default(),
            }
        })?;

        let mut duplicate = None;
        let mut parser = serde_json::Deserializer::from_str(text);
        let parsed = Strict { duplicate: &mut duplicate }
            .deserialize(&mut parser)
            .and_then(|value| parser.end().map(|()| value));
        match parsed {
            Ok(Value::Object(map)) => Ok(map),
            Ok(other) => {
                Err(RowsError::NotAnObject { place: Place::line(file, self.line), found: kind_of(&other) })
            }
            Err(error) => Err(match duplicate {
                Some(key) => {
                    RowsError::DuplicateKey { place: Place::line(file, self.line + lines_in(&error)), key }
                }
                None => self.malformed(file, text, &error),
            }),
        }
    }

    fn malformed(&self, file: &Arc<Path>, text: &str, error: &serde_json::Error) -> RowsError {
        let column = if error.line() <= 1 { self.column - 1 + error.column() } else { error.column() };
        let suffix = format!(" at line {} column {}", error.line(), error.column());
        let message = error.to_string();
        RowsError::Json {
            place: Place::line(file, self.line + lines_in(error)),
            column: column.max(1),
            found: message.strip_suffix(&suffix).unwrap_or(&message).to_owned(),
            hint: self.hint(text, error).to_owned(),
        }
    }

    /// What usually leads to this error, judged by the text around it.
    fn hint(&self, text: &str, error: &serde_json::Error) -> &'static str {
        let message = error.to_string();
        if error.is_eof() {
            return match self.lines {
                true => {
                    "the file was cut short, or a row is spread over several lines: JSONL has one object a line"
                }
                false => "the file was cut short: copy or download it again",
            };
        }
        if message.starts_with("trailing characters") {
            return match self.lines {
                true => "JSONL has one object a line",
                false => "rows are separated by commas",
            };
        }
        if message.starts_with("control character") {
            return "write line breaks inside a string as \\n, tabs as \\t";
        }
        if message.contains("surrogate") || message.starts_with("unexpected end of hex escape") {
            return "half of a two-part \\u escape: a text was cut in the middle of a character";
        }
        if message.starts_with("recursion limit") {
            return "the value is nested too deeply";
        }
        if message.starts_with("number out of range") {
            return "the number does not fit a 64-bit float";
        }
        if message.starts_with("trailing comma") {
            return "remove the last comma";
        }
        // serde_json points at the offending byte or at the one after it.
        let line = text.split('\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
        let from = error.column().saturating_sub(2).min(line.len());
        let around = &line.as_bytes()[from..];
        let near =
            |word: &[u8]| around.starts_with(word) || around.get(1..).is_some_and(|a| a.starts_with(word));
        if near(b"'") {
            "JSON wants double quotes, as Python's json.dumps writes them"
        } else if [&b"NaN"[..], b"aN", b"Infinity", b"-I", b"inf", b"nan"].into_iter().any(near) {
            "JSON has no NaN and no infinity: leave the key out or write null"
        } else if [&b"True"[..], b"False", b"None"].into_iter().any(near) {
            "JSON writes true, false and null"
        } else if message.starts_with("expected value") && around.iter().take(2).any(u8::is_ascii_alphabetic)
        {
            "text goes in double quotes"
        } else {
            ""
        }
    }
}

/// Line breaks between the start of the piece and the error.
fn lines_in(error: &serde_json::Error) -> usize {
    error.line().saturating_sub(1)
}

/// Sorts errors of the stream below: a damaged gzip stream, or the system's own.
fn read_error(file: &Arc<Path>, line: Option<usize>, error: io::Error) -> RowsError {
    let place = match line {
        Some(line) => Place::line(file, line),
        None => Place::file(file),
    };
    crate::source::read_error(place, error)
}

fn too_long(file: &Arc<Path>, line: usize) -> RowsError {
    RowsError::TooLong {
        place: Place::line(file, line),
        what: "a row",
        limit_bytes: ROW_BYTES_MAX,
        hint: "is this a file of rows?".to_owned(),
    }
}

/// Builds a `Value` as serde_json does, but stops at a key that its object already has.
struct Strict<'a> {
    /// Set to the key, because serde's errors carry text only.
    duplicate: &'a mut Option<String>,
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        // JSON text cannot spell a number that is not finite; `Null` is what serde_json itself would give.
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = elements.next_element_seed(Strict { duplicate: &mut *self.duplicate })? {
            list.push(value);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                *self.duplicate = Some(key);
                return Err(de::Error::custom("duplicate key"));
            }
            let value = entries.next_value_seed(Strict { duplicate: &mut *self.duplicate })?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}
