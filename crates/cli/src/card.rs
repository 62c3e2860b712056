//! A release's model card: `README.md` as Hugging Face reads it, made from the record and nothing else.
//!
//! A YAML header (base model, datasets, measures as `model-index`), then who released it on what grounds, measures by category, the runs,
//! the data, the panel and its agreement, limits, hashes. What the record does not say, the card says is not known.
//!
//! Source: huggingface.co/docs/hub/model-cards. Not here: what is released.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use polity_eval::gate::{CriterionVerdict, Decision, Direction, Verdict as Said};
use polity_stats::panel::{PanelReport, PanelSettings, panel_report};
use polity_store::{Asked, Dataset, Grounds, JudgementFilter, Recorded, Run, panel_votes};
use polity_train::run::{Manifest, RewardAcceptance};
use serde_json::Value;

use crate::clock::utc_of;
use crate::error::{CommandError, CommandResult};
use crate::export::{CARD, hash_files};
use crate::project::Project;
use crate::record::{Record, short};

/// Rows of a dataset fetched at a time.
const PAGE: i64 = 2000;
/// Resamples of the panel's intervals, and their seed: a card is a function of the record.
const RESAMPLES: usize = 500;
const SEED: u64 = 0;

/// What a card is about.
pub struct Card<'c> {
    /// Name of the release.
    pub release: &'c str,
    /// What is released where.
    pub asked: &'c Asked,
    /// On what grounds.
    pub grounds: &'c Grounds,
    /// A canary's share of requests.
    pub canary_share: Option<f64>,
    /// The model's directory.
    pub dir: &'c Path,
    /// When.
    pub now_ms: i64,
}

/// What the panel did for a dataset.
struct Panel {
    report: PanelReport,
    /// Votes by people, and by machines and simulated annotators.
    votes: [usize; 2],
    rubrics: Vec<i64>,
}

impl Card<'_> {
    /// Its text.
    pub fn text(&self, project: &Project, record: &Record) -> CommandResult<String> {
        let store = project.store();
        let said = project.wait(store.document(&self.grounds.verdict.what.said))?;
        let said: Said = serde_json::from_str(&said).map_err(CommandError::failed)?;
        let runs = ancestry(record, &self.asked.model);
        let datasets = datasets_of(record, &runs);
        let mut text = self.header(&said, &runs, &datasets);
        self.grounds(&mut text, record, &project.wait(store.project())?.name);
        measures(&mut text, &said);
        how_it_was_made(&mut text, project, &runs)?;
        let mut panels = Vec::new();
        for dataset in &datasets {
            panels.push(data(&mut text, project, dataset)?);
        }
        if datasets.is_empty() {
            text += "\n## Data and panel\n\nNot known: no run behind this model read a frozen dataset of this project.\n";
        }
        limits(&mut text, &said, &runs, &panels, self.grounds.verdict.what.expires_ms);
        self.hashes(&mut text, &datasets)?;
        Ok(text)
    }

    fn header(&self, said: &Said, runs: &[&Recorded<Run>], datasets: &[&Dataset]) -> String {
        let mut yaml = String::from("---\nlibrary_name: transformers\npipeline_tag: text-generation\n");
        if let Some(base) = base_model(runs) {
            let _ = writeln!(yaml, "base_model: {}\nbase_model_relation: finetune", quoted(&base));
        }
        if !datasets.is_empty() {
            yaml += "datasets:\n";
            yaml.extend(datasets.iter().map(|dataset| format!("- {}\n", quoted(&dataset.name))));
        }
        yaml += "tags:\n- polity\n";
        let mut stages: Vec<&str> = runs.iter().map(|run| run.what.stage.as_str()).collect();
        stages.sort_unstable();
        stages.dedup();
        yaml.extend(stages.iter().map(|stage| format!("- {}\n", quoted(stage))));
        let measured: Vec<_> =
            said.criteria.iter().filter_map(|criterion| criterion.measure.as_ref()).collect();
        let mut metrics: Vec<&str> = measured.iter().map(|measure| measure.name.as_str()).collect();
        metrics.sort_unstable();
        metrics.dedup();
        if !metrics.is_empty() {
            yaml += "metrics:\n";
            yaml.extend(metrics.iter().map(|name| format!("- {}\n", quoted(name))));
            let _ = write!(
                yaml,
                "model-index:\n- name: {}\n  results:\n  - task:\n      type: text-generation\n    dataset:\n      \
                 name: evaluations of the release\n      type: polity\n    metrics:\n",
                quoted(self.release)
            );
            for measure in measured {
                let category =
                    measure.category.as_ref().map(|category| format!(", {category}")).unwrap_or_default();
                let _ = writeln!(
                    yaml,
                    "    - type: {}\n      name: {}\n      value: {}",
                    quoted(&measure.name),
                    quoted(&format!("{}{category} ({})", measure.name, measure.unit)),
                    measure.estimate
                );
            }
        }
        yaml + "---\n"
    }

    fn grounds(&self, text: &mut String, record: &Record, project: &str) {
        let verdict = &self.grounds.verdict;
        let share =
            self.canary_share.map(|share| format!(" as a canary for {} % of requests", 100.0 * share));
        let _ = write!(
            text,
            "\n# {}\n\nReleased to the channel `{}`{} of the project {} on {}. This card was made from the project's ledger; \
             `polity lineage {}` follows the release back to the votes and checks every hash on the way.\n\n\
             - **Verdict**: {} under the policy {} (`{}`), verdict `{}`. Its evidence counts until {}.\n",
            self.release,
            self.asked.channel,
            share.unwrap_or_default(),
            plain(project),
            utc_of(self.now_ms),
            self.release,
            verdict.what.verdict,
            plain(&verdict.what.policy_name),
            short(&verdict.what.policy),
            short(&verdict.id),
            utc_of(verdict.what.expires_ms)
        );
        if self.grounds.approvals.is_empty() {
            *text += "- **Approvals**: none; the policy asks for none.\n";
        }
        for approval in &self.grounds.approvals {
            let who = plain(&record.name_of(&approval.actor));
            let _ = writeln!(
                text,
                "- **Approved** by {who} on {} (`{}`)",
                utc_of(approval.at_ms),
                short(&approval.id)
            );
        }
    }

    fn hashes(&self, text: &mut String, datasets: &[&Dataset]) -> CommandResult {
        *text += "\n## Hashes\n\nBLAKE3. The model's is of its files' names and hashes.\n\n| what | hash |\n|---|---|\n";
        let mut row = |what: &str, hash: &str| *text += &format!("| {} | `{hash}` |\n", plain(what));
        row("model", &self.asked.model);
        for (file, hash) in hash_files(self.dir)?.iter().filter(|(file, _)| *file != CARD) {
            row(file, hash);
        }
        row("verdict", &self.grounds.verdict.id);
        row("policy", &self.grounds.verdict.what.policy);
        for evaluation in &self.grounds.verdict.what.evaluations {
            row("evaluation", evaluation);
        }
        for dataset in datasets {
            row(&format!("dataset {}", dataset.name), &dataset.hash);
        }
        Ok(())
    }
}

/// The runs behind a model, the first one first, each once.
pub fn ancestry<'r>(record: &'r Record, model: &str) -> Vec<&'r Recorded<Run>> {
    fn visit<'r>(record: &'r Record, model: &str, runs: &mut Vec<&'r Recorded<Run>>) {
        let Some(run) = record.run_of(model) else { return };
        if runs.iter().any(|known| known.id == run.id) {
            return;
        }
        for input in run.what.inputs.iter().filter(|input| is_model(&input.role)) {
            visit(record, &input.blake3, runs);
        }
        runs.push(run);
    }
    let mut runs = Vec::new();
    visit(record, model, &mut runs);
    runs
}

/// Whether an input of this role is a model.
pub fn is_model(role: &str) -> bool {
    matches!(role, "model" | "reward_model")
}

/// The frozen datasets that runs read, each once.
pub fn datasets_of<'r>(record: &'r Record, runs: &[&Recorded<Run>]) -> Vec<&'r Dataset> {
    let named = |dataset: &&Dataset| {
        let inputs = runs.iter().flat_map(|run| &run.what.inputs);
        inputs
            .filter_map(|input| input.dataset.as_ref())
            .any(|said| said["hash"].as_str() == Some(dataset.hash.as_str()))
    };
    record.datasets.iter().filter(named).collect()
}

/// The name of the model that the first policy was trained from.
fn base_model(runs: &[&Recorded<Run>]) -> Option<String> {
    let made = |hash: &str| runs.iter().any(|run| run.what.model.as_deref() == Some(hash));
    let mut inputs = runs.iter().flat_map(|run| &run.what.inputs);
    let base = inputs.find(|input| input.role == "model" && !made(&input.blake3))?;
    Some(Path::new(&base.path).file_name()?.to_string_lossy().into_owned())
}

fn measures(text: &mut String, said: &Said) {
    *text += "\n## Measures\n\nOne-sided bounds, each with the criterion's confidence. What is not needed is for information.\n\n\
              | measure | category | estimate | bounds | unit | n | asked for | says |\n|---|---|---|---|---|---|---|---|\n";
    for criterion in &said.criteria {
        let needed = if criterion.blocking { "" } else { " (not needed)" };
        let asked = format!("{}{needed}", asked_for(criterion));
        let verdict = criterion.verdict.name();
        let _ = match &criterion.measure {
            Some(measure) => writeln!(
                text,
                "| {} | {} | {:.4} | {:.4} to {:.4} | {} | {} | {asked} | {verdict} |",
                plain(&measure.name),
                plain(measure.category.as_deref().unwrap_or("all")),
                measure.estimate,
                measure.low,
                measure.high,
                plain(&measure.unit),
                measure.n
            ),
            None => {
                writeln!(text, "| {} | | not measured | | | | {asked} | {verdict} |", plain(&criterion.id))
            }
        };
    }
}

/// What a criterion asks for, in words.
fn asked_for(criterion: &CriterionVerdict) -> String {
    let better = match criterion.better {
        Direction::Higher => "at least",
        Direction::Lower => "at most",
    };
    let sign = criterion.better.sign();
    match criterion.reference {
        Some(reference) => format!("{better} {:.4}", reference - sign * criterion.margin),
        None => "a comparison that is not there".into(),
    }
}

fn how_it_was_made(text: &mut String, project: &Project, runs: &[&Recorded<Run>]) -> CommandResult {
    *text += "\n## How it was made\n\n";
    if runs.is_empty() {
        *text += "Not known: no run in this project's ledger made it.\n";
        return Ok(());
    }
    *text += "| run | read | seed | program | machine | model |\n|---|---|---|---|---|---|\n";
    let mut remarks = String::new();
    for run in runs {
        let manifest = match &run.what.manifest {
            Some(hash) => {
                let text = project.wait(project.store().document(hash))?;
                serde_json::from_str::<Manifest>(&text).ok()
            }
            None => None,
        };
        if let Some(known) = manifest.as_ref().and_then(|manifest| manifest.acceptance.as_ref()) {
            let _ = writeln!(remarks, "\n{}", accepted(&run.what.run, known));
        }
        let inputs: Vec<String> = run
            .what
            .inputs
            .iter()
            .map(|input| format!("{} {} (`{}`)", input.role, plain(&input.path), short(&input.blake3)))
            .collect();
        let (program, machine) = manifest.map_or_else(Default::default, |manifest| {
            let commit =
                manifest.code_commit.map(|commit| format!(", {}", short(&commit))).unwrap_or_default();
            (
                format!("polity {}{commit}", manifest.code_version),
                format!("{}, {} threads", manifest.machine.cpu, manifest.machine.threads),
            )
        });
        let _ = writeln!(
            text,
            "| {} {} | {} | {} | {program} | {} | `{}` |",
            run.what.stage,
            plain(&run.what.run),
            inputs.join("; "),
            run.what.seed,
            plain(&machine),
            short(run.what.model.as_deref().unwrap_or_default())
        );
    }
    *text += &remarks;
    for run in runs {
        let Some(hash) = &run.what.resolved else { continue };
        let settings = project.wait(project.store().document(hash))?;
        let settings: Vec<&str> = settings
            .lines()
            .map(|line| line.split(" #").next().unwrap_or_default().trim_end())
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .collect();
        let _ = write!(
            text,
            "\n<details><summary>Settings of {} {}</summary>\n\n```toml\n{}\n```\n\n</details>\n",
            run.what.stage,
            plain(&run.what.run),
            settings.join("\n")
        );
    }
    Ok(())
}

/// What was known of the reward model behind a run.
fn accepted(run: &str, known: &RewardAcceptance) -> String {
    let RewardAcceptance { verdict, policy, policy_blake3, reasons, overridden } = known;
    let said = format!(
        "The reward model of {}: acceptance **{verdict}** under the policy {} (`{}`): {}.",
        plain(run),
        plain(policy),
        short(policy_blake3),
        plain(&reasons.join("; "))
    );
    match overridden {
        Some(reason) => format!("{said} **Overridden**: {}", plain(reason)),
        None => said,
    }
}

fn data(text: &mut String, project: &Project, dataset: &Dataset) -> CommandResult<Option<Panel>> {
    let header: Value = serde_json::from_str(&dataset.header).map_err(CommandError::failed)?;
    let mut categories: BTreeMap<String, usize> = BTreeMap::new();
    let mut from = 0;
    loop {
        let rows = project.wait(project.store().dataset_rows(&dataset.name, from, PAGE))?;
        let Some(last) = rows.last() else { break };
        from = last.row.idx + 1;
        rows.into_iter().for_each(|row| *categories.entry(row.row.category).or_default() += 1);
    }
    let by_category: Vec<String> =
        categories.iter().map(|(category, n)| format!("{} {n}", plain(category))).collect();
    let _ = write!(
        text,
        "\n## Dataset {}\n\n- {} comparisons to train on, {} for validation, {} held out\n- by category: {}\n\
         - labels: {}; frozen on {} under rubric version {} (`{}`), votes 1 to {}\n",
        plain(&dataset.name),
        dataset.train_rows,
        dataset.validation_rows,
        dataset.holdout_rows,
        by_category.join(", "),
        header["labels"].as_str().unwrap_or("unknown"),
        utc_of(dataset.created_ms),
        header["rubric_version"],
        short(header["rubric_hash"].as_str().unwrap_or_default()),
        header["votes_to"]
    );
    let panel = panel(project, &header)?;
    match &panel {
        None => *text += "- panel: no votes by those who count for this dataset\n",
        Some(Panel { report, votes: [people, machines], rubrics }) => {
            let version = |version: &i64| match version {
                0 => "not stated by an import".to_owned(),
                version => version.to_string(),
            };
            let rubrics: Vec<String> = rubrics.iter().map(version).collect();
            let _ = write!(
                text,
                "\n### Panel\n\n{} votes by {} annotators on {} comparisons, {} of which have two votes or more; {people} votes by people, \
                 {machines} by machines or simulated annotators; rubric versions {}.\n\n\
                 | agreement | estimate | 95 % interval | comparisons |\n|---|---|---|---|\n",
                report.counts.votes,
                report.counts.annotators,
                report.counts.comparisons,
                report.counts.overlapping,
                rubrics.join(", ")
            );
            for figure in &report.figures {
                let _ = match &figure.value {
                    Ok(value) => writeln!(
                        text,
                        "| {} | {:.3} | {} | {} |",
                        figure.label,
                        value.estimate,
                        value.low.zip(value.high).map_or_else(
                            || "none".to_owned(),
                            |(low, high)| format!("{low:.3} to {high:.3}")
                        ),
                        value.items
                    ),
                    Err(why) => writeln!(text, "| {} | not defined: {why} | | |", figure.label),
                };
            }
        }
    }
    Ok(panel)
}

/// The panel's figures on the votes that the dataset could count.
fn panel(project: &Project, header: &Value) -> CommandResult<Option<Panel>> {
    let machine = match header["machine_votes"].as_bool() {
        Some(true) => None,
        _ => Some(false),
    };
    let filter = JudgementFilter { machine, ..JudgementFilter::default() };
    let store = project.store();
    let mut judgements = project.wait(store.judgements(filter))?;
    let to = header["votes_to"].as_i64().unwrap_or(0);
    judgements.retain(|judgement| judgement.seq <= to);
    if judgements.is_empty() {
        return Ok(None);
    }
    let machines = judgements.iter().filter(|judgement| judgement.machine).count();
    let mut rubrics: Vec<i64> = judgements.iter().map(|judgement| judgement.rubric_version).collect();
    rubrics.sort_unstable();
    rubrics.dedup();
    let votes = panel_votes(&judgements, &project.wait(store.calibration_items())?)?;
    let settings = PanelSettings { resamples: RESAMPLES, ..PanelSettings::usual(SEED) };
    let report = panel_report(&votes, &settings);
    Ok(Some(Panel { report, votes: [judgements.len() - machines, machines], rubrics }))
}

fn limits(
    text: &mut String,
    said: &Said,
    runs: &[&Recorded<Run>],
    panels: &[Option<Panel>],
    expires_ms: i64,
) {
    *text += "\n## Limits\n\n";
    let mut say = |line: String| *text += &format!("- {line}\n");
    for criterion in &said.criteria {
        let id = plain(&criterion.id);
        match (&criterion.measure, criterion.verdict) {
            (None, _) => say(format!("{id} was not measured.")),
            (Some(_), Decision::Pass) => {}
            (Some(_), other) => say(format!("{id} is {}: {}", other.name(), plain(&criterion.reason))),
        }
        if let Some(effect) = &criterion.effect {
            say(format!(
                "{id}: {} prompts; an effect below {:.4} could not have been seen.",
                effect.prompts, effect.detectable
            ));
        }
    }
    let machines: usize = panels.iter().flatten().map(|panel| panel.votes[1]).sum();
    if machines > 0 {
        say(format!(
            "{machines} of the votes behind the data are by machines or simulated annotators, not by people."
        ));
    }
    if runs.is_empty() {
        say("How it was trained is not on record.".into());
    }
    say(format!(
        "The measures are of the day they were taken; the evidence counts until {}.",
        utc_of(expires_ms)
    ));
    say("Nothing is said of uses, languages and prompts other than those measured.".into());
    say("No licence is on record: the base model's and the data's apply.".into());
}

/// A YAML scalar: JSON's strings are YAML's.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// Text that Markdown takes as text, on one line, in a table too.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '|' | '#' => {
                plain.push('\\');
                plain.push(letter);
            }
            letter if letter.is_control() => plain.push(' '),
            letter => plain.push(letter),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_known_of_a_reward_model_is_said_with_its_override() {
        let mut known = RewardAcceptance {
            verdict: "pass".into(),
            policy: "reward-model".into(),
            policy_blake3: "0123456789abcdef".repeat(4),
            reasons: vec!["better-than-chance: at least 0.6".into(), "calibrated: at most 0.1".into()],
            overridden: None,
        };
        assert_eq!(
            accepted("runs/ppo", &known),
            "The reward model of runs/ppo: acceptance **pass** under the policy reward-model (`0123456789ab`): \
             better-than-chance: at least 0.6; calibrated: at most 0.1."
        );
        known.verdict = "fail".into();
        known.reasons = vec!["calibrated: at least 0.2".into()];
        known.overridden = Some("a <b>test</b>".into());
        assert_eq!(
            accepted("runs/ppo", &known),
            "The reward model of runs/ppo: acceptance **fail** under the policy reward-model (`0123456789ab`): \
             calibrated: at least 0.2. **Overridden**: a \\<b\\>test\\</b\\>"
        );
    }

    #[test]
    fn names_are_text_in_yaml_and_in_tables() {
        assert_eq!(quoted("a: \"b\"\n- c"), r#""a: \"b\"\n- c""#);
        assert_eq!(plain("a|b\n<i>"), "a\\|b \\<i\\>");
    }
}
