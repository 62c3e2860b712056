//! Verification: the ledger's chain, and everything that the ledger vouches for.
//!
//! | what | against |
//! |---|---|
//! | each event | its own hash, the event before, its number |
//! | each vote | its chain hash, the vote before, its number; the chain hashes that `votes` events sealed |
//! | each dataset | its header and rows, chained; the hash in its `freeze` event; no dataset without event, no event without dataset |
//! | each rubric version | its hash in its `rubric` event |
//! | each decision, each known answer | its event |
//! | each document (policy, evaluation, verdict, manifest, settings) | its name, which is its hash; none that an event names is missing |
//! | the policy, the split's shares, each account's roles | the last event that set them |
//! | each prompt, response and comparison | its name, which is a hash of what it says; a prompt's part |
//!
//! What this cannot see: the last events cut off together with what they vouch for. Give the head's hash, kept elsewhere,
//! to have that found too. Votes after the last seal are chained to each other and to nothing else.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::TryStreamExt;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::AnyConnection;

use crate::account::Role;
use crate::content::{self, Content, Part};
use crate::dataset::{self, DatasetRow};
use crate::db::{Meter, Store};
use crate::document::document_hash;
use crate::error::{Doing, Result};
use crate::ledger::{Event, GENESIS};
use crate::project;
use crate::review;
use crate::rubric::rubric_hash;
use crate::sql::Columns;
use crate::vote::{CHAIN_START, VoteRecord};

/// A record that does not fit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bad {
    /// Which: `ledger event 3`, `vote 17`, `dataset d, row 5`.
    pub record: String,
    /// What is wrong with it.
    pub found: String,
}

/// What was checked, and what was wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// Events in the ledger.
    pub events: i64,
    /// Hash of the last one.
    pub head: String,
    /// Votes.
    pub votes: i64,
    /// Votes that the ledger has sealed.
    pub votes_sealed: i64,
    /// Datasets.
    pub datasets: i64,
    /// Their rows.
    pub dataset_rows: i64,
    /// Prompts, responses and comparisons.
    pub texts: i64,
    /// Documents that events name.
    pub documents: i64,
    /// The first bad record of each kind of record, in the order of the table above. Empty if all is well.
    pub bad: Vec<Bad>,
}

/// What the ledger says, as far as other records must fit it.
#[derive(Default)]
struct Claims {
    seals: Vec<(i64, i64, String)>,
    freezes: BTreeMap<String, (i64, String)>,
    rubrics: BTreeMap<i64, String>,
    adjudications: BTreeMap<i64, Value>,
    calibration: BTreeMap<String, Value>,
    roles: BTreeMap<String, Value>,
    documents: BTreeMap<String, i64>,
    init: Option<Value>,
    policy: Option<Value>,
}

impl Store {
    /// Recomputes everything. `head`, if given, must be the hash of an event in the ledger.
    pub async fn verify(&self, head: Option<&str>) -> Result<Verification> {
        let (head, meter) = (head.map(str::to_owned), self.meter());
        self.read(move |connection| {
            Box::pin(async move { verify(connection, head.as_deref(), &meter).await })
        })
        .await
    }
}

async fn verify(connection: &mut AnyConnection, head: Option<&str>, meter: &Meter) -> Result<Verification> {
    let mut report = Verification::default();
    let claims = verify_events(connection, head, &mut report).await?;
    verify_votes(connection, &claims, &mut report, meter).await?;
    verify_datasets(connection, &claims, &mut report, meter).await?;
    verify_rubrics(connection, &claims, &mut report).await?;
    verify_decisions(connection, &claims, &mut report).await?;
    verify_settings(connection, &claims, &mut report).await?;
    verify_texts(connection, &mut report, meter).await?;
    verify_documents(connection, &claims, &mut report).await?;
    Ok(report)
}

impl Verification {
    fn bad(&mut self, record: impl Into<String>, found: impl Into<String>) {
        self.bad.push(Bad { record: record.into(), found: found.into() });
    }
}

async fn verify_events(
    connection: &mut AnyConnection,
    head: Option<&str>,
    report: &mut Verification,
) -> Result<Claims> {
    let mut claims = Claims::default();
    let mut prev = GENESIS.to_owned();
    let mut head_found = head.is_none();
    let mut stream = sqlx::query("SELECT * FROM ledger ORDER BY seq").fetch(connection);
    while let Some(row) = stream.try_next().await.doing("read the ledger")? {
        let event = Event::from_row(&row)?;
        report.events += 1;
        let wrong = if event.seq != report.events {
            Some(format!("event {} is missing", report.events))
        } else if event.prev != prev {
            Some("it does not follow from the event before".to_owned())
        } else if event.hash != event.computed_hash() {
            Some("its content does not give its hash".to_owned())
        } else {
            None
        };
        if let Some(found) = wrong {
            report.bad(format!("ledger event {}", event.seq), found);
            // What follows a broken link proves nothing, but says what to expect of the other records.
            claims.take(&event);
            while let Some(row) = stream.try_next().await.doing("read the ledger")? {
                claims.take(&Event::from_row(&row)?);
                report.events += 1;
            }
            return Ok(claims);
        }
        claims.take(&event);
        head_found |= head == Some(event.hash.as_str());
        prev = event.hash;
    }
    if !head_found {
        report.bad(
            format!("ledger event {}", report.events + 1),
            "the given head is in no event: events were cut off the end, or it is another ledger's",
        );
    }
    report.head = prev;
    Ok(claims)
}

impl Claims {
    fn take(&mut self, event: &Event) {
        let Ok(body) = serde_json::from_str::<Value>(&event.body) else { return };
        let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
        let int = |key: &str| body[key].as_i64().unwrap_or_default();
        let documents: &[&str] = match event.kind.as_str() {
            "run" => &["manifest", "resolved"],
            "evaluation" => &["evaluation"],
            "verdict" => &["policy", "said"],
            "channel" => &["policy"],
            _ => &[],
        };
        for hash in documents.iter().filter_map(|key| body[*key].as_str()) {
            self.documents.entry(hash.to_owned()).or_insert(event.seq);
        }
        match event.kind.as_str() {
            "init" => self.init = Some(body),
            "policy" => self.policy = Some(body),
            "votes" => self.seals.push((event.seq, int("to"), text("chain"))),
            "freeze" => drop(self.freezes.insert(text("name"), (event.seq, text("hash")))),
            "rubric" => drop(self.rubrics.insert(int("version"), text("hash"))),
            // Without a number it only says that a comparison was queued or closed.
            "adjudication" if body.get("seq").is_some() => drop(self.adjudications.insert(int("seq"), body)),
            "calibration" => drop(self.calibration.insert(text("comparison_id"), body)),
            "role" if body.get("roles").is_some() => {
                drop(self.roles.insert(text("account"), body["roles"].clone()));
            }
            _ => {}
        }
    }
}

async fn verify_votes(
    connection: &mut AnyConnection,
    claims: &Claims,
    report: &mut Verification,
    meter: &Meter,
) -> Result<()> {
    let mut seals = claims.seals.iter().peekable();
    let mut chain = CHAIN_START.to_owned();
    let mut broken = false;
    let mut stream = sqlx::query("SELECT * FROM vote ORDER BY seq").fetch(connection);
    while let Some(row) = stream.try_next().await.doing("read votes")? {
        meter.count();
        let vote = match VoteRecord::from_row(&row) {
            Ok(vote) => vote,
            Err(error) => {
                report.votes += 1;
                if !broken {
                    report.bad(format!("vote {}", row.int("seq")?), error.to_string());
                    broken = true;
                }
                continue;
            }
        };
        report.votes += 1;
        if broken {
            continue;
        }
        if vote.seq != report.votes {
            report.bad(format!("vote {}", report.votes), "it is missing");
            broken = true;
        } else if vote.chain != vote.computed_chain(&chain) {
            report.bad(format!("vote {}", vote.seq), "its content does not give its chain hash");
            broken = true;
        }
        chain.clone_from(&vote.chain);
        while let Some((event, _, sealed)) = seals.next_if(|(_, to, _)| *to == vote.seq) {
            if !broken && *sealed != chain {
                report.bad(
                    format!("vote {}", vote.seq),
                    format!("its chain hash is not the one that ledger event {event} sealed"),
                );
                broken = true;
            }
            report.votes_sealed = vote.seq;
        }
    }
    if let Some((event, to, _)) = seals.next()
        && !broken
    {
        report.bad(
            format!("vote {}", report.votes + 1),
            format!("it is missing: ledger event {event} sealed votes up to {to}"),
        );
    }
    Ok(())
}

async fn verify_datasets(
    connection: &mut AnyConnection,
    claims: &Claims,
    report: &mut Verification,
    meter: &Meter,
) -> Result<()> {
    let datasets = dataset::datasets(connection).await?;
    report.datasets = datasets.len() as i64;
    let mut bad: Option<Bad> = None;
    let mut say = |record: String, found: String| {
        bad.get_or_insert(Bad { record, found });
    };
    for dataset in &datasets {
        let name = &dataset.name;
        match claims.freezes.get(name) {
            None => say(format!("dataset {name}"), "no event in the ledger froze it".into()),
            Some((event, hash)) if *hash != dataset.hash => {
                say(format!("dataset {name}"), format!("its hash is not the one in ledger event {event}"));
            }
            Some(_) => {}
        }
        let mut chain = dataset::dataset_start(&dataset.header);
        let mut parts = [0_i64; 3];
        let mut rows = 0;
        let mut stream = sqlx::query("SELECT * FROM dataset_row WHERE dataset = $1 ORDER BY idx")
            .bind(name.clone())
            .fetch(&mut *connection);
        while let Some(row) = stream.try_next().await.doing("read a dataset")? {
            meter.count();
            let stored = row.text("chain")?;
            match DatasetRow::from_row(&row) {
                Ok(content) if content.idx != rows => {
                    say(format!("dataset {name}, row {rows}"), "it is missing".into());
                }
                Ok(content) => {
                    chain = dataset::dataset_chain(&chain, &content);
                    parts[content.part as usize] += 1;
                    if chain != stored {
                        say(
                            format!("dataset {name}, row {rows}"),
                            "its content does not give its hash".into(),
                        );
                    }
                }
                Err(error) => say(format!("dataset {name}, row {rows}"), error.to_string()),
            }
            rows += 1;
        }
        if parts != [dataset.train_rows, dataset.validation_rows, dataset.holdout_rows] {
            say(format!("dataset {name}"), "it has not the rows that it was frozen with".into());
        }
        if chain != dataset.hash {
            say(format!("dataset {name}"), "its header and rows do not give its hash".into());
        }
        report.dataset_rows += rows;
    }
    for (name, (event, _)) in &claims.freezes {
        if !datasets.iter().any(|dataset| dataset.name == *name) {
            say(format!("dataset {name}"), format!("it is missing: ledger event {event} froze it"));
        }
    }
    report.bad.extend(bad);
    Ok(())
}

async fn verify_rubrics(
    connection: &mut AnyConnection,
    claims: &Claims,
    report: &mut Verification,
) -> Result<()> {
    let rows = sqlx::query("SELECT version, content FROM rubric ORDER BY version")
        .fetch_all(connection)
        .await
        .doing("read the rubric")?;
    let mut stored = BTreeMap::new();
    for row in &rows {
        stored.insert(row.int("version")?, rubric_hash(&row.text("content")?));
    }
    report.bad.extend(first_difference("rubric version", &claims.rubrics, &stored));
    Ok(())
}

async fn verify_decisions(
    connection: &mut AnyConnection,
    claims: &Claims,
    report: &mut Verification,
) -> Result<()> {
    let rows = sqlx::query("SELECT * FROM adjudication ORDER BY seq")
        .fetch_all(&mut *connection)
        .await
        .doing("read decisions")?;
    let mut stored = BTreeMap::new();
    for row in &rows {
        stored.insert(row.int("seq")?, json(&review::adjudication_from(row)?));
    }
    report.bad.extend(first_difference("decision", &claims.adjudications, &stored));

    let rows =
        sqlx::query("SELECT * FROM calibration").fetch_all(connection).await.doing("read known answers")?;
    let mut stored = BTreeMap::new();
    for row in &rows {
        let item = crate::calibration::item_from(row)?;
        stored.insert(item.comparison_id.clone(), json(&item));
    }
    report.bad.extend(first_difference("known answer of comparison", &claims.calibration, &stored));
    Ok(())
}

async fn verify_settings(
    connection: &mut AnyConnection,
    claims: &Claims,
    report: &mut Verification,
) -> Result<()> {
    let project = project::project(connection).await?;
    let init = claims.init.clone().unwrap_or_default();
    let shares = ["validation_share", "holdout_share"].map(|key| init[key].as_f64());
    if shares != [Some(project.validation_share), Some(project.holdout_share)] {
        report.bad("the split's shares", "they are not those of ledger event 1");
    }
    if claims.policy.as_ref().unwrap_or(&init["policy"]) != &json(&project.policy) {
        report.bad("the policy", "it is not the one that the ledger says was set last");
    }
    let rows = sqlx::query("SELECT account_id, role FROM account_role")
        .fetch_all(connection)
        .await
        .doing("read roles")?;
    let mut stored: BTreeMap<String, BTreeSet<Role>> = BTreeMap::new();
    for row in &rows {
        stored.entry(row.text("account_id")?).or_default().insert(Role::parse(&row.text("role")?)?);
    }
    let stored = stored.iter().map(|(account, roles)| (account.clone(), json(roles))).collect();
    let mut claimed = claims.roles.clone();
    claimed.retain(|_, roles| roles.as_array().is_some_and(|roles| !roles.is_empty()));
    report.bad.extend(first_difference("roles of account", &claimed, &stored));
    Ok(())
}

fn json<T: Serialize>(value: &T) -> Value {
    serde_json::to_value(value).expect("plain structs with text keys always serialise")
}

/// The first record that the ledger and the table do not say the same of.
fn first_difference<K: Ord + std::fmt::Display, V: PartialEq>(
    what: &str,
    claimed: &BTreeMap<K, V>,
    stored: &BTreeMap<K, V>,
) -> Option<Bad> {
    for (key, value) in stored {
        let found = match claimed.get(key) {
            None => "no event in the ledger made it",
            Some(claim) if claim != value => "it is not what its event in the ledger says",
            Some(_) => continue,
        };
        return Some(Bad { record: format!("{what} {key}"), found: found.to_owned() });
    }
    let missing = claimed.keys().find(|key| !stored.contains_key(key))?;
    Some(Bad { record: format!("{what} {missing}"), found: "it is missing".to_owned() })
}

async fn verify_texts(
    connection: &mut AnyConnection,
    report: &mut Verification,
    meter: &Meter,
) -> Result<()> {
    let project = project::project(connection).await?;
    let mut bad = None;
    let mut stream = sqlx::query("SELECT id, content, part FROM prompt ORDER BY id").fetch(&mut *connection);
    while let Some(row) = stream.try_next().await.doing("read prompts")? {
        meter.count();
        report.texts += 1;
        let id = row.text("id")?;
        let content = row.json::<Content>("content");
        let found = match &content {
            Ok(content) if content::prompt_id(content) != id => "its text does not give its name",
            Ok(content)
                if Part::of(content, project.validation_share, project.holdout_share).name()
                    != row.text("part")? =>
            {
                "it is not in the part that its text belongs to"
            }
            Ok(_) => continue,
            Err(_) => "its text cannot be read",
        };
        bad.get_or_insert(Bad { record: format!("prompt {id}"), found: found.to_owned() });
    }
    drop(stream);
    let mut stream =
        sqlx::query("SELECT id, prompt_id, content, model FROM response ORDER BY id").fetch(&mut *connection);
    while let Some(row) = stream.try_next().await.doing("read responses")? {
        meter.count();
        report.texts += 1;
        let id = row.text("id")?;
        let named = row.json::<Content>("content").and_then(|content| {
            Ok(content::response_id(&row.text("prompt_id")?, &content, &row.text("model")?))
        });
        if named.ok().as_ref() != Some(&id) {
            let found = "its prompt, text and model do not give its name".to_owned();
            bad.get_or_insert(Bad { record: format!("response {id}"), found });
        }
    }
    drop(stream);
    let mut stream = sqlx::query(
        "SELECT c.id, c.response_a, c.response_b, c.prompt_id, a.prompt_id AS prompt_a, b.prompt_id AS prompt_b \
         FROM comparison c JOIN response a ON a.id = c.response_a JOIN response b ON b.id = c.response_b ORDER BY c.id",
    )
    .fetch(connection);
    while let Some(row) = stream.try_next().await.doing("read comparisons")? {
        report.texts += 1;
        let (id, a, b) = (row.text("id")?, row.text("response_a")?, row.text("response_b")?);
        let prompt = row.text("prompt_id")?;
        let fits = content::comparison_id(&a, &b) == id
            && a < b
            && row.text("prompt_a")? == prompt
            && row.text("prompt_b")? == prompt;
        if !fits {
            let found = "its responses do not give its name".to_owned();
            bad.get_or_insert(Bad { record: format!("comparison {id}"), found });
        }
    }
    report.bad.extend(bad);
    Ok(())
}

async fn verify_documents(
    connection: &mut AnyConnection,
    claims: &Claims,
    report: &mut Verification,
) -> Result<()> {
    let mut missing = claims.documents.clone();
    let mut bad = None;
    let mut stream = sqlx::query("SELECT hash, kind, content FROM document ORDER BY hash").fetch(connection);
    while let Some(row) = stream.try_next().await.doing("read documents")? {
        report.documents += 1;
        let hash = row.text("hash")?;
        missing.remove(&hash);
        if document_hash(&row.text("content")?) != hash {
            bad.get_or_insert(Bad {
                record: format!("{} {hash}", row.text("kind")?),
                found: "its content does not give its hash".to_owned(),
            });
        }
    }
    if let Some((hash, event)) = missing.first_key_value() {
        bad.get_or_insert(Bad {
            record: format!("document {hash}"),
            found: format!("it is missing: ledger event {event} names it"),
        });
    }
    report.bad.extend(bad);
    Ok(())
}
