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
        true,
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
    let expected = [("no_caption", "1", Some(2048)), ("truncated_image", "2.png", Some(3584)), ("shard_cut_short", "", Some(1024))];
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
    // Without any, there is nothing more to say than what is wrong with each.
    let all: Vec<PathBuf> = shards.iter().map(|path| images.join(path.file_name().expect("a name"))).collect();
    for path in &all {
        fs::write(path, &bytes[..bytes.len() / 2 / 512 * 512]).expect("half of it");
    }
    let (report, findings) = run(source(), &folder.path().join("none"));
    assert_eq!(findings.iter().map(|finding| &finding.shard).collect::<Vec<_>>(), all.iter().collect::<Vec<_>>(), "{findings:#?}");
    assert!(findings.iter().all(|finding| finding.cause == "shard_damaged") && report.samples == 0, "{report:?}, {findings:#?}");
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
    let error = check(&config, ListOrigin::Arguments, false, |_| {}, |_, _| {}).expect_err("there is no folder of images");
    assert!(matches!(error, DatasetError::Folder { .. }), "{error}");
}

/// The causes, shards and members of what is bad.
fn bad(findings: &[Finding]) -> Vec<(&str, &str, &str)> {
    fn of(Finding { cause, member, shard, .. }: &Finding) -> (&str, &str, &str) {
        (cause, shard.file_name().and_then(|name| name.to_str()).unwrap_or_default(), member)
    }
    findings.iter().filter(|finding| finding.bad).map(of).collect()
}

#[test]
fn a_shard_that_changes_meanwhile_is_one_fault_with_its_name_and_the_others_are_checked() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let image = to_png(&[0.5; 3 * 8 * 8], 8);
    for (name, samples) in [("a.tar", 1), ("b.tar", 5), ("c.tar", 1)] {
        write_pairs(&path(name), &vec![image.as_slice(); samples]);
    }
    let source = DataSource::webdataset(vec![path("*.tar").display().to_string()]);
    let config = DataConfig { threads: 1, ..DataConfig::new(source) };
    let found = Mutex::new(Vec::new());
    let change = |done, _| {
        if done == 1 {
            let length = fs::metadata(path("b.tar")).expect("the shard").len();
            fs::write(path("b.tar"), vec![0; length as usize]).expect("another program writes to it");
        }
    };
    let report = check(&config, ListOrigin::Arguments, false, |finding| found.lock().expect("no panic").push(finding.clone()), change);
    let (report, found) = (report.expect("the others are checked"), found.into_inner().expect("no panic"));
    assert_eq!(bad(&found), [("shard_changed", "b.tar", "")], "{found:#?}");
    assert!(found[0].detail.contains("wait until it is complete and start again"), "{found:?}");
    assert_eq!((report.shards, report.samples, report.images), (2, 2, 2));
    assert_eq!(report.bad, BTreeMap::from([("shard_changed".to_owned(), 1)]));
}

#[test]
fn an_index_that_cannot_be_written_where_it_was_asked_for_is_the_error_and_no_fault_of_the_data() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("images")).expect("a folder");
    fs::write(path("images/a.png"), to_png(&[0.5; 3 * 8 * 8], 8)).expect("an image");
    let image = r#"{"image_name": "a.png", "raw_url": "u", "matched_text_index": 0, "matched_sim": 0.5}"#;
    for number in 0..2 {
        let line = format!(r#"{{"text_list": ["a"], "image_info": [{image}]}}"#);
        fs::write(path(&format!("docs_shard_{number}_v2.jsonl")), line).expect("a shard");
    }
    write_pairs(&path("a.tar"), &[&to_png(&[0.5; 3 * 8 * 8], 8)]);
    fs::write(path("file"), "").expect("a file");
    for source in [mmc4(folder.path()), DataSource::webdataset(vec![path("a.tar").display().to_string()])] {
        let index_path = Some(path("file").display().to_string());
        let config = DataConfig { index_path, threads: 2, ..DataConfig::new(source) };
        let error = check(&config, ListOrigin::Arguments, false, |found| panic!("{found:?}"), |_, _| {}).expect_err("no index");
        assert!(error.to_string().contains("set spec.data.indexPath (--index-path) to a folder"), "{error}");
    }
    let beside = fs::read_dir(folder.path()).expect("the folder").filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    assert!(beside.into_iter().all(|name| !name.contains(".lcl")), "nothing is written elsewhere");
}

#[test]
fn the_member_with_the_fault_is_named_and_what_is_wrong_with_it() {
    use lcl_trainer_config::{CaptionChoice, CaptionFrom, SampleKeys};
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.tar");
    let image = to_png(&[0.5; 3 * 8 * 8], 8);
    let long = "x".repeat(200);
    let write = |samples: &[(&str, &str, &[u8])]| {
        let mut shard = ShardWriter::create(&path).expect("a shard");
        for (key, ending, bytes) in samples {
            shard.append_member(key, "png", &image).expect("a member");
            shard.append_member(key, ending, bytes).expect("a member");
        }
        shard.finish().expect("the shard is complete");
    };
    let too_large = vec![b'x'; crate::dataset::CAPTION_BYTES_LIMIT as usize + 1];
    let check = |keys: SampleKeys, expected: &[(&str, &str, &str)]| {
        let source = DataSource::Webdataset { shards: vec![path.display().to_string()], keys };
        let (_, findings) = run(source, folder.path());
        let found: Vec<_> = findings.iter().map(|found| (found.cause.as_str(), found.member.as_str(), found.detail.as_str())).collect();
        assert_eq!(found, expected, "{findings:#?}");
        let bytes = fs::read(&path).expect("the shard");
        for Finding { member, byte, .. } in findings.iter().filter(|found| found.member.len() < 100 && found.member.contains('.')) {
            let header = &bytes[byte.expect("a byte") as usize - 512..];
            assert_eq!(&header[..member.len()], member.as_bytes(), "the byte is that of the member");
        }
    };
    write(&[
        ("sound", "txt", b"a"),
        ("blank", "txt", b" \n"),
        ("empty", "txt", b""),
        ("large", "txt", &too_large),
        ("none", "cls", b"1"),
        ("not-utf8", "txt", b"caf\xe9"),
        (&long, "txt", b"\xff"),
    ]);
    let long_text = format!("{long}.txt");
    check(
        SampleKeys::default(),
        &[
            ("caption_not_utf8", "not-utf8.txt", "its byte 3 is no UTF-8"),
            ("caption_not_utf8", &long_text, "its byte 0 is no UTF-8"),
            ("caption_too_large", "large.txt", "it has 1048577 bytes, more than 1048576"),
            ("no_caption", "blank.txt", "it holds nothing but white space"),
            ("no_caption", "empty.txt", "it has no bytes"),
            ("no_caption", "none", "there is no none.txt"),
        ],
    );
    write(&[
        ("broken", "json", b"{\"caption\": \n\"a}"),
        ("half", "json", b"{\"caption\": \"x \\ud83d cut\"}"),
        ("number", "json", b"{\"caption\": 7}"),
        ("null", "json", b"{\"caption\": null}"),
        ("sound", "json", b"{\"caption\": \"a\"}"),
    ]);
    let captions = vec![CaptionChoice { from: CaptionFrom::Json("caption".to_owned()), weight: 1 }];
    check(
        SampleKeys { captions, ..SampleKeys::default() },
        &[
            ("broken_sidecar", "broken.json", "the json is no JSON object: EOF while parsing a string at line 2 column 3"),
            ("broken_sidecar", "half.json", "the json is no JSON object: unexpected end of hex escape at line 1 column 22"),
            ("caption_not_text", "number.json", "its field `caption` is a number, and no text"),
            ("no_caption", "null.json", "no text in its field `caption`"),
        ],
    );
    // Where captions are drawn any of them may be, so that each is looked at, whichever is the first.
    let mut shard = ShardWriter::create(&path).expect("a shard");
    let samples: [(&str, &[u8], &[u8]); 5] = [
        ("broken", b"a", b"{"),
        ("number", b"a", b"{\"caption\": 7, \"alt\": [\"a\"]}"),
        ("second", b"\xff", b"{\"caption\": \"a\"}"),
        ("sound", b"a", b"{\"caption\": null}"),
        ("no-image", b"\xff", b"{\"alt\": \"a\"}"),
    ];
    for (key, text, json) in samples {
        let image: &[u8] = if key == "no-image" { b"none" } else { &image };
        for (ending, bytes) in [("png", image), ("txt", text), ("json", json)] {
            shard.append_member(key, ending, bytes).expect("a member");
        }
    }
    shard.finish().expect("the shard is complete");
    let choice = |from| CaptionChoice { from, weight: 1 };
    let field = |name: &str| choice(CaptionFrom::Json(name.to_owned()));
    let captions = vec![choice(CaptionFrom::Key("txt".to_owned())), field("caption"), field("alt"), field("caption")];
    check(
        SampleKeys { captions, ..SampleKeys::default() },
        &[
            ("broken_sidecar", "broken.json", "the json is no JSON object: EOF while parsing an object at line 1 column 1"),
            ("caption_not_text", "number.json", "its field `caption` is a number, and no text"),
            ("caption_not_text", "number.json", "its field `alt` is a list, and no text"),
            ("caption_not_utf8", "no-image.txt", "its byte 0 is no UTF-8"),
            ("caption_not_utf8", "second.txt", "its byte 0 is no UTF-8"),
            ("unsupported_image", "no-image.png", "unsupported image: the file begins with [6e, 6f, 6e, 65]"),
        ],
    );
}

#[test]
fn what_a_filter_leaves_out_is_counted_and_a_sidecar_that_is_no_json_is_a_fault() {
    use lcl_trainer_config::SampleKeys;
    let folder = tempfile::tempdir().expect("a folder");
    let image = to_png(&[0.5; 3 * 8 * 8], 8);
    for name in ["a.tar", "b.tar"] {
        let mut shard = ShardWriter::create(&folder.path().join(name)).expect("a shard");
        let sidecars: [(&str, &[u8]); 6] =
            [("0", br#"{"s": 1}"#), ("1", br#"{"s": 0}"#), ("2", b"{"), ("3", b"[]"), ("4", b"{}"), ("5", br#"{"s": 0}"#)];
        for (key, json) in sidecars {
            for (ending, bytes) in [("png", image.as_slice()), ("json", json), ("txt", b"a")] {
                shard.append_member(key, ending, bytes).expect("a member");
            }
        }
        shard.finish().expect("the shard is complete");
    }
    let keys = SampleKeys { filter: Some("s > 0.5".to_owned()), ..SampleKeys::default() };
    let source = DataSource::Webdataset { shards: vec![folder.path().join("*.tar").display().to_string()], keys };
    let (report, findings) = run(source, folder.path());
    let expected = ["a.tar", "b.tar"].map(|shard| [("broken_sidecar", shard, "2.json"), ("broken_sidecar", shard, "3.json")]).concat();
    assert_eq!(bad(&findings), expected, "{findings:#?}");
    assert!(findings.iter().any(|found| found.cause == "missing_field" && found.member == "4.json" && found.detail == "s"), "{findings:?}");
    let counts = |counts: &[(&str, u64)]| counts.iter().map(|(cause, count)| ((*cause).to_owned(), *count)).collect::<BTreeMap<_, _>>();
    assert_eq!(report.bad, counts(&[("broken_sidecar", 4)]));
    assert_eq!(report.left_out, counts(&[("excluded", 4), ("missing_field", 2)]));
}

/// A line of MMC4 that gives a sample, and its image in the folder.
fn good_line(folder: &Path) -> String {
    fs::create_dir(folder.join("images")).expect("a folder");
    fs::write(folder.join("images/a.png"), to_png(&[0.5; 3 * 8 * 8], 8)).expect("an image");
    let image = r#"{"image_name": "a.png", "raw_url": "u", "matched_text_index": 0, "matched_sim": 0.5}"#;
    format!(r#"{{"text_list": ["a"], "image_info": [{image}]}}"#)
}

#[test]
fn every_bad_line_of_a_shard_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let line = good_line(folder.path());
    let text = format!("[]\n{line}\n7\n[]\n{}", r#"{"text_list": ["a"], "image_info": []}"#);
    fs::write(folder.path().join("docs_shard_0_v2.jsonl"), text).expect("a shard");
    let (report, findings) = run(mmc4(folder.path()), folder.path());
    let lines: Vec<&str> = bad(&findings).iter().map(|(.., member)| member.split(" at ").next().unwrap_or_default()).collect();
    assert_eq!(lines, ["line 1", "line 3", "line 4"], "{findings:#?}");
    assert!(findings.iter().all(|finding| finding.count == 1));
    assert_eq!(report.bad, BTreeMap::from([("line_not_an_object".to_owned(), 3)]));
    assert_eq!(report.left_out, BTreeMap::from([("no_image_above_threshold".to_owned(), 1)]));
}

#[test]
fn of_many_bad_lines_the_first_are_named_and_the_others_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    let line = good_line(folder.path());
    let count = crate::documents::NAMED_LIMIT + 7;
    fs::write(folder.path().join("docs_shard_0_v2.jsonl"), "7\n".repeat(count) + &line).expect("a shard");
    let (report, findings) = run(mmc4(folder.path()), folder.path());
    assert_eq!(report.bad["line_not_an_object"], count as u64);
    let more: Vec<(&str, u64)> =
        findings.iter().filter(|found| found.count > 1).map(|found| (found.member.as_str(), found.count)).collect();
    assert_eq!((findings.len(), more), (crate::documents::NAMED_LIMIT + 1, vec![("", 7)]));
}

#[test]
fn a_link_among_the_images_that_leads_to_itself_is_an_image_that_is_not_there() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join("images")).expect("a folder");
    std::os::unix::fs::symlink("b.png", folder.path().join("images/b.png")).expect("a link");
    fs::write(folder.path().join("images/a.png"), to_png(&[0.5; 3 * 8 * 8], 8)).expect("an image");
    let image = |name: &str| format!(r#"{{"image_name": "{name}", "raw_url": "u", "matched_text_index": 0, "matched_sim": 0.5}}"#);
    let line = |name: &str| format!(r#"{{"text_list": ["a"], "image_info": [{}]}}"#, image(name));
    fs::write(folder.path().join("docs_shard_0_v2.jsonl"), [line("b.png"), line("a.png")].join("\n")).expect("a shard");
    let (report, findings) = run(mmc4(folder.path()), folder.path());
    assert!(findings.iter().any(|found| found.cause == "image_missing" && found.member == "b.png"), "{findings:#?}");
    assert_eq!((report.images, report.samples, report.bad.len()), (1, 2, 0));
}

#[test]
fn what_a_store_of_images_lacks_is_named_by_its_documents_and_what_is_damaged_in_it_by_its_member() {
    let folder = tempfile::tempdir().expect("a folder");
    let fixtures = fixtures("obelics");
    let images = folder.path().join("images");
    fs::create_dir(&images).expect("a folder");
    for entry in fs::read_dir(fixtures.join("images")).expect("images") {
        let path = entry.expect("an entry").path();
        fs::copy(&path, images.join(path.file_name().expect("a name"))).expect("it is copied");
    }
    let mut shard = ShardWriter::create(&images.join("z.tar")).expect("a shard");
    for (key, json) in [("0", "{\"url\": "), ("1", "{\"url\": 7}"), ("2", "{\"url\": \"http://z\"}")] {
        shard.append_member(key, "png", &to_png(&[0.5; 3 * 8 * 8], 8)).expect("a member");
        shard.append_member(key, "json", json.as_bytes()).expect("a member");
    }
    shard.finish().expect("the shard is complete");
    let obelics = ObelicsConfig {
        shards: vec![fixtures.join("data/*.parquet").display().to_string()],
        images: vec![images.join("*.tar").display().to_string()],
        split: true,
        max_images: 6,
    };
    let (report, findings) = run(DataSource::Obelics { obelics }, folder.path());
    assert_eq!(bad(&findings), [("metadata_damaged", "z.tar", "0.json"), ("no_address", "z.tar", "1.json")], "{findings:#?}");
    let named = |cause: &str| findings.iter().filter(|found| found.cause == cause).collect::<Vec<_>>();
    for missing in named("image_missing") {
        assert!(missing.shard.extension().is_some_and(|ending| ending == "parquet") && missing.member.starts_with("row "), "{missing:?}");
        assert!(!missing.detail.is_empty(), "the address is named");
    }
    let unstored = named("no_image_stored");
    assert!(unstored.iter().all(|found| found.count == 1 && found.member.starts_with("row ")), "{unstored:?}");
    assert_eq!(unstored.len() as u64, report.left_out.get("no_image_stored").copied().unwrap_or(0));
    assert!(!unstored.is_empty() && !named("image_missing").is_empty(), "the fixture has both");
}
