//! Why a checkpoint was not written.

use std::time::Duration;

use super::MeetingError;
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
    /// The state could not be copied to host memory.
    #[error("cannot write {id}, since the state could not be copied: {reason}")]
    Copy {
        /// The checkpoint.
        id: CheckpointId,
        /// Which tensor and why.
        reason: String,
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
    /// Another writer could not write its part.
    #[error("{id} is not committed, since writer {writer} could not write its part: {reason}")]
    Part {
        /// The checkpoint.
        id: CheckpointId,
        /// The writer.
        writer: usize,
        /// What it said.
        reason: String,
    },
    /// The committer could not commit.
    #[error("{id} was not committed: {reason}")]
    NotCommitted {
        /// The checkpoint.
        id: CheckpointId,
        /// What it said.
        reason: String,
    },
    /// Two writers have not planned the same files.
    #[error("{id} is not committed, since writer {writer} planned other files: use images of one release for all members of a job")]
    OtherPlan {
        /// The checkpoint.
        id: CheckpointId,
        /// The other writer.
        writer: usize,
    },
    /// The writers' store failed, most likely because their membership is over.
    #[error("{id} is discarded: its writers do not belong together any more")]
    Meeting {
        /// The checkpoint.
        id: CheckpointId,
        /// What the store said.
        #[source]
        source: MeetingError,
    },
    /// What the writers had told each other is gone.
    #[error("{id} is discarded: what its writers had told each other is gone, as after a change of the coordinator")]
    StoreEmptied {
        /// The checkpoint.
        id: CheckpointId,
    },
    /// A writer said nothing.
    #[error("{id} is discarded: nothing was heard of writer {writer} for {patience:?}")]
    NoAnswer {
        /// The checkpoint.
        id: CheckpointId,
        /// The writer.
        writer: usize,
        /// How long was waited.
        patience: Duration,
    },
    /// The caller gave it up while it was being written.
    #[error("{id} is discarded: {reason}")]
    Abandoned {
        /// The checkpoint.
        id: CheckpointId,
        /// Why.
        reason: String,
    },
    /// The writing thread ended by a panic.
    #[error("the write of {id} ended without a result")]
    Stopped {
        /// The checkpoint.
        id: CheckpointId,
    },
}

impl WriteError {
    /// Whether it came to this by a change of the membership: then the storage is as good as before, and the next membership can write.
    #[must_use]
    pub fn is_by_membership(&self) -> bool {
        matches!(self, Self::Meeting { .. } | Self::StoreEmptied { .. } | Self::NoAnswer { .. } | Self::Abandoned { .. })
    }

    /// Whether the own part was as it should be: another writer failed, or the membership changed.
    #[must_use]
    pub fn is_of_others(&self) -> bool {
        self.is_by_membership() || matches!(self, Self::Part { .. } | Self::NotCommitted { .. } | Self::OtherPlan { .. })
    }

    /// Whether what lies in the checkpoint's folder may be another writer's, and so must stay.
    pub(crate) fn has_met_another_writer(&self) -> bool {
        matches!(self, Self::AlreadyCommitted { .. } | Self::Contested { .. } | Self::ShardChanged { .. })
    }
}
