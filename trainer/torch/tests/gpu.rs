//! What only a GPU can show: a step there against one on the processor, sums by NCCL, bits that repeat, and ends by command. A machine
//! without one skips them with a line; one GPU is enough.

#[path = "training/support.rs"]
#[allow(dead_code, reason = "a part of it is for other tests")]
mod support;

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc, Barrier, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use lcl_torch::{
    Device, HostTensor, Kind, Learner, LearnerError, LearnerOptions, MemberStep, MicroBatch, OwnShards, Tensor, choose_device,
    collectives::{AbortHandle, Group, GroupError, GroupOptions, MemorySession, MemoryStore, Store, StoreError},
    shim::{cuda, runtime::set_deterministic},
};
use lcl_trainer_config::{Device as Wanted, GradientCompression, Precision, TrainerConfig};
use support::{ROWS, batch, config, distance, split_rows};

const TIMEOUT: Duration = Duration::from_mins(1);

/// Tests take turns: they count the threads and the memory of the whole process.
static TURN: Mutex<()> = Mutex::new(());

/// The first GPU, if there is one. Every test of this file computes so that its bits repeat.
fn gpu() -> Option<(Device, MutexGuard<'static, ()>)> {
    if !cuda::load().expect("an answer") || cuda::device_count().expect("a number") == 0 {
        println!("skipped: there is no GPU");
        return None;
    }
    set_deterministic(true).expect("a mode");
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    Some((choose_device(Wanted::Cuda, 0).expect("a GPU"), turn))
}

fn learner(config: &TrainerConfig, device: Device) -> Learner {
    Learner::with_options(config, device, LearnerOptions::default()).expect("a learner")
}

fn options(store: Arc<dyn Store>, generation: u64, rank: usize, world_size: usize, device: Device) -> GroupOptions {
    let host = IpAddr::V4(Ipv4Addr::LOCALHOST);
    GroupOptions { store, prefix: format!("generation-{generation}"), rank, world_size, host, device, timeout: TIMEOUT }
}

fn group_of_one(generation: u64, device: Device) -> Group {
    let store = Arc::new(MemoryStore::default().session());
    Group::form(options(store, generation, 0, 1, device), &AbortHandle::new()).expect("a group")
}

fn member(group: &mut Group) -> MemberStep<'_> {
    MemberStep { group, wish: 1, counts: None, timeout: TIMEOUT }
}

fn copies(learner: &Learner) -> Vec<(&str, Tensor)> {
    learner.gradients().into_iter().map(|(name, gradient)| (name, gradient.to_device(Device::Cpu))).collect()
}

#[test]
fn a_step_is_that_of_the_processor_with_and_without_micro_batches_and_checkpointing() {
    let Some((device, _turn)) = gpu() else { return };
    for activation_checkpointing in [false, true] {
        let mut config = config();
        config.model.activation_checkpointing = activation_checkpointing;
        for micro_batches in [vec![batch(&ROWS)], split_rows()] {
            let (mut here, mut there) = (learner(&config, Device::Cpu), learner(&config, device));
            let expected = here.compute_gradients(3, &micro_batches).expect("gradients");
            let found = there.compute_gradients(3, &micro_batches).expect("gradients");
            let apart = distance(&copies(&there), &copies(&here));
            println!("{} micro-batches, checkpointing {activation_checkpointing}: {apart:.1e}", micro_batches.len());
            assert!(apart < 2e-6, "gradients differ by {apart:e}");
            assert!((found.total / expected.total - 1.0).abs() < 1e-6, "{found:?} {expected:?}");
        }
    }
}

#[test]
fn a_group_of_one_takes_the_step_of_a_member_alone() {
    let Some((device, _turn)) = gpu() else { return };
    for (compression, least, most) in [(GradientCompression::None, 0.0, 1e-7), (GradientCompression::Bf16, 1e-5, 1e-2)] {
        let mut config = config();
        config.optimization.gradient_compression = compression;
        let (mut alone, mut grouped) = (learner(&config, device), learner(&config, device));
        let expected = alone.compute_gradients(3, &split_rows()).expect("gradients");
        let mut group = group_of_one(1, device);
        // Twice: after the first step the Reducer orders its buckets anew.
        for _ in 0..2 {
            let (found, _) = grouped.compute_gradients_with(3, &split_rows(), member(&mut group)).expect("gradients");
            let apart = distance(&copies(&grouped), &copies(&alone));
            println!("{compression:?}: {apart:.1e}");
            assert!((least..=most).contains(&apart), "{compression:?}: gradients differ by {apart:e}");
            assert!((found.total / expected.total - 1.0).abs() < 1e-7, "{found:?} {expected:?}");
        }
        group.leave(TIMEOUT).expect("nobody else is there");
    }
}

#[test]
fn in_exact_mode_the_bits_repeat_alone_and_in_a_group() {
    let Some((device, _turn)) = gpu() else { return };
    let shards: Vec<Vec<MicroBatch>> = ROWS.chunks(2).map(|rows| vec![batch(rows)]).collect();
    let shards: Vec<&[MicroBatch]> = shards.iter().map(Vec::as_slice).collect();
    for precision in [Precision::Float32, Precision::Bfloat16] {
        let mut config = config();
        config.model.precision = precision;
        let train = |mut group: Option<Group>| {
            let mut learner = learner(&config, device);
            for step in 0..20 {
                let share = OwnShards { shards: &shards, total: shards.len(), keep_activations: step % 2 == 0 };
                let (report, _) = learner.train_step_exactly(step, share, group.as_mut().map(member)).expect("a step");
                assert!(!report.skipped, "{report:?}");
            }
            learner.state_hash().expect("a hash")
        };
        let once = train(None);
        println!("{precision:?}: {once}");
        assert_eq!(train(None), once, "{precision:?}: alone and again");
        assert_eq!(train(Some(group_of_one(1, device))), once, "{precision:?}: in a group of one");
    }
}

#[test]
fn a_step_of_an_aborted_group_changes_nothing_and_the_next_group_takes_it() {
    let Some((device, _turn)) = gpu() else { return };
    let config = config();
    let (mut disturbed, mut other) = (learner(&config, device), learner(&config, device));
    let mut group = group_of_one(1, device);
    other.train_step_with(0, &[batch(&ROWS)], member(&mut group)).expect("a step");
    group.leave(TIMEOUT).expect("nobody else is there");

    let (store, abort) = (Arc::new(MemoryStore::default().session()), AbortHandle::new());
    let mut group = Group::form(options(store, 1, 0, 1, device), &abort).expect("a group");
    let before = disturbed.state_hash().expect("a hash");
    abort.abort();
    let failure = disturbed.train_step_with(0, &[batch(&ROWS)], member(&mut group)).expect_err("it was aborted");
    assert!(matches!(failure, LearnerError::Collective(_)), "{failure:?}");
    drop(group);
    assert_eq!(disturbed.state_hash().expect("a hash"), before);
    disturbed.train_step_with(0, &[batch(&ROWS)], member(&mut group_of_one(2, device))).expect("a step");
    assert_eq!(disturbed.state_hash().expect("a hash"), other.state_hash().expect("a hash"));
}

#[test]
fn a_state_is_copied_beside_a_step_as_it_was_before_and_into_locked_memory() {
    let Some((device, _turn)) = gpu() else { return };
    let mut learner = learner(&config(), device);
    learner.train_step(0, &[batch(&ROWS)]).expect("a step");
    // What the tensors hold, by libtorch's own way to the host.
    let expected: Vec<Vec<u8>> = learner
        .state()
        .iter()
        .map(|(_, tensor)| {
            let host = tensor.to_device(Device::Cpu).contiguous();
            let mut bytes = vec![0; host.numel() * 4];
            host.view([-1]).copy_data_u8(&mut bytes, host.numel());
            bytes
        })
        .collect();
    let bytes = |tensors: &[HostTensor]| -> Vec<Vec<u8>> { tensors.iter().map(|held| held.bytes.as_ref().to_vec()).collect() };
    let mut memory = learner.prepare_host_state();
    learner.copy_state_into(&mut memory).expect("a copy");
    assert!(bytes(&memory.tensors()) == expected, "copied at once");
    assert_eq!(memory.lock_failure(), None);
    for step in 1..4 {
        let before = bytes(&memory.tensors());
        let (sender, copied) = mpsc::channel();
        let copy = learner.copy_state_beside(memory, move |result| sender.send(result).expect("a listener")).expect("a thread");
        learner.train_step(step, &[batch(&ROWS)]).expect("a step");
        let found = bytes(&copied.recv().expect("a result").expect("a copy"));
        println!("step {step}: the update waited {:?}", copy.waited());
        assert!(found == before, "step {step}: not the state before it");
        memory = copy.into_memory();
        learner.copy_state_into(&mut memory).expect("a copy");
        assert!(bytes(&memory.tensors()) != before, "step {step} has changed nothing");
    }
}

#[test]
fn generations_come_and_go_without_leaving_memory_or_threads() {
    let Some((device, _turn)) = gpu() else { return };
    let turn = |generation| {
        let begun = Instant::now();
        let mut group = group_of_one(generation, device);
        let formed = begun.elapsed();
        let mut numbers = Tensor::ones([1 << 20], (Kind::Float, device));
        group.all_reduce(&mut numbers, TIMEOUT).expect("a sum");
        let begun = Instant::now();
        group.close();
        (formed, begun.elapsed())
    };
    let threads = || std::fs::read_dir("/proc/self/task").expect("this process").count();
    let allocated = || cuda::memory_statistics(0).expect("statistics").allocated;
    // NCCL ends half a second after its group.
    let settle = |most: usize| {
        let begun = Instant::now();
        while threads() > most {
            assert!(begun.elapsed() < TIMEOUT, "{} threads instead of {most}", threads());
            thread::sleep(Duration::from_millis(10));
        }
        begun.elapsed()
    };
    // What is made once per process is made now; its threads stay, and the group's go.
    turn(0);
    let (begun, mut last) = (Instant::now(), (threads(), Instant::now()));
    while last.1.elapsed() < Duration::from_secs(2) {
        assert!(begun.elapsed() < TIMEOUT, "{} threads, and more come and go", last.0);
        if threads() != last.0 {
            last = (threads(), Instant::now());
        }
        thread::sleep(Duration::from_millis(10));
    }
    let before = (allocated(), threads());
    let mut times: Vec<_> = (1..13).map(turn).collect();
    let settled = settle(before.1);
    times.sort_unstable();
    let (formed, closed) = times[times.len() / 2];
    println!("a group of one: formed in {formed:?} (median), closed in {closed:?}; threads of {} gone after {settled:?}", times.len());
    assert_eq!(allocated(), before.0, "bytes on the GPU");
}

#[test]
fn a_group_with_nccl_that_was_closed_is_gone_and_needs_no_rescue() {
    // NCCL takes half a second.
    const DEADLINE: Duration = Duration::from_secs(3);
    let Some((device, _turn)) = gpu() else { return };
    let (sender, rescues) = mpsc::channel();
    let handle = AbortHandle::with_rescue(DEADLINE, move || sender.send(()).expect("a listener"));
    let session = Arc::new(MemoryStore::default().session());
    Group::form(options(session, 1, 0, 1, device), &handle).expect("a group").close();
    assert_eq!(rescues.recv_timeout(2 * DEADLINE), Err(mpsc::RecvTimeoutError::Timeout), "it was rescued");
    drop(handle);
}

/// A member whose NCCL never gets an answer from the store: to the others it hangs after Gloo's part of the group has formed.
struct Hanging {
    inner: MemorySession,
    cancelled: AtomicBool,
}

impl Hanging {
    fn pass(&self, key: &str) -> Result<(), StoreError> {
        while key.contains("nccl/") {
            if self.cancelled.load(Ordering::Acquire) {
                return Err(StoreError::Cancelled);
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Store for Hanging {
    fn set(&self, key: &str, value: &[u8], timeout: Duration) -> Result<(), StoreError> {
        self.pass(key)?;
        self.inner.set(key, value, timeout)
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, StoreError> {
        self.pass(key)?;
        self.inner.get(key, timeout)
    }

    fn compare_set(&self, key: &str, expected: &[u8], desired: &[u8], timeout: Duration) -> Result<Vec<u8>, StoreError> {
        self.pass(key)?;
        self.inner.compare_set(key, expected, desired, timeout)
    }

    fn add(&self, key: &str, amount: i64, timeout: Duration) -> Result<i64, StoreError> {
        self.pass(key)?;
        self.inner.add(key, amount, timeout)
    }

    fn append(&self, key: &str, value: &[u8], timeout: Duration) -> Result<(), StoreError> {
        self.pass(key)?;
        self.inner.append(key, value, timeout)
    }

    fn delete(&self, key: &str, timeout: Duration) -> Result<bool, StoreError> {
        self.pass(key)?;
        self.inner.delete(key, timeout)
    }

    fn contains(&self, keys: &[&str], timeout: Duration) -> Result<bool, StoreError> {
        keys.iter().try_for_each(|key| self.pass(key))?;
        self.inner.contains(keys, timeout)
    }

    fn count(&self, timeout: Duration) -> Result<u64, StoreError> {
        self.inner.count(timeout)
    }

    fn wait(&self, keys: &[&str], timeout: Duration) -> Result<(), StoreError> {
        keys.iter().try_for_each(|key| self.pass(key))?;
        self.inner.wait(keys, timeout)
    }

    fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
        self.inner.cancel();
    }
}

#[test]
fn an_abort_ends_the_forming_of_nccl_while_a_peer_hangs() {
    let Some((device, _turn)) = gpu() else { return };
    let store = MemoryStore::default();
    let (waits, hangs) = (AbortHandle::new(), AbortHandle::new());
    let (failure, took) = thread::scope(|scope| {
        let (store, hanging) = (&store, hangs.clone());
        scope.spawn(move || {
            let session = Hanging { inner: store.session(), cancelled: AtomicBool::new(false) };
            Group::form(options(Arc::new(session), 1, 1, 2, device), &hanging).map(drop).expect_err("it never gets an answer");
        });
        let (session, handle) = (Arc::new(store.session()), waits.clone());
        let waiter = scope.spawn(move || {
            let failure = Group::form(options(session, 1, 0, 2, device), &handle).map(drop).expect_err("its peer hangs");
            (failure, Instant::now())
        });
        // Nothing but the abort ends its waiting inside of NCCL, and nothing tells when it has come there: wherever it is, it has to end.
        thread::sleep(Duration::from_secs(2));
        assert!(!waiter.is_finished(), "the peer is not there yet");
        let begun = Instant::now();
        waits.abort();
        let (failure, ended) = waiter.join().expect("a member");
        hangs.abort();
        (failure, ended - begun)
    });
    println!("aborted after {took:?}: {failure}");
    assert!(took < Duration::from_secs(20), "the abort took {took:?}");
    // The GPU is as usable as before.
    group_of_one(2, device).leave(TIMEOUT).expect("nobody else is there");
}

#[test]
fn members_that_share_a_gpu_are_told_and_the_gpu_stays_usable() {
    let Some((device, _turn)) = gpu() else { return };
    let (store, together) = (MemoryStore::default(), Barrier::new(2));
    let failures: Vec<GroupError> = thread::scope(|scope| {
        let start = |rank| {
            let (store, together) = (&store, &together);
            scope.spawn(move || {
                together.wait();
                let begun = Instant::now();
                let outcome = Group::form(options(Arc::new(store.session()), 1, rank, 2, device), &AbortHandle::new());
                println!("after {:?}", begun.elapsed());
                outcome.map(drop).expect_err("one GPU")
            })
        };
        let members: Vec<_> = (0..2).map(start).collect();
        members.into_iter().map(|member| member.join().expect("a member")).collect()
    });
    for failure in &failures {
        let mut text = failure.to_string();
        let mut source = std::error::Error::source(failure);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        println!("{text}");
        assert!(text.contains("NCCL"), "{text}");
    }
    group_of_one(2, device).leave(TIMEOUT).expect("nobody else is there");
}
