//! How likely a policy is to pass what, before any vote is spent.
//!
//! Criteria are simulated with the code that judges. A value of a bounded measure is its least, its middle or its largest one: a win, a
//! tie or a loss; of a difference, worse, the same or better. `ties` and `discordance` say how often it is the middle, unless a pilot's
//! measures do. An unbounded measure needs a pilot: its spread is the pilot's, and values are normal.
//!
//! Effects are in multiples of what each criterion can detect, `(z_{1-α} + z_{power}) sd / √n`, counted from `-margin`: 0 is a candidate that is
//! just not good enough, and passes a criterion with probability `1 - confidence` at most; at 1 a fixed criterion passes with about the
//! policy's power. The whole policy is simulated with all blocking criteria at the same multiple, independent of each other: measures
//! that go together make the truth lie between that and the weakest criterion.

use polity_stats::{Stream, holm, normal_quantile};
use serde::Serialize;

use super::{Comparator, Criterion, Models, Policy};
use crate::inference::{Inference, Mode};
use crate::{EvalError, Evaluation};

/// What a simulation assumes.
#[derive(Clone, Debug, PartialEq)]
pub struct Assumptions {
    /// Prompts of every criterion; its `n_min` if left out.
    pub prompts: Option<u64>,
    /// Share of values in the middle of their range, of criteria with an absolute limit in the middle; other limits are on
    /// shares of 0 and 1.
    pub ties: f64,
    /// Share of prompts on which two compared models differ.
    pub discordance: f64,
    /// Simulated candidates at each point.
    pub simulations: usize,
    /// Seed.
    pub seed: u64,
}

/// Multiples of the detectable effect that are simulated.
const SCALES: [f64; 6] = [-1.0, 0.0, 0.5, 1.0, 1.5, 2.0];

/// The power of a policy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PolicyPower {
    /// Simulated candidates at each point.
    pub simulations: usize,
    /// The whole, at each multiple.
    pub overall: Vec<PowerPoint>,
    /// Each criterion.
    pub criteria: Vec<CriterionPower>,
}

/// The power of a criterion.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CriterionPower {
    /// Its id.
    pub id: String,
    /// Whether a release needs it.
    pub blocking: bool,
    /// Prompts simulated.
    pub prompts: u64,
    /// The detectable effect, counted from `-margin`; nothing if it could not be simulated.
    pub detectable: Option<f64>,
    /// Why it could not be simulated, if it could not; it counts as passed in the whole.
    pub not_simulated: Option<String>,
    /// At each multiple.
    pub curve: Vec<PowerPoint>,
}

/// One point of a curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PowerPoint {
    /// Multiple of the detectable effect.
    pub scale: f64,
    /// True effect, how much better than what it is compared with; nothing for the whole.
    pub effect: Option<f64>,
    /// How often each answer came.
    pub shares: Shares,
}

/// Shares of the answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Shares {
    /// Passed.
    pub pass: f64,
    /// Failed.
    pub fail: f64,
    /// Neither.
    pub inconclusive: f64,
}

/// How values fall.
#[derive(Clone, Copy, Debug)]
enum Shape {
    /// Least, middle or largest, the middle with probability `still`.
    Three {
        range: [f64; 2],
        still: f64,
    },
    Normal {
        sd: f64,
    },
}

/// What is simulated of a criterion.
struct Plan<'p> {
    criterion: &'p Criterion,
    prompts: u64,
    /// What the effect is counted from.
    edge: f64,
    shape: Shape,
    detectable: f64,
}

/// Simulates a policy; measures of a pilot, where there are any, say how values spread.
pub fn simulate(
    policy: &Policy,
    pilot: Option<(&Models, &[Evaluation])>,
    assume: &Assumptions,
) -> Result<PolicyPower, EvalError> {
    let plans: Vec<Result<Plan<'_>, String>> =
        policy.criteria.iter().map(|criterion| plan(criterion, policy, pilot, assume)).collect();
    let mut counts = vec![[[0_usize; 2]; SCALES.len()]; plans.len()];
    let mut overall = [[0_usize; 2]; SCALES.len()];
    for (s, scale) in SCALES.into_iter().enumerate() {
        for round in 0..assume.simulations {
            let p: Vec<Option<[f64; 2]>> = plans
                .iter()
                .enumerate()
                .map(|(c, plan)| plan.as_ref().ok().map(|plan| plan.draw(scale, c, s, round, assume.seed)))
                .collect();
            let answers = answers(policy, &p);
            for (c, answer) in answers.iter().enumerate() {
                (0..2).for_each(|k| counts[c][s][k] += usize::from(answer[k]));
            }
            let blocking: Vec<[bool; 2]> = (0..plans.len())
                .filter(|&c| policy.criteria[c].blocking && p[c].is_some())
                .map(|c| answers[c])
                .collect();
            let fails = blocking.iter().any(|answer| answer[1]);
            overall[s][0] += usize::from(!fails && blocking.iter().all(|answer| answer[0]));
            overall[s][1] += usize::from(fails);
        }
    }
    let shares = |[pass, fail]: [usize; 2]| {
        let of = |n: usize| n as f64 / assume.simulations as f64;
        Shares { pass: of(pass), fail: of(fail), inconclusive: of(assume.simulations - pass - fail) }
    };
    let criteria = plans
        .iter()
        .zip(&policy.criteria)
        .zip(&counts)
        .map(|((plan, criterion), counts)| {
            let (id, blocking) = (criterion.id.clone(), criterion.blocking);
            match plan {
                Err(why) => CriterionPower {
                    id,
                    blocking,
                    prompts: assume.prompts.unwrap_or(criterion.n_min),
                    detectable: None,
                    not_simulated: Some(why.clone()),
                    curve: vec![],
                },
                Ok(plan) => CriterionPower {
                    id,
                    blocking,
                    prompts: plan.prompts,
                    detectable: Some(plan.detectable),
                    not_simulated: None,
                    curve: SCALES
                        .into_iter()
                        .zip(counts)
                        .map(|(scale, &counts)| PowerPoint {
                            scale,
                            effect: Some(scale * plan.detectable - criterion.margin),
                            shares: shares(counts),
                        })
                        .collect(),
                },
            }
        })
        .collect();
    let overall = SCALES
        .into_iter()
        .zip(overall)
        .map(|(scale, counts)| PowerPoint { scale, effect: None, shares: shares(counts) })
        .collect();
    Ok(PolicyPower { simulations: assume.simulations, overall, criteria })
}

/// Pass and fail of each criterion from its p-values, families corrected.
fn answers(policy: &Policy, p: &[Option<[f64; 2]>]) -> Vec<[bool; 2]> {
    (0..p.len())
        .map(|c| {
            let criterion = &policy.criteria[c];
            let Some(own) = p[c] else { return [false; 2] };
            let corrected = [0, 1].map(|k| match &criterion.family {
                None => own[k],
                Some(_) => {
                    let members: Vec<usize> =
                        (0..p.len()).filter(|&i| policy.criteria[i].family == criterion.family).collect();
                    let all: Vec<f64> = members.iter().map(|&i| p[i].map_or(1.0, |p| p[k])).collect();
                    holm(&all)[members.iter().position(|&i| i == c).expect("a member of its family")]
                }
            });
            let [pass, fail] = corrected.map(|p| p <= 1.0 - criterion.confidence);
            [pass && !fail, fail && !pass]
        })
        .collect()
}

fn plan<'p>(
    criterion: &'p Criterion,
    policy: &Policy,
    pilot: Option<(&Models, &[Evaluation])>,
    assume: &Assumptions,
) -> Result<Plan<'p>, String> {
    let prompts = assume.prompts.unwrap_or(criterion.n_min);
    let edge = criterion.limit.unwrap_or(0.0) - criterion.better.sign() * criterion.margin;
    let relative = criterion.comparator != Comparator::Absolute;
    let measured = pilot.and_then(|(models, evaluations)| {
        evaluations
            .iter()
            .filter(|evaluation| evaluation.model == models.candidate)
            .find_map(|evaluation| evaluation.measure(&criterion.measure, criterion.category.as_deref()))
    });
    let shape = match measured {
        Some(measure) => {
            let own = Inference::of_mean(measure, Mode::Fixed, 1.0 - criterion.confidence)
                .map_err(|e| e.to_string())?;
            let sd = own.se() * (own.prompts() as f64).sqrt();
            match measure.range {
                Some([low, high]) if relative => {
                    Shape::Three { range: [low - high, high - low], still: 1.0 - assume.discordance }
                }
                Some(range @ [low, high]) => {
                    let away = 2.0 * (own.estimate() - 0.5 * (low + high)) / (high - low);
                    let spread = 4.0 * sd * sd / (high - low).powi(2);
                    Shape::Three { range, still: (1.0 - spread - away * away).clamp(0.0, 1.0) }
                }
                None => Shape::Normal { sd: if relative { sd * 2.0_f64.sqrt() } else { sd } },
            }
        }
        None if relative => Shape::Three { range: [-1.0, 1.0], still: 1.0 - assume.discordance },
        None => match criterion.limit {
            Some(limit) if (0.0..=1.0).contains(&limit) => {
                Shape::Three { range: [0.0, 1.0], still: if limit == 0.5 { assume.ties } else { 0.0 } }
            }
            _ => return Err("no share: its spread is known only from measures of a pilot".into()),
        },
    };
    if criterion.mode == Mode::Anytime && shape.range().is_none() {
        return Err("its measure has no range: it cannot be looked at at any time".into());
    }
    let z = normal_quantile(criterion.confidence) + normal_quantile(policy.power);
    let detectable = z * shape.sd(edge) / (prompts as f64).sqrt();
    Ok(Plan { criterion, prompts, edge, shape, detectable })
}

impl Plan<'_> {
    /// p-values for a pass and a fail of one simulated candidate.
    fn draw(&self, scale: f64, criterion: usize, point: usize, round: usize, seed: u64) -> [f64; 2] {
        let sign = self.criterion.better.sign();
        let mean = self.edge + sign * scale * self.detectable;
        let key = ((criterion * SCALES.len() + point) as u64) << 32 | round as u64;
        let mut stream = Stream::new(seed, "power of a policy", key);
        let values: Vec<f64> = (0..self.prompts).map(|_| self.shape.draw(mean, &mut stream)).collect();
        let range = self.shape.range();
        let alpha = 1.0 - self.criterion.confidence;
        // Values that are all equal and unbounded say nothing.
        let Ok(inference) = Inference::of_values(values, range, self.criterion.mode, alpha) else {
            return [1.0; 2];
        };
        let (above, below) = (inference.p_above(self.edge), inference.p_below(self.edge));
        if sign > 0.0 { [above, below] } else { [below, above] }
    }
}

impl Shape {
    fn range(self) -> Option<[f64; 2]> {
        match self {
            Shape::Three { range, .. } => Some(range),
            Shape::Normal { .. } => None,
        }
    }

    /// Probability of the middle at this mean: a mean near an end leaves less room for it.
    fn still(range: [f64; 2], still: f64, mean: f64) -> (f64, f64) {
        let [low, high] = range;
        let away = ((2.0 * mean - low - high) / (high - low)).clamp(-1.0, 1.0);
        (still.min(1.0 - away.abs()), away)
    }

    fn sd(self, mean: f64) -> f64 {
        match self {
            Shape::Normal { sd } => sd,
            Shape::Three { range, still } => {
                let (still, away) = Shape::still(range, still, mean);
                0.5 * (range[1] - range[0]) * (1.0 - still - away * away).max(0.0).sqrt()
            }
        }
    }

    fn draw(self, mean: f64, stream: &mut Stream) -> f64 {
        let u = stream.unit();
        match self {
            // A quantile of 0 is minus infinity.
            Shape::Normal { sd } => mean + sd * normal_quantile(u.max(f64::MIN_POSITIVE)),
            Shape::Three { range: [low, high], still } => {
                let (still, away) = Shape::still([low, high], still, mean);
                if u < still {
                    0.5 * (low + high)
                } else if u < still + 0.5 * (1.0 - still + away) {
                    high
                } else {
                    low
                }
            }
        }
    }
}
