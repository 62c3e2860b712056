//! A policy: what a model must show before it may be released, as TOML.
//!
//! ```toml
//! name = "ours"
//! confidence = 0.95            # of each one-sided decision
//! power = 0.8                  # of the smallest detectable effect
//! valid_days = 14              # how long a verdict may be released on
//! approvals = 2                # people who must approve a release, besides who trained or releases it; 0 if left out
//!
//! [[criterion]]
//! id = "better"
//! measure = "win_rate"
//! category = "helpfulness"     # everything if left out
//! suite = "arena"              # the suite's name; any if left out
//! better = "higher"            # or "lower"
//! comparator = "absolute"      # against `limit`; or "baseline", "last_release": against that model's measure, prompt by prompt
//! limit = 0.5
//! margin = 0.0                 # how much worse than that still passes; below 0: how much better it must be
//! n_min = 200                  # prompts
//! blocking = true              # false: reported, decides nothing
//! family = "categories"        # only where not blocking: Holm's correction over the criteria of the same family
//! mode = "anytime"             # "fixed" if left out: looked at once
//! ```
//!
//! Not here: deciding (`decide.rs`).

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};
use toml::Spanned;

use crate::inference::Mode;
use crate::{EvalError, strict};

/// The policy that ships: `polity gate --show-policy` prints it.
pub const DEFAULT_POLICY: &str = include_str!("default.toml");

/// A checked policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Its name.
    pub name: String,
    /// Hash of its text.
    pub hash: String,
    /// Probability with which the smallest detectable effect is detected.
    pub power: f64,
    /// Days for which a verdict counts.
    pub valid_days: u32,
    /// People who must approve a release.
    pub approvals: u32,
    /// At least one of them blocking.
    pub criteria: Vec<Criterion>,
}

/// One thing that must be shown.
#[derive(Clone, Debug, PartialEq)]
pub struct Criterion {
    /// Unique in the policy.
    pub id: String,
    /// Name of the measure.
    pub measure: String,
    /// Its category; `None` is the one over everything.
    pub category: Option<String>,
    /// Name of the suite that it must be measured on; `None` is any.
    pub suite: Option<String>,
    /// Which way is good.
    pub better: Direction,
    /// What it is compared with.
    pub comparator: Comparator,
    /// The number compared with, if that is absolute.
    pub limit: Option<f64>,
    /// How much worse still passes.
    pub margin: f64,
    /// Of each one-sided decision.
    pub confidence: f64,
    /// Whether a release needs it.
    pub blocking: bool,
    /// Corrected together with others of this name.
    pub family: Option<String>,
    /// Prompts below which nothing is decided.
    pub n_min: u64,
    /// When the data may be looked at.
    pub mode: Mode,
}

/// Which way is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// More is better.
    Higher,
    /// Less is better.
    Lower,
}

impl Direction {
    /// 1 or -1: what turns a difference into "how much better".
    pub fn sign(self) -> f64 {
        match self {
            Direction::Higher => 1.0,
            Direction::Lower => -1.0,
        }
    }
}

/// What a measure is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Comparator {
    /// A number.
    Absolute,
    /// The baseline model's measure.
    Baseline,
    /// The measure of the model released last.
    LastRelease,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPolicy {
    name: Spanned<String>,
    confidence: Option<Spanned<f64>>,
    power: Option<Spanned<f64>>,
    valid_days: Option<Spanned<u32>>,
    approvals: Option<u32>,
    mode: Option<Mode>,
    criterion: Spanned<Vec<Spanned<RawCriterion>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCriterion {
    id: Spanned<String>,
    measure: String,
    category: Option<String>,
    suite: Option<String>,
    better: Direction,
    comparator: Spanned<Comparator>,
    limit: Option<Spanned<f64>>,
    margin: Option<Spanned<f64>>,
    confidence: Option<Spanned<f64>>,
    blocking: Option<bool>,
    family: Option<Spanned<String>>,
    n_min: Spanned<u64>,
    mode: Option<Mode>,
}

const CONFIDENCE: f64 = 0.95;
const POWER: f64 = 0.8;
const VALID_DAYS: u32 = 14;

impl Policy {
    /// Reads and checks a policy.
    pub fn parse(file: &Path, text: &str) -> Result<Policy, EvalError> {
        let raw: RawPolicy = strict::parse(file, text)?;
        let check = Check { file, text };
        let confidence = check.share("confidence", raw.confidence, CONFIDENCE)?;
        let power = check.share("power", raw.power, POWER)?;
        let valid_days = match raw.valid_days {
            Some(days) if *days.get_ref() == 0 => {
                return Err(check.wrong(&days.span(), "`valid_days` is 0; expected at least 1"));
            }
            days => days.map_or(VALID_DAYS, Spanned::into_inner),
        };
        let place = raw.criterion.span();
        let mut criteria: Vec<Criterion> = Vec::new();
        let mut ids = HashSet::new();
        for raw_criterion in raw.criterion.into_inner() {
            let span = raw_criterion.span();
            let id = raw_criterion.get_ref().id.clone();
            if !ids.insert(id.get_ref().clone()) {
                return Err(check.wrong(&id.span(), &format!("a second criterion `{}`", id.get_ref())));
            }
            let mode = raw.mode.unwrap_or_default();
            let criterion = check.criterion(&span, raw_criterion.into_inner(), confidence, mode)?;
            let relatives = criteria.iter().filter(|other| other.family == criterion.family);
            if criterion.family.is_some()
                && relatives.clone().any(|other| other.confidence != criterion.confidence)
            {
                return Err(check.wrong(&span, "a family has one `confidence`: it is corrected together"));
            }
            criteria.push(criterion);
        }
        if !criteria.iter().any(|criterion| criterion.blocking) {
            return Err(check.wrong(&place, "no blocking criterion: this policy would pass anything"));
        }
        Ok(Policy {
            name: raw.name.into_inner(),
            hash: blake3::hash(text.as_bytes()).to_hex().to_string(),
            power,
            valid_days,
            approvals: raw.approvals.unwrap_or(0),
            criteria,
        })
    }
}

/// Says where in the document something is wrong.
struct Check<'t> {
    file: &'t Path,
    text: &'t str,
}

impl Check<'_> {
    fn wrong(&self, span: &Range<usize>, message: &str) -> EvalError {
        strict::at(self.file, self.text, span, message)
    }

    fn share(&self, key: &str, value: Option<Spanned<f64>>, default: f64) -> Result<f64, EvalError> {
        let Some(value) = value else { return Ok(default) };
        let number = *value.get_ref();
        match number > 0.5 && number < 1.0 {
            true => Ok(number),
            false => Err(self.wrong(
                &value.span(),
                &format!("`{key}` is {number}; expected a number above 0.5 and below 1, such as {default}"),
            )),
        }
    }

    fn finite(&self, key: &str, value: &Spanned<f64>) -> Result<f64, EvalError> {
        match value.get_ref().is_finite() {
            true => Ok(*value.get_ref()),
            false => {
                Err(self.wrong(&value.span(), &format!("`{key}` is {}; expected a number", value.get_ref())))
            }
        }
    }

    fn criterion(
        &self,
        span: &Range<usize>,
        raw: RawCriterion,
        confidence: f64,
        mode: Mode,
    ) -> Result<Criterion, EvalError> {
        let comparator = *raw.comparator.get_ref();
        let limit = match (comparator, &raw.limit) {
            (Comparator::Absolute, Some(limit)) => Some(self.finite("limit", limit)?),
            (Comparator::Absolute, None) => {
                return Err(self.wrong(span, "missing key `limit`: what an absolute criterion compares with"));
            }
            (_, Some(limit)) => {
                let message = "`limit` is for comparator = \"absolute\"; against a model, `margin` says how much \
                               worse still passes";
                return Err(self.wrong(&limit.span(), message));
            }
            (_, None) => None,
        };
        let blocking = raw.blocking.unwrap_or(true);
        if let Some(family) = &raw.family
            && blocking
        {
            let message = "`family` is for blocking = false: that all blocking criteria hold needs no correction \
                           (intersection-union)";
            return Err(self.wrong(&family.span(), message));
        }
        if *raw.n_min.get_ref() < 2 {
            let message = format!("`n_min` is {}; expected at least 2 prompts", raw.n_min.get_ref());
            return Err(self.wrong(&raw.n_min.span(), &message));
        }
        Ok(Criterion {
            id: raw.id.into_inner(),
            measure: raw.measure,
            category: raw.category,
            suite: raw.suite,
            better: raw.better,
            comparator,
            limit,
            margin: raw.margin.map_or(Ok(0.0), |margin| self.finite("margin", &margin))?,
            confidence: self.share("confidence", raw.confidence, confidence)?,
            blocking,
            family: raw.family.map(Spanned::into_inner),
            n_min: raw.n_min.into_inner(),
            mode: raw.mode.unwrap_or(mode),
        })
    }
}
