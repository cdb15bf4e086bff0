//! Images in tar shards, found by their addresses.
//!
//! Comes in: shards as img2dataset leaves them. Goes out: for an address the encoded image. The table from one to the other is made when it is
//! missing, by one process while others wait. It decodes nothing.

use std::{
    num::NonZero,
    path::{Path, PathBuf},
};

use crate::{
    dataset::{DatasetError, FileId, FileRef, IMAGE_BYTES_LIMIT, Storage},
    index::{lock_for, places, writable},
    shard::{BLOCK, ListOrigin, ShardError, find_shards, is_header},
    store::{AddressTable, BuildOptions, EXTENSION, StoreError, build_table},
};

/// A store of images.
#[derive(Debug)]
pub(super) struct ImageStore {
    pub(super) table: AddressTable,
    shards: Vec<PathBuf>,
}

impl ImageStore {
    /// Opens the shards of a list, making the table of their addresses with so many threads when it is missing.
    pub(super) fn open(
        list: &[String],
        origin: ListOrigin,
        index_path: Option<&Path>,
        threads: NonZero<usize>,
    ) -> Result<Self, DatasetError> {
        let shards = find_shards(list, origin, threads)?;
        let (field, mixed) = origin.field();
        let table = open_table(&shards, index_path, threads).map_err(|error| error.of_field(field, mixed))?;
        Ok(Self { table, shards })
    }

    /// Path, bytes and no samples of every shard: pixels are part of the data.
    pub(super) fn describe(&self) -> impl Iterator<Item = (PathBuf, u64, u64)> + '_ {
        self.shards.iter().zip(self.table.shard_bytes()).map(|(path, bytes)| (path.clone(), bytes, 0))
    }

    /// Where the image of an address lies, for messages: its shard, the address, and the first byte when it is there.
    pub(super) fn place(&self, address: &str) -> Result<(PathBuf, String, Option<u64>), DatasetError> {
        let found = self.table.find(address)?;
        let shard = found.and_then(|found| self.shards.get(found.shard)).cloned().unwrap_or_default();
        Ok((shard, address.to_owned(), found.map(|found| found.extent.offset)))
    }

    /// The encoded image of an address; `None` when it cannot be one.
    pub(super) fn image(&self, address: &str, storage: &dyn Storage) -> Result<Option<Vec<u8>>, DatasetError> {
        let Some(found) = self.table.find(address)? else { return Ok(None) };
        if found.extent.length > IMAGE_BYTES_LIMIT {
            return Ok(None);
        }
        let path = self.shards.get(found.shard).ok_or(StoreError::OtherShards {
            table: PathBuf::new(),
            recorded: self.table.shards(),
            found: self.shards.len(),
        })?;
        let changed = || ShardError::Changed { path: path.clone(), offset: found.extent.offset };
        let begin = found.extent.offset.checked_sub(BLOCK).ok_or_else(changed)?;
        let mut bytes = vec![0; BLOCK as usize + found.extent.length as usize];
        storage.read(FileRef { id: FileId::Image(found.shard), path, stamp: None }, begin, &mut bytes).map_err(|source| {
            match source.kind() {
                std::io::ErrorKind::NotFound => ShardError::Missing { path: path.clone() },
                std::io::ErrorKind::UnexpectedEof => changed(),
                _ => ShardError::Read { path: path.clone(), offset: begin, source },
            }
        })?;
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
    for path in writable(&files, index_path) {
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
