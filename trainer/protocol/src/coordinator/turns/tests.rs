use super::*;
use crate::Incarnation;

const EPOCH: u64 = 7;

fn process(run: u64, start: u64) -> Identity {
    let name = MemberName { worker: "w-0".to_owned(), index: 0 };
    Identity { name, incarnation: Incarnation { run, start }, node: "n".to_owned(), address: "10.0.0.1".to_owned() }
}

/// A process asks for a ticket, if it needs one, and attaches. Whether it stands as the newest.
fn attaches(turns: &mut Turns, process: &Identity, shown: Option<Ticket>) -> Result<Ticket, (Turn, Turn)> {
    let shown = if turns.judge(process, shown) == Standing::Unknown { Some(turns.give()) } else { shown };
    match turns.judge(process, shown) {
        Standing::Newest(ticket) => {
            turns.admit(process, ticket);
            Ok(ticket)
        }
        Standing::Superseded { own, newest } => Err((own, newest)),
        Standing::Unknown => panic!("a ticket was shown"),
    }
}

const fn ticket(epoch: u64, n: u64) -> Ticket {
    Ticket { epoch, n }
}

/// The numbers by which processes are told apart stand for every value that a clock, or chance, may have given them.
#[test]
fn the_order_is_that_of_the_tickets_whatever_numbers_the_runs_have() {
    let numbers = [0, 1, 60_000_000_000, u64::MAX - 1, u64::MAX];
    for older in numbers {
        for newer in numbers.into_iter().filter(|newer| *newer != older) {
            let mut turns = Turns::new(EPOCH);
            let first = attaches(&mut turns, &process(older, 1), None).unwrap();
            let second = attaches(&mut turns, &process(newer, 1), None).unwrap();
            assert!(first < second);
            let refusal = (Turn { ticket: first, start: 1 }, Turn { ticket: second, start: 1 });
            assert_eq!(attaches(&mut turns, &process(older, 1), Some(first)), Err(refusal));
            assert_eq!(attaches(&mut turns, &process(newer, 1), Some(second)), Ok(second));
        }
    }
}

#[test]
fn what_an_older_runs_worker_starts_again_is_as_old_as_its_run() {
    let mut turns = Turns::new(EPOCH);
    let first = attaches(&mut turns, &process(9, 1), None).unwrap();
    assert_eq!(attaches(&mut turns, &process(9, 2), None), Ok(first), "its run is known, and needs no other ticket");
    assert!(attaches(&mut turns, &process(9, 1), Some(first)).is_err(), "it was started before");
    attaches(&mut turns, &process(4, 1), None).unwrap();
    for start in [2, 3] {
        assert!(attaches(&mut turns, &process(9, start), None).is_err());
    }
    assert!(attaches(&mut turns, &process(4, 2), None).is_ok());
}

#[test]
fn a_ticket_that_is_never_shown_supersedes_nobody() {
    let mut turns = Turns::new(EPOCH);
    let held = attaches(&mut turns, &process(4, 1), None).unwrap();
    assert_eq!(turns.judge(&process(9, 1), None), Standing::Unknown);
    assert_eq!(turns.give(), ticket(EPOCH, held.n + 1));
    assert_eq!(attaches(&mut turns, &process(4, 1), Some(held)), Ok(held));
    // Of two that are given theirs at the same time, the later one wins, whoever shows it first.
    let (one, other) = (turns.give(), turns.give());
    assert_eq!(attaches(&mut turns, &process(5, 1), Some(other)), Ok(other));
    assert!(attaches(&mut turns, &process(6, 1), Some(one)).is_err());
}

#[test]
fn the_next_coordinator_keeps_the_order_of_those_it_has_never_seen() {
    let (older, newer) = (ticket(EPOCH - 1, 4), ticket(EPOCH - 1, 9));
    let mut turns = Turns::new(EPOCH);
    assert_eq!(attaches(&mut turns, &process(9, 1), Some(older)), Ok(older));
    assert_eq!(attaches(&mut turns, &process(4, 1), Some(newer)), Ok(newer));
    assert!(attaches(&mut turns, &process(9, 1), Some(older)).is_err());
    let mut turns = Turns::new(EPOCH);
    assert_eq!(attaches(&mut turns, &process(4, 1), Some(newer)), Ok(newer));
    assert!(attaches(&mut turns, &process(9, 1), Some(older)).is_err());
    assert!(attaches(&mut turns, &process(7, 1), None).unwrap() > newer, "what it gives is higher than all before");
}

#[test]
fn tickets_of_two_coordinators_with_one_epoch_are_not_given_twice_and_never_take_a_place_to_and_fro() {
    let mut turns = Turns::new(EPOCH);
    attaches(&mut turns, &process(1, 1), Some(ticket(EPOCH, 12))).unwrap();
    assert_eq!(turns.give(), ticket(EPOCH, 13));
    assert!(attaches(&mut turns, &process(2, 1), Some(ticket(EPOCH, 12))).is_err(), "who has attached with it keeps the place");
    assert!(attaches(&mut turns, &process(1, 1), Some(ticket(EPOCH, 12))).is_ok());
    attaches(&mut turns, &process(3, 1), Some(ticket(EPOCH, u64::MAX))).unwrap();
    assert_eq!(turns.give(), ticket(EPOCH, u64::MAX), "a number that is no member's to choose breaks nothing");
}
