//! Bicubic resize of a part of an image, row by row.
//!
//! Comes in: the [`Window`] that is wanted, and the image's rows from the top down. Goes out: `[S, S, 3]` bytes, the same that Pillow makes: Catmull-Rom
//! (a = -0.5) stretched over the pixels that fall into one output pixel, horizontally, then vertically, with 8 bits in between. A row is resized
//! as soon as it is there, so that a decoder need not keep it. Nothing is allocated once buffers are as large as the images need.

mod avx2;
mod avx512;
mod coefficients;
mod passes;
mod strip;

use super::{CropBox, Pixels, lines::Lines, window::Window};
use coefficients::Coefficients;
use passes::{BEHIND, BLOCK, Between, Passes, QUADS, Quad, ROWS, Rows, Two};

/// Buffers of resizes.
pub(super) struct Resampler {
    passes: Passes,
    columns: Coefficients,
    lines: Coefficients,
    /// The rows that the horizontal pass takes next, and what it needs for it.
    rows: Vec<u8>,
    quads: Box<[Quad; QUADS]>,
    /// What it made of those that are still needed, two rows together, in a ring.
    between: Vec<Two>,
    /// What is left of a strip, see [`strip`].
    strip: Vec<u8>,
}

impl Default for Resampler {
    fn default() -> Self {
        Self::with(Passes::fastest())
    }
}

/// What a window of some rows needs.
#[derive(Clone, Copy)]
struct Plan {
    /// Columns, and how many columns left of them and rows above them are there besides.
    left: usize,
    width: usize,
    above: usize,
    rows: usize,
    size: usize,
}

impl Resampler {
    fn with(passes: Passes) -> Self {
        let (columns, lines) = (Coefficients::default(), Coefficients::default());
        Self { passes, columns, lines, rows: Vec::new(), quads: Box::new([Quad::default(); _]), between: Vec::new(), strip: Vec::new() }
    }

    /// Computes the weights for resizing a window to `size` x `size`.
    fn plan(&mut self, window: Window, size: u32) -> Plan {
        let CropBox { left, width, .. } = window.visible;
        let [area_left, area_top, area_width, area_height] = window.area;
        let CropBox { top: above, height: rows, .. } = window.needed(size);
        self.columns.compute(width, (area_left - f64::from(left), area_width), size);
        self.lines.compute(rows, (area_top - f64::from(above), area_height), size);
        let [left, width, above, rows, size] = [left, width, above, rows, size].map(|value| value as usize);
        Plan { left, width, above, rows, size }
    }

    /// Resizes a window of a JPEG to `size` x `size` RGB pixels in `out`. The rows come one by one, none of its columns beyond the window; when all
    /// that the window needs were there, so is the output.
    pub(super) fn start<'a>(&'a mut self, window: Window, size: u32, out: &'a mut [u8]) -> Resize<'a> {
        let plan = self.plan(window, size);
        self.begin(plan, out)
    }

    fn begin<'a>(&'a mut self, plan: Plan, out: &'a mut [u8]) -> Resize<'a> {
        // Weights of nothing behind an output's last go on beyond the image.
        let length = plan.width + 2 * self.columns.width + BEHIND;
        if self.rows.len() < 3 * ROWS * length {
            self.rows.resize(3 * ROWS * length, 0);
        }
        let (stride, twos) = ring(&self.lines, plan.size);
        if self.between.len() < stride * twos {
            self.between.resize(stride * twos, 0);
        }
        Resize { plan, length, stride, mask: twos - 1, row: 0, done: 0, out, resampler: self }
    }

    /// Resizes a window of an image that is there.
    pub(super) fn resize(&mut self, source: Pixels<'_>, window: Window, size: u32, out: &mut [u8]) {
        let plan = self.plan(window, size);
        if let Some(long) = strip::long(&plan, &self.lines) {
            return self.resize_strip(long, source, plan, out);
        }
        let mut resize = self.begin(plan, out);
        let rows = source.bytes.chunks_exact(3 * source.width.max(1) as usize);
        rows.take(plan.above + plan.rows).for_each(|row| resize.take(row));
    }
}

/// Samples of a row between the passes, and for how many times two rows there is room: those of an output and four rows more, a power of two.
fn ring(lines: &Coefficients, size: usize) -> (usize, usize) {
    // A value more than the row has is written.
    ((3 * size + 1).next_multiple_of(BLOCK), (lines.width + 2).next_power_of_two())
}

/// A resize to which rows are given.
pub(super) struct Resize<'a> {
    resampler: &'a mut Resampler,
    plan: Plan,
    /// Samples of a row of one colour before the passes, and of a row between them.
    length: usize,
    stride: usize,
    mask: usize,
    /// Rows that were there.
    row: usize,
    /// Rows of the output that are done.
    done: usize,
    out: &'a mut [u8],
}

impl Resize<'_> {
    /// Takes the next row of RGB.
    fn take(&mut self, row: &[u8]) {
        let Plan { left, above, .. } = self.plan;
        if self.row >= above {
            let split = self.resampler.passes.split;
            split(row.as_chunks().0.get(left..).unwrap_or_default(), self.line());
        }
        self.filled();
    }

    /// Four rows, or the last ones, are there.
    fn advance(&mut self) {
        let Self { resampler, plan, length, stride, mask, row, done, out } = self;
        let Resampler { passes, columns, lines, rows, quads, between, .. } = &mut **resampler;
        // Behind them by two rows.
        let end = (*row - plan.above).div_ceil(ROWS) * (ROWS / 2);
        let place = ((end - 2) & *mask) * *stride;
        let Some(target) = between.get_mut(place..place + 2 * *stride) else { return };
        (passes.along)(Rows { samples: rows, length: *length }, columns, quads, target.split_at_mut(*stride).into());
        let between = Between { samples: between, stride: *stride, mask: *mask };
        for out in out.chunks_exact_mut(3 * plan.size).skip(*done) {
            let Some(weights) = lines.of(*done).filter(|(place, _)| place.end <= end) else { return };
            (passes.down)(&between, weights, lines.bits, out);
            *done += 1;
        }
    }
}

impl Lines for Resize<'_> {
    fn line(&mut self) -> [&mut [u8]; 3] {
        let (number, width) = (self.row.saturating_sub(self.plan.above) % ROWS, self.plan.width);
        let mut rows = self.resampler.rows.chunks_exact_mut(self.length).skip(3 * number);
        let mut next = || rows.next().and_then(|row| row.get_mut(..width)).unwrap_or_default();
        [next(), next(), next()]
    }

    fn filled(&mut self) {
        let end = self.plan.above + self.plan.rows;
        self.row += 1;
        if self.row > self.plan.above && self.row <= end && ((self.row - self.plan.above).is_multiple_of(ROWS) || self.row == end) {
            self.advance();
        }
    }
}

#[cfg(test)]
mod tests;
