//! Several processes of one name: which of them has the place.

use super::*;

/// The number of a run, as a clock that goes back from one start to the next would have given it.
const FIRST: u64 = 9_000;
const SECOND: u64 = 4_000;

/// What a process of run `run` says on stream `connection` for worker 1.
fn says(bench: &mut Bench, connection: u64, run: u64, ticket: Option<Ticket>) {
    bench.attach(connection, 1, |attach| (attach.identity.incarnation.run, attach.ticket) = (run, ticket));
}

/// It attaches with the ticket that it is given. That ticket.
fn joins(bench: &mut Bench, connection: u64, run: u64) -> Ticket {
    says(bench, connection, run, None);
    let messages = bench.taken(connection);
    let [ToMember::Ticket { ticket, .. }] = messages.as_slice() else { panic!("{messages:?}") };
    says(bench, connection, run, Some(*ticket));
    let attached = bench.taken(connection);
    assert_eq!(attached.first(), Some(&ToMember::Attached { generation: generation(0), ticket: *ticket }), "{attached:?}");
    *ticket
}

fn superseded(own: Ticket, newest: Ticket) -> Refusal {
    let turn = |ticket| Turn { ticket, start: 1 };
    Refusal::Superseded { member: "w-1/0".to_owned(), own: turn(own), newest: turn(newest) }
}

fn refusal(message: Option<ToMember>) -> Option<Refusal> {
    match message? {
        ToMember::Refused { reason, .. } => Some(reason),
        _ => None,
    }
}

#[test]
fn a_newer_process_takes_the_place_and_the_older_one_is_told_once_and_for_all() {
    // No generation is formed, so that the numbers stay those of the start.
    let mut bench = Bench::new(2, 2, 2);
    let older = joins(&mut bench, 1, FIRST);
    let newer = joins(&mut bench, 2, SECOND);
    assert_eq!(refusal(bench.taken(1).pop()), Some(superseded(older, newer)));
    assert_eq!(bench.closed, [1]);
    // However often it comes, and whatever its worker starts in its place.
    for stream in [3, 4] {
        says(&mut bench, stream, FIRST, Some(older));
        assert_eq!(refusal(bench.taken(stream).pop()), Some(superseded(older, newer)));
    }
    bench.attach(5, 1, |attach| (attach.identity.incarnation, attach.ticket) = (Incarnation { run: FIRST, start: 2 }, None));
    assert!(matches!(refusal(bench.taken(5).pop()), Some(Refusal::Superseded { .. })));
    assert_eq!(bench.closed, [1, 3, 4, 5]);
    assert_eq!(bench.coordinator.status().members.len(), 1);
    // Its worker starts the newer one again.
    bench.attach(6, 1, |attach| (attach.identity.incarnation, attach.ticket) = (Incarnation { run: SECOND, start: 2 }, None));
    assert_eq!(bench.taken(6), [ToMember::Attached { generation: generation(0), ticket: newer }]);
}

#[test]
fn what_a_process_said_before_it_died_takes_no_place_from_its_successor() {
    let mut bench = Bench::of_two_at_step_5(1, 2);
    says(&mut bench, 3, FIRST, None);
    assert!(matches!(&bench.taken(3)[..], [ToMember::Ticket { .. }]));
    // It says no more, and nothing it could have said counts.
    bench.say(3, ToCoordinator::Drain { generation: None });
    let status = bench.coordinator.status();
    assert_eq!((status.phase, status.members.len()), (Phase::Running, 2));
    bench.close(3);
    assert_eq!((bench.coordinator.status(), bench.taken(1), bench.taken(2)), (status, Vec::new(), Vec::new()));
    // The one that trains is as welcome as before.
    bench.attach(4, 1, |_| {});
    assert!(matches!(bench.taken(4).first(), Some(ToMember::Attached { ticket: TICKET, .. })));
}

#[test]
fn a_stream_on_which_a_ticket_was_given_is_closed_when_it_is_not_shown() {
    let mut bench = Bench::new(1, 1, 1);
    says(&mut bench, 1, FIRST, None);
    bench.tick(Duration::from_secs(10));
    assert_eq!(bench.closed, [1]);
}

#[test]
fn an_older_process_whose_words_come_late_is_refused_though_nothing_of_it_was_seen() {
    let mut bench = Bench::new(2, 2, 2);
    says(&mut bench, 1, FIRST, None);
    let Some(ToMember::Ticket { ticket: older, .. }) = bench.taken(1).pop() else { panic!("no ticket") };
    let newer = joins(&mut bench, 2, SECOND);
    says(&mut bench, 1, FIRST, Some(older));
    assert_eq!(refusal(bench.taken(1).pop()), Some(superseded(older, newer)));
    assert_eq!(bench.taken(2), []);
}

#[test]
fn a_coordinator_that_takes_over_keeps_the_order_of_those_it_has_not_seen() {
    let (older, newer) = (Ticket { epoch: 6, n: 3 }, Ticket { epoch: 6, n: 8 });
    let mut bench = Bench::new(2, 2, 2);
    says(&mut bench, 1, FIRST, Some(older));
    says(&mut bench, 2, SECOND, Some(newer));
    assert_eq!(refusal(bench.taken(1).pop()), Some(superseded(older, newer)));

    let mut bench = Bench::new(2, 2, 2);
    says(&mut bench, 2, SECOND, Some(newer));
    says(&mut bench, 1, FIRST, Some(older));
    assert_eq!(refusal(bench.taken(1).pop()), Some(superseded(older, newer)));
    // One that no coordinator has seen is newer than all that one before has.
    assert!(joins(&mut bench, 3, 1) > newer);
}
