//! How much alike two texts are, to leave near-duplicates among candidates out.
//!
//! ```text
//! similarity = |S(x) ∩ S(y)| / |S(x) ∪ S(y)|        S: the runs of three words, in lower case, without punctuation
//! ```
//!
//! A text of fewer words is one run. Source: Broder 1997, "On the resemblance and containment of documents".

use std::collections::HashSet;

const RUN: usize = 3;

/// Jaccard similarity of the word runs of two texts, from 0 to 1; 1 if both are empty.
pub fn similarity(x: &str, y: &str) -> f64 {
    let (x, y) = (words(x), words(y));
    let (x, y) = (runs(&x), runs(&y));
    let common = x.intersection(&y).count();
    let all = x.len() + y.len() - common;
    if all == 0 { 1.0 } else { common as f64 / all as f64 }
}

fn words(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect()
}

fn runs(words: &[String]) -> HashSet<&[String]> {
    if words.is_empty() {
        return HashSet::new();
    }
    words.windows(RUN.min(words.len())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn similarity_by_hand() {
        let check = |x: &str, y: &str, expect: f64| assert_eq!(similarity(x, y), expect, "{x} / {y}");
        check("a b c d", "A, b: c d!", 1.0);
        // Runs abc bcd cde against abc bcd cdf: two of four.
        check("a b c d e", "a b c d f", 0.5);
        check("a b c", "d e f", 0.0);
        check("", "", 1.0);
        check("", "a", 0.0);
        check("yes", "yes.", 1.0);
    }
}
