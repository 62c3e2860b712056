//! Collecting what the rows of a file say, each thing once.

use std::collections::HashMap;
use std::collections::HashSet;
use std::path::Path;

use polity_rows::{FromRow, PromptRow, Row};
use serde_json::{Map, Value};

use super::{Duplicates, ImportFormat, ImportOptions, ImportedVote, Parsed, Take};
use super::{formats, tools};
use crate::answer::Answer;
use crate::content::{
    Content, Material, NewComparison, NewPrompt, NewResponse, comparison_id, prompt_id, response_id,
};
use crate::error::{Result, StoreError};

/// What a format makes of a row.
pub(super) struct Pair {
    pub prompt: Content,
    pub category: Option<String>,
    /// Texts and models, in the file's order.
    pub responses: [(Content, String); 2],
    pub judgements: Vec<Judged>,
}

/// One judgement on a pair; left is the pair's first response.
pub(super) struct Judged {
    /// As the file calls the annotator.
    pub annotator: Option<String>,
    pub machine: bool,
    pub answer: Answer,
    /// Whether the first response was shown on the left, if the tool or the file says.
    pub first_left: Option<bool>,
    pub reason: String,
    pub answered_ms: Option<i64>,
    pub work_ms: Option<i64>,
}

impl Judged {
    /// Without times and reason.
    pub fn bare(annotator: Option<String>, answer: Answer, first_left: Option<bool>) -> Judged {
        Judged {
            annotator,
            machine: false,
            answer,
            first_left,
            reason: String::new(),
            answered_ms: None,
            work_ms: None,
        }
    }
}

pub(super) struct Collector<'o> {
    path: &'o Path,
    format: ImportFormat,
    options: &'o ImportOptions,
    /// The file's name, for origins and annotators.
    name: String,
    pub rows: usize,
    material: Material,
    prompts: HashSet<String>,
    responses: HashSet<String>,
    comparisons: HashSet<String>,
    votes: Vec<ImportedVote>,
    vote_of: HashMap<(String, String), usize>,
    duplicates: Duplicates,
    errors: Vec<String>,
    errors_total: usize,
}

impl<'o> Collector<'o> {
    pub fn new(path: &'o Path, format: ImportFormat, options: &'o ImportOptions) -> Collector<'o> {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        Collector {
            path,
            format,
            options,
            name,
            rows: 0,
            material: Material::default(),
            prompts: HashSet::new(),
            responses: HashSet::new(),
            comparisons: HashSet::new(),
            votes: Vec::new(),
            vote_of: HashMap::new(),
            duplicates: Duplicates::default(),
            errors: Vec::new(),
            errors_total: 0,
        }
    }

    pub fn error(&mut self, error: String) {
        self.errors_total += 1;
        if self.errors.len() < self.options.errors_max {
            self.errors.push(error);
        }
    }

    pub fn row(&mut self, row: Row) -> Result<()> {
        if self.options.take == Take::Prompts {
            let (prompt, category) = self.prompt_of(row)?;
            if prompt.words().trim().is_empty() {
                return Err(StoreError::invalid("`prompt`", "empty", "something to respond to"));
            }
            let (_, new) = self.prompt(prompt, category);
            self.duplicates.prompts += usize::from(!new);
            return Ok(());
        }
        for pair in formats::pairs(self.format, row, self.path)? {
            self.pair(pair);
        }
        Ok(())
    }

    fn prompt_of(&self, row: Row) -> Result<(Content, Option<String>)> {
        match self.format {
            // Rows with prompts of their own; a comparison's prompt is one too.
            ImportFormat::Trl | ImportFormat::Hh => {
                let category = category(&row.value);
                let prompt = match row.value.contains_key("chosen") {
                    true => formats::preference(row, self.path)?.0,
                    false => match PromptRow::from_row(row, self.path)?.prompt {
                        polity_rows::Prompt::Text(text) => Content::Text(text),
                        polity_rows::Prompt::Ids(_) => {
                            return Err(StoreError::invalid(
                                "the prompt",
                                "token ids",
                                "text or messages, which people can read",
                            ));
                        }
                    },
                };
                Ok((prompt, category))
            }
            ImportFormat::Oasst => Ok((tools::oasst_root(&row.value)?, None)),
            ImportFormat::Pairwise if row.value.contains_key("prompt") => {
                let category = category(&row.value);
                match PromptRow::from_row(row, self.path)?.prompt {
                    polity_rows::Prompt::Text(text) => Ok((Content::Text(text), category)),
                    polity_rows::Prompt::Ids(_) => unreachable!("the row has the key `prompt`"),
                }
            }
            format => {
                let pair = formats::pairs(format, row, self.path)?.into_iter().next();
                let pair = pair.ok_or_else(|| StoreError::invalid("the row", "without a prompt", "one"))?;
                Ok((pair.prompt, pair.category))
            }
        }
    }

    fn prompt(&mut self, content: Content, category: Option<String>) -> (String, bool) {
        let id = prompt_id(&content);
        let new = self.prompts.insert(id.clone());
        if new {
            self.material.prompts.push(NewPrompt {
                content,
                category: category.unwrap_or_else(|| self.options.category.clone()),
                origin: self.name.clone(),
            });
        }
        (id, new)
    }

    fn pair(&mut self, pair: Pair) {
        let (prompt_id, _) = self.prompt(pair.prompt, pair.category);
        let ids = pair.responses.map(|(content, model)| {
            let id = response_id(&prompt_id, &content, &model);
            if self.responses.insert(id.clone()) {
                self.material.responses.push(NewResponse {
                    prompt_id: prompt_id.clone(),
                    content,
                    model,
                    model_hash: None,
                    sampler: None,
                    sample_index: None,
                    origin: self.name.clone(),
                });
            }
            id
        });
        if ids[0] == ids[1] {
            self.duplicates.identical_responses += 1;
            return;
        }
        let comparison = comparison_id(&ids[0], &ids[1]);
        let first_is_a = ids[0] < ids[1];
        let votes_taken = self.options.take == Take::Votes;
        if self.comparisons.insert(comparison.clone()) {
            self.material.comparisons.push(NewComparison {
                prompt_id,
                responses: ids.clone(),
                wanted: self.options.wanted,
                queued: !votes_taken,
                origin: self.name.clone(),
            });
        } else if !votes_taken || pair.judgements.is_empty() {
            self.duplicates.comparisons += 1;
        }
        if votes_taken {
            for judged in pair.judgements {
                self.vote(judged, &comparison, &ids, first_is_a);
            }
        }
    }

    fn vote(&mut self, judged: Judged, comparison: &str, ids: &[String; 2], first_is_a: bool) {
        let annotator_id = match &judged.annotator {
            Some(annotator) => format!("{}:{annotator}", self.name),
            None => format!("file:{}", self.name),
        };
        let vote = ImportedVote {
            comparison_id: comparison.to_owned(),
            annotator_id: annotator_id.clone(),
            machine: judged.machine,
            answer: if first_is_a { judged.answer } else { judged.answer.swapped() },
            left_response: judged.first_left.map(|first_left| ids[usize::from(!first_left)].clone()),
            left_is_a: judged.first_left == Some(first_is_a),
            reason: judged.reason,
            answered_ms: judged.answered_ms,
            work_ms: judged.work_ms,
        };
        match self.vote_of.entry((annotator_id, comparison.to_owned())) {
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(self.votes.len());
                self.votes.push(vote);
            }
            std::collections::hash_map::Entry::Occupied(place) => {
                let earlier = &mut self.votes[*place.get()];
                if earlier.answer == vote.answer {
                    self.duplicates.votes += 1;
                } else {
                    self.duplicates.votes_replaced += 1;
                    *earlier = vote;
                }
            }
        }
    }

    pub fn finish(self, file_hash: String) -> Parsed {
        Parsed {
            file: self.name,
            file_hash,
            format: self.format,
            take: self.options.take,
            rows: self.rows,
            material: self.material,
            votes: self.votes,
            duplicates: self.duplicates,
            errors: self.errors,
            errors_total: self.errors_total,
        }
    }
}

/// A row's category, by the names that data sets use for it.
pub(super) fn category(row: &Map<String, Value>) -> Option<String> {
    ["category", "subset", "domain", "type"]
        .iter()
        .find_map(|key| row.get(*key)?.as_str())
        .map(str::trim)
        .filter(|category| !category.is_empty())
        .map(str::to_owned)
}
