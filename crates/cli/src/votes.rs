//! Files of votes to [`Votes`]: our own rows, and the shapes of two published sets.
//!
//! ```text
//! own         prompt, left, right, annotator, answer [, grade, category, rubric, time_ms, duration_ms, known]
//! MT-Bench    question_id [, turn], model_a, model_b, judge, winner        also Chatbot Arena's `tie (bothbad)`
//! PandaLM     idx, annotator1, annotator2, … each 0 (tie), 1 or 2 [, cmp_key]
//! ```
//!
//! JSONL, JSON and Parquet come from `rows`, CSV is read here: a column is a key, an empty cell is absent. docs/agreement.md
//! describes the rows for users.
//!
//! Not here: what is computed from them (`stats::panel`), the store's own votes.

use std::borrow::Cow;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use polity_rows::Place;
use polity_stats::vote::{Answer, GRADE_MAX, Side, VoteRow, Votes};
use serde_json::{Map, Value};

use crate::error::{CommandError, CommandResult};
use crate::input;
use crate::ui::Ui;

/// Reads a whole file; `-` is stdin.
pub fn read(file: &Path, ui: &Ui) -> CommandResult<Votes> {
    let mut votes = Votes::new();
    let is_csv = file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
    if is_csv {
        read_csv(file, &mut votes)?;
    } else {
        let rows = input::open(file, ui)?;
        let name: Arc<Path> = rows.file().into();
        for row in rows {
            let row = row?;
            let place = Place { file: name.clone(), line: row.line, row: Some(row.index) };
            Fields { row: &row.value, place: &place }.push(&mut votes)?;
        }
    }
    if votes.votes.is_empty() {
        return Err(CommandError::bad_input(format!(
            "{}: no vote compares anything; expected at least one answer of left, right, tie or both_bad",
            file.display()
        )));
    }
    Ok(votes)
}

fn read_csv(file: &Path, votes: &mut Votes) -> CommandResult {
    let handle =
        File::open(file).map_err(|source| polity_rows::RowsError::Open { file: file.to_owned(), source })?;
    let mut reader = csv::Reader::from_reader(handle);
    let bad = |error: csv::Error| CommandError::bad_input(format!("{}: {error}", file.display()));
    let keys: Vec<String> = reader.headers().map_err(bad)?.iter().map(|key| key.trim().to_owned()).collect();
    let name: Arc<Path> = file.into();
    for (index, record) in reader.records().enumerate() {
        let record = record.map_err(bad)?;
        let line = record.position().map(|position| position.line() as usize);
        let filled = keys.iter().zip(&record).filter(|(_, cell)| !cell.is_empty());
        let row: Map<String, Value> = filled.map(|(key, cell)| (key.clone(), cell.into())).collect();
        let place = Place { file: name.clone(), line, row: Some(index) };
        Fields { row: &row, place: &place }.push(votes)?;
    }
    Ok(())
}

/// A row that is being read.
struct Fields<'r> {
    row: &'r Map<String, Value>,
    place: &'r Place,
}

/// Keys of our own rows, for the nearest spelling.
const KEYS: [&str; 12] = [
    "prompt",
    "left",
    "right",
    "annotator",
    "answer",
    "grade",
    "category",
    "rubric",
    "time_ms",
    "duration_ms",
    "known",
    "repeat",
];

impl Fields<'_> {
    fn push(&self, votes: &mut Votes) -> CommandResult {
        if self.has("winner") && self.has("model_a") {
            self.push_arena(votes)
        } else if self.has("annotator1") {
            self.push_pandalm(votes)
        } else {
            self.push_own(votes)
        }
    }

    fn push_own(&self, votes: &mut Votes) -> CommandResult {
        let known = match self.text("known")? {
            None => None,
            Some(word) => Some(self.answer("known", &word, 1)?),
        };
        let grade = match self.integer("grade")? {
            None => 1,
            Some(grade) if (1..=i64::from(GRADE_MAX)).contains(&grade) => grade as u8,
            Some(grade) => return Err(self.wrong("grade", &grade.to_string(), "a grade from 1 to 3")),
        };
        let duration_ms = match self.integer("duration_ms")? {
            None => None,
            Some(ms) => Some(
                u64::try_from(ms)
                    .map_err(|_| self.wrong("duration_ms", &ms.to_string(), "milliseconds, 0 or more"))?,
            ),
        };
        let word = self.needed("answer")?;
        let (category, rubric) = (self.text("category")?, self.text("rubric")?);
        let row = VoteRow {
            prompt: &self.needed("prompt")?,
            left: &self.needed("left")?,
            right: &self.needed("right")?,
            annotator: &self.needed("annotator")?,
            answer: self.answer("answer", &word, grade)?,
            category: category.as_deref(),
            rubric: rubric.as_deref(),
            time_ms: self.integer("time_ms")?,
            duration_ms,
            known,
        };
        self.pushed(if self.yes("repeat")? { votes.push_repeat(&row) } else { votes.push(&row) })
    }

    fn push_arena(&self, votes: &mut Votes) -> CommandResult {
        let winner = self.needed("winner")?;
        let answer = match winner.as_ref() {
            "model_a" => better(Side::Left, 1),
            "model_b" => better(Side::Right, 1),
            "tie" => Answer::Tie,
            "tie (bothbad)" => Answer::BothBad,
            other => return Err(self.wrong("winner", other, "model_a, model_b, tie or tie (bothbad)")),
        };
        let mut prompt = self.needed("question_id")?.into_owned();
        if let Some(turn) = self.text("turn")? {
            prompt = format!("{prompt}, turn {turn}");
        }
        self.vote(
            votes,
            &VoteRow {
                prompt: &prompt,
                left: &self.needed("model_a")?,
                right: &self.needed("model_b")?,
                annotator: &self.needed("judge")?,
                answer,
                ..NOTHING
            },
        )
    }

    fn push_pandalm(&self, votes: &mut Votes) -> CommandResult {
        let prompt = self.needed("idx")?;
        let models = self.text("cmp_key")?;
        let (left, right) =
            models.as_deref().and_then(|key| key.split_once('_')).unwrap_or(("response1", "response2"));
        for number in 1.. {
            let annotator = format!("annotator{number}");
            let answer = match self.integer(&annotator)? {
                None => break,
                Some(0) => Answer::Tie,
                Some(1) => better(Side::Left, 1),
                Some(2) => better(Side::Right, 1),
                Some(other) => return Err(self.wrong(&annotator, &other.to_string(), "0 (tie), 1 or 2")),
            };
            self.vote(
                votes,
                &VoteRow { prompt: &prompt, left, right, annotator: &annotator, answer, ..NOTHING },
            )?;
        }
        Ok(())
    }

    fn vote(&self, votes: &mut Votes, row: &VoteRow<'_>) -> CommandResult {
        self.pushed(votes.push(row))
    }

    fn pushed(&self, pushed: Result<(), polity_stats::Error>) -> CommandResult {
        pushed.map_err(|error| CommandError::bad_input(format!("{}: {error}", self.place)))
    }

    fn answer(&self, key: &str, word: &str, grade: u8) -> CommandResult<Answer> {
        Ok(match word {
            "left" => better(Side::Left, grade),
            "right" => better(Side::Right, grade),
            "tie" => Answer::Tie,
            "both_bad" => Answer::BothBad,
            "skip" => Answer::Skip,
            "flag" => Answer::Flag,
            _ => return Err(self.wrong(key, word, "left, right, tie, both_bad, skip or flag")),
        })
    }

    fn has(&self, key: &str) -> bool {
        self.row.get(key).is_some_and(|value| !value.is_null())
    }

    /// Text, or a number as text: ids are often numbers.
    fn text(&self, key: &str) -> CommandResult<Option<Cow<'_, str>>> {
        match self.row.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if text.is_empty() => Ok(None),
            Some(Value::String(text)) => Ok(Some(Cow::Borrowed(text))),
            Some(Value::Number(number)) => Ok(Some(Cow::Owned(number.to_string()))),
            Some(other) => Err(self.wrong(key, kind(other), "text or a number")),
        }
    }

    fn needed(&self, key: &str) -> CommandResult<Cow<'_, str>> {
        self.text(key)?.ok_or_else(|| {
            let keys: Vec<String> = self.row.keys().map(|key| format!("`{key}`")).collect();
            let near = self.row.keys().filter(|own| !KEYS.contains(&own.as_str())).find(|own| {
                strsim::damerau_levenshtein(&own.to_lowercase(), key) <= 2
            });
            let error = CommandError::bad_input(format!(
                "{}: `{key}` is missing; found {}",
                self.place,
                if keys.is_empty() { "no keys".to_owned() } else { keys.join(", ") }
            ));
            match near {
                Some(near) => error.hint(format!("did you mean `{key}` for `{near}`?")),
                None => error.hint(
                    "a vote has `prompt`, `left`, `right`, `annotator` and `answer`; docs/agreement.md has all keys and other shapes",
                ),
            }
        })
    }

    fn integer(&self, key: &str) -> CommandResult<Option<i64>> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        match text.trim().parse::<f64>() {
            Ok(x) if x.fract() == 0.0 && x.abs() < 1e15 => Ok(Some(x as i64)),
            _ => Err(self.wrong(key, &text, "an integer")),
        }
    }

    /// True or false, also as text (CSV has no other); false if it is not there.
    fn yes(&self, key: &str) -> CommandResult<bool> {
        if let Some(Value::Bool(yes)) = self.row.get(key) {
            return Ok(*yes);
        }
        match self.text(key)?.as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => Err(self.wrong(key, other, "true or false")),
        }
    }

    fn wrong(&self, key: &str, found: &str, expected: &str) -> CommandError {
        CommandError::bad_input(format!("{}: `{key}` is {found}; expected {expected}", self.place))
    }
}

/// What the published shapes do not have.
const NOTHING: VoteRow<'static> = VoteRow {
    prompt: "",
    left: "",
    right: "",
    annotator: "",
    answer: Answer::Skip,
    category: None,
    rubric: None,
    time_ms: None,
    duration_ms: None,
    known: None,
};

fn better(side: Side, grade: u8) -> Answer {
    Answer::Better { side, grade }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Bool(_) => "true or false",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
        _ => "something else",
    }
}
