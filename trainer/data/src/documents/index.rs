//! Where the documents of a shard lie, kept in a small file.
//!
//! Comes in: a shard, and what settings decide which documents are samples. Goes out: the number of samples and where each lies, from
//! `SHARD.DIGEST.lcldocuments` beside the shard or under the index folder, or made anew when that file is missing, of another state of the shard
//! or damaged. Only headers are kept in memory; a record is read when it is asked for.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    blob::Stamp,
    dataset::{FileId, FileRef, Storage},
    index::{lock_for, places, writable, write_first},
};

/// Ending of an index of documents.
pub(crate) const EXTENSION: &str = "lcldocuments";

/// First bytes of every index of documents; the last one is the number of this layout.
const MAGIC: [u8; 8] = *b"LCLDOCS\x01";

/// Magic, bytes of the header's JSON and its CRC-32.
const PREAMBLE: usize = 16;

/// Bytes of a record: two numbers and a CRC-32.
const RECORD_BYTES: usize = 20;

/// Most bytes of a header. It grows with the kinds of faults, not with the shard.
const HEADER_LIMIT: u32 = 1 << 20;

/// Most of a cause that are named of a shard: a megabyte of text, and more than anybody reads.
pub(crate) const NAMED_LIMIT: usize = 10_000;

/// An index of documents cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DocumentIndexError {
    /// The shard was written to while it was read.
    #[error("shard {shard} changed while it was being indexed or trained on: wait until it is complete and start again")]
    Changed {
        /// The shard.
        shard: PathBuf,
    },
    /// The index file cannot be read.
    #[error("reading index {path}")]
    Read {
        /// The index file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A record of the index file is not what was written.
    #[error("index {path} is damaged: remove it and start again, it will be made anew")]
    Damaged {
        /// The index file.
        path: PathBuf,
    },
    /// There is no room for the index.
    #[error("index {path} of shard {shard} cannot be written: set spec.data.indexPath (--index-path) to a folder that can be written to")]
    Write {
        /// The shard.
        shard: PathBuf,
        /// The index file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl DocumentIndexError {
    /// The system's error underneath, for deciding whether another attempt can help.
    pub(crate) fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Read { source, .. } | Self::Write { source, .. } => Some(source),
            Self::Changed { .. } | Self::Damaged { .. } => None,
        }
    }
}

/// What was found in a shard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Findings {
    /// Documents, whether or not they are samples.
    pub documents: u64,
    /// Samples.
    pub samples: u64,
    /// Images that samples may take.
    pub images: u64,
    /// What gives no sample, by cause: how many, and the first.
    pub left_out: BTreeMap<String, LeftOut>,
    /// Images of the first samples, where they are looked for by name or address. What an earlier version wrote had none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub examples: Vec<ImageExample>,
    /// Of each cause the first ones, where they are asked for ([`Findings::naming`]). No index has them.
    #[serde(skip)]
    pub(crate) named: Option<BTreeMap<String, Vec<String>>>,
}

/// An image that a sample may take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageExample {
    /// Its file's name.
    pub name: String,
    /// Its address.
    pub address: String,
}

/// Documents that are no samples for one cause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// How many.
    pub count: u64,
    /// Which one it is and what is wrong with it.
    pub first: String,
}

impl Findings {
    /// Findings that are to name what they leave out.
    pub(crate) fn naming() -> Self {
        Self { named: Some(BTreeMap::new()), ..Self::default() }
    }

    /// Counts a document that is no sample.
    pub(crate) fn leave_out(&mut self, cause: &str, name: impl Fn() -> String) {
        match self.left_out.get_mut(cause) {
            Some(left_out) => left_out.count += 1,
            None => drop(self.left_out.insert(cause.to_owned(), LeftOut { count: 1, first: name() })),
        }
        if let Some(named) = &mut self.named {
            let names = named.entry(cause.to_owned()).or_default();
            if names.len() < NAMED_LIMIT {
                names.push(name());
            }
        }
    }

    /// Adds another shard's.
    pub fn add(&mut self, other: &Self) {
        self.documents += other.documents;
        self.samples += other.samples;
        self.images += other.images;
        for (cause, left_out) in &other.left_out {
            self.left_out.entry(cause.clone()).and_modify(|before| before.count += left_out.count).or_insert_with(|| left_out.clone());
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    /// Bytes and time of the last change of the shard.
    shard: (u64, i64, u32),
    /// What decides which documents are samples.
    settings: String,
    findings: Findings,
}

/// Where a sample lies: two numbers whose meaning is the source's.
pub(crate) type Place = [u64; 2];

/// Index of one shard.
#[derive(Debug)]
pub(crate) struct DocumentIndex {
    shard: PathBuf,
    /// Number of the shard among all.
    number: usize,
    path: PathBuf,
    length: u64,
    findings: Findings,
    /// Bytes before the first record, and their CRC-32, which is part of every record's.
    begin: u64,
    check: u32,
}

/// Makes the index of a shard: gives the samples' places and what was found.
pub(crate) type Made = (Vec<Place>, Findings);

impl DocumentIndex {
    /// Opens the index of shard `number`, which has this stamp. `make` is called when there is none of use.
    pub(crate) fn open<E: From<DocumentIndexError>>(
        shard: &Path,
        number: usize,
        stamp_of: impl Fn() -> Result<Stamp, E>,
        folder: Option<&Path>,
        settings: &str,
        make: impl FnOnce() -> Result<Made, E>,
    ) -> Result<Self, E> {
        let stamp = stamp_of()?;
        let shard_state = (stamp.length, stamp.seconds, stamp.nanoseconds);
        let digest = blake3::hash(settings.as_bytes()).to_hex();
        let files = places(shard, folder, &format!(".{}.{EXTENSION}", &digest[..16]));
        let find = || -> Result<Option<Self>, DocumentIndexError> {
            for path in &files {
                let found = read_header(path)?.filter(|(header, ..)| header.shard == shard_state && header.settings == settings);
                if let Some((header, begin, check)) = found {
                    let (shard, path) = (shard.to_owned(), path.clone());
                    return Ok(Some(Self { shard, number, path, length: stamp.length, findings: header.findings, begin, check }));
                }
            }
            Ok(None)
        };
        if let Some(index) = find()? {
            return Ok(index);
        }
        let lock = lock_for(&files);
        if lock.as_ref().is_some_and(|lock| lock.waited)
            && let Some(index) = find()?
        {
            return Ok(index);
        }
        let (samples, findings) = make()?;
        if stamp_of()? != stamp {
            return Err(DocumentIndexError::Changed { shard: shard.to_owned() }.into());
        }
        let header = Header { shard: shard_state, settings: settings.to_owned(), findings };
        let (bytes, begin, check) = encode(&header, &samples);
        let path = write_first(writable(&files, folder), &bytes).map_err(|(path, source)| DocumentIndexError::Write {
            shard: shard.to_owned(),
            path,
            source,
        })?;
        Ok(Self { shard: shard.to_owned(), number, path: path.clone(), length: stamp.length, findings: header.findings, begin, check })
    }

    pub(crate) fn shard(&self) -> &Path {
        &self.shard
    }

    /// Bytes of the shard.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    pub(crate) fn findings(&self) -> &Findings {
        &self.findings
    }

    /// Where sample `number` of the shard lies.
    pub(crate) fn place(&self, number: u64, storage: &dyn Storage) -> Result<Place, DocumentIndexError> {
        let mut bytes = [0; RECORD_BYTES];
        storage
            .read(
                FileRef { id: FileId::Index(self.number), path: &self.path, stamp: None },
                self.begin + number * RECORD_BYTES as u64,
                &mut bytes,
            )
            .map_err(|source| DocumentIndexError::Read { path: self.path.clone(), source })?;
        decode(&bytes, self.check, number).ok_or_else(|| DocumentIndexError::Damaged { path: self.path.clone() })
    }
}

/// The bytes of an index, those before its first record, and their CRC-32.
fn encode(header: &Header, samples: &[Place]) -> (Vec<u8>, u64, u32) {
    // Plain data with string keys: turning them into JSON cannot fail.
    let json = serde_json::to_vec(header).unwrap_or_default();
    let mut bytes = Vec::with_capacity(PREAMBLE + json.len() + samples.len() * RECORD_BYTES);
    bytes.extend(MAGIC);
    bytes.extend((json.len() as u32).to_le_bytes());
    bytes.extend(crc32fast::hash(&json).to_le_bytes());
    bytes.extend(&json);
    let (begin, check) = (bytes.len() as u64, crc32fast::hash(&bytes));
    for (number, [first, second]) in (0..).zip(samples) {
        let mut record = [0; RECORD_BYTES];
        record[..8].copy_from_slice(&first.to_le_bytes());
        record[8..16].copy_from_slice(&second.to_le_bytes());
        let sum = record_check(&record, check, number);
        record[16..].copy_from_slice(&sum.to_le_bytes());
        bytes.extend(record);
    }
    (bytes, begin, check)
}

fn decode(bytes: &[u8; RECORD_BYTES], check: u32, number: u64) -> Option<Place> {
    let (first, rest) = bytes.split_first_chunk()?;
    let (second, sum) = rest.split_first_chunk()?;
    let sum = u32::from_le_bytes(sum.try_into().ok()?);
    (sum == record_check(bytes, check, number)).then_some([u64::from_le_bytes(*first), u64::from_le_bytes(*second)])
}

/// CRC-32 over what comes before the records, the record's number and its content: a record of another index, or in another's place, does not
/// pass.
fn record_check(record: &[u8; RECORD_BYTES], check: u32, number: u64) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&check.to_le_bytes());
    hasher.update(&number.to_le_bytes());
    hasher.update(&record[..16]);
    hasher.finalize()
}

/// The header of an index file, the bytes before its first record and their CRC-32; `None` when the file is of no use.
fn read_header(path: &Path) -> Result<Option<(Header, u64, u32)>, DocumentIndexError> {
    let read = || -> io::Result<_> {
        let (mut file, mut preamble) = (File::open(path)?, [0; PREAMBLE]);
        file.read_exact(&mut preamble)?;
        let number = |at: usize| preamble.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes);
        let (length, sum) = (number(8), number(12));
        if !preamble.starts_with(&MAGIC) || length > HEADER_LIMIT {
            return Ok(None);
        }
        let mut json = vec![0; length as usize];
        file.read_exact(&mut json)?;
        let Some(header) = serde_json::from_slice::<Header>(&json).ok().filter(|_| crc32fast::hash(&json) == sum) else { return Ok(None) };
        let begin = (PREAMBLE + json.len()) as u64;
        let whole = file.metadata()?.len() == begin + header.findings.samples * RECORD_BYTES as u64;
        Ok(whole.then(|| (header, begin, crc32fast::hash(&[&preamble[..], &json].concat()))))
    };
    match read() {
        Ok(found) => Ok(found),
        Err(source) if crate::retry::is_transient(&source) => Err(DocumentIndexError::Read { path: path.to_owned(), source }),
        Err(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::OpenFiles;

    fn made() -> Made {
        let mut findings = Findings { documents: 4, samples: 3, images: 5, ..Findings::default() };
        findings.leave_out("broken", || "line 2: no text".to_owned());
        (vec![[1, 2], [u64::MAX, 0], [7, 9]], findings)
    }

    #[test]
    fn an_index_is_made_once_and_again_for_another_shard_or_other_settings() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let shard = folder.path().join("a.jsonl");
        let stamp = |length| move || Ok(Stamp { length, seconds: 1, nanoseconds: 2 });
        let storage = OpenFiles::default();
        for is_there in [false, true] {
            let make = || {
                assert!(!is_there, "the index was there");
                Ok(made())
            };
            let index = DocumentIndex::open(&shard, 0, stamp(10), None, "a", make).expect("the index opens");
            let places: Vec<Place> = (0..3).map(|number| index.place(number, &storage).expect("the record is sound")).collect();
            assert_eq!((places, index.findings()), (vec![[1, 2], [u64::MAX, 0], [7, 9]], &made().1));
        }
        let empty = || Ok((Vec::new(), Findings::default()));
        let other = DocumentIndex::open(&shard, 1, stamp(10), None, "b", empty).expect("other settings");
        assert_eq!(other.findings().samples, 0);
        let changed = DocumentIndex::open(&shard, 0, stamp(11), None, "a", empty).expect("another shard");
        assert_eq!(changed.findings().samples, 0);
        let seen = std::cell::Cell::new(0);
        let changing = || {
            seen.set(seen.get() + 1);
            Ok(Stamp { length: seen.get(), seconds: 0, nanoseconds: 0 })
        };
        let error = DocumentIndex::open(&shard, 0, changing, None, "a", empty).expect_err("written to meanwhile");
        assert!(matches!(error, DocumentIndexError::Changed { .. }), "{error}");
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let shard = folder.path().join("a.jsonl");
        let stamp = || Ok::<_, DocumentIndexError>(Stamp { length: 10, seconds: 1, nanoseconds: 2 });
        let index = DocumentIndex::open(&shard, 0, stamp, None, "a", || Ok(made())).expect("the index is made");
        let whole = std::fs::read(&index.path).expect("the index is read");
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 4;
            std::fs::write(&index.path, damaged).expect("the damaged index is written");
            if (at as u64) < index.begin {
                assert_eq!(read_header(&index.path).expect("the file is read").map(|(header, ..)| header.settings), None, "byte {at}");
            } else {
                let number = (at as u64 - index.begin) / RECORD_BYTES as u64;
                let error = index.place(number, &OpenFiles::default()).expect_err("a damaged record");
                assert!(matches!(error, DocumentIndexError::Damaged { .. }), "byte {at}: {error}");
            }
        }
        std::fs::write(&index.path, &whole[..whole.len() - 1]).expect("the cut index is written");
        assert!(read_header(&index.path).expect("the file is read").is_none());
    }
}
