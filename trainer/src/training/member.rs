//! Training as one member of many: does what the coordinator's commands say, from forming a group to the last step.
//!
//! Comes in: commands of the protocol's member machine (`lcl-protocol`). Goes out: steps of this member's slots and its part of checkpoints.
//! The member of rank 0, the leader, also commits them, and writes `metrics.jsonl` and `TensorBoard` files for all.
//!
//! A failed collective never reaches the weights: [`Learner::train_step_with`] applies an update only when every gradient was summed
//! without an error. The process and its weights stay, the next generation goes on from there.

mod activity;
mod collectives;
mod leader;
mod level;
mod meeting;
mod rendezvous;
mod saving;
mod tally;
mod transfer;

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use lcl_checkpoint::{CheckpointId, CheckpointStore, StoreOptions};
use lcl_coordinator::{ClientOptions, Commands, MemberClient, Security, StartError};
use lcl_data::{Batch, Dataset, Loader, LoaderOptions, Orders, Slots};
use lcl_protocol::{
    ActivityStage, EndReason as ProtocolEnd, Flags, Generation, Identity as MemberIdentity, Incarnation, MemberCommand, MemberError,
    MemberEvent, MemberName, MemberSettings, Plan, Refusal,
};
use lcl_torch::{
    Device, DeviceError, DeviceTestError, Learner, MemberStep, StepReport, choose_device,
    collectives::{AbortHandle, Group, GroupError, GroupOptions, SelfTestError, Usage},
    shim::ShimError,
};
use lcl_trainer_config::{ExitCode, TrainerConfig};

pub use self::tally::PartsError;
use self::{
    activity::ActivityCell,
    leader::{Leader, Situation},
    rendezvous::Rendezvous,
    tally::{JoinError, Tally, Wanted},
};
use super::{
    TrainError, TrainOptions, bad_data,
    describe::share_wait,
    nothing_trained, open_data,
    prepare::{Progress, suspect},
    saver::{FinalSaveError, Saver},
    share::{self, checkpoint_bytes, machine_of, prepare_process, warn_of_slow_precision},
};
use crate::{
    chain,
    fail_point::{self, Place},
    identity::Identity,
    log_place,
    records::{DataStages, EndReason},
    state_log::{self, Origin},
};

/// Longest wait for all members of a generation to build their group.
const FORM_TIMEOUT: Duration = Duration::from_secs(30);
/// Of a single exchange. A member that is lost or stands still is noticed by its broken connection or by the coordinator (by default after
/// two minutes) before; the time-out is for what neither shows (decision 10). Members wait for the slowest one's data, too.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(150);
/// How often a waiting member looks whether it was asked to stop.
const PATIENCE: Duration = Duration::from_millis(50);
/// For how long a member that was asked to stop waits for its batch: one that comes late still makes the step, after which it leaves in order. With
/// what ends the requests it leaves within a second.
const BATCH_PATIENCE: Duration = Duration::from_millis(500);

/// Beside the flags of a step: this member still writes a checkpoint.
const BUSY: i64 = 1 << 32;

/// Who this member is and whom it asks.
#[derive(Clone, Debug)]
pub struct MemberOptions {
    /// `host:port` of the coordinator.
    pub coordinator: String,
    /// How the wire to it is protected.
    pub security: Security,
    /// Between two heartbeats.
    pub heartbeat_interval: Duration,
    /// After how long without a word the coordinator is lost.
    pub coordinator_timeout: Duration,
    /// The worker it belongs to.
    pub worker: String,
    /// Its number within the worker.
    pub index: u32,
    /// Which process of that name this one is.
    pub incarnation: Incarnation,
    /// The node it runs on.
    pub node: String,
    /// Address of this host under which the other members reach it.
    pub host: IpAddr,
    /// What tells this job's generations from those of another with the same checkpoint folder; `None` when the folder itself counts.
    pub job: Option<String>,
}

/// Taking part failed.
#[derive(Debug, thiserror::Error)]
pub enum MemberRunError {
    /// The client cannot be started.
    #[error("joining the training group")]
    Start(#[from] StartError),
    /// The coordinator will never take this member.
    #[error("the coordinator refuses this member")]
    Refused(#[from] Refusal),
    /// A group cannot be formed even within this process.
    #[error(
        "collectives do not work at {host}: it has to be an address of this host (for a pod its own), and nothing may block connections to it"
    )]
    SelfTest {
        /// The member's address.
        host: IpAddr,
        /// What failed.
        #[source]
        source: SelfTestError,
    },
    /// There is no such device.
    #[error("choosing the device of this member")]
    NoDevice(#[source] DeviceError),
    /// The device computes wrongly, or not at all.
    #[error("this machine fails the self-test")]
    Device(#[from] DeviceTestError),
    /// This member computes on a GPU, and NCCL is not there.
    #[error("members on GPUs sum by NCCL")]
    Nccl {
        /// What is missing.
        #[source]
        source: ShimError,
    },
    /// Some sample would have been trained twice, or not at all.
    #[error("this is a fault of the program")]
    Parts(#[from] PartsError),
    /// The last step is done, and this member's part of the checkpoint cannot be written.
    #[error("the run is done without its last checkpoint")]
    Unsaved(#[source] FinalSaveError),
    /// A mistake in the program.
    #[error("this is a fault of the program, please report it")]
    Machine(#[from] MemberError),
    /// The collectives failed in a way that no other generation cures.
    #[error("building a training group")]
    Group(#[from] GroupError),
}

/// The group of a generation.
struct Joined {
    generation: Generation,
    rank: u32,
    world: u32,
    slots: Slots,
    group: Group,
    loader: Option<Loader>,
    /// The step of the loader's next batch.
    loads: u64,
}

/// The group that an abort from the client's thread has to reach.
type Abortable = Arc<Mutex<Option<(Generation, AbortHandle)>>>;

/// A member between its first and its last generation.
struct MemberRun<'a> {
    options: &'a TrainOptions,
    member: MemberOptions,
    config: TrainerConfig,
    /// Where checkpoints and the run's files go.
    store: CheckpointStore,
    identity: Identity,
    /// See [`machine_of`].
    machine: Option<String>,
    dataset: Arc<Dataset>,
    order: Orders,
    device: Device,
    learner: Learner,
    progress: Progress,
    /// Completed steps of the checkpoint that the state was read from, if nothing was trained since.
    restored: Option<u64>,
    /// The checkpoint that this member has read for its group.
    came_from: Option<CheckpointId>,
    client: MemberClient,
    commands: Commands,
    abortable: Abortable,
    joined: Option<Joined>,
    leader: Option<Leader>,
    saver: Option<Saver>,
    tally: Tally,
    activity: Arc<ActivityCell>,
    is_draining: bool,
    /// Steps that were left because their data did not come after a stop was asked for.
    left_steps: u32,
    /// Leaves without the coordinator's word.
    is_leaving: bool,
}

/// Trains as one member until the job ends or this member has to leave.
pub fn train_as_member(config: TrainerConfig, options: TrainOptions, member: MemberOptions) -> Result<ExitCode, TrainError> {
    // Everything that belongs to libtorch is made and dropped on this thread.
    let work = move || match MemberRun::prepare(config, &options, member) {
        // The coordinator has not heard of this member yet.
        Err(TrainError::StoppedBefore) => Ok(ExitCode::Preempted),
        prepared => prepared?.run(),
    };
    let thread = thread::Builder::new().name("training".to_owned()).spawn(work).map_err(|source| TrainError::Thread { source })?;
    thread.join().unwrap_or(Err(TrainError::Panicked))
}

impl<'a> MemberRun<'a> {
    /// Everything that takes time is done before the coordinator hears of this member: the others wait for nothing but the state.
    fn prepare(config: TrainerConfig, options: &'a TrainOptions, member: MemberOptions) -> Result<Self, TrainError> {
        prepare_process(&config)?;
        let device = choose_device(config.runtime.device, member.index as usize).map_err(MemberRunError::NoDevice)?;
        warn_of_slow_precision(&config, device)?;
        collectives::check(member.host, device)?;
        let store = CheckpointStore::open(&config.checkpoint.uri, StoreOptions::default())?;
        // A volume that can never hold a checkpoint is refused before anything is trained for it.
        store.probe()?;
        let dataset = open_data(&config.data, &options.stop)?;
        let order = dataset.order(config.optimization.seed, config.optimization.global_batch_size);
        let identity = Identity::of(&config, &dataset);
        let learner = Learner::new(&config, device)?;
        store.check_room(checkpoint_bytes(&learner))?;
        transfer::touch_memory(&learner);
        let machine = machine_of(&config, device)?;
        let abortable = Abortable::default();
        let reach = Arc::clone(&abortable);
        let mut client_options = ClientOptions::new(member.coordinator.clone(), member.security.clone());
        client_options.on_abort = Box::new(move |generation, _| {
            if let Some((current, handle)) = reach.lock().unwrap_or_else(PoisonError::into_inner).as_ref()
                && *current == generation
            {
                handle.abort();
            }
        });
        let activity = Arc::new(ActivityCell::default());
        let seen = Arc::clone(&activity);
        client_options.activity = Box::new(move || seen.read());
        let settings = MemberSettings {
            identity: MemberIdentity {
                name: MemberName { worker: member.worker.clone(), index: member.index },
                incarnation: member.incarnation,
                node: member.node.clone(),
                address: member.host.to_string(),
            },
            config_digest: identity.digest(),
            machine: machine.clone(),
            heartbeat_interval: member.heartbeat_interval,
            coordinator_timeout: member.coordinator_timeout,
        };
        let (client, commands) = MemberClient::start(client_options, settings).map_err(MemberRunError::from)?;
        Ok(Self {
            options,
            member,
            config,
            store,
            identity,
            machine,
            dataset,
            order,
            device,
            learner,
            progress: Progress::default(),
            restored: None,
            came_from: None,
            client,
            commands,
            abortable,
            joined: None,
            leader: None,
            saver: None,
            tally: Tally::default(),
            activity,
            is_draining: false,
            left_steps: 0,
            is_leaving: false,
        })
    }

    /// Waits for commands and obeys until there is nothing more to do.
    fn run(mut self) -> Result<ExitCode, TrainError> {
        loop {
            self.ask_to_leave_when_stopped()?;
            if self.is_draining && self.joined.is_none() && self.client.held().is_none() {
                // Nobody needs anything of this member, and a coordinator that would let it go may not be there.
                tracing::info!("leaving before the first step");
                return Ok(ExitCode::Preempted);
            }
            let Some(command) = self.commands.next(PATIENCE) else { continue };
            if let Some(code) = self.obey(command)? {
                return Ok(code);
            }
            if self.is_leaving {
                return self.exit(ProtocolEnd::Drained, false);
            }
        }
    }

    fn ask_to_leave_when_stopped(&mut self) -> Result<(), TrainError> {
        if self.options.stop.is_asked() && !self.is_draining {
            self.is_draining = true;
            self.report(MemberEvent::Drain)?;
        }
        Ok(())
    }

    fn report(&self, event: MemberEvent) -> Result<(), TrainError> {
        Ok(self.client.report(event).map_err(MemberRunError::from)?)
    }

    fn obey(&mut self, command: MemberCommand) -> Result<Option<ExitCode>, TrainError> {
        match command {
            MemberCommand::FormGroup(plan) => self.form(&plan)?,
            MemberCommand::Recover { generation, role, .. } => self.recover(generation, role)?,
            MemberCommand::Train { generation, step } => self.train(generation, step)?,
            MemberCommand::WriteCheckpoint { generation, .. } => self.save_as_asked(generation)?,
            MemberCommand::LeaveGroup { generation } => {
                self.finish_saving(generation)?;
                if let Some(joined) = self.joined.take_if(|joined| joined.generation == generation) {
                    fail_point::reach(Place::Leave);
                    retire(joined.loader);
                    // So that nobody's last exchange loses its peer; whether all came does not matter any more.
                    let _ = joined.group.leave(FORM_TIMEOUT);
                }
                self.close(generation, None)?;
            }
            MemberCommand::AbortGroup { generation, reason } => {
                tracing::warn!(group = %generation, reason, "leaving the group");
                self.close(generation, None)?;
            }
            MemberCommand::Exit { reason, is_kept } => return self.exit(reason, is_kept).map(Some),
            MemberCommand::GiveUp(refusal) => return Err(MemberRunError::from(refusal).into()),
            // The client's own.
            MemberCommand::Connect | MemberCommand::Disconnect { .. } | MemberCommand::Send(_) | MemberCommand::StoreResponse { .. } => {}
        }
        Ok(None)
    }

    fn form(&mut self, plan: &Plan) -> Result<(), TrainError> {
        for loss in &plan.lost {
            tracing::warn!(group = %plan.generation, member = %loss.member, reason = loss.reason, "member lost");
        }
        if plan.further_losses > 0 {
            tracing::warn!(group = %plan.generation, further = plan.further_losses, "more members were lost: the coordinator names them");
        }
        let (generation, begun) = (plan.generation, Instant::now());
        let abort = collectives::abort_handle();
        *self.abortable.lock().unwrap_or_else(PoisonError::into_inner) = Some((generation, abort.clone()));
        let options = GroupOptions {
            store: Arc::new(Rendezvous::new(self.client.store(generation))),
            prefix: generation.to_string(),
            rank: plan.rank as usize,
            world_size: plan.world as usize,
            host: self.member.host,
            device: self.device,
            timeout: FORM_TIMEOUT,
        };
        log_place::set(Some((plan.rank, generation)));
        // The first batch is read while the group is built and the state travels.
        let loads = plan.base.map_or(0, |base| base.step);
        let slots = share::slots(&self.config.optimization, plan);
        let loader = plan.base.map_or(Ok(None), |_| self.load(&slots, loads))?;
        fail_point::stand(plan.rank, plan.world, self.progress.completed_steps);
        fail_point::reach(Place::Form);
        self.activity.enter(ActivityStage::Transferring);
        match Group::form(options, &abort) {
            Ok(group) => {
                tracing::info!(group = %generation, rank = plan.rank, world = plan.world, seconds = begun.elapsed().as_secs_f64(), "group formed");
                self.joined = Some(Joined { generation, rank: plan.rank, world: plan.world, slots, group, loader, loads });
                self.report(MemberEvent::GroupFormed { generation })
            }
            Err(error) => self.close(generation, Some(chain(&error))),
        }
    }

    /// Reads this member's part of the batches from `step` on; `None` when there is nothing to read.
    fn load(&self, slots: &Slots, step: u64) -> Result<Option<Loader>, TrainError> {
        let optimization = &self.config.optimization;
        if step >= optimization.steps || slots.count() == 0 {
            return Ok(None);
        }
        let options = LoaderOptions {
            model: self.config.model.shape.clone(),
            objective: self.config.model.objective,
            seed: optimization.seed,
            global_batch_size: optimization.global_batch_size,
            slots: slots.clone(),
            first_step: step,
            last_step: optimization.steps,
        };
        Ok(Some(Loader::start(Arc::clone(&self.dataset), &self.config.data, options)?))
    }

    /// Steps until a command says something else, a collective fails, or the last step is done.
    fn train(&mut self, generation: Generation, step: u64) -> Result<(), TrainError> {
        let Some(joined) = self.joined.as_ref().filter(|joined| joined.generation == generation) else { return Ok(()) };
        let steps = self.config.optimization.steps;
        let (rank, world) = (joined.rank, joined.world);
        self.activity.enter(ActivityStage::Preparing);
        if joined.loader.is_none() || joined.loads != step {
            let loader = self.load(&joined.slots, step)?;
            if let Some(joined) = self.joined.as_mut() {
                (joined.loader, joined.loads) = (loader, step);
            }
        }
        self.share_saving(generation, rank, world);
        if rank == 0 {
            self.lead(generation)?;
        } else {
            self.leader = None;
            self.activity.forget();
        }
        self.activity.enter(ActivityStage::Training);
        loop {
            self.ask_to_leave_when_stopped()?;
            if self.progress.consecutive_skips >= self.config.optimization.max_consecutive_skipped_steps {
                return self.give_up();
            }
            if let Some(bad) = self.tally.too_many_bad(self.config.data.max_bad_fraction) {
                // All members know the same lines, and find this at the same step.
                if let Some(leader) = self.leader.as_mut() {
                    leader.end(EndReason::BadData, &self.learner, self.progress)?;
                }
                return Err(bad_data(Some(bad)));
            }
            let step = self.progress.completed_steps;
            if step >= steps {
                return if self.learner.completed_updates() > 0 { self.finish(generation) } else { self.give_up_untrained() };
            }
            let (agreed, is_busy) = match self.step(step) {
                Ok(agreed) => agreed,
                Err(StepError::Group(reason)) => return self.close(generation, Some(reason)),
                Err(StepError::NoData) => {
                    // Others do the step in a group without this member. A coordinator that puts it into one again waits for a step of this
                    // member, which alone has the state: what it holds is saved instead.
                    self.left_steps += 1;
                    self.is_leaving = world == 1 || self.left_steps > 1;
                    return self.close(generation, Some("it was asked to leave, and the data of its step do not come".to_owned()));
                }
                Err(StepError::Fatal(error)) => return Err(error),
            };
            self.save_when_due(generation, is_busy)?;
            self.report(MemberEvent::Committed { generation, step: step + 1, agreed })?;
            while let Some(command) = self.commands.try_next() {
                // Whatever it is, training goes on only when a new `Train` says so; a checkpoint alone does not end it.
                let goes_on = matches!(command, MemberCommand::WriteCheckpoint { .. });
                if goes_on {
                    self.obey(command)?;
                    continue;
                }
                self.pending(command)?;
                return Ok(());
            }
        }
    }

    /// No update was possible for so long that going on makes no sense. All members find this at the same step.
    fn give_up(&mut self) -> Result<(), TrainError> {
        if let Some(leader) = self.leader.as_mut() {
            leader.end(EndReason::Diverged, &self.learner, self.progress)?;
        }
        Err(TrainError::Diverged { count: self.progress.consecutive_skips })
    }

    /// The last step is done, and no update was possible in any: there is nothing to save. All members find this.
    fn give_up_untrained(&mut self) -> Result<(), TrainError> {
        if let Some(leader) = self.leader.as_mut() {
            leader.end(EndReason::NothingTrained, &self.learner, self.progress)?;
        }
        let (rows, causes) = self.tally.read_and_skipped();
        Err(nothing_trained(self.config.optimization.steps, rows, &causes))
    }

    /// A command met while training: obeyed here, where an exit cannot be one of them (it follows the end of a group).
    fn pending(&mut self, command: MemberCommand) -> Result<(), TrainError> {
        match command {
            MemberCommand::Train { .. } | MemberCommand::Exit { .. } => Ok(()),
            other => self.obey(other).map(drop),
        }
    }

    /// Waits for the next batch. The wait for a store that hangs may be long. When a stop was asked for it ends, and since nobody leaves in the
    /// middle of a step this one does not happen: the others do it in a group without this member. It ends with the group, too: the others
    /// wait for what this member holds.
    fn wait_for_batch(&mut self, generation: Generation) -> Result<(), StepError> {
        let is_over = self.is_over(generation);
        let mut asked = None;
        loop {
            if self.joined.as_ref().and_then(|joined| joined.loader.as_ref()).is_none_or(|loader| loader.wait(PATIENCE)) {
                return Ok(());
            }
            if is_over() {
                return Err(StepError::Group("it ended while the data of its step did not come".to_owned()));
            }
            self.ask_to_leave_when_stopped()?;
            if self.is_draining && asked.get_or_insert_with(Instant::now).elapsed() > BATCH_PATIENCE {
                return Err(StepError::NoData);
            }
        }
    }

    /// One step over this member's slots. The update is applied only when every exchange went well.
    /// What the members agreed on, and whether any of them was still writing a checkpoint.
    fn step(&mut self, step: u64) -> Result<(Flags, bool), StepError> {
        let Some(joined) = self.joined.as_mut() else { return Err(StepError::Group("the group is gone".to_owned())) };
        let (asked, before) = (Instant::now(), Usage::now());
        fail_point::stand(joined.rank, joined.world, step);
        fail_point::reach(Place::Data);
        let generation = joined.generation;
        self.wait_for_batch(generation)?;
        let Some(joined) = self.joined.as_mut() else { return Err(StepError::Group("the group is gone".to_owned())) };
        joined.loads = step + 1;
        let batch = match joined.loader.as_mut() {
            Some(loader) => loader.next().ok_or(TrainError::DataEnded { step })?.map_err(TrainError::from)?,
            None => Batch::empty(step),
        };
        let begin = Instant::now();
        let wanted = Wanted::new(&self.config, &self.order, step);
        let spent = joined.loader.as_ref().map_or_else(Vec::new, Loader::spent);
        let waits = share_wait(begin - asked, &spent, &self.order);
        let shared = Tally::exchange(&mut joined.group, &batch, &waits, &wanted, EXCHANGE_TIMEOUT)?;
        let is_busy = self.saver.as_mut().is_some_and(Saver::is_busy);
        let wish = i64::from(self.client.flags().bits()) | if is_busy { BUSY } else { 0 };
        let (report, wishes) = if shared.rows == 0 {
            let wishes = joined.group.exchange(&[wish], EXCHANGE_TIMEOUT)?.into_iter().flatten().collect();
            (without_update(self.learner.learning_rate(step)), wishes)
        } else {
            let member = MemberStep { group: &mut joined.group, wish, timeout: EXCHANGE_TIMEOUT };
            let setting = share::Setting { config: &self.config, device: self.device, order: &self.order };
            match share::train_step(&mut self.learner, setting, &batch, Some(member)) {
                Ok((report, agreement)) => (report, agreement.wishes),
                Err(TrainError::Learner(error)) if !joined.group.is_live() => return Err(StepError::Group(chain(&error))),
                Err(error) => return Err(error.into()),
            }
        };
        let end = Instant::now();
        if report.skipped && shared.rows > 0 {
            suspect(self.came_from, step);
        }
        self.activity.step(end - asked, Usage::now().waited.saturating_sub(before.waited));
        self.progress.completed_steps = step + 1;
        self.progress.consecutive_skips = if report.skipped { self.progress.consecutive_skips + 1 } else { 0 };
        self.restored = None;
        state_log::note(&self.learner, joined.generation, step + 1, Origin::Trained).map_err(TrainError::from)?;
        let stages = joined.loader.as_mut().map(|loader| DataStages::new(self.config.data.threads, loader.stages()));
        let seconds = tally::Seconds { data_wait: (begin - asked).as_secs_f64(), step: (end - begin).as_secs_f64(), end, stages };
        let record = self.tally.record(&wanted, joined.generation, &shared, &report, &seconds);
        if let Some(leader) = self.leader.as_mut() {
            self.activity.training(&record);
            self.activity.sources(&record.sources);
            leader.record_step(record);
            leader.check()?;
        }
        let bits = wishes.into_iter().fold(0, |all, wish| all | wish);
        Ok((Flags::from_bits(u32::try_from(bits & !BUSY).unwrap_or_default()), bits & BUSY != 0))
    }

    /// Rank 0 writes for all.
    fn lead(&mut self, generation: Generation) -> Result<(), TrainError> {
        self.leader.take_if(|leader| !leader.leads_on_in(generation));
        if let Some(leader) = self.leader.as_mut() {
            leader.set_generation(generation);
            return Ok(());
        }
        let situation = Situation {
            store: &self.store,
            config: &self.config,
            options: self.options,
            dataset: &self.dataset,
            learner: &self.learner,
            progress: self.progress,
            tally: &self.tally,
        };
        let leader = Leader::begin(generation, &situation)?;
        self.leader = Some(leader);
        Ok(())
    }

    /// Drops the group and says so.
    fn close(&mut self, generation: Generation, failure: Option<String>) -> Result<(), TrainError> {
        if let Some(reason) = &failure {
            tracing::warn!(group = %generation, reason, "the group failed");
        }
        *self.abortable.lock().unwrap_or_else(PoisonError::into_inner) = None;
        retire(self.joined.take().and_then(|joined| joined.loader));
        log_place::set(None);
        self.stop_saving(generation)?;
        tracing::info!(group = %generation, "group closed");
        self.report(MemberEvent::GroupClosed { generation, failure })
    }

    /// `is_kept`: what this member holds is safe without it.
    fn exit(&mut self, reason: ProtocolEnd, is_kept: bool) -> Result<ExitCode, TrainError> {
        tracing::info!(%reason, is_kept, step = self.progress.completed_steps, "leaving");
        if self.leader.is_some() && !is_kept {
            // This may be where the next start begins.
            self.save_alone()?;
        }
        if let Some(leader) = self.leader.as_mut() {
            let reason = if reason == ProtocolEnd::Complete { EndReason::Completed } else { EndReason::Preempted };
            leader.end(reason, &self.learner, self.progress)?;
        }
        Ok(if reason == ProtocolEnd::Complete { ExitCode::Success } else { ExitCode::Preempted })
    }
}

/// Its threads may be in the middle of a request that hangs, and nobody waits for them.
fn retire(loader: Option<Loader>) {
    if let Some(loader) = loader {
        thread::spawn(move || drop(loader));
    }
}

/// A step did not happen.
enum StepError {
    /// The group failed: the next generation does the step again.
    Group(String),
    /// The data did not come, and a stop was asked for.
    NoData,
    /// This process cannot go on.
    Fatal(TrainError),
}

impl From<TrainError> for StepError {
    fn from(error: TrainError) -> Self {
        Self::Fatal(error)
    }
}

impl From<JoinError> for StepError {
    fn from(error: JoinError) -> Self {
        match error {
            JoinError::Group(error) => error.into(),
            JoinError::Parts(error) => Self::Fatal(MemberRunError::from(error).into()),
        }
    }
}

impl From<GroupError> for StepError {
    fn from(error: GroupError) -> Self {
        Self::Group(chain(&error))
    }
}

/// Without a gradient there is nothing to update: not the moments either.
fn without_update(learning_rate: f64) -> StepReport {
    StepReport {
        total: f64::NAN,
        generation: f64::NAN,
        contrastive: f64::NAN,
        gradient_norm: f64::NAN,
        logit_scale: f64::NAN,
        learning_rate,
        contrastive_images: 0,
        generation_positions: 0,
        skipped: true,
        sources: Vec::new(),
    }
}
