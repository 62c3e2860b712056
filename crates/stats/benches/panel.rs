//! Time of a panel's statistics on a million votes: 100 000 comparisons, 200 annotators, ten votes on each.
//! Run: `cargo bench -p polity-stats --bench panel [-- COMPARISONS]`.

use std::time::Instant;

use polity_stats::agreement::agreement;
use polity_stats::panel::{PanelSettings, panel_report, reliability};
use polity_stats::vote::{Answer, Side, VoteRow, Votes};
use polity_stats::{CrowdPrior, Resampling, Stream};

fn main() {
    let comparisons = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(100_000);
    let (annotators, overlap) = (200, 10);
    let timed = |what: &str, start: Instant| println!("{what:<44} {:>7.2} s", start.elapsed().as_secs_f64());

    let start = Instant::now();
    let mut votes = Votes::new();
    let mut stream = Stream::new(1, "bench", 0);
    let names: Vec<String> = (0..annotators).map(|w| format!("annotator {w}")).collect();
    for i in 0..comparisons {
        let prompt = format!("prompt {i}");
        let delta = 4.0 * stream.unit() - 2.0;
        let first = stream.below(annotators);
        for k in 0..overlap {
            let w = (first + k * 17) % annotators;
            let noise = (1.0 / (1.0 - stream.unit()) - 1.0).max(1e-300).ln() * (1.0 + w as f64 / 100.0);
            let left_is_a = stream.unit() < 0.5;
            let d = delta + noise;
            let side = if (d > 0.0) == left_is_a { Side::Left } else { Side::Right };
            let answer = match d.abs() {
                x if x < 0.3 => Answer::Tie,
                x => Answer::Better { side, grade: 1 + u8::from(x > 1.5) + u8::from(x > 3.5) },
            };
            let (left, right) = if left_is_a { ("a", "b") } else { ("b", "a") };
            let row = VoteRow {
                prompt: &prompt,
                left,
                right,
                annotator: &names[w],
                answer,
                category: Some(["helpful", "harmless", "honest", "tone"][i % 4]),
                rubric: Some("v1"),
                time_ms: Some(i as i64 * 1000),
                duration_ms: Some(5000 + (w as u64) * 37),
                known: None,
            };
            votes.push(&row).expect("two responses");
        }
    }
    println!("{} votes, {} comparisons, {annotators} annotators", votes.votes.len(), votes.comparisons.len());
    timed("votes in", start);

    let how = Resampling { resamples: 1000, seed: 1, confidence: 0.95 };
    let start = Instant::now();
    let sides = votes.sides();
    agreement(&sides, how).alpha_nominal.expect("defined");
    timed("agreement on sides, 1000 resamples", start);

    let start = Instant::now();
    let grades = votes.grades();
    agreement(&grades, how).alpha_ordinal.expect("defined");
    timed("agreement on grades, 1000 resamples", start);

    let start = Instant::now();
    let fit = reliability(&votes, CrowdPrior::usual()).expect("a maximum");
    timed(&format!("reliability, {} steps", fit.iterations), start);

    let start = Instant::now();
    let report = panel_report(&votes, &PanelSettings::usual(1));
    timed("the whole report", start);
    assert_eq!(report.annotators.len(), annotators);
}
