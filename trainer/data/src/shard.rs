//! `WebDataset` tar shards: finding the files in one, reading them, writing one.
//!
//! Comes in: the path of a tar archive (ustar, GNU long names, PAX headers). Goes out: where each member's bytes lie ([`walk`]), grouped into
//! samples by [`sample_files`]. It decodes nothing and keeps nothing in memory but the member at hand.

mod list;
mod sample_files;
mod writer;

use std::{
    io::{self, Read, Seek},
    path::{Path, PathBuf},
};

pub use list::{Entry, ListError, ListOrigin, Missing, find_shards};
pub(crate) use list::{find_present_shards, listable_folders, name_shards};
pub use sample_files::{ImageKind, Keyed, SampleFiles, SampleScanner};
pub(crate) use sample_files::{Role, role, split_name};
pub(crate) use writer::new_file_for;
pub use writer::{ShardWriter, WriteError};

use crate::blob::{Blob, BlobReader, is_of_storage};

/// Unit of a tar archive: headers are one block, contents begin on a block and are padded to one (POSIX pax, "ustar Interchange Format").
pub const BLOCK: u64 = 512;

/// Bytes that are read to find a name: some times the longest path of Linux (4,096 bytes) with its headers. The bound keeps a damaged header from
/// making us read on.
const NAME_LIMIT: u64 = 64 * 1024;

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberKind {
    /// A regular file.
    File,
    /// A hard or symbolic link, or a sparse file: its contents are not where they would be read.
    Elsewhere,
}

/// A file in a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Whether its contents are there.
    pub kind: MemberKind,
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
    /// It has no bytes.
    #[error("shard {path} is empty, it has no byte: copy or download it again")]
    Empty {
        /// The shard.
        path: PathBuf,
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
    /// What follows the end of the archive is neither zeros nor another archive.
    #[error(
        "shard {path} is damaged at byte {offset}: the archive ends at byte {end}, and what follows its zeros is no further member: copy or \
         download it again, or cut it there"
    )]
    AfterEnd {
        /// The shard.
        path: PathBuf,
        /// The first byte that is not zero.
        offset: u64,
        /// Where the end mark begins.
        end: u64,
    },
    /// Offsets in the index are 32-bit block numbers.
    #[error("shard {path} is larger than 2 TiB: split it")]
    TooLarge {
        /// The shard.
        path: PathBuf,
    },
    /// What lies at the indexed place is not what was indexed.
    #[error(
        "shard {path} changed after it was indexed (no member at byte {offset}): wait until it is complete and start again, it is indexed anew then"
    )]
    Changed {
        /// The shard.
        path: PathBuf,
        /// Where a member's contents were expected.
        offset: u64,
    },
}

impl ShardError {
    /// The shard.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Missing { path }
            | Self::Open { path, .. }
            | Self::NotAFile { path }
            | Self::Read { path, .. }
            | Self::Empty { path }
            | Self::NotTar { path }
            | Self::Damaged { path, .. }
            | Self::Truncated { path, .. }
            | Self::NoEndMark { path, .. }
            | Self::AfterEnd { path, .. }
            | Self::TooLarge { path }
            | Self::Changed { path, .. } => path,
        }
    }

    /// The system's error underneath, for deciding whether another attempt can help.
    pub(crate) fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Open { source, .. } | Self::Read { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Opens a shard for reading.
pub fn open(path: &Path) -> Result<Blob, ShardError> {
    let named = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => ShardError::Missing { path: path.to_owned() },
        _ => ShardError::Open { path: path.to_owned(), source },
    };
    let blob = Blob::open(path).map_err(named)?;
    if blob.is_regular().map_err(named)? { Ok(blob) } else { Err(ShardError::NotAFile { path: path.to_owned() }) }
}

/// Calls `visit` for every file in the shard, in its order, and gives the number of archives that lie in it one after the other. Only headers are
/// read.
///
/// Of links and sparse files, whose contents are not where they would be read, only the name counts; folders are passed over. An archive that is cut
/// short anywhere, even between two members, is an error: training on part of a shard without saying so is worse than stopping. For the same
/// reason what follows an archive's end is read as well, as `tar --ignore-zeros` does: shards that were joined with `cat`, or one with a hole of
/// zeros, lose no member; what is no member there is an error.
pub fn walk(path: &Path, file: &Blob, mut visit: impl FnMut(Member)) -> Result<u64, ShardError> {
    let length = file.length().map_err(|source| ShardError::Open { path: path.to_owned(), source })?;
    let (mut archives, mut begin) = (0, 0);
    loop {
        let shard = Shard { path, file, length };
        let end = shard.walk_archive(begin, &mut visit)?;
        archives += 1;
        let Some(offset) = shard.first_byte_that_is_not_zero(end)? else { return Ok(archives) };
        begin = offset - offset % BLOCK;
        if !shard.is_header_at(begin)? {
            return Err(ShardError::AfterEnd { path: path.to_owned(), offset, end });
        }
    }
}

/// A shard that is walked.
struct Shard<'a> {
    path: &'a Path,
    file: &'a Blob,
    length: u64,
}

impl Shard<'_> {
    /// Visits the members of the archive that begins at byte `begin`; gives the byte at which its end mark begins.
    fn walk_archive(&self, begin: u64, visit: &mut impl FnMut(Member)) -> Result<u64, ShardError> {
        let &Self { path, file, length } = self;
        // Where the next header is expected.
        let mut next = begin;
        let named = |offset: u64, source: io::Error| match (is_of_storage(&source), offset) {
            (true, _) => ShardError::Read { path: path.to_owned(), offset, source },
            (false, _) if length < offset + BLOCK => {
                ShardError::Truncated { path: path.to_owned(), offset, length, needed: offset + BLOCK }
            }
            (false, 0) => ShardError::NotTar { path: path.to_owned() },
            (false, _) => ShardError::Damaged { path: path.to_owned(), offset, source },
        };
        let mut tail = Tail { reader: file.reader(), begin };
        tail.seek(io::SeekFrom::Start(0)).map_err(|source| named(begin, source))?;
        let mut archive = tar::Archive::new(tail);
        for entry in archive.entries_with_seek().map_err(|source| named(begin, source))? {
            let entry = entry.map_err(|source| named(next, source))?;
            let start = next;
            let (offset, size, kind) = (begin + entry.raw_file_position(), entry.size(), entry.header().entry_type());
            // A sparse file stores fewer bytes than its size; what it stores is in the header's own field.
            let sparse = kind.is_gnu_sparse();
            let stored = if sparse { entry.header().entry_size().map_err(|source| named(start, source))? } else { size };
            let end = offset.saturating_add(stored);
            if end > length {
                return Err(ShardError::Truncated { path: path.to_owned(), offset: start, length, needed: end });
            }
            next = end.next_multiple_of(BLOCK);
            let elsewhere = sparse || kind.is_hard_link() || kind.is_symlink();
            if kind.is_file() || elsewhere {
                let kind = if elsewhere { MemberKind::Elsewhere } else { MemberKind::File };
                visit(Member { kind, name: entry.path_bytes().into_owned(), start, offset, length: size });
            }
        }
        if length == 0 {
            return Err(ShardError::Empty { path: path.to_owned() });
        }
        if next >= length {
            return Err(ShardError::NoEndMark { path: path.to_owned(), length });
        }
        Ok(next)
    }

    fn first_byte_that_is_not_zero(&self, begin: u64) -> Result<Option<u64>, ShardError> {
        // Most ends are one to twenty blocks; a hole of any size is read in pieces.
        let mut buffer = vec![0; 64 * 1024];
        let mut at = begin;
        loop {
            let read = match self.file.read_at(&mut buffer, at) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(ShardError::Read { path: self.path.to_owned(), offset: at, source }),
            };
            let bytes = buffer.get(..read).unwrap_or_default();
            if let Some(place) = bytes.iter().position(|byte| *byte != 0) {
                return Ok(Some(at + place as u64));
            }
            if read == 0 {
                return Ok(None);
            }
            at += read as u64;
        }
    }

    fn is_header_at(&self, begin: u64) -> Result<bool, ShardError> {
        let mut block = [0; BLOCK as usize];
        match self.file.read_exact_at(&mut block, begin) {
            Ok(()) => Ok(is_header(&block)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(source) => Err(ShardError::Read { path: self.path.to_owned(), offset: begin, source }),
        }
    }
}

/// The bytes of a file from one on, which count from 0: the archive reader takes positions for those of its archive.
struct Tail<'a> {
    reader: BlobReader<'a>,
    begin: u64,
}

impl Read for Tail<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buffer)
    }
}

impl Seek for Tail<'_> {
    fn seek(&mut self, position: io::SeekFrom) -> io::Result<u64> {
        let position = match position {
            io::SeekFrom::Start(offset) => io::SeekFrom::Start(self.begin.saturating_add(offset)),
            relative => relative,
        };
        self.reader.seek(position)?.checked_sub(self.begin).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

/// Whether a block is a tar header: its checksum is the sum of its bytes with the checksum's own field taken as spaces (POSIX pax).
pub(crate) fn is_header(block: &[u8]) -> bool {
    let Some(block) = block.first_chunk::<512>() else { return false };
    let sum: u32 =
        block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { u32::from(b' ') } else { u32::from(*byte) }).sum();
    tar::Header::from_byte_slice(block).cksum().is_ok_and(|recorded| recorded == sum)
}

/// Name of the member whose headers begin at byte `start`; for messages.
pub fn name_at(path: &Path, start: u64) -> Result<String, ShardError> {
    let named = |source| ShardError::Read { path: path.to_owned(), offset: start, source };
    let file = open(path)?;
    let mut head = vec![0; NAME_LIMIT as usize];
    let read = file.read_at(&mut head, start).map_err(named)?;
    let mut archive = tar::Archive::new(head.get(..read).unwrap_or_default());
    let mut entries = archive.entries().map_err(named)?;
    match entries.next() {
        Some(entry) => Ok(String::from_utf8_lossy(&entry.map_err(named)?.path_bytes()).into_owned()),
        None => Err(ShardError::Changed { path: path.to_owned(), offset: start }),
    }
}

/// The members from byte `start` on, where headers begin, up to the first one that is not `wanted`; for messages.
pub(crate) fn members_from(path: &Path, start: u64, wanted: impl Fn(&Member) -> bool) -> Result<Vec<Member>, ShardError> {
    let named = |source| ShardError::Read { path: path.to_owned(), offset: start, source };
    let file = open(path)?;
    let mut tail = Tail { reader: file.reader(), begin: start };
    tail.seek(io::SeekFrom::Start(0)).map_err(named)?;
    let (mut members, mut archive) = (Vec::new(), tar::Archive::new(tail));
    for entry in archive.entries_with_seek().map_err(named)? {
        // What is wrong behind the members that are wanted is said of others.
        let Ok(entry) = entry else { break };
        let kind = entry.header().entry_type();
        let elsewhere = kind.is_gnu_sparse() || kind.is_hard_link() || kind.is_symlink();
        let member = Member {
            kind: if elsewhere { MemberKind::Elsewhere } else { MemberKind::File },
            name: entry.path_bytes().into_owned(),
            start,
            offset: start + entry.raw_file_position(),
            length: entry.size(),
        };
        if !wanted(&member) {
            break;
        }
        members.push(member);
    }
    Ok(members)
}

#[cfg(test)]
mod tests;
