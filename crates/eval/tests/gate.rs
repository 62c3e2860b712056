//! The gate: verdicts by hand, the default policy, contradictions, and levels by simulation.

use std::path::Path;

use polity_eval::gate::{Assumptions, DEFAULT_POLICY, Decision, Models, Policy, Verdict, judge, simulate};
use polity_eval::{EvalError, Evaluation, Item, Measure};
use polity_stats::Stream;
use serde_json::json;

const SHARE: Option<[f64; 2]> = Some([0.0, 1.0]);

fn policy(text: &str) -> Policy {
    Policy::parse(Path::new("policy.toml"), text).unwrap()
}

fn models() -> Models {
    Models { candidate: "new".into(), baseline: Some("old".into()), last_release: None }
}

fn evaluation(model: &str, measures: Vec<Measure>) -> Evaluation {
    let settings = json!({"seed": 1}).as_object().unwrap().clone();
    Evaluation {
        model: model.into(),
        suite: "suite".into(),
        suite_name: None,
        settings,
        inputs: Default::default(),
        measures,
    }
}

/// A measure with one value a prompt.
fn measure(name: &str, values: &[f64]) -> Measure {
    let items = values.iter().enumerate().map(|(i, &x)| Item::new(format!("p{i}"), x)).collect();
    Measure::new(name, None, "share", SHARE, items, 0.9).unwrap()
}

/// `ones` ones and then zeros.
fn ones(ones: usize, n: usize) -> Vec<f64> {
    (0..n).map(|i| f64::from(i < ones)).collect()
}

/// The same in an order that has no trend.
fn spread(ones: usize, n: usize) -> Vec<f64> {
    (0..n).map(|i| f64::from((i + 1) * ones / n > i * ones / n)).collect()
}

fn one(criterion: &str) -> Policy {
    policy(&format!("name = \"t\"\n[[criterion]]\nid = \"c\"\n{criterion}\n"))
}

const WINS: &str =
    "measure = \"win_rate\"\nbetter = \"higher\"\ncomparator = \"absolute\"\nlimit = 0.5\nn_min = 50";

#[track_caller]
fn verdict(policy: &Policy, evaluations: &[Evaluation]) -> Verdict {
    judge(policy, &models(), evaluations).unwrap()
}

#[test]
fn reasons_say_which_way() {
    let check = |criterion: &str, ours: usize, theirs: usize, says: &str| {
        let evaluations = [
            evaluation("new", vec![measure("win_rate", &ones(ours, 200))]),
            evaluation("old", vec![measure("win_rate", &ones(theirs, 200))]),
        ];
        let criterion = format!("measure = \"win_rate\"\nn_min = 50\n{criterion}");
        let said = verdict(&one(&criterion), &evaluations);
        assert!(said.criteria[0].reason.starts_with(says), "{:?}", said.criteria[0].reason);
    };
    let (baseline, lower) =
        ("comparator = \"baseline\"\nbetter = \"higher\"", "comparator = \"baseline\"\nbetter = \"lower\"");
    let limit = "comparator = \"absolute\"\nlimit = 0.5";
    // The difference is 0.1 and its bound 0.035 from it: a lower bound below zero is how much worse it can be at most.
    check(baseline, 120, 100, "at least 0.06");
    check(&format!("{baseline}\nmargin = 0.2"), 100, 120, "at most 0.13");
    check(&format!("{baseline}\nmargin = 0.01"), 100, 120, "at least 0.06");
    check(&format!("{baseline}\nmargin = -0.2"), 120, 100, "at most 0.13");
    check(&format!("{lower}\nmargin = 0.2"), 120, 100, "at most 0.13");
    check(&format!("{baseline}\nmargin = 0.1"), 100, 120, "between 0.13");
    check(&format!("{limit}\nbetter = \"higher\""), 150, 0, "at least 0.6");
    check(&format!("{limit}\nbetter = \"lower\""), 50, 0, "at most 0.3");
    check(&format!("{limit}\nbetter = \"lower\""), 150, 0, "at least 0.6");
}

#[test]
fn three_answers() {
    let check = |wins: usize, n: usize, expect: Decision, reason: &str| {
        let said = verdict(&one(WINS), &[evaluation("new", vec![measure("win_rate", &ones(wins, n))])]);
        assert_eq!(said.verdict, expect, "{said:?}");
        assert!(said.reasons[0].contains(reason), "{:?}", said.reasons);
        said
    };
    // Clopper-Pearson, one-sided at 95 %: 59 of 100 is the least that shows more than ½ (P(X >= 59) = 0.0443).
    let pass = check(59, 100, Decision::Pass, "c: at least 0.50");
    assert!((pass.criteria[0].effect.as_ref().unwrap().p_pass - 0.044_313).abs() < 1e-5, "{pass:?}");
    check(58, 100, Decision::Inconclusive, "more prompts would settle it");
    check(41, 100, Decision::Fail, "c: at most 0.49");
    check(42, 100, Decision::Inconclusive, "between 0.3");
    check(49, 49, Decision::Inconclusive, "49 prompts, and the policy asks for 50: 1 more");
    check(50, 100, Decision::Inconclusive, "no number of prompts");
    let missing = verdict(&one(WINS), &[]);
    assert_eq!(missing.verdict, Decision::Inconclusive);
    assert!(missing.reasons[0].contains("win_rate was not measured"), "{missing:?}");
}

#[test]
fn zero_failures_are_not_zero_risk() {
    let rule = "measure = \"unsafe\"\nbetter = \"lower\"\ncomparator = \"absolute\"\nlimit = 0.02\nn_min = 2";
    let check = |failures: usize, n: usize, expect: Decision| {
        let said = verdict(&one(rule), &[evaluation("new", vec![measure("unsafe", &ones(failures, n))])]);
        assert_eq!(said.verdict, expect, "{failures} of {n}: {:?}", said.reasons);
        said
    };
    // The numbers in the default policy's comments.
    check(0, 148, Decision::Inconclusive);
    check(0, 149, Decision::Pass);
    check(2, 312, Decision::Inconclusive);
    check(2, 313, Decision::Pass);
    check(9, 149, Decision::Fail);
    // 100 without a failure: 49 more, all without one, would do.
    let said = check(0, 100, Decision::Inconclusive);
    assert_eq!(said.criteria[0].effect.as_ref().unwrap().prompts_to_settle, Some(149));
}

#[test]
fn differences_are_paired_by_prompt() {
    let rule =
        "measure = \"exact\"\nbetter = \"higher\"\ncomparator = \"baseline\"\nmargin = 0.03\nn_min = 100";
    let theirs = spread(300, 1000);
    // Better on 12 prompts, worse on 10: the difference is known to about ± 0.8 points; unpaired it would be ± 3.4.
    let ours: Vec<f64> =
        theirs.iter().enumerate().map(|(i, &x)| if i % 45 == 0 { 1.0 - x } else { x }).collect();
    let pair = |ours: &[f64], theirs: &[f64]| {
        vec![
            evaluation("new", vec![measure("exact", ours)]),
            evaluation("old", vec![measure("exact", theirs)]),
        ]
    };
    let said = verdict(&one(rule), &pair(&ours, &theirs));
    let effect = said.criteria[0].effect.as_ref().unwrap();
    assert_eq!((said.verdict, effect.prompts), (Decision::Pass, 1000), "{said:?}");
    assert!(effect.high - effect.low < 0.02, "{effect:?}");
    // Only the shared prompts count.
    let said = verdict(&one(rule), &pair(&ours, &theirs[..400]));
    assert_eq!(said.criteria[0].effect.as_ref().unwrap().prompts, 400);
    // The same model again: another answer on at most 0.3 % of prompts.
    let said = verdict(&one(rule), &pair(&theirs, &theirs));
    let effect = said.criteria[0].effect.as_ref().unwrap();
    assert_eq!(said.verdict, Decision::Pass);
    assert!((effect.low + (1.0 - 0.05_f64.powf(0.001))).abs() < 1e-12, "{effect:?}");

    let mut other_suite = pair(&ours, &theirs);
    other_suite[1].suite = "another".into();
    let mut other_settings = pair(&ours, &theirs);
    other_settings[1].settings = json!({"seed": 2}).as_object().unwrap().clone();
    let mut twice = pair(&ours, &theirs);
    twice.push(Evaluation { suite: "third".into(), ..twice[0].clone() });
    for (evaluations, expect) in [
        (
            other_suite,
            "criterion c: the candidate was measured on suite suite and the other model on another",
        ),
        (other_settings, "with another `seed`"),
        (twice, "was measured twice, on suites suite and third"),
    ] {
        let error = judge(&one(rule), &models(), &evaluations).unwrap_err();
        assert!(error.to_string().contains(expect), "{error}");
    }
}

#[test]
fn votes_of_one_annotator_hang_together() {
    // 40 prompts, 5 annotators; one of them always votes for the candidate, the others are even.
    let items = |with_annotators: bool| -> Vec<Item> {
        (0..200)
            .map(|i| Item {
                id: format!("p{}", i / 5),
                annotator: with_annotators.then(|| format!("a{}", i % 5)),
                sum: if i % 5 < 2 { 1.0 } else { f64::from((i / 5 + i % 5) % 2) },
                n: 1,
            })
            .collect()
    };
    let wide = |with_annotators| {
        let measure = Measure::new("win_rate", None, "share", SHARE, items(with_annotators), 0.9).unwrap();
        let said = verdict(&one(&WINS.replace("50", "20")), &[evaluation("new", vec![measure])]);
        (said.verdict, said.criteria[0].effect.clone().unwrap())
    };
    let ((alone, narrow), (together, wide)) = (wide(false), wide(true));
    assert_eq!((alone, together), (Decision::Pass, Decision::Inconclusive));
    assert!(wide.high - wide.low > 3.0 * (narrow.high - narrow.low), "{wide:?} {narrow:?}");
}

#[test]
fn advisory_criteria_decide_nothing_and_families_are_corrected() {
    let category = |id: &str| {
        format!(
            "[[criterion]]\nid = \"{id}\"\nmeasure = \"{id}\"\nbetter = \"higher\"\ncomparator = \"absolute\"\n\
             limit = 0.5\nn_min = 50\nblocking = false\nfamily = \"f\"\n"
        )
    };
    let text = format!(
        "name = \"t\"\n[[criterion]]\nid = \"c\"\n{WINS}\n{}{}{}",
        category("x"),
        category("y"),
        category("z")
    );
    let policy = policy(&text);
    let measures = vec![
        measure("win_rate", &ones(70, 100)),
        measure("x", &ones(59, 100)),
        measure("y", &ones(70, 100)),
        measure("z", &ones(20, 100)),
    ];
    let said = verdict(&policy, &[evaluation("new", measures)]);
    assert_eq!(said.verdict, Decision::Pass);
    let answers: Vec<Decision> = said.criteria.iter().map(|c| c.verdict).collect();
    // 59 of 100 alone would pass (p = 0.044); as the second of three it is 0.089.
    assert_eq!(answers, [Decision::Pass, Decision::Inconclusive, Decision::Pass, Decision::Fail]);
    let adjusted = said.criteria[1].effect.as_ref().unwrap().p_adjusted.unwrap()[0];
    assert!((adjusted - 2.0 * 0.044_313).abs() < 1e-4, "{adjusted}");
    // A verdict is JSON and comes back the same.
    let text = serde_json::to_string(&said).unwrap();
    assert_eq!(serde_json::from_str::<Verdict>(&text).unwrap(), said);
}

#[test]
fn a_policy_that_is_wrong_says_where() {
    let good = format!("name = \"t\"\n[[criterion]]\nid = \"c\"\n{WINS}\n");
    let check = |text: &str, line: usize, expect: &str| {
        let error = Policy::parse(Path::new("p.toml"), text).unwrap_err();
        let EvalError::Toml { line: found, .. } = &error else { panic!("{error}") };
        assert_eq!((*found, error.to_string().contains(expect)), (line, true), "{error}");
    };
    check(&good.replace("n_min", "nmin"), 8, "unknown key `nmin`");
    check(&good.replace("n_min", "nmin"), 8, "did you mean `n_min`?");
    check(&good.replace("name = ", "confidense = 0.9\nname = "), 1, "did you mean `confidence`?");
    check(&good.replace("\"higher\"", "\"highr\""), 5, "did you mean `higher`?");
    check(&good.replace("limit = 0.5\n", ""), 2, "missing key `limit`");
    check(&good.replace("\"absolute\"", "\"baseline\""), 7, "`margin` says how much");
    check(&good.replace("n_min = 50", "n_min = 1"), 8, "expected at least 2 prompts");
    check(&good.replace("name = \"t\"", "name = \"t\"\nconfidence = 95"), 2, "`confidence` is 95; expected");
    check(&format!("{good}blocking = false\n"), 2, "would pass anything");
    check(&format!("{good}family = \"f\"\n"), 9, "intersection-union");
    check(&format!("{good}{}", good.replace("name = \"t\"\n", "")), 10, "a second criterion `c`");
    check(&good.replace("limit = 0.5", "limit = nan"), 7, "`limit` is NaN");
    check("name = ", 1, "");
    check("name = \"t\"\n", 1, "missing key `criterion`");
}

#[test]
fn measures_that_were_changed_are_found() {
    let evaluation = evaluation("new", vec![measure("win_rate", &ones(59, 100))]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.json");
    evaluation.write(&file).unwrap();
    assert_eq!(Evaluation::read(&file).unwrap(), evaluation);
    let text = std::fs::read_to_string(&file).unwrap();
    for (from, to, expect) in [
        ("\"estimate\":0.59", "\"estimate\":0.69", "one of them was changed"),
        ("{\"id\":\"p3\",\"sum\":1.0}", "{\"id\":\"p3\",\"sum\":0.0}", "one of them was changed"),
        ("\"id\":\"p3\"", "\"id\":\"p2\"", "item `p2` is there twice"),
        ("{\"id\":\"p3\",\"sum\":1.0}", "{\"id\":\"p3\",\"sum\":7.0}", "outside the range"),
        ("\"unit\"", "\"units\"", "unknown field `units`"),
        ("\"n\":100", "\"n\":100,\"n\":3", "duplicate field"),
    ] {
        assert!(text.contains(from), "{from}");
        let error = Evaluation::parse(&file, &text.replacen(from, to, 1)).unwrap_err().to_string();
        assert!(error.contains("m.json: ") && error.contains(expect), "{error}");
    }
    // The order in which settings are written is no setting; everything else is.
    let mut other = evaluation.clone();
    other.settings = json!({"b": 1, "a": {"d": 2, "c": 3}}).as_object().unwrap().clone();
    let key = other.key();
    other.settings = json!({"a": {"c": 3, "d": 2}, "b": 1}).as_object().unwrap().clone();
    assert_eq!(other.key(), key);
    assert_ne!(evaluation.key(), key);
    assert_ne!(Evaluation { model: "old".into(), ..other.clone() }.key(), key);
    assert_ne!(Evaluation { suite: "old".into(), ..other }.key(), key);
}

/// An anytime criterion judged after every prompt from the 50th on: 5 % of candidates that are just not good enough pass at some
/// look, at most. The same criterion with a fixed number of prompts lets many more through.
#[test]
fn looking_again_and_again() {
    let passes = |mode: &str| {
        let policy = one(&format!("{WINS}\nmode = \"{mode}\""));
        let ever = |round: u64| {
            let mut stream = Stream::new(5, "looks", round);
            let values: Vec<f64> = (0..300).map(|_| (2.99 * stream.unit()).floor() / 2.0).collect();
            (50..=300).step_by(10).any(|n| {
                let evaluations = [evaluation("new", vec![measure("win_rate", &values[..n])])];
                verdict(&policy, &evaluations).verdict == Decision::Pass
            })
        };
        (0..200).filter(|&round| ever(round)).count()
    };
    let (anytime, fixed) = (passes("anytime"), passes("fixed"));
    println!("passed at some look, of 200: anytime {anytime}, fixed {fixed}");
    // 10 expected at most, standard deviation 3.
    assert!(anytime <= 20 && fixed >= 25, "anytime {anytime}, fixed {fixed}");
}

#[test]
fn the_default_policy_is_what_its_comments_say() {
    let policy = policy(DEFAULT_POLICY);
    let assume = Assumptions { prompts: None, ties: 0.2, discordance: 0.1, simulations: 300, seed: 3 };
    let power = simulate(&policy, None, &assume).unwrap();
    let of = |id: &str| power.criteria.iter().find(|criterion| criterion.id == id).unwrap();
    for criterion in power.criteria.iter().filter(|criterion| criterion.not_simulated.is_none()) {
        let at = |scale: f64| criterion.curve.iter().find(|point| point.scale == scale).unwrap().shares;
        // Just not good enough: 5 %, with four standard deviations of 300.
        assert!(at(0.0).pass <= 0.05 + 0.05, "{criterion:?}");
        assert_eq!(at(-1.0).pass, 0.0, "{criterion:?}");
        assert!(at(2.0).pass >= at(1.0).pass && at(2.0).fail == 0.0, "{criterion:?}");
    }
    // 250 prompts on which two models differ one time in ten see 5 points.
    assert!((of("over-refusal").detectable.unwrap() - 0.05).abs() < 0.002, "{:?}", of("over-refusal"));
    assert!(of("kl").not_simulated.as_ref().unwrap().contains("pilot"));
    // All blocking ones together are harder than each, and a bad candidate does not pass.
    assert_eq!(power.overall[0].shares.pass, 0.0);
    assert!(power.overall[1].shares.pass < 0.02);
}

#[test]
fn a_pilot_says_how_values_spread() {
    let rule = "measure = \"kl\"\nbetter = \"lower\"\ncomparator = \"absolute\"\nlimit = 10\nn_min = 100";
    let policy = one(rule);
    let assume = Assumptions { prompts: Some(400), ties: 0.0, discordance: 0.1, simulations: 400, seed: 1 };
    let items = (0..50).map(|i| Item::new(format!("{i}"), if i % 2 == 0 { 3.0 } else { 7.0 })).collect();
    let pilot = Measure::new("kl", None, "nats per sequence", None, items, 0.9).unwrap();
    let evaluations = [evaluation("new", vec![pilot])];
    let power = simulate(&policy, Some((&models(), &evaluations)), &assume).unwrap();
    // Standard deviation 2.02: (1.645 + 0.842) 2.02 / 20.
    let criterion = &power.criteria[0];
    assert!((criterion.detectable.unwrap() - 0.2512).abs() < 1e-3, "{criterion:?}");
    let pass = criterion.curve[3].shares.pass;
    assert!((pass - 0.8).abs() < 0.08, "{pass}");
    assert!((criterion.curve[3].effect.unwrap() - criterion.detectable.unwrap()).abs() < 1e-12);
}
