//! The micro-kernel on tiles of bf16: Intel's AMX (`amx_tile`, `amx_bf16`).
//!
//! One instruction, `tdpbf16ps`, multiplies 16 rows of 16 pairs by 16 pairs of 16 lanes and adds 256 sums. Its operands
//! lie in memory as those of `vdpbf16ps` do: rows of pairs ([`A::rows`], [`A::pair_panels`]), and lines of pairs side by side (a panel). So this is
//! [`Isa::product`](super::Isa) with larger steps, and packing, panels and blocks are those of every other processor.
//!
//! What differs is the **order of a sum**. The instruction sums the first products of 16 pairs in one chain and the second products in
//! another, both from zero, and adds their sum to what was there ([`add_block`] says it in plain Rust, to the bit). So sums go by
//! blocks of 16 steps, counted from the start of the product, and every caller that cuts a sum cuts it at multiples of [`BLOCK`]. Within
//! this machine everything agrees with everything else to the bit, as anywhere; with other machines in f32 only.
//!
//! The eight tile registers: four hold 32 rows by 32 lanes of sums, two the rows, two the lanes; 4 loads of 1 KiB feed 4
//! products. Fewer rows or a shorter last block are a matter of the registers' configuration, which stays as it is
//! until another shape is asked for.
//!
//! Rust has the instructions in inline assembly alone (its intrinsics are unstable). The operating system has to be asked for them once.
//!
//! Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, TDPBF16PS; Linux, Documentation/arch/x86/xstate.rst.

use std::arch::asm;
use std::cell::Cell;
use std::sync::OnceLock;

use super::tile::{A, Init};
use crate::params::LANES;

/// Steps of one instruction: a sum may be cut at multiples of this.
pub(super) const BLOCK: usize = super::tile::CUT;

/// Rows of a tile register.
const TILE: usize = 16;

/// From so many blocks on, what a sum's lines are waited for is longer than asking for them takes.
const LONG: usize = 4;

/// Whether the processor has the instructions and the operating system lets us use them.
pub(super) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        let leaves = std::arch::x86_64::__cpuid(0).eax;
        if leaves < 7 {
            return false;
        }
        let features = std::arch::x86_64::__cpuid_count(7, 0).edx;
        let (bf16, tile) = (features >> 22 & 1 == 1, features >> 24 & 1 == 1);
        bf16 && tile && permitted()
    })
}

/// Asks Linux for the tile registers' 8 KiB, for all threads of the process.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call changes what the kernel saves of a thread, nothing else; an old kernel says no.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

thread_local! {
    /// Rows of the upper and the lower tile and steps of a block, as this thread's registers are configured.
    static SHAPE: Cell<[u8; 3]> = const { Cell::new([0; 3]) };
}

/// What `ldtilecfg` reads: palette 1, then bytes a row and rows of each register.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Gives the registers this shape: sums in 0 to 3, rows in 4 and 5, lanes in 6 and 7.
///
/// # Safety
///
/// The instructions must be [`available`].
#[inline]
unsafe fn configure(upper: usize, lower: usize, steps: usize) {
    let shape = [upper as u8, lower as u8, steps as u8];
    if SHAPE.get() == shape {
        return;
    }
    let [upper, lower, steps] = shape;
    let (line, row) = (4 * TILE as u16, 4 * u16::from(steps));
    let mut configuration =
        Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    configuration.row_bytes[..8].copy_from_slice(&[line, line, line, line, row, row, line, line]);
    configuration.rows[..8].copy_from_slice(&[upper, upper, lower, lower, upper, lower, steps, steps]);
    // SAFETY: the configuration is of palette 1, with at most 16 rows of 64 bytes; the registers' old contents are not needed.
    unsafe {
        asm!(
            "ldtilecfg [{}]", in(reg) &configuration, options(nostack, readonly, preserves_flags),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
        );
    }
    SHAPE.set(shape);
}

/// As [`super::Isa::product`] in bf16.
///
/// # Safety
///
/// As there, and the instructions must be [`available`].
pub(super) unsafe fn product(
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
    // SAFETY: rows `i..i + rows` and lanes `j..j + width` are inside the caller's operands.
    unsafe {
        for j in (0..lanes).step_by(LANES) {
            let width = LANES.min(lanes - j);
            for i in (0..m).step_by(2 * TILE) {
                let square = Square {
                    c: c.add(i * c_stride + j),
                    c_stride,
                    b: b.add(j),
                    b_stride,
                    rows: (2 * TILE).min(m - i),
                };
                square.start(init.at(i, j), width);
                if width == LANES {
                    square.add_blocks::<2>(a.starting_at(i), k, init.is_zero());
                } else {
                    square.add_narrow(a.starting_at(i), k, width, init.is_zero());
                }
            }
        }
    }
}

/// At most 32 rows of at most 32 sums.
#[derive(Clone, Copy)]
struct Square {
    c: *mut f32,
    c_stride: usize,
    b: *const f32,
    b_stride: usize,
    rows: usize,
}

impl Square {
    /// Writes what the sums start from, where that is neither zero nor there already.
    unsafe fn start(self, init: Init, lanes: usize) {
        for i in 0..self.rows {
            let from = match init {
                Init::C | Init::Zero => return,
                Init::Bias(bias) => bias,
                Init::From(p, stride) => p.wrapping_add(i * stride),
            };
            // SAFETY: the caller's rows have so many lanes.
            unsafe { std::ptr::copy_nonoverlapping(from, self.c.add(i * self.c_stride), lanes) };
        }
    }

    /// Lanes that do not fill the registers go through a buffer.
    unsafe fn add_narrow(self, a: A, k: usize, lanes: usize, zero: bool) {
        let mut buffer = [0.0f32; 2 * TILE * LANES];
        let wide = Self { c: buffer.as_mut_ptr(), c_stride: LANES, ..self };
        // SAFETY: the buffer holds whole rows, and the vectors of `b` are readable in whole, as promised to `product`.
        unsafe {
            for i in 0..self.rows {
                std::ptr::copy_nonoverlapping(self.c.add(i * self.c_stride), wide.c.add(i * LANES), lanes);
            }
            if lanes > TILE {
                wide.add_blocks::<2>(a, k, zero);
            } else {
                wide.add_blocks::<1>(a, k, zero);
            }
            for i in 0..self.rows {
                std::ptr::copy_nonoverlapping(wide.c.add(i * LANES), self.c.add(i * self.c_stride), lanes);
            }
        }
    }

    /// `k` steps over `COLUMNS` registers of 16 lanes: whole blocks, then what is left.
    unsafe fn add_blocks<const COLUMNS: usize>(self, a: A, k: usize, zero: bool) {
        let (blocks, rest) = (k / BLOCK, k % BLOCK);
        // SAFETY: the caller's promises; a block is 16 steps of `a` and 16 lines of `b`.
        unsafe {
            if blocks > 0 || (zero && rest == 0) {
                self.add_steps::<COLUMNS>(a, 0, blocks, BLOCK, zero);
            }
            if rest > 0 {
                let rest_of = Self { b: self.b.add(blocks * BLOCK * self.b_stride), ..self };
                rest_of.add_steps::<COLUMNS>(a, blocks * BLOCK, 1, rest, zero && blocks == 0);
            }
        }
    }

    /// `blocks` blocks of `steps` steps each, from step `first` of `a`.
    #[inline]
    unsafe fn add_steps<const COLUMNS: usize>(
        self,
        a: A,
        first: usize,
        blocks: usize,
        steps: usize,
        zero: bool,
    ) {
        // SAFETY: the caller's promises; turned blocks hold every row's steps.
        unsafe {
            if let Some((start, stride, block)) = a.as_blocks() {
                let from = start.add(first / BLOCK * block);
                return self.run::<COLUMNS>([stride, block], from, self.b, blocks, steps, zero);
            }
            let mut turned = [0.0f32; 2 * TILE * BLOCK];
            for block in 0..blocks {
                for i in 0..self.rows {
                    for s in 0..steps {
                        turned[i * BLOCK + s] = a.at(i, first + block * steps + s);
                    }
                }
                let b = self.b.add(block * steps * self.b_stride);
                self.run::<COLUMNS>([BLOCK; 2], turned.as_ptr(), b, 1, steps, zero && block == 0);
            }
        }
    }

    /// Asks for the sums' lines, to be written when the last block is added: large outputs are in no near cache.
    #[inline]
    fn ask_for(self) {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        for i in 0..self.rows {
            let row = self.c.wrapping_add(i * self.c_stride);
            // SAFETY: asking for an address reads and writes nothing.
            unsafe {
                _mm_prefetch::<_MM_HINT_ET0>(row.cast());
                _mm_prefetch::<_MM_HINT_ET0>(row.wrapping_add(TILE).cast());
            }
        }
    }

    #[inline]
    unsafe fn run<const COLUMNS: usize>(
        self,
        [row, block]: [usize; 2],
        a: *const f32,
        b: *const f32,
        blocks: usize,
        steps: usize,
        zero: bool,
    ) {
        let (upper, lower) = (self.rows.min(TILE), self.rows.saturating_sub(TILE));
        let step = Step { a, a_stride: 4 * row, a_block: 4 * block, b, b_stride: 4 * self.b_stride, blocks };
        let (c, c_stride) = (self.c, 4 * self.c_stride);
        // SAFETY: the caller's promises, and the registers have the shape of the operands.
        unsafe {
            // Registers that are not used keep a full shape, so that it changes less often.
            configure(upper, if lower == 0 { TILE } else { lower }, steps);
            if zero && blocks >= LONG {
                self.ask_for();
            }
            match (lower > 0, COLUMNS) {
                (true, 2) => step.two_by_two(c, c_stride, zero),
                (true, _) => step.two_by_one(c, c_stride, zero),
                (false, 2) => step.one_by_two(c, c_stride, zero),
                (false, _) => step.one_by_one(c, c_stride, zero),
            }
        }
    }
}

/// Operands of the assembly. Strides are in bytes.
#[derive(Clone, Copy)]
struct Step {
    a: *const f32,
    /// From one row to the next.
    a_stride: usize,
    /// From one block of steps to the next.
    a_block: usize,
    b: *const f32,
    /// From one step to the next.
    b_stride: usize,
    blocks: usize,
}

/// Defines a kernel: the sums' registers are loaded or cleared, `blocks` blocks are added, the sums are stored.
macro_rules! kernel {
    ($(#[$meta:meta])* $name:ident: $zero:literal, $load:literal, $add:literal, $store:literal) => {
        $(#[$meta])*
        ///
        /// # Safety
        ///
        /// The registers are configured to the operands' shapes, and every row and line of these is readable, the sums' writable.
        unsafe fn $name(self, c: *mut f32, c_stride: usize, zero: bool) {
            // SAFETY: the caller's promises.
            unsafe {
                asm!(
                    "test {zero:e}, {zero:e}",
                    "jz 2f",
                    $zero,
                    "jmp 3f",
                    "2:",
                    $load,
                    "3:",
                    "test {blocks}, {blocks}",
                    "jz 5f",
                    "4:",
                    $add,
                    "add {a}, {a_block}",
                    "add {a_low}, {a_block}",
                    "add {b}, {b_block}",
                    "dec {blocks}",
                    "jnz 4b",
                    "5:",
                    $store,
                    "/* {c_low} has no part in kernels of 16 rows */",
                    zero = in(reg) u32::from(zero),
                    a = inout(reg) self.a => _,
                    a_low = inout(reg) self.a.wrapping_byte_add(TILE * self.a_stride) => _,
                    a_stride = in(reg) self.a_stride,
                    a_block = in(reg) self.a_block,
                    b = inout(reg) self.b => _,
                    b_stride = in(reg) self.b_stride,
                    b_block = in(reg) BLOCK * self.b_stride,
                    c = in(reg) c,
                    c_low = in(reg) c.wrapping_byte_add(TILE * c_stride),
                    c_stride = in(reg) c_stride,
                    blocks = inout(reg) self.blocks => _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

impl Step {
    kernel! {
        /// 32 rows by 32 lanes.
        two_by_two:
        "tilezero tmm0
         tilezero tmm1
         tilezero tmm2
         tilezero tmm3",
        "tileloadd tmm0, [{c} + {c_stride}]
         tileloadd tmm1, [{c} + {c_stride} + 64]
         tileloadd tmm2, [{c_low} + {c_stride}]
         tileloadd tmm3, [{c_low} + {c_stride} + 64]",
        "tileloadd tmm4, [{a} + {a_stride}]
         tileloadd tmm6, [{b} + {b_stride}]
         tileloadd tmm7, [{b} + {b_stride} + 64]
         tdpbf16ps tmm0, tmm4, tmm6
         tileloadd tmm5, [{a_low} + {a_stride}]
         tdpbf16ps tmm1, tmm4, tmm7
         tdpbf16ps tmm2, tmm5, tmm6
         tdpbf16ps tmm3, tmm5, tmm7",
        "tilestored [{c} + {c_stride}], tmm0
         tilestored [{c} + {c_stride} + 64], tmm1
         tilestored [{c_low} + {c_stride}], tmm2
         tilestored [{c_low} + {c_stride} + 64], tmm3"
    }

    kernel! {
        /// 32 rows by 16 lanes.
        two_by_one:
        "tilezero tmm0
         tilezero tmm2",
        "tileloadd tmm0, [{c} + {c_stride}]
         tileloadd tmm2, [{c_low} + {c_stride}]",
        "tileloadd tmm4, [{a} + {a_stride}]
         tileloadd tmm6, [{b} + {b_stride}]
         tileloadd tmm5, [{a_low} + {a_stride}]
         tdpbf16ps tmm0, tmm4, tmm6
         tdpbf16ps tmm2, tmm5, tmm6",
        "tilestored [{c} + {c_stride}], tmm0
         tilestored [{c_low} + {c_stride}], tmm2"
    }

    kernel! {
        /// 16 rows by 32 lanes: few rows, whose time is the reading of the lanes. They are asked for two blocks ahead, since the
        /// processor itself looks no further than the end of a page.
        one_by_two:
        "tilezero tmm0
         tilezero tmm1",
        "tileloadd tmm0, [{c} + {c_stride}]
         tileloadd tmm1, [{c} + {c_stride} + 64]",
        ".set at, 4096
         .rept 32
         prefetcht0 [{b} + at]
         .set at, at + 64
         .endr
         tileloadd tmm4, [{a} + {a_stride}]
         tileloadd tmm6, [{b} + {b_stride}]
         tileloadd tmm7, [{b} + {b_stride} + 64]
         tdpbf16ps tmm0, tmm4, tmm6
         tdpbf16ps tmm1, tmm4, tmm7",
        "tilestored [{c} + {c_stride}], tmm0
         tilestored [{c} + {c_stride} + 64], tmm1"
    }

    kernel! {
        /// 16 rows by 16 lanes.
        one_by_one:
        "tilezero tmm0",
        "tileloadd tmm0, [{c} + {c_stride}]",
        "tileloadd tmm4, [{a} + {a_stride}]
         tileloadd tmm6, [{b} + {b_stride}]
         tdpbf16ps tmm0, tmm4, tmm6",
        "tilestored [{c} + {c_stride}], tmm0"
    }
}

/// What one `tdpbf16ps` adds to a sum, of at most 16 pairs.
#[cfg(test)]
pub(super) fn add_block(sum: f32, pairs: impl Iterator<Item = (u32, u32)>) -> f32 {
    use super::bf16::unpair;
    use super::tile::flush;
    let mut halves = [0.0f32; 2];
    for (a, b) in pairs {
        let (a, b) = (unpair(a).map(flush), unpair(b).map(flush));
        for i in 0..2 {
            halves[i] = flush(a[i].mul_add(b[i], halves[i]));
        }
    }
    flush(flush(sum) + flush(halves[0] + halves[1]))
}
