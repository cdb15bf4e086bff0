//! A member's process: the real client on the simulated network, and its training thread beside it.

use std::{sync::Arc, time::Duration};

use lcl_coordinator::{ClientOptions, MemberClient, Security};
use lcl_protocol::{Activity, Identity, Incarnation, MemberName, MemberSettings};
use tokio::sync::watch;

use crate::{
    gate::gated,
    network::{Route, Seeker},
    scene::{Scene, worker_name},
    training::{Ended, Training},
};

/// The processes of a worker, from the start of the first to the end of the last: one that has no place any more is followed by another.
pub(crate) async fn run(scene: Arc<Scene>, worker: usize) -> turmoil::Result {
    while run_once(&scene, worker).await? == Ended::Superseded {}
    scene.control().workers[worker].is_up = false;
    Ok(())
}

async fn run_once(scene: &Arc<Scene>, worker: usize) -> turmoil::Result<Ended> {
    let process = scene.judge().process_started(worker);
    let (abort, aborted) = watch::channel(None);
    let (activity, seen) = watch::channel(Activity::default());
    let spread = Arc::clone(scene);
    let options = ClientOptions {
        connect_timeout: Duration::from_millis(500),
        first_pause: Duration::from_millis(50),
        longest_pause: Duration::from_millis(500),
        on_abort: Box::new(move |generation, _| {
            abort.send_replace(Some(generation));
        }),
        activity: Box::new(move || seen.borrow().clone()),
        spread: Box::new(move || spread.spread()),
        // The name is not looked at: `Route` knows where the coordinator is.
        ..ClientOptions::new("coordinator:7433", Security::Insecure)
    };
    let identity = Identity {
        name: MemberName { worker: worker_name(worker), index: 0 },
        // Against the order of the starts, as by a clock that goes back: nothing may depend on it.
        incarnation: Incarnation { run: u64::MAX - process.0, start: 1 },
        node: format!("n-{}", worker / 2),
        address: worker_name(worker),
    };
    let settings = MemberSettings {
        identity,
        config_digest: "digest".to_owned(),
        machine: None,
        heartbeat_interval: Duration::from_millis(100),
        coordinator_timeout: Duration::from_millis(600),
    };
    let route = Route { scene: Arc::clone(scene), seeker: Seeker::Member(worker) };
    let (client, commands, stream) = MemberClient::embed(options, settings, route)?;
    let training = Training::new(Arc::clone(scene), (worker, process), (client, commands), aborted, activity);
    let work = async {
        tokio::select! {
            biased;
            ended = training.run() => ended,
            () = stream => Ended::Left,
        }
    };
    Ok(Box::pin(gated(|| scene.worker(worker).is_hung, work)).await)
}
