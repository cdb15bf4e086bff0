//! One address of a table: 24 bytes.
//!
//! Comes in: an address and the place of its image. Goes out: plain values and their bytes. It touches no file.

use crate::{
    index::{
        Extent,
        record::{Fields, Parts},
    },
    shard::BLOCK,
    store::Place,
};

/// Bytes of a record in a table and in a working file.
pub(crate) const RECORD_BYTES: usize = 24;

/// What a table keeps of an address: 96 bits.
///
/// The key orders the table; of 298 million addresses (all of OBELICS) two are expected to share one in 1 of 400 such tables (n² / 2^65), so the
/// check beside it is no mere precaution. Key and check agree by chance for an address that is not in the table with probability
/// n · 2^-96 = 4e-21, and for any two addresses of the table with n² / 2^97 = 6e-13; the image of one would then be taken for the other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Digest {
    pub(crate) key: u64,
    pub(crate) check: u32,
}

/// How a digest is made; tests put a weak one in its place.
pub(crate) type Hash = fn(&str) -> Digest;

/// The first 96 bits of the address's BLAKE3 hash.
pub(crate) fn digest(address: &str) -> Digest {
    let hash = blake3::hash(address.as_bytes());
    let mut parts = Parts(hash.as_bytes());
    // A hash has 32 bytes, so neither part is missing.
    let key = parts.take().map_or(0, u64::from_le_bytes);
    let check = parts.take().map_or(0, u32::from_le_bytes);
    Digest { key, check }
}

/// An address with its image's place. The order of the fields is the order of a table: of the records of one address the first is the one
/// in the first shard, and there the one that begins first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Record {
    pub(crate) key: u64,
    check: u32,
    shard: u32,
    /// Number of the 512-byte block in which the image begins.
    block: u32,
    length: u32,
}

impl Record {
    /// `None` when the image begins beyond the 2^32 blocks that a record can name.
    pub(crate) fn new(digest: Digest, shard: u32, extent: Extent) -> Option<Self> {
        let block = u32::try_from(extent.offset / BLOCK).ok()?;
        Some(Self { key: digest.key, check: digest.check, shard, block, length: extent.length })
    }

    pub(crate) fn digest(self) -> Digest {
        Digest { key: self.key, check: self.check }
    }

    pub(crate) fn place(self) -> Place {
        Place { shard: self.shard as usize, extent: Extent { offset: u64::from(self.block) * BLOCK, length: self.length } }
    }

    pub(crate) fn encode(self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        let mut writer = Fields(&mut bytes);
        writer.put(&self.key.to_le_bytes());
        for part in [self.check, self.shard, self.block, self.length] {
            writer.put(&part.to_le_bytes());
        }
        bytes
    }

    /// `None` when there are not enough bytes.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Parts(bytes);
        let key = u64::from_le_bytes(reader.take()?);
        let mut next = || Some(u32::from_le_bytes(reader.take()?));
        Some(Self { key, check: next()?, shard: next()?, block: next()?, length: next()? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_addresss_digest_never_changes() {
        // The first twelve bytes of `b3sum`, little-endian: tables that are on disk depend on them.
        assert_eq!(digest(""), Digest { key: 0xa6a1_f9f5_b949_13af, check: 0xea4d_40a0 });
    }

    proptest! {
        #[test]
        fn a_record_comes_back_from_its_bytes(key: u64, check: u32, shard: u32, block: u32, length: u32) {
            let extent = Extent { offset: u64::from(block) * BLOCK, length };
            let record = Record::new(Digest { key, check }, shard, extent).expect("the block has 32 bits");
            prop_assert_eq!(Record::decode(&record.encode()), Some(record));
            prop_assert_eq!((record.digest(), record.place()), (Digest { key, check }, Place { shard: shard as usize, extent }));
        }
    }
}
