//! People: invites, roles, sessions, tokens.

use std::collections::BTreeSet;

use polity_store::*;
use serde_json::json;

use crate::backends::*;
use crate::on_each;

on_each! {
    async fn an_invite_makes_one_account(fixture: Fixture) {
        let store = fixture.store(plain_policy(1)).await;
        let roles: BTreeSet<Role> = [Role::Annotator].into();
        let secret = store.add_invite(roles.clone(), "for ann", "cli", T0 + 1000, T0).await.unwrap();
        assert_eq!(store.invite(&secret, T0).await.unwrap(), roles);
        let account = store.accept_invite(&secret, "ann", "$argon2id$x".into(), T0 + 1).await.unwrap();
        assert_eq!(account.roles, roles);
        for (what, refused) in [
            ("used", store.accept_invite(&secret, "bob", "x".into(), T0 + 2).await),
            ("unknown", store.accept_invite("0000", "bob", "x".into(), T0 + 2).await),
        ] {
            assert!(matches!(refused, Err(StoreError::Credential { what: "invite" })), "{what}");
        }
        let late = store.add_invite(roles.clone(), "", "cli", T0 + 1000, T0).await.unwrap();
        assert!(store.accept_invite(&late, "bob", "x".into(), T0 + 1000).await.is_err(), "expired");
        let taken = store.add_invite(roles, "", "cli", T0 + 1000, T0).await.unwrap();
        assert!(store.accept_invite(&taken, "ann", "x".into(), T0).await.unwrap_err().to_string().contains("taken"));
        // A refused name does not use the invite up.
        assert_eq!(store.accept_invite(&taken, "bob", "x".into(), T0).await.unwrap().name, "bob");
        let id = store.invites().await.unwrap().into_iter().find(|i| i.used_by.is_none()).unwrap().id;
        store.revoke_invite(&id, "cli", T0).await.unwrap();
        assert!(store.revoke_invite(&id, "cli", T0).await.is_err(), "revoked already");
        assert!(store.invite(&late, T0).await.is_err(), "revoked");
        let (found, password) = store.account_by_name("ann").await.unwrap();
        assert_eq!((found.id.as_str(), password.as_deref()), (account.id.as_str(), Some("$argon2id$x")));
        assert!(store.next(&account.id, T0).await.is_ok(), "an account is an annotator");
    }

    async fn sessions_end(fixture: Fixture) {
        let store = fixture.store(plain_policy(1)).await;
        let ann = store.add_account("ann", None, [Role::Admin].into(), "cli", T0).await.unwrap();
        let bob = store.add_account("bob", None, [Role::Reviewer].into(), "cli", T0).await.unwrap();
        let (secret, csrf) = store.begin_session(&bob.id, T0 + 100, T0).await.unwrap();
        let (other, _) = store.begin_session(&bob.id, T0 + 100, T0).await.unwrap();
        assert_ne!(secret, other);
        let session = store.session(&secret, T0 + 99).await.unwrap();
        assert_eq!((session.account.id.as_str(), session.csrf), (bob.id.as_str(), csrf));
        assert!(store.session(&secret, T0 + 100).await.is_err(), "expired");
        store.end_session(&secret).await.unwrap();
        assert!(store.session(&secret, T0 + 1).await.is_err(), "signed out");
        assert!(store.session(&other, T0 + 1).await.is_ok());
        store.set_password(&bob.id, "new".into(), &ann.id, T0).await.unwrap();
        assert!(store.session(&other, T0 + 1).await.is_err(), "a new password ends sessions");

        let (again, _) = store.begin_session(&bob.id, T0 + 100, T0).await.unwrap();
        let (token, token_secret) = store.add_token(&bob.id, "script", None, T0).await.unwrap();
        assert_eq!(store.token_account(&token_secret, T0).await.unwrap().id, bob.id);
        store.set_disabled(&bob.id, true, &ann.id, T0 + 2).await.unwrap();
        assert!(store.session(&again, T0 + 3).await.is_err());
        assert!(store.token_account(&token_secret, T0 + 3).await.is_err());
        assert!(store.begin_session(&bob.id, T0 + 100, T0 + 3).await.is_err());
        store.set_disabled(&bob.id, false, &ann.id, T0 + 4).await.unwrap();
        assert!(store.token_account(&token_secret, T0 + 5).await.is_ok());
        assert!(store.revoke_token(&ann.id, &token.id, T0).await.is_err(), "someone else's token");
        store.revoke_token(&bob.id, &token.id, T0).await.unwrap();
        assert!(store.token_account(&token_secret, T0 + 5).await.is_err());
        assert!(store.verify(None).await.unwrap().bad.is_empty());
    }

    async fn there_is_always_an_administrator(fixture: Fixture) {
        let store = fixture.store(plain_policy(1)).await;
        let ann = store.add_account("ann", None, [Role::Admin].into(), "cli", T0).await.unwrap();
        assert!(store.set_roles(&ann.id, [Role::Reviewer].into(), &ann.id, T0).await.is_err());
        assert!(store.set_disabled(&ann.id, true, &ann.id, T0).await.is_err());
        assert_eq!(store.account(&ann.id).await.unwrap().roles, [Role::Admin].into(), "nothing was changed");
        let bob = store.add_account("bob", None, [].into(), "cli", T0).await.unwrap();
        store.set_roles(&bob.id, [Role::Admin].into(), &ann.id, T0).await.unwrap();
        store.set_roles(&ann.id, [].into(), &bob.id, T0).await.unwrap();
        assert!(store.account(&ann.id).await.unwrap().roles.is_empty());
        let kinds: Vec<String> = store.events(1, 100).await.unwrap().into_iter().map(|event| event.kind).collect();
        assert_eq!(kinds.iter().filter(|kind| *kind == "role").count(), 4);
        assert!(store.verify(None).await.unwrap().bad.is_empty());
        for name in ["", " ann", "a\nb"] {
            assert!(store.add_account(name, None, [].into(), "cli", T0).await.is_err(), "{name:?}");
        }
    }

    async fn every_change_is_an_event_or_did_not_happen(fixture: Fixture) {
        let store = fixture.store(plain_policy(1)).await;
        let ann = store.add_account("ann", Some("old".into()), [Role::Admin].into(), "cli", T0).await.unwrap();
        let from = store.ledger_head().await.unwrap().seq + 1;
        let secret = store.add_invite([Role::Reviewer].into(), "for bob", &ann.id, T0 + 9, T0).await.unwrap();
        let invite = store.invites().await.unwrap().remove(0).id;
        store.revoke_invite(&invite, &ann.id, T0).await.unwrap();
        let (token, _) = store.add_token(&ann.id, "script", None, T0).await.unwrap();
        store.revoke_token(&ann.id, &token.id, T0).await.unwrap();
        store.set_password(&ann.id, "changed".into(), &ann.id, T0).await.unwrap();
        store.set_password(&ann.id, "replaced".into(), "cli", T0).await.unwrap();
        let events = store.events(from, 100).await.unwrap();
        let told: Vec<(&str, serde_json::Value)> =
            events.iter().map(|event| (event.actor.as_str(), serde_json::from_str(&event.body).unwrap())).collect();
        let expected = [
            (&*ann.id, json!({"invite": {"id": invite, "roles": ["reviewer"], "note": "for bob", "expires_ms": T0 + 9}})),
            (&ann.id, json!({"invite_revoked": invite})),
            (&ann.id, json!({"account": ann.id, "token": token.id, "expires_ms": null})),
            (&ann.id, json!({"account": ann.id, "token_revoked": token.id})),
            (&ann.id, json!({"account": ann.id, "password": "changed"})),
            ("cli", json!({"account": ann.id, "password": "replaced"})),
        ];
        assert_eq!(told, expected);
        assert!(!format!("{told:?}").contains(&secret));
        assert!(store.verify(None).await.unwrap().bad.is_empty());

        // With no ledger to write to, nothing else is written.
        fixture.tamper("ledger", "ALTER TABLE ledger RENAME TO gone").await;
        assert!(store.add_invite([Role::Admin].into(), "", &ann.id, T0 + 9, T0).await.is_err());
        assert!(store.add_token(&ann.id, "t", None, T0).await.is_err());
        assert!(store.set_password(&ann.id, "lost".into(), &ann.id, T0).await.is_err());
        assert_eq!(store.invites().await.unwrap().len(), 1);
        assert_eq!(store.tokens(&ann.id).await.unwrap().len(), 1);
        assert_eq!(store.account_by_name("ann").await.unwrap().1.as_deref(), Some("replaced"));
    }

    async fn secrets_are_not_in_the_database(fixture: Fixture) {
        let store = fixture.store(plain_policy(1)).await;
        let ann = store.add_account("ann", None, [Role::Admin].into(), "cli", T0).await.unwrap();
        let invite = store.add_invite([Role::Annotator].into(), "", "cli", T0 + 9, T0).await.unwrap();
        let (session, _) = store.begin_session(&ann.id, T0 + 9, T0).await.unwrap();
        let (_, token) = store.add_token(&ann.id, "t", None, T0).await.unwrap();
        store.close().await;
        for (secret, table, column) in
            [(invite, "invite", "token_hash"), (session, "login_session", "token_hash"), (token, "api_token", "token_hash")]
        {
            assert_eq!(secret.len(), 64);
            assert_eq!(fixture.count(&format!("SELECT COUNT(*) FROM {table}")).await, 1);
            assert_eq!(fixture.count(&format!("SELECT COUNT(*) FROM {table} WHERE {column} = '{secret}'")).await, 0);
        }
    }
}
