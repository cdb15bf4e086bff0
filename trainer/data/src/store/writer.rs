//! Writing a table.
//!
//! Comes in: the shards and the records in order. Goes out: the file, under its name when all of it is on the disk.

use std::{
    io::{self, BufWriter, IntoInnerError, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

use crate::{
    shard::new_file_for,
    store::{
        layout::{Header, PAGE_BYTES, PAGE_RECORDS, ShardEntry, encode_page, identity_of},
        record::Record,
    },
};

/// Bytes that are written at once.
const WRITE_BYTES: usize = 128 << 10;

/// Writes a table. Dropped before [`TableWriter::finish`], it leaves nothing.
#[derive(Debug)]
pub(crate) struct TableWriter {
    path: PathBuf,
    file: BufWriter<NamedTempFile>,
    /// The shards as they are written.
    list: Vec<u8>,
    identity: u64,
    /// Records of the page that is not full yet.
    page: Vec<Record>,
    /// Bytes of the fences.
    fences: Vec<u8>,
    pages: u64,
    records: u64,
}

impl TableWriter {
    pub(crate) fn create(path: &Path, shards: &[ShardEntry]) -> io::Result<Self> {
        let list = serde_json::to_vec(shards)?;
        let mut file = BufWriter::with_capacity(WRITE_BYTES, new_file_for(path)?);
        // The header's place.
        file.write_all(&[0; PAGE_BYTES])?;
        let identity = identity_of(&list);
        let page = Vec::with_capacity(PAGE_RECORDS);
        Ok(Self { path: path.to_owned(), file, list, identity, page, fences: Vec::new(), pages: 0, records: 0 })
    }

    /// Adds a record, which must not come before the last one.
    pub(crate) fn push(&mut self, record: Record) -> io::Result<()> {
        if self.page.len() == PAGE_RECORDS {
            self.end_page()?;
        }
        if self.page.is_empty() {
            self.fences.extend(record.key.to_le_bytes());
        }
        self.page.push(record);
        self.records += 1;
        Ok(())
    }

    fn end_page(&mut self) -> io::Result<()> {
        self.file.write_all(&encode_page(&self.page, self.identity, self.pages))?;
        self.pages += 1;
        self.page.clear();
        Ok(())
    }

    /// Ends the table and gives it its name. The header comes last, so that no unfinished file is one.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        if !self.page.is_empty() {
            self.end_page()?;
        }
        self.file.write_all(&self.fences)?;
        self.file.write_all(&self.list)?;
        let header = Header {
            records: self.records,
            list_bytes: self.list.len() as u64,
            list_check: crc32fast::hash(&self.list),
            fences_check: crc32fast::hash(&self.fences),
            identity: self.identity,
        };
        let file = self.file.into_inner().map_err(IntoInnerError::into_error)?;
        file.as_file().sync_all()?;
        file.as_file().write_all_at(&header.encode(), 0)?;
        file.as_file().sync_all()?;
        file.persist(&self.path)?;
        Ok(())
    }
}
