//! Reading bytes of many files with a bounded number of open ones.
//!
//! Comes in: which file, where, how much. Goes out: the bytes or the system's error. It neither retries nor interprets.

use std::{
    io,
    num::NonZero,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use lru::LruCache;

use crate::blob::{Access, Blob, Stamp};

/// Most files kept open. The usual limit of a process is 1,024 descriptors, which it also needs for sockets and checkpoints; a data set of
/// more shards opens some of them again for each sample, which costs a fraction of decoding an image.
const OPEN_FILES: NonZero<usize> = NonZero::new(256).expect("256 is not zero");

/// Which file of the data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum FileId {
    /// The shard of this number.
    Shard(usize),
    /// Its index.
    Index(usize),
    /// The shard of this number in a store of images.
    Image(usize),
}

impl FileId {
    fn access(self) -> Access {
        match self {
            Self::Shard(_) | Self::Index(_) => Access::Runs,
            Self::Image(_) => Access::Scattered,
        }
    }
}

/// A file of the data set that is read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FileRef<'a> {
    pub(crate) id: FileId,
    pub(crate) path: &'a Path,
    /// What it must look like; `None` where its contents tell.
    pub(crate) stamp: Option<Stamp>,
}

/// A file is not what it was when it was indexed; the kind of the error that says so.
const CHANGED: io::ErrorKind = io::ErrorKind::InvalidData;

/// Where bytes come from. The one implementation outside tests is [`OpenFiles`].
pub(crate) trait Storage: Send + Sync + std::fmt::Debug {
    /// Fills `buffer` from byte `offset` of the file.
    fn read(&self, file: FileRef<'_>, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Has the bytes of a range at hand, where they would have to be fetched.
    fn fetch(&self, file: FileRef<'_>, offset: u64, length: u64) -> io::Result<()>;
}

/// The file system, with the files used last kept open.
pub(crate) struct OpenFiles {
    files: Mutex<LruCache<FileId, Arc<Blob>>>,
}

impl Default for OpenFiles {
    fn default() -> Self {
        Self { files: Mutex::new(LruCache::new(OPEN_FILES)) }
    }
}

impl std::fmt::Debug for OpenFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OpenFiles")
    }
}

impl OpenFiles {
    fn cache<R>(&self, operation: impl FnOnce(&mut LruCache<FileId, Arc<Blob>>) -> R) -> R {
        operation(&mut self.files.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn open(&self, FileRef { id, path, stamp }: FileRef<'_>) -> io::Result<Arc<Blob>> {
        if let Some(file) = self.cache(|files| files.get(&id).cloned()) {
            return Ok(file);
        }
        // Opened without the lock: on a network file system this takes milliseconds, and other threads have other files to read.
        let file = Arc::new(Blob::open_for(path, id.access())?);
        if let Some(stamp) = stamp
            && file.stamp()? != stamp
        {
            return Err(io::Error::new(CHANGED, "it has changed since it was indexed"));
        }
        self.cache(|files| files.put(id, Arc::clone(&file)));
        Ok(file)
    }
}

impl Storage for OpenFiles {
    fn read(&self, file: FileRef<'_>, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        // The next attempt opens it again: a handle can be stale for good.
        self.open(file)?.read_exact_at(buffer, offset).inspect_err(|_| self.cache(|files| drop(files.pop(&file.id))))
    }

    fn fetch(&self, file: FileRef<'_>, offset: u64, length: u64) -> io::Result<()> {
        self.open(file)?.fetch(offset, length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_files_than_may_be_open_are_all_read_right() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |number: usize| folder.path().join(number.to_string());
        let count = 3 * OPEN_FILES.get();
        for number in 0..count {
            std::fs::write(path(number), format!("{number:05}")).expect("a file is written");
        }
        let files = OpenFiles::default();
        for round in 0..2 {
            for number in 0..count {
                let mut buffer = [0; 4];
                files
                    .read(FileRef { id: FileId::Shard(number), path: &path(number), stamp: None }, 1, &mut buffer)
                    .expect("the file is read");
                assert_eq!(buffer, format!("{number:05}").as_bytes()[1..], "round {round}");
            }
            assert_eq!(files.cache(|files| files.len()), OPEN_FILES.get());
        }
    }

    #[test]
    fn a_file_that_ends_early_is_opened_again_by_the_next_read() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("a");
        std::fs::write(&path, "ab").expect("a file is written");
        let (files, mut buffer) = (OpenFiles::default(), [0; 4]);
        let file = FileRef { id: FileId::Index(0), path: &path, stamp: None };
        let error = files.read(file, 0, &mut buffer).expect_err("four bytes of two");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        // A new file of the same name, as after a rename: only a new handle sees it.
        std::fs::remove_file(&path).expect("the file is removed");
        std::fs::write(&path, "abcd").expect("a file is written");
        files.read(file, 0, &mut buffer).expect("four bytes of four");
    }
}
