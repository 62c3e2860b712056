//! From answers to measures: right answers, win rates, distances and refusals, by hand and on XSTest's labelled completions.

use std::fs;
use std::path::{Path, PathBuf};

use polity_eval::answers::{Answered, Likelihood, Table, add_answers, add_distances, add_texts};
use polity_eval::preferred::{Judge, Judged, add_win_rate};
use polity_eval::refusal::{Answer, LabelledModel};
use polity_eval::refusals::{Call, RefusalMeter};
use polity_eval::{Inference, Measure, Mode, Suite};
use polity_stats::{Stream, prediction_powered_share};

fn shared(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data").join(path)
}

/// A suite of these rows.
fn suite(head: &str, rows: &str) -> Result<Suite, String> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("rows.jsonl"), rows).unwrap();
    let file = dir.path().join("suite.toml");
    fs::write(&file, format!("name = \"s\"\nrows = \"rows.jsonl\"\n{head}")).unwrap();
    Suite::read(&file).map_err(|error| error.to_string())
}

fn answered(row: usize, text: &str) -> Answered {
    Answered {
        row,
        text: text.into(),
        tokens: text.split_whitespace().count(),
        stopped: !text.ends_with('…'),
    }
}

#[track_caller]
fn find<'m>(measures: &'m [Measure], name: &str, category: Option<&str>) -> &'m Measure {
    let found = measures.iter().find(|m| m.name == name && m.category.as_deref() == category);
    found.unwrap_or_else(|| panic!("no {name} of {category:?} in {measures:?}"))
}

#[test]
fn right_answers() {
    let check = |head: &str, right: &str, answer: &str, expect: f64| {
        let key = if head.contains("regex") { "pattern" } else { "answer" };
        let row = |id: &str| serde_json::json!({"id": id, "prompt": "p", key: right}).to_string();
        let suite = suite(head, &format!("{}\n{}\n", row("a"), row("b"))).unwrap();
        let mut table = Table::new(&suite, 0.95);
        add_answers(&mut table, &[answered(0, answer), answered(1, answer)], 99).unwrap();
        assert_eq!(
            find(&table.finish(), "exact_match", None).estimate,
            expect,
            "{head}: {answer:?} for {right:?}"
        );
    };
    let exact = "kind = \"exact\"";
    check(exact, "New  York", " New York\n", 1.0);
    check(exact, "New York", "new york", 0.0);
    check(exact, "New York", "It is New York", 0.0);
    let numeric = "kind = \"numeric\"";
    check(numeric, "1,250", "They earn $1,250.00.", 1.0);
    check(numeric, "18", "First 16, then 18.", 1.0);
    check(numeric, "18", "18 at first, then 17", 0.0);
    check(numeric, "-3", "x = -3", 1.0);
    check(numeric, "18", "none", 0.0);
    // GSM8K's form: the row's answer and the model's both end so.
    let extract = "kind = \"numeric\"\nextract = '#### (-?[0-9.,]+)'";
    check(extract, "16 - 3 = 13\n#### 13", "a #### 12 b\n#### 13", 1.0);
    check(extract, "#### 13", "it is 13", 0.0);
    check("kind = \"exact\"\nextract = 'Answer: (\\w)'", "Answer: B", "Answer: A? No. Answer: B!", 1.0);
    check("kind = \"regex\"", "(?i)^paris\\b", "Paris, of course", 1.0);
    check("kind = \"regex\"", "(?i)^paris\\b", "Not Paris", 0.0);
}

#[test]
fn suites_that_cannot_be_asked_say_so() {
    let row = r#"{"prompt": "p", "answer": "4"}"#;
    let check = |head: &str, row: &str, says: &str| {
        let error = suite(head, row).unwrap_err();
        assert!(error.contains(says), "{error}");
    };
    check("kind = \"exact\"\ntemplate = \"Q: prompt\"", row, "line 4: `template` has no {prompt}");
    check("kind = \"exact\"\nextract = \"(\"", row, "line 4: `extract`");
    check("kind = \"regex\"", r#"{"prompt": "p", "pattern": "("}"#, "a regular expression");
    check("kind = \"exact\"\nextrakt = \"x\"", row, "did you mean `extract`?");
    // How it is asked is part of what it is; how it is sampled is not.
    let hash = |head: &str| suite(&format!("kind = \"exact\"\n{head}"), row).unwrap().hash;
    assert_ne!(hash(""), hash("template = \"Q: {prompt}\""));
    assert_ne!(hash(""), hash("chat = false"));
    assert_eq!(hash(""), hash("[settings]\nmax_new_tokens = 4"));
    let gsm8k = format!(
        "name = \"gsm8k\"\nkind = \"numeric\"\nrows = {:?}\nextract = '#### (-?[0-9.,]+)'\n[columns]\nprompt = \"question\"\n",
        shared("sft/gsm8k_test.jsonl")
    );
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("gsm8k.toml"), gsm8k).unwrap();
    let gsm8k = Suite::read(&dir.path().join("gsm8k.toml")).unwrap();
    assert_eq!((gsm8k.rows.len(), gsm8k.rows[0].values["answer"].as_str()), (1319, "18"));
}

const PROMPTS: &str = r#"{"id": "a", "prompt": "p", "category": "x"}
{"id": "b", "prompt": "q", "category": "x"}
{"id": "c", "prompt": "r", "category": "y"}
{"id": "d", "prompt": "s", "category": "y"}
"#;

#[test]
fn what_answers_are_like() {
    let suite = suite("kind = \"prompts\"", PROMPTS).unwrap();
    let mut table = Table::new(&suite, 0.95);
    let answers = [
        answered(0, "a b a b"),
        answered(0, "a b c …"),
        answered(1, "one two"),
        answered(2, "x"),
        answered(3, "y z …"),
    ];
    add_answers(&mut table, &answers, 8).unwrap();
    let measures = table.finish();
    let tokens = find(&measures, "response_tokens", None);
    assert_eq!((tokens.estimate, tokens.n, tokens.items.len()), ((4 + 4 + 2 + 1 + 3) as f64 / 5.0, 5, 4));
    assert_eq!(find(&measures, "response_tokens", Some("x")).estimate, 10.0 / 3.0);
    assert_eq!(find(&measures, "share_at_cap", None).estimate, 0.4);
    // Pairs: ab ba ab (2 of 3), ab bc c… (3 of 3), one pair, none, two of two.
    let distinct = find(&measures, "distinct_2", None);
    assert_eq!((distinct.estimate, distinct.n), ((2.0 / 3.0 + 1.0 + 1.0 + 1.0) / 4.0, 4));
}

#[test]
fn distances_by_hand() {
    let suite = suite("kind = \"prompts\"", PROMPTS).unwrap();
    let one = |row, tokens, logprob| Likelihood { row, tokens, bytes: 2 * tokens, logprob, entropy: 0.0 };
    let responses = [one(0, 2, -1.0), one(1, 3, -2.0), one(2, 5, -3.0), one(3, 10, -4.0)];
    let mut table = Table::new(&suite, 0.95);
    add_distances(&mut table, &responses, &[-2.0, -2.5, -2.0, -7.0]).unwrap();
    let measures = table.finish();
    // 1, 0.5, -1 and 3 nats.
    assert_eq!(find(&measures, "kl_nats_per_sequence", None).estimate, 3.5 / 4.0);
    assert_eq!(find(&measures, "kl_nats_per_token", None).estimate, 3.5 / 20.0);
    let mut table = Table::new(&suite, 0.95);
    add_texts(&mut table, &responses).unwrap();
    let measures = table.finish();
    assert_eq!(find(&measures, "nats_per_token", None).estimate, 10.0 / 20.0);
    assert!((find(&measures, "bits_per_byte", None).estimate - 10.0 / 40.0 / 2f64.ln()).abs() < 1e-15);
}

#[test]
fn win_rates_with_ties_and_at_equal_length() {
    let rows: Vec<String> = (0..60)
        .map(|i| {
            let category = if i % 2 == 0 { "x" } else { "y" };
            serde_json::json!({"id": format!("p{i}"), "prompt": "p", "category": category}).to_string()
        })
        .collect();
    let suite = suite("kind = \"prompts\"", &rows.join("\n")).unwrap();
    // Longer answers win; at equal length it is even.
    let judged: Vec<Judged> = (0..60)
        .map(|row| {
            let longer = row % 3 != 0;
            let score = [1.0, 0.5, 0.0, 1.0, 1.0][row % 5];
            let score = if longer { score } else { 1.0 - score };
            let lengths = if longer { (40 + row, 20) } else { (20, 40 + row) };
            Judged { row, annotator: None, score, candidate_length: lengths.0, baseline_length: lengths.1 }
        })
        .collect();
    let mut table = Table::new(&suite, 0.95);
    add_win_rate(&mut table, Judge::RewardModel, &judged).unwrap();
    let measures = table.finish();
    let names: Vec<(&str, Option<&str>)> =
        measures.iter().map(|m| (m.name.as_str(), m.category.as_deref())).collect();
    let (raw, controlled) = ("proxy_win_rate", "proxy_win_rate_length_controlled");
    let both = |name| [(name, None), (name, Some("x")), (name, Some("y"))];
    assert_eq!(names, [both(raw), both(controlled)].concat());
    let rate = find(&measures, raw, None);
    assert!((rate.estimate - judged.iter().map(|one| one.score).sum::<f64>() / 60.0).abs() < 1e-15);
    let of = |value: fn(&Judged) -> f64| judged.iter().map(value).collect::<Vec<f64>>();
    let prompts: Vec<usize> = (0..60).collect();
    let expect = polity_stats::length_controlled(
        &of(|j| j.score),
        &of(|j| j.candidate_length as f64),
        &of(|j| j.baseline_length as f64),
        &prompts,
        0.95,
    )
    .unwrap();
    let got = find(&measures, controlled, None);
    assert!((got.estimate - expect.rate.estimate).abs() < 1e-12, "{got:?}");
    // The interval from influence values is the sandwich's, by the delta method on the rate's scale.
    let slope = got.estimate * (1.0 - got.estimate);
    let se = Inference::of_mean(got, Mode::Fixed, 0.025).unwrap().se();
    assert!((se - slope * expect.se_logit).abs() < 1e-12, "{se} {}", slope * expect.se_logit);
    assert!(got.estimate < rate.estimate);
}

/// A policy of four steps answered as its base did, and the evaluation ended with an error of the statistics.
#[test]
fn models_that_answer_alike_have_a_win_rate_and_none_at_equal_length() {
    let rows: String = (0..6).map(|i| format!("{{\"prompt\": \"p{i}\"}}\n")).collect();
    let suite = suite("kind = \"prompts\"", &rows).unwrap();
    let tie = |row| Judged {
        row,
        annotator: None,
        score: 0.5,
        candidate_length: 9 + row,
        baseline_length: 9 + row,
    };
    let mut table = Table::new(&suite, 0.95);
    add_win_rate(&mut table, Judge::RewardModel, &(0..6).map(tie).collect::<Vec<_>>()).unwrap();
    let measures = table.finish();
    let names: Vec<&str> = measures.iter().map(|measure| measure.name.as_str()).collect();
    assert_eq!((names, measures[0].estimate), (vec!["proxy_win_rate"], 0.5));
}

#[test]
fn an_annotator_who_votes_twice_on_a_prompt_is_one_item() {
    let suite = suite("kind = \"prompts\"", PROMPTS).unwrap();
    let vote = |row, who: &str, score| Judged {
        row,
        annotator: Some(who.into()),
        score,
        candidate_length: 1,
        baseline_length: 1,
    };
    let judged = [vote(2, "ann", 1.0), vote(0, "bo", 0.0), vote(2, "ann", 0.5), vote(2, "bo", 1.0)];
    let mut table = Table::new(&suite, 0.95);
    add_win_rate(&mut table, Judge::People, &judged).unwrap();
    let measures = table.finish();
    let items: Vec<(&str, Option<&str>, f64, u64)> = find(&measures, "win_rate", None)
        .items
        .iter()
        .map(|item| (item.id.as_str(), item.annotator.as_deref(), item.sum, item.n))
        .collect();
    // In the order in which they came.
    assert_eq!(items, [("c", Some("ann"), 1.5, 2), ("a", Some("bo"), 0.0, 1), ("c", Some("bo"), 1.0, 1)]);
}

/// XSTest's three models: each is measured with a classifier that never saw it.
struct Xstest {
    suite: Suite,
    models: Vec<LabelledModel>,
    _dir: tempfile::TempDir,
}

impl Xstest {
    fn new() -> Xstest {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("xstest.toml");
        let head = "name = \"xstest\"\nkind = \"refusal\"\n[columns]\nexpect = \"label\"\n[values.expect]\nsafe = \"comply\"\nunsafe = \"refuse\"\n";
        fs::write(&file, format!("rows = {:?}\n{head}", shared("safety/xstest_prompts.csv"))).unwrap();
        let models = ["gpt4", "llama2new", "mistralinstruct"].map(|model| {
            let file = shared(&format!("safety/xstest_completions_{model}.csv"));
            RefusalMeter::read_labels(model, &file).unwrap()
        });
        Xstest { suite: Suite::read(&file).unwrap(), models: models.into(), _dir: dir }
    }

    /// What is measured of one model, if people have labelled these of its answers.
    fn measures(
        &self,
        model: usize,
        labelled: impl Fn(usize) -> bool,
    ) -> (Vec<Measure>, Vec<Call>, Vec<String>) {
        let mut others = self.models.clone();
        let answers = others.remove(model).rows;
        let meter = RefusalMeter::train(others).unwrap();
        let calls: Vec<Call> = answers
            .iter()
            .enumerate()
            .map(|(row, answer)| Call {
                row,
                called: meter.call(&answer.text),
                label: labelled(row).then_some(answer.answer),
            })
            .collect();
        let mut table = Table::new(&self.suite, 0.95);
        let left_out = meter.add(&mut table, &calls).unwrap();
        (table.finish(), calls, left_out)
    }
}

#[test]
fn refusals_with_people_s_labels_are_the_published_rates() {
    let xstest = Xstest::new();
    for (model, rate) in [0.064, 0.14, 0.008].into_iter().enumerate() {
        let (measures, _, left_out) = xstest.measures(model, |_| true);
        assert!(left_out.is_empty());
        let full = find(&measures, "over_refusal", None);
        // Full refusals of harmless prompts; all labelled, so an exact interval.
        assert!(
            (full.estimate - rate).abs() < 1e-15 && full.n == 250 && full.correction_se == 0.0,
            "{full:?}"
        );
        assert_eq!(full.range, Some([0.0, 1.0]));
        let harmful: Vec<Answer> =
            xstest.models[model].rows.iter().filter(|row| !row.harmless).map(|row| row.answer).collect();
        let complied = harmful.iter().filter(|answer| **answer == Answer::Comply).count() as f64 / 200.0;
        assert!((find(&measures, "unsafe_compliance", None).estimate - complied).abs() < 1e-15);
    }
}

#[test]
fn refusals_with_some_labels_or_none_cover_the_human_rates() {
    let xstest = Xstest::new();
    let (mut with, mut without, mut measured) = (0, 0, 0);
    for model in 0..3 {
        let truth = xstest.measures(model, |_| true).0;
        let mut order: Vec<usize> = (0..450).collect();
        let mut stream = Stream::new(11, "labelled answers", model as u64);
        (1..450).rev().for_each(|i| order.swap(i, stream.below(i + 1)));
        let drawn = &order[..120];
        let (some, calls, _) = xstest.measures(model, |row| drawn.contains(&row));
        let (none, _, _) = xstest.measures(model, |_| false);
        for name in
            ["over_refusal", "over_refusal_or_partial", "unsafe_compliance", "unsafe_compliance_or_partial"]
        {
            let human = find(&truth, name, None).estimate;
            let covers = |measure: &Measure| usize::from(measure.low <= human && human <= measure.high);
            with += covers(find(&some, name, None));
            if let Some(measure) = none.iter().find(|m| m.name == name && m.category.is_none()) {
                measured += 1;
                without += covers(measure);
            }
        }
        // The same error as the statistics' own, which count the labelled answers apart.
        let over = find(&some, "over_refusal", None);
        let harmless = |call: &&Call| xstest.suite.rows[call.row].values["expect"] == "comply";
        let refused = |answer: Answer| answer == Answer::Refuse;
        let labelled: Vec<(bool, bool)> = calls
            .iter()
            .filter(harmless)
            .filter_map(|call| Some((refused(call.called), refused(call.label?))))
            .collect();
        let called = calls.iter().filter(harmless).filter(|call| refused(call.called)).count();
        let expect = prediction_powered_share(called, 250, &labelled, 0.95).unwrap();
        // (Theirs are cut to 0 and 1.)
        let estimate = over.estimate.clamp(0.0, 1.0);
        assert!((estimate - expect.estimate).abs() < 1e-12, "{estimate} {}", expect.estimate);
        let (got, said) = (over.high.min(1.0), expect.high);
        assert!((got / said - 1.0).abs() < 0.05, "{got} {said}");
    }
    println!("covered with 120 labels: {with} of 12; without: {without} of {measured}");
    assert!(with >= 11, "{with} of 12");
    assert!(without + 2 >= measured && measured >= 8, "{without} of {measured}");
}

#[test]
fn labels_of_one_model_teach_nothing_about_another() {
    let one = Xstest::new().models.remove(0);
    let error = RefusalMeter::train(vec![one]).unwrap_err().to_string();
    assert!(error.contains("two at least"), "{error}");
}
