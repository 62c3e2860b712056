//! Files of other tools: the real ones in `../shared/data`, and small ones by hand for the rest.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use polity_store::*;

use crate::backends::*;
use crate::on_each;

fn options(take: Take) -> ImportOptions {
    ImportOptions { take, format: None, category: String::new(), wanted: 2, errors_max: 20 }
}

/// A real file, or nothing (and a word about it) where the data is not beside the workspace.
fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data").join(name);
    if !path.exists() {
        eprintln!("skipped: no {}", path.display());
    }
    path.exists().then_some(path)
}

/// A small file with these bytes.
fn small(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    std::fs::write(&path, text).unwrap();
    (directory, path)
}

/// How often each answer was given, in the file's order or the canonical one.
fn answers(parsed: &Parsed) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for vote in &parsed.votes {
        *counts.entry(vote.answer.to_string()).or_default() += 1;
    }
    counts
}

#[test]
fn formats_are_told_by_their_rows_and_read_whole() {
    let check = |name: &str, format: ImportFormat, prompts: usize, comparisons: usize, votes: usize| {
        let Some(path) = shared(name) else { return };
        let parsed = read_import(&path, &options(Take::Votes)).unwrap();
        assert_eq!(parsed.errors, Vec::<String>::new(), "{name}");
        let got = (
            parsed.format,
            parsed.material.prompts.len(),
            parsed.material.comparisons.len(),
            parsed.votes.len(),
        );
        assert_eq!(got, (format, prompts, comparisons, votes), "{name}: {:?}", parsed.duplicates);
    };
    // Counted with Python from the files themselves: see the numbers' own script, tests/golden/count_imports.py.
    let golden: Vec<(String, String, usize, usize, usize)> =
        serde_json::from_str(include_str!("../golden/imports.json")).unwrap();
    assert_eq!(golden.len(), 4);
    for (name, format, prompts, comparisons, votes) in golden {
        let format = ImportFormat::ALL.into_iter().find(|known| known.name() == format).unwrap();
        check(&name, format, prompts, comparisons, votes);
    }
}

#[test]
fn mt_bench_judges_are_kept_apart_and_their_sides_recorded() {
    let Some(path) = shared("annotators/mtbench_human_votes.jsonl") else { return };
    let parsed = read_import(&path, &options(Take::Votes)).unwrap();
    let judges: std::collections::BTreeSet<&str> =
        parsed.votes.iter().map(|vote| vote.annotator_id.as_str()).collect();
    assert_eq!(judges.len(), 65);
    assert!(parsed.votes.iter().all(|vote| vote.left_response.is_some() && !vote.machine));
    // The file has 1293 for model_a, 1282 for model_b, 780 ties; one row is there twice.
    assert_eq!((parsed.rows, parsed.votes.len(), parsed.duplicates.votes), (3355, 3354, 1));
    assert!((779..=780).contains(&answers(&parsed)["tie"]));
}

#[test]
fn rows_by_hand() {
    // One file a format: its text, the format, and each vote as annotator, answer in the file's order, time and time on task.
    type Votes<'a> = &'a [(&'a str, &'a str, Option<i64>, Option<i64>)];
    let check = |name: &str, text: &str, format: ImportFormat, votes: Votes| {
        let (_directory, path) = small(name, text);
        let parsed = read_import(&path, &options(Take::Votes)).unwrap();
        assert_eq!((parsed.errors.as_slice(), parsed.format), (&[][..], format), "{name}");
        let first = |vote: &ImportedVote| {
            // The comparison's first response in the file is the first response that was collected.
            let comparison = parsed
                .material
                .comparisons
                .iter()
                .find(|c| comparison_id(&c.responses[0], &c.responses[1]) == vote.comparison_id)
                .unwrap();
            let first_is_a = comparison.responses[0] < comparison.responses[1];
            if first_is_a { vote.answer } else { vote.answer.swapped() }
        };
        let got: Vec<(String, String, Option<i64>, Option<i64>)> = parsed
            .votes
            .iter()
            .map(|v| (v.annotator_id.clone(), first(v).to_string(), v.answered_ms, v.work_ms))
            .collect();
        let expected: Vec<(String, String, Option<i64>, Option<i64>)> = votes
            .iter()
            .map(|(who, answer, at, work)| ((*who).into(), (*answer).into(), *at, *work))
            .collect();
        assert_eq!(got, expected, "{name}");
    };
    check(
        "trl.jsonl",
        r#"{"prompt": "p", "chosen": "c", "rejected": "r"}
{"prompt": "p", "chosen": "d", "rejected": "r", "annotator": "ann", "label": 0.2}"#,
        ImportFormat::Trl,
        &[("file:trl.jsonl", "left2", None, None), ("trl.jsonl:ann", "right2", None, None)],
    );
    check(
        "pairs.csv",
        "prompt,response_a,response_b,winner,annotator,timestamp,work_ms\n\
         \"two\nlines\",x,y,b,ann,2023-11-14T22:13:20Z,4000\n\
         q,x,y,tie,bob,1700000000,\n\
         q,x,y,left3,ann,,\n",
        ImportFormat::Pairwise,
        &[
            ("pairs.csv:ann", "right2", Some(T0), Some(4000)),
            ("pairs.csv:bob", "tie", Some(T0), None),
            ("pairs.csv:ann", "left3", None, None),
        ],
    );
    check(
        "ls.json",
        r#"[{"id": 1, "data": {"prompt": "p", "answer1": "x", "answer2": "y"}, "annotations": [
            {"completed_by": 7, "result": [{"type": "pairwise", "value": {"selected": "right"}}],
             "created_at": "2023-11-14T22:13:20.000000Z", "lead_time": 12.5, "was_cancelled": false},
            {"completed_by": {"id": 8, "email": "a@b"}, "result": [{"type": "choices", "value": {"choices": ["answer1"]}}]},
            {"completed_by": 9, "result": [], "was_cancelled": true}]}]"#,
        ImportFormat::LabelStudio,
        &[
            ("ls.json:7", "right2", Some(T0), Some(12_500)),
            ("ls.json:a@b", "left2", None, None),
            ("ls.json:9", "skip", None, None),
        ],
    );
    check(
        "argilla2.json",
        r#"[{"id": "1", "fields": {"instruction": "p", "response_a": "x", "response_b": "y"}, "metadata": {"category": "c"},
            "responses": {"preference": [{"value": "response_b", "user_id": "u1", "status": "submitted"},
                                         {"value": "response_a", "user_id": "u2", "status": "draft"}],
                          "why": [{"value": 3, "user_id": "u1"}]}}]"#,
        ImportFormat::Argilla,
        &[("argilla2.json:u1", "right2", None, None)],
    );
    check(
        "argilla1.json",
        r#"[{"fields": {"prompt": "p", "response_1": "x", "response_2": "y"}, "responses": [
            {"user_id": "u1", "status": "submitted", "inserted_at": "2023-11-14T22:13:20.000000",
             "values": {"ranking": {"value": [{"value": "response-1", "rank": 2}, {"value": "response-2", "rank": 1}]}}},
            {"user_id": "u2", "status": "discarded", "values": {"ranking": {"value": []}}}]}]"#,
        ImportFormat::Argilla,
        &[("argilla1.json:u1", "right2", Some(T0), None), ("argilla1.json:u2", "skip", None, None)],
    );
    check(
        "mt.jsonl",
        r#"{"question_id": 81, "model_a": "m", "model_b": "n", "winner": "tie (bothbad)", "judge": ["gpt-4", "pair"], "turn": 1,
            "conversation_a": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x"}],
            "conversation_b": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "y"}], "tstamp": 1700000000.0}"#
            .replace('\n', " ")
            .as_str(),
        ImportFormat::MtBench,
        &[("mt.jsonl:gpt-4/pair", "both_bad", Some(T0), None)],
    );
    check(
        "tree.jsonl",
        r#"{"message_tree_id": "t", "prompt": {"role": "prompter", "text": "q", "replies": [
            {"role": "assistant", "text": "second", "rank": 1, "replies": []},
            {"role": "assistant", "text": "first", "rank": 0, "replies": [
                {"role": "prompter", "text": "more", "replies": [{"role": "assistant", "text": "alone", "rank": 0}]}]},
            {"role": "assistant", "text": "gone", "rank": 2, "deleted": true}]}}"#
            .replace('\n', " ")
            .as_str(),
        ImportFormat::Oasst,
        &[("tree.jsonl:consensus", "left2", None, None)],
    );
}

#[test]
fn every_bad_row_is_named() {
    let (_directory, path) = small(
        "bad.jsonl",
        "{\"prompt\": \"p\", \"response_a\": \"x\", \"response_b\": \"y\", \"winner\": \"a\"}\n\
         {\"prompt\": \"p\", \"response_a\": \"x\", \"response_b\": \"y\", \"winner\": \"neither\"}\n\
         {\"prompt\": \"p\", \"response_a\": \"x\"}\n\
         {broken\n\
         {\"prompt\": \"p\", \"response_a\": \"x\", \"response_b\": 7, \"winner\": \"a\"}\n\
         {\"prompt\": \"p\", \"response_a\": \"x\", \"response_b\": \"z\", \"winner\": \"b\"}\n",
    );
    let parsed = read_import(&path, &options(Take::Votes)).unwrap();
    assert_eq!((parsed.errors_total, parsed.rows, parsed.votes.len()), (4, 6, 2));
    for (error, (line, words)) in parsed.errors.iter().zip([
        (2, "`winner` is `neither`"),
        (3, "`response_b` is missing"),
        (4, "malformed JSON"),
        (5, "`response_b` is 7"),
    ]) {
        assert!(error.contains(&format!("line {line}")) && error.contains(words), "{error}");
    }
    let few = ImportOptions { errors_max: 1, ..options(Take::Votes) };
    let parsed = read_import(&path, &few).unwrap();
    assert_eq!((parsed.errors.len(), parsed.errors_total), (1, 4));

    let refused = |name: &str, text: &str, words: &str| {
        let (_directory, path) = small(name, text);
        let error = read_import(&path, &options(Take::Votes)).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    refused("odd.jsonl", "{\"a\": 1}\n", "not told by the keys of the first row (a)");
    refused("empty.jsonl", "", "no rows found");
    refused("twice.csv", "prompt,prompt\nx,y\n", "`prompt` appears twice");
    let (_directory, path) = small("short.csv", "prompt,response_a,response_b,winner\np,x\np,x,y,a\n");
    let parsed =
        read_import(&path, &ImportOptions { format: Some(ImportFormat::Pairwise), ..options(Take::Votes) })
            .unwrap();
    assert_eq!((parsed.errors_total, parsed.votes.len()), (1, 1));
    assert!(
        parsed.errors[0].contains("line 2") && parsed.errors[0].contains("2 fields"),
        "{}",
        parsed.errors[0]
    );
}

on_each! {
    async fn an_import_is_whole_or_nothing_and_the_second_time_nothing_new(fixture: Fixture) {
        let store = fixture.store(plain_policy(2)).await;
        let (_directory, path) = small(
            "votes.jsonl",
            "{\"prompt\": \"p\", \"response_a\": \"x\", \"response_b\": \"y\", \"winner\": \"a\", \"annotator\": \"ann\"}\n\
             {\"prompt\": \"p\", \"response_a\": \"x\", \"response_b\": \"y\", \"winner\": \"b\", \"annotator\": \"bob\"}\n\
             {\"prompt\": \"q\", \"response_a\": \"x\", \"response_b\": \"y\", \"winner\": \"a\", \"annotator\": \"ann\"}\n\
             {\"prompt\": \"q\", \"response_a\": \"x\", \"response_b\": \"y\", \"winner\": \"a\", \"annotator\": \"ann\"}\n",
        );
        let parsed = read_import(&path, &options(Take::Votes)).unwrap();
        assert_eq!(parsed.duplicates.votes, 1);
        let broken = Parsed { errors_total: 1, ..parsed.clone() };
        assert!(store.import(broken, "cli", T0).await.is_err());
        assert_eq!(store.progress().await.unwrap().prompts, 0, "nothing of it");
        let done = store.import(parsed.clone(), "cli", T0).await.unwrap();
        assert_eq!((done.added.prompts, done.added.comparisons, done.votes, done.annotators), (2, 2, 3, 2));
        let again = store.import(parsed.clone(), "cli", T0 + 1).await.unwrap();
        assert_eq!((again.added.prompts, again.added.comparisons, again.votes, again.votes_known), (0, 0, 0, 3));

        // Another answer by the same annotator supersedes.
        let mut changed = parsed;
        changed.votes[0].answer = changed.votes[0].answer.swapped();
        let changed = store.import(changed, "cli", T0 + 2).await.unwrap();
        assert_eq!((changed.votes, changed.votes_superseding, changed.votes_known), (1, 1, 2));
        let judgements = store.judgements(JudgementFilter::default()).await.unwrap();
        assert_eq!(judgements.len(), 3);
        // `response_a` was on the left, whichever of the two sorts first.
        let of = |who: &str| judgements.iter().filter(|j| j.annotator_id == format!("votes.jsonl:{who}")).collect::<Vec<_>>();
        assert_eq!(of("bob").len(), 1);
        let left_share = |j: &Judgement| {
            let answer = if j.a_was_left.unwrap() { j.overall } else { j.overall.swapped() };
            answer.left_share().unwrap()
        };
        assert_eq!(left_share(of("bob")[0]), 0.0);
        assert!(store.verify(None).await.unwrap().bad.is_empty());
        let freeze = Freeze { name: "d".into(), labels: LabelRule::Majority, machine_votes: false, votes_min: 1, model: None };
        let (dataset, _) = store.freeze(freeze, "cli", T0 + 3).await.unwrap();
        assert_eq!(dataset.train_rows + dataset.validation_rows + dataset.holdout_rows, 2);
    }

    async fn pairs_to_annotate_are_queued_without_the_files_votes(fixture: Fixture) {
        let store = fixture.store(plain_policy(2)).await;
        let (_directory, path) = small("p.jsonl", "{\"prompt\": \"p\", \"chosen\": \"c\", \"rejected\": \"r\"}\n");
        let parsed = read_import(&path, &options(Take::Pairs)).unwrap();
        store.import(parsed, "cli", T0).await.unwrap();
        let progress = store.progress().await.unwrap();
        assert_eq!((progress.votes, progress.wanted, progress.comparisons["fresh"]), (0, 2, 1));
        let prompts = read_import(&path, &options(Take::Prompts)).unwrap();
        assert_eq!((prompts.material.prompts.len(), prompts.material.comparisons.len()), (1, 0));
    }
}
