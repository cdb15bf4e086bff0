//! One side of `bench/image.py`: times the image pipeline and the loader.
//!
//! Reads lines of words from standard input and answers each with two numbers:
//!
//! - `images FOLDER SIDE SCALE REDUCED FORM THREADS` runs the files of the folder through the transform to `SIDE` again and again, for a quarter of
//!   a second at least, and answers with seconds and images. `SCALE`: least part of the area kept, 1 for the evaluation transform; `REDUCED`: 0 or 1;
//!   `FORM`: `bytes` as the loader makes them or `floats`, normalised. One thread counts processor time, several the time on the clock.
//! - `loader FOLDER SIDE THREADS` takes batches of 256 from the shards in the folder for two seconds; answers with seconds of processor time of all
//!   threads, and images. What limits is written to standard error.
//! - `difference FOLDER SIDE`: mean, and worst image's mean, of the absolute difference (of 255) that decoding at reduced scale makes, over the crops
//!   that the recipe draws.

use std::{
    collections::HashMap,
    fs,
    io::{self, BufRead, Write},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use lcl_data::{
    Dataset, Loader, LoaderOptions,
    image::{CropBox, ImageTransform, STD, Scratch, random_resized_crop},
    random::{SlotRandom, Stream},
};
use lcl_trainer_config::{DataConfig, DataSource, Objective, Preset};

const RATIO: [f64; 2] = [3.0 / 4.0, 4.0 / 3.0];

/// The system counts a thread's time in steps of up to four milliseconds: with this they make 2 %.
const LEAST_TIME: Duration = Duration::from_millis(250);

/// How long batches are taken.
const LOADER_TIME: Duration = Duration::from_secs(2);

/// Processor time of this thread in seconds: what other programs take meanwhile does not count. Wall time where the system does not tell.
fn processor_seconds(start: Instant) -> f64 {
    let nanoseconds = fs::read_to_string("/proc/thread-self/schedstat").ok().and_then(|line| line.split(' ').next()?.parse::<f64>().ok());
    nanoseconds.map_or_else(|| start.elapsed().as_secs_f64(), |nanoseconds| nanoseconds / 1e9)
}

/// Processor time of all threads of this process that are alive.
fn processor_seconds_of_all() -> Result<f64> {
    let mut sum = 0.0;
    for thread in fs::read_dir("/proc/self/task")? {
        let line = fs::read_to_string(thread?.path().join("schedstat"))?;
        sum += line.split(' ').next().context("no time")?.parse::<f64>()? / 1e9;
    }
    Ok(sum)
}

fn crop(width: u32, height: u32, step: u64, slot: usize, least: f64) -> CropBox {
    let mut random = SlotRandom::new(0, step, slot as u64, Stream::Crop);
    random_resized_crop(width, height, [least, 1.0], RATIO, &mut || random.uniform())
}

fn load(folder: &str) -> Result<Vec<Vec<u8>>> {
    let mut paths: Vec<_> = fs::read_dir(folder).context(folder.to_owned())?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    paths.sort();
    paths.iter().map(|path| fs::read(path).with_context(|| path.display().to_string())).collect()
}

/// What is timed.
#[derive(Clone)]
struct Work {
    transform: ImageTransform,
    least: f64,
    floats: bool,
    round: u64,
}

/// Seconds of processor time and images.
fn time(files: &[Vec<u8>], work: &Work, scratch: &mut Scratch) -> Result<(f64, usize)> {
    let Work { transform, least, floats, round } = work;
    let (mut out, mut bytes) = (vec![0.0; transform.output_len()], vec![0; transform.output_len()]);
    let wall = Instant::now();
    let (start, mut images) = (processor_seconds(wall), 0);
    while wall.elapsed() < LEAST_TIME || processor_seconds(wall) - start < LEAST_TIME.as_secs_f64() {
        for (slot, file) in files.iter().enumerate() {
            let crop = |width, height| crop(width, height, round + images as u64, slot, *least);
            match (*least < 1.0, floats) {
                (true, true) => transform.train(file, crop, scratch, &mut out)?,
                (true, false) => transform.train_bytes(file, crop, scratch, &mut bytes)?,
                (false, true) => transform.evaluate(file, scratch, &mut out)?,
                (false, false) => transform.evaluate_bytes(file, scratch, &mut bytes)?,
            };
        }
        images += files.len();
    }
    Ok((processor_seconds(wall) - start, images))
}

/// Seconds on the clock and images of several threads at once.
fn time_threads(files: &[Vec<u8>], work: &Work, threads: usize) -> Result<(f64, usize)> {
    let start = Instant::now();
    let images = std::thread::scope(|scope| {
        let run = || Ok::<_, anyhow::Error>(time(files, work, &mut Scratch::new())?.1);
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        all.into_iter().map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?).sum::<Result<usize>>()
    })?;
    Ok((start.elapsed().as_secs_f64(), images))
}

/// Seconds of processor time and images of batches from shards.
fn time_loader(folder: &str, side: i64, threads: usize) -> Result<(f64, usize)> {
    let config = DataConfig { threads, ..DataConfig::new(DataSource::webdataset(vec![format!("{folder}/*.tar")])) };
    let mut model = Preset::Tiny.shape();
    (model.vision.image_size, model.vision.patch_size, model.text.context_length) = (side, 16, 512);
    let options = LoaderOptions {
        model,
        objective: Objective::Lcl { generation_weight: 1.0, contrastive_weight: 1.0 },
        seed: 0,
        global_batch_size: 256,
        slots: (0..256).into(),
        first_step: 0,
        last_step: 1_000_000,
    };
    let mut loader = Loader::start(Arc::new(Dataset::open(&config)?), &config, options)?;
    // The first batches bring buffers to their size.
    for _ in 0..4 {
        loader.next().context("no batch")??;
    }
    loader.stages();
    let (wall, start, mut images) = (Instant::now(), processor_seconds_of_all()?, 0);
    while wall.elapsed() < LOADER_TIME {
        images += loader.next().context("no batch")??.images;
    }
    let seconds = processor_seconds_of_all()? - start;
    eprintln!("{threads} threads: {:?}", loader.stages());
    Ok((seconds, images))
}

fn differences(files: &[Vec<u8>], side: u32, scratch: &mut Scratch) -> Result<Vec<f64>> {
    let full = ImageTransform::new(side);
    let reduced = ImageTransform { reduced_scale_decoding: true, ..full.clone() };
    let (mut exact, mut near) = (vec![0.0; full.output_len()], vec![0.0; full.output_len()]);
    let mut differences = Vec::new();
    for (slot, bytes) in files.iter().enumerate() {
        full.train(bytes, |width, height| crop(width, height, 0, slot, 0.9), scratch, &mut exact)?;
        reduced.train(bytes, |width, height| crop(width, height, 0, slot, 0.9), scratch, &mut near)?;
        let area = exact.len() / 3;
        let sum: f64 = exact
            .iter()
            .zip(&near)
            .enumerate()
            .map(|(index, (exact, near))| f64::from((exact - near).abs() * STD[index / area]) * 255.0)
            .sum();
        differences.push(sum / exact.len() as f64);
    }
    Ok(differences)
}

fn main() -> Result<()> {
    let mut scratch = Scratch::new();
    let mut loaded = HashMap::new();
    for (round, line) in io::stdin().lock().lines().enumerate() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let [kind, folder, rest @ ..] = words.as_slice() else { bail!("cannot read `{line}`") };
        if *kind != "loader" && !loaded.contains_key(*folder) {
            loaded.insert((*folder).to_owned(), load(folder)?);
        }
        let files = loaded.get(*folder).map(Vec::as_slice).unwrap_or_default();
        let (first, second) = match (*kind, rest) {
            ("difference", [side]) => {
                let differences = differences(files, side.parse()?, &mut scratch)?;
                let mean = differences.iter().sum::<f64>() / differences.len() as f64;
                (mean, differences.iter().copied().fold(0.0, f64::max))
            }
            ("loader", [side, threads]) => {
                let (seconds, images) = time_loader(folder, side.parse()?, threads.parse()?)?;
                (seconds, images as f64)
            }
            ("images", [side, least, reduced, form, threads]) => {
                let transform = ImageTransform { reduced_scale_decoding: *reduced == "1", ..ImageTransform::new(side.parse()?) };
                let work = Work { transform, least: least.parse()?, floats: *form == "floats", round: round as u64 };
                let threads: usize = threads.parse()?;
                let (seconds, images) = if threads > 1 { time_threads(files, &work, threads)? } else { time(files, &work, &mut scratch)? };
                (seconds, images as f64)
            }
            _ => bail!("cannot read `{line}`"),
        };
        println!("{first} {second}");
        io::stdout().flush()?;
    }
    Ok(())
}
