//! From decoded RGB to the model's input: bicubic resize of a part, then normalised planes.
//!
//! Comes in: RGB and the [`Window`] of it that is wanted. Goes out: `[3, S, S]` float32. The resize is Pillow's: Catmull-Rom (a = -0.5) stretched
//! over the pixels that fall into one output pixel, horizontally, then vertically, with 8 bits in between.

use fast_image_resize::{
    FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer,
    images::{CroppedImage, Image, ImageRef},
};

use super::{CropBox, ImageError, ImageTransform, Pixels, Probe, Scratch, decode_reduced};

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
}

/// Resizes; keeps its buffers.
#[derive(Default)]
pub(super) struct Resampler {
    resizer: Resizer,
}

impl Resampler {
    /// Resizes the window to `size` x `size` RGB pixels in `out`.
    fn resize(&mut self, source: Pixels<'_>, window: Window, size: u32, out: &mut [u8]) -> Result<(), String> {
        let CropBox { top, left, height, width } = window.visible;
        let [area_left, area_top, area_width, area_height] = window.area;
        let source = ImageRef::new(source.width, source.height, source.bytes, PixelType::U8x3).map_err(|error| error.to_string())?;
        let source = CroppedImage::new(&source, left, top, width, height).map_err(|error| error.to_string())?;
        let mut target = Image::from_slice_u8(size, size, out, PixelType::U8x3).map_err(|error| error.to_string())?;
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom)).use_alpha(false).crop(
            area_left - f64::from(left),
            area_top - f64::from(top),
            area_width,
            area_height,
        );
        self.resizer.resize(&source, &mut target, &options).map_err(|error| error.to_string())
    }
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
    ) -> Result<(), ImageError> {
        assert_eq!(out.len(), self.output_len(), "the output of side {} has three planes", self.size);
        scratch.release_large_buffers();
        let Pixels { width, height, .. } = decode_reduced(bytes, probe, reduction, scratch)?;
        scratch.resized.resize(self.output_len(), 0);
        let source = Pixels { width, height, bytes: &scratch.pixels };
        scratch
            .resampler
            .resize(source, window, self.size, &mut scratch.resized)
            .map_err(|reason| ImageError::Corrupt { format: probe.format, reason })?;
        normalise(&scratch.resized, self.mean, self.std, out);
        Ok(())
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
