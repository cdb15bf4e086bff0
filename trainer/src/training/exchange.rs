//! What the members of a step tell each other before they compute it: one small collective.
//!
//! Comes in: a member's own part of the batch. Goes out: what all parts are together, the same on all members, and that they are the samples
//! of this step, each once. Each member looks at its own part alone; sums over all parts are compared. A process that trains alone takes the
//! same way and tells nobody.

use std::time::Duration;

use lcl_data::{Batch, Location, Orders, RedrawCause, SkipCause, Slots};
use lcl_torch::{
    Counts,
    collectives::{Group, GroupError},
    shards_of,
};

use super::{
    describe::{FaultCounts, SampleSum, count_sources, count_tolerated},
    state_watch::Word,
};

#[cfg(test)]
mod tests;

/// The members' parts of a batch could not be joined.
#[derive(Debug)]
pub(super) enum JoinError {
    /// The group failed.
    Group(GroupError),
    /// The parts are not the batch.
    Parts(PartsError),
}

/// A step's samples are not what they should be: one was read twice, or by nobody, or another in its place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PartsError {
    /// The members' parts together are not the batch.
    #[error(
        "at step {step} the members together read {rows} rows and left out {skipped}, which are not the {batch} slots of this step, each once: \
         nothing was trained from them; please report this"
    )]
    Together {
        /// The step.
        step: u64,
        /// Rows read by all members.
        rows: u64,
        /// Samples that they left out.
        skipped: u64,
        /// Slots of a step.
        batch: u64,
    },
    /// This member's own part is not what belongs into its slots.
    #[error(
        "at step {step} this member read {rows} rows and left out {skipped}, which are not the samples of its {slots} slots: nothing was trained \
         from them; please report this"
    )]
    Own {
        /// The step.
        step: u64,
        /// Rows it read.
        rows: u64,
        /// Samples it left out.
        skipped: u64,
        /// Its slots.
        slots: u64,
    },
}

/// The samples that belong into a step.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) order: &'a Orders,
    /// Slots of a step.
    pub(super) batch: u64,
    /// [`sum_of_slots`] of all of them, which nobody has to work out in every step.
    pub(super) all_slots: u64,
    pub(super) step: u64,
}

impl Wanted<'_> {
    pub(super) fn locate(&self, slot: u64) -> Location {
        self.order.locate(self.step * self.batch + slot)
    }

    /// That the batch has what belongs into these slots, each read or left out.
    fn check(&self, slots: &Slots, batch: &Batch) -> Result<(), PartsError> {
        let rows = batch.rows.iter().map(|row| (row.slot, row.pass, row.sample));
        let mut found: Vec<_> = rows.chain(batch.skipped.iter().map(|skipped| (skipped.slot, skipped.pass, skipped.sample))).collect();
        found.sort_unstable();
        let first = self.step * self.batch;
        let wanted = slots.ranges().iter().flat_map(|range| {
            let locations = self.order.locate_all(first + range.start..first + range.end);
            range.clone().zip(locations).map(|(slot, location)| (slot, location.pass, location.sample))
        });
        if wanted.eq(found) {
            return Ok(());
        }
        let (rows, skipped) = (batch.rows.len() as u64, batch.skipped.len() as u64);
        Err(PartsError::Own { step: self.step, rows, skipped, slots: slots.count() })
    }
}

/// What one member has to tell.
pub(super) struct Own<'a> {
    /// Its slots.
    pub(super) slots: &'a Slots,
    /// What it read for them.
    pub(super) batch: &'a Batch,
    /// Parts of the sources in its wait for that, in microseconds; empty when there is but one source.
    pub(super) waits: &'a [u64],
    /// What the losses of its rows are sums over; in exact mode one for each of its virtual shards.
    pub(super) counts: &'a [Counts],
    /// Virtual shards of the batch; `None` outside of exact mode.
    pub(super) shards: Option<usize>,
    /// What it wishes, bit by bit.
    pub(super) wish: i64,
    /// What it says of its state, when states are compared.
    pub(super) state: Option<Word>,
}

/// What the members' parts of a step's batch are together.
#[derive(Debug)]
pub(super) struct Shared {
    /// Samples that could be read.
    pub(super) rows: u64,
    pub(super) images: u64,
    pub(super) tokens: u64,
    /// Of those.
    pub(super) samples: SampleSum,
    /// Slot and cause of every sample that could not, by ascending slot.
    pub(super) skipped: Vec<(u64, SkipCause)>,
    /// Slot, cause and number of attempts of every sample in whose place another one is used, by ascending slot.
    pub(super) redrawn: Vec<(u64, RedrawCause, u32)>,
    /// Images used in spite of each fault.
    pub(super) tolerated: FaultCounts,
    /// Rows, images and tokens of each source of a mixture.
    pub(super) sources: Vec<[u64; 3]>,
    /// The sources' parts of the longest wait of a member for its part of the batch, in microseconds.
    pub(super) waits: Vec<u64>,
    /// Of every member in rank order, in exact mode of every shard.
    pub(super) counts: Vec<Counts>,
    /// What any member wishes.
    pub(super) wishes: i64,
    /// What every member says of its state, in rank order; zeros when states are not compared.
    pub(super) states: Vec<Word>,
}

/// Numbers of a member that are always there.
const HEAD: usize = 13;

/// How the numbers of a member follow each other; the same on all.
struct Sections {
    sources: usize,
    /// Most virtual shards of a member.
    shards: usize,
}

impl Sections {
    /// The numbers cut into: those that are always there, faults, sources, waits, counts.
    fn cut<'a>(&self, numbers: &'a [i64]) -> [&'a [i64]; 5] {
        let lengths = [HEAD, FaultCounts::default().len(), 3 * self.sources, self.sources, 2 * self.shards];
        let mut rest = numbers;
        lengths.map(|length| {
            let (section, behind) = rest.split_at_checked(length).unwrap_or((rest, &[]));
            rest = behind;
            section
        })
    }
}

impl Own<'_> {
    fn numbers(&self, wanted: &Wanted<'_>, sections: &Sections) -> Vec<i64> {
        let Self { batch, .. } = self;
        let redrawn = batch.rows.iter().filter(|row| row.redrawn.is_some()).count();
        let lengths = [batch.rows.len(), batch.images, batch.tokens.len(), batch.skipped.len(), redrawn].map(|count| count as i64);
        let slots = batch.rows.iter().map(|row| row.slot).chain(batch.skipped.iter().map(|skipped| skipped.slot));
        let samples = SampleSum::of(batch.rows.iter().map(|row| [row.slot, row.pass, row.sample]));
        let mut numbers = Vec::from(lengths);
        numbers.push(sum_of_slots(slots).cast_signed());
        numbers.extend(samples.0.map(u64::cast_signed));
        numbers.push(self.wish);
        numbers.extend(self.state.unwrap_or_default());
        numbers.extend(count_tolerated(batch).map(u64::cast_signed));
        numbers.extend(count_sources(batch, wanted.order).iter().flatten().map(|count| count.cast_signed()));
        numbers.extend(self.waits.iter().map(|wait| wait.cast_signed()));
        let counts = self.counts.iter().flat_map(|counts| [counts.predictions, counts.contrast]).map(u64::cast_signed);
        numbers.extend(counts.chain(std::iter::repeat(0)).take(2 * sections.shards));
        numbers
    }
}

/// Every member learns of all samples of the step before anything is computed from them, and that each is there once; alone without `group`.
pub(super) fn exchange(mut group: Option<&mut Group>, own: &Own<'_>, wanted: &Wanted<'_>, timeout: Duration) -> Result<Shared, JoinError> {
    wanted.check(own.slots, own.batch).map_err(JoinError::Parts)?;
    let world = group.as_ref().map_or(1, |group| group.world_size());
    let sections = Sections { sources: wanted.order.names().len(), shards: own.shards.map_or(1, |total| shards_of(0, world, total).len()) };
    let numbers = own.numbers(wanted, &sections);
    let all = tell(group.as_deref_mut(), numbers, timeout)?;
    let members: Vec<_> = all.iter().map(|numbers| sections.cut(numbers)).collect();
    let numbers_at = |section: usize, index: usize| members.iter().filter_map(move |sections| sections[section].get(index).copied());
    let sum = |section: usize, index: usize| numbers_at(section, index).sum::<i64>().unsigned_abs();
    let wrapping = |index: usize| numbers_at(0, index).fold(0_u64, |sum, part| sum.wrapping_add(part.cast_unsigned()));
    let most = |index: usize| numbers_at(0, index).max().unwrap_or_default().unsigned_abs() as usize;
    let (rows, left_out) = (sum(0, 0), sum(0, 3));
    if rows + left_out != wanted.batch || wrapping(5) != wanted.all_slots {
        return Err(JoinError::Parts(PartsError::Together { step: wanted.step, rows, skipped: left_out, batch: wanted.batch }));
    }
    let counts = members.iter().enumerate().flat_map(|(rank, sections)| {
        let shards = own.shards.map_or(1, |total| shards_of(rank, world, total).len());
        sections[4].as_chunks::<2>().0.iter().take(shards)
    });
    let counts =
        counts.map(|[predictions, contrast]| Counts { predictions: predictions.unsigned_abs(), contrast: contrast.unsigned_abs() });
    Ok(Shared {
        rows,
        images: sum(0, 1),
        tokens: sum(0, 2),
        samples: SampleSum([6, 7, 8, 9].map(wrapping)),
        skipped: skipped_of_all(group.as_deref_mut(), own.batch, most(3), timeout)?,
        redrawn: redrawn_of_all(group, own.batch, most(4), timeout)?,
        tolerated: std::array::from_fn(|fault| sum(1, fault)),
        sources: (0..sections.sources).map(|source| std::array::from_fn(|part| sum(2, 3 * source + part))).collect(),
        waits: longest_wait(members.iter().map(|sections| sections[3])),
        counts: counts.collect(),
        wishes: numbers_at(0, 10).fold(0, |all, wish| all | wish),
        states: numbers_at(0, 11).zip(numbers_at(0, 12)).map(Word::from).collect(),
    })
}

/// Every member's numbers, in rank order.
fn tell(group: Option<&mut Group>, numbers: Vec<i64>, timeout: Duration) -> Result<Vec<Vec<i64>>, JoinError> {
    match group {
        Some(group) => group.exchange(&numbers, timeout).map_err(JoinError::Group),
        None => Ok(vec![numbers]),
    }
}

/// A number by which sets of slots are told apart: two that differ have, but for one case in 2⁶⁴, another one.
pub(super) fn sum_of_slots(slots: impl Iterator<Item = u64>) -> u64 {
    let SampleSum([sum, ..]) = SampleSum::of(slots.map(|slot| [slot, 0, 0]));
    sum
}

fn skipped_of_all(group: Option<&mut Group>, batch: &Batch, most: usize, timeout: Duration) -> Result<Vec<(u64, SkipCause)>, JoinError> {
    let number = |cause: SkipCause| SkipCause::ALL.iter().position(|other| *other == cause).unwrap_or_default() as i64;
    let own: Vec<[i64; 2]> = batch.skipped.iter().map(|skipped| [skipped.slot as i64, number(skipped.cause)]).collect();
    let all = exchange_lists(group, &own, most, timeout)?;
    Ok(all.into_iter().filter_map(|[slot, cause]| Some((slot.unsigned_abs(), entry(&SkipCause::ALL, cause)?))).collect())
}

fn redrawn_of_all(
    group: Option<&mut Group>,
    batch: &Batch,
    most: usize,
    timeout: Duration,
) -> Result<Vec<(u64, RedrawCause, u32)>, JoinError> {
    let number = |cause: RedrawCause| RedrawCause::ALL.iter().position(|other| *other == cause).unwrap_or_default() as i64;
    let own = batch.rows.iter().filter_map(|row| row.redrawn.map(|(cause, attempts)| [row.slot as i64, number(cause), attempts.into()]));
    let all = exchange_lists(group, &own.collect::<Vec<[i64; 3]>>(), most, timeout)?;
    let entries = all
        .into_iter()
        .filter_map(|[slot, cause, attempts]| Some((slot.unsigned_abs(), entry(&RedrawCause::ALL, cause)?, u32::try_from(attempts).ok()?)));
    Ok(entries.collect())
}

/// The entry of a list that a member has named by its number.
fn entry<T: Copy>(list: &[T], number: i64) -> Option<T> {
    list.get(usize::try_from(number).ok()?).copied()
}

/// What the members list together, by the first number of each entry, a slot. `most` is the length of the longest list; with 0 nothing is asked.
fn exchange_lists<const N: usize>(
    group: Option<&mut Group>,
    list: &[[i64; N]],
    most: usize,
    timeout: Duration,
) -> Result<Vec<[i64; N]>, JoinError> {
    if most == 0 {
        return Ok(Vec::new());
    }
    // Everyone's list has the length of the longest; a negative slot is none.
    let mut numbers = list.concat();
    numbers.resize(N * most, -1);
    let all = tell(group, numbers, timeout)?;
    let entries = all.iter().flat_map(|numbers| numbers.as_chunks::<N>().0).filter(|entry| entry.first().is_some_and(|slot| *slot >= 0));
    let mut entries: Vec<[i64; N]> = entries.copied().collect();
    entries.sort_unstable();
    Ok(entries)
}

/// Of the members' waits, each by source, that of the member who waited longest, the first of several. The others waited for this one.
fn longest_wait<'a>(members: impl Iterator<Item = &'a [i64]>) -> Vec<u64> {
    let length = |waits: &[i64]| waits.iter().sum::<i64>();
    let longest = members.reduce(|longest, waits| if length(waits) > length(longest) { waits } else { longest });
    longest.into_iter().flatten().map(|wait| wait.unsigned_abs()).collect()
}
