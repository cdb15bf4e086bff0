//! Reading all of a data set and saying what is wrong with it, for `lcl data check`.
//!
//! Comes in: a data set's configuration. Goes out: every record that cannot be used, with its shard, its name there and its byte ([`Finding`]), and
//! counts by cause ([`CheckReport`]). Images are decoded, so what passes here is not left out in training for its contents. It makes the indexes that
//! are missing, and writes nothing else.
//!
//! A shard that cannot be read at all is a finding like any other: the rest is checked without it.

mod shards;

pub use shards::open_what_can_be;

use std::{
    collections::BTreeMap,
    num::NonZero,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
};

use lcl_trainer_config::DataConfig;
use serde::Serialize;

use crate::{
    cause::RedrawCause,
    count_of,
    dataset::{Dataset, DatasetError, Reading},
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
    /// How many there are of it in the shard; the first is named.
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
/// many are done.
pub fn check(
    config: &DataConfig,
    origin: ListOrigin,
    found: impl Fn(&Finding) + Sync,
    progress: impl Fn(u64, u64) + Sync,
) -> Result<CheckReport, DatasetError> {
    let mut report = CheckReport::default();
    let mut tell = |finding: Finding| {
        report.count(&finding);
        found(&finding);
    };
    let Some(dataset) = shards::open_what_can_be(config, origin, &mut tell)? else { return Ok(report) };
    for (source, shard, findings) in dataset.document_findings() {
        for (cause, left_out) in &findings.left_out {
            let bad = !FILTERED.contains(&cause.as_str());
            let (member, detail) = left_out.first.split_once(": ").unwrap_or((&left_out.first, ""));
            let (member, detail) = (member.to_owned(), detail.to_owned());
            tell(Finding {
                cause: cause.clone(),
                bad,
                source: source.clone(),
                shard: shard.clone(),
                member,
                byte: None,
                detail,
                count: left_out.count,
            });
        }
    }
    let (done, samples) = (AtomicU64::new(0), dataset.samples_per_pass());
    let chunks: Vec<u64> = (0..samples.div_ceil(CHUNK)).collect();
    let threads = NonZero::new(config.threads).unwrap_or(NonZero::<usize>::MIN);
    let checked = over_all(threads, &chunks, |chunk| {
        let mut checker = Checker { dataset: &dataset, found: &found, scratch: Scratch::new(), report: CheckReport::default() };
        for sample in chunk * CHUNK..samples.min((chunk + 1) * CHUNK) {
            checker.check(sample);
            progress(done.fetch_add(1, Ordering::Relaxed) + 1, samples);
        }
        Ok::<_, DatasetError>(checker.report)
    })?;
    for other in checked {
        report.add(other);
    }
    if report.images == 0 && report.samples > 0 && report.bad.is_empty() {
        let (shard, member, byte) = dataset.member(0)?;
        let (cause, source) = ("no_image_found".to_owned(), dataset.source_name(0).to_owned());
        let detail = format!("not one image of {} can be decoded: is this where the images are?", count_of(samples, "sample"));
        let finding = Finding { cause, bad: true, source, shard, member, byte, detail, count: 1 };
        report.count(&finding);
        found(&finding);
    }
    report.shards = dataset.shards();
    Ok(report)
}

/// Checks samples one after the other.
struct Checker<'a, F> {
    dataset: &'a Dataset,
    found: &'a F,
    scratch: Scratch,
    report: CheckReport,
}

impl<F: Fn(&Finding)> Checker<'_, F> {
    fn check(&mut self, sample: u64) {
        self.report.samples += 1;
        let checked = if self.dataset.is_document(sample) { self.check_document(sample) } else { self.check_pair(sample) };
        if let Err(error) = checked {
            let (cause, byte) = shards::cause_of(&error);
            let (shard, member, _) = self.dataset.member(sample).unwrap_or_default();
            self.tell(sample, cause, (shard, member, byte), shards::in_words(&error));
        }
    }

    fn check_pair(&mut self, sample: u64) -> Result<(), DatasetError> {
        let (cause, detail) = match self.dataset.read(sample)? {
            Reading::Skipped(cause) => (cause, String::new()),
            Reading::Sample(read) => match decode(read.image(), &mut self.scratch) {
                Ok(_) => {
                    self.report.images += 1;
                    return Ok(());
                }
                Err(error) => (error.cause(), error.to_string()),
            },
        };
        let place = self.dataset.member(sample)?;
        self.tell(sample, cause.name(), place, detail);
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
                Some((cause, detail)) => self.tell(sample, cause, image.place, detail),
            }
        }
        self.report.images += readable;
        if readable == 0 {
            let (shard, name) = source.name(own)?;
            self.tell(sample, RedrawCause::NoImageReadable.name(), (shard, name, None), String::new());
        }
        Ok(())
    }

    fn tell(&mut self, sample: u64, cause: &str, (shard, member, byte): (PathBuf, String, Option<u64>), detail: String) {
        let source = self.dataset.source_name(sample).to_owned();
        let finding = Finding { cause: cause.to_owned(), bad: !FILTERED.contains(&cause), source, shard, member, byte, detail, count: 1 };
        self.report.count(&finding);
        (self.found)(&finding);
    }
}

#[cfg(test)]
mod tests;
