//! Reward models from the labels of a bad panel: majority, vote share, and the reliability model's. Prints the table of
//! docs/agreement.md.
//!
//! Ten annotators on responses of the tiny world: four look (one of them with a shaky hand), three guess, two answer left
//! whatever they see, one prefers what is worse. Three votes on each comparison. Of the same votes three files of labels are
//! made, a reward model is trained on each, and each is asked about comparisons of other prompts, where the gold utility
//! says who is right. Each seed has comparisons, votes and training of its own; differences are within seeds.
//!
//! Run: `cargo run --release -p polity-stats --example crowd_labels -- POLITY MODEL DIR [SEEDS [COMPARISONS]]`; `POLITY` is the program,
//! `MODEL` the directory `runs/sft/model` of a `polity demo`, `DIR` a new directory.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::process::Command;

use polity_stats::{CrowdPairs, CrowdPrior, Outcome, PairVote, Stream, mean};
use polity_world::{Annotator, Demonstration, Panel, Vote, World};
use serde_json::{Value, json};

/// The world, as the demo has it.
const WORLD_SEED: u64 = 42;
const OVERLAP: usize = 3;
/// Demonstrations to draw responses from: several to each prompt.
const DEMONSTRATIONS: usize = 30_000;
/// Difference of gold utility from which a comparison is asked about: below, both answers are right.
const GOLD_APART: f64 = 0.05;
const ARMS: [&str; 3] = ["majority", "vote share", "reliability model"];

type Failure = Box<dyn std::error::Error>;

/// Two responses to one prompt.
struct Pair<'a> {
    first: &'a Demonstration,
    second: &'a Demonstration,
}

impl Pair<'_> {
    fn row(&self, first_better: bool, label: Option<f64>) -> Value {
        let (chosen, rejected) =
            if first_better { (self.first, self.second) } else { (self.second, self.first) };
        let mut row = json!({
            "prompt": format!("person : {} helper :", self.first.prompt.text),
            "chosen": format!(" {}", chosen.response),
            "rejected": format!(" {}", rejected.response),
        });
        if let Some(label) = label {
            row["label"] = label.into();
        }
        row
    }
}

fn bad_panel(seed: u64) -> Panel {
    let steady = Panel::standard(seed).annotators[0].clone();
    let with = |flaw: &str, change: fn(&mut Annotator)| {
        let mut annotator = steady.clone();
        annotator.flaw = flaw.into();
        change(&mut annotator);
        annotator
    };
    let mut annotators = vec![
        with("careful", |_| ()),
        with("careful", |_| ()),
        with("careful", |_| ()),
        with("noise", |a| a.temperature = 3.0),
        with("guesses", |a| a.careless = 1.0),
        with("guesses", |a| a.careless = 1.0),
        with("guesses", |a| a.careless = 1.0),
        with("always left", |a| a.left_pull = 8.0),
        with("always left", |a| a.left_pull = 8.0),
        with("prefers the worse", |a| (a.gain, a.per_filler) = (-a.gain, -a.per_filler)),
    ];
    for (w, annotator) in annotators.iter_mut().enumerate() {
        annotator.name = format!("{} {w}", annotator.flaw);
    }
    Panel { seed, annotators }
}

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [polity, model, dir, rest @ ..] = args.as_slice() else {
        return Err("expected POLITY MODEL DIR [SEEDS [COMPARISONS]]".into());
    };
    let number = |i: usize, usual: usize| rest.get(i).map_or(Ok(usual), |text| text.parse());
    let (seeds, comparisons) = (number(0, 10)?, number(1, 1500)?);
    let world = World::new(WORLD_SEED);
    let demonstrations = world.demonstrations(DEMONSTRATIONS);
    let mut by_prompt: HashMap<&str, Vec<&Demonstration>> = HashMap::new();
    for demonstration in &demonstrations {
        by_prompt.entry(&demonstration.prompt.id).or_default().push(demonstration);
    }
    let mut prompts: Vec<Vec<&Demonstration>> = by_prompt.into_values().collect();
    prompts.sort_by(|a, b| a[0].prompt.id.cmp(&b[0].prompt.id));

    let mut accuracies: [Vec<f64>; ARMS.len()] = Default::default();
    let mut labels: [Vec<f64>; ARMS.len()] = Default::default();
    for seed in 1..=seeds as u64 {
        let dir = Path::new(dir).join(format!("seed-{seed}"));
        std::fs::create_dir_all(&dir)?;
        let right = write_rows(&world, &prompts, comparisons, seed, &dir)?;
        for arm in 0..ARMS.len() {
            labels[arm].push(right[arm]);
            accuracies[arm].push(train(polity, model, &dir, arm, seed)?);
        }
        eprintln!("seed {seed}: {:?}", accuracies.each_ref().map(|of| of[of.len() - 1]));
    }

    let percent = |values: &[f64]| -> Result<String, Failure> {
        let all = mean(values, 0.95)?;
        Ok(format!("{:.1} ({:.1} to {:.1})", 100.0 * all.estimate, 100.0 * all.low, 100.0 * all.high))
    };
    println!(
        "{seeds} seeds, {comparisons} comparisons with {OVERLAP} votes each; %, 95 % t intervals over seeds\n"
    );
    println!("| labels | labels right | reward model right | less majority's |");
    println!("|---|---|---|---|");
    for arm in 0..ARMS.len() {
        let apart: Vec<f64> = accuracies[arm].iter().zip(&accuracies[0]).map(|(a, b)| a - b).collect();
        let apart = if arm == 0 { String::new() } else { percent(&apart)? };
        println!("| {} | {} | {} | {apart} |", ARMS[arm], percent(&labels[arm])?, percent(&accuracies[arm])?);
    }
    Ok(())
}

/// Writes one file of training rows for each arm, and the comparisons to ask about. Returns how often each arm's labels are
/// right where the gold utility is clear.
fn write_rows(
    world: &World,
    prompts: &[Vec<&Demonstration>],
    comparisons: usize,
    seed: u64,
    dir: &Path,
) -> Result<[f64; ARMS.len()], Failure> {
    let mut stream = Stream::new(seed, "comparisons", 0);
    let gold = |of: &Demonstration| world.gold(&of.prompt, &of.response).total;
    let panel = bad_panel(seed);
    let (mut train, mut votes) = (Vec::new(), Vec::new());
    let mut asked = BufWriter::new(File::create(dir.join("gold.jsonl"))?);
    let mut held_out = 0;
    while train.len() < comparisons || held_out < comparisons / 2 {
        let p = stream.below(prompts.len());
        let of = &prompts[p];
        let (first, second) = (of[stream.below(of.len())], of[stream.below(of.len())]);
        if first.response == second.response {
            continue;
        }
        let pair = Pair { first, second };
        let apart = gold(first) - gold(second);
        if p.is_multiple_of(5) {
            if apart.abs() > GOLD_APART && held_out < comparisons / 2 {
                writeln!(asked, "{}", pair.row(apart > 0.0, None))?;
                held_out += 1;
            }
            continue;
        }
        if train.len() == comparisons {
            continue;
        }
        let mut order: Vec<usize> = (0..panel.annotators.len()).collect();
        for i in 0..OVERLAP {
            let other = i + stream.below(order.len() - i);
            order.swap(i, other);
            let first_on_left = stream.unit() < 0.5;
            let (left, right) = if first_on_left { (first, second) } else { (second, first) };
            let name = format!("{}", train.len());
            let vote = panel.vote(order[i], &name, &first.prompt, &left.response, &right.response);
            let outcome = match vote {
                Vote::Prefers { side: polity_world::Side::Left, .. } => Outcome::Left,
                Vote::Prefers { side: polity_world::Side::Right, .. } => Outcome::Right,
                Vote::Tie | Vote::BothBad => Outcome::Tie,
            };
            let (pair, annotator) = (train.len() as u32, order[i] as u32);
            votes.push(PairVote { pair, annotator, first_on_left, outcome });
        }
        train.push((pair, apart));
    }
    let fit = CrowdPairs::fit(train.len(), panel.annotators.len(), &votes, CrowdPrior::usual())?;
    if seed == 1 {
        for (annotator, found) in panel.annotators.iter().zip(&fit.annotators) {
            eprintln!(
                "{}: reliability {:.2}, side {:+.1}",
                annotator.name, found.reliability, found.side_logit
            );
        }
    }
    let mut files = Vec::new();
    for arm in 0..ARMS.len() {
        files.push(BufWriter::new(File::create(dir.join(format!("arm-{arm}.jsonl")))?));
    }
    let mut right = [(0.0, 0.0); ARMS.len()];
    for (p, ((pair, apart), votes)) in train.iter().zip(votes.chunks(OVERLAP)).enumerate() {
        let share = votes.iter().map(first_share).sum::<f64>() / OVERLAP as f64;
        for (arm, share) in [share, share, fit.labels[p].first].into_iter().enumerate() {
            if apart.abs() > GOLD_APART {
                let sign = (share - 0.5) * apart;
                right[arm].0 += if sign == 0.0 { 0.5 } else { f64::from(sign > 0.0) };
                right[arm].1 += 1.0;
            }
            // A comparison without a majority has no hard label, and half a label says little: neither is trained on.
            if (share - 0.5).abs() > 1e-9 {
                let label = (arm > 0).then_some(share.max(1.0 - share));
                writeln!(files[arm], "{}", pair.row(share > 0.5, label))?;
            }
        }
    }
    Ok(right.map(|(right, all)| right / all))
}

/// The first response's share of a vote: 1, ½ or 0.
fn first_share(vote: &PairVote) -> f64 {
    match vote.outcome {
        Outcome::Tie => 0.5,
        Outcome::Left => f64::from(vote.first_on_left),
        Outcome::Right => f64::from(!vote.first_on_left),
    }
}

/// Trains a reward model with the demo's settings and returns the share of the held-out comparisons that it gets right.
fn train(polity: &str, model: &str, dir: &Path, arm: usize, seed: u64) -> Result<f64, Failure> {
    let out = dir.join(format!("run-{arm}"));
    let sets = [
        "learning_rate=1e-3",
        "lr_scheduler_type=cosine",
        "per_device_train_batch_size=32",
        "num_train_epochs=1",
        "max_length=128",
        "center_rewards_coefficient=0.01",
        "save_steps=0",
        &format!("seed={seed}"),
    ];
    let mut command = Command::new(polity);
    command.args(["train", "reward", "--quiet", "--model", model, "--out"]).arg(&out);
    command.arg("--data").arg(dir.join(format!("arm-{arm}.jsonl")));
    command.arg("--eval-data").arg(dir.join("gold.jsonl"));
    sets.iter().for_each(|set| {
        command.args(["--set", set]);
    });
    if !command.status()?.success() {
        return Err(format!("{command:?} failed").into());
    }
    let mut accuracy = None;
    for line in BufReader::new(File::open(out.join("metrics.jsonl"))?).lines() {
        let step: Value = serde_json::from_str(&line?)?;
        accuracy = step["eval_accuracy"].as_f64().or(accuracy);
    }
    accuracy.ok_or_else(|| "metrics.jsonl has no eval_accuracy".into())
}
