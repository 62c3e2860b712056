//! What must hold of the statistics whatever the data, and what they must refuse.

use polity_stats::{
    Binning, Error, Logistic, LogisticConfig, Resampling, SparseRow, Stream, area_under_curve, beta_cdf,
    bootstrap, bootstrap_mean, bootstrap_paired, brier_score, calibration_error,
    calibration_error_if_calibrated, clustered_mean, mean, normal_cdf, normal_quantile, t_cdf, t_quantile,
    wilson, win_rate,
};
use proptest::prelude::*;

proptest! {
    #[test]
    fn quantiles_invert_distribution_functions(p in 1e-9_f64..=0.5, df in 0.6_f64..500.0) {
        let close = |got: f64| (got - p).abs() <= 1e-11 * p.max(1e-3);
        prop_assert!(close(normal_cdf(normal_quantile(p))));
        prop_assert!(close(t_cdf(t_quantile(p, df), df)), "{}", t_cdf(t_quantile(p, df), df));
        prop_assert_eq!(t_quantile(1.0 - p, df) > 0.0, p < 0.5);
    }

    #[test]
    fn beta_is_its_own_mirror(x in 0.0_f64..=1.0, a in 0.01_f64..300.0, b in 0.01_f64..300.0) {
        prop_assert!((beta_cdf(x, a, b) + beta_cdf(1.0 - x, b, a) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn one_value_per_cluster_is_no_cluster(values in prop::collection::vec(-5.0_f64..5.0, 2..40)) {
        let ids: Vec<usize> = (0..values.len()).collect();
        let (plain, clustered) = (mean(&values, 0.9).unwrap(), clustered_mean(&values, &ids, 0.9).unwrap().mean);
        prop_assert!((plain.low - clustered.low).abs() < 1e-9 && (plain.high - clustered.high).abs() < 1e-9);
    }

    #[test]
    fn swapping_sides_mirrors_the_win_rate(
        scores in prop::collection::vec(prop::sample::select(vec![0.0, 0.5, 1.0]), 4..60),
        prompts in 2_usize..9,
    ) {
        let ids: Vec<usize> = (0..scores.len()).map(|i| i % prompts).collect();
        let mirrored: Vec<f64> = scores.iter().map(|x| 1.0 - x).collect();
        let (a, b) = (win_rate(&scores, &ids, 0.95).unwrap(), win_rate(&mirrored, &ids, 0.95).unwrap());
        let near = |x: f64, y: f64| (x - y).abs() < 1e-9;
        prop_assert!(near(a.rate.low, 1.0 - b.rate.high) && near(a.rate.estimate, 1.0 - b.rate.estimate));
        prop_assert_eq!((a.wins, a.ties, a.losses), (b.losses, b.ties, b.wins));
        prop_assert_eq!(a.p_sign, b.p_sign);
        prop_assert!(0.0 <= a.rate.low && a.rate.low <= a.rate.estimate && a.rate.estimate <= a.rate.high && a.rate.high <= 1.0);
        if let (Some(a), Some(b)) = (a.decisive, b.decisive) {
            prop_assert!(near(a.low, 1.0 - b.high) && near(a.high, 1.0 - b.low), "{a:?} {b:?}");
            prop_assert!(a.low < a.high);
        }
    }

    #[test]
    fn a_curve_and_its_mirror_cover_one(scores in prop::collection::vec(-3_i8..4, 2..50), cut in 1_usize..49) {
        let scores: Vec<f64> = scores.into_iter().map(f64::from).collect();
        let positive: Vec<bool> = (0..scores.len()).map(|i| i < cut.min(scores.len() - 1)).collect();
        let negative: Vec<bool> = positive.iter().map(|p| !p).collect();
        // Mann-Whitney by its definition, pair by pair.
        let mut won = 0.0;
        for i in (0..scores.len()).filter(|&i| positive[i]) {
            for j in (0..scores.len()).filter(|&j| negative[j]) {
                won += if scores[i] > scores[j] { 1.0 } else if scores[i] == scores[j] { 0.5 } else { 0.0 };
            }
        }
        let ups = positive.iter().filter(|&&p| p).count() as f64;
        let auc = area_under_curve(&scores, &positive).unwrap();
        prop_assert!((auc - won / (ups * (scores.len() as f64 - ups))).abs() < 1e-12);
        prop_assert!((auc + area_under_curve(&scores, &negative).unwrap() - 1.0).abs() < 1e-12);
    }
}

#[test]
fn clustered_error_by_hand() {
    // Two prompts, (1, 1) and (0, 0): mean ½, cluster sums of deviations ±1, SE² = 2/1 * 2 / 16 = ¼.
    let got = clustered_mean(&[1.0, 1.0, 0.0, 0.0], &["a", "a", "b", "b"], 0.95).unwrap();
    assert_eq!((got.mean.estimate, got.se, got.clusters), (0.5, 0.5, 2));
    // t with 1 degree of freedom at 0.975 is tan(0.475 π) = 12.7062.
    assert!((got.mean.high - (0.5 + 0.5 * 12.706_204_736_4)).abs() < 1e-9, "{got:?}");
}

#[test]
fn copies_of_a_comparison_add_no_knowledge() {
    let scores = [1.0, 1.0, 0.0, 1.0, 0.5, 1.0, 0.0, 1.0, 1.0, 1.0];
    let prompts: Vec<usize> = (0..scores.len()).collect();
    let (copied, copies) = (scores.repeat(8), prompts.repeat(8));
    let (one, eight) =
        (win_rate(&scores, &prompts, 0.95).unwrap(), win_rate(&copied, &copies, 0.95).unwrap());
    assert!((one.rate.low - eight.rate.low).abs() < 1e-12, "{one:?} {eight:?}");
    let (one, eight) = (one.decisive.unwrap(), eight.decisive.unwrap());
    // The design effect of eight copies of 9 decisions is 8 * 9/8 = 9: C / (C - 1) is kept, on the safe side.
    let independent = wilson(7 * 8, 9 * 8, 0.95).unwrap();
    assert!(eight.high - eight.low >= one.high - one.low, "{one:?} {eight:?}");
    assert!(eight.high - eight.low > 2.0 * (independent.high - independent.low), "{eight:?} {independent:?}");
}

#[test]
fn all_won_is_not_certainty() {
    let got = win_rate(&[1.0; 20], &(0..20).collect::<Vec<_>>(), 0.95).unwrap();
    let expect = wilson(20, 20, 0.95).unwrap();
    assert_eq!((got.rate.low, got.rate.high), (expect.low, expect.high));
    assert_eq!(got.decisive.unwrap().low, expect.low);
    // Only ties: nothing is decided.
    let got = win_rate(&[0.5; 4], &[1, 2, 3, 4], 0.95).unwrap();
    assert_eq!((got.decisive, got.p_sign, got.ties), (None, 1.0, 4));
    assert!(got.rate.low < 0.2 && got.rate.high > 0.8, "{got:?}");
}

/// Coverage by simulation: of 400 intervals at 90 %, the number that hold the truth is binomial with sd 6.
#[test]
fn intervals_cover_the_truth() {
    let mut covered = [0_u32; 3];
    for trial in 0..400 {
        let mut stream = Stream::new(11, "coverage", trial);
        let (mut scores, mut prompts) = (Vec::new(), Vec::new());
        for prompt in 0..40 {
            // A prompt's own win probability; the mean over prompts is 0.6.
            let p = 0.2 + 0.8 * stream.unit();
            for _ in 0..5 {
                scores.push(f64::from(stream.unit() < p));
                prompts.push(prompt);
            }
        }
        let inside = |low: f64, high: f64| u32::from(low <= 0.6 && 0.6 <= high);
        let win = win_rate(&scores, &prompts, 0.9).unwrap();
        let boot =
            bootstrap_mean(&scores, &prompts, Resampling { resamples: 400, seed: trial, confidence: 0.9 })
                .unwrap();
        let decisive = win.decisive.unwrap();
        covered[0] += inside(win.rate.low, win.rate.high);
        covered[1] += inside(decisive.low, decisive.high);
        covered[2] += inside(boot.bca.0, boot.bca.1);
    }
    println!("covered of 400: clustered t, Wilson with design effect, BCa: {covered:?}");
    // Four standard deviations on each side; BCa on 40 clusters is known to be a little short.
    assert!((336..=384).contains(&covered[0]) && (336..=384).contains(&covered[1]), "{covered:?}");
    assert!((330..=384).contains(&covered[2]), "{covered:?}");
}

#[test]
fn bootstrap_is_a_function_of_its_seed() {
    let values: Vec<f64> = (0..50).map(|i| f64::from(i * i % 17)).collect();
    let ids: Vec<usize> = (0..50).map(|i| i / 2).collect();
    let how = Resampling { resamples: 500, seed: 1, confidence: 0.95 };
    let a = bootstrap_mean(&values, &ids, how).unwrap();
    assert_eq!(a, bootstrap_mean(&values, &ids, how).unwrap());
    assert_ne!(a, bootstrap_mean(&values, &ids, Resampling { seed: 2, ..how }).unwrap());
    // The general form with the mean as its statistic.
    let mean = |items: &[usize]| items.iter().map(|&i| values[i]).sum::<f64>() / items.len() as f64;
    let b = bootstrap(&ids, mean, how).unwrap();
    assert!((a.bca.0 - b.bca.0).abs() < 1e-12 && (a.percentile.1 - b.percentile.1).abs() < 1e-12);
    // Paired: the mean of the differences.
    let zero = vec![0.0; 50];
    assert_eq!(a, bootstrap_paired(&values, &zero, &ids, how).unwrap());
    // No spread, no interval, and no NaN.
    let flat = bootstrap_mean(&[3.0; 6], &[0, 1, 2, 3, 4, 5], how).unwrap();
    assert_eq!((flat.bca, flat.se), ((3.0, 3.0), 0.0));
}

#[test]
fn calibration_by_hand() {
    assert_eq!(brier_score(&[1.0, 0.5], &[0.0, 0.5]).unwrap(), 0.5);
    // Bins [0, ½) and [½, 1]: gaps |0 + 1 - 0.6| / 2 of two, and |1 - 0.8| of one; (0.4 + 0.2) / 3.
    let ece = calibration_error(&[0.2, 0.4, 0.8], &[0.0, 1.0, 1.0], Binning::EqualWidth(2)).unwrap();
    assert!((ece - 0.2).abs() < 1e-12, "{ece}");
    // Half the mass of one bin, p = ½: E|Bin(4, ½) / 4 - ½| = 0.1875.
    let expect = calibration_error_if_calibrated(&[0.5; 4], Binning::EqualMass(1), 20_000, 5).unwrap();
    assert!((expect - 0.1875).abs() < 0.005, "{expect}");
}

#[test]
fn a_separable_fit_without_a_penalty_does_not_pretend() {
    let rows: Vec<SparseRow> = vec![vec![(0, 1.0)], vec![(0, -1.0)]];
    let config = LogisticConfig { l2: 0.0, intercept: false, gradient_tolerance: 1e-10, iterations_max: 15 };
    let error = Logistic::fit(&rows, &[1.0, 0.0], &[1.0, 1.0], 1, config).unwrap_err();
    assert!(matches!(error, Error::NotConverged { .. }), "{error}");
    let fit =
        Logistic::fit(&rows, &[1.0, 0.0], &[1.0, 1.0], 1, LogisticConfig { l2: 1.0, ..config }).unwrap();
    // At the minimum 2 (σ(w) - 1) + w = 0.
    let w = fit.weights[0];
    assert!((2.0 / (1.0 + (-w).exp()) - 2.0 + w).abs() < 1e-9, "{w}");
    assert_eq!(fit.margin(&vec![(0, 2.0), (9, 1.0)]), 2.0 * w);
}

#[test]
fn too_little_data_is_an_error_that_says_so() {
    let said = |error: Error| error.to_string();
    assert_eq!(said(mean(&[1.0], 0.95).unwrap_err()), "mean needs at least 2 values, found 1");
    assert_eq!(said(wilson(0, 0, 0.95).unwrap_err()), "wilson needs at least 1 trials, found 0");
    assert_eq!(
        said(win_rate(&[1.0, 0.0], &["a", "a"], 0.95).unwrap_err()),
        "clustered_mean needs at least 2 clusters, found 1"
    );
    assert_eq!(
        said(win_rate(&[1.0, 2.0], &["a", "b"], 0.95).unwrap_err()),
        "win_rate: value 1 is 2, expected a score in [0, 1]"
    );
    assert!(mean(&[1.0, f64::NAN], 0.95).is_err());
    assert!(area_under_curve(&[1.0, 2.0], &[true, true]).is_err());
    assert!(brier_score(&[], &[]).is_err());
}
