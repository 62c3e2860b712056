//! What the gate computes with, against scipy, statsmodels and confseq. `golden/make_gate.py` made the numbers.
//!
//! Tolerances are about five times the measured error, which stands beside each.

use polity_stats::{
    Alternative, BettingTest, Cell, ErrorRates, Optimiser, beta_quantile, cell_difference, cell_mean,
    clopper_pearson, clustered_mean, confidence_sequence, holm, length_controlled, log_loss,
    over_optimisation, temperature, true_prevalence,
};
use serde_json::Value;

fn golden(name: &str) -> Value {
    let all: Value = serde_json::from_str(include_str!("golden/gate.json")).unwrap();
    all[name].clone()
}

fn num(row: &Value, key: &str) -> f64 {
    row[key].as_f64().unwrap_or_else(|| panic!("{key} of {row}"))
}

fn list(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn ids(value: &Value) -> Vec<u64> {
    value.as_array().unwrap().iter().map(|x| x.as_u64().unwrap()).collect()
}

#[track_caller]
fn near(what: &str, got: f64, expect: f64, tolerance: f64) {
    let error = if got == expect { 0.0 } else { (got - expect).abs() / expect.abs().max(1e-300) };
    println!("{what}: relative error {error:.1e}");
    assert!(error <= tolerance, "{what}: got {got}, expected {expect}, error {error:.1e}");
}

#[test]
fn shares() {
    for row in golden("beta_quantile").as_array().unwrap() {
        let got = beta_quantile(num(row, "p"), num(row, "a"), num(row, "b"));
        near(&format!("beta quantile {row}"), got, num(row, "x"), BETA);
    }
    for row in golden("clopper_pearson").as_array().unwrap() {
        let got = clopper_pearson(num(row, "k"), num(row, "n"), num(row, "confidence")).unwrap();
        near(&format!("low {row}"), got.low, num(row, "low"), BETA);
        near(&format!("high {row}"), got.high, num(row, "high"), BETA);
    }
}

/// Measured 1.3e-13.
const BETA: f64 = 6e-13;

#[test]
fn prevalence_by_its_authors_function() {
    for row in golden("prevalence").as_array().unwrap() {
        let counts = list(&row["counts"]);
        let rates = ErrorRates {
            true_positives: counts[2],
            positives: counts[3],
            true_negatives: counts[4],
            negatives: counts[5],
        };
        let got =
            true_prevalence(counts[0] as usize, counts[1] as usize, &rates, num(row, "confidence")).unwrap();
        let ends = list(&row["ends"]);
        near(&format!("low {row}"), got.low, ends[0], 1e-13);
        near(&format!("high {row}"), got.high, ends[1], 1e-13);
    }
}

#[test]
fn holms_adjusted_values() {
    let golden = golden("holm");
    for (i, (got, expect)) in holm(&list(&golden["p"])).iter().zip(list(&golden["adjusted"])).enumerate() {
        near(&format!("holm {i}"), *got, expect, 1e-14);
    }
}

/// Sums of a hundred numbers: measured 1.7e-15.
const EXACT: f64 = 1e-14;

#[test]
fn means_and_differences_by_prompt_and_annotator() {
    let golden = golden("clustered");
    let (prompt, annotator) = (ids(&golden["prompt"]), ids(&golden["annotator"]));
    let keep: Vec<bool> = golden["keep"].as_array().unwrap().iter().map(|x| x.as_bool().unwrap()).collect();
    let (first, second) = (list(&golden["first"]), list(&golden["second"]));
    let cells = |two_way: bool| {
        let cell = |i: usize, sum: f64| Cell {
            prompt: prompt[i],
            annotator: two_way.then_some(annotator[i]),
            sum,
            n: 1.0,
        };
        let a: Vec<Cell<u64>> = first.iter().enumerate().map(|(i, &x)| cell(i, x)).collect();
        let kept = (0..prompt.len()).filter(|&i| keep[i]);
        let b: Vec<Cell<u64>> = kept.zip(&second).map(|(i, &x)| cell(i, x)).collect();
        (a, b)
    };
    for (two_way, t) in [(false, "t_prompt"), (true, "t_both")] {
        let (a, b) = cells(two_way);
        let which = usize::from(two_way);
        let (mean, difference) = (cell_mean(&a, 0.9).unwrap(), cell_difference(&a, &b, 0.9).unwrap());
        near("mean", mean.mean.estimate, num(&golden, "mean"), EXACT);
        near("mean se", mean.se, list(&golden["mean_se"])[which], EXACT);
        near("difference", difference.mean.estimate, num(&golden, "difference"), EXACT);
        near("difference se", difference.se, list(&golden["difference_se"])[which], EXACT);
        let reach = num(&golden, t) * difference.se;
        near("reach", difference.mean.high - difference.mean.estimate, reach, EXACT);
    }
    // Sums of several observations say the same as the observations: two prompts made one cell each.
    let (a, _) = cells(false);
    let mut sums: Vec<Cell<u64>> = Vec::new();
    for cell in &a {
        match sums.iter_mut().find(|sum| sum.prompt == cell.prompt) {
            Some(sum) => (sum.sum, sum.n) = (sum.sum + cell.sum, sum.n + 1.0),
            None => sums.push(*cell),
        }
    }
    near("se of sums", cell_mean(&sums, 0.9).unwrap().se, list(&golden["mean_se"])[0], EXACT);
}

#[test]
fn win_rate_at_equal_length() {
    let golden = golden("length_controlled");
    let [score, ours, theirs] = ["score", "ours", "theirs"].map(|key| list(&golden[key]));
    let got = length_controlled(&score, &ours, &theirs, &ids(&golden["prompt"]), 0.9).unwrap();
    let [theta, phi, t] = ["theta", "phi", "t"].map(|key| num(&golden, key));
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    // Measured 2.3e-13, and 2.9e-12 of phi: both sides' stopping rules.
    near("rate", got.rate.estimate, sigmoid(theta), 1e-12);
    near("se", got.se_logit, num(&golden, "se_theta"), 1e-12);
    near("low", got.rate.low, sigmoid(theta - t * num(&golden, "se_theta")), 1e-12);
    near("phi", got.length.estimate, phi, 2e-11);
    near("phi high", got.length.high, phi + t * num(&golden, "se_phi"), 2e-11);
    // The influence values say the same: their mean is 0, and clustered by prompt they have the sandwich's error.
    let values = got.influence.iter().map(|influence| got.rate.estimate + influence).collect::<Vec<_>>();
    let by_prompt = clustered_mean(&values, &ids(&golden["prompt"]), 0.9).unwrap();
    let p = got.rate.estimate;
    near("mean of influence", by_prompt.mean.estimate, p, 1e-12);
    near("spread of influence", by_prompt.se / (p * (1.0 - p)), num(&golden, "se_theta"), 1e-12);
    // Length bought wins, and the raw rate shows them.
    let raw = score.iter().sum::<f64>() / score.len() as f64;
    assert!(got.length.low > 0.0 && raw > got.rate.estimate, "{got:?}, raw {raw}");
}

#[test]
fn bets_and_their_sequence() {
    let golden = golden("betting");
    let values = list(&golden["values"]);
    for row in golden["rows"].as_array().unwrap() {
        for (alternative, key) in [(Alternative::Above, "ln_above"), (Alternative::Below, "ln_below")] {
            let mut test = BettingTest::new(num(row, "m"), alternative, num(&golden, "alpha"));
            let mut capital = Vec::new();
            for &x in &values {
                test.push(x);
                capital.push(test.ln_evidence());
            }
            // Measured 6e-14.
            for (at, expect) in [9, 99, 299].into_iter().zip(list(&row[key])) {
                near(&format!("{key} at {at}, m = {}", row["m"]), capital[at], expect, 3e-13);
            }
        }
    }
    let got = confidence_sequence(&values, 0.9).unwrap();
    near("low", got.low, num(&golden, "low"), 1e-12);
    near("high", got.high, num(&golden, "high"), 1e-12);
}

#[test]
fn temperature_of_margins() {
    let golden = golden("temperature");
    let (logit, outcome) = (list(&golden["logit"]), list(&golden["outcome"]));
    near("log loss", log_loss(&logit, &outcome).unwrap(), num(&golden, "log_loss"), 1e-13);
    // scipy's search stops where the loss no longer changes: half of its digits, measured 1e-9.
    near("temperature", temperature(&logit, &outcome).unwrap(), num(&golden, "temperature"), 5e-9);
    // Twice the margins, twice the temperature.
    let doubled: Vec<f64> = logit.iter().map(|z| 2.0 * z).collect();
    let ratio = temperature(&doubled, &outcome).unwrap() / temperature(&logit, &outcome).unwrap();
    near("doubled", ratio, 2.0, 1e-9);
    // Margins that are worse than chance have no temperature.
    let wrong: Vec<f64> = logit.iter().map(|z| -z).collect();
    assert!(temperature(&wrong, &outcome).is_err());
}

#[test]
fn over_optimisation_curves() {
    let golden = golden("over_optimisation");
    let (d, weight) = (list(&golden["d"]), list(&golden["weight"]));
    for curve in golden["curves"].as_array().unwrap() {
        let form = if curve["form"] == "rl" { Optimiser::Rl } else { Optimiser::BestOfN };
        let got = over_optimisation(form, &d, &list(&curve["reward"]), &weight, 0.9).unwrap();
        // Measured 2e-14.
        for (k, estimate) in [got.alpha, got.beta].into_iter().enumerate() {
            near("parameter", estimate.estimate, list(&curve["params"])[k], 1e-13);
            near("low", estimate.low, list(&curve["interval"][k])[0], 1e-13);
            near("high", estimate.high, list(&curve["interval"][k])[1], 1e-13);
        }
        let (peak, expect) = (got.peak.unwrap(), list(&curve["peak"]));
        for (got, expect) in [peak.low, peak.estimate, peak.high].into_iter().zip(expect) {
            near("peak", got, expect, 5e-14);
        }
    }
}
