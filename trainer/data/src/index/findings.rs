//! What an index found in its shard: how many samples can be used, and why others cannot.
//!
//! Comes in: the files of the shard's samples, one sample after the other. Goes out: [`Findings`], which the index file keeps beside its records, and sentences for
//! people. Which members count as image and caption is decided by the keys, which the findings name.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher, RandomState},
};

use lcl_filter::Filtered;
use lcl_trainer_config::{SIDECAR_KEY, SampleKeys};
use serde::{Deserialize, Serialize};

use crate::{
    packed::members::is_numbered_image,
    shard::{Role, SampleFiles, role},
};

/// Most extensions that are listed. A data set has a handful; names that are no extensions would fill any list.
const EXTENSIONS_LISTED: usize = 32;

/// Most of them with a further dot: enough to show keys such as `seg.png`; where names have dots of their own there is one for every sample, and
/// only what follows the last dot tells something.
const DOTTED_LISTED: usize = 8;

/// Most samples with doubled members that are listed by name.
const DOUBLED_LISTED: usize = 100;

/// Most characters of a listed name, so that the list stays small whatever the names are.
const NAME_LISTED: usize = 200;

/// What a filter leaves out for one cause.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// How many.
    pub count: u64,
    /// The first of them: its key, and what of it where there is more to say.
    pub first: String,
}

/// What was found in one shard or, added up, in several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    /// What was looked for.
    pub keys: SampleKeys,
    /// Samples, unusable ones included; what a filter leaves out is none.
    pub samples: u64,
    /// What the filter leaves out, by cause. What an earlier version wrote had none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub filtered: BTreeMap<String, LeftOut>,
    /// Samples with an image.
    pub with_image: u64,
    /// Samples with a caption, or with a json that may hold one. A file without bytes is no caption.
    pub with_caption: u64,
    /// Samples with both, no member of which is there twice. Whether the image can be decoded, a text is blank, or a field of a json is null is not known
    /// before it is read.
    pub usable: u64,
    /// Samples without a caption whose file of one has no bytes. What an earlier version wrote had none.
    #[serde(default)]
    pub empty: u64,
    /// Samples with two members of one name; none of them is trained on.
    pub doubled: u64,
    /// Keys of those, as many as are listed.
    pub doubled_keys: Vec<String>,
    /// Samples by extension. Where many have a further dot, what stands before it is `*`.
    pub extensions: BTreeMap<String, u64>,
    /// Samples whose image and caption are both in the shard, but not next to each other.
    pub apart: u64,
    /// Samples that lack a part which is there behind a further dot of the name.
    pub dotted: u64,
    /// Documents: a json and numbered images, neither image nor caption. What an earlier version wrote had none.
    #[serde(default)]
    pub documents: u64,
    /// Samples that lack a part which is there as a link or a sparse file.
    pub elsewhere: u64,
    /// Archives in the shard, one after the other.
    pub archives: u64,
}

impl Findings {
    /// Those of no shard, for these keys.
    #[must_use]
    pub fn none(keys: &SampleKeys) -> Self {
        Self {
            keys: keys.clone(),
            samples: 0,
            filtered: BTreeMap::new(),
            with_image: 0,
            with_caption: 0,
            usable: 0,
            empty: 0,
            doubled: 0,
            doubled_keys: Vec::new(),
            extensions: BTreeMap::new(),
            apart: 0,
            dotted: 0,
            documents: 0,
            elsewhere: 0,
            archives: 0,
        }
    }

    /// Adds those of another shard. Names are not added, as they mean something within their shard alone.
    pub fn add(&mut self, other: &Self) {
        self.samples += other.samples;
        self.with_image += other.with_image;
        self.with_caption += other.with_caption;
        self.usable += other.usable;
        self.empty += other.empty;
        self.doubled += other.doubled;
        self.apart += other.apart;
        self.dotted += other.dotted;
        self.documents += other.documents;
        self.elsewhere += other.elsewhere;
        self.archives += other.archives;
        for (cause, LeftOut { count, first }) in &other.filtered {
            self.filtered.entry(cause.clone()).or_insert_with(|| LeftOut { count: 0, first: first.clone() }).count += count;
        }
        for (extension, count) in &other.extensions {
            count_extension(&mut self.extensions, extension, *count);
        }
    }

    /// Number of those that the filter leaves out.
    #[must_use]
    pub fn filtered_count(&self) -> u64 {
        self.filtered.values().map(|left_out| left_out.count).sum()
    }

    /// What the filter leaves out, the most frequent cause first, each but the filter's own verdict with its first sample.
    #[must_use]
    pub fn filtered_listed(&self) -> String {
        let mut causes: Vec<_> = self.filtered.iter().collect();
        causes.sort_by_key(|(cause, left_out)| (std::cmp::Reverse(left_out.count), cause.as_str()));
        let listed = causes.into_iter().map(|(cause, LeftOut { count, first })| match cause.as_str() {
            "excluded" => format!("{cause} {count}"),
            _ => format!("{cause} {count} (first {first})"),
        });
        listed.collect::<Vec<_>>().join(", ")
    }

    /// Why samples of the shard are half, a sentence for each reason, with what to do.
    #[must_use]
    pub fn reasons(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        let mut add = |count: u64, text: &str| {
            if count > 0 {
                reasons.push(format!("{count} of {} samples {text}", self.samples + self.filtered_count()));
            }
        };
        add(
            self.apart,
            "have their image and their caption apart from each other: the members of a sample must be neighbours, sort them by name",
        );
        add(
            self.dotted,
            "have dots in their names before the extension: a sample's name ends at the first dot, rename them or set \
             spec.data.webdataset.keySeparator to LastDot (--key-separator last-dot)",
        );
        add(
            self.documents,
            "are documents (NAME.json beside NAME.0.jpg and so on), as `lcl data convert` writes them: read them with \
             spec.data.webdataset.layout Documents (--source documents)",
        );
        add(
            self.elsewhere,
            "have links or sparse files in place of an image or a caption: their contents cannot be read, write them again with \
             `tar --hard-dereference --dereference`",
        );
        add(self.empty, "have a caption's file without a byte in it, which is no caption: leave them out, or name where else captions are");
        add(
            self.doubled,
            "have two members of one name: which belong together is not known, so that they are not trained on; give each sample a name of its own",
        );
        if reasons.is_empty() && self.usable == 0 && self.with_image > 0 && self.with_caption > 0 {
            reasons.push("the members of a sample have to stand next to each other and share their name up to the dot".to_owned());
        }
        reasons
    }

    /// The extensions with their counts, the most frequent first.
    #[must_use]
    pub fn extensions_listed(&self) -> String {
        let mut extensions: Vec<_> = self.extensions.iter().collect();
        extensions.sort_by_key(|(extension, count)| (std::cmp::Reverse(**count), extension.as_str()));
        let listed: Vec<String> = extensions.iter().map(|(extension, count)| format!("{extension} {count}")).collect();
        if listed.is_empty() { "no file with a dot in its name".to_owned() } else { listed.join(", ") }
    }
}

/// Counts an extension. A list that grows too long is made shorter by what stands before the last dots, then by leaving out names.
fn count_extension(extensions: &mut BTreeMap<String, u64>, extension: &str, count: u64) {
    let short = shortened(extension);
    let dotted = short.is_some();
    let known = match &short {
        Some(short) if extensions.contains_key(short) => short.as_str(),
        _ => extension,
    };
    if let Some(present) = extensions.get_mut(known) {
        *present += count;
        return;
    }
    if dotted && extensions.keys().filter(|known| shortened(known).is_some()).count() >= DOTTED_LISTED {
        for (known, count) in std::mem::take(extensions) {
            *extensions.entry(shortened(&known).unwrap_or(known)).or_default() += count;
        }
        count_listed(extensions, short.unwrap_or_default(), count);
    } else {
        count_listed(extensions, extension.to_owned(), count);
    }
}

fn count_listed(extensions: &mut BTreeMap<String, u64>, extension: String, count: u64) {
    let has_place = extensions.len() < EXTENSIONS_LISTED || extensions.contains_key(&extension);
    *extensions.entry(if has_place { extension } else { "others".to_owned() }).or_default() += count;
}

/// An extension with a further dot without what stands before its last one; `None` where there is nothing to leave out.
fn shortened(extension: &str) -> Option<String> {
    let (first, last) = extension.rsplit_once('.')?;
    (first != "*").then(|| format!("*.{last}"))
}

/// Collects the findings of one shard.
#[derive(Debug)]
pub(super) struct Collector {
    findings: Findings,
    hasher: RandomState,
    /// Of every key of half samples, by its hash: how many there are, and whether any has an image and any a caption.
    halves: HashMap<u64, (u64, bool, bool)>,
}

impl Collector {
    /// For a shard in which these keys are looked for.
    pub(super) fn new(keys: &SampleKeys) -> Self {
        Self { findings: Findings::none(keys), hasher: RandomState::new(), halves: HashMap::new() }
    }

    /// Takes a sample that the filter leaves out. Its files are counted, and its parts may be apart, as in any other.
    pub(super) fn leave_out(&mut self, files: &SampleFiles, Filtered { cause, detail }: &Filtered) {
        let left_out = self.findings.filtered.entry(cause.name().to_owned()).or_insert_with(|| {
            let key = String::from_utf8_lossy(&files.key);
            let detail = if detail.is_empty() { String::new() } else { format!(": {detail}") };
            LeftOut { count: 0, first: format!("{key}{detail}").chars().take(NAME_LISTED).collect() }
        });
        left_out.count += 1;
        self.take_parts(files);
    }

    /// Takes the next sample.
    pub(super) fn take(&mut self, files: &SampleFiles) {
        let (image, caption) = (files.image.is_some(), files.caption.is_some());
        let findings = &mut self.findings;
        findings.samples += 1;
        findings.with_image += u64::from(image);
        findings.with_caption += u64::from(caption);
        findings.usable += u64::from(image && caption && !files.doubled);
        if files.doubled {
            findings.doubled += 1;
            if findings.doubled_keys.len() < DOUBLED_LISTED {
                findings.doubled_keys.push(String::from_utf8_lossy(&files.key).chars().take(NAME_LISTED).collect());
            }
        }
        self.take_parts(files);
    }

    /// Takes the extensions of a sample's files, and which parts it lacks.
    fn take_parts(&mut self, files: &SampleFiles) {
        let (image, caption) = (files.image.is_some(), files.caption.is_some());
        let findings = &mut self.findings;
        let is_json = |extension: &Vec<u8>| extension == SIDECAR_KEY.as_bytes();
        let is_document = !image
            && files.extensions.iter().any(is_json)
            && files.extensions.iter().any(|extension| is_numbered_image(extension))
            && files.extensions.iter().all(|extension| is_json(extension) || is_numbered_image(extension));
        let mut dotted = false;
        for extension in &files.extensions {
            let last = extension.rsplit(|byte| *byte == b'.').next().unwrap_or_default();
            dotted |= last.len() < extension.len()
                && match role(last, &findings.keys) {
                    Some(Role::Image(_)) => !image,
                    Some(Role::Caption(_)) => !caption,
                    None => false,
                };
            // The end of a long one, which says most.
            let name = String::from_utf8_lossy(extension);
            let before = name.chars().count().saturating_sub(NAME_LISTED);
            count_extension(&mut findings.extensions, &name.chars().skip(before).collect::<String>(), 1);
        }
        if image && caption {
            return;
        }
        findings.empty += u64::from(!caption && files.empty_caption);
        findings.documents += u64::from(is_document);
        findings.dotted += u64::from(dotted && !is_document);
        findings.elsewhere += u64::from(files.elsewhere);
        if image || caption {
            let half = self.halves.entry(self.hasher.hash_one(&files.key)).or_default();
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
    use lcl_filter::FilterCause;
    use lcl_trainer_config::KeySeparator;

    use super::*;
    use crate::shard::{Member, MemberKind, SampleScanner};

    /// Findings of members with these names; `@` marks links.
    fn found(names: &[&str]) -> Findings {
        found_under(&SampleKeys::default(), names)
    }

    fn found_under(keys: &SampleKeys, names: &[&str]) -> Findings {
        let (mut scanner, mut collector) = (SampleScanner::new(keys), Collector::new(keys));
        for name in names {
            let kind = if name.ends_with('@') { MemberKind::Elsewhere } else { MemberKind::File };
            let name = name.trim_end_matches('@').as_bytes().to_vec();
            if let Some(files) = scanner.push(Member { kind, name, start: 0, offset: 512, length: 1 }) {
                collector.take(&files);
            }
        }
        if let Some(files) = scanner.finish() {
            collector.take(&files);
        }
        collector.finish(1)
    }

    /// Samples, with image, with caption, usable, then apart, dotted, elsewhere, doubled.
    fn check(names: &[&str], counts: [u64; 4], reasons: [u64; 4]) -> Findings {
        let found = found(names);
        assert_eq!([found.samples, found.with_image, found.with_caption, found.usable], counts, "{names:?}: {found:?}");
        assert_eq!([found.apart, found.dotted, found.elsewhere, found.doubled], reasons, "{names:?}: {found:?}");
        let general = found.usable == 0 && found.with_image > 0 && found.with_caption > 0 && reasons == [0; 4];
        assert_eq!(found.reasons().len(), reasons.iter().filter(|count| **count > 0).count() + usize::from(general));
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
        let found = check(&["a.0.jpg", "a.0.txt", "b.0.jpg", "b.1.txt"], [2, 0, 0, 0], [0, 2, 0, 0]);
        assert_eq!(found.extensions_listed(), "0.jpg 2, 0.txt 1, 1.txt 1");
        // Further files beside a sound sample are nobody's concern.
        check(&["0.jpg", "0.txt", "0.mask.png"], [1, 1, 1, 1], [0; 4]);
    }

    #[test]
    fn extensions_with_further_dots_are_shortened_when_there_are_many() {
        let names: Vec<String> = (0..100).flat_map(|number| [format!("{number}.{number}.jpg"), format!("{number}.{number}.txt")]).collect();
        let all = found(&names.iter().map(String::as_str).chain(["x.seg.png", "y.seg.png", "z.json"]).collect::<Vec<_>>());
        assert_eq!(all.extensions_listed(), "*.jpg 100, *.txt 100, seg.png 2, json 1");
        // Added up in whatever order, long lists and short ones make one.
        let few = found(&["0.a.jpg", "0.txt"]);
        let (mut first, mut second) = (few.clone(), all.clone());
        first.add(&all);
        second.add(&few);
        assert_eq!(second.extensions_listed(), "*.jpg 101, *.txt 100, seg.png 2, json 1, txt 1");
        assert_eq!((first.samples, first.extensions.values().sum::<u64>()), (second.samples, 205));
    }

    #[test]
    fn what_counts_as_image_and_caption_is_said_by_the_keys() {
        let list = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect();
        let names = ["0.seg.png", "0.caption", "0.png", "0.txt", "1.a.seg", "1.a.caption@", "1.a.caption", "1.b.seg"];
        let usual = found(&names);
        assert_eq!([usual.samples, usual.with_image, usual.with_caption, usual.usable], [2, 1, 1, 1]);
        let keys = SampleKeys { image: list(&["seg.png"]), caption: list(&["caption"]), ..SampleKeys::default() };
        let others = found_under(&keys, &names);
        assert_eq!([others.samples, others.with_image, others.usable, others.dotted], [2, 1, 1, 1]);
        assert_eq!(others.keys, keys);
        let keys =
            SampleKeys { image: list(&["seg"]), caption: list(&["caption"]), separator: KeySeparator::LastDot, ..SampleKeys::default() };
        let by_last_dot = found_under(&keys, &names);
        assert_eq!([by_last_dot.with_image, by_last_dot.with_caption, by_last_dot.usable, by_last_dot.dotted], [2, 2, 1, 0]);
    }

    #[test]
    fn a_caption_without_bytes_is_counted_as_none_and_said_to_be_empty() {
        let keys = SampleKeys::default();
        let (mut scanner, mut collector) = (SampleScanner::new(&keys), Collector::new(&keys));
        for (name, length) in [("0.jpg", 1), ("0.txt", 0), ("1.jpg", 1), ("1.txt", 1)] {
            let name = name.as_bytes().to_vec();
            let member = Member { kind: MemberKind::File, name, start: 0, offset: 512, length };
            scanner.push(member).iter().for_each(|files| collector.take(files));
        }
        scanner.finish().iter().for_each(|files| collector.take(files));
        let found = collector.finish(1);
        assert_eq!([found.samples, found.with_caption, found.usable, found.empty], [2, 1, 1, 1]);
        assert!(found.reasons().iter().any(|reason| reason.starts_with("1 of 2 samples have a caption's file without a byte")));
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
    fn what_a_filter_leaves_out_is_no_sample_and_is_counted_by_cause() {
        use FilterCause::{Excluded, MissingField, NoSidecar};
        let keys = SampleKeys { filter: Some("similarity > 0.3".to_owned()), ..SampleKeys::default() };
        let left_out = |shard: &str, causes: &[(FilterCause, &str)]| {
            let (mut scanner, mut collector) = (SampleScanner::new(&keys), Collector::new(&keys));
            let member = |name: String| Member { kind: MemberKind::File, name: name.into_bytes(), start: 0, offset: 512, length: 1 };
            for (number, (cause, detail)) in causes.iter().enumerate() {
                let names = ["jpg", "txt"].map(|extension| format!("{shard}{number}.{extension}"));
                for name in names {
                    drop(scanner.push(member(name)));
                }
                let files = std::mem::replace(&mut scanner, SampleScanner::new(&keys)).finish().expect("a sample");
                collector.leave_out(&files, &Filtered { cause: *cause, detail: (*detail).to_owned() });
            }
            collector.finish(1)
        };
        let mut found = left_out("a", &[(Excluded, ""), (MissingField, "similarity"), (Excluded, "")]);
        assert_eq!((found.samples, found.usable, found.filtered_count()), (0, 0, 3));
        assert_eq!(found.filtered_listed(), "excluded 2, missing_field 1 (first a1: similarity)");
        found.add(&left_out("b", &[(NoSidecar, ""), (MissingField, "other"), (NoSidecar, ""), (NoSidecar, "")]));
        assert_eq!(found.filtered_listed(), "no_sidecar 3 (first b0), excluded 2, missing_field 2 (first a1: similarity)");
        assert_eq!(found.extensions_listed(), "jpg 7, txt 7");
        assert!(found.reasons().is_empty());
        let text = serde_json::to_string(&found).expect("plain data");
        assert_eq!(serde_json::from_str::<Findings>(&text).expect("what was written"), found);
    }

    #[test]
    fn lists_stay_short_whatever_the_names_are() {
        let names: Vec<String> = (0..1000).flat_map(|number| [format!("{number}.x{number}"), format!("{number}.x{number}")]).collect();
        let found = found(&names.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!((found.doubled, found.doubled_keys.len()), (1000, DOUBLED_LISTED));
        assert_eq!((found.extensions.len(), found.extensions.values().sum::<u64>()), (EXTENSIONS_LISTED + 1, 1000));
    }
}
