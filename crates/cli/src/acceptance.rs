//! What is known of a reward model before a policy is optimised against it.
//!
//! `polity eval` leaves a file for each suite, settings and policy in `NAME.acceptance/` beside the reward model's directory `NAME`; inside a
//! project `polity gate` puts its verdict into the ledger. All are bound to the model by its hash; the newest one counts.
//!
//! | the verdict | `polity train ppo` |
//! |---|---|
//! | pass | goes on |
//! | fail | refuses (exit 3), unless told to go on with a reason, which the run's manifest keeps |
//! | inconclusive | warns: too few pairs say nothing against the model, and the policy that comes out has a gate of its own |
//! | none, or of another model | warns |
//!
//! Not here: measuring (`eval`), judging (`polity_eval::gate`).

use std::path::{Path, PathBuf};

use polity_eval::acceptance::Acceptance;
use polity_eval::gate::{Decision, Verdict};
use polity_train::run::{Input, RewardAcceptance};

use crate::error::{CommandError, CommandResult, Kind};
use crate::gate::json_files;
use crate::project::Project;
use crate::record::short;
use crate::ui::Ui;

/// End of the name of the directory beside a reward model.
const SUFFIX: &str = ".acceptance";

/// What a run should know.
#[derive(Default)]
pub struct Before {
    /// The verdict, for the manifest.
    pub known: Option<RewardAcceptance>,
    /// What the person should know.
    pub warnings: Vec<String>,
}

/// The directory beside a reward model; never in its own, whose hash covers every file.
pub fn dir_of(model: &Path) -> CommandResult<PathBuf> {
    let whole = model
        .canonicalize()
        .map_err(|error| CommandError::bad_input(format!("cannot find {}: {error}", model.display())))?;
    let name = whole.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(whole.with_file_name(name + SUFFIX))
}

/// Looks at the verdict on a reward model before PPO begins in `out`, and refuses one that failed.
pub fn before_ppo(model: &Path, out: &Path, overridden: Option<&str>, ui: &Ui) -> CommandResult<Before> {
    let mut before = Before::default();
    let mut warn = |text: String| before.warnings.push(text);
    let how = format!("polity eval {} --suite PAIRS.toml measures it", model.display());
    let Some(verdict) = verdict_on(model, out, &mut warn, ui)? else {
        warn(format!("nothing is known of the reward model {}: {how}", model.display()));
        return Ok(before);
    };
    match verdict.verdict {
        Decision::Pass => {}
        Decision::Inconclusive => warn(format!(
            "the acceptance of the reward model {} is inconclusive ({}); {how} on more pairs",
            model.display(),
            verdict.reasons.join("; ")
        )),
        Decision::Fail => {
            let Some(reason) = overridden else { return Err(refused(model, &verdict)) };
            warn(format!(
                "the reward model {} failed its acceptance ({}); overridden: {reason}",
                model.display(),
                verdict.reasons.join("; ")
            ));
        }
    }
    if overridden.is_some() && verdict.verdict != Decision::Fail {
        warn(format!("--override-acceptance overrides nothing: the verdict is {}", verdict.verdict.name()));
    }
    let overridden = overridden.filter(|_| verdict.verdict == Decision::Fail).map(str::to_owned);
    before.known = Some(RewardAcceptance {
        verdict: verdict.verdict.name().to_owned(),
        policy: verdict.policy,
        policy_blake3: verdict.policy_hash,
        reasons: verdict.reasons,
        overridden,
    });
    Ok(before)
}

fn refused(model: &Path, verdict: &Verdict) -> CommandError {
    let what = format!(
        "the reward model {} failed its acceptance under policy {}, and a policy would learn what it is wrong about",
        model.display(),
        verdict.policy
    );
    let error = CommandError::verdict(Kind::GateFailed, &what);
    let error = verdict.reasons.iter().fold(error, |error, reason| error.hint(reason.as_str()));
    error.hint("--override-acceptance \"REASON\" goes on all the same, and the run keeps the reason")
}

/// The newest verdict on this very model.
fn verdict_on(
    model: &Path,
    out: &Path,
    warn: &mut impl FnMut(String),
    ui: &Ui,
) -> CommandResult<Option<Verdict>> {
    let dir = dir_of(model)?;
    let project = match Project::around(out) {
        Some(Ok(project)) => Some(project),
        Some(Err(error)) => {
            ui.warn(&format!("the project's ledger cannot be asked about the reward model: {error}"));
            None
        }
        None => None,
    };
    if !dir.exists() && project.is_none() {
        return Ok(None);
    }
    let hash = Input::hash("reward_model", model)?.blake3;
    let all = all_in(&dir)?;
    let newest = |of_this: bool| {
        let found = all.iter().filter(|made| (made.verdict.candidate == hash) == of_this);
        found.max_by_key(|made| made.made_unix_ms).cloned()
    };
    let beside = newest(true);
    if let (None, Some(other)) = (&beside, newest(false)) {
        warn(format!(
            "{} is of model {}, not of what is in {} now ({})",
            dir.display(),
            short(&other.verdict.candidate),
            model.display(),
            short(&hash)
        ));
    }
    let recorded = project.map(|project| recorded(&project, &hash)).transpose()?.flatten();
    Ok(match (beside, recorded) {
        (Some(beside), Some((at_ms, recorded))) if at_ms > beside.made_unix_ms => Some(recorded),
        (Some(beside), _) => Some(beside.verdict),
        (None, recorded) => recorded.map(|(_, verdict)| verdict),
    })
}

/// Every acceptance in a directory that may not be there.
fn all_in(dir: &Path) -> CommandResult<Vec<Acceptance>> {
    if !dir.exists() {
        return Ok(Vec::new());
    }
    json_files(dir)?.iter().map(|file| Ok(Acceptance::read(file)?)).collect()
}

/// The newest verdict in a project's ledger, and when it was given.
fn recorded(project: &Project, model: &str) -> CommandResult<Option<(i64, Verdict)>> {
    let verdicts = project.wait(project.store().verdicts())?;
    let Some(newest) = verdicts.iter().rev().find(|verdict| verdict.what.model == model) else {
        return Ok(None);
    };
    let said = project.wait(project.store().document(&newest.what.said))?;
    let verdict = serde_json::from_str(&said)
        .map_err(|error| CommandError::failed(format!("verdict {}: {error}", short(&newest.id))))?;
    Ok(Some((newest.at_ms, verdict)))
}
