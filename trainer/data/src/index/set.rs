//! One index of all shards of a source, in one file.
//!
//! Comes in: the parts, an index of each shard. Goes out: a file whose header and table are read once, whatever its size, and whose records are read
//! where they lie. Members of a node read it through the system's page cache, so it is in memory once; from an object store only what is
//! needed comes, through the cache of data. A record's check sum is that of its part, so that it is sound in one file as in the other.

use std::{
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::record::{Fields, Parts};
use crate::{
    blob::{self, Blob, Stamp},
    dataset::place_in,
    shard,
};

/// Ending of the file's name.
pub(crate) const EXTENSION: &str = "lclset";

/// First bytes of the file; the last one is the number of this layout.
const MAGIC: [u8; 8] = *b"LCLSET\0\x01";

/// Bytes of the header.
const HEADER_BYTES: usize = 76;

/// Bytes of a shard's entry in the table.
const ENTRY_BYTES: usize = 32;

/// Bytes of the largest record: one of a sample with as many captions as there may be.
const RECORD_LIMIT: usize = 320;

/// Most bytes of what was found, as JSON: it grows with the kinds of faults, not with the data.
const FOUND_LIMIT: u32 = 4 << 20;

/// What tells the index of these shards from others: a digest of their paths or URIs in their order and of how they are read. Names alone would not do:
/// all that img2dataset writes is called alike.
pub(crate) type Identity = [u8; 32];

/// Identity of the index of these shards, read with these settings.
pub(crate) fn identity_of(shards: &[PathBuf], settings: &str) -> Identity {
    let mut hasher = blake3::Hasher::new_derive_key("lcl-data 1: index of a set");
    for part in shards.iter().map(|shard| shard.as_os_str().as_encoded_bytes()).chain([settings.as_bytes()]) {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

/// Name of the file for this identity.
pub(crate) fn file_name(identity: &Identity) -> String {
    let hex = blake3::Hash::from_bytes(*identity).to_hex();
    format!("lcl-{}.{EXTENSION}", &hex[..16])
}

/// A shard's part of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// What the shard looked like.
    pub(crate) stamp: Stamp,
    /// Number of its records.
    pub(crate) count: u64,
    /// What the check sums of its records begin with.
    pub(crate) seal: u32,
}

/// A shard as the index has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SetShard {
    pub(crate) stamp: Stamp,
    seal: u32,
}

/// A record and what its check sum is made with.
pub(crate) struct SetRecord {
    bytes: [u8; RECORD_LIMIT],
    length: usize,
    pub(crate) number: u64,
    pub(crate) seal: u32,
}

impl SetRecord {
    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

/// An index of a set, open.
#[derive(Debug)]
pub(crate) struct SetIndex {
    blob: Blob,
    ends: Arc<[u64]>,
    shards: Vec<SetShard>,
    found: Vec<u8>,
    record_bytes: usize,
    records_at: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    identity: Identity,
    record_bytes: u32,
    found_bytes: u32,
    found_check: u32,
    table_check: u32,
    shards: u64,
    samples: u64,
}

impl Header {
    fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut writer = Fields(&mut bytes);
        writer.put(&MAGIC);
        writer.put(&self.identity);
        for number in [self.record_bytes, self.found_bytes, self.found_check, self.table_check] {
            writer.put(&number.to_le_bytes());
        }
        writer.put(&self.shards.to_le_bytes());
        writer.put(&self.samples.to_le_bytes());
        let check = crc32fast::hash(&bytes[..HEADER_BYTES - 4]);
        bytes[HEADER_BYTES - 4..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let (rest, check) = bytes.split_last_chunk()?;
        if crc32fast::hash(rest).to_le_bytes() != *check {
            return None;
        }
        let mut reader = Parts(rest);
        (reader.take::<8>()? == MAGIC).then_some(())?;
        let identity = reader.take()?;
        let mut number = || Some(u32::from_le_bytes(reader.take()?));
        let (record_bytes, found_bytes, found_check, table_check) = (number()?, number()?, number()?, number()?);
        let (shards, samples) = (u64::from_le_bytes(reader.take()?), u64::from_le_bytes(reader.take()?));
        Some(Self { identity, record_bytes, found_bytes, found_check, table_check, shards, samples })
    }

    fn records_at(&self) -> Option<u64> {
        self.shards.checked_mul(ENTRY_BYTES as u64)?.checked_add(HEADER_BYTES as u64 + u64::from(self.found_bytes))
    }
}

impl SetIndex {
    /// Opens the file when it is an index of this identity, with records of this size; `None` when there is none, or it is of no use. An error is one
    /// that may pass.
    pub(crate) fn open(path: &Path, identity: &Identity, record_bytes: usize) -> io::Result<Option<Self>> {
        match Self::read(path, identity, record_bytes) {
            Ok(Some(index)) => Ok(Some(index)),
            Ok(None) => {
                tracing::warn!(index = %path.display(), "the index of all shards is of no use: making it again");
                Ok(None)
            }
            Err(error) if crate::retry::is_transient(&error) => Err(error),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => {
                tracing::warn!(index = %path.display(), %error, "the index of all shards cannot be read here");
                Ok(None)
            }
        }
    }

    fn read(path: &Path, identity: &Identity, record_bytes: usize) -> io::Result<Option<Self>> {
        let blob = Blob::open(path)?;
        let mut bytes = [0; HEADER_BYTES];
        blob.read_exact_at(&mut bytes, 0)?;
        let header = Header::decode(&bytes).filter(|header| {
            header.identity == *identity
                && header.record_bytes as usize == record_bytes
                && record_bytes <= RECORD_LIMIT
                && header.found_bytes <= FOUND_LIMIT
        });
        let Some((header, records_at)) = header.and_then(|header| Some((header, header.records_at()?))) else { return Ok(None) };
        let length = header.samples.checked_mul(record_bytes as u64).and_then(|records| records.checked_add(records_at));
        if length != Some(blob.length()?) {
            return Ok(None);
        }
        // The file is as long as the header says, so these sizes are real ones.
        let mut table = vec![0; (records_at - HEADER_BYTES as u64) as usize];
        blob.read_exact_at(&mut table, HEADER_BYTES as u64)?;
        let found = table.split_off(table.len() - header.found_bytes as usize);
        if crc32fast::hash(&table) != header.table_check || crc32fast::hash(&found) != header.found_check {
            return Ok(None);
        }
        let (entries, _) = table.as_chunks::<ENTRY_BYTES>();
        let Some(entries) = entries.iter().map(decode_entry).collect::<Option<Vec<_>>>() else { return Ok(None) };
        let is_ascending = entries.iter().zip(entries.iter().skip(1)).all(|((one, _), (next, _))| one <= next);
        if !is_ascending || entries.last().map_or(0, |(end, _)| *end) != header.samples {
            return Ok(None);
        }
        let ends = entries.iter().map(|(end, _)| *end).collect();
        let shards = entries.into_iter().map(|(_, shard)| shard).collect();
        Ok(Some(Self { blob, ends, shards, found, record_bytes, records_at }))
    }

    /// Where it lies.
    pub(crate) fn path(&self) -> &Path {
        self.blob.path()
    }

    /// For every shard, the number of the sample after its last one.
    pub(crate) fn ends(&self) -> Arc<[u64]> {
        Arc::clone(&self.ends)
    }

    /// What the shards looked like.
    pub(crate) fn shards(&self) -> &[SetShard] {
        &self.shards
    }

    /// What was found in all of them, as it was given to [`write`].
    pub(crate) fn found(&self) -> &[u8] {
        &self.found
    }

    /// The record of a sample; `None` when there is no such sample.
    pub(crate) fn record(&self, sample: u64) -> io::Result<Option<SetRecord>> {
        let Some((shard, number)) = place_in(&self.ends, sample) else { return Ok(None) };
        let Some(SetShard { seal, .. }) = self.shards.get(shard).copied() else { return Ok(None) };
        // No index with larger records was opened.
        let mut record = SetRecord { bytes: [0; RECORD_LIMIT], length: self.record_bytes, number, seal };
        let (bytes, _) = record.bytes.split_at_mut(self.record_bytes);
        self.blob.read_exact_at(bytes, self.records_at + sample * self.record_bytes as u64)?;
        Ok(Some(record))
    }
}

fn decode_entry(bytes: &[u8; ENTRY_BYTES]) -> Option<(u64, SetShard)> {
    let mut reader = Parts(bytes);
    let (end, length) = (u64::from_le_bytes(reader.take()?), u64::from_le_bytes(reader.take()?));
    let seconds = i64::from_le_bytes(reader.take()?);
    let (nanoseconds, seal) = (u32::from_le_bytes(reader.take()?), u32::from_le_bytes(reader.take()?));
    Some((end, SetShard { stamp: Stamp { length, seconds, nanoseconds }, seal }))
}

/// What a set is made of.
pub(crate) struct Whole<'a> {
    pub(crate) identity: &'a Identity,
    pub(crate) record_bytes: usize,
    /// What was found, in the source's own form.
    pub(crate) found: &'a [u8],
    pub(crate) parts: &'a [Part],
    /// Writes the records of a part.
    pub(crate) records: &'a dyn Fn(usize, &mut dyn Write) -> io::Result<()>,
}

/// Writes the index to `path`, a file or an object, whole or not at all.
pub(crate) fn write(path: &Path, whole: &Whole<'_>) -> io::Result<()> {
    if blob::is_remote(path) {
        let mut file = tempfile::tempfile()?;
        write_to(&mut file, whole)?;
        io::Seek::rewind(&mut file)?;
        let length = file.metadata()?.len();
        return blob::objects()?.put(path.to_str().unwrap_or_default(), file, length);
    }
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)?;
    }
    let mut file = shard::new_file_for(path)?;
    write_to(file.as_file_mut(), whole)?;
    file.persist(path)?;
    Ok(())
}

fn write_to(file: &mut std::fs::File, whole: &Whole<'_>) -> io::Result<()> {
    let Whole { identity, record_bytes, found, parts, records } = *whole;
    if record_bytes > RECORD_LIMIT || found.len() > FOUND_LIMIT as usize {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let (mut table, mut samples) = (Vec::with_capacity(parts.len() * ENTRY_BYTES), 0_u64);
    for Part { stamp, count, seal } in parts {
        samples += count;
        table.extend(samples.to_le_bytes());
        table.extend(stamp.length.to_le_bytes());
        table.extend(stamp.seconds.to_le_bytes());
        table.extend(stamp.nanoseconds.to_le_bytes());
        table.extend(seal.to_le_bytes());
    }
    let header = Header {
        identity: *identity,
        record_bytes: record_bytes as u32,
        found_bytes: found.len() as u32,
        found_check: crc32fast::hash(found),
        table_check: crc32fast::hash(&table),
        shards: parts.len() as u64,
        samples,
    };
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    for bytes in [&header.encode()[..], &table, found] {
        writer.write_all(bytes)?;
    }
    for number in 0..parts.len() {
        records(number, &mut writer)?;
    }
    writer.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: usize = 4;

    fn record(shard: usize, number: u64) -> [u8; RECORD] {
        [shard as u8, number as u8, 7, 9]
    }

    fn whole<'a>(identity: &'a Identity, parts: &'a [Part], records: &'a dyn Fn(usize, &mut dyn Write) -> io::Result<()>) -> Whole<'a> {
        Whole { identity, record_bytes: RECORD, found: b"{\"usable\":3}", parts, records }
    }

    fn parts(counts: &[u64]) -> Vec<Part> {
        let part = |(number, count): (usize, &u64)| Part {
            stamp: Stamp { length: number as u64 + 100, seconds: -5, nanoseconds: 6 },
            count: *count,
            seal: number as u32,
        };
        counts.iter().enumerate().map(part).collect()
    }

    #[test]
    fn each_sample_s_record_is_found_whatever_shards_are_empty() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("below/a.lclset");
        let counts = [0, 3, 0, 1, 200, 0];
        let parts = parts(&counts);
        let records =
            |shard: usize, writer: &mut dyn Write| (0..counts[shard]).try_for_each(|number| writer.write_all(&record(shard, number)));
        let identity = identity_of(&[PathBuf::from("/x/a.tar")], "jpg");
        write(&path, &whole(&identity, &parts, &records)).expect("the index is written");
        let index = SetIndex::open(&path, &identity, RECORD).expect("it is read").expect("it is one");
        assert_eq!((&*index.ends(), index.found()), (&[0, 3, 3, 4, 204, 204][..], &b"{\"usable\":3}"[..]));
        assert_eq!(index.shards()[4], SetShard { stamp: parts[4].stamp, seal: 4 });
        let mut sample = 0;
        for (shard, count) in counts.into_iter().enumerate() {
            for number in 0..count {
                let found = index.record(sample).expect("it is read").expect("there is one");
                assert_eq!((found.number, found.seal), (number, shard as u32));
                assert_eq!(found.bytes(), record(shard, number));
                sample += 1;
            }
        }
        assert!(index.record(sample).expect("it is read").is_none());
    }

    #[test]
    fn an_index_of_other_shards_or_settings_or_damaged_or_cut_is_of_no_use() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("a.lclset");
        let parts = parts(&[2]);
        let records = |shard: usize, writer: &mut dyn Write| (0..2).try_for_each(|number| writer.write_all(&record(shard, number)));
        let names = [PathBuf::from("/x/a.tar"), PathBuf::from("/x/b.tar")];
        let identity = identity_of(&names, "jpg");
        write(&path, &whole(&identity, &parts, &records)).expect("the index is written");
        let opens = |identity: &Identity, record_bytes| SetIndex::open(&path, identity, record_bytes).expect("it is read").is_some();
        assert!(opens(&identity, RECORD) && !opens(&identity, RECORD + 1));
        assert!(!opens(&identity_of(&["/y/a.tar", "/y/b.tar"].map(PathBuf::from), "jpg"), RECORD));
        for other in
            [identity_of(&names, "png"), identity_of(&names[..1], "jpg"), identity_of(&["/x/a", ".tarb.tar"].map(PathBuf::from), "jpg")]
        {
            assert!(!opens(&other, RECORD));
        }
        let bytes = std::fs::read(&path).expect("the index is read");
        for at in 0..bytes.len() - 2 * RECORD {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, damaged).expect("the damaged index is written");
            assert!(!opens(&identity, RECORD), "byte {at}");
        }
        std::fs::write(&path, &bytes[..bytes.len() - 1]).expect("the cut index is written");
        assert!(!opens(&identity, RECORD));
        std::fs::remove_file(&path).expect("the index is removed");
        assert!(!opens(&identity, RECORD));
    }
}
