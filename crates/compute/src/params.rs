//! Parameters (and gradients, and optimiser moments): one flat buffer, and the map into it.
//!
//! Everything that trains lives in one `f32` buffer, so that the norm, the clip, the update, a
//! checkpoint and, later, a shard are each one loop. [`Layout`] says where each tensor lies.
//!
//! **Panels.** A matrix `w_nk` (`n` outputs, `k` inputs, as `y = w x`) is not stored row by row but
//! in panels of [`LANES`] outputs:
//!
//! ```text
//! panel[n / 32][k][n % 32]      n padded to a multiple of 32 with zeros
//! ```
//!
//! One vector load then gives the weights of one input for 32 neighbouring outputs, which is what
//! the forward kernel multiplies by a broadcast input, and reading a panel is one sequential
//! stream. The input gradient broadcasts from the same panels, and the weight gradient is written
//! in panels too: nothing is ever packed or transposed between the file and the kernels, training
//! and decoding share one copy, and the optimiser does not notice. The padding rows have zero weight,
//! zero gradient and so stay zero.
//!
//! **Pairs.** For products in bf16 ([`Precision::Bf16`]) the weights are held once more, rounded, two inputs in
//! one 32-bit word, since that is what the processor multiplies in one step:
//!
//! ```text
//! pairs[n / 32][k / 2][n % 32]      even k in the lower half of the word, odd k in the upper
//! ```
//!
//! This copy follows from the f32 weights and is made again where they change: by the optimiser, in its pass, and by
//! [`Params::pack`] for whoever else writes weights. A matrix with an odd number of inputs has none and stays f32.
//!
//! Not here: names in a Hugging Face file (`lm`), the update rule (`optim`).

use crate::config::{DecoderConfig, Head, NormKind, Position, QkNorm};
use crate::cpu::{Cpu, Precision, bf16};

/// Outputs in one panel: two AVX-512 registers, four AVX2 ones.
pub const LANES: usize = 32;

/// How a tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `[len]`: norms and biases.
    Vector {
        /// Number of elements.
        len: usize,
    },
    /// `[rows, cols]` in panels of rows (see the module): what a linear map multiplies by.
    Matrix {
        /// `n`: outputs.
        rows: usize,
        /// `k`: inputs.
        cols: usize,
    },
    /// `[rows, cols]` row by row: only ever looked up (GPT-2's positions).
    Table {
        /// Number of vectors.
        rows: usize,
        /// Length of each.
        cols: usize,
    },
}

impl Shape {
    /// `(rows, cols)`, with a vector as one row.
    pub fn rows_cols(self) -> (usize, usize) {
        match self {
            Shape::Vector { len } => (1, len),
            Shape::Matrix { rows, cols } | Shape::Table { rows, cols } => (rows, cols),
        }
    }

    /// Floats the tensor takes in the buffer, padding included.
    fn stored_len(self) -> usize {
        match self {
            Shape::Vector { len } => len,
            Shape::Matrix { rows, cols } => rows.next_multiple_of(LANES) * cols,
            Shape::Table { rows, cols } => rows * cols,
        }
    }
}

/// One tensor's name and place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamSpec {
    /// The decoder's own name for it, e.g. `layers.3.qkv.weight`.
    pub name: String,
    /// How it is stored.
    pub shape: Shape,
    /// First float in the buffer; a multiple of 32, so that panels and pairs are cache-line aligned.
    pub offset: usize,
}

impl ParamSpec {
    /// The floats of this tensor in a flat buffer.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.shape.stored_len()
    }

    /// Whether the tensor is a matrix whose inputs come in pairs.
    fn has_pairs(&self) -> bool {
        matches!(self.shape, Shape::Matrix { cols, .. } if cols % 2 == 0)
    }

    /// Its words in the buffer of pairs.
    fn pairs_range(&self) -> std::ops::Range<usize> {
        self.offset / 2..(self.offset + self.shape.stored_len()) / 2
    }

    /// Whether weight decay usually applies: matrices yes, norms and biases no.
    pub fn is_matrix(&self) -> bool {
        !matches!(self.shape, Shape::Vector { .. })
    }
}

/// Index of a tensor in [`Layout::specs`].
pub type ParamIndex = usize;

/// The tensors of one normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NormParams {
    /// `[c]`.
    pub weight: ParamIndex,
    /// `[c]`, LayerNorm only.
    pub bias: Option<ParamIndex>,
}

/// The tensors of one linear map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearParams {
    /// `[n, k]` in panels.
    pub weight: ParamIndex,
    /// `[n]`.
    pub bias: Option<ParamIndex>,
}

/// The tensors of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerParams {
    /// Before attention (`NormPlace::Pre` and `PreAndPost`).
    pub attn_norm: Option<NormParams>,
    /// `[(h + 2g) * d, c]`: query rows, then key rows, then value rows.
    pub qkv: LinearParams,
    /// Weight of `[d]` (per head) or `[h*d]` (whole).
    pub q_norm: Option<ParamIndex>,
    /// Weight of `[d]` (per head) or `[g*d]` (whole).
    pub k_norm: Option<ParamIndex>,
    /// `[c, h*d]`.
    pub attn_out: LinearParams,
    /// After attention (`NormPlace::Post` and `PreAndPost`).
    pub attn_post_norm: Option<NormParams>,
    /// Before the feed-forward block.
    pub mlp_norm: Option<NormParams>,
    /// `[2f, c]` with a gate (gate rows first), else `[f, c]`.
    pub up: LinearParams,
    /// `[c, f]`.
    pub down: LinearParams,
    /// After the feed-forward block.
    pub mlp_post_norm: Option<NormParams>,
}

/// Where every tensor of a decoder lies in the flat buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// All tensors, in buffer order.
    pub specs: Vec<ParamSpec>,
    /// `[v, c]` in panels; also the head where it is tied.
    pub embed: ParamIndex,
    /// `[positions, c]`, learned positions only.
    pub position_embed: Option<ParamIndex>,
    /// One entry a layer.
    pub layers: Vec<LayerParams>,
    /// Before the head.
    pub final_norm: NormParams,
    /// `[v, c]` or, for a scalar head, `[1, c]`. The embedding where tied.
    pub head: ParamIndex,
    /// Floats of the whole buffer.
    pub len: usize,
}

impl Layout {
    /// Lays out the tensors of a decoder.
    pub fn new(config: &DecoderConfig) -> Self {
        let mut b = Builder { specs: Vec::new(), len: 0, config };
        let c = config.width;
        let embed = b.add("embed.weight".into(), Shape::Matrix { rows: config.vocab, cols: c });
        let position_embed = (config.position == Position::Learned).then(|| {
            b.add("position_embed.weight".into(), Shape::Table { rows: config.positions_max, cols: c })
        });
        let layers = (0..config.layers).map(|l| b.layer(l)).collect();
        let final_norm = b.norm("final_norm");
        let head = match config.head {
            Head::Tied => embed,
            Head::Untied => b.add("head.weight".into(), Shape::Matrix { rows: config.vocab, cols: c }),
            Head::Scalar => b.add("score.weight".into(), Shape::Vector { len: c }),
        };
        let Builder { specs, len, .. } = b;
        Self { specs, embed, position_embed, layers, final_norm, head, len }
    }

    /// The tensor called `name`, if there is one.
    pub fn find(&self, name: &str) -> Option<&ParamSpec> {
        self.specs.iter().find(|spec| spec.name == name)
    }

    /// Number of trainable numbers, without padding.
    pub fn parameter_count(&self) -> usize {
        self.specs
            .iter()
            .map(|spec| {
                let (rows, cols) = spec.shape.rows_cols();
                rows * cols
            })
            .sum()
    }
}

struct Builder<'a> {
    specs: Vec<ParamSpec>,
    len: usize,
    config: &'a DecoderConfig,
}

impl Builder<'_> {
    fn add(&mut self, name: String, shape: Shape) -> ParamIndex {
        let offset = self.len;
        self.len = (offset + shape.stored_len()).next_multiple_of(2 * LINE);
        self.specs.push(ParamSpec { name, shape, offset });
        self.specs.len() - 1
    }

    fn vector(&mut self, name: String, len: usize) -> ParamIndex {
        self.add(name, Shape::Vector { len })
    }

    fn norm(&mut self, name: &str) -> NormParams {
        let c = self.config.width;
        let weight = self.vector(format!("{name}.weight"), c);
        let bias = (self.config.norm == NormKind::Layer).then(|| self.vector(format!("{name}.bias"), c));
        NormParams { weight, bias }
    }

    fn linear(&mut self, name: String, rows: usize, cols: usize, bias: bool) -> LinearParams {
        let weight = self.add(format!("{name}.weight"), Shape::Matrix { rows, cols });
        let bias = bias.then(|| self.vector(format!("{name}.bias"), rows));
        LinearParams { weight, bias }
    }

    fn layer(&mut self, l: usize) -> LayerParams {
        let config = self.config;
        let (c, place) = (config.width, config.norm_place);
        let name = |part: &str| format!("layers.{l}.{part}");
        let attn_norm = place.pre().then(|| self.norm(&name("attn_norm")));
        let qkv = self.linear(name("qkv"), config.qkv_width(), c, config.qkv_bias);
        let (q_len, k_len) = match config.qk_norm {
            QkNorm::None => (None, None),
            QkNorm::PerHead => (Some(config.head_dim), Some(config.head_dim)),
            QkNorm::Whole => (Some(config.q_width()), Some(config.kv_width())),
        };
        let q_norm = q_len.map(|len| self.vector(name("q_norm.weight"), len));
        let k_norm = k_len.map(|len| self.vector(name("k_norm.weight"), len));
        let attn_out = self.linear(name("attn_out"), c, config.q_width(), config.attn_out_bias);
        let attn_post_norm = place.post().then(|| self.norm(&name("attn_post_norm")));
        let mlp_norm = place.pre().then(|| self.norm(&name("mlp_norm")));
        let up = self.linear(name("up"), config.up_width(), c, config.mlp_bias);
        let down = self.linear(name("down"), c, config.ffn, config.mlp_bias);
        let mlp_post_norm = place.post().then(|| self.norm(&name("mlp_post_norm")));
        LayerParams {
            attn_norm,
            qkv,
            q_norm,
            k_norm,
            attn_out,
            attn_post_norm,
            mlp_norm,
            up,
            down,
            mlp_post_norm,
        }
    }
}

/// Floats of a cache line.
const LINE: usize = 16;

/// Sixteen floats that start on a cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Line([f32; 16]);

/// A zeroed `f32` buffer whose first element starts a cache line.
#[derive(Clone)]
pub struct Buffer {
    lines: Vec<Line>,
    len: usize,
}

impl Buffer {
    /// `len` zeros, which take memory when they are first touched.
    pub fn zeros(len: usize) -> Self {
        Self { lines: bytemuck::zeroed_vec(len.div_ceil(LINE)), len }
    }

    /// Makes the buffer at least `len` long; what it held is lost in meaning, not cleared.
    pub fn grow(&mut self, len: usize) {
        if self.len < len {
            // The old one goes first, so that both are never held.
            *self = Self::default();
            *self = Self::zeros(len);
        }
    }

    /// The first `len` floats, of a buffer that is long enough from now on.
    pub fn first_mut(&mut self, len: usize) -> &mut [f32] {
        self.grow(len);
        &mut self[..len]
    }
}

impl Default for Buffer {
    fn default() -> Self {
        Self::zeros(0)
    }
}

impl std::ops::Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} floats)", self.len)
    }
}

/// The weights of a linear map as its products read them.
#[derive(Clone, Copy, Debug)]
pub enum Weights<'a> {
    /// `[n, k]` in panels.
    F32(&'a [f32]),
    /// `[n, k]` in pairs of bf16, as words.
    Bf16(&'a [u32]),
}

impl Weights<'_> {
    /// What the products of these weights are computed in.
    pub fn precision(self) -> Precision {
        match self {
            Weights::F32(_) => Precision::F32,
            Weights::Bf16(_) => Precision::Bf16,
        }
    }
}

/// Values for every tensor of a [`Layout`]: weights, their gradients, or an optimiser's moments.
#[derive(Clone, Debug)]
pub struct Params {
    /// The flat buffer, `layout.len` long.
    pub data: Buffer,
    /// The matrices in pairs: word `i` of the buffer belongs to floats `2 i` and on.
    pairs: Option<Buffer>,
}

impl Params {
    /// All zeros.
    pub fn zeros(layout: &Layout) -> Self {
        Self::of(Buffer::zeros(layout.len))
    }

    /// These numbers.
    pub fn of(data: Buffer) -> Self {
        Self { data, pairs: None }
    }

    /// Makes products with these weights be computed in the processor's precision, and has to be called again by whoever changes
    /// weights other than by [`crate::optim::Optimizer::update`].
    pub fn pack(&mut self, cpu: &Cpu, specs: &[ParamSpec]) {
        if cpu.precision() == Precision::F32 {
            self.pairs = None;
            return;
        }
        let pairs = self.pairs.get_or_insert_with(|| Buffer::zeros(self.data.len() / 2));
        for spec in specs.iter().filter(|spec| spec.has_pairs()) {
            let (_, cols) = spec.shape.rows_cols();
            let pairs = bytemuck::cast_slice_mut(&mut pairs[spec.pairs_range()]);
            bf16::pack_panels(cpu, pairs, &self.data[spec.range()], cols);
        }
    }

    /// What products with these weights are computed in.
    pub fn precision(&self) -> Precision {
        if self.pairs.is_some() { Precision::Bf16 } else { Precision::F32 }
    }

    /// The weights and, where products with them are in bf16, the pairs that follow from them.
    pub(crate) fn masters_and_pairs(&mut self, spec: &ParamSpec) -> (&mut [f32], Option<&mut [u32]>) {
        let pairs = self.pairs.as_mut().filter(|_| spec.has_pairs());
        (
            &mut self.data[spec.range()],
            pairs.map(|pairs| bytemuck::cast_slice_mut(&mut pairs[spec.pairs_range()])),
        )
    }

    /// The weights of a linear map, in the precision that they were packed for.
    pub fn weights(&self, spec: &ParamSpec) -> Weights<'_> {
        match &self.pairs {
            Some(pairs) if spec.has_pairs() => {
                Weights::Bf16(bytemuck::cast_slice(&pairs[spec.pairs_range()]))
            }
            _ => Weights::F32(&self.data[spec.range()]),
        }
    }

    /// The stored floats of one tensor, in panels if it is a matrix.
    pub fn slice(&self, layout: &Layout, index: ParamIndex) -> &[f32] {
        &self.data[layout.specs[index].range()]
    }

    /// The stored floats of one tensor, to write.
    pub fn slice_mut(&mut self, layout: &Layout, index: ParamIndex) -> &mut [f32] {
        &mut self.data[layout.specs[index].range()]
    }

    /// Copies rows `first_row..` of a tensor out, row by row: `[rows, cols]`.
    ///
    /// # Panics
    ///
    /// If the rows are not all there.
    pub fn read_rows(&self, spec: &ParamSpec, first_row: usize, rows: usize) -> Vec<f32> {
        let (all_rows, cols) = spec.shape.rows_cols();
        assert!(first_row + rows <= all_rows, "{}: rows {first_row}+{rows} of {all_rows}", spec.name);
        let stored = &self.data[spec.range()];
        let Shape::Matrix { .. } = spec.shape else {
            return stored[first_row * cols..][..rows * cols].to_vec();
        };
        let mut out = vec![0.0; rows * cols];
        let mut row = first_row;
        for part in panel_parts(rows, first_row) {
            let panel = &stored[row / LANES * LANES * cols..][..LANES * cols];
            let values = &mut out[part.start * cols..part.end * cols];
            for (k, line) in panel.chunks_exact(LANES).enumerate() {
                for (i, &x) in line[row % LANES..][..part.len()].iter().enumerate() {
                    values[i * cols + k] = x;
                }
            }
            row += part.len();
        }
        out
    }

    /// Writes rows `first_row..` of a tensor from `values` of `[rows, cols]`, row by row.
    ///
    /// # Panics
    ///
    /// If `values` is not whole rows or they do not fit.
    pub fn write_rows(&mut self, spec: &ParamSpec, first_row: usize, values: &[f32]) {
        spec.write_rows(&mut self.data[spec.range()], first_row, values);
    }
}

impl ParamSpec {
    /// [`Params::write_rows`] into the tensor's own floats, as stored.
    ///
    /// # Panics
    ///
    /// If `values` is not whole rows or they do not fit.
    pub fn write_rows(&self, stored: &mut [f32], first_row: usize, values: &[f32]) {
        let (all_rows, cols) = self.shape.rows_cols();
        assert_eq!(values.len() % cols, 0, "{}: whole rows of {cols}", self.name);
        let rows = values.len() / cols;
        assert!(first_row + rows <= all_rows, "{}: rows {first_row}+{rows} of {all_rows}", self.name);
        let Shape::Matrix { .. } = self.shape else {
            stored[first_row * cols..][..values.len()].copy_from_slice(values);
            return;
        };
        let mut row = first_row;
        for part in panel_parts(rows, first_row) {
            let panel = &mut stored[row / LANES * LANES * cols..][..LANES * cols];
            let values = &values[part.start * cols..part.end * cols];
            // Along the panel, which is written once; the rows are some streams to read.
            for (k, line) in panel.chunks_exact_mut(LANES).enumerate() {
                for (i, x) in line[row % LANES..][..part.len()].iter_mut().enumerate() {
                    *x = values[i * cols + k];
                }
            }
            row += part.len();
        }
    }
}

/// Rows `0..rows` cut where one of the panels ends, if row 0 is stored as row `first_row`.
fn panel_parts(rows: usize, first_row: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let head = ((LANES - first_row % LANES) % LANES).min(rows);
    let whole = (head..rows).step_by(LANES).map(move |row| row..(row + LANES).min(rows));
    std::iter::once(0..head).filter(|head| !head.is_empty()).chain(whole)
}

/// Where the elements of one row of a panel matrix lie, column by column.
pub(crate) fn panel_row(cols: usize, row: usize) -> impl Iterator<Item = usize> {
    let start = row / LANES * LANES * cols + row % LANES;
    (0..cols).map(move |k| start + k * LANES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_survive_the_panels() {
        let spec = ParamSpec { name: "w".into(), shape: Shape::Matrix { rows: 37, cols: 3 }, offset: 16 };
        let mut params = Params::of(Buffer::zeros(16 + 64 * 3));
        let values: Vec<f32> = (0..37 * 3).map(|i| i as f32 + 1.0).collect();
        params.write_rows(&spec, 0, &values[..30]);
        params.write_rows(&spec, 10, &values[30..]);
        assert_eq!(params.read_rows(&spec, 0, 37), values);
        assert_eq!(params.read_rows(&spec, 33, 2), values[99..105]);
        // Row 33 is lane 1 of the second panel.
        assert_eq!(params.data[16 + 32 * 3 + 1], values[99]);
        // The padding stays zero, so it adds nothing to a norm.
        assert_eq!(params.data.iter().filter(|&&x| x != 0.0).count(), 37 * 3);
    }

    #[test]
    fn buffers_start_on_a_cache_line() {
        assert_eq!(Buffer::zeros(33).as_ptr() as usize % 64, 0);
        assert_eq!(Buffer::zeros(33).len(), 33);
    }
}
