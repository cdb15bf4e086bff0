//! The order of a pass, computed one position at a time.
//!
//! Comes in: (seed, pass, number of samples). Goes out: which sample stands at a position. Nothing is stored per sample, so the order of
//! billions of samples costs no memory and any position is as cheap as any other.

use crate::random::{SlotRandom, Stream};

/// Rounds of the Feistel network. Four suffice for a pseudo-random permutation when the round function is one (Luby & Rackoff 1988); ours is
/// only a good mixer and the halves of small data sets are a few bits, so twice as many; the whole costs well below a microsecond.
const ROUNDS: usize = 8;

/// A seeded permutation of `0..count`, different for every (seed, pass).
///
/// A Feistel network over pairs (left, right) with `left < rows` and `right < columns` and additions modulo those (the generalised Feistel
/// cipher of Black & Rogaway, "Ciphers with arbitrary finite domains", 2002), followed by cycle walking: values at or above `count` are sent
/// through again. `rows · columns` exceeds `count` by less than `rows`, so that hardly ever happens.
#[derive(Clone, Debug)]
pub struct Permutation {
    count: u64,
    rows: u64,
    columns: u64,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// The order of `pass` over `count` samples.
    #[must_use]
    pub fn new(seed: u64, pass: u64, count: u64) -> Self {
        Self::from_random(SlotRandom::new(seed, pass, 0, Stream::Order), count)
    }

    /// The order of `count` things whose keys are the next numbers of `random`.
    pub(crate) fn from_random(mut random: SlotRandom, count: u64) -> Self {
        // The smallest square that holds all; at least 1 so that an empty set divides by nothing.
        let root = count.isqrt();
        let rows = (if root * root < count { root + 1 } else { root }).max(1);
        Self { count, rows, columns: count.div_ceil(rows).max(1), keys: std::array::from_fn(|_| random.bits()) }
    }

    /// The sample at `position`, or `None` when `position` is not below the count.
    #[must_use]
    pub fn at(&self, position: u64) -> Option<u64> {
        if position >= self.count {
            return None;
        }
        // Walking ends: the network is a bijection, and the cycle through `position` comes back to `position`, which is below `count`.
        let mut value = position;
        loop {
            value = self.encrypt(value);
            if value < self.count {
                return Some(value);
            }
        }
    }

    fn encrypt(&self, value: u64) -> u64 {
        let (mut left, mut right) = (value / self.columns, value % self.columns);
        for pair in self.keys.chunks_exact(2) {
            left = add_modulo(left, spread(right, pair[0], self.rows), self.rows);
            right = add_modulo(right, spread(left, pair[1], self.columns), self.columns);
        }
        left * self.columns + right
    }
}

/// A number in `0..modulus` that depends on all bits of `half` and `key`.
fn spread(half: u64, key: u64, modulus: u64) -> u64 {
    // The finaliser of SplitMix64 (Steele, Lea & Flood 2014; constants are Stafford's variant 13) over the key, then the high half of a
    // product instead of a remainder: no bias towards small numbers worth naming at 64 bits, and no division.
    let mut z = half.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(key);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    ((u128::from(z) * u128::from(modulus)) >> 64) as u64
}

/// `(a + b) mod modulus` for `a, b < modulus`; the halves stay below 2^32 + 1, so the sum fits.
fn add_modulo(a: u64, b: u64, modulus: u64) -> u64 {
    let sum = a + b;
    if sum >= modulus { sum - modulus } else { sum }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(seed: u64, pass: u64, count: u64) -> Vec<u64> {
        let permutation = Permutation::new(seed, pass, count);
        (0..count).map(|position| permutation.at(position).expect("position is below the count")).collect()
    }

    fn check_bijective(seed: u64, pass: u64, count: u64) {
        let mut visited = vec![false; usize::try_from(count).expect("count is small")];
        for sample in order(seed, pass, count) {
            let entry = visited.get_mut(sample as usize).unwrap_or_else(|| panic!("{sample} is not below {count}"));
            assert!(!std::mem::replace(entry, true), "{sample} of {count} appears twice (seed {seed}, pass {pass})");
        }
    }

    #[test]
    fn every_sample_appears_exactly_once_for_every_small_count() {
        for count in 0..=2000_u64 {
            check_bijective(count.wrapping_mul(0x1234_5678_9ABC_DEF1), count % 7, count);
        }
    }

    #[test]
    fn every_sample_appears_exactly_once_for_larger_counts() {
        for count in [4_095, 4_096, 4_097, 65_537, 99_991, 1_000_003, (1 << 20) - 1] {
            check_bijective(3, 1, count);
        }
    }

    #[test]
    fn counts_up_to_the_largest_number_stay_in_range() {
        for count in [u64::MAX, u64::MAX - 1, 1 << 63, (1 << 32) + 1, 1 << 32, u64::from(u32::MAX) * u64::from(u32::MAX)] {
            let permutation = Permutation::new(5, 0, count);
            let samples: std::collections::HashSet<u64> =
                (0..100).chain(count - 100..count).filter_map(|position| permutation.at(position)).collect();
            assert_eq!(samples.len(), 200);
            assert!(samples.iter().all(|sample| *sample < count));
            assert_eq!(permutation.at(count), None);
        }
    }

    #[test]
    fn passes_and_seeds_have_orders_of_their_own() {
        let orders = [order(1, 0, 100), order(1, 1, 100), order(2, 0, 100), order(2, 1, 100)];
        for (index, first) in orders.iter().enumerate() {
            for second in &orders[index + 1..] {
                // Two independent orders agree at one position on average; 10 has a probability below 1e-6.
                let equal = first.iter().zip(second).filter(|(a, b)| a == b).count();
                assert!(equal < 10, "{equal} of 100 positions agree");
            }
        }
    }

    #[test]
    fn every_sample_is_equally_likely_at_every_position() {
        let (count, passes) = (30_u64, 6_000_u64);
        let mut counts = vec![0_f64; (count * count) as usize];
        for pass in 0..passes {
            for (position, sample) in order(11, pass, count).into_iter().enumerate() {
                counts[position * count as usize + sample as usize] += 1.0;
            }
        }
        let expected = passes as f64 / count as f64;
        let chi_square: f64 = counts.iter().map(|seen| (seen - expected).powi(2) / expected).sum();
        // 29 · 29 = 841 degrees of freedom; standard deviation sqrt(2 · 841) = 41.
        assert!((841.0 - 4.0 * 41.0..841.0 + 4.0 * 41.0).contains(&chi_square), "chi square {chi_square}");
    }

    #[test]
    fn every_order_of_four_samples_is_equally_likely() {
        let mut counts = std::collections::HashMap::new();
        let passes = 24_000;
        for pass in 0..passes {
            *counts.entry(order(13, pass, 4)).or_insert(0_f64) += 1.0;
        }
        let expected = passes as f64 / 24.0;
        let chi_square: f64 = counts.values().map(|seen| (seen - expected).powi(2) / expected).sum();
        assert_eq!(counts.len(), 24);
        // 23 degrees of freedom; standard deviation 6.8.
        assert!(chi_square < 23.0 + 4.0 * 6.8, "chi square {chi_square}");
    }

    #[test]
    fn neighbouring_positions_are_not_correlated() {
        let count = 100_003;
        let samples = order(17, 0, count);
        let mean = (count - 1) as f64 / 2.0;
        let variance = (count as f64).powi(2) / 12.0;
        let covariance: f64 =
            samples.windows(2).map(|pair| (pair[0] as f64 - mean) * (pair[1] as f64 - mean)).sum::<f64>() / (count - 1) as f64;
        // The correlation of independent pairs has a standard deviation of 1 / sqrt(count) = 0.0032.
        assert!((covariance / variance).abs() < 4.0 * 0.0032, "correlation {}", covariance / variance);
    }

    #[test]
    fn the_recorded_order_never_changes() {
        assert_eq!(order(1, 0, 16), RECORDED_16);
        let large = Permutation::new(42, 3, 400_000_000);
        assert_eq!([0, 1, 2, 399_999_999].map(|position| large.at(position).expect("position is below the count")), RECORDED_LARGE);
    }

    /// Recorded when the permutation was written: a change of these numbers changes the samples of every step of every running job.
    const RECORDED_16: [u64; 16] = [10, 5, 12, 11, 2, 9, 6, 13, 14, 8, 15, 3, 1, 7, 4, 0];
    const RECORDED_LARGE: [u64; 4] = [66_530_418, 172_485_794, 222_126_217, 95_819_880];
}
