//! What is asked of the model: a start, a restore, losses, and replacements.

use crate::{
    settings::Settings,
    simulation::{Group, Simulation},
};

/// When in a step members are lost, as parts of it: the worst of them counts.
const PHASES: [f64; 5] = [0.02, 0.2, 0.4, 0.7, 0.98];
/// Steps before that.
const STEPS: usize = 2;
/// Completed steps of the checkpoint that is restored.
const SAVED: u64 = 1000;

/// How a group came to its next step. Times in seconds from `begin`: the start, the loss, or the last step before all left.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) what: String,
    /// Until all have met and are connected.
    pub(crate) formed: f64,
    /// Until all hold one state: the next step begins.
    pub(crate) level: f64,
    /// Until that is done.
    pub(crate) done: f64,
    /// Members that received the state.
    pub(crate) received: usize,
    /// States that one sent, at most.
    pub(crate) sent: f64,
    /// Members that it passed, at most.
    pub(crate) chain: u32,
    /// Messages of the coordinator, both ways.
    pub(crate) messages: u64,
}

fn row(what: &str, begin: f64, group: &Group, messages: u64) -> Row {
    Row {
        what: what.to_owned(),
        formed: group.formed - begin,
        level: group.level - begin,
        done: group.steps.first().map_or(f64::INFINITY, |step| step - begin),
        received: group.received,
        sent: group.halves as f64 / lcl_protocol::HALVES as f64,
        chain: group.chain,
        messages,
    }
}

/// All members start at once. `restores`: they find a checkpoint.
pub(crate) fn start(settings: &Settings, members: usize, restores: bool) -> Row {
    let mut simulation = Simulation::new(settings, members, restores.then_some(SAVED));
    let generation = simulation.run_until_step(members, 1);
    row(if restores { "restore" } else { "fresh start" }, 0.0, &simulation.groups[&generation], simulation.messages)
}

/// The last `lost` members are lost in a step, at the worst moment of it: how the others went on, and how the group was whole again.
pub(crate) fn loss(settings: &Settings, members: usize, lost: usize, is_silent: bool) -> [Row; 2] {
    let at = |phase: &f64| {
        let mut simulation = Simulation::new(settings, members, None);
        simulation.run_until_step(members, STEPS);
        simulation.pass(phase * settings.step);
        let (instant, before) = (simulation.now, simulation.messages);
        simulation.lose(members - lost..members, is_silent);
        let survivors = simulation.run_until_step(members - lost, 1);
        let what = format!("{lost} lost{}", if is_silent { ", their node silent" } else { "" });
        let went_on = row(&format!("{what}: survivors"), instant, &simulation.groups[&survivors], simulation.messages - before);
        let before = simulation.messages;
        let whole = simulation.run_until_step(members, 1);
        let before_it = simulation.groups.range(..whole).next_back().and_then(|(_, group)| group.steps.last().copied()).unwrap_or(instant);
        [went_on, row(&format!("{what}: replaced"), before_it, &simulation.groups[&whole], simulation.messages - before)]
    };
    let runs = PHASES.each_ref().map(at);
    let worst = |index: usize| {
        let rows = runs.iter().map(|rows| &rows[index]);
        rows.max_by(|left, right| left.done.total_cmp(&right.done)).cloned().expect("there are phases")
    };
    [worst(0), worst(1)]
}
