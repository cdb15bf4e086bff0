//! Who sits where: which member has which interval of the batch, and keeps it from generation to generation ([`crate::Division`]).
//!
//! Comes in: the members of each generation. Goes out: a seat for each of them. A member keeps the seat that it had; one that is new or
//! comes back takes a seat that was left, if it can one of its own node's, since the members of a node share what they have read. All are
//! seated anew when there are more of them than seats, and when too many seats are empty; then seats are kept for those who are desired and
//! not there yet. It must not look at a clock, and depends on no order but that of names.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use super::{Identity, MemberName};
use crate::{Division, HeldGroup};

/// Of so many seats one may be empty. What a further loss moves grows with the number of empty seats; at a quarter it is still less than if
/// the batch were simply divided among those who are left ([`Division`]).
const SEATS_FOR_AN_EMPTY_ONE: u32 = 4;

/// Runs of empty seats, at most: with all of them, a plan's size would grow with the number of members.
const MOST_RUNS: usize = 64;

/// Who has a seat, or had it last.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Holder {
    node: String,
    name: MemberName,
}

impl From<&Identity> for Holder {
    fn from(identity: &Identity) -> Self {
        Self { node: identity.node.clone(), name: identity.name.clone() }
    }
}

/// The seats of the last generation.
#[derive(Debug, Default)]
pub(super) struct Seating {
    seats: u32,
    /// By seat. A seat that was empty when its group was taken over has none.
    holders: BTreeMap<u32, Holder>,
}

impl Seating {
    /// That of a group that an earlier coordinator formed. Its members come one by one: [`Seating::find`].
    pub(super) fn of_group(held: &HeldGroup) -> Self {
        let HeldGroup { world, seats, .. } = *held;
        // Nobody forms other groups.
        let is_possible = seats >= world && !is_too_empty(seats, seats - world);
        Self { seats: if is_possible { seats } else { 0 }, holders: BTreeMap::new() }
    }

    /// A member says which seat it has.
    pub(super) fn find(&mut self, seat: u32, member: &Identity) {
        if seat < self.seats {
            self.holders.entry(seat).or_insert_with(|| Holder::from(member));
        }
    }

    pub(super) const fn seats(&self) -> u32 {
        self.seats
    }

    /// The seat of each member by name.
    pub(super) fn by_name(&self) -> BTreeMap<&MemberName, u32> {
        self.holders.iter().map(|(seat, holder)| (&holder.name, *seat)).collect()
    }

    /// Seats the members of the next generation, who are ordered by node and name, where so many are desired: the division, and the seat of
    /// each.
    pub(super) fn seat(&mut self, members: &[&Identity], desired: u32) -> (Division, Vec<u32>) {
        let found = self.search(members);
        let taken: BTreeSet<u32> = found.iter().copied().flatten().collect();
        let empty = runs_of_others(&taken, self.seats);
        let seats: Option<Vec<u32>> = found.iter().copied().collect();
        let (division, seats) = match (seats, Division::new(self.seats, empty)) {
            (Some(seats), Ok(division))
                if !is_too_empty(self.seats, self.seats - division.members()) && division.empty().len() <= MOST_RUNS =>
            {
                (division, seats)
            }
            _ => {
                self.holders.clear();
                (division_for(members.len() as u32, desired), anew(members, &found))
            }
        };
        self.seats = division.seats();
        self.holders.extend(seats.iter().copied().zip(members.iter().map(|member| Holder::from(*member))));
        (division, seats)
    }

    /// A seat for each member as long as there are any: its own, else one that another of its node had, else one of a node that nobody is
    /// left of, else any.
    fn search(&self, members: &[&Identity]) -> Vec<Option<u32>> {
        let own: BTreeMap<&Holder, u32> = self.holders.iter().map(|(seat, holder)| (holder, *seat)).collect();
        let mut found: Vec<Option<u32>> = members.iter().map(|member| own.get(&Holder::from(*member)).copied()).collect();
        let taken: BTreeSet<u32> = found.iter().copied().flatten().collect();
        let mut free: BTreeSet<u32> = (0..self.seats).filter(|seat| !taken.contains(seat)).collect();
        let node_of = |seat: &u32| self.holders.get(seat).map(|holder| holder.node.as_str());
        let mut of_nodes: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
        for seat in free.iter().rev() {
            of_nodes.entry(node_of(seat).unwrap_or_default()).or_default().push(*seat);
        }
        for (member, found) in members.iter().zip(&mut found).filter(|(_, found)| found.is_none()) {
            if let Some(seat) = of_nodes.get_mut(member.node.as_str()).and_then(Vec::pop) {
                free.remove(&seat);
                *found = Some(seat);
            }
        }
        let nodes: BTreeSet<&str> = members.iter().map(|member| member.node.as_str()).collect();
        let mut free: Vec<u32> = free.into_iter().collect();
        free.sort_by_key(|seat| node_of(seat).is_some_and(|node| nodes.contains(node)));
        let mut free = free.into_iter();
        for found in found.iter_mut().filter(|found| found.is_none()) {
            *found = free.next();
        }
        found
    }
}

/// Seats for so many members, with some behind them for those who are desired and not there, if these are not too many.
fn division_for(members: u32, desired: u32) -> Division {
    let seats = desired.max(members);
    let with_empty = (!is_too_empty(seats, seats - members)).then(|| Division::new(seats, runs_of_others(&(0..members).collect(), seats)));
    with_empty.and_then(Result::ok).unwrap_or(Division::full(members))
}

/// The first seats for these members, in the order of the seats that they had, so that they find much of what they have read; members of a
/// node stay together, and those for whom there was no seat come last.
fn anew(members: &[&Identity], found: &[Option<u32>]) -> Vec<u32> {
    let mut first_of_node: BTreeMap<&str, u32> = BTreeMap::new();
    for (member, seat) in members.iter().zip(found) {
        let first = first_of_node.entry(member.node.as_str()).or_insert(u32::MAX);
        *first = (*first).min(seat.unwrap_or(u32::MAX));
    }
    let mut order: Vec<(usize, &Identity)> = members.iter().copied().enumerate().collect();
    order.sort_by_key(|(index, member)| {
        let seat = found.get(*index).copied().flatten().unwrap_or(u32::MAX);
        (first_of_node.get(member.node.as_str()).copied(), member.node.as_str(), seat)
    });
    let mut seats: Vec<(usize, u32)> = order.into_iter().map(|(index, _)| index).zip(0..).collect();
    seats.sort_unstable();
    seats.into_iter().map(|(_, seat)| seat).collect()
}

const fn is_too_empty(seats: u32, empty: u32) -> bool {
    empty > seats / SEATS_FOR_AN_EMPTY_ONE
}

/// The seats that are not among these, as ascending runs.
fn runs_of_others(taken: &BTreeSet<u32>, seats: u32) -> Vec<Range<u32>> {
    let ends = taken.iter().copied().chain([seats]);
    let begins = [0].into_iter().chain(taken.iter().map(|seat| seat + 1));
    begins.zip(ends).map(|(begin, end)| begin..end).filter(|run| !run.is_empty()).collect()
}

#[cfg(test)]
mod tests;
