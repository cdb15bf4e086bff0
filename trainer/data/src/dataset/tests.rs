//! Reading samples of real shards: sound ones, every kind of bad one, and storage that fails for a while or for good.

use std::{
    fs, io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use lcl_trainer_config::{CaptionChoice, CaptionFrom, KeySeparator};

use super::{pairs::GAP_LIMIT, *};
use crate::{
    batch::SkipCause::{CaptionNotUtf8, CaptionTooLarge, DoubledMember, NoCaption, NoImage},
    draw::Draw,
    index::IndexError,
    order::Location,
    permutation::Permutation,
    shard::{BLOCK, ImageKind, ShardError, ShardWriter},
};

fn config(shards: &[&Path]) -> DataConfig {
    DataConfig {
        max_bad_fraction: 1.0,
        threads: 2,
        prefetch: 1,
        ..DataConfig::new(DataSource::webdataset(shards.iter().map(|path| path.display().to_string()).collect()))
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// An error with its causes, as commands print it.
fn words_of(error: &DatasetError) -> String {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Samples `first..first + count` with their number as image and caption.
fn write_shard(path: &Path, first: u64, count: u64) {
    let mut writer = ShardWriter::create(path).expect("the shard is begun");
    for sample in first..first + count {
        let text = sample.to_string();
        writer
            .append(&format!("{sample:05}"), Some((ImageKind::Jpg, text.repeat(200).as_bytes())), Some(&text))
            .expect("a sample is written");
    }
    writer.finish().expect("the shard is finished");
}

fn check_sample(dataset: &Dataset, sample: u64) {
    let Reading::Sample(read) = dataset.read(sample).expect("the shard is read") else { panic!("sample {sample} is sound") };
    let text = sample.to_string();
    assert_eq!((read.caption.as_str(), read.image()), (text.as_str(), text.repeat(200).as_bytes()));
}

#[test]
fn samples_are_numbered_through_the_shards_and_empty_shards_take_no_number() {
    let folder = folder();
    let path = |number: u64| folder.path().join(format!("{number}.tar"));
    for (number, first, count) in [(0, 0, 3), (1, 3, 0), (2, 3, 1), (3, 4, 0), (4, 4, 5)] {
        write_shard(&path(number), first, count);
    }
    let dataset = Dataset::open(&config(&[&folder.path().join("{0..4}.tar")])).expect("the data set is opened");
    assert_eq!(dataset.samples_per_pass(), 9);
    for sample in [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 3, 0] {
        check_sample(&dataset, sample);
    }
    assert!(matches!(dataset.read(9), Err(DatasetError::OutOfRange { sample: 9, samples: 9 })));
    assert_eq!(dataset.key(3).expect("the key is read"), (path(2), "00003".to_owned()));
}

#[test]
fn what_cannot_be_opened_is_named() {
    let folder = folder();
    let (there, missing, empty) = (folder.path().join("0.tar"), folder.path().join("1.tar"), folder.path().join("2.tar"));
    write_shard(&there, 0, 1);
    write_shard(&empty, 0, 0);
    let message = |shards: &[&Path]| Dataset::open(&config(shards)).expect_err("it cannot be opened").to_string();
    let found = message(&[&there, &missing]);
    assert!(found.contains(&format!("spec.data.webdataset.shards[1] (`{0}`): shard {0} does not exist", missing.display())), "{found}");
    let empty_too = folder.path().join("3.tar");
    write_shard(&empty_too, 0, 0);
    let found = message(&[&empty, &empty_too]);
    assert!(found.starts_with(&format!("there is no sample in {} and 1 more shard: looked for", empty.display())), "{found}");
    let found = message(&[Path::new("/data/{1,2.tar")]);
    assert!(found.starts_with("spec.data.webdataset.shards[0] (`/data/{1,2.tar`) cannot be used: the `{` at character 7"), "{found}");
    fs::write(&missing, &fs::read(&there).expect("the shard is read")[..700]).expect("a cut shard is written");
    let found = words_of(&Dataset::open(&config(&[&there, &missing])).expect_err("it is cut short"));
    assert!(found.starts_with("spec.data.webdataset.shards: ") && found.contains("cut short") && found.contains("byte 0"), "{found}");
    assert!(found.contains(missing.to_str().expect("UTF-8")), "{found}");
}

#[test]
fn every_kind_of_bad_record_has_its_cause() {
    let folder = folder();
    let path = folder.path().join("a.tar");
    let mut writer = ShardWriter::create(&path).expect("the shard is begun");
    let image = Some((ImageKind::Png, b"pixels".as_slice()));
    writer.append("no-caption", image, None).expect("written");
    writer.append("no-image", None, Some("text")).expect("written");
    writer.append_member("wrong-type", "gif", b"GIF89a").expect("written");
    writer.append_member("wrong-type", "txt", b"text").expect("written");
    writer.append_member("neither", "json", b"{}").expect("written");
    writer.append("not-utf8", image, None).expect("written");
    writer.append_member("not-utf8", "txt", b"caf\xe9").expect("written");
    writer.append("long-caption", image, Some(&"x".repeat(CAPTION_BYTES_LIMIT as usize + 1))).expect("written");
    writer.append("sound", image, Some(&"x".repeat(CAPTION_BYTES_LIMIT as usize))).expect("written");
    writer.append("empty-caption", image, Some("")).expect("written");
    writer.append("twice", image, Some("text")).expect("written");
    writer.append("twice", image, Some("text")).expect("written");
    writer.finish().expect("the shard is finished");
    let dataset = Dataset::open(&config(&[&path])).expect("the data set is opened");
    let causes: Vec<Option<SkipCause>> = (0..dataset.samples_per_pass())
        .map(|sample| match dataset.read(sample).expect("the shard is read") {
            Reading::Sample(_) => None,
            Reading::Skipped(cause) => Some(cause),
        })
        .collect();
    let expected = [NoCaption, NoImage, NoImage, NoImage, CaptionNotUtf8, CaptionTooLarge].map(Some);
    assert_eq!(causes, [&expected[..], &[None, Some(NoCaption), Some(DoubledMember)]].concat());
}

#[test]
fn a_huge_image_is_skipped_without_being_read() {
    let folder = folder();
    let path = folder.path().join("a.tar");
    // 5 GiB, more than a record of the index can say, as a file with a hole.
    let size = 5_u64 << 30;
    let header = |name: &str, size: u64| {
        let mut header = tar::Header::new_gnu();
        header.set_path(name).expect("a short name");
        header.set_size(size);
        header.set_cksum();
        *header.as_bytes()
    };
    let file = fs::File::create(&path).expect("the shard is created");
    let write = |bytes: &[u8], at: u64| std::os::unix::fs::FileExt::write_all_at(&file, bytes, at).expect("written");
    write(&header("0.jpg", size), 0);
    write(&header("0.txt", 4), BLOCK + size);
    write(b"text", 2 * BLOCK + size);
    file.set_len(5 * BLOCK + size).expect("the end mark is written");
    let dataset = Dataset::open(&config(&[&path])).expect("the data set is opened");
    assert_eq!(dataset.read(0).expect("the index is read"), Reading::Skipped(SkipCause::ImageTooLarge));
}

#[test]
fn image_and_caption_are_found_in_either_order_and_far_apart() {
    let folder = folder();
    let path = folder.path().join("a.tar");
    let mut writer = ShardWriter::create(&path).expect("the shard is begun");
    let big = vec![1; 2 * GAP_LIMIT as usize];
    for (key, members) in [
        ("0", [("jpg", b"image".as_slice()), ("txt", b"text"), ("npy", &big)]),
        ("1", [("txt", b"text"), ("jpg", b"image"), ("npy", &big)]),
        ("2", [("txt", b"text"), ("npy", &big), ("jpg", b"image")]),
        ("3", [("jpg", b"image"), ("npy", &big), ("txt", b"text")]),
        ("4", [("jpg", b"image"), ("json", b"{}"), ("txt", b"text")]),
    ] {
        for (extension, contents) in members {
            writer.append_member(key, extension, contents).expect("written");
        }
    }
    writer.finish().expect("the shard is finished");
    let dataset = Dataset::open(&config(&[&path])).expect("the data set is opened");
    for sample in 0..5 {
        let Reading::Sample(read) = dataset.read(sample).expect("the shard is read") else { panic!("sample {sample} is sound") };
        assert_eq!((read.image(), read.caption.as_str()), (b"image".as_slice(), "text"), "sample {sample}");
    }
}

#[test]
fn the_digest_is_of_names_sizes_and_counts_in_their_order() {
    let (first, second) = (folder(), folder());
    let in_folder = |folder: &Path, names: [&str; 2]| {
        let paths = names.map(|name| folder.join(name));
        let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
        Dataset::open(&config(&paths)).expect("the data set is opened").digest()
    };
    for folder in [first.path(), second.path()] {
        write_shard(&folder.join("a.tar"), 0, 4);
        write_shard(&folder.join("b.tar"), 4, 2);
        write_shard(&folder.join("c.tar"), 4, 2);
    }
    let digest = in_folder(first.path(), ["a.tar", "b.tar"]);
    assert_eq!(digest.len(), 64);
    assert_eq!(digest, in_folder(second.path(), ["a.tar", "b.tar"]), "the same files elsewhere");
    assert_ne!(digest, in_folder(first.path(), ["b.tar", "a.tar"]), "another order is another numbering");
    assert_ne!(digest, in_folder(first.path(), ["a.tar", "c.tar"]), "another name");
    write_shard(&second.path().join("b.tar"), 4, 3);
    assert_ne!(digest, in_folder(second.path(), ["a.tar", "b.tar"]), "another count");
    assert_eq!(digest, "12455a31deaa9bec024067810a33a0168e8b2c0ce953adb2d4a884039b0f4b61", "jobs that are running would refuse to resume");
}

#[test]
fn a_slot_s_sample_follows_from_seed_and_index_alone() {
    let folder = folder();
    let path = folder.path().join("a.tar");
    write_shard(&path, 0, 10);
    let dataset = Dataset::open(&config(&[&path])).expect("the data set is opened");
    let order = dataset.order(7, 4);
    for index in 0..50 {
        let Location { pass, position, sample, .. } = order.locate(index);
        assert_eq!((pass, position), (index / 10, index % 10));
        assert_eq!(Some(sample), Permutation::new(7, pass, 10).at(position));
    }
}

#[test]
fn a_shard_that_vanished_or_changed_is_named() {
    let folder = folder();
    let (path, away) = (folder.path().join("a.tar"), folder.path().join("b.tar"));
    write_shard(&path, 0, 10);
    let open = || Dataset::open(&config(&[&path])).expect("the data set is opened");
    let dataset = open();
    fs::rename(&path, &away).expect("the shard is moved");
    assert!(matches!(dataset.read(0), Err(DatasetError::Shard(ShardError::Missing { path: named })) if named == path));
    fs::rename(&away, &path).expect("the shard is moved back");
    check_sample(&dataset, 0);
    // Cut after it was indexed.
    let dataset = open();
    fs::write(&path, &fs::read(&path).expect("the shard is read")[..2000]).expect("the shard is cut");
    assert!(matches!(dataset.read(5), Err(DatasetError::Shard(ShardError::Changed { path: named, .. })) if named == path));
    // Replaced by one with other offsets.
    write_shard(&path, 0, 10);
    let dataset = open();
    write_shard(&path, 1_000_000, 10);
    assert!(matches!(dataset.read(5), Err(DatasetError::Shard(ShardError::Changed { path: named, .. })) if named == path));
}

/// Fails the first `failures` reads with one error, then is the file system.
#[derive(Debug)]
struct Flaky {
    failures: usize,
    error: i32,
    reads: Arc<AtomicUsize>,
    files: files::OpenFiles,
}

impl Storage for Flaky {
    fn read(&self, file: FileRef<'_>, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if self.reads.fetch_add(1, Ordering::Relaxed) < self.failures {
            return Err(io::Error::from_raw_os_error(self.error));
        }
        self.files.read(file, offset, buffer)
    }

    fn fetch(&self, file: FileRef<'_>, offset: u64, length: u64) -> io::Result<()> {
        self.files.fetch(file, offset, length)
    }
}

#[test]
fn reads_that_fail_for_a_while_are_tried_again_and_others_are_errors() {
    let folder = folder();
    let path = folder.path().join("a.tar");
    write_shard(&path, 0, 3);
    let check = |failures, error| {
        let reads = Arc::new(AtomicUsize::new(0));
        let storage = Flaky { failures, error, reads: Arc::clone(&reads), files: files::OpenFiles::default() };
        let dataset = Dataset::open_on(&config(&[&path]), ListOrigin::Manifest, Box::new(storage)).expect("the data set is opened");
        let mut waits = 0;
        let read = dataset.read_with(1, Choose::First, |_| {
            waits += 1;
            false
        });
        (read, waits, reads.load(Ordering::Relaxed))
    };
    // The index's record, then the sample's bytes.
    let (read, waits, reads) = check(0, 0);
    assert!(matches!(read, Ok(Reading::Sample(_))) && waits == 0 && reads == 2);
    for error in [libc::EIO, libc::EINTR, libc::ESTALE] {
        let (read, waits, _) = check(5, error);
        assert!(matches!(read, Ok(Reading::Sample(ref sample)) if sample.caption == "1") && waits == 5, "{read:?}");
    }
    let (read, waits, _) = check(usize::MAX, libc::EIO);
    assert!(waits > 10);
    let Err(DatasetError::Index(IndexError::Read { path: named, .. })) = read else { panic!("{read:?}") };
    assert_eq!(named, folder.path().join("a.tar.lclindex"));
}

#[test]
fn many_threads_read_the_right_bytes() {
    let folder = folder();
    for shard in 0..5_u64 {
        write_shard(&folder.path().join(format!("{shard}.tar")), shard * 20, 20);
    }
    let dataset = Dataset::open(&config(&[&folder.path().join("{0..4}.tar")])).expect("the data set is opened");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let dataset = &dataset;
            let order = dataset.order(thread, 8);
            scope.spawn(move || (0..400).for_each(|index| check_sample(dataset, order.locate(index).sample)));
        }
    });
}

/// A shard with one member under each name.
fn write_members(path: &Path, names: &[&str]) {
    let mut archive = tar::Builder::new(fs::File::create(path).expect("the shard is created"));
    for name in names {
        let mut header = tar::Header::new_gnu();
        header.set_size(4);
        archive.append_data(&mut header, name, &b"text"[..]).expect("written");
    }
    archive.finish().expect("the shard is finished");
}

#[test]
fn data_without_a_single_pair_is_refused_with_what_was_looked_for_and_what_is_there() {
    let folder = folder();
    let (first, second) = (folder.path().join("0.tar"), folder.path().join("1.tar"));
    let check = |members: [&[&str]; 2], keys: &SampleKeys, expected: &[&str]| {
        write_members(&first, members[0]);
        write_members(&second, members[1]);
        let source = DataSource::Webdataset { shards: vec![folder.path().join("{0..1}.tar").display().to_string()], keys: keys.clone() };
        let message = Dataset::open(&DataConfig { source, ..config(&[]) }).expect_err("there is no pair").to_string();
        for part in expected {
            assert!(message.contains(part), "{part} is not in: {message}");
        }
        message
    };
    let usual = SampleKeys::default();
    let looked_for = "looked for images jpg, png, jpeg, webp and captions txt, with names split at their first dot \
         (spec.data.webdataset.imageKeys, spec.data.webdataset.captionKeys, spec.data.webdataset.keySeparator)";
    check([&["0.gif", "0.json", "1.gif"], &["2.gif"]], &usual, &["none of the 3 samples", "0.tar and 1 more shard is usable", looked_for]);
    let message = check([&["0.gif", "0.json", "1.gif"], &["2.gif"]], &usual, &["found gif 3, json 1"]);
    assert!(message.ends_with("json 1"), "there is nothing to advise: {message}");
    check([&["README"], &[]], &usual, &["there is no sample in", "found no file with a dot in its name"]);
    check([&["0.jpg", "1.jpg"], &["0.txt", "1.txt"]], &usual, &["none of the 4 samples", "have to stand next to each other"]);
    check([&["a.b.jpg", "a.b.txt"], &[]], &usual, &["found b.jpg 1, b.txt 1", "spec.data.webdataset.keySeparator to LastDot"]);
    let others = SampleKeys { image: vec!["seg.png".to_owned()], ..usual };
    check([&["0.png", "0.txt"], &["1.png"]], &others, &["looked for images seg.png and captions txt", "found png 2, txt 1"]);
    let filtered = SampleKeys { filter: Some("similarity > 0.3".to_owned()), ..SampleKeys::default() };
    let leaves_out = "spec.data.webdataset.filter (`similarity > 0.3`) leaves out";
    let none = ["none of the 2 samples in", "passes the filter", leaves_out, "no_sidecar 2 (first 0)", "found jpg 2, txt 2"];
    check([&["0.jpg", "0.txt"], &["1.jpg", "1.txt"]], &filtered, &none);
    // What is written in these files is no JSON.
    check([&["0.jpg", "0.json", "0.txt"], &[]], &filtered, &["broken_sidecar 1 (first 0: the json is no JSON object"]);
    let wrong = SampleKeys { filter: Some("similarity >".to_owned()), ..SampleKeys::default() };
    let source = DataSource::Webdataset { shards: vec![first.display().to_string()], keys: wrong };
    let message = Dataset::open(&DataConfig { source, ..config(&[]) }).expect_err("no expression").to_string();
    assert!(message.starts_with("spec.data.webdataset.filter (`similarity >`) must be an expression in CEL: at character 13"), "{message}");
}

/// What is wrong with the contents of a file is said with the field that has led there, in a mixture with the source's place.
#[test]
fn what_cannot_be_used_is_said_with_the_field_that_names_it() {
    use lcl_trainer_config::{DocumentsConfig, MixedSource, MixtureConfig, MixtureUnit, Mmc4Config, Mmc4Images, ObelicsConfig};
    let folder = folder();
    let (noise, pairs) = (folder.path().join("docs_shard_1_v2.jsonl.zip"), folder.path().join("pairs.tar"));
    fs::write(&noise, [b"PK\x03\x04".as_slice(), &[7; 2000]].concat()).expect("a file");
    write_shard(&pairs, 0, 2);
    let list = |path: &Path| vec![path.display().to_string()];
    let mmc4 = |shard, images| {
        let images = Mmc4Images::Store { shards: list(images) };
        DataSource::Mmc4 { mmc4: Mmc4Config { shards: list(shard), images, min_similarity: 0.2, max_images: 6 } }
    };
    let obelics = |shard, images| DataSource::Obelics {
        obelics: ObelicsConfig { shards: list(shard), images: list(images), split: true, max_images: 6 },
    };
    let documents = DataSource::Documents { documents: DocumentsConfig { shards: list(&noise), max_images: 6 } };
    let words = |source| words_of(&Dataset::open(&DataConfig { source, ..config(&[]) }).expect_err("it cannot be used"));
    let sources = [
        (config(&[&noise]).source, "webdataset.shards: "),
        (documents, "webdataset.shards: "),
        (mmc4(&noise, &pairs), "mmc4.images.shards: of 1 shard of images"),
        (obelics(&noise, &pairs), "obelics.images: of 1 shard of images"),
    ];
    for (source, expected) in sources {
        let found = words(source.clone());
        assert!(found.starts_with(&format!("spec.data.{expected}")), "{expected}: {found}");
        let mixed = |name: &str, source| MixedSource { name: name.to_owned(), weight: 1, source };
        let sources = vec![mixed("a", config(&[&pairs]).source), mixed("b", source)];
        let found = words(DataSource::Mixture { mixture: MixtureConfig { by: MixtureUnit::Samples, sources } });
        assert!(found.starts_with(&format!("spec.data.mixture.sources[1].{expected}")), "{expected}: {found}");
    }
}

#[test]
fn samples_are_found_under_the_keys_that_are_configured() {
    let folder = folder();
    let path = folder.path().join("a.tar");
    write_members(&path, &["x.1.caption", "x.1.webp", "x.2.caption", "x.2.seg", "y.txt", "y.jpg"]);
    let open = |keys: SampleKeys| {
        let source = DataSource::Webdataset { shards: vec![path.display().to_string()], keys };
        let dataset = Dataset::open(&DataConfig { source, ..config(&[]) }).expect("the data set is opened");
        let usable = |sample: &u64| matches!(dataset.read(*sample), Ok(Reading::Sample(_)));
        let keys: Vec<String> =
            (0..dataset.samples_per_pass()).filter(usable).map(|sample| dataset.key(sample).expect("the key is read").1).collect();
        keys
    };
    let list = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
    assert_eq!(open(SampleKeys::default()), ["y"]);
    let behind_the_last_dot = SampleKeys {
        image: list(&["seg", "webp"]),
        caption: list(&["caption"]),
        separator: KeySeparator::LastDot,
        ..SampleKeys::default()
    };
    assert_eq!(open(behind_the_last_dot.clone()), ["x.1", "x.2"]);
    assert_eq!(open(SampleKeys { image: list(&["seg"]), ..behind_the_last_dot }), ["x.2"]);
    let first = SampleKeys { image: list(&["1.webp"]), caption: list(&["1.caption"]), ..SampleKeys::default() };
    assert_eq!(open(first), ["x"]);
}

/// Files of one sample that lie far apart are read one by one, the others in one go; whichever is drawn comes with the image.
#[test]
fn captions_of_several_files_are_read_wherever_they_lie() {
    let folder = folder();
    let path = folder.path().join("a.tar");
    let far = vec![b'x'; GAP_LIMIT as usize + 2000];
    let orders: [&[&str]; 4] =
        [&["jpg", "json", "txt"], &["txt", "far", "jpg", "json"], &["json", "far", "txt", "far2", "jpg"], &["jpg", "far", "json"]];
    let mut writer = ShardWriter::create(&path).expect("the shard is begun");
    for (sample, order) in orders.into_iter().enumerate() {
        for extension in order {
            let contents = match *extension {
                "jpg" => format!("image {sample}").into_bytes(),
                "json" => format!("{{\n    \"caption\": \"json {sample}\"\n}}").into_bytes(),
                "txt" => format!("txt {sample}").into_bytes(),
                _ => far.clone(),
            };
            writer.append_member(&sample.to_string(), extension, &contents).expect("written");
        }
    }
    writer.finish().expect("the shard is finished");
    let choice = |from| CaptionChoice { from, weight: 1 };
    let captions = vec![choice(CaptionFrom::Key("txt".to_owned())), choice(CaptionFrom::Json("caption".to_owned()))];
    let keys = SampleKeys { captions, ..SampleKeys::default() };
    let source = DataSource::Webdataset { shards: vec![path.display().to_string()], keys };
    let dataset = Dataset::open(&DataConfig { source, ..config(&[]) }).expect("the data set is opened");
    for (sample, order) in orders.into_iter().enumerate() {
        let read = |choose| match dataset.read_with(sample as u64, choose, |_| true).expect("the shard is read") {
            Reading::Sample(read) => (String::from_utf8_lossy(read.image()).into_owned(), read.caption),
            Reading::Skipped(cause) => panic!("sample {sample}: {cause}"),
        };
        let (image, first) = read(Choose::First);
        assert_eq!(image, format!("image {sample}"));
        assert_eq!(first, if order.contains(&"txt") { format!("txt {sample}") } else { format!("json {sample}") });
        let drawn: BTreeSet<String> = (0..40).map(|slot| read(Choose::Drawn(Draw { seed: 1, step: 1, slot })).1).collect();
        let expected = [format!("json {sample}"), format!("txt {sample}")];
        assert_eq!(drawn.into_iter().collect::<Vec<_>>(), if order.contains(&"txt") { &expected[..] } else { &expected[..1] });
    }
}
