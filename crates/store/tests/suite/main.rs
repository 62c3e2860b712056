//! The store's behaviour, on SQLite and on PostgreSQL: every test below runs once for each.
//!
//! PostgreSQL is taken from `POLITY_TEST_POSTGRES`, the URL of a database that tests may make schemas in; `.ci/postgres` starts a server and
//! sets it. Where it is not set, the PostgreSQL half says that it was skipped.

mod backends;

mod accounts;
mod annotation;
mod dataset;
mod feedback;
mod import;
mod ledger;
mod look;
mod machine;
mod release;
mod simulate;
