//! What a gate relies on, by simulation: levels that hold under peeking at every step, and intervals that cover.
//!
//! A share of `n` simulations has a standard deviation of at most `½ / √n`; limits are four of them from what is promised.

use polity_stats::{
    Alternative, BettingTest, Binning, Cell, ErrorRates, Stream, calibration_test, cell_difference,
    cell_mean, holm, length_controlled, ln_mixture_evidence, normal_quantile, prediction_powered_share,
    true_prevalence,
};

const ALPHA: f64 = 0.05;

/// Share of simulations in which something happens, and four standard deviations of a share of `expected`.
fn share(name: &str, simulations: u64, expected: f64, happens: impl Fn(&mut Stream) -> bool) -> (f64, f64) {
    let hits = (0..simulations).filter(|&i| happens(&mut Stream::new(17, name, i))).count();
    let share = hits as f64 / simulations as f64;
    println!("{name}: {share:.4} of {simulations}");
    (share, 4.0 * (expected * (1.0 - expected) / simulations as f64).sqrt())
}

/// A win, a tie or a loss.
fn vote(stream: &mut Stream, win: f64, tie: f64) -> f64 {
    let u = stream.unit();
    if u < win {
        1.0
    } else if u < win + tie {
        0.5
    } else {
        0.0
    }
}

/// Looks after every vote, and says whether a bettor ever rejects.
fn ever_rejected(
    stream: &mut Stream,
    m: f64,
    side: Alternative,
    votes: usize,
    next: impl Fn(&mut Stream) -> f64,
) -> bool {
    let mut test = BettingTest::new(m, side, ALPHA);
    (0..votes).any(|_| {
        test.push(next(stream));
        test.rejected()
    })
}

#[test]
fn peeking_at_every_vote_keeps_the_level() {
    use Alternative::{Above, Below};
    let never_more = |name: &str, m: f64, side, next: fn(&mut Stream) -> f64| {
        let (rate, sd4) = share(name, 2000, ALPHA, |s| ever_rejected(s, m, side, 600, next));
        assert!(rate <= ALPHA + sd4, "{name}: {rate}");
    };
    never_more("coin, above", 0.5, Above, |s| vote(s, 0.5, 0.0));
    never_more("coin, below", 0.5, Below, |s| vote(s, 0.5, 0.0));
    never_more("a third ties, above", 0.5, Above, |s| vote(s, 1.0 / 3.0, 1.0 / 3.0));
    never_more("a third ties, below", 0.5, Below, |s| vote(s, 1.0 / 3.0, 1.0 / 3.0));
    never_more("rare refusals, above", 0.03, Above, |s| vote(s, 0.03, 0.0));
    never_more("rare refusals, below", 0.03, Below, |s| vote(s, 0.03, 0.0));
    never_more("uneven, below", 0.75, Below, |s| 1.0 - 0.25 * (s.unit() + s.unit()));

    let (rate, sd4) = share("mixture", 2000, ALPHA, |s| {
        let mut wins = 0;
        (1..=600).any(|n| {
            wins += u64::from(s.unit() < 0.5);
            ln_mixture_evidence(wins, n, 0.5) >= -ALPHA.ln()
        })
    });
    assert!(rate <= ALPHA + sd4, "mixture: {rate}");

    // The test of a fixed number of votes, looked at after each, claims what is not there in a third of the cases: the
    // simulation can tell.
    let z = normal_quantile(1.0 - ALPHA);
    let (rate, _) = share("fixed test with peeking", 2000, ALPHA, |s| {
        let mut sum = 0.0;
        (1..=600).any(|n| {
            sum += vote(s, 0.5, 0.0) - 0.5;
            n >= 20 && sum > z * 0.5 * f64::from(n).sqrt()
        })
    });
    assert!(rate > 0.2, "fixed: {rate}");
}

#[test]
fn a_better_policy_is_found_and_a_bad_canary_called_back() {
    let (found, _) =
        share("60 %", 500, 0.9, |s| ever_rejected(s, 0.5, Alternative::Above, 800, |s| vote(s, 0.6, 0.0)));
    assert!(found > 0.9, "{found}");
    // With ties the variance is smaller, and the bets know it: 50 wins, 40 ties, 10 losses.
    let (found, _) = share("70 % with ties", 500, 0.99, |s| {
        ever_rejected(s, 0.5, Alternative::Above, 150, |s| vote(s, 0.5, 0.4))
    });
    assert!(found > 0.99, "{found}");
    let (back, _) = share("bad canary", 500, 0.95, |s| {
        ever_rejected(s, 0.5, Alternative::Below, 400, |s| vote(s, 0.25, 0.2))
    });
    assert!(back > 0.95, "{back}");
}

/// Votes on a random part of a grid of prompts and annotators, both with effects of their own.
fn panel(stream: &mut Stream, prompts: u32, people: u32, shift: f64) -> Vec<Cell<u32>> {
    let mut taste = Stream::new(stream.next_u64(), "taste", 0);
    let tastes: Vec<f64> = (0..people).map(|_| taste.unit() - 0.5).collect();
    let mut cells = Vec::new();
    for prompt in 0..prompts {
        let easy = stream.unit() - 0.5;
        for who in 0..people {
            if stream.unit() < 0.4 {
                let p = 0.5 + shift + 0.2 * easy + 0.6 * tastes[who as usize];
                let sum = f64::from(stream.unit() < p);
                cells.push(Cell { prompt, annotator: Some(who), sum, n: 1.0 });
            }
        }
    }
    cells
}

#[test]
fn intervals_by_prompt_and_annotator_cover() {
    let covers = |name: &str, two_way: bool| {
        share(name, 800, 0.9, |s| {
            let mut cells = panel(s, 60, 15, 0.05);
            if !two_way {
                cells.iter_mut().for_each(|cell| cell.annotator = None);
            }
            let got = cell_mean(&cells, 0.9).unwrap().mean;
            got.low <= 0.55 && 0.55 <= got.high
        })
    };
    let (both, sd4) = covers("prompt and annotator", true);
    assert!((both - 0.9).abs() <= sd4, "{both}");
    // Who ignores that annotators differ is sure of too much.
    let (one, _) = covers("prompt alone", false);
    assert!(one < 0.75, "{one}");

    // A difference of two policies judged by the same people on the same prompts.
    let (paired, sd4) = share("difference", 800, 0.9, |s| {
        let seed = s.next_u64();
        let of = |shift: f64, name: &str| {
            let mut effects = Stream::new(seed, "effects", 0);
            let easy: Vec<f64> = (0..80).map(|_| 0.5 * (effects.unit() - 0.5)).collect();
            let mut own = Stream::new(seed, name, 0);
            let votes = (0..80).flat_map(|prompt| [prompt; 3]);
            votes
                .map(|prompt| Cell {
                    prompt,
                    annotator: None,
                    sum: f64::from(own.unit() < 0.5 + shift + easy[prompt]),
                    n: 1.0,
                })
                .collect::<Vec<_>>()
        };
        let got = cell_difference(&of(0.1, "new"), &of(0.0, "old"), 0.9).unwrap().mean;
        got.low <= 0.1 && 0.1 <= got.high
    });
    assert!((paired - 0.9).abs() <= sd4, "{paired}");
}

#[test]
fn length_control_covers_where_the_raw_rate_does_not() {
    let (theta, phi): (f64, f64) = (0.3, 1.2);
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let trial = |s: &mut Stream| {
        let (mut scores, mut ours, mut theirs) = (vec![], vec![], vec![]);
        for _ in 0..300 {
            ours.push(100.0 + 150.0 * s.unit());
            theirs.push(50.0 + 150.0 * s.unit());
        }
        let n = ours.len() as f64;
        let delta: Vec<f64> = ours.iter().zip(&theirs).map(|(a, b)| a - b).collect();
        let mean = delta.iter().sum::<f64>() / n;
        let sd = (delta.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
        for d in &delta {
            scores.push(f64::from(s.unit() < sigmoid(theta + phi * (d / sd).tanh())));
        }
        let prompts: Vec<usize> = (0..300).collect();
        (length_controlled(&scores, &ours, &theirs, &prompts, 0.9).unwrap(), scores.iter().sum::<f64>() / n)
    };
    let truth = sigmoid(theta);
    let (covered, sd4) = share("equal length", 600, 0.9, |s| {
        let (got, _) = trial(s);
        got.rate.low <= truth && truth <= got.rate.high
    });
    assert!((covered - 0.9).abs() <= sd4, "{covered}");
    let (raw, _) = share("raw rate above", 600, 0.5, |s| trial(s).1 > truth + 0.05);
    assert!(raw > 0.9, "{raw}");
}

#[test]
fn corrected_prevalence_covers() {
    let draw = |s: &mut Stream, n: usize, p: f64| (0..n).filter(|_| s.unit() < p).count();
    let case = |s: &mut Stream, truth: f64, labelled: usize, n: usize| {
        let (se, sp) = (0.9, 0.95);
        let rates = ErrorRates {
            true_positives: draw(s, labelled, se) as f64,
            positives: labelled as f64,
            true_negatives: draw(s, labelled, sp) as f64,
            negatives: labelled as f64,
        };
        (rates, draw(s, n, truth * se + (1.0 - truth) * (1.0 - sp)))
    };
    for (truth, labelled, n) in [(0.02, 40, 100), (0.3, 40, 100), (0.06, 200, 250), (0.9, 30, 60)] {
        let name = format!("{truth} of {n}, {labelled} labelled");
        let (covered, sd4) = share(&name, 1500, 0.95, |s| {
            let (rates, called) = case(s, truth, labelled, n);
            let got = true_prevalence(called, n, &rates, 0.95).unwrap();
            got.low <= truth && truth <= got.high
        });
        // Approximate: the authors report 93.5 % at worst for samples of 30 and more.
        assert!(covered >= 0.935 - sd4, "{name}: {covered}");
    }
    // With labels of its own a source needs no rates of others: 60 of 300, whatever the classifier's errors.
    for (truth, se, sp) in [(0.05, 0.4, 0.99), (0.25, 0.4, 0.99), (0.9, 0.8, 0.6)] {
        let name = format!("{truth} with 60 own labels, sensitivity {se}");
        let (covered, sd4) = share(&name, 1500, 0.95, |s| {
            let mut item = |_| {
                let is = s.unit() < truth;
                (s.unit() < if is { se } else { 1.0 - sp }, is)
            };
            let labelled: Vec<(bool, bool)> = (0..60).map(&mut item).collect();
            let called = (0..240).map(&mut item).filter(|pair| pair.0).count();
            let got = prediction_powered_share(called, 240, &labelled, 0.95).unwrap();
            got.low <= truth && truth <= got.high
        });
        assert!(covered >= 0.95 - sd4, "{name}: {covered}");
    }
    // The delta method, on the worst of these cases.
    let (delta, _) = share("delta method", 1500, 0.95, |s| {
        let (rates, called) = case(s, 0.02, 40, 100);
        let (se, sp, q) = (rates.sensitivity(), rates.specificity(), called as f64 / 100.0);
        let p = (q + sp - 1.0) / (se + sp - 1.0);
        let variance = q * (1.0 - q) / 100.0
            + p * p * se * (1.0 - se) / 40.0
            + (1.0 - p).powi(2) * sp * (1.0 - sp) / 40.0;
        (p - 0.02).abs() <= normal_quantile(0.975) * variance.sqrt() / (se + sp - 1.0)
    });
    assert!(delta < 0.93, "{delta}");
}

#[test]
fn several_true_nulls_are_seldom_called() {
    let call = |name: &str, adjust: fn(&[f64]) -> Vec<f64>| {
        share(name, 4000, ALPHA, |s| {
            let p: Vec<f64> = (0..8).map(|_| s.unit()).collect();
            adjust(&p).iter().any(|&p| p <= ALPHA)
        })
    };
    let (rate, sd4) = call("holm", holm);
    assert!((rate - ALPHA).abs() <= sd4, "{rate}");
    let (rate, _) = call("uncorrected", <[f64]>::to_vec);
    assert!(rate > 0.3, "{rate}");
}

#[test]
fn a_calibrated_model_is_not_accused_and_a_sure_one_is() {
    let test = |s: &mut Stream, sure: f64| {
        let p: Vec<f64> = (0..200).map(|_| s.unit()).collect();
        let y: Vec<f64> = p.iter().map(|&p| f64::from(s.unit() < p)).collect();
        let said: Vec<f64> = p.iter().map(|&p| (0.5 + sure * (p - 0.5)).clamp(0.0, 1.0)).collect();
        calibration_test(&said, &y, Binning::EqualMass(10), 99, s.next_u64()).unwrap()
    };
    let (rate, sd4) = share("calibrated", 600, ALPHA, |s| test(s, 1.0).p <= ALPHA);
    assert!(rate <= ALPHA + sd4, "{rate}");
    let (rate, _) = share("too sure", 200, 0.9, |s| test(s, 1.8).p <= ALPHA);
    assert!(rate > 0.9, "{rate}");
    let one = test(&mut Stream::new(1, "one", 0), 1.0);
    assert!(one.if_calibrated > 0.03 && one.if_calibrated < one.if_calibrated_p95, "{one:?}");
}
