//! A group that a coordinator before has formed.

use super::*;

/// Member `rank` of a group of two that the coordinator before formed, holding this step of it.
pub(super) fn trains_in(bench: &mut Bench, connection: u64, rank: u32, step: u64) {
    claims(bench, connection, rank + 1, rank, step);
}

/// Worker `worker` says that it is member `rank` of that group, which workers 1 and 2 form.
fn claims(bench: &mut Bench, connection: u64, worker: u32, rank: u32, step: u64) {
    let members = [1, 2].map(|worker| Identity {
        name: MemberName { worker: format!("w-{worker}"), index: 0 },
        incarnation: INCARNATION,
        node: "n".to_owned(),
        address: "10.0.0.1".to_owned(),
    });
    let generation = Generation { epoch: 6, n: 4 };
    let list_digest = crate::plan::digest_of(2, members.iter().zip(0..));
    bench.attach(connection, worker, |attach| {
        attach.known = Some(generation);
        attach.held = Some(StateLabel { step, generation });
        attach.group = Some(HeldGroup { generation, rank, world: 2, seat: rank, seats: 2, list_digest, finished: false });
    });
}

/// Member `rank` of a group of nine on ten seats. It says that it sits on `seat`, while the coordinator before has seated all on `seats`.
fn sits(bench: &mut Bench, rank: u32, seat: u32, seats: &[u32; 9]) {
    let members: Vec<Identity> = (1..=9)
        .map(|worker| Identity {
            name: MemberName { worker: format!("w-{worker}"), index: 0 },
            incarnation: INCARNATION,
            node: "n".to_owned(),
            address: "10.0.0.1".to_owned(),
        })
        .collect();
    let list_digest = crate::plan::digest_of(10, members.iter().zip(seats.iter().copied()));
    bench.attach((rank + 1).into(), rank + 1, |attach| {
        attach.known = Some(EARLIER);
        attach.held = Some(StateLabel { step: 8, generation: EARLIER });
        attach.group = Some(HeldGroup { generation: EARLIER, rank, world: 9, seat, seats: 10, list_digest, finished: false });
    });
}

#[test]
fn members_of_a_group_that_is_taken_over_keep_their_seats() {
    let mut bench = Bench::new(1, 10, 10);
    let seats = [7, 3, 8, 0, 1, 2, 4, 5, 9];
    (0..).zip(seats).for_each(|(rank, seat)| sits(&mut bench, rank, seat, &seats));
    assert_eq!(bench.coordinator.status().generation, EARLIER);
    bench.attach(10, 10, |_| {});
    for stream in 1..=9 {
        bench.say(stream, ToCoordinator::Report { generation: EARLIER, held: Some(label(9, 0)), cause: ReportCause::Agreed });
    }
    let plans: Vec<Plan> = (1..=10).map(|stream| bench.plan(stream).unwrap()).collect();
    // In the order of the names w-1, w-10, w-2 …; the newcomer has the seat that nobody had.
    assert_eq!(plans.iter().map(|plan| plan.seat).collect::<Vec<_>>(), [7, 3, 8, 0, 1, 2, 4, 5, 9, 6]);
    assert!(plans.iter().all(|plan| plan.division == Division::full(10)));
}

#[test]
fn a_group_whose_members_sit_elsewhere_than_on_its_list_is_given_up() {
    let seats = [7, 3, 8, 0, 1, 2, 4, 5, 9];
    for wrong in [6, 7, 10] {
        let mut bench = Bench::new(1, 9, 9);
        (0..).zip(seats).for_each(|(rank, seat)| sits(&mut bench, rank, if rank == 8 { wrong } else { seat }, &seats));
        assert!(matches!(bench.taken(1).last(), Some(ToMember::Abort { generation: EARLIER, .. })), "seat {wrong} instead of 9");
    }
}

pub(super) const EARLIER: Generation = Generation { epoch: 6, n: 4 };

#[test]
fn a_group_that_trains_is_taken_over_once_all_of_its_members_are_there() {
    let mut bench = Bench::new(1, 2, 3);
    trains_in(&mut bench, 1, 0, 8);
    // A newcomer does not tempt it to form another group.
    bench.attach(3, 3, |_| {});
    let status = bench.coordinator.status();
    assert_eq!((status.phase, status.generation), (Phase::Running, EARLIER));
    let get = ToCoordinator::Store { generation: EARLIER, id: 1, request: StoreRequest::CountKeys };
    bench.say(1, get.clone());
    assert!(matches!(bench.taken(1).last(), Some(ToMember::Store { response: StoreResponse::Cancelled { .. }, .. })), "not led yet");
    trains_in(&mut bench, 2, 1, 9);
    assert_eq!(bench.taken(1), [ToMember::Wish { generation: EARLIER, flags: Flags::LEAVE }], "room for the newcomer");
    bench.say(1, get);
    assert!(matches!(bench.taken(1).last(), Some(ToMember::Store { response: StoreResponse::Number(0), .. })));
    let status = bench.coordinator.status();
    assert_eq!((status.phase, status.generation, status.step), (Phase::Running, EARLIER, 8));
    let heard: Vec<&HistoryEvent> = status.history.iter().map(|entry| &entry.event).collect();
    assert!(heard.contains(&&HistoryEvent::Adopted { generation: EARLIER, world: 2 }), "{heard:?}");
    // What follows is numbered by this coordinator.
    bench.say(1, ToCoordinator::Report { generation: EARLIER, held: Some(label(9, 0)), cause: ReportCause::Agreed });
    bench.say(2, ToCoordinator::Report { generation: EARLIER, held: Some(label(9, 0)), cause: ReportCause::Agreed });
    assert_eq!(bench.plan(3).map(|plan| (plan.generation, plan.world)), Some((generation(1), 3)));
}

#[test]
fn a_group_whose_members_do_not_all_come_is_given_up_after_the_wait() {
    let mut bench = Bench::new(1, 2, 2);
    trains_in(&mut bench, 1, 0, 8);
    assert_eq!(bench.coordinator.deadline(), Some(WAIT));
    bench.tick(WAIT);
    assert!(matches!(bench.taken(1).last(), Some(ToMember::Abort { generation: EARLIER, .. })));
    bench.say(1, ToCoordinator::Report { generation: EARLIER, held: Some(label(8, 0)), cause: ReportCause::Aborted });
    // Others of it may still come, and hold more: they are waited for as at a start.
    assert_eq!(bench.plan(1), None);
    bench.tick(WAIT + WAIT);
    assert_eq!(bench.plan(1).map(|plan| (plan.world, plan.base)), Some((1, Some(label(8, 0)))));
}

#[test]
fn a_loss_before_all_are_there_ends_the_group_that_was_to_be_taken_over() {
    let mut bench = Bench::new(1, 2, 2);
    trains_in(&mut bench, 1, 0, 8);
    trains_in(&mut bench, 3, 0, 8);
    bench.close(3);
    trains_in(&mut bench, 2, 1, 9);
    assert!(matches!(bench.taken(2).last(), Some(ToMember::Abort { generation: EARLIER, .. })));
    bench.say(2, ToCoordinator::Report { generation: EARLIER, held: Some(label(9, 0)), cause: ReportCause::Aborted });
    bench.attach(4, 1, |_| {});
    assert_eq!(bench.plan(4).map(|plan| plan.role), Some(Role::Receive(Moves::alike(Some(1), &[]))));
}

#[test]
fn survivors_whose_group_broke_without_a_coordinator_wait_for_the_lost_no_longer_than_for_a_silent_member() {
    let form_after = |held: Option<StateLabel>| {
        let mut bench = Bench::new(1, 2, 2);
        bench.coordinator.settings.formation_wait = Duration::from_mins(1);
        bench.attach(1, 1, |attach| attach.held = held);
        (1..100).find(|second| {
            bench.say(1, ToCoordinator::Heartbeat { generation: None, held, activity: Activity::default() });
            bench.tick(Duration::from_secs(*second));
            bench.plan(1).is_some_and(|plan| plan.world == 1)
        })
    };
    assert_eq!(form_after(Some(label(8, 0))), Some(10));
    assert_eq!(form_after(None), Some(60), "at the very start all may still be starting");
}

#[test]
fn those_left_of_a_group_that_was_to_be_taken_over_wait_for_nobody_who_was_lost() {
    // More are desired than will come.
    let mut bench = Bench::new(1, 4, 4);
    bench.attach(3, 3, |_| {});
    trains_in(&mut bench, 1, 0, 8);
    bench.close(1);
    assert_eq!(bench.plan(3), None, "the second may come, and hold the most");
    trains_in(&mut bench, 2, 1, 9);
    bench.say(2, ToCoordinator::Report { generation: EARLIER, held: Some(label(9, 0)), cause: ReportCause::Aborted });
    assert_eq!(bench.plan(3).map(|plan| (plan.world, plan.base)), Some((2, Some(label(9, 0)))));
}

#[test]
fn a_group_with_other_members_than_its_list_is_given_up() {
    let mut bench = Bench::new(1, 2, 2);
    trains_in(&mut bench, 1, 0, 8);
    trains_in(&mut bench, 3, 2, 8);
    assert!(matches!(bench.taken(3).last(), Some(ToMember::Abort { generation: EARLIER, .. })), "no rank 2 of two");
    trains_in(&mut bench, 2, 1, 9);
    assert!(bench.taken(2).iter().all(|message| matches!(message, ToMember::Attached { .. })), "the right two are led");

    // Ranks alone do not make the group: one of the list has to bear each.
    let mut bench = Bench::new(1, 2, 2);
    trains_in(&mut bench, 1, 0, 8);
    claims(&mut bench, 2, 3, 1, 8);
    for stream in [1, 2] {
        assert!(matches!(bench.taken(stream).last(), Some(ToMember::Abort { generation: EARLIER, .. })), "stream {stream}");
    }
}

#[test]
fn of_two_groups_of_coordinators_before_the_later_one_counts() {
    let mut bench = Bench::new(1, 2, 2);
    let older = Generation { epoch: 6, n: 3 };
    bench.attach(5, 5, |attach| {
        attach.held = Some(StateLabel { step: 7, generation: older });
        attach.group = Some(HeldGroup { generation: older, rank: 0, world: 2, seat: 0, seats: 2, list_digest: 1, finished: false });
    });
    trains_in(&mut bench, 1, 0, 8);
    assert!(matches!(bench.taken(5).last(), Some(ToMember::Abort { generation, .. }) if *generation == older));
    trains_in(&mut bench, 2, 1, 8);
    assert_eq!(bench.coordinator.status().generation, EARLIER);
    // It takes part once it has let go of its own.
    assert_eq!(bench.taken(1).last(), Some(&ToMember::Attached { generation: generation(0), ticket: TICKET }));
    bench.event(CoordinatorEvent::SetWorld(World::new(1, 3, 3).unwrap()));
    assert_eq!(bench.taken(1), []);
    bench.say(5, ToCoordinator::Report { generation: older, held: None, cause: ReportCause::Aborted });
    assert_eq!(bench.taken(1), [ToMember::Wish { generation: EARLIER, flags: Flags::LEAVE }]);
}

#[test]
fn a_member_that_does_not_let_go_of_a_group_given_up_is_evicted() {
    let mut bench = Bench::of_two_at_step_5(1, 2);
    bench.attach(3, 3, |attach| {
        let generation = generation(0);
        attach.group = Some(HeldGroup { generation, rank: 0, world: 1, seat: 0, seats: 1, list_digest: 0, finished: false });
    });
    assert!(matches!(bench.taken(3).last(), Some(ToMember::Abort { .. })), "of this very coordinator: it was counted as lost");
    bench.tick(Duration::from_millis(4999));
    assert_eq!(bench.closed, [0; 0]);
    bench.tick(Duration::from_secs(5));
    assert_eq!(bench.closed, [3]);
    assert_eq!(bench.coordinator.status().phase, Phase::Running);
}

#[test]
fn a_new_coordinator_learns_of_the_newest_checkpoint_and_of_the_end() {
    let mut bench = Bench::new(1, 1, 1);
    bench.attach(1, 1, |attach| {
        let list_digest = crate::plan::digest_of(1, std::iter::once((&attach.identity, 0)));
        attach.saved = Some(6.into());
        attach.held = Some(StateLabel { step: 8, generation: EARLIER });
        attach.group = Some(HeldGroup { generation: EARLIER, rank: 0, world: 1, seat: 0, seats: 1, list_digest, finished: true });
    });
    let status = bench.coordinator.status();
    assert_eq!((status.phase, status.step, status.saved_step()), (Phase::Ended(EndReason::Complete), 8, Some(6)));
}
