//! Freezing, splitting, labelling; and opening stores of other versions.

use std::collections::BTreeMap;

use polity_store::*;
use proptest::prelude::*;

use crate::backends::*;
use crate::on_each;

pub fn freeze(name: &str) -> Freeze {
    Freeze { name: name.into(), labels: LabelRule::Soft, machine_votes: false, votes_min: 1, model: None }
}

async fn all_vote(store: &Store, n: usize) {
    for annotator in annotators(store, n).await {
        while let Some(given) = next(store, &annotator, T0).await {
            store.vote(vote(&given, "left2"), T0).await.unwrap();
        }
    }
}

on_each! {
    async fn a_dataset_never_changes_and_a_prompt_never_moves(fixture: Fixture) {
        let store = fixture.store(plain_policy(1)).await;
        store.add_material(material(60, 3, 1), T0).await.unwrap();
        all_vote(&store, 1).await;
        let (first, _) = store.freeze(freeze("one"), "cli", T0).await.unwrap();
        let rows = store.dataset_rows("one", 0, 1000).await.unwrap();
        assert_eq!(first.train_rows + first.validation_rows + first.holdout_rows, 60);
        assert!(first.validation_rows > 0 && first.holdout_rows > 0 && first.train_rows > 30);
        let refused = store.freeze(freeze("one"), "cli", T0).await.unwrap_err();
        assert!(refused.to_string().contains("datasets never change"), "{refused}");

        store.add_material(material(100, 3, 1), T0).await.unwrap();
        all_vote(&store, 1).await;
        let (second, _) = store.freeze(freeze("two"), "cli", T0 + 1).await.unwrap();
        assert_ne!(first.hash, second.hash);
        assert_eq!(store.dataset_rows("one", 0, 1000).await.unwrap(), rows);
        let parts = |rows: &[DatasetTexts]| -> BTreeMap<String, Part> {
            rows.iter().map(|row| (row.row.prompt_id.clone(), row.row.part)).collect()
        };
        let later = parts(&store.dataset_rows("two", 0, 1000).await.unwrap());
        assert_eq!(later.len(), 100);
        assert!(parts(&rows).iter().all(|(prompt, part)| later[prompt] == *part));
        assert!(store.verify(None).await.unwrap().bad.is_empty());
    }

    async fn machines_votes_count_only_when_asked_for(fixture: Fixture) {
        let store = fixture.store(plain_policy(1)).await;
        store.add_material(material(5, 1, 1), T0).await.unwrap();
        store.add_annotator("judge", "a model", AnnotatorKind::Machine, T0).await.unwrap();
        while let Some(given) = next(&store, "judge", T0).await {
            store.vote(vote(&given, "left2"), T0).await.unwrap();
        }
        assert!(store.judgements(JudgementFilter::default()).await.unwrap().iter().all(|j| j.machine));
        let (people, _) = store.freeze(freeze("people"), "cli", T0).await.unwrap();
        let with = Freeze { machine_votes: true, ..freeze("with") };
        let (with, _) = store.freeze(with, "cli", T0).await.unwrap();
        let rows = |d: &Dataset| d.train_rows + d.validation_rows + d.holdout_rows;
        assert_eq!((rows(&people), rows(&with)), (0, 5));
    }

    async fn the_same_votes_in_another_store_give_the_same_rows(fixture: Fixture) {
        let store = fixture.store(plain_policy(1)).await;
        store.add_material(material(20, 2, 1), T0).await.unwrap();
        all_vote(&store, 1).await;
        store.freeze(freeze("d"), "cli", T0).await.unwrap();
        let other = crate::backends::sqlite();
        let twin = other.store(plain_policy(1)).await;
        twin.add_material(material(20, 2, 1), T0).await.unwrap();
        all_vote(&twin, 1).await;
        twin.freeze(freeze("d"), "cli", T0).await.unwrap();
        assert_eq!(twin.dataset_rows("d", 0, 100).await.unwrap(), store.dataset_rows("d", 0, 100).await.unwrap());
        assert_eq!(twin.dataset("d").await.unwrap().hash, store.dataset("d").await.unwrap().hash);
        assert_eq!(twin.ledger_head().await.unwrap().hash, store.ledger_head().await.unwrap().hash);
    }

    async fn tables_without_a_project_are_no_store(fixture: Fixture) {
        fixture.store(plain_policy(1)).await.close().await;
        // As whoever is killed between the tables and the project leaves it.
        for table in ["ledger", "rubric", "project"] {
            fixture.tamper(table, &format!("DELETE FROM {table}")).await;
        }
        let store = fixture.store(plain_policy(1)).await;
        assert_eq!(store.project().await.unwrap().policy, plain_policy(1));
        assert!(store.verify(None).await.unwrap().bad.is_empty());
    }

    async fn a_newer_store_is_refused(fixture: Fixture) {
        let store = fixture.store(plain_policy(1)).await;
        store.close().await;
        let taken = fixture.try_store(plain_policy(1)).await.err().unwrap();
        assert!(matches!(taken, StoreError::Exists { .. }), "{taken}");
        fixture.tamper("polity_schema", "INSERT INTO polity_schema(version, applied_ms) VALUES (999, 0)").await;
        let refused = Store::open(&fixture.location, SEED, T0).await.err().unwrap();
        assert!(matches!(refused, StoreError::NewerSchema { found: 999, .. }), "{refused}");
    }
}

#[tokio::test]
async fn no_store_is_said_to_be_none() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    let missing = Store::open(path.to_str().unwrap(), SEED, T0).await.err().unwrap();
    assert!(matches!(missing, StoreError::Missing { .. }), "{missing}");
    assert!(!path.exists());
    std::fs::write(&path, b"").unwrap();
    let empty = Store::open(path.to_str().unwrap(), SEED, T0).await.err().unwrap();
    assert!(matches!(empty, StoreError::Missing { .. }), "{empty}");
    std::fs::write(&path, b"this is a text, no database; it is long enough to have a header in it").unwrap();
    let text = Store::open(path.to_str().unwrap(), SEED, T0).await.err().unwrap();
    assert!(text.to_string().contains("not a database"), "{text}");
}

#[test]
fn labels_by_hand() {
    let row = |a_votes, b_votes, ties, both_bad, grade_sum| DatasetRow {
        idx: 0,
        part: Part::Train,
        comparison_id: "c".into(),
        prompt_id: "p".into(),
        response_a: "a".into(),
        response_b: "b".into(),
        category: "x".into(),
        a_votes,
        b_votes,
        ties,
        both_bad,
        grade_sum,
        adjudicated: None,
        probability: Some(0.3),
    };
    let label = |side, label, margin, votes| Some(Label { chosen: side, label, margin, votes });
    // Three for a (3, 2, 2), one for b (-1): share 3/4, mean grade 6/4.
    let clear = row(3, 1, 0, 0, 6);
    assert_eq!(clear.label(LabelRule::Majority), label(Side::Left, None, 1.5, 4));
    assert_eq!(clear.label(LabelRule::Soft), label(Side::Left, Some(0.75), 1.5, 4));
    // The model disagrees with the votes: b is chosen, and a margin against the chosen side is no margin.
    assert_eq!(clear.label(LabelRule::Model), label(Side::Right, Some(0.7), 0.0, 4));
    // One for b, one tie, one both bad: share of b (1 + 1) / 3.
    let weak = row(0, 1, 1, 1, -1);
    assert_eq!(weak.label(LabelRule::Majority), label(Side::Right, None, 1.0 / 3.0, 3));
    assert_eq!(weak.label(LabelRule::Soft), label(Side::Right, Some(1.0 - 1.0 / 3.0), 1.0 / 3.0, 3));
    let even = row(1, 1, 0, 0, 0);
    assert_eq!(even.label(LabelRule::Majority), None);
    assert_eq!(even.label(LabelRule::Soft), label(Side::Left, Some(0.5), 0.0, 2));
    let decided = DatasetRow { adjudicated: Some("right3".parse().unwrap()), ..clear };
    for rule in [LabelRule::Soft, LabelRule::Model] {
        assert_eq!(decided.label(rule), label(Side::Right, Some(1.0), 3.0, 4));
    }
    assert_eq!(DatasetRow { probability: None, ..even }.label(LabelRule::Model), None);
}

proptest! {
    #[test]
    fn the_part_of_a_prompt_depends_on_its_words_alone(words in "\\PC{0,80}", spaces in 1_usize..4) {
        let part = Part::of(&Content::plain(&words), 0.2, 0.3);
        let spaced = words.split_whitespace().collect::<Vec<_>>().join(&" ".repeat(spaces));
        prop_assert_eq!(Part::of(&Content::plain(spaced), 0.2, 0.3), part);
        let message = polity_rows::Message::new("user", words.clone());
        let chat = Content::Text(polity_rows::Text::Messages(vec![message]));
        prop_assert_eq!(Part::of(&chat, 0.2, 0.3), part);
        // A larger validation share never takes from the holdout.
        if part == Part::Holdout {
            prop_assert_eq!(Part::of(&Content::plain(&words), 0.5, 0.3), Part::Holdout);
        }
    }
}

#[test]
fn parts_have_their_shares() {
    let mut counts = [0_u32; 3];
    for i in 0..20_000 {
        counts[Part::of(&Content::plain(format!("prompt {i}")), 0.1, 0.2) as usize] += 1;
    }
    // Expected 14000, 2000, 4000; five standard deviations are 324, 212, 283.
    assert!(
        counts[0].abs_diff(14_000) < 324 && counts[1].abs_diff(2000) < 212 && counts[2].abs_diff(4000) < 283,
        "{counts:?}"
    );
}
