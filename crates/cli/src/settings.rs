//! Settings of the verbs that use a model: `--set key=value`.
//!
//! ```text
//! defaults  <-  the model's generation_config.json (sampling only)  <-  --set, in order
//! ```
//!
//! An unknown key is an error that names the nearest one; a value outside its limits is an error that names key and
//! limits. [`KEYS`] is the only list: help, reading and messages come from it.
//!
//! `generation_config.json` is read as what its author meant: a temperature or a top-p there counts whether or not
//! `do_sample` stands beside it, and only `do_sample: false` means greedy. (Transformers is greedy where the key is
//! absent, and cuts to the 50 likeliest tokens where `top_k` is.)
//!
//! Not here: what the sampler does with them (`lm`'s engine); settings of training runs (`train`).

use std::fmt::Write as _;
use std::path::Path;

use polity_lm::Model;
use polity_lm::engine::SamplerConfig;
use polity_train::config::nearest;
use polity_train::settings::Precision;
use serde_json::{Map, Value};

use crate::error::{CommandError, CommandResult};

/// A verb with settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uses {
    /// `polity generate`.
    Generate,
    /// `polity chat`.
    Chat,
    /// `polity logprobs`.
    Logprobs,
    /// `polity score`.
    Score,
}

impl Uses {
    fn name(self) -> &'static str {
        match self {
            Uses::Generate => "generate",
            Uses::Chat => "chat",
            Uses::Logprobs => "logprobs",
            Uses::Score => "score",
        }
    }
}

/// One key: name, default, limits, meaning, who takes it.
struct Key {
    name: &'static str,
    default: &'static str,
    expected: &'static str,
    doc: &'static str,
    uses: &'static [Uses],
}

const ALL: &[Uses] = &[Uses::Generate, Uses::Chat, Uses::Logprobs, Uses::Score];
const TOKENS: &[Uses] = &[Uses::Generate, Uses::Chat, Uses::Logprobs];
const SAMPLING: &[Uses] = &[Uses::Generate, Uses::Chat];

const fn key(
    name: &'static str,
    default: &'static str,
    expected: &'static str,
    doc: &'static str,
    uses: &'static [Uses],
) -> Key {
    Key { name, default, expected, doc, uses }
}

const KEYS: &[Key] = &[
    key("precision", "auto", "auto, f32 or bf16", "Arithmetic of the matrix products.", ALL),
    key(
        "temperature",
        "1",
        "a number, at least 0",
        "Divides the logits; 0 takes the likeliest token (not for log-probs).",
        TOKENS,
    ),
    key("top_k", "0", "an integer, at least 0", "Only the k likeliest tokens. 0: all.", SAMPLING),
    key(
        "top_p",
        "1",
        "a number above 0, at most 1",
        "Only the likeliest tokens that together reach this probability.",
        SAMPLING,
    ),
    key(
        "min_p",
        "0",
        "a number from 0 to 1",
        "Only tokens at least this times as likely as the likeliest.",
        SAMPLING,
    ),
    key(
        "repetition_penalty",
        "1",
        "a number above 0",
        "Above 1: tokens already seen become unlikelier.",
        SAMPLING,
    ),
    key("max_new_tokens", "256", "an integer, at least 1", "Longest response.", SAMPLING),
    key("min_new_tokens", "0", "an integer, at least 0", "No stop token before this many.", SAMPLING),
    key(
        "seed",
        "42",
        "an integer, at least 0",
        "The same seed, row and sample give the same response.",
        SAMPLING,
    ),
    key("n", "1", "an integer, at least 1", "Responses to each row.", &[Uses::Generate]),
    key(
        "stop",
        "[]",
        "a text, or a list of texts such as [\"\\n\", \"User:\"]",
        "Texts that end a response and are left out of `text`.",
        SAMPLING,
    ),
    key(
        "stop_token_ids",
        "the model's EOS",
        "token ids such as 2 or [2, 13]; [] for none",
        "Tokens that end a response.",
        SAMPLING,
    ),
];

/// What other programs call these, and what to write here.
const FOREIGN: &[(&str, &str)] = &[
    ("do_sample", "write temperature=0 for greedy decoding"),
    ("eos_token_id", "write stop_token_ids"),
    ("greedy", "write temperature=0"),
    ("max_length", "write max_new_tokens, which does not count the prompt"),
    ("max_tokens", "write max_new_tokens"),
    ("min_tokens", "write min_new_tokens"),
    ("num_return_sequences", "write n"),
    ("num_samples", "write n"),
    ("samples", "write n"),
    ("stop_strings", "write stop"),
    ("threads", "write --threads"),
    ("device", "this build computes on the CPU"),
    ("dtype", "write precision"),
    ("batch_size", "batches are packed automatically and do not change results"),
];

/// Settings of one command.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// How tokens are chosen; log-probs use the temperature only.
    pub sampler: SamplerConfig,
    /// Of everything random.
    pub seed: u64,
    /// Responses to each row.
    pub samples: usize,
    /// Of the matrix products.
    pub precision: Precision,
}

/// Settings and what was odd about the model's own.
pub struct Read {
    /// The settings.
    pub settings: Settings,
    /// Sentences for the person.
    pub warnings: Vec<String>,
}

/// Whether these settings would be taken, as far as that can be said without the model.
pub fn check(uses: Uses, sets: &[(String, String)]) -> CommandResult {
    Settings::usual(Vec::new(), usize::MAX).apply_sets(uses, sets)
}

impl Settings {
    /// The defaults.
    fn usual(stop_token_ids: Vec<u32>, vocab: usize) -> Self {
        Self {
            sampler: SamplerConfig {
                temperature: 1.0,
                top_k: 0,
                top_p: 1.0,
                min_p: 0.0,
                repetition_penalty: 1.0,
                max_new_tokens: 256,
                min_new_tokens: 0,
                stop_token_ids,
                stop_strings: Vec::new(),
                vocab,
            },
            seed: 42,
            samples: 1,
            precision: Precision::Auto,
        }
    }

    /// Defaults, the model's own, then `--set`.
    pub fn read(uses: Uses, dir: &Path, model: &Model, sets: &[(String, String)]) -> CommandResult<Read> {
        let mut settings = Self::usual(model.generation.eos.clone(), model.tokenizer_vocab());
        let mut warnings = Vec::new();
        if SAMPLING.contains(&uses) {
            settings.apply_model(&dir.join("generation_config.json"), &mut warnings)?;
        }
        settings.apply_sets(uses, sets)?;
        let vocab = model.config.vocab;
        if let Some(id) = settings.sampler.stop_token_ids.iter().find(|&&id| id as usize >= vocab) {
            return Err(CommandError::bad_input(format!(
                "stop_token_ids has {id}, expected ids below {vocab}, the model's vocabulary"
            )));
        }
        settings
            .sampler
            .validate()
            .map_err(|problem| CommandError::bad_input(format!("--set: {problem}")))?;
        Ok(Read { settings, warnings })
    }

    fn apply_sets(&mut self, uses: Uses, sets: &[(String, String)]) -> CommandResult {
        for (name, text) in sets {
            let key = KEYS.iter().find(|key| key.name == name && key.uses.contains(&uses));
            let key = key.ok_or_else(|| unknown(uses, name))?;
            // White space may be what a stop text is about.
            let bare = text.trim();
            let text = if key.name == "stop" && !bare.starts_with(['[', '"', '\'']) { text } else { bare };
            if !self.assign(key.name, text) {
                return Err(CommandError::bad_input(format!(
                    "--set: {name} = {}, expected {}",
                    if text.is_empty() { "nothing" } else { text },
                    key.expected
                )));
            }
            if uses == Uses::Logprobs && self.sampler.temperature == 0.0 {
                return Err(CommandError::bad_input(
                    "--set: temperature = 0, expected a number above 0: log-probs divide by it",
                ));
            }
        }
        Ok(())
    }

    /// Whether the text was a value of the key.
    fn assign(&mut self, key: &str, text: &str) -> bool {
        fn number<T: std::str::FromStr>(slot: &mut T, text: &str, ok: impl Fn(&T) -> bool) -> bool {
            text.parse().ok().filter(|value| ok(value)).map(|value| *slot = value).is_some()
        }
        let s = &mut self.sampler;
        match key {
            "precision" => Precision::parse(text).map(|precision| self.precision = precision).is_some(),
            "temperature" => number(&mut s.temperature, text, |x| *x >= 0.0 && x.is_finite()),
            "top_k" => number(&mut s.top_k, text, |_| true),
            "top_p" => number(&mut s.top_p, text, |x| *x > 0.0 && *x <= 1.0),
            "min_p" => number(&mut s.min_p, text, |x| (0.0..=1.0).contains(x)),
            "repetition_penalty" => number(&mut s.repetition_penalty, text, |x| *x > 0.0 && x.is_finite()),
            "max_new_tokens" => number(&mut s.max_new_tokens, text, |x| *x > 0),
            "min_new_tokens" => number(&mut s.min_new_tokens, text, |_| true),
            "seed" => number(&mut self.seed, text, |_| true),
            "n" => number(&mut self.samples, text, |x| *x > 0),
            "stop" => texts(text).map(|texts| s.stop_strings = texts).is_some(),
            "stop_token_ids" => ids(text).map(|ids| s.stop_token_ids = ids).is_some(),
            _ => false,
        }
    }

    /// What `generation_config.json` asks for.
    fn apply_model(&mut self, file: &Path, warnings: &mut Vec<String>) -> CommandResult {
        // `Model::load` has read the file before: here it can only be missing.
        let Ok(text) = std::fs::read_to_string(file) else { return Ok(()) };
        let map: Map<String, Value> = serde_json::from_str(&text)
            .map_err(|error| CommandError::bad_input(format!("{}: {error}", file.display())))?;
        const TAKEN: [&str; 8] = [
            "temperature",
            "top_k",
            "top_p",
            "min_p",
            "repetition_penalty",
            "max_new_tokens",
            "min_new_tokens",
            "stop_strings",
        ];
        for name in TAKEN {
            let value = match map.get(name) {
                None | Some(Value::Null) => continue,
                Some(Value::String(text)) => Value::from(text.as_str()).to_string(),
                Some(value) => value.to_string(),
            };
            let key_name = if name == "stop_strings" { "stop" } else { name };
            if !self.assign(key_name, &value) {
                let key = KEYS.iter().find(|key| key.name == key_name).expect("each is a key");
                return Err(CommandError::bad_input(format!(
                    "{}: `{name}`: found {value}, expected {}",
                    file.display(),
                    key.expected
                )));
            }
        }
        if map.get("do_sample") == Some(&Value::Bool(false)) {
            self.sampler.temperature = 0.0;
        }
        // What would change the responses and is not done here. The neutral values are Transformers'.
        let neutral = |name: &str, value: &Value| match name {
            "num_beams" | "typical_p" => value.as_f64() == Some(1.0),
            "no_repeat_ngram_size" => value.as_f64() == Some(0.0),
            _ => value.as_array().is_some_and(Vec::is_empty),
        };
        const NOT_DONE: [&str; 6] = [
            "num_beams",
            "typical_p",
            "no_repeat_ngram_size",
            "bad_words_ids",
            "suppress_tokens",
            "sequence_bias",
        ];
        for name in NOT_DONE {
            if let Some(value) = map.get(name)
                && !value.is_null()
                && !neutral(name, value)
            {
                warnings.push(format!("{}: `{name}` is not supported and has no effect", file.display()));
            }
        }
        Ok(())
    }
}

fn unknown(uses: Uses, name: &str) -> CommandError {
    let error = CommandError::bad_input(format!("--set: unknown setting {name:?} of polity {}", uses.name()));
    if let Some((_, advice)) = FOREIGN.iter().find(|(foreign, _)| *foreign == name) {
        return error.hint(*advice);
    }
    if let Some(key) = KEYS.iter().find(|key| key.name == name) {
        let verbs: Vec<&str> = key.uses.iter().map(|uses| uses.name()).collect();
        return error.hint(format!("only {} has it", verbs.join(" and ")));
    }
    let known = KEYS.iter().filter(|key| key.uses.contains(&uses)).map(|key| key.name);
    match nearest(name, known) {
        Some(word) => error.hint(format!("did you mean {word}?")),
        None => error.hint(format!("polity {} --help lists them", uses.name())),
    }
}

/// A list of texts in TOML's (or JSON's) spelling, or one text as it stands.
fn texts(text: &str) -> Option<Vec<String>> {
    let texts = if text.starts_with(['[', '"', '\'']) {
        match toml_value(text)? {
            toml::Value::String(text) => vec![text],
            toml::Value::Array(list) => {
                list.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<_>>()?
            }
            _ => return None,
        }
    } else {
        vec![text.to_owned()]
    };
    // An empty text is in every response: it would end all of them at once.
    texts.iter().all(|text| !text.is_empty()).then_some(texts)
}

/// `[2, 13]`, `2,13`, `2`.
fn ids(text: &str) -> Option<Vec<u32>> {
    let inner = text.strip_prefix('[').map_or(Some(text), |rest| rest.strip_suffix(']'))?;
    if inner.trim().is_empty() {
        return text.starts_with('[').then(Vec::new);
    }
    inner.split(',').map(|id| id.trim().parse().ok()).collect()
}

fn toml_value(text: &str) -> Option<toml::Value> {
    serde::Deserialize::deserialize(toml::de::ValueDeserializer::parse(text).ok()?).ok()
}

/// The list for `--help`, in the form of the training settings'.
pub fn help(uses: Uses) -> String {
    let mut text = String::from("Settings (with --set):\n");
    for key in KEYS.iter().filter(|key| key.uses.contains(&uses)) {
        let _ = writeln!(text, "  {} = {}   [{}]", key.name, key.default, key.expected);
        let _ = writeln!(text, "      {}", key.doc);
    }
    if SAMPLING.contains(&uses) {
        text += "Where the model's generation_config.json has a value, that is the default.\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Settings {
        Settings::usual(vec![2], 10)
    }

    fn set(uses: Uses, key: &str, value: &str) -> Result<Settings, (String, Vec<String>)> {
        let mut settings = plain();
        match settings.apply_sets(uses, &[(key.into(), value.into())]) {
            Ok(()) => Ok(settings),
            Err(error) => Err((error.to_string(), error.hints)),
        }
    }

    #[test]
    fn every_key_takes_a_value_and_refuses_nonsense() {
        for key in KEYS {
            let good = match key.name {
                "precision" => "f32",
                "stop" => "END",
                _ => "1",
            };
            let bad = if key.name == "stop" { "[1]" } else { "x y" };
            for &uses in key.uses {
                assert!(set(uses, key.name, good).is_ok(), "{}", key.name);
                let (message, _) = set(uses, key.name, bad).unwrap_err();
                assert_eq!(message, format!("--set: {} = {bad}, expected {}", key.name, key.expected));
            }
        }
    }

    #[test]
    fn values_reach_the_sampler() {
        let generate = |key, value| set(Uses::Generate, key, value).unwrap();
        assert_eq!(generate("precision", "bf16").precision, Precision::Bf16);
        assert_eq!(generate("temperature", " 0.5").sampler.temperature, 0.5);
        assert_eq!(generate("top_k", "7").sampler.top_k, 7);
        assert_eq!(generate("top_p", "0.9").sampler.top_p, 0.9);
        assert_eq!(generate("min_p", "0.1").sampler.min_p, 0.1);
        assert_eq!(generate("repetition_penalty", "1.1").sampler.repetition_penalty, 1.1);
        assert_eq!(generate("max_new_tokens", "3").sampler.max_new_tokens, 3);
        assert_eq!(generate("min_new_tokens", "3").sampler.min_new_tokens, 3);
        assert_eq!(generate("seed", "9").seed, 9);
        assert_eq!(generate("n", "4").samples, 4);
        assert_eq!(generate("stop", "a, b").sampler.stop_strings, ["a, b"]);
        assert_eq!(generate("stop", " a ").sampler.stop_strings, [" a "]);
        assert_eq!(generate("stop", " ['a']").sampler.stop_strings, ["a"]);
        assert_eq!(generate("stop", r#""\n\nHuman:""#).sampler.stop_strings, ["\n\nHuman:"]);
        assert_eq!(generate("stop", r#"["a", 'b']"#).sampler.stop_strings, ["a", "b"]);
        assert_eq!(generate("stop_token_ids", "[3, 4]").sampler.stop_token_ids, [3, 4]);
        assert_eq!(generate("stop_token_ids", "3,4").sampler.stop_token_ids, [3, 4]);
        assert!(generate("stop_token_ids", "[]").sampler.stop_token_ids.is_empty());
    }

    #[test]
    fn limits_are_named() {
        let message = |key, value| set(Uses::Generate, key, value).unwrap_err().0;
        assert_eq!(message("top_p", "1.5"), "--set: top_p = 1.5, expected a number above 0, at most 1");
        assert_eq!(message("temperature", "NaN"), "--set: temperature = NaN, expected a number, at least 0");
        assert_eq!(message("n", "0"), "--set: n = 0, expected an integer, at least 1");
        assert_eq!(message("top_k", "-1"), "--set: top_k = -1, expected an integer, at least 0");
        assert!(message("stop", "[\"\"]").contains("expected a text"));
        assert!(set(Uses::Logprobs, "temperature", "0").unwrap_err().0.contains("above 0"));
    }

    #[test]
    fn unknown_keys_have_advice() {
        let check = |uses, key, expect: &str| {
            let (message, hints) = set(uses, key, "1").unwrap_err();
            assert_eq!(message, format!("--set: unknown setting {key:?} of polity {}", uses.name()));
            assert_eq!(hints, [expect]);
        };
        check(Uses::Generate, "temprature", "did you mean temperature?");
        check(Uses::Generate, "max_tokens", "write max_new_tokens");
        check(Uses::Score, "top_k", "only generate and chat has it");
        check(Uses::Logprobs, "wibble", "polity logprobs --help lists them");
    }

    #[test]
    fn foreign_names_are_not_ours() {
        for (foreign, _) in FOREIGN {
            assert!(KEYS.iter().all(|key| key.name != *foreign), "{foreign}");
        }
    }

    #[test]
    fn the_models_own_settings_are_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("generation_config.json");
        let apply = |text: &str| {
            std::fs::write(&file, text).unwrap();
            let (mut settings, mut warnings) = (plain(), Vec::new());
            settings.apply_model(&file, &mut warnings).map(|()| (settings, warnings))
        };
        let (settings, warnings) =
            apply(r#"{"temperature": 0.6, "top_p": 0.9, "top_k": null, "max_length": 20, "num_beams": 1}"#)
                .unwrap();
        assert_eq!((settings.sampler.temperature, settings.sampler.top_p), (0.6, 0.9));
        assert_eq!((settings.sampler.top_k, settings.sampler.max_new_tokens), (0, 256));
        assert!(warnings.is_empty());
        let (settings, _) = apply(r#"{"do_sample": false, "temperature": 0.6}"#).unwrap();
        assert_eq!(settings.sampler.temperature, 0.0);
        let (settings, warnings) = apply(r#"{"num_beams": 4, "stop_strings": ["x"]}"#).unwrap();
        assert_eq!(settings.sampler.stop_strings, ["x"]);
        assert!(warnings[0].contains("`num_beams` is not supported"));
        let error = apply(r#"{"top_p": "high"}"#).unwrap_err().to_string();
        assert!(error.ends_with("`top_p`: found \"high\", expected a number above 0, at most 1"), "{error}");
    }
}
