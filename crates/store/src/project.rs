//! One store holds one project: its name, how prompts are split, and the policy of its annotation.
//!
//! Several projects on one PostgreSQL server are several databases, or several schemas by `?options=-csearch_path%3DNAME`.
//!
//! The split's shares are fixed at creation: a share that moved would move prompts between training and holdout.

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::assign::Kind;
use crate::db::Store;
use crate::error::{Doing, Result, StoreError};
use crate::ledger;
use crate::rubric::{self, Rubric};
use crate::sql::Columns;

/// What a project is made with.
#[derive(Clone, Debug)]
pub struct NewProject {
    /// Its name.
    pub name: String,
    /// Share of prompts for validation.
    pub validation_share: f64,
    /// Share of prompts held out for ever.
    pub holdout_share: f64,
    /// How annotation goes.
    pub policy: Policy,
    /// The first version of the rubric.
    pub rubric: Rubric,
}

/// A project.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Project {
    /// Its name.
    pub name: String,
    /// When it was made.
    pub created_ms: i64,
    /// Share of prompts for validation.
    pub validation_share: f64,
    /// Share of prompts held out.
    pub holdout_share: f64,
    /// How annotation goes.
    pub policy: Policy,
}

/// How annotation goes. Changing it changes what is handed out from then on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Judgements wanted for each new comparison (k).
    pub overlap: i64,
    /// How long a comparison is reserved for who was shown it, in milliseconds.
    pub lease_ms: i64,
    /// Share of comparisons that are always chosen at random, when scores are set; in `[0, 1]`.
    pub random_share: f64,
    /// Otherwise one of this many with the highest scores is chosen, evenly.
    pub score_pool: i64,
    /// Known answers that an annotator gives before any work, under each rubric version that asks for it; 0 for none.
    pub calibration_first: i64,
    /// Share of them that must be right.
    pub calibration_pass: f64,
    /// Chance that a comparison is a known one, later on.
    pub calibration_share: f64,
    /// Chance that it is one the annotator has answered before, sides swapped.
    pub repeat_share: f64,
    /// Votes of the annotator that must lie between a comparison and its repeat.
    pub repeat_gap: i64,
    /// A comparison flagged by this many is held back for review.
    pub flags_hold: i64,
    /// How often what people said on the holdout's prompts may be looked at ([`Store::look`]).
    #[serde(default = "holdout_looks")]
    pub holdout_looks: i64,
}

/// Of projects from before there was a budget, too.
fn holdout_looks() -> i64 {
    20
}

impl Policy {
    /// What `polity init` starts with.
    pub fn usual() -> Policy {
        Policy {
            overlap: 3,
            lease_ms: 30 * 60 * 1000,
            random_share: 0.2,
            score_pool: 20,
            calibration_first: 0,
            calibration_pass: 0.7,
            calibration_share: 0.05,
            repeat_share: 0.05,
            repeat_gap: 20,
            flags_hold: 2,
            holdout_looks: holdout_looks(),
        }
    }

    /// What kind of comparison comes next, by a number drawn from `[0, 1)`.
    pub(crate) fn kind_at(&self, u: f64) -> Kind {
        match u {
            _ if u < self.calibration_share => Kind::Calibration,
            _ if u < self.calibration_share + self.repeat_share => Kind::Repeat,
            _ => Kind::Work,
        }
    }

    /// Checks the limits of each field.
    pub fn validate(&self) -> Result<()> {
        let share = |name: &str, value: f64| match (0.0..=1.0).contains(&value) {
            true => Ok(()),
            false => Err(StoreError::invalid(name, value.to_string(), "a share from 0 to 1")),
        };
        let least = |name: &str, value: i64, least: i64| match value >= least {
            true => Ok(()),
            false => Err(StoreError::invalid(name, value.to_string(), format!("at least {least}"))),
        };
        least("overlap", self.overlap, 1)?;
        least("lease_ms", self.lease_ms, 1000)?;
        least("score_pool", self.score_pool, 1)?;
        least("calibration_first", self.calibration_first, 0)?;
        least("repeat_gap", self.repeat_gap, 1)?;
        least("flags_hold", self.flags_hold, 1)?;
        least("holdout_looks", self.holdout_looks, 0)?;
        share("random_share", self.random_share)?;
        share("calibration_pass", self.calibration_pass)?;
        share("repeat_share", self.repeat_share)?;
        share("calibration_share", self.calibration_share)?;
        share("calibration_share + repeat_share", self.calibration_share + self.repeat_share)
    }
}

impl Store {
    /// Makes a project where there is none: `location` is a path, `sqlite://PATH` or a `postgres://` URL; `seed` is 32 random bytes, from
    /// which every secret and every random choice comes. Fails if there is a store already, and then changes nothing.
    pub async fn create(
        location: &str,
        seed: [u8; 32],
        project: NewProject,
        actor: &str,
        now_ms: i64,
    ) -> Result<Store> {
        project.policy.validate()?;
        project.rubric.validate()?;
        let (validation, holdout) = (project.validation_share, project.holdout_share);
        for (name, share) in [
            ("validation_share", validation),
            ("holdout_share", holdout),
            ("validation_share + holdout_share", validation + holdout),
        ] {
            if !(0.0..1.0).contains(&share) {
                return Err(StoreError::invalid(name, share.to_string(), "a share from 0 to below 1"));
            }
        }
        let store = Store::connect(location, seed, true, now_ms).await?;
        let actor = actor.to_owned();
        store
            .write(move |connection| {
                Box::pin(async move {
                    sqlx::query(
                        "INSERT INTO project(id, name, created_ms, validation_share, holdout_share, policy) \
                         VALUES (1, $1, $2, $3, $4, $5)",
                    )
                    .bind(project.name.clone())
                    .bind(now_ms)
                    .bind(validation)
                    .bind(holdout)
                    .bind(to_json(&project.policy))
                    .execute(&mut *connection)
                    .await
                    .doing("make the project")?;
                    let body = json!({
                        "name": project.name, "validation_share": validation, "holdout_share": holdout,
                        "policy": project.policy,
                    });
                    ledger::append(connection, "init", &actor, &body, now_ms).await?;
                    rubric::add(connection, &project.rubric, &actor, "first version", true, now_ms).await
                })
            })
            .await?;
        Ok(store)
    }

    /// Opens a project; an older schema is migrated, a newer one refused. `seed` as for [`Store::create`].
    pub async fn open(location: &str, seed: [u8; 32], now_ms: i64) -> Result<Store> {
        Store::connect(location, seed, false, now_ms).await
    }

    /// The project.
    pub async fn project(&self) -> Result<Project> {
        self.read(|connection| Box::pin(project(connection))).await
    }

    /// Replaces the policy; an event.
    pub async fn set_policy(&self, policy: Policy, actor: &str, now_ms: i64) -> Result<()> {
        policy.validate()?;
        let actor = actor.to_owned();
        self.write(move |connection| {
            Box::pin(async move {
                sqlx::query("UPDATE project SET policy = $1")
                    .bind(to_json(&policy))
                    .execute(&mut *connection)
                    .await
                    .doing("set the policy")?;
                ledger::append(connection, "policy", &actor, &json!(policy), now_ms).await.map(|_| ())
            })
        })
        .await
    }
}

pub(crate) async fn project(connection: &mut sqlx::AnyConnection) -> Result<Project> {
    let row = sqlx::query("SELECT * FROM project").fetch_one(connection).await.doing("read the project")?;
    Ok(Project {
        name: row.text("name")?,
        created_ms: row.int("created_ms")?,
        validation_share: row.real("validation_share")?,
        holdout_share: row.real("holdout_share")?,
        policy: row.json("policy")?,
    })
}

/// JSON text of a plain struct.
pub(crate) fn to_json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("plain structs with text keys always serialise")
}
