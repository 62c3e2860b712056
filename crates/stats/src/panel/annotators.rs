//! One annotator at a time: with the others, by the model, by side, by the clock, over time.

use std::collections::HashMap;

use serde::Serialize;

use super::{PanelSettings, measured};
use crate::agreement::{Measured, SelfConsistency, Table, with_majority};
use crate::crowd_bt::Reliability;
use crate::crowd_pairs::CrowdPairs;
use crate::drift::{AccuracyMonitor, drift_p_value};
use crate::multiple::benjamini_hochberg;
use crate::side_bias::{SideBias, side_bias};
use crate::vote::Votes;

/// Permutations of an annotator's votes.
const DRIFT_PERMUTATIONS: usize = 999;
/// Comparisons with a majority below which a look at drift says nothing.
const DRIFT_ITEMS_MIN: usize = 30;

/// All about one annotator.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AnnotatorReport {
    /// Who.
    pub name: String,
    /// Votes that stand.
    pub votes: usize,
    /// Of them, for neither side.
    pub ties: usize,
    /// Skips and flags.
    pub unanswered: usize,
    /// Comparisons on which the others have a majority.
    pub majority_items: usize,
    /// Of them, those where the annotator is with it.
    pub majority_agreed: usize,
    /// The share, with Wilson's interval.
    #[serde(serialize_with = "measured")]
    pub majority: Measured,
    /// Reliability and side logit of the model.
    pub reliability: Option<Reliability>,
    /// Interval of the reliability.
    pub reliability_interval: Option<(f64, f64)>,
    /// The test for a lean to one side.
    pub side_bias: SideBias,
    /// Answers to comparisons seen again.
    pub self_consistency: SelfConsistency,
    /// Time on task, if recorded.
    pub speed: Option<Speed>,
    /// Answers to comparisons with a known answer, if there were any.
    pub calibration: Option<Calibration>,
    /// A look at whether agreement with the majority fell over time, if there are enough votes.
    pub drift: Option<Drift>,
}

/// How fast an annotator votes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Speed {
    /// Median time on task in milliseconds.
    pub median_ms: u64,
    /// Share of votes below [`PanelSettings::fast_ms`].
    pub fast_share: f64,
    /// Share of the fast votes that are with the majority of the others, where there is one.
    pub fast_with_majority: Option<f64>,
}

/// Answers to calibration comparisons.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Calibration {
    /// Right ones.
    pub right: u64,
    /// All.
    pub seen: u64,
    /// What the accuracy is tested against.
    pub floor: f64,
    /// Anytime-valid p-value of an accuracy of at least the floor.
    pub p_anytime: f64,
}

/// Whether the order of an annotator's agreements looks like a fall.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Drift {
    /// Permutation p-value of a fall.
    pub p: f64,
    /// The same, adjusted for the number of annotators.
    pub p_adjusted: f64,
}

/// All annotators, in the order of [`Votes::annotators`].
pub(super) fn reports(
    votes: &Votes,
    sides: &Table,
    standing: &[usize],
    consistency: &[SelfConsistency],
    crowd: Option<&CrowdPairs>,
    settings: &PanelSettings,
) -> Vec<AnnotatorReport> {
    let annotators = votes.annotators.list().len();
    let mut own: Vec<Vec<usize>> = vec![Vec::new(); annotators];
    standing.iter().for_each(|&i| own[votes.votes[i].annotator as usize].push(i));
    let split = |of: &[usize]| {
        let strengths = of.iter().map(|&i| votes.votes[i].left_strength());
        strengths.fold((0, 0), |(left, all), s| (left + usize::from(s > 0), all + usize::from(s != 0)))
    };
    let biases = side_bias(&own.iter().map(|of| split(of)).collect::<Vec<_>>());
    let majorities = with_majority(sides, settings.confidence);
    let with: Vec<HashMap<usize, bool>> =
        majorities.iter().map(|majority| majority.history.iter().copied().collect()).collect();
    let drifts = drifts(votes, &own, &with, settings);
    let calibrations = calibrations(votes, settings);

    majorities
        .into_iter()
        .enumerate()
        .map(|(w, majority)| {
            let reliability = crowd.map(|crowd| crowd.annotators[w]).filter(|_| !own[w].is_empty());
            AnnotatorReport {
                name: votes.annotators.name(w as u32).to_owned(),
                votes: own[w].len(),
                ties: own[w].len() - biases[w].decided,
                unanswered: votes.unanswered[w],
                majority_items: majority.items,
                majority_agreed: majority.agreed,
                majority: majority.share,
                reliability,
                reliability_interval: reliability
                    .and(crowd)
                    .and_then(|crowd| crowd.interval(w, settings.confidence)),
                side_bias: biases[w],
                self_consistency: consistency[w],
                speed: speed(votes, &own[w], &with[w], settings.fast_ms),
                calibration: calibrations[w],
                drift: drifts[w],
            }
        })
        .collect()
}

fn speed(votes: &Votes, own: &[usize], with: &HashMap<usize, bool>, fast_ms: u64) -> Option<Speed> {
    let timed: Vec<(u64, Option<bool>)> = own
        .iter()
        .filter_map(|&i| {
            let vote = &votes.votes[i];
            Some((vote.duration_ms?, with.get(&(vote.comparison as usize)).copied()))
        })
        .collect();
    let mut durations: Vec<u64> = timed.iter().map(|&(duration, _)| duration).collect();
    durations.sort_unstable();
    let median_ms = *durations.get(durations.len().checked_sub(1)? / 2)?;
    let fast: Vec<Option<bool>> =
        timed.iter().filter(|(ms, _)| *ms < fast_ms).map(|&(_, with)| with).collect();
    let compared: Vec<bool> = fast.iter().copied().flatten().collect();
    let share = |part: usize, all: usize| part as f64 / all as f64;
    Some(Speed {
        median_ms,
        fast_share: share(fast.len(), durations.len()),
        fast_with_majority: (!compared.is_empty())
            .then(|| share(compared.iter().filter(|&&with| with).count(), compared.len())),
    })
}

/// Agreements in the order of time, or of arrival where a vote has no time.
fn drifts(
    votes: &Votes,
    own: &[Vec<usize>],
    with: &[HashMap<usize, bool>],
    settings: &PanelSettings,
) -> Vec<Option<Drift>> {
    let p: Vec<Option<f64>> = own
        .iter()
        .zip(with)
        .map(|(own, with)| {
            let mut order = own.clone();
            if own.iter().all(|&i| votes.votes[i].time_ms.is_some()) {
                order.sort_by_key(|&i| votes.votes[i].time_ms);
            }
            let agreed: Vec<bool> = order
                .iter()
                .filter_map(|&i| with.get(&(votes.votes[i].comparison as usize)).copied())
                .collect();
            if agreed.len() < DRIFT_ITEMS_MIN {
                return None;
            }
            drift_p_value(&agreed, DRIFT_PERMUTATIONS, settings.seed)
        })
        .collect();
    let tested: Vec<usize> = (0..p.len()).filter(|&w| p[w].is_some()).collect();
    let adjusted = benjamini_hochberg(&tested.iter().filter_map(|&w| p[w]).collect::<Vec<_>>());
    let mut drifts = vec![None; p.len()];
    for (&w, p_adjusted) in tested.iter().zip(adjusted) {
        drifts[w] = p[w].map(|p| Drift { p, p_adjusted });
    }
    drifts
}

fn calibrations(votes: &Votes, settings: &PanelSettings) -> Vec<Option<Calibration>> {
    let mut order: Vec<usize> = (0..votes.calibration.len()).collect();
    order.sort_by_key(|&i| votes.calibration[i].time_ms); // Stable: without times, the order of arrival.
    let mut monitors: Vec<Option<AccuracyMonitor>> = vec![None; votes.annotators.list().len()];
    for vote in order.into_iter().map(|i| votes.calibration[i]) {
        monitors[vote.annotator as usize]
            .get_or_insert_with(|| AccuracyMonitor::new(settings.calibration_floor))
            .push(vote.right);
    }
    let report = |monitor: AccuracyMonitor| Calibration {
        right: monitor.right(),
        seen: monitor.seen(),
        floor: settings.calibration_floor,
        p_anytime: monitor.p_anytime(),
    };
    monitors.into_iter().map(|monitor| monitor.map(report)).collect()
}
