//! Event files are read back by a parser that shares no code with the writer, checksums included.

use std::fs;
use std::path::{Path, PathBuf};

use polity_train::metrics::{Metrics, Stage};
use polity_train::run::{Machine, Manifest, RunDir, names};

const TOML: &str = "seed = 42\n";
/// Unix time at which the runs begin.
const BEGAN: f64 = 1_700_000_000.0;

/// What an event says.
#[derive(Debug, Default, PartialEq)]
struct Event {
    wall_time: f64,
    step: u64,
    file_version: Option<String>,
    session_status: Option<u64>,
    scalars: Vec<(String, f32)>,
}

/// CRC-32C, a bit at a time.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc % 2 == 1 { (crc / 2) ^ 0x82f6_3b78 } else { crc / 2 };
        }
    }
    !crc
}

fn check_masked(bytes: &[u8], stored: &[u8]) {
    let masked = u32::from_le_bytes(stored.try_into().unwrap());
    let rotated = masked.wrapping_sub(0xa282_ead8);
    assert_eq!(rotated.rotate_left(15), crc32c(bytes), "checksum");
}

/// The records of a TFRecord file.
fn records(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        check_masked(&bytes[..8], &bytes[8..12]);
        let (data, rest) = bytes[12..].split_at(length);
        check_masked(data, &rest[..4]);
        found.push(data);
        bytes = &rest[4..];
    }
    found
}

/// A field of a protobuf message.
enum Field<'a> {
    Number(u64),
    Double(f64),
    Float(f32),
    Bytes(&'a [u8]),
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let end = bytes.iter().position(|byte| byte & 0x80 == 0).expect("a last byte");
    let (number, rest) = bytes.split_at(end + 1);
    *bytes = rest;
    number.iter().rev().fold(0, |value, byte| (value << 7) | u64::from(byte & 0x7f))
}

fn fields(mut bytes: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let field = match key & 7 {
            0 => Field::Number(varint(&mut bytes)),
            1 => {
                let (taken, rest) = bytes.split_at(8);
                bytes = rest;
                Field::Double(f64::from_le_bytes(taken.try_into().unwrap()))
            }
            2 => {
                let length = varint(&mut bytes) as usize;
                let (taken, rest) = bytes.split_at(length);
                bytes = rest;
                Field::Bytes(taken)
            }
            5 => {
                let (taken, rest) = bytes.split_at(4);
                bytes = rest;
                Field::Float(f32::from_le_bytes(taken.try_into().unwrap()))
            }
            other => panic!("wire type {other}"),
        };
        found.push((key >> 3, field));
    }
    found
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn scalar(message: &[u8]) -> (String, f32) {
    match fields(message)[..] {
        [(1, Field::Bytes(tag)), (2, Field::Float(value))] => (text(tag), value),
        _ => panic!("a value is a tag and a number"),
    }
}

fn event(record: &[u8]) -> Event {
    let mut event = Event::default();
    for (number, field) in fields(record) {
        match (number, field) {
            (1, Field::Double(time)) => event.wall_time = time,
            (2, Field::Number(step)) => event.step = step,
            (3, Field::Bytes(version)) => event.file_version = Some(text(version)),
            (5, Field::Bytes(summary)) => {
                for (number, value) in fields(summary) {
                    let Field::Bytes(value) = value else { panic!("a summary has values") };
                    assert_eq!(number, 1);
                    event.scalars.push(scalar(value));
                }
            }
            (7, Field::Bytes(session)) => match fields(session)[..] {
                [(1, Field::Number(status))] => event.session_status = Some(status),
                _ => panic!("a session log has a status"),
            },
            (number, _) => panic!("field {number}"),
        }
    }
    event
}

/// The only event file of a run.
fn events(out: &Path) -> (PathBuf, Vec<Event>) {
    let files: Vec<PathBuf> =
        fs::read_dir(out.join(names::TENSORBOARD)).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [file] = &files[..] else { panic!("one event file, found {files:?}") };
    let events = records(&fs::read(file).unwrap()).into_iter().map(event).collect();
    (file.clone(), events)
}

fn manifest() -> Manifest {
    Manifest {
        stage: "sft".into(),
        command: vec![],
        config_blake3: String::new(),
        inputs: vec![],
        code_version: "0.1.0".into(),
        code_commit: None,
        machine: Machine { cpu: "a processor".into(), isa: "avx2".into(), threads: 2 },
        seed: 42,
        started: "2026-01-01T00:00:00Z".into(),
        finished: None,
        resumed: vec![],
        acceptance: None,
    }
}

/// Steps of two seconds each; step 2 has a loss that is not a number.
fn train(run: &mut RunDir, steps: std::ops::RangeInclusive<u64>, began_s: f64) {
    for step in steps {
        let mut metrics = Metrics::new(Stage::Sft);
        metrics.put("loss", if step == 2 { f64::NAN } else { 1.0 / step as f64 });
        metrics.put_eval("loss", step as f64);
        let time_s = run.time_s(began_s) + 2.0;
        run.log(step, time_s.max(2.0 * step as f64), &metrics).unwrap();
    }
}

#[test]
fn event_files_say_what_the_log_says() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("run");
    let mut run = RunDir::create(&out, TOML, &manifest(), 10.0).unwrap();
    run.write_tensorboard(BEGAN, 10.0).unwrap();
    train(&mut run, 1..=3, 10.0);

    let (file, events) = events(&out);
    assert_eq!(file.file_name().unwrap(), "events.out.tfevents.1700000000.polity");
    assert_eq!(events[0].file_version.as_deref(), Some("brain.Event:2"));
    assert_eq!(events[1].session_status, Some(1), "what was read before is void");
    let [first, second, third] = &events[2..] else { panic!("three steps, found {events:?}") };
    assert_eq!((first.step, first.wall_time), (1, BEGAN + 2.0));
    assert_eq!(first.scalars, [("loss".into(), 1.0), ("eval_loss".into(), 1.0)]);
    assert!(second.scalars[0].1.is_nan() && second.scalars[1].1 == 2.0);
    assert_eq!(third.scalars[0], ("loss".into(), 1.0 / 3.0));
}

#[test]
fn a_resumed_run_has_each_step_once() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("run");
    let mut run = RunDir::create(&out, TOML, &manifest(), 0.0).unwrap();
    run.write_tensorboard(BEGAN, 0.0).unwrap();
    train(&mut run, 1..=2, 0.0);
    run.save_checkpoint(2, 4.0, |checkpoint| checkpoint.json("state.json", &2)).unwrap();
    train(&mut run, 3..=5, 4.0);
    drop(run);
    let (before, _) = events(&out);

    let mut run = RunDir::resume(&out, TOML, &manifest(), "later", 0.0).unwrap().run;
    run.write_tensorboard(BEGAN + 1000.0, 0.0).unwrap();
    train(&mut run, 3..=6, 0.0);

    let (after, events) = events(&out);
    assert!(before != after && !before.exists());
    assert_eq!(events[2..].iter().map(|event| event.step).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    // Step 1 was 2 s after the beginning of a run that had taken 4 s when it was resumed.
    assert_eq!(events[2].wall_time, BEGAN + 1000.0 - 4.0 + 2.0);
    assert!(
        events.windows(2).skip(1).all(|pair| pair[0].wall_time <= pair[1].wall_time || pair[1].step == 1)
    );
}
