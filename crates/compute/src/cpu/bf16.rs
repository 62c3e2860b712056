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
//! Rounding is to nearest, ties to even, by the processor's own conversions or in plain Rust: they agree in every bit.

use super::vector::vectorized;
use super::wide::{Wide, wide};
use super::{Cpu, Isa};
use crate::params::LANES;

/// The nearest bf16 as an f32's bits: the lower half is zero. NaN stays NaN; a subnormal number becomes zero.
#[inline(always)]
pub(crate) fn round_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    let quiet = bits | 0x0040_0000;
    let rounded = (if x.is_nan() { quiet } else { rounded }) & 0xffff_0000;
    if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { rounded }
}

/// The nearest bf16.
#[inline(always)]
pub fn round(x: f32) -> f32 {
    f32::from_bits(round_bits(x))
}

/// The number of a bf16's bits.
#[inline(always)]
pub(crate) fn float(half: u16) -> f32 {
    f32::from_bits(u32::from(half) << 16)
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
    // Panels follow one another without a gap and hold whole lines of pairs, so their borders do not matter.
    cpu.for_each_chunk(pairs, CHUNK, |task, pairs| {
        pair_lanes(cpu.isa(), pairs, &panels[2 * task * CHUNK..][..2 * pairs.len()]);
    });
}

/// Two lines of 32 lanes become one line of pairs.
pub(crate) fn pair_lanes(isa: Isa, pairs: &mut [u32], lines: &[f32]) {
    pair_lines(isa, pairs, lines, 0, LANES);
}

/// Rounds a row; a pair that is not whole gets a zero.
///
/// # Panics
///
/// If there is no room for whole pairs.
pub(crate) fn narrow(isa: Isa, out: &mut [u16], x: &[f32]) {
    let (out, pad) = out[..x.len().next_multiple_of(2)].split_at_mut(x.len());
    pad.fill(0);
    narrow_exact(isa, out, x);
}

/// Rounds numbers.
fn narrow_exact(isa: Isa, out: &mut [u16], x: &[f32]) {
    assert!(out.len() <= x.len(), "bf16: {} halves of {} numbers", out.len(), x.len());
    // SAFETY: there are as many numbers, by the check.
    unsafe { narrow_each(isa, out, x) }
}

wide! {
    fn narrow_each = narrow_all(out: &mut [u16], x: &[f32])
}

/// # Safety
///
/// There are as many numbers as halves.
#[inline(always)]
unsafe fn narrow_all<W: Wide>(out: &mut [u16], x: &[f32]) {
    let (whole, rest) = out.as_chunks_mut::<32>();
    for (out, x) in whole.iter_mut().zip(x.as_chunks::<32>().0) {
        // SAFETY: 32 numbers, and 32 halves.
        unsafe { W::load(x.as_ptr()).store_halves(W::load(x[16..].as_ptr()), out.as_mut_ptr().cast()) };
    }
    for (out, &x) in rest.iter_mut().zip(&x[32 * whole.len()..]) {
        *out = (round_bits(x) >> 16) as u16;
    }
}

/// Numbers that a thread rounds or widens at a time: whole lines of pairs.
const CHUNK: usize = 1 << 14;

/// Keeps `x` rounded, a half for a number.
///
/// # Panics
///
/// If there is not one half a number.
pub(crate) fn keep(cpu: &Cpu, halves: &mut [u16], x: &[f32]) {
    assert_eq!(halves.len(), x.len(), "bf16: a half for a number");
    cpu.for_each_chunk(halves, CHUNK, |task, halves| {
        narrow_exact(cpu.isa(), halves, &x[task * CHUNK..][..halves.len()]);
    });
}

/// What [`keep`] kept.
pub(crate) fn widen(cpu: &Cpu, x: &mut [f32], halves: &[u16]) {
    cpu.for_each_chunk(x, CHUNK, |task, x| widen_chunk(cpu.isa(), x, &halves[task * CHUNK..]));
}

vectorized! {
    fn widen_chunk(x: &mut [f32], halves: &[u16]) {
        for (x, &half) in x.iter_mut().zip(halves) {
            *x = float(half);
        }
    }
}

/// Pairs of two rows; where the second is missing its numbers are zero.
pub(crate) fn pair_rows(isa: Isa, out: &mut [u32], first: &[f32], second: Option<&[f32]>) {
    let Some(second) = second else {
        out.iter_mut().zip(first).for_each(|(out, &first)| *out = pair(first, 0.0));
        return;
    };
    let len = out.len().min(first.len()).min(second.len());
    // SAFETY: so many numbers in each.
    unsafe { pair_each(isa, &mut out[..len], &first[..len], &second[..len]) }
}

wide! {
    fn pair_each = pair_all(out: &mut [u32], first: &[f32], second: &[f32])
}

/// # Safety
///
/// The rows are as long as `out`.
#[inline(always)]
unsafe fn pair_all<W: Wide>(out: &mut [u32], first: &[f32], second: &[f32]) {
    let (whole, rest) = out.as_chunks_mut::<16>();
    let done = 16 * whole.len();
    for (i, out) in whole.iter_mut().enumerate() {
        // SAFETY: sixteen numbers of each row, by the caller's promise, and sixteen pairs.
        unsafe {
            let (first, second) = (W::load(first.as_ptr().add(16 * i)), W::load(second.as_ptr().add(16 * i)));
            first.store_pairs(second, out.as_mut_ptr());
        }
    }
    for ((out, &first), &second) in rest.iter_mut().zip(&first[done..]).zip(&second[done..]) {
        *out = pair(first, second);
    }
}

vectorized! {
    /// Pairs of two rows that are rounded already.
    pub(crate) fn pair_halves(out: &mut [u32], first: &[u16], second: &[u16]) {
        for ((out, &first), &second) in out.iter_mut().zip(first).zip(second) {
            *out = u32::from(first) | u32::from(second) << 16;
        }
    }
}

/// Pairs of 32 neighbouring lanes of rows, `first` and the `gap` floats after it: line after line of `out`, each of the next two rows.
///
/// # Panics
///
/// If `x` does not hold two rows for each line.
pub(crate) fn pair_lines(isa: Isa, out: &mut [u32], x: &[f32], first: usize, gap: usize) {
    let lines = out.len() / LANES;
    let last = first + (2 * lines).saturating_sub(1) * gap + LANES;
    assert!(lines == 0 || last <= x.len(), "bf16: {last} floats of {}", x.len());
    // SAFETY: the rows are there by the check above.
    unsafe { pair_each_line(isa, out, x, first, gap) }
}

wide! {
    fn pair_each_line = pair_all_lines(out: &mut [u32], x: &[f32], first: usize, gap: usize)
}

/// # Safety
///
/// As [`pair_lines`] checks.
#[inline(always)]
unsafe fn pair_all_lines<W: Wide>(out: &mut [u32], x: &[f32], first: usize, gap: usize) {
    for (line, out) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        // SAFETY: two rows of 32 floats, by the caller's promise.
        unsafe {
            let row = x.as_ptr().add(first + 2 * line * gap);
            for i in (0..LANES).step_by(16) {
                W::load(row.add(i)).store_pairs(W::load(row.add(gap + i)), out.as_mut_ptr().add(i));
            }
        }
    }
}

/// Turns pairs of two rows of `[row][k]`, channel by channel: `out[c * stride + row / 2]` of channel `first + c`. Rows that are not there count as zero,
/// up to whole sixteens of pairs.
///
/// # Safety
///
/// `out` has so many channels, `stride` words apart, of room for the pairs rounded up to sixteen, and nobody else has those.
///
/// # Panics
///
/// If `x` does not have the channels, or not whole rows.
pub(crate) unsafe fn turn_rows(
    isa: Isa,
    out: *mut u32,
    stride: usize,
    channels: usize,
    x: &[f32],
    k: usize,
    first: usize,
) {
    let rows = x.len() / k;
    assert!(x.len() == rows * k && first + channels <= k, "bf16: {channels} channels from {first} of {k}");
    let steps = rows.div_ceil(2).next_multiple_of(16);
    // Squares of sixteen by the processor, the rest number by number.
    let whole_channels = match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 | Isa::Amx => channels / 16 * 16,
        _ => 0,
    };
    #[cfg(target_arch = "x86_64")]
    for step in (0..steps).step_by(16) {
        let there = (rows - 2 * step).min(32);
        for c in (0..whole_channels).step_by(16) {
            // SAFETY: `Cpu::with_isa` checked that the machine has the instructions; the rows and channels are inside by the check above, the
            // places by the caller's promise.
            unsafe {
                let x = x.as_ptr().add(2 * step * k + first + c);
                native::turn_rows(out.add(c * stride + step), stride, x, k, there);
            }
        }
    }
    for c in whole_channels..channels {
        let number = |row: usize| if row < rows { x[row * k + first + c] } else { 0.0 };
        for step in 0..steps {
            // SAFETY: inside, by the caller's promise.
            unsafe { *out.add(c * stride + step) = pair(number(2 * step), number(2 * step + 1)) };
        }
    }
}

/// Turns rows of `w` words: `out[c * stride + row] = words[row][c]`. Places of rows that are not there are left as they are.
///
/// # Panics
///
/// If `words` is not whole rows or `out` has no room for them.
pub(crate) fn turn_words(isa: Isa, out: &mut [u32], stride: usize, words: &[u32], w: usize) {
    let rows = words.len() / w;
    assert!(
        words.len() == rows * w && rows <= stride && w * stride <= out.len(),
        "bf16: {rows} rows in {stride}"
    );
    // Squares of sixteen by the processor, the rest word by word.
    let (whole_rows, whole_words) = match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => (rows / 16 * 16, w / 16 * 16),
        _ => (0, 0),
    };
    #[cfg(target_arch = "x86_64")]
    for row in (0..whole_rows).step_by(16) {
        for c in (0..whole_words).step_by(16) {
            // SAFETY: `Cpu::with_isa` checked that the machine has the instructions; the square is inside by the checks above.
            unsafe {
                native::turn_words(
                    out[c * stride + row..].as_mut_ptr(),
                    stride,
                    words[row * w + c..].as_ptr(),
                    w,
                );
            }
        }
    }
    for (row, line) in words.chunks_exact(w).enumerate() {
        for c in if row < whole_rows { whole_words } else { 0 }..w {
            out[c * stride + row] = line[c];
        }
    }
}

/// The processor's own rounding.
#[cfg(target_arch = "x86_64")]
mod native {
    use std::arch::x86_64::*;

    use super::super::wide::{Wide, Zmm};

    /// # Safety
    ///
    /// Sixteen numbers at each place.
    #[inline]
    #[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512vl")]
    unsafe fn sixteen_pairs(first: *const f32, second: *const f32) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { Zmm::<true>::load(first).pairs(Zmm::load(second)) }
    }

    /// `out[c * stride + s]` = the pair of rows `2 s` and `2 s + 1` of channel `c`, for sixteen of each; rows from `there` on count as zero.
    ///
    /// # Safety
    ///
    /// `there` rows of `x` (at most 32), `k` floats apart, have sixteen numbers, and sixteen rows of `out` sixteen words.
    #[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512vl")]
    pub(super) unsafe fn turn_rows(out: *mut u32, stride: usize, x: *const f32, k: usize, there: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut rows = [_mm512_setzero_si512(); 16];
            for (s, row) in rows.iter_mut().enumerate().take(there / 2) {
                *row = sixteen_pairs(x.add(2 * s * k), x.add((2 * s + 1) * k));
            }
            if there % 2 == 1 {
                let last = _mm512_loadu_ps(x.add((there - 1) * k));
                rows[there / 2] = _mm512_cvtepu16_epi32(rounded(last));
            }
            for (c, row) in turned_sixteen(rows).into_iter().enumerate() {
                _mm512_storeu_si512(out.add(c * stride).cast(), row);
            }
        }
    }

    /// `out[c * stride + i] = x[i * w + c]`, for sixteen of each.
    ///
    /// # Safety
    ///
    /// Sixteen rows of `x`, `w` words apart, and sixteen of `out` have sixteen words.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn turn_words(out: *mut u32, stride: usize, x: *const u32, w: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut rows = [_mm512_setzero_si512(); 16];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = _mm512_loadu_si512(x.add(i * w).cast());
            }
            for (c, row) in turned_sixteen(rows).into_iter().enumerate() {
                _mm512_storeu_si512(out.add(c * stride).cast(), row);
            }
        }
    }

    /// Turns a square of sixteen by sixteen words: neighbours, neighbours of neighbours, quarters twice.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn turned_sixteen(x: [__m512i; 16]) -> [__m512i; 16] {
        let (mut t, mut out) = ([_mm512_setzero_si512(); 16], [_mm512_setzero_si512(); 16]);
        for i in 0..4 {
            let [a, b, c, d] = [x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]];
            let (low, high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let (low_2, high_2) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            // Word `j` of each quarter, of rows `4 i` to `4 i + 3`.
            t[4 * i] = _mm512_unpacklo_epi64(low, low_2);
            t[4 * i + 1] = _mm512_unpackhi_epi64(low, low_2);
            t[4 * i + 2] = _mm512_unpacklo_epi64(high, high_2);
            t[4 * i + 3] = _mm512_unpackhi_epi64(high, high_2);
        }
        for j in 0..4 {
            let even = |a, b| _mm512_shuffle_i32x4::<0x88>(a, b);
            let odd = |a, b| _mm512_shuffle_i32x4::<0xdd>(a, b);
            let (a, b) = (even(t[j], t[4 + j]), even(t[8 + j], t[12 + j]));
            let (c, d) = (odd(t[j], t[4 + j]), odd(t[8 + j], t[12 + j]));
            out[j] = even(a, b);
            out[8 + j] = odd(a, b);
            out[4 + j] = even(c, d);
            out[12 + j] = odd(c, d);
        }
        out
    }

    #[inline]
    #[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512vl")]
    fn rounded(x: __m512) -> __m256i {
        // SAFETY: the vectors have the bits of one another.
        unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x)) }
    }

    /// Turns squares of 64 bits: `out[j][c] = x[c][j]`, eight by eight at a time.
    #[target_feature(enable = "avx512f")]
    pub(super) fn turn_squares(out: &mut [[u64; 16]; 16], x: &[[u64; 16]; 16]) {
        for (c, j) in [(0, 0), (0, 8), (8, 0), (8, 8)] {
            // SAFETY: eight rows of eight words, inside the square.
            unsafe {
                let row = |i: usize| _mm512_loadu_si512(x[c + i][j..].as_ptr().cast());
                let mut pairs = [[_mm512_setzero_si512(); 2]; 4];
                for (i, pair) in pairs.iter_mut().enumerate() {
                    let (even, odd) = (row(2 * i), row(2 * i + 1));
                    *pair = [_mm512_unpacklo_epi64(even, odd), _mm512_unpackhi_epi64(even, odd)];
                }
                let [a, b, d, e] = pairs;
                for odd in 0..2 {
                    // Quarters of 128 bits: of rows 0 to 3 and of rows 4 to 7.
                    let low = [
                        _mm512_shuffle_i64x2::<0x88>(a[odd], b[odd]),
                        _mm512_shuffle_i64x2::<0xdd>(a[odd], b[odd]),
                    ];
                    let high = [
                        _mm512_shuffle_i64x2::<0x88>(d[odd], e[odd]),
                        _mm512_shuffle_i64x2::<0xdd>(d[odd], e[odd]),
                    ];
                    for k in 0..2 {
                        let first = _mm512_shuffle_i64x2::<0x88>(low[k], high[k]);
                        let second = _mm512_shuffle_i64x2::<0xdd>(low[k], high[k]);
                        _mm512_storeu_si512(out[j + 2 * k + odd][c..].as_mut_ptr().cast(), first);
                        _mm512_storeu_si512(out[j + 4 + 2 * k + odd][c..].as_mut_ptr().cast(), second);
                    }
                }
            }
        }
    }
}

/// Turns pairs of 32 outputs and 32 channels: from `[k / 2][n]`, even `k` in the lower halves, to `[n / 2][k]`, even `n` there.
///
/// Two outputs of two channels are a square of four numbers, whose other corners change places; then squares are turned whole.
pub(crate) fn turn_block(isa: Isa, turned: &mut [u32; LANES * LANES / 2], block: &[u32]) {
    let mut squares = [[0u64; LANES / 2]; LANES / 2];
    let rows: &mut [[u32; LANES]; LANES / 2] = bytemuck::cast_mut(&mut squares);
    for (row, block) in rows.iter_mut().zip(block.as_chunks::<LANES>().0) {
        *row = *block;
    }
    swap_corners(isa, &mut squares);
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => {
            let mut out = [[0u64; LANES / 2]; LANES / 2];
            // SAFETY: `Cpu::with_isa` checked that the machine has the instructions.
            unsafe { native::turn_squares(&mut out, &squares) };
            *turned = bytemuck::cast(out);
        }
        _ => {
            let turned = turned.as_chunks_mut::<LANES>().0;
            for (c, squares) in squares.iter().enumerate() {
                for (j, &square) in squares.iter().enumerate() {
                    turned[j][2 * c] = square as u32;
                    turned[j][2 * c + 1] = (square >> 32) as u32;
                }
            }
        }
    }
}

vectorized! {
    fn swap_corners(squares: &mut [[u64; LANES / 2]; LANES / 2]) {
        for square in squares.as_flattened_mut() {
            let x = *square;
            *square = (x & 0xffff_0000_0000_ffff) | (x & 0xffff_0000) << 16 | (x >> 16) & 0xffff_0000;
        }
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
            let expected =
                if x.is_subnormal() { 0.0f32.copysign(x) } else { half::bf16::from_f32(x).to_f32() };
            assert_eq!(round(x).to_bits(), expected.to_bits(), "{x:e}");
        }
    }

    #[test]
    fn the_processor_rounds_as_plain_rust() {
        let x: Vec<f32> = (0..100_003u32).map(|i| f32::from_bits(i.wrapping_mul(0x9e37_79b9))).collect();
        let y: Vec<f32> = (0..100_003u32).map(|i| f32::from_bits(i.wrapping_mul(0x85eb_ca6b))).collect();
        let run = |isa: Isa| {
            let (mut narrowed, mut pairs) = (vec![7u16; x.len() + 1], vec![7u32; x.len()]);
            narrow(isa, &mut narrowed, &x);
            pair_rows(isa, &mut pairs, &x, Some(&y));
            let mut lines = vec![7u32; 5 * LANES];
            pair_lines(isa, &mut lines, &x, 3, 1000);
            (narrowed, pairs, lines)
        };
        let plain = run(Isa::Portable);
        assert_eq!(plain.1[5], pair(x[5], y[5]));
        assert_eq!(plain.2[LANES + 1], pair(x[2004], x[3004]));
        assert_eq!(*plain.0.last().unwrap(), 0, "an odd row ends with a zero");
        assert!(run(Isa::detect()) == plain);
    }

    #[test]
    fn pairs_come_back() {
        assert_eq!(unpair(pair(1.5, -2.0)), [1.5, -2.0]);
        assert_eq!(pair(1.0, 2.0), 0x4000_3f80);
    }
}
