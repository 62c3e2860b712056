//! Rates of the matrix products on the shapes of real models, as a share of the kernel's own peak.
//! Run: `cargo bench -p polity-compute --bench kernels [-- THREADS]`.

use polity_compute::cpu::linear::{self, Write};
use polity_compute::{Cpu, Isa};
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
    let threads = std::env::args().filter_map(|a| a.parse().ok()).next().unwrap_or(2);
    let cpu = Cpu::new(threads);
    let start = Instant::now();
    let products = Isa::detect().peak_products(200_000);
    let peak = 2.0 * products / start.elapsed().as_secs_f64() / 1e9;
    println!("{cpu:?}; one thread's peak {peak:.0} GFLOP/s");
    println!(
        "{:>6} {:>6} {:>6} {:>9} {:>9} {:>9}   GFLOP/s",
        "m", "n", "k", "forward", "d_input", "d_weight"
    );
    for (n, k) in [(512, 256), (1376, 256), (256, 688), (960, 576), (3072, 576), (576, 1536), (49152, 576)] {
        let w = vec![0.01f32; n * k];
        let mut d_w = vec![0.0f32; n * k];
        for m in [1, 8, 96, 512, 1600] {
            if n * m > 49152 * 512 {
                continue;
            }
            let x = vec![0.5f32; m * k];
            let mut d_x = vec![0.0f32; m * k];
            let mut y = vec![0.25f32; m * n];
            let flop = 2.0 * (m * n * k) as f64 / 1e9;
            let times = (2.0 / flop).clamp(2.0, 30.0) as usize;
            let f = best_of(times, || linear::forward(&cpu, &mut y, &x, &w, None, n, k, Write::Set));
            let i = best_of(times, || linear::backward_input(&cpu, &mut d_x, &y, &w, n, k, Write::Set));
            let g = best_of(times, || linear::backward_weight(&cpu, &mut d_w, None, &y, &x, n, k));
            println!("{m:>6} {n:>6} {k:>6} {:>9.1} {:>9.1} {:>9.1}", flop / f, flop / i, flop / g);
        }
    }
}
