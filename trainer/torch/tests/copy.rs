//! A copy of the state that is made while training goes on holds the state as it was, to the bit, whatever is changed meanwhile.

#[path = "training/support.rs"]
#[allow(dead_code, reason = "a part of it is for other tests")]
mod support;

use std::{
    mem,
    sync::{Condvar, Mutex, MutexGuard, PoisonError, mpsc},
    time::Duration,
};

use lcl_torch::{
    HostTensor, Learner, StateCopy, StateError, StateTensor,
    probe::{self, Phase},
};
use support::{ROWS, batch, config, learner};

/// Where a copy waits until the learner has to wait for it, or has gone on without.
struct Hold {
    place: Mutex<Held>,
    changed: Condvar,
}

struct Held {
    is_held: bool,
    seen: Vec<Phase>,
}

static HOLD: Hold = Hold { place: Mutex::new(Held { is_held: false, seen: Vec::new() }), changed: Condvar::new() };
/// Tests take turns: the observer is one for the process.
static TURN: Mutex<()> = Mutex::new(());

impl Hold {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hold(&self) {
        let mut held = self.lock();
        (held.is_held, held.seen) = (true, Vec::new());
    }

    fn release(&self) -> Vec<Phase> {
        let mut held = self.lock();
        held.is_held = false;
        self.changed.notify_all();
        mem::take(&mut held.seen)
    }
}

fn observe(phase: Phase) {
    let mut held = HOLD.lock();
    if phase == Phase::Copy {
        while held.is_held {
            held = HOLD.changed.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        return;
    }
    held.seen.push(phase);
    if matches!(phase, Phase::CopyAwaited | Phase::AfterUpdate) {
        held.is_held = false;
        HOLD.changed.notify_all();
    }
}

fn turn() -> MutexGuard<'static, ()> {
    probe::observe(observe);
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn trained() -> Learner {
    let mut learner = learner(&config());
    learner.train_step(0, &[batch(&ROWS)]).expect("a step");
    learner
}

fn bytes(tensors: &[HostTensor]) -> Vec<(String, Vec<u8>)> {
    tensors.iter().map(|tensor| (tensor.name.clone(), tensor.bytes.as_ref().to_vec())).collect()
}

fn copied_now(learner: &Learner) -> Vec<(String, Vec<u8>)> {
    let mut memory = learner.prepare_host_state();
    learner.copy_state_into(&mut memory).expect("a copy");
    bytes(&memory.tensors())
}

/// What changes a state.
type Change<'a> = &'a dyn Fn(&mut Learner);
type Copied = mpsc::Receiver<Result<Vec<HostTensor>, StateError>>;

/// A copy that does not begin before the learner waits for it, or [`Hold::release`].
fn held_copy(learner: &Learner) -> (StateCopy, Copied) {
    let (sender, copied) = mpsc::channel();
    let memory = learner.prepare_host_state();
    HOLD.hold();
    let copy = learner.copy_state_beside(memory, move |result| sender.send(result).expect("a listener")).expect("a thread");
    (copy, copied)
}

#[test]
fn gradients_are_computed_beside_the_copy_and_the_update_waits_for_its_end() {
    let _turn = turn();
    let mut learner = trained();
    let before = copied_now(&learner);
    let (copy, copied) = held_copy(&learner);
    learner.train_step(1, &[batch(&ROWS)]).expect("a step");
    let seen = HOLD.release();
    let found = copied.recv().expect("a result").expect("a copy");
    assert!(bytes(&found) == before, "what was copied is not the state before the step");
    let [.., before_update, awaited, after_update] = seen.as_slice() else { panic!("{seen:?}") };
    assert_eq!([*before_update, *awaited, *after_update], [Phase::BeforeUpdate, Phase::CopyAwaited, Phase::AfterUpdate], "{seen:?}");
    assert!(copy.waited() > Duration::ZERO);
    assert!(copied_now(&learner) != before, "the step has changed nothing");
}

#[test]
fn a_step_beside_a_copy_has_the_bits_of_one_without() {
    let _turn = turn();
    let [mut beside, mut alone] = [trained(), trained()];
    let (copy, copied) = held_copy(&beside);
    for learner in [&mut beside, &mut alone] {
        learner.train_step(1, &[batch(&ROWS)]).expect("a step");
    }
    assert_eq!(beside.state_hash().expect("a hash"), alone.state_hash().expect("a hash"));
    drop(copied.recv().expect("a result"));
    // The memory is used again: nobody holds it.
    let memory = copy.into_memory();
    let address = memory.tensors()[0].bytes.as_ref().as_ptr() as usize;
    let (sender, copied) = mpsc::channel();
    let copy = beside.copy_state_beside(memory, move |result| sender.send(result).expect("a listener")).expect("a thread");
    let found = copied.recv().expect("a result").expect("a copy");
    assert_eq!(found[0].bytes.as_ref().as_ptr() as usize, address);
    assert!(bytes(&found) == copied_now(&beside));
    drop(copy);
}

#[test]
fn whatever_replaces_the_state_waits_for_the_copy_too() {
    let _turn = turn();
    let other = {
        let mut other = trained();
        other.train_step(1, &[batch(&ROWS)]).expect("a step");
        other
    };
    let (sent, hash) = (other.state(), other.state_hash().expect("a hash"));
    let mut memory = other.prepare_host_state();
    other.copy_state_into(&mut memory).expect("a copy");
    let tensors = memory.tensors();
    let loaded = || tensors.iter().map(|held| StateTensor { name: &held.name, shape: &held.shape, data: held.bytes.as_ref() });
    let names: Vec<String> = other.model().parameters().iter().map(|parameter| parameter.name.clone()).collect();
    let parameters = || names.iter().zip(loaded()).map(|(name, tensor)| StateTensor { name, ..tensor });
    let ways: [(&str, Change<'_>); 4] = [
        ("loading a state", &|learner| learner.load_state(loaded(), 2).expect("loading")),
        ("replacing it by a member's", &|learner| learner.replace_state(&sent, 2, &hash).expect("replacing")),
        ("loading parameters", &|learner| learner.load_parameters(parameters()).expect("loading")),
        ("flipping a bit", &|learner| learner.flip_bit().expect("flipping")),
    ];
    for (way, change) in ways {
        let mut learner = trained();
        let before = copied_now(&learner);
        let (copy, copied) = held_copy(&learner);
        change(&mut learner);
        let seen = HOLD.release();
        let found = copied.recv().expect("a result").expect("a copy");
        assert!(bytes(&found) == before, "{way}: what was copied is not the state before");
        assert_eq!(seen, [Phase::CopyAwaited], "{way}");
        drop(copy);
        assert!(copied_now(&learner) != before, "{way}: nothing has changed");
    }
}

#[test]
fn a_second_copy_waits_for_the_first() {
    let _turn = turn();
    let learner = trained();
    let (first, first_copied) = held_copy(&learner);
    let (sender, second_copied) = mpsc::channel();
    let memory = learner.prepare_host_state();
    let second = learner.copy_state_beside(memory, move |result| sender.send(result).expect("a listener")).expect("a thread");
    assert_eq!(HOLD.release(), [Phase::CopyAwaited]);
    let [first_bytes, second_bytes] = [first_copied, second_copied].map(|copied| bytes(&copied.recv().expect("a result").expect("a copy")));
    assert!(first_bytes == second_bytes);
    drop((first, second));
}
