//! The objectives against stored values of TRL and OpenRLHF. `golden/make_*.py` say how each value was made.
//!
//! Errors are relative to the largest number compared. Losses and metrics come out in f64 and agree to rounding;
//! gradients come out in f32.

use polity_train::objectives::dpo::{
    DpoConfig, DpoLoss, FDivergence, PairBatch, PairDenominators, dpo, sequence_logps,
};
use polity_train::objectives::kto::{KtoBatch, KtoConfig, kto, kto_baseline};
use polity_train::objectives::reward::bradley_terry;
use polity_train::objectives::sft::sft;
use polity_train::objectives::{PairColumns, Spans, Stats};
use serde_json::Value;

/// Losses and metrics where both sides compute in f64. Measured worst 3.6e-16.
const F64: f64 = 2e-15;
/// Gradients, rounded to f32 here. Measured worst 5.3e-8; half a unit in the last place is 6e-8.
const F32_GRADIENT: f64 = 1e-7;

fn golden(name: &str) -> Value {
    let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("a number, got {value}"))
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap_or_else(|| panic!("a list, got {value}")).iter().map(number).collect()
}

fn rows(value: &Value) -> Vec<Vec<f64>> {
    value.as_array().unwrap_or_else(|| panic!("a list, got {value}")).iter().map(numbers).collect()
}

/// Inputs are f32 values, printed shortly: the decimal itself is another number in f64.
fn input_rows(value: &Value) -> Vec<Vec<f64>> {
    let round = |row: Vec<f64>| row.into_iter().map(|x| f64::from(x as f32)).collect();
    rows(value).into_iter().map(round).collect()
}

/// `key` of `settings`, or the default that the script names.
fn setting(settings: &Value, key: &str, default: f64) -> f64 {
    settings.get(key).map_or(default, number)
}

/// The worst errors of a test, printed for the comments on the tolerances.
#[derive(Default)]
struct Worst {
    value: f64,
    gradient: f64,
}

impl Worst {
    /// Compares f64 results, relative to the largest expected number.
    #[track_caller]
    fn check(&mut self, what: &str, got: &[f64], expect: &[f64], tolerance: f64) {
        self.value = self.value.max(worst_error(what, got, expect, tolerance));
    }

    /// Compares gradients, relative to the largest expected number.
    #[track_caller]
    fn check_gradient(&mut self, what: &str, got: &[f32], expect: &[f64], tolerance: f64) {
        let got = got.iter().map(|&x| x.into()).collect::<Vec<f64>>();
        let what = format!("{what} gradient");
        self.gradient = self.gradient.max(worst_error(&what, &got, expect, tolerance));
    }

    fn print(&self, what: &str) {
        println!("{what}: worst error {:.1e}, of gradients {:.1e}", self.value, self.gradient);
    }
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

fn narrow(values: Vec<f64>) -> Vec<f32> {
    values.into_iter().map(|x| x as f32).collect()
}

/// Chosen and rejected rows, interleaved as pairs.
fn interleave(chosen: &Value, rejected: &Value) -> (Spans, Vec<f64>) {
    let rows: Vec<Vec<f64>> =
        rows(chosen).into_iter().zip(rows(rejected)).flat_map(|(c, r)| [c, r]).collect();
    (Spans::from_lengths(rows.iter().map(Vec::len)), rows.concat())
}

/// The inputs of a case, in this crate's layout.
struct Pairs {
    spans: Spans,
    logprob_m: Vec<f32>,
    ref_logprob_m: Vec<f32>,
    log_sum_sq_prob_m: Vec<f32>,
}

impl Pairs {
    fn new(inputs: &Value) -> Pairs {
        let (spans, logprob_m) = interleave(&inputs["chosen"], &inputs["rejected"]);
        let (_, ref_logprob_m) = interleave(&inputs["ref_chosen"], &inputs["ref_rejected"]);
        let (_, log_sum_sq_prob_m) = interleave(&inputs["chosen_logsumsq"], &inputs["rejected_logsumsq"]);
        Pairs {
            spans,
            logprob_m: narrow(logprob_m),
            ref_logprob_m: narrow(ref_logprob_m),
            log_sum_sq_prob_m: narrow(log_sum_sq_prob_m),
        }
    }

    fn denominators(&self) -> PairDenominators {
        let pairs = self.spans.count() / 2;
        let chosen_tokens: usize = (0..pairs).map(|p| self.spans.length(2 * p)).sum();
        PairDenominators { pairs: pairs as f64, chosen_tokens: chosen_tokens as f64 }
    }
}

fn dpo_config(settings: &Value) -> DpoConfig {
    let names: Vec<&str> = settings.get("loss_type").map_or(vec!["sigmoid"], |list| {
        list.as_array().unwrap().iter().map(|x| x.as_str().unwrap()).collect()
    });
    let weights = settings.get("loss_weights").map(numbers);
    let divergence = settings.get("f_divergence_type").map_or("reverse_kl", |x| x.as_str().unwrap());
    DpoConfig {
        losses: DpoConfig::mixture(&names, weights.as_deref()).unwrap(),
        beta: number(&settings["beta"]),
        label_smoothing: setting(settings, "label_smoothing", 0.0),
        f_divergence: FDivergence::parse(divergence, setting(settings, "f_alpha_divergence_coef", 0.5))
            .unwrap(),
        ld_alpha: settings.get("ld_alpha").map(number),
        use_weighting: settings.get("use_weighting").is_some_and(|x| x.as_bool().unwrap()),
        discopop_tau: setting(settings, "discopop_tau", 0.05),
        simpo_gamma: setting(settings, "simpo_gamma", 0.5),
        cpo_alpha: setting(settings, "cpo_alpha", 1.0),
    }
}

/// Runs one case; compares the loss, every token's gradient and TRL's metrics.
#[track_caller]
fn check_pairs(
    worst: &mut Worst,
    name: &str,
    case: &Value,
    pairs: &Pairs,
    config: &DpoConfig,
    tolerance: [f64; 2],
) {
    let ref_logp_i = sequence_logps(&pairs.ref_logprob_m, &pairs.spans, config.ld_alpha);
    let batch = PairBatch {
        spans: &pairs.spans,
        logprob_m: &pairs.logprob_m,
        ref_logp_i: Some(&ref_logp_i),
        log_sum_sq_prob_m: Some(&pairs.log_sum_sq_prob_m),
        columns: PairColumns::NONE,
    };
    let out = dpo(batch, config, pairs.denominators());
    worst.check(&format!("{name} loss"), &[out.loss], &[number(&case["loss"])], tolerance[0]);
    let (_, expect) = interleave(&case["d_chosen"], &case["d_rejected"]);
    worst.check_gradient(name, &out.d_logprob_m, &expect, tolerance[1]);
    // The rewards are small differences of the log-probs, and are compared on the log-probs' scale.
    let (mut got, mut expect) = (vec![], vec![]);
    for (metric, value) in case.get("metrics").and_then(Value::as_object).into_iter().flatten() {
        let stat = out.stats.value(metric).unwrap();
        if metric == "rewards/accuracies" {
            // TRL averages it in f32.
            worst_error(&format!("{name} {metric}"), &[stat], &[number(value)], 1e-7);
        } else {
            got.push(stat);
            expect.push(number(value));
        }
    }
    worst.check(&format!("{name} metrics"), &got, &expect, tolerance[0]);
}

#[test]
fn dpo_losses_are_trl_s() {
    let golden = golden("dpo_losses.json");
    let cases = golden["dpo"]["cases"].as_object().unwrap();
    let (mut in_f64, mut in_f32, mut in_f32_discopop) = <(Worst, Worst, Worst)>::default();
    let mut compared = vec![];
    for (name, case) in cases {
        let config = dpo_config(&case["settings"]);
        if name == "aot.wpo" {
            // TRL's trainer refuses this, and so does this crate; the stored value is of weights on the wrong pairs.
            assert!(config.validate().is_err());
            continue;
        }
        let pairs = Pairs::new(&golden["inputs"][case["input"].as_str().unwrap()]);
        if case["dtype"] == "float64" {
            check_pairs(&mut in_f64, name, case, &pairs, &config, [F64, F32_GRADIENT]);
        } else {
            // Where TRL runs in f32 only. Measured worst 6.8e-7, and 1.6e-5 for discopop, which divides the logit's
            // rounding error by tau = 0.05 and then takes the exponential.
            let tolerance = if name.starts_with("discopop") { 8e-5 } else { 3.4e-6 };
            let worst = if name.starts_with("discopop") { &mut in_f32_discopop } else { &mut in_f32 };
            check_pairs(worst, name, case, &pairs, &config, [tolerance, tolerance]);
        }
        compared.extend(config.losses.iter().map(|(loss, _)| *loss));
    }
    in_f64.print("TRL in f64");
    in_f32.print("TRL in f32");
    in_f32_discopop.print("TRL in f32, discopop");
    for &(name, loss) in DpoLoss::NAMES {
        let trl_dpo =
            !matches!(loss, DpoLoss::Cdpo | DpoLoss::IpoSum | DpoLoss::Simpo | DpoLoss::Cpo | DpoLoss::Orpo);
        assert_eq!(compared.contains(&loss), trl_dpo, "{name}");
    }
    assert!(cases.len() > 100);
}

#[test]
fn cdpo_and_ipo_sum_are_openrlhf_s() {
    let golden = golden("dpo_losses.json");
    let mut worst = Worst::default();
    for (kind, loss) in [("cdpo", DpoLoss::Cdpo), ("ipo_sum", DpoLoss::IpoSum)] {
        for (name, case) in golden[kind].as_object().unwrap() {
            let pairs = Pairs::new(&golden["inputs"][case["input"].as_str().unwrap()]);
            let config = DpoConfig { losses: vec![(loss, 1.0)], ..dpo_config(&case["settings"]) };
            check_pairs(&mut worst, name, case, &pairs, &config, [F64, F32_GRADIENT]);
        }
    }
    worst.print("all");
}

/// TRL's CPO trainer (`sigmoid` is CPO, `simpo` is SimPO) and its ORPO trainer.
#[test]
fn reference_free_losses_are_trl_s() {
    let golden = golden("dpo_losses.json");
    let pairs = Pairs::new(&golden["inputs"]["mild"]);
    let run = |config: &DpoConfig| {
        let batch = PairBatch {
            spans: &pairs.spans,
            logprob_m: &pairs.logprob_m,
            ref_logp_i: None,
            log_sum_sq_prob_m: None,
            columns: PairColumns::NONE,
        };
        dpo(batch, config, pairs.denominators())
    };
    let mut worst = Worst::default();
    let mut check = |name: &str, case: &Value, losses: Vec<(DpoLoss, f64)>, tolerance: [f64; 2]| {
        let settings = &case["settings"];
        let config = DpoConfig {
            losses,
            beta: number(&settings["beta"]),
            label_smoothing: setting(settings, "label_smoothing", 0.0),
            f_divergence: FDivergence::ReverseKl,
            ld_alpha: None,
            use_weighting: false,
            discopop_tau: 0.05,
            simpo_gamma: setting(settings, "simpo_gamma", 0.5),
            cpo_alpha: setting(settings, "cpo_alpha", 1.0),
        };
        let out = run(&config);
        worst.check(&format!("{name} loss"), &[out.loss], &[number(&case["loss"])], tolerance[0]);
        let (_, expect) = interleave(&case["d_chosen"], &case["d_rejected"]);
        worst.check_gradient(name, &out.d_logprob_m, &expect, tolerance[1]);
        let mean = |key: &str| numbers(&case[key]).iter().sum::<f64>() / 5.0;
        for (metric, expect) in [
            ("nll_loss", number(&case["nll"])),
            ("rewards/chosen", mean("chosen_rewards")),
            ("rewards/rejected", mean("rejected_rewards")),
        ] {
            let got = out.stats.value(metric).unwrap();
            worst.check(&format!("{name} {metric}"), &[got], &[expect], tolerance[0]);
        }
        out.stats
    };
    let mut compared = 0;
    for (name, case) in golden["cpo"].as_object().unwrap() {
        let alpha = number(&case["settings"]["cpo_alpha"]);
        let losses = match case["settings"]["loss_type"].as_str().unwrap() {
            "sigmoid" => vec![(DpoLoss::Cpo, 1.0)],
            "simpo" => vec![(DpoLoss::Simpo, 1.0), (DpoLoss::Sft, alpha)],
            // CPO with hinge or ipo has no name here.
            _ => continue,
        };
        check(name, case, losses, [F64, F32_GRADIENT]);
        compared += 1;
    }
    assert_eq!(compared, 6);
    for (name, case) in golden["orpo"].as_object().unwrap() {
        // TRL computes the odds in f32. Measured worst 1e-7.
        let stats = check(name, case, vec![(DpoLoss::Orpo, 1.0)], [5e-7, 5e-7]);
        for metric in ["log_odds_ratio", "log_odds_chosen"] {
            let (got, expect) = (stats.value(metric).unwrap(), number(&case[metric]));
            assert!((got - expect).abs() < 5e-7, "{name} {metric}: {got} expected {expect}");
        }
    }
    worst.print("all");
}

#[test]
fn kto_losses_are_trl_s() {
    let golden = golden("dpo_losses.json");
    let inputs = &golden["inputs"]["mild"];
    let all = |chosen: &str, rejected: &str| -> Vec<Vec<f64>> {
        [input_rows(&inputs[chosen]), input_rows(&inputs[rejected])].concat()
    };
    let (policy, reference) = (all("chosen", "rejected"), all("ref_chosen", "ref_rejected"));
    let kto_inputs = &golden["kto"]["inputs"];
    let label: Vec<bool> =
        kto_inputs["label"].as_array().unwrap().iter().map(|x| x.as_bool().unwrap()).collect();
    let sums = |rows: &[Vec<f64>]| rows.iter().map(|row| row.iter().sum()).collect::<Vec<f64>>();

    let mut worst = Worst::default();
    for (name, case) in golden["kto"]["cases"].as_object().unwrap() {
        let picked: Vec<usize> = numbers(&case["rows"]).iter().map(|&x| x as usize).collect();
        let pick = |rows: &[Vec<f64>]| picked.iter().map(|&i| rows[i].clone()).collect::<Vec<_>>();
        let kl_ref = format!("kl_ref_{}", case["kl_ref"].as_str().unwrap());
        let baseline_nats = kto_baseline(
            &sums(&pick(&input_rows(&kto_inputs["kl_policy"]))),
            &sums(&pick(&input_rows(&kto_inputs[kl_ref.as_str()]))),
        );
        let settings = &case["settings"];
        let config = KtoConfig {
            loss: settings["loss_type"].as_str().unwrap().parse().unwrap(),
            beta: number(&settings["beta"]),
            desirable_weight: number(&settings["desirable_weight"]),
            undesirable_weight: number(&settings["undesirable_weight"]),
        };
        let policy = pick(&policy);
        let logprob_m = narrow(policy.concat());
        let batch = KtoBatch {
            spans: &Spans::from_lengths(policy.iter().map(Vec::len)),
            logprob_m: &logprob_m,
            ref_logp_i: &sums(&pick(&reference)),
            good_i: &picked.iter().map(|&i| label[i]).collect::<Vec<_>>(),
            baseline_nats,
        };
        let out = kto(batch, &config, picked.len() as f64);
        worst.check(&format!("{name} loss"), &[out.loss], &[number(&case["loss"])], F64);
        let expect = rows(&case["d_policy"]).concat();
        worst.check_gradient(name, &out.d_logprob_m, &expect, F32_GRADIENT);
        for (metric, expect) in case["metrics"].as_object().unwrap() {
            let got = out.stats.value(metric).unwrap();
            // The margin is a difference of sums. Measured worst 2.7e-15.
            worst.check(&format!("{name} {metric}"), &[got], &[number(expect)], 1.4e-14);
        }
    }
    worst.print("all");
}

#[test]
fn reward_losses_are_trl_s() {
    let golden = golden("dpo_losses.json");
    let inputs = &golden["reward"]["inputs"];
    let interleave = |chosen: &Value, rejected: &Value| -> Vec<f64> {
        numbers(chosen).into_iter().zip(numbers(rejected)).flat_map(|(c, r)| [c, r]).collect()
    };
    let reward_i = narrow(interleave(&inputs["chosen"], &inputs["rejected"]));
    let margin_p = narrow(numbers(&inputs["margin"]));
    let mut worst = Worst::default();
    for (name, case) in golden["reward"]["cases"].as_object().unwrap() {
        let margin_p = case["margin"].as_bool().unwrap().then_some(margin_p.as_slice());
        let coefficient = case["center_rewards_coefficient"].as_f64().unwrap_or(0.0);
        let columns = PairColumns { margin_p, ..PairColumns::NONE };
        let out = bradley_terry(&reward_i, columns, coefficient, 5.0);
        worst.check(&format!("{name} loss"), &[out.loss], &[number(&case["loss"])], F64);
        let expect = interleave(&case["d_chosen"], &case["d_rejected"]);
        worst.check_gradient(name, &out.d_scalar, &expect, F32_GRADIENT);
        for (metric, expect) in case["metrics"].as_object().unwrap() {
            let got = out.stats.value(metric).unwrap();
            let what = format!("{name} {metric}");
            if metric == "accuracy" {
                // TRL averages it in f32.
                worst_error(&what, &[got], &[number(expect)], 1e-7);
            } else {
                worst.check(&what, &[got], &[number(expect)], F64);
            }
        }
    }
    worst.print("all");
}

#[test]
fn sft_losses_are_trl_s() {
    let golden = golden("dpo_losses.json");
    let logprob_m = narrow(rows(&golden["inputs"]["mild"]["chosen"]).concat());
    let mut worst = Worst::default();
    for (name, case) in golden["sft"].as_object().unwrap() {
        let loss = case["loss_type"].as_str().unwrap().parse().unwrap();
        let denominator = case["num_items_in_batch"].as_f64().unwrap_or(logprob_m.len() as f64);
        let out = sft(&logprob_m, None, loss, denominator);
        worst.check(&format!("{name} loss"), &[out.loss], &[number(&case["loss"])], F64);
        let expect = rows(&case["d_chosen"]).concat();
        worst.check_gradient(name, &out.d_logprob_m, &expect, F32_GRADIENT);
    }
    worst.print("all");
}
