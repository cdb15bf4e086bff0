//! The recorded documents: their parts, which of them are samples, and the sequences that these give.
//!
//! `LCL_OBELICS_GOLDEN` names another folder of the same form.

use std::{
    collections::BTreeMap,
    env, fs,
    fs::File,
    num::NonZero,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use lcl_data::{
    document::{Composer, Document},
    image::{self, Scratch},
    obelics::{DocumentFile, Documents, FileFindings, IMAGES_KEPT, ObelicsError, Part, SampleAt, StretchAt, index_file, select_images},
    sequence::SequenceLimits,
    shard,
    store::{AddressTable, BuildOptions, Place, build_table},
    tokenizer::Tokenizer,
};
use lcl_trainer_config::Preset;
use serde_json::Value;

/// A folder of recorded documents, with the table of its store.
struct Golden {
    documents: Vec<Value>,
    files: Vec<PathBuf>,
    shards: Vec<PathBuf>,
    store: Value,
    table: AddressTable,
    _folder: tempfile::TempDir,
}

fn golden() -> Golden {
    let fixture = || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/obelics");
    let at = env::var_os("LCL_OBELICS_GOLDEN").map_or_else(fixture, PathBuf::from);
    let text = |name: &str| fs::read_to_string(at.join(name)).unwrap_or_else(|error| panic!("{name} in {}: {error}", at.display()));
    let documents = text("expected.jsonl").lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    let (files, shards) = (list(&at.join("data"), "parquet"), list(&at.join("images"), "tar"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("table");
    // Two records at a time, so that even this store is sorted in many pieces.
    let options = BuildOptions { memory_bytes: 0, threads: NonZero::new(2).expect("two threads") };
    let report = build_table(&shards, &path, &options, |_| {}).expect("the table is made");
    assert!(report.left_out.is_empty(), "{:?}", report.left_out);
    let table = AddressTable::open(&path).expect("the table is opened");
    table.check_shards(&shards, options.threads).expect("the shards are the same");
    let store = serde_json::from_str(&text("store.json")).expect("a JSON object");
    Golden { documents, files, shards, store, table, _folder: folder }
}

fn list(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|found| found == ending));
    paths.sort();
    assert!(!paths.is_empty(), "no .{ending} in {}", folder.display());
    paths
}

impl Golden {
    fn place(&self, address: &str) -> Option<Place> {
        self.table.find(address).expect("the table is read")
    }

    /// The bytes of an image that is in the store.
    fn image(&self, place: Place) -> Vec<u8> {
        let mut bytes = vec![0; place.extent.length as usize];
        let shard = File::open(&self.shards[place.shard]).expect("the shard is there");
        shard.read_exact_at(&mut bytes, place.extent.offset).expect("the image is read");
        bytes
    }

    fn documents(&self) -> Documents {
        Documents::new(self.files.clone(), true, NonZero::new(2).expect("two row groups"))
    }

    fn open(&self) -> Vec<DocumentFile> {
        self.files.iter().map(|path| DocumentFile::open(path).expect("the file is opened")).collect()
    }
}

/// Where the first stretch of a recorded document is.
fn locate(document: &Value, opened: &[DocumentFile]) -> StretchAt {
    let (file, mut row) = (number(&document["file"]), number(&document["row"]) as u32);
    let mut row_group = 0;
    while row >= opened[file].rows(row_group) {
        row -= opened[file].rows(row_group);
        row_group += 1;
        assert!(row_group < opened[file].row_groups(), "{} is beyond its file", name(document));
    }
    StretchAt { file, row_group, row, stretch: 0 }
}

fn number(value: &Value) -> usize {
    usize::try_from(value.as_u64().expect("a number")).expect("a small number")
}

fn name(document: &Value) -> &str {
    document["document"].as_str().unwrap_or_default()
}

fn ends(document: &Value) -> usize {
    document["parts"].as_array().expect("a list").iter().filter(|part| part.get("end_of_document").is_some()).count()
}

/// Parts as `kind text`, without white space at the ends of texts and without texts that are nothing else.
fn in_words(parts: impl IntoIterator<Item = (String, String)>) -> Vec<String> {
    let parts = parts.into_iter().filter(|(kind, text)| kind != "text" || !text.trim().is_empty());
    parts.map(|(kind, text)| if kind == "text" { format!("text {}", text.trim()) } else { format!("{kind} {text}") }).collect()
}

#[test]
fn every_document_has_the_recorded_parts() {
    let golden = golden();
    let (opened, documents) = (golden.open(), golden.documents());
    for document in &golden.documents {
        let expected = document["parts"].as_array().expect("a list").iter().flat_map(|part| {
            let of = |(kind, text): (&String, &Value)| (kind.clone(), text.as_str().unwrap_or_default().to_owned());
            part.as_object().expect("an object").iter().map(of).collect::<Vec<_>>()
        });
        let mut found = Vec::new();
        let at = locate(document, &opened);
        let stretches = ends(document) as u32 + 1;
        for stretch in 0..stretches {
            if stretch > 0 {
                found.push(("end_of_document".to_owned(), String::new()));
            }
            for part in documents.read(StretchAt { stretch, ..at }).expect("the stretch is read") {
                found.push(match part {
                    Part::Text(text) => ("text".to_owned(), text),
                    Part::Image(address) if golden.place(&address).is_some() => ("image".to_owned(), address),
                    Part::Image(address) => ("missing".to_owned(), address),
                });
            }
        }
        assert_eq!(in_words(found), in_words(expected), "{}", name(document));
        let behind = documents.read(StretchAt { stretch: stretches, ..at });
        assert!(matches!(behind, Err(ObelicsError::Changed { .. })), "{}: {behind:?}", name(document));
    }
}

#[test]
fn the_table_has_every_address_that_was_downloaded_and_no_other() {
    let golden = golden();
    // Key of every image in the store by the place of its first byte.
    let mut keys: Vec<BTreeMap<u64, String>> = Vec::new();
    for path in &golden.shards {
        let mut members = BTreeMap::new();
        shard::walk(path, &shard::open(path).expect("the shard is there"), |member| {
            members.insert(member.offset, String::from_utf8(member.name).expect("a key of digits"));
        })
        .expect("the shard is walked");
        keys.push(members);
    }
    let entries = golden.store.as_object().expect("an object");
    for (address, entry) in entries {
        let recorded: Vec<(&str, &str)> =
            entry["at"].as_array().expect("a list").iter().map(|at| (text(&at["shard"]), text(&at["key"]))).collect();
        let found = golden.place(address).map(|place| {
            let shard = golden.shards[place.shard].file_name().and_then(|name| name.to_str()).expect("a name");
            let member = &keys[place.shard][&place.extent.offset];
            (shard, member.split_once('.').expect("a key and an ending").0)
        });
        assert_eq!(found.is_some(), !recorded.is_empty(), "{address}");
        // Of several images of an address it is the first of the first shard.
        if let Some((shard, key)) = found {
            let in_first: Vec<&(&str, &str)> =
                recorded.iter().filter(|at| at.0 == recorded.iter().map(|at| at.0).min().unwrap_or_default()).collect();
            assert!(in_first.contains(&&(shard, key)), "{address}: {shard} {key}, recorded {recorded:?}");
        }
    }
    let downloaded = entries.values().filter(|entry| !entry["at"].as_array().expect("a list").is_empty()).count();
    assert_eq!(golden.table.addresses(), downloaded as u64);
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

/// For every stretch of a document the number of its images that are in the store, as recorded.
fn stored_images(document: &Value) -> Vec<u32> {
    let mut counts = vec![0];
    for part in document["parts"].as_array().expect("a list") {
        if part.get("end_of_document").is_some() {
            counts.push(0);
        } else if part.get("image").is_some() {
            *counts.last_mut().expect("one from the beginning") += 1;
        }
    }
    counts
}

#[test]
fn the_stretches_with_a_stored_image_are_the_samples() {
    let golden = golden();
    let opened = golden.open();
    let mut expected: BTreeMap<(usize, usize), Vec<SampleAt>> = BTreeMap::new();
    for document in &golden.documents {
        let at = locate(document, &opened);
        let group = expected.entry((at.file, at.row_group)).or_default();
        let samples = (0..).zip(stored_images(document)).filter(|(_, images)| *images > 0);
        group.extend(samples.map(|(stretch, images)| SampleAt { row: at.row, stretch, images }));
    }
    let (mut found, mut totals) = (BTreeMap::new(), FileFindings::default());
    for (number, file) in opened.iter().enumerate() {
        let is_stored = |address: &str| golden.table.find(address).map(|place| place.is_some());
        let findings = index_file(file, true, is_stored, |group, samples| {
            found.insert((number, group), samples.to_vec());
        })
        .expect("the file is indexed");
        assert!(findings.faults.is_empty(), "{:?}", findings.faults);
        totals.rows += findings.rows;
        totals.stretches += findings.stretches;
        totals.stored += findings.stored;
        totals.samples += findings.samples;
    }
    assert_eq!(found, expected);
    let stretches: Vec<u32> = golden.documents.iter().flat_map(stored_images).collect();
    assert_eq!((totals.rows, totals.stretches), (golden.documents.len() as u64, stretches.len() as u64));
    assert_eq!(totals.stored, u64::from(stretches.iter().sum::<u32>()));
    assert_eq!(totals.samples, stretches.iter().filter(|images| **images > 0).count() as u64);
}

/// The limits with so many placeholders an image and so long sequences.
fn limits(recorded: &Value) -> SequenceLimits {
    let mut shape = Preset::Tiny.shape();
    let side = number(&recorded["image_tokens"]).isqrt() as i64;
    (shape.vision.image_size, shape.vision.patch_size) = (side * 8, 8);
    shape.text.context_length = number(&recorded["context"]) as i64;
    let limits = SequenceLimits::new(&shape).expect("a limits");
    assert_eq!((limits.image_tokens(), limits.context_length()), (number(&recorded["image_tokens"]), number(&recorded["context"])));
    limits
}

#[test]
fn every_stretch_gives_the_recorded_sequence() {
    let golden = golden();
    let (opened, documents) = (golden.open(), golden.documents());
    let (mut composer, mut scratch, mut interleaved) = (Composer::new(Tokenizer::clip()), Scratch::new(), Document::new());
    let mut compared = 0;
    for document in &golden.documents {
        let at = locate(document, &opened);
        for recorded in document["samples"].as_array().expect("a list") {
            let limits = limits(recorded);
            let stretches = recorded["of_each_part"].as_array().expect("a list");
            assert_eq!(stretches.len(), ends(document) + 1);
            for (stretch, expected) in (0..).zip(stretches) {
                let parts = documents.read(StretchAt { stretch, ..at }).expect("the stretch is read");
                let readable = |address: &str| {
                    let place = golden.table.find(address)?;
                    let decodes = place.is_some_and(|place| image::decode(&golden.image(place), &mut scratch).is_ok());
                    Ok::<_, lcl_data::store::StoreError>(decodes.then(|| address.to_owned()))
                };
                let addresses = select_images(&parts, Some(IMAGES_KEPT), readable, &mut interleaved).expect("the table is read");
                let found = composer.compose(&interleaved, &limits).ok().map(|sequence| {
                    let images: Vec<&str> = sequence.images.iter().map(|number| addresses[*number as usize].as_str()).collect();
                    (sequence.tokens.to_vec(), images)
                });
                let expected = expected.get("no_sample").is_none().then(|| {
                    let tokens =
                        expected["tokens"].as_array().expect("a list").iter().map(|token| token.as_i64().expect("an id")).collect();
                    (tokens, expected["images"].as_array().expect("a list").iter().map(text).collect())
                });
                assert_eq!(found, expected, "{} {stretch} {limits:?}", name(document));
                compared += 1;
            }
        }
    }
    assert!(compared >= golden.documents.len());
}
