//! A fork-join pool for many small pieces of work: spin, then park.
//!
//! A decoding step is a few hundred parallel loops of some microseconds each, so waking a sleeping
//! thread for each would cost more than the work. Workers spin for a moment after a loop and sleep
//! only when nothing comes.
//!
//! A loop is closed as soon as its tasks are done: a worker that the operating system has not scheduled
//! yet is not waited for, which matters on a machine that is shared.
//!
//! A thread begins with its own stretch of the tasks, the same in every loop of as many, and helps the others when it is done: what the
//! same rows left in its cache in the last loop is there in the next. Which thread runs which task is in the end left to chance, so
//! **no result may depend on it**: a task owns its outputs, and a sum is never split between tasks by the number of threads.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, Thread};

/// Spins before a worker sleeps: some tens of microseconds, the gap between two loops of a step.
const SPINS_MAX: u32 = 20_000;

/// The lowest bit of [`Shared::gate`] says that a loop is open; the rest of the low half counts the
/// workers inside; the high half counts the loops, so that a worker enters each at most once.
const OPEN: u64 = 1;
const WORKER: u64 = 2;
const EPOCH: u64 = 1 << 32;

type Job<'a> = &'a (dyn Fn(usize) + Sync);

struct Shared {
    gate: AtomicU64,
    /// The open loop's body; only read between entering and leaving the gate.
    job: Mutex<Option<Job<'static>>>,
    tasks: AtomicUsize,
    /// The next task of each thread's stretch, the caller's first.
    next: Vec<Next>,
    panicked: AtomicBool,
    sleeping: Vec<AtomicBool>,
    stop: AtomicBool,
}

/// On a cache line of its own.
#[repr(align(64))]
struct Next(AtomicUsize);

impl Shared {
    /// Where a thread's stretch of the tasks begins.
    fn start(&self, thread: usize, tasks: usize) -> usize {
        thread * tasks / self.next.len()
    }
}

/// Threads that run the tasks of a loop together with the caller.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    handles: Vec<Thread>,
    /// Held while a loop runs: one loop at a time; a second caller runs its own alone.
    running: Mutex<()>,
}

thread_local! {
    /// Set while this thread runs a task, so that a nested loop runs inline.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

impl Pool {
    /// `threads` counts the caller, so 1 starts no thread.
    pub(crate) fn new(threads: usize) -> Self {
        let count = threads.max(1) - 1;
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            job: Mutex::new(None),
            tasks: AtomicUsize::new(0),
            next: (0..=count).map(|_| Next(AtomicUsize::new(0))).collect(),
            panicked: AtomicBool::new(false),
            sleeping: (0..count).map(|_| AtomicBool::new(false)).collect(),
            stop: AtomicBool::new(false),
        });
        let workers: Vec<_> = (0..count)
            .map(|index| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("compute-{index}"))
                    .spawn(move || work(&shared, index))
                    .expect("the operating system gives a thread to a program that just started")
            })
            .collect();
        let handles = workers.iter().map(|w| w.thread().clone()).collect();
        Self { shared, workers, handles, running: Mutex::new(()) }
    }

    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `body(0)`, …, `body(tasks - 1)`, in any order, and returns when all are done.
    pub(crate) fn for_each(&self, tasks: usize, body: impl Fn(usize) + Sync) {
        let alone = tasks <= 1 || self.workers.is_empty() || INSIDE.get();
        let turn = if alone { None } else { self.running.try_lock().ok() };
        if turn.is_none() {
            (0..tasks).for_each(body);
            return;
        }
        let shared = &*self.shared;
        let job: Job<'_> = &body;
        // SAFETY: only the lifetime changes. A worker calls the job between entering and leaving the
        // gate; `Closing` shuts the gate and waits for every worker inside, also when a task panics
        // on this thread, so no call outlives `body`.
        let job: Job<'static> = unsafe { std::mem::transmute::<Job<'_>, Job<'static>>(job) };
        *shared.job.lock().expect("no task runs while this lock is held") = Some(job);
        shared.tasks.store(tasks, Relaxed);
        for (thread, next) in shared.next.iter().enumerate() {
            next.0.store(shared.start(thread, tasks), Relaxed);
        }
        shared.gate.fetch_add(EPOCH | OPEN, SeqCst);
        for (thread, sleeping) in self.handles.iter().zip(&shared.sleeping).take(tasks - 1) {
            if sleeping.load(SeqCst) {
                thread.unpark();
            }
        }
        let closing = Closing(shared);
        run_tasks(shared, job, 0);
        drop(closing);
        if shared.panicked.swap(false, Relaxed) {
            panic!("a task of a parallel loop panicked; its message is above");
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker never unwinds: it catches what a task throws.
            let _ = worker.join();
        }
    }
}

/// Shuts the gate and waits for the workers inside.
struct Closing<'a>(&'a Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.gate.fetch_and(!OPEN, SeqCst);
        let mut spins = 0u32;
        while self.0.gate.load(Acquire) & (EPOCH - 1) != 0 {
            spins += 1;
            if spins < SPINS_MAX { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
    }
}

/// As thread `own`.
fn run_tasks(shared: &Shared, job: Job<'_>, own: usize) {
    INSIDE.set(true);
    let _inside = Inside;
    let (tasks, threads) = (shared.tasks.load(Relaxed), shared.next.len());
    for thread in (own..threads).chain(0..own) {
        let end = shared.start(thread + 1, tasks);
        loop {
            let task = shared.next[thread].0.fetch_add(1, Relaxed);
            if task >= end {
                break;
            }
            job(task);
        }
    }
}

struct Inside;

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.set(false);
    }
}

fn work(shared: &Shared, index: usize) {
    let mut seen = 0;
    let mut spins = 0;
    while !shared.stop.load(Relaxed) {
        let gate = shared.gate.load(SeqCst);
        if gate & OPEN != 0 && gate / EPOCH != seen {
            if shared.gate.compare_exchange(gate, gate + WORKER, SeqCst, Relaxed).is_err() {
                continue;
            }
            seen = gate / EPOCH;
            spins = 0;
            let job = shared.job.lock().ok().and_then(|job| *job);
            if let Some(job) = job {
                let run = std::panic::AssertUnwindSafe(|| run_tasks(shared, job, index + 1));
                if std::panic::catch_unwind(run).is_err() {
                    shared.panicked.store(true, Relaxed);
                }
            }
            shared.gate.fetch_sub(WORKER, SeqCst);
        } else if spins < SPINS_MAX {
            spins += 1;
            std::hint::spin_loop();
        } else {
            shared.sleeping[index].store(true, SeqCst);
            // A loop that opened before the flag was up would not have woken this thread: look again.
            let gate = shared.gate.load(SeqCst);
            if (gate & OPEN == 0 || gate / EPOCH == seen) && !shared.stop.load(SeqCst) {
                std::thread::park();
            }
            shared.sleeping[index].store(false, SeqCst);
            spins = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads);
            for tasks in [0, 1, 2, 3, 100, 1000] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                for round in 1..=50 {
                    pool.for_each(tasks, |i| {
                        counts[i].fetch_add(1, Relaxed);
                    });
                    assert!(
                        counts.iter().all(|c| c.load(Relaxed) == round),
                        "{threads} threads, {tasks} tasks"
                    );
                }
            }
        }
    }

    #[test]
    fn wakes_up_after_sleeping() {
        let pool = Pool::new(3);
        for _ in 0..5 {
            std::thread::sleep(std::time::Duration::from_millis(5));
            let sum = AtomicUsize::new(0);
            pool.for_each(64, |i| {
                sum.fetch_add(i, Relaxed);
            });
            assert_eq!(sum.load(Relaxed), 64 * 63 / 2);
        }
    }

    #[test]
    fn nested_and_concurrent_loops_run() {
        let pool = Pool::new(2);
        let sum = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    pool.for_each(8, |_| {
                        pool.for_each(8, |_| {
                            sum.fetch_add(1, Relaxed);
                        });
                    });
                });
            }
        });
        assert_eq!(sum.load(Relaxed), 4 * 64);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2);
        for _ in 0..20 {
            let run = std::panic::AssertUnwindSafe(|| {
                pool.for_each(16, |i| {
                    if i == 7 {
                        std::panic::resume_unwind(Box::new("seven"))
                    }
                });
            });
            assert!(std::panic::catch_unwind(run).is_err());
            let sum = AtomicUsize::new(0);
            pool.for_each(16, |_| {
                sum.fetch_add(1, Relaxed);
            });
            assert_eq!(sum.load(Relaxed), 16);
        }
    }
}
