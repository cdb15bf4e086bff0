//! What a rank's process does; the parent names the role.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use lcl_torch::{
    Device, Kind, Learner, LearnerError, LearnerOptions, MemberStep, MicroBatch, OwnShards, Tensor, choose_device,
    collectives::{AbortHandle, Group, GroupOptions},
    probe::{self, Phase},
    set_threads, shards_of,
    shim::runtime::set_deterministic,
};
use lcl_trainer_config::{Device as Wanted, Precision};
use serde_json::{Value, json};

use crate::{
    TIMEOUT,
    support::{ROWS, batch, config, distance},
    wire::Link,
};

/// Virtual shards of exact mode, each of two rows.
const SHARDS: usize = 4;

struct Process {
    link: Arc<Link>,
    device: Device,
    rank: usize,
    world_size: usize,
}

pub(crate) fn play(role: &str, rank: usize, world_size: usize, on_gpu: bool) -> Result<()> {
    // Ranks share a machine.
    set_threads(Some(1))?;
    set_deterministic(true)?;
    let device = choose_device(if on_gpu { Wanted::Cuda } else { Wanted::Cpu }, 0)?;
    let own = Process { link: Link::open(), device, rank, world_size };
    let outcome = match role {
        "train" => own.train(),
        "exact-float32" => own.exact(Precision::Float32),
        "exact-bfloat16" => own.exact(Precision::Bfloat16),
        "abort" => own.abort(),
        "undisturbed" => own.undisturbed(),
        "transfer" => own.transfer(),
        other => Err(anyhow::anyhow!("unknown role {other}")),
    };
    own.link.report(&match outcome {
        Ok(value) => value,
        Err(error) => json!({"failed": format!("{error:#}")}),
    });
    Ok(())
}

fn member(group: &mut Group) -> MemberStep<'_> {
    MemberStep { group, wish: 0, counts: None, timeout: TIMEOUT }
}

impl Process {
    fn join(&self, generation: u64, abort: &AbortHandle) -> Result<Group> {
        let host = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let (rank, world_size, device) = (self.rank, self.world_size, self.device);
        let store = Arc::new(self.link.session());
        let prefix = format!("generation-{generation}");
        Ok(Group::form(GroupOptions { store, prefix, rank, world_size, host, device, timeout: TIMEOUT }, abort)?)
    }

    fn learner(&self, precision: Precision) -> Result<Learner> {
        let mut config = config();
        config.model.precision = precision;
        Ok(Learner::with_options(&config, self.device, LearnerOptions::default())?)
    }

    /// The own rows of the step's eight.
    fn rows(&self) -> MicroBatch {
        batch(&ROWS[ROWS.len() * self.rank / self.world_size..ROWS.len() * (self.rank + 1) / self.world_size])
    }

    /// Three steps in a group, and the same steps by one member in this process.
    fn train(&self) -> Result<Value> {
        let mut group = self.join(1, &AbortHandle::new())?;
        let (mut learner, mut alone) = (self.learner(Precision::Float32)?, self.learner(Precision::Float32)?);
        let mut apart: f64 = 0.0;
        for step in 0..3 {
            let (losses, _) = learner.compute_gradients_with(step, &[self.rows()], member(&mut group))?;
            let expected = alone.compute_gradients(step, &[batch(&ROWS)])?;
            if step == 0 {
                // Later steps start from parameters that are a rounding apart.
                apart = apart.max(distance(&on_host(learner.gradients()), &on_host(alone.gradients())));
                apart = apart.max((losses.total - expected.total).abs() / expected.total);
            }
            learner.apply_gradients(step, losses)?;
            alone.apply_gradients(step, expected)?;
        }
        group.leave(TIMEOUT)?;
        let parameters = |learner: &Learner| -> Vec<(&'static str, Tensor)> {
            learner.model().parameters().iter().map(|parameter| ("", parameter.tensor.detach().to_device(Device::Cpu))).collect()
        };
        let drift = distance(&parameters(&learner), &parameters(&alone));
        Ok(json!({"apart": apart, "drift": drift, "hash": learner.state_hash()?, "steps": learner.completed_updates()}))
    }

    /// Ten steps in exact mode; the hash of the state.
    fn exact(&self, precision: Precision) -> Result<Value> {
        let mut group = self.join(1, &AbortHandle::new())?;
        let mut learner = self.learner(precision)?;
        let shards: Vec<Vec<MicroBatch>> = ROWS.chunks(ROWS.len() / SHARDS).map(|rows| vec![batch(rows)]).collect();
        let own: Vec<&[MicroBatch]> = shards[shards_of(self.rank, self.world_size, SHARDS)].iter().map(Vec::as_slice).collect();
        for step in 0..10 {
            let share = OwnShards { shards: &own, total: SHARDS, keep_activations: step % 2 == 0 };
            let (report, _) = learner.train_step_exactly(step, share, Some(member(&mut group)))?;
            ensure!(!report.skipped, "{report:?}");
        }
        group.leave(TIMEOUT)?;
        Ok(json!(learner.state_hash()?))
    }

    /// Two steps of ranks that nothing happens to.
    fn undisturbed(&self) -> Result<Value> {
        let mut group = self.join(1, &AbortHandle::new())?;
        let mut learner = self.learner(Precision::Float32)?;
        learner.train_step_with(0, &[self.rows()], member(&mut group))?;
        // As after an abort: the next group's buckets are those of a first step.
        group.leave(TIMEOUT)?;
        let mut group = self.join(2, &AbortHandle::new())?;
        learner.train_step_with(1, &[self.rows()], member(&mut group))?;
        group.leave(TIMEOUT)?;
        Ok(json!(learner.state_hash()?))
    }

    /// The same two steps. In the second one rank 0 sums gradients, and rank 1 hangs before its own: then both are aborted.
    fn abort(&self) -> Result<Value> {
        let abort = AbortHandle::new();
        let mut group = self.join(1, &abort)?;
        let mut learner = self.learner(Precision::Float32)?;
        learner.train_step_with(0, &[self.rows()], member(&mut group))?;
        let before = learner.state_hash()?;
        self.link.report(&json!(before));
        let aborted = stop_when_summing(&self.link, self.rank, &abort);
        let failure = learner.train_step_with(1, &[self.rows()], member(&mut group)).err().context("a step without the other")?;
        let took = aborted.recv().context("nobody has aborted")?.elapsed();
        ensure!(matches!(failure, LearnerError::Collective(_)) && !group.is_live(), "{failure:?}");
        ensure!(took < TIMEOUT / 4, "the abort took {took:?}");
        ensure!(learner.state_hash()? == before, "the aborted step has changed something");
        if self.rank == 0 {
            self.link.report(&json!({"hash": before, "milliseconds": took.as_millis() as u64}));
            ensure!(self.link.command() == "again");
        }
        drop(group);
        let mut group = self.join(2, &AbortHandle::new())?;
        learner.train_step_with(1, &[self.rows()], member(&mut group))?;
        group.leave(TIMEOUT)?;
        Ok(json!(learner.state_hash()?))
    }

    /// Rank 0 has trained alone and sends what it holds; then both make a step together.
    fn transfer(&self) -> Result<Value> {
        let mut group = self.join(1, &AbortHandle::new())?;
        let mut learner = self.learner(Precision::Float32)?;
        let state = |learner: &Learner| -> Vec<(String, Tensor)> {
            learner.state().into_iter().map(|(name, tensor)| (name, tensor.to_device(Device::Cpu).copy())).collect()
        };
        if self.rank == 0 {
            for step in 0..2 {
                learner.train_step(step, &[batch(&ROWS)])?;
            }
            let hash = learner.state_hash()?;
            for (tag, (_, tensor)) in (0_u16..).zip(state(&learner)) {
                group.send(&tensor, 1, tag, TIMEOUT)?;
            }
            group.send(&Tensor::from_slice(hash.as_bytes()), 1, u16::MAX, TIMEOUT)?;
        } else {
            let mut received = state(&learner);
            let before = learner.state_hash()?;
            for (tag, (_, tensor)) in (0_u16..).zip(&mut received) {
                group.receive(tensor, 0, tag, TIMEOUT)?;
            }
            let mut hash = Tensor::zeros([before.len() as i64], (Kind::Uint8, Device::Cpu));
            group.receive(&mut hash, 0, u16::MAX, TIMEOUT)?;
            let hash = String::from_utf8(Vec::<u8>::try_from(hash)?)?;
            ensure!(hash != before, "both began with the same");
            learner.replace_state(&received, 2, &hash)?;
        }
        learner.train_step_with(2, &[self.rows()], member(&mut group))?;
        group.leave(TIMEOUT)?;
        Ok(json!({"hash": learner.state_hash()?, "updates": learner.completed_updates()}))
    }
}

fn on_host(named: Vec<(&str, Tensor)>) -> Vec<(&str, Tensor)> {
    named.into_iter().map(|(name, tensor)| (name, tensor.to_device(Device::Cpu))).collect()
}

/// What is to be done when the next step's gradients begin to travel.
struct Stop {
    link: Arc<Link>,
    rank: usize,
    abort: AbortHandle,
    aborted: Sender<Instant>,
}

static STOP: Mutex<Option<Stop>> = Mutex::new(None);

/// In the next step, before its gradients travel: rank 0 tells the parent and goes on, to be aborted by its command; any other stays there until
/// the parent lets it, and is aborted then. Gives the time of the abort.
fn stop_when_summing(link: &Arc<Link>, rank: usize, abort: &AbortHandle) -> Receiver<Instant> {
    let (aborted, times) = channel();
    let stop = Stop { link: Arc::clone(link), rank, abort: abort.clone(), aborted };
    *STOP.lock().unwrap_or_else(PoisonError::into_inner) = Some(stop);
    probe::observe(|phase| {
        if phase != Phase::Bucket(0) {
            return;
        }
        let Some(stop) = STOP.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let (is_first, link) = (stop.rank == 0, Arc::clone(&stop.link));
        let wait = move || {
            stop.link.command();
            let now = Instant::now();
            stop.abort.abort();
            let _ = stop.aborted.send(now);
        };
        if is_first {
            thread::spawn(wait);
            link.report(&json!("summing"));
        } else {
            wait();
        }
    });
    times
}
