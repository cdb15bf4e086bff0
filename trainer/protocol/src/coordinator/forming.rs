//! When a generation is formed, of whom, and when the running one should make room for another.

use std::{cmp::Reverse, time::Duration};

use super::{
    Coordinator, CoordinatorSettings, EndReason, Flags, HistoryEvent, Identity, MemberName, Pause, Peer, State, StateLabel, ToMember,
    World, group::Group, roster::Roster,
};
use crate::{
    Plan,
    plan::{NAMED_LOSSES, assign_roles, digest_of},
};

/// Generations in a row that committed nothing before the next is delayed: members that reach the coordinator but not each other would
/// otherwise form one after the other as fast as they can. A few quick ones are what several losses in a row look like.
const FRUITLESS_AT_ONCE: u32 = 4;
/// First delay, doubled with every further fruitless generation.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// Longest delay: a network that comes back is tried within this time.
const LONGEST_DELAY: Duration = Duration::from_secs(5);

impl Coordinator {
    /// Brings everything to rest after an event: ends what is complete, wishes for what is wanted, forms what can be formed.
    pub(super) fn settle(&mut self) {
        if self.all_have_finished() {
            self.end(EndReason::Complete);
        }
        if let Some(reason) = self.state.ended() {
            return self.dismiss_all(reason);
        }
        self.let_go();
        if self.state.is_open() {
            return self.wish();
        }
        if self.state.trains() || self.peers.busy() > 0 {
            return;
        }
        if self.stopping && self.peers.is_empty() && (self.all_have_left() || self.is_helpless()) {
            return self.end(EndReason::Stopped);
        }
        if self.peers.free() < self.world.min() as usize {
            // Too few are left: the next generation is waited for as the first one was.
            self.state = State::Waiting(Pause { enough_since: None, ..self.state.pause() });
            return;
        }
        if let Some(pause) = self.state.pause_mut() {
            pause.enough_since.get_or_insert(self.now);
        }
        if self.may_form() {
            self.form();
        }
    }

    /// Dismisses those who are to leave and are in no group, unless the state they hold would be lost with them: then they take part in
    /// one more generation, which hands it on or writes a checkpoint. When they are too few for that, others are waited for: a stream that
    /// broke does not mean that its member is gone.
    fn let_go(&mut self) {
        if self.peers.draining() == 0 && !self.stopping {
            if let Some(pause) = self.state.pause_mut() {
                pause.helpless_since = None;
            }
            return;
        }
        if self.state.group().is_some() && !self.state.is_open() && self.peers.busy() > 0 {
            // What the others hold is not known before all have attached and reported.
            return;
        }
        let staying = self.peers.staying();
        let can_form = self.peers.free() + self.peers.in_group() >= self.world.min() as usize;
        if let Some(pause) = self.state.pause_mut() {
            pause.helpless_since = if staying == 0 && !can_form { pause.helpless_since.or(Some(self.now)) } else { None };
        }
        if self.peers.leaving() == 0 {
            // They train: at every heartbeat of any, without a walk over all members.
            return;
        }
        let hopeless = self.is_helpless();
        let counts = |peer: &&Peer| peer.is_free() || peer.is_in_group();
        let stays = self.peers.values().filter(counts).filter(|peer| !peer.draining).map(|peer| peer.held).max().flatten();
        // Those who stay are no safe place when they are too few to go on: they may leave next, and none of them can write.
        let can_keep = staying >= self.world.min() as usize || !can_form;
        let saved = self.told.saved_step();
        let is_safe = |held: StateLabel| (can_keep && stays >= Some(held)) || saved >= Some(held.step);
        let can_go = |peer: &&Peer| peer.draining && peer.is_free() && (hopeless || peer.held.is_none_or(is_safe));
        let leaving: Vec<MemberName> = self.peers.values().filter(can_go).map(|peer| peer.identity.name.clone()).collect();
        let reason = if self.stopping { EndReason::Stopped } else { EndReason::Drained };
        for name in leaving {
            self.dismiss(&name, reason, is_safe);
        }
    }

    /// Whether all members of the last group have left in order. One that was lost may have trained on, and come back with more than is
    /// saved; and who has led no group knows of nobody.
    fn all_have_left(&self) -> bool {
        self.state.group().is_some_and(Group::was_open) && self.past.losses.is_empty()
    }

    /// Whether those who are to leave have waited for others as long as any generation is waited for.
    fn is_helpless(&self) -> bool {
        self.state.pause().helpless_since.is_some_and(|since| self.now >= since + self.settings.formation_wait)
    }

    pub(super) fn helpless_deadline(&self) -> Option<Duration> {
        // Once it has passed, what is left to be waited for are reports, which have their own.
        self.state.pause().helpless_since.map(|since| since + self.settings.formation_wait).filter(|deadline| *deadline > self.now)
    }

    pub(super) fn forming_deadline(&self) -> Option<Duration> {
        // What those have who hold a group may be the most of all.
        let is_idle = !self.state.trains() && self.peers.busy() == 0;
        let since = self.state.pause().enough_since.filter(|_| is_idle)?;
        Some(since + self.waiting_time())
    }

    /// How long to wait once the fewest members are there.
    fn waiting_time(&self) -> Duration {
        let further = self.past.fruitless.saturating_sub(FRUITLESS_AT_ONCE);
        let delay = match further {
            0 => Duration::ZERO,
            _ => FIRST_DELAY.saturating_mul(1 << (further - 1).min(16)).min(LONGEST_DELAY),
        };
        // Survivors wait for nobody: whoever comes later is let in by the next generation. Of a group that was not taken over others may
        // still be on their way, and hold more, until all of its list have been heard of.
        let complete = self.peers.free() - self.peers.aside() >= self.world.desired() as usize;
        let survivors = self.state.group().is_some_and(Group::is_accounted_for);
        if complete || survivors { delay } else { delay.max(self.arrival_time()) }
    }

    /// How long others may be on their way. Where somebody holds state, training was under way, and who took part in it has a process that
    /// attaches again by itself: one that was not heard of for the heartbeat's time-out is as lost as if it had been silent here.
    fn arrival_time(&self) -> Duration {
        let CoordinatorSettings { formation_wait, heartbeat_timeout, .. } = self.settings;
        if self.peers.holders() > 0 { formation_wait.min(heartbeat_timeout) } else { formation_wait }
    }

    fn may_form(&self) -> bool {
        self.state.pause().enough_since.is_some_and(|since| self.now >= since + self.waiting_time())
    }

    fn form(&mut self) {
        let generation = self.generation.next();
        let chosen = self.choose();
        let held: Vec<Option<StateLabel>> = chosen.iter().map(|name| self.peers.get(name).and_then(|peer| peer.held)).collect();
        let identities: Vec<&Identity> = chosen.iter().filter_map(|name| self.peers.get(name)).map(|peer| &peer.identity).collect();
        let (division, seats) = self.seating.seat(&identities, self.world.desired());
        let list_digest = digest_of(division.seats(), identities.into_iter().zip(seats.iter().copied()));
        let (base, roles) = assign_roles(&held);
        if self.state.group().is_some_and(|group| !group.fruitful) {
            self.past.fruitless = self.past.fruitless.saturating_add(1);
        }
        self.generation = generation;
        let (world, mut lost) = (chosen.len() as u32, std::mem::take(&mut self.past.losses));
        let further_losses = lost.len().saturating_sub(NAMED_LOSSES) as u32;
        lost.truncate(NAMED_LOSSES);
        self.state = State::Group(Box::new(Group::new(generation, base, chosen.iter().cloned().zip(held).collect())));
        for (((rank, name), role), seat) in (0..).zip(&chosen).zip(roles).zip(seats) {
            let joined = self.peers.update(name, |peer| {
                peer.holds = Some(generation);
                peer.connection
            });
            let Some(connection) = joined else { continue };
            let (division, lost) = (division.clone(), lost.clone());
            let plan = Plan { generation, rank, world, division, seat, list_digest, base, role, lost, further_losses };
            self.send(connection, ToMember::Form(plan));
        }
        self.record(HistoryEvent::Formed { generation, world, base: base.map(|base| base.step) });
        self.advance();
        // More members than fit, or one that is to leave already: the wish goes out with the plan.
        self.wish();
    }

    /// The members of the next generation in rank order: all who fit. When there are more than fit, first those that hold the most, then
    /// those of the generation before, then by name. Who was set aside is one of them only if he holds more than all others, or fills up the
    /// fewest.
    fn choose(&self) -> Vec<MemberName> {
        let before = self.state.group().map(Group::names).unwrap_or_default();
        let mut candidates: Vec<&Peer> = self.peers.values().filter(|peer| peer.is_free()).collect();
        let most = candidates.iter().filter(|peer| !peer.is_aside).map(|peer| peer.held).max().flatten();
        let is_last = |peer: &Peer| peer.is_aside && peer.held <= most;
        candidates
            .sort_by_cached_key(|peer| (is_last(peer), Reverse(peer.held), !before.contains(&peer.identity.name), &peer.identity.name));
        let without_last = candidates.partition_point(|peer| !is_last(peer));
        candidates.truncate(without_last.max(self.world.min() as usize).min(self.world.max() as usize));
        candidates.sort_by_key(|peer| (&peer.identity.node, &peer.identity.name));
        candidates.into_iter().map(|peer| peer.identity.name.clone()).collect()
    }

    /// Tells the members of the open generation what to raise, when something is wanted that they were not told yet.
    fn wish(&mut self) {
        let Some(group) = self.state.group_mut() else { return };
        let generation = group.generation;
        let wanted = wanted(&self.peers, self.world, group.world());
        let flags = (!group.wish.contains(wanted)).then_some(wanted);
        group.wish |= wanted;
        let wanted_checkpoint = self.told.wanted_checkpoint();
        let checkpoint = wanted_checkpoint.filter(|_| group.wished_checkpoint != wanted_checkpoint);
        group.wished_checkpoint = wanted_checkpoint;
        let wishes =
            [flags.map(|flags| ToMember::Wish { generation, flags }), checkpoint.map(|from| ToMember::WishCheckpoint { generation, from })];
        for wish in wishes.into_iter().flatten() {
            let connections: Vec<_> = self.peers.values().filter(|peer| peer.is_in_group()).map(|peer| peer.connection).collect();
            for connection in connections {
                self.send(connection, wish.clone());
            }
        }
    }

    fn end(&mut self, reason: EndReason) {
        self.state = State::Ended(reason, self.state.generation());
        self.dismiss_all(reason);
    }

    fn dismiss_all(&mut self, reason: EndReason) {
        let all: Vec<MemberName> = self.peers.keys().cloned().collect();
        let saved = self.told.saved_step();
        for name in all {
            self.dismiss(&name, reason, |held| saved >= Some(held.step));
        }
    }
}

/// What a group of `members` members should agree on.
fn wanted(peers: &Roster, world: World, members: u32) -> Flags {
    let (in_group, draining) = (peers.in_group(), peers.draining_in_group());
    let too_few_stay = peers.staying() < world.min() as usize;
    if draining > 0 && (draining == in_group || too_few_stay) {
        // Nobody stays who holds the state; or too few to go on, of whom each may leave without being able to write it.
        return Flags::LEAVE | Flags::CHECKPOINT;
    }
    let lets_in = peers.spare() > 0 && members < world.max();
    if draining > 0 || lets_in || members > world.max() { Flags::LEAVE } else { Flags::NONE }
}
