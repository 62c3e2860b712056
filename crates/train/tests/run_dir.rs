//! A run's directory survives whatever happens to it: kills, full disks, read-only disks, damaged files.
//!
//! The trainer here is a stand-in whose state is a counter-like buffer, so that a resumed run can be compared with an
//! uninterrupted one byte by byte. That the real trainers put all of their state into the checkpoint is tested with them.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use polity_train::TrainError;
use polity_train::metrics::{Metrics, Stage};
use polity_train::progress::{Event, Host, Level, Sample, SilentHost};
use polity_train::run::{
    Checkpoint, Input, Machine, Manifest, Resumed, RunDir, config_hash, names, read_buffer, write_buffers,
};

const TOML: &str = "learning_rate = 1e-3\nseed = 42\nthreads = 0\n";

fn manifest(inputs: Vec<Input>) -> Manifest {
    Manifest {
        stage: "sft".into(),
        command: vec!["polity".into(), "train".into(), "sft".into()],
        config_blake3: config_hash(TOML),
        inputs,
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

fn create(out: &Path) -> RunDir {
    RunDir::create(out, TOML, &manifest(vec![]), 0.0).unwrap()
}

fn resume(out: &Path) -> Resumed {
    RunDir::resume(out, TOML, &manifest(vec![]), "later", 0.0).unwrap()
}

fn metrics(step: u64, state: &[f32]) -> Metrics {
    let mut metrics = Metrics::new(Stage::Sft);
    metrics.put("loss", f64::from(state[0]) / 3.0);
    metrics.put("epoch", step as f64 / 7.0);
    metrics
}

fn sample(step: u64) -> Sample {
    let response = format!("at {step}");
    Sample {
        step,
        prompt_index: 0,
        prompt: "p".into(),
        response,
        response_tokens: 2,
        stopped: true,
        score: None,
    }
}

fn save(run: &mut RunDir, step: u64, state: &[f32]) -> Result<(), TrainError> {
    run.save_checkpoint(step, 0.0, |checkpoint| {
        checkpoint.buffers("state.safetensors", &[("params", state), ("moments", &state[..1])])?;
        checkpoint.json("trainer.json", &step)
    })
}

/// A stand-in for a trainer: steps from `from` to `to`, a checkpoint every third.
fn train(run: &mut RunDir, state: &mut [f32], from: u64, to: u64) {
    for step in from + 1..=to {
        state.iter_mut().for_each(|x| *x = *x * 1.1 + step as f32);
        run.record(&mut SilentHost, step, &metrics(step, state)).unwrap();
        if step % 2 == 0 {
            run.log_sample(&sample(step)).unwrap();
        }
        if step % 3 == 0 {
            save(run, step, state).unwrap();
        }
    }
}

/// Goes on from the newest checkpoint to `to`; the notes.
fn resume_and_train(out: &Path, to: u64) -> Vec<String> {
    let Resumed { mut run, checkpoint, notes } = resume(out);
    let mut state = vec![0.5, 0.25];
    let mut step = 0;
    if let Some(checkpoint) = checkpoint {
        step = checkpoint.json("trainer.json").unwrap();
        assert_eq!(step, checkpoint.step());
        checkpoint.read_buffer("state.safetensors", "params", &mut state).unwrap();
    }
    train(&mut run, &mut state, step, to);
    notes
}

fn logs(out: &Path) -> [String; 2] {
    [names::METRICS, names::SAMPLES].map(|name| fs::read_to_string(out.join(name)).unwrap())
}

fn steps(out: &Path) -> Vec<String> {
    let entries = fs::read_dir(out.join(names::CHECKPOINTS)).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_run_killed_at_any_step_resumes_to_the_same_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let whole = directory.path().join("whole");
    train(&mut create(&whole), &mut [0.5, 0.25], 0, 10);
    let expect = logs(&whole);
    assert_eq!(expect[0].lines().count(), 10);
    assert_eq!(
        expect[0].lines().next().unwrap(),
        r#"{"step":1,"time_s":0.0,"loss":0.5166666507720947,"epoch":0.14285714285714285}"#
    );

    for killed_after in 0..=10 {
        let out = directory.path().join(format!("killed-{killed_after}"));
        train(&mut create(&out), &mut [0.5, 0.25], 0, killed_after);
        // A kill can also fall in the middle of a line.
        fs::OpenOptions::new()
            .append(true)
            .open(out.join(names::METRICS))
            .unwrap()
            .write_all(b"{\"st")
            .unwrap();
        let notes = resume_and_train(&out, 10);
        assert_eq!(logs(&out), expect, "killed after step {killed_after}: {notes:?}");
        let last = |out: &Path| fs::read(out.join("checkpoints/step-9/state.safetensors")).unwrap();
        assert_eq!(last(&out), last(&whole));
        let from = killed_after / 3 * 3;
        let note = if from == 0 { "starting over".to_owned() } else { format!("after step {from}") };
        assert!(notes.iter().any(|found| found.contains(&note)), "{notes:?}");
    }
}

#[test]
fn a_directory_with_a_run_is_never_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("run");
    drop(create(&out));
    let before = fs::read(out.join(names::MANIFEST)).unwrap();
    let error = RunDir::create(&out, TOML, &manifest(vec![]), 0.0).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "{} already holds a run (found resolved.toml); continue it with --resume, or choose another --out",
            out.display()
        )
    );
    assert_eq!(fs::read(out.join(names::MANIFEST)).unwrap(), before);

    // A model of somebody else's is not touched either; unrelated files do not matter.
    let other = directory.path().join("other");
    fs::create_dir_all(other.join("model")).unwrap();
    fs::write(other.join("notes.txt"), "mine").unwrap();
    drop(create(&other)); // An empty directory is no model.
    let third = directory.path().join("third");
    fs::create_dir_all(third.join("model")).unwrap();
    fs::write(third.join("model/config.json"), "{}").unwrap();
    assert!(matches!(
        RunDir::create(&third, TOML, &manifest(vec![]), 0.0),
        Err(TrainError::RunExists { found: "model", .. })
    ));
}

#[test]
fn a_run_killed_before_it_began_can_be_created_again() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path();
    drop(create(out));
    fs::remove_file(out.join(names::RESOLVED)).unwrap(); // It is written last.
    assert!(matches!(RunDir::resume(out, TOML, &manifest(vec![]), "", 0.0), Err(TrainError::NoRun { .. })));
    drop(create(out));
}

#[test]
fn there_must_be_a_run_to_resume() {
    let directory = tempfile::tempdir().unwrap();
    let error = RunDir::resume(directory.path(), TOML, &manifest(vec![]), "", 0.0).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "{} holds no run to resume (no resolved.toml); start one without --resume",
            directory.path().display()
        )
    );
}

#[test]
fn two_processes_cannot_write_one_run() {
    let directory = tempfile::tempdir().unwrap();
    let run = create(directory.path());
    let error = RunDir::resume(directory.path(), TOML, &manifest(vec![]), "", 0.0).unwrap_err();
    assert!(matches!(error, TrainError::RunBusy { .. }), "{error}");
    drop(run);
    resume(directory.path());
}

/// Resumes with other settings or inputs; the differences named.
fn differences(out: &Path, toml: &str, manifest: &Manifest) -> Vec<String> {
    match RunDir::resume(out, toml, manifest, "", 0.0) {
        Err(TrainError::RunDiffers { differences, .. }) => differences,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_run_resumes_only_as_itself() {
    let directory = tempfile::tempdir().unwrap();
    let (out, data) = (directory.path().join("run"), directory.path().join("data.jsonl"));
    fs::write(&data, "one\n").unwrap();
    let inputs = || vec![Input::hash("data", &data).unwrap()];
    drop(RunDir::create(&out, TOML, &manifest(inputs()), 0.0).unwrap());

    let changed = TOML.replace("1e-3", "2e-3");
    assert_eq!(differences(&out, &changed, &manifest(inputs())), ["learning_rate was 0.001, is now 0.002"]);
    let added = format!("{TOML}beta = 0.1\n");
    assert_eq!(differences(&out, &added, &manifest(inputs())), ["beta was absent, is now 0.1"]);
    let dpo = Manifest { stage: "dpo".into(), ..manifest(inputs()) };
    assert_eq!(differences(&out, TOML, &dpo), ["it is of stage sft, not dpo"]);

    fs::write(&data, "two\n").unwrap();
    let [difference] = &differences(&out, TOML, &manifest(inputs()))[..] else { panic!() };
    assert!(difference.starts_with("the content of \"data\" has changed"), "{difference}");
    let [difference] = &differences(&out, TOML, &manifest(vec![]))[..] else { panic!() };
    assert!(difference.starts_with("it had an input \"data\""), "{difference}");
    fs::write(&data, "one\n").unwrap();
    let mut surplus = inputs();
    surplus.push(Input { role: "eval".into(), ..surplus[0].clone() });
    assert_eq!(differences(&out, TOML, &manifest(surplus)), ["it had no input \"eval\""]);

    // The same content elsewhere is the same input; threads do not change results; another machine is worth a note.
    let moved = directory.path().join("moved.jsonl");
    fs::rename(&data, &moved).unwrap();
    let mut elsewhere = manifest(vec![Input::hash("data", &moved).unwrap()]);
    elsewhere.machine.cpu = "another processor".into();
    elsewhere.code_version = "0.2.0".into();
    let threads = TOML.replace("threads = 0", "threads = 4");
    let resumed = RunDir::resume(&out, &threads, &elsewhere, "later", 0.0).unwrap();
    let notes = resumed.notes.join("\n");
    assert!(notes.contains("threads was 0, is now 4"), "{notes}");
    assert!(notes.contains("another processor") && notes.contains("version 0.1.0, this is 0.2.0"), "{notes}");
    assert_eq!(resumed.run.manifest().resumed, ["later"]);
    drop(resumed);
    assert_eq!(fs::read_to_string(out.join(names::RESOLVED)).unwrap(), threads);
}

/// Damages the newest of three checkpoints and resumes: the one before it is used, and the report says why.
#[track_caller]
fn check_damage(why: &str, damage: impl FnOnce(&Path)) {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("run");
    train(&mut create(&out), &mut [0.5, 0.25], 0, 9);
    damage(&out.join("checkpoints/step-9"));
    let notes = resume_and_train(&out, 10).join("\n");
    assert!(notes.contains("resuming after step 6"), "{notes}");
    assert!(notes.contains(why), "expected {why:?} in {notes}");
    assert_eq!(steps(&out), ["step-3", "step-6", "step-9", "step-9.damaged"]);
    let whole = directory.path().join("whole");
    train(&mut create(&whole), &mut [0.5, 0.25], 0, 10);
    assert_eq!(logs(&out), logs(&whole));
}

#[test]
fn a_damaged_checkpoint_is_set_aside() {
    check_damage("No such file", |dir| fs::remove_file(dir.join("state.safetensors")).unwrap());
    check_damage("No such file", |dir| fs::remove_file(dir.join("checkpoint.json")).unwrap());
    check_damage("expected the JSON that this program writes", |dir| {
        fs::write(dir.join("checkpoint.json"), "{\"version\": 1").unwrap();
    });
    check_damage("expected version 1", |dir| {
        let path = dir.join("checkpoint.json");
        let text = fs::read_to_string(&path).unwrap().replace("\"version\": 1", "\"version\": 2");
        fs::write(path, text).unwrap();
    });
    check_damage("found 50 bytes, expected", |dir| {
        let file = fs::OpenOptions::new().write(true).open(dir.join("state.safetensors")).unwrap();
        file.set_len(50).unwrap();
    });
    check_damage("found content", |dir| {
        let path = dir.join("state.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(path, bytes).unwrap();
    });
    check_damage("is a checkpoint of step 6", |dir| {
        fs::remove_dir_all(dir).unwrap();
        let from = dir.with_file_name("step-6");
        fs::create_dir(dir).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
        }
    });
}

#[test]
fn what_a_kill_left_half_written_is_removed() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("run");
    train(&mut create(&out), &mut [0.5, 0.25], 0, 4);
    let half = out.join("checkpoints/.tmp-step-6");
    fs::create_dir(&half).unwrap();
    fs::write(half.join("state.safetensors"), "half").unwrap();
    let notes = resume_and_train(&out, 7).join("\n");
    assert!(notes.contains("removed .tmp-step-6"), "{notes}");
    assert_eq!(steps(&out), ["step-3", "step-6"]);
}

#[test]
fn logs_that_lost_lines_since_the_checkpoint_are_reported() {
    let directory = tempfile::tempdir().unwrap();
    train(&mut create(directory.path()), &mut [0.5, 0.25], 0, 3);
    let path = directory.path().join(names::METRICS);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, &text[..text.len() - 5]).unwrap();
    let error = RunDir::resume(directory.path(), TOML, &manifest(vec![]), "", 0.0).unwrap_err();
    assert!(matches!(&error, TrainError::Damaged { file, .. } if *file == path), "{error}");
    fs::write(&path, format!("{}xxxxxxxxxxx", &text[..text.len() - 5])).unwrap();
    let error = RunDir::resume(directory.path(), TOML, &manifest(vec![]), "", 0.0).unwrap_err();
    assert!(error.to_string().contains("the middle of a line"), "{error}");
}

#[test]
fn old_checkpoints_go_only_after_the_new_one_is_complete() {
    let directory = tempfile::tempdir().unwrap();
    let mut run = create(directory.path());
    run.keep_checkpoints(Some(2));
    for step in [1, 2, 10] {
        save(&mut run, step, &[1.0]).unwrap();
    }
    assert_eq!(steps(directory.path()), ["step-10", "step-2"]);
    let error = run.save_checkpoint(11, 0.0, |checkpoint| {
        assert_eq!(steps(directory.path()), [".tmp-step-11", "step-10", "step-2"]);
        let io = std::io::Error::from(std::io::ErrorKind::StorageFull);
        Err(TrainError::Write { file: checkpoint.dir().join("x"), action: "write", source: io })
    });
    assert!(error.is_err());
    assert_eq!(steps(directory.path()), ["step-10", "step-2"]);
    run.keep_checkpoints(Some(0)); // As 1: the newest is never removed.
    save(&mut run, 12, &[1.0]).unwrap();
    assert_eq!(steps(directory.path()), ["step-12"]);
}

#[test]
fn a_panic_while_saving_leaves_no_trace() {
    let directory = tempfile::tempdir().unwrap();
    let mut run = create(directory.path());
    save(&mut run, 1, &[1.0]).unwrap();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        run.save_checkpoint(2, 0.0, |_| panic!("deliberate"))
    }));
    assert!(panicked.is_err());
    assert_eq!(steps(directory.path()), ["step-1"]);
}

#[test]
fn nested_files_are_part_of_a_checkpoint() {
    let directory = tempfile::tempdir().unwrap();
    let mut run = create(directory.path());
    run.save_checkpoint(1, 0.0, |checkpoint| {
        fs::create_dir_all(checkpoint.dir().join("critic/model")).unwrap();
        fs::write(checkpoint.dir().join("critic/model/config.json"), "{}").unwrap();
        Ok(())
    })
    .unwrap();
    let dir = directory.path().join("checkpoints/step-1");
    assert_eq!(Checkpoint::open(&dir).unwrap().step(), 1);
    fs::write(dir.join("critic/model/config.json"), "{ }").unwrap();
    assert!(Checkpoint::open(&dir).is_err());
}

#[test]
fn a_directory_of_the_run_is_replaced_whole() {
    let directory = tempfile::tempdir().unwrap();
    let run = create(directory.path());
    let write = |content: &'static str| {
        run.write_directory(names::MODEL, |dir| {
            fs::write(dir.join("config.json"), content).unwrap();
            Ok(())
        })
    };
    write("old").unwrap();
    write("new").unwrap();
    let read = || fs::read_to_string(directory.path().join("model/config.json")).unwrap();
    assert_eq!(read(), "new");
    let failed = run.write_directory(names::MODEL, |dir| {
        fs::write(dir.join("config.json"), "half").unwrap();
        Err(TrainError::Read { file: "x".into(), source: std::io::ErrorKind::NotFound.into() })
    });
    assert!(failed.is_err());
    assert_eq!(read(), "new");
    let hidden = fs::read_dir(directory.path())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(".tmp-"));
    assert_eq!(hidden.count(), 0);
}

/// A small disk of its own. `None`, with a message, where mounting is not allowed.
struct Disk {
    _parent: tempfile::TempDir,
    path: PathBuf,
}

impl Disk {
    fn mount(bytes: u64) -> Option<Disk> {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("disk");
        fs::create_dir(&path).unwrap();
        let options = format!("size={bytes}");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&path).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Disk { _parent: parent, path });
        }
        eprintln!("skipped: mounting a small disk needs root on Linux");
        None
    }

    fn make_read_only(&self) {
        let status = Command::new("mount").args(["-o", "remount,ro"]).arg(&self.path).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily, because a failed test may still hold files open.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

#[test]
fn a_full_disk_leaves_the_older_checkpoints_and_the_logs_whole() {
    let Some(disk) = Disk::mount(256 << 10) else { return };
    let out = disk.path.join("run");
    let mut run = create(&out);
    let state = vec![1.5_f32; 20_000]; // 80 KB: two fit, a third does not.
    run.log(1, 0.0, &metrics(1, &state)).unwrap();
    save(&mut run, 1, &state).unwrap();
    save(&mut run, 2, &state).unwrap();
    let error = save(&mut run, 3, &state).unwrap_err();
    assert!(
        matches!(&error, TrainError::Write { file, source, .. }
            if file.ends_with("checkpoints/.tmp-step-3/state.safetensors")
                && source.kind() == std::io::ErrorKind::StorageFull),
        "{error}"
    );
    assert_eq!(steps(&out), ["step-1", "step-2"]);
    assert_eq!(Checkpoint::open(&out.join("checkpoints/step-2")).unwrap().step(), 2);

    // Fill the rest: a log line that does not fit is taken back whole.
    let mut filler = fs::File::create(disk.path.join("filler")).unwrap();
    while filler.write_all(&[0; 64]).is_ok() {}
    let mut step = 1;
    let error = loop {
        step += 1;
        assert!(step < 10_000, "the disk never filled");
        if let Err(error) = run.log(step, 0.0, &metrics(step, &state)) {
            break error;
        }
    };
    assert!(error.to_string().contains("metrics.jsonl: "), "{error}");
    let text = fs::read_to_string(out.join(names::METRICS)).unwrap();
    assert!(text.ends_with("}\n") && text.lines().count() as u64 == step - 1, "{}", text.lines().count());

    // With room again, the run goes on.
    drop((run, filler));
    fs::remove_file(disk.path.join("filler")).unwrap();
    let resumed = resume(&out);
    assert_eq!(resumed.checkpoint.unwrap().step(), 2);
}

#[test]
fn a_read_only_disk_is_named() {
    let Some(disk) = Disk::mount(256 << 10) else { return };
    let out = disk.path.join("run");
    drop(create(&out));
    disk.make_read_only();
    for error in [
        RunDir::create(&disk.path.join("new"), TOML, &manifest(vec![]), 0.0).unwrap_err(),
        RunDir::resume(&out, TOML, &manifest(vec![]), "", 0.0).unwrap_err(),
    ] {
        assert!(
            matches!(&error, TrainError::Write { source, .. } if source.kind() == std::io::ErrorKind::ReadOnlyFilesystem),
            "{error}"
        );
        assert!(error.to_string().contains(&*disk.path.to_string_lossy()), "{error}");
    }
}

#[test]
fn a_device_in_place_of_a_file_reports_a_full_disk_too() {
    // Needs no root: /dev/full has no room.
    if !Path::new("/dev/full").exists() {
        return;
    }
    let error = write_buffers(Path::new("/dev/full"), &[("x", &[1.0; 4])]).unwrap_err();
    assert_eq!(error.to_string(), "cannot write /dev/full: No space left on device (os error 28)");
}

#[test]
fn the_manifest_says_when_the_run_ended() {
    let directory = tempfile::tempdir().unwrap();
    let mut run = create(directory.path());
    let read = || -> Manifest {
        serde_json::from_slice(&fs::read(directory.path().join(names::MANIFEST)).unwrap()).unwrap()
    };
    assert_eq!(read(), manifest(vec![]));
    run.finish("2026-01-02T00:00:00Z").unwrap();
    assert_eq!(read().finished.as_deref(), Some("2026-01-02T00:00:00Z"));
    drop(run);
    resume(directory.path());
    assert_eq!((read().finished, read().resumed.len()), (None, 1));
}

#[test]
fn a_model_directory_is_hashed_by_what_a_model_is() {
    let directory = tempfile::tempdir().unwrap();
    let model = directory.path().join("model");
    fs::create_dir(&model).unwrap();
    fs::write(model.join("config.json"), "{}").unwrap();
    fs::write(model.join("model.safetensors"), "weights").unwrap();
    let first = Input::hash("model", &model).unwrap();
    assert_eq!(first.bytes, 9);
    fs::write(model.join("README.md"), "hello").unwrap();
    fs::create_dir(model.join(".cache")).unwrap();
    fs::write(model.join(".cache/x.json"), "1").unwrap();
    assert_eq!(Input::hash("model", &model).unwrap(), first);
    fs::rename(model.join("config.json"), model.join("config2.json")).unwrap();
    assert_ne!(Input::hash("model", &model).unwrap().blake3, first.blake3);
    let missing = directory.path().join("nothing");
    assert_eq!(
        Input::hash("data", &missing).unwrap_err().to_string(),
        format!("cannot read {}: No such file or directory (os error 2)", missing.display())
    );
}

#[test]
fn buffers_come_back_to_the_bit_and_are_safetensors() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.safetensors");
    let odd = [f32::MIN_POSITIVE / 2.0, -0.0, f32::NAN, f32::INFINITY, 1.0e-45];
    write_buffers(&path, &[("odd", &odd), ("empty", &[]), ("params", &[1.0, 2.0])]).unwrap();

    let mut back = [0.0; 5];
    read_buffer(&path, "odd", &mut back).unwrap();
    assert_eq!(back.map(f32::to_bits), odd.map(f32::to_bits));
    read_buffer(&path, "empty", &mut []).unwrap();

    let bytes = fs::read(&path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.len(), 3);
    let params = tensors.tensor("params").unwrap();
    assert_eq!((params.dtype(), params.shape()), (safetensors::Dtype::F32, &[2][..]));
    assert_eq!(params.data(), [1.0_f32.to_le_bytes(), 2.0_f32.to_le_bytes()].concat());

    let message = |name: &str, n: usize| read_buffer(&path, name, &mut vec![0.0; n]).unwrap_err().to_string();
    let file = path.display();
    assert_eq!(
        message("params", 3),
        format!("{file}: found \"params\" of type F32 and shape [2], expected type F32 and shape [3]")
    );
    assert_eq!(
        message("moments", 1),
        format!("{file}: found buffers empty, odd, params, expected a buffer \"moments\"")
    );
    fs::write(&path, [0xff; 8]).unwrap();
    assert!(message("params", 2).contains("expected a safetensors file"));
}

/// Remembers warnings; its clock advances by a quarter of a second each time it is asked.
struct Listener {
    asked: std::cell::Cell<f64>,
    warnings: Vec<String>,
    steps: Vec<u64>,
}

impl Host for Listener {
    fn now_s(&self) -> f64 {
        self.asked.set(self.asked.get() + 0.25);
        self.asked.get()
    }

    fn stop_requested(&self) -> bool {
        false
    }

    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Note { level: Level::Warning, text } => self.warnings.push(text.into()),
            Event::Metrics { step, .. } => self.steps.push(step),
            _ => {}
        }
    }
}

#[test]
fn a_number_that_is_not_finite_is_null_and_warned_about() {
    let directory = tempfile::tempdir().unwrap();
    let mut run = create(directory.path());
    let mut host = Listener { asked: 0.0.into(), warnings: vec![], steps: vec![] };
    let mut bad = Metrics::new(Stage::Sft);
    bad.put("loss", f64::NAN);
    bad.put("epoch", 1.0);
    run.record(&mut host, 1, &bad).unwrap();
    run.record(&mut host, 2, &metrics(2, &[3.0])).unwrap();
    assert_eq!(host.warnings, ["step 1: not a finite number: loss"]);
    assert_eq!(host.steps, [1, 2]);
    let text = fs::read_to_string(directory.path().join(names::METRICS)).unwrap();
    assert_eq!(
        text,
        "{\"step\":1,\"time_s\":0.25,\"loss\":null,\"epoch\":1.0}\n\
         {\"step\":2,\"time_s\":0.5,\"loss\":1.0,\"epoch\":0.2857142857142857}\n"
    );
}

#[test]
fn time_goes_on_where_the_checkpoint_was_made() {
    let directory = tempfile::tempdir().unwrap();
    let mut run = RunDir::create(directory.path(), TOML, &manifest(vec![]), 100.0).unwrap();
    run.save_checkpoint(1, 130.0, |_| Ok(())).unwrap();
    drop(run);
    let resumed = RunDir::resume(directory.path(), TOML, &manifest(vec![]), "", 7.0).unwrap();
    assert_eq!(resumed.run.time_s(9.0), 32.0);
}

#[test]
#[should_panic(expected = "step 1 is logged after step 1")]
fn a_step_is_logged_once() {
    let directory = tempfile::tempdir().unwrap();
    let mut run = create(directory.path());
    run.log(1, 0.0, &metrics(1, &[1.0])).unwrap();
    run.log(1, 0.0, &metrics(1, &[1.0])).unwrap();
}
