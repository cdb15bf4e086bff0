//! Inverse cosine transforms of 8 x 8 coefficients to 8 x 8, 4 x 4, 2 x 2 or 1 x 1 samples.
//!
//! Comes in: coefficients, and what they are multiplied with. Goes out: samples in their plane. The arithmetic is that of libjpeg's accurate integer transform
//! (`jidctint.c` after Loeffler, Ligtenberg and Moschytz 1989, and `jidctred.c`) to the last bit, in 16 and 32 bits as its assembly has it:
//! pairs of 16-bit values times constants of 13 bits behind the point, columns first, 2 bits behind the point between the passes.

use std::arch::x86_64::{
    __m128i, __m256i, _mm_add_epi16, _mm_cvtsi128_si64, _mm_packs_epi16, _mm_packs_epi32, _mm_set1_epi8, _mm_setzero_si128, _mm_sub_epi16,
    _mm_unpackhi_epi8, _mm_unpackhi_epi16, _mm_unpackhi_epi32, _mm_unpackhi_epi64, _mm_unpacklo_epi8, _mm_unpacklo_epi16,
    _mm_unpacklo_epi32, _mm_unpacklo_epi64, _mm_xor_si128, _mm256_add_epi32, _mm256_castsi256_si128, _mm256_cvtepi16_epi32,
    _mm256_extracti128_si256, _mm256_madd_epi16, _mm256_mullo_epi16, _mm256_or_si256, _mm256_set_m128i, _mm256_set1_epi32,
    _mm256_setr_epi64x, _mm256_slli_epi32, _mm256_srai_epi32, _mm256_sub_epi32, _mm256_testz_si256,
};

use super::entropy::NATURAL;

/// Bits behind the point of the constants, and of values between the passes.
const CONSTANT_BITS: i32 = 13;
const BETWEEN_BITS: i32 = 2;

/// What the coefficients of a block are multiplied with, by their places in the block.
pub(super) type Factors = [[i16; 16]; 4];

/// From the order of the data.
pub(super) fn factors(quantization: &[i16; 64]) -> Factors {
    let mut factors = [0; 64];
    for (place, factor) in NATURAL.into_iter().zip(quantization) {
        factors[usize::from(place)] = *factor;
    }
    bytemuck::cast(factors)
}

/// Writes the samples of a block to a plane of `stride` columns, from place `at` on. Nothing when the plane ends before.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn put_block(block: &[i16; 64], factors: &Factors, size: usize, plane: &mut [u8], at: usize, stride: usize) -> Option<()> {
    let plane = plane.get_mut(at..)?;
    let two: [__m256i; 4] = bytemuck::cast_ref::<_, [[i16; 16]; 4]>(block).map(bytemuck::cast);
    // Where there are coefficients besides the mean; and where beyond the first four columns and rows.
    let (others, columns) = (_mm256_setr_epi64x(!0xffff, -1, -1, -1), _mm256_setr_epi64x(0, -1, 0, -1));
    let below = _mm256_or_si256(two[2], two[3]);
    let behind = _mm256_or_si256(two[1], below);
    if size == 1 || _mm256_testz_si256(two[0], others) & _mm256_testz_si256(behind, behind) == 1 {
        // The mean alone, 8 times as large; both passes of each transform come to this.
        let shifted = i32::from(block[0].wrapping_mul(factors[0][0]) << BETWEEN_BITS);
        let value = (((shifted + 16) >> 5).clamp(-128, 127) + 128) as u8;
        return match size {
            8 => put(&[[value; 8]; 8], plane, stride),
            4 => put(&[[value; 8]; 4], plane, stride),
            2 => put(&[[value; 8]; 2], plane, stride),
            _ => put(&[[value; 8]; 1], plane, stride),
        };
    }
    let rows: [__m256i; 4] = std::array::from_fn(|number| _mm256_mullo_epi16(two[number], bytemuck::cast(factors[number])));
    let rows: &[__m128i; 8] = &bytemuck::cast(rows);
    let quarter_alone = _mm256_testz_si256(_mm256_or_si256(two[0], two[1]), columns) & _mm256_testz_si256(below, below) == 1;
    match size {
        8 if quarter_alone => put(&whole_of_quarter(rows), plane, stride),
        8 => put(&whole(rows), plane, stride),
        4 => put(&half(rows), plane, stride),
        _ => put(&quarter(rows), plane, stride),
    }
}

#[inline]
fn put<const N: usize>(rows: &[[u8; 8]; N], plane: &mut [u8], stride: usize) -> Option<()> {
    let plane = plane.get_mut(..(N - 1) * stride + N)?;
    for (row, target) in rows.iter().zip(plane.chunks_mut(stride)) {
        *target.first_chunk_mut::<N>()? = *row.first_chunk()?;
    }
    Some(())
}

/// Two constants, for the values of [`pair`].
#[target_feature(enable = "avx2")]
#[inline]
fn constants(first: i16, second: i16) -> __m256i {
    _mm256_set1_epi32(i32::from(second) << 16 | i32::from(first) & 0xffff)
}

/// Eight values of each of two rows, as pairs.
#[target_feature(enable = "avx2")]
#[inline]
fn pair(first: __m128i, second: __m128i) -> __m256i {
    _mm256_set_m128i(_mm_unpackhi_epi16(first, second), _mm_unpacklo_epi16(first, second))
}

#[target_feature(enable = "avx2")]
#[inline]
fn times(pairs: __m256i, first: i16, second: i16) -> __m256i {
    _mm256_madd_epi16(pairs, constants(first, second))
}

/// Takes `BITS` bits away and keeps 16.
#[target_feature(enable = "avx2")]
#[inline]
fn narrowed<const BITS: i32>(values: __m256i) -> __m128i {
    let values = _mm256_srai_epi32::<BITS>(values);
    _mm_packs_epi32(_mm256_castsi256_si128(values), _mm256_extracti128_si256::<1>(values))
}

/// Half of what [`narrowed`] takes away is added to one side of each sum, so that it rounds.
#[target_feature(enable = "avx2")]
#[inline]
fn with_half<const BITS: i32>(values: __m256i) -> __m256i {
    _mm256_add_epi32(values, _mm256_set1_epi32(1 << (BITS - 1)))
}

/// Sums and differences of the even and the odd part.
#[target_feature(enable = "avx2")]
#[inline]
fn joined<const BITS: i32>(even: [__m256i; 4], odd: [__m256i; 4]) -> [__m128i; 8] {
    let even = [with_half::<BITS>(even[0]), with_half::<BITS>(even[1]), with_half::<BITS>(even[2]), with_half::<BITS>(even[3])];
    [
        narrowed::<BITS>(_mm256_add_epi32(even[0], odd[0])),
        narrowed::<BITS>(_mm256_add_epi32(even[1], odd[1])),
        narrowed::<BITS>(_mm256_add_epi32(even[2], odd[2])),
        narrowed::<BITS>(_mm256_add_epi32(even[3], odd[3])),
        narrowed::<BITS>(_mm256_sub_epi32(even[3], odd[3])),
        narrowed::<BITS>(_mm256_sub_epi32(even[2], odd[2])),
        narrowed::<BITS>(_mm256_sub_epi32(even[1], odd[1])),
        narrowed::<BITS>(_mm256_sub_epi32(even[0], odd[0])),
    ]
}

/// One pass of the whole transform over eight columns at once.
#[target_feature(enable = "avx2")]
#[inline]
fn whole_pass<const BITS: i32>(rows: &[__m128i; 8]) -> [__m128i; 8] {
    let even = pair(rows[2], rows[6]);
    let (two, three) = (times(even, 4433, -10704), times(even, 10703, 4433));
    let sum = _mm256_slli_epi32::<CONSTANT_BITS>(_mm256_cvtepi16_epi32(_mm_add_epi16(rows[0], rows[4])));
    let difference = _mm256_slli_epi32::<CONSTANT_BITS>(_mm256_cvtepi16_epi32(_mm_sub_epi16(rows[0], rows[4])));
    let even =
        [_mm256_add_epi32(sum, three), _mm256_add_epi32(difference, two), _mm256_sub_epi32(difference, two), _mm256_sub_epi32(sum, three)];
    let crossed = pair(_mm_add_epi16(rows[7], rows[3]), _mm_add_epi16(rows[5], rows[1]));
    let (third, fourth) = (times(crossed, -6436, 9633), times(crossed, 9633, 6437));
    let (outer, inner) = (pair(rows[7], rows[1]), pair(rows[5], rows[3]));
    let odd = [
        _mm256_add_epi32(times(outer, -7373, 4926), fourth),
        _mm256_add_epi32(times(inner, -20995, 4177), third),
        _mm256_add_epi32(times(inner, -4176, -20995), fourth),
        _mm256_add_epi32(times(outer, -4927, -7373), third),
    ];
    joined::<BITS>(even, odd)
}

/// The same where rows 4 to 7 are zero.
#[target_feature(enable = "avx2")]
#[inline]
fn pass_of_four<const BITS: i32>(rows: [__m128i; 4]) -> [__m128i; 8] {
    let (even, odd) = (pair(rows[0], rows[2]), pair(rows[1], rows[3]));
    let even = [times(even, 8192, 10703), times(even, 8192, 4433), times(even, 8192, -4433), times(even, 8192, -10703)];
    let odd = [times(odd, 11363, 9633), times(odd, 9633, -2259), times(odd, 6437, -11362), times(odd, 2260, -6436)];
    joined::<BITS>(even, odd)
}

/// One pass to four samples of each column.
#[target_feature(enable = "avx2")]
#[inline]
fn half_pass<const BITS: i32>(rows: &[__m128i; 8]) -> [__m128i; 4] {
    let mean = with_half::<BITS>(_mm256_slli_epi32::<{ CONSTANT_BITS + 1 }>(_mm256_cvtepi16_epi32(rows[0])));
    let even = times(pair(rows[2], rows[6]), 15137, -6270);
    let (outer, inner) = (pair(rows[7], rows[5]), pair(rows[3], rows[1]));
    let zero = _mm256_add_epi32(times(outer, -1730, 11893), times(inner, -17799, 8697));
    let two = _mm256_add_epi32(times(outer, -4176, -4926), times(inner, 7373, 20995));
    let (sum, difference) = (_mm256_add_epi32(mean, even), _mm256_sub_epi32(mean, even));
    [
        narrowed::<BITS>(_mm256_add_epi32(sum, two)),
        narrowed::<BITS>(_mm256_add_epi32(difference, zero)),
        narrowed::<BITS>(_mm256_sub_epi32(difference, zero)),
        narrowed::<BITS>(_mm256_sub_epi32(sum, two)),
    ]
}

/// One pass to two samples of each column.
#[target_feature(enable = "avx2")]
#[inline]
fn quarter_pass<const BITS: i32>(rows: &[__m128i; 8]) -> [__m128i; 2] {
    let mean = with_half::<BITS>(_mm256_slli_epi32::<{ CONSTANT_BITS + 2 }>(_mm256_cvtepi16_epi32(rows[0])));
    let odd = _mm256_add_epi32(times(pair(rows[7], rows[5]), -5906, 6967), times(pair(rows[3], rows[1]), -10426, 29692));
    [narrowed::<BITS>(_mm256_add_epi32(mean, odd)), narrowed::<BITS>(_mm256_sub_epi32(mean, odd))]
}

#[target_feature(enable = "avx2")]
#[inline]
fn whole(rows: &[__m128i; 8]) -> [[u8; 8]; 8] {
    let columns = transposed(&whole_pass::<{ CONSTANT_BITS - BETWEEN_BITS }>(rows));
    bytes(&whole_pass::<{ CONSTANT_BITS + BETWEEN_BITS + 3 }>(&columns))
}

#[target_feature(enable = "avx2")]
#[inline]
fn whole_of_quarter(rows: &[__m128i; 8]) -> [[u8; 8]; 8] {
    let [r0, r1, r2, r3, ..] = *rows;
    let [c0, c1, c2, c3, ..] = transposed(&pass_of_four::<{ CONSTANT_BITS - BETWEEN_BITS }>([r0, r1, r2, r3]));
    bytes(&pass_of_four::<{ CONSTANT_BITS + BETWEEN_BITS + 3 }>([c0, c1, c2, c3]))
}

#[target_feature(enable = "avx2")]
#[inline]
fn half(rows: &[__m128i; 8]) -> [[u8; 8]; 4] {
    let none = _mm_setzero_si128();
    let [r0, r1, r2, r3] = half_pass::<{ CONSTANT_BITS - BETWEEN_BITS + 1 }>(rows);
    let columns = transposed(&[r0, r1, r2, r3, none, none, none, none]);
    let [c0, c1, c2, c3] = half_pass::<{ CONSTANT_BITS + BETWEEN_BITS + 4 }>(&columns);
    let [a, b, c, d, ..] = bytes(&[c0, c1, c2, c3, none, none, none, none]);
    [a, b, c, d]
}

#[target_feature(enable = "avx2")]
#[inline]
fn quarter(rows: &[__m128i; 8]) -> [[u8; 8]; 2] {
    let none = _mm_setzero_si128();
    let [r0, r1] = quarter_pass::<{ CONSTANT_BITS - BETWEEN_BITS + 2 }>(rows);
    let columns = transposed(&[r0, r1, none, none, none, none, none, none]);
    let [c0, c1] = quarter_pass::<{ CONSTANT_BITS + BETWEEN_BITS + 5 }>(&columns);
    let [a, b, ..] = bytes(&[c0, c1, none, none, none, none, none, none]);
    [a, b]
}

/// Rows to columns.
#[target_feature(enable = "avx2")]
#[inline]
fn transposed(rows: &[__m128i; 8]) -> [__m128i; 8] {
    let [r0, r1, r2, r3, r4, r5, r6, r7] = *rows;
    let (a0, a1, a2, a3) = (_mm_unpacklo_epi16(r0, r1), _mm_unpacklo_epi16(r2, r3), _mm_unpacklo_epi16(r4, r5), _mm_unpacklo_epi16(r6, r7));
    let (a4, a5, a6, a7) = (_mm_unpackhi_epi16(r0, r1), _mm_unpackhi_epi16(r2, r3), _mm_unpackhi_epi16(r4, r5), _mm_unpackhi_epi16(r6, r7));
    let (b0, b1, b2, b3) = (_mm_unpacklo_epi32(a0, a1), _mm_unpackhi_epi32(a0, a1), _mm_unpacklo_epi32(a2, a3), _mm_unpackhi_epi32(a2, a3));
    let (b4, b5, b6, b7) = (_mm_unpacklo_epi32(a4, a5), _mm_unpackhi_epi32(a4, a5), _mm_unpacklo_epi32(a6, a7), _mm_unpackhi_epi32(a6, a7));
    [
        _mm_unpacklo_epi64(b0, b2),
        _mm_unpackhi_epi64(b0, b2),
        _mm_unpacklo_epi64(b1, b3),
        _mm_unpackhi_epi64(b1, b3),
        _mm_unpacklo_epi64(b4, b6),
        _mm_unpackhi_epi64(b4, b6),
        _mm_unpacklo_epi64(b5, b7),
        _mm_unpackhi_epi64(b5, b7),
    ]
}

/// Columns of values around zero to rows of samples.
#[target_feature(enable = "avx2")]
#[inline]
fn bytes(columns: &[__m128i; 8]) -> [[u8; 8]; 8] {
    let [c0, c1, c2, c3, c4, c5, c6, c7] = *columns;
    let middle = _mm_set1_epi8(-128);
    let sample = |first, second| _mm_xor_si128(_mm_packs_epi16(first, second), middle);
    // Columns 0 and 4, 1 and 5, ...: after three unpackings a row lies in its order.
    let (a, b, c, d) = (sample(c0, c4), sample(c1, c5), sample(c2, c6), sample(c3, c7));
    let (low02, high02) = (_mm_unpacklo_epi8(a, c), _mm_unpackhi_epi8(a, c));
    let (low13, high13) = (_mm_unpacklo_epi8(b, d), _mm_unpackhi_epi8(b, d));
    let (left0, left4) = (_mm_unpacklo_epi8(low02, low13), _mm_unpackhi_epi8(low02, low13));
    let (right0, right4) = (_mm_unpacklo_epi8(high02, high13), _mm_unpackhi_epi8(high02, high13));
    let rows = [
        _mm_unpacklo_epi32(left0, right0),
        _mm_unpackhi_epi32(left0, right0),
        _mm_unpacklo_epi32(left4, right4),
        _mm_unpackhi_epi32(left4, right4),
    ];
    let mut samples = [[0; 8]; 8];
    for (two, row) in samples.as_chunks_mut::<2>().0.iter_mut().zip(rows) {
        two[0] = _mm_cvtsi128_si64(row).to_le_bytes();
        two[1] = _mm_cvtsi128_si64(_mm_unpackhi_epi64(row, row)).to_le_bytes();
    }
    samples
}
