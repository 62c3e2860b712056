//! Dashboards: runs, their comparison, evaluations, verdicts, releases.
//!
//! ```text
//! ledger and documents (the store)  ┐
//! run directories of the project    ├─> what is shown, as a page and as JSON, from the same functions
//! evaluation files not yet recorded ┘
//! ```
//!
//! Reading order: `tail` (a file that grows), `log` (a run's numbers in bounded memory), `runs` (which there are, and their state), then a module
//! for each page: `run_list`, `run_page`, `compare`, `evaluations`, `verdicts`, `releases`; `live` is how a page stays up to date.
//!
//! **What holds.** Files are written by other programs, maybe at this moment, maybe by strangers: a line that cannot be read is counted and named, never
//! trusted and never the end of the page; only regular files are opened, only so much of one is kept, and no name in a request is
//! joined to a path: it is looked up among those that there are. Annotators see none of this: it would tell them which model wrote what.
//!
//! What a trainer logs, and the drawing of a lineage, are given by the caller ([`Boards`]), since this crate knows no trainer.

mod compare;
mod evaluations;
mod live;
mod log;
mod releases;
mod run_list;
mod run_page;
mod runs;
mod tail;
mod verdicts;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use maud::{Markup, html};
use polity_chart::Board;
use polity_store::Account;
use serde_json::Value;

use crate::app::App;
use crate::error::{Failure, Outcome};
use crate::route::Route;

/// The routes, page by page.
pub(crate) const ROUTES: [&[Route]; 6] = [
    run_list::ROUTES,
    compare::ROUTES,
    run_page::ROUTES,
    evaluations::ROUTES,
    verdicts::ROUTES,
    releases::ROUTES,
];

/// Draws the lineage of a release, given its name, as an SVG file; may take long, so it is called where waiting is allowed. The error is for people.
pub type Lineage = Arc<dyn Fn(&str) -> Result<String, String> + Send + Sync>;

/// What the dashboards are made of, beside the store.
#[derive(Clone, Default)]
pub struct Boards {
    /// The project's directory; without it there is only what the ledger has.
    pub dir: Option<PathBuf>,
    /// What each trainer logs and how it is drawn.
    pub stages: Vec<Board>,
    /// The drawing of a lineage, where there is one.
    pub lineage: Option<Lineage>,
}

/// Logs of runs kept at most: those that were looked at last.
const LOGS_MAX: usize = 24;

/// What the dashboards keep between requests.
pub(crate) struct Shelf {
    boards: Boards,
    /// Logs by directory, the ones looked at last at the end.
    logs: Mutex<Vec<(PathBuf, Arc<Mutex<log::RunLog>>)>>,
    evaluations: Mutex<HashMap<String, Arc<evaluations::Evaluation>>>,
    /// One lineage at a time: each verifies the whole ledger.
    drawing: tokio::sync::Mutex<()>,
}

impl Shelf {
    pub(crate) fn new(boards: Boards) -> Shelf {
        Shelf {
            boards,
            logs: Mutex::default(),
            evaluations: Mutex::default(),
            drawing: tokio::sync::Mutex::default(),
        }
    }

    fn stage(&self, name: &str) -> Option<&Board> {
        self.boards.stages.iter().find(|board| board.stage == name)
    }

    /// What the log of a run says by now; of one without a directory nothing.
    fn log<T>(&self, dir: Option<&Path>, of: impl FnOnce(&log::RunLog) -> T) -> T {
        let Some(dir) = dir else { return of(&log::RunLog::new(Path::new(""))) };
        let kept = self.kept(dir);
        // Whoever panicked while reading left lines that were read, and an offset behind them.
        let mut log = kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        log.read();
        of(&log)
    }

    fn kept(&self, dir: &Path) -> Arc<Mutex<log::RunLog>> {
        let mut logs = self.logs.lock().expect("no holder of this lock can panic");
        let at = logs.iter().position(|(known, _)| known == dir);
        let entry = match at {
            Some(at) => logs.remove(at),
            None => (dir.to_owned(), Arc::new(Mutex::new(log::RunLog::new(dir)))),
        };
        if logs.len() == LOGS_MAX {
            logs.remove(0);
        }
        logs.push(entry.clone());
        entry.1
    }
}

/// Does what waits for the disk where waiting is allowed.
async fn waiting<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Outcome<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Failure::Internal(format!("a dashboard: {e}")))
}

/// What people call who acted.
struct Names(Vec<Account>);

impl Names {
    async fn read(app: &App) -> Outcome<Names> {
        Ok(Names(app.store().accounts().await?))
    }

    fn of<'n>(&'n self, actor: &'n str) -> &'n str {
        self.0.iter().find(|account| account.id == actor).map_or(actor, |account| account.name.as_str())
    }
}

/// Models by hash, with what people call them: the run that made one, or its release.
struct Models(HashMap<String, String>);

impl Models {
    async fn read(app: &App) -> Outcome<Models> {
        let mut names = HashMap::new();
        for run in app.store().runs().await? {
            let made = run.what.inputs.iter().all(|input| Some(&input.blake3) != run.what.model.as_ref());
            if let (Some(model), true) = (run.what.model, made) {
                names.insert(model, runs::name_of(&run.what.run).to_owned());
            }
        }
        for channel in app.store().channels().await? {
            for release in channel.releases {
                names.entry(release.what.model).or_insert(release.what.release);
            }
        }
        Ok(Models(names))
    }

    /// `ppo (3f9a81c2)`, or the beginning of the hash alone.
    fn label(&self, model: &str) -> String {
        let short = crate::page::short(model);
        self.0.get(model).map_or_else(|| short.clone(), |name| format!("{name} ({short})"))
    }
}

/// A model: what it is called, with its whole hash to be pointed at.
fn model(models: &Models, hash: &str) -> Markup {
    html! { span title=(hash) { (models.label(hash)) } }
}

/// A word with a colour: how something stands.
fn pill(kind: &str, word: &str) -> Markup {
    html! { span.pill.(kind) { (word) } }
}

/// A text of a file, short enough to keep.
fn cut(text: &str, letters_max: usize) -> String {
    match text.char_indices().nth(letters_max) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A number as JSON has it; what is not finite is null.
fn number(value: f64) -> Value {
    serde_json::Number::from_f64(value).map_or(Value::Null, Value::Number)
}
