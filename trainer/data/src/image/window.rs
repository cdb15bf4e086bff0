//! Which part of an image becomes the model's input, in fractions of pixels.
//!
//! Comes in: a crop, or a size of which the central square is kept. Goes out: a [`Window`], and which pixels a resize of it looks at. It sees no
//! pixels.

use super::CropBox;

/// Which part of an image becomes the output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Window {
    /// The pixels that may be looked at; beyond them the image counts as ended.
    pub(super) visible: CropBox,
    /// Left edge, top edge, width and height of what is resized, in pixels of the image; within `visible`.
    pub(super) area: [f64; 4],
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
    pub(super) fn needed(&self, size: u32) -> CropBox {
        let [left, top, width, height] = self.area;
        let (first, end) = needed_along((left, width), size, self.visible.left, self.visible.width);
        let (above, below) = needed_along((top, height), size, self.visible.top, self.visible.height);
        CropBox { top: above, left: first, height: below - above, width: end - first }
    }

    /// The same in the coordinates of a part of the image.
    pub(super) fn in_part(self, part: CropBox) -> Self {
        let Self { mut visible, area: [left, top, width, height] } = self;
        (visible.left, visible.top) = (visible.left.saturating_sub(part.left), visible.top.saturating_sub(part.top));
        (visible.width, visible.height) = (visible.width.min(part.width - visible.left), visible.height.min(part.height - visible.top));
        Self { visible, area: [left - f64::from(part.left), top - f64::from(part.top), width, height] }
    }
}

/// First and end of the rows (or columns) that a pass looks at, of those from `visible` on; `area`: where what is resized begins, and its length.
fn needed_along((start, length): (f64, f64), size: u32, visible: u32, count: u32) -> (u32, u32) {
    // The filter reaches two output pixels to either side, at least two rows; one row more for rounding.
    let reach = 2.0 * (length / f64::from(size)).max(1.0) + 1.0;
    let first = (start - reach).floor().max(f64::from(visible)) as u32;
    let end = (start + length + reach).ceil().min(f64::from(visible + count)) as u32;
    (first, end)
}
