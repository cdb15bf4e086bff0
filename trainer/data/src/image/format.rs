//! What kind of image a file is and how large, from its first bytes.
//!
//! Comes in: a file's bytes. Goes out: [`Probe`], already checked against the size limit. No pixel is decoded here and nothing of the image's
//! size is allocated.

use std::fmt;

use super::{ImageError, jpeg, png, webp};

/// Most pixels that are decoded; above it Pillow warns of a decompression bomb, at twice as many it refuses.
/// RGB of this size is 268 MB.
pub const MAX_PIXELS: u64 = 89_478_485;

/// A format that can be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// Baseline and progressive JPEG, gray, colour and CMYK.
    Jpeg,
    /// PNG of every colour type and depth.
    Png,
    /// WebP, lossy and lossless.
    WebP,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::WebP => "WebP",
        })
    }
}

/// What can be said of an image without decoding it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Columns as stored; an EXIF orientation is not applied.
    pub width: u32,
    /// Rows as stored.
    pub height: u32,
    /// Kind of file, by its content.
    pub format: Format,
}

/// Reads an image's kind and size.
pub fn probe(bytes: &[u8]) -> Result<Probe, ImageError> {
    let format = detect(bytes)?;
    let (width, height) = match format {
        Format::Jpeg => jpeg::dimensions(bytes)?,
        Format::Png => png::dimensions(bytes)?,
        Format::WebP => webp::dimensions(bytes)?,
    };
    if width == 0 || height == 0 {
        return Err(ImageError::Corrupt { format, reason: format!("it declares {width} x {height} pixels") });
    }
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(ImageError::TooLarge { width, height });
    }
    Ok(Probe { width, height, format })
}

fn detect(bytes: &[u8]) -> Result<Format, ImageError> {
    const JPEG: &[u8] = &[0xff, 0xd8, 0xff];
    const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";
    if bytes.starts_with(JPEG) {
        Ok(Format::Jpeg)
    } else if bytes.starts_with(PNG) {
        Ok(Format::Png)
    } else if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
        Ok(Format::WebP)
    } else if bytes.is_empty() {
        Err(ImageError::Unsupported { reason: "the file is empty".to_owned() })
    } else if JPEG.starts_with(bytes) {
        Err(ImageError::Truncated { format: Format::Jpeg })
    } else if PNG.starts_with(bytes) {
        Err(ImageError::Truncated { format: Format::Png })
    } else if bytes.len() < 12 && (b"RIFF".starts_with(bytes) || bytes.starts_with(b"RIFF")) {
        Err(ImageError::Truncated { format: Format::WebP })
    } else {
        Err(ImageError::Unsupported { reason: format!("the file begins with {:02x?}", &bytes[..bytes.len().min(8)]) })
    }
}
