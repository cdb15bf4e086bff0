//! The state of a run from those who hold it to those who do not, along the trees of [`lcl_protocol::spread`].
//!
//! It travels in pieces that are passed on as they come, so that a chain of members takes hardly longer than one of them. How long that
//! takes has no limit; a peer that gives or takes no piece for a while has one.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use lcl_protocol::{Moves, spread};
use lcl_torch::{
    Device, Kind, Learner, LearnerError, TchError, Tensor,
    collectives::{Group, GroupError},
};

use crate::{
    processes::fail_point::{self, Place},
    training::{TrainError, prepare::Progress, tally::Tally},
};

/// Longest wait for a piece, of a peer that has nothing else to do. The slowest networks that anybody trains over bring one within seconds.
const PROMPT: Duration = Duration::from_secs(30);
/// For the hash, which the source finds while it sends: what is left of that then takes less than sending did.
const HASHED: Duration = Duration::from_mins(5);
/// Of a peer that works for itself first: reads a checkpoint, hashes. The coordinator sees whether it gets on, and an end of the generation
/// ends every wait, so this is only what never comes to pass.
const OPEN_ENDED: Duration = Duration::from_hours(24);
/// Bytes of a piece: its own time on a fast network is many times what it takes to begin one, and the last of ten members in a chain has the
/// first piece when a hundredth of a large state is on its way.
const PIECE: i64 = 4 << 20;
/// What travels: the numbers before the state, its pieces, its hash, the newest lines of the ledger.
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

impl From<TrainError> for TransferError {
    fn from(error: TrainError) -> Self {
        Self::State(error)
    }
}

impl From<LearnerError> for TransferError {
    fn from(error: LearnerError) -> Self {
        Self::State(error.into())
    }
}

impl From<TchError> for TransferError {
    fn from(error: TchError) -> Self {
        Self::State(TrainError::Transfer { source: error })
    }
}

/// How far a state is, beside its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) progress: Progress,
    pub(super) warmup: u64,
    updates: u64,
    /// Bytes of the ledger's lines behind it.
    lines: u64,
}

impl Header {
    fn of(learner: &Learner, progress: Progress, lines: usize) -> Self {
        Self { progress, warmup: learner.warmup_steps(), updates: learner.completed_updates(), lines: lines as u64 }
    }

    fn to_numbers(self) -> [i64; 5] {
        let Self { progress, warmup, updates, lines } = self;
        [progress.completed_steps, updates, progress.consecutive_skips.into(), lines, warmup].map(|number| number as i64)
    }

    fn of_numbers(numbers: [i64; 5]) -> Self {
        let [completed_steps, updates, skips, lines, warmup] = numbers.map(i64::unsigned_abs);
        let progress = Progress { completed_steps, consecutive_skips: u32::try_from(skips).unwrap_or(u32::MAX) };
        Self { progress, warmup, updates, lines }
    }
}

/// All members say what they have, rank 0 what they begin with: it has read the last checkpoint, or there is none, and all have drawn the
/// same parameters. Gives how far that is, what this member has to do so that all have it, and how many get it.
pub(super) fn compare(group: &mut Group, learner: &Learner, hash: &str, progress: Progress) -> Result<(Header, Moves, usize), GroupError> {
    let words = hash.as_bytes().as_chunks::<8>().0.iter().map(|word| i64::from_le_bytes(*word));
    let own = words.chain(Header::of(learner, progress, 0).to_numbers()).collect::<Vec<_>>();
    let all = group.exchange(&own, OPEN_ENDED)?;
    let Some(first) = all.first() else { return Ok((Header::of(learner, progress, 0), Moves::default(), 0)) };
    let header = Header::of_numbers(first.last_chunk().copied().unwrap_or_default());
    // Of the numbers only the updates are part of the state: the rest is taken over.
    let state = |row: &[i64]| (row.get(..8).map(<[i64]>::to_vec), row.last_chunk().map(|numbers| Header::of_numbers(*numbers).updates));
    let has: Vec<bool> = all.iter().map(|row| state(row) == state(first)).collect();
    let moves = spread(&has).into_iter().nth(group.rank()).unwrap_or_default();
    Ok((header, moves, has.iter().filter(|has| !**has).count()))
}

/// Sends the state and the ledger's lines to the members of `to`.
pub(super) fn send(group: &mut Group, learner: &Learner, progress: Progress, tally: &Tally, to: &[u32]) -> Result<(), TransferError> {
    if to.is_empty() {
        return Ok(());
    }
    let to: Vec<usize> = to.iter().map(|rank| *rank as usize).collect();
    let lines = tally.to_bytes();
    let numbers = Tensor::f_from_slice(&Header::of(learner, progress, lines.len()).to_numbers())?;
    group.relay(None, Some((&numbers, &to)), NUMBERS_TAG, PROMPT)?;
    let state = learner.state();
    let hashed = learner.state();
    let is_over = &AtomicBool::new(false);
    let hash = thread::scope(|scope| {
        // While the state is on its way; of one that does not arrive nobody waits for the rest.
        let hash = scope.spawn(move || Learner::hash_state(hashed.iter().take_while(|_| !is_over.load(Ordering::Relaxed))));
        let sent = send_pieces(group, &state, &to);
        is_over.store(sent.is_err(), Ordering::Relaxed);
        sent?;
        hash.join().map_err(|_| TransferError::State(TrainError::Panicked))?.map_err(TransferError::from)
    })?;
    group.relay(None, Some((&Tensor::f_from_slice(hash.as_bytes())?, &to)), HASH_TAG, PROMPT)?;
    group.relay(None, Some((&Tensor::f_from_slice(&lines)?, &to)), LINES_TAG, PROMPT)?;
    tracing::info!(?to, step = progress.completed_steps, hash, "state sent");
    Ok(())
}

fn send_pieces(group: &mut Group, state: &[(String, Tensor)], to: &[usize]) -> Result<(), TransferError> {
    for (index, (_, tensor)) in state.iter().enumerate() {
        fail_point::reach_part(Place::Send, index);
        let tensor = tensor.f_contiguous()?.f_to_device(Device::Cpu)?;
        for piece in pieces(&tensor)? {
            group.relay(None, Some((&piece, to)), STATE_TAG, PROMPT)?;
        }
    }
    Ok(())
}

/// Takes from the system the memory that receiving a state needs, before anybody waits for it: the allocator keeps it.
pub(super) fn touch_memory(learner: &Learner) {
    let zeros = |(_, tensor): (String, Tensor)| Tensor::f_zeros(tensor.size(), (tensor.kind(), Device::Cpu)).ok();
    // Where there is not enough, only a transfer can say so: a member that begins alone needs none.
    drop(learner.state().into_iter().map(zeros).collect::<Vec<_>>());
}

/// Receives the state and the ledger's lines from rank `from`, and passes all of it on to the members of `to` as it comes; gives how far
/// the run is. What the learner has is replaced only when all of the other has come and its hash is right.
pub(super) fn receive(group: &mut Group, learner: &mut Learner, tally: &mut Tally, from: u32, to: &[u32]) -> Result<Header, TransferError> {
    let (from, to) = (from as usize, to.iter().map(|rank| *rank as usize).collect::<Vec<_>>());
    let mut numbers = Tensor::f_zeros([5], (Kind::Int64, Device::Cpu))?;
    pass(group, (&mut numbers, from), &to, NUMBERS_TAG, PROMPT)?;
    let header = Header::of_numbers([0, 1, 2, 3, 4].map(|index| numbers.int64_value(&[index])));
    let (mut received, mut parts) = (Vec::new(), Vec::new());
    for (index, (name, tensor)) in learner.state().into_iter().enumerate() {
        let buffer = Tensor::f_empty(tensor.size(), (tensor.kind(), Device::Cpu))?;
        parts.extend(pieces(&buffer)?.into_iter().map(|piece| (index, piece)));
        received.push((name, buffer));
    }
    // A piece goes on while the next one comes.
    let (mut before, mut tensor) = (None, None);
    for (index, mut piece) in parts {
        if tensor.replace(index) != Some(index) {
            fail_point::reach_part(Place::Receive, index);
        }
        let outgoing = before.as_ref().map(|piece| (piece, to.as_slice()));
        group.relay(Some((&mut piece, from)), outgoing, STATE_TAG, PROMPT)?;
        before = Some(piece);
    }
    group.relay(None, before.as_ref().map(|piece| (piece, to.as_slice())), STATE_TAG, PROMPT)?;
    let mut hash = Tensor::f_zeros([HASH_LENGTH], (Kind::Uint8, Device::Cpu))?;
    pass(group, (&mut hash, from), &to, HASH_TAG, HASHED)?;
    let mut lines = Tensor::f_zeros([header.lines as i64], (Kind::Uint8, Device::Cpu))?;
    pass(group, (&mut lines, from), &to, LINES_TAG, PROMPT)?;
    let expected: String = (0..HASH_LENGTH).map(|index| char::from(hash.int64_value(&[index]) as u8)).collect();
    learner.replace_state(&received, header.updates, &expected)?;
    let lines = Vec::<u8>::try_from(lines).map_err(|error| error.to_string());
    if let Err(error) = lines.and_then(|lines| tally.replace(&lines).map_err(|error| error.to_string())) {
        // The training is complete without them.
        tracing::warn!(from, error, "the ledger's newest lines cannot be read: should this member lead, they may be missing");
    }
    tracing::info!(from, ?to, step = header.progress.completed_steps, hash = expected, "state received");
    Ok(header)
}

/// Receives something small from a rank within `timeout`, and sends it on.
fn pass(group: &mut Group, (tensor, from): (&mut Tensor, usize), to: &[usize], tag: u16, timeout: Duration) -> Result<(), GroupError> {
    group.relay(Some((&mut *tensor, from)), None, tag, timeout)?;
    group.relay(None, Some((&*tensor, to)), tag, PROMPT)
}

/// A tensor's memory, `[at most PIECE]` bytes at a time. It is contiguous and in host memory.
fn pieces(tensor: &Tensor) -> Result<Vec<Tensor>, TchError> {
    let bytes = tensor.f_view([-1])?.f_view_dtype(Kind::Uint8)?;
    let length = bytes.numel() as i64;
    (0..length).step_by(PIECE as usize).map(|begin| bytes.f_narrow(0, begin, PIECE.min(length - begin))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pieces_of_a_tensor_are_its_memory() {
        for (length, expected) in [(1, vec![4]), (PIECE / 4, vec![PIECE]), (PIECE / 2 + 1, vec![PIECE, PIECE, 4])] {
            let tensor = Tensor::zeros([length], (Kind::Float, Device::Cpu));
            let mut pieces = pieces(&tensor).unwrap();
            assert_eq!(pieces.iter().map(|piece| piece.numel() as i64).collect::<Vec<_>>(), expected);
            let _ = pieces.last_mut().unwrap().fill_(1);
            assert!(tensor.double_value(&[length - 1]) != 0.0, "they share it");
        }
        assert_eq!(pieces(&Tensor::zeros([], (Kind::Float, Device::Cpu))).unwrap().len(), 1, "a number is a tensor, too");
    }
}
