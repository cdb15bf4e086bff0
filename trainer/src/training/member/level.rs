//! Before the first step of a generation: all of its members come to hold the same state.

use std::time::Instant;

use lcl_protocol::{
    ActivityStage, Generation, Moves, Role,
    drive::{Halt, Level},
};

use super::{
    MemberRun,
    transfer::{self, Header, TransferError},
};
use crate::{
    run::state_log,
    training::{
        TrainError,
        prepare::{Found, Restorer, restore},
        stepper::{Stepper, broken},
    },
};

impl MemberRun<'_> {
    /// Brings this member to the state that its generation goes on from, and others with it.
    pub(super) fn recover(&mut self, generation: Generation, role: Role) -> Result<Level, Halt<TrainError>> {
        let begun = Instant::now();
        let origin = state_log::Origin::from(&role);
        if role == Role::Restore
            && let Some(by) = self.read_checkpoint(generation)?
        {
            return Ok(Level::Overtaken(by));
        }
        let moves = match role {
            Role::Level => Ok(Moves::default()),
            Role::Send(moves) | Role::Receive(moves) => Ok(moves),
            Role::Restore | Role::Follow => self.compare(),
        };
        match moves.and_then(|moves| self.pass_on(&moves).map(|()| moves)) {
            Ok(Moves { halves }) => {
                // Who gave a half and who got one, and the ranks that it has passed.
                let from: Vec<u32> = halves.iter().filter_map(|hop| hop.from).collect();
                let to: Vec<u32> = halves.iter().flat_map(|hop| &hop.to).copied().collect();
                let depth = halves.iter().map(|hop| hop.depth).max().unwrap_or_default();
                let step = self.stepper.progress.completed_steps;
                state_log::note(&self.stepper.learner, generation, step, origin).map_err(TrainError::from)?;
                let seconds = begun.elapsed().as_secs_f64();
                tracing::info!(group = %generation, step, ?from, ?to, depth, seconds, "state is level");
                Ok(Level::At(step))
            }
            Err(TransferError::Group(error)) => Err(broken(&error)),
            Err(TransferError::State(error)) => Err(Halt::Fatal(error)),
        }
    }

    /// Reads the newest checkpoint for all; gives the generation that has written it when that is a later one.
    fn read_checkpoint(&mut self, generation: Generation) -> Result<Option<Generation>, TrainError> {
        self.activity.read_from(Some(self.store.clone()));
        self.activity.enter(ActivityStage::Preparing);
        let stepper = &mut self.stepper;
        let asked = Restorer {
            generation: lcl_checkpoint::Generation { epoch: generation.epoch, n: generation.n },
            job: self.member.job.as_deref(),
            identity: &stepper.identity,
            machine: stepper.machine.as_deref(),
            begin: self.options.begin,
        };
        let found = restore(&self.store, &stepper.config, &asked, &mut stepper.learner);
        self.activity.read_from(None);
        let (restored, came_from) = match found? {
            Found::State(progress, checkpoint) => (Some(progress), Some(checkpoint)),
            Found::Nothing => (None, None),
            Found::Later(by) => return Ok(Some(Generation { epoch: by.epoch, n: by.n })),
        };
        self.stepper.came_from = came_from;
        self.stepper.restored = restored.map(|progress| progress.completed_steps);
        self.stepper.progress = restored.unwrap_or_default();
        // Lines of another line of states, if there are any.
        self.stepper.tally.forget();
        if let Some(saver) = self.saver.as_mut() {
            saver.set_committed(self.stepper.restored);
        }
        Ok(None)
    }

    /// All members begin with what rank 0 has. Who has the same already, as all have at the very start, gets nothing.
    fn compare(&mut self) -> Result<Moves, TransferError> {
        let begun = Instant::now();
        self.activity.enter(ActivityStage::Preparing);
        let hash = self.stepper.learner.state_hash().map_err(TrainError::from)?;
        self.activity.enter(ActivityStage::Transferring);
        let Some(joined) = self.joined.as_mut() else { return Ok(Moves::default()) };
        let (header, moves, behind) = transfer::compare(&mut joined.group, &self.stepper.learner, &hash, self.stepper.progress)?;
        let (rank, world) = (joined.rank, joined.world);
        if rank == 0 {
            let (step, seconds) = (header.progress.completed_steps, begun.elapsed().as_secs_f64());
            tracing::info!(step, hash, behind, world, seconds, "states compared");
        } else if !moves.receives() {
            self.stepper.tally.forget();
            self.take_over(header);
        }
        Ok(moves)
    }

    fn pass_on(&mut self, moves: &Moves) -> Result<(), TransferError> {
        let Some(joined) = self.joined.as_mut() else { return Ok(()) };
        self.activity.enter(ActivityStage::Transferring);
        if !moves.receives() {
            let Stepper { learner, progress, tally, .. } = &self.stepper;
            return transfer::send(&mut joined.group, learner, *progress, tally, moves);
        }
        let Stepper { learner, tally, .. } = &mut self.stepper;
        let header = transfer::receive(&mut joined.group, learner, tally, moves)?;
        self.take_over(header);
        Ok(())
    }

    /// This member has another's state now.
    fn take_over(&mut self, header: Header) {
        self.stepper.progress = header.progress;
        if self.stepper.config.optimization.schedule.warmup_steps().is_none() {
            // All members have to go along the same curve, whatever number of steps each was started with.
            self.stepper.learner.set_warmup_steps(header.warmup);
        }
        (self.stepper.restored, self.stepper.came_from) = (None, None);
        if let Some(saver) = self.saver.as_mut() {
            // What it knew to be in the store may be another state of the same step.
            saver.set_committed(None);
        }
    }
}
