//! Agreement, strengths and reliabilities on real votes, against published numbers and against krippendorff, irrCAC,
//! scikit-learn, choix, statsmodels, crowd-kit and scipy. `golden/make_agreement.py` made the numbers; votes are read in place
//! from `../shared`.
//!
//! Tolerances are about five times the measured error, which stands beside each, and at most 1e-6.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use polity_stats::agreement::{Agreement, Entry, Measured, Repeats, Table, agreement, cohen, with_majority};
use polity_stats::vote::{Answer, Side, VoteRow, Votes};
use polity_stats::{
    BradleyTerry, BradleyTerryConfig, CrowdBt, CrowdPairs, CrowdPrior, DawidSkene, DawidSkeneConfig, Match,
    Outcome, PairVote, Resampling, Ties, benjamini_hochberg,
};
use serde_json::Value;

const HOW: Resampling = Resampling { resamples: 200, seed: 1, confidence: 0.95 };

/// As the script has it.
const PRIOR: CrowdPrior =
    CrowdPrior { strength_sd: 2.0, reliable: 2.0, unreliable: 1.0, side_sd: 1.0, scale_sd: 1.0 };

fn golden() -> Value {
    serde_json::from_str(include_str!("golden/agreement.json")).unwrap()
}

fn shared(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data").join(path)
}

fn list(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn estimate(measured: &Measured) -> f64 {
    measured.as_ref().unwrap().estimate
}

#[track_caller]
fn near(what: &str, got: &[f64], expect: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expect.len(), "{what}");
    let worst = got.iter().zip(expect).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    println!("{what}: {} values, error {worst:.1e}", got.len());
    assert!(worst <= tolerance, "{what}: error {worst:.1e}");
}

#[track_caller]
fn check_panel(what: &str, table: &Table, expect: &Value) {
    let Agreement { raw, fleiss, ac1, ac2, alpha_nominal, alpha_ordinal, alpha_interval } =
        agreement(table, HOW);
    let got = [&raw, &fleiss, &ac1, &ac2, &alpha_nominal, &alpha_ordinal, &alpha_interval].map(estimate);
    let names = ["raw", "fleiss", "ac1", "ac2", "alpha_nominal", "alpha_ordinal", "alpha_interval"];
    let expect = names.map(|name| expect[name].as_f64().unwrap());
    // Measured worst 5e-13, of the stored digits.
    near(what, &got, &expect, 3e-12);
    for figure in [raw, fleiss, ac1, ac2, alpha_nominal, alpha_ordinal, alpha_interval] {
        let figure = figure.unwrap();
        let (low, high) = figure.low.zip(figure.high).unwrap();
        assert!(low < figure.estimate && figure.estimate < high, "{what}: {figure:?}");
    }
}

/// Rows of a table, one annotator each, -1 for nothing.
fn table_of(rows: &[Vec<i64>], levels: usize) -> Table {
    let entries = rows.iter().enumerate().flat_map(|(annotator, row)| {
        row.iter().enumerate().filter(|(_, level)| **level >= 0).map(move |(item, &level)| Entry {
            item,
            annotator,
            level: level as usize,
        })
    });
    Table::new(rows[0].len(), rows.len(), levels, entries, Repeats::Refuse).unwrap()
}

fn integers(value: &Value) -> Vec<i64> {
    value.as_array().unwrap().iter().map(|x| x.as_i64().unwrap()).collect()
}

fn pandalm() -> Table {
    let text = std::fs::read_to_string(shared("preferences/pandalm_testset_v1.json")).unwrap();
    let rows: Vec<Value> = serde_json::from_str(&text).unwrap();
    let of = |k: usize| rows.iter().map(|row| row[format!("annotator{k}")].as_i64().unwrap()).collect();
    table_of(&[of(1), of(2), of(3)], 3)
}

#[test]
fn krippendorffs_textbook_example() {
    let golden = &golden()["textbook"];
    let rows: Vec<Vec<i64>> = golden["rows"].as_array().unwrap().iter().map(integers).collect();
    let table = table_of(&rows, 4);
    let got = agreement(&table, HOW);
    // As published: 0.691 nominal, 0.811 interval.
    assert_eq!(format!("{:.3}", estimate(&got.alpha_nominal)), "0.691");
    assert_eq!(format!("{:.3}", estimate(&got.alpha_interval)), "0.811");
    check_panel("textbook", &table, golden);
}

#[test]
fn pandalms_published_agreement() {
    let golden = &golden()["pandalm"];
    let table = pandalm();
    check_panel("pandalm", &table, golden);
    let got = agreement(&table, HOW);
    // Published with the test set: 0.8642, and 0.8520 / 0.8789 / 0.8617 for the pairs.
    assert_eq!(format!("{:.4}", estimate(&got.alpha_nominal)), "0.8642");
    let (mut pairs, found) = cohen(&table, 10, HOW);
    pairs.sort_by_key(|pair| pair.annotators);
    assert_eq!((found, pairs.iter().map(|pair| pair.items).collect::<Vec<_>>()), (3, vec![999; 3]));
    let kappas: Vec<f64> = pairs.iter().map(|pair| estimate(&pair.kappa)).collect();
    let quadratic: Vec<f64> = pairs.iter().map(|pair| estimate(&pair.kappa_quadratic)).collect();
    let mut shown: Vec<String> = kappas.iter().map(|kappa| format!("{kappa:.4}")).collect();
    near("pandalm kappas", &kappas, &list(&golden["cohen"]), 3e-12);
    near("pandalm quadratic kappas", &quadratic, &list(&golden["cohen_quadratic"]), 3e-12);
    shown.sort();
    assert_eq!(shown, ["0.8520", "0.8617", "0.8789"]);
}

#[test]
fn xstests_two_labels() {
    for model in golden()["xstest"].as_array().unwrap() {
        let counts: Vec<Vec<i64>> = model["counts"].as_array().unwrap().iter().map(integers).collect();
        let mut rows = vec![Vec::new(), Vec::new()];
        for (a, row) in counts.iter().enumerate() {
            for (b, &count) in row.iter().enumerate() {
                (0..count).for_each(|_| {
                    rows[0].push(a as i64);
                    rows[1].push(b as i64);
                });
            }
        }
        assert_eq!(rows[0].len(), 450, "{}", model["name"]);
        let table = table_of(&rows, 3);
        check_panel(&format!("xstest {}", model["name"]), &table, model);
        let (pairs, _) = cohen(&table, 1, HOW);
        near("kappa", &[estimate(&pairs[0].kappa)], &[model["cohen"].as_f64().unwrap()], 3e-12);
    }
}

struct MtBench {
    votes: Votes,
    models: Vec<String>,
    matches: Vec<Match>,
    question: Vec<i64>,
    annotator: Vec<usize>,
}

fn mtbench() -> MtBench {
    let text = std::fs::read_to_string(shared("annotators/mtbench_human_votes.jsonl")).unwrap();
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut votes = Votes::new();
    let word = |row: &Value, key: &str| row[key].as_str().unwrap().to_owned();
    let mut models: Vec<String> =
        rows.iter().flat_map(|row| [word(row, "model_a"), word(row, "model_b")]).collect();
    models.sort();
    models.dedup();
    let mut judges: HashMap<String, usize> = HashMap::new();
    let (mut matches, mut question, mut annotator) = (Vec::new(), Vec::new(), Vec::new());
    for row in &rows {
        let (left, right, judge) = (word(row, "model_a"), word(row, "model_b"), word(row, "judge"));
        let (answer, outcome) = match row["winner"].as_str().unwrap() {
            "model_a" => (Answer::Better { side: Side::Left, grade: 1 }, Outcome::Left),
            "model_b" => (Answer::Better { side: Side::Right, grade: 1 }, Outcome::Right),
            _ => (Answer::Tie, Outcome::Tie),
        };
        let prompt = format!("{}/{}", row["question_id"], row["turn"]);
        votes
            .push(&VoteRow {
                prompt: &prompt,
                left: &left,
                right: &right,
                annotator: &judge,
                answer,
                category: None,
                rubric: None,
                time_ms: None,
                duration_ms: None,
                known: None,
            })
            .unwrap();
        let number = |name: &str| models.iter().position(|model| model == name).unwrap();
        matches.push(Match { left: number(&left), right: number(&right), outcome, weight: 1.0 });
        question.push(row["question_id"].as_i64().unwrap());
        let next = judges.len();
        annotator.push(*judges.entry(judge).or_insert(next));
    }
    MtBench { votes, models, matches, question, annotator }
}

#[test]
fn mtbench_agreement() {
    let data = mtbench();
    let table = data.votes.sides();
    assert_eq!((table.items(), table.values()), (1814, 3354));
    check_panel("mtbench", &table, &golden()["mtbench"]);
    // Grades of 1 only: the same levels.
    assert_eq!(data.votes.grades(), table);
}

#[track_caller]
fn check_dawid_skene(what: &str, table: &Table, golden: &Value, annotator: impl Fn(usize) -> usize) {
    let iterations = golden["iterations"].as_u64().unwrap() as usize;
    let fit = |iterations_max| {
        let config = DawidSkeneConfig { smoothing: 0.0, tolerance: f64::NEG_INFINITY, iterations_max };
        DawidSkene::fit(table, config).unwrap()
    };
    let (model, next) = (fit(iterations), fit(iterations + 1));
    let posterior: Vec<f64> =
        integers(&golden["items"]).iter().flat_map(|&item| model.posterior(item as usize).to_vec()).collect();
    near(&format!("{what} posterior"), &posterior, &list(&golden["posterior"]), 1e-9);
    // Its last M-step follows the last E-step, ours is the next iteration's.
    near(&format!("{what} prior"), &next.prior, &list(&golden["prior"]), 1e-8);
    let k = table.levels();
    for row in golden["errors"].as_array().unwrap() {
        let row = list(row);
        let (w, l) = (annotator(row[0] as usize), row[1] as usize);
        let got: Vec<f64> = (0..k).map(|t| next.confusion(w)[t * k + l]).collect();
        for (t, (got, expect)) in got.iter().zip(&row[2..]).enumerate() {
            // Where an annotator is certain to have seen no item of a true level, crowd-kit's floor says 1 / seen levels.
            let seen: f64 = (0..table.items())
                .filter(|&item| table.item(item).iter().any(|&(a, _)| a as usize == w))
                .map(|item| model.posterior(item)[t])
                .sum();
            if seen > 1e-3 {
                assert!(
                    (got - expect).abs() < 1e-6,
                    "{what} annotator {w} level {l} true {t}: {got} {expect}"
                );
            }
        }
    }
}

#[test]
fn dawid_skene_is_crowd_kits() {
    let golden = golden();
    check_dawid_skene("mtbench", &mtbench().votes.sides(), &golden["mtbench"]["dawid_skene"], |w| w);
    let (votes, _) = tulu();
    let people = people_of(&votes);
    check_dawid_skene("tulu", &votes.grades(), &golden["tulu"]["dawid_skene"], |w| people[w]);
}

/// Tulu's votes from the sheet's rows, and matches of models.
fn tulu() -> (Votes, Vec<Match>) {
    let golden = &golden()["tulu"];
    let name = |list: &Value, i: i64| list[i as usize].as_str().unwrap().to_owned();
    let mut votes = Votes::new();
    let mut matches = Vec::new();
    for row in golden["rows"].as_array().unwrap() {
        let row = integers(row);
        let strength = row[4];
        let grade = strength.unsigned_abs() as u8;
        let (answer, outcome) = match strength.signum() {
            1 => (Answer::Better { side: Side::Left, grade }, Outcome::Left),
            -1 => (Answer::Better { side: Side::Right, grade }, Outcome::Right),
            _ => (Answer::Tie, Outcome::Tie),
        };
        votes
            .push(&VoteRow {
                prompt: &row[0].to_string(),
                left: &name(&golden["models"], row[2]),
                right: &name(&golden["models"], row[3]),
                annotator: &name(&golden["people"], row[1]),
                answer,
                category: None,
                rubric: None,
                time_ms: None,
                duration_ms: None,
                known: None,
            })
            .unwrap();
        matches.push(Match { left: row[2] as usize, right: row[3] as usize, outcome, weight: 1.0 });
    }
    (votes, matches)
}

#[test]
fn tulu_agreement() {
    let golden = &golden()["tulu"];
    let (votes, _) = tulu();
    assert_eq!((votes.comparisons.len(), votes.votes.len(), votes.standing().len()), (996, 1150, 1141));
    check_panel("tulu sides", &votes.sides(), &golden["sides"]);
    check_panel("tulu grades", &votes.grades(), &golden["grades"]);
    // Nine votes had an earlier one.
    let repeats: usize = votes.sides().self_consistency().iter().map(|c| c.repeats).sum();
    assert_eq!(repeats, 9);
}

#[test]
fn bradley_terrys_textbook_example() {
    // Wikipedia's example: rows beat columns so often.
    let wins = [[0, 2, 0, 1], [3, 0, 5, 0], [0, 3, 0, 1], [4, 0, 3, 0]];
    let mut matches = Vec::new();
    for (left, row) in wins.iter().enumerate() {
        for (right, &count) in row.iter().enumerate().filter(|(_, count)| **count > 0) {
            matches.push(Match { left, right, outcome: Outcome::Left, weight: f64::from(count) });
        }
    }
    let fit = BradleyTerry::fit(4, &matches, BradleyTerryConfig::plain(Ties::Half)).unwrap();
    let odds: Vec<String> = fit.strength.iter().map(|s| format!("{:.3}", s.exp())).collect();
    assert_eq!(odds, ["0.640", "1.043", "0.660", "2.270"]);
}

#[test]
fn mtbench_strengths() {
    let golden = &golden()["mtbench"]["bradley_terry"];
    let data = mtbench();
    let names: Vec<&str> = golden["models"].as_array().unwrap().iter().map(|m| m.as_str().unwrap()).collect();
    assert_eq!(data.models, names);
    let n = data.models.len();
    let fit = |config| BradleyTerry::fit(n, &data.matches, config).unwrap();
    let half = fit(BradleyTerryConfig::plain(Ties::Half));
    // choix, to its tolerance. Measured 6e-9.
    near("half", &half.strength, &list(&golden["half"]), 3e-8);

    // statsmodels' logistic regression, the first model as reference.
    let side = fit(BradleyTerryConfig { side: true, ..BradleyTerryConfig::plain(Ties::Half) });
    let mut got: Vec<f64> = (1..n).map(|i| side.strength[i] - side.strength[0]).collect();
    got.push(side.side.unwrap());
    near("side", &got, &list(&golden["side"]), 1e-9);
    let errors = |covariance: &[f64]| {
        let mut errors: Vec<f64> = (1..n).map(|i| side.difference(i, 0, covariance).1).collect();
        errors.push(covariance[n * (n + 1) + n].sqrt());
        errors
    };
    near("model errors", &errors(&side.covariance), &list(&golden["se_model"]), 1e-9);
    let clustered = side.clustered(&data.matches, &data.question).unwrap();
    near("errors by prompt", &errors(&clustered), &list(&golden["se_prompt"]), 1e-9);
    let clustered = side.clustered(&data.matches, &data.annotator).unwrap();
    near("errors by annotator", &errors(&clustered), &list(&golden["se_annotator"]), 1e-9);
    let clustered = side.clustered_two_way(&data.matches, &data.question, &data.annotator).unwrap();
    near("errors two-way", &errors(&clustered), &list(&golden["se_two_way"]), 1e-9);

    for (ties, name) in [(Ties::RaoKupper, "rao_kupper"), (Ties::Davidson, "davidson")] {
        let got = fit(BradleyTerryConfig::plain(ties));
        near(name, &got.strength, &list(&golden[name]["strength"]), 1e-8);
        near(name, &[got.tie.unwrap()], &[golden[name]["tie"].as_f64().unwrap()], 1e-8);
        near(name, &[-got.log_likelihood], &[golden[name]["loss"].as_f64().unwrap()], 1e-7);
        let sum: f64 = got.probabilities(0, 1).iter().sum();
        assert!((sum - 1.0).abs() < 1e-12);
    }
}

#[test]
fn tulu_strengths() {
    let fit = BradleyTerry::fit(4, &tulu().1, BradleyTerryConfig::plain(Ties::Half)).unwrap();
    near("tulu", &fit.strength, &list(&golden()["tulu"]["bradley_terry"]), 2e-9);
}

#[test]
fn crowd_bt_is_scipys_optimum() {
    let golden = &golden()["mtbench"]["crowd_bt"];
    let data = mtbench();
    let (n, judges) = (data.models.len(), 65);
    let fit = CrowdBt::fit(n, judges, &data.matches, &data.annotator, PRIOR).unwrap();
    let flat = |of: &dyn Fn(usize) -> [f64; 2]| (0..judges).flat_map(of).collect::<Vec<f64>>();
    let mut x = fit.strength.clone();
    x.extend(flat(&|w| [fit.annotators[w].logit, fit.annotators[w].side_logit]));
    near("crowd_bt", &x, &list(&golden["x"]), 1e-6);
    let mut se = fit.strength_se.clone();
    se.extend(flat(&|w| [fit.annotators[w].logit_se.unwrap(), fit.annotators[w].side_logit_se.unwrap()]));
    near("crowd_bt errors", &se, &list(&golden["se"]), 1e-6);
    println!("{} steps", fit.iterations);
}

#[test]
fn crowd_pairs_is_scipys_optimum() {
    let golden = &golden()["tulu"]["crowd_pairs"];
    let (votes, _) = tulu();
    let pair_votes: Vec<PairVote> = votes
        .standing()
        .into_iter()
        .map(|i| {
            let vote = votes.votes[i];
            let outcome =
                [Outcome::Right, Outcome::Tie, Outcome::Left][(1 + vote.left_strength().signum()) as usize];
            PairVote {
                pair: vote.comparison,
                annotator: vote.annotator,
                first_on_left: vote.first_on_left,
                outcome,
            }
        })
        .collect();
    let fit = CrowdPairs::fit(votes.comparisons.len(), 16, &pair_votes, PRIOR).unwrap();
    let people = people_of(&votes);
    let mut x: Vec<f64> =
        people.iter().flat_map(|&w| [fit.annotators[w].logit, fit.annotators[w].side_logit]).collect();
    x.push(fit.strength_sd.ln());
    // A grid of 81 against one of 401.
    near("crowd_pairs", &x, &list(&golden["x"]), 1e-6);
    let se: Vec<f64> = people
        .iter()
        .flat_map(|&w| [fit.annotators[w].logit_se.unwrap(), fit.annotators[w].side_logit_se.unwrap()])
        .collect();
    near("crowd_pairs errors", &se, &list(&golden["se"])[..32], 1e-5);
    println!("{} steps, sd {}", fit.iterations, fit.strength_sd);
}

/// The number in `votes` of each of the script's people.
fn people_of(votes: &Votes) -> Vec<usize> {
    let golden = golden();
    let number = |person: &Value| votes.annotators.list().iter().position(|name| person == name).unwrap();
    golden["tulu"]["people"].as_array().unwrap().iter().map(number).collect()
}

#[test]
fn adjusted_p_values_are_statsmodels() {
    let golden = &golden()["benjamini_hochberg"];
    near("fdr", &benjamini_hochberg(&list(&golden["p"])), &list(&golden["adjusted"]), 1e-12);
}

#[test]
fn a_majority_of_the_others_is_not_ones_own() {
    // PandaLM's third annotator dissents where the other two agree: (2, 2, 1), (1, 1, 2), (0, 0, 2), (0, 0, 1), (1, 1, 0),
    // (2, 2, 0) occur 7 + 10 + 2 + 2 + 10 + 2 times; the others agree on 426 + 368 + 85 more.
    let third = &with_majority(&pandalm(), 0.95)[2];
    assert_eq!((third.items, third.agreed), (879 + 33, 879));
}
