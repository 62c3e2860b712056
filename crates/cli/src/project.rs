//! A project: the directory with `polity.toml`, and its store.
//!
//! ```toml
//! name = "helpful"
//! store = "store.db"       # below the directory, or postgres://USER@HOST/DATABASE
//! ```
//!
//! Who acts is the account whose API token is in `POLITY_TOKEN`, for the ledger's records and where a release asks for different people.
//!
//! A password belongs into `PGPASSWORD` or `~/.pgpass`, which PostgreSQL's clients read, not into the file. Training works without a project;
//! inside one, a run is an event in the ledger, and data that was exported from a dataset is known by its hash.
//!
//! Not here: the store.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::{Duration, Instant};

use polity_store::{NOBODY, Run, RunInput, Store, Verification};
use polity_train::run::{FrozenDataset, Input, Manifest, names};
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
/// What names the account that acts: one of its API tokens.
const TOKEN_VARIABLE: &str = "POLITY_TOKEN";

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
    actor: String,
}

impl Project {
    /// As [`open`](Project::open), but nothing where no project is named and there is none above the working directory.
    pub fn open_if_any(which: &InProject) -> CommandResult<Option<Project>> {
        match which.project.is_none() && find(Path::new(".")).is_none() {
            true => Ok(None),
            false => Project::open(which).map(Some),
        }
    }

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

    /// The project that a directory is in, or will be in once it is made.
    pub fn around(place: &Path) -> Option<CommandResult<Project>> {
        let there = place.ancestors().find_map(|dir| match dir.as_os_str().is_empty() {
            true => Some(Path::new(".")),
            false => dir.exists().then_some(dir),
        });
        find(there?).map(Project::at)
    }

    fn at(dir: PathBuf) -> CommandResult<Project> {
        let file = dir.join(PROJECT_FILE);
        let text = std::fs::read_to_string(&file)
            .map_err(|error| CommandError::bad_input(format!("cannot read {}: {error}", file.display())))?;
        let project: ProjectFile = toml::from_str(&text)
            .map_err(|error| CommandError::bad_input(format!("{}: {error}", file.display())))?;
        let runtime = runtime()?;
        let store = runtime.block_on(Store::open(&location(&dir, &project.store), seed()?, unix_ms()))?;
        let actor = match std::env::var(TOKEN_VARIABLE) {
            Ok(secret) if !secret.is_empty() => {
                let account = runtime.block_on(store.token_account(secret.trim(), unix_ms()));
                account.map(|account| account.id).map_err(|error| {
                    runtime.block_on(store.close());
                    CommandError::from(error).hint(format!(
                        "{TOKEN_VARIABLE} names who you are by an API token; `polity account token NAME` makes one"
                    ))
                })?
            }
            _ => NOBODY.to_owned(),
        };
        Ok(Project { dir, runtime, store, actor })
    }

    /// Who acts, for the ledger: an account's id, or [`NOBODY`].
    pub fn actor(&self) -> &str {
        &self.actor
    }

    /// A path as the ledger names it: from the project's directory, if it is below that.
    pub fn place(&self, path: &Path) -> CommandResult<String> {
        let whole = |path: &Path| {
            path.canonicalize()
                .map_err(|error| CommandError::failed(format!("cannot find {}: {error}", path.display())))
        };
        let (path, project) = (whole(path)?, whole(&self.dir)?);
        Ok(path.strip_prefix(&project).unwrap_or(&path).to_string_lossy().into_owned())
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

    /// Has the store verify itself.
    pub fn verify(&self, head: Option<&str>, ui: &Ui) -> CommandResult<Verification> {
        let there = self.wait(self.store.progress())?;
        let rows = there.votes + there.prompts + there.responses;
        self.watch(ui, "verify", rows as u64, self.store.verify(head))
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

/// Notes in the ledger of the project that a run is in, if it is in one, that it has begun. A ledger that cannot be written stops no run.
pub fn record_run(out: &Path, manifest: &Manifest, ui: &Ui) {
    record(out, ui, |project| {
        let body = json!(run_of(project, out, manifest)?);
        project.wait(project.store().append_event("run", project.actor(), body, unix_ms())).map(|_| ())
    });
}

/// The same when it has ended: which model it made, with its manifest and settings.
pub fn record_run_end(out: &Path, manifest: &Manifest, ui: &Ui) {
    record(out, ui, |project| {
        let model = Input::hash("model", &out.join(names::MODEL))?.blake3;
        let run = Run { model: Some(model), ..run_of(project, out, manifest)? };
        let text = |name: &str| {
            let file = out.join(name);
            std::fs::read_to_string(&file)
                .map_err(|error| CommandError::failed(format!("cannot read {}: {error}", file.display())))
        };
        let (manifest, resolved) = (text(names::MANIFEST)?, text(names::RESOLVED)?);
        project.wait(project.store().add_run(run, manifest, resolved, project.actor(), unix_ms())).map(|_| ())
    });
}

fn record(out: &Path, ui: &Ui, note: impl FnOnce(&Project) -> CommandResult) {
    let Some(dir) = find(out) else { return };
    if let Err(error) = Project::at(dir).and_then(|project| note(&project)) {
        ui.warn(&format!("the run is not in the project's ledger: {error}"));
    }
}

fn run_of(project: &Project, out: &Path, manifest: &Manifest) -> CommandResult<Run> {
    let input = |input: &Input| {
        Ok(RunInput {
            role: input.role.clone(),
            path: project.place(&input.path)?,
            blake3: input.blake3.clone(),
            dataset: input.dataset.as_ref().map(|dataset| json!(dataset)),
        })
    };
    Ok(Run {
        run: project.place(out)?,
        stage: manifest.stage.clone(),
        settings: manifest.config_blake3.clone(),
        seed: manifest.seed,
        inputs: manifest.inputs.iter().map(input).collect::<CommandResult<_>>()?,
        model: None,
        manifest: None,
        resolved: None,
    })
}
