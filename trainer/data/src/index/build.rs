//! Making indexes: walking a shard, writing the file, and doing so for many shards at once.
//!
//! Comes in: shards. Goes out: the bytes of their indexes and, where that works, files with them.

use std::{
    io::{self, Write},
    num::NonZero,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use lcl_filter::Filtered;
use lcl_objects::Stop;
use lcl_trainer_config::SampleKeys;

use crate::{
    blob::Blob,
    index::{
        Findings, IndexError, Record, Usable, find_usable,
        findings::Collector,
        index_files,
        record::{Header, record_bytes},
        sieve::Sieve,
        stamp_of, writable,
    },
    retry::{hearing, sleep, with_retries},
    shard::{self, SampleFiles, SampleScanner, ShardError},
};

/// What [`index_shards`] did for one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexReport {
    /// The shard.
    pub shard: PathBuf,
    /// Its index file.
    pub index: PathBuf,
    /// What is in it.
    pub findings: Findings,
    /// Whether the file was written now; otherwise it was there and up to date.
    pub written: bool,
}

/// Makes sure that every shard has an index file, with `threads` threads; shards that have a usable one cost a look at its header.
///
/// Unlike opening a data set, a file that cannot be written is an error. What is wrong with one shard keeps no other from being indexed: the outcomes are
/// those of all shards, in their order. What is wrong with all of them (an expression that is no filter, a store that lets nobody in, a disk without
/// room) is the error, and ends the work.
pub fn index_shards(
    shards: &[PathBuf],
    folder: Option<&Path>,
    keys: &SampleKeys,
    threads: NonZero<usize>,
) -> Result<Vec<Result<IndexReport, IndexError>>, IndexError> {
    over_all(threads, shards, |shard| match built(|| index_one(shard, folder, keys)) {
        Err(error) if error.is_of_all() => Err(error),
        outcome => Ok(outcome),
    })
}

fn index_one(shard: &Path, folder: Option<&Path>, keys: &SampleKeys) -> Result<IndexReport, IndexError> {
    let report = |index: &Path, findings, written| IndexReport { shard: shard.to_owned(), index: index.to_owned(), findings, written };
    let (file, keys) = (shard::open(shard)?, &keys.of_index());
    let places = index_files(shard, folder, keys);
    if let Some(Usable { path, findings, .. }) = find_usable(&places, stamp_of(shard, &file)?, keys)? {
        return Ok(report(path, findings, false));
    }
    let Built { findings, bytes, .. } = build(shard, &file, keys)?;
    match write_first(writable(&places, folder), &bytes) {
        Ok(path) => Ok(report(path, findings, true)),
        Err((path, source)) => Err(IndexError::Write { shard: shard.to_owned(), path: path.clone(), source }),
    }
}

/// Runs what opens or builds an index, again after errors that may pass.
pub(crate) fn built<T>(operation: impl FnMut() -> Result<T, IndexError>) -> Result<T, IndexError> {
    with_retries(0, sleep, IndexError::io, operation)
}

/// An index that was made.
pub(crate) struct Built {
    pub(crate) header: Header,
    pub(crate) findings: Findings,
    /// The whole contents of its file.
    pub(crate) bytes: Vec<u8>,
}

/// Makes the index of `shard`.
pub(crate) fn build(shard: &Path, file: &Blob, keys: &SampleKeys) -> Result<Built, IndexError> {
    let stamp = stamp_of(shard, file)?;
    let sieve = Sieve::new(shard, file, keys)?;
    let (mut records, mut collector) = (Vec::new(), Collector::new(keys));
    let mut failed = None;
    let archives = for_each_sample(shard, file, keys, |files| {
        if failed.is_some() {
            return;
        }
        match sieve.judge(&files) {
            Ok(Ok(())) => {
                collector.take(&files);
                match Record::of(&files, keys) {
                    Some(record) => records.push(record),
                    None => failed = Some(ShardError::TooLarge { path: shard.to_owned() }),
                }
            }
            Ok(Err(filtered)) => collector.leave_out(&files, &filtered),
            Err(error) => failed = Some(error),
        }
    })?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    if stamp_of(shard, file)? != stamp {
        return Err(IndexError::ShardChanged { shard: shard.to_owned() });
    }
    let findings = collector.finish(archives);
    if archives > 1 {
        tracing::info!(shard = %shard.display(), archives, "shard is several archives one after the other: all are read");
    }
    // Plain data with string keys: turning them into JSON cannot fail.
    let found = serde_json::to_vec(&findings).unwrap_or_default();
    let header = Header {
        stamp,
        record_bytes: record_bytes(keys) as u32,
        count: records.len() as u64,
        findings_bytes: found.len() as u32,
        findings_check: crc32fast::hash(&found),
    };
    let seal = header.seal();
    let mut bytes = [header.encode().as_slice(), &found].concat();
    for (number, record) in records.into_iter().enumerate() {
        bytes.extend(record.encode(seal, number as u64));
    }
    Ok(Built { header, findings, bytes })
}

/// Calls `visit` for every sample that the filter of these keys leaves out: its key and first byte, its sidecar where it has one, and why.
pub(crate) fn for_each_filtered(shard: &Path, keys: &SampleKeys, mut visit: impl FnMut(&SampleFiles, &Filtered)) -> Result<(), IndexError> {
    let (file, keys) = (shard::open(shard)?, &keys.of_index());
    let sieve = Sieve::new(shard, &file, keys)?;
    let mut failed = None;
    for_each_sample(shard, &file, keys, |files| {
        if failed.is_none() {
            match sieve.judge(&files) {
                Ok(Ok(())) => {}
                Ok(Err(filtered)) => visit(&files, &filtered),
                Err(error) => failed = Some(error),
            }
        }
    })?;
    failed.map_or(Ok(()), |error| Err(error.into()))
}

/// Calls `visit` for every sample of a shard, in order, and gives the number of archives in it.
pub(crate) fn for_each_sample(shard: &Path, file: &Blob, keys: &SampleKeys, mut visit: impl FnMut(SampleFiles)) -> Result<u64, ShardError> {
    let mut scanner = SampleScanner::new(keys);
    let archives = shard::walk(shard, file, |member| {
        if let Some(files) = scanner.push(member) {
            visit(files);
        }
    })?;
    scanner.finish().into_iter().for_each(visit);
    Ok(archives)
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

/// Applies `operation` to every item with `threads` threads; results in the items' order, or the first error in that order. After an error no further
/// item is begun: those before it were.
pub(crate) fn over_all<I: Sync, T: Send, E: Send>(
    threads: NonZero<usize>,
    items: &[I],
    operation: impl Fn(&I) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let results = Mutex::new(Vec::with_capacity(items.len()));
    let stop = Stop::of_thread();
    let work = || {
        while !failed.load(Ordering::Relaxed)
            && let Some((number, item)) = Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|number| Some((number, items.get(number)?)))
        {
            let result = operation(item);
            failed.fetch_or(result.is_err(), Ordering::Relaxed);
            results.lock().unwrap_or_else(PoisonError::into_inner).push((number, result));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.get().min(items.len()) {
            scope.spawn(|| hearing(stop.as_ref(), work));
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(number, _)| *number);
    results.into_iter().map(|(_, result)| result).collect()
}
