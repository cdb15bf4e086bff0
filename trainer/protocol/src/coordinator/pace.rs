//! Who holds the others up: members that stand still, and members that are always slow.
//!
//! All members of a generation that train enter the same collective operations, so one that has entered fewer than another is waited for.
//! Before they train, some work for themselves while the others wait for what comes of it: one that reads a checkpoint, for example. Looked
//! at now and then, not with every heartbeat: it takes a walk over all members.

use std::time::Duration;

use super::{Coordinator, Generation, HistoryEvent, LossCause, MemberName};
use crate::{Activity, ActivityStage, MOST_SOURCES};

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

/// What is known of one member's pace in the running generation.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace {
    /// Without the sources, which are the job's.
    activity: Activity,
    /// When the number of its operations was seen to grow.
    moved: Option<Duration>,
    slow_checks: u32,
}

impl Coordinator {
    pub(super) fn pace_deadline(&self) -> Option<Duration> {
        self.group.as_ref().filter(|group| group.is_open()).map(|_| self.next_pace_check)
    }

    /// A heartbeat says what its member is doing.
    pub(super) fn note_activity(&mut self, name: &MemberName, generation: Generation, mut activity: Activity) {
        let now = self.now;
        let Some(group) = self.group.as_mut().filter(|group| group.generation == generation) else { return };
        let tells_for_all = group.rank_of(name) == Some(0);
        let Some(member) = group.members.get_mut(name) else { return };
        let mut sources = std::mem::take(&mut activity.sources);
        if tells_for_all && activity.training.is_some() {
            self.training = activity.training;
        }
        // One that has no step to tell of yet does not unsay what was known.
        if tells_for_all && !sources.is_empty() {
            sources.truncate(MOST_SOURCES);
            self.sources = sources;
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
        self.report_slow();
        for name in self.stalled() {
            self.evict(
                &name,
                LossCause::Stalled,
                &format!("its training thread has stood still for {:?} while others waited for it", self.settings.stall_timeout),
            );
        }
    }

    /// Members that others have waited for too long: those that train, and have come the least far of all who do; and those that prepare
    /// and do not get on. Who is in a transfer is none of them: its waits for others end by themselves, and it fails with them.
    fn stalled(&self) -> Vec<MemberName> {
        let Some(group) = self.group.as_ref().filter(|group| group.is_open()) else { return Vec::new() };
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

    /// Puts on record who has been slow for a while, once in a generation.
    fn report_slow(&mut self) {
        let Some(group) = self.group.as_mut().filter(|group| group.is_open()) else { return };
        let mut work: Vec<Duration> = group.members.values().filter_map(|member| member.pace.activity.step_work).collect();
        if work.len() < FEWEST {
            return;
        }
        work.sort_unstable();
        let median = work.get(work.len() / 2).copied().unwrap_or_default();
        let mut found = Vec::new();
        for (name, member) in &mut group.members {
            let Some(work) = member.pace.activity.step_work else { continue };
            let is_slow = work.as_secs_f64() > SLOW * median.as_secs_f64();
            member.pace.slow_checks = if is_slow { member.pace.slow_checks.saturating_add(1) } else { 0 };
            if member.pace.slow_checks == SLOW_CHECKS {
                found.push(HistoryEvent::Slow { member: name.clone(), step_work: work, median });
            }
        }
        for event in found {
            self.record(event);
        }
    }
}
