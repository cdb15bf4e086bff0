//! The shards of a source of documents with their indexes: how many samples there are, and where each lies.
//!
//! Comes in: shards and how one of them is indexed. Goes out: for a sample of the source its shard and its place there. What a place means is
//! the source's.

use std::{
    num::NonZero,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Findings,
    index::{DocumentIndex, Made, Place},
};
use crate::{
    dataset::{DatasetError, Storage, place_in},
    index::{over_all, stamp_of},
    retry::{sleep, with_retries},
    shard,
};

/// Shards with their indexes.
#[derive(Debug)]
pub(crate) struct Shards {
    indexes: Vec<DocumentIndex>,
    ends: Arc<[u64]>,
}

/// A sample's shard, by its number and its index, and where the sample lies in it.
pub(super) struct Found<'a> {
    pub(super) number: usize,
    pub(super) shard: &'a Path,
    pub(super) place: Place,
}

impl Shards {
    /// Opens the index of every shard with so many threads, and makes with `make` those that are missing or of other `settings`. Errors that may
    /// pass are retried; a source without a single sample is an error.
    pub(super) fn open(
        paths: &[PathBuf],
        index_path: Option<&Path>,
        settings: &str,
        threads: NonZero<usize>,
        make: impl Fn(&Path) -> Result<Made, DatasetError> + Sync,
    ) -> Result<Self, DatasetError> {
        let numbered: Vec<(usize, &PathBuf)> = paths.iter().enumerate().collect();
        let indexes = over_all(threads, &numbered, |(number, path)| {
            let stamp = || Ok::<_, DatasetError>(stamp_of(path, &shard::open(path)?)?);
            let open = || DocumentIndex::open(path, *number, stamp, index_path, settings, || make(path));
            with_retries(*number as u64, sleep, DatasetError::io, open)
        })?;
        let ends = indexes.iter().scan(0, |end, index| {
            *end += index.findings().samples;
            Some(*end)
        });
        let shards = Self { ends: ends.collect(), indexes };
        if shards.ends.last().is_none_or(|samples| *samples == 0) { Err(shards.nothing()) } else { Ok(shards) }
    }

    fn nothing(&self) -> DatasetError {
        let mut found = Findings::default();
        for index in &self.indexes {
            found.add(index.findings());
        }
        let causes = found.left_out.iter().map(|(cause, left_out)| format!("{} {cause} (the first: {})", left_out.count, left_out.first));
        let causes = causes.collect::<Vec<_>>().join(", ");
        DatasetError::NoDocument { field: String::new(), shards: self.indexes.len(), documents: found.documents, causes }
    }

    /// For every shard, the number of the sample after its last one.
    pub(super) fn ends(&self) -> Arc<[u64]> {
        Arc::clone(&self.ends)
    }

    /// Images that samples take, as far as the indexes know.
    pub(super) fn images(&self) -> u64 {
        self.indexes.iter().map(|index| index.findings().images).sum()
    }

    /// Path, bytes and number of samples of every shard.
    pub(super) fn describe(&self) -> Vec<(PathBuf, u64, u64)> {
        self.indexes.iter().map(|index| (index.shard().to_owned(), index.length(), index.findings().samples)).collect()
    }

    /// The shard of a sample.
    pub(crate) fn path(&self, sample: u64) -> Option<&Path> {
        let (number, _) = place_in(&self.ends, sample)?;
        self.indexes.get(number).map(DocumentIndex::shard)
    }

    /// What was found in each shard.
    pub(super) fn findings(&self) -> Vec<(PathBuf, &Findings)> {
        self.indexes.iter().map(|index| (index.shard().to_owned(), index.findings())).collect()
    }

    /// Where a sample lies.
    pub(super) fn find(&self, sample: u64, storage: &dyn Storage) -> Result<Found<'_>, DatasetError> {
        let out_of_range = || DatasetError::OutOfRange { sample, samples: self.ends.last().copied().unwrap_or(0) };
        let (number, own) = place_in(&self.ends, sample).ok_or_else(out_of_range)?;
        let index = self.indexes.get(number).ok_or_else(out_of_range)?;
        Ok(Found { number, shard: index.shard(), place: index.place(own, storage)? })
    }
}
