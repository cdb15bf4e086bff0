//! OBELICS as a source: its parquet files, their indexes, and the store of its images.
//!
//! Comes in: [`ObelicsConfig`]. Goes out: documents, each a stretch of a row between two changes of topic of which at least one image is in the
//! store. Nothing about them is random.

use std::{
    collections::BTreeMap,
    num::NonZero,
    path::{Path, PathBuf},
};

use lcl_trainer_config::ObelicsConfig;

use super::{
    Asked, Findings, NO_IMAGE_STORED, Source, Wait, Whole, WholeImage,
    images::ImageStore,
    index::{Made, Place},
    shards::{Found, Shards},
};
use crate::{
    cause::RedrawCause,
    dataset::{DatasetError, Storage},
    obelics::{DocumentFile, Documents, LeftOutAt, Part, StretchAt, Why, index_file_with, select_images},
    packed::{PackedDocument, PackedPart},
    retry::with_retries,
    shard::{ListOrigin, find_shards},
    store::AddressTable,
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
    images: ImageStore,
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
        let images = ImageStore::open(&config.images, ListOrigin::of("data.source.obelics.images", mixed), index_path, threads)?;
        let table = &images.table;
        let settings = format!(
            "obelics 1: split {}, images {}, store of {} addresses, {:016x}",
            config.split,
            config.max_images,
            table.addresses(),
            table.identity()
        );
        let shards = Shards::open(&files, index_path, &settings, threads, |path| index_shard(path, config, table, Findings::default()))
            .map_err(|error| error.of_field("data.source.obelics.shards", mixed))?;
        let documents = Documents::new(files, config.split, ROW_GROUPS);
        Ok(Self { config: config.clone(), shards, documents, images, storage })
    }
}

impl Source for Obelics {
    fn shards(&self) -> &Shards {
        &self.shards
    }

    fn describe(&self) -> (Vec<(PathBuf, u64, u64)>, String) {
        let ObelicsConfig { split, max_images, .. } = self.config;
        let settings = format!("obelics 1: split {split}, images {max_images}, store of {} addresses", self.images.table.addresses());
        // Their pixels are part of the data; without times, as with all shards.
        let mut shards = self.shards.describe();
        shards.extend(self.images.describe());
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
            let read = || self.images.image(address, &*self.storage);
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
                    let bytes = with_retries(sample, &mut *wait, DatasetError::io, || self.images.image(&address, &*self.storage))?;
                    images.insert(number, WholeImage { place: self.images.place(&address)?, bytes });
                    parts.push(PackedPart { image: Some(number), url: Some(address), ..PackedPart::default() });
                }
            }
        }
        Ok(Whole { document: PackedDocument { parts, url: None }, images })
    }

    fn most_images(&self) -> usize {
        self.config.max_images as usize
    }

    fn look_through(&self, shard: &Path) -> Result<Findings, DatasetError> {
        Ok(index_shard(shard, &self.config, &self.images.table, Findings::naming())?.1)
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
fn index_shard(path: &Path, config: &ObelicsConfig, table: &AddressTable, mut findings: Findings) -> Result<Made, DatasetError> {
    let file = DocumentFile::open(path)?;
    let (mut samples, mut images) = (Vec::new(), 0);
    let found = index_file_with(
        &file,
        config.split,
        |address| Ok(table.find(address)?.is_some()),
        |row_group, found, left_out| {
            for sample in found {
                images += u64::from(sample.images.min(config.max_images));
                samples.push([row_group as u64, u64::from(sample.row) << 32 | u64::from(sample.stretch)]);
            }
            for LeftOutAt { row, why } in left_out {
                let place = format!("row {row} of row group {row_group}");
                match why {
                    Why::Fault(fault) => findings.leave_out(fault.name(), || format!("{place}: {fault}")),
                    Why::NoImageStored { stretch } => findings.leave_out(NO_IMAGE_STORED, || format!("{place}, stretch {stretch}")),
                }
            }
        },
    )?;
    findings.documents = found.stretches + found.faults.values().map(|faulty| faulty.count).sum::<u64>();
    (findings.samples, findings.images) = (found.samples, images);
    Ok((samples, findings))
}
