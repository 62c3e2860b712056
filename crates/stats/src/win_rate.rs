//! Win rate of one policy over another, with ties.
//!
//! A comparison scores 1 for a win, ½ for a tie, 0 for a loss, or a share of votes in between. Two numbers come out,
//! because each hides what the other shows:
//!
//! - the *rate*, the mean score, clustered by prompt: ties pull it towards ½;
//! - the *decisive share*, wins / (wins + losses), with Wilson's interval on `n / deff` trials. `deff >= 1` is the design
//!   effect, the clustered variance over the binomial one: with one comparison per prompt it is close to 1.
//!
//! Where all scores are equal the clustered error is 0, which is no statement about the next prompt; the rate's interval
//! is then Wilson's on the number of prompts.
//!
//! Source: Kish 1965, "Survey sampling", for the design effect; the rest as `interval.rs`.
//!
//! Not here: length control (`length_control.rs`), sequential looks (`anytime.rs`), annotators (`clustered.rs`).

use std::hash::Hash;

use serde::Serialize;

use crate::exact::sign_test;
use crate::interval::{Estimate, clustered_mean, members_by_cluster, wilson_ends};
use crate::{Error, check_count, check_values};

/// How often one side won.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct WinRate {
    /// Mean score, ties counted half, interval clustered by prompt.
    pub rate: Estimate,
    /// Clustered standard error of the rate.
    pub se: f64,
    /// Share of wins among the comparisons that are no ties; nothing if all are.
    pub decisive: Option<Estimate>,
    /// Two-sided exact sign test on wins and losses. It takes comparisons as independent.
    pub p_sign: f64,
    /// Scores above ½.
    pub wins: usize,
    /// Scores of ½.
    pub ties: usize,
    /// Scores below ½.
    pub losses: usize,
    /// Prompts.
    pub clusters: usize,
}

/// Win rate from `scores` in `[0, 1]`, `prompt[i]` naming the prompt of `scores[i]`.
///
/// # Panics
///
/// If the lengths differ or `confidence` is not between 0 and 1.
pub fn win_rate<K: Eq + Hash>(scores: &[f64], prompt: &[K], confidence: f64) -> Result<WinRate, Error> {
    check_values("win_rate", scores, "a score in [0, 1]", |x| (0.0..=1.0).contains(&x))?;
    let mean = clustered_mean(scores, prompt, confidence)?;
    let mut rate = mean.mean;
    (rate.low, rate.high) = if mean.se == 0.0 {
        wilson_ends(rate.estimate, mean.clusters as f64, confidence)
    } else {
        (rate.low.max(0.0), rate.high.min(1.0))
    };

    let wins = scores.iter().filter(|&&x| x > 0.5).count();
    let losses = scores.iter().filter(|&&x| x < 0.5).count();
    Ok(WinRate {
        rate,
        se: mean.se,
        decisive: decisive_share(scores, prompt, confidence).ok(),
        p_sign: sign_test(wins as u64, losses as u64).p_two_sided,
        wins,
        ties: scores.len() - wins - losses,
        losses,
        clusters: mean.clusters,
    })
}

fn decisive_share<K: Eq + Hash>(scores: &[f64], prompt: &[K], confidence: f64) -> Result<Estimate, Error> {
    let decided: Vec<usize> = (0..scores.len()).filter(|&i| scores[i] != 0.5).collect();
    check_count("win_rate", "comparisons without a tie", decided.len(), 1)?;
    let wins: Vec<f64> = decided.iter().map(|&i| f64::from(scores[i] > 0.5)).collect();
    let prompts: Vec<&K> = decided.iter().map(|&i| &prompt[i]).collect();
    let n = wins.len() as f64;
    let share = wins.iter().sum::<f64>() / n;
    let deff = match clustered_mean(&wins, &prompts, confidence) {
        Ok(mean) if mean.se > 0.0 => (mean.se * mean.se * n / (share * (1.0 - share))).max(1.0),
        // All on one side, or one prompt only: no more is known than the prompts can say.
        _ => n / members_by_cluster(&prompts, wins.len()).len() as f64,
    };
    let (low, high) = wilson_ends(share, n / deff, confidence);
    Ok(Estimate { estimate: share, low, high, n: wins.len() })
}
