//! One token from one row of logits.
//!
//! The order of the filters is Transformers': repetition penalty and minimum length on the logits, then
//! temperature, top-k, top-p, min-p. A filtered distribution is another distribution than the policy's,
//! so a draw carries its own log-prob beside the one that training computes.
//!
//! Sources: Keskar et al. 2019, arXiv:1909.05858 (repetition penalty); Fan et al. 2018, arXiv:1805.04833
//! (top-k); Holtzman et al. 2019, arXiv:1904.09751 (top-p); Nguyen et al. 2024, arXiv:2407.01082 (min-p).

use polity_compute::Isa;
use polity_compute::cpu::logprob::weights;

/// How tokens are chosen and when a response ends.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerConfig {
    /// Logits are divided by this; 0 takes the most likely token.
    pub temperature: f32,
    /// Only the k most likely tokens; 0 is all.
    pub top_k: usize,
    /// Only the most likely tokens that together reach this probability; 1 is all.
    pub top_p: f32,
    /// Only tokens at least this times as likely as the most likely one; 0 is all.
    pub min_p: f32,
    /// Logits of tokens seen in the prompt or response are divided (if positive) or multiplied by this; 1 is off.
    pub repetition_penalty: f32,
    /// Responses are cut at this many tokens.
    pub max_new_tokens: usize,
    /// No stop token before this many tokens.
    pub min_new_tokens: usize,
    /// Any of these ends a response, and belongs to it.
    pub stop_token_ids: Vec<u32>,
    /// Any of these in the response's text ends it.
    pub stop_strings: Vec<String>,
    /// Tokens from here on exist in the table but not in the tokenizer: never sampled.
    pub vocab: usize,
}

impl SamplerConfig {
    /// The temperature of the distribution whose log-probs are recorded: 1 for greedy decoding.
    pub fn logit_temperature(&self) -> f32 {
        if self.temperature == 0.0 { 1.0 } else { self.temperature }
    }

    /// Whether tokens come from the policy's own distribution at the temperature, nothing left out.
    pub fn is_unwarped(&self) -> bool {
        self.temperature > 0.0
            && self.top_k == 0
            && self.top_p >= 1.0
            && self.min_p == 0.0
            && self.repetition_penalty == 1.0
            && self.min_new_tokens == 0
    }

    /// Says which field is out of its range, or nothing.
    pub fn validate(&self) -> Result<(), String> {
        let check = |ok: bool, what: String| if ok { Ok(()) } else { Err(what) };
        let Self { temperature, top_p, min_p, repetition_penalty, .. } = *self;
        check(
            temperature >= 0.0 && temperature.is_finite(),
            format!("temperature = {temperature}: at least 0"),
        )?;
        check(top_p > 0.0 && top_p <= 1.0, format!("top_p = {top_p}: above 0, at most 1"))?;
        check((0.0..=1.0).contains(&min_p), format!("min_p = {min_p}: from 0 to 1"))?;
        check(
            repetition_penalty > 0.0 && repetition_penalty.is_finite(),
            format!("repetition_penalty = {repetition_penalty}: above 0"),
        )?;
        check(self.max_new_tokens > 0, "max_new_tokens = 0: at least 1".into())?;
        check(
            self.min_new_tokens <= self.max_new_tokens,
            format!(
                "min_new_tokens = {} is above max_new_tokens = {}",
                self.min_new_tokens, self.max_new_tokens
            ),
        )
    }

    /// Whether the newest token completed a stop string.
    pub(super) fn ends_with_stop_string(&self, ids: &[u32], decode: &dyn Fn(&[u32]) -> String) -> bool {
        if self.stop_strings.is_empty() {
            return false;
        }
        let text = decode(ids);
        self.stop_strings.iter().any(|stop| text.contains(stop.as_str()))
    }
}

/// A drawn token and its log-prob in the distribution that it was drawn from, nats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// The token.
    pub token: u32,
    /// 0 for a greedy choice.
    pub logprob: f32,
}

/// Draws a token from final logits at the uniform number `u` in `[0, 1)`.
pub fn sample(
    isa: Isa,
    y_v: &[f32],
    config: &SamplerConfig,
    prompt: &[u32],
    response: &[u32],
    u: f64,
) -> Draw {
    let mut y: Vec<f32> = y_v.to_vec();
    let vocab = config.vocab.min(y.len());
    y[vocab..].fill(f32::NEG_INFINITY);
    if config.repetition_penalty != 1.0 {
        let mut seen: Vec<u32> = prompt.iter().chain(response).copied().collect();
        seen.sort_unstable();
        seen.dedup();
        for token in seen {
            let y = &mut y[token as usize];
            *y = if *y > 0.0 { *y / config.repetition_penalty } else { *y * config.repetition_penalty };
        }
    }
    if response.len() < config.min_new_tokens {
        for &stop in &config.stop_token_ids {
            if let Some(y) = y.get_mut(stop as usize) {
                *y = f32::NEG_INFINITY;
            }
        }
    }
    let (top, max) = argmax(&y);
    if config.temperature == 0.0 {
        return Draw { token: top, logprob: 0.0 };
    }
    if config.top_k > 0 && config.top_k < vocab {
        let mut sorted = y.clone();
        let (_, &mut threshold, _) = sorted.select_nth_unstable_by(config.top_k - 1, |a, b| b.total_cmp(a));
        y.iter_mut().filter(|y| **y < threshold).for_each(|y| *y = f32::NEG_INFINITY);
    }
    weights(isa, &mut y, max);
    if config.top_p < 1.0 {
        let total: f64 = y.iter().map(|&w| f64::from(w)).sum();
        let mut order: Vec<usize> = (0..y.len()).filter(|&v| y[v] > 0.0).collect();
        order.sort_by(|&a, &b| y[b].total_cmp(&y[a]).then(a.cmp(&b)));
        let mut cumulative = 0.0;
        let mut kept = 0;
        while kept < order.len() && (kept == 0 || cumulative < f64::from(config.top_p) * total) {
            cumulative += f64::from(y[order[kept]]);
            kept += 1;
        }
        for &v in &order[kept..] {
            y[v] = 0.0;
        }
    }
    if config.min_p > 0.0 {
        // Weights are relative to the largest, whose weight is 1.
        y.iter_mut().filter(|w| **w < config.min_p).for_each(|w| *w = 0.0);
    }
    draw(&y, u)
}

/// Inverts the distribution function: block sums first, then within one block.
fn draw(weight_v: &[f32], u: f64) -> Draw {
    const BLOCK: usize = 512;
    let sums: Vec<f64> = weight_v.chunks(BLOCK).map(sum).collect();
    let total: f64 = sums.iter().sum();
    let mut left = u * total;
    // Rounding may leave a little beyond the last weight: then the last token with a weight is taken.
    let mut chosen = None;
    'found: for (b, &sum) in sums.iter().enumerate() {
        if sum == 0.0 {
            continue;
        }
        if left >= sum && sums[b + 1..].iter().any(|&sum| sum > 0.0) {
            left -= sum;
            continue;
        }
        for (i, &w) in weight_v[b * BLOCK..].iter().take(BLOCK).enumerate() {
            if w > 0.0 {
                chosen = Some(b * BLOCK + i);
                if left < f64::from(w) {
                    break 'found;
                }
                left -= f64::from(w);
            }
        }
        break;
    }
    // All weights zero or NaN cannot be: the largest logit has weight 1. Token 0 stands for "no logits".
    let token = chosen.unwrap_or(0);
    Draw { token: token as u32, logprob: (f64::from(weight_v[token]) / total).ln() as f32 }
}

/// In eight interleaved sums: one chain would wait for each addition.
fn sum(weights: &[f32]) -> f64 {
    let mut sums = [0.0f64; 8];
    let (eights, tail) = weights.as_chunks::<8>();
    for eight in eights {
        for i in 0..8 {
            sums[i] += f64::from(eight[i]);
        }
    }
    let tail: f64 = tail.iter().map(|&w| f64::from(w)).sum();
    sums.iter().sum::<f64>() + tail
}

/// The first largest logit.
fn argmax(y_v: &[f32]) -> (u32, f32) {
    // The largest of sixteen interleaved parts each, which vectorises, then where it is.
    let mut maxima = [f32::NEG_INFINITY; 16];
    let (y16, tail) = y_v.as_chunks::<16>();
    for y in y16 {
        for i in 0..16 {
            maxima[i] = if y[i] > maxima[i] { y[i] } else { maxima[i] };
        }
    }
    let max = maxima.iter().chain(tail).fold(f32::NEG_INFINITY, |max, &y| if y > max { y } else { max });
    let first = y_v.iter().position(|&y| y == max && max > f32::NEG_INFINITY).unwrap_or(0);
    (first as u32, max)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [0.0, 2.0, 1.0, -1.0, 2.0];

    fn plain() -> SamplerConfig {
        SamplerConfig {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            max_new_tokens: 8,
            min_new_tokens: 0,
            stop_token_ids: vec![4],
            stop_strings: vec![],
            vocab: 5,
        }
    }

    /// Probability of each token, by walking `u` over a fine grid.
    fn distribution(config: &SamplerConfig, prompt: &[u32], response: &[u32]) -> Vec<f64> {
        let n = 4000;
        let mut counts = vec![0.0; LOGITS.len()];
        for i in 0..n {
            let u = (f64::from(i) + 0.5) / f64::from(n);
            let draw = sample(Isa::detect(), &LOGITS, config, prompt, response, u);
            counts[draw.token as usize] += 1.0 / f64::from(n);
        }
        counts
    }

    #[track_caller]
    fn check(config: &SamplerConfig, response: &[u32], expect_logits: [f32; 5]) {
        let weights = expect_logits.map(|y| f64::from(y).exp());
        let total: f64 = weights.iter().sum();
        let got = distribution(config, &[], response);
        for (v, (got, w)) in got.iter().zip(weights).enumerate() {
            assert!((got - w / total).abs() < 1e-3, "token {v}: {got} expected {}", w / total);
        }
        for i in 0..50 {
            let draw = sample(Isa::detect(), &LOGITS, config, &[], response, f64::from(i) / 50.0);
            let expect = (weights[draw.token as usize] / total).ln();
            assert!((f64::from(draw.logprob) - expect).abs() < 1e-5, "{draw:?} expected {expect}");
        }
    }

    const NO: f32 = f32::NEG_INFINITY;

    #[test]
    fn filters_leave_what_they_should() {
        check(&plain(), &[], LOGITS);
        check(&SamplerConfig { top_k: 3, ..plain() }, &[], [NO, 2.0, 1.0, NO, 2.0]);
        // Ties at the threshold stay, as in Transformers.
        check(&SamplerConfig { top_k: 1, ..plain() }, &[], [NO, 2.0, NO, NO, 2.0]);
        // p = .052 .384 .141 .019 .384 (after e): 0.75 needs the two best; 0.8 the third.
        check(&SamplerConfig { top_p: 0.75, ..plain() }, &[], [NO, 2.0, NO, NO, 2.0]);
        check(&SamplerConfig { top_p: 0.8, ..plain() }, &[], [NO, 2.0, 1.0, NO, 2.0]);
        check(&SamplerConfig { top_p: 1e-6, ..plain() }, &[], [NO, 2.0, NO, NO, NO]);
        // Relative to the best: e^-1 = .37, e^-2 = .14, e^-3 = .05.
        check(&SamplerConfig { min_p: 0.2, ..plain() }, &[], [NO, 2.0, 1.0, NO, 2.0]);
        check(&SamplerConfig { repetition_penalty: 2.0, ..plain() }, &[1, 3], [0.0, 1.0, 1.0, -2.0, 2.0]);
        check(&SamplerConfig { min_new_tokens: 2, ..plain() }, &[1], [0.0, 2.0, 1.0, -1.0, NO]);
        check(&SamplerConfig { min_new_tokens: 1, ..plain() }, &[1], LOGITS);
        check(&SamplerConfig { vocab: 3, ..plain() }, &[], [0.0, 2.0, 1.0, NO, NO]);
    }

    #[test]
    fn greedy_takes_the_first_best() {
        let config = SamplerConfig { temperature: 0.0, ..plain() };
        assert_eq!(sample(Isa::detect(), &LOGITS, &config, &[], &[], 0.99), Draw { token: 1, logprob: 0.0 });
    }

    #[test]
    fn warped_settings_are_known() {
        assert!(plain().is_unwarped());
        for warped in [
            SamplerConfig { temperature: 0.0, ..plain() },
            SamplerConfig { top_k: 5, ..plain() },
            SamplerConfig { top_p: 0.9, ..plain() },
            SamplerConfig { min_p: 0.1, ..plain() },
            SamplerConfig { repetition_penalty: 1.1, ..plain() },
            SamplerConfig { min_new_tokens: 1, ..plain() },
        ] {
            assert!(!warped.is_unwarped(), "{warped:?}");
        }
    }
}
