//! Where every sample of a shard lies, kept in a small file, so that any sample is read without walking the archive.
//!
//! Comes in: a shard, the keys of images and captions, and a filter. Goes out: its [`ShardIndex`], in which samples that do not pass have no
//! record, from `NAME.tar.lclindex` beside the shard or under the
//! index folder, or made anew when that file is missing, stale (the shard's size or time of change differs, or it was made with other keys) or
//! damaged. Files are written whole and then named, so any number of
//! processes may do this at once. It never writes to a shard.

mod build;
mod findings;
pub(crate) mod pairs;
pub(crate) mod record;
pub(crate) mod set;
mod sieve;

use std::{
    fs::File,
    io::{self, Read},
    path::{Component, Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use build::Built;
pub use build::{IndexReport, index_shards};
pub(crate) use build::{built, for_each_filtered, for_each_sample, over_all, write_first};
pub use findings::{Findings, LeftOut};
use lcl_filter::FilterError;
use lcl_trainer_config::{Field, SampleKeys};
pub use pairs::{KnownShard, WholeReport, index_whole, write_whole};
use record::{HEADER_BYTES, Header};
use set::Part;

use crate::{
    blob::{self, Blob, Stamp},
    flock::Lock,
    shard::{self, ShardError},
};

/// Ending that is added to a shard's name.
pub const EXTENSION: &str = "lclindex";

/// A run of bytes in a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte; a multiple of the archive's block.
    pub offset: u64,
    /// Bytes; `u32::MAX` stands for that or more.
    pub length: u32,
}

/// Where a sample lies in its shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Byte at which the first member's headers begin; its name is found there.
    pub start: u64,
    /// Number of the image's key among the image keys, and its contents.
    pub image: Option<(u8, Extent)>,
    /// The caption's contents; where captions are drawn, those of the first file that one may come from.
    pub caption: Option<Extent>,
    /// Those of the other files that a caption may come from, by their number less one.
    pub others: Vec<Option<Extent>>,
    /// Two members have the same name, so that neither image nor caption is surely the sample's.
    pub doubled: bool,
}

/// An index cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The shard itself cannot be read.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// The filter is no expression that can be used.
    #[error("{} (`{filter}`) {source}", Field("data.source.keys.filter"))]
    Filter {
        /// The expression.
        filter: String,
        /// Why.
        source: Box<FilterError>,
    },
    /// The shard was written to while it was read.
    #[error("shard {shard} changed while it was being indexed or trained on: wait until it is complete and start again")]
    ShardChanged {
        /// The shard.
        shard: PathBuf,
    },
    /// The index file cannot be written.
    #[error("index {path} of shard {shard} cannot be written: set spec.data.indexPath (--index-path) to a folder that can be written to")]
    Write {
        /// The shard.
        shard: PathBuf,
        /// The index file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A shard is another one than when all of them were indexed.
    #[error("shard {shard} has changed since it was indexed in {index}: run `lcl data index` and start again")]
    ChangedSince {
        /// The shard.
        shard: PathBuf,
        /// The index of all shards.
        index: PathBuf,
    },
    /// A record of the index of all shards is not what was written.
    #[error("index {path} is damaged: remove it and start again, it will be made anew")]
    Damaged {
        /// The index of all shards.
        path: PathBuf,
    },
    /// Each node of a job would read all of an object store for itself.
    #[error(
        "there is no index of these {shards} objects (the first is {first}): run `lcl data index` once, with the job's manifest, before the job \
         starts"
    )]
    NotMade {
        /// Number of objects.
        shards: usize,
        /// The first of them.
        first: PathBuf,
    },
    /// The index file cannot be read, for a reason that may pass.
    #[error("reading index {path}")]
    Read {
        /// The index file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl IndexError {
    /// The system's error underneath, for deciding whether another attempt can help.
    pub(crate) fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Shard(error) => error.io(),
            Self::Read { source, .. } | Self::Write { source, .. } => Some(source),
            _ => None,
        }
    }

    /// Whether it says something about all shards, so that no other one fares better; otherwise about this one.
    pub(crate) fn is_of_all(&self) -> bool {
        match self {
            Self::Shard(error) => error.io().is_some_and(|error| lcl_objects::is_of_store(error) || blob::is_of_machine(error)),
            Self::ShardChanged { .. } => false,
            // Files of ours: what is wrong with them, and with the disk that they lie on, is not wrong with a shard.
            Self::Filter { .. }
            | Self::NotMade { .. }
            | Self::Write { .. }
            | Self::Read { .. }
            | Self::Damaged { .. }
            | Self::ChangedSince { .. } => true,
        }
    }
}

/// Index of one shard. Holds the records in memory only when they could not be written to a file.
#[derive(Debug)]
pub struct ShardIndex {
    shard: PathBuf,
    header: Header,
    findings: Findings,
    store: RwLock<Store>,
}

/// Bytes of a record that is read without allocating: those of eight files that captions come from.
const SHORT_RECORD: usize = 84;

/// Where the records are.
#[derive(Clone, Debug)]
enum Store {
    File(Arc<Path>),
    Memory(Arc<[u8]>),
}

/// Why an index file is of no use; the index is then built again.
#[derive(Debug, PartialEq, Eq)]
enum Unusable {
    Missing,
    Stale,
    Damaged,
}

impl ShardIndex {
    /// Opens the index of `shard` for these keys, building it when there is no usable one. One that cannot be written beside the shard stays in memory,
    /// with a warning; where `index_folder` is named, one that cannot be written there is an error.
    pub fn open(shard: &Path, index_folder: Option<&Path>, keys: &SampleKeys) -> Result<Self, IndexError> {
        let (file, keys) = (shard::open(shard)?, &keys.of_index());
        let places = index_files(shard, index_folder, keys);
        let found = || {
            let usable = find_usable(&places, stamp_of(shard, &file)?, keys)?;
            Ok::<_, IndexError>(usable.map(|Usable { path, header, findings }| Self {
                shard: shard.to_owned(),
                header,
                findings,
                store: RwLock::new(Store::File(path.as_path().into())),
            }))
        };
        if let Some(index) = found()? {
            return Ok(index);
        }
        let lock = lock_for(&places);
        if lock.as_ref().is_some_and(|lock| lock.waited)
            && let Some(index) = found()?
        {
            return Ok(index);
        }
        let Built { header, findings, bytes } = build::build(shard, &file, keys)?;
        let store = match build::write_first(writable(&places, index_folder), &bytes) {
            Ok(path) => Store::File(path.as_path().into()),
            Err((path, source)) if is_named(index_folder) => {
                return Err(IndexError::Write { shard: shard.to_owned(), path, source });
            }
            Err((path, error)) => {
                tracing::warn!(
                    shard = %shard.display(), index = %path.display(), %error,
                    "index cannot be written and stays in memory: set spec.data.indexPath to a folder that can be written to"
                );
                Store::Memory(bytes.into())
            }
        };
        Ok(Self { shard: shard.to_owned(), header, findings, store: RwLock::new(store) })
    }

    /// The index of `shard`, built in memory; writes nothing.
    pub(crate) fn in_memory(shard: &Path, keys: &SampleKeys) -> Result<Self, IndexError> {
        let Built { header, findings, bytes } = build::build(shard, &shard::open(shard)?, &keys.of_index())?;
        Ok(Self { shard: shard.to_owned(), header, findings, store: RwLock::new(Store::Memory(bytes.into())) })
    }

    /// What the index of all shards has of this one.
    pub(crate) fn part(&self) -> Part {
        Part { stamp: self.header.stamp, count: self.header.count, seal: self.header.seal() }
    }

    /// Writes all records as they are.
    pub(crate) fn copy_records(&self, writer: &mut dyn io::Write) -> io::Result<()> {
        let at = self.header.record_at(0);
        match &*self.store.read().unwrap_or_else(PoisonError::into_inner) {
            Store::Memory(bytes) => writer.write_all(bytes.get(at as usize..).unwrap_or_default()),
            Store::File(path) => {
                let mut file = File::open(path)?;
                io::Seek::seek(&mut file, io::SeekFrom::Start(at))?;
                let expected = self.header.count * u64::from(self.header.record_bytes);
                let copied = io::copy(&mut file.take(expected), writer)?;
                if copied == expected { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
            }
        }
    }

    /// Number of samples, unusable ones included.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.header.count
    }

    /// What was found in the shard, and under which keys it was looked for.
    #[must_use]
    pub fn findings(&self) -> &Findings {
        &self.findings
    }

    /// Bytes of the shard.
    #[must_use]
    pub fn shard_length(&self) -> u64 {
        self.header.stamp.length
    }

    /// The shard.
    #[must_use]
    pub fn shard(&self) -> &Path {
        &self.shard
    }

    /// Record `number` of the shard. `read` fills a buffer from a byte of a file. A record that turns out to be damaged makes the index be
    /// built again.
    pub(crate) fn record(&self, number: u64, read: impl FnOnce(&Path, u64, &mut [u8]) -> io::Result<()>) -> Result<Record, IndexError> {
        let seal = self.header.seal();
        let at = self.header.record_at(number);
        let store = self.store.read().unwrap_or_else(PoisonError::into_inner).clone();
        let found = match &store {
            Store::Memory(bytes) => self.in_memory_at(bytes, at).and_then(|bytes| Record::decode(bytes, seal, number)),
            Store::File(path) => {
                let length = self.header.record_bytes as usize;
                let (mut short, mut long) = ([0; SHORT_RECORD], Vec::new());
                let bytes = if let Some(bytes) = short.get_mut(..length) {
                    bytes
                } else {
                    long.resize(length, 0);
                    &mut long
                };
                match read(path, at, bytes) {
                    Ok(()) => Record::decode(bytes, seal, number),
                    Err(source) if crate::retry::is_transient(&source) => {
                        return Err(IndexError::Read { path: path.to_path_buf(), source });
                    }
                    // Removed or cut short since it was opened.
                    Err(_) => None,
                }
            }
        };
        match found {
            Some(record) => Ok(record),
            None => self.rebuilt_record(number, seal),
        }
    }

    /// Builds the index again, for this process in memory and for others in the file.
    fn rebuilt_record(&self, number: u64, seal: u32) -> Result<Record, IndexError> {
        let mut store = self.store.write().unwrap_or_else(PoisonError::into_inner);
        let at = self.header.record_at(number);
        let changed = || IndexError::ShardChanged { shard: self.shard.clone() };
        if let Store::File(path) = &*store {
            tracing::warn!(index = %path.display(), record = number, "index is damaged: building it again");
            let file = shard::open(&self.shard)?;
            let Built { header: built, bytes, .. } = build::build(&self.shard, &file, &self.findings.keys)?;
            if built != self.header {
                return Err(changed());
            }
            if let Err((path, error)) = build::write_first(&[path.to_path_buf()], &bytes) {
                tracing::warn!(index = %path.display(), %error, "index cannot be written and stays in memory");
            }
            *store = Store::Memory(bytes.into());
        }
        let Store::Memory(bytes) = &*store else { return Err(changed()) };
        self.in_memory_at(bytes, at).and_then(|bytes| Record::decode(bytes, seal, number)).ok_or_else(changed)
    }

    /// The bytes of the record that begins at a byte of an index in memory.
    fn in_memory_at<'a>(&self, bytes: &'a [u8], at: u64) -> Option<&'a [u8]> {
        bytes.get(usize::try_from(at).ok()?..)?.get(..self.header.record_bytes as usize)
    }
}

/// The lock of whoever makes the file that may lie at these places, so that processes that start together do not all make it; `None` where none can
/// be had, and the work is done more than once.
pub(crate) fn lock_for(places: &[PathBuf]) -> Option<Lock> {
    let mut path = places.first()?.as_os_str().to_owned();
    path.push(".lock");
    Lock::take(Path::new(&path)).ok()
}

/// Where the index of `shard` may lie, in the order of preference: under `folder` by the shard's absolute path, so that shards of one name in
/// different folders do not meet, then beside the shard. One for other keys than the defaults has their digest in its name: jobs that read
/// the same shards in different ways do not take each other's indexes away.
#[must_use]
pub fn index_files(shard: &Path, folder: Option<&Path>, keys: &SampleKeys) -> Vec<PathBuf> {
    let digest = if keys.is_default() { String::new() } else { format!(".{:016x}", keys_digest(keys)) };
    places(shard, folder, &format!("{digest}.{EXTENSION}"))
}

/// Where a file about `shard` may lie whose name is the shard's and `ending`, in the order of preference.
pub(crate) fn places(shard: &Path, folder: Option<&Path>, ending: &str) -> Vec<PathBuf> {
    let mut beside = shard.as_os_str().to_owned();
    beside.push(ending);
    let beside = PathBuf::from(beside);
    let is_remote = blob::is_remote(shard);
    let own = folder.filter(|folder| !blob::is_remote(folder)).map(Path::to_owned);
    // Neither beside an object nor into a bucket is anything written for each shard.
    let folder = if is_remote || folder.is_some_and(blob::is_remote) { own.or_else(blob::index_folder) } else { own };
    let under = folder.map(|folder| {
        let absolute = if is_remote { beside.clone() } else { std::path::absolute(&beside).unwrap_or_else(|_| beside.clone()) };
        let below: PathBuf = absolute.components().filter(|part| matches!(part, Component::Normal(_))).collect();
        folder.join(below)
    });
    under.into_iter().chain((!is_remote).then_some(beside)).collect()
}

/// Whether a folder for indexes is named. One in an object store holds the index of all shards alone.
fn is_named(folder: Option<&Path>) -> bool {
    folder.is_some_and(|folder| !blob::is_remote(folder))
}

/// Those of the places of a file about a shard at which it may be made: in the folder that is named and nowhere else, where one is. What lies at another
/// place is used all the same.
pub(crate) fn writable<'a>(places: &'a [PathBuf], folder: Option<&Path>) -> &'a [PathBuf] {
    if is_named(folder) { places.get(..1).unwrap_or_default() } else { places }
}

/// Tells keys apart in a name.
fn keys_digest(keys: &SampleKeys) -> u64 {
    let mut hasher = blake3::Hasher::new_derive_key("lcl-data 1: sample keys");
    for list in [&keys.image, &keys.caption] {
        hasher.update(&(list.len() as u64).to_le_bytes());
        for key in list {
            hasher.update(&(key.len() as u64).to_le_bytes());
            hasher.update(key.as_bytes());
        }
    }
    hasher.update(keys.separator.name().as_bytes());
    // Left out as long as there are none: names of indexes stay what they were.
    for file in keys.caption_files() {
        hasher.update(&(file.len() as u64).to_le_bytes());
        hasher.update(file.as_bytes());
    }
    if let Some(filter) = &keys.filter {
        hasher.update(b"filter");
        hasher.update(filter.as_bytes());
    }
    let mut digest = [0; 8];
    hasher.finalize_xof().fill(&mut digest);
    u64::from_le_bytes(digest)
}

pub(crate) fn stamp_of(shard: &Path, file: &Blob) -> Result<Stamp, ShardError> {
    file.stamp().map_err(|source| ShardError::Open { path: shard.to_owned(), source })
}

/// An index file that is of use.
struct Usable<'a> {
    path: &'a PathBuf,
    header: Header,
    findings: Findings,
}

/// The first of these index files that is one of the shard with this stamp and these keys.
fn find_usable<'a>(places: &'a [PathBuf], stamp: Stamp, keys: &SampleKeys) -> Result<Option<Usable<'a>>, IndexError> {
    for path in places {
        match read_header(path, stamp)? {
            Ok((header, findings)) if findings.keys != *keys || header.record_bytes as usize != record::record_bytes(keys) => {
                tracing::warn!(index = %path.display(), "index was made with other keys: building it again");
            }
            Ok((header, findings)) => return Ok(Some(Usable { path, header, findings })),
            Err(Unusable::Missing) => {}
            Err(reason) => tracing::warn!(index = %path.display(), ?reason, "index is of no use: building it again"),
        }
    }
    Ok(None)
}

/// Header and findings of the index file at `path` when that is an index of the shard with this stamp. Errors that may pass are errors; all others
/// mean that the file is of no use.
fn read_header(path: &Path, stamp: Stamp) -> Result<Result<(Header, Findings), Unusable>, IndexError> {
    let read = || -> io::Result<_> {
        let (mut file, mut bytes) = (File::open(path)?, [0; HEADER_BYTES]);
        file.read_exact(&mut bytes)?;
        let Some(header) = Header::decode(&bytes) else { return Ok(Err(Unusable::Damaged)) };
        if header.stamp != stamp {
            return Ok(Err(Unusable::Stale));
        }
        let mut found = vec![0; header.findings_bytes as usize];
        file.read_exact(&mut found)?;
        let sound = header.file_bytes() == Some(file.metadata()?.len());
        Ok(header.decode_findings(&found).filter(|_| sound).map(|findings| (header, findings)).ok_or(Unusable::Damaged))
    };
    match read() {
        Ok(outcome) => Ok(outcome),
        Err(source) if crate::retry::is_transient(&source) => Err(IndexError::Read { path: path.to_owned(), source }),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(Err(Unusable::Missing)),
        Err(_) => Ok(Err(Unusable::Damaged)),
    }
}

#[cfg(test)]
mod tests;
