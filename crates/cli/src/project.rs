//! A project: the directory with `polity.toml`, and its store.
//!
//! ```toml
//! name = "helpful"
//! store = "store.db"       # below the directory, or postgres://USER@HOST/DATABASE
//! ```
//!
//! A password belongs into `PGPASSWORD` or `~/.pgpass`, which PostgreSQL's clients read, not into the file. Training works without a project;
//! inside one, a run is an event in the ledger, and data that was exported from a dataset is known by its hash.
//!
//! Not here: the store.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::{Duration, Instant};

use polity_store::Store;
use polity_train::run::{FrozenDataset, Input, Manifest};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::runtime::Runtime;

use crate::clock::unix_ms;
use crate::error::{CommandError, CommandResult};
use crate::project_args::InProject;
use crate::ui::{Ui, Work};

/// The file that makes a directory a project.
pub const PROJECT_FILE: &str = "polity.toml";
/// The file beside exported rows that says what they are.
pub const DATASET_FILE: &str = "dataset.json";
/// Time between two looks at work that is watched.
const WATCH_EVERY: Duration = Duration::from_millis(200);
/// Who acts, for the ledger.
pub const ACTOR: &str = "cli";

/// `polity.toml`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProjectFile {
    /// The project's name.
    pub name: String,
    /// Where its store is.
    pub store: String,
}

/// An open project. Dropping it closes the store.
pub struct Project {
    dir: PathBuf,
    runtime: Runtime,
    store: Store,
}

impl Project {
    /// Opens the project that the flags name, or the nearest one above the working directory.
    pub fn open(which: &InProject) -> CommandResult<Project> {
        let dir = match &which.project {
            Some(dir) if dir.join(PROJECT_FILE).is_file() => dir.clone(),
            Some(dir) => {
                return Err(CommandError::bad_input(format!("{}: no {PROJECT_FILE} in it", dir.display()))
                    .hint(format!("polity init {} makes a project", dir.display())));
            }
            None => find(Path::new(".")).ok_or_else(|| {
                CommandError::bad_input(format!("no {PROJECT_FILE} here or in any directory above"))
                    .hint("polity init DIR makes a project; --project DIR names one")
            })?,
        };
        Project::at(dir)
    }

    fn at(dir: PathBuf) -> CommandResult<Project> {
        let file = dir.join(PROJECT_FILE);
        let text = std::fs::read_to_string(&file)
            .map_err(|error| CommandError::bad_input(format!("cannot read {}: {error}", file.display())))?;
        let project: ProjectFile = toml::from_str(&text)
            .map_err(|error| CommandError::bad_input(format!("{}: {error}", file.display())))?;
        let runtime = runtime()?;
        let store = runtime.block_on(Store::open(&location(&dir, &project.store), seed()?, unix_ms()))?;
        Ok(Project { dir, runtime, store })
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Drives a command's own work, beside what the store does for it.
    pub fn drive<T>(&self, work: impl Future<Output = CommandResult<T>>) -> CommandResult<T> {
        self.runtime.block_on(work)
    }

    /// Waits for what the store is asked.
    pub fn wait<T>(&self, work: impl Future<Output = polity_store::Result<T>>) -> CommandResult<T> {
        Ok(self.runtime.block_on(work)?)
    }

    /// The same for work on about so many rows, and shows how far along it is.
    pub fn watch<T>(
        &self,
        ui: &Ui,
        label: &str,
        rows: u64,
        work: impl Future<Output = polity_store::Result<T>>,
    ) -> CommandResult<T> {
        let (before, began) = (self.store.rows_handled(), Instant::now());
        let told = self.runtime.block_on(async {
            let mut work = pin!(work);
            let mut ticks = tokio::time::interval(WATCH_EVERY);
            loop {
                tokio::select! {
                    biased;
                    told = &mut work => return told,
                    _ = ticks.tick() => {}
                }
                let done = self.store.rows_handled() - before;
                let rate = (done > 0).then(|| done as f64 / began.elapsed().as_secs_f64());
                let total = rows.max(done);
                ui.progress(&Work {
                    label,
                    done,
                    total,
                    unit: "row",
                    rate_per_s: rate,
                    remaining_s: rate.map(|rate| (total - done) as f64 / rate),
                });
            }
        });
        ui.end_progress();
        Ok(told?)
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        self.runtime.block_on(self.store.close());
    }
}

/// The nearest directory from here upwards that is a project.
fn find(from: &Path) -> Option<PathBuf> {
    let from = std::fs::canonicalize(from).ok()?;
    from.ancestors().find(|dir| dir.join(PROJECT_FILE).is_file()).map(Path::to_owned)
}

/// Where a project's store is, as the store reads it.
pub fn location(dir: &Path, store: &str) -> String {
    match store.contains("://") {
        true => store.to_owned(),
        false => dir.join(store).to_string_lossy().into_owned(),
    }
}

/// What drives the store's futures.
pub fn runtime() -> CommandResult<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(CommandError::failed)
}

/// Randomness from the system.
pub fn seed() -> CommandResult<[u8; 32]> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed)
        .map_err(|error| CommandError::failed(format!("no randomness from the system: {error}")))?;
    Ok(seed)
}

/// What `dataset.json` says of the files beside it.
#[derive(Debug, Serialize, Deserialize)]
pub struct DatasetFile {
    /// The dataset's name.
    pub dataset: String,
    /// Its hash.
    pub hash: String,
    /// The label rule of the files.
    pub labels: String,
    /// The files.
    pub files: Vec<ExportedFile>,
}

/// One file of an export.
#[derive(Debug, Serialize, Deserialize)]
pub struct ExportedFile {
    /// Its name.
    pub name: String,
    /// Which part of the dataset.
    pub part: String,
    /// Its rows.
    pub rows: usize,
    /// BLAKE3 of its bytes.
    pub blake3: String,
}

/// The dataset that an input was exported from: `dataset.json` beside it names the file with the hash that it has.
pub fn dataset_of(input: &Input) -> Option<FrozenDataset> {
    let text = std::fs::read_to_string(input.path.with_file_name(DATASET_FILE)).ok()?;
    let said: DatasetFile = serde_json::from_str(&text).ok()?;
    let known = said.files.iter().any(|file| file.blake3 == input.blake3);
    known.then_some(FrozenDataset { name: said.dataset, hash: said.hash })
}

/// Notes a run in the ledger of the project that it is in, if it is in one. A ledger that cannot be written stops no run.
pub fn record_run(out: &Path, manifest: &Manifest, ui: &Ui) {
    let Some(dir) = find(out) else { return };
    let inputs: Vec<_> = manifest
        .inputs
        .iter()
        .map(|input| json!({"role": input.role, "blake3": input.blake3, "dataset": input.dataset}))
        .collect();
    let body = json!({
        "run": out, "stage": manifest.stage, "settings": manifest.config_blake3, "seed": manifest.seed, "inputs": inputs,
    });
    let noted = Project::at(dir)
        .and_then(|project| project.wait(project.store().append_event("run", ACTOR, body, unix_ms())));
    if let Err(error) = noted {
        ui.warn(&format!("the run is not in the project's ledger: {error}"));
    }
}
