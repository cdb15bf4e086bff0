//! Reading any stretch of any file.
//!
//! Comes in: files, and the place of a stretch as it was indexed. Goes out: its parts. A row group is decoded once and kept for the next
//! stretches of it, as neighbours are read one after the other; how many are kept is bounded, and so is the number of open files.

use std::{
    num::NonZero,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use lru::LruCache;

use crate::obelics::{DocumentFile, ObelicsError, Part, row::Row};

/// Most files that are kept open. Opening one again means reading what it says of itself, some 100 kB.
const OPEN_FILES: NonZero<usize> = NonZero::new(32).expect("32 is not zero");

/// Where a stretch lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StretchAt {
    /// Number of the file.
    pub file: usize,
    /// Number of the row group in it.
    pub row_group: usize,
    /// Number of the row in that.
    pub row: u32,
    /// Number of the stretch in the row.
    pub stretch: u32,
}

/// What is decoded once: the lock is held meanwhile, so that others who want it wait instead of doing the same.
type Once<T> = Arc<Mutex<Option<Arc<T>>>>;

/// What was used last.
type Cache<K, T> = Mutex<LruCache<K, Once<T>>>;

/// The documents of some files. All threads can read at once.
#[derive(Debug)]
pub struct Documents {
    files: Vec<PathBuf>,
    split: bool,
    open: Cache<usize, DocumentFile>,
    groups: Cache<(usize, usize), Vec<Row>>,
}

impl Documents {
    /// Documents of these files, cut at marks of an end as `split` says, which must be as they were indexed. `row_groups` says how many decoded
    /// row groups are kept, some 10 MB each of the published set.
    #[must_use]
    pub fn new(files: Vec<PathBuf>, split: bool, row_groups: NonZero<usize>) -> Self {
        Self { files, split, open: Mutex::new(LruCache::new(OPEN_FILES)), groups: Mutex::new(LruCache::new(row_groups)) }
    }

    /// The parts of a stretch. An error that may pass leaves nothing behind: another attempt reads again.
    pub fn read(&self, at: StretchAt) -> Result<Vec<Part>, ObelicsError> {
        let StretchAt { file, row_group, row, stretch } = at;
        let path = self.files.get(file).ok_or(ObelicsError::OutOfRange { file, files: self.files.len() })?;
        let rows = once(&self.groups, (file, row_group), || {
            let opened = once(&self.open, file, || DocumentFile::open(path))?;
            let mut all = Vec::new();
            let read = opened.for_each_batch(row_group, usize::MAX, |rows| {
                all.extend(rows);
                Ok(())
            });
            // A handle can be stale for good.
            read.inspect_err(|_| drop(lock(&self.open).pop(&file)))?;
            Ok(all)
        })?;
        let changed = || ObelicsError::Changed { file: path.clone(), row_group, row, stretch };
        let row = rows.get(row as usize).ok_or_else(changed)?;
        let stretches = row.stretches(self.split).map_err(|_| changed())?;
        let parts = stretches.into_iter().nth(stretch as usize).ok_or_else(changed)?;
        Ok(parts.into_iter().map(Part::to_owned).collect())
    }
}

/// The value of a key, made when it is not there. Only who wants the same one waits for it.
fn once<K: std::hash::Hash + Eq, T>(
    cache: &Cache<K, T>,
    key: K,
    make: impl FnOnce() -> Result<T, ObelicsError>,
) -> Result<Arc<T>, ObelicsError> {
    let place = Arc::clone(lock(cache).get_or_insert(key, Once::default));
    let mut place = lock(&place);
    if let Some(value) = &*place {
        return Ok(Arc::clone(value));
    }
    let value = Arc::new(make()?);
    *place = Some(Arc::clone(&value));
    Ok(value)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
