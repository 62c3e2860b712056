//! Text to ids and back: `tokenizer.json` with the special tokens that its neighbours name.
//!
//! Ids come from the `tokenizers` library, the one that Transformers uses, so they are the same. Three
//! things are decided here:
//!
//! - **No padding, no truncation.** A `tokenizer.json` may carry both (it remembers the last call before it
//!   was saved); they are switched off, for a silently shortened row is a wrong row.
//! - **Beginning and end.** Whether a text gets a BOS or EOS is what the file's post-processor says, as in
//!   Transformers 5; `add_bos_token` in `tokenizer_config.json` is ignored where a `tokenizer.json` is there.
//! - **Offsets** are bytes of the text as it was given.
//!
//! Names of special tokens come from `tokenizer_config.json` (a string, or an object with `content`), then
//! `special_tokens_map.json`; ids that only `config.json` knows come last.
//!
//! Not here: chat templates (`chat`), stop strings (`engine`).

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::error::{LmError, Result};
use crate::hf_config::HfConfig;
use crate::model::read_object;

/// Bytes of `tokenizer.json`.
const TOKENIZER_FILE: &str = "tokenizer.json";

/// A tokenizer; cheap to clone.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    tokenizer: tokenizers::Tokenizer,
    file: PathBuf,
    special: SpecialTokens,
    /// Texts of the named special tokens, for templates: `bos_token`, `eos_token`, …
    special_texts: BTreeMap<String, String>,
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    vocab_len: usize,
    /// Whether the vocabulary spells bytes as characters, as GPT-2's does.
    byte_level: bool,
}

/// Ids with a meaning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Begins a text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// Fills a batch in other programs.
    pub pad: Option<u32>,
    /// Stands for what has no token.
    pub unk: Option<u32>,
}

/// A text as ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// The tokens.
    pub ids: Vec<u32>,
    /// Of each token, the bytes of the text it stands for; empty for a token that was added.
    pub offsets: Vec<Range<usize>>,
    /// Of each token, whether the post-processor added it (a BOS that is not in the text).
    pub added: Vec<bool>,
}

impl Tokenizer {
    /// Reads the tokenizer of a model directory, if it has one.
    pub fn load(dir: &Path, hf: &HfConfig) -> Result<Option<Self>> {
        let file = dir.join(TOKENIZER_FILE);
        if !file.exists() {
            return Ok(None);
        }
        let bytes = std::fs::read(&file).map_err(|e| LmError::io(&file, "read", e))?;
        let mut texts = BTreeMap::new();
        for name in ["special_tokens_map.json", "tokenizer_config.json"] {
            let path = dir.join(name);
            if path.exists() {
                // The later file wins.
                special_texts(&read_object(&path)?, &mut texts);
            }
        }
        Self::new(&file, &bytes, texts, hf).map(Some)
    }

    fn new(file: &Path, bytes: &[u8], mut texts: BTreeMap<String, String>, hf: &HfConfig) -> Result<Self> {
        let error = |message: String| LmError::Tokenizer { file: file.to_owned(), message };
        let tokenizer = parse(file, bytes)?;

        let id_of = |name: &str, texts: &mut BTreeMap<String, String>| -> Result<Option<u32>> {
            if let Some(text) = texts.get(name) {
                let id = tokenizer.token_to_id(text);
                if id.is_none() && matches!(name, "bos_token" | "eos_token") {
                    return Err(error(format!("{name} {text:?} is not in the vocabulary")));
                }
                return Ok(id);
            }
            let id = hf.token_ids(&format!("{name}_id"))?.first().copied();
            let text = id.and_then(|id| tokenizer.id_to_token(id));
            Ok(text.and_then(|text| {
                texts.insert(name.to_owned(), text);
                id
            }))
        };
        let special = SpecialTokens {
            bos: id_of("bos_token", &mut texts)?,
            eos: id_of("eos_token", &mut texts)?,
            pad: id_of("pad_token", &mut texts)?,
            unk: id_of("unk_token", &mut texts)?,
        };
        let vocab_len = tokenizer.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1);
        // What is put around a text is what is put around any text.
        let probe = tokenizer.encode("a", true).map_err(|e| error(e.to_string()))?;
        let mask = probe.get_special_tokens_mask();
        let text_start = mask.iter().position(|&m| m == 0).unwrap_or(mask.len());
        let text_end = mask.iter().rposition(|&m| m == 0).map_or(mask.len(), |at| at + 1);
        let prefix = probe.get_ids()[..text_start].to_vec();
        let suffix = probe.get_ids()[text_end..].to_vec();
        let file = file.to_owned();
        let decoder = serde_json::to_string(&tokenizer.get_decoder()).unwrap_or_default();
        let byte_level = decoder.contains("\"ByteLevel\"");
        let inner =
            Inner { tokenizer, file, special, special_texts: texts, prefix, suffix, vocab_len, byte_level };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Ids with a meaning.
    pub fn special(&self) -> SpecialTokens {
        self.inner.special
    }

    /// Texts of the named special tokens: `bos_token`, `eos_token`, `pad_token`, …
    pub fn special_texts(&self) -> &BTreeMap<String, String> {
        &self.inner.special_texts
    }

    /// Text of the EOS token.
    pub fn eos_text(&self) -> Option<&str> {
        self.inner.special_texts.get("eos_token").map(String::as_str)
    }

    /// Ids that the post-processor puts before a text.
    pub fn prefix(&self) -> &[u32] {
        &self.inner.prefix
    }

    /// Ids that the post-processor puts after a text.
    pub fn suffix(&self) -> &[u32] {
        &self.inner.suffix
    }

    /// One more than the largest id.
    pub fn vocab_len(&self) -> usize {
        self.inner.vocab_len
    }

    /// Whether padding and the end of a response look the same. Other programs then mask the end out of the
    /// loss and the model never learns to stop; here nothing is padded, but the files are theirs too.
    pub fn pad_is_eos(&self) -> bool {
        self.inner.special.pad.is_some() && self.inner.special.pad == self.inner.special.eos
    }

    /// Whether a row begins with two BOS tokens: one in the text (often a template's), one added.
    pub fn doubled_bos(&self, ids: &[u32]) -> bool {
        let bos = self.inner.special.bos;
        bos.is_some() && ids.first().copied() == bos && ids.get(1).copied() == bos
    }

    /// Fails if there are ids without a row in an embedding table of `rows`. More rows than ids are fine:
    /// tables are often padded to a round number.
    pub fn check_vocabulary(&self, rows: usize) -> Result<()> {
        let len = self.inner.vocab_len;
        if len <= rows {
            return Ok(());
        }
        let token = self.inner.tokenizer.id_to_token(len as u32 - 1).unwrap_or_default();
        Err(LmError::file(
            &self.inner.file,
            format!("id {} ({token:?})", len - 1),
            format!("ids below {rows}, the rows of the embedding table"),
            "the tokenizer is of another model, or tokens were added without resizing the embeddings",
        ))
    }

    /// The first id that stands for different texts here and in the other tokenizer; ids that only one of them has (a
    /// padding token that was added) are no difference.
    pub fn first_difference(&self, other: &Tokenizer) -> Option<u32> {
        let both = self.vocab_len().min(other.vocab_len()) as u32;
        (0..both).find(|&id| match (self.token_text(id), other.token_text(id)) {
            (Some(here), Some(there)) => here != there,
            _ => false,
        })
    }

    /// Ids of a text; `add_special` puts the post-processor's tokens around it.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        // Without offsets, which is faster.
        let encoding = self.inner.tokenizer.encode_fast(text, add_special).map_err(|e| self.error(&*e))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Ids of a text and where each stands in it.
    pub fn encode_with_offsets(&self, text: &str, add_special: bool) -> Result<Encoded> {
        let encoding = self.inner.tokenizer.encode(text, add_special).map_err(|e| self.error(&*e))?;
        // The mask marks what the post-processor added; a special token in the text has a place in it.
        let added: Vec<bool> = encoding.get_special_tokens_mask().iter().map(|&m| m != 0).collect();
        let offsets = encoding.get_offsets().iter().map(|&(start, end)| start..end).collect();
        Ok(Encoded { ids: encoding.get_ids().to_vec(), offsets, added })
    }

    /// Text of ids; `skip_special` leaves special tokens out.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.tokenizer.decode(ids, skip_special).map_err(|e| self.error(&*e))
    }

    /// The id of a token's text.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.inner.tokenizer.token_to_id(text)
    }

    /// The text of one id as the vocabulary spells it.
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.inner.tokenizer.id_to_token(id)
    }

    /// The bytes that one id puts into a text, whatever stands beside it: a character may be several tokens. Special tokens
    /// and other added ones are their spelling; an id without a token is nothing.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let Some(text) = self.token_text(id) else { return Vec::new() };
        if self.inner.tokenizer.get_added_tokens_decoder().contains_key(&id) {
            return text.into_bytes();
        }
        if self.inner.byte_level {
            return text.chars().filter_map(spelled_byte).collect();
        }
        // SentencePiece's spelling of a byte, and of a space.
        let byte = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
        match byte.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => vec![byte],
            None => text.replace('\u{2581}', " ").into_bytes(),
        }
    }

    /// A decoder that is given ids one at a time.
    pub fn stream(&self, skip_special: bool) -> StreamDecoder {
        StreamDecoder { tokenizer: self.clone(), skip_special, ids: Vec::new(), shown: 0 }
    }

    /// The same for what continues these ids, so that a first word keeps the space between it and what precedes it.
    pub fn stream_after(&self, context: &[u32], skip_special: bool) -> StreamDecoder {
        /// A character and its neighbours are shorter.
        const CONTEXT_MAX: usize = 16;
        // The shortest end that is whole characters, and some: a decoder takes away the first space of what it is given.
        let is_text = |ids: &&[u32]| {
            let text = self.decode(ids, skip_special).unwrap_or_default();
            !text.is_empty() && !text.contains(char::REPLACEMENT_CHARACTER)
        };
        let ends = (1..=context.len().min(CONTEXT_MAX)).map(|len| &context[context.len() - len..]);
        let ids = ends.into_iter().find(is_text).unwrap_or_default().to_vec();
        StreamDecoder { tokenizer: self.clone(), skip_special, shown: ids.len(), ids }
    }

    fn error(&self, error: &(dyn std::error::Error + Send + Sync)) -> LmError {
        LmError::Tokenizer { file: self.inner.file.clone(), message: error.to_string() }
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokenizer({}, {} ids)", self.inner.file.display(), self.inner.vocab_len)
    }
}

/// The library's tokenizer, with padding and truncation off.
///
/// It panics on some damaged files. What is not JSON is found first; the rest is caught.
fn parse(file: &Path, bytes: &[u8]) -> Result<tokenizers::Tokenizer> {
    let error = |message: String| LmError::Tokenizer { file: file.to_owned(), message };
    serde_json::from_slice::<Value>(bytes).map_err(|e| LmError::json(file, &e))?;
    let parsed = std::panic::catch_unwind(|| {
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(bytes)?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None)?;
        // The first text finds what the file's parts make of each other.
        tokenizer.encode("a", true)?;
        Ok(tokenizer)
    });
    match parsed {
        Ok(Ok(tokenizer)) => Ok(tokenizer),
        Ok(Err(e)) => {
            let e: tokenizers::Error = e;
            Err(error(format!("not a tokenizer: {e}")))
        }
        Err(_) => Err(error("not a tokenizer: its parts do not fit together".into())),
    }
}

/// The byte that GPT-2's vocabulary spells as this character: printable ones as themselves, the others from U+0100 on.
fn spelled_byte(c: char) -> Option<u8> {
    let is_itself = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    match u32::from(c) {
        code @ 0..=0xFF => Some(code as u8).filter(|&byte| is_itself(byte)),
        code => (0..=0xFFu8).filter(|&byte| !is_itself(byte)).nth(code as usize - 0x100),
    }
}

/// Puts `*_token` entries of a JSON object into `texts`.
fn special_texts(map: &Map<String, Value>, texts: &mut BTreeMap<String, String>) {
    for (key, value) in map.iter().filter(|(key, _)| key.ends_with("_token")) {
        let text = match value {
            Value::String(text) => Some(text.as_str()),
            Value::Object(token) => token.get("content").and_then(Value::as_str),
            _ => None,
        };
        if let Some(text) = text {
            texts.insert(key.clone(), text.to_owned());
        }
    }
}

/// Text of a growing list of ids, never with half a character.
///
/// A token is not a piece of text: the first one of a text may lose its leading space, and a character
/// may be several tokens. So the new text is the difference between two decodings of a short window that
/// begins with tokens already shown, and is held back while it ends in the replacement character that
/// stands for an unfinished one. The pieces together are what [`Tokenizer::decode`] gives, for ids that
/// spell valid UTF-8.
#[derive(Clone, Debug)]
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// The window: `shown` ids whose text is out, then those whose text is not.
    ids: Vec<u32>,
    shown: usize,
}

impl StreamDecoder {
    /// A character has at most four bytes, each a token at worst. Longer than this it is not going to be one.
    const HELD_BACK_MAX: usize = 8;

    /// Takes an id; gives the text that is now certain, which may be empty.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let held_back = self.ids.len() - self.shown;
        self.next(held_back >= Self::HELD_BACK_MAX)
    }

    /// Gives what was held back.
    pub fn finish(&mut self) -> Result<String> {
        self.next(true)
    }

    fn next(&mut self, force: bool) -> Result<String> {
        let before = self.tokenizer.decode(&self.ids[..self.shown], self.skip_special)?;
        let after = self.tokenizer.decode(&self.ids, self.skip_special)?;
        let unfinished = after.ends_with(char::REPLACEMENT_CHARACTER) && !force;
        match after.strip_prefix(before.as_str()) {
            Some(new) if !new.is_empty() && !unfinished => {
                let new = new.to_owned();
                // What was new is context for what comes next.
                self.ids.drain(..self.shown);
                self.shown = self.ids.len();
                Ok(new)
            }
            _ => Ok(String::new()),
        }
    }
}
