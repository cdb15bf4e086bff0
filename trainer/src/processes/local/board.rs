//! What is known of a job that runs on this machine, and what is wanted of it: shared by the supervisor, the overseer of the coordinator,
//! and those who ask.
//!
//! Comes in: processes that start and end, what is seen of the coordinator, requests. Goes out: which processes are wanted, answers, and
//! what is to be shown. It holds no process and does nothing itself.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    process,
    time::{SystemTime, UNIX_EPOCH},
};

use lcl_coordinator::{Overseer, Sight};
use lcl_protocol::{Status, World};

use super::workers::{Change, Workers};
use crate::processes::{
    control::{Answer, MemberStatus, Request, Resized, RunStatus, Saving, Stopping, WorkerStatus},
    membership::{Chronicle, Group, Happening},
    stop::StopRequest,
};

/// Happenings that a status tells: as many as a coordinator's.
const HISTORY: usize = 64;

/// What can no longer be asked for.
const STOPPING: &str = "the run is being stopped, after a checkpoint: the command that started it goes on with it";
const NOTHING_TO_SAVE: &str =
    "no member trains at the moment, so there is nothing new to save: ask again when `lcl status` tells of a running group";

/// See the module's description.
#[derive(Debug)]
pub(super) struct Board {
    job: String,
    steps: u64,
    workers: Workers,
    stop: StopRequest,
    /// Process ids of the workers that run, by number.
    running: BTreeMap<u32, u32>,
    coordinator: Option<SocketAddr>,
    overseer: Option<Overseer>,
    /// What was seen of the coordinator last.
    seen: Option<Status>,
    unseen: Option<String>,
    chronicle: Chronicle,
    history: VecDeque<Happening>,
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

impl Board {
    pub(super) fn new(job: &str, steps: u64, workers: Workers, stop: StopRequest) -> Self {
        Self {
            job: job.to_owned(),
            steps,
            workers,
            stop,
            running: BTreeMap::new(),
            coordinator: None,
            overseer: None,
            seen: None,
            unseen: None,
            chronicle: Chronicle::default(),
            history: VecDeque::new(),
        }
    }

    /// The bounds that a coordinator has to have, or a new one is started with.
    pub(super) const fn world(&self) -> World {
        self.workers.world()
    }

    pub(super) fn wants(&self, worker: u32) -> bool {
        self.workers.wants(worker)
    }

    pub(super) fn name(&self, worker: u32) -> String {
        self.workers.name(worker)
    }

    /// Where the coordinator listens, and all after it.
    pub(super) const fn coordinator(&self) -> Option<SocketAddr> {
        self.coordinator
    }

    pub(super) const fn set_coordinator(&mut self, address: SocketAddr) {
        self.coordinator = Some(address);
    }

    /// Who tells the coordinator of changes from now on.
    pub(super) fn set_overseer(&mut self, overseer: Overseer) {
        overseer.set_world(self.world());
        self.overseer = Some(overseer);
    }

    pub(super) fn started(&mut self, worker: u32, pid: u32) {
        self.running.insert(worker, pid);
    }

    pub(super) fn ended(&mut self, worker: u32) {
        self.running.remove(&worker);
    }

    /// Takes in what is seen of the coordinator. What is to be shown of it.
    pub(super) fn see(&mut self, sight: Sight) -> Option<(Group, Vec<Happening>)> {
        match sight {
            Sight::Lost(reason) => {
                self.unseen = Some(reason);
                None
            }
            Sight::Status(status) => {
                let news = self.chronicle.news(&status, now());
                self.history.extend(news.iter().cloned());
                self.history.drain(..self.history.len().saturating_sub(HISTORY));
                let group = Group::from(status.as_ref());
                (self.seen, self.unseen) = (Some(*status), None);
                Some((group, news))
            }
        }
    }

    /// Answers a request, and changes what is wanted.
    pub(super) fn answer(&mut self, request: &Request) -> Answer {
        let changed = match request {
            Request::Status => return Answer::Status(Box::new(self.status())),
            Request::Stop => return Answer::Stopping(self.stop()),
            _ if self.stop.is_asked() => return Answer::Refused { reason: STOPPING.to_owned() },
            Request::Checkpoint => return self.checkpoint(),
            Request::Resize { workers } => self.workers.resize(*workers),
            Request::Drain { worker } => self.workers.drain(worker),
        };
        match changed {
            Ok(change) => Answer::Accepted(self.carry_out(&change)),
            Err(error) => Answer::Refused { reason: crate::chain(&error) },
        }
    }

    fn carry_out(&mut self, change: &Change) -> Resized {
        if let Some(overseer) = &self.overseer {
            overseer.set_world(self.world());
        }
        let names = |numbers: &[u32]| numbers.iter().map(|number| self.name(*number)).collect::<Vec<_>>();
        let resized = Resized { workers: self.workers.count(), starting: names(&change.starting), leaving: names(&change.leaving) };
        tracing::info!(workers = resized.workers, starting = ?resized.starting, leaving = ?resized.leaving, "another number of workers");
        resized
    }

    /// Asks for a checkpoint from the step on that is known to be done, so that whoever asks twice within a step gets one.
    fn checkpoint(&self) -> Answer {
        let trains = self.seen.as_ref().filter(|seen| seen.generation.n > 0);
        let (Some(seen), Some(overseer)) = (trains, &self.overseer) else {
            return Answer::Refused { reason: NOTHING_TO_SAVE.to_owned() };
        };
        let is_committed = seen.saved_step() >= Some(seen.step);
        if !is_committed {
            overseer.want_checkpoint(seen.step);
        }
        tracing::info!(from = seen.step, is_committed, "a checkpoint is asked for");
        Answer::Saving(Saving { from: seen.step, is_committed, last_checkpoint: seen.saved_step() })
    }

    /// As by a signal: the supervisor has the workers leave, and they save.
    fn stop(&self) -> Stopping {
        let leaving = self.running.keys().map(|number| self.name(*number)).collect();
        if !self.stop.is_asked() {
            tracing::info!("a stop is asked for: all leave after a checkpoint");
            self.stop.ask();
        }
        Stopping { leaving, step: self.seen.as_ref().map(|seen| seen.step) }
    }

    fn status(&self) -> RunStatus {
        let seen = self.seen.as_ref();
        let mut members: BTreeMap<String, Vec<MemberStatus>> = BTreeMap::new();
        for member in seen.map(|status| status.members.as_slice()).unwrap_or_default() {
            let status = MemberStatus { name: member.name.to_string(), rank: member.rank, step: member.step };
            members.entry(member.name.worker.clone()).or_default().push(status);
        }
        let numbers: BTreeSet<u32> = self.workers.wanted().chain(self.running.keys().copied()).collect();
        let workers = numbers.into_iter().map(|number| {
            let (name, pid) = (self.name(number), self.running.get(&number).copied());
            let state = match (self.wants(number), pid) {
                (false, _) => "leaving",
                (true, Some(_)) => "running",
                (true, None) => "starting",
            };
            WorkerStatus { members: members.remove(&name).unwrap_or_default(), name, state: state.to_owned(), pid }
        });
        RunStatus {
            job: self.job.clone(),
            steps: self.steps,
            pid: process::id(),
            coordinator: self.coordinator.map(|address| address.to_string()),
            unseen: self.unseen.clone(),
            group: seen.map(Group::from),
            size: self.workers.size(),
            workers: workers.collect(),
            history: self.history.iter().cloned().collect(),
            time: now(),
        }
    }
}
