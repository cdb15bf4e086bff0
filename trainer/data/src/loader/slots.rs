//! Which slots of each step a member loads.

use std::ops::Range;

/// Slots of the global batch: a few runs, in ascending order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slots(Vec<Range<u64>>);

impl From<Range<u64>> for Slots {
    fn from(range: Range<u64>) -> Self {
        Self(vec![range])
    }
}

impl From<Vec<Range<u64>>> for Slots {
    fn from(ranges: Vec<Range<u64>>) -> Self {
        Self(ranges)
    }
}

impl Slots {
    /// The runs.
    #[must_use]
    pub fn ranges(&self) -> &[Range<u64>] {
        &self.0
    }

    /// How many slots there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.iter().map(|range| range.end.saturating_sub(range.start)).sum()
    }

    /// The slot at a place among these; `None` from [`Slots::count`] on.
    #[must_use]
    pub fn at(&self, mut place: u64) -> Option<u64> {
        for range in &self.0 {
            let count = range.end.saturating_sub(range.start);
            if place < count {
                return Some(range.start + place);
            }
            place -= count;
        }
        None
    }

    /// Whether each run has slots and they ascend: then so do the slots, and none comes twice.
    pub(super) fn ascend(&self) -> bool {
        self.0.iter().all(|range| range.start < range.end) && self.0.windows(2).all(|pair| pair[0].end <= pair[1].start)
    }

    /// Slot after the last one.
    pub(super) fn end(&self) -> u64 {
        self.0.last().map_or(0, |range| range.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_counted_and_found_run_by_run() {
        let slots = Slots::from(vec![3..5, 8..9, 11..14]);
        assert_eq!(slots.count(), 6);
        assert_eq!(
            (0..7).map(|place| slots.at(place)).collect::<Vec<_>>(),
            [Some(3), Some(4), Some(8), Some(11), Some(12), Some(13), None]
        );
        assert!(slots.ascend() && slots.end() == 14);
        assert_eq!((Slots::from(Vec::new()).count(), Slots::from(2..2).at(0)), (0, None));
        for other in [vec![3..5, 4..9], vec![3..5, 5..5], vec![8..9, 3..5]] {
            assert!(!Slots::from(other.clone()).ascend(), "{other:?}");
        }
    }
}
