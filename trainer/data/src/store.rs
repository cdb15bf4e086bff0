//! Where the image of every address lies in a store of images, as img2dataset leaves one.
//!
//! Comes in: tar shards whose samples are an image (`KEY.jpg`, `.png`, `.jpeg`, `.webp`) and a `KEY.json` with the address under `url`.
//! Goes out: a table in one file ([`build_table`]), and from it the place of an address's image ([`AddressTable::find`]). Addresses are compared byte
//! for byte, never made equal by a rule. It must not know documents, and decodes no image.
//!
//! What is read of a store are the tars alone. The `.parquet` beside each names addresses and keys as well, but not where anything lies: the tar's
//! headers have to be walked in any case, and the `json` stands between two of them. Reading it costs one more read in a place that the
//! system has at hand, and spares a second file that may be missing, or of another download than its tar. What could not be
//! downloaded is not in the tar, and so not in the table.

mod build;
mod layout;
mod record;
mod scan;
mod sort;
mod table;
mod writer;

use std::{
    io,
    path::{Path, PathBuf},
};

pub use build::{BuildOptions, BuildReport, LeftOutSamples, Progress, build_table};
pub use scan::LeftOut;
pub(crate) use scan::check_shard;
pub use table::AddressTable;

use crate::{count_of, index::Extent, shard::ShardError};

/// Ending of a table's name, for those who choose one.
pub const EXTENSION: &str = "lcladdresses";

/// Where an image lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of the shard in the list that the table was made of.
    pub shard: usize,
    /// The encoded image in it. The block before is its header.
    pub extent: Extent,
}

/// A table of addresses cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A shard of the store cannot be read.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// A shard was written to while it was read.
    #[error("shard {shard} changed while the table of its addresses was made: wait until the download is complete and start again")]
    ShardChanged {
        /// The shard.
        shard: PathBuf,
    },
    /// There is nothing to make a table of.
    #[error(
        "of {} of images (the first is {first}) none has an image with its address: they have to be as img2dataset leaves them, \
         with KEY.json beside KEY.jpg and `url` in it{}",
        count_of(*shards as u64, "shard"),
        found(report)
    )]
    NoImage {
        /// Number of shards.
        shards: usize,
        /// The first of them.
        first: PathBuf,
        /// What was found instead.
        report: Box<BuildReport>,
    },
    /// A record of a table has 32 bits for the number of a shard.
    #[error("{shards} shards of images are more than a table can number: make larger ones")]
    TooManyShards {
        /// Number of shards.
        shards: usize,
    },
    /// A working file cannot be written or read.
    #[error(
        "sorting addresses in {folder}, which needs room for the table twice: set spec.data.indexPath (--index-path) to a folder that can be written to"
    )]
    Sort {
        /// The folder of the working files, that of the table.
        folder: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The table cannot be written.
    #[error("table of addresses {table} cannot be written: set spec.data.indexPath (--index-path) to a folder that can be written to")]
    Write {
        /// The table.
        table: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// There is no such file.
    #[error("table of addresses {table} does not exist: make it of the shards of images first, and check its name")]
    Missing {
        /// The table.
        table: PathBuf,
    },
    /// The system cannot read the table.
    #[error("reading table of addresses {table} at byte {offset}")]
    Read {
        /// The table.
        table: PathBuf,
        /// Where.
        offset: u64,
        /// The system's error.
        source: io::Error,
    },
    /// The file is none of ours, or of another version.
    #[error("{table} is no table of addresses of this version: make it again, or check its name")]
    NotATable {
        /// The file.
        table: PathBuf,
    },
    /// A checksum or a size is wrong.
    #[error("table of addresses {table} is damaged at byte {offset}: remove it and make it again")]
    Damaged {
        /// The table.
        table: PathBuf,
        /// Where the damaged part begins.
        offset: u64,
    },
    /// The store has more or fewer shards than the table was made of.
    #[error("table of addresses {table} was made of {recorded} shards, but the store has {found}: make it again")]
    OtherShards {
        /// The table.
        table: PathBuf,
        /// Shards that the table was made of.
        recorded: usize,
        /// Shards of the store.
        found: usize,
    },
    /// A shard of the store is not the one that the table was made of.
    #[error(
        "table of addresses {table} was made of another file than {shard} ({recorded}, now {found} bytes; name, size or time of change \
         differ): make it again"
    )]
    Stale {
        /// The table.
        table: PathBuf,
        /// The shard as it is now.
        shard: PathBuf,
        /// Name and size of the shard that the table was made of.
        recorded: String,
        /// Size of the shard now.
        found: u64,
    },
}

impl StoreError {
    /// The system's error underneath, for deciding whether another attempt can help.
    #[must_use]
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Shard(error) => error.io(),
            Self::Read { source, .. } | Self::Sort { source, .. } | Self::Write { source, .. } => Some(source),
            _ => None,
        }
    }
}

fn found(report: &BuildReport) -> String {
    let left_out = report.left_out.iter().map(|(cause, left)| format!("{cause}: {}, first {}", left.count, left.first));
    left_out.fold(String::new(), |found, left| found + "; " + &left)
}

/// Folder of a file that is to be written.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests;
