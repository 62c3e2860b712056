//! `/verdicts`: what the gate said, criterion by criterion, with what was needed drawn beside what was found.

use axum::response::Response;
use maud::{Markup, html};
use polity_chart::{Bar, BarChart, BarGroup, Form, short};
use polity_store::{Recorded, Verdict};
use serde_json::{Value, json};

use super::{Models, Names, cut, model, pill};
use crate::app::App;
use crate::chart;
use crate::error::{Failure, Outcome};
use crate::field::{Kind, needed};
use crate::page;
use crate::project::WATCHERS;
use crate::route::{Call, Route, json_response, route};

pub(crate) const ROUTES: &[Route] = &[
    route!(GET "/verdicts" WATCHERS, "The gate's verdicts, newest first.", [], [], verdicts_page),
    route!(GET "/verdicts/{id}" WATCHERS, "A verdict, criterion by criterion.", [], [], verdict_page),
    route!(GET "/api/v1/verdicts" WATCHERS, "The gate's verdicts, oldest first.", [],
        [needed("verdicts", Kind::Objects, "`id`, `seq`, `at_ms`, `actor`, `model`, `verdict`, `policy_name`, `policy`, `approvals`, `expires_ms`, `evaluations`, `said`, `code_version`.")], verdicts_api),
    route!(GET "/api/v1/verdicts/{id}" WATCHERS, "A verdict with all of what the gate said.", [],
        [
            needed("verdict", Kind::Object, "As in the list of verdicts."),
            needed("said", Kind::Object, "The gate's answer, as `polity gate --json` has it."),
        ], verdict_api),
];

async fn verdicts_page(app: App, call: Call) -> Outcome<Response> {
    let mut all = app.store().verdicts().await?;
    all.reverse();
    let (models, names) = (Models::read(&app).await?, Names::read(&app).await?);
    let body = html! {
        h1 { "Verdicts" }
        @if all.is_empty() {
            section.card {
                p { "The gate has not judged yet. In the project's directory," }
                pre.scroll tabindex="0" { "polity gate runs/ppo/model --policy policy.toml --measures measures/ --baseline runs/sft/model" }
                p { "judges a model on files of measures, and puts the verdict into the ledger." }
            }
        } @else {
            section.card.scroll tabindex="0" {
                table.stack {
                    thead { tr { th { "Verdict" } th { "On" } th { "Model" } th { "Policy" } th { "Counts until" } th { "By" } } }
                    tbody { @for verdict in &all {
                        tr {
                            td { a href={"/verdicts/" (page::segment(&verdict.id))} { (decision(&verdict.what.verdict)) } }
                            td.nowrap { (page::time(verdict.at_ms)) }
                            td { (model(&models, &verdict.what.model)) }
                            td { (verdict.what.policy_name) }
                            td.nowrap { (until(verdict, call.now_ms)) }
                            td { (names.of(&verdict.actor)) }
                        }
                    } }
                }
            }
        }
    };
    Ok(page::page(&app, &call, "Verdicts", body))
}

pub(crate) fn decision(word: &str) -> Markup {
    let kind = match word {
        "pass" => "good",
        "fail" => "bad",
        _ => "quiet",
    };
    pill(kind, &cut(word, 20))
}

fn until(verdict: &Recorded<Verdict>, now_ms: i64) -> Markup {
    let at_ms = verdict.what.expires_ms;
    html! { @if at_ms <= now_ms { span.remark { "expired " (page::time(at_ms)) } } @else { (page::time(at_ms)) } }
}

async fn one(app: &App, id: &str) -> Outcome<Recorded<Verdict>> {
    app.store().verdicts().await?.into_iter().find(|verdict| verdict.id == id).ok_or(Failure::NotFound)
}

async fn verdict_page(app: App, call: Call) -> Outcome<Response> {
    let verdict = one(&app, call.part("id")).await?;
    let (models, names) = (Models::read(&app).await?, Names::read(&app).await?);
    let said = app.store().document(&verdict.what.said).await;
    let said = said.map_err(|error| error.to_string()).and_then(|text| {
        serde_json::from_str::<Value>(&text).map_err(|_| "what the gate said is not JSON".to_owned())
    });
    let body = html! {
        h1 { "Verdict " (decision(&verdict.what.verdict)) }
        section.card {
            dl.facts.pairs {
                div { dt { "Model" } dd { (model(&models, &verdict.what.model)) ": " a href={"/evaluations?model=" (page::segment(&verdict.what.model))} { "its evaluations" } } }
                @if let Ok(said) = &said { @for (what, key) in [("Baseline", "baseline"), ("Released last", "last_release")] {
                    @if let Some(hash) = said[key].as_str() { div { dt { (what) } dd { (model(&models, hash)) } } }
                } }
                div { dt { "Policy" } dd { (verdict.what.policy_name) " (" code title=(verdict.what.policy) { (page::short(&verdict.what.policy)) } ")" } }
                div { dt { "Judged" } dd { (page::time(verdict.at_ms)) ", by " (names.of(&verdict.actor)) ", ledger event " (verdict.seq) } }
                div { dt { "Counts until" } dd { (until(&verdict, call.now_ms)) } }
                div { dt { "Approvals that a release on it needs" } dd { (verdict.what.approvals) } }
            }
        }
        @match &said {
            Err(why) => p.wrong { "The criteria cannot be shown: " (why) "." },
            Ok(said) => (criteria(said)),
        }
    };
    Ok(page::page(&app, &call, "Verdict", body))
}

fn criteria(said: &Value) -> Markup {
    let all: Vec<&Value> =
        said["criteria"].as_array().map(|list| list.iter().take(200).collect()).unwrap_or_default();
    let blocking = |wanted: bool| {
        all.iter().filter(move |criterion| criterion["blocking"].as_bool().unwrap_or(true) == wanted)
    };
    html! {
        @for (title, wanted) in [("Needed for a release", true), ("For information", false)] {
            @if blocking(wanted).next().is_some() {
                h2 { (title) }
                @for criterion in blocking(wanted) { (criterion_card(criterion)) }
            }
        }
        p.hint { "A dot is the estimate and its whiskers the one-sided bounds, turned so that more is better. A pass needs the lower bound at the dashed line or right of it; a fail has the upper one left of it." }
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn criterion_card(criterion: &Value) -> Markup {
    let (measure, effect) = (&criterion["measure"], &criterion["effect"]);
    let figure = |value: &Value| value.as_f64().map_or("unbounded".to_owned(), short);
    let against = match text(&criterion["comparator"]) {
        "baseline" => "the baseline",
        "last_release" => "what was released last",
        _ => "the limit",
    };
    html! {
        section.card {
            h3 { (decision(text(&criterion["verdict"]))) " " (cut(text(&criterion["id"]), 100)) }
            p { (cut(text(&criterion["reason"]), 1000)) "." }
            div.columns {
                @if let Some(chart) = effect_chart(criterion, against) { (chart::bars(&chart)) }
                dl.facts.pairs {
                    @if measure.is_object() {
                        div { dt { "Measured: " (named(measure)) } dd {
                            (figure(&measure["estimate"])) " [" (figure(&measure["low"])) ", " (figure(&measure["high"])) "] " (text(&measure["unit"]))
                            ", " (measure["n"]) " values"
                        } }
                    }
                    @if let Some(reference) = criterion["reference"].as_f64() { div { dt { "Compared with " (against) } dd { (short(reference)) } } }
                    @if let Some(margin) = criterion["margin"].as_f64() { div { dt { "Margin" } dd { (short(margin)) } } }
                    @if let Some(confidence) = criterion["confidence"].as_f64() {
                        div { dt { "Confidence of each decision" } dd { (format!("{:.1}\u{a0}%", 100.0 * confidence)) @if text(&criterion["mode"]) == "anytime" { ", at every look" } } }
                    }
                    @if effect.is_object() {
                        div { dt { "Prompts" } dd { (effect["prompts"]) } }
                        div { dt { "Smallest effect that these would have shown" } dd { (figure(&effect["detectable"])) } }
                        @if let Some(prompts) = effect["prompts_to_settle"].as_u64() { div { dt { "Would settle it, if the estimate is right" } dd { (prompts) " prompts" } } }
                    }
                }
            }
        }
    }
}

fn named(measure: &Value) -> String {
    match measure["category"].as_str() {
        Some(category) => format!("{} ({category})", text(&measure["name"])),
        None => text(&measure["name"]).to_owned(),
    }
}

/// How much better, and the least that a pass needs.
fn effect_chart(criterion: &Value, against: &str) -> Option<BarChart> {
    let effect = &criterion["effect"];
    let value = effect["estimate"].as_f64()?;
    let margin = criterion["margin"].as_f64().unwrap_or(0.0);
    // A side without a bound reaches to the axis's end, which the line and the estimate span.
    let interval = effect["low"].as_f64().zip(effect["high"].as_f64());
    Some(BarChart {
        title: format!("Better than {against} by"),
        unit: text(&criterion["measure"]["unit"]).to_owned(),
        categories: vec![cut(text(&criterion["measure"]["name"]), 60).replace('_', " ")],
        groups: vec![BarGroup {
            name: "candidate".into(),
            bars: vec![Some(Bar { value, interval })],
            colour: 0,
        }],
        reference: Some(-margin + 0.0),
        form: Form::Dots { axis: Some((-margin, 0.0)) },
    })
}

async fn verdicts_api(app: App, _call: Call) -> Outcome<Response> {
    Ok(json_response(&json!({"verdicts": app.store().verdicts().await?})))
}

async fn verdict_api(app: App, call: Call) -> Outcome<Response> {
    let verdict = one(&app, call.part("id")).await?;
    let said = app.store().document(&verdict.what.said).await?;
    let said: Value = serde_json::from_str(&said)
        .map_err(|error| Failure::Internal(format!("verdict {}: {error}", verdict.id)))?;
    Ok(json_response(&json!({"verdict": verdict, "said": said})))
}
