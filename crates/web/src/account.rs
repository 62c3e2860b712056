//! One's own account: the password and the API tokens.

use axum::response::Response;
use maud::{Markup, html};
use polity_store::ApiToken;
use serde_json::{Value, json};

use crate::app::App;
use crate::error::{Failure, Outcome};
use crate::field::{Kind, may, needed};
use crate::limit::Limit;
use crate::page;
use crate::password;
use crate::route::{Access, Call, Route, json_response, route};
use crate::session;

const DAY_MS: i64 = 24 * 3600 * 1000;

pub(crate) const ROUTES: &[Route] = &[
    route!(GET "/account" Access::SignedIn, "One's own account.", [], [], account_page),
    route!(POST "/account/password" Access::SignedIn, "Changes one's own password and ends all sessions.",
        [
            needed("password", Kind::Text, "The password as it is."),
            needed("new_password", Kind::Text, "The password to be."),
        ], [], change_password),
    route!(POST "/account/tokens" Access::SignedIn, "Makes an API token.",
        [
            needed("name", Kind::Text, "What the token is for."),
            may("days", Kind::Int, "Days until it ends; without, it does not end."),
        ], [], make_token_page),
    route!(POST "/account/tokens/{id}/revoke" Access::SignedIn, "Revokes an API token.", [], [], revoke_token_page),
    route!(GET "/api/v1/me" Access::SignedIn, "The account that the token speaks for.", [],
        [
            needed("id", Kind::Text, "Its id, also that of its annotator."),
            needed("name", Kind::Text, "Its name."),
            needed("roles", Kind::List, "What it may do."),
        ], me),
    route!(GET "/api/v1/tokens" Access::SignedIn, "One's own tokens, without their secrets.", [],
        [needed("tokens", Kind::Objects, "Newest first.")], tokens),
    route!(POST "/api/v1/tokens" Access::SignedIn, "Makes an API token.",
        [
            needed("name", Kind::Text, "What the token is for."),
            may("days", Kind::Int, "Days until it ends; without, it does not end."),
        ],
        [
            needed("token", Kind::Object, "The token, without its secret."),
            needed("secret", Kind::Text, "Its secret; never shown again."),
        ], make_token),
    route!(POST "/api/v1/tokens/{id}/revoke" Access::SignedIn, "Revokes one of one's own tokens.", [],
        [needed("revoked", Kind::Text, "Its id.")], revoke_token),
];

async fn account_page(app: App, call: Call) -> Outcome<Response> {
    let tokens = app.store().tokens(call.id()).await?;
    Ok(show(&app, &call, &tokens, None))
}

fn show(app: &App, call: &Call, tokens: &[ApiToken], new: Option<&str>) -> Response {
    let account = &call.who().account;
    let roles: Vec<&str> = account.roles.iter().map(|role| role.name()).collect();
    let password_fields = html! {
        label { span { "Password now" } input name="password" type="password" required autocomplete="current-password"; }
        label {
            span { "New password, " (password::PASSWORD_CHARS_MIN) " characters or more" }
            input name="new_password" type="password" required minlength=(password::PASSWORD_CHARS_MIN) autocomplete="new-password";
        }
        button type="submit" { "Change the password" }
        p.hint { "All sessions end, this one too; it begins again at once." }
    };
    let token_fields = html! {
        label { span { "What for" } input name="name" required maxlength="200"; }
        label { span { "Days until it ends" } input name="days" type="number" min="1" max="3650" value="90"; }
        button type="submit" { "Make a token" }
    };
    let body = html! {
        h1 { (account.name) }
        p { "Roles: " (roles.join(", ")) @if roles.is_empty() { "none yet" } ". Since " (page::time(account.created_ms)) "." }
        @if let Some(secret) = new {
            section.card.notice role="status" {
                h2 { "The new token" }
                p { "Copy it now; it is not shown again." }
                p { code.secret { (secret) } }
            }
        }
        div.columns {
            section.card { h2 { "Password" } (page::form(call, "/account/password", password_fields)) }
            section.card {
                h2 { "API tokens" }
                p { "For programs that act as you: " a href="/api/v1/openapi.json" { "what they can do" } "." }
                (token_list(call, tokens))
                (page::form(call, "/account/tokens", token_fields))
            }
        }
    };
    page::page(app, call, "Account", body)
}

fn token_list(call: &Call, tokens: &[ApiToken]) -> Markup {
    html! {
        @if !tokens.is_empty() {
            ul.plain {
                @for token in tokens {
                    li.spread {
                        span {
                            strong { (token.name) } " · since " (page::time(token.created_ms))
                            @match (token.revoked_ms, token.expires_ms) {
                                (Some(at_ms), _) => { " · revoked " (page::time(at_ms)) },
                                (None, Some(at_ms)) => { " · until " (page::time(at_ms)) },
                                (None, None) => {},
                            }
                        }
                        @if token.revoked_ms.is_none() {
                            (page::form(call, &format!("/account/tokens/{}/revoke", token.id),
                                html! { button.quiet type="submit" { "Revoke" } }))
                        }
                    }
                }
            }
        }
    }
}

async fn change_password(app: App, call: Call) -> Outcome<Response> {
    let account = call.who().account.clone();
    app.limits().take(Limit::SignInName, &account.name, call.now_ms).map_err(Failure::TooMany)?;
    let (_, phc) = app.store().account_by_name(&account.name).await?;
    if !password::verify(&app, call.text("password").to_owned(), phc).await? {
        return Err(Failure::Input("the password that you gave is not the one of this account".into()));
    }
    password::check(call.text("new_password"))?;
    let phc = password::hash(&app, call.text("new_password").to_owned()).await?;
    app.store().set_password(&account.id, phc, call.id(), call.now_ms).await?;
    session::begin(&app, &call, &account, "/account").await
}

async fn make(app: &App, call: &Call) -> Outcome<(ApiToken, String)> {
    let name = call.text("name").trim();
    if name.is_empty() {
        return Err(Failure::Input("the token's name is empty; say what it is for".into()));
    }
    let expires_ms = match call.int("days") {
        Some(days) if !(1..=3650).contains(&days) => {
            return Err(Failure::Input(format!("`days` is {days}; expected 1 to 3650")));
        }
        days => days.map(|days| call.now_ms + days * DAY_MS),
    };
    Ok(app.store().add_token(call.id(), name, expires_ms, call.now_ms).await?)
}

async fn revoke(app: &App, call: &Call) -> Outcome<()> {
    Ok(app.store().revoke_token(call.id(), call.part("id"), call.now_ms).await?)
}

async fn make_token_page(app: App, call: Call) -> Outcome<Response> {
    let (_, secret) = make(&app, &call).await?;
    let tokens = app.store().tokens(call.id()).await?;
    Ok(show(&app, &call, &tokens, Some(&secret)))
}

async fn revoke_token_page(app: App, call: Call) -> Outcome<Response> {
    revoke(&app, &call).await?;
    Ok(page::redirect("/account"))
}

async fn me(_app: App, call: Call) -> Outcome<Response> {
    let account = &call.who().account;
    Ok(json_response(&json!({"id": account.id, "name": account.name, "roles": account.roles})))
}

fn without_account(token: &ApiToken) -> Value {
    json!({
        "id": token.id, "name": token.name, "created_ms": token.created_ms, "expires_ms": token.expires_ms,
        "revoked_ms": token.revoked_ms,
    })
}

async fn tokens(app: App, call: Call) -> Outcome<Response> {
    let tokens = app.store().tokens(call.id()).await?;
    Ok(json_response(&json!({"tokens": tokens.iter().map(without_account).collect::<Vec<_>>()})))
}

async fn make_token(app: App, call: Call) -> Outcome<Response> {
    let (token, secret) = make(&app, &call).await?;
    Ok(json_response(&json!({"token": without_account(&token), "secret": secret})))
}

async fn revoke_token(app: App, call: Call) -> Outcome<Response> {
    revoke(&app, &call).await?;
    Ok(json_response(&json!({"revoked": call.part("id")})))
}
