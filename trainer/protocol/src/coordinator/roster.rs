//! Who is attached, with the numbers that every event asks for kept up to date: a job has thousands of members, and each of them says
//! something every second.
//!
//! Comes in: members that attach, change and go. Goes out: the members for reading, and the counts. A member is changed only through
//! [`Roster::update`], so that the counts cannot drift from what they count.

use std::{
    collections::{
        BTreeMap,
        btree_map::{self, Entry},
    },
    ops::Deref,
    time::Duration,
};

use super::{MemberName, Peer};

/// The attached members by name.
#[derive(Debug, Default)]
pub(super) struct Roster {
    peers: BTreeMap<MemberName, Peer>,
    counts: Counts,
    /// Since when members have been told to drop a group that is not the last generation's, and how many of them.
    told: BTreeMap<Duration, usize>,
    #[cfg(test)]
    walks: std::cell::Cell<usize>,
}

/// How many of them there are of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    in_group: usize,
    busy: usize,
    draining: usize,
    draining_in_group: usize,
    leaving: usize,
    staying: usize,
    spare: usize,
    aside: usize,
    holders: usize,
}

impl Counts {
    fn all(&mut self, peer: &Peer) -> [(&mut usize, bool); 9] {
        [
            (&mut self.in_group, peer.is_in_group()),
            (&mut self.busy, !peer.is_free()),
            (&mut self.draining, peer.draining),
            (&mut self.draining_in_group, peer.is_in_group() && peer.draining),
            (&mut self.leaving, peer.is_free() && peer.draining),
            (&mut self.staying, !peer.draining && (peer.is_free() || peer.is_in_group())),
            (&mut self.spare, !peer.draining && peer.is_free() && !peer.is_aside),
            (&mut self.aside, peer.is_free() && peer.is_aside),
            (&mut self.holders, peer.held.is_some()),
        ]
    }

    fn add(&mut self, peer: &Peer) {
        for (count, is_one) in self.all(peer) {
            *count += usize::from(is_one);
        }
    }

    fn take(&mut self, peer: &Peer) {
        for (count, is_one) in self.all(peer) {
            *count -= usize::from(is_one);
        }
    }
}

impl Deref for Roster {
    type Target = BTreeMap<MemberName, Peer>;

    fn deref(&self) -> &Self::Target {
        &self.peers
    }
}

impl Roster {
    /// All members, one after the other: not for what is asked with every event.
    pub(super) fn values(&self) -> btree_map::Values<'_, MemberName, Peer> {
        self.note_walk();
        self.peers.values()
    }

    /// As [`Roster::values`], with their names.
    pub(super) fn iter(&self) -> btree_map::Iter<'_, MemberName, Peer> {
        self.note_walk();
        self.peers.iter()
    }

    #[cfg(test)]
    fn note_walk(&self) {
        self.walks.set(self.walks.get() + 1);
    }

    #[cfg(not(test))]
    #[allow(clippy::unused_self, reason = "it counts in tests alone")]
    const fn note_walk(&self) {}

    /// How often all members were looked at so far.
    #[cfg(test)]
    pub(super) fn walks(&self) -> usize {
        self.walks.get()
    }

    pub(super) fn insert(&mut self, peer: Peer) {
        self.remove(&peer.identity.name);
        self.counts.add(&peer);
        self.note_told(peer.told);
        self.peers.insert(peer.identity.name.clone(), peer);
    }

    pub(super) fn remove(&mut self, name: &MemberName) -> Option<Peer> {
        let peer = self.peers.remove(name)?;
        self.counts.take(&peer);
        self.forget_told(peer.told);
        Some(peer)
    }

    fn note_told(&mut self, told: Option<Duration>) {
        if let Some(told) = told {
            *self.told.entry(told).or_default() += 1;
        }
    }

    fn forget_told(&mut self, told: Option<Duration>) {
        if let Some(Entry::Occupied(mut count)) = told.map(|told| self.told.entry(told)) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    /// Changes one member; `None` when there is no such.
    pub(super) fn update<R>(&mut self, name: &MemberName, change: impl FnOnce(&mut Peer) -> R) -> Option<R> {
        let peer = self.peers.get_mut(name)?;
        let before = peer.told;
        self.counts.take(peer);
        let result = change(peer);
        self.counts.add(peer);
        let after = peer.told;
        if before != after {
            self.forget_told(before);
            self.note_told(after);
        }
        Some(result)
    }

    /// All members are to leave for which this holds.
    pub(super) fn drain(&mut self, holds: impl Fn(&Peer) -> bool) {
        for peer in self.peers.values_mut().filter(|peer| holds(peer)) {
            self.counts.take(peer);
            peer.draining = true;
            self.counts.add(peer);
        }
    }

    /// Since when a member has been told to drop a group that is not the last generation's, and has not reported: the first of them.
    pub(super) fn first_told(&self) -> Option<Duration> {
        self.told.keys().next().copied()
    }

    /// Those in the group of the last generation: training, or owing a report.
    pub(super) const fn in_group(&self) -> usize {
        self.counts.in_group
    }

    /// Those that hold any group: what they will have when they let go of it is not known yet.
    pub(super) const fn busy(&self) -> usize {
        self.counts.busy
    }

    /// Those that can take part in a new generation.
    pub(super) fn free(&self) -> usize {
        self.peers.len() - self.counts.busy
    }

    /// Those that are to leave.
    pub(super) const fn draining(&self) -> usize {
        self.counts.draining
    }

    /// Those that are to leave and could at once.
    pub(super) const fn leaving(&self) -> usize {
        self.counts.leaving
    }

    /// Those in the group that are to leave.
    pub(super) const fn draining_in_group(&self) -> usize {
        self.counts.draining_in_group
    }

    /// Those that are not to leave and that take part or can.
    pub(super) const fn staying(&self) -> usize {
        self.counts.staying
    }

    /// Those that hold any state.
    pub(super) const fn holders(&self) -> usize {
        self.counts.holders
    }

    /// Those that can take part only when there are too few without them.
    pub(super) const fn aside(&self) -> usize {
        self.counts.aside
    }

    /// Those that can take part, do not, and are neither to leave nor set aside.
    pub(super) const fn spare(&self) -> usize {
        self.counts.spare
    }
}

impl<'a> IntoIterator for &'a Roster {
    type Item = (&'a MemberName, &'a Peer);
    type IntoIter = btree_map::Iter<'a, MemberName, Peer>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
