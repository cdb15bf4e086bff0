//! Before the first step of a generation: all of its members come to hold the same state.

use std::time::Instant;

use lcl_protocol::{ActivityStage, Generation, MemberEvent, Moves, Role};

use super::{
    MemberRun,
    transfer::{self, Header, TransferError},
};
use crate::{
    chain, state_log,
    training::{
        TrainError,
        prepare::{Found, Restorer, restore},
    },
};

impl MemberRun<'_> {
    /// Brings this member to the state that its generation goes on from, and others with it.
    pub(super) fn recover(&mut self, generation: Generation, role: Role) -> Result<(), TrainError> {
        if self.joined.as_ref().is_none_or(|joined| joined.generation != generation) {
            return Ok(());
        }
        let begun = Instant::now();
        let origin = state_log::Origin::from(&role);
        if role == Role::Restore && !self.read_checkpoint(generation)? {
            return Ok(());
        }
        let moves = match role {
            Role::Level => Ok(Moves::default()),
            Role::Send { to } => Ok(Moves { from: None, to }),
            Role::Receive { from, to } => Ok(Moves { from: Some(from), to }),
            Role::Restore | Role::Follow => self.compare(),
        };
        match moves.and_then(|moves| self.pass_on(&moves).map(|()| moves)) {
            Ok(Moves { from, to }) => {
                let step = self.progress.completed_steps;
                state_log::note(&self.learner, generation, step, origin)?;
                let seconds = begun.elapsed().as_secs_f64();
                tracing::info!(group = %generation, step, ?from, ?to, seconds, "state is level");
                self.report(MemberEvent::Recovered { generation, step })
            }
            Err(TransferError::Group(error)) => self.close(generation, Some(chain(&error))),
            Err(TransferError::State(error)) => Err(error),
        }
    }

    /// Reads the newest checkpoint for all. False when a later generation has written it.
    fn read_checkpoint(&mut self, generation: Generation) -> Result<bool, TrainError> {
        self.activity.read_from(Some(self.store.clone()));
        self.activity.enter(ActivityStage::Preparing);
        let asked = Restorer {
            generation: lcl_checkpoint::Generation { epoch: generation.epoch, n: generation.n },
            job: self.member.job.as_deref(),
            identity: &self.identity,
            machine: self.machine.as_deref(),
            begin: self.options.begin,
        };
        let found = restore(&self.store, &self.config, &asked, &mut self.learner);
        self.activity.read_from(None);
        let (restored, came_from) = match found? {
            Found::State(progress, checkpoint) => (Some(progress), Some(checkpoint)),
            Found::Nothing => (None, None),
            Found::Later(by) => {
                self.report(MemberEvent::Overtaken { generation, by: Generation { epoch: by.epoch, n: by.n } })?;
                return Ok(false);
            }
        };
        self.came_from = came_from;
        self.restored = restored.map(|progress| progress.completed_steps);
        self.progress = restored.unwrap_or_default();
        // Lines of another line of states, if there are any.
        self.tally.forget();
        if let Some(saver) = self.saver.as_mut() {
            saver.set_committed(self.restored);
        }
        Ok(true)
    }

    /// All members begin with what rank 0 has. Who has the same already, as all have at the very start, gets nothing.
    fn compare(&mut self) -> Result<Moves, TransferError> {
        let begun = Instant::now();
        self.activity.enter(ActivityStage::Preparing);
        let hash = self.learner.state_hash().map_err(TrainError::from)?;
        self.activity.enter(ActivityStage::Transferring);
        let Some(joined) = self.joined.as_mut() else { return Ok(Moves::default()) };
        let (header, moves, behind) = transfer::compare(&mut joined.group, &self.learner, &hash, self.progress)?;
        let (rank, world) = (joined.rank, joined.world);
        if rank == 0 {
            let (step, seconds) = (header.progress.completed_steps, begun.elapsed().as_secs_f64());
            tracing::info!(step, hash, behind, world, seconds, "states compared");
        } else if moves.from.is_none() {
            self.tally.forget();
            self.take_over(header);
        }
        Ok(moves)
    }

    fn pass_on(&mut self, moves: &Moves) -> Result<(), TransferError> {
        let Some(joined) = self.joined.as_mut() else { return Ok(()) };
        self.activity.enter(ActivityStage::Transferring);
        let Some(from) = moves.from else {
            return transfer::send(&mut joined.group, &self.learner, self.progress, &self.tally, &moves.to);
        };
        let header = transfer::receive(&mut joined.group, &mut self.learner, &mut self.tally, from, &moves.to)?;
        self.take_over(header);
        Ok(())
    }

    /// This member has another's state now.
    fn take_over(&mut self, header: Header) {
        self.progress = header.progress;
        if self.config.optimization.schedule.warmup_steps().is_none() {
            // All members have to go along the same curve, whatever number of steps each was started with.
            self.learner.set_warmup_steps(header.warmup);
        }
        (self.restored, self.came_from) = (None, None);
        if let Some(saver) = self.saver.as_mut() {
            // What it knew to be in the store may be another state of the same step.
            saver.set_committed(None);
        }
    }
}
