mod leaving;
mod newest;
mod pace;
mod takeover;

use takeover::{EARLIER, trains_in};

use super::*;
use crate::{
    Activity, Attach, Division, HeldGroup, Hop, MOST_SOURCES, Moves, PROTOCOL_VERSION, Plan, Refusal, Role, SourceProgress, StoreRequest,
    StoreResponse, slots::tests::with_empty,
};

const WAIT: Duration = Duration::from_secs(3);
const STALL: Duration = Duration::from_secs(8);

fn at(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn label(step: u64, n: u64) -> StateLabel {
    StateLabel { step, generation: Generation { epoch: 7, n } }
}

fn generation(n: u64) -> Generation {
    Generation { epoch: 7, n }
}

/// Of every member, unless a test says otherwise: given by the coordinator before.
const TICKET: Ticket = Ticket { epoch: 6, n: 1 };
const INCARNATION: Incarnation = Incarnation { run: 1, start: 1 };

/// A coordinator and what it has sent on each stream.
struct Bench {
    coordinator: Coordinator,
    sent: BTreeMap<u64, Vec<ToMember>>,
    closed: Vec<u64>,
    now: Duration,
}

impl Bench {
    fn new(min: u32, desired: u32, max: u32) -> Self {
        Self::with(min, desired, max, |_| {})
    }

    fn with(min: u32, desired: u32, max: u32, change: impl FnOnce(&mut CoordinatorSettings)) -> Self {
        let mut settings = CoordinatorSettings {
            epoch: 7,
            world: World::new(min, desired, max).unwrap(),
            formation_wait: WAIT,
            heartbeat_timeout: Duration::from_secs(10),
            report_timeout: Duration::from_secs(5),
            stall_timeout: STALL,
            slow_eviction: None,
        };
        change(&mut settings);
        Self { coordinator: Coordinator::new(settings, at(0)), sent: BTreeMap::new(), closed: Vec::new(), now: at(0) }
    }

    fn event(&mut self, event: CoordinatorEvent) {
        for command in self.coordinator.handle(self.now, event) {
            match command {
                CoordinatorCommand::Send { connection, message } => self.sent.entry(connection.0).or_default().push(message),
                CoordinatorCommand::Close { connection } => self.closed.push(connection.0),
                CoordinatorCommand::Record(_) => {}
            }
        }
    }

    fn tick(&mut self, now: Duration) {
        self.now = now;
        self.event(CoordinatorEvent::Tick);
    }

    fn say(&mut self, connection: u64, message: ToCoordinator) {
        self.event(CoordinatorEvent::Message { connection: ConnectionId(connection), message });
    }

    fn close(&mut self, connection: u64) {
        self.event(CoordinatorEvent::Closed { connection: ConnectionId(connection), reason: "reset".to_owned() });
    }

    /// Opens stream `connection` for worker `w-<worker>`.
    fn attach(&mut self, connection: u64, worker: u32, change: impl FnOnce(&mut Attach)) {
        let name = MemberName { worker: format!("w-{worker}"), index: 0 };
        let identity = Identity { name, incarnation: INCARNATION, node: "n".to_owned(), address: "10.0.0.1".to_owned() };
        let mut attach = Attach {
            protocol_version: PROTOCOL_VERSION,
            identity,
            ticket: Some(TICKET),
            config_digest: "d".to_owned(),
            machine: None,
            known: None,
            held: None,
            draining: false,
            group: None,
            saved: None,
        };
        change(&mut attach);
        self.event(CoordinatorEvent::Opened { connection: ConnectionId(connection) });
        self.say(connection, ToCoordinator::Attach(Box::new(attach)));
    }

    /// What was sent on a stream since the last call.
    fn taken(&mut self, connection: u64) -> Vec<ToMember> {
        self.sent.remove(&connection).unwrap_or_default()
    }

    /// The plan that was sent on a stream since the last look.
    fn plan(&mut self, connection: u64) -> Option<Plan> {
        self.taken(connection).into_iter().find_map(|message| match message {
            ToMember::Form(plan) => Some(plan),
            _ => None,
        })
    }

    fn report(&mut self, connection: u64, n: u64, held: Option<StateLabel>, cause: ReportCause) {
        self.say(connection, ToCoordinator::Report { generation: generation(n), held, cause });
    }

    /// Two members in generation 1, both at step 5.
    fn of_two_at_step_5(min: u32, max: u32) -> Self {
        let mut bench = Self::new(min, 2, max);
        bench.attach(1, 1, |attach| attach.held = Some(label(5, 0)));
        bench.attach(2, 2, |attach| attach.held = Some(label(5, 0)));
        assert_eq!(bench.plan(1).map(|plan| (plan.rank, plan.world, plan.role)), Some((0, 2, Role::Level)));
        assert_eq!(bench.plan(2).map(|plan| (plan.rank, plan.world, plan.role)), Some((1, 2, Role::Level)));
        bench
    }
}

#[test]
fn a_generation_is_formed_at_once_with_the_desired_members_and_after_a_bounded_wait_with_the_fewest() {
    let mut bench = Bench::new(2, 3, 4);
    bench.attach(1, 1, |_| {});
    bench.tick(at(60));
    assert_eq!(bench.coordinator.status().phase, Phase::Waiting);
    bench.attach(2, 2, |_| {});
    assert_eq!(bench.coordinator.deadline(), Some(at(60) + WAIT));
    bench.tick(at(59) + WAIT);
    assert_eq!(bench.plan(1), None);
    bench.tick(at(60) + WAIT);
    assert_eq!(bench.plan(1).map(|plan| (plan.generation, plan.world)), Some((generation(1), 2)));

    let mut bench = Bench::new(2, 3, 4);
    (1..=3).for_each(|member| bench.attach(member.into(), member, |_| {}));
    assert_eq!(bench.plan(3).map(|plan| (plan.rank, plan.world, plan.role)), Some((2, 3, Role::Follow)));
    assert_eq!(bench.plan(1).map(|plan| plan.role), Some(Role::Restore));
}

#[test]
fn ranks_follow_nodes_so_that_neighbours_share_one() {
    let mut bench = Bench::new(1, 3, 3);
    for (member, node) in [(1, "b"), (2, "a"), (3, "b")] {
        bench.attach(member.into(), member, |attach| attach.identity.node = node.to_owned());
    }
    assert_eq!([1, 2, 3].map(|stream| bench.plan(stream).unwrap().rank), [1, 0, 2]);
}

#[test]
fn a_lost_member_leaves_its_seat_to_the_next_that_comes_and_nobody_else_moves() {
    let mut bench = Bench::new(1, 9, 9);
    let node = |member: u32| move |attach: &mut Attach| attach.identity.node = format!("n-{member}");
    (1..=9).for_each(|member| bench.attach(member.into(), member, node(member)));
    let plans: Vec<Plan> = (1..=9).map(|stream| bench.plan(stream).unwrap()).collect();
    assert!(plans.iter().all(|plan| plan.seat == plan.rank && plan.division == Division::full(9)), "{plans:?}");
    bench.close(4);
    let others = [1, 2, 3, 5, 6, 7, 8, 9];
    let report = |bench: &mut Bench, n: u64, cause: ReportCause| {
        for stream in others {
            bench.report(stream, n, Some(label(5, 0)), cause.clone());
        }
    };
    report(&mut bench, 1, ReportCause::Aborted);
    let plans = others.map(|stream| bench.plan(stream).unwrap());
    assert_eq!(plans.each_ref().map(|plan| (plan.rank, plan.seat)), [(0, 0), (1, 1), (2, 2), (3, 4), (4, 5), (5, 6), (6, 7), (7, 8)]);
    assert!(plans.iter().all(|plan| plan.division == with_empty(9, &[3]).unwrap()));
    // It sorts before all others, and has the first rank.
    bench.attach(10, 0, node(0));
    report(&mut bench, 2, ReportCause::Agreed);
    let plan = bench.plan(10).unwrap();
    assert_eq!((plan.rank, plan.seat, plan.division), (0, 3, Division::full(9)));
    assert_eq!(others.map(|stream| bench.plan(stream).unwrap().seat), [0, 1, 2, 4, 5, 6, 7, 8]);
}

#[test]
fn a_member_that_does_not_fit_is_refused_with_the_reason() {
    let mut bench = Bench::new(1, 2, 2);
    bench.attach(1, 1, |attach| attach.identity.incarnation.start = 4);
    let mut check = |stream: u64, worker: u32, change: fn(&mut Attach), expected: Refusal| {
        bench.attach(stream, worker, change);
        assert_eq!(bench.taken(stream), [ToMember::Refused { generation: generation(0), reason: expected }]);
        assert_eq!(bench.closed.last(), Some(&stream));
    };
    let member = || "w-2/0".to_owned();
    check(
        2,
        2,
        |attach| attach.protocol_version = 9,
        Refusal::ProtocolVersion { member: member(), version: 9, coordinator: PROTOCOL_VERSION },
    );
    let configuration = Refusal::Configuration { member: member(), digest: "e".to_owned(), expected: "d".to_owned() };
    check(3, 2, |attach| attach.config_digest = "e".to_owned(), configuration);
    let known = Generation { epoch: 8, n: 1 };
    let change = |attach: &mut Attach| attach.known = Some(Generation { epoch: 8, n: 1 });
    check(4, 2, change, Refusal::StaleCoordinator { member: member(), epoch: 7, known });
    let change = |attach: &mut Attach| attach.ticket = Some(Ticket { epoch: 8, n: 1 });
    let known = Generation { epoch: 8, n: 0 };
    check(5, 2, change, Refusal::StaleCoordinator { member: member(), epoch: 7, known });
    let [own, newest] = [3, 4].map(|start| Turn { ticket: TICKET, start });
    let superseded = Refusal::Superseded { member: "w-1/0".to_owned(), own, newest };
    check(6, 1, |attach| attach.identity.incarnation.start = 3, superseded);
}

#[test]
fn a_member_on_another_kind_of_machine_is_refused_by_those_that_have_the_state() {
    let on = |machine: &str| {
        let machine = Some(machine.to_owned());
        move |attach: &mut Attach| attach.machine = machine
    };
    let refusal = |worker: u32, machine: &str, expected: &str| ToMember::Refused {
        generation: generation(0),
        reason: Refusal::Machine { member: format!("w-{worker}/0"), machine: machine.to_owned(), expected: expected.to_owned() },
    };
    let mut bench = Bench::new(4, 4, 4);
    bench.attach(1, 1, on("a"));
    bench.attach(2, 2, on("b"));
    assert_eq!((bench.taken(2), bench.closed.last()), (vec![refusal(2, "b", "a")], Some(&2)));
    bench.attach(3, 3, on("a"));
    drop((bench.taken(1), bench.taken(3)));
    // Who has the state is right, however many have come before.
    bench.attach(4, 4, |attach| {
        on("b")(attach);
        attach.held = Some(label(5, 0));
    });
    assert_eq!((bench.taken(1), bench.taken(3)), (vec![refusal(1, "a", "b")], vec![refusal(3, "a", "b")]));
    assert_eq!(bench.taken(4), [ToMember::Attached { generation: generation(0), ticket: TICKET }]);
    bench.attach(5, 1, on("a"));
    assert_eq!(bench.taken(5), [refusal(1, "a", "b")]);
    bench.attach(6, 2, on("b"));
    bench.attach(7, 3, |attach| {
        on("a")(attach);
        attach.held = Some(label(9, 0));
    });
    assert_eq!(bench.taken(7), [refusal(3, "a", "b")], "the state is there already");
    assert_eq!(bench.coordinator.status().members.len(), 2);
}

#[test]
fn survivors_of_a_broken_stream_are_told_at_once_and_form_anew_from_the_highest_step_when_all_have_reported() {
    let mut bench = Bench::new(1, 3, 3);
    (1..=3).for_each(|member| bench.attach(member.into(), member, |attach| attach.held = Some(label(5, 0))));
    (1..=3).for_each(|stream| drop(bench.taken(stream)));
    bench.close(2);
    assert!(matches!(&bench.taken(1)[..], [ToMember::Abort { generation, .. }] if generation.n == 1));
    assert_eq!(bench.taken(3).len(), 1);
    assert_eq!(bench.coordinator.status().phase, Phase::Recovering);
    bench.report(1, 1, Some(label(5, 0)), ReportCause::Aborted);
    assert_eq!(bench.taken(1), []);
    bench.report(3, 1, Some(label(6, 1)), ReportCause::Aborted);
    let plan = bench.plan(1).unwrap();
    assert_eq!(
        (plan.generation, plan.world, plan.base, plan.role),
        (generation(2), 2, Some(label(6, 1)), Role::Receive(Moves::alike(Some(1), &[])))
    );
    assert_eq!(plan.lost.iter().map(|loss| loss.member.to_string()).collect::<Vec<_>>(), ["w-2/0"]);
    assert_eq!(bench.plan(3).map(|plan| plan.role), Some(Role::Send(Moves::alike(None, &[0]))));
}

#[test]
fn a_late_or_doubled_report_changes_nothing() {
    let mut bench = Bench::of_two_at_step_5(1, 2);
    let failed = || ReportCause::Failed { detail: "x".to_owned(), differing: Vec::new() };
    bench.report(1, 0, None, failed());
    assert_eq!(bench.coordinator.status().phase, Phase::Running);
    bench.report(1, 1, Some(label(5, 0)), failed());
    bench.report(1, 1, None, failed());
    bench.report(2, 1, Some(label(5, 0)), ReportCause::Aborted);
    assert_eq!(bench.plan(1).map(|plan| plan.role), Some(Role::Level));
    bench.report(1, 1, None, failed());
    assert_eq!(bench.coordinator.status().phase, Phase::Running);
}

#[test]
fn who_holds_another_state_than_the_others_is_named_with_its_node_and_gets_theirs() {
    let mut bench = Bench::new(1, 3, 3);
    (1..=3).for_each(|member| bench.attach(member.into(), member, |attach| attach.held = Some(label(5, 0))));
    (1..=3).for_each(|stream| drop(bench.taken(stream)));
    let differs = || ReportCause::Failed { detail: "another checksum".to_owned(), differing: vec![1] };
    bench.report(3, 1, Some(label(7, 1)), differs());
    let history = bench.coordinator.status().history;
    let reason = history.iter().find_map(|entry| match &entry.event {
        HistoryEvent::Broken { reason, .. } => Some(reason.as_str()),
        _ => None,
    });
    assert_eq!(reason, Some("member w-3/0: another checksum (the state of w-2/0 on node n differs)"));
    bench.report(2, 1, None, differs());
    bench.report(1, 1, Some(label(7, 1)), differs());
    let roles = [1, 2, 3].map(|stream| bench.plan(stream).map(|plan| (plan.base, plan.rank, plan.role)));
    let base = Some(label(7, 1));
    let received = roles.iter().flatten().filter(|(found, _, role)| *found == base && matches!(role, Role::Receive(_))).count();
    assert_eq!((received, roles.iter().flatten().count()), (1, 3), "{roles:?}");
    assert!(matches!(&roles[1], Some((_, _, Role::Receive(_)))), "{roles:?}");
}

#[test]
fn a_silent_member_and_one_that_does_not_report_are_evicted() {
    let mut bench = Bench::of_two_at_step_5(1, 2);
    bench.tick(at(9_000));
    bench.say(1, ToCoordinator::Heartbeat { generation: Some(generation(1)), held: Some(label(5, 0)), activity: Activity::default() });
    bench.tick(at(10_000));
    assert!(matches!(&bench.taken(2)[..], [ToMember::Evicted { .. }]));
    assert!(bench.taken(1).iter().any(|message| matches!(message, ToMember::Abort { .. })));
    // Its own report is awaited for another 5 s.
    bench.say(1, ToCoordinator::Heartbeat { generation: Some(generation(1)), held: Some(label(5, 0)), activity: Activity::default() });
    bench.tick(at(15_000));
    assert!(bench.taken(1).iter().any(|message| matches!(message, ToMember::Evicted { .. })));
    assert_eq!(bench.closed, [2, 1]);
    assert_eq!(bench.coordinator.status().phase, Phase::Waiting);
}

/// Each half from another of the first two ranks.
fn from_two() -> Role {
    Role::Receive(Moves { halves: [0, 1].map(|from| Hop { from: Some(from), to: Vec::new(), depth: 1 }) })
}

#[test]
fn a_joiner_makes_the_members_wish_to_leave_and_is_let_in_when_they_have() {
    let mut bench = Bench::of_two_at_step_5(1, 3);
    bench.attach(3, 3, |_| {});
    assert_eq!(bench.taken(1), [ToMember::Wish { generation: generation(1), flags: Flags::LEAVE }]);
    assert_eq!(bench.taken(2).len(), 1);
    bench.report(1, 1, Some(label(8, 1)), ReportCause::Agreed);
    assert_eq!(bench.taken(2), [], "an agreed leave aborts nobody");
    bench.report(2, 1, Some(label(8, 1)), ReportCause::Agreed);
    assert_eq!(bench.plan(3).map(|plan| (plan.world, plan.role)), Some((3, from_two())));
    assert_eq!(bench.coordinator.status().history.iter().filter(|entry| matches!(entry.event, HistoryEvent::Broken { .. })).count(), 0);
}

#[test]
fn a_spare_waits_while_the_group_is_full_and_replaces_a_lost_member() {
    let mut bench = Bench::of_two_at_step_5(2, 2);
    bench.attach(3, 3, |_| {});
    assert_eq!(bench.taken(1), []);
    bench.close(1);
    bench.report(2, 1, Some(label(5, 0)), ReportCause::Aborted);
    assert_eq!(bench.plan(3).map(|plan| (plan.rank, plan.role)), Some((1, Role::Receive(Moves::alike(Some(0), &[])))));
}

#[test]
fn the_step_of_a_job_that_was_stopped_is_the_last_one_that_all_members_hold() {
    let mut bench = Bench::of_two_at_step_5(1, 2);
    bench.event(CoordinatorEvent::Stop);
    bench.say(1, ToCoordinator::CheckpointCommitted { generation: generation(1), saved: 9.into() });
    // Nobody has told of a step by a heartbeat.
    bench.report(1, 1, Some(label(9, 1)), ReportCause::Agreed);
    assert_eq!(bench.coordinator.status().step, 5);
    bench.report(2, 1, Some(label(9, 1)), ReportCause::Agreed);
    assert_eq!(bench.coordinator.status().step, 9);
}

#[test]
fn a_plan_names_a_few_of_many_losses_and_counts_the_others() {
    let mut bench = Bench::new(1, 12, 12);
    (1..=12).for_each(|member| bench.attach(member.into(), member, |_| {}));
    (2..=12).for_each(|member| bench.close(member));
    bench.taken(1);
    bench.report(1, 1, Some(label(5, 0)), ReportCause::Aborted);
    let plan = bench.plan(1).unwrap();
    let named: Vec<_> = plan.lost.iter().map(|loss| loss.member.worker.as_str()).collect();
    assert_eq!((named, plan.further_losses), (vec!["w-2", "w-3", "w-4", "w-5", "w-6", "w-7", "w-8", "w-9"], 3));

    bench.attach(13, 2, |attach| attach.identity.incarnation.start = 2);
    assert_eq!(bench.taken(1), [ToMember::Wish { generation: generation(2), flags: Flags::LEAVE }]);
    bench.report(1, 2, Some(label(6, 2)), ReportCause::Agreed);
    let plan = bench.plan(1).unwrap();
    assert_eq!((plan.lost, plan.further_losses), (Vec::new(), 0), "each loss is told once");
}

#[test]
fn the_job_is_complete_when_all_have_finished_and_later_ones_are_told() {
    let mut bench = Bench::of_two_at_step_5(1, 2);
    bench.say(1, ToCoordinator::Finished { generation: generation(1), step: 9 });
    bench.say(1, ToCoordinator::Finished { generation: generation(1), step: 9 });
    assert_eq!(bench.coordinator.status().phase, Phase::Running);
    bench.say(2, ToCoordinator::Finished { generation: generation(1), step: 9 });
    let status = bench.coordinator.status();
    assert_eq!((status.phase, status.step), (Phase::Ended(EndReason::Complete), 9));
    bench.attach(3, 3, |_| {});
    assert_eq!(bench.taken(3).last(), Some(&ToMember::End { generation: generation(1), reason: EndReason::Complete, is_kept: true }));
}

#[test]
fn the_committed_step_is_what_all_members_of_the_line_hold() {
    let mut bench = Bench::of_two_at_step_5(1, 2);
    assert_eq!(bench.coordinator.status().step, 5);
    let heartbeat =
        |step| ToCoordinator::Heartbeat { generation: Some(generation(1)), held: Some(label(step, 1)), activity: Activity::default() };
    bench.say(1, heartbeat(8));
    assert_eq!(bench.coordinator.status().step, 5);
    bench.say(2, heartbeat(7));
    bench.say(2, heartbeat(6));
    assert_eq!(bench.coordinator.status().step, 7);
}

#[test]
fn the_store_answers_only_the_open_generation_and_cancels_who_waits_when_it_ends() {
    let mut bench = Bench::of_two_at_step_5(1, 2);
    let get = |n| ToCoordinator::Store { generation: generation(n), id: 4, request: StoreRequest::Get { key: "k".to_owned() } };
    bench.say(1, get(0));
    assert!(matches!(&bench.taken(1)[..], [ToMember::Store { response: StoreResponse::Cancelled { .. }, .. }]));
    bench.say(1, get(1));
    assert_eq!(bench.taken(1), []);
    bench.close(2);
    let messages = bench.taken(1);
    assert!(messages.iter().any(|message| matches!(message, ToMember::Store { id: 4, response: StoreResponse::Cancelled { .. }, .. })));
}

#[test]
fn generations_that_commit_nothing_are_delayed_more_and_more() {
    let mut bench = Bench::of_two_at_step_5(1, 2);
    let mut fail = |n: u64| {
        bench.report(1, n, Some(label(5, 0)), ReportCause::Failed { detail: "no route".to_owned(), differing: Vec::new() });
        bench.report(2, n, Some(label(5, 0)), ReportCause::Aborted);
        let delay = bench.coordinator.status().phase == Phase::Recovering;
        if delay {
            let deadline = bench.coordinator.deadline().unwrap();
            let waited = deadline.saturating_sub(bench.now);
            bench.tick(deadline);
            return waited;
        }
        Duration::ZERO
    };
    let waits: Vec<u128> = (1..=9).map(|n| fail(n).as_millis()).collect();
    assert_eq!(waits, [0, 0, 0, 0, 0, 100, 200, 400, 800]);
}

#[test]
fn a_number_that_a_member_already_knows_is_not_used_again() {
    let mut bench = Bench::new(1, 1, 1);
    bench.attach(1, 1, |attach| attach.known = Some(generation(12)));
    assert_eq!(bench.plan(1).map(|plan| plan.generation), Some(generation(13)));
}

#[test]
fn a_process_that_attaches_anew_replaces_its_old_stream() {
    let mut bench = Bench::of_two_at_step_5(1, 2);
    bench.attach(3, 1, |attach| attach.known = Some(generation(1)));
    assert_eq!((bench.taken(1), bench.closed.clone()), (Vec::new(), vec![1]), "it is there still: nothing is final");
    assert!(matches!(bench.taken(2).first(), Some(ToMember::Abort { .. })));
    bench.close(1);
    bench.say(1, ToCoordinator::Drain { generation: None });
    bench.report(2, 1, Some(label(5, 0)), ReportCause::Aborted);
    assert_eq!(bench.plan(3).map(|plan| plan.role), Some(Role::Receive(Moves::alike(Some(1), &[]))));
}

#[test]
fn a_member_that_has_yet_to_receive_the_base_does_not_count_for_the_committed_step() {
    let mut bench = Bench::new(1, 2, 2);
    bench.attach(1, 1, |attach| attach.held = Some(label(6, 0)));
    bench.attach(2, 2, |attach| attach.held = Some(label(5, 0)));
    let heartbeat = |held| ToCoordinator::Heartbeat { generation: Some(generation(1)), held: Some(held), activity: Activity::default() };
    bench.say(1, heartbeat(label(6, 0)));
    bench.say(2, heartbeat(label(5, 0)));
    assert_eq!(bench.coordinator.status().step, 0, "not known before both hold the base");
    bench.say(2, heartbeat(label(6, 0)));
    assert_eq!(bench.coordinator.status().step, 6);
}

/// A heartbeat of a member of generation `n` that tells of sources.
fn tell(bench: &mut Bench, connection: u64, n: u64, sources: &[(&str, u64)]) {
    let source = |(name, samples): &(&str, u64)| SourceProgress {
        name: (*name).to_owned(),
        samples: *samples,
        generation_loss: Some(2.5),
        contrastive_loss: None,
        data_wait: at(1),
    };
    let activity = Activity { sources: sources.iter().map(source).collect(), ..Activity::default() };
    bench.say(connection, ToCoordinator::Heartbeat { generation: Some(generation(n)), held: Some(label(5, 0)), activity });
}

#[test]
fn of_the_sources_the_member_of_rank_0_tells_for_all_and_what_it_told_stays() {
    let mut bench = Bench::of_two_at_step_5(1, 2);
    let samples = |bench: &Bench| bench.coordinator.status().sources.iter().map(|source| source.samples).collect::<Vec<_>>();
    tell(&mut bench, 1, 1, &[("laion", 7), ("mmc4", 2)]);
    assert_eq!(samples(&bench), [7, 2]);
    tell(&mut bench, 2, 1, &[("laion", 1)]);
    tell(&mut bench, 1, 0, &[("laion", 3)]);
    tell(&mut bench, 1, 1, &[]);
    assert_eq!(samples(&bench), [7, 2], "another rank, an old generation, one that has no step yet");
    tell(&mut bench, 1, 1, &[("laion", 1); MOST_SOURCES + 3]);
    assert_eq!(samples(&bench).len(), MOST_SOURCES);
}

fn checkpoint_of(n: u64, step: u64) -> ToCoordinator {
    ToCoordinator::CheckpointCommitted { generation: generation(n), saved: step.into() }
}

fn wish_checkpoint(n: u64, from: u64) -> ToMember {
    ToMember::WishCheckpoint { generation: generation(n), from }
}

#[test]
fn a_checkpoint_that_is_asked_for_is_wished_once_and_nobody_leaves() {
    let mut bench = Bench::of_two_at_step_5(1, 2);
    bench.event(CoordinatorEvent::Checkpoint { from: None });
    bench.event(CoordinatorEvent::Checkpoint { from: Some(5) });
    assert_eq!([1, 2].map(|stream| bench.taken(stream)), [[wish_checkpoint(1, 5)], [wish_checkpoint(1, 5)]]);
    assert_eq!(bench.coordinator.status().wanted_checkpoint, Some(5));
    bench.say(1, checkpoint_of(1, 4));
    assert_eq!(bench.coordinator.status().wanted_checkpoint, Some(5), "an older one is not what was asked for");
    bench.say(1, checkpoint_of(1, 7));
    let status = bench.coordinator.status();
    assert_eq!((status.wanted_checkpoint, status.saved_step(), status.phase), (None, Some(7), Phase::Running));
    bench.event(CoordinatorEvent::Checkpoint { from: Some(5) });
    assert_eq!(bench.taken(1), [], "asked again, it is there already");
    let heartbeat = || ToCoordinator::Heartbeat { generation: Some(generation(1)), held: Some(label(9, 1)), activity: Activity::default() };
    bench.say(1, heartbeat());
    bench.say(2, heartbeat());
    bench.event(CoordinatorEvent::Checkpoint { from: Some(1_000) });
    let wishes: Vec<_> = bench.taken(2).into_iter().filter(|message| matches!(message, ToMember::WishCheckpoint { .. })).collect();
    assert_eq!(wishes, [wish_checkpoint(1, 9)], "a later request in the same generation, for the step that was committed");
}

#[test]
fn a_checkpoint_that_a_generation_did_not_write_is_wished_in_the_next() {
    let mut bench = Bench::of_two_at_step_5(1, 2);
    bench.event(CoordinatorEvent::Checkpoint { from: None });
    bench.close(2);
    bench.taken(1);
    bench.report(1, 1, Some(label(6, 1)), ReportCause::Aborted);
    let messages = bench.taken(1);
    assert!(matches!(&messages[..], [ToMember::Form(plan), wish] if plan.generation == generation(2) && *wish == wish_checkpoint(2, 5)));
    bench.say(1, checkpoint_of(1, 6));
    assert_eq!(bench.coordinator.status().wanted_checkpoint, Some(5), "of a generation that is over");
    bench.say(1, checkpoint_of(2, 8));
    assert_eq!(bench.coordinator.status().wanted_checkpoint, None);
}

#[test]
fn a_checkpoint_can_be_asked_for_before_there_is_a_group_and_after_its_steps_were_lost() {
    let mut bench = Bench::new(1, 1, 1);
    bench.event(CoordinatorEvent::Checkpoint { from: Some(3) });
    bench.attach(1, 1, |attach| attach.held = Some(label(6, 0)));
    assert_eq!(bench.taken(1).last(), Some(&wish_checkpoint(1, 0)));
    bench.say(1, checkpoint_of(1, 6));
    bench.say(1, ToCoordinator::Heartbeat { generation: Some(generation(1)), held: Some(label(9, 1)), activity: Activity::default() });
    bench.event(CoordinatorEvent::Checkpoint { from: None });
    assert_eq!(bench.taken(1).last(), Some(&wish_checkpoint(1, 9)));
    bench.close(1);
    bench.attach(2, 2, |attach| attach.held = Some(label(7, 1)));
    let messages = bench.taken(2);
    assert_eq!(messages.last(), Some(&wish_checkpoint(2, 7)), "step 9 is lost, step 7 takes its place: {messages:?}");
}

#[test]
fn counts_are_those_of_the_members_after_every_kind_of_change() {
    let mut bench = Bench::new(1, 3, 3);
    let check = |bench: &Bench, expected: [usize; 4]| {
        let peers = &bench.coordinator.peers;
        let counted = [
            peers.values().filter(|peer| peer.is_in_group()).count(),
            peers.values().filter(|peer| peer.draining).count(),
            peers.values().filter(|peer| peer.draining && peer.is_in_group()).count(),
            peers.values().filter(|peer| !peer.draining && !peer.is_in_group()).count(),
        ];
        assert_eq!(counted, expected);
        assert_eq!([peers.in_group(), peers.draining(), peers.draining_in_group(), peers.spare()], expected);
        assert_eq!(peers.staying() + peers.draining(), peers.len());
        assert_eq!(peers.leaving(), peers.values().filter(|peer| peer.draining && peer.is_free()).count());
        assert_eq!(peers.first_told(), peers.values().filter_map(|peer| peer.told).min());
    };
    (1..=3).for_each(|member| bench.attach(member.into(), member, |attach| attach.held = Some(label(5, 0))));
    check(&bench, [3, 0, 0, 0]);
    bench.attach(4, 4, |_| {});
    check(&bench, [3, 0, 0, 1]);
    bench.say(1, ToCoordinator::Drain { generation: None });
    bench.event(CoordinatorEvent::DrainWorker { worker: "w-2".to_owned() });
    check(&bench, [3, 2, 2, 1]);
    bench.close(3);
    check(&bench, [2, 2, 2, 1]);
    bench.report(1, 1, Some(label(6, 1)), ReportCause::Aborted);
    check(&bench, [1, 2, 1, 1]);
    bench.attach(5, 1, |attach| attach.identity.incarnation.start = 2);
    check(&bench, [1, 1, 1, 2]);
    bench.event(CoordinatorEvent::Stop);
    check(&bench, [1, 3, 1, 0]);
}

/// With thousands of members, a look at each of them for each of their messages would take longer than the messages come in.
#[test]
fn no_message_of_many_takes_a_look_at_all_members() {
    const MEMBERS: u32 = 64;
    let mut bench = Bench::new(1, MEMBERS, MEMBERS);
    let looks = |bench: &mut Bench, act: &mut dyn FnMut(&mut Bench, u64)| {
        let before = bench.coordinator.peers.walks();
        for stream in 1..=u64::from(MEMBERS) {
            act(bench, stream);
            let _ = bench.coordinator.deadline();
        }
        bench.coordinator.peers.walks() - before
    };
    let mut check = |what: &str, act: &mut dyn FnMut(&mut Bench, u64)| {
        let looks = looks(&mut bench, act);
        assert!(looks < 10, "{what} of {MEMBERS} members took {looks} looks at all of them");
    };
    let heartbeat =
        |step| ToCoordinator::Heartbeat { generation: Some(generation(1)), held: Some(label(step, 1)), activity: Activity::default() };
    check("the attachments", &mut |bench, stream| bench.attach(stream, stream as u32, |attach| attach.held = Some(label(5, 0))));
    check("the heartbeats", &mut |bench, stream| bench.say(stream, heartbeat(6)));
    check("the first loss and the reports", &mut |bench, stream| match stream {
        1 => bench.close(1),
        _ => bench.report(stream, 1, Some(label(6, 1)), ReportCause::Aborted),
    });
    check("the heartbeats while one leaves", &mut |bench, stream| match stream {
        2 => bench.say(2, ToCoordinator::Drain { generation: None }),
        _ => bench.say(stream, heartbeat(7)),
    });
    check("a stop and its reports", &mut |bench, stream| match stream {
        3 => bench.event(CoordinatorEvent::Stop),
        _ => bench.report(stream, 2, Some(label(7, 2)), ReportCause::Agreed),
    });
}
