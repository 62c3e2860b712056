//! Every function against scipy, statsmodels and scikit-learn. `golden/make_golden.py` made the numbers.
//!
//! Tolerances are about five times the measured error, which stands beside each.

use polity_stats::{
    Binning, Estimate, Logistic, LogisticConfig, Resampling, SparseRow, area_under_curve, beta_cdf,
    binomial_at_least, bootstrap, bootstrap_mean, brier_score, calibration_error, clustered_mean, mean,
    normal_cdf, normal_quantile, sign_test, t_cdf, t_quantile, wilson,
};
use serde_json::Value;

fn golden() -> Value {
    serde_json::from_str(include_str!("golden/golden.json")).unwrap()
}

fn num(row: &Value, key: &str) -> f64 {
    row[key].as_f64().unwrap_or_else(|| panic!("{key} of {row}"))
}

fn list(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// Error relative to the larger number, so that tails count as much as middles.
fn relative(got: f64, expect: f64) -> f64 {
    if got == expect { 0.0 } else { (got - expect).abs() / got.abs().max(expect.abs()) }
}

#[track_caller]
fn check_table(name: &str, tolerance: f64, expect: &str, f: impl Fn(&Value) -> f64) {
    let golden = golden();
    let rows = golden[name].as_array().unwrap();
    let mut worst = 0.0_f64;
    for row in rows {
        let error = relative(f(row), num(row, expect));
        assert!(error <= tolerance, "{name} {row}: got {:e}, error {error:.1e}", f(row));
        worst = worst.max(error);
    }
    println!("{name}: {} values, worst relative error {worst:.1e}", rows.len());
    assert!(rows.len() >= 5, "{name}: the table is short");
}

#[track_caller]
fn near(what: &str, got: f64, expect: f64, tolerance: f64) {
    let error = relative(got, expect);
    println!("{what}: relative error {error:.1e}");
    assert!(error <= tolerance, "{what}: got {got}, expected {expect}, error {error:.1e}");
}

#[track_caller]
fn near_estimate(what: &str, got: Estimate, expect: &Value, tolerance: f64) {
    near(&format!("{what} estimate"), got.estimate, num(expect, "estimate"), tolerance);
    near(&format!("{what} low"), got.low, num(expect, "low"), tolerance);
    near(&format!("{what} high"), got.high, num(expect, "high"), tolerance);
}

#[test]
fn distribution_functions() {
    // Measured worst: 2e-13 (libm's erfc at -37, where the value is 6e-300), 5e-16, 2e-13.
    check_table("normal_cdf", 1e-12, "y", |r| normal_cdf(num(r, "x")));
    check_table("normal_quantile", 3e-15, "y", |r| normal_quantile(num(r, "x")));
    check_table("beta_cdf", 1e-12, "y", |r| beta_cdf(num(r, "x"), num(r, "a"), num(r, "b")));
    // ln Gamma(5e4) has a last digit of 6e-11, and that is what ln B costs at 1e5 degrees of freedom: measured 6e-11,
    // 6e-11 and, at n = 10 000, 9e-12.
    check_table("t_cdf", 3e-10, "y", |r| t_cdf(num(r, "t"), num(r, "df")));
    check_table("t_quantile", 3e-10, "y", |r| t_quantile(num(r, "p"), num(r, "df")));
    check_table("binomial_at_least", 5e-11, "y", |r| {
        binomial_at_least(num(r, "k") as u64, num(r, "n") as u64, num(r, "p"))
    });
}

#[test]
fn wilson_intervals() {
    let golden = golden();
    for row in golden["wilson"].as_array().unwrap() {
        let got = wilson(num(row, "k") as usize, num(row, "n") as usize, num(row, "confidence")).unwrap();
        // Absolute: statsmodels leaves a rounding of 1e-17 where the end is exactly 0.
        assert!((got.low - num(row, "low")).abs() < 1e-14, "{row}: {got:?}");
        assert!((got.high - num(row, "high")).abs() < 1e-14, "{row}: {got:?}");
    }
    // Newcombe 1998, Statistics in Medicine 17, table I, method 3.
    let got = wilson(81, 263, 0.95).unwrap();
    assert!((got.low - 0.2553).abs() < 5e-5 && (got.high - 0.3662).abs() < 5e-5, "{got:?}");
}

#[test]
fn sign_tests() {
    let golden = golden();
    for row in golden["sign_test"].as_array().unwrap() {
        let got = sign_test(num(row, "wins") as u64, num(row, "losses") as u64);
        near(&format!("two-sided {row}"), got.p_two_sided, num(row, "two_sided"), 1e-12);
        near(&format!("greater {row}"), got.p_greater, num(row, "greater"), 1e-12);
    }
}

#[test]
fn means() {
    let golden = golden();
    let row = &golden["mean"];
    near_estimate("mean", mean(&list(&row["values"]), 0.95).unwrap(), row, 1e-13);

    let row = &golden["clustered"];
    let got = clustered_mean(&list(&row["scores"]), &ids(&row["cluster"]), 0.95).unwrap();
    near_estimate("clustered", got.mean, row, 1e-12);
    near("clustered se", got.se, num(row, "se"), 1e-12);
}

fn ids(value: &Value) -> Vec<u64> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
}

#[test]
fn bootstrap_intervals() {
    let golden = golden();
    let values = list(&golden["bootstrap"]["mean"]["values"]);
    let cluster: Vec<usize> = (0..values.len()).collect();
    let how = Resampling { resamples: 200_000, seed: 3, confidence: 0.95 };
    // Both sides are random: with 200 000 resamples an end moves by about 0.005 standard errors between seeds
    // (measured worst below 0.012).
    let check = |what: &str, expect: f64, got: f64, se: f64| {
        let error = (got - expect).abs() / se;
        println!("{what}: {error:.4} standard errors");
        assert!(error < 0.03, "{what}: got {got}, expected {expect}");
    };
    let variance = |items: &[usize]| {
        let n = items.len() as f64;
        let mean = items.iter().map(|&i| values[i]).sum::<f64>() / n;
        items.iter().map(|&i| (values[i] - mean).powi(2)).sum::<f64>() / n
    };
    for (name, got) in [
        ("mean", bootstrap_mean(&values, &cluster, how).unwrap()),
        ("variance", bootstrap(&cluster, variance, how).unwrap()),
    ] {
        let expect = &golden["bootstrap"][name];
        let se = num(expect, "se");
        near(name, got.estimate, num(expect, "estimate"), 1e-13);
        near(&format!("{name} se"), got.se, se, 0.01);
        for (kind, (low, high)) in [("percentile", got.percentile), ("bca", got.bca)] {
            let ends = list(&expect[kind]);
            check(&format!("{name} {kind} low"), ends[0], low, se);
            check(&format!("{name} {kind} high"), ends[1], high, se);
        }
        // The two methods differ by far more than the tolerance, or the test could not tell them apart.
        assert!((got.bca.1 - got.percentile.1) / se > 0.1, "{name}: {got:?}");
    }
}

#[test]
fn logistic_regression() {
    let golden = golden();
    let data = &golden["logistic"];
    let rows: Vec<SparseRow> = data["x"].as_array().unwrap().iter().map(|row| sparse(&list(row))).collect();
    let (y, weight) = (list(&data["y"]), list(&data["weight"]));
    let config =
        |l2, intercept| LogisticConfig { l2, intercept, gradient_tolerance: 1e-9, iterations_max: 100 };
    // Measured worst 6e-12, of both sides' stopping rules.
    for fit in data["fits"].as_array().unwrap() {
        let intercept = fit["intercept"].as_bool().unwrap();
        let got = Logistic::fit(&rows, &y, &weight, 12, config(num(fit, "l2"), intercept)).unwrap();
        check_weights(&got, fit, 3e-11);
    }

    let soft = &golden["logistic_soft"];
    let four: Vec<SparseRow> =
        rows.iter().map(|row| row.iter().copied().filter(|&(j, _)| j < 4).collect()).collect();
    let got = Logistic::fit(&four, &list(&soft["share"]), &weight, 4, config(0.0, true)).unwrap();
    check_weights(&got, soft, 3e-11);
}

#[track_caller]
fn check_weights(got: &Logistic, expect: &Value, tolerance: f64) {
    let weights = list(&expect["weights"]);
    let largest = weights.iter().fold(0.0_f64, |max, w| max.max(w.abs()));
    let worst = got.weights.iter().zip(&weights).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let worst = worst.max((got.intercept - num(expect, "w0")).abs()) / largest;
    println!("logistic: error {worst:.1e} of the largest weight, {} Newton steps", got.iterations);
    assert!(worst < tolerance, "error {worst:.1e}: {got:?} against {expect}");
}

fn sparse(x: &[f64]) -> SparseRow {
    x.iter().copied().enumerate().filter(|&(_, x)| x != 0.0).collect()
}

#[test]
fn calibration() {
    let golden = golden();
    let data = &golden["calibration"];
    let (p, y) = (list(&data["p"]), list(&data["y"]));
    let positive: Vec<bool> = y.iter().map(|&y| y == 1.0).collect();
    near("brier", brier_score(&p, &y).unwrap(), num(data, "brier"), 1e-13);
    near("auc", area_under_curve(&p, &positive).unwrap(), num(data, "auc"), 1e-13);
    let ece = |binning| calibration_error(&p, &y, binning).unwrap();
    near("ece width", ece(Binning::EqualWidth(10)), num(data, "ece_width_10"), 1e-12);
    near("ece mass", ece(Binning::EqualMass(7)), num(data, "ece_mass_7"), 1e-12);
}
