//! A run on disk: its settings, its logs, its checkpoints, and starting again after it was killed.
//!
//! ```text
//! RUN/resolved.toml            every setting, as used
//! RUN/manifest.json            hashes of the inputs, code version, machine, seed, times
//! RUN/metrics.jsonl            one object a step: step, time_s, metrics
//! RUN/samples.jsonl            responses to the fixed prompts over time
//! RUN/alarms.jsonl             alarms raised and cleared
//! RUN/tensorboard/             metrics.jsonl as TensorBoard reads it, if asked for
//! RUN/checkpoints/step-N/      everything needed to go on after step N, and checkpoint.json with the hash of each file
//! RUN/model/  RUN/report.html  at the end
//! RUN/.lock                    held by the process that writes
//! ```
//!
//! What must hold after a crash at any moment:
//!
//! - A directory named `step-N` is complete: it is written as `.tmp-step-N`, each file and the directory are synced, and
//!   only then is it renamed. It is verified by its hashes all the same when it is read, because disks do lie.
//! - The logs are synced before the checkpoint that records their lengths, so a resumed run can cut them back to those
//!   lengths and then writes the same bytes as an uninterrupted one (but for `time_s`).
//! - An older checkpoint is removed only after a newer one is complete.
//! - Nothing of a run that was there before is deleted to start a new one.
//!
//! Not here: what is in a checkpoint (the trainer's), the clock (the caller's), the report's content.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use polity_rows::{FileLock, atomic_write};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::metrics::Metrics;
use crate::monitor::Alarm;
use crate::progress::{Event, Host, Level, Sample};
use crate::settings::RESUME_MAY_CHANGE;
use crate::tensorboard::EventFile;

/// Names in a run's directory.
pub mod names {
    /// Every setting.
    pub const RESOLVED: &str = "resolved.toml";
    /// Where the run came from.
    pub const MANIFEST: &str = "manifest.json";
    /// Numbers of each step.
    pub const METRICS: &str = "metrics.jsonl";
    /// Responses over time.
    pub const SAMPLES: &str = "samples.jsonl";
    /// Alarms.
    pub const ALARMS: &str = "alarms.jsonl";
    /// Checkpoints.
    pub const CHECKPOINTS: &str = "checkpoints";
    /// What the run made.
    pub const MODEL: &str = "model";
    /// The adapter, if the run trained one: a directory that PEFT loads.
    pub const ADAPTER: &str = "adapter";
    /// What the run did, for people.
    pub const REPORT: &str = "report.html";
    /// TensorBoard's event files.
    pub const TENSORBOARD: &str = "tensorboard";
    /// In a checkpoint: its files and their hashes.
    pub const CHECKPOINT: &str = "checkpoint.json";
    pub(super) const LOCK: &str = ".lock";
}

/// Start of the name of a checkpoint.
const STEP_PREFIX: &str = "step-";
/// Start of the name of what is being written or removed.
const TMP_PREFIX: &str = ".tmp-";
/// End of the name of a checkpoint that failed its verification.
const DAMAGED_SUFFIX: &str = ".damaged";
/// Of `checkpoint.json`.
const CHECKPOINT_VERSION: u32 = 1;

// ------------------------------------------------------------------------------------------------------- provenance

/// What a run was made from: with the same manifest, the same bits (times apart).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Which trainer.
    pub stage: String,
    /// The command line, word by word.
    pub command: Vec<String>,
    /// blake3 of the settings without comments.
    pub config_blake3: String,
    /// Files and directories read.
    pub inputs: Vec<Input>,
    /// Version of the program.
    pub code_version: String,
    /// Commit it was built from, where that is known.
    pub code_commit: Option<String>,
    /// Where it ran.
    pub machine: Machine,
    /// Seed of everything random.
    pub seed: u64,
    /// When the run began, as the caller writes times.
    pub started: String,
    /// When it ended; absent while it runs.
    pub finished: Option<String>,
    /// When it was resumed.
    #[serde(default)]
    pub resumed: Vec<String>,
    /// What was known of the reward model that a policy was optimised against, if anything was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acceptance: Option<RewardAcceptance>,
}

/// A verdict on a reward model, as it stood when a run was started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RewardAcceptance {
    /// "pass", "fail" or "inconclusive".
    pub verdict: String,
    /// Name of the policy that it was judged by.
    pub policy: String,
    /// Hash of that policy's text.
    pub policy_blake3: String,
    /// Why, one sentence for each criterion that decided it.
    pub reasons: Vec<String>,
    /// Why the run was started although the verdict is "fail", in the words of who started it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overridden: Option<String>,
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor, as it calls itself.
    pub cpu: String,
    /// Instruction set that the kernels used.
    pub isa: String,
    /// Threads.
    pub threads: usize,
}

/// A file or directory that a run read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Input {
    /// What it was to the run: "model", "data", "reward_model", …
    pub role: String,
    /// Where it was.
    pub path: PathBuf,
    /// Its content's hash; of a directory, the hash of its files' names and hashes.
    pub blake3: String,
    /// Its size; of a directory, its files' sizes together.
    pub bytes: u64,
    /// The frozen dataset that it was exported from, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset: Option<FrozenDataset>,
}

/// A dataset that a project's ledger vouches for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FrozenDataset {
    /// Its name in the project.
    pub name: String,
    /// Its hash, as the ledger's `freeze` event has it.
    pub hash: String,
}

/// Version of this program.
pub const CODE_VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit it was built from, if the build set it.
pub const CODE_COMMIT: Option<&str> = option_env!("POLITY_GIT_COMMIT");

impl Input {
    /// Hashes a file, or a model directory. Of a directory only what a model consists of counts
    /// (`.json`, `.jsonl`, `.jinja`, `.safetensors`, `.txt`, `.model`), hidden files and readmes do not.
    pub fn hash(role: &str, path: &Path) -> Result<Input, TrainError> {
        let metadata = fs::metadata(path).map_err(TrainError::read(path))?;
        let (blake3, bytes) = if metadata.is_dir() {
            let mut hasher = blake3::Hasher::new();
            let mut bytes = 0;
            for name in files_under(path)? {
                let extension = name.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
                if !["json", "jsonl", "jinja", "safetensors", "txt", "model"].contains(&extension) {
                    continue;
                }
                let file = hash_file(&path.join(&name))?;
                hasher.update(name.to_string_lossy().as_bytes()).update(&[0]).update(file.blake3.as_bytes());
                bytes += file.bytes;
            }
            (hasher.finalize().to_hex().to_string(), bytes)
        } else {
            let file = hash_file(path)?;
            (file.blake3, file.bytes)
        };
        Ok(Input { role: role.into(), path: path.to_owned(), blake3, bytes, dataset: None })
    }
}

/// Hash of settings without comments, for [`Manifest::config_blake3`].
pub fn config_hash(canonical_toml: &str) -> String {
    blake3::hash(canonical_toml.as_bytes()).to_hex().to_string()
}

// -------------------------------------------------------------------------------------------------------- directory

/// A run's directory, open for writing.
#[derive(Debug)]
pub struct RunDir {
    out: PathBuf,
    manifest: Manifest,
    logs: Logs,
    tensorboard: Option<Tensorboard>,
    last_step: u64,
    clock: Clock,
    checkpoints_max: Option<usize>,
    // Released when the process ends, however it ends.
    _lock: FileLock,
}

/// A run to go on with.
#[derive(Debug)]
pub struct Resumed {
    /// Its directory; the logs end where the checkpoint was made.
    pub run: RunDir,
    /// The newest complete checkpoint; `None` if the run was killed before its first one, so that it starts over.
    pub checkpoint: Option<Checkpoint>,
    /// What was found and done, one sentence each.
    pub notes: Vec<String>,
}

/// The copy of the log that TensorBoard reads.
#[derive(Debug)]
struct Tensorboard {
    events: EventFile,
    /// Unix time at which the run would have begun if it had never been interrupted.
    began_unix_s: f64,
}

/// Time that the run took before this process, and the caller's clock when this process began.
#[derive(Clone, Copy, Debug)]
struct Clock {
    before_s: f64,
    began_s: f64,
}

impl RunDir {
    /// Begins a run in a new directory, or in one that holds no run yet. `now_s` is the caller's clock.
    pub fn create(
        out: &Path,
        resolved_toml: &str,
        manifest: &Manifest,
        now_s: f64,
    ) -> Result<RunDir, TrainError> {
        fs::create_dir_all(out).map_err(TrainError::write(out, "create the directory"))?;
        let lock = lock(out)?;
        if let Some(found) = what_a_run_left(out) {
            return Err(TrainError::RunExists { out: out.to_owned(), found });
        }
        let checkpoints = out.join(names::CHECKPOINTS);
        fs::create_dir_all(&checkpoints).map_err(TrainError::write(&checkpoints, "create the directory"))?;
        let run = RunDir {
            out: out.to_owned(),
            manifest: manifest.clone(),
            logs: Logs::open(out)?,
            tensorboard: None,
            last_step: 0,
            clock: Clock { before_s: 0.0, began_s: now_s },
            checkpoints_max: None,
            _lock: lock,
        };
        run.write_manifest()?;
        // Last, because its presence is what makes the directory a run that can be resumed.
        run.write_file(names::RESOLVED, resolved_toml.as_bytes())?;
        Ok(run)
    }

    /// Goes on with a run from its newest complete checkpoint. Settings and inputs must be those it was started with,
    /// apart from [`RESUME_MAY_CHANGE`]. `now` is noted in the manifest; `now_s` is the caller's clock.
    pub fn resume(
        out: &Path,
        resolved_toml: &str,
        manifest: &Manifest,
        now: &str,
        now_s: f64,
    ) -> Result<Resumed, TrainError> {
        for missing in [names::RESOLVED, names::MANIFEST] {
            if !out.join(missing).is_file() {
                return Err(TrainError::NoRun { out: out.to_owned(), missing });
            }
        }
        let lock = lock(out)?;
        let mut notes = Vec::new();
        let mut was: Manifest = read_json(&out.join(names::MANIFEST))?;
        check_same_run(out, resolved_toml, manifest, &was, &mut notes)?;
        was.resumed.push(now.to_owned());
        was.finished = None;
        // What was overridden once stays on record.
        let overridden = was.acceptance.as_ref().is_some_and(|known| known.overridden.is_some());
        if !overridden && manifest.acceptance.is_some() {
            was.acceptance.clone_from(&manifest.acceptance);
        }

        let checkpoints = out.join(names::CHECKPOINTS);
        fs::create_dir_all(&checkpoints).map_err(TrainError::write(&checkpoints, "create the directory"))?;
        let checkpoint = newest_complete(&checkpoints, &mut notes)?;
        let mut logs = Logs::open(out)?;
        let (last_step, before_s) = match &checkpoint {
            Some(checkpoint) => {
                logs.cut(&checkpoint.record.logs)?;
                notes.push(format!("resuming after step {}", checkpoint.step()));
                (checkpoint.step(), checkpoint.record.time_s)
            }
            None => {
                logs.cut(&BTreeMap::new())?;
                notes.push("no complete checkpoint: starting over".into());
                (0, 0.0)
            }
        };
        let run = RunDir {
            out: out.to_owned(),
            manifest: was,
            logs,
            tensorboard: None,
            last_step,
            clock: Clock { before_s, began_s: now_s },
            checkpoints_max: None,
            _lock: lock,
        };
        run.write_manifest()?;
        run.write_file(names::RESOLVED, resolved_toml.as_bytes())?;
        Ok(Resumed { run, checkpoint, notes })
    }

    /// Keeps only the newest checkpoints from now on (`save_total_limit`).
    pub fn keep_checkpoints(&mut self, limit: Option<u64>) {
        self.checkpoints_max = limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX).max(1));
    }

    /// Copies `metrics.jsonl` to a TensorBoard event file, what is there and what comes. Earlier event files are removed:
    /// they may hold steps that a resumed run does again. `unix_s` and `now_s` are the same moment, on the wall and on the
    /// caller's clock.
    pub fn write_tensorboard(&mut self, unix_s: f64, now_s: f64) -> Result<(), TrainError> {
        let mut events = EventFile::replace_all(&self.out.join(names::TENSORBOARD), unix_s)?;
        let began_unix_s = unix_s - self.time_s(now_s);
        for Step { step, time_s, values } in read_steps(&self.out)? {
            let values = values.iter().map(|(name, value)| (name.as_str(), *value));
            events.step(began_unix_s + time_s, step, values)?;
        }
        self.tensorboard = Some(Tensorboard { events, began_unix_s });
        Ok(())
    }

    /// The directory.
    pub fn out(&self) -> &Path {
        &self.out
    }

    /// Where the run came from.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The last step in `metrics.jsonl`.
    pub fn last_step(&self) -> u64 {
        self.last_step
    }

    /// Seconds of the run at the caller's `now_s`, processes that it was resumed from included.
    pub fn time_s(&self, now_s: f64) -> f64 {
        self.clock.before_s + (now_s - self.clock.began_s)
    }

    /// Writes a step's numbers to `metrics.jsonl` and tells the host, with a warning for numbers that are not finite
    /// (they are `null` in the file).
    pub fn record(&mut self, host: &mut dyn Host, step: u64, metrics: &Metrics) -> Result<(), TrainError> {
        self.log(step, self.time_s(host.now_s()), metrics)?;
        host.event(Event::Metrics { step, metrics });
        let not_finite: Vec<&str> =
            metrics.iter().filter(|(_, value)| !value.is_finite()).map(|(name, _)| name).collect();
        if !not_finite.is_empty() {
            let text = format!("step {step}: not a finite number: {}", not_finite.join(", "));
            host.event(Event::Note { level: Level::Warning, text: &text });
        }
        Ok(())
    }

    /// Writes a step's numbers to `metrics.jsonl`, and to its copies.
    ///
    /// # Panics
    ///
    /// If the step does not come after the last one: there is one line a step.
    pub fn log(&mut self, step: u64, time_s: f64, metrics: &Metrics) -> Result<(), TrainError> {
        assert!(step > self.last_step, "step {step} is logged after step {}", self.last_step);
        self.logs.metrics.append(&MetricsLine { step, time_s: round_to_ms(time_s), metrics })?;
        if let Some(Tensorboard { events, began_unix_s }) = &mut self.tensorboard {
            events.step(*began_unix_s + time_s, step, metrics.iter())?;
        }
        self.last_step = step;
        Ok(())
    }

    /// Writes a response to `samples.jsonl`.
    pub fn log_sample(&mut self, sample: &Sample) -> Result<(), TrainError> {
        self.logs.samples.append(sample)
    }

    /// Writes an alarm to `alarms.jsonl`.
    pub fn log_alarm(&mut self, alarm: &Alarm) -> Result<(), TrainError> {
        self.logs.alarms.append(alarm)
    }

    /// Saves a checkpoint of the run after `step`. `write` puts the trainer's state into it; whatever it writes under
    /// [`CheckpointWriter::dir`] is part of it. A failure leaves every older checkpoint as it was. A step that is
    /// already saved is not saved again.
    pub fn save_checkpoint(
        &mut self,
        step: u64,
        now_s: f64,
        write: impl FnOnce(&CheckpointWriter) -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        let checkpoints = self.out.join(names::CHECKPOINTS);
        let name = format!("{STEP_PREFIX}{step}");
        if checkpoints.join(&name).is_dir() {
            return Ok(());
        }
        // First, so that the checkpoint never knows of lines that a power cut could take away.
        self.logs.sync()?;
        let (logs, time_s) = (self.logs.lengths(), self.time_s(now_s));
        write_directory(&checkpoints, &name, |dir| {
            write(&CheckpointWriter { dir: dir.to_owned() })?;
            let files = files_under(dir)?
                .into_iter()
                .map(|name| {
                    Ok(FileRecord {
                        name: name.to_string_lossy().into_owned(),
                        ..hash_file(&dir.join(&name))?
                    })
                })
                .collect::<Result<Vec<_>, TrainError>>()?;
            let record =
                Record { version: CHECKPOINT_VERSION, step, time_s: round_to_ms(time_s), logs, files };
            write_json(&dir.join(names::CHECKPOINT), &record)
        })?;
        self.remove_old_checkpoints(&checkpoints)
    }

    fn remove_old_checkpoints(&self, checkpoints: &Path) -> Result<(), TrainError> {
        let Some(keep) = self.checkpoints_max else { return Ok(()) };
        let mut steps = steps_in(checkpoints)?;
        steps.sort_unstable();
        let surplus = steps.len().saturating_sub(keep);
        steps[..surplus].iter().try_for_each(|step| {
            // Renamed first, so that a kill half way does not leave a checkpoint with half its files.
            let (old, doomed) =
                (format!("{STEP_PREFIX}{step}"), format!("{TMP_PREFIX}old-{STEP_PREFIX}{step}"));
            remove_by_rename(&checkpoints.join(old), &checkpoints.join(doomed))
        })
    }

    /// Writes a directory of the run, such as `model`, in one step: it is the old one or the whole new one.
    pub fn write_directory(
        &self,
        name: &str,
        write: impl FnOnce(&Path) -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        write_directory(&self.out, name, write)
    }

    /// Writes a file of the run in one step.
    pub fn write_file(&self, name: &str, content: &[u8]) -> Result<(), TrainError> {
        Ok(atomic_write(self.out.join(name), |writer| writer.write_all(content))?)
    }

    /// Notes in the manifest that the run is complete.
    pub fn finish(&mut self, now: &str) -> Result<(), TrainError> {
        self.logs.sync()?;
        self.manifest.finished = Some(now.to_owned());
        self.write_manifest()
    }

    fn write_manifest(&self) -> Result<(), TrainError> {
        let mut text = serde_json::to_string_pretty(&self.manifest).expect("a manifest has string keys only");
        text.push('\n');
        self.write_file(names::MANIFEST, text.as_bytes())
    }
}

fn lock(out: &Path) -> Result<FileLock, TrainError> {
    let path = out.join(names::LOCK);
    let lock = FileLock::take(&path).map_err(TrainError::write(&path, "create"))?;
    lock.ok_or_else(|| TrainError::RunBusy { out: out.to_owned() })
}

/// The first thing that says that there was a run. Empty files and directories do not: `create` makes them before the
/// run exists.
fn what_a_run_left(out: &Path) -> Option<&'static str> {
    [names::RESOLVED, names::MODEL, names::REPORT, names::METRICS, names::CHECKPOINTS].into_iter().find(
        |name| {
            let path = out.join(name);
            match fs::metadata(&path) {
                Ok(metadata) if metadata.is_dir() => {
                    fs::read_dir(&path).map_or(true, |mut entries| entries.next().is_some())
                }
                Ok(metadata) => metadata.len() > 0,
                Err(_) => false,
            }
        },
    )
}

/// An error that names every difference that matters; a note for every one that does not.
fn check_same_run(
    out: &Path,
    resolved_toml: &str,
    manifest: &Manifest,
    was: &Manifest,
    notes: &mut Vec<String>,
) -> Result<(), TrainError> {
    let mut differences = Vec::new();
    if was.stage != manifest.stage {
        differences.push(format!("it is of stage {}, not {}", was.stage, manifest.stage));
    } else {
        let path = out.join(names::RESOLVED);
        let text = fs::read_to_string(&path).map_err(TrainError::read(&path))?;
        let parse = |text: &str| text.parse::<toml::Table>();
        let (then, now) = match (parse(&text), parse(resolved_toml)) {
            (Ok(then), Ok(now)) => (then, now),
            (Err(error), _) | (_, Err(error)) => {
                let found = format!("text that is not TOML ({})", error.message());
                let expected = "the settings that the run was started with".into();
                return Err(TrainError::Damaged { file: path, found, expected });
            }
        };
        let keys: std::collections::BTreeSet<&String> = then.keys().chain(now.keys()).collect();
        for key in keys {
            let show = |table: &toml::Table| table.get(key).map_or("absent".to_owned(), ToString::to_string);
            let (then, now) = (show(&then), show(&now));
            if then != now && RESUME_MAY_CHANGE.contains(&key.as_str()) {
                notes.push(format!("{key} was {then}, is now {now}; results do not depend on it"));
            } else if then != now {
                differences.push(format!("{key} was {then}, is now {now}"));
            }
        }
    }
    for input in &was.inputs {
        match manifest.inputs.iter().find(|now| now.role == input.role) {
            None => differences.push(format!("it had an input {:?}, {}", input.role, input.path.display())),
            Some(now) if now.blake3 != input.blake3 => differences.push(format!(
                "the content of {:?} has changed: it was {} ({} bytes), is {} ({} bytes)",
                input.role,
                input.path.display(),
                input.bytes,
                now.path.display(),
                now.bytes
            )),
            Some(_) => {}
        }
    }
    for now in &manifest.inputs {
        if !was.inputs.iter().any(|input| input.role == now.role) {
            differences.push(format!("it had no input {:?}", now.role));
        }
    }
    if !differences.is_empty() {
        return Err(TrainError::RunDiffers { out: out.to_owned(), differences });
    }
    let builds = [(&was.code_version, &was.code_commit), (&manifest.code_version, &manifest.code_commit)];
    if builds[0] != builds[1] {
        notes.push(format!(
            "the run was started by version {}, this is {}: the same bits are not promised across versions",
            was.code_version, manifest.code_version
        ));
    }
    if was.machine.cpu != manifest.machine.cpu || was.machine.isa != manifest.machine.isa {
        notes.push(format!(
            "the run was started on {} ({}), this is {} ({}): the same bits are not promised across machines",
            was.machine.cpu, was.machine.isa, manifest.machine.cpu, manifest.machine.isa
        ));
    }
    Ok(())
}

// ------------------------------------------------------------------------------------------------------------- logs

#[derive(Serialize)]
struct MetricsLine<'a> {
    step: u64,
    time_s: f64,
    #[serde(flatten)]
    metrics: &'a Metrics,
}

/// A line of `metrics.jsonl`, read back.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The step.
    pub step: u64,
    /// Seconds since the run began.
    pub time_s: f64,
    /// Its numbers by name; NaN where the number was not finite.
    pub values: BTreeMap<String, f64>,
}

/// Every line of a run's `metrics.jsonl`, in order.
pub fn read_steps(out: &Path) -> Result<Vec<Step>, TrainError> {
    let lines: Vec<BTreeMap<String, Option<f64>>> = read_lines(&out.join(names::METRICS))?;
    let step = |line: BTreeMap<String, Option<f64>>| {
        let mut values: BTreeMap<String, f64> =
            line.into_iter().map(|(name, value)| (name, value.unwrap_or(f64::NAN))).collect();
        let step = values.remove("step").unwrap_or(0.0) as u64;
        Step { step, time_s: values.remove("time_s").unwrap_or(0.0), values }
    };
    Ok(lines.into_iter().map(step).collect())
}

/// Every line of a log.
pub fn read_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, TrainError> {
    let text = fs::read_to_string(path).map_err(TrainError::read(path))?;
    let parse = |(i, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|error| TrainError::Damaged {
            file: path.to_owned(),
            found: format!("line {}: {error}", i + 1),
            expected: "a JSON object on each line".into(),
        })
    };
    text.lines().enumerate().map(parse).collect()
}

fn round_to_ms(time_s: f64) -> f64 {
    (time_s * 1e3).round() / 1e3
}

#[derive(Debug)]
struct Logs {
    metrics: Log,
    samples: Log,
    alarms: Log,
}

impl Logs {
    fn open(out: &Path) -> Result<Logs, TrainError> {
        Ok(Logs {
            metrics: Log::open(out.join(names::METRICS))?,
            samples: Log::open(out.join(names::SAMPLES))?,
            alarms: Log::open(out.join(names::ALARMS))?,
        })
    }

    fn named(&self) -> [(&'static str, &Log); 3] {
        [(names::METRICS, &self.metrics), (names::SAMPLES, &self.samples), (names::ALARMS, &self.alarms)]
    }

    fn lengths(&self) -> BTreeMap<String, u64> {
        self.named().map(|(name, log)| (name.to_owned(), log.bytes)).into()
    }

    fn sync(&self) -> Result<(), TrainError> {
        self.named().into_iter().try_for_each(|(_, log)| log.sync())
    }

    /// Back to these lengths; a log without one is emptied.
    fn cut(&mut self, bytes_of: &BTreeMap<String, u64>) -> Result<(), TrainError> {
        let bytes = |name: &str| bytes_of.get(name).copied().unwrap_or(0);
        self.metrics.cut(bytes(names::METRICS))?;
        self.samples.cut(bytes(names::SAMPLES))?;
        self.alarms.cut(bytes(names::ALARMS))
    }
}

/// A file of JSON lines that only grows, except when a run is resumed.
#[derive(Debug)]
struct Log {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Log {
    fn open(path: PathBuf) -> Result<Log, TrainError> {
        let file = OpenOptions::new().create(true).append(true).read(true).open(&path);
        let file = file.map_err(TrainError::write(&path, "open"))?;
        let bytes = file.metadata().map_err(TrainError::read(&path))?.len();
        Ok(Log { path, file, bytes })
    }

    fn append(&mut self, line: &impl Serialize) -> Result<(), TrainError> {
        let mut text = serde_json::to_vec(line).expect("a line has string keys only");
        text.push(b'\n');
        if let Err(source) = self.file.write_all(&text) {
            // Part of the line may be there (a full disk). Without it the file is still readable; if this fails too,
            // the error below is the one to report.
            let _ = self.file.set_len(self.bytes);
            return Err(TrainError::write(&self.path, "write")(source));
        }
        self.bytes += text.len() as u64;
        Ok(())
    }

    fn sync(&self) -> Result<(), TrainError> {
        self.file.sync_all().map_err(TrainError::write(&self.path, "flush"))
    }

    fn cut(&mut self, bytes: u64) -> Result<(), TrainError> {
        let damaged = |found: String| TrainError::Damaged {
            file: self.path.clone(),
            found,
            expected: format!("the end of a line at byte {bytes}, as the checkpoint noted"),
        };
        if self.bytes < bytes {
            return Err(damaged(format!("{} bytes", self.bytes)));
        }
        if bytes > 0 {
            let mut last = [0];
            let read =
                self.file.seek(SeekFrom::Start(bytes - 1)).and_then(|_| self.file.read_exact(&mut last));
            read.map_err(TrainError::read(&self.path))?;
            if last != *b"\n" {
                return Err(damaged("the middle of a line".into()));
            }
        }
        self.file.set_len(bytes).map_err(TrainError::write(&self.path, "cut back"))?;
        self.bytes = bytes;
        self.sync()
    }
}

// ------------------------------------------------------------------------------------------------------ checkpoints

/// `checkpoint.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    version: u32,
    step: u64,
    time_s: f64,
    /// Bytes of each log when the checkpoint was made.
    logs: BTreeMap<String, u64>,
    files: Vec<FileRecord>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct FileRecord {
    name: String,
    bytes: u64,
    blake3: String,
}

/// Where a trainer puts its state.
#[derive(Debug)]
pub struct CheckpointWriter {
    dir: PathBuf,
}

impl CheckpointWriter {
    /// The directory. Whatever is written here is part of the checkpoint, subdirectories too.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes named buffers to one safetensors file.
    pub fn buffers(&self, file: &str, buffers: &[(&str, &[f32])]) -> Result<(), TrainError> {
        write_buffers(&self.dir.join(file), buffers)
    }

    /// Writes a value as JSON. Floats come back to the bit; they must be finite.
    pub fn json(&self, file: &str, value: &impl Serialize) -> Result<(), TrainError> {
        write_json(&self.dir.join(file), value)
    }
}

/// A complete, verified checkpoint.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    record: Record,
}

impl Checkpoint {
    /// Reads a checkpoint's directory and verifies every file in it.
    pub fn open(dir: &Path) -> Result<Checkpoint, TrainError> {
        let path = dir.join(names::CHECKPOINT);
        let record: Record = read_json(&path)?;
        if record.version != CHECKPOINT_VERSION {
            let (found, expected) =
                (format!("version {}", record.version), format!("version {CHECKPOINT_VERSION}"));
            return Err(TrainError::Damaged { file: path, found, expected });
        }
        for expected in &record.files {
            let path = dir.join(&expected.name);
            let found = hash_file(&path)?;
            if found.bytes != expected.bytes {
                let (found, expected) =
                    (format!("{} bytes", found.bytes), format!("{} bytes", expected.bytes));
                return Err(TrainError::Damaged { file: path, found, expected });
            }
            if found.blake3 != expected.blake3 {
                let (found, expected) =
                    (format!("content {}", found.blake3), format!("content {}", expected.blake3));
                return Err(TrainError::Damaged { file: path, found, expected });
            }
        }
        Ok(Checkpoint { dir: dir.to_owned(), record })
    }

    /// The step after which it was made.
    pub fn step(&self) -> u64 {
        self.record.step
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Reads a value that [`CheckpointWriter::json`] wrote.
    pub fn json<T: DeserializeOwned>(&self, file: &str) -> Result<T, TrainError> {
        read_json(&self.dir.join(file))
    }

    /// Reads one buffer that [`CheckpointWriter::buffers`] wrote into a buffer of the same length.
    pub fn read_buffer(&self, file: &str, name: &str, buffer: &mut [f32]) -> Result<(), TrainError> {
        read_buffer(&self.dir.join(file), name, buffer)
    }
}

fn steps_in(checkpoints: &Path) -> Result<Vec<u64>, TrainError> {
    let mut steps = Vec::new();
    for name in entries(checkpoints)? {
        if let Some(step) = name.strip_prefix(STEP_PREFIX).and_then(|digits| digits.parse().ok()) {
            steps.push(step);
        }
    }
    Ok(steps)
}

/// The newest checkpoint that verifies. What a killed process left half-written is removed; a checkpoint that does not
/// verify is set aside under another name, for a person to look at.
fn newest_complete(checkpoints: &Path, notes: &mut Vec<String>) -> Result<Option<Checkpoint>, TrainError> {
    for name in entries(checkpoints)? {
        if name.starts_with(TMP_PREFIX) {
            let path = checkpoints.join(&name);
            fs::remove_dir_all(&path).map_err(TrainError::write(&path, "remove"))?;
            notes.push(format!("removed {name}, which a killed process had not finished"));
        }
    }
    let mut steps = steps_in(checkpoints)?;
    steps.sort_unstable();
    for step in steps.into_iter().rev() {
        let dir = checkpoints.join(format!("{STEP_PREFIX}{step}"));
        match Checkpoint::open(&dir) {
            Ok(checkpoint) if checkpoint.step() == step => return Ok(Some(checkpoint)),
            Ok(checkpoint) => {
                notes.push(format!(
                    "{} is a checkpoint of step {}; set aside",
                    dir.display(),
                    checkpoint.step()
                ));
            }
            Err(error) => {
                notes.push(format!("checkpoint {} is damaged and was set aside: {error}", dir.display()))
            }
        }
        set_aside(&dir)?;
    }
    Ok(None)
}

fn set_aside(dir: &Path) -> Result<(), TrainError> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut aside = dir.with_file_name(format!("{name}{DAMAGED_SUFFIX}"));
    let mut count = 1;
    while aside.symlink_metadata().is_ok() {
        count += 1;
        aside = dir.with_file_name(format!("{name}{DAMAGED_SUFFIX}-{count}"));
    }
    fs::rename(dir, &aside).map_err(TrainError::write(dir, "rename"))
}

// --------------------------------------------------------------------------------------------------- files, durably

/// Writes `parent/name` by way of `parent/.tmp-name`. A failure removes the temporary directory and leaves what was there.
fn write_directory(
    parent: &Path,
    name: &str,
    write: impl FnOnce(&Path) -> Result<(), TrainError>,
) -> Result<(), TrainError> {
    let (target, tmp) = (parent.join(name), parent.join(format!("{TMP_PREFIX}{name}")));
    if tmp.symlink_metadata().is_ok() {
        fs::remove_dir_all(&tmp).map_err(TrainError::write(&tmp, "remove"))?;
    }
    fs::create_dir(&tmp).map_err(TrainError::write(&tmp, "create the directory"))?;
    let tmp = RemoveOnDrop(Some(tmp));
    let path = tmp.0.as_deref().expect("set above");
    write(path)?;
    for file in files_under(path)? {
        sync(&path.join(file))?;
    }
    for directory in directories_under(path)? {
        sync_directory(&directory);
    }

    let old = parent.join(format!("{TMP_PREFIX}old-{name}"));
    let replaces = target.symlink_metadata().is_ok();
    if replaces {
        if old.symlink_metadata().is_ok() {
            fs::remove_dir_all(&old).map_err(TrainError::write(&old, "remove"))?;
        }
        fs::rename(&target, &old).map_err(TrainError::write(&target, "rename"))?;
    }
    fs::rename(path, &target).map_err(TrainError::write(&target, "rename to"))?;
    tmp.keep();
    sync_directory(parent);
    if replaces {
        fs::remove_dir_all(&old).map_err(TrainError::write(&old, "remove"))?;
    }
    Ok(())
}

fn remove_by_rename(path: &Path, doomed: &Path) -> Result<(), TrainError> {
    fs::rename(path, doomed).map_err(TrainError::write(path, "rename"))?;
    fs::remove_dir_all(doomed).map_err(TrainError::write(doomed, "remove"))
}

/// Removes a directory on every way out but a successful rename, a panic included.
struct RemoveOnDrop(Option<PathBuf>);

impl RemoveOnDrop {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            // Nothing can be done about a failure, and the error that led here is the one to report.
            let _ = fs::remove_dir_all(path);
        }
    }
}

fn sync(path: &Path) -> Result<(), TrainError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(TrainError::write(path, "flush"))
}

/// Only the survival of a power cut depends on it, and some file systems refuse to sync a directory; so a failure is
/// not a failure to write.
fn sync_directory(path: &Path) {
    if let Ok(directory) = File::open(path) {
        let _ = directory.sync_all();
    }
}

/// Names in a directory, sorted.
fn entries(dir: &Path) -> Result<Vec<String>, TrainError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(TrainError::read(dir))? {
        names.push(entry.map_err(TrainError::read(dir))?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

/// Paths of plain files under a directory, relative to it, sorted; hidden ones are left out.
fn files_under(dir: &Path) -> Result<Vec<PathBuf>, TrainError> {
    let mut files = Vec::new();
    for directory in directories_under(dir)? {
        for name in entries(&directory)? {
            let path = directory.join(&name);
            if !name.starts_with('.') && path.is_file() {
                files.push(path.strip_prefix(dir).expect("it was found under it").to_owned());
            }
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// A directory and all directories under it; hidden ones are left out.
fn directories_under(dir: &Path) -> Result<Vec<PathBuf>, TrainError> {
    let mut found = vec![dir.to_owned()];
    let mut next = 0;
    while let Some(directory) = found.get(next).cloned() {
        next += 1;
        for name in entries(&directory)? {
            let path = directory.join(&name);
            if !name.starts_with('.') && path.is_dir() {
                found.push(path);
            }
        }
    }
    Ok(found)
}

/// Hash and size of a file, with an empty name.
fn hash_file(path: &Path) -> Result<FileRecord, TrainError> {
    let mut file = File::open(path).map_err(TrainError::read(path))?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        match file.read(&mut buffer).map_err(TrainError::read(path))? {
            0 => break,
            read => {
                hasher.update(&buffer[..read]);
                bytes += read as u64;
            }
        }
    }
    Ok(FileRecord { name: String::new(), bytes, blake3: hasher.finalize().to_hex().to_string() })
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), TrainError> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|error| TrainError::write(path, "write")(io::Error::other(error)))?;
    text.push(b'\n');
    fs::write(path, text).map_err(TrainError::write(path, "write"))
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, TrainError> {
    let text = fs::read(path).map_err(TrainError::read(path))?;
    serde_json::from_slice(&text).map_err(|error| TrainError::Damaged {
        file: path.to_owned(),
        found: error.to_string(),
        expected: "the JSON that this program writes".into(),
    })
}

// ---------------------------------------------------------------------------------------------------------- buffers

/// Bytes before a safetensors header: its length, little-endian.
const HEADER_LENGTH_BYTES: usize = 8;
/// The header is padded so that the numbers are aligned.
const HEADER_ALIGNMENT: usize = 8;
/// No checkpoint has so many buffers; a longer header is a damaged file.
const HEADER_BYTES_MAX: u64 = 100_000_000;

#[derive(Debug, Serialize, Deserialize)]
struct TensorHeader {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

/// Writes named f32 buffers to one safetensors file, in the given order, without a copy of them in memory.
///
/// # Panics
///
/// If two buffers have the same name.
pub fn write_buffers(path: &Path, buffers: &[(&str, &[f32])]) -> Result<(), TrainError> {
    let mut header = serde_json::Map::new();
    let mut offset = 0;
    for (name, buffer) in buffers {
        let end = offset + size_of_val(*buffer) as u64;
        let tensor =
            TensorHeader { dtype: "F32".into(), shape: vec![buffer.len()], data_offsets: [offset, end] };
        let tensor = serde_json::to_value(tensor).expect("plain data");
        assert!(header.insert((*name).into(), tensor).is_none(), "two buffers named {name:?}");
        offset = end;
    }
    let mut header = serde_json::to_vec(&header).expect("plain data");
    header.resize(header.len().next_multiple_of(HEADER_ALIGNMENT), b' ');

    let write = || {
        let mut writer = BufWriter::with_capacity(1 << 20, File::create(path)?);
        writer.write_all(&(header.len() as u64).to_le_bytes())?;
        writer.write_all(&header)?;
        for (_, buffer) in buffers {
            if cfg!(target_endian = "little") {
                writer.write_all(bytemuck::cast_slice(buffer))?;
            } else {
                buffer.iter().try_for_each(|x| writer.write_all(&x.to_le_bytes()))?;
            }
        }
        writer.flush()
    };
    write().map_err(TrainError::write(path, "write"))
}

/// Reads one f32 buffer of a safetensors file into a buffer of the same length.
pub fn read_buffer(path: &Path, name: &str, buffer: &mut [f32]) -> Result<(), TrainError> {
    let damaged =
        |found: String, expected: String| TrainError::Damaged { file: path.to_owned(), found, expected };
    let mut file = File::open(path).map_err(TrainError::read(path))?;
    let mut length = [0; HEADER_LENGTH_BYTES];
    file.read_exact(&mut length).map_err(TrainError::read(path))?;
    let length = u64::from_le_bytes(length);
    if length > HEADER_BYTES_MAX {
        return Err(damaged(format!("a header of {length} bytes"), "a safetensors file".into()));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(TrainError::read(path))?;
    let header: BTreeMap<String, TensorHeader> = serde_json::from_slice(&header).map_err(|error| {
        damaged(format!("a header that is not JSON ({error})"), "a safetensors file".into())
    })?;

    let tensor = header.get(name).ok_or_else(|| {
        let known: Vec<&str> = header.keys().map(String::as_str).collect();
        damaged(format!("buffers {}", known.join(", ")), format!("a buffer {name:?}"))
    })?;
    if tensor.dtype != "F32" || tensor.shape != [buffer.len()] {
        return Err(damaged(
            format!("{name:?} of type {} and shape {:?}", tensor.dtype, tensor.shape),
            format!("type F32 and shape [{}]", buffer.len()),
        ));
    }
    file.seek(SeekFrom::Start(HEADER_LENGTH_BYTES as u64 + length + tensor.data_offsets[0]))
        .and_then(|_| file.read_exact(bytemuck::cast_slice_mut(buffer)))
        .map_err(TrainError::read(path))?;
    if cfg!(target_endian = "big") {
        buffer.iter_mut().for_each(|x| *x = f32::from_bits(x.to_bits().swap_bytes()));
    }
    Ok(())
}
