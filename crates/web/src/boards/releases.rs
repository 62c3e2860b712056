//! `/releases`: what each channel serves, how it came to it, what was refused; a release's model card and lineage.

use std::collections::HashSet;
use std::path::{Component, Path};

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};
use polity_store::{Approval, ChannelState, Recorded, Release, Rollback};
use serde_json::{Value, json};

use super::{Models, Names, cut, model, pill, tail, waiting};
use crate::app::App;
use crate::error::{Failure, Outcome};
use crate::field::{Kind, needed};
use crate::page;
use crate::project::WATCHERS;
use crate::route::{Call, Route, json_response, route};
use crate::text;

/// The model card, in a released model's directory.
const CARD: &str = "README.md";
const CARD_BYTES_MAX: u64 = 1 << 20;
/// Refusals and alarms shown of a channel.
const SHOWN_MAX: usize = 30;

pub(crate) const ROUTES: &[Route] = &[
    route!(GET "/releases" WATCHERS, "What each channel serves, and its history.", [], [], releases_page),
    route!(GET "/releases/{name}/card" WATCHERS, "A release's model card.", [], [], card_page),
    route!(GET "/releases/{name}/lineage" WATCHERS, "What a release was made from, drawn.", [], [], lineage_page),
    route!(GET "/releases/{name}/lineage.svg" WATCHERS, "The drawing of a release's lineage, verified now.", [], [], lineage_svg),
    route!(GET "/api/v1/releases" WATCHERS, "Channels with their releases and rollbacks, and what was refused.", [],
        [
            needed("channels", Kind::Objects, "`channel`, `stable`, `canary`, `releases`, `rollbacks`; a release is `release`, `model`, `dir`, `verdict`, `approvals`, `canary_share`, `at_ms`, `actor`."),
            needed("approvals", Kind::Objects, "`verdict`, `model`, `channel`, `at_ms`, `actor`."),
            needed("refusals", Kind::Objects, "`refused`, `channel`, `model`, `code`, `why`, `details`, `seq`, `at_ms`, `actor`."),
        ], releases_api),
];

/// An event whose body says what happened on a channel.
struct Happened {
    seq: i64,
    at_ms: i64,
    actor: String,
    body: Value,
}

async fn happened(app: &App, kind: &'static str) -> Outcome<Vec<Happened>> {
    let events = app.store().events_of(kind).await?;
    let read = |event: polity_store::Event| Happened {
        seq: event.seq,
        at_ms: event.at_ms,
        actor: event.actor,
        body: serde_json::from_str(&event.body).unwrap_or_default(),
    };
    Ok(events.into_iter().map(read).collect())
}

async fn releases_page(app: App, call: Call) -> Outcome<Response> {
    let channels = app.store().channels().await?;
    let approvals = app.store().approvals().await?;
    let (refusals, alarms) = (happened(&app, "refusal").await?, happened(&app, "alarm").await?);
    let shown = Shown {
        models: Models::read(&app).await?,
        names: Names::read(&app).await?,
        approvals,
        refusals,
        alarms,
        with_lineage: app.shelf().boards.lineage.is_some(),
    };
    // Channels that nothing was released to yet have their refusals all the same.
    let known: HashSet<&str> = channels.iter().map(|state| state.channel.as_str()).collect();
    let mut refused: Vec<&str> =
        shown.refusals.iter().filter_map(|refusal| refusal.body["channel"].as_str()).collect();
    refused.retain(|channel| !known.contains(channel));
    refused.sort_unstable();
    refused.dedup();
    let body = html! {
        h1 { "Releases" }
        @if channels.is_empty() {
            section.card {
                p { "Nothing is released yet. A model whose verdict is " (pill("good", "pass")) " is released with" }
                pre.scroll tabindex="0" { "polity release runs/ppo/model --channel production" }
                p { "after the approvals that its policy asks for: " code { "polity approve runs/ppo/model --channel production" } "." }
            }
        }
        @for state in &channels { (shown.channel(state)) }
        @for channel in refused { section.card { h2 { "Channel " (channel) } p { "Nothing was released here yet." } (shown.refusals(channel)) } }
    };
    Ok(page::page(&app, &call, "Releases", body))
}

/// What the channels' cards are made from.
struct Shown {
    models: Models,
    names: Names,
    approvals: Vec<Recorded<Approval>>,
    refusals: Vec<Happened>,
    alarms: Vec<Happened>,
    with_lineage: bool,
}

/// An event of a channel's history.
enum Past<'s> {
    Released(&'s Recorded<Release>),
    WentBack(&'s Recorded<Rollback>),
}

impl Past<'_> {
    fn seq(&self) -> i64 {
        match self {
            Past::Released(release) => release.seq,
            Past::WentBack(back) => back.seq,
        }
    }
}

impl Shown {
    fn channel(&self, state: &ChannelState) -> Markup {
        let mut past: Vec<Past<'_>> = state
            .releases
            .iter()
            .map(Past::Released)
            .chain(state.rollbacks.iter().map(Past::WentBack))
            .collect();
        past.sort_by_key(|past| -past.seq());
        html! {
            section.card {
                h2 { "Channel " (state.channel) }
                div.columns {
                    @if let Some(stable) = &state.stable { (self.serves("Everyone gets", stable)) }
                    @if let Some(canary) = &state.canary {
                        (self.serves(&format!("{:.0}\u{a0}% get a canary", 100.0 * canary.what.canary_share.unwrap_or(0.0)), canary))
                    }
                }
                h3 { "History" }
                div.scroll tabindex="0" {
                    table.stack {
                        thead { tr { th { "Event" } th { "When" } th { "What" } th { "Model" } th { "By" } th { "More" } } }
                        tbody { @for past in &past { (self.past(state, past)) } }
                    }
                }
                (self.waiting(state))
                (self.refusals(&state.channel))
                (self.alarms(&state.channel))
            }
        }
    }

    fn serves(&self, title: &str, release: &Recorded<Release>) -> Markup {
        let approved = release
            .what
            .approvals
            .iter()
            .filter_map(|id| self.approvals.iter().find(|approval| approval.id == *id));
        let approved: Vec<&str> = approved.map(|approval| self.names.of(&approval.actor)).collect();
        html! {
            div {
                p.part { (title) }
                p { strong { (release.what.release) } ": " (self.made_by(release)) }
                p { "Since " (page::time(release.at_ms)) ", by " (self.names.of(&release.actor)) "; "
                    @if approved.is_empty() { "no approvals were asked for" } @else { "approved by " (approved.join(", ")) } "." }
                p { (self.links(release)) }
            }
        }
    }

    /// A release's model; one that is known by the release alone is not called by its name again.
    fn made_by(&self, release: &Recorded<Release>) -> Markup {
        let hash = &release.what.model;
        match self.models.0.get(hash) == Some(&release.what.release) {
            true => html! { code title=(hash) { (page::short(hash)) } },
            false => model(&self.models, hash),
        }
    }

    fn links(&self, release: &Recorded<Release>) -> Markup {
        let name = page::segment(&release.what.release);
        html! {
            a href={"/releases/" (name) "/card"} { "Model card" }
            @if self.with_lineage { " · " a href={"/releases/" (name) "/lineage"} { "Lineage" } }
            " · " a href={"/verdicts/" (page::segment(&release.what.verdict))} { "Verdict" }
        }
    }

    fn past(&self, state: &ChannelState, past: &Past<'_>) -> Markup {
        let is = |release: &Recorded<Release>, serving: &Option<Recorded<Release>>| {
            serving.as_ref().is_some_and(|serving| serving.what.release == release.what.release)
        };
        html! {
            @match past {
                Past::Released(release) => tr {
                    td.n { (release.seq) } td.nowrap { (page::time(release.at_ms)) }
                    td {
                        strong { (release.what.release) } " "
                        @if let Some(share) = release.what.canary_share { span.hint { "canary of " (format!("{:.0}\u{a0}%", 100.0 * share)) } " " }
                        @if is(release, &state.stable) { (pill("good", "everyone")) }
                        @else if is(release, &state.canary) { (pill("going", "canary")) }
                        @else if state.rollbacks.iter().any(|back| back.what.from == release.what.release) { (pill("bad", "rolled back")) }
                    }
                    td { (self.made_by(release)) } td { (self.names.of(&release.actor)) } td.nowrap { (self.links(release)) }
                },
                Past::WentBack(back) => tr {
                    td.n { (back.seq) } td.nowrap { (page::time(back.at_ms)) }
                    td { (pill("bad", "rollback")) " from " strong { (back.what.from) } " to " strong { (back.what.to) } }
                    td {} td { (self.names.of(&back.actor)) }
                    td { @for bad in &back.what.skipped { span.hint { (bad.record) ": " (cut(&bad.found, 200)) } " " } }
                },
            }
        }
    }

    /// Approvals that no release used yet.
    fn waiting(&self, state: &ChannelState) -> Markup {
        let used: HashSet<&String> =
            state.releases.iter().flat_map(|release| &release.what.approvals).collect();
        let open: Vec<_> = self
            .approvals
            .iter()
            .filter(|approval| approval.what.channel == state.channel && !used.contains(&approval.id))
            .collect();
        html! {
            @if !open.is_empty() {
                h3 { "Approved, and not released" }
                ul.plain { @for approval in open {
                    li { (model(&self.models, &approval.what.model)) " by " (self.names.of(&approval.actor)) ", " (page::time(approval.at_ms)) ": "
                        a href={"/verdicts/" (page::segment(&approval.what.verdict))} { "verdict" } }
                } }
            }
        }
    }

    fn refusals(&self, channel: &str) -> Markup {
        self.events("Refused", channel, &self.refusals, |body| {
            let what = match body["refused"].as_str() {
                Some("rollback") => "A rollback",
                Some("approval") => "An approval",
                _ => "A release",
            };
            format!("{what}: {}.", body["why"].as_str().unwrap_or_default())
        })
    }

    fn alarms(&self, channel: &str) -> Markup {
        self.events("Alarms of the monitor", channel, &self.alarms, |body| {
            let said = ["message", "reason", "why", "alarm"].iter().find_map(|key| body[*key].as_str());
            said.map_or_else(|| body.to_string(), str::to_owned)
        })
    }

    fn events(&self, title: &str, channel: &str, all: &[Happened], say: fn(&Value) -> String) -> Markup {
        let mut own: Vec<&Happened> =
            all.iter().rev().filter(|event| event.body["channel"] == channel).collect();
        own.truncate(SHOWN_MAX);
        html! {
            @if !own.is_empty() {
                h3 { (title) }
                ul.plain { @for event in own {
                    li { (cut(&say(&event.body), 1000)) " " span.hint { (page::time(event.at_ms)) ", " (self.names.of(&event.actor)) ", event " (event.seq) } }
                } }
            }
        }
    }
}

async fn one(app: &App, name: &str) -> Outcome<Recorded<Release>> {
    let channels = app.store().channels().await?;
    let mut all = channels.into_iter().flat_map(|state| state.releases);
    all.find(|release| release.what.release == name).ok_or(Failure::NotFound)
}

async fn card_page(app: App, call: Call) -> Outcome<Response> {
    let release = one(&app, call.part("name")).await?;
    let recorded = release.what.files.get(CARD).cloned();
    let inside = Path::new(&release.what.dir).components().all(|part| matches!(part, Component::Normal(_)));
    let dir = app.shelf().boards.dir.as_ref().filter(|_| inside).map(|dir| dir.join(&release.what.dir));
    let card = waiting(move || match dir {
        Some(dir) => tail::small(&dir.join(CARD), CARD_BYTES_MAX).map_err(|error| error.to_string()),
        None => Ok(None),
    })
    .await?;
    let name = &release.what.release;
    let body = html! {
        p { a href="/releases" { "Releases" } }
        h1 { "Model card of " (name) }
        @match card {
            Err(why) => p.wrong { "It cannot be read: " (why) "." },
            Ok(None) => section.card { p { "It is not in the project's directory, where the release is " code { (release.what.dir) } "." } },
            Ok(Some(card)) => {
                @let now = blake3::hash(card.as_bytes()).to_hex();
                @if recorded.as_deref() != Some(now.as_str()) { p.wrong { "This is not the card that was released: the ledger has another hash of it." } }
                (card_of(&card))
            },
        }
    };
    Ok(page::page(&app, &call, "Model card", body))
}

/// A card: the block of facts for programs at its top, if it has one, and the text.
fn card_of(card: &str) -> Markup {
    let (facts, rest) = match card.strip_prefix("---\n").and_then(|rest| rest.split_once("\n---\n")) {
        Some((facts, rest)) => (Some(facts), rest),
        None => (None, card),
    };
    html! {
        article.card.prose {
            @if let Some(facts) = facts { pre.scroll tabindex="0" { (facts) } }
            (text::markdown(rest))
        }
    }
}

async fn lineage_page(app: App, call: Call) -> Outcome<Response> {
    let release = one(&app, call.part("name")).await?;
    if app.shelf().boards.lineage.is_none() {
        return Err(Failure::NotFound);
    }
    let name = page::segment(&release.what.release);
    let body = html! {
        p { a href="/releases" { "Releases" } }
        h1 { "Lineage of " (release.what.release) }
        section.card.scroll tabindex="0" {
            img.lineage src={"/releases/" (name) "/lineage.svg"} alt={"What " (release.what.release) " was made from, from the votes on the left to the release on the right"};
        }
        p.hint { "Drawn now, after every link was compared with what is there. " code { "polity lineage " (release.what.release) } " says the same in words, with what was found wrong." }
    };
    Ok(page::page(&app, &call, "Lineage", body))
}

async fn lineage_svg(app: App, call: Call) -> Outcome<Response> {
    let release = one(&app, call.part("name")).await?;
    let draw = app.shelf().boards.lineage.clone().ok_or(Failure::NotFound)?;
    let _one_at_a_time = app.shelf().drawing.lock().await;
    let drawn = waiting(move || draw(&release.what.release)).await?;
    let svg = drawn.map_err(|why| Failure::Internal(format!("a lineage could not be drawn: {why}")))?;
    let mut response = ([(header::CONTENT_TYPE, "image/svg+xml")], svg).into_response();
    // A file of its own: its colours are in it.
    let policy =
        HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'");
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    Ok(response)
}

async fn releases_api(app: App, _call: Call) -> Outcome<Response> {
    let refusal = |event: Happened| {
        let mut value = if event.body.is_object() { event.body } else { json!({}) };
        value["seq"] = json!(event.seq);
        value["at_ms"] = json!(event.at_ms);
        value["actor"] = json!(event.actor);
        value
    };
    let refusals: Vec<Value> = happened(&app, "refusal").await?.into_iter().map(refusal).collect();
    Ok(json_response(&json!({
        "channels": app.store().channels().await?, "approvals": app.store().approvals().await?, "refusals": refusals,
    })))
}
