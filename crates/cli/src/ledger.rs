//! `polity ledger`: what has happened to the data, and whether that is still so.

use std::io::Write;

use polity_store::Event;
use serde_json::json;

use crate::args::Global;
use crate::error::{CommandError, CommandResult};
use crate::output::{json_to_stdout, to_stdout};
use crate::project::Project;
use crate::project_args::LedgerVerb;
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

fn verify(project: &Project, head: Option<&str>, global: &Global, ui: &Ui) -> CommandResult {
    let found = project.wait(project.store().verify(head))?;
    if global.json {
        json_to_stdout(&found)?;
    } else {
        to_stdout(|out| {
            writeln!(out, "events        {}", found.events)?;
            writeln!(out, "head          {}", found.head)?;
            writeln!(out, "votes         {} ({} sealed)", found.votes, found.votes_sealed)?;
            writeln!(out, "datasets      {} ({} rows)", found.datasets, found.dataset_rows)?;
            writeln!(out, "texts         {}", found.texts)
        })?;
    }
    let Some(first) = found.bad.first() else {
        ui.note("the ledger and everything it vouches for are whole");
        return Ok(());
    };
    let mut error = CommandError::failed(format!("{}: {}", first.record, first.found));
    for bad in &found.bad[1..] {
        error = error.hint(format!("also {}: {}", bad.record, bad.found));
    }
    Err(error)
}
