//! `polity import`: a file of prompts, pairs or votes into the project's store, whole or not at all.

use polity_store::{ImportOptions, Imported, Parsed, Take, read_import};
use serde_json::json;

use crate::args::Global;
use crate::clock::unix_ms;
use crate::error::{CommandError, CommandResult};
use crate::output::{json_to_stdout, to_stdout};
use crate::project::Project;
use crate::project_args::{ImportArgs, ImportVerb};
use crate::ui::{Ui, plural};

/// Runs the verb.
pub fn run(verb: &ImportVerb, global: &Global, ui: &Ui) -> CommandResult {
    let (take, args) = match verb {
        ImportVerb::Prompts(args) => (Take::Prompts, args),
        ImportVerb::Pairs(args) => (Take::Pairs, args),
        ImportVerb::Votes(args) => (Take::Votes, args),
    };
    let project = Project::open(&args.project)?;
    let policy = project.wait(project.store().project())?.policy;
    let options = ImportOptions {
        take,
        format: args.format,
        category: args.category.clone(),
        wanted: policy.overlap,
        errors_max: args.errors,
    };
    let parsed = read_import(&args.file, &options)?;
    refuse_errors(&parsed, args)?;
    let summary = json!({
        "file": parsed.file, "format": parsed.format, "rows": parsed.rows, "prompts": parsed.material.prompts.len(),
        "responses": parsed.material.responses.len(), "comparisons": parsed.material.comparisons.len(),
        "votes": parsed.votes.len(), "duplicates": parsed.duplicates,
    });
    let material = &parsed.material;
    let rows =
        material.prompts.len() + material.responses.len() + material.comparisons.len() + parsed.votes.len();
    let imported = match args.dry_run {
        true => None,
        false => {
            let import = project.store().import(parsed.clone(), project.actor(), unix_ms());
            Some(project.watch(ui, "import", rows as u64, import)?)
        }
    };
    if global.json {
        return json_to_stdout(&json!({"read": summary, "imported": imported}));
    }
    say(&parsed, imported.as_ref(), ui)
}

fn refuse_errors(parsed: &Parsed, args: &ImportArgs) -> CommandResult {
    if parsed.errors_total == 0 {
        return Ok(());
    }
    let mut message = format!(
        "{}: {} of {} rows cannot be imported; nothing was stored",
        args.file.display(),
        parsed.errors_total,
        parsed.rows
    );
    for error in &parsed.errors {
        message.push_str(&format!("\n  {error}"));
    }
    if parsed.errors_total > parsed.errors.len() {
        message.push_str(&format!("\n  … and {} more", parsed.errors_total - parsed.errors.len()));
    }
    Err(CommandError::bad_input(message).hint("--errors N shows more of them"))
}

fn say(parsed: &Parsed, imported: Option<&Imported>, ui: &Ui) -> CommandResult {
    let d = &parsed.duplicates;
    for (n, what) in [
        (d.prompts, "prompts came more than once"),
        (d.comparisons, "comparisons came more than once"),
        (d.identical_responses, "comparisons of two identical responses were left out"),
        (d.votes, "votes came more than once"),
        (d.votes_replaced, "votes were replaced by a later one of the same annotator"),
    ] {
        if n > 0 {
            ui.note(&format!("{n} {what}"));
        }
    }
    to_stdout(|out| {
        use std::io::Write;
        writeln!(out, "{} {} as {}", parsed.rows, plural("row", parsed.rows as u64), parsed.format.name())?;
        let Some(imported) = imported else {
            return writeln!(
                out,
                "dry run: {} prompts, {} comparisons, {} votes; nothing stored",
                parsed.material.prompts.len(),
                parsed.material.comparisons.len(),
                parsed.votes.len()
            );
        };
        let added = &imported.added;
        writeln!(out, "prompts      {:>8} new {:>8} known", added.prompts, added.prompts_known)?;
        writeln!(out, "responses    {:>8} new {:>8} known", added.responses, added.responses_known)?;
        writeln!(out, "comparisons  {:>8} new {:>8} known", added.comparisons, added.comparisons_known)?;
        writeln!(
            out,
            "votes        {:>8} new {:>8} known, by {} annotators",
            imported.votes, imported.votes_known, imported.annotators
        )
    })
}
