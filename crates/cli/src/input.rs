//! Rows to token ids: what `generate`, `logprobs` and `score` read.
//!
//! Every row is read and checked before the first one is computed, so a mistake in the last line costs no time and no
//! output is cut short by it.
//!
//! ```text
//! prompt                plain text, tokenised as the tokenizer says (BOS), but nothing after it
//! messages              the chat template, with the header of the assistant's turn; a conversation that ends with the
//!                       assistant's turn is continued, as in Transformers' `continue_final_message`
//! ids, prompt_ids       as they are
//! prompt + completion   tokenised as one text, split by characters; EOS appended to a plain completion that lacks it
//! text                  the same with an empty prompt; without a BOS its first token has nothing before it and is the prompt
//! ```
//!
//! Not here: formats and keys (`rows`), tokens and templates (`lm`).

use std::io::{self, IsTerminal};
use std::path::Path;

use polity_lm::{ChatOptions, ChatTemplate, EncodedPair};
use polity_rows::{Completion, CompletionRow, Message, Place, Prompt, PromptRow, RowInfo, Rows, Text};
use serde_json::Value;

use crate::error::{CommandError, CommandResult};
use crate::model::Loaded;
use crate::ui::Ui;

/// A prompt to answer.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptIds {
    /// Position among the rows of the file.
    pub index: usize,
    /// At least one token, and room for one more.
    pub ids: Vec<u32>,
}

/// A completion to measure.
#[derive(Clone, Debug, PartialEq)]
pub struct CompletionIds {
    /// Position among the rows of the file.
    pub index: usize,
    /// Prompt and completion.
    pub ids: Vec<u32>,
    /// Where the completion begins; at least 1.
    pub first: usize,
}

impl CompletionIds {
    /// What is responded to.
    pub fn prompt(&self) -> &[u32] {
        &self.ids[..self.first]
    }

    /// The response.
    pub fn completion(&self) -> &[u32] {
        &self.ids[self.first..]
    }
}

/// Opens a file of rows; `-` is stdin.
pub fn open(input: &Path, ui: &Ui) -> CommandResult<Rows> {
    if input != Path::new("-") {
        return Ok(polity_rows::open(input)?);
    }
    if io::stdin().is_terminal() {
        ui.note("reading rows from the terminal; end with Ctrl-D");
    }
    Ok(Rows::from_reader("stdin", io::stdin())?)
}

/// Reads all prompts.
pub fn prompts(rows: Rows, loaded: &Loaded, ui: &Ui) -> CommandResult<Vec<PromptIds>> {
    let mut reader = Reader::new(rows.file(), loaded, ui);
    let mut prompts = Vec::new();
    for row in rows.typed::<PromptRow>() {
        let row = row?;
        let place = reader.place(&row.info);
        let ids = reader.prompt(&row.prompt, &place)?;
        reader.check_ids(&ids, &place)?;
        if ids.is_empty() {
            return Err(CommandError::bad_input(format!(
                "{place}: the prompt is empty; expected at least one token to continue"
            ))
            .hint(match loaded.model.generation.bos {
                Some(bos) => format!("to begin a text from nothing, write {{\"ids\": [{bos}]}}"),
                None => "remove the row".to_owned(),
            }));
        }
        if ids.len() >= loaded.positions_max() {
            return Err(reader.too_long("a prompt", ids.len(), loaded.positions_max() - 1, &place));
        }
        prompts.push(PromptIds { index: row.info.index, ids });
    }
    reader.finish();
    Ok(prompts)
}

/// Reads all completions.
pub fn completions(rows: Rows, loaded: &Loaded, ui: &Ui) -> CommandResult<Vec<CompletionIds>> {
    let mut reader = Reader::new(rows.file(), loaded, ui);
    let mut completions = Vec::new();
    for row in rows.typed::<CompletionRow>() {
        let row = row?;
        let place = reader.place(&row.info);
        let (ids, first) = reader.completion(&row.completion, &place)?;
        reader.check_ids(&ids, &place)?;
        if first == 0 {
            return Err(CommandError::bad_input(format!(
                "{place}: nothing precedes the completion's first token; expected a prompt of at least one token"
            )));
        }
        if first == ids.len() {
            return Err(CommandError::bad_input(format!(
                "{place}: the completion is empty; expected at least one token"
            )));
        }
        if ids.len() > loaded.positions_max() {
            return Err(reader.too_long("a row", ids.len(), loaded.positions_max(), &place));
        }
        completions.push(CompletionIds { index: row.info.index, ids, first });
    }
    reader.finish();
    Ok(completions)
}

/// Encodes completions that are in memory. `None` is one that the model has too few positions for, or that leaves nothing to score; `file`
/// is where they are from, for messages.
pub fn encoded<'c>(
    completions: impl Iterator<Item = &'c Completion>,
    file: &Path,
    loaded: &Loaded,
    ui: &Ui,
) -> CommandResult<Vec<Option<CompletionIds>>> {
    let mut reader = Reader::new(file, loaded, ui);
    let mut encoded = Vec::new();
    for (index, completion) in completions.enumerate() {
        let place = Place { row: Some(index), ..reader.place.clone() };
        let (ids, first) = reader.completion(completion, &place)?;
        let fits = first > 0 && first < ids.len() && ids.len() <= loaded.positions_max();
        encoded.push(fits.then_some(CompletionIds { index, ids, first }));
    }
    reader.finish();
    Ok(encoded)
}

/// Encodes rows and counts what is odd.
struct Reader<'l> {
    loaded: &'l Loaded,
    ui: &'l Ui,
    place: Place,
    /// Read when the first row of messages comes.
    template: Option<ChatTemplate>,
    doubled_bos: Odd,
    prompt_differs: Odd,
}

/// How many rows have some oddity, and the first of them.
#[derive(Default)]
struct Odd {
    rows: usize,
    first: Option<String>,
}

impl Odd {
    fn count(&mut self, place: &Place) {
        self.rows += 1;
        self.first.get_or_insert_with(|| place.to_string());
    }

    fn warn(&self, ui: &Ui, what: &str) {
        if let Some(first) = &self.first {
            ui.warn(&format!("{what} (rows: {}; first: {first})", self.rows));
        }
    }
}

impl<'l> Reader<'l> {
    fn new(file: &Path, loaded: &'l Loaded, ui: &'l Ui) -> Self {
        let place = Place { file: file.into(), line: None, row: None };
        Self {
            loaded,
            ui,
            place,
            template: None,
            doubled_bos: Odd::default(),
            prompt_differs: Odd::default(),
        }
    }

    fn place(&self, info: &RowInfo) -> Place {
        Place { line: info.line, row: Some(info.index), ..self.place.clone() }
    }

    fn finish(&self) {
        self.doubled_bos.warn(self.ui, "the BOS token stands twice at the start: in the text, and added");
        self.prompt_differs.warn(
            self.ui,
            "the chat template renders a prompt differently once the completion follows; the completion starts where they part",
        );
    }

    fn prompt(&mut self, prompt: &Prompt, place: &Place) -> CommandResult<Vec<u32>> {
        match prompt {
            Prompt::Ids(ids) => Ok(ids.clone()),
            // Not BOS alone: a forgotten prompt is likelier than a wish for any text at all.
            Prompt::Text(Text::Plain(text)) if text.is_empty() => Ok(Vec::new()),
            Prompt::Text(Text::Plain(text)) => {
                let tokenizer = self.loaded.model.tokenizer()?;
                let mut ids = tokenizer.encode(text, true).map_err(|error| at(place, error))?;
                // The response goes where the post-processor would put an end.
                ids.truncate(ids.len() - tokenizer.suffix().len());
                self.check_bos(&ids, place);
                Ok(ids)
            }
            Prompt::Text(Text::Messages(messages)) => {
                let json = json_of(messages);
                let tokenizer = self.loaded.model.tokenizer()?.clone();
                let template = self.template(place)?;
                let text = prompt_text(template, messages, &json).map_err(|error| at(place, error))?;
                let ids = tokenizer.encode(&text, false).map_err(|error| at(place, error))?;
                self.check_bos(&ids, place);
                Ok(ids)
            }
        }
    }

    /// All ids and where the completion begins.
    fn completion(&mut self, completion: &Completion, place: &Place) -> CommandResult<(Vec<u32>, usize)> {
        match completion {
            Completion::Ids { prompt_ids, completion_ids } => {
                Ok(([&prompt_ids[..], completion_ids].concat(), prompt_ids.len()))
            }
            Completion::Pair { prompt: Text::Plain(prompt), completion: Text::Plain(completion) } => {
                let tokenizer = self.loaded.model.tokenizer()?;
                let pair =
                    tokenizer.encode_pair(prompt, completion, true).map_err(|error| at(place, error))?;
                Ok(self.checked(pair, place))
            }
            Completion::Text(text) => {
                let tokenizer = self.loaded.model.tokenizer()?;
                let pair = tokenizer.encode_pair("", text, true).map_err(|error| at(place, error))?;
                let (ids, first) = self.checked(pair, place);
                Ok((ids, first.max(1)))
            }
            Completion::Pair { prompt: Text::Messages(prompt), completion: Text::Messages(completion) } => {
                self.chat_pair(prompt, completion, place)
            }
            Completion::Messages(messages) => {
                let (completion, prompt) = match messages.split_last() {
                    Some((last, rest)) if !rest.is_empty() => (std::slice::from_ref(last), rest),
                    _ => {
                        return Err(CommandError::bad_input(format!(
                            "{place}: `messages` has nothing before the assistant's message; expected a prompt"
                        )));
                    }
                };
                self.chat_pair(prompt, completion, place)
            }
            Completion::Pair { .. } => Err(CommandError::bad_input(format!(
                "{place}: found text beside messages, expected both of one kind"
            ))),
        }
    }

    fn chat_pair(
        &mut self,
        prompt: &[Message],
        completion: &[Message],
        place: &Place,
    ) -> CommandResult<(Vec<u32>, usize)> {
        let tokenizer = self.loaded.model.tokenizer()?.clone();
        let template = self.template(place)?;
        let (prompt, completion) = (json_of(prompt), json_of(completion));
        let pair = tokenizer
            .encode_chat_pair(template, &prompt, &completion, &ChatOptions::WHOLE)
            .map_err(|error| at(place, error))?;
        Ok(self.checked(pair, place))
    }

    fn checked(&mut self, pair: EncodedPair, place: &Place) -> (Vec<u32>, usize) {
        self.check_bos(&pair.ids, place);
        if pair.prompt_differs {
            self.prompt_differs.count(place);
        }
        (pair.ids, pair.first)
    }

    fn check_bos(&mut self, ids: &[u32], place: &Place) {
        if self.loaded.model.tokenizer.as_ref().is_some_and(|tokenizer| tokenizer.doubled_bos(ids)) {
            self.doubled_bos.count(place);
        }
    }

    fn template(&mut self, place: &Place) -> CommandResult<&ChatTemplate> {
        if self.template.is_none() {
            self.template = self.loaded.template()?;
        }
        self.template.as_ref().ok_or_else(|| {
            CommandError::bad_input(format!(
                "{place}: `messages` need a chat template, and {} has none",
                self.loaded.dir.display()
            ))
            .hint("write the rows as text (prompt), or save the tokenizer with its chat_template")
        })
    }

    fn check_ids(&self, ids: &[u32], place: &Place) -> CommandResult {
        let vocab = self.loaded.model.config.vocab;
        match ids.iter().position(|&id| id as usize >= vocab) {
            None => Ok(()),
            Some(at) => Err(CommandError::bad_input(format!(
                "{place}: token {at} is id {}, expected ids below {vocab}, the model's vocabulary",
                ids[at]
            ))
            .hint("the ids are another tokenizer's")),
        }
    }

    fn too_long(&self, what: &str, found: usize, limit: usize, place: &Place) -> CommandError {
        CommandError::bad_input(format!(
            "{place}: {what} of {found} tokens, expected at most {limit}: {} has {} positions",
            self.loaded.dir.display(),
            self.loaded.positions_max()
        ))
        .hint("shorten the row; rows are never cut silently")
    }
}

/// The text that a model answers.
pub fn prompt_text(
    template: &ChatTemplate,
    messages: &[Message],
    json: &[Value],
) -> polity_lm::Result<String> {
    let last = match messages.last() {
        Some(last) if last.role == "assistant" => last.content.trim(),
        _ => return Ok(template.render(json, &ChatOptions::PROMPT)?.text),
    };
    // Continue the assistant's turn: what the template puts after its words is cut off.
    let mut text = template.render(json, &ChatOptions::WHOLE)?.text;
    if let Some(start) = text.rfind(last) {
        text.truncate(start + last.len());
    }
    Ok(text)
}

/// Messages as a template sees them.
pub fn json_of(messages: &[Message]) -> Vec<Value> {
    messages
        .iter()
        .map(|message| {
            // A message is a map with text keys, which is what JSON can hold.
            serde_json::to_value(message).expect("a message came from JSON")
        })
        .collect()
}

/// The row's place before a model's error.
fn at(place: &Place, error: polity_lm::LmError) -> CommandError {
    let hints = error.hint().map(str::to_owned).into_iter().collect();
    CommandError { hints, ..CommandError::bad_input(format!("{place}: {error}")) }
}
