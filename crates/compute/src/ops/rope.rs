//! Rotary positions: channel pairs of queries and keys turn by an angle that grows with the position.
//!
//! ```text
//! (a, b) = (head[i], head[i + r/2])        i < r/2, r = 2 * len(inv_freq) <= d
//! angle  = position * inv_freq[i]
//! (a, b) <- (a cos - b sin, b cos + a sin)
//! ```
//!
//! Channels `r..` of a head are left alone. The gradient is the inverse rotation, `sin` negated.
//!
//! The angle is the f32 product `(position as f32) * inv_freq`, as in Transformers: at position 10^5
//! the rounding of the angle is near 0.01 rad, so a more exact angle would be another model. Its cosine
//! and sine are taken in f64 and rounded to f32. Each element is two rounded products and their rounded
//! sum, not fused, in the order written above.
//!
//! Source: Su et al. 2021, arXiv:2104.09864, in the half-split pairing of GPT-NeoX.
//! Not here: scaled frequencies (Llama 3), which only change the numbers in `inv_freq`.

use crate::config::Heads;

/// Rotates the queries and keys of `qkv` (`[n, (h+2g)*d]`) in place; values are left alone.
///
/// # Panics
///
/// If the lengths do not fit together.
pub fn rotate(qkv: &mut [f32], position_n: &[usize], inv_freq: &[f32], shape: Heads, inverse: bool) {
    let (n, d, width) = (position_n.len(), shape.head_dim, shape.qkv_width());
    assert_eq!(qkv.len(), n * width, "rope: qkv is [{n}, {width}]");
    let half = inv_freq.len();
    assert!(2 * half <= d, "rope: {} rotary channels in a head of {d}", 2 * half);

    for (qkv_row, &position) in qkv.chunks_exact_mut(width).zip(position_n) {
        for head in qkv_row.chunks_exact_mut(d).take(shape.heads + shape.kv_heads) {
            for i in 0..half {
                let angle = f64::from(position as f32 * inv_freq[i]);
                let (cos, sin) = (angle.cos() as f32, angle.sin() as f32);
                let sin = if inverse { -sin } else { sin };
                let (a, b) = (head[i], head[i + half]);
                head[i] = a * cos - b * sin;
                head[i + half] = b * cos + a * sin;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::*;

    const SHAPE: Heads = Heads { heads: 2, kv_heads: 1, head_dim: 6 };

    // Two heads and one key of 3 channels, the first two of which turn by a quarter.
    #[test]
    fn worked_by_hand() {
        let shape = Heads { heads: 2, kv_heads: 1, head_dim: 3 };
        let quarter = std::f32::consts::FRAC_PI_4; // times position 2
        let row = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0];
        let turned = [-2.0, 1.0, 3.0, -5.0, 4.0, 6.0, -8.0, 7.0, 9.0, 10.0, 11.0, 12.0];
        let mut qkv = row.repeat(2);
        rotate(&mut qkv, &[0, 2], &[quarter], shape, false);
        assert_eq!(qkv[..12], row, "position 0 does not turn");
        for (at, (got, expect)) in qkv[12..].iter().zip(&turned).enumerate() {
            // cos of the f32 nearest to pi/2 is -4.4e-8; times 8, 3.5e-7.
            assert!((got - expect).abs() < 5e-7, "channel {at}: {got} expected {expect}");
        }
        assert_eq!(qkv[12 + 9..], row[9..], "values do not turn");
    }

    #[test]
    fn the_inverse_is_the_gradient_and_undoes_it() {
        let (inv_freq, positions) = ([1.0, 0.1], [0, 3, 1000]);
        let len = positions.len() * SHAPE.qkv_width();
        let (qkv, d_out) = (values(1, len), values(2, len));
        let run = |qkv: &[f32], inverse| {
            let mut out = qkv.to_vec();
            rotate(&mut out, &positions, &inv_freq, SHAPE, inverse);
            out
        };
        let d_qkv = run(&d_out, true);
        // The map is linear, so a large step loses nothing. Measured worst 1.0e-7.
        check_gradient("d_qkv", &d_qkv, &qkv, 0.25, 5e-7, |x| weighted(&run(x, false), &d_out));
        let there_and_back = run(&run(&qkv, false), true);
        let error = there_and_back.iter().zip(&qkv).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs()));
        println!("there and back: {error:.1e}");
        // Measured 6.0e-8.
        assert!(error < 3e-7, "error {error:.1e}");
    }

    // What a rotation is for: the product of a query and a key depends on their distance alone.
    #[test]
    fn products_depend_on_the_distance_alone() {
        let shape = Heads { heads: 1, kv_heads: 1, head_dim: 4 };
        let row = values(3, shape.qkv_width());
        let product = |q_position, k_position| {
            let mut qkv = row.repeat(2);
            rotate(&mut qkv, &[q_position, k_position], &[0.3, 0.07], shape, false);
            (0..4).map(|i| qkv[i] * qkv[12 + 4 + i]).sum::<f32>()
        };
        let (near, far, other) = (product(5, 2), product(45, 42), product(5, 3));
        // Measured 1.8e-7.
        assert!((near - far).abs() < 9e-7, "{near} {far}");
        assert!((near - other).abs() > 1e-2, "{near} {other}");
    }
}
