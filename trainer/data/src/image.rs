//! Decoding and transforms of images: bytes in, pixels of the model's size out.
//!
//! Comes in: the bytes of a JPEG, PNG, WebP, GIF or BMP file, told apart by content, and, for training, the box to keep. Goes out: `[3, S, S]` float32 pixels, normalised per channel,
//! equal to what Pillow and torchvision make of the same file (`Image.open(..).convert("RGB")`, crop, bicubic resize with antialiasing, `ToTensor`,
//! `Normalize`) up to rounding. Like there, an EXIF orientation and a colour profile are ignored, transparency is dropped rather than blended,
//! and of an animation the first frame counts. A file with faults that cost no pixel is used, and says which ([`Tolerated`]); one that lacks pixels
//! is refused, even where Pillow fills them up with gray.
//! It reads no file, draws no random number of its own and keeps nothing between images but buffers ([`Scratch`]).

mod bmp;
mod crop;
mod format;
mod gif;
mod jpeg;
mod other;
mod png;
mod resample;
mod webp;

use std::fmt;

use crate::cause::{SkipCause, Tolerated};

pub use crop::{CropBox, random_resized_crop};
pub use format::{Format, MAX_PIXELS, Probe, probe};
pub use other::OtherFormat;
pub(crate) use png::encode as bytes_to_png;
pub use png::to_png;
use resample::{Resampler, Window};

/// Mean of the red, green and blue channel (in 0..1) that the reference subtracts.
pub const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Standard deviation of the three channels (in 0..1) that the reference divides by.
pub const STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// Why an image cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// The data ends before the image does.
    #[error("the {format} image is truncated")]
    Truncated {
        /// What the first bytes say it is.
        format: Format,
    },
    /// The file is of a known format that is not decoded.
    #[error("{0} is not decoded: convert it to JPEG, PNG, WebP, GIF or BMP")]
    OtherFormat(OtherFormat),
    /// The first bytes belong to no format at all, or the file uses a rare feature that neither Pillow nor this crate reads.
    #[error("unsupported image: {reason}")]
    Unsupported {
        /// What is not supported.
        reason: String,
    },
    /// The data contradicts the format's rules.
    #[error("the {format} image is corrupt: {reason}")]
    Corrupt {
        /// What the first bytes say it is.
        format: Format,
        /// What the decoder found.
        reason: String,
    },
    /// The file declares more than [`MAX_PIXELS`]; nothing was allocated for it.
    #[error("the image has {width} x {height} pixels; at most {MAX_PIXELS} pixels are decoded")]
    TooLarge {
        /// Declared columns.
        width: u32,
        /// Declared rows.
        height: u32,
    },
    /// A crop that is empty or reaches beyond the image. Only a caller that chooses boxes by hand meets it.
    #[error("the crop {crop} does not lie within the image of {width} x {height} pixels")]
    CropOutside {
        /// What was asked for.
        crop: CropBox,
        /// The image's columns.
        width: u32,
        /// The image's rows.
        height: u32,
    },
}

impl ImageError {
    /// Under which cause a record with this image is counted.
    #[must_use]
    pub const fn cause(&self) -> SkipCause {
        match self {
            Self::Truncated { .. } => SkipCause::TruncatedImage,
            Self::Unsupported { .. } => SkipCause::UnsupportedImage,
            Self::OtherFormat(format) => SkipCause::OtherFormat(*format),
            Self::Corrupt { .. } | Self::CropOutside { .. } => SkipCause::CorruptImage,
            Self::TooLarge { .. } => SkipCause::ImageTooLarge,
        }
    }
}

/// Buffers of one thread, reused from image to image.
#[derive(Default)]
pub struct Scratch {
    jpeg: jpeg::Decoder,
    resampler: Resampler,
    /// Decoded RGB.
    pixels: Vec<u8>,
    /// What the codec writes when it is not RGB.
    staging: Vec<u8>,
    /// RGB after the resize.
    resized: Vec<u8>,
}

impl Scratch {
    /// Most bytes that a buffer keeps between images: a 16-megapixel photograph. A larger one is given back, so that a single huge image does not
    /// stay in every thread's memory for the rest of the run.
    const KEPT_BYTES: usize = 48 << 20;

    /// Empty buffers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn release_large_buffers(&mut self) {
        for buffer in [&mut self.pixels, &mut self.staging] {
            if buffer.capacity() > Self::KEPT_BYTES {
                *buffer = Vec::new();
            }
        }
    }
}

impl fmt::Debug for Scratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scratch({} bytes)", self.pixels.capacity() + self.staging.capacity() + self.resized.capacity())
    }
}

/// A decoded image, `[height, width, 3]` bytes in the order red, green, blue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pixels<'a> {
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// `height * width * 3` bytes.
    pub bytes: &'a [u8],
    /// A fault of the file that cost no pixel.
    pub tolerated: Option<Tolerated>,
}

/// Decodes a whole image as Pillow's `Image.open(..).convert("RGB")` does.
pub fn decode<'a>(bytes: &[u8], scratch: &'a mut Scratch) -> Result<Pixels<'a>, ImageError> {
    let probe = probe(bytes)?;
    scratch.release_large_buffers();
    let whole = CropBox { top: 0, left: 0, height: probe.height, width: probe.width };
    let Part { area: CropBox { width, height, .. }, length, tolerated } = decode_part(bytes, &probe, 1, whole, scratch)?;
    Ok(Pixels { width, height, bytes: scratch.pixels.get(..length).unwrap_or_default(), tolerated })
}

/// What [`decode_part`] left at the beginning of the scratch's pixels.
#[derive(Clone, Copy, Debug)]
struct Part {
    /// Which part of the image it is: the one that was wanted, or more.
    area: CropBox,
    /// Bytes.
    length: usize,
    tolerated: Option<Tolerated>,
}

/// Decodes the part `wanted` of an image at 1 / `reduction` of both sides (rounded up), or all of it; only a JPEG has reductions other than 1.
fn decode_part(bytes: &[u8], probe: &Probe, reduction: u32, wanted: CropBox, scratch: &mut Scratch) -> Result<Part, ImageError> {
    let length = |area: CropBox| area.width as usize * area.height as usize * 3;
    let Scratch { jpeg, pixels, staging, .. } = scratch;
    if probe.format == Format::Jpeg && jpeg.decode_part(bytes, reduction, wanted, pixels) {
        return Ok(Part { area: wanted, length: length(wanted), tolerated: None });
    }
    let mut tolerated = None;
    match probe.format {
        Format::Jpeg => tolerated = jpeg.decode(bytes, reduction, pixels, staging)?,
        Format::Png => tolerated = png::decode(bytes, pixels, staging)?,
        Format::WebP => tolerated = webp::decode(bytes, pixels, staging)?,
        Format::Gif => gif::decode(bytes, pixels, staging)?,
        Format::Bmp => bmp::decode(bytes, pixels)?,
    }
    let area = CropBox { top: 0, left: 0, height: probe.height.div_ceil(reduction), width: probe.width.div_ceil(reduction) };
    if scratch.pixels.len() != length(area) {
        return Err(ImageError::Corrupt { format: probe.format, reason: "its headers contradict each other about its size".to_owned() });
    }
    Ok(Part { area, length: length(area), tolerated })
}

/// The transforms from a file's bytes to the model's input.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageTransform {
    /// Side S of the square output.
    pub size: u32,
    /// Subtracted from each channel's values in 0..1.
    pub mean: [f32; 3],
    /// Divides each channel after that.
    pub std: [f32; 3],
    /// Decode a JPEG at 1/2, 1/4 or 1/8 of its size when the crop stays large enough (see [`REDUCTION_MARGIN`]). Evaluation never does.
    ///
    /// Off unless asked for: photographs of 640 x 480 pixels gain nothing at S = 224, as their crops are too small for a half; photographs of one to
    /// two megapixels are done 2.5 times as fast and change by 0.4 of 255 on average (`bench/image.py`).
    pub reduced_scale_decoding: bool,
}

/// A crop is decoded at a reduced scale only while each of its sides still has at least this many times the output's pixels.
///
/// Measured on 17 photographs of 640 x 480 pixels as the mean difference from full-scale decoding on the worst of them (a lawn): 3.03 of 255 at a
/// margin of 1.0, 2.4 at 1.1, 1.8 at 1.25, 1.3 at 1.5, 0.7 at 2. Allowed is less than 3.
pub const REDUCTION_MARGIN: f64 = 1.1;

impl ImageTransform {
    /// The reference's normalisation, full-scale decoding.
    #[must_use]
    pub const fn new(size: u32) -> Self {
        Self { size, mean: MEAN, std: STD, reduced_scale_decoding: false }
    }

    /// Values that one image takes in `out`: 3 · S · S.
    #[must_use]
    pub const fn output_len(&self) -> usize {
        3 * self.size as usize * self.size as usize
    }

    /// The training transform: `crop` gets the image's width and height and says which box is kept, usually through [`random_resized_crop`].
    /// Writes `[3, S, S]` normalised values to `out` and says which fault of the file cost no pixel, as all transforms do.
    ///
    /// # Panics
    /// When `out` does not hold exactly [`ImageTransform::output_len`] values.
    pub fn train(
        &self,
        bytes: &[u8],
        crop: impl FnOnce(u32, u32) -> CropBox,
        scratch: &mut Scratch,
        out: &mut [f32],
    ) -> Result<Option<Tolerated>, ImageError> {
        let probe = probe(bytes)?;
        self.apply(bytes, &probe, crop(probe.width, probe.height), scratch, out)
    }

    /// The training transform before it is normalised: writes `[S, S, 3]` bytes, red, green, blue, to `out`. They become the model's input by
    /// `(value / 255 - mean) / std` and a permutation, wherever the model is.
    ///
    /// # Panics
    /// When `out` does not hold exactly [`ImageTransform::output_len`] bytes.
    pub fn train_bytes(
        &self,
        bytes: &[u8],
        crop: impl FnOnce(u32, u32) -> CropBox,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) -> Result<Option<Tolerated>, ImageError> {
        let probe = probe(bytes)?;
        let (reduction, window) = self.window(&probe, crop(probe.width, probe.height))?;
        self.resize(bytes, (&probe, reduction), window, scratch, out)
    }

    /// The training transform with a given box.
    ///
    /// # Panics
    /// When `out` does not hold exactly [`ImageTransform::output_len`] values.
    pub fn crop(&self, bytes: &[u8], crop: CropBox, scratch: &mut Scratch, out: &mut [f32]) -> Result<Option<Tolerated>, ImageError> {
        self.apply(bytes, &probe(bytes)?, crop, scratch, out)
    }

    fn apply(
        &self,
        bytes: &[u8],
        probe: &Probe,
        crop: CropBox,
        scratch: &mut Scratch,
        out: &mut [f32],
    ) -> Result<Option<Tolerated>, ImageError> {
        let (reduction, window) = self.window(probe, crop)?;
        self.finish(bytes, (probe, reduction), window, scratch, out)
    }

    /// At which scale an image is decoded of which `crop` is wanted, and where that lies then.
    fn window(&self, probe: &Probe, crop: CropBox) -> Result<(u32, Window), ImageError> {
        if !crop.lies_within(probe.width, probe.height) {
            return Err(ImageError::CropOutside { crop, width: probe.width, height: probe.height });
        }
        let reduction = if self.reduced_scale_decoding && probe.format == Format::Jpeg { self.reduction(crop) } else { 1 };
        Ok((reduction, Window::of_crop(crop, reduction)))
    }

    /// The evaluation transform: the shortest side to S, then the central S x S pixels.
    ///
    /// # Panics
    /// When `out` does not hold exactly [`ImageTransform::output_len`] values.
    pub fn evaluate(&self, bytes: &[u8], scratch: &mut Scratch, out: &mut [f32]) -> Result<Option<Tolerated>, ImageError> {
        let probe = probe(bytes)?;
        let window = Window::of_central_square(probe.width, probe.height, self.size);
        self.finish(bytes, (&probe, 1), window, scratch, out)
    }

    /// The largest of 1, 2, 4 and 8 that leaves the crop large enough.
    fn reduction(&self, crop: CropBox) -> u32 {
        let shortest = f64::from(crop.width.min(crop.height));
        [8, 4, 2].into_iter().find(|&reduction| shortest >= f64::from(self.size) * REDUCTION_MARGIN * f64::from(reduction)).unwrap_or(1)
    }
}
