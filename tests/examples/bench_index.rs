//! What an index of many shards in an object store costs: to make, to open, and to read by.
//!
//! `build` indexes shards of the synthetic server by reading them. `open` writes the index of any number of them from what the server knows, opens
//! the data set, loads the first batch, and then reads records and samples in the order of a run; it prints times and the memory that is resident.

use std::{
    fs,
    num::NonZero,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use lcl_data::{
    Dataset, Loader, LoaderOptions, fetched,
    index::{Extent, KnownShard, Record, index_shards, index_whole, write_whole},
    use_cache,
};
use lcl_tests::shard_server::{Headers, Options, Shape, ShardServer};
use lcl_trainer_config::{CacheConfig, DataConfig, DataSource, Objective, Preset, SampleKeys};
use serde_json::json;

#[derive(Parser)]
struct Arguments {
    /// Shards.
    #[arg(long, default_value_t = 41_000)]
    shards: u32,
    /// Samples of each.
    #[arg(long, default_value_t = 9_934)]
    samples: u32,
    /// A folder for cache and index.
    #[arg(long)]
    folder: PathBuf,
    /// A folder of JPEG files that the samples have.
    #[arg(long)]
    jpegs: PathBuf,
    /// Milliseconds before each answer of the server.
    #[arg(long, default_value_t = 0)]
    latency: u64,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Index the shards by reading them.
    Build,
    /// Open an index of all, load a batch, and read by it.
    Open {
        /// Steps of 64 samples.
        #[arg(long, default_value_t = 10_000)]
        steps: u64,
    },
}

/// Slots of a step.
const BATCH: u64 = 64;

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut jpegs = Vec::new();
    for entry in fs::read_dir(&arguments.jpegs)? {
        jpegs.push(fs::read(entry?.path())?.into());
    }
    let shape = Shape {
        shards: arguments.shards,
        samples: arguments.samples,
        headers: Headers::default(),
        jpegs,
        real_shards: 0..arguments.shards,
        ..Shape::default()
    };
    let latency = std::time::Duration::from_millis(arguments.latency);
    let server = ShardServer::start(Options { shape, latency, ..Options::default() })?;
    let cache = CacheConfig { path: Some(arguments.folder.join("cache").display().to_string()), bytes: 4 << 30 };
    let index = arguments.folder.join("index");
    fs::create_dir_all(&index)?;
    let pattern = {
        let first = server.http_uri(0);
        first.replace("00000.tar", &format!("{{00000..{:05}}}.tar", arguments.shards - 1))
    };
    let shards: Vec<PathBuf> = (0..arguments.shards).map(|shard| PathBuf::from(server.http_uri(shard))).collect();
    let keys = SampleKeys::default();
    use_cache(&cache);
    let threads = std::thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN);
    match arguments.command {
        Command::Build => {
            let begun = Instant::now();
            let reports = index_shards(&shards, Some(&index), &keys, threads)?.into_iter().collect::<Result<Vec<_>, _>>()?;
            let read = begun.elapsed().as_secs_f64();
            let whole = index_whole(&shards, index.to_str(), &keys, threads)?.context("an index of all")?;
            let samples: u64 = reports.iter().map(|report| report.findings.samples).sum();
            let written = reports.iter().filter(|report| report.written).count();
            let fetched = fetched();
            println!(
                "{}",
                json!({
                    "shards": arguments.shards, "samples": samples, "written_now": written, "seconds": read, "seconds_with_whole": begun.elapsed().as_secs_f64(),
                    "requests": fetched.requests, "bytes": fetched.bytes, "index_bytes": whole.index.metadata()?.len(), "peak_mib": status("VmHWM")? / 1024,
                })
            );
        }
        Command::Open { steps } => {
            let known = |number: usize| {
                let shard = server.shard(number as u32);
                KnownShard { length: shard.length(), e_tag: shard.e_tag(), samples: u64::from(arguments.samples) }
            };
            let begun = Instant::now();
            let path = write_whole(&index, &shards, &keys, known, |number| records(&server, number as u32, arguments.samples))?;
            let written = begun.elapsed().as_secs_f64();
            open(
                &arguments,
                &DataConfig {
                    cache,
                    index_path: Some(index.display().to_string()),
                    threads: 2,
                    ..DataConfig::new(DataSource::webdataset(vec![pattern]))
                },
                &path,
                written,
                steps,
            )?;
        }
    }
    Ok(())
}

fn records(server: &ShardServer, shard: u32, samples: u32) -> Vec<Record> {
    let shard = server.shard(shard);
    let record = |sample: u32| {
        let [jpg, _, txt] = shard.members(sample);
        let extent = |body: &std::ops::Range<u64>| Extent { offset: body.start, length: (body.end - body.start) as u32 };
        let start = if sample == 0 { 0 } else { shard.members(sample - 1)[2].body.end.next_multiple_of(512) };
        Record { start, image: Some((0, extent(&jpg.body))), caption: Some(extent(&txt.body)), others: Vec::new(), doubled: false }
    };
    (0..samples).map(record).collect()
}

fn open(arguments: &Arguments, config: &DataConfig, index: &Path, written: f64, steps: u64) -> Result<()> {
    let begun = Instant::now();
    let dataset = Arc::new(Dataset::open(config)?);
    let opened = begun.elapsed().as_secs_f64();
    let mut model = Preset::Tiny.shape();
    (model.vision.image_size, model.vision.patch_size) = (224, 56);
    let objective = Objective::Lcl { generation_weight: 1.0, contrastive_weight: 0.1 };
    let options =
        LoaderOptions { model, objective, seed: 1, global_batch_size: BATCH, slots: (0..BATCH).into(), first_step: 0, last_step: 1 };
    let first = Loader::start(Arc::clone(&dataset), config, options)?.next().context("a batch")??;
    let (first_batch, rows) = (begun.elapsed().as_secs_f64(), first.rows.len());
    drop(first);
    let order = dataset.order(1, BATCH);
    let reading = Instant::now();
    // Bytes of a tenth of them, records of all: a record is what grows with the data.
    for index in 0..steps * BATCH {
        let sample = order.locate(index).sample;
        if index % 10 == 0 {
            dataset.read(sample)?;
        } else {
            dataset.look_up(sample)?;
        }
    }
    println!(
        "{}",
        json!({
            "shards": arguments.shards, "samples": dataset.samples_per_pass(), "index_bytes": index.metadata()?.len(), "index_written_seconds": written,
            "open_seconds": opened, "first_batch_seconds": first_batch, "rows": rows, "steps": steps, "reading_seconds": reading.elapsed().as_secs_f64(),
            "resident_mib": status("VmRSS")? / 1024, "peak_mib": status("VmHWM")? / 1024, "fetched_mb": fetched().bytes / 1_000_000,
        })
    );
    Ok(())
}

/// A line of this process's status, in KiB.
fn status(name: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find(|line| line.starts_with(name)).context("no such line")?;
    Ok(line.split_whitespace().nth(1).context("no number")?.parse()?)
}
