//! Operations of a group, and how they end when it fails.

use std::{
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use lcl_torch::{
    Kind, Tensor,
    collectives::{AbortHandle, Group, GroupError, Incoming, MemoryStore, Outgoing, Store, StoreError},
};

use crate::{TIMEOUT, as_members, form, options};

/// Measured are 0.5 to 16 ms; a test machine with two busy cores is slower, and nothing near a time-out.
const SOON: Duration = Duration::from_secs(5);
/// Long enough for a thread to get into the call that is then to be interrupted. The tests hold as well if it has not.
const MOMENT: Duration = Duration::from_millis(50);

fn values(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.to_kind(Kind::Double).view([-1])).expect("numbers")
}

#[test]
fn sums_and_broadcasts_and_gathers_reach_every_member() {
    for world_size in [1, 2, 3] {
        let found = as_members(world_size, |group| {
            let rank = group.rank();
            let mut sum = Tensor::from_slice(&[rank as f32 + 1.0, 1.0]);
            group.all_reduce(&mut sum, TIMEOUT).expect("a sum");
            let mut from_last = Tensor::from_slice(&[rank as i64]);
            group.broadcast(&mut from_last, group.world_size() - 1, TIMEOUT).expect("a broadcast");
            let numbers = group.exchange(&[rank as i64, -7], TIMEOUT).expect("numbers");
            (values(&sum), values(&from_last), numbers)
        });
        let count = world_size as f64;
        for (sum, from_last, numbers) in found {
            assert_eq!((sum, from_last), (vec![count * (count + 1.0) / 2.0, count], vec![count - 1.0]));
            assert_eq!(numbers, (0..world_size as i64).map(|rank| vec![rank, -7]).collect::<Vec<_>>());
        }
    }
}

#[test]
fn rows_are_gathered_in_rank_order_whatever_their_numbers() {
    for counts in [vec![2, 0, 3], vec![0, 0, 0], vec![0, 1, 0], vec![1, 1, 1]] {
        let found = as_members(3, |group| {
            let own = counts[group.rank()] as i64;
            let rows = Tensor::full([own, 2], group.rank() as f64, (Kind::Double, lcl_torch::Device::Cpu));
            group.all_gather_rows(&rows, &counts, TIMEOUT).expect("rows")
        });
        let expected: Vec<f64> = counts.iter().enumerate().flat_map(|(rank, count)| vec![rank as f64; 2 * *count as usize]).collect();
        for rows in found {
            assert_eq!(rows.size(), [counts.iter().sum::<u64>() as i64, 2]);
            assert_eq!(values(&rows), expected);
        }
    }
}

#[test]
fn a_tensor_is_sent_from_one_member_to_another() {
    let found = as_members(3, |group| {
        let mut tensor = Tensor::from_slice(&[1.5f32, 2.5, -1.0]);
        match group.rank() {
            0 => group.send(&tensor, 2, 4, TIMEOUT).expect("sent"),
            2 => {
                let _ = tensor.zero_();
                group.receive(&mut tensor, 0, 4, TIMEOUT).expect("received");
            }
            _ => {}
        }
        values(&tensor)
    });
    assert_eq!(found[2], [1.5, 2.5, -1.0]);
}

#[test]
fn a_member_passes_on_what_came_before_while_the_next_comes() {
    const PIECES: i64 = 5;
    // Of the one tag 0 sends to 1 and 2, 1 to 3; of the other 0 sends to 3, 3 to 2 and 1.
    let ways = [
        [(None, vec![1, 2]), (Some(0), vec![3]), (Some(0), vec![]), (Some(1), vec![])],
        [(None, vec![3]), (Some(3), vec![]), (Some(3), vec![]), (Some(0), vec![2, 1])],
    ];
    let depths = [[0, 1, 1, 2], [0, 2, 2, 1]];
    let found = as_members(4, |group| {
        let rank = group.rank();
        let is_source = rank == 0;
        // Of both tags; what has not come yet is negative.
        let mut pieces: Vec<Vec<Tensor>> = [10, 20]
            .map(|first| (0..PIECES).map(|piece| Tensor::from_slice(&[if is_source { first + piece } else { -1 }; 3])).collect())
            .into();
        for round in 0..PIECES + 2 {
            let piece = |number: i64| (0..PIECES).contains(&number).then_some(number as usize);
            let sent: Vec<_> = (0..2).map(|way| piece(round - depths[way][rank]).map(|piece| pieces[way][piece].shallow_clone())).collect();
            let outgoing: Vec<_> = (0..2)
                .flat_map(|way| sent[way].iter().flat_map(move |tensor| (0..2).map(move |index| (way, tensor, index))))
                .filter_map(|(way, tensor, index)| ways[way][rank].1.get(index).map(|to| Outgoing { tensor, to: *to, tag: 4 + way as u16 }))
                .collect();
            let mut incoming = Vec::new();
            for (way, pieces) in pieces.iter_mut().enumerate() {
                if let (Some(from), Some(piece)) = (ways[way][rank].0, piece(round + 1 - depths[way][rank])) {
                    incoming.push(Incoming { tensor: &mut pieces[piece], from, tag: 4 + way as u16 });
                }
            }
            group.relay(&mut incoming, &outgoing, TIMEOUT).expect("passed on");
        }
        group.barrier(TIMEOUT).expect("all are there");
        pieces.iter().flatten().flat_map(|tensor| values(&tensor.to_kind(Kind::Double))).collect::<Vec<_>>()
    });
    let expected: Vec<f64> = [10, 20].iter().flat_map(|first| (0..PIECES).flat_map(move |piece| [(first + piece) as f64; 3])).collect();
    assert_eq!(found, vec![expected; 4]);
}

#[test]
fn a_peer_that_takes_or_gives_no_piece_ends_the_wait_of_the_other() {
    for gives in [true, false] {
        let outcomes = as_members(2, |group| {
            let mut tensor = Tensor::from_slice(&[1.0f32]);
            let soon = Duration::from_millis(200);
            match (group.rank(), gives) {
                (0, true) => {
                    let outgoing = Outgoing { tensor: &tensor, to: 1, tag: 4 };
                    group.relay(&mut [], &[outgoing], soon).map_err(|error| (group.is_live(), error.to_string()))
                }
                (0, false) => {
                    let incoming = Incoming { tensor: &mut tensor, from: 1, tag: 4 };
                    group.relay(&mut [incoming], &[], soon).map_err(|error| (group.is_live(), error.to_string()))
                }
                _ => {
                    // Until the other has closed the group.
                    let _ = group.receive(&mut tensor, 0, 5, TIMEOUT);
                    Ok(())
                }
            }
        });
        let [Err((false, error)), Ok(())] = outcomes.as_slice() else { panic!("{outcomes:?}") };
        assert!(!error.is_empty());
    }
}

#[test]
fn an_abort_ends_a_wait_for_a_member_that_never_comes_and_a_new_group_works() {
    let store = MemoryStore::default();
    let (ready, is_ready) = mpsc::channel();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let abort = AbortHandle::new();
            let mut group = Group::form(options(Arc::new(store.session()), 1, 0, 2), &abort).expect("a group");
            ready.send(abort).expect("a listener");
            let mut sum = Tensor::from_slice(&[1f32]);
            let error = group.all_reduce(&mut sum, TIMEOUT).expect_err("nobody else sums");
            let ended = Instant::now();
            let again = group.all_reduce(&mut sum, TIMEOUT).expect_err("it is closed");
            let mut next = form(&store, 2, 0, 2).expect("the next generation");
            next.all_reduce(&mut sum, TIMEOUT).expect("a sum");
            next.leave(TIMEOUT).expect("all leave");
            (error, ended, again, values(&sum))
        });
        // Stays in the group and does nothing, like a process that is stopped.
        let silent = form(&store, 1, 1, 2).expect("a group");
        let abort = is_ready.recv().expect("a handle");
        thread::park_timeout(MOMENT);
        let aborted = Instant::now();
        abort.abort();
        let mut next = form(&store, 2, 1, 2).expect("the next generation");
        let mut sum = Tensor::from_slice(&[2f32]);
        next.all_reduce(&mut sum, TIMEOUT).expect("a sum");
        next.leave(TIMEOUT).expect("all leave");
        let (error, ended, again, found) = waiting.join().expect("the waiting member");
        println!("aborted after {:?}", ended.saturating_duration_since(aborted));
        assert!(matches!(error, GroupError::Aborted { .. }), "{error:?}");
        assert!(matches!(again, GroupError::Closed { .. }), "{again:?}");
        assert!(ended.saturating_duration_since(aborted) < SOON);
        assert_eq!(found, [3.0]);
        drop(silent);
    });
}

#[test]
fn an_abort_ends_the_forming_of_a_group() {
    let store = MemoryStore::default();
    for before in [true, false] {
        let (abort, session) = (AbortHandle::new(), Arc::new(store.session()));
        let started = Instant::now();
        if before {
            abort.abort();
        }
        let error = thread::scope(|scope| {
            let options = options(Arc::<lcl_torch::collectives::MemorySession>::clone(&session), u64::from(before), 0, 2);
            let forming = scope.spawn(|| Group::form(options, &abort).expect_err("there is no other member"));
            if !before {
                thread::park_timeout(MOMENT);
                abort.abort();
            }
            forming.join().expect("a member")
        });
        assert!(matches!(error, GroupError::Aborted { .. }), "{error:?}");
        assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
        assert_eq!(session.set("x", b"", TIMEOUT), Err(StoreError::Cancelled), "the session ends with its group");
    }
}

#[test]
fn time_outs_end_forming_and_summing() {
    let store = MemoryStore::default();
    let short = Duration::from_millis(100);
    let alone = lcl_torch::collectives::GroupOptions { timeout: short, ..options(Arc::new(store.session()), 1, 0, 2) };
    let error = Group::form(alone, &AbortHandle::new()).expect_err("nobody comes");
    let expected = matches!(error, GroupError::FormTimeout { .. } | GroupError::Form { .. } | GroupError::Addresses(_));
    assert!(expected, "{error:?}");
    let errors = as_members(2, |group| {
        let started = Instant::now();
        // Rank 1 stays away until rank 0 has given up; then it finds the group lost.
        let timeout = if group.rank() == 0 { short } else { TIMEOUT };
        let mut sum = Tensor::from_slice(&[1f32]);
        if group.rank() == 1 {
            let _ = group.receive(&mut sum, 0, 9, TIMEOUT);
        }
        let error = group.all_reduce(&mut sum, timeout).expect_err("the other does not sum");
        assert!(!group.is_live());
        (error.to_string(), started.elapsed())
    });
    assert!(errors.iter().all(|(_, took)| *took < SOON), "{errors:?}");
}

#[test]
fn what_does_not_fit_is_refused_and_closes_the_group() {
    let errors = as_members(2, |group| {
        let mut transposed = Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0]).view([2, 2]).transpose(0, 1);
        let error =
            if group.rank() == 0 { group.all_reduce(&mut transposed, TIMEOUT) } else { group.broadcast(&mut transposed, 2, TIMEOUT) };
        (error.expect_err("an error").to_string(), group.is_live())
    });
    assert!(errors[0].0.contains("contiguous") && errors[1].0.contains("rank 2 among 2"), "{errors:?}");
    assert!(errors.iter().all(|(_, live)| !live));
    let store = MemoryStore::default();
    let error = form(&store, 1, 2, 2).expect_err("there is no such rank");
    assert!(matches!(error, GroupError::Argument { .. }), "{error:?}");
}

#[test]
fn a_store_that_fails_or_panics_is_an_error_of_the_forming() {
    struct Broken(bool);
    impl Broken {
        fn fail<T>(&self) -> Result<T, StoreError> {
            assert!(!self.0, "wanted panic");
            Err(StoreError::Unreachable { reason: "wanted failure".to_owned() })
        }
    }
    impl Store for Broken {
        fn set(&self, _: &str, _: &[u8], _: Duration) -> Result<(), StoreError> {
            self.fail()
        }
        fn get(&self, _: &str, _: Duration) -> Result<Vec<u8>, StoreError> {
            self.fail()
        }
        fn compare_set(&self, _: &str, _: &[u8], _: &[u8], _: Duration) -> Result<Vec<u8>, StoreError> {
            self.fail()
        }
        fn add(&self, _: &str, _: i64, _: Duration) -> Result<i64, StoreError> {
            self.fail()
        }
        fn append(&self, _: &str, _: &[u8], _: Duration) -> Result<(), StoreError> {
            self.fail()
        }
        fn delete(&self, _: &str, _: Duration) -> Result<bool, StoreError> {
            self.fail()
        }
        fn contains(&self, _: &[&str], _: Duration) -> Result<bool, StoreError> {
            self.fail()
        }
        fn count(&self, _: Duration) -> Result<u64, StoreError> {
            self.fail()
        }
        fn wait(&self, _: &[&str], _: Duration) -> Result<(), StoreError> {
            self.fail()
        }
        fn cancel(&self) {}
    }
    for panics in [false, true] {
        let error = Group::form(options(Arc::new(Broken(panics)), 1, 0, 2), &AbortHandle::new()).expect_err("an error");
        let GroupError::Form { source, .. } = &error else { panic!("{error:?}") };
        assert!(source.message.contains(if panics { "wanted panic" } else { "wanted failure" }), "{source}");
    }
}
