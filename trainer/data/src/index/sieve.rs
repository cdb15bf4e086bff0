//! Which samples of a shard count, by the filter.
//!
//! Comes in: the shard, and its samples as they are found. Goes out: whether one passes, or why it does not. Nothing of a sample is read but its
//! sidecar, and that only where there is a filter.

use std::path::Path;

use lcl_filter::{Filter, FilterCause, Filtered, SIDECAR_BYTES_LIMIT};
use lcl_trainer_config::SampleKeys;

use crate::{
    blob::Blob,
    index::IndexError,
    shard::{Member, SampleFiles, ShardError},
};

/// The filter of a shard.
pub(super) struct Sieve<'a> {
    shard: &'a Path,
    file: &'a Blob,
    filter: Option<Filter>,
}

impl<'a> Sieve<'a> {
    /// That of these keys, for this shard.
    pub(super) fn new(shard: &'a Path, file: &'a Blob, keys: &SampleKeys) -> Result<Self, IndexError> {
        let parse = |filter: &String| {
            Filter::parse(filter).map_err(|source| IndexError::Filter { filter: filter.clone(), source: Box::new(source) })
        };
        let filter = keys.filter.as_ref().map(parse).transpose()?;
        Ok(Self { shard, file, filter })
    }

    /// Whether a sample passes. One with two members of a name does: nobody knows which sidecar is its own, and it is counted as what it is.
    pub(super) fn judge(&self, files: &SampleFiles) -> Result<Result<(), Filtered>, ShardError> {
        let Some(filter) = self.filter.as_ref().filter(|_| !files.doubled) else { return Ok(Ok(())) };
        let Some(sidecar) = &files.sidecar else { return Ok(filter.judge(None)) };
        if sidecar.length > u64::from(SIDECAR_BYTES_LIMIT) {
            let detail = format!("the json has {} bytes, more than {SIDECAR_BYTES_LIMIT}", sidecar.length);
            return Ok(Err(Filtered { cause: FilterCause::BrokenSidecar, detail }));
        }
        Ok(filter.judge(Some(&self.read(sidecar)?)))
    }

    fn read(&self, member: &Member) -> Result<Vec<u8>, ShardError> {
        let mut contents = vec![0; member.length as usize];
        let read = self.file.read_exact_at(&mut contents, member.offset);
        read.map_err(|source| ShardError::Read { path: self.shard.to_owned(), offset: member.offset, source })?;
        Ok(contents)
    }
}
