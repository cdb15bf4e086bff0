//! Collectives between the members of a generation: libtorch's groups and Reducer, made safe to lose.
//!
//! Comes in: a [`Store`] over which members find each other, an address of this host, a rank, a device. Goes out: a [`Group`] with sums,
//! gathers and transfers of tensors, and sums of gradients that overlap with the backward pass (used by [`crate::Learner`]). Tensors in host
//! memory travel by Gloo, those on a GPU by NCCL; counts and agreements are always in host memory.
//!
//! # What holds
//! - A group belongs to one generation. It is never repaired: members of the next generation form a new one under another prefix.
//! - A call that fails tears the group down **before it returns**: its connections, its threads, the Reducer and every reference to a
//!   buffer of the caller are gone, so no late message can be written into memory that the caller uses again. Later calls return [`GroupError::Closed`].
//! - A collective is not atomic: one member may have the complete sum when another has an error. What an erring call was to fill is
//!   garbage.
//! - Every call has a time-out, and [`AbortHandle::abort`] ends a waiting call from any thread, also while the group forms. So does the loss
//!   of a connection, within half a second at the latest.
//! - What a thread of libtorch may still write to when a call has failed belongs to libtorch: a tensor that was given to the failed call is
//!   not used for anything else.
//!
//! It decides nothing about membership, and opens no socket but the one that libtorch listens on, at the address it is given.

mod abort;
mod error;
mod form;
mod gather;
mod group;
mod memory_store;
mod self_test;
mod store;
mod usage;
mod watch;

pub use abort::AbortHandle;
pub use error::GroupError;
pub use form::GroupOptions;
pub use group::{Group, Incoming, Outgoing};
pub use memory_store::{MemorySession, MemoryStore};
pub use self_test::{SelfTestError, self_test};
pub use store::{Store, StoreError};
pub use usage::Usage;
