//! PPO's pure parts against TRL: 1.9.2 ("modern": padded window, score past the end) and 0.11.4 ("classic": adaptive
//! controller, score on the last token). `golden/make_ppo.py` and `golden/make_ppo_classic.py` say what each number is.
//!
//! Errors are relative to the largest element of a tensor.

use polity_train::objectives::gae::GaeConfig;
use polity_train::objectives::kl::{KlController, KlEstimator, KlPenalty, kl_estimates, kl_full};
use polity_train::objectives::ppo::{
    AdvantageConfig, PolicyBatch, PolicyConfig, PolicyStats, RatioLevel, RolloutStats, ScorePlacement,
    ShapedRewards, ValueConfig, estimate_advantages, policy_loss, shape_rewards, value_loss,
};
use polity_train::objectives::score::{MissingEos, RunningMoments, ScoreConfig, ScoreScaling, shape_scores};
use polity_train::objectives::whiten::{Moments, Variance};
use polity_train::objectives::{Aggregation, Spans, Stats};
use safetensors::SafeTensors;
use serde_json::Value;

fn read(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("a number, got {value}"))
}

fn list<T>(value: &Value, of: impl Fn(&Value) -> T) -> Vec<T> {
    value.as_array().unwrap_or_else(|| panic!("a list, got {value}")).iter().map(of).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    list(value, number)
}

fn rows(value: &Value) -> Vec<Vec<f64>> {
    list(value, numbers)
}

fn narrow(values: Vec<f64>) -> Vec<f32> {
    values.into_iter().map(|x| x as f32).collect()
}

fn count(value: &Value) -> usize {
    value.as_u64().unwrap_or_else(|| panic!("a count, got {value}")) as usize
}

#[track_caller]
fn worst_error(what: &str, got: &[f64], expect: &[f64], tolerance: f64) -> f64 {
    assert_eq!(got.len(), expect.len(), "{what}: number of values");
    let largest = expect.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
    let mut worst = 0.0_f64;
    for (k, (got, expect)) in got.iter().zip(expect).enumerate() {
        let error = (got - expect).abs() / if largest > 0.0 { largest } else { 1.0 };
        assert!(error <= tolerance, "{what}[{k}]: {got} expected {expect} error {error:.1e}");
        worst = worst.max(error);
    }
    worst
}

fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| x.into()).collect()
}

/// The stored tensors, f32 and row-major.
struct Tensors<'a>(SafeTensors<'a>);

impl Tensors<'_> {
    fn get(&self, name: &str) -> Vec<f32> {
        let tensor = self.0.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(tensor.dtype(), safetensors::Dtype::F32, "{name}");
        tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }
}

/// Takes the first places of each padded row: as many as `spans` has.
fn ragged(padded: &[f32], window: usize, spans: &Spans) -> Vec<f32> {
    padded.chunks_exact(window).enumerate().flat_map(|(i, row)| row[..spans.length(i)].to_vec()).collect()
}

/// The spans of some of the sequences, in the order given.
fn pick_spans(spans: &Spans, rows: &[usize]) -> Spans {
    Spans::from_lengths(rows.iter().map(|&i| spans.length(i)))
}

/// The values of some of the sequences, in the order given.
fn pick(values: &[f32], spans: &Spans, rows: &[usize]) -> Vec<f32> {
    rows.iter().flat_map(|&i| values[spans.range(i)].to_vec()).collect()
}

/// A case's settings: its own, or the defaults.
struct Settings<'a> {
    own: &'a Value,
    defaults: &'a Value,
}

impl Settings<'_> {
    fn value(&self, key: &str) -> &Value {
        self.own.get(key).unwrap_or_else(|| &self.defaults[key])
    }

    fn number(&self, key: &str) -> f64 {
        number(self.value(key))
    }

    fn kl_estimator(&self) -> KlEstimator {
        match self.value("kl_estimator").as_str().unwrap().parse() {
            Ok(KlPenalty::Sampled(estimator)) => estimator,
            other => panic!("a sampled estimator, got {other:?}"),
        }
    }

    fn score(&self) -> ScoreConfig {
        let penalty = self.value("missing_eos_penalty").as_f64();
        ScoreConfig {
            scaling: ScoreScaling::None,
            clip: None,
            missing_eos: penalty.map_or(MissingEos::None, |penalty| MissingEos::Penalty(penalty as f32)),
        }
    }

    fn advantage(&self) -> AdvantageConfig {
        AdvantageConfig {
            gae: GaeConfig { gamma: self.number("gamma"), lambda: self.number("lam") },
            whiten_rewards: self.value("whiten_rewards").as_bool().unwrap(),
            whiten_advantages: true,
            variance: Variance::Unbiased,
        }
    }

    fn policy(&self) -> PolicyConfig {
        PolicyConfig {
            cliprange_low: self.number("cliprange"),
            cliprange_high: self.number("cliprange"),
            dual_clip: None,
            entropy_coef: 0.0,
            ratio_threshold: None,
            ratio_level: RatioLevel::Token,
        }
    }

    fn value_config(&self) -> ValueConfig {
        ValueConfig { cliprange_value: Some(self.number("cliprange_value")), vf_coef: self.number("vf_coef") }
    }
}

/// TRL ran in f32, so its own rounding is in the errors. Measured worst 2.9e-7.
const MODERN: f64 = 1.5e-6;

struct Modern<'a> {
    tensors: Tensors<'a>,
    window: usize,
    spans: Spans,
    value_spans: Spans,
    has_eos_i: Vec<bool>,
}

impl Modern<'_> {
    fn tokens(&self, name: &str) -> Vec<f32> {
        ragged(&self.tensors.get(name), self.window, &self.spans)
    }

    fn readings(&self, name: &str) -> Vec<f32> {
        ragged(&self.tensors.get(name), self.window, &self.value_spans)
    }

    /// From the behaviour log-probs and the raw scores to advantages and returns, each step from TRL's numbers of the
    /// step before.
    fn check_rollout(&self, case: &str, settings: &Settings, metrics: &Value, worst: &mut Worst) {
        let named = |name: &str| format!("{case}/{name}");
        let (logprob_m, ref_logprob_m) =
            (self.tokens(&named("logprobs")), self.tokens(&named("ref_logprobs")));

        let kl_m = kl_estimates(settings.kl_estimator(), &logprob_m, &ref_logprob_m);
        worst.check(&named("kl"), &kl_m, &self.tokens(&named("kl")), MODERN);

        let score_i = shape_scores(
            &self.tensors.get("scores_raw"),
            &self.has_eos_i,
            &settings.score(),
            &RunningMoments::new(),
        );
        assert_eq!(score_i, self.tensors.get(&named("scores")), "{case}");

        let kl_coef = settings.number("kl_coef");
        let rewards = shape_rewards(&kl_m, &score_i, kl_coef, &self.spans, &self.value_spans);
        let expect_u = self.readings(&named("rewards_unwhitened"));
        worst.check(&named("rewards"), &rewards.reward_u, &expect_u, MODERN);

        let value_u = self.readings(&named("values"));
        let config = settings.advantage();
        let estimate = |config| {
            estimate_advantages(&expect_u, &value_u, &self.spans, &self.value_spans, config, |m| m).unwrap()
        };
        let out = estimate(config);
        worst.check(&named("returns"), &out.return_u, &self.readings(&named("returns")), MODERN);
        worst.check(&named("advantages"), &out.advantage_m, &self.tokens(&named("advantages")), MODERN);
        let raw = estimate(AdvantageConfig { whiten_advantages: false, ..config });
        let expect = self.tokens(&named("advantages_unwhitened"));
        worst.check(&named("advantages_unwhitened"), &raw.advantage_m, &expect, MODERN);

        self.check_rollout_metrics(case, &logprob_m, &score_i, &rewards, metrics, worst);
    }

    fn check_rollout_metrics(
        &self,
        case: &str,
        logprob_m: &[f32],
        score_i: &[f32],
        rewards: &ShapedRewards,
        metrics: &Value,
        worst: &mut Worst,
    ) {
        let stats = RolloutStats::new(logprob_m, score_i, rewards, &self.spans);
        let pads = (self.window * self.spans.count() - self.spans.total()) as f64;
        for name in [
            "objective/kl",
            "objective/entropy",
            "objective/non_score_reward",
            "objective/rlhf_reward",
            "objective/scores",
        ] {
            let mut got = stats.value(name).unwrap();
            if name == "objective/entropy" {
                // TRL's sentinel log-prob of 1 on each pad.
                got -= pads / self.spans.count() as f64;
            }
            worst.check_one(&format!("{case} {name}"), got, number(&metrics[name]), MODERN);
        }
    }

    /// Each forward pass of the update: losses and statistics from TRL's log-probs, values, advantages and returns.
    fn check_pass(&self, case: &str, k: usize, pass: &Value, settings: &Settings, worst: &mut Worst) {
        let named = |name: &str| format!("{case}/{name}");
        let rows = list(&pass["rows"], count);
        let (spans, value_spans) = (pick_spans(&self.spans, &rows), pick_spans(&self.value_spans, &rows));
        let positions = rows.len() * self.window;
        // Pass k of [k, m, r], its own rows already picked.
        let of_pass = |name: &str, spans: &Spans| {
            let all = self.tensors.get(&named(name));
            ragged(&all[k * positions..(k + 1) * positions], self.window, spans)
        };
        let logprob_m = of_pass("new_logprobs", &spans);
        let zeros = vec![0.0; spans.total()];
        let batch = PolicyBatch {
            spans: &spans,
            logprob_m: &logprob_m,
            entropy_m: &zeros,
            old_logprob_m: &pick(&self.tokens(&named("logprobs")), &self.spans, &rows),
            advantage_m: &pick(&self.tokens(&named("advantages")), &self.spans, &rows),
        };
        let tokens = spans.total() as f64;
        let policy = policy_loss(batch, &settings.policy(), Aggregation::TokenMean { tokens });
        let value = value_loss(
            &of_pass("vpred", &value_spans),
            &pick(&self.readings(&named("values")), &self.value_spans, &rows),
            &pick(&self.readings(&named("returns")), &self.value_spans, &rows),
            &value_spans,
            &settings.value_config(),
            Aggregation::TokenMean { tokens: value_spans.total() as f64 },
        );

        // TRL's means over padded positions: a pad has difference 0 and ratio 1.
        let pads = positions as f64 - tokens;
        let approxkl = policy.stats.kl_old_new_k2_sum / positions as f64;
        let ratio = (policy.stats.value("val/ratio").unwrap() * tokens + pads) / positions as f64;
        let clipfrac = policy.stats.value("policy/clipfrac_avg").unwrap();
        let vf_clipfrac = value.stats.value("val/clipfrac_avg").unwrap();
        for (name, got) in [
            ("pg_loss", policy.loss),
            ("pg_clipfrac", clipfrac),
            ("approxkl", approxkl),
            ("ratio", ratio),
            ("vf_loss", value.stats.value_loss),
            ("vf_clipfrac", vf_clipfrac),
            ("loss", policy.loss + value.loss),
        ] {
            // The policy loss is a mean of terms that cancel: its rounding is relative to a term of size one.
            let scale = if matches!(name, "pg_loss" | "loss") { 1.0 } else { 0.0 };
            let what = format!("{case} pass {k} {name}");
            worst.check_scaled(&what, got, number(&pass[name]), scale, MODERN);
        }
    }
}

/// The worst error of a test, printed for the comments on the tolerances.
#[derive(Default)]
struct Worst(f64);

impl Worst {
    #[track_caller]
    fn check(&mut self, what: &str, got: &[f32], expect: &[f32], tolerance: f64) {
        self.0 = self.0.max(worst_error(what, &widen(got), &widen(expect), tolerance));
    }

    #[track_caller]
    fn check_one(&mut self, what: &str, got: f64, expect: f64, tolerance: f64) {
        self.check_scaled(what, got, expect, 0.0, tolerance);
    }

    /// Relative to the expected value or to `scale`, whichever is larger.
    #[track_caller]
    fn check_scaled(&mut self, what: &str, got: f64, expect: f64, scale: f64, tolerance: f64) {
        let largest = expect.abs().max(scale);
        let error = (got - expect).abs() / if largest > 0.0 { largest } else { 1.0 };
        assert!(error <= tolerance, "{what}: {got} expected {expect} error {error:.1e}");
        self.0 = self.0.max(error);
    }
}

#[test]
fn modern_ppo_is_trl_s() {
    let json: Value = serde_json::from_slice(&read("ppo_modern.json")).unwrap();
    let bytes = read("ppo_modern.safetensors");
    let tensors = Tensors(SafeTensors::deserialize(&bytes).unwrap());
    let spans = Spans::from_lengths(list(&json["response_tokens"], count));
    let window = tensors.0.tensor("responses").unwrap().shape()[1];
    let modern = Modern {
        value_spans: ScorePlacement::AfterLast.value_spans(&spans, window),
        has_eos_i: list(&json["has_eos"], |x| x.as_bool().unwrap()),
        tensors,
        window,
        spans,
    };
    assert!(modern.has_eos_i.contains(&false) && modern.value_spans.total() > modern.spans.total());

    let mut worst = Worst::default();
    let cases = json["cases"].as_object().unwrap();
    for (name, case) in cases {
        let settings = Settings { own: &case["settings"], defaults: &json["defaults"] };
        modern.check_rollout(name, &settings, &case["metrics"], &mut worst);
        let passes = case["micro_batches"].as_array().unwrap();
        for (k, pass) in passes.iter().enumerate() {
            modern.check_pass(name, k, pass, &settings, &mut worst);
        }
        assert!(passes.len() >= 4, "{name}");
    }
    assert_eq!(cases.len(), 8);
    println!("worst error {:.1e}", worst.0);
}

// -------------------------------------------------------------------------------------------------------- classic

/// TRL ran in f64 from f32 inputs; what comes out in f32 here is rounded once. Measured worst 8.5e-8.
const CLASSIC: f64 = 4e-7;

fn classic() -> Value {
    serde_json::from_slice(&read("ppo_classic.json")).unwrap()
}

#[test]
fn the_adaptive_controller_is_trl_s() {
    let mut worst = Worst::default();
    for (name, case) in classic()["kl_controller"].as_object().unwrap() {
        let mut controller = KlController::Adaptive {
            coef: number(&case["init_kl_coef"]),
            target_nats_per_sequence: number(&case["target"]),
            horizon_episodes: number(&case["horizon"]),
        };
        let (current, expect) = (numbers(&case["current"]), numbers(&case["value"]));
        assert_eq!(current.len(), 50);
        for (step, (&kl, &expect)) in current.iter().zip(&expect).enumerate() {
            controller.update(kl, count(&case["n_steps"]) as u64);
            worst.check_one(&format!("{name} {step}"), controller.coef(), expect, 1e-15);
        }
    }
    println!("worst error {:.1e}", worst.0);
}

#[test]
fn classic_rewards_are_trl_s() {
    let golden = classic();
    let inputs = &golden["inputs"];
    let logprob = rows(&inputs["logp"]);
    let spans = Spans::from_lengths(logprob.iter().map(Vec::len));
    let value_spans = ScorePlacement::LastToken.value_spans(&spans, 0);
    let (logprob_m, ref_logprob_m) = (narrow(logprob.concat()), narrow(rows(&inputs["ref_logp"]).concat()));
    let score_i = narrow(numbers(&inputs["scores"]));
    let kl_coef = number(&golden["rewards"]["kl_coef"]);

    let mut worst = Worst::default();
    for (kind, case) in golden["rewards"]["kinds"].as_object().unwrap() {
        let kl_m = match kind.parse().unwrap() {
            KlPenalty::Sampled(estimator) => kl_estimates(estimator, &logprob_m, &ref_logprob_m),
            KlPenalty::Full => {
                let of = |key: &str| list(&inputs["full"][key], rows).concat();
                let tokens = of("logp").into_iter().zip(of("ref_logp"));
                tokens.map(|(p, q)| kl_full(&narrow(p), &narrow(q)) as f32).collect()
            }
        };
        let of = |key: &str| narrow(rows(&case[key]).concat());
        worst.check(&format!("{kind} kl"), &kl_m, &of("kl"), CLASSIC);
        let rewards = shape_rewards(&kl_m, &score_i, kl_coef, &spans, &value_spans);
        worst.check(&format!("{kind} reward"), &rewards.reward_u, &of("reward"), CLASSIC);
        let expect: Vec<f64> = rows(&case["non_score_reward"]).iter().map(|row| row.iter().sum()).collect();
        worst_error(&format!("{kind} non_score"), &rewards.non_score_i, &expect, CLASSIC);

        if kind == "kl" {
            let stats = RolloutStats::new(&logprob_m, &score_i, &rewards, &spans);
            let expect = &golden["stats"];
            worst_error("kl_dist", &rewards.kl_nats_i, &numbers(&expect["objective/kl_dist"]), CLASSIC);
            let tokens = spans.total() as f64;
            for (name, got) in [
                ("objective/kl", stats.value("objective/kl").unwrap()),
                ("objective/entropy", stats.value("objective/entropy").unwrap()),
                ("ppo/mean_scores", stats.value("objective/scores").unwrap()),
                ("ppo/std_scores", stats.value("objective/scores_std").unwrap()),
                // Classic divides by tokens, modern by sequences.
                ("ppo/mean_non_score_reward", stats.non_score_sum / tokens),
            ] {
                worst.check_one(name, got, number(&expect[name]), CLASSIC);
            }
        }
    }
    assert_eq!(golden["rewards"]["kinds"].as_object().unwrap().len(), 4);
    println!("worst error {:.1e}", worst.0);
}

#[test]
fn classic_advantages_are_trl_s() {
    let golden = classic();
    let mut worst = Worst::default();
    for (name, case) in golden["advantages"].as_object().unwrap() {
        let settings = &case["settings"];
        let spans = Spans::from_lengths(list(&case["lengths"], count));
        let setting = |key: &str, default: f64| settings.get(key).map_or(default, number);
        let config = AdvantageConfig {
            gae: GaeConfig { gamma: setting("gamma", 1.0), lambda: setting("lam", 0.95) },
            whiten_rewards: settings.get("whiten_rewards").is_some_and(|x| x.as_bool().unwrap()),
            whiten_advantages: true,
            variance: Variance::Unbiased,
        };
        let of = |key: &str| narrow(rows(&case[key]).concat());
        let (reward_u, value_u) = (of("rewards"), of("values"));
        let out = estimate_advantages(&reward_u, &value_u, &spans, &spans, config, |m| m).unwrap();
        if name == "whiten" {
            // TRL 0.11.4 does not mask again after whitening: the pads after a response get rewards of -mean / std + mean,
            // and GAE carries them into the response, so its numbers depend on how far the batch is padded. There is
            // nothing to pad here; where TRL pads nothing either (`whiten_equal`), the two agree.
            let off = (out.return_u[0] - of("returns")[0]).abs();
            assert!(off > 0.01, "{off}");
            continue;
        }
        worst.check(&format!("{name} advantages"), &out.advantage_m, &of("advantages"), CLASSIC);
        worst.check(&format!("{name} returns"), &out.return_u, &of("returns"), CLASSIC);
    }
    println!("worst error {:.1e}", worst.0);
}

/// Entropy of each row of logits, nats.
fn entropies(logits: &[Vec<f64>]) -> Vec<f32> {
    let entropy = |row: &Vec<f64>| {
        let largest = row.iter().fold(f64::NEG_INFINITY, |m, &x| m.max(x));
        let total: f64 = row.iter().map(|x| (x - largest).exp()).sum();
        row.iter().map(|x| (x - largest).exp() / total * (total.ln() + largest - x)).sum::<f64>() as f32
    };
    logits.iter().map(entropy).collect()
}

#[test]
fn classic_losses_are_trl_s() {
    let golden = classic();
    let inputs = &golden["loss"]["inputs"];
    let of = |key: &str| narrow(rows(&inputs[key]).concat());
    let spans = Spans::from_lengths(rows(&inputs["old_logp"]).iter().map(Vec::len));
    let entropy_m = entropies(&list(&inputs["new_logits"], rows).concat());
    let aggregation = Aggregation::TokenMean { tokens: spans.total() as f64 };

    let mut worst = Worst::default();
    let cases = golden["loss"]["cases"].as_object().unwrap();
    for (name, case) in cases {
        let setting = |key: &str, default: f64| case["settings"].get(key).map_or(default, number);
        let config = PolicyConfig {
            cliprange_low: setting("cliprange", 0.2),
            cliprange_high: setting("cliprange", 0.2),
            dual_clip: None,
            entropy_coef: 0.0,
            ratio_threshold: Some(setting("ratio_threshold", 10.0)),
            ratio_level: RatioLevel::Token,
        };
        let batch = PolicyBatch {
            spans: &spans,
            logprob_m: &of("new_logp"),
            entropy_m: &entropy_m,
            old_logprob_m: &of("old_logp"),
            advantage_m: &of("advantages"),
        };
        let policy = policy_loss(batch, &config, aggregation);
        let skipped = policy.stats.guarded_calls > 0;
        assert_eq!(skipped, case["warned"].as_bool().unwrap(), "{name}");
        // A skipped mini-batch skips its value loss too: that is the caller's part.
        let value_config = ValueConfig {
            cliprange_value: Some(setting("cliprange_value", 0.2)),
            vf_coef: if skipped { 0.0 } else { setting("vf_coef", 0.1) },
        };
        let value =
            value_loss(&of("vpreds"), &of("values"), &of("returns"), &spans, &value_config, aggregation);

        // The policy's terms are of size one and cancel.
        worst.check_scaled(
            &format!("{name} policy"),
            policy.loss,
            number(&case["policy_loss"]),
            1.0,
            CLASSIC,
        );
        let expect = number(&case["weighted_value_loss"]);
        worst.check_one(&format!("{name} value"), value.loss, expect, CLASSIC);
        let gradient = |key: &str| narrow(rows(&case[key]).concat());
        worst.check(&format!("{name} d_logp"), &policy.d_logprob_m, &gradient("d_new_logp"), CLASSIC);
        worst.check(&format!("{name} d_value"), &value.d_scalar, &gradient("d_vpreds"), CLASSIC);
        for (metric, got) in [
            ("policy/entropy", policy.stats.value("policy/entropy_avg")),
            ("policy/approxkl", policy.stats.value("policy/approxkl_avg")),
            ("policy/policykl", policy.stats.policykl()),
            ("policy/clipfrac", policy.stats.value("policy/clipfrac_avg")),
            ("policy/advantages_mean", policy.stats.value("policy/advantages_mean")),
            ("returns/mean", value.stats.value("returns/mean")),
            ("returns/var", value.stats.value("returns/var")),
            ("val/vpred", value.stats.value("val/vpred")),
            ("val/error", value.stats.value("val/error")),
            ("val/clipfrac", value.stats.value("val/clipfrac_avg")),
            ("val/mean", value.stats.value("val/mean")),
            ("val/var", value.stats.value("val/var")),
        ] {
            // Means of terms of size one, some of which cancel.
            let expect = number(&case["stats"][metric]);
            worst.check_scaled(&format!("{name} {metric}"), got.unwrap(), expect, 1.0, CLASSIC);
        }
    }
    assert_eq!(cases.len(), 3);
    println!("worst error {:.1e}", worst.0);
}

#[test]
fn early_stopping_is_trl_s() {
    for case in classic()["early_stop"].as_array().unwrap() {
        let on = case["early_stopping"].as_bool().unwrap();
        let stats =
            PolicyStats { tokens: 1, kl_old_new_k1_sum: number(&case["policykl"]), ..PolicyStats::default() };
        let stop = on && stats.should_stop_early(number(&case["target_kl"]));
        assert_eq!(stop, case["stop"].as_bool().unwrap(), "{case}");
    }
}

#[test]
fn running_moments_and_shaped_scores_are_trl_s() {
    let golden = classic();
    let clip = number(&golden["moments"]["score_clip"]) as f32;
    let mut worst = Worst::default();
    let mut running = RunningMoments::new();
    let batches = golden["moments"]["batches"].as_array().unwrap();
    for (k, batch) in batches.iter().enumerate() {
        let score_i = narrow(numbers(&batch["scores"]));
        running.update(&Moments::of(&score_i));
        assert_eq!(running.count as f64, number(&batch["count"]));
        // TRL keeps its moments in f32. Measured worst 1.3e-7, shaped scores included.
        worst.check_scaled(&format!("mean {k}"), running.mean, number(&batch["mean"]), 1.0, 7e-7);
        worst.check_one(&format!("std {k}"), running.std(), number(&batch["std"]), 7e-7);
        for (name, scaling, clip) in [
            ("none", ScoreScaling::None, None),
            ("scaling", ScoreScaling::Scale, None),
            ("scaling_norm", ScoreScaling::Normalise, None),
            ("scaling_norm_clip", ScoreScaling::Normalise, Some(clip)),
            ("clip", ScoreScaling::None, Some(clip)),
        ] {
            let config = ScoreConfig { scaling, clip, missing_eos: MissingEos::None };
            let got = shape_scores(&score_i, &vec![true; score_i.len()], &config, &running);
            let expect = narrow(numbers(&batch["shaped"][name]));
            worst.check(&format!("{name} {k}"), &got, &expect, 7e-7);
        }
    }
    assert_eq!(batches.len(), 6);
    println!("worst error {:.1e}", worst.0);
}
