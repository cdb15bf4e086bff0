//! A training thread that only pretends, but does what the trainer's does in the same order (`trainer/src/training/member.rs`).

use std::{sync::Arc, time::Duration};

use lcl_coordinator::{Commands, MemberClient};
use lcl_protocol::{Activity, Flags, Generation, MemberCommand, MemberEvent, Moves, Plan, Refusal, Role, StateLabel, spread};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use crate::{
    group::{Broken, Group, Store},
    judge::ProcessId,
    model::{Frame, GLOBAL_BATCH, Part, State},
    scene::{Bug, Scene, TICK},
};

/// Longest wait for a group to be built.
const FORM_TIMEOUT: Duration = Duration::from_secs(2);
/// Of a single exchange: longer than the coordinator takes to notice a member that stands still.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(6);
/// Members that leave in order wait for each other so long.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);
/// Steps between two checkpoints that nobody asks for.
const SAVE_EVERY: u64 = 15;

/// What the training thread of a member does. Everything in it may be dropped at any `await`: the process was killed.
pub(crate) struct Training {
    pub(crate) scene: Arc<Scene>,
    pub(crate) worker: usize,
    pub(crate) process: ProcessId,
    pub(crate) client: MemberClient,
    commands: Commands,
    /// The last generation whose group was to be aborted.
    aborted: watch::Receiver<Option<Generation>>,
    activity: watch::Sender<Activity>,
    pub(crate) state: Option<State>,
    pub(crate) group: Option<Group>,
    /// Completed steps of the newest checkpoint that it knows to be visible.
    pub(crate) saved: Option<u64>,
    is_draining: bool,
}

/// Whether there is anything more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    GoOn,
    Exit,
    GiveUp,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// There is nothing more to do.
    Left,
    /// There is a newer process of its name.
    Superseded,
}

impl Training {
    pub(crate) fn new(
        scene: Arc<Scene>,
        (worker, process): (usize, ProcessId),
        (client, commands): (MemberClient, Commands),
        aborted: watch::Receiver<Option<Generation>>,
        activity: watch::Sender<Activity>,
    ) -> Self {
        Self { scene, worker, process, client, commands, aborted, activity, state: None, group: None, saved: None, is_draining: false }
    }

    /// Waits for commands and obeys until there is nothing more to do.
    pub(crate) async fn run(mut self) -> Ended {
        loop {
            self.ask_to_leave_when_asked();
            if self.is_draining && self.group.is_none() && self.client.held().is_none() {
                // Nobody needs anything of it, and a coordinator that would let it go may not be there.
                self.note("leaves before its first step");
                return Ended::Left;
            }
            match self.commands.try_next() {
                None => sleep(TICK).await,
                Some(command) => match self.obey(command).await {
                    Then::GoOn => {}
                    Then::Exit => return Ended::Left,
                    Then::GiveUp => return Ended::Superseded,
                },
            }
        }
    }

    fn ask_to_leave_when_asked(&mut self) {
        if self.scene.worker(self.worker).is_asked_to_end && !self.is_draining {
            self.is_draining = true;
            self.report(MemberEvent::Drain);
        }
    }

    pub(crate) fn report(&self, event: MemberEvent) {
        let result = self.client.report(event);
        self.scene.expect(result.is_ok(), || format!("the machine of process {} refuses an event: {result:?}", self.process.0));
    }

    async fn obey(&mut self, command: MemberCommand) -> Then {
        match command {
            MemberCommand::FormGroup(plan) => self.form(plan).await,
            MemberCommand::Recover { generation, role, base } => self.recover(generation, role, base).await,
            MemberCommand::Train { generation, .. } => self.train(generation).await,
            MemberCommand::WriteCheckpoint { generation, .. } => {
                self.obeys(Flags::CHECKPOINT);
                if let Err(reason) = self.save(generation).await {
                    self.note(&format!("could not write the checkpoint that was asked for: {reason}"));
                }
            }
            MemberCommand::LeaveGroup { generation } => {
                self.obeys(Flags::LEAVE);
                let own = self.state.map(State::to_frame).unwrap_or_default();
                // So that nobody's last exchange loses its peer; whether all came does not matter any more.
                let _ = self.exchange(generation, own, LEAVE_TIMEOUT).await;
                self.close(generation, None);
            }
            MemberCommand::AbortGroup { generation, .. } => self.close(generation, None),
            MemberCommand::Exit { reason, .. } => {
                self.scene.judge().exited(self.process, reason, self.state.map(|state| state.label.step));
                return Then::Exit;
            }
            MemberCommand::GiveUp(Refusal::Superseded { own, newest, .. }) => {
                // One process of a worker runs at a time. One that a replaced coordinator gave its ticket may come behind one before it
                // that the successor has seen.
                self.scene.expect(own.ticket.epoch < newest.ticket.epoch, || {
                    format!("process {} is refused with {own}, the newest of its worker has {newest}", self.process.0)
                });
                self.note(&format!("has {own}, the newest of its worker {newest}"));
                return Then::GiveUp;
            }
            MemberCommand::GiveUp(refusal) => {
                self.scene.expect(false, || format!("process {} is refused for good: {refusal}", self.process.0));
                return Then::Exit;
            }
            MemberCommand::Connect | MemberCommand::Disconnect { .. } | MemberCommand::Send(_) | MemberCommand::StoreResponse { .. } => {}
        }
        Then::GoOn
    }

    pub(crate) fn note(&self, what: &str) {
        self.scene.judge().note(&format!("process {}: {what}", self.process.0));
    }

    fn obeys(&self, wish: Flags) {
        if let Some(state) = self.state {
            self.scene.judge().obeys(self.process, wish, state.label);
        }
    }

    pub(crate) fn store(&self, generation: Generation) -> Store {
        let (scene, inner) = (Arc::clone(&self.scene), self.client.store(generation));
        Store { scene, worker: self.worker, process: self.process, generation, inner }
    }

    async fn form(&mut self, plan: Plan) {
        let generation = plan.generation;
        let stream = self.scene.worker(self.worker).streams;
        self.scene.judge().plan(self.process, &plan, self.client.held(), stream);
        let formed = Group::form(self.store(generation), plan);
        match unless_aborted(self.aborted.clone(), generation, FORM_TIMEOUT, formed).await {
            Ok(group) => {
                self.group = Some(group);
                self.report(MemberEvent::GroupFormed { generation });
            }
            Err(reason) => self.close(generation, Some(reason)),
        }
    }

    async fn recover(&mut self, generation: Generation, role: Role, base: Option<StateLabel>) {
        if self.group.as_ref().is_none_or(|group| group.plan.generation != generation) {
            return;
        }
        if role == Role::Restore && !self.restore(generation) {
            return;
        }
        let moves = match role {
            Role::Level => Moves::default(),
            Role::Send { to } => Moves { from: None, to },
            Role::Receive { from, to } => Moves { from: Some(from), to },
            // That those who have the same state get nothing is not played here.
            Role::Restore | Role::Follow => self.group.as_ref().map_or_else(Moves::default, |group| {
                let has: Vec<bool> = (0..group.plan.world).map(|rank| rank == 0).collect();
                spread(&has).into_iter().nth(group.plan.rank as usize).unwrap_or_default()
            }),
        };
        let outcome = match moves.from {
            None => self.send(generation, &moves.to, self.state).await,
            Some(from) => self.receive(generation, from, &moves.to, base).await,
        };
        match (outcome, self.state) {
            (Ok(()), Some(state)) => {
                self.scene.judge().holds(self.process, state);
                self.report(MemberEvent::Recovered { generation, step: state.label.step });
            }
            (Ok(()), None) => self.close(generation, Some("there is nothing to send".to_owned())),
            (Err(reason), _) => self.close(generation, Some(reason)),
        }
    }

    async fn send(&mut self, generation: Generation, to: &[u32], state: Option<State>) -> Result<(), String> {
        let (Some(group), Some(state)) = (self.group.as_mut(), state) else { return Ok(()) };
        for rank in to {
            // Time in which the source can be lost between two receivers.
            sleep(self.scene.between(5, 30)).await;
            unless_aborted(self.aborted.clone(), generation, EXCHANGE_TIMEOUT, group.send(*rank, state.to_frame())).await?;
        }
        Ok(())
    }

    /// What it has stays until all has been passed on.
    async fn receive(&mut self, generation: Generation, from: u32, to: &[u32], base: Option<StateLabel>) -> Result<(), String> {
        let Some(group) = self.group.as_mut() else { return Ok(()) };
        let received = unless_aborted(self.aborted.clone(), generation, EXCHANGE_TIMEOUT, group.receive(from)).await?;
        let state = State::from_frame(received).ok_or("what came is no state")?;
        self.scene.expect(base.is_none_or(|base| base == state.label), || {
            format!("process {} receives {}, the base of {generation} is {base:?}", self.process.0, state.label)
        });
        self.send(generation, to, Some(state)).await?;
        self.state = Some(state);
        self.saved = None;
        Ok(())
    }

    /// Takes the newest checkpoint. `false`: a later generation wrote it, so this one is over, and the coordinator that formed it was
    /// replaced.
    fn restore(&mut self, generation: Generation) -> bool {
        let newest = self.scene.storage().newest();
        let name = newest.map(|(name, _)| name);
        if let Some(by) = name.map(|name| name.generation).filter(|by| *by > generation && !self.scene.has(Bug::RestoreLater)) {
            self.report(MemberEvent::Overtaken { generation, by });
            return false;
        }
        self.scene.judge().restored(self.process, generation, name);
        let state = newest.map_or_else(|| State::initial(generation), |(_, state)| state);
        self.state = Some(State { label: StateLabel { step: state.label.step, generation }, ..state });
        self.saved = name.map(|name| name.step);
        true
    }

    async fn train(&mut self, generation: Generation) {
        if self.group.as_ref().is_none_or(|group| group.plan.generation != generation) {
            return;
        }
        self.activity.send_modify(|activity| activity.operations = 0);
        loop {
            self.ask_to_leave_when_asked();
            let step = self.state.map_or(0, |state| state.label.step);
            if step >= self.scene.control().last_step {
                return self.finish(generation).await;
            }
            let agreed = match self.step(generation).await {
                Ok(agreed) => agreed,
                Err(reason) => return self.close(generation, Some(reason)),
            };
            if (step + 1).is_multiple_of(SAVE_EVERY)
                && let Err(reason) = self.save(generation).await
            {
                self.note(&format!("could not write a checkpoint: {reason}"));
            }
            self.report(MemberEvent::Committed { generation, step: step + 1, agreed });
            while let Some(command) = self.commands.try_next() {
                let goes_on = matches!(command, MemberCommand::WriteCheckpoint { .. });
                // An exit cannot be one of them: it follows the end of a group.
                if !matches!(command, MemberCommand::Train { .. }) {
                    Box::pin(self.obey(command)).await;
                }
                if !goes_on {
                    return;
                }
            }
        }
    }

    /// One step over this member's slots. The update is applied only when the exchange has completed.
    async fn step(&mut self, generation: Generation) -> Result<Flags, String> {
        let (Some(group), Some(state)) = (self.group.as_ref(), self.state) else { return Err("the group is gone".to_owned()) };
        let plan = group.plan.clone();
        sleep(self.scene.between(5, 25)).await;
        while self.scene.worker(self.worker).is_stalled {
            sleep(TICK).await;
        }
        let part = Part {
            step: state.label.step + 1,
            slots: plan.division.slots_of(plan.seat, GLOBAL_BATCH).into_iter().flatten().collect(),
            exact: state.exact,
            fast: state.fast,
            flags: self.client.flags(),
        };
        let exchanged = self.exchange(generation, part.to_frame(), EXCHANGE_TIMEOUT).await;
        let (frames, failure) = match exchanged {
            Ok(frames) => (frames, None),
            Err(Broken { reason, arrived }) if self.scene.has(Bug::ApplyAbortedBuffer) && !arrived.is_empty() => (arrived, Some(reason)),
            Err(Broken { reason, .. }) => return Err(reason),
        };
        let parts: Vec<Part> = frames.into_iter().filter_map(Part::from_frame).collect();
        let updated = state.updated(generation, &parts);
        self.scene.judge().applied(self.process, &plan, updated, &parts);
        self.state = Some(updated);
        let agreed = parts.iter().fold(Flags::NONE, |agreed, part| agreed | part.flags);
        match failure {
            None => Ok(agreed),
            Some(reason) => {
                self.report(MemberEvent::Committed { generation, step: updated.label.step, agreed });
                Err(reason)
            }
        }
    }

    /// One operation of the group.
    pub(crate) async fn exchange(&mut self, generation: Generation, own: Frame, patience: Duration) -> Result<Vec<Frame>, Broken> {
        self.activity.send_modify(|activity| activity.operations += 1);
        let broken = |reason: &str| Broken { reason: reason.to_owned(), arrived: Vec::new() };
        let Some(group) = self.group.as_mut().filter(|group| group.plan.generation == generation) else {
            return Err(broken("the group is gone"));
        };
        let mut aborted = self.aborted.clone();
        tokio::select! {
            biased;
            _ = aborted.wait_for(|aborted| *aborted >= Some(generation)) => Err(Broken { reason: "aborted".to_owned(), arrived: vec![own] }),
            exchanged = timeout(patience, group.exchange(own)) => exchanged.unwrap_or_else(|_| Err(broken("no answer in time"))),
        }
    }

    /// The last step is done: the state is saved before this member says so.
    async fn finish(&mut self, generation: Generation) {
        match self.save(generation).await {
            Ok(()) => self.report(MemberEvent::Finished { generation }),
            // The next group tries again.
            Err(reason) => self.close(generation, Some(reason)),
        }
    }

    /// Drops the group and says so.
    fn close(&mut self, generation: Generation, failure: Option<String>) {
        if let Some(reason) = &failure {
            self.note(&format!("{generation} failed: {reason}"));
        }
        self.group = None;
        self.report(MemberEvent::GroupClosed { generation, failure });
    }

    pub(crate) fn abort_of(&self) -> watch::Receiver<Option<Generation>> {
        self.aborted.clone()
    }
}

/// Waits for something of a generation, until its group is to be aborted.
pub(crate) async fn unless_aborted<T>(
    mut aborted: watch::Receiver<Option<Generation>>,
    generation: Generation,
    patience: Duration,
    work: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    tokio::select! {
        biased;
        _ = aborted.wait_for(|aborted| *aborted >= Some(generation)) => Err("aborted".to_owned()),
        done = timeout(patience, work) => done.unwrap_or_else(|_| Err(format!("no answer within {patience:?}"))),
    }
}
