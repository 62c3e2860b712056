//! The schema and its versions.
//!
//! A migration is one text for both back ends, embedded in the program and applied in a transaction. `SERIAL_KEY` in it becomes the type
//! of a number that the store assigns itself. A store with a later version than this program knows is refused, never guessed at.
//!
//! After the tables come triggers that refuse to change or delete what is append-only: a mistake in a statement, here or in someone's
//! database shell, fails loudly. Whoever drops the triggers is found by `ledger verify`.

use sqlx::{AnyConnection, AssertSqlSafe, Connection, Row};

use crate::db::Backend;
use crate::error::{Doing, Result, StoreError};

/// In order; the version is the position, counted from 1.
const MIGRATIONS: &[&str] = &[
    include_str!("../migrations/0001.sql"),
    include_str!("../migrations/0002.sql"),
    include_str!("../migrations/0003.sql"),
];

/// Tables whose rows never change, by the version that made them.
const APPEND_ONLY: &[(usize, &str)] = &[
    (1, "ledger"),
    (1, "rubric"),
    (1, "prompt"),
    (1, "response"),
    (1, "vote"),
    (1, "adjudication"),
    (1, "dataset"),
    (1, "dataset_row"),
    (2, "document"),
    (3, "feedback"),
];

/// The schema that this program reads and writes.
pub const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

/// Brings the schema to [`SCHEMA_VERSION`]; an empty database is an error unless `create`, a store one if it is. Tables without a project are not a
/// store yet: whoever made them was killed before there was one.
pub(crate) async fn migrate(
    connection: &mut AnyConnection,
    backend: Backend,
    create: bool,
    url: &str,
    now_ms: i64,
) -> Result<()> {
    let begin = match backend {
        Backend::Sqlite => "BEGIN IMMEDIATE",
        Backend::Postgres => "BEGIN",
    };
    let mut transaction = connection.begin_with(begin).await.doing("open the store")?;
    let exists = match backend {
        Backend::Sqlite => {
            "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = 'polity_schema'"
        }
        Backend::Postgres => {
            "SELECT COUNT(*) FROM pg_tables WHERE schemaname = current_schema() AND tablename = 'polity_schema'"
        }
    };
    let exists: i64 =
        sqlx::query(exists).fetch_one(&mut *transaction).await.doing("look for the schema")?.get(0);
    let projects: i64 = match exists > 0 && create {
        true => sqlx::query("SELECT COUNT(*) FROM project")
            .fetch_one(&mut *transaction)
            .await
            .doing("look for a project")?
            .get(0),
        false => 0,
    };
    let found: i64 = match (exists > 0, create) {
        (false, false) => return Err(StoreError::Missing { url: url.to_owned() }),
        (true, true) if projects > 0 => return Err(StoreError::Exists { url: url.to_owned() }),
        (false, true) => {
            sqlx::raw_sql(
                "CREATE TABLE polity_schema (version BIGINT PRIMARY KEY, applied_ms BIGINT NOT NULL)",
            )
            .execute(&mut *transaction)
            .await
            .doing("make the schema")?;
            0
        }
        (true, _) => sqlx::query("SELECT COALESCE(MAX(version), 0) FROM polity_schema")
            .fetch_one(&mut *transaction)
            .await
            .doing("read the schema's version")?
            .get(0),
    };
    if found > SCHEMA_VERSION {
        return Err(StoreError::NewerSchema { found, supported: SCHEMA_VERSION });
    }
    for version in found as usize + 1..=MIGRATIONS.len() {
        let serial = match backend {
            Backend::Sqlite => "INTEGER",
            Backend::Postgres => "BIGINT",
        };
        let mut sql = MIGRATIONS[version - 1].replace("SERIAL_KEY", serial);
        for (_, table) in APPEND_ONLY.iter().filter(|(since, _)| *since == version) {
            sql.push_str(&append_only(backend, table));
        }
        // Our own text, with a constant put in.
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *transaction).await.doing("migrate the schema")?;
        sqlx::query("INSERT INTO polity_schema(version, applied_ms) VALUES ($1, $2)")
            .bind(version as i64)
            .bind(now_ms)
            .execute(&mut *transaction)
            .await
            .doing("migrate the schema")?;
    }
    transaction.commit().await.doing("migrate the schema")
}

fn append_only(backend: Backend, table: &str) -> String {
    match backend {
        Backend::Sqlite => ["UPDATE", "DELETE"]
            .map(|change| {
                format!(
                    "\nCREATE TRIGGER {table}_no_{} BEFORE {change} ON {table} BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END;",
                    change.to_lowercase()
                )
            })
            .concat(),
        Backend::Postgres => format!(
            "\nCREATE FUNCTION {table}_append_only() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN RAISE EXCEPTION '{table} is append-only'; END $$;\n\
             CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} \
             FOR EACH STATEMENT EXECUTE FUNCTION {table}_append_only();"
        ),
    }
}
