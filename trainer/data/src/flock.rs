//! Locks between processes that end with their holder.
//!
//! Comes in: the path of a lock. Goes out: the lock, in a file that is removed when it is given back. It is for sparing work that several
//! processes would do alike: on a volume without locks they all do it, and nothing is wrong.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use lcl_objects::Stop;

/// A lock that is held.
#[derive(Debug)]
pub(crate) struct Lock {
    path: PathBuf,
    pub(crate) file: File,
    /// Whether another process had it.
    pub(crate) waited: bool,
}

impl Lock {
    /// Takes a lock, waiting for whoever has it. The file's folder is made when it is not there.
    pub(crate) fn take(path: &Path) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut waited = false;
        loop {
            let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(fs::TryLockError::WouldBlock) => {
                    if !std::mem::replace(&mut waited, true) {
                        tracing::debug!(lock = %path.display(), "waiting for another process that does the same");
                    }
                    wait_for(&file)?;
                }
                Err(fs::TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
                Err(fs::TryLockError::Error(error)) => return Err(error),
            }
            // Whoever had it has removed or renamed the file meanwhile; then this lock is of nothing.
            let is_it = |found: fs::Metadata| file.metadata().is_ok_and(|own| (own.dev(), own.ino()) == (found.dev(), found.ino()));
            if fs::metadata(path).is_ok_and(is_it) {
                return Ok(Self { path: path.to_owned(), file, waited });
            }
        }
    }

    /// Gives the lock back without removing its file, which has another name by now. Whoever waits for it goes on, though the file stays open.
    pub(crate) fn renamed(mut self) -> io::Result<File> {
        self.path.clear();
        // All handles of a file that was opened once have one lock.
        self.file.unlock()?;
        self.file.try_clone()
    }
}

/// How often a wait that hears a stop looks for the lock: what is waited for, a fetch or an index, takes longer.
const POLL: Duration = Duration::from_millis(20);

/// Waits for a lock, or until a stop is asked for that this thread hears. The system has no wait for a lock that a thread could be called from.
fn wait_for(file: &File) -> io::Result<()> {
    let Some(stop) = Stop::of_thread() else { return file.lock() };
    while !stop.is_asked() {
        match file.try_lock() {
            Err(fs::TryLockError::WouldBlock) => std::thread::sleep(POLL),
            Err(fs::TryLockError::Error(error)) => return Err(error),
            Ok(()) => return Ok(()),
        }
    }
    Err(io::Error::other("another process's work was not waited for any longer: a stop was asked for"))
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Before the lock ends, so that nobody gets a lock of a file that is about to go.
        if !self.path.as_os_str().is_empty() {
            drop(fs::remove_file(&self.path));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn one_at_a_time_has_a_lock_though_its_file_comes_and_goes() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("below/a.lock");
        let (inside, turns) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let _lock = Lock::take(&path).expect("the lock is taken");
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two are inside");
                        turns.fetch_add(1, Ordering::SeqCst);
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(turns.into_inner(), 400);
        assert!(!path.exists());
    }

    #[test]
    fn a_stop_ends_the_wait_for_a_lock_that_another_keeps() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("a.lock");
        let held = Lock::take(&path).expect("the lock is taken");
        let looks = AtomicU32::new(0);
        let stop = Stop::new(move || looks.fetch_add(1, Ordering::SeqCst) > 1);
        let error = stop.heard_in(|| Lock::take(&path)).expect_err("it is not given back");
        assert!(error.to_string().contains("a stop was asked for"), "{error}");
        drop(held);
    }

    #[test]
    fn who_waits_for_a_lock_goes_on_when_its_file_is_renamed_and_stays_open() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (path, named) = (folder.path().join("a.part"), folder.path().join("a"));
        let open: Vec<File> = std::thread::scope(|scope| {
            let take = || {
                let lock = Lock::take(&path).expect("the lock is taken");
                fs::rename(&path, &named).expect("the file is renamed");
                lock.renamed().expect("the file stays open")
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| thread.join().expect("the thread does not panic")).collect()
        });
        assert!(open.len() == 4 && named.exists() && !path.exists());
    }
}
