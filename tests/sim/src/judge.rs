//! The invariants, checked whenever a host does something that they speak of. It sees more than any host does: everything.
//!
//! Comes in: plans that members got, updates that they applied, states that they received or restored, checkpoints that became visible,
//! generations that coordinators say they have formed. Goes out: violations, and a record of what happened that tells how it came to them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    time::Duration,
};

use lcl_protocol::{Division, EndReason, Flags, Generation, HistoryEntry, HistoryEvent, Plan, Role, StateLabel, Status, World};

use crate::{
    model::{GLOBAL_BATCH, Part, State, Undisturbed},
    scene::{Reign, TICK},
};

/// Lines of the record that are kept: enough for the last seconds of a run.
const KEPT: usize = 400;

/// A process of a worker, numbered in the order of their starts over all workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ProcessId(pub(crate) u64);

/// What is known of a generation: what its plans have in common.
#[derive(Debug)]
struct Formed {
    world: u32,
    list_digest: u64,
    base: Option<StateLabel>,
    division: Division,
    /// By rank, with the slots of each.
    members: BTreeMap<u32, (ProcessId, Vec<u64>)>,
    /// When the first member got its plan.
    seen: Duration,
}

/// What is known of one coordinator's process.
#[derive(Debug)]
struct Known {
    started: Duration,
    /// Bounds it was given: when they were sent, and when it has said that they are in force.
    bounds: Vec<(World, Duration, Option<Duration>)>,
    /// Entries of its history up to this one were looked at.
    sequence: u64,
    step: u64,
}

/// When a member asked in its generation's store, and who answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fence {
    /// When it asked (or decided not to).
    pub(crate) asked: Duration,
    /// The epoch of the coordinator that answered.
    pub(crate) epoch: u64,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    pub(crate) now: Duration,
    processes: u64,
    generations: BTreeMap<Generation, Formed>,
    /// The last generation of every process, and the number of the stream on which its plan came.
    last: BTreeMap<ProcessId, (Generation, u64)>,
    undisturbed: Undisturbed,
    states: BTreeMap<StateLabel, u64>,
    /// Who has applied each step, as one generation computed it.
    ledger: BTreeMap<StateLabel, BTreeSet<ProcessId>>,
    /// What the members of a generation raised in the collective of each step.
    raised: BTreeMap<StateLabel, Flags>,
    reigns: BTreeMap<Reign, Known>,
    /// The most steps that any process ever held.
    highest: u64,
    newest_checkpoint: Option<StateLabel>,
    exits: Vec<(ProcessId, EndReason, Option<u64>)>,
    record: Vec<String>,
    /// A number that depends on every line of the record.
    digest: u64,
    violations: Vec<String>,
    is_verbose: bool,
}

impl Judge {
    pub(crate) fn be_verbose(&mut self) {
        self.is_verbose = true;
    }

    /// Adds a line to the record.
    pub(crate) fn note(&mut self, line: &str) {
        let line = format!("{:>9.3} {line}", self.now.as_secs_f64());
        for byte in line.bytes() {
            self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        if self.is_verbose {
            println!("{line}");
        }
        self.record.push(line);
        if self.record.len() > 2 * KEPT {
            self.record.drain(..KEPT);
        }
    }

    pub(crate) fn expect(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            let what = what();
            self.note(&format!("VIOLATION: {what}"));
            self.violations.push(what);
        }
    }

    pub(crate) fn violations(&self) -> &[String] {
        &self.violations
    }

    pub(crate) const fn digest(&self) -> u64 {
        self.digest
    }

    pub(crate) const fn highest(&self) -> u64 {
        self.highest
    }

    pub(crate) fn generations(&self) -> usize {
        self.generations.len()
    }

    pub(crate) fn newest_checkpoint(&self) -> Option<u64> {
        self.newest_checkpoint.map(|label| label.step)
    }

    /// How processes ended in order, and with how many steps.
    pub(crate) fn exits(&self) -> &[(ProcessId, EndReason, Option<u64>)] {
        &self.exits
    }

    /// The last lines of the record.
    pub(crate) fn story(&self) -> String {
        let from = self.record.len().saturating_sub(KEPT);
        self.record[from..].iter().fold(String::new(), |mut story, line| {
            // Writing to a string cannot fail.
            let _ = writeln!(story, "{line}");
            story
        })
    }

    pub(crate) fn process_started(&mut self, worker: usize) -> ProcessId {
        self.processes += 1;
        self.note(&format!("process {} of w-{worker} starts", self.processes));
        ProcessId(self.processes)
    }

    /// A member got a plan on one of its streams; `held` is the state it has.
    pub(crate) fn plan(&mut self, process: ProcessId, plan: &Plan, held: Option<StateLabel>, stream: u64) {
        let Plan { generation, rank, world, list_digest, base, ref role, ref division, seat, .. } = *plan;
        self.note(&format!("process {} gets {generation}: rank {rank} of {world}, base {base:?}, {role:?}, holds {held:?}", process.0));
        let last = self.last.insert(process, (generation, stream));
        let before = last.map(|(before, _)| before);
        self.expect(before < Some(generation), || format!("process {} gets {generation} after {before:?}", process.0));
        if let Some((before, _)) = last.filter(|(_, last)| *last == stream) {
            self.expect_nothing_passed_over(process, (before, generation), held);
        }
        let now = self.now;
        let formed = self.generations.entry(generation).or_insert_with(|| Formed {
            world,
            list_digest,
            base,
            division: division.clone(),
            members: BTreeMap::new(),
            seen: now,
        });
        let is_same = (formed.world, formed.list_digest, formed.base, &formed.division) == (world, list_digest, base, division);
        let slots = division.slots_of(seat, GLOBAL_BATCH).into_iter().flatten().collect();
        let other = formed.members.insert(rank, (process, slots)).filter(|(other, _)| *other != process);
        self.expect(is_same && other.is_none(), || {
            format!("{generation} has two lists of members: {plan:?} for process {}, {other:?}", process.0)
        });
        self.expect(held <= base, || format!("{generation} goes on from {base:?}, but its member, process {}, holds {held:?}", process.0));
        let is_level = held.is_some() && held == base;
        self.expect(matches!(role, Role::Level | Role::Send(_)) == is_level, || {
            format!("{plan:?} for process {}, which holds {held:?}", process.0)
        });
    }

    /// A member was attached from one plan to the next. No generation between the two went on from less than it holds.
    fn expect_nothing_passed_over(&mut self, process: ProcessId, (before, next): (Generation, Generation), held: Option<StateLabel>) {
        let mut between = self.generations.iter().filter(|(other, _)| before < **other && **other < next && other.epoch == next.epoch);
        let without = between.find(|(_, formed)| formed.base < held).map(|(other, formed)| (*other, formed.base));
        self.expect(without.is_none(), || format!("process {} was attached with {held:?} when {without:?} was formed", process.0));
    }

    /// A member holds a state: computed, received or restored.
    pub(crate) fn holds(&mut self, process: ProcessId, state: State) {
        let State { label, exact, fast } = state;
        self.highest = self.highest.max(label.step);
        let expected = self.undisturbed.after(label.step);
        self.expect(exact == expected, || {
            format!("process {} holds {label} with other parameters than an undisturbed run has after that step", process.0)
        });
        let other = *self.states.entry(label).or_insert(fast);
        self.expect(other == fast, || format!("process {} holds {label} with other parameters than another process", process.0));
    }

    /// A member has applied an update of its generation to which these parts had come.
    pub(crate) fn applied(&mut self, process: ProcessId, plan: &Plan, state: State, parts: &[Part]) {
        let label = state.label;
        self.note(&format!("process {} applies {label}", process.0));
        let formed = self.generations.get(&plan.generation);
        let shares: Vec<Vec<u64>> = formed.into_iter().flat_map(|formed| formed.members.values()).map(|(_, slots)| slots.clone()).collect();
        let is_member = formed.and_then(|formed| formed.members.get(&plan.rank)).is_some_and(|(member, _)| *member == process);
        self.expect(is_member, || format!("process {} commits {label}, of which it is no member", process.0));
        let same = parts.iter().all(|part| part.step == label.step && (part.exact, part.fast) == (parts[0].exact, parts[0].fast));
        self.expect(same, || format!("members of {} hold different states before {label}: {parts:?}", plan.generation));
        let is_first = self.ledger.entry(label).or_default().insert(process);
        self.expect(is_first, || format!("process {} commits {label} twice", process.0));
        self.expect_slots(label, &shares, parts);
        self.expect_wishes(process, label, parts);
        self.holds(process, state);
    }

    /// All members read the same wishes in a step, and none trains on after the step in which they were to leave.
    fn expect_wishes(&mut self, process: ProcessId, label: StateLabel, parts: &[Part]) {
        let read = parts.iter().fold(Flags::NONE, |read, part| read | part.flags);
        let raised = *self.raised.entry(label).or_insert(read);
        self.expect(raised == read, || format!("process {} reads {read:?} in {label}, another reads {raised:?}", process.0));
        let has_left = self.raised_before(label, 2).contains(Flags::LEAVE);
        self.expect(!has_left, || format!("process {} commits {label}, its group was to leave after the step before", process.0));
    }

    /// What was raised in a generation so many steps before; nothing when that was another generation's step.
    fn raised_before(&self, label: StateLabel, steps: u64) -> Flags {
        let before = label.step.checked_sub(steps).map(|step| StateLabel { step, ..label });
        before.and_then(|before| self.raised.get(&before)).copied().unwrap_or_default()
    }

    /// A member does what its group has agreed on, while it holds this state.
    pub(crate) fn obeys(&mut self, process: ProcessId, wish: Flags, label: StateLabel) {
        let agreed = self.raised_before(label, 1);
        self.expect(agreed.contains(wish), || {
            format!("process {} obeys {wish:?} with {label}: in the step before, {agreed:?} was raised", process.0)
        });
    }

    /// Every slot once, and each from the member whose it is: `shares` has each rank's.
    fn expect_slots(&mut self, label: StateLabel, shares: &[Vec<u64>], parts: &[Part]) {
        let mut slots: Vec<u64> = parts.iter().flat_map(|part| part.slots.clone()).collect();
        slots.sort_unstable();
        self.expect(slots == (0..GLOBAL_BATCH).collect::<Vec<_>>(), || format!("{label} has slots {slots:?}"));
        self.expect(parts.iter().map(|part| &part.slots).eq(shares), || {
            format!("{label} was computed by other members than its generation's: {parts:?}, not {shares:?}")
        });
    }

    /// A checkpoint became visible.
    pub(crate) fn visible(&mut self, process: ProcessId, label: StateLabel, is_complete: bool, fence: Fence) {
        self.note(&format!("process {} makes the checkpoint of {label} visible", process.0));
        self.expect(is_complete, || format!("the visible checkpoint of {label} is not complete"));
        let stale = self.successor(label.generation, fence);
        self.expect(stale.is_none(), || format!("the checkpoint of {label} became visible after {stale:?} was formed: it was not fenced"));
        self.newest_checkpoint = self.newest_checkpoint.max(Some(label));
    }

    /// A generation that its coordinator had formed after this one when it was asked.
    fn successor(&self, generation: Generation, fence: Fence) -> Option<Generation> {
        let mut later = self.generations.iter().filter(|(later, _)| **later > generation && later.epoch == fence.epoch);
        later.find(|(_, formed)| formed.seen < fence.asked).map(|(later, _)| *later)
    }

    /// A member got what it asked for in the store of its generation.
    pub(crate) fn answered(&mut self, process: ProcessId, generation: Generation, fence: Fence) {
        let later = self.successor(generation, fence);
        self.expect(later.is_none(), || {
            format!("process {} is answered in the store of {generation} after {later:?} was formed", process.0)
        });
    }

    /// A member that restores for all of its generation has read this checkpoint.
    pub(crate) fn restored(&mut self, process: ProcessId, generation: Generation, read: Option<StateLabel>) {
        self.note(&format!("process {} restores {read:?} for {generation}", process.0));
        self.expect(read.is_none_or(|label| label.generation <= generation), || {
            format!("process {} restores {read:?}, which a later generation wrote, for {generation}", process.0)
        });
        let newest = self.newest_checkpoint;
        self.expect(read == newest, || format!("{read:?} is restored, the newest is {newest:?}"));
    }

    pub(crate) fn exited(&mut self, process: ProcessId, reason: EndReason, held: Option<u64>) {
        self.note(&format!("process {} exits: {reason}, holds step {held:?}", process.0));
        self.exits.push((process, reason, held));
    }

    pub(crate) fn coordinator_started(&mut self, reign: Reign, world: World) {
        self.note(&format!("a coordinator with epoch {} starts: {world:?}", reign.epoch));
        let (started, bounds) = (self.now, vec![(world, self.now, Some(self.now))]);
        self.reigns.insert(reign, Known { started, bounds, sequence: 0, step: 0 });
    }

    /// The operator sends bounds to a coordinator, or hears that they are in force.
    pub(crate) fn bounds(&mut self, reign: Reign, world: World, is_accepted: bool) {
        let now = self.now;
        let Some(known) = self.reigns.get_mut(&reign) else { return };
        match known.bounds.last_mut() {
            Some((last, _, accepted)) if *last == world => {
                if is_accepted {
                    accepted.get_or_insert(now);
                }
            }
            _ => known.bounds.push((world, now, is_accepted.then_some(now))),
        }
    }

    /// A status that a coordinator shows.
    pub(crate) fn status(&mut self, reign: Reign, status: &Status) {
        let Some(known) = self.reigns.get_mut(&reign) else { return };
        let (seen, before) = (known.sequence, std::mem::replace(&mut known.step, status.step));
        let epoch = reign.epoch;
        let new: Vec<HistoryEntry> = status.history.iter().filter(|entry| entry.sequence > seen).cloned().collect();
        known.sequence = new.last().map_or(seen, |entry| entry.sequence);
        let went_back = new.iter().any(|entry| matches!(entry.event, HistoryEvent::WentBack { .. }));
        self.expect(status.step >= before || went_back, || {
            format!("the committed step under epoch {epoch} fell from {before} to {} without a word", status.step)
        });
        for entry in new {
            self.note(&format!("coordinator {epoch}: {:?}", entry.event));
            if let HistoryEvent::Formed { generation, world, .. } = entry.event {
                self.formed(reign, generation, world, entry.at);
            }
        }
    }

    fn formed(&mut self, reign: Reign, generation: Generation, members: u32, at: Duration) {
        let Some(known) = self.reigns.get(&reign) else { return };
        // The record of bounds and the coordinator's start are as exact as one step of the simulation.
        let (earliest, latest) = (known.started + at, known.started + at + 2 * TICK);
        let superseded =
            |place: usize| known.bounds.get(place + 1).and_then(|(.., accepted)| *accepted).is_some_and(|accepted| accepted < earliest);
        let mut in_force = known.bounds.iter().enumerate().filter(|(place, (_, sent, _))| *sent <= latest && !superseded(*place));
        let fits = in_force.any(|(_, (world, ..))| (world.min()..=world.max()).contains(&members));
        let bounds = format!("{:?}", known.bounds);
        self.expect(fits, || format!("{generation} was formed of {members} members, allowed are {bounds}"));
        let told = self.generations.get(&generation).map(|formed| formed.world);
        self.expect(told.is_none_or(|world| world == members), || format!("{generation} has {members} members, its plans say {told:?}"));
    }

    /// The job is complete: every step was committed, and the last one is saved.
    pub(crate) fn complete(&mut self, last_step: u64) {
        let steps: Vec<u64> = self.ledger.keys().map(|label| label.step).collect::<BTreeSet<_>>().into_iter().collect();
        self.expect(steps == (1..=last_step).collect::<Vec<_>>(), || format!("not every step up to {last_step} was committed: {steps:?}"));
        let newest = self.newest_checkpoint();
        self.expect(newest == Some(last_step), || format!("the job is complete at {last_step}, its newest checkpoint is {newest:?}"));
    }

    /// The job was stopped, and nothing stood in the way of a checkpoint. A step counts when all members of its generation have applied it:
    /// one that was lost in the middle of a step may hold one more, which is lost with it.
    pub(crate) fn stopped(&mut self) {
        let newest = self.newest_checkpoint();
        let held = self.exits.iter().filter(|(_, reason, _)| *reason == EndReason::Stopped).filter_map(|(.., held)| *held).max();
        let by_all = |label: &StateLabel, by: &BTreeSet<ProcessId>| {
            self.generations.get(&label.generation).is_some_and(|formed| by.len() == formed.world as usize)
        };
        let counted =
            self.ledger.iter().filter(|(label, by)| Some(label.step) <= held && by_all(label, by)).map(|(label, _)| label.step).max();
        self.expect(counted <= newest, || format!("the job was stopped with step {counted:?}, its newest checkpoint is {newest:?}"));
    }
}

#[cfg(test)]
mod tests;
