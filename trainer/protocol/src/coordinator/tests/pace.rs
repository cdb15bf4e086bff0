//! Who is evicted because others wait for it, and who is put on record as slow.

use super::*;
use crate::ActivityStage::{self, Preparing, Training, Transferring};

/// A heartbeat of a member of generation 1 that trains and has entered so many operations.
fn at_work(bench: &mut Bench, connection: u64, operations: u64, step_work: u64) {
    let activity = Activity { operations, step_work: Some(at(step_work)), ..Activity::default() };
    bench.say(connection, ToCoordinator::Heartbeat { generation: Some(generation(1)), held: Some(label(5, 0)), activity });
}

/// The same of one that is in this stage.
fn in_stage(bench: &mut Bench, connection: u64, stage: ActivityStage, operations: u64) {
    let activity = Activity { stage, operations, ..Activity::default() };
    bench.say(connection, ToCoordinator::Heartbeat { generation: Some(generation(1)), held: None, activity });
}

#[test]
fn a_member_that_stands_still_while_others_wait_for_it_is_evicted() {
    let mut bench = Bench::of_two_at_step_5(1, 2);
    for second in 0..=11 {
        bench.tick(Duration::from_secs(second));
        // From the third second on one waits in operation 12 for the other, which has not entered it.
        at_work(&mut bench, 1, (10 + second).min(12), 5);
        at_work(&mut bench, 2, (10 + second).min(11), 5);
    }
    assert_eq!(bench.closed, [2], "{:?}", bench.coordinator.status().history);
    assert!(bench.taken(1).iter().any(|message| matches!(message, ToMember::Abort { .. })));
    assert!(matches!(bench.taken(2).last(), Some(ToMember::Evicted { .. })));
}

#[test]
fn a_group_in_which_all_have_come_equally_far_is_left_alone_and_so_is_one_that_has_finished() {
    for finished in [false, true] {
        let mut bench = Bench::of_two_at_step_5(1, 2);
        if finished {
            bench.say(2, ToCoordinator::Finished { generation: generation(1), step: 9 });
        }
        for second in 0..=30 {
            bench.tick(Duration::from_secs(second));
            at_work(&mut bench, 1, 12, 5);
            at_work(&mut bench, 2, if finished { 11 } else { 12 }, 5);
        }
        assert_eq!(bench.closed, [0; 0]);
    }
}

#[test]
fn a_member_that_is_slow_for_a_while_is_put_on_record_once() {
    let mut bench = Bench::new(1, 3, 3);
    (1..=3).for_each(|member| bench.attach(member.into(), member, |attach| attach.held = Some(label(5, 0))));
    for second in 0..=30 {
        bench.tick(Duration::from_secs(second));
        at_work(&mut bench, 1, second, 10);
        at_work(&mut bench, 2, second, 14);
        at_work(&mut bench, 3, second, if second == 4 { 10 } else { 22 });
    }
    let slow: Vec<_> =
        bench.coordinator.status().history.into_iter().filter(|entry| matches!(entry.event, HistoryEvent::Slow { .. })).collect();
    let [entry] = slow.as_slice() else { panic!("{slow:?}") };
    let member = MemberName { worker: "w-3".to_owned(), index: 0 };
    assert_eq!(entry.event, HistoryEvent::Slow { member, step_work: at(22), median: at(14) });
}

/// Those who received the state first have entered more operations than those who still get it.
#[test]
fn a_member_that_trains_is_not_taken_for_one_that_waits_for_those_who_still_get_the_state() {
    let mut bench = Bench::of_two_at_step_5(1, 2);
    for second in 0..=60 {
        bench.tick(Duration::from_secs(second));
        at_work(&mut bench, 1, 3, 5);
        in_stage(&mut bench, 2, Transferring, second);
    }
    // A transfer that does not get on is ended by those who are in it.
    for second in 61..=90 {
        bench.tick(Duration::from_secs(second));
        at_work(&mut bench, 1, 3, 5);
        in_stage(&mut bench, 2, Transferring, 60);
    }
    assert_eq!(bench.closed, [0; 0]);
}

#[test]
fn a_member_that_reads_a_checkpoint_for_the_others_has_all_the_time_it_takes_while_it_gets_on() {
    for (gets_on, seconds) in [(true, 90), (false, 18)] {
        let mut bench = Bench::of_two_at_step_5(1, 2);
        for second in 0..=seconds {
            bench.tick(Duration::from_secs(second));
            in_stage(&mut bench, 1, Preparing, if gets_on { second / 10 } else { 7 });
            in_stage(&mut bench, 2, Transferring, 1);
        }
        assert_eq!(bench.closed, if gets_on { vec![] } else { vec![1] }, "{:?}", bench.coordinator.status().history);
    }
}

#[test]
fn nobody_is_evicted_while_all_prepare() {
    let mut bench = Bench::of_two_at_step_5(1, 2);
    for second in 0..=30 {
        bench.tick(Duration::from_secs(second));
        in_stage(&mut bench, 1, Preparing, 7);
        in_stage(&mut bench, 2, Preparing, 3);
    }
    assert_eq!(bench.closed, [0; 0]);
    // One of them has begun to train: now it waits for the other.
    for second in 31..=34 {
        bench.tick(Duration::from_secs(second));
        in_stage(&mut bench, 1, Preparing, 7);
        in_stage(&mut bench, 2, Training, 3);
    }
    assert_eq!(bench.closed, [1]);
}

/// As a job asks for it: more than twice the median for 20 s, which is looked at every other second.
fn evicting(min: u32, members: u32) -> Bench {
    evicting_of(min, &(1..=members).map(|worker| (worker, 0)).collect::<Vec<_>>())
}

/// The same with these members, each on a stream of its own: worker and index.
fn evicting_of(min: u32, members: &[(u32, u32)]) -> Bench {
    let slow_eviction = Some(SlowEviction::new(2.0, Duration::from_secs(20)).unwrap());
    let all = members.len() as u32;
    let mut bench = Bench::with(min, all, all, |settings| settings.slow_eviction = slow_eviction);
    for (stream, (worker, index)) in (1..).zip(members) {
        bench.attach(stream, *worker, |attach| {
            attach.held = Some(label(5, 0));
            (attach.identity.name.index, attach.identity.node) = (*index, format!("n-{worker}"));
        });
    }
    bench.sent.clear();
    bench
}

/// All in a group train for these seconds; `work` is what each needs for a step, in milliseconds.
fn train(bench: &mut Bench, n: u64, seconds: std::ops::Range<u64>, work: &[(u64, u64)]) {
    for second in seconds {
        bench.tick(Duration::from_secs(second));
        for (connection, step_work) in work {
            let activity = Activity { operations: second, step_work: Some(at(*step_work)), ..Activity::default() };
            bench.say(*connection, ToCoordinator::Heartbeat { generation: Some(generation(n)), held: Some(label(6, n)), activity });
        }
    }
}

/// Reason of each loss for slowness.
fn lost_for_slowness(bench: &Bench) -> Vec<(String, String)> {
    let lost = bench.coordinator.status().history.into_iter().filter_map(|entry| match entry.event {
        HistoryEvent::Lost { member, cause: LossCause::Slow, reason } => Some((member.to_string(), reason)),
        _ => None,
    });
    lost.collect()
}

#[test]
fn the_slowest_member_is_evicted_with_its_node_and_by_how_much_it_was_slow_and_no_other_in_its_generation() {
    let mut bench = evicting(2, 6);
    let work = [(1, 100), (2, 120), (3, 90), (4, 110), (5, 250), (6, 320)];
    train(&mut bench, 1, 0..22, &work);
    assert_eq!(lost_for_slowness(&bench), [], "not long enough");
    train(&mut bench, 1, 22..25, &work);
    let reason = "on node n-6 its own work in a step took 320.0ms, 2.7 times the median of 120.0ms, for 20s".to_owned();
    assert_eq!(lost_for_slowness(&bench), [("w-6/0".to_owned(), reason)]);
    assert_eq!(bench.closed, [6]);
    let of_break = |entry: HistoryEntry| matches!(entry.event, HistoryEvent::Broken { reason, .. } if reason.contains("w-6/0 on node n-6"));
    assert!(bench.coordinator.status().history.into_iter().any(of_break));
    // The next generation measures anew.
    (1..=5).for_each(|stream| bench.report(stream, 1, Some(label(6, 1)), ReportCause::Aborted));
    assert_eq!(bench.plan(1).map(|plan| plan.world), Some(5));
    train(&mut bench, 2, 25..45, &work[..5]);
    assert_eq!(lost_for_slowness(&bench).len(), 1);
    train(&mut bench, 2, 45..49, &work[..5]);
    assert_eq!(lost_for_slowness(&bench).len(), 2);
}

#[test]
fn a_slow_member_stays_where_the_job_does_not_ask_for_it_or_the_fewest_are_needed_or_others_are_as_slow() {
    let check = |bench: &mut Bench, work: &[(u64, u64)]| {
        train(bench, 1, 0..120, work);
        assert_eq!((lost_for_slowness(bench), bench.closed.clone()), (vec![], vec![]), "{work:?}");
    };
    let mut bench = Bench::new(1, 3, 3);
    (1..=3).for_each(|member| bench.attach(member.into(), member, |attach| attach.held = Some(label(5, 0))));
    check(&mut bench, &[(1, 100), (2, 100), (3, 900)]);
    check(&mut evicting(3, 3), &[(1, 100), (2, 100), (3, 900)]);
    // Two of four have no median that is not slow itself, and two alone have none at all.
    check(&mut evicting(1, 4), &[(1, 100), (2, 100), (3, 900), (4, 900)]);
    check(&mut evicting(1, 2), &[(1, 100), (2, 900)]);
    // Below the job's factor.
    check(&mut evicting(1, 3), &[(1, 100), (2, 100), (3, 199)]);
    // It leaves by itself, and so does everybody.
    let mut bench = evicting(1, 3);
    bench.say(3, ToCoordinator::Drain { generation: Some(generation(1)) });
    check(&mut bench, &[(1, 100), (2, 100), (3, 900)]);
    let mut bench = evicting(1, 3);
    bench.event(CoordinatorEvent::Stop);
    check(&mut bench, &[(1, 100), (2, 100), (3, 900)]);
}

#[test]
fn a_member_that_is_slow_now_and_then_is_not_evicted() {
    let mut bench = evicting(1, 3);
    for period in 0..6 {
        train(&mut bench, 1, period * 20..period * 20 + 16, &[(1, 100), (2, 100), (3, 900)]);
        train(&mut bench, 1, period * 20 + 16..period * 20 + 20, &[(3, 100)]);
    }
    assert_eq!(lost_for_slowness(&bench), []);
}

/// A pod is replaced as a whole: the others have to be enough without all of its members.
#[test]
fn a_slow_member_stays_while_the_group_needs_the_rest_of_its_worker() {
    for (min, evicted) in [(2, 0), (1, 1)] {
        let mut bench = evicting_of(min, &[(1, 0), (2, 0), (2, 1)]);
        train(&mut bench, 1, 0..60, &[(1, 100), (2, 100), (3, 900)]);
        assert_eq!(lost_for_slowness(&bench).len(), evicted, "with {min} at the least");
    }
}

#[test]
fn an_evicted_process_comes_back_only_when_it_is_needed_and_its_successor_is_measured_anew() {
    let mut bench = evicting(2, 3);
    train(&mut bench, 1, 0..25, &[(1, 100), (2, 100), (3, 900)]);
    assert_eq!(bench.closed, [3]);
    // It attaches before the others have reported.
    bench.attach(4, 3, |attach| attach.held = Some(label(6, 1)));
    (1..=2).for_each(|stream| bench.report(stream, 1, Some(label(6, 1)), ReportCause::Aborted));
    assert_eq!((bench.plan(1).map(|plan| plan.world), bench.plan(4)), (Some(2), None));
    train(&mut bench, 2, 25..60, &[(1, 100), (2, 100), (4, 900)]);
    assert!(bench.taken(1).iter().all(|message| !matches!(message, ToMember::Wish { .. })), "nobody makes room for it");
    // Too few without it.
    bench.close(2);
    bench.report(1, 2, Some(label(7, 2)), ReportCause::Aborted);
    assert_eq!(bench.plan(4).map(|plan| (plan.generation, plan.world)), Some((generation(3), 2)));
    // One that is not slow makes it go again; and then its own successor is let in like any other.
    bench.attach(5, 2, |attach| attach.identity.incarnation.start = 2);
    [1, 4].into_iter().for_each(|stream| bench.report(stream, 3, Some(label(8, 3)), ReportCause::Agreed));
    assert_eq!([1, 4, 5].map(|stream| bench.plan(stream).map(|plan| plan.world)), [Some(2), None, Some(2)]);
    bench.attach(6, 3, |attach| attach.identity.incarnation.start = 2);
    assert_eq!(bench.taken(1), [ToMember::Wish { generation: generation(4), flags: Flags::LEAVE }]);
    [1, 5].into_iter().for_each(|stream| bench.report(stream, 4, Some(label(9, 4)), ReportCause::Agreed));
    assert_eq!(bench.plan(6).map(|plan| plan.world), Some(3));
    train(&mut bench, 5, 60..75, &[(1, 100), (5, 100), (6, 900)]);
    assert_eq!(lost_for_slowness(&bench).len(), 1, "not again at once");
}

#[test]
fn an_evicted_process_that_alone_holds_the_highest_step_hands_it_on() {
    let mut bench = evicting(1, 3);
    train(&mut bench, 1, 0..25, &[(1, 100), (2, 100), (3, 900)]);
    bench.attach(4, 3, |attach| attach.held = Some(label(7, 1)));
    (1..=2).for_each(|stream| bench.report(stream, 1, Some(label(6, 1)), ReportCause::Aborted));
    let plan = bench.plan(4).unwrap();
    assert_eq!((plan.world, plan.base), (3, Some(label(7, 1))));
}
