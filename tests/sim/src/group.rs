//! The collective group of a generation: a connection between every two members, over the simulated network.
//!
//! Members find each other through the generation's store at the coordinator, as c10d's do. Every operation sends one frame to all others
//! and waits for theirs. Whatever breaks, the group is of no more use.

use std::sync::Arc;

use lcl_coordinator::GroupStore;
use lcl_protocol::{Generation, Plan, StoreRequest, StoreResponse};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::sleep,
};
use turmoil::net::{TcpListener, TcpStream};

use crate::{
    judge::{Fence, ProcessId},
    model::Frame,
    scene::{Scene, TICK, worker_name},
};

/// First number of the frame with which a member introduces itself.
const HELLO: u64 = 7;

/// The group. Dropping it closes its connections.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) plan: Plan,
    /// By rank; the own place is empty.
    peers: Vec<Option<TcpStream>>,
    /// How many checkpoints its members began to write; the same on all.
    pub(crate) attempts: u64,
}

/// An operation that did not complete, and what had arrived by then.
#[derive(Debug)]
pub(crate) struct Broken {
    pub(crate) reason: String,
    pub(crate) arrived: Vec<Frame>,
}

/// The store of a generation as a member reaches it.
pub(crate) struct Store {
    pub(crate) scene: Arc<Scene>,
    pub(crate) worker: usize,
    pub(crate) process: ProcessId,
    pub(crate) generation: Generation,
    pub(crate) inner: GroupStore,
}

impl Store {
    /// What was answered now was answered by this coordinator. What was asked before may have been asked of another one, which ended.
    pub(crate) fn fence(&self) -> Fence {
        let control = self.scene.control();
        Fence { asked: control.now, epoch: control.workers[self.worker].reached }
    }

    /// Asks and waits for the answer.
    pub(crate) async fn ask(&self, request: StoreRequest) -> Result<StoreResponse, String> {
        let asked = self.fence().asked;
        let pending = self.inner.request(request).map_err(|error| error.to_string())?;
        loop {
            match pending.try_take() {
                Some(StoreResponse::Cancelled { reason } | StoreResponse::Refused { reason }) => return Err(reason),
                Some(answer) => {
                    self.scene.judge().answered(self.process, self.generation, Fence { asked, ..self.fence() });
                    return Ok(answer);
                }
                None => sleep(TICK).await,
            }
        }
    }
}

fn address_key(rank: u32) -> String {
    format!("address-{rank}")
}

impl Group {
    /// Builds the group of a plan, of whose generation this is the store.
    pub(crate) async fn form(store: Store, plan: Plan) -> Result<Self, String> {
        let listener = TcpListener::bind(("0.0.0.0", 0)).await.map_err(|error| error.to_string())?;
        let port = listener.local_addr().map_err(|error| error.to_string())?.port();
        let value = [store.worker as u64, port.into()].map(u64::to_le_bytes).concat();
        store.ask(StoreRequest::Set { key: address_key(plan.rank), value }).await?;
        let mut peers: Vec<Option<TcpStream>> = (0..plan.world).map(|_| None).collect();
        for rank in 0..plan.rank {
            let StoreResponse::Value(value) = store.ask(StoreRequest::Get { key: address_key(rank) }).await? else {
                return Err(format!("the store has no address of rank {rank}"));
            };
            let (worker, port) = read_address(&value).ok_or("an address cannot be read")?;
            let connected = TcpStream::connect((worker_name(worker), port)).await;
            let mut stream = connected.map_err(|error| format!("connecting to rank {rank}: {error}"))?;
            write(&mut stream, hello(plan.generation, plan.rank)).await?;
            peers[rank as usize] = Some(stream);
        }
        for _ in plan.rank + 1..plan.world {
            let (mut stream, _) = listener.accept().await.map_err(|error| error.to_string())?;
            let frame = read(&mut stream).await?;
            let rank = frame[3];
            store.scene.expect(rank < plan.world.into() && frame == hello(plan.generation, rank as u32), || {
                format!("{} was reached by somebody else: {frame:?}", plan.generation)
            });
            if let Some(place) = peers.get_mut(rank as usize) {
                *place = Some(stream);
            }
        }
        Ok(Self { plan, peers, attempts: 0 })
    }

    /// One frame to all others, and theirs, by rank with the own one among them.
    pub(crate) async fn exchange(&mut self, own: Frame) -> Result<Vec<Frame>, Broken> {
        let mut arrived = Vec::new();
        let broken = |reason, arrived: &[Frame]| Broken { reason, arrived: arrived.to_vec() };
        for stream in self.peers.iter_mut().flatten() {
            write(stream, own).await.map_err(|reason| broken(reason, &[own]))?;
        }
        for place in &mut self.peers {
            match place {
                None => arrived.push(own),
                Some(stream) => arrived.push(read(stream).await.map_err(|reason| broken(reason, &arrived))?),
            }
        }
        Ok(arrived)
    }

    pub(crate) async fn send(&mut self, to: u32, frame: Frame) -> Result<(), String> {
        write(self.peer(to)?, frame).await
    }

    pub(crate) async fn receive(&mut self, from: u32) -> Result<Frame, String> {
        read(self.peer(from)?).await
    }

    fn peer(&mut self, rank: u32) -> Result<&mut TcpStream, String> {
        self.peers.get_mut(rank as usize).and_then(Option::as_mut).ok_or_else(|| format!("no connection to rank {rank}"))
    }
}

fn hello(generation: Generation, rank: u32) -> Frame {
    [HELLO, generation.epoch, generation.n, rank.into(), 0, 0, 0, 0]
}

fn read_address(value: &[u8]) -> Option<(usize, u16)> {
    let (worker, port) = value.split_at_checked(8)?;
    let worker = u64::from_le_bytes(worker.try_into().ok()?);
    let port = u64::from_le_bytes(port.try_into().ok()?);
    Some((worker.try_into().ok()?, port.try_into().ok()?))
}

async fn write(stream: &mut TcpStream, frame: Frame) -> Result<(), String> {
    let bytes = frame.map(u64::to_le_bytes).concat();
    stream.write_all(&bytes).await.map_err(|error| format!("sending to a peer: {error}"))
}

async fn read(stream: &mut TcpStream) -> Result<Frame, String> {
    let mut bytes = [0; size_of::<Frame>()];
    stream.read_exact(&mut bytes).await.map_err(|error| format!("receiving from a peer: {error}"))?;
    let mut frame = Frame::default();
    for (number, bytes) in frame.iter_mut().zip(bytes.chunks_exact(8)) {
        *number = bytes.try_into().map_or(0, u64::from_le_bytes);
    }
    Ok(frame)
}
