//! How the group of an earlier coordinator comes to be led from here: its members attach with it one by one.

use std::time::Duration;

use super::{Coordinator, Group, HistoryEvent, MemberName, Stage};
use crate::{
    HeldGroup,
    coordinator::{seating::Seating, state::State},
    plan::digest_of,
};

impl Coordinator {
    pub(in crate::coordinator) fn gathering_deadline(&self) -> Option<Duration> {
        match self.state.group()?.stage {
            Stage::Gathering { since, .. } => Some(since + self.settings.formation_wait),
            Stage::Open | Stage::Closed { .. } => None,
        }
    }

    /// A member has attached that holds a group. One of an earlier coordinator is taken over; any other was given up here.
    pub(in crate::coordinator) fn attached_with(&mut self, name: &MemberName, held: HeldGroup) {
        let earlier = held.generation.epoch < self.settings.epoch && self.past.given_up < Some(held.generation);
        match &mut self.state {
            State::Waiting(pause) if earlier => {
                self.state = State::Group(Box::new(Group::gathering(held, self.now, *pause)));
                self.seating = Seating::of_group(&held);
            }
            // What it holds is still awaited with the reports of the others.
            State::Group(group) if group.generation == held.generation && !group.trains() => {
                group.heard_of.insert(held.rank);
                if let Some(peer) = self.peers.get(name) {
                    self.seating.find(held.seat, &peer.identity);
                }
                return self.drop_held(name, held.generation);
            }
            State::Group(group) if group.is_the_one(&held) => {}
            State::Group(group) if earlier && !group.was_open() && group.trains() && group.generation < held.generation => {
                // Another coordinator formed a later generation, and died before all had heard of it: the older one cannot be whole.
                **group = Group::gathering(held, self.now, group.pause());
                self.seating = Seating::of_group(&held);
                let stale = self.peers.values().filter_map(|peer| Some((peer.identity.name.clone(), peer.holds?)));
                let stale: Vec<_> = stale.filter(|(_, generation)| *generation != held.generation).collect();
                for (name, generation) in stale {
                    self.drop_held(&name, generation);
                }
            }
            _ => return self.drop_held(name, held.generation),
        }
        let Some(peer) = self.peers.get(name) else { return };
        self.seating.find(held.seat, &peer.identity);
        let step = peer.held.map(|label| label.step);
        if let Some(group) = self.state.group_mut() {
            group.admit(name.clone(), held, step);
        }
        self.adopt_if_whole();
    }

    /// All members of the list are there: from now on the group is led from here.
    fn adopt_if_whole(&mut self) {
        let Some(group) = self.state.group_mut() else { return };
        let Stage::Gathering { world, list_digest, .. } = group.stage else { return };
        if group.members.len() != world as usize {
            return;
        }
        let mut by_rank: Vec<(u32, &MemberName)> = group.members.iter().map(|(name, member)| (member.rank, name)).collect();
        by_rank.sort_unstable_by_key(|(rank, _)| *rank);
        let seats = self.seating.by_name();
        let seated = by_rank.iter().filter_map(|(_, name)| Some((&self.peers.get(*name)?.identity, *seats.get(*name)?)));
        if digest_of(self.seating.seats(), seated) != list_digest {
            group.heard_of.clear();
            return self.break_group("those who attached with it are not its members");
        }
        group.stage = Stage::Open;
        let generation = group.generation;
        self.record(HistoryEvent::Adopted { generation, world });
        self.advance();
    }
}
