//! Reading a checkpoint back, every byte checked, and falling back to the one before when something is wrong.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    fs::File,
    io::Read,
    num::NonZeroUsize,
    thread,
};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::{GetResultPayload, ObjectStoreExt, path::Path};

use crate::{
    id::{CheckpointId, MANIFEST_FILE},
    manifest::Manifest,
    safetensors_file::parse,
    store::{CheckpointStore, StoreError, blocking},
    tensor::{TensorData, TensorSpec},
    volume::{VolumeFault, while_away_async},
    write::describe,
};

/// Bytes read and then hashed while they are still in the processor's second-level cache.
const PIECE_BYTES: usize = 1 << 20;

/// Shards read at once from a cloud store, where one connection does not fill the network.
const PARALLEL_DOWNLOADS: usize = 8;

/// How often the list is read again because it changed while nothing usable was found in it. Every time means that another process
/// committed or removed a checkpoint just then, so many times in a row is a sign of something else.
const MOST_LISTINGS: usize = 20;

/// A checkpoint, complete and verified.
#[derive(Debug)]
pub struct Restored {
    /// Which one.
    pub id: CheckpointId,
    /// As the snapshot gave it.
    pub config_digest: String,
    /// As the snapshot gave it.
    pub metadata: serde_json::Value,
    /// In the snapshot's order. Tensors of one shard share one allocation, which is free when the last of them is dropped.
    pub tensors: Vec<TensorData>,
    /// Newer folders that were passed over, the newest first; each was also logged as a warning.
    pub rejected: Vec<Rejected>,
}

/// A folder that restore passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Which.
    pub id: CheckpointId,
    /// The file at fault, within its folder.
    pub file: String,
    /// What is wrong with it.
    pub reason: String,
    /// It had a manifest. Without one it never was a checkpoint.
    pub complete: bool,
    /// The store did not give it out: it may be sound.
    pub unread: bool,
}

/// Nothing could be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The store failed.
    #[error("cannot restore")]
    Store {
        /// Why.
        #[source]
        source: Box<StoreError>,
    },
    /// There are checkpoints and each is damaged.
    #[error("every checkpoint in `{uri}` is damaged: {}; repair or move them away, a run never starts over by itself", list(rejected))]
    NoneUsable {
        /// The store.
        uri: String,
        /// What is wrong with each, the newest first.
        rejected: Vec<Rejected>,
    },
    /// There are checkpoints, and the store does not give them out. They may be sound.
    #[error(
        "no checkpoint in `{uri}` can be read: {}; the store fails, and what it holds may be sound: try again when it answers",
        list(rejected)
    )]
    Unread {
        /// The store.
        uri: String,
        /// What is wrong with each, the newest first.
        rejected: Vec<Rejected>,
    },
    /// The checkpoint asked for is not there or damaged.
    #[error("checkpoint in `{uri}` is not usable: {rejected}")]
    Unusable {
        /// The store.
        uri: String,
        /// What is wrong.
        rejected: Box<Rejected>,
    },
    /// The checkpoint is whole, but of something else than what is to be restored.
    #[error("{id} in `{uri}` does not fit: {difference}")]
    Mismatch {
        /// The store.
        uri: String,
        /// The checkpoint.
        id: CheckpointId,
        /// The first tensor that differs and how.
        difference: String,
    },
    /// Checkpoints came and went while they were being read.
    #[error("the checkpoints in `{uri}` kept being removed while they were read: another run is writing there")]
    Unsteady {
        /// The store.
        uri: String,
    },
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}: {}", self.id, self.file, self.reason)
    }
}

fn list(rejected: &[Rejected]) -> String {
    rejected.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Restores the checkpoint with the highest step (then generation) that is complete and undamaged.
///
/// `Ok(None)` means that there is none and never was a complete one. `expected` lists the tensors the caller is going to fill; when
/// the newest readable checkpoint has others, that is an error and not a reason to take an older one. Blocks; reads with all cores.
pub fn restore_latest(store: &CheckpointStore, expected: Option<&[TensorSpec]>) -> Result<Option<Restored>, RestoreError> {
    let (store, expected) = (store.clone(), expected.map(<[TensorSpec]>::to_vec));
    let reader = store.clone();
    let answer = store.block_on(async move { read_latest(&reader, expected.as_deref()).await });
    answer.map_err(store_error)?
}

/// Restores one checkpoint.
pub fn restore(store: &CheckpointStore, id: CheckpointId, expected: Option<&[TensorSpec]>) -> Result<Restored, RestoreError> {
    let (reader, expected) = (store.clone(), expected.map(<[TensorSpec]>::to_vec));
    let answer = store.block_on(async move { read_checkpoint(&reader, id, expected.as_deref()).await });
    answer.map_err(store_error)?.map_err(|problem| match problem {
        Problem::Gone => rejected_alone(store, id, MANIFEST_FILE, "is not there"),
        Problem::Unread { file, reason } => RestoreError::Unread {
            uri: store.uri().to_owned(),
            rejected: vec![Rejected { id, file, reason, complete: true, unread: true }],
        },
        Problem::Unusable { file, reason } => rejected_alone(store, id, &file, &reason),
        Problem::Mismatch { difference } => RestoreError::Mismatch { uri: store.uri().to_owned(), id, difference },
    })
}

fn rejected_alone(store: &CheckpointStore, id: CheckpointId, file: &str, reason: &str) -> RestoreError {
    let rejected = Rejected { id, file: file.to_owned(), reason: reason.to_owned(), complete: file != MANIFEST_FILE, unread: false };
    RestoreError::Unusable { uri: store.uri().to_owned(), rejected: Box::new(rejected) }
}

impl CheckpointStore {
    /// Reads a checkpoint whole and checks every byte of it against its manifest.
    pub fn verify(&self, id: CheckpointId) -> Result<(), RestoreError> {
        restore(self, id, None).map(drop)
    }
}

/// Why a checkpoint cannot be taken.
#[derive(Debug)]
enum Problem {
    /// It is not there, or no longer.
    Gone,
    /// It is damaged.
    Unusable { file: String, reason: String },
    /// The store does not give it out.
    Unread { file: String, reason: String },
    /// It is of something else.
    Mismatch { difference: String },
}

async fn read_latest(store: &CheckpointStore, expected: Option<&[TensorSpec]>) -> Result<Option<Restored>, RestoreError> {
    for _ in 0..MOST_LISTINGS {
        if let Some(answer) = read_latest_listed(store, expected).await? {
            return Ok(answer);
        }
    }
    Err(RestoreError::Unsteady { uri: store.uri().to_owned() })
}

/// One walk over the list of folders. `None`: something came or went meanwhile, so that a new walk could find a later checkpoint.
///
/// A folder without a manifest is either unfinished or was just removed by retention, which means that a later checkpoint was committed
/// after this walk had passed its place. The two look alike; only when nothing has changed is it unfinished.
async fn read_latest_listed(store: &CheckpointStore, expected: Option<&[TensorSpec]>) -> Result<Option<Option<Restored>>, RestoreError> {
    let ids = store.list_folders().await.map_err(store_error)?;
    let mut rejected: Vec<Rejected> = Vec::new();
    for &id in ids.iter().rev() {
        let (file, reason, complete, unread) = match read_checkpoint(store, id, expected).await {
            Ok(restored) => return prefer_unread(store, expected, restored, rejected).await.map(|restored| Some(Some(restored))),
            Err(Problem::Mismatch { difference }) => {
                return Err(RestoreError::Mismatch { uri: store.uri().to_owned(), id, difference });
            }
            Err(Problem::Gone) if has_changed(store, &ids, &rejected).await? => return Ok(None),
            Err(Problem::Gone) => (MANIFEST_FILE.to_owned(), "is missing: the write did not end".to_owned(), false, false),
            Err(Problem::Unusable { file, reason }) => (file, reason, true, false),
            Err(Problem::Unread { file, reason }) => (file, reason, true, true),
        };
        rejected.push(Rejected { id, file, reason, complete, unread });
    }
    if has_changed(store, &ids, &rejected).await? {
        return Ok(None);
    }
    warn(&rejected);
    rejected.retain(|rejected| rejected.complete);
    let uri = store.uri().to_owned();
    if rejected.is_empty() {
        Ok(Some(None))
    } else if rejected.iter().any(|rejected| rejected.unread) {
        Err(RestoreError::Unread { uri, rejected })
    } else {
        Err(RestoreError::NoneUsable { uri, rejected })
    }
}

/// The store gives out an older checkpoint. A newer one that it did not give out before is tried again: the store may have been away as a
/// whole, and come back just now. When it is not given out again, its place on the medium is bad, and the older one counts.
async fn prefer_unread(
    store: &CheckpointStore,
    expected: Option<&[TensorSpec]>,
    older: Restored,
    mut rejected: Vec<Rejected>,
) -> Result<Restored, RestoreError> {
    for index in 0..rejected.len() {
        let Some(id) = rejected.get(index).filter(|rejected| rejected.unread).map(|rejected| rejected.id) else { continue };
        match read_checkpoint(store, id, expected).await {
            Ok(restored) => {
                rejected.truncate(index);
                warn(&rejected);
                return Ok(Restored { rejected, ..restored });
            }
            Err(Problem::Mismatch { difference }) => {
                return Err(RestoreError::Mismatch { uri: store.uri().to_owned(), id, difference });
            }
            Err(_) => {}
        }
    }
    warn(&rejected);
    Ok(Restored { rejected, ..older })
}

/// A folder has come or gone, or one that was passed over as unfinished is complete now.
async fn has_changed(store: &CheckpointStore, ids: &[CheckpointId], passed_over: &[Rejected]) -> Result<bool, RestoreError> {
    if store.list_folders().await.map_err(store_error)? != ids {
        return Ok(true);
    }
    for unfinished in passed_over.iter().filter(|rejected| !rejected.complete) {
        if store.has_manifest(unfinished.id).await.map_err(store_error)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn warn(rejected: &[Rejected]) {
    for Rejected { id, file, reason, .. } in rejected {
        tracing::warn!(checkpoint = %id, file, reason, "checkpoint passed over");
    }
}

fn store_error(source: StoreError) -> RestoreError {
    RestoreError::Store { source: Box::new(source) }
}

fn unusable(file: &str, reason: impl Into<String>) -> Problem {
    Problem::Unusable { file: file.to_owned(), reason: reason.into() }
}

/// What an error of the store means for a file that it should give out. An error that says nothing of the store is one of the file: a folder in
/// its place, for example. Clients of cloud stores have tried for a while before they say anything but "not found".
fn refused(store: &CheckpointStore, file: &str, error: &(dyn std::error::Error + 'static)) -> Problem {
    let (file, reason) = (file.to_owned(), describe(error));
    if !store.is_local() || VolumeFault::of(error) == VolumeFault::Away {
        Problem::Unread { file, reason }
    } else {
        Problem::Unusable { file, reason }
    }
}

async fn read_checkpoint(store: &CheckpointStore, id: CheckpointId, expected: Option<&[TensorSpec]>) -> Result<Restored, Problem> {
    let manifest = match while_away_async(|| store.fetch_manifest(id)).await {
        Ok(manifest) => manifest,
        Err(StoreError::Read { source: object_store::Error::NotFound { .. }, .. }) => return Err(Problem::Gone),
        Err(StoreError::Manifest { source, .. }) => return Err(unusable(MANIFEST_FILE, describe(&source))),
        Err(error) => return Err(refused(store, MANIFEST_FILE, &error)),
    };
    if let Some(difference) = expected.and_then(|expected| find_difference(&manifest, expected)) {
        return Err(Problem::Mismatch { difference });
    }
    let parallel = if store.is_local() { thread::available_parallelism().map_or(1, NonZeroUsize::get) } else { PARALLEL_DOWNLOADS };
    let shards: Vec<Vec<TensorData>> = stream::iter(0..manifest.shards.len())
        .map(|index| read_shard(store, &manifest, index))
        .buffer_unordered(parallel)
        .try_collect()
        .await?;

    let mut by_name: HashMap<String, TensorData> = shards.into_iter().flatten().map(|tensor| (tensor.name.clone(), tensor)).collect();
    // Every tensor of the manifest was found in its shard.
    let tensors = manifest.tensors.iter().filter_map(|tensor| by_name.remove(&tensor.name)).collect();
    let Manifest { config_digest, metadata, .. } = manifest;
    Ok(Restored { id, config_digest, metadata, tensors, rejected: Vec::new() })
}

/// The first tensor by which a checkpoint differs from what is expected.
fn find_difference(manifest: &Manifest, expected: &[TensorSpec]) -> Option<String> {
    let saved: HashMap<&str, _> = manifest.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    for TensorSpec { name, shape, dtype } in expected {
        match saved.get(name.as_str()) {
            None => return Some(format!("tensor `{name}` is missing")),
            Some(found) if found.shape != *shape || found.dtype != *dtype => {
                return Some(format!("tensor `{name}` is {:?} of {} where {shape:?} of {dtype} is expected", found.shape, found.dtype));
            }
            Some(_) => {}
        }
    }
    let known: HashSet<&str> = expected.iter().map(|tensor| tensor.name.as_str()).collect();
    let surplus = manifest.tensors.iter().find(|tensor| !known.contains(tensor.name.as_str()))?;
    Some(format!("tensor `{}` is not expected", surplus.name))
}

/// Reads, checks and takes apart one shard.
async fn read_shard(store: &CheckpointStore, manifest: &Manifest, index: usize) -> Result<Vec<TensorData>, Problem> {
    let Some(record) = manifest.shards.get(index) else { return Ok(Vec::new()) };
    let (id, file) = (manifest.id(), record.file.as_str());
    let damaged = |reason: String| unusable(file, reason);
    let length = usize::try_from(record.bytes).map_err(|_| damaged("is too large for this machine's memory".to_owned()))?;
    let (hash, bytes) = match while_away_async(|| fetch_shard(store, store.path(id, file), length)).await {
        Ok(Fetched::Whole(hash, bytes)) => (hash, bytes),
        Ok(Fetched::OtherLength(bytes)) => return Err(damaged(format!("has {bytes} bytes where {length} were written"))),
        Err(object_store::Error::NotFound { .. }) => {
            // Removed as a whole, or only this file lost?
            let removed = matches!(store.has_manifest(id).await, Ok(false));
            return Err(if removed { Problem::Gone } else { damaged("is missing".to_owned()) });
        }
        Err(error) => return Err(refused(store, file, &error)),
    };
    if hash.to_hex().as_str() != record.blake3 {
        return Err(damaged("its checksum does not match: its bytes are not those that were written".to_owned()));
    }
    let content = parse(&Bytes::from(bytes)).map_err(|error| damaged(describe(&error)))?;
    check_against_manifest(manifest, index, &content.tensors).map_err(damaged)?;
    Ok(content.tensors)
}

/// A shard as the store has it.
enum Fetched {
    Whole(blake3::Hash, Vec<u8>),
    /// Not read: it cannot be what was written.
    OtherLength(u64),
}

async fn fetch_shard(store: &CheckpointStore, path: Path, length: usize) -> Result<Fetched, object_store::Error> {
    let failed = |source: std::io::Error| object_store::Error::Generic { store: "file", source: source.into() };
    let answer = store.objects().get(&path).await?;
    if answer.meta.size != length as u64 {
        return Ok(Fetched::OtherLength(answer.meta.size));
    }
    let read = match answer.payload {
        GetResultPayload::File(file, _) => {
            let reader = store.clone();
            blocking(move || read_and_hash(file, length, &|bytes| reader.count_read(bytes))).await
        }
        GetResultPayload::Stream(chunks) => {
            let collected = chunks.try_fold(Vec::with_capacity(length), async |mut bytes, chunk| {
                bytes.extend_from_slice(&chunk);
                store.count_read(chunk.len());
                Ok(bytes)
            });
            let bytes = collected.await?;
            blocking(move || Ok((blake3::hash(&bytes), bytes))).await
        }
    };
    read.map(|(hash, bytes)| Fetched::Whole(hash, bytes)).map_err(failed)
}

/// A file's bytes and their hash, in one walk.
fn read_and_hash(mut file: File, length: usize, count: &dyn Fn(usize)) -> std::io::Result<(blake3::Hash, Vec<u8>)> {
    let mut hasher = blake3::Hasher::new();
    let mut bytes = vec![0; length];
    for piece in bytes.chunks_mut(PIECE_BYTES) {
        file.read_exact(piece)?;
        hasher.update(piece);
        count(piece.len());
    }
    Ok((hasher.finalize(), bytes))
}

/// A shard has to hold exactly the tensors that the manifest puts there.
fn check_against_manifest(manifest: &Manifest, index: usize, found: &[TensorData]) -> Result<(), String> {
    let mut expected: HashMap<&str, _> =
        manifest.tensors.iter().filter(|tensor| tensor.shard == index).map(|tensor| (tensor.name.as_str(), tensor)).collect();
    for tensor in found {
        match expected.remove(tensor.name.as_str()) {
            Some(record) if record.shape == tensor.shape && record.dtype == tensor.dtype => {}
            Some(record) => {
                return Err(format!(
                    "tensor `{}` is {:?} of {} where the manifest says {:?} of {}",
                    tensor.name, tensor.shape, tensor.dtype, record.shape, record.dtype
                ));
            }
            None => return Err(format!("tensor `{}` is not in the manifest", tensor.name)),
        }
    }
    expected.keys().min().map_or(Ok(()), |name| Err(format!("tensor `{name}` is missing")))
}
