//! Signing up by invite, in, and out.
//!
//! Signing in always begins a new session and ends the one that the browser came with, so a planted cookie is worth nothing
//! afterwards. A wrong name and a wrong password look the same and take the same time.

use axum::http::header;
use axum::response::Response;
use maud::html;
use polity_store::{Account, Role, StoreError};

use crate::app::App;
use crate::cookie;
use crate::error::{Failure, Outcome};
use crate::field::{Kind, may, needed};
use crate::limit::Limit;
use crate::page;
use crate::password;
use crate::route::{Access, Call, Route, route};

/// How long a session lasts.
const SESSION_MS: i64 = 14 * 24 * 3600 * 1000;

pub(crate) const ROUTES: &[Route] = &[
    route!(GET "/" Access::SignedIn, "The start page of an account.", [], [], home),
    route!(GET "/signin" Access::Public, "The form to sign in.",
        [may("next", Kind::Text, "Where to go afterwards, on this server.")], [], sign_in_page),
    route!(POST "/signin" Access::Public, "Signs in.",
        [
            needed("name", Kind::Text, "The account's name."),
            needed("password", Kind::Text, "Its password."),
            may("next", Kind::Text, "Where to go afterwards, on this server."),
        ], [], sign_in),
    route!(POST "/signout" Access::SignedIn, "Ends the session.", [], [], sign_out),
    route!(GET "/invite/{secret}" Access::Public, "The form to make an account with an invite.", [], [], invite_page),
    route!(POST "/invite/{secret}" Access::Public, "Makes an account with an invite.",
        [
            needed("name", Kind::Text, "The new account's name."),
            needed("password", Kind::Text, "Its password."),
        ], [], accept),
];

async fn home(_app: App, call: Call) -> Outcome<Response> {
    Ok(page::redirect(start(&call.who().account)))
}

/// Where an account begins: an administrator at the state of the project, everybody else at their work.
fn start(account: &Account) -> &'static str {
    let has = |role| account.roles.contains(&role);
    match () {
        () if has(Role::Admin) => "/overview",
        () if has(Role::Annotator) => "/compare",
        () if has(Role::Reviewer) => "/review",
        () if has(Role::Approver) => "/overview",
        () => "/account",
    }
}

async fn sign_in_page(app: App, call: Call) -> Outcome<Response> {
    if let Some(who) = call.anyone() {
        return Ok(page::redirect(local(call.text("next")).unwrap_or(start(&who.account))));
    }
    Ok(sign_in_form(&app, &call, None))
}

fn sign_in_form(app: &App, call: &Call, wrong: Option<&str>) -> Response {
    let fields = html! {
        @if let Some(wrong) = wrong { p.wrong role="alert" { (wrong) } }
        @if let Some(next) = local(call.text("next")) { input type="hidden" name="next" value=(next); }
        label { span { "Name" } input name="name" required autocomplete="username" autofocus value=(call.text("name")); }
        label { span { "Password" } input name="password" type="password" required autocomplete="current-password"; }
        button.primary type="submit" { "Sign in" }
    };
    let body = html! {
        section.card.narrow {
            h1 { "Sign in" }
            (page::form(call, "/signin", fields))
            p.hint { "No account? Whoever runs this panel can send you an invite." }
        }
    };
    page::page(app, call, "Sign in", body)
}

async fn sign_in(app: App, call: Call) -> Outcome<Response> {
    let (name, password) = (call.text("name").to_owned(), call.text("password").to_owned());
    limited(&app, Limit::SignInAddress, &call.address, call.now_ms)?;
    limited(&app, Limit::SignInName, &name, call.now_ms)?;
    let known = match app.store().account_by_name(&name).await {
        Ok((account, phc)) => Some((account, phc)),
        Err(StoreError::NotFound { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let (account, phc) = known.map_or((None, None), |(account, phc)| (Some(account), phc));
    let right = password::verify(&app, password, phc).await?;
    match account {
        Some(account) if right && account.disabled_ms.is_none() => {
            app.metrics().sign_in("ok");
            let to = local(call.text("next")).unwrap_or(start(&account));
            begin(&app, &call, &account, to).await
        }
        _ => {
            app.metrics().sign_in("wrong");
            app.log(&format!("a sign-in failed, from {}", call.address));
            let mut response = sign_in_form(&app, &call, Some("Name and password do not fit."));
            *response.status_mut() = axum::http::StatusCode::UNAUTHORIZED;
            Ok(response)
        }
    }
}

fn limited(app: &App, limit: Limit, key: &str, now_ms: i64) -> Outcome<()> {
    app.limits().take(limit, key, now_ms).map_err(|wait_s| {
        app.metrics().sign_in("limited");
        Failure::TooMany(wait_s)
    })
}

/// Begins a session, ends the one that was, and sends the browser on.
pub(crate) async fn begin(app: &App, call: &Call, account: &Account, to: &str) -> Outcome<Response> {
    if let Some(old) = &call.session {
        app.store().end_session(old).await?;
    }
    let (secret, _csrf) =
        app.store().begin_session(&account.id, call.now_ms + SESSION_MS, call.now_ms).await?;
    let mut response = page::redirect(to);
    let headers = response.headers_mut();
    headers.append(
        header::SET_COOKIE,
        cookie::set(app, cookie::session_name(app), &secret, Some(SESSION_MS / 1000)),
    );
    headers.append(header::SET_COOKIE, cookie::set(app, cookie::form_name(app), "", Some(0)));
    Ok(response)
}

async fn sign_out(app: App, call: Call) -> Outcome<Response> {
    if let Some(secret) = &call.session {
        app.store().end_session(secret).await?;
    }
    let mut response = page::redirect("/signin");
    let gone = cookie::set(&app, cookie::session_name(&app), "", Some(0));
    response.headers_mut().append(header::SET_COOKIE, gone);
    Ok(response)
}

async fn invite_page(app: App, call: Call) -> Outcome<Response> {
    let roles = match app.store().invite(call.part("secret"), call.now_ms).await {
        Ok(roles) => roles,
        Err(StoreError::Credential { .. }) => return Err(spent()),
        Err(error) => return Err(error.into()),
    };
    let names: Vec<&str> = roles.iter().map(|role| role.name()).collect();
    let action = format!("/invite/{}", call.part("secret"));
    let fields = html! {
        label { span { "Your name" } input name="name" required maxlength="200" autocomplete="username" autofocus; }
        label {
            span { "A password of " (password::PASSWORD_CHARS_MIN) " characters or more" }
            input name="password" type="password" required minlength=(password::PASSWORD_CHARS_MIN)
                autocomplete="new-password";
        }
        button.primary type="submit" { "Make the account" }
    };
    let body = html! {
        section.card.narrow {
            h1 { "Welcome to " (app.name()) }
            p { "This invite makes an account with the role " strong { (names.join(", ")) } ". It works once." }
            (page::form(&call, &action, fields))
            p.hint { "Reviewers see the name beside your votes. A pseudonym is fine." }
        }
    };
    Ok(page::page(&app, &call, "Welcome", body))
}

async fn accept(app: App, call: Call) -> Outcome<Response> {
    limited(&app, Limit::SignInAddress, &call.address, call.now_ms)?;
    let secret = call.part("secret");
    // Before the costly hash, and without using the invite up.
    if let Err(error) = app.store().invite(secret, call.now_ms).await {
        return Err(if matches!(error, StoreError::Credential { .. }) { spent() } else { error.into() });
    }
    password::check(call.text("password"))?;
    let phc = password::hash(&app, call.text("password").to_owned()).await?;
    let account = match app.store().accept_invite(secret, call.text("name"), phc, call.now_ms).await {
        Ok(account) => account,
        Err(StoreError::Credential { .. }) => return Err(spent()),
        Err(error) => return Err(error.into()),
    };
    begin(&app, &call, &account, start(&account)).await
}

fn spent() -> Failure {
    Failure::Conflict("this invite has been used, revoked, or is too old; ask for a new one".into())
}

/// A path on this server, or nothing: `//host`, `/\host` and whole addresses lead elsewhere.
fn local(next: &str) -> Option<&str> {
    let inside = next.starts_with('/')
        && !next[1..].starts_with(['/', '\\'])
        && next.bytes().all(|b| (0x21..0x7f).contains(&b) && b != b'\\');
    (inside && !next.starts_with("/signin")).then_some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_of_this_server_are_followed() {
        for good in ["/", "/compare", "/review/abc?x=1", "/a/b/../c"] {
            assert_eq!(local(good), Some(good));
        }
        for bad in [
            "",
            "compare",
            "//evil.org",
            "/\\evil.org",
            "/\t/evil.org",
            "https://evil.org",
            "javascript:alert(1)",
            "/a\r\nSet-Cookie: x=y",
            "/%\u{e9}",
            "/ /evil.org",
            "/signin?next=/",
            "\\\\evil.org",
            "/x\\evil",
        ] {
            assert_eq!(local(bad), None, "{bad:?}");
        }
    }
}
