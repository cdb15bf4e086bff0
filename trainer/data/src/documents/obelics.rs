//! OBELICS as a source: its parquet files, their indexes, and the store of its images.
//!
//! Comes in: [`ObelicsConfig`]. Goes out: documents, each a stretch of a row between two changes of topic of which at least one image is in the
//! store. Nothing about them is random.

use std::{
    collections::BTreeMap,
    num::NonZero,
    path::{Path, PathBuf},
    sync::Arc,
};

use lcl_trainer_config::ObelicsConfig;

use super::{
    Asked, Findings, NO_IMAGE_STORED, Source, Wait, Whole, WholeImage,
    index::{LeftOut, Made, Place},
    shards::{Found, Shards},
};
use crate::{
    cause::RedrawCause,
    dataset::{DatasetError, FileId, FileRef, IMAGE_BYTES_LIMIT, Storage},
    index::{lock_for, places},
    obelics::{DocumentFile, Documents, Part, StretchAt, index_file, select_images},
    packed::{PackedDocument, PackedPart},
    retry::with_retries,
    shard::{BLOCK, ListOrigin, ShardError, find_shards, is_header},
    store::{AddressTable, BuildOptions, EXTENSION, StoreError, build_table},
};

/// Row groups that are kept unpacked, 10 MB each. A lane's window is in up to nine of them, so this serves seven lanes of a process without
/// reading any twice.
const ROW_GROUPS: NonZero<usize> = NonZero::new(64).expect("64 is not zero");

/// The documents of OBELICS.
#[derive(Debug)]
pub(crate) struct Obelics {
    config: ObelicsConfig,
    shards: Shards,
    documents: Documents,
    table: AddressTable,
    images: Vec<PathBuf>,
    storage: Box<dyn Storage>,
}

impl Obelics {
    /// Opens the files, making the table of addresses and the indexes that are missing with so many threads. `mixed` is its number in
    /// a mixture.
    pub(crate) fn open(
        config: &ObelicsConfig,
        mixed: Option<usize>,
        index_path: Option<&Path>,
        threads: NonZero<usize>,
        storage: Box<dyn Storage>,
    ) -> Result<Self, DatasetError> {
        let files = find_shards(&config.shards, ListOrigin::of("data.source.obelics.shards", mixed), threads)?;
        let images = find_shards(&config.images, ListOrigin::of("data.source.obelics.images", mixed), threads)?;
        let table = open_table(&images, index_path, threads)?;
        let settings = format!(
            "obelics 1: split {}, images {}, store of {} addresses, {:016x}",
            config.split,
            config.max_images,
            table.addresses(),
            table.identity()
        );
        let shards = Shards::open(&files, index_path, &settings, threads, |path| index_shard(path, config, &table))
            .map_err(|error| error.of_field("data.source.obelics.shards", mixed))?;
        let documents = Documents::new(files, config.split, ROW_GROUPS);
        Ok(Self { config: config.clone(), shards, documents, table, images, storage })
    }

    /// The encoded image of an address; `None` when it cannot be one.
    fn image(&self, address: &str) -> Result<Option<Vec<u8>>, DatasetError> {
        let Some(found) = self.table.find(address)? else { return Ok(None) };
        if found.extent.length > IMAGE_BYTES_LIMIT {
            return Ok(None);
        }
        let path = self.images.get(found.shard).ok_or(StoreError::OtherShards {
            table: PathBuf::new(),
            recorded: self.table.shards(),
            found: self.images.len(),
        })?;
        let changed = || ShardError::Changed { path: path.clone(), offset: found.extent.offset };
        let begin = found.extent.offset.checked_sub(BLOCK).ok_or_else(changed)?;
        let mut bytes = vec![0; BLOCK as usize + found.extent.length as usize];
        self.storage.read(FileRef { id: FileId::Image(found.shard), path, stamp: None }, begin, &mut bytes).map_err(
            |source| match source.kind() {
                std::io::ErrorKind::NotFound => ShardError::Missing { path: path.clone() },
                std::io::ErrorKind::UnexpectedEof => changed(),
                _ => ShardError::Read { path: path.clone(), offset: begin, source },
            },
        )?;
        if !bytes.get(..BLOCK as usize).is_some_and(is_header) {
            return Err(changed().into());
        }
        bytes.drain(..BLOCK as usize);
        Ok(Some(bytes))
    }
}

/// The table of a store's addresses, made when it is missing or of other shards.
fn open_table(images: &[PathBuf], index_path: Option<&Path>, threads: NonZero<usize>) -> Result<AddressTable, DatasetError> {
    let Some(first) = images.first() else { return Err(DatasetError::no_document("data.source.obelics.images")) };
    // Lists that begin with the same shard have tables of their own.
    let mut list = blake3::Hasher::new_derive_key("lcl-data 1: store of images");
    for image in images {
        let name = image.file_name().unwrap_or_default().as_encoded_bytes();
        list.update(&(name.len() as u64).to_le_bytes());
        list.update(name);
    }
    let digest = list.finalize().to_hex();
    let files = places(first, index_path, &format!(".{}.{EXTENSION}", &digest[..16]));
    let find = || -> Result<Option<AddressTable>, DatasetError> {
        for path in &files {
            let opened = AddressTable::open(path).and_then(|table| table.check_shards(images, threads).map(|()| table));
            match opened {
                Ok(table) => return Ok(Some(table)),
                Err(error) if error.io().is_some_and(crate::retry::is_transient) => return Err(error.into()),
                Err(StoreError::Missing { .. }) => {}
                Err(error) => tracing::warn!(table = %path.display(), %error, "table of addresses is of no use: making it again"),
            }
        }
        Ok(None)
    };
    if let Some(table) = find()? {
        return Ok(table);
    }
    let lock = lock_for(&files);
    if lock.as_ref().is_some_and(|lock| lock.waited)
        && let Some(table) = find()?
    {
        return Ok(table);
    }
    let options = BuildOptions { threads, ..BuildOptions::default() };
    let mut first_error = None;
    for path in &files {
        if let Some(folder) = path.parent() {
            // What comes of it is told by the building.
            drop(std::fs::create_dir_all(folder));
        }
        match build_table(images, path, &options, |_| {}) {
            Ok(report) => {
                tracing::info!(table = %path.display(), addresses = report.addresses, repeated = report.repeated, "made the table of addresses");
                for (cause, left_out) in &report.left_out {
                    tracing::warn!(%cause, count = left_out.count, first = left_out.first, "samples of the store of images that have no address or no image");
                }
                let table = AddressTable::open(path)?;
                table.check_shards(images, threads)?;
                return Ok(table);
            }
            // Only where it lies can be another one.
            Err(error @ (StoreError::Write { .. } | StoreError::Sort { .. })) => drop(first_error.get_or_insert(error)),
            Err(error) => return Err(error.into()),
        }
    }
    Err(first_error.map_or(DatasetError::no_document("data.source.obelics.images"), DatasetError::Store))
}

impl Source for Obelics {
    fn ends(&self) -> Arc<[u64]> {
        self.shards.ends()
    }

    fn images(&self) -> u64 {
        self.shards.images()
    }

    fn describe(&self) -> (Vec<(PathBuf, u64, u64)>, String) {
        let ObelicsConfig { split, max_images, .. } = self.config;
        let settings = format!("obelics 1: split {split}, images {max_images}, store of {} addresses", self.table.addresses());
        // Their pixels are part of the data; without times, as with all shards.
        let mut shards = self.shards.describe();
        shards.extend(self.images.iter().zip(self.table.shard_bytes()).map(|(path, bytes)| (path.clone(), bytes, 0)));
        (shards, settings)
    }

    fn read(&self, sample: u64, asked: &mut Asked<'_>) -> Result<Result<(), RedrawCause>, DatasetError> {
        let Asked { decode, wait, document, .. } = asked;
        let read = || -> Result<_, DatasetError> {
            let Found { number, place, .. } = self.shards.find(sample, &*self.storage)?;
            Ok(self.documents.read(stretch_at(number, place))?)
        };
        let parts = with_retries(sample, &mut **wait, DatasetError::io, read)?;
        let mut number = 0;
        let fetch = |address: &str| -> Result<Option<()>, DatasetError> {
            let read = || self.image(address);
            let Some(bytes) = with_retries(sample, &mut **wait, DatasetError::io, read)? else { return Ok(None) };
            let is_readable = decode(number, &bytes);
            number += u32::from(is_readable);
            Ok(is_readable.then_some(()))
        };
        let images = select_images(&parts, Some(self.config.max_images as usize), fetch, document)?;
        Ok(if images.is_empty() { Err(RedrawCause::NoImageReadable) } else { Ok(()) })
    }

    fn fetch(&self, _sample: u64) -> Result<(), DatasetError> {
        // A row group is read as a whole, and kept.
        Ok(())
    }

    fn whole(&self, sample: u64, wait: &mut Wait<'_>) -> Result<Whole, DatasetError> {
        let read = || -> Result<_, DatasetError> {
            let Found { number, place, .. } = self.shards.find(sample, &*self.storage)?;
            Ok(self.documents.read(stretch_at(number, place))?)
        };
        let stretch = with_retries(sample, &mut *wait, DatasetError::io, read)?;
        let (mut parts, mut images) = (Vec::with_capacity(stretch.len()), BTreeMap::new());
        for part in stretch {
            match part {
                Part::Text(text) => parts.push(PackedPart::of_text(&text)),
                Part::Image(address) => {
                    let number = images.len() as u32;
                    let bytes = with_retries(sample, &mut *wait, DatasetError::io, || self.image(&address))?;
                    let found = self.table.find(&address)?;
                    let shard = found.and_then(|found| self.images.get(found.shard)).cloned().unwrap_or_default();
                    images.insert(number, WholeImage { place: (shard, address.clone(), found.map(|found| found.extent.offset)), bytes });
                    parts.push(PackedPart { image: Some(number), url: Some(address), ..PackedPart::default() });
                }
            }
        }
        Ok(Whole { document: PackedDocument { parts, url: None }, images })
    }

    fn most_images(&self) -> usize {
        self.config.max_images as usize
    }

    fn findings(&self) -> Vec<(PathBuf, &Findings)> {
        self.shards.findings()
    }

    fn name(&self, sample: u64) -> Result<(PathBuf, String), DatasetError> {
        let Found { number, shard, place } = self.shards.find(sample, &*self.storage)?;
        let StretchAt { row_group, row, stretch, .. } = stretch_at(number, place);
        Ok((shard.to_owned(), format!("row {row} of row group {row_group}, stretch {stretch}")))
    }
}

fn stretch_at(file: usize, [row_group, row]: Place) -> StretchAt {
    StretchAt { file, row_group: row_group as usize, row: (row >> 32) as u32, stretch: row as u32 }
}

/// Finds the samples of a file.
fn index_shard(path: &Path, config: &ObelicsConfig, table: &AddressTable) -> Result<Made, DatasetError> {
    let file = DocumentFile::open(path)?;
    let (mut samples, mut images) = (Vec::new(), 0);
    let found = index_file(
        &file,
        config.split,
        |address| Ok(table.find(address)?.is_some()),
        |row_group, found| {
            for sample in found {
                images += u64::from(sample.images.min(config.max_images));
                samples.push([row_group as u64, u64::from(sample.row) << 32 | u64::from(sample.stretch)]);
            }
        },
    )?;
    let mut findings = Findings { documents: found.stretches, samples: found.samples, images, ..Findings::default() };
    for (name, faulty) in found.faults {
        findings.documents += faulty.count;
        findings.left_out.insert(name.to_owned(), LeftOut { count: faulty.count, first: faulty.first });
    }
    if found.stretches > found.samples {
        let first = "their addresses are not in the store".to_owned();
        findings.left_out.insert(NO_IMAGE_STORED.to_owned(), LeftOut { count: found.stretches - found.samples, first });
    }
    Ok((samples, findings))
}
