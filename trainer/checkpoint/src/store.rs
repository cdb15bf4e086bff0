//! Where checkpoints lie: an object store, a folder in it, and the threads that talk to it.
//!
//! All public operations block the calling thread, which may be any thread, inside an async runtime or not; the work runs on the
//! store's own small runtime.

mod error;
mod folder;
mod folders;
mod probe;

use std::{
    fmt,
    future::Future,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
};

use lcl_objects::{OpenError, Patience};
use object_store::{ObjectStore, path::Path};
use tokio::runtime::Runtime;
use url::Url;

use self::folder::FolderObjects;
pub use self::{error::StoreError, folders::CheckpointEntry};
use crate::{
    id::CheckpointId,
    volume::{create_folder, while_away},
};

/// Threads that drive requests, encryption of network traffic included. Reading, writing and hashing run on the blocking pool, as many
/// at once as each operation allows itself.
const WORKER_THREADS: usize = 2;

/// On object stores a shard above this is uploaded in parts. S3 allows 5 GiB in one request; a request of this size is retried whole.
const SINGLE_PUT_LIMIT: u64 = 64 << 20;

/// How to open a store.
#[derive(Clone, Copy, Debug)]
pub struct StoreOptions {
    /// `file://` only: have every file and folder entry on stable storage before a write counts. Without it a checkpoint survives the
    /// death of the process, but may be lost or damaged (and then found out by its checksum) when the machine loses power.
    pub fsync: bool,
    /// `file://` only: create the folder when it is not there.
    pub create: bool,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { fsync: true, create: true }
    }
}

/// Where checkpoints lie. Clones share threads and connections.
#[derive(Clone)]
pub struct CheckpointStore {
    inner: Arc<Inner>,
}

struct Inner {
    uri: String,
    objects: Arc<dyn ObjectStore>,
    prefix: Path,
    /// The folder on this machine, for what an object store's interface cannot do: remove folders and sync them.
    local: Option<LocalFolder>,
    single_put_limit: u64,
    runtime: Option<Runtime>,
    /// Bytes of shards that were read.
    read: AtomicU64,
}

#[derive(Clone, Debug)]
struct LocalFolder {
    path: PathBuf,
    fsync: bool,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Dropping a runtime waits, which is not allowed on a thread that runs async code; nothing is left to wait for here, since
        // every operation holds a clone of the store until it is through.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for CheckpointStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CheckpointStore({})", self.inner.uri)
    }
}

impl CheckpointStore {
    /// Opens `file://`, `s3://bucket/folder`, `gs://bucket/folder` or `az://container/folder`.
    ///
    /// Credentials and endpoints of cloud stores come from the environment: `AWS_*`, `GOOGLE_*`, `AZURE_*` as `object_store` reads
    /// them. Nothing is contacted yet.
    pub fn open(uri: &str, options: StoreOptions) -> Result<Self, StoreError> {
        let problem = |problem: String| StoreError::Uri { uri: uri.to_owned(), problem };
        let url = Url::parse(uri).map_err(|error| problem(format!("{error}: write a URI such as file:///runs/a or s3://bucket/a")))?;
        if url.scheme() == "file" {
            return Self::open_folder(uri, &url, options);
        }
        if !matches!(url.scheme(), "s3" | "gs" | "az") {
            return Err(problem(format!("scheme `{}` is not supported: use file, s3, gs or az", url.scheme())));
        }
        let (objects, prefix) = lcl_objects::open_store(uri, Patience::Library).map_err(|error| match error {
            OpenError::Uri { problem: text } => problem(text),
            OpenError::Access { variables, source } => StoreError::Access { uri: uri.to_owned(), variables, source },
        })?;
        Self::new(Inner {
            uri: uri.to_owned(),
            objects,
            prefix,
            local: None,
            single_put_limit: SINGLE_PUT_LIMIT,
            runtime: None,
            read: AtomicU64::new(0),
        })
    }

    fn open_folder(uri: &str, url: &Url, options: StoreOptions) -> Result<Self, StoreError> {
        let path = url.to_file_path().map_err(|()| StoreError::Uri {
            uri: uri.to_owned(),
            problem: "a file URI has an absolute path and no host: write file:///folder".to_owned(),
        })?;
        let folder = |source| StoreError::Folder { uri: uri.to_owned(), folder: path.clone(), source };
        if options.create {
            while_away(|| if path.try_exists()? { Ok(()) } else { create_folder(&path, options.fsync) }).map_err(folder)?;
        }
        // The real path, so that a symbolic link that is turned elsewhere later does not split a run.
        let path = while_away(|| path.canonicalize()).map_err(folder)?;
        if !while_away(|| path.metadata()).map_err(folder)?.is_dir() {
            return Err(StoreError::Folder { uri: uri.to_owned(), folder: path, source: std::io::ErrorKind::NotADirectory.into() });
        }
        let objects = FolderObjects::new(&path, options.fsync).map_err(|source| StoreError::List { uri: uri.to_owned(), source })?;
        Self::new(Inner {
            uri: uri.to_owned(),
            objects: Arc::new(objects),
            prefix: Path::default(),
            local: Some(LocalFolder { path, fsync: options.fsync }),
            // Local files are written in one go: conditionally, and straight from the caller's memory.
            single_put_limit: u64::MAX,
            read: AtomicU64::new(0),
            runtime: None,
        })
    }

    /// A store over any object store, for example one that a test has wrapped. `uri` is what messages call it; objects above
    /// `single_put_limit` bytes are written in parts.
    pub fn from_object_store(uri: &str, objects: Arc<dyn ObjectStore>, single_put_limit: u64) -> Result<Self, StoreError> {
        let prefix = Path::default();
        Self::new(Inner { uri: uri.to_owned(), objects, prefix, local: None, single_put_limit, runtime: None, read: AtomicU64::new(0) })
    }

    /// The same store with its object store wrapped, for example to limit or to watch what is asked of it.
    pub fn wrapped(&self, wrap: impl FnOnce(Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore>) -> Result<Self, StoreError> {
        let Inner { uri, objects, prefix, local, single_put_limit, .. } = &*self.inner;
        Self::new(Inner {
            uri: uri.clone(),
            objects: wrap(Arc::clone(objects)),
            prefix: prefix.clone(),
            local: local.clone(),
            single_put_limit: *single_put_limit,
            read: AtomicU64::new(0),
            runtime: None,
        })
    }

    fn new(mut inner: Inner) -> Result<Self, StoreError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKER_THREADS)
            .enable_all()
            .thread_name("checkpoint")
            .build()
            .map_err(|source| StoreError::Runtime { source })?;
        inner.runtime = Some(runtime);
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Bytes of checkpoints' shards that were read through this store and its clones, those of damaged ones included: by how far it grows,
    /// whoever waits for a restore sees that it gets on.
    #[must_use]
    pub fn bytes_read(&self) -> u64 {
        self.inner.read.load(Ordering::Relaxed)
    }

    pub(crate) fn count_read(&self, bytes: usize) {
        self.inner.read.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// The URI it was opened with.
    #[must_use]
    pub fn uri(&self) -> &str {
        &self.inner.uri
    }

    /// Runs a future on the store's threads and waits for it. Works on any thread, those of an async runtime included.
    pub(crate) fn block_on<F>(&self, future: F) -> Result<F::Output, StoreError>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let stopped = || StoreError::Stopped { uri: self.inner.uri.clone() };
        self.spawn(future)?.recv().map_err(|mpsc::RecvError| stopped())
    }

    /// Starts a future on the store's threads. The result arrives in the channel; a channel without a sender means that it panicked.
    pub(crate) fn spawn<F>(&self, future: F) -> Result<mpsc::Receiver<F::Output>, StoreError>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let runtime = self.inner.runtime.as_ref().ok_or_else(|| StoreError::Stopped { uri: self.inner.uri.clone() })?;
        let (sender, receiver) = mpsc::sync_channel(1);
        runtime.spawn(async move {
            // The receiver may have lost interest.
            let _ = sender.send(future.await);
        });
        Ok(receiver)
    }

    pub(crate) fn objects(&self) -> &Arc<dyn ObjectStore> {
        &self.inner.objects
    }

    pub(crate) fn single_put_limit(&self) -> u64 {
        self.inner.single_put_limit
    }

    /// Whether it is a folder of this machine.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.inner.local.is_some()
    }

    pub(crate) fn prefix(&self) -> &Path {
        &self.inner.prefix
    }

    /// Path of a file beside the checkpoints.
    pub(crate) fn file(&self, name: &str) -> Path {
        self.inner.prefix.clone().join(name)
    }

    /// Path of a file in a checkpoint's folder.
    pub(crate) fn path(&self, id: CheckpointId, file: &str) -> Path {
        self.folder(id).join(file)
    }

    pub(crate) fn folder(&self, id: CheckpointId) -> Path {
        self.inner.prefix.clone().join(id.to_string())
    }
}

/// Runs blocking work on the runtime's blocking pool.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> std::io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(std::io::Error::other(error)),
    }
}
