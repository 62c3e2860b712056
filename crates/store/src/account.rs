//! Accounts, roles, invites, sessions and API tokens.
//!
//! The store keeps what must outlive a process and leaves to the server what is its own: hashing passwords (`password` is opaque here),
//! cookies, rate limits. Secrets are returned once, when they are made; the store keeps their BLAKE3 hashes, so a copy of the database opens
//! no session. Every change (roles, invites, passwords, tokens) is an event in the ledger, in the same transaction.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::AnyConnection;
use sqlx::any::AnyRow;

use crate::db::Store;
use crate::error::{Doing, Result, StoreError};
use crate::id::{content_id, secret_hash};
use crate::ledger;
use crate::project::to_json;
use crate::sql::Columns;

/// What an account may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Everything, and other people's roles.
    Admin,
    /// Votes.
    Annotator,
    /// Sees votes, adjudicates.
    Reviewer,
    /// Approves releases.
    Approver,
}

impl Role {
    /// All of them.
    pub const ALL: [Role; 4] = [Role::Admin, Role::Annotator, Role::Reviewer, Role::Approver];

    /// As stored.
    pub fn name(self) -> &'static str {
        match self {
            Role::Admin => "admin",
            Role::Annotator => "annotator",
            Role::Reviewer => "reviewer",
            Role::Approver => "approver",
        }
    }

    /// By its name.
    pub fn parse(name: &str) -> Result<Role> {
        Role::ALL.into_iter().find(|role| role.name() == name).ok_or_else(|| {
            StoreError::invalid("the role", format!("`{name}`"), "admin, annotator, reviewer or approver")
        })
    }
}

/// A person's account.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Account {
    /// Its id, also the id of its annotator.
    pub id: String,
    /// What the person signs in with.
    pub name: String,
    /// What it may do; nothing while it is disabled.
    pub roles: BTreeSet<Role>,
    /// When it was made.
    pub created_ms: i64,
    /// Since when it is shut out.
    pub disabled_ms: Option<i64>,
}

/// An account's session.
#[derive(Clone, Debug, PartialEq)]
pub struct Session {
    /// Whose.
    pub account: Account,
    /// The secret that forms must carry.
    pub csrf: String,
    /// When it ends.
    pub expires_ms: i64,
}

/// An API token, without its secret.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ApiToken {
    /// For revoking.
    pub id: String,
    /// Whose.
    pub account_id: String,
    /// What for.
    pub name: String,
    /// When it was made.
    pub created_ms: i64,
    /// When it ends, if it does.
    pub expires_ms: Option<i64>,
    /// When it was revoked.
    pub revoked_ms: Option<i64>,
}

/// An open invite.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Invite {
    /// Hash of its secret, which names it.
    pub id: String,
    /// What the account will be able to do.
    pub roles: BTreeSet<Role>,
    /// For whom.
    pub note: String,
    /// When it ends.
    pub expires_ms: i64,
    /// Who has used it.
    pub used_by: Option<String>,
    /// When it was revoked.
    pub revoked_ms: Option<i64>,
}

/// Kinds of annotators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnnotatorKind {
    /// A person.
    Human,
    /// A model. Its votes never count as human.
    Machine,
    /// A simulated annotator, which counts as a machine too.
    Simulated,
}

impl AnnotatorKind {
    /// As stored.
    pub fn name(self) -> &'static str {
        match self {
            AnnotatorKind::Human => "human",
            AnnotatorKind::Machine => "machine",
            AnnotatorKind::Simulated => "simulated",
        }
    }

    pub(crate) fn parse(name: &str) -> Result<AnnotatorKind> {
        [AnnotatorKind::Human, AnnotatorKind::Machine, AnnotatorKind::Simulated]
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| StoreError::Damaged {
                place: "an annotator's kind".into(),
                found: format!("`{name}`"),
            })
    }
}

/// Someone who votes: an account, or a name in an imported file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Annotator {
    /// Its id.
    pub id: String,
    /// As shown to reviewers.
    pub name: String,
    /// A person or a program.
    pub kind: AnnotatorKind,
    /// The account that votes as this annotator.
    pub account_id: Option<String>,
}

impl Store {
    /// Makes an account without an invite: the first administrator, from the command line.
    pub async fn add_account(
        &self,
        name: &str,
        password: Option<String>,
        roles: BTreeSet<Role>,
        actor: &str,
        now_ms: i64,
    ) -> Result<Account> {
        let (name, actor) = (name.to_owned(), actor.to_owned());
        self.write(move |connection| {
            Box::pin(async move { add_account(connection, &name, password, &roles, &actor, now_ms).await })
        })
        .await
    }

    /// Makes an invite and returns its secret, which goes into the link; an event.
    pub async fn add_invite(
        &self,
        roles: BTreeSet<Role>,
        note: &str,
        actor: &str,
        expires_ms: i64,
        now_ms: i64,
    ) -> Result<String> {
        let secret = self.secret();
        let (hash, note, actor) = (secret_hash(&secret), note.to_owned(), actor.to_owned());
        self.write(move |connection| {
            Box::pin(async move {
                sqlx::query(
                    "INSERT INTO invite(token_hash, roles, note, created_by, created_ms, expires_ms) VALUES ($1, $2, $3, $4, $5, $6)",
                )
                .bind(hash.clone())
                .bind(to_json(&roles))
                .bind(note.clone())
                .bind(actor.clone())
                .bind(now_ms)
                .bind(expires_ms)
                .execute(&mut *connection)
                .await
                .doing("make an invite")?;
                let body = json!({"invite": {"id": hash, "roles": roles, "note": note, "expires_ms": expires_ms}});
                ledger::append(connection, "role", &actor, &body, now_ms).await.map(|_| ())
            })
        })
        .await?;
        Ok(secret)
    }

    /// All invites, newest first.
    pub async fn invites(&self) -> Result<Vec<Invite>> {
        self.read(|connection| {
            Box::pin(async move {
                sqlx::query("SELECT * FROM invite ORDER BY created_ms DESC, token_hash")
                    .fetch_all(connection)
                    .await
                    .doing("list invites")?
                    .iter()
                    .map(|row| {
                        Ok(Invite {
                            id: row.text("token_hash")?,
                            roles: row.json("roles")?,
                            note: row.text("note")?,
                            expires_ms: row.int("expires_ms")?,
                            used_by: row.text_or_null("used_by")?,
                            revoked_ms: row.int_or_null("revoked_ms")?,
                        })
                    })
                    .collect()
            })
        })
        .await
    }

    /// Revokes an open invite by its id; an event.
    pub async fn revoke_invite(&self, id: &str, actor: &str, now_ms: i64) -> Result<()> {
        let (id, actor) = (id.to_owned(), actor.to_owned());
        self.write(move |connection| {
            Box::pin(async move {
                let changed = sqlx::query(
                    "UPDATE invite SET revoked_ms = $1 WHERE token_hash = $2 AND used_by IS NULL AND revoked_ms IS NULL",
                )
                .bind(now_ms)
                .bind(id.clone())
                .execute(&mut *connection)
                .await
                .doing("revoke an invite")?;
                if changed.rows_affected() == 0 {
                    return Err(StoreError::not_found("open invite", id));
                }
                let body = json!({"invite_revoked": id});
                ledger::append(connection, "role", &actor, &body, now_ms).await.map(|_| ())
            })
        })
        .await
    }

    /// Whether an invite's secret is good: what it grants.
    pub async fn invite(&self, secret: &str, now_ms: i64) -> Result<BTreeSet<Role>> {
        let hash = secret_hash(secret);
        self.read(move |connection| Box::pin(async move { invite(connection, &hash, now_ms).await })).await
    }

    /// Turns an invite into an account; an invite works once.
    pub async fn accept_invite(
        &self,
        secret: &str,
        name: &str,
        password: String,
        now_ms: i64,
    ) -> Result<Account> {
        let (hash, name) = (secret_hash(secret), name.to_owned());
        self.write(move |connection| {
            Box::pin(async move {
                let roles = invite(connection, &hash, now_ms).await?;
                let account =
                    add_account(connection, &name, Some(password), &roles, "invite", now_ms).await?;
                sqlx::query("UPDATE invite SET used_by = $1, used_ms = $2 WHERE token_hash = $3")
                    .bind(account.id.clone())
                    .bind(now_ms)
                    .bind(hash)
                    .execute(connection)
                    .await
                    .doing("use an invite")?;
                Ok(account)
            })
        })
        .await
    }

    /// All accounts, by name.
    pub async fn accounts(&self) -> Result<Vec<Account>> {
        self.read(|connection| {
            Box::pin(async move {
                let rows = sqlx::query("SELECT * FROM account ORDER BY name")
                    .fetch_all(&mut *connection)
                    .await
                    .doing("list accounts")?;
                let mut accounts = Vec::with_capacity(rows.len());
                for row in &rows {
                    accounts.push(with_roles(connection, row).await?);
                }
                Ok(accounts)
            })
        })
        .await
    }

    /// An account by id.
    pub async fn account(&self, id: &str) -> Result<Account> {
        let id = id.to_owned();
        self.read(move |connection| Box::pin(async move { account(connection, &id).await })).await
    }

    /// An account by the name it signs in with, and its password hash.
    pub async fn account_by_name(&self, name: &str) -> Result<(Account, Option<String>)> {
        let name = name.to_owned();
        self.read(move |connection| {
            Box::pin(async move {
                let row = sqlx::query("SELECT * FROM account WHERE name = $1")
                    .bind(name.clone())
                    .fetch_optional(&mut *connection)
                    .await
                    .doing("find an account")?
                    .ok_or_else(|| StoreError::not_found("account", name))?;
                Ok((with_roles(connection, &row).await?, row.text_or_null("password")?))
            })
        })
        .await
    }

    /// Replaces a password's hash and ends all sessions of the account; an event.
    pub async fn set_password(
        &self,
        account_id: &str,
        password: String,
        actor: &str,
        now_ms: i64,
    ) -> Result<()> {
        let (id, actor) = (account_id.to_owned(), actor.to_owned());
        self.write(move |connection| {
            Box::pin(async move {
                let changed = sqlx::query("UPDATE account SET password = $1 WHERE id = $2")
                    .bind(password)
                    .bind(id.clone())
                    .execute(&mut *connection)
                    .await
                    .doing("set a password")?;
                if changed.rows_affected() == 0 {
                    return Err(StoreError::not_found("account", id));
                }
                end_sessions(connection, &id).await?;
                let body =
                    json!({"account": id, "password": if id == actor { "changed" } else { "replaced" }});
                ledger::append(connection, "role", &actor, &body, now_ms).await.map(|_| ())
            })
        })
        .await
    }

    /// Sets an account's roles; an event. The last administrator stays one.
    pub async fn set_roles(
        &self,
        account_id: &str,
        roles: BTreeSet<Role>,
        actor: &str,
        now_ms: i64,
    ) -> Result<()> {
        let (id, actor) = (account_id.to_owned(), actor.to_owned());
        self.write(move |connection| {
            Box::pin(async move {
                account(connection, &id).await?;
                sqlx::query("DELETE FROM account_role WHERE account_id = $1")
                    .bind(id.clone())
                    .execute(&mut *connection)
                    .await
                    .doing("set roles")?;
                grant(connection, &id, &roles, &actor, now_ms).await?;
                require_an_admin(connection).await?;
                let body = json!({"account": id, "roles": roles});
                ledger::append(connection, "role", &actor, &body, now_ms).await.map(|_| ())
            })
        })
        .await
    }

    /// Shuts an account out, or lets it in again; an event. Its sessions end.
    pub async fn set_disabled(
        &self,
        account_id: &str,
        disabled: bool,
        actor: &str,
        now_ms: i64,
    ) -> Result<()> {
        let (id, actor) = (account_id.to_owned(), actor.to_owned());
        self.write(move |connection| {
            Box::pin(async move {
                account(connection, &id).await?;
                sqlx::query("UPDATE account SET disabled_ms = $1 WHERE id = $2")
                    .bind(disabled.then_some(now_ms))
                    .bind(id.clone())
                    .execute(&mut *connection)
                    .await
                    .doing("disable an account")?;
                require_an_admin(connection).await?;
                end_sessions(connection, &id).await?;
                let body = json!({"account": id, "disabled": disabled});
                ledger::append(connection, "role", &actor, &body, now_ms).await.map(|_| ())
            })
        })
        .await
    }

    /// Begins a session; returns the cookie's secret and the forms' secret. Signing in always makes a new one.
    pub async fn begin_session(
        &self,
        account_id: &str,
        expires_ms: i64,
        now_ms: i64,
    ) -> Result<(String, String)> {
        let (secret, csrf) = (self.secret(), self.secret());
        let (id, hash, form) = (account_id.to_owned(), secret_hash(&secret), csrf.clone());
        self.write(move |connection| {
            Box::pin(async move {
                if account(connection, &id).await?.disabled_ms.is_some() {
                    return Err(StoreError::Credential { what: "account" });
                }
                sqlx::query("DELETE FROM login_session WHERE expires_ms <= $1")
                    .bind(now_ms)
                    .execute(&mut *connection)
                    .await
                    .doing("end old sessions")?;
                sqlx::query(
                    "INSERT INTO login_session(token_hash, account_id, csrf, created_ms, seen_ms, expires_ms) \
                     VALUES ($1, $2, $3, $4, $5, $6)",
                )
                .bind(hash)
                .bind(id)
                .bind(form)
                .bind(now_ms)
                .bind(now_ms)
                .bind(expires_ms)
                .execute(connection)
                .await
                .doing("begin a session")
                .map(|_| ())
            })
        })
        .await?;
        Ok((secret, csrf))
    }

    /// The session of a cookie's secret; fails if it has ended or its account is disabled.
    pub async fn session(&self, secret: &str, now_ms: i64) -> Result<Session> {
        let hash = secret_hash(secret);
        self.read(move |connection| {
            Box::pin(async move {
                let row =
                    sqlx::query("SELECT * FROM login_session WHERE token_hash = $1 AND expires_ms > $2")
                        .bind(hash)
                        .bind(now_ms)
                        .fetch_optional(&mut *connection)
                        .await
                        .doing("find a session")?
                        .ok_or(StoreError::Credential { what: "session" })?;
                let account = account(connection, &row.text("account_id")?).await?;
                if account.disabled_ms.is_some() {
                    return Err(StoreError::Credential { what: "session" });
                }
                Ok(Session { account, csrf: row.text("csrf")?, expires_ms: row.int("expires_ms")? })
            })
        })
        .await
    }

    /// Ends one session.
    pub async fn end_session(&self, secret: &str) -> Result<()> {
        let hash = secret_hash(secret);
        self.write(move |connection| {
            Box::pin(async move {
                sqlx::query("DELETE FROM login_session WHERE token_hash = $1")
                    .bind(hash)
                    .execute(connection)
                    .await
                    .doing("end a session")
                    .map(|_| ())
            })
        })
        .await
    }

    /// Makes an API token and returns it with its secret; an event.
    pub async fn add_token(
        &self,
        account_id: &str,
        name: &str,
        expires_ms: Option<i64>,
        now_ms: i64,
    ) -> Result<(ApiToken, String)> {
        let secret = self.secret();
        let hash = secret_hash(&secret);
        let token = ApiToken {
            id: content_id("polity token 1", &[&hash]),
            account_id: account_id.to_owned(),
            name: name.to_owned(),
            created_ms: now_ms,
            expires_ms,
            revoked_ms: None,
        };
        let new = token.clone();
        self.write(move |connection| {
            Box::pin(async move {
                account(connection, &new.account_id).await?;
                sqlx::query(
                    "INSERT INTO api_token(id, token_hash, account_id, name, created_ms, expires_ms) VALUES ($1, $2, $3, $4, $5, $6)",
                )
                .bind(new.id.clone())
                .bind(hash)
                .bind(new.account_id.clone())
                .bind(new.name)
                .bind(now_ms)
                .bind(expires_ms)
                .execute(&mut *connection)
                .await
                .doing("make a token")?;
                let body = json!({"account": new.account_id, "token": new.id, "expires_ms": expires_ms});
                ledger::append(connection, "role", &new.account_id, &body, now_ms).await.map(|_| ())
            })
        })
        .await?;
        Ok((token, secret))
    }

    /// The account that a token's secret speaks for.
    pub async fn token_account(&self, secret: &str, now_ms: i64) -> Result<Account> {
        let hash = secret_hash(secret);
        self.read(move |connection| {
            Box::pin(async move {
                let row = sqlx::query(
                    "SELECT account_id FROM api_token WHERE token_hash = $1 AND revoked_ms IS NULL \
                     AND (expires_ms IS NULL OR expires_ms > $2)",
                )
                .bind(hash)
                .bind(now_ms)
                .fetch_optional(&mut *connection)
                .await
                .doing("find a token")?
                .ok_or(StoreError::Credential { what: "token" })?;
                let account = account(connection, &row.text("account_id")?).await?;
                match account.disabled_ms {
                    None => Ok(account),
                    Some(_) => Err(StoreError::Credential { what: "token" }),
                }
            })
        })
        .await
    }

    /// Tokens of an account, newest first.
    pub async fn tokens(&self, account_id: &str) -> Result<Vec<ApiToken>> {
        let id = account_id.to_owned();
        self.read(move |connection| {
            Box::pin(async move {
                sqlx::query("SELECT * FROM api_token WHERE account_id = $1 ORDER BY created_ms DESC, id")
                    .bind(id)
                    .fetch_all(connection)
                    .await
                    .doing("list tokens")?
                    .iter()
                    .map(|row| {
                        Ok(ApiToken {
                            id: row.text("id")?,
                            account_id: row.text("account_id")?,
                            name: row.text("name")?,
                            created_ms: row.int("created_ms")?,
                            expires_ms: row.int_or_null("expires_ms")?,
                            revoked_ms: row.int_or_null("revoked_ms")?,
                        })
                    })
                    .collect()
            })
        })
        .await
    }

    /// Revokes a token of an account; an event.
    pub async fn revoke_token(&self, account_id: &str, token_id: &str, now_ms: i64) -> Result<()> {
        let (account_id, id) = (account_id.to_owned(), token_id.to_owned());
        self.write(move |connection| {
            Box::pin(async move {
                let changed = sqlx::query(
                    "UPDATE api_token SET revoked_ms = $1 WHERE id = $2 AND account_id = $3 AND revoked_ms IS NULL",
                )
                .bind(now_ms)
                .bind(id.clone())
                .bind(account_id.clone())
                .execute(&mut *connection)
                .await
                .doing("revoke a token")?;
                if changed.rows_affected() == 0 {
                    return Err(StoreError::not_found("token", id));
                }
                let body = json!({"account": account_id, "token_revoked": id});
                ledger::append(connection, "role", &account_id, &body, now_ms).await.map(|_| ())
            })
        })
        .await
    }

    /// Adds an annotator without an account (a model, a simulated one, a name in a file), or leaves it as it is.
    pub async fn add_annotator(
        &self,
        id: &str,
        name: &str,
        kind: AnnotatorKind,
        now_ms: i64,
    ) -> Result<Annotator> {
        let annotator = Annotator { id: id.to_owned(), name: name.to_owned(), kind, account_id: None };
        let new = annotator.clone();
        self.write(move |connection| Box::pin(async move { add_annotator(connection, &new, now_ms).await }))
            .await?;
        Ok(annotator)
    }

    /// All annotators, by id.
    pub async fn annotators(&self) -> Result<Vec<Annotator>> {
        self.read(|connection| {
            Box::pin(async move {
                sqlx::query("SELECT * FROM annotator ORDER BY id")
                    .fetch_all(connection)
                    .await
                    .doing("list annotators")?
                    .iter()
                    .map(annotator_from)
                    .collect()
            })
        })
        .await
    }
}

pub(crate) async fn add_annotator(
    connection: &mut AnyConnection,
    annotator: &Annotator,
    now_ms: i64,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO annotator(id, name, kind, account_id, created_ms) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
    )
    .bind(annotator.id.clone())
    .bind(annotator.name.clone())
    .bind(annotator.kind.name())
    .bind(annotator.account_id.clone())
    .bind(now_ms)
    .execute(connection)
    .await
    .doing("add an annotator")
    .map(|_| ())
}

pub(crate) async fn annotator(connection: &mut AnyConnection, id: &str) -> Result<Annotator> {
    let row = sqlx::query("SELECT * FROM annotator WHERE id = $1")
        .bind(id.to_owned())
        .fetch_optional(connection)
        .await
        .doing("find an annotator")?;
    annotator_from(&row.ok_or_else(|| StoreError::not_found("annotator", id))?)
}

fn annotator_from(row: &AnyRow) -> Result<Annotator> {
    Ok(Annotator {
        id: row.text("id")?,
        name: row.text("name")?,
        kind: AnnotatorKind::parse(&row.text("kind")?)?,
        account_id: row.text_or_null("account_id")?,
    })
}

async fn add_account(
    connection: &mut AnyConnection,
    name: &str,
    password: Option<String>,
    roles: &BTreeSet<Role>,
    actor: &str,
    now_ms: i64,
) -> Result<Account> {
    let trimmed = name.trim();
    if trimmed.is_empty() || trimmed != name || name.chars().any(char::is_control) || name.len() > 200 {
        return Err(StoreError::invalid(
            "the account's name",
            format!("`{}`", name.escape_default()),
            "1 to 200 bytes without control characters or white space around them",
        ));
    }
    let id = content_id("polity account 1", &[name]);
    let made = sqlx::query(
        "INSERT INTO account(id, name, password, created_ms) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
    )
    .bind(id.clone())
    .bind(name.to_owned())
    .bind(password)
    .bind(now_ms)
    .execute(&mut *connection)
    .await
    .doing("make an account")?;
    if made.rows_affected() == 0 {
        return Err(StoreError::refused(format!("an account named `{name}`"), "the name is taken"));
    }
    grant(connection, &id, roles, actor, now_ms).await?;
    let annotator = Annotator {
        id: id.clone(),
        name: name.to_owned(),
        kind: AnnotatorKind::Human,
        account_id: Some(id.clone()),
    };
    add_annotator(connection, &annotator, now_ms).await?;
    let body = json!({"account": id, "roles": roles});
    ledger::append(connection, "role", actor, &body, now_ms).await?;
    account(connection, &id).await
}

async fn grant(
    connection: &mut AnyConnection,
    id: &str,
    roles: &BTreeSet<Role>,
    actor: &str,
    now_ms: i64,
) -> Result<()> {
    for role in roles {
        sqlx::query(
            "INSERT INTO account_role(account_id, role, granted_by, granted_ms) VALUES ($1, $2, $3, $4)",
        )
        .bind(id.to_owned())
        .bind(role.name())
        .bind(actor.to_owned())
        .bind(now_ms)
        .execute(&mut *connection)
        .await
        .doing("grant a role")?;
    }
    Ok(())
}

/// A project whose last administrator is gone could never have another.
async fn require_an_admin(connection: &mut AnyConnection) -> Result<()> {
    let admins = sqlx::query(
        "SELECT COUNT(*) AS n FROM account a JOIN account_role r ON r.account_id = a.id \
         WHERE r.role = 'admin' AND a.disabled_ms IS NULL",
    )
    .fetch_one(connection)
    .await
    .doing("count administrators")?
    .int("n")?;
    match admins {
        0 => Err(StoreError::refused("this change", "it would leave the project without an administrator")),
        _ => Ok(()),
    }
}

async fn end_sessions(connection: &mut AnyConnection, account_id: &str) -> Result<()> {
    sqlx::query("DELETE FROM login_session WHERE account_id = $1")
        .bind(account_id.to_owned())
        .execute(connection)
        .await
        .doing("end sessions")
        .map(|_| ())
}

async fn invite(connection: &mut AnyConnection, hash: &str, now_ms: i64) -> Result<BTreeSet<Role>> {
    sqlx::query(
        "SELECT roles FROM invite WHERE token_hash = $1 AND used_by IS NULL AND revoked_ms IS NULL AND expires_ms > $2",
    )
    .bind(hash.to_owned())
    .bind(now_ms)
    .fetch_optional(connection)
    .await
    .doing("find an invite")?
    .ok_or(StoreError::Credential { what: "invite" })?
    .json("roles")
}

pub(crate) async fn account(connection: &mut AnyConnection, id: &str) -> Result<Account> {
    let row = sqlx::query("SELECT * FROM account WHERE id = $1")
        .bind(id.to_owned())
        .fetch_optional(&mut *connection)
        .await
        .doing("find an account")?
        .ok_or_else(|| StoreError::not_found("account", id))?;
    with_roles(connection, &row).await
}

async fn with_roles(connection: &mut AnyConnection, row: &AnyRow) -> Result<Account> {
    let id = row.text("id")?;
    let roles = sqlx::query("SELECT role FROM account_role WHERE account_id = $1")
        .bind(id.clone())
        .fetch_all(connection)
        .await
        .doing("read roles")?
        .iter()
        .map(|row| Role::parse(&row.text("role")?))
        .collect::<Result<_>>()?;
    Ok(Account {
        id,
        name: row.text("name")?,
        roles,
        created_ms: row.int("created_ms")?,
        disabled_ms: row.int_or_null("disabled_ms")?,
    })
}
