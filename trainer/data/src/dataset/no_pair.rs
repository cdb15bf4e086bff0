//! Why there is nothing to train on: what was looked for in the shards, and what is there in its place.
//!
//! Comes in: what the indexes of shards found. Goes out: [`NoPair`], whose words a run that cannot begin and `lcl data index` have in common.

use std::{fmt, path::Path};

use lcl_trainer_config::{Field, SampleKeys, in_mixture};

use crate::{count_of, index::Findings, shard::ListOrigin};

/// No sample of some shards has both an image and a caption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoPair {
    /// Number of shards.
    pub shards: usize,
    /// The first of them, as a path.
    pub first: String,
    /// Who said what to look for.
    pub origin: ListOrigin,
    /// What the shards hold, and what was looked for.
    pub found: Findings,
}

impl std::error::Error for NoPair {}

impl NoPair {
    /// What is to be said of these shards, none of which has a usable sample.
    #[must_use]
    pub fn of<'a>(shards: impl IntoIterator<Item = (&'a Path, &'a Findings)>, origin: ListOrigin) -> Self {
        let mut shards = shards.into_iter();
        let (mut count, mut first, mut found) = (0, String::new(), Findings::none(&SampleKeys::default()));
        if let Some((path, findings)) = shards.next() {
            (count, first, found) = (1, path.display().to_string(), findings.clone());
        }
        for (_, findings) in shards {
            count += 1;
            found.add(findings);
        }
        Self { shards: count, first, origin, found }
    }
}

impl fmt::Display for NoPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shards, first, origin, found } = self;
        let more = match shards {
            0 | 1 => String::new(),
            shards => format!(" and {}", count_of(*shards as u64 - 1, "more shard")),
        };
        let filtered = found.filtered_count();
        match found.samples {
            0 if filtered == 1 => write!(f, "the only sample in {first}{more} does not pass the filter")?,
            0 if filtered > 0 => write!(f, "none of the {filtered} samples in {first}{more} passes the filter")?,
            0 => write!(f, "there is no sample in {first}{more}")?,
            1 => write!(f, "the only sample in {first}{more} is not usable")?,
            samples => write!(f, "none of the {samples} samples in {first}{more} is usable")?,
        }
        write!(f, ": looked for {} (", found.keys)?;
        let captions = if found.keys.draws_captions() { "captions" } else { "caption" };
        let keys = ["image", captions, "separator", "filter"].map(|name| format!("data.source.keys.{name}"));
        let keys = match origin {
            ListOrigin::Manifest | ListOrigin::Field(_) => Some(keys),
            ListOrigin::Mixed(source, _) => Some(keys.map(|key| in_mixture(*source, &key))),
            ListOrigin::Arguments => None,
        };
        let filter = if let Some([image, captions, separator, filter]) = &keys {
            write!(f, "{}, {}, {}", Field(image), Field(captions), Field(separator))?;
            Field(filter).to_string()
        } else {
            write!(f, "--image-keys, --{}, --key-separator", if found.keys.draws_captions() { "captions" } else { "caption-keys" })?;
            "--filter".to_owned()
        };
        write!(f, "), found {}", found.extensions_listed())?;
        if let Some(expression) = &found.keys.filter {
            let listed = if filtered > 0 { found.filtered_listed() } else { "nothing".to_owned() };
            write!(f, "; {filter} (`{expression}`) leaves out {listed}")?;
        }
        found.reasons().iter().try_for_each(|reason| write!(f, "; {reason}"))
    }
}
