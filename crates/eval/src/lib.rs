//! Judgement: what a model is measured on, what came out, and whether that is enough to release it.
//!
//! Reading order: `measure.rs` (a result and the items behind it), `suite.rs` (what to measure on), `inference.rs` (what items say
//! about a mean), [`gate`] (policy in, verdict out); from answers to measures: [`answers`], [`preferred`] (win rates), [`refusal`] (a classifier
//! of answers with known error rates) and [`refusals`], [`contamination`]; from scores to measures: [`acceptance`] (of a reward model).
//!
//! Everything here is a function of its arguments and of files it is given by name: no clock, no environment, no network, no hidden
//! randomness.
//!
//! Not here: running a model on a suite, judges, releases, the ledger. A measure does not know how its answers were made, and the
//! gate does not know what a measure means.

#![forbid(unsafe_code)]

pub mod acceptance;
pub mod answers;
pub mod contamination;
mod error;
pub mod gate;
mod inference;
mod measure;
pub mod preferred;
pub mod refusal;
pub mod refusals;
pub mod strict;
mod suite;

pub use error::EvalError;
pub use inference::{Inference, Mode};
pub use measure::{Evaluation, Item, Measure};
pub use suite::{Asking, Kind, Reader, Suite, SuiteRow};
