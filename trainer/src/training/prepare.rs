//! Everything before the first step: folder, data, model, and the checkpoint to go on from.

use lcl_checkpoint::{CheckpointId, CheckpointStore, Generation, Restored, restore_latest};
use lcl_torch::{Learner, StateTensor, choose_device};
use lcl_trainer_config::TrainerConfig;
use serde_json::{Value, json};

use super::{
    Begin, TrainError, TrainOptions, open_data,
    own_rows::{checkpoint_bytes, machine_of, prepare_process, warn_of_slow_precision},
    stepper::Stepper,
};
use crate::run::{
    identity::Identity,
    journal::{self, Journal},
    records::Record,
    run_folder::RunFolder,
};

/// A run of a process that trains alone, ready for its next step.
pub(super) struct ReadyRun {
    pub(super) stepper: Stepper,
    pub(super) folder: RunFolder,
    pub(super) journal: Journal,
    /// Of this start, higher than those of all before it.
    pub(super) epoch: u64,
}

/// Steps after a restore in which a loss that is no number is most likely the checkpoint's: what training itself does to a state that
/// was well takes longer.
const FIRST_STEPS: u64 = 10;

/// An update was left out because its loss or gradients were not finite: says so when the checkpoint may be the reason.
pub(super) fn suspect(restored: Option<CheckpointId>, step: u64) {
    if let Some(checkpoint) = restored.filter(|checkpoint| is_suspect(checkpoint.step, step)) {
        tracing::warn!(
            step,
            %checkpoint,
            "the loss or a gradient is not finite so soon after this checkpoint was read: if that goes on, its state is the reason; remove its \
             folder to go on from the one before"
        );
    }
}

fn is_suspect(restored: u64, step: u64) -> bool {
    (restored..restored.saturating_add(FIRST_STEPS)).contains(&step)
}

/// How far a run is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Completed steps.
    pub(super) completed_steps: u64,
    /// Steps in a row, up to now, whose update was left out.
    pub(super) consecutive_skips: u32,
}

/// Names of the numbers in a checkpoint's metadata.
pub(crate) const COMPLETED_UPDATES: &str = "completedUpdates";
const CONSECUTIVE_SKIPS: &str = "consecutiveSkippedUpdates";
/// Name of the learning rate's linear part there. Older checkpoints lack it; their configuration always says it.
const WARMUP_STEPS: &str = "warmupSteps";
/// Name of the job in a checkpoint's metadata.
const JOB: &str = "job";
/// Name of what its writers computed on there.
const MACHINE: &str = "machine";

/// What a checkpoint says besides its tensors: what it is of, and how far `learner` is.
#[must_use]
pub fn metadata(config: &TrainerConfig, identity: &Identity, learner: &Learner, consecutive_skips: u32) -> Value {
    let mut metadata = identity.to_metadata();
    let facts = [
        ("config", json!(config)),
        (WARMUP_STEPS, learner.warmup_steps().into()),
        (COMPLETED_UPDATES, learner.completed_updates().into()),
        (CONSECUTIVE_SKIPS, consecutive_skips.into()),
    ];
    metadata.extend(facts.map(|(name, value)| (name.to_owned(), value)));
    Value::Object(metadata)
}

/// Where a checkpoint comes from.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Provenance<'a> {
    /// The job whose coordinators number the generations, if they do.
    pub(super) job: Option<&'a str>,
    /// See [`machine_of`].
    pub(super) machine: Option<&'a str>,
}

/// The same, with where it comes from.
pub(super) fn with_provenance(mut metadata: Value, origin: Provenance) -> Value {
    let Some(fields) = metadata.as_object_mut() else { return metadata };
    for (name, value) in [(JOB, origin.job), (MACHINE, origin.machine)] {
        fields.extend(value.map(|value| (name.to_owned(), value.into())));
    }
    metadata
}

/// What a checkpoint's writers computed on, if that is something else than here and matters: the results are as good, but not those of a
/// run that stayed there, bit for bit.
fn other_machine<'a>(metadata: &'a Value, here: Option<&str>) -> Option<&'a str> {
    let there = metadata.get(MACHINE)?.as_str()?;
    here.is_some_and(|here| here != there).then_some(there)
}

pub(super) fn prepare(config: TrainerConfig, options: &TrainOptions) -> Result<ReadyRun, TrainError> {
    prepare_process(&config)?;
    let device = choose_device(config.runtime.device, 0)?;
    warn_of_slow_precision(&config, device)?;
    let mut folder = RunFolder::open(&config.checkpoint.uri)?;
    let dataset = open_data(&config.data, &options.stop)?;
    // Nothing is deleted for a run that cannot be.
    if let Begin::Fresh { delete_existing } = options.begin {
        folder.clear(delete_existing)?;
    }
    let identity = Identity::of(&config, &dataset);
    let restored = restore_latest(folder.store(), None)?;
    if restored.is_none() {
        check_that_nothing_was_lost(&folder, options.begin)?;
    }
    if let Some(restored) = &restored {
        identity.compare(&Identity::from_metadata(&restored.metadata)?)?;
    }
    let machine = machine_of(&config, device)?;
    let mut learner = Learner::new(&config, device)?;
    let came_from = restored.as_ref().map(|restored| restored.id);
    let progress = restored.map_or(Ok(Progress::default()), |restored| load(&mut learner, &config, &restored, machine.as_deref()))?;
    if progress.completed_steps < config.optimization.steps {
        folder.store().check_room(checkpoint_bytes(&learner))?;
    }
    let (journal, opened) = folder.open_journal(progress.completed_steps)?;
    if opened.superseded > 0 {
        tracing::info!(lines = opened.superseded, step = progress.completed_steps, "metrics beyond the restored step taken out");
    }
    if opened.missing > 0 {
        tracing::warn!(lines = opened.missing, "metrics.jsonl lacks steps before the restored one; the training itself is complete");
    }
    let epoch = folder.store().claim_epoch()?;
    let mut stepper = Stepper::new(config, dataset, learner, (identity, machine));
    (stepper.progress, stepper.came_from, stepper.restored) = (progress, came_from, came_from.map(|id| id.step));
    Ok(ReadyRun { stepper, folder, journal, epoch })
}

/// There is no complete checkpoint. Was there one?
fn check_that_nothing_was_lost(folder: &RunFolder, begin: Begin) -> Result<(), TrainError> {
    let uri = || folder.store().uri().to_owned();
    if begin == Begin::Resume {
        return Err(TrainError::NothingToResume { uri: uri() });
    }
    let records = journal::read_events(folder.path())?;
    let newest = records.iter().filter_map(|record| match record {
        Record::CheckpointCommitted(checkpoint) => Some(checkpoint.completed_steps),
        _ => None,
    });
    if let Some(step) = newest.max() {
        return Err(TrainError::CheckpointsLost { uri: uri(), step });
    }
    if !records.is_empty() {
        tracing::warn!(uri = uri(), "an earlier process ended before its first checkpoint was complete: training starts at step 0");
    }
    Ok(())
}

/// A member that restores for all of its generation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Restorer<'a> {
    /// The generation.
    pub(super) generation: Generation,
    /// The job whose coordinators number generations. Without one they are numbered by the store, for all who ever use it.
    pub(super) job: Option<&'a str>,
    pub(super) identity: &'a Identity,
    /// See [`machine_of`].
    pub(super) machine: Option<&'a str>,
    pub(super) begin: Begin,
}

/// What was there to restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The newest checkpoint's state, which the learner has now.
    State(Progress, CheckpointId),
    /// There never was a checkpoint: the learner has the initial state.
    Nothing,
    /// The newest checkpoint is of a later generation of the same job. The learner is as it was: the coordinator that formed the
    /// generation was replaced, and what it says does not count any more.
    Later(Generation),
}

/// The newest checkpoint, for a member that restores for all.
pub(super) fn restore(
    store: &CheckpointStore,
    config: &TrainerConfig,
    asked: &Restorer,
    learner: &mut Learner,
) -> Result<Found, TrainError> {
    let Some(restored) = restore_latest(store, None)? else {
        let folder = RunFolder::open_as_member(&config.checkpoint.uri)?;
        check_that_nothing_was_lost(&folder, asked.begin)?;
        return Ok(Found::Nothing);
    };
    asked.identity.compare(&Identity::from_metadata(&restored.metadata)?)?;
    if let Some(later) = asked.overtaken_by(&restored.metadata, restored.id.generation) {
        return Ok(Found::Later(later));
    }
    load(learner, config, &restored, asked.machine).map(|progress| Found::State(progress, restored.id))
}

impl Restorer<'_> {
    /// The generation that wrote a checkpoint, if it is a later one than that which restores it. Generations of another job say nothing of
    /// this one's: it may have been begun anew in the same folder, and counts from 1 again.
    fn overtaken_by(&self, metadata: &Value, writer: Generation) -> Option<Generation> {
        let is_of_this_job = metadata.get(JOB).and_then(Value::as_str) == self.job;
        (is_of_this_job && writer > self.generation).then_some(writer)
    }
}

/// The warm-up that a run goes on with: what its user gives, else what it began with, which its checkpoints record. Where nothing was
/// trained yet (imported weights), or nothing is recorded, `None`: it is derived from the steps that the run has now.
fn kept_warmup(config: &TrainerConfig, metadata: &Value, completed_steps: u64) -> Option<u64> {
    if config.optimization.schedule.warmup_steps().is_some() || completed_steps == 0 {
        return None;
    }
    let recorded = metadata.get(WARMUP_STEPS).or_else(|| metadata.pointer("/config/optimization/schedule/warmupSteps"));
    recorded.and_then(Value::as_u64)
}

fn load(learner: &mut Learner, config: &TrainerConfig, restored: &Restored, machine: Option<&str>) -> Result<Progress, TrainError> {
    let number = |field| restored.metadata.get(field).and_then(Value::as_u64).ok_or(TrainError::Metadata { field });
    let (updates, skips) = (number(COMPLETED_UPDATES)?, number(CONSECUTIVE_SKIPS)?);
    let tensors = restored.tensors.iter().map(|tensor| StateTensor { name: &tensor.name, shape: &tensor.shape, data: &tensor.data });
    learner.load_state(tensors, updates)?;
    if let Some(steps) = kept_warmup(config, &restored.metadata, restored.id.step) {
        learner.set_warmup_steps(steps);
    }
    tracing::info!(checkpoint = %restored.id, "state restored");
    if let (Some(there), Some(here)) = (other_machine(&restored.metadata, machine), machine) {
        tracing::warn!(
            there,
            here,
            "the checkpoint was written on another kind of machine: from here on the bits are not those of a run that stayed there"
        );
    }
    Ok(Progress { completed_steps: restored.id.step, consecutive_skips: u32::try_from(skips).unwrap_or(u32::MAX) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_later_generation_of_the_same_job_has_written_is_not_restored() {
        let identity = Identity::from_metadata(&json!({ "identity": {} })).unwrap();
        let generation = Generation { epoch: 2, n: 3 };
        let check = |job: Option<&str>, writer: (u64, u64), written_by: Option<&str>, is_later: bool| {
            let writer = Generation { epoch: writer.0, n: writer.1 };
            let restorer = Restorer { generation, job, identity: &identity, machine: None, begin: Begin::Anyhow };
            let expected = is_later.then_some(writer);
            assert_eq!(
                restorer.overtaken_by(&with_provenance(json!({}), Provenance { job: written_by, machine: None }), writer),
                expected,
                "{writer} of {written_by:?}"
            );
        };
        check(Some("a"), (3, 1), Some("a"), true);
        check(Some("a"), (2, 3), Some("a"), false);
        check(Some("a"), (1, 9), Some("a"), false);
        check(Some("a"), (3, 1), Some("b"), false);
        check(Some("a"), (3, 1), None, false);
        check(None, (3, 1), None, true);
        check(None, (3, 1), Some("b"), false);
    }

    #[test]
    fn a_run_goes_on_with_the_warm_up_it_began_with_unless_its_user_gives_one() {
        let config = |given: Option<u64>| {
            let mut config = crate::test_support::tiny_config();
            config.optimization.schedule = lcl_trainer_config::Schedule::Cosine { warmup_steps: given };
            config
        };
        let recorded = json!({ "warmupSteps": 7, "config": config(None) });
        // As checkpoints were written before they recorded it: the configuration always had a number.
        let old = json!({ "config": config(Some(5)) });
        assert_eq!(kept_warmup(&config(None), &recorded, 3), Some(7));
        assert_eq!(kept_warmup(&config(None), &old, 3), Some(5));
        for metadata in [&recorded, &old] {
            assert_eq!(kept_warmup(&config(Some(2)), metadata, 3), None, "what the user gives goes before");
            assert_eq!(kept_warmup(&config(None), metadata, 0), None, "nothing was trained yet");
        }
        assert_eq!(kept_warmup(&config(None), &json!({}), 3), None);
    }

    #[test]
    fn a_checkpoint_is_suspected_for_its_first_steps() {
        assert_eq!([6, 7, 16, 17].map(|step| is_suspect(7, step)), [false, true, true, false]);
        assert!(!is_suspect(u64::MAX, 0));
    }

    #[test]
    fn another_machine_is_noticed_where_bits_matter() {
        let written = |machine| with_provenance(json!({}), Provenance { job: None, machine });
        assert_eq!(other_machine(&written(Some("a")), Some("b")), Some("a"));
        assert_eq!(other_machine(&written(Some("a")), Some("a")), None);
        assert_eq!(other_machine(&written(Some("a")), None), None);
        assert_eq!(other_machine(&written(None), Some("a")), None);
    }
}
