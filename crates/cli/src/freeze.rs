//! `polity freeze` and `polity export`: votes to a dataset, a dataset to files that trainers read.

use std::collections::HashSet;
use std::path::Path;

use polity_rows::{atomic_write, write_jsonl};
use polity_store::{Dataset, ExportOptions, ExportRow, Freeze, LeftOut, Part};
use serde_json::json;

use crate::args::Global;
use crate::clock::unix_ms;
use crate::error::{CommandError, CommandResult};
use crate::output::{json_to_stdout, to_stdout};
use crate::project::{DATASET_FILE, DatasetFile, ExportedFile, Project};
use crate::project_args::{ExportArgs, FileFormat, FreezeArgs, Labels};
use crate::ui::Ui;

/// Prompts of the training part.
pub const PROMPTS_FILE: &str = "prompts.jsonl";
/// Rows fetched from the store at a time.
const PAGE: i64 = 2000;

/// Runs `freeze`.
pub fn run_freeze(args: &FreezeArgs, global: &Global, ui: &Ui) -> CommandResult {
    let project = Project::open(&args.project)?;
    let (dataset, left_out) = freeze(&project, args, ui)?;
    if dataset.train_rows + dataset.validation_rows + dataset.holdout_rows == 0 {
        ui.warn(
            "the dataset is empty; votes of machines and simulated annotators count with --machine-votes",
        );
    }
    if global.json {
        return json_to_stdout(&json!({"dataset": dataset, "left_out": left_out}));
    }
    say(&dataset)
}

/// Freezes what there is.
pub fn freeze(project: &Project, args: &FreezeArgs, ui: &Ui) -> CommandResult<(Dataset, LeftOut)> {
    let there = project.wait(project.store().progress())?;
    let model = match args.labels {
        Labels::Model => {
            let labels = project.store().model_labels(args.machine_votes);
            Some(project.watch(ui, "read votes", there.votes as u64, labels)?)
        }
        Labels::Majority | Labels::Soft => None,
    };
    let freeze = Freeze {
        name: args.name.clone(),
        labels: args.labels.into(),
        machine_votes: args.machine_votes,
        votes_min: args.votes_min,
        model,
    };
    // Each comparison is counted, and becomes a row.
    let comparisons = there.comparisons.values().sum::<i64>();
    let frozen = project.store().freeze(freeze, project.actor(), unix_ms());
    let (dataset, left_out) = project.watch(ui, "freeze", 2 * comparisons as u64, frozen)?;
    for (n, why) in [
        (left_out.too_few_votes, "have fewer judgements than --votes-min"),
        (left_out.without_text, "have no text, only a reference to one"),
        (left_out.held, "are flagged and not decided"),
    ] {
        if n > 0 {
            ui.note(&format!("{n} comparisons left out: they {why}"));
        }
    }
    Ok((dataset, left_out))
}

fn say(dataset: &Dataset) -> CommandResult {
    to_stdout(|out| {
        use std::io::Write;
        writeln!(out, "dataset     {}", dataset.name)?;
        writeln!(out, "hash        {}", dataset.hash)?;
        writeln!(out, "train       {}", dataset.train_rows)?;
        writeln!(out, "validation  {}", dataset.validation_rows)?;
        writeln!(out, "holdout     {}", dataset.holdout_rows)
    })
}

/// Runs `export`.
pub fn run_export(args: &ExportArgs, global: &Global, ui: &Ui) -> CommandResult {
    let project = Project::open(&args.project)?;
    let said = export(&project, args, ui)?;
    if global.json {
        return json_to_stdout(&said);
    }
    to_stdout(|out| {
        use std::io::Write;
        for file in &said.files {
            writeln!(out, "{:>8} rows  {}", file.rows, args.out.join(&file.name).display())?;
        }
        Ok(())
    })
}

/// Writes the files; an event.
pub fn export(project: &Project, args: &ExportArgs, ui: &Ui) -> CommandResult<DatasetFile> {
    let dataset = project.wait(project.store().dataset(&args.name))?;
    let labels = dataset.rule(args.labels.map(Into::into))?;
    let options = ExportOptions { labels, margins: args.margins, weights: args.weights };
    std::fs::create_dir_all(&args.out)
        .map_err(|error| CommandError::failed(format!("cannot make {}: {error}", args.out.display())))?;
    let mut rows: [Vec<ExportRow>; 3] = Default::default();
    let mut unlabelled = 0;
    let mut from = 0;
    loop {
        let page = project.wait(project.store().dataset_rows(&args.name, from, PAGE))?;
        if page.is_empty() {
            break;
        }
        from += page.len() as i64;
        for row in page {
            let part = row.row.part;
            match ExportRow::of(row, &options) {
                Some(row) => rows[part as usize].push(row),
                None => unlabelled += 1,
            }
        }
    }
    if unlabelled > 0 {
        ui.note(&format!("{unlabelled} comparisons have no label by the rule `{}`", labels.name()));
    }
    let mut files = Vec::new();
    for &part in args.parts() {
        // A file without rows is one that trainers refuse; the training part is written anyway, so that they say so.
        if rows[part as usize].is_empty() && part != Part::Train {
            ui.note(&format!("no {} rows, so no file of them", part.name()));
            continue;
        }
        files.push(write_part(&args.out, part, &rows[part as usize], args.format)?);
    }
    if args.with_prompts {
        files.push(write_prompts(&args.out, &rows[Part::Train as usize])?);
    }
    let said = DatasetFile {
        dataset: dataset.name.clone(),
        hash: dataset.hash.clone(),
        labels: labels.name().to_owned(),
        files,
    };
    let text = serde_json::to_string_pretty(&said).map_err(CommandError::failed)? + "\n";
    atomic_write(args.out.join(DATASET_FILE), |out| std::io::Write::write_all(out, text.as_bytes()))?;
    let mut body = json!(said);
    body["dir"] = project.place(&args.out)?.into();
    project.wait(project.store().append_event("export", project.actor(), body, unix_ms()))?;
    Ok(said)
}

/// The prompts of the training rows, each once: what PPO answers.
fn write_prompts(dir: &Path, rows: &[ExportRow]) -> CommandResult<ExportedFile> {
    let mut seen = HashSet::new();
    let prompts = rows.iter().map(|row| json!({"prompt": row.prompt, "category": row.category}));
    let prompts: Vec<_> = prompts.filter(|row| seen.insert(row["prompt"].to_string())).collect();
    let path = dir.join(PROMPTS_FILE);
    write_jsonl(&path, &prompts)?;
    let blake3 = polity_train::run::Input::hash("data", &path)?.blake3;
    Ok(ExportedFile {
        name: PROMPTS_FILE.to_owned(),
        part: Part::Train.name().to_owned(),
        rows: prompts.len(),
        blake3,
    })
}

fn write_part(dir: &Path, part: Part, rows: &[ExportRow], format: FileFormat) -> CommandResult<ExportedFile> {
    let extension = match format {
        FileFormat::Jsonl => "jsonl",
        FileFormat::Parquet => "parquet",
    };
    let name = format!("{}.{extension}", part.name());
    let path = dir.join(&name);
    match format {
        FileFormat::Jsonl => drop(write_jsonl(&path, rows)?),
        FileFormat::Parquet => {
            let pairs = rows.iter().map(|row| polity_rows::PairToWrite {
                prompt: &row.prompt,
                chosen: &row.chosen,
                rejected: &row.rejected,
                label: row.label,
                margin: row.margin,
                weight: row.weight,
                category: &row.category,
                comparison_id: &row.comparison_id,
            });
            polity_rows::write_parquet(&path, &pairs.collect::<Vec<_>>())?;
        }
    }
    let blake3 = polity_train::run::Input::hash("data", &path)?.blake3;
    Ok(ExportedFile { name, part: part.name().to_owned(), rows: rows.len(), blake3 })
}
