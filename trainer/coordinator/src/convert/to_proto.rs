//! From the protocol's types to protobuf. Cannot fail.

use std::time::Duration;

use lcl_protocol::{
    ActivityStage, EndReason, Generation, HeldGroup, HistoryEntry, HistoryEvent, Hop, LossCause, MemberName, Moves, Phase, Plan, Refusal,
    ReportCause, Role, Saved, SourceProgress, StateLabel, Status, StoreRequest, StoreResponse, Ticket, ToCoordinator, ToMember,
    TrainingProgress, Turn, World,
};

use super::wire;

fn group_id(generation: Generation) -> wire::GroupId {
    wire::GroupId { epoch: generation.epoch, number: generation.n }
}

fn label(label: StateLabel) -> wire::StateLabel {
    wire::StateLabel { step: label.step, group: Some(group_id(label.generation)) }
}

fn name(name: MemberName) -> wire::MemberName {
    wire::MemberName { worker: name.worker, index: name.index }
}

const fn ticket(ticket: Ticket) -> wire::Ticket {
    wire::Ticket { epoch: ticket.epoch, n: ticket.n }
}

const fn turn(turn: Turn) -> wire::refused::Turn {
    wire::refused::Turn { ticket: Some(ticket(turn.ticket)), start: turn.start }
}

fn milliseconds(time: Duration) -> u64 {
    time.as_millis().try_into().unwrap_or(u64::MAX)
}

fn microseconds(time: Duration) -> u64 {
    time.as_micros().try_into().unwrap_or(u64::MAX)
}

/// Why a job or a member ended.
pub(crate) fn end_reason(reason: EndReason) -> wire::EndReason {
    match reason {
        EndReason::Complete => wire::EndReason::Complete,
        EndReason::Drained => wire::EndReason::Drained,
        EndReason::Stopped => wire::EndReason::Stopped,
    }
}

/// A member's message.
pub(crate) fn to_coordinator(message: ToCoordinator) -> wire::ToCoordinator {
    use wire::to_coordinator::Message;
    let (about, message) = match message {
        ToCoordinator::Attach(attach) => {
            let attach = *attach;
            let message = wire::Attach {
                protocol_version: attach.protocol_version,
                name: Some(name(attach.identity.name)),
                run: attach.identity.incarnation.run,
                start: attach.identity.incarnation.start,
                ticket: attach.ticket.map(ticket),
                node: attach.identity.node,
                address: attach.identity.address,
                config_digest: attach.config_digest,
                held: attach.held.map(label),
                draining: attach.draining,
                group: attach.group.map(held_group),
                saved: attach.saved.map(saved),
                machine: attach.machine,
            };
            (attach.known, Message::Attach(message))
        }
        ToCoordinator::Heartbeat { generation, held, activity } => {
            let step_work_microseconds = activity.step_work.map(microseconds);
            let sources = activity.sources.into_iter().map(source).collect();
            let training = activity.training.map(training);
            let (operations, stage) = (activity.operations, stage(activity.stage).into());
            let beat = wire::Heartbeat { training, held: held.map(label), operations, step_work_microseconds, sources, stage };
            (generation, Message::Heartbeat(beat))
        }
        ToCoordinator::Report { generation, held, cause } => {
            use wire::report::{Aborted, Agreed, Cause, Failed};
            let cause = match cause {
                ReportCause::Agreed => Cause::Agreed(Agreed {}),
                ReportCause::Aborted => Cause::Aborted(Aborted {}),
                ReportCause::Failed { detail, differing } => Cause::Failed(Failed { detail, differing }),
            };
            (Some(generation), Message::Report(wire::Report { held: held.map(label), cause: Some(cause) }))
        }
        ToCoordinator::Drain { generation } => (generation, Message::Drain(wire::Drain {})),
        ToCoordinator::CheckpointCommitted { generation, saved: committed } => {
            (Some(generation), Message::CheckpointCommitted(wire::CheckpointCommitted { saved: Some(saved(committed)) }))
        }
        ToCoordinator::Finished { generation, step } => (Some(generation), Message::Finished(wire::Finished { step })),
        ToCoordinator::Store { generation, id, request } => (Some(generation), Message::Store(store_request(id, request))),
    };
    wire::ToCoordinator { group: about.map(group_id), message: Some(message) }
}

fn held_group(group: HeldGroup) -> wire::HeldGroup {
    let HeldGroup { generation: held, rank, world, seat, seats, list_digest, finished } = group;
    wire::HeldGroup { id: Some(group_id(held)), rank, world, list_digest, finished, seat, seats }
}

fn store_request(id: u64, request: StoreRequest) -> wire::StoreRequest {
    use wire::store_request::{Add, Append, Check, CompareSet, CountKeys, Delete, Get, Operation, Set, Wait};
    let operation = match request {
        StoreRequest::Set { key, value } => Operation::Set(Set { key, value }),
        StoreRequest::Get { key } => Operation::Get(Get { key }),
        StoreRequest::Wait { keys } => Operation::Wait(Wait { keys }),
        StoreRequest::Check { keys } => Operation::Check(Check { keys }),
        StoreRequest::Add { key, amount } => Operation::Add(Add { key, amount }),
        StoreRequest::CompareSet { key, expected, desired } => Operation::CompareSet(CompareSet { key, expected, desired }),
        StoreRequest::Append { key, value } => Operation::Append(Append { key, value }),
        StoreRequest::Delete { key } => Operation::Delete(Delete { key }),
        StoreRequest::CountKeys => Operation::CountKeys(CountKeys {}),
    };
    wire::StoreRequest { id, operation: Some(operation) }
}

/// The coordinator's message.
pub(crate) fn to_member(message: ToMember) -> wire::ToMember {
    use wire::to_member::Message;
    let (about, message) = match message {
        ToMember::Ticket { generation, ticket: given } => (generation, Message::Ticket(ticket(given))),
        ToMember::Attached { generation, ticket: own } => (generation, Message::Attached(wire::Attached { ticket: Some(ticket(own)) })),
        ToMember::Refused { generation, reason } => (generation, Message::Refused(refusal(reason))),
        ToMember::Form(form) => (form.generation, Message::Form(plan(form))),
        ToMember::Abort { generation, reason } => (generation, Message::Abort(wire::Abort { reason })),
        ToMember::Wish { generation, flags } => (generation, Message::Wish(wire::Wish { flags: flags.bits() })),
        ToMember::WishCheckpoint { generation, from } => (generation, Message::WishCheckpoint(wire::WishCheckpoint { from })),
        ToMember::Alive { generation } => (generation, Message::Alive(wire::Alive {})),
        ToMember::Store { generation, id, response } => (generation, Message::Store(store_response(id, response))),
        ToMember::Evicted { generation, reason } => (generation, Message::Evicted(wire::Evicted { reason })),
        ToMember::End { generation, reason, is_kept } => {
            (generation, Message::End(wire::End { reason: end_reason(reason).into(), is_kept }))
        }
    };
    wire::ToMember { group: Some(group_id(about)), message: Some(message) }
}

fn store_response(id: u64, response: StoreResponse) -> wire::StoreResponse {
    use wire::store_response::{Answer, Done};
    let answer = match response {
        StoreResponse::Done => Answer::Done(Done {}),
        StoreResponse::Value(value) => Answer::Value(value),
        StoreResponse::Number(number) => Answer::Number(number),
        StoreResponse::Flag(flag) => Answer::Flag(flag),
        StoreResponse::Cancelled { reason } => Answer::Cancelled(reason),
        StoreResponse::Refused { reason } => Answer::Refused(reason),
    };
    wire::StoreResponse { id, answer: Some(answer) }
}

fn refusal(refusal: Refusal) -> wire::Refused {
    use wire::refused::{Configuration, Machine, ProtocolVersion, Reason, StaleCoordinator, Superseded};
    let reason = match refusal {
        Refusal::ProtocolVersion { member, version, coordinator } => {
            Reason::ProtocolVersion(ProtocolVersion { member, version, coordinator })
        }
        Refusal::Configuration { member, digest, expected } => Reason::Configuration(Configuration { member, digest, expected }),
        Refusal::Machine { member, machine, expected } => Reason::Machine(Machine { member, machine, expected }),
        Refusal::Superseded { member, own, newest } => {
            Reason::Superseded(Superseded { member, own: Some(turn(own)), newest: Some(turn(newest)) })
        }
        Refusal::StaleCoordinator { member, epoch, known } => {
            Reason::StaleCoordinator(StaleCoordinator { member, epoch, known: Some(group_id(known)) })
        }
    };
    wire::Refused { reason: Some(reason) }
}

fn stage(stage: ActivityStage) -> wire::heartbeat::Stage {
    use wire::heartbeat::Stage;
    match stage {
        ActivityStage::Preparing => Stage::Preparing,
        ActivityStage::Transferring => Stage::Transferring,
        ActivityStage::Training => Stage::Training,
    }
}

fn moves(moves: Moves) -> wire::plan::Moves {
    let hop = |Hop { from, to, depth }| wire::plan::Hop { from, to, depth };
    wire::plan::Moves { halves: moves.halves.map(hop).into() }
}

fn plan(plan: Plan) -> wire::Plan {
    use wire::plan::{Follow, Level, Restore, Role as WireRole, SeatRange};
    let role = match plan.role {
        Role::Level => WireRole::Level(Level {}),
        Role::Send(it) => WireRole::SendHalves(moves(it)),
        Role::Receive(it) => WireRole::ReceiveHalves(moves(it)),
        Role::Restore => WireRole::Restore(Restore { to: Vec::new() }),
        Role::Follow => WireRole::Follow(Follow {}),
    };
    wire::Plan {
        rank: plan.rank,
        world: plan.world,
        list_digest: plan.list_digest,
        base: plan.base.map(label),
        role: Some(role),
        lost: plan.lost.into_iter().map(|loss| wire::Loss { member: Some(name(loss.member)), reason: loss.reason }).collect(),
        further_losses: plan.further_losses,
        seat: plan.seat,
        seats: plan.division.seats(),
        empty_seats: plan.division.empty().iter().map(|run| SeatRange { first: run.start, end: run.end }).collect(),
    }
}

/// Bounds on the number of members.
pub(crate) fn world(world: World) -> wire::World {
    wire::World { min: world.min(), desired: world.desired(), max: world.max() }
}

/// The status that is watched.
pub(crate) fn status(status: Status) -> wire::Status {
    let (phase, ended) = match status.phase {
        Phase::Waiting => (wire::Phase::Waiting, wire::EndReason::Unspecified),
        Phase::Running => (wire::Phase::Running, wire::EndReason::Unspecified),
        Phase::Recovering => (wire::Phase::Recovering, wire::EndReason::Unspecified),
        Phase::Ended(reason) => (wire::Phase::Ended, end_reason(reason)),
    };
    let members = status.members.into_iter().map(|member| wire::MemberStatus {
        name: Some(name(member.name)),
        node: member.node,
        rank: member.rank,
        step: member.step,
    });
    wire::Status {
        phase: phase.into(),
        end_reason: ended.into(),
        group: Some(group_id(status.generation)),
        world: Some(world(status.world)),
        members: members.collect(),
        step: status.step,
        last_checkpoint: status.last_checkpoint.map(saved),
        training: status.training.map(training),
        wanted_checkpoint: status.wanted_checkpoint,
        history: status.history.into_iter().map(history_entry).collect(),
        sources: status.sources.into_iter().map(source).collect(),
    }
}

fn source(source: SourceProgress) -> wire::SourceProgress {
    wire::SourceProgress {
        name: source.name,
        samples: source.samples,
        generation_loss: source.generation_loss,
        contrastive_loss: source.contrastive_loss,
        data_wait_microseconds: microseconds(source.data_wait),
    }
}

fn loss_cause(cause: LossCause) -> wire::LossCause {
    match cause {
        LossCause::StreamClosed => wire::LossCause::StreamClosed,
        LossCause::Silent => wire::LossCause::Silent,
        LossCause::NoReport => wire::LossCause::NoReport,
        LossCause::Replaced => wire::LossCause::Replaced,
        LossCause::Stalled => wire::LossCause::Stalled,
        LossCause::OtherMachine => wire::LossCause::OtherMachine,
        LossCause::Slow => wire::LossCause::Slow,
    }
}

fn history_entry(entry: HistoryEntry) -> wire::HistoryEntry {
    use wire::history_entry::{Adopted, Broken, Event, Formed, Joined, Left, Lost, Recovered, Slow, WentBack};
    let event = match entry.event {
        HistoryEvent::Joined { member } => Event::Joined(Joined { member: Some(name(member)) }),
        HistoryEvent::Lost { member, cause, reason } => {
            Event::Lost(Lost { member: Some(name(member)), reason, cause: loss_cause(cause).into() })
        }
        HistoryEvent::Left { member, reason } => Event::Left(Left { member: Some(name(member)), reason: end_reason(reason).into() }),
        HistoryEvent::Formed { generation: formed, world, base } => Event::Formed(Formed { group: Some(group_id(formed)), world, base }),
        HistoryEvent::Broken { generation: broken, reason } => Event::Broken(Broken { group: Some(group_id(broken)), reason }),
        HistoryEvent::Recovered { generation: recovered, took } => {
            Event::Recovered(Recovered { group: Some(group_id(recovered)), took_milliseconds: milliseconds(took) })
        }
        HistoryEvent::Slow { member, step_work, median } => Event::Slow(Slow {
            member: Some(name(member)),
            step_work_microseconds: microseconds(step_work),
            median_microseconds: microseconds(median),
        }),
        HistoryEvent::Adopted { generation: adopted, world } => Event::Adopted(Adopted { group: Some(group_id(adopted)), world }),
        HistoryEvent::WentBack { from, to } => Event::WentBack(WentBack { from, to }),
    };
    wire::HistoryEntry { sequence: entry.sequence, at_milliseconds: milliseconds(entry.at), event: Some(event) }
}

fn saved(saved: Saved) -> wire::SavedCheckpoint {
    wire::SavedCheckpoint { step: saved.step, unix_milliseconds: milliseconds(saved.time), folder: saved.folder }
}

fn training(training: TrainingProgress) -> wire::TrainingProgress {
    wire::TrainingProgress { loss: training.loss, samples_per_second: training.samples_per_second }
}
