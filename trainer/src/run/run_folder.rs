//! The folder of a run: where checkpoints, `metrics.jsonl` and event files lie, and who may write there.
//!
//! Comes in: the checkpoint URI. Goes out: the open [`CheckpointStore`] and a folder on this machine for the files that are appended to.
//! For `file://` that is the run's own folder, locked against a second process; for an object store it is a temporary one whose files are
//! fetched at the start and uploaded now and then, at least with every checkpoint.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use bytes::Bytes;
use lcl_checkpoint::{CheckpointEntry, CheckpointStore, StoreError, StoreOptions, Volume, VolumeFault};
use tempfile::TempDir;
use url::Url;

use crate::run::{journal, tensorboard};

/// Held by the process that trains in the folder.
const LOCK_FILE: &str = ".lock";

/// What a run's files other than checkpoints are called; `--fresh --delete-existing` removes these and no others.
const OWN_PREFIXES: [&str; 3] = [journal::METRICS_FILE, journal::RUN_FILE, tensorboard::NAME_PREFIX];

/// The folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunFolderError {
    /// The store cannot be opened or does not answer.
    #[error("cannot use the run's folder")]
    Store {
        /// Why.
        #[from]
        source: StoreError,
    },
    /// The file URI names no folder.
    #[error("{uri} names no folder of this machine: write file:///folder")]
    NotLocal {
        /// As it was given.
        uri: String,
    },
    /// A file in the folder cannot be used.
    #[error("cannot use {}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process trains there.
    #[error("another process trains in {}: wait for its end or stop it", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// A fresh start was asked for where something is.
    #[error("{uri} holds {found}: --fresh alone does not remove it; add --delete-existing, or name another folder")]
    NotEmpty {
        /// The folder.
        uri: String,
        /// What is there.
        found: String,
    },
}

impl RunFolderError {
    /// Whether starting again with the same folder would fail again until somebody changes something.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Store { source } => source.is_permanent(),
            Self::File { source, .. } => VolumeFault::of(source).is_permanent(),
            Self::InUse { .. } => false,
            Self::NotLocal { .. } | Self::NotEmpty { .. } => true,
        }
    }
}

/// The open folder of a run.
#[derive(Debug)]
pub struct RunFolder {
    store: CheckpointStore,
    path: PathBuf,
    /// Holds the lock while it is open.
    _lock: Option<File>,
    upload: Option<Upload>,
}

/// Copies of the files go to the object store after every checkpoint.
#[derive(Debug)]
struct Upload {
    _folder: TempDir,
    under_way: Option<JoinHandle<()>>,
    /// Why the last upload failed.
    problem: Arc<Mutex<Option<String>>>,
}

impl RunFolder {
    /// Opens the folder for training: creates it, tries its volume, locks it, fetches the files of an object store.
    pub fn open(uri: &str) -> Result<Self, RunFolderError> {
        let store = CheckpointStore::open(uri, StoreOptions::default())?;
        store.probe()?;
        if let Some(path) = local_path(uri)? {
            let lock = lock(&path)?;
            return Ok(Self { store, path, _lock: lock, upload: None });
        }
        Self::on_object_store(store)
    }

    /// As [`RunFolder::of_member`], of a store that is still to be opened.
    pub fn open_as_member(uri: &str) -> Result<Self, RunFolderError> {
        Self::of_member(CheckpointStore::open(uri, StoreOptions::default())?)
    }

    /// The folder without its lock, for a member of a group: who writes there is decided by the group's coordinator.
    pub fn of_member(store: CheckpointStore) -> Result<Self, RunFolderError> {
        if let Some(path) = local_path(store.uri())? {
            fs::create_dir_all(&path).map_err(|source| RunFolderError::File { path: path.clone(), source })?;
            return Ok(Self { store, path, _lock: None, upload: None });
        }
        Self::on_object_store(store)
    }

    /// The folder of a run in an object store: a temporary one with what the store has of the run's files.
    fn on_object_store(store: CheckpointStore) -> Result<Self, RunFolderError> {
        let folder = TempDir::with_prefix("lcl-run-").map_err(|source| RunFolderError::File { path: std::env::temp_dir(), source })?;
        let path = folder.path().to_owned();
        for name in [journal::METRICS_FILE, journal::RUN_FILE] {
            if let Some(bytes) = store.read_file(name)? {
                let file = path.join(name);
                fs::write(&file, bytes).map_err(|source| RunFolderError::File { path: file, source })?;
            }
        }
        let upload = Upload { _folder: folder, under_way: None, problem: Arc::default() };
        Ok(Self { store, path, _lock: None, upload: Some(upload) })
    }

    /// Where checkpoints go.
    #[must_use]
    pub fn store(&self) -> &CheckpointStore {
        &self.store
    }

    /// The folder on this machine in which `metrics.jsonl` and event files are written.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the event files that the run has so far, wherever they lie.
    pub fn event_files(&self) -> Result<Vec<String>, RunFolderError> {
        if self.upload.is_some() {
            return Ok(self.store.file_names(tensorboard::NAME_PREFIX)?);
        }
        let error = |source| RunFolderError::File { path: self.path.clone(), source };
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(error)? {
            names.extend(entry.map_err(error)?.file_name().into_string().ok().filter(|name| name.starts_with(tensorboard::NAME_PREFIX)));
        }
        Ok(names)
    }

    /// Makes room for a fresh start. Refuses when something is there, unless `delete_existing`.
    pub fn clear(&self, delete_existing: bool) -> Result<(), RunFolderError> {
        let checkpoints = self.store.list()?;
        let files = self.own_files()?;
        if checkpoints.is_empty() && files.is_empty() {
            return Ok(());
        }
        if !delete_existing {
            return Err(RunFolderError::NotEmpty { uri: self.store.uri().to_owned(), found: describe(&checkpoints, &files) });
        }
        for CheckpointEntry { id, .. } in checkpoints {
            self.store.remove(id)?;
        }
        for file in files {
            fs::remove_file(&file).map_err(|source| RunFolderError::File { path: file, source })?;
        }
        Ok(())
    }

    /// Sends the files to the object store, in the background; nothing for a local folder. One upload at a time: when the last one is not
    /// through, this one is left out, since the next takes everything along anyway. Whether the files are on their way or need not be.
    pub fn upload(&mut self, files: &[PathBuf]) -> bool {
        let Some(upload) = &mut self.upload else { return true };
        if upload.under_way.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return false;
        }
        let (store, files, problem) = (self.store.clone(), files.to_vec(), Arc::clone(&upload.problem));
        upload.under_way = Some(thread::spawn(move || {
            let result = send(&store, &files);
            if let Err(reason) = &result {
                tracing::warn!(reason, "metrics not uploaded; tried again after the next checkpoint");
            }
            *problem.lock().unwrap_or_else(PoisonError::into_inner) = result.err();
        }));
        true
    }

    /// Sends the files and waits for it. Gives the reason when they did not arrive.
    pub fn finish_upload(&mut self, files: &[PathBuf]) -> Result<(), String> {
        self.wait_for_upload();
        self.upload(files);
        self.wait_for_upload();
        let Some(upload) = &self.upload else { return Ok(()) };
        upload.problem.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
    }

    fn wait_for_upload(&mut self) {
        if let Some(thread) = self.upload.as_mut().and_then(|upload| upload.under_way.take()) {
            // A panic there was printed; it has nothing to give back.
            let _ = thread.join();
        }
    }

    fn own_files(&self) -> Result<Vec<PathBuf>, RunFolderError> {
        let error = |source| RunFolderError::File { path: self.path.clone(), source };
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(error)? {
            let entry = entry.map_err(error)?;
            let name = entry.file_name();
            if OWN_PREFIXES.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
                files.push(entry.path());
            }
        }
        files.sort();
        Ok(files)
    }
}

/// The folder that a `file://` URI names; `None` for other URIs.
pub fn local_path(uri: &str) -> Result<Option<PathBuf>, RunFolderError> {
    let not_local = || RunFolderError::NotLocal { uri: uri.to_owned() };
    match Url::parse(uri) {
        Ok(url) if url.scheme() == "file" => url.to_file_path().map(Some).map_err(|()| not_local()),
        _ => Ok(None),
    }
}

fn lock(folder: &Path) -> Result<Option<File>, RunFolderError> {
    let path = folder.join(LOCK_FILE);
    let error = |source| RunFolderError::File { path: path.clone(), source };
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(error)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(RunFolderError::InUse { path: folder.to_owned() }),
        Err(TryLockError::Error(error)) if VolumeFault::of(&error) == VolumeFault::Unsupported => {
            tracing::warn!(
                folder = %folder.display(), volume = %Volume::of(folder), %error,
                "this volume has no locks: take care that one process trains there"
            );
            Ok(None)
        }
        Err(TryLockError::Error(source)) => Err(error(source)),
    }
}

fn send(store: &CheckpointStore, files: &[PathBuf]) -> Result<(), String> {
    for path in files {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let bytes = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        store.write_file(&name, Bytes::from(bytes)).map_err(|error| format!("{name}: {}", crate::chain(&error)))?;
    }
    Ok(())
}

fn describe(checkpoints: &[CheckpointEntry], files: &[PathBuf]) -> String {
    let mut parts = Vec::new();
    if !checkpoints.is_empty() {
        parts.push(format!("{} checkpoints", checkpoints.len()));
    }
    if let Some(first) = files.first() {
        parts.push(format!("{} files such as {}", files.len(), first.display()));
    }
    parts.join(" and ")
}

#[cfg(test)]
mod tests {
    use object_store::{ObjectStore, memory::InMemory};

    use super::*;

    fn uri(folder: &TempDir) -> String {
        Url::from_file_path(folder.path()).unwrap().to_string()
    }

    #[test]
    fn a_second_process_is_kept_out_until_the_first_ends() {
        let folder = TempDir::new().unwrap();
        let first = RunFolder::open(&uri(&folder)).unwrap();
        let error = RunFolder::open(&uri(&folder)).unwrap_err();
        assert!(matches!(error, RunFolderError::InUse { .. }), "{error}");
        drop(first);
        RunFolder::open(&uri(&folder)).unwrap();
    }

    #[test]
    fn files_of_an_object_store_are_fetched_and_sent_back() {
        let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let open = || {
            let store = CheckpointStore::from_object_store("memory", Arc::clone(&objects), u64::MAX).unwrap();
            RunFolder::on_object_store(store).unwrap()
        };
        let mut first = open();
        let metrics = first.path().join(journal::METRICS_FILE);
        assert!(!metrics.exists());
        for text in ["one line", "one line, two lines"] {
            fs::write(&metrics, text).unwrap();
            first.finish_upload(std::slice::from_ref(&metrics)).unwrap();
        }
        let second = open();
        assert_ne!(first.path(), second.path());
        assert_eq!(fs::read_to_string(second.path().join(journal::METRICS_FILE)).unwrap(), "one line, two lines");
        let missing = first.path().join("missing");
        assert!(first.finish_upload(&[missing]).is_err());
        let temporary = second.path().to_owned();
        drop(second);
        assert!(!temporary.exists(), "the temporary folder stays");
    }

    #[test]
    fn the_event_files_of_a_run_are_those_in_its_folder_and_those_that_were_sent_to_its_object_store() {
        let event_file = "events.out.tfevents.1700000000.host.1";
        let folder = TempDir::new().unwrap();
        let local = RunFolder::open(&uri(&folder)).unwrap();
        let store = CheckpointStore::from_object_store("memory", Arc::new(InMemory::new()), u64::MAX).unwrap();
        let mut remote = RunFolder::on_object_store(store.clone()).unwrap();
        for run in [&local, &remote] {
            assert_eq!(run.event_files().unwrap(), [""; 0]);
            for name in [event_file, "metrics.jsonl"] {
                fs::write(run.path().join(name), "x").unwrap();
            }
        }
        remote.finish_upload(&[remote.path().join(event_file), remote.path().join("metrics.jsonl")]).unwrap();
        // Another process finds them, too.
        for run in [local, RunFolder::on_object_store(store).unwrap()] {
            assert_eq!(run.event_files().unwrap(), [event_file]);
        }
    }

    #[test]
    fn a_fresh_start_removes_only_the_runs_own_files_and_only_when_told() {
        let folder = TempDir::new().unwrap();
        let run = RunFolder::open(&uri(&folder)).unwrap();
        run.clear(false).unwrap();
        for name in ["metrics.jsonl", "events.out.tfevents.1.host.2", "notes.txt"] {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        let error = run.clear(false).unwrap_err();
        assert!(matches!(&error, RunFolderError::NotEmpty { found, .. } if found.starts_with("2 files")), "{error}");
        assert!(folder.path().join("metrics.jsonl").exists());
        run.clear(true).unwrap();
        assert!(folder.path().join("notes.txt").exists());
        assert!(!folder.path().join("metrics.jsonl").exists());
    }
}
