//! The connection: which back end, one writer, many readers.
//!
//! All changes go through one task. It takes whatever jobs are waiting (up to [`JOBS_PER_COMMIT`]), runs each inside a
//! savepoint of one transaction, commits once, and only then answers: an answer means that the change is on the disk, and fifty
//! annotators share the cost of one flush. A job that fails is rolled back to its savepoint; the others are untouched. A job
//! runs to its end even if the caller has gone away.
//!
//! SQLite: write-ahead log, `synchronous = FULL`, transactions begin immediate, so that several processes queue rather than fail.
//! PostgreSQL: the transaction takes an advisory lock on the store, so that "one writer" holds across servers too.
//!
//! Statements use `$1`, TEXT, BIGINT and DOUBLE PRECISION alone, which both back ends read the same way.
//!
//! Not here: the schema (`migrate`), what is written.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::{AnyConnection, AnyPool, Connection};
use tokio::sync::{mpsc, oneshot};

use crate::error::{Doing, Result, StoreError};
use crate::migrate;

/// Most changes that share one commit.
pub const JOBS_PER_COMMIT: usize = 64;
/// How long a process waits for another one that is writing.
const BUSY_S: u64 = 60;
/// Connections that read at the same time.
const READERS: u32 = 4;
/// PostgreSQL's advisory lock, by the key "polity" in ASCII, and the first job's savepoint. `Any` cannot read what the function
/// returns (void), hence the cast.
const LOCK_AND_SAVEPOINT: &str =
    "SELECT CAST(pg_advisory_xact_lock(x'706f6c697479'::bigint) AS TEXT); SAVEPOINT job";

/// A future that borrows a connection.
pub(crate) type Boxed<'c, T> = Pin<Box<dyn Future<Output = T> + Send + 'c>>;

/// Where the store lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// One file beside the project.
    Sqlite,
    /// A database on a server.
    Postgres,
}

/// An open store. Cheap to clone; clones share the connections.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    backend: Backend,
    url: String,
    read: AnyPool,
    jobs: mpsc::Sender<Message>,
    rng: Mutex<ChaCha20Rng>,
    meter: Meter,
}

/// Rows that long work has handled.
#[derive(Clone, Default)]
pub(crate) struct Meter(Arc<AtomicU64>);

impl Meter {
    pub fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

enum Message {
    Job(Job),
    Close(oneshot::Sender<()>),
}

type Job = Box<dyn for<'c> FnOnce(&'c mut AnyConnection) -> Boxed<'c, Outcome> + Send>;

/// What a job leaves to do once its transaction has ended.
enum Outcome {
    /// Keep the change, then answer with whether the commit succeeded.
    Keep(Box<dyn FnOnce(std::result::Result<(), String>) + Send>),
    /// Undo the change, then answer.
    Undo(Box<dyn FnOnce() + Send>),
}

impl Store {
    /// Connects; makes or migrates the schema if `create`, else requires a store.
    pub(crate) async fn connect(location: &str, seed: [u8; 32], create: bool, now_ms: i64) -> Result<Store> {
        sqlx::any::install_default_drivers();
        let place = Location::parse(location)?;
        if let Location::Sqlite { path, .. } = &place
            && path != ":memory:"
        {
            let exists = std::path::Path::new(path).is_file();
            if !create && !exists {
                return Err(StoreError::Missing { url: place.shown() });
            }
        }
        let backend = place.backend();
        let options: AnyConnectOptions = place
            .url(create)
            .parse()
            .map_err(|source| StoreError::Database { doing: "read the store's URL", source })?;
        // One connection first: a pool would try again and again where there is no database to be had.
        let mut first = AnyConnection::connect_with(&options).await.doing("open the store")?;
        sqlx::raw_sql(session(backend, false)).execute(&mut first).await.doing("open the store")?;
        migrate::migrate(&mut first, backend, create, &place.shown(), now_ms).await?;
        first.close().await.doing("open the store")?;
        let pool = |connections: u32, read_only: bool| {
            AnyPoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(Duration::from_secs(BUSY_S))
                .after_connect(move |connection, _| {
                    Box::pin(async move {
                        sqlx::raw_sql(session(backend, read_only)).execute(connection).await.map(|_| ())
                    })
                })
                .connect_lazy_with(options.clone())
        };
        let (writer, read) = (pool(1, false), pool(READERS, true));
        let (jobs, inbox) = mpsc::channel(4 * JOBS_PER_COMMIT);
        tokio::spawn(write_loop(writer, backend, inbox));
        let rng = Mutex::new(ChaCha20Rng::from_seed(seed));
        Ok(Store {
            inner: Arc::new(Inner { backend, url: place.shown(), read, jobs, rng, meter: Meter::default() }),
        })
    }

    /// Which back end.
    pub fn backend(&self) -> Backend {
        self.inner.backend
    }

    /// Where, for messages; a password is left out.
    pub fn location(&self) -> &str {
        &self.inner.url
    }

    /// Rows that imports, freezes, verifications and [`Store::judgements`] have handled since the store was opened: how far along they are.
    pub fn rows_handled(&self) -> u64 {
        self.inner.meter.0.load(Ordering::Relaxed)
    }

    pub(crate) fn meter(&self) -> Meter {
        self.inner.meter.clone()
    }

    /// Waits for what is being written, then closes every connection.
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.inner.jobs.send(Message::Close(done)).await.is_ok() {
            let _ = closed.await;
        }
        self.inner.read.close().await;
    }

    /// Runs `read` on a connection that cannot write.
    pub(crate) async fn read<T, F>(&self, read: F) -> Result<T>
    where
        F: for<'c> FnOnce(&'c mut AnyConnection) -> Boxed<'c, Result<T>>,
    {
        let mut connection = self.inner.read.acquire().await.doing("open a connection")?;
        read(&mut connection).await
    }

    /// Runs `change` in a transaction; an `Ok` means that it is on the disk.
    pub(crate) async fn write<T, F>(&self, change: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut AnyConnection) -> Boxed<'c, Result<T>> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel::<Result<T>>();
        let job: Job = Box::new(move |connection| {
            Box::pin(async move {
                match change(connection).await {
                    Ok(value) => Outcome::Keep(Box::new(move |committed| {
                        let _ = reply
                            .send(committed.map(|()| value).map_err(|found| StoreError::Commit { found }));
                    })),
                    Err(error) => Outcome::Undo(Box::new(move || {
                        let _ = reply.send(Err(error));
                    })),
                }
            })
        });
        self.inner.jobs.send(Message::Job(job)).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// 64 random bits of the store's generator.
    pub(crate) fn random(&self) -> u64 {
        self.inner.rng.lock().expect("no holder of this lock can panic").next_u64()
    }

    /// A secret of 256 bits, as hex.
    pub(crate) fn secret(&self) -> String {
        let mut bytes = [0; 32];
        self.inner.rng.lock().expect("no holder of this lock can panic").fill_bytes(&mut bytes);
        crate::id::hex(&bytes)
    }
}

/// What each connection is told first.
fn session(backend: Backend, read_only: bool) -> &'static str {
    match (backend, read_only) {
        (Backend::Sqlite, false) => {
            "PRAGMA busy_timeout = 60000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
             PRAGMA foreign_keys = ON; PRAGMA cache_size = -65536;"
        }
        (Backend::Sqlite, true) => {
            "PRAGMA busy_timeout = 60000; PRAGMA query_only = ON; PRAGMA cache_size = -32768;"
        }
        (Backend::Postgres, false) => "SET client_min_messages = warning;",
        (Backend::Postgres, true) => {
            "SET client_min_messages = warning; SET default_transaction_read_only = on;"
        }
    }
}

async fn write_loop(pool: AnyPool, backend: Backend, mut inbox: mpsc::Receiver<Message>) {
    while let Some(message) = inbox.recv().await {
        let mut jobs = Vec::new();
        let mut closing = None;
        match message {
            Message::Job(job) => jobs.push(job),
            Message::Close(done) => closing = Some(done),
        }
        while closing.is_none() && jobs.len() < JOBS_PER_COMMIT {
            match inbox.try_recv() {
                Ok(Message::Job(job)) => jobs.push(job),
                Ok(Message::Close(done)) => closing = Some(done),
                Err(_) => break,
            }
        }
        if !jobs.is_empty() {
            commit_together(&pool, backend, jobs).await;
        }
        if let Some(done) = closing {
            pool.close().await;
            let _ = done.send(());
            return;
        }
    }
    pool.close().await;
}

/// Runs the jobs in one transaction and answers each. A failure to begin or to commit is every job's failure.
async fn commit_together(pool: &AnyPool, backend: Backend, jobs: Vec<Job>) {
    let mut answers = Vec::with_capacity(jobs.len());
    let committed = run_together(pool, backend, jobs, &mut answers).await.map_err(|error| error.to_string());
    for answer in answers {
        match answer {
            Outcome::Keep(answer) => answer(committed.clone()),
            Outcome::Undo(answer) => answer(),
        }
    }
}

async fn run_together(
    pool: &AnyPool,
    backend: Backend,
    jobs: Vec<Job>,
    answers: &mut Vec<Outcome>,
) -> std::result::Result<(), sqlx::Error> {
    let mut connection = pool.acquire().await?;
    let begin = match backend {
        Backend::Sqlite => "BEGIN IMMEDIATE",
        Backend::Postgres => "BEGIN",
    };
    let mut transaction = connection.begin_with(begin).await?;
    sqlx::raw_sql(match backend {
        Backend::Sqlite => "SAVEPOINT job",
        Backend::Postgres => LOCK_AND_SAVEPOINT,
    })
    .execute(&mut *transaction)
    .await?;
    for job in jobs {
        // A bug in one job must not take the writer down. Its answer is dropped, which its caller sees.
        let outcome = AssertUnwindSafe(job(&mut transaction)).catch_unwind().await;
        // Going back keeps the savepoint, for the next job.
        let then = match outcome {
            Ok(Outcome::Keep(_)) => "RELEASE SAVEPOINT job; SAVEPOINT job",
            _ => "ROLLBACK TO SAVEPOINT job",
        };
        sqlx::raw_sql(then).execute(&mut *transaction).await?;
        answers.extend(outcome.ok());
    }
    transaction.commit().await
}

/// Where a store is, told apart.
enum Location {
    Sqlite { path: String },
    Postgres { url: String },
}

impl Location {
    fn parse(location: &str) -> Result<Location> {
        if location.starts_with("postgres://") || location.starts_with("postgresql://") {
            return Ok(Location::Postgres { url: location.to_owned() });
        }
        let path = location.strip_prefix("sqlite://").or_else(|| location.strip_prefix("sqlite:"));
        match path {
            Some(path) => Ok(Location::Sqlite { path: path.to_owned() }),
            None if location.contains("://") || location.is_empty() => {
                Err(StoreError::Url { url: without_password(location) })
            }
            None => Ok(Location::Sqlite { path: location.to_owned() }),
        }
    }

    fn backend(&self) -> Backend {
        match self {
            Location::Sqlite { .. } => Backend::Sqlite,
            Location::Postgres { .. } => Backend::Postgres,
        }
    }

    fn url(&self, create: bool) -> String {
        match self {
            Location::Postgres { url } => url.clone(),
            Location::Sqlite { path } => {
                let mode = if create { "rwc" } else { "rw" };
                format!("sqlite://{}?mode={mode}", percent_encoded(path))
            }
        }
    }

    fn shown(&self) -> String {
        match self {
            Location::Sqlite { path } => path.clone(),
            Location::Postgres { url } => without_password(url),
        }
    }
}

fn percent_encoded(path: &str) -> String {
    let mut encoded = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' | b'~' | b':' => {
                encoded.push(byte as char);
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// `postgres://user:secret@host/db` without the secret.
fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let Some((who, place)) = rest.rsplit_once('@') else { return url.to_owned() };
    let name = who.split(':').next().unwrap_or_default();
    // Options may hold a password too.
    let place = place.split('?').next().unwrap_or_default();
    format!("{scheme}://{name}@{place}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_shown() {
        let check = |url: &str, expect: &str| assert_eq!(without_password(url), expect);
        check("postgres://ann:s3cret@db/polity", "postgres://ann@db/polity");
        check("postgres://ann:p@ss@db/polity?password=x", "postgres://ann@db/polity");
        check("postgres://db/polity", "postgres://db/polity");
        check("store.db", "store.db");
    }

    #[test]
    fn locations_are_told_apart() {
        let backend = |location: &str| Location::parse(location).map(|place| place.backend());
        assert_eq!(backend("a b/store.db").unwrap(), Backend::Sqlite);
        assert_eq!(backend("sqlite:///x/store.db").unwrap(), Backend::Sqlite);
        assert_eq!(backend("postgresql://h/d").unwrap(), Backend::Postgres);
        assert!(matches!(backend("mysql://h/d"), Err(StoreError::Url { .. })));
        let url = Location::parse("a b?/100%.db").unwrap().url(false);
        assert_eq!(url, "sqlite://a%20b%3F/100%25.db?mode=rw");
    }
}
