//! Object stores for code that blocks.
//!
//! Comes in: URIs (`s3://bucket/name`, `gs://`, `az://`, `http://`, `https://`). Goes out: what lies there, by range, as a stream or as a
//! list, and stores for those who speak to them by themselves ([`open_store`]). Credentials and endpoints come from the environment. It keeps
//! nothing on disk and knows nothing of what the bytes mean.

mod client;
mod error;
mod open;
mod stop;

pub use client::{ByteStream, Counts, Object, Objects};
pub use error::{ObjectError, is_of_store};
pub use open::{OpenError, Patience, open_store};
pub use stop::{POLL, Stop};

/// Schemes of what lies in an object store.
const SCHEMES: [&str; 5] = ["s3", "gs", "az", "http", "https"];

/// Whether a name is a URI of an object store, as against a path.
#[must_use]
pub fn is_object(name: &str) -> bool {
    name.split_once("://").is_some_and(|(scheme, _)| SCHEMES.contains(&scheme))
}
