//! Whether the members' states are still the same: a flipped bit, or a processor that rounds otherwise, would spoil what all compute, unseen.
//!
//! Comes in: how long a comparison and a step take. Goes out: before which steps all members compare a checksum of their states, and whose
//! differ. The checksum rides on the step's exchange. All members come to the same answer, since they hear the same numbers.

use std::{collections::BTreeMap, time::Duration};

/// Part of the time that comparing may take.
const BUDGET: f64 = 0.001;
/// Most steps between two comparisons, however long one takes.
const MOST_STEPS: u64 = 10_000;

/// What a member says of its state: a checksum, and after how many steps it would compare again.
pub(super) type Word = [i64; 2];

/// When states are compared next.
#[derive(Debug, Default)]
pub(super) struct StateWatch {
    /// The step before which they are; `None` before the group's first.
    due: Option<u64>,
    /// Of the newest step.
    step: Option<Duration>,
}

impl StateWatch {
    /// A group begins: its members have just come to hold the same.
    pub(super) fn begin(&mut self) {
        self.due = None;
    }

    /// Whether all compare before this step. In a group that begins it is the second, when it is known how long a step takes.
    pub(super) fn is_due(&mut self, step: u64) -> bool {
        *self.due.get_or_insert(step + 1) <= step
    }

    /// A step has taken so long.
    pub(super) fn note(&mut self, step: Duration) {
        self.step = Some(step);
    }

    /// What to say with a checksum that has taken `took`.
    pub(super) fn word(&self, checksum: u64, took: Duration) -> Word {
        // A process that has not made a step yet cannot tell: it says more the next time.
        let interval = self.step.map_or(1.0, |step| {
            let step = step.as_secs_f64().max(f64::MIN_POSITIVE);
            (took.as_secs_f64() / (BUDGET * step)).ceil().clamp(1.0, MOST_STEPS as f64)
        });
        [checksum.cast_signed(), interval as i64]
    }

    /// After a comparison before `step`: when the next one is, by the member that wants it last.
    pub(super) fn compared(&mut self, step: u64, words: &[Word]) {
        let interval = words.iter().map(|[_, interval]| interval.unsigned_abs()).max().unwrap_or(1);
        self.due = Some(step + interval.clamp(1, MOST_STEPS));
    }
}

/// How often this process was found to hold another state than the others, or to compute otherwise than a second member.
#[derive(Debug, Default)]
pub(super) struct Differences(u32);

impl Differences {
    /// How often that may happen before the machine is taken for unfit.
    const MOST: u32 = 2;

    /// Some were found, and this process is one of them or not. An error, how often, once that is too often.
    pub(super) fn note(&mut self, is_own: bool) -> Result<(), u32> {
        self.0 += u32::from(is_own);
        if self.0 > Self::MOST { Err(self.0) } else { Ok(()) }
    }
}

/// Ranks whose state is not that of most members; of values that equally many have, that of the lowest rank counts.
pub(super) fn differing(words: &[Word]) -> Vec<u32> {
    let mut counts: BTreeMap<i64, (usize, usize)> = BTreeMap::new();
    for (rank, [checksum, _]) in words.iter().enumerate() {
        counts.entry(*checksum).or_insert((0, rank)).0 += 1;
    }
    let most = counts.iter().max_by_key(|(_, (count, first))| (*count, usize::MAX - first)).map(|(checksum, _)| *checksum);
    (0..).zip(words).filter(|(_, [checksum, _])| Some(*checksum) != most).map(|(rank, _)| rank).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_differs_is_the_smaller_part_or_the_later_ranks() {
        let check = |checksums: &[i64], expected: &[u32]| {
            let words: Vec<Word> = checksums.iter().map(|checksum| [*checksum, 1]).collect();
            assert_eq!(differing(&words), expected, "{checksums:?}");
        };
        check(&[], &[]);
        check(&[5], &[]);
        check(&[5, 5, 5], &[]);
        check(&[5, 5, 6], &[2]);
        check(&[6, 5, 5], &[0]);
        check(&[6, 5], &[1]);
        check(&[7, 5, 5, 7, 9], &[1, 2, 4]);
        check(&[-1, 5, 5, -2, 5], &[0, 3]);
    }

    #[test]
    fn only_the_third_own_difference_makes_a_machine_unfit() {
        let mut differences = Differences::default();
        let found = [true, false, true, false, false, true].map(|is_own| differences.note(is_own));
        assert_eq!(found, [Ok(()), Ok(()), Ok(()), Ok(()), Ok(()), Err(3)]);
    }

    #[test]
    fn comparisons_take_a_thousandth_of_the_time_and_all_members_agree_when() {
        let (mut watch, ms) = (StateWatch::default(), Duration::from_millis);
        assert!(!watch.is_due(7));
        assert!(watch.is_due(8), "the second step of a group");
        assert_eq!(watch.word(3, ms(1)), [3, 1], "before its first step");
        watch.note(ms(100));
        assert_eq!(watch.word(u64::MAX, ms(1)), [-1, 10]);
        assert_eq!(watch.word(3, Duration::ZERO), [3, 1]);
        assert_eq!(watch.word(3, Duration::from_hours(1)), [3, 10_000]);
        watch.compared(8, &[[3, 10], [3, 40]]);
        assert!(!watch.is_due(47) && watch.is_due(48));
        watch.compared(48, &[[3, 0], [3, i64::MIN]]);
        assert!(watch.is_due(10_048) && !watch.is_due(10_047), "whatever they say");
        watch.begin();
        assert!(!watch.is_due(48) && watch.is_due(49), "another group");
    }
}
