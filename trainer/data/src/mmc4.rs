//! MMC4 as it is published: shards of JSON lines, and from a line to the parts of a document.
//!
//! Comes in: shards `docs_shard_{i}_v2.jsonl`, zipped or not, and where the images lie. Goes out: lines and where they are in their shard
//! ([`walk`], [`read_lines`]), what a line says ([`Record`]), which of its images the document takes ([`choose`]), the paths of their files
//! ([`image_path`]), and, once it is known which of these can be read, the document ([`place`]).
//! It must not tokenize or decode. Random choices are made by whoever implements [`Choices`]; [`SlotChoices`] is what training draws.
//!
//! The rules are those of the reference's reader (OpenGVLab/LCL, `MMC4InterleavedDataset`); `tests/mmc4.rs` compares with what it made of
//! recorded documents.

mod choose;
mod images;
mod line;
mod record;
mod shard;

pub use choose::{Choices, Rules, SlotChoices, choose, place};
pub use images::{BadImageName, ImageFolders, image_path, shard_number};
pub use line::{BadLine, Field, LineFault};
pub use record::{ImageInfo, Record, TEXT_BYTES_LIMIT};
pub(crate) use shard::is_packed;
pub use shard::{Extent, LINE_BYTES_LIMIT, Line, ShardError, Walked, read_lines, walk};
