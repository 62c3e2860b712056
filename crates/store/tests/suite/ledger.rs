//! The chain, and tampering: whatever is changed behind the store's back is named.

use polity_store::*;
use serde_json::json;

use crate::backends::*;
use crate::on_each;

/// A store with votes, a decision, a known answer, an account and a dataset.
async fn lived_in(fixture: &Fixture) -> Store {
    let store = fixture.store(plain_policy(2)).await;
    store.add_material(material(8, 2, 2), T0).await.unwrap();
    let item = CalibrationItem {
        comparison_id: store.comparisons(None, "", 1).await.unwrap()[0].id.clone(),
        expected: Answer::Tie,
        explanation: String::new(),
        active: true,
    };
    store.set_calibration(item, "cli", T0).await.unwrap();
    store.add_account("ann", None, [Role::Admin, Role::Reviewer].into(), "cli", T0).await.unwrap();
    for annotator in annotators(&store, 2).await {
        while let Some(given) = next(&store, &annotator, T0).await {
            store.vote(vote(&given, "left2"), T0).await.unwrap();
        }
    }
    let decided = store.votes_by("ann0", 1).await.unwrap().remove(0).comparison_id;
    store.adjudicate(&decided, Answer::BothBad, "neither answers", "ann", T0 + 1).await.unwrap();
    let freeze = Freeze {
        name: "d1".into(),
        labels: LabelRule::Majority,
        machine_votes: false,
        votes_min: 1,
        model: None,
    };
    store.freeze(freeze, "cli", T0 + 2).await.unwrap();
    store.append_event("run", "cli", json!({"run": "runs/reward"}), T0 + 3).await.unwrap();
    store
}

/// After the change, the first bad record is this one.
async fn named(fixture: &Fixture, table: &str, sql: &str, record: &str) {
    let store = lived_in(fixture).await;
    let clean = store.verify(None).await.unwrap();
    assert_eq!(clean.bad, [], "before the change");
    assert_eq!((clean.votes, clean.votes_sealed, clean.dataset_rows), (14, 14, 7));
    store.close().await;
    fixture.tamper(table, sql).await;
    let store = Store::open(&fixture.location, SEED, T0).await.unwrap();
    let found = store.verify(None).await.unwrap();
    let first = found.bad.first().map(|bad| bad.record.as_str()).unwrap_or("nothing");
    assert!(first.starts_with(record), "{sql}: found {:?}", found.bad);
    store.close().await;
}

on_each! {
    async fn a_changed_vote(fixture: Fixture) {
        named(fixture, "vote", "UPDATE vote SET overall = 'right2' WHERE seq = 5", "vote 5").await;
    }
    async fn a_changed_time(fixture: Fixture) {
        named(fixture, "vote", "UPDATE vote SET answered_ms = answered_ms + 1 WHERE seq = 9", "vote 9").await;
    }
    async fn a_deleted_vote(fixture: Fixture) {
        named(fixture, "vote", "DELETE FROM vote WHERE seq = 3", "vote 3").await;
    }
    async fn a_deleted_last_vote(fixture: Fixture) {
        named(fixture, "vote", "DELETE FROM vote WHERE seq = 14", "vote 14").await;
    }
    async fn a_changed_dataset_row(fixture: Fixture) {
        named(fixture, "dataset_row", "UPDATE dataset_row SET a_votes = 0, b_votes = 2 WHERE idx = 4", "dataset d1, row 4").await;
    }
    async fn a_deleted_dataset_row(fixture: Fixture) {
        named(fixture, "dataset_row", "DELETE FROM dataset_row WHERE idx = 2", "dataset d1, row 2").await;
    }
    async fn a_changed_header(fixture: Fixture) {
        named(fixture, "dataset", "UPDATE dataset SET header = '{}'", "dataset d1").await;
    }
    async fn a_renamed_dataset(fixture: Fixture) {
        named(fixture, "ledger", "UPDATE ledger SET body = REPLACE(body, 'd1', 'd2') WHERE kind = 'freeze'", "ledger event ").await;
    }
    async fn a_changed_event(fixture: Fixture) {
        named(fixture, "ledger", "UPDATE ledger SET actor = 'eve' WHERE seq = 2", "ledger event 2").await;
    }
    async fn a_deleted_event(fixture: Fixture) {
        named(fixture, "ledger", "DELETE FROM ledger WHERE seq = 4", "ledger event 5").await;
    }
    async fn a_changed_rubric(fixture: Fixture) {
        named(fixture, "rubric", "UPDATE rubric SET content = REPLACE(content, 'Helpful', 'Harmful')", "rubric version 1").await;
    }
    async fn a_changed_decision(fixture: Fixture) {
        named(fixture, "adjudication", "UPDATE adjudication SET answer = 'left3'", "decision 1").await;
    }
    async fn a_changed_known_answer(fixture: Fixture) {
        named(fixture, "calibration", "UPDATE calibration SET expected = 'left3'", "known answer").await;
    }
    async fn a_stolen_role(fixture: Fixture) {
        named(fixture, "account_role", "UPDATE account_role SET role = 'approver' WHERE role = 'reviewer'", "roles of account").await;
    }
    async fn a_changed_text(fixture: Fixture) {
        named(fixture, "response", "UPDATE response SET content = '\"better\"' WHERE model = 'm1'", "response ").await;
    }
    async fn a_prompt_moved_out_of_the_holdout(fixture: Fixture) {
        named(fixture, "prompt", "UPDATE prompt SET part = CASE part WHEN 'train' THEN 'holdout' ELSE 'train' END", "prompt ").await;
    }
    async fn changed_shares(fixture: Fixture) {
        named(fixture, "project", "UPDATE project SET holdout_share = 0", "the split's shares").await;
    }

    async fn a_cut_off_end_is_found_by_a_head_kept_elsewhere(fixture: Fixture) {
        let store = lived_in(fixture).await;
        let head = store.ledger_head().await.unwrap();
        assert_eq!(store.verify(Some(&head.hash)).await.unwrap().bad, []);
        store.close().await;
        fixture.tamper("ledger", "DELETE FROM ledger WHERE kind = 'run'").await;
        let store = Store::open(&fixture.location, SEED, T0).await.unwrap();
        assert_eq!(store.verify(None).await.unwrap().bad, [], "a shorter chain is whole");
        let bad = store.verify(Some(&head.hash)).await.unwrap().bad;
        assert_eq!(bad[0].record, format!("ledger event {}", head.seq));
        store.close().await;
    }

    async fn append_only_tables_refuse_changes(fixture: Fixture) {
        let store = lived_in(fixture).await;
        store.close().await;
        for (table, sql) in [
            ("vote", "UPDATE vote SET overall = 'tie'"),
            ("ledger", "DELETE FROM ledger"),
            ("dataset_row", "DELETE FROM dataset_row"),
            ("response", "UPDATE response SET content = '\"x\"'"),
        ] {
            let refused = fixture.try_execute(sql).await.unwrap_err();
            assert!(refused.contains(&format!("{table} is append-only")), "{refused}");
        }
    }
}
