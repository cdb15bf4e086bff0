//! `WebDataset` tar shards: finding the files in one, reading them, writing one.
//!
//! Comes in: the path of a tar archive (ustar, GNU long names, PAX headers). Goes out: where each member's bytes lie ([`walk`]), grouped into
//! samples by [`group`]. It decodes nothing and keeps nothing in memory but the member at hand.

mod group;
mod list;
mod writer;

use std::{
    fs::File,
    io::{self, Read, Seek},
    path::{Path, PathBuf},
};

pub(crate) use group::split_name;
pub use group::{Group, Grouper, ImageKind, Keyed};
pub use list::{Entry, ListError, ListOrigin, Missing, find_shards};
pub(crate) use writer::new_file_for;
pub use writer::{ShardWriter, WriteError};

/// Unit of a tar archive: headers are one block, contents begin on a block and are padded to one (POSIX pax, "ustar Interchange Format").
pub const BLOCK: u64 = 512;

/// Bytes that are read to find a name: some times the longest path of Linux (4,096 bytes) with its headers. The bound keeps a damaged header from
/// making us read on.
const NAME_LIMIT: u64 = 64 * 1024;

/// A regular file in a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name as the archive has it; not necessarily UTF-8.
    pub name: Vec<u8>,
    /// Byte at which its headers begin, those for long names included.
    pub start: u64,
    /// Byte at which its contents begin. The block before is its header.
    pub offset: u64,
    /// Bytes of its contents.
    pub length: u64,
}

/// A shard cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// There is no such file.
    #[error("shard {path} does not exist: check its name, and that its volume is mounted")]
    Missing {
        /// The shard.
        path: PathBuf,
    },
    /// The file is there and cannot be opened.
    #[error("opening shard {path}")]
    Open {
        /// The shard.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// It is a folder, a device or a pipe.
    #[error("shard {path} is not a regular file")]
    NotAFile {
        /// The shard.
        path: PathBuf,
    },
    /// The system cannot read the file.
    #[error("reading shard {path} at byte {offset}")]
    Read {
        /// The shard.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// The system's error.
        source: io::Error,
    },
    /// The first block is no tar header.
    #[error("shard {path} is not a tar archive (byte 0 starts no tar header; compressed archives have to be unpacked first)")]
    NotTar {
        /// The shard.
        path: PathBuf,
    },
    /// A header is damaged.
    #[error("shard {path} is damaged at byte {offset}: copy or download it again")]
    Damaged {
        /// The shard.
        path: PathBuf,
        /// Where the damaged header begins.
        offset: u64,
        /// What the archive reader says.
        source: io::Error,
    },
    /// The file ends inside a member.
    #[error(
        "shard {path} is cut short: it has {length} bytes, but the member that begins at byte {offset} needs {needed}: copy or download it again"
    )]
    Truncated {
        /// The shard.
        path: PathBuf,
        /// Where the incomplete member begins.
        offset: u64,
        /// Size of the file.
        length: u64,
        /// Least size of the file with this member complete.
        needed: u64,
    },
    /// The file ends after a member, without the two zero blocks that end every archive.
    #[error("shard {path} is cut short: it ends at byte {length} without an end-of-archive mark: copy or download it again")]
    NoEndMark {
        /// The shard.
        path: PathBuf,
        /// Size of the file.
        length: u64,
    },
    /// Offsets in the index are 32-bit block numbers.
    #[error("shard {path} is larger than 2 TiB: split it")]
    TooLarge {
        /// The shard.
        path: PathBuf,
    },
    /// What lies at the indexed place is not what was indexed.
    #[error("shard {path} changed after it was indexed (no member at byte {offset}): restart, so that it is indexed again")]
    Changed {
        /// The shard.
        path: PathBuf,
        /// Where a member's contents were expected.
        offset: u64,
    },
}

impl ShardError {
    /// The system's error underneath, for deciding whether another attempt can help.
    pub(crate) fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Open { source, .. } | Self::Read { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Opens a shard for reading.
pub fn open(path: &Path) -> Result<File, ShardError> {
    let named = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => ShardError::Missing { path: path.to_owned() },
        _ => ShardError::Open { path: path.to_owned(), source },
    };
    let file = File::open(path).map_err(named)?;
    if file.metadata().map_err(named)?.is_file() { Ok(file) } else { Err(ShardError::NotAFile { path: path.to_owned() }) }
}

/// Calls `visit` for every regular file in the archive, in the archive's order. Only headers are read.
///
/// Links, folders and sparse files are passed over. An archive that is cut short anywhere, even between two members, is an error: training on
/// part of a shard without saying so is worse than stopping.
pub fn walk(path: &Path, file: &File, mut visit: impl FnMut(Member)) -> Result<(), ShardError> {
    let length = file.metadata().map_err(|source| ShardError::Open { path: path.to_owned(), source })?.len();
    // Where the next header is expected.
    let mut next = 0;
    let named = |offset: u64, source: io::Error| match (source.raw_os_error(), offset) {
        (Some(_), _) => ShardError::Read { path: path.to_owned(), offset, source },
        (None, _) if length < offset + BLOCK => ShardError::Truncated { path: path.to_owned(), offset, length, needed: offset + BLOCK },
        (None, 0) => ShardError::NotTar { path: path.to_owned() },
        (None, _) => ShardError::Damaged { path: path.to_owned(), offset, source },
    };
    let mut archive = tar::Archive::new(file);
    for entry in archive.entries_with_seek().map_err(|source| named(0, source))? {
        let entry = entry.map_err(|source| named(next, source))?;
        let start = next;
        let (offset, size) = (entry.raw_file_position(), entry.size());
        let sparse = entry.header().entry_type().is_gnu_sparse();
        // A sparse file stores fewer bytes than its size; what it stores is in the header's own field.
        let stored = if sparse { entry.header().entry_size().map_err(|source| named(start, source))? } else { size };
        let end = offset.saturating_add(stored);
        if end > length {
            return Err(ShardError::Truncated { path: path.to_owned(), offset: start, length, needed: end });
        }
        next = end.next_multiple_of(BLOCK);
        if entry.header().entry_type().is_file() {
            visit(Member { name: entry.path_bytes().into_owned(), start, offset, length: size });
        }
    }
    if length == 0 {
        return Err(ShardError::NotTar { path: path.to_owned() });
    }
    if next >= length {
        return Err(ShardError::NoEndMark { path: path.to_owned(), length });
    }
    Ok(())
}

/// Name of the member whose headers begin at byte `start`; for messages.
pub fn name_at(path: &Path, start: u64) -> Result<String, ShardError> {
    let named = |source| ShardError::Read { path: path.to_owned(), offset: start, source };
    let mut file = open(path)?;
    file.seek(io::SeekFrom::Start(start)).map_err(named)?;
    let mut archive = tar::Archive::new(file.take(NAME_LIMIT));
    let mut entries = archive.entries().map_err(named)?;
    match entries.next() {
        Some(entry) => Ok(String::from_utf8_lossy(&entry.map_err(named)?.path_bytes()).into_owned()),
        None => Err(ShardError::Changed { path: path.to_owned(), offset: start }),
    }
}

#[cfg(test)]
mod tests;
