//! The panel: how far annotators agree, and each annotator's figures. Every figure links to its formula; what is undefined says why.

use std::collections::{BTreeMap, HashMap};

use axum::response::Response;
use maud::{Markup, html};
use polity_stats::agreement::{Figure, Undefined, with_majority};
use polity_stats::panel::{AnnotatorReport, Breakdown};
use polity_store::{Annotator, JudgementFilter, Kind as Purpose};
use serde_json::json;

use crate::app::App;
use crate::chart::{self, Dot};
use crate::error::{Failure, Outcome};
use crate::field::{Kind, may, needed};
use crate::figures::{Figures, figures};
use crate::page;
use crate::review::REVIEWERS;
use crate::route::{Call, Route, json_response, route};

/// Comparisons in the running share that shows drift.
const WINDOW: usize = 20;
/// Upper edges of the bars of time on task, in seconds.
const SPEED_EDGES_S: [i64; 8] = [2, 5, 10, 20, 40, 80, 160, 320];
/// Votes listed on an annotator's page.
const VOTES: i64 = 50;

pub(crate) const ROUTES: &[Route] = &[
    route!(GET "/panel" REVIEWERS, "How far the panel agrees.", [], [], panel),
    route!(GET "/panel/{annotator}" REVIEWERS, "An annotator's figures.", [], [], annotator),
    route!(GET "/api/v1/panel" REVIEWERS, "The panel's figures, as `polity agreement --json` has them; half a minute old at most.", [],
        [needed("report", Kind::Object, "Agreement with intervals, annotators, categories, rubric versions, ranking, planning.")], panel_api),
    route!(GET "/api/v1/judgements" REVIEWERS, "Effective votes in the canonical order (left is response a).",
        [
            may("annotator", Kind::Text, "Only this annotator's."),
            may("category", Kind::Text, "Only this category."),
            may("rubric", Kind::Int, "Only under this rubric version."),
            may("machine", Kind::Yes, "Only machines' (true) or people's (false)."),
        ],
        [needed("judgements", Kind::Objects, "Votes that stand, by number.")], judgements_api),
];

type Measured = Result<Figure, Undefined>;

fn value(measured: &Measured) -> Markup {
    html! {
        @match measured {
            Ok(figure) => {
                strong { (format!("{:.3}", figure.estimate)) }
                @match (figure.low, figure.high) {
                    (Some(low), Some(high)) => { " " span.interval { (format!("{low:.3} to {high:.3}")) } },
                    _ => { @if let Some(why) = &figure.no_interval { " " span.hint { "no interval: " (why) } } },
                }
            },
            Err(why) => span.hint { "undefined: " (why) },
        }
    }
}

fn formula(anchor: &str) -> Markup {
    html! { a.formula href={"/formulas#" (anchor)} title="How it is computed" { "formula" } }
}

async fn panel(app: App, call: Call) -> Outcome<Response> {
    let figures = figures(&app).await?;
    let names = names(&app).await?;
    let report = &figures.report;
    let counts = &report.counts;
    let body = html! {
        h1 { "Panel" }
        p {
            strong { (counts.votes) } " votes that stand, by " strong { (counts.annotators) } " people on "
            strong { (counts.comparisons) } " comparisons, " (counts.overlapping) " of them by two or more. "
            (format!("{:.0}\u{a0}%", 100.0 * counts.ties as f64 / counts.votes.max(1) as f64)) " ties. As of " (page::time(figures.at_ms)) "."
        }
        @if counts.votes == 0 { p { "There are no votes yet, so there is nothing to say about agreement." } }
        @else {
            section.card {
                h2 { "Agreement" }
                (agreement_chart(&figures))
                div.scroll tabindex="0" {
                    table {
                        thead { tr { th { "Figure" } th { "Of" } th { "Value, 95 % interval" } th { "Formula" } } }
                        tbody { @for figure in &report.figures {
                            tr { td { (figure.label) } td { (figure.of) } td { (value(&figure.value)) } td { (formula(figure.anchor)) } }
                        } }
                    }
                }
            }
            (breakdowns("By category", "Category", &report.categories))
            (breakdowns("By rubric version", "Version", &report.rubrics))
            (annotator_part(&figures, &names))
            (ranking(&figures))
        }
    };
    Ok(page::page(&app, &call, "Panel", body))
}

async fn names(app: &App) -> Outcome<HashMap<String, String>> {
    let all = app.store().annotators().await?;
    Ok(all.into_iter().map(|Annotator { id, name, .. }| (id, name)).collect())
}

fn dot(label: &str, measured: &Measured) -> Option<Dot> {
    let figure = measured.as_ref().ok()?;
    let interval = figure.low.zip(figure.high);
    Some(Dot { label: label.to_owned(), estimate: figure.estimate, interval })
}

fn agreement_chart(figures: &Figures) -> Markup {
    let all = figures.report.figures.iter();
    // Short enough to stand beside the line; the table has the full names.
    let label = |label: &str| label.replace("Krippendorff's alpha", "Alpha").replace(", quadratic", "");
    let rows: Vec<Dot> = all.filter_map(|figure| dot(&label(figure.label), &figure.value)).collect();
    html! { @if !rows.is_empty() { (chart::dots("Agreement with 95 % intervals", &rows, -0.2, 1.0, Some(0.0))) } }
}

fn breakdowns(title: &str, column: &str, parts: &[Breakdown]) -> Markup {
    let name = |part: &Breakdown| part.name.clone().unwrap_or_else(|| "none".into());
    let rows: Vec<Dot> = parts.iter().filter_map(|part| dot(&name(part), &part.alpha_ordinal)).collect();
    html! {
        @if !parts.is_empty() {
            section.card {
                h2 { (title) }
                @if !rows.is_empty() { (chart::dots(&format!("Krippendorff's alpha, {}", title.to_lowercase()), &rows, -0.2, 1.0, Some(0.0))) }
                div.scroll tabindex="0" {
                    table {
                        thead { tr {
                            th { (column) } th { "Votes" } th { "Comparisons" } th { "Ties" }
                            th { "Raw agreement " (formula("raw-agreement")) } th { "Alpha, ordinal " (formula("krippendorff-alpha")) }
                        } }
                        tbody { @for part in parts {
                            tr {
                                td { (name(part)) } td.n { (part.votes) } td.n { (part.comparisons) }
                                td.n { (format!("{:.0} %", 100.0 * part.tie_share)) } td { (value(&part.raw)) } td { (value(&part.alpha_ordinal)) }
                            }
                        } }
                    }
                }
            }
        }
    }
}

fn annotator_part(figures: &Figures, names: &HashMap<String, String>) -> Markup {
    let named =
        |report: &AnnotatorReport| names.get(&report.name).cloned().unwrap_or_else(|| report.name.clone());
    let rows: Vec<Dot> = figures
        .report
        .annotators
        .iter()
        .filter_map(|report| {
            let reliability = report.reliability?;
            Some(Dot {
                label: named(report),
                estimate: reliability.reliability,
                interval: report.reliability_interval,
            })
        })
        .collect();
    html! {
        section.card {
            h2 { "Annotators" }
            @if !rows.is_empty() { (chart::dots("Reliability with 95 % intervals", &rows, 0.0, 1.0, None)) }
            @if let Some(why) = &figures.report.no_reliability { p.hint { "No reliability: " (why) } }
            div.scroll tabindex="0" {
                table {
                    thead { tr {
                        th { "Annotator" } th { "Votes" }
                        th { "Reliability " (formula("reliability")) } th { "With the majority " (formula("majority")) }
                        th { "Left of decided " (formula("side-bias")) } th { "Median time " (formula("speed")) } th { "Remarks" }
                    } }
                    tbody { @for report in &figures.report.annotators {
                        tr {
                            td { a href={"/panel/" (page::segment(&report.name))} { (named(report)) } }
                            td.n { (report.votes) }
                            td { (reliability(report)) }
                            td { (value(&report.majority)) }
                            td.n { (report.side_bias.left) " of " (report.side_bias.decided) }
                            td.n { @if let Some(speed) = report.speed { (page::span(speed.median_ms as i64)) } }
                            td { @for remark in remarks(report) { span.remark { (remark) } " " } }
                        }
                    } }
                }
            }
            p.hint { "Remarks are for a talk, not a verdict. A leaning to one side is tested for all annotators together (Benjamini-Hochberg, 5 %)." }
        }
    }
}

fn reliability(report: &AnnotatorReport) -> Markup {
    html! {
        @match (report.reliability, report.reliability_interval) {
            (Some(r), Some((low, high))) => { strong { (format!("{:.3}", r.reliability)) } " " span.interval { (format!("{low:.3} to {high:.3}")) } },
            (Some(r), None) => strong { (format!("{:.3}", r.reliability)) },
            (None, _) => span.hint { "undefined" },
        }
    }
}

/// What stands out about an annotator, at the 5 % level where it is a test.
fn remarks(report: &AnnotatorReport) -> Vec<&'static str> {
    const LEVEL: f64 = 0.05;
    let mut remarks = Vec::new();
    if report.side_bias.decided > 0 && report.side_bias.p_adjusted < LEVEL {
        let left = 2 * report.side_bias.left > report.side_bias.decided;
        remarks.push(if left { "leans to the left" } else { "leans to the right" });
    }
    if report.drift.is_some_and(|drift| drift.p_adjusted < LEVEL) {
        remarks.push("agreement falls over time");
    }
    if report.calibration.is_some_and(|calibration| calibration.p_anytime < LEVEL) {
        remarks.push("below the pass mark on known answers");
    }
    if report.speed.is_some_and(|speed| speed.fast_share > 0.3) {
        remarks.push("often very fast");
    }
    remarks
}

fn ranking(figures: &Figures) -> Markup {
    let Some(ranking) = &figures.report.ranking else { return html! {} };
    let mut rows: Vec<_> = ranking.responses.iter().collect();
    rows.sort_by(|one, other| other.elo.total_cmp(&one.elo));
    let dots: Vec<Dot> = rows
        .iter()
        .map(|row| Dot { label: row.name.clone(), estimate: row.elo, interval: Some(row.elo_interval) })
        .collect();
    let low = dots.iter().filter_map(|dot| dot.interval).map(|i| i.0).fold(f64::INFINITY, f64::min);
    let high = dots.iter().filter_map(|dot| dot.interval).map(|i| i.1).fold(f64::NEG_INFINITY, f64::max);
    html! {
        section.card {
            h2 { "Models " (formula("strengths")) }
            @if let Some(why) = &ranking.undefined { p.hint { "undefined: " (why) } }
            @if high > low && (high - low).is_finite() { (chart::dots("Elo with 95 % intervals", &dots, low, high, None)) }
            ul.plain { @for row in rows { li { (row.name) ": " (format!("{:.0}", row.elo)) " from " (row.votes) " votes" } } }
        }
    }
}

async fn annotator(app: App, call: Call) -> Outcome<Response> {
    let id = call.part("annotator").to_owned();
    let all = app.store().annotators().await?;
    let found = all.into_iter().find(|annotator| annotator.id == id).ok_or(Failure::NotFound)?;
    let figures = figures(&app).await?;
    let number = figures.report.annotators.iter().position(|report| report.name == id);
    let votes = app.store().votes_by(&id, VOTES).await?;
    let standing = app.store().standing(&id).await?;
    let body = html! {
        h1 { (found.name) }
        p { (found.kind.name()) @if standing.answered > 0 { " · known answers this round: " (standing.right) " of " (standing.answered) } }
        @match number {
            None => p { "No votes that count yet." },
            Some(number) => (one(&figures, number, &id)),
        }
        section.card {
            h2 { "Last votes" }
            div.scroll tabindex="0" {
                table {
                    thead { tr { th { "Comparison" } th { "Answer as shown" } th { "Time" } th { "When" } } }
                    tbody { @for vote in &votes {
                        tr {
                            td { a href={"/review/" (vote.comparison_id)} { code { (page::short(&vote.comparison_id)) } } }
                            td { (page::answer(vote.overall, "left", "right")) @if vote.kind == Purpose::Calibration { " (known)" } }
                            td.n { @if let Some(ms) = vote.work_ms { (page::span(ms)) } }
                            td.nowrap { (page::time(vote.recorded_ms)) }
                        }
                    } }
                }
            }
        }
    };
    Ok(page::page(&app, &call, &found.name, body))
}

fn one(figures: &Figures, number: usize, id: &str) -> Markup {
    let report = &figures.report.annotators[number];
    let history = with_majority(&figures.votes.sides(), figures.report.confidence)
        .into_iter()
        .nth(number)
        .map(|majority| in_time(figures, number, &majority.history))
        .unwrap_or_default();
    let running = running(&history);
    let times: Vec<i64> = figures
        .judgements
        .iter()
        .filter(|judgement| judgement.annotator_id == id)
        .filter_map(|judgement| judgement.work_ms)
        .collect();
    let decided = report.side_bias.decided;
    html! {
        @let remarks = remarks(report);
        @if !remarks.is_empty() { p { @for remark in remarks { span.remark { (remark) } " " } } }
        section.card {
            h2 { "Figures" }
            dl.facts {
                div { dt { "Votes that stand " } dd { (report.votes) "; ties: " (report.ties) ", skips and flags: " (report.unanswered) } }
                div { dt { "Reliability " (formula("reliability")) } dd { (reliability(report)) } }
                div { dt { "With the majority of the others " (formula("majority")) } dd { (value(&report.majority)) " on " (report.majority_items) " comparisons" } }
                div { dt { "Same answer when asked again " (formula("self-consistency")) } dd { (report.self_consistency.same) " of " (report.self_consistency.repeats) } }
                div { dt { "Left side " (formula("side-bias")) } dd {
                    (report.side_bias.left) " of " (decided) " decided; p " (format!("{:.3}", report.side_bias.p))
                    ", adjusted " (format!("{:.3}", report.side_bias.p_adjusted))
                } }
                @if let Some(known) = report.calibration {
                    div { dt { "Known answers " (formula("calibration")) } dd {
                        (known.right) " of " (known.seen) "; anytime p of at least " (format!("{:.2}", known.floor)) ": " (format!("{:.3}", known.p_anytime))
                    } }
                }
                @if let Some(drift) = report.drift {
                    div { dt { "Fall over time " (formula("drift")) } dd { "p " (format!("{:.3}", drift.p)) ", adjusted " (format!("{:.3}", drift.p_adjusted)) } }
                }
            }
        }
        section.card {
            h2 { "Side " (formula("side-bias")) }
            @if decided == 0 { p { "No decided votes yet." } }
            @else {
                (chart::dots("Share of decided votes for the left", &[Dot {
                    label: "left".into(), estimate: report.side_bias.left as f64 / decided as f64,
                    interval: Some(wilson(report.side_bias.left, decided)),
                }], 0.0, 1.0, Some(0.5)))
            }
        }
        section.card {
            h2 { "Time on task " (formula("speed")) }
            @if times.is_empty() { p { "Not measured." } } @else { (chart::columns("Votes by time on task", "seconds, up to", speed_bars(&times))) }
        }
        section.card {
            h2 { "Over time " (formula("drift")) }
            @if running.len() < 2 { p { "It takes " (WINDOW + 1) " comparisons on which the others have a majority; so far there are " (history.len()) "." } }
            @else {
                (chart::line("Share with the majority", "comparisons", &running))
                p.hint { "Share with the majority of the others among the last " (WINDOW) " such comparisons." }
            }
        }
    }
}

/// Wilson's 95 % interval of a share.
fn wilson(k: usize, n: usize) -> (f64, f64) {
    let estimate = polity_stats::wilson(k, n, 0.95);
    estimate.map_or((0.0, 1.0), |estimate| (estimate.low, estimate.high))
}

/// Whether the annotator was with the majority, in the order of the votes rather than of the comparisons.
fn in_time(figures: &Figures, number: usize, history: &[(usize, bool)]) -> Vec<bool> {
    let with: HashMap<usize, bool> = history.iter().copied().collect();
    let own = figures.votes.standing().into_iter().map(|i| figures.votes.votes[i]);
    own.filter(|vote| vote.annotator as usize == number)
        .filter_map(|vote| with.get(&(vote.comparison as usize)).copied())
        .collect()
}

/// The share among the last [`WINDOW`], at each place that has as many.
fn running(history: &[bool]) -> Vec<(usize, f64)> {
    let share = |window: &[bool]| window.iter().filter(|with| **with).count() as f64 / WINDOW as f64;
    history.windows(WINDOW).enumerate().map(|(n, window)| (n + WINDOW, share(window))).collect()
}

fn speed_bars(times_ms: &[i64]) -> Vec<(String, usize)> {
    let mut bars: BTreeMap<usize, usize> = BTreeMap::new();
    for ms in times_ms {
        let at = SPEED_EDGES_S.iter().position(|edge_s| *ms < edge_s * 1000).unwrap_or(SPEED_EDGES_S.len());
        *bars.entry(at).or_default() += 1;
    }
    let label = |at: usize| SPEED_EDGES_S.get(at).map_or("more".to_owned(), ToString::to_string);
    (0..=SPEED_EDGES_S.len()).map(|at| (label(at), bars.get(&at).copied().unwrap_or(0))).collect()
}

async fn panel_api(app: App, _call: Call) -> Outcome<Response> {
    Ok(json_response(&json!({"report": figures(&app).await?.report})))
}

async fn judgements_api(app: App, call: Call) -> Outcome<Response> {
    let text = |name: &str| call.get(name).map(|_| call.text(name).to_owned());
    let filter = JudgementFilter {
        kind: None,
        machine: call.get("machine").map(|_| call.yes("machine")),
        annotator_id: text("annotator"),
        category: text("category"),
        rubric_version: call.int("rubric"),
    };
    Ok(json_response(&json!({"judgements": app.store().judgements(filter).await?})))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every "formula" link of these pages leads to a heading.
    #[test]
    fn formulas_have_their_anchors() {
        let source = include_str!("panel.rs");
        let used = source.split("formula(\"").skip(1).filter_map(|rest| rest.split('"').next());
        let mut n = 0;
        for anchor in used.filter(|anchor| !anchor.is_empty() && !anchor.contains(')')) {
            assert!(crate::assets::has_anchor(anchor), "docs/agreement.md has no heading #{anchor}");
            n += 1;
        }
        assert!(n > 10);
        let report = polity_stats::panel::panel_report(
            &Default::default(),
            &polity_stats::panel::PanelSettings::usual(0),
        );
        for figure in &report.figures {
            assert!(
                crate::assets::has_anchor(figure.anchor),
                "docs/agreement.md has no heading #{}",
                figure.anchor
            );
        }
    }

    #[test]
    fn the_running_share_and_the_bars() {
        let history: Vec<bool> = (0..WINDOW + 2).map(|n| n >= 2).collect();
        assert_eq!(running(&history), [(20, 0.9), (21, 0.95), (22, 1.0)]);
        let bars = speed_bars(&[1000, 1999, 2000, 999_000]);
        assert_eq!((bars[0].1, bars[1].1, bars[8].1), (2, 1, 1));
    }
}
