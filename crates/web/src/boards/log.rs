//! A run's numbers, alarms and samples, from its files of lines, in bounded memory.
//!
//! ```text
//! metrics.jsonl    one object a step: step, time_s, numbers by name; null where one was not finite
//! alarms.jsonl     {"step", "alarm", "severity", "raised", "message"}
//! samples.jsonl    {"step", "prompt_index", "prompt", "response", "response_tokens", "stopped", "score"}
//! ```
//!
//! A line that is none of this is counted, and the first one is named. Steps must rise.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

use polity_chart::{Curve, Raised};
use serde_json::{Map, Value, json};

use super::cut;
use super::tail::{Lines, Tail};

/// Different numbers of a run at most, and the length of a name.
const NAMES_MAX: usize = 300;
const NAME_BYTES_MAX: usize = 100;
/// Alarms, prompts and responses of a prompt that are kept.
const ALARMS_MAX: usize = 500;
const PROMPTS_MAX: usize = 24;
const RESPONSES_MAX: usize = 8;
/// Letters of a text that are kept.
const LETTERS_MAX: usize = 4000;
/// Steps from which the speed is taken.
const RECENT: usize = 32;

/// Numbers that a run's KL, its score by the reward model, and its score by people or a known truth have in every log.
pub(crate) const KL: &str = "objective/kl";
pub(crate) const PROXY: &str = "objective/scores";
pub(crate) const GOLD: &str = "samples/gold";

/// All that is read of a run while it trains.
pub(crate) struct RunLog {
    metrics: Tail<Metrics>,
    alarms: Tail<Alarms>,
    samples: Tail<Samples>,
    /// What could not be read at all.
    pub(crate) problems: Vec<String>,
    /// Whether there is more in the files than was read so far.
    pub(crate) behind: bool,
}

impl RunLog {
    pub(crate) fn new(dir: &Path) -> RunLog {
        RunLog {
            metrics: Tail::new(dir.join("metrics.jsonl")),
            alarms: Tail::new(dir.join("alarms.jsonl")),
            samples: Tail::new(dir.join("samples.jsonl")),
            problems: Vec::new(),
            behind: false,
        }
    }

    /// The alarms alone, of what may be a run.
    pub(crate) fn alarms_of(dir: &Path) -> Vec<Alarm> {
        let mut alarms: Tail<Alarms> = Tail::new(dir.join("alarms.jsonl"));
        // What cannot be read is said on the run's own page.
        let _ = alarms.read();
        alarms.into_made().alarms
    }

    /// Reads what has come since.
    pub(crate) fn read(&mut self) {
        let read = [
            ("metrics.jsonl", self.metrics.read()),
            ("alarms.jsonl", self.alarms.read()),
            ("samples.jsonl", self.samples.read()),
        ];
        self.behind = read.iter().any(|(_, read)| matches!(read, Ok(false)));
        let failed = read.iter().filter_map(|(name, read)| Some(format!("{name}: {}", read.as_ref().err()?)));
        let damaged = [
            ("metrics.jsonl", &self.metrics().damaged),
            ("alarms.jsonl", &self.alarms.made().damaged),
            ("samples.jsonl", &self.samples.made().damaged),
        ];
        let damaged =
            damaged.into_iter().filter_map(|(name, damaged)| Some(format!("{name}: {}", damaged.said()?)));
        self.problems = failed.chain(damaged).collect();
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        self.metrics.made()
    }

    pub(crate) fn alarms(&self) -> &[Alarm] {
        &self.alarms.made().alarms
    }

    pub(crate) fn samples(&self) -> impl Iterator<Item = &[Sample]> {
        self.samples.made().by_prompt.values().map(Vec::as_slice)
    }

    /// The alarms as marks on curves.
    pub(crate) fn raised(&self) -> Vec<Raised> {
        let raised = self.alarms().iter().filter(|alarm| alarm.raised);
        raised
            .map(|alarm| Raised {
                step: alarm.step,
                alarm: alarm.alarm.clone(),
                message: alarm.message.clone(),
            })
            .collect()
    }
}

/// Lines that could not be read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Damaged {
    lines: u64,
    count: u64,
    first: Option<(u64, String)>,
}

impl Damaged {
    fn note(&mut self, what: String) {
        self.count += 1;
        self.first.get_or_insert((self.lines, what));
    }

    /// In words, if there were any.
    pub(crate) fn said(&self) -> Option<String> {
        let (line, what) = self.first.as_ref()?;
        let lines = if self.count == 1 { "line was".into() } else { format!("{} lines were", self.count) };
        Some(match self.count {
            1 => format!("line {line} was left out: {what}"),
            _ => format!("{lines} left out; the first is line {line}: {what}"),
        })
    }
}

/// The line as an object.
fn object(damaged: &mut Damaged, line: Option<&[u8]>) -> Option<Map<String, Value>> {
    damaged.lines += 1;
    let Some(line) = line else {
        damaged.note("it is longer than a line may be".into());
        return None;
    };
    if line.trim_ascii().is_empty() {
        return None;
    }
    match serde_json::from_slice(line) {
        Ok(Value::Object(object)) => Some(object),
        Ok(_) => {
            damaged.note("it is no JSON object".into());
            None
        }
        // The error's own text may quote the line.
        Err(error) => {
            damaged.note(format!("it is not JSON, at column {}", error.column()));
            None
        }
    }
}

// ------------------------------------------------------------------------------------------------------------ numbers

/// The numbers of a run.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// By name.
    pub(crate) curves: BTreeMap<String, Curve>,
    /// KL beside each of the two scores, at the steps that have both.
    pub(crate) proxy: Trail,
    pub(crate) gold: Trail,
    recent: VecDeque<Point>,
    pub(crate) damaged: Damaged,
}

/// Two numbers step by step.
#[derive(Debug, Default)]
pub(crate) struct Trail {
    x: Curve,
    y: Curve,
}

impl Trail {
    fn push(&mut self, step: f64, x: Option<f64>, y: Option<f64>) {
        if let (Some(x), Some(y)) = (x, y)
            && x.is_finite()
            && y.is_finite()
        {
            self.x.push(step, x);
            self.y.push(step, y);
        }
    }

    /// `(step, x, y)`: means over the same neighbouring steps.
    pub(crate) fn points(&self) -> impl Iterator<Item = (f64, f64, f64)> {
        // Both were pushed to at the same steps, so their buckets are of the same steps.
        let pairs = self.x.buckets().flatten().zip(self.y.buckets().flatten());
        pairs.map(|(x, y)| (x.x(), x.mean(), y.mean()))
    }
}

/// How far a run was at a moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Point {
    pub(crate) step: u64,
    pub(crate) time_s: f64,
    pub(crate) epoch: Option<f64>,
    pub(crate) episode: Option<f64>,
}

impl Metrics {
    /// The last step.
    pub(crate) fn last(&self) -> Option<Point> {
        self.recent.back().copied()
    }

    /// A step some time before the last one.
    pub(crate) fn before(&self) -> Option<Point> {
        self.recent.front().copied().filter(|_| self.recent.len() > 1)
    }

    /// The last value of a number.
    pub(crate) fn value(&self, name: &str) -> Option<f64> {
        self.curves.get(name)?.last().map(|(_, y)| y)
    }
}

impl Lines for Metrics {
    fn line(&mut self, line: Option<&[u8]>) {
        let Some(object) = object(&mut self.damaged, line) else { return };
        let value = |name: &str| object.get(name).and_then(Value::as_f64);
        let Some(step) = object.get("step").and_then(Value::as_u64) else {
            return self.damaged.note("it has no `step` that is a whole number".into());
        };
        if let Some(last) = self.last().filter(|last| step <= last.step) {
            return self.damaged.note(format!("step {step} comes after step {}", last.step));
        }
        let x = step as f64;
        for (name, value) in &object {
            let y = match value {
                _ if name == "step" || name == "time_s" => continue,
                Value::Number(number) => number.as_f64().unwrap_or(f64::NAN),
                Value::Null => f64::NAN,
                _ => continue,
            };
            let names = self.curves.len();
            match self.curves.get_mut(name) {
                Some(curve) => curve.push(x, y),
                None if names < NAMES_MAX && name.len() <= NAME_BYTES_MAX => {
                    self.curves.insert(name.clone(), [(x, y)].into_iter().collect());
                }
                None => {}
            }
        }
        self.proxy.push(x, value(KL), value(PROXY));
        self.gold.push(x, value(KL), value(GOLD));
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(Point {
            step,
            time_s: value("time_s").unwrap_or(0.0),
            epoch: value("epoch"),
            episode: value("episode"),
        });
    }
}

// ----------------------------------------------------------------------------------------------------- alarms, samples

/// An alarm that was raised, or is over.
#[derive(Clone, Debug)]
pub(crate) struct Alarm {
    pub(crate) step: u64,
    pub(crate) alarm: String,
    pub(crate) critical: bool,
    pub(crate) raised: bool,
    pub(crate) message: String,
}

impl Alarm {
    pub(crate) fn json(&self) -> Value {
        json!({
            "step": self.step, "alarm": self.alarm, "severity": if self.critical { "critical" } else { "warning" },
            "raised": self.raised, "message": self.message,
        })
    }
}

#[derive(Debug, Default)]
pub(crate) struct Alarms {
    pub(crate) alarms: Vec<Alarm>,
    damaged: Damaged,
}

impl Lines for Alarms {
    fn line(&mut self, line: Option<&[u8]>) {
        let Some(object) = object(&mut self.damaged, line) else { return };
        let (Some(step), Some(alarm)) =
            (object.get("step").and_then(Value::as_u64), object.get("alarm").and_then(Value::as_str))
        else {
            return self.damaged.note("it has no `step` or no `alarm`".into());
        };
        if self.alarms.len() < ALARMS_MAX {
            let text = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default();
            self.alarms.push(Alarm {
                step,
                alarm: cut(alarm, NAME_BYTES_MAX),
                critical: text("severity") == "critical",
                raised: object.get("raised").and_then(Value::as_bool).unwrap_or(true),
                message: cut(text("message"), LETTERS_MAX),
            });
        }
    }
}

/// A response to a fixed prompt.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) step: u64,
    pub(crate) prompt: String,
    pub(crate) response: String,
    pub(crate) tokens: Option<u64>,
    pub(crate) stopped: bool,
    pub(crate) score: Option<f64>,
}

#[derive(Debug, Default)]
pub(crate) struct Samples {
    by_prompt: BTreeMap<u64, Vec<Sample>>,
    damaged: Damaged,
}

impl Lines for Samples {
    fn line(&mut self, line: Option<&[u8]>) {
        let Some(object) = object(&mut self.damaged, line) else { return };
        let (Some(step), Some(index)) =
            (object.get("step").and_then(Value::as_u64), object.get("prompt_index").and_then(Value::as_u64))
        else {
            return self.damaged.note("it has no `step` or no `prompt_index`".into());
        };
        if self.by_prompt.len() == PROMPTS_MAX && !self.by_prompt.contains_key(&index) {
            return;
        }
        let text =
            |name: &str| cut(object.get(name).and_then(Value::as_str).unwrap_or_default(), LETTERS_MAX);
        let of_prompt = self.by_prompt.entry(index).or_default();
        if of_prompt.len() == RESPONSES_MAX {
            // The first stays; of the others every second, so that what is kept is spread over the run.
            let mut n = 0;
            of_prompt.retain(|_| {
                n += 1;
                n % 2 == 1
            });
        }
        of_prompt.push(Sample {
            step,
            prompt: text("prompt"),
            response: text("response"),
            tokens: object.get("response_tokens").and_then(Value::as_u64),
            stopped: object.get("stopped").and_then(Value::as_bool).unwrap_or(true),
            score: object.get("score").and_then(Value::as_f64),
        });
    }
}
