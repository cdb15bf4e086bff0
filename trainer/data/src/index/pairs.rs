//! The index of all pairs of a source: one for each shard, or one of all of them.
//!
//! Comes in: shards, where indexes may lie, and how samples are read. Goes out: how many samples there are and where each lies. A few shards on disks
//! have an index each. More of them, and objects, have one in one file as well ([`SetIndex`]), made of the others: opening it costs the same
//! at any size.

use std::{
    io::{self, Write},
    num::NonZero,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use lcl_trainer_config::SampleKeys;

use super::{
    Findings, IndexError, Record, ShardIndex, built, index_files, keys_digest, lock_for, over_all,
    record::{Header, record_bytes},
    set::{self, Identity, Part, SetIndex, Whole, file_name, identity_of},
};
use crate::{
    blob::{self, Blob, Stamp},
    dataset::{FileId, FileRef, Storage},
    retry::{sleep, with_retries},
};

/// Shards on disks from which on they have one index of all.
const SET_FROM: usize = 64;

/// Shards that are looked at before anything else is done, to find those that have changed: a file server answers so many in a second, and four pages of
/// a list have them. Of more it is found out while training goes on.
const LOOK_LIMIT: usize = 4096;

/// Objects that are indexed by whoever finds no index: some minutes. Each node of a large job would read all of them.
const OBJECTS_LIMIT: usize = 64;

/// Where an index of all shards may lie, and whether one may be made for any number of objects.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places<'a> {
    /// A folder, or a folder's URI.
    pub(crate) index_path: Option<&'a str>,
    /// Whether this is what the index is made for: then it may also lie in an object store.
    pub(crate) is_asked_for: bool,
}

impl<'a> Places<'a> {
    fn folder(&self) -> Option<&'a Path> {
        self.index_path.map(Path::new)
    }

    /// Where the index of these shards may lie, in the order of preference.
    fn of(&self, first: &Path, identity: &Identity) -> Vec<PathBuf> {
        let name = file_name(identity);
        // Nothing can be written to a web server; its index lies where it is made, unless a place is named.
        let is_web = first.to_str().is_some_and(|uri| uri.starts_with("http"));
        let beside = first.parent().filter(|_| !is_web).map(Path::to_owned);
        // What is made for all nodes is of no use in a cache of this one.
        let is_remote = |path: &Path| blob::is_remote(path);
        let is_only_place = is_web && self.folder().is_none();
        let is_local = (!self.is_asked_for || is_only_place) && (is_remote(first) || self.folder().is_some_and(is_remote));
        let local = if is_local { blob::index_folder() } else { None };
        self.folder().map(Path::to_owned).into_iter().chain(beside).chain(local).map(|folder| folder.join(&name)).collect()
    }
}

/// The index of all shards that [`index_whole`] has made or found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WholeReport {
    /// Where it lies: a path or a URI.
    pub index: PathBuf,
    /// Shards.
    pub shards: usize,
    /// Samples.
    pub samples: u64,
}

/// Makes the index of all these shards where it is of use: for objects, and for many shards on disks. It may lie in an object store: beside the
/// shards, or where `index_path` says.
pub fn index_whole(
    shards: &[PathBuf],
    index_path: Option<&str>,
    keys: &SampleKeys,
    threads: NonZero<usize>,
) -> Result<Option<WholeReport>, IndexError> {
    if !has_set(shards) {
        return Ok(None);
    }
    let places = Places { index_path, is_asked_for: true };
    let index = match PairIndex::find(shards, keys, places, threads)? {
        Some(index) => index,
        None => PairIndex::open(shards.to_vec(), keys, places, threads)?,
    };
    let Parts::Set(set) = &index.parts else { return Ok(None) };
    let samples = index.ends().last().copied().unwrap_or(0);
    Ok(Some(WholeReport { index: set.index.path().to_owned(), shards: shards.len(), samples }))
}

/// An object whose samples are known without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownShard {
    /// Bytes.
    pub length: u64,
    /// Its `ETag`.
    pub e_tag: String,
    /// Samples.
    pub samples: u64,
}

/// Writes the index of all these objects to a file, for whoever knows where samples lie without reading them: benchmarks, and whoever has written the
/// shards. `records` gives the records of a shard, as many as it has samples.
pub fn write_whole(
    folder: &Path,
    shards: &[PathBuf],
    keys: &SampleKeys,
    known: impl Fn(usize) -> KnownShard,
    records: impl Fn(usize) -> Vec<Record>,
) -> Result<PathBuf, IndexError> {
    let keys = &keys.of_index();
    let header = |number: usize| {
        let KnownShard { length, e_tag, samples } = known(number);
        let uri = shards.get(number).map(|shard| shard.display().to_string()).unwrap_or_default();
        let object = lcl_objects::Object { uri, size: length, e_tag: Some(e_tag), modified: 0 };
        let stamp = Stamp::of_object(&object);
        Header { stamp, record_bytes: record_bytes(keys) as u32, count: samples, findings_bytes: 0, findings_check: 0 }
    };
    let mut findings = Findings::none(keys);
    let parts: Vec<Part> =
        (0..shards.len()).map(header).map(|header| Part { stamp: header.stamp, count: header.count, seal: header.seal() }).collect();
    findings.samples = parts.iter().map(|part| part.count).sum();
    findings.usable = findings.samples;
    let write_records = |number: usize, writer: &mut dyn Write| {
        let seal = parts.get(number).map_or(0, |part| part.seal);
        records(number).iter().zip(0..).try_for_each(|(record, own)| writer.write_all(&record.encode(seal, own)))
    };
    let identity = identity_of(shards, &settings(keys));
    let path = folder.join(file_name(&identity));
    // Plain data with string keys: turning them into JSON cannot fail.
    let found = serde_json::to_vec(&findings).unwrap_or_default();
    let whole = Whole { identity: &identity, record_bytes: record_bytes(keys), found: &found, parts: &parts, records: &write_records };
    let failed = |source| IndexError::Write { shard: shards.first().cloned().unwrap_or_default(), path: path.clone(), source };
    set::write(&path, &whole).map_err(failed)?;
    Ok(path)
}

/// Where each sample of a source lies.
#[derive(Debug)]
pub(crate) struct PairIndex {
    shards: Arc<[PathBuf]>,
    parts: Parts,
}

#[derive(Debug)]
enum Parts {
    Each(Vec<ShardIndex>),
    Set(Box<Set>),
}

/// An index of all shards.
#[derive(Debug)]
struct Set {
    index: SetIndex,
    findings: Findings,
    /// The first shard that was found to have changed, by whoever looks at them while training goes on.
    changed: Arc<OnceLock<PathBuf>>,
}

impl PairIndex {
    /// The index that there is of all these shards, if it is of use. Which of them are there is not looked at.
    pub(crate) fn find(
        shards: &[PathBuf],
        keys: &SampleKeys,
        places: Places<'_>,
        threads: NonZero<usize>,
    ) -> Result<Option<Self>, IndexError> {
        let Some(first) = shards.first().filter(|_| has_set(shards)) else { return Ok(None) };
        let identity = identity_of(shards, &settings(keys));
        for place in places.of(first, &identity) {
            let open = || {
                let named = |source| IndexError::Read { path: place.clone(), source };
                SetIndex::open(&place, &identity, record_bytes(keys)).map_err(named)
            };
            let Some(index) = with_retries(0, sleep, IndexError::io, open)? else { continue };
            let Ok(findings) = serde_json::from_slice(index.found()) else { continue };
            let set = Set { index, findings, changed: Arc::default() };
            let found = Self { shards: shards.into(), parts: Parts::Set(Box::new(set)) };
            if places.is_asked_for || shards.len() <= LOOK_LIMIT {
                if let Some(changed) = found.changed(threads)? {
                    tracing::warn!(index = %place.display(), shard = %changed.display(), "a shard has changed since it was indexed: indexing it again");
                    continue;
                }
            } else {
                found.look_meanwhile(threads);
            }
            return Ok(Some(found));
        }
        Ok(None)
    }

    /// Opens or makes the indexes of these shards, which are there.
    pub(crate) fn open(shards: Vec<PathBuf>, keys: &SampleKeys, places: Places<'_>, threads: NonZero<usize>) -> Result<Self, IndexError> {
        let objects = shards.iter().filter(|shard| blob::is_remote(shard)).count();
        if objects > OBJECTS_LIMIT && !places.is_asked_for {
            return Err(IndexError::NotMade { shards: objects, first: shards.first().cloned().unwrap_or_default() });
        }
        let each = over_all(threads, &shards, |shard| built(|| ShardIndex::open(shard, places.folder(), keys)))?;
        let index = Self { shards: shards.into(), parts: Parts::Each(each) };
        let Some(first) = index.shards.first().filter(|_| has_set(&index.shards)) else { return Ok(index) };
        let identity = identity_of(&index.shards, &settings(keys));
        let local = |place: &PathBuf| places.is_asked_for || !blob::is_remote(place);
        let mut files: Vec<PathBuf> = places.of(first, &identity).into_iter().filter(local).collect();
        // Where a place is named, it is made there and nowhere else.
        let is_named = places.index_path.is_some_and(|path| places.is_asked_for || !blob::is_remote(Path::new(path)));
        files.truncate(if is_named { 1 } else { files.len() });
        // The records of a large set are gigabytes: one process writes them, and others that have waited for it take what it wrote.
        let _lock = lock_for(&index_files(first, places.folder(), &keys.of_index()));
        if let Some(found) = Self::find(&index.shards, keys, places, threads)? {
            return Ok(found);
        }
        index.write_set(&files, &identity, keys, places.is_asked_for || is_named)?;
        Ok(Self::find(&index.shards, keys, places, threads)?.unwrap_or(index))
    }

    /// Writes the index of all shards to the first place that takes it.
    fn write_set(&self, files: &[PathBuf], identity: &Identity, keys: &SampleKeys, must: bool) -> Result<(), IndexError> {
        let Parts::Each(each) = &self.parts else { return Ok(()) };
        let mut findings = each.first().map_or_else(|| Findings::none(&SampleKeys::default()), |first| first.findings().clone());
        each.iter().skip(1).for_each(|shard| findings.add(shard.findings()));
        let parts: Vec<Part> = each.iter().map(ShardIndex::part).collect();
        let records = |number: usize, writer: &mut dyn Write| each.get(number).map_or(Ok(()), |shard| shard.copy_records(writer));
        // Plain data with string keys: turning them into JSON cannot fail.
        let found = serde_json::to_vec(&findings).unwrap_or_default();
        let whole = Whole { identity, record_bytes: record_bytes(keys), found: &found, parts: &parts, records: &records };
        let mut first_error = None;
        for file in files {
            match set::write(file, &whole) {
                Ok(()) => {
                    tracing::info!(index = %file.display(), shards = parts.len(), samples = findings.samples, "made the index of all shards");
                    return Ok(());
                }
                Err(error) => {
                    tracing::warn!(index = %file.display(), %error, "the index of all shards cannot be written here");
                    first_error.get_or_insert((file, error));
                }
            }
        }
        match first_error {
            Some((path, source)) if must => {
                Err(IndexError::Write { shard: self.shards.first().cloned().unwrap_or_default(), path: path.clone(), source })
            }
            Some((path, error)) => {
                tracing::warn!(
                    index = %path.display(), %error,
                    "the index of all shards cannot be written, and opening them takes longer: set spec.data.indexPath to a folder that can be written to"
                );
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Whether some shards are objects.
    pub(crate) fn has_objects(&self) -> bool {
        self.shards.iter().any(|shard| blob::is_remote(shard))
    }

    /// An index of one shard that is in memory alone.
    pub(crate) fn of_one(index: ShardIndex) -> Self {
        Self { shards: [index.shard().to_owned()].into(), parts: Parts::Each(vec![index]) }
    }

    /// The first shard that is not as it was when it was indexed.
    fn changed(&self, threads: NonZero<usize>) -> Result<Option<PathBuf>, IndexError> {
        let Parts::Set(set) = &self.parts else { return Ok(None) };
        first_changed(&self.shards, &set.index, threads, || false)
    }

    /// Looks at all shards on a thread of its own, which nobody waits for; it ends with the data set.
    fn look_meanwhile(&self, threads: NonZero<usize>) {
        let Parts::Set(set) = &self.parts else { return };
        let (shards, changed) = (Arc::clone(&self.shards), Arc::downgrade(&set.changed));
        let stamps: Vec<Stamp> = set.index.shards().iter().map(|shard| shard.stamp).collect();
        let look = move || {
            let is_over = || changed.strong_count() == 0;
            match changed_of(&shards, &stamps, threads, is_over) {
                Ok(Some(shard)) => drop(changed.upgrade().map(|changed| changed.set(shard))),
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "looking whether shards have changed"),
            }
        };
        // Without a thread it is noticed when a shard is read.
        drop(std::thread::Builder::new().name("data-look".to_owned()).spawn(look));
    }

    /// For every shard, the number of the sample after its last one.
    pub(crate) fn ends(&self) -> Arc<[u64]> {
        match &self.parts {
            Parts::Set(set) => set.index.ends(),
            Parts::Each(each) => each
                .iter()
                .scan(0, |end, shard| {
                    *end += shard.count();
                    Some(*end)
                })
                .collect(),
        }
    }

    /// Where the index of all shards lies, where there is one.
    pub(crate) fn whole(&self) -> Option<&Path> {
        match &self.parts {
            Parts::Set(set) => Some(set.index.path()),
            Parts::Each(_) => None,
        }
    }

    /// The shards, and what was found in them, each or all together.
    pub(crate) fn findings(&self) -> Vec<(&Path, &Findings)> {
        match &self.parts {
            Parts::Set(set) => self.shards.first().map(|first| (first.as_path(), &set.findings)).into_iter().collect(),
            Parts::Each(each) => each.iter().map(|shard| (shard.shard(), shard.findings())).collect(),
        }
    }

    /// Path, bytes and samples of every shard.
    pub(crate) fn describe(&self) -> Vec<(&Path, u64, u64)> {
        match &self.parts {
            Parts::Each(each) => each.iter().map(|shard| (shard.shard(), shard.shard_length(), shard.count())).collect(),
            Parts::Set(set) => {
                let ends = set.index.ends();
                let begins = [0].into_iter().chain(ends.iter().copied());
                let counts = ends.iter().zip(begins).map(|(end, begin)| end - begin);
                self.shards
                    .iter()
                    .zip(set.index.shards())
                    .zip(counts)
                    .map(|((path, shard), count)| (path.as_path(), shard.stamp.length, count))
                    .collect()
            }
        }
    }

    /// A shard, for reading it.
    pub(crate) fn file(&self, number: usize) -> FileRef<'_> {
        let path = self.shards.get(number).map_or(Path::new(""), PathBuf::as_path);
        let stamp = match &self.parts {
            Parts::Each(_) => None,
            Parts::Set(set) => set.index.shards().get(number).map(|shard| shard.stamp),
        };
        FileRef { id: FileId::Shard(number), path, stamp }
    }

    /// Where sample `number` of a shard lies, the sample `sample` of all.
    pub(crate) fn record(&self, sample: u64, shard: usize, number: u64, storage: &dyn Storage) -> Result<Option<Record>, IndexError> {
        match &self.parts {
            Parts::Each(each) => {
                let Some(index) = each.get(shard) else { return Ok(None) };
                let read = |path: &Path, offset: u64, buffer: &mut [u8]| {
                    storage.read(FileRef { id: FileId::Index(shard), path, stamp: None }, offset, buffer)
                };
                index.record(number, read).map(Some)
            }
            Parts::Set(set) => {
                if let Some(shard) = set.changed.get() {
                    return Err(IndexError::ChangedSince { shard: shard.clone(), index: set.index.path().to_owned() });
                }
                let named = |source: io::Error| IndexError::Read { path: set.index.path().to_owned(), source };
                let Some(found) = set.index.record(sample).map_err(named)? else { return Ok(None) };
                let record = Record::decode(found.bytes(), found.seal, found.number);
                record.map(Some).ok_or_else(|| IndexError::Damaged { path: set.index.path().to_owned() })
            }
        }
    }
}

/// Whether these shards have one index of all.
fn has_set(shards: &[PathBuf]) -> bool {
    shards.len() >= SET_FROM || shards.iter().any(|shard| blob::is_remote(shard))
}

/// What decides which samples there are, and what their records say.
fn settings(keys: &SampleKeys) -> String {
    format!("pairs {}: {:016x}", super::record::VERSION, keys_digest(&keys.of_index()))
}

fn first_changed(
    shards: &[PathBuf],
    index: &SetIndex,
    threads: NonZero<usize>,
    is_over: impl Fn() -> bool + Sync,
) -> Result<Option<PathBuf>, IndexError> {
    let stamps: Vec<Stamp> = index.shards().iter().map(|shard| shard.stamp).collect();
    changed_of(shards, &stamps, threads, is_over)
}

/// The first shard that has not this stamp any more.
fn changed_of(
    shards: &[PathBuf],
    stamps: &[Stamp],
    threads: NonZero<usize>,
    is_over: impl Fn() -> bool + Sync,
) -> Result<Option<PathBuf>, IndexError> {
    let named = |path: &Path| {
        let path = path.to_owned();
        move |source| IndexError::Shard(crate::shard::ShardError::Open { path, source })
    };
    for folder in crate::shard::listable_folders(shards) {
        with_retries(0, sleep, IndexError::io, || blob::list(folder).map_err(named(Path::new(folder))))?;
    }
    let pairs: Vec<(&PathBuf, &Stamp)> = shards.iter().zip(stamps).collect();
    let looked = over_all(threads, &pairs, |(path, stamp)| {
        if is_over() {
            return Ok(false);
        }
        let look = || match Blob::stamp_of(path) {
            Ok(found) => Ok(found != **stamp),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(source) => Err(named(path)(source)),
        };
        with_retries(0, sleep, IndexError::io, look)
    })?;
    Ok(shards.iter().zip(looked).find(|(_, changed)| *changed).map(|(path, _)| path.clone()))
}
