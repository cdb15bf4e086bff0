//! What a data set consists of, short enough to be kept with every checkpoint: a refused run is told what has changed.
//!
//! Comes in: names, sizes and sample counts of shards. Goes out: [`Description`], and in words what tells two of them apart. It decides nothing: whether data
//! are the same is told by their digest.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::count_of;

/// Most marks of a source. Up to so many shards each has one, and a change is named exactly; of more a stretch is named. A mark takes some 100 bytes.
const MARKS: usize = 64;

/// What the sources of a data set consist of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Description {
    sources: Vec<DescribedSource>,
}

/// What one of them consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DescribedSource {
    name: String,
    shards: u64,
    bytes: u64,
    samples: u64,
    /// How samples were made of them; empty for pairs, whose settings are the job's.
    settings: String,
    marks: Vec<Mark>,
}

/// The state of the list up to a shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mark {
    /// Number of shards up to this one, which is among them.
    end: u64,
    shard: String,
    bytes: u64,
    samples: u64,
    /// Of names, sizes and counts of all up to here: the first eight bytes of a BLAKE3 hash, hexadecimal.
    digest: String,
}

impl DescribedSource {
    /// A source of shards with these paths, bytes and samples.
    pub(super) fn new<'a>(name: &str, settings: String, shards: impl ExactSizeIterator<Item = (&'a Path, u64, u64)>) -> Self {
        let count = shards.len();
        let every = count.div_ceil(MARKS).next_power_of_two();
        let mut hasher = blake3::Hasher::new_derive_key("lcl-data 1: description of shards");
        let mut source = Self { name: name.to_owned(), shards: count as u64, bytes: 0, samples: 0, settings, marks: Vec::new() };
        for (number, (path, bytes, samples)) in shards.enumerate() {
            let shard = path.file_name().unwrap_or_default();
            for number in [shard.len() as u64, bytes, samples] {
                hasher.update(&number.to_le_bytes());
            }
            hasher.update(shard.as_encoded_bytes());
            source.bytes += bytes;
            source.samples += samples;
            let end = number + 1;
            if end.is_multiple_of(every) || end == count {
                let digest = hasher.finalize().to_hex()[..16].to_owned();
                source.marks.push(Mark { end: end as u64, shard: shard.display().to_string(), bytes, samples, digest });
            }
        }
        source
    }

    /// What tells it from what was there before.
    fn changed_from(&self, before: &Self) -> Option<String> {
        let mut changes = Vec::new();
        if self.settings != before.settings {
            changes.push(format!("samples are made by `{}`, and were by `{}`", self.settings, before.settings));
        }
        for (now, was, noun) in
            [(self.shards, before.shards, "shard"), (self.samples, before.samples, "sample"), (self.bytes, before.bytes, "byte")]
        {
            if now != was {
                changes.push(format!("there are {}, and were {was}", count_of(now, noun)));
            }
        }
        changes.extend(self.first_changed(before));
        (!changes.is_empty()).then(|| changes.join("; "))
    }

    /// The first shard, or the stretch of shards, that is another one.
    fn first_changed(&self, before: &Self) -> Option<String> {
        let of = |end: u64| before.marks.iter().find(|mark| mark.end == end);
        let mut same: Option<&Mark> = None;
        for now in &self.marks {
            let Some(was) = of(now.end) else { continue };
            if now.digest == was.digest {
                same = Some(now);
                continue;
            }
            let first = same.map_or(0, |mark| mark.end) + 1;
            if first < now.end {
                return Some(format!("the first that differs is one of the shards {first} to {}, up to {}", now.end, now.shard));
            }
            return Some(match (now.shard == was.shard, now.bytes == was.bytes) {
                (false, _) => format!("shard {first} is {}, and was {}", now.shard, was.shard),
                (true, false) => format!("shard {first}, {}, has {}, and had {}", now.shard, count_of(now.bytes, "byte"), was.bytes),
                (true, true) => format!("shard {first}, {}, has {}, and had {}", now.shard, count_of(now.samples, "sample"), was.samples),
            });
        }
        let (now, was) = (self.shards, before.shards);
        let last = same.map_or_else(String::new, |mark| format!(", {}", mark.shard));
        let alike = same.map_or(0, |mark| mark.end);
        (now != was && alike > 0).then(|| format!("up to shard {alike}{last}, they are the same"))
    }
}

impl Description {
    pub(super) const fn new(sources: Vec<DescribedSource>) -> Self {
        Self { sources }
    }

    /// What tells these data from those of before, in words; `None` when nothing is known that does.
    #[must_use]
    pub fn changed_from(&self, before: &Self) -> Option<String> {
        let several = self.sources.len() > 1;
        let changes: Vec<String> = self
            .sources
            .iter()
            .filter_map(|now| {
                let was = before.sources.iter().find(|was| was.name == now.name)?;
                let changed = now.changed_from(was)?;
                Some(if several { format!("of the source {} {changed}", now.name) } else { changed })
            })
            .collect();
        (!changes.is_empty()).then(|| changes.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Path, bytes and samples.
    type Shard = (String, u64, u64);

    fn described(settings: &str, shards: &[Shard]) -> Description {
        let shards = shards.iter().map(|(name, bytes, samples)| (Path::new(name.as_str()), *bytes, *samples));
        Description::new(vec![DescribedSource::new("data", settings.to_owned(), shards)])
    }

    fn shards(count: usize) -> Vec<Shard> {
        (0..count).map(|number| (format!("/data/{number:05}.tar"), 1000, 10)).collect()
    }

    #[test]
    fn the_first_shard_that_differs_is_named_with_what_it_was() {
        let check = |count: usize, change: &dyn Fn(&mut Vec<Shard>), expected: Option<&str>| {
            let (before, mut now) = (shards(count), shards(count));
            change(&mut now);
            // As a checkpoint has it.
            let text = serde_json::to_string(&described("", &before)).expect("plain data");
            assert!(text.len() < 10_000, "{} bytes", text.len());
            let before: Description = serde_json::from_str(&text).expect("what was written");
            assert_eq!(described("", &now).changed_from(&before).as_deref(), expected);
        };
        check(3, &|_| {}, None);
        // Where they lie does not count.
        check(3, &|now| now[1].0 = "/elsewhere/00001.tar".to_owned(), None);
        check(3, &|now| now[1].0 = "/data/x.tar".to_owned(), Some("shard 2 is x.tar, and was 00001.tar"));
        check(3, &|now| now.swap(0, 2), Some("shard 1 is 00002.tar, and was 00000.tar"));
        check(3, &|now| now[1].1 = 1001, Some("there are 3001 bytes, and were 3000; shard 2, 00001.tar, has 1001 bytes, and had 1000"));
        check(3, &|now| now[2].2 = 1, Some("there are 21 samples, and were 30; shard 3, 00002.tar, has 1 sample, and had 10"));
        let more = "there are 3 shards, and were 2; there are 30 samples, and were 20; there are 3000 bytes, and were 2000; up to shard 2, \
                    00001.tar, they are the same";
        check(2, &|now| now.push(("/data/00002.tar".to_owned(), 1000, 10)), Some(more));
        let fewer = "there are 63 shards, and were 64; there are 630 samples, and were 640; there are 63000 bytes, and were 64000; up to shard \
                     63, 00062.tar, they are the same";
        check(64, &|now| drop(now.pop()), Some(fewer));
        // Of many a stretch is known: a mark stands for 1,024 of them.
        let stretch = "the first that differs is one of the shards 20481 to 21504, up to 21503.tar";
        check(41_408, &|now| now.swap(20_500, 20_501), Some(stretch));
    }

    #[test]
    fn settings_of_documents_and_the_name_of_one_of_several_sources_are_told() {
        let (before, now) = (described("images 6", &shards(1)), described("images 4", &shards(1)));
        assert_eq!(now.changed_from(&before).as_deref(), Some("samples are made by `images 4`, and were by `images 6`"));
        let both = |first: &[Shard]| {
            let source = |name, shards: &[Shard]| {
                DescribedSource::new(
                    name,
                    String::new(),
                    shards.iter().map(|(path, bytes, count)| (Path::new(path.as_str()), *bytes, *count)),
                )
            };
            Description::new(vec![source("a", &shards(2)), source("b", first)])
        };
        let mut other = shards(2);
        other[0].0 = "y.tar".to_owned();
        assert_eq!(both(&other).changed_from(&both(&shards(2))).as_deref(), Some("of the source b shard 1 is y.tar, and was 00000.tar"));
    }
}
