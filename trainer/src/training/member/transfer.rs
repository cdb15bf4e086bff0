//! The state of a run from those who hold it to those who do not, along the trees of [`lcl_protocol::spread`].
//!
//! It travels in two halves, each in pieces that are passed on as they come, so that a chain of members takes hardly longer than one of
//! them. In which round which piece goes where [`Moves::round`] says. What belongs to a state beside its tensors goes along the trees of the
//! first half. How long all of that takes has no limit; a peer that gives or takes no piece for a while has one.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use lcl_protocol::{HALVES, Hop, Moves, spread};
use lcl_torch::{
    Device, Kind, Learner, LearnerError, TchError, Tensor,
    collectives::{Group, GroupError, Incoming, Outgoing},
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
/// What travels: the numbers before the state, its hash, the newest lines of the ledger, and the pieces of each half.
const NUMBERS_TAG: u16 = 1;
const HASH_TAG: u16 = 2;
const LINES_TAG: u16 = 3;
const STATE_TAGS: [u16; HALVES] = [4, 5];
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

/// Sends the state, or a half of it, as `moves` has it; with the first half go the ledger's lines.
pub(super) fn send(group: &mut Group, learner: &Learner, progress: Progress, tally: &Tally, moves: &Moves) -> Result<(), TransferError> {
    if !moves.sends() {
        return Ok(());
    }
    let [Hop { to, .. }, _] = &moves.halves;
    let lines = tally.to_bytes();
    send_to(group, &Tensor::f_from_slice(&Header::of(learner, progress, lines.len()).to_numbers())?, to, NUMBERS_TAG)?;
    let state = learner.state();
    let hashed = learner.state();
    let is_over = &AtomicBool::new(false);
    let hash = thread::scope(|scope| {
        // While the state is on its way; of one that does not arrive nobody waits for the rest.
        let hash = move || Learner::hash_state(hashed.iter().take_while(|_| !is_over.load(Ordering::Relaxed)));
        let hash = (!to.is_empty()).then(|| scope.spawn(hash));
        let sent = travel(group, &state, moves);
        is_over.store(sent.is_err(), Ordering::Relaxed);
        sent?;
        let found = hash.map(|hash| hash.join().map_err(|_| TransferError::State(TrainError::Panicked))?.map_err(TransferError::from));
        found.transpose()
    })?;
    if let Some(hash) = &hash {
        send_to(group, &Tensor::f_from_slice(hash.as_bytes())?, to, HASH_TAG)?;
        send_to(group, &Tensor::f_from_slice(&lines)?, to, LINES_TAG)?;
    }
    tracing::info!(?moves, step = progress.completed_steps, hash, "state sent");
    Ok(())
}

/// Takes from the system the memory that receiving a state needs, before anybody waits for it: the allocator keeps it.
pub(super) fn touch_memory(learner: &Learner) {
    let zeros = |(_, tensor): (String, Tensor)| Tensor::f_zeros(tensor.size(), (tensor.kind(), Device::Cpu)).ok();
    // Where there is not enough, only a transfer can say so: a member that begins alone needs none.
    drop(learner.state().into_iter().map(zeros).collect::<Vec<_>>());
}

/// Receives the state and the ledger's lines as `moves` has it, and passes all of it on as it comes; gives how far the run is. What the
/// learner has is replaced only when all of the other has come and its hash is right.
pub(super) fn receive(group: &mut Group, learner: &mut Learner, tally: &mut Tally, moves: &Moves) -> Result<Header, TransferError> {
    let [first, _] = &moves.halves;
    let mut numbers = Tensor::f_zeros([5], (Kind::Int64, Device::Cpu))?;
    pass(group, &mut numbers, first, NUMBERS_TAG, PROMPT)?;
    let header = Header::of_numbers([0, 1, 2, 3, 4].map(|index| numbers.int64_value(&[index])));
    let mut received = Vec::new();
    for (name, tensor) in learner.state() {
        received.push((name, Tensor::f_empty(tensor.size(), (tensor.kind(), Device::Cpu))?));
    }
    travel(group, &received, moves)?;
    let mut hash = Tensor::f_zeros([HASH_LENGTH], (Kind::Uint8, Device::Cpu))?;
    pass(group, &mut hash, first, HASH_TAG, HASHED)?;
    let mut lines = Tensor::f_zeros([header.lines as i64], (Kind::Uint8, Device::Cpu))?;
    pass(group, &mut lines, first, LINES_TAG, PROMPT)?;
    let expected: String = (0..HASH_LENGTH).map(|index| char::from(hash.int64_value(&[index]) as u8)).collect();
    learner.replace_state(&received, header.updates, &expected)?;
    let lines = Vec::<u8>::try_from(lines).map_err(|error| error.to_string());
    if let Err(error) = lines.and_then(|lines| tally.replace(&lines).map_err(|error| error.to_string())) {
        // The training is complete without them.
        tracing::warn!(error, "the ledger's newest lines cannot be read: should this member lead, they may be missing");
    }
    tracing::info!(?moves, step = header.progress.completed_steps, hash = expected, "state received");
    Ok(header)
}

/// Receives something small, within `timeout`, and sends it on.
fn pass(group: &mut Group, tensor: &mut Tensor, hop: &Hop, tag: u16, timeout: Duration) -> Result<(), GroupError> {
    if let Some(from) = hop.from {
        group.relay(&mut [Incoming { tensor: &mut *tensor, from: from as usize, tag }], &[], timeout)?;
    }
    send_to(group, tensor, &hop.to, tag)
}

fn send_to(group: &mut Group, tensor: &Tensor, to: &[u32], tag: u16) -> Result<(), GroupError> {
    let outgoing: Vec<_> = to.iter().map(|to| Outgoing { tensor, to: *to as usize, tag }).collect();
    group.relay(&mut [], &outgoing, PROMPT)
}

/// A part of a tensor's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    /// The tensor's place in the state.
    tensor: usize,
    begin: i64,
    length: i64,
}

/// The pieces of each half of a state whose tensors have so many bytes: each goes to the half that has less. The same on all members.
fn halve(tensors: impl IntoIterator<Item = i64>) -> [Vec<Piece>; HALVES] {
    let (mut halves, mut sizes) = ([const { Vec::new() }; HALVES], [0; HALVES]);
    for (tensor, bytes) in tensors.into_iter().enumerate() {
        for begin in (0..bytes).step_by(PIECE as usize) {
            let piece = Piece { tensor, begin, length: PIECE.min(bytes - begin) };
            let smaller = halves.iter_mut().zip(&mut sizes).min_by_key(|(_, size)| **size);
            if let Some((half, size)) = smaller {
                half.push(piece);
                *size += piece.length;
            }
        }
    }
    halves
}

/// A state's tensors as the bytes that travel. A copy of one that is on a GPU is kept until its last piece was asked for.
struct Bytes<'a> {
    state: &'a [(String, Tensor)],
    copied: BTreeMap<usize, Tensor>,
    /// How often pieces of each tensor are still to be asked for.
    uses: Vec<usize>,
}

impl<'a> Bytes<'a> {
    fn new(state: &'a [(String, Tensor)], halves: &[Vec<Piece>; HALVES], moves: &Moves) -> Self {
        let mut uses = vec![0; state.len()];
        for (hop, pieces) in moves.halves.iter().zip(halves) {
            for piece in pieces {
                if let Some(uses) = uses.get_mut(piece.tensor) {
                    *uses += usize::from(hop.from.is_some()) + usize::from(!hop.to.is_empty());
                }
            }
        }
        Self { state, copied: BTreeMap::new(), uses }
    }

    /// `[piece.length]` bytes. They share the memory of a tensor that is contiguous and in host memory.
    fn piece(&mut self, piece: Piece) -> Result<Tensor, TchError> {
        let bytes = match (self.copied.remove(&piece.tensor), self.state.get(piece.tensor)) {
            (Some(bytes), _) => bytes,
            (None, Some((_, tensor))) => tensor.f_contiguous()?.f_to_device(Device::Cpu)?.f_view([-1])?.f_view_dtype(Kind::Uint8)?,
            (None, None) => Tensor::f_empty([0], (Kind::Uint8, Device::Cpu))?,
        };
        let part = bytes.f_narrow(0, piece.begin, piece.length);
        if let Some(uses) = self.uses.get_mut(piece.tensor) {
            *uses = uses.saturating_sub(1);
            if *uses > 0 {
                self.copied.insert(piece.tensor, bytes);
            }
        }
        part
    }
}

/// Sends or fills `state`, piece by piece, in the rounds that `moves` says.
fn travel(group: &mut Group, state: &[(String, Tensor)], moves: &Moves) -> Result<(), TransferError> {
    let place = if moves.receives() { Place::Receive } else { Place::Send };
    let halves = halve(state.iter().map(|(_, tensor)| (tensor.numel() * tensor.kind().elt_size_in_bytes()) as i64));
    let counts = halves.each_ref().map(Vec::len);
    let (mut bytes, mut reached) = (Bytes::new(state, &halves, moves), 0);
    for round in 0..moves.rounds(counts) {
        let (mut arriving, mut leaving) = (Vec::new(), Vec::new());
        for (((own, hop), pieces), tag) in moves.round(round, counts).into_iter().zip(&moves.halves).zip(&halves).zip(STATE_TAGS) {
            let piece = |number: Option<usize>| number.and_then(|number| pieces.get(number)).copied();
            if let (Some(piece), Some(from)) = (piece(own.incoming), hop.from) {
                arriving.push((bytes.piece(piece)?, from as usize, tag));
            }
            if let Some(piece) = piece(own.outgoing) {
                leaving.push((bytes.piece(piece)?, hop, tag));
            }
            while piece(own.incoming.or(own.outgoing)).is_some_and(|piece| piece.tensor >= reached) {
                fail_point::reach_part(place, reached);
                reached += 1;
            }
        }
        let mut incoming: Vec<_> = arriving.iter_mut().map(|(tensor, from, tag)| Incoming { tensor, from: *from, tag: *tag }).collect();
        let outgoing = leaving.iter().flat_map(|(tensor, hop, tag)| hop.to.iter().map(move |to| (tensor, *to as usize, *tag)));
        let outgoing: Vec<_> = outgoing.map(|(tensor, to, tag)| Outgoing { tensor, to, tag }).collect();
        group.relay(&mut incoming, &outgoing, PROMPT)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_halves_of_a_state_are_all_of_it_and_alike_in_size() {
        // As a transformer's: matrices of one piece or four, and what belongs to each row.
        let layer = [PIECE, 4096, 4 * PIECE, 16384, 4 * PIECE + 4, 4096, 4, 4096];
        let tensors: Vec<i64> = (0..24).flat_map(|_| layer).collect();
        let halves = halve(tensors.iter().copied());
        let sizes = halves.each_ref().map(|half| half.iter().map(|piece| piece.length).sum::<i64>());
        assert!((sizes[0] - sizes[1]).abs() <= PIECE, "{sizes:?}");
        let mut all: Vec<_> = halves.concat().iter().map(|piece| (piece.tensor, piece.begin, piece.length)).collect();
        all.sort_unstable();
        let mut expected = Vec::new();
        for (tensor, bytes) in tensors.iter().enumerate() {
            let whole = (0..bytes / PIECE).map(|piece| (tensor, piece * PIECE, PIECE));
            expected.extend(whole.chain((bytes % PIECE > 0).then_some((tensor, bytes - bytes % PIECE, bytes % PIECE))));
        }
        assert_eq!(all, expected);
        assert!(halves.iter().all(|half| half.is_sorted_by_key(|piece| piece.tensor)), "in the order of the state");
        assert_eq!(halve([]), [[], []]);
    }

    #[test]
    fn a_piece_is_the_memory_of_its_tensor_and_a_copy_is_kept_until_its_last() {
        let state = [1, PIECE / 2 + 1].map(|length| (String::new(), Tensor::zeros([length], (Kind::Float, Device::Cpu))));
        let halves = halve([4, 2 * PIECE + 4]);
        let mut bytes = Bytes::new(&state, &halves, &Moves::alike(Some(0), &[1]));
        for piece in halves.concat() {
            let _ = bytes.piece(piece).unwrap().fill_(1);
        }
        for (_, tensor) in &state {
            assert!(tensor.double_value(&[tensor.numel() as i64 - 1]) != 0.0, "they share it");
        }
        assert_eq!(bytes.copied.len(), 2, "each goes on, too");
        for piece in halves.concat() {
            assert_eq!(bytes.piece(piece).unwrap().size(), [piece.length]);
        }
        assert_eq!(bytes.copied.len(), 0);
        let number = [(String::new(), Tensor::zeros([], (Kind::Float, Device::Cpu)))];
        let mut bytes = Bytes::new(&number, &halve([4]), &Moves::alike(None, &[1]));
        assert_eq!(bytes.piece(Piece { tensor: 0, begin: 0, length: 4 }).unwrap().size(), [4], "a number is a tensor, too");
    }
}
