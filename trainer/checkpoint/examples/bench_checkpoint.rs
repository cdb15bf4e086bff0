//! The Rust half of `bench/checkpoint.py`: saves and restores a training state of 61.2 M parameters and both moments on demand, so that
//! both programs can take turns on the same machine and disk.
//!
//! `bench_checkpoint FOLDER [--threads N]` prints the tensors' shapes as JSON, then answers each line on its standard input with one
//! line of JSON: `save` (synced), `save-unsynced`, `restore`; ends with the input.

use std::{
    collections::BTreeMap,
    io::{BufRead, Write},
    num::{NonZeroU32, NonZeroUsize},
    path::PathBuf,
    sync::Arc,
    thread,
    time::Instant,
};

use anyhow::{Context, ensure};
use lcl_checkpoint::{
    CheckpointStore, CheckpointWriter, Dtype, Generation, Retention, Snapshot, StoreOptions, TensorData, WriterOptions, restore_latest,
    shared_bytes,
};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().context("usage: bench_checkpoint FOLDER [--threads N]")?);
    let threads = match arguments.next().as_deref() {
        Some("--threads") => arguments.next().context("--threads needs a number")?.parse()?,
        _ => WriterOptions::default().threads,
    };
    let mut bench = Bench::new(folder, threads);
    let shapes: BTreeMap<&str, &[usize]> = bench.shapes.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
    println!("{}", serde_json::to_string(&shapes)?);
    for line in std::io::stdin().lock().lines() {
        let answer = match line?.as_str() {
            "save" => bench.save(true)?,
            "save-unsynced" => bench.save(false)?,
            "restore" => bench.restore()?,
            other => anyhow::bail!("unknown command `{other}`"),
        };
        println!("{answer}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

struct Bench {
    folder: PathBuf,
    shapes: Vec<(String, Vec<usize>)>,
    /// What training owns; changed before every save.
    live: Vec<Vec<u8>>,
    /// Where it is copied while training stands still; kept for all checkpoints.
    host: Arc<Vec<Vec<u8>>>,
    threads: NonZeroUsize,
    step: u64,
}

impl Bench {
    fn new(folder: PathBuf, threads: NonZeroUsize) -> Self {
        let shapes: Vec<_> = ["model", "moment1", "moment2"]
            .iter()
            .flat_map(|part| parameter_shapes().into_iter().map(move |(name, shape)| (format!("{part}.{name}"), shape)))
            .collect();
        let bytes = |shape: &[usize]| shape.iter().product::<usize>() * Dtype::F32.bitsize() / 8;
        let live = shapes.iter().map(|(name, shape)| noise(name, bytes(shape))).collect();
        let host = Arc::new(shapes.iter().map(|(_, shape)| vec![1; bytes(shape)]).collect());
        Self { folder, shapes, live, host, threads, step: 0 }
    }

    fn store(&self, fsync: bool) -> anyhow::Result<CheckpointStore> {
        let folder = std::path::absolute(&self.folder)?;
        let uri = format!("file://{}", folder.display());
        Ok(CheckpointStore::open(&uri, StoreOptions { fsync, create: true })?)
    }

    fn save(&mut self, fsync: bool) -> anyhow::Result<serde_json::Value> {
        self.step += 1;
        for tensor in &mut self.live {
            // As training would: every save has other bytes.
            if let Some(first) = tensor.first_mut() {
                *first = first.wrapping_add(1);
            }
        }
        let retention = Retention { keep_last: NonZeroU32::MIN, keep_every_steps: None };
        let options = WriterOptions { retention: Some(retention), threads: self.threads, ..WriterOptions::default() };
        let mut writer = CheckpointWriter::new(self.store(fsync)?, options);

        let start = Instant::now();
        let host = Arc::get_mut(&mut self.host).context("the writer still holds the host buffers")?;
        copy(&self.live, host);
        let tensors = self.shapes.iter().enumerate().map(|(index, (name, shape))| TensorData {
            name: name.clone(),
            shape: shape.clone(),
            dtype: Dtype::F32,
            data: shared_bytes(&self.host, move |all| all.get(index).map_or(&[], Vec::as_slice)),
        });
        let snapshot = Snapshot {
            step: self.step,
            generation: Generation { epoch: 1, n: 0 },
            config_digest: String::new(),
            metadata: serde_json::Value::Null,
            tensors: tensors.collect(),
        };
        writer.submit(snapshot)?;
        let stall = start.elapsed();
        let committed = writer.wait().context("no write was under way")??;
        Ok(serde_json::json!({
            "stall": stall.as_secs_f64(),
            "write": committed.duration.as_secs_f64(),
            "total": start.elapsed().as_secs_f64(),
            "bytes": committed.bytes,
        }))
    }

    fn restore(&self) -> anyhow::Result<serde_json::Value> {
        let start = Instant::now();
        let restored = restore_latest(&self.store(true)?, None)?.context("there is no checkpoint")?;
        let seconds = start.elapsed().as_secs_f64();
        ensure!(restored.id.step == self.step, "restored step {} instead of {}", restored.id.step, self.step);
        let equal = restored.tensors.iter().zip(&self.live).all(|(restored, live)| restored.data == *live);
        ensure!(equal, "what was restored is not what was saved");
        Ok(serde_json::json!({ "restore": seconds }))
    }
}

/// Copies with two threads, each about half of the bytes.
fn copy(from: &[Vec<u8>], to: &mut [Vec<u8>]) {
    let mut halves = [Vec::new(), Vec::new()];
    let mut bytes = [0, 0];
    for (from, to) in from.iter().zip(to) {
        let half = usize::from(bytes[1] < bytes[0]);
        bytes[half] += from.len();
        halves[half].push((from, to));
    }
    thread::scope(|scope| {
        for half in halves {
            scope.spawn(move || {
                for (from, to) in half {
                    to.copy_from_slice(from);
                }
            });
        }
    });
}

/// Bytes that do not compress and are no page of zeroes.
fn noise(seed: &str, bytes: usize) -> Vec<u8> {
    let mut data = vec![0; bytes];
    blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut data);
    data
}

/// The parameters of the benchmark model: image 224, patch 32, both towers of width 384 with 6 blocks, context 130, vocabulary 49,411.
fn parameter_shapes() -> Vec<(String, Vec<usize>)> {
    const WIDTH: usize = 384;
    const VOCABULARY: usize = 49_411;
    let mut shapes: Vec<(String, Vec<usize>)> = vec![
        ("visual.conv1.weight".into(), vec![WIDTH, 3, 32, 32]),
        ("visual.positional_embedding".into(), vec![50, WIDTH]),
        ("visual.attn_pool.in_proj_weight".into(), vec![3 * WIDTH, WIDTH]),
        ("visual.attn_pool.out_proj.weight".into(), vec![WIDTH, WIDTH]),
        ("visual.proj".into(), vec![WIDTH, WIDTH]),
        ("text.token_embedding.weight".into(), vec![VOCABULARY, WIDTH]),
        ("text.positional_embedding".into(), vec![130, WIDTH]),
        ("text.projection".into(), vec![WIDTH, WIDTH]),
        ("text.head.weight".into(), vec![VOCABULARY, WIDTH]),
        ("logit_scale".into(), vec![]),
    ];
    for tower in ["visual", "text"] {
        for block in 0..6 {
            let mut add = |name: &str, shape: &[usize]| shapes.push((format!("{tower}.block{block}.{name}"), shape.to_vec()));
            add("ln_1.weight", &[WIDTH]);
            add("ln_1.bias", &[WIDTH]);
            add("attn.in_proj_weight", &[3 * WIDTH, WIDTH]);
            add("attn.in_proj_bias", &[3 * WIDTH]);
            add("attn.out_proj.weight", &[WIDTH, WIDTH]);
            add("attn.out_proj.bias", &[WIDTH]);
            add("ln_2.weight", &[WIDTH]);
            add("ln_2.bias", &[WIDTH]);
            add("mlp.c_fc.weight", &[4 * WIDTH, WIDTH]);
            add("mlp.c_fc.bias", &[4 * WIDTH]);
            add("mlp.c_proj.weight", &[WIDTH, 4 * WIDTH]);
            add("mlp.c_proj.bias", &[WIDTH]);
        }
    }
    shapes
}
