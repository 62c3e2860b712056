//! Numbers about a whole project, for a front page and for metrics.

use serde::Serialize;
use sqlx::AnyConnection;

use crate::db::Store;
use crate::error::{Doing, Result};
use crate::sql::Columns;

/// How far the project is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// Prompts.
    pub prompts: i64,
    /// Responses.
    pub responses: i64,
    /// Comparisons by state: `fresh`, `open`, `full`, `held`, `closed`, `gold`.
    pub comparisons: std::collections::BTreeMap<String, i64>,
    /// Judgements and live leases on comparisons in the queue.
    pub served: i64,
    /// Judgements wanted on them.
    pub wanted: i64,
    /// Votes, superseded ones too.
    pub votes: i64,
    /// Annotators.
    pub annotators: i64,
    /// Comparisons in someone's hands.
    pub live_leases: i64,
    /// Datasets.
    pub datasets: i64,
}

impl Store {
    /// Counts everything.
    pub async fn progress(&self) -> Result<Progress> {
        self.read(|connection| Box::pin(progress(connection))).await
    }

    /// An annotator's work: effective votes of kind work, skips and flags left out.
    pub async fn judgements_made(&self, annotator_id: &str) -> Result<i64> {
        let annotator = annotator_id.to_owned();
        self.read(move |connection| {
            Box::pin(async move {
                sqlx::query(
                    "SELECT COUNT(*) AS n FROM effective_vote WHERE annotator_id = $1 AND kind = 'work' AND overall NOT IN ('skip', 'flag')",
                )
                .bind(annotator)
                .fetch_one(connection)
                .await
                .doing("count votes")?
                .int("n")
            })
        })
        .await
    }
}

async fn progress(connection: &mut AnyConnection) -> Result<Progress> {
    let mut progress = Progress::default();
    let counts = [
        ("SELECT COUNT(*) AS n FROM prompt", &mut progress.prompts),
        ("SELECT COUNT(*) AS n FROM response", &mut progress.responses),
        ("SELECT COUNT(*) AS n FROM vote", &mut progress.votes),
        ("SELECT COUNT(*) AS n FROM annotator", &mut progress.annotators),
        ("SELECT COUNT(*) AS n FROM assignment WHERE state = 'live'", &mut progress.live_leases),
        ("SELECT COUNT(*) AS n FROM dataset", &mut progress.datasets),
    ];
    for (sql, count) in counts {
        *count = sqlx::query(sql).fetch_one(&mut *connection).await.doing("count")?.int("n")?;
    }
    let rows = sqlx::query(
        "SELECT state, COUNT(*) AS n, CAST(SUM(served) AS BIGINT) AS served, CAST(SUM(wanted) AS BIGINT) AS wanted \
         FROM comparison GROUP BY state",
    )
    .fetch_all(connection)
    .await
    .doing("count comparisons")?;
    for row in &rows {
        let state = row.text("state")?;
        if matches!(state.as_str(), "fresh" | "open" | "full") {
            progress.served += row.int("served")?;
            progress.wanted += row.int("wanted")?;
        }
        progress.comparisons.insert(state, row.int("n")?);
    }
    Ok(progress)
}
