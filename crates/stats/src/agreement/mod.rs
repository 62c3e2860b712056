//! How far annotators agree beyond chance.
//!
//! A [`Table`] has items, annotators and levels. Every figure is a function of sums over items, so its interval is the
//! bootstrap over items ([`bootstrap_sums`]): who voted on an item shares its difficulty, and items are what one would draw
//! again. With `n_ik` the number of annotators who gave item `i` level `k`, and `n_i = Σ_k n_ik`:
//!
//! ```text
//! raw       P̄  = mean over items with n_i >= 2 of P_i,   P_i = Σ_k n_ik (n_ik - 1) / (n_i (n_i - 1))
//! Fleiss    κ  = (P̄ - Σ p_k²) / (1 - Σ p_k²),            p_k = Σ_i n_ik / Σ_i n_i over the same items
//! AC1       γ  = (P̄ - e) / (1 - e),   e = Σ π_k (1 - π_k) / (K - 1),   π_k = mean over all items of n_ik / n_i
//! AC2          the same with P_i = Σ_k n_ik (Σ_l w_kl n_il - 1) / (n_i (n_i - 1)),   e = Σ_kl w_kl Σ π_k (1 - π_k) / (K (K - 1))
//! weights   w_kl = 1 - (k - l)² / (K - 1)²
//! alpha     α  = 1 - D_o / D_e                                    (`alpha.rs`)
//! Cohen     κ  = 1 - Σ v_kl p_kl / Σ v_kl p_k. p_.l,    v = [k != l] or (k - l)², for one pair of annotators
//! ```
//!
//! Each item has its own `n_i`; items with fewer than two values say nothing about agreement and are dropped. So a 1-1 split
//! has `P_i = 0`, however many votes other items have.
//!
//! A figure that the data do not define is [`Undefined`] with the reason, never NaN and never 1.
//!
//! Source: Fleiss 1971, Psychological Bulletin 76; Cohen 1960, Educ. Psychol. Meas. 20, and 1968, Psychological Bulletin
//! 70; Gwet 2008, Br. J. Math. Stat. Psychol. 61; Krippendorff 2011, "Computing Krippendorff's alpha-reliability".
//!
//! Not here: models of who is right (`dawid_skene.rs`, `crowd_pairs.rs`).

mod alpha;
mod figures;
mod table;

pub use alpha::Metric;
pub use figures::{Agreement, CohenPair, MajorityAgreement, agreement, agreement_sums, cohen, with_majority};
pub use table::{Entry, Repeats, SelfConsistency, Table};

use serde::Serialize;
use serde::ser::SerializeStruct;

use crate::bootstrap::Bootstrap;
use crate::{Error, Estimate};

/// A number with its bootstrap interval over items.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// The estimate.
    pub estimate: f64,
    /// Lower end of the BCa interval.
    pub low: Option<f64>,
    /// Upper end.
    pub high: Option<f64>,
    /// Bootstrap standard error.
    pub se: Option<f64>,
    /// Items behind it.
    pub items: usize,
    /// Why there is no interval.
    pub no_interval: Option<Undefined>,
}

impl Figure {
    fn new(bootstrap: Result<Bootstrap, Error>, estimate: f64, items: usize) -> Figure {
        let without =
            |why| Figure { estimate, low: None, high: None, se: None, items, no_interval: Some(why) };
        match bootstrap {
            Ok(b) if b.se == 0.0 => without(Undefined::NoVariation),
            Ok(b) => Figure {
                estimate,
                low: Some(b.bca.0),
                high: Some(b.bca.1),
                se: Some(b.se),
                items,
                no_interval: None,
            },
            Err(Error::Unstable { undefined, resamples }) => {
                without(Undefined::Unstable { undefined, resamples })
            }
            Err(_) => without(Undefined::OneItem),
        }
    }

    /// A figure with an interval of another kind.
    pub(crate) fn of(estimate: Estimate) -> Figure {
        Figure {
            estimate: estimate.estimate,
            low: Some(estimate.low),
            high: Some(estimate.high),
            se: None,
            items: estimate.n,
            no_interval: None,
        }
    }
}

/// A figure, or why there is none.
pub type Measured = Result<Figure, Undefined>;

/// Why a figure has no value, or no interval.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Undefined {
    /// No item has values of two annotators.
    #[error("no item has votes of two annotators")]
    NoOverlap,
    /// Two annotators have no item in common.
    #[error("the two annotators have no item in common")]
    NothingInCommon,
    /// Chance agreement is 1.
    #[error("only one answer was ever given, so agreement beyond chance has no meaning")]
    OneLabel,
    /// Too few resamples define the figure.
    #[error("undefined in {undefined} of {resamples} resamples or without one item: too few items carry it")]
    Unstable {
        /// Resamples without a value.
        undefined: usize,
        /// Resamples made.
        resamples: usize,
    },
    /// A bootstrap needs two items.
    #[error("one item has no interval")]
    OneItem,
    /// Every item says the same.
    #[error("all items say the same, so resampling them shows no spread")]
    NoVariation,
    /// The data do not have what the figure is computed from.
    #[error("no vote has {what}")]
    NotRecorded {
        /// What is missing.
        what: &'static str,
    },
    /// A model could not be fitted.
    #[error("{why}")]
    NoFit {
        /// What the method said.
        why: String,
    },
}

impl Undefined {
    /// A short name for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Undefined::NoOverlap => "no_overlap",
            Undefined::NothingInCommon => "nothing_in_common",
            Undefined::OneLabel => "one_label",
            Undefined::Unstable { .. } => "unstable",
            Undefined::OneItem => "one_item",
            Undefined::NoVariation => "no_variation",
            Undefined::NotRecorded { .. } => "not_recorded",
            Undefined::NoFit { .. } => "no_fit",
        }
    }
}

impl Serialize for Undefined {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_struct("Undefined", 2)?;
        object.serialize_field("undefined", self.code())?;
        object.serialize_field("reason", &self.to_string())?;
        object.end()
    }
}
