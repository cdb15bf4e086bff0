//! Commands of the operator and of people: read from the wire, and what is answered. Pure.

use lcl_proto::v1alpha1::{self as wire, command_request, command_response};
use lcl_protocol::{CoordinatorEvent, Phase, Status};

use crate::convert::{WireError, read_world, write_end_reason, write_world};

/// Something that was asked for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Command(CoordinatorEvent);

impl Command {
    /// From the wire.
    ///
    /// # Errors
    /// When it is no command, or asks for bounds that contradict each other.
    pub(crate) fn read(request: wire::CommandRequest) -> Result<Self, WireError> {
        use command_request::Command as Asked;
        Ok(Self(match request.command.ok_or(WireError::Command)? {
            Asked::Resize(world) => CoordinatorEvent::SetWorld(read_world(world)?),
            Asked::DrainWorker(drain) => CoordinatorEvent::DrainWorker { worker: drain.worker },
            Asked::Checkpoint(checkpoint) => CoordinatorEvent::Checkpoint { from: checkpoint.from },
            Asked::Stop(_) => CoordinatorEvent::Stop,
        }))
    }

    /// What the machine is told.
    pub(crate) fn event(&self) -> CoordinatorEvent {
        self.0.clone()
    }

    /// What is answered, once the machine was told. `before` is the status before that: members that leave at once are in no later one.
    pub(crate) fn answer(&self, before: &Status, after: &Status) -> wire::CommandResponse {
        use command_response::{Accepted, Checkpoint, DrainWorker, Stop};
        let count = |worker: Option<&str>| {
            let asked = before.members.iter().filter(|member| worker.is_none_or(|worker| member.name.worker == worker));
            asked.count().try_into().unwrap_or(u32::MAX)
        };
        let accepted = match &self.0 {
            CoordinatorEvent::SetWorld(_) => Accepted::Resize(write_world(after.world)),
            CoordinatorEvent::DrainWorker { worker } => Accepted::DrainWorker(DrainWorker { members: count(Some(worker)) }),
            CoordinatorEvent::Checkpoint { from } => {
                let from = from.map_or(before.step, |from| from.min(before.step));
                Accepted::Checkpoint(Checkpoint { from, is_committed: after.saved_step() >= Some(from) })
            }
            _ => Accepted::Stop(Stop { members: count(None) }),
        };
        let ended = match after.phase {
            Phase::Ended(reason) => write_end_reason(reason),
            Phase::Waiting | Phase::Running | Phase::Recovering => wire::EndReason::Unspecified,
        };
        wire::CommandResponse { accepted: Some(accepted), ended: ended.into() }
    }
}

#[cfg(test)]
mod tests {
    use lcl_protocol::{EndReason, Generation, MemberName, MemberStatus, World};

    use super::*;

    fn status(step: u64, last_checkpoint: Option<u64>) -> Status {
        let member = |worker: &str| MemberStatus {
            name: MemberName { worker: worker.to_owned(), index: 0 },
            node: "n".to_owned(),
            rank: None,
            step: None,
        };
        Status {
            phase: Phase::Running,
            generation: Generation { epoch: 1, n: 1 },
            world: World::new(1, 2, 3).unwrap(),
            members: vec![member("w-0"), member("w-1")],
            step,
            last_checkpoint: last_checkpoint.map(Into::into),
            training: None,
            wanted_checkpoint: None,
            sources: Vec::new(),
            history: Vec::new(),
        }
    }

    #[test]
    fn the_answer_says_what_was_accepted() {
        use command_request::Command as Asked;
        use command_response::Accepted;
        let check = |asked: Asked, last_checkpoint, expected: Accepted| {
            let command = Command::read(wire::CommandRequest { epoch: None, command: Some(asked) }).unwrap();
            let status = status(9, last_checkpoint);
            let answer = command.answer(&status, &status);
            assert_eq!((answer.accepted, answer.ended), (Some(expected), wire::EndReason::Unspecified.into()));
        };
        let world = wire::World { min: 1, desired: 2, max: 3 };
        check(Asked::Resize(world), None, Accepted::Resize(world));
        let drain = |worker: &str| Asked::DrainWorker(command_request::DrainWorker { worker: worker.to_owned() });
        check(drain("w-1"), None, Accepted::DrainWorker(command_response::DrainWorker { members: 1 }));
        check(drain("w-9"), None, Accepted::DrainWorker(command_response::DrainWorker { members: 0 }));
        let checkpoint = |from| Asked::Checkpoint(command_request::Checkpoint { from });
        let accepted = |from, is_committed| Accepted::Checkpoint(command_response::Checkpoint { from, is_committed });
        check(checkpoint(None), Some(8), accepted(9, false));
        check(checkpoint(Some(8)), Some(8), accepted(8, true));
        check(checkpoint(Some(10)), None, accepted(9, false));
        check(Asked::Stop(command_request::Stop {}), None, Accepted::Stop(command_response::Stop { members: 2 }));
    }

    #[test]
    fn the_answer_says_that_the_job_has_ended_and_what_is_no_command_is_refused() {
        let command = Command(CoordinatorEvent::Stop);
        let ended = Status { phase: Phase::Ended(EndReason::Stopped), members: Vec::new(), ..status(9, Some(9)) };
        assert_eq!(command.answer(&ended, &ended).ended, wire::EndReason::Stopped.into());
        assert_eq!(Command::read(wire::CommandRequest::default()), Err(WireError::Command));
        let contradicting = command_request::Command::Resize(wire::World { min: 2, desired: 1, max: 1 });
        assert!(matches!(Command::read(wire::CommandRequest { epoch: None, command: Some(contradicting) }), Err(WireError::World(_))));
    }
}
