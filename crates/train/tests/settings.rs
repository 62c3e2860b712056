//! Settings: what is read, what is refused and in which words, what is written back.

use std::path::Path;

use polity_train::TrainError;
use polity_train::config::Config;
use polity_train::objectives::kl::KlController;
use polity_train::objectives::score::MissingEos;
use polity_train::settings::{
    DpoConfig, MissingEosRule, PpoConfig, Precision, RewardConfig, Scheduler, SftConfig, StopToken,
    Truncation,
};

fn sets(pairs: &[&str]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap();
            (key.to_owned(), value.to_owned())
        })
        .collect()
}

#[track_caller]
fn with_sets<C: Config>(pairs: &[&str]) -> C {
    C::from_toml_and_sets(None, &sets(pairs)).unwrap_or_else(|error| panic!("{pairs:?}: {error}"))
}

#[track_caller]
fn with_file<C: Config>(text: &str) -> Result<C, TrainError> {
    C::from_toml_and_sets(Some((Path::new("run.toml"), text)), &[])
}

/// The whole message of a refusal.
#[track_caller]
fn refuses<C: Config>(pairs: &[&str], expect: &str) {
    match C::from_toml_and_sets(None, &sets(pairs)) {
        Ok(_) => panic!("{pairs:?} was accepted, expected: {expect}"),
        Err(error) => assert_eq!(error.to_string(), expect, "{pairs:?}"),
    }
}

#[track_caller]
fn refuses_file<C: Config>(text: &str, expect: &str) {
    match with_file::<C>(text) {
        Ok(_) => panic!("{text:?} was accepted, expected: {expect}"),
        Err(error) => assert_eq!(error.to_string(), expect, "{text:?}"),
    }
}

#[test]
fn defaults_are_trls() {
    let sft: SftConfig = with_sets(&[]);
    assert_eq!(sft.common.learning_rate, 2e-5);
    assert_eq!((sft.common.per_device_train_batch_size, sft.common.gradient_accumulation_steps), (8, 1));
    assert_eq!((sft.common.num_train_epochs, sft.common.max_steps, sft.common.seed), (3.0, -1, 42));
    assert_eq!((sft.common.adam_beta1, sft.common.adam_beta2, sft.common.adam_epsilon), (0.9, 0.999, 1e-8));
    assert_eq!((sft.common.weight_decay, sft.common.max_grad_norm), (0.0, 1.0));
    assert_eq!((sft.common.lr_scheduler_type, sft.common.warmup_steps), (Scheduler::Linear, 0));
    assert_eq!((sft.common.max_length, sft.common.truncation), (Some(1024), Truncation::KeepStart));
    assert_eq!((sft.completion_only_loss, sft.assistant_only_loss), (None, false));

    let reward: RewardConfig = with_sets(&[]);
    assert_eq!((reward.common.learning_rate, reward.common.truncation), (1e-4, Truncation::Drop));
    assert_eq!(reward.center_rewards_coefficient, None);

    let dpo: DpoConfig = with_sets(&[]);
    assert_eq!((dpo.common.learning_rate, dpo.beta, dpo.label_smoothing), (1e-6, 0.1, 0.0));
    assert_eq!(
        (dpo.loss_type[0].name.as_str(), dpo.discopop_tau, dpo.f_alpha_divergence_coef),
        ("sigmoid", 0.05, 0.5)
    );

    let ppo: PpoConfig = with_sets(&[]);
    assert_eq!((ppo.common.learning_rate, ppo.kl_coef, ppo.temperature), (3e-6, 0.05, 0.7));
    assert_eq!((ppo.num_ppo_epochs, ppo.num_mini_batches, ppo.response_length), (4, 1, 53));
    assert_eq!((ppo.cliprange, ppo.cliprange_value, ppo.vf_coef), (0.2, Some(0.2), 0.1));
    assert_eq!((ppo.gamma, ppo.lam, ppo.whiten_rewards), (1.0, 0.95, false));
}

#[test]
fn later_wins_and_the_command_line_wins_over_the_file() {
    let text = "learning_rate = 1e-3\nseed = 1 # a comment\n";
    let config =
        SftConfig::from_toml_and_sets(Some((Path::new("a.toml"), text)), &sets(&["seed=2", "seed=3"]))
            .unwrap();
    assert_eq!((config.common.learning_rate, config.common.seed), (1e-3, 3));
}

#[test]
fn values_after_set_are_toml_or_bare_words() {
    let config: DpoConfig = with_sets(&[
        "learning_rate=1",
        "precision=bf16",
        "truncation=\"refuse\"",
        "max_length=none",
        "loss_type=sigmoid,sft",
        "loss_weights=[1, 0.5]",
        "shuffle_dataset=false",
        "seed=1_000",
    ]);
    assert_eq!((config.common.learning_rate, config.common.seed), (1.0, 1000));
    assert_eq!((config.common.precision, config.common.truncation), (Precision::Bf16, Truncation::Refuse));
    assert_eq!((config.common.max_length, config.common.shuffle_dataset), (None, false));
    assert_eq!(
        config.loss_type.iter().map(|loss| loss.name.as_str()).collect::<Vec<_>>(),
        ["sigmoid", "sft"]
    );
    assert_eq!(config.loss_weights, Some(vec![1.0, 0.5]));
    let one: DpoConfig = with_sets(&["loss_type=ipo", "loss_weights=2"]);
    assert_eq!((one.loss_type.len(), one.loss_weights), (1, Some(vec![2.0])));
}

#[test]
fn a_bad_value_names_place_key_value_limit_and_reason() {
    refuses::<DpoConfig>(
        &["beta=-0.1"],
        "--set: beta = -0.1, expected > 0: it scales the log-ratios and divides in ipo and sppo_hard",
    );
    refuses_file::<DpoConfig>(
        "seed = 1\n\nbeta = -0.1\n",
        "run.toml, line 3: beta = -0.1, expected > 0: it scales the log-ratios and divides in ipo and sppo_hard",
    );
    refuses::<SftConfig>(
        &["per_device_train_batch_size=0"],
        "--set: per_device_train_batch_size = 0, expected at least 1: a step needs a row",
    );
    refuses::<SftConfig>(&["seed=-1"], "--set: seed = -1, expected an integer, 0 or more");
    refuses::<SftConfig>(&["max_steps=1.5"], "--set: max_steps = 1.5, expected an integer");
    refuses::<SftConfig>(&["learning_rate=fast"], "--set: learning_rate = \"fast\", expected a number");
    refuses::<SftConfig>(&["learning_rate=nan"], "--set: learning_rate = nan, expected a finite number");
    refuses::<SftConfig>(
        &["max_length=1e3"],
        "--set: max_length = 1000.0, expected an integer, 0 or more or \"none\"",
    );
    refuses::<SftConfig>(
        &["shuffle_dataset=yes"],
        "--set: shuffle_dataset = \"yes\", expected true or false",
    );
    refuses::<SftConfig>(
        &["precision=bf61"],
        "--set: precision = \"bf61\", expected one of \"auto\" | \"f32\" | \"bf16\" (did you mean \"bf16\"?)",
    );
    refuses::<SftConfig>(
        &["loss_type=dtf"],
        "--set: loss_type = \"dtf\", expected one of \"nll\" | \"chunked_nll\" | \"dft\" (did you mean \"dft\"?)",
    );
    refuses::<PpoConfig>(
        &["kl_estimator=k4"],
        "--set: kl_estimator = \"k4\", expected one of \"k1\" | \"k2\" | \"k3\" | \"abs\" | \"full\" | \"kl\" | \"mse\" \
         (did you mean \"k1\"?)",
    );
}

#[test]
fn a_bad_file_names_its_line() {
    let error = with_file::<SftConfig>("seed = 1\nlearning_rate = = 2\n").unwrap_err();
    let message = error.to_string();
    assert!(message.starts_with("run.toml, line 2, column 17: not valid TOML: "), "{message}");
    let error = with_file::<SftConfig>("seed = 1\nseed = 2\n").unwrap_err();
    assert!(matches!(error, TrainError::Toml { line: 2, .. }), "{error}");
    refuses_file::<SftConfig>(
        "seed = 1\n[train]\nlearning_rate = 1e-3\n",
        "run.toml, line 2: train = a table, expected a value: settings are flat: write them without table headers and \
         without dots",
    );
    let error =
        DpoConfig::from_toml_and_sets(None, &sets(&["loss_type=[sigmoid, sft]"])).unwrap_err().to_string();
    assert!(error.contains("words inside a list need quotes") && error.contains("loss_type=a,b"), "{error}");
}

#[test]
fn an_unknown_key_gets_advice() {
    let unknown = |key: &str, stage: &str, advice: &str| {
        format!("--set: unknown setting {key:?} of stage {stage}{advice}")
    };
    refuses::<SftConfig>(
        &["lerning_rate=1"],
        &unknown("lerning_rate", "sft", ", did you mean learning_rate?"),
    );
    refuses::<PpoConfig>(&["cliprnage=1"], &unknown("cliprnage", "ppo", ", did you mean cliprange?"));
    refuses::<SftConfig>(&["beta=1"], &unknown("beta", "sft", ": it belongs to stage dpo"));
    refuses::<DpoConfig>(&["bf16=true"], &unknown("bf16", "dpo", ": write precision = \"bf16\" or \"f32\""));
    refuses::<SftConfig>(
        &["packing=true"],
        &unknown(
            "packing",
            "sft",
            ": batches are never padded, so there is nothing to pack, and rows never see each other",
        ),
    );
    refuses::<PpoConfig>(
        &["adap_kl_ctrl=true"],
        &unknown("adap_kl_ctrl", "ppo", ": write kl_controller = \"adaptive\" or \"fixed\""),
    );
    refuses::<SftConfig>(&["zzz=1"], &unknown("zzz", "sft", "; `polity train sft --help` lists them"));
    refuses_file::<SftConfig>(
        "\nlerning_rate = 1\n",
        "run.toml, line 2: unknown setting \"lerning_rate\" of stage sft, did you mean learning_rate?",
    );
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    refuses::<SftConfig>(
        &["warmup_steps=3", "warmup_ratio=0.1"],
        "--set: warmup_ratio = 0.1 cannot be used with warmup_steps = 3: they set the same thing; keep one",
    );
    refuses::<SftConfig>(
        &["warmup_steps=3", "lr_scheduler_type=constant"],
        "--set: a warm-up cannot be used with lr_scheduler_type = \"constant\": that schedule ignores it; use \
         constant_with_warmup",
    );
    refuses::<SftConfig>(
        &["lr_scheduler_type=cosine_with_min_lr"],
        "min_lr_rate = \"none\", expected a share of the peak: lr_scheduler_type = \"cosine_with_min_lr\" needs it",
    );
    refuses::<DpoConfig>(
        &["loss_type=robust", "label_smoothing=0.5"],
        "--set: label_smoothing = 0.5, expected in [0, 0.5): at one half, labels say nothing",
    );
    refuses::<DpoConfig>(
        &["label_smoothing=0.1"],
        "--set: label_smoothing = 0.1 cannot be used with loss_type = sigmoid: no loss in the list reads it; use cdpo for \
         label-smoothed sigmoid, or robust",
    );
    refuses::<DpoConfig>(
        &["loss_type=sigmoid,sft", "loss_weights=1,2,3"],
        "--set: loss_weights = a list of 3, expected a list of 2, one for each loss_type",
    );
    refuses::<PpoConfig>(
        &["num_mini_batches=3"],
        "--set: num_mini_batches = 3, expected a divisor of 8: a step has per_device_train_batch_size * \
         gradient_accumulation_steps rows, and its updates equal shares",
    );
    refuses::<PpoConfig>(
        &["total_episodes=64", "max_steps=4"],
        "--set: total_episodes = 64 cannot be used with max_steps = 4: they set the same thing; keep one",
    );
    refuses::<PpoConfig>(
        &["dual_clip=1.1"],
        "--set: dual_clip = 1.1, expected > 1 + cliprange_high: it bounds what clipping left free",
    );
    refuses::<PpoConfig>(
        &["use_score_norm=true"],
        "--set: use_score_norm = true cannot be used with use_score_scaling = false: the mean is only subtracted from \
         scaled scores; set use_score_scaling = true",
    );
    refuses::<PpoConfig>(
        &["missing_eos=penalty"],
        "missing_eos_penalty = \"none\", expected a number: missing_eos = \"penalty\" subtracts it",
    );
    refuses::<PpoConfig>(
        &["missing_eos=replace", "stop_token=none"],
        "--set: missing_eos cannot be used with stop_token = \"none\": no response would ever end, so all would be \
         treated alike; set stop_token = \"eos\"",
    );
    let error = PpoConfig::from_toml_and_sets(None, &sets(&["top_p=0.9"])).unwrap_err().to_string();
    assert!(
        error.starts_with("--set: top_p = 0.9 cannot be used with PPO: ")
            && error.contains("allow_warped_sampling"),
        "{error}"
    );
    with_sets::<PpoConfig>(&["top_p=0.9", "allow_warped_sampling=true"]);
}

#[test]
fn a_setting_that_would_do_nothing_is_refused() {
    for (pairs, key) in [
        (["target=6.5", "seed=1"], "target"),
        (["target_kl=0.1", "seed=1"], "target_kl"),
        (["kl_controller=adaptive", "kl_coef=0.1"], "kl_coef"),
        (["missing_eos_score=-2", "seed=1"], "missing_eos_score"),
    ] {
        match PpoConfig::from_toml_and_sets(None, &sets(&pairs)) {
            Err(TrainError::Setting { key: refused, reason, .. }) => {
                assert_eq!(refused, key);
                assert!(reason.starts_with("it would have no effect: "), "{reason}");
            }
            other => panic!("{pairs:?}: {other:?}"),
        }
    }
    for pair in ["discopop_tau=0.1", "simpo_gamma=1", "cpo_alpha=2", "f_alpha_divergence_coef=0.7"] {
        assert!(DpoConfig::from_toml_and_sets(None, &sets(&[pair])).is_err(), "{pair}");
    }
    assert!(
        DpoConfig::from_toml_and_sets(None, &sets(&["loss_type=simpo", "precompute_ref_log_probs=true"]))
            .is_err()
    );
    // Its default may be said aloud: resolved.toml does.
    with_sets::<PpoConfig>(&["target=6.0", "target_kl=1"]);
}

#[test]
fn presets_change_defaults_wherever_they_stand() {
    let classic: PpoConfig = with_sets(&["temperature=0.5", "preset=trl_classic"]);
    assert_eq!((classic.common.learning_rate, classic.temperature), (1.41e-5, 0.5));
    assert_eq!(
        classic.controller(),
        KlController::Adaptive { coef: 0.2, target_nats_per_sequence: 6.0, horizon_episodes: 10_000.0 }
    );
    let modern: PpoConfig = with_sets(&["preset=trl"]);
    assert_eq!((modern.stop_token, modern.common.clip_norm()), (StopToken::None, None));
    assert_eq!(modern.score_placement.name, "after_last");
    let own: PpoConfig = with_sets(&["preset=trl", "stop_token=eos", "max_grad_norm=2"]);
    assert_eq!((own.stop_token, own.common.clip_norm()), (StopToken::Eos, Some(2.0)));
}

#[test]
fn trls_penalty_alone_switches_the_rule_on() {
    let config: PpoConfig = with_sets(&["missing_eos_penalty=1"]);
    assert_eq!(config.missing_eos, MissingEosRule::Penalty);
    assert_eq!(config.scores().unwrap().missing_eos, MissingEos::Penalty(1.0));
    let config: PpoConfig = with_sets(&["missing_eos=replace"]);
    assert_eq!(config.scores().unwrap().missing_eos, MissingEos::Replace(-1.0));
}

#[test]
fn a_target_in_the_wrong_unit_is_warned_about() {
    let config: PpoConfig = with_sets(&["kl_controller=adaptive", "target=0.1"]);
    assert!(config.warnings().iter().any(|warning| warning.contains("per token")), "{:?}", config.warnings());
    assert!(with_sets::<PpoConfig>(&["kl_controller=adaptive"]).warnings().is_empty());
}

/// Whatever was set, the file written back gives the same settings, and says the same again.
#[track_caller]
fn round_trip<C: Config>(pairs: &[&str]) {
    let config: C = with_sets(pairs);
    let text = config.to_toml();
    let again: C = with_file(&text).unwrap_or_else(|error| panic!("{pairs:?}: {error}\n{text}"));
    assert_eq!(again.to_toml(), text);
    assert_eq!(again.to_canonical_toml(), config.to_canonical_toml());
    for info in C::keys() {
        assert!(text.contains(&format!("\n{} = ", info.name)), "{} is missing", info.name);
        assert!(info.doc.ends_with(['.', ')']) && info.doc.len() > 10, "{}: {:?}", info.name, info.doc);
    }
}

#[test]
fn resolved_settings_read_back() {
    round_trip::<SftConfig>(&[]);
    round_trip::<SftConfig>(&[
        "completion_only_loss=true",
        "lr_scheduler_type=cosine_with_min_lr",
        "min_lr_rate=0.1",
    ]);
    round_trip::<RewardConfig>(&["center_rewards_coefficient=0.01", "head_init=scaled"]);
    round_trip::<DpoConfig>(&[]);
    round_trip::<DpoConfig>(&["loss_type=sigmoid,bco_pair,sft", "loss_weights=0.8,0.2,1", "max_length=none"]);
    round_trip::<DpoConfig>(&[
        "f_divergence_type=alpha_divergence",
        "f_alpha_divergence_coef=0.7",
        "learning_rate=1e-7",
    ]);
    for preset in ["polity", "trl", "trl_classic"] {
        round_trip::<PpoConfig>(&[&format!("preset={preset}")]);
    }
    round_trip::<PpoConfig>(&[
        "missing_eos_penalty=1",
        "ratio_threshold=none",
        "kl_controller=adaptive",
        "target=3",
    ]);
}

#[test]
fn no_key_is_declared_twice() {
    fn check<C: Config>() {
        let mut names: Vec<_> = C::keys().iter().map(|info| info.name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
    check::<SftConfig>();
    check::<RewardConfig>();
    check::<DpoConfig>();
    check::<PpoConfig>();
}

#[test]
fn a_text_setting_survives_quotes() {
    // No key holds free text yet, so this goes through a list of names in a file.
    let config: DpoConfig = with_file("loss_type = ['sigmoid', \"sft\"]\n").unwrap();
    assert!(config.to_toml().contains("loss_type = [\"sigmoid\", \"sft\"]"));
}

#[test]
fn steps_are_counted_as_transformers_counts_them() {
    let steps = |pairs: &[&str], rows: usize| with_sets::<SftConfig>(pairs).common.steps_in_all(rows);
    assert_eq!(steps(&[], 64), 24); // 8 steps an epoch, 3 epochs.
    assert_eq!(steps(&["num_train_epochs=1"], 65), 9); // The last step has one row.
    assert_eq!(steps(&["num_train_epochs=0.5", "gradient_accumulation_steps=2"], 64), 2);
    assert_eq!(steps(&["max_steps=5"], 64), 5);
    let ppo: PpoConfig = with_sets(&["total_episodes=100"]);
    assert_eq!(ppo.steps_in_all(64), 13);
    let config: SftConfig = with_sets(&["warmup_ratio=0.1"]);
    assert_eq!(config.common.warmup(24), 3); // ceil(2.4).
}
