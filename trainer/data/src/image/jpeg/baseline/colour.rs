//! Planes of samples to rows of red, green and blue: chroma is interpolated, then the colours are computed.
//!
//! Comes in: one row of luminance, the rows of chroma near it. Goes out: one row of each colour. Both steps as libjpeg's (`jdsample.c`, "fancy" upsampling, and
//! `jdcolor.c`) to the last bit.

use std::arch::x86_64::{
    __m256i, _mm_packus_epi16, _mm256_add_epi16, _mm256_add_epi32, _mm256_castsi256_si128, _mm256_cvtepu8_epi16, _mm256_extracti128_si256,
    _mm256_madd_epi16, _mm256_mulhi_epi16, _mm256_packs_epi32, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_srai_epi16, _mm256_srai_epi32,
    _mm256_sub_epi16, _mm256_unpackhi_epi16, _mm256_unpacklo_epi16,
};

/// Twice the columns: of each sample three parts and of its nearer neighbour one. `padded` has one more sample before and behind those that
/// are wanted, weighted sums of two rows, `shift` bits larger than a sample; `rounding` is added for the left and the right of the two.
#[target_feature(enable = "avx2")]
#[inline]
fn spread(padded: &[u16], shift: u32, rounding: [u16; 2], out: &mut [u8]) {
    let (before, middle, behind) = (padded, padded.get(1..).unwrap_or_default(), padded.get(2..).unwrap_or_default());
    for (((before, middle), behind), out) in before.iter().zip(middle).zip(behind).zip(out.as_chunks_mut().0) {
        *out = [((3 * middle + before + rounding[0]) >> shift) as u8, ((3 * middle + behind + rounding[1]) >> shift) as u8];
    }
}

/// How a plane of chroma becomes as large as that of luminance.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spread {
    /// Twice the columns, twice the rows.
    pub(super) columns: bool,
    pub(super) rows: bool,
    /// Interpolated; otherwise samples are repeated.
    pub(super) smooth: bool,
}

/// Two bands of a plane, each as high as the units of the image: the one read last and the one before.
pub(super) struct Bands<'a> {
    pub(super) samples: &'a [u8],
    pub(super) stride: usize,
    /// Rows of a band.
    pub(super) rows: usize,
    /// Columns and rows of the plane that belong to the image.
    pub(super) width: usize,
    pub(super) height: usize,
}

impl Bands<'_> {
    pub(super) fn row(&self, row: usize) -> Option<&[u8]> {
        self.samples.get(row % (2 * self.rows) * self.stride..)?.get(..self.width)
    }
}

/// The samples of `plane` for row `y` of the image and its columns from `left` to `right`, in `out`; `sums` is a buffer. Gives where in `out` they begin.
#[target_feature(enable = "avx2")]
pub(super) fn spread_row(
    plane: &Bands<'_>,
    how: Spread,
    (y, left, right): (usize, usize, usize),
    sums: &mut Vec<u16>,
    out: &mut Vec<u8>,
) -> Option<usize> {
    let (first, end) = if how.columns { (left / 2, right.div_ceil(2)) } else { (left, right) };
    let needed = end - first;
    let length = if how.columns { 2 * needed } else { needed };
    if out.len() < length {
        out.resize(length, 0);
    }
    let out = out.get_mut(..length)?;
    let near = if how.rows { y / 2 } else { y };
    let far = if y % 2 == 0 { near.saturating_sub(1) } else { (near + 1).min(plane.height - 1) };
    let (near, far) = (plane.row(near)?, plane.row(far)?);
    let start = left - if how.columns { 2 * first } else { first };
    let (near_part, far_part) = (near.get(first..end)?, far.get(first..end)?);
    if !how.smooth {
        if how.columns {
            for (sample, out) in near_part.iter().zip(out.as_chunks_mut().0) {
                *out = [*sample; 2];
            }
        } else {
            out.copy_from_slice(near_part);
        }
        return Some(start);
    }
    if !how.columns {
        let rounding = 1 + (y % 2) as u16;
        for ((near, far), out) in near_part.iter().zip(far_part).zip(out) {
            *out = ((3 * u16::from(*near) + u16::from(*far) + rounding) >> 2) as u8;
        }
        return Some(start);
    }
    if sums.len() < needed + 2 {
        sums.resize(needed + 2, 0);
    }
    let sums = sums.get_mut(..needed + 2)?;
    let sum = |column: usize| -> Option<u16> {
        let (near, far) = (u16::from(*near.get(column)?), u16::from(*far.get(column)?));
        Some(if how.rows { 3 * near + far } else { near })
    };
    *sums.first_mut()? = sum(first.saturating_sub(1))?;
    *sums.last_mut()? = sum(end.min(plane.width - 1))?;
    let middle = sums.get_mut(1..=needed)?.iter_mut();
    if how.rows {
        for ((sum, near), far) in middle.zip(near_part).zip(far_part) {
            *sum = 3 * u16::from(*near) + u16::from(*far);
        }
        spread(sums, 4, [8, 7], out);
    } else {
        for (sum, near) in middle.zip(near_part) {
            *sum = u16::from(*near);
        }
        spread(sums, 2, [1, 2], out);
    }
    Some(start)
}

/// Luminance and two colour differences to red, green and blue; all of one length.
#[target_feature(enable = "avx2")]
pub(super) fn colour_row(luminance: &[u8], blue: &[u8], red: &[u8], [r, g, b]: [&mut [u8]; 3]) {
    let ((luminance, last_luminance), (blue, last_blue), (red, last_red)) =
        (luminance.as_chunks::<16>(), blue.as_chunks::<16>(), red.as_chunks::<16>());
    let ((r, last_r), (g, last_g), (b, last_b)) = (r.as_chunks_mut::<16>(), g.as_chunks_mut::<16>(), b.as_chunks_mut::<16>());
    for (((luminance, blue), red), ((r, g), b)) in luminance.iter().zip(blue).zip(red).zip(r.iter_mut().zip(g).zip(b)) {
        [*r, *g, *b] = colours(*luminance, *blue, *red);
    }
    if !last_luminance.is_empty() {
        let filled = |last: &[u8]| {
            let mut block = [0; 16];
            block.iter_mut().zip(last).for_each(|(target, sample)| *target = *sample);
            block
        };
        let colours = colours(filled(last_luminance), filled(last_blue), filled(last_red));
        for (last, colour) in [last_r, last_g, last_b].into_iter().zip(colours) {
            last.iter_mut().zip(colour).for_each(|(target, value)| *target = value);
        }
    }
}

/// Sixteen pixels. Constants have 16 bits behind the point; what exceeds 16 bits with the sign is added whole.
#[target_feature(enable = "avx2")]
#[inline]
fn colours(luminance: [u8; 16], blue: [u8; 16], red: [u8; 16]) -> [[u8; 16]; 3] {
    let wide = |samples: [u8; 16]| _mm256_cvtepu8_epi16(bytemuck::cast(samples));
    let middle = _mm256_set1_epi16(128);
    let (y, cb, cr) = (wide(luminance), _mm256_sub_epi16(wide(blue), middle), _mm256_sub_epi16(wide(red), middle));
    // Half of `2 * value * constant >> 16`, rounded, is `(value * constant + 32768) >> 16`.
    let one = _mm256_set1_epi16(1);
    let scaled = |value: __m256i, constant: i16| {
        let twice = _mm256_mulhi_epi16(_mm256_add_epi16(value, value), _mm256_set1_epi16(constant));
        _mm256_srai_epi16::<1>(_mm256_add_epi16(twice, one))
    };
    // 1.402 = 1 + 26345 / 65536 and 1.772 = 2 - 14942 / 65536.
    let r = _mm256_add_epi16(y, _mm256_add_epi16(cr, scaled(cr, 26345)));
    let b = _mm256_add_epi16(y, _mm256_add_epi16(_mm256_add_epi16(cb, cb), scaled(cb, -14942)));
    // -0.34414 = -22554 / 65536 and -0.71414 = 18734 / 65536 - 1.
    let factors = _mm256_set1_epi32((18734 << 16) + 65536 - 22554);
    let half = _mm256_set1_epi32(1 << 15);
    let green = |pairs| _mm256_srai_epi32::<16>(_mm256_add_epi32(_mm256_madd_epi16(pairs, factors), half));
    let green = _mm256_packs_epi32(green(_mm256_unpacklo_epi16(cb, cr)), green(_mm256_unpackhi_epi16(cb, cr)));
    let g = _mm256_sub_epi16(_mm256_add_epi16(y, green), cr);
    let narrow = |value: __m256i| bytemuck::cast(_mm_packus_epi16(_mm256_castsi256_si128(value), _mm256_extracti128_si256::<1>(value)));
    [narrow(r), narrow(g), narrow(b)]
}
