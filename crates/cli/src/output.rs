//! Where data goes: stdout, or a file that is either whole or not there.
//!
//! A reader that has had enough (`polity generate … | head -1`) closes the pipe; that ends the command without an error,
//! since what was asked for was delivered. Any other failure to write is one.

use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, StdoutLock, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{CommandError, CommandResult, hint_for_writing};

/// Writes to stdout and flushes.
pub fn to_stdout(write: impl FnOnce(&mut BufWriter<StdoutLock<'static>>) -> io::Result<()>) -> CommandResult {
    let mut out = BufWriter::new(io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(stdout_error),
    }
}

/// The error for a failed write to stdout.
pub fn stdout_error(source: io::Error) -> CommandError {
    let hint = hint_for_writing(&source);
    let error = CommandError::failed(format!("cannot write to stdout: {source}"));
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// Prints one JSON value, indented, for people and machines.
pub fn json_to_stdout(value: &impl Serialize) -> CommandResult {
    to_stdout(|out| {
        serde_json::to_writer_pretty(&mut *out, value)?;
        out.write_all(b"\n")
    })
}

/// Rows to a place that was named on the command line; `None` and `-` are stdout.
pub enum Sink {
    /// Each row is flushed, so that a reader sees it as soon as it is there.
    Stdout,
    /// Written beside the target, renamed when whole.
    File(PathBuf),
}

/// Takes rows one at a time.
pub struct RowWriter<'w> {
    out: Out<'w>,
    /// The reader of stdout has had enough.
    closed: bool,
}

enum Out<'w> {
    Stdout(BufWriter<StdoutLock<'static>>),
    File(&'w mut BufWriter<File>),
}

impl Sink {
    /// Where `--output` points.
    pub fn new(output: Option<&Path>) -> Self {
        match output {
            None => Sink::Stdout,
            Some(path) if path == Path::new("-") => Sink::Stdout,
            Some(path) => Sink::File(path.to_owned()),
        }
    }

    /// Runs `work` with a writer. A file appears only if `work` and every write succeed.
    pub fn write(&self, work: impl FnOnce(&mut RowWriter<'_>) -> CommandResult) -> CommandResult {
        match self {
            Sink::Stdout => {
                let mut rows =
                    RowWriter { out: Out::Stdout(BufWriter::new(io::stdout().lock())), closed: false };
                work(&mut rows)?;
                rows.flush().map_err(stdout_error)
            }
            Sink::File(path) => {
                // The atomic writer speaks io::Error; the command's own error passes beside it.
                let mut own_error = None;
                let written = polity_rows::atomic_write(path, |file| {
                    let mut rows = RowWriter { out: Out::File(file), closed: false };
                    work(&mut rows).map_err(|error| {
                        own_error = Some(error);
                        io::Error::other("the rows could not be made")
                    })
                });
                match own_error {
                    Some(error) => Err(error),
                    None => written.map_err(CommandError::from),
                }
            }
        }
    }
}

impl RowWriter<'_> {
    /// Writes a row as a line of JSON.
    pub fn row(&mut self, row: &impl Serialize) -> CommandResult {
        if self.closed {
            return Ok(());
        }
        let line = serde_json::to_vec(row).map_err(CommandError::failed)?;
        match &mut self.out {
            Out::File(file) => file.write_all(&line).and_then(|()| file.write_all(b"\n")).map_err(|source| {
                let hint = hint_for_writing(&source);
                let error = CommandError::failed(format!("cannot write the output: {source}"));
                match hint {
                    Some(hint) => error.hint(hint),
                    None => error,
                }
            }),
            Out::Stdout(out) => {
                let written = out.write_all(&line).and_then(|()| out.write_all(b"\n"));
                let written = written.and_then(|()| out.flush());
                match written {
                    Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                        self.closed = true;
                        Ok(())
                    }
                    result => result.map_err(stdout_error),
                }
            }
        }
    }

    /// Whether nobody reads any more, so that there is no use in going on.
    pub fn closed(&self) -> bool {
        self.closed
    }

    /// The error for a command that was stopped after this many rows.
    pub fn stopped(&self, rows: usize) -> CommandError {
        CommandError::interrupted(match &self.out {
            Out::File(_) => "stopped; no output was written".to_owned(),
            Out::Stdout(_) => format!("stopped after {rows} rows"),
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.out {
            Out::Stdout(out) if !self.closed => out.flush(),
            _ => Ok(()),
        }
    }
}
