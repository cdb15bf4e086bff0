//! The inner loops of a resize, for processors with AVX-512 and its instructions for neural networks.
//!
//! Comes in and goes out: as in [`super::passes`]. A pair of samples times a pair of weights, both added to a sum, is one instruction for all four rows.

use std::arch::x86_64::{
    __m256i, _mm512_add_epi32, _mm512_castsi256_si512, _mm512_castsi512_si256, _mm512_dpwssd_epi32, _mm512_extracti64x4_epi64,
    _mm512_inserti64x4, _mm512_set1_epi32, _mm512_setzero_si512,
};

use super::{
    avx2::{self, Columns, add_columns, along_by, put},
    coefficients::Coefficients,
    passes::{Passes, QUADS, Quad, ROWS, Rows, Two},
};

/// The loops as such; whoever calls it has asked the processor.
#[target_feature(enable = "avx2,avx512f,avx512vnni")]
pub(super) fn passes() -> Passes {
    Passes { along, ..avx2::passes() }
}

#[target_feature(enable = "avx2,avx512f,avx512vnni")]
fn along(rows: Rows<'_>, coefficients: &Coefficients, quads: &mut [Quad; QUADS], targets: [&mut [Two]; ROWS / 2]) {
    along_by(add, (rows, coefficients), quads, targets);
}

add_columns!("avx2,avx512f,avx512vnni");

/// The sums of a column: of two rows each.
#[target_feature(enable = "avx2,avx512f,avx512vnni")]
#[inline]
fn sums(quads: &[Quad], pairs: &[i32], bits: u32) -> [__m256i; 2] {
    // In turns, as each sum takes its time.
    let mut sums = [_mm512_set1_epi32(1 << bits >> 1), _mm512_setzero_si512()];
    for (number, (quad, pair)) in quads.iter().zip(pairs).enumerate() {
        let [first, second] = quad.0.map(bytemuck::cast);
        let quad = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), second);
        sums[number % 2] = _mm512_dpwssd_epi32(sums[number % 2], quad, _mm512_set1_epi32(*pair));
    }
    let sums = _mm512_add_epi32(sums[0], sums[1]);
    [_mm512_castsi512_si256(sums), _mm512_extracti64x4_epi64::<1>(sums)]
}
