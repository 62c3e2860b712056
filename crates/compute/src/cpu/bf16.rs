//! bf16 for the matrix products: rounding, pairs, and weights in pairs.
//!
//! A bf16 is the upper half of an f32: its exponent and 8 bits of precision. The product of two is exact in f32, so a
//! sum of products in f32 is as good as one of f32 factors; what is lost is lost in rounding the factors, once, here.
//!
//! The processor (AVX512-BF16's `vdpbf16ps`) multiplies two neighbours of a sum in one step. They share a 32-bit word, a
//! **pair**: the first in the lower half, the second in the upper. So a product of pairs is the f32 product's loops
//! (`tile.rs`, `linear.rs`) with words in place of floats and half as many steps. Where a sum has an odd number of
//! terms, the last pair's second is zero.
//!
//! Rounding is to nearest, ties to even, as the processor's own conversions do, but in plain Rust, so that all machines agree.

use super::vector::vectorized;
use super::{Cpu, Isa, SharedMut};
use crate::params::LANES;

/// The nearest bf16 as an f32's bits: the lower half is zero. NaN stays NaN.
#[inline(always)]
pub(crate) fn round_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    let quiet = bits | 0x0040_0000;
    (if x.is_nan() { quiet } else { rounded }) & 0xffff_0000
}

/// The nearest bf16.
#[inline(always)]
pub fn round(x: f32) -> f32 {
    f32::from_bits(round_bits(x))
}

/// Two neighbours of a sum in a word.
#[inline(always)]
pub(crate) fn pair(first: f32, second: f32) -> u32 {
    round_bits(first) >> 16 | round_bits(second)
}

/// The numbers of a pair.
#[inline(always)]
pub(crate) fn unpair(word: u32) -> [f32; 2] {
    [f32::from_bits(word << 16), f32::from_bits(word & 0xffff_0000)]
}

/// A matrix of panels with `cols` inputs, an even number, becomes pairs.
///
/// # Panics
///
/// If the pairs are not half as many.
pub(crate) fn pack_panels(cpu: &Cpu, pairs: &mut [u32], panels: &[f32], cols: usize) {
    assert!(cols.is_multiple_of(2), "pairs of {cols} inputs");
    assert_eq!(2 * pairs.len(), panels.len(), "bf16: half as many words");
    // Panels follow one another without a gap and hold whole pairs, so their borders do not matter.
    const CHUNK: usize = 256 * LANES;
    let pairs = SharedMut::new(pairs);
    cpu.for_each(panels.len().div_ceil(2 * CHUNK), |task| {
        let range = task * CHUNK..(panels.len() / 2).min((task + 1) * CHUNK);
        // SAFETY: chunks of different tasks do not overlap.
        let pairs = unsafe { pairs.slice(range.clone()) };
        pair_lanes(cpu.isa(), pairs, &panels[2 * range.start..2 * range.end]);
    });
}

vectorized! {
    /// Two lines of 32 lanes become one line of pairs.
    pub(crate) fn pair_lanes(pairs: &mut [u32], lines: &[f32]) {
        let (pairs, _) = pairs.as_chunks_mut::<LANES>();
        let (lines, _) = lines.as_chunks::<{ 2 * LANES }>();
        for (pairs, lines) in pairs.iter_mut().zip(lines) {
            for i in 0..LANES {
                pairs[i] = pair(lines[i], lines[LANES + i]);
            }
        }
    }
}

/// Rounds a row; a pair that is not whole gets a zero.
///
/// # Panics
///
/// If there is no room for whole pairs.
pub(crate) fn narrow(isa: Isa, out: &mut [u16], x: &[f32]) {
    let out = &mut out[..x.len().next_multiple_of(2)];
    if let [.., last] = out {
        *last = 0;
    }
    match isa {
        // SAFETY: `Cpu::with_isa` checked that the machine has the instructions.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 => unsafe { narrow_native(out, x) },
        _ => narrow_plain(isa, out, x),
    }
}

vectorized! {
    fn narrow_plain(out: &mut [u16], x: &[f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = (round_bits(x) >> 16) as u16;
        }
    }
}

/// The processor's own rounding makes subnormal numbers zero, as the product that follows does with either.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512vl")]
fn narrow_native(out: &mut [u16], x: &[f32]) {
    use std::arch::x86_64::*;
    let x16 = x.as_chunks::<16>().0;
    for (out, x) in out.as_chunks_mut::<16>().0.iter_mut().zip(x16) {
        // SAFETY: both are sixteen numbers; the vectors have the bits of one another.
        unsafe {
            let y = _mm512_cvtneps_pbh(_mm512_loadu_ps(x.as_ptr()));
            _mm256_storeu_si256(out.as_mut_ptr().cast(), std::mem::transmute::<__m256bh, __m256i>(y));
        }
    }
    let done = 16 * x16.len();
    for (out, &x) in out[done..].iter_mut().zip(&x[done..]) {
        *out = (round_bits(x) >> 16) as u16;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_nearest_even() {
        // By hand: 1 + 2^-8 lies between 1 and 1 + 2^-7, and 1 is even; 1 + 3 * 2^-8 goes up to 1 + 2^-6.
        assert_eq!(round(1.0 + 0.003_906_25), 1.0);
        assert_eq!(round(1.0 + 0.011_718_75), 1.015_625);
        assert_eq!(round(1.0 + 0.003_906_5), 1.007_812_5);
        assert_eq!(round(-3.140_625), -3.140_625);
        assert_eq!(round(f32::MAX), f32::INFINITY);
        assert_eq!(round(f32::NEG_INFINITY), f32::NEG_INFINITY);
        assert_eq!(round(-0.0).to_bits(), (-0.0f32).to_bits());
        // NaNs whose upper half alone is an infinity, or whose rounding would overflow.
        for bits in [0x7f80_0001, 0xff80_0001, 0x7fff_ffff, 0xffff_ffff] {
            assert!(round(f32::from_bits(bits)).is_nan(), "{bits:x}");
        }
    }

    #[test]
    fn rounding_is_that_of_the_half_crate() {
        for i in 0..200_000u32 {
            let x = f32::from_bits(i.wrapping_mul(0x9e37_79b9));
            let expected = half::bf16::from_f32(x).to_f32();
            assert_eq!(round(x).to_bits(), expected.to_bits(), "{x:e}");
        }
    }

    #[test]
    fn pairs_come_back() {
        assert_eq!(unpair(pair(1.5, -2.0)), [1.5, -2.0]);
        assert_eq!(pair(1.0, 2.0), 0x4000_3f80);
    }
}
