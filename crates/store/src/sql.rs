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
        // Made of names in this program alone; values are parameters.
        let statement = insert_statement(table, columns, rows.len(), numbered);
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
        inserted += query.execute(&mut *connection).await.doing("insert rows")?.rows_affected();
    }
}

/// With parameters in order: `$1, $2, …`, or plain `?` for SQLite, which looks each parameter that has a name up by walking over all of them,
/// when the statement is read and whenever it is run.
fn insert_statement(table: &str, columns: &[&str], rows: usize, numbered: bool) -> String {
    let mut statement = format!("INSERT INTO {table}({}) VALUES ", columns.join(", "));
    for row in 0..rows {
        statement.push_str(if row == 0 { "(" } else { ", (" });
        for column in 0..columns.len() {
            statement.push_str(if column == 0 { "" } else { ", " });
            match numbered {
                true => statement.push_str(&format!("${}", row * columns.len() + column + 1)),
                false => statement.push('?'),
            }
        }
        statement.push(')');
    }
    statement.push_str(" ON CONFLICT DO NOTHING");
    statement
}
