//! What users say of served answers: kept as it was said, in no dataset, never changed.

use polity_store::*;

use crate::backends::*;
use crate::on_each;

fn answer(arm: &str, text: &str) -> ServedAnswer {
    ServedAnswer {
        completion: format!("chatcmpl-{arm}/0"),
        arm: arm.into(),
        release: format!("production-{}", if arm == "stable" { 1 } else { 2 }),
        model_hash: "ab".repeat(32),
        content: Content::plain(text),
    }
}

fn said(answer: ServedAnswer, other: Option<ServedAnswer>, value: f64) -> NewFeedback {
    NewFeedback {
        channel: "production".into(),
        caller: "acc".into(),
        prompt: Content::plain("What is the sky?"),
        answer,
        other,
        value,
        reason: "it rhymes".into(),
    }
}

on_each! {
    async fn thumbs_and_preferences_are_kept_as_they_were_said(fixture: Fixture) {
        let store = fixture.store(plain_policy(1)).await;
        let (stable, canary) = (answer("stable", "Blue."), answer("canary", "High."));
        assert_eq!(store.add_feedback(said(stable.clone(), None, 0.0), T0).await.unwrap(), 1);
        let preference = said(canary.clone(), Some(stable.clone()), 0.5);
        assert_eq!(store.add_feedback(preference, T0 + 1).await.unwrap(), 2);
        let wrong = store.add_feedback(said(stable.clone(), None, 1.5), T0).await.unwrap_err().to_string();
        assert!(wrong.contains("1.5") && wrong.contains("from 0 to 1"), "{wrong}");

        let kept = store.feedback("production", 10).await.unwrap();
        assert_eq!(kept.iter().map(|row| (row.seq, row.kind.as_str(), row.value)).collect::<Vec<_>>(),
            [(2, "preference", 0.5), (1, "thumb", 0.0)]);
        let newest = &kept[0];
        assert_eq!((newest.arm_a.as_str(), newest.arm_b.as_deref()), ("canary", Some("stable")));
        assert_eq!((newest.release_a.as_str(), newest.release_b.as_deref()), ("production-2", Some("production-1")));
        assert_eq!((newest.at_ms, newest.reason.as_str(), newest.caller.as_str()), (T0 + 1, "it rhymes", "acc"));
        assert_eq!(store.feedback("production", 1).await.unwrap().len(), 1);
        assert!(store.feedback("elsewhere", 10).await.unwrap().is_empty());

        // The texts are material, the two compared answers a comparison that nobody is shown, and there is no vote.
        let progress = store.progress().await.unwrap();
        assert_eq!((progress.prompts, progress.responses, progress.votes, progress.wanted), (1, 2, 0, 0));
        assert_eq!(progress.comparisons.values().sum::<i64>(), 1);
        let responses = [newest.response_a.as_str(), newest.response_b.as_deref().unwrap()];
        assert_eq!(kept[1].response_a, responses[1], "one text of one release is one response");
        assert!(store.verify(None).await.unwrap().bad.is_empty());
        store.close().await;
        let refused = fixture.try_execute("UPDATE feedback SET value = 1").await.unwrap_err();
        assert!(refused.contains("feedback is append-only"), "{refused}");
    }

    async fn two_arms_that_say_the_same_are_no_comparison(fixture: Fixture) {
        let store = fixture.store(plain_policy(1)).await;
        let stable = answer("stable", "Blue.");
        let same = ServedAnswer { arm: "canary".into(), ..stable.clone() };
        store.add_feedback(said(same, Some(stable), 0.5), T0).await.unwrap();
        assert_eq!(store.progress().await.unwrap().comparisons.values().sum::<i64>(), 0);
        assert_eq!(store.feedback("production", 10).await.unwrap()[0].kind, "preference");
    }
}
