//! Tests of the preference losses: by hand, by central differences in every option, and by law.

use super::super::check::{central_difference, spread};
use super::*;
use std::f64::consts::LN_2;

fn config(losses: &[DpoLoss]) -> DpoConfig {
    DpoConfig {
        losses: losses.iter().map(|&loss| (loss, 1.0)).collect(),
        beta: 0.5,
        label_smoothing: 0.0,
        f_divergence: FDivergence::ReverseKl,
        ld_alpha: None,
        use_weighting: false,
        discopop_tau: 0.3,
        simpo_gamma: 0.4,
        cpo_alpha: 0.7,
    }
}

/// As [`config`], with label smoothing where the loss reads it.
fn smoothed_config(loss: DpoLoss) -> DpoConfig {
    let label_smoothing = if loss.takes_label_smoothing() { 0.1 } else { 0.0 };
    DpoConfig { label_smoothing, ..config(&[loss]) }
}

/// One pair with one token a response: its log-ratios are `r_c` and `r_r`, its log-probs `-1` and `-2`.
#[track_caller]
fn check(config: &DpoConfig, [r_c, r_r]: [f64; 2], expect: f64) {
    let spans = Spans::from_lengths([1, 1]);
    let batch = PairBatch {
        spans: &spans,
        logprob_m: &[-1.0, -2.0],
        ref_logp_i: Some(&[-1.0 - r_c, -2.0 - r_r]),
        log_sum_sq_prob_m: None,
        columns: PairColumns::NONE,
    };
    let out = dpo(batch, config, PairDenominators { pairs: 1.0, chosen_tokens: 1.0 });
    assert!((out.loss - expect).abs() < 1e-9, "{:?}: {} expected {expect}", config.losses, out.loss);
}

fn s(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

#[test]
fn every_loss_by_hand() {
    // beta r = 1 and -1/2: the logit is 3/2.
    let r = [2.0, -1.0];
    let smooth = |loss| smoothed_config(loss);
    check(&config(&[Sigmoid]), r, -s(1.5).ln());
    check(&smooth(Cdpo), r, -0.9 * s(1.5).ln() - 0.1 * s(-1.5).ln());
    check(&smooth(Robust), r, (-0.9 * s(1.5).ln() + 0.1 * s(-1.5).ln()) / 0.8);
    check(&config(&[Hinge]), r, 0.0);
    check(&config(&[Hinge]), [1.0, 0.0], 0.5);
    check(&config(&[Ipo]), r, 4.0); // (3 - 1)^2
    check(&config(&[IpoSum]), r, 4.0);
    let (q, p) = (s(1.5), s(-1.5));
    check(&smooth(ExoPair), r, q * (q.ln() - 0.9_f64.ln()) + p * (p.ln() - 0.1_f64.ln()));
    check(&config(&[NcaPair]), r, -s(1.0).ln() - 0.5 * s(-1.0).ln() - 0.5 * s(0.5).ln());
    check(&config(&[BcoPair]), r, -s(1.0).ln() - s(0.5).ln());
    check(&config(&[SppoHard]), r, 1.0); // (2 - 1)^2 + (-1 + 1)^2
    check(&smooth(Aot), r, -0.9 * s(1.5).ln() - 0.1 * s(-1.5).ln());
    check(&smooth(AotUnpaired), r, -0.9 * s(1.5).ln() - 0.1 * s(-1.5).ln());
    check(&config(&[ApoZero]), r, 1.0 - s(1.0) + s(-0.5));
    check(&config(&[ApoDown]), r, s(1.0) + 1.0 - s(1.5));
    let m = s(1.5 / 0.3);
    check(&config(&[Discopop]), r, -s(1.5).ln() * (1.0 - m) + (-1.5_f64).exp() * m);
    check(&config(&[Sft]), r, 1.0);
    check(&config(&[SigmoidNorm]), r, -s(1.5).ln());
    // The log-probs are -1 and -2: the reference does not matter.
    let x = 0.5 * (-1.0 + 2.0);
    let smoothed = |x: f64| -0.9 * s(x).ln() - 0.1 * s(-x).ln();
    check(&smooth(Simpo), r, smoothed(x - 0.4));
    check(&smooth(Cpo), r, smoothed(x) + 0.7);
    let log_odds = |a: f64| a - (1.0 - a.exp()).ln();
    check(&config(&[Orpo]), r, -0.5 * s(log_odds(-1.0) - log_odds(-2.0)).ln() + 1.0);
}

#[test]
fn f_divergences_by_hand() {
    let with = |f_divergence| DpoConfig { f_divergence, ..config(&[Sigmoid]) };
    let r = [2.0, -1.0];
    check(&with(FDivergence::ForwardKl), r, -s(0.5 * (1.0_f64.exp() - (-2.0_f64).exp())).ln());
    check(&with(FDivergence::JsDivergence), r, -s(0.5 * (s(2.0).ln() - s(-1.0).ln())).ln());
    let alpha = |r: f64| (1.0 - (-0.5 * r).exp()) * 2.0;
    check(&with(FDivergence::AlphaDivergence { alpha: 0.5 }), r, -s(0.5 * (alpha(2.0) - alpha(-1.0))).ln());
    check(&with(FDivergence::AlphaDivergence { alpha: 1.0 }), r, -s(1.5).ln());
    // The limits of the alpha family: 1 is reverse KL, 0 is forward KL, 2 is chi squared.
    check(
        &with(FDivergence::AlphaDivergence { alpha: 0.0 }),
        r,
        -s(0.5 * (1.0_f64.exp() - (-2.0_f64).exp())).ln(),
    );
    check(
        &with(FDivergence::AlphaDivergence { alpha: 2.0 }),
        r,
        -s(0.5 * (2.0_f64.exp() - (-1.0_f64).exp())).ln(),
    );
    // Beyond the bound on its exponent the alpha score is flat.
    let (at, slope) = FDivergence::AlphaDivergence { alpha: 2.0 }.score(81.0);
    assert_eq!((at, slope), (80.0_f64.exp_m1(), 0.0));
}

struct Example {
    spans: Spans,
    logprob_m: Vec<f32>,
    ref_logprob_m: Vec<f32>,
    log_sum_sq_prob_m: Vec<f32>,
    margin_p: Vec<f32>,
    weight_p: Vec<f32>,
    label_p: Vec<f32>,
}

/// Five ragged pairs; the chosen response is the longer one in some and the shorter one in others.
fn example() -> Example {
    let spans = Spans::from_lengths([2, 4, 5, 3, 1, 1, 3, 6, 4, 2]);
    let n = spans.total();
    let logprobs = |seed| spread(n, seed).iter().map(|x| x - 1.3).collect();
    Example {
        spans,
        logprob_m: logprobs(1),
        ref_logprob_m: logprobs(2),
        // Between -log V and 0 is all that the losses ask of it.
        log_sum_sq_prob_m: spread(n, 3).iter().map(|x| 0.5 * x - 1.0).collect(),
        margin_p: vec![0.5, 0.0, -0.2, 0.3, 1.0],
        weight_p: vec![1.0, 0.5, 2.0, 0.0, 1.5],
        label_p: vec![1.0, 0.7, 0.5, 0.2, 0.0],
    }
}

const DENOMINATORS: PairDenominators = PairDenominators { pairs: 7.0, chosen_tokens: 19.0 };

impl Example {
    fn loss(
        &self,
        config: &DpoConfig,
        columns: PairColumns,
        logprob_m: &[f32],
    ) -> LogprobObjective<DpoStats> {
        let ref_logp_i = sequence_logps(&self.ref_logprob_m, &self.spans, config.ld_alpha);
        let batch = PairBatch {
            spans: &self.spans,
            logprob_m,
            ref_logp_i: config.needs_reference().then_some(&ref_logp_i),
            log_sum_sq_prob_m: config.use_weighting.then_some(&self.log_sum_sq_prob_m),
            columns,
        };
        dpo(batch, config, DENOMINATORS)
    }

    #[track_caller]
    fn check_gradient(&self, what: &str, config: &DpoConfig, columns: PairColumns, tolerance: f64) {
        assert_eq!(config.validate(), Ok(()), "{what}");
        assert_eq!(config.validate_columns(columns), Ok(()), "{what}");
        let out = self.loss(config, columns, &self.logprob_m);
        central_difference(what, &self.logprob_m, &out.d_logprob_m, 1e-3, tolerance, |x| {
            self.loss(config, columns, x).loss
        });
    }
}

#[test]
fn every_loss_s_gradient_is_its_central_difference() {
    let example = example();
    for &(name, loss) in DpoLoss::NAMES {
        example.check_gradient(name, &smoothed_config(loss), PairColumns::NONE, STRAIGHT);
    }
}

/// Measured worst 1.2e-7 (discopop).
const STRAIGHT: f64 = 6e-7;
/// The exponentials of the f-divergences bend within the step: measured worst 1.3e-6 (ipo, forward KL).
const CURVED: f64 = 6e-6;

#[test]
fn every_option_s_gradient_is_its_central_difference() {
    let example = example();
    let divergences = [
        FDivergence::ForwardKl,
        FDivergence::JsDivergence,
        FDivergence::AlphaDivergence { alpha: 0.5 },
        FDivergence::AlphaDivergence { alpha: 1.5 },
    ];
    for &(name, loss) in DpoLoss::NAMES {
        let plain = smoothed_config(loss);
        for f_divergence in divergences.into_iter().filter(|_| loss.takes_f_divergence()) {
            let what = format!("{name} {f_divergence:?}");
            example.check_gradient(
                &what,
                &DpoConfig { f_divergence, ..plain.clone() },
                PairColumns::NONE,
                CURVED,
            );
        }
        if !matches!(loss, Simpo | Cpo | Orpo) {
            for ld_alpha in [0.0, 0.4, 1.0] {
                let what = format!("{name} ld_alpha {ld_alpha}");
                let config = DpoConfig { ld_alpha: Some(ld_alpha), ..plain.clone() };
                example.check_gradient(&what, &config, PairColumns::NONE, STRAIGHT);
            }
        }
        if loss.takes_margin() {
            let columns = PairColumns { margin_p: Some(&example.margin_p), ..PairColumns::NONE };
            example.check_gradient(&format!("{name} margin"), &plain, columns, STRAIGHT);
        }
        if loss.takes_soft_label() {
            let columns = PairColumns { label_p: Some(&example.label_p), ..PairColumns::NONE };
            example.check_gradient(&format!("{name} label"), &plain, columns, STRAIGHT);
        }
        if !loss.is_batch_level() {
            let columns = PairColumns { weight_p: Some(&example.weight_p), ..PairColumns::NONE };
            example.check_gradient(&format!("{name} weight"), &plain, columns, STRAIGHT);
        }
    }
    let mixture = DpoConfig { losses: vec![(Sigmoid, 0.8), (BcoPair, 0.2), (Sft, 1.5)], ..config(&[]) };
    example.check_gradient("mixture", &mixture, PairColumns::NONE, STRAIGHT);
    let full = PairColumns {
        margin_p: Some(&example.margin_p),
        weight_p: Some(&example.weight_p),
        label_p: Some(&example.label_p),
    };
    let everything = DpoConfig {
        losses: vec![(Cdpo, 0.8), (SigmoidNorm, 0.2), (Hinge, 0.3)],
        label_smoothing: 0.1,
        ld_alpha: Some(0.6),
        f_divergence: FDivergence::JsDivergence,
        ..config(&[])
    };
    example.check_gradient("everything", &everything, full, STRAIGHT);
}

/// WPO's weights are constants in the gradient, so the difference is taken of the unweighted losses, pair by pair, times
/// the weights at the point.
#[test]
fn wpo_weighs_each_pair_and_its_gradient() {
    let example = example();
    let weights = wpo_weights(&example.logprob_m, &example.log_sum_sq_prob_m, &example.spans);
    let by_hand = |i: usize| {
        let range = example.spans.range(i);
        let n = range.len() as f64;
        range.map(|m| f64::from(example.logprob_m[m]) - f64::from(example.log_sum_sq_prob_m[m])).sum::<f64>()
            / n
    };
    for (p, weight) in weights.iter().enumerate() {
        assert!((weight - (by_hand(2 * p) + by_hand(2 * p + 1)).exp()).abs() < 1e-12);
    }
    let weight_p: Vec<f32> = weights.iter().map(|&w| w as f32).collect();
    for loss in [Sigmoid, Hinge, Ipo, SppoHard, Simpo] {
        let weighted = DpoConfig { use_weighting: true, ..config(&[loss]) };
        assert_eq!(weighted.validate(), Ok(()));
        let got = example.loss(&weighted, PairColumns::NONE, &example.logprob_m);
        let columns = PairColumns { weight_p: Some(&weight_p), ..PairColumns::NONE };
        let expect = example.loss(&config(&[loss]), columns, &example.logprob_m);
        assert!((got.loss - expect.loss).abs() < 1e-7, "{loss:?}: {} {}", got.loss, expect.loss);
        for (got, expect) in got.d_logprob_m.iter().zip(&expect.d_logprob_m) {
            assert!((got - expect).abs() < 1e-7, "{loss:?}: {got} {expect}");
        }
    }
    // TRL scales sft by the batch's mean weight.
    let weighted = DpoConfig { use_weighting: true, ..config(&[Sft]) };
    let got = example.loss(&weighted, PairColumns::NONE, &example.logprob_m);
    let expect = example.loss(&config(&[Sft]), PairColumns::NONE, &example.logprob_m);
    let mean = weights.iter().sum::<f64>() / 5.0;
    assert!((got.loss - expect.loss * mean).abs() < 1e-12);
    assert!(weighted.needs_whole_batch());
}

/// DESIGN's law: at step 0 the policy is the reference, and what each loss is then is known.
#[test]
fn losses_where_policy_is_reference() {
    let example = example();
    let at_zero = |config: &DpoConfig| {
        let ref_logp_i = sequence_logps(&example.logprob_m, &example.spans, config.ld_alpha);
        let batch = PairBatch {
            spans: &example.spans,
            logprob_m: &example.logprob_m,
            ref_logp_i: Some(&ref_logp_i),
            log_sum_sq_prob_m: None,
            columns: PairColumns::NONE,
        };
        dpo(batch, config, PairDenominators { pairs: 5.0, chosen_tokens: 15.0 })
    };
    let smooth = |loss| at_zero(&smoothed_config(loss));
    for (loss, expect) in [
        (Sigmoid, LN_2),
        (Cdpo, LN_2),
        (Robust, LN_2),
        (SigmoidNorm, LN_2),
        (Hinge, 1.0),
        (Ipo, 1.0),
        (IpoSum, 1.0),
        (NcaPair, 2.0 * LN_2),
        (BcoPair, 2.0 * LN_2),
        (SppoHard, 2.0),
        (ApoZero, 1.0),
        (ApoDown, 1.0),
        (AotUnpaired, LN_2),
        (Aot, LN_2),
        (Discopop, 0.5 * LN_2 + 0.5),
    ] {
        let out = smooth(loss);
        assert!((out.loss - expect).abs() < 1e-12, "{loss:?}: {} expected {expect}", out.loss);
        let value = |name| out.stats.value(name).unwrap();
        assert_eq!(
            (value("rewards/chosen"), value("rewards/rejected"), value("rewards/margins")),
            (0.0, 0.0, 0.0)
        );
        assert_eq!((value("rewards/accuracies"), value("rewards/ties")), (0.0, 1.0));
    }
    for f_divergence in
        [FDivergence::ForwardKl, FDivergence::JsDivergence, FDivergence::AlphaDivergence { alpha: 0.5 }]
    {
        let out = at_zero(&DpoConfig { f_divergence, ..config(&[Sigmoid]) });
        assert!((out.loss - LN_2).abs() < 1e-12, "{f_divergence:?}");
    }
    let out = at_zero(&DpoConfig { ld_alpha: Some(0.3), ..config(&[Sigmoid]) });
    assert!((out.loss - LN_2).abs() < 1e-12);
}

#[test]
fn swapped_candidates_negate_the_margin() {
    let example = example();
    let swap = |x: &[f32]| -> Vec<f32> {
        (0..example.spans.count()).flat_map(|i| x[example.spans.range(i ^ 1)].to_vec()).collect()
    };
    let spans = Spans::from_lengths((0..example.spans.count()).map(|i| example.spans.length(i ^ 1)));
    let stats = |spans: &Spans, logprob_m: &[f32], ref_logprob_m: &[f32]| {
        let ref_logp_i = sequence_logps(ref_logprob_m, spans, None);
        let batch = PairBatch {
            spans,
            logprob_m,
            ref_logp_i: Some(&ref_logp_i),
            log_sum_sq_prob_m: None,
            columns: PairColumns::NONE,
        };
        dpo(batch, &config(&[Sigmoid]), DENOMINATORS).stats
    };
    let a = stats(&example.spans, &example.logprob_m, &example.ref_logprob_m);
    let b = stats(&spans, &swap(&example.logprob_m), &swap(&example.ref_logprob_m));
    let value = |stats: &DpoStats, name| stats.value(name).unwrap();
    assert_eq!(value(&a, "rewards/margins"), -value(&b, "rewards/margins"));
    assert_eq!(value(&a, "rewards/chosen"), value(&b, "rewards/rejected"));
    assert_eq!(value(&a, "rewards/accuracies"), 1.0 - value(&b, "rewards/accuracies"));
    assert_eq!(value(&a, "logps/chosen"), value(&b, "logps/rejected"));
}

/// The soft label and the margin together are the likelihood of a vote share: the same number as Bradley-Terry's on the
/// implicit rewards.
#[test]
fn soft_labelled_sigmoid_is_bradley_terry_on_the_implicit_rewards() {
    let example = example();
    let columns = PairColumns {
        margin_p: Some(&example.margin_p),
        weight_p: Some(&example.weight_p),
        label_p: Some(&example.label_p),
    };
    let got = example.loss(&config(&[Sigmoid]), columns, &example.logprob_m).loss;
    let (policy, reference) = (
        sequence_logps(&example.logprob_m, &example.spans, None),
        sequence_logps(&example.ref_logprob_m, &example.spans, None),
    );
    let reward_i: Vec<f32> = policy.iter().zip(&reference).map(|(p, q)| (0.5 * (p - q)) as f32).collect();
    let expect = super::super::reward::bradley_terry(&reward_i, columns, 0.0, DENOMINATORS.pairs).loss;
    assert!((got - expect).abs() < 1e-6, "{got} {expect}");
    // A label of one half cannot tell the responses apart; cDPO's flip rate is one minus the label.
    let label_p = [0.9; 5];
    let soft = PairColumns { label_p: Some(&label_p), ..PairColumns::NONE };
    let soft = example.loss(&config(&[Sigmoid]), soft, &example.logprob_m);
    let cdpo = example.loss(&smoothed_config(Cdpo), PairColumns::NONE, &example.logprob_m);
    assert!((soft.loss - cdpo.loss).abs() < 1e-7);
}

/// A margin of `m` asks for what a chosen log-ratio smaller by `m / beta` would still have to gain.
#[test]
fn a_margin_is_a_head_start_that_the_chosen_response_must_make_up() {
    let spans = Spans::from_lengths([1, 1]);
    for &(name, loss) in DpoLoss::NAMES.iter().filter(|(_, loss)| loss.takes_margin()) {
        let config = smoothed_config(loss);
        let value = |chosen: f32, margin: f32| {
            let margin_p = [margin];
            let batch = PairBatch {
                spans: &spans,
                logprob_m: &[chosen, -2.0],
                ref_logp_i: Some(&[-1.5, -1.0]),
                log_sum_sq_prob_m: None,
                columns: PairColumns { margin_p: Some(&margin_p), ..PairColumns::NONE },
            };
            dpo(batch, &config, DENOMINATORS).loss
        };
        assert!((value(-1.0, 0.25) - value(-1.5, 0.0)).abs() < 1e-12, "{name}");
        assert!(value(-1.0, 0.25) > value(-1.0, 0.0), "{name}");
    }
}

#[test]
fn ipo_averages_over_tokens_and_ipo_sum_does_not() {
    // Log-ratios 3 over 3 tokens and -2 over 1 token; 1 / 2 beta = 1.
    let spans = Spans::from_lengths([3, 1]);
    let batch = PairBatch {
        spans: &spans,
        logprob_m: &[-1.0, -1.0, -1.0, -3.0],
        ref_logp_i: Some(&[-6.0, -1.0]),
        log_sum_sq_prob_m: None,
        columns: PairColumns::NONE,
    };
    let loss = |loss| dpo(batch, &config(&[loss]), PairDenominators { pairs: 1.0, chosen_tokens: 3.0 }).loss;
    assert_eq!(loss(Ipo), (1.0_f64 + 2.0 - 1.0).powi(2));
    assert_eq!(loss(IpoSum), (3.0_f64 + 2.0 - 1.0).powi(2));
    assert!((loss(SigmoidNorm) + s(1.5).ln()).abs() < 1e-12);
    assert!((loss(Sigmoid) + s(2.5).ln()).abs() < 1e-12);
}

#[test]
fn ld_alpha_weighs_what_is_longer_than_the_other_response() {
    let spans = Spans::from_lengths([3, 1, 1, 2]);
    let logprob_m = [-1.0, -2.0, -4.0, -8.0, -16.0, -32.0, -64.0];
    assert_eq!(sequence_logps(&logprob_m, &spans, None), [-7.0, -8.0, -16.0, -96.0]);
    assert_eq!(sequence_logps(&logprob_m, &spans, Some(1.0)), [-7.0, -8.0, -16.0, -96.0]);
    assert_eq!(sequence_logps(&logprob_m, &spans, Some(0.5)), [-4.0, -8.0, -16.0, -64.0]);
    assert_eq!(sequence_logps(&logprob_m, &spans, Some(0.0)), [-1.0, -8.0, -16.0, -32.0]);
}

/// `aot` matches quantiles: its value does not depend on which pair had which difference, and a permutation of the
/// batch changes nothing.
#[test]
fn aot_sorts_over_the_batch() {
    let spans = Spans::from_lengths([1; 4]);
    let loss = |which, logprob_m: [f32; 4], ref_logp_i: [f64; 4]| {
        let batch = PairBatch {
            spans: &spans,
            logprob_m: &logprob_m,
            ref_logp_i: Some(&ref_logp_i),
            log_sum_sq_prob_m: None,
            columns: PairColumns::NONE,
        };
        dpo(batch, &config(&[which]), PairDenominators { pairs: 2.0, chosen_tokens: 2.0 })
    };
    // Policy differences 4 and 1, reference differences 0 and 2: sorted, 1 - 0 and 4 - 2.
    let out = loss(Aot, [-1.0, -5.0, -1.0, -2.0], [-3.0, -3.0, -1.0, -3.0]);
    assert!((out.loss + (s(0.5).ln() + s(1.0).ln()) / 2.0).abs() < 1e-12, "{}", out.loss);
    // Pair 0's difference was matched with 2, so its gradient is that of logit 1.
    assert!((f64::from(out.d_logprob_m[0]) + 0.5 * s(-1.0) / 2.0).abs() < 1e-7);
    assert!((f64::from(out.d_logprob_m[1]) - 0.5 * s(-1.0) / 2.0).abs() < 1e-7);
    // Chosen log-ratios 2 and 0, rejected -2 and 1: sorted, 0 + 2 and 2 - 1.
    let out = loss(AotUnpaired, [-1.0, -5.0, -1.0, -2.0], [-3.0, -3.0, -1.0, -3.0]);
    assert!((out.loss + (s(1.0).ln() + s(0.5).ln()) / 2.0).abs() < 1e-12, "{}", out.loss);
    assert!((f64::from(out.d_logprob_m[0]) + 0.5 * s(-0.5) / 2.0).abs() < 1e-7);
    assert!((f64::from(out.d_logprob_m[1]) - 0.5 * s(-1.0) / 2.0).abs() < 1e-7);
}

#[test]
fn micro_batches_add_up_unless_the_loss_says_otherwise() {
    let example = example();
    for &(name, loss) in DpoLoss::NAMES {
        let config = smoothed_config(loss);
        let whole = example.loss(&config, PairColumns::NONE, &example.logprob_m);
        let part = |sequences: std::ops::Range<usize>| {
            let spans = Spans::from_lengths(sequences.clone().map(|i| example.spans.length(i)));
            let tokens =
                example.spans.range(sequences.start).start..example.spans.range(sequences.end - 1).end;
            let ref_logp_i = sequence_logps(&example.ref_logprob_m[tokens.clone()], &spans, None);
            let batch = PairBatch {
                spans: &spans,
                logprob_m: &example.logprob_m[tokens],
                ref_logp_i: config.needs_reference().then_some(&ref_logp_i),
                log_sum_sq_prob_m: None,
                columns: PairColumns::NONE,
            };
            dpo(batch, &config, DENOMINATORS)
        };
        let (a, b) = (part(0..4), part(4..10));
        let gap = (whole.loss - a.loss - b.loss).abs();
        assert_eq!(gap > 1e-12, config.needs_whole_batch(), "{name}: {gap:e}");
        if !config.needs_whole_batch() {
            assert_eq!(whole.d_logprob_m, [a.d_logprob_m, b.d_logprob_m].concat(), "{name}");
        }
        let mut stats = a.stats;
        stats.merge(&b.stats);
        for (got, expect) in stats.metrics().iter().zip(whole.stats.metrics()) {
            assert!((got.value - expect.value).abs() < 1e-12, "{name} {got:?} {expect:?}");
        }
    }
}

#[test]
fn a_weight_of_two_is_the_pair_twice() {
    for &(name, loss) in DpoLoss::NAMES.iter().filter(|(_, loss)| !loss.is_batch_level()) {
        let config = smoothed_config(loss);
        let value = |pairs: usize, weight_p: Option<&[f32]>| {
            let spans = Spans::from_lengths([2, 1].repeat(pairs));
            let ref_logp_i = [-2.0, -1.5].repeat(pairs);
            let columns = PairColumns { weight_p, ..PairColumns::NONE };
            let batch = PairBatch {
                spans: &spans,
                logprob_m: &[-0.5, -1.0, -2.0].repeat(pairs),
                ref_logp_i: Some(&ref_logp_i),
                log_sum_sq_prob_m: None,
                columns,
            };
            dpo(batch, &config, DENOMINATORS).loss
        };
        assert!((value(1, Some(&[2.0])) - value(2, None)).abs() < 1e-14, "{name}");
        assert_eq!(value(1, Some(&[0.0])), 0.0, "{name}");
    }
}

#[test]
fn stats_by_hand() {
    let spans = Spans::from_lengths([2, 1, 1, 1]);
    let batch = PairBatch {
        spans: &spans,
        logprob_m: &[-1.0, -2.0, -4.0, -3.0, -1.0],
        ref_logp_i: Some(&[-5.0, -4.0, -2.0, -2.0]),
        log_sum_sq_prob_m: None,
        columns: PairColumns::NONE,
    };
    let stats = dpo(batch, &config(&[Sigmoid]), DENOMINATORS).stats;
    let value = |name| stats.value(name).unwrap();
    // Log-ratios 2, 0 and -1, 1; beta 1/2.
    assert_eq!((value("rewards/chosen"), value("rewards/rejected")), (0.25, 0.25));
    assert_eq!((value("rewards/margins"), value("rewards/accuracies")), (0.0, 0.5));
    assert_eq!((value("logps/chosen"), value("logps/rejected")), (-3.0, -2.5));
    assert_eq!((value("nll_loss"), value("rewards/ties")), (2.0, 0.0));
    assert_eq!(stats.value("log_odds_chosen"), None);
    // A tie is wrong and is counted as a tie.
    let batch = PairBatch { ref_logp_i: Some(&[-3.0, -4.0, -2.0, -2.0]), ..batch };
    let mut ties = dpo(batch, &config(&[Sigmoid]), DENOMINATORS).stats;
    ties.merge(&ties.clone());
    assert_eq!((ties.pairs, ties.ties, ties.correct), (4, 2, 0));
    // Reference-free, per token: beta times the mean log-probs -3/2, -4 and -3, -1.
    let batch = PairBatch { ref_logp_i: None, ..batch };
    let stats = dpo(batch, &config(&[Orpo]), DENOMINATORS).stats;
    let value = |name| stats.value(name).unwrap();
    assert_eq!((value("rewards/chosen"), value("rewards/rejected")), (0.25 * -4.5, 0.25 * -5.0));
    let log_odds = |a: f64| a - (1.0 - a.exp()).ln();
    let odds = [log_odds(-1.5) - log_odds(-4.0), log_odds(-3.0) - log_odds(-1.0)];
    assert!((value("log_odds_chosen") - (odds[0] + odds[1]) / 2.0).abs() < 1e-12);
    assert!((value("log_odds_ratio") - (s(odds[0]).ln() + s(odds[1]).ln()) / 2.0).abs() < 1e-12);
}

/// A response of certain tokens has infinite odds; the loss and its gradient stay finite (trl#1473).
#[test]
fn orpo_survives_certainty() {
    let spans = Spans::from_lengths([1, 1]);
    for logprob_m in [[0.0, -1.0], [-1.0, 0.0], [0.0, 0.0]] {
        let batch = PairBatch {
            spans: &spans,
            logprob_m: &logprob_m,
            ref_logp_i: None,
            log_sum_sq_prob_m: None,
            columns: PairColumns::NONE,
        };
        let out = dpo(batch, &config(&[Orpo]), DENOMINATORS);
        assert!(out.loss.is_finite() && out.d_logprob_m.iter().all(|d| d.is_finite()), "{out:?}");
    }
}

#[test]
fn extreme_log_ratios_stay_finite() {
    let spans = Spans::from_lengths([1, 1]);
    for &(name, loss) in DpoLoss::NAMES {
        for ref_logp_i in [[-5e3, 0.0], [0.0, -5e3]] {
            let batch = PairBatch {
                spans: &spans,
                logprob_m: &[-1.0, -1.0],
                ref_logp_i: Some(&ref_logp_i),
                log_sum_sq_prob_m: None,
                columns: PairColumns::NONE,
            };
            let out = dpo(batch, &smoothed_config(loss), DENOMINATORS);
            assert!(out.loss.is_finite() && out.d_logprob_m.iter().all(|d| d.is_finite()), "{name} {out:?}");
        }
    }
}

#[test]
fn nan_is_not_hidden() {
    let spans = Spans::from_lengths([1, 1]);
    for &(name, loss) in DpoLoss::NAMES {
        let batch = PairBatch {
            spans: &spans,
            logprob_m: &[f32::NAN, -1.0],
            ref_logp_i: Some(&[-1.0, -1.0]),
            log_sum_sq_prob_m: None,
            columns: PairColumns::NONE,
        };
        assert!(dpo(batch, &smoothed_config(loss), DENOMINATORS).loss.is_nan(), "{name}");
    }
}

#[test]
#[should_panic(expected = "sigmoid, sft needs the reference")]
fn a_missing_reference_is_a_bug() {
    let spans = Spans::from_lengths([1, 1]);
    let batch = PairBatch {
        spans: &spans,
        logprob_m: &[-1.0, -1.0],
        ref_logp_i: None,
        log_sum_sq_prob_m: None,
        columns: PairColumns::NONE,
    };
    dpo(batch, &config(&[Sigmoid, Sft]), DENOMINATORS);
}

// --------------------------------------------------------------------------------------------------- configuration

#[test]
fn names_go_both_ways() {
    for &(name, loss) in DpoLoss::NAMES {
        assert_eq!(name.parse(), Ok(loss));
        assert_eq!(loss.name(), name);
    }
    let message = "sigmoid_nrom".parse::<DpoLoss>().unwrap_err().to_string();
    assert!(
        message.starts_with("unknown loss_type \"sigmoid_nrom\", did you mean \"sigmoid_norm\"?"),
        "{message}"
    );
    assert!(message.contains("apo_down"), "{message}");
    assert_eq!(FDivergence::parse("js_divergence", 0.5), Ok(FDivergence::JsDivergence));
    assert_eq!(FDivergence::parse("reverse_kl", 0.5), Ok(FDivergence::ReverseKl));
    assert_eq!(FDivergence::parse("forward_kl", 0.5), Ok(FDivergence::ForwardKl));
    assert_eq!(
        FDivergence::parse("alpha_divergence", 0.25),
        Ok(FDivergence::AlphaDivergence { alpha: 0.25 })
    );
    assert!(FDivergence::parse("js_divergance", 0.5).unwrap_err().to_string().contains("did you mean"));
}

#[test]
fn mixtures() {
    assert_eq!(DpoConfig::mixture(&["sigmoid"], None), Ok(vec![(Sigmoid, 1.0)]));
    assert_eq!(
        DpoConfig::mixture(&["sigmoid", "bco_pair", "sft"], Some(&[0.8, 0.2, 1.0])),
        Ok(vec![(Sigmoid, 0.8), (BcoPair, 0.2), (Sft, 1.0)])
    );
    let error = DpoConfig::mixture(&["sigmoid", "sft"], Some(&[0.8])).unwrap_err();
    assert_eq!(error.to_string(), "loss_weights has 1 values, expected 2, one for each loss_type");
    assert!(DpoConfig::mixture(&["sigmoid", "stf"], None).is_err());
}

#[track_caller]
fn refused(config: DpoConfig, expect: &str) {
    let message = config.validate().unwrap_err().to_string();
    assert!(message.contains(expect), "{message}, expected {expect}");
}

#[test]
fn settings_are_checked() {
    for &(_, loss) in DpoLoss::NAMES {
        assert_eq!(smoothed_config(loss).validate(), Ok(()), "{loss:?}");
    }
    let plain = || config(&[Sigmoid]);
    assert_eq!(DpoConfig { losses: vec![(Sigmoid, 1.0), (Sft, 0.0)], ..plain() }.validate(), Ok(()));
    refused(DpoConfig { beta: 0.0, ..plain() }, "beta = 0, expected > 0");
    refused(DpoConfig { beta: -0.1, ..plain() }, "beta = -0.1, expected > 0");
    refused(DpoConfig { beta: f64::NAN, ..plain() }, "beta = NaN, expected > 0");
    refused(DpoConfig { discopop_tau: 0.0, ..plain() }, "discopop_tau = 0");
    refused(DpoConfig { simpo_gamma: -1.0, ..plain() }, "simpo_gamma = -1");
    refused(DpoConfig { cpo_alpha: -1.0, ..plain() }, "cpo_alpha = -1");
    refused(DpoConfig { ld_alpha: Some(1.5), ..plain() }, "ld_alpha = 1.5, expected a value in [0, 1]");
    refused(DpoConfig { losses: vec![], ..plain() }, "loss_weights (sum) = 0");
    refused(DpoConfig { losses: vec![(Sigmoid, -1.0)], ..plain() }, "loss_weights = -1");
    let infinite = FDivergence::AlphaDivergence { alpha: f64::INFINITY };
    refused(DpoConfig { f_divergence: infinite, ..plain() }, "f_alpha_divergence_coef = inf");
    refused(
        DpoConfig { label_smoothing: 0.5, ..config(&[Robust]) },
        "label_smoothing = 0.5, expected a value in [0, 0.5)",
    );
    refused(DpoConfig { label_smoothing: -0.1, ..config(&[Cdpo]) }, "label_smoothing = -0.1");
    refused(config(&[ExoPair]), "label_smoothing = 0, expected > 0 with exo_pair");
    refused(DpoConfig { label_smoothing: 0.1, ..plain() }, "use cdpo for label-smoothed sigmoid");
}

#[test]
fn contradictions_are_refused() {
    for &(name, loss) in DpoLoss::NAMES {
        let f = DpoConfig { f_divergence: FDivergence::ForwardKl, ..smoothed_config(loss) };
        assert_eq!(f.validate().is_ok(), loss.takes_f_divergence(), "{name}");
        let wpo = DpoConfig { use_weighting: true, ..smoothed_config(loss) };
        assert_eq!(wpo.validate().is_ok(), !matches!(loss, Aot | AotUnpaired | Cpo | Orpo), "{name}");
        let ld = DpoConfig { ld_alpha: Some(0.5), ..smoothed_config(loss) };
        assert_eq!(ld.validate().is_ok(), !matches!(loss, Simpo | Cpo | Orpo), "{name}");

        let value = [0.5];
        let columns =
            |margin, weight, label| PairColumns { margin_p: margin, weight_p: weight, label_p: label };
        let config = smoothed_config(loss);
        let accepts = |columns| config.validate_columns(columns).is_ok();
        assert!(accepts(PairColumns::NONE), "{name}");
        assert_eq!(accepts(columns(Some(&value), None, None)), loss.takes_margin(), "{name}");
        assert_eq!(accepts(columns(None, Some(&value), None)), !loss.is_batch_level(), "{name}");
        assert_eq!(accepts(columns(None, None, Some(&value))), loss.takes_soft_label(), "{name}");
    }
    let config = DpoConfig { losses: vec![(Sigmoid, 1.0), (Ipo, 1.0)], ..config(&[]) };
    let margin = PairColumns { margin_p: Some(&[0.5]), ..PairColumns::NONE };
    let message = config.validate_columns(margin).unwrap_err().to_string();
    assert!(message.starts_with("the data's margin column cannot be used with loss_type = ipo"), "{message}");
}

/// TRL's own list: the f-divergences go with these and no others (and with this crate's `cdpo` and `ipo_sum`).
#[test]
fn f_divergence_losses_are_trl_s() {
    let trl = ["sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"];
    for &(name, loss) in DpoLoss::NAMES {
        let expect = trl.contains(&name) || matches!(loss, Cdpo | IpoSum);
        assert_eq!(loss.takes_f_divergence(), expect, "{name}");
    }
}
