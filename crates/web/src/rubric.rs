//! The rubric: shown to everybody who is signed in, written by administrators, never changed: each edit is a new version.

use axum::response::Response;
use maud::{Markup, html};
use polity_store::{Axis, Example, Rubric, RubricVersion};
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::error::{Failure, Outcome};
use crate::field::{Kind, may, needed};
use crate::page;
use crate::route::{Access, Call, Route, json_response, route};
use crate::text;

/// Who writes it.
const AUTHORS: Access = Access::Roles(&[]);

/// Empty rows that the editor offers beside what there is.
const SPARE_AXES: usize = 2;
const SPARE_EXAMPLES: usize = 1;

pub(crate) const ROUTES: &[Route] = &[
    route!(GET "/rubric" Access::SignedIn, "The current rubric and its versions.", [], [], current),
    route!(GET "/rubric/edit" AUTHORS, "The editor of the rubric.", [], [], edit),
    route!(GET "/rubric/{version}" Access::SignedIn, "A version of the rubric.", [], [], version),
    route!(POST "/rubric" AUTHORS, "Adds a version of the rubric.",
        [
            needed("title", Kind::Text, "Its heading."),
            needed("instructions", Kind::Long, "What to do, as markdown."),
            may("axes", Kind::Map, "`N.key`, `N.label`, `N.help` of each axis; without a key there is none."),
            may("examples", Kind::Map, "`N.prompt`, `N.left`, `N.right`, `N.answer` of each example."),
            may("note", Kind::Text, "What was changed, and why."),
            may("recalibrate", Kind::Yes, "Whether annotators calibrate again."),
        ], [], add_page),
    route!(GET "/api/v1/rubrics" Access::SignedIn, "All versions of the rubric, oldest first.", [],
        [needed("rubrics", Kind::Objects, "Each with `version`, `rubric`, `hash`, `author`, `note`, `recalibrate`, `created_ms`.")], list),
    route!(POST "/api/v1/rubrics" AUTHORS, "Adds a version, which is current from then on.",
        [
            needed("rubric", Kind::Object, "`title`, `instructions`, `axes` (`key`, `label`, `help`), `examples` (`prompt`, `left`, `right`, `answer`)."),
            may("note", Kind::Text, "What was changed, and why."),
            may("recalibrate", Kind::Yes, "Whether annotators calibrate again."),
        ],
        [needed("version", Kind::Int, "Its number.")], add_api),
];

/// A rubric as annotators read it.
pub(crate) fn show(rubric: &Rubric) -> Markup {
    html! {
        div.rubric {
            h2 { (rubric.title) }
            (text::markdown(&rubric.instructions))
            @if !rubric.axes.is_empty() {
                dl.facts {
                    @for axis in &rubric.axes { div { dt { (axis.label) } dd { (text::markdown(&axis.help)) } } }
                }
            }
            @for (n, example) in rubric.examples.iter().enumerate() {
                details.example {
                    summary { "Example " (n + 1) }
                    h3 { "Prompt" } (text::markdown(&example.prompt))
                    div.pair {
                        div.candidate.a { h3 { "A" } (text::markdown(&example.left)) }
                        div.candidate.b { h3 { "B" } (text::markdown(&example.right)) }
                    }
                    h3 { "Answer" } (text::markdown(&example.answer))
                }
            }
        }
    }
}

async fn current(app: App, call: Call) -> Outcome<Response> {
    let mut all = app.store().rubrics().await?;
    let shown = all.pop().ok_or(Failure::NotFound)?;
    all.push(shown.clone());
    Ok(rubric_page(&app, &call, &shown, &all))
}

async fn version(app: App, call: Call) -> Outcome<Response> {
    let wanted = call.part_int("version")?;
    let all = app.store().rubrics().await?;
    let shown = all.iter().find(|version| version.version == wanted).ok_or(Failure::NotFound)?.clone();
    Ok(rubric_page(&app, &call, &shown, &all))
}

fn rubric_page(app: &App, call: &Call, shown: &RubricVersion, all: &[RubricVersion]) -> Response {
    let latest = all.last().is_some_and(|last| last.version == shown.version);
    let body = html! {
        div.spread {
            h1 { "Rubric, version " (shown.version) @if latest { " (current)" } }
            @if call.who().may(AUTHORS) { a.button href="/rubric/edit" { "Edit" } }
        }
        section.card { (show(&shown.rubric)) }
        section.card {
            h2 { "Versions" }
            div.scroll tabindex="0" {
                table {
                    thead { tr { th { "Version" } th { "Since" } th { "Change" } th { "Calibrate again" } th { "Hash" } } }
                    tbody {
                        @for version in all.iter().rev() {
                            tr {
                                td { a href={"/rubric/" (version.version)} { (version.version) } }
                                td.nowrap { (page::time(version.created_ms)) }
                                td { (version.note) }
                                td { @if version.recalibrate { "yes" } @else { "no" } }
                                td { code { (page::short(&version.hash)) } }
                            }
                        }
                    }
                }
            }
            p.hint { "Each vote carries the version it was given under; versions are never changed or removed." }
        }
    };
    page::page(app, call, "Rubric", body)
}

async fn edit(app: App, call: Call) -> Outcome<Response> {
    let now = app.store().current_rubric().await?;
    let rubric = &now.rubric;
    let axes = rubric.axes.iter().map(Some).chain((0..SPARE_AXES).map(|_| None));
    let examples = rubric.examples.iter().map(Some).chain((0..SPARE_EXAMPLES).map(|_| None));
    let fields = html! {
        section.card {
            (page::input("title", "Heading", &rubric.title, "text"))
            (page::area("instructions", "Instructions (markdown)", &rubric.instructions, 8))
        }
        section.card {
            h2 { "Axes" }
            p.hint { "What is judged beside the overall answer, on the same scale: A much, clearly, slightly better, tie, and the same for B. \
                      Clear the key of an axis to remove it; save, and there is room for more." }
            @for (n, axis) in axes.enumerate() {
                fieldset.inset {
                    legend { @match axis { Some(axis) => (axis.label), None => "New axis" } }
                    (page::input(&format!("axes.{n}.key"), "Key (a-z, 0-9, _)", axis.map_or("", |axis| &axis.key), "text"))
                    (page::input(&format!("axes.{n}.label"), "Name", axis.map_or("", |axis| &axis.label), "text"))
                    (page::area(&format!("axes.{n}.help"), "Meaning (markdown)", axis.map_or("", |axis| &axis.help), 2))
                }
            }
        }
        section.card {
            h2 { "Examples" }
            @for (n, example) in examples.enumerate() {
                fieldset.inset {
                    legend { @if example.is_some() { "Example " (n + 1) } @else { "New example" } }
                    (page::area(&format!("examples.{n}.prompt"), "Prompt", example.map_or("", |example| &example.prompt), 2))
                    (page::area(&format!("examples.{n}.left"), "Response A", example.map_or("", |example| &example.left), 3))
                    (page::area(&format!("examples.{n}.right"), "Response B", example.map_or("", |example| &example.right), 3))
                    (page::area(&format!("examples.{n}.answer"), "The answer and why (markdown)", example.map_or("", |example| &example.answer), 2))
                }
            }
        }
        section.card {
            (page::input("note", "What changed, and why", "", "text"))
            label.tick {
                input type="checkbox" name="recalibrate";
                span { "The change is large enough that annotators must calibrate again" }
            }
            button.primary type="submit" { "Save as version " (now.version + 1) }
        }
    };
    let body = html! { h1 { "Edit the rubric" } (page::form(&call, "/rubric", fields)) };
    Ok(page::page(&app, &call, "Edit the rubric", body))
}

/// Rows `N.part` in the order of N.
fn rows(map: &Map<String, Value>) -> Vec<impl Fn(&str) -> String> {
    let mut numbers: Vec<u64> = map.keys().filter_map(|key| key.split_once('.')?.0.parse().ok()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let row = |n: u64| {
        let map = map.clone();
        move |part: &str| {
            map.get(&format!("{n}.{part}")).and_then(Value::as_str).unwrap_or("").trim().to_owned()
        }
    };
    numbers.into_iter().map(row).collect()
}

async fn add_page(app: App, call: Call) -> Outcome<Response> {
    let axes = rows(&call.map("axes"))
        .into_iter()
        .filter(|of| !of("key").is_empty())
        .map(|of| {
            let label = if of("label").is_empty() { of("key") } else { of("label") };
            Axis { key: of("key"), label, help: of("help") }
        })
        .collect();
    let examples = rows(&call.map("examples"))
        .into_iter()
        .map(|of| Example {
            prompt: of("prompt"),
            left: of("left"),
            right: of("right"),
            answer: of("answer"),
        })
        .filter(|example| !(example.prompt.is_empty() && example.left.is_empty() && example.right.is_empty()))
        .collect();
    let rubric = Rubric {
        title: call.text("title").trim().to_owned(),
        instructions: call.text("instructions").trim().to_owned(),
        axes,
        examples,
    };
    add(&app, &call, rubric).await?;
    Ok(page::redirect("/rubric"))
}

async fn add(app: &App, call: &Call, rubric: Rubric) -> Outcome<i64> {
    if rubric.title.is_empty() || rubric.instructions.is_empty() {
        return Err(Failure::Input("the rubric has no heading or no instructions; write both".into()));
    }
    let now = app.store().current_rubric().await?;
    if now.rubric == rubric && !call.yes("recalibrate") {
        return Err(Failure::Conflict("this is what the current version says; nothing was saved".into()));
    }
    let (note, again) = (call.text("note"), call.yes("recalibrate"));
    Ok(app.store().add_rubric(rubric, call.id(), note, again, call.now_ms).await?)
}

async fn list(app: App, _call: Call) -> Outcome<Response> {
    Ok(json_response(&json!({"rubrics": app.store().rubrics().await?})))
}

async fn add_api(app: App, call: Call) -> Outcome<Response> {
    let rubric = serde_json::from_value(Value::Object(call.map("rubric")))
        .map_err(|e| Failure::Input(format!("`rubric` is not one: {e}")))?;
    let version = add(&app, &call, rubric).await?;
    Ok(json_response(&json!({"version": version})))
}
