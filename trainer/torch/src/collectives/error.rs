//! What can go wrong with a group.

use std::{io, time::Duration};

use tch::TchError;

use super::store::StoreError;
use crate::shim::ShimError;

/// A group cannot be formed or an operation fails. The group is closed by then; only a new one, of a new generation, can follow.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// The group failed or was aborted before.
    #[error("{operation}: the group is closed")]
    Closed {
        /// What was asked for.
        operation: &'static str,
    },
    /// [`super::AbortHandle::abort`] was called.
    #[error("{operation}: aborted")]
    Aborted {
        /// What was waiting.
        operation: &'static str,
    },
    /// The members did not find each other in time.
    #[error("rank {rank} of {world_size} waited {timeout:?} for the group to form")]
    FormTimeout {
        /// Own rank.
        rank: usize,
        /// Number of members.
        world_size: usize,
        /// The time-out.
        timeout: Duration,
    },
    /// The group could not be formed.
    #[error("forming the group as rank {rank} of {world_size}")]
    Form {
        /// Own rank.
        rank: usize,
        /// Number of members.
        world_size: usize,
        /// libtorch's reason.
        #[source]
        source: ShimError,
    },
    /// NCCL cannot be used here.
    #[error("the group of rank {rank} is to sum on a GPU")]
    Nccl {
        /// Own rank.
        rank: usize,
        /// What is missing.
        #[source]
        source: ShimError,
    },
    /// A member's address could not be written or read.
    #[error("exchanging addresses")]
    Addresses(#[source] StoreError),
    /// Not all members came to leave the group.
    #[error("leaving the group")]
    Leave(#[source] StoreError),
    /// The group's sockets could not be listed.
    #[error("listing the group's sockets")]
    Sockets(#[source] io::Error),
    /// The group's sockets were not all found, so that it could not be aborted.
    #[error("{found} of the group's {expected} sockets found")]
    MissingSockets {
        /// Sockets found.
        found: usize,
        /// Sockets that a group of this size has.
        expected: usize,
    },
    /// Ranks, shapes or places of tensors do not fit.
    #[error("{operation}: {reason}")]
    Argument {
        /// What was asked for.
        operation: &'static str,
        /// What does not fit.
        reason: String,
    },
    /// A member was lost or the time-out has passed.
    #[error("the group has failed")]
    Operation(#[source] ShimError),
    /// Tensors could not be allocated or cut.
    #[error("{operation}: preparing tensors")]
    Tensor {
        /// What was asked for.
        operation: &'static str,
        /// libtorch's reason.
        #[source]
        source: TchError,
    },
}
