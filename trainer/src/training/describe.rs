//! What is written down about a step: its place in the data, what identifies its samples, and its curves. Pure.

use std::{borrow::Cow, collections::BTreeMap, fmt, time::Duration};

use lcl_data::{Batch, Orders, Row, Tolerated};
use lcl_torch::{SourceLosses, Terms};

use crate::run::records::{Record, SlotRange, SourceRecord};

/// The slots of a step: cut where a pass ends, unless there are several sources, whose passes are their own.
pub(super) fn slots_of(step: u64, batch: u64, order: &Orders) -> Vec<SlotRange> {
    if order.names().is_empty() {
        slot_ranges(step, batch, order.samples_per_pass())
    } else {
        vec![SlotRange { pass: 0, first: 0, end: batch }]
    }
}

/// Rows, images and tokens of each source of a mixture; nothing when there is but one source.
pub(super) fn count_sources(batch: &Batch, order: &Orders) -> Vec<[u64; 3]> {
    let mut counts = vec![[0; 3]; order.names().len()];
    for row in &batch.rows {
        if let Some(counts) = counts.get_mut(order.source_of(row.sample)) {
            let own = [1, row.images.len() as u64, row.tokens.len() as u64];
            counts.iter_mut().zip(own).for_each(|(count, own)| *count += own);
        }
    }
    counts
}

/// The sources' parts of a wait for a batch, in microseconds: in the proportion of the time that data threads spent on the slots of each.
pub(super) fn share_wait(wait: Duration, spent: &[Duration], order: &Orders) -> Vec<u64> {
    let of = |source: usize| spent.get(source).map_or(0, Duration::as_nanos);
    let all: u128 = (0..order.names().len()).map(of).sum();
    // No greater than the wait.
    (0..order.names().len()).map(|source| (wait.as_micros() * of(source) / all.max(1)) as u64).collect()
}

/// Figures of a step by source, in the order of the sources; all empty when there is but one source.
pub(super) struct OfSources<'a> {
    /// Rows, images and tokens.
    pub(super) counts: &'a [[u64; 3]],
    /// Of the global batch; empty for a step without an update.
    pub(super) losses: &'a [SourceLosses],
    /// Microseconds.
    pub(super) waits: &'a [u64],
}

/// What a step took of each source of a mixture, and what came of it.
pub(super) fn source_records(step: u64, batch: u64, order: &Orders, figures: &OfSources<'_>) -> Vec<SourceRecord> {
    let positions = order.positions(step * batch..(step + 1) * batch);
    let mean = |terms: &Terms| terms.mean().filter(|mean| mean.is_finite());
    let record = |(source, (name, positions)): (usize, (&String, std::ops::Range<u64>))| {
        let [rows, images, tokens] = figures.counts.get(source).copied().unwrap_or_default();
        let SourceLosses { generation, contrastive } = figures.losses.get(source).copied().unwrap_or_default();
        SourceRecord {
            name: name.clone(),
            first: positions.start,
            end: positions.end,
            rows,
            images,
            tokens,
            predicted_tokens: generation.count,
            generation_loss: mean(&generation),
            contrastive_images: contrastive.count,
            contrastive_loss: mean(&contrastive),
            data_wait_seconds: figures.waits.get(source).map_or(0.0, |wait| Duration::from_micros(*wait).as_secs_f64()),
        }
    };
    order.names().iter().zip(positions).enumerate().map(record).collect()
}

/// The source of each row; nothing when there is but one source.
pub(super) fn sources_of(rows: &[Row], order: &Orders) -> Vec<u32> {
    let rows = if order.names().is_empty() { &[] } else { rows };
    rows.iter().map(|row| order.source_of(row.sample) as u32).collect()
}

/// The global batch of a step, cut where a pass ends.
fn slot_ranges(step: u64, batch: u64, samples_per_pass: u64) -> Vec<SlotRange> {
    let mut ranges = Vec::new();
    let mut slot = 0;
    while slot < batch {
        let total = step.saturating_mul(batch).saturating_add(slot);
        let left_in_pass = samples_per_pass.max(1) - total % samples_per_pass.max(1);
        let end = batch.min(slot.saturating_add(left_in_pass));
        ranges.push(SlotRange { pass: total / samples_per_pass.max(1), first: slot, end });
        slot = end;
    }
    ranges
}

/// What identifies a set of samples, however it is cut into parts: the sum, without carry, of every sample's BLAKE3 as four numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SampleSum(pub(super) [u64; 4]);

impl SampleSum {
    /// Of (slot, pass, sample) of each.
    pub(super) fn of(samples: impl Iterator<Item = [u64; 3]>) -> Self {
        let mut sum = [0_u64; 4];
        for sample in samples {
            let mut hasher = blake3::Hasher::new();
            for number in sample {
                hasher.update(&number.to_le_bytes());
            }
            let hash = hasher.finalize();
            for (sum, bytes) in sum.iter_mut().zip(hash.as_bytes().as_chunks::<8>().0) {
                *sum = sum.wrapping_add(u64::from_le_bytes(*bytes));
            }
        }
        Self(sum)
    }
}

impl fmt::Display for SampleSum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|number| write!(f, "{number:016x}"))
    }
}

/// Images that were used in spite of each fault of [`Tolerated::ALL`].
pub(super) type FaultCounts = [u64; Tolerated::ALL.len()];

/// Counts the batch's images by the fault that cost them no pixel.
pub(super) fn count_tolerated(batch: &Batch) -> FaultCounts {
    Tolerated::ALL.map(|fault| batch.rows.iter().flat_map(|row| &row.tolerated).filter(|found| **found == fault).count() as u64)
}

/// The faults that there are, by name.
pub(super) fn tolerated_images(counts: FaultCounts) -> BTreeMap<String, u64> {
    let found = Tolerated::ALL.into_iter().zip(counts).filter(|(_, count)| *count > 0);
    found.map(|(fault, count)| (fault.to_string(), count)).collect()
}

/// Adds counts by name to others.
pub(super) fn add_counts(totals: &mut BTreeMap<String, u64>, counts: &BTreeMap<String, u64>) {
    for (name, count) in counts {
        *totals.entry(name.clone()).or_default() += count;
    }
}

/// The curves of a record in `TensorBoard`.
pub(super) fn scalars(record: &Record) -> Vec<(Cow<'static, str>, f64)> {
    let mut curves: Vec<_> = curves(record).into_iter().map(|(name, value)| (Cow::Borrowed(name), value)).collect();
    if let Record::Step(step) = record {
        curves.extend(step.sources.iter().flat_map(source_curves));
    }
    curves
}

/// The curves of a source: named as those of all sources together, with its name behind.
fn source_curves(source: &SourceRecord) -> impl Iterator<Item = (Cow<'static, str>, f64)> {
    let curves = [
        ("loss/generation", source.generation_loss),
        ("loss/contrastive", source.contrastive_loss),
        ("speed/data_wait_seconds", Some(source.data_wait_seconds)),
        ("data/rows", Some(source.rows as f64)),
        ("data/images", Some(source.images as f64)),
        ("data/tokens", Some(source.tokens as f64)),
    ];
    curves.into_iter().filter_map(|(curve, value)| Some((Cow::Owned(format!("{curve}/{}", source.name)), value?)))
}

fn curves(record: &Record) -> Vec<(&'static str, f64)> {
    match record {
        Record::Step(step) => vec![
            ("loss/total", step.loss),
            ("loss/generation", step.generation_loss),
            ("loss/contrastive", step.contrastive_loss),
            ("optimizer/gradient_norm", step.gradient_norm),
            ("optimizer/learning_rate", step.learning_rate),
            ("optimizer/update_skipped", f64::from(u8::from(step.update_skipped))),
            ("model/logit_scale", step.logit_scale),
            ("speed/samples_per_second", step.samples_per_second),
            ("speed/step_seconds", step.step_seconds),
            ("speed/data_wait_seconds", step.data_wait_seconds),
            ("data/tokens", step.tokens as f64),
            ("data/skipped_samples", step.skipped_samples.len() as f64),
            ("data/images", step.images as f64),
            ("data/redrawn_samples", step.redrawn_samples.len() as f64),
            ("data/tolerated_images", step.tolerated_images.values().sum::<u64>() as f64),
        ],
        Record::CheckpointCommitted(checkpoint) => {
            vec![("checkpoint/stall_seconds", checkpoint.stall_seconds), ("checkpoint/write_seconds", checkpoint.write_seconds)]
        }
        Record::CheckpointFailed(failed) => vec![("checkpoint/failures", failed.failures as f64)],
        Record::Started(_) | Record::Ended(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use lcl_data::{Order, Pace, mixture::Mixture};

    use super::*;
    use crate::run::records::{StepRecord, tests::step_record};

    /// Two sources that take turns, the second first.
    fn two_sources() -> Orders {
        let order = |first, source| (first, Order::new(0, source, Arc::from([5]), Pace::new(4, 2), 1, 5));
        Orders::new(Mixture::by_samples(&[1, 1]), vec!["pairs".to_owned(), "pages".to_owned()], vec![order(0, 0), order(5, 1)])
    }

    #[test]
    fn a_wait_is_shared_in_the_proportion_of_the_time_that_the_slots_of_each_source_took() {
        let check = |wait: u64, spent: &[u64], expected: &[u64]| {
            let spent: Vec<_> = spent.iter().copied().map(Duration::from_millis).collect();
            assert_eq!(share_wait(Duration::from_micros(wait), &spent, &two_sources()), expected, "{wait} {spent:?}");
        };
        check(1_000, &[30, 10], &[750, 250]);
        check(1_000, &[30], &[1_000, 0]);
        check(u64::MAX >> 1, &[0, u64::MAX / 1_000_000], &[0, u64::MAX >> 1]);
        check(9, &[], &[0, 0]);
    }

    #[test]
    fn each_source_has_its_own_means_counts_and_curves() {
        let terms = |sum, count| Terms { sum, count };
        let losses = [
            SourceLosses { generation: terms(30.0, 10), contrastive: terms(0.0, 0) },
            SourceLosses { generation: terms(8.0, 2), contrastive: terms(f64::NAN, 3) },
        ];
        let figures = OfSources { counts: &[[1, 1, 12], [2, 4, 40]], losses: &losses, waits: &[500_000, 0] };
        let records = source_records(1, 3, &two_sources(), &figures);
        let [pairs, pages] = records.as_slice() else { panic!("{records:?}") };
        // Of positions 3, 4 and 5 the one in the middle is of the second source.
        assert_eq!((pairs.first, pairs.end, pages.first, pages.end), (1, 3, 2, 3));
        assert_eq!((pairs.generation_loss, pairs.predicted_tokens, pairs.contrastive_loss), (Some(3.0), 10, None));
        assert_eq!((pages.generation_loss, pages.contrastive_loss, pages.contrastive_images), (Some(4.0), None, 3));
        assert_eq!((pairs.data_wait_seconds, pages.images, pages.tokens), (0.5, 4, 40));

        let curves = scalars(&Record::Step(Box::new(StepRecord { sources: records.clone(), ..step_record(1) })));
        let value = |name: &str| curves.iter().find(|(curve, _)| curve == name).map(|(_, value)| *value);
        assert_eq!((value("loss/generation/pairs"), value("loss/generation/pages")), (Some(3.0), Some(4.0)));
        assert_eq!((value("loss/contrastive/pairs"), value("data/tokens/pages")), (None, Some(40.0)));
        assert_eq!((value("speed/data_wait_seconds/pairs"), value("data/rows/pages")), (Some(0.5), Some(2.0)));
        assert_eq!(value("loss/generation"), Some(4.5), "that of all of them");
    }

    fn check(step: u64, batch: u64, pass: u64, expected: &[(u64, u64, u64)]) {
        let ranges: Vec<_> = slot_ranges(step, batch, pass).iter().map(|range| (range.pass, range.first, range.end)).collect();
        assert_eq!(ranges, expected, "step {step} of {batch} slots, {pass} samples a pass");
    }

    #[test]
    fn a_batch_is_cut_where_a_pass_ends() {
        check(0, 4, 10, &[(0, 0, 4)]);
        check(2, 4, 10, &[(0, 0, 2), (1, 2, 4)]);
        check(3, 4, 10, &[(1, 0, 4)]);
        check(0, 7, 3, &[(0, 0, 3), (1, 3, 6), (2, 6, 7)]);
        check(5, 1, 1, &[(5, 0, 1)]);
    }

    #[test]
    fn a_sum_of_samples_depends_on_which_they_are_and_not_on_their_order() {
        let sum = |slots: &[u64]| SampleSum::of(slots.iter().map(|slot| [*slot, 0, 100 + slot]));
        assert_eq!(sum(&[0, 1, 2, 3]), sum(&[2, 0, 3, 1]));
        let (first, second, all) = (sum(&[0, 1]), sum(&[2, 3]), sum(&[0, 1, 2, 3]));
        assert_eq!(std::array::from_fn(|index| first.0[index].wrapping_add(second.0[index])), all.0, "of the parts");
        assert_ne!(sum(&[0, 1, 1, 3]), all, "one twice and one not at all");
        assert_ne!(sum(&[0, 1, 2]), all);
        assert_ne!(SampleSum::of([[1, 0, 2]].into_iter()), SampleSum::of([[2, 0, 1]].into_iter()));
        assert_eq!(all.to_string().len(), 64);
    }
}
