//! Known answers: which comparisons have one, and how annotators do on them.

use std::collections::BTreeMap;

use axum::response::Response;
use maud::html;
use polity_store::{CalibrationAnswer, CalibrationItem};
use serde_json::json;

use crate::app::App;
use crate::error::{Failure, Outcome};
use crate::field::{Field, Kind, may, needed};
use crate::page;
use crate::review::{DECISIONS, REVIEWERS};
use crate::route::{Access, Call, Route, json_response, route};

/// Who says what is known.
const AUTHORS: Access = REVIEWERS;

const ITEM: &[Field] = &[
    needed("comparison", Kind::Text, "The comparison's name."),
    needed("expected", Kind::OneOf(DECISIONS), "The known answer; left is response a."),
    may("explanation", Kind::Long, "Shown after the answer, as markdown."),
    may("retired", Kind::Yes, "Whether it is handed out no more."),
];

pub(crate) const ROUTES: &[Route] = &[
    route!(GET "/calibration" REVIEWERS, "Comparisons with a known answer.", [], [], list_page),
    route!(POST "/calibration" AUTHORS, "Makes a comparison a known one, or changes what is known.", *ITEM, [], set_page),
    route!(GET "/api/v1/calibration" REVIEWERS, "Comparisons with a known answer, and the answers that were given.", [],
        [
            needed("items", Kind::Objects, "`comparison_id`, `expected`, `explanation`, `active`."),
            needed("answers", Kind::Objects, "`seq`, `annotator_id`, `comparison_id`, `answered_ms`, `right`."),
        ], list_api),
    route!(POST "/api/v1/calibration" AUTHORS, "Makes a comparison a known one, or changes what is known.", *ITEM,
        [needed("comparison", Kind::Text, "Its name.")], set_api),
];

async fn list_page(app: App, call: Call) -> Outcome<Response> {
    let items = app.store().calibration_items().await?;
    let answers = app.store().calibration_answers(None).await?;
    let policy = app.store().project().await?.policy;
    let mut tally: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for CalibrationAnswer { comparison_id, right, .. } in &answers {
        let (yes, all) = tally.entry(comparison_id).or_default();
        *yes += usize::from(*right);
        *all += 1;
    }
    let active = items.iter().filter(|item| item.active).count();
    let body = html! {
        h1 { "Known answers" }
        p {
            "Annotators answer " strong { (policy.calibration_first) } " of them before any work, and "
            strong { (format!("{:.0} %", 100.0 * policy.calibration_pass)) } " must be as expected; later "
            strong { (format!("{:.0} %", 100.0 * policy.calibration_share)) } " of comparisons are known ones, unannounced. "
            "They are told what was expected after each."
        }
        @if (active as i64) < policy.calibration_first {
            p.wrong role="alert" {
                "There are " (active) " and " (policy.calibration_first) " are asked for: annotators are let through after the last one."
            }
        }
        @if items.is_empty() {
            p { "There are none yet. Open a comparison under " a href="/review/all" { "Review" } " and write down its answer." }
        } @else {
            section.card.scroll tabindex="0" {
                table {
                    thead { tr { th { "Comparison" } th { "Expected" } th { "As expected" } th { "State" } } }
                    tbody {
                        @for item in &items {
                            @let (right, all) = tally.get(item.comparison_id.as_str()).copied().unwrap_or_default();
                            tr {
                                td { a href={"/review/" (item.comparison_id)} { code { (page::short(&item.comparison_id)) } } }
                                td { (page::answer(item.expected, "A", "B")) }
                                td { (right) " of " (all) }
                                td { @if item.active { "in use" } @else { "retired" } }
                            }
                        }
                    }
                }
            }
            p.hint { "A known answer that few people give is more often a mistake in the answer than in the people." }
        }
    };
    Ok(page::page(&app, &call, "Known answers", body))
}

async fn set(app: &App, call: &Call) -> Outcome<()> {
    let item = CalibrationItem {
        comparison_id: call.text("comparison").to_owned(),
        expected: call.text("expected").parse().map_err(Failure::from)?,
        explanation: call.text("explanation").trim().to_owned(),
        active: !call.yes("retired"),
    };
    Ok(app.store().set_calibration(item, call.id(), call.now_ms).await?)
}

async fn set_page(app: App, call: Call) -> Outcome<Response> {
    set(&app, &call).await?;
    Ok(page::redirect("/calibration"))
}

async fn list_api(app: App, _call: Call) -> Outcome<Response> {
    let items = app.store().calibration_items().await?;
    let answers = app.store().calibration_answers(None).await?;
    Ok(json_response(&json!({"items": items, "answers": answers})))
}

async fn set_api(app: App, call: Call) -> Outcome<Response> {
    set(&app, &call).await?;
    Ok(json_response(&json!({"comparison": call.text("comparison")})))
}
