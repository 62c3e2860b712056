//! Anthropic HH transcripts: dialogues written as one text.
//!
//! ```text
//! \n\nHuman: …\n\nAssistant: …\n\nHuman: …\n\nAssistant: …
//! ```
//!
//! A pair of transcripts shares its opening turns. The prompt is those turns, and, where the next turn is the
//! assistant's on both sides, that turn's marker: `\n\nHuman: …\n\nAssistant:`. So in the ordinary case,
//! where only the last turn differs, the prompt ends with the last `\n\nAssistant:` and each response is the
//! rest, with its leading space (2307 of the 2312 pairs of harmless-base's test part). Where the dialogues
//! part earlier, a response holds several turns (in the other five, the assistant's twice in a row); that is
//! flagged, not refused. Each side keeps at least one turn, so identical transcripts have identical
//! responses, not empty ones.
//!
//! A character-wise common prefix, as TRL takes it for other texts, would end inside the responses ("I'm
//! sorry, b" …).
//!
//! Source: Bai et al. 2022, arXiv:2204.05862; the files of anthropics/hh-rlhf.
//!
//! Not here: when a row counts as a pair of transcripts (`typed.rs` asks [`split`]).

use crate::text::Message;

/// Opens a human's turn.
pub const HUMAN: &str = "\n\nHuman:";
/// Opens an assistant's turn.
pub const ASSISTANT: &str = "\n\nAssistant:";

#[derive(Clone, Copy, PartialEq)]
enum Speaker {
    Human,
    Assistant,
}

/// One turn; offsets are in bytes of the transcript.
#[derive(Clone, Copy)]
struct Turn {
    speaker: Speaker,
    /// Where the marker starts.
    start: usize,
    /// Where the words start, right after the marker.
    words: usize,
    end: usize,
}

/// The turns of a transcript; what comes before the first marker is in none of them.
///
/// At the very start of a text the marker may lack its blank line, as in copies whose white space was
/// trimmed.
fn turns(text: &str) -> Vec<Turn> {
    let mut turns: Vec<Turn> = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let marker = [(Speaker::Human, HUMAN), (Speaker::Assistant, ASSISTANT)].into_iter().find_map(
            |(speaker, marker)| {
                let marker = if at == 0 && !text.starts_with('\n') { marker.trim_start() } else { marker };
                text[at..].starts_with(marker).then_some((speaker, at + marker.len()))
            },
        );
        if let Some((speaker, words)) = marker {
            if let Some(last) = turns.last_mut() {
                last.end = at;
            }
            turns.push(Turn { speaker, start: at, words, end: text.len() });
            at = words;
        } else {
            // The next place where a marker can start.
            let from = at + usize::from(text[at..].starts_with('\n'));
            at = text[from..].find("\n\n").map_or(text.len(), |next| from + next);
        }
    }
    turns
}

/// If both texts are transcripts that open alike, the bytes of their shared prompt; see the module's text for
/// where it ends.
///
/// A transcript has at least one turn of each speaker. Texts whose words before the first turn differ are not
/// treated as transcripts.
pub fn split(chosen: &str, rejected: &str) -> Option<usize> {
    let (chosen_turns, rejected_turns) = (turns(chosen), turns(rejected));
    for turns in [&chosen_turns, &rejected_turns] {
        for speaker in [Speaker::Human, Speaker::Assistant] {
            if !turns.iter().any(|turn| turn.speaker == speaker) {
                return None;
            }
        }
    }
    if chosen[..chosen_turns[0].start] != rejected[..rejected_turns[0].start] {
        return None;
    }
    let keep = chosen_turns.len().min(rejected_turns.len()) - 1;
    let shared = chosen_turns
        .iter()
        .zip(&rejected_turns)
        .take(keep)
        .take_while(|(a, b)| chosen[a.start..a.end] == rejected[b.start..b.end])
        .count();
    let (next, other) = (chosen_turns[shared], rejected_turns[shared]);
    let with_marker = next.speaker == Speaker::Assistant
        && other.speaker == Speaker::Assistant
        && next.words - next.start == other.words - other.start;
    Some(if with_marker { next.words } else { next.start })
}

/// Whether a response goes on after the assistant's turn that it begins with.
pub fn has_further_turns(response: &str) -> bool {
    response.contains(HUMAN) || response.contains(ASSISTANT)
}

/// A transcript's turns as messages of role `user` and `assistant`, with the white space around their words
/// removed; words before the first turn become a `system` message. `None` for a text without turns.
pub fn messages(transcript: &str) -> Option<Vec<Message>> {
    let turns = turns(transcript);
    let preface = transcript[..turns.first()?.start].trim();
    let preface = (!preface.is_empty()).then(|| Message::new("system", preface));
    let said = turns.iter().map(|turn| {
        let role = match turn.speaker {
            Speaker::Human => "user",
            Speaker::Assistant => "assistant",
        };
        Message::new(role, transcript[turn.words..turn.end].trim())
    });
    Some(preface.into_iter().chain(said).collect())
}

/// The same for a prompt and a response to it: a prompt that ends with an open `\n\nAssistant:` leaves that
/// turn to the response. `None` if either is not a transcript or nothing is left of the prompt.
pub(crate) fn exchange(prompt: &str, response: &str) -> Option<(Vec<Message>, Vec<Message>)> {
    let mut before = messages(prompt)?;
    let open = prompt.trim_end().ends_with(ASSISTANT.trim_start())
        && before.last().is_some_and(|last| last.role == "assistant" && last.content.is_empty());
    let after = if open {
        before.pop();
        messages(&format!("{ASSISTANT}{response}"))?
    } else {
        messages(response).filter(|messages| messages[0].role != "system")?
    };
    (!before.is_empty()).then_some((before, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(chosen: &str, rejected: &str, prompt: Option<&str>) {
        assert_eq!(split(chosen, rejected).map(|end| &chosen[..end]), prompt);
        assert_eq!(split(rejected, chosen).map(|end| &rejected[..end]), prompt);
        if let Some(prompt) = prompt {
            assert!(rejected.starts_with(prompt));
        }
    }

    #[test]
    fn the_prompt_ends_with_the_marker_of_the_turn_that_differs() {
        check(
            "\n\nHuman: q\n\nAssistant: a",
            "\n\nHuman: q\n\nAssistant: b",
            Some("\n\nHuman: q\n\nAssistant:"),
        );
        // The responses share their opening words: a character-wise prefix would take them.
        check(
            "\n\nHuman: q\n\nAssistant: I see. Yes.",
            "\n\nHuman: q\n\nAssistant: I see. No.",
            Some("\n\nHuman: q\n\nAssistant:"),
        );
        check(
            "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: x\n\nwith a paragraph",
            "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant:",
            Some("\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant:"),
        );
        check("Human: q\n\nAssistant: a", "Human: q\n\nAssistant: b", Some("Human: q\n\nAssistant:"));
        check(
            "S.\n\nHuman: q\n\nAssistant: a",
            "S.\n\nHuman: q\n\nAssistant: b",
            Some("S.\n\nHuman: q\n\nAssistant:"),
        );
    }

    #[test]
    fn dialogues_that_part_early_share_their_opening_turns() {
        let start = "\n\nHuman: q\n\nAssistant:";
        check(
            &format!("{start} a\n\nHuman: r\n\nAssistant: x"),
            &format!("{start} b\n\nHuman: r\n\nAssistant: x"),
            Some(start),
        );
        // Different questions: the marker of the human's turn is not part of a prompt.
        check(
            "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: x",
            "\n\nHuman: q\n\nAssistant: a\n\nHuman: s\n\nAssistant: x",
            Some("\n\nHuman: q\n\nAssistant: a"),
        );
        check("\n\nHuman: q\n\nAssistant: a", "\n\nHuman: p\n\nAssistant: a", Some(""));
        // One is the other's beginning, and both are the same: each side keeps a turn.
        check(&format!("{start} a"), &format!("{start} a\n\nHuman: r\n\nAssistant: x"), Some(start));
        check(&format!("{start} a"), &format!("{start} a"), Some(start));
    }

    #[test]
    fn other_texts_are_not_transcripts() {
        check("", "", None);
        check("\n\n", "\n\n\n\n", None);
        check("The sky is blue", "The sky is green", None);
        check("\n\nHuman: q", "\n\nHuman: r", None);
        check("A.\n\nHuman: q\n\nAssistant: a", "B.\n\nHuman: q\n\nAssistant: a", None);
        check("ask Human: q, Assistant: a", "ask Human: q, Assistant: b", None);
    }

    #[test]
    fn turns_become_messages() {
        let check = |text: &str, expect: &[(&str, &str)]| {
            let messages = messages(text).unwrap();
            let found: Vec<_> = messages.iter().map(|m| (m.role.as_str(), m.content.as_str())).collect();
            assert_eq!(found, expect);
        };
        check("\n\nHuman: q\n\nAssistant: a\n\nb ", &[("user", "q"), ("assistant", "a\n\nb")]);
        check("Be brief.\n\nHuman: q", &[("system", "Be brief."), ("user", "q")]);
        check("\n\n\nHuman: q\n\n\nAssistant:", &[("user", "q"), ("assistant", "")]);
        assert_eq!(messages("no turns"), None);

        let words = |messages: &[Message]| -> Vec<String> {
            messages.iter().map(|m| format!("{}: {}", m.role, m.content)).collect()
        };
        let (before, after) =
            exchange("\n\nHuman: q\n\nAssistant:", " a\n\nHuman: r\n\nAssistant: b").unwrap();
        assert_eq!(words(&before), ["user: q"]);
        assert_eq!(words(&after), ["assistant: a", "user: r", "assistant: b"]);
        let (before, after) =
            exchange("\n\nHuman: q\n\nAssistant: a", "\n\nHuman: r\n\nAssistant: b").unwrap();
        assert_eq!(
            (words(&before).len(), words(&after)),
            (2, vec!["user: r".to_owned(), "assistant: b".to_owned()])
        );
        assert_eq!(exchange("\n\nHuman: q\n\nAssistant: a", " b"), None);
        assert_eq!(exchange("\n\nAssistant:", " b"), None);
        assert_eq!(exchange("plain", " b"), None);
    }
}
