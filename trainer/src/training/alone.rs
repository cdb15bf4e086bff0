//! Training of one process that has the whole batch: no group, no coordinator.

use std::{process, time::Instant};

use lcl_checkpoint::while_away;
use lcl_protocol::{
    EndReason as ProtocolEnd, Generation,
    drive::{Agreed, Failure, Halt, Occasion, Standing, Steps},
};
use lcl_torch::collectives::Usage;
use lcl_trainer_config::ExitCode;

use super::{
    STOP_POLL, TrainError, TrainOptions, host_name,
    leader::{Files, Leader, Open, Place},
    prepare::ReadyRun,
    saver::Saver,
    stepper::{Exchanged, Stepper},
    unix_time,
};
use crate::{
    processes::stop::StopRequest,
    run::{
        records::{EndReason, Record},
        tensorboard::EventFile,
    },
};

/// See the module's description.
pub(super) struct Alone {
    stepper: Stepper,
    generation: Generation,
    saver: Saver,
    leader: Leader,
    stop: StopRequest,
}

impl Alone {
    pub(super) fn new(prepared: ReadyRun, options: &TrainOptions) -> Result<Self, TrainError> {
        let ReadyRun { mut stepper, folder, journal, epoch } = prepared;
        let generation = Generation { epoch, n: 0 };
        let completed_steps = stepper.progress.completed_steps;
        stepper.load(&(0..stepper.config.optimization.global_batch_size).into(), completed_steps)?;
        let of_checkpoints = lcl_checkpoint::Generation { epoch, n: 0 };
        let saver = Saver::new(folder.store().clone(), &stepper.config.checkpoint, of_checkpoints, stepper.restored, &stepper.learner);
        let unique = format!("{}.{}.{epoch}", host_name(), process::id());
        // TensorBoard's points stand at completed steps; those after the restored one are dropped.
        let before = while_away(|| folder.event_files())?;
        let events = EventFile::create(folder.path(), &before, unix_time(), &unique, completed_steps + 1)
            .map_err(|source| TrainError::Events { source })?;
        let place = Place { store: folder.store().clone(), generation, completed_steps };
        let leader = Leader::with(Files::opened(place, Open::new(folder, journal, events)), generation, &stepper, options);
        Ok(Self { stepper, generation, saver, leader, stop: options.stop.clone() })
    }

    fn note(&mut self, records: Vec<Record>) {
        for record in records {
            self.leader.record(&record);
        }
    }

    fn end(&mut self, reason: EndReason) -> Result<(), TrainError> {
        self.leader.end(reason, &self.stepper.learner, self.stepper.progress)
    }

    /// The state as it is, in the store.
    fn save_now(&mut self) -> Result<(), TrainError> {
        let (records, saved) = self.saver.finish(&self.stepper.learner, self.stepper.facts(None));
        self.note(records);
        Ok(saved?)
    }
}

impl Steps for Alone {
    type Error = TrainError;
    type Exit = ExitCode;
    type Exchanged = Exchanged;

    fn is_asked_to_leave(&self) -> bool {
        self.stop.is_asked()
    }

    fn standing(&self) -> Standing {
        self.stepper.standing()
    }

    /// The store that the batch comes from may hang; a stop that is asked for meanwhile ends the wait.
    async fn exchange(&mut self) -> Result<Exchanged, Halt<TrainError>> {
        let asked = (Instant::now(), Usage::now());
        while !self.stepper.has_batch_within(STOP_POLL) {
            if self.stop.is_asked() {
                return Err(Halt::NoData);
            }
        }
        self.stepper.exchange(None, (0, false), asked)
    }

    async fn step(&mut self, exchanged: Exchanged) -> Result<Agreed, Halt<TrainError>> {
        let done = self.stepper.step(None, self.generation, exchanged)?;
        self.leader.record_step(done.record);
        Ok(Agreed { is_busy: self.saver.is_busy(), ..Agreed::default() })
    }

    async fn save(&mut self, occasion: Occasion) -> Result<(), Halt<TrainError>> {
        match occasion {
            Occasion::Step(Agreed { is_busy, .. }) => {
                if !self.stepper.is_checkpoint_due(&self.saver) {
                    let records = self.saver.poll();
                    self.note(records);
                    return Ok(());
                }
                let facts = self.stepper.facts(None);
                let records = self.saver.save_unless(is_busy, &self.stepper.learner, facts, &|| false).map_err(TrainError::from)?;
                self.note(records);
                // What the journal holds shall survive a loss of power as the checkpoint does.
                self.leader.sync();
            }
            // Nobody asks a process that is alone.
            Occasion::Asked => self.save_now()?,
            Occasion::Last(ending) => {
                let saved = self.save_now();
                if saved.is_err() {
                    self.end(ending.into())?;
                }
                saved?;
            }
        }
        Ok(())
    }

    async fn fail(&mut self, failure: Failure) -> TrainError {
        let error = self.stepper.error_of(failure);
        self.end(failure.into()).err().unwrap_or(error)
    }

    async fn exit(&mut self, reason: ProtocolEnd, is_kept: bool) -> Result<ExitCode, TrainError> {
        let saved = if is_kept { Ok(()) } else { self.save_now() };
        let (reason, code) = match reason {
            ProtocolEnd::Complete => (EndReason::Completed, ExitCode::Success),
            ProtocolEnd::Drained | ProtocolEnd::Stopped => (EndReason::Preempted, ExitCode::Preempted),
        };
        self.end(reason)?;
        saved.map(|()| code)
    }
}
