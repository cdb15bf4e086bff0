//! The hosts beside the members: the real server, and an operator that repeats what is asked of the job until it is so.

use std::{future::pending, sync::Arc, time::Duration};

use lcl_coordinator::{Incoming, Metrics, Security, serve_on, status_from_proto};
use lcl_proto::v1alpha1::{
    self as wire,
    command_request::{Checkpoint, Command, DrainWorker, Stop},
    command_response::Accepted,
    coordinator_client::CoordinatorClient,
};
use lcl_protocol::{CoordinatorSettings, World};
use lcl_security::Connector;
use tokio::time::{interval, sleep, timeout};
use tonic::transport::{Channel, Endpoint};
use turmoil::net::TcpListener;

use crate::{
    network::{self, PORT, Route, Seeker, connections},
    scene::{Reign, Scene, WORKERS, worker_name},
};

/// Between two looks of the operator.
const LOOK: Duration = Duration::from_millis(200);
/// Longest call of the operator.
const CALL: Duration = Duration::from_millis(500);

/// How long the coordinator waits for the desired members, and for those that it may not do without.
pub(crate) const FORMATION_WAIT: Duration = Duration::from_secs(2);

/// A coordinator's process.
pub(crate) async fn coordinator(scene: Arc<Scene>, reign: Reign) -> turmoil::Result {
    let world = scene.control().world;
    scene.judge().coordinator_started(reign, world);
    let settings = CoordinatorSettings {
        epoch: reign.epoch,
        world,
        formation_wait: FORMATION_WAIT,
        heartbeat_timeout: Duration::from_secs(1),
        report_timeout: Duration::from_secs(2),
        stall_timeout: Duration::from_secs(3),
        slow_eviction: None,
    };
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
    let address = listener.local_addr()?;
    let incoming = Incoming { connections: connections(listener), address, peer: network::Accepted::peer };
    serve_on(incoming, settings, Security::Insecure, Arc::new(Metrics::new()), pending()).await?;
    Ok(())
}

/// The operator's process: level-based, so that it need not know what a coordinator before was told.
pub(crate) async fn operator(scene: Arc<Scene>) -> turmoil::Result {
    loop {
        // The coordinator is gone, or there is another: from the beginning.
        let told = work_with_one(&scene).await;
        if let Err(reason) = told {
            scene.judge().note(&format!("operator: {reason}"));
        }
        sleep(LOOK).await;
    }
}

async fn work_with_one(scene: &Arc<Scene>) -> Result<(), String> {
    let endpoint = Endpoint::from_static("http://coordinator:7433").connect_timeout(CALL);
    let coordinator = scene.control().coordinator;
    let route = Route { scene: Arc::clone(scene), seeker: Seeker::Operator };
    let connected = timeout(CALL, endpoint.connect_with_connector(Connector::over(route, Security::Insecure))).await;
    let channel = connected.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    let reign = scene.control().reigns.get(coordinator).copied().unwrap_or_default();
    let mut client = CoordinatorClient::new(channel);
    let watched = timeout(CALL, client.watch(wire::WatchRequest {})).await;
    let mut statuses = watched.map_err(|error| error.to_string())?.map_err(|status| status.to_string())?.into_inner();
    let mut looks = interval(LOOK);
    let mut wishes = Wishes { reign, world: None, checkpoints: 0, from: None };
    loop {
        tokio::select! {
            biased;
            status = statuses.message() => {
                let Some(status) = status.map_err(|status| status.to_string())? else { return Ok(()) };
                match status_from_proto(status) {
                    Ok(status) => scene.judge().status(reign, &status),
                    Err(error) => scene.expect(false, || format!("a status cannot be read: {error}")),
                }
            }
            _ = looks.tick() => {
                if scene.control().coordinator != coordinator {
                    return Ok(());
                }
                wishes.tell(scene, &mut client).await?;
            }
        }
    }
}

/// What a coordinator was told.
struct Wishes {
    reign: Reign,
    /// Bounds that it has accepted.
    world: Option<World>,
    /// Checkpoints that were asked for when the last one was found to be there.
    checkpoints: usize,
    /// The step of the first answer to the request for a checkpoint.
    from: Option<u64>,
}

impl Wishes {
    async fn tell(&mut self, scene: &Arc<Scene>, client: &mut CoordinatorClient<Channel>) -> Result<(), String> {
        let (world, drains, is_stopping, checkpoints) = {
            let control = scene.control();
            (control.world, control.drains, control.is_stopping, control.checkpoints)
        };
        if self.world != Some(world) {
            scene.judge().bounds(self.reign, world, false);
            let bounds = wire::World { min: world.min(), desired: world.desired(), max: world.max() };
            ask(client, Command::Resize(bounds)).await?;
            scene.judge().bounds(self.reign, world, true);
            self.world = Some(world);
        }
        for worker in (0..WORKERS).filter(|worker| drains[*worker]) {
            ask(client, Command::DrainWorker(DrainWorker { worker: worker_name(worker) })).await?;
        }
        if checkpoints > self.checkpoints
            && let Some(Accepted::Checkpoint(answer)) = ask(client, Command::Checkpoint(Checkpoint { from: self.from })).await?
        {
            self.from.get_or_insert(answer.from);
            if answer.is_committed {
                (self.checkpoints, self.from) = (checkpoints, None);
            }
        }
        if is_stopping {
            ask(client, Command::Stop(Stop {})).await?;
        }
        Ok(())
    }
}

async fn ask(client: &mut CoordinatorClient<Channel>, command: Command) -> Result<Option<Accepted>, String> {
    let answer = timeout(CALL, client.command(wire::CommandRequest { epoch: None, command: Some(command) })).await;
    let answer = answer.map_err(|_| "no answer to a command".to_owned())?.map_err(|status| status.to_string())?;
    Ok(answer.into_inner().accepted)
}
