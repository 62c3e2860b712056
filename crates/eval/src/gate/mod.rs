//! The gate: a pure function of a policy and of measures.
//!
//! Each criterion asks whether a model is *good enough*: with `e` how much better it is than what it is compared with (in the
//! direction that is good),
//!
//! ```text
//! pass            lower bound of e >= -margin
//! fail            upper bound of e <  -margin
//! inconclusive    neither; or fewer prompts than n_min, or not measured.    It does not ship.
//! ```
//!
//! Bounds are one-sided, each with the criterion's confidence: a model that is just not good enough passes with probability
//! `1 - confidence` at most. The whole passes if every blocking criterion does, and its own error is no larger
//! (intersection-union); it fails if one of them fails. Criteria of a family are for exploring and are corrected by Holm's method.

mod decide;
mod policy;
mod simulate;

pub use decide::{CriterionVerdict, Decision, Effect, Models, Shown, Verdict, judge};
pub use policy::{Comparator, Criterion, DEFAULT_POLICY, Direction, Policy};
pub use simulate::{Assumptions, CriterionPower, PolicyPower, PowerPoint, Shares, simulate};
