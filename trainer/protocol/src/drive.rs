//! What a training process does, and in which order: one text for a process that trains alone, for a member of a group, and for a
//! simulated one.
//!
//! Comes in: a process that can do each single thing ([`Steps`]; as a member of a group also [`Membership`]). Goes out: what it ends with.
//! The driver does no I/O and reads no clock. What the process does may take time and wait: its functions give futures. Those of a real
//! process block its training thread and are complete when they are first asked, those of a simulated one wait on a simulated clock.
//!
//! Between two steps, and nowhere else, the driver looks whether the process was asked to leave and what the protocol's machine
//! ([`crate::Member`]) wants done: what a step was agreed to lead to is there by then, since the machine has taken in the step before.

use crate::{EndReason, Flags, Generation, MemberCommand, MemberEvent, Plan, Refusal, Role, StateLabel};

#[cfg(test)]
mod tests;

/// Where a run stands between two steps. The same on all members of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Steps that are done.
    pub completed_steps: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Steps in a row, up to now, whose update was left out.
    pub consecutive_skips: u32,
    /// How many of them are too many.
    pub most_skips: u32,
    /// Too many of the last records could not be used.
    pub has_bad_data: bool,
    /// Some step had an update.
    pub has_trained: bool,
}

/// Why there is no next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All steps are done.
    Completed,
    /// And that is no success.
    Failed(Failure),
}

/// Why going on makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No update was possible for too many steps in a row.
    Diverged,
    /// The data are not what they should be.
    BadData,
    /// All steps are done, and none of them had an update.
    NothingTrained,
}

impl Standing {
    /// Why there is no next step, if there is none.
    #[must_use]
    pub const fn ending(&self) -> Option<Ending> {
        if self.consecutive_skips >= self.most_skips {
            Some(Ending::Failed(Failure::Diverged))
        } else if self.has_bad_data {
            Some(Ending::Failed(Failure::BadData))
        } else if self.completed_steps < self.steps {
            None
        } else if self.has_trained {
            Some(Ending::Completed)
        } else {
            Some(Ending::Failed(Failure::NothingTrained))
        }
    }
}

/// What the members of a step have told each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    /// What any of them wishes; takes effect after the next step.
    pub flags: Flags,
    /// Whether any of them still writes a checkpoint.
    pub is_busy: bool,
}

/// Why a checkpoint is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// A step is done after which one may be due: the process knows after which. It is not waited for.
    Step(Agreed),
    /// It was agreed on. It is waited for; when it fails, it is asked for again.
    Asked,
    /// There is no next step. It is waited for.
    Last(Ending),
}

/// Something did not happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Halt<E> {
    /// The group failed, for this reason: the next one does it again.
    Group(String),
    /// The data of the step did not come, and the process was asked to leave.
    NoData,
    /// Members have compared their states, and those of some differ from the others'.
    Differs {
        /// Whose.
        ranks: Vec<u32>,
        /// This process's is one of them: it has to get another's.
        is_own: bool,
        /// In words.
        reason: String,
    },
    /// The process cannot go on.
    Fatal(E),
}

impl<E> From<E> for Halt<E> {
    fn from(error: E) -> Self {
        Self::Fatal(error)
    }
}

/// Why a group is dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DropCause {
    /// All members leave it, as they have agreed.
    Agreed,
    /// The machine has it dropped, for this reason.
    Aborted(String),
    /// It failed here, for this reason.
    Failed(String),
}

/// How a member came out of the time before its group's first step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// It holds the state of so many steps, as all do.
    At(u64),
    /// A later generation has written the checkpoint that it was to read: whoever formed this one was replaced.
    Overtaken(Generation),
}

/// A process that makes steps.
pub trait Steps {
    /// It cannot go on.
    type Error;
    /// What it ends with.
    type Exit;
    /// What is known of a step before it is computed.
    type Exchanged;

    /// Whether it was asked to leave.
    fn is_asked_to_leave(&self) -> bool;

    /// Where the run stands.
    fn standing(&self) -> Standing;

    /// Takes the own samples of the next step, and lets all members know what they have and wish.
    fn exchange(&mut self) -> impl Future<Output = Result<Self::Exchanged, Halt<Self::Error>>>;

    /// Computes the step and, when every gradient was summed without an error, applies the update. After that the step counts.
    fn step(&mut self, exchanged: Self::Exchanged) -> impl Future<Output = Result<Agreed, Halt<Self::Error>>>;

    /// Writes a checkpoint. [`Halt::Group`] comes from [`Occasion::Last`] alone: the others did
    /// not do their part.
    fn save(&mut self, occasion: Occasion) -> impl Future<Output = Result<(), Halt<Self::Error>>>;

    /// There is no next step, and that is no success: writes down why, and gives the error that the process ends with.
    fn fail(&mut self, failure: Failure) -> impl Future<Output = Self::Error>;

    /// The process ends. `is_kept`: what it holds is safe without it.
    fn exit(&mut self, reason: EndReason, is_kept: bool) -> impl Future<Output = Result<Self::Exit, Self::Error>>;
}

/// A process that makes its steps in groups that a coordinator forms.
pub trait Membership: Steps {
    /// Tells the protocol's machine what was done. What follows from it is there for [`Membership::command`] afterwards.
    fn report(&mut self, event: MemberEvent) -> Result<(), Self::Error>;

    /// The machine's next command, if there is one.
    fn command(&mut self) -> Option<MemberCommand>;

    /// As [`Membership::command`], waiting a moment for it.
    fn next_command(&mut self) -> impl Future<Output = Option<MemberCommand>>;

    /// Whether it holds a state that somebody may need.
    fn holds_state(&self) -> bool;

    /// Whether its group has no other member.
    fn is_alone(&self) -> bool;

    /// Builds the group of a plan.
    fn form(&mut self, plan: Plan) -> impl Future<Output = Result<(), Halt<Self::Error>>>;

    /// Comes to hold the state that the group goes on from, and helps others to.
    fn level(
        &mut self,
        generation: Generation,
        role: Role,
        base: Option<StateLabel>,
    ) -> impl Future<Output = Result<Level, Halt<Self::Error>>>;

    /// Gets ready for the group's first step.
    fn begin(&mut self, generation: Generation, step: u64) -> Result<(), Self::Error>;

    /// Leaves the group as all agreed to: waits until nobody needs it any more.
    fn leave(&mut self, generation: Generation) -> impl Future<Output = Result<(), Self::Error>>;

    /// Drops every reference to the group, if it has one, and gives up what its members were writing together.
    fn drop_group(&mut self, generation: Generation, why: &DropCause) -> Result<(), Self::Error>;

    /// The coordinator will never take this process.
    fn refused(&mut self, refusal: Refusal) -> impl Future<Output = Result<Self::Exit, Self::Error>>;
}

/// What came of an attempt to make a step.
enum Outcome {
    /// It is done: completed steps with it, and what was agreed on.
    Committed(u64, Flags),
    /// There is none left, and the last state is saved.
    Finished,
    Halted(String),
    NoData,
    Differs {
        ranks: Vec<u32>,
        is_own: bool,
        reason: String,
    },
}

/// One step, with the checkpoint that may be due after it; or the end of all steps.
async fn step<P: Steps>(process: &mut P) -> Result<Outcome, P::Error> {
    match attempt(process).await {
        Ok(outcome) => Ok(outcome),
        Err(Halt::Group(reason)) => Ok(Outcome::Halted(reason)),
        Err(Halt::NoData) => Ok(Outcome::NoData),
        Err(Halt::Differs { ranks, is_own, reason }) => Ok(Outcome::Differs { ranks, is_own, reason }),
        Err(Halt::Fatal(error)) => Err(error),
    }
}

async fn attempt<P: Steps>(process: &mut P) -> Result<Outcome, Halt<P::Error>> {
    let standing = process.standing();
    match standing.ending() {
        None => {}
        Some(Ending::Completed) => {
            process.save(Occasion::Last(Ending::Completed)).await?;
            return Ok(Outcome::Finished);
        }
        Some(Ending::Failed(failure)) => {
            if failure == Failure::BadData {
                // What was trained is good: the run goes on from here once the data are mended.
                process.save(Occasion::Last(Ending::Failed(failure))).await?;
            }
            return Err(Halt::Fatal(process.fail(failure).await));
        }
    }
    let exchanged = process.exchange().await?;
    let agreed = process.step(exchanged).await?;
    process.save(Occasion::Step(agreed)).await?;
    Ok(Outcome::Committed(standing.completed_steps + 1, agreed.flags))
}

/// Trains without a group until the last step, or until asked to leave.
///
/// # Errors
/// When the process cannot go on.
pub async fn drive_alone<P: Steps>(process: &mut P) -> Result<P::Exit, P::Error> {
    loop {
        // The last step's end comes first: nothing is left to leave for.
        if process.is_asked_to_leave() && process.standing().ending().is_none() {
            return process.exit(EndReason::Drained, false).await;
        }
        match step(process).await? {
            Outcome::Committed(..) => {}
            Outcome::Finished => return process.exit(EndReason::Complete, true).await,
            Outcome::Halted(_) | Outcome::NoData | Outcome::Differs { .. } => return process.exit(EndReason::Drained, false).await,
        }
    }
}

/// Does what the machine's commands say, from forming the first group to the end of the process.
///
/// # Errors
/// When the process cannot go on.
pub async fn drive<P: Membership>(process: &mut P) -> Result<P::Exit, P::Error> {
    let mut driver = Driver { process, group: None, trains: false, is_draining: false, missed_steps: 0, exit: None };
    loop {
        driver.hear_of_leaving()?;
        let command = if driver.trains { driver.process.command() } else { driver.process.next_command().await };
        match command {
            Some(command) => driver.obey(command).await?,
            None if driver.trains => driver.step().await?,
            // Nobody needs anything of it, and a coordinator that would let it go may not be there.
            None if driver.is_draining && driver.group.is_none() && !driver.process.holds_state() => {
                return driver.process.exit(EndReason::Drained, true).await;
            }
            None => {}
        }
        if let Some(exit) = driver.exit.take() {
            return Ok(exit);
        }
    }
}

struct Driver<'a, P: Membership> {
    process: &'a mut P,
    /// The generation whose group the process has.
    group: Option<Generation>,
    /// It makes steps in it.
    trains: bool,
    is_draining: bool,
    /// Steps that were left because their data did not come after the process was asked to leave.
    missed_steps: u32,
    exit: Option<P::Exit>,
}

impl<P: Membership> Driver<'_, P> {
    fn hear_of_leaving(&mut self) -> Result<(), P::Error> {
        if self.process.is_asked_to_leave() && !self.is_draining {
            self.is_draining = true;
            self.process.report(MemberEvent::Drain)?;
        }
        Ok(())
    }

    async fn obey(&mut self, command: MemberCommand) -> Result<(), P::Error> {
        match command {
            MemberCommand::FormGroup(plan) => self.form(plan).await,
            MemberCommand::Recover { generation, role, base } if self.group == Some(generation) => self.level(generation, role, base).await,
            MemberCommand::Train { generation, step } if self.group == Some(generation) => {
                self.trains = true;
                self.process.begin(generation, step)
            }
            // Of a group that was dropped meanwhile.
            MemberCommand::Recover { .. } | MemberCommand::Train { .. } => Ok(()),
            MemberCommand::WriteCheckpoint { .. } => match self.process.save(Occasion::Asked).await {
                Ok(()) | Err(Halt::Group(_) | Halt::NoData | Halt::Differs { .. }) => Ok(()),
                Err(Halt::Fatal(error)) => Err(error),
            },
            MemberCommand::LeaveGroup { generation } => {
                if self.group == Some(generation) {
                    self.process.leave(generation).await?;
                }
                self.close(generation, DropCause::Agreed)
            }
            MemberCommand::AbortGroup { generation, reason } => self.close(generation, DropCause::Aborted(reason)),
            MemberCommand::Exit { reason, is_kept } => {
                self.exit = Some(self.process.exit(reason, is_kept).await?);
                Ok(())
            }
            MemberCommand::GiveUp(refusal) => {
                self.exit = Some(self.process.refused(refusal).await?);
                Ok(())
            }
            // The client's own.
            MemberCommand::Connect | MemberCommand::Disconnect { .. } | MemberCommand::Send(_) | MemberCommand::StoreResponse { .. } => {
                Ok(())
            }
        }
    }

    async fn form(&mut self, plan: Plan) -> Result<(), P::Error> {
        let generation = plan.generation;
        match self.process.form(plan).await {
            Ok(()) => {
                self.group = Some(generation);
                self.process.report(MemberEvent::GroupFormed { generation })
            }
            Err(halt) => self.halt(generation, halt),
        }
    }

    async fn level(&mut self, generation: Generation, role: Role, base: Option<StateLabel>) -> Result<(), P::Error> {
        match self.process.level(generation, role, base).await {
            Ok(Level::At(step)) => self.process.report(MemberEvent::Recovered { generation, step }),
            // The machine has the group dropped then.
            Ok(Level::Overtaken(by)) => self.process.report(MemberEvent::Overtaken { generation, by }),
            Err(halt) => self.halt(generation, halt),
        }
    }

    async fn step(&mut self) -> Result<(), P::Error> {
        let Some(generation) = self.group else {
            self.trains = false;
            return Ok(());
        };
        match step(self.process).await? {
            Outcome::Committed(step, agreed) => self.process.report(MemberEvent::Committed { generation, step, agreed }),
            Outcome::Finished => {
                self.trains = false;
                self.process.report(MemberEvent::Finished { generation })
            }
            Outcome::Halted(reason) => self.close(generation, DropCause::Failed(reason)),
            Outcome::NoData => self.miss(generation).await,
            Outcome::Differs { ranks, is_own, reason } => {
                self.process.report(MemberEvent::StateDiffers { generation, ranks, is_own })?;
                self.close(generation, DropCause::Failed(reason))
            }
        }
    }

    /// Others do the step in a group without this member. A coordinator that puts it into one again waits for a step of this member, which
    /// alone has the state: what it holds is saved instead.
    async fn miss(&mut self, generation: Generation) -> Result<(), P::Error> {
        self.hear_of_leaving()?;
        self.missed_steps += 1;
        let is_leaving = self.process.is_alone() || self.missed_steps > 1;
        self.close(generation, DropCause::Failed("it was asked to leave, and the data of its step do not come".to_owned()))?;
        if is_leaving {
            self.exit = Some(self.process.exit(EndReason::Drained, false).await?);
        }
        Ok(())
    }

    fn halt(&mut self, generation: Generation, halt: Halt<P::Error>) -> Result<(), P::Error> {
        match halt {
            Halt::Fatal(error) => Err(error),
            Halt::Group(reason) | Halt::Differs { reason, .. } => self.close(generation, DropCause::Failed(reason)),
            Halt::NoData => self.close(generation, DropCause::Failed("its data do not come".to_owned())),
        }
    }

    /// Drops the group and says so, which the machine waits for whether or not there was one.
    fn close(&mut self, generation: Generation, why: DropCause) -> Result<(), P::Error> {
        (self.group, self.trains) = (None, false);
        self.process.drop_group(generation, &why)?;
        let failure = match why {
            DropCause::Failed(reason) => Some(reason),
            DropCause::Agreed | DropCause::Aborted(_) => None,
        };
        self.process.report(MemberEvent::GroupClosed { generation, failure })
    }
}
