//! Review: what annotators disagree on or flagged, and what a reviewer decides.
//!
//! A reviewer decides as blind as an annotator: models are named only once there is a decision. "A" is the response that the store calls `a`, on the left.
//!
//! A comparison whose response names its model is held back when it is added (`polity_store::identity`); here a reviewer sees why, and lets it go on or not.

use std::collections::BTreeMap;

use axum::response::Response;
use maud::{Markup, html};
use polity_store::{
    Adjudication, Answer, CalibrationItem, Comparison, ComparisonTexts, ReviewItem, Role, VoteRecord,
    identity_leak,
};
use serde_json::json;

use crate::app::App;
use crate::error::Outcome;
use crate::field::{Field, Kind, may, needed};
use crate::page;
use crate::route::{Access, Call, Route, json_response, route};
use crate::text;

/// Who sees votes.
pub(crate) const REVIEWERS: Access = Access::Roles(&[Role::Reviewer]);

/// Answers that decide something.
pub(crate) const DECISIONS: &[&str] =
    &["left3", "left2", "left1", "tie", "right1", "right2", "right3", "both_bad"];

const STATES: &[&str] = &["fresh", "open", "full", "held", "closed", "gold"];

/// Rows of a list.
const ROWS: i64 = 50;

const DECISION: &[Field] = &[
    needed("answer", Kind::OneOf(DECISIONS), "The decision; left is response a."),
    may("reason", Kind::Long, "Why."),
];

pub(crate) const ROUTES: &[Route] = &[
    route!(GET "/review" REVIEWERS, "What there is to decide.", [], [], queue),
    route!(GET "/review/all" REVIEWERS, "All comparisons.",
        [
            may("state", Kind::OneOf(STATES), "Only these."),
            may("after", Kind::Text, "The last name of the page before."),
        ], [], all),
    route!(GET "/review/{comparison}" REVIEWERS, "A comparison with its votes and decisions.", [], [], one),
    route!(POST "/review/{comparison}" REVIEWERS, "Decides a comparison.", *DECISION, [], decide_page),
    route!(POST "/review/{comparison}/queue" REVIEWERS, "Closes a comparison to annotators, or queues it (again).",
        [needed("queued", Kind::OneOf(&["yes", "no"]), "Whether it is handed out.")], [], queue_page),
    route!(GET "/api/v1/review" REVIEWERS, "Flagged comparisons, then those with the most disagreement.",
        [may("limit", Kind::Int, "Rows, 50 if not given, 1000 at most.")],
        [needed("items", Kind::Objects, "`comparison_id`, `category`, `a_votes`, `b_votes`, `ties`, `flags`, `disagreement`.")], queue_api),
    route!(GET "/api/v1/comparisons" REVIEWERS, "Comparisons by name.",
        [
            may("state", Kind::OneOf(STATES), "Only these."),
            may("after", Kind::Text, "The last name of the page before."),
            may("limit", Kind::Int, "Rows, 50 if not given, 1000 at most."),
        ],
        [needed("comparisons", Kind::Objects, "`id`, `prompt_id`, `response_a`, `response_b`, `category`, `wanted`, `served`, `state`, `score`.")], all_api),
    route!(GET "/api/v1/comparisons/{comparison}" REVIEWERS, "A comparison with its texts, votes and decisions.", [],
        [
            needed("texts", Kind::Object, "`comparison`, `prompt`, `a`, `b`."),
            needed("votes", Kind::Objects, "All votes, superseded ones too."),
            needed("adjudications", Kind::Objects, "All decisions, oldest first."),
        ], one_api),
    route!(POST "/api/v1/comparisons/{comparison}/adjudication" REVIEWERS, "Decides a comparison.", *DECISION,
        [needed("adjudication", Kind::Object, "The decision.")], decide_api),
    route!(POST "/api/v1/comparisons/{comparison}/queue" REVIEWERS, "Closes a comparison to annotators, or queues it (again).",
        [needed("queued", Kind::OneOf(&["yes", "no"]), "Whether it is handed out.")],
        [needed("comparison", Kind::Text, "Its name.")], queue_one_api),
];

async fn queue(app: App, call: Call) -> Outcome<Response> {
    let items = app.store().review_queue(ROWS).await?;
    let held = app.store().comparisons(Some("held"), "", ROWS).await?;
    let body = html! {
        div.spread { h1 { "Review" } a.button href="/review/all" { "All comparisons" } }
        section.card {
            h2 { "Disagreement and flags" }
            @if items.is_empty() { p { "Nothing to decide: no comparison has flags, or votes on different sides, since it was last decided." } }
            @else { (queue_table(&items)) }
        }
        section.card {
            h2 { "Held back" }
            p.hint { "Not shown to annotators: flagged by several, or a response seems to name the model that wrote it." }
            @if held.is_empty() { p { "None." } } @else { (comparison_table(&held)) }
        }
    };
    Ok(page::page(&app, &call, "Review", body))
}

fn queue_table(items: &[ReviewItem]) -> Markup {
    html! {
        div.scroll tabindex="0" {
            table {
                thead { tr { th { "Comparison" } th { "Category" } th { "A" } th { "Tie" } th { "B" } th { "Flags" } th { "Disagreement" } } }
                tbody {
                    @for item in items {
                        tr {
                            td { a href={"/review/" (item.comparison_id)} { code { (page::short(&item.comparison_id)) } } }
                            td { (item.category) }
                            td.n { (item.a_votes) } td.n { (item.ties) } td.n { (item.b_votes) } td.n { (item.flags) }
                            td.n { (format!("{:.0} %", 100.0 * item.disagreement)) }
                        }
                    }
                }
            }
        }
        p.hint { "Disagreement: the share of the votes that the most frequent answer did not get." }
    }
}

fn comparison_table(comparisons: &[Comparison]) -> Markup {
    html! {
        div.scroll tabindex="0" {
            table {
                thead { tr { th { "Comparison" } th { "Category" } th { "State" } th { "Judgements" } } }
                tbody {
                    @for comparison in comparisons {
                        tr {
                            td { a href={"/review/" (comparison.id)} { code { (page::short(&comparison.id)) } } }
                            td { (comparison.category) }
                            td { (comparison.state) }
                            td.n { (comparison.served) " of " (comparison.wanted) }
                        }
                    }
                }
            }
        }
    }
}

async fn all(app: App, call: Call) -> Outcome<Response> {
    let state = call.get("state").map(|_| call.text("state"));
    let found = app.store().comparisons(state, call.text("after"), ROWS).await?;
    let more = (found.len() as i64 == ROWS).then(|| found.last().map(|last| last.id.clone())).flatten();
    let body = html! {
        h1 { "Comparisons" }
        form.row method="get" action="/review/all" {
            label { span { "State" }
                select name="state" {
                    option value="" { "all" }
                    @for name in STATES { option value=(name) selected[state == Some(*name)] { (name) } }
                }
            }
            button type="submit" { "Show" }
        }
        section.card {
            @if found.is_empty() { p { "None." } } @else { (comparison_table(&found)) }
            @if let Some(last) = more {
                p { a.button href={"/review/all?state=" (state.unwrap_or("")) "&after=" (last)} { "More" } }
            }
        }
    };
    Ok(page::page(&app, &call, "Comparisons", body))
}

async fn one(app: App, call: Call) -> Outcome<Response> {
    let id = call.part("comparison");
    let texts = app.store().comparison(id).await?;
    let votes = app.store().votes_on(id).await?;
    let decisions = app.store().adjudications(id).await?;
    let known = app.store().calibration_items().await?.into_iter().find(|item| item.comparison_id == id);
    let annotators = app.store().annotators().await?;
    let names: BTreeMap<&str, &str> =
        annotators.iter().map(|annotator| (annotator.id.as_str(), annotator.name.as_str())).collect();
    let decided = !decisions.is_empty();
    let comparison = &texts.comparison;
    let queued = matches!(comparison.state.as_str(), "fresh" | "open" | "full");
    let body = html! {
        h1 { "Comparison " code { (page::short(id)) } }
        p {
            (comparison.category) " · " (comparison.state) " · " (comparison.served) " of " (comparison.wanted) " judgements"
        }
        (leaks(&texts))
        section aria-label="Prompt" { h2.part { "Prompt" } (text::chat(&texts.prompt.content)) }
        div.pair {
            section.candidate.a {
                h2 { "Response A" @if decided { " · " (texts.a.model) } } (text::response(&texts.a.content))
            }
            section.candidate.b {
                h2 { "Response B" @if decided { " · " (texts.b.model) } } (text::response(&texts.b.content))
            }
        }
        @if !decided { p.hint { "Which models wrote them is shown once there is a decision." } }
        section.card { h2 { "Votes" } (vote_table(&texts, &votes, &names)) }
        section.card { h2 { "Decision" } (decision_part(&call, id, &decisions, &names)) }
        div.columns {
            section.card { h2 { "Known answer" } (known_part(&call, id, known.as_ref())) }
            section.card {
                h2 { "Queue" }
                @if comparison.state == "gold" { p { "It has a known answer and is handed out for calibration only." } }
                @else {
                    p { @if queued { "Annotators are shown it until it has its judgements." } @else { "Annotators are not shown it." } }
                    (page::form(&call, &format!("/review/{id}/queue"), html! {
                        @if queued { button type="submit" name="queued" value="no" { "Close it" } }
                        @else { button type="submit" name="queued" value="yes" { "Queue it" } }
                    }))
                }
            }
        }
    };
    Ok(page::page(&app, &call, "Comparison", body))
}

/// Why a response would not be blind.
fn leaks(texts: &ComparisonTexts) -> Markup {
    let prompt = &texts.prompt.content;
    html! {
        @for (name, response) in [("A", &texts.a), ("B", &texts.b)] {
            @if let Some(word) = identity_leak(prompt, &response.content, &response.model) {
                p.wrong role="note" { "Response " (name) " may name its model: it says “" (word) "”, and the prompt does not." }
            }
        }
    }
}

fn vote_table(texts: &ComparisonTexts, votes: &[VoteRecord], names: &BTreeMap<&str, &str>) -> Markup {
    let replaced: Vec<i64> = votes.iter().filter_map(|vote| vote.supersedes).collect();
    html! {
        @if votes.is_empty() { p { "None yet." } } @else {
            div.scroll tabindex="0" {
                table {
                    thead { tr { th { "Annotator" } th { "Answer" } th { "Shown" } th { "Axes" } th { "Why" } th { "Rubric" } th { "Time" } th { "When" } } }
                    tbody {
                        @for vote in votes {
                            @let b_left = vote.left_response == texts.b.id;
                            @let turned = |answer: Answer| if b_left { answer.swapped() } else { answer };
                            tr.gone[replaced.contains(&vote.seq)] {
                                td { a href={"/panel/" (page::segment(&vote.annotator_id))} { (names.get(vote.annotator_id.as_str()).unwrap_or(&"?")) } @if vote.machine { " (machine)" } }
                                td { (page::answer(turned(vote.overall), "A", "B")) }
                                td { @if b_left { "B A" } @else if vote.left_response.is_empty() { "?" } @else { "A B" } }
                                td { @for (key, answer) in &vote.axes { span.nowrap { (key) ": " (page::answer(turned(*answer), "A", "B")) } br; } }
                                td.text { (vote.reason) }
                                td.n { (vote.rubric_version) }
                                td.n { @if let Some(ms) = vote.work_ms { (page::span(ms)) } }
                                td.nowrap { (page::time(vote.recorded_ms)) }
                            }
                        }
                    }
                }
            }
            p.hint { "Struck out: replaced by a later vote of the same annotator. Answers are turned to A and B; “Shown” is the order on the page." }
        }
    }
}

fn decision_part(call: &Call, id: &str, decisions: &[Adjudication], names: &BTreeMap<&str, &str>) -> Markup {
    html! {
        @if !decisions.is_empty() {
            ol.plain {
                @for (n, decision) in decisions.iter().enumerate() {
                    li.gone[n + 1 < decisions.len()] {
                        strong { (page::answer(decision.answer, "A", "B")) } ", by "
                        (names.get(decision.reviewer.as_str()).unwrap_or(&decision.reviewer.as_str())) ", " (page::time(decision.at_ms))
                        @if !decision.reason.is_empty() { ": " (decision.reason) }
                    }
                }
            }
        }
        (page::form(call, &format!("/review/{id}"), html! {
            (answer_select("answer", "Decision", decisions.last().map(|decision| decision.answer)))
            (page::area("reason", "Why", "", 2))
            button.primary type="submit" { @if decisions.is_empty() { "Decide" } @else { "Decide anew" } }
        }))
        p.hint { "A decision overrides the votes in every dataset frozen from then on. Earlier ones stay in the record." }
    }
}

fn answer_select(name: &str, label: &str, chosen: Option<Answer>) -> Markup {
    html! {
        label { span { (label) }
            select name=(name) required {
                option value="" { "choose" }
                @for value in DECISIONS {
                    @let answer: Answer = value.parse().expect("the list holds answers");
                    option value=(value) selected[chosen == Some(answer)] { (page::answer(answer, "A", "B")) }
                }
            }
        }
    }
}

fn known_part(call: &Call, id: &str, known: Option<&CalibrationItem>) -> Markup {
    page::form(
        call,
        "/calibration",
        html! {
            input type="hidden" name="comparison" value=(id);
            (answer_select("expected", "Expected", known.map(|item| item.expected)))
            (page::area("explanation", "Why, shown afterwards (markdown)", known.map_or("", |item| &item.explanation), 3))
            @if known.is_some() {
                label.tick { input type="checkbox" name="retired" checked[known.is_some_and(|item| !item.active)]; span { "Retired" } }
            }
            button type="submit" { @if known.is_some() { "Change what is known" } @else { "Make it a known one" } }
            @if known.is_none() { p.hint { "It leaves the queue, and is handed out for calibration." } }
        },
    )
}

async fn decide(app: &App, call: &Call) -> Outcome<Adjudication> {
    let answer: Answer = call.text("answer").parse()?;
    let (id, reason) = (call.part("comparison"), call.text("reason").trim());
    Ok(app.store().adjudicate(id, answer, reason, call.id(), call.now_ms).await?)
}

async fn decide_page(app: App, call: Call) -> Outcome<Response> {
    decide(&app, &call).await?;
    Ok(page::redirect(&format!("/review/{}", call.part("comparison"))))
}

async fn set_queued(app: &App, call: &Call) -> Outcome<()> {
    let (id, queued) = (call.part("comparison"), call.text("queued") == "yes");
    Ok(app.store().set_queued(id, queued, call.id(), call.now_ms).await?)
}

async fn queue_page(app: App, call: Call) -> Outcome<Response> {
    set_queued(&app, &call).await?;
    Ok(page::redirect(&format!("/review/{}", call.part("comparison"))))
}

fn limit(call: &Call) -> i64 {
    call.int("limit").unwrap_or(ROWS).clamp(1, 1000)
}

async fn queue_api(app: App, call: Call) -> Outcome<Response> {
    Ok(json_response(&json!({"items": app.store().review_queue(limit(&call)).await?})))
}

async fn all_api(app: App, call: Call) -> Outcome<Response> {
    let state = call.get("state").map(|_| call.text("state"));
    let found = app.store().comparisons(state, call.text("after"), limit(&call)).await?;
    Ok(json_response(&json!({"comparisons": found})))
}

async fn one_api(app: App, call: Call) -> Outcome<Response> {
    let id = call.part("comparison");
    let texts = app.store().comparison(id).await?;
    let votes = app.store().votes_on(id).await?;
    let adjudications = app.store().adjudications(id).await?;
    Ok(json_response(&json!({"texts": texts, "votes": votes, "adjudications": adjudications})))
}

async fn decide_api(app: App, call: Call) -> Outcome<Response> {
    Ok(json_response(&json!({"adjudication": decide(&app, &call).await?})))
}

async fn queue_one_api(app: App, call: Call) -> Outcome<Response> {
    set_queued(&app, &call).await?;
    Ok(json_response(&json!({"comparison": call.part("comparison")})))
}
