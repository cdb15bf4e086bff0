//! A training thread that only pretends, driven as the trainer's is ([`lcl_protocol::drive`]).

use std::{sync::Arc, time::Duration};

use lcl_coordinator::{Commands, MemberClient};
use lcl_protocol::{
    Activity, EndReason, Flags, Generation, MemberCommand, MemberError, MemberEvent, Moves, Plan, Refusal, Role, StateLabel,
    drive::{Agreed, DropCause, Failure, Halt, Level, Membership, Occasion, Standing, Steps, drive},
    spread,
};
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
        Self { scene, worker, process, client, commands, aborted, activity, state: None, group: None, saved: None }
    }

    /// Does what it is told until there is nothing more to do.
    pub(crate) async fn run(mut self) -> Ended {
        let (scene, process) = (Arc::clone(&self.scene), self.process);
        let ended = drive(&mut self).await;
        scene.expect(ended.is_ok(), || format!("the machine of process {} refuses an event: {ended:?}", process.0));
        ended.unwrap_or(Ended::Left)
    }

    pub(crate) fn tell(&self, event: MemberEvent) {
        let result = self.client.report(event);
        self.scene.expect(result.is_ok(), || format!("the machine of process {} refuses an event: {result:?}", self.process.0));
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

    /// One half after the other; each is the whole of this small state. What it has stays until all has been passed on.
    async fn pass_on(&mut self, generation: Generation, moves: &Moves, base: Option<StateLabel>) -> Result<(), String> {
        let mut received = None;
        for hop in &moves.halves {
            if let Some(from) = hop.from {
                let state = self.receive(generation, from, base).await?;
                self.scene.expect(received.is_none_or(|other| other == state), || {
                    format!("process {} receives halves of two states", self.process.0)
                });
                received = Some(state);
            }
            self.send(generation, &hop.to, received.or(self.state)).await?;
        }
        if let Some(state) = received {
            self.state = Some(state);
            self.saved = None;
        }
        Ok(())
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

    async fn receive(&mut self, generation: Generation, from: u32, base: Option<StateLabel>) -> Result<State, String> {
        let group = self.group.as_mut().ok_or("the group is gone")?;
        let received = unless_aborted(self.aborted.clone(), generation, EXCHANGE_TIMEOUT, group.receive(from)).await?;
        let state = State::from_frame(received).ok_or("what came is no state")?;
        self.scene.expect(base.is_none_or(|base| base == state.label), || {
            format!("process {} receives {}, the base of {generation} is {base:?}", self.process.0, state.label)
        });
        Ok(state)
    }

    /// Takes the newest checkpoint; gives the generation that wrote it when that is a later one: this one is over then, and the coordinator
    /// that formed it was replaced.
    fn restore(&mut self, generation: Generation) -> Option<Generation> {
        let newest = self.scene.storage().newest();
        let name = newest.map(|(name, _)| name);
        if let Some(by) = name.map(|name| name.generation).filter(|by| *by > generation && !self.scene.has(Bug::RestoreLater)) {
            return Some(by);
        }
        self.scene.judge().restored(self.process, generation, name);
        let state = newest.map_or_else(|| State::initial(generation), |(_, state)| state);
        self.state = Some(State { label: StateLabel { step: state.label.step, generation }, ..state });
        self.saved = name.map(|name| name.step);
        None
    }

    fn generation(&self) -> Option<Generation> {
        self.group.as_ref().map(|group| group.plan.generation)
    }

    /// One operation of the group.
    pub(crate) async fn swap(&mut self, generation: Generation, own: Frame, patience: Duration) -> Result<Vec<Frame>, Broken> {
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

    pub(crate) fn abort_of(&self) -> watch::Receiver<Option<Generation>> {
        self.aborted.clone()
    }
}

/// What a step's exchange has brought.
pub(crate) struct Exchanged {
    plan: Plan,
    state: State,
    parts: Vec<Part>,
    /// It did not complete: only a trainer with a fault goes on from here.
    failure: Option<String>,
}

impl Steps for Training {
    type Error = MemberError;
    type Exit = Ended;
    type Exchanged = Exchanged;

    fn is_asked_to_leave(&self) -> bool {
        self.scene.worker(self.worker).is_asked_to_end
    }

    fn standing(&self) -> Standing {
        Standing {
            completed_steps: self.state.map_or(0, |state| state.label.step),
            steps: self.scene.control().last_step,
            consecutive_skips: 0,
            most_skips: u32::MAX,
            has_bad_data: false,
            has_trained: true,
        }
    }

    /// This member's slots, to all.
    async fn exchange(&mut self) -> Result<Exchanged, Halt<MemberError>> {
        let (Some(group), Some(state)) = (self.group.as_ref(), self.state) else { return Err(Halt::Group("the group is gone".to_owned())) };
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
        let exchanged = self.swap(plan.generation, part.to_frame(), EXCHANGE_TIMEOUT).await;
        let (frames, failure) = match exchanged {
            Ok(frames) => (frames, None),
            Err(Broken { reason, arrived }) if self.scene.has(Bug::ApplyAbortedBuffer) && !arrived.is_empty() => (arrived, Some(reason)),
            Err(Broken { reason, .. }) => return Err(Halt::Group(reason)),
        };
        Ok(Exchanged { plan, state, parts: frames.into_iter().filter_map(Part::from_frame).collect(), failure })
    }

    /// The update, once the exchange has completed.
    async fn step(&mut self, exchanged: Exchanged) -> Result<Agreed, Halt<MemberError>> {
        let Exchanged { plan, state, parts, failure } = exchanged;
        let generation = plan.generation;
        let updated = state.updated(generation, &parts);
        self.scene.judge().applied(self.process, &plan, updated, &parts);
        self.state = Some(updated);
        let flags = parts.iter().fold(Flags::NONE, |agreed, part| agreed | part.flags);
        if let Some(reason) = failure {
            self.report(MemberEvent::Committed { generation, step: updated.label.step, agreed: flags })?;
            return Err(Halt::Group(reason));
        }
        Ok(Agreed { flags, is_busy: false })
    }

    async fn save(&mut self, occasion: Occasion) -> Result<(), Halt<MemberError>> {
        let Some(generation) = self.generation() else { return Ok(()) };
        let step = self.state.map_or(0, |state| state.label.step);
        match occasion {
            Occasion::Step(_) if !step.is_multiple_of(SAVE_EVERY) => return Ok(()),
            Occasion::Step(_) => {}
            Occasion::Asked => self.obeys(Flags::CHECKPOINT),
            Occasion::Last(_) => return self.write_checkpoint(generation).await.map_err(Halt::Group),
        }
        if let Err(reason) = self.write_checkpoint(generation).await {
            self.note(&format!("could not write a checkpoint ({occasion:?}): {reason}"));
        }
        Ok(())
    }

    async fn fail(&mut self, failure: Failure) -> MemberError {
        // Nothing here can fail: every update is possible, and no record is bad.
        unreachable!("{failure:?}")
    }

    async fn exit(&mut self, reason: EndReason, _: bool) -> Result<Ended, MemberError> {
        match self.state {
            Some(state) => self.scene.judge().exited(self.process, reason, Some(state.label.step)),
            None => self.note("leaves before its first step"),
        }
        Ok(Ended::Left)
    }
}

impl Membership for Training {
    fn report(&mut self, event: MemberEvent) -> Result<(), MemberError> {
        self.client.report(event)
    }

    fn command(&mut self) -> Option<MemberCommand> {
        self.commands.try_next()
    }

    async fn next_command(&mut self) -> Option<MemberCommand> {
        let command = self.commands.try_next();
        if command.is_none() {
            sleep(TICK).await;
        }
        command
    }

    fn holds_state(&self) -> bool {
        self.client.held().is_some()
    }

    fn is_alone(&self) -> bool {
        self.group.as_ref().is_some_and(|group| group.plan.world == 1)
    }

    async fn form(&mut self, plan: Plan) -> Result<(), Halt<MemberError>> {
        let generation = plan.generation;
        let stream = self.scene.worker(self.worker).streams;
        self.scene.judge().plan(self.process, &plan, self.client.held(), stream);
        let formed = Group::form(self.store(generation), plan);
        let group = unless_aborted(self.aborted.clone(), generation, FORM_TIMEOUT, formed).await.map_err(Halt::Group)?;
        self.group = Some(group);
        Ok(())
    }

    async fn level(&mut self, generation: Generation, role: Role, base: Option<StateLabel>) -> Result<Level, Halt<MemberError>> {
        if role == Role::Restore
            && let Some(by) = self.restore(generation)
        {
            return Ok(Level::Overtaken(by));
        }
        let moves = match role {
            Role::Level => Moves::default(),
            Role::Send(moves) | Role::Receive(moves) => moves,
            // That those who have the same state get nothing is not played here.
            Role::Restore | Role::Follow => self.group.as_ref().map_or_else(Moves::default, |group| {
                let has: Vec<bool> = (0..group.plan.world).map(|rank| rank == 0).collect();
                spread(&has).into_iter().nth(group.plan.rank as usize).unwrap_or_default()
            }),
        };
        self.pass_on(generation, &moves, base).await.map_err(Halt::Group)?;
        let Some(state) = self.state else { return Err(Halt::Group("there is nothing to send".to_owned())) };
        self.scene.judge().holds(self.process, state);
        Ok(Level::At(state.label.step))
    }

    fn begin(&mut self, _: Generation, _: u64) -> Result<(), MemberError> {
        self.activity.send_modify(|activity| activity.operations = 0);
        Ok(())
    }

    async fn leave(&mut self, generation: Generation) -> Result<(), MemberError> {
        self.obeys(Flags::LEAVE);
        let own = self.state.map(State::to_frame).unwrap_or_default();
        // So that nobody's last exchange loses its peer; whether all came does not matter any more.
        let _ = self.swap(generation, own, LEAVE_TIMEOUT).await;
        Ok(())
    }

    fn drop_group(&mut self, generation: Generation, why: &DropCause) -> Result<(), MemberError> {
        if let DropCause::Failed(reason) = why {
            self.note(&format!("{generation} failed: {reason}"));
        }
        self.group = None;
        Ok(())
    }

    async fn refused(&mut self, refusal: Refusal) -> Result<Ended, MemberError> {
        let Refusal::Superseded { own, newest, .. } = refusal else {
            self.scene.expect(false, || format!("process {} is refused for good: {refusal}", self.process.0));
            return Ok(Ended::Left);
        };
        // One process of a worker runs at a time. One that a replaced coordinator gave its ticket may come behind one before it that the
        // successor has seen.
        self.scene.expect(own.ticket.epoch < newest.ticket.epoch, || {
            format!("process {} is refused with {own}, the newest of its worker has {newest}", self.process.0)
        });
        self.note(&format!("has {own}, the newest of its worker {newest}"));
        Ok(Ended::Superseded)
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
