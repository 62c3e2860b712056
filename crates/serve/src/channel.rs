//! A channel: what everyone gets, what a share of the users gets instead, and who is watching.
//!
//! **The split is stable.** Who gets the canary is a function of the channel, the canary and the user:
//!
//! ```text
//! canary  <=>  blake3(channel, canary, user)[0..8] / 2^64 < share
//! ```
//!
//! so a user stays with one arm as long as the canary lives, a larger share keeps those it had, and each canary is tried on others. The user
//! is the request's `user` (or `safety_identifier`, `prompt_cache_key`), within the account; without it, the account itself.

use std::sync::{Arc, Mutex, RwLock};

use crate::model::ServedModel;
use crate::monitor::{Alarm, ArmName, Measure, Monitor, Policy};

/// What is served at the moment.
#[derive(Clone)]
pub struct Arms {
    /// To everyone.
    pub stable: Arc<ServedModel>,
    /// To a share of the users, between 0 and 1.
    pub canary: Option<(Arc<ServedModel>, f64)>,
}

impl Arms {
    /// The arm of this name; the canary may be gone.
    pub fn get(&self, arm: ArmName) -> Option<&Arc<ServedModel>> {
        match arm {
            ArmName::Stable => Some(&self.stable),
            ArmName::Canary => self.canary.as_ref().map(|(model, _)| model),
        }
    }

    fn names(&self) -> (&str, Option<&str>) {
        (&self.stable.name, self.canary.as_ref().map(|(model, _)| model.name.as_str()))
    }
}

/// A channel that is served.
pub struct Channel {
    name: String,
    policy: Policy,
    arms: RwLock<Arms>,
    monitor: Mutex<Monitor>,
}

impl Channel {
    /// Serves these arms under a name, watched by a policy.
    pub fn new(name: &str, arms: Arms, policy: Policy) -> Channel {
        let monitor = Mutex::new(Monitor::new(&policy));
        Channel { name: name.to_owned(), policy, arms: RwLock::new(arms), monitor }
    }

    /// The name that clients know as a model's.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is watched.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// What is served now.
    pub fn arms(&self) -> Arms {
        self.arms.read().expect("no holder of this lock can panic").clone()
    }

    /// Serves other arms from now on; requests that run go on with theirs. New arms begin with no evidence.
    pub fn serve(&self, arms: Arms) {
        let mut now = self.arms.write().expect("no holder of this lock can panic");
        if now.names() != arms.names() {
            *self.monitor() = Monitor::new(&self.policy);
        }
        *now = arms;
    }

    /// Takes the canary back, if it is still this one.
    pub fn withdraw(&self, canary: &str) -> bool {
        let arms = self.arms();
        let is = arms.canary.as_ref().is_some_and(|(model, _)| model.name == canary);
        if is {
            self.serve(Arms { canary: None, ..arms });
        }
        is
    }

    /// Whose answer a user gets.
    pub(crate) fn arm_of(&self, user: &str) -> (ArmName, Arc<ServedModel>) {
        let arms = self.arms();
        match arms.canary {
            Some((canary, share)) if place(&self.name, &canary.name, user) < share => {
                (ArmName::Canary, canary)
            }
            _ => (ArmName::Stable, arms.stable),
        }
    }

    /// Gives a value to the monitor, if the arm is still the model that it is about; gives the alarms that it raises, each with the
    /// release that is worse than it should be.
    pub(crate) fn watch(&self, measure: Measure, arm: ArmName, model: &str, x: f64) -> Vec<(String, Alarm)> {
        let arms = self.arms.read().expect("no holder of this lock can panic");
        if arms.get(arm).is_none_or(|now| now.name != model) {
            return Vec::new();
        }
        let alarms = self.monitor().push(measure, arm, x);
        // The value that decides may be the other arm's.
        let of = |alarm: &Alarm| arms.get(alarm.criterion.arm).map(|model| model.name.clone());
        alarms.into_iter().filter_map(|alarm| Some((of(&alarm)?, alarm))).collect()
    }

    /// The monitor's state.
    pub fn monitor(&self) -> std::sync::MutexGuard<'_, Monitor> {
        self.monitor.lock().expect("no holder of this lock can panic")
    }
}

/// A user's place among all users, in `[0, 1)`.
pub fn place(channel: &str, canary: &str, user: &str) -> f64 {
    let mut hasher = blake3::Hasher::new();
    for part in [channel, canary, user] {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    let bytes = hasher.finalize().as_bytes()[..8].try_into().expect("a hash has 32 bytes");
    (u64::from_le_bytes(bytes) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::place;

    #[test]
    fn the_split_is_stable_even_and_fresh_for_each_canary() {
        let users: Vec<String> = (0..10_000).map(|n| format!("user {n}")).collect();
        let below = |canary: &str, share: f64| -> Vec<bool> {
            users.iter().map(|user| place("production", canary, user) < share).collect()
        };
        let tenth = below("production-2", 0.1);
        let n = tenth.iter().filter(|is| **is).count();
        // 1000 expected, standard deviation 30.
        assert!((900..1100).contains(&n), "{n}");
        let fifth = below("production-2", 0.2);
        assert!(tenth.iter().zip(&fifth).all(|(tenth, fifth)| !tenth || *fifth), "a larger share keeps them");
        let both = tenth.iter().zip(below("production-3", 0.1)).filter(|(a, b)| **a && *b).count();
        // 100 expected of independent tenths, standard deviation 9.5.
        assert!((60..140).contains(&both), "{both}");
        // The same on every machine and in every version: users would change sides.
        assert_eq!(place("production", "production-2", "ann").to_bits(), 4604222331135238764);
    }
}
