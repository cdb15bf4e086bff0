//! Which part of the global batch a member computes. Pure.
//!
//! The slots are divided into as many neighbouring intervals as there are *seats*; a member has a seat, and keeps it from generation to
//! generation, so that it goes on with the same slots. A seat may be empty: its slots are shared by all members.

use std::ops::Range;

/// How the slots of a generation are divided: how many seats there are, and which of them are empty.
///
/// Each member has the interval of its seat and an equal part of the slots of the empty seats. So a member that is lost moves its own slots
/// and nobody else's, and its successor takes them over. Dividing the batch among the members in their order, as if there had never been
/// others, would move up to half of all slots with each loss.
///
/// Members do not sit as they sat for ever, however many are lost ([`crate::Plan`] says when all are seated anew). The slots of all empty
/// seats are divided anew with every further loss and return, so the more of them there are, the more move. With 64 nodes that share 1,024
/// lanes of slots, the first loss of a node gives 63 lanes another reader, the eighth 160 and the sixteenth 220, where a division in order
/// gives one to about 350 each time. And where intervals are no whole lanes, the lanes of empty seats are cut twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Division {
    seats: u32,
    /// Ascending, none of them empty, with taken seats between them.
    empty: Vec<Range<u32>>,
}

/// No division of a batch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{seats} seats of which {empty:?} are empty are no division of a batch")]
pub struct InvalidDivision {
    /// Seats.
    pub seats: u32,
    /// The empty ones.
    pub empty: Vec<Range<u32>>,
}

impl Division {
    /// A division in which every seat is taken.
    #[must_use]
    pub const fn full(seats: u32) -> Self {
        Self { seats, empty: Vec::new() }
    }

    /// A division with these seats empty: ascending runs with taken seats between them, and not all.
    pub fn new(seats: u32, empty: Vec<Range<u32>>) -> Result<Self, InvalidDivision> {
        let apart = empty.windows(2).all(|pair| matches!(pair, [first, second] if first.end < second.start));
        let within = empty.iter().all(|run| run.start < run.end && run.end <= seats);
        let division = Self { seats, empty };
        if apart && within && division.members() > 0 { Ok(division) } else { Err(InvalidDivision { seats, empty: division.empty }) }
    }

    /// Seats, empty ones included.
    #[must_use]
    pub const fn seats(&self) -> u32 {
        self.seats
    }

    /// Runs of empty seats.
    #[must_use]
    pub fn empty(&self) -> &[Range<u32>] {
        &self.empty
    }

    /// Seats that are taken.
    #[must_use]
    pub fn members(&self) -> u32 {
        self.taken_before(self.seats)
    }

    /// Taken seats among the first ones.
    fn taken_before(&self, seat: u32) -> u32 {
        let empty: u32 = self.empty.iter().map(|run| run.end.min(seat).saturating_sub(run.start)).sum();
        seat.saturating_sub(empty)
    }

    /// Slots of the global batch that the member on this seat computes, as ascending runs with slots of others between them.
    ///
    /// Every slot belongs to exactly one member, and members have equally many, or one more. Empty for a seat on which nobody sits, and for
    /// the last members when there are more of them than slots.
    #[must_use]
    pub fn slots_of(&self, seat: u32, global_batch: u64) -> Vec<Range<u64>> {
        if seat >= self.seats || self.empty.iter().any(|run| run.contains(&seat)) {
            return Vec::new();
        }
        let (seats, members) = (u64::from(self.seats), u64::from(self.members()));
        let number = u64::from(self.taken_before(seat));
        let (share, rest) = (global_batch / members, global_batch % members);
        let (own_share, own_rest) = (global_batch / seats, global_batch % seats);
        // The first seats have one slot more, and so have the first members: nobody has more on the own seat than in all.
        let larger = u64::from(self.taken_before(u32::try_from(own_rest).unwrap_or(self.seats)));
        let all = |members: u64| members * share + members.min(rest);
        let own = |members: u64| members * own_share + members.min(larger);
        // The slots of the empty seats, one behind the other, are dealt out in the order of the members.
        let mut dealt = all(number) - own(number)..all(number + 1) - own(number + 1);
        let mut ranges = vec![interval(seat, self.seats, global_batch)];
        for run in &self.empty {
            let slots = interval(run.start, self.seats, global_batch).start..interval(run.end - 1, self.seats, global_batch).end;
            let count = slots.end - slots.start;
            ranges.push(slots.start + dealt.start.min(count)..slots.start + dealt.end.min(count));
            dealt = dealt.start.saturating_sub(count)..dealt.end.saturating_sub(count);
        }
        joined(ranges)
    }
}

/// Slots of a seat: consecutive, in the order of the seats, the first ones one more when they do not divide.
fn interval(seat: u32, seats: u32, global_batch: u64) -> Range<u64> {
    let (seat, seats) = (u64::from(seat), u64::from(seats));
    let (share, rest) = (global_batch / seats, global_batch % seats);
    let start = seat * share + seat.min(rest);
    start..start + share + u64::from(seat < rest)
}

/// The same numbers, ascending, in as few ranges as they have.
fn joined(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.retain(|range| range.start < range.end);
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The slots of each member, in the order of the seats.
    fn divided(division: &Division, global_batch: u64) -> Vec<Vec<Range<u64>>> {
        let is_taken = |seat: &u32| !division.empty().iter().any(|run| run.contains(seat));
        (0..division.seats()).filter(is_taken).map(|seat| division.slots_of(seat, global_batch)).collect()
    }

    /// A division with these seats empty, in ascending order.
    pub(crate) fn with_empty(seats: u32, empty: &[u32]) -> Result<Division, InvalidDivision> {
        let mut runs: Vec<Range<u32>> = Vec::new();
        for seat in empty {
            match runs.last_mut() {
                Some(run) if run.end == *seat => run.end += 1,
                _ => runs.push(*seat..seat + 1),
            }
        }
        Division::new(seats, runs)
    }

    #[test]
    fn the_first_members_take_what_does_not_divide() {
        assert_eq!(divided(&Division::full(3), 8).concat(), [0..3, 3..6, 6..8]);
        assert_eq!(Division::full(3).slots_of(3, 8), []);
        assert_eq!(Division::full(0).slots_of(0, 8), []);
    }

    #[test]
    fn each_member_keeps_the_slots_of_its_seat_and_has_a_part_of_the_slots_of_empty_seats() {
        let division = with_empty(5, &[1, 3]).unwrap();
        // Of 4..8 and 12..16, three members have 3, 3 and 2.
        assert_eq!(divided(&division, 20).concat(), [0..7, 7..14, 14..20]);
        assert_eq!((division.members(), division.slots_of(1, 20), division.slots_of(3, 20)), (3, vec![], vec![]));
    }

    #[test]
    fn runs_of_empty_seats_that_make_no_division_are_refused() {
        let refused = [(4, vec![2..2, 3..4]), (4, vec![3..5, 7..9]), (4, vec![2..3, 0..1]), (4, vec![0..1, 1..2]), (2, vec![0..1, 1..2])];
        for (seats, empty) in refused {
            assert_eq!(Division::new(seats, empty.clone()), Err(InvalidDivision { seats, empty }));
        }
        for seats in [0, 1] {
            assert!(with_empty(seats, &(0..seats).collect::<Vec<_>>()).is_err(), "nobody sits on {seats} seats");
        }
        assert!(with_empty(4, &[0, 1, 3]).is_ok());
    }

    /// Seats, and which of them are empty.
    fn seats_and_empty() -> impl Strategy<Value = (u32, Vec<u32>)> {
        (1_u32..200).prop_flat_map(|seats| {
            let chosen = prop::collection::btree_set(0..seats, 0..seats as usize);
            (Just(seats), chosen.prop_map(|empty| empty.into_iter().collect()))
        })
    }

    proptest! {
        #[test]
        fn every_slot_belongs_to_exactly_one_member_and_shares_differ_by_one(
            (seats, empty) in seats_and_empty(), global_batch in 0_u64..3000,
        ) {
            let division = with_empty(seats, &empty).unwrap();
            let divided = divided(&division, global_batch);
            prop_assert_eq!(divided.len() as u32, division.members());
            let mut slots: Vec<u64> = divided.iter().flatten().cloned().flatten().collect();
            slots.sort_unstable();
            prop_assert!(slots.into_iter().eq(0..global_batch));
            for ranges in &divided {
                let share: u64 = ranges.iter().map(|range| range.end - range.start).sum();
                prop_assert!((0..=1).contains(&(share - global_batch / u64::from(division.members()))));
                prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start), "{ranges:?}");
            }
        }

        #[test]
        fn a_member_keeps_the_slots_of_its_seat_whoever_else_is_lost(
            (seats, empty) in seats_and_empty(), global_batch in 0_u64..3000,
        ) {
            let (full, division) = (Division::full(seats), with_empty(seats, &empty).unwrap());
            for seat in (0..seats).filter(|seat| !empty.contains(seat)) {
                let now: Vec<u64> = division.slots_of(seat, global_batch).into_iter().flatten().collect();
                let kept = full.slots_of(seat, global_batch).into_iter().flatten().all(|slot| now.contains(&slot));
                prop_assert!(kept, "seat {seat} has {now:?}");
            }
        }
    }
}
