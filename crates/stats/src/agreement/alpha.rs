//! Krippendorff's alpha from a coincidence matrix.
//!
//! ```text
//! o_ck = Σ_i n_ic (n_ik - [c = k]) / (n_i - 1)        over items with n_i >= 2
//! n_c  = Σ_k o_ck,   n = Σ_c n_c
//! D_o  = Σ_ck o_ck δ²_ck / n,    D_e = Σ_ck n_c (n_k - [c = k]) δ²_ck / (n (n - 1)),    α = 1 - D_o / D_e
//!
//! δ² = [c != k]                                         nominal
//!      (Σ_{g=c}^{k} n_g - (n_c + n_k) / 2)²             ordinal
//!      (c - k)²                                         interval
//! ```

/// How far apart two levels are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Different is different.
    Nominal,
    /// By how many values lie between.
    Ordinal,
    /// By the difference of level numbers.
    Interval,
}

/// Relative size below which an expected disagreement is rounding.
const NOTHING: f64 = 1e-12;

/// Alpha of a `levels * levels` coincidence matrix; `None` if only one level occurs.
pub(super) fn alpha(coincidences: &[f64], levels: usize, metric: Metric) -> Option<f64> {
    let n_c: Vec<f64> = coincidences.chunks_exact(levels).map(|row| row.iter().sum()).collect();
    let n: f64 = n_c.iter().sum();
    let mut before = vec![0.0; levels + 1];
    (0..levels).for_each(|c| before[c + 1] = before[c] + n_c[c]);
    let square = |c: usize, k: usize| match metric {
        Metric::Nominal => 1.0,
        Metric::Ordinal => (before[k + 1] - before[c] - 0.5 * (n_c[c] + n_c[k])).powi(2),
        Metric::Interval => ((k - c) as f64).powi(2),
    };
    let (mut observed, mut expected, mut largest) = (0.0, 0.0, 0.0_f64);
    for c in 0..levels {
        for k in c + 1..levels {
            let square = square(c, k);
            observed += coincidences[c * levels + k] * square;
            expected += n_c[c] * n_c[k] * square;
            largest = largest.max(square);
        }
    }
    if n < 1.5 || expected <= NOTHING * n * n * largest {
        return None;
    }
    Some(1.0 - (n - 1.0) * observed / expected)
}
