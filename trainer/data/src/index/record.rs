//! The bytes of an index file.
//!
//! A header, what was found in the shard as JSON, and one record per sample, all numbers little-endian, each with a CRC-32 of its own: a damaged
//! record is found when it is read, so that opening a data set of any size reads one header with its findings per shard. Comes in and goes out: plain values. It touches no file.

use lcl_trainer_config::{KEYS_LIMIT, SampleKeys};

use crate::{
    blob::Stamp,
    index::{Extent, Findings, Record},
    shard::{BLOCK, Keyed, SampleFiles},
};

/// First bytes of every index file.
const MAGIC: [u8; 8] = *b"LCLINDEX";

/// Number of this layout; a file of any other is built again.
pub(crate) const VERSION: u32 = 4;

/// Bytes of the header.
pub(crate) const HEADER_BYTES: usize = 56;

/// Bytes of a record of samples that have one caption.
pub(crate) const RECORD_BYTES: usize = 28;

/// Bytes of an extent, which a record has for every further file that a caption may come from.
const EXTENT_BYTES: usize = 8;

/// Bytes of a record when captions are looked for under these keys.
pub(crate) fn record_bytes(keys: &SampleKeys) -> usize {
    RECORD_BYTES + EXTENT_BYTES * keys.caption_files().count().saturating_sub(1)
}

/// Header of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// The shard's file.
    pub(crate) stamp: Stamp,
    /// Bytes of a record, by [`record_bytes`].
    pub(crate) record_bytes: u32,
    /// Number of records.
    pub(crate) count: u64,
    /// Bytes of the findings.
    pub(crate) findings_bytes: u32,
    /// Their CRC-32.
    pub(crate) findings_check: u32,
}

/// Most bytes of findings: some times what their longest lists take.
const FINDINGS_LIMIT: u32 = 1 << 20;

impl Header {
    pub(crate) fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut writer = Fields(&mut bytes);
        writer.put(&MAGIC);
        writer.put(&VERSION.to_le_bytes());
        writer.put(&self.record_bytes.to_le_bytes());
        writer.put(&self.stamp.length.to_le_bytes());
        writer.put(&self.stamp.seconds.to_le_bytes());
        writer.put(&self.stamp.nanoseconds.to_le_bytes());
        writer.put(&self.count.to_le_bytes());
        writer.put(&self.findings_bytes.to_le_bytes());
        writer.put(&self.findings_check.to_le_bytes());
        let check = crc32fast::hash(&bytes[..HEADER_BYTES - 4]);
        bytes[HEADER_BYTES - 4..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    /// What stands for the header in the check sums of its records.
    pub(crate) fn seal(self) -> u32 {
        // Without its own check: data followed by its CRC has the same CRC whatever the data.
        crc32fast::hash(&self.encode()[..HEADER_BYTES - 4])
    }

    /// `None` when these are not the bytes of a header of this version.
    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let mut reader = Parts(bytes);
        let known = reader.take::<8>()? == MAGIC && u32::from_le_bytes(reader.take()?) == VERSION;
        let record_bytes = u32::from_le_bytes(reader.take()?);
        let further = (record_bytes as usize).checked_sub(RECORD_BYTES)?;
        let known = known && further.is_multiple_of(EXTENT_BYTES) && further / EXTENT_BYTES < KEYS_LIMIT;
        let stamp = Stamp {
            length: u64::from_le_bytes(reader.take()?),
            seconds: i64::from_le_bytes(reader.take()?),
            nanoseconds: u32::from_le_bytes(reader.take()?),
        };
        let count = u64::from_le_bytes(reader.take()?);
        let (findings_bytes, findings_check) = (u32::from_le_bytes(reader.take()?), u32::from_le_bytes(reader.take()?));
        let check = u32::from_le_bytes(reader.take()?);
        let sound = known && check == crc32fast::hash(&bytes[..HEADER_BYTES - 4]) && findings_bytes <= FINDINGS_LIMIT;
        sound.then_some(Self { stamp, record_bytes, count, findings_bytes, findings_check })
    }

    /// The findings that these bytes behind the header are; `None` when they are damaged.
    pub(crate) fn decode_findings(self, bytes: &[u8]) -> Option<Findings> {
        let sound = bytes.len() as u64 == u64::from(self.findings_bytes) && crc32fast::hash(bytes) == self.findings_check;
        if sound { serde_json::from_slice(bytes).ok() } else { None }
    }

    /// Byte at which record `number` begins.
    pub(crate) fn record_at(self, number: u64) -> u64 {
        HEADER_BYTES as u64 + u64::from(self.findings_bytes) + number * u64::from(self.record_bytes)
    }

    /// Bytes of the whole index file.
    pub(crate) fn file_bytes(self) -> Option<u64> {
        self.count.checked_mul(self.record_bytes.into())?.checked_add(self.record_at(0))
    }
}

/// Which bit of a record's kind says that there is a caption; the bits below number the image's key from 1, 0 for no image. There are fewer
/// keys than they can count ([`lcl_trainer_config::KEYS_LIMIT`]).
const CAPTION_BIT: u32 = 1 << 8;

/// Which bit says that two members have the same name.
const DOUBLED_BIT: u32 = 1 << 9;

impl Record {
    /// What the index says of a sample, or `None` when it lies beyond the 2^32 blocks that a record can name.
    pub(crate) fn of(files: &SampleFiles, keys: &SampleKeys) -> Option<Self> {
        u32::try_from(files.start / BLOCK).ok()?;
        let extent = |Keyed { member, .. }: &Keyed| {
            u32::try_from(member.offset / BLOCK).ok()?;
            // A member of 4 GiB or more is beyond every limit of the reader; that is all that has to be known of it.
            Some(Extent { offset: member.offset, length: u32::try_from(member.length).unwrap_or(u32::MAX) })
        };
        let image = match &files.image {
            Some(image) => Some((image.key, extent(image)?)),
            None => None,
        };
        let text = |number: usize| files.texts.iter().find(|text| usize::from(text.key) == number);
        let caption = if keys.draws_captions() { text(0) } else { files.caption.as_ref() };
        let caption = match caption {
            Some(caption) => Some(extent(caption)?),
            None => None,
        };
        let mut others = Vec::new();
        for number in 1..keys.caption_files().count() {
            others.push(match text(number) {
                Some(text) => Some(extent(text)?),
                None => None,
            });
        }
        Some(Self { start: files.start, image, caption, others, doubled: files.doubled })
    }

    /// Bytes of record `number` of the index with the header of this seal.
    pub(crate) fn encode(&self, seal: u32, number: u64) -> Vec<u8> {
        let block = |offset: u64| ((offset / BLOCK) as u32).to_le_bytes();
        let nothing = Extent { offset: 0, length: 0 };
        let (image, caption) = (self.image.map_or(nothing, |(_, extent)| extent), self.caption.unwrap_or(nothing));
        let image_key = self.image.map_or(0, |(key, _)| u32::from(key) + 1);
        let bit = |holds: bool, bit: u32| if holds { bit } else { 0 };
        let kind = image_key | bit(self.caption.is_some(), CAPTION_BIT) | bit(self.doubled, DOUBLED_BIT);
        let mut bytes = vec![0; RECORD_BYTES + EXTENT_BYTES * self.others.len()];
        let end = bytes.len() - 4;
        let mut writer = Fields(&mut bytes);
        writer.put(&block(self.start));
        writer.put(&block(image.offset));
        writer.put(&image.length.to_le_bytes());
        writer.put(&block(caption.offset));
        writer.put(&caption.length.to_le_bytes());
        for other in &self.others {
            // The first block of an archive is a header: no contents begin there.
            let other = other.unwrap_or(nothing);
            writer.put(&block(other.offset));
            writer.put(&other.length.to_le_bytes());
        }
        writer.put(&kind.to_le_bytes());
        let check = record_check(&bytes, seal, number);
        bytes[end..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    /// `None` when these are not the bytes of this record of this index.
    pub(crate) fn decode(bytes: &[u8], seal: u32, number: u64) -> Option<Self> {
        let mut reader = Parts(bytes);
        let mut next = || Some(u32::from_le_bytes(reader.take()?));
        let offset = |block: u32| u64::from(block) * BLOCK;
        let start = offset(next()?);
        let image = Extent { offset: offset(next()?), length: next()? };
        let caption = Extent { offset: offset(next()?), length: next()? };
        let mut others = Vec::new();
        for _ in 0..bytes.len().saturating_sub(RECORD_BYTES) / EXTENT_BYTES {
            let other = Extent { offset: offset(next()?), length: next()? };
            others.push((other.offset > 0).then_some(other));
        }
        let (kind, check) = (next()?, next()?);
        if check != record_check(bytes, seal, number) {
            return None;
        }
        let image = match kind & (CAPTION_BIT - 1) {
            0 => None,
            number => Some((u8::try_from(number - 1).ok()?, image)),
        };
        let caption = (kind & CAPTION_BIT != 0).then_some(caption);
        Some(Self { start, image, caption, others, doubled: kind & DOUBLED_BIT != 0 })
    }
}

/// CRC-32 over the header's, number and record: a record of another index, or in another's place, does not pass.
fn record_check(bytes: &[u8], seal: u32, number: u64) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&seal.to_le_bytes());
    hasher.update(&number.to_le_bytes());
    hasher.update(bytes.split_last_chunk::<4>().map_or(bytes, |(before, _)| before));
    hasher.finalize()
}

/// Writes fields one after the other into an array that is known to be long enough.
pub(crate) struct Fields<'a>(pub(crate) &'a mut [u8]);

impl Fields<'_> {
    pub(crate) fn put(&mut self, field: &[u8]) {
        let (head, tail) = std::mem::take(&mut self.0).split_at_mut(field.len());
        head.copy_from_slice(field);
        self.0 = tail;
    }
}

/// Reads fields one after the other.
pub(crate) struct Parts<'a>(pub(crate) &'a [u8]);

impl Parts<'_> {
    pub(crate) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk()?;
        self.0 = tail;
        Some(*head)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn extents() -> impl Strategy<Value = Extent> {
        (any::<u32>(), any::<u32>()).prop_map(|(block, length)| Extent { offset: u64::from(block) * BLOCK, length })
    }

    proptest! {
        #[test]
        fn records_and_headers_come_back_and_every_changed_bit_is_noticed(
            start in any::<u32>(),
            image in proptest::option::of((0..lcl_trainer_config::KEYS_LIMIT as u8, extents())),
            caption in proptest::option::of(extents()),
            others in proptest::collection::vec(proptest::option::of(extents()), 0..3),
            number in any::<u64>(),
            doubled in any::<bool>(),
            count in any::<u64>(),
            damage in any::<usize>(),
            header_damage in 0..HEADER_BYTES * 8,
        ) {
            let stamp = Stamp { length: 77, seconds: -3, nanoseconds: 5 };
            let others: Vec<_> = others.into_iter().map(|other| other.filter(|extent| extent.offset > 0)).collect();
            let record_bytes = (RECORD_BYTES + EXTENT_BYTES * others.len()) as u32;
            let header = Header { stamp, record_bytes, count, findings_bytes: 9, findings_check: 8 };
            let header_bytes = header.encode();
            prop_assert_eq!(Header::decode(&header_bytes), Some(header));
            let mut damaged = header_bytes;
            damaged[header_damage / 8] ^= 1 << (header_damage % 8);
            prop_assert_eq!(Header::decode(&damaged), None);

            let record = Record { start: u64::from(start) * BLOCK, image, caption, others, doubled };
            let bytes = record.encode(header.seal(), number);
            prop_assert_eq!(bytes.len(), record_bytes as usize);
            prop_assert_eq!(Record::decode(&bytes, header.seal(), number), Some(record));
            prop_assert_eq!(Record::decode(&bytes, header.seal(), number ^ 1), None);
            let mut damaged = bytes.clone();
            damaged[damage / 8 % bytes.len()] ^= 1 << (damage % 8);
            prop_assert_eq!(Record::decode(&damaged, header.seal(), number), None);
        }
    }
}
