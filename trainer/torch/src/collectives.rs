//! Collectives between the members of a generation: libtorch's Gloo group and Reducer, made safe to lose.
//!
//! Comes in: a [`Store`] over which members find each other, an address of this host, a rank. Goes out: a [`Group`] with sums, gathers and
//! transfers of tensors in host memory, and sums of gradients that overlap with the backward pass (used by [`crate::Learner`]).
//!
//! # What holds
//! - A group belongs to one generation. It is never repaired: members of the next generation form a new one under another prefix.
//! - A call that fails tears the group down **before it returns**: its connections, its threads, the Reducer and every reference to a
//!   buffer are gone, so no late message can be written into memory that the caller uses again. Later calls return [`GroupError::Closed`].
//! - A collective is not atomic: one member may have the complete sum when another has an error. What an erring call was to fill is
//!   garbage.
//! - Every call has a time-out, and [`AbortHandle::abort`] ends a waiting call from any thread, also while the group forms.
//!
//! It decides nothing about membership, and opens no socket but the one that libtorch listens on, at the address it is given.

mod abort;
mod error;
mod form;
mod group;
mod memory_store;
mod self_test;
mod store;

pub use abort::AbortHandle;
pub use error::GroupError;
pub use form::GroupOptions;
pub use group::Group;
pub use memory_store::{MemorySession, MemoryStore};
pub use self_test::{SelfTestError, self_test};
pub use store::{Store, StoreError};
