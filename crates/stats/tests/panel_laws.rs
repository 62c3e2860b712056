//! What must hold of a panel's statistics whatever the votes, what is undefined, and how often intervals and alarms are right on
//! simulated panels.

use polity_stats::agreement::{
    Entry, Repeats, Table, Undefined, agreement, agreement_sums, cohen, with_majority,
};
use polity_stats::panel::{PanelSettings, panel_report};
use polity_stats::vote::{Answer, Side, VoteRow, Votes};
use polity_stats::{
    AccuracyMonitor, BradleyTerry, BradleyTerryConfig, CrowdBt, CrowdPairs, CrowdPrior, DawidSkene,
    DawidSkeneConfig, Error, Match, Outcome, PairVote, Resampling, Stream, Ties, bootstrap, bootstrap_sums,
    cusum_threshold, drift_p_value, elo, normal_interval,
};
use proptest::prelude::*;

const HOW: Resampling = Resampling { resamples: 300, seed: 5, confidence: 0.95 };

fn table(rows: &[(usize, usize, usize)], levels: usize) -> Table {
    let most = |of: fn(&(usize, usize, usize)) -> usize| 1 + rows.iter().map(of).max().unwrap_or(0);
    let entries = rows.iter().map(|&(item, annotator, level)| Entry { item, annotator, level });
    Table::new(most(|r| r.0), most(|r| r.1), levels, entries, Repeats::Last).unwrap()
}

fn row<'a>(
    prompt: &'a str,
    left: &'a str,
    right: &'a str,
    annotator: &'a str,
    answer: Answer,
) -> VoteRow<'a> {
    VoteRow {
        prompt,
        left,
        right,
        annotator,
        answer,
        category: None,
        rubric: None,
        time_ms: None,
        duration_ms: None,
        known: None,
    }
}

fn better(side: Side) -> Answer {
    Answer::Better { side, grade: 1 }
}

#[test]
fn fleiss_by_hand() {
    // Five items: three of 5 votes, unanimous for 0, 1, 1; two of 2 votes that split 1-1. A split of two is P_i = 0, whatever
    // n other items have: P̄ = 3/5. Counts (5 + 1 + 1, 10 + 1 + 1) = (7, 12) of 19: chance = (49 + 144) / 361.
    let mut rows = Vec::new();
    for (item, level) in [(0, 0), (1, 1), (2, 1)] {
        rows.extend((0..5).map(|annotator| (item, annotator, level)));
    }
    rows.extend([(3, 0, 0), (3, 1, 1), (4, 0, 0), (4, 1, 1)]);
    let got = agreement(&table(&rows, 2), HOW);
    let chance = 193.0 / 361.0;
    assert!((got.raw.unwrap().estimate - 0.6).abs() < 1e-15);
    assert!((got.fleiss.unwrap().estimate - (0.6 - chance) / (1.0 - chance)).abs() < 1e-15);

    // Only splits: raw agreement is 0.
    let split = agreement(&table(&[(0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0)], 2), HOW);
    assert_eq!(split.raw.unwrap().estimate, 0.0);
    assert_eq!(split.fleiss.unwrap().estimate, -1.0);
    // An item with one vote changes nothing about the others.
    rows.push((5, 0, 0));
    assert!((agreement(&table(&rows, 2), HOW).raw.unwrap().estimate - 0.6).abs() < 1e-15);
}

#[test]
fn undefined_is_said() {
    let nobody_overlaps = agreement(&table(&[(0, 0, 1), (1, 1, 0)], 3), HOW);
    assert_eq!(nobody_overlaps.raw, Err(Undefined::NoOverlap));
    assert_eq!(nobody_overlaps.alpha_ordinal, Err(Undefined::NoOverlap));

    let one_label = agreement(&table(&[(0, 0, 1), (0, 1, 1), (1, 0, 1), (1, 1, 1)], 3), HOW);
    for figure in [
        &one_label.fleiss,
        &one_label.ac1,
        &one_label.ac2,
        &one_label.alpha_nominal,
        &one_label.alpha_interval,
    ] {
        assert_eq!(*figure, Err(Undefined::OneLabel));
    }
    let raw = one_label.raw.unwrap();
    assert_eq!((raw.estimate, raw.low, raw.no_interval), (1.0, None, Some(Undefined::NoVariation)));

    let (pairs, _) = cohen(&table(&[(0, 0, 1), (0, 1, 1), (1, 0, 1), (1, 1, 1)], 3), 9, HOW);
    assert_eq!(pairs[0].kappa, Err(Undefined::OneLabel));

    // One dissent in five items: without that item alpha is undefined, so it has no interval.
    let mut rows: Vec<_> = (0..5).flat_map(|item| [(item, 0, 0), (item, 1, 0)]).collect();
    rows[1].2 = 1;
    let one_dissent = agreement(&table(&rows, 2), HOW).alpha_nominal.unwrap();
    assert!(matches!(one_dissent.no_interval, Some(Undefined::Unstable { .. })), "{one_dissent:?}");
    assert!(one_dissent.low.is_none() && one_dissent.estimate.abs() < 1e-12, "{one_dissent:?}");
    let one_item = agreement(&table(&[(0, 0, 0), (0, 1, 1)], 2), HOW).alpha_nominal.unwrap();
    assert_eq!(one_item.no_interval, Some(Undefined::OneItem));
    let json = serde_json::to_value(Undefined::OneLabel).unwrap();
    assert_eq!(json["undefined"], "one_label");
}

#[test]
fn several_values_of_one_annotator() {
    let entries = [(0, 0, 2), (0, 0, 1), (0, 1, 1), (0, 0, 1)];
    let make = |repeats| {
        let entries = entries.map(|(item, annotator, level)| Entry { item, annotator, level });
        Table::new(1, 2, 3, entries, repeats)
    };
    assert_eq!(make(Repeats::Last).unwrap().item(0), [(0, 1), (1, 1)]);
    assert_eq!(make(Repeats::First).unwrap().item(0), [(0, 2), (1, 1)]);
    let error = make(Repeats::Refuse).unwrap_err();
    assert_eq!(error.to_string(), "annotator 0 gave item 0 3 values, expected one");
    let consistency = make(Repeats::Last).unwrap().self_consistency().to_vec();
    assert_eq!((consistency[0].same, consistency[0].repeats, consistency[1].repeats), (1, 2, 0));
}

#[test]
fn shuffled_sides_do_not_fake_disagreement() {
    // Two annotators who always prefer the same response, each shown it on a random side.
    let mut stream = Stream::new(2, "sides", 0);
    let mut votes = Votes::new();
    for item in 0..200 {
        let best = if stream.unit() < 0.5 { "x" } else { "y" };
        for annotator in ["a", "b"] {
            let (left, right) = if stream.unit() < 0.5 { ("x", "y") } else { ("y", "x") };
            let side = if left == best { Side::Left } else { Side::Right };
            votes.push(&row(&item.to_string(), left, right, annotator, better(side))).unwrap();
        }
    }
    let got = agreement(&votes.sides(), HOW);
    assert_eq!(got.alpha_nominal.unwrap().estimate, 1.0);
    // The same answers as they stood on the page would look like guessing.
    let entries = votes.votes.iter().map(|vote| Entry {
        item: vote.comparison as usize,
        annotator: vote.annotator as usize,
        level: usize::from(vote.left_strength() > 0),
    });
    let raw = agreement(&Table::new(200, 2, 2, entries, Repeats::Last).unwrap(), HOW);
    assert!(raw.alpha_nominal.unwrap().estimate < 0.3);
}

#[test]
fn votes_that_mean_nothing_are_refused() {
    let mut votes = Votes::new();
    let error = votes.push(&row("p", "x", "x", "a", Answer::Tie)).unwrap_err();
    assert_eq!(error.to_string(), "prompt `p`: response `x` is compared with itself; expected two responses");
    let answer = Answer::Better { side: Side::Left, grade: 4 };
    assert_eq!(
        votes.push(&row("p", "x", "y", "a", answer)).unwrap_err().to_string(),
        "a grade of 4; expected 1 to 3"
    );
    votes.push(&row("p", "x", "y", "a", Answer::Skip)).unwrap();
    assert_eq!((votes.votes.len(), votes.unanswered[0]), (0, 1));
    let known = VoteRow { known: Some(better(Side::Right)), ..row("p", "x", "y", "a", better(Side::Right)) };
    votes.push(&known).unwrap();
    assert!(votes.votes.is_empty() && votes.calibration[0].right);
}

proptest! {
    #[test]
    fn names_and_order_do_not_matter(
        levels in prop::collection::vec((0_usize..12, 0_usize..5, 0_usize..4), 8..60),
        turn in 0_usize..60,
    ) {
        let mut unique: Vec<(usize, usize, usize)> = Vec::new();
        for entry in levels {
            if unique.iter().all(|other| (other.0, other.1) != (entry.0, entry.1)) {
                unique.push(entry);
            }
        }
        // The corners pin the table's size.
        unique.retain(|entry| (entry.0, entry.1) != (11, 4));
        unique.push((11, 4, 0));
        let one = agreement(&table(&unique, 4), HOW);
        let by = turn % unique.len();
        unique.rotate_left(by);
        let renamed: Vec<_> = unique.iter().map(|&(i, a, l)| (i, (a + 1) % 5, l)).collect();
        let mirrored: Vec<_> = unique.iter().map(|&(i, a, l)| (i, a, 3 - l)).collect();
        for other in [agreement(&table(&renamed, 4), HOW), agreement(&table(&mirrored, 4), HOW)] {
            for (a, b) in [
                (&one.raw, &other.raw), (&one.fleiss, &other.fleiss), (&one.ac2, &other.ac2),
                (&one.alpha_nominal, &other.alpha_nominal), (&one.alpha_ordinal, &other.alpha_ordinal),
                (&one.alpha_interval, &other.alpha_interval),
            ] {
                match (a, b) {
                    (Ok(a), Ok(b)) => prop_assert!((a.estimate - b.estimate).abs() < 1e-9 && a.estimate <= 1.0 + 1e-12),
                    (a, b) => prop_assert_eq!(a, b),
                }
            }
        }
    }

    #[test]
    fn swapping_every_side_mirrors_bradley_terry(
        games in prop::collection::vec((0_usize..4, 1_usize..4, 0_usize..3), 40..80),
        kind in 0_usize..3,
    ) {
        let outcomes = [Outcome::Left, Outcome::Tie, Outcome::Right];
        let ties = [Ties::Half, Ties::RaoKupper, Ties::Davidson][kind];
        let config = BradleyTerryConfig { side: true, ridge: 0.1, ..BradleyTerryConfig::plain(ties) };
        let make = |swap: bool| games.iter().map(|&(i, step, o)| {
            let (left, right) = (i, (i + step) % 4);
            let (left, right, o) = if swap { (right, left, 2 - o) } else { (left, right, o) };
            Match { left, right, outcome: outcomes[o], weight: 1.0 }
        }).collect::<Vec<_>>();
        if let (Ok(a), Ok(b)) = (BradleyTerry::fit(4, &make(false), config), BradleyTerry::fit(4, &make(true), config)) {
            let near = |x: f64, y: f64| (x - y).abs() < 1e-6;
            prop_assert!(a.strength.iter().zip(&b.strength).all(|(x, y)| near(*x, *y)));
            prop_assert!(near(a.side.unwrap(), -b.side.unwrap()));
            prop_assert!(near(a.strength.iter().sum(), 0.0));
        }
    }
}

#[test]
fn a_bootstrap_of_sums_is_the_bootstrap() {
    let mut stream = Stream::new(4, "table", 0);
    let rows: Vec<_> = (0..180).map(|i| (i / 3, i % 3, stream.below(3).min(stream.below(3)))).collect();
    let data = table(&rows, 3);
    let how = Resampling { resamples: 400, ..HOW };
    let fast = agreement(&data, how).alpha_nominal.unwrap();
    let slow = bootstrap(
        &(0..60).collect::<Vec<_>>(),
        |items| {
            // The same items, drawn again, as a table of their own.
            let drawn: Vec<_> = items
                .iter()
                .enumerate()
                .flat_map(|(new, &item)| {
                    data.item(item).iter().map(move |&(a, l)| (new, a as usize, l as usize))
                })
                .collect();
            let no_interval = Resampling { resamples: 1, ..how };
            agreement(&table(&drawn, 3), no_interval).alpha_nominal.unwrap().estimate
        },
        how,
    )
    .unwrap();
    assert!((fast.estimate - slow.estimate).abs() < 1e-12);
    assert!((fast.low.unwrap() - slow.bca.0).abs() < 1e-9 && (fast.high.unwrap() - slow.bca.1).abs() < 1e-9);
    assert!((fast.se.unwrap() - slow.se).abs() < 1e-9);
    assert_eq!(agreement_sums(&data).clusters(), 60);
    // A statistic that is never defined again has no interval.
    let sums = agreement_sums(&data);
    let total = sums.total();
    let never = |x: &[f64]| (x == total.as_slice()).then_some(1.0);
    let [got] = bootstrap_sums(&sums, [&never], how).unwrap();
    assert!(matches!(got, Err(Error::Unstable { undefined, .. }) if undefined >= 399), "{got:?}");
}

#[test]
fn dawid_skene_climbs_and_recovers() {
    let mut stream = Stream::new(8, "dawid skene", 0);
    let accuracy = [0.95, 0.9, 0.8, 0.6, 0.4];
    let mut rows = Vec::new();
    let mut truth = Vec::new();
    for item in 0..600 {
        let true_level = stream.below(3);
        truth.push(true_level);
        for (annotator, accuracy) in accuracy.iter().enumerate() {
            let right = stream.unit() < *accuracy;
            rows.push((
                item,
                annotator,
                if right { true_level } else { (true_level + 1 + stream.below(2)) % 3 },
            ));
        }
    }
    let data = table(&rows, 3);
    let model = DawidSkene::fit(&data, DawidSkeneConfig::usual()).unwrap();
    assert!(model.converged);
    for two in model.objective.windows(2) {
        assert!(two[1] >= two[0] - 1e-9 * two[0].abs(), "the objective fell: {two:?}");
    }
    for (w, accuracy) in accuracy.iter().enumerate() {
        // Four standard errors of a share of 600.
        assert!((model.accuracy(w) - accuracy).abs() < 0.09, "{w}: {}", model.accuracy(w));
    }
    let best = |p: &[f64]| (0..3).max_by(|&a, &b| p[a].total_cmp(&p[b])).unwrap();
    let right = (0..600).filter(|&item| best(model.posterior(item)) == truth[item]).count();
    let majority = with_majority(&data, 0.95);
    assert!(right > 560 && majority[0].agreed > majority[4].agreed, "{right}");
    let empty = Table::new(3, 1, 2, [], Repeats::Last).unwrap();
    assert!(DawidSkene::fit(&empty, DawidSkeneConfig::usual()).is_err());
}

#[test]
fn strengths_that_do_not_exist_are_refused() {
    let game = |left, right, outcome| Match { left, right, outcome, weight: 1.0 };
    let plain = BradleyTerryConfig::plain(Ties::Half);
    // 2 never loses, 3 never wins.
    let games = [
        game(0, 1, Outcome::Left),
        game(1, 0, Outcome::Left),
        game(2, 0, Outcome::Left),
        game(0, 3, Outcome::Left),
    ];
    let error = BradleyTerry::fit(4, &games, plain).unwrap_err();
    assert_eq!(error, Error::Disconnected { unbeaten: vec![2], winless: vec![3] });
    // A ridge makes it finite, and a tie connects.
    let ridge = BradleyTerry::fit(4, &games, BradleyTerryConfig { ridge: 0.1, ..plain }).unwrap();
    assert!(ridge.strength[2] > ridge.strength[0] && ridge.strength[0] > ridge.strength[3]);
    let mut tied = games.to_vec();
    tied.extend([game(2, 0, Outcome::Tie), game(3, 0, Outcome::Tie)]);
    assert!(BradleyTerry::fit(4, &tied, plain).is_ok());
    // A tie parameter needs a tie.
    let decided = [game(0, 1, Outcome::Left), game(1, 0, Outcome::Left)];
    assert!(BradleyTerry::fit(2, &decided, BradleyTerryConfig::plain(Ties::Davidson)).is_err());
    // 3 wins of 4: ln 3, and 400 points are a factor of ten.
    let three = [3.0, 1.0].map(|weight| Match { weight, ..game(0, 1, Outcome::Left) });
    let three = [three[0], Match { outcome: Outcome::Right, ..three[1] }];
    let fit = BradleyTerry::fit(2, &three, plain).unwrap();
    assert!((fit.strength[0] - fit.strength[1] - 3.0_f64.ln()).abs() < 1e-9);
    // Var = 1 / (n p (1 - p)) = 1 / (4 * 3/16).
    assert!((fit.difference(0, 1, &fit.covariance).1 - (4.0_f64 / 3.0).sqrt()).abs() < 1e-9);
    assert!((elo(std::f64::consts::LN_10) - 1400.0).abs() < 1e-9);
}

#[test]
fn clustered_errors_know_copies() {
    // Ten copies of each comparison add no knowledge.
    let mut stream = Stream::new(6, "copies", 0);
    let one: Vec<Match> = (0..120)
        .map(|_| {
            let left = stream.below(3);
            let outcome = if stream.unit() < 0.6 { Outcome::Left } else { Outcome::Right };
            Match { left, right: (left + 1 + stream.below(2)) % 3, outcome, weight: 1.0 }
        })
        .collect();
    let prompts: Vec<usize> = (0..120).collect();
    let fit =
        |matches: &[Match]| BradleyTerry::fit(3, matches, BradleyTerryConfig::plain(Ties::Half)).unwrap();
    let (few, many) = (fit(&one), fit(&one.repeat(10)));
    let se = |fit: &BradleyTerry, covariance: &[f64]| fit.strength_se(covariance)[0];
    let few_se = se(&few, &few.clustered(&one, &prompts).unwrap());
    let many_se = se(&many, &many.clustered(&one.repeat(10), &prompts.repeat(10)).unwrap());
    assert!((few_se - many_se).abs() < 1e-9, "{few_se} {many_se}");
    assert!(se(&many, &many.covariance) < 0.4 * few_se);
}

/// Votes of the reliability model itself: eight annotators, `overlap` of them on each comparison.
fn simulated(pairs: usize, overlap: usize, seed: u64, truth: &[(f64, f64)]) -> Vec<PairVote> {
    let mut stream = Stream::new(seed, "panel", 0);
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let mut votes = Vec::new();
    for pair in 0..pairs {
        let normal =
            (-2.0 * (1.0 - stream.unit()).ln()).sqrt() * (std::f64::consts::TAU * stream.unit()).cos();
        let mut order: Vec<usize> = (0..truth.len()).collect();
        for i in 0..overlap {
            order.swap(i, i + stream.below(truth.len() - i));
            let (gamma, q) = truth[order[i]];
            let first_on_left = stream.unit() < 0.5;
            let left = if first_on_left { 2.0 * normal } else { -2.0 * normal };
            let p = if stream.unit() < gamma { sigmoid(left) } else { sigmoid(q) };
            let outcome = if stream.unit() < p { Outcome::Left } else { Outcome::Right };
            votes.push(PairVote { pair: pair as u32, annotator: order[i] as u32, first_on_left, outcome });
        }
    }
    votes
}

/// 95 % intervals of 60 panels of 8. A panel's are not independent, as the level of all reliabilities trades with the scale of
/// the differences. Measured: see the study in docs/agreement.md.
#[test]
fn reliability_and_side_are_covered() {
    let truth =
        [(0.95, 0.0), (0.9, 0.0), (0.9, 0.8), (0.8, 0.0), (0.7, -0.8), (0.6, 0.0), (0.5, 1.2), (0.3, 0.0)];
    let mut covered = [0; 2];
    for trial in 0..60 {
        let votes = simulated(400, 4, trial, &truth);
        let fit = CrowdPairs::fit(400, 8, &votes, CrowdPrior::usual()).unwrap();
        for (w, (annotator, (gamma, q))) in fit.annotators.iter().zip(truth).enumerate() {
            let (low, high) = fit.interval(w, 0.95).unwrap();
            covered[0] += usize::from(low <= gamma && gamma <= high);
            let (low, high) = normal_interval(annotator.side_logit, annotator.side_logit_se.unwrap(), 0.95);
            covered[1] += usize::from(low <= q && q <= high);
        }
    }
    println!("covered of 480: reliability {}, side {}", covered[0], covered[1]);
    assert!(covered.iter().all(|&n| n >= 426), "{covered:?}");
}

#[test]
fn soft_labels_trust_the_reliable() {
    let truth = [(0.95, 0.0), (0.95, 0.0), (0.95, 0.0), (0.1, 0.0), (0.1, 0.0)];
    let mut votes = simulated(400, 5, 1, &truth);
    // One more comparison: two reliable annotators for the first response, two unreliable ones against it.
    let vote = |annotator, outcome| PairVote { pair: 400, annotator, first_on_left: true, outcome };
    votes.extend([
        vote(0, Outcome::Left),
        vote(1, Outcome::Left),
        vote(3, Outcome::Right),
        vote(4, Outcome::Right),
    ]);
    let fit = CrowdPairs::fit(402, 5, &votes, CrowdPrior::usual()).unwrap();
    assert!(fit.labels[400].first > 0.7, "{:?}", fit.labels[400]);
    assert!(fit.annotators[0].reliability > 0.8 && fit.annotators[4].reliability < 0.4);
    // Nothing is known of a comparison without votes.
    assert!((fit.labels[401].first - 0.5).abs() < 1e-12);
    // Ties pull a label to the middle.
    votes.extend((0..3).map(|annotator| PairVote {
        pair: 401,
        annotator,
        first_on_left: true,
        outcome: Outcome::Tie,
    }));
    votes.push(PairVote { pair: 401, annotator: 0, first_on_left: true, outcome: Outcome::Left });
    let with_ties = CrowdPairs::fit(402, 5, &votes, CrowdPrior::usual()).unwrap();
    assert!(with_ties.labels[401].first > 0.5 && with_ties.labels[401].sd < 0.7 * with_ties.strength_sd);
}

#[test]
fn crowd_bt_needs_no_connection() {
    let game = |left, right| Match { left, right, outcome: Outcome::Left, weight: 1.0 };
    // Two graphs that do not touch, each won by one side: the prior keeps strengths finite.
    let games = [game(0, 1), game(0, 1), game(2, 3)];
    let fit = CrowdBt::fit(4, 1, &games, &[0, 0, 0], CrowdPrior::usual()).unwrap();
    assert!((fit.strength[0] + fit.strength[1]).abs() < 1e-9);
    assert!(fit.probability(0, 1) > fit.probability(2, 3) && fit.probability(2, 3) > 0.5);
    let error = CrowdBt::fit(5000, 1, &games, &[0, 0, 0], CrowdPrior::usual()).unwrap_err();
    assert!(error.to_string().contains("takes at most 4000"), "{error}");
}

#[test]
fn the_e_process_rarely_cries_wolf_and_sees_the_wolf() {
    let alarm = |seed: u64, accuracy: f64| {
        let mut stream = Stream::new(seed, "calibration", 0);
        let mut monitor = AccuracyMonitor::new(0.7);
        (0..300).for_each(|_| monitor.push(stream.unit() < accuracy));
        monitor.p_anytime() <= 0.05
    };
    let count = |accuracy| (0..1000).filter(|&seed| alarm(seed, accuracy)).count();
    // At the floor itself, looked at 300 times: at most 5 %, so 50 of 1000 and four sd of 7.
    let (at_floor, above, below) = (count(0.7), count(0.8), count(0.5));
    println!("alarms of 1000: at the floor {at_floor}, above {above}, below {below}");
    assert!(at_floor <= 50 && above <= 5 && below > 950, "{at_floor} {above} {below}");
}

#[test]
fn the_cusums_false_alarms_are_what_was_asked_for() {
    let threshold = cusum_threshold(0.75, 0.55, 200, 0.05, 2000, 3).unwrap();
    println!("{threshold:?}");
    // Chosen on 2000 sequences and measured on 2000 others: sd of the difference is 0.7 %.
    assert!((threshold.false_alarms.estimate - 0.05).abs() < 0.028, "{threshold:?}");
    assert!(threshold.detected.estimate > 0.9, "{threshold:?}");
    // Permutation: exact whatever the rate.
    let alarms = (0..400)
        .filter(|&seed| {
            let mut stream = Stream::new(seed, "steady", 0);
            let agreed: Vec<bool> = (0..80).map(|_| stream.unit() < 0.8).collect();
            drift_p_value(&agreed, 199, seed).is_some_and(|p| p <= 0.05)
        })
        .count();
    // 20 of 400 with sd 4.4, less for ties between permutations.
    assert!(alarms <= 38, "{alarms}");
}

#[test]
fn a_report_on_three_annotators() {
    let mut votes = Votes::new();
    let mut stream = Stream::new(9, "report", 0);
    for i in 0..300_u64 {
        let prompt = format!("p{i}");
        for (w, name) in ["steady", "lefty", "sloppy"].into_iter().enumerate() {
            let x_on_left = stream.unit() < 0.5;
            let x_better = if w == 2 { stream.unit() < 0.5 } else { i % 3 != 0 };
            let left = if w == 1 && stream.unit() < 0.5 { true } else { x_better == x_on_left };
            let (l, r) = if x_on_left { ("x", "y") } else { ("y", "x") };
            let grade = 1 + (i % 3) as u8;
            let side = if left { Side::Left } else { Side::Right };
            let fast = if w == 2 { 900 } else { 9000 };
            let mut vote = row(&prompt, l, r, name, Answer::Better { side, grade });
            vote.category = Some(if i % 2 == 0 { "even" } else { "odd" });
            vote.rubric = (i > 100).then_some("v2");
            vote.duration_ms = Some(fast);
            vote.time_ms = Some(i as i64);
            votes.push(&vote).unwrap();
            if i < 40 {
                let right = w != 2 || i % 2 == 0;
                let answer = if right { better(Side::Left) } else { better(Side::Right) };
                let known =
                    VoteRow { known: Some(better(Side::Left)), ..row(&prompt, "x", "y", name, answer) };
                votes.push(&known).unwrap();
            }
        }
    }
    let report = panel_report(&votes, &PanelSettings { resamples: 200, ..PanelSettings::usual(1) });
    let find = |name: &str| report.annotators.iter().find(|a| a.name == name).unwrap();
    let (steady, lefty, sloppy) = (find("steady"), find("lefty"), find("sloppy"));
    assert!(lefty.side_bias.p_adjusted < 1e-6 && steady.side_bias.p_adjusted > 0.05, "{lefty:?}");
    let reliability = |a: &polity_stats::panel::AnnotatorReport| a.reliability.unwrap().reliability;
    assert!(reliability(steady) > reliability(lefty) && reliability(lefty) > reliability(sloppy));
    assert!(lefty.reliability.unwrap().side_logit > 1.0);
    assert_eq!(sloppy.speed.unwrap().median_ms, 900);
    assert_eq!((sloppy.speed.unwrap().fast_share, steady.speed.unwrap().fast_share), (1.0, 0.0));
    let calibration = |a: &polity_stats::panel::AnnotatorReport| a.calibration.unwrap();
    assert_eq!((calibration(sloppy).right, calibration(sloppy).seen), (20, 40));
    assert!(calibration(steady).p_anytime == 1.0 && calibration(sloppy).p_anytime < 0.5);
    assert_eq!(report.counts.calibration, 120);
    let names: Vec<_> = report.categories.iter().map(|part| part.name.as_deref()).collect();
    assert_eq!(names, [Some("even"), Some("odd")]);
    let names: Vec<_> = report.rubrics.iter().map(|part| part.name.as_deref()).collect();
    assert_eq!(names, [Some("v2"), None]);
    assert_eq!(report.pairs.len(), 3);
    // Two responses that meet on 300 prompts are ranked.
    let ranking = report.ranking.as_ref().unwrap();
    assert_eq!(ranking.responses[0].name, "x");
    assert!(ranking.left_side.unwrap().0 > 0.2, "{ranking:?}");

    let json = serde_json::to_value(&report).unwrap();
    let consistency =
        json["figures"].as_array().unwrap().iter().find(|f| f["name"] == "self_consistency").unwrap();
    assert_eq!(consistency["undefined"], "not_recorded");
    assert!(json["figures"][0]["estimate"].is_number() && json["figures"][0]["low"].is_number());
    assert!(!json.to_string().contains("NaN"));
}

#[test]
fn responses_always_on_the_same_side_are_ranked_without_a_side() {
    let mut votes = Votes::new();
    for item in 0..40 {
        let prompt = format!("p{item}");
        for (annotator, better_left) in [("one", item % 4 != 0), ("two", item % 3 != 0)] {
            let answer = if better_left { better(Side::Left) } else { better(Side::Right) };
            votes.push(&row(&prompt, "x", "y", annotator, answer)).unwrap();
        }
    }
    let ranking =
        panel_report(&votes, &PanelSettings { resamples: 20, ..PanelSettings::usual(1) }).ranking.unwrap();
    assert!(ranking.undefined.is_none() && ranking.left_side.is_none(), "{ranking:?}");
    // 30 of 40 and 26 of 40 votes: the log-odds of 56 to 24, half of it above the mean.
    assert_eq!(ranking.responses[0].name, "x");
    assert!((ranking.responses[0].strength - 0.5 * (56.0_f64 / 24.0).ln()).abs() < 1e-9, "{ranking:?}");
}
