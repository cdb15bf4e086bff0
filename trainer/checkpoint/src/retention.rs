//! Which checkpoints go when a new one is there. Pure.

use std::num::{NonZeroU32, NonZeroU64};

use crate::{id::CheckpointId, store::CheckpointEntry};

/// What is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Newest checkpoints kept.
    pub keep_last: NonZeroU32,
    /// Every checkpoint whose step is a multiple of this is kept for good; `None`: none is.
    pub keep_every_steps: Option<NonZeroU64>,
}

/// Decides what to remove after `committed` was written. Never that one.
///
/// Only folders that `committed` has overtaken are looked at: of no later step and no later generation. What lies beyond belongs to a
/// newer writer (then this one is stale and must not touch it) or to a run that got further and was found damaged (then it goes once
/// the step is reached again).
///
/// * Of the overtaken complete ones the newest `keep_last` are kept, a later generation before an earlier one: a checkpoint of an
///   earlier generation that this one went back behind must not push out the ones that replaced it.
/// * Of those whose step is a multiple of `keep_every_steps`, the latest generation of each step is kept.
/// * Overtaken folders without a manifest are leftovers of a write that did not end, and go. A write under way is never among them: a
///   writer has one at a time, each later than the last, and `committed` was this one's.
#[must_use]
pub fn decide_removals(entries: &[CheckpointEntry], committed: CheckpointId, retention: Retention) -> Vec<CheckpointId> {
    let overtaken = |id: &CheckpointId| id.step <= committed.step && id.generation <= committed.generation;
    let mut complete: Vec<CheckpointId> =
        entries.iter().filter(|entry| entry.complete && overtaken(&entry.id)).map(|entry| entry.id).collect();
    complete.sort_unstable_by_key(|id| std::cmp::Reverse((id.generation, id.step)));

    let superseded = |id: &CheckpointId| complete.iter().any(|other| other.step == id.step && other.generation > id.generation);
    let kept_for_good =
        |id: &CheckpointId| retention.keep_every_steps.is_some_and(|every| id.step.is_multiple_of(every.get())) && !superseded(id);
    let outdated = complete.iter().copied().skip(retention.keep_last.get() as usize).filter(|id| !kept_for_good(id));
    let abandoned = entries.iter().filter(|entry| !entry.complete && overtaken(&entry.id)).map(|entry| entry.id);

    let mut removals: Vec<CheckpointId> = outdated.chain(abandoned).filter(|&id| id != committed).collect();
    removals.sort_unstable();
    removals
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::Generation;

    fn id(step: u64, epoch: u64) -> CheckpointId {
        CheckpointId { step, generation: Generation { epoch, n: 0 } }
    }

    fn retention(keep_last: u32, every: Option<u64>) -> Retention {
        Retention { keep_last: NonZeroU32::new(keep_last).unwrap(), keep_every_steps: every.and_then(NonZeroU64::new) }
    }

    /// Complete ones as (step, epoch), incomplete ones likewise; the last complete one was just committed.
    fn check(complete: &[(u64, u64)], incomplete: &[(u64, u64)], policy: Retention, expected: &[(u64, u64)]) {
        let entry = |complete| move |&(step, epoch): &(u64, u64)| CheckpointEntry { id: id(step, epoch), complete };
        let entries: Vec<_> = complete.iter().map(entry(true)).chain(incomplete.iter().map(entry(false))).collect();
        let &(step, epoch) = complete.last().unwrap();
        let expected: Vec<_> = expected.iter().map(|&(step, epoch)| id(step, epoch)).collect();
        assert_eq!(decide_removals(&entries, id(step, epoch), policy), expected, "{complete:?} {incomplete:?} {policy:?}");
    }

    #[test]
    fn the_newest_and_every_nth_are_kept() {
        check(&[(10, 1), (20, 1), (30, 1)], &[], retention(2, None), &[(10, 1)]);
        check(&[(10, 1), (20, 1), (30, 1), (40, 1), (45, 1)], &[], retention(1, Some(20)), &[(10, 1), (30, 1)]);
        check(&[(10, 1)], &[], retention(1, None), &[]);
    }

    #[test]
    fn a_run_that_went_back_does_not_lose_what_it_writes() {
        // 1000 of epoch 1 is damaged: epoch 2 went back to 900 and has now written 950 and 1000 again.
        check(&[(900, 1), (1000, 1), (950, 2)], &[], retention(1, None), &[(900, 1)]);
        check(&[(1000, 1), (950, 2), (1000, 2)], &[], retention(2, None), &[(1000, 1)]);
        check(&[(1000, 1), (1000, 2)], &[], retention(1, Some(1000)), &[(1000, 1)]);
    }

    #[test]
    fn a_stale_writer_removes_nothing_of_a_newer_one() {
        check(&[(10, 2), (15, 2), (20, 1)], &[(17, 2)], retention(1, None), &[]);
    }

    #[test]
    fn leftovers_go_and_what_may_be_under_way_stays() {
        check(&[(10, 1), (30, 2)], &[(20, 1), (30, 1), (25, 2), (40, 1), (10, 3)], retention(5, None), &[(20, 1), (25, 2), (30, 1)]);
    }

    proptest! {
        #[test]
        fn the_committed_one_and_the_newest_stay_and_nothing_beyond_is_touched(
            entries in prop::collection::btree_map((0_u64..30, 0_u64..4), any::<bool>(), 1..30), pick: prop::sample::Index, keep in 1_u32..5
        ) {
            let ids: Vec<_> = entries.keys().copied().collect();
            let (step, epoch) = *pick.get(&ids);
            let committed = id(step, epoch);
            let list: Vec<_> = entries
                .iter()
                .map(|(&(step, epoch), &complete)| CheckpointEntry { id: id(step, epoch), complete: complete || id(step, epoch) == committed })
                .collect();
            let removals = decide_removals(&list, committed, retention(keep, None));
            prop_assert!(!removals.contains(&committed));
            prop_assert!(removals.iter().all(|removal| removal.step <= committed.step && removal.generation <= committed.generation));
            let overtaken = |entry: &&CheckpointEntry| entry.id.step <= step && entry.id.generation.epoch <= epoch;
            let left = list.iter().filter(overtaken).filter(|entry| !removals.contains(&entry.id));
            prop_assert!(left.clone().all(|entry| entry.complete));
            let complete = list.iter().filter(overtaken).filter(|entry| entry.complete).count();
            prop_assert_eq!(left.count(), complete.min(keep as usize));
        }
    }
}
