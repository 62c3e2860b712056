//! Channels: what is released where, as the ledger has it.
//!
//! A channel's state is nothing but its `release` and `rollback` events in order, so there is no second record that could say otherwise:
//!
//! ```text
//! release                   stable = this one, and the channel's canary ends
//! release, with a share     canary = this one
//! rollback                  stable = an earlier release, and the canary ends
//! ```
//!
//! Releases of a channel are named `CHANNEL-1`, `CHANNEL-2`, … and are never changed; going back is another event.
//!
//! Not here: who may release (`approval`), copying models.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sqlx::AnyConnection;

use crate::approval::{self, Answered, Asked, Refusal};
use crate::db::Store;
use crate::error::{Doing, Result, StoreError};
use crate::ledger::{self, Event, Recorded};
use crate::verify::Bad;

/// A release.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Release {
    /// Its name: `CHANNEL-N`.
    pub release: String,
    /// The channel.
    pub channel: String,
    /// Hash of the model.
    pub model: String,
    /// The released model's directory, from the project's.
    pub dir: String,
    /// BLAKE3 of each file in it, by name; the model card, `README.md`, is one.
    pub files: BTreeMap<String, String>,
    /// Id of the verdict it rests on.
    pub verdict: String,
    /// Ids of the approvals.
    pub approvals: Vec<String>,
    /// Share of requests, between 0 and 1, of a canary; nothing for a release to everyone.
    pub canary_share: Option<f64>,
}

/// Going back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rollback {
    /// The channel.
    pub channel: String,
    /// The release that was given up.
    pub from: String,
    /// The release that everyone gets now.
    pub to: String,
    /// Newer releases that were not gone back to, and why.
    pub skipped: Vec<Bad>,
}

/// What a channel serves.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChannelState {
    /// Its name.
    pub channel: String,
    /// What everyone gets.
    pub stable: Option<Recorded<Release>>,
    /// What a share of requests gets instead: [`Release::canary_share`].
    pub canary: Option<Recorded<Release>>,
    /// All releases, oldest first.
    pub releases: Vec<Recorded<Release>>,
    /// All times of going back, oldest first.
    pub rollbacks: Vec<Recorded<Rollback>>,
}

/// A release to record: the model is where `dir` says, whole.
#[derive(Clone, Debug, PartialEq)]
pub struct NewRelease {
    /// What is released where, on which verdict.
    pub asked: Asked,
    /// Its name, from [`ChannelState::next_name`].
    pub release: String,
    /// Its directory, from the project's.
    pub dir: String,
    /// BLAKE3 of each file in it, by name.
    pub files: BTreeMap<String, String>,
    /// Share of requests, for a canary.
    pub canary_share: Option<f64>,
}

impl ChannelState {
    fn new(channel: &str) -> ChannelState {
        ChannelState {
            channel: channel.to_owned(),
            stable: None,
            canary: None,
            releases: Vec::new(),
            rollbacks: Vec::new(),
        }
    }

    /// The name of the channel's next release.
    pub fn next_name(&self) -> String {
        format!("{}-{}", self.channel, self.releases.len() + 1)
    }

    /// What a rollback would give up: the canary, or else what everyone gets.
    pub fn current(&self) -> Option<&Recorded<Release>> {
        self.canary.as_ref().or(self.stable.as_ref())
    }

    /// Releases that a rollback may go back to, newest first; with the reason for those that it may not.
    pub fn earlier(&self) -> Vec<(&Recorded<Release>, Option<String>)> {
        let Some(current) = self.current() else { return Vec::new() };
        let given_up: BTreeMap<&str, i64> =
            self.rollbacks.iter().map(|back| (back.what.from.as_str(), back.seq)).collect();
        let stable = self.stable.as_ref().map(|stable| stable.seq);
        let older = |release: &&Recorded<Release>| {
            // With a canary, what everyone gets may be the one before or, after a rollback, an older one.
            release.seq < current.seq && stable.is_none_or(|stable| release.seq <= stable)
        };
        let why = |release: &Recorded<Release>| {
            let name = release.what.release.as_str();
            match given_up.get(name) {
                Some(event) => Some(format!("it was rolled back from in ledger event {event}")),
                None if release.what.canary_share.is_some() => Some("it was a canary only".to_owned()),
                None => None,
            }
        };
        self.releases.iter().rev().filter(older).map(|release| (release, why(release))).collect()
    }

    fn take(&mut self, event: Event) -> Result<()> {
        if event.kind == "rollback" {
            let back: Recorded<Rollback> = Recorded::of(event)?;
            let to = self.releases.iter().find(|release| release.what.release == back.what.to);
            let to = to.ok_or_else(|| StoreError::Damaged {
                place: format!("ledger event {}", back.seq),
                found: format!("a rollback to {}, which was never released", back.what.to),
            })?;
            self.stable = Some(to.clone());
            self.canary = None;
            self.rollbacks.push(back);
            return Ok(());
        }
        let release: Recorded<Release> = Recorded::of(event)?;
        match release.what.canary_share {
            Some(_) => self.canary = Some(release.clone()),
            None => {
                self.stable = Some(release.clone());
                self.canary = None;
            }
        }
        self.releases.push(release);
        Ok(())
    }
}

impl Store {
    /// What a channel serves; nothing in it if nothing was ever released to it. Whoever serves looks again from time to time: the
    /// directories never change, only which of them are meant.
    pub async fn channel(&self, channel: &str) -> Result<ChannelState> {
        approval::check_channel(channel)?;
        let mut all = self.channels().await?;
        Ok(match all.iter().position(|state| state.channel == channel) {
            Some(found) => all.swap_remove(found),
            None => ChannelState::new(channel),
        })
    }

    /// All channels that were ever released to, by name.
    pub async fn channels(&self) -> Result<Vec<ChannelState>> {
        self.read(|connection| Box::pin(channels(connection))).await
    }

    /// Binds a model to a channel; an event. What it needs is looked at once more in the same transaction, so that nobody's approval or
    /// verdict changes between the copy and the event; a refusal is recorded.
    pub async fn add_release(
        &self,
        new: NewRelease,
        actor: &str,
        now_ms: i64,
    ) -> Result<Answered<Recorded<Release>>> {
        approval::check_channel(&new.asked.channel)?;
        if let Some(share) = new.canary_share
            && !(share > 0.0 && share < 1.0)
        {
            return Err(StoreError::invalid(
                "the canary's share",
                share.to_string(),
                "a number between 0 and 1; a release to everyone has none",
            ));
        }
        let actor = actor.to_owned();
        self.write(move |connection| {
            Box::pin(async move { add_release(connection, new, &actor, now_ms).await })
        })
        .await
    }

    /// Goes back to an earlier release of a channel; an event. `to` must be one of [`ChannelState::earlier`] that has no reason against it;
    /// whether its evidence holds is the caller's to find out, as is what was skipped.
    pub async fn add_rollback(
        &self,
        rollback: Rollback,
        actor: &str,
        now_ms: i64,
    ) -> Result<Recorded<Rollback>> {
        let actor = actor.to_owned();
        self.write(move |connection| {
            Box::pin(async move {
                let state = channels(connection)
                    .await?
                    .into_iter()
                    .find(|state| state.channel == rollback.channel)
                    .ok_or_else(|| StoreError::not_found("channel", &rollback.channel))?;
                let fits = state.current().is_some_and(|now| now.what.release == rollback.from)
                    && state
                        .earlier()
                        .iter()
                        .any(|(release, why)| release.what.release == rollback.to && why.is_none());
                if !fits {
                    return Err(StoreError::refused(
                        format!("a rollback from {} to {}", rollback.from, rollback.to),
                        "the channel has changed in the meantime; look at `polity releases` and ask again",
                    ));
                }
                ledger::append_recorded(connection, "rollback", &actor, rollback, now_ms).await
            })
        })
        .await
    }
}

async fn add_release(
    connection: &mut AnyConnection,
    new: NewRelease,
    actor: &str,
    now_ms: i64,
) -> Result<Answered<Recorded<Release>>> {
    let answer = approval::grounds(connection, &new.asked, actor, now_ms).await?;
    let grounds = match approval::on_record(connection, "release", &new.asked, actor, answer, now_ms).await? {
        Ok(grounds) => grounds,
        Err(refusal) => return Ok(Err::<_, Refusal>(refusal)),
    };
    let states = channels(connection).await?;
    let state = states.iter().find(|state| state.channel == new.asked.channel);
    if new.canary_share.is_some() && state.is_none_or(|state| state.stable.is_none()) {
        return Err(StoreError::refused(
            format!("a canary of channel {}", new.asked.channel),
            "nothing is released there yet that the others would get; release without a share first",
        ));
    }
    if states.iter().flat_map(|state| &state.releases).any(|other| other.what.release == new.release) {
        return Err(StoreError::refused(
            format!("release {}", new.release),
            "there is one of that name: somebody released at the same moment; ask again",
        ));
    }
    let release = Release {
        release: new.release,
        channel: new.asked.channel,
        model: new.asked.model,
        dir: new.dir,
        files: new.files,
        verdict: grounds.verdict.id,
        approvals: grounds.approvals.into_iter().map(|approval| approval.id).collect(),
        canary_share: new.canary_share,
    };
    Ok(Ok(ledger::append_recorded(connection, "release", actor, release, now_ms).await?))
}

async fn channels(connection: &mut AnyConnection) -> Result<Vec<ChannelState>> {
    let events = sqlx::query("SELECT * FROM ledger WHERE kind = 'release' OR kind = 'rollback' ORDER BY seq")
        .fetch_all(connection)
        .await
        .doing("read the ledger")?;
    let mut states: BTreeMap<String, ChannelState> = BTreeMap::new();
    for row in &events {
        let event = Event::from_row(row)?;
        let body: serde_json::Value = serde_json::from_str(&event.body).unwrap_or_default();
        let channel = body["channel"].as_str().unwrap_or_default();
        states.entry(channel.to_owned()).or_insert_with(|| ChannelState::new(channel)).take(event)?;
    }
    Ok(states.into_values().collect())
}
