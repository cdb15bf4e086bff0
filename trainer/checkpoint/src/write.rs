//! Writing a checkpoint: shards first, in parallel, then the check that they are there, then the manifest.
//!
//! One process does all of it with [`write_checkpoint`]; members that share the work write their shards with
//! [`CheckpointStore::write_shards`], one of them collects the records and calls [`CheckpointStore::commit`].

use std::{
    collections::{BTreeMap, HashMap},
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use futures_util::{
    StreamExt, TryStreamExt,
    stream::{self, FuturesUnordered},
};
use object_store::{MultipartUpload, ObjectStoreExt, PutMode, PutOptions, PutPayload, UploadPart, path::Path};

use crate::{
    id::{CheckpointId, MANIFEST_FILE, shard_file_name},
    manifest::{Manifest, ManifestError, ShardRecord, TensorRecord},
    plan::{default_shard_count, plan_shards},
    safetensors_file::pieces,
    store::{CheckpointStore, StoreError, blocking},
    tensor::{InvalidTensor, Snapshot, TensorData, TensorSpec, validate},
};

/// Parts of a large upload under way at once per shard.
const PARALLEL_PARTS: usize = 4;

/// Least bytes of a part. S3 asks for 5 MiB.
const LEAST_PART_BYTES: u64 = 16 << 20;

/// Most parts S3 allows in one upload.
const MOST_PARTS: u64 = 10_000;

/// A checkpoint was not written. Those before it are untouched, and what was written of it is removed as far as the store allows.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The state cannot be saved.
    #[error("cannot write {id}")]
    Tensors {
        /// The checkpoint.
        id: CheckpointId,
        /// Which tensor and why.
        #[source]
        source: InvalidTensor,
    },
    /// This step and generation are saved already; nothing was written.
    #[error("{id} is already there and complete; checkpoints are never overwritten")]
    AlreadyCommitted {
        /// The checkpoint.
        id: CheckpointId,
    },
    /// Names and shapes of a shard take more room than its format allows.
    #[error("cannot write {id}/{file}: its header would have {bytes} bytes, use more shards")]
    HeaderTooLarge {
        /// The checkpoint.
        id: CheckpointId,
        /// The shard.
        file: String,
        /// Bytes it would have.
        bytes: usize,
    },
    /// A shard's bytes could not be hashed.
    #[error("cannot compute the checksum of {id}/{file}")]
    Hash {
        /// The checkpoint.
        id: CheckpointId,
        /// The shard.
        file: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The store refused a file: full, no permission, not reachable.
    #[error("cannot write {id}/{file} to `{uri}`")]
    Put {
        /// The checkpoint.
        id: CheckpointId,
        /// The file.
        file: String,
        /// The store.
        uri: String,
        /// Why.
        #[source]
        source: Box<object_store::Error>,
    },
    /// Another writer of the same step and generation has written this shard, with other bytes. Nothing was overwritten or removed.
    #[error(
        "{id}/{file} is already there with other contents: another writer uses the same generation, or one that was cut off did; \
         give every run an epoch of its own"
    )]
    Contested {
        /// The checkpoint.
        id: CheckpointId,
        /// The shard.
        file: String,
    },
    /// Another shard could not be written, so this one was not begun.
    #[error("{id}/{file} was not begun because another shard had failed")]
    Cancelled {
        /// The checkpoint.
        id: CheckpointId,
        /// The shard.
        file: String,
    },
    /// Somebody removed or changed a shard before the manifest was written, so it was not.
    #[error("{id} is not committed: {file} {problem}")]
    ShardChanged {
        /// The checkpoint.
        id: CheckpointId,
        /// The shard.
        file: String,
        /// What is different.
        problem: String,
    },
    /// The parts do not make a manifest.
    #[error("cannot commit {id}")]
    Manifest {
        /// The checkpoint.
        id: CheckpointId,
        /// What does not fit.
        #[source]
        source: ManifestError,
    },
    /// The store failed in another way.
    #[error("cannot write {id}")]
    Store {
        /// The checkpoint.
        id: CheckpointId,
        /// Why.
        #[source]
        source: Box<StoreError>,
    },
    /// The writing thread ended by a panic.
    #[error("the write of {id} ended without a result")]
    Stopped {
        /// The checkpoint.
        id: CheckpointId,
    },
}

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

/// Bytes of a part: what S3 allows for a file of this length, and no more than one request may have.
fn part_bytes(length: u64, single_put_limit: u64) -> usize {
    let bytes = length.div_ceil(MOST_PARTS).max(LEAST_PART_BYTES.min(single_put_limit)).max(1);
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

enum PartError {
    Hash(std::io::Error),
    Put(object_store::Error),
}

/// Hashes and uploads the pieces in parts of equal length (some stores insist), each a rope of the pieces' own memory.
async fn put_parts(upload: &mut dyn MultipartUpload, pieces: Vec<Bytes>, part_bytes: usize) -> Result<blake3::Hasher, PartError> {
    let mut hasher = blake3::Hasher::new();
    let mut under_way = FuturesUnordered::<UploadPart>::new();
    for pieces in split_into_parts(pieces, part_bytes) {
        let part;
        (hasher, part) = hash_pieces(hasher, pieces).await.map_err(PartError::Hash)?;
        if under_way.len() >= PARALLEL_PARTS
            && let Some(result) = under_way.next().await
        {
            result.map_err(PartError::Put)?;
        }
        under_way.push(upload.put_part(part.into_iter().collect()));
    }
    while let Some(result) = under_way.next().await {
        result.map_err(PartError::Put)?;
    }
    Ok(hasher)
}

/// Cuts a sequence of pieces every `part_bytes` without copying.
fn split_into_parts(pieces: Vec<Bytes>, part_bytes: usize) -> Vec<Vec<Bytes>> {
    let mut parts = Vec::new();
    let (mut part, mut room) = (Vec::new(), part_bytes);
    for mut piece in pieces {
        while !piece.is_empty() {
            let head = piece.split_to(room.min(piece.len()));
            room -= head.len();
            part.push(head);
            if room == 0 {
                parts.push(std::mem::take(&mut part));
                room = part_bytes;
            }
        }
    }
    if !part.is_empty() {
        parts.push(part);
    }
    parts
}

async fn hash_pieces(mut hasher: blake3::Hasher, pieces: Vec<Bytes>) -> std::io::Result<(blake3::Hasher, Vec<Bytes>)> {
    blocking(move || {
        for piece in &pieces {
            hasher.update(piece);
        }
        Ok((hasher, pieces))
    })
    .await
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_are_of_equal_length_and_lose_nothing(lengths in prop::collection::vec(0_usize..50, 0..10), part_bytes in 1_usize..40) {
            let pieces: Vec<Bytes> = lengths.iter().enumerate().map(|(index, &length)| vec![index as u8; length].into()).collect();
            let parts = split_into_parts(pieces.clone(), part_bytes);
            prop_assert_eq!(parts.concat().concat(), pieces.concat());
            let sizes: Vec<usize> = parts.iter().map(|part| part.iter().map(Bytes::len).sum()).collect();
            prop_assert!(sizes.iter().rev().skip(1).all(|&size| size == part_bytes));
            prop_assert!(sizes.iter().all(|&size| (1..=part_bytes).contains(&size)));
        }
    }

    #[test]
    fn a_part_is_as_large_as_the_store_asks_for() {
        assert_eq!(part_bytes(100 << 20, 64 << 20), 16 << 20);
        assert_eq!(part_bytes(1 << 40, 64 << 20), 109_951_163);
        assert_eq!(part_bytes(1000, 10), 10);
    }
}
