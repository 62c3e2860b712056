//! A site to look at and to drive a browser against: a panel in a temporary directory with material, known answers and the votes of eight people.
//!
//! There are also runs, one of which trains: it takes a step every second. Evaluations, verdicts and releases are there from the beginning.
//!
//! Prints one line of JSON (`address`, invite paths by role) and serves until its standard input ends.
//!
//! `cargo run -p polity-web --example site`

mod sample;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use polity_rows::{FileLock, Message, Text};
use polity_store::*;
use polity_web::{App, Boards, Options};
use serde_json::json;
use tokio::net::TcpListener;

const COMPARISONS: usize = 90;
const KNOWN: usize = 6;

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970").as_millis() as i64
}

/// A prompt, a better response and a worse one.
fn texts(n: usize) -> (Content, String, String) {
    let (a, b) = (3 + n % 17, 5 + n % 11);
    match n % 3 {
        0 => (
            Content::plain(format!("What is {a} + {b}? Please show how.")),
            format!("**{}.** Start at {a} and count {b} further:\n\n```\n{a} + {b} = {}\n```", a + b, a + b),
            format!("It is {}, I think. Numbers are fascinating, and there are many ways to look at a sum.", a + b + 1),
        ),
        1 => {
            let said = |role: &str, content: String| Message::new(role, content);
            let messages = vec![
                said("system", "You are a careful assistant for a library.".into()),
                said("user", format!("Do you have a book on gardening for shelf {a}?")),
                said("assistant", format!("Yes: *The Small Garden* and *Soil and Seed* both stand on shelf {a}.")),
                said("user", "Which of them is better for a balcony, and why?".into()),
            ];
            (
                Content::Text(Text::Messages(messages)),
                "*The Small Garden*. It has a chapter on pots and on how much water they need:\n\n| book | pots | beds |\n|---|---|---|\n| The Small Garden | yes | some |\n| Soil and Seed | no | yes |\n\n1. Read chapter 3 first.\n2. Then the table on page 40.".into(),
                "Both are books. A balcony is part of a house. Gardening is a hobby that many people enjoy, and it is a good idea to read a book about it before you start, since books hold information about gardening and balconies.".into(),
            )
        }
        _ => (
            Content::plain(format!("My neighbour's dog barks at night, {a} times an hour. What can I do?")),
            "Talk first, calmly and in daylight: they may not know.\n\n- Note the times for a week.\n- Offer a way out (a bark collar is not one; a later walk is).\n- If nothing helps, the town's office mediates, free of charge.".into(),
            "Bark back. <b>Seriously</b>, dogs bark; get used to it. See [this](javascript:alert(1)) or ![](https://example.org/dog.png).".into(),
        ),
    }
}

/// Whether a response is one of the better ones, by its words.
fn is_good(response: &Response) -> bool {
    let words = response.content.words();
    ["count", "chapter on pots", "Talk first"].iter().any(|telling| words.contains(telling))
}

async fn fill(store: &Store) -> Result<()> {
    let mut material = Material::default();
    for n in 0..COMPARISONS {
        let (prompt, good, bad) = texts(n);
        let id = prompt_id(&prompt);
        let category = ["arithmetic", "library", "advice"][n % 3];
        material.prompts.push(NewPrompt {
            content: prompt,
            category: category.into(),
            origin: "sample".into(),
        });
        // Prompts repeat after a while; the number keeps their responses apart.
        // Neither model is always the better one.
        let (writes_well, writes_badly) = if n % 4 == 0 { ("base", "sft") } else { ("sft", "base") };
        let responses = [(good, writes_well), (bad, writes_badly)].map(|(text, model)| NewResponse {
            prompt_id: id.clone(),
            content: Content::plain(if n < 30 { text } else { format!("{text}\n\n({n})") }),
            model: model.into(),
            model_hash: None,
            sampler: None,
            sample_index: None,
            origin: "sample".into(),
        });
        let ids = [0, 1].map(|i| response_id(&id, &responses[i].content, &responses[i].model));
        material.responses.extend(responses);
        let wanted = if n < 40 { 8 } else { 3 };
        material.comparisons.push(NewComparison {
            prompt_id: id,
            responses: ids,
            wanted,
            queued: true,
            origin: "sample".into(),
        });
    }
    let all = material.comparisons.iter().map(|new| comparison_id(&new.responses[0], &new.responses[1]));
    let all: Vec<String> = all.collect::<BTreeSet<_>>().into_iter().collect();
    store.add_material(material, now_ms()).await?;
    for id in all.iter().rev().take(KNOWN) {
        let texts = store.comparison(id).await?;
        let expected = if is_good(&texts.a) { "left2" } else { "right2" }.parse()?;
        let explanation = "The better one **answers what was asked**; the other talks around it.".to_owned();
        store
            .set_calibration(
                CalibrationItem { comparison_id: id.clone(), expected, explanation, active: true },
                "sample",
                now_ms(),
            )
            .await?;
    }
    Ok(())
}

/// Eight people who vote: mostly for the better one, one always for the left, one at random.
async fn vote(store: &Store) -> Result<()> {
    let open = Policy { calibration_first: 0, ..store.project().await?.policy };
    store.set_policy(open, "sample", now_ms()).await?;
    for (n, name) in ["Amina", "Bo", "Chen", "Dora", "Emil", "Farid", "Greta", "Hana"].iter().enumerate() {
        let account = store.add_account(name, None, [Role::Annotator].into(), "sample", now_ms()).await?;
        let mut chance = polity_stats::Stream::new(n as u64, "sample", 0);
        for _ in 0..28 {
            let Next::Assignment(given) = store.next(&account.id, now_ms()).await? else { break };
            let texts = store.comparison(&given.comparison_id).await?;
            let good = if is_good(&texts.a) { &texts.a.id } else { &texts.b.id };
            let right = match n {
                6 => given.left_response == *good,
                7 => chance.unit() < 0.5,
                _ => chance.unit() < 0.9,
            };
            let side = if (given.left_response == *good) == right { "left" } else { "right" };
            let answer = match chance.unit() {
                u if u < 0.08 && n < 6 => Answer::Tie,
                u => format!("{side}{}", 1 + (u * 2.99) as i64).parse()?,
            };
            let vote = NewVote {
                annotator_id: account.id.clone(),
                assignment_id: given.id,
                overall: answer,
                axes: [("helpful".to_owned(), answer)].into(),
                reason: if chance.unit() < 0.3 { "answers the question".into() } else { String::new() },
                shown_ms: Some(given.served_ms),
                work_ms: Some((3000.0 * (1.0 + 20.0 * chance.unit() * chance.unit())) as i64),
            };
            store.vote(vote, now_ms()).await?;
        }
    }
    let first = Policy { calibration_first: 2, ..store.project().await?.policy };
    store.set_policy(first, "sample", now_ms()).await
}

/// Steps of the run that trains which are there from the beginning.
const TRAINED: u64 = 90;
/// Of all.
const STEPS: u64 = 200;

/// Runs, what was measured of their models, what the gate said, what was released.
async fn govern(store: &Store, project: &Path) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let runs = project.join("runs");
    sample::write_run(&runs.join("ppo"), 1.0, STEPS, Some("2026-11-01T08:05:00Z"))?;
    sample::write_run(&runs.join("ppo-hard"), 2.2, STEPS, Some("2026-11-01T09:05:00Z"))?;
    sample::write_run(&runs.join("ppo-lost"), 0.7, 60, None)?;
    std::fs::write(runs.join("ppo-lost/.lock"), "")?;
    sample::write_run(&runs.join("ppo-now"), 1.3, TRAINED, None)?;
    let (base, good, other, hard) = ("3f9a81c2d4e5", "77ab01cd9e10", "91c0ffee2b", "deadbeef4455");
    for (place, model) in [("runs/sft", base), ("runs/ppo", good), ("runs/ppo-hard", hard)] {
        sample::recorded(store, place, model, now_ms()).await?;
    }
    let ada = store.add_account("Ada", None, [Role::Approver].into(), "sample", now_ms()).await?;
    let ben = store.add_account("Ben", None, [Role::Approver].into(), "sample", now_ms()).await?;
    sample::judged(store, other, base, true, 0, now_ms()).await?;
    sample::released(store, project, other, None, &ben.id, now_ms()).await?;
    let verdict = sample::judged(store, good, base, true, 1, now_ms()).await?;
    let asked =
        || Asked { model: good.into(), channel: "production".into(), verdict: Some(verdict.id.clone()) };
    let refused = store.may_release(asked(), &ben.id, now_ms()).await?;
    assert!(refused.is_err(), "nobody has approved it yet");
    store.approve(asked(), &ada.id, now_ms()).await?.map_err(|refusal| refusal.to_string())?;
    let release = sample::released(store, project, good, None, &ben.id, now_ms()).await?;
    let back = Rollback {
        channel: "production".into(),
        from: release.what.release,
        to: "production-1".into(),
        skipped: vec![],
    };
    store.add_rollback(back, &ada.id, now_ms()).await?;
    sample::released(store, project, good, Some(0.1), &ben.id, now_ms()).await?;
    sample::judged(store, hard, base, false, 0, now_ms()).await?;
    std::fs::create_dir_all(project.join("measures"))?;
    std::fs::write(project.join("measures/lost.json"), sample::evaluation("5bad5bad5bad", 0.45))?;
    Ok(())
}

/// Takes the steps of the run that trains, holding its lock as a trainer does.
fn train(run: &Path) -> std::io::Result<()> {
    let _lock = FileLock::take(&run.join(".lock"))?;
    let mut numbers = std::fs::OpenOptions::new().append(true).open(run.join("metrics.jsonl"))?;
    for n in TRAINED + 1..=STEPS {
        std::thread::sleep(Duration::from_secs(1));
        numbers.write_all(sample::step(n, 1.3).as_bytes())?;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let location = directory.path().join("store.db").to_string_lossy().into_owned();
    let seed: [u8; 32] = *blake3::hash(format!("{:?}", SystemTime::now()).as_bytes()).as_bytes();
    // Known answers come first only, since the browser's driver does not always answer well.
    let policy = Policy { calibration_share: 0.0, repeat_share: 0.05, ..Policy::usual() };
    let mut rubric = Rubric::usual();
    rubric.examples.push(Example {
        prompt: "What is the capital of France?".into(),
        left: "Paris.".into(),
        right: "France is a country with many cities.".into(),
        answer: "**A much better**: it answers the question.".into(),
    });
    let project = NewProject {
        name: "Helpful panel".into(),
        validation_share: 0.1,
        holdout_share: 0.1,
        policy,
        rubric,
    };
    let store = Store::create(&location, seed, project, "sample", now_ms()).await?;
    fill(&store).await?;
    vote(&store).await?;
    govern(&store, directory.path()).await?;
    let run = directory.path().join("runs/ppo-now");
    std::thread::spawn(move || train(&run));
    let mut invites = json!({});
    for role in Role::ALL {
        let secret =
            store.add_invite([role].into(), "sample", "sample", now_ms() + 86_400_000, now_ms()).await?;
        invites[role.name()] = json!(format!("/invite/{secret}"));
    }
    let options = Options {
        clock: Arc::new(now_ms),
        seed,
        behind_proxy: false,
        log: Arc::new(|line| eprintln!("{line}")),
        boards: Boards {
            dir: Some(directory.path().to_owned()),
            stages: vec![sample::board()],
            // The command line draws real ones.
            lineage: Some(Arc::new(|release| {
                Ok(format!(
                    "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 300 60\" width=\"300\" height=\"60\"><text x=\"9\" y=\"30\">{release}</text></svg>"
                ))
            })),
        },
    };
    let app = App::new(store.clone(), options).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", json!({"address": format!("http://{}", listener.local_addr()?), "invites": invites}));
    let stop = async {
        let read = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
        let _ = read.await;
    };
    polity_web::serve(listener, app, axum::Router::new(), stop).await?;
    store.close().await;
    Ok(())
}
