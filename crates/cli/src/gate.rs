//! `polity gate`: whether a model may be released, from a policy and files of measures.
//!
//! Finds the measures, has `eval::gate` judge, prints the verdict and ends with its exit code: 0 pass, 3 fail, 4 inconclusive.
//! `--simulate` shows how likely the policy is to pass what, with no measure or with a pilot's.
//!
//! Inside a project the verdict becomes an event, bound to the model, the policy and the evaluations by their hashes.
//!
//! Not here: any judgement; what may be released on a verdict.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use polity_eval::Evaluation;
use polity_eval::acceptance::{ACCEPTANCE_POLICY, is_acceptance};
use polity_eval::gate::{
    Assumptions, CriterionVerdict, DEFAULT_POLICY, Decision, Models, Policy, PolicyPower, Verdict, judge,
    simulate,
};
use polity_store::{self as store, NewVerdict, Recorded};
use polity_train::config::wrap;
use polity_train::run::{CODE_VERSION, Input};
use serde::Serialize;

use crate::args::GateArgs;
use crate::clock::{unix_ms, utc_of};
use crate::error::{CommandError, CommandResult, Kind};
use crate::output::{json_to_stdout, to_stdout};
use crate::project::Project;
use crate::record::short;
use crate::ui::Ui;

/// Columns of the page.
const COLUMNS: usize = 80;

/// Runs the verb.
pub fn run(args: &GateArgs, ui: &Ui) -> CommandResult {
    if args.show_policy {
        let (_, text) = policy(args.policy.as_deref())?;
        return to_stdout(|out| out.write_all(text.as_bytes()));
    }
    let (files, evaluations): (Vec<PathBuf>, Vec<Evaluation>) =
        evaluations(&args.measures)?.into_iter().unzip();
    let models = args.model.as_deref().map(|model| models(model, args, &evaluations)).transpose()?;
    let named = args.policy.as_deref();
    let usual = || accepts(models.as_ref()?, &evaluations).then_some(Path::new(REWARD_MODEL));
    let (policy, policy_text) = policy(named.or_else(usual))?;
    if args.simulate {
        let assume = Assumptions {
            prompts: args.prompts,
            ties: args.ties,
            discordance: args.discordance,
            simulations: args.simulations,
            seed: args.seed,
        };
        let pilot = models.as_ref().map(|models| (models, evaluations.as_slice()));
        let power = simulate(&policy, pilot, &assume)?;
        return if ui.json() {
            json_to_stdout(&power)
        } else {
            to_stdout(|out| print_power(out, &policy, &power))
        };
    }

    let models = models.expect("clap asks for a model");
    let verdict = judge(&policy, &models, &evaluations)?;
    let recorded = match Project::open_if_any(&args.project)? {
        Some(project) => Some(record(&project, &verdict, policy_text, &files, &evaluations)?),
        None => {
            ui.note("no project here: the verdict is in no ledger, and nothing can be released on it");
            None
        }
    };
    if ui.json() {
        json_to_stdout(&Said { verdict: &verdict, recorded: recorded.as_ref() })?;
    } else {
        to_stdout(|out| {
            print(out, &verdict)?;
            recorded.as_ref().map_or(Ok(()), |recorded| print_recorded(out, recorded))
        })?;
    }
    exit(&verdict)
}

/// The end of a command by a verdict: exit 0, 3 or 4.
pub fn exit(verdict: &Verdict) -> CommandResult {
    let (kind, what) = match verdict.verdict {
        Decision::Pass => return Ok(()),
        Decision::Fail => (Kind::GateFailed, "the gate's verdict is fail"),
        Decision::Inconclusive => {
            (Kind::Inconclusive, "the gate's verdict is inconclusive: this model may not be released")
        }
    };
    let error = CommandError::verdict(kind, what);
    Err(verdict.reasons.iter().fold(error, |error, reason| error.hint(reason.as_str())))
}

/// The whole answer.
#[derive(Serialize)]
struct Said<'v> {
    #[serde(flatten)]
    verdict: &'v Verdict,
    /// The event, where there is a project.
    recorded: Option<&'v Recorded<store::Verdict>>,
}

/// Puts the verdict into the ledger, with what it was computed from: the evaluations, and the file of each.
pub fn record(
    project: &Project,
    verdict: &Verdict,
    policy: String,
    files: &[PathBuf],
    evaluations: &[Evaluation],
) -> CommandResult<Recorded<store::Verdict>> {
    let used = files
        .iter()
        .zip(evaluations)
        .filter(|(_, evaluation)| verdict.evaluations.contains(&evaluation.key()));
    let evaluations = used
        .map(|(file, evaluation)| {
            Ok((evaluation.model.clone(), evaluation.canonical(), project.place(file)?))
        })
        .collect::<CommandResult<_>>()?;
    let new = NewVerdict {
        model: verdict.candidate.clone(),
        verdict: verdict.verdict.name().to_owned(),
        policy_name: verdict.policy.clone(),
        policy,
        approvals: verdict.approvals,
        valid_days: verdict.valid_days,
        evaluations,
        said: serde_json::to_string(verdict).map_err(CommandError::failed)?,
        code_version: CODE_VERSION.to_owned(),
    };
    project.wait(project.store().add_verdict(new, project.actor(), unix_ms()))
}

fn print_recorded(out: &mut impl Write, recorded: &Recorded<store::Verdict>) -> io::Result<()> {
    let until = recorded.what.expires_ms;
    let (id, event, day) = (short(&recorded.id), recorded.seq, utc_of(until));
    writeln!(out, "\nrecorded as verdict {id}, ledger event {event}")?;
    match until > unix_ms() {
        true => writeln!(out, "counts until {day}"),
        false => writeln!(out, "does not count: its oldest evaluation expired on {day}"),
    }
}

/// Names of the policies that ship.
pub const SHIPPED: [(&str, &str); 2] = [("default", DEFAULT_POLICY), (REWARD_MODEL, ACCEPTANCE_POLICY)];
/// The one for reward models.
pub const REWARD_MODEL: &str = "reward-model";

/// The policy, and its text: a file, or one that ships by its name; the default one if none is named.
pub fn policy(file: Option<&Path>) -> CommandResult<(Policy, String)> {
    let file = file.unwrap_or(Path::new("default"));
    let shipped = SHIPPED.into_iter().find(|(name, _)| file == Path::new(name) && !file.exists());
    if let Some((name, text)) = shipped {
        let policy = Policy::parse(Path::new(&format!("the {name} policy")), text)?;
        return Ok((policy, text.to_owned()));
    }
    let text = fs::read_to_string(file)
        .map_err(|source| polity_eval::EvalError::Read { file: file.into(), source })?;
    Ok((Policy::parse(file, &text)?, text))
}

/// Whether it is a reward model that is judged: all that was measured of the candidate are acceptances.
fn accepts(models: &Models, evaluations: &[Evaluation]) -> bool {
    let mut of_candidate =
        evaluations.iter().filter(|evaluation| evaluation.model == models.candidate).peekable();
    of_candidate.peek().is_some() && of_candidate.all(is_acceptance)
}

/// Every file named, and every `.json` in a directory named, in the order of their names.
pub fn evaluations(paths: &[PathBuf]) -> CommandResult<Vec<(PathBuf, Evaluation)>> {
    let mut found = Vec::new();
    for path in paths {
        if !path.is_dir() {
            found.push((path.clone(), Evaluation::read(path)?));
            continue;
        }
        let files = json_files(path)?;
        if files.is_empty() {
            return Err(CommandError::bad_input(format!(
                "{}: no .json file in this directory",
                path.display()
            ))
            .hint("name a file of measures, or a directory with some"));
        }
        for file in files {
            let evaluation = Evaluation::read(&file)?;
            found.push((file, evaluation));
        }
    }
    Ok(found)
}

/// Every `.json` in a directory, in the order of their names.
pub fn json_files(dir: &Path) -> CommandResult<Vec<PathBuf>> {
    let read = |source| polity_eval::EvalError::Read { file: dir.to_owned(), source };
    let entries: Vec<_> = fs::read_dir(dir).and_then(Iterator::collect).map_err(read)?;
    let mut files: Vec<PathBuf> = entries.iter().map(|entry: &fs::DirEntry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    Ok(files)
}

fn models(candidate: &str, args: &GateArgs, evaluations: &[Evaluation]) -> CommandResult<Models> {
    let other =
        |model: &Option<String>| model.as_deref().map(|model| hash_of(model, evaluations)).transpose();
    Ok(Models {
        candidate: hash_of(candidate, evaluations)?,
        baseline: other(&args.baseline)?,
        last_release: other(&args.last_release)?,
    })
}

/// The hash of a model directory, or a hash as it stands, whole or its beginning, of which there are measures.
fn hash_of(model: &str, evaluations: &[Evaluation]) -> CommandResult<String> {
    let wanted = match Path::new(model).is_dir() {
        true => Input::hash("model", Path::new(model))?.blake3,
        false => model.to_owned(),
    };
    let mut measured: Vec<&str> = evaluations.iter().map(|evaluation| evaluation.model.as_str()).collect();
    measured.sort_unstable();
    measured.dedup();
    let matching: Vec<&str> = measured.iter().copied().filter(|hash| hash.starts_with(&wanted)).collect();
    match matching.as_slice() {
        [one] => Ok((*one).to_owned()),
        [] => Err(CommandError::bad_input(format!("no measures of model {model} ({})", short(&wanted)))
            .hint(format!("the measures are of {}", list(&measured)))),
        several => {
            Err(CommandError::bad_input(format!("{model} is the beginning of {} models", several.len()))
                .hint(format!("they are {}", list(several))))
        }
    }
}

fn list(hashes: &[&str]) -> String {
    match hashes {
        [] => "no model: name files with --measures".into(),
        hashes => hashes.iter().map(|hash| short(hash)).collect::<Vec<_>>().join(", "),
    }
}

/// The verdict, for people.
pub fn print(out: &mut impl Write, verdict: &Verdict) -> io::Result<()> {
    writeln!(
        out,
        "{}: {} under policy {} ({})",
        verdict.verdict.name().to_uppercase(),
        short(&verdict.candidate),
        verdict.policy,
        short(&verdict.policy_hash)
    )?;
    let others = [("baseline", &verdict.baseline), ("last release", &verdict.last_release)];
    for (who, model) in others {
        if let Some(model) = model {
            writeln!(out, "{who}: {}", short(model))?;
        }
    }
    for blocking in [true, false] {
        let mut criteria = verdict.criteria.iter().filter(|said| said.blocking == blocking).peekable();
        if criteria.peek().is_some() {
            writeln!(out, "\n{}", if blocking { "Needed for a release" } else { "For information" })?;
        }
        criteria.try_for_each(|said| print_criterion(out, said))?;
    }
    Ok(())
}

fn print_criterion(out: &mut impl Write, said: &CriterionVerdict) -> io::Result<()> {
    const INDENT: usize = 16;
    writeln!(out, "  {:<14}{}", said.verdict.name(), said.id)?;
    for line in wrap(&said.reason, COLUMNS - INDENT) {
        writeln!(out, "{:INDENT$}{line}", "")?;
    }
    let (Some(measure), Some(effect)) = (&said.measure, &said.effect) else { return Ok(()) };
    let facts = format!(
        "{}{} {:.4} [{:.4}, {:.4}] {}, {} prompts; could have seen an effect of {:.4}",
        measure.name,
        measure.category.as_ref().map(|category| format!(" ({category})")).unwrap_or_default(),
        measure.estimate,
        measure.low,
        measure.high,
        measure.unit,
        effect.prompts,
        effect.detectable
    );
    wrap(&facts, COLUMNS - INDENT).iter().try_for_each(|line| writeln!(out, "{:INDENT$}{line}", ""))
}

fn print_power(out: &mut impl Write, policy: &Policy, power: &PolicyPower) -> io::Result<()> {
    writeln!(out, "Policy {} ({}): how often it passes a candidate", policy.name, short(&policy.hash))?;
    writeln!(out, "that is better than it asks for by a multiple of what it can detect;")?;
    writeln!(out, "at 0 it is just not good enough. {} simulations a point.\n", power.simulations)?;
    write!(out, "{:<24}{:>9}{:>11}", "", "prompts", "detectable")?;
    power.overall.iter().try_for_each(|point| write!(out, "{:>6}", format!("x{}", point.scale)))?;
    writeln!(out)?;
    for criterion in &power.criteria {
        let mark = if criterion.blocking { "" } else { " *" };
        let name: String = format!("{:.21}{mark}", criterion.id);
        write!(out, "{name:<24}{:>9}", criterion.prompts)?;
        let Some(detectable) = criterion.detectable else {
            writeln!(out, "  not simulated")?;
            continue;
        };
        write!(out, "{detectable:>11.4}")?;
        criterion.curve.iter().try_for_each(|point| write!(out, "{:>6.2}", point.shares.pass))?;
        writeln!(out)?;
    }
    write!(out, "{:<24}{:>20}", "all that are needed", "")?;
    power.overall.iter().try_for_each(|point| write!(out, "{:>6.2}", point.shares.pass))?;
    writeln!(out, "\n\n* for information: decides nothing. docs/gate.md says what is simulated.")?;
    for criterion in &power.criteria {
        if let Some(why) = &criterion.not_simulated {
            wrap(&format!("{}: {why}", criterion.id), COLUMNS)
                .iter()
                .try_for_each(|line| writeln!(out, "{line}"))?;
        }
    }
    Ok(())
}
