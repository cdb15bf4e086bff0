//! The state of a run from one member to another, over the group.

use std::time::Duration;

use lcl_torch::{
    Device, Kind, Learner, Tensor,
    collectives::{Group, GroupError},
};

use super::tally::Tally;
use crate::{
    fail_point::{self, Place},
    training::{TrainError, prepare::Progress},
};

/// Of a single tensor.
const TIMEOUT: Duration = Duration::from_mins(5);
/// What kind of tensor travels: the numbers before the state, its tensors, its hash, the newest lines of the ledger.
const NUMBERS_TAG: u16 = 1;
const STATE_TAG: u16 = 2;
const HASH_TAG: u16 = 3;
const LINES_TAG: u16 = 4;
/// BLAKE3 as hexadecimal.
const HASH_LENGTH: i64 = 64;

/// The state did not arrive.
pub(super) enum TransferError {
    /// The group failed; what was held before is still held.
    Group(GroupError),
    /// The process cannot go on.
    State(TrainError),
}

impl From<GroupError> for TransferError {
    fn from(error: GroupError) -> Self {
        Self::Group(error)
    }
}

impl<E: Into<TrainError>> From<(E,)> for TransferError {
    fn from((error,): (E,)) -> Self {
        Self::State(error.into())
    }
}

/// Sends the state and the ledger's lines to each of `to`, one after the other.
pub(super) fn send(group: &mut Group, learner: &Learner, progress: Progress, tally: &Tally, to: &[u32]) -> Result<(), TransferError> {
    if to.is_empty() {
        return Ok(());
    }
    let lines = tally.to_bytes();
    let (skips, warmup) = (u64::from(progress.consecutive_skips), learner.warmup_steps());
    let numbers = [progress.completed_steps, learner.completed_updates(), skips, lines.len() as u64, warmup].map(|number| number as i64);
    let lines = Tensor::from_slice(&lines);
    let hash = learner.state_hash().map_err(|error| (error,))?;
    let bytes = Tensor::from_slice(hash.as_bytes());
    let state = learner.state();
    for receiver in to {
        let receiver = *receiver as usize;
        group.send(&Tensor::from_slice(&numbers), receiver, NUMBERS_TAG, TIMEOUT)?;
        for (index, (_, tensor)) in state.iter().enumerate() {
            fail_point::reach_part(Place::Send, index);
            group.send(&tensor.contiguous().to_device(Device::Cpu), receiver, STATE_TAG, TIMEOUT)?;
        }
        group.send(&bytes, receiver, HASH_TAG, TIMEOUT)?;
        group.send(&lines, receiver, LINES_TAG, TIMEOUT)?;
        tracing::info!(to = receiver, step = progress.completed_steps, hash, "state sent");
    }
    Ok(())
}

/// Takes from the system the memory that receiving a state needs, before anybody waits for it: the allocator keeps it.
pub(super) fn touch_memory(learner: &Learner) {
    let zeros = |(_, tensor): (String, Tensor)| Tensor::f_zeros(tensor.size(), (tensor.kind(), Device::Cpu)).ok();
    // Where there is not enough, only a transfer can say so: a member that begins alone needs none.
    drop(learner.state().into_iter().map(zeros).collect::<Vec<_>>());
}

/// Receives the state and the ledger's lines from rank `from`; gives how far the run is, and the warm-up that it goes on with. What the learner has is replaced only when all of the other has come and
/// its hash is right.
pub(super) fn receive(group: &mut Group, learner: &mut Learner, tally: &mut Tally, from: u32) -> Result<(Progress, u64), TransferError> {
    let from = from as usize;
    let mut numbers = Tensor::zeros([5], (Kind::Int64, Device::Cpu));
    group.receive(&mut numbers, from, NUMBERS_TAG, TIMEOUT)?;
    let mut received = Vec::new();
    for (index, (name, tensor)) in learner.state().into_iter().enumerate() {
        fail_point::reach_part(Place::Receive, index);
        let mut buffer = Tensor::empty(tensor.size(), (tensor.kind(), Device::Cpu));
        group.receive(&mut buffer, from, STATE_TAG, TIMEOUT)?;
        received.push((name, buffer));
    }
    let mut hash = Tensor::zeros([HASH_LENGTH], (Kind::Uint8, Device::Cpu));
    group.receive(&mut hash, from, HASH_TAG, TIMEOUT)?;
    let [step, updates, skips, length, warmup] = [0, 1, 2, 3, 4].map(|index| numbers.int64_value(&[index]).unsigned_abs());
    let mut lines = Tensor::zeros([length as i64], (Kind::Uint8, Device::Cpu));
    group.receive(&mut lines, from, LINES_TAG, TIMEOUT)?;
    let expected: String = (0..HASH_LENGTH).map(|index| char::from(hash.int64_value(&[index]) as u8)).collect();
    learner.replace_state(&received, updates, &expected).map_err(|error| (error,))?;
    let lines = Vec::<u8>::try_from(lines).map_err(|error| error.to_string());
    if let Err(error) = lines.and_then(|lines| tally.replace(&lines).map_err(|error| error.to_string())) {
        // The training is complete without them.
        tracing::warn!(from, error, "the ledger's newest lines cannot be read: should this member lead, they may be missing");
    }
    tracing::info!(from, step, hash = expected, "state received");
    Ok((Progress { completed_steps: step, consecutive_skips: u32::try_from(skips).unwrap_or(u32::MAX) }, warmup))
}
