//! From a path or a stream to rows: unpacks gzip, tells the format, and iterates.
//!
//! The content decides the format, because it cannot be misnamed: gzip and Parquet by their magic bytes, a
//! list by its first `[`, JSONL by its first `{`. The name's extension decides only what to say when the
//! content is none of these.
//!
//! Not here: CSV and the exports of annotation tools (an import's business), remote files.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read, Seek};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;

use crate::Row;
use crate::error::{Place, RowsError};
use crate::json::{Lines, List};
use crate::parquet::Table;
use crate::show::quoted;
use crate::typed::FromRow;

/// A gzip'd Parquet file is unpacked in memory, because Parquet is read from its end; this is the most it may
/// unpack to.
pub const PACKED_PARQUET_BYTES_MAX: u64 = 1 << 30;

/// How much of a file is looked at to tell its format, in bytes.
const HEAD_BYTES: usize = 4096;

/// A stream of unpacked bytes.
pub(crate) type Input = Box<dyn BufRead + Send>;

/// The formats that hold rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Jsonl,
    /// One JSON list of objects.
    Json,
    /// Apache Parquet.
    Parquet,
}

/// Opens a file of rows; the rows are read as the iterator is driven.
///
/// Fails if the file cannot be opened, is of no known format, or is a Parquet file whose footer is damaged.
pub fn open(path: impl AsRef<Path>) -> Result<Rows, RowsError> {
    let path = path.as_ref();
    let failed = |source| RowsError::Open { file: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_dir() {
        return Err(failed(io::ErrorKind::IsADirectory.into()));
    }
    // A plain Parquet file is read in place, a row group at a time, not through a stream.
    if metadata.is_file() {
        let mut magic = [0; 4];
        // A failure shows again, and is reported, when the rows are read.
        let (filled, _) = read_head(&mut &file, &mut magic);
        (&file).rewind().map_err(failed)?;
        if Magic::of(&magic[..filled]) == Some(Magic::Parquet) {
            let table = Table::open(path.into(), file)?;
            return Ok(Rows::new(path.into(), Source::Parquet(Box::new(table))));
        }
    }
    Rows::from_reader(path, file)
}

/// Reads a whole file of typed rows; stops at the first error.
///
/// ```no_run
/// let rows: Vec<polity_rows::PreferenceRow> = polity_rows::read("pairs.jsonl.gz")?;
/// # Ok::<(), polity_rows::RowsError>(())
/// ```
pub fn read<T: FromRow>(path: impl AsRef<Path>) -> Result<Vec<T>, RowsError> {
    open(path)?.typed().collect()
}

/// An iterator over the rows of one file.
///
/// After a row that could be cut out of the file but not parsed, the next row can be read. After an error of
/// the stream (a truncated file, a damaged list) the iterator ends. A file without rows yields one error,
/// [`RowsError::Empty`].
pub struct Rows {
    file: Arc<Path>,
    source: Source,
    state: State,
}

enum Source {
    Jsonl(Lines),
    Json(List),
    Parquet(Box<Table>),
}

#[derive(PartialEq)]
enum State {
    Fresh,
    Running,
    Finished,
}

impl Rows {
    /// Reads from a stream, such as the standard input; `name` stands for the file in messages.
    pub fn from_reader(
        name: impl AsRef<Path>,
        reader: impl Read + Send + 'static,
    ) -> Result<Rows, RowsError> {
        let file: Arc<Path> = name.as_ref().into();
        let (head, input) = peek(&file, Box::new(BufReader::with_capacity(1 << 16, reader)))?;
        if Magic::of(&head) != Some(Magic::Gzip) {
            return Rows::from_unpacked(file, &head, input, false);
        }
        let unpacked = BufReader::with_capacity(1 << 16, MultiGzDecoder::new(input));
        let (head, input) = peek(&file, Box::new(unpacked))?;
        Rows::from_unpacked(file, &head, input, true)
    }

    fn from_unpacked(
        file: Arc<Path>,
        head: &[u8],
        mut input: Input,
        packed: bool,
    ) -> Result<Rows, RowsError> {
        let refused = |found: &str, hint: &str| {
            Err(RowsError::Format {
                place: Place::file(&file),
                found: found.to_owned(),
                hint: hint.to_owned(),
            })
        };
        match Magic::of(head) {
            Some(Magic::Parquet) => {
                let mut bytes = Vec::new();
                input
                    .take(PACKED_PARQUET_BYTES_MAX + 1)
                    .read_to_end(&mut bytes)
                    .map_err(|error| read_error(Place::file(&file), error))?;
                if bytes.len() as u64 > PACKED_PARQUET_BYTES_MAX {
                    return Err(RowsError::TooLong {
                        place: Place::file(&file),
                        what: "a Parquet file that is packed or streamed",
                        limit_bytes: PACKED_PARQUET_BYTES_MAX,
                        hint: "unpack it to a plain file".to_owned(),
                    });
                }
                let table = Table::open(file.clone(), Bytes::from(bytes))?;
                return Ok(Rows::new(file, Source::Parquet(Box::new(table))));
            }
            Some(Magic::Gzip) if packed => return refused("gzip inside gzip", "unpack it once"),
            Some(Magic::Gzip) => {}
            Some(Magic::Other(found, hint)) => return refused(found, hint),
            None => {}
        }

        const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
        let mut byte = 0;
        let mut text = head;
        if let Some(rest) = head.strip_prefix(BYTE_ORDER_MARK) {
            input.consume(BYTE_ORDER_MARK.len()); // `peek` left the whole head in the buffer.
            (text, byte) = (rest, BYTE_ORDER_MARK.len() as u64);
        }
        let first = text.iter().copied().find(|byte| !byte.is_ascii_whitespace());
        match (first, Named::of(&file)) {
            (Some(b'['), _) => Ok(Rows::new(file.clone(), Source::Json(List::new(file, input, byte)))),
            (Some(b'{') | None, _) | (_, Named::Json) => {
                Ok(Rows::new(file.clone(), Source::Jsonl(Lines::new(file, input, byte))))
            }
            (Some(_), Named::Parquet) => refused(
                "a file that does not begin with Parquet's `PAR1`",
                "it is damaged or not Parquet: copy or download it again",
            ),
            (Some(_), Named::Csv) => refused(
                "CSV",
                "convert it, for example with Python: `pandas.read_csv(\"in.csv\").to_json(\"out.jsonl\", orient=\"records\", lines=True)`",
            ),
            (Some(_), Named::Unknown) => {
                let start = String::from_utf8_lossy(&text[..text.len().min(64)]).trim_start().to_owned();
                refused(&format!("a file that begins with {}", quoted(&start)), "")
            }
        }
    }

    fn new(file: Arc<Path>, source: Source) -> Rows {
        Rows { file, source, state: State::Fresh }
    }

    /// The format that was found, below any gzip.
    pub fn format(&self) -> Format {
        match self.source {
            Source::Jsonl(_) => Format::Jsonl,
            Source::Json(_) => Format::Json,
            Source::Parquet(_) => Format::Parquet,
        }
    }

    /// The file, or the name given to the stream.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Reads each row as a `T`.
    pub fn typed<T: FromRow>(self) -> impl Iterator<Item = Result<T, RowsError>> {
        let file = self.file.clone();
        self.map(move |row| T::from_row(row?, &file))
    }
}

impl Iterator for Rows {
    type Item = Result<Row, RowsError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.state == State::Finished {
            return None;
        }
        let next = match &mut self.source {
            Source::Jsonl(lines) => lines.next_row(),
            Source::Json(list) => list.next_row(),
            Source::Parquet(table) => table.next_row(),
        };
        match next {
            Some(Ok(row)) => {
                self.state = State::Running;
                Some(Ok(row))
            }
            Some(Err((error, readable))) => {
                self.state = if readable { State::Running } else { State::Finished };
                Some(Err(error))
            }
            None => {
                let empty = self.state == State::Fresh;
                self.state = State::Finished;
                empty.then(|| Err(RowsError::Empty { place: Place::file(&self.file) }))
            }
        }
    }
}

/// Sorts an error of a stream: flate2 reports a damaged gzip stream by these kinds, which a plain file never
/// gives.
pub(crate) fn read_error(place: Box<Place>, error: io::Error) -> RowsError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => RowsError::Gzip { place, found: "ends in the middle".to_owned() },
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
            RowsError::Gzip { place, found: format!("is damaged ({error})") }
        }
        _ => RowsError::Read { place, source: error },
    }
}

/// A stream whose first bytes were looked at: gives them again, then the error that ended the look, if any,
/// then the rest. The error is kept because a decoder that failed once need not fail again when it is asked
/// again.
struct Peeked {
    head: Cursor<Vec<u8>>,
    error: Option<io::Error>,
    rest: Input,
}

/// The first bytes of a stream, and the stream with those bytes still in it.
fn peek(file: &Arc<Path>, mut rest: Input) -> Result<(Vec<u8>, Input), RowsError> {
    let mut head = vec![0; HEAD_BYTES];
    let (filled, error) = read_head(&mut rest, &mut head);
    head.truncate(filled);
    match error {
        Some(error) if head.is_empty() => Err(read_error(Place::file(file), error)),
        // What came before the damage may tell the format; reading on reports the damage.
        error => Ok((head.clone(), Box::new(Peeked { head: Cursor::new(head), error, rest }))),
    }
}

impl BufRead for Peeked {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if (self.head.position() as usize) < self.head.get_ref().len() {
            return self.head.fill_buf();
        }
        match self.error.take() {
            Some(error) => Err(error),
            None => self.rest.fill_buf(),
        }
    }

    fn consume(&mut self, amount: usize) {
        if (self.head.position() as usize) < self.head.get_ref().len() {
            self.head.consume(amount);
        } else {
            self.rest.consume(amount);
        }
    }
}

impl Read for Peeked {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut available = self.fill_buf()?;
        let read = available.read(out)?;
        self.consume(read);
        Ok(read)
    }
}

/// Fills as much of `head` as the stream has; returns how much, and the error that ended it early.
fn read_head(reader: &mut impl Read, head: &mut [u8]) -> (usize, Option<io::Error>) {
    let mut filled = 0;
    while filled < head.len() {
        match reader.read(&mut head[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (filled, Some(error)),
        }
    }
    (filled, None)
}

/// What a file's first bytes prove.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Magic {
    Gzip,
    Parquet,
    /// Known, and not readable here: what it is, and what to do.
    Other(&'static str, &'static str),
}

impl Magic {
    fn of(head: &[u8]) -> Option<Magic> {
        const TABLE: &[(&[u8], Magic)] = &[
            (b"\x1f\x8b", Magic::Gzip),
            (b"PAR1", Magic::Parquet),
            (b"PARE", Magic::Other("encrypted Parquet", "decrypt it first")),
            (b"PK\x03\x04", Magic::Other("a zip archive (a spreadsheet is one too)", "unpack or export it")),
            (b"\x28\xb5\x2f\xfd", Magic::Other("zstd-packed data", "unpack it with `zstd -d`")),
            (b"\xfd7zXZ\0", Magic::Other("xz-packed data", "unpack it with `xz -d`")),
            (b"BZh", Magic::Other("bzip2-packed data", "unpack it with `bunzip2`")),
            (b"ARROW1", Magic::Other("an Arrow file", "save the table as Parquet or JSONL")),
            (b"SQLite format 3\0", Magic::Other("an SQLite database", "export the table as JSONL")),
            (b"\xff\xfe", Magic::Other("UTF-16 text", "save it as UTF-8")),
            (b"\xfe\xff", Magic::Other("UTF-16 text", "save it as UTF-8")),
            (
                b"version https://git-lfs",
                Magic::Other("a Git LFS pointer, not the file itself", "fetch it with `git lfs pull`"),
            ),
            (b"<!DOCTYPE", Magic::Other("a web page", "download the file itself")),
            (b"<!doctype", Magic::Other("a web page", "download the file itself")),
            (b"<html", Magic::Other("a web page", "download the file itself")),
        ];
        TABLE.iter().find(|(magic, _)| head.starts_with(magic)).map(|&(_, found)| found)
    }
}

/// What a file's name claims, below `.gz`.
enum Named {
    Json,
    Parquet,
    Csv,
    Unknown,
}

impl Named {
    fn of(file: &Path) -> Named {
        let name = file.to_string_lossy().to_lowercase();
        let name = name.strip_suffix(".gz").unwrap_or(&name);
        match name.rsplit_once('.').map(|(_, extension)| extension) {
            Some("jsonl" | "ndjson" | "json") => Named::Json,
            Some("parquet") => Named::Parquet,
            Some("csv" | "tsv") => Named::Csv,
            _ => Named::Unknown,
        }
    }
}
