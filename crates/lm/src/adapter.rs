//! Low-rank adapters (LoRA): `w = w0 + s b a`, trained here and read and written as PEFT does.
//!
//! `w0` `[o, k]` is a linear map of the base model and stays; `a` `[r, k]` and `b` `[o, r]` are trained; `s` is
//! `alpha / r`, or `alpha / sqrt(r)` with rsLoRA. The decoder never sees the parts: it computes with the merged
//! `w`, forward and backward, and the adapter turns the gradient of `w` into those of `a` and `b`:
//!
//! ```text
//! d_b = s d_w a^T        d_a = s b^T d_w
//! ```
//!
//! which is the chain rule of `w0 + s b a`. Every family, kernel and law then holds for adapters as it stands, a run
//! leaves a merged model that needs no adapter, and with `b = 0` the model is the base model. What it costs: the merge
//! (`2 o k r` multiply-adds a map and step, under a hundredth of a step of a thousand tokens) and a gradient buffer of the
//! base model's size. What it saves: the moments, two thirds of the training memory beside activations.
//!
//! Sources: Hu et al. 2021, arXiv:2106.09685; Kalajdzievski 2023, arXiv:2312.03732 (rsLoRA); PEFT 0.21
//! (`tuners/lora`, `utils/save_and_load.py`) for files, names and the initialisation.
//!
//! Not here: dropout on the adapter's input (no model here has dropout), DoRA, adapters of embeddings, biases.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use polity_compute::cpu::linear::{self, Write};
use polity_compute::optim::{Optimizer, UpdateStats};
use polity_compute::params::{Buffer, ParamSpec};
use polity_compute::{Cpu, Head, Layout, Params, Precision, Shape, Weights};
use serde_json::{Map, Value, json};

use crate::error::{LmError, Result};
use crate::hf_config::Family;
use crate::model::{CONFIG_FILE as MODEL_CONFIG_FILE, Model, ScalarInit, read_object, replace_directory};
use crate::rng::Stream;
use crate::tensor_file::{TensorFile, WeightDtype, is_weight_dtype, write};
use crate::weights::WeightEntry;

/// The adapter's configuration.
pub const CONFIG_FILE: &str = "adapter_config.json";

/// The adapter's tensors.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// All linear maps of all layers, not the embedding and not the head.
pub const ALL_LINEAR: &str = "all-linear";

/// Keys of `adapter_config.json` that are read, or that do not change what a trained adapter computes.
const UNDERSTOOD: [&str; 24] = [
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "revision",
    "target_modules",
    "task_type",
    "use_rslora",
];

/// PEFT wraps the model twice, and its names say so.
const PREFIX: &str = "base_model.model.";

/// What a new adapter is like: keys of PEFT's `LoraConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rank of `b a`.
    pub r: usize,
    /// The product is scaled by `alpha / r`.
    pub alpha: f64,
    /// Scale by `alpha / sqrt(r)` instead.
    pub rslora: bool,
    /// Last parts of the names of linear maps (`q_proj`), or [`ALL_LINEAR`] alone.
    pub target_modules: Vec<String>,
}

impl LoraConfig {
    fn scale(&self) -> f32 {
        let r = self.r as f64;
        (self.alpha / if self.rslora { r.sqrt() } else { r }) as f32
    }

    fn targets(&self, module: &str) -> bool {
        self.target_modules.iter().any(|target| {
            let rest = module.strip_suffix(target.as_str());
            target == ALL_LINEAR || rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        })
    }
}

/// One adapted linear map.
#[derive(Clone, Debug)]
struct Module {
    /// Its tensor in a Hugging Face file.
    entry: WeightEntry,
    /// `(o, k)`.
    shape: (usize, usize),
    /// `[o, k]`: the base model's.
    w0: Vec<f32>,
    /// Specs of `a` (`[r, k]`, in panels) and `b` (`[o, r]`, row by row).
    a: usize,
    b: usize,
}

/// A tensor that is trained whole beside the adapted maps: a reward model's head.
#[derive(Clone, Debug)]
struct Whole {
    entry: WeightEntry,
    spec: usize,
}

/// An adapter of one model: its numbers, their gradients, and what they are added to.
#[derive(Clone, Debug)]
pub struct Adapter {
    config: LoraConfig,
    base_model: String,
    family: Family,
    modules: Vec<Module>,
    whole: Vec<Whole>,
    specs: Vec<ParamSpec>,
    /// `a` and `b` of every map, then the tensors that are trained whole.
    pub params: Params,
    /// The same of their gradients.
    pub grads: Params,
}

impl Adapter {
    /// A fresh adapter of `model`, which it leaves as it is: `a` uniform within `1 / sqrt(k)`, `b` zero, as PEFT.
    /// `base_model` is what `adapter_config.json` will call the model.
    ///
    /// # Errors
    ///
    /// If a target is no linear map of the model.
    pub fn new(model: &Model, config: LoraConfig, base_model: &str, seed: u64) -> Result<Self> {
        for target in &config.target_modules {
            let one = LoraConfig { target_modules: vec![target.clone()], ..config.clone() };
            if !linear_maps(model).iter().any(|(module, _)| one.targets(module)) {
                let names: BTreeSet<String> =
                    linear_maps(model).iter().map(|(module, _)| last_part(module).to_owned()).collect();
                return Err(LmError::Unsupported {
                    what: format!(
                        "lora_target_modules: found {target:?}, expected a linear map of the model"
                    ),
                    hint: format!(
                        "it has {}; {ALL_LINEAR:?} is all of them",
                        names.into_iter().collect::<Vec<_>>().join(", ")
                    ),
                });
            }
        }
        let mut adapter = Self::zeros(model, config, base_model);
        for (index, module) in adapter.modules.iter().enumerate() {
            let (_, k) = module.shape;
            let mut stream = Stream::new(seed, "lora", &[index as u64]);
            let bound = 1.0 / (k as f64).sqrt();
            let values: Vec<f32> =
                (0..adapter.config.r * k).map(|_| (bound * (2.0 * stream.f64() - 1.0)) as f32).collect();
            adapter.params.write_rows(&adapter.specs[module.a], 0, &values);
        }
        Ok(adapter)
    }

    fn zeros(model: &Model, config: LoraConfig, base_model: &str) -> Self {
        let (mut specs, mut len) = (Vec::new(), 0);
        let mut add = |name: String, shape: Shape| {
            let spec = ParamSpec { name, shape, offset: len };
            len = spec.range().end.next_multiple_of(16);
            specs.push(spec);
            specs.len() - 1
        };
        let mut modules = Vec::new();
        for (name, entry) in linear_maps(model).into_iter().filter(|(name, _)| config.targets(name)) {
            let (o, k) = entry.linear(&model.layout).expect("a linear map");
            let w0 = entry.read_linear(&model.layout, &model.params);
            let a = add(format!("{name}.lora_A"), Shape::Matrix { rows: config.r, cols: k });
            let b = add(format!("{name}.lora_B"), Shape::Table { rows: o, cols: config.r });
            modules.push(Module { entry, shape: (o, k), w0, a, b });
        }
        let mut whole = Vec::new();
        if model.config.head == Head::Scalar {
            let table = model.table();
            for entry in table.entries().iter().filter(|entry| entry.param == model.layout.head) {
                let spec = add(entry.name.clone(), Shape::Vector { len: entry.shape.iter().product() });
                whole.push(Whole { entry: entry.clone(), spec });
            }
        }
        let zeros = || Params::of(Buffer::zeros(len));
        let mut params = zeros();
        for Whole { entry, spec } in &whole {
            let range = specs[*spec].range();
            params.data[range].copy_from_slice(&entry.read(&model.layout, &model.params));
        }
        let (base_model, family) = (base_model.to_owned(), model.hf.family());
        Self { config, base_model, family, modules, whole, specs, params, grads: zeros() }
    }

    /// Numbers that are trained, without padding.
    pub fn parameter_count(&self) -> usize {
        let count = |spec: &ParamSpec| {
            let (rows, cols) = spec.shape.rows_cols();
            rows * cols
        };
        self.specs.iter().map(count).sum()
    }

    /// One step of the optimiser on the gradient of the merged model's weights, which are merged anew.
    pub fn update(
        &mut self,
        cpu: &Cpu,
        optimizer: &mut Optimizer,
        layout: &Layout,
        params: &mut Params,
        grads: &Params,
        lr: f64,
    ) -> UpdateStats {
        self.pull(cpu, layout, grads);
        let stats = optimizer.update(cpu, &self.specs, &mut self.params, &mut self.grads, lr);
        self.merge(cpu, layout, params);
        stats
    }

    /// Sets [`Adapter::grads`] from the gradient of the merged model's weights.
    pub fn pull(&mut self, cpu: &Cpu, layout: &Layout, grads: &Params) {
        let scale = self.config.scale();
        for module in &self.modules {
            let ((_, k), r) = (module.shape, self.config.r);
            let d_w = module.entry.read_linear(layout, grads);
            let (a, b) = (self.specs[module.a].range(), self.specs[module.b].range());
            let [d_a, d_b] =
                self.grads.data.get_disjoint_mut([a.clone(), b.clone()]).expect("tensors do not overlap");
            // forward was: w = w0 + s b a
            // so now: d_b = s d_w a^T, d_a = s b^T d_w
            let weights = Weights::F32(&self.params.data[a]);
            linear::forward(cpu, d_b, &d_w, weights, None, r, k, Write::Set);
            d_a.fill(0.0);
            linear::backward_weight(cpu, Precision::F32, d_a, None, &self.params.data[b], &d_w, r, k);
            d_a.iter_mut().chain(d_b).for_each(|d| *d *= scale);
        }
        for Whole { entry, spec } in &self.whole {
            let range = self.specs[*spec].range();
            self.grads.data[range].copy_from_slice(&entry.read(layout, grads));
        }
    }

    /// Writes the merged weights into the model's.
    pub fn merge(&self, cpu: &Cpu, layout: &Layout, params: &mut Params) {
        let scale = self.config.scale();
        for module in &self.modules {
            let ((o, k), r) = (module.shape, self.config.r);
            let b: Vec<f32> =
                self.params.data[self.specs[module.b].range()].iter().map(|b| b * scale).collect();
            let a = Weights::F32(&self.params.data[self.specs[module.a].range()]);
            let mut w = vec![0.0; o * k];
            linear::backward_input(cpu, &mut w, &b, a, r, k, Write::Onto(&module.w0));
            module.entry.write_linear(layout, params, &w);
        }
        for Whole { entry, spec } in &self.whole {
            entry.write(layout, params, &self.params.data[self.specs[*spec].range()]);
        }
        params.pack(cpu, &layout.specs);
    }

    /// The adapter's tensors as PEFT's file has them, sorted by name.
    pub fn export(&self, params: &Params) -> Vec<(String, Vec<usize>, Vec<f32>)> {
        let mut tensors = Vec::new();
        for (name, shape, spec) in self.tensors() {
            let (rows, _) = self.specs[spec].shape.rows_cols();
            tensors.push((name, shape, params.read_rows(&self.specs[spec], 0, rows)));
        }
        tensors
    }

    /// Name and shape of each tensor in PEFT's file, and its spec, sorted by name.
    fn tensors(&self) -> Vec<(String, Vec<usize>, usize)> {
        let mut tensors = Vec::new();
        for module in &self.modules {
            let ((o, k), r) = (module.shape, self.config.r);
            let name = module_name(&module.entry);
            tensors.push((format!("{PREFIX}{name}.lora_A.weight"), vec![r, k], module.a));
            tensors.push((format!("{PREFIX}{name}.lora_B.weight"), vec![o, r], module.b));
        }
        for Whole { entry, spec } in &self.whole {
            tensors.push((format!("{PREFIX}{}", entry.name), entry.shape.clone(), *spec));
        }
        tensors.sort();
        tensors
    }

    /// Writes a directory that `peft.PeftModel.from_pretrained` loads. All or nothing, as [`Model::save`].
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        replace_directory(dir.as_ref(), |new| {
            let text = serde_json::to_string_pretty(&self.config_json()).expect("strings and numbers");
            crate::model::write_file(&new.join(CONFIG_FILE), text.as_bytes())?;
            let tensors = self.tensors();
            let names: Vec<_> =
                tensors.iter().map(|(name, shape, _)| (name.as_str(), shape.as_slice())).collect();
            write(&new.join(WEIGHTS_FILE), WeightDtype::F32, &names, |i, put| {
                let spec = &self.specs[tensors[i].2];
                put(&self.params.read_rows(spec, 0, spec.shape.rows_cols().0))
            })
        })
    }

    fn config_json(&self) -> Value {
        let targets: BTreeSet<&str> = match self.config.target_modules.as_slice() {
            [one] if one == ALL_LINEAR => {
                self.modules.iter().map(|module| last_part(module_name(&module.entry))).collect()
            }
            named => named.iter().map(String::as_str).collect(),
        };
        let saved = self.whole.iter().map(|whole| module_name(&whole.entry)).collect::<Vec<_>>();
        json!({
            "peft_type": "LORA",
            "task_type": if self.whole.is_empty() { "CAUSAL_LM" } else { "SEQ_CLS" },
            "base_model_name_or_path": self.base_model,
            "r": self.config.r,
            "lora_alpha": self.config.alpha,
            "use_rslora": self.config.rslora,
            "lora_dropout": 0.0,
            "target_modules": targets,
            "modules_to_save": (!saved.is_empty()).then_some(saved),
            "fan_in_fan_out": self.family == Family::Gpt2,
            "bias": "none",
            "use_dora": false,
            "init_lora_weights": true,
            "inference_mode": true,
            "rank_pattern": {},
            "alpha_pattern": {},
        })
    }

    /// Reads the numbers of a directory that [`Adapter::save`] wrote for an adapter like this one.
    pub fn load_numbers(&mut self, dir: impl AsRef<Path>) -> Result<()> {
        let file = TensorFile::open(&dir.as_ref().join(WEIGHTS_FILE))?;
        self.read_numbers(&file)
    }

    fn read_numbers(&mut self, file: &TensorFile) -> Result<()> {
        let mut by_name: BTreeMap<String, &str> =
            file.tensors.keys().map(|name| (saved_name(name), name.as_str())).collect();
        for (name, shape, spec) in self.tensors() {
            let Some(found) = by_name.remove(&name) else {
                let hint = "adapter_config.json and the file are not of the same adapter";
                let expected = format!("one of shape {shape:?}");
                return Err(LmError::tensor(&file.file, name, "no such tensor", expected, hint));
            };
            let info = &file.tensors[found];
            if info.shape != shape || !is_weight_dtype(&info.dtype) {
                let hint = "the adapter is of another model, or r in adapter_config.json is not its rank";
                let is = format!("{} of shape {:?}", info.dtype, info.shape);
                return Err(LmError::tensor(&file.file, found, is, format!("shape {shape:?}"), hint));
            }
            let mut values = Vec::new();
            file.read(found, 0..shape.iter().product(), &mut values)?;
            self.params.write_rows(&self.specs[spec], 0, &values);
        }
        if let Some(found) = by_name.values().next() {
            let hint = "embeddings, heads of language models and DoRA are not supported";
            let expected = "lora_A and lora_B of linear maps that target_modules names";
            return Err(LmError::tensor(&file.file, *found, "this tensor", expected, hint));
        }
        Ok(())
    }
}

/// PEFT's older files keep the wrapper of a module that is saved whole in its name.
fn saved_name(name: &str) -> String {
    name.replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".")
}

/// Names without `.weight` and entries of the model's linear maps.
fn linear_maps(model: &Model) -> Vec<(String, WeightEntry)> {
    let entries = model.table().entries().to_vec();
    let linear = entries.into_iter().filter(|entry| entry.linear(&model.layout).is_some());
    linear.map(|entry| (module_name(&entry).to_owned(), entry)).collect()
}

fn module_name(entry: &WeightEntry) -> &str {
    entry.name.strip_suffix(".weight").unwrap_or(&entry.name)
}

fn last_part(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or(module)
}

/// Reads an adapter's directory and its base model, and merges them.
pub(crate) fn load_merged(dir: &Path) -> Result<Model> {
    let file = dir.join(CONFIG_FILE);
    let config = read_object(&file)?;
    let (lora, base) = read_config(&file, &config)?;
    let base_dir = find_base(dir, &file, &base)?;
    let mut model = Model::load(&base_dir)?;
    let is_reward = config.get("task_type").and_then(Value::as_str) == Some("SEQ_CLS");
    if is_reward && model.config.head != Head::Scalar {
        // The adapter's file has the head.
        model = model.with_scalar_head(0, ScalarInit::InitializerRange)?;
    }
    if dir.join("tokenizer.json").exists() {
        model = model.with_tokenizer_of(dir)?;
    }
    let mut adapter = Adapter::zeros(&model, lora, &base);
    if adapter.modules.is_empty() {
        let found = config.get("target_modules").cloned().unwrap_or_default().to_string();
        let hint = format!("the base model is {}", base_dir.display());
        return Err(LmError::key(&file, "target_modules", found, "linear maps of the base model", hint));
    }
    adapter.load_numbers(dir)?;
    adapter.merge(&Cpu::new(1), &model.layout, &mut model.params);
    model.table().check_finite(&model.layout, &model.params)?;
    Ok(model)
}

fn find_base(dir: &Path, file: &Path, base: &str) -> Result<PathBuf> {
    let candidates = [PathBuf::from(base), dir.join(base)];
    match candidates.iter().find(|candidate| candidate.join(MODEL_CONFIG_FILE).exists()) {
        Some(found) => Ok(found.clone()),
        None => {
            let hint = "put the directory of the model that the adapter was trained on there: models are not downloaded";
            let expected = "a model directory, from here or from the adapter's directory";
            Err(LmError::key(file, "base_model_name_or_path", format!("{base:?}"), expected, hint))
        }
    }
}

/// What computes the same here as in PEFT is read, and everything else is refused.
fn read_config(file: &Path, config: &Map<String, Value>) -> Result<(LoraConfig, String)> {
    let show = |key: &str| config.get(key).unwrap_or(&Value::Null).to_string();
    let refuse =
        |key: &str, expected: &str, hint: &str| Err(LmError::key(file, key, show(key), expected, hint));
    let merge = "merge it in PEFT with merge_and_unload() and save the model";
    if config.get("peft_type").and_then(Value::as_str) != Some("LORA") {
        return refuse("peft_type", "\"LORA\"", merge);
    }
    let task = config.get("task_type").and_then(Value::as_str);
    if !matches!(task, None | Some("CAUSAL_LM" | "SEQ_CLS")) {
        return refuse("task_type", "\"CAUSAL_LM\" or \"SEQ_CLS\"", "");
    }
    if !matches!(config.get("bias").and_then(Value::as_str), None | Some("none")) {
        return refuse("bias", "\"none\"", merge);
    }
    // PEFT gains variants of LoRA every few months: a key that is not known to be harmless must be off.
    let off = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    };
    for (key, value) in config {
        if !UNDERSTOOD.contains(&key.as_str()) && !off(value) {
            return refuse(key, "it absent, null, false or empty", merge);
        }
    }
    // These change the base model's weights when they begin, so that the base model on disk is not what the adapter is of.
    let init = config.get("init_lora_weights").and_then(Value::as_str).unwrap_or("");
    if ["pissa", "olora", "loftq", "corda", "lora_ga"].iter().any(|known| init.starts_with(known)) {
        return refuse("init_lora_weights", "an initialisation that leaves the base model as it is", merge);
    }
    let Some(r) = config.get("r").and_then(Value::as_u64).filter(|&r| (1..1 << 16).contains(&r)) else {
        return refuse("r", "a rank, 1 or more", "");
    };
    let Some(alpha) = config.get("lora_alpha").and_then(Value::as_f64).filter(|alpha| alpha.is_finite())
    else {
        return refuse("lora_alpha", "a number", "");
    };
    let rslora = match config.get("use_rslora") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(on)) => *on,
        Some(_) => return refuse("use_rslora", "true or false", ""),
    };
    let names = |value: &Value| match value {
        Value::String(name) if name == ALL_LINEAR => Some(vec![name.clone()]),
        Value::Array(items) => items.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
        // A text is a regular expression.
        _ => None,
    };
    let Some(target_modules) =
        config.get("target_modules").and_then(names).filter(|names: &Vec<String>| !names.is_empty())
    else {
        return refuse("target_modules", "a list of names", "write the names out instead of a pattern");
    };
    let Some(base) = config.get("base_model_name_or_path").and_then(Value::as_str) else {
        return refuse("base_model_name_or_path", "the base model's directory", "");
    };
    Ok((LoraConfig { r: r as usize, alpha, rslora, target_modules }, base.to_owned()))
}
