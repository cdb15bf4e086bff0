//! Writing a checkpoint: shards first, in parallel, then the check that they are there, then the manifest.
//!
//! One process does all of it with [`write_checkpoint`]; members that share the work write their shards with
//! [`CheckpointStore::write_shards`], one of them collects the records and calls [`CheckpointStore::commit`].

mod error;
mod parts;

use std::{
    collections::{BTreeMap, HashMap},
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::{ObjectStoreExt, PutMode, PutOptions, PutPayload, path::Path};

pub use self::error::WriteError;
use self::parts::{PartError, hash_pieces, part_bytes, put_parts};
use crate::{
    id::{CheckpointId, MANIFEST_FILE, shard_file_name},
    manifest::{Manifest, ShardRecord, TensorRecord},
    plan::{default_shard_count, plan_shards},
    safetensors_file::pieces,
    store::CheckpointStore,
    tensor::{Snapshot, TensorData, TensorSpec, validate},
};

/// A part of a checkpoint for one process to write.
#[derive(Debug)]
pub struct ShardJob {
    /// The checkpoint.
    pub id: CheckpointId,
    /// Shards of the whole checkpoint.
    pub count: usize,
    /// Index and tensors of each shard to write.
    pub shards: Vec<(usize, Vec<TensorData>)>,
    /// Shards under way at once; each keeps at most one thread busy.
    pub parallel: NonZeroUsize,
}

impl CheckpointStore {
    /// Writes shards and returns their records in the order given. The folder does not count as a checkpoint yet.
    pub fn write_shards(&self, job: ShardJob) -> Result<Vec<ShardRecord>, WriteError> {
        let (store, id) = (self.clone(), job.id);
        self.block_on(async move { put_shards(&store, job).await }).map_err(|source| WriteError::Store { id, source: Box::new(source) })?
    }

    /// Makes written shards a checkpoint: checks that every one is there with its size, then creates the manifest.
    ///
    /// To be called by one member with the records of all, after all have written.
    pub fn commit(&self, manifest: &Manifest) -> Result<(), WriteError> {
        let (store, id, manifest) = (self.clone(), manifest.id(), manifest.clone());
        self.block_on(async move { put_manifest(&store, &manifest).await })
            .map_err(|source| WriteError::Store { id, source: Box::new(source) })?
    }
}

/// Writes a whole checkpoint. On return the snapshot's memory is free again, whether it succeeded or not; on an error everything
/// written is removed, unless another writer was met there. No object is ever overwritten.
pub(crate) async fn write_checkpoint(
    store: &CheckpointStore,
    snapshot: Snapshot,
    shard_count: Option<NonZeroUsize>,
    parallel: NonZeroUsize,
) -> Result<Manifest, WriteError> {
    let id = snapshot.id();
    validate(&snapshot.tensors).map_err(|source| WriteError::Tensors { id, source })?;
    refuse_if_committed(store, id).await?;
    let result = write_and_commit(store, snapshot, shard_count, parallel).await;
    // Where another writer was met, what lies there is theirs.
    let is_ours = |error: &WriteError| {
        !matches!(error, WriteError::AlreadyCommitted { .. } | WriteError::Contested { .. } | WriteError::ShardChanged { .. })
    };
    if let Err(error) = &result
        && is_ours(error)
        && let Err(error) = store.remove_folder(id).await
    {
        tracing::warn!(checkpoint = %id, error = %describe(&error), "what was written of a failed checkpoint could not be removed");
    }
    result
}

async fn write_and_commit(
    store: &CheckpointStore,
    snapshot: Snapshot,
    shard_count: Option<NonZeroUsize>,
    parallel: NonZeroUsize,
) -> Result<Manifest, WriteError> {
    let id = snapshot.id();
    let specs: Vec<TensorSpec> = snapshot.tensors.iter().map(TensorData::spec).collect();
    let total = snapshot.tensors.iter().map(|tensor| tensor.data.len() as u64).sum();
    let plan = plan_shards(&specs, shard_count.map_or_else(|| default_shard_count(total), NonZeroUsize::get));

    let place: HashMap<usize, usize> =
        plan.iter().enumerate().flat_map(|(shard, tensors)| tensors.iter().map(move |&tensor| (tensor, shard))).collect();
    let shards = plan
        .iter()
        .map(|tensors| tensors.iter().filter_map(|&tensor| snapshot.tensors.get(tensor).cloned()).collect())
        .enumerate()
        .collect();
    let Snapshot { step, generation, config_digest, metadata, tensors } = snapshot;
    // The shards hold the elements now, and let go of them one by one.
    drop(tensors);
    let records = put_shards(store, ShardJob { id, count: plan.len(), shards, parallel }).await?;

    let tensors = specs
        .into_iter()
        .enumerate()
        .map(|(index, TensorSpec { name, shape, dtype })| TensorRecord {
            name,
            shape,
            dtype,
            shard: place.get(&index).copied().unwrap_or(0),
        })
        .collect();
    let manifest = Manifest { step, generation, config_digest, metadata, shards: records, tensors };
    put_manifest(store, &manifest).await?;
    Ok(manifest)
}

async fn put_shards(store: &CheckpointStore, job: ShardJob) -> Result<Vec<ShardRecord>, WriteError> {
    let ShardJob { id, count, shards, parallel } = job;
    let failed = Arc::new(AtomicBool::new(false));
    // Every shard is waited for even when one fails: one that is still under way would create its file after the folder was removed.
    let results: Vec<Result<ShardRecord, WriteError>> = stream::iter(shards)
        .map(|(index, tensors)| {
            let failed = Arc::clone(&failed);
            async move {
                let file = shard_file_name(index, count);
                if failed.load(Ordering::Relaxed) {
                    return Err(WriteError::Cancelled { id, file });
                }
                let result = put_shard(store, id, file, tensors).await;
                failed.fetch_or(result.is_err(), Ordering::Relaxed);
                result
            }
        })
        .buffered(parallel.get())
        .collect()
        .await;
    // The cause rather than its consequence.
    let (records, mut errors) = results.into_iter().fold((Vec::new(), Vec::new()), |(mut records, mut errors), result| {
        match result {
            Ok(record) => records.push(record),
            Err(error) => errors.push(error),
        }
        (records, errors)
    });
    errors.sort_by_key(|error| matches!(error, WriteError::Cancelled { .. }));
    errors.into_iter().next().map_or(Ok(records), Err)
}

async fn put_shard(store: &CheckpointStore, id: CheckpointId, file: String, tensors: Vec<TensorData>) -> Result<ShardRecord, WriteError> {
    // For whoever finds the file alone.
    let about = BTreeMap::from([("checkpoint".to_owned(), id.to_string())]);
    let pieces = pieces(&tensors, &about).map_err(|bytes| WriteError::HeaderTooLarge { id, file: file.clone(), bytes })?;
    drop(tensors);
    let length = pieces.iter().map(|piece| piece.len() as u64).sum();
    let path = store.path(id, &file);
    let put_error = |source| WriteError::Put { id, file: file.clone(), uri: store.uri().to_owned(), source: Box::new(source) };
    let hash_error = |source| WriteError::Hash { id, file: file.clone(), source };

    let hash = if length <= store.single_put_limit() {
        let (hash, pieces) = hash_pieces(blake3::Hasher::new(), pieces).await.map_err(hash_error)?;
        let payload: PutPayload = pieces.into_iter().collect();
        match create(store, &path, payload.clone()).await {
            // A request that was answered too late is repeated by the client, and then meets its own object.
            Err(object_store::Error::AlreadyExists { .. }) => {
                if fetch_hash(store, &path).await.map_err(put_error)? != hash.finalize() {
                    return Err(WriteError::Contested { id, file });
                }
            }
            other => other.map_err(put_error)?,
        }
        hash
    } else {
        let mut upload = store.objects().put_multipart(&path).await.map_err(put_error)?;
        match put_parts(&mut *upload, pieces, part_bytes(length, store.single_put_limit())).await {
            Ok(hash) => {
                // Uploads in parts cannot be made conditional; this narrows the gap in which a second writer of the same step and
                // generation could replace a committed shard. Writers of different generations never meet.
                refuse_if_committed(store, id).await?;
                upload.complete().await.map_err(put_error)?;
                hash
            }
            Err(error) => {
                // The upload's parts cost money until they are given up; the first error is the one to report.
                let _ = upload.abort().await;
                return Err(match error {
                    PartError::Hash(source) => hash_error(source),
                    PartError::Put(source) => put_error(source),
                });
            }
        }
    };
    Ok(ShardRecord { file, bytes: length, blake3: hash.finalize().to_hex().to_string() })
}

async fn fetch_hash(store: &CheckpointStore, path: &Path) -> Result<blake3::Hash, object_store::Error> {
    let mut hasher = blake3::Hasher::new();
    let mut chunks = store.objects().get(path).await?.into_stream();
    while let Some(chunk) = chunks.try_next().await? {
        hasher.update(&chunk);
    }
    Ok(hasher.finalize())
}

async fn create(store: &CheckpointStore, path: &Path, payload: PutPayload) -> Result<(), object_store::Error> {
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    store.objects().put_opts(path, payload, options).await.map(drop)
}

async fn refuse_if_committed(store: &CheckpointStore, id: CheckpointId) -> Result<(), WriteError> {
    match store.has_manifest(id).await {
        Ok(false) => Ok(()),
        Ok(true) => Err(WriteError::AlreadyCommitted { id }),
        Err(source) => Err(WriteError::Store { id, source: Box::new(source) }),
    }
}

/// Makes the written shards a checkpoint.
async fn put_manifest(store: &CheckpointStore, manifest: &Manifest) -> Result<(), WriteError> {
    let id = manifest.id();
    let bytes = manifest.encode().map_err(|source| WriteError::Manifest { id, source })?;
    let put_error = |source| WriteError::Put { id, file: MANIFEST_FILE.to_owned(), uri: store.uri().to_owned(), source: Box::new(source) };
    // A stale writer's shards may have been swept by a newer one: then this must not become a checkpoint.
    let listing = store.objects().list(Some(&store.folder(id)));
    let found: HashMap<Path, u64> = listing.map_ok(|object| (object.location, object.size)).try_collect().await.map_err(put_error)?;
    for shard in &manifest.shards {
        let problem = match found.get(&store.path(id, &shard.file)) {
            Some(&bytes) if bytes == shard.bytes => continue,
            Some(bytes) => format!("has {bytes} bytes where {} were written", shard.bytes),
            None => "is no longer there".to_owned(),
        };
        return Err(WriteError::ShardChanged { id, file: shard.file.clone(), problem });
    }
    match store.create_object(&store.path(id, MANIFEST_FILE), bytes).await {
        // A request that was answered too late is repeated by the client, and then meets its own manifest.
        Err(object_store::Error::AlreadyExists { .. }) => match store.fetch_manifest(id).await {
            Ok(found) if found == *manifest => Ok(()),
            _ => Err(WriteError::AlreadyCommitted { id }),
        },
        other => other.map_err(put_error),
    }
}

/// An error with its causes in one line. Some libraries repeat the cause in their own text; then it is not repeated again.
pub(crate) fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}
