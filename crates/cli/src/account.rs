//! `polity account`: people who act from the command line, by API tokens.
//!
//! Whoever may write to the store may make accounts; the ledger has who did. Pages, passwords and invites: `polity serve`.

use std::io::Write;

use polity_store::Account;
use serde_json::json;

use crate::args::Global;
use crate::clock::unix_ms;
use crate::error::CommandResult;
use crate::output::{json_to_stdout, to_stdout};
use crate::project::Project;
use crate::release_args::AccountVerb;
use crate::ui::Ui;

/// Runs the verb.
pub fn run(verb: &AccountVerb, global: &Global, ui: &Ui) -> CommandResult {
    match verb {
        AccountVerb::Add { project, name, roles } => {
            let project = Project::open(project)?;
            let roles = roles.iter().copied().collect();
            let account =
                project.wait(project.store().add_account(name, None, roles, project.actor(), unix_ms()))?;
            token(&project, &account, global, ui)
        }
        AccountVerb::Token { project, name } => {
            let project = Project::open(project)?;
            let (account, _) = project.wait(project.store().account_by_name(name))?;
            token(&project, &account, global, ui)
        }
        AccountVerb::List { project } => {
            let project = Project::open(project)?;
            let accounts = project.wait(project.store().accounts())?;
            match global.json {
                true => json_to_stdout(&accounts),
                false => to_stdout(|out| accounts.iter().try_for_each(|account| print(out, account))),
            }
        }
    }
}

fn token(project: &Project, account: &Account, global: &Global, ui: &Ui) -> CommandResult {
    let (_, secret) =
        project.wait(project.store().add_token(&account.id, "command line", None, unix_ms()))?;
    ui.note(&format!("POLITY_TOKEN with this acts as {}; it is shown this once", account.name));
    match global.json {
        true => json_to_stdout(&json!({"account": account, "token": secret})),
        false => to_stdout(|out| writeln!(out, "{secret}")),
    }
}

fn print(out: &mut impl Write, account: &Account) -> std::io::Result<()> {
    let roles: Vec<&str> = account.roles.iter().map(|role| role.name()).collect();
    let disabled = if account.disabled_ms.is_some() { "  disabled" } else { "" };
    writeln!(out, "{:<24} {}{disabled}", account.name, roles.join(", "))
}
