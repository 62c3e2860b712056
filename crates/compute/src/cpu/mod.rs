//! The fast operations on a CPU: vector kernels and threads.
//!
//! Each file has the name of its reference in [`crate::ops`] and is tested against it. Three rules
//! hold everywhere, and the laws in `tests/laws.rs` check them:
//!
//! - **A row does not know its batch.** The order of every sum inside a row is fixed by the model's shape
//!   and the row's own length: one chain of fused multiply-adds in ascending order for a matrix
//!   product, sixteen interleaved sums for a softmax. Tiles, blocks and tails only decide who computes
//!   it. So decoding with a cache, a full forward and any packing give the same bits.
//! - **Threads own outputs.** A loop is split over outputs, never over a sum.
//! - **One arithmetic for all vector widths.** A multiply-add is always fused, so AVX-512, AVX2,
//!   NEON and plain Rust agree to the bit in the matrix products. Tiles of bf16 (AMX) alone have an [`Order`] of their own.
//!
//! Not here: what the operations mean (`ops`), layers (`decoder`).

#[cfg(target_arch = "x86_64")]
mod amx;
pub mod bf16;
mod pool;
pub(crate) mod tile;
pub(crate) mod vector;
pub(crate) mod wide;

pub mod activation;
pub mod adamw;
pub mod attention;
pub mod embed;
pub mod linear;
pub mod logprob;
pub mod norm;
pub mod qk_norm;
pub mod rope;

use std::ops::Range;

use pool::Pool;

/// Vector instructions that a kernel may use, the narrowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// What the compiler makes of plain Rust: NEON on aarch64.
    Portable,
    /// 8 floats at a time (`avx2`, `fma`).
    Avx2,
    /// 16 floats at a time (`avx512f`, `bw`, `dq`, `vl`).
    Avx512,
    /// The same, and 32 bf16 at a time (`avx512bf16`).
    Avx512Bf16,
    /// The same, and tiles of bf16 (`amx_tile`, `amx_bf16`), whose sums have an order of their own.
    Amx,
}

/// What matrix products are computed in. Sums are f32 in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Factors in f32.
    F32,
    /// Factors rounded to bf16. Machines without the instructions do the same as those with AVX512-BF16, to the bit, slowly; those with
    /// AMX add in another [`Order`].
    Bf16,
}

/// In which order the terms of a product are added. `ops/linear.rs` says each in full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// One after the other.
    Terms,
    /// Two at a time.
    Pairs,
    /// Thirty-two at a time.
    Blocks,
}

impl Isa {
    /// The order of sums in this precision.
    pub fn order(self, precision: Precision) -> Order {
        match precision {
            Precision::F32 => Order::Terms,
            Precision::Bf16 if self.multiplies_tiles(precision) => Order::Blocks,
            Precision::Bf16 => Order::Pairs,
        }
    }

    /// The widest that this machine has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if avx512 && is_x86_feature_detected!("avx512bf16") {
                return if amx::available() { Isa::Amx } else { Isa::Avx512Bf16 };
            }
            if avx512 {
                return Isa::Avx512;
            }
            if avx2 {
                return Isa::Avx2;
            }
        }
        Isa::Portable
    }
}

/// Below this many parameters the time is not in the products, and bf16 would only cost precision.
const BF16_PARAMETERS_MIN: usize = 2_000_000;

/// Whether `vdpbf16ps` multiplies faster than f32: on AMD's processors twice as fast, on Intel's half (measured on Emerald Rapids: 82 and 157
/// GFLOP/s a core), which leave the work to AMX.
fn full_rate_pairs() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        let name = std::arch::x86_64::__cpuid(0);
        (name.ebx, name.edx, name.ecx)
            != (u32::from_le_bytes(*b"Genu"), u32::from_le_bytes(*b"ineI"), u32::from_le_bytes(*b"ntel"))
    }
    #[cfg(not(target_arch = "x86_64"))]
    true
}

impl Precision {
    /// What pays with these instructions for a model of so many parameters.
    pub fn best(isa: Isa, parameters: usize) -> Self {
        match isa {
            Isa::Amx if parameters >= BF16_PARAMETERS_MIN => Precision::Bf16,
            Isa::Avx512Bf16 if full_rate_pairs() && parameters >= BF16_PARAMETERS_MIN => Precision::Bf16,
            _ => Precision::F32,
        }
    }
}

/// A CPU to compute on: its vector instructions, what it multiplies in, and some threads.
pub struct Cpu {
    isa: Isa,
    precision: Precision,
    pool: Pool,
}

impl Cpu {
    /// The widest instructions of this machine, and `threads` threads, the caller's among them.
    pub fn new(threads: usize) -> Self {
        Self::with_isa(threads, Isa::detect())
    }

    /// With chosen instructions, to compare them in tests and measurements.
    ///
    /// # Panics
    ///
    /// If the machine lacks them.
    pub fn with_isa(threads: usize, isa: Isa) -> Self {
        assert!(isa <= Isa::detect(), "this machine has no {isa:?}");
        Self { isa, precision: Precision::F32, pool: Pool::new(threads) }
    }

    /// The same, with weights that are packed from now on multiplied in this precision.
    pub fn with_precision(mut self, precision: Precision) -> Self {
        self.set_precision(precision);
        self
    }

    /// Weights that are packed from now on are multiplied in this precision.
    pub fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
    }

    /// What packed weights are multiplied in.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The instructions in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Threads in use, the caller's among them.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Runs `body(0..tasks)` on all threads; each task must own what it writes.
    pub fn for_each(&self, tasks: usize, body: impl Fn(usize) + Sync) {
        self.pool.for_each(tasks, body);
    }

    /// Splits `data` into chunks of `chunk` elements and runs `body(index, chunk)` on all threads.
    pub fn for_each_chunk<T: Send>(
        &self,
        data: &mut [T],
        chunk: usize,
        body: impl Fn(usize, &mut [T]) + Sync,
    ) {
        let shared = SharedMut::new(data);
        self.for_each(shared.len.div_ceil(chunk), |i| {
            let end = shared.len.min((i + 1) * chunk);
            // SAFETY: chunks of different tasks do not overlap.
            body(i, unsafe { shared.slice(i * chunk..end) });
        });
    }
}

/// Most rows that a task takes through several operations.
const TASK_ROWS: usize = 96;

impl Cpu {
    /// Runs `body` on all rows `0..n`, in tasks of some rows each: for several operations on the same rows, of which the next reads in the cache what the
    /// last wrote. Loops inside a task run on its thread. Where there are too few rows for all threads, `body` is called once, and its loops are shared
    /// out instead.
    pub fn for_each_rows(&self, precision: Precision, n: usize, body: impl Fn(Range<usize>) + Sync) {
        if n == 0 {
            return;
        }
        // Whole tiles, and several tasks a thread, so that the last ones do not keep the others waiting.
        let tile = self.isa.tile_rows(precision).max(24);
        let rows = n.div_ceil(4 * self.threads()).next_multiple_of(tile).min(TASK_ROWS);
        if n <= rows * self.threads() {
            return body(0..n);
        }
        self.for_each(n.div_ceil(rows), |task| body(task * rows..n.min((task + 1) * rows)));
    }
}

/// Floats that a thread copies or clears at a time.
const COPIED: usize = 1 << 14;

impl Cpu {
    /// `out = x`, by all threads.
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    pub fn copy(&self, out: &mut [f32], x: &[f32]) {
        assert_eq!(out.len(), x.len(), "copy: one length");
        self.for_each_chunk(out, COPIED, |task, out| out.copy_from_slice(&x[task * COPIED..][..out.len()]));
    }

    /// `out = 0`, by all threads.
    pub fn clear(&self, out: &mut [f32]) {
        self.for_each_chunk(out, COPIED, |_, out| out.fill(0.0));
    }
}

impl std::fmt::Debug for Cpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cpu({:?}, {:?}, {} threads)", self.isa, self.precision, self.threads())
    }
}

/// A mutable slice that tasks share, each writing elements of its own.
pub(crate) struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    lifetime: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: access is only through unsafe methods whose callers promise disjoint elements.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), lifetime: std::marker::PhantomData }
    }

    /// # Safety
    ///
    /// No two live slices may overlap.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: inside the slice by the check, and disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// A pointer to element `at`; the writer promises what [`SharedMut::slice`] asks.
    pub(crate) fn pointer(&self, at: usize) -> *mut T {
        assert!(at <= self.len, "element {at} of {}", self.len);
        // SAFETY: inside the slice or one past its end, by the check.
        unsafe { self.start.add(at) }
    }
}
