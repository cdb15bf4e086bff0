//! The operator is killed, or the answer is kept from it, when the API server has carried out its n-th write; for every n.

use std::{
    collections::BTreeMap,
    fmt::Write,
    future,
    sync::{Arc, Mutex, MutexGuard},
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{
    lab::{Lab, Place, epoch_of, uids},
    phases::{Expected, Phase, check_causes},
    proxy::{Fate, Passed, Proxy},
    support::Operator,
};

/// No phase writes as often: more would be a loop.
const MOST_WRITES: usize = 200;

/// What befalls the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It is killed, and another one is started.
    Kill,
    /// Its connection is cut before the answer.
    Cut,
}

/// One phase with a fault after the first write, then after the second, and so on, until there are no more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sequence {
    pub(crate) phase: Phase,
    pub(crate) mode: Mode,
    pub(crate) workers: u32,
}

/// How runs have ended.
#[derive(Default)]
pub(crate) struct Ends(Mutex<BTreeMap<Phase, Vec<End>>>);

struct End {
    run: String,
    status: Value,
}

impl Ends {
    fn add(&self, phase: Phase, run: String, status: Value) {
        self.0.lock().unwrap().entry(phase).or_default().push(End { run, status });
    }

    /// All runs of a phase have ended alike, and after at least so many different writes.
    pub(crate) fn check(&self, phase: Phase, fewest: usize) -> Result<()> {
        let ends = self.0.lock().unwrap();
        let ends = ends.get(&phase).with_context(|| format!("nothing ran of {phase:?}"))?;
        let (first, rest) = ends.split_first().context("no end")?;
        for end in rest {
            ensure!(end.status == first.status, "{} ended with {}\n{} with {}", first.run, first.status, end.run, end.status);
        }
        // Both modes, and of each the run that nothing befell.
        ensure!(ends.len() >= 2 * (fewest + 1), "{phase:?}: no more than {} runs", ends.len());
        Ok(())
    }

    pub(crate) fn describe(&self) -> String {
        let mut text = String::new();
        for (phase, ends) in &*self.0.lock().unwrap() {
            // To a string it always goes well.
            let _ = write!(text, "{} runs of {}; ", ends.len(), phase.name());
        }
        text
    }
}

/// When the fault comes, and whether it has come.
#[derive(Default)]
struct Fault(Mutex<State>);

#[derive(Default)]
struct State {
    armed: Option<(Mode, usize, u32)>,
    carried_out: usize,
    met: Option<Passed>,
    is_killed: bool,
}

impl Fault {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// From now on writes are counted; the fault comes with the n-th.
    fn arm(&self, mode: Mode, n: usize, operator: &Operator) {
        *self.lock() = State { armed: Some((mode, n, operator.process())), ..State::default() };
    }

    fn has_killed(&self) -> bool {
        self.lock().is_killed
    }

    /// The write that it came with; none comes any more.
    fn disarm(&self) -> Option<Passed> {
        let mut state = self.lock();
        state.armed = None;
        state.met.clone()
    }

    fn meet(&self, passed: Passed) -> Fate {
        let mut state = self.lock();
        if !passed.is_work() {
            return Fate::Pass;
        }
        if state.is_killed {
            return Fate::Cut;
        }
        let is_carried_out = passed.status.is_some_and(|status| status < 400);
        let Some((mode, n, process)) = state.armed.filter(|_| is_carried_out) else { return Fate::Pass };
        state.carried_out += 1;
        if state.carried_out < n {
            return Fate::Pass;
        }
        (state.met, state.armed) = (Some(passed), None);
        if mode == Mode::Kill {
            let process = Pid::from_raw(process.cast_signed()).expect("the operator's process");
            kill_process(process, Signal::KILL).expect("the operator runs");
            state.is_killed = true;
        }
        Fate::Cut
    }
}

/// Runs a sequence to its end.
pub(crate) fn run(lab: &Lab, sequence: Sequence, ends: &Ends) -> Result<()> {
    for n in 1..=MOST_WRITES {
        let name = format!("{}-{}-{n}", sequence.phase.name(), format!("{:?}", sequence.mode).to_lowercase());
        let (status, met) = run_once(lab, sequence, n, &name).with_context(|| name.clone())?;
        ends.add(sequence.phase, name, status);
        if met.is_none() {
            return Ok(());
        }
    }
    anyhow::bail!("{sequence:?}: {MOST_WRITES} writes and no end")
}

fn run_once(lab: &Lab, sequence: Sequence, n: usize, name: &str) -> Result<(Value, Option<Passed>)> {
    let Sequence { phase, mode, workers } = sequence;
    let place = lab.place(name)?;
    let fault = Arc::new(Fault::default());
    let meeting = Arc::clone(&fault);
    let proxy = Proxy::start(&lab.kubeconfig, move |passed, _| future::ready(meeting.meet(passed)))?;
    let operator = place.start_operator(&proxy.kubeconfig)?;
    if phase != Phase::Creation {
        Phase::Creation.begin(&place, workers)?;
        Phase::Creation.expected(workers, &BTreeMap::new()).wait_for_rest(&place, || false)?;
        place.look_once_more(&operator, || false)?;
    }
    let before = uids(&place.pods()?);
    let expected = phase.expected(workers, &before);
    fault.arm(mode, n, &operator);
    phase.begin(&place, workers)?;
    if expected.wait_for_rest(&place, || fault.has_killed())? {
        place.look_once_more(&operator, || fault.has_killed())?;
    }
    let met = fault.disarm();
    let undisturbed = i64::from(phase == Phase::CoordinatorLoss) + 1;
    let epochs = if fault.has_killed() {
        operator.kill()?;
        let epoch = epoch_after_kill(&place, phase, undisturbed)?;
        drop(proxy);
        place.hand_lease_back()?;
        let operator = place.start_operator(&lab.kubeconfig)?;
        expected.wait_for_rest(&place, || false)?;
        place.look_once_more(&operator, || false)?;
        operator.terminate()?;
        epoch..=epoch
    } else {
        operator.terminate()?;
        check_causes(&place).with_context(|| format!("after {met:?}"))?;
        // One whose pod or record the operator did not hear of is not given again.
        undisturbed..=undisturbed + i64::from(met.is_some())
    };
    let status = end(&place, &expected, &epochs).with_context(|| format!("after {met:?}"))?;
    place.delete_job()?;
    Ok((status, met))
}

fn end(place: &Place, expected: &Expected, epochs: &std::ops::RangeInclusive<i64>) -> Result<Value> {
    let epoch = place.job()?["status"]["coordinatorEpoch"].as_i64().context("no epoch")?;
    ensure!(epochs.contains(&epoch), "the epoch is {epoch}, and not in {epochs:?}");
    expected.check_end(place)
}

/// The epoch that the next operator has to come to. One that is on record and that no pod has may have been given to one: it is left out.
fn epoch_after_kill(place: &Place, phase: Phase, undisturbed: i64) -> Result<i64> {
    let recorded = place.job()?["status"]["coordinatorEpoch"].as_i64().unwrap_or(0);
    let before = i64::from(phase != Phase::Creation);
    let given = epoch_of(&place.pods()?).unwrap_or(before);
    Ok(if recorded > given { recorded + 1 } else { undisturbed })
}
