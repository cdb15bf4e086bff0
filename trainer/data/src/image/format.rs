//! What kind of image a file is and how large, from its first bytes.
//!
//! Comes in: a file's bytes. Goes out: [`Probe`], already checked against the size limit. No pixel is decoded here and nothing of the image's
//! size is allocated.

use std::fmt;

use super::{ImageError, OtherFormat, bmp, gif, jpeg, png, webp};

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
    /// GIF; the first frame counts.
    Gif,
    /// BMP of every depth that Pillow reads, plain and run-length encoded.
    Bmp,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::WebP => "WebP",
            Self::Gif => "GIF",
            Self::Bmp => "BMP",
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
        Format::Gif => gif::dimensions(bytes)?,
        Format::Bmp => bmp::dimensions(bytes)?,
    };
    if width == 0 || height == 0 {
        return Err(ImageError::Corrupt { format, reason: format!("it declares {width} x {height} pixels") });
    }
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(ImageError::TooLarge { width, height });
    }
    Ok(Probe { width, height, format })
}

/// What a file of each format begins with.
const SIGNATURES: [(&[u8], Format); 5] = [
    (&[0xff, 0xd8, 0xff], Format::Jpeg),
    (b"\x89PNG\r\n\x1a\n", Format::Png),
    (b"GIF87a", Format::Gif),
    (b"GIF89a", Format::Gif),
    (b"BM", Format::Bmp),
];

fn detect(bytes: &[u8]) -> Result<Format, ImageError> {
    if bytes.is_empty() {
        return Err(ImageError::Unsupported { reason: "the file is empty".to_owned() });
    }
    if let Some((_, format)) = SIGNATURES.into_iter().find(|(signature, _)| bytes.starts_with(signature)) {
        return Ok(format);
    }
    if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
        return Ok(Format::WebP);
    }
    if let Some((_, format)) = SIGNATURES.into_iter().find(|(signature, _)| signature.starts_with(bytes)) {
        return Err(ImageError::Truncated { format });
    }
    if bytes.len() < 12 && (b"RIFF".starts_with(bytes) || bytes.starts_with(b"RIFF")) {
        return Err(ImageError::Truncated { format: Format::WebP });
    }
    Err(match OtherFormat::of(bytes) {
        Some(format) => ImageError::OtherFormat(format),
        None => ImageError::Unsupported { reason: format!("the file begins with {:02x?}", bytes.get(..8).unwrap_or(bytes)) },
    })
}
