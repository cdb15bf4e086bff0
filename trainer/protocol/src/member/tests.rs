use super::*;
use crate::{Activity, HeldGroup, Identity, Incarnation, MemberName, Moves, Role, Turn, slots::tests::with_empty};

const TICKET: Ticket = Ticket { epoch: 1, n: 4 };

fn generation(n: u64) -> Generation {
    Generation { epoch: 1, n }
}

fn label(step: u64, n: u64) -> StateLabel {
    StateLabel { step, generation: generation(n) }
}

fn plan(n: u64, base: Option<StateLabel>, role: Role) -> Plan {
    let division = with_empty(9, &[2, 3, 4, 5, 6, 7, 8]).unwrap();
    let (rank, world, seat) = (0, 2, 1);
    Plan { generation: generation(n), rank, world, division, seat, list_digest: 0, base, role, lost: Vec::new(), further_losses: 0 }
}

struct Bench {
    member: Member,
    now: Duration,
}

impl Bench {
    /// Attached.
    fn new() -> Self {
        let name = MemberName { worker: "w-0".to_owned(), index: 0 };
        let identity =
            Identity { name, incarnation: Incarnation { run: 1, start: 1 }, node: "n".to_owned(), address: "10.0.0.1".to_owned() };
        let settings = MemberSettings {
            identity,
            config_digest: "d".to_owned(),
            machine: None,
            heartbeat_interval: Duration::from_secs(1),
            coordinator_timeout: Duration::from_secs(5),
        };
        let mut bench = Self { member: Member::new(settings, Duration::ZERO), now: Duration::ZERO };
        assert_eq!(bench.event(MemberEvent::Tick), [MemberCommand::Connect]);
        assert!(matches!(&bench.event(MemberEvent::Connected)[..], [MemberCommand::Send(ToCoordinator::Attach(_))]));
        bench
    }

    /// In generation 1, training from a restored step 3.
    fn training() -> Self {
        let mut bench = Self::new();
        let plan = plan(1, None, Role::Restore);
        assert_eq!(bench.hear(ToMember::Form(plan.clone())), [MemberCommand::FormGroup(plan)]);
        let recover = bench.event(MemberEvent::GroupFormed { generation: generation(1) });
        assert!(matches!(&recover[..], [MemberCommand::Recover { base: None, .. }]));
        let train = bench.event(MemberEvent::Recovered { generation: generation(1), step: 3 });
        assert_eq!(train[0], MemberCommand::Train { generation: generation(1), step: 3 });
        bench
    }

    fn try_event(&mut self, event: MemberEvent) -> Result<Vec<MemberCommand>, MemberError> {
        self.member.handle(self.now, event)
    }

    fn event(&mut self, event: MemberEvent) -> Vec<MemberCommand> {
        self.try_event(event).unwrap()
    }

    fn hear(&mut self, message: ToMember) -> Vec<MemberCommand> {
        self.event(MemberEvent::Message(message))
    }

    fn commit(&mut self, step: u64, agreed: Flags) -> Vec<MemberCommand> {
        let commands = self.event(MemberEvent::Committed { generation: generation(1), step, agreed });
        commands.into_iter().filter(|command| !matches!(command, MemberCommand::Send(ToCoordinator::Heartbeat { .. }))).collect()
    }

    fn closed(&mut self, failure: Option<&str>) -> Vec<MemberCommand> {
        self.event(MemberEvent::GroupClosed { generation: generation(1), failure: failure.map(str::to_owned) })
    }
}

fn abort() -> ToMember {
    ToMember::Abort { generation: generation(1), reason: "w-1/0 was lost".to_owned() }
}

fn report(held: StateLabel, cause: ReportCause) -> MemberCommand {
    MemberCommand::Send(ToCoordinator::Report { generation: generation(1), held: Some(held), cause })
}

#[test]
fn what_is_agreed_at_a_step_takes_effect_after_the_next() {
    let mut bench = Bench::training();
    bench.hear(ToMember::Wish { generation: generation(1), flags: Flags::LEAVE | Flags::CHECKPOINT });
    assert_eq!(bench.member.flags(), Flags::LEAVE | Flags::CHECKPOINT);
    // Others have not heard of it yet: nothing was agreed at step 4.
    assert_eq!(bench.commit(4, Flags::NONE), []);
    assert_eq!(bench.commit(5, Flags::LEAVE | Flags::CHECKPOINT), []);
    let expected =
        [MemberCommand::WriteCheckpoint { generation: generation(1), step: 6 }, MemberCommand::LeaveGroup { generation: generation(1) }];
    assert_eq!(bench.commit(6, Flags::LEAVE | Flags::CHECKPOINT), expected);
    assert_eq!(bench.closed(Some("barrier failed")), [report(label(6, 1), ReportCause::Agreed)]);
    assert_eq!(bench.member.flags(), Flags::NONE);
}

#[test]
fn a_checkpoint_is_written_without_leaving_and_a_wish_for_it_that_comes_late_is_not_raised_again() {
    let mut bench = Bench::training();
    let wish = |from| ToMember::WishCheckpoint { generation: generation(1), from };
    // Another member heard of it first, and all agreed on it in step 4.
    assert_eq!(bench.commit(4, Flags::CHECKPOINT), []);
    bench.hear(wish(3));
    assert_eq!(bench.member.flags(), Flags::NONE);
    assert_eq!(bench.commit(5, Flags::NONE), [MemberCommand::WriteCheckpoint { generation: generation(1), step: 5 }]);
    bench.hear(wish(6));
    assert_eq!(bench.member.flags(), Flags::CHECKPOINT, "a later request");
    assert_eq!(bench.commit(6, Flags::CHECKPOINT), []);
    assert_eq!(bench.member.flags(), Flags::NONE);
    assert_eq!(bench.commit(7, Flags::NONE), [MemberCommand::WriteCheckpoint { generation: generation(1), step: 7 }]);
    assert_eq!(bench.commit(8, Flags::NONE), []);
}

#[test]
fn a_wish_of_another_generation_is_not_raised() {
    let mut bench = Bench::training();
    bench.hear(ToMember::Wish { generation: generation(2), flags: Flags::LEAVE });
    assert_eq!(bench.member.flags(), Flags::NONE);
}

#[test]
fn a_member_reports_only_after_its_group_is_dropped_and_what_it_holds_then() {
    let mut bench = Bench::training();
    assert!(matches!(&bench.hear(abort())[..], [MemberCommand::AbortGroup { .. }]));
    assert_eq!(bench.hear(abort()), []);
    // Its update was on the way: all collectives of step 4 had completed.
    assert_eq!(bench.commit(4, Flags::LEAVE), []);
    assert_eq!(bench.closed(None), [report(label(4, 1), ReportCause::Aborted)]);
    assert_eq!(bench.closed(None), []);
}

#[test]
fn who_holds_another_state_than_the_others_holds_nothing_and_all_say_whose_it_is() {
    for is_own in [false, true] {
        let mut bench = Bench::training();
        let found = |generation| MemberEvent::StateDiffers { generation, ranks: vec![1], is_own };
        bench.event(found(generation(2)));
        assert_eq!(bench.member.held(), Some(label(3, 1)), "of another generation");
        bench.event(found(generation(1)));
        let cause = ReportCause::Failed { detail: "another checksum".to_owned(), differing: vec![1] };
        let held = (!is_own).then(|| label(3, 1));
        let report = MemberCommand::Send(ToCoordinator::Report { generation: generation(1), held, cause });
        assert_eq!(bench.closed(Some("another checksum")), [report]);
        assert_eq!(bench.member.held(), held);
    }
}

#[test]
fn a_failure_that_it_sees_itself_is_reported_with_the_error() {
    let mut bench = Bench::training();
    let cause = ReportCause::Failed { detail: "connection reset by peer".to_owned(), differing: Vec::new() };
    assert_eq!(bench.closed(Some("connection reset by peer")), [report(label(3, 1), cause)]);
}

#[test]
fn a_state_received_just_before_the_abort_is_what_it_holds() {
    let mut bench = Bench::new();
    bench.hear(ToMember::Form(plan(1, Some(label(9, 0)), Role::Receive(Moves::alike(Some(1), &[])))));
    bench.event(MemberEvent::GroupFormed { generation: generation(1) });
    bench.hear(abort());
    assert_eq!(bench.event(MemberEvent::Recovered { generation: generation(1), step: 9 }), []);
    assert_eq!(bench.closed(None), [report(label(9, 0), ReportCause::Aborted)]);
}

#[test]
fn a_member_that_finds_a_later_generations_checkpoint_drops_its_group_and_is_known_to_a_replaced_coordinator() {
    let mut bench = Bench::new();
    bench.hear(ToMember::Form(plan(1, None, Role::Restore)));
    bench.event(MemberEvent::GroupFormed { generation: generation(1) });
    let by = Generation { epoch: 2, n: 3 };
    let commands = bench.event(MemberEvent::Overtaken { generation: generation(1), by });
    assert!(matches!(&commands[..], [MemberCommand::Disconnect { .. }, MemberCommand::AbortGroup { .. }]), "{commands:?}");
    assert_eq!(bench.closed(None), [MemberCommand::Connect]);
    let attach = bench.event(MemberEvent::Connected);
    let [MemberCommand::Send(ToCoordinator::Attach(attach))] = &attach[..] else { panic!("{attach:?}") };
    assert_eq!((attach.known, attach.held, attach.group), (Some(by), None, None));
    // Whoever it reaches now, it takes no part in an older one.
    assert_eq!(bench.hear(ToMember::Form(plan(2, None, Role::Restore))), []);
}

#[test]
fn an_older_or_doubled_plan_is_ignored() {
    let mut bench = Bench::training();
    bench.closed(Some("x"));
    assert_eq!(bench.hear(ToMember::Form(plan(1, Some(label(3, 1)), Role::Level))), []);
    assert_eq!(bench.hear(ToMember::Form(plan(2, Some(label(3, 1)), Role::Level))).len(), 1);
    let train = bench.event(MemberEvent::GroupFormed { generation: generation(2) });
    assert_eq!(train[0], MemberCommand::Train { generation: generation(2), step: 3 });
}

#[test]
fn a_broken_stream_does_not_end_a_group_that_trains() {
    let mut bench = Bench::training();
    assert_eq!(bench.event(MemberEvent::Disconnected { reason: "reset".to_owned() }), [MemberCommand::Connect]);
    bench.commit(4, Flags::NONE);
    let get = || StoreRequest::Get { key: "k".to_owned() };
    let cancelled = bench.event(MemberEvent::Store { generation: generation(1), id: 1, request: get() });
    assert!(matches!(&cancelled[..], [MemberCommand::StoreResponse { response: StoreResponse::Cancelled { .. }, .. }]));
    bench.event(MemberEvent::CheckpointCommitted { generation: generation(1), saved: 4.into() });
    let attach = bench.event(MemberEvent::Connected);
    let [MemberCommand::Send(ToCoordinator::Attach(attach))] = &attach[..] else { panic!("{attach:?}") };
    assert_eq!((attach.known, attach.held, attach.saved.clone()), (Some(generation(1)), Some(label(4, 1)), Some(4.into())));
    let group = HeldGroup { generation: generation(1), rank: 0, world: 2, seat: 1, seats: 9, list_digest: 0, finished: false };
    assert_eq!(attach.group, Some(group));
    // The new coordinator has another epoch; what the member says is about its group.
    bench.hear(ToMember::Attached { generation: Generation { epoch: 2, n: 0 }, ticket: TICKET });
    bench.now = Duration::from_secs(1);
    let activity = Activity { operations: 7, step_work: Some(Duration::from_millis(3)), ..Activity::default() };
    bench.member.set_activity(activity.clone());
    let beat = ToCoordinator::Heartbeat { generation: Some(generation(1)), held: Some(label(4, 1)), activity };
    assert_eq!(bench.event(MemberEvent::Tick), [MemberCommand::Send(beat)]);
    assert!(matches!(&bench.hear(abort())[..], [MemberCommand::AbortGroup { .. }]));
    assert_eq!(bench.closed(None), [report(label(4, 1), ReportCause::Aborted)]);
}

#[test]
fn a_group_that_fails_without_a_coordinator_is_not_named_to_the_next() {
    let mut bench = Bench::training();
    bench.event(MemberEvent::Disconnected { reason: "reset".to_owned() });
    assert_eq!(bench.closed(Some("connection reset by peer")), []);
    let attach = bench.event(MemberEvent::Connected);
    let [MemberCommand::Send(ToCoordinator::Attach(attach))] = &attach[..] else { panic!("{attach:?}") };
    assert_eq!((attach.group, attach.held), (None, Some(label(3, 1))));
}

#[test]
fn a_group_that_is_being_left_when_the_stream_breaks_is_reported_before_anything_new() {
    let mut bench = Bench::training();
    bench.hear(ToMember::Wish { generation: generation(1), flags: Flags::LEAVE });
    bench.commit(4, Flags::LEAVE);
    bench.event(MemberEvent::Disconnected { reason: "reset".to_owned() });
    assert_eq!(bench.commit(5, Flags::LEAVE), [MemberCommand::LeaveGroup { generation: generation(1) }]);
    let attach = bench.event(MemberEvent::Connected);
    let [MemberCommand::Send(ToCoordinator::Attach(attach))] = &attach[..] else { panic!("{attach:?}") };
    assert_eq!(attach.group.map(|group| group.generation), Some(generation(1)));
    assert_eq!(bench.closed(None), [report(label(5, 1), ReportCause::Agreed)]);
}

#[test]
fn a_broken_stream_ends_a_group_that_is_still_being_built() {
    let mut bench = Bench::new();
    bench.hear(ToMember::Form(plan(1, Some(label(9, 0)), Role::Receive(Moves::alike(Some(1), &[])))));
    let commands = bench.event(MemberEvent::Disconnected { reason: "reset".to_owned() });
    assert!(matches!(&commands[..], [MemberCommand::AbortGroup { .. }]));
    assert_eq!(bench.member.deadline(), None);
    assert_eq!(bench.closed(None), [MemberCommand::Connect]);
}

#[test]
fn an_evicted_member_drops_its_group_before_it_attaches_again() {
    let mut bench = Bench::training();
    let commands = bench.hear(ToMember::Evicted { generation: generation(1), reason: "silent".to_owned() });
    assert!(matches!(&commands[..], [MemberCommand::Disconnect { .. }, MemberCommand::AbortGroup { .. }]), "{commands:?}");
    assert_eq!(bench.closed(None), [MemberCommand::Connect]);
}

#[test]
fn heartbeats_go_out_at_the_interval_and_a_silent_coordinator_is_left() {
    let mut bench = Bench::training();
    assert_eq!(bench.member.deadline(), Some(Duration::from_secs(1)));
    bench.now = Duration::from_secs(1);
    assert!(matches!(&bench.event(MemberEvent::Tick)[..], [MemberCommand::Send(ToCoordinator::Heartbeat { .. })]));
    assert_eq!(bench.event(MemberEvent::Tick), []);
    bench.now = Duration::from_secs(5);
    let commands = bench.event(MemberEvent::Tick);
    assert!(matches!(&commands[..], [MemberCommand::Disconnect { .. }, MemberCommand::Connect]), "{commands:?}");
}

#[test]
fn a_member_that_is_told_to_end_exits_after_its_group_is_dropped() {
    let mut bench = Bench::training();
    bench.event(MemberEvent::Finished { generation: generation(1) });
    let commands = bench.hear(ToMember::End { generation: generation(1), reason: EndReason::Complete, is_kept: true });
    assert!(matches!(&commands[..], [MemberCommand::Disconnect { .. }, MemberCommand::AbortGroup { .. }]), "{commands:?}");
    assert_eq!(bench.closed(None), [MemberCommand::Exit { reason: EndReason::Complete, is_kept: true }]);
    assert_eq!(bench.event(MemberEvent::Tick), []);
}

#[test]
fn a_refusal_that_nothing_can_change_ends_it_and_a_stale_coordinator_does_not() {
    let mut bench = Bench::new();
    let turn = |start| Turn { ticket: TICKET, start };
    let reason = Refusal::Superseded { member: "w-0/0".to_owned(), own: turn(1), newest: turn(2) };
    let commands = bench.hear(ToMember::Refused { generation: generation(0), reason: reason.clone() });
    assert_eq!(commands.last(), Some(&MemberCommand::GiveUp(reason.clone())));

    // Not before its group is dropped: an update may be on the way, all of whose collectives had completed.
    let mut bench = Bench::training();
    let commands = bench.hear(ToMember::Refused { generation: generation(1), reason: reason.clone() });
    assert!(matches!(&commands[..], [MemberCommand::Disconnect { .. }, MemberCommand::AbortGroup { .. }]), "{commands:?}");
    assert_eq!(bench.commit(4, Flags::NONE), []);
    assert_eq!(bench.closed(None), [MemberCommand::GiveUp(reason)]);

    let mut bench = Bench::new();
    let reason = Refusal::StaleCoordinator { member: "w-0/0".to_owned(), epoch: 1, known: Generation { epoch: 2, n: 1 } };
    assert_eq!(bench.hear(ToMember::Refused { generation: generation(0), reason }).last(), Some(&MemberCommand::Connect));
}

/// The ticket with which the member attaches.
fn shown(commands: &[MemberCommand]) -> Option<Ticket> {
    match commands {
        [MemberCommand::Send(ToCoordinator::Attach(attach))] => attach.ticket,
        _ => panic!("{commands:?}"),
    }
}

#[test]
fn a_ticket_is_shown_at_once_and_to_every_coordinator_from_then_on() {
    let mut bench = Bench::new();
    bench.event(MemberEvent::Drain);
    let given = ToMember::Ticket { generation: generation(0), ticket: TICKET };
    let commands = bench.hear(given.clone());
    assert_eq!(shown(&commands), Some(TICKET));
    let [MemberCommand::Send(ToCoordinator::Attach(attach))] = &commands[..] else { panic!("{commands:?}") };
    assert!(attach.draining && attach.known == Some(generation(0)), "{attach:?}");
    // What comes doubled, or late, leaves it with the one it has.
    assert_eq!(bench.hear(given), []);
    assert_eq!(bench.hear(ToMember::Ticket { generation: generation(0), ticket: Ticket { epoch: 1, n: 9 } }), []);
    bench.event(MemberEvent::Disconnected { reason: "reset".to_owned() });
    assert_eq!(shown(&bench.event(MemberEvent::Connected)), Some(TICKET));
    // The one of its run, which a process before it was given.
    let own = Ticket { epoch: 1, n: 2 };
    bench.hear(ToMember::Attached { generation: generation(0), ticket: own });
    bench.event(MemberEvent::Disconnected { reason: "reset".to_owned() });
    assert_eq!(shown(&bench.event(MemberEvent::Connected)), Some(own));
}

#[test]
fn a_store_operation_without_its_group_is_cancelled_at_once() {
    let mut bench = Bench::training();
    let request = || StoreRequest::Get { key: "k".to_owned() };
    let sent = bench.event(MemberEvent::Store { generation: generation(1), id: 1, request: request() });
    assert!(matches!(&sent[..], [MemberCommand::Send(ToCoordinator::Store { id: 1, .. })]));
    bench.hear(abort());
    let cancelled = bench.event(MemberEvent::Store { generation: generation(1), id: 2, request: request() });
    assert!(matches!(&cancelled[..], [MemberCommand::StoreResponse { id: 2, response: StoreResponse::Cancelled { .. }, .. }]));
}

#[test]
fn members_that_leave_as_agreed_can_still_meet_in_the_store() {
    let mut bench = Bench::training();
    bench.commit(4, Flags::LEAVE | Flags::CHECKPOINT);
    let commands = bench.commit(5, Flags::LEAVE);
    assert!(matches!(&commands[..], [MemberCommand::WriteCheckpoint { step: 5, .. }, MemberCommand::LeaveGroup { .. }]), "{commands:?}");
    let request = || StoreRequest::Set { key: "k".to_owned(), value: Vec::new() };
    let sent = bench.event(MemberEvent::Store { generation: generation(1), id: 1, request: request() });
    assert!(matches!(&sent[..], [MemberCommand::Send(ToCoordinator::Store { id: 1, .. })]), "{sent:?}");
    // Not once the generation has ended for another reason.
    assert!(matches!(&bench.hear(abort())[..], [MemberCommand::AbortGroup { .. }]));
    let cancelled = bench.event(MemberEvent::Store { generation: generation(1), id: 2, request: request() });
    assert!(matches!(&cancelled[..], [MemberCommand::StoreResponse { id: 2, .. }]), "{cancelled:?}");
}

#[test]
fn mistakes_of_the_training_thread_are_errors_that_say_what_was_expected() {
    let mut bench = Bench::training();
    let error = bench.try_event(MemberEvent::Committed { generation: generation(1), step: 6, agreed: Flags::NONE }).unwrap_err();
    assert_eq!(error, MemberError::WrongStep { member: "w-0/0".to_owned(), generation: generation(1), step: 6, held: Some(3) });
    assert!(bench.try_event(MemberEvent::GroupFormed { generation: generation(1) }).is_err());
    assert!(bench.try_event(MemberEvent::Committed { generation: generation(2), step: 4, agreed: Flags::NONE }).is_err());
    assert_eq!(bench.member.held(), Some(label(3, 1)));
}
