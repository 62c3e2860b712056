//! A model directory: configuration, weights, generation defaults and tokenizer, in and out.
//!
//! [`Model::save`] is all or nothing. The new directory is written beside the old one under a hidden
//! name, every file and the directory itself are flushed to the disk, and then the two change places in
//! one step (`renameat2` with exchange; a plain rename where nothing was there before). Whoever opens
//! the directory at any time, after a crash too, finds the old model or the new one, whole.
//!
//! Files that Polity does not interpret (the tokenizer's, the chat template, `generation_config.json`) are
//! kept in memory as they were read and written back byte for byte.
//!
//! Not here: what the numbers mean (`hf_config`), which tensor goes where (`weights`).

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use polity_compute::{DecoderConfig, Head, Layout, Params};
use serde_json::{Map, Value};

use crate::adapter;
use crate::chat::ChatTemplate;
use crate::error::{LmError, Result};
use crate::hf_config::{HfConfig, token_ids};
use crate::rng::Stream;
use crate::tensor_file::WeightDtype;
use crate::tokenizer::Tokenizer;
use crate::weights::{INDEX_FILE, WeightTable};

/// The configuration's file.
pub const CONFIG_FILE: &str = "config.json";

const GENERATION_FILE: &str = "generation_config.json";

/// Files that go with a model and are copied as they are.
const COMPANIONS: [&str; 10] = [
    GENERATION_FILE,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
];

/// A language model, or a reward model if its head is a scalar.
#[derive(Clone, Debug)]
pub struct Model {
    /// The `config.json`, whole.
    pub hf: HfConfig,
    /// The decoder it describes.
    pub config: DecoderConfig,
    /// Where each tensor lies in `params`.
    pub layout: Layout,
    /// The weights.
    pub params: Params,
    /// Special token ids for generation.
    pub generation: GenerationDefaults,
    /// Absent where the directory has no `tokenizer.json`.
    pub tokenizer: Option<Tokenizer>,
    /// Absent where the directory has no chat template.
    pub chat: Option<ChatTemplate>,
    /// Name and bytes of the files that are copied through.
    companions: Arc<Vec<(String, Vec<u8>)>>,
}

/// Special token ids, from `generation_config.json`, else `config.json`, else the tokenizer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GenerationDefaults {
    /// Any of these ends a response.
    pub eos: Vec<u32>,
    /// What others pad with; nothing here is ever padded.
    pub pad: Option<u32>,
    /// What a text begins with, where the tokenizer adds it.
    pub bos: Option<u32>,
}

/// Standard deviation of a fresh scalar head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScalarInit {
    /// `initializer_range` of the configuration, as Transformers initialises `score`.
    InitializerRange,
    /// `1 / sqrt(c + 1)`, as in OpenAI's 2019 reward models and their replications.
    InverseSqrtWidth,
}

impl Model {
    /// Reads a directory. A LoRA adapter's is read with its base model, and merged.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        if !dir.is_dir() {
            let found = if dir.exists() { "a file" } else { "nothing" };
            let hint = "models are read from local directories as Transformers saves them";
            return Err(LmError::file(dir, found, "a model directory", hint));
        }
        let config_file = dir.join(CONFIG_FILE);
        if !config_file.exists() {
            if dir.join(adapter::CONFIG_FILE).exists() {
                return adapter::load_merged(dir);
            }
            let hint = "a model directory has config.json and model.safetensors";
            return Err(LmError::file(&config_file, "no such file", "the model's configuration", hint));
        }
        let hf = HfConfig::parse(&config_file, &read_text(&config_file)?)?;
        let config = hf.decoder()?;
        let companions = read_companions(dir)?;
        let layout = Layout::new(&config);
        let table = WeightTable::new(hf.family(), &config, &layout);
        // For a small model, reading the tokenizer takes as long as reading the weights.
        let (tokenizer, params) = std::thread::scope(|scope| {
            let tokenizer = scope.spawn(|| Tokenizer::load(dir, &hf));
            let params = table.load(dir, &layout);
            (tokenizer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), params)
        });
        let tokenizer = tokenizer?;
        if let Some(tokenizer) = &tokenizer {
            tokenizer.check_vocabulary(config.vocab)?;
        }
        let chat = load_chat(dir, tokenizer.as_ref())?;
        let generation = GenerationDefaults::read(dir, &hf, tokenizer.as_ref())?;
        let params = params?;
        let companions = Arc::new(companions);
        Ok(Self { hf, config, layout, params, generation, tokenizer, chat, companions })
    }

    /// A model with fresh weights, as Transformers initialises them: matrices `N(0, initializer_range)`,
    /// norms 1 (0 for Gemma, which adds 1), biases 0; GPT-2's projections into the residual stream by
    /// `1 / sqrt(2 l)` smaller. The same seed gives the same weights on every machine with the same `libm`.
    pub fn init(hf: HfConfig, seed: u64) -> Result<Self> {
        let config = hf.decoder()?;
        let std = hf.initializer_range()?;
        let layout = Layout::new(&config);
        let params = crate::init::fresh(hf.family(), &config, &layout, std, seed);
        let generation = GenerationDefaults::from_config(&hf)?;
        let companions = Arc::default();
        Ok(Self { hf, config, layout, params, generation, tokenizer: None, chat: None, companions })
    }

    /// The same model with the tokenizer and the other companion files of a directory.
    pub fn with_tokenizer_of(mut self, dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        self.companions = Arc::new(read_companions(dir)?);
        self.tokenizer = Tokenizer::load(dir, &self.hf)?;
        if let Some(tokenizer) = &self.tokenizer {
            tokenizer.check_vocabulary(self.config.vocab)?;
        }
        self.chat = load_chat(dir, self.tokenizer.as_ref())?;
        self.generation = GenerationDefaults::read(dir, &self.hf, self.tokenizer.as_ref())?;
        Ok(self)
    }

    /// The tokenizer, or an error that says that the directory had none.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| {
            let dir = self.hf.file().parent().unwrap_or(Path::new(""));
            let hint = "save it with a fast tokenizer: tokenizer.save_pretrained(dir); or give rows of ids";
            LmError::file(dir, "no tokenizer.json", "the model's tokenizer", hint)
        })
    }

    /// The chat template, or an error that says that the directory had none.
    pub fn chat_template(&self) -> Result<&ChatTemplate> {
        self.chat.as_ref().ok_or_else(|| {
            let dir = self.hf.file().parent().unwrap_or(Path::new(""));
            let hint = "a model that was not trained on conversations has none: give `prompt` rows, or put a \
                        chat_template.jinja beside the model";
            LmError::file(dir, "no chat_template.jinja", "the model's chat template", hint)
        })
    }

    /// Number of ids that the tokenizer can decode; the rows of the embedding table beyond it are padding
    /// and must never be sampled. All rows where there is no tokenizer.
    pub fn tokenizer_vocab(&self) -> usize {
        self.tokenizer.as_ref().map_or(self.config.vocab, |t| t.vocab_len().min(self.config.vocab))
    }

    /// Weights or gradients of this model by the names that a Hugging Face file gives them.
    pub fn export_by_hf_name(&self, params: &Params) -> Vec<(String, Vec<usize>, Vec<f32>)> {
        self.table().export(&self.layout, params)
    }

    /// A reward model on this model's trunk, with a fresh scalar head.
    pub fn with_scalar_head(&self, seed: u64, init: ScalarInit) -> Result<Self> {
        let pad = self.tokenizer.as_ref().and_then(|t| t.special().pad).or(self.generation.pad);
        // A pad token that also ends responses would make Transformers read one token early.
        let pad = pad.filter(|pad| !self.generation.eos.contains(pad));
        let hf = self.hf.with_scalar_head(pad);
        let mut model = self.with_head(hf)?;
        let std = match init {
            ScalarInit::InitializerRange => self.hf.initializer_range()?,
            ScalarInit::InverseSqrtWidth => (1.0 / (self.config.width as f64 + 1.0).sqrt()) as f32,
        };
        let mut stream = Stream::new(seed, "init", &[crate::init::SCORE]);
        let head = model.layout.head;
        for value in model.params.slice_mut(&model.layout, head) {
            *value = std * stream.normal() as f32;
        }
        Ok(model)
    }

    /// The language model on this reward model's trunk. Only where the embedding table is the output
    /// matrix: elsewhere a reward model does not have one.
    pub fn with_token_head(&self) -> Result<Self> {
        if self.config.head != Head::Scalar {
            return Ok(self.clone());
        }
        if !self.hf.tied()? {
            return Err(LmError::Unsupported {
                what: "this reward model has no output matrix for tokens (tie_word_embeddings = false)"
                    .into(),
                hint: "start from the language model it was made of".into(),
            });
        }
        self.with_head(self.hf.with_token_head())
    }

    /// Another head on a copy of the trunk; the head's own tensor is zero.
    fn with_head(&self, hf: HfConfig) -> Result<Self> {
        let config = hf.decoder()?;
        let layout = Layout::new(&config);
        let mut params = Params::zeros(&layout);
        for spec in &layout.specs {
            if let Some(old) = self.layout.find(&spec.name).filter(|old| old.shape == spec.shape) {
                params.data[spec.range()].copy_from_slice(&self.params.data[old.range()]);
            }
        }
        Ok(Self { hf, config, layout, params, ..self.clone_without_params() })
    }

    /// The small parts, for struct update syntax.
    fn clone_without_params(&self) -> Self {
        Self {
            hf: self.hf.clone(),
            config: self.config.clone(),
            layout: self.layout.clone(),
            params: Params::of(polity_compute::params::Buffer::default()),
            generation: self.generation.clone(),
            tokenizer: self.tokenizer.clone(),
            chat: self.chat.clone(),
            companions: Arc::clone(&self.companions),
        }
    }

    /// A hash of what the model computes: the configuration's keys that matter and every weight. The
    /// same for a model in memory, saved in f32 and loaded again.
    pub fn hash(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        let config = self.hf.canonical_text();
        hasher.update(&(config.len() as u64).to_le_bytes());
        hasher.update(config.as_bytes());
        for spec in &self.layout.specs {
            hasher.update(spec.name.as_bytes());
            // In the stored order, which the name and the shape fix; padding is zero.
            for chunk in self.params.data[spec.range()].chunks(1 << 14) {
                if cfg!(target_endian = "little") {
                    hasher.update(bytemuck::cast_slice(chunk));
                } else {
                    chunk.iter().for_each(|x| {
                        hasher.update(&x.to_le_bytes());
                    });
                }
            }
        }
        hasher.finalize()
    }

    /// Writes the directory in f32; see the module for what a crash leaves.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        self.save_as(dir, WeightDtype::F32)
    }

    /// Writes the directory with weights of a chosen type.
    pub fn save_as(&self, dir: impl AsRef<Path>, dtype: WeightDtype) -> Result<()> {
        replace_directory(dir.as_ref(), |new| {
            let config = self.hf.with_dtype(dtype.config_name());
            write_file(&new.join(CONFIG_FILE), config.to_text().as_bytes())?;
            for (name, bytes) in self.companions.iter() {
                write_file(&new.join(name), bytes)?;
            }
            self.table().save(new, &self.layout, &self.params, dtype)
        })
    }

    /// The table of this model's tensors.
    pub fn table(&self) -> WeightTable {
        WeightTable::new(self.hf.family(), &self.config, &self.layout)
    }
}

impl GenerationDefaults {
    /// The ids that end a response, and the others, of a configuration alone.
    pub fn from_config(hf: &HfConfig) -> Result<Self> {
        Ok(Self {
            eos: hf.token_ids("eos_token_id")?,
            pad: hf.token_ids("pad_token_id")?.first().copied(),
            bos: hf.token_ids("bos_token_id")?.first().copied(),
        })
    }

    fn read(dir: &Path, hf: &HfConfig, tokenizer: Option<&Tokenizer>) -> Result<Self> {
        let mut out = Self::from_config(hf)?;
        let file = dir.join(GENERATION_FILE);
        if file.exists() {
            let map = read_object(&file)?;
            let eos = token_ids(&map, "eos_token_id", &file)?;
            if !eos.is_empty() {
                out.eos = eos;
            }
            out.pad = token_ids(&map, "pad_token_id", &file)?.first().copied().or(out.pad);
            out.bos = token_ids(&map, "bos_token_id", &file)?.first().copied().or(out.bos);
        }
        if let Some(tokenizer) = tokenizer {
            let special = tokenizer.special();
            if out.eos.is_empty() {
                out.eos.extend(special.eos);
            }
            out.pad = out.pad.or(special.pad);
            out.bos = out.bos.or(special.bos);
        }
        Ok(out)
    }
}

pub(crate) fn read_text(file: &Path) -> Result<String> {
    fs::read_to_string(file).map_err(|e| LmError::io(file, "read", e))
}

/// A JSON file that must hold an object.
pub(crate) fn read_object(file: &Path) -> Result<Map<String, Value>> {
    match serde_json::from_str(&read_text(file)?).map_err(|e| LmError::json(file, &e))? {
        Value::Object(map) => Ok(map),
        _ => Err(LmError::file(file, "something else", "a JSON object", "")),
    }
}

fn load_chat(dir: &Path, tokenizer: Option<&Tokenizer>) -> Result<Option<ChatTemplate>> {
    // Without a tokenizer a template has nothing to put into ids.
    tokenizer.map_or(Ok(None), |tokenizer| ChatTemplate::load(dir, tokenizer.special_texts()))
}

fn read_companions(dir: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    COMPANIONS
        .iter()
        .map(|name| (name, dir.join(name)))
        .filter(|(_, file)| file.is_file())
        .map(|(name, file)| {
            let bytes = fs::read(&file).map_err(|e| LmError::io(&file, "read", e))?;
            Ok(((*name).to_owned(), bytes))
        })
        .collect()
}

/// Writes a new file and waits until it is on the disk.
pub(crate) fn write_file(file: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write;
    let mut out = File::create_new(file).map_err(|e| LmError::io(file, "create", e))?;
    out.write_all(bytes).and_then(|()| out.sync_all()).map_err(|e| LmError::io(file, "write", e))
}

/// Fills a new directory with `fill` and puts it in the place of `dir` in one step.
pub(crate) fn replace_directory(dir: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    // A symbolic link keeps pointing where it does; what it points at is replaced.
    let dir = if dir.is_symlink() {
        fs::canonicalize(dir).map_err(|e| LmError::io(dir, "follow", e))?
    } else {
        dir.to_owned()
    };
    let Some(name) = dir.file_name() else {
        return Err(LmError::file(&dir, "a path without a name", "a directory to write a model into", ""));
    };
    let parent = match dir.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    refuse_to_replace_what_is_not_a_model(&dir)?;
    fs::create_dir_all(&parent).map_err(|e| LmError::io(&parent, "create", e))?;

    remove_abandoned(&parent, name);
    let new = Scratch::create(&parent, name)?;
    fill(&new.path)?;
    sync_directory(&new.path)?;
    // `new` holds the old model afterwards, if there was one, and removes it when it is dropped.
    swap(&new.path, &dir)?;
    sync_directory(&parent)
}

/// A directory that is removed when the value goes, whatever is in it then.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// `.NAME.saving-PROCESS-COUNT` in `parent`: no other save has this name.
    fn create(parent: &Path, name: &OsStr) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let mut hidden = scratch_prefix(name);
        hidden.push(format!("{}-{count}", std::process::id()));
        let path = parent.join(hidden);
        if path.exists() {
            // This process has not used the name, so an earlier one with its number did, and was killed: in
            // a container the number is always the same.
            fs::remove_dir_all(&path).map_err(|e| LmError::io(&path, "remove", e))?;
        }
        fs::create_dir(&path).map_err(|e| LmError::io(&path, "create", e))?;
        Ok(Self { path })
    }
}

fn scratch_prefix(name: &OsStr) -> OsString {
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push(".saving-");
    prefix
}

/// Removes what processes that were killed while saving `name` have left. Best effort: whatever stays is
/// hidden, named after its purpose, and never read.
fn remove_abandoned(parent: &Path, name: &OsStr) {
    let prefix = scratch_prefix(name);
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let file_name = entry.file_name();
        let rest = file_name.as_encoded_bytes().strip_prefix(prefix.as_encoded_bytes());
        let process =
            rest.and_then(|rest| std::str::from_utf8(rest).ok()?.split('-').next()?.parse::<u32>().ok());
        // Elsewhere than on Linux there is no cheap way to know.
        let gone = |process| cfg!(target_os = "linux") && !Path::new(&format!("/proc/{process}")).exists();
        if process.is_some_and(gone) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing to report to: what stays is hidden and named after its purpose.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Puts `new` where `dir` is. What was in `dir` is in `new` afterwards, or nothing is.
fn swap(new: &Path, dir: &Path) -> Result<()> {
    let io = |e: std::io::Error| LmError::io(dir, "replace", e);
    if !dir.exists() {
        return fs::rename(new, dir).map_err(io);
    }
    #[cfg(any(target_os = "linux", target_vendor = "apple"))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, new, CWD, dir, RenameFlags::EXCHANGE) {
            Ok(()) => return Ok(()),
            // A file system that cannot: fall through.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::NOTSUP) => {}
            Err(e) => return Err(io(e.into())),
        }
    }
    // Two steps. Between them a crash leaves no `dir`, but both models whole beside it.
    let old = new.with_extension("old");
    fs::rename(dir, &old).map_err(io)?;
    if let Err(e) = fs::rename(new, dir) {
        fs::rename(&old, dir).map_err(io)?;
        return Err(io(e));
    }
    fs::remove_dir_all(&old).map_err(|e| LmError::io(&old, "remove", e))
}

fn sync_directory(dir: &Path) -> Result<()> {
    let handle = File::open(dir).map_err(|e| LmError::io(dir, "open", e))?;
    handle.sync_all().map_err(|e| LmError::io(dir, "flush", e))
}

/// Saving replaces the whole directory, so everything in it must be a model's.
fn refuse_to_replace_what_is_not_a_model(dir: &Path) -> Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(LmError::io(dir, "read", e)),
    };
    for entry in entries {
        let name = entry.map_err(|e| LmError::io(dir, "read", e))?.file_name();
        let name = name.to_string_lossy();
        let ours = COMPANIONS.contains(&&*name)
            || [CONFIG_FILE, INDEX_FILE, adapter::CONFIG_FILE, adapter::WEIGHTS_FILE].contains(&&*name)
            || (name.starts_with("model") && name.ends_with(".safetensors"));
        if !ours {
            let hint =
                "saving a model replaces the whole directory: choose one that is new or holds only a model";
            return Err(LmError::file(dir, format!("`{name}` in it"), "only a model's files", hint));
        }
    }
    Ok(())
}
