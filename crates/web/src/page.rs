//! The frame of every page, and its small parts.
//!
//! maud escapes whatever is put into a page; [`maud::PreEscaped`] appears in `text` (our own tags) and `assets` alone.

use std::time::{Duration, UNIX_EPOCH};

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use maud::{DOCTYPE, Markup, html};
use polity_store::{Answer, Role, Side};

use crate::app::App;
use crate::route::{Access, Call, Who};

/// A link of the head line: where, what it says, and for whom.
const LINKS: &[(&str, &str, Access)] = &[
    ("/compare", "Compare", Access::Roles(&[Role::Annotator])),
    ("/rubric", "Rubric", Access::SignedIn),
    ("/review", "Review", crate::review::REVIEWERS),
    ("/panel", "Panel", crate::review::REVIEWERS),
    ("/calibration", "Known answers", crate::review::REVIEWERS),
    ("/datasets", "Datasets", crate::project::WATCHERS),
    ("/runs", "Runs", crate::project::WATCHERS),
    ("/evaluations", "Evaluations", crate::project::WATCHERS),
    ("/verdicts", "Verdicts", crate::project::WATCHERS),
    ("/releases", "Releases", crate::project::WATCHERS),
    ("/ledger", "Ledger", crate::project::WATCHERS),
    ("/people", "People", Access::Roles(&[])),
    ("/settings", "Settings", Access::Roles(&[])),
];

/// A page.
pub(crate) fn page(app: &App, call: &Call, title: &str, body: Markup) -> Response {
    let here = call.place.split('?').next().unwrap_or("");
    frame(app, call.anyone(), Some(call), here, title, body).into_response()
}

/// A page about a failure, which can come before it is known who asks.
pub(crate) fn error(app: &App, title: &str, message: &str) -> Markup {
    let body = html! {
        section.card.narrow { h1 { (title) } p { (message) } p { a.button href="/" { "Start page" } } }
    };
    frame(app, None, None, "", title, body)
}

fn frame(app: &App, who: Option<&Who>, call: Option<&Call>, here: &str, title: &str, body: Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="robots" content="noindex";
                title { (title) " · " (app.name()) }
                link rel="icon" href="/static/icon.svg" type="image/svg+xml";
                link rel="stylesheet" href="/static/style.css";
                script src="/static/app.js" defer {}
            }
            body {
                a.skip href="#main" { "Skip to the content" }
                header.top {
                    a.brand href="/" { (app.name()) }
                    @if let (Some(who), Some(call)) = (who, call) {
                        nav aria-label="Pages" {
                            @for (href, label, access) in LINKS {
                                @if who.may(*access) {
                                    a href=(href) aria-current=[current(here, href)] { (label) }
                                }
                            }
                        }
                        div.me {
                            a href="/account" aria-current=[current(here, "/account")] { (who.account.name) }
                            (form(call, "/signout", html! { button.quiet type="submit" { "Sign out" } }))
                        }
                    }
                }
                main #main tabindex="-1" { (body) }
            }
        }
    }
}

fn current(here: &str, href: &str) -> Option<&'static str> {
    let under = here.strip_prefix(href).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    under.then_some("page")
}

/// A form that carries its secret.
pub(crate) fn form(call: &Call, action: &str, inside: Markup) -> Markup {
    html! {
        form method="post" action=(action) {
            input type="hidden" name="csrf" value=(call.form_secret);
            (inside)
        }
    }
}

/// A text field with its label.
pub(crate) fn input(name: &str, label: &str, value: &str, kind: &str) -> Markup {
    html! { label { span { (label) } input name=(name) type=(kind) value=(value) autocomplete="off"; } }
}

/// A text area with its label.
pub(crate) fn area(name: &str, label: &str, value: &str, rows: u32) -> Markup {
    html! { label { span { (label) } textarea name=(name) rows=(rows) { "\n" (value) } } }
}

/// Boxes for roles.
pub(crate) fn roles(chosen: &dyn Fn(Role) -> bool) -> Markup {
    html! {
        fieldset.row {
            legend { "Roles" }
            @for role in Role::ALL {
                label.tick { input type="checkbox" name="roles" value=(role.name()) checked[chosen(role)]; span { (role.name()) } }
            }
        }
    }
}

/// "See other", after a form was taken.
pub(crate) fn redirect(to: &str) -> Response {
    let mut response = StatusCode::SEE_OTHER.into_response();
    let to = HeaderValue::from_str(to).unwrap_or(HeaderValue::from_static("/"));
    response.headers_mut().insert(header::LOCATION, to);
    response
}

/// A time, to the minute.
pub(crate) fn time(at_ms: i64) -> String {
    let at = UNIX_EPOCH + Duration::from_millis(at_ms.max(0) as u64);
    let text = humantime::format_rfc3339_seconds(at).to_string();
    format!("{} {} UTC", &text[..10], &text[11..16])
}

/// A span of time, in the unit that fits.
pub(crate) fn span(ms: i64) -> String {
    match ms {
        ..1000 => format!("{ms} ms"),
        1000..60_000 => format!("{:.1} s", ms as f64 / 1000.0),
        60_000..7_200_000 => format!("{:.0} min", ms as f64 / 60_000.0),
        _ => format!("{:.1} h", ms as f64 / 3_600_000.0),
    }
}

/// An answer in words; `left` and `right` are what the two are called where it is shown.
pub(crate) fn answer(answer: Answer, left: &str, right: &str) -> String {
    match answer {
        Answer::Better { side, strength } => {
            let which = if side == Side::Left { left } else { right };
            let how = match strength {
                1 => "slightly",
                2 => "clearly",
                _ => "much",
            };
            format!("{which} {how} better")
        }
        Answer::Tie => "Tie".into(),
        Answer::BothBad => "Both bad".into(),
        Answer::Skip => "Skipped".into(),
        Answer::Flag => "Flagged".into(),
        Answer::Withdrawn => "Taken back".into(),
    }
}

/// A name as one part of a path: everything but letters, digits, `-`, `_` and `~` as percent codes (a dot too, since `..` goes up).
pub(crate) fn segment(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'~');
    name.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// The first characters of a hash or name.
pub(crate) fn short(id: &str) -> String {
    id.chars().take(8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_spans() {
        assert_eq!(time(1_700_000_000_000), "2023-11-14 22:13 UTC");
        assert_eq!(time(-5), "1970-01-01 00:00 UTC");
        assert_eq!(
            [999, 1500, 90_000, 7_200_000].map(span),
            ["999 ms", "1.5 s", "2 min", "2.0 h"].map(String::from)
        );
    }

    #[test]
    fn a_name_is_one_segment() {
        assert_eq!(segment("a/../b?é"), "a%2F%2E%2E%2Fb%3F%C3%A9");
    }

    #[test]
    fn a_link_is_current_on_its_page_and_below() {
        assert_eq!(current("/review/abc", "/review"), Some("page"));
        assert_eq!(current("/reviews", "/review"), None);
    }
}
