//! State goes out and comes back without losing a bit.

use lcl_torch::{HostState, HostTensor, Learner, LearnerError, StateError, StateTensor, Tensor};

use crate::support::{ROWS, batch, config, learner, split_rows};

fn trained() -> Learner {
    let mut learner = learner(&config());
    for step in 0..2 {
        learner.train_step(step, &[batch(&ROWS)]).expect("a step");
    }
    learner
}

fn tensors(state: &[HostTensor]) -> Vec<StateTensor<'_>> {
    state.iter().map(|held| StateTensor { name: &held.name, shape: &held.shape, data: held.bytes.as_ref() }).collect()
}

#[test]
fn a_restored_learner_goes_on_as_if_it_had_never_stopped() {
    let mut first = trained();
    let mut copy = first.prepare_host_state();
    first.copy_state_into(&mut copy).expect("a copy");
    let mut second = learner(&config());
    second.load_state(tensors(&copy.tensors()), first.completed_updates()).expect("loading");
    assert_eq!(first.state_hash().expect("a hash"), second.state_hash().expect("a hash"));
    for learner in [&mut first, &mut second] {
        learner.train_step(2, &split_rows()).expect("a step");
    }
    assert_eq!(first.state_hash().expect("a hash"), second.state_hash().expect("a hash"));
    // The number of updates belongs to the state: with another one the next step differs.
    let mut third = learner(&config());
    third.load_state(tensors(&copy.tensors()), 7).expect("loading");
    third.train_step(2, &split_rows()).expect("a step");
    assert_ne!(first.state_hash().expect("a hash"), third.state_hash().expect("a hash"));
}

#[test]
fn host_memory_is_used_again_unless_someone_still_reads_it() {
    let mut learner = trained();
    let mut copy = HostState::default();
    learner.copy_state_into(&mut copy).expect("a copy");
    let addresses = |state: &HostState| state.tensors().iter().map(|held| held.bytes.as_ref().as_ptr()).collect::<Vec<_>>();
    let before = addresses(&copy);
    learner.train_step(2, &[batch(&ROWS)]).expect("a step");
    learner.copy_state_into(&mut copy).expect("a copy");
    assert_eq!(addresses(&copy), before);
    let held = copy.tensors()[1].bytes.clone();
    let kept = held.as_ref().to_vec();
    learner.train_step(3, &[batch(&ROWS)]).expect("a step");
    learner.copy_state_into(&mut copy).expect("a copy");
    assert_eq!(held.as_ref(), kept, "a reader's bytes do not change");
    assert_ne!(copy.tensors()[1].bytes.as_ref(), kept, "the copy is the new state");
}

#[test]
fn a_part_of_the_state_is_copied_alone_and_the_parts_are_the_whole() {
    let learner = trained();
    let names: Vec<String> = learner.state().into_iter().map(|(name, _)| name).collect();
    let (odd, even): (Vec<_>, Vec<_>) = names.iter().enumerate().partition(|(index, _)| index % 2 == 1);
    let parts = [odd, even].map(|part| {
        let mut copy = learner.prepare_host_part(part.iter().map(|(_, name)| (*name).clone()));
        learner.copy_state_into(&mut copy).expect("a copy");
        assert_eq!(
            copy.tensors().iter().map(|held| &held.name).collect::<Vec<_>>(),
            part.iter().map(|(_, name)| *name).collect::<Vec<_>>()
        );
        copy.tensors()
    });
    let mut other = self::learner(&config());
    other.load_state(parts.iter().flat_map(|part| tensors(part)), learner.completed_updates()).expect("loading");
    assert_eq!(learner.state_hash().expect("a hash"), other.state_hash().expect("a hash"));
}

#[test]
fn names_cover_the_model_and_both_moments() {
    let learner = trained();
    let state = learner.state();
    let parameters = learner.model().parameters().len();
    assert_eq!(state.len(), 3 * parameters);
    for (index, prefix) in ["model.", "moment1.", "moment2."].into_iter().enumerate() {
        for (parameter, (name, tensor)) in learner.model().parameters().iter().zip(&state[index * parameters..]) {
            assert_eq!(name.strip_prefix(prefix), Some(parameter.name.as_str()));
            assert_eq!(tensor.size(), parameter.tensor.size());
        }
    }
}

#[test]
fn a_state_that_does_not_fit_is_refused_by_name_and_changes_nothing() {
    let mut learner = trained();
    let mut copy = HostState::default();
    learner.copy_state_into(&mut copy).expect("a copy");
    let copy = copy.tensors();
    let before = learner.state_hash().expect("a hash");
    let zeros = vec![0u8; 4 * 1024 * 1024];
    let mut check = |change: &dyn Fn(&mut Vec<StateTensor<'_>>), expected: &dyn Fn(&StateError) -> bool| {
        // Zeros everywhere: a partial load would show.
        let mut changed = tensors(&copy);
        for tensor in &mut changed {
            tensor.data = &zeros[..tensor.data.len()];
        }
        change(&mut changed);
        let error = learner.load_state(changed, 1).expect_err("an error");
        assert!(matches!(&error, LearnerError::State(error) if expected(error)), "{error}");
    };
    check(
        &|state| state.truncate(state.len() - 1),
        &|error| matches!(error, StateError::Missing { name } if name == "moment2.lm_head.1.weight"),
    );
    check(&|state| state.push(state[0]), &|error| matches!(error, StateError::Twice { name } if name == "model.logit_scale"));
    check(
        &|state| state.push(StateTensor { name: "x", ..state[0] }),
        &|error| matches!(error, StateError::Unknown { name } if name == "x"),
    );
    check(
        &|state| state[1].shape = &[3],
        &|error| matches!(error, StateError::Shape { name, .. } if name == "model.visual.class_embedding"),
    );
    check(&|state| state[1].data = &[0; 4], &|error| matches!(error, StateError::Bytes { found: 4, .. }));
    assert_eq!(learner.state_hash().expect("a hash"), before);
    assert_eq!(learner.completed_updates(), 2);
}

/// Another value in one place: the same but for its last bit.
fn flip_a_bit(tensor: &Tensor) {
    let mut place = tensor.view([-1]).get(0);
    let value = place.double_value(&[]) as f32;
    let _ = place.fill_(f64::from(f32::from_bits(value.to_bits() ^ 1)));
}

#[test]
fn a_received_state_in_which_one_bit_differs_from_what_was_sent_is_refused_and_changes_nothing() {
    let (sender, mut receiver) = (trained(), learner(&config()));
    receiver.train_step(0, &[batch(&ROWS)]).expect("a step");
    let sent = sender.state_hash().expect("a hash");
    let before = receiver.state_hash().expect("a hash");
    let copy = || -> Vec<_> { sender.state().into_iter().map(|(name, tensor)| (name, tensor.copy())).collect() };
    // A parameter, a first moment, the last second moment.
    let last = copy().len() - 1;
    for index in [1, last / 2, last] {
        let changed = copy();
        flip_a_bit(&changed[index].1);
        let error = receiver.replace_state(&changed, 2, &sent).expect_err("an error");
        assert!(matches!(&error, LearnerError::Received { found, sent: told } if *told == sent && *found != sent), "{error}");
        assert_eq!((receiver.state_hash().expect("a hash"), receiver.completed_updates()), (before.clone(), 1));
    }
    receiver.replace_state(&copy(), 2, &sent).expect("what was sent");
    assert_eq!((receiver.state_hash().expect("a hash"), receiver.completed_updates()), (sent, 2));
}
