//! A member's part in checkpoints: when due, when asked for, at the end; and what becomes of them when the group is over.

use std::{
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, SystemTime},
};

use lcl_checkpoint::{CheckpointId, Generation as CheckpointGeneration};
use lcl_protocol::{
    Generation, MemberEvent, Saved,
    drive::{Halt, Membership},
};

use super::{MemberRun, MemberRunError, PoisonError, meeting::MeetingPlace};
use crate::{
    chain,
    run::records::Record,
    training::{
        FinalSaveError, TrainError,
        saver::{Facts, LONGEST_WAIT, Saver, Together},
    },
};

/// How long members that leave in order wait for the checkpoint that they are writing. Rather a checkpoint less than a longer pause.
const LEAVE_PATIENCE: Duration = Duration::from_secs(5);

/// A checkpoint that has just become visible.
fn saved_now(generation: Generation, step: u64) -> Saved {
    let generation = CheckpointGeneration { epoch: generation.epoch, n: generation.n };
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Saved { step, time, folder: CheckpointId { step, generation }.to_string() }
}

impl MemberRun<'_> {
    /// From here on checkpoints are written by the members of this generation together.
    pub(super) fn write_together(&mut self, generation: Generation, rank: u32, world: u32) {
        let together = Together {
            generation: CheckpointGeneration { epoch: generation.epoch, n: generation.n },
            rank: rank as usize,
            world: NonZeroUsize::new(world as usize).unwrap_or(NonZeroUsize::MIN),
            meeting: Arc::new(MeetingPlace::new(self.client.store(generation))),
        };
        if let Some(saver) = self.saver.as_mut() {
            saver.join(together, &self.stepper.learner);
        } else {
            self.saver = Some(Saver::shared(
                self.store.clone(),
                &self.stepper.config.checkpoint,
                self.stepper.restored,
                together,
                &self.stepper.learner,
            ));
        }
    }

    /// After a step: what became of the checkpoint before, and the next one when it is due. `is_busy`: any member still writes, which all
    /// have heard in this step, so that all take it or none does.
    pub(super) fn save_when_due(&mut self, generation: Generation, is_busy: bool) -> Result<(), TrainError> {
        let Some(saver) = self.saver.as_mut() else { return Ok(()) };
        if !self.stepper.is_checkpoint_due(saver) {
            let records = saver.poll();
            return self.note(&records);
        }
        let (facts, is_over) = (self.facts(), self.is_over(generation));
        let Some(saver) = self.saver.as_mut() else { return Ok(()) };
        let records = saver.save_unless(is_busy, &self.stepper.learner, facts, &is_over)?;
        if let Some(leader) = self.leader.as_mut() {
            leader.sync();
        }
        self.note(&records)
    }

    /// A checkpoint that the coordinator asks for: it is waited for, since the members leave after it. When it fails, it is asked for again.
    pub(super) fn save_as_asked(&mut self, generation: Generation) -> Result<(), TrainError> {
        if let Err(error) = self.save_and_wait(generation)? {
            tracing::error!(error = chain(&error), "the checkpoint that was asked for is not in the store");
        }
        Ok(())
    }

    /// The state goes to the store before this member says that it has finished.
    pub(super) fn save_at_the_end(&mut self, generation: Generation) -> Result<(), Halt<TrainError>> {
        match self.save_and_wait(generation)? {
            Ok(()) => Ok(()),
            // Not this member's fault: the next group tries again.
            Err(error @ FinalSaveError::Disbanded { .. }) => Err(Halt::Group(chain(&error))),
            Err(error) => Err(Halt::Fatal(MemberRunError::Unsaved(error).into())),
        }
    }

    /// All members of the group save the state as it is, unless any of them knows that it is in the store.
    fn save_and_wait(&mut self, generation: Generation) -> Result<Result<(), FinalSaveError>, TrainError> {
        let (step, facts, is_over) = (self.stepper.progress.completed_steps, self.facts(), self.is_over(generation));
        let Some(saver) = self.saver.as_mut() else { return Ok(Ok(())) };
        let records = saver.wait(LONGEST_WAIT, &is_over);
        let own = saver.committed().map_or(-1, |step| step as i64);
        self.note(&records)?;
        let disbanded = |reason| Ok(Err(FinalSaveError::Disbanded { step, reason }));
        let Some(joined) = self.joined.as_mut() else { return disbanded("its group is over".to_owned()) };
        let known = match joined.group.exchange(&[own], LONGEST_WAIT) {
            Ok(known) => known,
            Err(error) => return disbanded(chain(&error)),
        };
        if known.iter().flatten().any(|saved| *saved == step as i64) {
            return Ok(Ok(()));
        }
        let Some(saver) = self.saver.as_mut() else { return Ok(Ok(())) };
        let (records, result) = saver.save_and_wait(&self.stepper.learner, facts, &is_over);
        self.note(&records)?;
        Ok(result)
    }

    /// All members are about to leave in order: what they are writing together becomes visible if that does not take long.
    pub(super) fn finish_saving(&mut self, generation: Generation) -> Result<(), TrainError> {
        let is_over = self.is_over(generation);
        let records = self.saver.as_mut().map(|saver| saver.wait(LEAVE_PATIENCE, &is_over)).unwrap_or_default();
        self.note(&records)
    }

    /// The group is over: what it was writing is given up.
    pub(super) fn stop_saving(&mut self, generation: Generation) -> Result<(), TrainError> {
        let reason = format!("the members of {generation} do not belong together any more");
        let records = self.saver.as_mut().map(|saver| saver.disband(&reason)).unwrap_or_default();
        self.note(&records)
    }

    /// Saves the state as it is, without a group.
    pub(super) fn save_alone(&mut self) -> Result<(), TrainError> {
        let facts = self.facts();
        let Some(saver) = self.saver.as_mut() else { return Ok(()) };
        let (records, result) = saver.finish_alone(&self.stepper.learner, facts);
        self.note(&records)?;
        if let Err(error) = result {
            tracing::error!(error = chain(&error), "the state that this member leaves with is not in the store");
        }
        Ok(())
    }

    /// Rank 0 writes down what became of checkpoints, and tells the coordinator of those that are visible.
    fn note(&mut self, records: &[Record]) -> Result<(), TrainError> {
        let Some(leader) = self.leader.as_mut() else { return Ok(()) };
        let mut committed = Vec::new();
        for record in records {
            leader.record(record);
            if let Record::CheckpointCommitted(checkpoint) = record {
                let generation = Generation { epoch: checkpoint.generation.epoch, n: checkpoint.generation.n };
                committed.push(MemberEvent::CheckpointCommitted { generation, saved: saved_now(generation, checkpoint.completed_steps) });
            }
        }
        committed.into_iter().try_for_each(|event| self.report(event))
    }

    /// Whether the group of a generation is to be dropped; to be asked while this thread waits.
    pub(super) fn is_over(&self, generation: Generation) -> impl Fn() -> bool + use<> {
        let abort = self.abortable.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|(of, abort)| (*of, abort.clone()));
        move || abort.as_ref().is_none_or(|(of, abort)| *of != generation || abort.is_aborted())
    }

    fn facts(&self) -> Facts {
        self.stepper.facts(self.member.job.as_deref())
    }
}
