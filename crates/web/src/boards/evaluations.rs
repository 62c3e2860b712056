//! `/evaluations`: a model's measures by category with their intervals, beside a baseline's.
//!
//! Evaluations come from the ledger, whose documents they are, and from files in the project's `measures/` and `evaluations/` that no event
//! names yet. Models stand beside one another on the same suite; where their settings differ, that is said, since
//! then a difference may be the settings'.
//!
//! Not here: whether a difference is more than chance; the gate compares prompt by prompt (`verdicts`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use axum::response::Response;
use maud::{Markup, html};
use polity_chart::{Bar, BarChart, BarGroup, Form, short};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Models, Shelf, cut, tail, waiting};
use crate::app::App;
use crate::chart;
use crate::error::Outcome;
use crate::field::{Kind, may, needed};
use crate::page;
use crate::project::WATCHERS;
use crate::route::{Call, Route, json_response, route};

/// Where files of measures may lie, from the project's directory.
const FOLDERS: [&str; 2] = ["measures", "evaluations"];
/// Files that are looked at, and the largest.
const FILES_MAX: usize = 500;
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Evaluations that are kept in memory, without their items.
const KEPT_MAX: usize = 2000;

pub(crate) const ROUTES: &[Route] = &[
    route!(GET "/evaluations" WATCHERS, "A model's measures by category beside a baseline's.",
        [may("model", Kind::Text, "Hash of the model; the one evaluated last if not given."), may("baseline", Kind::Text, "Hash of the model beside it.")],
        [], evaluations_page),
    route!(GET "/api/v1/evaluations" WATCHERS, "Evaluations without their items, those of the ledger first.",
        [may("model", Kind::Text, "Only this model's.")],
        [
            needed("evaluations", Kind::Objects, "`model`, `suite`, `suite_name`, `settings`, `inputs`, `measures` (`name`, `category`, `unit`, `estimate`, `low`, `high`, `n`, `confidence`), `at_ms`, `event` of the ledger (null if there is none), `file`."),
            needed("problems", Kind::List, "Files that could not be read."),
        ], evaluations_api),
];

/// All measures of a model on a suite, without their items.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Evaluation {
    model: String,
    suite: String,
    #[serde(default)]
    suite_name: Option<String>,
    #[serde(default)]
    settings: Map<String, Value>,
    #[serde(default)]
    inputs: Map<String, Value>,
    measures: Vec<Measure>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Measure {
    name: String,
    #[serde(default)]
    category: Option<String>,
    unit: String,
    estimate: f64,
    low: f64,
    high: f64,
    n: u64,
    confidence: f64,
}

/// An evaluation, and where it is from.
struct Entry {
    evaluation: Arc<Evaluation>,
    at_ms: i64,
    /// Number of its event, if it has one.
    event: Option<i64>,
    file: String,
}

async fn read(app: &App) -> Outcome<(Vec<Entry>, Vec<String>)> {
    let (mut entries, mut problems) = (Vec::new(), Vec::new());
    for record in app.store().evaluations().await? {
        let hash = &record.what.evaluation;
        let kept = app.shelf().evaluation(hash);
        let evaluation = match kept {
            Some(kept) => kept,
            None => {
                let text = app.store().document(hash).await;
                match text.map_err(|error| error.to_string()).and_then(|text| parse(&text)) {
                    Ok(evaluation) => app.shelf().keep(hash, evaluation),
                    Err(why) => {
                        problems.push(format!("ledger event {}: {why}", record.seq));
                        continue;
                    }
                }
            }
        };
        entries.push(Entry {
            evaluation,
            at_ms: record.at_ms,
            event: Some(record.seq),
            file: record.what.file,
        });
    }
    if let Some(dir) = app.shelf().boards.dir.clone() {
        let shelf = app.shelf().clone();
        let (files, more) = waiting(move || files(&shelf, &dir)).await?;
        problems.extend(more);
        for file in files {
            if !entries.iter().any(|entry| entry.evaluation == file.evaluation) {
                entries.push(file);
            }
        }
    }
    Ok((entries, problems))
}

fn parse(text: &str) -> Result<Evaluation, String> {
    let evaluation: Evaluation = serde_json::from_str(text).map_err(|error| {
        format!("no file of measures, at line {}, column {}", error.line(), error.column())
    })?;
    match evaluation.measures.iter().find(|measure| measure.n == 0) {
        Some(measure) => Err(format!("measure `{}` is of nothing", cut(&measure.name, 60))),
        None => Ok(evaluation),
    }
}

/// Files of measures in the project, oldest first, and what could not be read.
fn files(shelf: &Shelf, project: &Path) -> (Vec<Entry>, Vec<String>) {
    let (mut entries, mut problems) = (Vec::new(), Vec::new());
    let mut paths: Vec<(String, PathBuf)> = Vec::new();
    for folder in FOLDERS {
        let within = |dir: &Path| {
            std::fs::read_dir(dir)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path())
                .collect::<Vec<_>>()
        };
        let direct = within(&project.join(folder));
        let deeper =
            direct.iter().filter(|path| path.is_dir()).flat_map(|dir| within(dir)).collect::<Vec<_>>();
        for path in direct.into_iter().chain(deeper) {
            let json = path.extension().is_some_and(|extension| extension == "json");
            if let (true, Some(place)) = (json, path.strip_prefix(project).ok().and_then(Path::to_str)) {
                paths.push((place.to_owned(), path));
            }
        }
    }
    paths.sort();
    if paths.len() > FILES_MAX {
        problems.push(format!(
            "of {} files in measures/ and evaluations/ only {FILES_MAX} are read",
            paths.len()
        ));
    }
    for (place, path) in paths.into_iter().take(FILES_MAX) {
        let Ok(found) = path.metadata() else { continue };
        let written =
            found.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        let key = format!("{place} {} {}", found.len(), written.as_nanos());
        let read = || match tail::small(&path, FILE_BYTES_MAX) {
            Ok(Some(text)) => parse(&text),
            Ok(None) => Err("it is gone".into()),
            Err(error) => Err(error.to_string()),
        };
        match shelf.evaluation(&key).map_or_else(|| read().map(|evaluation| shelf.keep(&key, evaluation)), Ok)
        {
            Ok(evaluation) => {
                let at_ms = i64::try_from(written.as_millis()).unwrap_or(0);
                entries.push(Entry { evaluation, at_ms, event: None, file: place });
            }
            Err(why) => problems.push(format!("{place}: {why}")),
        }
    }
    entries.sort_by_key(|entry| entry.at_ms);
    (entries, problems)
}

impl Shelf {
    fn evaluation(&self, key: &str) -> Option<Arc<Evaluation>> {
        self.evaluations.lock().expect("no holder of this lock can panic").get(key).cloned()
    }

    fn keep(&self, key: &str, evaluation: Evaluation) -> Arc<Evaluation> {
        let mut kept = self.evaluations.lock().expect("no holder of this lock can panic");
        if kept.len() == KEPT_MAX {
            kept.clear();
        }
        kept.entry(key.to_owned()).or_insert(Arc::new(evaluation)).clone()
    }
}

async fn evaluations_page(app: App, call: Call) -> Outcome<Response> {
    let (entries, problems) = read(&app).await?;
    let models = Models::read(&app).await?;
    let newest = entries.iter().max_by_key(|entry| entry.at_ms).map(|entry| entry.evaluation.model.clone());
    let text = |name: &str| Some(call.text(name).to_owned()).filter(|text| !text.is_empty());
    let candidate = text("model").or(newest).unwrap_or_default();
    let baseline = match call.get("baseline") {
        Some(_) => text("baseline"),
        None => beside(&entries, &candidate),
    };
    let body = html! {
        h1 { "Evaluations" }
        @for problem in &problems { p.wrong { (problem) "." } }
        @if entries.is_empty() {
            section.card {
                p { "There are no evaluations yet. In the project's directory," }
                pre.scroll tabindex="0" { "polity eval runs/ppo/model --suite SUITE" }
                p { "measures a model. Every file of measures in " code { "measures/" } " or " code { "evaluations/" } " is shown here; " code { "polity gate" } " judges on them, and puts them into the ledger." }
            }
        } @else {
            (choice(&entries, &models, &candidate, baseline.as_deref()))
            (shown(&entries, &models, &candidate, baseline.as_deref()))
        }
    };
    Ok(page::page(&app, &call, "Evaluations", body))
}

/// The other model that was evaluated last on a suite of the candidate's.
fn beside(entries: &[Entry], candidate: &str) -> Option<String> {
    let suites: BTreeSet<&str> = entries
        .iter()
        .filter(|entry| entry.evaluation.model == candidate)
        .map(|entry| entry.evaluation.suite.as_str())
        .collect();
    let others = entries.iter().filter(|entry| {
        entry.evaluation.model != candidate && suites.contains(entry.evaluation.suite.as_str())
    });
    others.max_by_key(|entry| entry.at_ms).map(|entry| entry.evaluation.model.clone())
}

fn choice(entries: &[Entry], models: &Models, candidate: &str, baseline: Option<&str>) -> Markup {
    let all: BTreeSet<&str> = entries.iter().map(|entry| entry.evaluation.model.as_str()).collect();
    html! {
        section.card {
            form.row method="get" action="/evaluations" {
                label { span { "Model" } select name="model" {
                    @for model in &all { option value=(model) selected[*model == candidate] { (models.label(model)) } }
                } }
                label { span { "Beside" } select name="baseline" {
                    option value="" { "nothing" }
                    @for model in &all { option value=(model) selected[Some(*model) == baseline] { (models.label(model)) } }
                } }
                button type="submit" { "Show" }
            }
        }
    }
}

fn shown(entries: &[Entry], models: &Models, candidate: &str, baseline: Option<&str>) -> Markup {
    // The newest of each suite and settings.
    let mut own: BTreeMap<(&str, String), &Entry> = BTreeMap::new();
    for entry in entries.iter().filter(|entry| entry.evaluation.model == candidate) {
        let key = (entry.evaluation.suite.as_str(), settings_text(&entry.evaluation.settings));
        own.insert(key, entry);
    }
    html! {
        @if own.is_empty() { section.card { p { "There is no evaluation of model " code.wrap { (candidate) } "." } } }
        @for entry in own.values() {
            (suite(entry, baseline.and_then(|model| counterpart(entries, entry, model)), models))
        }
    }
}

/// The other model's newest evaluation on the same suite, with the same settings if there is one.
fn counterpart<'e>(entries: &'e [Entry], of: &Entry, model: &str) -> Option<&'e Entry> {
    let same =
        |entry: &&Entry| entry.evaluation.model == model && entry.evaluation.suite == of.evaluation.suite;
    let all = || entries.iter().rev().filter(same);
    all().find(|entry| entry.evaluation.settings == of.evaluation.settings).or_else(|| all().next())
}

fn settings_text(settings: &Map<String, Value>) -> String {
    let mut all: Vec<String> = settings.iter().map(|(key, value)| format!("{key} = {value}")).collect();
    all.sort();
    cut(&all.join(", "), 600)
}

fn suite(entry: &Entry, beside: Option<&Entry>, models: &Models) -> Markup {
    let evaluation = &entry.evaluation;
    let mut names: Vec<(&str, &str)> = Vec::new();
    for measure in &evaluation.measures {
        let name = (measure.name.as_str(), measure.unit.as_str());
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let settings = settings_text(&evaluation.settings);
    html! {
        section.card {
            h2 {
                "Suite "
                @if let Some(name) = &evaluation.suite_name { (cut(name, 100)) " " }
                code title=(evaluation.suite) { (page::short(&evaluation.suite)) }
            }
            p.hint {
                @if settings.is_empty() { "No settings" } @else { (settings) } ". " (from(entry))
                @if let Some(beside) = beside { " Beside it: " (from(beside)) }
            }
            @if let Some(beside) = beside && beside.evaluation.settings != evaluation.settings {
                p.wrong { "The model beside it was measured with other settings (" (settings_text(&beside.evaluation.settings)) "), so a difference may be theirs." }
            }
            div.charts { @for (name, unit) in &names { (chart::bars(&measure_chart(entry, beside, models, name, unit))) } }
            details {
                summary { "As a table" }
                (table(entry, beside, models))
            }
        }
    }
}

fn from(entry: &Entry) -> Markup {
    html! {
        @match entry.event {
            Some(event) => { "In the ledger since " (page::time(entry.at_ms)) ", event " (event) "." },
            None => { "From " code { (entry.file) } ", which is not in the ledger." },
        }
    }
}

fn category(measure: &Measure) -> String {
    measure.category.clone().unwrap_or_else(|| "all".into())
}

/// One measure over its categories, all of it first.
fn measure_chart(entry: &Entry, beside: Option<&Entry>, models: &Models, name: &str, unit: &str) -> BarChart {
    let of = |entry: &Entry| -> BTreeMap<Option<String>, Bar> {
        let measures =
            entry.evaluation.measures.iter().filter(|measure| measure.name == name && measure.unit == unit);
        measures
            .map(|m| (m.category.clone(), Bar { value: m.estimate, interval: Some((m.low, m.high)) }))
            .collect()
    };
    let own = of(entry);
    let other = beside.map(&of);
    let categories: BTreeSet<&Option<String>> =
        own.keys().chain(other.iter().flat_map(BTreeMap::keys)).collect();
    let group = |entry: &Entry, bars: &BTreeMap<Option<String>, Bar>, colour| BarGroup {
        name: models.label(&entry.evaluation.model),
        bars: categories.iter().map(|category| bars.get(*category).copied()).collect(),
        colour,
    };
    let mut groups = vec![group(entry, &own, 0)];
    if let (Some(beside), Some(other)) = (beside, &other) {
        groups.push(group(beside, other, 1));
    }
    BarChart {
        title: name.replace('_', " "),
        unit: unit.to_owned(),
        categories: categories
            .iter()
            .map(|category| category.as_deref().unwrap_or("all").to_owned())
            .collect(),
        groups,
        reference: None,
        form: Form::Dots { axis: None },
    }
}

fn table(entry: &Entry, beside: Option<&Entry>, models: &Models) -> Markup {
    html! {
        div.scroll tabindex="0" {
            table {
                thead { tr { th { "Model" } th { "Measure" } th { "Category" } th { "Estimate" } th { "Interval" } th { "Values" } th { "Unit" } } }
                tbody { @for entry in [Some(entry), beside].into_iter().flatten() { @for measure in &entry.evaluation.measures {
                    tr {
                        td.nowrap { (models.label(&entry.evaluation.model)) } td { (measure.name) } td { (category(measure)) }
                        td.n { (short(measure.estimate)) }
                        td.n { (short(measure.low)) " to " (short(measure.high)) " (" (format!("{:.0}\u{a0}%", 100.0 * measure.confidence)) ")" }
                        td.n { (measure.n) } td { (measure.unit) }
                    }
                } } }
            }
        }
    }
}

async fn evaluations_api(app: App, call: Call) -> Outcome<Response> {
    let (entries, problems) = read(&app).await?;
    let wanted = call.get("model").map(|_| call.text("model"));
    let asked = entries.iter().filter(|entry| wanted.is_none_or(|model| entry.evaluation.model == model));
    let evaluations: Vec<Value> = asked
        .map(|entry| {
            let mut value = json!(*entry.evaluation);
            value["at_ms"] = json!(entry.at_ms);
            value["event"] = json!(entry.event);
            value["file"] = json!(entry.file);
            value
        })
        .collect();
    Ok(json_response(&json!({"evaluations": evaluations, "problems": problems})))
}
