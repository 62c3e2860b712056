//! `polity release`, `approve`, `rollback`, `releases`, `channel`: which model is served where, on what grounds.
//!
//! A release asks the store for the grounds (verdict, approvals), checks the evidence behind them link by link, copies the model with a card
//! made from the record, and only then becomes an event, in a transaction that looks at the grounds once more. Killed in between, it
//! leaves a directory that nothing names. Whatever is refused is an event with its reason.
//!
//! Not here: the rules (`store`), the links (`lineage`), the copy (`export`), the card (`card`).

use std::io::{self, Write};
use std::path::PathBuf;

use polity_store::{
    Answered, Asked, Bad, ChannelState, NewRelease, Recorded, Refusal, Release, Rollback, Verification,
};
use polity_train::run::Input;
use serde_json::json;

use crate::args::Global;
use crate::card;
use crate::clock::{unix_ms, utc_of};
use crate::error::{CommandError, CommandResult};
use crate::export::Releases;
use crate::lineage::trace;
use crate::output::{json_to_stdout, to_stdout};
use crate::project::Project;
use crate::record::{Record, Target, short};
use crate::release_args::{ApproveArgs, ChannelArgs, ReleaseArgs, ReleasesArgs, RollbackArgs};
use crate::ui::{Ui, plural};

/// The project's folder of releases.
pub const FOLDER: &str = "releases";

/// Runs `release`.
pub fn run_release(args: &ReleaseArgs, global: &Global, ui: &Ui) -> CommandResult {
    let project = Project::open(&args.project)?;
    match release(&project, args, ui)? {
        Err(refusal) => Err(refused("release", &refusal)),
        Ok(release) => match global.json {
            true => json_to_stdout(&release),
            false => to_stdout(|out| print_release(out, &release, "")),
        },
    }
}

/// Releases, or says why not; that is on record then.
pub fn release(project: &Project, args: &ReleaseArgs, ui: &Ui) -> CommandResult<Answered<Recorded<Release>>> {
    let store = project.store();
    let record = Record::read(project)?;
    let (target, dir) = model(project, &record, &args.model, &args.channel)?;
    let asked =
        Asked { model: target.model.clone(), channel: args.channel.clone(), verdict: args.verdict.clone() };
    let state = project.wait(store.channel(&args.channel))?;
    if args.canary_share.is_some() && state.stable.is_none() {
        return Err(CommandError::bad_input(format!(
            "a canary of channel {}: nothing is released there yet that the others would get",
            args.channel
        ))
        .hint("release without --canary-share first"));
    }
    let grounds = match project.wait(store.may_release(asked.clone(), project.actor(), unix_ms()))? {
        Ok(grounds) => grounds,
        Err(refusal) => return Ok(Err(refusal)),
    };
    // The release is not there yet, so its links are the model's, with the verdict.
    let verification = project.verify(None, ui)?;
    let failed = trace(project, &record, &verification, &Target { release: None, ..target })?.failed();
    if !failed.is_empty() {
        return Err(refuse(project, "release", asked, Refusal::Evidence { found: failed })?);
    }

    let releases = Releases::lock(project.dir().join(FOLDER))?;
    let name = project.wait(store.channel(&args.channel))?.next_name();
    let card = card::Card {
        release: &name,
        asked: &asked,
        grounds: &grounds,
        canary_share: args.canary_share,
        dir: &dir,
        now_ms: unix_ms(),
    };
    let card = card.text(project, &record)?;
    let copied = releases.copy(&dir, &asked.model, &name, &card)?;
    let new = NewRelease {
        asked,
        dir: format!("{FOLDER}/{name}"),
        release: name,
        files: copied.files.clone(),
        canary_share: args.canary_share,
    };
    let answered = project.wait(store.add_release(new, project.actor(), unix_ms()))?;
    if let Ok(release) = &answered {
        let dir = copied.keep();
        ui.note(&format!("{} is in {}, with its card in README.md", release.what.release, dir.display()));
    }
    Ok(answered)
}

/// A model to release: its hash as it is now, and where it is.
fn model(project: &Project, record: &Record, what: &str, channel: &str) -> CommandResult<(Target, PathBuf)> {
    let target = record.find(project, what)?;
    let Some(dir) = target.dir.clone().filter(|dir| dir.is_dir()) else {
        return Err(CommandError::bad_input(format!("{what}: it is not known where this model is"))
            .hint("name its directory"));
    };
    if !dir.join("config.json").is_file() {
        return Err(CommandError::bad_input(format!(
            "{}: no config.json in it; expected the directory of a whole model",
            dir.display()
        ))
        .hint("an adapter's merged model is in RUN/model"));
    }
    let now = Input::hash("model", &dir)?.blake3;
    if now != target.model && record.verdict_on(&now).is_none() {
        // Whoever changed the weights was not judged for it; say which model this was rather than that none is known.
        let found = format!("its files give {}, and on record it is {}", short(&now), short(&target.model));
        let asked = Asked { model: now, channel: channel.to_owned(), verdict: None };
        let bad = Bad { record: format!("model {}", dir.display()), found };
        return Err(refuse(project, "release", asked, Refusal::Evidence { found: vec![bad] })?);
    }
    Ok((Target { model: now, dir: Some(dir.clone()), release: target.release }, dir))
}

/// Runs `approve`.
pub fn approve(args: &ApproveArgs, global: &Global, ui: &Ui) -> CommandResult {
    let project = Project::open(&args.project)?;
    if project.actor() == polity_store::NOBODY {
        return Err(CommandError::bad_input("it is not known who approves")
            .hint("put an API token of yours into POLITY_TOKEN; `polity account token NAME` makes one"));
    }
    let record = Record::read(&project)?;
    let target = record.find(&project, &args.model)?;
    let model = match target.dir.as_deref().filter(|dir| dir.is_dir()) {
        Some(dir) => Input::hash("model", dir)?.blake3,
        None => target.model,
    };
    let asked = Asked { model, channel: args.channel.clone(), verdict: args.verdict.clone() };
    match project.wait(project.store().approve(asked, project.actor(), unix_ms()))? {
        Err(refusal) => Err(refused("approval", &refusal)),
        Ok(approval) => {
            let who = record.name_of(&approval.actor);
            ui.note(&format!("{who} approves {} for {}", short(&approval.what.model), args.channel));
            match global.json {
                true => json_to_stdout(&approval),
                false => to_stdout(|out| {
                    writeln!(
                        out,
                        "approval {} of verdict {}",
                        short(&approval.id),
                        short(&approval.what.verdict)
                    )
                }),
            }
        }
    }
}

/// Runs `rollback`.
pub fn rollback(args: &RollbackArgs, global: &Global, ui: &Ui) -> CommandResult {
    let project = Project::open(&args.project)?;
    let state = project.wait(project.store().channel(&args.channel))?;
    let Some(current) = state.current().cloned() else {
        return Err(CommandError::bad_input(format!(
            "nothing was ever released to channel {}",
            args.channel
        ))
        .hint("polity releases shows what was released where"));
    };
    let record = Record::read(&project)?;
    let verification = project.verify(None, ui)?;
    let (to, skipped) = last_good(&project, &record, &verification, &state, args.to.as_deref())?;
    let asked = Asked { model: current.what.model, channel: args.channel.clone(), verdict: None };
    let Some(to) = to else {
        let refusal = Refusal::NoGoodRelease { channel: args.channel.clone(), skipped };
        return Err(refuse(&project, "rollback", asked, refusal)?);
    };
    for bad in &skipped {
        ui.note(&format!("skipped {}: {}", bad.record, bad.found));
    }
    let rollback = Rollback {
        channel: args.channel.clone(),
        from: current.what.release,
        to: to.what.release.clone(),
        skipped,
    };
    let back = project.wait(project.store().add_rollback(rollback, project.actor(), unix_ms()))?;
    match global.json {
        true => json_to_stdout(&json!({"rollback": back, "release": to})),
        false => to_stdout(|out| {
            writeln!(out, "{}: back from {} to {}", args.channel, back.what.from, back.what.to)
        }),
    }
}

/// The newest earlier release that is good, and why those after it are not.
fn last_good(
    project: &Project,
    record: &Record,
    verification: &Verification,
    state: &ChannelState,
    wanted: Option<&str>,
) -> CommandResult<(Option<Recorded<Release>>, Vec<Bad>)> {
    let mut earlier = state.earlier();
    if let Some(wanted) = wanted {
        earlier.retain(|(release, _)| release.what.release == wanted);
        if earlier.is_empty() {
            let names: Vec<&str> =
                state.earlier().iter().map(|(release, _)| release.what.release.as_str()).collect();
            let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            return Err(CommandError::bad_input(format!(
                "{wanted} is no earlier release of {}",
                state.channel
            ))
            .hint(format!("earlier ones: {known}")));
        }
    }
    let mut skipped = Vec::new();
    for (release, why) in earlier {
        let why = match why {
            Some(why) => why,
            None => {
                let target =
                    Target { model: release.what.model.clone(), dir: None, release: Some(release.clone()) };
                let failed = trace(project, record, verification, &target)?.failed();
                if failed.is_empty() {
                    return Ok((Some(release.clone()), skipped));
                }
                let failed: Vec<String> =
                    failed.iter().map(|bad| format!("{}: {}", bad.record, bad.found)).collect();
                failed.join("; ")
            }
        };
        skipped.push(Bad { record: release.what.release.clone(), found: why });
    }
    Ok((None, skipped))
}

/// Runs `releases`.
pub fn releases(args: &ReleasesArgs, global: &Global) -> CommandResult {
    let project = Project::open(&args.project)?;
    let mut channels = project.wait(project.store().channels())?;
    if let Some(channel) = &args.channel {
        channels.retain(|state| state.channel == *channel);
    }
    let rules = project.wait(project.store().channel_rules())?;
    if global.json {
        let of = |state: &ChannelState| {
            let mut value = json!(state);
            value["rule"] = json!(rules.get(&state.channel));
            value
        };
        return json_to_stdout(&channels.iter().map(of).collect::<Vec<_>>());
    }
    to_stdout(|out| {
        for state in &channels {
            let rule = rules.get(&state.channel).map(|rule| &rule.what);
            let policy = rule.map(|rule| format!(" (policy {}, {})", rule.policy_name, short(&rule.policy)));
            writeln!(out, "{}{}", state.channel, policy.unwrap_or_default())?;
            print_channel(out, state)?;
        }
        Ok(())
    })
}

fn print_channel(out: &mut impl Write, state: &ChannelState) -> io::Result<()> {
    for release in state.releases.iter().rev() {
        let is =
            |other: &Option<Recorded<Release>>| other.as_ref().is_some_and(|other| other.id == release.id);
        let mark = if is(&state.stable) {
            "* "
        } else if is(&state.canary) {
            "c "
        } else {
            "  "
        };
        print_release(out, release, mark)?;
        for back in state.rollbacks.iter().filter(|back| back.what.from == release.what.release) {
            writeln!(out, "    rolled back to {}, {}", back.what.to, utc_of(back.at_ms))?;
        }
    }
    Ok(())
}

fn print_release(out: &mut impl Write, release: &Recorded<Release>, mark: &str) -> io::Result<()> {
    let Release { release: name, model, verdict, approvals, canary_share, .. } = &release.what;
    let share = canary_share.map(|share| format!("  canary, {} %", 100.0 * share)).unwrap_or_default();
    writeln!(out, "{mark}{name}  model {}  {}{share}", short(model), utc_of(release.at_ms))?;
    let indent = " ".repeat(mark.len());
    let given = approvals.len();
    writeln!(out, "{indent}  on verdict {}, {given} {}", short(verdict), plural("approval", given as u64))
}

/// Runs `channel`.
pub fn channel(args: &ChannelArgs, global: &Global, ui: &Ui) -> CommandResult {
    let project = Project::open(&args.project)?;
    let (policy, text) = crate::gate::policy(Some(&args.policy))?;
    let set = project.store().set_channel(&args.channel, &policy.name, text, project.actor(), unix_ms());
    let rule = project.wait(set)?;
    ui.note(&format!(
        "releases to {} need a verdict under policy {} ({})",
        args.channel,
        policy.name,
        short(&policy.hash)
    ));
    match global.json {
        true => json_to_stdout(&rule),
        false => Ok(()),
    }
}

/// Records a refusal, and gives the command's error.
fn refuse(
    project: &Project,
    what: &'static str,
    asked: Asked,
    refusal: Refusal,
) -> CommandResult<CommandError> {
    let refusal = project.wait(project.store().refuse(what, asked, refusal, project.actor(), unix_ms()))?;
    Ok(refused(what, &refusal))
}

/// The error for something that the store has refused and recorded.
pub fn refused(what: &str, refusal: &Refusal) -> CommandError {
    let error = CommandError::from_refusal(what, refusal);
    refusal.details().into_iter().fold(error, CommandError::hint)
}
