//! How well reliabilities and side biases are recovered on panels whose flaws are known. Prints the tables of
//! docs/agreement.md.
//! Run: `cargo run --release -p polity-stats --example panel_study [-- TRIALS]`.

use polity_stats::agreement::with_majority;
use polity_stats::vote::{Answer, Side, VoteRow, Votes};
use polity_stats::{CrowdPairs, CrowdPrior, Outcome, PairVote, Stream, normal_interval, side_bias, wilson};
use polity_world::{Panel, Split, Vote, World};

/// Reliability and side logit of the simulated annotators.
const PANEL: [(f64, f64); 8] =
    [(0.95, 0.0), (0.90, 0.0), (0.90, 0.8), (0.80, 0.0), (0.70, -0.8), (0.60, 0.0), (0.50, 1.2), (0.30, 0.0)];

fn main() {
    let trials = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(400);
    println!("{trials} panels of each size, differences N(0, 2²), 95 % intervals\n");
    println!(
        "| comparisons | votes on each | reliability: mean error | covered | side logit: mean error | covered |"
    );
    println!("|---|---|---|---|---|---|");
    for (pairs, overlap) in [(200, 3), (400, 4), (1000, 4), (400, 8)] {
        let mut errors = [0.0; 2];
        let mut covered = [0; 2];
        for trial in 0..trials {
            let fit = simulate(pairs, overlap, trial as u64);
            for (w, (annotator, (gamma, q))) in fit.annotators.iter().zip(PANEL).enumerate() {
                errors[0] += annotator.reliability - gamma;
                errors[1] += annotator.side_logit - q;
                let (low, high) = fit.interval(w, 0.95).expect("the information is positive definite");
                covered[0] += usize::from(low <= gamma && gamma <= high);
                let se = annotator.side_logit_se.expect("as above");
                let (low, high) = normal_interval(annotator.side_logit, se, 0.95);
                covered[1] += usize::from(low <= q && q <= high);
            }
        }
        let n = trials * PANEL.len();
        let share = |k: usize| {
            let share = wilson(k, n, 0.95).expect("there are trials");
            format!("{:.1} % ({:.1} to {:.1})", 100.0 * share.estimate, 100.0 * share.low, 100.0 * share.high)
        };
        println!(
            "| {pairs} | {overlap} | {:+.3} | {} | {:+.3} | {} |",
            errors[0] / n as f64,
            share(covered[0]),
            errors[1] / n as f64,
            share(covered[1])
        );
    }
    tiny_world();
}

fn simulate(pairs: usize, overlap: usize, seed: u64) -> CrowdPairs {
    let mut stream = Stream::new(seed, "panel study", 0);
    let mut votes = Vec::with_capacity(pairs * overlap);
    for pair in 0..pairs {
        let delta = 2.0 * normal(&mut stream);
        // `overlap` different annotators: the head of a shuffle.
        let mut order: Vec<usize> = (0..PANEL.len()).collect();
        for i in 0..overlap {
            order.swap(i, i + stream.below(PANEL.len() - i));
        }
        for &w in &order[..overlap] {
            let (gamma, q) = PANEL[w];
            let first_on_left = stream.unit() < 0.5;
            let left = if first_on_left { delta } else { -delta };
            let p = if stream.unit() < gamma { sigmoid(left) } else { sigmoid(q) };
            let outcome = if stream.unit() < p { Outcome::Left } else { Outcome::Right };
            votes.push(PairVote { pair: pair as u32, annotator: w as u32, first_on_left, outcome });
        }
    }
    CrowdPairs::fit(pairs, PANEL.len(), &votes, CrowdPrior::usual()).expect("a maximum")
}

/// The tiny world's panel, whose flaws are not the model's: noise, taste, pull of a side and blind guesses.
fn tiny_world() {
    let world = World::new(7);
    let panel = Panel::standard(7);
    let demonstrations = world.demonstrations(6000);
    let mut votes = Votes::new();
    let mut stream = Stream::new(7, "sides", 0);
    let mut truth = Vec::new(); // Gold utility of first less second, for each comparison.
    for (i, two) in demonstrations.windows(2).enumerate() {
        // A demonstration against what the next one would have said here: usually worse, not always.
        let (prompt, own, other) = (&two[0].prompt, &two[0].response, &two[1].response);
        if own == other || prompt.split != Split::Train || i % 6 > 0 {
            continue;
        }
        let known = votes.comparisons.len();
        for a in 0..panel.annotators.len() {
            let own_left = stream.unit() < 0.5;
            let (left, right) = if own_left { (own, other) } else { (other, own) };
            let answer = match panel.vote(a, &format!("{i}"), prompt, left, right) {
                Vote::Prefers { side: polity_world::Side::Left, grade } => {
                    Answer::Better { side: Side::Left, grade }
                }
                Vote::Prefers { side: polity_world::Side::Right, grade } => {
                    Answer::Better { side: Side::Right, grade }
                }
                Vote::Tie => Answer::Tie,
                Vote::BothBad => Answer::BothBad,
            };
            let row = VoteRow {
                prompt: &format!("{}/{i}", prompt.id),
                left,
                right,
                annotator: &panel.annotators[a].name,
                answer,
                category: None,
                rubric: None,
                time_ms: None,
                duration_ms: None,
                known: None,
            };
            votes.push(&row).expect("two different responses");
        }
        if votes.comparisons.len() > known {
            let gold = world.gold(prompt, own).total - world.gold(prompt, other).total;
            truth.push(if own < other { gold } else { -gold });
        }
    }
    let fit = polity_stats::panel::reliability(&votes, CrowdPrior::usual()).expect("a maximum");
    let mut split = vec![(0, 0); panel.annotators.len()];
    for vote in &votes.votes {
        let strength = vote.left_strength();
        split[vote.annotator as usize].0 += usize::from(strength > 0);
        split[vote.annotator as usize].1 += usize::from(strength != 0);
    }
    println!("\nThe tiny world's panel on {} comparisons\n", votes.comparisons.len());
    println!("| annotator | flaw | with the majority | reliability | side logit | left share, adjusted p |");
    println!("|---|---|---|---|---|---|");
    let majorities = with_majority(&votes.sides(), 0.95);
    for (w, bias) in side_bias(&split).iter().enumerate() {
        let r = fit.annotators[w];
        println!(
            "| {} | {} | {:.2} | {:.2} ± {:.2} | {:+.2} ± {:.2} | {:.2}, {:.1e} |",
            panel.annotators[w].name,
            panel.annotators[w].flaw,
            majorities[w].agreed as f64 / majorities[w].items as f64,
            r.reliability,
            r.reliability_se.unwrap_or(f64::NAN),
            r.side_logit,
            r.side_logit_se.unwrap_or(f64::NAN),
            bias.left as f64 / bias.decided as f64,
            bias.p_adjusted
        );
    }
    // Which label is nearer to the truth, where there is one.
    let sides = votes.sides();
    let (mut majority, mut model, mut n) = (0.0, 0.0, 0.0);
    for (item, &gold) in truth.iter().enumerate().filter(|(_, gold)| gold.abs() > 0.05) {
        let share: f64 = sides.item(item).iter().map(|&(_, level)| f64::from(level) / 2.0).sum::<f64>()
            / sides.item(item).len() as f64;
        let right = |p: f64| match (p - 0.5) * gold {
            x if x > 0.0 => 1.0,
            x if x < 0.0 => 0.0,
            _ => 0.5,
        };
        majority += right(share);
        model += right(fit.labels[item].first);
        n += 1.0;
    }
    println!(
        "\nRight about which response has more gold utility: vote share {:.3}, reliability model {:.3} of {n} comparisons.",
        majority / n,
        model / n
    );
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Box and Muller.
fn normal(stream: &mut Stream) -> f64 {
    (-2.0 * (1.0 - stream.unit()).ln()).sqrt() * (std::f64::consts::TAU * stream.unit()).cos()
}
