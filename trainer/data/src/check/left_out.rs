//! What gives no sample by the indexes of a data set, each by its name.
//!
//! Comes in: a data set that is open. Goes out: a finding for every document, pair and image of a store that is left out before any sample is read.
//! Indexes count causes and name the first of each, so a shard that has more of a fault is looked through once more.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZero,
    path::{Path, PathBuf},
};

use lcl_filter::FilterCause;
use lcl_trainer_config::{DataConfig, DataSource, SampleKeys};

use super::{CheckReport, FILTERED, Finding, Lost, Told, shards};
use crate::{
    dataset::{Dataset, DatasetError},
    documents::{DocumentFindings, LeftOut, NAMED_LIMIT, NO_IMAGE_STORED, Source},
    index::{for_each_filtered, over_all, pairs::PairIndex},
    retry::{sleep, with_retries},
    shard::{ListOrigin, find_shards},
    store::check_shard,
};

/// What looking for it needs.
pub(super) struct Search<'a, F> {
    pub(super) dataset: &'a Dataset,
    pub(super) threads: NonZero<usize>,
    /// Whether what is no fault is named, too.
    pub(super) all: bool,
    pub(super) lost: &'a Lost,
    pub(super) found: &'a F,
}

/// Where something was found, what it is called there, its byte, and what is wrong with it.
type Place = (String, Option<u64>, String);

/// What was found in a shard for each cause: how many, and as many of them as are named.
type Causes = BTreeMap<&'static str, (u64, Vec<Place>)>;

impl<F: Fn(&Finding) + Sync> Search<'_, F> {
    /// Tells all of it.
    pub(super) fn run(&self, config: &DataConfig, origin: ListOrigin) -> Result<CheckReport, DatasetError> {
        let mut report = CheckReport::default();
        for (source, documents) in self.dataset.document_sources() {
            let shards = documents.findings();
            self.each(&shards, &mut report, |(shard, findings), told| self.tell_documents((source, documents), shard, findings, told))?;
        }
        for (source, index, keys) in self.dataset.pair_sources().filter(|(.., keys)| keys.filter.is_some()) {
            self.tell_filtered(source, index, keys, &mut report)?;
        }
        let mut config = config.clone();
        let mut stores = BTreeSet::new();
        let mut tell_store = |source: &mut DataSource, name: &str| {
            let Some(images) = shards::images_of(source) else { return Ok(()) };
            let mut paths = find_shards(images, origin, self.threads)?;
            paths.retain(|path| stores.insert(path.clone()) && !self.lost.has(path));
            self.each(&paths, &mut report, |shard, told| self.tell_images(name, shard, told))
        };
        match &mut config.source {
            DataSource::Mixture { mixture } => {
                mixture.sources.iter_mut().try_for_each(|mixed| tell_store(&mut mixed.source, &mixed.name))?;
            }
            source => tell_store(source, "data")?,
        }
        Ok(report)
    }

    /// Does something with each of these by all threads.
    fn each<I: Sync>(
        &self,
        items: &[I],
        report: &mut CheckReport,
        work: impl Fn(&I, &mut Told<'_, F>) -> Result<(), DatasetError> + Sync,
    ) -> Result<(), DatasetError> {
        let reports = over_all(self.threads, items, |item| {
            let mut told = Told { found: self.found, report: CheckReport::default() };
            work(item, &mut told)?;
            Ok::<_, DatasetError>(told.report)
        })?;
        for other in reports {
            report.add(other);
        }
        Ok(())
    }

    /// What looking through a shard came to; `None` where that cannot be read, which is told.
    fn looked<T>(
        &self,
        (source, shard, is_own): (&str, &Path, bool),
        told: &mut Told<'_, F>,
        look: impl FnMut() -> Result<T, DatasetError>,
    ) -> Result<Option<T>, DatasetError> {
        match with_retries(0, sleep, DatasetError::io, look) {
            Ok(found) => Ok(Some(found)),
            Err(error) if shards::is_of_a_shard(&error) => {
                if self.lost.lose(shard, is_own) {
                    told.tell(&Finding::of_shard(source, shard.to_owned(), &error));
                }
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn tell_documents(
        &self,
        (source, documents): (&str, &dyn Source),
        shard: &Path,
        findings: &DocumentFindings,
        told: &mut Told<'_, F>,
    ) -> Result<(), DatasetError> {
        let is_bad = |cause: &str| !FILTERED.contains(&cause);
        // The index names the first of each; of what is not in the store an index of an earlier version names none.
        let has_more =
            |(cause, left_out): (&String, &LeftOut)| (self.all || is_bad(cause)) && (left_out.count > 1 || cause == NO_IMAGE_STORED);
        let named = if findings.left_out.iter().any(has_more) {
            self.looked((source, shard, true), told, || documents.look_through(shard))?.and_then(|found| found.named)
        } else {
            None
        };
        for (cause, LeftOut { count, first }) in &findings.left_out {
            let every = named.as_ref().filter(|_| self.all || is_bad(cause)).and_then(|named| named.get(cause));
            let place = |name: &String| {
                let (member, detail) = name.split_once(": ").unwrap_or((name, ""));
                (member.to_owned(), None, detail.to_owned())
            };
            let at = At { source, shard, cause, bad: is_bad(cause) };
            match every {
                Some(every) => at.tell(*count, every.iter().map(place), told),
                None => told.tell(&at.finding(*count, place(first))),
            }
        }
        Ok(())
    }

    /// What a filter leaves out. A sidecar that is no JSON is a fault; what the expression says no to is counted alone, as it may be most of the data.
    fn tell_filtered(&self, source: &str, index: &PairIndex, keys: &SampleKeys, report: &mut CheckReport) -> Result<(), DatasetError> {
        let is_bad = |cause: &str| cause == FilterCause::BrokenSidecar.name();
        let is_named = |cause: &str| is_bad(cause) || (self.all && cause != FilterCause::Excluded.name());
        let findings = index.findings();
        let mut told = Told { found: self.found, report: CheckReport::default() };
        for (shard, found) in &findings {
            // An index of all shards has the sums alone.
            let shard = index.whole().unwrap_or(shard);
            for (cause, left_out) in found.filtered.iter().filter(|(cause, _)| !is_named(cause)) {
                let at = At { source, shard, cause, bad: false };
                told.tell(&at.finding(left_out.count, (String::new(), None, String::new())));
            }
        }
        report.add(told.report);
        let has_named = |(_, found): &&(&Path, &crate::index::Findings)| found.filtered.keys().any(|cause| is_named(cause));
        let named = findings.iter().filter(has_named).map(|(shard, _)| shard.to_path_buf());
        let shards: Vec<PathBuf> = match index.whole() {
            Some(_) if findings.iter().any(|found| has_named(&found)) => {
                index.describe().into_iter().map(|(shard, ..)| shard.to_owned()).collect()
            }
            Some(_) => Vec::new(),
            None => named.collect(),
        };
        self.each(&shards, report, |shard, told| {
            let look = || {
                let mut causes = Causes::new();
                for_each_filtered(shard, keys, |files, filtered| {
                    let sidecar = files.sidecar.as_ref().filter(|_| filtered.cause != FilterCause::NoSidecar);
                    let (name, byte) = sidecar.map_or((&files.key, files.start), |member| (&member.name, member.offset));
                    if is_named(filtered.cause.name()) {
                        let place = || (String::from_utf8_lossy(name).into_owned(), Some(byte), filtered.detail.clone());
                        take(&mut causes, filtered.cause.name(), place);
                    }
                })?;
                Ok(causes)
            };
            for (cause, (count, places)) in self.looked((source, shard, true), told, look)?.unwrap_or_default() {
                At { source, shard, cause, bad: is_bad(cause) }.tell(count, places.into_iter(), told);
            }
            Ok(())
        })
    }

    /// What of a store of images cannot be found by any address.
    fn tell_images(&self, source: &str, shard: &Path, told: &mut Told<'_, F>) -> Result<(), DatasetError> {
        let look = || {
            let mut causes = Causes::new();
            check_shard(shard, |cause, member, byte| take(&mut causes, cause.name(), || (member, Some(byte), String::new())))?;
            Ok(causes)
        };
        for (cause, (count, places)) in self.looked((source, shard, false), told, look)?.unwrap_or_default() {
            At { source, shard, cause, bad: true }.tell(count, places.into_iter(), told);
        }
        Ok(())
    }
}

fn take(causes: &mut Causes, cause: &'static str, place: impl FnOnce() -> Place) {
    let (count, places) = causes.entry(cause).or_default();
    *count += 1;
    if places.len() < NAMED_LIMIT {
        places.push(place());
    }
}

/// A cause in a shard.
struct At<'a> {
    source: &'a str,
    shard: &'a Path,
    cause: &'a str,
    bad: bool,
}

impl At<'_> {
    fn finding(&self, count: u64, (member, byte, detail): Place) -> Finding {
        let (cause, source, shard) = (self.cause.to_owned(), self.source.to_owned(), self.shard.to_owned());
        Finding { cause, bad: self.bad, source, shard, member, byte, detail, count }
    }

    /// Tells of so many, of which these are named.
    fn tell<F: Fn(&Finding)>(&self, count: u64, places: impl ExactSizeIterator<Item = Place>, told: &mut Told<'_, F>) {
        let more = count.saturating_sub(places.len() as u64);
        places.for_each(|place| told.tell(&self.finding(1, place)));
        if more > 0 {
            told.tell(&self.finding(more, (String::new(), None, "further ones, which are not named".to_owned())));
        }
    }
}
