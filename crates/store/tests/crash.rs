//! A process that is killed loses no acknowledged vote and leaves no half dataset.
//!
//! The test starts itself as a child that votes and freezes as fast as it can, and prints each acknowledgement. After some of them it is killed with
//! SIGKILL, at a moment that the test does not choose. Then the store is opened and everything acknowledged must be there.
//! A simulated panel is killed in the same way, and its votes are those of one that was not.
//! (What a power cut adds, SQLite's `synchronous = FULL` and PostgreSQL's `fsync` answer for; no test here pulls a plug.)

#[path = "suite/backends.rs"]
#[allow(dead_code, reason = "made for the suite")]
mod backends;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use backends::*;
use polity_store::*;

const CHILD: &str = "POLITY_CRASH_TEST_STORE";
const SIMULATING: &str = "POLITY_CRASH_TEST_SIMULATED";
/// Acknowledgements before the kill, one run each: early, in the middle, and after several freezes.
const KILLED_AFTER: [usize; 3] = [1, 40, 250];

fn freeze(name: String) -> Freeze {
    Freeze { name, labels: LabelRule::Soft, machine_votes: false, votes_min: 1, model: None }
}

/// Votes and freezes until it is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Ok(location) = std::env::var(CHILD) else { return };
    let store = Store::open(&location, SEED, T0).await.unwrap();
    let freezing = store.clone();
    tokio::spawn(async move {
        for i in 0.. {
            let (dataset, _) =
                freezing.freeze(freeze(format!("d{}-{i}", std::process::id())), "cli", T0).await.unwrap();
            println!("\nfrozen {} {}", dataset.name, dataset.hash);
        }
    });
    let tasks = (0..8).map(|i| {
        let store = store.clone();
        tokio::spawn(async move {
            while let Some(given) = next(&store, &format!("ann{i}"), T0).await {
                let voted = store.vote(vote(&given, "left1"), T0).await.unwrap();
                println!("\nvoted {} {}", voted.seq, given.comparison_id);
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    println!("\nall voted");
}

async fn killed_while_voting(fixture: &Fixture) {
    let store = fixture.store(plain_policy(8)).await;
    store.add_material(material(300, 3, 8), T0).await.unwrap();
    annotators(&store, 8).await;
    store.close().await;
    for acknowledgements in KILLED_AFTER {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child", "--exact", "--nocapture"])
            .env(CHILD, &fixture.location)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut told = Vec::new();
        while told.len() < acknowledgements {
            let line = lines.next().expect("the child votes until it is killed").unwrap();
            assert_ne!(line, "all voted", "the child must be killed before it is done: give it more to do");
            if line.starts_with("voted ") || line.starts_with("frozen ") {
                told.push(line);
            }
        }
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();
        // What was said before the kill reached us, too.
        told.extend(lines.map_while(std::io::Result::ok).filter(|line| {
            line.starts_with("voted ") && line.len() > 34 || line.starts_with("frozen ") && line.len() > 64
        }));

        let store = Store::open(&fixture.location, SEED, T0).await.unwrap();
        let datasets = store.datasets().await.unwrap();
        for line in &told {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["voted", seq, comparison] => {
                    let votes = store.votes_on(comparison).await.unwrap();
                    assert!(votes.iter().any(|vote| vote.seq.to_string() == seq), "lost: {line}");
                }
                ["frozen", name, hash] => {
                    assert!(datasets.iter().any(|d| d.name == name && d.hash == hash), "lost: {line}");
                }
                _ => {}
            }
        }
        // Every dataset that is there is whole, and so is everything else.
        let found = store.verify(None).await.unwrap();
        assert_eq!(found.bad, [], "after {acknowledgements} acknowledgements");
        assert_eq!(found.datasets, datasets.len() as i64);
        store.close().await;
    }
}

/// A pure function of what is shown.
fn answer(shown: &Shown<'_>) -> Answer {
    Answer::GIVEN[(shown.annotator + shown.left.len()) % 8]
}

async fn simulate(store: &Store, who: Vec<String>, mut cast: impl FnMut(u64)) {
    let mut simulation = Simulation::new(who, 7, answer);
    loop {
        match store.simulate(&mut simulation, 40, T0).await.unwrap() {
            0 => return,
            votes => cast(votes),
        }
    }
}

/// Simulates until it is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn simulating_child() {
    let Ok(location) = std::env::var(SIMULATING) else { return };
    let store = Store::open(&location, SEED, T0).await.unwrap();
    let who = simulated(&store, 8).await;
    simulate(&store, who, |votes| println!("\ncast {votes}")).await;
    println!("\nall cast");
}

/// Every vote of a simulated panel, and everything that a vote leaves.
async fn simulated_history(store: &Store) -> (Vec<VoteRecord>, Vec<Comparison>) {
    let mut votes = Vec::new();
    for annotator in simulated(store, 8).await {
        votes.extend(store.votes_by(&annotator, i64::MAX).await.unwrap());
    }
    (votes, store.comparisons(None, "", i64::MAX).await.unwrap())
}

async fn killed_while_simulating(fixture: &Fixture) {
    let policy = || Policy { repeat_share: 0.1, ..plain_policy(4) };
    let mut histories = Vec::new();
    for (kills, fixture) in [(0, &sqlite()), (3, fixture)] {
        let store = fixture.store(policy()).await;
        store.add_material(material(600, 3, 4), T0).await.unwrap();
        store.close().await;
        for _ in 0..kills {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["simulating_child", "--exact", "--nocapture"])
                .env(SIMULATING, &fixture.location)
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            for _ in 0..10 {
                let line = lines.by_ref().map_while(std::io::Result::ok).find(|line| line.contains("cast "));
                assert_eq!(line.as_deref(), Some("cast 40"), "killed before it is done");
            }
            child.kill().unwrap(); // SIGKILL
            child.wait().unwrap();
        }
        let store = Store::open(&fixture.location, SEED, T0).await.unwrap();
        let there = store.progress().await.unwrap().votes;
        assert!(kills == 0 || (400 * kills..2400).contains(&there), "{there} votes after {kills} kills");
        let who = simulated(&store, 8).await;
        simulate(&store, who, |_| ()).await;
        assert_eq!(store.verify(None).await.unwrap().bad, []);
        histories.push(simulated_history(&store).await);
        store.close().await;
    }
    let [(votes, comparisons), killed] = &histories[..] else { unreachable!("there are two") };
    assert_eq!((killed.0.len(), &killed.1), (votes.len(), comparisons));
    for (vote, expected) in killed.0.iter().zip(votes) {
        assert_eq!(vote, expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_simulation_goes_on_as_if_it_had_not_been() {
    killed_while_simulating(&sqlite()).await;
    if let Some(fixture) = postgres().await {
        killed_while_simulating(&fixture).await;
        fixture.remove().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_survives_a_kill() {
    killed_while_voting(&sqlite()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_survives_a_kill() {
    if let Some(fixture) = postgres().await {
        killed_while_voting(&fixture).await;
        fixture.remove().await;
    }
}
