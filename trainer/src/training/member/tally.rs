//! What all members know about a step's samples, and the line of `metrics.jsonl` that every one of them could write.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use lcl_data::{Batch, Location, Orders, RedrawCause, SkipCause};
use lcl_protocol::Generation;
use lcl_torch::{
    StepReport,
    collectives::{Group, GroupError},
};
use lcl_trainer_config::TrainerConfig;

use crate::{
    records::{DataStages, GenerationRecord, RedrawnSample, SkippedSample, StepRecord},
    training::bad_records::{KEPT_LINES, TooManyBad, too_many_bad},
    training::describe::{
        FaultCounts, OfSources, count_sources, count_tolerated, digest_of_samples, slots_of, source_records, sum_of_samples,
        tolerated_images,
    },
};

/// Lines kept by every member: a new leader writes those that the one before it could not write any more.
pub(super) const KEPT: usize = KEPT_LINES;

/// What the members' parts of a step's batch are together.
#[derive(Debug)]
pub(super) struct Shared {
    /// Samples that could be read.
    pub(super) rows: u64,
    images: u64,
    tokens: u64,
    /// Of those.
    digest: String,
    /// Slot and cause of every sample that could not, by ascending slot.
    skipped: Vec<(u64, SkipCause)>,
    /// Slot, cause and number of attempts of every sample in whose place another one is used, by ascending slot.
    redrawn: Vec<(u64, RedrawCause, u32)>,
    /// Images used in spite of each fault.
    tolerated: FaultCounts,
    /// Rows, images and tokens of each source of a mixture.
    sources: Vec<[u64; 3]>,
    /// The sources' parts of the longest wait of a member for its part of the batch, in microseconds.
    waits: Vec<u64>,
}

/// The members' parts of a batch could not be joined.
#[derive(Debug)]
pub(super) enum JoinError {
    /// The group failed.
    Group(GroupError),
    /// The parts are not the batch.
    Parts(PartsError),
}

/// The members' parts of a step's batch are not the samples of this step: one was read twice, or by nobody, or another in its place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "at step {step} the members together read {rows} rows and left out {skipped}, which are not the {batch} samples of this step, each once: \
     nothing was trained from them; please report this"
)]
pub struct PartsError {
    /// The step.
    pub step: u64,
    /// Rows read by all members.
    pub rows: u64,
    /// Samples that they left out.
    pub skipped: u64,
    /// Slots of a step.
    pub batch: u64,
}

/// The samples that belong into a step: [slot, pass, sample] of each slot.
pub(super) struct Wanted<'a> {
    config: &'a TrainerConfig,
    order: &'a Orders,
    step: u64,
}

impl<'a> Wanted<'a> {
    pub(super) fn new(config: &'a TrainerConfig, order: &'a Orders, step: u64) -> Self {
        Self { config, order, step }
    }

    fn locate(&self, slot: u64) -> Location {
        self.order.locate(self.step * self.config.optimization.global_batch_size + slot)
    }

    fn sample(&self, slot: u64) -> [u64; 3] {
        let location = self.locate(slot);
        [slot, location.pass, location.sample]
    }

    /// All but those that could not be read, by ascending slot; an error unless the rows of all members, `rows` with this sum, are these,
    /// each once.
    fn read(&self, rows: u64, sum: u64, skipped: &[(u64, SkipCause)]) -> Result<Vec<[u64; 3]>, PartsError> {
        let batch = self.config.optimization.global_batch_size;
        let is_read = |slot: &[u64; 3]| skipped.binary_search_by_key(&slot[0], |(skipped, _)| *skipped).is_err();
        let all = (0..).zip(self.order.locate_all(self.step * batch..(self.step + 1) * batch));
        let samples: Vec<_> = all.map(|(slot, location)| [slot, location.pass, location.sample]).filter(is_read).collect();
        let left_out = skipped.len() as u64;
        if rows + left_out == batch && sum == sum_of_samples(samples.iter().copied()) {
            return Ok(samples);
        }
        Err(PartsError { step: self.step, rows, skipped: left_out, batch })
    }
}

fn describe_redrawn((slot, (cause, attempts)): (u64, (RedrawCause, u32))) -> [i64; 3] {
    let cause = RedrawCause::ALL.iter().position(|other| *other == cause).unwrap_or_default();
    [slot as i64, cause as i64, i64::from(attempts)]
}

/// The entry of a list that a member has named by its number.
fn entry<T: Copy>(list: &[T], number: i64) -> Option<T> {
    list.get(usize::try_from(number).ok()?).copied()
}

/// What the members list together, by the first number of each entry, a slot. `most` is the length of the longest list; with 0 nothing is asked.
fn exchange_lists<const N: usize>(
    group: &mut Group,
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
    let all = group.exchange(&numbers, timeout).map_err(JoinError::Group)?;
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

/// Times of a step.
pub(super) struct Seconds {
    pub(super) data_wait: f64,
    pub(super) step: f64,
    pub(super) end: Instant,
    /// Of this member's data threads.
    pub(super) stages: Option<DataStages>,
}

/// The newest lines.
#[derive(Debug, Default)]
pub(super) struct Tally {
    records: VecDeque<StepRecord>,
    last_end: Option<Instant>,
}

impl Tally {
    /// Every member learns of all samples of the step before anything is computed from them, and that each is there once. `waits`: parts of
    /// the sources in this member's wait for its part, in microseconds.
    pub(super) fn exchange(
        group: &mut Group,
        batch: &Batch,
        waits: &[u64],
        wanted: &Wanted<'_>,
        timeout: Duration,
    ) -> Result<Shared, JoinError> {
        let read = sum_of_samples(batch.rows.iter().map(|row| [row.slot, row.pass, row.sample]));
        let redrawn: Vec<[i64; 3]> = batch.rows.iter().filter_map(|row| Some((row.slot, row.redrawn?))).map(describe_redrawn).collect();
        let counts = [batch.rows.len(), batch.images, batch.tokens.len(), batch.skipped.len(), redrawn.len()].map(|count| count as i64);
        let own = counts.into_iter().chain([read.cast_signed()]).chain(count_tolerated(batch).map(u64::cast_signed));
        let sources = count_sources(batch, wanted.order);
        let own = own.chain(sources.iter().flatten().chain(waits).map(|count| count.cast_signed()));
        let all = group.exchange(&own.collect::<Vec<i64>>(), timeout).map_err(JoinError::Group)?;
        let sum = |index: usize| all.iter().filter_map(|numbers| numbers.get(index)).sum::<i64>().unsigned_abs();
        let read = all.iter().filter_map(|numbers| numbers.get(5)).fold(0_u64, |sum, part| sum.wrapping_add(part.cast_unsigned()));
        let most =
            |index: usize| all.iter().filter_map(|numbers| numbers.get(index)).max().copied().unwrap_or_default().unsigned_abs() as usize;
        let causes = |cause: SkipCause| SkipCause::ALL.iter().position(|other| *other == cause).unwrap_or_default() as i64;
        let skipped: Vec<[i64; 2]> = batch.skipped.iter().map(|skipped| [skipped.slot as i64, causes(skipped.cause)]).collect();
        let skipped = exchange_lists(group, &skipped, most(3), timeout)?;
        let skipped: Vec<(u64, SkipCause)> =
            skipped.into_iter().filter_map(|[slot, cause]| Some((slot.unsigned_abs(), entry(&SkipCause::ALL, cause)?))).collect();
        let redrawn = exchange_lists(group, &redrawn, most(4), timeout)?;
        let redrawn = redrawn.into_iter().filter_map(|[slot, cause, attempts]| {
            Some((slot.unsigned_abs(), entry(&RedrawCause::ALL, cause)?, u32::try_from(attempts).ok()?))
        });
        let redrawn: Vec<_> = redrawn.collect();
        let samples = wanted.read(sum(0), read, &skipped).map_err(JoinError::Parts)?;
        let tolerated: FaultCounts = std::array::from_fn(|fault| sum(6 + fault));
        let begin = 6 + tolerated.len();
        let waits = longest_wait(all.iter().filter_map(|numbers| numbers.get(begin + 3 * sources.len()..)));
        let sources = (0..sources.len()).map(|source| std::array::from_fn(|part| sum(begin + 3 * source + part))).collect();
        let digest = digest_of_samples(samples.into_iter());
        Ok(Shared { rows: sum(0), images: sum(1), tokens: sum(2), digest, skipped, redrawn, tolerated, sources, waits })
    }

    /// The line of a step that was just committed, the same on all members but for its times.
    pub(super) fn record(
        &mut self,
        wanted: &Wanted<'_>,
        generation: Generation,
        shared: &Shared,
        report: &StepReport,
        seconds: &Seconds,
    ) -> StepRecord {
        let since = self.last_end.map_or(seconds.data_wait + seconds.step, |last| (seconds.end - last).as_secs_f64());
        self.last_end = Some(seconds.end);
        let batch = wanted.config.optimization.global_batch_size;
        let sources = OfSources { counts: &shared.sources, losses: &report.sources, waits: &shared.waits };
        let record = StepRecord {
            step: wanted.step,
            generation: GenerationRecord { epoch: generation.epoch, n: generation.n },
            time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64()),
            slots: slots_of(wanted.step, batch, wanted.order),
            sources: source_records(wanted.step, batch, wanted.order, &sources),
            samples_digest: shared.digest.clone(),
            rows: shared.rows,
            images: shared.images,
            tokens: shared.tokens,
            skipped_samples: shared
                .skipped
                .iter()
                .map(|(slot, cause)| {
                    let [slot, pass, sample] = wanted.sample(*slot);
                    SkippedSample { slot, pass, sample, cause: cause.to_string() }
                })
                .collect(),
            redrawn_samples: shared
                .redrawn
                .iter()
                .map(|(slot, cause, attempts)| {
                    let Location { source, pass, sample, .. } = wanted.locate(*slot);
                    let (slot, used) = (*slot, wanted.order.redraw(source, wanted.step, *slot, *attempts));
                    RedrawnSample { slot, pass, sample, cause: cause.to_string(), attempts: *attempts, used }
                })
                .collect(),
            tolerated_images: tolerated_images(shared.tolerated),
            update_skipped: report.skipped,
            loss: report.total,
            generation_loss: report.generation,
            contrastive_loss: report.contrastive + 0.0,
            gradient_norm: report.gradient_norm,
            learning_rate: report.learning_rate,
            logit_scale: report.logit_scale,
            samples_per_second: shared.rows as f64 / since.max(f64::MIN_POSITIVE),
            step_seconds: seconds.step,
            data_wait_seconds: seconds.data_wait,
            data_stages: seconds.stages,
        };
        if self.records.len() == KEPT {
            self.records.pop_front();
        }
        self.records.push_back(record.clone());
        record
    }

    /// Whether too many of the last records could not be used.
    pub(super) fn too_many_bad(&self, most: f64) -> Option<TooManyBad> {
        too_many_bad(self.records.iter().rev(), most)
    }

    /// Rows that the members read in the steps of these lines, and samples that they left out, by cause.
    pub(super) fn read_and_skipped(&self) -> (u64, BTreeMap<String, u64>) {
        let mut causes = BTreeMap::new();
        for skipped in self.records.iter().flat_map(|record| &record.skipped_samples) {
            *causes.entry(skipped.cause.clone()).or_default() += 1;
        }
        (self.records.iter().map(|record| record.rows).sum(), causes)
    }

    /// The lines for a member that has none: whoever leads next may be new.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        // A record is plain data with string keys: turning it into JSON cannot fail.
        serde_json::to_vec(&self.records).unwrap_or_default()
    }

    /// Takes the lines of another member in place of its own, which led to another state.
    pub(super) fn replace(&mut self, bytes: &[u8]) -> Result<(), serde_json::Error> {
        self.records = serde_json::from_slice(bytes)?;
        Ok(())
    }

    /// This member's lines led to a state that it does not go on from.
    pub(super) fn forget(&mut self) {
        self.records.clear();
    }

    /// Lines of steps from `first` to before `end`, the newest of each.
    pub(super) fn since(&self, first: u64, end: u64) -> Vec<StepRecord> {
        (first..end).filter_map(|step| self.records.iter().rev().find(|record| record.step == step).cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::{ops::Range, sync::Arc, thread};

    use lcl_data::{Dataset, Loader, LoaderOptions};
    use lcl_tests::{data::Fault, run::Workbench};
    use lcl_torch::{
        Device,
        collectives::{AbortHandle, GroupOptions, MemoryStore},
    };

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(30);
    const STEP: u64 = 2;

    /// What a member of two finds that reads these slots of a batch of eight.
    fn member(rank: usize, slots: Range<u64>, store: &MemoryStore, config: &TrainerConfig) -> Result<Shared, JoinError> {
        let dataset = Arc::new(Dataset::open(&config.data).unwrap());
        let options = LoaderOptions {
            model: config.model.shape.clone(),
            objective: config.model.objective,
            seed: config.optimization.seed,
            global_batch_size: config.optimization.global_batch_size,
            slots: slots.into(),
            first_step: STEP,
            last_step: STEP + 1,
        };
        let order = dataset.order(config.optimization.seed, config.optimization.global_batch_size);
        let batch = Loader::start(dataset, &config.data, options).unwrap().next().unwrap().unwrap();
        let options = GroupOptions {
            store: Arc::new(store.session()),
            prefix: "parts".to_owned(),
            rank,
            world_size: 2,
            host: [127, 0, 0, 1].into(),
            device: Device::Cpu,
            timeout: TIMEOUT,
        };
        let mut group = Group::form(options, &AbortHandle::new()).unwrap();
        Tally::exchange(&mut group, &batch, &[], &Wanted::new(config, &order, STEP), TIMEOUT)
    }

    fn join(slots: [Range<u64>; 2], faults: &[(usize, Fault)]) -> [Result<Shared, JoinError>; 2] {
        let workbench = Workbench::new(faults).unwrap();
        let mut config = workbench.begin("parts").unwrap().config;
        config.optimization.global_batch_size = 8;
        let (store, [first, second]) = (MemoryStore::default(), slots);
        thread::scope(|scope| {
            let other = scope.spawn(|| member(1, second, &store, &config));
            [member(0, first, &store, &config), other.join().unwrap()]
        })
    }

    fn wrong(slots: [Range<u64>; 2]) -> [PartsError; 2] {
        join(slots, &[]).map(|found| match found {
            Err(JoinError::Parts(error)) => error,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn the_wait_of_a_step_is_that_of_the_member_who_waited_longest_and_not_a_mixture_of_several() {
        let check = |members: &[&[i64]], expected: &[u64]| assert_eq!(longest_wait(members.iter().copied()), expected, "{members:?}");
        check(&[&[5, 2], &[1, 7], &[4, 4]], &[1, 7]);
        check(&[&[9, 0], &[0, 9]], &[9, 0]);
        check(&[&[], &[]], &[]);
    }

    #[test]
    fn members_that_together_read_each_sample_once_go_on() {
        for found in join([0..5, 5..8], &[]) {
            assert_eq!(found.unwrap().rows, 8);
        }
        let broken: Vec<_> = (0..20).map(|sample| (sample, Fault::TruncatedImage)).collect();
        for found in join([0..5, 5..8], &broken) {
            let found = found.unwrap();
            assert!(found.rows < 8 && found.rows + found.skipped.len() as u64 == 8, "{found:?}");
        }
        // Both know of the faults that cost no pixel in the other's part, too.
        let faulty: Vec<_> = (0..lcl_tests::run::SAMPLES).map(|sample| (sample, Fault::NoEndMark)).collect();
        for found in join([0..5, 5..8], &faulty) {
            assert_eq!(tolerated_images(found.unwrap().tolerated), [("png_end".to_owned(), 8)].into());
        }
    }

    #[test]
    fn a_sample_that_two_members_read_and_one_that_nobody_reads_end_the_step_on_all() {
        // As many rows as there should be: slot 4 twice, slot 7 not at all.
        let twice = PartsError { step: STEP, rows: 8, skipped: 0, batch: 8 };
        assert_eq!(wrong([0..5, 4..7]), [twice.clone(), twice]);
        assert_eq!(wrong([0..4, 5..8]).map(|error| error.rows), [7, 7]);
    }
}
