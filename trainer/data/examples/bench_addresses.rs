//! Makes a store of synthetic shards, then its table of addresses, and prints times and the most memory that was in use.
//!
//! `bench_addresses ADDRESSES MEMORY_MIB THREADS FOLDER`; the folder takes 2 kB an address. Shards that are there already are used.

use std::{
    env, fs,
    num::NonZero,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use lcl_data::{
    shard::ShardWriter,
    store::{AddressTable, BuildOptions, build_table},
};

/// As many as img2dataset puts into one.
const SAMPLES_PER_SHARD: usize = 10_000;

/// Look-ups that are timed.
const LOOKUPS: usize = 200_000;

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [addresses, memory, threads, folder] = arguments.as_slice() else {
        anyhow::bail!("usage: bench_addresses ADDRESSES MEMORY_MIB THREADS FOLDER");
    };
    let (addresses, folder) = (addresses.parse::<usize>()?, PathBuf::from(folder));
    let memory_bytes = memory.parse::<usize>()? << 20;
    let options = BuildOptions { memory_bytes, threads: NonZero::new(threads.parse()?).context("at least one thread")? };
    let shards: Vec<PathBuf> = (0..addresses.div_ceil(SAMPLES_PER_SHARD)).map(|shard| folder.join(format!("{shard:05}.tar"))).collect();
    for (shard, path) in shards.iter().enumerate().filter(|(_, path)| !path.exists()) {
        write_shard(path, shard)?;
    }

    let (before, start) = (peak_kib()?, Instant::now());
    let table = folder.join("addresses");
    let report = build_table(&shards, &table, &options, |_| {})?;
    let build_seconds = start.elapsed().as_secs_f64();
    let peak = peak_kib()?;

    let table = AddressTable::open(&table)?;
    let start = Instant::now();
    for lookup in 0..LOOKUPS {
        // Every other one is not there.
        let number = lookup * 7_919 % (shards.len() * SAMPLES_PER_SHARD);
        let is_there = table.find(&address(number, lookup % 2 == 0))?.is_some();
        ensure!(is_there == (lookup % 2 == 0), "address {number}");
    }
    let microseconds = start.elapsed().as_secs_f64() * 1e6 / LOOKUPS as f64;
    println!(
        "{}",
        serde_json::json!({
            "addresses": report.addresses, "table_bytes": fs::metadata(folder.join("addresses"))?.len(), "build_seconds": build_seconds,
            "peak_kib": peak, "peak_kib_before": before, "lookup_microseconds": microseconds,
        })
    );
    Ok(())
}

fn address(number: usize, is_there: bool) -> String {
    format!("https://images-{}.example.org/pictures/{number:08}/a-file-name.jpg{}", number % 977, if is_there { "" } else { "?" })
}

fn write_shard(path: &Path, shard: usize) -> Result<()> {
    let mut writer = ShardWriter::create(path)?;
    for sample in 0..SAMPLES_PER_SHARD {
        let key = format!("{shard:05}{sample:04}");
        let metadata = serde_json::json!({
            "url": address(shard * SAMPLES_PER_SHARD + sample, true), "key": key, "status": "success", "error_message": null, "width": 256,
            "height": 256, "original_width": 1024, "original_height": 1024, "exif": "{}",
        });
        writer.append_member(&key, "jpg", b"image")?;
        writer.append_member(&key, "json", metadata.to_string().as_bytes())?;
    }
    Ok(writer.finish()?)
}

/// The most memory that this process ever had in use.
fn peak_kib() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
