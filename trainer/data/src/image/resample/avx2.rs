//! The inner loops of a resize, for processors with AVX2.
//!
//! Comes in and goes out: as in [`super::passes`]. A pair of samples times a pair of weights, both added, is one instruction.

use std::arch::x86_64::{
    __m256i, _mm_unpackhi_epi16, _mm_unpacklo_epi16, _mm256_add_epi32, _mm256_castsi256_si128, _mm256_extracti128_si256, _mm256_madd_epi16,
    _mm256_max_epi16, _mm256_min_epi16, _mm256_packs_epi32, _mm256_packus_epi16, _mm256_permutevar8x32_epi32, _mm256_set_m128i,
    _mm256_set1_epi16, _mm256_set1_epi32, _mm256_setr_epi32, _mm256_setzero_si256, _mm256_srav_epi32, _mm256_unpackhi_epi8,
    _mm256_unpackhi_epi16, _mm256_unpackhi_epi32, _mm256_unpacklo_epi8, _mm256_unpacklo_epi16, _mm256_unpacklo_epi32,
};

use super::{
    coefficients::{Coefficients, Place, Weights},
    passes::{self, BLOCK, Between, Passes, QUADS, Quad, ROWS, Rows, Two},
};

/// The loops as such; whoever calls it has asked the processor.
#[target_feature(enable = "avx2")]
pub(super) fn passes() -> Passes {
    Passes { split, along, down }
}

#[target_feature(enable = "avx2")]
fn split(pixels: &[[u8; 3]], colours: [&mut [u8]; 3]) {
    passes::split(pixels, colours);
}

#[target_feature(enable = "avx2")]
fn along(rows: Rows<'_>, coefficients: &Coefficients, quads: &mut [Quad; QUADS], targets: [&mut [Two]; ROWS / 2]) {
    along_by(add, (rows, coefficients), quads, targets);
}

/// Adds up columns that lie next to each other.
pub(super) type Add = fn(&[Quad], Columns<'_>, u32, [&mut [Two]; ROWS / 2]);

/// Columns of the output: where the first of them begins among the quads, and where each is, with as many pairs of weights.
#[derive(Clone, Copy)]
pub(super) struct Columns<'a> {
    pub(super) first: usize,
    pub(super) places: &'a [Place],
    pub(super) pairs: &'a [i32],
    pub(super) width: usize,
}

#[target_feature(enable = "avx2")]
pub(super) fn along_by(
    add: Add,
    (rows, coefficients): (Rows<'_>, &Coefficients),
    quads: &mut [Quad; QUADS],
    [mut upper, mut lower]: [&mut [Two]; ROWS / 2],
) {
    let Coefficients { places, pairs, width, bits, .. } = coefficients;
    if *width > QUADS / 2 {
        return passes::along(rows, coefficients, quads, [upper, lower]);
    }
    let (mut places, mut pairs) = (places.as_slice(), pairs.as_slice());
    while let Some(Place { first, .. }) = places.first() {
        // As many outputs as these quads are enough for.
        let count = places.partition_point(|place| place.first + width <= first + QUADS);
        let (these, rest) = places.split_at(count);
        let (weights, rest_of_pairs) = pairs.split_at(count * width);
        let last = these.last().map_or(0, |place| place.first - first + width);
        for half in 0..ROWS / 2 {
            let quads = quads.get_mut(..last.next_multiple_of(8)).unwrap_or_default();
            widen(half, rows.row(2 * half, *first), rows.row(2 * half + 1, *first), quads);
        }
        let columns = Columns { first: *first, places: these, pairs: weights, width: *width };
        add(quads, columns, *bits, [&mut *upper, &mut *lower]);
        let (Some(next_upper), Some(next_lower)) = (upper.get_mut(3 * count..), lower.get_mut(3 * count..)) else { return };
        (places, pairs, upper, lower) = (rest, rest_of_pairs, next_upper, next_lower);
    }
}

/// The loops over columns, for a `sums` with the same instructions: a function cannot take these as a parameter.
macro_rules! add_columns {
    ($instructions:literal) => {
        #[target_feature(enable = $instructions)]
        fn add(quads: &[Quad], columns: Columns<'_>, bits: u32, targets: [&mut [Two]; ROWS / 2]) {
            // Photographs of up to six times the output's size. Where the processor knows how many turns there are, it begins the next column before this
            // one is done.
            match columns.width {
                3 => add_by::<3>(quads, columns, bits, targets),
                4 => add_by::<4>(quads, columns, bits, targets),
                5 => add_by::<5>(quads, columns, bits, targets),
                6 => add_by::<6>(quads, columns, bits, targets),
                7 => add_by::<7>(quads, columns, bits, targets),
                8 => add_by::<8>(quads, columns, bits, targets),
                9 => add_by::<9>(quads, columns, bits, targets),
                10 => add_by::<10>(quads, columns, bits, targets),
                11 => add_by::<11>(quads, columns, bits, targets),
                12 => add_by::<12>(quads, columns, bits, targets),
                width => {
                    let [upper, lower] = targets;
                    let outputs = columns.places.iter().zip(columns.pairs.chunks_exact(width)).enumerate();
                    for (output, (place, pairs)) in outputs {
                        let Some(quads) = quads.get(place.first - columns.first..) else { return };
                        put(sums(quads, pairs, bits), bits, (&mut *upper, &mut *lower), output);
                    }
                }
            }
        }

        /// For outputs of N pairs of weights.
        #[target_feature(enable = $instructions)]
        fn add_by<const N: usize>(quads: &[Quad], columns: Columns<'_>, bits: u32, [upper, lower]: [&mut [Two]; ROWS / 2]) {
            let outputs = columns.places.iter().zip(columns.pairs.as_chunks::<N>().0).enumerate();
            for (output, (place, pairs)) in outputs {
                let Some(quads) = quads.get(place.first - columns.first..).and_then(<[Quad]>::first_chunk::<N>) else { return };
                put(sums(quads, pairs, bits), bits, (&mut *upper, &mut *lower), output);
            }
        }
    };
}
pub(super) use add_columns;

add_columns!("avx2");

/// The sums of a column: of two rows each.
#[target_feature(enable = "avx2")]
#[inline]
fn sums(quads: &[Quad], pairs: &[i32], bits: u32) -> [__m256i; 2] {
    let mut sums = [_mm256_set1_epi32(1 << bits >> 1); 2];
    for (quad, pair) in quads.iter().zip(pairs) {
        let [upper, lower] = quad.0.map(bytemuck::cast);
        let pair = _mm256_set1_epi32(*pair);
        sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(upper, pair));
        sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(lower, pair));
    }
    sums
}

/// Makes a half of quads of two rows.
#[target_feature(enable = "avx2")]
#[inline]
fn widen(half: usize, upper: [&[u8]; 3], lower: [&[u8]; 3], quads: &mut [Quad]) {
    let [r, g, b] = upper.map(|row| row.as_chunks::<16>().0);
    let [lower_r, lower_g, lower_b] = lower.map(|row| row.as_chunks::<16>().0);
    let samples = r.iter().zip(lower_r).zip(g.iter().zip(lower_g)).zip(b.iter().zip(lower_b));
    let none = _mm256_setzero_si256();
    for (quads, ((r, g), b)) in quads.as_chunks_mut::<8>().0.iter_mut().zip(samples) {
        let both = |(upper, lower): (&[u8; 16], &[u8; 16])| _mm256_set_m128i(bytemuck::cast(*lower), bytemuck::cast(*upper));
        let (r, g, b) = (both(r), both(g), both(b));
        // Columns 0 to 7 and 8 to 15.
        let (front, front_b) = (_mm256_unpacklo_epi16(r, g), _mm256_unpacklo_epi16(b, none));
        let (back, back_b) = (_mm256_unpackhi_epi16(r, g), _mm256_unpackhi_epi16(b, none));
        let fours = [
            _mm256_unpacklo_epi32(front, front_b),
            _mm256_unpackhi_epi32(front, front_b),
            _mm256_unpacklo_epi32(back, back_b),
            _mm256_unpackhi_epi32(back, back_b),
        ];
        for ([first, second], four) in quads.as_chunks_mut::<2>().0.iter_mut().zip(fours) {
            first.0[half] = bytemuck::cast(_mm256_unpacklo_epi8(four, none));
            second.0[half] = bytemuck::cast(_mm256_unpackhi_epi8(four, none));
        }
    }
}

/// Puts the samples of a column of the output into rows between the passes, by their sums for two rows each.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn put([first, second]: [__m256i; 2], bits: u32, (upper, lower): (&mut [Two], &mut [Two]), output: usize) {
    let bits = _mm256_set1_epi32(bits.cast_signed());
    let samples = _mm256_packs_epi32(_mm256_srav_epi32(first, bits), _mm256_srav_epi32(second, bits));
    let samples = _mm256_min_epi16(_mm256_max_epi16(samples, _mm256_setzero_si256()), _mm256_set1_epi16(255));
    let (even, odd) = (_mm256_castsi256_si128(samples), _mm256_extracti128_si256::<1>(samples));
    // A fourth value behind the three colours, which the next column overwrites.
    if let (Some(upper), Some(lower)) = (upper.get_mut(3 * output..3 * output + 4), lower.get_mut(3 * output..3 * output + 4))
        && let (Some(upper), Some(lower)) = (upper.first_chunk_mut::<4>(), lower.first_chunk_mut::<4>())
    {
        *upper = bytemuck::cast(_mm_unpacklo_epi16(even, odd));
        *lower = bytemuck::cast(_mm_unpackhi_epi16(even, odd));
    }
}

#[target_feature(enable = "avx2")]
fn down(between: &Between<'_>, (place, pairs): Weights<'_>, bits: u32, out: &mut [u8]) {
    let (blocks, rest) = out.as_chunks_mut::<BLOCK>();
    let count = blocks.len();
    for (number, block) in blocks.iter_mut().enumerate() {
        let Some(samples) = down_block(between, (place, pairs), bits, number) else { return };
        *block = samples;
    }
    if !rest.is_empty()
        && let Some(samples) = down_block(between, (place, pairs), bits, count)
    {
        rest.iter_mut().zip(samples).for_each(|(target, sample)| *target = sample);
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn down_block(between: &Between<'_>, (place, pairs): Weights<'_>, bits: u32, number: usize) -> Option<[u8; BLOCK]> {
    let mut sums = [_mm256_set1_epi32(1 << bits >> 1); BLOCK / 8];
    for (rows, pair) in (place.first..place.end).zip(pairs) {
        let block: [__m256i; BLOCK / 8] = bytemuck::cast(*between.block(rows, number * BLOCK)?);
        let pair = _mm256_set1_epi32(*pair);
        for (sum, both) in sums.iter_mut().zip(block) {
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(both, pair));
        }
    }
    let bits = _mm256_set1_epi32(bits.cast_signed());
    let mut samples = [[0_u8; 32]; BLOCK / 32];
    for (samples, sums) in samples.iter_mut().zip(sums.as_chunks::<4>().0) {
        let [a, b, c, d] = *sums;
        let shifted = |sum| _mm256_srav_epi32(sum, bits);
        let (front, back) = (_mm256_packs_epi32(shifted(a), shifted(b)), _mm256_packs_epi32(shifted(c), shifted(d)));
        // Packing takes four of each half in turn.
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        *samples = bytemuck::cast(_mm256_permutevar8x32_epi32(_mm256_packus_epi16(front, back), order));
    }
    Some(bytemuck::cast(samples))
}
