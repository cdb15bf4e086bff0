//! The folders of a store: listing them, reading what makes one a checkpoint, removing them, and the claims of epochs beside them.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::{ObjectStoreExt, PutMode, PutOptions, PutPayload, path::Path};

use super::{CheckpointStore, LocalFolder, StoreError, blocking};
use crate::{
    id::{CheckpointId, MANIFEST_FILE},
    manifest::{MANIFEST_BYTES_LIMIT, Manifest, ManifestError},
    volume::{sync_folder, while_away_async},
};

/// Requests under way at once when many small ones are needed (is there a manifest?). Enough to hide a network's latency.
const PARALLEL_REQUESTS: usize = 16;

/// Folder of the markers by which runs claim their epoch.
const EPOCH_FOLDER: &str = "epochs";

/// A folder with a checkpoint's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointEntry {
    /// Which.
    pub id: CheckpointId,
    /// It has a manifest. Without one it is being written or was abandoned.
    pub complete: bool,
}

impl CheckpointStore {
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
            let names = while_away_async(|| {
                let path = path.clone();
                blocking(move || std::fs::read_dir(path)?.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<Vec<_>>>())
            });
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

fn ignore_missing(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
