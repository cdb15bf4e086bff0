//! From a file's bytes to the model's input.
//!
//! Comes in: an encoded image and what is wanted of it. Goes out: `[S, S, 3]` bytes or `[3, S, S]` normalised float32. It draws no random number.

use super::{CropBox, Format, ImageError, MEAN, Probe, STD, Scratch, decode_any, probe, window::Window};
use crate::cause::Tolerated;

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

    /// The evaluation transform before it is normalised: `[S, S, 3]` bytes, as of [`ImageTransform::train_bytes`].
    ///
    /// # Panics
    /// When `out` does not hold exactly [`ImageTransform::output_len`] bytes.
    pub fn evaluate_bytes(&self, bytes: &[u8], scratch: &mut Scratch, out: &mut [u8]) -> Result<Option<Tolerated>, ImageError> {
        let probe = probe(bytes)?;
        let window = Window::of_central_square(probe.width, probe.height, self.size);
        self.resize(bytes, (&probe, 1), window, scratch, out)
    }

    /// The largest of 1, 2, 4 and 8 that leaves the crop large enough.
    fn reduction(&self, crop: CropBox) -> u32 {
        let shortest = f64::from(crop.width.min(crop.height));
        [8, 4, 2].into_iter().find(|&reduction| shortest >= f64::from(self.size) * REDUCTION_MARGIN * f64::from(reduction)).unwrap_or(1)
    }

    /// Decodes, resizes what `window` (of the decoded image's width and height) says and normalises.
    fn finish(
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
    fn resize(
        &self,
        bytes: &[u8],
        (probe, reduction): (&Probe, u32),
        window: Window,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) -> Result<Option<Tolerated>, ImageError> {
        assert_eq!(out.len(), self.output_len(), "the output of side {} has three channels", self.size);
        scratch.release_large_buffers();
        let Scratch { decoding, resampler, .. } = scratch;
        if probe.format == Format::Jpeg {
            let wanted = window.needed(self.size);
            let mut resize = resampler.start(window.in_part(wanted), self.size, out);
            if decoding.jpeg.decode_part(bytes, reduction, wanted, &mut resize) {
                return Ok(None);
            }
        }
        let source = decode_any(bytes, probe, reduction, decoding)?;
        resampler.resize(source, window, self.size, out);
        Ok(source.tolerated)
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
    for (((pixel, red), green), blue) in rgb.as_chunks::<3>().0.iter().zip(red).zip(green).zip(blue) {
        *red = tables[0][usize::from(pixel[0])];
        *green = tables[1][usize::from(pixel[1])];
        *blue = tables[2][usize::from(pixel[2])];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Pixels, decode};

    /// Rows that are resized as they are decoded, against an image that is decoded first.
    #[test]
    fn a_jpeg_is_resized_to_the_same_pixels_whether_it_is_there_as_a_whole_or_not() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/image");
        let names = std::fs::read_dir(folder).expect("the folder is listed").map(|entry| entry.expect("an entry").path());
        let (mut scratch, mut seen) = (Scratch::new(), 0);
        for path in names.filter(|path| path.to_string_lossy().contains("jpeg_")) {
            let bytes = std::fs::read(&path).expect("the file is read");
            let whole = decode(&bytes, &mut scratch).expect("it is sound");
            let (width, height, whole) = (whole.width, whole.height, whole.bytes.to_vec());
            let source = Pixels { width, height, bytes: &whole, tolerated: None };
            let crops =
                [(0, 0, width, height), (height / 3, width / 4, width - width / 2, height - height / 2), (height - 1, width - 1, 1, 1)];
            for ((top, left, width, height), size) in crops.into_iter().zip([16, 56, 9]) {
                let transform = ImageTransform::new(size);
                let (mut out, mut expected) = (vec![0; transform.output_len()], vec![0; transform.output_len()]);
                let crop = CropBox { top, left, height, width };
                transform.train_bytes(&bytes, |_, _| crop, &mut scratch, &mut out).expect("it is sound");
                Scratch::new().resampler.resize(source, Window::of_crop(crop, 1), size, &mut expected);
                assert!(out == expected, "{}, {crop}", path.display());
                seen += 1;
            }
        }
        assert!(seen > 60);
    }
}
