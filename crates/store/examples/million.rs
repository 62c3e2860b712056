//! A million votes: how long import, handing out, reading for agreement, freezing and verifying take.
//!
//! `cargo run --release -p polity-store --example million -- DIR [VOTES]` makes DIR/store.db; with a `postgres://` URL in place of DIR, a
//! store there. Prints one line a measurement.
//!
//! The clock is read here and not in the store, which is told the time.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use polity_stats::panel::{PanelSettings, panel_report};
use polity_store::*;

const T0: i64 = 1_700_000_000_000;
/// Votes on each imported comparison.
const OVERLAP: usize = 3;
/// Votes through the front door: next, then vote.
const LIVE_VOTES: usize = 2000;
/// Votes of a simulated panel of eight.
const SIMULATED_VOTES: u64 = 30_000;

#[tokio::main]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let place = args.next().expect("a directory or a URL");
    let votes: usize = args.next().map_or(1_000_000, |votes| votes.parse().expect("a number of votes"));
    let location = if place.contains("://") { place } else { format!("{place}/store.db") };
    let project = NewProject {
        name: "million".into(),
        validation_share: 0.1,
        holdout_share: 0.1,
        policy: Policy { calibration_share: 0.0, repeat_share: 0.0, ..Policy::usual() },
        rubric: Rubric::usual(),
    };
    let store = Store::create(&location, [1; 32], project, "bench", T0).await?;

    let file = std::env::temp_dir().join(format!("polity-million-{}.jsonl", std::process::id()));
    write_votes(&file, votes).expect("the temporary directory has room");
    let options =
        ImportOptions { take: Take::Votes, format: None, category: String::new(), wanted: 3, errors_max: 1 };
    let began = Instant::now();
    let parsed = read_import(&file, &options)?;
    told("read the file", began, parsed.votes.len());
    let began = Instant::now();
    let imported = store.import(parsed, "bench", T0).await?;
    told("import", began, imported.votes as usize);
    let _ = std::fs::remove_file(&file);

    // A queue as large as what was imported, and an annotator who works on it.
    let began = Instant::now();
    let queued = votes / OVERLAP;
    store.add_material(queue(queued), T0).await?;
    told("queue comparisons", began, queued);
    vote_live(&store).await?;
    simulate(&store).await?;

    let began = Instant::now();
    let judgements = store.judgements(JudgementFilter::default()).await?;
    told("judgements", began, judgements.len());
    let began = Instant::now();
    let votes = panel_votes(&judgements, &[])?;
    let report = panel_report(&votes, &PanelSettings::usual(1));
    told("agreement", began, report.counts.votes);
    assert!(report.no_reliability.is_none(), "{:?}", report.no_reliability);
    drop((judgements, votes));
    let began = Instant::now();
    told("review queue of 100", began, store.review_queue(100).await?.len());
    let began = Instant::now();
    let freeze = Freeze {
        name: "v1".into(),
        labels: LabelRule::Soft,
        machine_votes: false,
        votes_min: 1,
        model: None,
    };
    let (dataset, _) = store.freeze(freeze, "bench", T0).await?;
    told("freeze", began, (dataset.train_rows + dataset.validation_rows + dataset.holdout_rows) as usize);
    let began = Instant::now();
    let found = store.verify(None).await?;
    told("verify", began, found.votes as usize);
    assert!(found.bad.is_empty(), "{:?}", found.bad);
    store.close().await;
    Ok(())
}

async fn vote_live(store: &Store) -> Result<()> {
    store.add_annotator("ann", "ann", AnnotatorKind::Human, T0).await?;
    let mut waits_ms = Vec::new();
    let began = Instant::now();
    for turn in 0..LIVE_VOTES {
        let asked = Instant::now();
        let Next::Assignment(given) = store.next("ann", T0).await? else { break };
        waits_ms.push(asked.elapsed().as_secs_f64() * 1e3);
        let vote = NewVote {
            annotator_id: "ann".into(),
            assignment_id: given.id,
            overall: Answer::GIVEN[turn % Answer::GIVEN.len()],
            axes: Default::default(),
            reason: String::new(),
            shown_ms: Some(T0),
            work_ms: Some(5000),
        };
        store.vote(vote, T0).await?;
    }
    told("next and vote", began, waits_ms.len());
    waits_ms.sort_by(f64::total_cmp);
    println!(
        "next: median {:.2} ms, 99% {:.2} ms, most {:.2} ms",
        waits_ms[waits_ms.len() / 2],
        waits_ms[waits_ms.len() * 99 / 100],
        waits_ms[waits_ms.len() - 1]
    );
    Ok(())
}

async fn simulate(store: &Store) -> Result<()> {
    let who: Vec<String> = (0..8).map(|i| format!("simulated:{i}")).collect();
    for id in &who {
        store.add_annotator(id, id, AnnotatorKind::Simulated, T0).await?;
    }
    let began = Instant::now();
    let mut simulation =
        Simulation::new(who, 1, |shown| Answer::GIVEN[(shown.annotator + shown.left.len()) % 8]);
    let mut votes = 0;
    while votes < SIMULATED_VOTES {
        match store.simulate(&mut simulation, SIMULATED_VOTES - votes, T0).await? {
            0 => break,
            cast => votes += cast,
        }
    }
    told("simulated votes", began, votes as usize);
    Ok(())
}

fn told(what: &str, began: Instant, n: usize) {
    let seconds = began.elapsed().as_secs_f64();
    println!("{what}: {n} in {seconds:.2} s, {:.0} a second", n as f64 / seconds);
}

/// Three votes on each comparison, by 50 annotators.
fn write_votes(file: &Path, votes: usize) -> std::io::Result<()> {
    let mut out = std::io::BufWriter::new(std::fs::File::create(file)?);
    for vote in 0..votes {
        let item = vote / OVERLAP;
        let winner = ["a", "b", "tie"][(vote * 7 + item) % 3];
        let row = serde_json::json!({
            "prompt": format!("Prompt {item}: say something of about this length, as a person would."),
            "response_a": format!("The first answer to {item}, in a sentence or two."),
            "response_b": format!("The second answer to {item}, in a sentence or two."),
            "model_a": "m1", "model_b": "m2", "winner": winner,
            "annotator": format!("ann{}", vote % 50), "category": format!("c{}", item % 8),
        });
        writeln!(out, "{row}")?;
    }
    out.flush()
}

fn queue(n: usize) -> Material {
    let mut material = Material::default();
    for i in 0..n {
        let prompt = Content::plain(format!("Queued prompt {i}"));
        let id = prompt_id(&prompt);
        let responses = ["m1", "m2"].map(|model| {
            let content = Content::plain(format!("A response of {model} to queued prompt {i}"));
            let name = response_id(&id, &content, model);
            material.responses.push(NewResponse {
                prompt_id: id.clone(),
                content,
                model: model.into(),
                model_hash: None,
                sampler: None,
                sample_index: None,
                origin: "bench".into(),
            });
            name
        });
        let category = format!("c{}", i % 8);
        material.prompts.push(NewPrompt { content: prompt, category, origin: "bench".into() });
        material.comparisons.push(NewComparison {
            prompt_id: id,
            responses,
            wanted: 3,
            queued: true,
            origin: "bench".into(),
        });
    }
    material
}
