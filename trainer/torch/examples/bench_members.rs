//! The training step of several members of `lcl-torch`, each a process, measured; `bench/elastic_compare.py` runs it in turns with `PyTorch`'s
//! `DistributedDataParallel` (`bench/step.py --processes`), and its exact mode with its fast one.
//!
//! The last line it prints is JSON. Batches are those of `bench_step.rs`, rank r having the r-th equal part of the rows; with
//! `--weights` both sides start from the same model and must print the same losses.

#[path = "bench_support/model.rs"]
mod model;

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use lcl_torch::{
    Device, Learner, MemberStep, MicroBatch, OwnShards, allocator,
    collectives::{AbortHandle, Group, GroupOptions, Store, StoreError},
    set_threads, shards_of,
    shim::runtime::set_deterministic,
};
use lcl_trainer_config::ExactConfig;

use model::{Size, batch, config, load_weights, peak, shape, text_tokens};

/// For everything that a member waits for.
const TIMEOUT: Duration = Duration::from_mins(5);
/// Virtual shards of exact mode: the default of a job.
const SHARDS: usize = 8;

#[derive(Clone, Debug, Parser)]
#[command(about = "Measure the training step of several members")]
struct Arguments {
    #[arg(long, value_enum, default_value = "61m")]
    model: Size,
    #[arg(long, default_value = "float32", value_parser = ["float32", "bfloat16"])]
    precision: String,
    /// Rows of each member.
    #[arg(long, default_value_t = 16)]
    rows: usize,
    #[arg(long, default_value_t = 2)]
    processes: usize,
    /// Threads of each.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    #[arg(long)]
    exact: bool,
    #[arg(long, default_value_t = 2)]
    warmup: usize,
    #[arg(long, default_value_t = 5)]
    steps: usize,
    #[arg(long)]
    weights: Option<PathBuf>,
    /// Set by the first process for the others: where they meet, and which one it is.
    #[arg(long, hide = true, requires = "rank")]
    store: Option<PathBuf>,
    #[arg(long, hide = true)]
    rank: Option<usize>,
}

/// A store in a folder: a file for each key, one lock for all.
struct FolderStore {
    folder: PathBuf,
    cancelled: AtomicBool,
}

impl FolderStore {
    fn path(&self, key: &str) -> PathBuf {
        self.folder.join(key.replace('/', "%"))
    }

    fn locked<T>(&self, body: impl FnOnce() -> Result<T>) -> Result<T, StoreError> {
        let unreachable = |error: anyhow::Error| StoreError::Unreachable { reason: format!("{error:#}") };
        if self.cancelled.load(Ordering::Acquire) {
            return Err(StoreError::Cancelled);
        }
        let lock = File::create(self.folder.with_extension("lock")).map_err(|error| unreachable(error.into()))?;
        lock.lock().map_err(|error| unreachable(error.into()))?;
        body().map_err(unreachable)
    }

    fn read(path: &Path) -> Option<Vec<u8>> {
        fs::read(path).ok()
    }

    fn wait_for(&self, keys: &[&str], timeout: Duration) -> Result<(), StoreError> {
        let end = Instant::now() + timeout;
        while !self.contains(keys, timeout)? {
            if Instant::now() >= end {
                return Err(StoreError::Timeout { key: keys.first().unwrap_or(&"").to_string(), timeout });
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Store for FolderStore {
    fn set(&self, key: &str, value: &[u8], _: Duration) -> Result<(), StoreError> {
        self.locked(|| Ok(fs::write(self.path(key), value)?))
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, StoreError> {
        self.wait_for(&[key], timeout)?;
        self.locked(|| Ok(fs::read(self.path(key))?))
    }

    fn compare_set(&self, key: &str, expected: &[u8], desired: &[u8], _: Duration) -> Result<Vec<u8>, StoreError> {
        let path = self.path(key);
        self.locked(|| {
            let found = Self::read(&path);
            if found.as_deref().unwrap_or_default() == expected {
                fs::write(&path, desired)?;
                return Ok(desired.to_vec());
            }
            Ok(found.unwrap_or_else(|| expected.to_vec()))
        })
    }

    fn add(&self, key: &str, amount: i64, _: Duration) -> Result<i64, StoreError> {
        let path = self.path(key);
        self.locked(|| {
            let before: i64 = Self::read(&path).map_or(Ok(0), |value| String::from_utf8(value)?.parse().context("no number"))?;
            fs::write(&path, (before + amount).to_string())?;
            Ok(before + amount)
        })
    }

    fn append(&self, key: &str, value: &[u8], _: Duration) -> Result<(), StoreError> {
        self.locked(|| Ok(fs::OpenOptions::new().create(true).append(true).open(self.path(key))?.write_all(value)?))
    }

    fn delete(&self, key: &str, _: Duration) -> Result<bool, StoreError> {
        self.locked(|| Ok(fs::remove_file(self.path(key)).is_ok()))
    }

    fn contains(&self, keys: &[&str], _: Duration) -> Result<bool, StoreError> {
        self.locked(|| Ok(keys.iter().all(|key| self.path(key).exists())))
    }

    fn count(&self, _: Duration) -> Result<u64, StoreError> {
        self.locked(|| Ok(fs::read_dir(&self.folder)?.count() as u64))
    }

    fn wait(&self, keys: &[&str], timeout: Duration) -> Result<(), StoreError> {
        self.wait_for(keys, timeout)
    }

    fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
    }
}

fn member(arguments: &Arguments, rank: usize, store: &Path) -> Result<()> {
    allocator::retain_memory();
    set_threads(Some(arguments.threads))?;
    if arguments.exact {
        set_deterministic(true)?;
    }
    let (shape, text_tokens) = (shape(arguments.model), text_tokens(arguments.model));
    let world = arguments.processes;
    let total = arguments.rows * world;
    let mut config = config(shape.clone(), &arguments.precision, total, arguments.threads);
    config.optimization.exact = arguments.exact.then_some(ExactConfig {
        virtual_shards: SHARDS as u32,
        threads: arguments.threads as u32,
        verify_every_steps: None,
    });
    let mut learner = Learner::new(&config, Device::Cpu)?;
    if let Some(path) = &arguments.weights {
        load_weights(&mut learner, path)?;
    }
    let shards = if arguments.exact { shards_of(rank, world, SHARDS) } else { rank..rank + 1 };
    let size = if arguments.exact { total / SHARDS } else { arguments.rows };
    let parts: Vec<MicroBatch> = shards.map(|shard| batch(&shape, text_tokens, total, shard * size, size)).collect::<Result<_>>()?;
    let lists: Vec<&[MicroBatch]> = parts.iter().map(std::slice::from_ref).collect();
    let options = GroupOptions {
        store: Arc::new(FolderStore { folder: store.to_owned(), cancelled: AtomicBool::new(false) }),
        prefix: "bench".to_owned(),
        rank,
        world_size: world,
        host: [127, 0, 0, 1].into(),
        device: Device::Cpu,
        timeout: TIMEOUT,
    };
    let mut group = Group::form(options, &AbortHandle::new())?;
    let (mut seconds, mut losses) = (Vec::new(), Vec::new());
    for step in 0..arguments.warmup + arguments.steps {
        group.barrier(TIMEOUT)?;
        let start = Instant::now();
        let member = MemberStep { group: &mut group, wish: 0, counts: None, timeout: TIMEOUT };
        let (report, _) = if arguments.exact {
            let shards = OwnShards { shards: &lists, total: SHARDS, keep_activations: true };
            learner.train_step_exactly(step as u64, shards, Some(member))?
        } else {
            learner.train_step_with(step as u64, &parts, member)?
        };
        ensure!(!report.skipped, "step {step} was skipped: loss {}, gradient norm {}", report.total, report.gradient_norm);
        losses.push(report.total);
        if step >= arguments.warmup {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    group.leave(TIMEOUT)?;
    let mut result = BTreeMap::new();
    result.insert("side", serde_json::json!(if arguments.exact { "exact" } else { "fast" }));
    result.insert("rank", serde_json::json!(rank));
    result.insert("rows", serde_json::json!(total));
    result.insert("seconds", serde_json::json!(seconds));
    result.insert("losses", serde_json::json!(losses));
    result.insert("peak_bytes", serde_json::json!(peak()?));
    println!("{}", serde_json::to_string(&result)?);
    Ok(())
}

/// Starts the members and prints what rank 0 has measured: all wait for the slowest in every step.
fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let (Some(rank), Some(store)) = (arguments.rank, &arguments.store) {
        return member(&arguments, rank, store);
    }
    ensure!(arguments.steps > 0, "--steps must be at least 1");
    ensure!(!arguments.exact || (arguments.rows * arguments.processes).is_multiple_of(SHARDS), "{SHARDS} shards must divide the rows");
    let scratch = env::temp_dir().join(format!("bench-members-{}", std::process::id()));
    let store = scratch.join("store");
    fs::create_dir_all(&store)?;
    let start = |rank: usize| {
        let mut command = Command::new(env::current_exe()?);
        command.args(env::args_os().skip(1)).arg("--store").arg(&store).args(["--rank", &rank.to_string()]);
        Ok(command.stdout(Stdio::piped()).spawn()?)
    };
    let members = (0..arguments.processes).map(start).collect::<Result<Vec<_>>>()?;
    let ended = members.into_iter().map(|member| Ok(member.wait_with_output()?)).collect::<Result<Vec<_>>>();
    fs::remove_dir_all(&scratch)?;
    let ended = ended?;
    if let Some(failed) = ended.iter().find(|output| !output.status.success()) {
        bail!("a member ended: {}", failed.status);
    }
    print!("{}", String::from_utf8_lossy(&ended.first().context("no member")?.stdout));
    Ok(())
}
