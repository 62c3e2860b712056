//! `polity bench`: how fast this machine trains and generates, as JSON.
//!
//! Weights and tokens are random, which changes no speed. Speed is given in tokens a second, in the floating-point
//! operations that the model's arithmetic needs (a multiply-add is two), and as a share of what the same machine's matrix
//! product reached in the same process, since these machines are shared and differ from hour to hour.
//!
//! ```text
//! forward  = sum over rows of (2 * matrix elements of the layers + 4 h d * keys seen, summed over layers) + predictions * 2 v c
//! training = 3 * forward          (backward is two products for each of forward's; recomputing counts for nothing)
//! ```
//!
//! A step of `train` is forward, loss, backward, clipping and AdamW on rows of one length: the work of supervised
//! fine-tuning. `generate` reads a prompt for each response and decodes all of them together, without stop tokens.
//!
//! Not here: comparisons with other programs (`bench/`), single kernels (the benches of `compute`).

use std::path::Path;
use std::time::Instant;

use polity_compute::cpu::linear::{self, Write};
use polity_compute::params::Buffer;
use polity_compute::{
    Batch, Cpu, Decoder, DecoderConfig, Optimizer, OptimizerConfig, ParamSpec, Params, Prediction, Recompute,
    Shape, Tape,
};
use polity_lm::engine::{Engine, Flow, Limits, Request, SamplerConfig, TokenEvent};
use polity_lm::rng::Stream;
use polity_lm::{HfConfig, Model};
use polity_train::settings::Precision;
use serde::Serialize;
use serde_json::json;

use crate::args::{BenchGenerateArgs, BenchModel, BenchTrainArgs, BenchVerb, Global, NamedShape};
use crate::error::{CommandError, CommandResult};
use crate::machine::{Hardware, peak_memory_bytes};
use crate::model::Loaded;
use crate::output::json_to_stdout;
use crate::ui::{Ui, Work, short};

mod sweep;

/// Runs the verb.
pub fn run(verb: &BenchVerb, global: &Global, ui: &Ui) -> CommandResult {
    match verb {
        BenchVerb::Train(args) => train(args, global, ui),
        BenchVerb::Generate(args) => generate(args, global, ui),
        BenchVerb::Sweep(args) => sweep::run(args, global, ui),
    }
}

/// What both reports begin with.
#[derive(Serialize)]
struct Head<'a> {
    program: &'static str,
    version: &'static str,
    commit: Option<&'static str>,
    hardware: Hardware,
    precision: &'static str,
    model: &'a str,
    parameters: usize,
    matmul: Matmul,
}

/// What this machine's matrix products reach.
#[derive(Clone, Copy, Serialize)]
struct Matmul {
    /// One thread, operands in the first cache: nothing can be faster.
    kernel_gflops_one_thread: f64,
    /// All threads, on a product of [`MATMUL_MNK`].
    gflops: f64,
}

/// Rows, outputs and inputs of the product that speed is compared with: a layer's in a model of 135M parameters.
const MATMUL_MNK: (usize, usize, usize) = (1536, 1536, 576);

#[derive(Serialize)]
struct TrainReport<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    stage: &'static str,
    rows: usize,
    length: usize,
    recompute: bool,
    steps: usize,
    tokens_per_step: usize,
    seconds_per_step: Spread,
    tokens_per_s: f64,
    gflops: f64,
    share_of_matmul: f64,
    peak_memory_bytes: Option<u64>,
}

#[derive(Serialize)]
struct GenerateReport<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    prompt_tokens: usize,
    new_tokens: usize,
    repeats: usize,
    batches: Vec<GenerateBatch>,
    peak_memory_bytes: Option<u64>,
}

#[derive(Serialize)]
struct GenerateBatch {
    responses: usize,
    seconds: Spread,
    /// Until every response has its first token.
    first_token_s: f64,
    tokens_per_s: f64,
    /// After the first token.
    decode_tokens_per_s: f64,
    gflops: f64,
    share_of_matmul: f64,
    /// Weights read for each step of decoding: with few responses, memory is the limit.
    weights_gb_per_s: f64,
}

/// Of the timed repeats.
#[derive(Clone, Copy, Serialize)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    fn of(mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        let (half, last) = (seconds.len() / 2, seconds.len() - 1);
        let median = if last % 2 == 0 { seconds[half] } else { (seconds[half - 1] + seconds[half]) / 2.0 };
        Self { median, min: seconds[0], max: seconds[last] }
    }
}

/// A model to time.
struct Subject {
    name: String,
    decoder: Decoder,
    params: Params,
    cpu: Cpu,
}

impl Subject {
    fn new(which: &BenchModel, global: &Global, ui: &Ui) -> CommandResult<Self> {
        let mut subject = match &which.model {
            Some(dir) => Self::load(dir, global)?,
            None => Self::random(which.shape, 0, global.threads(), ui)?,
        };
        subject.multiply_in(which.precision);
        Ok(subject)
    }

    /// A shape with random weights, and room for rows of `positions` at least.
    fn random(shape: NamedShape, positions: usize, threads: usize, ui: &Ui) -> CommandResult<Self> {
        ui.note(&format!("making {} with random weights", shape.name()));
        let model = Model::init(shape.config(positions)?, 0)?;
        let decoder = Decoder::new(model.config).map_err(CommandError::failed)?;
        Ok(Self { name: shape.name().to_owned(), decoder, params: model.params, cpu: Cpu::new(threads) })
    }

    fn multiply_in(&mut self, precision: Precision) {
        let Self { decoder, params, cpu, .. } = self;
        cpu.set_precision(precision.with(cpu.isa(), decoder.layout.parameter_count()));
        params.pack(cpu, &decoder.layout.specs);
    }

    fn load(dir: &Path, global: &Global) -> CommandResult<Self> {
        let Loaded { model, decoder, cpu, .. } = Loaded::language_model(dir, "time", global)?;
        Ok(Self { name: dir.display().to_string(), decoder, params: model.params, cpu })
    }

    fn head(&self, matmul: Matmul) -> Head<'_> {
        Head {
            program: "polity",
            version: polity_train::run::CODE_VERSION,
            commit: polity_train::run::CODE_COMMIT,
            hardware: Hardware::detect(self.cpu.threads()),
            precision: Precision::from(self.cpu.precision()).name(),
            model: &self.name,
            parameters: self.decoder.layout.parameter_count(),
            matmul,
        }
    }

    /// Rows of random tokens.
    fn rows(&self, purpose: &str, rows: usize, length: usize) -> CommandResult<Vec<Vec<u32>>> {
        let positions = self.decoder.config.positions_max;
        if length > positions {
            return Err(CommandError::bad_input(format!(
                "rows of {length} tokens, expected at most {positions}: {} has that many positions",
                self.name
            )));
        }
        let vocab = self.decoder.config.vocab as u64;
        let row = |i: usize| {
            let mut stream = Stream::new(0, purpose, &[i as u64]);
            (0..length).map(|_| stream.below(vocab) as u32).collect()
        };
        Ok((0..rows).map(row).collect())
    }
}

impl NamedShape {
    fn name(self) -> &'static str {
        match self {
            NamedShape::Tiny => "tiny",
            NamedShape::Smol135m => "smol135m",
        }
    }

    fn config(self, positions_min: usize) -> CommandResult<HfConfig> {
        let (width, ffn, layers, heads, kv_heads, vocab, positions) = match self {
            NamedShape::Tiny => (256, 688, 6, 8, 4, 8192, 1024),
            NamedShape::Smol135m => (576, 1536, 30, 9, 3, 49152, 2048),
        };
        Ok(HfConfig::from_value(json!({
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": width,
            "intermediate_size": ffn,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "vocab_size": vocab,
            "max_position_embeddings": positions_min.max(positions),
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "tie_word_embeddings": true,
            "initializer_range": 0.02,
        }))?)
    }
}

fn train(args: &BenchTrainArgs, global: &Global, ui: &Ui) -> CommandResult {
    let subject = Subject::new(&args.which, global, ui)?;
    if args.length < 2 {
        return Err(CommandError::bad_input(
            "--length 1, expected at least 2: a row needs a token to predict",
        ));
    }
    let rows = subject.rows("bench train", args.rows, args.length)?;
    let before = matmul(&subject.cpu);
    let recompute = if args.recompute { Recompute::Layer } else { Recompute::None };
    let seconds = time_steps(&subject, &rows, recompute, args.steps, ui);
    let matmul = before.faster(matmul(&subject.cpu));
    let tokens = args.rows * args.length;
    let gflop = 3.0 * forward_flop(&subject.decoder.config, &rows, args.rows * (args.length - 1)) / 1e9;
    let report = TrainReport {
        head: subject.head(matmul),
        stage: "sft",
        rows: args.rows,
        length: args.length,
        recompute: args.recompute,
        steps: args.steps,
        tokens_per_step: tokens,
        seconds_per_step: seconds,
        tokens_per_s: tokens as f64 / seconds.median,
        gflops: gflop / seconds.median,
        share_of_matmul: gflop / seconds.median / matmul.gflops,
        peak_memory_bytes: peak_memory_bytes(),
    };
    ui.note(&format!(
        "{} tokens/s, {} GFLOP/s, {} % of the matrix product's rate",
        short(report.tokens_per_s),
        short(report.gflops),
        short(100.0 * report.share_of_matmul)
    ));
    json_to_stdout(&report)
}

/// Seconds of each step after the first, which also allocates.
fn time_steps(subject: &Subject, rows: &[Vec<u32>], recompute: Recompute, steps: usize, ui: &Ui) -> Spread {
    let mut trainer = Trainer::new(subject, rows, recompute);
    let mut seconds = Vec::new();
    for step in 0..=steps {
        let started = Instant::now();
        trainer.step();
        if step > 0 {
            seconds.push(started.elapsed().as_secs_f64());
        }
        progress(ui, "bench", step, steps, &seconds);
    }
    ui.end_progress();
    Spread::of(seconds)
}

fn progress(ui: &Ui, label: &str, done: usize, total: usize, seconds: &[f64]) {
    let mean = (!seconds.is_empty()).then(|| seconds.iter().sum::<f64>() / seconds.len() as f64);
    ui.progress(&Work {
        label,
        done: done as u64,
        total: total as u64,
        unit: "step",
        rate_per_s: mean.map(|mean| 1.0 / mean),
        remaining_s: mean.map(|mean| mean * (total - done) as f64),
    });
}

/// Supervised fine-tuning without data.
struct Trainer<'s> {
    subject: &'s Subject,
    params: Params,
    grads: Params,
    optimizer: Optimizer,
    tape: Tape,
    batch: Batch,
    predictions: Vec<Prediction>,
    recompute: Recompute,
}

impl<'s> Trainer<'s> {
    fn new(subject: &'s Subject, rows: &[Vec<u32>], recompute: Recompute) -> Self {
        const ADAMW: OptimizerConfig = OptimizerConfig {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            decay_vectors: false,
            max_grad_norm: Some(1.0),
        };
        let layout = &subject.decoder.layout;
        let batch = Batch::from_rows(rows.iter().map(Vec::as_slice));
        let predictions = (0..rows.len()).flat_map(|segment| batch.predict(segment, 1)).collect();
        Self {
            subject,
            params: subject.params.clone(),
            grads: Params::zeros(layout),
            optimizer: Optimizer::new(ADAMW, layout.len),
            tape: Tape::default(),
            batch,
            predictions,
            recompute,
        }
    }

    fn step(&mut self) {
        let Self { subject, params, grads, optimizer, tape, batch, predictions, recompute } = self;
        let Subject { decoder, cpu, .. } = subject;
        decoder.forward(cpu, params, batch, *recompute, tape);
        let numbers = decoder.logprobs(cpu, params, tape, predictions, 1.0);
        let m = numbers.logprob_m.len();
        decoder.begin_backward(tape);
        let (d_logprob_m, d_entropy_m) = (vec![-1.0 / m as f32; m], vec![0.0; m]);
        decoder.logprobs_backward(
            cpu,
            params,
            tape,
            predictions,
            1.0,
            &numbers,
            &d_logprob_m,
            &d_entropy_m,
            grads,
        );
        decoder.backward(cpu, params, batch, tape, grads);
        optimizer.update(cpu, &decoder.layout.specs, params, grads, 1e-5);
    }
}

fn generate(args: &BenchGenerateArgs, global: &Global, ui: &Ui) -> CommandResult {
    let subject = Subject::new(&args.which, global, ui)?;
    let config = &subject.decoder.config;
    if args.prompt_length + args.new_tokens > config.positions_max {
        return Err(CommandError::bad_input(format!(
            "{} prompt and {} new tokens, expected at most {} together: the model's positions",
            args.prompt_length, args.new_tokens, config.positions_max
        )));
    }
    let before = matmul(&subject.cpu);
    let total = args.batches.len() * args.repeats;
    let mut timed = Vec::new();
    for &responses in &args.batches {
        let prompts = subject.rows("bench generate", responses, args.prompt_length)?;
        let mut runs = Vec::new();
        for _ in 0..args.repeats {
            runs.push(time_generation(&subject, &prompts, args.new_tokens));
            let done = timed.len() * args.repeats + runs.len();
            let seconds: Vec<f64> = runs.iter().map(|&(all, _)| all).collect();
            progress(ui, "bench generate", done, total, &seconds);
        }
        timed.push((responses, prompts, runs));
    }
    ui.end_progress();
    let matmul = before.faster(matmul(&subject.cpu));
    let bytes = match subject.cpu.precision() {
        polity_compute::Precision::F32 => 4,
        polity_compute::Precision::Bf16 => 2,
    };
    let weights_gb = (bytes * matrix_elements(&subject.decoder, true)) as f64 / 1e9;
    let batches = timed
        .into_iter()
        .map(|(responses, prompts, runs)| {
            let seconds = Spread::of(runs.iter().map(|&(all, _)| all).collect());
            let first_token_s = Spread::of(runs.iter().map(|&(_, first)| first).collect()).median;
            let decode_s = Spread::of(runs.iter().map(|&(all, first)| all - first).collect()).median;
            let steps = args.new_tokens - 1;
            // Every row that is computed is a prompt's or a response's, but for the last token of each response.
            let lengths: Vec<Vec<u32>> = prompts.iter().map(|prompt| vec![0; prompt.len() + steps]).collect();
            let gflop = forward_flop(config, &lengths, responses * args.new_tokens) / 1e9;
            GenerateBatch {
                responses,
                seconds,
                first_token_s,
                tokens_per_s: (responses * args.new_tokens) as f64 / seconds.median,
                decode_tokens_per_s: (responses * steps) as f64 / decode_s,
                gflops: gflop / seconds.median,
                share_of_matmul: gflop / seconds.median / matmul.gflops,
                weights_gb_per_s: weights_gb * steps as f64 / decode_s,
            }
        })
        .collect();
    let report = GenerateReport {
        head: subject.head(matmul),
        prompt_tokens: args.prompt_length,
        new_tokens: args.new_tokens,
        repeats: args.repeats,
        batches,
        peak_memory_bytes: peak_memory_bytes(),
    };
    for batch in &report.batches {
        ui.note(&format!(
            "{} together: {} tokens/s, first token after {} s",
            batch.responses,
            short(batch.tokens_per_s),
            short(batch.first_token_s)
        ));
    }
    json_to_stdout(&report)
}

/// Seconds in all, and until every response had its first token.
fn time_generation(subject: &Subject, prompts: &[Vec<u32>], new_tokens: usize) -> (f64, f64) {
    let requests: Vec<Request> = prompts
        .iter()
        .enumerate()
        .map(|(i, ids)| Request { ids: ids.clone(), samples: 1, prompt_id: i as u64 })
        .collect();
    let sampler = SamplerConfig {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        max_new_tokens: new_tokens,
        min_new_tokens: 0,
        stop_token_ids: Vec::new(),
        stop_strings: Vec::new(),
        vocab: subject.decoder.config.vocab,
    };
    let limits = Limits { sequences_max: prompts.len(), ..Limits::usual() };
    let mut tape = Tape::default();
    let mut engine = Engine::new(&subject.cpu, &subject.decoder, &subject.params, limits, &mut tape);
    let started = Instant::now();
    let (mut begun, mut first) = (vec![false; prompts.len()], 0.0);
    let mut on_token = |event: TokenEvent| {
        if !std::mem::replace(&mut begun[event.request], true) {
            first = started.elapsed().as_secs_f64();
        }
        Flow::Continue
    };
    engine.generate(&requests, &sampler, 0, &|_| String::new(), &mut on_token);
    (started.elapsed().as_secs_f64(), first)
}

/// Elements of the matrices that every row is multiplied by.
fn matrix_elements(decoder: &Decoder, with_head: bool) -> usize {
    let layout = &decoder.layout;
    layout
        .specs
        .iter()
        .enumerate()
        .filter(|&(i, _)| (i != layout.embed && i != layout.head) || (with_head && i == layout.head))
        .map(|(_, spec)| match spec.shape {
            Shape::Matrix { rows, cols } => rows * cols,
            Shape::Vector { .. } | Shape::Table { .. } => 0,
        })
        .sum()
}

/// Floating-point operations of a forward pass over whole rows.
fn forward_flop(config: &DecoderConfig, rows: &[Vec<u32>], predictions: usize) -> f64 {
    let c = config;
    let per_layer = c.qkv_width() * c.width + c.width * c.q_width() + (c.up_width() + c.ffn) * c.width;
    let tokens: usize = rows.iter().map(Vec::len).sum();
    let linear = 2.0 * (tokens * c.layers * per_layer) as f64;
    let seen = |len: usize, window: Option<usize>| -> usize {
        (1..=len).map(|keys| window.map_or(keys, |window| keys.min(window))).sum()
    };
    let keys: usize =
        rows.iter().map(|row| c.window_l.iter().map(|&window| seen(row.len(), window)).sum::<usize>()).sum();
    let attention = 4.0 * (keys * c.q_width()) as f64;
    let head = 2.0 * (predictions * c.vocab * c.width) as f64;
    linear + attention + head
}

impl Matmul {
    fn faster(self, other: Self) -> Self {
        Self {
            kernel_gflops_one_thread: self.kernel_gflops_one_thread.max(other.kernel_gflops_one_thread),
            gflops: self.gflops.max(other.gflops),
        }
    }
}

/// The best of a few runs: at least three, then as many as fit in a quarter of a second.
fn best_of(mut gflops: impl FnMut() -> f64) -> f64 {
    const LEAST: usize = 3;
    const SECONDS_MAX: f64 = 0.25;
    let started = Instant::now();
    let (mut best, mut runs) = (0.0f64, 0);
    while runs < LEAST || started.elapsed().as_secs_f64() < SECONDS_MAX {
        best = best.max(gflops());
        runs += 1;
    }
    best
}

fn matmul(cpu: &Cpu) -> Matmul {
    let kernel = best_of(|| {
        let started = Instant::now();
        let products = cpu.isa().peak_products(cpu.precision(), 5_000);
        2.0 * products / started.elapsed().as_secs_f64() / 1e9
    });
    let (m, n, k) = MATMUL_MNK;
    let spec = ParamSpec { name: "w".into(), shape: Shape::Matrix { rows: n, cols: k }, offset: 0 };
    let mut params = Params::of(Buffer::zeros(spec.range().len()));
    params.data.fill(0.01);
    params.pack(cpu, std::slice::from_ref(&spec));
    let w = params.weights(&spec);
    // On cache lines, as the decoder has them.
    let [mut x, mut y] = [m * k, m * n].map(Buffer::zeros);
    x.fill(0.5);
    let gflops = best_of(|| {
        let started = Instant::now();
        linear::forward(cpu, &mut y, &x, w, None, n, k, Write::Set);
        2.0 * (m * n * k) as f64 / started.elapsed().as_secs_f64() / 1e9
    });
    Matmul { kernel_gflops_one_thread: kernel, gflops }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_by_hand() {
        let odd = Spread::of(vec![3.0, 1.0, 2.0]);
        assert_eq!((odd.median, odd.min, odd.max), (2.0, 1.0, 3.0));
        assert_eq!(Spread::of(vec![4.0, 1.0, 2.0, 3.0]).median, 2.5);
    }

    #[test]
    fn shapes_have_the_parameters_of_their_names() {
        let count = |shape: NamedShape| {
            let config = shape.config(0).unwrap().decoder().unwrap();
            Decoder::new(config).unwrap().layout.parameter_count()
        };
        assert_eq!(count(NamedShape::Tiny), 6_450_432);
        assert_eq!(count(NamedShape::Smol135m), 134_515_008);
    }

    #[test]
    fn operations_by_hand() {
        let mut config = NamedShape::Tiny.config(0).unwrap().decoder().unwrap();
        config.window_l[0] = Some(2);
        // A layer: qkv 512 x 256, out 256 x 256, up 1376 x 256, down 256 x 688.
        let layer = 512 * 256 + 256 * 256 + 1376 * 256 + 256 * 688;
        assert_eq!(matrix_elements(&Decoder::new(config.clone()).unwrap(), false), 6 * layer);
        // Rows of 3 and 1 tokens see 1 + 2 + 3 and 1 keys, in layer 0 1 + 2 + 2 and 1.
        let keys = 5 * (6 + 1) + (5 + 1);
        let expect = 2 * 4 * 6 * layer + 4 * keys * 256 + 2 * 2 * 8192 * 256;
        assert_eq!(forward_flop(&config, &[vec![0; 3], vec![0; 1]], 2), expect as f64);
    }
}
