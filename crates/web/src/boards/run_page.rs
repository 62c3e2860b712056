//! `/runs/NAME`: the curves of a run, with its alarms on them, kept up to date while it trains.

use std::collections::BTreeMap;

use axum::response::Response;
use maud::{Markup, html};
use polity_chart::{Board, Curve, LineChart, short};
use serde_json::{Value, json};

use super::log::{Alarm, RunLog, Sample};
use super::runs::{self, Looked, Progress, State};
use super::{Names, cut, live, number, run_list, waiting};
use crate::app::App;
use crate::chart;
use crate::error::{Failure, Outcome};
use crate::field::{Kind, may, needed};
use crate::page;
use crate::project::WATCHERS;
use crate::route::{Call, Route, json_response, route};

pub(crate) const ROUTES: &[Route] = &[
    route!(GET "/runs/{name}" WATCHERS, "A run: curves, alarms, responses, settings.", [live::SEEN], [], run_page),
    route!(GET "/api/v1/runs/{name}" WATCHERS, "A run: how it stands, alarms, settings, manifest, responses to fixed prompts.", [],
        [
            needed("run", Kind::Object, "As in the list of runs, with the last value of every number."),
            needed("alarms", Kind::Objects, "`step`, `alarm`, `severity`, `raised` (false when it is over), `message`."),
            needed("settings", Kind::Object, "As used, by key."),
            needed("manifest", Kind::Object, "As the run wrote it."),
            needed("samples", Kind::Objects, "`step`, `prompt`, `response`, `response_tokens`, `stopped`, `score`."),
            needed("problems", Kind::List, "What in its files could not be read."),
        ], run_api),
    route!(GET "/api/v1/runs/{name}/curves" WATCHERS, "A run's numbers over its steps, in at most 320 buckets of neighbouring steps each.",
        [may("metric", Kind::List, "Only these.")],
        [needed("curves", Kind::Objects, "`metric`, `unit`, `formula`, `points`: `[step, mean, smallest, largest]` of each bucket, null for one without a finite number.")], curves_api),
];

/// A run with what was read of its numbers.
struct Read {
    run: Looked,
    curves: BTreeMap<String, Curve>,
    charts: (Vec<LineChart>, Vec<LineChart>),
    board: Board,
    alarms: Vec<Alarm>,
    samples: Vec<Vec<Sample>>,
    progress: Option<Progress>,
    summary: Value,
    problems: Vec<String>,
    behind: bool,
}

async fn read(app: &App, name: &str) -> Outcome<Read> {
    let (found, now_ms, shelf) = (runs::one(app, name).await?, app.now_ms(), app.shelf().clone());
    let mut read = waiting(move || {
        let run = runs::look(found, now_ms);
        let board = shelf.stage(&run.stage).cloned().unwrap_or_default();
        let dir = run.found.dir.clone();
        shelf.log(dir.as_deref(), |log| read_log(run, board, log))
    })
    .await?;
    if let Some(record) = &read.run.found.on_record
        && read.run.settings.is_empty()
        && let Some(document) = &record.resolved
    {
        let text = app.store().document(document).await?;
        read.run.settings = runs::settings_of(&text, &mut read.problems);
    }
    if let Some(record) = &read.run.found.on_record
        && read.run.manifest.is_null()
        && let Some(document) = &record.manifest
    {
        read.run.manifest = serde_json::from_str(&app.store().document(document).await?).unwrap_or_default();
    }
    Ok(read)
}

fn read_log(run: Looked, board: Board, log: &RunLog) -> Read {
    let metrics = log.metrics();
    let progress = run.progress(metrics);
    Read {
        charts: board.charts(&metrics.curves, &log.raised()),
        curves: metrics.curves.clone(),
        alarms: log.alarms().to_vec(),
        samples: log.samples().map(<[Sample]>::to_vec).collect(),
        summary: run_list::summary(&run, metrics, progress.as_ref()),
        problems: run.problems.iter().chain(&log.problems).cloned().collect(),
        behind: log.behind,
        progress,
        board,
        run,
    }
}

async fn run_page(app: App, call: Call) -> Outcome<Response> {
    let read = read(&app, call.part("name")).await?;
    let goes_on = read.run.state == State::Running || read.behind;
    let every_s = goes_on.then_some(live::OFTEN_S);
    let inside = inside(&read);
    if let Some(answer) = live::answer(&call, every_s, &inside) {
        return Ok(answer);
    }
    let names = Names::read(&app).await?;
    let name = &read.run.found.name;
    let body = html! {
        div.spread {
            h1 { "Run " (name) }
            a.button href={"/runs/compare?run=" (page::segment(name))} { "Compare with others" }
        }
        (live::part(&call, every_s, &inside))
        (settings(&read.run.settings))
        section.card {
            h2 { "Where it came from" }
            dl.facts.pairs {
                @for (what, value) in provenance(&read.run, &names) { div { dt { (what) } dd.wrap { (value) } } }
            }
            @if let Some(model) = read.run.found.on_record.as_ref().and_then(|record| record.model.as_ref()) {
                p { a href={"/evaluations?model=" (page::segment(model))} { "Evaluations of its model" } }
            }
        }
    };
    Ok(page::page(&app, &call, name, body))
}

/// Whatever changes while it trains.
fn inside(read: &Read) -> Markup {
    let run = &read.run;
    html! {
        section.card {
            p { (run_list::state(run.state)) " " (read.board.title) @if read.board.title.is_empty() { (run.stage) } }
            p { (run_list::progress_of(run.state, read.progress.as_ref())) @if let Some(progress) = &read.progress { ", after " (page::span((progress.time_s * 1000.0) as i64)) } }
            p.hint { "It is taken for " (run.state.name()) " because " (run.why) "." @if let Some(at_ms) = run.last_ms { " Written last: " (page::time(at_ms)) "." } }
            @if read.behind { p.notice { "Its files are long and are still being read." } }
            @for problem in &read.problems { p.wrong { (problem) "." } }
        }
        (alarms(&read.alarms))
        @if read.curves.is_empty() {
            section.card { p { "There are no numbers" @match run.state {
                State::Running => " yet: they come with its first step.",
                _ => " of this run in the project's directory.",
            } } }
        }
        div.charts { @for chart in &read.charts.0 { (chart::lines(chart)) } }
        @if !read.charts.1.is_empty() {
            details #more-curves {
                summary { "More curves" }
                div.charts { @for chart in &read.charts.1 { (chart::lines(chart)) } }
            }
        }
        (samples(&read.samples))
        (numbers(read))
    }
}

fn alarms(alarms: &[Alarm]) -> Markup {
    let raised: Vec<&Alarm> = alarms.iter().filter(|alarm| alarm.raised).collect();
    let until = |raised: &Alarm| {
        let over = alarms
            .iter()
            .find(|other| !other.raised && other.alarm == raised.alarm && other.step > raised.step);
        over.map_or("and stands".to_owned(), |over| format!("until step {}", over.step))
    };
    html! {
        section.card {
            h2 { "Alarms" }
            @if raised.is_empty() { p { "None: no rule of the stability monitor was broken." } }
            @else {
                ul.plain { @for alarm in raised {
                    li.alarm.critical[alarm.critical] {
                        strong { (alarm.alarm) } " "
                        span.hint { @if alarm.critical { "critical" } @else { "warning" } ", from step " (alarm.step) " " (until(alarm)) }
                        p { (alarm.message) }
                    }
                } }
            }
        }
    }
}

fn samples(samples: &[Vec<Sample>]) -> Markup {
    html! {
        @if !samples.is_empty() {
            section.card {
                h2 { "Responses to fixed prompts" }
                @for (n, of_prompt) in samples.iter().enumerate() {
                    details id={"prompt-" (n)} open[n == 0] {
                        summary { (of_prompt.first().map_or("", |sample| sample.prompt.as_str())) }
                        @for sample in of_prompt {
                            p.when {
                                "step " (sample.step)
                                @if let Some(tokens) = sample.tokens { ": " (tokens) " tokens" }
                                @if !sample.stopped { ", cut" }
                                @if let Some(score) = sample.score { ", score " (short(score)) }
                            }
                            pre.said { (sample.response) }
                        }
                    }
                }
            }
        }
    }
}

fn numbers(read: &Read) -> Markup {
    html! {
        @if !read.curves.is_empty() {
            details #numbers {
                summary { "All numbers" }
                div.scroll tabindex="0" {
                    table {
                        thead { tr { th { "Number" } th { "Last" } th { "At step" } th { "Unit" } th { "How it is computed" } } }
                        tbody { @for (name, curve) in &read.curves {
                            @let known = read.board.metric(name);
                            tr {
                                td.nowrap { (name) }
                                @match curve.last() {
                                    Some((step, value)) => { td.n { (short(value)) } td.n { (step) } },
                                    None => { td { "not finite" } td {} },
                                }
                                td.nowrap { (known.map_or("", |metric| metric.unit.as_str())) }
                                td.text { (known.map_or("", |metric| metric.formula.as_str())) }
                            }
                        } }
                    }
                }
            }
        }
    }
}

fn settings(settings: &BTreeMap<String, String>) -> Markup {
    html! {
        @if !settings.is_empty() {
            section.card {
                details #settings {
                    summary { "Settings, as used: " (settings.len()) }
                    div.scroll tabindex="0" {
                        table {
                            thead { tr { th { "Key" } th { "Value" } } }
                            tbody { @for (key, value) in settings { tr { td { code { (key) } } td.text { (value) } } } }
                        }
                    }
                }
            }
        }
    }
}

/// What a person may want to know of where a run came from.
fn provenance(run: &Looked, names: &Names) -> Vec<(String, String)> {
    let manifest = &run.manifest;
    let text = |value: &Value| match value {
        Value::String(text) => cut(text, 300),
        Value::Null => String::new(),
        other => cut(&other.to_string(), 300),
    };
    let words = |value: &Value| {
        let words = value.as_array().map(|words| words.iter().map(text).collect::<Vec<_>>().join(" "));
        cut(&words.unwrap_or_default(), 600)
    };
    let machine = &manifest["machine"];
    let mut facts = vec![
        ("Place".to_owned(), run.found.place.clone()),
        ("Command".to_owned(), words(&manifest["command"])),
        ("Seed".to_owned(), text(&manifest["seed"])),
        ("Version".to_owned(), [text(&manifest["code_version"]), text(&manifest["code_commit"])].join(" ")),
        ("Machine".to_owned(), [text(&machine["cpu"]), text(&machine["isa"])].join(" ")),
        ("Started".to_owned(), text(&manifest["started"])),
        ("Resumed".to_owned(), words(&manifest["resumed"])),
        ("Finished".to_owned(), text(&manifest["finished"])),
    ];
    for input in manifest["inputs"].as_array().into_iter().flatten().take(20) {
        let hash: String = text(&input["blake3"]).chars().take(12).collect();
        facts
            .push((format!("Input: {}", text(&input["role"])), format!("{} ({hash})", text(&input["path"]))));
    }
    if let Some(record) = &run.found.on_record {
        facts.push(("Recorded by".to_owned(), names.of(&record.actor).to_owned()));
        facts.push(("Model".to_owned(), record.model.clone().unwrap_or_default()));
    }
    facts.retain(|(_, value)| !value.trim().is_empty());
    facts
}

async fn run_api(app: App, call: Call) -> Outcome<Response> {
    let read = read(&app, call.part("name")).await?;
    let sample = |sample: &Sample| {
        json!({
            "step": sample.step, "prompt": sample.prompt, "response": sample.response, "response_tokens": sample.tokens,
            "stopped": sample.stopped, "score": sample.score,
        })
    };
    let manifest = if read.run.manifest.is_object() { read.run.manifest.clone() } else { json!({}) };
    Ok(json_response(&json!({
        "run": read.summary,
        "alarms": read.alarms.iter().map(Alarm::json).collect::<Vec<_>>(),
        "settings": read.run.settings,
        "manifest": manifest,
        "samples": read.samples.iter().flatten().map(sample).collect::<Vec<_>>(),
        "problems": read.problems,
    })))
}

async fn curves_api(app: App, call: Call) -> Outcome<Response> {
    let read = read(&app, call.part("name")).await?;
    let wanted = call.list("metric");
    if let Some(unknown) = wanted.iter().find(|name| !read.curves.contains_key(**name)) {
        let known: Vec<&str> = read.curves.keys().map(String::as_str).collect();
        let what = format!("`metric` is `{}`; this run has {}", cut(unknown, 60), known.join(", "));
        return Err(Failure::Input(what));
    }
    let curve = |(name, curve): (&String, &Curve)| {
        let known = read.board.metric(name);
        let points: Vec<Value> = curve
            .buckets()
            .map(|bucket| match bucket {
                Some(bucket) => {
                    json!([bucket.x(), number(bucket.mean()), number(bucket.low), number(bucket.high)])
                }
                None => Value::Null,
            })
            .collect();
        json!({
            "metric": name, "unit": known.map(|metric| metric.unit.as_str()),
            "formula": known.map(|metric| metric.formula.as_str()), "points": points,
        })
    };
    let asked = read.curves.iter().filter(|(name, _)| wanted.is_empty() || wanted.contains(&name.as_str()));
    Ok(json_response(&json!({"curves": asked.map(curve).collect::<Vec<_>>()})))
}
