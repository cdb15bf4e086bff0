//! The folder of a run: where checkpoints, `metrics.jsonl` and event files lie, and who may write there.
//!
//! Comes in: the checkpoint URI. Goes out: the open [`CheckpointStore`] and a folder on this machine for the files that are appended to.
//! For `file://` that is the run's own folder, locked against a second process; for an object store it is a temporary one whose files are
//! fetched at the start and uploaded now and then, at least with every checkpoint.

use std::{
    collections::BTreeSet,
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

use crate::run::{
    journal::{
        self, Journal, JournalError, Opened,
        segments::{self, Segment},
    },
    tensorboard,
};

/// Held by the process that trains in the folder.
const LOCK_FILE: &str = ".lock";

/// What a run's files other than checkpoints are called; `--fresh --delete-existing` removes these and no others.
const OWN_PREFIXES: [&str; 4] = [journal::METRICS_FILE, segments::BEGINNING, journal::RUN_FILE, tensorboard::NAME_PREFIX];

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

/// A run's journal cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenJournalError {
    /// Its folder cannot be used.
    #[error(transparent)]
    Folder(#[from] RunFolderError),
    /// Its files cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
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
    /// Segments of the store.
    segments: Vec<Segment>,
    /// Names of the closed files that it has.
    sent: Arc<Mutex<BTreeSet<String>>>,
    /// Why the last upload failed.
    problem: Arc<Mutex<Option<String>>>,
}

/// A run's files, to be sent to an object store.
#[derive(Clone, Debug, Default)]
pub struct ToSend {
    /// Nobody writes them any more: each goes once.
    pub closed: Vec<PathBuf>,
    /// They grow, and go as they are now, after the others.
    pub open: Vec<PathBuf>,
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
        let segments = segments::among(store.file_names(segments::BEGINNING)?);
        let upload = Upload { _folder: folder, under_way: None, segments, sent: Arc::default(), problem: Arc::default() };
        Ok(Self { store, path, _lock: None, upload: Some(upload) })
    }

    /// Opens the journal of a run that has `completed_steps` steps. Of an object store only the segments are fetched that have lines of later
    /// steps, and they are removed there, since their lines stand in the open file then.
    pub fn open_journal(&mut self, completed_steps: u64) -> Result<(Journal, Opened), OpenJournalError> {
        let Some(upload) = &self.upload else { return Ok(Journal::open(&self.path, completed_steps)?) };
        let cut: Vec<&Segment> = upload.segments.iter().filter(|segment| segment.steps.end > completed_steps).collect();
        for segment in &cut {
            if let Some(bytes) = self.store.read_file(&segment.name).map_err(RunFolderError::from)? {
                let file = self.path.join(&segment.name);
                fs::write(&file, bytes).map_err(|source| RunFolderError::File { path: file, source })?;
            }
        }
        let opened = Journal::open_after(&self.path, completed_steps, upload.segments.clone())?;
        if !cut.is_empty() {
            let metrics = self.path.join(journal::METRICS_FILE);
            let sent = send(&self.store, &ToSend { closed: Vec::new(), open: vec![metrics.clone()] }, &upload.sent);
            sent.map_err(|reason| RunFolderError::File { path: metrics, source: io::Error::other(reason) })?;
        }
        for segment in cut {
            self.store.remove_file(&segment.name).map_err(RunFolderError::from)?;
        }
        Ok(opened)
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
    pub fn upload(&mut self, files: &ToSend) -> bool {
        let Some(upload) = &mut self.upload else { return true };
        if upload.under_way.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return false;
        }
        let (store, files) = (self.store.clone(), files.clone());
        let (sent, problem) = (Arc::clone(&upload.sent), Arc::clone(&upload.problem));
        upload.under_way = Some(thread::spawn(move || {
            let result = send(&store, &files, &sent);
            if let Err(reason) = &result {
                tracing::warn!(reason, "metrics not uploaded; tried again after the next checkpoint");
            }
            *problem.lock().unwrap_or_else(PoisonError::into_inner) = result.err();
        }));
        true
    }

    /// Sends the files and waits for it. Gives the reason when they did not arrive.
    pub fn finish_upload(&mut self, files: &ToSend) -> Result<(), String> {
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

/// Closed files first: a reader in between finds lines twice rather than not at all.
fn send(store: &CheckpointStore, files: &ToSend, sent: &Mutex<BTreeSet<String>>) -> Result<(), String> {
    let is_sent = |name: &String| sent.lock().unwrap_or_else(PoisonError::into_inner).contains(name);
    let name_of = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let put = |path: &PathBuf, name: &str| -> Result<(), String> {
        let bytes = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        store.write_file(name, Bytes::from(bytes)).map_err(|error| format!("{name}: {}", crate::chain(&error)))
    };
    for path in &files.closed {
        let name = name_of(path);
        if !is_sent(&name) {
            put(path, &name)?;
            sent.lock().unwrap_or_else(PoisonError::into_inner).insert(name);
        }
    }
    files.open.iter().try_for_each(|path| put(path, &name_of(path)))
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
    use crate::run::records::tests::step_record;

    fn uri(folder: &TempDir) -> String {
        Url::from_file_path(folder.path()).unwrap().to_string()
    }

    fn open_file(path: PathBuf) -> ToSend {
        ToSend { closed: Vec::new(), open: vec![path] }
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
            first.finish_upload(&open_file(metrics.clone())).unwrap();
        }
        let second = open();
        assert_ne!(first.path(), second.path());
        assert_eq!(fs::read_to_string(second.path().join(journal::METRICS_FILE)).unwrap(), "one line, two lines");
        let missing = first.path().join("missing");
        assert!(first.finish_upload(&open_file(missing)).is_err());
        let temporary = second.path().to_owned();
        drop(second);
        assert!(!temporary.exists(), "the temporary folder stays");
    }

    #[test]
    fn a_closed_file_goes_to_an_object_store_once_and_is_fetched_only_by_a_run_that_goes_back_beyond_it() {
        let store = CheckpointStore::from_object_store("memory", Arc::new(InMemory::new()), u64::MAX).unwrap();
        let open = || RunFolder::on_object_store(store.clone()).unwrap();
        let line = |step: u64| serde_json::to_string(&step_record(step)).unwrap() + "\n";
        let mut first = open();
        let (segment, metrics) = (first.path().join(Segment::new(0..2).name), first.path().join(journal::METRICS_FILE));
        fs::write(&segment, line(0) + &line(1)).unwrap();
        fs::write(&metrics, line(2) + &line(3)).unwrap();
        let files = ToSend { closed: vec![segment.clone()], open: vec![metrics] };
        first.finish_upload(&files).unwrap();
        // It is not read again: it went before.
        fs::remove_file(&segment).unwrap();
        first.finish_upload(&files).unwrap();

        let mut second = open();
        let (_, opened) = second.open_journal(3).unwrap();
        assert_eq!(opened, Opened { superseded: 1, broken: 0, missing: 0, end: 3 });
        assert!(!second.path().join(Segment::new(0..2).name).exists());
        let mut back = open();
        let (_, opened) = back.open_journal(1).unwrap();
        assert_eq!(opened, Opened { superseded: 3, broken: 0, missing: 0, end: 1 });
        assert_eq!(store.file_names("metrics").unwrap(), [journal::METRICS_FILE]);
        assert_eq!(store.read_file(journal::METRICS_FILE).unwrap().as_deref(), Some(line(0).as_bytes()));
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
        let files = ToSend { closed: vec![remote.path().join(event_file)], open: vec![remote.path().join("metrics.jsonl")] };
        remote.finish_upload(&files).unwrap();
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
