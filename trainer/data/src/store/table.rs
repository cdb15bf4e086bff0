//! Looking addresses up.
//!
//! Comes in: a table's file and addresses. Goes out: where their images lie. What is held in memory are the fences, 8 bytes for 170
//! addresses (14 MB for 298 million); a look-up reads the one page that can hold the address, two when a page begins with its key, and checks the
//! page each time. It is read by position and not mapped into memory: the workspace has no `unsafe` outside the tensor crate, and a disk
//! or a network that fails gives an error that can be tried again, where a mapped page would end the process.

use std::{
    fmt,
    fs::File,
    io,
    num::NonZero,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use crate::{
    index::{over_all, stamp_of},
    shard,
    store::{
        Place, StoreError,
        layout::{FENCE_BYTES, Header, PAGE_BYTES, ShardEntry, identity_of, is_sound, page_at, record_in},
        record::{Hash, digest},
    },
};

/// A table of addresses. All threads can use it at once.
pub struct AddressTable {
    path: PathBuf,
    file: File,
    header: Header,
    /// The key of every page's first record.
    fences: Box<[u64]>,
    shards: Vec<ShardEntry>,
    hash: Hash,
}

impl fmt::Debug for AddressTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressTable").field("path", &self.path).field("header", &self.header).finish_non_exhaustive()
    }
}

impl AddressTable {
    /// Opens a table. Whether it is of the store at hand is told by [`AddressTable::check_shards`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with(path, digest)
    }

    /// As [`AddressTable::open`], for a table that was made with this hash.
    pub(crate) fn open_with(path: &Path, hash: Hash) -> Result<Self, StoreError> {
        let file = File::open(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => StoreError::Missing { table: path.to_owned() },
            _ => StoreError::Read { table: path.to_owned(), offset: 0, source },
        })?;
        let length = file.metadata().map_err(|source| StoreError::Read { table: path.to_owned(), offset: 0, source })?.len();
        let not_a_table = || StoreError::NotATable { table: path.to_owned() };
        let damaged = |offset| StoreError::Damaged { table: path.to_owned(), offset };
        let mut page = [0; PAGE_BYTES];
        if length < PAGE_BYTES as u64 {
            return Err(not_a_table());
        }
        read(path, &file, 0, &mut page)?;
        let header = Header::decode(&page).ok_or_else(not_a_table)?;
        if header.file_bytes() != Some(length) {
            return Err(damaged(length));
        }
        // The file is as long as the header says, so these sizes are real ones.
        let mut fences = vec![0; (header.pages() * FENCE_BYTES) as usize];
        read(path, &file, header.fences_at(), &mut fences)?;
        let mut list = vec![0; header.list_bytes as usize];
        read(path, &file, header.list_at(), &mut list)?;
        if crc32fast::hash(&fences) != header.fences_check {
            return Err(damaged(header.fences_at()));
        }
        if crc32fast::hash(&list) != header.list_check || identity_of(&list) != header.identity {
            return Err(damaged(header.list_at()));
        }
        let shards = serde_json::from_slice(&list).map_err(|_| damaged(header.list_at()))?;
        let (keys, _) = fences.as_chunks();
        let fences = keys.iter().map(|key| u64::from_le_bytes(*key)).collect();
        Ok(Self { path: path.to_owned(), file, header, fences, shards, hash })
    }

    /// Number of addresses.
    #[must_use]
    pub fn addresses(&self) -> u64 {
        self.header.records
    }

    /// Tells tables of different shards apart: by their names, sizes and times of the last change.
    #[must_use]
    pub fn identity(&self) -> u64 {
        self.header.identity
    }

    /// Bytes of each shard that the table was made of, in their order.
    pub(crate) fn shard_bytes(&self) -> impl Iterator<Item = u64> + '_ {
        self.shards.iter().map(|shard| shard.bytes)
    }

    /// Number of shards that the table was made of.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Whether the table was made of these shards, in this order: names without folders, sizes and times of the last change agree. Each is looked at,
    /// with `threads` threads; the first in the list's order that differs is named.
    pub fn check_shards(&self, shards: &[PathBuf], threads: NonZero<usize>) -> Result<(), StoreError> {
        if shards.len() != self.shards.len() {
            return Err(StoreError::OtherShards { table: self.path.clone(), recorded: self.shards.len(), found: shards.len() });
        }
        let pairs: Vec<(&PathBuf, &ShardEntry)> = shards.iter().zip(&self.shards).collect();
        over_all(threads, &pairs, |(path, recorded)| {
            let found = ShardEntry::new(path, stamp_of(path, &shard::open(path)?)?);
            if found == **recorded {
                return Ok(());
            }
            let recorded = format!("{} of {} bytes", recorded.name, recorded.bytes);
            Err(StoreError::Stale { table: self.path.clone(), shard: (*path).clone(), recorded, found: found.bytes })
        })?;
        Ok(())
    }

    /// Where the image of an address lies; `None` when the store does not have it. Of several images of an address it is the one in the first
    /// shard, and there the first.
    pub fn find(&self, address: &str) -> Result<Option<Place>, StoreError> {
        let wanted = (self.hash)(address);
        // Records of this key may begin at the end of the last page that begins before it.
        let mut number = self.fences.partition_point(|fence| *fence < wanted.key).saturating_sub(1);
        let mut page = [0; PAGE_BYTES];
        loop {
            let records = self.read_page(number as u64, &mut page)?;
            let mut at = first_at_or_after(&page, records, wanted.key);
            while let Some(record) = (at < records).then(|| record_in(&page, at)).flatten() {
                if record.digest() == wanted {
                    return self.place(number, record.place());
                }
                if record.key != wanted.key {
                    return Ok(None);
                }
                at += 1;
            }
            number += 1;
            if self.fences.get(number) != Some(&wanted.key) {
                return Ok(None);
            }
        }
    }

    /// A place whose shard there is.
    fn place(&self, page: usize, place: Place) -> Result<Option<Place>, StoreError> {
        if place.shard < self.shards.len() { Ok(Some(place)) } else { Err(self.damaged(page as u64)) }
    }

    /// Reads page `number` and gives the number of its records.
    fn read_page(&self, number: u64, page: &mut [u8; PAGE_BYTES]) -> Result<usize, StoreError> {
        read(&self.path, &self.file, page_at(number), page)?;
        if !is_sound(page, self.header.identity, number) {
            return Err(self.damaged(number));
        }
        Ok(self.header.records_of(number))
    }

    fn damaged(&self, page: u64) -> StoreError {
        StoreError::Damaged { table: self.path.clone(), offset: page_at(page) }
    }
}

/// Number of the first of a page's records whose key is not below `key`.
fn first_at_or_after(page: &[u8; PAGE_BYTES], records: usize, key: u64) -> usize {
    let (mut low, mut high) = (0, records);
    while low < high {
        let middle = low.midpoint(high);
        if record_in(page, middle).is_some_and(|record| record.key < key) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

fn read(table: &Path, file: &File, offset: u64, buffer: &mut [u8]) -> Result<(), StoreError> {
    file.read_exact_at(buffer, offset).map_err(|source| match source.kind() {
        // Cut short since it was opened.
        io::ErrorKind::UnexpectedEof => StoreError::Damaged { table: table.to_owned(), offset },
        _ => StoreError::Read { table: table.to_owned(), offset, source },
    })
}
