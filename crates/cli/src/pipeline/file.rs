//! The pipeline's file: TOML to plain structs, all of it checked before the first step.
//!
//! docs/loop.md has the format. Paths are from the file's directory. A key that would have no effect is an error, and so is a trainer's or a
//! sampler's setting that the verb would refuse hours later.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use polity_eval::{EvalError, strict};
use polity_train::config::Config;
use polity_train::settings::{DpoConfig, PpoConfig, RewardConfig};
use serde::{Deserialize, Serialize};
use toml::Spanned;

use crate::error::{CommandError, CommandResult};
use crate::project_args::Labels;
use crate::settings::{self, Uses};

/// A setting, as after `--set`.
pub type Sets = Vec<(String, String)>;

/// What a file says, with whole paths and defaults filled in.
#[derive(Clone, Debug)]
pub struct Pipeline {
    /// The loop's name.
    pub name: String,
    /// The language model to start from.
    pub model: PathBuf,
    /// Seed of what has none of its own.
    pub seed: u64,
    /// Where it happens.
    pub project: ProjectTable,
    /// What the panel compares.
    pub sample: SampleTable,
    /// Who compares.
    pub panel: Panel,
    /// What the votes become.
    pub freeze: FreezeTable,
    /// Settings of the reward model's training.
    pub reward: Option<Sets>,
    /// Whether the reward model will do.
    pub acceptance: Option<Acceptance>,
    /// How the policy is trained.
    pub method: Method,
    /// Settings of that.
    pub policy: Sets,
    /// What is measured.
    pub evaluate: EvaluateTable,
    /// The gate's policy; the default one if not given.
    pub gate: Option<PathBuf>,
    /// Where it is released to.
    pub channel: Option<String>,
}

/// The project.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProjectTable {
    /// Its directory.
    pub dir: PathBuf,
    /// Share of prompts for validation.
    pub validation: f64,
    /// Share of prompts held out.
    pub holdout: f64,
    /// Judgements wanted for each comparison.
    pub overlap: i64,
}

impl Default for ProjectTable {
    fn default() -> Self {
        Self { dir: PathBuf::new(), validation: 0.1, holdout: 0.1, overlap: 3 }
    }
}

/// What is sampled.
#[derive(Clone, Debug)]
pub struct SampleTable {
    /// Prompts to import; the project's if not given.
    pub prompts: Option<PathBuf>,
    /// Candidates of each.
    pub per_prompt: usize,
    /// Comparisons of each.
    pub pairs: usize,
    /// From which likeness on two candidates are one.
    pub alike: f64,
    /// Settings of the sampler.
    pub set: Sets,
}

/// Who votes.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Panel {
    /// People, by the pages of `polity serve`.
    People {
        /// Judgements to go on with; all that are wanted if not given.
        votes: Option<u64>,
    },
    /// Annotators with known flaws.
    Simulate {
        /// Their seed.
        seed: u64,
    },
    /// A model behind an endpoint.
    Judge {
        /// Up to and with /v1.
        endpoint: String,
        /// Its name there.
        model: String,
        /// Tokens after which no more is asked; 0 for no limit.
        #[serde(skip)]
        budget: u64,
        /// Fields of each request.
        set: Sets,
    },
}

/// What is frozen.
#[derive(Clone, Debug, Serialize)]
pub struct FreezeTable {
    /// How counts become labels.
    #[serde(skip)]
    pub labels: Labels,
    /// Judgements that a comparison must have.
    pub votes_min: i64,
    /// Whether the votes of machines count.
    pub machine_votes: bool,
}

/// How a reward model is accepted.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acceptance {
    /// What it is measured on.
    pub suites: Vec<PathBuf>,
    /// What must be shown; the policy that ships for reward models if not given.
    pub policy: Option<PathBuf>,
}

/// Which optimiser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Against the reward model, on a leash.
    Ppo,
    /// On the pairs.
    Dpo,
}

impl Method {
    /// As written.
    pub fn name(self) -> &'static str {
        match self {
            Method::Ppo => "ppo",
            Method::Dpo => "dpo",
        }
    }
}

/// What is measured.
#[derive(Clone, Debug, Default)]
pub struct EvaluateTable {
    /// Suites to answer.
    pub suites: Vec<PathBuf>,
    /// What the candidate is compared with.
    pub baseline: PathBuf,
    /// Whether the panel compares the two on the holdout.
    pub people: bool,
    /// Answers with people's labels, which the refusal classifier learns from: a model's name and a file.
    pub labels: Vec<(String, PathBuf)>,
    /// More files of measures.
    pub measures: Vec<PathBuf>,
    /// Settings of the answers.
    pub set: Sets,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    name: Spanned<String>,
    model: PathBuf,
    #[serde(default = "usual_seed")]
    seed: u64,
    #[serde(default)]
    project: ProjectTable,
    #[serde(default)]
    sample: RawSample,
    panel: RawPanel,
    #[serde(default)]
    freeze: RawFreeze,
    reward: Option<RawReward>,
    acceptance: Option<Spanned<Acceptance>>,
    policy: RawPolicy,
    #[serde(default)]
    evaluate: RawEvaluate,
    #[serde(default)]
    gate: RawGate,
    release: Option<RawRelease>,
}

fn usual_seed() -> u64 {
    42
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawSample {
    prompts: Option<PathBuf>,
    per_prompt: usize,
    pairs: usize,
    alike: f64,
    set: Spanned<toml::Table>,
}

impl Default for RawSample {
    fn default() -> Self {
        Self { prompts: None, per_prompt: 2, pairs: 1, alike: 0.9, set: nothing_set() }
    }
}

fn nothing_set() -> Spanned<toml::Table> {
    Spanned::new(0..0, toml::Table::new())
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    People,
    Simulate,
    Judge,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPanel {
    kind: Spanned<Kind>,
    votes: Option<Spanned<u64>>,
    seed: Option<Spanned<u64>>,
    endpoint: Option<Spanned<String>>,
    model: Option<Spanned<String>>,
    budget: Option<Spanned<u64>>,
    set: Option<Spanned<toml::Table>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawFreeze {
    labels: RawLabels,
    votes_min: i64,
    machine_votes: Option<bool>,
}

impl Default for RawFreeze {
    fn default() -> Self {
        Self { labels: RawLabels::Soft, votes_min: 1, machine_votes: None }
    }
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawLabels {
    Majority,
    Soft,
    Model,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawReward {
    #[serde(default = "nothing_set")]
    set: Spanned<toml::Table>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPolicy {
    method: Spanned<Method>,
    #[serde(default = "nothing_set")]
    set: Spanned<toml::Table>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawEvaluate {
    suites: Vec<PathBuf>,
    baseline: Option<PathBuf>,
    people: Spanned<bool>,
    labels: BTreeMap<String, PathBuf>,
    measures: Vec<PathBuf>,
    set: Spanned<toml::Table>,
}

impl Default for RawEvaluate {
    fn default() -> Self {
        Self {
            suites: Vec::new(),
            baseline: None,
            people: Spanned::new(0..0, false),
            labels: BTreeMap::new(),
            measures: Vec::new(),
            set: nothing_set(),
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGate {
    policy: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRelease {
    channel: String,
}

impl Pipeline {
    /// Reads a file and checks it.
    pub fn read(file: &Path) -> CommandResult<Pipeline> {
        let text =
            fs::read_to_string(file).map_err(|source| EvalError::Read { file: file.to_owned(), source })?;
        let raw: Raw = strict::parse(file, &text)?;
        Reader { file, text: &text }.pipeline(raw)
    }
}

struct Reader<'f> {
    file: &'f Path,
    text: &'f str,
}

impl Reader<'_> {
    fn pipeline(&self, raw: Raw) -> CommandResult<Pipeline> {
        let name = self.name(raw.name)?;
        let panel = self.panel(raw.panel, raw.seed)?;
        let method = *raw.policy.method.get_ref();
        if method == Method::Ppo && raw.reward.is_none() {
            return Err(
                self.at(&raw.policy.method.span(), "ppo needs a reward model; expected a table [reward]")
            );
        }
        if let Some(acceptance) = &raw.acceptance {
            if raw.reward.is_none() {
                return Err(self.at(&acceptance.span(), "there is no [reward] whose model could be accepted"));
            }
            if acceptance.get_ref().suites.is_empty() {
                return Err(self.at(&acceptance.span(), "`suites` is empty; expected at least one suite"));
            }
        }
        let people = &raw.evaluate.people;
        if *people.get_ref() && raw.project.holdout == 0.0 {
            let text = "`people` compares on the project's holdout, and `holdout` in [project] is 0; expected a share above 0";
            return Err(self.at(&people.span(), text));
        }
        let machine_votes = raw.freeze.machine_votes.unwrap_or(!matches!(panel, Panel::People { .. }));
        let labels = match raw.freeze.labels {
            RawLabels::Majority => Labels::Majority,
            RawLabels::Soft => Labels::Soft,
            RawLabels::Model => Labels::Model,
        };
        let seeded = |span: &Spanned<toml::Table>| self.sets(span, Some(raw.seed));
        let reward =
            raw.reward.map(|reward| self.training::<RewardConfig>(&reward.set, raw.seed)).transpose()?;
        let policy = match method {
            Method::Ppo => self.training::<PpoConfig>(&raw.policy.set, raw.seed)?,
            Method::Dpo => self.training::<DpoConfig>(&raw.policy.set, raw.seed)?,
        };
        let (sample, evaluate) = (seeded(&raw.sample.set)?, seeded(&raw.evaluate.set)?);
        for (sets, table) in [(&sample, &raw.sample.set), (&evaluate, &raw.evaluate.set)] {
            settings::check(Uses::Generate, sets).map_err(|error| self.in_table(table, error))?;
        }
        let all = |paths: Vec<PathBuf>| paths.iter().map(|path| self.path(path)).collect::<Vec<_>>();
        Ok(Pipeline {
            name,
            model: self.path(&raw.model),
            seed: raw.seed,
            project: ProjectTable { dir: self.path(&raw.project.dir), ..raw.project },
            sample: SampleTable {
                prompts: raw.sample.prompts.map(|path| self.path(&path)),
                per_prompt: raw.sample.per_prompt,
                pairs: raw.sample.pairs,
                alike: raw.sample.alike,
                set: sample,
            },
            panel,
            freeze: FreezeTable { labels, votes_min: raw.freeze.votes_min, machine_votes },
            reward,
            acceptance: raw.acceptance.map(Spanned::into_inner).map(|acceptance| Acceptance {
                suites: all(acceptance.suites),
                policy: acceptance.policy.map(|path| self.path(&path)),
            }),
            method,
            policy,
            evaluate: EvaluateTable {
                suites: all(raw.evaluate.suites),
                baseline: self.path(raw.evaluate.baseline.as_ref().unwrap_or(&raw.model)),
                people: *raw.evaluate.people.get_ref(),
                labels: raw
                    .evaluate
                    .labels
                    .iter()
                    .map(|(name, file)| (name.clone(), self.path(file)))
                    .collect(),
                measures: all(raw.evaluate.measures),
                set: evaluate,
            },
            gate: raw.gate.policy.map(|path| self.path(&path)),
            channel: raw.release.map(|release| release.channel),
        })
    }

    /// From the file's directory.
    fn path(&self, path: &Path) -> PathBuf {
        let dir = self.file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if path.as_os_str().is_empty() || path == Path::new(".") { dir.to_owned() } else { dir.join(path) }
    }

    fn name(&self, name: Spanned<String>) -> CommandResult<String> {
        let proper = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let text = name.get_ref();
        // Names of datasets are made of it.
        if (1..=80).contains(&text.len()) && text.bytes().all(proper) && !text.starts_with('.') {
            return Ok(name.into_inner());
        }
        Err(self
            .at(&name.span(), "`name`: expected 1 to 80 letters, digits, `.`, `_` or `-`, not a `.` first"))
    }

    fn panel(&self, raw: RawPanel, seed: u64) -> CommandResult<Panel> {
        let RawPanel { kind, votes, seed: own_seed, endpoint, model, budget, set } = raw;
        let spans = [
            ("votes", votes.as_ref().map(Spanned::span)),
            ("seed", own_seed.as_ref().map(Spanned::span)),
            ("endpoint", endpoint.as_ref().map(Spanned::span)),
            ("model", model.as_ref().map(Spanned::span)),
            ("budget", budget.as_ref().map(Spanned::span)),
            ("set", set.as_ref().map(Spanned::span)),
        ];
        let (name, known): (_, &[&str]) = match kind.get_ref() {
            Kind::People => ("people", &["votes"]),
            Kind::Simulate => ("simulate", &["seed"]),
            Kind::Judge => ("judge", &["endpoint", "model", "budget", "set"]),
        };
        for (key, span) in spans {
            if let Some(span) = span
                && !known.contains(&key)
            {
                return Err(self.at(&span, &format!("`{key}` has no effect on a panel of kind {name}")));
            }
        }
        let needed = |key: &str, value: Option<Spanned<String>>| {
            value
                .map(Spanned::into_inner)
                .ok_or_else(|| self.at(&kind.span(), &format!("a judge needs `{key}`")))
        };
        Ok(match kind.get_ref() {
            Kind::People => Panel::People { votes: votes.map(Spanned::into_inner) },
            Kind::Simulate => Panel::Simulate { seed: own_seed.map_or(seed, Spanned::into_inner) },
            Kind::Judge => Panel::Judge {
                endpoint: needed("endpoint", endpoint)?,
                model: needed("model", model)?,
                budget: budget.map_or(0, Spanned::into_inner),
                set: set.map_or(Ok(Sets::new()), |set| self.sets(&set, None))?,
            },
        })
    }

    /// A table of settings as texts, with the loop's seed if it has none.
    fn sets(&self, table: &Spanned<toml::Table>, seed: Option<u64>) -> CommandResult<Sets> {
        let mut sets: Sets = Vec::new();
        if let Some(seed) = seed
            && !table.get_ref().contains_key("seed")
        {
            sets.push(("seed".to_owned(), seed.to_string()));
        }
        for (key, value) in table.get_ref() {
            let text = match value {
                toml::Value::String(text) => text.clone(),
                toml::Value::Table(_) => {
                    return Err(self.at(&table.span(), &format!("`{key}` is a table; expected a value")));
                }
                value => value.to_string(),
            };
            sets.push((key.clone(), text));
        }
        // The order in which they are written is no difference.
        sets.sort();
        Ok(sets)
    }

    /// The settings of a trainer, which it takes.
    fn training<C: Config>(&self, table: &Spanned<toml::Table>, seed: u64) -> CommandResult<Sets> {
        let sets = self.sets(table, Some(seed))?;
        C::from_toml_and_sets(None, &sets).map_err(|error| self.in_table(table, error.into()))?;
        Ok(sets)
    }

    fn at(&self, span: &Range<usize>, message: &str) -> CommandError {
        strict::at(self.file, self.text, span, message).into()
    }

    /// An error about a setting, with the place of its table.
    fn in_table(&self, table: &Spanned<toml::Table>, error: CommandError) -> CommandError {
        let message = error.to_string();
        let place = self.at(&table.span(), message.strip_prefix("--set: ").unwrap_or(&message));
        error.hints.into_iter().fold(place, CommandError::hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALLEST: &str =
        "name = \"l\"\nmodel = \"base\"\n[panel]\nkind = \"simulate\"\n[policy]\nmethod = \"dpo\"\n";

    fn read(text: &str) -> CommandResult<Pipeline> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("loop.toml");
        fs::write(&file, text).unwrap();
        Pipeline::read(&file)
    }

    #[test]
    fn defaults_are_the_verbs() {
        let pipeline = read(SMALLEST).unwrap();
        assert_eq!((pipeline.seed, pipeline.panel), (42, Panel::Simulate { seed: 42 }));
        assert_eq!((pipeline.sample.per_prompt, pipeline.sample.pairs, pipeline.project.overlap), (2, 1, 3));
        assert!(pipeline.freeze.machine_votes, "a simulated panel's votes are all there are");
        assert_eq!(pipeline.policy, [("seed".to_owned(), "42".to_owned())]);
        assert_eq!(pipeline.evaluate.baseline, pipeline.model);
        let people = read(&SMALLEST.replace("simulate", "people")).unwrap();
        assert!(!people.freeze.machine_votes);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let check = |from: &str, to: &str, expect: &str| {
            let text = SMALLEST.replacen(from, to, 1);
            assert_ne!(text, SMALLEST, "{from}");
            let error = read(&text).unwrap_err();
            let said = format!("{error} {}", error.hints.join(" "));
            assert!(said.contains(expect), "expected {expect:?} in {said:?}");
        };
        check("model =", "modle =", "loop.toml, line 2: unknown key `modle`");
        check("model =", "modle =", "did you mean `model`?");
        check("simulate", "simulated", "line 4");
        check(
            "kind = \"simulate\"",
            "kind = \"people\"\nseed = 3",
            "line 5: `seed` has no effect on a panel of kind people",
        );
        check("simulate", "judge", "line 4: a judge needs `endpoint`");
        check("dpo", "ppo", "line 6: ppo needs a reward model");
        check("method = \"dpo\"", "method = \"dpo\"\nset = { bta = 0.1 }", "line 7");
        check("method = \"dpo\"", "method = \"dpo\"\nset = { bta = 0.1 }", "beta");
        check("[panel]", "[sample]\nset = { temprature = 1 }\n[panel]", "did you mean temperature?");
        check("[panel]", "[acceptance]\nsuites = []\n[panel]", "there is no [reward]");
        check("\"l\"", "\"../l\"", "line 1: `name`");
        let nobody = "[project]\nholdout = 0.0\n[evaluate]\npeople = true\n[panel]";
        check("[panel]", nobody, "line 6: `people` compares on the project's holdout");
    }
}
