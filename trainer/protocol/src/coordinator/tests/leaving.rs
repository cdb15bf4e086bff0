//! Members that are let go, and a job that is asked to stop.

use super::*;

#[test]
fn a_drained_member_leaves_at_an_agreed_step_and_is_told_to_end() {
    let mut bench = Bench::of_two_at_step_5(1, 2);
    bench.event(CoordinatorEvent::DrainWorker { worker: "w-2".to_owned() });
    assert_eq!(bench.taken(2), [ToMember::Wish { generation: generation(1), flags: Flags::LEAVE }]);
    bench.report(1, 1, Some(label(7, 1)), ReportCause::Agreed);
    bench.report(2, 1, Some(label(7, 1)), ReportCause::Agreed);
    assert_eq!(bench.taken(2), [ToMember::End { generation: generation(1), reason: EndReason::Drained, is_kept: true }]);
    assert_eq!(bench.plan(1).map(|plan| (plan.world, plan.role)), Some((1, Role::Level)));
}

#[test]
fn a_drained_member_that_alone_holds_the_highest_step_hands_it_on_first() {
    let mut bench = Bench::of_two_at_step_5(1, 2);
    bench.say(2, ToCoordinator::Drain { generation: Some(generation(1)) });
    bench.report(1, 1, Some(label(5, 0)), ReportCause::Failed { detail: "reset".to_owned(), differing: Vec::new() });
    bench.report(2, 1, Some(label(6, 1)), ReportCause::Aborted);
    let messages = bench.taken(2);
    assert!(messages.iter().any(|message| matches!(message, ToMember::Form(plan) if plan.role == Role::Send(Moves::alike(None, &[0])))));
    assert_eq!(messages.last(), Some(&ToMember::Wish { generation: generation(2), flags: Flags::LEAVE }));
}

#[test]
fn members_that_leave_too_few_behind_write_a_checkpoint_first() {
    let mut bench = Bench::of_two_at_step_5(2, 2);
    bench.say(2, ToCoordinator::Drain { generation: Some(generation(1)) });
    assert_eq!(bench.taken(1), [ToMember::Wish { generation: generation(1), flags: Flags::LEAVE | Flags::CHECKPOINT }]);
    bench.say(1, ToCoordinator::CheckpointCommitted { generation: generation(1), saved: 7.into() });
    bench.report(1, 1, Some(label(7, 1)), ReportCause::Agreed);
    bench.report(2, 1, Some(label(7, 1)), ReportCause::Agreed);
    assert_eq!(bench.taken(2).last(), Some(&ToMember::End { generation: generation(1), reason: EndReason::Drained, is_kept: true }));

    // The second wish comes when the group has agreed to leave already: one more generation writes.
    let mut bench = Bench::new(2, 3, 3);
    (1..=3).for_each(|member| bench.attach(member.into(), member, |attach| attach.held = Some(label(5, 0))));
    bench.say(1, ToCoordinator::Drain { generation: Some(generation(1)) });
    bench.report(1, 1, Some(label(7, 1)), ReportCause::Agreed);
    bench.say(2, ToCoordinator::Drain { generation: Some(generation(1)) });
    (1..=3).for_each(|member| bench.taken(member).clear());
    bench.report(2, 1, Some(label(7, 1)), ReportCause::Agreed);
    bench.report(3, 1, Some(label(7, 1)), ReportCause::Agreed);
    let messages = bench.taken(1);
    assert!(matches!(&messages[0], ToMember::Form(plan) if plan.world == 3), "{messages:?}");
    assert_eq!(messages[1], ToMember::Wish { generation: generation(2), flags: Flags::LEAVE | Flags::CHECKPOINT });

    // Without the numbers for another generation nobody is kept for longer than a generation is waited for.
    bench.close(3);
    bench.report(1, 2, Some(label(7, 1)), ReportCause::Aborted);
    bench.close(2);
    assert!(bench.taken(1).iter().all(|message| matches!(message, ToMember::Abort { .. })));
    bench.tick(WAIT);
    assert_eq!(bench.taken(1).last(), Some(&ToMember::End { generation: generation(2), reason: EndReason::Drained, is_kept: false }));
}

#[test]
fn a_stop_waits_for_a_checkpoint_and_then_ends_all() {
    let mut bench = Bench::of_two_at_step_5(1, 2);
    bench.event(CoordinatorEvent::Stop);
    assert_eq!(bench.taken(1), [ToMember::Wish { generation: generation(1), flags: Flags::LEAVE | Flags::CHECKPOINT }]);
    bench.say(1, ToCoordinator::CheckpointCommitted { generation: generation(0), saved: 9.into() });
    assert_eq!(bench.coordinator.status().saved_step(), None, "an older generation's checkpoint is refused");
    bench.say(1, ToCoordinator::CheckpointCommitted { generation: generation(1), saved: 7.into() });
    bench.report(1, 1, Some(label(7, 1)), ReportCause::Agreed);
    bench.report(2, 1, Some(label(7, 1)), ReportCause::Agreed);
    assert!(bench.taken(2).contains(&ToMember::End { generation: generation(1), reason: EndReason::Stopped, is_kept: true }));
    assert_eq!(bench.coordinator.status().phase, Phase::Ended(EndReason::Stopped));
}

#[test]
fn a_stop_that_meets_a_broken_stream_waits_for_the_member_and_for_the_checkpoint() {
    let mut bench = Bench::of_two_at_step_5(2, 2);
    bench.event(CoordinatorEvent::Stop);
    bench.close(2);
    bench.report(1, 1, Some(label(6, 1)), ReportCause::Aborted);
    assert!(bench.taken(1).iter().all(|message| !matches!(message, ToMember::End { .. })), "what it holds would be lost");
    assert_eq!(bench.coordinator.deadline(), Some(WAIT));
    bench.tick(at(2_999));
    bench.attach(3, 2, |attach| attach.held = Some(label(6, 1)));
    let messages = bench.taken(3);
    assert!(messages.iter().any(|message| matches!(message, ToMember::Form(plan) if plan.world == 2)), "{messages:?}");
    assert_eq!(messages.last(), Some(&ToMember::Wish { generation: generation(2), flags: Flags::LEAVE | Flags::CHECKPOINT }));
    bench.say(1, ToCoordinator::CheckpointCommitted { generation: generation(2), saved: 8.into() });
    bench.report(1, 2, Some(label(8, 2)), ReportCause::Agreed);
    bench.report(3, 2, Some(label(8, 2)), ReportCause::Agreed);
    assert_eq!(bench.coordinator.status().phase, Phase::Ended(EndReason::Stopped));
}

#[test]
fn a_stop_gives_up_on_members_that_do_not_come_back() {
    let mut bench = Bench::of_two_at_step_5(2, 2);
    bench.event(CoordinatorEvent::Stop);
    bench.close(2);
    bench.report(1, 1, Some(label(6, 1)), ReportCause::Aborted);
    bench.tick(WAIT);
    assert_eq!(bench.taken(1).last(), Some(&ToMember::End { generation: generation(1), reason: EndReason::Stopped, is_kept: false }));
    assert_eq!(bench.coordinator.status().phase, Phase::Ended(EndReason::Stopped));
}

#[test]
fn a_stop_whose_last_member_is_lost_waits_for_it_although_others_were_let_go() {
    let mut bench = Bench::new(1, 1, 1);
    bench.attach(1, 1, |attach| (attach.held, attach.saved) = (Some(label(6, 0)), Some(5.into())));
    bench.attach(2, 2, |attach| attach.held = Some(label(4, 0)));
    bench.event(CoordinatorEvent::Stop);
    assert!(matches!(bench.taken(2).last(), Some(ToMember::End { .. })), "a spare that holds what is saved");
    bench.close(1);
    assert!(!matches!(bench.coordinator.status().phase, Phase::Ended(_)));
    bench.attach(3, 1, |attach| attach.held = Some(label(6, 0)));
    assert_eq!(bench.taken(3).last(), Some(&ToMember::Wish { generation: generation(2), flags: Flags::LEAVE | Flags::CHECKPOINT }));
    bench.close(3);
    bench.tick(WAIT);
    assert_eq!(bench.coordinator.status().phase, Phase::Ended(EndReason::Stopped), "nobody comes");
}

#[test]
fn a_coordinator_that_is_asked_to_stop_before_anybody_has_attached_waits_for_a_group_to_save() {
    let mut bench = Bench::new(1, 2, 2);
    bench.event(CoordinatorEvent::Stop);
    assert_eq!((bench.coordinator.status().phase, bench.coordinator.deadline()), (Phase::Waiting, Some(WAIT)));
    trains_in(&mut bench, 1, 0, 8);
    trains_in(&mut bench, 2, 1, 8);
    let wish = ToMember::Wish { generation: EARLIER, flags: Flags::LEAVE | Flags::CHECKPOINT };
    assert_eq!([1, 2].map(|stream| bench.taken(stream).pop()), [Some(wish.clone()), Some(wish)]);

    let mut bench = Bench::new(1, 2, 2);
    bench.event(CoordinatorEvent::Stop);
    bench.tick(WAIT);
    assert_eq!(bench.coordinator.status().phase, Phase::Ended(EndReason::Stopped), "there is nobody");
}
