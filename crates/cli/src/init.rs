//! `polity init`: a project's directory, its file, its store.

use std::path::Path;

use polity_store::{NOBODY, NewProject, Policy, Rubric, Store, StoreError};

use crate::args::Global;
use crate::clock::unix_ms;
use crate::error::{CommandError, CommandResult};
use crate::output::json_to_stdout;
use crate::project::{self, PROJECT_FILE, ProjectFile};
use crate::project_args::InitArgs;
use crate::ui::Ui;

/// Folders that other verbs put things in.
const FOLDERS: [&str; 3] = ["runs", "datasets", "releases"];

/// Kinds of the events that a new store has.
const FIRST_EVENTS: [&str; 2] = ["init", "rubric"];

/// Runs the verb.
pub fn run(args: &InitArgs, global: &Global, ui: &Ui) -> CommandResult {
    let name = init(args)?;
    ui.note(&format!("project {name} in {}", args.dir.display()));
    if global.json {
        json_to_stdout(&serde_json::json!({"project": name, "dir": args.dir}))?;
    }
    Ok(())
}

/// Makes the project; returns its name.
pub fn init(args: &InitArgs) -> CommandResult<String> {
    let file = args.dir.join(PROJECT_FILE);
    if file.exists() {
        return Err(CommandError::bad_input(format!("{} is a project already", args.dir.display())));
    }
    let name = match &args.name {
        Some(name) => name.clone(),
        None => {
            let dir = std::path::absolute(&args.dir).map_err(CommandError::failed)?;
            dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
        }
    };
    make_dir(&args.dir)?;
    let project = NewProject {
        name: name.clone(),
        validation_share: args.validation,
        holdout_share: args.holdout,
        policy: Policy { overlap: args.overlap, ..Policy::usual() },
        rubric: Rubric::usual(),
    };
    let seed = match args.seed {
        Some(seed) => *blake3::hash(&seed.to_le_bytes()).as_bytes(),
        None => project::seed()?,
    };
    let location = project::location(&args.dir, &args.store);
    let runtime = project::runtime()?;
    runtime.block_on(async {
        match Store::create(&location, seed, project.clone(), NOBODY, unix_ms()).await {
            Err(StoreError::Exists { url }) => adopt(&location, url, seed, &project).await,
            Err(error) => Err(error),
            Ok(store) => {
                store.close().await;
                Ok(())
            }
        }
    })?;
    // Last: with this file the directory is a project.
    let text = toml::to_string(&ProjectFile { name: name.clone(), store: args.store.clone() })
        .map_err(CommandError::failed)?;
    polity_rows::atomic_write(&file, |out| std::io::Write::write_all(out, text.as_bytes()))?;
    for folder in FOLDERS {
        make_dir(&args.dir.join(folder))?;
    }
    Ok(name)
}

/// Takes a store that was just made by the same command, which was killed before it could write the project's file.
async fn adopt(location: &str, url: String, seed: [u8; 32], wanted: &NewProject) -> Result<(), StoreError> {
    let store = Store::open(location, seed, unix_ms()).await?;
    let found = store.project().await?;
    let events = store.events(0, 1 + FIRST_EVENTS.len() as i64).await?;
    let rubric = store.current_rubric().await?.rubric;
    store.close().await;
    let same = (found.name, found.validation_share, found.holdout_share, found.policy)
        == (wanted.name.clone(), wanted.validation_share, wanted.holdout_share, wanted.policy.clone());
    let untouched = events.iter().map(|event| event.kind.as_str()).eq(FIRST_EVENTS);
    match same && untouched && rubric == wanted.rubric {
        true => Ok(()),
        false => Err(StoreError::Exists { url }),
    }
}

fn make_dir(dir: &Path) -> CommandResult {
    std::fs::create_dir_all(dir)
        .map_err(|error| CommandError::failed(format!("cannot make {}: {error}", dir.display())))
}
