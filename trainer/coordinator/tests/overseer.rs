//! What an overseer sees and tells, with real servers on loopback.

use std::{net::SocketAddr, time::Duration};

use lcl_coordinator::{Overseer, Security, Sight, serve};
use lcl_protocol::{CoordinatorSettings, Status, World};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};

/// The longest anything here may take on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

fn world(members: u32) -> World {
    World::new(1, members, members).unwrap()
}

/// A coordinator for that many members, at a free port or the one given.
async fn start(epoch: u64, members: u32, port: u16) -> (SocketAddr, oneshot::Sender<()>, JoinHandle<()>) {
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let settings = CoordinatorSettings {
        epoch,
        world: world(members),
        formation_wait: PATIENCE,
        heartbeat_timeout: PATIENCE,
        report_timeout: PATIENCE,
        stall_timeout: PATIENCE,
        slow_eviction: None,
    };
    let (stop, stopped) = oneshot::channel::<()>();
    let served = tokio::spawn(async move {
        serve(listener, settings, Security::Insecure, async { drop(stopped.await) }).await.unwrap();
    });
    (address, stop, served)
}

/// Reads what is told until a status of this epoch is as looked for.
async fn await_status(told: &mut mpsc::UnboundedReceiver<Sight>, epoch: u64, is_it: impl Fn(&Status) -> bool) {
    let seen = async {
        loop {
            if let Sight::Status(status) = told.recv().await.unwrap()
                && status.generation.epoch == epoch
                && is_it(&status)
            {
                return;
            }
        }
    };
    timeout(PATIENCE, seen).await.unwrap();
}

async fn await_world(told: &mut mpsc::UnboundedReceiver<Sight>, epoch: u64, members: u32) {
    await_status(told, epoch, |status| status.world == world(members)).await;
}

async fn await_loss(told: &mut mpsc::UnboundedReceiver<Sight>) {
    let lost = async { while !matches!(told.recv().await.unwrap(), Sight::Lost(_)) {} };
    timeout(PATIENCE, lost).await.unwrap();
}

#[tokio::test]
async fn the_wanted_size_is_told_and_told_again_to_a_coordinator_that_was_started_with_another() {
    let (address, stop, served) = start(1, 2, 0).await;
    let (tell, mut told) = mpsc::unbounded_channel();
    let tell = move |sight| drop(tell.send(sight));
    let overseer = Overseer::start(&address.to_string(), &Security::Insecure, world(2), tell).unwrap();
    await_world(&mut told, 1, 2).await;
    overseer.set_world(world(3));
    await_world(&mut told, 1, 3).await;

    stop.send(()).unwrap();
    served.await.unwrap();
    await_loss(&mut told).await;
    // While nobody is there to be told.
    overseer.set_world(world(4));
    let (_, _stop, _served) = start(2, 2, address.port()).await;
    await_world(&mut told, 2, 4).await;

    drop(overseer);
    // Its thread ends, and the function with it.
    let end = async { while told.recv().await.is_some() {} };
    timeout(PATIENCE, end).await.unwrap();
}

#[tokio::test]
async fn a_wanted_checkpoint_is_told_to_the_next_coordinator_too() {
    let (address, stop, served) = start(1, 2, 0).await;
    let (tell, mut told) = mpsc::unbounded_channel();
    let overseer = Overseer::start(&address.to_string(), &Security::Insecure, world(2), move |sight| drop(tell.send(sight))).unwrap();
    overseer.want_checkpoint(0);
    await_status(&mut told, 1, |status| status.wanted_checkpoint == Some(0)).await;
    stop.send(()).unwrap();
    served.await.unwrap();
    await_loss(&mut told).await;
    let (_, _stop, _served) = start(2, 2, address.port()).await;
    await_status(&mut told, 2, |status| status.wanted_checkpoint == Some(0)).await;
}
