//! Where checkpoints lie: an object store, a folder in it, and the threads that talk to it.
//!
//! All public operations block the calling thread, which may be any thread, inside an async runtime or not; the work runs on the
//! store's own small runtime.

use std::{
    collections::BTreeSet,
    fmt,
    future::Future,
    path::{Path as FilePath, PathBuf},
    sync::{Arc, mpsc},
};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::{
    ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, aws::AmazonS3Builder, azure::MicrosoftAzureBuilder,
    gcp::GoogleCloudStorageBuilder, local::LocalFileSystem, path::Path,
};
use tokio::runtime::Runtime;
use url::Url;

use crate::{
    id::{CheckpointId, MANIFEST_FILE},
    manifest::{MANIFEST_BYTES_LIMIT, Manifest, ManifestError},
    safetensors_file::sync_folder,
};

/// Requests under way at once when many small ones are needed (is there a manifest?). Enough to hide a network's latency.
const PARALLEL_REQUESTS: usize = 16;

/// Threads that drive requests, encryption of network traffic included. Reading, writing and hashing run on the blocking pool, as many
/// at once as each operation allows itself.
const WORKER_THREADS: usize = 2;

/// On object stores a shard above this is uploaded in parts. S3 allows 5 GiB in one request; a request of this size is retried whole.
const SINGLE_PUT_LIMIT: u64 = 64 << 20;

/// Folder of the markers by which runs claim their epoch.
const EPOCH_FOLDER: &str = "epochs";

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

/// The store could not be opened or answered with an error.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The URI cannot be understood.
    #[error("checkpoint URI `{uri}`: {problem}")]
    Uri {
        /// As it was given.
        uri: String,
        /// What is wrong and what to write instead.
        problem: String,
    },
    /// The local folder cannot be used.
    #[error("cannot open the checkpoint folder {} of `{uri}`", folder.display())]
    Folder {
        /// As it was given.
        uri: String,
        /// The folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The store's settings, which come from the environment, do not suffice.
    #[error("cannot set up access to `{uri}` from the environment's {variables} variables")]
    Access {
        /// As it was given.
        uri: String,
        /// Which variables were read.
        variables: &'static str,
        /// Why.
        #[source]
        source: object_store::Error,
    },
    /// The threads could not be started.
    #[error("cannot start the checkpoint store's threads")]
    Runtime {
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The threads ended before they answered.
    #[error("the checkpoint store's threads ended before the operation on `{uri}` was through")]
    Stopped {
        /// The store.
        uri: String,
    },
    /// Checkpoints could not be listed.
    #[error("cannot list the checkpoints in `{uri}`")]
    List {
        /// The store.
        uri: String,
        /// Why.
        #[source]
        source: object_store::Error,
    },
    /// Checkpoints could not be listed.
    #[error("cannot list the checkpoints in `{uri}`")]
    ListFolder {
        /// The store.
        uri: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file could not be read.
    #[error("cannot read {file} in `{uri}`")]
    Read {
        /// The store.
        uri: String,
        /// The file, relative to the store.
        file: String,
        /// Why.
        #[source]
        source: object_store::Error,
    },
    /// A file could not be written.
    #[error("cannot write {file} in `{uri}`")]
    Write {
        /// The store.
        uri: String,
        /// The file, relative to the store.
        file: String,
        /// Why.
        #[source]
        source: object_store::Error,
    },
    /// A manifest was read and cannot be believed.
    #[error("{id}/{MANIFEST_FILE} in `{uri}` is damaged")]
    Manifest {
        /// The store.
        uri: String,
        /// The checkpoint.
        id: CheckpointId,
        /// What is wrong.
        #[source]
        source: ManifestError,
    },
    /// A checkpoint could not be removed.
    #[error("cannot remove {id} from `{uri}`")]
    Remove {
        /// The store.
        uri: String,
        /// The checkpoint.
        id: CheckpointId,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No epoch could be claimed.
    #[error("cannot claim an epoch in `{uri}`")]
    Claim {
        /// The store.
        uri: String,
        /// Why.
        #[source]
        source: object_store::Error,
    },
}

/// A folder with a checkpoint's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointEntry {
    /// Which.
    pub id: CheckpointId,
    /// It has a manifest. Without one it is being written or was abandoned.
    pub complete: bool,
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
        if url.host_str().is_none_or(str::is_empty) {
            return Err(problem(format!("names no bucket: write {}://bucket/folder", url.scheme())));
        }
        let prefix = Path::from_url_path(url.path()).map_err(|error| problem(error.to_string()))?;
        use_ring_for_tls();
        let access = |variables| move |source| StoreError::Access { uri: uri.to_owned(), variables, source };
        let objects: Arc<dyn ObjectStore> = match url.scheme() {
            "s3" => Arc::new(AmazonS3Builder::from_env().with_url(uri).build().map_err(access("AWS_*"))?),
            "gs" => Arc::new(GoogleCloudStorageBuilder::from_env().with_url(uri).build().map_err(access("GOOGLE_*"))?),
            _ => Arc::new(MicrosoftAzureBuilder::from_env().with_url(uri).build().map_err(access("AZURE_*"))?),
        };
        Self::new(Inner { uri: uri.to_owned(), objects, prefix, local: None, single_put_limit: SINGLE_PUT_LIMIT, runtime: None })
    }

    fn open_folder(uri: &str, url: &Url, options: StoreOptions) -> Result<Self, StoreError> {
        let path = url.to_file_path().map_err(|()| StoreError::Uri {
            uri: uri.to_owned(),
            problem: "a file URI has an absolute path and no host: write file:///folder".to_owned(),
        })?;
        let folder = |source| StoreError::Folder { uri: uri.to_owned(), folder: path.clone(), source };
        if options.create && !path.exists() {
            create_folder(&path, options.fsync).map_err(folder)?;
        }
        // The real path, so that a symbolic link that is turned elsewhere later does not split a run.
        let path = path.canonicalize().map_err(folder)?;
        if !path.is_dir() {
            return Err(StoreError::Folder { uri: uri.to_owned(), folder: path, source: std::io::ErrorKind::NotADirectory.into() });
        }
        let objects = LocalFileSystem::new_with_prefix(&path)
            .map_err(|source| StoreError::List { uri: uri.to_owned(), source })?
            .with_fsync(options.fsync);
        Self::new(Inner {
            uri: uri.to_owned(),
            objects: Arc::new(objects),
            prefix: Path::default(),
            local: Some(LocalFolder { path, fsync: options.fsync }),
            // Local files are written in one go: conditionally, and straight from the caller's memory.
            single_put_limit: u64::MAX,
            runtime: None,
        })
    }

    /// A store over any object store, for example one that a test has wrapped. `uri` is what messages call it; objects above
    /// `single_put_limit` bytes are written in parts.
    pub fn from_object_store(uri: &str, objects: Arc<dyn ObjectStore>, single_put_limit: u64) -> Result<Self, StoreError> {
        let prefix = Path::default();
        Self::new(Inner { uri: uri.to_owned(), objects, prefix, local: None, single_put_limit, runtime: None })
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

    /// The URI it was opened with.
    #[must_use]
    pub fn uri(&self) -> &str {
        &self.inner.uri
    }

    /// Every folder with a checkpoint's name, the one that restore prefers first.
    pub fn list(&self) -> Result<Vec<CheckpointEntry>, StoreError> {
        let store = self.clone();
        self.block_on(async move { store.list_entries().await })?
    }

    /// What a checkpoint consists of, without reading its shards.
    pub fn manifest(&self, id: CheckpointId) -> Result<Manifest, StoreError> {
        let store = self.clone();
        self.block_on(async move { store.fetch_manifest(id).await })?
    }

    /// Removes a checkpoint or what is left of one, its manifest first, so that it never looks complete when it is not.
    pub fn remove(&self, id: CheckpointId) -> Result<(), StoreError> {
        let store = self.clone();
        self.block_on(async move { store.remove_folder(id).await })?
    }

    /// Claims an epoch that no run has had in this store: one more than the highest of all folders and claims, even when several
    /// processes claim at once. For runs without a coordinator that counts epochs elsewhere.
    pub fn claim_epoch(&self) -> Result<u64, StoreError> {
        let store = self.clone();
        self.block_on(async move { store.create_epoch_marker().await })?
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

    pub(crate) fn is_local(&self) -> bool {
        self.inner.local.is_some()
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

    pub(crate) async fn list_entries(&self) -> Result<Vec<CheckpointEntry>, StoreError> {
        let mut ids = self.list_folders().await?;
        ids.reverse();
        stream::iter(ids)
            .map(|id| async move {
                let complete = self.has_manifest(id).await?;
                Ok(CheckpointEntry { id, complete })
            })
            .buffered(PARALLEL_REQUESTS)
            .try_collect()
            .await
    }

    /// Ids of all folders with a checkpoint's name, ascending.
    pub(crate) async fn list_folders(&self) -> Result<Vec<CheckpointId>, StoreError> {
        let uri = || self.inner.uri.clone();
        let ids: BTreeSet<CheckpointId> = if let Some(LocalFolder { path, .. }) = self.inner.local.clone() {
            // Names alone. The object store's listing also asks for each folder's metadata and leaves out one that is removed in
            // between: with retention at work it could miss the old checkpoint and not yet have seen the new one.
            let names = blocking(move || std::fs::read_dir(path)?.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<Vec<_>>>());
            let names = names.await.map_err(|source| StoreError::ListFolder { uri: uri(), source })?;
            names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect()
        } else {
            let listing = self.inner.objects.list_with_delimiter(Some(&self.inner.prefix)).await;
            let listing = listing.map_err(|source| StoreError::List { uri: uri(), source })?;
            listing.common_prefixes.iter().filter_map(|path| path.filename()?.parse().ok()).collect()
        };
        Ok(ids.into_iter().collect())
    }

    pub(crate) async fn has_manifest(&self, id: CheckpointId) -> Result<bool, StoreError> {
        match self.inner.objects.head(&self.path(id, MANIFEST_FILE)).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(source) => Err(self.read_error(id, MANIFEST_FILE, source)),
        }
    }

    pub(crate) async fn fetch_manifest(&self, id: CheckpointId) -> Result<Manifest, StoreError> {
        let read_error = |source| self.read_error(id, MANIFEST_FILE, source);
        let answer = self.inner.objects.get(&self.path(id, MANIFEST_FILE)).await.map_err(read_error)?;
        let damaged = |source| StoreError::Manifest { uri: self.inner.uri.clone(), id, source };
        if answer.meta.size > MANIFEST_BYTES_LIMIT {
            let what = format!("it has {} bytes where at most {MANIFEST_BYTES_LIMIT} are expected", answer.meta.size);
            return Err(damaged(ManifestError::Inconsistent { what }));
        }
        let bytes = answer.bytes().await.map_err(read_error)?;
        Manifest::decode(&bytes, id).map_err(damaged)
    }

    fn read_error(&self, id: CheckpointId, file: &str, source: object_store::Error) -> StoreError {
        StoreError::Read { uri: self.inner.uri.clone(), file: format!("{id}/{file}"), source }
    }

    pub(crate) async fn remove_folder(&self, id: CheckpointId) -> Result<(), StoreError> {
        let result = async {
            self.delete_object(&self.path(id, MANIFEST_FILE)).await?;
            self.sync_local_folder(id).await?;
            let folder = self.folder(id);
            let files: Vec<Path> = self.inner.objects.list(Some(&folder)).map_ok(|object| object.location).try_collect().await?;
            for file in files {
                self.delete_object(&file).await?;
            }
            // A stale writer may have committed between the two: a manifest whose shards are gone must not stay.
            self.delete_object(&self.path(id, MANIFEST_FILE)).await?;
            self.remove_local_folder(id).await
        };
        let result: Result<(), Box<dyn std::error::Error + Send + Sync>> = result.await;
        result.map_err(|source| StoreError::Remove { uri: self.inner.uri.clone(), id, source })
    }

    /// Deletes an object; that somebody else was faster is no error.
    pub(crate) async fn delete_object(&self, path: &Path) -> Result<(), object_store::Error> {
        match self.inner.objects.delete(path).await {
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            other => other,
        }
    }

    /// Has the manifest's deletion on stable storage before the first shard goes.
    async fn sync_local_folder(&self, id: CheckpointId) -> std::io::Result<()> {
        let Some(LocalFolder { path, fsync: true }) = self.inner.local.clone() else { return Ok(()) };
        let folder = path.join(id.to_string());
        blocking(move || ignore_missing(sync_folder(&folder))).await
    }

    /// Removes the folder itself with what the object store's interface does not show: files that a killed writer began.
    async fn remove_local_folder(&self, id: CheckpointId) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let Some(LocalFolder { path, .. }) = self.inner.local.clone() else { return Ok(()) };
        let folder = path.join(id.to_string());
        Ok(blocking(move || ignore_missing(std::fs::remove_dir_all(&folder))).await?)
    }

    async fn create_epoch_marker(&self) -> Result<u64, StoreError> {
        let claim_error = |source| StoreError::Claim { uri: self.inner.uri.clone(), source };
        let folder = self.inner.prefix.clone().join(EPOCH_FOLDER);
        let markers = self.inner.objects.list_with_delimiter(Some(&folder)).await;
        let claimed = match markers {
            Ok(listing) => listing.objects.iter().filter_map(|object| object.location.filename()?.parse().ok()).max().unwrap_or(0),
            Err(object_store::Error::NotFound { .. }) => 0,
            Err(source) => return Err(claim_error(source)),
        };
        let written = self.list_folders().await?.iter().map(|id| id.generation.epoch).max().unwrap_or(0);
        let mut epoch: u64 = claimed.max(written);
        // Ends: every failed attempt means that another process has claimed that epoch just now.
        loop {
            epoch = epoch.saturating_add(1);
            match self.create_object(&folder.clone().join(format!("{epoch:06}")), Bytes::new()).await {
                Ok(()) => return Ok(epoch),
                Err(object_store::Error::AlreadyExists { .. }) if epoch < u64::MAX => {}
                Err(source) => return Err(claim_error(source)),
            }
        }
    }

    /// Writes a small object unless there is one of this name.
    pub(crate) async fn create_object(&self, path: &Path, bytes: Bytes) -> Result<(), object_store::Error> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        self.inner.objects.put_opts(path, PutPayload::from_bytes(bytes), options).await.map(drop)
    }
}

/// reqwest is built without a TLS of its own. A provider that the program has chosen before is kept.
fn use_ring_for_tls() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Runs blocking work on the runtime's blocking pool.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> std::io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(std::io::Error::other(error)),
    }
}

fn ignore_missing(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Creates a folder and all above it, each durable in the one above when `fsync` is asked for.
fn create_folder(path: &FilePath, fsync: bool) -> std::io::Result<()> {
    let missing: Vec<&FilePath> = path.ancestors().take_while(|ancestor| !ancestor.exists()).collect();
    std::fs::create_dir_all(path)?;
    if fsync {
        for folder in missing.iter().rev() {
            if let Some(above) = folder.parent() {
                sync_folder(above)?;
            }
        }
    }
    Ok(())
}
