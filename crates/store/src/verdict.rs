//! What a release rests on: runs that ended, verdicts with the evaluations and the policy behind them.
//!
//! A verdict's event binds the model, the policy and the evaluations by hash; the texts are documents. It counts for the policy's days
//! **from the day on which the oldest of its evaluations came into the ledger**: judging old measures again does not make them younger.
//!
//! Not here: judging (`polity-eval`), what a verdict allows (`approval`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::AnyConnection;

use crate::db::Store;
use crate::document;
use crate::error::Result;
use crate::ledger::{self, Recorded};

const MS_PER_DAY: i64 = 24 * 60 * 60 * 1000;

/// A training run: an event when it begins, and another with what it made when it has ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Its directory: from the project's, if below that.
    pub run: String,
    /// Which trainer.
    #[serde(default)]
    pub stage: String,
    /// Hash of its settings.
    #[serde(default)]
    pub settings: String,
    /// Seed of everything random.
    #[serde(default)]
    pub seed: u64,
    /// What it read.
    #[serde(default)]
    pub inputs: Vec<RunInput>,
    /// Hash of the model that it made; nothing while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Document with its manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<String>,
    /// Document with its settings, as used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved: Option<String>,
}

/// A file or directory that a run read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunInput {
    /// What it was to the run: `model`, `data`, `reward_model`, …
    pub role: String,
    /// Where it was.
    #[serde(default)]
    pub path: String,
    /// Hash of its content.
    pub blake3: String,
    /// The frozen dataset that it was exported from, as `{"name", "hash"}`.
    #[serde(default)]
    pub dataset: Option<Value>,
}

/// An evaluation in the ledger.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluationRecord {
    /// Hash of the model.
    pub model: String,
    /// Document with the evaluation.
    pub evaluation: String,
    /// The file it came from: from the project's directory, if below that.
    pub file: String,
}

/// A verdict to record.
#[derive(Clone, Debug, PartialEq)]
pub struct NewVerdict {
    /// Hash of the candidate.
    pub model: String,
    /// `pass`, `fail` or `inconclusive`.
    pub verdict: String,
    /// Name of the policy.
    pub policy_name: String,
    /// Its text.
    pub policy: String,
    /// People who must approve a release on it.
    pub approvals: u32,
    /// Days for which evidence counts.
    pub valid_days: u32,
    /// The evaluations it was computed from, each as model, text and file.
    pub evaluations: Vec<(String, String, String)>,
    /// All of what the gate said, as JSON.
    pub said: String,
    /// Version of the program that judged.
    pub code_version: String,
}

/// A verdict in the ledger.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Hash of the candidate.
    pub model: String,
    /// `pass`, `fail` or `inconclusive`.
    pub verdict: String,
    /// Name of the policy.
    pub policy_name: String,
    /// Document with the policy.
    pub policy: String,
    /// People who must approve a release on it.
    pub approvals: u32,
    /// From when on it no longer counts, in milliseconds since 1970.
    pub expires_ms: i64,
    /// Documents with the evaluations, in the order in which they were given.
    pub evaluations: Vec<String>,
    /// Document with all of what the gate said.
    pub said: String,
    /// Version of the program that judged.
    pub code_version: String,
}

impl Store {
    /// Records the end of a run, with its manifest and settings.
    pub async fn add_run(
        &self,
        mut run: Run,
        manifest: String,
        resolved: String,
        actor: &str,
        now_ms: i64,
    ) -> Result<Recorded<Run>> {
        let actor = actor.to_owned();
        self.write(move |connection| {
            Box::pin(async move {
                run.manifest = Some(document::add(connection, "manifest", manifest, now_ms).await?);
                run.resolved = Some(document::add(connection, "settings", resolved, now_ms).await?);
                ledger::append_recorded(connection, "run", &actor, run, now_ms).await
            })
        })
        .await
    }

    /// The runs that ended, oldest first.
    pub async fn runs(&self) -> Result<Vec<Recorded<Run>>> {
        self.read(|connection| Box::pin(runs(connection))).await
    }

    /// Records a verdict; evaluations that are new become events before it.
    pub async fn add_verdict(&self, new: NewVerdict, actor: &str, now_ms: i64) -> Result<Recorded<Verdict>> {
        let actor = actor.to_owned();
        self.write(move |connection| {
            Box::pin(async move { add_verdict(connection, new, &actor, now_ms).await })
        })
        .await
    }

    /// The verdicts, oldest first.
    pub async fn verdicts(&self) -> Result<Vec<Recorded<Verdict>>> {
        self.read(|connection| Box::pin(ledger::recorded(connection, "verdict"))).await
    }

    /// Records an evaluation: the days of what is judged on it count from now. One that is there already keeps its day.
    pub async fn add_evaluation(
        &self,
        model: &str,
        text: String,
        file: &str,
        actor: &str,
        now_ms: i64,
    ) -> Result<()> {
        let (new, actor) = ((model.to_owned(), text, file.to_owned()), actor.to_owned());
        self.write(move |connection| {
            Box::pin(async move { add_evaluations(connection, vec![new], &actor, now_ms).await.map(|_| ()) })
        })
        .await
    }

    /// The evaluations, oldest first.
    pub async fn evaluations(&self) -> Result<Vec<Recorded<EvaluationRecord>>> {
        self.read(|connection| Box::pin(ledger::recorded(connection, "evaluation"))).await
    }
}

pub(crate) async fn runs(connection: &mut AnyConnection) -> Result<Vec<Recorded<Run>>> {
    let mut runs: Vec<Recorded<Run>> = ledger::recorded(connection, "run").await?;
    runs.retain(|run| run.what.model.is_some());
    Ok(runs)
}

async fn add_verdict(
    connection: &mut AnyConnection,
    new: NewVerdict,
    actor: &str,
    now_ms: i64,
) -> Result<Recorded<Verdict>> {
    let evaluations = add_evaluations(connection, new.evaluations, actor, now_ms).await?;
    let oldest_ms = evaluations.iter().map(|(_, since_ms)| *since_ms).min().unwrap_or(now_ms);
    let verdict = Verdict {
        model: new.model,
        verdict: new.verdict,
        policy_name: new.policy_name,
        policy: document::add(connection, "policy", new.policy, now_ms).await?,
        approvals: new.approvals,
        expires_ms: oldest_ms + i64::from(new.valid_days) * MS_PER_DAY,
        evaluations: evaluations.into_iter().map(|(hash, _)| hash).collect(),
        said: document::add(connection, "verdict", new.said, now_ms).await?,
        code_version: new.code_version,
    };
    ledger::append_recorded(connection, "verdict", actor, verdict, now_ms).await
}

/// Hash of each, and when it first came into the ledger.
async fn add_evaluations(
    connection: &mut AnyConnection,
    new: Vec<(String, String, String)>,
    actor: &str,
    now_ms: i64,
) -> Result<Vec<(String, i64)>> {
    let known: Vec<Recorded<EvaluationRecord>> = ledger::recorded(connection, "evaluation").await?;
    let mut since: BTreeMap<String, i64> = BTreeMap::new();
    for event in known {
        since.entry(event.what.evaluation).or_insert(event.at_ms);
    }
    let mut added = Vec::with_capacity(new.len());
    for (model, text, file) in new {
        let evaluation = document::add(connection, "evaluation", text, now_ms).await?;
        if !since.contains_key(&evaluation) {
            let record = EvaluationRecord { model, evaluation: evaluation.clone(), file };
            ledger::append_recorded(connection, "evaluation", actor, record, now_ms).await?;
            since.insert(evaluation.clone(), now_ms);
        }
        added.push((evaluation.clone(), since[&evaluation]));
    }
    Ok(added)
}
