//! All samples of a data set under one numbering, and how to read any of them directly.
//!
//! Comes in: a [`DataConfig`]. Goes out: how many samples there are, in which order they come ([`Dataset::order`]) and its encoded image and
//! caption ([`Dataset::read`]). It decodes no image and tokenizes no text.

mod captions;
mod description;
mod error;
mod files;
mod no_pair;
mod pairs;

use std::{
    collections::{BTreeSet, HashSet},
    num::NonZero,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use lcl_trainer_config::{DataConfig, DataSource, MixtureUnit, SampleKeys, ShuffleConfig};

pub(crate) use captions::Choose;
use description::DescribedSource;
pub use description::Description;
pub use error::DatasetError;
#[cfg(test)]
pub(crate) use files::OpenFiles;
pub(crate) use files::{FileId, FileRef, Storage};
pub use no_pair::NoPair;
pub use pairs::Sample;
pub(crate) use pairs::{Blamed, Room};
use pairs::{Pairs, pairs_of};

use crate::{
    blob,
    cause::{RedrawCause, SkipCause, Tolerated},
    documents::{self, DocumentFindings},
    index::{
        IndexError, ShardIndex, built,
        pairs::{PairIndex, Places},
    },
    mixture::{Counted, Mixture},
    order::{Order, Orders},
    retry::{sleep, with_retries},
    shard::{ListError, ListOrigin, find_present_shards, find_shards, name_shards},
};

/// Most bytes of an encoded image. Photographs have up to some 50 MB, and what is decoded is bounded by pixels as well.
pub const IMAGE_BYTES_LIMIT: u32 = 256 << 20;

/// Most bytes of a caption: far beyond any context (2,048 tokens are some 10 kB), and small enough to tokenize in a moment.
pub const CAPTION_BYTES_LIMIT: u32 = 1 << 20;

/// Most bad records that are remembered as logged, 16 MiB of memory. A data set with more has one further line in the log.
const LOGGED_LIMIT: usize = 1 << 20;

/// The shards of a data set with their indexes. Cheap in memory: what it holds grows with the number of shards, not of samples.
#[derive(Debug)]
pub struct Dataset {
    sources: Vec<Source>,
    mixture: Mixture,
    shuffle: ShuffleConfig,
    logged: Mutex<HashSet<u64>>,
    /// Documents that were named because they give no sequence.
    redrawn: Mutex<HashSet<u64>>,
    tolerated: Mutex<BTreeSet<Tolerated>>,
}

/// One of the sources, or the only one.
#[derive(Debug)]
struct Source {
    name: String,
    content: Content,
    /// Number of its first sample among those of all sources.
    first: u64,
    /// For every shard, the number of the source's own sample after its last one.
    ends: Arc<[u64]>,
}

/// What there is of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SourceCounts {
    pub(crate) name: String,
    pub(crate) first: u64,
    pub(crate) samples: u64,
    pub(crate) images: u64,
    pub(crate) shards: u64,
    pub(crate) bytes: u64,
}

/// What the samples are.
#[derive(Debug)]
enum Content {
    Pairs(Pairs),
    Documents(Box<dyn documents::Source>),
}

/// What reading a sample gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// An image and its caption.
    Sample(Sample),
    /// The record is bad; its slot stays empty.
    Skipped(SkipCause),
}

impl Dataset {
    /// Opens the shards of `config.source`, making the indexes that are missing or stale with `config.threads` threads.
    pub fn open(config: &DataConfig) -> Result<Self, DatasetError> {
        Self::open_from(config, ListOrigin::Manifest)
    }

    /// Looks whether the shards of `config.source` are there, and opens none.
    pub fn look_for_shards(config: &DataConfig) -> Result<(), ListError> {
        let threads = NonZero::new(config.threads).unwrap_or(NonZero::<usize>::MIN);
        blob::use_cache(&config.cache);
        match &config.source {
            DataSource::Mixture { mixture } => {
                mixture.sources.iter().enumerate().try_for_each(|(number, mixed)| look_for(&mixed.source, Some(number), threads))
            }
            source => look_for(source, None, threads),
        }
    }

    /// As [`Dataset::open`], for a list of shards that was given by `origin`.
    pub fn open_from(config: &DataConfig, origin: ListOrigin) -> Result<Self, DatasetError> {
        Self::open_on(config, origin, Box::new(files::OpenFiles::default()))
    }

    /// As [`Dataset::open_from`], for whoever makes the indexes that all others are to find: of any number of objects, beside them or where the
    /// configuration says.
    pub fn make_indexes(config: &DataConfig, origin: ListOrigin) -> Result<Self, DatasetError> {
        Self::open_for(config, origin, Box::new(files::OpenFiles::default()), true)
    }

    /// The same, with samples and index records read through `storage`.
    pub(crate) fn open_on(config: &DataConfig, origin: ListOrigin, storage: Box<dyn Storage>) -> Result<Self, DatasetError> {
        Self::open_for(config, origin, storage, false)
    }

    fn open_for(config: &DataConfig, origin: ListOrigin, storage: Box<dyn Storage>, is_asked_for: bool) -> Result<Self, DatasetError> {
        let threads = NonZero::new(config.threads).unwrap_or(NonZero::<usize>::MIN);
        blob::use_cache(&config.cache);
        blob::look_anew();
        let open = |source: &DataSource, origin, mixed, storage| -> Result<(Content, Arc<[u64]>), DatasetError> {
            let index_path = config.index_path.as_deref().map(Path::new);
            let documents: Box<dyn documents::Source> = match source {
                DataSource::Webdataset { shards, keys } => {
                    let places = Places { index_path: config.index_path.as_deref(), is_asked_for };
                    let named = |error: IndexError| match origin {
                        ListOrigin::Arguments => error.into(),
                        _ => DatasetError::from(error).of_field("data.source.shards", mixed),
                    };
                    let index = match PairIndex::find(&name_shards(shards, origin)?, keys, places, threads).map_err(named)? {
                        Some(index) => index,
                        None => PairIndex::open(find_shards(shards, origin, threads)?, keys, places, threads).map_err(named)?,
                    };
                    return pairs_of(index, keys, origin, storage);
                }
                DataSource::Documents { documents } => Box::new(documents::Packed::open(documents, mixed, index_path, threads, storage)?),
                DataSource::Mmc4 { mmc4 } => Box::new(documents::Mmc4::open(mmc4, mixed, index_path, threads, storage)?),
                DataSource::Obelics { obelics } => Box::new(documents::Obelics::open(obelics, mixed, index_path, threads, storage)?),
                // No valid configuration has one within another.
                DataSource::Mixture { .. } => return Err(DatasetError::no_document("data.source.mixture")),
            };
            let ends = documents.ends();
            Ok((Content::Documents(documents), ends))
        };
        let DataSource::Mixture { mixture } = &config.source else {
            let (content, ends) = open(&config.source, origin, None, storage)?;
            let source = Source { name: "data".to_owned(), content, first: 0, ends };
            return Ok(Self::of_sources(vec![source], Mixture::by_samples(&[1]), config.shuffle));
        };
        let (mut sources, mut first) = (Vec::new(), 0);
        for (number, mixed) in mixture.sources.iter().enumerate() {
            let origin = ListOrigin::of("data.source.shards", Some(number));
            let (content, ends) = open(&mixed.source, origin, Some(number), Box::<files::OpenFiles>::default())?;
            let source = Source { name: mixed.name.clone(), content, first, ends };
            first += source.samples();
            sources.push(source);
        }
        let counted = sources.iter().zip(&mixture.sources);
        let counted = counted.map(|(source, mixed)| Counted { weight: mixed.weight, samples: source.samples(), images: source.images() });
        let divided = match mixture.by {
            MixtureUnit::Images => Mixture::by_images(&counted.collect::<Vec<_>>()),
            MixtureUnit::Samples => Mixture::by_samples(&counted.map(|counted| counted.weight).collect::<Vec<_>>()),
        };
        Ok(Self::of_sources(sources, divided, config.shuffle))
    }

    fn of_sources(sources: Vec<Source>, mixture: Mixture, shuffle: ShuffleConfig) -> Self {
        Self { sources, mixture, shuffle, logged: Mutex::default(), redrawn: Mutex::default(), tolerated: Mutex::default() }
    }

    /// A data set of one shard, without writing an index.
    pub(crate) fn of_shard(path: &Path, keys: &SampleKeys) -> Result<Self, DatasetError> {
        let index = built(|| ShardIndex::in_memory(path, keys))?;
        let (content, ends) = pairs_of(PairIndex::of_one(index), keys, ListOrigin::Arguments, Box::new(files::OpenFiles::default()))?;
        let source = Source { name: "data".to_owned(), content, first: 0, ends };
        Ok(Self::of_sources(vec![source], Mixture::by_samples(&[1]), ShuffleConfig::default()))
    }

    /// Samples of one walk over the data set, all sources and unusable ones included. At least 1.
    #[must_use]
    pub fn samples_per_pass(&self) -> u64 {
        self.sources.iter().map(Source::samples).sum()
    }

    /// The name of the source that a sample belongs to.
    pub(crate) fn source_name(&self, sample: u64) -> &str {
        self.sources.get(self.source_of(sample)).map_or("", |source| &source.name)
    }

    /// Number of sources.
    pub(crate) fn sources(&self) -> usize {
        self.sources.len()
    }

    /// Names of the sources of a mixture; none when there is but one source.
    fn mixed_sources(&self) -> Vec<String> {
        let names = self.sources.iter().map(|source| source.name.clone());
        if self.sources.len() > 1 { names.collect() } else { Vec::new() }
    }

    /// The number of the source that a sample belongs to.
    fn source_of(&self, sample: u64) -> usize {
        self.sources.partition_point(|source| source.first <= sample).saturating_sub(1)
    }

    /// Identity of the data as a hexadecimal BLAKE3 hash: base names, sizes and sample counts of the shards in their order. Folders and times
    /// do not count, so the same files elsewhere are the same data.
    #[must_use]
    pub fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new_derive_key("lcl-data 1: data set");
        for source in &self.sources {
            source.identify(&mut hasher);
        }
        if self.sources.len() > 1 {
            // How positions are divided follows from the shares.
            for share in self.mixture.shares() {
                hasher.update(&share.to_le_bytes());
            }
            for source in &self.sources {
                hasher.update(&source.first.to_le_bytes());
            }
        }
        hasher.finalize().to_hex().to_string()
    }

    /// What it consists of, for whoever finds later that it is another one.
    #[must_use]
    pub fn description(&self) -> Description {
        Description::new(self.sources.iter().map(Source::described).collect())
    }

    /// The order of the samples in a run with this seed and global batch; an index of it is step · global batch + slot.
    #[must_use]
    pub fn order(&self, seed: u64, global_batch_size: u64) -> Orders {
        let lanes = self.shuffle.lanes_of(global_batch_size);
        let order = |(number, source): (usize, &Source)| {
            let pace = self.mixture.pace(number, global_batch_size);
            (source.first, Order::new(seed, number as u16, Arc::clone(&source.ends), pace, lanes, self.shuffle.window))
        };
        Orders::new(self.mixture.clone(), self.mixed_sources(), self.sources.iter().enumerate().map(order).collect())
    }

    /// Reads a sample, with the first of its captions. Errors that may pass are retried for about a minute.
    pub fn read(&self, sample: u64) -> Result<Reading, DatasetError> {
        self.read_with(sample, Choose::First, sleep)
    }

    /// As [`Dataset::read`], with the caption that is chosen, waiting by `wait`, which returns true to give up.
    pub(crate) fn read_with(&self, sample: u64, choose: Choose, wait: impl FnMut(Duration) -> bool) -> Result<Reading, DatasetError> {
        let mut room = Room::default();
        Ok(match self.read_into(&mut room, sample, choose, wait)? {
            None => Reading::Sample(room.sample),
            Some(cause) => Reading::Skipped(cause),
        })
    }

    /// As [`Dataset::read_with`], into a room; the cause when there is no sample in it.
    pub(crate) fn read_into(
        &self,
        room: &mut Room,
        sample: u64,
        choose: Choose,
        wait: impl FnMut(Duration) -> bool,
    ) -> Result<Option<SkipCause>, DatasetError> {
        with_retries(sample, wait, DatasetError::io, || self.read_once(sample, choose, room))
    }

    /// Whether some samples come from object stores.
    pub(crate) fn has_objects(&self) -> bool {
        let is_remote = |source: &Source| match &source.content {
            Content::Pairs(pairs) => pairs.index.has_objects(),
            Content::Documents(documents) => documents.describe().0.first().is_some_and(|(path, ..)| blob::is_remote(path)),
        };
        self.sources.iter().any(is_remote)
    }

    /// Has the bytes of a sample at hand, where they come from an object store; what a document refers to is fetched when it is read.
    pub(crate) fn fetch(&self, sample: u64) -> Result<(), DatasetError> {
        let (source, own) = self.find(sample)?;
        match &source.content {
            Content::Pairs(pairs) => pairs.fetch(source.place(own)?, own),
            Content::Documents(documents) => documents.fetch(own),
        }
    }

    /// Name of the shard that holds `sample` and the sample's key in it.
    pub fn key(&self, sample: u64) -> Result<(PathBuf, String), DatasetError> {
        let (source, own) = self.find(sample)?;
        match &source.content {
            Content::Pairs(pairs) => pairs.key(source.place(own)?, own),
            Content::Documents(documents) => documents.name(own),
        }
    }

    /// Finds where a sample lies without reading it: what an index alone costs.
    pub fn look_up(&self, sample: u64) -> Result<(), DatasetError> {
        self.start(sample).map(drop)
    }

    /// Byte of its shard at which a pair begins; 0 for a document.
    pub(crate) fn start(&self, sample: u64) -> Result<u64, DatasetError> {
        let (source, own) = self.find(sample)?;
        let Content::Pairs(pairs) = &source.content else { return Ok(0) };
        let (shard, number) = source.place(own)?;
        Ok(pairs.record(own, shard, number)?.start)
    }

    /// The shard of a sample, the member of it that is looked at first (its image), and that member's first byte. Of a document its name.
    pub(crate) fn member(&self, sample: u64) -> Result<(PathBuf, String, Option<u64>), DatasetError> {
        let (source, own) = self.find(sample)?;
        match &source.content {
            Content::Pairs(pairs) => pairs.member(source.place(own)?, own),
            Content::Documents(documents) => documents.name(own).map(|(shard, name)| (shard, name, None)),
        }
    }

    /// What is wrong with a pair that was read into this room, where reading it came to this; with several captions, what is wrong with each.
    pub(crate) fn faults(&self, sample: u64, unused: Option<SkipCause>, room: &Room) -> Result<Vec<(SkipCause, Blamed)>, DatasetError> {
        with_retries(sample, sleep, DatasetError::io, || {
            let (source, own) = self.find(sample)?;
            match &source.content {
                Content::Pairs(pairs) => pairs.faults(source.place(own)?, own, unused, room),
                Content::Documents(documents) => {
                    let (shard, member) = documents.name(own)?;
                    let blamed = Blamed { shard, member, byte: None, detail: String::new() };
                    Ok(unused.map(|cause| (cause, blamed)).into_iter().collect())
                }
            }
        })
    }

    /// The shard of a sample, which is not looked at for this.
    pub(crate) fn shard_of(&self, sample: u64) -> Result<&Path, DatasetError> {
        let (source, own) = self.find(sample)?;
        match &source.content {
            Content::Pairs(pairs) => Ok(pairs.path(source.place(own)?.0)),
            Content::Documents(documents) => {
                documents.shards().path(own).ok_or(DatasetError::OutOfRange { sample, samples: self.samples_per_pass() })
            }
        }
    }

    /// The sources of documents by their names.
    pub(crate) fn document_sources(&self) -> impl Iterator<Item = (&str, &dyn documents::Source)> {
        self.sources.iter().filter_map(|source| match &source.content {
            Content::Documents(documents) => Some((source.name.as_str(), &**documents)),
            Content::Pairs(_) => None,
        })
    }

    /// The indexes of pairs, and how these are read, by the names of their sources.
    pub(crate) fn pair_sources(&self) -> impl Iterator<Item = (&str, &PairIndex, &SampleKeys)> {
        self.sources.iter().filter_map(|source| match &source.content {
            Content::Pairs(pairs) => Some((source.name.as_str(), &pairs.index, &pairs.keys)),
            Content::Documents(_) => None,
        })
    }

    /// What the indexes of documents found: source, shard, findings. Nothing for pairs.
    #[must_use]
    pub fn document_findings(&self) -> Vec<(String, PathBuf, &DocumentFindings)> {
        let mut all = Vec::new();
        for source in &self.sources {
            if let Content::Documents(documents) = &source.content {
                all.extend(documents.findings().into_iter().map(|(shard, found)| (source.name.clone(), shard, found)));
            }
        }
        all
    }

    /// Number of shards of all sources.
    pub(crate) fn shards(&self) -> u64 {
        self.sources.iter().map(|source| source.ends.len() as u64).sum()
    }

    /// Of each source its name, the number of its first sample, its samples, images, shards, and their bytes.
    pub(crate) fn source_counts(&self) -> Vec<SourceCounts> {
        let of = |source: &Source| SourceCounts {
            name: source.name.clone(),
            first: source.first,
            samples: source.samples(),
            images: source.images(),
            shards: source.ends.len() as u64,
            bytes: match &source.content {
                Content::Pairs(pairs) => pairs.index.describe().into_iter().map(|(_, bytes, _)| bytes).sum(),
                Content::Documents(documents) => documents.describe().0.iter().map(|(_, bytes, _)| bytes).sum(),
            },
        };
        self.sources.iter().map(of).collect()
    }

    /// Whether a sample is a document.
    pub(crate) fn is_document(&self, sample: u64) -> bool {
        self.find(sample).is_ok_and(|(source, _)| matches!(source.content, Content::Documents(_)))
    }

    /// Whether any sample is a document.
    pub(crate) fn has_documents(&self) -> bool {
        self.sources.iter().any(|source| matches!(source.content, Content::Documents(_)))
    }

    /// The source of a document, and its number there.
    pub(crate) fn document(&self, sample: u64) -> Result<(&dyn documents::Source, u64), DatasetError> {
        let (source, own) = self.find(sample)?;
        match &source.content {
            Content::Documents(documents) => Ok((&**documents, own)),
            Content::Pairs(_) => Err(DatasetError::OutOfRange { sample, samples: self.samples_per_pass() }),
        }
    }

    /// Names a bad record in the log, once.
    pub(crate) fn log_skipped(&self, sample: u64, cause: SkipCause, detail: &str) {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.len() > LOGGED_LIMIT || !logged.insert(sample) {
            return;
        }
        let last = logged.len() > LOGGED_LIMIT;
        drop(logged);
        let (shard, key) = self.key(sample).map_or((String::new(), String::new()), |(shard, key)| (shard.display().to_string(), key));
        tracing::warn!(shard, key, sample, %cause, detail, "bad record: its slot stays empty");
        if last {
            tracing::warn!(logged = LOGGED_LIMIT, "further bad records are counted without being named");
        }
    }

    /// Names a document that gives no sequence in the log, once.
    pub(crate) fn log_redrawn(&self, sample: u64, cause: RedrawCause) {
        let mut logged = self.redrawn.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.len() >= LOGGED_LIMIT || !logged.insert(sample) {
            return;
        }
        drop(logged);
        let (shard, key) = self.key(sample).map_or((String::new(), String::new()), |(shard, key)| (shard.display().to_string(), key));
        tracing::debug!(shard, key, sample, %cause, "document gives no sequence: another one takes its place");
    }

    /// Names the first image with a fault that cost no pixel in the log, once for each kind of fault.
    pub(crate) fn log_tolerated(&self, sample: u64, fault: Tolerated) {
        if !self.tolerated.lock().unwrap_or_else(PoisonError::into_inner).insert(fault) {
            return;
        }
        let (shard, key) = self.key(sample).map_or((String::new(), String::new()), |(shard, key)| (shard.display().to_string(), key));
        tracing::warn!(shard, key, sample, cause = %fault, "image with a fault that costs no pixel: it is used; further ones are only counted");
    }

    fn read_once(&self, sample: u64, choose: Choose, room: &mut Room) -> Result<Option<SkipCause>, DatasetError> {
        let (source, own) = self.find(sample)?;
        match &source.content {
            Content::Pairs(pairs) => pairs.read(source.place(own)?, own, choose, room),
            // Whoever reads documents has asked for them.
            Content::Documents(_) => Ok(Some(SkipCause::NoCaption)),
        }
    }

    /// The source of a sample, and the sample's number there.
    fn find(&self, sample: u64) -> Result<(&Source, u64), DatasetError> {
        let samples = self.samples_per_pass();
        let source = self.sources.get(self.source_of(sample)).filter(|_| sample < samples);
        source.map(|source| (source, sample - source.first)).ok_or(DatasetError::OutOfRange { sample, samples })
    }
}

impl Source {
    fn samples(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Images of a pass.
    fn images(&self) -> u64 {
        match &self.content {
            Content::Pairs(_) => self.samples(),
            Content::Documents(documents) => documents.images(),
        }
    }

    /// The shard of one of its samples, and the sample's number there.
    fn place(&self, sample: u64) -> Result<(usize, u64), DatasetError> {
        place_in(&self.ends, sample).ok_or_else(|| DatasetError::OutOfRange { sample, samples: self.samples() })
    }

    fn described(&self) -> DescribedSource {
        match &self.content {
            Content::Pairs(pairs) => DescribedSource::new(&self.name, String::new(), pairs.index.describe().into_iter()),
            Content::Documents(documents) => {
                let (shards, settings) = documents.describe();
                let shards = shards.iter().map(|(path, bytes, samples)| (path.as_path(), *bytes, *samples));
                DescribedSource::new(&self.name, settings, shards)
            }
        }
    }

    /// Adds what tells it from other data.
    fn identify(&self, hasher: &mut blake3::Hasher) {
        let mut add = |shard: &Path, length: u64, count: u64| {
            let name = shard.file_name().unwrap_or_default().as_encoded_bytes();
            for number in [name.len() as u64, length, count] {
                hasher.update(&number.to_le_bytes());
            }
            hasher.update(name);
        };
        match &self.content {
            Content::Pairs(pairs) => pairs.index.describe().into_iter().for_each(|(shard, length, count)| add(shard, length, count)),
            Content::Documents(documents) => {
                let (shards, settings) = documents.describe();
                for (shard, length, count) in &shards {
                    add(shard, *length, *count);
                }
                hasher.update(settings.as_bytes());
            }
        }
    }
}

/// The number of the shard that holds a sample, and the sample's number in it, when shards end at these samples.
pub(crate) fn place_in(ends: &[u64], sample: u64) -> Option<(usize, u64)> {
    let shard = ends.partition_point(|end| *end <= sample);
    let begin = shard.checked_sub(1).and_then(|before| ends.get(before)).copied().unwrap_or(0);
    (shard < ends.len()).then_some((shard, sample - begin))
}

/// Looks whether the shards of a source are there.
fn look_for(source: &DataSource, mixed: Option<usize>, threads: NonZero<usize>) -> Result<(), ListError> {
    let find = |shards: &[String], field, may_lack| {
        let origin = if mixed.is_none() && field == "data.source.shards" { ListOrigin::Manifest } else { ListOrigin::of(field, mixed) };
        if may_lack { find_present_shards(shards, origin, threads).map(drop) } else { find_shards(shards, origin, threads).map(drop) }
    };
    match source {
        DataSource::Webdataset { shards, .. } => find(shards, "data.source.shards", false),
        DataSource::Documents { documents } => find(&documents.shards, "data.source.documents.shards", false),
        DataSource::Mmc4 { mmc4 } => find(&mmc4.shards, "data.source.mmc4.shards", true),
        DataSource::Obelics { obelics } => {
            find(&obelics.shards, "data.source.obelics.shards", false)?;
            find(&obelics.images, "data.source.obelics.images", false)
        }
        DataSource::Mixture { .. } => Ok(()),
    }
}

#[cfg(test)]
mod tests;
