//! Why a shard of JSON lines cannot be read, and what to do about it.

use std::{io, path::PathBuf};

use zip::result::ZipError;

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
    #[error("reading shard {path} at byte {offset} of its text")]
    Read {
        /// The shard.
        path: PathBuf,
        /// How much of the unpacked text was read.
        offset: u64,
        /// The system's error.
        source: io::Error,
    },
    /// There is no room to unpack the shard.
    #[error("unpacking shard {path} into {folder}: make room there, or set spec.data.indexPath to a folder with more")]
    Unpack {
        /// The shard.
        path: PathBuf,
        /// Where to.
        folder: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The archive's directory, which is at its end, is not there or damaged.
    #[error(
        "shard {path} is no whole zip archive, most likely cut short: copy or download it again (if it is plain text, its name must not end in .zip)"
    )]
    NotZip {
        /// The shard.
        path: PathBuf,
        /// What the archive reader says.
        source: ZipError,
    },
    /// The archive has several members, none of them the shard's, or none at all.
    #[error(
        "shard {path} has no member {wanted}, and {found} instead of one other: pack that member alone into an archive, or rename the archive \
         after the right one"
    )]
    NoMember {
        /// The shard.
        path: PathBuf,
        /// The name that is looked for.
        wanted: String,
        /// What is there.
        found: String,
    },
    /// The member is encrypted, or compressed in a way that is not read.
    #[error(
        "member {member} of shard {path} is packed in a way that is not read: unpack it, and pack it again with deflate and without password"
    )]
    Packing {
        /// The shard.
        path: PathBuf,
        /// The member.
        member: String,
        /// What the archive reader says.
        source: io::Error,
    },
    /// The member's data are damaged, or not those that its check sum is for.
    #[error("member {member} of shard {path} is damaged at or before byte {offset} of its text: copy or download the shard again")]
    Damaged {
        /// The shard.
        path: PathBuf,
        /// The member.
        member: String,
        /// How much of the unpacked text was read.
        offset: u64,
        /// What the archive reader says.
        source: io::Error,
    },
    /// What lies at the indexed place is not a line.
    #[error(
        "shard {path} changed after it was indexed (line {number} is not at byte {offset} of its text): wait until it is complete and start again, \
         it is indexed anew then"
    )]
    Changed {
        /// The shard.
        path: PathBuf,
        /// The line, from 0.
        number: u64,
        /// Where it was expected.
        offset: u64,
    },
}

impl ShardError {
    /// The system's error underneath, for deciding whether another attempt can help.
    #[must_use]
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Open { source, .. } | Self::Read { source, .. } | Self::NotZip { source: ZipError::Io(source), .. } => Some(source),
            _ => None,
        }
    }
}
