//! Tables of stores that are written here: against a map in memory, with weak hashes, damaged, stale, and made by a process that is killed.

use std::{
    collections::HashMap,
    env, fs,
    fs::File,
    num::NonZero,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, abort},
    time::{Duration, UNIX_EPOCH},
};

use proptest::prelude::*;

use super::{
    build::build_with,
    layout::PAGE_BYTES,
    record::{Digest, Hash, RECORD_BYTES, digest},
    *,
};
use crate::shard::{ShardWriter, is_header};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn options(memory_bytes: usize, threads: usize) -> BuildOptions {
    BuildOptions { memory_bytes, threads: NonZero::new(threads).expect("at least one thread") }
}

fn address(number: usize) -> String {
    format!("https://images.example/{number}?größe=\"1\"")
}

/// The image of a sample tells where it is.
fn image(shard: usize, sample: usize) -> String {
    format!("image {sample} of shard {shard}")
}

/// Writes a store whose shards have images of these addresses, as img2dataset does.
fn write_store(folder: &Path, shards: &[Vec<usize>]) -> Vec<PathBuf> {
    let write = |(shard, numbers): (usize, &Vec<usize>)| {
        let path = folder.join(format!("{shard:05}.tar"));
        let mut writer = ShardWriter::create(&path).expect("the shard is begun");
        for (sample, number) in numbers.iter().enumerate() {
            let key = format!("{shard:05}{sample:04}");
            let metadata = serde_json::json!({ "url": address(*number), "key": key, "status": "success", "exif": "{}" });
            let ending = ["jpg", "png", "webp"][sample % 3];
            writer.append_member(&key, ending, image(shard, sample).as_bytes()).expect("an image is written");
            writer.append_member(&key, "json", metadata.to_string().as_bytes()).expect("metadata is written");
        }
        writer.finish().expect("the shard is finished");
        path
    };
    shards.iter().enumerate().map(write).collect()
}

fn contents(shards: &[PathBuf], place: Place) -> String {
    let mut bytes = vec![0; 512 + place.extent.length as usize];
    let shard = File::open(&shards[place.shard]).expect("the shard is there");
    shard.read_exact_at(&mut bytes, place.extent.offset - 512).expect("the image is read");
    assert!(is_header(&bytes[..512]), "no header before the image");
    String::from_utf8(bytes.split_off(512)).expect("an image of ours")
}

/// The image that the table gives for an address.
fn found(table: &AddressTable, shards: &[PathBuf], number: usize) -> Option<String> {
    table.find(&address(number)).expect("the table is read").map(|place| contents(shards, place))
}

/// Most addresses have one key, so that its run is longer than a page; the others lie on both sides of it.
fn weak(address: &str) -> Digest {
    let sound = digest(address);
    let key = if sound.key.is_multiple_of(4) { sound.key } else { u64::MAX / 2 };
    Digest { key, check: sound.check }
}

/// Keys are all different, checks all the same.
fn without_check(address: &str) -> Digest {
    Digest { check: 0, ..digest(address) }
}

fn stores() -> impl Strategy<Value = Vec<Vec<usize>>> {
    // Addresses repeat within a shard and between shards.
    prop::collection::vec(prop::collection::vec(0usize..400, 0..150), 1..5)
}

proptest! {
    // Each case writes a store and up to some dozen working files.
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_table_finds_what_a_map_finds(
        store in stores(),
        memory in 0usize..8_000,
        threads in 1usize..4,
        hash in prop::sample::select(vec![digest as Hash, weak, without_check]),
    ) {
        let folder = folder();
        let shards = write_store(folder.path(), &store);
        let mut expected: HashMap<usize, String> = HashMap::new();
        let samples = store.iter().enumerate().flat_map(|(shard, numbers)| numbers.iter().enumerate().map(move |(sample, number)| (shard, sample, number)));
        for (shard, sample, number) in samples {
            expected.entry(*number).or_insert_with(|| image(shard, sample));
        }
        let path = folder.path().join("table");
        let built = build_with(&shards, &path, &options(memory, threads), hash, |_| {});
        if expected.is_empty() {
            let refused = matches!(built, Err(StoreError::NoImage { .. }));
            prop_assert!(refused);
            prop_assert!(!path.exists());
            return Ok(());
        }
        let report = built.expect("the table is made");
        let images: usize = store.iter().map(Vec::len).sum();
        prop_assert_eq!((report.addresses, report.repeated), (expected.len() as u64, (images - expected.len()) as u64));
        let table = AddressTable::open_with(&path, hash).expect("the table is opened");
        prop_assert_eq!((table.addresses(), table.shards()), (expected.len() as u64, shards.len()));
        for number in 0..800 {
            prop_assert_eq!(found(&table, &shards, number), expected.get(&number).cloned());
        }
    }
}

#[test]
fn the_bytes_of_a_table_depend_on_the_store_alone() {
    let folder = folder();
    let shards = write_store(folder.path(), &[(0..700).collect(), (300..900).collect(), (850..1_000).rev().collect()]);
    let bytes = |memory, threads| {
        let path = folder.path().join("table");
        build_table(&shards, &path, &options(memory, threads), |_| {}).expect("the table is made");
        fs::read(&path).expect("the table is read")
    };
    let expected = bytes(1 << 20, 1);
    for (memory, threads) in [(0, 3), (2_000, 2), (RECORD_BYTES * 500, 4)] {
        assert!(bytes(memory, threads) == expected, "{memory} bytes, {threads} threads");
    }
    // Three shards, the table, and nothing else.
    assert_eq!(fs::read_dir(folder.path()).expect("the folder is read").count(), 4);
}

#[test]
fn addresses_are_compared_byte_for_byte() {
    let folder = folder();
    let shards = write_store(folder.path(), &[vec![1]]);
    let path = folder.path().join("table");
    build_table(&shards, &path, &options(1 << 20, 1), |_| {}).expect("the table is made");
    let table = AddressTable::open(&path).expect("the table is opened");
    let is_there = |address: &str| table.find(address).expect("the table is read").is_some();
    assert!(is_there("https://images.example/1?größe=\"1\""));
    for other in [
        "HTTPS://images.example/1?größe=\"1\"",
        "https://images.example/1?gr%C3%B6%C3%9Fe=\"1\"",
        "https://images.example/1?größe=\"1\" ",
        "",
    ] {
        assert!(!is_there(other), "{other}");
    }
}

#[test]
fn two_addresses_of_one_digest_are_taken_for_one() {
    let folder = folder();
    let shards = write_store(folder.path(), &[vec![1, 2], vec![3]]);
    let path = folder.path().join("table");
    let same: Hash = |_| Digest { key: 5, check: 6 };
    let report = build_with(&shards, &path, &options(0, 1), same, |_| {}).expect("the table is made");
    assert_eq!((report.addresses, report.repeated), (1, 2));
    let table = AddressTable::open_with(&path, same).expect("the table is opened");
    assert_eq!(found(&table, &shards, 9), Some(image(0, 0)));
}

#[test]
fn samples_without_an_address_are_counted_with_the_first_of_each_cause() {
    let folder = folder();
    let path = folder.path().join("0.tar");
    let mut writer = ShardWriter::create(&path).expect("the shard is begun");
    let good = br#"{"url": "http://a"}"#;
    let members: [(&str, &str, &[u8]); 12] = [
        ("a", "jpg", b"image"),
        ("a", "json", good),
        ("b", "json", good),
        ("c", "jpg", b"image"),
        ("d", "jpg", b"image"),
        ("e", "jpg", b"image"),
        ("e", "json", b"{}"),
        ("f", "jpg", b"image"),
        ("f", "json", b"{"),
        ("g", "jpg", b"image"),
        ("g", "jpg", b"image"),
        ("g", "json", good),
    ];
    for (key, extension, contents) in members {
        writer.append_member(key, extension, contents).expect("a member is written");
    }
    writer.finish().expect("the shard is finished");
    let report = build_table(std::slice::from_ref(&path), &folder.path().join("table"), &options(0, 1), |_| {}).expect("one is good");
    let left: Vec<String> = report.left_out.iter().map(|(cause, left)| format!("{cause} {} {}", left.count, left.first)).collect();
    let at = |key: &str| format!("{key} in {}", path.display());
    let expected =
        [("no_image 1", "b"), ("no_metadata 2", "c"), ("doubled_member 1", "g"), ("metadata_damaged 1", "f"), ("no_address 1", "e")];
    assert_eq!(left, expected.map(|(cause, key)| format!("{cause} {}", at(key))));
    assert_eq!(report.addresses, 1);
}

#[test]
fn a_store_without_metadata_is_refused_with_what_was_found() {
    let folder = folder();
    let path = folder.path().join("0.tar");
    let mut writer = ShardWriter::create(&path).expect("the shard is begun");
    writer.append_member("7", "jpg", b"image").expect("a member is written");
    writer.finish().expect("the shard is finished");
    let table = folder.path().join("table");
    let error = build_table(std::slice::from_ref(&path), &table, &options(0, 1), |_| {}).expect_err("there is no address");
    let message = error.to_string();
    assert!(message.contains("KEY.json") && message.contains("no_metadata: 1, first 7 in ") && message.contains("0.tar"), "{message}");
    assert!(!table.exists());
}

#[test]
fn a_damaged_shard_ends_the_build_by_name_and_the_first_one_is_named() {
    let folder = folder();
    let shards = write_store(folder.path(), &[vec![1; 50], vec![2; 50], vec![3; 50], vec![4; 50]]);
    for damaged in [1, 3] {
        File::options().write(true).open(&shards[damaged]).and_then(|file| file.set_len(5_000)).expect("the shard is cut");
    }
    let table = folder.path().join("table");
    for threads in 1..5 {
        let error = build_table(&shards, &table, &options(100, threads), |_| {}).expect_err("two shards are cut short");
        assert!(error.to_string().contains("00001.tar is cut short"), "{error}");
    }
    assert_eq!(fs::read_dir(folder.path()).expect("the folder is read").count(), 4, "something was left");
}

#[test]
fn every_damaged_byte_is_noticed_by_who_needs_it() {
    let folder = folder();
    let shards = write_store(folder.path(), &[(0..400).collect()]);
    let path = folder.path().join("table");
    build_table(&shards, &path, &options(1 << 20, 1), |_| {}).expect("the table is made");
    let sound = fs::read(&path).expect("the table is read");
    let header = 60;
    // The rest of the first page is never read.
    let places = (0..52).chain((PAGE_BYTES..sound.len()).step_by(97)).chain(sound.len() - 200..sound.len());
    for place in places {
        let mut damaged = sound.clone();
        damaged[place] ^= 0x10;
        fs::write(&path, &damaged).expect("the table is written");
        let errors: Vec<StoreError> = match AddressTable::open(&path) {
            Err(error) => vec![error],
            Ok(table) => {
                assert!(place > header);
                (0..400).filter_map(|number| table.find(&address(number)).err()).collect()
            }
        };
        assert!(!errors.is_empty(), "byte {place} is not noticed");
        assert!(
            errors.iter().all(|error| matches!(error, StoreError::Damaged { .. } | StoreError::NotATable { .. })),
            "byte {place}: {errors:?}"
        );
    }
    for length in [0, 8, 4_095, 4_096, 8_192, sound.len() - 1] {
        fs::write(&path, &sound[..length]).expect("the table is written");
        let error = AddressTable::open(&path).expect_err("the table is cut short");
        assert!(matches!(error, StoreError::Damaged { .. } | StoreError::NotATable { .. }), "{length} bytes: {error}");
        assert!(error.to_string().contains("make it again"), "{error}");
    }
    fs::write(&path, &sound).expect("the table is written");
    let table = AddressTable::open(&path).expect("the table is sound");
    File::options().write(true).open(&path).and_then(|file| file.set_len(5_000)).expect("the table is cut");
    assert!(matches!(table.find(&address(1)), Err(StoreError::Damaged { .. })), "it was cut after it was opened");
}

#[test]
fn a_table_that_is_not_there_and_one_of_other_shards_are_told() {
    let folder = folder();
    let path = folder.path().join("table");
    let error = AddressTable::open(&path).expect_err("there is no table");
    assert!(matches!(error, StoreError::Missing { .. }) && error.to_string().contains("table"), "{error}");

    let shards = write_store(folder.path(), &[vec![1], vec![2], vec![3]]);
    build_table(&shards, &path, &options(0, 1), |_| {}).expect("the table is made");
    let table = AddressTable::open(&path).expect("the table is opened");
    let check = |shards: &[PathBuf]| table.check_shards(shards, NonZero::<usize>::MIN);
    check(&shards).expect("the shards are the same");
    let error = check(&shards[..2]).expect_err("one is missing");
    assert!(error.to_string().contains("3 shards, but the store has 2"), "{error}");
    let other_order = [shards[0].clone(), shards[2].clone(), shards[1].clone()];
    let error = check(&other_order).expect_err("two are exchanged");
    assert!(error.to_string().contains("00002.tar") && error.to_string().contains("00001.tar of"), "{error}");
    // The same size, another time: another download.
    let touch = |file: File| file.set_modified(UNIX_EPOCH + Duration::from_secs(1_000));
    File::options().write(true).open(&shards[1]).and_then(touch).expect("the time is set");
    assert!(matches!(check(&shards), Err(StoreError::Stale { shard, .. }) if shard == shards[1]));
    fs::remove_file(&shards[0]).expect("the shard is removed");
    assert!(matches!(check(&shards), Err(StoreError::Shard(ShardError::Missing { .. }))));
}

/// Where the process that is to be killed finds its store; with it the stage at which that happens.
const KILLED: &str = "LCL_DATA_KILLED_BUILD";

#[test]
fn a_build_that_is_killed_leaves_nothing_that_is_taken_for_a_table() {
    let folder = folder();
    let shards = write_store(folder.path(), &[(0..400).collect(), (300..700).collect()]);
    let path = folder.path().join("table");
    for (round, stage) in ["scanned", "written", "scanned", "written"].into_iter().enumerate() {
        let before = fs::read(&path).ok();
        assert_eq!(before.is_some(), round >= 2, "the last two rounds replace a table");
        let child = Command::new(env::current_exe().expect("this program"))
            .args(["--exact", "store::tests::child_that_is_killed", "--include-ignored"])
            .env(KILLED, format!("{stage}:{}", folder.path().display()))
            .output()
            .expect("the child runs");
        assert!(child.status.code().is_none(), "the child was not killed: {child:?}");
        assert_eq!(fs::read(&path).ok(), before, "{stage}");
        for entry in fs::read_dir(folder.path()).expect("the folder is read") {
            let entry = entry.expect("an entry").path();
            if entry != path && entry.extension().is_none_or(|ending| ending != "tar") {
                assert!(matches!(AddressTable::open(&entry), Err(StoreError::NotATable { .. })), "{}", entry.display());
                fs::remove_file(entry).expect("it is removed");
            }
        }
        if round == 1 {
            build_table(&shards, &path, &options(1_000, 2), |_| {}).expect("the table is made");
        }
    }
}

#[test]
#[ignore = "kills the process that runs it; another test starts it"]
fn child_that_is_killed() {
    let Some((stage, folder)) = env::var(KILLED).ok().and_then(|told| told.split_once(':').map(|(a, b)| (a.to_owned(), PathBuf::from(b))))
    else {
        return;
    };
    let shards = [folder.join("00000.tar"), folder.join("00001.tar")];
    let _ = build_table(&shards, &folder.join("table"), &options(1_000, 1), |progress| match progress {
        Progress::Scanned { shards: 2, .. } if stage == "scanned" => abort(),
        Progress::Written { addresses: 700, .. } if stage == "written" => abort(),
        _ => {}
    });
}
