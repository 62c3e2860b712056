//! Which keys make which kind of row, and what to say about a row that has none of the combinations.
//!
//! The table here is the only place that lists them; `typed.rs` reads by it and the messages quote it.

use std::fmt;

use serde_json::{Map, Value};

use crate::error::{Place, RowsError};
use crate::show::{keys_of, nearest};

/// The four kinds of row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowKind {
    /// Something to respond to: `generate`, `train ppo`, `train grpo`.
    Prompt,
    /// Something to imitate or to measure: `train sft`, `logprobs`, `score`.
    Completion,
    /// Two responses, the better one known: `train reward`, `train dpo`.
    Preference,
    /// One response, known to be good or bad: `train kto`.
    Unpaired,
}

/// A comparison whose prompt is what both responses begin with, such as a pair of HH transcripts.
pub(crate) const COMPARISON: &[&str] = &["chosen", "rejected"];

impl RowKind {
    /// The accepted combinations of keys. A row with several of them is read by the first.
    pub const fn combinations(self) -> &'static [&'static [&'static str]] {
        match self {
            // The prompt of a comparison: so that PPO explores where people voted.
            RowKind::Prompt => &[&["prompt_ids"], &["prompt"], &["messages"], &["ids"], COMPARISON],
            RowKind::Completion => {
                &[&["prompt_ids", "completion_ids"], &["prompt", "completion"], &["messages"], &["text"]]
            }
            RowKind::Preference => &[
                &["prompt_ids", "chosen_ids", "rejected_ids"],
                &["prompt", "chosen", "rejected"],
                COMPARISON,
            ],
            RowKind::Unpaired => &[&["prompt", "completion", "label"]],
        }
    }

    /// Further keys that are understood.
    pub const fn optional(self) -> &'static [&'static str] {
        match self {
            RowKind::Preference => &["margin", "weight", "label"],
            _ => &[],
        }
    }

    fn takers(self) -> &'static str {
        match self {
            RowKind::Prompt => "generate, train ppo and train grpo take such rows",
            RowKind::Completion => "train sft, logprobs and score take such rows",
            RowKind::Preference => {
                "train reward and train dpo take such rows, train sft with train_on_chosen = true"
            }
            RowKind::Unpaired => "train kto takes such rows",
        }
    }
}

impl fmt::Display for RowKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RowKind::Prompt => "a prompt row",
            RowKind::Completion => "a completion row",
            RowKind::Preference => "a preference row",
            RowKind::Unpaired => "an unpaired row",
        })
    }
}

/// Other data sets' names for our keys.
const SYNONYMS: &[(&str, &str)] = &[
    ("question", "prompt"),
    ("instruction", "prompt"),
    ("query", "prompt"),
    ("input", "prompt"),
    ("answer", "completion"),
    ("response", "completion"),
    ("output", "completion"),
    ("target", "completion"),
    ("accepted", "chosen"),
    ("preferred", "chosen"),
    ("response_chosen", "chosen"),
    ("chosen_response", "chosen"),
    ("dispreferred", "rejected"),
    ("response_rejected", "rejected"),
    ("rejected_response", "rejected"),
    ("conversations", "messages"),
    ("conversation", "messages"),
    ("dialogue", "messages"),
    ("content", "text"),
    ("input_ids", "ids"),
    ("input_ids", "prompt_ids"),
];

/// Whether the row has the key with a value; a null is no value.
fn has(row: &Map<String, Value>, key: &str) -> bool {
    row.get(key).is_some_and(|value| !value.is_null())
}

/// The first combination that the row has.
pub(crate) fn combination(kind: RowKind, row: &Map<String, Value>) -> Option<&'static [&'static str]> {
    kind.combinations().iter().find(|keys| keys.iter().all(|key| has(row, key))).copied()
}

/// The error for a row that has no combination.
pub(crate) fn no_combination(kind: RowKind, row: &Map<String, Value>, place: &Place) -> RowsError {
    let combinations: Vec<String> = kind
        .combinations()
        .iter()
        .map(|keys| keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(" + "))
        .collect();
    RowsError::Keys {
        place: Box::new(place.clone()),
        found: keys_of(row),
        expected: format!("{kind}: {}", combinations.join(", or ")),
        hint: hint(kind, row),
    }
}

/// The likeliest reason: another name or spelling, a row of another kind, or a key left out.
fn hint(kind: RowKind, row: &Map<String, Value>) -> String {
    let mut wanted: Vec<&str> = kind.combinations().concat();
    wanted.retain(|key| !has(row, key));
    let unknown =
        || row.keys().filter(|key| has(row, key) && !kind.combinations().concat().contains(&key.as_str()));

    let mut renames: Vec<(&str, &str)> = Vec::new();
    for key in unknown() {
        let meant = nearest(key, &wanted).or_else(|| {
            SYNONYMS
                .iter()
                .find(|(word, meant)| word == key && wanted.contains(meant))
                .map(|&(_, meant)| meant)
        });
        if let Some(meant) = meant
            && renames.iter().all(|&(_, before)| before != meant)
        {
            renames.push((key, meant));
        }
    }
    if !renames.is_empty() {
        let renames: Vec<String> =
            renames.iter().map(|(key, meant)| format!("`{meant}` for `{key}`")).collect();
        return format!("did you mean {}?", renames.join(", "));
    }
    // Only the two kinds that cannot be mistaken: half of all rows have a prompt.
    for other in [RowKind::Preference, RowKind::Unpaired] {
        if other != kind && combination(other, row).is_some() {
            return format!("this is {other}: {}", other.takers());
        }
    }
    let missing = kind
        .combinations()
        .iter()
        .filter(|keys| keys.iter().any(|key| has(row, key)))
        .map(|keys| keys.iter().copied().filter(|key| !has(row, key)).collect::<Vec<_>>())
        .min_by_key(Vec::len);
    match missing.as_deref() {
        Some([key]) => format!("`{key}` is missing"),
        Some([init @ .., last]) if !init.is_empty() => {
            format!("`{}` and `{last}` are missing", init.join("`, `"))
        }
        _ if kind != RowKind::Completion && combination(RowKind::Completion, row).is_some() => {
            format!("this is {}: {}", RowKind::Completion, RowKind::Completion.takers())
        }
        _ => String::new(),
    }
}

/// The optional key that an unused key was most likely meant to be.
pub(crate) fn misspelt(kind: RowKind, key: &str) -> Option<&'static str> {
    let lower = key.to_lowercase();
    // A neighbouring key is only remarked on, so the bar is higher than in an error: one slip.
    let near = kind.optional().iter().filter(|optional| lower.len().abs_diff(optional.len()) <= 1);
    near.copied().find(|optional| crate::show::distance(&lower, optional) <= 1)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(kind: RowKind, row: Value, expect: &str) {
        let Value::Object(row) = row else { panic!("a row is an object") };
        assert_eq!(combination(kind, &row), None);
        let place = Place::row(Path::new("f"), Some(3), 2);
        assert_eq!(no_combination(kind, &row, &place).to_string(), format!("f, line 3: {expect}"));
    }

    const PREFERENCE: &str = "expected a preference row: `prompt_ids` + `chosen_ids` + `rejected_ids`, or `prompt` + `chosen` + `rejected`, or `chosen` + `rejected`";
    const COMPLETION: &str = "expected a completion row: `prompt_ids` + `completion_ids`, or `prompt` + `completion`, or `messages`, or `text`";

    #[test]
    fn the_hint_names_the_likeliest_reason() {
        check(
            RowKind::Preference,
            json!({"prompt": "p", "choosen": "c", "rejcted": "r"}),
            &format!(
                "found the keys `prompt`, `choosen`, `rejcted`; {PREFERENCE}; did you mean `chosen` for `choosen`, `rejected` for `rejcted`?"
            ),
        );
        check(
            RowKind::Completion,
            json!({"question": "q", "answer": "a"}),
            &format!(
                "found the keys `question`, `answer`; {COMPLETION}; did you mean `prompt` for `question`, `completion` for `answer`?"
            ),
        );
        check(
            RowKind::Completion,
            json!({"prompt": "p", "chosen": "c", "rejected": "r"}),
            &format!(
                "found the keys `prompt`, `chosen`, `rejected`; {COMPLETION}; this is a preference row: train reward and train dpo take such rows, train sft with train_on_chosen = true"
            ),
        );
        check(
            RowKind::Preference,
            json!({"prompt": "p", "chosen": "c", "rejected": null}),
            &format!(
                "found the keys `prompt`, `chosen`, `rejected` (null); {PREFERENCE}; `rejected` is missing"
            ),
        );
        check(
            RowKind::Preference,
            json!({"text": "t"}),
            &format!(
                "found the key `text`; {PREFERENCE}; this is a completion row: train sft, logprobs and score take such rows"
            ),
        );
        check(
            RowKind::Unpaired,
            json!({"prompt": "p"}),
            "found the key `prompt`; expected an unpaired row: `prompt` + `completion` + `label`; `completion` and `label` are missing",
        );
        check(
            RowKind::Prompt,
            json!({}),
            "found no keys; expected a prompt row: `prompt_ids`, or `prompt`, or `messages`, or `ids`, or `chosen` + `rejected`",
        );
        check(RowKind::Completion, json!({"x": 1}), &format!("found the key `x`; {COMPLETION}"));
    }

    #[test]
    fn the_first_combination_wins() {
        let check = |kind: RowKind, row: Value, expect: &[&str]| {
            let Value::Object(row) = row else { panic!("a row is an object") };
            assert_eq!(combination(kind, &row), Some(expect));
        };
        check(RowKind::Prompt, json!({"ids": [1], "prompt": "p"}), &["prompt"]);
        check(
            RowKind::Completion,
            json!({"text": "t", "prompt": "p", "completion": "c"}),
            &["prompt", "completion"],
        );
        check(
            RowKind::Preference,
            json!({"chosen": "c", "rejected": "r", "prompt": null}),
            &["chosen", "rejected"],
        );
    }

    #[test]
    fn near_misses_of_optional_keys() {
        assert_eq!(misspelt(RowKind::Preference, "margn"), Some("margin"));
        assert_eq!(misspelt(RowKind::Preference, "Weights"), Some("weight"));
        assert_eq!(misspelt(RowKind::Preference, "table"), None);
        assert_eq!(misspelt(RowKind::Preference, "category"), None);
        assert_eq!(misspelt(RowKind::Prompt, "margn"), None);
    }
}
