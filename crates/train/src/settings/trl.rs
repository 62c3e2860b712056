//! Where a default is not TRL's.
//!
//! PPO's differences are its presets (`preset = "trl"` and `"trl_classic"`), so they are not repeated here.
//!
//! Sources: TRL 1.16 `trl/trainer/base_config.py`, `dpo_config.py`, `model_config.py`.

use crate::metrics::Stage;

/// Stages (none: all), key, and the default there.
const DIFFERENCES: &[(&[Stage], &str, &str)] = &[
    (&[], "gradient_checkpointing", "true"),
    (&[], "precision", "\"bf16\""),
    (&[Stage::Dpo], "truncation", "\"keep_start\""),
];

/// TRL's default of a key, as TOML, where it is another than ours.
pub fn trl_default(stage: Stage, key: &str) -> Option<&'static str> {
    let applies = |stages: &[Stage]| stages.is_empty() || stages.contains(&stage);
    DIFFERENCES.iter().find(|(stages, known, _)| *known == key && applies(stages)).map(|(_, _, value)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::settings::{DpoConfig, PpoConfig, RewardConfig, SftConfig};

    fn check<C: Config>() {
        for info in C::keys() {
            if let Some(theirs) = trl_default(C::STAGE, info.name) {
                assert_ne!(theirs, info.default, "{}: {} does not differ", C::STAGE, info.name);
                let sets = [(info.name.to_owned(), theirs.to_owned())];
                C::from_toml_and_sets(None, &sets).unwrap_or_else(|error| panic!("{error}"));
            }
        }
    }

    #[test]
    fn what_differs_is_a_value_of_the_key_and_differs() {
        check::<SftConfig>();
        check::<RewardConfig>();
        check::<DpoConfig>();
        check::<PpoConfig>();
        for (_, key, _) in DIFFERENCES {
            assert!(SftConfig::keys().iter().any(|info| info.name == *key), "{key} is no key");
        }
    }
}
