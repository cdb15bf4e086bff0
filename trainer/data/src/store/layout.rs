//! The bytes of a table.
//!
//! Pages of 4,096 bytes. The first is the header; then come the records in order, 170 a page, each page with a checksum; then the key of every
//! page's first record (the fences), by which a page is found without reading others; then the list of shards as JSON. All numbers are
//! little-endian. Comes in and goes out: plain values. It touches no file.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{
    blob::Stamp,
    index::record::{Fields, Parts},
    store::record::{RECORD_BYTES, Record},
};

/// First bytes of every table.
const MAGIC: [u8; 8] = *b"LCLADDRS";

/// Number of this layout.
const VERSION: u32 = 1;

/// What is read at once: a page of the system's memory, so that a look-up costs one of them.
pub(crate) const PAGE_BYTES: usize = 4_096;

/// Records of a page; 16 bytes are left for the checksum.
pub(crate) const PAGE_RECORDS: usize = PAGE_BYTES / RECORD_BYTES;

/// Bytes of a fence.
pub(crate) const FENCE_BYTES: u64 = 8;

/// Bytes of the header that are used.
const HEADER_BYTES: usize = 52;

/// What a table says of a shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShardEntry {
    /// Its name without folders: the same files elsewhere are the same store.
    pub(crate) name: String,
    pub(crate) bytes: u64,
    /// Time of the last change, seconds since 1970.
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

impl ShardEntry {
    pub(crate) fn new(path: &Path, stamp: Stamp) -> Self {
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        Self { name, bytes: stamp.length, seconds: stamp.seconds, nanoseconds: stamp.nanoseconds }
    }
}

/// Header of a table. It is written last: a file that begins with zeros is no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Number of records.
    pub(crate) records: u64,
    /// Bytes of the list of shards.
    pub(crate) list_bytes: u64,
    /// Its CRC-32.
    pub(crate) list_check: u32,
    /// CRC-32 of the fences.
    pub(crate) fences_check: u32,
    /// Tells tables of different stores apart: a page of another one is not taken for this one's.
    pub(crate) identity: u64,
}

impl Header {
    pub(crate) fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut writer = Fields(&mut bytes);
        writer.put(&MAGIC);
        writer.put(&VERSION.to_le_bytes());
        writer.put(&(PAGE_BYTES as u32).to_le_bytes());
        writer.put(&self.records.to_le_bytes());
        writer.put(&self.list_bytes.to_le_bytes());
        writer.put(&self.list_check.to_le_bytes());
        writer.put(&self.fences_check.to_le_bytes());
        writer.put(&self.identity.to_le_bytes());
        let check = crc32fast::hash(&bytes[..HEADER_BYTES - 4]);
        bytes[HEADER_BYTES - 4..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    /// `None` when these are not the first bytes of a table of this version.
    pub(crate) fn decode(bytes: &[u8; PAGE_BYTES]) -> Option<Self> {
        let mut reader = Parts(bytes);
        let known = reader.take::<8>()? == MAGIC
            && u32::from_le_bytes(reader.take()?) == VERSION
            && u32::from_le_bytes(reader.take()?) == PAGE_BYTES as u32;
        let header = Self {
            records: u64::from_le_bytes(reader.take()?),
            list_bytes: u64::from_le_bytes(reader.take()?),
            list_check: u32::from_le_bytes(reader.take()?),
            fences_check: u32::from_le_bytes(reader.take()?),
            identity: u64::from_le_bytes(reader.take()?),
        };
        let check = u32::from_le_bytes(reader.take()?);
        let sound = known && check == crc32fast::hash(&bytes[..HEADER_BYTES - 4]) && header.records > 0 && header.file_bytes().is_some();
        sound.then_some(header)
    }

    /// Number of pages with records.
    pub(crate) fn pages(self) -> u64 {
        self.records.div_ceil(PAGE_RECORDS as u64)
    }

    /// Byte at which the fences begin.
    pub(crate) fn fences_at(self) -> u64 {
        page_at(self.pages())
    }

    /// Byte at which the list of shards begins.
    pub(crate) fn list_at(self) -> u64 {
        self.fences_at() + self.pages() * FENCE_BYTES
    }

    /// Bytes of the whole file; `None` for a header that no file can have.
    pub(crate) fn file_bytes(self) -> Option<u64> {
        // With fewer records than this no sum overflows.
        (self.records < 1 << 48).then(|| self.list_at())?.checked_add(self.list_bytes)
    }

    /// Records of page `number`.
    pub(crate) fn records_of(self, number: u64) -> usize {
        self.records.saturating_sub(number * PAGE_RECORDS as u64).min(PAGE_RECORDS as u64) as usize
    }
}

/// Byte at which page `number` of the records begins.
pub(crate) fn page_at(number: u64) -> u64 {
    (number + 1) * PAGE_BYTES as u64
}

/// Number of the list of shards that a table is of: the first 64 bits of its BLAKE3 hash.
pub(crate) fn identity_of(list: &[u8]) -> u64 {
    Parts(blake3::hash(list).as_bytes()).take().map_or(0, u64::from_le_bytes)
}

/// Bytes of page `number` with these records, at most [`PAGE_RECORDS`].
pub(crate) fn encode_page(records: &[Record], identity: u64, number: u64) -> [u8; PAGE_BYTES] {
    let mut page = [0; PAGE_BYTES];
    for (place, record) in page.chunks_exact_mut(RECORD_BYTES).zip(records) {
        place.copy_from_slice(&record.encode());
    }
    let check = page_check(&page, identity, number);
    page[PAGE_BYTES - 4..].copy_from_slice(&check.to_le_bytes());
    page
}

/// Whether these are the bytes of page `number` of the table with this identity.
pub(crate) fn is_sound(page: &[u8; PAGE_BYTES], identity: u64, number: u64) -> bool {
    page.last_chunk().is_some_and(|check| u32::from_le_bytes(*check) == page_check(page, identity, number))
}

fn page_check(page: &[u8; PAGE_BYTES], identity: u64, number: u64) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&identity.to_le_bytes());
    hasher.update(&number.to_le_bytes());
    hasher.update(&page[..PAGE_BYTES - 4]);
    hasher.finalize()
}

/// Record `at` of a page.
pub(crate) fn record_in(page: &[u8; PAGE_BYTES], at: usize) -> Option<Record> {
    Record::decode(page.get(at * RECORD_BYTES..)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{index::Extent, store::record::Digest};

    proptest! {
        #[test]
        fn pages_and_headers_come_back_and_every_changed_bit_is_noticed(
            records in 1u64..1 << 48, list_bytes in 0u64..1 << 40, checks: [u32; 2], identity: u64, number: u64,
            count in 0..=PAGE_RECORDS, damage in 0..PAGE_BYTES * 8, header_damage in 0..HEADER_BYTES * 8,
        ) {
            let header = Header { records, list_bytes, list_check: checks[0], fences_check: checks[1], identity };
            let mut bytes = [0; PAGE_BYTES];
            bytes[..HEADER_BYTES].copy_from_slice(&header.encode());
            prop_assert_eq!(Header::decode(&bytes), Some(header));
            bytes[header_damage / 8] ^= 1 << (header_damage % 8);
            prop_assert_eq!(Header::decode(&bytes), None);

            let record = |at: usize| Record::new(Digest { key: at as u64, check: 7 }, 8, Extent { offset: 512, length: 9 });
            let written: Vec<Record> = (0..count).filter_map(record).collect();
            let mut page = encode_page(&written, identity, number);
            prop_assert!(is_sound(&page, identity, number));
            prop_assert!(!is_sound(&page, identity, number ^ 1) && !is_sound(&page, identity ^ 1, number));
            let read: Vec<Record> = (0..count).filter_map(|at| record_in(&page, at)).collect();
            prop_assert_eq!(read, written);
            page[damage / 8] ^= 1 << (damage % 8);
            prop_assert!(!is_sound(&page, identity, number));
        }
    }

    #[test]
    fn a_file_of_zeros_is_no_table() {
        assert_eq!(Header::decode(&[0; PAGE_BYTES]), None);
    }
}
