//! Measures of reward models against scipy, statsmodels and enumeration (`golden/make_acceptance.py` made the numbers), their intervals by simulation, and
//! the policy that ships on models that are honest, hacked and unmeasured.

use std::path::Path;

use polity_eval::acceptance::{
    ACCEPTANCE_POLICY, Acceptance, Candidates, Found, OptimisedPolicy, ProbedPair, ScoredPair,
    best_of_n_measures, curve_measures, ensemble_measures, pair_measures, probe_measures,
};
use polity_eval::gate::Decision;
use polity_eval::{Evaluation, Measure, Suite, SuiteRow};
use polity_stats::{Stream, normal_quantile};
use serde_json::{Map, Value};

fn golden() -> Value {
    serde_json::from_str(include_str!("golden/acceptance.json")).unwrap()
}

fn list(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn two(value: &Value) -> [f64; 2] {
    list(value).try_into().unwrap()
}

#[track_caller]
fn near(what: &str, got: f64, expect: f64, tolerance: f64) {
    let error = (got - expect).abs();
    println!("{what}: off by {error:.1e}");
    assert!(error <= tolerance, "{what}: got {got}, expected {expect}");
}

#[track_caller]
fn same(found: &Found, name: &str, expect: &Value, tolerance: f64) {
    let measure = found.measure(name, None).unwrap_or_else(|| panic!("{name}: {:?}", found.missing));
    assert_eq!(measure.n, expect["n"].as_u64().unwrap(), "{name}");
    for (what, got) in [("estimate", measure.estimate), ("low", measure.low), ("high", measure.high)] {
        near(&format!("{name} {what}"), got, expect[what].as_f64().unwrap(), tolerance);
    }
}

fn golden_pairs(golden: &Value) -> Vec<ScoredPair> {
    let pairs = golden["pairs"].as_array().unwrap().iter();
    pairs
        .map(|row| ScoredPair {
            prompt: row["prompt"].as_str().unwrap().into(),
            categories: vec![row["category"].as_str().unwrap().into()],
            tokens: two(&row["tokens"]).map(|x| x as usize),
            reward: two(&row["reward"]),
            votes: Some(two(&row["votes"]).map(|x| x as u64)),
        })
        .collect()
}

#[test]
fn pairs_by_scipy_and_statsmodels() {
    let golden = golden();
    let pairs = golden_pairs(&golden);
    let mut found = pair_measures(&pairs);
    let others: Vec<Vec<f64>> = golden["others"].as_array().unwrap().iter().map(list).collect();
    found.measures.extend(ensemble_measures(&pairs, &others).measures);
    assert!(found.missing.is_empty(), "{:?}", found.missing);
    for (name, expect) in golden["measures"].as_object().unwrap() {
        // Against numerical derivatives: measured 1.1e-11; the others 9e-16.
        let by_derivative = ["temperature", "share_of_ceiling", "human_agreement"].contains(&name.as_str());
        same(&found, name, expect, if by_derivative { 6e-11 } else { 5e-15 });
    }
    for (name, expect) in golden["by_group"].as_object().unwrap() {
        let measure = found.measure("accuracy", Some(name)).unwrap();
        assert_eq!(measure.n, expect["n"].as_u64().unwrap(), "{name}");
        near(name, measure.estimate, expect["estimate"].as_f64().unwrap(), 5e-15);
    }
    // The null is simulated, with other draws there: 1000 here, whose mean has an error of about 0.001. Measured 1.6e-3.
    let (ece, excess) = (&golden["ece"], found.measure("ece_excess", None).unwrap());
    let number = |key: &str| ece[key].as_f64().unwrap();
    near("ECE excess", excess.estimate, number("ece") - number("null"), 0.005);
    near("its error", excess.high - excess.estimate, number("half_width"), 5e-15);
}

#[test]
fn best_of_n_by_enumeration() {
    let golden = &golden()["best_of_n"];
    let candidates: Vec<Candidates> = golden["candidates"]
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
        .map(|(i, row)| Candidates {
            prompt: format!("p{i}"),
            proxy: list(&row["proxy"]),
            gold: list(&row["gold"]),
        })
        .collect();
    let sweep = best_of_n_measures(&candidates).unwrap();
    for (key, value) in [
        ("sizes", sweep.points.iter().map(|point| point.n as f64).collect::<Vec<_>>()),
        ("kl", sweep.points.iter().map(|point| point.kl).collect()),
        ("gold", sweep.points.iter().map(|point| point.gold).collect()),
        ("proxy", sweep.points.iter().map(|point| point.proxy).collect()),
    ] {
        for (got, expect) in value.iter().zip(list(&golden[key])) {
            near(key, *got, expect, 2e-15);
        }
        assert_eq!(value.len(), list(&golden["sizes"]).len());
    }
    let at_4 = sweep.found.measure("best_of_n_gold", Some("n = 4")).unwrap();
    near("error of a gain", at_4.high, golden["gold_at_4"]["high"].as_f64().unwrap(), 2e-15);
    // Against numerical derivatives: measured 6e-12.
    same(&sweep.found, "best_of_n_alpha", &golden["alpha"], 3e-11);
    same(&sweep.found, "best_of_n_beta", &golden["beta"], 3e-11);
    same(&sweep.found, "best_of_n_peak", &golden["peak"], 3e-11);
    near(
        "the fit is the mean of prompts' fits",
        sweep.fit.alpha.estimate,
        golden["alpha"]["estimate"].as_f64().unwrap(),
        1e-12,
    );

    let few = [Candidates { prompt: "p".into(), proxy: vec![1.0; 3], gold: vec![1.0; 3] }];
    let error = best_of_n_measures(&few).unwrap_err().to_string();
    assert!(error.contains("at least 4 responses to each prompt, found 3"), "{error}");
}

#[test]
fn the_curve_of_a_run_by_statsmodels() {
    let golden = &golden()["curve"];
    let points = golden["points"].as_array().unwrap().iter().enumerate();
    let policies: Vec<OptimisedPolicy> = points
        .map(|(i, point)| OptimisedPolicy {
            id: format!("step {i}"),
            kl: point["kl"].as_f64().unwrap(),
            gold: point["gold"].as_f64().unwrap(),
        })
        .collect();
    let (found, _) = curve_measures(&policies).unwrap();
    // Measured 2e-14, of a peak of 6.6.
    same(&found, "rl_alpha", &golden["alpha"], 1e-13);
    same(&found, "rl_beta", &golden["beta"], 1e-13);
    same(&found, "rl_peak", &golden["peak"], 1e-13);
}

/// A pair whose better response is `margin` better and has these lengths.
fn pair(i: usize, margin: f64, tokens: [usize; 2]) -> ScoredPair {
    ScoredPair { prompt: format!("p{i}"), categories: vec![], tokens, reward: [margin, 0.0], votes: None }
}

/// Margins of a model that is `warmth` times too sure: people follow `σ(z)`, and the better response is the one they chose.
fn margins(n: usize, warmth: f64, seed: u64, round: u64) -> Vec<ScoredPair> {
    let mut stream = Stream::new(seed, "margins", round);
    (0..n)
        .map(|i| {
            let z = 1.5 * normal_quantile(stream.unit().max(1e-12));
            let chosen = stream.unit() < 1.0 / (1.0 + (-z).exp());
            pair(i, warmth * if chosen { z } else { -z }, [5, 5])
        })
        .collect()
}

#[test]
fn intervals_cover_and_a_calibrated_model_is_rarely_blamed() {
    const ROUNDS: u64 = 400;
    let rounds = |value: &dyn Fn(&Found) -> bool, warmth: f64| {
        let holds = |round| value(&pair_measures(&margins(300, warmth, 1, round)));
        (0..ROUNDS).filter(|&round| holds(round)).count() as f64 / ROUNDS as f64
    };
    let warm =
        |found: &Found| found.measure("temperature", None).is_some_and(|t| t.low <= 2.0 && 2.0 <= t.high);
    let covered = rounds(&warm, 2.0);
    println!("the temperature's interval covers in {covered}");
    assert!((0.92..=0.98).contains(&covered), "{covered}"); // 0.95 ± 3 standard errors.

    // Above 0 only if the lower end is; one-sided at 2.5 %.
    let blamed = |found: &Found| found.measure("ece_excess", None).unwrap().low > 0.0;
    let (calibrated, sure) = (rounds(&blamed, 1.0), rounds(&blamed, 4.0));
    println!(
        "ECE above its null: {calibrated} of calibrated models, {sure} of one that is four times too sure"
    );
    assert!(calibrated <= 0.05 && sure > 0.95, "{calibrated}, {sure}");
}

#[test]
fn the_peak_of_a_sweep_covers() {
    const ROUNDS: u64 = 200;
    // A prompt's gains are Gao's curve with its own α and β; proxies are ranks, so that best-of-n is exact: not simulated here. The peak of the
    // mean curve is what is estimated.
    let truth = {
        let all: Vec<Candidates> = (0..4000).map(|i| responses(&mut Stream::new(9, "truth", i), i)).collect();
        best_of_n_measures(&all).unwrap().fit.peak.unwrap().estimate
    };
    let covered = (0..ROUNDS).filter(|&round| {
        let mut stream = Stream::new(2, "sweep", round);
        let candidates: Vec<Candidates> = (0..150).map(|i| responses(&mut stream, i)).collect();
        let found = best_of_n_measures(&candidates).unwrap().found;
        found.measure("best_of_n_peak", None).is_some_and(|peak| peak.low <= truth && truth <= peak.high)
    });
    let covered = covered.count() as f64 / ROUNDS as f64;
    println!("the peak {truth:.3} is covered in {covered}");
    assert!((0.90..=0.99).contains(&covered), "{covered}");
}

/// Responses whose true reward falls where the proxy is highest: past one standard deviation the proxy is hacked.
fn responses(stream: &mut Stream, i: u64) -> Candidates {
    let proxy: Vec<f64> = (0..16).map(|_| normal_quantile(stream.unit().max(1e-12))).collect();
    let gold = proxy
        .iter()
        .map(|&x| x.min(1.0) - 1.5 * (x - 1.0).max(0.0) + 0.5 * normal_quantile(stream.unit().max(1e-12)))
        .collect();
    Candidates { prompt: format!("p{i}"), proxy, gold }
}

#[test]
fn lengths_by_hand() {
    // Right on the first two, which are shorter; wrong on the third, longer; a tie on the last, equal.
    let pairs = [pair(0, 1.0, [2, 5]), pair(1, 2.0, [3, 4]), pair(2, -1.0, [9, 4]), pair(3, 0.0, [4, 4])];
    let found = pair_measures(&pairs);
    let check = |name: &str, category: Option<&str>, estimate: f64, n: u64| {
        let measure = found.measure(name, category).unwrap_or_else(|| panic!("{name}: {:?}", found.missing));
        assert_eq!((measure.estimate, measure.n), (estimate, n), "{name} {category:?}");
    };
    check("accuracy", None, 2.5 / 4.0, 4);
    check("accuracy", Some("length: chosen shorter"), 1.0, 2);
    check("longer_wins", None, 1.5 / 4.0, 4);
    check("accuracy_over_longer_wins", None, 1.0 / 4.0, 4);
    check("accuracy_over_shorter_wins", None, 0.0, 4);
    check("prefers_longer", None, 0.0, 3);
    // One pair is no interval, and is said to be missing rather than left out.
    assert!(found.measure("accuracy", Some("length: chosen longer")).is_none());
    let missing: Vec<_> = found.missing.iter().filter_map(|missing| missing.category.as_deref()).collect();
    assert_eq!(
        missing,
        ["length: chosen longer", "length: chosen over double", "length: chosen under half", "length: equal"]
    );
}

#[test]
fn ceiling_by_hand() {
    // Three votes to one: each of the three agrees with the majority of the rest, the one does not. Two to none: both agree.
    let voted = |i, margin, votes| ScoredPair { votes: Some(votes), ..pair(i, margin, [5, 5]) };
    let found = pair_measures(&[voted(0, 1.0, [3, 1]), voted(1, -1.0, [2, 0]), voted(2, 1.0, [1, 0])]);
    let human = found.measure("human_agreement", None).unwrap();
    assert_eq!((human.estimate, human.n), (5.0 / 6.0, 6));
    // The model agrees with three votes of the first pair and with none of the second.
    let share = found.measure("share_of_ceiling", None).unwrap();
    assert!((share.estimate - 3.0 / 5.0).abs() < 1e-15, "{share:?}");
}

/// A probed pair of a model that passes every probe.
fn probed(i: usize) -> ProbedPair {
    ProbedPair {
        prompt: format!("p{i}"),
        better: 2.0,
        margin: 1.0,
        swapped: -1.0,
        identical: 0.0,
        spaced: 0.5,
        empty: Some(-3.0),
        half: 1.0,
        twice: Some(1.5),
        openings: [0.1, 0.2],
    }
}

#[test]
fn each_probe_is_seen() {
    let check = |change: fn(&mut ProbedPair), name: &str| {
        let pairs: Vec<ProbedPair> = (0..20).map(probed).collect();
        let before = probe_measures(&pairs);
        let mut changed = pairs;
        changed.iter_mut().take(5).for_each(change);
        let after = probe_measures(&changed);
        for (before, after) in before.measures.iter().zip(&after.measures) {
            let expect = if after.name == name { 0.75 } else { 1.0 };
            assert_eq!((before.estimate, after.estimate), (1.0, expect), "{name} and {}", after.name);
        }
    };
    check(|pair| pair.identical = f64::MIN_POSITIVE, "identical_tie");
    check(|pair| pair.swapped = -1.000_000_000_000_1, "swap_negates");
    check(|pair| pair.spaced = -0.1, "space_agreement");
    check(|pair| pair.empty = Some(2.5), "beats_empty");
    check(|pair| pair.half = 2.5, "whole_beats_half");
    check(|pair| pair.twice = Some(2.5), "once_beats_twice");
    check(|pair| pair.openings = [-1.0, -1.0], "accuracy_of_opening");
}

/// A model's evaluation: right on `right` of 400 pairs, of which the longer response is the better one in `longer`; what it does with the rest is
/// a coin's, unless it goes by length alone.
fn evaluation(n: usize, right: usize, longer: usize, by_length: bool) -> Evaluation {
    let pairs: Vec<ScoredPair> = (0..n)
        .map(|i| {
            let is_longer = (i * longer / n) != ((i + 1) * longer / n);
            let is_right = if by_length { is_longer } else { (157 * i) % n < right };
            // As sure as it is right: σ(0.85) = 0.70.
            pair(i, if is_right { 0.85 } else { -0.85 }, if is_longer { [9, 5] } else { [5, 9] })
        })
        .collect();
    let mut measures = pair_measures(&pairs).measures;
    measures.extend(probe_measures(&(0..n).map(probed).collect::<Vec<_>>()).measures);
    Evaluation {
        model: "reward".into(),
        suite: "s".into(),
        suite_name: None,
        settings: Map::new(),
        inputs: Map::new(),
        measures,
    }
}

fn judged(evaluation: Evaluation) -> Acceptance {
    Acceptance::new(Path::new("policy"), ACCEPTANCE_POLICY, evaluation, 0).unwrap()
}

#[test]
fn the_policy_that_ships() {
    let check = |evaluation: Evaluation, expect: Decision, reasons: &[&str]| {
        let said = judged(evaluation).verdict;
        assert_eq!(said.verdict, expect, "{:#?}", said.reasons);
        for reason in reasons {
            assert!(
                said.reasons.iter().any(|said| said.starts_with(reason)),
                "{reason}: {:#?}",
                said.reasons
            );
        }
    };
    check(evaluation(400, 280, 220, false), Decision::Pass, &[]);
    // As accurate, by length alone: longer wins 70 %.
    check(evaluation(400, 280, 280, true), Decision::Fail, &["beats-longer-wins"]);
    check(evaluation(400, 180, 200, false), Decision::Fail, &["better-than-chance"]);
    check(
        evaluation(60, 42, 30, false),
        Decision::Inconclusive,
        &["better-than-chance", "identical-pairs-tie"],
    );

    // Each of the others alone.
    let changed = |name: &str, measures: Vec<Measure>| {
        let mut good = evaluation(400, 280, 220, false);
        let place = good.measures.iter().position(|measure| measure.name == name).unwrap();
        good.measures[place] = measures.into_iter().find(|measure| measure.name == name).unwrap();
        good
    };
    let of_probes = |name: &str, change: fn(&mut ProbedPair)| {
        let mut pairs: Vec<ProbedPair> = (0..400).map(probed).collect();
        pairs.iter_mut().step_by(3).for_each(change);
        changed(name, probe_measures(&pairs).measures)
    };
    check(of_probes("identical_tie", |pair| pair.identical = 0.1), Decision::Fail, &["identical-pairs-tie"]);
    check(of_probes("swap_negates", |pair| pair.swapped = -1.1), Decision::Fail, &["swapping-negates"]);
    check(of_probes("beats_empty", |pair| pair.empty = Some(9.0)), Decision::Fail, &["empty-answer-last"]);
    // For information only.
    check(of_probes("once_beats_twice", |pair| pair.twice = Some(9.0)), Decision::Pass, &[]);
    let too_sure = pair_measures(&margins(400, 6.0, 3, 0)).measures;
    check(changed("ece_excess", too_sure), Decision::Fail, &["calibrated"]);
    let shorter = (0..400).map(|i| pair(i, 0.85, [5, 9])).collect::<Vec<_>>();
    check(
        changed("accuracy_over_shorter_wins", pair_measures(&shorter).measures),
        Decision::Fail,
        &["beats-shorter-wins"],
    );
}

#[test]
fn an_acceptance_on_disk_is_judged_again() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.acceptance.json");
    let said = judged(evaluation(400, 180, 200, false));
    said.write(&file).unwrap();
    assert_eq!(Acceptance::read(&file).unwrap(), said);

    let refused = |change: &dyn Fn(&mut Value), expect: &str| {
        let mut value: Value = serde_json::to_value(&said).unwrap();
        change(&mut value);
        std::fs::write(&file, value.to_string()).unwrap();
        let error = Acceptance::read(&file).unwrap_err().to_string();
        assert!(error.contains(expect), "no {expect:?} in {error}");
    };
    refused(&|value| value["verdict"]["verdict"] = "pass".into(), "judged again it is fail");
    refused(&|value| value["evaluation"]["model"] = "another".into(), "judged again");
    refused(&|value| value["evaluation"]["measures"][0]["estimate"] = 0.9.into(), "one of them was changed");
    refused(&|value| value["made"] = 1.into(), "no acceptance");
}

#[test]
fn measures_survive_their_file() {
    let evaluation = evaluation(60, 42, 30, false);
    let text = serde_json::to_string(&evaluation).unwrap();
    let read = Evaluation::parse(Path::new("file"), &text).unwrap();
    assert_eq!(read, evaluation);
    let names: Vec<&str> = read.measures.iter().map(|measure: &Measure| measure.name.as_str()).collect();
    assert!(names.contains(&"ece_excess") && names.contains(&"temperature"), "{names:?}");
}

#[test]
fn a_suite_reads_pairs_as_trainers_do() {
    let dir = tempfile::tempdir().unwrap();
    let toml = dir.path().join("pairs.toml");
    let suite = |head: &str, rows: &str| {
        std::fs::write(&toml, format!("name = \"s\"\nkind = \"preference\"\nrows = \"rows.jsonl\"\n{head}"))
            .unwrap();
        std::fs::write(dir.path().join("rows.jsonl"), rows).unwrap();
        Suite::read(&toml).map(|suite| suite.rows).map_err(|error| error.to_string())
    };
    let values = |row: &SuiteRow| -> Vec<(&str, String)> {
        row.values.iter().map(|(key, value)| (*key, value.clone())).collect()
    };
    let expect = |first: &str, second: &str, better: &str| {
        [("better", better), ("first", first), ("prompt", "q"), ("second", second)]
            .map(|(key, text)| (key, text.to_owned()))
    };
    let rows = suite(
        "",
        "{\"prompt\": \"q\", \"chosen\": \"a\", \"rejected\": \"b\"}\n{\"prompt\": \"q\", \"chosen\": \"a\", \"rejected\": \"b\", \"label\": 0.5}\n\
         {\"chosen\": \"q yes\", \"rejected\": \"q no\", \"label\": 0.2}\n{\"prompt\": \"q\", \"first\": \"a\", \"second\": \"b\", \"better\": 2}\n",
    )
    .unwrap();
    // The second row has no better one, and is no row; numbers of the others stay.
    assert_eq!(rows.iter().map(|row| row.id.as_str()).collect::<Vec<_>>(), ["0", "2", "3"]);
    assert_eq!(values(&rows[0]), expect("a", "b", "1"));
    assert_eq!(values(&rows[1]), expect(" yes", " no", "2"));
    assert_eq!(values(&rows[2]), expect("a", "b", "2"));

    let rows = suite(
        "[columns]\nchosen = \"good\"\nrejected = \"bad\"\nfirst_votes = \"ayes\"\n",
        "{\"prompt\": \"q\", \"good\": \"a\", \"bad\": \"b\", \"ayes\": 3, \"second_votes\": 1}\n",
    );
    let row = rows.unwrap().remove(0);
    assert_eq!((row.values["first_votes"].as_str(), row.values["second_votes"].as_str()), ("3", "1"));
    for (rows, says) in [
        ("{\"prompt\": \"q\", \"chosen\": \"a\"}", "rejected"),
        (
            "{\"prompt\": \"q\", \"first\": \"a\", \"second\": \"b\", \"better\": 1, \"first_votes\": -1}",
            "a number of votes",
        ),
        ("{\"prompt\": \"q\", \"second\": \"b\", \"better\": 1}", "`first` is missing"),
    ] {
        let error = suite("", rows).unwrap_err();
        assert!(error.contains(says), "no {says:?} in {error}");
    }
}
