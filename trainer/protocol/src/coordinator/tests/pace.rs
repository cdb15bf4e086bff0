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
