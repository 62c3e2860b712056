//! Passwords: Argon2id (version 0x13, 19 MiB, 2 passes, 1 lane: OWASP's least), as PHC strings that carry their own settings.
//!
//! Hashing runs beside the pages' threads and a few at a time, so that sign-ins can neither stop the pages nor take the memory.
//!
//! Not here: how often one may guess (`limit`).

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};

use crate::app::App;
use crate::error::Failure;

/// Fewest characters of a password.
pub(crate) const PASSWORD_CHARS_MIN: usize = 10;
/// Most bytes: hashing takes time in proportion.
pub(crate) const PASSWORD_BYTES_MAX: usize = 1000;

/// The settings, in KiB, passes and lanes.
const SETTINGS: (u32, u32, u32) = (19 * 1024, 2, 1);

/// A hash of no password, which an unknown name is checked against: the answer takes as long as for a known one.
const NOBODY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$cG9saXR5IG5vYm9keSAh$b5LxYQ0mX6m8wE1bJ6gq0o7t3o1Zl9Qv3cJwq2g7h5E";

/// Refuses what is too short or too long to be a password.
pub(crate) fn check(password: &str) -> Result<(), Failure> {
    let chars = password.chars().count();
    if chars < PASSWORD_CHARS_MIN || password.len() > PASSWORD_BYTES_MAX {
        return Err(Failure::Input(format!(
            "the password has {chars} characters; expected {PASSWORD_CHARS_MIN} or more, and at most {PASSWORD_BYTES_MAX} bytes"
        )));
    }
    Ok(())
}

/// The PHC string of a password.
pub(crate) async fn hash(app: &App, password: String) -> Result<String, Failure> {
    let salt = app.random();
    in_turn(app, move || {
        hasher()
            .hash_password_with_salt(password.as_bytes(), &salt[..16])
            .map(|hash: PasswordHash| hash.to_string())
    })
    .await?
    .map_err(|e| Failure::Internal(format!("a password could not be hashed: {e}")))
}

/// Whether a password is the one behind a PHC string; `false`, after the same time, where there is none.
pub(crate) async fn verify(app: &App, password: String, phc: Option<String>) -> Result<bool, Failure> {
    if password.len() > PASSWORD_BYTES_MAX {
        return Ok(false);
    }
    in_turn(app, move || {
        let known = phc.is_some();
        let phc = phc.unwrap_or_else(|| NOBODY.to_owned());
        let right = PasswordHash::new(&phc)
            .is_ok_and(|hash| hasher().verify_password(password.as_bytes(), &hash).is_ok());
        known && right
    })
    .await
}

fn hasher() -> Argon2<'static> {
    let (memory_kib, passes, lanes) = SETTINGS;
    let params =
        Params::new(memory_kib, passes, lanes, None).expect("the settings are within Argon2's limits");
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

async fn in_turn<T: Send + 'static>(
    app: &App,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    let _permit = app.hashers().acquire().await.expect("the semaphore is never closed");
    tokio::task::spawn_blocking(work).await.map_err(|e| Failure::Internal(format!("hashing stopped: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checking an unknown name must cost a real hash, so the stand-in must parse and have the settings.
    #[test]
    fn the_stand_in_is_a_hash_with_our_settings() {
        let hash = PasswordHash::new(NOBODY).expect("it is a PHC string");
        let params = Params::try_from(&hash).expect("its settings are Argon2's");
        assert_eq!((params.m_cost(), params.t_cost(), params.p_cost()), SETTINGS);
        assert!(hash.hash.is_some(), "without an output nothing would be computed");
    }
}
