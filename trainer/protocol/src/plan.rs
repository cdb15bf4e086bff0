//! What a generation means for one member, and how the roles are dealt out. Pure.

use crate::{Division, Generation, Identity, MemberName, Moves, StateLabel, spread};

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
    /// Holds the base and sends it, or a half of it.
    Send(Moves),
    /// Is behind (or new): receives the base, passes it on as it comes, and keeps its old state until the received one is verified.
    Receive(Moves),
    /// Reads the last complete checkpoint, or has the initial state when there is none. What it has then the others follow.
    Restore,
    /// Begins with the state of rank 0, which restores. Members compare what they have, since all draw the same initial state, and
    /// [`spread`] says how those who have another get it.
    Follow,
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
    let role = |moves: Moves| match (moves.receives(), moves.sends()) {
        (true, _) => Role::Receive(moves),
        (false, true) => Role::Send(moves),
        (false, false) => Role::Level,
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

    #[test]
    fn without_any_state_rank_0_restores_and_the_others_follow() {
        assert_eq!(assign_roles(&[None, None, None]), (None, vec![Role::Restore, Role::Follow, Role::Follow]));
    }

    #[test]
    fn those_behind_are_spread_over_those_at_the_base_and_the_others_do_nothing() {
        let roles = assign_roles(&[None, Some(label(7, 1)), Some(label(6, 1)), Some(label(7, 1)), None, Some(label(7, 1))]);
        let (receive, send) = (|from| Role::Receive(Moves::alike(Some(from), &[])), |to| Role::Send(Moves::alike(None, &[to])));
        let expected = vec![receive(1), send(0), receive(3), send(2), receive(5), send(4)];
        assert_eq!(roles, (Some(label(7, 1)), expected));
        assert_eq!(assign_roles(&[Some(label(7, 1)), Some(label(7, 1))]).1, vec![Role::Level, Role::Level]);
    }

    #[test]
    fn the_same_step_from_an_older_generation_is_not_the_same_state() {
        let roles = assign_roles(&[Some(label(7, 1)), Some(label(7, 2))]);
        assert_eq!(roles, (Some(label(7, 2)), vec![Role::Receive(Moves::alike(Some(1), &[])), Role::Send(Moves::alike(None, &[0]))]));
    }
}
