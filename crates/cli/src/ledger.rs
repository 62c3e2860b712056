//! `polity ledger`: what has happened to the data, and whether that is still so.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use polity_store::{Bad, Event, Verification};
use polity_train::run::Input;
use serde::Serialize;
use serde_json::{Value, json};

use crate::args::Global;
use crate::error::{CommandError, CommandResult};
use crate::lineage::{evaluation_file, released_files};
use crate::output::{json_to_stdout, to_stdout};
use crate::project::{DATASET_FILE, DatasetFile, Project};
use crate::project_args::LedgerVerb;
use crate::record::{Record, model_place};
use crate::ui::Ui;

/// Events fetched at a time.
const PAGE: i64 = 1000;
/// Digits of a hash that are shown.
const SHOWN: usize = 12;

/// Runs the verb.
pub fn run(verb: &LedgerVerb, global: &Global, ui: &Ui) -> CommandResult {
    match verb {
        LedgerVerb::Log { project } => log(&Project::open(project)?, global),
        LedgerVerb::Verify { project, head } => verify(&Project::open(project)?, head.as_deref(), global, ui),
    }
}

fn log(project: &Project, global: &Global) -> CommandResult {
    let mut from = 1;
    loop {
        let events = project.wait(project.store().events(from, PAGE))?;
        let Some(last) = events.last() else { return Ok(()) };
        from = last.seq + 1;
        to_stdout(|out| events.iter().try_for_each(|event| print(out, event, global.json)))?;
    }
}

fn print(out: &mut impl Write, event: &Event, json: bool) -> std::io::Result<()> {
    if !json {
        let at = crate::clock::utc_of(event.at_ms);
        let (hash, body) = (&event.hash[..SHOWN.min(event.hash.len())], &event.body);
        return writeln!(
            out,
            "{:>5}  {at}  {hash}  {:<12} {:<10} {body}",
            event.seq, event.kind, event.actor
        );
    }
    // The body was stored as text, exactly as it was hashed; a reader wants the object.
    let body: serde_json::Value = serde_json::from_str(&event.body).unwrap_or_default();
    let line = json!({
        "seq": event.seq, "at_ms": event.at_ms, "kind": event.kind, "actor": event.actor, "body": body, "prev": event.prev,
        "hash": event.hash,
    });
    writeln!(out, "{line}")
}

/// What was verified, and which files are no longer where they were written.
#[derive(Serialize)]
struct Verified {
    #[serde(flatten)]
    store: Verification,
    /// Released directories that are there.
    releases: usize,
    /// Models of runs that are there.
    models: usize,
    /// Releases that are not served any more and not there, and models of runs that are not there.
    models_gone: Vec<PathBuf>,
    /// Exported files that are there.
    exported_files: usize,
    /// Those that are not: moved, renamed or removed.
    exported_files_gone: Vec<PathBuf>,
}

fn verify(project: &Project, head: Option<&str>, global: &Global, ui: &Ui) -> CommandResult {
    let store = project.verify(head, ui)?;
    let mut found = Verified {
        store,
        releases: 0,
        models: 0,
        models_gone: Vec::new(),
        exported_files: 0,
        exported_files_gone: Vec::new(),
    };
    verify_exports(project, &mut found)?;
    match Record::read(project) {
        Ok(record) => verify_models(project, &record, &mut found)?,
        Err(error) => found.store.bad.push(Bad { record: "the ledger".into(), found: error.to_string() }),
    }
    let Verified { store, releases, models, models_gone, exported_files, exported_files_gone } = &found;
    if global.json {
        json_to_stdout(&found)?;
    } else {
        to_stdout(|out| {
            writeln!(out, "events        {}", store.events)?;
            writeln!(out, "head          {}", store.head)?;
            writeln!(out, "votes         {} ({} sealed)", store.votes, store.votes_sealed)?;
            writeln!(out, "datasets      {} ({} rows)", store.datasets, store.dataset_rows)?;
            writeln!(out, "texts         {}", store.texts)?;
            writeln!(out, "documents     {}", store.documents)?;
            writeln!(out, "releases      {releases}")?;
            writeln!(out, "models        {models} of runs ({} gone)", models_gone.len())?;
            writeln!(out, "exports       {exported_files} files ({} gone)", exported_files_gone.len())
        })?;
    }
    for path in exported_files_gone {
        ui.note(&format!("{} is not there: moved or removed since it was exported", path.display()));
    }
    let Some(first) = store.bad.first() else {
        ui.note("the ledger and everything it vouches for are whole");
        return Ok(());
    };
    let mut error = CommandError::failed(format!("{}: {}", first.record, first.found));
    for bad in &store.bad[1..] {
        error = error.hint(format!("also {}: {}", bad.record, bad.found));
    }
    Err(error)
}

/// Released directories and models of runs must have the files that their events say, and evaluations say what was judged, as far as they
/// are there. What is served must be there.
fn verify_models(project: &Project, record: &Record, found: &mut Verified) -> CommandResult {
    let mut bad = |kind: &str, name: &str, what: String| {
        found.store.bad.push(Bad { record: format!("{kind} {name}"), found: what });
    };
    for state in &record.channels {
        let served: Vec<&str> = [&state.stable, &state.canary]
            .into_iter()
            .flatten()
            .map(|release| release.what.release.as_str())
            .collect();
        for release in &state.releases {
            let (name, dir) = (release.what.release.as_str(), project.dir().join(&release.what.dir));
            if !dir.is_dir() && !served.contains(&name) {
                found.models_gone.push(dir);
                continue;
            }
            found.releases += 1;
            let wrong = released_files(&dir, &release.what.files);
            if !wrong.is_empty() {
                let (wrong, event) = (wrong.join(", "), release.seq);
                bad("release", name, format!("{wrong}: not what ledger event {event} says was released"));
            }
        }
    }
    let runs = record.runs.iter().filter_map(|run| {
        let model = run.what.model.as_deref()?;
        Some((model_place(&run.what), (run.seq, model)))
    });
    // The last run in a place holds.
    for (place, (event, model)) in runs.collect::<BTreeMap<_, _>>() {
        let dir = project.dir().join(&place);
        if !dir.is_dir() {
            found.models_gone.push(dir);
            continue;
        }
        found.models += 1;
        if Input::hash("model", &dir)?.blake3 != model {
            bad(
                "model",
                &place,
                format!("it was changed: it is not what ledger event {event} says the run made"),
            );
        }
    }
    let files = record.evaluations.iter().map(|known| (&known.what.file, &known.what.evaluation));
    for (file, hash) in files.collect::<BTreeMap<_, _>>() {
        if let Some(wrong) = evaluation_file(&project.dir().join(file), hash) {
            bad("evaluation", file, wrong);
        }
    }
    Ok(())
}

/// What an export wrote.
enum Written {
    /// Rows, by the BLAKE3 of the file.
    Rows(String),
    /// `dataset.json`, by what it says.
    About(Value),
}

/// Files that are where their `export` event says must be as they were written; the last event on a file holds. A file that was
/// downloaded has no place, and its event none.
fn verify_exports(project: &Project, found: &mut Verified) -> CommandResult {
    let mut written = BTreeMap::new();
    for event in project.wait(project.store().events_of("export"))? {
        let Ok(mut body) = serde_json::from_str::<Value>(&event.body) else { continue };
        let Some(Value::String(dir)) = body.as_object_mut().and_then(|body| body.remove("dir")) else {
            continue;
        };
        let dir = project.dir().join(dir);
        let Ok(said) = serde_json::from_value::<DatasetFile>(body.clone()) else { continue };
        for file in said.files {
            written.insert(dir.join(file.name), (event.seq, Written::Rows(file.blake3)));
        }
        written.insert(dir.join(DATASET_FILE), (event.seq, Written::About(body)));
    }
    for (path, (event, written)) in written {
        if !path.exists() {
            found.exported_files_gone.push(path);
            continue;
        }
        found.exported_files += 1;
        let same = match written {
            Written::Rows(hash) => Input::hash("data", &path)?.blake3 == hash,
            Written::About(said) => {
                let text = std::fs::read_to_string(&path);
                text.is_ok_and(|text| serde_json::from_str::<Value>(&text).is_ok_and(|now| now == said))
            }
        };
        if !same {
            let record = format!("exported file {}", path.display());
            found.store.bad.push(Bad {
                record,
                found: format!("it was changed: it is not what ledger event {event} says was written"),
            });
        }
    }
    Ok(())
}
