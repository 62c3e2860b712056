//! A process that is killed loses no acknowledged vote and leaves no half dataset.
//!
//! The test starts itself as a child that votes and freezes as fast as it can, and prints each acknowledgement. After some of them it is killed with
//! SIGKILL, at a moment that the test does not choose. Then the store is opened and everything acknowledged must be there.
//! (What a power cut adds, SQLite's `synchronous = FULL` and PostgreSQL's `fsync` answer for; no test here pulls a plug.)

#[path = "suite/backends.rs"]
#[allow(dead_code, reason = "made for the suite")]
mod backends;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use backends::*;
use polity_store::*;

const CHILD: &str = "POLITY_CRASH_TEST_STORE";
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
