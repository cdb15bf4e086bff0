//! Which part of the global batch a rank computes. Pure.

use std::ops::Range;

/// Slots of the global batch that `rank` of `world` computes: consecutive, in rank order, the first ranks one more when they do not divide.
///
/// The global batch (in samples) is the same at every world size; only its split changes. Every slot belongs to exactly one rank.
/// Empty for a rank that is not in the world, and for the last ranks when there are more ranks than slots.
#[must_use]
pub fn slots_of(rank: u32, world: u32, global_batch: u64) -> Range<u64> {
    let (rank, world) = (u64::from(rank), u64::from(world));
    if rank >= world {
        return 0..0;
    }
    let (share, rest) = (global_batch / world, global_batch % world);
    let start = rank * share + rank.min(rest);
    start..start + share + u64::from(rank < rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_ranks_take_what_does_not_divide() {
        assert_eq!([0, 1, 2].map(|rank| slots_of(rank, 3, 8)), [0..3, 3..6, 6..8]);
        assert_eq!(slots_of(3, 3, 8), 0..0);
        assert_eq!(slots_of(0, 0, 8), 0..0);
    }

    proptest! {
        #[test]
        fn every_slot_belongs_to_exactly_one_rank_and_shares_differ_by_one(world in 1_u32..70, global_batch in 0_u64..3000) {
            let mut next = 0;
            for rank in 0..world {
                let slots = slots_of(rank, world, global_batch);
                prop_assert_eq!(slots.start, next);
                let share = slots.end - slots.start;
                prop_assert!(share == global_batch / u64::from(world) || share == global_batch / u64::from(world) + 1);
                next = slots.end;
            }
            prop_assert_eq!(next, global_batch);
        }
    }
}
