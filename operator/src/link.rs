//! The stream of a job's status from its coordinator, and what the coordinator is asked to do.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::jiff::Timestamp;
use lcl_operator_core::observe::{
    CheckpointSeen, GroupPhase, GroupStatus, Link, MemberBounds, MemberSeen, SlowSeen, SourceSeen, TrainingSeen,
};
use lcl_proto::v1alpha1::{
    CommandRequest, EndReason, LossCause, Phase, SavedCheckpoint, SourceProgress, Status, TrainingProgress, WatchRequest, World,
    command_request,
    command_request::Command,
    coordinator_client::CoordinatorClient,
    history_entry::{Event as Happened, Joined, Left, Lost},
};
use lcl_security::{Connector, Security};
use tokio::{task::JoinHandle, time};
use tonic::transport::{Channel, Endpoint};

use crate::{client::COMMAND_DEADLINE, fence::Refused};

/// Time to connect, and for the beginning of the stream.
const ANSWER: Duration = Duration::from_secs(5);
/// After this long without a word the connection is asked whether it lives, and given as long to say so.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// First pause before the next attempt; doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// So long without a status counts as a hiccup.
const HICCUP: Duration = Duration::from_secs(10);
/// Steps and checkpoints alone are told no more often than this.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// A status of the largest job: some hundred bytes per member.
const MAX_STATUS_BYTES: usize = 16 << 20;

/// The link to one coordinator pod. Dropping it ends the stream.
#[derive(Debug)]
pub(crate) struct CoordinatorLink {
    pod_uid: String,
    address: String,
    /// Commands are for the coordinator of this epoch and no other; `None` when its pod does not say.
    epoch: Option<u64>,
    state: Arc<Mutex<Link>>,
    client: CoordinatorClient<Channel>,
    task: JoinHandle<()>,
}

impl CoordinatorLink {
    /// Starts to follow the coordinator in the given pod; `changed` is called whenever something is new.
    pub(crate) fn start(
        pod_uid: String,
        address: String,
        epoch: Option<u64>,
        security: &Security,
        changed: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .connect_timeout(ANSWER)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        let channel = endpoint.connect_with_connector_lazy(Connector::new(security.clone()));
        let client = CoordinatorClient::new(channel).max_decoding_message_size(MAX_STATUS_BYTES);
        let state = Arc::new(Mutex::new(Link::Unknown));
        let follower = Follower { address: address.clone(), client: client.clone(), state: Arc::clone(&state), changed: Box::new(changed) };
        Ok(Self { pod_uid, address, epoch, state, client, task: tokio::spawn(follower.run()) })
    }

    /// Whether it leads to this pod at this address.
    pub(crate) fn leads_to(&self, pod_uid: &str, address: &str) -> bool {
        self.pod_uid == pod_uid && self.address == address
    }

    /// What is known now.
    pub(crate) fn state(&self) -> Link {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tells the coordinator the bounds of its world.
    pub(crate) async fn set_world(
        &self,
        bounds: MemberBounds,
        may_send: impl FnOnce() -> Result<(), Refused>,
    ) -> Result<(), tonic::Status> {
        self.ask(Command::Resize(World { min: bounds.min, desired: bounds.desired, max: bounds.max }), may_send).await
    }

    /// Asks the coordinator to let a worker's members leave.
    pub(crate) async fn drain_worker(&self, worker: &str, may_send: impl FnOnce() -> Result<(), Refused>) -> Result<(), tonic::Status> {
        self.ask(Command::DrainWorker(command_request::DrainWorker { worker: worker.to_owned() }), may_send).await
    }

    /// Asks the coordinator to have all members write a checkpoint and end.
    pub(crate) async fn stop_group(&self, may_send: impl FnOnce() -> Result<(), Refused>) -> Result<(), tonic::Status> {
        self.ask(Command::Stop(command_request::Stop {}), may_send).await
    }

    /// Done when it was accepted; the status tells the rest. A command is a write: it is sent if `may_send` allows it, and its deadline is one
    /// of those.
    async fn ask(&self, command: Command, may_send: impl FnOnce() -> Result<(), Refused>) -> Result<(), tonic::Status> {
        may_send().map_err(|refused| tonic::Status::failed_precondition(refused.to_string()))?;
        let mut request = tonic::Request::new(CommandRequest { epoch: self.epoch, command: Some(command) });
        request.set_timeout(COMMAND_DEADLINE);
        self.client.clone().command(request).await.map(drop)
    }
}

impl Drop for CoordinatorLink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Follower {
    address: String,
    client: CoordinatorClient<Channel>,
    state: Arc<Mutex<Link>>,
    changed: Box<dyn Fn() + Send + Sync>,
}

impl Follower {
    async fn run(mut self) {
        let mut last_word = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            if let Err(error) = self.follow(&mut last_word, &mut pause).await {
                tracing::debug!(address = self.address, %error, "no status from the coordinator");
            }
            let state = if last_word.elapsed() < HICCUP { Link::Unknown } else { Link::Unreachable };
            self.set(state);
            time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn follow(&mut self, last_word: &mut Instant, pause: &mut Duration) -> Result<(), tonic::Status> {
        let opening = time::timeout(ANSWER, self.client.watch(WatchRequest {}));
        let mut stream = opening.await.map_err(|_| tonic::Status::deadline_exceeded("no answer to Watch"))??.into_inner();
        let mut told = Instant::now();
        // The newest status, when it was too early to tell.
        let mut untold = None;
        loop {
            let rest = PROGRESS_INTERVAL.saturating_sub(told.elapsed());
            let status = tokio::select! {
                status = stream.message() => status?,
                () = time::sleep(rest), if untold.is_some() => {
                    told = Instant::now();
                    untold.take().into_iter().for_each(|link| self.set(link));
                    continue;
                }
            };
            let Some(status) = status else { return Ok(()) };
            (*last_word, *pause) = (Instant::now(), FIRST_PAUSE);
            let group = read_status(&status);
            let is_progress = matches!(&*self.lock(), Link::Connected(old) if differs_in_progress_only(old, &group));
            if is_progress {
                untold = Some(Link::Connected(group));
            } else {
                (told, untold) = (Instant::now(), None);
                self.set(Link::Connected(group));
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Link> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, link: Link) {
        let mut state = self.lock();
        if *state != link {
            *state = link;
            drop(state);
            (self.changed)();
        }
    }
}

fn differs_in_progress_only(old: &GroupStatus, new: &GroupStatus) -> bool {
    let with_old_progress = GroupStatus {
        step: old.step,
        last_checkpoint: old.last_checkpoint.clone(),
        training: old.training,
        sources: old.sources.clone(),
        ..new.clone()
    };
    with_old_progress == *old && old.n > 0
}

fn read_source(source: &SourceProgress) -> SourceSeen {
    // What is not finite is no loss, and has no place in JSON.
    let finite = |loss: Option<f64>| loss.filter(|loss| loss.is_finite());
    SourceSeen {
        name: source.name.clone(),
        samples: source.samples,
        generation_loss: finite(source.generation_loss),
        contrastive_loss: finite(source.contrastive_loss),
        data_wait_seconds: Duration::from_micros(source.data_wait_microseconds).as_secs_f64(),
    }
}

/// Workers whose last word in the history is that nothing was heard of them, and that are not attached; with that entry's number.
fn silent_workers(status: &Status) -> BTreeMap<String, u64> {
    let mut silent = BTreeMap::new();
    for entry in &status.history {
        match &entry.event {
            Some(Happened::Lost(lost)) if lost.cause() == LossCause::Silent => {
                silent.extend(lost.member.iter().map(|member| (member.worker.clone(), entry.sequence)));
            }
            Some(
                Happened::Joined(Joined { member: Some(member) })
                | Happened::Lost(Lost { member: Some(member), .. })
                | Happened::Left(Left { member: Some(member), .. }),
            ) => {
                silent.remove(&member.worker);
            }
            _ => {}
        }
    }
    for member in status.members.iter().filter_map(|member| member.name.as_ref()) {
        silent.remove(&member.worker);
    }
    silent
}

/// Workers of which a member was evicted for being slow; with the newest entry that says so.
fn slow_workers(status: &Status) -> BTreeMap<String, SlowSeen> {
    let slow = status.history.iter().filter_map(|entry| match &entry.event {
        Some(Happened::Lost(lost)) if lost.cause() == LossCause::Slow => {
            let member = lost.member.as_ref()?;
            let message = format!("member {}/{} was evicted: {}", member.worker, member.index, lost.reason);
            Some((member.worker.clone(), SlowSeen { entry: entry.sequence, message }))
        }
        _ => None,
    });
    slow.collect()
}

fn read_checkpoint(saved: &SavedCheckpoint) -> CheckpointSeen {
    let time = i64::try_from(saved.unix_milliseconds).ok().and_then(|time| Timestamp::from_millisecond(time).ok());
    CheckpointSeen { step: saved.step, time: time.unwrap_or(Timestamp::UNIX_EPOCH), folder: saved.folder.clone() }
}

fn read_training(training: &TrainingProgress) -> TrainingSeen {
    // What is not finite has no place in JSON.
    let finite = |value: f64| value.is_finite().then_some(value);
    TrainingSeen { loss: training.loss.and_then(finite), samples_per_second: finite(training.samples_per_second) }
}

fn read_status(status: &Status) -> GroupStatus {
    let phase = match (status.phase(), status.end_reason()) {
        (Phase::Unspecified | Phase::Waiting, _) => GroupPhase::Waiting,
        (Phase::Running, _) => GroupPhase::Running,
        (Phase::Recovering, _) => GroupPhase::Recovering,
        (Phase::Ended, EndReason::Complete) => GroupPhase::Complete,
        (Phase::Ended, _) => GroupPhase::Ended,
    };
    let (group, world) = (status.group.unwrap_or_default(), status.world.unwrap_or_default());
    let members = status.members.iter().map(|member| MemberSeen {
        worker: member.name.as_ref().map(|name| name.worker.clone()).unwrap_or_default(),
        ranked: member.rank.is_some(),
    });
    GroupStatus {
        phase,
        epoch: group.epoch,
        n: group.number,
        members_wanted: MemberBounds { min: world.min, desired: world.desired, max: world.max },
        members: members.collect(),
        silent: silent_workers(status),
        slow: slow_workers(status),
        newest_entry: status.history.last().map_or(0, |entry| entry.sequence),
        step: status.step,
        last_checkpoint: status.last_checkpoint.as_ref().map(read_checkpoint),
        training: status.training.as_ref().map(read_training),
        sources: status.sources.iter().map(read_source).collect(),
    }
}

#[cfg(test)]
mod tests {
    use lcl_proto::v1alpha1::{HistoryEntry, MemberName, MemberStatus};

    use super::*;

    /// A host that is cut off ends no connection; one whose process ended does, and comes back.
    #[test]
    fn workers_are_silent_that_were_given_up_unheard_and_have_not_come_back() {
        let member = |worker: &str| Some(MemberName { worker: worker.to_owned(), index: 0 });
        let lost = |worker, cause: LossCause| Happened::Lost(Lost { member: member(worker), cause: cause.into(), ..Lost::default() });
        let joined = |worker| Happened::Joined(Joined { member: member(worker) });
        let told = [
            lost("a", LossCause::Silent),
            lost("b", LossCause::StreamClosed),
            lost("c", LossCause::Silent),
            joined("c"),
            lost("d", LossCause::Silent),
            lost("e", LossCause::Silent),
            lost("e", LossCause::StreamClosed),
        ];
        let history =
            (1..).zip(told).map(|(sequence, event)| HistoryEntry { sequence, event: Some(event), ..HistoryEntry::default() }).collect();
        let members = vec![MemberStatus { name: member("d"), ..MemberStatus::default() }];
        let status = Status { history, members, ..Status::default() };
        assert_eq!(silent_workers(&status), BTreeMap::from([("a".to_owned(), 1)]));
        assert_eq!(read_status(&status).newest_entry, 7);
    }

    #[test]
    fn workers_are_slow_of_which_a_member_was_evicted_for_it_whatever_came_after() {
        let member = || Some(MemberName { worker: "a".to_owned(), index: 3 });
        let lost =
            |reason: &str, cause: LossCause| Happened::Lost(Lost { member: member(), reason: reason.to_owned(), cause: cause.into() });
        let told = [
            lost("twice the median", LossCause::Slow),
            lost("three times the median", LossCause::Slow),
            Happened::Joined(Joined { member: member() }),
            lost("reset", LossCause::StreamClosed),
        ];
        let history =
            (1..).zip(told).map(|(sequence, event)| HistoryEntry { sequence, event: Some(event), ..HistoryEntry::default() }).collect();
        let seen = SlowSeen { entry: 2, message: "member a/3 was evicted: three times the median".to_owned() };
        let status = Status { history, ..Status::default() };
        assert_eq!(read_status(&status).slow, BTreeMap::from([("a".to_owned(), seen)]));
    }

    /// Figures of sources change with every step: they are told at the pace of progress, and not each time.
    #[test]
    fn figures_of_sources_are_read_and_are_progress() {
        let source = |samples, generation_loss| SourceProgress {
            name: "laion".to_owned(),
            samples,
            generation_loss,
            contrastive_loss: Some(0.5),
            data_wait_microseconds: 1_500,
        };
        let group = Some(lcl_proto::v1alpha1::GroupId { epoch: 1, number: 1 });
        let status = |source| Status { group, sources: vec![source], ..Status::default() };
        let (earlier, later) = (read_status(&status(source(7, Some(2.5)))), read_status(&status(source(8, Some(f64::NAN)))));
        let seen = SourceSeen {
            name: "laion".to_owned(),
            samples: 7,
            generation_loss: Some(2.5),
            contrastive_loss: Some(0.5),
            data_wait_seconds: 0.0015,
        };
        assert_eq!(earlier.sources, [seen]);
        assert_eq!(later.sources[0].generation_loss, None, "it has no place in a status");
        assert!(differs_in_progress_only(&earlier, &later));
    }
}
