//! What a forward pass keeps for the backward pass, and the memory of both.

use std::ops::Range;

use super::Recompute;
use crate::config::NormKind;
use crate::cpu::attention::Rows;
use crate::cpu::linear::{Channels, Lines};
use crate::cpu::rope::RopeTable;
use crate::cpu::{Cpu, Precision, SharedMut, bf16, logprob};
use crate::params::Buffer;

/// What one layer saves.
#[derive(Debug, Default)]
pub(super) struct LayerTape {
    pub(super) x: Buffer,
    pub(super) attn_norm: NormTape,
    pub(super) qk_raw: Buffer,
    pub(super) qk_rstd: Buffer,
    pub(super) qkv: Kept,
    pub(super) max: Buffer,
    pub(super) sum: Buffer,
    pub(super) attn: Kept,
    pub(super) attn_proj: Buffer,
    pub(super) attn_post_norm: NormTape,
    pub(super) x_mid: Buffer,
    pub(super) mlp_norm: NormTape,
    pub(super) up: Kept,
    pub(super) mlp_proj: Buffer,
    pub(super) mlp_post_norm: NormTape,
}

/// An activation that backward reads: as it was or, where products are in bf16, rounded, in half the memory.
#[derive(Debug, Default)]
pub(super) struct Kept {
    floats: Buffer,
    /// Two bf16 in the place of a float.
    halves: Buffer,
}

impl Kept {
    /// Where it is computed, and where it is rounded to: in its place, or in the scratch and its place.
    pub(super) fn split<'a>(
        &'a mut self,
        precision: Precision,
        scratch: &'a mut Buffer,
        len: usize,
    ) -> (&'a mut [f32], &'a mut [u16]) {
        match precision {
            Precision::F32 => (self.floats.first_mut(len), &mut []),
            Precision::Bf16 => (scratch.first_mut(len), halves_mut(&mut self.halves, len)),
        }
    }

    /// Its place alone: of floats or of halves, the other is empty.
    pub(super) fn places(&mut self, precision: Precision, len: usize) -> (&mut [f32], &mut [u16]) {
        match precision {
            Precision::F32 => (self.floats.first_mut(len), &mut []),
            Precision::Bf16 => (&mut [], halves_mut(&mut self.halves, len)),
        }
    }

    /// It, as it is kept.
    pub(super) fn rows(&self, precision: Precision, len: usize) -> Rows<'_> {
        match precision {
            Precision::F32 => Rows::Floats(&self.floats[..len]),
            Precision::Bf16 => Rows::Halves(&bytemuck::cast_slice(&self.halves)[..len]),
        }
    }

    /// It, from where it is or widened into the scratch.
    pub(super) fn read<'a>(
        &'a self,
        cpu: &Cpu,
        precision: Precision,
        scratch: &'a mut Buffer,
        len: usize,
    ) -> &'a [f32] {
        match precision {
            Precision::F32 => &self.floats[..len],
            Precision::Bf16 => {
                let scratch = scratch.first_mut(len);
                bf16::widen(cpu, scratch, bytemuck::cast_slice(&self.halves));
                scratch
            }
        }
    }

    /// Where [`Kept::split`] computed it, or [`Kept::read`] read it.
    pub(super) fn floats<'a>(&'a self, precision: Precision, scratch: &'a Buffer, len: usize) -> &'a [f32] {
        match precision {
            Precision::F32 => &self.floats[..len],
            Precision::Bf16 => &scratch[..len],
        }
    }

    /// As [`Kept::read`], of some rows of this width.
    pub(super) fn read_rows<'a>(
        &'a self,
        cpu: &Cpu,
        precision: Precision,
        scratch: &'a mut Buffer,
        rows: &Range<usize>,
        width: usize,
    ) -> &'a [f32] {
        let numbers = rows.start * width..rows.end * width;
        match precision {
            Precision::F32 => &self.floats[numbers],
            Precision::Bf16 => {
                let scratch = scratch.first_mut(numbers.len());
                bf16::widen(cpu, scratch, &bytemuck::cast_slice(&self.halves)[numbers]);
                scratch
            }
        }
    }
}

fn halves_mut(halves: &mut Buffer, len: usize) -> &mut [u16] {
    &mut bytemuck::cast_slice_mut(halves.first_mut(len.div_ceil(2)))[..len]
}

/// Statistics of one normalisation: `[n]` each, means only for LayerNorm.
#[derive(Debug, Default)]
pub(super) struct NormTape {
    pub(super) mean: Buffer,
    pub(super) rstd: Buffer,
}

impl NormTape {
    /// Room for so many rows: means and reciprocal deviations.
    pub(super) fn room(&mut self, kind: NormKind, n: usize) -> [&mut [f32]; 2] {
        let means = if kind == NormKind::Layer { n } else { 0 };
        [self.mean.first_mut(means), self.rstd.first_mut(n)]
    }

    /// The same, for tasks that have rows of their own.
    pub(super) fn rows(&mut self, kind: NormKind, n: usize) -> NormRows<'_> {
        let [mean, rstd] = self.room(kind, n);
        let means = mean.len().checked_div(n).unwrap_or(0);
        NormRows { mean: RowsMut::new(mean, means), rstd: RowsMut::new(rstd, 1) }
    }

    /// Those of some rows.
    pub(super) fn of(&self, kind: NormKind, rows: &Range<usize>) -> [&[f32]; 2] {
        [if kind == NormKind::Layer { &self.mean[rows.clone()] } else { &[] }, &self.rstd[rows.clone()]]
    }
}

/// A [`NormTape`] that tasks share out.
pub(super) struct NormRows<'a> {
    mean: RowsMut<'a>,
    rstd: RowsMut<'a>,
}

impl<'a> NormRows<'a> {
    /// # Safety
    ///
    /// As [`RowsMut::of`].
    pub(super) unsafe fn of(&self, rows: &Range<usize>) -> [&'a mut [f32]; 2] {
        // SAFETY: the caller's promise.
        unsafe { [self.mean.of(rows), self.rstd.of(rows)] }
    }
}

/// A matrix whose rows are shared out among tasks.
pub(super) struct RowsMut<'a, T = f32> {
    data: SharedMut<'a, T>,
    width: usize,
}

impl<'a, T> RowsMut<'a, T> {
    pub(super) fn new(data: &'a mut [T], width: usize) -> Self {
        Self { data: SharedMut::new(data), width }
    }

    /// # Safety
    ///
    /// Rows that are in use do not overlap.
    pub(super) unsafe fn of(&self, rows: &Range<usize>) -> &'a mut [T] {
        // SAFETY: the caller's promise.
        unsafe { self.data.slice(rows.start * self.width..rows.end * self.width) }
    }
}

/// Buffers that live for one operation or one layer.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) attn: Buffer,
    pub(super) head: Buffer,
    pub(super) head_backward: logprob::Work,
    pub(super) rows: Buffer,
    pub(super) d_rows: Buffer,
    pub(super) kept_x: Buffer,
    pub(super) kept_attn: Buffer,
    pub(super) d_x_mid: Buffer,
    pub(super) d_y: Buffer,
    pub(super) d_proj: Buffer,
    pub(super) d_attn: Buffer,
    pub(super) d_qkv: Buffer,
    pub(super) d_up: Buffer,
    /// Weights, turned for the input's gradient.
    pub(super) turned: [Buffer; 2],
    /// What weights' gradients are made of.
    pub(super) factors: [FactorBuffers; 2],
}

/// Room for [`Factors`].
#[derive(Debug, Default)]
pub(super) struct FactorBuffers {
    gradient: Buffer,
    input: Buffer,
}

impl FactorBuffers {
    /// For `m` rows of a weight `[n, k]`.
    pub(super) fn of(
        &mut self,
        cpu: &Cpu,
        precision: Precision,
        m: usize,
        n: usize,
        k: usize,
    ) -> Factors<'_> {
        Factors {
            gradient: Lines::new(cpu, precision, &mut self.gradient, m, n),
            input: Channels::new(cpu, precision, &mut self.input, m, k),
            outputs: n,
        }
    }
}

/// The two factors of a weight's gradient, put together by tasks that have rows of them.
pub(super) struct Factors<'a> {
    /// Of the weight's output.
    pub(super) gradient: Lines<'a>,
    /// The weight's input.
    pub(super) input: Channels<'a>,
    outputs: usize,
}

impl Factors<'_> {
    /// # Safety
    ///
    /// Rows that are put at a time do not overlap.
    pub(super) unsafe fn put(&self, cpu: &Cpu, rows: &Range<usize>, d_y: &[f32], x: &[f32]) {
        // SAFETY: the caller's promise.
        unsafe {
            self.gradient.put(cpu, rows.start, 0..self.outputs, d_y);
            self.input.put(cpu, rows.start, x);
        }
    }
}

/// Buffers of a task that takes some rows through several operations.
#[derive(Debug, Default)]
pub(super) struct RowWork {
    pub(super) x: Buffer,
    pub(super) qkv: Buffer,
    pub(super) attn: Buffer,
    pub(super) y: Buffer,
    pub(super) proj: Buffer,
    pub(super) up: Buffer,
    pub(super) act: Buffer,
    pub(super) d_act: Buffer,
    pub(super) d_up: Buffer,
}

/// The memory of a forward and backward pass. Buffers grow to the largest batch seen and are reused.
#[derive(Debug, Default)]
pub struct Tape {
    pub(super) n: usize,
    /// The rows that have a hidden state, ascending; all, if none.
    pub(super) kept: Option<Vec<usize>>,
    pub(super) recompute: Option<Recompute>,
    pub(super) positions: Vec<usize>,
    pub(super) rope: RopeTable,
    /// With [`Recompute::Layer`] (and when decoding) only `x` of each is used, and `shared` for the rest.
    pub(super) layers: Vec<LayerTape>,
    pub(super) shared: LayerTape,
    pub(super) x: Buffer,
    pub(super) final_norm: NormTape,
    pub(super) hidden: Buffer,
    pub(super) d_hidden: Buffer,
    pub(super) d_x: Buffer,
    pub(super) work: Work,
}

impl Tape {
    pub(super) fn hidden_rows(&self) -> usize {
        self.kept.as_ref().map_or(self.n, Vec::len)
    }
}
