//! Rows become token ids, and are looked at before anything is learnt from them: pre-flight.
//!
//! A text is tokenised whole and cut by character offsets, so a prompt's boundary never changes the tokens; a token
//! that straddles the boundary belongs to the completion. A plain completion gets the tokenizer's EOS if it lacks
//! it; rows of ids are taken as they are.
//!
//! What would train on nothing or learn the wrong thing is refused with the rows' numbers
//! ([`TrainError::Preflight`]); what is merely odd is counted and reported ([`Preflight`]).
//!
//! Not here: reading files (`rows`), the chat template's language (`lm`).

use std::collections::HashSet;
use std::fmt;

use polity_lm::chat::{ChatOptions, ChatTemplate, EncodedPair};
use polity_lm::rng::Stream;
use polity_lm::{Model, Tokenizer};
use polity_rows::{
    Completion, CompletionRow, Flag, Message, Pair, PreferenceRow, Prompt, PromptRow, RowInfo, Text,
};

use crate::error::TrainError;
use crate::examples::{Comparison, Demonstration, ExampleInfo, PromptExample};
use crate::settings::{CommonConfig, SftConfig, Truncation};

/// Turns texts into ids for one model.
pub struct Encoder<'m> {
    model: &'m Model,
    template: Option<&'m ChatTemplate>,
}

/// What pre-flight found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Preflight {
    /// What the rows are, e.g. "training pairs".
    pub what: String,
    /// Rows read.
    pub rows: usize,
    /// Rows to be used.
    pub used: usize,
    /// Tokens of the rows to be used; a prompt shared by two responses counts once.
    pub tokens: usize,
    /// Of these, tokens that are learnt, or compared.
    pub trained_tokens: usize,
    /// Rows cut to the length limit.
    pub truncated: Vec<usize>,
    /// Rows left out because they are longer than the limit.
    pub dropped: Vec<usize>,
    /// Rows left out because nothing of them would be learnt.
    pub untrained: Vec<usize>,
    /// Rows that start with two BOS tokens.
    pub doubled_bos: Vec<usize>,
    /// Rows without the BOS that the tokenizer puts before texts.
    pub missing_bos: Vec<usize>,
    /// Rows whose completion does not end with a stop token, so that stopping is not learnt from them.
    pub no_eos: Vec<usize>,
    /// Rows whose prompt the template renders differently once a completion follows.
    pub prompt_differs: Vec<usize>,
    /// What the reader of the file remarked: remark and rows.
    pub flags: Vec<(String, Vec<usize>)>,
    /// Longest row in tokens.
    pub longest: usize,
    /// Whether padding and the end of a response are one token.
    pub pad_is_eos: bool,
    /// Other remarks, one sentence each.
    pub notes: Vec<String>,
}

/// At most this many row numbers are named.
const NAMED_ROWS_MAX: usize = 8;

fn name_rows(rows: &[usize]) -> String {
    let named: Vec<String> = rows.iter().take(NAMED_ROWS_MAX).map(|row| (row + 1).to_string()).collect();
    let more = rows.len().saturating_sub(NAMED_ROWS_MAX);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("row{} {}{rest}", if rows.len() == 1 { "" } else { "s" }, named.join(", "))
}

impl Preflight {
    /// What deserves a person's attention, one sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let mut out = Vec::new();
        let mut say = |rows: &[usize], what: &str| {
            if !rows.is_empty() {
                out.push(format!("{} {what}: {}", self.what, name_rows(rows)));
            }
        };
        say(&self.truncated, "cut to max_length");
        say(&self.dropped, "left out, longer than max_length");
        say(&self.untrained, "left out, nothing in them would be learnt");
        say(
            &self.doubled_bos,
            "that start with two BOS tokens (the text has one and the tokenizer adds one)",
        );
        say(&self.missing_bos, "without the BOS token that this tokenizer puts before texts");
        say(
            &self.no_eos,
            "whose response does not end with a stop token, so stopping is not learnt from them",
        );
        say(&self.prompt_differs, "whose prompt is rendered differently once a response follows");
        for (flag, rows) in &self.flags {
            out.push(format!("{}: {flag}: {}", self.what, name_rows(rows)));
        }
        if self.pad_is_eos {
            out.push(
                "the pad token is the EOS token: trainers that pad mask it and models then never learn to stop \
                 (nothing is padded here)"
                    .into(),
            );
        }
        out.extend(self.notes.iter().cloned());
        out
    }
}

impl fmt::Display for Preflight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.used)?;
        if self.used != self.rows {
            write!(f, " of {}", self.rows)?;
        }
        write!(f, " {}, {} tokens", self.what, self.tokens)?;
        // A prompt is answered, not learnt.
        if self.trained_tokens > 0 {
            let share = 100.0 * self.trained_tokens as f64 / self.tokens.max(1) as f64;
            write!(f, " ({share:.0} % learnt)")?;
        }
        write!(f, ", longest {}", self.longest)
    }
}

/// What happens to a row because of its length.
enum Fit {
    Whole,
    Cut(usize),
    Dropped,
}

/// The length limit of a stage.
struct Limit {
    max: usize,
    /// Of these, tokens kept for a response.
    room: usize,
    truncation: Truncation,
}

impl Limit {
    fn new(model: &Model, common: &CommonConfig, room: usize) -> Self {
        let positions = model.config.positions_max;
        let max = common.max_length.unwrap_or(positions).min(positions);
        Self { max, room, truncation: common.truncation }
    }

    /// How long a row may be, and what makes it possible to be longer.
    fn in_words(&self) -> (String, &'static str) {
        match self.room {
            0 => (format!("{} tokens", self.max), "raise max_length"),
            room => (
                format!(
                    "{} tokens ({} less response_length = {room})",
                    self.max.saturating_sub(room),
                    self.max
                ),
                "lower response_length, raise max_length",
            ),
        }
    }

    fn fit(&self, len: usize) -> Fit {
        match self.truncation {
            _ if len <= self.max => Fit::Whole,
            Truncation::KeepStart => Fit::Cut(self.max),
            Truncation::Drop | Truncation::Refuse => Fit::Dropped,
        }
    }

    fn check(&self, report: &Preflight) -> Result<(), TrainError> {
        let (most, way_out) = self.in_words();
        if self.truncation == Truncation::Refuse && !report.dropped.is_empty() {
            return Err(TrainError::Preflight {
                what: report.what.clone(),
                problem: format!("{} longer than {most}", name_rows(&report.dropped)),
                hint: format!("{way_out}, or set truncation to \"drop\" or \"keep_start\""),
            });
        }
        if report.used == 0 {
            let hint = match (report.rows, report.dropped.len(), report.untrained.len()) {
                (0, _, _) => "the file has no rows".to_owned(),
                (_, 0, _) => "nothing in them would be learnt: completions are empty, the two responses of each pair are the \
                              same, or the chat template marks nothing as generated"
                    .into(),
                _ => format!("rows are longer than {most}; {way_out} or shorten them"),
            };
            return Err(TrainError::Preflight {
                what: report.what.clone(),
                problem: format!("none of {} rows can be used", report.rows),
                hint,
            });
        }
        Ok(())
    }
}

impl<'m> Encoder<'m> {
    /// An encoder for this model, with its chat template if it has one.
    pub fn new(model: &'m Model, template: Option<&'m ChatTemplate>) -> Self {
        Self { model, template }
    }

    fn tokenizer(&self) -> Result<&Tokenizer, TrainError> {
        Ok(self.model.tokenizer()?)
    }

    fn template(&self) -> Result<&'m ChatTemplate, TrainError> {
        self.template.ok_or_else(|| TrainError::Preflight {
            what: "rows of messages".into(),
            problem: "this model has no chat template".into(),
            hint: "save one as chat_template.jinja beside its tokenizer, or give rows of plain text".into(),
        })
    }

    /// A prompt and a completion as one row; plain completions get an EOS.
    fn pair(&self, prompt: &Text, completion: &Text) -> Result<EncodedPair, TrainError> {
        let tokenizer = self.tokenizer()?;
        Ok(match (prompt, completion) {
            (Text::Plain(prompt), Text::Plain(completion)) => {
                tokenizer.encode_pair(prompt, completion, true)?
            }
            (prompt, completion) => {
                let (prompt, completion) =
                    (messages_of(prompt, "user"), messages_of(completion, "assistant"));
                let options = ChatOptions::WHOLE;
                tokenizer.encode_chat_pair(self.template()?, &prompt, &completion, &options)?
            }
        })
    }

    fn prompt(&self, prompt: &Prompt) -> Result<Vec<u32>, TrainError> {
        Ok(match prompt {
            Prompt::Ids(ids) => ids.clone(),
            Prompt::Text(Text::Plain(text)) => self.tokenizer()?.encode(text, true)?,
            Prompt::Text(Text::Messages(messages)) => {
                let options = ChatOptions::PROMPT;
                let messages: Vec<_> = messages.iter().map(json_of).collect();
                self.tokenizer()?.encode_chat(self.template()?, &messages, &options)?.ids
            }
        })
    }

    fn report(&self, what: &str, rows: usize) -> Preflight {
        let pad_is_eos = self.model.tokenizer.as_ref().is_some_and(Tokenizer::pad_is_eos);
        Preflight { what: what.into(), rows, pad_is_eos, ..Preflight::default() }
    }

    fn look_at_start(&self, report: &mut Preflight, row: usize, ids: &[u32], given_ids: bool) {
        let Some(tokenizer) = &self.model.tokenizer else { return };
        if tokenizer.doubled_bos(ids) {
            report.doubled_bos.push(row);
        }
        let adds_bos = tokenizer.special().bos.filter(|bos| tokenizer.prefix().first() == Some(bos));
        if given_ids && adds_bos.is_some() && ids.first().copied() != adds_bos {
            report.missing_bos.push(row);
        }
    }

    fn ends(&self, ids: &[u32]) -> bool {
        let stops = &self.model.generation.eos;
        stops.is_empty() || ids.last().is_some_and(|last| stops.contains(last))
    }

    fn check_vocabulary(&self, what: &str, row: usize, ids: &[u32]) -> Result<(), TrainError> {
        let vocab = self.model.config.vocab;
        match ids.iter().find(|&&id| id as usize >= vocab) {
            None => Ok(()),
            Some(id) => Err(TrainError::Preflight {
                what: what.into(),
                problem: format!(
                    "row {} has token id {id}, the model's vocabulary ends at {}",
                    row + 1,
                    vocab - 1
                ),
                hint: "the ids are another tokenizer's; tokenise with this model's".into(),
            }),
        }
    }

    /// Rows to imitate.
    pub fn demonstrations(
        &self,
        rows: &[CompletionRow],
        config: &SftConfig,
        what: &str,
    ) -> Result<(Vec<Demonstration>, Preflight), TrainError> {
        let limit = Limit::new(self.model, &config.common, 0);
        let mut report = self.report(what, rows.len());
        let mut out = Vec::with_capacity(rows.len());
        if config.assistant_only_loss && !self.template()?.marks_generation() {
            return Err(TrainError::Preflight {
                what: what.into(),
                problem: "assistant_only_loss, and the chat template has no {% generation %} marks".into(),
                hint: "put {% generation %} … {% endgeneration %} around the assistant's text in the template, or \
                       train on completions (prompt and completion rows)"
                    .into(),
            });
        }
        for row in rows {
            let index = row.info.index;
            let (mut ids, mut trained, group) =
                self.demonstration(&row.completion, config).map_err(TrainError::in_row(what, index))?;
            self.check_vocabulary(what, index, &ids)?;
            self.look_at_start(&mut report, index, &ids, matches!(row.completion, Completion::Ids { .. }));
            remark(&mut report, &row.info);
            report.longest = report.longest.max(ids.len());
            match limit.fit(ids.len()) {
                Fit::Whole => {
                    if !self.ends(&ids) {
                        report.no_eos.push(index);
                    }
                }
                Fit::Cut(len) => {
                    ids.truncate(len);
                    trained.truncate(len);
                    report.truncated.push(index);
                }
                Fit::Dropped => {
                    report.dropped.push(index);
                    continue;
                }
            }
            let example = Demonstration { ids, trained, info: info_of(&row.info, group) };
            if example.trained_tokens() == 0 {
                report.untrained.push(index);
                continue;
            }
            report.tokens += example.ids.len();
            report.trained_tokens += example.trained_tokens();
            out.push(example);
        }
        report.used = out.len();
        limit.check(&report)?;
        Ok((out, report))
    }

    /// Ids, what is learnt, and the key of the prompt.
    fn demonstration(
        &self,
        completion: &Completion,
        config: &SftConfig,
    ) -> Result<(Vec<u32>, Vec<bool>, u64), TrainError> {
        let completion_only = |default: bool| config.completion_only_loss.unwrap_or(default);
        Ok(match completion {
            Completion::Pair { prompt, completion } => {
                let pair = self.pair(prompt, completion)?;
                let only = completion_only(true);
                let trained = (0..pair.ids.len()).map(|i| !only || i >= pair.first).collect();
                let group = group_of(&pair.ids[..pair.first]);
                (pair.ids, trained, group)
            }
            Completion::Ids { prompt_ids, completion_ids } => {
                let ids = [prompt_ids.as_slice(), completion_ids].concat();
                let only = completion_only(true);
                let trained = (0..ids.len()).map(|i| !only || i >= prompt_ids.len()).collect();
                (ids, trained, group_of(prompt_ids))
            }
            Completion::Messages(messages) => {
                let messages: Vec<_> = messages.iter().map(json_of).collect();
                let options = ChatOptions::WHOLE;
                let chat = self.tokenizer()?.encode_chat(self.template()?, &messages, &options)?;
                let trained = match config.assistant_only_loss {
                    true => chat.trainable,
                    false => vec![true; chat.ids.len()],
                };
                let prompt = &messages[..messages.len() - 1];
                let group = group_of_text(&prompt.iter().map(ToString::to_string).collect::<String>());
                (chat.ids, trained, group)
            }
            Completion::Text(text) => {
                let pair = self.tokenizer()?.encode_pair("", text, true)?;
                let group = group_of(&pair.ids);
                let trained = vec![true; pair.ids.len()];
                (pair.ids, trained, group)
            }
        })
    }

    /// Pairs to compare.
    pub fn comparisons(
        &self,
        rows: &[PreferenceRow],
        common: &CommonConfig,
        what: &str,
    ) -> Result<(Vec<Comparison>, Preflight), TrainError> {
        let limit = Limit::new(self.model, common, 0);
        let mut report = self.report(what, rows.len());
        let mut out = Vec::with_capacity(rows.len());
        for row in rows {
            let index = row.info.index;
            let (prompt, mut chosen, mut rejected) = match &row.pair {
                Pair::Ids { prompt_ids, chosen_ids, rejected_ids } => {
                    (prompt_ids.clone(), chosen_ids.clone(), rejected_ids.clone())
                }
                Pair::Text { prompt, chosen, rejected } => {
                    let encode = |text| self.pair(prompt, text).map_err(TrainError::in_row(what, index));
                    let (chosen, rejected) = (encode(chosen)?, encode(rejected)?);
                    if chosen.prompt_differs || rejected.prompt_differs {
                        report.prompt_differs.push(index);
                    }
                    // A token may straddle the boundary on one side only: the shared part is the prompt.
                    let shared = chosen.ids.iter().zip(&rejected.ids).take_while(|(a, b)| a == b).count();
                    let first = shared.min(chosen.first).min(rejected.first);
                    let prompt = chosen.ids[..first].to_vec();
                    (prompt, chosen.ids[first..].to_vec(), rejected.ids[first..].to_vec())
                }
            };
            for ids in [&prompt, &chosen, &rejected] {
                self.check_vocabulary(what, index, ids)?;
            }
            let given_ids = matches!(row.pair, Pair::Ids { .. });
            self.look_at_start(&mut report, index, &[prompt.as_slice(), &chosen].concat(), given_ids);
            remark(&mut report, &row.info);
            let longest = prompt.len() + chosen.len().max(rejected.len());
            report.longest = report.longest.max(longest);
            match limit.fit(longest) {
                Fit::Whole => {
                    if !self.ends(&chosen) || !self.ends(&rejected) {
                        report.no_eos.push(index);
                    }
                }
                Fit::Cut(len) if prompt.len() < len => {
                    chosen.truncate(len - prompt.len());
                    rejected.truncate(len - prompt.len());
                    report.truncated.push(index);
                }
                Fit::Cut(_) | Fit::Dropped => {
                    report.dropped.push(index);
                    continue;
                }
            }
            // Without a prompt a response's first token has nothing to be predicted from.
            let least = usize::from(prompt.is_empty());
            if chosen.len() <= least || rejected.len() <= least || chosen == rejected {
                report.untrained.push(index);
                continue;
            }
            report.tokens += prompt.len() + chosen.len() + rejected.len();
            report.trained_tokens += chosen.len() + rejected.len();
            out.push(Comparison {
                info: info_of(&row.info, group_of(&prompt)),
                prompt,
                chosen,
                rejected,
                margin: row.margin.map(|x| x as f32),
                weight: row.weight.map(|x| x as f32),
                label: row.label.map(|x| x as f32),
            });
        }
        report.used = out.len();
        limit.check(&report)?;
        Ok((out, report))
    }

    /// Prompts to respond to, with `room` tokens left for the response.
    pub fn prompts(
        &self,
        rows: &[PromptRow],
        common: &CommonConfig,
        room: usize,
        what: &str,
    ) -> Result<(Vec<PromptExample>, Preflight), TrainError> {
        let limit = Limit::new(self.model, common, room);
        let mut report = self.report(what, rows.len());
        let mut out = Vec::with_capacity(rows.len());
        for row in rows {
            let index = row.info.index;
            let ids = self.prompt(&row.prompt).map_err(TrainError::in_row(what, index))?;
            self.check_vocabulary(what, index, &ids)?;
            self.look_at_start(&mut report, index, &ids, matches!(row.prompt, Prompt::Ids(_)));
            remark(&mut report, &row.info);
            report.longest = report.longest.max(ids.len());
            if ids.is_empty() {
                report.untrained.push(index);
                continue;
            }
            // Cutting a prompt's end would cut the question, so a long prompt is left out, whatever `truncation` says.
            if ids.len() + limit.room > limit.max {
                report.dropped.push(index);
                continue;
            }
            report.tokens += ids.len();
            out.push(PromptExample { info: info_of(&row.info, group_of(&ids)), ids });
        }
        report.used = out.len();
        if !report.dropped.is_empty() {
            report.notes.push(format!(
                "prompts must leave room for response_length = {room} tokens within {} (max_length or the model's positions)",
                limit.max
            ));
        }
        limit.check(&report)?;
        Ok((out, report))
    }
}

/// Splits off a share of the examples; examples with one prompt stay together. A function of the seed and the prompts.
pub fn hold_out<T>(
    examples: Vec<T>,
    fraction: f64,
    seed: u64,
    info: impl Fn(&T) -> &ExampleInfo,
) -> (Vec<T>, Vec<T>) {
    if fraction <= 0.0 {
        return (examples, Vec::new());
    }
    examples
        .into_iter()
        .partition(|example| Stream::new(seed, "hold out", &[info(example).group]).f64() >= fraction)
}

/// How many of the evaluation's prompts are also trained on.
pub fn shared_prompts<'a>(
    train: impl IntoIterator<Item = &'a ExampleInfo>,
    eval: impl IntoIterator<Item = &'a ExampleInfo>,
) -> usize {
    let trained: HashSet<u64> = train.into_iter().map(|info| info.group).collect();
    eval.into_iter().filter(|info| trained.contains(&info.group)).count()
}

fn remark(report: &mut Preflight, info: &RowInfo) {
    for flag in &info.flags {
        // Identical and empty responses are counted by what becomes of them.
        if matches!(flag, Flag::IdenticalResponses) {
            continue;
        }
        let text = flag.to_string();
        match report.flags.iter_mut().find(|(known, _)| *known == text) {
            Some((_, rows)) => rows.push(info.index),
            None => report.flags.push((text, vec![info.index])),
        }
    }
}

fn info_of(info: &RowInfo, group: u64) -> ExampleInfo {
    let category = info.extra.get("category").and_then(|value| value.as_str()).map(str::to_owned);
    ExampleInfo { row: info.index, category, group }
}

fn group_of(ids: &[u32]) -> u64 {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    first_word(blake3::hash(&bytes))
}

fn group_of_text(text: &str) -> u64 {
    first_word(blake3::hash(text.as_bytes()))
}

fn first_word(hash: blake3::Hash) -> u64 {
    u64::from_le_bytes(*hash.as_bytes().first_chunk().expect("a hash has 32 bytes"))
}

fn messages_of(text: &Text, role: &str) -> Vec<serde_json::Value> {
    match text {
        Text::Plain(content) => vec![polity_lm::chat::message(role, content)],
        Text::Messages(messages) => messages.iter().map(json_of).collect(),
    }
}

fn json_of(message: &Message) -> serde_json::Value {
    serde_json::to_value(message).expect("a message came from JSON")
}
