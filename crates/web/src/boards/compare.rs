//! `/runs/compare`: curves over each other, settings that differ, and what each run's score cost in KL.
//!
//! **The frontier.** Each run is a path from its first step to its last: KL from the reference against the score of the reward model (the proxy that is
//! optimised), and against the score by people or a known truth (gold). At the same KL higher is better. Where the proxy goes on rising and gold
//! falls, the reward model is over-optimised. Gao, Schulman and Hilton (2022) found both to be simple curves over the root of the KL, which is
//! why the root is the axis unless the plain KL is asked for.

use std::collections::{BTreeMap, BTreeSet};

use axum::response::Response;
use maud::{Markup, html};
use polity_chart::{Board, Cloud, Curve, LineChart, Scatter, Series, short};
use serde_json::{Value, json};

use super::log::{GOLD, PROXY, RunLog};
use super::runs::{self, Looked};
use super::{run_list, waiting};
use crate::app::App;
use crate::chart;
use crate::error::{Failure, Outcome};
use crate::field::{Field, Kind, may, needed};
use crate::page;
use crate::project::WATCHERS;
use crate::route::{Call, Route, json_response, route};

/// Runs at once: as many as there are colours.
const RUNS_MAX: usize = 6;

const RUN: Field = needed("run", Kind::List, "Names of runs, 6 at most; give it once for each.");

pub(crate) const ROUTES: &[Route] = &[
    route!(GET "/runs/compare" WATCHERS, "Runs beside one another.",
        [
            may("run", Kind::List, "Names of runs."),
            may("x", Kind::OneOf(&["root", "plain"]), "The root of the KL as axis, or the KL."),
        ], [], compare_page),
    route!(GET "/api/v1/compare" WATCHERS, "Runs beside one another.", [RUN],
        [
            needed("runs", Kind::Objects, "As in the list of runs, in the order asked for."),
            needed("settings", Kind::Objects, "Settings that differ: `key`, and `values` in the order of the runs, null where a run has none."),
            needed("frontier", Kind::Objects, "For each run `name`, `proxy` and `gold`: `[step, kl, score]`, means over neighbouring steps."),
        ], compare_api),
];

/// One of the runs.
struct One {
    run: Looked,
    board: Board,
    curves: BTreeMap<String, Curve>,
    summary: Value,
    proxy: Vec<(f64, f64, f64)>,
    gold: Vec<(f64, f64, f64)>,
    problems: Vec<String>,
}

impl One {
    fn new(run: Looked, board: Board, log: &RunLog) -> One {
        let metrics = log.metrics();
        One {
            curves: metrics.curves.clone(),
            summary: run_list::summary(&run, metrics, run.progress(metrics).as_ref()),
            proxy: metrics.proxy.points().collect(),
            gold: metrics.gold.points().collect(),
            problems: log.problems.clone(),
            board,
            run,
        }
    }
}

async fn read(app: &App, names: &[&str]) -> Outcome<(Vec<One>, Vec<String>)> {
    if names.len() > RUNS_MAX {
        return Err(Failure::Input(format!(
            "`run` is given {} times; expected {RUNS_MAX} at most",
            names.len()
        )));
    }
    let (found, now_ms, shelf) = (runs::find(app).await?, app.now_ms(), app.shelf().clone());
    let all: Vec<String> = found.iter().filter(|run| run.dir.is_some()).map(|run| run.name.clone()).collect();
    let mut asked = Vec::new();
    for name in names {
        asked.push(found.iter().find(|run| run.name == *name).cloned().ok_or(Failure::NotFound)?);
    }
    let ones = waiting(move || {
        let one = |found| {
            let run = runs::look(found, now_ms);
            let board = shelf.stage(&run.stage).cloned().unwrap_or_default();
            let dir = run.found.dir.clone();
            shelf.log(dir.as_deref(), |log| One::new(run, board, log))
        };
        asked.into_iter().map(one).collect()
    })
    .await?;
    Ok((ones, all))
}

/// Settings that are not the same in all runs.
fn differences(ones: &[One]) -> Vec<(String, Vec<Option<String>>)> {
    let keys: BTreeSet<&String> = ones.iter().flat_map(|one| one.run.settings.keys()).collect();
    let row = |key: &String| {
        (key.clone(), ones.iter().map(|one| one.run.settings.get(key).cloned()).collect::<Vec<_>>())
    };
    keys.into_iter().map(row).filter(|(_, values)| values.iter().any(|value| *value != values[0])).collect()
}

async fn compare_page(app: App, call: Call) -> Outcome<Response> {
    let names = call.list("run");
    let (ones, all) = read(&app, &names).await?;
    let plain = call.text("x") == "plain";
    let body = html! {
        h1 { "Comparison of runs" }
        (choice(&all, &names))
        @if ones.len() < 2 {
            section.card { p { @if all.len() < 2 { "It takes two runs to compare; so far there are " (all.len()) "." } @else { "Tick two runs or more." } } }
        }
        @if !ones.is_empty() {
            @for one in &ones { @for problem in &one.problems { p.wrong { (one.run.found.name) ", " (problem) "." } } }
            (frontier(&ones, plain, &names))
            h2 { "Curves" }
            div.charts { @for chart in curves(&ones) { (chart::lines(&chart)) } }
            (settings(&ones))
        }
    };
    Ok(page::page(&app, &call, "Comparison of runs", body))
}

fn choice(all: &[String], chosen: &[&str]) -> Markup {
    html! {
        section.card {
            details #choice open[chosen.len() < 2] {
                summary { "Runs" }
                form method="get" action="/runs/compare" {
                    div.row {
                        @for name in all {
                            label.tick { input type="checkbox" name="run" value=(name) checked[chosen.contains(&name.as_str())]; span { (name) } }
                        }
                    }
                    @if all.is_empty() { p { "There are none yet; see " a href="/runs" { "Runs" } "." } }
                    @else { p { button type="submit" { "Compare" } } }
                }
            }
        }
    }
}

/// Score against KL, for each of the two scores that a run of these has.
fn frontier(ones: &[One], plain: bool, names: &[&str]) -> Markup {
    let scores = [
        ("Score of the reward model against KL", PROXY, (|one: &One| one.proxy.clone()) as fn(&One) -> _),
        ("Score that matters against KL", GOLD, |one: &One| one.gold.clone()),
    ];
    let charts: Vec<Scatter> = scores
        .iter()
        .filter(|(_, _, of)| ones.iter().any(|one| !of(one).is_empty()))
        .map(|(title, metric, of)| Scatter {
            title: (*title).into(),
            x_label: if plain { "KL, nats per sequence" } else { "root of KL, nats per sequence" }.into(),
            y_label: unit(ones, metric),
            clouds: ones.iter().map(|one| cloud(&one.run.found.name, &of(one), plain)).collect(),
        })
        .collect();
    let other = names.iter().map(|name| format!("run={}&", page::segment(name))).collect::<String>();
    html! {
        @if !charts.is_empty() {
            h2 { "Reward against KL" }
            div.charts { @for chart in &charts { (chart::scatter(chart)) } }
            p.hint {
                "A path is a run from its first step to its last, which has a large dot. At the same KL higher is better; where the reward model's score rises and the one that matters falls, "
                "the reward model is over-optimised. "
                a href={"/runs/compare?" (other) "x=" (if plain { "root" } else { "plain" })} { @if plain { "The root of the KL as axis" } @else { "The plain KL as axis" } }
            }
        }
    }
}

fn cloud(name: &str, points: &[(f64, f64, f64)], plain: bool) -> Cloud {
    let last = points.len().saturating_sub(1);
    let point = |(n, &(step, kl, score)): (usize, &(f64, f64, f64))| {
        // An estimate of a KL may be below zero, where no root is.
        let x = if plain { kl } else { kl.max(0.0).sqrt() };
        let label = if n == last { format!("step {}", short(step)) } else { String::new() };
        (x, score, label)
    };
    Cloud { name: name.to_owned(), points: points.iter().enumerate().map(point).collect(), joined: true }
}

fn unit(ones: &[One], metric: &str) -> String {
    let known = ones.iter().find_map(|one| one.board.metric(metric));
    known.map(|metric| metric.unit.clone()).unwrap_or_default()
}

/// A chart for each number that a trainer's charts show, with a line for each run; then for every other one that two runs have.
fn curves(ones: &[One]) -> Vec<LineChart> {
    let mut shown: BTreeSet<String> = BTreeSet::new();
    let mut charts = Vec::new();
    for one in ones {
        for panel in &one.board.panels {
            for (label, metric) in &panel.lines {
                for (name, eval) in
                    [(metric.clone(), ""), (format!("{}{metric}", one.board.eval_prefix), ", evaluation")]
                {
                    let several = panel.lines.len() > 1;
                    let title = format!(
                        "{}{}{eval}",
                        panel.title,
                        if several { format!(": {label}") } else { String::new() }
                    );
                    if ones.iter().any(|one| one.curves.contains_key(&name)) && shown.insert(name.clone()) {
                        charts.push(overlay(ones, &title, &name));
                    }
                }
            }
        }
    }
    let mut count: BTreeMap<&String, usize> = BTreeMap::new();
    ones.iter().flat_map(|one| one.curves.keys()).for_each(|name| *count.entry(name).or_default() += 1);
    let other = count.into_iter().filter(|(name, runs)| *runs > 1 && !shown.contains(*name));
    charts.extend(other.map(|(name, _)| overlay(ones, name, name)));
    charts
}

fn overlay(ones: &[One], title: &str, metric: &str) -> LineChart {
    let series = |one: &One| Series {
        name: one.run.found.name.clone(),
        points: one.curves.get(metric).cloned().unwrap_or_default(),
        dots: false,
    };
    LineChart {
        title: title.into(),
        unit: unit(ones, metric),
        x_label: "step".into(),
        series: ones.iter().map(series).collect(),
        marks: Vec::new(),
        from_zero: false,
    }
}

fn settings(ones: &[One]) -> Markup {
    let rows = differences(ones);
    html! {
        section.card {
            h2 { "Settings that differ" }
            @if ones.len() < 2 { p { "There is one run." } }
            @else if rows.is_empty() { p { "None." } }
            @else {
                div.scroll tabindex="0" {
                    table {
                        thead { tr { th { "Key" } @for one in ones { th { (one.run.found.name) } } } }
                        tbody { @for (key, values) in &rows {
                            tr { td { code { (key) } } @for value in values { td { (value.as_deref().unwrap_or("absent")) } } }
                        } }
                    }
                }
            }
        }
    }
}

async fn compare_api(app: App, call: Call) -> Outcome<Response> {
    let (ones, _) = read(&app, &call.list("run")).await?;
    let points = |points: &[(f64, f64, f64)]| {
        points.iter().map(|(step, kl, score)| json!([step, kl, score])).collect::<Vec<_>>()
    };
    let frontier = |one: &One| json!({"name": one.run.found.name, "proxy": points(&one.proxy), "gold": points(&one.gold)});
    let settings = differences(&ones).into_iter().map(|(key, values)| json!({"key": key, "values": values}));
    Ok(json_response(&json!({
        "runs": ones.iter().map(|one| one.summary.clone()).collect::<Vec<_>>(),
        "settings": settings.collect::<Vec<_>>(),
        "frontier": ones.iter().map(frontier).collect::<Vec<_>>(),
    })))
}
