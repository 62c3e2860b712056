//! `/runs`: every run of the project, those that train first.

use std::cmp::Reverse;

use axum::response::Response;
use maud::{Markup, html};
use polity_chart::short;
use serde_json::{Value, json};

use super::log::{Metrics, RunLog};
use super::runs::{self, Looked, Progress, State};
use super::{live, number, pill, waiting};
use crate::app::App;
use crate::error::Outcome;
use crate::field::{Kind, needed};
use crate::page;
use crate::project::WATCHERS;
use crate::route::{Call, Route, json_response, route};

/// Runs on the page.
const RUNS_MAX: usize = 200;
/// Numbers of each.
const NUMBERS: usize = 3;

pub(crate) const ROUTES: &[Route] = &[
    route!(GET "/runs" WATCHERS, "Every run, with how far it is.", [live::SEEN], [], runs_page),
    route!(GET "/api/v1/runs" WATCHERS, "Every run, with how far it is; those that train first, then the last ones.", [],
        [needed("runs", Kind::Objects, "`name`, `place`, `state` (running, ended, stopped, killed, gone) and `why`, `stage`, `began_ms`, `last_ms`, `model`, `step`, `time_s`, `share` done, `remaining_s`, `numbers` of the last step, `alarms` that stand.")], runs_api),
];

/// A run of the list.
struct Row {
    run: Looked,
    metrics: Metrics,
    progress: Option<Progress>,
    /// Alarms that stand.
    alarms: Vec<String>,
}

async fn rows(app: &App) -> Outcome<(Vec<Row>, usize)> {
    let (found, now_ms) = (runs::find(app).await?, app.now_ms());
    waiting(move || {
        let mut all: Vec<Looked> = found.into_iter().map(|found| runs::look(found, now_ms)).collect();
        all.sort_by_key(|run| (run.state != State::Running, Reverse(run.last_ms), run.found.name.clone()));
        let left_out = all.len().saturating_sub(RUNS_MAX);
        all.truncate(RUNS_MAX);
        (all.into_iter().map(row).collect(), left_out)
    })
    .await
}

fn row(run: Looked) -> Row {
    let metrics = run.end_of_log();
    let progress = run.progress(&metrics);
    let alarms = run.found.dir.as_ref().map(|dir| standing(&RunLog::alarms_of(dir))).unwrap_or_default();
    Row { metrics, progress, alarms, run }
}

/// Names of alarms that were raised and are not over.
pub(crate) fn standing(alarms: &[super::log::Alarm]) -> Vec<String> {
    let mut standing: Vec<String> = Vec::new();
    for alarm in alarms {
        standing.retain(|name| *name != alarm.alarm);
        if alarm.raised {
            standing.push(alarm.alarm.clone());
        }
    }
    standing
}

async fn runs_page(app: App, call: Call) -> Outcome<Response> {
    let (rows, left_out) = rows(&app).await?;
    let inside = match rows.is_empty() {
        true => nothing(&app),
        false => table(&app, &rows, left_out),
    };
    let runs = rows.iter().any(|row| row.run.state == State::Running);
    let every_s = app.shelf().boards.dir.as_ref().map(|_| if runs { live::OFTEN_S } else { live::SELDOM_S });
    if let Some(answer) = live::answer(&call, every_s, &inside) {
        return Ok(answer);
    }
    let body = html! { h1 { "Runs" } (live::part(&call, every_s, &inside)) };
    Ok(page::page(&app, &call, "Runs", body))
}

fn nothing(app: &App) -> Markup {
    html! {
        section.card {
            p { "There are no runs yet. In the project's directory," }
            pre.scroll tabindex="0" { "polity train sft --model BASE --data demonstrations.jsonl --out runs/sft" }
            p { "makes one; it appears here with its first step." }
            @if app.shelf().boards.dir.is_none() { p.hint { "This server was not told of the project's directory, so it shows only runs that are in the ledger." } }
        }
    }
}

fn table(app: &App, rows: &[Row], left_out: usize) -> Markup {
    let with_numbers = rows.iter().filter(|row| row.progress.is_some()).count();
    html! {
        form method="get" action="/runs/compare" {
            section.card.scroll tabindex="0" {
                table.stack {
                    thead { tr { th { "Compare" } th { "Run" } th { "State" } th { "Stage" } th { "Progress" } th { "Last numbers" } th { "Alarms" } th { "Began" } } }
                    tbody { @for row in rows { (table_row(app, row)) } }
                }
            }
            @if left_out > 0 { p.hint { (left_out) " older runs are not shown." } }
            @if with_numbers > 1 {
                p { button type="submit" { "Compare those that are ticked" } }
            }
        }
    }
}

fn table_row(app: &App, row: &Row) -> Markup {
    let Row { run, metrics, progress, alarms } = row;
    let name = &run.found.name;
    html! {
        tr {
            td { @if progress.is_some() { label.tick { input type="checkbox" name="run" value=(name) aria-label={"Compare " (name)}; } } }
            td { a href={"/runs/" (page::segment(name))} { strong { (name) } } }
            td title=(run.why) { (state(run.state)) }
            td { (run.stage) }
            td.n { (progress_of(run.state, progress.as_ref())) }
            td.n { @for (label, value) in numbers(app, run, metrics) { span.nowrap { (label) " " strong { (short(value)) } } br; } }
            td { @for alarm in alarms { span.remark { (alarm) } " " } }
            td.nowrap { @if let Some(at_ms) = run.began_ms { (page::time(at_ms)) } }
        }
    }
}

/// The last values of the numbers that say most.
fn numbers<'a>(app: &'a App, run: &Looked, metrics: &Metrics) -> Vec<(&'a str, f64)> {
    let main = app.shelf().main_metrics(&run.stage, NUMBERS);
    main.into_iter().filter_map(|(title, name)| Some((title, metrics.value(name)?))).collect()
}

pub(crate) fn state(state: State) -> Markup {
    let kind = match state {
        State::Running => "going",
        State::Ended => "good",
        State::Stopped | State::Gone => "quiet",
        State::Killed => "bad",
    };
    pill(kind, state.name())
}

pub(crate) fn progress_of(state: State, progress: Option<&Progress>) -> Markup {
    let Some(progress) = progress else {
        return html! { @if state == State::Running { "no step yet" } @else { "no numbers here" } };
    };
    html! {
        @if let Some(share) = progress.share {
            progress max="100" value=(format!("{:.1}", 100.0 * share)) aria-label="Share done" {}
        }
        "step " (progress.step)
        @if let Some(share) = progress.share { ", " (format!("{:.0}\u{a0}%", 100.0 * share)) }
        @if let Some(remaining_s) = progress.remaining_s { ", " span.nowrap { (page::span((remaining_s * 1000.0) as i64)) " left" } }
    }
}

/// How a run stands, as JSON.
pub(crate) fn summary(run: &Looked, metrics: &Metrics, progress: Option<&Progress>) -> Value {
    let numbers: serde_json::Map<String, Value> =
        metrics.curves.keys().filter_map(|name| Some((name.clone(), number(metrics.value(name)?)))).collect();
    json!({
        "name": run.found.name, "place": run.found.place, "state": run.state.name(), "why": run.why, "stage": run.stage,
        "began_ms": run.began_ms, "last_ms": run.last_ms,
        "model": run.found.on_record.as_ref().and_then(|record| record.model.clone()),
        "step": progress.map(|progress| progress.step), "time_s": progress.map(|progress| number(progress.time_s)),
        "share": progress.and_then(|progress| progress.share), "remaining_s": progress.and_then(|progress| progress.remaining_s),
        "numbers": numbers,
    })
}

async fn runs_api(app: App, _call: Call) -> Outcome<Response> {
    let (rows, _) = rows(&app).await?;
    let runs: Vec<Value> = rows
        .iter()
        .map(|row| {
            let mut summary = summary(&row.run, &row.metrics, row.progress.as_ref());
            summary["alarms"] = json!(row.alarms);
            summary
        })
        .collect();
    Ok(json_response(&json!({"runs": runs})))
}
