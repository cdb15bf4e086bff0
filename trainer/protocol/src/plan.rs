//! What a generation means for one member, and how the roles are dealt out. Pure.

use crate::{Division, Generation, Identity, MemberName, StateLabel};

/// Losses that a plan names: with all of them, the loss of a rack would be told thousands of members name by name.
pub(crate) const NAMED_LOSSES: usize = 8;

/// What a member has to know of its generation. Its size does not grow with the number of members: the addresses of the others travel
/// through the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The generation.
    pub generation: Generation,
    /// This member's rank.
    pub rank: u32,
    /// Number of members.
    pub world: u32,
    /// How the slots of the global batch are divided; the same on all members. Where the job asks for the same bits whatever happens, whole
    /// shards are divided by rank instead, and this says nothing.
    pub division: Division,
    /// This member's seat in it, which it keeps from generation to generation. All are seated anew, in the order of their seats, when there
    /// are more members than seats, when more than a quarter of the seats is empty, or when these lie in more than 64 places.
    pub seat: u32,
    /// Digest of the list of members in rank order with their seats; the same on all of them.
    pub list_digest: u64,
    /// The state from which the generation goes on. `None`: no live member holds any, so rank 0 reads the last complete checkpoint
    /// (or initialises, when there is none) and all others begin with what it has.
    pub base: Option<StateLabel>,
    /// What this member does to bring itself or others there.
    pub role: Role,
    /// The first eight members that were lost since the generation before.
    pub lost: Vec<Loss>,
    /// How many more were. The coordinator's status and log name them all.
    pub further_losses: u32,
}

/// What a member does before the first step of a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Holds the base and has nobody to send it to.
    Level,
    /// Holds the base and sends it to these ranks.
    Send {
        /// Receivers' ranks; two at most.
        to: Vec<u32>,
    },
    /// Is behind (or new): receives the base, and keeps its old state until the received one is verified.
    Receive {
        /// The rank that it comes from.
        from: u32,
        /// Ranks that it is passed on to while it comes; two at most.
        to: Vec<u32>,
    },
    /// Reads the last complete checkpoint, or has the initial state when there is none. What it has then the others follow.
    Restore,
    /// Begins with the state of rank 0, which restores. Members compare what they have, since all draw the same initial state, and
    /// [`spread`] says how those who have another get it.
    Follow,
}

/// What a rank does while a state spreads; nothing, if it has it and nobody gets it from there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// The rank that it receives the state from.
    pub from: Option<u32>,
    /// Ranks that it sends it to, piece by piece as they come.
    pub to: Vec<u32>,
}

/// How a state gets to all ranks that do not have it; one entry per rank. Empty moves when nobody has it.
///
/// Receivers next to each other share a source, and sources lie as far apart as can be, since ranks are in the order of nodes. With each
/// source they make a tree in which every rank sends to two others at most, in two halves of the ranks behind it: so the longest chain
/// grows with the logarithm, and most of it stays within a node. With at least as many sources as receivers each has its own.
#[must_use]
pub fn spread(has: &[bool]) -> Vec<Moves> {
    let ranks = |which: bool| (0_u32..).zip(has).filter(move |(_, has)| **has == which).map(|(rank, _)| rank).collect::<Vec<u32>>();
    let (sources, receivers) = (ranks(true), ranks(false));
    let mut moves = vec![Moves::default(); has.len()];
    let used = sources.len().min(receivers.len());
    for block in 0..used {
        // Both products stay below the square of the number of members.
        let part = |items: &[u32]| (block * items.len() / used, (block + 1) * items.len() / used);
        let (source, (begin, end)) = (sources.get(part(&sources).0), part(&receivers));
        if let (Some(source), Some(receivers)) = (source, receivers.get(begin..end)) {
            plant(*source, receivers, &mut moves);
        }
    }
    moves
}

/// Makes `root` the source of `receivers`: of the first of each half itself, and these of the rest.
fn plant(root: u32, receivers: &[u32], moves: &mut [Moves]) {
    let (first, second) = receivers.split_at(receivers.len().div_ceil(2));
    for half in [first, second] {
        let Some((head, rest)) = half.split_first() else { continue };
        if let Some(moves) = moves.get_mut(root as usize) {
            moves.to.push(*head);
        }
        if let Some(moves) = moves.get_mut(*head as usize) {
            moves.from = Some(root);
        }
        plant(*head, rest, moves);
    }
}

/// A member that left the group without being asked to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Who.
    pub member: MemberName,
    /// What was seen: "stream closed: …", "no heartbeat for 5s", ….
    pub reason: String,
}

/// Deals out the roles. `held` is what each rank holds; the answer has one role per rank, and the base.
pub(crate) fn assign_roles(held: &[Option<StateLabel>]) -> (Option<StateLabel>, Vec<Role>) {
    let Some(base) = held.iter().copied().max().flatten() else {
        return (None, (0..held.len()).map(|rank| if rank == 0 { Role::Restore } else { Role::Follow }).collect());
    };
    let has: Vec<bool> = held.iter().map(|label| *label == Some(base)).collect();
    let role = |moves: Moves| match moves {
        Moves { from: Some(from), to } => Role::Receive { from, to },
        Moves { from: None, to } if to.is_empty() => Role::Level,
        Moves { from: None, to } => Role::Send { to },
    };
    (Some(base), spread(&has).into_iter().map(role).collect())
}

/// FNV-1a (64 bit) over the number of seats, and names, incarnations and seats in rank order, each part ended by a byte that no name holds:
/// enough to see that two members were given different lists, and nothing that must withstand an attack.
pub(crate) fn digest_of<'a>(seats: u32, members: impl Iterator<Item = (&'a Identity, u32)>) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let mut digest = OFFSET;
    let mut feed = |bytes: &[u8]| {
        for byte in bytes.iter().chain(&[0xff]) {
            digest = (digest ^ u64::from(*byte)).wrapping_mul(PRIME);
        }
    };
    feed(&seats.to_le_bytes());
    for (member, seat) in members {
        feed(member.name.worker.as_bytes());
        feed(&member.name.index.to_le_bytes());
        feed(&member.incarnation.run.to_le_bytes());
        feed(&member.incarnation.start.to_le_bytes());
        feed(&seat.to_le_bytes());
    }
    digest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(step: u64, n: u64) -> StateLabel {
        StateLabel { step, generation: Generation { epoch: 1, n } }
    }

    /// The most that a rank sends, and the most ranks that a state passes on its way, over all who do not have it.
    fn load_and_chain(has: &[bool]) -> (usize, usize) {
        let moves = spread(has);
        assert_eq!(moves.len(), has.len());
        let mut sent = vec![0; has.len()];
        let mut longest = 0;
        for (rank, (own, has)) in moves.iter().zip(has).enumerate() {
            assert_eq!(own.from.is_none(), *has || !moves.iter().any(|moves| !moves.to.is_empty()), "rank {rank} gets it if it lacks it");
            for to in &own.to {
                assert_eq!(moves[*to as usize].from, Some(rank as u32), "both ends say the same");
            }
            sent[rank] = own.to.len();
            let (mut at, mut chain) = (rank, 0);
            while let Some(from) = moves[at].from {
                (at, chain) = (from as usize, chain + 1);
                assert!(moves[at].to.contains(&(rank as u32)) || chain > 1);
                assert!(chain < moves.len(), "rank {rank} waits for itself");
            }
            assert!(chain == 0 || has_it(at, &moves), "the chain begins with a rank that has it");
            longest = longest.max(chain);
        }
        assert_eq!(sent.iter().sum::<usize>(), moves.iter().filter(|moves| moves.from.is_some()).count());
        (sent.into_iter().max().unwrap_or(0), longest)
    }

    fn has_it(rank: usize, moves: &[Moves]) -> bool {
        moves[rank].from.is_none()
    }

    #[test]
    fn a_state_gets_to_everybody_over_chains_that_grow_with_the_logarithm_and_nobody_sends_it_more_than_twice() {
        for members in (1_usize..=70).chain([512, 513, 4096]) {
            for sources in [1, 2, 3, members / 2, members - 1, members] {
                let sources = sources.clamp(1, members);
                for first in [0, members - sources, (members - sources) / 2] {
                    let has: Vec<bool> = (0..members).map(|rank| (first..first + sources).contains(&rank)).collect();
                    let (load, chain) = load_and_chain(&has);
                    let logarithm = members.next_power_of_two().ilog2() as usize;
                    assert!(load <= 2 && chain <= logarithm + 1, "{members} members, {sources} sources: {load} sent, chain of {chain}");
                    let each_has_its_own = members - sources <= sources;
                    assert!(!each_has_its_own || (load <= 1 && chain <= 1), "{members} members, {sources} sources");
                }
            }
        }
        assert_eq!(load_and_chain(&[false; 5]), (0, 0), "nobody has it");
        assert_eq!(load_and_chain(&[]), (0, 0));
    }

    #[test]
    fn a_lost_node_gets_the_state_from_as_many_nodes_as_it_has_members() {
        let has: Vec<bool> = (0..512).map(|rank| !(104..112).contains(&rank)).collect();
        let nodes: std::collections::BTreeSet<u32> = spread(&has)[104..112].iter().map(|moves| moves.from.unwrap() / 8).collect();
        assert_eq!(nodes.len(), 8, "{nodes:?}");
    }

    #[test]
    fn without_any_state_rank_0_restores_and_the_others_follow() {
        assert_eq!(assign_roles(&[None, None, None]), (None, vec![Role::Restore, Role::Follow, Role::Follow]));
    }

    #[test]
    fn those_behind_are_spread_over_those_at_the_base_and_the_others_do_nothing() {
        let roles = assign_roles(&[None, Some(label(7, 1)), Some(label(6, 1)), Some(label(7, 1)), None, Some(label(7, 1))]);
        let receive = |from| Role::Receive { from, to: Vec::new() };
        let expected =
            vec![receive(1), Role::Send { to: vec![0] }, receive(3), Role::Send { to: vec![2] }, receive(5), Role::Send { to: vec![4] }];
        assert_eq!(roles, (Some(label(7, 1)), expected));
        assert_eq!(assign_roles(&[Some(label(7, 1)), Some(label(7, 1))]).1, vec![Role::Level, Role::Level]);
    }

    #[test]
    fn who_receives_a_state_passes_it_on() {
        let (_, roles) = assign_roles(&[Some(label(7, 1)), None, None, None, None]);
        let expected = vec![
            Role::Send { to: vec![1, 3] },
            Role::Receive { from: 0, to: vec![2] },
            Role::Receive { from: 1, to: Vec::new() },
            Role::Receive { from: 0, to: vec![4] },
            Role::Receive { from: 3, to: Vec::new() },
        ];
        assert_eq!(roles, expected);
    }

    #[test]
    fn the_same_step_from_an_older_generation_is_not_the_same_state() {
        let roles = assign_roles(&[Some(label(7, 1)), Some(label(7, 2))]);
        assert_eq!(roles, (Some(label(7, 2)), vec![Role::Receive { from: 1, to: Vec::new() }, Role::Send { to: vec![0] }]));
    }
}
