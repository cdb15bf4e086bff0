//! WebP, lossy and lossless, with or without alpha; of an animation the first frame on its canvas.
//!
//! Comes in: a file's bytes. Goes out: RGB, an alpha channel dropped.

use std::io::Cursor;

use image_webp::{DecodingError, WebPDecoder};

use super::{Format, ImageError};

/// Columns and rows of the canvas.
pub(super) fn dimensions(bytes: &[u8]) -> Result<(u32, u32), ImageError> {
    Ok(open(bytes)?.dimensions())
}

/// Decodes to RGB. `staging` holds RGBA on the way.
pub(super) fn decode(bytes: &[u8], pixels: &mut Vec<u8>, staging: &mut Vec<u8>) -> Result<(), ImageError> {
    let mut decoder = open(bytes)?;
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

fn open(bytes: &[u8]) -> Result<WebPDecoder<Cursor<&[u8]>>, ImageError> {
    let truncated = ImageError::Truncated { format: Format::WebP };
    let Some(&declared) = bytes.get(4..8).and_then(|field| field.first_chunk::<4>()) else { return Err(truncated) };
    if (bytes.len() as u64) < u64::from(u32::from_le_bytes(declared)) + 8 {
        return Err(truncated);
    }
    WebPDecoder::new(Cursor::new(bytes)).map_err(|error| failed(&error))
}

fn corrupt(reason: String) -> ImageError {
    ImageError::Corrupt { format: Format::WebP, reason }
}

fn failed(error: &DecodingError) -> ImageError {
    corrupt(error.to_string())
}
