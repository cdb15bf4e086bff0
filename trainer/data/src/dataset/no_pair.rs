//! Why there is nothing to train on: what was looked for in the shards, and what is there in its place.

use std::fmt;

use lcl_trainer_config::{Field, SampleKeys};

use crate::{
    index::{Contents, IndexError, ShardIndex},
    shard::ListOrigin,
};

/// Shards that are looked into for the message: enough to show what they have, few enough to take no time.
const LOOKED_INTO: usize = 16;

/// No sample of a data set has both an image and a caption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoPair {
    /// Samples of all shards.
    pub samples: u64,
    /// Number of shards.
    pub shards: usize,
    /// The first of them, as a path.
    pub first: String,
    /// What was looked for.
    pub keys: SampleKeys,
    /// Who said so.
    pub origin: ListOrigin,
    /// What the first of the shards hold.
    pub found: Contents,
}

impl std::error::Error for NoPair {}

impl NoPair {
    pub(super) fn find(shards: &[ShardIndex], keys: &SampleKeys, origin: ListOrigin) -> Result<Self, IndexError> {
        let mut found = Contents::default();
        // Those with samples first, so that there is something to show.
        let (with_samples, empty): (Vec<_>, Vec<_>) = shards.iter().partition(|shard| shard.count() > 0);
        for shard in with_samples.into_iter().chain(empty).take(LOOKED_INTO) {
            found.read(shard.shard(), keys)?;
        }
        let first = shards.first().map(|shard| shard.shard().display().to_string()).unwrap_or_default();
        let samples = shards.iter().map(ShardIndex::count).sum();
        Ok(Self { samples, shards: shards.len(), first, keys: keys.clone(), origin, found })
    }

    /// What to do about it, where what was found tells.
    fn hint(&self) -> Option<&'static str> {
        let Self { keys, found, .. } = self;
        if found.looks_split_too_early(keys) {
            return Some("names with further dots are split where they should be by keySeparator: lastDot (--key-separator last-dot)");
        }
        let has_any = |keys: &[String]| keys.iter().any(|key| found.extensions.contains_key(key));
        (has_any(&keys.image) && has_any(&keys.caption))
            .then_some("the files of a sample have to stand next to each other and share their name up to the dot")
    }
}

impl fmt::Display for NoPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { samples, shards, first, keys, origin, found } = self;
        let more = match shards {
            0 | 1 => String::new(),
            shards => format!(" and {} more shards", shards - 1),
        };
        match samples {
            0 => write!(f, "there is no sample in {first}{more}")?,
            samples => write!(f, "none of the {samples} samples in {first}{more} has both an image and a caption")?,
        }
        write!(f, ": looked for {keys} (")?;
        match origin {
            ListOrigin::Manifest => {
                let [image, caption, separator] = ["image", "caption", "separator"].map(|name| format!("data.source.keys.{name}"));
                write!(f, "{}, {}, {}", Field(&image), Field(&caption), Field(&separator))?;
            }
            ListOrigin::Arguments => f.write_str("--image-keys, --caption-keys, --key-separator")?,
        }
        write!(f, "), found {found}")?;
        self.hint().map_or(Ok(()), |hint| write!(f, "; {hint}"))
    }
}
