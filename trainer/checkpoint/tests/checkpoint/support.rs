//! States to save, stores to save them in, and a store that stops or fails where a test wants it to.

use std::{
    fmt,
    ops::Range,
    path::{Path as FilePath, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream::BoxStream};
use lcl_checkpoint::{
    CheckpointId, CheckpointStore, CheckpointWriter, Committed, Dtype, Generation, Restored, Snapshot, StoreOptions, TensorData,
    WriteError, WriterOptions, restore_latest,
};
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, RenameOptions, Result, path::Path,
};

pub(crate) fn generation(epoch: u64) -> Generation {
    Generation { epoch, n: 0 }
}

pub(crate) fn id(step: u64, epoch: u64) -> CheckpointId {
    CheckpointId { step, generation: generation(epoch) }
}

/// Elements that only this seed has.
pub(crate) fn elements(seed: &str, bytes: usize) -> Bytes {
    let mut data = vec![0; bytes];
    blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut data);
    data.into()
}

/// The state after a step: `tensors` matrices of `rows` × 64 float32 and a counter, different at every step.
pub(crate) fn state(step: u64, tensors: usize, rows: usize) -> Vec<TensorData> {
    let matrix = |index| TensorData {
        name: format!("model.layer{index}.weight"),
        shape: vec![rows, 64],
        dtype: Dtype::F32,
        data: elements(&format!("{step}/{index}"), rows * 64 * 4),
    };
    let counter = TensorData { name: "counter".into(), shape: vec![], dtype: Dtype::I64, data: Bytes::from(step.to_le_bytes().to_vec()) };
    (0..tensors).map(matrix).chain([counter]).collect()
}

pub(crate) fn snapshot(step: u64, epoch: u64, tensors: Vec<TensorData>) -> Snapshot {
    Snapshot {
        step,
        generation: generation(epoch),
        config_digest: "digest of the configuration".into(),
        metadata: serde_json::json!({ "samples": step * 64, "name": "pässe" }),
        tensors,
    }
}

/// A store in a new folder, with its folder. Synced, as users have it, unless the test is about something else.
pub(crate) struct Folder {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) store: CheckpointStore,
}

pub(crate) fn folder() -> Folder {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), true);
    Folder { folder, store }
}

pub(crate) fn open(path: &FilePath, fsync: bool) -> CheckpointStore {
    let uri = url::Url::from_directory_path(path).unwrap();
    CheckpointStore::open(uri.as_str(), StoreOptions { fsync, create: true }).unwrap()
}

impl Folder {
    pub(crate) fn path(&self, id: CheckpointId, file: &str) -> PathBuf {
        self.folder.path().join(id.to_string()).join(file)
    }
}

/// Writes one checkpoint of three shards and waits for it.
pub(crate) fn write(store: &CheckpointStore, snapshot: Snapshot) -> std::result::Result<Committed, WriteError> {
    let shards = std::num::NonZeroUsize::new(3);
    let mut writer = CheckpointWriter::new(store.clone(), WriterOptions { shards, ..WriterOptions::default() });
    writer.submit(snapshot).unwrap();
    writer.wait().unwrap()
}

pub(crate) fn latest(store: &CheckpointStore) -> Restored {
    restore_latest(store, None).unwrap().unwrap()
}

/// What an [`Watched`] store is asked for, with the last two segments of the path. Named in messages as `put step-…/shard-…`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    BeforePut,
    AfterPut,
    BeforeDelete,
    AfterDelete,
}

type Hook = dyn Fn(Moment, &str) -> Result<()> + Send + Sync;

/// An object store that calls a hook around every change; the hook may fail the operation or never return.
pub(crate) struct Watched {
    inner: Arc<dyn ObjectStore>,
    hook: Arc<Hook>,
}

impl Watched {
    pub(crate) fn over(store: &CheckpointStore, hook: impl Fn(Moment, &str) -> Result<()> + Send + Sync + 'static) -> CheckpointStore {
        store.wrapped(|inner| Arc::new(Self { inner, hook: Arc::new(hook) })).unwrap()
    }
}

/// The error of a full disk.
pub(crate) fn no_space() -> object_store::Error {
    object_store::Error::Generic { store: "test", source: Box::new(std::io::Error::from(std::io::ErrorKind::StorageFull)) }
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Watched({})", self.inner)
    }
}

impl fmt::Display for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[async_trait]
impl ObjectStore for Watched {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        (self.hook)(Moment::BeforePut, location.as_ref())?;
        let result = self.inner.put_opts(location, payload, options).await?;
        (self.hook)(Moment::AfterPut, location.as_ref())?;
        Ok(result)
    }

    async fn put_multipart_opts(&self, location: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        (self.hook)(Moment::BeforePut, location.as_ref())?;
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (before, after) = (Arc::clone(&self.hook), Arc::clone(&self.hook));
        let watched = locations.map(move |location| {
            let location = location?;
            before(Moment::BeforeDelete, location.as_ref())?;
            Ok(location)
        });
        let deleted = self.inner.delete_stream(watched.boxed());
        deleted
            .map(move |location| {
                let location = location?;
                after(Moment::AfterDelete, location.as_ref())?;
                Ok(location)
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.inner.rename_opts(from, to, options).await
    }
}
