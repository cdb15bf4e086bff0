//! Shards of JSON lines, plain or as the one member of a zip archive.
//!
//! Comes in: the path of a shard. Goes out: its lines one after the other with where they are ([`walk`]), and given lines again ([`read_lines`]).
//! A shard is never in memory as a whole, and what is in its lines is not looked at. Positions are those of the text as it is unpacked.

mod error;
mod member;

use std::{
    io::{self, BufRead, BufReader, Read},
    path::Path,
};

use memchr::memchr;

pub use error::ShardError;

use super::{BadLine, LineFault, Record};
use crate::blob::{Blob, is_of_storage};

/// Most bytes of a line. The largest part is the similarity matrix, some 20 bytes for each pair of an image and a sentence: this is enough for
/// 300 images on a page of 10,000 sentences.
pub const LINE_BYTES_LIMIT: u64 = 64 << 20;

/// Bytes that are unpacked at a time: some hundred lines of usual length.
const BUFFER: usize = 1 << 20;

/// Where a line is in its shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Number of the line, from 0.
    pub number: u64,
    /// Byte of the unpacked text at which it begins.
    pub offset: u64,
    /// Its bytes, without its line break.
    pub length: u64,
}

/// A line of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Where it is.
    pub extent: Extent,
    /// Its bytes, without its line break; none of a line that is longer than [`LINE_BYTES_LIMIT`].
    bytes: Option<&'a [u8]>,
}

impl<'a> Line<'a> {
    /// Its bytes, without its line break; `None` for a line that is longer than [`LINE_BYTES_LIMIT`].
    #[must_use]
    pub fn bytes(&self) -> Option<&'a [u8]> {
        self.bytes
    }

    /// Fills `record` with what the line says.
    pub fn parse(&self, record: &mut Record) -> Result<(), BadLine> {
        record.fill(self.bytes.ok_or_else(|| BadLine::new(LineFault::TooLong))?)
    }
}

/// What a walk over a shard came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walked {
    /// Lines.
    pub lines: u64,
    /// Bytes of the unpacked text.
    pub bytes: u64,
}

/// Whether the shard is an archive, whose text cannot be read at any place.
pub(crate) fn is_packed(path: &Path) -> Result<bool, ShardError> {
    member::is_zip(path, &open(path)?)
}

/// Calls `visit` for every line of the shard in its order. A line break at the very end begins no further line.
///
/// All of the shard is read, so an archive that is damaged anywhere is an error, if only at the end of the walk.
pub fn walk(path: &Path, mut visit: impl FnMut(Line<'_>)) -> Result<Walked, ShardError> {
    read_text(path, |text| {
        let mut number = 0;
        let mut bytes = Vec::new();
        loop {
            let offset = text.offset;
            let Some(length) = text.read_line(&mut bytes)? else { return Ok(Walked { lines: number, bytes: offset }) };
            let bytes = (length <= LINE_BYTES_LIMIT).then_some(bytes.as_slice());
            visit(Line { extent: Extent { number, offset, length }, bytes });
            number += 1;
        }
    })
}

/// Calls `visit` for each of the lines at `wanted`, with its index in `wanted`.
///
/// The lines are visited in the order in which they are in the shard: an archive can only be unpacked from its beginning, so every call unpacks
/// everything up to the last line that is wanted. `wanted` may be in any order and name a line more than once.
pub fn read_lines(path: &Path, wanted: &[Extent], mut visit: impl FnMut(usize, Line<'_>)) -> Result<(), ShardError> {
    let mut order: Vec<(usize, Extent)> = wanted.iter().copied().enumerate().collect();
    order.sort_by_key(|(_, extent)| extent.offset);
    read_text(path, |text| {
        let mut bytes = Vec::new();
        let mut last = None;
        for (index, extent) in order {
            if last != Some(extent) {
                text.read_extent(extent, &mut bytes)?;
                last = Some(extent);
            }
            let bytes = (extent.length <= LINE_BYTES_LIMIT).then_some(bytes.as_slice());
            visit(index, Line { extent, bytes });
        }
        Ok(())
    })
}

/// What stops the reading of a shard's text.
enum Stopped {
    Read(io::Error),
    /// What is at an extent is no line.
    Changed(Extent),
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

/// Opens a shard, unpacks it if it is an archive, and lets `work` read the text from its beginning.
fn read_text<T>(path: &Path, work: impl FnOnce(&mut Text<'_>) -> Result<T, Stopped>) -> Result<T, ShardError> {
    let file = open(path)?;
    if !member::is_zip(path, &file)? {
        let mut reader = BufReader::with_capacity(BUFFER, file.reader());
        return Text::new(&mut reader).finish(work, |offset, source| ShardError::Read { path: path.to_owned(), offset, source }, path);
    }
    let mut archive = member::open(path, &file)?;
    let (member, name) = member::find(path, &mut archive)?;
    let mut reader = BufReader::with_capacity(BUFFER, member);
    let named = |offset, source: io::Error| match is_of_storage(&source) {
        true => ShardError::Read { path: path.to_owned(), offset, source },
        // The archive's reader looks at the way of packing when the first byte is read.
        false if source.kind() == io::ErrorKind::Unsupported => ShardError::Packing { path: path.to_owned(), member: name, source },
        false => ShardError::Damaged { path: path.to_owned(), member: name, offset, source },
    };
    Text::new(&mut reader).finish(work, named, path)
}

/// Opens a shard for reading.
fn open(path: &Path) -> Result<Blob, ShardError> {
    let named = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => ShardError::Missing { path: path.to_owned() },
        _ => ShardError::Open { path: path.to_owned(), source },
    };
    let file = Blob::open(path).map_err(named)?;
    if file.is_regular().map_err(named)? { Ok(file) } else { Err(ShardError::NotAFile { path: path.to_owned() }) }
}

/// The text of a shard, read from front to back.
struct Text<'a> {
    reader: &'a mut dyn BufRead,
    /// Bytes that were read.
    offset: u64,
}

impl<'a> Text<'a> {
    fn new(reader: &'a mut dyn BufRead) -> Self {
        Self { reader, offset: 0 }
    }

    fn finish<T>(
        mut self,
        work: impl FnOnce(&mut Text<'_>) -> Result<T, Stopped>,
        named: impl FnOnce(u64, io::Error) -> ShardError,
        path: &Path,
    ) -> Result<T, ShardError> {
        work(&mut self).map_err(|stopped| match stopped {
            Stopped::Read(source) => named(self.offset, source),
            Stopped::Changed(Extent { number, offset, .. }) => ShardError::Changed { path: path.to_owned(), number, offset },
        })
    }

    /// Reads a line into `bytes`, without its line break, and gives its length; `None` at the end. Of a line that is too long only the length is
    /// right.
    fn read_line(&mut self, bytes: &mut Vec<u8>) -> io::Result<Option<u64>> {
        bytes.clear();
        let mut length = 0;
        loop {
            let available = fill(self.reader)?;
            let found = memchr(b'\n', available);
            let end = found.unwrap_or(available.len());
            length += end as u64;
            if length <= LINE_BYTES_LIMIT {
                bytes.extend(available.get(..end).unwrap_or_default());
            }
            let (used, at_end) = (end + usize::from(found.is_some()), available.is_empty());
            self.reader.consume(used);
            self.offset += used as u64;
            if found.is_some() || at_end {
                return Ok((found.is_some() || length > 0).then_some(length));
            }
        }
    }

    /// Goes on to a line and reads it into `bytes`, unless it is too long.
    fn read_extent(&mut self, extent: Extent, bytes: &mut Vec<u8>) -> Result<(), Stopped> {
        bytes.clear();
        let between = extent.offset.checked_sub(self.offset).ok_or(Stopped::Changed(extent))?;
        if self.skip(between)? < between {
            return Err(Stopped::Changed(extent));
        }
        let whole = if extent.length > LINE_BYTES_LIMIT {
            self.skip(extent.length)? == extent.length
        } else {
            let read = (&mut *self.reader).take(extent.length).read_to_end(bytes)? as u64;
            self.offset += read;
            read == extent.length && memchr(b'\n', bytes).is_none()
        };
        // A line ends where a line break or the text's end is.
        if whole && matches!(fill(self.reader)?.first(), None | Some(b'\n')) { Ok(()) } else { Err(Stopped::Changed(extent)) }
    }

    /// Passes over as many bytes, or all that are left; gives how many.
    fn skip(&mut self, count: u64) -> io::Result<u64> {
        let mut left = count;
        while left > 0 {
            let available = fill(self.reader)?.len() as u64;
            if available == 0 {
                break;
            }
            let used = available.min(left);
            self.reader.consume(used as usize);
            self.offset += used;
            left -= used;
        }
        Ok(count - left)
    }
}

/// The bytes that can be had at once; none at the end.
fn fill(reader: &mut dyn BufRead) -> io::Result<&[u8]> {
    loop {
        match reader.fill_buf() {
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    // Filled, so this only gives what is there.
    reader.fill_buf()
}

#[cfg(test)]
mod tests;
