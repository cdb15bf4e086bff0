//! From decoded RGB to the model's input: bicubic resize of a part, then normalised planes.
//!
//! Comes in: RGB and the [`Window`] of it that is wanted. Goes out: `[3, S, S]` float32. The resize is Pillow's: Catmull-Rom (a = -0.5) stretched
//! over the pixels that fall into one output pixel, horizontally, then vertically, with 8 bits in between.

use fast_image_resize::{
    FilterType, ResizeAlg, ResizeOptions, Resizer,
    images::{TypedCroppedImage, TypedImage, TypedImageRef},
    pixels::U8x3,
};

use super::{CropBox, ImageError, ImageTransform, Part, Pixels, Probe, Scratch, decode_part};
use crate::cause::Tolerated;

/// Which part of an image becomes the output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Window {
    /// The pixels that may be looked at; beyond them the image counts as ended.
    visible: CropBox,
    /// Left edge, top edge, width and height of what is resized, in pixels of the image; within `visible`.
    area: [f64; 4],
}

impl Window {
    /// A crop of the full-size image, in the coordinates of the image at 1 / `reduction` of its size.
    /// As in torchvision, where the crop is cut out before it is resized, pixels outside it have no influence.
    pub(super) fn of_crop(crop: CropBox, reduction: u32) -> Self {
        let (left, right) = (crop.left / reduction, (crop.left + crop.width).div_ceil(reduction));
        let (top, bottom) = (crop.top / reduction, (crop.top + crop.height).div_ceil(reduction));
        let scaled = |value: u32| f64::from(value) / f64::from(reduction);
        Self {
            visible: CropBox { top, left, height: bottom - top, width: right - left },
            area: [scaled(crop.left), scaled(crop.top), scaled(crop.width), scaled(crop.height)],
        }
    }

    /// What remains of an image whose shorter side is resized to `size` and of which the central square is kept. Only that square is computed.
    ///
    /// The longer side becomes ⌊size · long / short⌋ and the margin half of what is over, rounded to even, as in torchvision's `Resize` and
    /// `CenterCrop`.
    pub(super) fn of_central_square(width: u32, height: u32, size: u32) -> Self {
        let short = width.min(height);
        let along = |length: u32| {
            let resized = if length == short { u64::from(size) } else { u64::from(size) * u64::from(length) / u64::from(short) };
            let margin = ((resized - u64::from(size)) as f64 / 2.0).round_ties_even();
            let pixel = f64::from(length) / resized as f64;
            let start = margin * pixel;
            (start, (f64::from(size) * pixel).min(f64::from(length) - start))
        };
        let ((left, area_width), (top, area_height)) = (along(width), along(height));
        Self { visible: CropBox { top: 0, left: 0, height, width }, area: [left, top, area_width, area_height] }
    }

    /// The pixels that a resize to `size` x `size` looks at.
    fn needed(&self, size: u32) -> CropBox {
        let [left, top, width, height] = self.area;
        let (first, end) = needed_along((left, width), size, self.visible.left, self.visible.width);
        let (above, below) = needed_along((top, height), size, self.visible.top, self.visible.height);
        CropBox { top: above, left: first, height: below - above, width: end - first }
    }

    /// The same in the coordinates of a part of the image.
    fn in_part(self, part: CropBox) -> Self {
        let Self { mut visible, area: [left, top, width, height] } = self;
        (visible.left, visible.top) = (visible.left.saturating_sub(part.left), visible.top.saturating_sub(part.top));
        (visible.width, visible.height) = (visible.width.min(part.width - visible.left), visible.height.min(part.height - visible.top));
        Self { visible, area: [left - f64::from(part.left), top - f64::from(part.top), width, height] }
    }
}

/// Resizes; keeps its buffers.
#[derive(Default)]
pub(super) struct Resampler {
    resizer: Resizer,
    /// Result of the horizontal pass, `[rows, size, 3]`.
    narrowed: Vec<u8>,
}

impl Resampler {
    /// Most pixels between the two passes (48 MB). Only the enlargement of a strip some 70,000 rows long needs more.
    const MOST_NARROWED: usize = 16 << 20;

    /// Resizes the window to `size` x `size` RGB pixels in `out`.
    fn resize(&mut self, source: Pixels<'_>, window: Window, size: u32, out: &mut [u8]) -> Result<(), String> {
        let CropBox { left, width, .. } = window.visible;
        let [area_left, area_top, area_width, area_height] = window.area;
        let CropBox { top: first, height: rows, .. } = window.needed(size);
        let source = View::new(source.bytes, (source.width, source.height), (left, first, width, rows))?;
        let columns = (area_left - f64::from(left), area_width);
        let lines = (area_top - f64::from(first), area_height);
        let pixels = size as usize * rows as usize;
        if pixels > Self::MOST_NARROWED {
            // The resizer's own order, vertical first, needs little memory here; it differs by a rounding.
            return self.pass(&source, out, (size, size), &options(columns, lines));
        }
        // Two calls, as the resizer by itself would begin with the vertical pass, which Pillow does not: the 8 bits in between make a difference
        // of 1 in every fifth value.
        let mut narrowed = std::mem::take(&mut self.narrowed);
        narrowed.resize(pixels * 3, 0);
        self.pass(&source, &mut narrowed, (size, rows), &options(columns, (0.0, f64::from(rows))))?;
        let between = View::new(&narrowed, (size, rows), (0, 0, size, rows))?;
        self.pass(&between, out, (size, size), &options((0.0, f64::from(size)), lines))?;
        self.narrowed = narrowed;
        Ok(())
    }

    /// One call of the resizer. The only one, with one type of source and of pixel: every other makes the compiler build the whole resizer,
    /// for all instruction sets, once more.
    fn pass(&mut self, source: &View<'_>, out: &mut [u8], (width, height): (u32, u32), options: &ResizeOptions) -> Result<(), String> {
        let mut target = TypedImage::<U8x3>::from_buffer(width, height, out).map_err(|error| error.to_string())?;
        self.resizer.resize_typed(&source.0, &mut target, options).map_err(|error| error.to_string())
    }
}

/// A part of an RGB image.
struct View<'a>(TypedCroppedImage<'a, TypedImageRef<'a, U8x3>>);

impl<'a> View<'a> {
    /// The part at (left, top, width, height) of an image of (width, height) pixels.
    fn new(bytes: &'a [u8], (width, height): (u32, u32), part: (u32, u32, u32, u32)) -> Result<Self, String> {
        let image = TypedImageRef::from_buffer(width, height, bytes).map_err(|error| error.to_string())?;
        TypedCroppedImage::new(image, part.0, part.1, part.2, part.3).map(Self).map_err(|error| error.to_string())
    }
}

/// The filter, applied to the part from `.0` of length `.1` of the columns and the rows.
fn options(columns: (f64, f64), rows: (f64, f64)) -> ResizeOptions {
    ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom))
        .use_alpha(false)
        .crop(columns.0, rows.0, columns.1, rows.1)
}

/// First and end of the rows (or columns) that a pass looks at, of those from `visible` on; `area`: where what is resized begins, and its length.
fn needed_along((start, length): (f64, f64), size: u32, visible: u32, count: u32) -> (u32, u32) {
    // The filter reaches two output pixels to either side, at least two rows; one row more for rounding.
    let reach = 2.0 * (length / f64::from(size)).max(1.0) + 1.0;
    let first = (start - reach).floor().max(f64::from(visible)) as u32;
    let end = (start + length + reach).ceil().min(f64::from(visible + count)) as u32;
    (first, end)
}

impl ImageTransform {
    /// Decodes, resizes what `window` (of the decoded image's width and height) says and normalises.
    pub(super) fn finish(
        &self,
        bytes: &[u8],
        (probe, reduction): (&Probe, u32),
        window: Window,
        scratch: &mut Scratch,
        out: &mut [f32],
    ) -> Result<Option<Tolerated>, ImageError> {
        assert_eq!(out.len(), self.output_len(), "the output of side {} has three planes", self.size);
        let mut resized = std::mem::take(&mut scratch.resized);
        resized.resize(self.output_len(), 0);
        let tolerated = self.resize(bytes, (probe, reduction), window, scratch, &mut resized);
        normalise(&resized, self.mean, self.std, out);
        scratch.resized = resized;
        tolerated
    }

    /// Decodes and resizes what `window` says to `[S, S, 3]` bytes.
    pub(super) fn resize(
        &self,
        bytes: &[u8],
        (probe, reduction): (&Probe, u32),
        window: Window,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) -> Result<Option<Tolerated>, ImageError> {
        assert_eq!(out.len(), self.output_len(), "the output of side {} has three channels", self.size);
        scratch.release_large_buffers();
        let Part { area, length, tolerated } = decode_part(bytes, probe, reduction, window.needed(self.size), scratch)?;
        let source = Pixels { width: area.width, height: area.height, bytes: scratch.pixels.get(..length).unwrap_or_default(), tolerated };
        scratch
            .resampler
            .resize(source, window.in_part(area), self.size, out)
            .map_err(|reason| ImageError::Corrupt { format: probe.format, reason })?;
        Ok(tolerated)
    }
}

/// RGB to planes of `(value / 255 - mean) / std`, rounded as torchvision's `ToTensor` and `Normalize` round.
///
/// By table: a byte has only 256 values, and the three tables fit the fastest cache.
fn normalise(rgb: &[u8], mean: [f32; 3], std: [f32; 3], out: &mut [f32]) {
    let tables: [[f32; 256]; 3] =
        std::array::from_fn(|channel| std::array::from_fn(|value| (value as f32 / 255.0 - mean[channel]) / std[channel]));
    let area = rgb.len() / 3;
    let (red, rest) = out.split_at_mut(area);
    let (green, blue) = rest.split_at_mut(area);
    for (((pixel, red), green), blue) in rgb.chunks_exact(3).zip(red).zip(green).zip(blue) {
        *red = tables[0][usize::from(pixel[0])];
        *green = tables[1][usize::from(pixel[1])];
        *blue = tables[2][usize::from(pixel[2])];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enlarging_a_long_strip_keeps_the_memory_between_the_passes_bounded() {
        let (width, height, size) = (1, 100_000, 224);
        let strip = vec![77; height as usize * 3];
        let mut resampler = Resampler::default();
        let mut out = vec![0; size as usize * size as usize * 3];
        let window = Window::of_crop(CropBox { top: 0, left: 0, height, width }, 1);
        resampler.resize(Pixels { width, height, bytes: &strip, tolerated: None }, window, size, &mut out).unwrap();
        assert!(out.iter().all(|&value| value == 77));
        assert!(resampler.narrowed.capacity() <= Resampler::MOST_NARROWED * 3);
    }
}
