//! JPEG, through libjpeg-turbo: the decoder that Pillow uses, with the same inverse DCT and chroma upsampling, so that pixels are equal.
//!
//! Comes in: a file's bytes and a reduction. Goes out: RGB. libjpeg complains of what costs no pixel, and fills up with gray what is missing, in
//! the same way. So whatever it complains of is read here once more, for whether all data are there, and then decoded from a clean copy.

mod baseline;
mod huffman;
mod mend;
mod scan;

use memchr::memchr;
use turbojpeg::{Decompressor, Error, Image, PixelFormat, ScalingFactor};

use super::{CropBox, Format, ImageError, lines::Lines};
use crate::cause::Tolerated;
use baseline::Baseline;
use mend::Mended;

/// Most scans of a progressive file. Encoders write about ten; each costs a walk over the whole image, so a file of a few kilobytes with
/// thousands of empty ones would stop a thread for minutes.
const MAX_SCANS: u32 = 500;

/// What decodes the usual files, and a libjpeg-turbo instance for all others, made at the first use.
#[derive(Default)]
pub(super) struct Decoder {
    baseline: Baseline,
    instance: Option<Decompressor>,
}

impl Decoder {
    /// Decodes the part `wanted` of the image at 1 / `reduction` of its size, if it is a usual file without any fault: exactly the rows of this
    /// part are then given, and true is returned. Otherwise those that were given do not count.
    pub(super) fn decode_part(&mut self, bytes: &[u8], reduction: u32, wanted: CropBox, lines: &mut dyn Lines) -> bool {
        self.baseline.decode(bytes, reduction as usize, wanted, lines).is_some()
    }

    /// Decodes to RGB at 1 / `reduction` (1, 2, 4 or 8) of both sides, rounded up. `staging` holds CMYK on the way. Says which fault the file
    /// has that costs no pixel.
    pub(super) fn decode(
        &mut self,
        bytes: &[u8],
        reduction: u32,
        pixels: &mut Vec<u8>,
        staging: &mut Vec<u8>,
    ) -> Result<Option<Tolerated>, ImageError> {
        let refused = match check_complete(bytes).and_then(|()| self.decode_clean(bytes, reduction, pixels, staging)) {
            Ok(()) => return Ok(None),
            Err(refused) => refused,
        };
        let Some(Mended { bytes, cause, has_profile, progressive }) = mend::mend(bytes) else { return Err(refused) };
        if self.decode_clean(&bytes, reduction, pixels, staging).is_ok() {
            return Ok(Some(cause.unwrap_or(if has_profile { Tolerated::JpegProfile } else { Tolerated::JpegHeader })));
        }
        // What libjpeg still complains of, although all data are there, is the order of a progressive file's scans. It writes no row before it
        // has read all of these; a row that it does not write keeps what was there before.
        let first = self.written(&bytes, reduction, 0x00, (&mut *pixels, &mut *staging));
        let second = self.written(&bytes, reduction, 0xff, (&mut *pixels, &mut *staging));
        if progressive && first.is_some() && first == second { Ok(Some(Tolerated::JpegProgression)) } else { Err(refused) }
    }

    /// What is in `pixels` after decoding over bytes of this value, whatever libjpeg says.
    fn written(&mut self, bytes: &[u8], reduction: u32, value: u8, (pixels, staging): (&mut Vec<u8>, &mut Vec<u8>)) -> Option<Vec<u8>> {
        for buffer in [&mut *pixels, &mut *staging] {
            buffer.clear();
        }
        let (width, height) = dimensions(bytes).ok()?;
        let length = width.div_ceil(reduction) as usize * height.div_ceil(reduction) as usize;
        pixels.resize(3 * length, value);
        staging.resize(4 * length, value);
        // The complaint is known; what counts is what was written.
        drop(self.decode_clean(bytes, reduction, pixels, staging));
        Some(pixels.clone())
    }

    /// Decodes a file that libjpeg does not complain of.
    fn decode_clean(&mut self, bytes: &[u8], reduction: u32, pixels: &mut Vec<u8>, staging: &mut Vec<u8>) -> Result<(), ImageError> {
        let instance = match &mut self.instance {
            Some(instance) => instance,
            empty => empty.insert(new_instance().map_err(|error| corrupt(&error))?),
        };
        let frame = frame(bytes)?;
        let scale = ScalingFactor::new(1, reduction as usize);
        instance.set_scaling_factor(scale).map_err(|error| corrupt(&error))?;
        let (width, height) = (scale.scale(frame.columns as usize), scale.scale(frame.rows as usize));
        let cmyk = frame.components == 4;
        let (format, target) = if cmyk { (PixelFormat::CMYK, &mut *staging) } else { (PixelFormat::RGB, &mut *pixels) };
        let pitch = width * format.size();
        target.resize(pitch * height, 0);
        // A file with two frame headers is refused by libjpeg, so that its size is the one read here.
        let decoded = instance.decompress(bytes, Image { pixels: target.as_mut_slice(), width, pitch, height, format });
        if cmyk {
            pixels.resize(width * height * 3, 0);
            cmyk_to_rgb(staging, pixels);
        }
        decoded.map_err(|error| {
            // After an error within the headers an instance goes on with them at the next file, and refuses every one from there on.
            self.instance = None;
            corrupt(&error)
        })
    }
}

fn new_instance() -> Result<Decompressor, Error> {
    let mut instance = Decompressor::new()?;
    instance.set_scan_limit(MAX_SCANS)?;
    Ok(instance)
}

fn corrupt(error: &Error) -> ImageError {
    ImageError::Corrupt { format: Format::Jpeg, reason: error.to_string() }
}

/// Pillow's conversion (`Convert.c`, `cmyk2rgb`) of inked values that are stored inverted, as Adobe's programs and everyone after them do.
fn cmyk_to_rgb(cmyk: &[u8], rgb: &mut [u8]) {
    for (source, target) in cmyk.chunks_exact(4).zip(rgb.chunks_exact_mut(3)) {
        let paper = u32::from(source[3]);
        for (ink, value) in source.iter().zip(target) {
            let product = u32::from(255 - ink) * paper + 128;
            *value = (paper - (((product >> 8) + product) >> 8)) as u8;
        }
    }
}

/// A marker and the segment that follows it.
struct Segment<'a> {
    marker: u8,
    /// What follows the length; empty for a marker that stands alone.
    payload: &'a [u8],
}

/// Walks the markers; entropy-coded data is stepped over.
struct Segments<'a> {
    rest: &'a [u8],
}

impl<'a> Segments<'a> {
    const TRUNCATED: ImageError = ImageError::Truncated { format: Format::Jpeg };

    fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn next(&mut self) -> Result<Segment<'a>, ImageError> {
        loop {
            let start = memchr(0xff, self.rest).ok_or(Self::TRUNCATED)?;
            let filled = &self.rest[start..];
            let marker_at = filled.iter().position(|&byte| byte != 0xff).ok_or(Self::TRUNCATED)?;
            let marker = filled[marker_at];
            self.rest = &filled[marker_at + 1..];
            match marker {
                // A stuffed 0xff of the data, restart markers, TEM, start of image.
                0x00 | 0x01 | 0xd0..=0xd8 => {}
                END_OF_IMAGE => return Ok(Segment { marker, payload: &[] }),
                _ => {
                    let length = self.rest.first_chunk().map(|&bytes| usize::from(u16::from_be_bytes(bytes))).ok_or(Self::TRUNCATED)?;
                    if length < 2 {
                        let reason = format!("segment {marker:02x} declares {length} bytes");
                        return Err(ImageError::Corrupt { format: Format::Jpeg, reason });
                    }
                    let payload = self.rest.get(2..length).ok_or(Self::TRUNCATED)?;
                    self.rest = &self.rest[length..];
                    return Ok(Segment { marker, payload });
                }
            }
        }
    }
}

const END_OF_IMAGE: u8 = 0xd9;
const START_OF_SCAN: u8 = 0xda;

/// How the scan headers of a sequential file end: first and last coefficient, and their approximation.
const ALL_COEFFICIENTS: [u8; 3] = [0, 63, 0];

fn is_start_of_frame(marker: u8) -> bool {
    // c4, c8 and cc define tables.
    matches!(marker, 0xc0..=0xcf) && !matches!(marker, 0xc4 | 0xc8 | 0xcc)
}

/// Columns and rows from the frame header.
pub(super) fn dimensions(bytes: &[u8]) -> Result<(u32, u32), ImageError> {
    frame(bytes).map(|frame| (frame.columns, frame.rows))
}

/// What the frame header says.
struct FrameSize {
    columns: u32,
    rows: u32,
    components: u8,
}

fn frame(bytes: &[u8]) -> Result<FrameSize, ImageError> {
    let mut segments = Segments::new(bytes);
    loop {
        let segment = segments.next()?;
        if is_start_of_frame(segment.marker) {
            // precision, rows, columns, components
            let &[precision, high_rows, low_rows, high_columns, low_columns, components, ..] = segment.payload else {
                return Err(ImageError::Corrupt { format: Format::Jpeg, reason: "the frame header is too short".to_owned() });
            };
            if matches!(segment.marker, 0xc3 | 0xc7 | 0xcb | 0xcf) {
                return Err(ImageError::Unsupported { reason: "lossless JPEG".to_owned() });
            }
            if precision != 8 || !matches!(components, 1 | 3 | 4) {
                return Err(ImageError::Unsupported { reason: format!("JPEG of {components} components with {precision} bits") });
            }
            let number = |high, low| u16::from_be_bytes([high, low]).into();
            return Ok(FrameSize { columns: number(high_columns, low_columns), rows: number(high_rows, low_rows), components });
        }
        if matches!(segment.marker, END_OF_IMAGE | START_OF_SCAN) {
            return Err(ImageError::Corrupt { format: Format::Jpeg, reason: "there is no frame header".to_owned() });
        }
    }
}

/// An error unless the image ends with its end marker after at least one scan, like Pillow, which refuses a file without the marker; and unless
/// its scan headers say what libjpeg does not complain of, so that it need not decode the image to its end before it does.
fn check_complete(bytes: &[u8]) -> Result<(), ImageError> {
    let corrupt = |reason: &str| Err(ImageError::Corrupt { format: Format::Jpeg, reason: reason.to_owned() });
    let mut segments = Segments::new(bytes);
    let (mut scans, mut sequential, mut odd) = (0_usize, false, false);
    loop {
        let segment = segments.next()?;
        match segment.marker {
            // Baseline, extended, and extended with arithmetic coding.
            0xc0 | 0xc1 | 0xc9 => sequential = true,
            START_OF_SCAN => {
                scans += 1;
                odd |= sequential && !segment.payload.ends_with(&ALL_COEFFICIENTS);
            }
            END_OF_IMAGE if odd => return corrupt("a scan header contradicts the frame header"),
            END_OF_IMAGE if scans > 0 => return Ok(()),
            END_OF_IMAGE => return corrupt("there is no image data"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
