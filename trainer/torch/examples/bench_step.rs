//! The training step of `lcl-torch`, measured; `bench/step_compare.py` runs it in turns with the same model in `PyTorch` (`bench/step.py`).
//!
//! The last line it prints is JSON with the same fields as that script's. Batches are made by the same formula, and with `--weights`
//! (written by `step.py --save-weights`) both sides start from the same model and must print the same losses.

#[path = "bench_support/model.rs"]
mod model;

use std::{collections::BTreeMap, fs, mem, path::PathBuf, sync::mpsc, time::Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use lcl_torch::{
    Device, HostState, Learner, allocator, choose_device, set_threads,
    shim::{cuda, profile},
};
use lcl_trainer_config::Device as Wanted;

use model::{Size, batch, config, load_weights, peak, shape, text_tokens};

#[derive(Debug, Parser)]
#[command(about = "Measure the training step")]
struct Arguments {
    #[arg(long, value_enum, default_value = "61m")]
    model: Size,
    #[arg(long, default_value = "float32", value_parser = ["float32", "bfloat16"])]
    precision: String,
    #[arg(long, default_value = "cpu", value_parser = ["cpu", "cuda"])]
    device: String,
    #[arg(long)]
    rows: Option<usize>,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    #[arg(long, default_value_t = 2)]
    warmup: usize,
    #[arg(long, default_value_t = 5)]
    steps: usize,
    /// Initial weights, a safetensors file of the reference's names.
    #[arg(long)]
    weights: Option<PathBuf>,
    /// Leave the C library's allocator as it is.
    #[arg(long)]
    default_allocator: bool,
    /// Copy the state for a checkpoint before every other measured step: at once, or beside the step.
    #[arg(long, value_enum)]
    copy: Option<Copy>,
    /// Write a trace of two more steps there.
    #[arg(long)]
    trace: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Copy {
    AtOnce,
    Beside,
}

/// Copies of the state, and what they cost.
struct Copies {
    manner: Copy,
    memory: HostState,
    /// Of the steps with a copy: their seconds, the copy included, and how long of it training stood still.
    seconds: Vec<f64>,
    stalls: Vec<f64>,
}

impl Copies {
    /// A step with a copy before it, or beside it.
    fn step(&mut self, learner: &mut Learner, mut step: impl FnMut(&mut Learner) -> Result<()>) -> Result<()> {
        let start = Instant::now();
        let stall = match self.manner {
            Copy::AtOnce => {
                learner.copy_state_into(&mut self.memory)?;
                let stall = start.elapsed();
                step(learner)?;
                stall
            }
            Copy::Beside => {
                let (sender, copied) = mpsc::channel();
                let memory = mem::take(&mut self.memory);
                let copy = learner.copy_state_beside(memory, move |result| drop(sender.send(result.map(drop))))?;
                let begun = start.elapsed();
                step(learner)?;
                copied.recv().context("the copy is gone")??;
                let stall = begun + copy.waited();
                self.memory = copy.into_memory();
                stall
            }
        };
        self.seconds.push(start.elapsed().as_secs_f64());
        self.stalls.push(stall.as_secs_f64());
        Ok(())
    }
}

/// What the kernel counted for this process.
struct Usage {
    /// Minor page faults.
    faults: i64,
    /// Largest resident size in bytes.
    peak: i64,
    /// Time of all its threads on a processor, in seconds, to a hundredth.
    processor: f64,
}

fn usage() -> Result<Usage> {
    let statistics = fs::read_to_string("/proc/self/stat")?;
    // Fields after the program's name in parentheses start with the third: 10 is faults, 14 and 15 are ticks of 10 ms.
    let fields: Vec<&str> = statistics.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let field = |number: usize| -> Result<i64> { Ok(fields.get(number - 3).context("too few fields in /proc/self/stat")?.parse()?) };
    Ok(Usage { faults: field(10)?, peak: peak()?, processor: (field(14)? + field(15)?) as f64 / 100.0 })
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if !arguments.default_allocator {
        allocator::retain_memory();
    }
    set_threads(Some(arguments.threads))?;
    let device = choose_device(if arguments.device == "cuda" { Wanted::Cuda } else { Wanted::Cpu }, 0)?;
    let shape = shape(arguments.model);
    let rows = arguments.rows.unwrap_or(match arguments.model {
        Size::Medium | Size::Large | Size::Largest => 16,
        Size::Tiny => 64,
    });
    let config = config(shape.clone(), &arguments.precision, rows, arguments.threads);
    let mut learner = Learner::new(&config, device)?;
    if let Some(path) = &arguments.weights {
        load_weights(&mut learner, path)?;
    }
    let mut whole = batch(&shape, text_tokens(arguments.model), rows, 0, rows)?;
    whole.images = whole.images.f_to_device(device)?;
    let micro_batches = [whole];
    let (mut seconds, mut processor_seconds, mut losses, mut faults) = (Vec::new(), Vec::new(), Vec::new(), 0);
    let mut number = 0;
    let mut train = |learner: &mut Learner| -> Result<()> {
        let report = learner.train_step(number, &micro_batches)?;
        if let Device::Cuda(index) = device {
            cuda::synchronize(index)?;
        }
        ensure!(!report.skipped, "step {number} was skipped: loss {}, gradient norm {}", report.total, report.gradient_norm);
        losses.push(report.total);
        number += 1;
        Ok(())
    };
    let mut copies =
        arguments.copy.map(|manner| Copies { manner, memory: learner.prepare_host_state(), seconds: Vec::new(), stalls: Vec::new() });
    for step in 0..arguments.warmup + arguments.steps {
        if let Some(copies) = copies.as_mut().filter(|_| step % 2 == 1) {
            copies.step(&mut learner, &mut train)?;
            if step < arguments.warmup {
                (copies.seconds, copies.stalls) = (Vec::new(), Vec::new());
            }
            continue;
        }
        let before = usage()?;
        let start = Instant::now();
        train(&mut learner)?;
        let elapsed = start.elapsed().as_secs_f64();
        if step >= arguments.warmup {
            let after = usage()?;
            seconds.push(elapsed);
            processor_seconds.push(after.processor - before.processor);
            faults += after.faults - before.faults;
        }
    }
    if seconds.is_empty() {
        bail!("--steps must be at least 1");
    }
    let peak = match device {
        Device::Cuda(index) => cuda::memory_statistics(index)?.peak_allocated as i64,
        _ => usage()?.peak,
    };
    if let Some(path) = &arguments.trace {
        profile::record(device, path, || (0..2).try_for_each(|_| train(&mut learner)))??;
    }
    let parameters: usize = learner.model().parameters().iter().map(|parameter| parameter.tensor.numel()).sum();
    let mut result = BTreeMap::new();
    result.insert("side", serde_json::json!("lcl-torch"));
    result.insert("parameters", serde_json::json!(parameters));
    result.insert("rows", serde_json::json!(rows));
    result.insert("page_faults_per_step", serde_json::json!(faults / seconds.len() as i64));
    result.insert("seconds", serde_json::json!(seconds));
    result.insert("processor_seconds", serde_json::json!(processor_seconds));
    result.insert("losses", serde_json::json!(losses));
    result.insert("peak_bytes", serde_json::json!(peak));
    if let Some(copies) = copies {
        result.insert("copied_seconds", serde_json::json!(copies.seconds));
        result.insert("stall_seconds", serde_json::json!(copies.stalls));
        result
            .insert("copied_bytes", serde_json::json!(copies.memory.tensors().iter().map(|held| held.bytes.as_ref().len()).sum::<usize>()));
    }
    println!("{}", serde_json::to_string(&result)?);
    Ok(())
}
