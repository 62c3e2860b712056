//! Rows into pairs and judgements: the formats whose rows are flat.

use std::path::Path;

use polity_rows::{FromRow, Pair as Texts, PreferenceRow, Row, Text};
use serde_json::{Map, Value};

use super::ImportFormat;
use super::collect::{Judged, Pair, category};
use super::tools;
use crate::answer::{Answer, Side};
use crate::content::Content;
use crate::error::{Result, StoreError};

/// The model of a response whose file does not say.
pub(super) const UNKNOWN: &str = "unknown";

/// What a preference without a grade counts as: clearly better.
pub(super) fn better(first: bool) -> Answer {
    Answer::Better { side: if first { Side::Left } else { Side::Right }, strength: 2 }
}

pub(super) fn pairs(format: ImportFormat, row: Row, path: &Path) -> Result<Vec<Pair>> {
    match format {
        ImportFormat::Trl | ImportFormat::Hh => trl(row, path).map(|pair| vec![pair]),
        ImportFormat::Pairwise => pairwise(&row.value).map(|pair| vec![pair]),
        ImportFormat::Pandalm => pandalm(&row.value).map(|pair| vec![pair]),
        ImportFormat::MtBench => mt_bench(&row.value).map(|pair| vec![pair]),
        ImportFormat::Oasst => tools::oasst(&row.value),
        ImportFormat::Argilla => tools::argilla(&row.value),
        ImportFormat::LabelStudio => tools::label_studio(&row.value),
    }
}

/// Prompt, chosen and rejected of a preference row; transcripts become messages.
pub(super) fn preference(row: Row, path: &Path) -> Result<(Content, Content, Content, PreferenceRow)> {
    let row = PreferenceRow::from_row(row, path)?.transcript_to_messages();
    let Texts::Text { prompt, chosen, rejected } = row.pair.clone() else {
        return Err(StoreError::invalid("the pair", "token ids", "text or messages, which people can read"));
    };
    Ok((Content::Text(prompt), Content::Text(chosen), Content::Text(rejected), row))
}

fn trl(row: Row, path: &Path) -> Result<Pair> {
    let value = row.value.clone();
    let (prompt, chosen, rejected, row) = preference(row, path)?;
    let annotator = annotator(&value)?;
    // `label` is the share of judges who agree with the order; one vote can only say which way it points.
    let answer = match row.label {
        Some(share) if share < 0.5 => better(false),
        Some(0.5) => Answer::Tie,
        _ => better(true),
    };
    let model =
        |key: &str| value.get(key).and_then(Value::as_str).map_or_else(|| UNKNOWN.to_owned(), str::to_owned);
    let mut judged = Judged::bare(annotator, answer, None);
    judged.answered_ms = time(&value)?;
    Ok(Pair {
        prompt,
        category: category(&value),
        responses: [(chosen, model("chosen_model")), (rejected, model("rejected_model"))],
        judgements: vec![judged],
    })
}

fn pairwise(row: &Map<String, Value>) -> Result<Pair> {
    let model = |key: &str| text(row, key).map(|model| model.unwrap_or_else(|| UNKNOWN.to_owned()));
    let (model_a, model_b) = (model("model_a")?, model("model_b")?);
    let answer = match text(row, "winner")? {
        None => None,
        Some(winner) => Some(winner_of(&winner, &model_a, &model_b)?),
    };
    let judgements = match answer {
        None => Vec::new(),
        Some(answer) => {
            let mut judged = Judged::bare(annotator(row)?, answer, Some(true));
            judged.answered_ms = time(row)?;
            judged.work_ms = number(row, "work_ms")?.map(|ms| ms as i64);
            judged.reason = text(row, "reason")?.unwrap_or_default();
            vec![judged]
        }
    };
    let content = |key: &str| content(row, key);
    Ok(Pair {
        prompt: content("prompt")?,
        category: category(row),
        responses: [(content("response_a")?, model_a), (content("response_b")?, model_b)],
        judgements,
    })
}

/// An answer as files write it: a side, a model's name, or an answer of ours.
pub(super) fn winner_of(winner: &str, model_a: &str, model_b: &str) -> Result<Answer> {
    match winner.trim().to_lowercase().as_str() {
        "a" | "model_a" | "response_a" | "left" | "first" | "1" => return Ok(better(true)),
        "b" | "model_b" | "response_b" | "right" | "second" | "2" => return Ok(better(false)),
        "tie" | "draw" | "equal" | "0" => return Ok(Answer::Tie),
        "tie (bothbad)" | "bothbad" | "both_bad" | "both bad" => return Ok(Answer::BothBad),
        _ => {}
    }
    if winner == model_a && model_a != model_b {
        return Ok(better(true));
    }
    if winner == model_b && model_a != model_b {
        return Ok(better(false));
    }
    winner.trim().parse().map_err(|_| {
        StoreError::invalid(
            "`winner`",
            format!("`{}`", winner.chars().take(40).collect::<String>()),
            "a, b, tie, both_bad, a model's name, or left3 … right3",
        )
    })
}

fn pandalm(row: &Map<String, Value>) -> Result<Pair> {
    let instruction = required(row, "instruction")?;
    let input = text(row, "input")?.unwrap_or_default();
    let prompt = if input.trim().is_empty() { instruction } else { format!("{instruction}\n\n{input}") };
    // `bloom-7b_llama-7b`: the two models, in the order of the responses.
    let models = text(row, "cmp_key")?.unwrap_or_default();
    let (one, two) = models.split_once('_').unwrap_or((UNKNOWN, UNKNOWN));
    let mut judgements = Vec::new();
    for (key, value) in row.iter().filter(|(key, _)| key.starts_with("annotator")) {
        let answer = match value.as_i64() {
            Some(0) => Answer::Tie,
            Some(1) => better(true),
            Some(2) => better(false),
            _ => {
                return Err(StoreError::invalid(
                    format!("`{key}`"),
                    value.to_string(),
                    "0 (tie), 1 or 2 (the better response)",
                ));
            }
        };
        judgements.push(Judged::bare(Some(key.clone()), answer, Some(true)));
    }
    Ok(Pair {
        prompt: Content::plain(prompt),
        category: text(row, "motivation_app")?,
        responses: [
            (Content::plain(spoken(row, "response1")?), one.to_owned()),
            (Content::plain(spoken(row, "response2")?), two.to_owned()),
        ],
        judgements,
    })
}

/// Text; PandaLM's file lost the quotes of responses that are a number or `true`.
fn spoken(row: &Map<String, Value>, key: &str) -> Result<String> {
    match row.get(key) {
        Some(value @ (Value::Bool(_) | Value::Number(_))) => Ok(value.to_string()),
        _ => required(row, key),
    }
}

/// MT-Bench's human judgments name their texts; with `conversation_a` and `conversation_b`, as in the published table, they hold them.
/// What is judged at turn 2 is the whole conversation after the first question.
fn mt_bench(row: &Map<String, Value>) -> Result<Pair> {
    let integer = |key: &str| match row.get(key).and_then(Value::as_i64) {
        Some(value) => Ok(value),
        None => match text(row, key)?.and_then(|text| text.trim().parse().ok()) {
            Some(value) => Ok(value),
            None => Err(wrong(row, key, "a whole number")),
        },
    };
    let (question, turn) = (integer("question_id")?, integer("turn")?);
    let (model_a, model_b) = (required(row, "model_a")?, required(row, "model_b")?);
    let judge = match row.get("judge") {
        Some(Value::Array(parts)) => {
            Some(parts.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("/"))
        }
        _ => text(row, "judge")?,
    };
    let winner = required(row, "winner")?;
    let mut judged = Judged::bare(judge.clone(), winner_of(&winner, &model_a, &model_b)?, Some(true));
    judged.machine = judge.is_some_and(|judge| judge.starts_with("gpt"));
    judged.answered_ms = time(row)?;
    let reference = |name: String| Content::Reference { reference: name };
    let (prompt, a, b) = match (row.get("conversation_a"), row.get("conversation_b")) {
        (Some(a), Some(b)) => {
            let (prompt, a) = conversation(a, "conversation_a", turn)?;
            let (_, b) = conversation(b, "conversation_b", turn)?;
            (prompt, a, b)
        }
        _ => (
            reference(format!("mtbench/{question}/{turn}")),
            reference(format!("mtbench/{question}/{turn}/{model_a}")),
            reference(format!("mtbench/{question}/{turn}/{model_b}")),
        ),
    };
    Ok(Pair {
        prompt,
        category: category(row),
        responses: [(a, model_a), (b, model_b)],
        judgements: vec![judged],
    })
}

fn conversation(value: &Value, key: &str, turn: i64) -> Result<(Content, Content)> {
    let expected = "a list of messages, user and assistant in turn";
    let messages: Vec<polity_rows::Message> = serde_json::from_value(value.clone())
        .map_err(|error| StoreError::invalid(format!("`{key}`"), error.to_string(), expected))?;
    let end = usize::try_from(2 * turn).unwrap_or(usize::MAX).min(messages.len());
    if end < 2 {
        return Err(StoreError::invalid(format!("`{key}`"), format!("{end} messages"), expected));
    }
    let response = messages[1..end].to_vec();
    Ok((Content::Text(Text::Messages(messages[..1].to_vec())), Content::Text(Text::Messages(response))))
}

/// Who judged, by the names that data sets use.
pub(super) fn annotator(row: &Map<String, Value>) -> Result<Option<String>> {
    for key in ["annotator", "annotator_id", "judge", "worker", "worker_id", "user_id"] {
        match row.get(key) {
            None | Some(Value::Null) => {}
            Some(Value::Number(number)) => return Ok(Some(number.to_string())),
            Some(_) => return text(row, key),
        }
    }
    Ok(None)
}

/// When it was judged: `answered_at`, `created_at`, `timestamp` or `tstamp`, as RFC 3339, or as seconds or milliseconds since 1970.
pub(super) fn time(row: &Map<String, Value>) -> Result<Option<i64>> {
    for key in ["answered_at", "created_at", "timestamp", "tstamp", "updated_at"] {
        if let Some(value) = row.get(key).filter(|value| !value.is_null()) {
            return moment(value).map(Some).ok_or_else(|| {
                wrong(row, key, "a time such as 2024-05-01T12:00:00Z, or seconds since 1970")
            });
        }
    }
    Ok(None)
}

/// Milliseconds since 1970.
pub(super) fn moment(value: &Value) -> Option<i64> {
    /// Numbers above are milliseconds: as seconds they would lie beyond the year 5000.
    const SECONDS_MAX: f64 = 1e11;
    let seconds = match value {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => match text.trim().parse::<f64>() {
            Ok(seconds) => seconds,
            Err(_) => {
                // Microseconds and an offset of zero are written in several ways.
                let text = text.trim().trim_end_matches("+00:00");
                let time = humantime::parse_rfc3339_weak(text).ok()?;
                let since = time.duration_since(std::time::UNIX_EPOCH).ok()?;
                return i64::try_from(since.as_millis()).ok();
            }
        },
        _ => return None,
    };
    let ms = if seconds.abs() > SECONDS_MAX { seconds } else { seconds * 1000.0 };
    (ms.is_finite() && ms >= 0.0).then_some(ms as i64)
}

/// Text at a key; none if it is absent.
pub(super) fn text(row: &Map<String, Value>, key: &str) -> Result<Option<String>> {
    match row.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(wrong(row, key, "text")),
    }
}

pub(super) fn required(row: &Map<String, Value>, key: &str) -> Result<String> {
    text(row, key)?.ok_or_else(|| wrong(row, key, "text"))
}

fn number(row: &Map<String, Value>, key: &str) -> Result<Option<f64>> {
    match row.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(number)) => Ok(number.as_f64()),
        Some(Value::String(text)) => text.trim().parse().map(Some).map_err(|_| wrong(row, key, "a number")),
        Some(_) => Err(wrong(row, key, "a number")),
    }
}

/// Text or messages at a key.
fn content(row: &Map<String, Value>, key: &str) -> Result<Content> {
    let value = row.get(key).cloned().unwrap_or(Value::Null);
    match serde_json::from_value::<Text>(value) {
        Ok(Text::Messages(messages)) if messages.is_empty() => Err(wrong(row, key, "text or messages")),
        Ok(text) => Ok(Content::Text(text)),
        Err(_) => Err(wrong(row, key, "text, or a list of messages `{role, content}`")),
    }
}

pub(super) fn wrong(row: &Map<String, Value>, key: &str, expected: &str) -> StoreError {
    let found = match row.get(key) {
        None | Some(Value::Null) => "missing".to_owned(),
        Some(value) => value.to_string().chars().take(60).collect(),
    };
    StoreError::invalid(format!("`{key}`"), found, expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_tools_write_them() {
        let check = |value: Value, expect: Option<i64>| assert_eq!(moment(&value), expect, "{value}");
        check("2023-11-14T22:13:20Z".into(), Some(1_700_000_000_000));
        check("2023-11-14T22:13:20.250000Z".into(), Some(1_700_000_000_250));
        check("2023-11-14T22:13:20.250000".into(), Some(1_700_000_000_250));
        check("2023-11-14T22:13:20+00:00".into(), Some(1_700_000_000_000));
        check("2023-11-14 22:13:20".into(), Some(1_700_000_000_000));
        check(serde_json::json!(1_700_000_000.25), Some(1_700_000_000_250));
        check(serde_json::json!(1_700_000_000_250_i64), Some(1_700_000_000_250));
        check("yesterday".into(), None);
        check(true.into(), None);
    }

    #[test]
    fn winners_as_files_write_them() {
        let check = |winner: &str, expect: Option<&str>| {
            let got = winner_of(winner, "m1", "m2").ok().map(|answer| answer.to_string());
            assert_eq!(got.as_deref(), expect, "{winner}");
        };
        check("model_a", Some("left2"));
        check("B", Some("right2"));
        check("m2", Some("right2"));
        check("tie (bothbad)", Some("both_bad"));
        check("right3", Some("right3"));
        check("m3", None);
        check("", None);
    }
}
