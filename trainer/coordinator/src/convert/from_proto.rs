//! From protobuf to the protocol's types: every field that must be there is asked for.

use std::time::Duration;

use lcl_protocol::{
    Activity, ActivityStage, Attach, Division, EndReason, Flags, Generation, HeldGroup, HistoryEntry, HistoryEvent, Hop, Identity,
    Incarnation, Loss, LossCause, MOST_SOURCES, MemberName, MemberStatus, Moves, Phase, Plan, Refusal, ReportCause, Role, Saved,
    SourceProgress, StateLabel, Status, StoreRequest, StoreResponse, Ticket, ToCoordinator, ToMember, TrainingProgress, Turn, World,
};

use super::{WireError, required, wire};

fn generation(group: wire::GroupId) -> Generation {
    Generation { epoch: group.epoch, n: group.number }
}

fn required_generation(value: Option<wire::GroupId>) -> Result<Generation, WireError> {
    required("group", value).map(generation)
}

fn label(label: wire::StateLabel) -> Result<StateLabel, WireError> {
    Ok(StateLabel { step: label.step, generation: required_generation(label.group)? })
}

fn held(held: Option<wire::StateLabel>) -> Result<Option<StateLabel>, WireError> {
    held.map(label).transpose()
}

fn name(name: Option<wire::MemberName>) -> Result<MemberName, WireError> {
    let wire::MemberName { worker, index } = required("name", name)?;
    Ok(MemberName { worker, index })
}

const fn ticket(ticket: wire::Ticket) -> Ticket {
    Ticket { epoch: ticket.epoch, n: ticket.n }
}

fn turn(field: &'static str, turn: Option<wire::refused::Turn>) -> Result<Turn, WireError> {
    let wire::refused::Turn { ticket: own, start } = required(field, turn)?;
    Ok(Turn { ticket: required("ticket", own).map(ticket)?, start })
}

fn end_reason(reason: wire::EndReason) -> Result<EndReason, WireError> {
    match reason {
        wire::EndReason::Unspecified => Err(WireError::Field { field: "reason" }),
        wire::EndReason::Complete => Ok(EndReason::Complete),
        wire::EndReason::Drained => Ok(EndReason::Drained),
        wire::EndReason::Stopped => Ok(EndReason::Stopped),
    }
}

/// A member's message.
pub(crate) fn to_coordinator(message: wire::ToCoordinator) -> Result<ToCoordinator, WireError> {
    use wire::to_coordinator::Message;
    let known = message.group.map(generation);
    let about = || required("group", known);
    Ok(match required("message", message.message)? {
        Message::Attach(attach) => ToCoordinator::Attach(Box::new(Attach {
            protocol_version: attach.protocol_version,
            identity: Identity {
                name: name(attach.name)?,
                incarnation: Incarnation { run: attach.run, start: attach.start },
                node: attach.node,
                address: attach.address,
            },
            ticket: attach.ticket.map(ticket),
            config_digest: attach.config_digest,
            machine: attach.machine,
            known,
            held: held(attach.held)?,
            draining: attach.draining,
            group: attach.group.map(held_group).transpose()?,
            saved: attach.saved.map(saved),
        })),
        Message::Heartbeat(heartbeat) => {
            let (stage, operations) = (stage(heartbeat.stage()), heartbeat.operations);
            let step_work = heartbeat.step_work_microseconds.map(Duration::from_micros);
            let sources = heartbeat.sources.into_iter().take(MOST_SOURCES).map(source).collect();
            let activity = Activity { stage, operations, step_work, training: heartbeat.training.map(training), sources };
            ToCoordinator::Heartbeat { generation: known, held: held(heartbeat.held)?, activity }
        }
        Message::Report(report) => {
            let cause = match required("cause", report.cause)? {
                wire::report::Cause::Agreed(_) => ReportCause::Agreed,
                wire::report::Cause::Aborted(_) => ReportCause::Aborted,
                wire::report::Cause::Failed(failed) => ReportCause::Failed { detail: failed.detail, differing: failed.differing },
            };
            ToCoordinator::Report { generation: about()?, held: held(report.held)?, cause }
        }
        Message::Drain(_) => ToCoordinator::Drain { generation: known },
        Message::CheckpointCommitted(committed) => {
            ToCoordinator::CheckpointCommitted { generation: about()?, saved: saved(required("saved", committed.saved)?) }
        }
        Message::Finished(finished) => ToCoordinator::Finished { generation: about()?, step: finished.step },
        Message::Store(store) => {
            ToCoordinator::Store { generation: about()?, id: store.id, request: store_request(required("operation", store.operation)?) }
        }
    })
}

fn held_group(group: wire::HeldGroup) -> Result<HeldGroup, WireError> {
    Ok(HeldGroup {
        generation: required_generation(group.id)?,
        rank: group.rank,
        world: group.world,
        seat: group.seat,
        seats: group.seats,
        list_digest: group.list_digest,
        finished: group.finished,
    })
}

fn store_request(operation: wire::store_request::Operation) -> StoreRequest {
    use wire::store_request::Operation;
    match operation {
        Operation::Set(set) => StoreRequest::Set { key: set.key, value: set.value },
        Operation::Get(get) => StoreRequest::Get { key: get.key },
        Operation::Wait(wait) => StoreRequest::Wait { keys: wait.keys },
        Operation::Check(check) => StoreRequest::Check { keys: check.keys },
        Operation::Add(add) => StoreRequest::Add { key: add.key, amount: add.amount },
        Operation::CompareSet(swap) => StoreRequest::CompareSet { key: swap.key, expected: swap.expected, desired: swap.desired },
        Operation::Append(append) => StoreRequest::Append { key: append.key, value: append.value },
        Operation::Delete(delete) => StoreRequest::Delete { key: delete.key },
        Operation::CountKeys(_) => StoreRequest::CountKeys,
    }
}

/// The coordinator's message.
pub(crate) fn to_member(message: wire::ToMember) -> Result<ToMember, WireError> {
    use wire::to_member::Message;
    let generation = required_generation(message.group)?;
    Ok(match required("message", message.message)? {
        Message::Ticket(given) => ToMember::Ticket { generation, ticket: ticket(given) },
        Message::Attached(attached) => ToMember::Attached { generation, ticket: required("ticket", attached.ticket).map(ticket)? },
        Message::Refused(refused) => ToMember::Refused { generation, reason: refusal(required("reason", refused.reason)?)? },
        Message::Form(form) => ToMember::Form(plan(generation, form)?),
        Message::Abort(abort) => ToMember::Abort { generation, reason: abort.reason },
        Message::Wish(wish) => ToMember::Wish { generation, flags: Flags::from_bits(wish.flags) },
        Message::WishCheckpoint(wish) => ToMember::WishCheckpoint { generation, from: wish.from },
        Message::Alive(_) => ToMember::Alive { generation },
        Message::Store(store) => ToMember::Store { generation, id: store.id, response: store_response(required("answer", store.answer)?) },
        Message::Evicted(evicted) => ToMember::Evicted { generation, reason: evicted.reason },
        Message::End(end) => ToMember::End { generation, reason: end_reason(end.reason())?, is_kept: end.is_kept },
    })
}

fn store_response(answer: wire::store_response::Answer) -> StoreResponse {
    use wire::store_response::Answer;
    match answer {
        Answer::Done(_) => StoreResponse::Done,
        Answer::Value(value) => StoreResponse::Value(value),
        Answer::Number(number) => StoreResponse::Number(number),
        Answer::Flag(flag) => StoreResponse::Flag(flag),
        Answer::Cancelled(reason) => StoreResponse::Cancelled { reason },
        Answer::Refused(reason) => StoreResponse::Refused { reason },
    }
}

fn refusal(reason: wire::refused::Reason) -> Result<Refusal, WireError> {
    use wire::refused::Reason;
    Ok(match reason {
        Reason::ProtocolVersion(it) => Refusal::ProtocolVersion { member: it.member, version: it.version, coordinator: it.coordinator },
        Reason::Configuration(it) => Refusal::Configuration { member: it.member, digest: it.digest, expected: it.expected },
        Reason::Machine(it) => Refusal::Machine { member: it.member, machine: it.machine, expected: it.expected },
        Reason::Superseded(it) => Refusal::Superseded { member: it.member, own: turn("own", it.own)?, newest: turn("newest", it.newest)? },
        Reason::StaleCoordinator(it) => {
            Refusal::StaleCoordinator { member: it.member, epoch: it.epoch, known: required_generation(it.known)? }
        }
    })
}

fn stage(stage: wire::heartbeat::Stage) -> ActivityStage {
    use wire::heartbeat::Stage;
    match stage {
        Stage::Preparing => ActivityStage::Preparing,
        Stage::Transferring => ActivityStage::Transferring,
        // Who says nothing, or what is not known here, is taken for one that trains, as all were.
        Stage::Training | Stage::Unspecified => ActivityStage::Training,
    }
}

fn moves(moves: wire::plan::Moves) -> Result<Moves, WireError> {
    let hop = |wire::plan::Hop { from, to, depth }| Hop { from, to, depth };
    let halves: Result<_, Vec<_>> = moves.halves.into_iter().map(hop).collect::<Vec<_>>().try_into();
    Ok(Moves { halves: halves.map_err(|_| WireError::Field { field: "halves" })? })
}

fn plan(generation: Generation, plan: wire::Plan) -> Result<Plan, WireError> {
    use wire::plan::Role as WireRole;
    let role = match required("role", plan.role)? {
        WireRole::Level(_) => Role::Level,
        WireRole::SendHalves(it) => Role::Send(moves(it)?),
        WireRole::ReceiveHalves(it) => Role::Receive(moves(it)?),
        // Of a version that this one does not train with.
        WireRole::Send(_) | WireRole::Receive(_) => return Err(WireError::Field { field: "role" }),
        WireRole::Restore(_) => Role::Restore,
        WireRole::Follow(_) => Role::Follow,
    };
    let lost = plan.lost.into_iter().map(|loss| Ok(Loss { member: name(loss.member)?, reason: loss.reason }));
    Ok(Plan {
        generation,
        rank: plan.rank,
        world: plan.world,
        division: Division::new(plan.seats, plan.empty_seats.into_iter().map(|run| run.first..run.end).collect())?,
        seat: plan.seat,
        list_digest: plan.list_digest,
        base: held(plan.base)?,
        role,
        lost: lost.collect::<Result<_, WireError>>()?,
        further_losses: plan.further_losses,
    })
}

/// Bounds on the number of members.
pub(crate) fn world(world: wire::World) -> Result<World, WireError> {
    Ok(World::new(world.min, world.desired, world.max)?)
}

/// What a coordinator's Watch sends, as the protocol's own type.
///
/// # Errors
/// A field that must be there is missing, or of a kind that this version does not know.
pub fn status(status: wire::Status) -> Result<Status, WireError> {
    let phase = match status.phase() {
        wire::Phase::Unspecified => return Err(WireError::Field { field: "phase" }),
        wire::Phase::Waiting => Phase::Waiting,
        wire::Phase::Running => Phase::Running,
        wire::Phase::Recovering => Phase::Recovering,
        wire::Phase::Ended => Phase::Ended(end_reason(status.end_reason())?),
    };
    let member =
        |member: wire::MemberStatus| Ok(MemberStatus { name: name(member.name)?, node: member.node, rank: member.rank, step: member.step });
    Ok(Status {
        phase,
        generation: required_generation(status.group)?,
        world: world(required("world", status.world)?)?,
        members: status.members.into_iter().map(member).collect::<Result<_, WireError>>()?,
        step: status.step,
        last_checkpoint: status.last_checkpoint.map(saved),
        training: status.training.map(training),
        wanted_checkpoint: status.wanted_checkpoint,
        history: status.history.into_iter().map(history_entry).collect::<Result<_, WireError>>()?,
        sources: status.sources.into_iter().take(MOST_SOURCES).map(source).collect(),
    })
}

/// A loss that is not finite is none: comparing two of them would say that something has changed.
fn source(source: wire::SourceProgress) -> SourceProgress {
    SourceProgress {
        name: source.name,
        samples: source.samples,
        generation_loss: source.generation_loss.filter(|loss| loss.is_finite()),
        contrastive_loss: source.contrastive_loss.filter(|loss| loss.is_finite()),
        data_wait: Duration::from_micros(source.data_wait_microseconds),
    }
}

fn loss_cause(cause: wire::LossCause) -> Result<LossCause, WireError> {
    match cause {
        wire::LossCause::Unspecified => Err(WireError::Field { field: "cause" }),
        wire::LossCause::StreamClosed => Ok(LossCause::StreamClosed),
        wire::LossCause::Silent => Ok(LossCause::Silent),
        wire::LossCause::NoReport => Ok(LossCause::NoReport),
        wire::LossCause::Replaced => Ok(LossCause::Replaced),
        wire::LossCause::Stalled => Ok(LossCause::Stalled),
        wire::LossCause::OtherMachine => Ok(LossCause::OtherMachine),
        wire::LossCause::Slow => Ok(LossCause::Slow),
    }
}

fn history_entry(entry: wire::HistoryEntry) -> Result<HistoryEntry, WireError> {
    use wire::history_entry::Event;
    let event = match required("event", entry.event)? {
        Event::Joined(it) => HistoryEvent::Joined { member: name(it.member)? },
        Event::Lost(it) => HistoryEvent::Lost { cause: loss_cause(it.cause())?, member: name(it.member)?, reason: it.reason },
        Event::Left(it) => HistoryEvent::Left { reason: end_reason(it.reason())?, member: name(it.member)? },
        Event::Formed(it) => HistoryEvent::Formed { generation: required_generation(it.group)?, world: it.world, base: it.base },
        Event::Broken(it) => HistoryEvent::Broken { generation: required_generation(it.group)?, reason: it.reason },
        Event::Recovered(it) => {
            HistoryEvent::Recovered { generation: required_generation(it.group)?, took: Duration::from_millis(it.took_milliseconds) }
        }
        Event::WentBack(it) => HistoryEvent::WentBack { from: it.from, to: it.to },
        Event::Slow(it) => HistoryEvent::Slow {
            member: name(it.member)?,
            step_work: Duration::from_micros(it.step_work_microseconds),
            median: Duration::from_micros(it.median_microseconds),
        },
        Event::Adopted(it) => HistoryEvent::Adopted { generation: required_generation(it.group)?, world: it.world },
    };
    Ok(HistoryEntry { sequence: entry.sequence, at: Duration::from_millis(entry.at_milliseconds), event })
}

fn saved(saved: wire::SavedCheckpoint) -> Saved {
    Saved { step: saved.step, time: Duration::from_millis(saved.unix_milliseconds), folder: saved.folder }
}

fn training(training: wire::TrainingProgress) -> TrainingProgress {
    // What is not finite has no place in JSON.
    let finite = |value: f64| if value.is_finite() { value } else { 0.0 };
    TrainingProgress { loss: training.loss.filter(|loss| loss.is_finite()), samples_per_second: finite(training.samples_per_second) }
}
