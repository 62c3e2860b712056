//! A part of a page that stays up to date.
//!
//! The page is whole as it is; reloading it shows the present. Where scripts run, `app.js` asks the same address for the part alone, every few
//! seconds while the page is visible, and puts it in place. `seen` names what the page shows, so an answer is sent only when
//! something has changed. Asking again rather than holding a connection open goes through every proxy, and each answer is checked against the
//! session and its role.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};

use crate::route::Call;

/// What a page is asked again with.
pub(crate) const SEEN: crate::field::Field = crate::field::may(
    "seen",
    crate::field::Kind::Text,
    "The part of the page that is shown, for its successor alone.",
);

/// How often it is asked for while something happens, and while something might begin.
pub(crate) const OFTEN_S: u32 = 2;
pub(crate) const SELDOM_S: u32 = 10;

/// The part; it is asked for again after so many seconds, or not at all.
pub(crate) fn part(call: &Call, every_s: Option<u32>, inside: &Markup) -> Markup {
    // The address without the name of what was shown, if this is the successor.
    let place = call.place.split("&seen=").next().and_then(|place| place.split("?seen=").next());
    html! {
        div #live data-live=[place.filter(|_| every_s.is_some())] data-every=[every_s] data-seen=(name(every_s, inside)) {
            (inside)
            @if every_s.is_some() { p.hint.when { "Kept up to date while this page is open; without scripts, reload it." } }
        }
    }
}

/// The part alone, for a page that shows another one; nothing if it shows this one.
pub(crate) fn answer(call: &Call, every_s: Option<u32>, inside: &Markup) -> Option<Response> {
    call.get(SEEN.name)?;
    if call.text(SEEN.name) == name(every_s, inside) {
        return Some(StatusCode::NO_CONTENT.into_response());
    }
    let html = [(header::CONTENT_TYPE, "text/html; charset=utf-8")];
    Some((html, part(call, every_s, inside).into_string()).into_response())
}

fn name(every_s: Option<u32>, inside: &Markup) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&every_s.unwrap_or(0).to_le_bytes()).update(inside.0.as_bytes());
    hasher.finalize().to_hex()[..16].to_owned()
}
