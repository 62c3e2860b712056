//! Decoding: milliseconds of a prompt and of a step, of one sequence and of eight, without sampling.
//! Run: `cargo bench -p polity-compute --bench decode [-- SHAPE… f32 bf16]`.

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::Instant;

use common::{Numbers, random_params, shape};
use polity_compute::*;

/// Tokens of a prompt, and steps after it.
const PROMPT: usize = 110;
const STEPS: usize = 64;

fn main() {
    let all = [
        ("tiny", shape(256, 688, 6, (8, 4, 32), 8192)),
        ("smol135m", shape(576, 1536, 30, (9, 3, 64), 49152)),
    ];
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let (precisions, asked): (Vec<_>, Vec<_>) = args.into_iter().partition(|a| a == "f32" || a == "bf16");
    println!("{:10} {:9} {:>9} {:>10} {:>10}   ms", "", "precision", "sequences", "prompt", "step");
    for (name, precision) in [("f32", Precision::F32), ("bf16", Precision::Bf16)] {
        if !precisions.is_empty() && !precisions.iter().any(|a| a == name) {
            continue;
        }
        let cpu = Cpu::new(2).with_precision(precision);
        for (shape, config) in
            all.iter().filter(|(shape, _)| asked.is_empty() || asked.iter().any(|a| a == shape))
        {
            for sequences in [1, 8] {
                let [prompt, step] = decode(&cpu, config, sequences);
                println!("{shape:10} {name:9} {sequences:9} {:10.2} {:10.3}", prompt * 1e3, step * 1e3);
            }
        }
    }
}

/// Seconds of the prompts and of a step, the best of some seconds.
fn decode(cpu: &Cpu, config: &DecoderConfig, sequences: usize) -> [f64; 2] {
    let decoder = Decoder::new(config.clone()).expect("a valid shape");
    let mut params = random_params(&decoder, 1);
    params.pack(cpu, &decoder.layout.specs);
    let (mut numbers, mut tape) = (Numbers(2), Tape::default());
    let prompts: Vec<Vec<u32>> = (0..sequences).map(|_| numbers.ids(PROMPT, config.vocab)).collect();
    let rows: Vec<usize> = (0..sequences).collect();
    let mut best = [f64::INFINITY; 2];
    let began = Instant::now();
    while began.elapsed().as_secs_f64() < 4.0 {
        let mut cache = KvCache::new(config, cpu.precision());
        let ids: Vec<SequenceId> = prompts.iter().map(|_| cache.add()).collect();
        let at = Instant::now();
        let feed: Vec<_> = ids.iter().copied().zip(prompts.iter().map(Vec::as_slice)).collect();
        decoder.extend(cpu, &params, &mut cache, &feed, &mut tape);
        best[0] = best[0].min(at.elapsed().as_secs_f64());
        let at = Instant::now();
        for step in 0..STEPS {
            let token = [step as u32];
            let feed: Vec<_> = ids.iter().map(|&id| (id, &token[..])).collect();
            decoder.extend(cpu, &params, &mut cache, &feed, &mut tape);
            std::hint::black_box(decoder.logits(cpu, &params, &mut tape, &rows, 1.0));
        }
        best[1] = best[1].min(at.elapsed().as_secs_f64() / STEPS as f64);
    }
    best
}
