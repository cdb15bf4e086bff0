//! Shards, tokenizer, image pipeline and batches, as plain buffers.
//!
//! Comes in: a [`lcl_trainer_config::DataConfig`] and, per run, which steps and slots are wanted ([`LoaderOptions`]).
//! Goes out: [`Batch`]es of token ids and pixels, in step order, whose content is a pure function of (seed, step, slots).
//! It must not know tensors, devices, checkpoints or other members.

pub mod batch;
pub mod blob;
mod cause;
pub mod check;
pub mod convert;
pub mod dataset;
pub mod document;
mod documents;
mod draw;
mod flock;
pub mod image;
pub mod index;
pub mod loader;
pub mod mixture;
pub mod mmc4;
pub mod obelics;
pub mod order;
pub mod packed;
pub mod permutation;
pub mod random;
mod retry;
pub mod sequence;
pub mod shard;
pub mod show;
pub mod stats;
pub mod store;
pub mod tokenizer;

pub use batch::{Batch, Buffer, Row, SkipCause, Skipped, Tolerated};
pub use blob::{fetched, use_cache};
pub use cause::RedrawCause;
pub use dataset::{Dataset, DatasetError, NoPair};
pub use documents::{DocumentFindings, ImageExample, LeftOut};
pub use lcl_filter::FilterError;
pub use lcl_objects::Stop;
pub use loader::{Loader, LoaderError, LoaderOptions, Seen, Slots, Stages, Viewed, Viewer};
pub use order::{Location, Order, Orders, Pace};
pub use retry::may_pass;

/// Whether an expression can be a filter of pairs.
pub fn check_filter(text: &str) -> Result<(), FilterError> {
    lcl_filter::Filter::parse(text).map(drop)
}

/// A count with its noun, as `1 sample` and `2 samples`; for nouns that take an `s`.
#[must_use]
pub fn count_of(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}
