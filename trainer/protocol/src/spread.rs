//! How a state gets from the ranks that hold it to those that do not: who sends what to whom, and when. Pure.
//!
//! A state travels in two halves, each along trees of its own, in which whoever passes the one half on only takes the other: so nobody sends
//! more than one state, and all of a network's links are used in both directions.

/// Halves that a state travels in.
pub const HALVES: usize = 2;

/// What a rank does while a state spreads; nothing, if it has it and nobody gets it from there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// With each half.
    pub halves: [Hop; HALVES],
}

/// What a rank does with one half of a state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hop {
    /// The rank that it comes from; none for a rank that has it.
    pub from: Option<u32>,
    /// Ranks that it is sent to, piece by piece as it comes; two at most.
    pub to: Vec<u32>,
    /// Ranks that it has passed on its way, with the first and without this one.
    pub depth: u32,
}

/// What a rank does in one round: the numbers of the pieces, from 0, of each half.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// It comes from [`Hop::from`].
    pub incoming: Option<usize>,
    /// It goes to all of [`Hop::to`].
    pub outgoing: Option<usize>,
}

impl Moves {
    /// Both halves the same way; from another rank at depth 1.
    #[must_use]
    pub fn alike(from: Option<u32>, to: &[u32]) -> Self {
        let hop = Hop { from, to: to.to_vec(), depth: u32::from(from.is_some()) };
        Self { halves: [hop.clone(), hop] }
    }

    /// Whether the state comes from elsewhere.
    #[must_use]
    pub fn receives(&self) -> bool {
        self.halves.iter().any(|hop| hop.from.is_some())
    }

    /// Whether any of it goes elsewhere.
    #[must_use]
    pub fn sends(&self) -> bool {
        self.halves.iter().any(|hop| !hop.to.is_empty())
    }

    /// Rounds that this rank takes part in, when the halves have so many pieces.
    #[must_use]
    pub fn rounds(&self, pieces: [usize; HALVES]) -> usize {
        let rounds = |(hop, pieces): (&Hop, usize)| match (hop.from, hop.to.is_empty()) {
            (None, true) => 0,
            (Some(_), true) => (pieces + hop.depth as usize).saturating_sub(1),
            (_, false) => pieces + hop.depth as usize,
        };
        self.halves.iter().zip(pieces).map(rounds).max().unwrap_or(0)
    }

    /// What this rank does in a round, with each half.
    ///
    /// A piece with the number i goes from depth d in round i + d, everywhere. So who sends and who receives it are in the same round, what
    /// goes on in a round came in one before, and nobody can wait for whoever waits for it, although a rank that passes one half on to
    /// another may get the other half from there.
    #[must_use]
    pub fn round(&self, round: usize, pieces: [usize; HALVES]) -> [Round; HALVES] {
        let mut rounds = [Round::default(); HALVES];
        for ((hop, pieces), own) in self.halves.iter().zip(pieces).zip(&mut rounds) {
            let depth = hop.depth as usize;
            let piece = |number: Option<usize>| number.filter(|number| *number < pieces);
            own.incoming = hop.from.and_then(|_| piece((round + 1).checked_sub(depth)));
            own.outgoing = (!hop.to.is_empty()).then(|| piece(round.checked_sub(depth))).flatten();
        }
        rounds
    }
}

/// How a state gets to all ranks that do not have it; one entry per rank. Empty moves when nobody has it.
///
/// Receivers next to each other share a source for each half, and sources lie as far apart as can be, since ranks are in the order of nodes.
/// With its source they make a binary tree of each half, in the order of ranks, so that most of a chain stays within a node. Of the one half
/// every second rank passes nothing on, of the other half those between them: so nobody sends more than two halves, which is one state, and
/// the longest chain grows with the logarithm. With at least as many sources as receivers each has one of its own, with twice as many two.
#[must_use]
pub fn spread(has: &[bool]) -> Vec<Moves> {
    let ranks = |which: bool| (0_u32..).zip(has).filter(move |(_, has)| **has == which).map(|(rank, _)| rank).collect::<Vec<u32>>();
    let (sources, receivers) = (ranks(true), ranks(false));
    let mut moves = vec![Moves::default(); has.len()];
    let used = sources.len().min(receivers.len());
    for block in 0..used {
        // All products stay below twice the square of the number of members.
        let (begin, end) = (block * receivers.len() / used, (block + 1) * receivers.len() / used);
        let mut ring = receivers.get(begin..end).map(<[u32]>::to_vec).unwrap_or_default();
        for half in 0..HALVES {
            if let Some(source) = sources.get((HALVES * block + half) * sources.len() / (HALVES * used)) {
                plant(*source, (0, half), (1, &ring), &mut moves);
            }
            // Never empty: there are no more blocks than receivers.
            ring.rotate_left(1);
        }
    }
    moves
}

/// Makes `root`, which is at `depth`, the source of a half for `ring`, whose first is at place `first` of a tree in order: the places with
/// the most twos in them are its upper levels, and those without any its leaves.
fn plant(root: u32, (depth, half): (u32, usize), (first, ring): (usize, &[u32]), moves: &mut [Moves]) {
    let last = (first + ring.len()).saturating_sub(1);
    let mut middle = last;
    while middle & middle.wrapping_sub(1) >= first {
        middle &= middle.wrapping_sub(1);
    }
    let (before, rest) = ring.split_at(middle.saturating_sub(first).min(ring.len()));
    let Some((head, after)) = rest.split_first() else { return };
    let mut hop = |rank: u32, change: &dyn Fn(&mut Hop)| {
        if let Some(hop) = moves.get_mut(rank as usize).and_then(|moves| moves.halves.get_mut(half)) {
            change(hop);
        }
    };
    hop(root, &|hop| hop.to.push(*head));
    hop(*head, &|hop| (hop.from, hop.depth) = (Some(root), depth + 1));
    plant(*head, (depth + 1, half), (first, before), moves);
    plant(*head, (depth + 1, half), (middle + 1, after), moves);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The most halves that a rank sends, and the most ranks that one passes on its way, over all who do not have it.
    fn load_and_chain(has: &[bool]) -> (usize, usize) {
        let moves = spread(has);
        assert_eq!(moves.len(), has.len());
        let is_anybody = has.contains(&true);
        let mut longest = 0;
        for half in 0..HALVES {
            for (rank, has) in has.iter().enumerate() {
                let hop = &moves[rank].halves[half];
                assert_eq!(hop.from.is_none(), *has || !is_anybody, "rank {rank} gets it if it lacks it");
                assert!(hop.to.iter().all(|to| moves[*to as usize].halves[half].from == Some(rank as u32)), "both ends say the same");
                let (mut at, mut chain) = (rank as u32, 0);
                while let Some(from) = moves[at as usize].halves[half].from {
                    assert!(moves[from as usize].halves[half].to.contains(&at), "both ends say the same");
                    (at, chain) = (from, chain + 1);
                    assert!(chain < moves.len(), "rank {rank} waits for itself");
                }
                assert_eq!(hop.depth as usize, chain);
                longest = longest.max(chain);
            }
        }
        (moves.iter().map(|moves| moves.halves.iter().map(|hop| hop.to.len()).sum()).max().unwrap_or(0), longest)
    }

    fn those(members: usize, sources: usize, first: usize) -> Vec<bool> {
        (0..members).map(|rank| (first..first + sources).contains(&rank)).collect()
    }

    #[test]
    fn a_state_gets_to_everybody_over_chains_that_grow_with_the_logarithm_and_nobody_sends_more_than_one() {
        for members in (1_usize..=70).chain([512, 513, 4096]) {
            for sources in [1, 2, 3, members / 2, members - 1, members] {
                let sources = sources.clamp(1, members);
                for first in [0, members - sources, (members - sources) / 2] {
                    let (halves, chain) = load_and_chain(&those(members, sources, first));
                    let logarithm = members.next_power_of_two().ilog2() as usize;
                    assert!(
                        halves <= HALVES && chain <= logarithm,
                        "{members} members, {sources} sources: {halves} halves, chain of {chain}"
                    );
                    let receivers = members - sources;
                    assert!(receivers > sources || chain <= 1, "{members} members, {sources} sources: each has its own");
                    assert!(2 * receivers > sources || halves <= 1, "{members} members, {sources} sources: each has two of its own");
                }
            }
        }
        assert_eq!(load_and_chain(&[false; 5]), (0, 0), "nobody has it");
        assert_eq!(load_and_chain(&[]), (0, 0));
    }

    #[test]
    fn a_lost_node_gets_the_state_from_all_other_nodes_that_it_can() {
        let has: Vec<bool> = (0..512).map(|rank| !(104..112).contains(&rank)).collect();
        let moves = spread(&has);
        let halves = moves[104..112].iter().flat_map(|moves| &moves.halves);
        let nodes: std::collections::BTreeSet<u32> = halves.filter_map(|hop| hop.from).map(|from| from / 8).collect();
        assert_eq!(nodes.len(), 16, "{nodes:?}");
    }

    /// Plays the rounds of all ranks, where each waits in a round for all of its partners in it; gives the pieces that each rank has got.
    fn play(moves: &[Moves], pieces: [usize; HALVES]) -> Vec<[Vec<usize>; HALVES]> {
        let mut got: Vec<[Vec<usize>; HALVES]> = vec![Default::default(); moves.len()];
        let mut at = vec![0; moves.len()];
        loop {
            let round = |rank: u32| moves[rank as usize].round(at[rank as usize], pieces);
            // Who waits for a partner that is in another round, or says otherwise, stays where it is.
            let is_ready = |rank: usize| {
                (0..HALVES).all(|half| {
                    let (own, hop) = (round(rank as u32)[half], &moves[rank].halves[half]);
                    let given = own.incoming.is_none_or(|piece| round(hop.from.unwrap())[half].outgoing == Some(piece));
                    given && own.outgoing.is_none_or(|piece| hop.to.iter().all(|to| round(*to)[half].incoming == Some(piece)))
                })
            };
            let ready: Vec<usize> = (0..moves.len()).filter(|rank| at[*rank] < moves[*rank].rounds(pieces) && is_ready(*rank)).collect();
            if ready.is_empty() {
                break;
            }
            let now: Vec<_> = ready.iter().map(|rank| (*rank, round(*rank as u32))).collect();
            for (rank, own) in now {
                at[rank] += 1;
                for (half, own) in own.iter().enumerate() {
                    if moves[rank].halves[half].from.is_some() {
                        assert!(own.outgoing.is_none_or(|piece| got[rank][half].contains(&piece)), "rank {rank} sends what it has not got");
                    }
                    got[rank][half].extend(own.incoming);
                }
            }
        }
        for (rank, moves) in moves.iter().enumerate() {
            assert_eq!(at[rank], moves.rounds(pieces), "rank {rank} waits for ever");
        }
        got
    }

    #[test]
    fn rounds_bring_every_piece_of_both_halves_in_its_order_and_nobody_waits_for_ever() {
        for (members, sources, pieces) in
            [(2, 1, [3, 3]), (9, 1, [5, 4]), (23, 1, [1, 0]), (40, 3, [4, 5]), (12, 8, [3, 2]), (6, 0, [2, 2])]
        {
            let has = those(members, sources, members / 3);
            for (rank, got) in play(&spread(&has), pieces).iter().enumerate() {
                let expected = |half: usize| if has[rank] || sources == 0 { Vec::new() } else { (0..pieces[half]).collect::<Vec<_>>() };
                assert_eq!(*got, [expected(0), expected(1)], "rank {rank} of {members}, {sources} sources");
            }
        }
    }

    #[test]
    fn who_passes_one_half_on_takes_the_other() {
        let moves = spread(&those(6, 1, 0));
        let hop = |from: u32, to: &[u32], depth| Hop { from: Some(from), to: to.to_vec(), depth };
        let source = |to: u32| Hop { from: None, to: vec![to], depth: 0 };
        let expected = [
            [source(4), source(5)],
            [hop(2, &[], 3), hop(5, &[], 2)],
            [hop(4, &[1, 3], 2), hop(3, &[], 3)],
            [hop(2, &[], 3), hop(5, &[2, 4], 2)],
            [hop(0, &[2, 5], 1), hop(3, &[], 3)],
            [hop(4, &[], 2), hop(0, &[3, 1], 1)],
        ];
        assert_eq!(moves.into_iter().map(|moves| moves.halves).collect::<Vec<_>>(), expected);
    }
}
