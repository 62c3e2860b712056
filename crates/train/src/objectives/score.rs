//! From the reward model's raw score of a response to the score that is optimised.
//!
//! In this order:
//!
//! 1. scale by the running standard deviation, and with `norm` subtract the running mean first (TRL classic's
//!    `use_score_scaling`, `use_score_norm`); the running moments include this batch;
//! 2. clip to `[-score_clip, score_clip]`;
//! 3. treat responses without a stop token: **subtract** a penalty (TRL's `missing_eos_penalty`) or **replace** the
//!    score (Huang et al. 2024, arXiv:2403.17031, detail 23.3). The two are different and named apart.
//!
//! Missing stop tokens come last so that clipping cannot hide the penalty and the penalty cannot move the moments.
//! Where TRL has both (it never does in one trainer), either order gives its result.
//!
//! Not here: where in the response the score is placed ([`super::ppo::ScorePlacement`]).

use super::ObjectiveError;
use super::error::check_value;
use super::whiten::{Moments, Variance};
use serde::{Deserialize, Serialize};

/// Running mean and standard deviation of the scores of a whole run. Part of a checkpoint.
///
/// Source: TRL 0.11.4 `RunningMoments`: batches are pooled exactly (Chan et al. 1979), the standard deviation is the
/// unbiased one, mean 0 and deviation 1 before the first batch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunningMoments {
    /// Scores seen.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// Sum of their squared deviations from the mean.
    pub squared_deviations: f64,
}

impl RunningMoments {
    /// Before the first score.
    pub fn new() -> RunningMoments {
        RunningMoments { count: 0, mean: 0.0, squared_deviations: 0.0 }
    }

    /// Adds a batch, from the moments merged over all workers.
    pub fn update(&mut self, batch: &Moments) {
        let mut pooled = self.moments();
        pooled.merge(batch);
        *self = RunningMoments {
            count: pooled.count,
            mean: pooled.mean,
            squared_deviations: pooled.squared_deviations,
        };
    }

    /// The standard deviation, unbiased; 1 until there are two scores (TRL would divide by zero at one).
    pub fn std(&self) -> f64 {
        self.moments().variance(Variance::Unbiased).map_or(1.0, f64::sqrt)
    }

    fn moments(&self) -> Moments {
        Moments { count: self.count, mean: self.mean, squared_deviations: self.squared_deviations }
    }
}

impl Default for RunningMoments {
    fn default() -> RunningMoments {
        RunningMoments::new()
    }
}

/// What the running moments do to a score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScoreScaling {
    /// Nothing.
    None,
    /// `score / std`.
    Scale,
    /// `(score - mean) / std`.
    Normalise,
}

impl ScoreScaling {
    /// From TRL's two switches. Normalising without scaling does not exist there, and is an error here.
    pub fn from_switches(
        use_score_scaling: bool,
        use_score_norm: bool,
    ) -> Result<ScoreScaling, ObjectiveError> {
        match (use_score_scaling, use_score_norm) {
            (false, false) => Ok(ScoreScaling::None),
            (true, false) => Ok(ScoreScaling::Scale),
            (true, true) => Ok(ScoreScaling::Normalise),
            (false, true) => Err(ObjectiveError::Incompatible {
                setting: "use_score_norm = true".into(),
                with: "use_score_scaling = false".into(),
                reason: "the mean is only subtracted from scaled scores; set use_score_scaling = true",
            }),
        }
    }
}

/// What happens to the score of a response that never says its stop token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MissingEos {
    /// Nothing.
    None,
    /// `score - penalty` (TRL).
    Penalty(f32),
    /// The score becomes this value (N+ implementation details: -1).
    Replace(f32),
}

/// How scores are shaped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoreConfig {
    /// Use of the running moments.
    pub scaling: ScoreScaling,
    /// Bound on the absolute score.
    pub clip: Option<f32>,
    /// Treatment of responses without a stop token.
    pub missing_eos: MissingEos,
}

impl ScoreConfig {
    /// Checks the fields.
    pub fn validate(&self) -> Result<(), ObjectiveError> {
        if let Some(clip) = self.clip {
            check_value("score_clip", clip.into(), clip > 0.0, "> 0", "it bounds the absolute score")?;
        }
        match self.missing_eos {
            MissingEos::None => Ok(()),
            MissingEos::Penalty(penalty) => check_value(
                "missing_eos_penalty",
                penalty.into(),
                penalty >= 0.0,
                ">= 0",
                "it is subtracted, so a negative one rewards responses that never stop",
            ),
            MissingEos::Replace(score) => check_value(
                "missing_eos_score",
                score.into(),
                true,
                "a finite score",
                "it replaces the score",
            ),
        }
    }
}

/// Shapes the scores of a batch. `moments` are the running ones **after** [`RunningMoments::update`] with this batch.
///
/// # Panics
///
/// If the slices differ in length.
pub fn shape_scores(
    score_i: &[f32],
    has_eos_i: &[bool],
    config: &ScoreConfig,
    moments: &RunningMoments,
) -> Vec<f32> {
    assert_eq!(has_eos_i.len(), score_i.len(), "shape_scores: one stop flag per score");
    // As TRL: a constant score divides by the smallest step of f32, not by zero.
    let scale = 1.0 / (moments.std() + f64::from(f32::EPSILON));
    let shape = |(&score, &has_eos): (&f32, &bool)| {
        let scaled = match config.scaling {
            ScoreScaling::None => f64::from(score),
            ScoreScaling::Scale => f64::from(score) * scale,
            ScoreScaling::Normalise => (f64::from(score) - moments.mean) * scale,
        } as f32;
        let clipped = config.clip.map_or(scaled, |clip| scaled.clamp(-clip, clip));
        match config.missing_eos {
            MissingEos::Penalty(penalty) if !has_eos => clipped - penalty,
            MissingEos::Replace(score) if !has_eos => score,
            _ => clipped,
        }
    };
    score_i.iter().zip(has_eos_i).map(shape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: ScoreConfig =
        ScoreConfig { scaling: ScoreScaling::None, clip: None, missing_eos: MissingEos::None };

    /// After scores 1, 3, 5: mean 3, unbiased deviation 2.
    fn after_one_batch() -> RunningMoments {
        let mut moments = RunningMoments::new();
        moments.update(&Moments::of(&[1.0, 3.0, 5.0]));
        moments
    }

    #[track_caller]
    fn check(config: ScoreConfig, expect: [f32; 3]) {
        let got = shape_scores(&[1.0, 3.0, 8.0], &[true, false, true], &config, &after_one_batch());
        for (got, expect) in got.iter().zip(expect) {
            assert!((got - expect).abs() < 1e-6, "{config:?}: {got} expected {expect}");
        }
    }

    #[test]
    fn each_option_by_hand() {
        check(PLAIN, [1.0, 3.0, 8.0]);
        check(ScoreConfig { scaling: ScoreScaling::Scale, ..PLAIN }, [0.5, 1.5, 4.0]);
        check(ScoreConfig { scaling: ScoreScaling::Normalise, ..PLAIN }, [-1.0, 0.0, 2.5]);
        check(ScoreConfig { clip: Some(2.0), ..PLAIN }, [1.0, 2.0, 2.0]);
        check(ScoreConfig { missing_eos: MissingEos::Penalty(1.0), ..PLAIN }, [1.0, 2.0, 8.0]);
        check(ScoreConfig { missing_eos: MissingEos::Replace(-1.0), ..PLAIN }, [1.0, -1.0, 8.0]);
    }

    #[test]
    fn the_order_is_scale_clip_stop() {
        let all = ScoreConfig {
            scaling: ScoreScaling::Normalise,
            clip: Some(0.5),
            missing_eos: MissingEos::Penalty(3.0),
        };
        check(all, [-0.5, -3.0, 0.5]);
    }

    #[test]
    fn running_moments_pool_batches_exactly() {
        let mut running = after_one_batch();
        assert_eq!((running.count, running.mean, running.std()), (3, 3.0, 2.0));
        running.update(&Moments::of(&[7.0]));
        // 1 3 5 7: mean 4, squared deviations 20, over 3.
        assert_eq!((running.count, running.mean), (4, 4.0));
        assert!((running.std() - (20.0_f64 / 3.0).sqrt()).abs() < 1e-15);
        running.update(&Moments::default());
        assert_eq!(running.count, 4);
    }

    #[test]
    fn one_score_has_no_deviation_yet() {
        let mut running = RunningMoments::new();
        assert_eq!(running.std(), 1.0);
        running.update(&Moments::of(&[4.0]));
        assert_eq!((running.mean, running.std()), (4.0, 1.0));
    }

    #[test]
    fn running_moments_come_back_from_a_checkpoint_bit_for_bit() {
        let mut running = after_one_batch();
        running.update(&Moments::of(&[0.1, 0.7]));
        let text = serde_json::to_string(&running).unwrap();
        assert_eq!(serde_json::from_str::<RunningMoments>(&text).unwrap(), running);
    }

    #[test]
    fn settings_are_checked() {
        assert!(PLAIN.validate().is_ok());
        assert!(ScoreConfig { clip: Some(0.0), ..PLAIN }.validate().is_err());
        assert!(ScoreConfig { clip: Some(f32::NAN), ..PLAIN }.validate().is_err());
        assert!(ScoreConfig { missing_eos: MissingEos::Penalty(-1.0), ..PLAIN }.validate().is_err());
        assert!(ScoreConfig { missing_eos: MissingEos::Penalty(0.0), ..PLAIN }.validate().is_ok());
        assert!(ScoreConfig { missing_eos: MissingEos::Replace(-1.0), ..PLAIN }.validate().is_ok());
        assert!(ScoreConfig { missing_eos: MissingEos::Replace(f32::INFINITY), ..PLAIN }.validate().is_err());
        assert_eq!(ScoreScaling::from_switches(true, false), Ok(ScoreScaling::Scale));
        assert_eq!(ScoreScaling::from_switches(true, true), Ok(ScoreScaling::Normalise));
        assert_eq!(ScoreScaling::from_switches(false, false), Ok(ScoreScaling::None));
        assert!(ScoreScaling::from_switches(false, true).unwrap_err().to_string().contains("use_score_norm"));
    }
}
