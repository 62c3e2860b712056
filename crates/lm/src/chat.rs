//! Chat templates: messages to text, with the character spans that a model is to learn.
//!
//! A template is the Jinja program that a model directory carries. minijinja runs it with what Transformers
//! puts around Jinja2: blocks trimmed on both sides, loop controls, Python's methods on strings and dicts,
//! `raise_exception`, `strftime_now`, a `tojson` that writes what Python's `json.dumps` writes, and the special
//! tokens by name.
//!
//! **Spans.** Transformers marks what the assistant says by `{% generation %} … {% endgeneration %}`, a tag
//! that only it knows. Here the tag is rewritten into a call block around the same text, whose function puts
//! two characters around what the block renders: noncharacters of Unicode (U+FDD0 to U+FDEF, never part of a
//! text) that occur nowhere in the input. They are taken out of the result, and where they stood are the
//! spans.
//!
//! **Tokens.** A text is tokenised whole and masked by offsets, so a boundary never changes the tokens:
//!
//! ```text
//! token is trained  <=>  its bytes overlap a span          (a token on the edge belongs to the span)
//! completion starts at the first token that ends after the prompt's last byte
//! ```
//!
//! TRL 1.16 also tokenises prompt and completion as one text, and starts the completion where the ids of
//! the prompt alone first differ from those of the whole. The two agree unless a merge across the boundary
//! changes tokens that end before it.
//!
//! **The date.** `strftime_now` is defined only if the caller gives the time: a run is a function of its
//! inputs. Templates that ask for it (Llama 3.1) test whether it is there and have a date of their own.
//!
//! Sources: Transformers 5.23, `utils/chat_template_utils`; TRL 1.16, `trainer/sft_trainer`.
//!
//! Not here: data rows (`rows`), stopping (`engine`).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value};
use serde_json::{Map, Value as Json};

use crate::error::{LmError, Result};
use crate::model::{read_object, read_text};
use crate::tokenizer::Tokenizer;

/// The template's own file, which wins over `tokenizer_config.json`.
const TEMPLATE_FILE: &str = "chat_template.jinja";

/// Named special tokens that a template sees.
const TEMPLATE_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// What `{% generation %}` is rewritten to.
const MARK: &str = "call __polity_generation()";
const MARK_FUNCTION: &str = "__polity_generation";

/// A compiled chat template.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    env: Environment<'static>,
    file: PathBuf,
    /// Names of the templates in `env`, first the default.
    names: Vec<String>,
    sources: Vec<String>,
    special_texts: BTreeMap<String, String>,
}

/// What to render beside the messages.
#[derive(Clone, Copy, Debug)]
pub struct ChatOptions<'a> {
    /// Whether to end with the header of an assistant's turn, for the model to continue.
    pub add_generation_prompt: bool,
    /// Tools as JSON schemas, if any.
    pub tools: Option<&'a Json>,
    /// Further variables of the template (`enable_thinking`).
    pub variables: Option<&'a Map<String, Json>>,
    /// Seconds since 1970 in local time, for templates that print the date.
    pub now: Option<i64>,
}

impl ChatOptions<'_> {
    /// For a model that answers next.
    pub const PROMPT: Self = Self { add_generation_prompt: true, ..Self::WHOLE };

    /// For a conversation to learn from.
    pub const WHOLE: Self = Self { add_generation_prompt: false, tools: None, variables: None, now: None };
}

/// A rendered conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// Bytes of `text` inside `{% generation %}` blocks, in order.
    pub trainable: Vec<Range<usize>>,
}

/// A conversation as ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedChat {
    /// The tokens.
    pub ids: Vec<u32>,
    /// Of each token, whether it overlaps a `{% generation %}` block.
    pub trainable: Vec<bool>,
}

/// A prompt and a completion as one row of ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedPair {
    /// The tokens of both.
    pub ids: Vec<u32>,
    /// The first token of the completion; as many as `ids` if there is none.
    pub first: usize,
    /// Whether the template renders the prompt differently once the completion follows, so that the
    /// completion starts where the two texts part. The model then learns from a context that it will not
    /// see.
    pub prompt_differs: bool,
}

/// A message.
pub fn message(role: &str, content: &str) -> Json {
    serde_json::json!({"role": role, "content": content})
}

impl ChatTemplate {
    /// Reads the template of a model directory, if it has one.
    pub fn load(dir: &Path, special_texts: &BTreeMap<String, String>) -> Result<Option<Self>> {
        let file = dir.join(TEMPLATE_FILE);
        if file.exists() {
            let source = read_text(&file)?;
            return Self::new(&file, &[("default".into(), source)], special_texts).map(Some);
        }
        let file = dir.join("tokenizer_config.json");
        if !file.exists() {
            return Ok(None);
        }
        let config = read_object(&file)?;
        let bad = |found: &str| {
            let expected = "a template, or a list of {\"name\", \"template\"}";
            LmError::key(&file, "chat_template", found, expected, "")
        };
        let named = match config.get("chat_template") {
            None | Some(Json::Null) => return Ok(None),
            Some(Json::String(source)) => vec![("default".into(), source.clone())],
            Some(Json::Array(list)) => list
                .iter()
                .map(|entry| {
                    let text = |key| entry.get(key).and_then(Json::as_str).map(str::to_owned);
                    text("name").zip(text("template")).ok_or_else(|| bad("an entry without them"))
                })
                .collect::<Result<_>>()?,
            Some(Json::Object(map)) => map
                .iter()
                .map(|(name, source)| {
                    let source = source.as_str().ok_or_else(|| bad("an entry that is not a template"))?;
                    Ok((name.clone(), source.to_owned()))
                })
                .collect::<Result<_>>()?,
            Some(_) => return Err(bad("something else")),
        };
        if !named.iter().any(|(name, _)| name == "default") {
            return Err(bad("no template called `default`"));
        }
        Self::new(&file, &named, special_texts).map(Some)
    }

    /// Compiles templates by name; one must be called `default`. `file` is named in errors.
    pub fn new(
        file: &Path,
        named: &[(String, String)],
        special_texts: &BTreeMap<String, String>,
    ) -> Result<Self> {
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        env.set_syntax(syntax.expect("the delimiters are the usual ones"));
        env.set_auto_escape_callback(|_| AutoEscape::None);
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.add_filter("tojson", to_json);
        env.add_function("raise_exception", |message: String| -> std::result::Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        for (name, source) in named {
            env.add_template_owned(name.clone(), rewrite_generation(source)).map_err(|e| error(file, &e))?;
        }
        Ok(Self {
            env,
            file: file.to_owned(),
            names: named.iter().map(|(name, _)| name.clone()).collect(),
            sources: named.iter().map(|(_, source)| source.clone()).collect(),
            special_texts: special_texts.clone(),
        })
    }

    /// Whether the template says what is to be learnt. Without marks no span is ever trainable.
    pub fn marks_generation(&self) -> bool {
        self.sources.iter().any(|source| rewrite_generation(source) != *source)
    }

    /// Renders a conversation: a list of objects with `role`, `content` and whatever else the template knows.
    pub fn render(&self, messages: &[Json], options: &ChatOptions<'_>) -> Result<Rendered> {
        if messages.is_empty() {
            return Err(self.refused("no messages", "a conversation has at least one message"));
        }
        if let Some(at) = messages.iter().position(|message| !message.is_object()) {
            let what = format!("message {at} is not an object");
            return Err(self.refused(&what, "a message is {\"role\": …, \"content\": …}"));
        }
        let messages: Vec<Value> = messages.iter().map(message_value).collect();
        let mut context: BTreeMap<String, Value> = BTreeMap::new();
        for name in TEMPLATE_TOKENS {
            if let Some(text) = self.special_texts.get(name) {
                context.insert(name.into(), text.into());
            }
        }
        context.insert("messages".into(), messages.into());
        context.insert("tools".into(), options.tools.map_or(Value::from(()), from_json));
        context.insert("documents".into(), Value::from(()));
        context.insert("add_generation_prompt".into(), options.add_generation_prompt.into());
        for (name, value) in options.variables.into_iter().flatten() {
            context.insert(name.clone(), from_json(value));
        }

        let (open, close) = self.free_marks(&context)?;
        let mut env = self.env.clone();
        env.add_function(
            MARK_FUNCTION,
            move |state: &mut State, kwargs: Kwargs| -> std::result::Result<Value, Error> {
                let body = kwargs.get::<Value>("caller")?.call(state, &[])?;
                Ok(Value::from(format!("{open}{body}{close}")))
            },
        );
        if let Some(now) = options.now {
            env.add_function("strftime_now", move |format: String| strftime(now, &format));
        }
        let tool_use = options.tools.is_some() && self.names.iter().any(|name| name == "tool_use");
        let name = if tool_use { "tool_use" } else { "default" };
        let template = env.get_template(name).map_err(|e| error(&self.file, &e))?;
        let marked = template.render(Value::from(context)).map_err(|e| error(&self.file, &e))?;
        Ok(take_marks(&marked, open, close))
    }

    /// Two noncharacters that occur neither in the template nor in what it renders.
    fn free_marks(&self, context: &BTreeMap<String, Value>) -> Result<(char, char)> {
        let mut used = [false; 32];
        let mut look = |text: &str| {
            for c in text.chars().filter(|c| ('\u{FDD0}'..='\u{FDEF}').contains(c)) {
                used[c as usize - 0xFDD0] = true;
            }
        };
        self.sources.iter().for_each(|source| look(source));
        context.values().for_each(|value| look(&value.to_string()));
        let mut free = (0..32u32).filter(|&i| !used[i as usize]).filter_map(|i| char::from_u32(0xFDD0 + i));
        match (free.next(), free.next()) {
            (Some(open), Some(close)) => Ok((open, close)),
            _ => Err(self.refused("the messages use all of U+FDD0 to U+FDEF", "these are not characters")),
        }
    }

    fn refused(&self, message: &str, hint: &str) -> LmError {
        let (file, message, hint) = (self.file.clone(), message.to_owned(), hint.to_owned());
        LmError::Template { file, line: None, message, hint }
    }
}

impl Tokenizer {
    /// A conversation as ids, with the tokens that overlap a `{% generation %}` block marked. No special
    /// tokens are added: the template has put them where they belong.
    pub fn encode_chat(
        &self,
        template: &ChatTemplate,
        messages: &[Json],
        options: &ChatOptions<'_>,
    ) -> Result<EncodedChat> {
        let rendered = template.render(messages, options)?;
        let encoded = self.encode_with_offsets(&rendered.text, false)?;
        let mut trainable = vec![false; encoded.ids.len()];
        // Both lists are in order, so the spans need no search.
        let mut spans = rendered.trainable.iter().peekable();
        for (token, offset) in encoded.offsets.iter().enumerate() {
            while spans.next_if(|span| span.end <= offset.start).is_some() {}
            // A token that stands for no bytes belongs to the text that follows it.
            let end = offset.end.max(offset.start + 1);
            trainable[token] = spans.peek().is_some_and(|span| span.start < end);
        }
        Ok(EncodedChat { ids: encoded.ids, trainable })
    }

    /// A plain prompt and completion as one row, with the post-processor's special tokens around it.
    /// `add_eos` ends the completion with the EOS token's text unless it does already.
    pub fn encode_pair(&self, prompt: &str, completion: &str, add_eos: bool) -> Result<EncodedPair> {
        let mut text = format!("{prompt}{completion}");
        if add_eos
            && let Some(eos) = self.eos_text()
            && !completion.ends_with(eos)
        {
            text.push_str(eos);
        }
        self.encode_from(&text, prompt.len(), true)
    }

    /// A conversation whose last messages are the completion, as one row.
    pub fn encode_chat_pair(
        &self,
        template: &ChatTemplate,
        prompt: &[Json],
        completion: &[Json],
        options: &ChatOptions<'_>,
    ) -> Result<EncodedPair> {
        let messages = [prompt, completion].concat();
        let whole =
            template.render(&messages, &ChatOptions { add_generation_prompt: false, ..*options })?.text;
        let alone = template.render(prompt, &ChatOptions { add_generation_prompt: true, ..*options })?.text;
        let same = whole.bytes().zip(alone.bytes()).take_while(|(a, b)| a == b).count();
        let mut pair = self.encode_from(&whole, whole.floor_char_boundary(same), false)?;
        pair.prompt_differs = same < alone.len();
        Ok(pair)
    }

    /// Ids of a text, and the first token that ends after byte `boundary`.
    fn encode_from(&self, text: &str, boundary: usize, add_special: bool) -> Result<EncodedPair> {
        let encoded = self.encode_with_offsets(text, add_special)?;
        let is_after = |i: usize| !encoded.added[i] && encoded.offsets[i].end > boundary;
        let first = (0..encoded.ids.len()).find(|&i| is_after(i)).unwrap_or(encoded.ids.len());
        Ok(EncodedPair { ids: encoded.ids, first, prompt_differs: false })
    }
}

fn error(file: &Path, error: &Error) -> LmError {
    // The innermost cause is the template's own message, where it raised one.
    let mut inner = error;
    while let Some(source) = std::error::Error::source(inner).and_then(|s| s.downcast_ref::<Error>()) {
        inner = source;
    }
    let message = match (inner.kind(), inner.detail()) {
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    let (line, hint) = (error.line(), String::new());
    LmError::Template { file: file.to_owned(), line, message, hint }
}

/// A message as the template sees it. Keys without a value are dropped, and the reasoning is there under the
/// names that templates know it by, as in Transformers.
fn message_value(message: &Json) -> Value {
    let mut map = message.as_object().cloned().unwrap_or_default();
    map.retain(|_, value| !value.is_null());
    let reasoning =
        ["reasoning_content", "thinking", "reasoning"].iter().find_map(|key| map.get(*key)).cloned();
    if let Some(reasoning) = reasoning {
        map.entry("thinking").or_insert_with(|| reasoning.clone());
        map.insert("reasoning_content".into(), reasoning);
    }
    from_json(&Json::Object(map))
}

fn from_json(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(x) => Value::from(*x),
        Json::Number(x) => match (x.as_i64(), x.as_u64()) {
            (Some(x), _) => Value::from(x),
            (None, Some(x)) => Value::from(x),
            (None, None) => Value::from(x.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(x) => Value::from(x.as_str()),
        Json::Array(items) => items.iter().map(from_json).collect(),
        Json::Object(map) => {
            Value::from_pairs(map.iter().map(|(key, value)| (key.as_str(), from_json(value))))
        }
    }
}

/// Takes the marks out of a text; what stood between them are the spans.
fn take_marks(marked: &str, open: char, close: char) -> Rendered {
    let mut text = String::with_capacity(marked.len());
    let mut trainable: Vec<Range<usize>> = Vec::new();
    let mut depth = 0;
    for c in marked.chars() {
        if c == open {
            if depth == 0 {
                trainable.push(text.len()..text.len());
            }
            depth += 1;
        } else if c == close && depth > 0 {
            depth -= 1;
            if depth == 0 {
                trainable.last_mut().expect("opened before").end = text.len();
            }
        } else if c != close {
            text.push(c);
        }
    }
    trainable.retain(|span| !span.is_empty());
    Rendered { text, trainable }
}

/// Rewrites the tags `generation` and `endgeneration` into a call block, whatever their whitespace control.
/// Comments, expressions, strings and raw blocks are left as they are.
fn rewrite_generation(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%").into_iter().chain(rest.find("{{")).chain(rest.find("{#")).min() {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let len = match &rest[..2] {
            "{#" => rest.find("#}").map(|end| end + 2),
            "{{" => tag_end(rest, "}}"),
            _ => tag_end(rest, "%}"),
        };
        // An unfinished tag is the template compiler's to report.
        let Some(len) = len else { break };
        let (tag, after) = rest.split_at(len);
        let inner = tag[2..len - 2].trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        match inner {
            "generation" if tag.starts_with("{%") => out.push_str(&tag.replacen("generation", MARK, 1)),
            "endgeneration" if tag.starts_with("{%") => {
                out.push_str(&tag.replacen("endgeneration", "endcall", 1));
            }
            "raw" if tag.starts_with("{%") => {
                let end = raw_end(after).unwrap_or(after.len());
                out.push_str(tag);
                out.push_str(&after[..end]);
                rest = &after[end..];
                continue;
            }
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Length of a tag, its strings skipped.
fn tag_end(text: &str, close: &str) -> Option<usize> {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(2) {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(q) if c == q => quote = None,
            Some(_) => {}
            None if c == '"' || c == '\'' => quote = Some(c),
            None if text[at..].starts_with(close) => return Some(at + close.len()),
            None => {}
        }
    }
    None
}

/// Where the tag `endraw` begins.
fn raw_end(text: &str) -> Option<usize> {
    text.match_indices("{%")
        .map(|(at, _)| at)
        .find(|&at| text[at + 2..].trim_start_matches(['-', '+']).trim_start().starts_with("endraw"))
}

/// Python's `json.dumps(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
fn to_json(value: &Value, kwargs: Kwargs) -> std::result::Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let style = JsonStyle {
        ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        indent,
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        separators: match kwargs.get::<Option<Vec<String>>>("separators")? {
            Some(pair) if pair.len() == 2 => (pair[0].clone(), pair[1].clone()),
            Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "separators are two strings")),
            None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        },
    };
    kwargs.assert_all_used()?;
    let mut out = String::new();
    style.write(&mut out, value, 0)?;
    Ok(Value::from(out))
}

struct JsonStyle {
    ascii: bool,
    indent: Option<usize>,
    sort_keys: bool,
    separators: (String, String),
}

impl JsonStyle {
    fn write(&self, out: &mut String, value: &Value, depth: usize) -> std::result::Result<(), Error> {
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => out.push_str(&value.to_string()),
            ValueKind::Number => out.push_str(&python_float(f64::try_from(value.clone())?)),
            ValueKind::String => self.string(out, value.as_str().unwrap_or_default()),
            ValueKind::Map => {
                let mut entries = Vec::new();
                for key in value.try_iter()? {
                    let item = value.get_item(&key)?;
                    let key = match key.kind() {
                        ValueKind::String => key.to_string(),
                        _ => {
                            let mut text = String::new();
                            self.write(&mut text, &key, 0)?;
                            text
                        }
                    };
                    entries.push((key, item));
                }
                if self.sort_keys {
                    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
                }
                self.items(out, depth, '{', '}', entries, |out, (key, item)| {
                    self.string(out, &key);
                    out.push_str(&self.separators.1);
                    self.write(out, &item, depth + 1)
                })?;
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.collect::<Vec<_>>();
                self.items(out, depth, '[', ']', items, |out, item| self.write(out, &item, depth + 1))?;
            }
            kind => {
                let message = format!("tojson: {kind} cannot be written as JSON");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        }
        Ok(())
    }

    fn items<T>(
        &self,
        out: &mut String,
        depth: usize,
        open: char,
        close: char,
        items: Vec<T>,
        mut write: impl FnMut(&mut String, T) -> std::result::Result<(), Error>,
    ) -> std::result::Result<(), Error> {
        let newline = |out: &mut String, depth: usize| {
            if let Some(indent) = self.indent {
                out.push('\n');
                out.extend(std::iter::repeat_n(' ', indent * depth));
            }
        };
        out.push(open);
        let empty = items.is_empty();
        for (i, item) in items.into_iter().enumerate() {
            if i > 0 {
                out.push_str(&self.separators.0);
            }
            newline(out, depth + 1);
            write(out, item)?;
        }
        if !empty {
            newline(out, depth);
        }
        out.push(close);
        Ok(())
    }

    fn string(&self, out: &mut String, text: &str) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ascii && !c.is_ascii()) || (self.ascii && c == '\u{7f}') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        write!(out, "\\u{unit:04x}").expect("writing to a string");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

/// Python's `repr` of a float: the shortest digits, an exponent below 1e-4 and from 1e16.
fn python_float(x: f64) -> String {
    if x.is_nan() {
        return "NaN".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').expect("the format has an exponent");
    let exponent: i32 = exponent.parse().expect("an exponent is a number");
    if x != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = x.to_string();
    if plain.contains('.') { plain } else { format!("{plain}.0") }
}

/// `strftime` of a time in seconds since 1970, for the directives that print dates; others stay as they are.
fn strftime(now: i64, format: &str) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
    let (days, seconds) = (now.div_euclid(86_400), now.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let twelve = if hour % 12 == 0 { 12 } else { hour % 12 };
    let month_name = MONTHS[month as usize - 1];
    // 1 January 1970 was a Thursday.
    let day_name = DAYS[(days + 4).rem_euclid(7) as usize];
    let first = days_from_civil(year, 1, 1);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next();
        let unpadded = directive == Some('-');
        if unpadded {
            directive = chars.next();
        }
        let number = |x: i64, width: usize| match unpadded {
            true => x.to_string(),
            false => format!("{x:0width$}"),
        };
        let text = match directive {
            Some('Y') => year.to_string(),
            Some('y') => number(year.rem_euclid(100), 2),
            Some('m') => number(month, 2),
            Some('d') => number(day, 2),
            Some('e') => format!("{day:>2}"),
            Some('H') => number(hour, 2),
            Some('I') => number(twelve, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('j') => number(days - first + 1, 3),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.into(),
            Some('B') => month_name.into(),
            Some('b' | 'h') => month_name[..3].into(),
            Some('A') => day_name.into(),
            Some('a') => day_name[..3].into(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('D') => format!("{month:02}/{day:02}/{:02}", year.rem_euclid(100)),
            Some('%') => "%".into(),
            other => {
                format!("%{}{}", if unpadded { "-" } else { "" }, other.map(String::from).unwrap_or_default())
            }
        };
        out.push_str(&text);
    }
    out
}

/// Year, month and day of a day number, day 0 being 1 January 1970.
///
/// Source: Howard Hinnant, "chrono-compatible low-level date algorithms" (public domain).
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let of_era = z.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// The inverse of [`civil`].
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year - 719_468
}
