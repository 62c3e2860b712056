//! Rows out of and into tables.
//!
//! Not here: which statements there are.

use sqlx::any::AnyRow;
use sqlx::{AnyConnection, AssertSqlSafe, Database, Row};

use crate::error::{Doing, Result, StoreError};

/// Parameters of one statement that many rows share; both back ends allow more.
const PARAMETERS_MAX: usize = 8000;

/// Typed access to a row's columns, by name.
pub(crate) trait Columns {
    fn text(&self, column: &str) -> Result<String>;
    fn text_or_null(&self, column: &str) -> Result<Option<String>>;
    fn int(&self, column: &str) -> Result<i64>;
    fn int_or_null(&self, column: &str) -> Result<Option<i64>>;
    fn real(&self, column: &str) -> Result<f64>;
    fn real_or_null(&self, column: &str) -> Result<Option<f64>>;
    fn yes(&self, column: &str) -> Result<bool> {
        Ok(self.int(column)? != 0)
    }
    fn json<T: serde::de::DeserializeOwned>(&self, column: &str) -> Result<T> {
        let text = self.text(column)?;
        serde_json::from_str(&text).map_err(|error| StoreError::Damaged {
            place: format!("column {column}"),
            found: error.to_string(),
        })
    }
}

impl Columns for AnyRow {
    fn text(&self, column: &str) -> Result<String> {
        self.try_get(column).doing("read a column")
    }
    fn text_or_null(&self, column: &str) -> Result<Option<String>> {
        self.try_get(column).doing("read a column")
    }
    fn int(&self, column: &str) -> Result<i64> {
        self.try_get(column).doing("read a column")
    }
    fn int_or_null(&self, column: &str) -> Result<Option<i64>> {
        self.try_get(column).doing("read a column")
    }
    fn real(&self, column: &str) -> Result<f64> {
        self.try_get(column).doing("read a column")
    }
    fn real_or_null(&self, column: &str) -> Result<Option<f64>> {
        self.try_get(column).doing("read a column")
    }
}

/// One value of a row to insert.
pub(crate) enum Cell {
    Text(String),
    TextOrNull(Option<String>),
    Int(i64),
    IntOrNull(Option<i64>),
    RealOrNull(Option<f64>),
}

/// Inserts rows many to a statement; returns how many were new. A row whose key exists is left as it is.
pub(crate) async fn insert_many(
    connection: &mut AnyConnection,
    table: &str,
    columns: &[&str],
    rows: impl IntoIterator<Item = Vec<Cell>>,
) -> Result<u64> {
    let chunk = PARAMETERS_MAX / columns.len();
    let numbered = connection.backend_name() != sqlx::Sqlite::NAME;
    let mut rows = rows.into_iter();
    let mut inserted = 0;
    loop {
        let rows: Vec<Vec<Cell>> = rows.by_ref().take(chunk).collect();
        if rows.is_empty() {
            return Ok(inserted);
        }
        let statement = format!(
            "INSERT INTO {table}({}) VALUES {} ON CONFLICT DO NOTHING",
            columns.join(", "),
            tuples(columns.len(), rows.len(), numbered),
        );
        inserted += execute(connection, statement, rows).await?;
    }
}

/// Changes rows many to a statement: each has its key first, then `columns`.
pub(crate) async fn update_many(
    connection: &mut AnyConnection,
    table: &str,
    key: &str,
    columns: &[&str],
    rows: Vec<Vec<Cell>>,
) -> Result<u64> {
    let numbered = connection.backend_name() != sqlx::Sqlite::NAME;
    let names = [&[key], columns].concat();
    let sets: Vec<String> = columns.iter().map(|column| format!("{column} = changed.{column}")).collect();
    let (sets, mut rows, mut updated) = (sets.join(", "), rows.into_iter(), 0);
    loop {
        let rows: Vec<Vec<Cell>> = rows.by_ref().take(PARAMETERS_MAX / names.len()).collect();
        if rows.is_empty() {
            return Ok(updated);
        }
        let statement = format!(
            "WITH changed({}) AS (VALUES {}) UPDATE {table} SET {sets} FROM changed WHERE {table}.{key} = changed.{key}",
            names.join(", "),
            tuples(names.len(), rows.len(), numbered),
        );
        updated += execute(connection, statement, rows).await?;
    }
}

/// Runs a statement that is made of names in this program alone, with the rows as its parameters; returns how many rows it touched.
async fn execute(connection: &mut AnyConnection, statement: String, rows: Vec<Vec<Cell>>) -> Result<u64> {
    let mut query = sqlx::query(AssertSqlSafe(statement));
    for cell in rows.into_iter().flatten() {
        query = match cell {
            Cell::Text(value) => query.bind(value),
            Cell::TextOrNull(value) => query.bind(value),
            Cell::Int(value) => query.bind(value),
            Cell::IntOrNull(value) => query.bind(value),
            Cell::RealOrNull(Some(value)) => query.bind(value),
            // sqlx 0.9's `Any` sends a null f64 to PostgreSQL as a null FLOAT4, and the statement then stays prepared for
            // FLOAT4; a null f32 it sends as FLOAT8.
            Cell::RealOrNull(None) => query.bind(Option::<f32>::None),
        };
    }
    Ok(query.execute(connection).await.doing("write rows")?.rows_affected())
}

/// With parameters in order: `$1, $2, …`, or plain `?` for SQLite, which looks each parameter that has a name up by walking over all of them,
/// when the statement is read and whenever it is run.
fn tuples(columns: usize, rows: usize, numbered: bool) -> String {
    let mut tuples = String::new();
    for row in 0..rows {
        tuples.push_str(if row == 0 { "(" } else { ", (" });
        for column in 0..columns {
            tuples.push_str(if column == 0 { "" } else { ", " });
            match numbered {
                true => tuples.push_str(&format!("${}", row * columns + column + 1)),
                false => tuples.push('?'),
            }
        }
        tuples.push(')');
    }
    tuples
}
