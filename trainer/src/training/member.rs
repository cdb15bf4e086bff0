//! Training as one member of many: does what the coordinator's commands say, from forming a group to the last step.
//!
//! What is done when is the driver's ([`lcl_protocol::drive`]), what a step is the stepper's. Here is what only a member does: it builds
//! groups, comes to hold their state, writes its part of checkpoints, and leads when it has rank 0: then it also commits them, and writes
//! `metrics.jsonl` and `TensorBoard` files for all.

mod activity;
mod collectives;
mod level;
mod meeting;
mod rendezvous;
mod saving;
mod transfer;

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use lcl_checkpoint::{CheckpointStore, StoreOptions};
use lcl_coordinator::{ClientOptions, Commands, MemberClient, Security, StartError};
use lcl_data::{Loader, Slots};
use lcl_protocol::{
    ActivityStage, EndReason as ProtocolEnd, Flags, Generation, Identity as MemberIdentity, Incarnation, MemberCommand, MemberError,
    MemberEvent, MemberName, MemberSettings, Plan, Refusal, Role, StateLabel,
    drive::{Agreed, DropCause, Failure, Halt, Level, Membership, Occasion, Standing, Steps, drive},
};
use lcl_torch::{
    DeviceError, DeviceTestError, Learner, choose_device,
    collectives::{AbortHandle, Group, GroupError, GroupOptions, SelfTestError, Usage},
    shim::ShimError,
};
use lcl_trainer_config::{ExitCode, TrainerConfig};

use self::{activity::ActivityCell, rendezvous::Rendezvous};
use super::{
    TrainError, TrainOptions, complete,
    exchange::PartsError,
    leader::Leader,
    open_data,
    own_rows::{self, checkpoint_bytes, machine_of, prepare_process, warn_of_slow_precision},
    saver::{FinalSaveError, Saver},
    stepper::{Exchanged, Stepper, broken},
};
use crate::{
    processes::fail_point::{self, Place},
    run::{identity::Identity, log_place, records::EndReason},
};

/// Longest wait for all members of a generation to build their group.
const FORM_TIMEOUT: Duration = Duration::from_secs(30);
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
    /// This member's state was not that of the others, again and again.
    #[error(
        "what this member computed was {times} times not what another computed from the same: its memory, its processor or its accelerator is faulty, or \
         of another kind than theirs; the job goes on without this machine"
    )]
    Differs {
        /// How often.
        times: u32,
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
}

/// The group that an abort from the client's thread has to reach.
type Abortable = Arc<Mutex<Option<(Generation, AbortHandle)>>>;

/// A member between its first and its last generation.
struct MemberRun<'a> {
    options: &'a TrainOptions,
    member: MemberOptions,
    /// Where checkpoints and the run's files go.
    store: CheckpointStore,
    stepper: Stepper,
    client: MemberClient,
    commands: Commands,
    abortable: Abortable,
    joined: Option<Joined>,
    leader: Option<Leader>,
    saver: Option<Saver>,
    activity: Arc<ActivityCell>,
}

/// Trains as one member until the job ends or this member has to leave.
pub fn train_as_member(config: TrainerConfig, options: TrainOptions, member: MemberOptions) -> Result<ExitCode, TrainError> {
    // Everything that belongs to libtorch is made and dropped on this thread.
    let work = move || match MemberRun::prepare(config, &options, member) {
        // The coordinator has not heard of this member yet.
        Err(TrainError::StoppedBefore) => Ok(ExitCode::Preempted),
        prepared => complete(drive(&mut prepared?)),
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
        let identity = Identity::of(&config, &dataset);
        let learner = Learner::new(&config, device)?;
        store.check_room(checkpoint_bytes(&learner))?;
        transfer::touch_memory(&learner);
        let machine = machine_of(&config, device)?;
        let (abortable, activity) = (Abortable::default(), Arc::new(ActivityCell::default()));
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
        let client_options = client_options(&member, Arc::clone(&abortable), Arc::clone(&activity));
        let (client, commands) = MemberClient::start(client_options, settings).map_err(MemberRunError::from)?;
        let stepper = Stepper::new(config, dataset, learner, (identity, machine));
        Ok(Self { options, member, store, stepper, client, commands, abortable, joined: None, leader: None, saver: None, activity })
    }

    /// Waits for the next batch. The wait for a store that hangs may be long. When a stop was asked for it ends, and since nobody leaves in the
    /// middle of a step this one does not happen: the others do it in a group without this member. It ends with the group, too: the others
    /// wait for what this member holds.
    fn wait_for_batch(&self, generation: Generation) -> Result<(), Halt<TrainError>> {
        let is_over = self.is_over(generation);
        let mut asked = None;
        while !self.stepper.has_batch_within(PATIENCE) {
            if is_over() {
                return Err(Halt::Group("it ended while the data of its step did not come".to_owned()));
            }
            if self.options.stop.is_asked() && asked.get_or_insert_with(Instant::now).elapsed() > BATCH_PATIENCE {
                return Err(Halt::NoData);
            }
        }
        Ok(())
    }

    /// Rank 0 writes for all.
    fn lead(&mut self, generation: Generation) -> Result<(), TrainError> {
        self.leader.take_if(|leader| !leader.leads_on_in(generation));
        match self.leader.as_mut() {
            Some(leader) => leader.set_generation(generation),
            None => self.leader = Some(Leader::begin(&self.store, generation, &self.stepper, self.options)?),
        }
        Ok(())
    }

    fn end_of_leader(&mut self, reason: EndReason) -> Result<(), TrainError> {
        let Some(leader) = self.leader.as_mut() else { return Ok(()) };
        leader.end(reason, &self.stepper.learner, self.stepper.progress)
    }
}

/// How the client reaches the coordinator, aborts a group and sees what the training thread does.
fn client_options(member: &MemberOptions, reach: Abortable, activity: Arc<ActivityCell>) -> ClientOptions {
    let mut options = ClientOptions::new(member.coordinator.clone(), member.security.clone());
    options.on_abort = Box::new(move |generation, _| {
        if let Some((current, handle)) = reach.lock().unwrap_or_else(PoisonError::into_inner).as_ref()
            && *current == generation
        {
            handle.abort();
        }
    });
    options.activity = Box::new(move || activity.read());
    options
}

/// Its threads may be in the middle of a request that hangs, and nobody waits for them.
fn retire(loader: Option<Loader>) {
    if let Some(loader) = loader {
        thread::spawn(move || drop(loader));
    }
}

fn gone<T>() -> Result<T, Halt<TrainError>> {
    Err(Halt::Group("the group is gone".to_owned()))
}

impl Steps for MemberRun<'_> {
    type Error = TrainError;
    type Exit = ExitCode;
    type Exchanged = Exchanged;

    fn is_asked_to_leave(&self) -> bool {
        self.options.stop.is_asked()
    }

    fn standing(&self) -> Standing {
        self.stepper.standing()
    }

    async fn exchange(&mut self) -> Result<Exchanged, Halt<TrainError>> {
        let Some(joined) = self.joined.as_ref() else { return gone() };
        let asked = (Instant::now(), Usage::now());
        fail_point::stand(joined.rank, joined.world, self.stepper.progress.completed_steps);
        fail_point::reach(Place::Data);
        if fail_point::take_flip() {
            self.stepper.learner.flip_bit().map_err(TrainError::from)?;
        }
        self.wait_for_batch(joined.generation)?;
        let is_saving = self.saver.as_ref().is_some_and(|saver| self.stepper.is_checkpoint_due(saver));
        let is_busy = self.saver.as_mut().is_some_and(Saver::is_busy);
        let wish = i64::from(self.client.flags().bits()) | if is_busy { BUSY } else { 0 };
        let Some(joined) = self.joined.as_mut() else { return gone() };
        self.stepper.exchange(Some((&mut joined.group, joined.generation)), (wish, is_saving), asked)
    }

    async fn step(&mut self, exchanged: Exchanged) -> Result<Agreed, Halt<TrainError>> {
        let Some(joined) = self.joined.as_mut() else { return gone() };
        let wishes = exchanged.wishes();
        let done = self.stepper.step(Some(&mut joined.group), joined.generation, exchanged)?;
        self.activity.step(done.took, done.waited);
        if let Some(leader) = self.leader.as_mut() {
            self.activity.training(&done.record);
            self.activity.sources(&done.record.sources);
            leader.record_step(done.record);
            leader.check()?;
        }
        Ok(Agreed { flags: Flags::from_bits(u32::try_from(wishes & !BUSY).unwrap_or_default()), is_busy: wishes & BUSY != 0 })
    }

    async fn save(&mut self, occasion: Occasion) -> Result<(), Halt<TrainError>> {
        let Some(generation) = self.joined.as_ref().map(|joined| joined.generation) else { return gone() };
        match occasion {
            Occasion::Step(agreed) => self.save_when_due(generation, agreed.is_busy)?,
            Occasion::Asked => self.save_as_asked(generation)?,
            Occasion::Last(_) => self.save_at_the_end(generation)?,
        }
        Ok(())
    }

    async fn fail(&mut self, failure: Failure) -> TrainError {
        let error = self.stepper.error_of(failure);
        self.end_of_leader(failure.into()).err().unwrap_or(error)
    }

    async fn exit(&mut self, reason: ProtocolEnd, is_kept: bool) -> Result<ExitCode, TrainError> {
        tracing::info!(%reason, is_kept, step = self.stepper.progress.completed_steps, "leaving");
        if self.leader.is_some() && !is_kept {
            // This may be where the next start begins.
            self.save_alone()?;
        }
        let is_complete = reason == ProtocolEnd::Complete;
        self.end_of_leader(if is_complete { EndReason::Completed } else { EndReason::Preempted })?;
        Ok(if is_complete { ExitCode::Success } else { ExitCode::Preempted })
    }
}

impl Membership for MemberRun<'_> {
    fn report(&mut self, event: MemberEvent) -> Result<(), TrainError> {
        Ok(self.client.report(event).map_err(MemberRunError::from)?)
    }

    fn command(&mut self) -> Option<MemberCommand> {
        self.commands.try_next()
    }

    async fn next_command(&mut self) -> Option<MemberCommand> {
        self.commands.next(PATIENCE)
    }

    fn holds_state(&self) -> bool {
        self.client.held().is_some()
    }

    fn is_alone(&self) -> bool {
        self.joined.as_ref().is_some_and(|joined| joined.world == 1)
    }

    async fn form(&mut self, plan: Plan) -> Result<(), Halt<TrainError>> {
        let (generation, begun) = (plan.generation, Instant::now());
        for loss in &plan.lost {
            tracing::warn!(group = %generation, member = %loss.member, reason = loss.reason, "member lost");
        }
        if plan.further_losses > 0 {
            tracing::warn!(group = %generation, further = plan.further_losses, "more members were lost: the coordinator names them");
        }
        let abort = collectives::abort_handle();
        *self.abortable.lock().unwrap_or_else(PoisonError::into_inner) = Some((generation, abort.clone()));
        let options = GroupOptions {
            store: Arc::new(Rendezvous::new(self.client.store(generation))),
            prefix: generation.to_string(),
            rank: plan.rank as usize,
            world_size: plan.world as usize,
            host: self.member.host,
            device: self.stepper.learner.model().device(),
            timeout: FORM_TIMEOUT,
        };
        log_place::set(Some((plan.rank, generation)));
        let slots = own_rows::slots(&self.stepper.config.optimization, &plan);
        if let Some(base) = plan.base {
            // The first batch is read while the group is built and the state travels.
            self.stepper.load(&slots, base.step)?;
        }
        fail_point::stand(plan.rank, plan.world, self.stepper.progress.completed_steps);
        fail_point::reach(Place::Form);
        self.activity.enter(ActivityStage::Transferring);
        let group = Group::form(options, &abort).map_err(|error| broken(&error))?;
        tracing::info!(group = %generation, rank = plan.rank, world = plan.world, seconds = begun.elapsed().as_secs_f64(), "group formed");
        self.joined = Some(Joined { generation, rank: plan.rank, world: plan.world, slots, group });
        Ok(())
    }

    async fn level(&mut self, generation: Generation, role: Role, _: Option<StateLabel>) -> Result<Level, Halt<TrainError>> {
        self.recover(generation, role)
    }

    fn begin(&mut self, generation: Generation, step: u64) -> Result<(), TrainError> {
        let Some(joined) = self.joined.as_ref() else { return Ok(()) };
        let (rank, world) = (joined.rank, joined.world);
        self.activity.enter(ActivityStage::Preparing);
        self.stepper.load(&joined.slots, step)?;
        self.stepper.begin_group();
        self.write_together(generation, rank, world);
        if rank == 0 {
            self.lead(generation)?;
        } else {
            self.leader = None;
            self.activity.forget();
        }
        self.activity.enter(ActivityStage::Training);
        Ok(())
    }

    async fn leave(&mut self, generation: Generation) -> Result<(), TrainError> {
        self.finish_saving(generation)?;
        fail_point::reach(Place::Leave);
        retire(self.stepper.stop_loading());
        if let Some(joined) = self.joined.take() {
            // So that nobody's last exchange loses its peer; whether all came does not matter any more.
            let _ = joined.group.leave(FORM_TIMEOUT);
        }
        Ok(())
    }

    fn drop_group(&mut self, generation: Generation, why: &DropCause) -> Result<(), TrainError> {
        match why {
            DropCause::Agreed => {}
            DropCause::Aborted(reason) => tracing::warn!(group = %generation, reason, "leaving the group"),
            DropCause::Failed(reason) => tracing::warn!(group = %generation, reason, "the group failed"),
        }
        *self.abortable.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.joined = None;
        retire(self.stepper.stop_loading());
        log_place::set(None);
        self.stop_saving(generation)?;
        tracing::info!(group = %generation, "group closed");
        Ok(())
    }

    async fn refused(&mut self, refusal: Refusal) -> Result<ExitCode, TrainError> {
        Err(MemberRunError::from(refusal).into())
    }
}
