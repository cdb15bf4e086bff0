//! What lies in shards, for people: why none of their samples can be used.
//!
//! Comes in: shards and the keys that are looked for. Goes out: [`Contents`], which says what is there. Only headers are read.

use std::{collections::BTreeMap, fmt, path::Path};

use lcl_trainer_config::{KeySeparator, SampleKeys};

use crate::{
    index::{IndexError, build::for_each_group},
    shard::{self, Group},
};

/// Extensions shown in a message: the most frequent ones; a shard whose names have numbers in them has one for every file.
const SHOWN: usize = 8;

/// Different extensions that are counted, for the same reason.
const COUNTED: usize = 1000;

/// What was found under which extensions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Samples.
    pub samples: u64,
    /// Files of samples, by extension.
    pub extensions: BTreeMap<String, u64>,
}

impl Contents {
    /// Walks a shard and counts what is in it, too.
    pub fn read(&mut self, shard: &Path, keys: &SampleKeys) -> Result<(), IndexError> {
        Ok(for_each_group(shard, &shard::open(shard)?, keys, |group| self.add(&group))?)
    }

    fn add(&mut self, group: &Group) {
        self.samples += 1;
        for extension in &group.extensions {
            if let Some(count) = self.extensions.get_mut(extension) {
                *count += 1;
            } else if self.extensions.len() < COUNTED {
                self.extensions.insert(extension.clone(), 1);
            }
        }
    }

    /// Whether names have more than one dot and would have a wanted key if they were split at the last.
    pub(crate) fn looks_split_too_early(&self, keys: &SampleKeys) -> bool {
        let is_wanted = |extension: &String| {
            let last = extension.rsplit_once('.').map(|(_, last)| last);
            last.is_some_and(|last| keys.image.iter().chain(&keys.caption).any(|key| key == last))
        };
        keys.separator == KeySeparator::FirstDot && self.extensions.keys().any(is_wanted)
    }
}

impl fmt::Display for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.extensions.is_empty() {
            return f.write_str("no file with a dot in its name");
        }
        let mut frequent: Vec<(&String, &u64)> = self.extensions.iter().collect();
        frequent.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for (place, (extension, count)) in frequent.iter().take(SHOWN).enumerate() {
            write!(f, "{}.{extension} ({count})", if place > 0 { ", " } else { "" })?;
        }
        if frequent.len() > SHOWN { f.write_str(" and others") } else { Ok(()) }
    }
}

/// The endings of all files of one sample, each with its dot.
pub(crate) fn extensions(shard: &Path, keys: &SampleKeys, sample: u64) -> Result<Vec<String>, IndexError> {
    let (mut number, mut found) = (0, Vec::new());
    for_each_group(shard, &shard::open(shard)?, keys, |group| {
        if number == sample {
            found = group.extensions.iter().map(|extension| format!(".{extension}")).collect();
        }
        number += 1;
    })?;
    Ok(found)
}
