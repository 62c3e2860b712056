//! A ranking of responses that meet on many prompts, as models do.

use serde::Serialize;

use super::{PanelSettings, side_won};
use crate::Error;
use crate::agreement::Undefined;
use crate::bradley_terry::{
    BradleyTerry, BradleyTerryConfig, ELO_PER_NAT, Match, Ties, elo, normal_interval,
};
use crate::vote::Votes;

/// More responses than this are not models.
const RANKED_MAX: usize = 200;

/// Bradley-Terry strengths, or why there are none.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ranking {
    /// The strongest first.
    pub responses: Vec<Ranked>,
    /// Pull of the left side in log-odds, and its standard error; none where it cannot be told from the strengths, since who is on the
    /// left decides who is shown.
    pub left_side: Option<(f64, f64)>,
    /// Why there is no ranking.
    pub undefined: Option<Undefined>,
}

/// One response.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ranked {
    /// Its id.
    pub name: String,
    /// Votes that it was part of.
    pub votes: usize,
    /// Strength in log-odds above the mean.
    pub strength: f64,
    /// Standard error, clustered by prompt and annotator.
    pub se: f64,
    /// On Elo's scale.
    pub elo: f64,
    /// Interval of the Elo.
    pub elo_interval: (f64, f64),
}

/// Ranks the responses if they meet on several prompts each: Bradley-Terry with ties as half, and a side's pull
/// if it can be told from the strengths.
pub(super) fn ranking(votes: &Votes, standing: &[usize], settings: &PanelSettings) -> Option<Ranking> {
    let items = votes.responses.list().len();
    let (prompts, comparisons) = (votes.prompts.list().len(), votes.comparisons.len());
    // Each response would be in 2 comparisons / items of them; models are in many.
    if !(2..=RANKED_MAX).contains(&items) || comparisons < 2 * items || prompts < 2 {
        return None;
    }
    let mut counts = vec![0; items];
    let (mut matches, mut prompt, mut annotator) = (Vec::new(), Vec::new(), Vec::new());
    for vote in standing.iter().map(|&i| &votes.votes[i]) {
        let comparison = votes.comparisons[vote.comparison as usize];
        let (first, second) = (comparison.first as usize, comparison.second as usize);
        let (left, right) = if vote.first_on_left { (first, second) } else { (second, first) };
        matches.push(Match { left, right, outcome: side_won(vote), weight: 1.0 });
        prompt.push(comparison.prompt);
        annotator.push(vote.annotator);
        counts[left] += 1;
        counts[right] += 1;
    }
    Some(match fit(items, &matches, &prompt, &annotator) {
        Ok((fit, covariance)) => {
            let se = fit.strength_se(&covariance);
            let side_se = || covariance.last().expect("the side's variance").max(0.0).sqrt();
            let mut responses: Vec<Ranked> = (0..items)
                .map(|i| {
                    let (low, high) = normal_interval(fit.strength[i], se[i], settings.confidence);
                    Ranked {
                        name: votes.responses.name(i as u32).to_owned(),
                        votes: counts[i],
                        strength: fit.strength[i],
                        se: se[i],
                        elo: elo(fit.strength[i]),
                        elo_interval: (ELO_PER_NAT * low + 1000.0, ELO_PER_NAT * high + 1000.0),
                    }
                })
                .collect();
            responses.sort_by(|a, b| b.strength.total_cmp(&a.strength));
            Ranking { responses, left_side: fit.side.map(|side| (side, side_se())), undefined: None }
        }
        Err(error) => Ranking {
            responses: Vec::new(),
            left_side: None,
            undefined: Some(Undefined::NoFit { why: why(&error, votes) }),
        },
    })
}

fn fit(
    items: usize,
    matches: &[Match],
    prompt: &[u32],
    annotator: &[u32],
) -> Result<(BradleyTerry, Vec<f64>), Error> {
    let config = BradleyTerryConfig { side: true, ..BradleyTerryConfig::plain(Ties::Half) };
    let fit = match BradleyTerry::fit(items, matches, config) {
        Err(Error::SideConfounded) => {
            BradleyTerry::fit(items, matches, BradleyTerryConfig { side: false, ..config })?
        }
        fit => fit?,
    };
    let covariance = fit
        .clustered_two_way(matches, prompt, annotator)
        // One annotator is no cluster of annotators.
        .or_else(|_| fit.clustered(matches, prompt))?;
    Ok((fit, covariance))
}

/// The error with the responses' names for their numbers.
fn why(error: &Error, votes: &Votes) -> String {
    let Error::Disconnected { unbeaten, winless } = error else { return error.to_string() };
    let names = |numbers: &[usize]| {
        let mut names: Vec<&str> = numbers.iter().map(|&i| votes.responses.name(i as u32)).collect();
        let more = names.len().saturating_sub(5);
        names.truncate(5);
        names.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
    };
    match (unbeaten.as_slice(), winless.as_slice()) {
        ([], winless) => format!("{} never won or tied against the others", names(winless)),
        (unbeaten, _) => format!("{} never lost or tied against the others", names(unbeaten)),
    }
}
