//! Which part of an image is kept.
//!
//! Comes in: an image's size and uniform random numbers. Goes out: a [`CropBox`] within the image. It sees no pixels.

use std::fmt;

/// A rectangle of pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CropBox {
    /// Rows above it.
    pub top: u32,
    /// Columns left of it.
    pub left: u32,
    /// Its rows.
    pub height: u32,
    /// Its columns.
    pub width: u32,
}

impl CropBox {
    /// Whether it has pixels and all of them belong to an image of this size.
    #[must_use]
    pub fn lies_within(&self, width: u32, height: u32) -> bool {
        let fits = |start: u32, length: u32, whole: u32| length > 0 && start.checked_add(length).is_some_and(|end| end <= whole);
        fits(self.left, self.width, width) && fits(self.top, self.height, height)
    }
}

impl fmt::Display for CropBox {
    /// As `lcl data show --crop` takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{},{},{}", self.top, self.left, self.height, self.width)
    }
}

/// Tries before the central crop is taken; torchvision's number.
const TRIES: usize = 10;

/// A box of random area and aspect ratio, as torchvision's `RandomResizedCrop.get_params` draws it.
///
/// `scale` bounds the box's part of the image's area, `ratio` its width / height; the area is uniform, the ratio log-uniform. `uniform` returns
/// numbers in [0, 1): for each of at most ten tries one for the area, one for the ratio and, when the box fits, one each for the row and
/// the column. When none fits, the central box whose ratio is nearest to the image's is taken.
pub fn random_resized_crop(width: u32, height: u32, scale: [f64; 2], ratio: [f64; 2], uniform: &mut impl FnMut() -> f64) -> CropBox {
    let area = f64::from(width) * f64::from(height);
    let log_ratio = ratio.map(f64::ln);
    for _ in 0..TRIES {
        let target_area = area * between(scale, uniform());
        let aspect_ratio = between(log_ratio, uniform()).exp();
        let crop_width = (target_area * aspect_ratio).sqrt().round_ties_even();
        let crop_height = (target_area / aspect_ratio).sqrt().round_ties_even();
        if crop_width >= 1.0 && crop_width <= f64::from(width) && crop_height >= 1.0 && crop_height <= f64::from(height) {
            let (crop_width, crop_height) = (crop_width as u32, crop_height as u32);
            let top = below(height - crop_height + 1, uniform());
            let left = below(width - crop_width + 1, uniform());
            return CropBox { top, left, height: crop_height, width: crop_width };
        }
    }
    central_crop(width, height, ratio)
}

fn between([low, high]: [f64; 2], uniform: f64) -> f64 {
    low + (high - low) * uniform
}

/// A whole number in `0..end`.
fn below(end: u32, uniform: f64) -> u32 {
    ((f64::from(end) * uniform) as u32).min(end - 1)
}

fn central_crop(width: u32, height: u32, ratio: [f64; 2]) -> CropBox {
    let in_ratio = f64::from(width) / f64::from(height);
    let side = |length: f64, limit: u32| (length.round_ties_even() as u32).clamp(1, limit);
    let (crop_width, crop_height) = if in_ratio < ratio[0] {
        (width, side(f64::from(width) / ratio[0], height))
    } else if in_ratio > ratio[1] {
        (side(f64::from(height) * ratio[1], width), height)
    } else {
        (width, height)
    };
    CropBox { top: (height - crop_height) / 2, left: (width - crop_width) / 2, height: crop_height, width: crop_width }
}
