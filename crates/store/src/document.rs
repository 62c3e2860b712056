//! Documents: texts that events name by their hash, such as the policy, the evaluations and the criteria behind a verdict.
//!
//! A document is named by the BLAKE3 of its bytes, so the event that names it vouches for all of it, and adding it twice adds it once.
//!
//! Not here: what documents say.

use sqlx::AnyConnection;

use crate::db::Store;
use crate::error::{Doing, Result, StoreError};
use crate::sql::Columns;

/// The name of a document: BLAKE3, 64 hex digits.
pub fn document_hash(content: &str) -> String {
    blake3::hash(content.as_bytes()).to_hex().to_string()
}

/// Adds a document inside the caller's transaction; returns its name.
pub(crate) async fn add(
    connection: &mut AnyConnection,
    kind: &'static str,
    content: String,
    now_ms: i64,
) -> Result<String> {
    let hash = document_hash(&content);
    sqlx::query(
        "INSERT INTO document(hash, kind, content, added_ms) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
    )
    .bind(hash.clone())
    .bind(kind)
    .bind(content)
    .bind(now_ms)
    .execute(connection)
    .await
    .doing("add a document")?;
    Ok(hash)
}

impl Store {
    /// A document by its hash. Fails if it is not there, or is not what it was.
    pub async fn document(&self, hash: &str) -> Result<String> {
        let hash = hash.to_owned();
        self.read(move |connection| {
            Box::pin(async move {
                let row = sqlx::query("SELECT kind, content FROM document WHERE hash = $1")
                    .bind(hash.clone())
                    .fetch_optional(connection)
                    .await
                    .doing("read a document")?
                    .ok_or_else(|| StoreError::not_found("document", &hash))?;
                let content = row.text("content")?;
                match document_hash(&content) == hash {
                    true => Ok(content),
                    false => Err(StoreError::Damaged {
                        place: format!("{} {hash}", row.text("kind")?),
                        found: "its content does not give its hash".into(),
                    }),
                }
            })
        })
        .await
    }
}
