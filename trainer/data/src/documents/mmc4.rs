//! MMC4 as a source: its shards, their indexes, and the images in their folders.
//!
//! Comes in: [`Mmc4Config`]. Goes out: documents. A document is a sample when one of its images matches its sentence well enough; which of
//! them are taken, and where they stand, is drawn when it is read.

use std::{
    collections::BTreeMap,
    io,
    num::NonZero,
    path::{Path, PathBuf},
};

use lcl_trainer_config::{Mmc4Config, Mmc4Images, in_mixture};

use super::{
    Asked, Findings, ImageExample, Source, Wait, Whole, WholeImage,
    images::ImageStore,
    index::{DocumentIndexError, Made},
    shards::{Found, Shards},
    unfound::find_no_image,
    unpacked::{Unpacked, is_cut_short},
};
use crate::{
    blob,
    cause::RedrawCause,
    dataset::{DatasetError, FileId, FileRef, Storage},
    mmc4::{ImageFolders, Record, Rules, choose, image_path, place, shard_number, walk},
    packed::{PackedDocument, PackedImage, PackedPart},
    retry::with_retries,
    shard::{ListOrigin, find_present_shards},
};

/// Most bytes of an image's file.
const IMAGE_BYTES_LIMIT: u64 = crate::dataset::IMAGE_BYTES_LIMIT as u64;

/// Images that the index of a shard names, one of a document. Of what was fetched from the web up to half is gone: that all of these are by chance, in one
/// shard alone, happens once in 65,000 times.
const EXAMPLES: usize = 16;

/// Where the images are.
#[derive(Debug)]
pub(super) enum Images {
    Folder(PathBuf, ImageFolders),
    Store(ImageStore),
}

/// The documents of MMC4.
#[derive(Debug)]
pub(crate) struct Mmc4 {
    config: Mmc4Config,
    images: Images,
    shards: Shards,
    texts: Unpacked,
    storage: Box<dyn Storage>,
}

impl Mmc4 {
    /// Opens the shards that are there, making indexes that are missing with so many threads. `mixed` is its number in a mixture.
    pub(crate) fn open(
        config: &Mmc4Config,
        mixed: Option<usize>,
        index_path: Option<&Path>,
        threads: NonZero<usize>,
        storage: Box<dyn Storage>,
    ) -> Result<Self, DatasetError> {
        let origin = ListOrigin::of("data.source.mmc4.shards", mixed);
        let (paths, missing) = find_present_shards(&config.shards, origin, threads)?;
        if missing > 0 {
            tracing::warn!(missing, found = paths.len(), "shards of the list are not there and are left out");
        }
        let field = |field: &str| mixed.map_or(field.to_owned(), |source| in_mixture(source, field));
        let in_folder = |folder: &String, folders| {
            check_folder(folder, &field("data.source.mmc4.images.folder"))?;
            Ok::<_, DatasetError>(Images::Folder(folder.into(), folders))
        };
        let images = match &config.images {
            Mmc4Images::Flat { folder } => in_folder(folder, ImageFolders::One)?,
            Mmc4Images::ByShard { folder } => in_folder(folder, ImageFolders::ByShard)?,
            Mmc4Images::Store { shards } => {
                Images::Store(ImageStore::open(shards, ListOrigin::of("data.source.mmc4.images.shards", mixed), index_path, threads)?)
            }
        };
        if let (Mmc4Images::ByShard { .. }, Some(path)) = (&config.images, paths.iter().find(|path| shard_number(path).is_none())) {
            return Err(DatasetError::NoShardNumber { field: field("data.source.mmc4.images.layout"), path: path.clone() });
        }
        let shards = Shards::open(&paths, index_path, &settings(config), threads, |path| index_shard(path, config, Findings::default()))
            .map_err(|error| error.of_field("data.source.mmc4.shards", mixed))?;
        if let Some(unfound) = find_no_image(&shards, &images)? {
            return Err(unfound.error(field));
        }
        Ok(Self { config: config.clone(), images, shards, texts: Unpacked::new(index_path, paths.len()), storage })
    }

    /// The encoded image; `None` when there is no such file, or none that can be an image.
    fn image(&self, shard: &Path, name: &str, address: &str) -> Result<Option<Vec<u8>>, DatasetError> {
        let number = shard_number(shard).unwrap_or(0);
        let (folder, folders) = match &self.images {
            Images::Store(store) => return store.image(address, &*self.storage),
            Images::Folder(folder, folders) => (folder, *folders),
        };
        let Ok(path) = image_path(folder, folders, number, name) else { return Ok(None) };
        match std::fs::metadata(&path).map(|found| found.is_file() && found.len() <= IMAGE_BYTES_LIMIT) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(error) => return absent_or_error(folder, path, error),
        }
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) => absent_or_error(folder, path, error),
        }
    }

    /// The document at a place of a shard.
    fn record(&self, sample: u64, found: &Found<'_>, wait: &mut Wait<'_>) -> Result<Record, DatasetError> {
        let Found { number, shard, place: [offset, length] } = *found;
        let changed = || DatasetError::Documents(DocumentIndexError::Changed { shard: shard.to_owned() });
        let read = || match self.texts.read(number, shard, offset, length as usize, &*self.storage) {
            Err(error) if is_cut_short(&error) => Err(changed()),
            read => Ok(read?),
        };
        let line = with_retries(sample, wait, DatasetError::io, read)?;
        let mut record = Record::new();
        record.fill(&line).map_err(|_| changed())?;
        Ok(record)
    }
}

/// A file that is not there is no image, as long as the folder of all images is; any other error says nothing about it.
pub(super) fn absent_or_error(folder: &Path, path: PathBuf, source: io::Error) -> Result<Option<Vec<u8>>, DatasetError> {
    // A link that leads to itself leads to no file, as one whose file is gone.
    let is_absent = matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidFilename)
        || source.raw_os_error() == Some(libc::ELOOP);
    match std::fs::metadata(folder) {
        _ if !is_absent => Err(DatasetError::Image { path, source }),
        Ok(_) => Ok(None),
        // Its volume may come back.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let source = io::Error::new(io::ErrorKind::ResourceBusy, "the folder of the images is not there any more");
            Err(DatasetError::Image { path: folder.into(), source })
        }
        Err(source) => Err(DatasetError::Image { path: folder.into(), source }),
    }
}

/// Whether the folder of images is there.
fn check_folder(folder: &str, field: &str) -> Result<(), DatasetError> {
    let found = std::fs::metadata(folder);
    if found.as_ref().is_ok_and(std::fs::Metadata::is_dir) {
        return Ok(());
    }
    let source = found.err().unwrap_or_else(|| io::ErrorKind::NotADirectory.into());
    Err(DatasetError::Folder { field: field.to_owned(), path: folder.into(), source })
}

impl Source for Mmc4 {
    fn shards(&self) -> &Shards {
        &self.shards
    }

    fn describe(&self) -> (Vec<(PathBuf, u64, u64)>, String) {
        let mut shards = self.shards.describe();
        // As with OBELICS: the pixels of a store are part of the data. Of a folder nobody can say what is in it.
        if let Images::Store(store) = &self.images {
            shards.extend(store.describe());
        }
        (shards, settings(&self.config))
    }

    fn read(&self, sample: u64, asked: &mut Asked<'_>) -> Result<Result<(), RedrawCause>, DatasetError> {
        let Asked { choices, before_probability, decode, wait, document } = asked;
        let find = || self.shards.find(sample, &*self.storage);
        let found = with_retries(sample, &mut **wait, DatasetError::io, find)?;
        let (shard, record) = (found.shard, self.record(sample, &found, &mut **wait)?);
        let rules = Rules {
            min_similarity: self.config.min_similarity,
            max_images: self.config.max_images as usize,
            before_probability: *before_probability,
        };
        let mut chosen = Vec::new();
        if let Err(cause) = choose(&record, &rules, choices, &mut chosen) {
            return Ok(Err(cause));
        }
        let mut readable = Vec::with_capacity(chosen.len());
        for image in chosen {
            let Some(info) = record.images().get(image as usize) else { continue };
            let read = || self.image(shard, record.image_name(info), record.raw_url(info));
            if let Some(bytes) = with_retries(sample, &mut **wait, DatasetError::io, read)?
                && decode(image, &bytes)
            {
                readable.push(image);
            }
        }
        Ok(place(&record, &readable, &rules, choices, document))
    }

    fn fetch(&self, sample: u64) -> Result<(), DatasetError> {
        let Found { number, shard, place: [offset, length] } = self.shards.find(sample, &*self.storage)?;
        if !blob::is_remote(shard) || self.texts.is_packed(number, shard)? {
            return Ok(());
        }
        let file = FileRef { id: FileId::Shard(number), path: shard, stamp: None };
        let named = |source| crate::mmc4::ShardError::Read { path: shard.to_owned(), offset, source };
        Ok(self.storage.fetch(file, offset, length).map_err(named)?)
    }

    fn whole(&self, sample: u64, wait: &mut Wait<'_>) -> Result<Whole, DatasetError> {
        let found = with_retries(sample, &mut *wait, DatasetError::io, || self.shards.find(sample, &*self.storage))?;
        let record = self.record(sample, &found, &mut *wait)?;
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let mut parts: Vec<PackedPart> = record.sentences().map(PackedPart::of_text).collect();
        let mut images = BTreeMap::new();
        let matching = (0_u32..).zip(record.images()).filter(|(_, info)| info.matched_sim >= self.config.min_similarity);
        for (number, info) in matching {
            let name = record.image_name(info);
            let read = || self.image(found.shard, name, record.raw_url(info));
            let bytes = with_retries(sample, &mut *wait, DatasetError::io, read)?;
            let place = match &self.images {
                Images::Store(store) => store.place(record.raw_url(info))?,
                Images::Folder(folder, folders) => {
                    let path = image_path(folder, *folders, shard_number(found.shard).unwrap_or(0), name);
                    (path.unwrap_or_else(|_| folder.clone()), name.to_owned(), None)
                }
            };
            images.insert(number, WholeImage { place, bytes });
            if let Some(part) = parts.get_mut(info.matched_text_index as usize) {
                part.images.push(PackedImage { image: number, similarity: Some(info.matched_sim), url: text(record.raw_url(info)) });
            }
        }
        Ok(Whole { document: PackedDocument { parts, url: text(record.url()) }, images })
    }

    fn most_images(&self) -> usize {
        self.config.max_images as usize
    }

    fn look_through(&self, shard: &Path) -> Result<Findings, DatasetError> {
        Ok(index_shard(shard, &self.config, Findings::naming())?.1)
    }

    fn name(&self, sample: u64) -> Result<(PathBuf, String), DatasetError> {
        let Found { shard, place: [offset, _], .. } = self.shards.find(sample, &*self.storage)?;
        Ok((shard.to_owned(), format!("the document at byte {offset} of the text")))
    }
}

/// What decides which documents are samples, and how many images each has.
fn settings(config: &Mmc4Config) -> String {
    format!("mmc4 1: similarity {:e}, images {}", config.min_similarity, config.max_images)
}

/// Finds the samples of a shard.
fn index_shard(path: &Path, config: &Mmc4Config, mut findings: Findings) -> Result<Made, DatasetError> {
    let (mut samples, mut record) = (Vec::new(), Record::new());
    let mut sentences = Vec::new();
    walk(path, |line| {
        // As between other lines, so often behind the last one: no document, and nothing that is wrong.
        if line.bytes().is_some_and(|bytes| bytes.trim_ascii().is_empty()) {
            return;
        }
        findings.documents += 1;
        let number = line.extent.number;
        if let Err(bad) = line.parse(&mut record) {
            findings.leave_out(bad.fault.name(), || format!("line {} at byte {} of the text: {bad}", number + 1, line.extent.offset));
            return;
        }
        // One image a sentence, up to the limit.
        sentences.clear();
        sentences.extend(
            record.images().iter().filter(|image| image.matched_sim >= config.min_similarity).map(|image| image.matched_text_index),
        );
        sentences.sort_unstable();
        sentences.dedup();
        if sentences.is_empty() {
            findings.leave_out(RedrawCause::NoImageAboveThreshold.name(), || {
                format!("line {} at byte {} of the text", number + 1, line.extent.offset)
            });
            return;
        }
        let image = record.images().iter().find(|image| image.matched_sim >= config.min_similarity);
        if let Some(image) = image.filter(|_| findings.examples.len() < EXAMPLES) {
            let (name, address) = (record.image_name(image).to_owned(), record.raw_url(image).to_owned());
            findings.examples.push(ImageExample { name, address });
        }
        findings.samples += 1;
        findings.images += sentences.len().min(config.max_images as usize) as u64;
        samples.push([line.extent.offset, line.extent.length]);
    })?;
    Ok((samples, findings))
}

#[cfg(test)]
mod tests {
    use lcl_trainer_config::Mmc4Images;

    use super::*;

    #[test]
    fn blank_lines_are_no_documents_and_nothing_that_is_wrong() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("docs_shard_0_v2.jsonl");
        let image = r#"{"image_name": "a.png", "raw_url": "u", "matched_text_index": 0, "matched_sim": 0.5}"#;
        let line = format!(r#"{{"text_list": ["a"], "image_info": [{image}]}}"#);
        std::fs::write(&path, format!("\n{line}\n\r\n  \t\n{line}\n{{\n\n")).expect("a shard");
        let images = Mmc4Images::Flat { folder: "/i".to_owned() };
        let config = Mmc4Config { shards: Vec::new(), images, min_similarity: 0.24, max_images: 6 };
        let (samples, findings) = index_shard(&path, &config, Findings::default()).expect("the shard is read");
        assert_eq!((findings.documents, findings.samples, samples.len()), (3, 2, 2));
        assert_eq!(samples[0], [1, line.len() as u64]);
        assert_eq!(findings.left_out.keys().collect::<Vec<_>>(), ["line_cut_short"]);
        assert!(findings.left_out["line_cut_short"].first.starts_with("line 6 at byte"));
    }
}
