//! How values, keys and lists of keys are named in messages. One place, so that all messages sound alike.

use serde_json::{Map, Value};

/// The longest piece of a user's text that a message repeats, in characters.
const TEXT_CHARS_MAX: usize = 32;

/// A value in words, short enough for a message: `the text "abc…"`, `a list of 3`, `the number -1`.
pub(crate) fn kind_of(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => format!("the text {}", quoted(text)),
        Value::Array(list) if list.is_empty() => "an empty list".to_owned(),
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Object(map) if map.is_empty() => "an empty object".to_owned(),
        Value::Object(map) => match unreadable_reason(map) {
            Some(reason) => format!("unreadable: {reason}"),
            None => format!("an object with {}", keys_of(map)),
        },
    }
}

/// Stands for a value that the format can hold and JSON cannot: no error in a column that nobody asks for.
pub(crate) fn unreadable(reason: &str) -> Value {
    serde_json::json!({ "unreadable": reason })
}

fn unreadable_reason(map: &Map<String, Value>) -> Option<&str> {
    if map.len() == 1 { map.get("unreadable")?.as_str() } else { None }
}

/// The text in double quotes, with control characters escaped, cut when it is long.
pub(crate) fn quoted(text: &str) -> String {
    match text.char_indices().nth(TEXT_CHARS_MAX) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// The keys of an object: `the keys `a`, `b` (null)`; the first dozen of them.
pub(crate) fn keys_of(map: &Map<String, Value>) -> String {
    const KEYS_MAX: usize = 12;
    if map.is_empty() {
        return "no keys".to_owned();
    }
    let mut keys: Vec<String> = map
        .iter()
        .take(KEYS_MAX)
        .map(|(key, value)| match value {
            Value::Null => format!("{} (null)", key_in_ticks(key)),
            _ => key_in_ticks(key),
        })
        .collect();
    if map.len() > KEYS_MAX {
        keys.push(format!("{} more", map.len() - KEYS_MAX));
    }
    format!("the key{} {}", if map.len() == 1 { "" } else { "s" }, keys.join(", "))
}

fn key_in_ticks(key: &str) -> String {
    let escaped: String = key.chars().take(TEXT_CHARS_MAX).flat_map(char::escape_debug).collect();
    format!("`{escaped}`")
}

/// `a`, `b` or `c`.
pub(crate) fn one_of(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [only] => format!("`{only}`"),
        [init @ .., last] => {
            let init: Vec<String> = init.iter().map(|word| format!("`{word}`")).collect();
            format!("{} or `{last}`", init.join(", "))
        }
    }
}

/// The word of `candidates` that `word` was most likely meant to be: one or two slips away (by length), case
/// aside.
pub(crate) fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    // Long keys cannot be near and need not be measured.
    if word.len() > 64 {
        return None;
    }
    let word = word.to_lowercase();
    candidates
        .iter()
        .map(|candidate| (distance(&word, candidate), *candidate))
        .filter(|&(slips, candidate)| slips <= if candidate.len() > 4 { 2 } else { 1 })
        .min_by_key(|&(slips, _)| slips)
        .map(|(_, candidate)| candidate)
}

/// Optimal string alignment distance: insertions, deletions, substitutions and swaps of neighbours, each 1.
pub(crate) fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    // rows[i][j] is the distance between the first i of a and the first j of b.
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let same = usize::from(a[i - 1] != b[j - 1]);
                let mut best = (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(rows[i - 1][j - 1] + same);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    best = best.min(rows[i - 2][j - 2] + 1);
                }
                best
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_in_words() {
        let check = |value: Value, expect: &str| assert_eq!(kind_of(&value), expect);
        check(json!(null), "null");
        check(json!(true), "true");
        check(json!(-1.5), "the number -1.5");
        check(json!("a\nb"), r#"the text "a\nb""#);
        check(json!("é".repeat(33)), &format!("the text \"{}\"…", "é".repeat(32)));
        check(json!([]), "an empty list");
        check(json!([1, 2]), "a list of 2");
        check(json!({}), "an empty object");
        check(unreadable("an interval"), "unreadable: an interval");
        check(json!({"a": 1, "b\n": null}), r"an object with the keys `a`, `b\n` (null)");
        let many: Map<String, Value> = (0..14).map(|i| (format!("k{i}"), json!(0))).collect();
        assert!(keys_of(&many).ends_with("`k11`, 2 more"), "{}", keys_of(&many));
    }

    #[test]
    fn distances_worked_by_hand() {
        let check = |a: &str, b: &str, expect: usize| {
            assert_eq!(distance(a, b), expect, "{a} {b}");
            assert_eq!(distance(b, a), expect, "{b} {a}");
        };
        check("", "", 0);
        check("", "abc", 3);
        check("prompt", "promt", 1);
        check("prompt", "propmt", 1); // A swap is one slip.
        check("kitten", "sitting", 3);
        check("chosen", "choosen", 1);
    }

    #[test]
    fn the_nearest_word_or_none() {
        let words = ["prompt", "chosen", "rejected", "ids", "text"];
        assert_eq!(nearest("promt", &words), Some("prompt"));
        assert_eq!(nearest("Chosen", &words), Some("chosen"));
        assert_eq!(nearest("rejcted", &words), Some("rejected"));
        assert_eq!(nearest("id", &words), Some("ids"));
        assert_eq!(nearest("i", &words), None);
        assert_eq!(nearest("question", &words), None);
        assert_eq!(nearest(&"p".repeat(100_000), &words), None);
    }
}
