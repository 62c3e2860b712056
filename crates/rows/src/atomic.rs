//! Writing a file so that it is either the old one or the whole new one, never half of one.
//!
//! The content goes to a temporary file in the same directory, is flushed to the disk (`fsync`), and is
//! renamed over the target, which POSIX makes one step; then the directory is synced, so that the rename
//! survives a power cut. A failure before the rename removes the temporary file and leaves the target as it
//! was. A killed process leaves only the temporary file behind, named `.NAME.PID-N.partial`.
//!
//! Not here: locking. Two writers of one path both succeed, and the last rename wins.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;

use crate::error::RowsError;

/// Calls `write` on a temporary file beside `path` and renames it to `path` once it is safely on the disk.
///
/// A symbolic link is followed, so the link stays and its target is replaced; the permissions of a replaced
/// file are kept. Something that is not a plain file, such as `/dev/stdout` or a named pipe, is written
/// directly: a rename would destroy it.
pub fn atomic_write(
    path: impl AsRef<Path>,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), RowsError> {
    let path = path.as_ref();
    let failed = |step| move |source| RowsError::Write { file: path.to_owned(), step, source };

    // `canonicalize` follows a link; it fails for a path that does not exist yet, which is then its own
    // target.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let replaced = fs::metadata(&target).ok();
    if let Some(there) = &replaced
        && !there.is_file()
    {
        if there.is_dir() {
            return Err(failed("open")(io::Error::from(io::ErrorKind::IsADirectory)));
        }
        let file = OpenOptions::new().write(true).open(&target).map_err(failed("open"))?;
        let mut writer = BufWriter::new(file);
        return write(&mut writer).and_then(|()| writer.flush()).map_err(failed("write"));
    }

    let (partial, file) = create_partial(&target).map_err(failed("create a temporary file beside it"))?;
    let partial = RemoveOnDrop(Some(partial));
    if let Some(there) = &replaced {
        file.set_permissions(there.permissions()).map_err(failed("keep its permissions"))?;
    }
    let mut writer = BufWriter::new(file);
    write(&mut writer).map_err(failed("write"))?;
    let file = writer.into_inner().map_err(|error| failed("write")(error.into_error()))?;
    file.sync_all().map_err(failed("flush to the disk"))?;
    drop(file);
    partial.rename(&target).map_err(failed("rename the finished file"))?;
    sync_directory(&target);
    Ok(())
}

/// Writes one JSON object a line, atomically, and returns the number of rows; a path that ends in `.gz` is
/// compressed.
///
/// JSON has no NaN and no infinity: a float that is not finite is written as `null`.
pub fn write_jsonl<T: Serialize>(
    path: impl AsRef<Path>,
    rows: impl IntoIterator<Item = T>,
) -> Result<usize, RowsError> {
    let path = path.as_ref();
    let mut count = 0;
    atomic_write(path, |writer| {
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gz")) {
            let mut writer = GzEncoder::new(writer, Compression::default());
            count = write_lines(&mut writer, rows)?;
            writer.finish()?;
        } else {
            count = write_lines(writer, rows)?;
        }
        Ok(())
    })?;
    Ok(count)
}

fn write_lines<T: Serialize>(
    writer: &mut impl Write,
    rows: impl IntoIterator<Item = T>,
) -> io::Result<usize> {
    let mut count = 0;
    for row in rows {
        serde_json::to_writer(&mut *writer, &row)?;
        writer.write_all(b"\n")?;
        count += 1;
    }
    Ok(count)
}

/// A new file beside `target`. The name holds the process id and a counter, so neither another process nor
/// another thread can be writing the same one; a leftover of a killed process with our id is stepped over.
fn create_partial(target: &Path) -> io::Result<(PathBuf, File)> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let name = target.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    loop {
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let partial = target.with_file_name(format!(".{name}.{}-{count}.partial", std::process::id()));
        match OpenOptions::new().write(true).create_new(true).open(&partial) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            created => return created.map(|file| (partial, file)),
        }
    }
}

/// The rename is already visible to every reader; only its survival of a power cut depends on this, and some
/// file systems refuse to sync a directory. So a failure here is not reported as a failure to write.
fn sync_directory(target: &Path) {
    let parent = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if let Ok(directory) = File::open(parent) {
        let _ = directory.sync_all();
    }
}

/// Removes the temporary file on every way out but a successful rename, a panic in the caller's closure
/// included.
struct RemoveOnDrop(Option<PathBuf>);

impl RemoveOnDrop {
    fn rename(mut self, target: &Path) -> io::Result<()> {
        if let Some(partial) = &self.0 {
            fs::rename(partial, target)?;
        }
        self.0 = None;
        Ok(())
    }
}

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        if let Some(partial) = self.0.take() {
            // Nothing can be done about a failure, and the error that led here is the one to report.
            let _ = fs::remove_file(partial);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use serde_json::json;

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn replaces_a_file_and_leaves_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.jsonl");
        assert_eq!(write_jsonl(&path, [json!({"a": 1}), json!({"b": "é\n"})]).unwrap(), 2);
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"a\":1}\n{\"b\":\"é\\n\"}\n");
        assert_eq!(write_jsonl(&path, [json!({"c": 3})]).unwrap(), 1);
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"c\":3}\n");
        assert_eq!(names(directory.path()), ["a.jsonl"]);
    }

    #[test]
    fn gz_by_name_is_compressed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.jsonl.gz");
        write_jsonl(&path, [json!({"a": 1})]).unwrap();
        let mut text = String::new();
        flate2::read::GzDecoder::new(File::open(&path).unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "{\"a\":1}\n");
    }

    #[test]
    fn a_failure_half_way_keeps_the_old_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.txt");
        atomic_write(&path, |w| w.write_all(b"old")).unwrap();
        let error = atomic_write(&path, |w| {
            w.write_all(&[b'x'; 100_000])?; // More than the buffer, so some of it reached the file.
            Err(io::Error::other("no more space"))
        })
        .unwrap_err();
        assert_eq!(error.to_string(), format!("cannot write {}: write: no more space", path.display()));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(directory.path()), ["a.txt"]);

        let panicked = std::panic::catch_unwind(|| atomic_write(&path, |_| panic!("deliberate")));
        assert!(panicked.is_err());
        assert_eq!(names(directory.path()), ["a.txt"]);
    }

    #[test]
    fn the_target_must_be_a_file_in_a_directory_that_exists() {
        let directory = tempfile::tempdir().unwrap();
        let error = atomic_write(directory.path(), |_| Ok(())).unwrap_err();
        assert!(matches!(error, RowsError::Write { step: "open", .. }), "{error}");
        let missing = directory.path().join("no/such/a.txt");
        let error = atomic_write(&missing, |_| Ok(())).unwrap_err();
        assert!(
            matches!(&error, RowsError::Write { file, source, .. } if *file == missing && source.kind() == io::ErrorKind::NotFound),
            "{error}"
        );
    }

    #[cfg(unix)]
    #[test]
    fn links_permissions_and_devices_survive() {
        use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};

        let directory = tempfile::tempdir().unwrap();
        let (path, link) = (directory.path().join("real.txt"), directory.path().join("link.txt"));
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        symlink(&path, &link).unwrap();
        atomic_write(&link, |w| w.write_all(b"new")).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);

        atomic_write("/dev/null", |w| w.write_all(b"gone")).unwrap();
        assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());

        // /dev/full takes the place of a full disk: the error must surface, not be lost in the buffer's drop.
        let error = atomic_write("/dev/full", |w| w.write_all(b"x")).unwrap_err();
        assert!(
            matches!(&error, RowsError::Write { source, .. } if source.kind() == io::ErrorKind::StorageFull),
            "{error}"
        );
    }
}
