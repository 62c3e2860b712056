//! A measure: a named number with its unit and interval, and the items behind it, so that two can be compared prompt by prompt.
//!
//! A file holds one evaluation, all measures of one model on one suite with one set of settings:
//!
//! ```json
//! {"model": "…", "suite": "…", "settings": {"seed": 1}, "measures": [
//!   {"name": "win_rate", "category": null, "unit": "share", "estimate": 0.5625, "low": …, "high": …, "n": 8, "confidence": 0.9,
//!    "range": [0, 1], "items": [{"id": "prompt-1", "annotator": "ann", "sum": 1.5, "n": 2}, …]}]}
//! ```
//!
//! `range` is what a single value can be; a measure without it is unbounded, and has no anytime-valid interval. An item is one prompt's (or
//! one annotator's on one prompt) sum of values and their number. The items are the truth: reading checks that the estimate is theirs, so a
//! changed number is found. A measure that is no mean of values (a length-controlled rate) has its influence values as items: their
//! mean is the estimate, their spread its error.
//!
//! Values that were corrected by something uncertain (a classifier's known errors) say how uncertain in `correction_se`, which is added to
//! the spread of the items.
//!
//! An evaluation's [`key`](Evaluation::key) is a hash of model, suite, settings and inputs: where it is cached, and what makes it the same
//! evaluation. Two models are compared where suite and settings are the same; `inputs` are each model's own.

use std::collections::HashSet;
use std::path::Path;

use polity_stats::Cell;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::EvalError;
use crate::inference::{Inference, Mode};

/// All measures of one model on one suite.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// Hash of the model.
    pub model: String,
    /// Hash of the suite.
    pub suite: String,
    /// What people call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suite_name: Option<String>,
    /// Whatever else the numbers depend on: sampler, seed, judge.
    #[serde(default)]
    pub settings: Map<String, Value>,
    /// Hashes of what was there for this model alone, such as people's labels of its answers.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub inputs: Map<String, Value>,
    /// The results.
    pub measures: Vec<Measure>,
}

/// A number and what it was made from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measure {
    /// Such as `win_rate`.
    pub name: String,
    /// Such as `helpfulness`; `None` is everything.
    #[serde(default)]
    pub category: Option<String>,
    /// Such as `share`, `nats per sequence`, `tokens`.
    pub unit: String,
    /// Mean over values.
    pub estimate: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Values behind it.
    pub n: u64,
    /// Coverage of the interval.
    pub confidence: f64,
    /// Least and largest possible value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<[f64; 2]>,
    /// Standard error of what the values were corrected by, beyond their own spread: the errors of a classifier, say.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub correction_se: f64,
    /// One for each prompt, or for each annotator on each prompt, in the order in which they came.
    pub items: Vec<Item>,
}

/// Values of one prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// The prompt.
    pub id: String,
    /// Who judged; errors are clustered by annotator too if every item says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotator: Option<String>,
    /// Sum of the values.
    pub sum: f64,
    /// How many they are.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub n: u64,
}

fn one() -> u64 {
    1
}

fn is_one(n: &u64) -> bool {
    *n == 1
}

fn is_zero(x: &f64) -> bool {
    *x == 0.0
}

impl Item {
    /// A single value.
    pub fn new(id: impl Into<String>, value: f64) -> Item {
        Item { id: id.into(), annotator: None, sum: value, n: 1 }
    }
}

impl Measure {
    /// Estimate and interval of these items.
    pub fn new(
        name: &str,
        category: Option<&str>,
        unit: &str,
        range: Option<[f64; 2]>,
        items: Vec<Item>,
        confidence: f64,
    ) -> Result<Measure, EvalError> {
        Measure::corrected(name, category, unit, range, items, 0.0, confidence)
    }

    /// The same of values that were corrected by something that is itself known with this standard error.
    pub fn corrected(
        name: &str,
        category: Option<&str>,
        unit: &str,
        range: Option<[f64; 2]>,
        items: Vec<Item>,
        correction_se: f64,
        confidence: f64,
    ) -> Result<Measure, EvalError> {
        let mut measure = Measure {
            name: name.to_owned(),
            category: category.map(str::to_owned),
            unit: unit.to_owned(),
            estimate: 0.0,
            low: 0.0,
            high: 0.0,
            n: items.iter().map(|item| item.n).sum(),
            confidence,
            range,
            correction_se,
            items,
        };
        let inference = Inference::of_mean(&measure, Mode::Fixed, 0.5 - 0.5 * confidence)?;
        measure.estimate = inference.estimate();
        (measure.low, measure.high) = inference.bounds();
        Ok(measure)
    }

    /// The items as the statistics take them.
    pub(crate) fn cells(&self) -> Vec<Cell<&str>> {
        self.items
            .iter()
            .map(|item| Cell {
                prompt: item.id.as_str(),
                annotator: item.annotator.as_deref(),
                sum: item.sum,
                n: item.n as f64,
            })
            .collect()
    }

    /// What is wrong with it, if anything.
    fn check(&self) -> Result<(), String> {
        let named = |what: String| Err(format!("measure `{}`: {what}", self.name));
        if self.items.is_empty() {
            return named("no items; expected one for each prompt".into());
        }
        if !(self.correction_se >= 0.0 && self.correction_se.is_finite()) {
            return named(format!(
                "`correction_se` is {}; expected a number, at least 0",
                self.correction_se
            ));
        }
        if !(self.confidence > 0.0 && self.confidence < 1.0) {
            return named(format!("`confidence` is {}; expected a number between 0 and 1", self.confidence));
        }
        if self.range.is_some_and(|[low, high]| low >= high) {
            return named(format!(
                "`range` is {:?}; expected [least, largest]",
                self.range.unwrap_or_default()
            ));
        }
        let mut seen = HashSet::new();
        for item in &self.items {
            let mean = item.sum / item.n as f64;
            if !mean.is_finite() {
                return named(format!("item `{}`: sum {} of {} values", item.id, item.sum, item.n));
            }
            if let Some([low, high]) = self.range
                && !(low - 1e-9..=high + 1e-9).contains(&mean)
            {
                return named(format!(
                    "item `{}`: a mean of {mean} is outside the range [{low}, {high}]",
                    item.id
                ));
            }
            if !seen.insert((&item.id, &item.annotator)) {
                return named(format!("item `{}` is there twice; expected the sum of both", item.id));
            }
        }
        let n: u64 = self.items.iter().map(|item| item.n).sum();
        let mean = self.items.iter().map(|item| item.sum).sum::<f64>() / n as f64;
        if n != self.n || (mean - self.estimate).abs() > 1e-9 * mean.abs().max(1.0) {
            return named(format!(
                "says {} of {} values, and its items say {mean} of {n}: one of them was changed",
                self.estimate, self.n
            ));
        }
        Ok(())
    }
}

impl Evaluation {
    /// Hash of model, suite, settings and inputs.
    pub fn key(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let settings = sorted(&Value::Object(self.settings.clone())).to_string();
        let inputs = sorted(&Value::Object(self.inputs.clone())).to_string();
        let parts = [self.model.as_str(), &self.suite, &settings, &inputs];
        // Without inputs the key is that of evaluations from before there were any.
        for part in &parts[..if self.inputs.is_empty() { 3 } else { 4 }] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    /// All of it as JSON with sorted keys and without spaces: the same text however the file was written, so its hash names the evaluation.
    pub fn canonical(&self) -> String {
        sorted(&serde_json::to_value(self).expect("numbers and texts are JSON")).to_string()
    }

    /// The measure with this name and category.
    pub fn measure(&self, name: &str, category: Option<&str>) -> Option<&Measure> {
        self.measures.iter().find(|measure| measure.name == name && measure.category.as_deref() == category)
    }

    /// Reads a file and checks that it agrees with itself.
    pub fn read(file: &Path) -> Result<Evaluation, EvalError> {
        let text = std::fs::read_to_string(file)
            .map_err(|source| EvalError::Read { file: file.to_owned(), source })?;
        Evaluation::parse(file, &text)
    }

    /// As [`read`](Evaluation::read), from text.
    pub fn parse(file: &Path, text: &str) -> Result<Evaluation, EvalError> {
        let wrong = |message: String| EvalError::Measures { file: file.to_owned(), message };
        let evaluation: Evaluation =
            serde_json::from_str(text).map_err(|error| wrong(format!("no file of measures: {error}")))?;
        evaluation.check().map_err(wrong)?;
        Ok(evaluation)
    }

    /// What is wrong with it, if anything: numbers that are not their items', a measure that is there twice.
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut seen = HashSet::new();
        for measure in &self.measures {
            measure.check()?;
            if !seen.insert((&measure.name, &measure.category)) {
                return Err(format!("measure `{}` is there twice", measure.name));
            }
        }
        Ok(())
    }

    /// Writes it, whole or not at all.
    pub fn write(&self, file: &Path) -> Result<(), EvalError> {
        use std::io::Write;
        let text = serde_json::to_string(self).expect("numbers and texts are JSON");
        Ok(polity_rows::atomic_write(file, |out| out.write_all(text.as_bytes()))?)
    }
}

/// With sorted keys, so that the order in which they were written says nothing.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            Value::Object(keys.into_iter().map(|key| (key.clone(), sorted(&map[key]))).collect())
        }
        Value::Array(list) => Value::Array(list.iter().map(sorted).collect()),
        other => other.clone(),
    }
}
