//! Which source of a mixture a position belongs to.
//!
//! Comes in: the share of each source, as whole numbers. Goes out: for every position of the endless sequence of positions its source and its
//! place among that source's own. A pure function with a closed form; nothing is drawn, so that every prefix has its shares.
//! It must not know what a source is.
//!
//! Of the first n positions the first k sources together have c(k) = floor(c(k + 1) · shares of k / shares of k + 1), with n for all of them.
//! Since each c grows by one or stands still when the next one grows by one, every position belongs to exactly one source. With two
//! sources each is always less than one position away from its share; with more, less than one for each source but one.

use crate::order::Pace;

/// Largest share. A step's samples of a source stay a fraction of 64-bit numbers with batches of up to 2^25 samples.
pub const SHARE_LIMIT: u64 = 1 << 38;

/// Binary digits behind the point to which a share by images is kept.
const SHARE_DIGITS: u32 = 40;

/// The shares of some sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mixture {
    /// Sum of the shares of each source and all before it.
    sums: Vec<u64>,
}

/// A position's source, and its place there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The source, from 0.
    pub source: usize,
    /// How many positions before this one belong to it.
    pub index: u64,
}

/// What a mixture needs to know of a source whose weight is in images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Its weight in images.
    pub weight: u64,
    /// Samples of a pass.
    pub samples: u64,
    /// Images of a pass.
    pub images: u64,
}

impl Mixture {
    /// A mixture with these shares of the samples. Zeros count as 1, and what exceeds [`SHARE_LIMIT`] makes all smaller in proportion.
    #[must_use]
    pub fn by_samples(shares: &[u64]) -> Self {
        Self::of(&shares.iter().map(|share| u128::from(*share)).collect::<Vec<_>>())
    }

    /// A mixture in which the images of the sources have the proportions of their weights, with as many images in each sample as the source
    /// has on average.
    #[must_use]
    pub fn by_images(sources: &[Counted]) -> Self {
        let share = |source: &Counted| {
            let weighted = u128::from(source.weight.min(SHARE_LIMIT)) * u128::from(source.samples.min(1 << 48));
            (weighted << SHARE_DIGITS) / u128::from(source.images.max(1))
        };
        Self::of(&sources.iter().map(share).collect::<Vec<_>>())
    }

    fn of(shares: &[u128]) -> Self {
        let divisor = shares.iter().fold(0, |divisor, share| greatest_common_divisor(divisor, *share)).max(1);
        let greatest = shares.iter().max().map_or(1, |greatest| greatest / divisor);
        let shift = (128 - greatest.leading_zeros()).saturating_sub(SHARE_LIMIT.ilog2());
        let sums = shares.iter().scan(0, |sum, share| {
            // Below the limit by then.
            *sum += ((share / divisor) >> shift).max(1) as u64;
            Some(*sum)
        });
        Self { sums: sums.collect() }
    }

    /// The share of each source and all before it.
    pub(crate) fn shares(&self) -> impl Iterator<Item = u64> + '_ {
        self.sums.iter().copied()
    }

    /// Number of sources.
    #[must_use]
    pub fn sources(&self) -> usize {
        self.sums.len()
    }

    /// The source of a position, and its place among that source's.
    #[must_use]
    pub fn turn(&self, position: u64) -> Turn {
        let mut index = position;
        for source in (1..self.sums.len()).rev() {
            let (before, after) = (self.before(source, index), self.before(source, index + 1));
            if after == before {
                return Turn { source, index: index - before };
            }
            index = before;
        }
        Turn { source: 0, index }
    }

    /// How many of the first `positions` belong to each source.
    #[must_use]
    pub fn counts(&self, positions: u64) -> Vec<u64> {
        let mut counts = vec![0; self.sums.len()];
        let mut left = positions;
        for source in (0..self.sums.len()).rev() {
            let before = if source == 0 { 0 } else { self.before(source, left) };
            if let Some(count) = counts.get_mut(source) {
                *count = left - before;
            }
            left = before;
        }
        counts
    }

    /// Samples of a source in a step of `batch` positions.
    #[must_use]
    pub fn pace(&self, source: usize, batch: u64) -> Pace {
        let sum = |sources: Option<usize>| sources.and_then(|last| self.sums.get(last)).copied().unwrap_or(0);
        let share = sum(Some(source)) - sum(source.checked_sub(1));
        Pace::new(batch * share, sum(self.sums.len().checked_sub(1)))
    }

    /// Of `index` positions of the sources up to and with `source`, those of the sources before it.
    fn before(&self, source: usize, index: u64) -> u64 {
        let sum = |source: usize| self.sums.get(source).copied().map_or(1, u128::from);
        // No greater than the index.
        (u128::from(index) * sum(source - 1) / sum(source)) as u64
    }
}

fn greatest_common_divisor(mut a: u128, mut b: u128) -> u128 {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn two_sources_of_equal_shares_take_turns() {
        let mixture = Mixture::by_samples(&[5, 5]);
        let turns: Vec<_> = (0..6).map(|position| mixture.turn(position)).map(|turn| (turn.source, turn.index)).collect();
        assert_eq!(turns, [(1, 0), (0, 0), (1, 1), (0, 1), (1, 2), (0, 2)]);
        assert_eq!(mixture.pace(0, 9), Pace::new(9, 2));
    }

    #[test]
    fn one_source_has_every_position() {
        let mixture = Mixture::by_samples(&[3]);
        assert_eq!((mixture.turn(0), mixture.turn(77)), (Turn { source: 0, index: 0 }, Turn { source: 0, index: 77 }));
        assert_eq!((mixture.counts(9), mixture.pace(0, 12)), (vec![9], Pace::whole(12)));
    }

    #[test]
    fn a_weight_in_images_takes_fewer_samples_of_the_source_that_has_more_images_in_each() {
        // LAION-400M and the core of MMC4 at 1 : 1: a document of MMC4 has four images.
        let laion = Counted { weight: 1, samples: 407_332_084, images: 407_332_084 };
        let mmc4 = Counted { weight: 1, samples: 7_300_000, images: 29_200_000 };
        let mixture = Mixture::by_images(&[laion, mmc4]);
        assert_eq!(mixture.counts(1_000_000), [800_000, 200_000]);
        let doubled = Mixture::by_images(&[Counted { weight: 2, ..laion }, mmc4]);
        // 8 : 1.
        assert_eq!(doubled.counts(900_000), [800_000, 100_000]);
    }

    proptest! {
        #[test]
        fn every_prefix_has_its_shares_and_every_position_one_source(
            shares in prop::collection::vec(1_u64..1000, 1..6), first in 0_u64..1 << 44,
        ) {
            let mixture = Mixture::by_samples(&shares);
            let total: u64 = shares.iter().sum();
            let mut counts = mixture.counts(first);
            for position in first..first + 100 {
                let turn = mixture.turn(position);
                prop_assert_eq!(turn.index, counts[turn.source]);
                counts[turn.source] += 1;
                prop_assert_eq!(&counts, &mixture.counts(position + 1));
                for (count, share) in counts.iter().zip(&shares) {
                    // In parts of a position, without rounding.
                    let distance = (u128::from(*count) * u128::from(total)).abs_diff(u128::from(position + 1) * u128::from(*share));
                    let bound = u128::from(total) * (shares.len() as u128 - 1).max(1);
                    prop_assert!(distance < bound, "{:?} of {} for {:?}", counts, position + 1, shares);
                }
            }
        }

        #[test]
        fn the_largest_numbers_stay_in_range(shares in prop::collection::vec(1_u64.., 2..5), position in 0_u64..1 << 44) {
            let mixture = Mixture::by_samples(&shares);
            prop_assert_eq!(mixture.counts(position).iter().sum::<u64>(), position);
            let turn = mixture.turn(position);
            prop_assert!(turn.source < shares.len() && turn.index <= position);
            prop_assert!(mixture.sums.last().is_some_and(|sum| *sum <= SHARE_LIMIT * shares.len() as u64));
        }
    }
}
