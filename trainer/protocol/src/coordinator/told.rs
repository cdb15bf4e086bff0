//! What members have told of the job: how far it has come, what is saved, how training goes. Pure values.

use crate::{MOST_SOURCES, Saved, SourceProgress, TrainingProgress};

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Steps that all members of the group have committed.
    pub(super) step: u64,
    /// The newest checkpoint.
    pub(super) last_checkpoint: Option<Saved>,
    /// How training comes along, as the member of rank 0 last told.
    pub(super) training: Option<TrainingProgress>,
    /// The sources of a mixture, as the member of rank 0 last told.
    pub(super) sources: Vec<SourceProgress>,
    /// A checkpoint of this step or a later one was asked for and is not there yet: a committed step that no checkpoint holds.
    wanted_checkpoint: Option<u64>,
}

impl Told {
    /// Completed steps of the newest checkpoint.
    pub(super) fn saved_step(&self) -> Option<u64> {
        self.last_checkpoint.as_ref().map(|saved| saved.step)
    }

    pub(super) const fn wanted_checkpoint(&self) -> Option<u64> {
        self.wanted_checkpoint
    }

    /// A checkpoint of this step or a later one is wanted, of the committed one at the most.
    pub(super) fn want_checkpoint(&mut self, from: Option<u64>) {
        let from = from.map_or(self.step, |from| from.min(self.step));
        if self.saved_step() < Some(from) {
            self.wanted_checkpoint = self.wanted_checkpoint.max(Some(from));
        }
    }

    /// A checkpoint is visible.
    pub(super) fn checkpoint_committed(&mut self, saved: Saved) {
        self.wanted_checkpoint = self.wanted_checkpoint.filter(|from| saved.step < *from);
        self.last_checkpoint = self.last_checkpoint.take().max(Some(saved));
    }

    /// All members hold this step. Answers with the one before if that was later.
    pub(super) fn commit(&mut self, step: u64) -> Option<u64> {
        let before = std::mem::replace(&mut self.step, step);
        if step >= before {
            return None;
        }
        // What was to be saved is gone; what took its place is to be saved instead.
        let saved = self.saved_step();
        self.wanted_checkpoint = self.wanted_checkpoint.map(|from| from.min(step)).filter(|from| saved < Some(*from));
        Some(before)
    }

    /// The member of rank 0 tells how training goes. One that has no step to tell of yet does not unsay what was known.
    pub(super) fn hear(&mut self, training: Option<TrainingProgress>, mut sources: Vec<SourceProgress>) {
        self.training = training.or(self.training);
        if !sources.is_empty() {
            sources.truncate(MOST_SOURCES);
            self.sources = sources;
        }
    }
}
