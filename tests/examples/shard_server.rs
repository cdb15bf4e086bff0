//! Serves synthetic shards until it is killed, for benchmarks: by default 41,000 shards of 9,934 samples.
//!
//! `curl ADDRESS/-/counts` says what was asked for. For speed build it with `--release`.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::Parser;
use lcl_tests::shard_server::{COUNTS_PATH, Headers, Options, Shape, ShardServer};

/// Serves synthetic image-text shards, as S3 and as a plain web server.
#[derive(Parser)]
struct Arguments {
    /// How many shards.
    #[arg(long, default_value_t = 41_000)]
    shards: u32,
    /// Samples of each shard.
    #[arg(long, default_value_t = 9_934)]
    samples: u32,
    /// Other seeds give other shards.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// One header block for each member, rather than three as webdataset writes them.
    #[arg(long)]
    ustar: bool,
    /// A folder of JPEG files, which real shards repeat. Without it every JPEG is filler that nothing can decode.
    #[arg(long)]
    jpegs: Option<PathBuf>,
    /// The first so many shards have real JPEGs; all, when there is a folder of them.
    #[arg(long, requires = "jpegs")]
    real_shards: Option<u32>,
    /// Port of the loopback address; 0 is any that is free.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Threads that serve.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Milliseconds before each answer.
    #[arg(long, default_value_t = 0)]
    latency: u64,
    /// The most MB a second of each answer; 0 is no limit.
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// Send whole shards where ranges are asked for, as some web servers do.
    #[arg(long)]
    no_ranges: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let jpegs = arguments.jpegs.as_deref().map_or(Ok(Vec::new()), read_jpegs)?;
    let real_shards = if jpegs.is_empty() { 0 } else { arguments.real_shards.unwrap_or(arguments.shards) };
    let server = ShardServer::start(Options {
        shape: Shape {
            seed: arguments.seed,
            shards: arguments.shards,
            samples: arguments.samples,
            headers: if arguments.ustar { Headers::Ustar } else { Headers::Pax },
            jpegs,
            real_shards: 0..real_shards,
        },
        port: arguments.port,
        threads: arguments.threads,
        latency: Duration::from_millis(arguments.latency),
        bytes_per_second: arguments.rate * 1_000_000,
        ranges: !arguments.no_ranges,
        ..Options::default()
    })?;
    let last = arguments.shards - 1;
    println!("{} to {}", server.http_uri(0), server.http_uri(last));
    println!("{} to {}", server.s3_uri(0), server.s3_uri(last));
    for (name, value) in server.environment() {
        println!("export {name}={value}");
    }
    println!("counts: {}{COUNTS_PATH}", server.url());
    loop {
        thread::park();
    }
}

/// Every file of a folder, in the order of their names.
fn read_jpegs(folder: &Path) -> Result<Vec<Bytes>> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.retain(|path| path.is_file());
    ensure!(!paths.is_empty(), "{} holds no files", folder.display());
    paths.sort();
    paths.iter().map(|path| fs::read(path).map(Bytes::from).with_context(|| format!("reading {}", path.display()))).collect()
}
