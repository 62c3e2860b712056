//! Whether a suite's rows were in training data: overlap of word 8-grams.
//!
//! A row counts as seen if at least 70 % of its 8-grams occur somewhere in the training data, as in PaLM's report (Chowdhery et al. 2022, section 8:
//! 13-grams, as for GPT-3, miss short rows). Words are runs of letters and digits, without case. A row of fewer than 8 words counts
//! if a line of a training text is exactly that, apart from a first word that says who speaks: "Once upon a time" in the middle of a story says nothing.
//!
//! Training data may be of any size: only the suite's n-grams are kept, and each training text is looked through once. An n-gram is known by 64 bits of its
//! hash; of a million n-grams looked for in a billion one is found by chance with probability 5e-5.
//!
//! Not here: which files were trained on.

use std::collections::HashMap;

use crate::Suite;

/// Words of an n-gram.
const WORDS: usize = 8;
/// Share of a row's n-grams from which on it counts as seen.
pub const SEEN_SHARE: f64 = 0.7;

/// What is looked for, and what was found.
#[derive(Debug)]
pub struct Contamination {
    /// Which n-grams, or short rows, by their hash; and whether they were seen.
    wanted: HashMap<u64, bool>,
    /// Hashes of each row's n-grams; of a short row, its own.
    rows: Vec<Vec<u64>>,
    /// Whether there are short rows.
    short: bool,
}

impl Contamination {
    /// Looks for a suite's rows: their prompts, or texts.
    pub fn of(suite: &Suite) -> Contamination {
        let texts = suite
            .rows
            .iter()
            .map(|row| row.values.get("prompt").or(row.values.get("text")).map_or("", String::as_str));
        Contamination::of_texts(texts)
    }

    /// The same of texts.
    pub fn of_texts<'t>(texts: impl Iterator<Item = &'t str>) -> Contamination {
        let mut short = false;
        let rows: Vec<Vec<u64>> = texts
            .map(|text| {
                let words = words(text);
                short |= !words.is_empty() && words.len() < WORDS;
                words.windows(words.len().clamp(1, WORDS)).map(hash).collect()
            })
            .collect();
        let wanted = rows.iter().flatten().map(|&gram| (gram, false)).collect();
        Contamination { wanted, rows, short }
    }

    /// Looks through a training text.
    pub fn see(&mut self, text: &str) {
        words(text).windows(WORDS).for_each(|gram| self.saw(gram));
        if !self.short {
            return;
        }
        for line in text.lines() {
            let words = words(line);
            for start in 0..2 {
                if let Some(words) = words.get(start..).filter(|words| (1..WORDS).contains(&words.len())) {
                    self.saw(words);
                }
            }
        }
    }

    fn saw(&mut self, words: &[String]) {
        if let Some(seen) = self.wanted.get_mut(&hash(words)) {
            *seen = true;
        }
    }

    /// For each row, the share of its n-grams that were seen.
    pub fn shares(&self) -> Vec<f64> {
        let share = |grams: &Vec<u64>| {
            let seen = grams.iter().filter(|gram| self.wanted[gram]).count();
            if grams.is_empty() { 0.0 } else { seen as f64 / grams.len() as f64 }
        };
        self.rows.iter().map(share).collect()
    }
}

fn words(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect()
}

fn hash(words: &[String]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    for word in words {
        hasher.update(word.as_bytes()).update(b" ");
    }
    let bytes = hasher.finalize();
    u64::from_le_bytes(bytes.as_bytes()[..8].try_into().expect("a hash has 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_were_trained_on_are_found() {
        let check = |row: &str, training: &[&str], expect: f64| {
            let mut contamination = Contamination::of_texts([row].into_iter());
            training.iter().for_each(|text| contamination.see(text));
            assert_eq!(contamination.shares(), [expect], "{row}");
        };
        let row = "One two three four five six seven eight nine ten.";
        check(row, &["and ONE, two; three four five six seven eight nine ten eleven"], 1.0);
        // The last of three 8-grams is broken.
        check(row, &["one two three four five six seven eight nine eleven"], 2.0 / 3.0);
        check(row, &["one two three four", "five six seven eight nine ten"], 0.0);
        // Short rows: a line of their own, or a turn.
        check("Who are you?", &["Human: who are you\nAssistant: me"], 1.0);
        check("Who are you?", &["tell me: who are you, then"], 0.0);
        check("Who are you?", &["who you are"], 0.0);
        check("…", &["…"], 0.0);
    }
}
