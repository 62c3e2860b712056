//! Rates of the matrix products and of attention on the shapes of real models, beside the kernel's own peak.
//! Run: `cargo bench -p polity-compute --bench kernels [-- THREADS] [f32] [bf16] [attention]`.

use polity_compute::config::{AttentionParams, Heads};
use polity_compute::cpu::attention::{self, Rows};
use polity_compute::cpu::linear::{self, Write};
use polity_compute::params::{Buffer, LANES};
use polity_compute::{Batch, Cpu, Isa, ParamSpec, Params, Precision, Shape};
use std::time::Instant;

fn best_of(times: usize, mut run: impl FnMut()) -> f64 {
    run();
    (0..times)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let threads = args.iter().filter_map(|a| a.parse().ok()).next().unwrap_or(2);
    for (name, precision) in [("f32", Precision::F32), ("bf16", Precision::Bf16)] {
        if args.iter().any(|a| a == name) || !args.iter().any(|a| a == "f32" || a == "bf16") {
            let cpu = Cpu::new(threads).with_precision(precision);
            if !args.iter().any(|a| a == "attention") {
                rates(&cpu);
            }
            attention_rates(&cpu);
        }
    }
}

fn rates(cpu: &Cpu) {
    let precision = cpu.precision();
    let start = Instant::now();
    let products = Isa::detect().peak_products(precision, 200_000);
    let peak = 2.0 * products / start.elapsed().as_secs_f64() / 1e9;
    println!("{cpu:?}; one thread's peak {peak:.0} GFLOP/s");
    println!(
        "{:>6} {:>6} {:>6} {:>9} {:>9} {:>9}   GFLOP/s",
        "m", "n", "k", "forward", "d_input", "d_weight"
    );
    // The linear maps of `tiny`, `smol135m` and a Qwen2 of 0.5B; the heads of the last two.
    for (n, k) in [
        (512, 256),
        (1376, 256),
        (256, 688),
        (960, 576),
        (3072, 576),
        (576, 1536),
        (1152, 896),
        (9728, 896),
        (896, 4864),
        (49152, 576),
    ] {
        let spec = ParamSpec { name: "w".into(), shape: Shape::Matrix { rows: n, cols: k }, offset: 0 };
        let mut params = Params::of(Buffer::zeros(n * k));
        params.data.fill(0.01);
        params.pack(cpu, std::slice::from_ref(&spec));
        let w = params.weights(&spec);
        let mut d_w = Buffer::zeros(n.next_multiple_of(LANES) * k);
        for m in [1, 8, 96, 512, 2048] {
            if n * m > 49152 * 512 {
                continue;
            }
            // As the decoder has them: on cache lines, without which tiles take several times as long.
            let [mut x, mut d_x, mut y] = [m * k, m * k, m * n].map(Buffer::zeros);
            x.fill(0.5);
            y.fill(0.25);
            let flop = 2.0 * (m * n * k) as f64 / 1e9;
            let times = (2.0 / flop).clamp(2.0, 30.0) as usize;
            let f = best_of(times, || linear::forward(cpu, &mut y, &x, w, None, n, k, Write::Set));
            let i = best_of(times, || linear::backward_input(cpu, &mut d_x, &y, w, n, k, Write::Set));
            let g = best_of(times, || {
                linear::backward_weight(cpu, precision, &mut d_w, None, &y, &x, n, k);
            });
            println!("{m:>6} {n:>6} {k:>6} {:>9.1} {:>9.1} {:>9.1}", flop / f, flop / i, flop / g);
        }
    }
}

/// Two products forward and five backward, over half of the keys.
fn attention_rates(cpu: &Cpu) {
    println!(
        "{:>6} {:>6} {:>6} {:>9} {:>9}   GFLOP/s of attention, 4096 tokens",
        "heads", "of", "row", "forward", "backward"
    );
    for (heads, kv_heads, head_dim) in [(8, 8, 32), (9, 3, 64), (14, 2, 64)] {
        let shape = Heads { heads, kv_heads, head_dim };
        for length in [256, 1024, 4096] {
            let rows = vec![vec![0; length]; 4096 / length];
            let batch = Batch::from_rows(rows.iter().map(Vec::as_slice));
            let (n, q_width) = (batch.tokens(), shape.q_width());
            let numbers = |n: usize| (0..n).map(|i| (i as f32 * 0.37).sin()).collect::<Vec<f32>>();
            let (floats, d_out) = (numbers(n * shape.qkv_width()), numbers(n * q_width));
            let halves: Vec<u16> = floats.iter().map(|x| (x.to_bits() >> 16) as u16).collect();
            let qkv = match cpu.precision() {
                Precision::F32 => Rows::Floats(&floats),
                Precision::Bf16 => Rows::Halves(&halves),
            };
            let p = AttentionParams { scale: (head_dim as f32).powf(-0.5), softcap: None, window: None };
            let [mut out, mut d_qkv] = [n * q_width, floats.len()].map(Buffer::zeros);
            let [mut max, mut sum] = [n * heads; 2].map(Buffer::zeros);
            let flop = 2.0 * (n * length * q_width) as f64 / 1e9;
            let precision = cpu.precision();
            let f = best_of(8, || {
                attention::forward(cpu, precision, &mut out, &mut max, &mut sum, qkv, &batch, shape, p);
            });
            let b = best_of(5, || {
                attention::backward(
                    cpu, precision, &mut d_qkv, &d_out, &out, &max, &sum, qkv, &batch, shape, p,
                );
            });
            println!("{heads:>6} {head_dim:>6} {length:>6} {:>9.1} {:>9.1}", flop / f, 2.5 * flop / b);
        }
    }
}
