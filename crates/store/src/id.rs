//! Names of things: hashes of what they are.
//!
//! A prompt, a response and a comparison are named by the first 128 bits of a BLAKE3 hash of their content, as 32 hex digits, so
//! the same text imported twice is one prompt, and a changed text no longer fits its name. Each part goes into the hash with
//! its length (8 bytes, little-endian), so parts cannot run into each other.
//!
//! Secrets (sessions, invites, tokens) are random; the store keeps their hashes only.

/// Digits of a content name.
pub const ID_DIGITS: usize = 32;

/// BLAKE3 of a kind and its parts, in hex: 64 digits.
pub fn hash_parts(kind: &str, parts: &[&str]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in std::iter::once(&kind).chain(parts) {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

/// The name of a thing of `kind` made of `parts`.
pub fn content_id(kind: &str, parts: &[&str]) -> String {
    let mut id = hash_parts(kind, parts);
    id.truncate(ID_DIGITS);
    id
}

/// What the store keeps of a secret.
pub(crate) fn secret_hash(secret: &str) -> String {
    hash_parts("polity secret 1", &[secret])
}

/// Bytes as lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_run_into_each_other() {
        assert_ne!(content_id("x", &["ab", "c"]), content_id("x", &["a", "bc"]));
        assert_ne!(content_id("x", &["a"]), content_id("y", &["a"]));
        assert_eq!(content_id("x", &["a"]).len(), ID_DIGITS);
    }
}
