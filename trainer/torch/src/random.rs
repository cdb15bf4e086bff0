//! Counter-based randomness: a random number is a pure function of what it is for.
//!
//! Comes in: a seed and the coordinates of a draw. Goes out: uniform and normal numbers.
//! There is no generator whose state could differ between two runs, devices or memberships, and nothing to save in a checkpoint.
//!
//! The function is Philox 4×32 with ten rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

/// Multipliers and key increments of Philox 4×32, from the paper's table 2 and section 3.3.
const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const KEY_INCREMENTS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
/// The number of rounds the paper recommends with a safety margin.
const ROUNDS: u32 = 10;

/// What a draw is for. Keeps the streams of one seed apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Stream {
    /// Initial weights; coordinates (parameter, element / 4).
    Initialization = 0x1001,
    /// Dropped residual branches; coordinates (step, slot).
    DropPath = 0x1002,
}

/// One block of four random words.
pub(crate) fn philox(mut key: [u32; 2], mut counter: [u32; 4]) -> [u32; 4] {
    for round in 0..ROUNDS {
        if round > 0 {
            key = [key[0].wrapping_add(KEY_INCREMENTS[0]), key[1].wrapping_add(KEY_INCREMENTS[1])];
        }
        let first = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let second = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [(second >> 32) as u32 ^ counter[1] ^ key[0], second as u32, (first >> 32) as u32 ^ counter[3] ^ key[1], first as u32];
    }
    counter
}

/// All draws of one seed, stream and pair of 64-bit coordinates.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draws {
    key: [u32; 2],
}

impl Draws {
    /// The draws at (`seed`, `stream`, `first`, `second`): the coordinates become a key by two Philox blocks, so that none is cut short.
    pub(crate) fn at(seed: u64, stream: Stream, first: u64, second: u64) -> Self {
        let words = philox(halves(seed), [stream as u32, 0, 0, 0]);
        let [first, second] = [halves(first), halves(second)];
        let words = philox([words[0], words[1]], [first[0], first[1], second[0], second[1]]);
        Self { key: [words[0], words[1]] }
    }

    /// Four words at `index` of `row`.
    pub(crate) fn words(self, row: u64, index: u64) -> [u32; 4] {
        let [row, index] = [halves(row), halves(index)];
        philox(self.key, [index[0], index[1], row[0], row[1]])
    }

    /// A uniform number in [0, 1) at `index` of `row`, with 53 random bits.
    pub(crate) fn uniform(self, row: u64, index: u64) -> f64 {
        let words = self.words(row, index);
        unit(words[0], words[1])
    }

    /// Fills `values` with numbers from [-`bound`, `bound`); `offset` is the index of the first value and a multiple of [`CHUNK`].
    pub(crate) fn fill_uniform(self, offset: u64, values: &mut [f32], bound: f64) {
        self.fill(offset, values, |words| {
            let [a, b, c, d] = words.map(|word| (f64::from(word) * TWO_TO_MINUS_32).mul_add(2.0 * bound, -bound) as f32);
            [a, b, c, d]
        });
    }

    /// Fills `values` with normal numbers of mean 0 and the given standard deviation (Box and Muller, 1958); `offset` as above.
    pub(crate) fn fill_normal(self, offset: u64, values: &mut [f32], deviation: f64) {
        self.fill(offset, values, |words| {
            let pair = |a: u32, b: u32| {
                // The logarithm's argument lies in (0, 1], never 0.
                let radius = (-2.0 * ((f64::from(a) + 1.0) * TWO_TO_MINUS_32).ln()).sqrt() * deviation;
                let (sine, cosine) = (f64::from(b) * TWO_TO_MINUS_32 * std::f64::consts::TAU).sin_cos();
                ((radius * cosine) as f32, (radius * sine) as f32)
            };
            let ((a, b), (c, d)) = (pair(words[0], words[1]), pair(words[2], words[3]));
            [a, b, c, d]
        });
    }

    fn fill(self, offset: u64, values: &mut [f32], block: impl Fn([u32; 4]) -> [f32; 4]) {
        debug_assert_eq!(offset % CHUNK, 0, "a run of values starts at a whole block");
        for (index, chunk) in values.chunks_mut(CHUNK as usize).enumerate() {
            let four = block(self.words(0, offset / CHUNK + index as u64));
            chunk.copy_from_slice(&four[..chunk.len()]);
        }
    }
}

/// Values that one Philox block gives.
pub(crate) const CHUNK: u64 = 4;
const TWO_TO_MINUS_32: f64 = 1.0 / 4_294_967_296.0;

fn halves(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

fn unit(low: u32, high: u32) -> f64 {
    let bits = ((u64::from(high) << 32) | u64::from(low)) >> 11;
    bits as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(key: [u32; 2], counter: [u32; 4], expected: [u32; 4]) {
        assert_eq!(philox(key, counter), expected, "key {key:08x?}, counter {counter:08x?}");
    }

    #[test]
    fn philox_gives_the_known_answers_of_the_authors_library() {
        // `kat_vectors` of Random123 1.14, lines "philox4x32 10".
        check([0, 0], [0, 0, 0, 0], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        check([u32::MAX; 2], [u32::MAX; 4], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        check(
            [0xa409_3822, 0x299f_31d0],
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        );
    }

    #[test]
    fn draws_equal_the_recorded_ones() {
        // Worked out apart from this code, in Python: a change of the derivation would change every model trained from a seed.
        let draws = Draws::at(42, Stream::DropPath, 7, 3);
        let values: Vec<f64> = (0..3).map(|index| draws.uniform(1, index)).collect();
        assert_eq!(values, RECORDED_UNIFORM);
        let mut normal = [0f32; 5];
        Draws::at(42, Stream::Initialization, 5, 0).fill_normal(0, &mut normal, 1.0);
        // Logarithm and sine may differ in their last bit between C libraries.
        for (found, expected) in normal.iter().zip(RECORDED_NORMAL) {
            assert!((found - expected).abs() < 1e-6, "{normal:?}");
        }
    }
    const RECORDED_UNIFORM: [f64; 3] = [0.904_732_394_659_094_3, 0.665_034_275_276_795_4, 0.516_973_036_583_370_6];
    const RECORDED_NORMAL: [f32; 5] = [1.501_399_5, 0.858_298_7, 0.782_621_1, -1.176_879_3, 0.420_634_42];

    #[test]
    fn every_coordinate_matters() {
        let base = Draws::at(1, Stream::DropPath, 2, 3).words(4, 5);
        for other in [
            Draws::at(2, Stream::DropPath, 2, 3).words(4, 5),
            Draws::at(1 << 40, Stream::DropPath, 2, 3).words(4, 5),
            Draws::at(1, Stream::Initialization, 2, 3).words(4, 5),
            Draws::at(1, Stream::DropPath, 3, 3).words(4, 5),
            Draws::at(1, Stream::DropPath, 2 + (1 << 32), 3).words(4, 5),
            Draws::at(1, Stream::DropPath, 2, 3 + (1 << 32)).words(4, 5),
            Draws::at(1, Stream::DropPath, 2, 3).words(5, 5),
            Draws::at(1, Stream::DropPath, 2, 3).words(4, 6),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn moments_of_the_two_distributions_are_right() {
        let draws = Draws::at(9, Stream::Initialization, 0, 0);
        let mut values = vec![0f32; 200_000];
        let moments = |values: &[f32]| {
            let mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / values.len() as f64;
            let variance = values.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / values.len() as f64;
            (mean, variance.sqrt())
        };
        draws.fill_normal(0, &mut values, 0.5);
        let (mean, deviation) = moments(&values);
        assert!(mean.abs() < 0.005 && (deviation - 0.5).abs() < 0.005, "normal: mean {mean}, deviation {deviation}");
        draws.fill_uniform(0, &mut values, 0.3);
        let (mean, deviation) = moments(&values);
        assert!(mean.abs() < 0.005 && (deviation - 0.3 / 3f64.sqrt()).abs() < 0.002, "uniform: mean {mean}, deviation {deviation}");
        assert!(values.iter().all(|x| x.abs() <= 0.3));
    }

    #[test]
    fn a_fill_in_parts_equals_a_fill_at_once() {
        let draws = Draws::at(3, Stream::Initialization, 1, 0);
        let (mut whole, mut parts) = (vec![0f32; 23], vec![0f32; 23]);
        draws.fill_normal(0, &mut whole, 1.0);
        let (left, right) = parts.split_at_mut(8);
        draws.fill_normal(8, right, 1.0);
        draws.fill_normal(0, left, 1.0);
        assert_eq!(whole, parts);
    }
}
