//! GIF: the first frame on its canvas, as Pillow reads it.
//!
//! Comes in: a file's bytes. Goes out: RGB; transparency is dropped. What no frame covers has the transparent colour, or else the first one. Only
//! the containers' blocks are read here; the compression is the crate `weezl`'s. Nothing behind the first frame is looked at.

use weezl::{BitOrder, LzwStatus, decode::Decoder};

use super::{Format, ImageError};

/// The first frame, not decoded.
struct Frame<'a> {
    /// Columns and rows of the canvas: the screen, or more where the frame reaches beyond it.
    width: u32,
    height: u32,
    /// Place and size of the frame.
    left: u32,
    top: u32,
    columns: u32,
    rows: u32,
    interlaced: bool,
    transparent: Option<u8>,
    /// Red, green and blue of each index; empty for shades of gray.
    palette: &'a [u8],
    /// Bits of a colour.
    bits: u8,
    /// Blocks of compressed indices.
    data: &'a [u8],
}

/// Columns and rows of the canvas.
pub(super) fn dimensions(bytes: &[u8]) -> Result<(u32, u32), ImageError> {
    first_frame(bytes).map(|frame| (frame.width, frame.height))
}

/// Decodes the first frame to RGB. `staging` holds the indices on the way.
pub(super) fn decode(bytes: &[u8], pixels: &mut Vec<u8>, staging: &mut Vec<u8>) -> Result<(), ImageError> {
    let frame = first_frame(bytes)?;
    decompress(&frame, staging)?;
    let ground = colour(&frame, frame.transparent.unwrap_or(0));
    pixels.clear();
    pixels.extend(std::iter::repeat_n(ground, frame.width as usize * frame.height as usize).flatten());
    let order = rows_in_order(frame.rows, frame.interlaced);
    for (row, indices) in order.zip(staging.chunks_exact(frame.columns as usize)) {
        let begin = ((frame.top + row) as usize * frame.width as usize + frame.left as usize) * 3;
        let target = pixels.get_mut(begin..).unwrap_or_default();
        for (target, index) in target.chunks_exact_mut(3).zip(indices) {
            target.copy_from_slice(&colour(&frame, *index));
        }
    }
    Ok(())
}

/// The colour of an index: black beyond the palette, a shade of gray without one.
fn colour(frame: &Frame<'_>, index: u8) -> [u8; 3] {
    if frame.palette.is_empty() {
        return [index; 3];
    }
    frame.palette.get(usize::from(index) * 3..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default()
}

/// The rows of an image in the order in which they are stored.
fn rows_in_order(rows: u32, interlaced: bool) -> impl Iterator<Item = u32> {
    const PASSES: [(u32, usize); 4] = [(0, 8), (4, 8), (2, 4), (1, 2)];
    let passes = if interlaced { PASSES.as_slice() } else { &[(0, 1)] };
    passes.iter().flat_map(move |&(first, step)| (first..rows).step_by(step))
}

/// Fills `indices` with those of the whole frame.
fn decompress(frame: &Frame<'_>, indices: &mut Vec<u8>) -> Result<(), ImageError> {
    indices.resize(frame.columns as usize * frame.rows as usize, 0);
    let mut lzw = Decoder::new(BitOrder::Lsb, frame.bits);
    let (mut target, mut rest) = (indices.as_mut_slice(), frame.data);
    while !target.is_empty() {
        let (length, behind) = rest.split_first().ok_or(TRUNCATED)?;
        let (mut block, behind) = behind.split_at_checked(usize::from(*length)).ok_or(TRUNCATED)?;
        rest = behind;
        if block.is_empty() {
            return Err(corrupt("its data end before the last pixel"));
        }
        while !target.is_empty() && !block.is_empty() {
            let decoded = lzw.decode_bytes(block, target);
            block = block.get(decoded.consumed_in..).unwrap_or_default();
            target = target.get_mut(decoded.consumed_out..).unwrap_or_default();
            match decoded.status {
                // What follows the last pixel is of no interest.
                _ if target.is_empty() => {}
                Ok(LzwStatus::Ok) => {}
                Ok(LzwStatus::NoProgress) => break,
                Ok(LzwStatus::Done) => return Err(corrupt("its data end before the last pixel")),
                Err(_) => return Err(corrupt("its data contain a code that nothing defines")),
            }
        }
        // What the decoder holds back because the last block filled its target.
        if !target.is_empty() {
            let decoded = lzw.decode_bytes(&[], target);
            target = target.get_mut(decoded.consumed_out..).unwrap_or_default();
        }
    }
    Ok(())
}

const TRUNCATED: ImageError = ImageError::Truncated { format: Format::Gif };

fn corrupt(reason: &str) -> ImageError {
    ImageError::Corrupt { format: Format::Gif, reason: reason.to_owned() }
}

/// What an extension says.
enum Extension {
    /// Of the frame that follows.
    Control {
        /// The index that is transparent in it.
        transparent: Option<u8>,
    },
    /// Nothing that pixels depend on.
    Other,
}

/// Takes bytes from the front.
struct Blocks<'a>(&'a [u8]);

impl<'a> Blocks<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], ImageError> {
        let (head, tail) = self.0.split_first_chunk().ok_or(TRUNCATED)?;
        self.0 = tail;
        Ok(*head)
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8], ImageError> {
        let (head, tail) = self.0.split_at_checked(count).ok_or(TRUNCATED)?;
        self.0 = tail;
        Ok(head)
    }

    /// The palette that these flags announce.
    fn palette(&mut self, flags: u8) -> Result<&'a [u8], ImageError> {
        if flags & 0x80 == 0 { Ok(&[]) } else { self.bytes(3 << ((flags & 7) + 1)) }
    }

    /// An extension after its mark.
    fn extension(&mut self) -> Result<Extension, ImageError> {
        const CONTROL: u8 = 0xf9;
        let [label, length] = self.take()?;
        let mut block = self.bytes(length.into())?;
        let extension = match *block {
            [flags, _, _, index, ..] if label == CONTROL => Extension::Control { transparent: (flags & 1 == 1).then_some(index) },
            _ => Extension::Other,
        };
        while !block.is_empty() {
            let [length] = self.take()?;
            block = self.bytes(length.into())?;
        }
        Ok(extension)
    }
}

fn first_frame(bytes: &[u8]) -> Result<Frame<'_>, ImageError> {
    let mut blocks = Blocks(bytes);
    blocks.bytes(6)?;
    let [low_width, high_width, low_height, high_height, flags, _, _] = blocks.take()?;
    let number = |low, high| u32::from(u16::from_le_bytes([low, high]));
    let global = blocks.palette(flags)?;
    let mut transparent = None;
    loop {
        match blocks.take()? {
            [b';'] => return Err(corrupt("there is no image in it")),
            [b'!'] => {
                if let Extension::Control { transparent: Some(index) } = blocks.extension()? {
                    transparent = Some(index);
                }
            }
            [b','] => break,
            // Bytes between blocks that belong to nothing.
            _ => {}
        }
    }
    let [l0, l1, t0, t1, c0, c1, r0, r1, flags] = blocks.take()?;
    let (left, top, columns, rows) = (number(l0, l1), number(t0, t1), number(c0, c1), number(r0, r1));
    let local = blocks.palette(flags)?;
    let [bits] = blocks.take()?;
    if columns == 0 || rows == 0 {
        return Err(corrupt("its first frame is empty"));
    }
    // Codes have at most 12 bits, one more than a colour.
    if !(1..=11).contains(&bits) {
        return Err(corrupt("its colours have more than eleven bits or none"));
    }
    Ok(Frame {
        width: number(low_width, high_width).max(left + columns),
        height: number(low_height, high_height).max(top + rows),
        left,
        top,
        columns,
        rows,
        interlaced: flags & 0x40 != 0,
        transparent,
        palette: if flags & 0x80 == 0 { global } else { local },
        bits,
        data: blocks.0,
    })
}
