//! Opening a data set of which some shards cannot be read, and what is said of these.
//!
//! Comes in: a configuration. Goes out: the data set of the shards that can be read, and a finding for each other one. As long as all can be read,
//! it costs what opening a data set costs.

use std::{
    error::Error,
    io::Write,
    num::NonZero,
    path::{Path, PathBuf},
};

use lcl_objects::is_of_store;
use lcl_trainer_config::{DataConfig, DataSource, Mmc4Config, Mmc4Images};

use crate::{
    blob::{is_of_machine, is_remote},
    check::Finding,
    dataset::{Dataset, DatasetError},
    documents::DocumentIndexError,
    index::{IndexError, over_all},
    mmc4,
    obelics::ObelicsError,
    shard::{ListOrigin, ShardError, find_present_shards, find_shards},
    store::{StoreError, check_shard},
};

/// The name that a shard is counted under which another program writes to.
const SHARD_CHANGED: &str = "shard_changed";

/// Opens what can be opened; `None` when that is nothing. What holds for all shards (a list that names none, a folder that is not there) is an
/// error.
pub fn open_what_can_be(config: &DataConfig, origin: ListOrigin, tell: &mut impl FnMut(Finding)) -> Result<Option<Dataset>, DatasetError> {
    match Dataset::open_from(config, origin) {
        Ok(dataset) => return Ok(Some(dataset)),
        Err(error) if !is_of_a_shard(&error) => return Err(error),
        Err(_) => {}
    }
    // Text files with one path a line: a path may hold what an entry of a list reads as a pattern.
    let mut lists = Vec::new();
    let mut sound = config.clone();
    let mut keep = |source: &mut DataSource, name: &str| -> Result<bool, DatasetError> {
        // First, since no shard of documents can be opened without them.
        if let Some(images) = images_of(source) {
            let good = good_images(config, images, (name, origin), tell)?;
            if good.is_empty() {
                // What is wrong with each of them has been told, and without them there is nothing to open.
                return Ok(false);
            }
            let list = list_of(&good)?;
            *images = vec![list.path().display().to_string()];
            lists.push(list);
        }
        let good = good_shards(config, source, (name, origin), tell)?;
        let list = list_of(&good)?;
        set_shards(source, list.path());
        lists.push(list);
        Ok(!good.is_empty())
    };
    let any = match &mut sound.source {
        DataSource::Mixture { mixture } => {
            let mut all = true;
            for mixed in &mut mixture.sources {
                all &= keep(&mut mixed.source, &mixed.name)?;
            }
            all
        }
        source => keep(source, "data")?,
    };
    if any { Dataset::open_from(&sound, origin).map(Some) } else { Ok(None) }
}

/// The shards of a source's store of images.
pub(super) fn images_of(source: &mut DataSource) -> Option<&mut Vec<String>> {
    match source {
        DataSource::Obelics { obelics } => Some(&mut obelics.images),
        DataSource::Mmc4 { mmc4: Mmc4Config { images: Mmc4Images::Store { shards }, .. } } => Some(shards),
        _ => None,
    }
}

/// Those of them that can be read.
fn good_images(
    config: &DataConfig,
    images: &[String],
    named: (&str, ListOrigin),
    tell: &mut impl FnMut(Finding),
) -> Result<Vec<PathBuf>, DatasetError> {
    let threads = NonZero::new(config.threads).unwrap_or(NonZero::<usize>::MIN);
    let paths = find_shards(images, named.1, threads)?;
    let outcomes = over_all(threads, &paths, |path| of_one(check_shard(path, |_, _, _| {}).map_err(DatasetError::from)))?;
    Ok(keep_good(paths, outcomes, named.0, tell))
}

/// The outcome of one shard; an error when it says something about all of them.
fn of_one<T>(outcome: Result<T, DatasetError>) -> Result<Result<T, DatasetError>, DatasetError> {
    match outcome {
        // Another one may have some.
        Err(error @ DatasetError::NoImageFound { .. }) => Ok(Err(error)),
        Err(error) if !is_of_a_shard(&error) => Err(error),
        outcome => Ok(outcome),
    }
}

/// The paths of the shards that could be read; `tell` hears of the others.
///
/// A shard without a sample is none of these as long as another one has some: what is said of it does not depend on whether a third can be read.
fn keep_good(paths: Vec<PathBuf>, outcomes: Vec<Result<(), DatasetError>>, source: &str, tell: &mut impl FnMut(Finding)) -> Vec<PathBuf> {
    let (mut good, any) = (Vec::new(), outcomes.iter().any(Result::is_ok));
    for (path, outcome) in paths.into_iter().zip(outcomes) {
        match outcome {
            Err(error) if !(any && has_no_sample(&error)) => tell(Finding::of_shard(source, path, &error)),
            _ => good.push(path),
        }
    }
    good
}

fn has_no_sample(error: &DatasetError) -> bool {
    matches!(error.without_field(), DatasetError::NoPair(_) | DatasetError::NoDocument { .. } | DatasetError::NoImageFound { .. })
}

impl Finding {
    /// A shard that cannot be read.
    #[must_use]
    pub fn of_shard(source: &str, shard: PathBuf, error: &DatasetError) -> Self {
        let (cause, byte) = cause_of(error);
        let (cause, source, detail) = (cause.to_owned(), source.to_owned(), in_words(error));
        Self { cause, bad: true, source, shard, member: String::new(), byte, detail, count: 1 }
    }
}

/// The shards of a source that can be read.
fn good_shards(
    config: &DataConfig,
    source: &DataSource,
    (name, origin): (&str, ListOrigin),
    tell: &mut impl FnMut(Finding),
) -> Result<Vec<PathBuf>, DatasetError> {
    let threads = NonZero::new(config.threads).unwrap_or(NonZero::<usize>::MIN);
    let paths = match source {
        DataSource::Webdataset { shards, .. } => find_shards(shards, origin, threads)?,
        DataSource::Documents { documents } => find_shards(&documents.shards, origin, threads)?,
        DataSource::Mmc4 { mmc4 } => find_present_shards(&mmc4.shards, origin, threads)?.0,
        DataSource::Obelics { obelics } => find_shards(&obelics.shards, origin, threads)?,
        DataSource::Mixture { .. } => Vec::new(),
    };
    let outcomes = over_all(threads, &paths, |path| {
        let mut source = source.clone();
        let list = list_of(std::slice::from_ref(path))?;
        set_shards(&mut source, list.path());
        of_one(Dataset::open_from(&DataConfig { source, threads: 1, ..config.clone() }, origin).map(drop))
    })?;
    Ok(keep_good(paths, outcomes, name, tell))
}

fn set_shards(source: &mut DataSource, list: &Path) {
    let list = vec![list.display().to_string()];
    match source {
        DataSource::Webdataset { shards, .. } => *shards = list,
        DataSource::Documents { documents } => documents.shards = list,
        DataSource::Mmc4 { mmc4 } => mmc4.shards = list,
        DataSource::Obelics { obelics } => obelics.shards = list,
        DataSource::Mixture { .. } => {}
    }
}

/// A text file that lists these shards.
fn list_of(shards: &[PathBuf]) -> Result<tempfile::NamedTempFile, DatasetError> {
    let failed = |source| DatasetError::Temporary { folder: std::env::temp_dir(), source };
    let mut file = tempfile::Builder::new().prefix("lcl-shards-").suffix(".txt").tempfile().map_err(failed)?;
    for shard in shards {
        // A URI is as absolute as it gets.
        let absolute = if is_remote(shard) { shard.clone() } else { std::path::absolute(shard).unwrap_or_else(|_| shard.clone()) };
        let line = [absolute.as_os_str().as_encoded_bytes(), b"\n"].concat();
        file.write_all(&line).map_err(failed)?;
    }
    file.flush().map_err(failed)?;
    Ok(file)
}

/// Whether it says something about one shard, so that others may be read.
pub(super) fn is_of_a_shard(error: &DatasetError) -> bool {
    match error.without_field() {
        error if error.io().is_some_and(|error| is_of_store(error) || is_of_machine(error)) => false,
        DatasetError::Index(error) => !error.is_of_all(),
        DatasetError::Obelics(ObelicsError::Store(error)) | DatasetError::Store(error) => is_of_an_image_shard(error),
        // The others are about index files and places for what is unpacked.
        DatasetError::Documents(error) => matches!(error, DocumentIndexError::Changed { .. }),
        DatasetError::Mmc4(error) => !matches!(error, mmc4::ShardError::Unpack { .. }),
        DatasetError::Shard(_) | DatasetError::NoPair(_) | DatasetError::NoDocument { .. } | DatasetError::Obelics(_) => true,
        _ => false,
    }
}

/// The same of a store of images.
fn is_of_an_image_shard(error: &StoreError) -> bool {
    matches!(error, StoreError::Shard(_) | StoreError::ShardChanged { .. })
}

/// Whether it says something about one shard or one file of an image.
pub(super) fn is_of_a_file(error: &DatasetError) -> bool {
    match error {
        DatasetError::Image { source, .. } => !is_of_machine(source),
        error => is_of_a_shard(error),
    }
}

/// The shard that an error is about, where it is not that of the sample: one of images.
pub(super) fn shard_of(error: &DatasetError) -> Option<&Path> {
    match error.without_field() {
        DatasetError::Shard(error)
        | DatasetError::Index(IndexError::Shard(error))
        | DatasetError::Store(StoreError::Shard(error))
        | DatasetError::Obelics(ObelicsError::Store(StoreError::Shard(error))) => Some(error.path()),
        DatasetError::Image { path, .. } => Some(path),
        _ => None,
    }
}

/// The name that an error is counted under, and the byte that it names.
pub(super) fn cause_of(error: &DatasetError) -> (&'static str, Option<u64>) {
    match error.without_field() {
        DatasetError::Index(IndexError::Shard(error)) | DatasetError::Shard(error) | DatasetError::Store(StoreError::Shard(error)) => {
            of_shard(error)
        }
        DatasetError::Index(IndexError::ShardChanged { .. })
        | DatasetError::Documents(DocumentIndexError::Changed { .. })
        | DatasetError::Store(StoreError::ShardChanged { .. })
        | DatasetError::Obelics(ObelicsError::Changed { .. }) => (SHARD_CHANGED, None),
        DatasetError::Mmc4(error) => match error {
            mmc4::ShardError::Changed { .. } => (SHARD_CHANGED, None),
            mmc4::ShardError::Damaged { offset, .. } => ("shard_damaged", Some(*offset)),
            mmc4::ShardError::Read { offset, .. } => ("shard_not_readable", Some(*offset)),
            _ => ("shard_not_readable", None),
        },
        DatasetError::NoPair(_) | DatasetError::NoDocument { .. } => ("no_sample", None),
        DatasetError::NoImageFound { .. } => ("no_image_found", None),
        DatasetError::Obelics(_) => ("shard_damaged", None),
        DatasetError::Image { .. } => ("image_not_readable", None),
        _ => ("shard_not_readable", None),
    }
}

fn of_shard(error: &ShardError) -> (&'static str, Option<u64>) {
    match error {
        ShardError::Truncated { offset, .. } => ("shard_cut_short", Some(*offset)),
        ShardError::Empty { .. } => ("shard_cut_short", Some(0)),
        ShardError::NoEndMark { length, .. } => ("shard_cut_short", Some(*length)),
        ShardError::Damaged { offset, .. } | ShardError::AfterEnd { offset, .. } => ("shard_damaged", Some(*offset)),
        ShardError::NotTar { .. } => ("shard_damaged", Some(0)),
        ShardError::Read { offset, .. } => ("shard_not_readable", Some(*offset)),
        ShardError::Changed { offset, .. } => (SHARD_CHANGED, Some(*offset)),
        _ => ("shard_not_readable", None),
    }
}

/// An error with its causes.
pub(super) fn in_words(error: &DatasetError) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        words = format!("{words}: {error}");
        source = error.source();
    }
    words
}
