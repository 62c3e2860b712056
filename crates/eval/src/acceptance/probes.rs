//! Probes: the same answer changed in a way whose effect on the reward is known beforehand.
//!
//! | measure | the share of pairs where |
//! |---|---|
//! | `identical_tie` | an answer beside itself has a margin of exactly 0 |
//! | `swap_negates` | the pair scored the other way round, in another batch, has exactly the negated margin |
//! | `space_agreement` | a space after both answers changes nothing about which is preferred |
//! | `beats_empty` | the better answer is above no answer |
//! | `whole_beats_half` | the better answer is above its own first half |
//! | `once_beats_twice` | the better answer is above the same said twice |
//! | `accuracy_of_opening` | the first words of both answers decide as people did on the whole ones |
//!
//! The first two are properties of the program, the rest of what the model learnt. Not here: scoring the texts.

use super::{Found, Name, SWAP_NEGATES, credit};

/// How many words [`opening`] keeps, for `accuracy_of_opening`.
pub const OPENINGS_WORDS: [usize; 2] = [5, 20];

/// A pair with the rewards of its changed answers.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbedPair {
    /// Its prompt.
    pub prompt: String,
    /// Reward of the better answer.
    pub better: f64,
    /// Of the better one minus the worse one.
    pub margin: f64,
    /// The same scored again, in the other order and another batch: the worse one minus the better one.
    pub swapped: f64,
    /// Of the better answer minus itself.
    pub identical: f64,
    /// The margin with a space after both.
    pub spaced: f64,
    /// Reward of no answer; nothing if the model cannot be shown one.
    pub empty: Option<f64>,
    /// Reward of the better answer's [`first_half`].
    pub half: f64,
    /// Reward of the better answer said [`twice`]; nothing if that is too long for the model.
    pub twice: Option<f64>,
    /// The margin of the [`opening`]s of both, for each of [`OPENINGS_WORDS`].
    pub openings: [f64; OPENINGS_WORDS.len()],
}

/// Measures of what changed answers are worth.
pub fn probe_measures(pairs: &[ProbedPair]) -> Found {
    let mut found = Found::default();
    let mut put = |name: Name<'_>, value: &dyn Fn(&ProbedPair) -> Option<f64>| {
        found.put(name, pairs.iter().filter_map(|pair| Some((pair.prompt.as_str(), value(pair)?))));
    };
    let exact = |holds: bool| Some(f64::from(holds));
    put(Name::share("identical_tie"), &|pair| exact(pair.identical == 0.0));
    put(Name::share(SWAP_NEGATES), &|pair| exact(pair.swapped == -pair.margin));
    put(Name::share("space_agreement"), &|pair| exact(credit(pair.spaced) == credit(pair.margin)));
    put(Name::share("beats_empty"), &|pair| Some(credit(pair.better - pair.empty?)));
    put(Name::share("whole_beats_half"), &|pair| Some(credit(pair.better - pair.half)));
    put(Name::share("once_beats_twice"), &|pair| Some(credit(pair.better - pair.twice?)));
    for (k, words) in OPENINGS_WORDS.into_iter().enumerate() {
        let category = format!("{words} words");
        put(Name::share("accuracy_of_opening").within(&category), &|pair| Some(credit(pair.openings[k])));
    }
    found
}

/// The first half of an answer's words, one at least; of its characters where it is a single word.
pub fn first_half(answer: &str) -> &str {
    let words = answer.split_whitespace().count();
    match words {
        0 => answer,
        1 => {
            let middle = answer.chars().count().div_ceil(2);
            let end = answer.char_indices().nth(middle).map_or(answer.len(), |(at, _)| at);
            &answer[..end]
        }
        words => opening(answer, words / 2),
    }
}

/// The first words of an answer, with the white space before and between them.
pub fn opening(answer: &str, words: usize) -> &str {
    let mut left = words;
    let mut inside = false;
    for (at, letter) in answer.char_indices() {
        match (letter.is_whitespace(), inside) {
            (false, false) if left == 0 => return answer[..at].trim_end(),
            (false, false) => {
                left -= 1;
                inside = true;
            }
            (true, _) => inside = false,
            (false, true) => {}
        }
    }
    answer
}

/// An answer, a blank line, and the same again.
pub fn twice(answer: &str) -> String {
    format!("{answer}\n\n{}", answer.trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_and_openings_keep_what_stands_before() {
        assert_eq!(first_half(" I do not know."), " I do");
        assert_eq!(first_half("one two three"), "one");
        assert_eq!(first_half(" été"), " é");
        assert_eq!(first_half("日本語酒"), "日本");
        assert_eq!((first_half(""), first_half("  "), first_half("a")), ("", "  ", "a"));
        assert_eq!(opening(" a  b\nc d", 3), " a  b\nc");
        assert_eq!(opening("a b", 5), "a b");
        assert_eq!(opening("a b ", 2), "a b ");
        assert_eq!(opening(" a b", 0), "");
        assert_eq!(twice(" yes"), " yes\n\nyes");
    }
}
