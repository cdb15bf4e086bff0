//! Making indexes: walking a shard, writing the file, and doing so for many shards at once.
//!
//! Comes in: shards. Goes out: the bytes of their indexes and, where that works, files with them.

use std::{
    fs::File,
    io::{self, Write},
    num::NonZero,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use lcl_trainer_config::SampleKeys;

use crate::{
    index::{
        IndexError, Record, find_usable, index_files,
        record::{Header, keys_digest},
        stamp_of,
    },
    retry::with_retries,
    shard::{self, Group, Grouper, ShardError},
};

/// What [`index_shards`] did for one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexReport {
    /// The shard.
    pub shard: PathBuf,
    /// Its index file.
    pub index: PathBuf,
    /// Samples in it, unusable ones included.
    pub samples: u64,
    /// How many of them have both an image and a caption.
    pub pairs: u64,
    /// Whether the file was written now; otherwise it was there and up to date.
    pub written: bool,
}

/// Makes sure that every shard has an index file, with `threads` threads; shards that have a usable one cost a look at its header.
///
/// Unlike opening a data set, a file that cannot be written is an error. All shards are tried; the first error in the order of shards is
/// returned.
pub fn index_shards(
    shards: &[PathBuf],
    folder: Option<&Path>,
    keys: &SampleKeys,
    threads: NonZero<usize>,
) -> Result<Vec<IndexReport>, IndexError> {
    over_all(threads, shards, |shard| built(|| index_one(shard, folder, keys)))
}

fn index_one(shard: &Path, folder: Option<&Path>, keys: &SampleKeys) -> Result<IndexReport, IndexError> {
    let report = |index: &Path, header: Header, written| IndexReport {
        shard: shard.to_owned(),
        index: index.to_owned(),
        samples: header.count,
        pairs: header.pairs,
        written,
    };
    let file = shard::open(shard)?;
    let places = index_files(shard, folder, keys);
    if let Some((path, header)) = find_usable(&places, stamp_of(shard, &file)?, keys)? {
        return Ok(report(path, header, false));
    }
    let (header, bytes) = build(shard, &file, keys)?;
    match write_first(&places, &bytes) {
        Ok(path) => Ok(report(path, header, true)),
        Err((path, source)) => Err(IndexError::Write { shard: shard.to_owned(), path: path.clone(), source }),
    }
}

/// Runs what opens or builds an index, again after errors that may pass.
pub(crate) fn built<T>(operation: impl FnMut() -> Result<T, IndexError>) -> Result<T, IndexError> {
    let wait = |delay| {
        std::thread::sleep(delay);
        false
    };
    with_retries(0, wait, IndexError::io, operation)
}

/// Header and whole contents of the index of `shard`.
pub(crate) fn build(shard: &Path, file: &File, keys: &SampleKeys) -> Result<(Header, Vec<u8>), IndexError> {
    let stamp = stamp_of(shard, file)?;
    let mut records = Vec::new();
    let mut too_large = false;
    for_each_group(shard, file, keys, |group| match Record::of(&group) {
        Some(record) => records.push(record),
        None => too_large = true,
    })?;
    if too_large {
        return Err(ShardError::TooLarge { path: shard.to_owned() }.into());
    }
    if stamp_of(shard, file)? != stamp {
        return Err(IndexError::ShardChanged { shard: shard.to_owned() });
    }
    let is_pair = |record: &&Record| record.image.is_some() && record.caption.is_some();
    let pairs = records.iter().filter(is_pair).count() as u64;
    let header = Header { stamp, keys: keys_digest(keys), count: records.len() as u64, pairs };
    let header_bytes = header.encode();
    let mut bytes = header_bytes.to_vec();
    for (number, record) in records.into_iter().enumerate() {
        bytes.extend(record.encode(&header_bytes, number as u64));
    }
    Ok((header, bytes))
}

/// Calls `visit` for every sample of a shard, in order.
pub(super) fn for_each_group(shard: &Path, file: &File, keys: &SampleKeys, mut visit: impl FnMut(Group)) -> Result<(), ShardError> {
    let mut grouper = Grouper::new(keys);
    shard::walk(shard, file, |member| {
        if let Some(group) = grouper.push(member) {
            visit(group);
        }
    })?;
    grouper.finish().into_iter().for_each(visit);
    Ok(())
}

/// Writes an index to the first place that takes it; else the error of the first.
pub(crate) fn write_first<'a>(places: &'a [PathBuf], bytes: &[u8]) -> Result<&'a PathBuf, (PathBuf, io::Error)> {
    let mut first_error = None;
    for path in places {
        match write(path, bytes) {
            Ok(()) => return Ok(path),
            Err(error) => {
                first_error.get_or_insert((path.clone(), error));
            }
        }
    }
    Err(first_error.unwrap_or_else(|| (PathBuf::new(), io::ErrorKind::InvalidInput.into())))
}

/// Writes under a temporary name and renames: no other process ever sees part of an index. It is not flushed to the disk, because an index that a
/// power failure cuts short is noticed and built again.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)?;
    }
    let mut file = shard::new_file_for(path)?;
    file.write_all(bytes)?;
    file.persist(path)?;
    Ok(())
}

/// Applies `operation` to every item with `threads` threads; results in the items' order, or the first error in that order.
pub(crate) fn over_all<I: Sync, T: Send, E: Send>(
    threads: NonZero<usize>,
    items: &[I],
    operation: impl Fn(&I) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::with_capacity(items.len()));
    std::thread::scope(|scope| {
        for _ in 0..threads.get().min(items.len()) {
            scope.spawn(|| {
                while let Some((number, item)) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|number| Some((number, items.get(number)?)))
                {
                    let result = operation(item);
                    results.lock().unwrap_or_else(PoisonError::into_inner).push((number, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(number, _)| *number);
    results.into_iter().map(|(_, result)| result).collect()
}
