//! What the steps of a process need, whether it trains alone or as a member of a group: its samples, its learner, how far it is.
//!
//! Comes in: the group, or none. Goes out: the line of a step that is done. A failed collective never reaches the weights: the learner
//! applies an update only when every gradient was summed without an error, so that the next group can do the same step again.

use std::{
    ops::Range,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use lcl_checkpoint::CheckpointId;
use lcl_data::{Batch, Dataset, Loader, LoaderOptions, Orders, Slots};
use lcl_protocol::{
    Generation,
    drive::{Failure, Halt, Standing},
};
use lcl_torch::{
    Learner, LearnerError, MemberStep, RowPreparer, StepReport,
    collectives::{Group, GroupError, Usage},
    step_span,
};
use lcl_trainer_config::TrainerConfig;

use super::{
    MemberRunError, TrainError, bad_data,
    describe::share_wait,
    exchange::{JoinError, Own, Shared, Wanted, exchange, sum_of_slots},
    metadata, nothing_trained,
    own_rows::{OwnRows, RowMaker, Second, second_of},
    prepare::{Progress, Provenance, suspect, with_provenance},
    saver::{Facts, Saver},
    state_watch::{Differences, StateWatch, Word, differing},
    tally::{Seconds, Tally},
};
use crate::{
    chain,
    run::{
        identity::Identity,
        records::{DataStages, StepRecord},
        state_log::{self, Origin},
    },
};

/// Of a single exchange. A member that is lost or stands still is noticed by its broken connection or by the coordinator (by default after
/// two minutes) before; the time-out is for what neither shows (decision 10). Members wait for the slowest one's data, too.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(150);

/// Longest wait for the samples of another member's shard, which this one computes a second time. Without them that is left out.
const SECOND_PATIENCE: Duration = Duration::from_secs(10);

/// See the module's description.
pub(super) struct Stepper {
    pub(super) config: TrainerConfig,
    pub(super) dataset: Arc<Dataset>,
    pub(super) order: Orders,
    pub(super) learner: Learner,
    pub(super) identity: Identity,
    /// See [`super::own_rows::machine_of`].
    pub(super) machine: Option<String>,
    pub(super) progress: Progress,
    /// Completed steps of the checkpoint that the state was read from, if nothing was trained since.
    pub(super) restored: Option<u64>,
    /// The checkpoint that this process has read.
    pub(super) came_from: Option<CheckpointId>,
    pub(super) tally: Tally,
    preparer: RowPreparer,
    samples: Option<Samples>,
    /// See [`Wanted::all_slots`].
    all_slots: u64,
    watch: StateWatch,
    differences: Differences,
}

/// Where the next batches come from.
struct Samples {
    slots: Slots,
    /// The step of the next batch.
    next: u64,
    /// `None`: there are none to read.
    loader: Option<Loader>,
    /// The next batch, when it was made ready while the step before was computed.
    ahead: Option<Result<Ready, TrainError>>,
}

/// A batch and the rows that are made of it.
struct Ready {
    batch: Batch,
    /// How long data threads were at its sources.
    spent: Vec<Duration>,
    /// When it was there.
    there: Instant,
    rows: OwnRows,
}

impl Ready {
    /// Takes the next batch; `place`: rank and members.
    fn take(loader: Option<&mut Loader>, step: u64, maker: RowMaker<'_>, place: (usize, usize)) -> Result<Self, TrainError> {
        let (batch, spent) = match loader {
            Some(loader) => (loader.next().ok_or(TrainError::DataEnded { step })?.map_err(TrainError::from)?, loader.spent()),
            None => (Batch::empty(step), Vec::new()),
        };
        let there = Instant::now();
        let _span = step_span!("prepare rows", step);
        Ok(Self { rows: OwnRows::prepare(maker, &batch, place)?, batch, spent, there })
    }
}

/// A step whose samples are there, and of which all members know what the others have.
pub(super) struct Exchanged {
    step: u64,
    rows: OwnRows,
    shared: Shared,
    /// When the batch was asked for, and when it was there.
    asked: Instant,
    begin: Instant,
    before: Usage,
}

impl Exchanged {
    /// What any member wishes, bit by bit.
    pub(super) fn wishes(&self) -> i64 {
        self.shared.wishes
    }
}

/// A step that is done.
pub(super) struct Done {
    pub(super) record: StepRecord,
    /// How long it took, its data included, and how long of that this process waited for others.
    pub(super) took: Duration,
    pub(super) waited: Duration,
}

/// The group is of no more use.
pub(super) fn broken(error: &GroupError) -> Halt<TrainError> {
    Halt::Group(chain(error))
}

impl Stepper {
    pub(super) fn new(
        config: TrainerConfig,
        dataset: Arc<Dataset>,
        mut learner: Learner,
        (identity, machine): (Identity, Option<String>),
    ) -> Self {
        let batch = config.optimization.global_batch_size;
        let order = dataset.order(config.optimization.seed, batch);
        learner.set_sources(order.names().len());
        let preparer = learner.row_preparer();
        Self {
            config,
            dataset,
            order,
            learner,
            identity,
            machine,
            progress: Progress::default(),
            restored: None,
            came_from: None,
            tally: Tally::default(),
            preparer,
            samples: None,
            all_slots: sum_of_slots(0..batch),
            watch: StateWatch::default(),
            differences: Differences::default(),
        }
    }

    /// Reads the batches of these slots from `step` on, unless that is under way.
    pub(super) fn load(&mut self, slots: &Slots, step: u64) -> Result<(), TrainError> {
        if self.samples.as_ref().is_some_and(|samples| samples.slots == *slots && samples.next == step) {
            return Ok(());
        }
        let steps = self.config.optimization.steps;
        let has_samples = step < steps && slots.count() > 0;
        let loader = has_samples.then(|| self.loader(slots, step..steps)).transpose()?;
        self.samples = Some(Samples { slots: slots.clone(), next: step, loader, ahead: None });
        Ok(())
    }

    /// Reads no more; gives what did, whose threads may be in the middle of a request that hangs.
    pub(super) fn stop_loading(&mut self) -> Option<Loader> {
        self.samples.take().and_then(|samples| samples.loader)
    }

    /// Whether the next batch, or the error in its place, comes within `patience`.
    pub(super) fn has_batch_within(&self, patience: Duration) -> bool {
        let _span = step_span!("wait for data");
        let Some(samples) = self.samples.as_ref() else { return true };
        samples.ahead.is_some() || samples.loader.as_ref().is_none_or(|loader| loader.wait(patience))
    }

    /// A group begins, whose members hold the same state.
    pub(super) fn begin_group(&mut self) {
        self.watch.begin();
    }

    /// Where the run stands.
    pub(super) fn standing(&self) -> Standing {
        let optimization = &self.config.optimization;
        Standing {
            completed_steps: self.progress.completed_steps,
            steps: optimization.steps,
            consecutive_skips: self.progress.consecutive_skips,
            most_skips: optimization.max_consecutive_skipped_steps,
            has_bad_data: self.tally.too_many_bad(self.config.data.max_bad_fraction).is_some(),
            has_trained: self.learner.completed_updates() > 0,
        }
    }

    /// The error of a run that ends like this.
    pub(super) fn error_of(&self, failure: Failure) -> TrainError {
        match failure {
            Failure::Diverged => TrainError::Diverged { count: self.progress.consecutive_skips },
            Failure::BadData => bad_data(self.tally.too_many_bad(self.config.data.max_bad_fraction)),
            Failure::NothingTrained => {
                let (rows, causes) = self.tally.read_and_skipped();
                nothing_trained(self.config.optimization.steps, rows, &causes)
            }
        }
    }

    /// Whether a checkpoint is to be written now that is not the last one.
    pub(super) fn is_checkpoint_due(&self, saver: &Saver) -> bool {
        let Progress { completed_steps, consecutive_skips } = self.progress;
        saver.is_due(completed_steps) && completed_steps < self.config.optimization.steps && consecutive_skips == 0
    }

    /// Takes the next batch, which was asked for at `asked`, and lets all members know of it and of a wish; alone without `group`.
    /// `is_saving`: a checkpoint was begun after the step before, and is not to become visible if states differ.
    pub(super) fn exchange(
        &mut self,
        mut group: Option<(&mut Group, Generation)>,
        (wish, is_saving): (i64, bool),
        (asked, before): (Instant, Usage),
    ) -> Result<Exchanged, Halt<TrainError>> {
        let step = self.progress.completed_steps;
        // All members come to the same answer.
        let is_compared = group.is_some() && (self.watch.is_due(step) || is_saving);
        let place = place_in(group.as_ref().map(|(group, _)| &**group));
        let maker = RowMaker { preparer: &self.preparer, device: self.learner.model().device(), config: &self.config, order: &self.order };
        let Some(samples) = self.samples.as_mut() else { return Err(TrainError::DataEnded { step }.into()) };
        samples.next = step + 1;
        let ready = samples.ahead.take().unwrap_or_else(|| Ready::take(samples.loader.as_mut(), step, maker, place));
        let Ready { batch, spent, there, mut rows } = ready?;
        let begin = there.max(asked);
        let state = is_compared.then(|| sum_up(&self.learner, &self.watch)).transpose()?;
        let second = group.as_ref().and_then(|(_, generation)| second_of(&self.config.optimization, step, place.1, *generation));
        if let Some(second) = second {
            let again = if second.rank == place.0 { self.read_again(&second, step)? } else { None };
            rows.verify(&second, again.as_ref(), maker)?;
        }
        let Some(samples) = self.samples.as_ref() else { return Err(TrainError::DataEnded { step }.into()) };
        let optimization = &self.config.optimization;
        let own = Own {
            slots: &samples.slots,
            batch: &batch,
            waits: &share_wait(begin - asked, &spent, &self.order),
            counts: &rows.counts(),
            shards: optimization.exact.map(|exact| exact.virtual_shards as usize),
            wish,
            state,
        };
        let _span = step_span!("exchange");
        let wanted = self.wanted(step);
        let shared =
            exchange(group.as_mut().map(|(group, _)| &mut **group), &own, &wanted, EXCHANGE_TIMEOUT).map_err(|error| match error {
                JoinError::Group(error) => broken(&error),
                JoinError::Parts(error) => Halt::Fatal(MemberRunError::from(error).into()),
            })?;
        if is_compared && let Err(halt) = self.compare_states(step, &shared.states, place.0) {
            if let Some((group, _)) = group {
                group.settle(EXCHANGE_TIMEOUT);
            }
            return Err(halt);
        }
        Ok(Exchanged { step, rows, shared, asked, begin, before })
    }

    fn wanted(&self, step: u64) -> Wanted<'_> {
        Wanted { order: &self.order, batch: self.config.optimization.global_batch_size, all_slots: self.all_slots, step }
    }

    /// The samples of a shard that another member owns.
    fn read_again(&self, second: &Second, step: u64) -> Result<Option<Batch>, TrainError> {
        let mut loader = self.loader(&second.slots.clone().into(), step..step + 1)?;
        if !loader.wait(SECOND_PATIENCE) {
            tracing::warn!(step, "the samples of another member's shard do not come: it is not verified in this step");
            thread::spawn(move || drop(loader));
            return Ok(None);
        }
        Ok(Some(loader.next().ok_or(TrainError::DataEnded { step })??))
    }

    fn loader(&self, slots: &Slots, steps: Range<u64>) -> Result<Loader, TrainError> {
        let optimization = &self.config.optimization;
        let options = LoaderOptions {
            model: self.config.model.shape.clone(),
            objective: self.config.model.objective,
            seed: optimization.seed,
            global_batch_size: optimization.global_batch_size,
            slots: slots.clone(),
            first_step: steps.start,
            last_step: steps.end,
        };
        Ok(Loader::start(Arc::clone(&self.dataset), &self.config.data, options)?)
    }

    /// All members have said what they hold before `step`. Whose state is not the others' gets theirs in the next group.
    fn compare_states(&mut self, step: u64, states: &[Word], rank: usize) -> Result<(), Halt<TrainError>> {
        self.watch.compared(step, states);
        let ranks = differing(states);
        if ranks.is_empty() {
            return Ok(());
        }
        let is_own = ranks.iter().any(|other| *other as usize == rank);
        if is_own {
            tracing::error!(step, ?ranks, "the state of this member is not that of the others: it gets theirs");
        }
        self.note_difference(is_own)?;
        let clear = if 2 * ranks.len() < states.len() { "" } else { "; which are right is not to be told, those of the lower rank count" };
        let reason = format!("after {step} steps the states of ranks {ranks:?} are not those of the others{clear}");
        Err(Halt::Differs { ranks, is_own, reason })
    }

    fn note_difference(&mut self, is_own: bool) -> Result<(), Halt<TrainError>> {
        self.differences.note(is_own).map_err(|times| Halt::Fatal(MemberRunError::Differs { times }.into()))
    }

    /// Computes the step and applies the update. After that the step counts.
    pub(super) fn step(
        &mut self,
        group: Option<&mut Group>,
        generation: Generation,
        exchanged: Exchanged,
    ) -> Result<Done, Halt<TrainError>> {
        let Exchanged { step, rows, shared, asked, begin, before } = exchanged;
        let _span = step_span!("step", step);
        let report = self.compute(group, step, &rows, &shared)?;
        let end = Instant::now();
        self.watch.note(end - asked);
        if report.skipped && shared.rows > 0 {
            suspect(self.came_from, step);
        }
        self.progress.completed_steps = step + 1;
        self.progress.consecutive_skips = if report.skipped { self.progress.consecutive_skips + 1 } else { 0 };
        self.restored = None;
        state_log::note(&self.learner, generation, step + 1, Origin::Trained).map_err(TrainError::from)?;
        let loader = self.samples.as_mut().and_then(|samples| samples.loader.as_mut());
        let stages = loader.map(|loader| DataStages::new(self.config.data.threads, loader.stages()));
        let seconds = Seconds { data_wait: (begin - asked).as_secs_f64(), step: (end - begin).as_secs_f64(), end, stages };
        let wanted = Wanted { order: &self.order, batch: self.config.optimization.global_batch_size, all_slots: self.all_slots, step };
        let record = self.tally.record(&wanted, generation, &shared, &report, &seconds);
        Ok(Done { record, took: end - asked, waited: Usage::now().waited.saturating_sub(before.waited) })
    }

    fn compute(
        &mut self,
        mut group: Option<&mut Group>,
        step: u64,
        rows: &OwnRows,
        shared: &Shared,
    ) -> Result<StepReport, Halt<TrainError>> {
        if shared.rows == 0 {
            return Ok(without_update(self.learner.learning_rate(step)));
        }
        let place = place_in(group.as_deref());
        let maker = RowMaker { preparer: &self.preparer, device: self.learner.model().device(), config: &self.config, order: &self.order };
        let member =
            group.as_deref_mut().map(|group| MemberStep { group, wish: 0, counts: Some(&shared.counts), timeout: EXCHANGE_TIMEOUT });
        let exact = self.config.optimization.exact;
        let learner = &mut self.learner;
        let (trained, ahead) = beside(self.samples.as_mut(), (maker, place), || rows.train(learner, step, exact, member));
        if let Some(samples) = self.samples.as_mut() {
            samples.ahead = ahead;
        }
        match trained {
            Ok(report) => Ok(report),
            Err(error @ LearnerError::Unequal { ranks, .. }) => {
                let is_own = group.is_some_and(|group| ranks.contains(&group.rank()));
                if is_own {
                    tracing::error!(step, error = chain(&error), "this member is one of the two");
                }
                self.note_difference(is_own)?;
                Err(Halt::Group(chain(&error)))
            }
            Err(error) if group.is_some_and(|group| !group.is_live()) => Err(Halt::Group(chain(&error))),
            Err(error) => Err(Halt::Fatal(LearnerError::into(error))),
        }
    }

    /// What a checkpoint of the state says besides its tensors. `job`: whose coordinators number the generations, if they do.
    pub(super) fn facts(&self, job: Option<&str>) -> Facts {
        Facts {
            completed_steps: self.progress.completed_steps,
            config_digest: self.identity.digest(),
            metadata: with_provenance(
                metadata(&self.config, &self.identity, &self.learner, self.progress.consecutive_skips),
                Provenance { job, machine: self.machine.as_deref() },
            ),
        }
    }
}

/// Rank and members.
fn place_in(group: Option<&Group>) -> (usize, usize) {
    group.map_or((0, 1), |group| (group.rank(), group.world_size()))
}

/// Computes a step, and meanwhile makes the rows of the next one where its batch is there already. One that is not is waited for by nobody here.
fn beside<T>(
    samples: Option<&mut Samples>,
    (maker, place): (RowMaker<'_>, (usize, usize)),
    compute: impl FnOnce() -> T,
) -> (T, Option<Result<Ready, TrainError>>) {
    let Some(samples) = samples else { return (compute(), None) };
    let step = samples.next;
    let next = samples.loader.as_mut().filter(|loader| step < maker.config.optimization.steps && loader.wait(Duration::ZERO));
    thread::scope(|scope| {
        let make = |loader| {
            let thread = thread::Builder::new().name("prepare".to_owned());
            thread.spawn_scoped(scope, move || Ready::take(Some(loader), step, maker, place)).ok()
        };
        let making = next.and_then(make);
        let computed = compute();
        (computed, making.map(|thread| thread.join().unwrap_or(Err(TrainError::Panicked))))
    })
}

/// What a member says of its state.
fn sum_up(learner: &Learner, watch: &StateWatch) -> Result<Word, TrainError> {
    let begin = Instant::now();
    let checksum = learner.state_checksum()?;
    Ok(watch.word(checksum, begin.elapsed()))
}

/// Without a gradient there is nothing to update: not the moments either.
fn without_update(learning_rate: f64) -> StepReport {
    StepReport {
        total: f64::NAN,
        generation: f64::NAN,
        contrastive: f64::NAN,
        gradient_norm: f64::NAN,
        logit_scale: f64::NAN,
        learning_rate,
        contrastive_images: 0,
        generation_positions: 0,
        skipped: true,
        sources: Vec::new(),
    }
}
