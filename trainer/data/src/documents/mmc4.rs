//! MMC4 as a source: its shards, their indexes, and the images in their folders.
//!
//! Comes in: [`Mmc4Config`]. Goes out: documents. A document is a sample when one of its images matches its sentence well enough; which of
//! them are taken, and where they stand, is drawn when it is read.

use std::{
    io,
    num::NonZero,
    path::{Path, PathBuf},
    sync::Arc,
};

use lcl_trainer_config::{Mmc4Config, Mmc4Images, in_mixture};

use super::{
    Asked, Findings, Source,
    index::{DocumentIndex, DocumentIndexError, Made, Place},
    unpacked::{Unpacked, is_cut_short},
};
use crate::{
    cause::RedrawCause,
    dataset::{DatasetError, Storage},
    index::{over_all, record::Stamp},
    mmc4::{ImageFolders, Record, Rules, choose, image_path, place, shard_number, walk},
    retry::with_retries,
    shard::{ListOrigin, find_present_shards},
};

/// Most bytes of an image's file.
const IMAGE_BYTES_LIMIT: u64 = crate::dataset::IMAGE_BYTES_LIMIT as u64;

/// The documents of MMC4.
#[derive(Debug)]
pub(crate) struct Mmc4 {
    config: Mmc4Config,
    folders: ImageFolders,
    indexes: Vec<DocumentIndex>,
    ends: Arc<[u64]>,
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
        check_folder(config.images.folder(), &field("data.source.mmc4.images.folder"))?;
        if let (Mmc4Images::ByShard { .. }, Some(path)) = (&config.images, paths.iter().find(|path| shard_number(path).is_none())) {
            return Err(DatasetError::NoShardNumber { field: field("data.source.mmc4.images.layout"), path: path.clone() });
        }
        let settings = settings(config);
        let numbered: Vec<(usize, PathBuf)> = paths.into_iter().enumerate().collect();
        let indexes = over_all(threads, &numbered, |(number, path)| {
            let stamp = || stamp_of(path);
            opened(*number, || DocumentIndex::open(path, *number, stamp, index_path, &settings, || index_shard(path, config)))
        })?;
        let folders = match config.images {
            Mmc4Images::Flat { .. } => ImageFolders::One,
            Mmc4Images::ByShard { .. } => ImageFolders::ByShard,
        };
        let ends = ends_of(&indexes)?;
        Ok(Self { config: config.clone(), folders, indexes, ends, texts: Unpacked::new(index_path), storage })
    }

    fn index_of(&self, sample: u64) -> Result<(usize, &DocumentIndex, Place), DatasetError> {
        find(&self.indexes, &self.ends, sample, &*self.storage)
    }

    /// The encoded image; `None` when there is no such file, or none that can be an image.
    fn image(&self, shard: &Path, name: &str) -> Result<Option<Vec<u8>>, DatasetError> {
        let number = shard_number(shard).unwrap_or(0);
        let folder = match &self.config.images {
            Mmc4Images::Flat { folder } | Mmc4Images::ByShard { folder } => folder,
        };
        let Ok(path) = image_path(Path::new(folder), self.folders, number, name) else { return Ok(None) };
        match std::fs::metadata(&path).map(|found| found.is_file() && found.len() <= IMAGE_BYTES_LIMIT) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(error) => return self.absent_or_error(path, error),
        }
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) => self.absent_or_error(path, error),
        }
    }

    /// A file that is not there is no image, as long as the folder of all images is; any other error says nothing about it.
    fn absent_or_error(&self, path: PathBuf, source: io::Error) -> Result<Option<Vec<u8>>, DatasetError> {
        let is_absent = matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidFilename);
        let folder = self.config.images.folder();
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
}

/// Opens or makes an index, again after errors that may pass.
pub(super) fn opened(number: usize, open: impl FnMut() -> Result<DocumentIndex, DatasetError>) -> Result<DocumentIndex, DatasetError> {
    let wait = |delay| {
        std::thread::sleep(delay);
        false
    };
    with_retries(number as u64, wait, DatasetError::io, open)
}

/// Whether the folder of images is there.
pub(super) fn check_folder(folder: &str, field: &str) -> Result<(), DatasetError> {
    let found = std::fs::metadata(folder);
    if found.as_ref().is_ok_and(std::fs::Metadata::is_dir) {
        return Ok(());
    }
    let source = found.err().unwrap_or_else(|| io::ErrorKind::NotADirectory.into());
    Err(DatasetError::Folder { field: field.to_owned(), path: folder.into(), source })
}

impl Source for Mmc4 {
    fn ends(&self) -> Arc<[u64]> {
        Arc::clone(&self.ends)
    }

    fn images(&self) -> u64 {
        self.indexes.iter().map(|index| index.findings().images).sum()
    }

    fn describe(&self) -> (Vec<(PathBuf, u64, u64)>, String) {
        (describe(&self.indexes), settings(&self.config))
    }

    fn read(&self, sample: u64, asked: &mut Asked<'_>) -> Result<Result<(), RedrawCause>, DatasetError> {
        let (number, index, [offset, length]) = self.index_of(sample)?;
        let changed = || DatasetError::Documents(DocumentIndexError::Changed { shard: index.shard().to_owned() });
        let line = match self.texts.read(number, index.shard(), offset, length as usize, &*self.storage) {
            Err(error) if is_cut_short(&error) => return Err(changed()),
            read => read?,
        };
        let mut record = Record::new();
        record.fill(&line).map_err(|_| changed())?;
        let rules = Rules {
            min_similarity: self.config.min_similarity,
            max_images: self.config.max_images as usize,
            before_probability: asked.before_probability,
        };
        let mut chosen = Vec::new();
        if let Err(cause) = choose(&record, &rules, &mut asked.choices, &mut chosen) {
            return Ok(Err(cause));
        }
        let mut readable = Vec::with_capacity(chosen.len());
        for image in chosen {
            let Some(info) = record.images().get(image as usize) else { continue };
            if let Some(bytes) = self.image(index.shard(), record.image_name(info))?
                && (asked.decode)(image, &bytes)
            {
                readable.push(image);
            }
        }
        Ok(place(&record, &readable, &rules, &mut asked.choices, asked.document))
    }

    fn name(&self, sample: u64) -> Result<(PathBuf, String), DatasetError> {
        let (_, index, [offset, _]) = self.index_of(sample)?;
        Ok((index.shard().to_owned(), format!("the document at byte {offset} of the text")))
    }
}

/// What decides which documents are samples, and how many images each has.
fn settings(config: &Mmc4Config) -> String {
    format!("mmc4 1: similarity {:e}, images {}", config.min_similarity, config.max_images)
}

/// Finds the samples of a shard.
fn index_shard(path: &Path, config: &Mmc4Config) -> Result<Made, DatasetError> {
    let (mut samples, mut findings, mut record) = (Vec::new(), Findings::default(), Record::new());
    let mut sentences = Vec::new();
    walk(path, |line| {
        findings.documents += 1;
        let number = line.extent.number;
        if let Err(bad) = line.parse(&mut record) {
            findings.leave_out(bad.fault.name(), || format!("line {}: {bad}", number + 1));
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
            findings.leave_out(RedrawCause::NoImageAboveThreshold.name(), || format!("line {}", number + 1));
            return;
        }
        findings.samples += 1;
        findings.images += sentences.len().min(config.max_images as usize) as u64;
        samples.push([line.extent.offset, line.extent.length]);
    })?;
    Ok((samples, findings))
}

/// What the shard's file looks like now.
pub(super) fn stamp_of(path: &Path) -> Result<Stamp, DatasetError> {
    let file = crate::shard::open(path)?;
    Ok(crate::index::stamp_of(path, &file)?)
}

/// For every shard, the number of the sample after its last one; an error when there is none at all.
pub(super) fn ends_of(indexes: &[DocumentIndex]) -> Result<Arc<[u64]>, DatasetError> {
    let ends = indexes.iter().scan(0, |end, index| {
        *end += index.findings().samples;
        Some(*end)
    });
    let ends: Arc<[u64]> = ends.collect();
    if ends.last().is_none_or(|samples| *samples == 0) {
        let mut found = Findings::default();
        for index in indexes {
            found.add(index.findings());
        }
        let causes = found.left_out.iter().map(|(cause, left_out)| format!("{} {cause} (the first: {})", left_out.count, left_out.first));
        return Err(DatasetError::NoDocument {
            shards: indexes.len(),
            documents: found.documents,
            causes: causes.collect::<Vec<_>>().join(", "),
        });
    }
    Ok(ends)
}

/// The shard of a sample, and where the sample lies in it.
pub(super) fn find<'a>(
    indexes: &'a [DocumentIndex],
    ends: &[u64],
    sample: u64,
    storage: &dyn Storage,
) -> Result<(usize, &'a DocumentIndex, Place), DatasetError> {
    let shard = ends.partition_point(|end| *end <= sample);
    let samples = ends.last().copied().unwrap_or(0);
    let index = indexes.get(shard).ok_or(DatasetError::OutOfRange { sample, samples })?;
    let begin = shard.checked_sub(1).and_then(|before| ends.get(before)).copied().unwrap_or(0);
    Ok((shard, index, index.place(sample - begin, storage)?))
}

pub(super) fn describe(indexes: &[DocumentIndex]) -> Vec<(PathBuf, u64, u64)> {
    indexes.iter().map(|index| (index.shard().to_owned(), index.length(), index.findings().samples)).collect()
}
