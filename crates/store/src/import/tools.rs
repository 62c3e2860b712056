//! Rows into pairs and judgements: the exports of annotation tools, whose rows are trees.

use polity_rows::{Message, Text};
use serde_json::{Map, Value};

use super::collect::{Judged, Pair, category};
use super::formats::{UNKNOWN, better, moment, text, winner_of, wrong};
use crate::answer::Answer;
use crate::content::Content;
use crate::error::{Result, StoreError};

/// Replies on one path that are followed; deeper trees are damaged or hostile.
const DEPTH_MAX: usize = 1000;

/// The first message of an OpenAssistant tree.
pub(super) fn oasst_root(row: &Map<String, Value>) -> Result<Content> {
    let root =
        row.get("prompt").and_then(Value::as_object).ok_or_else(|| wrong(row, "prompt", "a message"))?;
    Ok(Content::Text(Text::Messages(vec![oasst_message(root)?])))
}

/// Every two ranked replies to the same message; the better rank is the lower one. The ranks are OpenAssistant's consensus of several
/// rankers, who are not named.
pub(super) fn oasst(row: &Map<String, Value>) -> Result<Vec<Pair>> {
    let root =
        row.get("prompt").and_then(Value::as_object).ok_or_else(|| wrong(row, "prompt", "a message"))?;
    let mut pairs = Vec::new();
    // A stack instead of recursion: a file must not be able to overflow ours.
    let mut open: Vec<(Vec<Message>, &Map<String, Value>)> = vec![(Vec::new(), root)];
    while let Some((mut path, node)) = open.pop() {
        if path.len() >= DEPTH_MAX {
            return Err(StoreError::invalid(
                "the tree",
                format!("more than {DEPTH_MAX} deep"),
                "a conversation",
            ));
        }
        path.push(oasst_message(node)?);
        let replies: Vec<&Map<String, Value>> = match node.get("replies") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(replies)) => replies.iter().filter_map(Value::as_object).collect(),
            Some(_) => return Err(wrong(node, "replies", "a list of messages")),
        };
        let mut ranked = Vec::new();
        for reply in replies {
            let deleted = reply.get("deleted").and_then(Value::as_bool).unwrap_or(false);
            if deleted {
                continue;
            }
            let message = oasst_message(reply)?;
            if message.role == "assistant"
                && let Some(rank) = reply.get("rank").and_then(Value::as_i64)
            {
                let model = text(reply, "model_name")?.unwrap_or_else(|| "human".to_owned());
                ranked.push((rank, message, model));
            }
            open.push((path.clone(), reply));
        }
        ranked.sort_by_key(|(rank, _, _)| *rank);
        for (i, (rank, message, model)) in ranked.iter().enumerate() {
            for (other_rank, other, other_model) in &ranked[i + 1..] {
                let content = |message: &Message| Content::Text(Text::Messages(vec![message.clone()]));
                let answer = if rank == other_rank { Answer::Tie } else { better(true) };
                pairs.push(Pair {
                    prompt: Content::Text(Text::Messages(path.clone())),
                    category: None,
                    responses: [(content(message), model.clone()), (content(other), other_model.clone())],
                    judgements: vec![Judged::bare(Some("consensus".to_owned()), answer, None)],
                });
            }
        }
    }
    Ok(pairs)
}

fn oasst_message(node: &Map<String, Value>) -> Result<Message> {
    let role = match text(node, "role")?.as_deref() {
        Some("prompter") => "user",
        Some("assistant") => "assistant",
        _ => return Err(wrong(node, "role", "prompter or assistant")),
    };
    let content = text(node, "text")?.ok_or_else(|| wrong(node, "text", "text"))?;
    Ok(Message::new(role, content))
}

/// The prompt and the two responses among the fields of a record, by the names that tools' templates use.
fn fields(fields: &Map<String, Value>) -> Result<(Content, [(String, Content); 2])> {
    const PROMPTS: [&str; 6] = ["prompt", "instruction", "question", "query", "input", "messages"];
    const RESPONSES: [&str; 8] =
        ["response", "answer", "completion", "generation", "output", "candidate", "chosen", "rejected"];
    let prompt = PROMPTS.iter().find_map(|key| fields.get(*key));
    let responses: Vec<(&String, &Value)> = fields
        .iter()
        .filter(|(key, _)| {
            let key = key.to_lowercase();
            RESPONSES.iter().any(|name| key.starts_with(name))
        })
        .collect();
    let keys: Vec<&str> = fields.keys().map(String::as_str).collect();
    let (Some(prompt), [one, two]) = (prompt, responses.as_slice()) else {
        return Err(StoreError::invalid(
            "the record",
            format!("fields {}", keys.join(", ")),
            "a prompt (`prompt`, `instruction`, `question` …) and two responses (`response_a`, `answer1` …)",
        ));
    };
    let content = |key: &str, value: &Value| {
        serde_json::from_value::<Text>(value.clone())
            .map(Content::Text)
            .map_err(|_| wrong(fields, key, "text or messages"))
    };
    Ok((
        content("prompt", prompt)?,
        [(one.0.clone(), content(one.0, one.1)?), (two.0.clone(), content(two.0, two.1)?)],
    ))
}

/// An answer that names a field (`answer2`), a side, or an answer of ours.
fn named(value: &str, names: [&str; 2]) -> Result<Answer> {
    match names.iter().position(|name| *name == value) {
        Some(0) => Ok(better(true)),
        Some(_) => Ok(better(false)),
        None => winner_of(value, UNKNOWN, UNKNOWN),
    }
}

fn pair(
    prompt: Content,
    responses: [(String, Content); 2],
    category: Option<String>,
    judgements: Vec<Judged>,
) -> Pair {
    let responses = responses.map(|(_, content)| (content, UNKNOWN.to_owned()));
    Pair { prompt, category, responses, judgements }
}

/// Label Studio: a task's `annotations`, each with a `pairwise` result (`selected`: left or right) or a choice that names a response.
/// Cancelled annotations are skips. The candidates are shown in the order of the task's fields.
pub(super) fn label_studio(row: &Map<String, Value>) -> Result<Vec<Pair>> {
    let data = row.get("data").and_then(Value::as_object).ok_or_else(|| wrong(row, "data", "an object"))?;
    let (prompt, responses) = fields(data)?;
    let names = [responses[0].0.as_str(), responses[1].0.as_str()];
    let annotations = row
        .get("annotations")
        .and_then(Value::as_array)
        .ok_or_else(|| wrong(row, "annotations", "a list"))?;
    let mut judgements = Vec::new();
    for annotation in annotations {
        let annotation = annotation
            .as_object()
            .ok_or_else(|| StoreError::invalid("an annotation", annotation.to_string(), "an object"))?;
        let annotator = match annotation.get("completed_by") {
            Some(Value::Number(id)) => Some(id.to_string()),
            Some(Value::Object(person)) => person.get("email").or(person.get("id")).map(|id| match id {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            }),
            Some(Value::String(id)) => Some(id.clone()),
            _ => None,
        };
        let cancelled = annotation.get("was_cancelled").and_then(Value::as_bool).unwrap_or(false);
        let answer = match (cancelled, selected(annotation)?) {
            (true, _) => Answer::Skip,
            (false, Some(selected)) => named(&selected, names)?,
            (false, None) => continue,
        };
        let mut judged = Judged::bare(annotator, answer, Some(true));
        judged.answered_ms = annotation.get("created_at").and_then(moment);
        judged.work_ms = annotation.get("lead_time").and_then(Value::as_f64).map(|s| (s * 1000.0) as i64);
        judgements.push(judged);
    }
    Ok(vec![pair(prompt, responses, category(data), judgements)])
}

/// What an annotation's result says, if it says anything about the pair.
fn selected(annotation: &Map<String, Value>) -> Result<Option<String>> {
    let results = match annotation.get("result") {
        Some(Value::Array(results)) => results,
        _ => return Err(wrong(annotation, "result", "a list")),
    };
    for result in results {
        let value = &result["value"];
        match result["type"].as_str() {
            Some("pairwise") => return Ok(value["selected"].as_str().map(str::to_owned)),
            Some("choices") => {
                if let Some(choice) = value["choices"][0].as_str() {
                    return Ok(Some(choice.to_owned()));
                }
            }
            _ => {}
        }
    }
    Ok(None)
}

/// Argilla: a record's `fields` and `responses`. Version 2 keeps answers by question (`{"preference": [{"value", "user_id"}]}`), version 1 by person
/// (`[{"user_id", "status", "values": {"preference": {"value"}}}]`). A value names a field, or ranks the fields.
pub(super) fn argilla(row: &Map<String, Value>) -> Result<Vec<Pair>> {
    let all =
        row.get("fields").and_then(Value::as_object).ok_or_else(|| wrong(row, "fields", "an object"))?;
    let (prompt, responses) = fields(all)?;
    let names = [responses[0].0.as_str(), responses[1].0.as_str()];
    let mut judgements = Vec::new();
    let mut judge = |user: &Value, status: &Value, value: &Value, times: &Value| -> Result<()> {
        let annotator = match user {
            Value::String(user) => Some(user.clone()),
            Value::Null => None,
            other => Some(other.to_string()),
        };
        let answer = match (status.as_str(), argilla_answer(value, names)?) {
            (Some("draft"), _) => return Ok(()),
            (Some("discarded"), _) => Answer::Skip,
            (_, Some(answer)) => answer,
            (_, None) => return Ok(()),
        };
        let mut judged = Judged::bare(annotator, answer, Some(true));
        judged.answered_ms = moment(&times["updated_at"]).or_else(|| moment(&times["inserted_at"]));
        judgements.push(judged);
        Ok(())
    };
    match row.get("responses") {
        Some(Value::Object(questions)) => {
            for answer in questions.values().filter_map(Value::as_array).flatten() {
                judge(&answer["user_id"], &answer["status"], &answer["value"], answer)?;
            }
        }
        Some(Value::Array(people)) => {
            for person in people {
                for answer in person["values"].as_object().into_iter().flat_map(Map::values) {
                    judge(&person["user_id"], &person["status"], &answer["value"], person)?;
                }
            }
        }
        _ => return Err(wrong(row, "responses", "a list, or an object by question")),
    }
    let metadata = row.get("metadata").and_then(Value::as_object);
    Ok(vec![pair(prompt, responses, metadata.and_then(category), judgements)])
}

/// None for the answer to some other question: a text, a number, labels that name no response.
fn argilla_answer(value: &Value, names: [&str; 2]) -> Result<Option<Answer>> {
    match value {
        Value::String(label) => Ok(named(label, names).ok()),
        Value::Array(ranks) => {
            let rank = |name: &str| {
                ranks
                    .iter()
                    .find(|rank| {
                        rank["value"]
                            .as_str()
                            .is_some_and(|value| value == name || value.replace('-', "_") == name)
                    })
                    .and_then(|rank| rank["rank"].as_i64())
            };
            Ok(match (rank(names[0]), rank(names[1])) {
                (Some(one), Some(two)) if one == two => Some(Answer::Tie),
                (Some(one), Some(two)) => Some(better(one < two)),
                _ => None,
            })
        }
        _ => Ok(None),
    }
}
