//! The crate as its users see it: real folders, real processes that are killed, an in-memory object store.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod coming;
mod concurrency;
mod damage;
mod full_disk;
mod kills;
mod kills_together;
mod meeting;
mod round_trip;
mod s3;
mod support;
mod together;
mod uris;
mod volumes;
mod writer;
