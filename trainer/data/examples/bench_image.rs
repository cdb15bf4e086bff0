//! One side of `bench/image.py`: times the image pipeline on one thread.
//!
//! Reads lines `FOLDER SIDE SCALE REDUCED` from standard input (`SCALE`: least part of the area kept, 1 for the evaluation transform; `REDUCED`: 0 or 1),
//! runs every file of the folder once through the transform to `SIDE` and answers each line with seconds of processor time and images.
//! A line `difference FOLDER SIDE` is answered with the mean and the worst image's mean absolute difference (of 255) that decoding at reduced
//! scale makes, over the crops that the recipe draws.

use std::{
    collections::HashMap,
    fs,
    io::{self, BufRead, Write},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use lcl_data::{
    image::{CropBox, ImageTransform, STD, Scratch, random_resized_crop},
    random::{SlotRandom, Stream},
};

const RATIO: [f64; 2] = [3.0 / 4.0, 4.0 / 3.0];

/// Processor time of this thread in seconds: what other programs take meanwhile does not count. Wall time where the system does not tell.
fn processor_seconds(start: Instant) -> f64 {
    let nanoseconds = fs::read_to_string("/proc/thread-self/schedstat").ok().and_then(|line| line.split(' ').next()?.parse::<f64>().ok());
    nanoseconds.map_or_else(|| start.elapsed().as_secs_f64(), |nanoseconds| nanoseconds / 1e9)
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

fn time(files: &[Vec<u8>], transform: &ImageTransform, least: f64, round: u64, scratch: &mut Scratch) -> Result<f64> {
    let mut out = vec![0.0; transform.output_len()];
    let wall = Instant::now();
    let start = processor_seconds(wall);
    for (slot, bytes) in files.iter().enumerate() {
        if least < 1.0 {
            transform.train(bytes, |width, height| crop(width, height, round, slot, least), scratch, &mut out)?;
        } else {
            transform.evaluate(bytes, scratch, &mut out)?;
        }
    }
    Ok(processor_seconds(wall) - start)
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
        let folder = if words.first() == Some(&"difference") { words.get(1) } else { words.first() };
        let folder = (*folder.context("no folder")?).to_owned();
        if !loaded.contains_key(&folder) {
            loaded.insert(folder.clone(), load(&folder)?);
        }
        let files = &loaded[&folder];
        let answer = match *words {
            ["difference", _, side] => {
                let differences = differences(files, side.parse()?, &mut scratch)?;
                let mean = differences.iter().sum::<f64>() / differences.len() as f64;
                format!("{mean} {}", differences.iter().copied().fold(0.0, f64::max))
            }
            [_, side, least, reduced] => {
                let transform = ImageTransform { reduced_scale_decoding: reduced == "1", ..ImageTransform::new(side.parse()?) };
                format!("{} {}", time(files, &transform, least.parse()?, round as u64, &mut scratch)?, files.len())
            }
            _ => bail!("cannot read `{line}`"),
        };
        println!("{answer}");
        io::stdout().flush()?;
    }
    Ok(())
}
