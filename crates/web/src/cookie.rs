//! The two cookies: a session's secret, and the secret of forms before there is a session.
//!
//! Both are `HttpOnly` and `SameSite=Lax`. Behind TLS they are `Secure` and named `__Host-…`, so that no other host of the domain
//! can plant one.

use axum::http::{HeaderMap, HeaderValue, header};

use crate::app::App;

pub(crate) fn session_name(app: &App) -> &'static str {
    if app.behind_proxy() { "__Host-polity" } else { "polity" }
}

pub(crate) fn form_name(app: &App) -> &'static str {
    if app.behind_proxy() { "__Host-polity-form" } else { "polity-form" }
}

/// Whether a value looks like one of our secrets: 64 hex digits.
pub(crate) fn is_secret(value: &str) -> bool {
    value.len() == 64 && value.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// The cookies of a request.
pub(crate) struct Cookies(Vec<(String, String)>);

impl Cookies {
    pub(crate) fn read(headers: &HeaderMap) -> Cookies {
        let values = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let pairs = values.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
        Cookies(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// A `Set-Cookie` value; without an age it lasts as long as the browser, with 0 it is deleted.
pub(crate) fn set(app: &App, name: &str, secret: &str, age_s: Option<i64>) -> HeaderValue {
    let age = age_s.map(|age_s| format!("; Max-Age={age_s}")).unwrap_or_default();
    let secure = if app.behind_proxy() { "; Secure" } else { "" };
    let mut value =
        HeaderValue::from_str(&format!("{name}={secret}; Path=/; HttpOnly; SameSite=Lax{age}{secure}"))
            .expect("names and secrets are ASCII");
    value.set_sensitive(true);
    value
}
