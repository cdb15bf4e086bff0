//! What an index found in its shard: how many samples can be used, and why others cannot.
//!
//! Comes in: the shard's groups, one after the other. Goes out: [`Findings`], which the index file keeps beside its records, and sentences for
//! people. Which members count as image and caption was decided before.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher, RandomState},
};

use serde::{Deserialize, Serialize};

use crate::shard::{Group, ImageKind, Role, role};

/// Most extensions that are listed. A data set has a handful; names that are no extensions would fill any list.
const EXTENSIONS_LISTED: usize = 32;

/// Most samples with doubled members that are listed by name.
const DOUBLED_LISTED: usize = 100;

/// Most characters of a listed name, so that the list stays small whatever the names are.
const NAME_LISTED: usize = 200;

/// What was found in one shard or, added up, in several.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    /// Samples, unusable ones included.
    pub samples: u64,
    /// Samples with an image.
    pub with_image: u64,
    /// Samples with a caption.
    pub with_caption: u64,
    /// Samples with both, no member of which is there twice. Whether the image can be decoded is not known before it is.
    pub usable: u64,
    /// Samples with two members of one name; none of them is trained on.
    pub doubled: u64,
    /// Keys of those, as many as are listed.
    pub doubled_keys: Vec<String>,
    /// Samples by extension. What stands before a further dot is `*`.
    pub extensions: BTreeMap<String, u64>,
    /// Samples whose image and caption are both in the shard, but not next to each other.
    pub apart: u64,
    /// Samples that lack a part which is there behind a further dot of the name.
    pub dotted: u64,
    /// Samples that lack a part which is there as a link or a sparse file.
    pub elsewhere: u64,
    /// Archives in the shard, one after the other.
    pub archives: u64,
}

impl Findings {
    /// Adds those of another shard. Names are not added, as they mean something within their shard alone.
    pub fn add(&mut self, other: &Self) {
        self.samples += other.samples;
        self.with_image += other.with_image;
        self.with_caption += other.with_caption;
        self.usable += other.usable;
        self.doubled += other.doubled;
        self.apart += other.apart;
        self.dotted += other.dotted;
        self.elsewhere += other.elsewhere;
        self.archives += other.archives;
        for (extension, count) in &other.extensions {
            count_extension(&mut self.extensions, extension.clone(), *count);
        }
    }

    /// Why samples of the shard are half, a sentence for each reason, with what to do.
    #[must_use]
    pub fn reasons(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        let mut add = |count: u64, text: &str| {
            if count > 0 {
                reasons.push(format!("{count} of {} samples {text}", self.samples));
            }
        };
        add(
            self.apart,
            "have their image and their caption apart from each other: the members of a sample must be neighbours, sort them by name",
        );
        add(
            self.dotted,
            "have dots in their names before the extension: a sample's name ends at the first dot, rename them or set \
             data.webdataset.keySeparator to last",
        );
        add(
            self.elsewhere,
            "have links or sparse files in place of an image or a caption: their contents cannot be read, write them again with \
             `tar --hard-dereference --dereference`",
        );
        add(
            self.doubled,
            "have two members of one name: which belong together is not known, so that they are not trained on; give each sample a name of its own",
        );
        reasons
    }

    /// The extensions with their counts, the most frequent first.
    #[must_use]
    pub fn extensions_listed(&self) -> String {
        let mut extensions: Vec<_> = self.extensions.iter().collect();
        extensions.sort_by_key(|(extension, count)| (std::cmp::Reverse(**count), extension.as_str()));
        let listed: Vec<String> = extensions.iter().map(|(extension, count)| format!("{extension} {count}")).collect();
        if listed.is_empty() { "none".to_owned() } else { listed.join(", ") }
    }

    /// The extensions that are looked for.
    #[must_use]
    pub fn looked_for() -> String {
        let images: Vec<&str> = ImageKind::ALL.iter().map(|kind| kind.extension()).collect();
        format!("an image under {} and a caption under txt", images.join(", "))
    }
}

fn count_extension(extensions: &mut BTreeMap<String, u64>, extension: String, count: u64) {
    if extensions.len() < EXTENSIONS_LISTED || extensions.contains_key(&extension) {
        *extensions.entry(extension).or_default() += count;
    } else {
        *extensions.entry("others".to_owned()).or_default() += count;
    }
}

/// Collects the findings of one shard.
#[derive(Debug, Default)]
pub(super) struct Collector {
    findings: Findings,
    hasher: RandomState,
    /// Of every key of half samples, by its hash: how many there are, and whether any has an image and any a caption.
    halves: HashMap<u64, (u64, bool, bool)>,
}

impl Collector {
    /// Takes the next sample.
    pub(super) fn take(&mut self, group: &Group) {
        let (image, caption) = (group.image.is_some(), group.caption.is_some());
        let findings = &mut self.findings;
        findings.samples += 1;
        findings.with_image += u64::from(image);
        findings.with_caption += u64::from(caption);
        findings.usable += u64::from(image && caption && !group.doubled);
        if group.doubled {
            findings.doubled += 1;
            if findings.doubled_keys.len() < DOUBLED_LISTED {
                findings.doubled_keys.push(String::from_utf8_lossy(&group.key).chars().take(NAME_LISTED).collect());
            }
        }
        let mut dotted = false;
        for extension in &group.extensions {
            let last = extension.rsplit(|byte| *byte == b'.').next().unwrap_or_default();
            let name: String = String::from_utf8_lossy(last).chars().take(NAME_LISTED).collect();
            let further = last.len() < extension.len();
            dotted |= further && role(last).is_some_and(|role| if role == Role::Caption { !caption } else { !image });
            count_extension(&mut findings.extensions, if further { format!("*.{name}") } else { name }, 1);
        }
        if image && caption {
            return;
        }
        findings.dotted += u64::from(dotted);
        findings.elsewhere += u64::from(group.elsewhere);
        if image || caption {
            let half = self.halves.entry(self.hasher.hash_one(&group.key)).or_default();
            *half = (half.0 + 1, half.1 || image, half.2 || caption);
        }
    }

    /// The findings of a shard with this many archives.
    pub(super) fn finish(mut self, archives: u64) -> Findings {
        self.findings.apart = self.halves.values().filter(|half| half.1 && half.2).map(|half| half.0).sum();
        self.findings.archives = archives;
        self.findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::{Grouper, Member, MemberKind};

    /// Findings of members with these names; `@` marks links.
    fn found(names: &[&str]) -> Findings {
        let (mut grouper, mut collector) = (Grouper::default(), Collector::default());
        for name in names {
            let kind = if name.ends_with('@') { MemberKind::Elsewhere } else { MemberKind::File };
            let name = name.trim_end_matches('@').as_bytes().to_vec();
            if let Some(group) = grouper.push(Member { kind, name, start: 0, offset: 512, length: 1 }) {
                collector.take(&group);
            }
        }
        if let Some(group) = grouper.finish() {
            collector.take(&group);
        }
        collector.finish(1)
    }

    /// Samples, with image, with caption, usable, then apart, dotted, elsewhere, doubled.
    fn check(names: &[&str], counts: [u64; 4], reasons: [u64; 4]) -> Findings {
        let found = found(names);
        assert_eq!([found.samples, found.with_image, found.with_caption, found.usable], counts, "{names:?}: {found:?}");
        assert_eq!([found.apart, found.dotted, found.elsewhere, found.doubled], reasons, "{names:?}: {found:?}");
        assert_eq!(found.reasons().len(), reasons.iter().filter(|count| **count > 0).count());
        found
    }

    #[test]
    fn sound_samples_have_no_reason() {
        let found = check(&["0.jpg", "0.txt", "0.json", "1.txt", "1.PNG"], [2, 2, 2, 2], [0; 4]);
        assert_eq!(found.extensions_listed(), "txt 2, jpg 1, json 1, png 1");
        check(&["0.jpg", "0.json", "1.txt"], [2, 1, 1, 0], [0; 4]);
        check(&[], [0; 4], [0; 4]);
    }

    #[test]
    fn members_that_are_not_neighbours_are_halves_of_samples_apart() {
        check(&["0.jpg", "1.jpg", "2.jpg", "0.txt", "1.txt", "3.txt"], [6, 3, 3, 0], [4, 0, 0, 0]);
    }

    #[test]
    fn names_with_further_dots_are_told_from_extensions() {
        let found = check(&["a.0.jpg", "a.0.txt", "b.1.jpg", "b.1.txt"], [2, 0, 0, 0], [0, 2, 0, 0]);
        assert_eq!(found.extensions_listed(), "*.jpg 2, *.txt 2");
        // Further files beside a sound sample are nobody's concern.
        check(&["0.jpg", "0.txt", "0.mask.png"], [1, 1, 1, 1], [0; 4]);
    }

    #[test]
    fn links_in_place_of_a_part_are_found_before_and_behind_the_other() {
        check(&["0.jpg@", "0.txt", "1.txt", "1.jpg@", "2.jpg", "2.txt", "3.jpg@"], [3, 1, 3, 1], [0, 0, 2, 0]);
        // Neither begins nor ends a sample, and one without a role says nothing.
        check(&["0.jpg", "1.json@", "0.txt", "4.json@", "4.txt"], [2, 1, 2, 1], [0; 4]);
    }

    #[test]
    fn the_same_name_twice_in_a_sample_is_listed_whatever_it_is_for() {
        let found = check(
            &["0.jpg", "0.txt", "0.jpg", "0.txt", "1.jpg", "1.txt", "2.json", "2.jpg", "2.txt", "2.JSON"],
            [3, 3, 3, 1],
            [0, 0, 0, 2],
        );
        assert_eq!(found.doubled_keys, ["0", "2"]);
    }

    #[test]
    fn lists_stay_short_whatever_the_names_are() {
        let names: Vec<String> = (0..1000).flat_map(|number| [format!("{number}.x{number}"), format!("{number}.x{number}")]).collect();
        let found = found(&names.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!((found.doubled, found.doubled_keys.len()), (1000, DOUBLED_LISTED));
        assert_eq!((found.extensions.len(), found.extensions.values().sum::<u64>()), (EXTENSIONS_LISTED + 1, 1000));
    }
}
