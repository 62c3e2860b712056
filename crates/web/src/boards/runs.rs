//! Which runs there are, and how each stands.
//!
//! A run is a directory below the project's `runs/` with a manifest, settings or numbers, or a `run` event of the ledger, or both. Its state:
//!
//! | state | when |
//! |---|---|
//! | ended | its manifest says when, or the ledger has its end |
//! | running | a process holds its lock; where that cannot be known, its numbers are younger than ten minutes |
//! | stopped | nobody holds its lock, and a report was written after its last numbers: by Ctrl-C or an alarm, as asked for |
//! | killed | nobody holds its lock, and there is neither end nor report: it failed, or was killed |
//! | gone | the ledger has its beginning alone, and its directory is not in the project |

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use polity_rows::FileLock;
use polity_store::{Run, RunInput};
use serde_json::Value;

use super::log::{Metrics, Point};
use super::{Shelf, cut, tail};
use crate::app::App;
use crate::error::{Failure, Outcome};

/// Directories that are looked into, and how deep.
const DIRS_MAX: usize = 3000;
const DEPTH_MAX: usize = 3;
/// Without a lock to go by, a run whose numbers are older than this is not taken for running.
const QUIET_MS: i64 = 600_000;
/// Largest manifest or settings.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// End of the numbers that is read for a list.
const END_BYTES: u64 = 24 << 10;
/// Letters of a setting.
const SETTING_LETTERS_MAX: usize = 300;

/// How a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Running,
    Ended,
    Stopped,
    Killed,
    Gone,
}

impl State {
    pub(crate) fn name(self) -> &'static str {
        match self {
            State::Running => "running",
            State::Ended => "ended",
            State::Stopped => "stopped",
            State::Killed => "killed",
            State::Gone => "gone",
        }
    }
}

/// What the ledger has of a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct OnRecord {
    pub(crate) began_ms: Option<i64>,
    pub(crate) ended_ms: Option<i64>,
    pub(crate) actor: String,
    pub(crate) model: Option<String>,
    pub(crate) stage: String,
    pub(crate) inputs: Vec<RunInput>,
    /// Documents.
    pub(crate) manifest: Option<String>,
    pub(crate) resolved: Option<String>,
}

/// A run that there is.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// As in addresses: its place, without `runs/` before it.
    pub(crate) name: String,
    /// From the project's directory.
    pub(crate) place: String,
    pub(crate) dir: Option<PathBuf>,
    pub(crate) on_record: Option<OnRecord>,
}

/// A run and how it stands.
#[derive(Clone, Debug)]
pub(crate) struct Looked {
    pub(crate) found: Found,
    pub(crate) state: State,
    /// Why it is taken for that.
    pub(crate) why: String,
    pub(crate) stage: String,
    pub(crate) manifest: Value,
    /// As the run used them.
    pub(crate) settings: BTreeMap<String, String>,
    pub(crate) began_ms: Option<i64>,
    /// When something was written last.
    pub(crate) last_ms: Option<i64>,
    /// What could not be read.
    pub(crate) problems: Vec<String>,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Progress {
    pub(crate) step: u64,
    pub(crate) time_s: f64,
    /// Between 0 and 1, where the settings say how much there is.
    pub(crate) share: Option<f64>,
    /// At the speed of the last steps.
    pub(crate) remaining_s: Option<f64>,
}

/// A run's name from its place.
pub(crate) fn name_of(place: &str) -> &str {
    place.strip_prefix("runs/").unwrap_or(place)
}

/// All runs, those that were written to last first.
pub(crate) async fn find(app: &App) -> Outcome<Vec<Found>> {
    let mut found: BTreeMap<String, Found> = BTreeMap::new();
    let project = app.shelf().boards.dir.clone();
    let dirs = match project.clone() {
        Some(project) => super::waiting(move || directories(&project)).await?,
        None => Vec::new(),
    };
    for (place, dir) in dirs {
        let name = name_of(&place).to_owned();
        found.insert(place.clone(), Found { name, place, dir: Some(dir), on_record: None });
    }
    for event in app.store().events_of("run").await? {
        let Ok(run) = serde_json::from_str::<Run>(&event.body) else { continue };
        let entry = found.entry(run.run.clone()).or_insert_with(|| Found {
            name: name_of(&run.run).to_owned(),
            dir: project.as_deref().and_then(|project| below(project, &run.run)),
            place: run.run.clone(),
            on_record: None,
        });
        let record = entry.on_record.get_or_insert_default();
        match run.model {
            None => *record = OnRecord { began_ms: Some(event.at_ms), ..OnRecord::default() },
            Some(_) => {
                record.ended_ms = Some(event.at_ms);
                (record.model, record.manifest, record.resolved) = (run.model, run.manifest, run.resolved);
            }
        }
        (record.actor, record.stage, record.inputs) = (event.actor, run.stage, run.inputs);
    }
    Ok(found.into_values().collect())
}

/// The run with this name.
pub(crate) async fn one(app: &App, name: &str) -> Outcome<Found> {
    let all = find(app).await?;
    all.into_iter().find(|found| found.name == name).ok_or(Failure::NotFound)
}

/// A directory that the ledger names, if it is in the project and there.
fn below(project: &Path, place: &str) -> Option<PathBuf> {
    let inside = Path::new(place).components().all(|part| matches!(part, Component::Normal(_)));
    let dir = inside.then(|| project.join(place))?;
    dir.is_dir().then_some(dir)
}

/// Directories of runs with their places.
fn directories(project: &Path) -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    let mut open = vec![("runs".to_owned(), project.join("runs"), 0)];
    let mut seen = 0;
    while let Some((place, dir, depth)) = open.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            seen += 1;
            let (Ok(name), path) = (entry.file_name().into_string(), entry.path()) else { continue };
            if seen > DIRS_MAX || name.starts_with('.') || !path.is_dir() {
                continue;
            }
            let place = format!("{place}/{name}");
            if ["manifest.json", "resolved.toml", "metrics.jsonl"]
                .iter()
                .any(|file| path.join(file).is_file())
            {
                found.push((place, path));
            } else if depth + 1 < DEPTH_MAX {
                open.push((place, path, depth + 1));
            }
        }
    }
    found
}

/// Looks at a run's small files, and at its lock.
pub(crate) fn look(found: Found, now_ms: i64) -> Looked {
    let mut problems = Vec::new();
    let mut read = |name: &str| {
        let text = found.dir.as_ref().map(|dir| tail::small(&dir.join(name), FILE_BYTES_MAX));
        text.and_then(|text| {
            text.unwrap_or_else(|error| {
                problems.push(format!("{name}: {error}"));
                None
            })
        })
    };
    let (manifest, settings) = (read("manifest.json"), read("resolved.toml"));
    let manifest: Value = manifest
        .and_then(|text| match serde_json::from_str(&text) {
            Ok(manifest @ Value::Object(_)) => Some(manifest),
            _ => {
                problems.push("manifest.json: it is no JSON object".into());
                None
            }
        })
        .unwrap_or_default();
    let settings = settings.map(|text| settings_of(&text, &mut problems)).unwrap_or_default();
    let last_ms = found.dir.as_ref().and_then(|dir| {
        ["metrics.jsonl", "report.html", "manifest.json"]
            .iter()
            .filter_map(|name| written_ms(&dir.join(name)))
            .max()
    });
    let (state, why) = state_of(&found, &manifest, now_ms);
    let text = |name: &str| manifest[name].as_str().unwrap_or_default().to_owned();
    let on_record = found.on_record.as_ref();
    let stage = match text("stage") {
        stage if !stage.is_empty() => cut(&stage, 40),
        _ => on_record.map(|record| record.stage.clone()).unwrap_or_default(),
    };
    let began = humantime::parse_rfc3339_weak(&text("started")).ok();
    let began_ms = began.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map(millis);
    Looked {
        state,
        why,
        stage,
        settings,
        began_ms: began_ms.or(on_record.and_then(|record| record.began_ms)),
        last_ms: last_ms.or(on_record.and_then(|record| record.ended_ms.or(record.began_ms))),
        manifest,
        problems,
        found,
    }
}

fn state_of(found: &Found, manifest: &Value, now_ms: i64) -> (State, String) {
    if let Some(at) = manifest["finished"].as_str() {
        return (State::Ended, format!("its manifest says that it ended at {}", cut(at, 40)));
    }
    let recorded = found.on_record.as_ref().and_then(|record| record.ended_ms);
    let Some(dir) = &found.dir else {
        return match recorded {
            Some(_) => (State::Ended, "the ledger has its end; its directory is not in the project".into()),
            None => {
                (State::Gone, "the ledger has its beginning, and its directory is not in the project".into())
            }
        };
    };
    let (numbers_ms, report_ms) =
        (written_ms(&dir.join("metrics.jsonl")), written_ms(&dir.join("report.html")));
    let quiet_ms =
        numbers_ms.or(written_ms(&dir.join("manifest.json"))).map_or(i64::MAX, |at_ms| now_ms - at_ms);
    match FileLock::is_held(&dir.join(".lock")) {
        Some(true) => (State::Running, "a process holds its lock".into()),
        None if quiet_ms < QUIET_MS => {
            (State::Running, "whether a process holds its lock cannot be known, and it wrote less than ten minutes ago".into())
        }
        _ if report_ms.is_some() && report_ms >= numbers_ms => (
            State::Stopped,
            "no process holds its lock, and it wrote a report at the end: Ctrl-C or an alarm stopped it; --resume goes on".into(),
        ),
        Some(false) => (
            State::Killed,
            "no process holds its lock, and it wrote neither an end nor a report: it failed or was killed; --resume goes on".into(),
        ),
        None => (
            State::Killed,
            "whether a process holds its lock cannot be known, and it has written nothing for ten minutes".into(),
        ),
    }
}

/// When a file was written last, in milliseconds since 1970.
fn written_ms(path: &Path) -> Option<i64> {
    let written = path.metadata().ok()?.modified().ok()?;
    written.duration_since(UNIX_EPOCH).ok().map(millis)
}

fn millis(since: Duration) -> i64 {
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Keys and values as text.
pub(crate) fn settings_of(text: &str, problems: &mut Vec<String>) -> BTreeMap<String, String> {
    match text.parse::<toml::Table>() {
        Ok(table) => {
            let shown = |value: toml::Value| match value {
                toml::Value::String(text) => text,
                other => other.to_string(),
            };
            table
                .into_iter()
                .map(|(key, value)| (cut(&key, 100), cut(&shown(value), SETTING_LETTERS_MAX)))
                .collect()
        }
        Err(error) => {
            problems.push(format!("resolved.toml: it is not TOML: {}", error.message()));
            BTreeMap::new()
        }
    }
}

impl Looked {
    /// The numbers of its last steps, for a list.
    pub(crate) fn end_of_log(&self) -> Metrics {
        let dir = self.found.dir.as_ref();
        dir.and_then(|dir| tail::last_lines(&dir.join("metrics.jsonl"), END_BYTES).ok()).unwrap_or_default()
    }

    /// How far it is, from its last steps.
    pub(crate) fn progress(&self, metrics: &Metrics) -> Option<Progress> {
        let last = metrics.last()?;
        let share = self.share(&last);
        let before =
            metrics.before().map_or((0.0, 0.0), |before| (before.time_s, self.share(&before).unwrap_or(0.0)));
        let speed = share.map(|share| (share - before.1) / (last.time_s - before.0));
        let remaining_s = speed
            .zip(share)
            .filter(|(speed, _)| self.state == State::Running && speed.is_finite() && *speed > 0.0)
            .map(|(speed, share)| (1.0 - share) / speed);
        Some(Progress { step: last.step, time_s: last.time_s, share, remaining_s })
    }

    /// The part that is done, by steps, responses or passes, whichever the settings limit.
    fn share(&self, at: &Point) -> Option<f64> {
        let limit = |key: &str| self.settings.get(key)?.parse::<f64>().ok().filter(|limit| *limit > 0.0);
        let share = match (limit("max_steps"), limit("total_episodes"), limit("num_train_epochs")) {
            (Some(steps), _, _) => at.step as f64 / steps,
            (None, Some(episodes), _) => at.episode? / episodes,
            (None, None, Some(epochs)) => at.epoch? / epochs,
            (None, None, None) => return None,
        };
        Some(share.clamp(0.0, 1.0))
    }
}

impl Shelf {
    /// The panels' metrics of a stage that say most, with their labels: the first line of the first charts.
    pub(crate) fn main_metrics(&self, stage: &str, count: usize) -> Vec<(&str, &str)> {
        let panels = self.stage(stage).map_or(&[][..], |board| &board.panels);
        let first =
            panels.iter().filter_map(|panel| Some((panel.title.as_str(), panel.lines.first()?.1.as_str())));
        first.take(count).collect()
    }
}
