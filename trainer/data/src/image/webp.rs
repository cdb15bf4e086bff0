//! WebP, lossy and lossless, with or without alpha; of an animation the first frame on its canvas.
//!
//! Comes in: a file's bytes. Goes out: RGB, an alpha channel dropped. A still image whose header announces parts that are not there is decoded
//! from its pixels alone. Libwebp decodes still images, with the pixels of `image-webp` in half its time; what it refuses and animations go to
//! `image-webp`, which also says what is wrong with a file.

use std::{borrow::Cow, io::Cursor};

use image_webp::{DecodingError, WebPDecoder};

use super::{Format, ImageError};
use crate::cause::Tolerated;

/// Columns and rows of the canvas.
pub(super) fn dimensions(bytes: &[u8]) -> Result<(u32, u32), ImageError> {
    Ok(open(bytes)?.0.dimensions())
}

/// Decodes to RGB. `staging` holds RGBA on the way. Says which fault the file has that costs no pixel.
pub(super) fn decode(bytes: &[u8], pixels: &mut Vec<u8>, staging: &mut Vec<u8>) -> Result<Option<Tolerated>, ImageError> {
    let (decoder, fault) = open(bytes)?;
    // Libwebp does not mind that an alpha channel is announced and missing; here it is counted.
    let as_announced = !decoder.has_alpha() || chunks(bytes).any(|(name, _)| matches!(name, b"ALPH" | b"VP8L"));
    if fault.is_none() && as_announced && !decoder.is_animated() && decode_still(bytes, decoder.dimensions(), pixels).is_some() {
        return Ok(None);
    }
    match (read(decoder, pixels, staging), fault) {
        (Ok(()), fault) => Ok(fault),
        (Err(refused), Some(_)) => Err(refused),
        (Err(refused), None) => {
            let decoder = open_pixels_alone(bytes).ok_or_else(|| refused.clone())?;
            read(decoder, pixels, staging).map(|()| Some(Tolerated::WebpChunk)).map_err(|_| refused)
        }
    }
}

/// Decodes a still image of this size to RGB by libwebp; nothing when it refuses the file.
#[expect(unsafe_code, reason = "calls libwebp")]
fn decode_still(bytes: &[u8], (width, height): (u32, u32), pixels: &mut Vec<u8>) -> Option<()> {
    let stride = 3 * width as usize;
    pixels.resize(stride * height as usize, 0);
    let line = i32::try_from(stride).ok()?;
    // SAFETY: libwebp reads no more than the bytes and writes no more than the pixels, whose lengths it is given; it keeps neither.
    let written = unsafe { libwebp_sys::WebPDecodeRGBInto(bytes.as_ptr(), bytes.len(), pixels.as_mut_ptr(), pixels.len(), line) };
    (!written.is_null()).then_some(())
}

/// A decoder of the file, or of its pixels alone.
type Opened<'a> = WebPDecoder<Cursor<Cow<'a, [u8]>>>;

fn read(mut decoder: Opened<'_>, pixels: &mut Vec<u8>, staging: &mut Vec<u8>) -> Result<(), ImageError> {
    let length = decoder.output_buffer_size().ok_or_else(|| corrupt("its size overflows".to_owned()))?;
    let alpha = decoder.has_alpha();
    let target = if alpha { &mut *staging } else { &mut *pixels };
    target.clear();
    target.resize(length, 0);
    decoder.read_image(target).map_err(|error| failed(&error))?;
    if alpha {
        pixels.resize(length / 4 * 3, 0);
        for (source, target) in staging.chunks_exact(4).zip(pixels.chunks_exact_mut(3)) {
            target.copy_from_slice(&source[..3]);
        }
    }
    Ok(())
}

fn open(bytes: &[u8]) -> Result<(Opened<'_>, Option<Tolerated>), ImageError> {
    let truncated = ImageError::Truncated { format: Format::WebP };
    let Some(&declared) = bytes.get(4..8).and_then(|field| field.first_chunk::<4>()) else { return Err(truncated) };
    if (bytes.len() as u64) < u64::from(u32::from_le_bytes(declared)) + 8 {
        return Err(truncated);
    }
    match WebPDecoder::new(Cursor::new(Cow::Borrowed(bytes))) {
        Ok(decoder) => Ok((decoder, None)),
        Err(error) => open_pixels_alone(bytes).map(|decoder| (decoder, Some(Tolerated::WebpChunk))).ok_or_else(|| failed(&error)),
    }
}

/// A decoder of a still image whose own headers lead nowhere.
fn open_pixels_alone(bytes: &[u8]) -> Option<Opened<'_>> {
    let (copy, canvas) = pixels_alone(bytes)?;
    WebPDecoder::new(Cursor::new(Cow::Owned(copy))).ok().filter(|decoder| decoder.dimensions() == canvas)
}

/// Names and contents of the chunks behind the file's header, as far as they are whole.
fn chunks(bytes: &[u8]) -> impl Iterator<Item = (&[u8; 4], &[u8])> {
    let mut rest = bytes.get(12..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (name, behind) = rest.split_first_chunk::<4>()?;
        let (length, behind) = behind.split_first_chunk::<4>()?;
        let length = u32::from_le_bytes(*length) as usize;
        let content = behind.get(..length)?;
        // Chunks are padded to even lengths.
        rest = behind.get(length + length % 2..).unwrap_or_default();
        Some((name, content))
    })
}

/// The file of a still image without all that says nothing about pixels, and the canvas that its header declares.
fn pixels_alone(bytes: &[u8]) -> Option<(Vec<u8>, (u32, u32))> {
    const ANIMATION: u8 = 0x02;
    let mut rest = bytes.get(12..)?;
    let mut canvas = None;
    loop {
        let (head, behind) = rest.split_first_chunk::<8>()?;
        let &[n0, n1, n2, n3, l0, l1, l2, l3] = head;
        // Chunks are padded to even lengths.
        let (name, length) = (&[n0, n1, n2, n3], u32::from_le_bytes([l0, l1, l2, l3]) as usize);
        let body = behind.get(..length)?;
        match name {
            b"VP8X" => {
                let &[flags, _, _, _, w0, w1, w2, h0, h1, h2] = body.first_chunk()?;
                let side = |bytes: [u8; 3]| 1 + u32::from_le_bytes([bytes[0], bytes[1], bytes[2], 0]);
                canvas = Some((side([w0, w1, w2]), side([h0, h1, h2]))).filter(|_| flags & ANIMATION == 0);
            }
            b"VP8 " | b"VP8L" => {
                let chunk = rest.get(..8 + length)?;
                let size = 4 + chunk.len() as u32 + length as u32 % 2;
                let mut copy = [b"RIFF".as_slice(), &size.to_le_bytes(), b"WEBP", chunk].concat();
                copy.resize(size as usize + 8, 0);
                return Some((copy, canvas?));
            }
            _ => {}
        }
        rest = behind.get(length + length % 2..).unwrap_or_default();
    }
}

fn corrupt(reason: String) -> ImageError {
    ImageError::Corrupt { format: Format::WebP, reason }
}

fn failed(error: &DecodingError) -> ImageError {
    corrupt(error.to_string())
}
