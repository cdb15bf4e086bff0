use std::{fs, path::Path, sync::Mutex};

use lcl_trainer_config::{DataSource, DocumentsConfig, MixedSource, MixtureConfig, MixtureUnit, Mmc4Config, Mmc4Images, ObelicsConfig};

use super::*;
use crate::{
    image::to_png,
    mmc4::walk,
    shard::{ImageKind, ShardWriter},
};

fn fixtures(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// What is found, in the order of causes and members.
fn run(source: DataSource, index: &Path) -> (CheckReport, Vec<Finding>) {
    let config = DataConfig { index_path: Some(index.display().to_string()), threads: 2, ..DataConfig::new(source) };
    let (findings, last) = (Mutex::new(Vec::new()), AtomicU64::new(0));
    let report = check(
        &config,
        ListOrigin::Arguments,
        |finding| findings.lock().expect("no panic").push(finding.clone()),
        |done, of| {
            assert!(done <= of);
            last.fetch_max(done, Ordering::Relaxed);
        },
    );
    let report = report.expect("the data are checked");
    assert_eq!(last.into_inner(), report.samples, "progress ends with the last sample");
    let mut findings = findings.into_inner().expect("no panic");
    findings.sort_by(|left, right| (&left.shard, &left.cause, &left.member).cmp(&(&right.shard, &right.cause, &right.member)));
    (report, findings)
}

/// Members whose names are the sample's number: an image, and a caption.
fn write_pairs(path: &Path, images: &[&[u8]]) {
    let mut shard = ShardWriter::create(path).expect("a shard");
    for (number, image) in images.iter().enumerate() {
        shard.append(&number.to_string(), Some((ImageKind::Png, image)), (number != 1).then_some("caption")).expect("a sample");
    }
    shard.finish().expect("the shard is complete");
}

fn cause_and_place(finding: &Finding) -> (&str, &str, Option<u64>) {
    (&finding.cause, &finding.member, finding.byte)
}

#[test]
fn bad_pairs_and_a_shard_that_is_cut_short_are_named_with_their_bytes_and_the_rest_is_checked() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let image = to_png(&[0.5; 3 * 8 * 8], 8);
    write_pairs(&path("a.tar"), &[&image, &image, &image[..image.len() / 2], &image]);
    write_pairs(&path("b.tar"), &[&image, &image, &image]);
    write_pairs(&path("c{1}.tar"), &[&image]);
    let whole = fs::read(path("b.tar")).expect("the shard");
    fs::write(path("b.tar"), &whole[..1500]).expect("half of it");
    fs::write(path("list.txt"), "a.tar\nb.tar\nc{1}.tar\n").expect("the list");
    let source = DataSource::webdataset(vec![path("list.txt").display().to_string()]);
    let (report, findings) = run(source, folder.path());
    // A header, the image padded to a block, a header and the caption: 512 bytes each.
    let expected = [("no_caption", "1.png", Some(2560)), ("truncated_image", "2.png", Some(3584)), ("shard_cut_short", "", Some(1024))];
    assert_eq!(findings.iter().map(cause_and_place).collect::<Vec<_>>(), expected, "{findings:#?}");
    assert!(findings.iter().all(|finding| finding.bad && finding.count == 1));
    assert!(findings[2].detail.contains("1500 bytes") && findings[2].shard.ends_with("b.tar"), "{:?}", findings[2]);
    assert_eq!((report.shards, report.samples, report.images), (2, 5, 3));
    assert_eq!(report.bad.values().sum::<u64>(), 3);
}

#[test]
fn a_shard_without_a_sample_is_no_worse_when_another_one_cannot_be_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let image = to_png(&[0.5; 3 * 8 * 8], 8);
    write_pairs(&path("a.tar"), &[&image]);
    let mut shard = ShardWriter::create(&path("b.tar")).expect("a shard");
    shard.append("0", Some((ImageKind::Png, &image)), None).expect("a half of a sample");
    shard.finish().expect("the shard is complete");
    let causes = || {
        let (_, findings) = run(DataSource::webdataset(vec![path("*.tar").display().to_string()]), folder.path());
        findings.into_iter().map(|finding| finding.cause).collect::<Vec<_>>()
    };
    assert_eq!(causes(), ["no_caption"]);
    fs::write(path("c.tar"), "").expect("a shard");
    assert_eq!(causes(), ["no_caption", "shard_cut_short"]);
}

#[test]
fn documents_of_which_not_one_image_can_be_decoded_are_a_fault() {
    let folder = tempfile::tempdir().expect("a folder");
    // What lies there under the image's name is no file.
    fs::create_dir_all(folder.path().join("images/a.png")).expect("a folder");
    let image = r#"{"image_name": "a.png", "raw_url": "u", "matched_text_index": 0, "matched_sim": 0.5}"#;
    let line = format!(r#"{{"text_list": ["a"], "image_info": [{image}]}}"#);
    fs::write(folder.path().join("docs_shard_0_v2.jsonl"), line).expect("a shard");
    let (report, findings) = run(mmc4(folder.path()), folder.path());
    assert_eq!((report.images, report.bad.get("no_image_found")), (0, Some(&1)), "{report:?}");
    assert!(findings.iter().any(|found| found.bad && found.detail.starts_with("not one image of 1 sample can be decoded")), "{findings:?}");
}

fn mmc4(folder: &Path) -> DataSource {
    DataSource::Mmc4 {
        mmc4: Mmc4Config {
            shards: vec![folder.join("docs_shard_{0..3}_v2.jsonl").display().to_string()],
            images: Mmc4Images::Flat { folder: folder.join("images").display().to_string() },
            min_similarity: 0.24,
            max_images: 6,
        },
    }
}

#[test]
fn bad_lines_and_files_of_mmc4_are_faults_and_images_that_are_gone_are_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("images")).expect("a folder");
    for name in ["kept.png", "broken.png"] {
        fs::write(path("images").join(name), to_png(&[0.5; 3 * 8 * 8], 8)).expect("an image");
    }
    let bytes = fs::read(path("images/broken.png")).expect("the image");
    fs::write(path("images/broken.png"), &bytes[..40]).expect("a part of it");
    let line = |names: &[&str]| {
        let of = |(at, name): (usize, &&str)| serde_json::json!({ "image_name": name, "raw_url": "http://a/b", "matched_text_index": at, "matched_sim": 0.5 });
        serde_json::json!({ "text_list": ["a", "b"], "url": "http://a", "image_info": names.iter().enumerate().map(of).collect::<Vec<_>>() })
            .to_string()
    };
    let lines = [line(&["kept.png", "broken.png"]), "{\"text_list\":".to_owned(), line(&["gone.png"])];
    fs::write(path("docs_shard_0_v2.jsonl"), lines.join("\n")).expect("a shard");
    let (report, findings) = run(mmc4(folder.path()), folder.path());
    let found: Vec<(&str, bool, &str)> = findings.iter().map(|found| (found.cause.as_str(), found.bad, found.member.as_str())).collect();
    let at = lines[0].len() + 1;
    let line_two = format!("line 2 at byte {at} of the text");
    let document = findings.iter().find(|found| found.cause == "no_image_readable").map(|found| found.member.clone()).unwrap_or_default();
    assert!(document.contains(&format!("byte {}", at + lines[1].len() + 1)), "{document}");
    let expected = [
        ("line_cut_short", true, line_two.as_str()),
        ("no_image_readable", false, document.as_str()),
        ("truncated_image", true, "broken.png"),
        ("image_missing", false, "gone.png"),
    ];
    assert_eq!(found, expected, "{findings:#?}");
    assert!(findings[2].shard.ends_with("images/broken.png"));
    assert_eq!((report.samples, report.images), (2, 1));
    assert_eq!((report.bad.len(), report.left_out.len()), (2, 2), "{report:?}");
}

#[test]
fn an_archive_that_is_damaged_takes_no_other_shard_of_a_mixture_along() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = fixtures("mmc4/data");
    for shard in 0..2 {
        let name = format!("docs_shard_{shard}_v2.jsonl.zip");
        fs::copy(data.join(&name), folder.path().join(&name)).expect("a shard is copied");
    }
    let damaged = folder.path().join("docs_shard_1_v2.jsonl.zip");
    let mut bytes = fs::read(&damaged).expect("the shard");
    let middle = bytes.len() / 2;
    bytes[middle..middle + 64].fill(0xff);
    fs::write(&damaged, bytes).expect("the damaged shard");
    let obelics = fixtures("obelics");
    let entry = |path: &str| vec![obelics.join(path).display().to_string()];
    let obelics = ObelicsConfig { shards: entry("data/*.parquet"), images: entry("images/*.tar"), split: true, max_images: 6 };
    let mmc4 = Mmc4Config {
        shards: vec![folder.path().join("docs_shard_{0..1}_v2.jsonl.zip").display().to_string()],
        images: Mmc4Images::Flat { folder: fixtures("mmc4/images").display().to_string() },
        min_similarity: 0.24,
        max_images: 6,
    };
    let named = |name: &str, source| MixedSource { name: name.to_owned(), weight: 1, source };
    let sources = vec![named("pages", DataSource::Obelics { obelics }), named("c4", DataSource::Mmc4 { mmc4 })];
    let (report, findings) = run(DataSource::Mixture { mixture: MixtureConfig { by: MixtureUnit::Images, sources } }, folder.path());
    let of_shards: Vec<&Finding> = findings.iter().filter(|finding| finding.member.is_empty()).collect();
    assert_eq!(of_shards.len(), 1, "{findings:#?}");
    assert_eq!((of_shards[0].source.as_str(), of_shards[0].shard.as_path(), of_shards[0].bad), ("c4", damaged.as_path(), true));
    assert!(report.shards >= 2 && report.images > 20, "{report:?}");
    let mut lines = 0;
    walk(&folder.path().join("docs_shard_0_v2.jsonl.zip"), |_| lines += 1).expect("the sound shard");
    assert!(report.samples > lines / 2, "{report:?}");
}

/// Of a store of images what can be read is used, and the rest is named.
#[test]
fn a_shard_of_images_that_is_damaged_is_named_and_the_rest_is_checked() {
    let folder = tempfile::tempdir().expect("a folder");
    let fixtures = fixtures("obelics");
    let images = folder.path().join("images");
    fs::create_dir(&images).expect("a folder");
    let mut shards: Vec<PathBuf> =
        fs::read_dir(fixtures.join("images")).expect("images").map(|entry| entry.expect("an entry").path()).collect();
    shards.retain(|path| path.extension().is_some_and(|extension| extension == "tar"));
    shards.sort();
    for path in &shards {
        fs::copy(path, images.join(path.file_name().expect("a name"))).expect("a shard is copied");
    }
    let source = || {
        let images = vec![images.join("*.tar").display().to_string()];
        let shards = vec![fixtures.join("data/*.parquet").display().to_string()];
        DataSource::Obelics { obelics: ObelicsConfig { shards, images, split: true, max_images: 6 } }
    };
    let (sound, findings) = run(source(), &folder.path().join("sound"));
    assert!(findings.iter().all(|finding| !finding.bad), "{findings:#?}");
    // Cut behind a header that announces what does not come any more.
    let cut = images.join(shards[0].file_name().expect("a name"));
    let bytes = fs::read(&cut).expect("the shard");
    fs::write(&cut, &bytes[..bytes.len() / 2 / 512 * 512]).expect("half of it");
    let (report, findings) = run(source(), &folder.path().join("cut"));
    let bad: Vec<(&str, &Path)> =
        findings.iter().filter(|finding| finding.bad).map(|finding| (finding.cause.as_str(), finding.shard.as_path())).collect();
    assert_eq!(bad, [("shard_damaged", cut.as_path())], "{findings:#?}");
    assert!(shards.len() < 2 || (0 < report.images && report.images < sound.images), "{report:?}, {sound:?}");
}

#[test]
fn documents_in_tar_shards_are_named_by_their_keys() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.tar");
    let image = to_png(&[0.5; 3 * 8 * 8], 8);
    let mut shard = ShardWriter::create(&path).expect("a shard");
    let mut member = |key: &str, extension: &str, bytes: &[u8]| shard.append_member(key, extension, bytes).expect("a member");
    member("a", "json", br#"{"parts": [{"image": 0}, {"text": "a"}, {"image": 1}]}"#);
    member("a", "0.png", &image);
    member("a", "1.png", &image[..30]);
    member("b", "json", b"{");
    member("c", "0.png", &image);
    member("d", "json", br#"{"parts": [{"image": 0}]}"#);
    member("e", "json", br#"{"parts": [{"image": 0}]}"#);
    member("e", "0.png", &image);
    member("e", "0.jpg", &image);
    member("e", "0.png", &image);
    shard.finish().expect("the shard is complete");
    let documents = DocumentsConfig { shards: vec![path.display().to_string()], max_images: 6 };
    let (report, findings) = run(DataSource::Documents { documents }, folder.path());
    let found: Vec<(&str, bool, &str)> = findings.iter().map(|found| (found.cause.as_str(), found.bad, found.member.as_str())).collect();
    let expected = [
        ("bad_json", true, "b at byte 3072"),
        ("doubled_member", true, "e at byte 6144"),
        ("no_image_readable", false, "d at byte 5120"),
        ("no_json", true, "c at byte 4096"),
        ("truncated_image", true, "a.1"),
    ];
    assert_eq!(found, expected, "{findings:#?}");
    assert_eq!((report.samples, report.images, findings[4].byte), (1, 1, Some(2560)));
}

#[test]
fn what_concerns_all_shards_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("docs_shard_0_v2.jsonl"), "").expect("a shard");
    let config = DataConfig::new(mmc4(folder.path()));
    let error = check(&config, ListOrigin::Arguments, |_| {}, |_, _| {}).expect_err("there is no folder of images");
    assert!(matches!(error, DatasetError::Folder { .. }), "{error}");
}
