//! The prompt of a pair that has none of its own: what both sides begin with.
//!
//! With i the first position (character, or message) where the sides differ,
//!
//! ```text
//! prompt = side[..i]          text: side[..i-1] if character i-1 is a space, so that a response starts with its space
//! prompt = side[..n-1]        if they do not differ in their common length n: both sides keep something
//! ```
//!
//! which is what TRL does (`trl.data_utils.extract_prompt`, 1.16.0), but for one slip: for texts that differ
//! in their very first character, TRL looks at the character "before" it, in Python the last one, and would
//! cut the response there. Nor does TRL accept an empty side; here the prompt is then empty.
//!
//! Not here: Anthropic HH transcripts, whose prompt ends at a turn (`hh.rs`).

use crate::text::Message;

/// Bytes of the prompt that two texts share.
pub(crate) fn shared_text(chosen: &str, rejected: &str) -> usize {
    let mut before = None; // The last common character and where it starts.
    for ((at, a), b) in chosen.char_indices().zip(rejected.chars()) {
        if a != b {
            return match before {
                Some((space, ' ')) => space,
                _ => at,
            };
        }
        before = Some((at, a));
    }
    before.map_or(0, |(at, _)| at)
}

/// Messages of the prompt that two conversations share. Extra keys count: a message that calls another tool
/// differs.
pub(crate) fn shared_messages(chosen: &[Message], rejected: &[Message]) -> usize {
    let common = chosen.len().min(rejected.len());
    let same = chosen.iter().zip(rejected).take_while(|(a, b)| a == b).count();
    if same == common { common.saturating_sub(1) } else { same }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_split_as_trl_splits_them() {
        // Every line printed by trl 1.16.0's extract_prompt: prompt, chosen, rejected.
        #[rustfmt::skip]
        let trl = [
            ("The sky is", " blue", " green"),
            ("a b", " c", " d"),
            ("a", " b", " c"),
            ("ab", "c", "d"),
            ("ab", "c", "cd"),
            ("ab", "c", "c"),
            ("ab ", "c", "cd"), // No step back over the space when one side ends.
            ("été l", "à", "u"),
            ("日本", "語", "酒"),
            ("", "x", "y"),
            ("", "x", "x"),
            ("say ", " one", " two"),
            ("a", " ", " b"),
            ("", " a", " b"),
            ("", "éa", "èa"), // These share their first byte, not their first character.
        ];
        for (prompt, chosen, rejected) in trl {
            let (whole, other) = (format!("{prompt}{chosen}"), format!("{prompt}{rejected}"));
            assert_eq!(&whole[..shared_text(&whole, &other)], prompt, "{whole:?} {other:?}");
            assert_eq!(&whole[..shared_text(&other, &whole)], prompt, "{other:?} {whole:?}");
        }
    }

    #[test]
    fn where_trl_slips_the_prompt_is_empty() {
        assert_eq!(shared_text("x ", "y "), 0); // TRL: prompt "x", because Python's [-1] is a space.
        assert_eq!(shared_text("", "y"), 0); // TRL: an UnboundLocalError.
        assert_eq!(shared_text("", ""), 0);
    }

    #[test]
    fn conversations_split_as_trl_splits_them() {
        let conversation = |words: &str| -> Vec<Message> {
            let role = |i: usize| if i.is_multiple_of(2) { "user" } else { "assistant" };
            words.split_whitespace().enumerate().map(|(i, word)| Message::new(role(i), word)).collect()
        };
        // Printed by trl 1.16.0's extract_prompt for conversations of these shapes.
        for (chosen, rejected, expect) in [
            ("u a", "u b", 1),
            ("u a", "u a u b", 1),
            ("u a u a", "u a u b", 3),
            ("u a u a", "u b u a", 1),
            ("u a", "u a", 1),
            ("u", "v", 0),
        ] {
            let (chosen, rejected) = (conversation(chosen), conversation(rejected));
            assert_eq!(shared_messages(&chosen, &rejected), expect, "{chosen:?} {rejected:?}");
        }
        assert_eq!(shared_messages(&[], &conversation("u a")), 0);

        let mut called = Message::new("assistant", "");
        called.extra.insert("tool_calls".into(), serde_json::json!([1]));
        let mut other = called.clone();
        other.extra.insert("tool_calls".into(), serde_json::json!([2]));
        assert_eq!(shared_messages(&[called.clone(), called.clone()], &[called.clone(), other]), 1);
    }
}
