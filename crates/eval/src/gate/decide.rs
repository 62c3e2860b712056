//! From measures to a verdict.

use std::collections::BTreeMap;

use polity_stats::{holm, intersection_union};
use serde::{Deserialize, Serialize};

use super::{Comparator, Criterion, Direction, Policy};
use crate::inference::{Inference, Mode};
use crate::{EvalError, Evaluation, Measure};

/// The models that are compared, by hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Models {
    /// Who wants to be released.
    pub candidate: String,
    /// What it started from, if a criterion compares with it.
    pub baseline: Option<String>,
    /// What is released now.
    pub last_release: Option<String>,
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// Good enough.
    Pass,
    /// Not good enough.
    Fail,
    /// The data do not say; it does not ship.
    Inconclusive,
}

impl Decision {
    /// As JSON spells it.
    pub fn name(self) -> &'static str {
        match self {
            Decision::Pass => "pass",
            Decision::Fail => "fail",
            Decision::Inconclusive => "inconclusive",
        }
    }
}

/// What the gate says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Of the whole policy.
    pub verdict: Decision,
    /// Why, one sentence for each criterion that decided it.
    pub reasons: Vec<String>,
    /// Probability of evidence this good if the candidate is not good enough in at least one blocking criterion.
    pub p: f64,
    /// Name of the policy.
    pub policy: String,
    /// Hash of its text.
    pub policy_hash: String,
    /// Days for which it counts.
    pub valid_days: u32,
    /// People who must approve a release on it.
    pub approvals: u32,
    /// Hash of the candidate.
    pub candidate: String,
    /// Hash of the baseline, if there is one.
    pub baseline: Option<String>,
    /// Hash of the model released last, if there is one.
    pub last_release: Option<String>,
    /// Keys of the evaluations it was computed from.
    pub evaluations: Vec<String>,
    /// Each criterion, in the policy's order.
    pub criteria: Vec<CriterionVerdict>,
}

/// What the gate says of one criterion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CriterionVerdict {
    /// Its id.
    pub id: String,
    /// The answer.
    pub verdict: Decision,
    /// Why, in one sentence.
    pub reason: String,
    /// Whether a release needs it.
    pub blocking: bool,
    /// When the data may be looked at.
    pub mode: Mode,
    /// Of each one-sided decision.
    pub confidence: f64,
    /// Which way is good.
    pub better: Direction,
    /// What it was compared with.
    pub comparator: Comparator,
    /// How much worse still passes.
    pub margin: f64,
    /// The candidate's measure; nothing if it was not measured.
    pub measure: Option<Shown>,
    /// The number it was compared with: the limit, or the other model's measure on the shared prompts.
    pub reference: Option<f64>,
    /// How much better; nothing if not measured.
    pub effect: Option<Effect>,
}

/// A measure without its items.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shown {
    /// Such as `win_rate`.
    pub name: String,
    /// Such as `helpfulness`.
    pub category: Option<String>,
    /// Such as `share`.
    pub unit: String,
    /// The estimate.
    pub estimate: f64,
    /// Lower bound, one-sided.
    pub low: f64,
    /// Upper bound, one-sided.
    pub high: f64,
    /// Values behind it.
    pub n: u64,
}

/// How much better a candidate is, in the direction that is good, and how sure that is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Effect {
    /// The estimate.
    pub estimate: f64,
    /// One-sided bound; a pass needs it to be at least `-margin`.
    pub low: f64,
    /// One-sided bound; a fail needs it to be below `-margin`.
    pub high: f64,
    /// Prompts behind it.
    pub prompts: u64,
    /// Probability of evidence this good if the candidate is just not good enough.
    pub p_pass: f64,
    /// Probability of evidence this bad if it is just good enough.
    pub p_fail: f64,
    /// The same after the family's correction, where there is a family.
    pub p_adjusted: Option<[f64; 2]>,
    /// The smallest effect, counted from `-margin`, that these data would have shown with the policy's power.
    pub detectable: f64,
    /// Prompts that would settle it with the policy's power, if the estimate is right; nothing if none would, or it is settled.
    pub prompts_to_settle: Option<u64>,
}

/// Judges a candidate.
///
/// Measures are found by model, name and category. An error is a contradiction (two evaluations with the same measure, other
/// prompts, other settings) or items that no number can be computed from; what is not there is inconclusive.
pub fn judge(policy: &Policy, models: &Models, evaluations: &[Evaluation]) -> Result<Verdict, EvalError> {
    let mut used: Vec<String> = Vec::new();
    let mut criteria = Vec::with_capacity(policy.criteria.len());
    for criterion in &policy.criteria {
        criteria.push(judge_one(criterion, policy, models, evaluations, &mut used)?);
    }
    correct_families(policy, &mut criteria);
    policy.criteria.iter().zip(&mut criteria).for_each(|(asked, said)| settle(asked, said));

    let blocking = || criteria.iter().filter(|said| said.blocking);
    let verdict = if blocking().any(|said| said.verdict == Decision::Fail) {
        Decision::Fail
    } else if blocking().all(|said| said.verdict == Decision::Pass) {
        Decision::Pass
    } else {
        Decision::Inconclusive
    };
    let reasons = blocking()
        .filter(|said| said.verdict == verdict)
        .map(|said| format!("{}: {}", said.id, said.reason))
        .collect();
    let p: Vec<f64> =
        blocking().map(|said| said.effect.as_ref().map_or(1.0, |effect| effect.p_pass)).collect();
    used.sort();
    used.dedup();
    Ok(Verdict {
        verdict,
        reasons,
        p: intersection_union(&p),
        policy: policy.name.clone(),
        policy_hash: policy.hash.clone(),
        valid_days: policy.valid_days,
        approvals: policy.approvals,
        candidate: models.candidate.clone(),
        baseline: models.baseline.clone(),
        last_release: models.last_release.clone(),
        evaluations: used,
        criteria,
    })
}

fn judge_one(
    criterion: &Criterion,
    policy: &Policy,
    models: &Models,
    evaluations: &[Evaluation],
    used: &mut Vec<String>,
) -> Result<CriterionVerdict, EvalError> {
    let mut said = CriterionVerdict {
        id: criterion.id.clone(),
        verdict: Decision::Inconclusive,
        reason: String::new(),
        blocking: criterion.blocking,
        mode: criterion.mode,
        confidence: criterion.confidence,
        better: criterion.better,
        comparator: criterion.comparator,
        margin: criterion.margin,
        measure: None,
        reference: criterion.limit,
        effect: None,
    };
    let alpha = 1.0 - criterion.confidence;
    let found = find(criterion, &models.candidate, evaluations)?;
    let Some((evaluation, measure)) = found else {
        said.reason = format!("the candidate's {} was not measured", name_of(criterion));
        return Ok(said);
    };
    used.push(evaluation.key());
    let own = Inference::of_mean(measure, criterion.mode, alpha)?;
    let (low, high) = own.bounds();
    said.measure = Some(Shown {
        name: measure.name.clone(),
        category: measure.category.clone(),
        unit: measure.unit.clone(),
        estimate: own.estimate(),
        low,
        high,
        n: measure.n,
    });

    let sign = criterion.better.sign();
    let other = match criterion.comparator {
        Comparator::Absolute => None,
        Comparator::Baseline => Some(("baseline", &models.baseline)),
        Comparator::LastRelease => Some(("last release", &models.last_release)),
    };
    // The inference is of a mean minus `zero`.
    let (inference, zero) = match other {
        None => (own, criterion.limit.expect("checked when the policy was read")),
        Some((who, None)) => {
            said.reason = format!("there is no {who} to compare with");
            return Ok(said);
        }
        Some((who, Some(model))) => {
            let Some((theirs, reference)) = find(criterion, model, evaluations)? else {
                said.reason = format!("the {who}'s {} was not measured", name_of(criterion));
                return Ok(said);
            };
            comparable(criterion, evaluation, theirs)?;
            used.push(theirs.key());
            let difference = Inference::of_difference(measure, reference, criterion.mode, alpha)?;
            said.reference = Some(measure.estimate - difference.estimate());
            (difference, 0.0)
        }
    };
    said.effect = Some(effect(criterion, policy, &inference, zero, sign));
    Ok(said)
}

/// The effect, turned so that more is better.
fn effect(criterion: &Criterion, policy: &Policy, inference: &Inference, zero: f64, sign: f64) -> Effect {
    let (low, high) = inference.bounds();
    let (low, high) = if sign > 0.0 { (low - zero, high - zero) } else { (zero - high, zero - low) };
    let estimate = sign * (inference.estimate() - zero);
    // What the mean is compared with, margin and all.
    let edge = zero - sign * criterion.margin;
    let (above, below) = (inference.p_above(edge), inference.p_below(edge));
    let (p_pass, p_fail) = if sign > 0.0 { (above, below) } else { (below, above) };
    let distance = estimate + criterion.margin;
    Effect {
        estimate,
        low,
        high,
        prompts: inference.prompts() as u64,
        p_pass,
        p_fail,
        p_adjusted: None,
        detectable: (estimate - low) + polity_stats::normal_quantile(policy.power) * inference.se(),
        prompts_to_settle: inference.prompts_for(distance.abs(), policy.power),
    }
}

fn correct_families(policy: &Policy, criteria: &mut [CriterionVerdict]) {
    let mut families: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (i, criterion) in policy.criteria.iter().enumerate() {
        if let Some(family) = &criterion.family {
            families.entry(family).or_default().push(i);
        }
    }
    for members in families.into_values() {
        // What was not measured counts among the tests: leaving a criterion out must not make the others easier.
        let p = |of: fn(&Effect) -> f64| -> Vec<f64> {
            holm(&members.iter().map(|&i| criteria[i].effect.as_ref().map_or(1.0, of)).collect::<Vec<_>>())
        };
        let (pass, fail) = (p(|effect| effect.p_pass), p(|effect| effect.p_fail));
        for (k, &i) in members.iter().enumerate() {
            if let Some(effect) = &mut criteria[i].effect {
                effect.p_adjusted = Some([pass[k], fail[k]]);
            }
        }
    }
}

/// Turns an effect into an answer with its reason.
fn settle(asked: &Criterion, said: &mut CriterionVerdict) {
    let (Some(effect), Some(shown)) = (&mut said.effect, &said.measure) else { return };
    let alpha = 1.0 - asked.confidence;
    let (passes, fails) = match effect.p_adjusted {
        Some([pass, fail]) => (pass <= alpha, fail <= alpha),
        None => (effect.low >= -asked.margin, effect.high < -asked.margin),
    };
    let against = match (asked.comparator, said.reference) {
        (Comparator::Absolute, _) => String::new(),
        (Comparator::Baseline, _) => " than the baseline".into(),
        (Comparator::LastRelease, _) => " than the last release".into(),
    };
    let absolute = asked.comparator == Comparator::Absolute;
    let unit = if shown.unit == "share" { String::new() } else { format!(" {}", shown.unit) };
    // In the measure's own terms.
    let value = |effect: f64| match (absolute, asked.limit) {
        (true, Some(limit)) => format!("{}{unit}", number(limit + asked.better.sign() * effect)),
        _ => format!("{}{unit} {}", number(effect.abs()), if effect < 0.0 { "worse" } else { "better" }),
    };
    // An effect of at least -2 is at most 2 worse.
    let bound = |effect: f64, lower: bool| {
        let up = if absolute { asked.better == Direction::Higher } else { effect >= 0.0 };
        format!("{} {}", if up == lower { "at least" } else { "at most" }, value(effect))
    };
    let needed = match absolute {
        true => value(-asked.margin),
        false => bound(-asked.margin, true),
    };
    let percent = number(100.0 * asked.confidence);
    if effect.prompts < asked.n_min {
        said.reason = format!(
            "{} prompts, and the policy asks for {}: {} more",
            effect.prompts,
            asked.n_min,
            asked.n_min - effect.prompts
        );
        effect.prompts_to_settle = Some(effect.prompts_to_settle.unwrap_or(0).max(asked.n_min));
        return;
    }
    (said.verdict, said.reason) = match (passes, fails) {
        (true, false) => (
            Decision::Pass,
            format!("{}{against} with {percent} % confidence, needed {needed}", bound(effect.low, true)),
        ),
        (false, true) => (
            Decision::Fail,
            format!("{}{against} with {percent} % confidence, needed {needed}", bound(effect.high, false)),
        ),
        // An anytime-valid interval that has crossed itself: the mean moved while the votes came in.
        (true, true) => (
            Decision::Inconclusive,
            "the values have no common mean: early and late ones contradict each other".to_owned(),
        ),
        (false, false) => {
            let more = effect.prompts_to_settle.map(|n| n.saturating_sub(effect.prompts).max(1));
            let settle = match more {
                Some(more) => format!("about {more} more prompts would settle it if the estimate is right"),
                None => {
                    "the estimate lies on what is needed: no number of prompts is likely to settle it".into()
                }
            };
            let corrected = if effect.p_adjusted.is_some() { ", corrected for its family" } else { "" };
            (
                Decision::Inconclusive,
                format!(
                    "between {} and {}{against}{corrected}, needed {needed}; {settle}",
                    value(effect.low),
                    value(effect.high)
                ),
            )
        }
    };
    if said.verdict != Decision::Inconclusive {
        effect.prompts_to_settle = None;
    }
}

/// Four digits are enough for a sentence.
fn number(x: f64) -> String {
    let digits = if x == 0.0 { 0 } else { (3 - x.abs().log10().floor() as i32).clamp(0, 6) };
    let text = format!("{x:.*}", digits as usize);
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

fn name_of(criterion: &Criterion) -> String {
    match &criterion.category {
        Some(category) => format!("{} ({category})", criterion.measure),
        None => criterion.measure.clone(),
    }
}

/// The one evaluation of this model that has the measure.
fn find<'e>(
    criterion: &Criterion,
    model: &str,
    evaluations: &'e [Evaluation],
) -> Result<Option<(&'e Evaluation, &'e Measure)>, EvalError> {
    let of_model = evaluations.iter().filter(|evaluation| {
        let wanted = criterion.suite.is_none() || evaluation.suite_name == criterion.suite;
        wanted && evaluation.model == model
    });
    let mut found = of_model.filter_map(|evaluation| {
        let measure = evaluation.measure(&criterion.measure, criterion.category.as_deref())?;
        Some((evaluation, measure))
    });
    let first = found.next();
    match (first, found.find(|(other, _)| Some(other.key()) != first.map(|(one, _)| one.key()))) {
        (Some((one, _)), Some((other, _))) => Err(EvalError::Criterion {
            criterion: criterion.id.clone(),
            message: format!(
                "{} of model {} was measured twice, on suites {} and {} or with other settings; give one of them, or name the criterion's `suite`",
                name_of(criterion),
                short(model),
                short(&one.suite),
                short(&other.suite)
            ),
        }),
        _ => Ok(first),
    }
}

/// Two models can be compared where everything but the model is the same.
fn comparable(criterion: &Criterion, ours: &Evaluation, theirs: &Evaluation) -> Result<(), EvalError> {
    let wrong = |message: String| Err(EvalError::Criterion { criterion: criterion.id.clone(), message });
    if ours.suite != theirs.suite {
        return wrong(format!(
            "the candidate was measured on suite {} and the other model on {}; measure both on the same",
            short(&ours.suite),
            short(&theirs.suite)
        ));
    }
    let keys = ours.settings.keys().chain(theirs.settings.keys());
    match keys.into_iter().find(|key| ours.settings.get(*key) != theirs.settings.get(*key)) {
        Some(key) => {
            wrong(format!("the two models were measured with another `{key}`; measure both with the same"))
        }
        None => Ok(()),
    }
}

fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}
