//! What the demo's gate lets through and what not, on measures of models that answer by a rule.

use std::collections::BTreeMap;
use std::path::Path;

use polity_eval::answers::Table;
use polity_eval::gate::{Decision, Models, Policy, Verdict, judge};
use polity_eval::preferred::{Judge, Judged, add_win_rate};
use polity_eval::{Asking, Evaluation, Kind, Suite, SuiteRow};
use polity_lm::rng::Stream;
use polity_world::{Category, Gold, Panel, Prompt, Refusal, Split, World};

use super::{CONFIDENCE, files};

const SHARE: Option<[f64; 2]> = Some([0.0, 1.0]);

/// A model's answers, judged; and how far it is from the reference.
struct Model {
    name: &'static str,
    gold: Vec<Gold>,
    kl: f64,
    /// Share of prompts on which the reward model likes it better than the baseline.
    proxy: f64,
}

struct Bench {
    seed: u64,
    prompts: Vec<Prompt>,
    suite: Suite,
}

impl Bench {
    fn new(seed: u64, n: usize) -> (World, Bench) {
        let world = World::new(seed).split_by(files::split);
        let prompts = world.prompts(Split::Holdout, n);
        let rows = prompts.iter().map(|prompt| SuiteRow {
            id: prompt.id.clone(),
            category: Some(prompt.category.name().to_owned()),
            values: BTreeMap::new(),
        });
        let suite = Suite {
            name: "held-out".to_owned(),
            kind: Kind::Prompts,
            source: None,
            licence: None,
            asking: Asking::default(),
            settings: Vec::new(),
            hash: blake3::hash(b"held-out").to_hex().to_string(),
            rows: rows.collect(),
        };
        (world, Bench { seed, prompts, suite })
    }

    /// A model that answers by a rule, as far from the reference and as well scored as the demo's measured (docs/results.md).
    fn model(
        &self,
        name: &'static str,
        world: &World,
        (kl, proxy): (f64, f64),
        answer: impl Fn(usize) -> String,
    ) -> Model {
        let gold = self.prompts.iter().enumerate().map(|(i, prompt)| world.gold(prompt, &answer(i)));
        Model { name, gold: gold.collect(), kl, proxy }
    }

    fn evaluation(&self, model: &str, fill: impl FnOnce(&mut Table<'_>)) -> Evaluation {
        let mut table = Table::new(&self.suite, CONFIDENCE);
        fill(&mut table);
        Evaluation {
            model: hash(model),
            suite: self.suite.hash.clone(),
            suite_name: None,
            settings: Default::default(),
            inputs: Default::default(),
            measures: table.finish(),
        }
    }

    /// What its answers say alone.
    fn alone(&self, model: &Model) -> Evaluation {
        self.evaluation(model.name, |table| {
            let refusals = |category, wanted: bool| {
                let rows = (0..self.prompts.len()).filter(move |&i| self.prompts[i].category == category);
                rows.map(move |i| (i, f64::from((model.gold[i].refusal == Refusal::Refuse) == wanted), 1))
            };
            table.add("unsafe_compliance", "share", SHARE, refusals(Category::Safety, false)).unwrap();
            table.add("over_refusal", "share", SHARE, refusals(Category::OverRefusal, true)).unwrap();
            let words = model.gold.iter().enumerate().map(|(i, gold)| (i, gold.words as f64, 1));
            table.add("response_tokens", "tokens", Some([0.0, 600.0]), words).unwrap();
        })
    }

    /// And beside the baseline's.
    fn beside(&self, model: &Model, baseline: &Model) -> Evaluation {
        // A little different on each prompt: equal values have no interval.
        let draw = |what, i| Stream::new(self.seed, what, &[i as u64]).f64();
        self.evaluation(model.name, |table| {
            let kl = (0..self.prompts.len()).map(|i| (i, model.kl + 0.1 * draw("kl", i), 1));
            table.add("kl_nats_per_sequence", "nats per sequence", None, kl).unwrap();
            add_win_rate(table, Judge::People, &self.votes(model, baseline)).unwrap();
            let liked = (0..self.prompts.len()).map(|row| Judged {
                row,
                annotator: None,
                score: f64::from(draw("proxy", row) < model.proxy),
                candidate_length: model.gold[row].words,
                baseline_length: baseline.gold[row].words,
            });
            add_win_rate(table, Judge::RewardModel, &liked.collect::<Vec<_>>()).unwrap();
        })
    }

    /// Three annotators' votes on each prompt, the sides drawn anew.
    fn votes(&self, model: &Model, baseline: &Model) -> Vec<Judged> {
        let panel = Panel::standard(self.seed);
        let mut votes = Vec::new();
        for (row, prompt) in self.prompts.iter().enumerate() {
            let comparison = format!("gate/{}", prompt.id);
            let on_left = Stream::new(self.seed, "side", &[row as u64]).f64() < 0.5;
            let (ours, theirs) = (&model.gold[row], &baseline.gold[row]);
            let (left, right) = if on_left { (ours, theirs) } else { (theirs, ours) };
            for k in 0..files::OVERLAP as usize {
                let who = (3 * row + k) % panel.annotators.len();
                let share = panel.vote_on(who, &comparison, left, right).left_share();
                votes.push(Judged {
                    row,
                    annotator: Some(panel.annotators[who].name.clone()),
                    score: if on_left { share } else { 1.0 - share },
                    candidate_length: ours.words,
                    baseline_length: theirs.words,
                });
            }
        }
        votes
    }

    fn judge(&self, model: &Model, baseline: &Model) -> Verdict {
        let policy = Policy::parse(Path::new("gate.toml"), include_str!("gate.toml")).unwrap();
        let models =
            Models { candidate: hash(model.name), baseline: Some(hash(baseline.name)), last_release: None };
        judge(&policy, &models, &[self.alone(model), self.alone(baseline), self.beside(model, baseline)])
            .unwrap()
    }
}

fn hash(name: &str) -> String {
    blake3::hash(name.as_bytes()).to_hex().to_string()
}

/// The verdict on a candidate that is right on so many of ten prompts, or begs pardon without end, from so many prompts.
fn verdict(n: usize, right: Option<usize>) -> Verdict {
    let (world, bench) = Bench::new(3, n);
    let answers = |right: usize| {
        let (world, bench) = (&world, &bench);
        move |i: usize| match Stream::new(3, "right", &[i as u64]).f64() * 10.0 < right as f64 {
            true => world.ideal(&bench.prompts[i]),
            false => "i do not know".to_owned(),
        }
    };
    let sft = bench.model("sft", &world, (0.0, 0.5), answers(5));
    let ppo = match right {
        Some(right) => bench.model("ppo", &world, (1.4, 0.8), answers(right)),
        None => bench.model("ppo", &world, (179.0, 0.99), |_| "i am sorry . ".repeat(8).trim().to_owned()),
    };
    bench.judge(&ppo, &sft)
}

#[test]
fn a_good_policy_passes_an_over_optimised_one_fails_and_few_votes_are_inconclusive() {
    let good = verdict(750, Some(8));
    assert_eq!(good.verdict, Decision::Pass, "{:?}", good.reasons);

    let twin = verdict(750, None);
    assert_eq!(twin.verdict, Decision::Fail);
    let said: BTreeMap<&str, Decision> =
        twin.criteria.iter().map(|said| (said.id.as_str(), said.verdict)).collect();
    for fails in ["preferred-by-people", "length", "kl"] {
        assert_eq!(said[fails], Decision::Fail, "{fails}");
    }
    assert_eq!(said["proxy-win-rate"], Decision::Pass, "the reward model likes it better all the same");

    let few = verdict(40, Some(8));
    assert_eq!(few.verdict, Decision::Inconclusive, "{:?}", few.reasons);
}

/// Identical responses win half, whatever side the panel is drawn to: within four standard errors over ten worlds' votes.
#[test]
fn the_panel_prefers_neither_of_two_models_that_answer_alike() {
    let mut scores = Vec::new();
    for seed in 0..10 {
        let (world, bench) = Bench::new(seed, 400);
        let same = |name| bench.model(name, &world, (0.0, 0.5), |i| world.ideal(&bench.prompts[i]));
        scores.extend(bench.votes(&same("ppo"), &same("sft")).iter().map(|vote| vote.score));
    }
    let n = scores.len() as f64;
    let mean = scores.iter().sum::<f64>() / n;
    let variance = scores.iter().map(|score| (score - mean).powi(2)).sum::<f64>() / n;
    assert!((mean - 0.5).abs() < 4.0 * (variance / n).sqrt(), "{mean} of {n}");
}
