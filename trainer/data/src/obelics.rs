//! OBELICS: web pages as texts and addresses of images, in parquet files.
//!
//! Comes in: files with two columns of lists, `images` and `texts`, of which at every place exactly one has an entry; other columns are not
//! read. Goes out: which parts of which rows are samples ([`index_file`]), and the texts and addresses of any of them ([`Documents`]).
//! It reads no image and makes no tokens: where an image lies is [`crate::store`]'s matter, and the sequence [`crate::document`]'s.
//!
//! A row is cut into stretches where its texts hold [`END_MARK`], which the published set has where a page changes its topic. A stretch is a
//! sample when at least one of its images is in the store. Images that are not there are left out and do not count, and of the
//! others the first few that can be decoded are kept ([`select_images`]).

mod addresses;
mod column;
mod documents;
mod file;
mod index;
mod row;
mod select;

use std::{io, path::PathBuf};

pub use addresses::{AddressesError, write_addresses};
pub use documents::{Documents, StretchAt};
pub use file::DocumentFile;
pub use index::{FaultyRows, FileFindings, SampleAt, index_file};
pub(crate) use index::{LeftOutAt, Why, index_file_with};
pub use row::{END_MARK, Part, RowFault};
pub use select::{IMAGES_KEPT, select_images};

use crate::store::StoreError;

/// Most bytes that the two columns of a row group may have, compressed or not. A published one has some 5 MB; this much is still held by a
/// machine that trains, once for every thread that reads another row group.
pub const ROW_GROUP_BYTES_LIMIT: u64 = 1 << 30;

/// A file of documents cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ObelicsError {
    /// There is no such file.
    #[error("file of documents {file} does not exist: check its name, and that its volume is mounted")]
    Missing {
        /// The file.
        file: PathBuf,
    },
    /// The system cannot read the file.
    #[error("reading file of documents {file} at byte {offset}")]
    Read {
        /// The file.
        file: PathBuf,
        /// Where.
        offset: u64,
        /// The system's error.
        source: io::Error,
    },
    /// It has no bytes.
    #[error("file of documents {file} is empty, it has no byte: copy or download it again")]
    Empty {
        /// The file.
        file: PathBuf,
    },
    /// It does not end as parquet files do.
    #[error("{file} is no parquet file, or is cut short: check its name, and copy or download it again")]
    NotParquet {
        /// The file.
        file: PathBuf,
    },
    /// Its contents contradict the format's rules.
    #[error("file of documents {file} is damaged ({reason}): copy or download it again")]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What was found.
        reason: String,
    },
    /// A column is not there.
    #[error("{file} has no column `{column}`, but {found}: a file of documents has `images` and `texts`")]
    NoColumn {
        /// The file.
        file: PathBuf,
        /// What was looked for.
        column: &'static str,
        /// The columns that are there.
        found: String,
    },
    /// A column holds something else.
    #[error("column `{column}` of {file} is `{found}`, but has to be a list of texts")]
    WrongType {
        /// The file.
        file: PathBuf,
        /// The column.
        column: &'static str,
        /// Its type.
        found: String,
    },
    /// A column is compressed in a way that is not read.
    #[error(
        "column `{column}` of {file} is compressed with {found}: write the file again with Snappy or Zstandard, or without compression"
    )]
    Compression {
        /// The file.
        file: PathBuf,
        /// The column.
        column: &'static str,
        /// How it is compressed.
        found: String,
    },
    /// A row group does not fit into memory.
    #[error(
        "row group {row_group} of {file} has {bytes} bytes, more than {ROW_GROUP_BYTES_LIMIT}: write the file again with row groups of 1,000 rows"
    )]
    RowGroupTooLarge {
        /// The file.
        file: PathBuf,
        /// Its number in the file, from 0.
        row_group: usize,
        /// Bytes of its two columns.
        bytes: u64,
    },
    /// A place that was indexed is not there.
    #[error(
        "file of documents {file} changed after it was indexed (row group {row_group} has no stretch {stretch} of row {row}): wait until it is \
         complete and start again, it is indexed anew then"
    )]
    Changed {
        /// The file.
        file: PathBuf,
        /// Number of the row group in the file, from 0.
        row_group: usize,
        /// Number of the row in it.
        row: u32,
        /// Number of the stretch in that.
        stretch: u32,
    },
    /// The number of a file is not below the number of files.
    #[error("file of documents {file} does not exist: there are {files}, numbered from 0")]
    OutOfRange {
        /// The number asked for.
        file: usize,
        /// Number of files.
        files: usize,
    },
    /// The table of addresses cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ObelicsError {
    /// The system's error underneath, for deciding whether another attempt can help.
    #[must_use]
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Read { source, .. } => Some(source),
            Self::Store(error) => error.io(),
            _ => None,
        }
    }
}
