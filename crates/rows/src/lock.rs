//! A lock of the operating system's on a file, so that one process at a time works in a directory and a killed one leaves nothing behind.
//!
//! The lock belongs to the open file, which a child of this process shares between its `fork` and its `exec`. So it is given back by
//! saying so: closing the file alone would leave it held for as long as such a child lives.
//!
//! Not here: waiting for another process to end. Who finds a lock held says so.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;
use std::time::Duration;

/// How long whoever only looks may have a lock.
const LOOK: Duration = Duration::from_millis(20);

/// A lock that is held until this is dropped.
#[derive(Debug)]
pub struct FileLock(File);

impl FileLock {
    /// Takes the lock on `path`, which is made if need be; `None` if another process has it.
    ///
    /// Some network file systems have no locks. There nothing guards against a second process.
    pub fn take(path: &Path) -> io::Result<Option<FileLock>> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        // Twice: the first time somebody may have been looking.
        for _ in 0..2 {
            match file.try_lock() {
                Ok(()) | Err(TryLockError::Error(_)) => return Ok(Some(FileLock(file))),
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOOK),
            }
        }
        Ok(None)
    }

    /// Whether another process has the lock on `path`; `None` where that cannot be known: there is no such file, or no locks.
    pub fn is_held(path: &Path) -> Option<bool> {
        // Something that waits to be opened, such as a pipe, would be waited for.
        let file = path.metadata().is_ok_and(|found| found.is_file()).then(|| File::open(path).ok())??;
        match file.try_lock_shared() {
            Ok(()) => {
                let _ = file.unlock();
                Some(false)
            }
            Err(TryLockError::WouldBlock) => Some(true),
            Err(TryLockError::Error(_)) => None,
        }
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Closing follows, so a failure changes nothing.
        let _ = self.0.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_free_again_although_the_file_is_still_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".lock");
        let held = FileLock::take(&path).unwrap().expect("nobody has it");
        assert!(FileLock::take(&path).unwrap().is_none());
        // What a child has between fork and exec: the same open file.
        let child = held.0.try_clone().unwrap();
        drop(held);
        assert!(FileLock::take(&path).unwrap().is_some());
        drop(child);
    }

    #[test]
    fn looking_takes_nothing_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".lock");
        assert_eq!(FileLock::is_held(&path), None);
        assert!(!path.exists());
        let held = FileLock::take(&path).unwrap().expect("nobody has it");
        assert_eq!((FileLock::is_held(&path), FileLock::is_held(&path)), (Some(true), Some(true)));
        drop(held);
        assert_eq!(FileLock::is_held(&path), Some(false));
        assert!(FileLock::take(&path).unwrap().is_some());
        assert_eq!(FileLock::is_held(dir.path()), None);
    }
}
