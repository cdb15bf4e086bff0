//! Documents in tar shards as a source: its shards and their indexes.
//!
//! Comes in: [`DocumentsConfig`]. Goes out: documents. One is a sample when it names an image that may be drawn, or one that is there. Its members
//! stand next to each other, so a document is read at once, and its index says where it begins and ends.

use std::{
    collections::BTreeMap,
    num::NonZero,
    ops::Range,
    path::{Path, PathBuf},
};

use lcl_trainer_config::{DocumentsConfig, KeySeparator};

use super::{
    Asked, Findings, Source, Wait, Whole, WholeImage,
    index::{DocumentIndexError, Made},
    shards::{Found, Shards},
};
use crate::{
    blob::{self, Blob},
    cause::{RedrawCause, SkipCause},
    dataset::{DatasetError, FileId, FileRef, Storage},
    mmc4::LINE_BYTES_LIMIT,
    packed::{
        PackedDocument,
        members::{Members, contents, for_each_document, take_apart},
    },
    retry::with_retries,
    shard::{self, ListOrigin, ShardError, find_shards},
};

/// Most bytes of a document with its images. Each is held in memory by the thread that reads it; a published one has some 200 kB.
const DOCUMENT_BYTES_LIMIT: u64 = 1 << 30;

/// What a sample of pairs is counted as that was taken for a document, and what is said of the first.
const PAIR: &str = "is_a_pair";
const PAIR_ADVICE: &str =
    ": it is an image with a caption, and no document: read such shards with spec.data.webdataset.layout Pairs (--source webdataset)";

/// Documents in tar shards.
#[derive(Debug)]
pub(crate) struct Packed {
    config: DocumentsConfig,
    shards: Shards,
    storage: Box<dyn Storage>,
}

/// A document that was read.
struct Read {
    bytes: Vec<u8>,
    members: Members,
    document: PackedDocument,
}

impl Packed {
    /// Opens the shards, making indexes that are missing with so many threads. `mixed` is its number in a mixture.
    pub(crate) fn open(
        config: &DocumentsConfig,
        mixed: Option<usize>,
        index_path: Option<&Path>,
        threads: NonZero<usize>,
        storage: Box<dyn Storage>,
    ) -> Result<Self, DatasetError> {
        let paths = find_shards(&config.shards, ListOrigin::of("data.source.documents.shards", mixed), threads)?;
        let shards = Shards::open(&paths, index_path, &settings(config), threads, |path| index_shard(path, config, Findings::default()))
            .map_err(|error| error.of_field("data.source.documents.shards", mixed))?;
        Ok(Self { config: config.clone(), shards, storage })
    }

    /// Reads a document and takes it apart.
    fn read_apart(&self, sample: u64, wait: &mut Wait<'_>) -> Result<(Found<'_>, Read), DatasetError> {
        let found = with_retries(sample, &mut *wait, DatasetError::io, || self.shards.find(sample, &*self.storage))?;
        let Found { number, shard, place: [begin, end] } = found;
        let changed = || DatasetError::Documents(DocumentIndexError::Changed { shard: shard.to_owned() });
        let length = end.checked_sub(begin).filter(|length| *length <= DOCUMENT_BYTES_LIMIT).ok_or_else(changed)?;
        let mut bytes = vec![0; length as usize];
        let read = || {
            self.storage.read(FileRef { id: FileId::Shard(number), path: shard, stamp: None }, begin, &mut bytes).map_err(|source| {
                match source.kind() {
                    std::io::ErrorKind::NotFound => DatasetError::Shard(ShardError::Missing { path: shard.to_owned() }),
                    std::io::ErrorKind::UnexpectedEof => changed(),
                    _ => DatasetError::Shard(ShardError::Read { path: shard.to_owned(), offset: begin, source }),
                }
            })
        };
        with_retries(sample, wait, DatasetError::io, read)?;
        let members = take_apart(&bytes).ok_or_else(changed)?;
        let json = members.json.as_ref().and_then(|json| contents(&bytes, json)).ok_or_else(changed)?;
        let document = PackedDocument::parse(json).map_err(|_| changed())?;
        Ok((found, Read { bytes, members, document }))
    }
}

impl Source for Packed {
    fn shards(&self) -> &Shards {
        &self.shards
    }

    fn describe(&self) -> (Vec<(PathBuf, u64, u64)>, String) {
        (self.shards.describe(), settings(&self.config))
    }

    fn read(&self, sample: u64, asked: &mut Asked<'_>) -> Result<Result<(), RedrawCause>, DatasetError> {
        let Asked { choices, before_probability, decode, wait, document } = asked;
        let (_, Read { bytes, members, document: packed }) = self.read_apart(sample, &mut **wait)?;
        let fetch = |image: u32| Ok(image_of(&members, &bytes, image).is_some_and(|encoded| decode(image, encoded)));
        packed.lay_out(self.config.max_images as usize, *before_probability, choices, fetch, document)
    }

    fn fetch(&self, sample: u64) -> Result<(), DatasetError> {
        let Found { number, shard, place: [begin, end] } = self.shards.find(sample, &*self.storage)?;
        if !blob::is_remote(shard) {
            return Ok(());
        }
        let file = FileRef { id: FileId::Shard(number), path: shard, stamp: None };
        let named = |source| ShardError::Read { path: shard.to_owned(), offset: begin, source };
        Ok(self.storage.fetch(file, begin, end.saturating_sub(begin).min(DOCUMENT_BYTES_LIMIT)).map_err(named)?)
    }

    fn whole(&self, sample: u64, wait: &mut Wait<'_>) -> Result<Whole, DatasetError> {
        let (Found { shard, place: [begin, _], .. }, Read { bytes, members, document }) = self.read_apart(sample, wait)?;
        let mut images = BTreeMap::new();
        for number in document.images() {
            let at = members.images.get(&number).map(|place| begin + place.start);
            let encoded = image_of(&members, &bytes, number).map(<[u8]>::to_vec);
            images.insert(number, WholeImage { place: (shard.to_owned(), format!("{}.{number}", members.key), at), bytes: encoded });
        }
        Ok(Whole { document, images })
    }

    fn most_images(&self) -> usize {
        self.config.max_images as usize
    }

    fn look_through(&self, shard: &Path) -> Result<Findings, DatasetError> {
        Ok(index_shard(shard, &self.config, Findings::naming())?.1)
    }

    fn name(&self, sample: u64) -> Result<(PathBuf, String), DatasetError> {
        let Found { shard, place: [begin, _], .. } = self.shards.find(sample, &*self.storage)?;
        let name = shard::name_at(shard, begin)?;
        let key = shard::split_name(name.as_bytes(), KeySeparator::FirstDot)
            .map_or(name.clone(), |(key, _)| String::from_utf8_lossy(key).into_owned());
        Ok((shard.to_owned(), key))
    }
}

/// The file of an image, when it is there and may be one.
fn image_of<'a>(members: &Members, bytes: &'a [u8], number: u32) -> Option<&'a [u8]> {
    let limit = crate::dataset::IMAGE_BYTES_LIMIT as usize;
    members.images.get(&number).and_then(|place| contents(bytes, place)).filter(|encoded| encoded.len() <= limit)
}

/// What decides which documents are samples, and how many images each has.
fn settings(config: &DocumentsConfig) -> String {
    format!("documents 1: images {}", config.max_images)
}

/// Finds the samples of a shard.
fn index_shard(path: &Path, config: &DocumentsConfig, findings: Findings) -> Result<Made, DatasetError> {
    let file = shard::open(path)?;
    let (mut made, mut failed) = ((Vec::new(), findings), None);
    for_each_document(path, &file, |members| {
        if failed.is_none() {
            failed = take_in(&mut made, &file, &members, config).err();
        }
    })?;
    failed.map_or(Ok(made), |error| Err(error.into()))
}

/// Adds a document to what was found in its shard.
fn take_in((samples, findings): &mut Made, file: &Blob, members: &Members, config: &DocumentsConfig) -> Result<(), ShardError> {
    findings.documents += 1;
    let Range { start, end } = members.bytes;
    let mut leave_out = |cause: &str, detail: &str| {
        findings.leave_out(cause, || format!("{} at byte {start}{detail}", members.key));
        Ok(())
    };
    if members.doubled {
        return leave_out(SkipCause::DoubledMember.name(), "");
    }
    if end - start > DOCUMENT_BYTES_LIMIT {
        let detail = format!(": it has {} bytes with its images, more than {DOCUMENT_BYTES_LIMIT}", end - start);
        return leave_out("document_too_large", &detail);
    }
    let is_pair = members.has_pair && members.images.is_empty();
    let Some(json) = &members.json else { return if is_pair { leave_out(PAIR, PAIR_ADVICE) } else { leave_out("no_json", "") } };
    if json.end - json.start > LINE_BYTES_LIMIT {
        return leave_out("json_too_large", "");
    }
    let mut bytes = vec![0; (json.end - json.start) as usize];
    let read = file.read_exact_at(&mut bytes, json.start);
    read.map_err(|source| ShardError::Read { path: file.path().to_owned(), offset: json.start, source })?;
    let document = match PackedDocument::parse(&bytes) {
        Ok(document) => document,
        Err(_) if is_pair => return leave_out(PAIR, PAIR_ADVICE),
        Err(fault) => return leave_out(fault.name(), &format!(": {fault}")),
    };
    let images = document.most_images(config.max_images as usize, |image| members.images.contains_key(&image));
    if images == 0 {
        return leave_out(RedrawCause::NoImageReadable.name(), "");
    }
    findings.samples += 1;
    findings.images += images as u64;
    samples.push([start, end]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use lcl_trainer_config::{DataConfig, DataSource, SampleKeys};

    use crate::{Dataset, shard::ShardWriter};

    #[test]
    fn pairs_read_as_documents_and_documents_read_as_pairs_are_told_which_layout_they_have() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| folder.path().join(name);
        let write = |name: &str, members: &[(&str, &str)]| {
            let mut shard = ShardWriter::create(&path(name)).expect("a shard");
            for key in ["0", "1"] {
                for (ending, text) in members {
                    shard.append_member(key, ending, text.as_bytes()).expect("a member");
                }
            }
            shard.finish().expect("the shard is complete");
            vec![path(name).display().to_string()]
        };
        let refused = |source| Dataset::open(&DataConfig::new(source)).map(drop).expect_err("the other layout").to_string();
        let documents =
            |shards| refused(DataSource::Documents { documents: lcl_trainer_config::DocumentsConfig { shards, max_images: 6 } });
        let pairs = |shards| refused(DataSource::Webdataset { shards, keys: SampleKeys::default() });
        for members in [&[("jpg", "x"), ("json", "{\"url\": \"u\"}"), ("txt", "a")][..], &[("png", "x"), ("txt", "a")]] {
            let error = documents(write("pairs.tar", members));
            assert!(error.contains("2 is_a_pair") && error.contains("spec.data.webdataset.layout Pairs (--source webdataset)"), "{error}");
        }
        let error = pairs(write("documents.tar", &[("json", "{\"parts\": []}"), ("0.jpg", "x"), ("1.png", "x")]));
        assert!(error.contains("2 of 2 samples are documents") && error.contains("layout Documents (--source documents)"), "{error}");
        assert!(!error.contains("LastDot"), "{error}");
        // Faults of documents stay what they are.
        let error = documents(write("documents.tar", &[("json", "{\"parts\": 7}"), ("0.jpg", "x")]));
        assert!(error.contains("2 bad_json") && !error.contains("pair"), "{error}");
        assert!(documents(write("documents.tar", &[("0.jpg", "x")])).contains("2 no_json"));
    }
}
