//! Accounts and invites, for administrators.

use std::collections::{BTreeMap, BTreeSet};

use axum::response::Response;
use maud::{Markup, html};
use polity_store::{Account, Invite, Role};
use serde_json::{Value, json};

use crate::app::App;
use crate::error::{Failure, Outcome};
use crate::field::{Field, Kind, may, needed};
use crate::page;
use crate::password;
use crate::route::{Access, Call, Route, json_response, route};

const ADMINS: Access = Access::Roles(&[]);
const DAY_MS: i64 = 24 * 3600 * 1000;

const INVITE: &[Field] = &[
    needed("roles", Kind::List, "Roles of the account: admin, annotator, reviewer, approver."),
    may("note", Kind::Text, "For whom."),
    may("days", Kind::Int, "Days until it ends, 7 if not given, 365 at most."),
];
const ROLES: &[Field] = &[may("roles", Kind::List, "All roles of the account from now on.")];
const DISABLED: &[Field] =
    &[needed("disabled", Kind::OneOf(&["yes", "no"]), "Whether the account is shut out.")];

pub(crate) const ROUTES: &[Route] = &[
    route!(GET "/people" ADMINS, "Accounts and invites.", [], [], people),
    route!(POST "/people/invites" ADMINS, "Makes an invite.", *INVITE, [], invite_page),
    route!(POST "/people/invites/{id}/revoke" ADMINS, "Revokes an invite.", [], [], revoke_page),
    route!(POST "/people/{id}/roles" ADMINS, "Sets an account's roles.", *ROLES, [], roles_page),
    route!(POST "/people/{id}/disabled" ADMINS, "Shuts an account out, or lets it in again.", *DISABLED, [], disabled_page),
    route!(POST "/people/{id}/password" ADMINS, "Gives an account a new password, for someone who lost theirs.", [], [], password_page),
    route!(GET "/api/v1/accounts" ADMINS, "All accounts.", [],
        [needed("accounts", Kind::Objects, "`id`, `name`, `roles`, `created_ms`, `disabled_ms`.")], accounts_api),
    route!(POST "/api/v1/accounts/{id}/roles" ADMINS, "Sets an account's roles.", *ROLES,
        [needed("account", Kind::Object, "The account.")], roles_api),
    route!(POST "/api/v1/accounts/{id}/disabled" ADMINS, "Shuts an account out, or lets it in again.", *DISABLED,
        [needed("account", Kind::Object, "The account.")], disabled_api),
    route!(POST "/api/v1/accounts/{id}/password" ADMINS, "Gives an account a new password, for someone who lost theirs.", [],
        [needed("password", Kind::Text, "The new password; never shown again.")], password_api),
    route!(GET "/api/v1/invites" ADMINS, "All invites, without their secrets.", [],
        [needed("invites", Kind::Objects, "`id`, `roles`, `note`, `expires_ms`, `used_by`, `revoked_ms`.")], invites_api),
    route!(POST "/api/v1/invites" ADMINS, "Makes an invite.", *INVITE,
        [needed("path", Kind::Text, "Path of its page, with its secret; never shown again.")], invite_api),
    route!(POST "/api/v1/invites/{id}/revoke" ADMINS, "Revokes an invite.", [],
        [needed("revoked", Kind::Text, "Its id.")], revoke_api),
];

/// A secret that has just been made.
enum New<'a> {
    Invite(&'a str),
    Password(&'a str, &'a str),
}

async fn people(app: App, call: Call) -> Outcome<Response> {
    show(&app, &call, None).await
}

async fn show(app: &App, call: &Call, new: Option<New<'_>>) -> Outcome<Response> {
    let accounts = app.store().accounts().await?;
    let invites = app.store().invites().await?;
    let names: BTreeMap<&str, &str> =
        accounts.iter().map(|account| (account.id.as_str(), account.name.as_str())).collect();
    let invite_fields = html! {
        (page::roles(&|role| role == Role::Annotator))
        label { span { "For whom (a note for you)" } input name="note" maxlength="200"; }
        label { span { "Days until it ends" } input name="days" type="number" min="1" max="365" value="7"; }
        button.primary type="submit" { "Make an invite link" }
    };
    let body = html! {
        h1 { "People" }
        @match new {
            Some(New::Invite(path)) => section.card.notice role="status" {
                h2 { "The invite" }
                p { "Send this link, after the address that people reach this server by. It works once, and is not shown again." }
                p { a.secret href=(path) { (path) } }
            },
            Some(New::Password(name, password)) => section.card.notice role="status" {
                h2 { "New password for " (name) }
                p { "Give it to them by a way that you trust; they can change it under their name. It is not shown again." }
                p { code.secret { (password) } }
            },
            None => {},
        }
        section.card { h2 { "Invite" } (page::form(call, "/people/invites", invite_fields)) }
        (invite_list(call, &invites, &names))
        section.card {
            h2 { "Accounts" }
            @for account in &accounts { (account_row(call, account)) }
        }
    };
    Ok(page::page(app, call, "People", body))
}

fn invite_list(call: &Call, invites: &[Invite], names: &BTreeMap<&str, &str>) -> Markup {
    let open = |invite: &&Invite| {
        invite.used_by.is_none() && invite.revoked_ms.is_none() && invite.expires_ms > call.now_ms
    };
    let used = invites.iter().filter(|invite| invite.used_by.is_some());
    html! {
        @if !invites.is_empty() {
            section.card {
                h2 { "Invites" }
                ul.plain {
                    @for invite in invites.iter().filter(open) {
                        li.spread {
                            span { (role_names(&invite.roles)) @if !invite.note.is_empty() { " · " (invite.note) } " · open until " (page::time(invite.expires_ms)) }
                            (page::form(call, &format!("/people/invites/{}/revoke", invite.id),
                                html! { button.quiet type="submit" { "Revoke" } }))
                        }
                    }
                    @for invite in used {
                        li { (role_names(&invite.roles)) @if !invite.note.is_empty() { " · " (invite.note) } " · used by "
                            (invite.used_by.as_deref().and_then(|id| names.get(id)).unwrap_or(&"?")) }
                    }
                }
            }
        }
    }
}

fn role_names(roles: &BTreeSet<Role>) -> String {
    let names: Vec<&str> = roles.iter().map(|role| role.name()).collect();
    names.join(", ")
}

fn account_row(call: &Call, account: &Account) -> Markup {
    let id = page::segment(&account.id);
    let shut = account.disabled_ms.is_some();
    html! {
        details.person {
            summary {
                strong { (account.name) } " · "
                @if account.roles.is_empty() { "no roles" } @else { (role_names(&account.roles)) }
                @if let Some(at_ms) = account.disabled_ms { " · shut out since " (page::time(at_ms)) }
            }
            div.inset {
                (page::form(call, &format!("/people/{id}/roles"), html! {
                    (page::roles(&|role| account.roles.contains(&role)))
                    button type="submit" { "Set roles" }
                }))
                div.row {
                    (page::form(call, &format!("/people/{id}/disabled"), html! {
                        button type="submit" name="disabled" value=(if shut { "no" } else { "yes" }) {
                            @if shut { "Let in again" } @else { "Shut out" }
                        }
                    }))
                    (page::form(call, &format!("/people/{id}/password"), html! { button type="submit" { "New password" } }))
                    a.button href={"/panel/" (id)} { "Votes and figures" }
                }
            }
        }
    }
}

fn role_set(call: &Call) -> Outcome<BTreeSet<Role>> {
    call.list("roles").into_iter().map(|name| Role::parse(name).map_err(Failure::from)).collect()
}

/// Makes an invite; returns the path of its page.
async fn make_invite(app: &App, call: &Call) -> Outcome<String> {
    let roles = role_set(call)?;
    if roles.is_empty() {
        return Err(Failure::Input("the invite has no role; choose at least one".into()));
    }
    let days = call.int("days").unwrap_or(7);
    if !(1..=365).contains(&days) {
        return Err(Failure::Input(format!("`days` is {days}; expected 1 to 365")));
    }
    let expires_ms = call.now_ms + days * DAY_MS;
    let secret = app.store().add_invite(roles, call.text("note"), call.id(), expires_ms, call.now_ms).await?;
    Ok(format!("/invite/{secret}"))
}

async fn invite_page(app: App, call: Call) -> Outcome<Response> {
    let path = make_invite(&app, &call).await?;
    show(&app, &call, Some(New::Invite(&path))).await
}

async fn invite_api(app: App, call: Call) -> Outcome<Response> {
    Ok(json_response(&json!({"path": make_invite(&app, &call).await?})))
}

async fn revoke(app: &App, call: &Call) -> Outcome<()> {
    Ok(app.store().revoke_invite(call.part("id"), call.id(), call.now_ms).await?)
}

async fn revoke_page(app: App, call: Call) -> Outcome<Response> {
    revoke(&app, &call).await?;
    Ok(page::redirect("/people"))
}

async fn revoke_api(app: App, call: Call) -> Outcome<Response> {
    revoke(&app, &call).await?;
    Ok(json_response(&json!({"revoked": call.part("id")})))
}

async fn set_roles(app: &App, call: &Call) -> Outcome<Account> {
    app.store().set_roles(call.part("id"), role_set(call)?, call.id(), call.now_ms).await?;
    Ok(app.store().account(call.part("id")).await?)
}

async fn roles_page(app: App, call: Call) -> Outcome<Response> {
    set_roles(&app, &call).await?;
    Ok(page::redirect("/people"))
}

async fn roles_api(app: App, call: Call) -> Outcome<Response> {
    Ok(json_response(&json!({"account": set_roles(&app, &call).await?})))
}

async fn set_disabled(app: &App, call: &Call) -> Outcome<Account> {
    let disabled = call.text("disabled") == "yes";
    app.store().set_disabled(call.part("id"), disabled, call.id(), call.now_ms).await?;
    Ok(app.store().account(call.part("id")).await?)
}

async fn disabled_page(app: App, call: Call) -> Outcome<Response> {
    set_disabled(&app, &call).await?;
    Ok(page::redirect("/people"))
}

async fn disabled_api(app: App, call: Call) -> Outcome<Response> {
    Ok(json_response(&json!({"account": set_disabled(&app, &call).await?})))
}

/// A random password for an account, which ends its sessions.
async fn new_password(app: &App, call: &Call) -> Outcome<(Account, String)> {
    let account = app.store().account(call.part("id")).await?;
    // 80 bits in 16 letters, without the ones that look alike.
    let letters = b"abcdefghjkmnpqrstuvwxyz234567892";
    let password: String =
        app.random()[..16].iter().map(|byte| char::from(letters[usize::from(byte % 32)])).collect();
    let phc = password::hash(app, password.clone()).await?;
    app.store().set_password(&account.id, phc, call.id(), call.now_ms).await?;
    Ok((account, password))
}

async fn password_page(app: App, call: Call) -> Outcome<Response> {
    let (account, password) = new_password(&app, &call).await?;
    show(&app, &call, Some(New::Password(&account.name, &password))).await
}

async fn password_api(app: App, call: Call) -> Outcome<Response> {
    let (_, password) = new_password(&app, &call).await?;
    Ok(json_response(&json!({"password": password})))
}

async fn accounts_api(app: App, _call: Call) -> Outcome<Response> {
    Ok(json_response(&json!({"accounts": app.store().accounts().await?})))
}

async fn invites_api(app: App, _call: Call) -> Outcome<Response> {
    let invites: Vec<Value> = app.store().invites().await?.iter().map(|invite| json!(invite)).collect();
    Ok(json_response(&json!({"invites": invites})))
}
