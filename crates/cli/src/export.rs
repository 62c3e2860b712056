//! A model's directory, copied so that it is there whole or not at all.
//!
//! The copy goes to a hidden directory beside the target, is flushed file by file, and is renamed when all is there; a failure removes it,
//! and what a killed process left half is removed by the next one. One process at a time: the lock is the operating system's, so it dies
//! with its process.
//!
//! Not here: what a release needs (`release`).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use polity_rows::FileLock;
use polity_train::run::Input;

use crate::error::{CommandError, CommandResult, hint_for_writing};

/// The model card.
pub const CARD: &str = "README.md";
const LOCK: &str = ".lock";
const PARTIAL: &str = ".partial-";

/// The folder of releases, held by this process.
#[derive(Debug)]
pub struct Releases {
    dir: PathBuf,
    _lock: FileLock,
}

impl Releases {
    /// Makes the folder if need be, takes the lock, and removes what killed processes left.
    pub fn lock(dir: PathBuf) -> CommandResult<Releases> {
        fs::create_dir_all(&dir).map_err(|source| failed(&dir, "make", source))?;
        let path = dir.join(LOCK);
        let lock = FileLock::take(&path).map_err(|source| failed(&path, "create", source))?;
        let lock = lock.ok_or_else(|| {
            CommandError::failed(format!("{}: another release is going on", dir.display()))
                .hint("wait until it has ended")
        })?;
        for name in names(&dir)? {
            if name.starts_with(PARTIAL) {
                let left = dir.join(&name);
                fs::remove_dir_all(&left).map_err(|source| failed(&left, "remove", source))?;
            }
        }
        Ok(Releases { dir, _lock: lock })
    }

    /// Copies a model under this name, with this card; returns the hash of each file. The copy must have the model's hash. A directory
    /// of that name is what a process left that was killed before it could record it, and is set aside.
    pub fn copy(&self, model: &Path, hash: &str, name: &str, card: &str) -> CommandResult<Copied> {
        let target = self.dir.join(name);
        let partial = RemoveOnDrop(Some(self.dir.join(format!("{PARTIAL}{name}"))));
        let path = partial.0.as_deref().expect("set above");
        fs::create_dir(path).map_err(|source| failed(path, "make", source))?;
        for file in files_under(model)? {
            if file == CARD {
                continue;
            }
            let (from, to) = (model.join(&file), path.join(&file));
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent).map_err(|source| failed(parent, "make", source))?;
            }
            let mut source = File::open(&from).map_err(|error| failed(&from, "read", error))?;
            let mut copy = File::create(&to).map_err(|error| failed(&to, "write", error))?;
            io::copy(&mut source, &mut copy)
                .and_then(|_| copy.sync_all())
                .map_err(|error| failed(&to, "write", error))?;
        }
        let to = path.join(CARD);
        let written = File::create(&to)
            .and_then(|mut file| file.write_all(card.as_bytes()).and_then(|()| file.sync_all()));
        written.map_err(|error| failed(&to, "write", error))?;
        let copied = Input::hash("model", path)?.blake3;
        if copied != hash {
            return Err(CommandError::failed(format!(
                "{} changed while it was copied: found {copied}, expected {hash}",
                model.display()
            ))
            .hint("release it when nothing writes to it any more"));
        }
        let files = hash_files(path)?;
        set_aside(&target)?;
        fs::rename(path, &target).map_err(|source| failed(&target, "rename to", source))?;
        // Only the survival of a power cut depends on it, and some file systems refuse to sync a directory.
        let _ = File::open(&self.dir).and_then(|dir| dir.sync_all());
        partial.keep();
        Ok(Copied { files, dir: RemoveOnDrop(Some(target)) })
    }
}

/// A copy that is removed again unless it is [kept](Copied::keep): the event that would name it may be refused.
#[must_use]
pub struct Copied {
    /// BLAKE3 of each file, by name.
    pub files: BTreeMap<String, String>,
    dir: RemoveOnDrop,
}

impl Copied {
    /// It is on record; returns where it is.
    pub fn keep(self) -> PathBuf {
        self.dir.keep()
    }
}

/// Removes a directory on every way out but one.
struct RemoveOnDrop(Option<PathBuf>);

impl RemoveOnDrop {
    fn keep(mut self) -> PathBuf {
        self.0.take().expect("kept once")
    }
}

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            // The error that led here is the one to report.
            let _ = fs::remove_dir_all(path);
        }
    }
}

/// Gives a directory that no event names another name; it is not ours to delete.
fn set_aside(dir: &Path) -> CommandResult {
    if !dir.exists() {
        return Ok(());
    }
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let free =
        (1..).map(|n| dir.with_file_name(format!("{name}.unrecorded-{n}"))).find(|path| !path.exists());
    let aside = free.expect("numbers do not end");
    fs::rename(dir, &aside).map_err(|source| failed(dir, "rename", source))
}

/// BLAKE3 of each file under a directory, by its path from there; hidden ones are left out.
pub fn hash_files(dir: &Path) -> CommandResult<BTreeMap<String, String>> {
    let files = files_under(dir)?;
    files
        .into_iter()
        .map(|file| {
            let hash = Input::hash("file", &dir.join(&file))?.blake3;
            Ok((file, hash))
        })
        .collect()
}

fn files_under(dir: &Path) -> CommandResult<Vec<String>> {
    let mut files = Vec::new();
    let mut directories = vec![String::new()];
    while let Some(below) = directories.pop() {
        for name in names(&dir.join(&below))? {
            if name.starts_with('.') {
                continue;
            }
            let path = if below.is_empty() { name } else { format!("{below}/{name}") };
            match dir.join(&path).is_dir() {
                true => directories.push(path),
                false => files.push(path),
            }
        }
    }
    files.sort_unstable();
    Ok(files)
}

fn names(dir: &Path) -> CommandResult<Vec<String>> {
    let entries: Vec<fs::DirEntry> =
        fs::read_dir(dir).and_then(Iterator::collect).map_err(|source| failed(dir, "read", source))?;
    Ok(entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

fn failed(path: &Path, action: &str, source: io::Error) -> CommandError {
    let hint = hint_for_writing(&source);
    let error = CommandError::failed(format!("cannot {action} {}: {source}", path.display()));
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}
