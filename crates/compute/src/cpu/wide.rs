//! Sixteen floats at a time, spelled out: for loops of which the compiler makes poor vectors when left alone.
//!
//! A kernel is written once over [`Wide`] and compiled by [`wide!`] for plain Rust, AVX2, AVX-512 and AVX512-BF16. All do the same operations
//! in the same order, so they agree in every bit.

use super::bf16;

/// Sixteen floats.
///
/// # Safety
///
/// Every method needs the instructions of its type, which [`wide!`] sees to, and addresses of as many numbers as its name says.
pub(crate) trait Wide: Copy {
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn store(self, p: *mut f32);
    unsafe fn splat(x: f32) -> Self;
    unsafe fn add(self, b: Self) -> Self;
    unsafe fn sub(self, b: Self) -> Self;
    unsafe fn mul(self, b: Self) -> Self;
    /// `self * b + c`, rounded once.
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
    /// The larger; `self` where either is NaN.
    unsafe fn larger(self, b: Self) -> Self;
    /// Adds the low bits of `n` to the exponent.
    unsafe fn raise(self, n: Self) -> Self;
    /// `self` in the lanes whose bits are set, `b` in the others.
    unsafe fn where_set(self, lanes: u16, b: Self) -> Self;
    /// The largest of all lanes that is no NaN.
    unsafe fn largest(self) -> f32;
    /// The first lane.
    unsafe fn first(self) -> f32;
    /// Writes sixteen pairs of neighbours: of `self`, then of `next`.
    unsafe fn store_halves(self, next: Self, out: *mut u32);
    /// Writes sixteen pairs of lanes, the first numbers from `self`.
    unsafe fn store_pairs(self, second: Self, out: *mut u32);

    /// `2^x` for `x` up to 127, within 2 units in the last place; at least `2^-64`, and NaN stays NaN.
    ///
    /// `2^-64` is nothing beside a sum that holds a 1, as a softmax's does. Less could become subnormal when it is multiplied, which takes processors
    /// a hundred times as long.
    ///
    /// `2^x = 2^n 2^r` with `n` the integer nearest to `x` and `|r| <= 1/2`, where a polynomial of degree 6 serves: the least relative error, 2.0e-9,
    /// found by iterated weighted least squares on Chebyshev nodes (Lawson).
    #[inline(always)]
    unsafe fn exp2(self) -> Self {
        const LEAST: f32 = -64.0;
        /// Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
        const ROUND: f32 = 12_582_912.0;
        const POLYNOMIAL: [f32; 6] =
            [1.339_887_4e-3, 9.618_437e-3, 5.550_332_4e-2, 2.402_264_8e-1, 6.931_472e-1, 1.0];
        // SAFETY: no addresses.
        unsafe {
            let x = self.larger(Self::splat(LEAST));
            let shifted = x.add(Self::splat(ROUND));
            let r = x.sub(shifted.sub(Self::splat(ROUND)));
            let mut p = Self::splat(1.535_336_2e-4);
            for c in POLYNOMIAL {
                p = p.mul_add(r, Self::splat(c));
            }
            p.raise(shifted)
        }
    }
}

/// Sixteen floats in plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Plain([f32; 16]);

impl Plain {
    #[inline(always)]
    fn zip(self, b: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], b.0[i])))
    }
}

impl Wide for Plain {
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller's address is readable.
        Self(unsafe { p.cast::<[f32; 16]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller's address is writable.
        unsafe { p.cast::<[f32; 16]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; 16])
    }

    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        self.zip(b, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        self.zip(b, |a, b| a - b)
    }

    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        self.zip(b, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i].mul_add(b.0[i], c.0[i])))
    }

    #[inline(always)]
    unsafe fn larger(self, b: Self) -> Self {
        self.zip(b, |a, b| if b > a { b } else { a })
    }

    #[inline(always)]
    unsafe fn raise(self, n: Self) -> Self {
        self.zip(n, |a, n| f32::from_bits(a.to_bits().wrapping_add(n.to_bits() << 23)))
    }

    #[inline(always)]
    unsafe fn where_set(self, lanes: u16, b: Self) -> Self {
        Self(std::array::from_fn(|i| if lanes >> i & 1 == 1 { self.0[i] } else { b.0[i] }))
    }

    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        self.0.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
    }

    #[inline(always)]
    unsafe fn first(self) -> f32 {
        self.0[0]
    }

    #[inline(always)]
    unsafe fn store_halves(self, next: Self, out: *mut u32) {
        for (half, x) in [self, next].into_iter().enumerate() {
            for i in 0..8 {
                // SAFETY: sixteen words, by the caller's promise.
                unsafe { out.add(8 * half + i).write_unaligned(bf16::pair(x.0[2 * i], x.0[2 * i + 1])) };
            }
        }
    }

    #[inline(always)]
    unsafe fn store_pairs(self, second: Self, out: *mut u32) {
        for i in 0..16 {
            // SAFETY: sixteen words, by the caller's promise.
            unsafe { *out.add(i) = bf16::pair(self.0[i], second.0[i]) };
        }
    }
}

/// AVX-512; with `BF16` the processor's own rounding.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Zmm<const BF16: bool>(std::arch::x86_64::__m512);

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Plain, Wide, Zmm};

    impl<const BF16: bool> Zmm<BF16> {
        #[inline(always)]
        fn plain(self) -> Plain {
            // SAFETY: sixteen floats both.
            Plain(unsafe { std::mem::transmute::<__m512, [f32; 16]>(self.0) })
        }
    }

    // SAFETY of every block below: the kernel around it is compiled with the instructions (`wide!`), and addresses are the caller's promise.
    impl<const BF16: bool> Wide for Zmm<BF16> {
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            // SAFETY: above.
            Self(unsafe { _mm512_loadu_ps(p) })
        }

        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            // SAFETY: above.
            unsafe { _mm512_storeu_ps(p, self.0) }
        }

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: above.
            Self(unsafe { _mm512_set1_ps(x) })
        }

        #[inline(always)]
        unsafe fn add(self, b: Self) -> Self {
            // SAFETY: above.
            Self(unsafe { _mm512_add_ps(self.0, b.0) })
        }

        #[inline(always)]
        unsafe fn sub(self, b: Self) -> Self {
            // SAFETY: above.
            Self(unsafe { _mm512_sub_ps(self.0, b.0) })
        }

        #[inline(always)]
        unsafe fn mul(self, b: Self) -> Self {
            // SAFETY: above.
            Self(unsafe { _mm512_mul_ps(self.0, b.0) })
        }

        #[inline(always)]
        unsafe fn mul_add(self, b: Self, c: Self) -> Self {
            // SAFETY: above.
            Self(unsafe { _mm512_fmadd_ps(self.0, b.0, c.0) })
        }

        #[inline(always)]
        unsafe fn larger(self, b: Self) -> Self {
            // SAFETY: above. The instruction returns its second operand where one is NaN.
            Self(unsafe { _mm512_max_ps(b.0, self.0) })
        }

        #[inline(always)]
        unsafe fn raise(self, n: Self) -> Self {
            // SAFETY: above.
            Self(unsafe {
                let n = _mm512_slli_epi32::<23>(_mm512_castps_si512(n.0));
                _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(self.0), n))
            })
        }

        #[inline(always)]
        unsafe fn where_set(self, lanes: u16, b: Self) -> Self {
            // SAFETY: above.
            Self(unsafe { _mm512_mask_mov_ps(b.0, lanes, self.0) })
        }

        #[inline(always)]
        unsafe fn largest(self) -> f32 {
            // SAFETY: above.
            unsafe {
                let x = Self(_mm512_shuffle_f32x4::<0x4e>(self.0, self.0)).larger(self);
                let x = Self(_mm512_shuffle_f32x4::<0xb1>(x.0, x.0)).larger(x);
                let x = Self(_mm512_permute_ps::<0x4e>(x.0)).larger(x);
                let x = Self(_mm512_permute_ps::<0xb1>(x.0)).larger(x);
                _mm512_cvtss_f32(x.0)
            }
        }

        #[inline(always)]
        unsafe fn first(self) -> f32 {
            // SAFETY: above.
            unsafe { _mm512_cvtss_f32(self.0) }
        }

        #[inline(always)]
        unsafe fn store_halves(self, next: Self, out: *mut u32) {
            if !BF16 {
                // SAFETY: the caller's promise.
                return unsafe { self.plain().store_halves(next.plain(), out) };
            }
            // SAFETY: above; vectors of the same bits.
            unsafe {
                let halves = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(next.0, self.0));
                _mm512_storeu_si512(out.cast(), halves);
            }
        }

        #[inline(always)]
        unsafe fn store_pairs(self, second: Self, out: *mut u32) {
            if !BF16 {
                // SAFETY: the caller's promise.
                return unsafe { self.plain().store_pairs(second.plain(), out) };
            }
            // SAFETY: above.
            unsafe { _mm512_storeu_si512(out.cast(), Zmm::<true>(self.0).pairs(Zmm(second.0))) };
        }
    }

    /// Where a pair's numbers are when sixteen first ones are followed by sixteen second ones.
    const PLACES: [u16; 32] = {
        let mut places = [0; 32];
        let mut i = 0;
        while i < 16 {
            (places[2 * i], places[2 * i + 1]) = (i as u16, 16 + i as u16);
            i += 1;
        }
        places
    };

    impl Zmm<true> {
        /// Sixteen pairs of lanes.
        ///
        /// # Safety
        ///
        /// The kernel around it is compiled with AVX512-BF16.
        #[inline(always)]
        pub(crate) unsafe fn pairs(self, second: Self) -> __m512i {
            // SAFETY: the caller's promise; vectors of the same bits.
            unsafe {
                let halves = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second.0, self.0));
                _mm512_permutexvar_epi16(_mm512_loadu_si512(PLACES.as_ptr().cast()), halves)
            }
        }
    }
}

/// Defines `unsafe fn name(isa: Isa, args…)` from `unsafe fn body::<W: Wide>(args…)`, which is compiled for each kind of [`Wide`] and dispatched at run time.
///
/// # Safety
///
/// As the body.
macro_rules! wide {
    ($(#[$meta:meta])* $vis:vis fn $name:ident = $body:ident($($arg:ident: $ty:ty),* $(,)?)) => {
        $(#[$meta])*
        $vis unsafe fn $name(isa: $crate::cpu::Isa, $($arg: $ty),*) {
            use $crate::cpu::wide::*;

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            unsafe fn avx512_bf16($($arg: $ty),*) {
                // SAFETY: the caller's promises.
                unsafe { $body::<Zmm<true>>($($arg),*) }
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            unsafe fn avx512($($arg: $ty),*) {
                // SAFETY: the caller's promises.
                unsafe { $body::<Zmm<false>>($($arg),*) }
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2($($arg: $ty),*) {
                // SAFETY: the caller's promises.
                unsafe { $body::<Plain>($($arg),*) }
            }

            // SAFETY: the caller's promises, and `Cpu::with_isa` checked that the machine has the instructions.
            unsafe {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    $crate::cpu::Isa::Avx512Bf16 | $crate::cpu::Isa::Amx => avx512_bf16($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::cpu::Isa::Avx512 => avx512($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::cpu::Isa::Avx2 => avx2($($arg),*),
                    _ => $body::<Plain>($($arg),*),
                }
            }
        }
    };
}

pub(crate) use wide;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;
    use crate::params::Buffer;

    #[inline(always)]
    unsafe fn exp2_all<W: Wide>(x: &mut [f32]) {
        for x in x.as_chunks_mut::<16>().0 {
            // SAFETY: sixteen floats.
            unsafe { W::load(x.as_ptr()).exp2().store(x.as_mut_ptr()) };
        }
    }

    wide! {
        fn exp2 = exp2_all(x: &mut [f32])
    }

    #[inline(always)]
    unsafe fn everything<W: Wide>(x: &[f32; 32], out: &mut [f32]) {
        // SAFETY: `x` is twice sixteen floats, `out` sixteen times.
        unsafe {
            let (a, b) = (W::load(x.as_ptr()), W::load(x[16..].as_ptr()));
            let start = out.as_mut_ptr();
            let at = |i: usize| start.add(16 * i);
            a.add(b).store(at(0));
            a.sub(b).store(at(1));
            a.mul(b).store(at(2));
            a.mul_add(b, a).store(at(3));
            a.larger(b).store(at(4));
            a.raise(b).store(at(5));
            a.where_set(0b1010_0110_0000_1111, b).store(at(6));
            a.store_halves(b, at(7).cast());
            a.store_pairs(b, at(8).cast());
            W::splat(a.largest()).store(at(9));
            W::splat(a.first()).store(at(10));
        }
    }

    wide! {
        fn all_of = everything(x: &[f32; 32], out: &mut [f32])
    }

    fn isas() -> impl Iterator<Item = Isa> {
        [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16, Isa::Amx]
            .into_iter()
            .filter(|&isa| isa <= Isa::detect())
    }

    #[test]
    fn exp2_is_within_two_units() {
        let x: Vec<f32> = (0..138_992).map(|i| i as f32 * 0.00137 - 64.0).collect();
        for isa in isas() {
            let mut y = x.clone();
            // SAFETY: no promises.
            unsafe { exp2(isa, &mut y) };
            let error = |(&x, &y): (&f32, &f32)| {
                let exact = f64::from(x).exp2();
                (f64::from(y) - exact).abs() / (f64::from(f32::EPSILON) * exact)
            };
            let worst = x.iter().zip(&y).map(error).fold(0.0, f64::max);
            // Measured 0.6 units of 2^-23.
            assert!(worst < 2.0, "{isa:?}: worst {worst} units");
        }
    }

    #[test]
    fn exp2_at_the_ends() {
        for isa in isas() {
            let mut whole: Vec<f32> = (-64..=127).map(|n| n as f32).collect();
            let powers: Vec<f32> =
                whole.iter().map(|&n| f32::from_bits(((n as i32 + 127) as u32) << 23)).collect();
            let mut ends = [0.0; 16];
            ends[..4].copy_from_slice(&[-1000.0, f32::NEG_INFINITY, f32::NAN, -64.5]);
            // SAFETY: no promises.
            unsafe {
                exp2(isa, &mut whole);
                exp2(isa, &mut ends);
            }
            assert_eq!(whole, powers, "{isa:?}");
            assert_eq!([ends[0], ends[1], ends[3]], [2.0f32.powi(-64); 3], "{isa:?}");
            assert!(ends[2].is_nan(), "{isa:?}");
        }
    }

    #[test]
    fn all_kinds_agree() {
        let mut x: [f32; 32] = std::array::from_fn(|i| (i as f32 * 0.7).sin() * 3.0);
        let run = |isa: Isa, x: &[f32; 32]| {
            let mut out = Buffer::zeros(11 * 16);
            // SAFETY: enough room.
            unsafe { all_of(isa, x, &mut out) };
            out.iter().map(|x| x.to_bits()).collect::<Vec<u32>>()
        };
        let plain = run(Isa::Portable, &x);
        assert_eq!(plain[7 * 16 + 9], bf16::pair(x[18], x[19]));
        assert_eq!(plain[8 * 16 + 9], bf16::pair(x[9], x[25]));
        assert_eq!(f32::from_bits(plain[9 * 16]), x[..16].iter().copied().fold(f32::MIN, f32::max));
        x[20] = f32::NAN;
        let with_nan = run(Isa::Portable, &x);
        assert_eq!(f32::from_bits(with_nan[4 * 16 + 4]), x[4], "a NaN on the right is left out");
        for isa in isas() {
            x[20] = f32::NAN;
            let same = |i: usize| run(isa, &x)[i * 16..][..16] == with_nan[i * 16..][..16];
            assert!(same(4) && same(6) && same(9), "{isa:?}");
            x[20] = (20.0f32 * 0.7).sin() * 3.0;
            assert_eq!(run(isa, &x), plain, "{isa:?}");
        }
    }
}
