//! The inner loops of a resize: a pass along rows, a pass along columns.
//!
//! Comes in: samples of 8 bits and weights of 16. Goes out: samples of 8 bits. All sums are of whole numbers and fit into 32 bits, so that their order
//! makes no difference: what runs on any processor (here) and what needs AVX2 ([`super::avx2`]) give the same.

use super::{
    avx2, avx512,
    coefficients::{Coefficients, Weights},
};

/// Rows that are resized at once.
pub(super) const ROWS: usize = 4;

/// Rows of red, green and blue, each by itself, one behind the other.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) samples: &'a [u8],
    /// From one to the next: the pixels, as many as all weights of an output may go on beyond them, and [`BEHIND`].
    pub(super) length: usize,
}

/// Samples behind the last that some weights may be of: what is read at once goes on as far.
pub(super) const BEHIND: usize = 16;

impl<'a> Rows<'a> {
    /// The colours of a row, from a pair of columns on.
    #[inline]
    pub(super) fn row(self, number: usize, pair: usize) -> [&'a [u8]; 3] {
        let mut rows = self.samples.chunks_exact(self.length).skip(3 * number);
        let mut next = || rows.next().and_then(|row| row.get(2 * pair..)).unwrap_or_default();
        [next(), next(), next()]
    }
}

/// Two neighbouring columns of four rows, of which two lie in each half. Of each row: red of both columns, green of both, blue of both, and nothing.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
pub(super) struct Quad(pub(super) [[i16; 16]; ROWS / 2]);

/// Quads that are made ready at once: 8 kB, which leave room for the rows and the weights in the fastest cache.
pub(super) const QUADS: usize = 128;

/// Samples of two rows between the passes: the upper row's in the lower half.
pub(super) type Two = i32;

/// Samples that [`Passes::down`] computes at once; rows between the passes are a multiple of it long.
pub(super) const BLOCK: usize = 96;

/// The inner loops for a processor.
#[derive(Clone, Copy)]
pub(super) struct Passes {
    /// Pixels to a row of each colour.
    pub(super) split: fn(&[[u8; 3]], [&mut [u8]; 3]),
    /// Rows to as many of the output's columns.
    pub(super) along: fn(Rows<'_>, &Coefficients, &mut [Quad; QUADS], [&mut [Two]; ROWS / 2]),
    /// Rows between the passes to a row of the output.
    pub(super) down: fn(&Between<'_>, Weights<'_>, u32, &mut [u8]),
}

impl Passes {
    /// What is fastest on this processor.
    pub(super) fn fastest() -> Self {
        Self::faster().into_iter().flatten().last().unwrap_or_else(Self::of_any)
    }

    /// What runs anywhere.
    pub(super) fn of_any() -> Self {
        Self { split, along, down }
    }

    /// What this processor can do besides.
    #[expect(unsafe_code, reason = "the processor is asked for the instructions that the functions are compiled for")]
    pub(super) fn faster() -> [Option<Self>; 2] {
        let has_avx2 = is_x86_feature_detected!("avx2");
        let has_avx512 = has_avx2 && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni");
        [has_avx2.then(|| unsafe { avx2::passes() }), has_avx512.then(|| unsafe { avx512::passes() })]
    }
}

/// The rows between the passes that are kept: the latest, two by two, in a ring.
pub(super) struct Between<'a> {
    pub(super) samples: &'a [Two],
    /// Samples of a row, a multiple of [`BLOCK`].
    pub(super) stride: usize,
    /// Rows by two, a power of two, less one.
    pub(super) mask: usize,
}

impl Between<'_> {
    /// The part of two rows that begins at a sample.
    #[inline]
    pub(super) fn block(&self, rows: usize, from: usize) -> Option<&[Two; BLOCK]> {
        self.samples.get((rows & self.mask) * self.stride + from..)?.first_chunk()
    }
}

#[inline]
pub(super) fn split(pixels: &[[u8; 3]], [red, green, blue]: [&mut [u8]; 3]) {
    for (pixel, ((red, green), blue)) in pixels.iter().zip(red.iter_mut().zip(green).zip(blue)) {
        [*red, *green, *blue] = *pixel;
    }
}

pub(super) fn along(rows: Rows<'_>, coefficients: &Coefficients, _quads: &mut [Quad; QUADS], [upper, lower]: [&mut [Two]; ROWS / 2]) {
    let targets = upper.as_chunks_mut::<3>().0.iter_mut().zip(lower.as_chunks_mut::<3>().0);
    for (output, (upper, lower)) in targets.enumerate() {
        let Some((place, pairs)) = coefficients.of(output) else { return };
        let samples: [[i32; 3]; ROWS] = std::array::from_fn(|number| {
            rows.row(number, place.first).map(|row| {
                let products = row.as_chunks::<2>().0.iter().zip(pairs).map(|(both, pair)| product(both.map(i16::from), *pair));
                sample(half(coefficients.bits) + products.sum::<i32>(), coefficients.bits).into()
            })
        });
        *upper = std::array::from_fn(|colour| samples[0][colour] | samples[1][colour] << 16);
        *lower = std::array::from_fn(|colour| samples[2][colour] | samples[3][colour] << 16);
    }
}

fn down(between: &Between<'_>, (place, pairs): Weights<'_>, bits: u32, out: &mut [u8]) {
    for (number, out) in out.chunks_mut(BLOCK).enumerate() {
        let mut sums = [half(bits); BLOCK];
        for (rows, pair) in (place.first..place.end).zip(pairs) {
            let Some(block) = between.block(rows, number * BLOCK) else { return };
            for (sum, both) in sums.iter_mut().zip(block) {
                *sum += product([*both as i16, (both >> 16) as i16], *pair);
            }
        }
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sample(sum, bits));
    }
}

/// What is added so that cutting off rounds.
pub(super) fn half(bits: u32) -> i32 {
    1 << bits >> 1
}

pub(super) fn product([first, second]: [i16; 2], pair: i32) -> i32 {
    i32::from(first) * i32::from(pair as i16) + i32::from(second) * (pair >> 16)
}

pub(super) fn sample(sum: i32, bits: u32) -> u8 {
    (sum >> bits).clamp(0, 255) as u8
}
