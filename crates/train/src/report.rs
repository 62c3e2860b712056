//! `report.html`: what a run did, for people. One file, no scripts, nothing fetched; light and dark, wide and narrow.
//!
//! Everything comes from the files of the run ([`RunData`]), so a resumed run's report covers all of it, and from what
//! only the caller knows ([`Extra`]). [`Page`], [`table`] and the charts of [`polity_chart`] make other reports too: the
//! demo's is built from them.
//!
//! Not here: measuring anything.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use polity_chart::{Board, Curve, LineChart, Metric, Raised, STYLE, escape, short};
use polity_stats::{t_quantile, wilson};
use serde::{Deserialize, Serialize};

use crate::config::SettingValue;
use crate::error::TrainError;
use crate::metrics::{self, EVAL_PREFIX, Stage};
use crate::monitor::{Alarm, AlarmKind, Severity};
use crate::objectives::MetricDecl;
use crate::progress::Sample;
use crate::run::{Manifest, RunDir, Step, names, read_lines, read_steps};

// ------------------------------------------------------------------------------------------------------------- input

/// A named number with a unit and, where it is an estimate, an interval.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measure {
    /// What it is.
    pub name: String,
    /// Part of the data that it is of; empty for all.
    pub category: String,
    /// Its unit.
    pub unit: String,
    /// The number.
    pub estimate: f64,
    /// Lower end of its 95 % interval.
    pub low: Option<f64>,
    /// Upper end.
    pub high: Option<f64>,
    /// What it was estimated from, counted.
    pub n: Option<u64>,
}

/// What a run's files do not say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Extra {
    /// What pre-flight counted, a sentence each.
    pub preflight: Vec<String>,
    /// What pre-flight warned about, a sentence each.
    pub warnings: Vec<String>,
    /// Rows (or pairs) of the evaluation data.
    pub eval_rows: usize,
    /// Numbers measured at the end, beside those of the log.
    pub measures: Vec<Measure>,
    /// The settings.
    pub settings: Vec<SettingValue>,
}

/// What a run wrote.
#[derive(Clone, Debug, PartialEq)]
pub struct RunData {
    /// Where it came from.
    pub manifest: Manifest,
    /// The trainer.
    pub stage: Stage,
    /// Steps, seconds and numbers, in order. A number that was not finite is NaN.
    pub steps: Vec<Step>,
    /// Responses to the fixed prompts.
    pub samples: Vec<Sample>,
    /// Alarms raised and cleared.
    pub alarms: Vec<Alarm>,
}

impl RunData {
    /// Reads the files of a run.
    pub fn read(out: &Path) -> Result<RunData, TrainError> {
        let path = out.join(names::MANIFEST);
        let text = fs::read_to_string(&path).map_err(TrainError::read(&path))?;
        let damaged = |found: String| TrainError::Damaged {
            file: path.clone(),
            found,
            expected: "the manifest of a run".into(),
        };
        let manifest: Manifest = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        let stage = manifest.stage.parse().map_err(damaged)?;
        Ok(RunData {
            manifest,
            stage,
            steps: read_steps(out)?,
            samples: read_lines(&out.join(names::SAMPLES))?,
            alarms: read_lines(&out.join(names::ALARMS))?,
        })
    }

    /// The last value of a metric.
    pub fn last(&self, name: &str) -> Option<f64> {
        self.steps.iter().rev().find_map(|step| step.values.get(name).copied())
    }

    /// The values of a metric over the steps that have it.
    pub fn series(&self, name: &str) -> Vec<(f64, f64)> {
        self.steps.iter().filter_map(|step| Some((step.step as f64, *step.values.get(name)?))).collect()
    }
}

/// Writes the report of a run into its directory.
pub fn write(run: &RunDir, extra: &Extra) -> Result<(), TrainError> {
    let data = RunData::read(run.out())?;
    run.write_file(names::REPORT, html(&data, extra).as_bytes())
}

// -------------------------------------------------------------------------------------------------------- the report

/// Charts of a stage: title, and the lines with their metrics. The evaluation's copy of a metric joins its chart.
type Panel = (&'static str, &'static [(&'static str, &'static str)]);

const SFT_PANELS: &[Panel] = &[
    ("Loss", &[("training", "loss")]),
    ("Surprise per token", &[("training", "nll_per_token")]),
    ("Tokens predicted right", &[("training", "mean_token_accuracy")]),
    ("Entropy", &[("training", "entropy")]),
    ("Gradient norm", &[("before clipping", "grad_norm")]),
    ("Learning rate", &[("policy", "learning_rate")]),
];

const REWARD_PANELS: &[Panel] = &[
    ("Loss", &[("training", "loss")]),
    ("Pairs ordered right", &[("training", "accuracy")]),
    ("Margin", &[("training", "margin")]),
    ("Rewards", &[("largest", "max_reward"), ("mean", "mean_reward"), ("smallest", "min_reward")]),
    ("Gradient norm", &[("before clipping", "grad_norm")]),
    ("Learning rate", &[("model", "learning_rate")]),
];

const DPO_PANELS: &[Panel] = &[
    ("Loss", &[("training", "loss")]),
    ("Pairs ordered right", &[("training", "rewards/accuracies")]),
    ("Margin", &[("training", "rewards/margins")]),
    ("Implicit rewards", &[("chosen", "rewards/chosen"), ("rejected", "rewards/rejected")]),
    ("Log-probability of responses", &[("chosen", "logps/chosen"), ("rejected", "logps/rejected")]),
    ("Gradient norm", &[("before clipping", "grad_norm")]),
    ("Learning rate", &[("policy", "learning_rate")]),
];

const PPO_PANELS: &[Panel] = &[
    ("Score of the reward model", &[("score", "objective/scores")]),
    ("Score that matters", &[("gold", "samples/gold")]),
    ("KL from the reference", &[("KL", "objective/kl")]),
    ("KL coefficient", &[("coefficient", "objective/kl_coef")]),
    ("Entropy", &[("policy", "policy/entropy_avg")]),
    ("Response length", &[("mean", "tokens/responses_len_mean")]),
    ("How responses end", &[("by themselves", "samples/eos_rate"), ("cut", "completions/clipped_ratio")]),
    ("Variety", &[("different tokens", "samples/distinct_1"), ("different bigrams", "samples/distinct_2")]),
    ("Repetition within a response", &[("repeated 4-grams", "samples/repetition")]),
    ("Policy loss", &[("loss", "loss/policy_avg")]),
    ("Value loss", &[("loss", "loss/value_avg")]),
    ("Variance that the critic explains", &[("share", "val/var_explained")]),
    ("Clipped", &[("ratios", "policy/clipfrac_avg"), ("values", "val/clipfrac_avg")]),
    ("Distance from the sampling policy", &[("k2", "policy/approxkl_avg"), ("k1", "policy/policykl")]),
    ("Gradient norm", &[("policy", "grad_norm"), ("critic", "grad_norm_critic")]),
    ("Learning rate", &[("policy", "lr"), ("critic", "lr_critic")]),
];

fn panels(stage: Stage) -> &'static [Panel] {
    match stage {
        Stage::Sft => SFT_PANELS,
        Stage::Reward => REWARD_PANELS,
        Stage::Dpo => DPO_PANELS,
        Stage::Ppo => PPO_PANELS,
    }
}

fn title(stage: Stage) -> &'static str {
    match stage {
        Stage::Sft => "Supervised fine-tuning",
        Stage::Reward => "Reward model",
        Stage::Dpo => "Direct preference optimisation",
        Stage::Ppo => "Proximal policy optimisation",
    }
}

/// The page.
pub fn html(data: &RunData, extra: &Extra) -> String {
    let mut page = Page::new(&format!("{} run", title(data.stage)), &subtitle(data));
    page.section("Alarms", &alarms(&data.alarms));
    let measured = [final_measures(data, extra.eval_rows), extra.measures.clone()].concat();
    if !measured.is_empty() {
        page.section("Measures", &measures(&measured));
    }
    let (main, other) = charts(data);
    page.section("Curves", &grid(&main));
    if !data.samples.is_empty() {
        page.section("Responses to fixed prompts", &samples(&data.samples));
    }
    page.section("Numbers", &numbers(data));
    if !other.is_empty() {
        page.folded("More curves", &grid(&other));
    }
    if !extra.preflight.is_empty() || !extra.warnings.is_empty() {
        page.section("Pre-flight", &preflight(extra));
    }
    if !extra.settings.is_empty() {
        page.section("Settings", &settings(&extra.settings));
    }
    page.section("Provenance", &provenance(&data.manifest));
    page.finish()
}

fn subtitle(data: &RunData) -> String {
    let state = match &data.manifest.finished {
        Some(when) => format!("finished {when}"),
        None => "not finished".to_owned(),
    };
    let (steps, time_s) = data.steps.last().map_or((0, 0.0), |last| (last.step, last.time_s));
    format!("{steps} steps in {}, {state}", duration(time_s))
}

fn duration(time_s: f64) -> String {
    let s = time_s.round() as u64;
    match (s / 3600, s / 60 % 60, s % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

/// A list of alarms that were raised, with when they were cleared.
pub fn alarms(alarms: &[Alarm]) -> String {
    let raised: Vec<&Alarm> = alarms.iter().filter(|alarm| alarm.raised).collect();
    if raised.is_empty() {
        return "<p class=\"calm\">None: no rule of the stability monitor was broken.</p>".into();
    }
    let mut out = String::from("<ul class=\"alarms\">");
    for alarm in raised {
        let cleared = alarms
            .iter()
            .find(|other| !other.raised && other.alarm == alarm.alarm && other.step > alarm.step);
        let until = cleared.map_or("to the end".to_owned(), |other| format!("until step {}", other.step));
        let class = match alarm.severity {
            Severity::Critical => "critical",
            Severity::Warning => "warning",
        };
        let _ = write!(
            out,
            "<li class=\"{class}\"><b>{}</b> <small>{class}, from step {} {until}</small><br>{}</li>",
            alarm.alarm,
            alarm.step,
            escape(&alarm.message)
        );
    }
    out.push_str("</ul>");
    out
}

/// Confidence of every interval.
const CONFIDENCE: f64 = 0.95;

/// What the last evaluation measured (of PPO: the last rollout), with intervals over its rows or responses.
///
/// An accuracy has Wilson's interval, the mean of scores has Student's. A loss has none: the log does not keep its spread.
pub fn final_measures(data: &RunData, eval_rows: usize) -> Vec<Measure> {
    let measure = |name: &str, n: usize, interval: Option<(f64, f64)>| {
        let (estimate, decl) = (data.last(name)?, metrics::find(data.stage, name)?);
        Some(Measure {
            name: name.into(),
            category: String::new(),
            unit: decl.unit.into(),
            estimate,
            low: interval.map(|(low, _)| low),
            high: interval.map(|(_, high)| high),
            n: (n > 0).then_some(n as u64),
        })
    };
    let share = |name: &str, n: usize| {
        let interval = data.last(name).and_then(|share| share_interval(share, n));
        measure(name, n, interval)
    };
    let found = match data.stage {
        Stage::Sft => vec![
            measure("eval_loss", eval_rows, None),
            measure("eval_nll_per_token", eval_rows, None),
            measure("eval_mean_token_accuracy", eval_rows, None),
        ],
        Stage::Reward => vec![
            share("eval_accuracy", eval_rows),
            measure("eval_longer_wins", eval_rows, None),
            measure("eval_calibration_error", eval_rows, None),
            measure("eval_loss", eval_rows, None),
        ],
        Stage::Dpo => vec![
            share("eval_rewards/accuracies", eval_rows),
            measure("eval_rewards/margins", eval_rows, None),
            measure("eval_loss", eval_rows, None),
        ],
        Stage::Ppo => {
            let episodes: Vec<f64> = data.series("episode").into_iter().map(|(_, count)| count).collect();
            let n = match episodes[..] {
                [.., before, last] => last - before,
                [only] => only,
                [] => 0.0,
            } as usize;
            vec![
                measure("objective/scores", n, score_interval(data, n)),
                measure("objective/kl", n, None),
                share("samples/eos_rate", n),
                measure("tokens/responses_len_mean", n, None),
                measure("samples/gold", 0, None),
            ]
        }
    };
    found.into_iter().flatten().collect()
}

/// Wilson's interval of a share of `n`, if it is one: a weighted share, whose count is not whole, has none.
fn share_interval(share: f64, n: usize) -> Option<(f64, f64)> {
    let successes = (share * n as f64).round();
    if !share.is_finite() || (share * n as f64 - successes).abs() > 1e-6 || !(0.0..=1.0).contains(&share) {
        return None;
    }
    wilson(successes as usize, n, CONFIDENCE).ok().map(|interval| (interval.low, interval.high))
}

/// Student's interval of the mean score of `n` responses.
fn score_interval(data: &RunData, n: usize) -> Option<(f64, f64)> {
    let (mean, deviation) = (data.last("objective/scores")?, data.last("objective/scores_std")?);
    if n < 2 || !mean.is_finite() || !deviation.is_finite() {
        return None;
    }
    let margin = t_quantile(0.5 + CONFIDENCE / 2.0, (n - 1) as f64) * deviation / (n as f64).sqrt();
    Some((mean - margin, mean + margin))
}

/// A table of measures with their intervals.
pub fn measures(measures: &[Measure]) -> String {
    let in_parts = measures.iter().any(|measure| !measure.category.is_empty());
    let with_intervals = measures.iter().any(|measure| measure.low.is_some());
    let mut head = vec!["measure", "#estimate", "#n", "unit"];
    if with_intervals {
        head.insert(2, "#95 % interval");
    }
    if in_parts {
        head.insert(1, "part");
    }
    let row = |measure: &Measure| {
        let interval = match (measure.low, measure.high) {
            (Some(low), Some(high)) => format!("{} to {}", short(low), short(high)),
            _ => String::new(),
        };
        let n = measure.n.map_or(String::new(), |n| n.to_string());
        let (name, part, unit) = (escape(&measure.name), escape(&measure.category), escape(&measure.unit));
        let mut cells = vec![name, short(measure.estimate), n, unit];
        if with_intervals {
            cells.insert(2, interval);
        }
        if in_parts {
            cells.insert(1, part);
        }
        cells
    };
    table(&head, &measures.iter().map(row).collect::<Vec<_>>())
}

/// What a stage logs and how it is drawn.
pub fn board(stage: Stage) -> Board {
    let panel = |(title, lines): &Panel| polity_chart::Panel {
        title: (*title).into(),
        lines: lines.iter().map(|(label, name)| ((*label).into(), (*name).into())).collect(),
    };
    let metric = |decl: &MetricDecl| Metric {
        name: decl.name.into(),
        unit: decl.unit.into(),
        formula: decl.formula.into(),
    };
    let watched = |alarm: AlarmKind| {
        (alarm.name().to_owned(), alarm.metrics().iter().map(|name| (*name).to_owned()).collect())
    };
    Board {
        stage: stage.name().into(),
        title: title(stage).into(),
        panels: panels(stage).iter().map(panel).collect(),
        metrics: metrics::declared(stage).map(metric).collect(),
        alarms: AlarmKind::ALL.map(watched).into(),
        eval_prefix: EVAL_PREFIX.into(),
    }
}

/// The charts that matter most to a stage, the most important first; what was not logged is left out.
pub fn main_charts(data: &RunData) -> Vec<String> {
    charts(data).0
}

/// The chosen charts, and those of everything else that was logged.
fn charts(data: &RunData) -> (Vec<String>, Vec<String>) {
    let mut logged: BTreeMap<String, Curve> = BTreeMap::new();
    for step in &data.steps {
        for (name, value) in &step.values {
            // Not `entry`: it wants a name of its own for each step.
            match logged.get_mut(name) {
                Some(curve) => curve.push(step.step as f64, *value),
                None => drop(logged.insert(name.clone(), Curve::from_iter([(step.step as f64, *value)]))),
            }
        }
    }
    let raised: Vec<Raised> = data
        .alarms
        .iter()
        .filter(|alarm| alarm.raised)
        .map(|alarm| Raised {
            step: alarm.step,
            alarm: alarm.alarm.to_string(),
            message: alarm.message.clone(),
        })
        .collect();
    let (main, other) = board(data.stage).charts(&logged, &raised);
    let html = |charts: Vec<LineChart>| charts.iter().map(LineChart::to_html).collect();
    (html(main), html(other))
}

/// Steps shown for each prompt: the first, the last, and some between.
const SAMPLES_SHOWN: usize = 6;

fn samples(samples: &[Sample]) -> String {
    let mut by_prompt: BTreeMap<usize, Vec<&Sample>> = BTreeMap::new();
    samples.iter().for_each(|sample| by_prompt.entry(sample.prompt_index).or_default().push(sample));
    let mut out = String::new();
    for of_prompt in by_prompt.values() {
        let _ =
            write!(out, "<div class=\"sample\"><pre class=\"prompt\">{}</pre>", escape(&of_prompt[0].prompt));
        for i in evenly(of_prompt.len(), SAMPLES_SHOWN) {
            let sample = of_prompt[i];
            let end = if sample.stopped { "ended" } else { "cut" };
            let score = sample.score.map_or(String::new(), |score| format!(", score {}", short(score)));
            let _ = write!(
                out,
                "<p class=\"when\">step {}: {} tokens, {end}{score}</p><pre>{}</pre>",
                sample.step,
                sample.response_tokens,
                escape(&sample.response)
            );
        }
        out.push_str("</div>");
    }
    out
}

/// At most `count` of `0..total`, the first and the last among them.
fn evenly(total: usize, count: usize) -> Vec<usize> {
    if total <= count {
        return (0..total).collect();
    }
    (0..count).map(|i| (i * (total - 1) + (count - 1) / 2) / (count - 1)).collect()
}

fn numbers(data: &RunData) -> String {
    let mut names: Vec<String> = Vec::new();
    for decl in metrics::declared(data.stage) {
        names.extend([decl.name.to_owned(), format!("{EVAL_PREFIX}{}", decl.name)]);
    }
    let rows = names.iter().filter_map(|name| {
        let values = data.series(name);
        let (first, last) = (values.first()?.1, values.last()?.1);
        let decl = metrics::find(data.stage, name)?;
        let name = format!("<span title=\"{}\">{}</span>", escape(decl.formula), escape(name));
        Some(vec![name, short(first), short(last), escape(decl.unit)])
    });
    table(&["metric", "#first", "#last", "unit"], &rows.collect::<Vec<_>>())
}

fn preflight(extra: &Extra) -> String {
    let mut out = list(&extra.preflight, "");
    out.push_str(&list(&extra.warnings, " class=\"warnings\""));
    out
}

fn list(lines: &[String], class: &str) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let items: String = lines.iter().map(|line| format!("<li>{}</li>", escape(line))).collect();
    format!("<ul{class}>{items}</ul>")
}

fn settings(values: &[SettingValue]) -> String {
    let row = |value: &SettingValue| [value.key, &value.value, &value.default].map(escape).to_vec();
    let (changed, same): (Vec<&SettingValue>, Vec<&SettingValue>) =
        values.iter().partition(|value| value.value != value.default);
    let head = ["setting", "value", "default"];
    let mut out = match changed.is_empty() {
        true => "<p>All at their defaults.</p>".to_owned(),
        false => table(&head, &changed.into_iter().map(row).collect::<Vec<_>>()),
    };
    let _ = write!(
        out,
        "<details><summary>{} settings at their defaults</summary>{}</details>",
        same.len(),
        table(&head[..2], &same.into_iter().map(|value| row(value)[..2].to_vec()).collect::<Vec<_>>())
    );
    out
}

fn provenance(manifest: &Manifest) -> String {
    let mut rows = vec![
        ("command", manifest.command.join(" ")),
        (
            "version",
            match &manifest.code_commit {
                Some(commit) => format!("{} ({commit})", manifest.code_version),
                None => manifest.code_version.clone(),
            },
        ),
        ("settings (blake3)", manifest.config_blake3.clone()),
        (
            "machine",
            format!(
                "{}, {}, {} threads",
                manifest.machine.cpu, manifest.machine.isa, manifest.machine.threads
            ),
        ),
        ("seed", manifest.seed.to_string()),
        ("started", manifest.started.clone()),
    ];
    rows.extend(manifest.resumed.iter().map(|when| ("resumed", when.clone())));
    rows.extend(manifest.finished.iter().map(|when| ("finished", when.clone())));
    let inputs: Vec<String> = manifest
        .inputs
        .iter()
        .map(|input| {
            format!(
                "{}: {} ({} bytes, blake3 {})",
                input.role,
                input.path.display(),
                input.bytes,
                input.blake3
            )
        })
        .collect();
    let rows: Vec<Vec<String>> = rows
        .into_iter()
        .chain(inputs.into_iter().map(|input| ("input", input)))
        .map(|(name, value)| vec![escape(name), escape(&value)])
        .collect();
    table(&[], &rows)
}

// --------------------------------------------------------------------------------------------------------- the parts

/// A page made of sections.
#[derive(Clone, Debug)]
pub struct Page {
    head: String,
    contents: Vec<(String, String)>,
    body: String,
}

const PAGE_STYLE: &str = "\
*{box-sizing:border-box}\
html{color-scheme:light dark;-webkit-text-size-adjust:100%}\
body{margin:0 auto;padding:1.2rem 1rem 3rem;max-width:76rem;background:var(--page);color:var(--ink);\
font:16px/1.5 system-ui,sans-serif}\
h1{font-size:1.6rem;line-height:1.25;margin:.2rem 0}\
h2{font-size:1.15rem;margin:2rem 0 .7rem}\
p{margin:.4rem 0}\
.sub{color:var(--soft);margin:0 0 .8rem}\
nav{display:flex;flex-wrap:wrap;gap:.2rem 1rem;font-size:.9rem}\
a{color:var(--c0)}\
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,21rem),1fr));gap:.8rem}\
.wide{overflow-x:auto}\
table{border-collapse:collapse;font-size:.88rem;width:100%}\
th,td{text-align:left;padding:.3rem .9rem .3rem 0;border-bottom:1px solid var(--line);vertical-align:top}\
.facts td{overflow-wrap:anywhere}\
.facts td:first-child{color:var(--soft);overflow-wrap:normal;white-space:nowrap}\
th{color:var(--soft);font-weight:600}\
th.n,td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}\
pre{margin:.15rem 0 .7rem;white-space:pre-wrap;overflow-wrap:anywhere;font:.85rem/1.45 ui-monospace,monospace}\
.sample{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.7rem .8rem .1rem;\
margin-bottom:.8rem}\
pre.prompt{font-weight:600;border-bottom:1px solid var(--line);padding-bottom:.6rem}\
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,14rem),1fr));gap:0 1.2rem}\
.when{color:var(--soft);font-size:.8rem;margin:0}\
ul{padding-left:1.2rem;margin:.4rem 0}\
.alarms{list-style:none;padding:0}\
.alarms li{border-left:4px solid var(--c1);background:var(--card);padding:.5rem .8rem;margin:.5rem 0;border-radius:4px}\
.alarms li.critical{border-color:var(--alarm)}\
.alarms small{color:var(--soft)}\
.calm{color:var(--c2)}\
.warnings li{color:var(--c1)}\
details{margin:.6rem 0}\
summary{cursor:pointer;color:var(--soft)}";

impl Page {
    /// Begins a page.
    pub fn new(title: &str, subtitle: &str) -> Page {
        let (title, subtitle) = (escape(title), escape(subtitle));
        let head = format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
             <title>{title}</title>\n<style>{}{PAGE_STYLE}</style>\n</head>\n<body>\n\
             <h1>{title}</h1>\n<p class=\"sub\">{subtitle}</p>\n",
            STYLE
        );
        Page { head, contents: Vec::new(), body: String::new() }
    }

    /// Adds a section. `html` is trusted: made by this module's functions, or escaped.
    pub fn section(&mut self, title: &str, html: &str) {
        let id = self.register(title);
        let _ = write!(self.body, "<section id=\"{id}\">\n<h2>{}</h2>\n{html}\n</section>\n", escape(title));
    }

    /// Adds a section that is closed until it is clicked.
    pub fn folded(&mut self, title: &str, html: &str) {
        let id = self.register(title);
        let title = escape(title);
        let _ = write!(self.body, "<details id=\"{id}\">\n<summary>{title}</summary>\n{html}\n</details>\n");
    }

    fn register(&mut self, title: &str) -> String {
        let id = format!("s{}", self.contents.len() + 1);
        self.contents.push((id.clone(), escape(title)));
        id
    }

    /// The whole page.
    pub fn finish(&self) -> String {
        let links: String =
            self.contents.iter().map(|(id, title)| format!("<a href=\"#{id}\">{title}</a>")).collect();
        format!("{}<nav>{links}</nav>\n{}</body>\n</html>\n", self.head, self.body)
    }
}

/// Charts beside one another, as many as fit.
pub fn grid(charts: &[String]) -> String {
    format!("<div class=\"grid\">\n{}</div>", charts.concat())
}

/// A table. A heading that begins with `#` is of numbers. Without headings it is a list of names and their values. Cells
/// are HTML: escape what comes from outside.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let class = |column: usize| match head.get(column) {
        Some(name) if name.starts_with('#') => " class=\"n\"",
        _ => "",
    };
    let mut out = String::from("<div class=\"wide\">");
    if head.is_empty() {
        out.push_str("<table class=\"facts\">");
    } else {
        out.push_str("<table><thead><tr>");
        for (column, name) in head.iter().enumerate() {
            let _ = write!(out, "<th{}>{}</th>", class(column), escape(name.trim_start_matches('#')));
        }
        out.push_str("</tr></thead>");
    }
    out.push_str("<tbody>\n");
    for row in rows {
        out.push_str("<tr>");
        for (column, cell) in row.iter().enumerate() {
            let _ = write!(out, "<td{}>{cell}</td>", class(column));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use crate::monitor::{Monitor, Observation};
    use crate::run::{Input, Machine};

    const EVIL: &str = "</pre><script src=\"https://example.com/x.js\"></script><img src=x onerror=alert(1)>";

    fn manifest(stage: Stage) -> Manifest {
        Manifest {
            stage: stage.name().into(),
            command: vec!["polity".into(), "train".into(), stage.name().into(), EVIL.into()],
            config_blake3: "00".into(),
            inputs: vec![Input {
                role: "data".into(),
                path: EVIL.into(),
                blake3: "11".into(),
                bytes: 9,
                dataset: None,
            }],
            code_version: "0.1.0".into(),
            code_commit: None,
            machine: Machine { cpu: EVIL.into(), isa: "avx2".into(), threads: 2 },
            seed: 42,
            started: "2026-01-01T00:00:00Z".into(),
            finished: Some("2026-01-01T00:10:00Z".into()),
            resumed: vec![],
            acceptance: None,
        }
    }

    /// A PPO run that goes wrong in the second half, through the real log and the real monitor.
    fn ppo_run(out: &Path) -> RunData {
        let mut run = RunDir::create(out, "seed = 42\n", &manifest(Stage::Ppo), 0.0).unwrap();
        let mut monitor = Monitor::new(Stage::Ppo);
        for step in 1..=200_u64 {
            let (x, wave) = (step as f64 / 200.0, (step as f64 * 1.7).sin());
            let mut metrics = Metrics::new(Stage::Ppo);
            metrics.put("objective/scores", 2.0 * x + 0.1 * wave);
            metrics.put("objective/scores_std", 0.5);
            metrics.put("objective/kl", 70.0 * x * x + wave);
            metrics.put("objective/kl_coef", 0.05);
            metrics.put("policy/entropy_avg", 2.0 - 1.5 * x + 0.05 * wave);
            metrics.put("tokens/responses_len_mean", 30.0 + 4.0 * wave);
            metrics.put("samples/eos_rate", 0.9 - 0.2 * x);
            metrics.put("completions/clipped_ratio", 0.1 + 0.2 * x);
            metrics.put("loss/value_avg", if step == 77 { f64::NAN } else { 0.3 * (1.0 - x) + 0.02 * wave });
            metrics.put("grad_norm", 1.0 + 0.3 * wave);
            metrics.put("lr", 3e-6 * (1.0 - x));
            metrics.put("episode", 8.0 * step as f64);
            if step.is_multiple_of(10) {
                metrics.put("samples/gold", 1.0 - (x - 0.4).abs());
                let (prompt, response) = (EVIL.to_owned(), format!("response at {step} {EVIL}"));
                let sample = Sample {
                    step,
                    prompt_index: 0,
                    prompt,
                    response,
                    response_tokens: 9,
                    stopped: true,
                    score: Some(x),
                };
                run.log_sample(&sample).unwrap();
            }
            run.log(step, step as f64 * 1.5, &metrics).unwrap();
            for alarm in monitor.observe(&Observation::of_metrics(step, &metrics)) {
                run.log_alarm(&alarm).unwrap();
            }
        }
        write(&run, &extra()).unwrap();
        RunData::read(out).unwrap()
    }

    fn extra() -> Extra {
        let setting = |key, value: &str, default: &str| SettingValue {
            key,
            value: value.into(),
            default: default.into(),
        };
        Extra {
            preflight: vec![format!("64 rows {EVIL}")],
            warnings: vec!["3 rows without EOS".into()],
            eval_rows: 0,
            measures: vec![Measure {
                name: "gold_win_rate_vs_sft".into(),
                category: EVIL.into(),
                unit: "share".into(),
                estimate: 0.71,
                low: Some(0.62),
                high: Some(0.79),
                n: Some(120),
            }],
            settings: vec![setting("beta", "0.2", "0.1"), setting("seed", "42", "42")],
        }
    }

    #[test]
    fn a_report_says_what_happened() {
        let directory = tempfile::tempdir().unwrap();
        let data = ppo_run(&directory.path().join("run"));
        assert_eq!((data.steps.len(), data.samples.len()), (200, 20));
        assert!(data.steps[76].values["loss/value_avg"].is_nan());
        let html = html(&data, &extra());
        assert_eq!(fs::read_to_string(directory.path().join("run/report.html")).unwrap(), html);

        for expect in [
            "Proximal policy optimisation run",
            "200 steps in 5 min 0 s, finished 2026-01-01T00:10:00Z",
            "<b>kl_explosion</b>",
            "<b>reward_without_gain</b>",
            "the policy has learnt to please the proxy",
            "Score of the reward model",
            "response at 10 ",
            "response at 200 ",
            "gold_win_rate_vs_sft",
            "0.62 to 0.79",
            "3 rows without EOS",
            "1 settings at their defaults",
        ] {
            assert!(html.contains(expect), "{expect:?} is missing");
        }
        // Marks on the curves that the alarms are about, and on no others.
        assert!(html.matches("class=\"alarm\"").count() >= 2);
        // Everything that was logged is drawn.
        assert_eq!(html.matches("<figure").count(), 12);
    }

    #[test]
    fn a_report_fetches_nothing_and_runs_nothing() {
        let directory = tempfile::tempdir().unwrap();
        ppo_run(&directory.path().join("run"));
        let html = fs::read_to_string(directory.path().join("run/report.html")).unwrap();
        let style_end = html.find("</style>").unwrap();
        assert!(!html[..style_end].contains("url(") && !html[..style_end].contains("@import"));
        for tag in tags(&html) {
            // What is in quotes is text; what remains is names.
            let names: String = tag.split('"').step_by(2).collect();
            let name = names.split(' ').next().unwrap();
            let forbidden = ["script", "img", "link", "iframe", "object", "embed", "form"];
            assert!(!forbidden.contains(&name), "<{tag}>");
            assert!(!names.contains(" src=") && !names.contains(" on"), "<{tag}>");
        }
        // The only addresses are anchors of the page itself.
        assert!(html.match_indices("href=\"").all(|(at, _)| html[at..].starts_with("href=\"#")));
        assert!(html.len() < 200_000, "{}", html.len());
    }

    /// Opening and closing tags match, which a browser would repair silently.
    #[test]
    fn tags_are_balanced() {
        let directory = tempfile::tempdir().unwrap();
        let data = ppo_run(&directory.path().join("run"));
        let html = html(&data, &extra());
        let mut open: Vec<&str> = Vec::new();
        for tag in tags(&html) {
            let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap();
            if tag.starts_with('/') {
                assert_eq!(open.pop(), Some(name), "near </{name}>");
            } else if !tag.ends_with('/') && !["br", "meta", "!DOCTYPE"].contains(&name) {
                open.push(name);
            }
        }
        assert_eq!(open, [""; 0]);
    }

    fn tags(html: &str) -> impl Iterator<Item = &str> {
        html.split('<').skip(1).map(|rest| rest.split('>').next().unwrap())
    }

    #[test]
    fn a_run_without_anything_has_a_report() {
        for stage in Stage::ALL {
            let manifest = Manifest { finished: None, ..manifest(stage) };
            let data = RunData { manifest, stage, steps: vec![], samples: vec![], alarms: vec![] };
            let html = html(&data, &Extra::default());
            assert!(html.contains("0 steps in 0 s, not finished") && html.contains("None: no rule"));
        }
    }

    /// A log with these numbers in its last step.
    fn logged(stage: Stage, steps: &[&[(&str, f64)]]) -> RunData {
        let values = |pairs: &[(&str, f64)]| pairs.iter().map(|(name, x)| ((*name).into(), *x)).collect();
        let steps = (1..).zip(steps).map(|(step, pairs)| Step { step, time_s: 0.0, values: values(pairs) });
        RunData { manifest: manifest(stage), stage, steps: steps.collect(), samples: vec![], alarms: vec![] }
    }

    #[test]
    fn intervals_of_the_last_evaluation() {
        let data =
            logged(Stage::Dpo, &[&[("eval_rewards/accuracies", 0.75), ("eval_loss", 0.5)], &[("loss", 1.0)]]);
        let found = final_measures(&data, 80);
        assert_eq!(
            found.iter().map(|m| m.name.as_str()).collect::<Vec<_>>(),
            ["eval_rewards/accuracies", "eval_loss"]
        );
        // Wilson by hand: centre 0.73855, half width 0.09339.
        let (low, high) = (found[0].low.unwrap(), found[0].high.unwrap());
        assert!((low - 0.64515).abs() < 1e-4 && (high - 0.83194).abs() < 1e-4, "{low} {high}");
        assert_eq!((found[1].low, found[1].n), (None, Some(80)));
        // 0.75 of 81 pairs is no count: the share is weighted.
        assert_eq!(final_measures(&data, 81)[0].low, None);

        let first: &[(&str, f64)] = &[("episode", 64.0)];
        let last: &[(&str, f64)] = &[
            ("episode", 80.0),
            ("objective/scores", 2.0),
            ("objective/scores_std", 1.0),
            ("samples/eos_rate", 1.0),
        ];
        let found = final_measures(&logged(Stage::Ppo, &[first, last]), 0);
        // t(15) at 97.5 % is 2.1314; 16 responses of deviation 1.
        let high = found[0].high.unwrap();
        assert!((high - (2.0 + 2.1314 / 4.0)).abs() < 1e-4 && found[0].n == Some(16), "{high}");
        assert!((found[1].high.unwrap() - 1.0).abs() < 1e-12 && found[1].low.unwrap() > 0.8);
    }

    #[test]
    fn panels_name_declared_metrics() {
        for stage in Stage::ALL {
            let board = board(stage);
            for (name, title) in
                board.panels.iter().flat_map(|panel| panel.lines.iter().map(|(_, name)| (name, &panel.title)))
            {
                let declared =
                    metrics::find(stage, name).unwrap_or_else(|| panic!("{stage}, {title}: {name}"));
                let copy = format!("{EVAL_PREFIX}{name}");
                assert_eq!(
                    board.metric(&copy).map(|metric| metric.unit.as_str()),
                    Some(declared.unit),
                    "{name}"
                );
            }
        }
    }

    #[test]
    fn a_damaged_log_names_its_line() {
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().join("run");
        ppo_run(&out);
        fs::write(out.join(names::METRICS), "{\"step\":1,\"time_s\":0}\n{\"st\n").unwrap();
        let error = RunData::read(&out).unwrap_err().to_string();
        assert!(
            error.contains("metrics.jsonl: found line 2: ") && error.contains("a JSON object on each line"),
            "{error}"
        );
    }

    #[test]
    fn samples_are_chosen_evenly() {
        assert_eq!(evenly(3, 6), [0, 1, 2]);
        assert_eq!(evenly(20, 6), [0, 4, 8, 11, 15, 19]);
        assert_eq!(evenly(7, 6).len(), 6);
    }

    #[test]
    fn durations() {
        assert_eq!([duration(4.4), duration(75.0), duration(3725.0)], ["4 s", "1 min 15 s", "1 h 2 min"]);
    }
}
