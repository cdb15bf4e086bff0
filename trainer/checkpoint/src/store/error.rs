//! What can go wrong between the crate and where checkpoints lie.

use std::path::PathBuf;

use crate::{
    id::{CheckpointId, MANIFEST_FILE},
    manifest::ManifestError,
    volume::{Volume, VolumeFault},
};

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
    /// The volume lacks something that a run needs.
    #[error("the volume {volume} does not let this program {what} in {}: {advice}", folder.display())]
    Volume {
        /// The store's folder.
        folder: PathBuf,
        /// What it lies on.
        volume: Volume,
        /// What was tried.
        what: &'static str,
        /// What to do about it.
        advice: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The volume has no room for a checkpoint.
    #[error(
        "the volume {volume} has {} MB free where a checkpoint in {} takes {} MB: make room, or have fewer checkpoints kept",
        free / 1_000_000, folder.display(), bytes.div_ceil(1_000_000)
    )]
    NoRoom {
        /// The store's folder.
        folder: PathBuf,
        /// What it lies on.
        volume: Volume,
        /// Bytes that are free.
        free: u64,
        /// Bytes of a checkpoint.
        bytes: u64,
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

impl StoreError {
    /// Whether starting again with the same store would fail again until somebody changes something.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Uri { .. } => true,
            Self::Folder { source, .. } => source.kind() == std::io::ErrorKind::NotADirectory || VolumeFault::of(source).is_permanent(),
            Self::Volume { source, .. } => VolumeFault::of(source).is_permanent() || source.kind() == std::io::ErrorKind::InvalidData,
            _ => false,
        }
    }
}
