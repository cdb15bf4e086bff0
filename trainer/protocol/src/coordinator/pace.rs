//! Who holds the others up: members that stand still, which are evicted, and members that are always slow, which are put on record, and
//! evicted where the job asks for it ([`SlowEviction`]).
//!
//! All members of a generation that train enter the same collective operations, so one that has entered fewer than another is waited for.
//! Before they train, some work for themselves while the others wait for what comes of it: one that reads a checkpoint, for example. Looked
//! at now and then, not with every heartbeat: it takes a walk over all members.

use std::{collections::BTreeSet, time::Duration};

use super::{Coordinator, Generation, HistoryEvent, LossCause, MemberName, Peer, group::Group};
use crate::{Activity, ActivityStage};

/// Looks at the pace within one stall time-out.
pub(super) const CHECKS_PER_TIMEOUT: u32 = 4;
/// Stall time-outs that a member which prepares may stand still: clients of cloud stores try for three minutes before they fail, and the
/// usual time-out is two.
const PREPARATION: u32 = 2;
/// A member is slow when its own work in a step takes this many times the median's. Below it are the differences between machines of one
/// kind and between shares of a batch.
const SLOW: f64 = 1.5;
/// Looks in a row at which a member has to be slow: a single slow step, or a disk that was busy for a moment, is nothing to report.
const SLOW_CHECKS: u32 = 3;
/// Fewer members have no median that says anything.
const FEWEST: usize = 3;

/// The least factor of a [`SlowEviction`]: machines of one kind, and shares of a batch, differ by less.
const LEAST_FACTOR: f64 = 1.2;

/// When a member that is slow for good is evicted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowEviction {
    factor: f64,
    after: Duration,
}

/// A factor by which every member would be slow now and then.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("a slow member cannot be told by a factor of {factor}: it must be at least {LEAST_FACTOR}")]
pub struct InvalidSlowEviction {
    /// The factor.
    pub factor: f64,
}

impl SlowEviction {
    /// Of a member whose own work in a step takes more than `factor` times the median's, at every look for `after` in one generation.
    ///
    /// # Errors
    /// When the factor is below 1.2, or no number.
    pub fn new(factor: f64, after: Duration) -> Result<Self, InvalidSlowEviction> {
        if factor >= LEAST_FACTOR && factor.is_finite() { Ok(Self { factor, after }) } else { Err(InvalidSlowEviction { factor }) }
    }
}

/// What is known of one member's pace in the running generation.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace {
    /// Without the sources, which are the job's.
    activity: Activity,
    /// When the number of its operations was seen to grow.
    moved: Option<Duration>,
    slow_checks: u32,
    /// Beyond the factor by which it is evicted.
    too_slow: Option<TooSlow>,
}

/// Since when a member has been too slow, at every look since.
#[derive(Clone, Copy, Debug)]
struct TooSlow {
    since: Duration,
    looks: u32,
}

impl Coordinator {
    pub(super) fn pace_deadline(&self) -> Option<Duration> {
        self.state.open_group().map(|_| self.next_pace_check)
    }

    /// A heartbeat says what its member is doing.
    pub(super) fn note_activity(&mut self, name: &MemberName, generation: Generation, mut activity: Activity) {
        let now = self.now;
        let Some(group) = self.state.group_mut().filter(|group| group.generation == generation) else { return };
        let tells_for_all = group.rank_of(name) == Some(0);
        let Some(member) = group.members.get_mut(name) else { return };
        let sources = std::mem::take(&mut activity.sources);
        if tells_for_all {
            self.told.hear(activity.training, sources);
        }
        let place = |activity: &Activity| (activity.stage, activity.operations);
        if member.pace.moved.is_none() || place(&member.pace.activity) != place(&activity) {
            member.pace.moved = Some(now);
        }
        member.pace.activity = activity;
    }

    pub(super) fn check_pace(&mut self) {
        if self.now < self.next_pace_check {
            return;
        }
        self.next_pace_check = self.now + self.settings.stall_timeout / CHECKS_PER_TIMEOUT;
        self.look_for_slow();
        for name in self.stalled() {
            self.evict(
                &name,
                LossCause::Stalled,
                &format!("its training thread has stood still for {:?} while others waited for it", self.settings.stall_timeout),
            );
        }
        self.evict_slow();
    }

    /// Members that others have waited for too long: those that train, and have come the least far of all who do; and those that prepare
    /// and do not get on. Who is in a transfer is none of them: its waits for others end by themselves, and it fails with them.
    fn stalled(&self) -> Vec<MemberName> {
        let Some(group) = self.state.open_group() else { return Vec::new() };
        let stands_still_for = |pace: &Pace, time| pace.moved.is_some_and(|moved| self.now >= moved + time);
        let stands_still = |pace: &Pace| stands_still_for(pace, self.settings.stall_timeout);
        let is_in = |pace: &Pace, stage| pace.activity.stage == stage;
        let members = || group.members.iter().filter(|(_, member)| !member.finished);
        let trains = |pace: &Pace| is_in(pace, ActivityStage::Training);
        let fewest = members().map(|(_, member)| &member.pace).filter(|pace| trains(pace)).map(|pace| pace.activity.operations).min();
        let waits = |pace: &Pace| trains(pace) && Some(pace.activity.operations) > fewest && stands_still(pace);
        let is_waited_for = group.members.values().any(|member| waits(&member.pace));
        let is_last = |pace: &Pace| is_waited_for && trains(pace) && stands_still(pace) && Some(pace.activity.operations) == fewest;
        let is_stuck =
            |pace: &Pace| is_in(pace, ActivityStage::Preparing) && stands_still_for(pace, self.settings.stall_timeout * PREPARATION);
        // When all of them prepare and none gets on, nobody waits for another.
        let others_wait = group.members.values().any(|member| !is_stuck(&member.pace));
        let is_stalled = |pace: &Pace| is_last(pace) || (others_wait && is_stuck(pace));
        members().filter(|(_, member)| is_stalled(&member.pace)).map(|(name, _)| name.clone()).collect()
    }

    /// Measures all members against their median; puts on record who has been slow for a while, once in a generation.
    fn look_for_slow(&mut self) {
        let (now, eviction) = (self.now, self.settings.slow_eviction);
        let Some(group) = self.state.open_group_mut() else { return };
        let Some(median) = median_work(group) else { return };
        let exceeds = |work: Duration, factor: f64| work.as_secs_f64() > factor * median.as_secs_f64();
        let mut found = Vec::new();
        for (name, member) in &mut group.members {
            let pace = &mut member.pace;
            let Some(work) = pace.activity.step_work else { continue };
            pace.slow_checks = if exceeds(work, SLOW) { pace.slow_checks.saturating_add(1) } else { 0 };
            if pace.slow_checks == SLOW_CHECKS {
                found.push(HistoryEvent::Slow { member: name.clone(), step_work: work, median });
            }
            let before = pace.too_slow.take().unwrap_or(TooSlow { since: now, looks: 0 });
            pace.too_slow = eviction
                .filter(|eviction| exceeds(work, eviction.factor))
                .map(|_| TooSlow { looks: before.looks.saturating_add(1), ..before });
        }
        for event in found {
            self.record(event);
        }
    }

    /// Evicts the slowest of those who have been too slow for as long as the job bears it. With that the generation ends, so there is never
    /// a second one in it.
    fn evict_slow(&mut self) {
        let Some((name, reason)) = self.too_slow() else { return };
        if let Some(peer) = self.peers.get(&name) {
            self.set_aside.insert(name.clone(), peer.identity.incarnation);
        }
        self.evict(&name, LossCause::Slow, &reason);
    }

    fn too_slow(&self) -> Option<(MemberName, String)> {
        let SlowEviction { after, .. } = self.settings.slow_eviction?;
        let group = self.state.open_group().filter(|_| !self.stopping)?;
        let median = median_work(group)?;
        let is_due = |slow: TooSlow| slow.looks >= SLOW_CHECKS && self.now >= slow.since + after;
        let slow = group.members.iter().filter(|(_, member)| !member.finished && member.pace.too_slow.is_some_and(is_due));
        let (name, member) = slow.filter(|(name, _)| self.can_do_without(name)).max_by_key(|(_, member)| member.pace.activity.step_work)?;
        let (node, work) = (&self.peers.get(name)?.identity.node, member.pace.activity.step_work?);
        let times = work.as_secs_f64() / median.as_secs_f64();
        Some((
            name.clone(),
            format!("on node {node} its own work in a step took {work:.1?}, {times:.1} times the median of {median:.1?}, for {after:?}"),
        ))
    }

    /// Whether a generation can be formed without this member and all others of its worker, whose pod may be replaced as a whole. That of a
    /// member that was evicted before may be just as well.
    fn can_do_without(&self, name: &MemberName) -> bool {
        let workers: BTreeSet<&str> = self.set_aside.keys().chain([name]).map(|name| name.worker.as_str()).collect();
        let is_other = |peer: &&Peer| !workers.contains(peer.identity.name.worker.as_str());
        let takes_part = |peer: &&Peer| !peer.draining && (peer.is_free() || peer.is_in_group());
        let leaves_anyway = self.peers.get(name).is_none_or(|peer| peer.draining);
        !leaves_anyway && self.peers.values().filter(is_other).filter(takes_part).count() >= self.world.min() as usize
    }
}

/// The median of the members' own work in a step; `None` where too few have told theirs for it to say anything.
fn median_work(group: &Group) -> Option<Duration> {
    let mut work: Vec<Duration> = group.members.values().filter_map(|member| member.pace.activity.step_work).collect();
    work.sort_unstable();
    work.get(work.len() / 2).copied().filter(|_| work.len() >= FEWEST)
}
