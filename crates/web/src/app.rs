//! What the pages share: the store, the clock, chance, limits and counters.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use polity_store::{Progress, Project, RubricVersion, Store, StoreError};
use tokio::sync::Semaphore;

use crate::boards::{Boards, Shelf};
use crate::figures::Figures;
use crate::limit::Limits;
use crate::metrics::Metrics;

/// Passwords hashed at the same time; each takes 19 MiB and a core.
const HASHERS: usize = 2;
/// How old the counts of the whole project may be: they read every comparison.
const PROGRESS_AGE_MS: i64 = 10_000;

/// What the server is started with.
pub struct Options {
    /// Now, in milliseconds since 1970.
    pub clock: Arc<dyn Fn() -> i64 + Send + Sync>,
    /// 32 random bytes, from which salts and form secrets come.
    pub seed: [u8; 32],
    /// Whether a proxy that speaks TLS stands before it: cookies are `Secure`, browsers are told to stay on TLS, and the
    /// client's address is the last one in `X-Forwarded-For`.
    pub behind_proxy: bool,
    /// Where a line about a failure or a refused sign-in goes. It never holds a secret, nor a path with one.
    pub log: Arc<dyn Fn(&str) + Send + Sync>,
    /// What the dashboards show beside the store.
    pub boards: Boards,
}

/// The server's state. Clones share it.
#[derive(Clone)]
pub struct App {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    project: Project,
    options: Options,
    drawn: AtomicU64,
    limits: Limits,
    metrics: Metrics,
    hashers: Semaphore,
    rubrics: Mutex<BTreeMap<i64, Arc<RubricVersion>>>,
    progress: Mutex<Option<(i64, Progress)>>,
    figures: tokio::sync::Mutex<Option<Arc<Figures>>>,
    shelf: Arc<Shelf>,
}

impl App {
    /// A server for an open store.
    pub async fn new(store: Store, options: Options) -> Result<App, StoreError> {
        let project = store.project().await?;
        let inner = Inner {
            shelf: Arc::new(Shelf::new(options.boards.clone())),
            store,
            project,
            options,
            drawn: AtomicU64::new(0),
            limits: Limits::default(),
            metrics: Metrics::default(),
            hashers: Semaphore::new(HASHERS),
            rubrics: Mutex::default(),
            progress: Mutex::default(),
            figures: tokio::sync::Mutex::default(),
        };
        Ok(App { inner: Arc::new(inner) })
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// The project's name.
    pub(crate) fn name(&self) -> &str {
        &self.inner.project.name
    }

    pub(crate) fn now_ms(&self) -> i64 {
        (self.inner.options.clock)()
    }

    pub(crate) fn behind_proxy(&self) -> bool {
        self.inner.options.behind_proxy
    }

    pub(crate) fn log(&self, line: &str) {
        (self.inner.options.log)(line);
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.inner.limits
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    pub(crate) fn hashers(&self) -> &Semaphore {
        &self.inner.hashers
    }

    /// The panel's figures, as last made; whoever holds the lock makes them.
    pub(crate) fn figures(&self) -> &tokio::sync::Mutex<Option<Arc<Figures>>> {
        &self.inner.figures
    }

    /// What the dashboards keep.
    pub(crate) fn shelf(&self) -> &Arc<Shelf> {
        &self.inner.shelf
    }

    /// 32 bytes that nobody can foresee: BLAKE3 of a counter under the seed as key.
    pub(crate) fn random(&self) -> [u8; 32] {
        let n = self.inner.drawn.fetch_add(1, Ordering::Relaxed);
        *blake3::keyed_hash(&self.inner.options.seed, &n.to_le_bytes()).as_bytes()
    }

    /// The rubric of a version, which never changes, so it is read once.
    pub(crate) async fn rubric(&self, version: i64) -> Result<Arc<RubricVersion>, StoreError> {
        if let Some(known) = self.rubrics().get(&version) {
            return Ok(known.clone());
        }
        let all = self.store().rubrics().await?;
        let mut known = self.rubrics();
        known.extend(all.into_iter().map(|rubric| (rubric.version, Arc::new(rubric))));
        known
            .get(&version)
            .cloned()
            .ok_or_else(|| StoreError::NotFound { what: "rubric version", id: version.to_string() })
    }

    fn rubrics(&self) -> std::sync::MutexGuard<'_, BTreeMap<i64, Arc<RubricVersion>>> {
        self.inner.rubrics.lock().expect("no holder of this lock can panic")
    }

    /// Counts of the whole project, a few seconds old at most.
    pub(crate) async fn progress(&self) -> Result<Progress, StoreError> {
        let now_ms = self.now_ms();
        let kept = self.inner.progress.lock().expect("no holder of this lock can panic").clone();
        if let Some((at_ms, progress)) = kept
            && (0..PROGRESS_AGE_MS).contains(&(now_ms - at_ms))
        {
            return Ok(progress);
        }
        let progress = self.store().progress().await?;
        *self.inner.progress.lock().expect("no holder of this lock can panic") =
            Some((now_ms, progress.clone()));
        Ok(progress)
    }
}
