//! The micro-kernel: a tile of a matrix product, `c[i][j] += sum_k a(i, k) * b(k, j)`.
//!
//! Every matrix product in the crate (linear maps forward and backward, attention) is made of calls of
//! [`Isa::product`]. For each element it is one chain of fused multiply-adds over ascending `k`,
//! continued from what `c` held: the tile's size, the vector's width and how a caller cuts `k` into
//! blocks leave the bits unchanged.
//!
//! `b` is read as vectors of neighbouring `j` (lanes), `a` one number at a time, broadcast. The numbers
//! of `a` come in one of four patterns, so that the compiler knows their offsets:
//!
//! - [`A::rows`]: `a(i, k) = p[i * STEPS + k]`: rows one after the other, as a packed block;
//! - [`A::columns`]: `a(i, k) = p[k * stride + i]`: rows side by side, as a packed block or a
//!   transposed matrix;
//! - [`A::panels`]: `a(i, k) = p[k / 32 * block + i * 32 + k % 32]`: attention scores in blocks of 32 keys; and
//!   [`A::pair_panels`], the same of 16 pairs.
//!
//! In [`Precision::Bf16`] every number of `a` and `b` is a pair (`bf16.rs`), a step multiplies two at once, and `k` counts
//! pairs. The loops are the same: only [`Vector::add_product`] differs, which adds the second product first, rounding
//! after each, subnormal numbers counting as zero: what `vdpbf16ps` does. Plain Rust does the same to the bit.
//!
//! Registers: with AVX-512, 12 rows by 32 lanes are 24 accumulators of the 32 registers; each step
//! loads 2 vectors and broadcasts 12 numbers for 24 multiply-adds, so the arithmetic is the limit.

use super::{Isa, Precision, bf16};
use crate::params::LANES;

/// Rows of the largest tile: a caller that packs `a` packs blocks of this many rows.
pub(crate) const ROWS: usize = 12;

/// Rows of the largest tile of tile registers (`amx.rs`).
pub(crate) const TILE_ROWS: usize = 32;

/// Steps of a block of their sums.
pub(crate) const CUT: usize = 16;

/// Pairs of a row in a block of [`A::pair_panels`].
const PAIRS: usize = LANES / 2;

/// Longest row of [`A::rows`], in steps: 12 rows are 7.5 KiB, and a panel's block of as many steps 20 KiB.
pub(crate) const STEPS: usize = 160;

/// The left operand: where `a(i, k)` lies.
#[derive(Clone, Copy)]
pub(crate) struct A {
    start: *const f32,
    stride: usize,
    pattern: Pattern,
}

#[derive(Clone, Copy, PartialEq)]
enum Pattern {
    Rows,
    Columns,
    Panels,
    PairPanels,
}

impl A {
    /// `a(i, k) = start[i * STEPS + k]`.
    pub(crate) fn rows(start: *const f32) -> Self {
        Self { start, stride: STEPS, pattern: Pattern::Rows }
    }

    /// `a(i, k) = start[k * stride + i]`.
    pub(crate) fn columns(start: *const f32, stride: usize) -> Self {
        Self { start, stride, pattern: Pattern::Columns }
    }

    /// `a(i, k) = start[k / 32 * block + i * 32 + k % 32]`.
    pub(crate) fn panels(start: *const f32, block: usize) -> Self {
        Self { start, stride: block, pattern: Pattern::Panels }
    }

    /// `a(i, k) = start[k / 16 * block + i * 16 + k % 16]`.
    pub(crate) fn pair_panels(start: *const f32, block: usize) -> Self {
        Self { start, stride: block, pattern: Pattern::PairPanels }
    }

    /// Where blocks of [`CUT`] steps of the rows start, from one row to the next and from one block to the next, if rows lie so.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn as_blocks(self) -> Option<(*const f32, usize, usize)> {
        match self.pattern {
            Pattern::Rows => Some((self.start, STEPS, CUT)),
            Pattern::PairPanels => Some((self.start, PAIRS, self.stride)),
            Pattern::Columns | Pattern::Panels => None,
        }
    }

    /// `a(i, k)`.
    ///
    /// # Safety
    ///
    /// It must be inside the operand.
    #[cfg(target_arch = "x86_64")]
    pub(super) unsafe fn at(self, i: usize, k: usize) -> f32 {
        let at = match self.pattern {
            Pattern::Rows => i * STEPS + k,
            Pattern::Columns => k * self.stride + i,
            Pattern::Panels => k / LANES * self.stride + i * LANES + k % LANES,
            Pattern::PairPanels => k / PAIRS * self.stride + i * PAIRS + k % PAIRS,
        };
        // SAFETY: inside the operand by the caller's promise.
        unsafe { *self.start.add(at) }
    }

    /// # Safety
    ///
    /// Row `i` must be inside the operand.
    pub(super) unsafe fn starting_at(self, i: usize) -> Self {
        let step = match self.pattern {
            Pattern::Rows => i * STEPS,
            Pattern::Columns => i,
            Pattern::Panels => i * LANES,
            Pattern::PairPanels => i * PAIRS,
        };
        // SAFETY: inside the operand by the caller's promise.
        Self { start: unsafe { self.start.add(step) }, ..self }
    }
}

/// What the accumulators hold before the first product.
#[derive(Clone, Copy)]
pub(crate) enum Init {
    /// What is in `c`.
    C,
    /// Zero.
    Zero,
    /// One number a lane, the same for all rows.
    Bias(*const f32),
    /// What another matrix of this row stride holds at the same place.
    From(*const f32, usize),
}

impl Init {
    #[cfg(target_arch = "x86_64")]
    pub(super) fn is_zero(self) -> bool {
        matches!(self, Init::Zero)
    }

    /// The same for the tile whose first element is `(i, j)`.
    ///
    /// # Safety
    ///
    /// The element must be inside the operand.
    pub(super) unsafe fn at(self, i: usize, j: usize) -> Self {
        // SAFETY: inside the operand by the caller's promise.
        unsafe {
            match self {
                Init::Bias(p) => Init::Bias(p.add(j)),
                Init::From(p, stride) => Init::From(p.add(i * stride + j), stride),
                Init::C | Init::Zero => self,
            }
        }
    }
}

impl Isa {
    /// Whether products are made of tile registers, whose rows lie one after the other.
    pub(crate) fn multiplies_tiles(self, precision: Precision) -> bool {
        (self, precision) == (Isa::Amx, Precision::Bf16)
    }

    /// Rows of a call of [`Isa::product`] that fill the registers.
    pub(crate) fn tile_rows(self, precision: Precision) -> usize {
        if self.multiplies_tiles(precision) { TILE_ROWS } else { ROWS }
    }

    /// A sum of several calls is the same as one call's if it is cut at multiples of this many steps.
    pub(crate) fn cut(self) -> usize {
        if self == Isa::Amx { CUT } else { 1 }
    }

    /// `c[i * c_stride + j] = init + sum_k a(i, k) * b[k * b_stride + j]` for `i < m`, `j < lanes`; in bf16 the numbers of `a`
    /// and `b` are pairs.
    ///
    /// # Safety
    ///
    /// `a` holds `m` by `k` numbers in its pattern; `b` holds `k` rows of `lanes` rounded up to a multiple
    /// of 16 readable numbers (32 where `lanes % 32 > 16`); `c` has `m` rows of `lanes`, and nobody else
    /// reads or writes them; a bias has `lanes` numbers, a matrix to start from `m` rows of them.
    pub(crate) unsafe fn product(
        self,
        precision: Precision,
        c: *mut f32,
        c_stride: usize,
        a: A,
        b: *const f32,
        b_stride: usize,
        m: usize,
        lanes: usize,
        k: usize,
        init: Init,
    ) {
        let product = match (precision, self) {
            #[cfg(target_arch = "x86_64")]
            (Precision::F32, Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx) => x86::product_avx512,
            #[cfg(target_arch = "x86_64")]
            (Precision::F32, Isa::Avx2) => x86::product_avx2,
            (Precision::F32, _) => product::<Plain, 4, 1>,
            #[cfg(target_arch = "x86_64")]
            (Precision::Bf16, Isa::Amx) => super::amx::product,
            #[cfg(target_arch = "x86_64")]
            (Precision::Bf16, Isa::Avx512Bf16) => x86::product_avx512_bf16,
            #[cfg(target_arch = "x86_64")]
            (Precision::Bf16, Isa::Avx2 | Isa::Avx512) => x86::product_avx2_bf16,
            (Precision::Bf16, _) => product::<PlainPairs, 4, 1>,
        };
        // SAFETY: the caller's promises; `Cpu::with_isa` checked that the machine has the instructions.
        unsafe { product(c, c_stride, a, b, b_stride, m, lanes, k, init) }
    }
}

/// A vector register of `WIDTH` floats, or pairs.
trait Vector: Copy {
    const WIDTH: usize;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn store(self, p: *mut f32);
    unsafe fn splat(x: f32) -> Self;
    /// `self + a * b`, rounded once, or `self` plus both products of each pair.
    unsafe fn add_product(self, a: Self, b: Self) -> Self;
}

/// Cuts a product into tiles of at most `MR` rows and `NV` vectors.
#[inline(always)]
unsafe fn product<V: Vector, const MR: usize, const NV: usize>(
    c: *mut f32,
    c_stride: usize,
    a: A,
    b: *const f32,
    b_stride: usize,
    m: usize,
    lanes: usize,
    k: usize,
    init: Init,
) {
    let mut j = 0;
    while j < lanes {
        let left = lanes - j;
        let wide = NV * V::WIDTH;
        // The narrow tile serves a tail of one vector (or, where a vector is 8 wide, of 16 lanes).
        let narrow = if wide > 16 && left <= 16 { 16 } else { wide };
        // SAFETY: lanes `j..j + min(left, width)` and rows `i..i + rows` are inside the caller's operands.
        unsafe {
            let mut i = 0;
            while i < m {
                let rows = (m - i).min(MR);
                let at = Tile {
                    c: c.add(i * c_stride + j),
                    c_stride,
                    a: a.starting_at(i),
                    b: b.add(j),
                    b_stride,
                    k,
                    init: init.at(i, j),
                };
                if narrow == wide {
                    at.run::<V, MR, NV>(rows, left.min(wide));
                } else {
                    at.run::<V, MR, 1>(rows, left);
                }
                i += rows;
            }
        }
        j += narrow;
    }
}

#[derive(Clone, Copy)]
struct Tile {
    c: *mut f32,
    c_stride: usize,
    a: A,
    b: *const f32,
    b_stride: usize,
    k: usize,
    init: Init,
}

impl Tile {
    /// Chooses the kernel for this many rows; lanes that do not fill the vectors go through a buffer.
    #[inline(always)]
    unsafe fn run<V: Vector, const MR: usize, const NV: usize>(self, rows: usize, lanes: usize) {
        let width = NV * V::WIDTH;
        if lanes == width {
            // SAFETY: as promised to `product`.
            return unsafe { self.dispatch::<V, MR, NV>(rows) };
        }
        let mut buffer = [0.0f32; ROWS * LANES];
        let mut bias = [0.0f32; LANES];
        // SAFETY: `c` has `lanes` columns and the buffer `width`; the vectors of `b` are readable
        // in whole, as promised to `product`.
        unsafe {
            let init = match self.init {
                Init::Bias(p) => {
                    std::ptr::copy_nonoverlapping(p, bias.as_mut_ptr(), lanes);
                    Init::Bias(bias.as_ptr())
                }
                Init::C | Init::From(..) => {
                    let (from, stride) = self.start();
                    for i in 0..rows {
                        let row = buffer.as_mut_ptr().add(i * width);
                        std::ptr::copy_nonoverlapping(from.add(i * stride), row, lanes);
                    }
                    Init::C
                }
                Init::Zero => Init::Zero,
            };
            Tile { c: buffer.as_mut_ptr(), c_stride: width, init, ..self }.dispatch::<V, MR, NV>(rows);
            for i in 0..rows {
                let row = buffer.as_ptr().add(i * width);
                std::ptr::copy_nonoverlapping(row, self.c.add(i * self.c_stride), lanes);
            }
        }
    }

    /// The matrix that the sums start from, if they start from one.
    #[inline(always)]
    fn start(&self) -> (*const f32, usize) {
        match self.init {
            Init::From(p, stride) => (p, stride),
            _ => (self.c.cast_const(), self.c_stride),
        }
    }

    #[inline(always)]
    unsafe fn dispatch<V: Vector, const MR: usize, const NV: usize>(self, rows: usize) {
        macro_rules! by_rows {
            ($($n:literal)*) => {
                match rows {
                    // SAFETY: as promised to `product`.
                    $($n if $n <= MR => unsafe { self.kernel::<V, $n, NV>() },)*
                    _ => unreachable!("a tile of {rows} rows, at most {MR}"),
                }
            };
        }
        by_rows!(1 2 3 4 5 6 7 8 9 10 11 12)
    }

    /// The loop itself.
    #[inline(always)]
    unsafe fn kernel<V: Vector, const R: usize, const NV: usize>(self) {
        // SAFETY: as promised to `product`: every address below is inside `a`, `b`, `c` or the bias.
        unsafe {
            let mut acc = [[V::splat(0.0); NV]; R];
            match self.init {
                Init::Zero => {}
                Init::C | Init::From(..) => {
                    let (from, stride) = self.start();
                    for i in 0..R {
                        for v in 0..NV {
                            acc[i][v] = V::load(from.add(i * stride + v * V::WIDTH));
                        }
                    }
                }
                Init::Bias(bias) => {
                    for v in 0..NV {
                        let bias_v = V::load(bias.add(v * V::WIDTH));
                        for i in 0..R {
                            acc[i][v] = bias_v;
                        }
                    }
                }
            }
            let mut a = self.a.start;
            let mut b = self.b;
            match self.a.pattern {
                Pattern::Rows => {
                    for _ in 0..self.k {
                        if R <= STREAMED_ROWS {
                            for v in 0..NV {
                                prefetch(b.wrapping_add(AHEAD + v * V::WIDTH));
                            }
                        }
                        step::<V, R, NV, STEPS>(&mut acc, a, b);
                        a = a.add(1);
                        b = b.add(self.b_stride);
                    }
                }
                Pattern::Columns => {
                    for _ in 0..self.k {
                        step::<V, R, NV, 1>(&mut acc, a, b);
                        a = a.add(self.a.stride);
                        b = b.add(self.b_stride);
                    }
                }
                Pattern::Panels => self.panels::<V, R, NV, LANES>(&mut acc),
                Pattern::PairPanels => self.panels::<V, R, NV, PAIRS>(&mut acc),
            }
            for i in 0..R {
                for v in 0..NV {
                    acc[i][v].store(self.c.add(i * self.c_stride + v * V::WIDTH));
                }
            }
        }
    }
}

impl Tile {
    /// Steps over blocks of `STEP`, in which each row has as many numbers.
    #[inline(always)]
    unsafe fn panels<V: Vector, const R: usize, const NV: usize, const STEP: usize>(
        self,
        acc: &mut [[V; NV]; R],
    ) {
        let (mut a, mut b) = (self.a.start, self.b);
        let mut left = self.k;
        // SAFETY: as promised to `product`.
        unsafe {
            while left > 0 {
                let inner = left.min(STEP);
                let mut p = a;
                for _ in 0..inner {
                    step::<V, R, NV, STEP>(acc, p, b);
                    p = p.add(1);
                    b = b.add(self.b_stride);
                }
                a = a.wrapping_add(self.a.stride);
                left -= inner;
            }
        }
    }
}

/// With so few rows memory is the limit: weights are asked for ahead, over the ends of pages, where the processor's own prefetching stops.
const STREAMED_ROWS: usize = 8;

/// Floats ahead: a page.
const AHEAD: usize = 1024;

/// Asks for a cache line. Any address will do.
#[inline(always)]
fn prefetch(p: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing and cannot fault.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// Asks for `n` numbers, to be read soon. Any address will do.
#[inline(always)]
pub(super) fn ask_for<T>(p: *const T, n: usize) {
    #[cfg(target_arch = "x86_64")]
    for at in (0..n).step_by(64 / size_of::<T>()) {
        // SAFETY: a prefetch reads nothing and cannot fault.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(p.wrapping_add(at).cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (p, n);
}

/// One `k`: `R` numbers of `a`, `STEP` floats apart, times `NV` vectors of `b`.
#[inline(always)]
unsafe fn step<V: Vector, const R: usize, const NV: usize, const STEP: usize>(
    acc: &mut [[V; NV]; R],
    a: *const f32,
    b: *const f32,
) {
    // SAFETY: the caller's addresses are inside its operands.
    unsafe {
        let mut b_v = [V::splat(0.0); NV];
        for v in 0..NV {
            b_v[v] = V::load(b.add(v * V::WIDTH));
        }
        for i in 0..R {
            let a_i = V::splat(*a.add(i * STEP));
            for v in 0..NV {
                acc[i][v] = acc[i][v].add_product(a_i, b_v[v]);
            }
        }
    }
}

/// Sixteen floats in plain Rust.
#[derive(Clone, Copy)]
struct Plain([f32; 16]);

impl Vector for Plain {
    const WIDTH: usize = 16;

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
    unsafe fn add_product(mut self, a: Self, b: Self) -> Self {
        for i in 0..16 {
            self.0[i] = a.0[i].mul_add(b.0[i], self.0[i]);
        }
        self
    }
}

/// Sixteen sums of pairs in plain Rust.
#[derive(Clone, Copy)]
struct PlainPairs(Plain);

impl Vector for PlainPairs {
    const WIDTH: usize = Plain::WIDTH;

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller's address is readable.
        Self(unsafe { Plain::load(p) })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller's address is writable.
        unsafe { self.0.store(p) }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self(Plain([x; 16]))
    }

    #[inline(always)]
    unsafe fn add_product(mut self, a: Self, b: Self) -> Self {
        for i in 0..16 {
            self.0.0[i] = add_pair(self.0.0[i], a.0.0[i].to_bits(), b.0.0[i].to_bits());
        }
        self
    }
}

/// Subnormal numbers count as zero.
#[inline(always)]
pub(super) fn flush(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0.0f32.copysign(x) } else { x }
}

/// What `vdpbf16ps` adds to one sum.
#[inline(always)]
fn add_pair(sum: f32, a: u32, b: u32) -> f32 {
    let ([a0, a1], [b0, b1]) = (bf16::unpair(a).map(flush), bf16::unpair(b).map(flush));
    flush(a0.mul_add(b0, flush(a1.mul_add(b1, flush(sum)))))
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{A, Init, PlainPairs, Vector};
    use std::arch::x86_64::*;

    impl Vector for __m512 {
        const WIDTH: usize = 16;

        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            // SAFETY: the caller's address is readable, and only the functions below call this.
            unsafe { _mm512_loadu_ps(p) }
        }

        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            // SAFETY: as `load`.
            unsafe { _mm512_storeu_ps(p, self) }
        }

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: as `load`.
            unsafe { _mm512_set1_ps(x) }
        }

        #[inline(always)]
        unsafe fn add_product(self, a: Self, b: Self) -> Self {
            // SAFETY: as `load`.
            unsafe { _mm512_fmadd_ps(a, b, self) }
        }
    }

    impl Vector for __m256 {
        const WIDTH: usize = 8;

        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            // SAFETY: the caller's address is readable, and only the functions below call this.
            unsafe { _mm256_loadu_ps(p) }
        }

        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            // SAFETY: as `load`.
            unsafe { _mm256_storeu_ps(p, self) }
        }

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: as `load`.
            unsafe { _mm256_set1_ps(x) }
        }

        #[inline(always)]
        unsafe fn add_product(self, a: Self, b: Self) -> Self {
            // SAFETY: as `load`.
            unsafe { _mm256_fmadd_ps(a, b, self) }
        }
    }

    /// Sixteen sums of pairs.
    #[derive(Clone, Copy)]
    struct Pairs(__m512);

    impl Vector for Pairs {
        const WIDTH: usize = 16;

        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            // SAFETY: the caller's address is readable, and only the functions below call this.
            Self(unsafe { _mm512_loadu_ps(p) })
        }

        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            // SAFETY: as `load`.
            unsafe { _mm512_storeu_ps(p, self.0) }
        }

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: as `load`.
            Self(unsafe { _mm512_set1_ps(x) })
        }

        #[inline(always)]
        unsafe fn add_product(self, a: Self, b: Self) -> Self {
            // SAFETY: as `load`; the vectors of pairs have the bits of one another.
            unsafe {
                let [a, b] = [a, b].map(|x| std::mem::transmute::<__m512, __m512bh>(x.0));
                Self(_mm512_dpbf16_ps(self.0, a, b))
            }
        }
    }

    /// Compiles [`super::product`] for some vectors, with the instructions that they need.
    macro_rules! compiled {
        ($($name:ident: $vector:ty, $rows:literal rows of $vectors:literal, $features:literal;)*) => {$(
            /// # Safety
            ///
            /// As [`super::Isa::product`], on a machine with these instructions.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $name(
                c: *mut f32,
                c_stride: usize,
                a: A,
                b: *const f32,
                b_stride: usize,
                m: usize,
                lanes: usize,
                k: usize,
                init: Init,
            ) {
                // SAFETY: the caller's promises.
                unsafe {
                    super::product::<$vector, $rows, $vectors>(c, c_stride, a, b, b_stride, m, lanes, k, init)
                }
            }
        )*};
    }

    compiled! {
        product_avx512_bf16: Pairs, 12 rows of 2, "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma";
        product_avx2_bf16: PlainPairs, 4 rows of 1, "avx2,fma";
        product_avx512: __m512, 12 rows of 2, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma";
        product_avx2: __m256, 6 rows of 2, "avx2,fma";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The chain that every kernel must reproduce.
    fn reference(
        isa: Isa,
        precision: Precision,
        c: f32,
        a_k: impl Iterator<Item = f32>,
        b_k: impl Iterator<Item = f32>,
    ) -> f32 {
        #[cfg(target_arch = "x86_64")]
        if (precision, isa) == (Precision::Bf16, Isa::Amx) {
            let pairs: Vec<_> = a_k.zip(b_k).map(|(a, b)| (a.to_bits(), b.to_bits())).collect();
            let blocks = pairs.chunks(crate::cpu::amx::BLOCK);
            return blocks.fold(c, |sum, block| crate::cpu::amx::add_block(sum, block.iter().copied()));
        }
        let _ = isa;
        a_k.zip(b_k).fold(c, |acc, (a, b)| match precision {
            Precision::F32 => a.mul_add(b, acc),
            Precision::Bf16 => add_pair(acc, a.to_bits(), b.to_bits()),
        })
    }

    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        let mut x = seed;
        (0..n)
            .map(|_| {
                x = x.wrapping_mul(1664525).wrapping_add(1013904223);
                (x >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    /// Factors: in bf16 pairs of numbers, some of them so small that products and sums are subnormal.
    fn factors(precision: Precision, n: usize, seed: u32) -> Vec<f32> {
        let first = numbers(n, seed);
        match precision {
            Precision::F32 => first,
            Precision::Bf16 => first
                .iter()
                .zip(numbers(n, seed + 100))
                .enumerate()
                .map(|(i, (&first, second))| {
                    let size = [1.0, 1e-20, 1e-38][usize::from(i % 5 == 1) + usize::from(i % 35 == 1)];
                    f32::from_bits(bf16::pair(first * size, second * size))
                })
                .collect(),
        }
    }

    #[test]
    fn every_tile_gives_the_same_bits() {
        let all = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16, Isa::Amx];
        let here = all.iter().position(|&isa| isa == Isa::detect()).expect("listed");
        let both = [Precision::F32, Precision::Bf16];
        for (&isa, precision) in all[..=here].iter().flat_map(|isa| both.map(|precision| (isa, precision))) {
            for (m, lanes, k) in [
                (1usize, 32usize, 7usize),
                (5, 31, 33),
                (12, 17, 64),
                (13, 16, 40),
                (25, 64, 1),
                (30, 40, 100),
                (40, 48, 160),
            ] {
                let b_stride = lanes.next_multiple_of(32) + 16;
                let b = factors(precision, k * b_stride, 1);
                let columns = factors(precision, k * 40, 2);
                let panel_block = m * 32;
                let panels = factors(precision, k.div_ceil(16) * panel_block, 3);
                let bias = numbers(lanes, 4);
                let before = numbers(m * lanes, 5);
                let other = numbers(m * (lanes + 3), 6);
                let rows = factors(precision, m * STEPS, 7);
                for pattern in [Pattern::Rows, Pattern::Columns, Pattern::Panels, Pattern::PairPanels] {
                    for init in 0..4 {
                        let mut c = before.clone();
                        let a = match pattern {
                            Pattern::Rows => A::rows(rows.as_ptr()),
                            Pattern::Columns => A::columns(columns.as_ptr(), 40),
                            Pattern::Panels => A::panels(panels.as_ptr(), panel_block),
                            Pattern::PairPanels => A::pair_panels(panels.as_ptr(), panel_block),
                        };
                        let how = [
                            Init::C,
                            Init::Zero,
                            Init::Bias(bias.as_ptr()),
                            Init::From(other.as_ptr(), lanes + 3),
                        ][init];
                        // SAFETY: the operands were made to the sizes asked for.
                        unsafe {
                            let (c, b) = (c.as_mut_ptr(), b.as_ptr());
                            isa.product(precision, c, lanes, a, b, b_stride, m, lanes, k, how);
                        }
                        for i in 0..m {
                            for j in 0..lanes {
                                let a_k = (0..k).map(|k| match pattern {
                                    Pattern::Rows => rows[i * STEPS + k],
                                    Pattern::Columns => columns[k * 40 + i],
                                    Pattern::Panels => panels[k / 32 * panel_block + i * 32 + k % 32],
                                    Pattern::PairPanels => panels[k / 16 * panel_block + i * 16 + k % 16],
                                });
                                let from = other[i * (lanes + 3) + j];
                                let start = [before[i * lanes + j], 0.0, bias[j], from][init];
                                let expect = reference(
                                    isa,
                                    precision,
                                    start,
                                    a_k,
                                    (0..k).map(|k| b[k * b_stride + j]),
                                );
                                let got = c[i * lanes + j];
                                assert_eq!(
                                    got.to_bits(),
                                    expect.to_bits(),
                                    "{isa:?} {m}x{lanes}x{k} at {i},{j}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}
