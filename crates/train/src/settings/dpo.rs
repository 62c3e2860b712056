//! Direct preference optimisation and its relatives.

use crate::config::{
    Choice, Config, Domain, NOT_NEGATIVE, Objection, POSITIVE, UNIT, choices, name_of, settings,
};
use crate::metrics::Stage;
use crate::objectives::ObjectiveError;
use crate::objectives::dpo::{self, DpoLoss, FDivergence};

use super::common::CommonConfig;

choices! {
    /// How far the policy is from the reference, response by response.
    pub enum FDivergenceType {
        /// Log-ratio.
        ReverseKl = "reverse_kl",
        /// `1 - 1 / ratio`.
        ForwardKl = "forward_kl",
        /// Jensen-Shannon.
        JsDivergence = "js_divergence",
        /// With the exponent `f_alpha_divergence_coef`.
        AlphaDivergence = "alpha_divergence",
    }
}

settings! {
    /// Settings of `polity train dpo`.
    pub struct DpoConfig {
        flatten common: CommonConfig = CommonConfig { learning_rate: 1e-6, ..CommonConfig::initial() };
        /// Strength of the pull towards the reference; ipo's regulariser; orpo's weight of the odds ratio.
        beta: f64 = 0.1, POSITIVE, "it scales the log-ratios and divides in ipo and sppo_hard";
        /// One or more losses; their weighted sum is minimised. ipo is averaged over tokens (TRL's), ipo_sum is summed
        /// (OpenRLHF's ipo); label-smoothed sigmoid is cdpo.
        loss_type: Vec<Choice<DpoLoss>> = vec![Choice::of("sigmoid")];
        /// Weight of each loss; "none": all 1.
        loss_weights: Option<Vec<f64>> = None, NOT_NEGATIVE, "a negative weight maximises its loss";
        /// Probability that a label is the wrong way round: cdpo, robust, exo_pair, aot, aot_unpaired, simpo, cpo.
        label_smoothing: f64 = 0.0, Domain { holds: |x| (0.0..0.5).contains(&x), expected: "in [0, 0.5)" },
            "at one half, labels say nothing";
        /// Which divergence from the reference.
        f_divergence_type: FDivergenceType = FDivergenceType::ReverseKl;
        /// Exponent of alpha_divergence.
        f_alpha_divergence_coef: f64 = 0.5;
        /// Weight of the tokens beyond the shorter response of a pair (LD-DPO, arXiv:2409.06411); "none": 1.
        ld_alpha: Option<f64> = None, UNIT, "it weighs the tokens beyond the shorter response";
        /// Weigh each pair by how likely the policy is to say it (WPO, arXiv:2406.11827).
        use_weighting: bool = false;
        /// Width of discopop's mixing.
        discopop_tau: f64 = 0.05, POSITIVE, "it divides the logit";
        /// simpo's target margin.
        simpo_gamma: f64 = 0.5, NOT_NEGATIVE, "it is a target margin";
        /// Weight of cpo's likelihood term.
        cpo_alpha: f64 = 1.0, NOT_NEGATIVE, "it weighs a loss";
        /// Compute the reference's log-probs once, before training, so that the reference can leave memory. The same
        /// numbers either way.
        precompute_ref_log_probs: bool = false;
    }
}

impl DpoConfig {
    /// What the objective minimises.
    pub fn objective(&self) -> Result<dpo::DpoConfig, ObjectiveError> {
        let names: Vec<&str> = self.loss_type.iter().map(|loss| loss.name.as_str()).collect();
        let config = dpo::DpoConfig {
            losses: dpo::DpoConfig::mixture(&names, self.loss_weights.as_deref())?,
            beta: self.beta,
            label_smoothing: self.label_smoothing,
            f_divergence: FDivergence::parse(name_of(self.f_divergence_type), self.f_alpha_divergence_coef)?,
            ld_alpha: self.ld_alpha,
            use_weighting: self.use_weighting,
            discopop_tau: self.discopop_tau,
            simpo_gamma: self.simpo_gamma,
            cpo_alpha: self.cpo_alpha,
        };
        config.validate()?;
        Ok(config)
    }

    fn has(&self, loss: DpoLoss) -> bool {
        self.loss_type.iter().any(|choice| choice.value == loss)
    }
}

impl Config for DpoConfig {
    const STAGE: Stage = Stage::Dpo;

    fn check(&self) -> Result<(), Objection> {
        self.common.check(self)?;
        if self.loss_type.is_empty() {
            return Err(Objection::value("loss_type", self.loss_type.clone(), "at least one loss", ""));
        }
        let objective = self.objective()?;
        let alpha = self.f_divergence_type == FDivergenceType::AlphaDivergence;
        self.idle_unless(
            alpha,
            "f_alpha_divergence_coef",
            "only f_divergence_type = \"alpha_divergence\" reads it",
        )?;
        self.idle_unless(
            self.has(DpoLoss::Discopop),
            "discopop_tau",
            "only loss_type = \"discopop\" reads it",
        )?;
        self.idle_unless(self.has(DpoLoss::Simpo), "simpo_gamma", "only loss_type = \"simpo\" reads it")?;
        self.idle_unless(self.has(DpoLoss::Cpo), "cpo_alpha", "only loss_type = \"cpo\" reads it")?;
        let reference = objective.needs_reference();
        self.idle_unless(reference, "precompute_ref_log_probs", "no loss in loss_type has a reference")
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.loss_type.iter().any(|loss| loss.value.is_batch_level()) {
            warnings.push(
                "aot sorts over the pairs of a step, so its loss depends on which pairs share one and on the batch size"
                    .into(),
            );
        }
        warnings
    }
}
