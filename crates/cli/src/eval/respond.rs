//! A model's responses to a suite, kept beside the evaluations: for the baseline of the next candidate, for people to read and to label.
//!
//! `responses/SUITE-MODEL-KEY.jsonl`, one row for each response: `id`, `sample`, `text`, `ids`, `stopped`. The key is a hash of model, suite and
//! settings, which responses are a function of.
//!
//! Not here: sampling (`lm`'s engine).

use std::io::Cursor;
use std::path::Path;

use polity_eval::answers::Answered;
use polity_eval::{Evaluation, Suite, SuiteRow};
use polity_lm::engine::Flow;
use polity_rows::Rows;
use polity_train::run::{CODE_VERSION, Input};
use polity_train::settings::Precision;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::shelf::Shelf;
use crate::args::Global;
use crate::error::{CommandError, CommandResult};
use crate::generate::{Done, Meter, each_response, response_text, warn_if_cut};
use crate::input::{self, CompletionIds, PromptIds};
use crate::model::Loaded;
use crate::settings::{Read, Settings, Uses};
use crate::ui::Ui;

/// A model that answers a suite.
pub struct Answerer {
    /// The model.
    pub loaded: Loaded,
    /// Its hash.
    pub hash: String,
}

/// One response.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Response {
    /// The suite's row, by its id.
    pub id: String,
    /// Which of the row's samples.
    pub sample: usize,
    /// Its text, without special tokens.
    pub text: String,
    /// Its tokens, a stop token included.
    pub ids: Vec<u32>,
    /// Whether it ended by itself.
    pub stopped: bool,
}

/// A suite's prompts as a model reads them, and its responses to them.
pub struct Responses {
    /// The prompts, in the suite's order.
    pub prompts: Vec<PromptIds>,
    /// The responses, in the order of the prompts.
    pub rows: Vec<Response>,
    /// The suite's row of each response.
    pub row_of: Vec<usize>,
}

impl Responses {
    /// As the measures take them.
    pub fn answered(&self) -> Vec<Answered> {
        let answered = self.rows.iter().zip(&self.row_of).map(|(response, &row)| Answered {
            row,
            text: response.text.clone(),
            tokens: response.ids.len(),
            stopped: response.stopped,
        });
        answered.collect()
    }

    /// As the arithmetic takes them.
    pub fn completions(&self) -> Vec<CompletionIds> {
        let completions = self.rows.iter().zip(&self.row_of).enumerate().map(|(index, (response, &row))| {
            let prompt = &self.prompts[row].ids;
            CompletionIds { index, ids: [prompt.as_slice(), &response.ids].concat(), first: prompt.len() }
        });
        completions.collect()
    }
}

impl Answerer {
    /// Loads a language model.
    pub fn open(dir: &Path, global: &Global) -> CommandResult<Answerer> {
        Answerer::with(Loaded::language_model(dir, "answer a suite", global)?)
    }

    /// With a model that is loaded.
    pub fn with(loaded: Loaded) -> CommandResult<Answerer> {
        loaded.model.tokenizer()?;
        let hash = Input::hash("model", &loaded.dir)?.blake3;
        Ok(Answerer { loaded, hash })
    }

    /// The sampler's settings for a suite: its own before those of the command line, and without randomness where there is one right answer.
    pub fn settings(&mut self, suite: &Suite, sets: &[(String, String)], ui: &Ui) -> CommandResult<Settings> {
        use polity_eval::Kind;
        let mut all = Vec::new();
        if suite.kind != Kind::Prompts {
            all.push(("temperature".to_owned(), "0".to_owned()));
        }
        all.extend(suite.settings.iter().cloned());
        all.extend(sets.iter().cloned());
        let read = Settings::read(Uses::Generate, &self.loaded.dir, &self.loaded.model, &all);
        let Read { settings, warnings } = read.map_err(|error| {
            error.hint(format!("settings come from suite {}'s [settings] and from --set", suite.name))
        })?;
        warnings.iter().for_each(|warning| ui.warn(warning));
        self.loaded.multiply_in(settings.precision);
        Ok(settings)
    }

    /// What an evaluation of this model on a suite depends on.
    pub fn evaluation(&self, suite: &Suite, settings: &Settings) -> CommandResult<Evaluation> {
        Ok(Evaluation {
            model: self.hash.clone(),
            suite: suite.hash.clone(),
            suite_name: Some(suite.name.clone()),
            settings: self.said(suite, settings)?,
            inputs: Map::new(),
            measures: Vec::new(),
        })
    }

    fn said(&self, suite: &Suite, settings: &Settings) -> CommandResult<Map<String, Value>> {
        let s = &settings.sampler;
        // 0.7 as people write it, not as the nearest f32 in f64.
        let number = |x: f32| x.to_string().parse::<f64>().map_or(Value::Null, Value::from);
        let Value::Object(said) = json!({
            "temperature": number(s.temperature), "top_k": s.top_k, "top_p": number(s.top_p), "min_p": number(s.min_p),
            "repetition_penalty": number(s.repetition_penalty), "max_new_tokens": s.max_new_tokens, "min_new_tokens": s.min_new_tokens,
            "stop": s.stop_strings, "stop_token_ids": s.stop_token_ids, "n": settings.samples, "seed": settings.seed,
            "precision": Precision::from(self.loaded.cpu.precision()).name(),
            "chat": chats(suite, &self.loaded)?,
            "polity": CODE_VERSION,
        }) else {
            unreachable!("written as an object")
        };
        Ok(said)
    }

    /// A suite's prompts as rows of a file, so that they are encoded by the code that encodes files.
    pub fn prompts(&self, suite: &Suite, ui: &Ui) -> CommandResult<Vec<PromptIds>> {
        let chats = chats(suite, &self.loaded)?;
        let rows = suite.rows.iter().map(|row| asked(suite, row, chats));
        let prompts = input::prompts(lines(&suite.name, rows)?, &self.loaded, ui)?;
        assert_eq!(prompts.len(), suite.rows.len(), "a row each");
        Ok(prompts)
    }

    /// The responses, from the shelf or from the model.
    pub fn respond(
        &self,
        suite: &Suite,
        settings: &Settings,
        shelf: &Shelf<'_>,
        ui: &Ui,
    ) -> CommandResult<Responses> {
        let prompts = self.prompts(suite, ui)?;
        let file = shelf.responses(suite, &self.evaluation(suite, settings)?)?;
        let rows = match shelf.kept(&file)? {
            Some(rows) => rows,
            None => {
                let rows = self.answer(suite, settings, &prompts, ui)?;
                polity_rows::write_jsonl(&file, &rows)?;
                rows
            }
        };
        let places: std::collections::HashMap<&str, usize> =
            suite.rows.iter().enumerate().map(|(i, row)| (row.id.as_str(), i)).collect();
        let row_of = rows.iter().map(|row| places.get(row.id.as_str()).copied()).collect::<Option<Vec<_>>>();
        let row_of = row_of.filter(|rows| rows.len() == suite.rows.len() * settings.samples);
        let row_of = row_of.ok_or_else(|| {
            CommandError::bad_input(format!(
                "{}: these are not the responses to suite {}",
                file.display(),
                suite.name
            ))
            .hint("remove the file, or measure with --again")
        })?;
        Ok(Responses { prompts, rows, row_of })
    }

    fn answer(
        &self,
        suite: &Suite,
        settings: &Settings,
        prompts: &[PromptIds],
        ui: &Ui,
    ) -> CommandResult<Vec<Response>> {
        let loaded = &self.loaded;
        warn_if_cut(prompts, settings, loaded, ui);
        let mut meter = Meter::new(ui, (prompts.len() * settings.samples) as u64);
        let mut rows = Vec::with_capacity(prompts.len() * settings.samples);
        let done = each_response(loaded, settings, prompts, &mut meter, &mut |index, response| {
            rows.push(Response {
                id: suite.rows[index].id.clone(),
                sample: response.sample,
                text: response_text(loaded, settings, response)?,
                ids: response.ids.clone(),
                stopped: response.finish.name() == "stop",
            });
            Ok(Flow::Continue)
        })?;
        meter.finish();
        match done {
            Done::Finished => Ok(rows),
            Done::Interrupted => Err(CommandError::interrupted("stopped; nothing was written")
                .hint("evaluations that were finished before are kept: the same command goes on after them")),
        }
    }
}

/// Whether a model is asked a suite's prompts as messages.
pub fn chats(suite: &Suite, loaded: &Loaded) -> CommandResult<bool> {
    let can = loaded.template()?.is_some();
    let (why, hint) = match suite.asking.chat {
        _ if suite.has_messages() => {
            ("has prompts in messages", "write the prompts as text to ask in plain text")
        }
        Some(true) => ("asks in chat", "write chat = false into the suite to ask in plain text"),
        wanted => return Ok(wanted.unwrap_or(can)),
    };
    match can {
        true => Ok(true),
        false => Err(CommandError::bad_input(format!(
            "suite {} {why}, and {} has no chat template",
            suite.name,
            loaded.dir.display()
        ))
        .hint(hint)),
    }
}

/// A prompt as a row of a file.
pub fn asked(suite: &Suite, row: &SuiteRow, chats: bool) -> Map<String, Value> {
    let prompt = || suite.asking.prompt(&row.values["prompt"]);
    let (key, value) = match (row.messages(), chats) {
        (Some(messages), _) => ("messages", json!(messages)),
        (None, true) => ("messages", json!([{"role": "user", "content": prompt()}])),
        (None, false) => ("prompt", prompt().into()),
    };
    Map::from_iter([(key.to_owned(), value)])
}

/// Rows as those of a file of this name.
pub fn lines(name: &str, rows: impl Iterator<Item = Map<String, Value>>) -> CommandResult<Rows> {
    let mut lines = Vec::new();
    for row in rows {
        serde_json::to_writer(&mut lines, &row).map_err(CommandError::failed)?;
        lines.push(b'\n');
    }
    Ok(Rows::from_reader(format!("suite {name}"), Cursor::new(lines))?)
}
