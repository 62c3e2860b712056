//! Comparing: the page that annotators spend their days on, and the same for programs.
//!
//! What the page must not tell: which model wrote what, which response the store calls `a`, and whether the answer is known. What it always tells:
//! the rubric's version, how much this annotator has done, and, where there is nothing to do, why and when there may be.
//!
//! Keys and the time on task need the script; everything else works without.
//!
//! Not here: which comparison comes next and on which side (`polity_store::Store::next`).

use axum::response::Response;
use maud::{Markup, html};
use polity_store::{
    Answer, Assignment, CalibrationItem, ComparisonTexts, Content, Kind as Purpose, NewVote, Next, Nothing,
    Role, Rubric, RubricVersion, Standing, Voted,
};
use serde_json::{Value, json};

use crate::app::App;
use crate::error::{Failure, Outcome};
use crate::field::{Field, Kind, may, needed};
use crate::page;
use crate::route::{Access, Call, Route, json_response, route};
use crate::rubric;
use crate::text;

/// Who votes.
const ANNOTATORS: Access = Access::Roles(&[Role::Annotator]);

/// Names of the answers, for forms and programs.
pub(crate) const ANSWERS: &[&str] =
    &["left3", "left2", "left1", "tie", "right1", "right2", "right3", "both_bad", "skip", "flag"];

/// How the two are called where they are shown blind.
pub(crate) const SIDES: (&str, &str) = ("A", "B");

const VOTE: &[Field] = &[
    needed("assignment", Kind::Int, "The assignment that is answered."),
    needed(
        "answer",
        Kind::OneOf(ANSWERS),
        "Which is better, by the sides shown, and how much: 1 slightly, 2 clearly, 3 much.",
    ),
    may("axes", Kind::Map, "The same by axis; keys are the rubric's."),
    may("reason", Kind::Long, "Why, in the annotator's words."),
    may("work_ms", Kind::Int, "Time on task in milliseconds."),
];

pub(crate) const ROUTES: &[Route] = &[
    route!(GET "/compare" ANNOTATORS, "The next comparison.", [], [], compare),
    route!(POST "/compare" ANNOTATORS, "Votes.", *VOTE, [], vote_page),
    route!(POST "/compare/undo" ANNOTATORS, "Takes the last vote back.", [], [], undo_page),
    route!(GET "/compare/feedback/{assignment}" ANNOTATORS, "What the answer to a known comparison was.", [], [], feedback),
    route!(POST "/api/v1/next" ANNOTATORS, "Hands out the next comparison, or the one in hand again.", [],
        [
            may("assignment", Kind::Object, "`id`, `rubric_version`, `expires_ms`, `prompt`, `left`, `right`; texts are strings or lists of messages."),
            may("nothing", Kind::Object, "Why there is none: `reason` is `not_qualified` (with `answered`, `right`) or `nothing_left` (with `open`, `next_lease_ends_ms`)."),
        ], next_api),
    route!(POST "/api/v1/votes" ANNOTATORS, "Votes on an assignment; the same answer twice is stored once, another one supersedes.", *VOTE,
        [
            needed("vote", Kind::Int, "The vote's number."),
            may("feedback", Kind::Object, "For a comparison with a known answer: `right`, `expected` (by the sides shown), `explanation`."),
        ], vote_api),
    route!(POST "/api/v1/undo" ANNOTATORS, "Takes the last vote back and hands the same comparison out again.", [],
        [needed("assignment", Kind::Int, "The assignment, open again.")], undo_api),
    route!(POST "/api/v1/assignments/{id}/release" ANNOTATORS, "Gives a comparison back unanswered.", [],
        [needed("released", Kind::Int, "The assignment.")], release_api),
];

async fn compare(app: App, call: Call) -> Outcome<Response> {
    let next = app.store().next(call.id(), call.now_ms).await?;
    let done = app.store().judgements_made(call.id()).await?;
    let policy = app.store().project().await?.policy;
    let standing = match policy.calibration_first {
        0 => None,
        _ => Some(app.store().standing(call.id()).await?),
    };
    match next {
        Next::Assignment(given) => {
            let texts = app.store().comparison(&given.comparison_id).await?;
            let rubric = app.rubric(given.rubric_version).await?;
            let phase = match standing {
                Some(standing)
                    if given.kind == Purpose::Calibration && standing.answered < policy.calibration_first =>
                {
                    Phase::Calibration(standing, policy.calibration_first)
                }
                // Handed out before the rubric changed, and judged by what was in force then.
                Some(standing) if standing.round > given.rubric_version => Phase::OldRubric,
                _ => Phase::Work,
            };
            Ok(show(&app, &call, &given, &texts, &rubric, done, phase))
        }
        Next::Nothing(nothing) => Ok(nothing_page(&app, &call, &nothing, done, policy.calibration_pass)),
    }
}

/// What the page says about where the annotator stands.
enum Phase {
    Work,
    OldRubric,
    /// With how many are asked for.
    Calibration(Standing, i64),
}

fn show(
    app: &App,
    call: &Call,
    given: &Assignment,
    texts: &ComparisonTexts,
    version: &RubricVersion,
    done: i64,
    phase: Phase,
) -> Response {
    let (left, right) = sides(given, texts);
    let rubric = &version.rubric;
    // The texts are inside the form so that the verdict, which sticks to the bottom of its form, is in sight while they are read.
    let fields = html! {
        input type="hidden" name="assignment" value=(given.id);
        input #work_ms type="hidden" name="work_ms" value="";
        section aria-label="Prompt" { h2.part { "Prompt" } (text::chat(&texts.prompt.content)) }
        div.pair {
            section.candidate.a { h2 { "Response " (SIDES.0) } (text::response(left)) }
            section.candidate.b { h2 { "Response " (SIDES.1) } (text::response(right)) }
        }
        @if !rubric.axes.is_empty() {
            div.axes {
                @for axis in &rubric.axes { (axis_scale(rubric, &axis.key)) }
            }
        }
        label.reason { span { "Why (optional)" } textarea #reason name="reason" rows="2" maxlength="5000" {} }
        div.verdict {
            (overall_scale())
            div.others {
                (choice("answer", "both_bad", "Both bad", "b"))
                (choice("answer", "skip", "Skip", "s"))
                (choice("answer", "flag", "Flag", "f"))
                button.primary type="submit" { "Vote" }
            }
        }
    };
    let body = html! {
        h1.vh { "Which response is better?" }
        div.status {
            @match phase {
                Phase::Calibration(standing, first) => p {
                    strong { "Calibration " (standing.answered + 1) " of " (first) ". " }
                    @if standing.round > 1 { "The rubric changed: please answer these again by version " (version.version) ". " }
                    "You are told what was expected after each."
                },
                Phase::OldRubric => p {
                    strong { "The rubric changed. " } "This one was handed to you before: please judge it by version " (version.version) ", below."
                },
                Phase::Work => p { strong { (done) } @if done == 1 { " judgement so far" } @else { " judgements so far" } },
            }
            div.tools {
                @if done > 0 {
                    (page::form(call, "/compare/undo", html! { button #undo.quiet type="submit" { "Undo last vote" } }))
                }
            }
        }
        div.aids {
            details #rubric { summary { "Rubric, version " (version.version) } div.sheet { (rubric::show(rubric)) } }
            details #keys { summary { "Keys" } div.sheet { (keys()) } }
        }
        div #vote { (page::form(call, "/compare", fields)) }
    };
    page::page(app, call, "Compare", body)
}

/// The two texts, left one first.
fn sides<'t>(given: &Assignment, texts: &'t ComparisonTexts) -> (&'t Content, &'t Content) {
    match given.left_response == texts.a.id {
        true => (&texts.a.content, &texts.b.content),
        false => (&texts.b.content, &texts.a.content),
    }
}

fn overall_scale() -> Markup {
    html! { fieldset.scale data-question="overall" { legend { "Overall" } (steps("answer", true)) } }
}

fn axis_scale(rubric: &Rubric, key: &str) -> Markup {
    let axis = rubric.axes.iter().find(|axis| axis.key == key).expect("the key comes from the rubric");
    html! { fieldset.scale data-question=(key) { legend { (axis.label) } (steps(&format!("axes.{key}"), false)) } }
}

/// Seven steps from "left much better" to "right much better".
fn steps(name: &str, required: bool) -> Markup {
    html! {
        div.steps {
            @for answer in Answer::GIVEN.into_iter().take(7) {
                @let value = answer.to_string();
                @let face = match answer {
                    Answer::Better { strength, .. } => strength.to_string(),
                    _ => "Tie".to_owned(),
                };
                label.step.(value) {
                    input type="radio" name=(name) value=(value) required[required];
                    span.face aria-hidden="true" { (face) }
                    span.vh { (page::answer(answer, SIDES.0, SIDES.1)) }
                }
            }
        }
        div.ends aria-hidden="true" { span { (SIDES.0) " better" } span { (SIDES.1) " better" } }
    }
}

fn choice(name: &str, value: &str, label: &str, key: &str) -> Markup {
    html! {
        label.step.other { input type="radio" name=(name) value=(value) required data-key=(key); span.face { (label) } }
    }
}

/// What each key does; the script has the same keys.
fn keys() -> Markup {
    const KEYS: &[(&str, &str)] = &[
        ("1 2 3", "A is much, clearly, slightly better"),
        ("4", "tie"),
        ("5 6 7", "B is slightly, clearly, much better"),
        ("b", "both bad"),
        ("s", "skip"),
        ("f", "flag"),
        ("j k", "next or earlier question; 1 to 7 answer the marked one"),
        ("e", "write a reason; Esc leaves it"),
        ("Enter", "vote (Ctrl Enter inside the reason)"),
        ("u", "undo the last vote"),
        ("r", "rubric"),
        ("?", "these keys"),
    ];
    html! {
        dl.keys { @for (key, what) in KEYS { div { dt { @for key in key.split(' ') { kbd { (key) } " " } } dd { (what) } } } }
        label.tick { input #keys_on type="checkbox" checked; span { "Single keys on (remembered in this browser)" } }
    }
}

fn nothing_page(app: &App, call: &Call, nothing: &Nothing, done: i64, pass: f64) -> Response {
    let body = html! {
        section.card.narrow {
            @match nothing {
                Nothing::NotQualified { answered, right } => {
                    h1 { "Not qualified yet" }
                    p { "Of " (answered) " comparisons with a known answer you answered " (right) " as expected; this panel asks for "
                        (format!("{:.0} %", pass * 100.0)) ", and there are no more known ones to try." }
                    p { "Read " a href="/rubric" { "the rubric" } " again, and ask whoever runs the panel for another round." }
                },
                Nothing::NothingLeft { open: 0, next_lease_ends_ms: None } => {
                    h1 { "All done" }
                    p { "Every comparison of this project has the judgements that it wants. More appear here when they are added." }
                },
                Nothing::NothingLeft { open, next_lease_ends_ms } => {
                    h1 { "Nothing for you right now" }
                    @if *open > 0 { p { (open) " comparisons still want judgements, but not yours: you have judged them, or others are at them." } }
                    @else { p { "The last comparisons are in others' hands." } }
                    @if let Some(at_ms) = next_lease_ends_ms {
                        p { "The next one that somebody holds comes free at " strong { (page::time(*at_ms)) }
                            " (in " (page::span((at_ms - call.now_ms).max(0))) ") unless it is answered before." }
                    }
                },
            }
            p { "You have made " strong { (done) } " judgements." }
            div.row {
                a.button.primary href="/compare" { "Look again" }
                @if done > 0 {
                    (page::form(call, "/compare/undo", html! { button #undo.quiet type="submit" { "Undo last vote" } }))
                }
            }
        }
    };
    page::page(app, call, "Compare", body)
}

async fn vote(app: &App, call: &Call) -> Outcome<Voted> {
    let assignment_id = call.int("assignment").expect("the field is needed");
    let given = app.store().assignment(call.id(), assignment_id).await?;
    let axes = call
        .map("axes")
        .into_iter()
        .map(|(key, value)| Ok((key, value.as_str().unwrap_or("").parse::<Answer>()?)))
        .collect::<Result<_, polity_store::StoreError>>()?;
    let vote = NewVote {
        annotator_id: call.id().to_owned(),
        assignment_id,
        overall: call.text("answer").parse()?,
        axes,
        reason: call.text("reason").trim().to_owned(),
        shown_ms: Some(given.served_ms),
        work_ms: call
            .int("work_ms")
            .filter(|work_ms| (0..=call.now_ms - given.served_ms + 1000).contains(work_ms)),
    };
    Ok(app.store().vote(vote, call.now_ms).await?)
}

async fn vote_page(app: App, call: Call) -> Outcome<Response> {
    let voted = vote(&app, &call).await?;
    match voted.feedback {
        Some(_) => {
            let assignment = call.int("assignment").expect("the field is needed");
            Ok(page::redirect(&format!("/compare/feedback/{assignment}")))
        }
        None => Ok(page::redirect("/compare")),
    }
}

async fn undo_page(app: App, call: Call) -> Outcome<Response> {
    app.store().undo(call.id(), call.now_ms).await?;
    Ok(page::redirect("/compare"))
}

async fn feedback(app: App, call: Call) -> Outcome<Response> {
    let given = app.store().assignment(call.id(), call.part_int("assignment")?).await?;
    if given.kind != Purpose::Calibration || given.state != "voted" {
        return Err(Failure::NotFound);
    }
    let texts = app.store().comparison(&given.comparison_id).await?;
    let items = app.store().calibration_items().await?;
    let item = items.into_iter().find(|item| item.comparison_id == given.comparison_id);
    let item: CalibrationItem = item.ok_or(Failure::NotFound)?;
    let votes = app.store().votes_on(&given.comparison_id).await?;
    let own =
        votes.into_iter().rev().find(|vote| vote.assignment_id == Some(given.id)).ok_or(Failure::NotFound)?;

    let expected = if given.left_response == texts.a.id { item.expected } else { item.expected.swapped() };
    let right = own.overall.grade().map(i8::signum) == expected.grade().map(i8::signum);
    let (left_text, right_text) = sides(&given, &texts);
    let body = html! {
        section.card.feedback.(if right { "right" } else { "wrong" }) role="status" {
            h1 { @if right { "As expected" } @else { "Not as expected" } }
            dl.facts {
                div { dt { "Your answer" } dd { (page::answer(own.overall, SIDES.0, SIDES.1)) } }
                div { dt { "Expected" } dd { (page::answer(expected, SIDES.0, SIDES.1)) } }
            }
            @if !item.explanation.is_empty() { (text::markdown(&item.explanation)) }
            p { a #go_on.button.primary href="/compare" { "Go on" } }
            p.hint { "Only which side is better is marked, not how much. This comparison had a known answer; others have none." }
        }
        section aria-label="Prompt" { h2.part { "Prompt" } (text::chat(&texts.prompt.content)) }
        div.pair {
            section.candidate.a { h2 { "Response " (SIDES.0) } (text::response(left_text)) }
            section.candidate.b { h2 { "Response " (SIDES.1) } (text::response(right_text)) }
        }
    };
    Ok(page::page(&app, &call, "Feedback", body))
}

async fn next_api(app: App, call: Call) -> Outcome<Response> {
    let answer = match app.store().next(call.id(), call.now_ms).await? {
        Next::Nothing(nothing) => json!({"nothing": nothing}),
        Next::Assignment(given) => {
            let texts = app.store().comparison(&given.comparison_id).await?;
            let (left, right) = sides(&given, &texts);
            json!({"assignment": {
                "id": given.id, "rubric_version": given.rubric_version, "expires_ms": given.expires_ms,
                "prompt": texts.prompt.content, "left": left, "right": right,
            }})
        }
    };
    Ok(json_response(&answer))
}

async fn vote_api(app: App, call: Call) -> Outcome<Response> {
    let voted = vote(&app, &call).await?;
    let mut answer = json!({"vote": voted.seq});
    if let Some(feedback) = voted.feedback {
        answer["feedback"] = serde_json::to_value(feedback).unwrap_or(Value::Null);
    }
    Ok(json_response(&answer))
}

async fn undo_api(app: App, call: Call) -> Outcome<Response> {
    let given = app.store().undo(call.id(), call.now_ms).await?;
    Ok(json_response(&json!({"assignment": given.id})))
}

async fn release_api(app: App, call: Call) -> Outcome<Response> {
    let id = call.part_int("id")?;
    app.store().release(call.id(), id).await?;
    Ok(json_response(&json!({"released": id})))
}
