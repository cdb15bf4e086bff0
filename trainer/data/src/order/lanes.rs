//! Which lane a position belongs to, and which part of a pass each lane has.
//!
//! Comes in: at which pace steps take positions, and the number of lanes. Goes out: for a position of a pass its lane's stretch of the tape,
//! and the position's place in it. Integers only, so that all machines agree.
//!
//! Step r takes the positions from r · pace to (r + 1) · pace, and the l-th of L lanes those from (r + l/L) · pace to (r + (l+1)/L) · pace,
//! each rounded up. What a lane has within the first J positions is therefore a sum of rounded quotients, for which there is a closed form
//! whose cost is that of Euclid's algorithm; with a whole number for a pace it is a product.

/// Positions of a source that a step takes: a fraction, since a mixture may give a source half a sample a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    numerator: u64,
    denominator: u64,
}

impl Pace {
    /// `numerator / denominator` samples a step. Zeros count as 1: there is no step without samples.
    #[must_use]
    pub fn new(numerator: u64, denominator: u64) -> Self {
        let (numerator, denominator) = (numerator.max(1), denominator.max(1));
        let divisor = greatest_common_divisor(numerator, denominator);
        Self { numerator: numerator / divisor, denominator: denominator / divisor }
    }

    /// So many samples in every step.
    #[must_use]
    pub fn whole(samples: u64) -> Self {
        Self::new(samples, 1)
    }

    /// Samples of a step, rounded down.
    #[must_use]
    pub fn samples(self) -> u64 {
        self.numerator / self.denominator
    }
}

fn greatest_common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// A lane's part of a pass, and a position's place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    /// Where it begins on the tape.
    pub(super) begin: u64,
    /// Where it ends.
    pub(super) end: u64,
    /// The position's place, from its begin.
    pub(super) place: u64,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Lanes {
    count: u64,
    pace: Pace,
}

impl Lanes {
    /// No more lanes than samples in a step.
    pub(super) fn new(pace: Pace, count: u64) -> Self {
        Self { count: count.clamp(1, pace.samples().max(1)), pace }
    }

    /// The lane of a position of all passes, counted through.
    pub(super) fn lane(&self, index: u128) -> u64 {
        let (numerator, denominator) = self.fraction();
        // How far into its step, as a part of `numerator`.
        let phase = index * denominator % numerator;
        (phase * u128::from(self.count) / numerator) as u64
    }

    /// The stretch of a position's lane in a pass of `samples`, each pass beginning where the one before it ended.
    pub(super) fn stretch(&self, pass: u64, samples: u64, position: u64) -> Stretch {
        let first = u128::from(pass) * u128::from(samples);
        let (index, last) = (first + u128::from(position), first + u128::from(samples));
        let lane = self.lane(index);
        // Positions of this pass that lanes below one have, up to an index.
        let below = |lane: u64, index: u128| self.below(lane, index) - self.below(lane, first);
        let (begin, end) = (below(lane, last), below(lane + 1, last));
        let place = below(lane + 1, index) - below(lane, index);
        Stretch { begin: begin as u64, end: end as u64, place: place as u64 }
    }

    /// Of the positions below `index` those whose lane is below `lane`.
    fn below(&self, lane: u64, index: u128) -> u128 {
        let (numerator, denominator) = self.fraction();
        let steps = index * denominator / numerator;
        let begun = self.border(steps, 0);
        let rest = index.min(self.border(steps, lane)).saturating_sub(begun);
        if denominator == 1 {
            return steps * self.border(0, lane) + rest;
        }
        // Of whole steps: the sum over r of ceil((r + lane/L) · pace) − ceil(r · pace).
        let parts = denominator * u128::from(self.count);
        let sum = |lane: u64| {
            let (slope, start) = (numerator * u128::from(self.count), numerator * u128::from(lane) + parts - 1);
            floor_sum(steps, parts, slope, start)
        };
        sum(lane) - sum(0) + rest
    }

    /// The first position of a lane in a step.
    fn border(&self, step: u128, lane: u64) -> u128 {
        let (numerator, denominator) = self.fraction();
        let lanes = u128::from(self.count);
        (numerator * (step * lanes + u128::from(lane))).div_ceil(denominator * lanes)
    }

    fn fraction(&self) -> (u128, u128) {
        (u128::from(self.pace.numerator), u128::from(self.pace.denominator))
    }
}

/// The sum of `(slope · i + start) / modulus`, rounded down each, over the i below `count`.
///
/// Euclid's algorithm on (slope, modulus): points below a line are counted by rows instead of by columns, again and again
/// (Graham, Knuth & Patashnik, "Concrete Mathematics", section 3.5).
fn floor_sum(mut count: u128, mut modulus: u128, mut slope: u128, mut start: u128) -> u128 {
    let mut sum = 0_u128;
    loop {
        sum += (slope / modulus) * (count * count.saturating_sub(1) / 2) + (start / modulus) * count;
        (slope, start) = (slope % modulus, start % modulus);
        let top = slope * count + start;
        if top < modulus {
            return sum;
        }
        (count, start) = (top / modulus, top % modulus);
        (slope, modulus) = (modulus, slope);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_closed_form_is_the_sum(count in 0_u128..200, modulus in 1_u128..300, slope in 0_u128..1000, start in 0_u128..1000) {
            let sum: u128 = (0..count).map(|i| (slope * i + start) / modulus).sum();
            prop_assert_eq!(floor_sum(count, modulus, slope, start), sum);
        }

        #[test]
        fn what_lanes_have_below_an_index_is_what_counting_gives(
            numerator in 1_u64..200, denominator in 1_u64..30, count in 1_u64..20, index in 0_u128..700, lane in 0_u64..20,
        ) {
            let lanes = Lanes::new(Pace::new(numerator, denominator), count);
            let lane = lane.min(lanes.count);
            let counted = (0..index).filter(|index| lanes.lane(*index) < lane).count() as u128;
            prop_assert_eq!(lanes.below(lane, index), counted);
        }
    }

    #[test]
    fn lanes_are_runs_of_neighbouring_slots_in_every_step() {
        for (batch, count, expected) in [(12, 4, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]), (12, 5, [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4])] {
            let lanes = Lanes::new(Pace::whole(batch), count);
            for step in [0, 1, 77] {
                let found: Vec<u64> = (0..batch).map(|slot| lanes.lane(u128::from(step * batch + slot))).collect();
                assert_eq!(found, expected, "{count} lanes, step {step}");
            }
        }
        assert_eq!(Lanes::new(Pace::whole(3), 512).count, 3);
        assert_eq!(Lanes::new(Pace::new(1, 2), 512).count, 1);
    }

    #[test]
    fn the_largest_numbers_stay_in_range() {
        // A batch of a million, of which a mixture gives a third, for 2^44 positions.
        let lanes = Lanes::new(Pace::new((1 << 20) * 1_000_003, 3_000_017), 1 << 15);
        let index = 1_u128 << 44;
        let all = lanes.below(lanes.count, index);
        assert_eq!(all, index);
        let shares = (0..lanes.count).map(|lane| lanes.below(lane + 1, index) - lanes.below(lane, index));
        // Beside the last step, of which a lane has all of its eleven samples or none, rounding makes the difference, in fifty million steps.
        assert!(shares.into_iter().all(|share| share.abs_diff(index >> 15) <= 32));
    }
}
