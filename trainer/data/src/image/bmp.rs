//! BMP, of every kind that Pillow reads: 1, 4, 8, 16, 24 and 32 bits, plain and run-length encoded, headers of Windows and OS/2.
//!
//! Comes in: a file's bytes. Goes out: RGB; an alpha channel is dropped. By hand: crates widen five and six bits by other roundings than Pillow,
//! and the format is little more than its header.

use super::{Format, ImageError};

/// What the headers say.
struct Header<'a> {
    width: u32,
    height: u32,
    top_down: bool,
    coding: Coding,
    /// Blue, green and red of each index.
    palette: &'a [u8],
    /// Bytes of a palette's entry.
    entry: usize,
    /// Where the pixels begin in the file.
    data_at: usize,
}

/// How pixels are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    /// Indices of 1, 4 or 8 bits.
    Indices(u32),
    /// Runs of indices of 4 or 8 bits.
    Runs(u32),
    /// Sixteen bits, of which green has five or six.
    Words { green_bits: u32 },
    /// Bytes a pixel, and which of them are red, green and blue.
    Bytes(u32, [usize; 3]),
}

/// Columns and rows.
pub(super) fn dimensions(bytes: &[u8]) -> Result<(u32, u32), ImageError> {
    header(bytes).map(|header| (header.width, header.height))
}

/// Decodes to RGB.
pub(super) fn decode(bytes: &[u8], pixels: &mut Vec<u8>) -> Result<(), ImageError> {
    let header = header(bytes)?;
    let (width, height) = (header.width as usize, header.height as usize);
    pixels.clear();
    pixels.resize(width * height * 3, 0);
    let runs;
    let (data, bits) = match header.coding {
        Coding::Runs(bits) => {
            runs = expand_runs(bytes, &header, bits)?;
            (runs.as_slice(), 8)
        }
        Coding::Indices(bits) => (bytes.get(header.data_at..).ok_or(TRUNCATED)?, bits),
        Coding::Words { .. } => (bytes.get(header.data_at..).ok_or(TRUNCATED)?, 16),
        Coding::Bytes(count, _) => (bytes.get(header.data_at..).ok_or(TRUNCATED)?, 8 * count),
    };
    let used = (width * bits as usize).div_ceil(8);
    let stride = if matches!(header.coding, Coding::Runs(_)) { used } else { used.next_multiple_of(4) };
    for (number, target) in pixels.chunks_exact_mut(width * 3).enumerate() {
        let row = if header.top_down { number } else { height - 1 - number };
        let source = data.get(row * stride..).and_then(|rest| rest.get(..used)).ok_or(TRUNCATED)?;
        put_row(&header, source, target);
    }
    Ok(())
}

fn put_row(header: &Header<'_>, source: &[u8], target: &mut [u8]) {
    let targets = target.chunks_exact_mut(3);
    match header.coding {
        Coding::Indices(bits @ (1 | 4)) => {
            for (number, target) in targets.enumerate() {
                let at = number * bits as usize;
                let byte = source.get(at / 8).copied().unwrap_or_default();
                let index = (byte >> (8 - bits as usize - at % 8)) & ((1 << bits) - 1);
                target.copy_from_slice(&colour(header, index));
            }
        }
        Coding::Indices(_) | Coding::Runs(_) => {
            for (index, target) in source.iter().zip(targets) {
                target.copy_from_slice(&colour(header, *index));
            }
        }
        Coding::Words { green_bits } => {
            for (word, target) in source.as_chunks().0.iter().zip(targets) {
                let word = u32::from(u16::from_le_bytes(*word));
                let level = |shift: u32, bits: u32| {
                    let most = (1 << bits) - 1;
                    ((word >> shift & most) * 255 / most) as u8
                };
                target.copy_from_slice(&[level(5 + green_bits, 5), level(5, green_bits), level(0, 5)]);
            }
        }
        Coding::Bytes(count, places) => {
            for (source, target) in source.chunks_exact(count as usize).zip(targets) {
                target.copy_from_slice(&places.map(|place| source.get(place).copied().unwrap_or_default()));
            }
        }
    }
}

/// The colour of an index; black beyond the palette.
fn colour(header: &Header<'_>, index: u8) -> [u8; 3] {
    let entry = header.palette.get(usize::from(index) * header.entry..).and_then(|rest| rest.first_chunk());
    entry.map_or([0; 3], |&[blue, green, red]| [red, green, blue])
}

/// The indices of a run-length encoded file, row by row without padding.
fn expand_runs(bytes: &[u8], header: &Header<'_>, bits: u32) -> Result<Vec<u8>, ImageError> {
    let (width, length) = (header.width as usize, header.width as usize * header.height as usize);
    let (mut indices, mut column, mut at) = (Vec::with_capacity(length), 0, header.data_at);
    let take = |at: &mut usize, count: usize| {
        let taken = bytes.get(*at..*at + count).ok_or(TRUNCATED);
        *at += count;
        taken
    };
    while indices.len() < length {
        match *take(&mut at, 2)? {
            [0, 0] => {
                indices.resize(indices.len().next_multiple_of(width), 0);
                column = 0;
            }
            [0, 1] => return Err(corrupt("its runs end before the last pixel")),
            [0, 2] => {
                let &[right, up] = take(&mut at, 2)? else { return Err(TRUNCATED) };
                let skipped = usize::from(right) + usize::from(up) * width;
                indices.resize(length.min(indices.len() + skipped), 0);
                column = indices.len() % width;
            }
            [0, count] => {
                let count = usize::from(count);
                let stored = take(&mut at, if bits == 4 { count.div_ceil(2) } else { count })?;
                let both = stored.iter().flat_map(|byte| [byte >> 4, byte & 15]);
                if bits == 4 {
                    indices.extend(both.take(count));
                } else {
                    indices.extend_from_slice(stored);
                }
                column += count;
                at += at % 2;
            }
            [count, value] => {
                // A run does not reach into the next row.
                let count = usize::from(count).min(width.saturating_sub(column));
                let both = [if bits == 4 { value >> 4 } else { value }, if bits == 4 { value & 15 } else { value }];
                indices.extend(both.iter().cycle().take(count));
                column += count;
            }
            _ => return Err(TRUNCATED),
        }
    }
    Ok(indices)
}

const TRUNCATED: ImageError = ImageError::Truncated { format: Format::Bmp };

/// Bytes before the second header.
const FILE_HEADER: usize = 14;

fn corrupt(reason: &str) -> ImageError {
    ImageError::Corrupt { format: Format::Bmp, reason: reason.to_owned() }
}

fn unsupported(what: &str, value: u32) -> ImageError {
    ImageError::Unsupported { reason: format!("BMP with {what} {value}") }
}

fn word(bytes: &[u8], at: usize) -> Result<u32, ImageError> {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk()).ok_or(TRUNCATED)?;
    Ok(u32::from_le_bytes(*field))
}

fn half_word(bytes: &[u8], at: usize) -> Result<u32, ImageError> {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk()).ok_or(TRUNCATED)?;
    Ok(u16::from_le_bytes(*field).into())
}

fn header(bytes: &[u8]) -> Result<Header<'_>, ImageError> {
    let (offset, size) = (word(bytes, 10)? as usize, word(bytes, FILE_HEADER)?);
    let mut palette_at = FILE_HEADER + size as usize;
    let field = |at: usize| FILE_HEADER + at;
    let (width, mut height, bits, compression, mut colours, entry) = match size {
        12 => (half_word(bytes, field(4))?, half_word(bytes, field(6))?, half_word(bytes, field(10))?, 0, 0, 3),
        40 | 52 | 56 | 64 | 108 | 124 => {
            let (width, height) = (word(bytes, field(4))?, word(bytes, field(8))?);
            (width, height, half_word(bytes, field(14))?, word(bytes, field(16))?, word(bytes, field(32))?, 4)
        }
        _ => return Err(unsupported("a header of length", size)),
    };
    bytes.get(..palette_at).ok_or(TRUNCATED)?;
    // A negative number of rows: the first one stored is the top one.
    let top_down = size > 12 && height >> 24 == 0xff;
    if top_down {
        height = height.wrapping_neg();
    }
    if width.cast_signed() < 0 || height.cast_signed() < 0 {
        return Err(corrupt("its size is negative"));
    }
    let coding = match (compression, bits) {
        (0, 1 | 4 | 8) => Coding::Indices(bits),
        (0, 16) => Coding::Words { green_bits: 5 },
        (0, 24 | 32) => Coding::Bytes(bits / 8, [2, 1, 0]),
        (1, 8) | (2, 4) => Coding::Runs(bits),
        (3, 16 | 24 | 32) => {
            let masks = [word(bytes, field(40))?, word(bytes, field(44))?, word(bytes, field(48))?];
            if size == 40 {
                palette_at += 12;
            }
            of_masks(bits, masks)?
        }
        (0..=3, _) => return Err(unsupported("bits a pixel of", bits)),
        _ => return Err(unsupported("compression", compression)),
    };
    let indexed = matches!(coding, Coding::Indices(_) | Coding::Runs(_));
    if indexed && colours == 0 {
        colours = 1 << bits;
    }
    // As Pillow has it; more would be no palette.
    if indexed && colours > 65536 {
        return Err(unsupported("colours of", colours));
    }
    let length = if indexed { entry * colours as usize } else { 0 };
    let behind = palette_at + length;
    let palette = bytes.get(palette_at..behind.min(bytes.len())).unwrap_or_default();
    // Some writers give no place, or one before the palette.
    let data_at = if offset == 0 || (indexed && offset == FILE_HEADER + size as usize) { behind } else { offset };
    Ok(Header { width, height, top_down, coding, palette, entry, data_at })
}

/// The layout that masks of red, green and blue describe.
fn of_masks(bits: u32, masks: [u32; 3]) -> Result<Coding, ImageError> {
    match (bits, masks) {
        (16, [0xf800, 0x7e0, 0x1f]) => Ok(Coding::Words { green_bits: 6 }),
        (16, [0x7c00, 0x3e0, 0x1f]) => Ok(Coding::Words { green_bits: 5 }),
        (32, [0, 0, 0]) => Ok(Coding::Bytes(4, [2, 1, 0])),
        (24 | 32, masks) => {
            let places = masks.map(|mask| (mask.trailing_zeros() / 8) as usize);
            let whole = masks.iter().zip(places).all(|(mask, place)| mask.checked_shr(8 * place as u32) == Some(0xff));
            if whole && places.iter().all(|place| *place < bits as usize / 8) {
                return Ok(Coding::Bytes(bits / 8, places));
            }
            Err(unsupported("masks of another kind; the first is", masks[0]))
        }
        _ => Err(unsupported("masks of another kind; the first is", masks[0])),
    }
}
