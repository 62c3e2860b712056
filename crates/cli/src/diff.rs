//! `polity diff`: two releases or models side by side: data, settings, measures, responses.
//!
//! Everything comes from the ledger and its documents; responses from the runs' directories, or, with `--prompts`, from both models now.
//!
//! Not here: whether what differs matters (`gate`).

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use polity_eval::gate::Verdict as Said;
use polity_lm::engine::Flow;
use polity_train::config::wrap;
use polity_train::run::names;
use serde::Serialize;
use serde_json::Value;

use crate::args::Global;
use crate::card::{ancestry, datasets_of};
use crate::error::{CommandError, CommandResult};
use crate::generate::{Done, Meter, each_response, response_text};
use crate::input;
use crate::model::Loaded;
use crate::output::{json_to_stdout, to_stdout};
use crate::project::Project;
use crate::record::{Record, Target, short};
use crate::release_args::DiffArgs;
use crate::settings::{Read, Settings, Uses};
use crate::ui::Ui;

/// Columns of the page, and of each side.
const COLUMNS: usize = 80;
const NAME: usize = 28;
const SIDE: usize = (COLUMNS - NAME - 2) / 2;
/// Lines of a response that are shown.
const LINES_MAX: usize = 8;
/// Of answers that are made now, before `--set`.
const SETS: [(&str, &str); 2] = [("temperature", "0"), ("max_new_tokens", "64")];

/// One thing, on both sides; nothing where a side has it not.
#[derive(Debug, Serialize)]
struct Row {
    what: String,
    a: Option<String>,
    b: Option<String>,
}

/// All of it.
#[derive(Debug, Serialize)]
struct Diff {
    models: Row,
    /// Datasets, all of them.
    data: Vec<Row>,
    /// Settings of the last run that are not the same.
    settings: Vec<Row>,
    /// Measures of the newest verdicts, all of them.
    measures: Vec<Row>,
    /// Responses to the same prompts.
    responses: Vec<Row>,
}

/// Runs the verb.
pub fn run(args: &DiffArgs, global: &Global, ui: &Ui) -> CommandResult {
    let project = Project::open(&args.project)?;
    let record = Record::read(&project)?;
    let a = record.find(&project, &args.a)?;
    let b = record.find(&project, &args.b)?;
    let responses = match &args.prompts {
        Some(prompts) => {
            let answers = |target: &Target| answers(target, prompts, &args.sets, global, ui);
            side_by_side(answers(&a)?, answers(&b)?)
        }
        None => {
            let recorded = |target: &Target| recorded_responses(&project, &record, target);
            let (a, b) = (recorded(&a), recorded(&b));
            side_by_side(a, b).into_iter().filter(|row| row.a.is_some() && row.b.is_some()).collect()
        }
    };
    let both = |of: &dyn Fn(&Target) -> CommandResult<BTreeMap<String, String>>| {
        Ok::<_, CommandError>(side_by_side(of(&a)?, of(&b)?))
    };
    let mut settings = both(&|target| settings(&project, &record, target))?;
    settings.retain(|row| row.a != row.b);
    let diff = Diff {
        models: Row { what: "model".into(), a: Some(a.model.clone()), b: Some(b.model.clone()) },
        data: both(&|target| Ok(data(&record, target)))?,
        settings,
        measures: both(&|target| measures(&project, &record, target))?,
        responses,
    };
    match global.json {
        true => json_to_stdout(&diff),
        false => to_stdout(|out| print(out, &diff, &args.a, &args.b)),
    }
}

fn side_by_side(a: BTreeMap<String, String>, mut b: BTreeMap<String, String>) -> Vec<Row> {
    let mut rows: Vec<Row> = a
        .into_iter()
        .map(|(what, a)| {
            let b = b.remove(&what);
            Row { what, a: Some(a), b }
        })
        .collect();
    rows.extend(b.into_iter().map(|(what, b)| Row { what, a: None, b: Some(b) }));
    rows.sort_by(|x, y| x.what.cmp(&y.what));
    rows
}

fn data(record: &Record, target: &Target) -> BTreeMap<String, String> {
    let runs = ancestry(record, &target.model);
    let datasets = datasets_of(record, &runs);
    let frozen = datasets.iter().map(|dataset| {
        let rows = dataset.train_rows + dataset.validation_rows + dataset.holdout_rows;
        (format!("dataset {}", dataset.name), format!("{} ({rows} rows)", short(&dataset.hash)))
    });
    let mut data: BTreeMap<String, String> = frozen.collect();
    for run in &runs {
        for input in run.what.inputs.iter().filter(|input| !crate::card::is_model(&input.role)) {
            data.insert(format!("{}'s {}", run.what.stage, input.role), short(&input.blake3).to_owned());
        }
    }
    data
}

/// The settings of the run that made it, and what they cannot say.
fn settings(project: &Project, record: &Record, target: &Target) -> CommandResult<BTreeMap<String, String>> {
    let Some(run) = record.run_of(&target.model) else { return Ok(BTreeMap::new()) };
    let mut settings = BTreeMap::from([("stage".to_owned(), run.what.stage.clone())]);
    for input in run.what.inputs.iter().filter(|input| crate::card::is_model(&input.role)) {
        settings.insert(input.role.clone(), short(&input.blake3).to_owned());
    }
    if let Some(hash) = &run.what.resolved {
        let text = project.wait(project.store().document(hash))?;
        let table: toml::Table = toml::from_str(&text).map_err(CommandError::failed)?;
        settings.extend(table.into_iter().map(|(key, value)| (key, value.to_string())));
    }
    Ok(settings)
}

fn measures(project: &Project, record: &Record, target: &Target) -> CommandResult<BTreeMap<String, String>> {
    let of_release = |id: &str| record.verdicts.iter().find(|verdict| verdict.id == id);
    let verdict = match &target.release {
        Some(release) => of_release(&release.what.verdict),
        None => record.verdict_on(&target.model),
    };
    let Some(verdict) = verdict else { return Ok(BTreeMap::new()) };
    let said = project.wait(project.store().document(&verdict.what.said))?;
    let said: Said = serde_json::from_str(&said).map_err(CommandError::failed)?;
    let shown = said.criteria.iter().filter_map(|criterion| criterion.measure.as_ref());
    let mut measures: BTreeMap<String, String> = shown
        .map(|measure| {
            let category =
                measure.category.as_ref().map(|category| format!(", {category}")).unwrap_or_default();
            let value = format!("{:.4} [{:.3}, {:.3}]", measure.estimate, measure.low, measure.high);
            (format!("{}{category}", measure.name), value)
        })
        .collect();
    measures.insert("verdict".into(), format!("{} ({})", verdict.what.verdict, verdict.what.policy_name));
    Ok(measures)
}

/// The last responses that a run wrote down, by prompt; none if its directory is gone.
fn recorded_responses(project: &Project, record: &Record, target: &Target) -> BTreeMap<String, String> {
    let Some(run) = record.run_of(&target.model) else { return BTreeMap::new() };
    let file = project.dir().join(&run.what.run).join(names::SAMPLES);
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let rows = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    // Later steps come later, so the last one stands.
    rows.filter_map(|row| Some((row["prompt"].as_str()?.to_owned(), row["response"].as_str()?.to_owned())))
        .collect()
}

/// Both models' answers, now.
fn answers(
    target: &Target,
    prompts: &Path,
    sets: &[(String, String)],
    global: &Global,
    ui: &Ui,
) -> CommandResult<BTreeMap<String, String>> {
    let Some(dir) = target.dir.as_deref().filter(|dir| dir.is_dir()) else {
        return Err(CommandError::bad_input(format!(
            "it is not known where model {} is",
            short(&target.model)
        ))
        .hint("name its directory, or leave --prompts out"));
    };
    let mut loaded = Loaded::language_model(dir, "generate text", global)?;
    let ours = SETS.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let sets = [&ours[..], sets].concat();
    let Read { settings, .. } = Settings::read(Uses::Generate, dir, &loaded.model, &sets)?;
    loaded.multiply_in(settings.precision);
    let prompts = input::prompts(input::open(prompts, ui)?, &loaded, ui)?;
    let texts: Vec<String> = prompts
        .iter()
        .map(|prompt| Ok(loaded.model.tokenizer()?.decode(&prompt.ids, true)?))
        .collect::<CommandResult<_>>()?;
    let mut answers = BTreeMap::new();
    let mut meter = Meter::new(ui, (prompts.len() * settings.samples) as u64);
    let done = each_response(&loaded, &settings, &prompts, &mut meter, &mut |index, response| {
        answers.insert(texts[index].clone(), response_text(&loaded, &settings, response)?);
        Ok(Flow::Continue)
    })?;
    ui.end_progress();
    match done {
        Done::Finished => Ok(answers),
        Done::Interrupted => Err(CommandError::interrupted("stopped; nothing was compared")),
    }
}

fn print(out: &mut impl Write, diff: &Diff, a: &str, b: &str) -> io::Result<()> {
    let head = Row { what: String::new(), a: Some(a.to_owned()), b: Some(b.to_owned()) };
    print_row(out, &head)?;
    let shown = |hash: &Option<String>| hash.as_ref().map(|hash| short(hash).to_owned());
    let models = Row { what: "model".into(), a: shown(&diff.models.a), b: shown(&diff.models.b) };
    print_row(out, &models)?;
    for (title, rows, none) in [
        ("Data", &diff.data, "no data on record"),
        ("Settings that differ", &diff.settings, "none"),
        ("Measures", &diff.measures, "no verdict on record"),
    ] {
        writeln!(out, "\n{title}")?;
        if rows.is_empty() {
            writeln!(out, "  {none}")?;
        }
        rows.iter().try_for_each(|row| print_row(out, row))?;
    }
    writeln!(out, "\nResponses")?;
    if diff.responses.is_empty() {
        writeln!(out, "  no responses to the same prompts on record; --prompts FILE asks both")?;
    }
    for row in &diff.responses {
        wrap(&row.what, COLUMNS - 2).iter().try_for_each(|line| writeln!(out, "  {line}"))?;
        for (name, text) in [(a, &row.a), (b, &row.b)] {
            writeln!(out, "    {name}:")?;
            let lines = wrap(text.as_deref().unwrap_or("no response"), COLUMNS - 6);
            lines.iter().take(LINES_MAX).try_for_each(|line| writeln!(out, "      {line}"))?;
            if lines.len() > LINES_MAX {
                writeln!(out, "      …")?;
            }
        }
    }
    Ok(())
}

fn print_row(out: &mut impl Write, row: &Row) -> io::Result<()> {
    let mark = if row.a == row.b { ' ' } else { '*' };
    let mark = if row.what.is_empty() { ' ' } else { mark };
    let side = |text: &Option<String>| lines_of(text.as_deref().unwrap_or("-"), SIDE - 1);
    let (what, a, b) = (lines_of(&row.what, NAME - 1), side(&row.a), side(&row.b));
    for i in 0..what.len().max(a.len()).max(b.len()).max(1) {
        let of = |lines: &[String]| lines.get(i).cloned().unwrap_or_default();
        let line =
            format!("{}{:<NAME$}{:<SIDE$} {}", if i == 0 { mark } else { ' ' }, of(&what), of(&a), of(&b));
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Lines of at most so many columns, words longer than that broken.
fn lines_of(text: &str, columns: usize) -> Vec<String> {
    let letters: Vec<char> = text.chars().collect();
    letters.chunks(columns).map(|chunk| chunk.iter().collect()).collect()
}
