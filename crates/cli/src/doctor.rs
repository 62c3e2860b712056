//! `polity doctor`: does this build, on this machine, compute what PyTorch computes?
//!
//! Three tiny models, whose weights are a formula, are run forward, backward and through three steps of AdamW, and their
//! numbers are held against stored ones (`golden.rs`; `tests/golden/make_doctor.py` made them and says what they are). Then
//! come the laws that users rely on: decoding with a cache gives the bits of a full forward pass, the number of threads
//! changes nothing, all vector widths agree, and the generator of random numbers is the published one.
//!
//! Not here: speed (`bench`), the full tests of each operation (those of `compute`).

use polity_compute::{
    Batch, Cpu, Decoder, Isa, KvCache, LogProbs, NormKind, Optimizer, OptimizerConfig, Params, Precision,
    Recompute, Tape,
};
use polity_lm::{HfConfig, rng};
use serde::Serialize;

use crate::args::Global;
use crate::error::{CommandError, CommandResult};
use crate::golden::{GOLDEN, IDS};
use crate::machine::{Hardware, gib};
use crate::output::{json_to_stdout, to_stdout};
use crate::ui::{Ui, plural};

/// Stored numbers of one architecture.
pub struct Golden {
    /// The architecture.
    pub name: &'static str,
    /// Its `config.json`.
    pub config: &'static str,
    /// Of the tokens after the first, nats.
    pub logprobs: &'static [f64],
    /// Of the distributions that predict them, nats.
    pub entropies: &'static [f64],
    /// Global norm of the gradient of the mean loss.
    pub grad_norm: f64,
    /// Mean loss before each step of AdamW.
    pub losses: &'static [f64],
}

/// AdamW's coefficients in `make_doctor.py`.
const LEARNING_RATE: f64 = 1e-2;
const ADAMW: OptimizerConfig = OptimizerConfig {
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-8,
    weight_decay: 0.1,
    decay_vectors: true,
    max_grad_norm: Some(1.0),
};

// Each limit is about five times the largest error measured with AVX-512, AVX2 and plain Rust.

/// Largest error of a log-prob or an entropy, nats. Measured 1.0e-6.
const LIMIT_NATS: f64 = 5e-6;
/// Largest relative error of a gradient's norm. Measured 2.7e-7.
const LIMIT_NORM: f64 = 1.5e-6;
/// Largest error of a loss after updates, nats. Measured 2.0e-6.
const LIMIT_UPDATED_NATS: f64 = 1e-5;
/// Largest difference between vector widths, nats. Measured 0: they agree to the bit.
const LIMIT_WIDTHS_NATS: f64 = 1e-6;
/// Of losses in bf16; measured 2e-3.
const LIMIT_BF16_NATS: f64 = 2e-2;

/// One comparison.
#[derive(Clone, Debug, Serialize)]
struct Check {
    name: String,
    ok: bool,
    /// Largest error found; absent where the comparison is of bits.
    error: Option<f64>,
    /// Largest error allowed.
    limit: Option<f64>,
}

#[derive(Serialize)]
struct Report {
    version: &'static str,
    commit: Option<&'static str>,
    precision: &'static str,
    hardware: Hardware,
    ok: bool,
    checks: Vec<Check>,
}

/// Runs the verb.
pub fn run(global: &Global, ui: &Ui) -> CommandResult {
    let threads = global.threads();
    let checks = checks(threads, &GOLDEN)?;
    let failed: Vec<&Check> = checks.iter().filter(|check| !check.ok).collect();
    let report = Report {
        version: polity_train::run::CODE_VERSION,
        commit: polity_train::run::CODE_COMMIT,
        precision: match Isa::detect() {
            isa if Precision::best(isa, usize::MAX) == Precision::Bf16 => {
                "bf16 for models of at least 2M parameters, else f32"
            }
            _ => "f32",
        },
        hardware: Hardware::detect(threads),
        ok: failed.is_empty(),
        checks: checks.clone(),
    };
    if ui.json() {
        json_to_stdout(&report)?
    } else {
        print(&report)?
    }
    if failed.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = failed.iter().map(|check| check.name.as_str()).collect();
    Err(CommandError::failed(format!(
        "{} of {} checks failed: {}",
        failed.len(),
        checks.len(),
        names.join("; ")
    ))
    .hint("do not trust results of this build on this machine; report the output of polity doctor --json"))
}

fn print(report: &Report) -> CommandResult {
    let Hardware { cpu, cores, threads, isa, bf16, memory_bytes, memory_available_bytes, platform } =
        &report.hardware;
    to_stdout(|out| {
        use std::io::Write;
        let commit = report.commit.map(|commit| format!(" ({commit})")).unwrap_or_default();
        writeln!(out, "polity     {}{commit}, {platform}", report.version)?;
        writeln!(out, "processor  {cpu}")?;
        writeln!(out, "cores      {cores}, computing with {threads} {}", plural("thread", *threads as u64))?;
        let native = if *bf16 { "yes" } else { "no" };
        writeln!(out, "vectors    {isa}; native bf16: {native}")?;
        if let (Some(all), Some(free)) = (memory_bytes, memory_available_bytes) {
            writeln!(out, "memory     {}, {} of it free", gib(*all), gib(*free))?;
        }
        writeln!(out, "precision  {}\n", report.precision)?;
        for check in &report.checks {
            let verdict = if check.ok { "ok    " } else { "FAILED" };
            let measured = match (check.error, check.limit) {
                (Some(error), Some(limit)) => format!(" (error {error:.0e}, at most {limit:.0e})"),
                _ => String::new(),
            };
            writeln!(out, "{verdict}  {}{measured}", check.name)?;
        }
        let failed = report.checks.iter().filter(|check| !check.ok).count();
        match failed {
            0 => writeln!(
                out,
                "\nAll {} checks passed: this machine computes as it should.",
                report.checks.len()
            ),
            _ => writeln!(out, "\n{failed} of {} checks failed.", report.checks.len()),
        }
    })
}

fn checks(threads: usize, golden: &[Golden]) -> CommandResult<Vec<Check>> {
    let cpu = Cpu::new(threads);
    let mut checks = Vec::new();
    for golden in golden {
        let model = Tiny::new(golden.config)?;
        let name = |what: &str| format!("{}: {what}", golden.name);
        let run = model.train(&cpu, golden.losses.len());
        let logprobs = largest_error(&run.numbers.logprob_m, golden.logprobs);
        let entropies = largest_error(&run.numbers.entropy_m, golden.entropies);
        checks.push(close(
            name("log-probs and entropies are PyTorch's"),
            worse(logprobs, entropies),
            LIMIT_NATS,
        ));
        let norm = (run.grad_norm / golden.grad_norm - 1.0).abs();
        checks.push(close(name("the gradient's norm is PyTorch's"), norm, LIMIT_NORM));
        let losses = largest_error(&run.losses, golden.losses);
        checks.push(close(name("losses over AdamW steps are PyTorch's"), losses, LIMIT_UPDATED_NATS));
        let decoded = model.decode(&cpu) == model.logits(&cpu);
        checks.push(same(name("decoding with a cache gives the bits of a full pass"), decoded));
        // One more thread than there is, so that there are at least two.
        let other = model.train(&Cpu::new(threads + 1), golden.losses.len());
        checks.push(same(name("the number of threads changes no bit"), other.same_bits(&run)));
        let portable = model.train(&Cpu::with_isa(1, Isa::Portable), 1);
        let widths = portable.numbers.logprob_m.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let widths = largest_error(&run.numbers.logprob_m, &widths);
        checks.push(close(name("all vector widths agree"), widths, LIMIT_WIDTHS_NATS));
        // Tiles add in an order of their own; the other instructions agree with plain Rust.
        let pairs = Isa::detect().min(Isa::Avx512Bf16);
        let cpus = [Cpu::new(threads), Cpu::with_isa(1, pairs), Cpu::with_isa(1, Isa::Portable)];
        let [half, pairs, portable] = cpus.map(|cpu| {
            model.train(&cpu.with_precision(polity_compute::Precision::Bf16), golden.losses.len())
        });
        let losses = largest_error(&half.losses, golden.losses);
        checks.push(close(name("bf16 losses are near PyTorch's f32"), losses, LIMIT_BF16_NATS));
        let error = largest_error(&pairs.losses, &portable.losses);
        checks.push(close(name("bf16 is the same in plain Rust"), error, LIMIT_WIDTHS_NATS));
    }
    // Salmon et al. 2011, Random123's known answers for philox4x32-10.
    let philox = rng::philox4x32([0; 4], [0; 2]) == [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8];
    checks.push(same("random numbers are Philox's".into(), philox));
    Ok(checks)
}

fn close(name: String, error: f64, limit: f64) -> Check {
    // A NaN is above every limit.
    Check { name, ok: error <= limit, error: Some(error), limit: Some(limit) }
}

fn same(name: String, ok: bool) -> Check {
    Check { name, ok, error: None, limit: None }
}

fn largest_error(found: &[impl Copy + Into<f64>], expected: &[f64]) -> f64 {
    if found.len() != expected.len() {
        return f64::INFINITY;
    }
    let errors = found.iter().zip(expected).map(|(&found, expected)| (found.into() - expected).abs());
    errors.fold(0.0, worse)
}

/// The larger error; unlike `f64::max`, a NaN stays one.
fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || a >= b { a } else { b }
}

/// A model with the formula's weights.
struct Tiny {
    decoder: Decoder,
    params: Params,
}

/// What a few steps computed.
struct Trained {
    /// Before the first step.
    numbers: LogProbs,
    grad_norm: f64,
    losses: Vec<f64>,
    params: Params,
}

impl Trained {
    fn same_bits(&self, other: &Self) -> bool {
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        bits(&self.numbers.logprob_m) == bits(&other.numbers.logprob_m)
            && bits(&self.numbers.entropy_m) == bits(&other.numbers.entropy_m)
            && bits(&self.params.data) == bits(&other.params.data)
    }
}

impl Tiny {
    fn new(config: &str) -> CommandResult<Self> {
        let value = serde_json::from_str(config).map_err(CommandError::failed)?;
        let config = HfConfig::from_value(value)?.decoder()?;
        let decoder = Decoder::new(config).map_err(CommandError::failed)?;
        let mut params = Params::zeros(&decoder.layout);
        let norm_center = if decoder.config.norm == NormKind::RmsPlusOne { 0.0 } else { 1.0 };
        for spec in &decoder.layout.specs {
            let (rows, cols) = spec.shape.rows_cols();
            let center = if spec.name.ends_with("norm.weight") { norm_center } else { 0.0 };
            params.write_rows(spec, 0, &formula(&spec.name, rows * cols, center));
        }
        Ok(Self { decoder, params })
    }

    /// Some steps of AdamW on the mean loss of the ids.
    fn train(&self, cpu: &Cpu, steps: usize) -> Trained {
        let Self { decoder, params } = self;
        let (mut params, mut tape) = (params.clone(), Tape::default());
        params.pack(cpu, &decoder.layout.specs);
        let mut grads = Params::zeros(&decoder.layout);
        let mut optimizer = Optimizer::new(ADAMW, decoder.layout.len);
        let mut batch = Batch::new();
        let segment = batch.push(&IDS, None);
        let predictions = batch.predict(segment, 1);
        let (mut first, mut losses) = (None, Vec::new());
        for _ in 0..steps {
            decoder.forward(cpu, &params, &batch, Recompute::None, &mut tape);
            let numbers = decoder.logprobs(cpu, &params, &mut tape, &predictions, 1.0);
            let m = predictions.len() as f64;
            losses.push(-numbers.logprob_m.iter().map(|&x| f64::from(x)).sum::<f64>() / m);
            decoder.begin_backward(&mut tape);
            let d_logprob_m = vec![(-1.0 / m) as f32; predictions.len()];
            let d_entropy_m = vec![0.0; predictions.len()];
            decoder.logprobs_backward(
                cpu,
                &params,
                &mut tape,
                &predictions,
                1.0,
                &numbers,
                &d_logprob_m,
                &d_entropy_m,
                &mut grads,
            );
            decoder.backward(cpu, &params, &batch, &mut tape, &mut grads);
            let stats = optimizer.update(cpu, &decoder.layout.specs, &mut params, &mut grads, LEARNING_RATE);
            first.get_or_insert((numbers, stats.grad_norm));
        }
        let (numbers, grad_norm) = first.expect("at least one step");
        Trained { numbers, grad_norm, losses, params }
    }

    /// Logits of every row, in one pass.
    fn logits(&self, cpu: &Cpu) -> Vec<u32> {
        let mut tape = Tape::default();
        let batch = Batch::from_rows([&IDS[..]]);
        self.decoder.forward(cpu, &self.params, &batch, Recompute::Layer, &mut tape);
        let rows: Vec<usize> = (0..IDS.len()).collect();
        let logits = self.decoder.logits(cpu, &self.params, &mut tape, &rows, 1.0);
        logits.iter().map(|x| x.to_bits()).collect()
    }

    /// Logits of every row: three tokens together, the rest one by one.
    fn decode(&self, cpu: &Cpu) -> Vec<u32> {
        let mut tape = Tape::default();
        let mut cache = KvCache::new(&self.decoder.config, self.params.precision());
        let sequence = cache.add();
        let (start, rest) = IDS.split_at(3);
        let mut bits = Vec::new();
        for tokens in std::iter::once(start).chain(rest.chunks(1)) {
            self.decoder.extend(cpu, &self.params, &mut cache, &[(sequence, tokens)], &mut tape);
            let rows: Vec<usize> = (0..tokens.len()).collect();
            let logits = self.decoder.logits(cpu, &self.params, &mut tape, &rows, 1.0);
            bits.extend(logits.iter().map(|x| x.to_bits()));
        }
        bits
    }
}

/// The formula of `make_doctor.py`.
fn formula(name: &str, len: usize, center: f32) -> Vec<f32> {
    let fnv1a = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let mut state = name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv1a);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        center + ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) / 4.0
    };
    (0..len).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_passes() {
        for check in checks(2, &GOLDEN).unwrap() {
            assert!(check.ok, "{check:?}");
        }
    }

    /// The limits are tight enough to see a mistake of one part in a hundred thousand.
    #[test]
    fn a_wrong_number_fails() {
        let golden = |logprob: f64, grad_norm: f64, loss: f64| {
            let good = &GOLDEN[0];
            let leak = |values: &[f64], add: f64| -> &'static [f64] {
                Vec::leak(values.iter().map(|value| value + add).collect::<Vec<_>>())
            };
            Golden {
                name: good.name,
                config: good.config,
                logprobs: leak(good.logprobs, logprob),
                entropies: good.entropies,
                grad_norm: good.grad_norm * (1.0 + grad_norm),
                losses: leak(good.losses, loss),
            }
        };
        let failed = |golden: Golden| -> Vec<String> {
            let checks = checks(1, &[golden]).unwrap();
            checks.into_iter().filter(|check| !check.ok).map(|check| check.name).collect()
        };
        assert!(failed(golden(0.0, 0.0, 0.0)).is_empty());
        assert_eq!(failed(golden(1e-5, 0.0, 0.0)), ["llama: log-probs and entropies are PyTorch's"]);
        assert_eq!(failed(golden(0.0, 1e-5, 0.0)), ["llama: the gradient's norm is PyTorch's"]);
        assert_eq!(failed(golden(0.0, 0.0, 2e-5)), ["llama: losses over AdamW steps are PyTorch's"]);
        let nan = failed(golden(f64::NAN, 0.0, 0.0));
        assert_eq!(nan, ["llama: log-probs and entropies are PyTorch's"]);
    }
}
