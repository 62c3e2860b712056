//! Loops that the compiler turns into vector code, and the few functions they need.
//!
//! [`vectorized!`] compiles one plain body several times, for each set of instructions. Rust never
//! reorders floating-point sums, so all versions give the same bits; a sum that is to be vectorised is
//! written as sixteen interleaved sums, [`Lanes`], whose order is fixed by the row's length alone.

/// Defines `fn name(isa: Isa, args…)`, whose body is compiled for each [`super::Isa`] and dispatched at run time.
macro_rules! vectorized {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name(isa: $crate::cpu::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn plain($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            fn avx512($($arg: $ty),*) $(-> $ret)? {
                plain($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $ty),*) $(-> $ret)? {
                plain($($arg),*)
            }

            match isa {
                // SAFETY: `Cpu::with_isa` checked that the machine has the instructions.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::Isa::Avx512 | $crate::cpu::Isa::Avx512Bf16 | $crate::cpu::Isa::Amx => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::Isa::Avx2 => unsafe { avx2($($arg),*) },
                _ => plain($($arg),*),
            }
        }
    };
}

pub(crate) use vectorized;

/// Sixteen interleaved sums.
#[derive(Clone, Copy)]
pub(crate) struct Lanes(pub(crate) [f32; 16]);

impl Lanes {
    pub(crate) const ZERO: Self = Self([0.0; 16]);

    /// The sixteen sums added up, neighbours eight apart first.
    #[inline(always)]
    pub(crate) fn total(self) -> f32 {
        let mut x = self.0;
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                x[i] += x[i + half];
            }
        }
        x[0]
    }
}

/// `sum f(a_i, b_i)`, sixteen interleaved sums; element `i` goes to lane `i % 16`.
#[inline(always)]
pub(crate) fn sum2(a: &[f32], b: &[f32], f: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let mut lanes = Lanes::ZERO;
    let (a16, a_tail) = a.as_chunks::<16>();
    let (b16, b_tail) = b.as_chunks::<16>();
    for (a, b) in a16.iter().zip(b16) {
        for i in 0..16 {
            lanes.0[i] = f(lanes.0[i], a[i], b[i]);
        }
    }
    for (i, (&a, &b)) in a_tail.iter().zip(b_tail).enumerate() {
        lanes.0[i] = f(lanes.0[i], a, b);
    }
    lanes.total()
}

/// `e^x`, within 2 units in the last place; 0 below -86.6 (2.5e-38), infinity above 88.7, NaN stays NaN.
///
/// `e^x = 2^n e^r` with `n` the integer nearest to `x / ln 2` and `|r| <= ln 2 / 2`, where a polynomial of
/// degree 6 (minimax, after Cephes' `expf`) serves.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts: the first has few bits, so that n times it is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-86.6, 88.7);
    let shifted = clamped.mul_add(LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, clamped));
    let mut p = 1.987_569_1e-4_f32;
    p = p.mul_add(r, 1.398_199_9e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 1.666_666_5e-1);
    p = p.mul_add(r, 0.5);
    let e_r = p.mul_add(r * r, r) + 1.0;
    // 2^(n-1), then doubled: 2^128 itself is not a float.
    let scale = f32::from_bits((shifted.to_bits().wrapping_add(126)) << 23);
    let y = e_r * scale * 2.0;
    let y = if x < -86.6 { 0.0 } else { y };
    let y = if x > 88.7 { f32::INFINITY } else { y };
    if x.is_nan() { x } else { y }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

vectorized! {
    /// `a_i += b_i`.
    pub(crate) fn add(a: &mut [f32], b: &[f32]) {
        for (a, &b) in a.iter_mut().zip(b) {
            *a += b;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units() {
        let mut worst = 0.0_f64;
        let mut x = -86.6_f32;
        while x < 88.7 {
            let exact = f64::from(x).exp();
            let unit = f64::from(f32::EPSILON) * exact.max(f64::from(f32::MIN_POSITIVE));
            worst = worst.max((f64::from(exp(x)) - exact).abs() / unit);
            x += 0.00137;
        }
        // Measured 0.9 units of 2^-23.
        assert!(worst < 2.0, "worst {worst} units");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-100.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(100.0), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn lanes_add_up() {
        let a: Vec<f32> = (1..=37).map(|i| i as f32).collect();
        assert_eq!(sum2(&a, &a, |acc, a, _| acc + a), 703.0);
    }
}
