//! Token (and learned position) embeddings. Reference: `ops/embed.rs`, reproduced to the bit.

use super::{Cpu, SharedMut};
use crate::params::{LANES, panel_row};

const ROWS: usize = 16;
const CHANNELS: usize = 16;

/// `x_nc = table[id] * scale (+ position_table[position])`.
///
/// # Panics
///
/// If the lengths do not fit together, or an id or position is outside its table.
pub fn forward(
    cpu: &Cpu,
    x_nc: &mut [f32],
    ids_n: &[u32],
    position_n: &[usize],
    table: &[f32],
    position_table: Option<&[f32]>,
    scale: f32,
    c: usize,
) {
    assert_eq!(x_nc.len(), ids_n.len() * c, "embed: x is [{}, {c}]", ids_n.len());
    cpu.for_each_chunk(x_nc, ROWS * c, |task, rows| {
        for (r, x_c) in rows.chunks_exact_mut(c).enumerate() {
            let i = task * ROWS + r;
            for (x, at) in x_c.iter_mut().zip(panel_row(c, ids_n[i] as usize)) {
                *x = table[at] * scale;
            }
            if let Some(position_table) = position_table {
                for (x, &p) in x_c.iter_mut().zip(&position_table[position_n[i] * c..][..c]) {
                    *x += p;
                }
            }
        }
    });
}

/// Adds into `d_table` (panels) and `d_position_table`.
///
/// Tasks own channels, not tokens: a token may occur often, and its sum is in the order of the rows.
///
/// # Panics
///
/// As [`forward`].
pub fn backward(
    cpu: &Cpu,
    d_table: &mut [f32],
    d_position_table: Option<&mut [f32]>,
    d_x_nc: &[f32],
    ids_n: &[u32],
    position_n: &[usize],
    scale: f32,
    c: usize,
) {
    assert_eq!(d_x_nc.len(), ids_n.len() * c, "embed: d_x is [{}, {c}]", ids_n.len());
    let d_table = SharedMut::new(d_table);
    let d_position_table = d_position_table.map(SharedMut::new);
    cpu.for_each(c.div_ceil(CHANNELS), |task| {
        let channels = task * CHANNELS..c.min((task + 1) * CHANNELS);
        for (i, &id) in ids_n.iter().enumerate() {
            let id = id as usize;
            let start = id / LANES * LANES * c + id % LANES;
            for k in channels.clone() {
                // SAFETY: channel `k` of every row belongs to this task.
                let d = unsafe { d_table.slice(start + k * LANES..start + k * LANES + 1) };
                d[0] += d_x_nc[i * c + k] * scale;
            }
            if let Some(d_position_table) = &d_position_table {
                let row = position_n[i] * c;
                // SAFETY: as above.
                let d_p = unsafe { d_position_table.slice(row + channels.start..row + channels.end) };
                for (d_p, &d) in d_p.iter_mut().zip(&d_x_nc[i * c + channels.start..]) {
                    *d_p += d;
                }
            }
        }
    });
}
