//! Shards of JSON lines that can be read at any place, also those that are packed.
//!
//! Comes in: a shard's path and a range of its text. Goes out: the bytes. A packed shard is unpacked once into a file without a name, and the
//! files used last stay, up to a number of bytes: neighbouring slots read the same shards for hundreds of steps. What a killed process had
//! unpacked is gone with it.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lru::LruCache;

use crate::{
    dataset::{FileId, Storage},
    mmc4::{ShardError, is_packed, walk},
};

/// Most bytes that are unpacked at once, by default: 40 shards as they are published.
const BYTES_LIMIT: u64 = 4 << 30;

/// A shard's text, when it was unpacked. The lock is held while it is being made, so that others wait instead of doing the same.
type Text = Arc<Mutex<Option<Arc<File>>>>;

/// The texts of shards.
#[derive(Debug)]
pub(super) struct Unpacked {
    /// Where files without names are made.
    folder: PathBuf,
    kept: Mutex<Kept>,
    limit: u64,
}

#[derive(Debug)]
struct Kept {
    texts: LruCache<usize, (Text, u64)>,
    bytes: u64,
}

impl Unpacked {
    /// Unpacks into `folder`, or where the system keeps what is temporary.
    pub(super) fn new(folder: Option<&Path>) -> Self {
        // A folder that cannot be written to has the indexes beside the shards; the texts need another place.
        let can_be_used = |folder: &Path| std::fs::create_dir_all(folder).is_ok() && tempfile::tempfile_in(folder).is_ok();
        let folder = folder.filter(|folder| can_be_used(folder)).map_or_else(std::env::temp_dir, Path::to_owned);
        Self { folder, kept: Mutex::new(Kept { texts: LruCache::unbounded(), bytes: 0 }), limit: BYTES_LIMIT }
    }

    /// `length` bytes from `offset` of the text of shard `number`.
    pub(super) fn read(
        &self,
        number: usize,
        path: &Path,
        offset: u64,
        length: usize,
        storage: &dyn Storage,
    ) -> Result<Vec<u8>, ShardError> {
        let mut bytes = vec![0; length];
        if is_packed(path)? {
            let text = self.text(number, path)?;
            text.read_exact_at(&mut bytes, offset)
        } else {
            storage.read(FileId::Shard(number), path, offset, &mut bytes)
        }
        .map_err(|source| ShardError::Read { path: path.to_owned(), offset, source })?;
        Ok(bytes)
    }

    fn text(&self, number: usize, path: &Path) -> Result<Arc<File>, ShardError> {
        let text = Arc::clone(&self.lock().texts.get_or_insert(number, || (Text::default(), 0)).0);
        let mut place = text.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &*place {
            return Ok(Arc::clone(file));
        }
        let (file, bytes) = self.unpack(path)?;
        let file = Arc::new(file);
        *place = Some(Arc::clone(&file));
        drop(place);
        self.count(number, bytes);
        Ok(file)
    }

    fn unpack(&self, path: &Path) -> Result<(File, u64), ShardError> {
        let failed = |source| ShardError::Unpack { path: path.to_owned(), folder: self.folder.clone(), source };
        let file = tempfile::tempfile_in(&self.folder).map_err(failed)?;
        let mut written = Ok(());
        let walked = walk(path, |line| {
            if let (Ok(()), Some(bytes)) = (&written, line.bytes()) {
                written = file.write_all_at(bytes, line.extent.offset);
            }
        })?;
        written.map_err(failed)?;
        Ok((file, walked.bytes))
    }

    /// Notes how large a text is, and drops the oldest beyond the limit. Who reads one of these at the moment keeps it until then.
    fn count(&self, number: usize, bytes: u64) {
        let mut kept = self.lock();
        let Some((_, size)) = kept.texts.get_mut(&number) else { return };
        let before = std::mem::replace(size, bytes);
        kept.bytes = kept.bytes + bytes - before;
        while kept.bytes > self.limit && kept.texts.len() > 1 {
            let Some((_, (_, size))) = kept.texts.pop_lru() else { break };
            kept.bytes -= size;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a text that is not whole any more is the reason: the shard is another one than was indexed.
pub(super) fn is_cut_short(error: &ShardError) -> bool {
    matches!(error, ShardError::Read { source, .. } if source.kind() == io::ErrorKind::UnexpectedEof)
}
