//! What a user can get wrong about an objective. Shape mismatches are bugs in the caller and panic instead.

use thiserror::Error;

/// A setting or a data column that an objective refuses.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum ObjectiveError {
    /// A number outside its domain.
    #[error("{field} = {found}, expected {expected}: {reason}")]
    InvalidValue {
        /// Configuration key.
        field: &'static str,
        /// The value given.
        found: f64,
        /// The domain.
        expected: &'static str,
        /// Why the domain is what it is.
        reason: &'static str,
    },
    /// Two settings (or a setting and a data column) that contradict each other.
    #[error("{setting} cannot be used with {with}: {reason}")]
    Incompatible {
        /// The setting refused.
        setting: String,
        /// What it clashes with.
        with: String,
        /// Why, and what to do instead.
        reason: &'static str,
    },
    /// A name that no option has.
    #[error("unknown {field} {found:?}{}; known: {known}", nearest_hint(.nearest))]
    UnknownName {
        /// Configuration key.
        field: &'static str,
        /// The name given.
        found: String,
        /// The known name closest in spelling, if one is close.
        nearest: Option<&'static str>,
        /// All known names, comma separated.
        known: String,
    },
    /// Two lists that must be equally long.
    #[error("{field} has {found} values, expected {expected}, one for each {of}")]
    LengthMismatch {
        /// Configuration key.
        field: &'static str,
        /// Its length.
        found: usize,
        /// The length expected.
        expected: usize,
        /// What it must match.
        of: &'static str,
    },
    /// Whitening needs a variance, and there are too few values for one.
    #[error(
        "cannot whiten {what}: {found} values in the batch, expected at least {needed}; use a larger batch"
    )]
    TooFewToWhiten {
        /// What was to be whitened.
        what: &'static str,
        /// Values in the batch.
        found: u64,
        /// Values needed.
        needed: u64,
    },
}

fn nearest_hint(nearest: &Option<&'static str>) -> String {
    nearest.map_or_else(String::new, |name| format!(", did you mean {name:?}?"))
}

/// Looks `found` up in a table of names.
pub(super) fn parse_name<T: Copy>(
    field: &'static str,
    found: &str,
    table: &[(&'static str, T)],
) -> Result<T, ObjectiveError> {
    if let Some((_, value)) = table.iter().find(|(name, _)| *name == found) {
        return Ok(*value);
    }
    // A third of the letters may differ: enough for a typo, too little for an unrelated word.
    let nearest = table
        .iter()
        .map(|(name, _)| (edit_distance(found, name), *name))
        .filter(|(distance, name)| *distance * 3 <= name.len().max(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name);
    let known = table.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    Err(ObjectiveError::UnknownName { field, found: found.to_owned(), nearest, known })
}

/// Edits between two words: insertions, deletions, substitutions, and swaps of neighbours (optimal string alignment).
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let substitute = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = substitute.min(row[j - 1] + 1).min(rows[i - 1][j] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

/// `Ok` if `found` is in the domain that `holds` tests.
pub(super) fn check_value(
    field: &'static str,
    found: f64,
    holds: bool,
    expected: &'static str,
    reason: &'static str,
) -> Result<(), ObjectiveError> {
    if holds && found.is_finite() {
        return Ok(());
    }
    Err(ObjectiveError::InvalidValue { field, found, expected, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[(&str, u8)] = &[("sigmoid", 1), ("hinge", 2), ("ipo", 3)];

    #[track_caller]
    fn check(found: &str, expect: Result<u8, &str>) {
        let got = parse_name("loss_type", found, TABLE).map_err(|e| e.to_string());
        assert_eq!(got, expect.map_err(str::to_owned));
    }

    #[test]
    fn names_are_found_or_the_nearest_is_suggested() {
        check("hinge", Ok(2));
        check(
            "sigmiod",
            Err("unknown loss_type \"sigmiod\", did you mean \"sigmoid\"?; known: sigmoid, hinge, ipo"),
        );
        check("ip", Err("unknown loss_type \"ip\", did you mean \"ipo\"?; known: sigmoid, hinge, ipo"));
        check("zebra", Err("unknown loss_type \"zebra\"; known: sigmoid, hinge, ipo"));
    }

    #[test]
    fn edit_distance_by_hand() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("dtf", "dft"), 1);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("abc", "abc"), 0);
    }

    #[test]
    fn not_a_number_is_outside_every_domain() {
        assert!(check_value("beta", f64::NAN, true, "> 0", "").is_err());
        assert!(check_value("beta", 1.0, true, "> 0", "").is_ok());
        assert!(check_value("beta", -1.0, false, "> 0", "").is_err());
    }
}
