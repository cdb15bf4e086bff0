//! Bytes of objects, kept on disk: a bounded cache that all processes of a node share.
//!
//! Comes in: an object and a range. Goes out: its bytes, from a file of the cache or, through it, from the store. An object is kept in chunks,
//! each a file of its own, named by the object, its state and the chunk's number, with a check sum at its end. A file has its name only once it
//! is whole, so a process may be killed at any moment; one that fetches holds a lock that ends with it, so that others wait for the bytes instead
//! of fetching them too. Which chunk was used longest ago is told by the files' times.

use std::{
    fs::{self, File, FileTimes},
    io,
    num::NonZero,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use lcl_objects::Stop;
use lru::LruCache;

use super::{CHUNK_BYTES, Cached, objects};
use crate::flock::Lock;

/// Folder of the chunks below the cache's; its name has the number of this layout.
const CHUNKS: &str = "lcl-chunks-1";

/// Ending of a chunk that is being fetched. The file is its lock.
const PART: &str = "part";

/// Chunks that a process remembers to be sound: those of 256 GiB, in some megabytes of memory.
const SOUND_FILES: NonZero<usize> = NonZero::new(1 << 16).expect("65,536 is not zero");

/// Bytes of the check sum at a chunk's end.
const CHECK_BYTES: u64 = 4;

/// Most chunk files that one process keeps open.
const OPEN_FILES: usize = 256;

/// Most of the bound that the files have which a process keeps open: a file that is removed takes its room until the last one closes it, so that eight
/// members keep an eighth of the bound at most.
const OPEN_PART: u64 = 64;

/// A process looks after the bound each time it has written this part of it. Sixteen processes that have not looked yet are over what has been left
/// free by nothing.
const LOOK_PART: u64 = 128;

/// To which part of the bound the cache is emptied.
const LEFT_FREE_PART: u64 = 8;

/// How old the time of last use may be: a chunk that is read all the time is touched this often.
const TOUCH_AGE: Duration = Duration::from_mins(1);

/// The cache cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the cache of data, {folder}, cannot be written: set spec.data.cache.path to a folder that can be")]
pub(super) struct CacheError {
    folder: PathBuf,
    source: io::Error,
}

impl CacheError {
    /// As an error of the system that no further attempt mends.
    pub(super) fn into_io(self) -> io::Error {
        io::Error::new(io::ErrorKind::PermissionDenied, self)
    }
}

/// A cache in a folder.
pub(crate) struct Cache {
    folder: PathBuf,
    /// Most bytes.
    bound: u64,
    open: Mutex<LruCache<Key, (Arc<File>, Instant)>>,
    /// Files that this process has found sound, by device and inode: opening one again costs no look at all of it.
    sound: Mutex<LruCache<Key, (u64, u64)>>,
    /// Bytes that this process has written since it looked after the bound.
    written: AtomicU64,
    /// Whether this process has said that nothing can be kept.
    told: Mutex<bool>,
}

/// A chunk of an object in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    object: [u8; 16],
    number: u64,
}

/// A chunk of an object.
struct Chunk {
    key: Key,
    begin: u64,
    end: u64,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cache({}, {} bytes)", self.folder.display(), self.bound)
    }
}

impl Cache {
    /// A cache of at most `bound` bytes in `folder`, which is made when it is not there.
    pub(crate) fn open(folder: &Path, bound: u64) -> Result<Self, CacheError> {
        let failed = |source| CacheError { folder: folder.to_owned(), source };
        let chunks = folder.join(CHUNKS);
        fs::create_dir_all(&chunks).map_err(failed)?;
        tempfile::tempfile_in(&chunks).map_err(failed)?;
        let files = usize::try_from(bound / OPEN_PART / CHUNK_BYTES).unwrap_or(OPEN_FILES).clamp(1, OPEN_FILES);
        let open = Mutex::new(LruCache::new(NonZero::new(files).unwrap_or(NonZero::<usize>::MIN)));
        let sound = Mutex::new(LruCache::new(SOUND_FILES));
        let cache = Self { folder: chunks, bound, open, sound, written: AtomicU64::new(0), told: Mutex::new(false) };
        cache.look_after_bound(false);
        Ok(cache)
    }

    /// A folder beside the chunks for what does not count for the bound.
    pub(super) fn beside(&self, name: &str) -> PathBuf {
        self.folder.with_file_name(name)
    }

    /// Fills `buffer` with the bytes of the object from `offset` on, which it has.
    pub(super) fn read(&self, cached: &Cached, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let (mut at, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            let chunk = Chunk::of(cached, at / cached.chunk);
            let length = ((chunk.end - at) as usize).min(rest.len());
            let (piece, after) = rest.split_at_mut(length);
            match self.chunk(cached, &chunk)? {
                Found::File(file) => {
                    if let Err(error) = file.read_exact_at(piece, at - chunk.begin) {
                        // The disk fails, not the store: these bytes come from there.
                        tracing::warn!(cache = %self.folder.display(), %error, "a chunk of the cache cannot be read: fetching it anew");
                        self.forget(&chunk.key);
                        piece.copy_from_slice(&objects()?.get(&cached.object, at..at + length as u64)?);
                    }
                }
                Found::Bytes(bytes) => {
                    let begin = (at - chunk.begin) as usize;
                    piece.copy_from_slice(bytes.get(begin..begin + length).ok_or(io::ErrorKind::UnexpectedEof)?);
                }
            }
            (at, rest) = (at + length as u64, after);
        }
        Ok(())
    }

    /// Has a range of the object in the cache.
    pub(super) fn fetch(&self, cached: &Cached, offset: u64, length: u64) -> io::Result<()> {
        let end = offset.saturating_add(length).min(cached.object.size);
        for number in offset / cached.chunk..end.div_ceil(cached.chunk) {
            self.chunk(cached, &Chunk::of(cached, number))?;
        }
        Ok(())
    }

    fn chunk(&self, cached: &Cached, chunk: &Chunk) -> io::Result<Found> {
        if let Some(file) = self.opened(&chunk.key) {
            return Ok(Found::File(file));
        }
        let path = self.path(&chunk.key);
        if let Some(file) = self.kept(&path, chunk) {
            return Ok(Found::File(file));
        }
        let part = match Lock::take(&path.with_extension(PART)) {
            Ok(part) => part,
            // Without a place to keep it, it is fetched for this once; after a stop it is not, and that is said below.
            Err(error) => {
                if !Stop::is_heard() {
                    self.tell(&error);
                }
                return Ok(Found::Bytes(objects()?.get(&cached.object, chunk.begin..chunk.end)?));
            }
        };
        // Another has fetched it while this one waited.
        if part.waited
            && let Some(file) = self.kept(&path, chunk)
        {
            return Ok(Found::File(file));
        }
        let bytes = objects()?.get(&cached.object, chunk.begin..chunk.end)?;
        match keep(&part.file, &path, &bytes).and_then(|()| part.renamed()) {
            Ok(file) => {
                self.remember(chunk.key, Arc::new(file));
                let written = self.written.fetch_add(bytes.len() as u64, Relaxed) + bytes.len() as u64;
                if written > self.bound / LOOK_PART {
                    self.written.store(0, Relaxed);
                    self.look_after_bound(false);
                }
            }
            Err(error) => {
                self.tell(&error);
                self.look_after_bound(error.kind() == io::ErrorKind::StorageFull);
            }
        }
        Ok(Found::Bytes(bytes))
    }

    /// The file of a chunk that is there, whole and sound.
    fn kept(&self, path: &Path, chunk: &Chunk) -> Option<Arc<File>> {
        let file = File::open(path).ok()?;
        let metadata = file.metadata().ok()?;
        let inode = (metadata.dev(), metadata.ino());
        let is_known = self.sound.lock().unwrap_or_else(PoisonError::into_inner).get(&chunk.key) == Some(&inode);
        if !is_known && !is_sound(&file, &metadata, chunk.end - chunk.begin) {
            tracing::warn!(chunk = %path.display(), "a chunk of the cache is damaged: fetching it again");
            drop(fs::remove_file(path));
            return None;
        }
        self.sound.lock().unwrap_or_else(PoisonError::into_inner).put(chunk.key, inode);
        if metadata.modified().ok().and_then(|used| used.elapsed().ok()).is_none_or(|age| age > TOUCH_AGE) {
            touch(&file);
        }
        let file = Arc::new(file);
        self.remember(chunk.key, Arc::clone(&file));
        Some(file)
    }

    /// A chunk that this process has open. One that is read all the time is touched now and then, or it would be the first to be removed.
    fn opened(&self, key: &Key) -> Option<Arc<File>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, touched) = open.get_mut(key)?;
        if touched.elapsed() > TOUCH_AGE {
            *touched = Instant::now();
            touch(file);
        }
        Some(Arc::clone(file))
    }

    fn remember(&self, key: Key, file: Arc<File>) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).put(key, (file, Instant::now()));
    }

    /// Has a chunk that cannot be read be fetched again.
    fn forget(&self, key: &Key) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).pop(key);
        self.sound.lock().unwrap_or_else(PoisonError::into_inner).pop(key);
        drop(fs::remove_file(self.path(key)));
    }

    fn path(&self, key: &Key) -> PathBuf {
        let object = blake3::Hash::from_bytes({
            let mut bytes = [0; 32];
            bytes.split_at_mut(key.object.len()).0.copy_from_slice(&key.object);
            bytes
        });
        let hex = object.to_hex();
        let name = hex.get(..2 * key.object.len()).unwrap_or_default();
        self.folder.join(name.get(..2).unwrap_or_default()).join(format!("{name}-{}", key.number))
    }

    /// Says once that chunks cannot be kept.
    fn tell(&self, error: &io::Error) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::replace(&mut *told, true) {
            tracing::warn!(cache = %self.folder.display(), %error, "the cache of data cannot be written: bytes are fetched anew each time");
        }
    }

    /// Removes the chunks that were used longest ago until what is left is well below the bound, or below what there is when the disk is full. One
    /// process at a time does; the others have no need to wait for it.
    fn look_after_bound(&self, is_full: bool) {
        let Ok(lock) = File::create(self.folder.join("lock")) else { return };
        if lock.try_lock().is_err() {
            return;
        }
        let mut chunks = Vec::new();
        let mut bytes = 0;
        for folder in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            for entry in fs::read_dir(folder.path()).into_iter().flatten().flatten() {
                let Ok(metadata) = entry.metadata() else { continue };
                // What it takes on disk, which is less than its length when a process was killed while it wrote.
                bytes += metadata.blocks() * 512;
                chunks.push((metadata.mtime(), metadata.mtime_nsec(), metadata.blocks() * 512, entry.path()));
            }
        }
        let most = if is_full { self.bound.min(bytes) } else { self.bound };
        let wanted = most - most / LEFT_FREE_PART;
        if bytes <= wanted {
            return;
        }
        chunks.sort_unstable();
        for (_, _, size, path) in chunks {
            if bytes <= wanted {
                break;
            }
            // One that is being fetched is somebody's; it is new in any case, unless its fetcher was killed.
            let part = if path.extension().is_some_and(|ending| ending == PART) { File::open(&path).ok() } else { None };
            let is_locked = part.as_ref().is_some_and(|part| part.try_lock().is_err());
            if !is_locked && fs::remove_file(&path).is_ok() {
                bytes -= size.min(bytes);
            }
            // Its lock is held until its name is gone.
            drop(part);
        }
    }
}

/// Notes that a chunk is used: the order of removal hangs on it, nothing else.
fn touch(file: &File) {
    drop(file.set_times(FileTimes::new().set_modified(SystemTime::now())));
}

/// Where the bytes of a chunk are.
enum Found {
    File(Arc<File>),
    Bytes(bytes::Bytes),
}

impl Chunk {
    fn of(cached: &Cached, number: u64) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("lcl-data 1: chunk of an object");
        for part in [cached.object.uri.as_bytes(), cached.object.state().as_bytes()] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        for part in [cached.object.size, cached.chunk] {
            hasher.update(&part.to_le_bytes());
        }
        let mut object = [0; 16];
        hasher.finalize_xof().fill(&mut object);
        let begin = number * cached.chunk;
        Self { key: Key { object, number }, begin, end: (begin + cached.chunk).min(cached.object.size) }
    }
}

/// Writes a chunk into its locked file and names it.
fn keep(part: &File, path: &Path, bytes: &[u8]) -> io::Result<()> {
    part.set_len(0)?;
    part.write_all_at(bytes, 0)?;
    part.write_all_at(&crc32fast::hash(bytes).to_le_bytes(), bytes.len() as u64)?;
    fs::rename(path.with_extension(PART), path)
}

/// Whether a chunk's file is what was written. A power failure may leave one that is not.
fn is_sound(file: &File, metadata: &fs::Metadata, length: u64) -> bool {
    if metadata.len() != length + CHECK_BYTES {
        return false;
    }
    let mut bytes = vec![0; metadata.len() as usize];
    if file.read_exact_at(&mut bytes, 0).is_err() {
        return false;
    }
    bytes.split_last_chunk().is_some_and(|(bytes, check)| crc32fast::hash(bytes).to_le_bytes() == *check)
}
