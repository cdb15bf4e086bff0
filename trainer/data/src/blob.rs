//! Bytes of a shard, wherever it lies: a file, or an object of a store behind a cache on disk.
//!
//! Comes in: a path, or a URI such as `s3://bucket/00000.tar` in a path's place. Goes out: its length, what tells its state from others, and its
//! bytes, at any place ([`Blob::read_exact_at`], through the cache) or from front to back ([`Blob::reader`], past it). It interprets nothing.
//! Whatever it is, an error is one of the system, whose kind says whether another attempt can help.

mod cache;
mod reader;

use std::{
    collections::{HashMap, VecDeque},
    error::Error,
    fs::{File, OpenOptions},
    io, iter,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use cache::{Cache, CacheError};
use lcl_objects::{Counts, Object, ObjectError, Objects, is_object};
use lcl_trainer_config::CacheConfig;
pub use reader::BlobReader;

/// What a shard looked like: two shards of one stamp are taken for the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Bytes.
    pub(crate) length: u64,
    /// Time of the last change, seconds since 1970. An object has its state instead: eight bytes of a hash of its `ETag`.
    pub(crate) seconds: i64,
    /// The fraction of that time; 0 for an object.
    pub(crate) nanoseconds: u32,
}

/// Bytes of an object that are fetched and kept together. Shards are read in long runs: a few requests a second fill a fast network, and the end
/// of a window wastes little.
const CHUNK_BYTES: u64 = 4 << 20;

/// The same where single images are read out of a large store: ten of them.
const SCATTERED_CHUNK_BYTES: u64 = 256 << 10;

/// How the bytes of a blob are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Neighbours are wanted too.
    Runs,
    /// Single pieces, far from each other.
    Scattered,
}

/// A file or an object, open.
#[derive(Debug)]
pub struct Blob {
    path: PathBuf,
    inner: Inner,
}

#[derive(Debug)]
enum Inner {
    File(File),
    Object(Box<Cached>),
}

/// An object with the cache that its bytes go through.
#[derive(Debug)]
struct Cached {
    object: Object,
    chunk: u64,
    cache: Arc<Cache>,
    recent: Mutex<Recent>,
}

/// What a reader that goes from front to back has passed last: who walks a shard by its headers reads some contents as well, and they have just
/// come by.
#[derive(Debug, Default)]
struct Recent {
    pieces: VecDeque<(u64, Bytes)>,
    bytes: u64,
}

/// Bytes that are kept of what has passed: some times the largest photograph with what lies around it.
const RECENT_BYTES: u64 = 32 << 20;

/// Objects as they were when a list or a look has shown them first. An object stays in this state for as long as the data set that was opened is
/// read: what its index says was compared with it, and another state is an error. Opening one again costs no request.
static LISTED: Mutex<Option<HashMap<String, Object>>> = Mutex::new(None);

/// The cache of this process: members of a node share its folder. It is opened when the first object is.
static CACHE: Mutex<Settings> = Mutex::new(Settings { wanted: None, open: None });

struct Settings {
    wanted: Option<CacheConfig>,
    open: Option<Arc<Cache>>,
}

/// Says which cache objects go through that are opened from now on. Opening a data set does so by itself.
pub fn use_cache(cache: &CacheConfig) {
    let mut settings = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
    if settings.wanted.as_ref() != Some(cache) {
        *settings = Settings { wanted: Some(cache.clone()), open: None };
    }
}

/// The cache of this process, opened when it is not yet.
fn cache() -> io::Result<Arc<Cache>> {
    let mut settings = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(cache) = &settings.open {
        return Ok(Arc::clone(cache));
    }
    let CacheConfig { path, bytes } = settings.wanted.clone().unwrap_or_default();
    let cache = Cache::open(&path.map_or_else(default_folder, PathBuf::from), bytes).map_err(CacheError::into_io)?;
    Ok(Arc::clone(settings.open.insert(Arc::new(cache))))
}

/// Where a user's caches lie.
fn default_folder() -> PathBuf {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let caches = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
    caches.unwrap_or_else(std::env::temp_dir).join("lcl/data")
}

/// Where indexes of objects may lie that cannot lie beside them; `None` without a cache.
pub(crate) fn index_folder() -> Option<PathBuf> {
    cache().ok().map(|cache| cache.beside("lcl-indexes"))
}

/// Whether a path is the URI of an object.
pub(crate) fn is_remote(path: &Path) -> bool {
    path.to_str().is_some_and(is_object)
}

/// The client of this process's stores.
pub(crate) fn objects() -> io::Result<&'static Objects> {
    Objects::of_process()
}

/// What this process has asked object stores for.
#[must_use]
pub fn fetched() -> Counts {
    objects().map(Objects::counts).unwrap_or_default()
}

/// Looks at what lies in these folders of stores, so that opening objects there needs no look at each.
pub(crate) fn list(folder: &str) -> io::Result<Vec<Object>> {
    let found = objects()?.list(folder)?;
    let mut listed = LISTED.lock().unwrap_or_else(PoisonError::into_inner);
    let listed = listed.get_or_insert_default();
    for object in &found {
        listed.entry(object.uri.clone()).or_insert_with(|| object.clone());
    }
    Ok(found)
}

/// Forgets which objects there are: another data set is opened.
pub(crate) fn look_anew() {
    *LISTED.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

/// Whether an error that a reader of archives gives is one of the system or of an object store, and says nothing of the archive.
pub(crate) fn is_of_storage(error: &io::Error) -> bool {
    if error.raw_os_error().is_some() || crate::retry::is_transient(error) {
        return true;
    }
    has_cause(error, |cause| cause.is::<ObjectError>() || cause.downcast_ref::<io::Error>().is_some_and(is_of_storage))
}

/// Whether one of the errors that an error of the system wraps is of this kind.
fn has_cause(error: &io::Error, is_it: impl Fn(&(dyn Error + 'static)) -> bool) -> bool {
    let first = error.get_ref().map(|cause| cause as &(dyn Error + 'static));
    iter::successors(first, |&cause| cause.source()).any(is_it)
}

/// Opens a file, and waits for nothing: whoever opened a pipe as usual would wait until somebody writes into it. What it is, callers look at.
fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

/// Whether an error is one of this machine (a disk without room, a cache that cannot be used), and says nothing of what was to be read.
pub(crate) fn is_of_machine(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    let by_kind = matches!(error.kind(), Kind::StorageFull | Kind::QuotaExceeded | Kind::ReadOnlyFilesystem | Kind::OutOfMemory);
    let of_process = matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
    by_kind
        || of_process
        || has_cause(error, |cause| cause.is::<CacheError>() || cause.downcast_ref::<io::Error>().is_some_and(is_of_machine))
}

impl Blob {
    /// Opens what lies at a path or URI.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::open_for(path, Access::Runs)
    }

    pub(crate) fn open_for(path: &Path, access: Access) -> io::Result<Self> {
        if !is_remote(path) {
            return Ok(Self { path: path.to_owned(), inner: Inner::File(open_file(path)?) });
        }
        let uri = path.to_str().unwrap_or_default();
        let listed = LISTED.lock().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(|listed| listed.get(uri)).cloned();
        let object = if let Some(object) = listed {
            object
        } else {
            let found = objects()?.head(uri)?;
            let mut listed = LISTED.lock().unwrap_or_else(PoisonError::into_inner);
            listed.get_or_insert_default().entry(uri.to_owned()).or_insert(found).clone()
        };
        let cache = cache()?;
        let chunk = if access == Access::Runs { CHUNK_BYTES } else { SCATTERED_CHUNK_BYTES };
        Ok(Self { path: path.to_owned(), inner: Inner::Object(Box::new(Cached { object, chunk, cache, recent: Mutex::default() })) })
    }

    /// What tells the state of what lies at a path or URI from others, without opening it.
    pub(crate) fn stamp_of(path: &Path) -> io::Result<Stamp> {
        if is_remote(path) { Self::open(path)?.stamp() } else { Ok(Stamp::of_file(&std::fs::metadata(path)?)) }
    }

    /// Its path or URI.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes. A file is asked anew each time, so that one which grows or shrinks is noticed.
    pub fn length(&self) -> io::Result<u64> {
        match &self.inner {
            Inner::File(file) => Ok(file.metadata()?.len()),
            Inner::Object(cached) => Ok(cached.object.size),
        }
    }

    /// What tells its state from others.
    pub(crate) fn stamp(&self) -> io::Result<Stamp> {
        match &self.inner {
            Inner::File(file) => Ok(Stamp::of_file(&file.metadata()?)),
            Inner::Object(cached) => Ok(Stamp::of_object(&cached.object)),
        }
    }

    /// Whether it can be read at any place: a folder, a pipe or a device cannot.
    pub(crate) fn is_regular(&self) -> io::Result<bool> {
        match &self.inner {
            Inner::File(file) => Ok(file.metadata()?.is_file()),
            Inner::Object(_) => Ok(true),
        }
    }

    /// Fills `buffer` from byte `offset` on. An end before that is an error of the kind [`io::ErrorKind::UnexpectedEof`].
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let Inner::Object(cached) = &self.inner else {
            let Inner::File(file) = &self.inner else { return Ok(()) };
            return file.read_exact_at(buffer, offset);
        };
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > cached.object.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if cached.recent.lock().unwrap_or_else(PoisonError::into_inner).read(offset, buffer) {
            return Ok(());
        }
        cached.cache.read(cached, offset, buffer)
    }

    /// Reads as much as there is from byte `offset` on, up to the buffer's length, and gives how much.
    pub(crate) fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match &self.inner {
            Inner::File(file) => file.read_at(buffer, offset),
            Inner::Object(cached) => {
                let length = cached.object.size.saturating_sub(offset).min(buffer.len() as u64) as usize;
                let (buffer, _) = buffer.split_at_mut(length);
                self.read_exact_at(buffer, offset)?;
                Ok(length)
            }
        }
    }

    /// Has the cache fetch the bytes of a range; nothing for a file.
    pub(crate) fn fetch(&self, offset: u64, length: u64) -> io::Result<()> {
        let Inner::Object(cached) = &self.inner else { return Ok(()) };
        cached.cache.fetch(cached, offset, length)
    }

    /// Reads it from front to back; what is skipped by more than some megabytes is not fetched.
    #[must_use]
    pub fn reader(&self) -> BlobReader<'_> {
        BlobReader::new(self)
    }

    /// Keeps a piece that begins at this byte, for who asks for some of it soon.
    fn has_passed(&self, at: u64, piece: &Bytes) {
        if let Inner::Object(cached) = &self.inner {
            cached.recent.lock().unwrap_or_else(PoisonError::into_inner).push(at, piece);
        }
    }

    fn object(&self) -> Option<&Object> {
        match &self.inner {
            Inner::File(_) => None,
            Inner::Object(cached) => Some(&cached.object),
        }
    }
}

impl Recent {
    fn push(&mut self, at: u64, piece: &Bytes) {
        if self.pieces.back().is_some_and(|(before, last)| before + last.len() as u64 != at) {
            self.pieces.clear();
            self.bytes = 0;
        }
        self.pieces.push_back((at, piece.clone()));
        self.bytes += piece.len() as u64;
        while self.bytes > RECENT_BYTES
            && let Some((_, oldest)) = self.pieces.pop_front()
        {
            self.bytes -= oldest.len() as u64;
        }
    }

    /// Fills the buffer when all of it has passed lately.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> bool {
        let first = self.pieces.partition_point(|(at, piece)| at + piece.len() as u64 <= offset);
        let (mut at, mut filled) = (offset, 0);
        for (begin, piece) in self.pieces.iter().skip(first) {
            let Some(rest) = at.checked_sub(*begin).and_then(|skip| piece.get(skip as usize..)) else { return false };
            let Some(room) = buffer.get_mut(filled..).filter(|room| !room.is_empty()) else { break };
            let length = rest.len().min(room.len());
            room.split_at_mut(length).0.copy_from_slice(rest.split_at(length).0);
            (at, filled) = (at + length as u64, filled + length);
        }
        filled == buffer.len()
    }
}

impl Stamp {
    fn of_file(metadata: &std::fs::Metadata) -> Self {
        Self { length: metadata.len(), seconds: metadata.mtime(), nanoseconds: u32::try_from(metadata.mtime_nsec()).unwrap_or(0) }
    }

    pub(crate) fn of_object(object: &Object) -> Self {
        let hash = blake3::hash(object.state().as_bytes());
        let state = hash.as_bytes().first_chunk().map_or(0, |bytes| i64::from_le_bytes(*bytes));
        Self { length: object.size, seconds: state, nanoseconds: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_that_cannot_be_used_and_a_full_disk_say_nothing_of_what_was_to_be_read() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let error = Cache::open(file.path(), 1 << 30).expect_err("it is no folder").into_io();
        assert!(is_of_machine(&error), "{error:?}");
        assert!(is_of_machine(&io::Error::other(error)), "whatever it is wrapped into");
        for number in [libc::ENOSPC, libc::EDQUOT, libc::EROFS, libc::EMFILE] {
            assert!(is_of_machine(&io::Error::from_raw_os_error(number)));
        }
        for number in [libc::EIO, libc::ENOENT, libc::EACCES] {
            assert!(!is_of_machine(&io::Error::from_raw_os_error(number)));
        }
    }
}
