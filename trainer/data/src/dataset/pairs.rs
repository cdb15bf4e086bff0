//! Image-text pairs as a source: where each lies, and reading one.
//!
//! Comes in: the index of the shards, and the number of a sample. Goes out: the encoded image and one of its captions, or why there is none. It
//! decodes nothing and tries nothing again.

use std::{
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use lcl_trainer_config::SampleKeys;

use super::{
    Choose, Content, DatasetError, IMAGE_BYTES_LIMIT, NoPair, Reading, Storage,
    captions::{self, Text},
};
use crate::{
    blob,
    cause::SkipCause,
    index::{Extent, Findings, Record, pairs::PairIndex},
    shard::{self, BLOCK, ListOrigin, ShardError, is_header},
};

/// Most bytes that are fetched ahead of a sample's use: far beyond any photograph, and what a damaged index may ask for at most.
const FETCH_LIMIT: u64 = 64 << 20;

/// Bytes between image and caption up to which both are read in one go. Other members (metadata) lie between them, if anything; reading
/// this much costs less than another round trip to a file server.
pub(super) const GAP_LIMIT: u64 = 64 * 1024;

/// Image-text pairs in tar shards.
#[derive(Debug)]
pub(super) struct Pairs {
    pub(super) index: PairIndex,
    keys: SampleKeys,
    storage: Box<dyn Storage>,
}

/// An image and its caption as they lie in the shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    buffer: Vec<u8>,
    image: Range<usize>,
    /// The caption.
    pub caption: String,
}

impl Sample {
    /// The encoded image.
    #[must_use]
    pub fn image(&self) -> &[u8] {
        self.buffer.get(self.image.clone()).unwrap_or_default()
    }
}

/// Pairs in these shards; an error when none is usable.
pub(super) fn pairs_of(
    index: PairIndex,
    keys: &SampleKeys,
    origin: ListOrigin,
    storage: Box<dyn Storage>,
) -> Result<(Content, Arc<[u64]>), DatasetError> {
    let found = index.findings();
    if found.iter().all(|(_, findings)| findings.usable == 0) {
        return Err(DatasetError::NoPair(Box::new(NoPair::of(found, origin))));
    }
    if keys.filter.is_some() {
        let mut all = Findings::none(keys);
        for (_, findings) in &found {
            all.add(findings);
        }
        let (samples, filtered) = (all.samples, all.filtered_count());
        tracing::info!(samples, filtered, causes = all.filtered_listed(), "pairs that pass the filter, and those that it leaves out");
    }
    let ends = index.ends();
    Ok((Content::Pairs(Pairs { index, keys: keys.clone(), storage }), ends))
}

impl Pairs {
    /// Name of the shard of a sample and the sample's key in it.
    pub(super) fn key(&self, (shard, number): (usize, u64), sample: u64) -> Result<(PathBuf, String), DatasetError> {
        let (path, record) = (self.path(shard), self.record(sample, shard, number)?);
        let name = shard::name_at(path, record.start)?;
        let key = shard::split_name(name.as_bytes(), self.keys.separator)
            .map_or(name.clone(), |(key, _)| String::from_utf8_lossy(key).into_owned());
        Ok((path.to_owned(), key))
    }

    /// The image's member of a sample with its first byte; the sample's first member when it has no image.
    pub(super) fn member(&self, (shard, number): (usize, u64), sample: u64) -> Result<(PathBuf, String, Option<u64>), DatasetError> {
        let (record, (path, key)) = (self.record(sample, shard, number)?, self.key((shard, number), sample)?);
        let image = record.image.and_then(|(image, extent)| Some((self.keys.image.get(usize::from(image))?, extent.offset)));
        Ok(match image {
            Some((extension, offset)) => (path, format!("{key}.{extension}"), Some(offset)),
            None => (path, key, Some(record.start)),
        })
    }

    pub(super) fn read(&self, (shard, number): (usize, u64), sample: u64, choose: Choose) -> Result<Reading, DatasetError> {
        let record = self.record(sample, shard, number)?;
        if record.doubled {
            return Ok(Reading::Skipped(SkipCause::DoubledMember));
        }
        let Some((_, image)) = record.image else { return Ok(Reading::Skipped(SkipCause::NoImage)) };
        let mut texts = captions::texts_of(&self.keys, &record);
        if texts.is_empty() {
            return Ok(Reading::Skipped(SkipCause::NoCaption));
        }
        if image.length > IMAGE_BYTES_LIMIT {
            return Ok(Reading::Skipped(SkipCause::ImageTooLarge));
        }
        let (buffer, image) = self.read_parts(shard, image, &mut texts)?;
        Ok(match captions::choose(&self.keys, &texts, choose) {
            Ok(caption) => Reading::Sample(Sample { buffer, image, caption }),
            Err(cause) => Reading::Skipped(cause),
        })
    }

    /// Reads the image of a sample and the texts that fit, neighbours in one go: the bytes among which the image is, and where there.
    fn read_parts(&self, shard: usize, image: Extent, texts: &mut [Text]) -> Result<(Vec<u8>, Range<usize>), DatasetError> {
        let end = |extent: Extent| extent.offset + u64::from(extent.length);
        let mut parts: Vec<(Extent, Option<&mut Text>)> =
            texts.iter_mut().filter(|text| text.fits()).map(|text| (text.extent, Some(text))).chain([(image, None)]).collect();
        parts.sort_by_key(|(extent, _)| extent.offset);
        let mut found = (Vec::new(), 0..0);
        let mut rest = parts.as_mut_slice();
        while let Some((first, _)) = rest.first() {
            let begin = first.offset.saturating_sub(BLOCK);
            let is_far = |pair: &[(Extent, _)]| matches!(pair, [(one, _), (next, _)] if next.offset.saturating_sub(end(*one)) > GAP_LIMIT);
            let near = rest.windows(2).position(is_far).map_or(rest.len(), |last| last + 1);
            let (run, others) = std::mem::take(&mut rest).split_at_mut(near);
            rest = others;
            let buffer = self.read_bytes(shard, begin, run.iter().map(|(extent, _)| end(*extent)).max().unwrap_or(begin))?;
            let mut has_image = None;
            for (extent, text) in run {
                let at = (extent.offset - begin) as usize..(end(*extent) - begin) as usize;
                let contents = self.contents(shard, &buffer, at.clone(), *extent)?;
                match text {
                    Some(text) => text.contents = contents.to_vec(),
                    None => has_image = Some(at),
                }
            }
            if let Some(at) = has_image {
                found = (buffer, at);
            }
        }
        Ok(found)
    }

    pub(super) fn record(&self, sample: u64, shard: usize, number: u64) -> Result<Record, DatasetError> {
        let record = self.index.record(sample, shard, number, &*self.storage)?;
        record.ok_or_else(|| DatasetError::OutOfRange { sample, samples: self.index.ends().last().copied().unwrap_or(0) })
    }

    /// Has the bytes of a sample at hand.
    pub(super) fn fetch(&self, (shard, number): (usize, u64), sample: u64) -> Result<(), DatasetError> {
        let file = self.index.file(shard);
        if !blob::is_remote(file.path) {
            return Ok(());
        }
        let record = self.record(sample, shard, number)?;
        let extents =
            record.image.map(|(_, extent)| extent).into_iter().chain(record.caption).chain(record.others.iter().copied().flatten());
        let end = extents.map(|extent| extent.offset + u64::from(extent.length)).max().unwrap_or(record.start);
        let length = end.saturating_sub(record.start).min(FETCH_LIMIT);
        self.storage.fetch(file, record.start, length).map_err(|source| self.failed(shard, record.start, source).into())
    }

    fn read_bytes(&self, shard: usize, begin: u64, end: u64) -> Result<Vec<u8>, ShardError> {
        let mut buffer = vec![0; (end - begin) as usize];
        self.storage.read(self.index.file(shard), begin, &mut buffer).map_err(|source| self.failed(shard, begin, source))?;
        Ok(buffer)
    }

    fn failed(&self, shard: usize, begin: u64, source: io::Error) -> ShardError {
        let path = self.path(shard).to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => ShardError::Missing { path },
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => ShardError::Changed { path, offset: begin + BLOCK },
            _ => ShardError::Read { path, offset: begin, source },
        }
    }

    /// The bytes at `at`, after a look at the header before them: what is no header there means that the shard is another one by now.
    fn contents<'a>(&self, shard: usize, buffer: &'a [u8], at: Range<usize>, extent: Extent) -> Result<&'a [u8], ShardError> {
        let header = at.start.checked_sub(BLOCK as usize).and_then(|begin| buffer.get(begin..at.start));
        match (header.is_some_and(is_header), buffer.get(at)) {
            (true, Some(contents)) => Ok(contents),
            _ => Err(ShardError::Changed { path: self.path(shard).to_owned(), offset: extent.offset }),
        }
    }

    pub(super) fn path(&self, shard: usize) -> &Path {
        self.index.file(shard).path
    }
}
