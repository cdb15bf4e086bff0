//! When so many records are bad that the data, not the records, are wrong.
//!
//! Comes in: the lines of the last steps. Goes out: that the run has to end, with what was wrong. Pure, and the same on all members, who know the
//! same lines.

use std::collections::BTreeMap;

use crate::run::records::StepRecord;

/// Lines that are kept to look at: as many as members of a group know.
pub(super) const KEPT_LINES: usize = 256;

/// Records that are looked at: the last ones.
const LOOKED_AT: u64 = 10_000;

/// Fewer bad records than these say nothing about the others.
const LEAST_BAD: u64 = 100;

/// Too large a part of the last records could not be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TooManyBad {
    /// How many.
    pub(super) bad: u64,
    /// Of how many.
    pub(super) of: u64,
    /// By cause.
    pub(super) causes: BTreeMap<String, u64>,
}

/// Looks at the newest of `lines`, which come with the newest first, until there are enough records.
pub(super) fn too_many_bad<'a>(lines: impl Iterator<Item = &'a StepRecord>, most: f64) -> Option<TooManyBad> {
    let (mut bad, mut of, mut causes) = (0, 0, BTreeMap::new());
    for line in lines {
        bad += line.skipped_samples.len() as u64;
        of += line.rows + line.skipped_samples.len() as u64;
        for skipped in &line.skipped_samples {
            *causes.entry(skipped.cause.clone()).or_insert(0) += 1;
        }
        if of >= LOOKED_AT {
            break;
        }
    }
    (bad >= LEAST_BAD && bad as f64 > most * of as f64).then_some(TooManyBad { bad, of, causes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::records::{SkippedSample, tests::step_record};

    /// A line of a step with so many rows and bad records.
    fn line(rows: u64, bad: u64, cause: &str) -> StepRecord {
        let skipped = |slot| SkippedSample { slot, pass: 0, sample: slot, cause: cause.to_owned() };
        StepRecord { rows, skipped_samples: (0..bad).map(skipped).collect(), ..step_record(0) }
    }

    #[test]
    fn only_a_part_of_at_least_a_hundred_bad_ones_among_the_last_records_is_too_many() {
        let check = |lines: &[StepRecord], most, expected: Option<(u64, u64)>| {
            let found = too_many_bad(lines.iter(), most);
            assert_eq!(found.map(|found| (found.bad, found.of)), expected);
        };
        check(&[line(0, 99, "no_image")], 0.1, None);
        check(&[line(0, 100, "no_image")], 0.1, Some((100, 100)));
        check(&[line(900, 100, "no_image")], 0.1, None);
        check(&[line(899, 100, "no_image")], 0.1, Some((100, 999)));
        check(&[line(0, 100, "no_image")], 1.0, None);
        // What is further back does not count, whichever way it points.
        check(&[line(10_000, 0, ""), line(0, 9_000, "no_image")], 0.1, None);
        check(&[line(8_000, 2_000, "no_image"), line(100_000, 0, "")], 0.1, Some((2_000, 10_000)));
        check(&[], 0.0, None);
    }
}
