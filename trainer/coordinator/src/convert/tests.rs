use std::time::Duration;

use lcl_protocol::{
    Activity, ActivityStage, Attach, Division, EndReason, Flags, Generation, HeldGroup, HistoryEntry, HistoryEvent, Hop, Identity,
    Incarnation, Loss, LossCause, MemberName, MemberStatus, Moves, Phase, Plan, Refusal, ReportCause, Role, Saved, SourceProgress,
    StateLabel, Status, StoreRequest, StoreResponse, Ticket, ToCoordinator, ToMember, TrainingProgress, Turn, World,
};

use super::*;

const GENERATION: Generation = Generation { epoch: 3, n: 9 };
const TICKET: Ticket = Ticket { epoch: 3, n: 4 };
const HELD: Option<StateLabel> = Some(StateLabel { step: 7, generation: GENERATION });

fn name() -> MemberName {
    MemberName { worker: "w-1".to_owned(), index: 2 }
}

const fn turn(start: u64) -> Turn {
    Turn { ticket: TICKET, start }
}

fn saved() -> Saved {
    Saved { step: 6, time: Duration::from_millis(1_800_000_000_123), folder: "step-00000006-g000001-000002".to_owned() }
}

fn sources() -> Vec<SourceProgress> {
    let (generation_loss, contrastive_loss, data_wait) = (Some(2.25), Some(0.1), Duration::from_micros(70));
    let pairs = SourceProgress { name: "pairs".to_owned(), samples: 3, generation_loss, contrastive_loss, data_wait };
    let none = SourceProgress { name: text(), generation_loss: None, contrastive_loss: None, ..pairs.clone() };
    vec![pairs, none]
}

fn text() -> String {
    "text".to_owned()
}

#[test]
fn every_message_of_a_member_is_read_back() {
    let incarnation = Incarnation { run: u64::MAX, start: 5 };
    let identity = Identity { name: name(), incarnation, node: "n".to_owned(), address: "10.0.0.1:7".to_owned() };
    let attach = Attach {
        protocol_version: 1,
        identity,
        ticket: Some(TICKET),
        config_digest: text(),
        machine: Some(text()),
        known: Some(GENERATION),
        held: HELD,
        draining: true,
        group: Some(HeldGroup { generation: GENERATION, rank: 1, world: 2, seat: 7, seats: 9, list_digest: u64::MAX, finished: true }),
        saved: Some(saved()),
    };
    let mut messages = vec![
        ToCoordinator::Attach(Box::new(Attach {
            ticket: None,
            machine: None,
            known: None,
            held: None,
            group: None,
            saved: None,
            ..attach.clone()
        })),
        ToCoordinator::Attach(Box::new(attach)),
        ToCoordinator::Heartbeat {
            generation: None,
            held: HELD,
            activity: Activity {
                stage: ActivityStage::Transferring,
                operations: 5,
                step_work: Some(Duration::from_micros(7)),
                sources: sources(),
                training: Some(TrainingProgress { loss: Some(1.5), samples_per_second: 9.0 }),
            },
        },
        ToCoordinator::Heartbeat { generation: Some(GENERATION), held: None, activity: Activity::default() },
        ToCoordinator::Drain { generation: Some(GENERATION) },
        ToCoordinator::CheckpointCommitted { generation: GENERATION, saved: saved() },
        ToCoordinator::Finished { generation: GENERATION, step: 4 },
    ];
    for cause in [ReportCause::Agreed, ReportCause::Aborted, ReportCause::Failed { detail: text(), differing: vec![3, 1] }] {
        messages.push(ToCoordinator::Report { generation: GENERATION, held: HELD, cause });
    }
    for request in [
        StoreRequest::Set { key: text(), value: vec![1] },
        StoreRequest::Get { key: text() },
        StoreRequest::Wait { keys: vec![text()] },
        StoreRequest::Check { keys: vec![text()] },
        StoreRequest::Add { key: text(), amount: -4 },
        StoreRequest::CompareSet { key: text(), expected: vec![1], desired: vec![2] },
        StoreRequest::Append { key: text(), value: vec![1] },
        StoreRequest::Delete { key: text() },
        StoreRequest::CountKeys,
    ] {
        messages.push(ToCoordinator::Store { generation: GENERATION, id: 6, request });
    }
    for message in messages {
        assert_eq!(read_to_coordinator(write_to_coordinator(message.clone())), Ok(message));
    }
}

#[test]
fn every_message_of_the_coordinator_is_read_back() {
    let generation = GENERATION;
    let mut messages = vec![
        ToMember::Ticket { generation, ticket: TICKET },
        ToMember::Attached { generation, ticket: TICKET },
        ToMember::Abort { generation, reason: text() },
        ToMember::Wish { generation, flags: Flags::LEAVE | Flags::CHECKPOINT },
        ToMember::WishCheckpoint { generation, from: 5 },
        ToMember::Alive { generation },
        ToMember::Evicted { generation, reason: text() },
    ];
    for reason in [EndReason::Complete, EndReason::Drained, EndReason::Stopped] {
        messages.push(ToMember::End { generation, reason, is_kept: reason == EndReason::Drained });
    }
    for reason in [
        Refusal::ProtocolVersion { member: text(), version: 2, coordinator: 1 },
        Refusal::Configuration { member: text(), digest: text(), expected: "other".to_owned() },
        Refusal::Machine { member: text(), machine: text(), expected: "other".to_owned() },
        Refusal::Superseded { member: text(), own: turn(1), newest: turn(2) },
        Refusal::StaleCoordinator { member: text(), epoch: 1, known: generation },
    ] {
        messages.push(ToMember::Refused { generation, reason });
    }
    let hop = |from, to: &[u32], depth| Hop { from, to: to.to_vec(), depth };
    let send = Role::Send(Moves { halves: [hop(None, &[1, 4], 0), hop(None, &[], 0)] });
    let receive = Role::Receive(Moves { halves: [hop(Some(0), &[7], 1), hop(Some(3), &[], 4)] });
    for role in [Role::Level, send, receive, Role::Restore, Role::Follow] {
        let lost = vec![Loss { member: name(), reason: text() }];
        messages.push(ToMember::Form(Plan {
            generation,
            rank: 1,
            world: 5,
            division: Division::new(9, vec![1..2, 4..7]).unwrap(),
            seat: 8,
            list_digest: u64::MAX,
            base: HELD,
            role,
            lost,
            further_losses: 3,
        }));
    }
    for response in [
        StoreResponse::Done,
        StoreResponse::Value(vec![]),
        StoreResponse::Number(-1),
        StoreResponse::Flag(false),
        StoreResponse::Cancelled { reason: text() },
        StoreResponse::Refused { reason: text() },
    ] {
        messages.push(ToMember::Store { generation, id: 0, response });
    }
    for message in messages {
        assert_eq!(read_to_member(write_to_member(message.clone())), Ok(message));
    }
}

#[test]
fn a_status_is_read_back() {
    let events = [
        HistoryEvent::Joined { member: name() },
        HistoryEvent::Lost { member: name(), cause: LossCause::StreamClosed, reason: text() },
        HistoryEvent::Lost { member: name(), cause: LossCause::Silent, reason: text() },
        HistoryEvent::Lost { member: name(), cause: LossCause::NoReport, reason: text() },
        HistoryEvent::Lost { member: name(), cause: LossCause::Replaced, reason: text() },
        HistoryEvent::Lost { member: name(), cause: LossCause::Stalled, reason: text() },
        HistoryEvent::Lost { member: name(), cause: LossCause::OtherMachine, reason: text() },
        HistoryEvent::Lost { member: name(), cause: LossCause::Slow, reason: text() },
        HistoryEvent::Left { member: name(), reason: EndReason::Drained },
        HistoryEvent::Formed { generation: GENERATION, world: 2, base: None },
        HistoryEvent::Broken { generation: GENERATION, reason: text() },
        HistoryEvent::Recovered { generation: GENERATION, took: Duration::from_millis(83) },
        HistoryEvent::Adopted { generation: GENERATION, world: 2 },
        HistoryEvent::Slow { member: name(), step_work: Duration::from_micros(9), median: Duration::from_micros(5) },
        HistoryEvent::WentBack { from: 9, to: 4 },
    ];
    let history = (1..).zip(events).map(|(sequence, event)| HistoryEntry { sequence, at: Duration::from_secs(sequence), event });
    let status = Status {
        phase: Phase::Ended(EndReason::Complete),
        generation: GENERATION,
        world: World::new(1, 2, 3).unwrap(),
        members: vec![MemberStatus { name: name(), node: text(), rank: Some(0), step: None }],
        step: 8,
        last_checkpoint: Some(saved()),
        training: Some(TrainingProgress { loss: None, samples_per_second: 2.5 }),
        wanted_checkpoint: Some(3),
        history: history.collect(),
        sources: sources(),
    };
    for phase in [status.phase, Phase::Waiting, Phase::Running, Phase::Recovering] {
        let status = Status { phase, ..status.clone() };
        assert_eq!(status_from_proto(write_status(status.clone())), Ok(status));
    }
}

#[test]
fn of_sources_as_many_are_read_as_a_manifest_may_have_and_no_loss_that_is_none() {
    let one = wire::SourceProgress { generation_loss: Some(f64::NAN), contrastive_loss: Some(f64::INFINITY), ..Default::default() };
    let heartbeat = wire::Heartbeat { sources: vec![one; 17], ..Default::default() };
    let message = Some(wire::to_coordinator::Message::Heartbeat(heartbeat));
    let Ok(ToCoordinator::Heartbeat { activity, .. }) = read_to_coordinator(wire::ToCoordinator { group: None, message }) else {
        panic!("it is a heartbeat")
    };
    assert_eq!(activity.sources.len(), 16);
    assert!(activity.sources.iter().all(|source| (source.generation_loss, source.contrastive_loss) == (None, None)));
}

#[test]
fn what_is_missing_or_unknown_is_an_error_and_no_panic() {
    assert_eq!(read_to_coordinator(wire::ToCoordinator::default()), Err(WireError::Field { field: "message" }));
    assert_eq!(read_to_member(wire::ToMember::default()), Err(WireError::Field { field: "group" }));
    let finished = wire::to_coordinator::Message::Finished(wire::Finished { step: 1 });
    let nameless = wire::ToCoordinator { group: None, message: Some(finished) };
    assert_eq!(read_to_coordinator(nameless), Err(WireError::Field { field: "group" }));
    assert!(read_world(wire::World { min: 3, desired: 2, max: 1 }).is_err());
    let role_of = |role| {
        let plan = wire::Plan { seats: 1, role: Some(role), ..wire::Plan::default() };
        let group = Some(wire::GroupId { epoch: 1, number: 1 });
        read_to_member(wire::ToMember { group, message: Some(wire::to_member::Message::Form(plan)) })
    };
    let whole = wire::plan::Role::Send(wire::plan::Ranks { to: vec![1] });
    assert_eq!(role_of(whole), Err(WireError::Field { field: "role" }), "as it was until version 6");
    let one = wire::plan::Moves { halves: vec![wire::plan::Hop::default()] };
    assert_eq!(role_of(wire::plan::Role::SendHalves(one)), Err(WireError::Field { field: "halves" }));
}

/// Messages are recorded under the version that they are of.
#[test]
fn the_messages_of_todays_protocol_version_are_recorded() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../proto/tests/recorded");
    let newest = |name: String| name.strip_prefix('v')?.strip_suffix(".json")?.parse::<u32>().ok();
    let versions = std::fs::read_dir(folder).unwrap().filter_map(|file| newest(file.unwrap().file_name().into_string().unwrap()));
    assert_eq!(versions.max(), Some(lcl_protocol::PROTOCOL_VERSION), "record them: proto/examples/record_messages.rs");
}
