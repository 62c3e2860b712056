//! Datasets as rows that trainers read: TRL's keys.
//!
//! `prompt`, `chosen`, `rejected` (all plain text, or all messages), `label` where the rule gives one, `margin` and `weight` where asked for;
//! `category` and `comparison_id` beside them, which trainers leave alone.
//!
//! Not here: writing files (the command line does, through `polity-rows`).

use polity_rows::{Message, Text};
use serde::Serialize;

use crate::answer::Side;
use crate::content::Content;
use crate::dataset::{DatasetTexts, LabelRule};

/// What rows carry.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExportOptions {
    /// How counts become labels.
    pub labels: LabelRule,
    /// Whether to write `margin`: the mean strength of the judgements, 0 to 3.
    pub margins: bool,
    /// Whether to write `weight`: the number of judgements.
    pub weights: bool,
}

/// A row, in TRL's keys.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExportRow {
    /// What is responded to.
    pub prompt: Text,
    /// The better response.
    pub chosen: Text,
    /// The worse one.
    pub rejected: Text,
    /// How sure it is that the chosen one is better, ½ to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<f64>,
    /// How much better, in grades.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
    /// How much the row counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    /// The prompt's category.
    pub category: String,
    /// The comparison it was made from.
    pub comparison_id: String,
}

impl ExportRow {
    /// A dataset's row by a rule; none if the rule has no label for it.
    pub fn of(row: DatasetTexts, options: &ExportOptions) -> Option<ExportRow> {
        let label = row.row.label(options.labels)?;
        let (chosen, rejected) = match label.chosen {
            Side::Left => (row.a, row.b),
            Side::Right => (row.b, row.a),
        };
        let (prompt, chosen, rejected) = of_one_kind(text(row.prompt)?, text(chosen)?, text(rejected)?);
        Some(ExportRow {
            prompt,
            chosen,
            rejected,
            label: label.label,
            margin: options.margins.then_some(label.margin),
            weight: options.weights.then_some(label.votes as f64),
            category: row.row.category,
            comparison_id: row.row.comparison_id,
        })
    }
}

fn text(content: Content) -> Option<Text> {
    match content {
        Content::Text(text) => Some(text),
        Content::Reference { .. } => None,
    }
}

/// All plain, or all messages: a plain text beside messages becomes one message.
fn of_one_kind(prompt: Text, chosen: Text, rejected: Text) -> (Text, Text, Text) {
    let plain = |text: &Text| matches!(text, Text::Plain(_));
    if plain(&prompt) == plain(&chosen) && plain(&chosen) == plain(&rejected) {
        return (prompt, chosen, rejected);
    }
    let message = |text: Text, role: &str| match text {
        Text::Plain(text) => Text::Messages(vec![Message::new(role, text)]),
        messages => messages,
    };
    (message(prompt, "user"), message(chosen, "assistant"), message(rejected, "assistant"))
}
