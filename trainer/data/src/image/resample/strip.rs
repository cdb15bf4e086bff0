//! Images of so many rows or columns that what a resize keeps of them would take too much memory.
//!
//! Comes in: a strip. Goes out: its resize. The direction in which it is long is done first, by plain loops, and the other one as ever. For a long column
//! that is not Pillow's order, and may differ by a rounding.

use super::{
    Coefficients, Pixels, Plan, Resampler,
    passes::{ROWS, Two, half, product, sample},
    ring,
};

/// Most bytes of the rows before the passes, and of the ring between them. Photographs need a tenth of a megabyte, and no JPEG a third of this.
const MOST_BYTES: usize = 16 << 20;

/// In which direction a strip is long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Long {
    Row,
    Column,
}

/// Whether a window is one of a strip.
pub(super) fn long(plan: &Plan, lines: &Coefficients) -> Option<Long> {
    let (stride, twos) = ring(lines, plan.size);
    if 3 * plan.width * ROWS > MOST_BYTES {
        Some(Long::Row)
    } else {
        (stride * twos * size_of::<Two>() > MOST_BYTES).then_some(Long::Column)
    }
}

impl Resampler {
    /// Resizes a window of a strip whose weights are computed.
    pub(super) fn resize_strip(&mut self, long: Long, source: Pixels<'_>, plan: Plan, out: &mut [u8]) {
        let mut strip = std::mem::take(&mut self.strip);
        let (stride, size) = (3 * source.width as usize, plan.size);
        let same = (size as u32, (0.0, size as f64), size as u32);
        let rows = source.bytes.get(plan.above * stride..(plan.above + plan.rows) * stride).unwrap_or_default();
        let plan = match long {
            Long::Row => {
                strip.resize(3 * size * plan.rows, 0);
                for (row, target) in rows.chunks_exact(stride).zip(strip.chunks_exact_mut(3 * size)) {
                    pass(row.get(3 * plan.left..).unwrap_or_default(), &self.columns, 3, target);
                }
                self.columns.compute(same.0, same.1, same.2);
                Plan { left: 0, width: size, above: 0, ..plan }
            }
            Long::Column => {
                strip.resize(stride * size, 0);
                pass(rows, &self.lines, stride, &mut strip);
                self.lines.compute(same.0, same.1, same.2);
                Plan { above: 0, rows: size, ..plan }
            }
        };
        let mut resize = self.begin(plan, out);
        strip.chunks_exact(strip.len() / plan.rows.max(1)).for_each(|row| resize.take(row));
        self.strip = strip;
    }
}

/// One pass over samples of which those that belong together stand `step` apart.
fn pass(source: &[u8], weights: &Coefficients, step: usize, out: &mut [u8]) {
    for (output, out) in out.chunks_exact_mut(step).enumerate() {
        let Some((place, pairs)) = weights.of(output) else { return };
        let pixels = source.get(place.first * 2 * step..).unwrap_or_default();
        for (number, out) in out.iter_mut().enumerate() {
            let mut sum = half(weights.bits);
            for (both, pair) in pixels.chunks(2 * step).zip(pairs) {
                let one = |place: usize| both.get(place).map_or(0, |sample| i16::from(*sample));
                sum += product([one(number), one(number + step)], *pair);
            }
            *out = sample(sum, weights.bits);
        }
    }
}
