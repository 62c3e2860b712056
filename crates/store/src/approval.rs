//! Who may release what: the newest verdict on a model, and the people who approved a release on it.
//!
//! A release of a model to a channel needs, at that moment:
//!
//! - a verdict on this very model, which passes and has not expired, and after which the model was not judged again;
//! - where the channel asks for a policy: a verdict under that one;
//! - as many approvals as the verdict's policy asks for, of this verdict, this model and this channel, by different people who are
//!   approvers. Who trained the model, or releases it, does not count; so with one approval already two people have agreed.
//!
//! What is missing is a [`Refusal`], and a refusal is an event.
//!
//! Not here: whether the evidence behind the verdict is still what it was; that needs files, and whoever reads them says so.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::AnyConnection;

use crate::account::{self, Role};
use crate::db::Store;
use crate::document;
use crate::error::{Result, StoreError};
use crate::ledger::{self, NOBODY, Recorded};
use crate::verdict::{self, Verdict};
use crate::verify::Bad;

/// What a channel asks for beyond what every release needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelRule {
    /// The channel.
    pub channel: String,
    /// Name of the policy that verdicts must be under.
    pub policy_name: String,
    /// Document with it.
    pub policy: String,
}

/// A person's approval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// Id of the verdict.
    pub verdict: String,
    /// Hash of the model.
    pub model: String,
    /// To be released where.
    pub channel: String,
}

/// What someone wants to release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Hash of the model.
    pub model: String,
    /// Where.
    pub channel: String,
    /// Id of the verdict, or its beginning; the newest on the model if not given.
    pub verdict: Option<String>,
}

/// What a release may rest on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Grounds {
    /// The verdict.
    pub verdict: Recorded<Verdict>,
    /// The approvals that count.
    pub approvals: Vec<Recorded<Approval>>,
}

/// Why a release, an approval or a rollback was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The model was never judged.
    #[error("there is no verdict on model {}", short(model))]
    NoVerdict {
        /// Its hash.
        model: String,
    },
    /// The verdict is on another model.
    #[error("verdict {} is on model {}, and this is model {}", short(verdict), short(of), short(model))]
    OtherModel {
        /// Its id.
        verdict: String,
        /// The model it is on.
        of: String,
        /// The model asked about.
        model: String,
    },
    /// The model was judged again.
    #[error("verdict {} was overridden: verdict {}, which came later, is {said}", short(verdict), short(by))]
    Overridden {
        /// Its id.
        verdict: String,
        /// Id of the newest.
        by: String,
        /// What that says.
        said: String,
    },
    /// It does not pass.
    #[error("verdict {} on this model is {said}", short(verdict))]
    NotPassed {
        /// Its id.
        verdict: String,
        /// What it says.
        said: String,
    },
    /// Its evidence is too old.
    #[error("verdict {} expired on {}", short(verdict), day(*expired_ms))]
    Expired {
        /// Its id.
        verdict: String,
        /// When.
        expired_ms: i64,
    },
    /// It is under another policy than the channel's.
    #[error("verdict {} is under policy {found}, and channel {channel} asks for {needed}", short(verdict))]
    OtherPolicy {
        /// Its id.
        verdict: String,
        /// The channel.
        channel: String,
        /// Name and hash of its policy.
        found: String,
        /// Name and hash of the channel's.
        needed: String,
    },
    /// Nobody has said who releases.
    #[error("{needed} must approve this release, and it is not known who releases")]
    UnknownReleaser {
        /// How many approvals.
        needed: String,
    },
    /// Too few people have approved.
    #[error("{given} of {needed} approvals of verdict {} for channel {channel}", short(verdict))]
    Approvals {
        /// Its id.
        verdict: String,
        /// The channel.
        channel: String,
        /// That count.
        given: usize,
        /// As the policy asks for.
        needed: u32,
        /// Those that do not, and why.
        not_counted: Vec<String>,
    },
    /// This person may not approve.
    #[error("{who} may not approve: {why}")]
    Approver {
        /// The account's name.
        who: String,
        /// The rule.
        why: String,
    },
    /// Something that the release rests on is not what it was.
    #[error("the evidence does not hold: {}", listed(found))]
    Evidence {
        /// What.
        found: Vec<Bad>,
    },
    /// No earlier release of the channel is good.
    #[error("channel {channel} has no earlier release that is good")]
    NoGoodRelease {
        /// The channel.
        channel: String,
        /// Each that was looked at, and why it is not.
        skipped: Vec<Bad>,
    },
}

impl Refusal {
    /// For programs: one word a reason.
    pub fn code(&self) -> &'static str {
        match self {
            Refusal::NoVerdict { .. } => "no_verdict",
            Refusal::OtherModel { .. } => "other_model",
            Refusal::Overridden { .. } => "overridden",
            Refusal::NotPassed { .. } => "not_passed",
            Refusal::Expired { .. } => "expired",
            Refusal::OtherPolicy { .. } => "other_policy",
            Refusal::UnknownReleaser { .. } => "unknown_releaser",
            Refusal::Approvals { .. } => "approvals",
            Refusal::Approver { .. } => "approver",
            Refusal::Evidence { .. } => "evidence",
            Refusal::NoGoodRelease { .. } => "no_good_release",
        }
    }

    /// Whatever else is to be known, a line each.
    pub fn details(&self) -> Vec<String> {
        match self {
            Refusal::Approvals { not_counted, .. } => not_counted.clone(),
            Refusal::NoGoodRelease { skipped, .. } => {
                skipped.iter().map(|bad| format!("{}: {}", bad.record, bad.found)).collect()
            }
            _ => Vec::new(),
        }
    }
}

fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

fn day(ms: i64) -> String {
    let since = std::time::Duration::from_millis(u64::try_from(ms).unwrap_or(0));
    humantime::format_rfc3339_seconds(std::time::SystemTime::UNIX_EPOCH + since).to_string()
}

fn listed(bad: &[Bad]) -> String {
    bad.iter().map(|bad| format!("{}: {}", bad.record, bad.found)).collect::<Vec<_>>().join("; ")
}

/// An answer that may be a refusal; that is on record then.
pub type Answered<T> = std::result::Result<T, Refusal>;

impl Store {
    /// Asks for a policy on a channel; an event.
    pub async fn set_channel(
        &self,
        channel: &str,
        policy_name: &str,
        policy: String,
        actor: &str,
        now_ms: i64,
    ) -> Result<Recorded<ChannelRule>> {
        check_channel(channel)?;
        let (channel, policy_name, actor) = (channel.to_owned(), policy_name.to_owned(), actor.to_owned());
        self.write(move |connection| {
            Box::pin(async move {
                let policy = document::add(connection, "policy", policy, now_ms).await?;
                let rule = ChannelRule { channel, policy_name, policy };
                ledger::append_recorded(connection, "channel", &actor, rule, now_ms).await
            })
        })
        .await
    }

    /// The rules of all channels that have one, by channel.
    pub async fn channel_rules(&self) -> Result<BTreeMap<String, Recorded<ChannelRule>>> {
        self.read(|connection| Box::pin(rules(connection))).await
    }

    /// Whether a model may be released now, and on what grounds. A refusal is recorded.
    pub async fn may_release(&self, asked: Asked, actor: &str, now_ms: i64) -> Result<Answered<Grounds>> {
        check_channel(&asked.channel)?;
        let actor = actor.to_owned();
        self.write(move |connection| {
            Box::pin(async move {
                let answer = grounds(connection, &asked, &actor, now_ms).await?;
                on_record(connection, "release", &asked, &actor, answer, now_ms).await
            })
        })
        .await
    }

    /// An account approves a release; an event. A refusal is recorded.
    pub async fn approve(
        &self,
        asked: Asked,
        account: &str,
        now_ms: i64,
    ) -> Result<Answered<Recorded<Approval>>> {
        check_channel(&asked.channel)?;
        let account = account.to_owned();
        self.write(move |connection| {
            Box::pin(async move {
                let answer = match approvable(connection, &asked, &account, now_ms).await? {
                    Ok(verdict) => {
                        let approval = Approval {
                            verdict: verdict.id,
                            model: asked.model.clone(),
                            channel: asked.channel.clone(),
                        };
                        Ok(ledger::append_recorded(connection, "approval", &account, approval, now_ms)
                            .await?)
                    }
                    Err(refusal) => Err(refusal),
                };
                on_record(connection, "approval", &asked, &account, answer, now_ms).await
            })
        })
        .await
    }

    /// The approvals, oldest first.
    pub async fn approvals(&self) -> Result<Vec<Recorded<Approval>>> {
        self.read(|connection| Box::pin(ledger::recorded(connection, "approval"))).await
    }

    /// Records that something was refused for a reason that the store does not see.
    pub async fn refuse(
        &self,
        what: &'static str,
        asked: Asked,
        refusal: Refusal,
        actor: &str,
        now_ms: i64,
    ) -> Result<Refusal> {
        let actor = actor.to_owned();
        self.write(move |connection| {
            Box::pin(async move {
                let refused: Answered<()> = Err(refusal);
                let answer = on_record(connection, what, &asked, &actor, refused, now_ms).await?;
                Ok(answer.expect_err("it was one"))
            })
        })
        .await
    }
}

/// Passes an answer on; a refusal becomes an event.
pub(crate) async fn on_record<T>(
    connection: &mut AnyConnection,
    what: &str,
    asked: &Asked,
    actor: &str,
    answer: Answered<T>,
    now_ms: i64,
) -> Result<Answered<T>> {
    if let Err(refusal) = &answer {
        let body = json!({
            "refused": what, "channel": asked.channel, "model": asked.model, "code": refusal.code(),
            "why": refusal.to_string(), "details": refusal.details(),
        });
        ledger::append(connection, "refusal", actor, &body, now_ms).await?;
    }
    Ok(answer)
}

pub(crate) fn check_channel(channel: &str) -> Result<()> {
    let proper = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
    match !channel.is_empty() && channel.len() <= 50 && channel.bytes().all(proper) {
        true => Ok(()),
        false => Err(StoreError::invalid(
            "the channel's name",
            format!("`{}`", channel.escape_default()),
            "1 to 50 letters, digits, `_` or `-`, such as production",
        )),
    }
}

async fn rules(connection: &mut AnyConnection) -> Result<BTreeMap<String, Recorded<ChannelRule>>> {
    let rules: Vec<Recorded<ChannelRule>> = ledger::recorded(connection, "channel").await?;
    Ok(rules.into_iter().map(|rule| (rule.what.channel.clone(), rule)).collect())
}

/// The verdict that counts, if it lets the model pass.
async fn passing(
    connection: &mut AnyConnection,
    asked: &Asked,
    now_ms: i64,
) -> Result<Answered<Recorded<Verdict>>> {
    let verdicts: Vec<Recorded<Verdict>> = ledger::recorded(connection, "verdict").await?;
    let named = match &asked.verdict {
        None => None,
        Some(id) => Some(
            verdicts
                .iter()
                .rev()
                .find(|verdict| verdict.id.starts_with(id.as_str()))
                .ok_or_else(|| StoreError::not_found("verdict", id))?,
        ),
    };
    if let Some(named) = named
        && named.what.model != asked.model
    {
        return Ok(Err(Refusal::OtherModel {
            verdict: named.id.clone(),
            of: named.what.model.clone(),
            model: asked.model.clone(),
        }));
    }
    let Some(newest) = verdicts.iter().rev().find(|verdict| verdict.what.model == asked.model) else {
        return Ok(Err(Refusal::NoVerdict { model: asked.model.clone() }));
    };
    let (verdict, said) = (newest.id.clone(), newest.what.verdict.clone());
    if let Some(named) = named
        && named.id != newest.id
    {
        return Ok(Err(Refusal::Overridden { verdict: named.id.clone(), by: verdict, said }));
    }
    if said != "pass" {
        let passed_before = verdicts
            .iter()
            .rev()
            .find(|earlier| earlier.what.model == asked.model && earlier.what.verdict == "pass");
        return Ok(Err(match passed_before {
            Some(earlier) => Refusal::Overridden { verdict: earlier.id.clone(), by: verdict, said },
            None => Refusal::NotPassed { verdict, said },
        }));
    }
    if let Some(rule) = rules(connection).await?.remove(&asked.channel)
        && rule.what.policy != newest.what.policy
    {
        let named = |name: &str, hash: &str| format!("{name} ({})", short(hash));
        return Ok(Err(Refusal::OtherPolicy {
            verdict,
            channel: asked.channel.clone(),
            found: named(&newest.what.policy_name, &newest.what.policy),
            needed: named(&rule.what.policy_name, &rule.what.policy),
        }));
    }
    if newest.what.expires_ms <= now_ms {
        return Ok(Err(Refusal::Expired { verdict, expired_ms: newest.what.expires_ms }));
    }
    Ok(Ok(newest.clone()))
}

pub(crate) async fn grounds(
    connection: &mut AnyConnection,
    asked: &Asked,
    actor: &str,
    now_ms: i64,
) -> Result<Answered<Grounds>> {
    let verdict = match passing(connection, asked, now_ms).await? {
        Ok(verdict) => verdict,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let needed = verdict.what.approvals;
    if needed > 0 && actor == NOBODY {
        let needed = if needed == 1 { "one person".to_owned() } else { format!("{needed} people") };
        return Ok(Err(Refusal::UnknownReleaser { needed }));
    }
    let all: Vec<Recorded<Approval>> = ledger::recorded(connection, "approval").await?;
    let trainers = trainers(connection, &asked.model).await?;
    let (mut approvals, mut not_counted, mut people) = (Vec::new(), Vec::new(), BTreeSet::new());
    for approval in all {
        let Approval { verdict: of, model, channel } = &approval.what;
        if *model != asked.model || *channel != asked.channel {
            continue;
        }
        let who = account::account(connection, &approval.actor).await?;
        let wrong = if *of != verdict.id {
            Some("it is of another verdict")
        } else if approval.actor == actor {
            Some("who releases is not the second person")
        } else if trainers.contains(&approval.actor) {
            Some("who trained the model is not the second person")
        } else if who.disabled_ms.is_some() || !who.roles.contains(&Role::Approver) {
            Some("the account is no approver any more")
        } else {
            None
        };
        match wrong {
            Some(why) => not_counted.push(format!("the approval by {} does not count: {why}", who.name)),
            None if people.insert(approval.actor.clone()) => approvals.push(approval),
            None => {}
        }
    }
    if approvals.len() < needed as usize {
        return Ok(Err(Refusal::Approvals {
            verdict: verdict.id,
            channel: asked.channel.clone(),
            given: approvals.len(),
            needed,
            not_counted,
        }));
    }
    Ok(Ok(Grounds { verdict, approvals }))
}

/// Whether this account may approve this, and which verdict it would approve.
async fn approvable(
    connection: &mut AnyConnection,
    asked: &Asked,
    account: &str,
    now_ms: i64,
) -> Result<Answered<Recorded<Verdict>>> {
    let person = account::account(connection, account).await?;
    let no = |why: &str| Ok(Err(Refusal::Approver { who: person.name.clone(), why: why.to_owned() }));
    if person.disabled_ms.is_some() || !person.roles.contains(&Role::Approver) {
        return no("the account has not the role approver");
    }
    if trainers(connection, &asked.model).await?.contains(account) {
        return no("who trained the model is not the second person");
    }
    let verdict = match passing(connection, asked, now_ms).await? {
        Ok(verdict) => verdict,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let all: Vec<Recorded<Approval>> = ledger::recorded(connection, "approval").await?;
    let same = |given: &Recorded<Approval>| {
        given.actor == account && given.what.verdict == verdict.id && given.what.channel == asked.channel
    };
    match all.iter().any(same) {
        true => no("this account has approved it already, and an approval counts once"),
        false => Ok(Ok(verdict)),
    }
}

/// The accounts that trained a model, as far as they said who they are.
async fn trainers(connection: &mut AnyConnection, model: &str) -> Result<BTreeSet<String>> {
    let runs = verdict::runs(connection).await?;
    let made_it = runs.into_iter().filter(|run| run.what.model.as_deref() == Some(model));
    Ok(made_it.map(|run| run.actor).filter(|actor| actor != NOBODY).collect())
}
