//! Verdicts, approvals, releases, going back: what is asked for, what is refused, and that each refusal is on record.

use polity_store::*;
use serde_json::{Value, json};

use crate::backends::*;
use crate::on_each;

const DAY: i64 = 24 * 60 * 60 * 1000;

fn said(model: &str, verdict: &str, approvals: u32) -> NewVerdict {
    NewVerdict {
        model: model.into(),
        verdict: verdict.into(),
        policy_name: "ours".into(),
        policy: "name = \"ours\"".into(),
        approvals,
        valid_days: 14,
        evaluations: vec![(model.into(), format!("measures of {model}"), "measures.json".into())],
        said: json!({"verdict": verdict, "candidate": model}).to_string(),
        code_version: "0".into(),
    }
}

fn asked(model: &str) -> Asked {
    Asked { model: model.into(), channel: "production".into(), verdict: None }
}

async fn release(
    store: &Store,
    model: &str,
    share: Option<f64>,
    actor: &str,
    now: i64,
) -> Answered<Recorded<Release>> {
    let release = store.channel("production").await.unwrap().next_name();
    let new = NewRelease {
        asked: asked(model),
        dir: format!("releases/{release}"),
        release,
        files: Default::default(),
        canary_share: share,
    };
    store.add_release(new, actor, now).await.unwrap()
}

async fn refusals(store: &Store) -> Vec<(String, String)> {
    let events = store.events(1, 1000).await.unwrap().into_iter().filter(|event| event.kind == "refusal");
    let text = |body: &Value, key: &str| body[key].as_str().unwrap().to_owned();
    events
        .map(|event| serde_json::from_str(&event.body).unwrap())
        .map(|body: Value| (text(&body, "refused"), text(&body, "code")))
        .collect()
}

/// The stable and the canary release's models.
async fn served(store: &Store) -> (Option<String>, Option<String>) {
    let state = store.channel("production").await.unwrap();
    (state.stable.map(|release| release.what.model), state.canary.map(|release| release.what.model))
}

on_each! {
    async fn a_release_needs_the_newest_verdict_on_its_model_to_pass_and_be_fresh(fixture: Fixture) {
        let store = fixture.store(plain_policy(1)).await;
        let code = |answer: Answered<Grounds>| answer.err().map(|refusal| refusal.code());
        assert_eq!(code(store.may_release(asked("m1"), "cli", T0).await.unwrap()), Some("no_verdict"));
        let first = store.add_verdict(said("m1", "pass", 0), "cli", T0).await.unwrap();
        assert_eq!(first.what.expires_ms, T0 + 14 * DAY);
        assert_eq!(code(store.may_release(asked("m1"), "cli", T0 + 14 * DAY - 1).await.unwrap()), None);
        assert_eq!(code(store.may_release(asked("m1"), "cli", T0 + 14 * DAY).await.unwrap()), Some("expired"));
        let other = Asked { verdict: Some(first.id[..12].into()), ..asked("m2") };
        assert_eq!(code(store.may_release(other, "cli", T0).await.unwrap()), Some("other_model"));

        // The same measures, judged again later, are as old as they were.
        let again = store.add_verdict(said("m1", "pass", 0), "cli", T0 + 10 * DAY).await.unwrap();
        assert_eq!(again.what.expires_ms, T0 + 14 * DAY);
        let named = |id: &str| Asked { verdict: Some(id.into()), ..asked("m1") };
        assert_eq!(code(store.may_release(named(&first.id), "cli", T0).await.unwrap()), Some("overridden"));
        assert_eq!(code(store.may_release(named(&again.id), "cli", T0).await.unwrap()), None);
        store.add_verdict(said("m1", "fail", 0), "cli", T0 + 11 * DAY).await.unwrap();
        let refused = store.may_release(asked("m1"), "cli", T0).await.unwrap().unwrap_err();
        assert!(matches!(&refused, Refusal::Overridden { said, .. } if said == "fail"), "{refused}");
        store.add_verdict(said("m3", "inconclusive", 0), "cli", T0).await.unwrap();
        assert_eq!(code(store.may_release(asked("m3"), "cli", T0).await.unwrap()), Some("not_passed"));
        // The event asks once more: a verdict may have come during the copy.
        assert!(release(&store, "m3", None, "cli", T0).await.is_err());
        let codes: Vec<String> = refusals(&store).await.into_iter().map(|(_, code)| code).collect();
        assert_eq!(codes, ["no_verdict", "expired", "other_model", "overridden", "overridden", "not_passed", "not_passed"]);
        assert!(store.channels().await.unwrap().is_empty());
        assert!(store.may_release(named("unknown"), "cli", T0).await.is_err());
        assert!(store.channel("no/such").await.is_err());
        assert_eq!(store.verify(None).await.unwrap().bad, []);
    }

    async fn a_channel_may_ask_for_a_policy(fixture: Fixture) {
        let store = fixture.store(plain_policy(1)).await;
        store.add_verdict(said("m1", "pass", 0), "cli", T0).await.unwrap();
        store.set_channel("production", "strict", "name = \"strict\"".into(), "cli", T0).await.unwrap();
        let refused = store.may_release(asked("m1"), "cli", T0).await.unwrap().unwrap_err();
        assert_eq!(refused.code(), "other_policy");
        let elsewhere = Asked { channel: "staging".into(), ..asked("m1") };
        assert!(store.may_release(elsewhere, "cli", T0).await.unwrap().is_ok());
        store.set_channel("production", "ours", "name = \"ours\"".into(), "cli", T0).await.unwrap();
        assert!(store.may_release(asked("m1"), "cli", T0).await.unwrap().is_ok());
    }

    async fn approvals_are_by_different_people_who_did_not_make_it(fixture: Fixture) {
        let store = fixture.store(plain_policy(1)).await;
        let mut people = Vec::new();
        for name in ["ann", "ben", "cid", "dan"] {
            people.push(store.add_account(name, None, [Role::Approver].into(), "cli", T0).await.unwrap().id);
        }
        let [ann, ben, cid, dan] = &people[..] else { unreachable!() };
        let eve = store.add_account("eve", None, [Role::Reviewer].into(), "cli", T0).await.unwrap().id;
        let run = |model: &str| Run { run: "runs/ppo".into(), stage: "ppo".into(), settings: "s".into(), seed: 1, inputs: vec![],
                                      model: Some(model.into()), manifest: None, resolved: None };
        store.add_run(run("m1"), "{}".into(), "".into(), dan, T0).await.unwrap();
        store.add_verdict(said("m1", "pass", 2), "cli", T0).await.unwrap();

        let approve = async |who: &str, model: &str| {
            store.approve(asked(model), who, T0).await.unwrap().err().map(|refusal| refusal.to_string())
        };
        let releasing = async |who: &str| store.may_release(asked("m1"), who, T0).await.unwrap().err();
        assert!(matches!(releasing("cli").await, Some(Refusal::UnknownReleaser { .. })));
        assert!(matches!(releasing(ann).await, Some(Refusal::Approvals { given: 0, needed: 2, .. })));
        assert!(approve(&eve, "m1").await.unwrap().contains("not the role approver"));
        assert!(approve(dan, "m1").await.unwrap().contains("who trained the model"));
        assert!(approve(ann, "m2").await.unwrap().contains("no verdict on model m2"));
        assert_eq!(approve(ann, "m1").await, None);
        assert!(approve(ann, "m1").await.unwrap().contains("counts once"));
        assert!(matches!(releasing(cid).await, Some(Refusal::Approvals { given: 1, needed: 2, .. })));
        assert_eq!(approve(ben, "m1").await, None);
        let Some(Refusal::Approvals { given: 1, not_counted, .. }) = releasing(ann).await else { panic!() };
        assert_eq!(not_counted, ["the approval by ann does not count: who releases is not the second person"]);
        assert_eq!(releasing(cid).await, None);
        let elsewhere = Asked { channel: "staging".into(), ..asked("m1") };
        assert!(store.may_release(elsewhere, cid, T0).await.unwrap().is_err(), "an approval is for one channel");

        // Who is no approver any more has not approved; another verdict needs its own approvals.
        store.set_roles(ben, [Role::Reviewer].into(), "cli", T0).await.unwrap_err();
        store.set_roles(&eve, [Role::Admin].into(), "cli", T0).await.unwrap();
        store.set_roles(ben, [Role::Reviewer].into(), "cli", T0).await.unwrap();
        assert!(matches!(releasing(cid).await, Some(Refusal::Approvals { given: 1, .. })));
        store.set_roles(ben, [Role::Approver].into(), "cli", T0).await.unwrap();
        let released = release(&store, "m1", None, cid, T0).await.unwrap();
        assert_eq!((released.what.release.as_str(), released.what.approvals.len()), ("production-1", 2));
        store.add_verdict(said("m1", "pass", 2), "cli", T0 + 1).await.unwrap();
        let Some(Refusal::Approvals { given: 0, not_counted, .. }) = releasing(cid).await else { panic!() };
        assert_eq!(not_counted.len(), 2);
        assert_eq!((approve(ann, "m1").await, approve(ben, "m1").await), (None, None));
        assert_eq!(releasing(cid).await, None);
        // Who trained it after all, an hour later: the approval was good and is so no more.
        store.add_run(run("m1"), "{}".into(), "".into(), ben, T0 + 2).await.unwrap();
        let Some(Refusal::Approvals { given: 1, not_counted, .. }) = releasing(cid).await else { panic!() };
        assert!(not_counted.contains(&"the approval by ben does not count: who trained the model is not the second person".to_owned()));
        assert_eq!(store.verify(None).await.unwrap().bad, []);
    }

    async fn a_channel_is_its_events(fixture: Fixture) {
        let store = fixture.store(plain_policy(1)).await;
        for model in ["m1", "m2", "m3", "m4"] {
            store.add_verdict(said(model, "pass", 0), "cli", T0).await.unwrap();
        }
        let back = async |from: &str, to: &str| {
            let rollback = Rollback { channel: "production".into(), from: from.into(), to: to.into(), skipped: vec![] };
            store.add_rollback(rollback, "cli", T0).await
        };
        let some = |model: &str| Some(model.to_owned());
        assert_eq!(served(&store).await, (None, None));
        let new = NewRelease { asked: asked("m1"), dir: "d".into(), release: "production-1".into(), files: Default::default(), canary_share: Some(0.1) };
        assert!(store.add_release(new, "cli", T0).await.unwrap_err().to_string().contains("release without a share first"));
        release(&store, "m1", None, "cli", T0).await.unwrap();
        release(&store, "m2", Some(0.1), "cli", T0).await.unwrap();
        assert_eq!(served(&store).await, (some("m1"), some("m2")));
        release(&store, "m2", None, "cli", T0).await.unwrap();
        assert_eq!(served(&store).await, (some("m2"), None), "a release to everyone ends the canary");
        release(&store, "m3", None, "cli", T0).await.unwrap();
        let reasons = async || -> Vec<(String, Option<String>)> {
            let state = store.channel("production").await.unwrap();
            state.earlier().into_iter().map(|(release, why)| (release.what.release.clone(), why)).collect()
        };
        let canary = ("production-2".to_owned(), Some("it was a canary only".to_owned()));
        assert_eq!(reasons().await, [("production-3".into(), None), canary.clone(), ("production-1".into(), None)]);
        assert!(back("production-4", "production-2").await.is_err(), "it was a canary only");
        assert!(back("production-3", "production-1").await.is_err(), "it is not what is served");
        let event = back("production-4", "production-3").await.unwrap().seq;
        assert_eq!(served(&store).await, (some("m2"), None));
        assert_eq!(reasons().await, [canary.clone(), ("production-1".into(), None)], "what was given up is not gone back to");
        release(&store, "m4", Some(0.5), "cli", T0).await.unwrap();
        assert_eq!(reasons().await, [("production-3".into(), None), canary.clone(), ("production-1".into(), None)]);
        back("production-5", "production-3").await.unwrap();
        assert_eq!(served(&store).await, (some("m2"), None), "the canary ends, what everyone gets stays");
        release(&store, "m4", None, "cli", T0).await.unwrap();
        let given_up = |name: &str, event: i64| (name.to_owned(), Some(format!("it was rolled back from in ledger event {event}")));
        assert_eq!(reasons().await[1..], [given_up("production-4", event), ("production-3".into(), None), canary, ("production-1".into(), None)]);
        let share = NewRelease { asked: asked("m4"), dir: "d".into(), release: "x".into(), files: Default::default(), canary_share: Some(1.0) };
        assert!(store.add_release(share, "cli", T0).await.is_err());
        let taken = NewRelease { asked: asked("m4"), dir: "d".into(), release: "production-1".into(), files: Default::default(), canary_share: None };
        assert!(store.add_release(taken, "cli", T0).await.unwrap_err().to_string().contains("at the same moment"));
        assert_eq!(store.channels().await.unwrap().len(), 1);
        assert_eq!(store.verify(None).await.unwrap().bad, []);
    }

    async fn a_changed_document_is_named(fixture: Fixture) {
        let store = fixture.store(plain_policy(1)).await;
        let verdict = store.add_verdict(said("m1", "pass", 0), "cli", T0).await.unwrap().what;
        assert_eq!(store.document(&verdict.evaluations[0]).await.unwrap(), "measures of m1");
        assert_eq!(store.verify(None).await.unwrap().documents, 3);
        assert!(fixture.try_execute("DELETE FROM document").await.unwrap_err().contains("append-only"));
        store.close().await;
        fixture.tamper("document", "UPDATE document SET content = 'measures of m2' WHERE kind = 'evaluation'").await;
        let store = Store::open(&fixture.location, SEED, T0).await.unwrap();
        let bad = store.verify(None).await.unwrap().bad;
        assert_eq!(bad[0].record, format!("evaluation {}", verdict.evaluations[0]));
        assert!(store.document(&verdict.evaluations[0]).await.unwrap_err().to_string().contains("does not give its hash"));
        fixture.tamper("document", "DELETE FROM document WHERE kind = 'evaluation'").await;
        let bad = store.verify(None).await.unwrap().bad;
        assert!(bad[0].found.contains("it is missing: ledger event"), "{bad:?}");
        store.close().await;
    }

    async fn a_store_of_schema_1_is_migrated_when_it_is_opened(fixture: Fixture) {
        let store = fixture.store(plain_policy(1)).await;
        let events = store.ledger_head().await.unwrap().seq;
        store.close().await;
        for table in ["document", "feedback"] {
            fixture.tamper(table, &format!("DROP TABLE {table}; DELETE FROM polity_schema WHERE version > 1")).await;
            // PostgreSQL's triggers call a function of their own; SQLite has none.
            let _ = fixture.try_execute(&format!("DROP FUNCTION {table}_append_only")).await;
        }
        let store = Store::open(&fixture.location, SEED, T0).await.unwrap();
        store.add_verdict(said("m1", "pass", 0), "cli", T0).await.unwrap();
        let found = store.verify(None).await.unwrap();
        assert_eq!((found.events, found.documents, found.bad.len()), (events + 2, 3, 0));
        assert!(fixture.try_execute("DELETE FROM document").await.unwrap_err().contains("append-only"));
        assert_eq!(fixture.count("SELECT COUNT(*) FROM polity_schema").await, SCHEMA_VERSION);
        store.close().await;
    }
}
