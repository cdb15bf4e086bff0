//! Writing a checkpoint: shards first, in parallel, then the check that they are there, then the manifest.
//!
//! One process does all of it, or several share it: each writes the shards that the [`WritePlan`] gives it, writer 0 collects the records
//! and commits.

mod error;
mod parts;
mod stage;
mod together;

use std::{
    collections::{BTreeMap, HashMap},
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::{ObjectStoreExt, PutMode, PutOptions, PutPayload, path::Path};
use serde_json::Value;

pub use self::{
    error::WriteError,
    together::{Meeting, MeetingError},
};
use self::{
    parts::{PartError, hash_pieces, part_bytes, put_parts},
    together::Together,
};
pub(crate) use self::{stage::Stage, together::Attempt};
use crate::{
    id::{CheckpointId, MANIFEST_FILE, shard_file_name},
    manifest::{Manifest, ShardRecord, TensorRecord},
    plan::WritePlan,
    safetensors_file::pieces,
    store::{CheckpointStore, StoreError},
    tensor::{ComingTensors, InvalidTensor, Snapshot, TensorData, TensorSpec, validate},
};

/// One writer's part of a checkpoint that several write.
///
/// All of them submit the same checkpoint with the same plan and attempt; what else they say is taken from the committer, writer 0.
///
/// `T` is [`ComingTensors`] where its tensors are still being copied.
#[derive(Clone, Debug)]
pub struct Part<T = Vec<TensorData>> {
    /// The checkpoint.
    pub id: CheckpointId,
    /// Who writes what.
    pub plan: Arc<WritePlan>,
    /// Which of the writers this is.
    pub writer: usize,
    /// The tensors that the plan gives to it, in any order; see [`Snapshot`] for their memory.
    pub tensors: T,
    /// See [`Snapshot::config_digest`].
    pub config_digest: String,
    /// See [`Snapshot::metadata`].
    pub metadata: Value,
    /// Where the writers meet.
    pub meeting: Arc<dyn Meeting>,
    /// Different for every checkpoint that this membership tries to write, and equal on all writers.
    pub attempt: u64,
}

impl CheckpointStore {
    /// Makes written shards a checkpoint again whose manifest is known: checks that every one is there with its size, then creates the
    /// manifest.
    pub fn commit(&self, manifest: &Manifest) -> Result<(), WriteError> {
        let (store, id, manifest) = (self.clone(), manifest.id(), manifest.clone());
        self.block_on(async move {
            let bytes = manifest.encode().map_err(|source| WriteError::Manifest { id, source })?;
            check_shards(&store, &manifest).await?;
            put_manifest(&store, &manifest, bytes).await
        })
        .map_err(|source| WriteError::Store { id, source: Box::new(source) })?
    }
}

/// A point in a write at which a test may want to stop it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The writer's shards are in the store, and nobody knows yet.
    ShardsWritten,
    /// The manifest is the next thing to be written.
    BeforeManifest,
}

/// How a write goes about it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    /// Shards under way at once; each keeps at most one thread busy.
    pub(crate) parallel: NonZeroUsize,
    /// Called at every [`Moment`], on a thread that may be blocked.
    pub(crate) at: Option<fn(Moment)>,
}

/// Number and tensors of each shard of a writer.
#[derive(Debug)]
enum Shards {
    Here(Vec<(usize, Vec<TensorData>)>),
    /// Their tensors are still being copied.
    Coming(ComingTensors),
    /// They could not be copied.
    Missing(WriteError),
}

impl Default for Shards {
    fn default() -> Self {
        Self::Here(Vec::new())
    }
}

/// A checkpoint, or a part of it, to be written.
#[derive(Debug)]
pub(crate) struct Work {
    id: CheckpointId,
    plan: Arc<WritePlan>,
    writer: usize,
    shards: Shards,
    config_digest: String,
    metadata: Value,
    together: Option<Together>,
    /// The attempt before the last one, whose messages nobody reads any more.
    read: Option<Attempt>,
}

impl Work {
    /// A whole checkpoint.
    pub(crate) fn whole(snapshot: Snapshot, shards: Option<NonZeroUsize>) -> Result<Self, InvalidTensor> {
        let Snapshot { step, generation, config_digest, metadata, tensors } = snapshot;
        validate(&tensors)?;
        let plan = WritePlan::new(tensors.iter().map(TensorData::spec).collect(), NonZeroUsize::MIN, shards);
        let shards = Shards::Here(distribute(&plan, 0, tensors)?);
        let id = CheckpointId { step, generation };
        Ok(Self { id, plan: Arc::new(plan), writer: 0, shards, config_digest, metadata, together: None, read: None })
    }

    /// A whole checkpoint whose tensors, those of the plan, are still being copied.
    pub(crate) fn whole_coming(snapshot: Snapshot<ComingTensors>, plan: Arc<WritePlan>) -> Result<Self, InvalidTensor> {
        let Snapshot { step, generation, config_digest, metadata, tensors } = snapshot;
        if plan.tensors().is_empty() {
            return Err(InvalidTensor::None);
        }
        let (id, shards) = (CheckpointId { step, generation }, Shards::Coming(tensors));
        Ok(Self { id, plan, writer: 0, shards, config_digest, metadata, together: None, read: None })
    }

    /// A part of one.
    pub(crate) fn part(mut part: Part, read: Option<Attempt>) -> Result<Self, InvalidTensor> {
        let tensors = std::mem::take(&mut part.tensors);
        if !tensors.is_empty() {
            validate(&tensors)?;
        }
        let shards = distribute(&part.plan, part.writer, tensors)?;
        Self::shared(part, |_| Shards::Here(shards), read)
    }

    /// A part of one whose tensors are still being copied.
    pub(crate) fn part_coming(part: Part<ComingTensors>, read: Option<Attempt>) -> Result<Self, InvalidTensor> {
        Self::shared(part, Shards::Coming, read)
    }

    fn shared<T>(part: Part<T>, shards: impl FnOnce(T) -> Shards, read: Option<Attempt>) -> Result<Self, InvalidTensor> {
        let Part { id, plan, writer, tensors, config_digest, metadata, meeting, attempt } = part;
        if plan.tensors().is_empty() {
            return Err(InvalidTensor::None);
        }
        let shards = shards(tensors);
        let together = Some(Together::new(meeting, Attempt { id, number: attempt, writers: plan.writers() }));
        Ok(Self { id, plan, writer, shards, config_digest, metadata, together, read })
    }

    /// Whether it makes the checkpoint visible.
    pub(crate) fn commits(&self) -> bool {
        self.writer == 0
    }

    /// Bytes of the elements that are to be written here.
    fn bytes(&self) -> u64 {
        self.plan.tensors_of(self.writer).filter_map(TensorSpec::byte_len).map(|bytes| bytes as u64).sum()
    }

    /// Waits for tensors that are still being copied.
    pub(crate) async fn gather(&mut self) {
        let id = self.id;
        self.shards = match std::mem::take(&mut self.shards) {
            Shards::Coming(coming) => {
                let copied = coming.wait().await.map_err(|reason| WriteError::Copy { id, reason });
                let checked = copied.and_then(|tensors| {
                    let sorted = if tensors.is_empty() { Ok(()) } else { validate(&tensors) };
                    let sorted = sorted.and_then(|()| distribute(&self.plan, self.writer, tensors));
                    sorted.map_err(|source| WriteError::Tensors { id, source })
                });
                checked.map_or_else(Shards::Missing, Shards::Here)
            }
            shards => shards,
        };
    }

    /// The shards, once; for one that was not gathered they could not be copied.
    fn take_shards(&mut self) -> Result<Vec<(usize, Vec<TensorData>)>, WriteError> {
        match std::mem::take(&mut self.shards) {
            Shards::Here(shards) => Ok(shards),
            Shards::Missing(error) => Err(error),
            Shards::Coming(_) => Err(WriteError::Copy { id: self.id, reason: "nobody has waited for it".to_owned() }),
        }
    }
}

/// A writer's tensors, sorted into its files.
fn distribute(plan: &WritePlan, writer: usize, tensors: Vec<TensorData>) -> Result<Vec<(usize, Vec<TensorData>)>, InvalidTensor> {
    let mut by_name: HashMap<String, TensorData> = tensors.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
    let mut shards = Vec::new();
    for (number, shard) in plan.shards_of(writer) {
        let specs = shard.tensors.iter().filter_map(|&index| plan.tensors().get(index));
        let tensors = specs.map(|spec| {
            let tensor = by_name.remove(&spec.name).filter(|tensor| tensor.spec() == *spec);
            tensor.ok_or_else(|| InvalidTensor::NotAsPlanned { name: spec.name.clone(), writer })
        });
        shards.push((number, tensors.collect::<Result<_, _>>()?));
    }
    match by_name.into_keys().min() {
        Some(name) => Err(InvalidTensor::NotAsPlanned { name, writer }),
        None => Ok(shards),
    }
}

/// Writes a checkpoint or a part of it; bytes of the checkpoint's files, for a part other than the committer's of its tensors.
///
/// On return the tensors' memory is free again, whether it succeeded or not. On an error the committer removes everything written, unless
/// another writer was met there or it was given up. The others remove nothing: what they have reported may be committed by now. No object is ever overwritten.
pub(crate) async fn write(store: &CheckpointStore, work: Work, manner: Manner, stage: &Stage) -> Result<u64, WriteError> {
    match work.together.clone() {
        Some(together) if work.writer > 0 => write_part(store, work, together, manner, stage).await,
        _ => write_and_commit(store, work, manner, stage).await,
    }
}

async fn write_part(store: &CheckpointStore, mut work: Work, together: Together, manner: Manner, stage: &Stage) -> Result<u64, WriteError> {
    let (id, bytes) = (work.id, work.bytes());
    let (shards, count) = (work.take_shards(), work.plan.shards().len());
    let written = match shards {
        Ok(shards) => put_shards(store, id, count, shards, manner.parallel).await,
        Err(error) => Err(error),
    };
    manner.reach(Moment::ShardsWritten).await;
    stage.check(id)?;
    let (part, failure) = match written {
        Ok(records) => (Ok(records), None),
        Err(error) => (Err(describe(&error)), Some(error)),
    };
    if part.is_err() {
        // The committer may have given the checkpoint up before, and its clearing away was what failed here.
        together.outcome_so_far().await?;
    }
    together.report(work.writer, &work.plan, part).await?;
    if let Some(failure) = failure {
        return Err(failure);
    }
    together.outcome().await?;
    Ok(bytes)
}

async fn write_and_commit(store: &CheckpointStore, mut work: Work, manner: Manner, stage: &Stage) -> Result<u64, WriteError> {
    let id = work.id;
    let result = commit(store, &mut work, manner, stage).await;
    if let Some(together) = &work.together {
        match &result {
            Ok(_) => together.succeed().await,
            Err(error) => together.fail(describe(error), stage).await,
        }
    }
    if let Err(error) = &result
        && !error.has_met_another_writer()
        // One that is visible is whole: another writer's, or the own one whose creation was answered with an error.
        && matches!(store.has_manifest(id).await, Ok(false))
        // Who gave it up goes on at once, and may write there itself.
        && stage.decide(id).is_ok()
        && let Err(error) = store.remove_folder(id).await
    {
        tracing::warn!(checkpoint = %id, error = %describe(&error), "what was written of a failed checkpoint could not be removed");
    }
    result
}

async fn commit(store: &CheckpointStore, work: &mut Work, manner: Manner, stage: &Stage) -> Result<u64, WriteError> {
    let (id, shards) = (work.id, work.take_shards());
    let count = work.plan.shards().len();
    if let Some(together) = &work.together {
        together.open(work.read.take()).await?;
    }
    refuse_if_committed(store, id).await?;
    let mut records = put_shards(store, id, count, shards?, manner.parallel).await?;
    manner.reach(Moment::ShardsWritten).await;
    stage.check(id)?;
    if let Some(together) = &work.together {
        records = together.collect(&work.plan, records).await?;
    }
    let manifest = build_manifest(work, records);
    let bytes = manifest.encode().map_err(|source| WriteError::Manifest { id, source })?;
    check_shards(store, &manifest).await?;
    // From here on nobody may give it up: whether it is visible is known only when the store has answered.
    stage.decide(id)?;
    if let Some(together) = &work.together {
        together.fence().await?;
    }
    manner.reach(Moment::BeforeManifest).await;
    put_manifest(store, &manifest, bytes).await?;
    Ok(manifest.bytes())
}

fn build_manifest(work: &Work, shards: Vec<ShardRecord>) -> Manifest {
    let plan = &work.plan;
    let place: HashMap<usize, usize> =
        plan.shards().iter().enumerate().flat_map(|(number, shard)| shard.tensors.iter().map(move |&tensor| (tensor, number))).collect();
    let tensors = plan.tensors().iter().enumerate().map(|(index, spec)| TensorRecord {
        name: spec.name.clone(),
        shape: spec.shape.clone(),
        dtype: spec.dtype,
        shard: place.get(&index).copied().unwrap_or(0),
    });
    Manifest {
        step: work.id.step,
        generation: work.id.generation,
        config_digest: work.config_digest.clone(),
        metadata: work.metadata.clone(),
        tensors: tensors.collect(),
        shards,
    }
}

impl Manner {
    async fn reach(self, moment: Moment) {
        if let Some(at) = self.at {
            // That it panicked is its own matter.
            let _ = tokio::task::spawn_blocking(move || at(moment)).await;
        }
    }
}

/// Writes shards and gives their records in the order given. The folder does not count as a checkpoint yet.
async fn put_shards(
    store: &CheckpointStore,
    id: CheckpointId,
    count: usize,
    shards: Vec<(usize, Vec<TensorData>)>,
    parallel: NonZeroUsize,
) -> Result<Vec<ShardRecord>, WriteError> {
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
    errors.sort_by_key(|error| (matches!(error, WriteError::Cancelled { .. }), !error.has_met_another_writer()));
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
                match fetch_hash(store, &path).await {
                    Ok(found) if found == hash.finalize() => {}
                    Ok(_) => return Err(WriteError::Contested { id, file }),
                    // Whose it is cannot be told: then it may be another's, and stays.
                    Err(error) => {
                        tracing::warn!(checkpoint = %id, file, error = %describe(&error), "an object that is already there cannot be read");
                        return Err(WriteError::Contested { id, file });
                    }
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

/// Looks whether every shard is there with its size.
async fn check_shards(store: &CheckpointStore, manifest: &Manifest) -> Result<(), WriteError> {
    let id = manifest.id();
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
    Ok(())
}

/// Makes the written shards a checkpoint.
async fn put_manifest(store: &CheckpointStore, manifest: &Manifest, bytes: Bytes) -> Result<(), WriteError> {
    let id = manifest.id();
    match store.create_object(&store.path(id, MANIFEST_FILE), bytes).await {
        // A request that was answered too late is repeated by the client, and then meets its own manifest.
        Err(object_store::Error::AlreadyExists { .. }) => match store.fetch_manifest(id).await {
            Ok(found) if found == *manifest => Ok(()),
            // The name is claimed: by somebody who is about to commit, or who died in it.
            Err(StoreError::Read { source: object_store::Error::NotFound { .. }, .. }) => {
                Err(WriteError::Contested { id, file: MANIFEST_FILE.to_owned() })
            }
            _ => Err(WriteError::AlreadyCommitted { id }),
        },
        Err(source) => Err(WriteError::Put { id, file: MANIFEST_FILE.to_owned(), uri: store.uri().to_owned(), source: Box::new(source) }),
        Ok(()) => Ok(()),
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
