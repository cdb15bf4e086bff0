//! Reading all of a data set and saying what is wrong with it, for `lcl data check`.
//!
//! Comes in: a data set's configuration. Goes out: every record that cannot be used, with its shard, its name there and its byte ([`Finding`]), and
//! counts by cause ([`CheckReport`]). Images are decoded, so what passes here is not left out in training for its contents. It makes the indexes that
//! are missing, and writes nothing else.
//!
//! A shard that cannot be read at all, or is another one than was indexed, is one finding like any other: the rest is checked without it.

mod left_out;
mod shards;

pub use shards::open_what_can_be;

use std::{
    collections::{BTreeMap, HashSet},
    num::NonZero,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use lcl_trainer_config::DataConfig;
use serde::Serialize;

use crate::{
    cause::RedrawCause,
    count_of,
    dataset::{Blamed, Choose, Dataset, DatasetError, Room},
    documents::{IMAGE_MISSING, NO_IMAGE_STORED},
    image::{Scratch, decode},
    index::over_all,
    retry::sleep,
    shard::ListOrigin,
};

/// Samples that a thread checks at a time: a second's work, and neighbours of one shard.
const CHUNK: u64 = 256;

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Name of the cause, as in the metrics of training.
    pub cause: String,
    /// Whether it is a fault; otherwise what a filter or a page that is gone leaves out, as training does.
    pub bad: bool,
    /// The source, when there are several.
    pub source: String,
    /// The shard, or the file of an image.
    pub shard: PathBuf,
    /// What it is called there: a member, a line, a row, an address; empty when the whole shard is meant.
    pub member: String,
    /// Its first byte in the shard, where that is known.
    pub byte: Option<u64>,
    /// What was found, in words.
    pub detail: String,
    /// How many it stands for: with a member, which is the first of them, that many of the shard; without one those that are not named.
    pub count: u64,
}

/// What was read, and how much of it was not as it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// Shards that could be read.
    pub shards: u64,
    /// Samples in them.
    pub samples: u64,
    /// Images that can be decoded.
    pub images: u64,
    /// Faults by cause.
    pub bad: BTreeMap<String, u64>,
    /// What is left out without a fault, by cause.
    pub left_out: BTreeMap<String, u64>,
}

impl CheckReport {
    fn count(&mut self, finding: &Finding) {
        let causes = if finding.bad { &mut self.bad } else { &mut self.left_out };
        *causes.entry(finding.cause.clone()).or_default() += finding.count;
    }

    fn add(&mut self, other: Self) {
        self.shards += other.shards;
        self.samples += other.samples;
        self.images += other.images;
        for (mine, others) in [(&mut self.bad, other.bad), (&mut self.left_out, other.left_out)] {
            for (cause, count) in others {
                *mine.entry(cause).or_default() += count;
            }
        }
    }
}

/// Causes that are no faults: what a setting or the web leaves out.
const FILTERED: [&str; 4] =
    [RedrawCause::NoImageAboveThreshold.name(), RedrawCause::NoImageReadable.name(), NO_IMAGE_STORED, IMAGE_MISSING];

/// Reads everything with `config.threads` threads. `found` hears each finding as it is made, from any of them; `progress` how many samples of how
/// many are done. Of what is no fault each one has a finding when `all` is set; else they are counted alone where that spares reading a shard again.
///
/// What is wrong with this machine or with a whole store, and not with the data, is the error, and ends it at once.
pub fn check(
    config: &DataConfig,
    origin: ListOrigin,
    all: bool,
    found: impl Fn(&Finding) + Sync,
    progress: impl Fn(u64, u64) + Sync,
) -> Result<CheckReport, DatasetError> {
    let mut told = Told { found: &found, report: CheckReport::default() };
    let lost = Lost::default();
    let mut tell = |finding: Finding| {
        lost.lose(&finding.shard, false);
        told.tell(&finding);
    };
    let Some(dataset) = shards::open_what_can_be(config, origin, &mut tell)? else { return Ok(told.report) };
    let threads = NonZero::new(config.threads).unwrap_or(NonZero::<usize>::MIN);
    let search = left_out::Search { dataset: &dataset, threads, all, lost: &lost, found: &found };
    told.report.add(search.run(config, origin)?);
    let (done, samples) = (AtomicU64::new(0), dataset.samples_per_pass());
    let chunks: Vec<u64> = (0..samples.div_ceil(CHUNK)).collect();
    let checked = over_all(threads, &chunks, |chunk| {
        let told = Told { found: &found, report: CheckReport::default() };
        let mut checker = Checker { dataset: &dataset, lost: &lost, room: Room::default(), scratch: Scratch::new(), told };
        for sample in chunk * CHUNK..samples.min((chunk + 1) * CHUNK) {
            checker.check(sample)?;
            progress(done.fetch_add(1, Ordering::Relaxed) + 1, samples);
        }
        Ok::<_, DatasetError>(checker.told.report)
    })?;
    for other in checked {
        told.report.add(other);
    }
    if told.report.images == 0 && told.report.samples > 0 && told.report.bad.is_empty() {
        let (shard, member, byte) = dataset.member(0)?;
        let (cause, source) = ("no_image_found".to_owned(), dataset.source_name(0).to_owned());
        let detail = format!("not one image of {} can be decoded: is this where the images are?", count_of(samples, "sample"));
        told.tell(&Finding { cause, bad: true, source, shard, member, byte, detail, count: 1 });
    }
    told.report.shards = dataset.shards().saturating_sub(lost.own.into_inner());
    Ok(told.report)
}

/// Says what is found, and counts it.
struct Told<'a, F> {
    found: &'a F,
    report: CheckReport,
}

impl<F: Fn(&Finding)> Told<'_, F> {
    fn tell(&mut self, finding: &Finding) {
        self.report.count(finding);
        (self.found)(finding);
    }
}

/// Shards that turned out not to be readable: each is told once, and nothing more is read of it.
#[derive(Debug, Default)]
struct Lost {
    shards: Mutex<HashSet<PathBuf>>,
    /// How many of them are shards of the open data set, and none of images.
    own: AtomicU64,
}

impl Lost {
    /// Notes a shard; whether it is new.
    fn lose(&self, shard: &Path, is_own: bool) -> bool {
        let is_new = self.shards.lock().unwrap_or_else(PoisonError::into_inner).insert(shard.to_owned());
        self.own.fetch_add(u64::from(is_new && is_own), Ordering::Relaxed);
        is_new
    }

    fn has(&self, shard: &Path) -> bool {
        self.shards.lock().unwrap_or_else(PoisonError::into_inner).contains(shard)
    }
}

/// Checks samples one after the other.
struct Checker<'a, F> {
    dataset: &'a Dataset,
    lost: &'a Lost,
    room: Room,
    scratch: Scratch,
    told: Told<'a, F>,
}

impl<F: Fn(&Finding)> Checker<'_, F> {
    fn check(&mut self, sample: u64) -> Result<(), DatasetError> {
        let own = self.dataset.shard_of(sample)?;
        if self.lost.has(own) {
            return Ok(());
        }
        let checked = if self.dataset.is_document(sample) { self.check_document(sample) } else { self.check_pair(sample) };
        match checked {
            Ok(()) => {}
            // Once of a shard, or of a file of images, whatever reads it next.
            Err(error) if shards::is_of_a_file(&error) => {
                let path = shards::shard_of(&error).unwrap_or(own);
                if self.lost.lose(path, path == own) {
                    self.told.tell(&Finding::of_shard(self.dataset.source_name(sample), path.to_owned(), &error));
                }
                if path == own {
                    return Ok(());
                }
            }
            Err(error) => return Err(error),
        }
        self.told.report.samples += 1;
        Ok(())
    }

    fn check_pair(&mut self, sample: u64) -> Result<(), DatasetError> {
        let unused = self.dataset.read_into(&mut self.room, sample, Choose::First, sleep)?;
        for (cause, Blamed { shard, member, byte, detail }) in self.dataset.faults(sample, unused, &self.room)? {
            self.tell(sample, cause.name(), (shard, member, byte), detail);
        }
        // With a caption that is none the image was read all the same, and another caption may be drawn for it.
        if unused.is_some_and(|cause| !cause.is_of_caption()) {
            return Ok(());
        }
        match decode(self.room.sample.image(), &mut self.scratch) {
            Ok(_) => self.told.report.images += 1,
            Err(error) => {
                let (shard, member, byte) = self.dataset.member(sample)?;
                self.tell(sample, error.cause().name(), (shard, member, byte), error.to_string());
            }
        }
        Ok(())
    }

    fn check_document(&mut self, sample: u64) -> Result<(), DatasetError> {
        let (source, own) = self.dataset.document(sample)?;
        let whole = source.whole(own, &mut |delay| sleep(delay))?;
        let mut readable = 0;
        for image in whole.images.into_values() {
            let fault = match &image.bytes {
                None => Some((IMAGE_MISSING, String::new())),
                Some(bytes) => decode(bytes, &mut self.scratch).err().map(|error| (error.cause().name(), error.to_string())),
            };
            match fault {
                None => readable += 1,
                // No shard of images has it: it is named by the document that does.
                Some((cause, _)) if image.place.0.as_os_str().is_empty() => {
                    let (shard, name) = source.name(own)?;
                    self.tell(sample, cause, (shard, name, None), image.place.1);
                }
                Some((cause, detail)) => self.tell(sample, cause, image.place, detail),
            }
        }
        self.told.report.images += readable;
        if readable == 0 {
            let (shard, name) = source.name(own)?;
            self.tell(sample, RedrawCause::NoImageReadable.name(), (shard, name, None), String::new());
        }
        Ok(())
    }

    fn tell(&mut self, sample: u64, cause: &str, (shard, member, byte): (PathBuf, String, Option<u64>), detail: String) {
        let source = self.dataset.source_name(sample).to_owned();
        self.told.tell(&Finding {
            cause: cause.to_owned(),
            bad: !FILTERED.contains(&cause),
            source,
            shard,
            member,
            byte,
            detail,
            count: 1,
        });
    }
}

#[cfg(test)]
mod tests;
