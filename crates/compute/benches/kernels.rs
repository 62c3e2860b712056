//! Rates of the matrix products on the shapes of real models, beside the kernel's own peak.
//! Run: `cargo bench -p polity-compute --bench kernels [-- THREADS] [f32] [bf16]`.

use polity_compute::cpu::linear::{self, Write};
use polity_compute::params::{Buffer, LANES};
use polity_compute::{Cpu, Isa, ParamSpec, Params, Precision, Shape};
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
            rates(&Cpu::new(threads).with_precision(precision));
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
