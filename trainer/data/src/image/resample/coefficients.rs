//! How much each pixel of a row (or column) counts for each pixel of the output.
//!
//! Comes in: how many pixels there are, and which stretch of them becomes how many. Goes out: for each output the weights of the pixels around it, in
//! 16 bits. They are those of Pillow's `Resample.c` as its SIMD version rounds them: Catmull-Rom (a = -0.5), stretched over the pixels that fall
//! into one output, normalised, with as many bits behind the point as the greatest of them leaves in 16.

/// Pixels to either side that the filter reaches, where nothing is reduced.
const SUPPORT: f64 = 2.0;

/// Most bits behind the point: 32 less those of a sample and two for sums beyond 1 and below 0, and one for the sign.
const MOST_BITS: u32 = 32 - 8 - 2 - 1;

/// First value that a weight in 16 bits cannot have.
const BEYOND: f64 = 32_768.0;

/// The largest number below a half: what is added to it and cut off is rounded, halves away from zero.
const HALF: f64 = 0.499_999_999_999_999_94;

/// Pairs of weights of an output, zeros at the end included: those of four pixels that do not begin at an even one. Fewer save nothing.
const LEAST_PAIRS: usize = 3;

/// Weights of one direction. Keeps its buffers.
#[derive(Debug, Default)]
pub(super) struct Coefficients {
    /// Weights of all outputs before they are rounded.
    exact: Vec<f64>,
    /// For each output its first pixel, and the end of its weights in `exact`.
    bounds: Vec<(u32, u32)>,
    /// For each output where its weights are. Neither end goes back from one to the next.
    pub(super) places: Vec<Place>,
    /// Weights by two, for a pixel of even number and the one behind it: the first in the lower half. `width` for each output.
    pub(super) pairs: Vec<i32>,
    /// Pairs of an output; the last of them may be zeros.
    pub(super) width: usize,
    /// Bits behind the point of the weights.
    pub(super) bits: u32,
}

/// Pairs of pixels that an output depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) first: usize,
    pub(super) end: usize,
}

/// Where the weights of an output are, and they, by two.
pub(super) type Weights<'a> = (Place, &'a [i32]);

impl Coefficients {
    /// Weights for making `size` pixels of those from `start` to `start + length`, of `count` that there are.
    pub(super) fn compute(&mut self, count: u32, (start, length): (f64, f64), size: u32) {
        self.weigh(count, (start, start + length), size);
        self.round();
    }

    /// The order of operations is that of Pillow's SIMD version, on which the last bits depend.
    fn weigh(&mut self, count: u32, (start, end): (f64, f64), size: u32) {
        let scale = (end - start) / f64::from(size);
        let stretch = scale.max(1.0);
        let (reach, shrink) = (SUPPORT * stretch, 1.0 / stretch);
        self.exact.clear();
        self.bounds.clear();
        for output in 0..size {
            let centre = start + (f64::from(output) + 0.5) * scale;
            let first = (centre - reach).max(0.0) as u32;
            let last = (centre + reach).ceil().min(f64::from(count)) as u32;
            let begin = self.exact.len();
            let middle = centre - 0.5;
            self.exact.extend((first..last.max(first)).map(|pixel| catmull_rom((f64::from(pixel) - middle) * shrink)));
            let weights = self.exact.get_mut(begin..).unwrap_or_default();
            let sum: f64 = weights.iter().sum();
            if sum != 0.0 {
                for weight in weights {
                    *weight /= sum;
                }
            }
            self.bounds.push((first, self.exact.len() as u32));
        }
    }

    fn round(&mut self) {
        let greatest = self.exact.iter().copied().fold(0.0, f64::max);
        // A greatest weight of 1 has 14 bits behind the point, as its next power of two would not fit.
        let fits = |bits: &u32| rounded(greatest * f64::from(1 << (bits + 1))) < BEYOND as i32;
        self.bits = (0..MOST_BITS).take_while(fits).count() as u32;
        let scale = f64::from(1 << self.bits);
        self.places.clear();
        let mut begin = 0;
        for (first, end) in &self.bounds {
            let (first, count) = (*first as usize, (*end - begin) as usize);
            self.places.push(Place { first: first / 2, end: (first + count).div_ceil(2).max(first / 2) });
            begin = *end;
        }
        self.width = self.places.iter().map(|place| place.end - place.first).max().unwrap_or(0).max(LEAST_PAIRS);
        self.pairs.clear();
        self.pairs.resize(self.width * self.places.len(), 0);
        let mut begin = 0;
        for ((first, end), pairs) in self.bounds.iter().zip(self.pairs.chunks_mut(self.width)) {
            let weights = self.exact.get(begin as usize..*end as usize).unwrap_or_default();
            begin = *end;
            for (place, weight) in (*first as usize % 2..).zip(weights) {
                let weight = rounded(weight * scale).clamp(i32::from(i16::MIN), i32::from(i16::MAX));
                if let Some(pair) = pairs.get_mut(place / 2) {
                    *pair |= (weight & 0xffff) << (place % 2 * 16);
                }
            }
        }
    }

    /// The weights of an output, by two.
    pub(super) fn of(&self, output: usize) -> Option<Weights<'_>> {
        let place = *self.places.get(output)?;
        Some((place, self.pairs.get(output * self.width..)?.get(..place.end - place.first)?))
    }
}

/// To the nearest whole number, halves away from zero.
fn rounded(value: f64) -> i32 {
    (value + HALF.copysign(value)) as i32
}

/// Keys' cubic with a = -0.5. Both pieces are computed and one is taken: which it is cannot be foreseen.
fn catmull_rom(distance: f64) -> f64 {
    const A: f64 = -0.5;
    let x = distance.abs();
    let near = ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = (((x - 5.0) * x + 8.0) * x - 4.0) * A;
    let far = if x < 2.0 { far } else { 0.0 };
    if x < 1.0 { near } else { far }
}
