//! Where the time of a training step goes: each part's milliseconds and rate, for the shapes of real work.
//! Run: `cargo bench -p polity-compute --bench step [-- SHAPE… f32 bf16]`.

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::Instant;

use common::{Numbers, random_params, shape};
use polity_compute::optim::{Optimizer, OptimizerConfig};
use polity_compute::*;

struct Work {
    name: &'static str,
    config: DecoderConfig,
    rows: usize,
    length: usize,
    /// Tokens of a row that are not predicted.
    prompt: usize,
}

fn main() {
    let demo = || shape(128, 344, 3, (4, 4, 32), 333);
    let tiny = || shape(256, 688, 6, (8, 8, 32), 8192);
    // A tenth of the layers of SmolLM2-135M and of its vocabulary: as much of each as there is.
    let smol = || shape(576, 1536, 3, (9, 3, 64), 4915);
    let all = [
        Work { name: "demo", config: demo(), rows: 32, length: 26, prompt: 1 },
        Work { name: "tiny", config: tiny(), rows: 8, length: 256, prompt: 1 },
        // A pass of PPO's updates: short prompts, responses of 64 tokens.
        Work { name: "tiny, ppo", config: tiny(), rows: 8, length: 118, prompt: 54 },
        Work { name: "tiny, long", config: tiny(), rows: 1, length: 4096, prompt: 1 },
        Work { name: "smol135m/10", config: smol(), rows: 8, length: 256, prompt: 1 },
        Work { name: "smol135m/10, long", config: smol(), rows: 1, length: 4096, prompt: 1 },
    ];
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let (precisions, asked): (Vec<_>, Vec<_>) = args.into_iter().partition(|a| a == "f32" || a == "bf16");
    for (name, precision) in [("f32", Precision::F32), ("bf16", Precision::Bf16)] {
        if precisions.is_empty() || precisions.iter().any(|a| a == name) {
            steps(&Cpu::new(2).with_precision(precision), &all, &asked);
        }
    }
}

fn steps(cpu: &Cpu, all: &[Work], asked: &[String]) {
    let start = Instant::now();
    let products = cpu.isa().peak_products(cpu.precision(), 200_000);
    println!(
        "{cpu:?}; one thread's peak {:.0} GFLOP/s",
        2.0 * products / start.elapsed().as_secs_f64() / 1e9
    );
    println!(
        "{:18} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} ms {:>9}",
        "", "forward", "head", "head bwd", "backward", "update", "all", "GFLOP/s"
    );
    for work in all.iter().filter(|work| asked.is_empty() || asked.iter().any(|a| work.name.starts_with(a))) {
        measure(cpu, work);
    }
}

fn measure(cpu: &Cpu, work: &Work) {
    let decoder = Decoder::new(work.config.clone()).expect("a valid shape");
    let mut params = random_params(&decoder, 1);
    params.pack(cpu, &decoder.layout.specs);
    let mut numbers = Numbers(2);
    let rows: Vec<Vec<u32>> = (0..work.rows).map(|_| numbers.ids(work.length, work.config.vocab)).collect();
    let batch = Batch::from_rows(rows.iter().map(Vec::as_slice));
    let predictions: Vec<Prediction> = (0..work.rows).flat_map(|s| batch.predict(s, work.prompt)).collect();
    let (d_logprob, none) = (vec![-1e-3; predictions.len()], vec![0.0; predictions.len()]);
    let (mut tape, mut grads) = (Tape::default(), Params::zeros(&decoder.layout));
    let config = OptimizerConfig {
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.0,
        decay_vectors: false,
        max_grad_norm: Some(1.0),
    };
    let mut optimizer = Optimizer::new(config, decoder.layout.len);
    let mut best = [f64::INFINITY; 5];
    let began = Instant::now();
    while began.elapsed().as_secs_f64() < 6.0 {
        let mut at = Instant::now();
        let mut lap = |part: usize| {
            best[part] = best[part].min(at.elapsed().as_secs_f64());
            at = Instant::now();
        };
        decoder.forward(cpu, &params, &batch, Recompute::None, &mut tape);
        lap(0);
        let of = decoder.logprobs(cpu, &params, &mut tape, &predictions, 1.0);
        lap(1);
        decoder.begin_backward(&mut tape);
        decoder.logprobs_backward(
            cpu,
            &params,
            &mut tape,
            &predictions,
            1.0,
            &of,
            &d_logprob,
            &none,
            &mut grads,
        );
        lap(2);
        decoder.backward(cpu, &params, &batch, &mut tape, &mut grads);
        lap(3);
        optimizer.update(cpu, &decoder.layout.specs, &mut params, &mut grads, 1e-5);
        lap(4);
    }
    let DecoderConfig { width, ffn, layers, .. } = work.config;
    let c = &work.config;
    let layer = width * (c.qkv_width() + c.q_width() + 3 * ffn);
    let tokens = batch.tokens() as f64;
    // Attention over half of the keys; the head is computed once more for its gradient.
    let attention = work.length * c.q_width();
    let flop = 6.0 * tokens * (layers * (layer + attention)) as f64
        + 6.0 * predictions.len() as f64 * (width * c.vocab) as f64;
    let all: f64 = best.iter().sum();
    print!("{:18}", work.name);
    best.iter().chain([&all]).for_each(|s| print!(" {:8.2}", s * 1e3));
    println!("    {:9.1}", flop / all / 1e9);
}
