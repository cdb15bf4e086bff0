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
mod lines;
mod other;
mod png;
mod resample;
mod transform;
mod webp;
mod window;

use std::fmt;

use crate::cause::{SkipCause, Tolerated};

pub use crop::{CropBox, random_resized_crop};
pub use format::{Format, MAX_PIXELS, Probe, probe};
use lines::Whole;
pub use other::OtherFormat;
pub(crate) use png::encode as bytes_to_png;
pub use png::to_png;
use resample::Resampler;
pub use transform::{ImageTransform, REDUCTION_MARGIN};

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
    decoding: Decoding,
    resampler: Resampler,
    /// RGB after the resize.
    resized: Vec<u8>,
}

/// What decoding needs of it.
#[derive(Default)]
struct Decoding {
    jpeg: jpeg::Decoder,
    /// Decoded RGB.
    pixels: Vec<u8>,
    /// What the codec writes when it is not RGB.
    staging: Vec<u8>,
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
        for buffer in [&mut self.decoding.pixels, &mut self.decoding.staging] {
            if buffer.capacity() > Self::KEPT_BYTES {
                *buffer = Vec::new();
            }
        }
    }
}

impl fmt::Debug for Scratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scratch({} bytes)", self.decoding.pixels.capacity() + self.decoding.staging.capacity() + self.resized.capacity())
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
    let Probe { width, height, format } = probe;
    if format == Format::Jpeg {
        let whole = CropBox { top: 0, left: 0, height, width };
        if scratch.decoding.jpeg.decode_part(bytes, 1, whole, &mut Whole::new(&mut scratch.decoding.pixels, (width, height))) {
            let length = 3 * width as usize * height as usize;
            return Ok(Pixels { width, height, bytes: scratch.decoding.pixels.get(..length).unwrap_or_default(), tolerated: None });
        }
    }
    decode_any(bytes, &probe, 1, &mut scratch.decoding)
}

/// Decodes all of an image at 1 / `reduction` of both sides (rounded up) to `scratch.pixels`, unless it is a JPEG of the usual kind, which was
/// tried before; only a JPEG has reductions other than 1.
fn decode_any<'a>(bytes: &[u8], probe: &Probe, reduction: u32, decoding: &'a mut Decoding) -> Result<Pixels<'a>, ImageError> {
    let Decoding { jpeg, pixels, staging } = decoding;
    let mut tolerated = None;
    match probe.format {
        Format::Jpeg => tolerated = jpeg.decode(bytes, reduction, pixels, staging)?,
        Format::Png => tolerated = png::decode(bytes, pixels, staging)?,
        Format::WebP => tolerated = webp::decode(bytes, pixels, staging)?,
        Format::Gif => gif::decode(bytes, pixels, staging)?,
        Format::Bmp => bmp::decode(bytes, pixels)?,
    }
    let (width, height) = (probe.width.div_ceil(reduction), probe.height.div_ceil(reduction));
    if pixels.len() != width as usize * height as usize * 3 {
        return Err(ImageError::Corrupt { format: probe.format, reason: "its headers contradict each other about its size".to_owned() });
    }
    Ok(Pixels { width, height, bytes: pixels, tolerated })
}
