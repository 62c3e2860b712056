//! The ledger: a chain of hashes over every event that governs the data.
//!
//! Event `n` holds a time, a kind, an actor, a body (JSON as stored), the previous event's hash, and
//!
//! ```text
//! hash = BLAKE3("polity ledger 1", n, at_ms, kind, actor, body, prev)      each part with its length before it (see `id`)
//! ```
//!
//! with `prev` of the first event 64 zeros and numbers written in decimal. Bodies bind what they vouch for: a `votes` event the chain hash
//! of the last vote it seals, a `freeze` the dataset's hash, a `rubric` the rubric's. Changing a vote, a dataset row or an event makes
//! [`Store::verify`](crate::Store::verify) name it. Cutting events off the end leaves a shorter, whole chain: keep the head's
//! hash somewhere else, and verify against it.
//!
//! Not here: verification (`verify`).

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sqlx::AnyConnection;

use crate::db::Store;
use crate::error::{Doing, Result, StoreError};
use crate::id::hash_parts;
use crate::sql::Columns;

/// The actor of an event where nobody has said who they are.
pub const NOBODY: &str = "cli";

/// `prev` of the first event.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The kinds of events.
pub const EVENT_KINDS: &[&str] = &[
    "init",
    "policy",
    "rubric",
    "import",
    "sample",
    "calibration",
    "votes",
    "adjudication",
    "role",
    "freeze",
    "export",
    "run",
    "evaluation",
    "look",
    "verdict",
    "channel",
    "approval",
    "release",
    "rollback",
    "alarm",
    "refusal",
];

/// One event.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Event {
    /// Position, from 1.
    pub seq: i64,
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
    /// One of [`EVENT_KINDS`].
    pub kind: String,
    /// Who: an account's id, or `cli`.
    pub actor: String,
    /// What, as JSON text exactly as it was hashed.
    pub body: String,
    /// Hash of the event before.
    pub prev: String,
    /// Hash of this one.
    pub hash: String,
}

impl Event {
    /// What [`Event::hash`] must be.
    pub fn computed_hash(&self) -> String {
        let (seq, at_ms) = (self.seq.to_string(), self.at_ms.to_string());
        hash_parts("polity ledger 1", &[&seq, &at_ms, &self.kind, &self.actor, &self.body, &self.prev])
    }

    pub(crate) fn from_row(row: &sqlx::any::AnyRow) -> Result<Event> {
        Ok(Event {
            seq: row.int("seq")?,
            at_ms: row.int("at_ms")?,
            kind: row.text("kind")?,
            actor: row.text("actor")?,
            body: row.text("body")?,
            prev: row.text("prev")?,
            hash: row.text("hash")?,
        })
    }
}

/// An event with what its body says.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recorded<T> {
    /// The event's hash: names what was recorded, its time and its place.
    pub id: String,
    /// The event's number.
    pub seq: i64,
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
    /// Who: an account's id, or `cli`.
    pub actor: String,
    /// What.
    #[serde(flatten)]
    pub what: T,
}

impl<T: DeserializeOwned> Recorded<T> {
    pub(crate) fn of(event: Event) -> Result<Recorded<T>> {
        let what = serde_json::from_str(&event.body).map_err(|error| StoreError::Damaged {
            place: format!("ledger event {}", event.seq),
            found: format!("no {} in it: {error}", event.kind),
        })?;
        Ok(Recorded { id: event.hash, seq: event.seq, at_ms: event.at_ms, actor: event.actor, what })
    }
}

/// All events of a kind, in order.
pub(crate) async fn recorded<T: DeserializeOwned>(
    connection: &mut AnyConnection,
    kind: &'static str,
) -> Result<Vec<Recorded<T>>> {
    events_of(connection, kind).await?.into_iter().map(Recorded::of).collect()
}

pub(crate) async fn events_of(connection: &mut AnyConnection, kind: &'static str) -> Result<Vec<Event>> {
    sqlx::query("SELECT * FROM ledger WHERE kind = $1 ORDER BY seq")
        .bind(kind)
        .fetch_all(connection)
        .await
        .doing("read the ledger")?
        .iter()
        .map(Event::from_row)
        .collect()
}

/// Appends what was made as an event whose body it is.
pub(crate) async fn append_recorded<T: Serialize>(
    connection: &mut AnyConnection,
    kind: &'static str,
    actor: &str,
    what: T,
    now_ms: i64,
) -> Result<Recorded<T>> {
    let body = serde_json::to_value(&what).expect("plain structs with text keys always serialise");
    let event = append(connection, kind, actor, &body, now_ms).await?;
    Ok(Recorded { id: event.hash, seq: event.seq, at_ms: event.at_ms, actor: event.actor, what })
}

/// Appends an event inside the caller's transaction.
pub(crate) async fn append(
    connection: &mut AnyConnection,
    kind: &str,
    actor: &str,
    body: &Value,
    now_ms: i64,
) -> Result<Event> {
    if !EVENT_KINDS.contains(&kind) {
        return Err(StoreError::invalid("the event's kind", format!("`{kind}`"), EVENT_KINDS.join(", ")));
    }
    let last = sqlx::query("SELECT * FROM ledger ORDER BY seq DESC LIMIT 1")
        .fetch_optional(&mut *connection)
        .await
        .doing("read the ledger")?;
    let (seq, prev) = match last {
        Some(row) => (row.int("seq")? + 1, row.text("hash")?),
        None => (1, GENESIS.to_owned()),
    };
    let mut event = Event {
        seq,
        at_ms: now_ms,
        kind: kind.to_owned(),
        actor: actor.to_owned(),
        body: body.to_string(),
        prev,
        hash: String::new(),
    };
    event.hash = event.computed_hash();
    sqlx::query(
        "INSERT INTO ledger(seq, at_ms, kind, actor, body, prev, hash) VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(event.seq)
    .bind(event.at_ms)
    .bind(event.kind.clone())
    .bind(event.actor.clone())
    .bind(event.body.clone())
    .bind(event.prev.clone())
    .bind(event.hash.clone())
    .execute(connection)
    .await
    .doing("append to the ledger")?;
    Ok(event)
}

impl Store {
    /// Appends an event: a run, an evaluation, a verdict, a release and the like. What the store does itself (imports,
    /// freezes, rubrics, roles) it also records itself.
    pub async fn append_event(&self, kind: &str, actor: &str, body: Value, now_ms: i64) -> Result<Event> {
        let (kind, actor) = (kind.to_owned(), actor.to_owned());
        self.write(move |connection| {
            Box::pin(async move { append(connection, &kind, &actor, &body, now_ms).await })
        })
        .await
    }

    /// Events with `seq >= from`, in order, at most `limit`.
    pub async fn events(&self, from: i64, limit: i64) -> Result<Vec<Event>> {
        self.read(move |connection| {
            Box::pin(async move {
                sqlx::query("SELECT * FROM ledger WHERE seq >= $1 ORDER BY seq LIMIT $2")
                    .bind(from)
                    .bind(limit)
                    .fetch_all(connection)
                    .await
                    .doing("read the ledger")?
                    .iter()
                    .map(Event::from_row)
                    .collect()
            })
        })
        .await
    }

    /// All events of a kind, in order.
    pub async fn events_of(&self, kind: &'static str) -> Result<Vec<Event>> {
        self.read(move |connection| Box::pin(events_of(connection, kind))).await
    }

    /// The last event.
    pub async fn ledger_head(&self) -> Result<Event> {
        self.read(|connection| {
            Box::pin(async move {
                let row = sqlx::query("SELECT * FROM ledger ORDER BY seq DESC LIMIT 1")
                    .fetch_optional(connection)
                    .await
                    .doing("read the ledger")?;
                Event::from_row(&row.ok_or_else(|| StoreError::not_found("event", "1"))?)
            })
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The format's golden bytes: an event of schema 1 must hash to this for ever.
    #[test]
    fn the_hash_of_an_event_is_fixed() {
        let event = Event {
            seq: 1,
            at_ms: 1_700_000_000_000,
            kind: "init".into(),
            actor: "cli".into(),
            body: r#"{"name":"demo"}"#.into(),
            prev: GENESIS.into(),
            hash: String::new(),
        };
        assert_eq!(event.computed_hash(), "ce86116057a000310d95a80c18a29e45861cdbaaca9537f3f73b46de3f7f7d31");
    }
}
