//! Rate limits, in memory: a bucket of tokens for each key, refilled evenly.
//!
//! ```text
//! tokens(t) = min(burst, tokens(t0) + (t - t0) / refill_ms)        an attempt takes one, or is refused
//! ```
//!
//! Guessing passwords is limited by name *and* by address: by name, so that many addresses cannot share one account's guesses; by address, so that
//! one address cannot try many names. A restart forgets; it takes longer than the refill.

use std::collections::HashMap;
use std::sync::Mutex;

/// Buckets kept at most; beyond that, full ones are forgotten.
const KEYS_MAX: usize = 20_000;

/// One rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Limit {
    /// Attempts to sign in to one account.
    SignInName,
    /// Attempts to sign in, or to use an invite, from one address.
    SignInAddress,
    /// Requests of one account.
    Account,
}

impl Limit {
    /// Attempts in a row, and the time in which one more is granted.
    fn numbers(self) -> (f64, f64) {
        match self {
            Limit::SignInName => (8.0, 15_000.0),
            Limit::SignInAddress => (40.0, 3_000.0),
            Limit::Account => (400.0, 20.0),
        }
    }
}

#[derive(Default)]
pub(crate) struct Limits {
    buckets: Mutex<HashMap<(Limit, String), (f64, i64)>>,
}

impl Limits {
    /// Takes a token; `Err` holds the seconds until there is one.
    pub(crate) fn take(&self, limit: Limit, key: &str, now_ms: i64) -> Result<(), u64> {
        let (burst, refill_ms) = limit.numbers();
        let mut buckets = self.buckets.lock().expect("no holder of this lock can panic");
        let refilled = |limit: Limit, (tokens, at_ms): (f64, i64)| {
            let (burst, refill_ms) = limit.numbers();
            (tokens + (now_ms - at_ms).max(0) as f64 / refill_ms).min(burst)
        };
        if buckets.len() >= KEYS_MAX {
            buckets.retain(|(limit, _), bucket| refilled(*limit, *bucket) < limit.numbers().0);
        }
        let bucket = buckets.entry((limit, key.to_owned())).or_insert((burst, now_ms));
        let tokens = refilled(limit, *bucket);
        if tokens < 1.0 {
            *bucket = (tokens, now_ms);
            return Err(((1.0 - tokens) * refill_ms / 1000.0).ceil().max(1.0) as u64);
        }
        *bucket = (tokens - 1.0, now_ms);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_one_every_refill() {
        let limits = Limits::default();
        for _ in 0..8 {
            assert_eq!(limits.take(Limit::SignInName, "ann", 0), Ok(()));
        }
        assert_eq!(limits.take(Limit::SignInName, "ann", 0), Err(15));
        assert_eq!(limits.take(Limit::SignInName, "ben", 0), Ok(()), "another name has its own bucket");
        assert_eq!(limits.take(Limit::SignInName, "ann", 14_000), Err(1));
        assert_eq!(limits.take(Limit::SignInName, "ann", 15_000), Ok(()));
        assert!(limits.take(Limit::SignInName, "ann", 15_000).is_err());
    }

    /// A clock that goes back must neither panic nor grant.
    #[test]
    fn a_clock_that_goes_back_grants_nothing() {
        let limits = Limits::default();
        for _ in 0..8 {
            limits.take(Limit::SignInName, "ann", 10_000).unwrap();
        }
        assert!(limits.take(Limit::SignInName, "ann", 0).is_err());
    }

    #[test]
    fn memory_is_bounded() {
        let limits = Limits::default();
        for i in 0..3 * KEYS_MAX {
            let _ = limits.take(Limit::SignInAddress, &i.to_string(), i as i64 * 100);
        }
        assert!(limits.buckets.lock().unwrap().len() <= KEYS_MAX);
    }
}
