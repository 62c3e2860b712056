//! The project as a whole: how far it is, its policy, its datasets, its ledger.

use axum::response::Response;
use maud::{Markup, html};
use polity_store::{Dataset, Freeze, LabelRule, LeftOut, Policy, Progress, Role};
use serde_json::{Value, json};

use crate::app::App;
use crate::error::{Failure, Outcome};
use crate::export;
use crate::field::{Field, Kind, may, needed};
use crate::page;
use crate::route::{Access, Call, Route, json_response, route};

/// Who sees how the project goes.
pub(crate) const WATCHERS: Access = Access::Roles(&[Role::Reviewer, Role::Approver]);
pub(crate) const ADMINS: Access = Access::Roles(&[]);

/// Rows of a page.
const ROWS: i64 = 100;

const POLICY: &[Field] = &[
    needed("overlap", Kind::Int, "Judgements wanted for each new comparison."),
    needed("lease_ms", Kind::Int, "How long a comparison is reserved for who was shown it, in milliseconds."),
    needed(
        "random_share",
        Kind::Number,
        "Share of comparisons always chosen at random, when scores are set.",
    ),
    needed("score_pool", Kind::Int, "Otherwise one of this many with the highest scores."),
    needed("calibration_first", Kind::Int, "Known answers before any work; 0 for none."),
    needed("calibration_pass", Kind::Number, "Share of them that must be as expected."),
    needed("calibration_share", Kind::Number, "Chance of a known one later on."),
    needed(
        "repeat_share",
        Kind::Number,
        "Chance of one that the annotator has answered before, sides swapped.",
    ),
    needed("repeat_gap", Kind::Int, "Votes of the annotator between a comparison and its repeat."),
    needed("flags_hold", Kind::Int, "A comparison flagged by this many is held back."),
    needed(
        "holdout_looks",
        Kind::Int,
        "How often the holdout's votes may be looked at (polity eval --people).",
    ),
];

const FREEZE: &[Field] = &[
    needed("name", Kind::Text, "The dataset's name."),
    needed(
        "labels",
        Kind::OneOf(&["majority", "soft", "model"]),
        "Hard labels by majority, or soft labels by vote share or by the reliability model.",
    ),
    may("machine_votes", Kind::Yes, "Whether machines' votes count too."),
    may("votes_min", Kind::Int, "Fewest judgements of a comparison, 1 if not given."),
];

pub(crate) const ROUTES: &[Route] = &[
    route!(GET "/overview" WATCHERS, "How far the project is.", [], [], overview),
    route!(GET "/settings" ADMINS, "How annotation goes.", [], [], settings),
    route!(POST "/settings" ADMINS, "Changes how annotation goes.", *POLICY, [], set_policy_page),
    route!(GET "/datasets" WATCHERS, "Frozen datasets.", [], [], datasets),
    route!(POST "/datasets" ADMINS, "Freezes a dataset.", *FREEZE, [], freeze_page),
    route!(GET "/ledger" WATCHERS, "Events, newest first.",
        [may("before", Kind::Int, "Only events with a smaller number.")], [], ledger),
    route!(GET "/api/v1/project" Access::SignedIn, "The project and its policy.", [],
        [
            needed("name", Kind::Text, "Its name."),
            needed("created_ms", Kind::Int, "When it was made."),
            needed("validation_share", Kind::Number, "Share of prompts for validation."),
            needed("holdout_share", Kind::Number, "Share of prompts held out."),
            needed("policy", Kind::Object, "How annotation goes."),
        ], project_api),
    route!(POST "/api/v1/policy" ADMINS, "Changes how annotation goes.", *POLICY,
        [needed("policy", Kind::Object, "As it is now.")], set_policy_api),
    route!(GET "/api/v1/progress" WATCHERS, "Counts of the project, a few seconds old at most.", [],
        [needed("progress", Kind::Object, "`prompts`, `responses`, `comparisons` by state, `served`, `wanted`, `votes`, `annotators`, `live_leases`, `datasets`.")], progress_api),
    route!(GET "/api/v1/datasets" WATCHERS, "Frozen datasets.", [],
        [needed("datasets", Kind::Objects, "`name`, `hash`, `header`, rows of each part, `created_by`, `created_ms`.")], datasets_api),
    route!(POST "/api/v1/datasets" ADMINS, "Freezes a dataset.", *FREEZE,
        [
            needed("dataset", Kind::Object, "The dataset."),
            needed("left_out", Kind::Object, "Comparisons left out: `too_few_votes`, `without_text`, `held`."),
        ], freeze_api),
    route!(GET "/api/v1/datasets/{name}/rows" WATCHERS, "Rows of a dataset with their texts and labels.",
        [
            may("from", Kind::Int, "First row, 0 if not given."),
            may("limit", Kind::Int, "Rows, 100 if not given, 1000 at most."),
        ],
        [needed("rows", Kind::Objects, "`idx`, `part`, `prompt`, `a`, `b`, the counts, and `label`: `chosen`, `label`, `margin`, `votes`; null for a row without a winner.")], rows_api),
    route!(GET "/api/v1/ledger" WATCHERS, "Events in order.",
        [
            may("from", Kind::Int, "First number, 1 if not given."),
            may("limit", Kind::Int, "Events, 100 if not given, 1000 at most."),
        ],
        [needed("events", Kind::Objects, "`seq`, `at_ms`, `kind`, `actor`, `body` (JSON text as hashed), `prev`, `hash`.")], ledger_api),
];

async fn overview(app: App, call: Call) -> Outcome<Response> {
    let progress = app.progress().await?;
    let rubric = app.store().current_rubric().await?;
    let body = html! {
        h1 { (app.name()) }
        (progress_card(&progress))
        div.columns {
            section.card { h2 { "Rubric" } p { "Version " (rubric.version) ": " a href="/rubric" { (rubric.rubric.title) } } }
            section.card { h2 { "Ledger" } (head(&app).await?) }
        }
    };
    Ok(page::page(&app, &call, "Overview", body))
}

fn progress_card(progress: &Progress) -> Markup {
    let count = |state: &str| progress.comparisons.get(state).copied().unwrap_or(0);
    let in_queue = count("fresh") + count("open") + count("full");
    html! {
        section.card {
            h2 { "Progress" }
            @if progress.wanted > 0 {
                progress max=(progress.wanted) value=(progress.served) aria-label="Judgements made of those wanted" {}
                p { strong { (progress.served) } " of " (progress.wanted) " judgements wanted are made or in someone's hands." }
            } @else {
                p { "There is nothing to judge yet: add prompts and responses with " code { "polity import" } " or " code { "polity sample" } "." }
            }
            dl.facts.many {
                div { dt { "Prompts" } dd { (progress.prompts) } }
                div { dt { "Responses" } dd { (progress.responses) } }
                div { dt { "Comparisons in the queue" } dd { (in_queue) } }
                div { dt { "Done" } dd { (count("full")) } }
                div { dt { "Held back" } dd { a href="/review" { (count("held")) } } }
                div { dt { "Known answers" } dd { (count("gold")) } }
                div { dt { "Votes" } dd { (progress.votes) } }
                div { dt { "Annotators" } dd { a href="/panel" { (progress.annotators) } } }
                div { dt { "In someone's hands" } dd { (progress.live_leases) } }
                div { dt { "Datasets" } dd { a href="/datasets" { (progress.datasets) } } }
            }
        }
    }
}

async fn head(app: &App) -> Outcome<Markup> {
    let head = app.store().ledger_head().await?;
    Ok(html! {
        p { a href="/ledger" { (head.seq) " events" } ", the last one at " (page::time(head.at_ms)) "." }
        p { "Head " code.wrap { (head.hash) } }
        p.hint { "Keep the head somewhere else: " code { "polity ledger verify" } " can then tell whether anything was cut off." }
    })
}

async fn settings(app: App, call: Call) -> Outcome<Response> {
    let policy = json!(app.store().project().await?.policy);
    let fields = html! {
        @for field in POLICY {
            label {
                span { (field.about) " " code { (field.name) } }
                input name=(field.name) required inputmode="decimal" value=(policy[field.name].to_string());
            }
        }
        button.primary type="submit" { "Save" }
    };
    let body = html! {
        h1 { "Settings" }
        section.card { (page::form(&call, "/settings", fields)) p.hint { "A change is an event in the ledger and holds for what is handed out from then on." } }
    };
    Ok(page::page(&app, &call, "Settings", body))
}

async fn set_policy(app: &App, call: &Call) -> Outcome<Policy> {
    let sent: serde_json::Map<String, Value> = POLICY
        .iter()
        .filter_map(|field| Some((field.name.to_owned(), call.get(field.name)?.clone())))
        .collect();
    let policy: Policy = serde_json::from_value(Value::Object(sent))
        .map_err(|e| Failure::Input(format!("the policy does not fit: {e}")))?;
    app.store().set_policy(policy.clone(), call.id(), call.now_ms).await?;
    Ok(policy)
}

async fn set_policy_page(app: App, call: Call) -> Outcome<Response> {
    set_policy(&app, &call).await?;
    Ok(page::redirect("/settings"))
}

async fn set_policy_api(app: App, call: Call) -> Outcome<Response> {
    Ok(json_response(&json!({"policy": set_policy(&app, &call).await?})))
}

async fn datasets(app: App, call: Call) -> Outcome<Response> {
    let all = app.store().datasets().await?;
    let fields = html! {
        label { span { "Name" } input name="name" required maxlength="100" pattern="[A-Za-z0-9._\\-]+"; }
        label { span { "Labels" }
            select name="labels" { option value="majority" { "hard, by majority" } option value="soft" { "soft, by vote share" } option value="model" { "soft, by reliability" } }
        }
        label { span { "Fewest judgements of a comparison" } input name="votes_min" type="number" min="1" value="1"; }
        label.tick { input type="checkbox" name="machine_votes"; span { "Count machines' votes too" } }
        button.primary type="submit" { "Freeze" }
    };
    let body = html! {
        h1 { "Datasets" }
        section.card {
            @if all.is_empty() { p { "None yet." } } @else { (dataset_table(&all)) }
            p.hint { "A dataset never changes." }
        }
        @if call.who().may(ADMINS) {
            div.columns {
                section.card { h2 { "Freeze one" } (page::form(&call, "/datasets", fields)) }
                @if !all.is_empty() { section.card { h2 { "Export one" } (export::form(&call, &all)) } }
            }
        }
    };
    Ok(page::page(&app, &call, "Datasets", body))
}

fn dataset_table(all: &[Dataset]) -> Markup {
    html! {
        div.scroll tabindex="0" {
            table {
                thead { tr { th { "Name" } th { "Train" } th { "Validation" } th { "Holdout" } th { "Since" } th { "Hash" } } }
                tbody {
                    @for dataset in all {
                        tr {
                            td { (dataset.name) }
                            td.n { (dataset.train_rows) } td.n { (dataset.validation_rows) } td.n { (dataset.holdout_rows) }
                            td.nowrap { (page::time(dataset.created_ms)) }
                            td { code { (page::short(&dataset.hash)) } }
                        }
                    }
                }
            }
        }
    }
}

async fn freeze(app: &App, call: &Call) -> Outcome<(Dataset, LeftOut)> {
    let labels = match call.text("labels") {
        "model" => LabelRule::Model,
        "soft" => LabelRule::Soft,
        _ => LabelRule::Majority,
    };
    let model = match labels {
        LabelRule::Model => Some(app.store().model_labels(call.yes("machine_votes")).await?),
        LabelRule::Majority | LabelRule::Soft => None,
    };
    let freeze = Freeze {
        name: call.text("name").trim().to_owned(),
        labels,
        machine_votes: call.yes("machine_votes"),
        votes_min: call.int("votes_min").unwrap_or(1),
        model,
    };
    Ok(app.store().freeze(freeze, call.id(), call.now_ms).await?)
}

async fn freeze_page(app: App, call: Call) -> Outcome<Response> {
    freeze(&app, &call).await?;
    Ok(page::redirect("/datasets"))
}

async fn freeze_api(app: App, call: Call) -> Outcome<Response> {
    let (dataset, left_out) = freeze(&app, &call).await?;
    Ok(json_response(&json!({"dataset": dataset, "left_out": left_out})))
}

async fn datasets_api(app: App, _call: Call) -> Outcome<Response> {
    Ok(json_response(&json!({"datasets": app.store().datasets().await?})))
}

fn limit(call: &Call) -> i64 {
    call.int("limit").unwrap_or(ROWS).clamp(1, 1000)
}

async fn rows_api(app: App, call: Call) -> Outcome<Response> {
    let dataset = app.store().dataset(call.part("name")).await?;
    let rule = dataset.rule(None)?;
    let found =
        app.store().dataset_rows(&dataset.name, call.int("from").unwrap_or(0).max(0), limit(&call)).await?;
    let rows: Vec<Value> = found
        .iter()
        .map(|texts| {
            let mut row = json!(texts.row);
            row["prompt"] = json!(texts.prompt);
            row["a"] = json!(texts.a);
            row["b"] = json!(texts.b);
            row["label"] = match texts.row.label(rule) {
                Some(label) => {
                    let chosen = if label.chosen == polity_store::Side::Left { "a" } else { "b" };
                    json!({"chosen": chosen, "label": label.label, "margin": label.margin, "votes": label.votes})
                }
                None => Value::Null,
            };
            row
        })
        .collect();
    Ok(json_response(&json!({"rows": rows})))
}

async fn ledger(app: App, call: Call) -> Outcome<Response> {
    let head = app.store().ledger_head().await?;
    let last = call.int("before").unwrap_or(i64::MAX).min(head.seq + 1).max(1) - 1;
    let first = (last - ROWS + 1).max(1);
    let mut events = app.store().events(first, last - first + 1).await?;
    events.reverse();
    let accounts = app.store().accounts().await?;
    let name = |actor: &str| {
        let account = accounts.iter().find(|account| account.id == actor);
        account.map_or_else(|| actor.to_owned(), |account| account.name.clone())
    };
    let body = html! {
        h1 { "Ledger" }
        p { (head.seq) " events; head " code.wrap { (head.hash) } }
        section.card.scroll tabindex="0" {
            table.stack {
                thead { tr { th { "Event" } th { "When" } th { "Kind" } th { "Who" } th { "What" } th { "Hash" } } }
                tbody {
                    @for event in &events {
                        tr {
                            td.n { (event.seq) } td.nowrap { (page::time(event.at_ms)) } td { (event.kind) } td { (name(&event.actor)) }
                            td.text { code.wrap { (event.body.chars().take(400).collect::<String>()) } }
                            td { code { (page::short(&event.hash)) } }
                        }
                    }
                }
            }
        }
        @if first > 1 { p { a.button href={"/ledger?before=" (first)} { "Earlier" } } }
    };
    Ok(page::page(&app, &call, "Ledger", body))
}

async fn ledger_api(app: App, call: Call) -> Outcome<Response> {
    let events = app.store().events(call.int("from").unwrap_or(1), limit(&call)).await?;
    Ok(json_response(&json!({"events": events})))
}

async fn project_api(app: App, _call: Call) -> Outcome<Response> {
    Ok(json_response(&json!(app.store().project().await?)))
}

async fn progress_api(app: App, _call: Call) -> Outcome<Response> {
    Ok(json_response(&json!({"progress": app.progress().await?})))
}
