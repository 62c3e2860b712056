//! What can go wrong with a store.
//!
//! Messages say what was found, what was expected and what to do. The values are fields, so that a page or the command line
//! can decide without reading text.
//!
//! Not here: exit codes and status codes.

/// Result of everything that touches a store.
pub type Result<T> = std::result::Result<T, StoreError>;

/// Why a store refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The URL names no back end that is known.
    #[error("`{url}` is no store; expected a path, `sqlite://PATH` or `postgres://USER@HOST/DATABASE`")]
    Url {
        /// What was given, without a password.
        url: String,
    },
    /// There is no store there.
    #[error("no store at {url}; make one with `polity init`")]
    Missing {
        /// Where.
        url: String,
    },
    /// There is one already.
    #[error("{url} is a store already; expected an empty place")]
    Exists {
        /// Where.
        url: String,
    },
    /// The store was written by a later version of the program.
    #[error("the store has schema {found}, and this program reads up to {supported}; use a newer polity")]
    NewerSchema {
        /// Of the store.
        found: i64,
        /// Of this program.
        supported: i64,
    },
    /// The database said no.
    #[error("{doing}: {source}")]
    Database {
        /// What was being done.
        doing: &'static str,
        /// The database's reason.
        source: sqlx::Error,
    },
    /// The transaction ran, and then could not be made durable: nothing of it is stored.
    #[error("could not commit: {found}; nothing was stored")]
    Commit {
        /// The database's reason.
        found: String,
    },
    /// The task that writes has ended: the store was closed.
    #[error("the store is closed")]
    Closed,
    /// No such thing.
    #[error("no {what} `{id}`")]
    NotFound {
        /// Kind of thing.
        what: &'static str,
        /// What was asked for.
        id: String,
    },
    /// A value that cannot be stored.
    #[error("{what} is {found}; expected {expected}")]
    Invalid {
        /// Which value.
        what: String,
        /// What it is.
        found: String,
        /// What it may be.
        expected: String,
    },
    /// A rule of the store forbids it.
    #[error("{what}: {why}")]
    Refused {
        /// What was attempted.
        what: String,
        /// The rule, and what to do.
        why: String,
    },
    /// The comparison was handed to someone else in the meantime; ask for the next one.
    #[error("the time for this comparison is over and others have answered it; take the next one")]
    LeaseLost,
    /// An invite, session or token that is unknown, used, revoked or expired. It does not say which.
    #[error("this {what} is not valid (any more)")]
    Credential {
        /// `invite`, `session` or `token`.
        what: &'static str,
    },
    /// A stored value that this program could not have written.
    #[error("the store is damaged: {place}: {found}")]
    Damaged {
        /// Table and row.
        place: String,
        /// What is there.
        found: String,
    },
    /// A file of rows.
    #[error(transparent)]
    Rows(#[from] polity_rows::RowsError),
}

impl StoreError {
    pub(crate) fn invalid(
        what: impl Into<String>,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) -> Self {
        StoreError::Invalid { what: what.into(), found: found.into(), expected: expected.into() }
    }

    pub(crate) fn refused(what: impl Into<String>, why: impl Into<String>) -> Self {
        StoreError::Refused { what: what.into(), why: why.into() }
    }

    pub(crate) fn not_found(what: &'static str, id: impl Into<String>) -> Self {
        StoreError::NotFound { what, id: id.into() }
    }
}

/// Names what was being done when the database failed.
pub(crate) trait Doing<T> {
    fn doing(self, doing: &'static str) -> Result<T>;
}

impl<T> Doing<T> for std::result::Result<T, sqlx::Error> {
    fn doing(self, doing: &'static str) -> Result<T> {
        self.map_err(|source| StoreError::Database { doing, source })
    }
}
