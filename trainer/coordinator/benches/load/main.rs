//! One coordinator, as a process of its own, and thousands of members with real gRPC streams on loopback.
//!
//! `cargo bench -p lcl-coordinator --bench load [-- MEMBERS]` (4,096 without). Prints Markdown. Members are tasks of this process, which
//! shares the machine's processors with the coordinator: times are those of both together, processor seconds the coordinator's alone.
//! What members do besides (train, exchange gradients) is not simulated. How they meet in the store: all as an NCCL group does (2 to 3
//! operations each); and a smaller group as Gloo's full mesh does, whose operations grow with the square of the members.

mod member;
mod process;

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use lcl_proto::v1alpha1::{WatchRequest, coordinator_client::CoordinatorClient};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};

use member::{Meeting, Shared, Tally};
use process::Coordinator;

const MEMBERS: usize = 4096;
/// Members of a full mesh: 128 × 127 pairs.
const MESH: usize = 128;
/// How long the steady state is looked at.
const STEADY: Duration = Duration::from_secs(20);
/// Members lost at once, and how often.
const LOSSES: [(usize, usize); 2] = [(1, 5), (100, 5)];
/// Between two losses: all have told by then what they hold.
const BETWEEN: Duration = Duration::from_secs(3);
/// After so long without a word a member is lost: members of a machine that is too busy for them are late, but not lost.
const PATIENT: Duration = Duration::from_mins(2);
/// The same where it is measured how long a loss goes unnoticed.
const NOTICED: Duration = Duration::from_secs(3);
/// The longest anything may take.
const PATIENCE: Duration = Duration::from_mins(5);
/// A connection takes a file here; some are used otherwise.
const SPARE_FILES: u64 = 256;

#[tokio::main]
async fn main() -> Result<()> {
    // `cargo bench` adds an argument of its own.
    let members = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let members = members.map_or(Ok(MEMBERS), |members| members.parse()).context("the number of members")?;
    raise_open_files(members as u64 + SPARE_FILES)?;
    let processors = std::thread::available_parallelism()?;
    println!("{members} members, heartbeats every second, {processors} processors for the coordinator and all members together.\n");
    println!("| | seconds until all have their plan | until all have met in the store | processor seconds of the coordinator |");
    println!("|---|---|---|---|");
    let mut crowd = Crowd::start(members, Meeting::Name, PATIENT).await?;
    let formed = crowd.form(Instant::now(), 0.0).await?;
    row(&format!("start of {members}, from the first connection"), &[formed]);
    sleep(Duration::from_secs(2)).await;

    let (cpu, heartbeats, begun) = (crowd.coordinator.cpu()?, crowd.coordinator.heartbeats()?, Instant::now());
    sleep(STEADY).await;
    let seconds = begun.elapsed().as_secs_f64();
    let cores = (crowd.coordinator.cpu()? - cpu) / seconds;
    let heartbeats = (crowd.coordinator.heartbeats()? - heartbeats) / seconds;
    let (memory, _) = crowd.coordinator.memory()?;

    for (lost, rounds) in LOSSES {
        let mut recoveries = Vec::new();
        for _ in 0..rounds {
            recoveries.push(crowd.lose(lost).await?);
            sleep(BETWEEN).await;
        }
        row(&format!("after the loss of {lost}, of {} to {}", crowd.size + lost * rounds, crowd.size), &recoveries);
    }
    let (_, peak) = crowd.coordinator.memory()?;
    drop(crowd);
    let mut mesh = Crowd::start(MESH, Meeting::Mesh, PATIENT).await?;
    let formed = mesh.form(Instant::now(), 0.0).await?;
    row(&format!("start of {MESH} that meet in a full mesh"), &[formed]);
    let again = mesh.lose(1).await?;
    row(&format!("after the loss of 1 of {MESH} that meet in a full mesh"), &[again]);
    drop(mesh);
    let (cut, silent) = (detect(false).await?, detect(true).await?);
    println!(
        "\nSteady state of {members}, watched by one reader: {cores:.2} cores at {heartbeats:.0} heartbeats/s, {memory:.0} MiB resident \
         ({peak:.0} MiB at the peak)."
    );
    println!(
        "\nUntil the survivor of two is told of a loss: {:.1} ms after the stream was cut; {silent:.2} s after the other stood still, with \
         --heartbeat-timeout {NOTICED:?} and a heartbeat every second.",
        cut * 1000.0
    );
    Ok(())
}

/// Seconds until the other of two members is told that one has gone: its stream is cut, or it stands still with an open one.
async fn detect(stands_still: bool) -> Result<f64> {
    let mut pair = Crowd::start(2, Meeting::Name, NOTICED).await?;
    pair.form(Instant::now(), 0.0).await?;
    sleep(Duration::from_secs(2)).await;
    let mut changed = pair.shared.changed.subscribe();
    let since = Instant::now();
    if stands_still {
        pair.shared.stands_still.store(1, Ordering::Relaxed);
    } else {
        pair.members.remove(1).abort();
    }
    let noticed = async {
        loop {
            if let Some(broken) = pair.shared.tally(1).broken {
                return Ok::<f64, anyhow::Error>((broken - since).as_secs_f64());
            }
            changed.changed().await?;
        }
    };
    timeout(PATIENCE, noticed).await?
}

/// How long it took until a generation was there.
struct Formed {
    plans: f64,
    met: f64,
    cpu: f64,
}

fn row(what: &str, formed: &[Formed]) {
    let spread = |value: fn(&Formed) -> f64| {
        let mut values: Vec<f64> = formed.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        match values.as_slice() {
            [lowest, .., highest] => format!("{:.2} ({lowest:.2} to {highest:.2})", values[values.len() / 2]),
            [only] => format!("{only:.2}"),
            [] => String::new(),
        }
    };
    println!("| {what} | {} | {} | {} |", spread(|formed| formed.plans), spread(|formed| formed.met), spread(|formed| formed.cpu));
}

/// A coordinator and its members.
struct Crowd {
    coordinator: Coordinator,
    shared: Arc<Shared>,
    tasks: JoinSet<Result<()>>,
    members: Vec<AbortHandle>,
    /// Live members and the generation they form next.
    size: usize,
    next: u64,
}

impl Crowd {
    async fn start(size: usize, meeting: Meeting, heartbeat_timeout: Duration) -> Result<Self> {
        let coordinator = Coordinator::start(size, heartbeat_timeout)?;
        let shared = Shared::new(coordinator.address.clone(), meeting);
        let mut tasks = JoinSet::new();
        // Somebody looks, as the operator does.
        let mut status = CoordinatorClient::connect(format!("http://{}", shared.address))
            .await?
            .max_decoding_message_size(lcl_coordinator::MAX_MESSAGE_BYTES)
            .watch(WatchRequest {})
            .await?
            .into_inner();
        tasks.spawn(async move {
            while status.message().await?.is_some() {}
            bail!("the watch ended")
        });
        let members = (0..size).map(|number| tasks.spawn(member::run(Arc::clone(&shared), number))).collect();
        Ok(Self { coordinator, shared, tasks, members, size, next: 1 })
    }

    /// Waits for the next generation with all members in it.
    async fn form(&mut self, since: Instant, cpu: f64) -> Result<Formed> {
        let (n, size) = (self.next, self.size);
        let mut changed = self.shared.changed.subscribe();
        let complete = async {
            loop {
                let tally = self.shared.tally(n);
                if tally.met == size {
                    return Ok(tally);
                }
                tokio::select! {
                    changed = changed.changed() => changed?,
                    ended = self.tasks.join_next() => match ended {
                        Some(Ok(Err(error))) => return Err(error.context("a member")),
                        Some(Err(error)) if error.is_cancelled() => {}
                        other => bail!("a member ended: {other:?}"),
                    },
                }
            }
        };
        let formed = timeout(PATIENCE, complete).await;
        let Tally { plans, last_plan, last_met, .. } =
            formed.unwrap_or_else(|_| bail!("generation {n} is not complete: {:?} of {size}", self.shared.tally(n)))?;
        ensure!(plans == size, "{plans} plans for {size} members");
        self.next += 1;
        let after = |time: Option<Instant>| time.map_or(f64::NAN, |time| (time - since).as_secs_f64());
        Ok(Formed { plans: after(last_plan), met: after(last_met), cpu: self.coordinator.cpu()? - cpu })
    }

    /// Cuts the streams of some, spread over all nodes, and waits for the generation of all others.
    async fn lose(&mut self, count: usize) -> Result<Formed> {
        let cpu = self.coordinator.cpu()?;
        let stride = self.members.len() / count;
        let lost: Vec<AbortHandle> = (0..count).rev().map(|index| self.members.swap_remove(index * stride + stride / 2)).collect();
        self.size -= count;
        let since = Instant::now();
        lost.iter().for_each(AbortHandle::abort);
        // All of them owe a report, so that the next generation is formed only when every loss is known.
        self.form(since, cpu).await
    }
}

/// A connection takes a file.
fn raise_open_files(needed: u64) -> Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    ensure!(
        maximum.is_none_or(|maximum| maximum >= needed),
        "{needed} files are needed at once, {maximum:?} are allowed: see `ulimit -Hn`"
    );
    setrlimit(Resource::Nofile, Rlimit { current: Some(needed), maximum }).context("raising the number of open files")
}
