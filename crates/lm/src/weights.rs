//! Which tensor of a Hugging Face file is which part of the decoder: one table per family, read in
//! both directions.
//!
//! The decoder keeps queries, keys and values in one matrix and gate and up in another
//! (`compute::params`), as Phi-3 does on disk; the other families store them apart, GPT-2 transposed
//! (`[in, out]`) and GPT-NeoX head by head. Each [`WeightEntry`] is one tensor of a file and its [`Part`] of one
//! tensor of the decoder, so loading, saving and "gradients by their name in the file" are the same
//! table walked differently, and a family cannot be loaded one way and saved another.
//!
//! What a file may hold beside the table: the buffers that old versions of Transformers saved (causal
//! masks, rotary frequencies), which are functions of the configuration and are ignored, and an output
//! matrix beside a tied table, which must equal the table.
//!
//! Not here: the container (`tensor_file`), the directory (`model`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use polity_compute::params::{ParamIndex, ParamSpec};
use polity_compute::{DecoderConfig, Head, Layout, NormPlace, Params, Shape};
use serde::Deserialize;

use crate::error::{LmError, Result};
use crate::hf_config::Family;
use crate::tensor_file::{TensorFile, WeightDtype, coordinates, is_weight_dtype, write};

/// The file of an unsharded model.
pub const WEIGHTS_FILE: &str = "model.safetensors";

/// The list of shards.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// Threads that read weights: more would wait for memory.
const THREADS_MAX: usize = 8;

/// One tensor of a Hugging Face file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightEntry {
    /// Its name in the file.
    pub name: String,
    /// Another name that some files use for it.
    alias: Option<&'static str>,
    /// Its shape in the file.
    pub shape: Vec<usize>,
    /// The decoder's tensor that it is part of.
    pub param: ParamIndex,
    /// Which part.
    part: Part,
}

/// How a file's tensor lies in the decoder's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Row `i` (element `i` of a vector) is the decoder's row `first + i`.
    Rows { first: usize },
    /// `[in, out]`, all of the decoder's `[out, in]`: GPT-2.
    Transposed,
    /// Rows ordered head, then q, k or v, then channel; the decoder's are ordered q, k or v, then head, then
    /// channel: GPT-NeoX.
    HeadByHead { heads: usize, head_dim: usize },
}

impl Part {
    /// The file's row that is row `row` of the decoder's tensor (for `Rows`, counted from `first`).
    fn file_row(self, row: usize) -> usize {
        match self {
            Part::Rows { .. } => row,
            Part::Transposed => unreachable!("columns, not rows"),
            Part::HeadByHead { heads, head_dim } => {
                let (qkv, head, channel) = (row / (heads * head_dim), row / head_dim % heads, row % head_dim);
                (head * 3 + qkv) * head_dim + channel
            }
        }
    }
}

/// The table of one model: every tensor that its files hold, sorted by name.
#[derive(Clone, Debug)]
pub struct WeightTable {
    entries: Vec<WeightEntry>,
    /// The prefix of the trunk's names, which a bare trunk's file lacks.
    prefix: &'static str,
    /// The output matrix's name, which a tied model's file may hold too.
    head_name: &'static str,
    /// Name of the embedding table.
    embed_name: String,
    tied: bool,
}

impl WeightTable {
    /// The table for a family and a shape.
    pub fn new(family: Family, config: &DecoderConfig, layout: &Layout) -> Self {
        let mut b = Builder { layout, config, entries: Vec::new() };
        let (prefix, head_name, embed_name) = match family {
            Family::Gpt2 => {
                b.gpt2();
                ("transformer.", "lm_head.weight", "transformer.wte.weight")
            }
            Family::GptNeox => {
                b.gpt_neox();
                ("gpt_neox.", "embed_out.weight", "gpt_neox.embed_in.weight")
            }
            _ => {
                b.llama_like(family);
                ("model.", "lm_head.weight", "model.embed_tokens.weight")
            }
        };
        let embed_alias = (config.head == Head::Tied).then_some("lm_head.weight");
        b.all(embed_name, layout.embed, embed_alias);
        match config.head {
            Head::Tied => {}
            Head::Untied => b.all(head_name, layout.head, Some("lm_head.weight")),
            Head::Scalar => {
                let shape = vec![1, config.width];
                let (name, part) = ("score.weight".into(), Part::Rows { first: 0 });
                b.entries.push(WeightEntry { name, alias: None, shape, param: layout.head, part });
            }
        }
        let mut entries = b.entries;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        let tied = config.head == Head::Tied;
        Self { entries, prefix, head_name, embed_name: embed_name.into(), tied }
    }

    /// The tensors, sorted by name.
    pub fn entries(&self) -> &[WeightEntry] {
        &self.entries
    }

    /// Values (weights, or gradients) as the file's tensors: name, shape, numbers row by row.
    pub fn export(&self, layout: &Layout, params: &Params) -> Vec<(String, Vec<usize>, Vec<f32>)> {
        self.entries
            .iter()
            .map(|entry| (entry.name.clone(), entry.shape.clone(), entry.read(layout, params)))
            .collect()
    }

    /// Writes `dir/model.safetensors`; the directory must not have one.
    pub(crate) fn save(
        &self,
        dir: &Path,
        layout: &Layout,
        params: &Params,
        dtype: WeightDtype,
    ) -> Result<()> {
        self.check_finite(layout, params)?;
        let tensors: Vec<_> = self.entries.iter().map(|e| (e.name.as_str(), e.shape.as_slice())).collect();
        write(&dir.join(WEIGHTS_FILE), dtype, &tensors, |i, put| {
            self.entries[i].read_in_pieces(layout, params, put)
        })
    }

    /// Fails on the first number that is not finite. Such a model could not be loaded again.
    pub fn check_finite(&self, layout: &Layout, params: &Params) -> Result<()> {
        if params.data.iter().all(|x| x.is_finite()) {
            return Ok(());
        }
        for entry in &self.entries {
            let values = entry.read(layout, params);
            if let Some(at) = values.iter().position(|x| !x.is_finite()) {
                let index = coordinates(at, &entry.shape);
                return Err(LmError::NotFinite { tensor: entry.name.clone(), index, value: values[at] });
            }
        }
        // Only padding, which is not written.
        Ok(())
    }

    /// Reads the weights of a directory. Every name, shape and type is checked before the first
    /// number is read or a byte allocated for it.
    pub(crate) fn load(&self, dir: &Path, layout: &Layout) -> Result<Params> {
        let files = open_all(dir)?;
        let found = self.match_names(dir, &files)?;
        let mut params = Params::zeros(layout);
        // Tensors of the file that are parts of one matrix are read by one thread.
        let mut parts: Vec<Vec<usize>> = vec![Vec::new(); layout.specs.len()];
        for (i, entry) in self.entries.iter().enumerate() {
            parts[entry.param].push(i);
        }
        let (mut work, mut rest, mut at) = (Vec::new(), &mut *params.data, 0);
        for (spec, parts) in layout.specs.iter().zip(parts) {
            let range = spec.range();
            let (stored, after) = rest[range.start - at..].split_at_mut(range.len());
            (rest, at) = (after, range.end);
            work.push((spec, stored, parts));
        }
        // The largest first, so that no thread is left alone with it.
        work.sort_by_key(|(_, stored, _)| stored.len());
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
        let work = Mutex::new(work);
        let failures = Mutex::new(BTreeMap::new());
        std::thread::scope(|scope| {
            let read = || {
                while let Some((spec, stored, parts)) = work.lock().expect("no panic while locked").pop() {
                    for i in parts {
                        let (name, file) = &found[i];
                        if let Err(error) = self.entries[i].load(name, file, spec, stored) {
                            failures.lock().expect("no panic while locked").insert(i, error);
                        }
                    }
                }
            };
            (1..threads).for_each(|_| drop(scope.spawn(read)));
            read();
        });
        // Of several, always the same one.
        match failures.into_inner().expect("no panic while locked").pop_first() {
            Some((_, error)) => Err(error),
            None => Ok(params),
        }
    }

    /// For each entry, the name it has in the files and the file.
    fn match_names<'f>(&self, dir: &Path, files: &'f [TensorFile]) -> Result<Vec<(String, &'f TensorFile)>> {
        let mut by_name: BTreeMap<&str, &TensorFile> = BTreeMap::new();
        for file in files {
            for name in file.tensors.keys() {
                if let Some(other) = by_name.insert(name, file) {
                    let found = format!("it in {} too", other.file.display());
                    return Err(LmError::tensor(&file.file, name, found, "each tensor in one shard", ""));
                }
            }
        }
        let where_ = match files {
            [one] => one.file.clone(),
            _ => dir.join(INDEX_FILE),
        };
        // A trunk saved on its own has no prefix.
        let bare = !by_name.keys().any(|name| name.starts_with(self.prefix));
        let mut used = BTreeSet::new();
        let mut found = Vec::with_capacity(self.entries.len());
        for entry in &self.entries {
            let own =
                if bare { entry.name.strip_prefix(self.prefix).unwrap_or(&entry.name) } else { &entry.name };
            let name = [Some(own), entry.alias].into_iter().flatten().find(|name| by_name.contains_key(name));
            let Some(name) = name else {
                return Err(self.missing(&where_, entry, &by_name));
            };
            let file = by_name[name];
            let info = &file.tensors[name];
            if info.shape != entry.shape {
                let hint = "config.json and the weights are not of the same model";
                let (is, must) = (format!("shape {:?}", info.shape), format!("shape {:?}", entry.shape));
                return Err(LmError::tensor(&file.file, name, is, must, hint));
            }
            if !is_weight_dtype(&info.dtype) {
                let hint = "convert the weights to float32, bfloat16 or float16";
                return Err(LmError::tensor(&file.file, name, &info.dtype, "F32, BF16 or F16", hint));
            }
            used.insert(name);
            found.push((name.to_owned(), file));
        }
        for (&name, &file) in &by_name {
            if used.contains(name) || is_buffer(name) {
                continue;
            }
            if self.tied && (name == self.head_name || name == "lm_head.weight") {
                self.check_tied(name, file, &found)?;
                continue;
            }
            let shape = &file.tensors[name].shape;
            return Err(LmError::tensor(
                &file.file,
                name,
                format!("a tensor of shape {shape:?}"),
                "no such tensor in this model",
                self.surplus_hint(name),
            ));
        }
        Ok(found)
    }

    fn missing(&self, file: &Path, entry: &WeightEntry, by_name: &BTreeMap<&str, &TensorFile>) -> LmError {
        let hint = if entry.name == self.head_name {
            "if the output matrix is the embedding table, config.json must say tie_word_embeddings = true"
                .into()
        } else if entry.name == "score.weight" {
            "config.json describes a reward model, the weights are of a language model".into()
        } else {
            match by_name.keys().next() {
                Some(name) => format!("the file has names like `{name}`; config.json does not match it"),
                None => "the file is empty".into(),
            }
        };
        LmError::tensor(file, &entry.name, "no such tensor", format!("one of shape {:?}", entry.shape), hint)
    }

    fn surplus_hint(&self, name: &str) -> &'static str {
        if name == "score.weight" {
            "the weights are of a reward model, but `architectures` in config.json is not"
        } else if name.contains("lora_") {
            "a LoRA adapter belongs into adapter_model.safetensors, with its adapter_config.json and no config.json"
        } else if name.ends_with(".bias") {
            "config.json may lack `attention_bias` or `mlp_bias`"
        } else {
            "ignoring it would compute something else than the model does"
        }
    }

    /// An output matrix beside a tied table must be the table.
    fn check_tied(&self, name: &str, file: &TensorFile, found: &[(String, &TensorFile)]) -> Result<()> {
        let at = self.entries.iter().position(|e| e.name == self.embed_name).expect("every model embeds");
        let (embed_name, embed_file) = &found[at];
        let shape = &self.entries[at].shape;
        let info = &file.tensors[name];
        let differs = |found: String| {
            let hint = "set tie_word_embeddings = false in config.json to use it as a matrix of its own";
            Err(LmError::tensor(&file.file, name, found, format!("a copy of `{embed_name}`"), hint))
        };
        if info.shape != *shape || !is_weight_dtype(&info.dtype) {
            return differs(format!("{} of shape {:?}", info.dtype, info.shape));
        }
        let (rows, cols) = (shape[0], shape[1]);
        let (mut head, mut embed) = (Vec::new(), Vec::new());
        for row in 0..rows {
            head.clear();
            embed.clear();
            file.read(name, row * cols..(row + 1) * cols, &mut head)?;
            embed_file.read(embed_name, row * cols..(row + 1) * cols, &mut embed)?;
            if head != embed {
                return differs(format!("other numbers in row {row}"));
            }
        }
        Ok(())
    }
}

/// Buffers that old versions of Transformers saved with the weights: causal masks (`attn.bias`,
/// `attn.masked_bias`) and rotary frequencies. They follow from the configuration.
fn is_buffer(name: &str) -> bool {
    const ENDS: [&str; 5] = [
        ".attn.bias",
        ".attn.masked_bias",
        ".attention.bias",
        ".attention.masked_bias",
        "rotary_emb.inv_freq",
    ];
    ENDS.iter().any(|end| name.ends_with(end))
}

/// Rows converted at a time: enough to stream, little to hold.
const ROWS: usize = 64;

impl WeightEntry {
    /// The file's numbers, row by row, out of the decoder's.
    pub(crate) fn read(&self, layout: &Layout, params: &Params) -> Vec<f32> {
        let spec = &layout.specs[self.param];
        let elements = self.shape.iter().product();
        if let Shape::Vector { .. } = spec.shape {
            let stored = &params.data[spec.range()];
            return match self.part {
                Part::Rows { first } => stored[first..][..elements].to_vec(),
                part => {
                    let mut out = vec![0.0; elements];
                    for (row, &value) in stored[..elements].iter().enumerate() {
                        out[part.file_row(row)] = value;
                    }
                    out
                }
            };
        }
        let (rows, cols) = spec.shape.rows_cols();
        match self.part {
            Part::Rows { first } => params.read_rows(spec, first, self.shape[0]),
            Part::Transposed => transposed(&params.read_rows(spec, 0, rows), cols),
            part => {
                let mut out = vec![0.0; elements];
                for row in 0..rows {
                    out[part.file_row(row) * cols..][..cols].copy_from_slice(&params.read_rows(spec, row, 1));
                }
                out
            }
        }
    }

    /// The same in pieces, where a whole one would be large.
    pub(crate) fn read_in_pieces(
        &self,
        layout: &Layout,
        params: &Params,
        put: &mut dyn FnMut(&[f32]) -> Result<()>,
    ) -> Result<()> {
        let spec = &layout.specs[self.param];
        let (Part::Rows { first }, Shape::Matrix { .. } | Shape::Table { .. }) = (self.part, spec.shape)
        else {
            return put(&self.read(layout, params));
        };
        let rows = self.shape[0];
        (0..rows)
            .step_by(ROWS)
            .try_for_each(|row| put(&params.read_rows(spec, first + row, ROWS.min(rows - row))))
    }

    /// The file's numbers into the decoder's place, which is `stored`.
    fn load(&self, name: &str, file: &TensorFile, spec: &ParamSpec, stored: &mut [f32]) -> Result<()> {
        let cols = self.cols(spec);
        let rows = self.shape.iter().product::<usize>() / cols.max(1);
        let mut values = Vec::new();
        if let (Part::Rows { first }, Shape::Matrix { .. } | Shape::Table { .. }) = (self.part, spec.shape) {
            for row in (0..rows).step_by(ROWS) {
                values.clear();
                let end = (row + ROWS).min(rows);
                file.read(name, row * cols..end * cols, &mut values)?;
                spec.write_rows(stored, first + row, &values);
            }
            return Ok(());
        }
        file.read(name, 0..rows * cols, &mut values)?;
        self.write_stored(spec, stored, &values);
        Ok(())
    }

    /// The file's numbers, all of them, into the decoder's place.
    pub(crate) fn write(&self, layout: &Layout, params: &mut Params, values: &[f32]) {
        let spec = &layout.specs[self.param];
        self.write_stored(spec, &mut params.data[spec.range()], values);
    }

    fn write_stored(&self, spec: &ParamSpec, stored: &mut [f32], values: &[f32]) {
        match (self.part, spec.shape) {
            (Part::Rows { first }, Shape::Matrix { .. } | Shape::Table { .. }) => {
                spec.write_rows(stored, first, values);
            }
            (Part::Rows { first }, Shape::Vector { .. }) => {
                stored[first..][..values.len()].copy_from_slice(values);
            }
            (Part::Transposed, _) => {
                // `[in, out]` read as rows of `out`; the decoder's rows are the columns.
                let out = self.shape[1];
                spec.write_rows(stored, 0, &transposed(values, out));
            }
            (part, Shape::Vector { .. }) => {
                for row in 0..values.len() {
                    stored[row] = values[part.file_row(row)];
                }
            }
            (part, _) => {
                let cols = self.cols(spec);
                for (row, _) in values.chunks_exact(cols).enumerate() {
                    spec.write_rows(stored, row, &values[part.file_row(row) * cols..][..cols]);
                }
            }
        }
    }

    /// `(out, in)` of a linear map's weight; `None` for every other tensor.
    pub(crate) fn linear(&self, layout: &Layout) -> Option<(usize, usize)> {
        let of_layer = self.param != layout.embed && self.param != layout.head;
        match (layout.specs[self.param].shape, self.part) {
            (Shape::Matrix { .. }, Part::Transposed) if of_layer => Some((self.shape[1], self.shape[0])),
            (Shape::Matrix { .. }, _) if of_layer => Some((self.shape[0], self.shape[1])),
            _ => None,
        }
    }

    /// A linear map's numbers as `[out, in]`, whichever way the file has them.
    pub(crate) fn read_linear(&self, layout: &Layout, params: &Params) -> Vec<f32> {
        let spec = &layout.specs[self.param];
        match self.part {
            Part::Transposed => params.read_rows(spec, 0, self.shape[1]),
            _ => self.read(layout, params),
        }
    }

    /// The same into the decoder's place.
    pub(crate) fn write_linear(&self, layout: &Layout, params: &mut Params, values: &[f32]) {
        match self.part {
            Part::Transposed => params.write_rows(&layout.specs[self.param], 0, values),
            _ => self.write(layout, params, values),
        }
    }

    fn cols(&self, spec: &ParamSpec) -> usize {
        match spec.shape {
            Shape::Vector { .. } => 1,
            Shape::Matrix { cols, .. } | Shape::Table { cols, .. } => cols,
        }
    }
}

/// `[rows, cols]`, row by row, turned into `[cols, rows]`.
fn transposed(values: &[f32], cols: usize) -> Vec<f32> {
    let rows = values.len() / cols;
    (0..cols).flat_map(|col| (0..rows).map(move |row| values[row * cols + col])).collect()
}

/// Opens `model.safetensors`, or every shard of the index.
fn open_all(dir: &Path) -> Result<Vec<TensorFile>> {
    let single = dir.join(WEIGHTS_FILE);
    if single.exists() {
        return Ok(vec![TensorFile::open(&single)?]);
    }
    let index = dir.join(INDEX_FILE);
    if !index.exists() {
        let has = |name: &str| dir.join(name).exists();
        let hint = if has("pytorch_model.bin") || has("pytorch_model.bin.index.json") {
            "pickled weights can run code when they are read and are not supported: save the model again with \
             safe_serialization=True"
        } else if has(crate::adapter::WEIGHTS_FILE) {
            "config.json and a LoRA adapter in one directory: an adapter's directory has adapter_config.json instead"
        } else {
            "a model directory has config.json and model.safetensors"
        };
        return Err(LmError::file(dir, "no weights", format!("{WEIGHTS_FILE} or {INDEX_FILE}"), hint));
    }
    open_shards(dir, &index)
}

fn open_shards(dir: &Path, index: &Path) -> Result<Vec<TensorFile>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = std::fs::read_to_string(index).map_err(|e| LmError::io(index, "read", e))?;
    let Index { weight_map } = serde_json::from_str(&text).map_err(|e| LmError::json(index, &e))?;
    let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, shard) in &weight_map {
        let plain = Path::new(shard).components().count() == 1 && PathBuf::from(shard).file_name().is_some();
        if !plain {
            let key = format!("weight_map.{tensor}");
            return Err(LmError::key(
                index,
                key,
                format!("{shard:?}"),
                "the name of a file beside the index",
                "",
            ));
        }
        shards.entry(shard).or_default().push(tensor);
    }
    if shards.is_empty() {
        return Err(LmError::key(index, "weight_map", "no tensors", "the shard of each tensor", ""));
    }
    let mut files = Vec::with_capacity(shards.len());
    for (shard, tensors) in shards {
        let path = dir.join(shard);
        if !path.exists() {
            return Err(LmError::file(
                &path,
                "no such file",
                format!("the shard of {} tensors that {INDEX_FILE} lists", tensors.len()),
                "the download is incomplete",
            ));
        }
        let file = TensorFile::open(&path)?;
        if let Some(tensor) = tensors.iter().find(|&&tensor| !file.tensors.contains_key(tensor)) {
            let hint = "the shards and the index are not of the same model";
            return Err(LmError::tensor(
                &path,
                *tensor,
                "no such tensor",
                format!("it, as {INDEX_FILE} says"),
                hint,
            ));
        }
        files.push(file);
    }
    Ok(files)
}

/// Fills a table, layer by layer.
struct Builder<'a> {
    layout: &'a Layout,
    config: &'a DecoderConfig,
    entries: Vec<WeightEntry>,
}

impl Builder<'_> {
    /// The file's tensor is the decoder's.
    fn all(&mut self, name: impl Into<String>, param: ParamIndex, alias: Option<&'static str>) {
        let shape = match self.layout.specs[param].shape {
            Shape::Vector { len } => vec![len],
            Shape::Matrix { rows, cols } | Shape::Table { rows, cols } => vec![rows, cols],
        };
        let part = Part::Rows { first: 0 };
        self.entries.push(WeightEntry { name: name.into(), alias, shape, param, part });
    }

    /// The file's tensor is `rows` rows of the decoder's.
    fn rows(&mut self, name: String, param: ParamIndex, first: usize, rows: usize) {
        let shape = match self.layout.specs[param].shape {
            Shape::Vector { .. } => vec![rows],
            Shape::Matrix { cols, .. } | Shape::Table { cols, .. } => vec![rows, cols],
        };
        self.entries.push(WeightEntry { name, alias: None, shape, param, part: Part::Rows { first } });
    }

    fn transposed(&mut self, name: String, param: ParamIndex) {
        let (rows, cols) = self.layout.specs[param].shape.rows_cols();
        let (shape, part) = (vec![cols, rows], Part::Transposed);
        self.entries.push(WeightEntry { name, alias: None, shape, param, part });
    }

    fn llama_like(&mut self, family: Family) {
        let (layout, config) = (self.layout, self.config);
        let (h, g) = (config.q_width(), config.kv_width());
        for (l, layer) in layout.layers.iter().enumerate() {
            let name = |part: &str| format!("model.layers.{l}.{part}.weight");
            let bias = |part: &str| format!("model.layers.{l}.{part}.bias");
            // The norm between attention and feed-forward stands after the one or before the other.
            let mlp_norm = match config.norm_place {
                NormPlace::Pre => "post_attention_layernorm",
                _ => "pre_feedforward_layernorm",
            };
            let norms = [
                (layer.attn_norm, "input_layernorm"),
                (layer.attn_post_norm, "post_attention_layernorm"),
                (layer.mlp_norm, mlp_norm),
                (layer.mlp_post_norm, "post_feedforward_layernorm"),
            ];
            for (norm, part) in norms {
                if let Some(norm) = norm {
                    self.all(name(part), norm.weight, None);
                }
            }
            for (norm, part) in [(layer.q_norm, "self_attn.q_norm"), (layer.k_norm, "self_attn.k_norm")] {
                if let Some(weight) = norm {
                    self.all(name(part), weight, None);
                }
            }
            if family == Family::Phi3 {
                self.all(name("self_attn.qkv_proj"), layer.qkv.weight, None);
                self.all(name("mlp.gate_up_proj"), layer.up.weight, None);
            } else {
                let f = config.ffn;
                let parts = [
                    ("self_attn.q_proj", layer.qkv, 0, h),
                    ("self_attn.k_proj", layer.qkv, h, g),
                    ("self_attn.v_proj", layer.qkv, h + g, g),
                    ("mlp.gate_proj", layer.up, 0, f),
                    ("mlp.up_proj", layer.up, f, f),
                ];
                for (part, linear, first, rows) in parts {
                    self.rows(name(part), linear.weight, first, rows);
                    if let Some(b) = linear.bias {
                        self.rows(bias(part), b, first, rows);
                    }
                }
            }
            for (linear, part) in [(layer.attn_out, "self_attn.o_proj"), (layer.down, "mlp.down_proj")] {
                self.all(name(part), linear.weight, None);
                if let Some(b) = linear.bias {
                    self.all(bias(part), b, None);
                }
            }
        }
        self.all("model.norm.weight", layout.final_norm.weight, None);
    }

    fn gpt2(&mut self) {
        let layout = self.layout;
        for (l, layer) in layout.layers.iter().enumerate() {
            let linears = [
                (layer.qkv, "attn.c_attn"),
                (layer.attn_out, "attn.c_proj"),
                (layer.up, "mlp.c_fc"),
                (layer.down, "mlp.c_proj"),
            ];
            for (linear, part) in linears {
                self.transposed(format!("transformer.h.{l}.{part}.weight"), linear.weight);
                self.all(
                    format!("transformer.h.{l}.{part}.bias"),
                    linear.bias.expect("GPT-2 has biases"),
                    None,
                );
            }
            for (norm, part) in [(layer.attn_norm, "ln_1"), (layer.mlp_norm, "ln_2")] {
                let norm = norm.expect("GPT-2 normalises before each block");
                self.layer_norm(&format!("transformer.h.{l}.{part}"), norm);
            }
        }
        self.layer_norm("transformer.ln_f", layout.final_norm);
        let positions = layout.position_embed.expect("GPT-2 learns its positions");
        self.all("transformer.wpe.weight", positions, None);
    }

    fn gpt_neox(&mut self) {
        let (layout, config) = (self.layout, self.config);
        let part = Part::HeadByHead { heads: config.heads, head_dim: config.head_dim };
        for (l, layer) in layout.layers.iter().enumerate() {
            let name = |part: &str| format!("gpt_neox.layers.{l}.{part}");
            let qkv = [(Some(layer.qkv.weight), "weight"), (layer.qkv.bias, "bias")];
            for (param, what) in qkv {
                if let Some(param) = param {
                    self.all(name(&format!("attention.query_key_value.{what}")), param, None);
                    self.entries.last_mut().expect("just pushed").part = part;
                }
            }
            let linears = [
                (layer.attn_out, "attention.dense"),
                (layer.up, "mlp.dense_h_to_4h"),
                (layer.down, "mlp.dense_4h_to_h"),
            ];
            for (linear, part) in linears {
                self.all(name(&format!("{part}.weight")), linear.weight, None);
                if let Some(bias) = linear.bias {
                    self.all(name(&format!("{part}.bias")), bias, None);
                }
            }
            let norms = [(layer.attn_norm, "input_layernorm"), (layer.mlp_norm, "post_attention_layernorm")];
            for (norm, part) in norms {
                self.layer_norm(&name(part), norm.expect("GPT-NeoX normalises before each block"));
            }
        }
        self.layer_norm("gpt_neox.final_layer_norm", layout.final_norm);
    }

    fn layer_norm(&mut self, name: &str, norm: polity_compute::params::NormParams) {
        self.all(format!("{name}.weight"), norm.weight, None);
        self.all(format!("{name}.bias"), norm.bias.expect("a LayerNorm has a bias"), None);
    }
}
