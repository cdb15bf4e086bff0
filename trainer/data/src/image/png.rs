//! PNG: reading as Pillow does, and writing for people to look at.
//!
//! Comes in: a file's bytes. Goes out: RGB; gray is repeated, an alpha channel or a transparent palette entry is dropped. Of an animation the
//! default image counts.

use std::io::{Cursor, ErrorKind};

use png::{ColorType, DecodeOptions, Decoder, DecodingError, Transformations};

use super::{Format, ImageError, MEAN, STD};
use crate::cause::Tolerated;

fn reader(bytes: &[u8]) -> Decoder<Cursor<&[u8]>> {
    let mut options = DecodeOptions::default();
    options.set_ignore_text_chunk(true);
    options.set_ignore_iccp_chunk(true);
    // Pillow checks this one, too, and no other sum of the pixels.
    options.set_ignore_adler32(false);
    Decoder::new_with_options(Cursor::new(bytes), options)
}

/// Columns and rows from the first chunk.
pub(super) fn dimensions(bytes: &[u8]) -> Result<(u32, u32), ImageError> {
    // Read by hand: the decoder would refuse a size of 0 or one beyond its own limits with less to say.
    let field =
        |start: usize| bytes.get(start..start + 4).and_then(|field| field.first_chunk::<4>()).map(|&field| u32::from_be_bytes(field));
    if bytes.get(12..16).is_some_and(|name| name != b"IHDR") {
        return Err(ImageError::Corrupt { format: Format::Png, reason: "the first chunk is not IHDR".to_owned() });
    }
    match (field(16), field(20)) {
        (Some(width), Some(height)) => Ok((width, height)),
        _ => Err(ImageError::Truncated { format: Format::Png }),
    }
}

/// Decodes to RGB. `staging` holds the file's own channels on the way. Says which fault the file has that costs no pixel.
pub(super) fn decode(bytes: &[u8], pixels: &mut Vec<u8>, staging: &mut Vec<u8>) -> Result<Option<Tolerated>, ImageError> {
    let decoded = if has_half_a_colour(bytes) {
        Err(corrupt("its palette ends within a colour".to_owned()))
    } else {
        decode_clean(bytes, pixels, staging)
    };
    let Err(refused) = decoded else { return Ok(None) };
    let Some((copy, fault)) = mend(bytes) else { return Err(refused) };
    match decode_clean(&copy, pixels, staging) {
        Ok(()) => Ok(Some(fault)),
        Err(_) => Err(refused),
    }
}

/// Whether the palette's length is no multiple of a colour's, at which the crate panics.
fn has_half_a_colour(bytes: &[u8]) -> bool {
    let mut rest = bytes.get(8..).unwrap_or_default();
    while let Some(([l0, l1, l2, l3, kind @ ..], behind)) = rest.split_first_chunk::<8>() {
        let length = u32::from_be_bytes([*l0, *l1, *l2, *l3]) as usize;
        match kind {
            b"PLTE" if !length.is_multiple_of(3) => return true,
            b"IDAT" => return false,
            _ => rest = behind.get(length.saturating_add(4)..).unwrap_or_default(),
        }
    }
    false
}

fn decode_clean(bytes: &[u8], pixels: &mut Vec<u8>, staging: &mut Vec<u8>) -> Result<(), ImageError> {
    let mut decoder = reader(bytes);
    let header = decoder.read_header_info().map_err(failed)?;
    // Pillow cuts 16-bit samples to their high byte in every mode but gray without alpha, which it clips at 255.
    let clipped = header.color_type == ColorType::Grayscale && header.bit_depth == png::BitDepth::Sixteen;
    decoder.set_transformations(if clipped { Transformations::IDENTITY } else { Transformations::EXPAND | Transformations::STRIP_16 });
    let mut reader = decoder.read_info().map_err(failed)?;
    let length = reader.output_buffer_size().ok_or_else(|| corrupt("its size overflows".to_owned()))?;
    let channels = if clipped { 2 } else { reader.output_color_type().0.samples() };
    let target = if channels == 3 { &mut *pixels } else { &mut *staging };
    target.resize(length, 0);
    reader.next_frame(target).map_err(failed)?;
    // To the end of the file, so that one without it counts as truncated.
    reader.finish().map_err(failed)?;
    if channels != 3 {
        pixels.resize(length / channels * 3, 0);
        to_rgb(staging, channels, clipped, pixels);
    }
    Ok(())
}

/// A copy with nothing but what pixels are made of, and what was wrong with the file; nothing when its headers do not hold.
fn mend(bytes: &[u8]) -> Option<(Vec<u8>, Tolerated)> {
    let (signature, mut rest) = bytes.split_at_checked(8)?;
    let (mut header, mut palette, mut data) = (None, None, Vec::new());
    let (mut in_data, mut cause) = (false, Tolerated::PngEnd);
    while let Some((head, behind)) = rest.split_first_chunk::<8>() {
        let &[l0, l1, l2, l3, k0, k1, k2, k3] = head;
        let (length, kind) = (u32::from_be_bytes([l0, l1, l2, l3]) as usize, &[k0, k1, k2, k3]);
        let body = behind.get(..length).unwrap_or(behind);
        let sum = behind.get(length..).and_then(|tail| tail.first_chunk()).map(|&sum| u32::from_be_bytes(sum));
        // Headers count only when they are as they were written. What holds pixels has a check sum of its own, over all of it.
        let sound = sum == Some(sum_of(kind, body));
        match kind {
            b"IHDR" if header.is_none() => header = Some(body).filter(|_| sound),
            b"PLTE" if palette.is_none() && data.is_empty() => {
                palette = body.get(..body.len() / 3 * 3).filter(|colours| sound && !colours.is_empty());
            }
            b"IDAT" if in_data || data.is_empty() => {
                in_data = true;
                data.extend_from_slice(body);
            }
            _ => in_data = false,
        }
        if kind == b"IEND" {
            cause = Tolerated::PngChunk;
            break;
        }
        rest = behind.get(length.saturating_add(4)..).unwrap_or_default();
    }
    let mut copy = signature.to_vec();
    let mut put = |kind: &[u8; 4], body: &[u8]| {
        copy.extend((body.len() as u32).to_be_bytes());
        copy.extend_from_slice(kind);
        copy.extend_from_slice(body);
        copy.extend(sum_of(kind, body).to_be_bytes());
    };
    put(b"IHDR", header?);
    if let Some(palette) = palette {
        put(b"PLTE", palette);
    }
    put(b"IDAT", &data);
    put(b"IEND", &[]);
    Some((copy, cause))
}

fn sum_of(kind: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(kind);
    hasher.update(body);
    hasher.finalize()
}

fn to_rgb(source: &[u8], channels: usize, clipped: bool, pixels: &mut [u8]) {
    for (source, target) in source.chunks_exact(channels).zip(pixels.chunks_exact_mut(3)) {
        match *source {
            [high, low] if clipped => target.fill(if high == 0 { low } else { u8::MAX }),
            [gray] | [gray, _] => target.fill(gray),
            [red, green, blue, _] => target.copy_from_slice(&[red, green, blue]),
            _ => {}
        }
    }
}

fn corrupt(reason: String) -> ImageError {
    ImageError::Corrupt { format: Format::Png, reason }
}

fn failed(error: DecodingError) -> ImageError {
    match error {
        DecodingError::IoError(error) if error.kind() == ErrorKind::UnexpectedEof => ImageError::Truncated { format: Format::Png },
        error => corrupt(error.to_string()),
    }
}

/// Writes pixels `[3, size, size]`, normalised with [`MEAN`] and [`STD`] as the transforms give them, as an RGB PNG.
///
/// # Panics
/// When `normalised` does not hold 3 · size · size values.
#[must_use]
pub fn to_png(normalised: &[f32], size: u32) -> Vec<u8> {
    let area = size as usize * size as usize;
    assert_eq!(normalised.len(), 3 * area, "an image of side {size} has three planes");
    let mut rgb = vec![0; 3 * area];
    for (channel, plane) in normalised.chunks_exact(area.max(1)).enumerate() {
        for (pixel, value) in rgb.chunks_exact_mut(3).zip(plane) {
            // A float cast saturates, so values outside 0..255 need no clamp.
            pixel[channel] = ((value * STD[channel] + MEAN[channel]) * 255.0).round() as u8;
        }
    }
    encode(&rgb, size)
}

/// Writes bytes `[size, size, 3]` as an RGB PNG.
#[expect(clippy::expect_used, reason = "writing RGB of a checked size to memory has no way to fail")]
pub(crate) fn encode(rgb: &[u8], size: u32) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, size, size);
    encoder.set_color(ColorType::Rgb);
    let mut writer = encoder.write_header().expect("the header of a square image is valid");
    writer.write_image_data(rgb).expect("the data has the size that the header declares");
    writer.finish().expect("memory can be written");
    file
}
