//! The store's behaviour, on SQLite and on PostgreSQL: every test below runs once for each.
//!
//! PostgreSQL is taken from `POLITY_TEST_POSTGRES` (a URL of a database that tests may make schemas in). Where it is not set, a server is
//! started from the system's `postgres` binaries if there are any; if not, the PostgreSQL half says that it was skipped.

mod annotation;
mod backends;
