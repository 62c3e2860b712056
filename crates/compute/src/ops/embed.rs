//! Embedding: a token's vector, scaled, and where positions are learned a position's vector.
//!
//! ```text
//! x[n] = table[id[n]] * scale (+ position_table[position[n]])
//! ```
//!
//! `x_nc` is `[n, c]`; `table` is `[v, c]` in panels ([`crate::params`]), since it may also be the head;
//! `position_table` is `[positions, c]` row by row. All f32, as written from the left.
//!
//! **Numerics contract.** Backward adds rows in ascending order of `n`: `d_table[id] += d_x * scale`,
//! product and sum both rounded. A token may occur often, so the order is part of the result; the fast
//! version keeps it to the bit. Not here: the rotation (`rope`).

use crate::params::{LANES, panel_row};

/// Overwrites `x_nc`.
///
/// # Panics
///
/// If the lengths do not fit together, or an id or a position is outside its table.
pub fn forward(
    x_nc: &mut [f32],
    ids_n: &[u32],
    position_n: &[usize],
    table: &[f32],
    position_table: Option<&[f32]>,
    scale: f32,
    c: usize,
) {
    check("embed", x_nc, ids_n, position_n, table, position_table, c);

    for (i, x_c) in x_nc.chunks_exact_mut(c).enumerate() {
        for (x, at) in x_c.iter_mut().zip(panel_row(c, ids_n[i] as usize)) {
            *x = table[at] * scale;
        }
        if let Some(position_table) = position_table {
            for (x, p) in x_c.iter_mut().zip(&position_table[position_n[i] * c..][..c]) {
                *x += p;
            }
        }
    }
}

/// Adds into `d_table` (panels) and `d_position_table`.
///
/// # Panics
///
/// As [`forward`].
pub fn backward(
    d_table: &mut [f32],
    d_position_table: Option<&mut [f32]>,
    d_x_nc: &[f32],
    ids_n: &[u32],
    position_n: &[usize],
    scale: f32,
    c: usize,
) {
    check("embed backward", d_x_nc, ids_n, position_n, d_table, d_position_table.as_deref(), c);

    // forward was: x = table[id] * scale + position_table[position]
    // so now:
    for (d_x_c, &id) in d_x_nc.chunks_exact(c).zip(ids_n) {
        for (d_x, at) in d_x_c.iter().zip(panel_row(c, id as usize)) {
            d_table[at] += d_x * scale;
        }
    }
    if let Some(d_position_table) = d_position_table {
        for (d_x_c, &position) in d_x_nc.chunks_exact(c).zip(position_n) {
            for (d_p, d_x) in d_position_table[position * c..][..c].iter_mut().zip(d_x_c) {
                *d_p += d_x;
            }
        }
    }
}

fn check(
    op: &str,
    x_nc: &[f32],
    ids_n: &[u32],
    position_n: &[usize],
    table: &[f32],
    position_table: Option<&[f32]>,
    c: usize,
) {
    let n = ids_n.len();
    assert!(c > 0, "{op}: no channels");
    assert_eq!(x_nc.len(), n * c, "{op}: x is [{n}, {c}]");
    assert_eq!(position_n.len(), n, "{op}: one position a token");
    assert_eq!(table.len() % (LANES * c), 0, "{op}: the table is panels of {LANES} x {c}");
    let rows = table.len() / c;
    assert!(ids_n.iter().all(|&id| (id as usize) < rows), "{op}: an id outside {rows} rows");
    if let Some(position_table) = position_table {
        assert_eq!(position_table.len() % c, 0, "{op}: position rows of {c}");
        let rows = position_table.len() / c;
        assert!(position_n.iter().all(|&p| p < rows), "{op}: a position outside {rows} rows");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::*;

    // 34 tokens of two channels: token t is [t, 100 + t]. Token 33 is in the second panel.
    fn table() -> Vec<f32> {
        let rows: Vec<f32> = (0..34).flat_map(|t| [t as f32, 100.0 + t as f32]).collect();
        to_panels(&rows, 2)
    }

    #[test]
    fn worked_by_hand() {
        let (ids_n, position_n, position_table) = ([33, 0, 33], [0, 1, 2], [0.5, 0.25, 0.0, 1.0, -1.0, -2.0]);
        let mut x_nc = unwritten(6);
        forward(&mut x_nc, &ids_n, &position_n, &table(), None, 2.0, 2);
        assert_eq!(x_nc, [66.0, 266.0, 0.0, 200.0, 66.0, 266.0]);
        forward(&mut x_nc, &ids_n, &position_n, &table(), Some(&position_table), 2.0, 2);
        assert_eq!(x_nc, [66.5, 266.25, 0.0, 201.0, 65.0, 264.0]);

        let d_x_nc = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let (mut d_table, mut d_position) = (before(table().len()), before(6));
        backward(&mut d_table, Some(&mut d_position), &d_x_nc, &ids_n, &position_n, 2.0, 2);
        let d_rows = from_panels(&added(&d_table), 64, 2);
        assert_eq!((&d_rows[..2], &d_rows[66..68]), (&[6.0, 8.0][..], &[12.0, 16.0][..]));
        assert!(d_rows[2..66].iter().chain(&d_rows[68..]).all(|&d| d == 0.0), "other tokens are left alone");
        assert_eq!(added(&d_position), d_x_nc);
    }

    // 2^24 + 1 is not an f32, so another order of the rows gives another sum; and (1 + 2^-12)^2 - 1
    // shows whether the product was rounded before the sum.
    #[test]
    fn the_order_of_the_rows_is_a_contract() {
        const BIG: f32 = 16_777_216.0;
        let near_one = 1.0 + 2f32.powi(-12);
        let sum = |d_x: &[f32], scale: f32, start: f32| {
            let mut d_table = to_panels(&[start], 1);
            backward(&mut d_table, None, d_x, &vec![0; d_x.len()], &vec![0; d_x.len()], scale, 1);
            d_table[0]
        };
        assert_eq!(sum(&[BIG, 1.0, -BIG], 1.0, 0.0), 0.0, "n ascending");
        assert_eq!(sum(&[-BIG, 1.0, BIG], 1.0, 0.0), 1.0, "n ascending");
        assert_eq!(sum(&[BIG, -BIG], 1.0, 1.0), 0.0, "what was there first");
        assert_eq!(sum(&[near_one], near_one, -1.0), 2f32.powi(-11), "not fused");
    }

    #[test]
    fn gradients_match_central_differences() {
        let (ids_n, position_n, scale, c) = ([4, 33, 4, 0, 4], [0, 1, 2, 0, 1], 1.7, 3);
        let (rows_vc, position_table, d_x_nc) = (values(1, 34 * c), values(2, 3 * c), values(3, 5 * c));
        let loss = |rows_vc: &[f32], position_table: &[f32]| {
            let mut x_nc = unwritten(5 * c);
            let table = to_panels(rows_vc, c);
            forward(&mut x_nc, &ids_n, &position_n, &table, Some(position_table), scale, c);
            weighted(&x_nc, &d_x_nc)
        };
        let (mut d_table, mut d_position) = (before(64 * c), before(3 * c));
        backward(&mut d_table, Some(&mut d_position), &d_x_nc, &ids_n, &position_n, scale, c);
        let d_rows = from_panels(&added(&d_table), 34, c);
        // The map is linear, so a large step loses nothing. Measured worst 6.4e-8.
        check_gradient("d_table", &d_rows, &rows_vc, 0.25, 3.5e-7, |t| loss(t, &position_table));
        check_gradient("d_position", &added(&d_position), &position_table, 0.25, 3.5e-7, |p| {
            loss(&rows_vc, p)
        });
    }

    #[test]
    #[should_panic(expected = "embed: an id outside 64 rows")]
    fn an_unknown_id_panics() {
        forward(&mut [0.0; 2], &[64], &[0], &table(), None, 1.0, 2);
    }
}
