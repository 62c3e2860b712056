//! A file of lines that grows while it is read.
//!
//! Reading goes on where it ended. A last line without its end is left for the next time. A file that is shorter than what was read of it, or
//! that has another line where the last one was, is another file, as when a run is resumed from a checkpoint: it is read anew. No line
//! is kept that is longer than [`LINE_BYTES_MAX`], and one call reads at most [`READ_BYTES_MAX`].
//!
//! Not here: what lines mean.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Longest line.
pub(crate) const LINE_BYTES_MAX: u64 = 1 << 20;
/// Most that is read at once: about half a second.
pub(crate) const READ_BYTES_MAX: u64 = 96 << 20;
/// Bytes of the last line that are compared.
const KNOWN_BYTES: usize = 256;

/// What is made of the lines.
pub(crate) trait Lines: Default {
    /// A whole line without its end, or nothing for one that is too long.
    fn line(&mut self, line: Option<&[u8]>);
}

/// A file and what was made of its lines so far.
pub(crate) struct Tail<T> {
    path: PathBuf,
    made: T,
    offset: u64,
    /// The end of what was read, to know the file by.
    known: Vec<u8>,
    /// In the middle of a line that is too long.
    skipping: bool,
}

impl<T: Lines> Tail<T> {
    pub(crate) fn new(path: PathBuf) -> Tail<T> {
        Tail { path, made: T::default(), offset: 0, known: Vec::new(), skipping: false }
    }

    /// What was made of the lines.
    pub(crate) fn made(&self) -> &T {
        &self.made
    }

    pub(crate) fn into_made(self) -> T {
        self.made
    }

    /// Reads on; false if there is more than is read at once. A file that is not there has no lines.
    pub(crate) fn read(&mut self) -> io::Result<bool> {
        let Some(mut file) = open(&self.path)? else {
            self.forget();
            return Ok(true);
        };
        let length = file.metadata()?.len();
        if !self.goes_on(&mut file, length)? {
            self.forget();
        }
        file.seek(SeekFrom::Start(self.offset))?;
        let end = length.min(self.offset + READ_BYTES_MAX);
        let mut reader = BufReader::with_capacity(1 << 16, file.take(end - self.offset));
        let mut line = Vec::new();
        loop {
            line.clear();
            let bytes = (&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? as u64;
            match line.split_last() {
                Some((b'\n', whole)) if !self.skipping => self.made.line(Some(whole)),
                Some((b'\n', _)) => self.skipping = false,
                _ if bytes == LINE_BYTES_MAX => {
                    if !self.skipping {
                        self.made.line(None);
                    }
                    self.skipping = true;
                }
                // The end, or a line that is being written.
                _ => break,
            }
            self.offset += bytes;
            self.known.clear();
            self.known.extend_from_slice(&line[line.len().saturating_sub(KNOWN_BYTES)..]);
        }
        Ok(end == length)
    }

    fn goes_on(&self, file: &mut File, length: u64) -> io::Result<bool> {
        if length < self.offset {
            return Ok(false);
        }
        let mut there = vec![0; self.known.len()];
        file.seek(SeekFrom::Start(self.offset - there.len() as u64))?;
        file.read_exact(&mut there)?;
        Ok(there == self.known)
    }

    fn forget(&mut self) {
        *self = Tail::new(std::mem::take(&mut self.path));
    }
}

/// The last lines of a file, whole ones, at most about this many bytes of them.
pub(crate) fn last_lines<T: Lines>(path: &Path, bytes_max: u64) -> io::Result<T> {
    let mut made = T::default();
    let Some(mut file) = open(path)? else { return Ok(made) };
    let start = file.metadata()?.len().saturating_sub(bytes_max);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes)?;
    // What comes before the first end of a line may be half of one, and so is what comes after the last.
    let first =
        if start == 0 { 0 } else { bytes.iter().position(|b| *b == b'\n').map_or(bytes.len(), |at| at + 1) };
    let Some(last) = bytes.iter().rposition(|b| *b == b'\n').filter(|last| *last >= first) else {
        return Ok(made);
    };
    bytes[first..last].split(|b| *b == b'\n').for_each(|line| made.line(Some(line)));
    Ok(made)
}

/// A small file's text; `None` if it is not there.
pub(crate) fn small(path: &Path, bytes_max: u64) -> io::Result<Option<String>> {
    let Some(file) = open(path)? else { return Ok(None) };
    let mut bytes = Vec::new();
    if file.take(bytes_max + 1).read_to_end(&mut bytes)? as u64 > bytes_max {
        return Err(io::Error::other(format!("larger than {} KiB", bytes_max >> 10)));
    }
    String::from_utf8(bytes).map(Some).map_err(|_| io::Error::other("not UTF-8"))
}

/// Opens a regular file: opening a pipe would wait for its other end.
fn open(path: &Path) -> io::Result<Option<File>> {
    match path.metadata() {
        Ok(found) if found.is_file() => File::open(path).map(Some),
        Ok(_) => Err(io::Error::other("not a regular file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
