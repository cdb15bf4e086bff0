//! Shards of JSON lines any of which can be read, also of packed ones.
//!
//! Comes in: a shard's path and where a line is in its text. Goes out: the line's bytes. A packed shard is unpacked once into a file without a name, and the
//! files used last stay, up to a number of bytes: neighbouring slots read the same shards for hundreds of steps. What a killed process had
//! unpacked is gone with it.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use lru::LruCache;

use crate::{
    dataset::{FileId, FileRef, Storage},
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
    /// Whether each shard is packed, once it was looked at.
    packed: Box<[OnceLock<bool>]>,
    kept: Mutex<Kept>,
    limit: u64,
}

#[derive(Debug)]
struct Kept {
    texts: LruCache<usize, (Text, u64)>,
    bytes: u64,
}

impl Unpacked {
    /// The texts of so many shards, unpacked into `folder`, or where the system keeps what is temporary.
    pub(super) fn new(folder: Option<&Path>, shards: usize) -> Self {
        // A folder that cannot be written to may hold the indexes, made before; the texts need another place.
        let can_be_used = |folder: &Path| std::fs::create_dir_all(folder).is_ok() && tempfile::tempfile_in(folder).is_ok();
        let folder = folder.filter(|folder| can_be_used(folder)).map_or_else(std::env::temp_dir, Path::to_owned);
        let packed = (0..shards).map(|_| OnceLock::new()).collect();
        Self { folder, packed, kept: Mutex::new(Kept { texts: LruCache::unbounded(), bytes: 0 }), limit: BYTES_LIMIT }
    }

    /// The line of `length` bytes at `offset` of the text of shard `number`.
    pub(super) fn read(
        &self,
        number: usize,
        path: &Path,
        offset: u64,
        length: usize,
        storage: &dyn Storage,
    ) -> Result<Vec<u8>, ShardError> {
        let mut bytes = vec![0; length];
        if self.is_packed(number, path)? {
            let text = self.text(number, path)?;
            text.read_exact_at(&mut bytes, offset)
        } else {
            storage.read(FileRef { id: FileId::Shard(number), path, stamp: None }, offset, &mut bytes)
        }
        .map_err(|source| ShardError::Read { path: path.to_owned(), offset, source })?;
        Ok(bytes)
    }

    pub(super) fn is_packed(&self, number: usize, path: &Path) -> Result<bool, ShardError> {
        if let Some(known) = self.packed.get(number).and_then(OnceLock::get) {
            return Ok(*known);
        }
        let found = is_packed(path)?;
        Ok(self.packed.get(number).map_or(found, |packed| *packed.get_or_init(|| found)))
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

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::dataset::OpenFiles;

    /// A shard with this text, packed into an archive.
    fn pack(folder: &Path, number: usize, text: &str) -> PathBuf {
        let path = folder.join(format!("docs_shard_{number}_v2.jsonl.zip"));
        let mut archive = zip::ZipWriter::new(File::create(&path).expect("the shard is created"));
        archive.start_file(format!("docs_shard_{number}_v2.jsonl"), zip::write::SimpleFileOptions::default()).expect("a member");
        archive.write_all(text.as_bytes()).expect("the text is written");
        archive.finish().expect("the archive is finished");
        path
    }

    #[test]
    fn texts_are_read_anywhere_by_many_threads_and_the_oldest_make_room() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        // All lines have the same length.
        let line = |line: usize, shard: usize| format!("line {line:02} of shard {shard}");
        let text = |shard: usize| (0..50).map(|number| line(number, shard) + "\n").collect::<String>();
        let paths: Vec<PathBuf> = (0..6).map(|shard| pack(folder.path(), shard, &text(shard))).collect();
        let one = text(0).len() as u64;
        let texts = Unpacked { limit: 2 * one + one / 2, ..Unpacked::new(Some(folder.path()), paths.len()) };
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (texts, paths) = (&texts, &paths);
                scope.spawn(move || {
                    for turn in 0..60 {
                        let (shard, number) = ((thread + turn / 3) % paths.len(), turn * 7 % 50);
                        let expected = line(number, shard);
                        let offset = (number * (expected.len() + 1)) as u64;
                        let found = texts.read(shard, &paths[shard], offset, expected.len(), &OpenFiles::default());
                        assert_eq!(found.expect("the line is read"), expected.as_bytes());
                    }
                });
            }
        });
        let kept = texts.lock();
        let sizes: u64 = kept.texts.iter().map(|(_, (_, size))| size).sum();
        assert_eq!(kept.bytes, sizes);
        assert!((1..=2).contains(&kept.texts.len()), "{} texts are kept", kept.texts.len());
    }

    #[test]
    fn a_text_that_ends_early_is_told_from_one_that_cannot_be_read() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = pack(folder.path(), 0, "short");
        let texts = Unpacked::new(None, 1);
        assert!(is_cut_short(&texts.read(0, &path, 3, 40, &OpenFiles::default()).expect_err("five bytes")));
        let gone = Unpacked { folder: folder.path().join("gone"), ..Unpacked::new(None, 1) };
        let error = gone.read(0, &path, 0, 5, &OpenFiles::default()).expect_err("there is no folder");
        assert!(!is_cut_short(&error) && error.to_string().contains("set spec.data.indexPath"), "{error}");
    }
}
