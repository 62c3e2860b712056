//! TensorBoard event files: the numbers of `metrics.jsonl`, for those who watch runs there.
//!
//! ```text
//! file    record record …                       RUN/tensorboard/events.out.tfevents.SECONDS.polity
//! record  length u64 | masked CRC32C of length u32 | event | masked CRC32C of event u32        little-endian (TFRecord)
//! event   wall_time 1: double, step 2: int64, and one of
//!         file_version 3: "brain.Event:2"       the first event of a file
//!         session_log 7: {status 1: START}      what was read before is void
//!         summary 5: {value 1: {tag 1: string, simple_value 2: float}, …}
//! ```
//!
//! The messages are a handful of fields of TensorFlow's `event.proto` and `summary.proto`, written by hand: the crates for
//! it bring a protobuf stack, or have not been touched in years. `wall_time` is the moment the run would be at if it had
//! never been interrupted. A number that is not finite stays what it is; TensorBoard marks it.
//!
//! Not here: when files are made (`run.rs`): they are always a copy of the log, written anew when a run is resumed.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::TrainError;

/// Start of the name of every event file; TensorBoard looks for it.
const PREFIX: &str = "events.out.tfevents.";
/// First event of a file of the present format.
const FILE_VERSION: &str = "brain.Event:2";
/// `SessionLog.SessionStatus.START`.
const SESSION_START: u64 = 1;

/// An event file, open for appending.
#[derive(Debug)]
pub(crate) struct EventFile {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl EventFile {
    /// Removes the event files of a directory and begins a new one. `unix_s` is in its name.
    pub(crate) fn replace_all(dir: &Path, unix_s: f64) -> Result<EventFile, TrainError> {
        fs::create_dir_all(dir).map_err(TrainError::write(dir, "create the directory"))?;
        for entry in fs::read_dir(dir).map_err(TrainError::read(dir))? {
            let entry = entry.map_err(TrainError::read(dir))?;
            if entry.file_name().to_string_lossy().starts_with(PREFIX) {
                fs::remove_file(entry.path()).map_err(TrainError::write(&entry.path(), "remove"))?;
            }
        }
        let path = dir.join(format!("{PREFIX}{:010}.polity", unix_s as u64));
        let file = OpenOptions::new().create_new(true).append(true).open(&path);
        let file = file.map_err(TrainError::write(&path, "create"))?;
        let mut events = EventFile { path, file, bytes: 0 };
        let mut version = event(unix_s, None);
        put_bytes(&mut version, 3, FILE_VERSION.as_bytes());
        let mut start = event(unix_s, Some(0));
        let mut session = Vec::new();
        put_varint_field(&mut session, 1, SESSION_START);
        put_bytes(&mut start, 7, &session);
        events.append(&[record(&version), record(&start)].concat())?;
        Ok(events)
    }

    /// Writes the numbers of a step.
    pub(crate) fn step<'a>(
        &mut self,
        unix_s: f64,
        step: u64,
        values: impl Iterator<Item = (&'a str, f64)>,
    ) -> Result<(), TrainError> {
        let mut summary = Vec::new();
        for (name, value) in values {
            let mut message = Vec::new();
            put_bytes(&mut message, 1, name.as_bytes());
            put_key(&mut message, 2, FIXED_32);
            message.extend((value as f32).to_le_bytes());
            put_bytes(&mut summary, 1, &message);
        }
        let mut message = event(unix_s, Some(step));
        put_bytes(&mut message, 5, &summary);
        self.append(&record(&message))
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), TrainError> {
        if let Err(source) = self.file.write_all(bytes) {
            // As of the logs: without half a record the file is still readable.
            let _ = self.file.set_len(self.bytes);
            return Err(TrainError::write(&self.path, "write")(source));
        }
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

// --------------------------------------------------------------------------------------------------------- protobuf

/// Wire types of protobuf.
const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const LENGTH: u64 = 2;
const FIXED_32: u64 = 5;

/// An event with its time and step, open at the end.
fn event(unix_s: f64, step: Option<u64>) -> Vec<u8> {
    let mut out = Vec::new();
    put_key(&mut out, 1, FIXED_64);
    out.extend(unix_s.to_le_bytes());
    if let Some(step) = step {
        put_varint_field(&mut out, 2, step);
    }
    out
}

fn put_key(out: &mut Vec<u8>, field: u64, wire_type: u64) {
    put_varint(out, (field << 3) | wire_type);
}

fn put_varint_field(out: &mut Vec<u8>, field: u64, value: u64) {
    put_key(out, field, VARINT);
    put_varint(out, value);
}

fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_key(out, field, LENGTH);
    put_varint(out, bytes.len() as u64);
    out.extend(bytes);
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

// --------------------------------------------------------------------------------------------------------- TFRecord

fn record(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    let mut out = length.to_vec();
    out.extend(masked(crc32c(&length)).to_le_bytes());
    out.extend(event);
    out.extend(masked(crc32c(event)).to_le_bytes());
    out
}

/// A checksum of data that holds checksums is weak, so TFRecord rotates and shifts it.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli, RFC 3720 appendix B.4).
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| (crc >> 8) ^ CRC_TABLE[(crc as u8 ^ byte) as usize])
}

const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            // 0x1EDC6F41 with its bits reversed.
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, appendix B.4, and the check value of the CRC catalogue.
    #[test]
    fn crc32c_of_published_vectors() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn varints_by_hand() {
        let check = |value: u64, expect: &[u8]| {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            assert_eq!(out, expect);
        };
        check(0, &[0]);
        check(127, &[0x7f]);
        check(300, &[0xac, 0x02]); // The example of the protobuf documentation.
        check(u64::MAX, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]);
    }

    /// The first record of a file that PyTorch's writer made: time 0 apart, the same bytes.
    #[test]
    fn the_first_record_is_known() {
        let mut version = event(0.0, None);
        put_bytes(&mut version, 3, FILE_VERSION.as_bytes());
        let mut expect = vec![9, 0, 0, 0, 0, 0, 0, 0, 0, 26, 13];
        expect.extend(b"brain.Event:2");
        assert_eq!(version, expect);
        assert_eq!(record(&version).len(), 8 + 4 + 24 + 4);
    }
}
