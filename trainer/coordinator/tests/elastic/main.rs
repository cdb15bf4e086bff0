//! The real server and real clients on loopback, with threads that pretend to train: members are lost, join, and lose their coordinator;
//! training goes on, and the ledger has neither gap nor repeat.

mod trainer;

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use lcl_coordinator::{Security, serve, status_from_proto};
use lcl_proto::v1alpha1::{
    self as wire, command_request, command_request::Command, command_response, command_response::Accepted,
    coordinator_client::CoordinatorClient,
};
use lcl_protocol::{CoordinatorSettings, EndReason, Generation, HistoryEvent, LossCause, Phase, SlowEviction, Status, World};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle, time::timeout};
use tonic::{Streaming, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use trainer::{Fabric, Outcome, Trainer};

/// The longest anything here may take on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

struct Server {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

impl Server {
    /// A coordinator on a free port of loopback, or on the one given.
    async fn start(epoch: u64, world: World, port: u16) -> Self {
        Self::start_with(epoch, world, port, |_| {}).await
    }

    async fn start_with(epoch: u64, world: World, port: u16, change: impl FnOnce(&mut CoordinatorSettings)) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut settings = CoordinatorSettings {
            epoch,
            world,
            formation_wait: Duration::from_secs(20),
            // So long that only a broken stream can be what shows a loss.
            heartbeat_timeout: Duration::from_mins(10),
            report_timeout: Duration::from_secs(20),
            stall_timeout: Duration::from_mins(2),
            slow_eviction: None,
        };
        change(&mut settings);
        let (stop, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            serve(listener, settings, Security::Insecure, stopped).await.unwrap();
        });
        Self { address, stop, served }
    }

    async fn client(&self) -> CoordinatorClient<Channel> {
        CoordinatorClient::connect(format!("http://{}", self.address)).await.unwrap()
    }

    async fn watch(&self) -> Watch {
        let stream = self.client().await.watch(wire::WatchRequest {}).await.unwrap().into_inner();
        Watch { stream }
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        timeout(PATIENCE, self.served).await.expect("the server stops in bounded time").unwrap();
    }
}

struct Watch {
    stream: Streaming<wire::Status>,
}

impl Watch {
    /// The first status from now on for which the condition holds.
    async fn until(&mut self, what: &str, mut holds: impl FnMut(&Status) -> bool) -> Status {
        let mut last = None;
        let wait = async {
            loop {
                let status = status_from_proto(self.stream.message().await.unwrap().expect("the watch goes on")).unwrap();
                if holds(&status) {
                    return status;
                }
                last = Some(status);
            }
        };
        let found = timeout(PATIENCE, wait).await;
        found.unwrap_or_else(|_| panic!("{what} did not happen within {PATIENCE:?}: {last:#?}"))
    }
}

async fn ask(client: &mut CoordinatorClient<Channel>, command: Command) -> Result<wire::CommandResponse, tonic::Status> {
    Ok(client.command(wire::CommandRequest { epoch: None, command: Some(command) }).await?.into_inner())
}

fn world(min: u32, desired: u32, max: u32) -> World {
    World::new(min, desired, max).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_is_lost_another_joins_and_no_slot_is_left_out_or_trained_twice() {
    let server = Server::start(1, world(1, 3, 3), 0).await;
    let mut watch = server.watch().await;
    let fabric = Arc::new(Fabric::default());
    let start = |name: &str| Trainer::start(server.address, name, &fabric);
    let (first, second, third) = (start("w-0"), start("w-1"), start("w-2"));

    let formed = watch.until("a generation of three", |status| status.phase == Phase::Running && status.step >= 5).await;
    assert_eq!(formed.members.iter().map(|member| member.rank).collect::<Vec<_>>(), [Some(0), Some(1), Some(2)]);
    assert_eq!(formed.generation, Generation { epoch: 1, n: 1 });

    third.kill();
    let recovered = |status: &Status| status.history.iter().any(|entry| matches!(entry.event, HistoryEvent::Recovered { .. }));
    let survivors = watch.until("a generation of two that trains", |status| recovered(status) && status.members.len() == 2).await;
    assert_eq!(survivors.generation, Generation { epoch: 1, n: 2 });
    assert!(survivors.step >= formed.step);

    let joiner = start("w-3");
    let grown = watch
        .until("a generation of three again, further on", |status| {
            status.generation.n == 3 && status.step >= survivors.step + 20 && status.members.iter().all(|member| member.rank.is_some())
        })
        .await;
    assert_eq!(grown.members.len(), 3);
    let broken = grown.history.iter().filter(|entry| matches!(entry.event, HistoryEvent::Broken { .. })).count();
    assert_eq!(broken, 1, "only the loss broke a generation, the joiner was let in as agreed: {:#?}", grown.history);

    fabric.finish.store(true, Ordering::SeqCst);
    watch.until("the end", |status| status.phase == Phase::Ended(EndReason::Complete)).await;
    for trainer in [first, second, joiner] {
        assert_eq!(trainer.join(), Outcome::Ended(EndReason::Complete));
    }
    fabric.check_ledger();
    assert_eq!(fabric.restores(), 1, "storage was read at the start and never again");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_processes_of_a_name_the_later_one_trains_and_the_other_is_told_for_good() {
    let server = Server::start(1, world(1, 2, 2), 0).await;
    let mut watch = server.watch().await;
    let fabric = Arc::new(Fabric::default());
    let start = |name: &str| Trainer::start(server.address, name, &fabric);
    let (first, older) = (start("w-0"), start("w-1"));
    watch.until("a generation of two", |status| status.phase == Phase::Running && status.step >= 5).await;
    // Its number says that it began before.
    let newer = start("w-1");
    let ended = tokio::task::spawn_blocking(|| older.join());
    assert_eq!(timeout(PATIENCE, ended).await.expect("it is told in bounded time").unwrap(), Outcome::Superseded);
    let again = |status: &Status| status.phase == Phase::Running && status.generation.n == 2 && status.members.len() == 2;
    let recovered = watch.until("a generation with the newer one", again).await;
    watch.until("further steps", |status| status.step >= recovered.step + 5).await;

    fabric.finish.store(true, Ordering::SeqCst);
    for trainer in [first, newer] {
        let joined = tokio::task::spawn_blocking(|| trainer.join());
        assert_eq!(timeout(PATIENCE, joined).await.unwrap().unwrap(), Outcome::Ended(EndReason::Complete));
    }
    fabric.check_ledger();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_member_is_evicted_and_only_another_process_takes_its_place() {
    let looked_at_ten_times_a_second = |settings: &mut CoordinatorSettings| {
        settings.stall_timeout = Duration::from_millis(400);
        settings.slow_eviction = SlowEviction::new(2.0, Duration::from_millis(200)).ok();
    };
    let server = Server::start_with(1, world(2, 3, 3), 0, looked_at_ten_times_a_second).await;
    let mut watch = server.watch().await;
    let fabric = Arc::new(Fabric::default());
    let start = |name: &str, milliseconds| Trainer::start_with(server.address, name, &fabric, Some(Duration::from_millis(milliseconds)));
    let (first, second, slow) = (start("w-0", 10), start("w-1", 12), start("w-2", 50));

    let lost_for_slowness = |status: &Status| {
        let lost = status.history.iter().filter_map(|entry| match &entry.event {
            HistoryEvent::Lost { member, cause: LossCause::Slow, reason } => Some((member.to_string(), reason.clone())),
            _ => None,
        });
        lost.collect::<Vec<_>>()
    };
    let evicted = watch.until("the eviction", |status| !lost_for_slowness(status).is_empty()).await;
    let reason = "on node loopback its own work in a step took 50.0ms, 4.2 times the median of 12.0ms, for 200ms".to_owned();
    assert_eq!(lost_for_slowness(&evicted), [("w-2/0".to_owned(), reason)]);
    let ranks = |status: &Status| status.members.iter().map(|member| member.rank).collect::<Vec<_>>();
    let alone = |status: &Status| ranks(status) == [Some(0), Some(1), None] && status.step >= evicted.step + 20;
    let alone = watch.until("steps of the other two while it waits", alone).await;
    assert_eq!(alone.generation.n, 2);

    let successor = start("w-2", 11);
    let superseded = tokio::task::spawn_blocking(|| slow.join());
    assert_eq!(timeout(PATIENCE, superseded).await.expect("it is told in bounded time").unwrap(), Outcome::Superseded);
    let whole = |status: &Status| ranks(status) == [Some(0), Some(1), Some(2)] && status.step >= alone.step + 20;
    let whole = watch.until("steps of all three", whole).await;
    assert_eq!(lost_for_slowness(&whole).len(), 1);

    fabric.finish.store(true, Ordering::SeqCst);
    for trainer in [first, second, successor] {
        let joined = tokio::task::spawn_blocking(|| trainer.join());
        assert_eq!(timeout(PATIENCE, joined).await.unwrap().unwrap(), Outcome::Ended(EndReason::Complete));
    }
    fabric.check_ledger();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn training_goes_on_without_a_coordinator_and_the_next_one_takes_the_group_over() {
    let server = Server::start(1, world(2, 2, 2), 0).await;
    let address = server.address;
    let fabric = Arc::new(Fabric::default());
    let trainers = ["w-0", "w-1"].map(|name| Trainer::start(address, name, &fabric));
    let before = server.watch().await.until("some steps", |status| status.step >= 5).await;
    server.stop().await;
    fabric.until_steps(before.step + 20).await;

    let server = Server::start(2, world(2, 2, 2), address.port()).await;
    let mut watch = server.watch().await;
    let after = watch.until("steps under the new one", |status| status.step > before.step + 25).await;
    assert_eq!(after.generation, before.generation, "the group was not interrupted");
    let adopted = HistoryEvent::Adopted { generation: before.generation, world: 2 };
    assert!(after.history.iter().any(|entry| entry.event == adopted), "{:#?}", after.history);
    fabric.finish.store(true, Ordering::SeqCst);
    watch.until("the end", |status| status.phase == Phase::Ended(EndReason::Complete)).await;
    for trainer in trainers {
        assert_eq!(trainer.join(), Outcome::Ended(EndReason::Complete));
    }
    fabric.check_ledger();
    assert_eq!(fabric.restores(), 1, "nothing was read from storage again");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_drains_a_worker_and_stops_the_job_with_a_checkpoint() {
    let server = Server::start(1, world(1, 2, 2), 0).await;
    let mut watch = server.watch().await;
    let fabric = Arc::new(Fabric::default());
    let (first, second) = (Trainer::start(server.address, "w-0", &fabric), Trainer::start(server.address, "w-1", &fabric));
    watch.until("some steps", |status| status.step >= 5).await;

    let mut operator = server.client().await;
    let drain = Command::DrainWorker(command_request::DrainWorker { worker: "w-1".to_owned() });
    let accepted = ask(&mut operator, drain).await.unwrap().accepted;
    assert_eq!(accepted, Some(Accepted::DrainWorker(command_response::DrainWorker { members: 1 })));
    let alone = watch.until("a generation of one", |status| status.members.len() == 1 && status.phase == Phase::Running).await;
    assert!(!alone.history.iter().any(|entry| matches!(entry.event, HistoryEvent::Broken { .. })), "{alone:#?}");
    assert_eq!(second.join(), Outcome::Ended(EndReason::Drained));

    let stop = Command::Stop(command_request::Stop {});
    let answer = ask(&mut operator, stop.clone()).await.unwrap();
    assert_eq!(answer.accepted, Some(Accepted::Stop(command_response::Stop { members: 1 })));
    assert_eq!(answer.ended(), wire::EndReason::Unspecified);
    let stopped = watch.until("the stop", |status| status.phase == Phase::Ended(EndReason::Stopped)).await;
    assert_eq!(first.join(), Outcome::Ended(EndReason::Stopped));
    assert_eq!(stopped.saved_step(), fabric.last_checkpoint(), "the stop waited for a checkpoint");
    assert!(stopped.last_checkpoint.is_some());
    assert_eq!(ask(&mut operator, stop).await.unwrap().ended(), wire::EndReason::Stopped);
    let refused = ask(&mut operator, Command::Resize(wire::World { min: 2, desired: 1, max: 1 })).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    fabric.check_ledger();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_is_asked_for_while_training_goes_on_and_the_world_is_resized() {
    let server = Server::start(1, world(1, 2, 2), 0).await;
    let mut watch = server.watch().await;
    let fabric = Arc::new(Fabric::default());
    let trainers = ["w-0", "w-1"].map(|name| Trainer::start(server.address, name, &fabric));
    watch.until("some steps", |status| status.step >= 5).await;

    let mut operator = server.client().await;
    let answer = ask(&mut operator, Command::Checkpoint(command_request::Checkpoint { from: None })).await.unwrap();
    let Some(Accepted::Checkpoint(command_response::Checkpoint { from, is_committed: false })) = answer.accepted else {
        panic!("{answer:?}")
    };
    let saved = watch.until("a checkpoint", |status| status.last_checkpoint.is_some()).await;
    assert!(saved.saved_step() >= Some(from), "from {from}: {saved:?}");
    assert_eq!((saved.phase, saved.generation.n, saved.wanted_checkpoint), (Phase::Running, 1, None));
    let on = watch.until("further steps", |status| Some(status.step) > saved.saved_step().map(|step| step + 5)).await;
    assert_eq!(on.generation.n, 1);
    // Asked for again by somebody who did not hear the answer: it is there, and no other is written.
    let again = ask(&mut operator, Command::Checkpoint(command_request::Checkpoint { from: Some(from) })).await.unwrap();
    let committed = command_response::Checkpoint { from, is_committed: true };
    assert_eq!(again.accepted, Some(Accepted::Checkpoint(committed)));

    let bounds = wire::World { min: 1, desired: 1, max: 1 };
    let resized = ask(&mut operator, Command::Resize(bounds)).await.unwrap();
    assert_eq!(resized.accepted, Some(Accepted::Resize(bounds)));
    let alone = watch.until("a generation of one", |status| status.generation.n == 2 && status.phase == Phase::Running).await;
    assert_eq!(alone.members.iter().filter(|member| member.rank.is_some()).count(), 1);
    assert_eq!(alone.last_checkpoint, saved.last_checkpoint);

    fabric.finish.store(true, Ordering::SeqCst);
    watch.until("the end", |status| status.phase == Phase::Ended(EndReason::Complete)).await;
    for trainer in trainers {
        assert_eq!(trainer.join(), Outcome::Ended(EndReason::Complete));
    }
    fabric.check_ledger();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_for_another_coordinator_changes_nothing() {
    let server = Server::start(3, world(1, 2, 4), 0).await;
    let mut client = server.client().await;
    let resize = |epoch, desired| wire::CommandRequest {
        epoch: Some(epoch),
        command: Some(Command::Resize(wire::World { min: 1, desired, max: 4 })),
    };
    for epoch in [2, 4] {
        let refused = client.command(resize(epoch, 4)).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains("epoch 3"), "{refused}");
    }
    let before = server.watch().await.until("a status", |_| true).await;
    assert_eq!(before.world, world(1, 2, 4));
    client.command(resize(3, 3)).await.unwrap();
    server.watch().await.until("the new bounds", |status| status.world == world(1, 3, 4)).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_health_service_says_that_it_serves_until_it_is_stopped() {
    let server = Server::start(1, world(1, 1, 1), 0).await;
    let channel = Channel::from_shared(format!("http://{}", server.address)).unwrap().connect().await.unwrap();
    let mut health = HealthClient::new(channel);
    let request = || HealthCheckRequest { service: "lcl.v1alpha1.Coordinator".to_owned() };
    let answer = health.check(request()).await.unwrap().into_inner();
    assert_eq!(answer.status(), ServingStatus::Serving);
    // An open watch does not hold up the stop.
    let mut watch = server.watch().await;
    server.stop().await;
    while let Ok(Some(_)) = watch.stream.message().await {}
    assert!(health.check(request()).await.is_err());
}
