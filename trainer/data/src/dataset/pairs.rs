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
    Choose, Content, DatasetError, IMAGE_BYTES_LIMIT, NoPair, Storage,
    captions::{self, Texts},
};
use crate::{
    blob,
    cause::SkipCause,
    index::{Extent, Findings, Record, pairs::PairIndex},
    shard::{self, BLOCK, ListOrigin, MemberKind, ShardError, is_header},
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
    pub(super) keys: SampleKeys,
    storage: Box<dyn Storage>,
}

/// An image and its caption as they lie in the shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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

/// Where the fault of a sample is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Blamed {
    pub(crate) shard: PathBuf,
    /// The member of it; the sample's key where it is about none.
    pub(crate) member: String,
    /// Its first byte.
    pub(crate) byte: Option<u64>,
    /// What is wrong with it; empty where the cause says all.
    pub(crate) detail: String,
}

/// Where a sample is read to. Keeps its buffers: a sample that fits into them allocates nothing.
#[derive(Debug, Default)]
pub(crate) struct Room {
    /// The last that was read; what is in it counts only if reading said so.
    pub(crate) sample: Sample,
    texts: Texts,
    /// What is read, in the order in which it lies: text of this number, or the image.
    parts: Vec<(Extent, Option<usize>)>,
    /// What does not lie near the image.
    far: Vec<u8>,
}

impl Room {
    /// Most bytes that it keeps for the next sample: an image of a camera. More is given back.
    const KEPT_BYTES: usize = 16 << 20;

    fn release_large_buffers(&mut self) {
        for buffer in [&mut self.sample.buffer, &mut self.far] {
            if buffer.capacity() > Self::KEPT_BYTES {
                *buffer = Vec::new();
            }
        }
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

    /// What is wrong with a sample that was read into this room, where reading it came to this. Of several captions every one that is none is named,
    /// also when another one was chosen.
    pub(super) fn faults(
        &self,
        at: (usize, u64),
        sample: u64,
        unused: Option<SkipCause>,
        room: &Room,
    ) -> Result<Vec<(SkipCause, Blamed)>, DatasetError> {
        use SkipCause::NoCaption;
        if let Some(cause) = unused.filter(|cause| *cause != NoCaption && !cause.is_of_caption()) {
            let (shard, member, byte) = self.member(at, sample)?;
            return Ok(vec![(cause, Blamed { shard, member, byte, detail: String::new() })]);
        }
        let faults = captions::faults(&self.keys, room.texts.get());
        if faults.is_empty() && unused.is_none() {
            return Ok(Vec::new());
        }
        let (path, (_, key)) = (self.path(at.0), self.key(at, sample)?);
        let start = self.record(sample, at.0, at.1)?.start;
        let of_key = |member: &shard::Member| {
            shard::split_name(&member.name, self.keys.separator).is_none_or(|(name, _)| String::from_utf8_lossy(name) == key)
        };
        let members = shard::members_from(path, start, of_key)?;
        let at_byte = |extent: Extent| members.iter().find(|member| member.offset == extent.offset);
        let blamed = |member: &shard::Member, detail: String| {
            let (shard, member, byte) = (path.to_owned(), String::from_utf8_lossy(&member.name).into_owned(), Some(member.offset));
            Blamed { shard, member, byte, detail }
        };
        let of_sample = |detail| Blamed { shard: path.to_owned(), member: key.clone(), byte: Some(start), detail };
        if !faults.is_empty() {
            let named = |captions::Fault { cause, extent, detail }| match at_byte(extent) {
                Some(member) => (cause, blamed(member, detail)),
                None => (cause, of_sample(detail)),
            };
            return Ok(faults.into_iter().map(named).collect());
        }
        if let Some((extent, detail)) = captions::blamed_for_none(&self.keys, room.texts.get())
            && let Some(member) = at_byte(extent)
        {
            return Ok(vec![(NoCaption, blamed(member, detail))]);
        }
        // The index has no file of a caption: it has no bytes, is a link, or is not there.
        let is_caption = |member: &&shard::Member| {
            shard::split_name(&member.name, self.keys.separator).is_some_and(|(_, ending)| self.keys.caption_number(&ending).is_some())
        };
        let blamed = match members.iter().find(is_caption) {
            Some(member) if member.kind == MemberKind::Elsewhere => blamed(member, "it is a link or a sparse file".to_owned()),
            Some(member) => blamed(member, "it has no bytes".to_owned()),
            None => {
                let drawn: Vec<&str> = self.keys.caption_files().collect();
                let endings = if self.keys.draws_captions() { drawn } else { self.keys.caption.iter().map(String::as_str).collect() };
                let missing: Vec<String> = endings.iter().map(|ending| format!("{key}.{ending}")).collect();
                of_sample(format!("there is no {}", missing.join(" or ")))
            }
        };
        Ok(vec![(NoCaption, blamed)])
    }

    /// Reads a sample into a room; the cause when there is none.
    pub(super) fn read(
        &self,
        (shard, number): (usize, u64),
        sample: u64,
        choose: Choose,
        room: &mut Room,
    ) -> Result<Option<SkipCause>, DatasetError> {
        let record = self.record(sample, shard, number)?;
        if record.doubled {
            return Ok(Some(SkipCause::DoubledMember));
        }
        let Some((_, image)) = record.image else { return Ok(Some(SkipCause::NoImage)) };
        room.texts.take(&record);
        if room.texts.get().is_empty() {
            return Ok(Some(SkipCause::NoCaption));
        }
        if image.length > IMAGE_BYTES_LIMIT {
            return Ok(Some(SkipCause::ImageTooLarge));
        }
        room.release_large_buffers();
        self.read_parts(shard, image, room)?;
        Ok(captions::choose(&self.keys, room.texts.get(), choose, &mut room.sample.caption).err())
    }

    /// Reads the image of a sample and the texts that fit, neighbours in one go.
    fn read_parts(&self, shard: usize, image: Extent, room: &mut Room) -> Result<(), DatasetError> {
        let Room { sample, texts, parts, far } = room;
        let end = |extent: Extent| extent.offset + u64::from(extent.length);
        parts.clear();
        let fitting = texts.get().iter().enumerate().filter(|(_, text)| text.fits());
        parts.extend(fitting.map(|(number, text)| (text.extent, Some(number))).chain([(image, None)]));
        parts.sort_by_key(|(extent, _)| extent.offset);
        let mut rest = parts.as_slice();
        while let Some((first, _)) = rest.first() {
            let begin = first.offset.saturating_sub(BLOCK);
            let is_far = |pair: &[(Extent, _)]| matches!(pair, [(one, _), (next, _)] if next.offset.saturating_sub(end(*one)) > GAP_LIMIT);
            let near = rest.windows(2).position(is_far).map_or(rest.len(), |last| last + 1);
            let (run, others) = rest.split_at(near);
            rest = others;
            let has_image = run.iter().any(|(_, text)| text.is_none());
            let buffer = if has_image { &mut sample.buffer } else { &mut *far };
            self.read_bytes(shard, begin, run.iter().map(|(extent, _)| end(*extent)).max().unwrap_or(begin), buffer)?;
            for (extent, text) in run {
                let at = (extent.offset - begin) as usize..(end(*extent) - begin) as usize;
                let contents = self.contents(shard, buffer, at.clone(), *extent)?;
                match text.and_then(|text| texts.get_mut().get_mut(text)) {
                    Some(text) => text.contents.extend_from_slice(contents),
                    None => sample.image = at,
                }
            }
        }
        Ok(())
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

    /// Makes the buffer hold these bytes of a shard.
    fn read_bytes(&self, shard: usize, begin: u64, end: u64, buffer: &mut Vec<u8>) -> Result<(), ShardError> {
        buffer.resize((end - begin) as usize, 0);
        self.storage.read(self.index.file(shard), begin, buffer).map_err(|source| self.failed(shard, begin, source))
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
