//! Why a checkpoint was not written.

use crate::{id::CheckpointId, manifest::ManifestError, store::StoreError, tensor::InvalidTensor};

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
