//! Reading a blob from front to back.
//!
//! An object is read as one stream. Going forward passes over what lies between, as long as that costs less than another request.

use std::io::{self, Read, Seek, SeekFrom};

use bytes::{Buf, Bytes};
use lcl_objects::ByteStream;

use super::Blob;

/// Bytes up to which going forward reads on instead of asking anew: a request costs some 40 ms before its first byte, in which a stream brings
/// two megabytes at 50 MB/s.
pub(crate) const BREAK_EVEN: u64 = 2 << 20;

/// A reader with a position of its own.
#[derive(Debug)]
pub struct BlobReader<'a> {
    blob: &'a Blob,
    position: u64,
    stream: Option<Stream>,
}

/// A stream that is under way.
#[derive(Debug)]
struct Stream {
    pieces: ByteStream,
    piece: Bytes,
    /// Where the piece begins.
    at: u64,
}

impl<'a> BlobReader<'a> {
    pub(super) fn new(blob: &'a Blob) -> Self {
        Self { blob, position: 0, stream: None }
    }

    /// The stream with at least one byte at the position, opened anew where it lies elsewhere; `None` at the end.
    fn stream(&mut self) -> io::Result<Option<&mut Stream>> {
        let Some(object) = self.blob.object() else { return Ok(None) };
        if self.position >= object.size {
            return Ok(None);
        }
        let near = self.stream.as_ref().is_some_and(|stream| (stream.at..=stream.at + BREAK_EVEN).contains(&self.position));
        if !near {
            let pieces = super::objects()?.stream(object, self.position)?;
            self.stream = Some(Stream { pieces, piece: Bytes::new(), at: self.position });
        }
        let (blob, position) = (self.blob, self.position);
        let moved = self.stream.as_mut().map_or(Ok(()), |stream| stream.move_to(position, blob));
        if let Err(error) = moved {
            // The next attempt asks anew.
            self.stream = None;
            return Err(error);
        }
        Ok(self.stream.as_mut())
    }
}

impl Stream {
    /// Passes over what lies before `position`, and waits for the byte there.
    fn move_to(&mut self, position: u64, blob: &Blob) -> io::Result<()> {
        loop {
            let skip = (position - self.at).min(self.piece.len() as u64);
            self.piece.advance(skip as usize);
            self.at += skip;
            if !self.piece.is_empty() {
                return Ok(());
            }
            // An object was found to be longer than this: the connection has ended early.
            self.piece = self.pieces.next().unwrap_or_else(|| Err(io::ErrorKind::ConnectionReset.into()))?;
            blob.has_passed(self.at, &self.piece);
        }
    }
}

impl Read for BlobReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.blob.object().is_none() {
            let read = self.blob.read_at(buffer, self.position)?;
            self.position += read as u64;
            return Ok(read);
        }
        if buffer.is_empty() {
            return Ok(0);
        }
        let Some(stream) = self.stream()? else { return Ok(0) };
        let read = stream.piece.len().min(buffer.len());
        stream.piece.copy_to_slice(buffer.split_at_mut(read).0);
        stream.at += read as u64;
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for BlobReader<'_> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        let moved = match position {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.blob.length()?.checked_add_signed(by),
        };
        self.position = moved.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}
