//! Indexes of real shards: fresh, stale, damaged, in every place they can lie, and by many processes at once.

use std::{fs, num::NonZero, os::unix::fs::FileExt, time::Duration};

use lcl_trainer_config::{CaptionChoice, CaptionFrom};

use super::*;
use crate::shard::{ImageKind, ShardWriter};

fn write_shard(path: &Path, samples: usize) {
    let mut writer = ShardWriter::create(path).expect("the shard is begun");
    for number in 0..samples {
        writer
            .append(&format!("{number:05}"), Some((ImageKind::Jpg, &vec![number as u8; 900 + number])), Some("text"))
            .expect("a sample is written");
    }
    writer.finish().expect("the shard is finished");
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// The index for the usual keys.
fn open(shard: &Path, folder: Option<&Path>) -> Result<ShardIndex, IndexError> {
    ShardIndex::open(shard, folder, &SampleKeys::default())
}

/// All records, read as the data set does.
fn records(index: &ShardIndex) -> Result<Vec<Record>, IndexError> {
    (0..index.count()).map(|number| index.record(number, |path, at, buffer| File::open(path)?.read_exact_at(buffer, at))).collect()
}

/// Sets the time of change, so that no test depends on how fast the clock ticks.
fn touch(path: &Path, seconds: u64) {
    let time = std::time::UNIX_EPOCH + Duration::from_secs(seconds);
    File::options().write(true).open(path).and_then(|file| file.set_modified(time)).expect("the time is set");
}

fn in_memory(index: &ShardIndex) -> bool {
    matches!(*index.store.read().expect("no test panicked with it"), Store::Memory(_))
}

#[test]
fn the_index_names_every_member_of_every_sample() {
    let folder = folder();
    let shard = folder.path().join("a.tar");
    write_shard(&shard, 20);
    let bytes = fs::read(&shard).expect("the shard is read");
    let index = open(&shard, None).expect("the index is built");
    assert!(!in_memory(&index) && folder.path().join("a.tar.lclindex").is_file());
    assert_eq!((index.count(), index.shard_length()), (20, bytes.len() as u64));
    for (number, record) in records(&index).expect("the records are read").into_iter().enumerate() {
        let (key, image) = record.image.expect("there is an image");
        let caption = record.caption.expect("there is a caption");
        let contents = |extent: Extent| &bytes[extent.offset as usize..][..extent.length as usize];
        assert_eq!((key, contents(image)), (0, vec![number as u8; 900 + number].as_slice()));
        assert_eq!(contents(caption), b"text");
        assert_eq!(shard::name_at(&shard, record.start).expect("the name is read"), format!("{number:05}.jpg"));
    }
}

#[test]
fn a_usable_index_is_taken_as_it_is() {
    let folder = folder();
    let shard = folder.path().join("a.tar");
    write_shard(&shard, 3);
    open(&shard, None).expect("the index is built");
    let file = folder.path().join("a.tar.lclindex");
    touch(&file, 1000);
    open(&shard, None).expect("the index is opened");
    let changed = fs::metadata(&file).and_then(|metadata| metadata.modified()).expect("the index has a time");
    assert_eq!(changed, std::time::UNIX_EPOCH + Duration::from_secs(1000), "it was written again");
}

#[test]
fn a_shard_of_another_size_or_time_is_indexed_again() {
    let folder = folder();
    let shard = folder.path().join("a.tar");
    write_shard(&shard, 3);
    touch(&shard, 1000);
    assert_eq!(open(&shard, None).expect("the index is built").count(), 3);
    // Another size at the same time.
    write_shard(&shard, 5);
    touch(&shard, 1000);
    assert_eq!(open(&shard, None).expect("the index is built").count(), 5);
    // The same size at another time: two files change places.
    let bytes = fs::read(&shard).expect("the shard is read");
    let mut swapped = ShardWriter::create(&shard).expect("the shard is begun");
    swapped.append("zzzzz", Some((ImageKind::Jpg, &vec![9; bytes.len() - 512 * 5])), Some("only one")).expect("a sample is written");
    swapped.finish().expect("the shard is finished");
    let length = fs::metadata(&shard).expect("the shard is there").len();
    assert_eq!(length, bytes.len() as u64, "the test needs equal sizes");
    touch(&shard, 2000);
    let index = open(&shard, None).expect("the index is built");
    assert_eq!((index.count(), records(&index).expect("the records are read").len()), (1, 1));
}

#[test]
fn an_index_that_is_damaged_anywhere_is_built_again() {
    let folder = folder();
    let shard = folder.path().join("a.tar");
    write_shard(&shard, 4);
    let expected = records(&open(&shard, None).expect("the index is built")).expect("the records are read");
    let file = folder.path().join("a.tar.lclindex");
    let sound = fs::read(&file).expect("the index is read");
    let mut cases: Vec<Vec<u8>> =
        (0..sound.len()).map(|at| sound.iter().enumerate().map(|(i, byte)| if i == at { byte ^ 0x10 } else { *byte }).collect()).collect();
    cases.extend([Vec::new(), sound[..30].to_vec(), sound[..sound.len() - 1].to_vec(), [sound.clone(), vec![0]].concat(), vec![b'x'; 500]]);
    for damaged in cases {
        fs::write(&file, &damaged).expect("the index is damaged");
        let index = open(&shard, None).expect("the index is opened or built");
        assert_eq!(records(&index).expect("the records are read"), expected);
        assert_eq!(fs::read(&file).expect("the index is read"), sound, "the file was mended");
    }
}

#[test]
fn an_index_that_vanishes_or_shrinks_during_the_run_is_built_again() {
    for damage in [|file: &Path| fs::remove_file(file).expect("removed"), |file: &Path| fs::write(file, "short").expect("shortened")] {
        let folder = folder();
        let shard = folder.path().join("a.tar");
        write_shard(&shard, 4);
        let index = open(&shard, None).expect("the index is built");
        let expected = records(&index).expect("the records are read");
        damage(&folder.path().join("a.tar.lclindex"));
        assert_eq!(records(&index).expect("the records are read"), expected);
    }
}

#[test]
fn a_shard_replaced_during_the_run_is_an_error_when_its_index_has_to_be_built_again() {
    let folder = folder();
    let shard = folder.path().join("a.tar");
    write_shard(&shard, 4);
    let index = open(&shard, None).expect("the index is built");
    write_shard(&shard, 6);
    // Another process has indexed the new shard; its records do not pass for the old one's.
    fs::remove_file(folder.path().join("a.tar.lclindex")).expect("the index is removed");
    open(&shard, None).expect("the index is built");
    let error = records(&index).expect_err("the shard is another one");
    assert!(matches!(&error, IndexError::ShardChanged { shard: named } if *named == shard), "{error:?}");
}

#[test]
fn the_index_goes_to_the_index_folder_when_there_is_one() {
    let (data, indexes) = (folder(), folder());
    let (first, second) = (data.path().join("x/a.tar"), data.path().join("y/a.tar"));
    for (shard, samples) in [(&first, 2), (&second, 3)] {
        fs::create_dir_all(shard.parent().expect("a folder")).expect("the folder is made");
        write_shard(shard, samples);
    }
    for _ in 0..2 {
        // Shards of the same name do not meet.
        assert_eq!(open(&first, Some(indexes.path())).expect("the index is opened").count(), 2);
        assert_eq!(open(&second, Some(indexes.path())).expect("the index is opened").count(), 3);
    }
    let beside = fs::read_dir(data.path().join("x")).expect("the folder is listed").count();
    assert_eq!(beside, 1, "nothing was written beside the shard");
    assert!(index_files(&first, Some(indexes.path()), &SampleKeys::default())[0].starts_with(indexes.path()));
}

#[test]
fn an_index_beside_the_shard_serves_even_with_an_index_folder() {
    let (data, indexes) = (folder(), folder());
    let shard = data.path().join("a.tar");
    write_shard(&shard, 2);
    open(&shard, None).expect("the index is built");
    open(&shard, Some(indexes.path())).expect("the index is opened");
    assert_eq!(fs::read_dir(indexes.path()).expect("the folder is listed").count(), 0);
}

/// A shard in a folder where nobody, not even root, can make a file: that of a process's open files.
fn in_unwritable_folder(shard: &Path) -> (File, PathBuf) {
    use std::os::fd::AsRawFd;
    let file = File::open(shard).expect("the shard is opened");
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    (file, path)
}

#[test]
fn without_a_place_to_write_the_index_stays_in_memory() {
    let data = folder();
    let shard = data.path().join("a.tar");
    write_shard(&shard, 7);
    let (_open, unwritable) = in_unwritable_folder(&shard);
    let index = open(&unwritable, None).expect("the index is built");
    assert!(in_memory(&index));
    assert_eq!(records(&index).expect("the records are in memory").len(), 7);
    // Whoever asks for index files is told at once: it is no fault of the shards.
    let asked = index_shards(&[unwritable.clone(), shard.clone()], None, &SampleKeys::default(), NonZero::<usize>::MIN);
    assert!(matches!(&asked, Err(IndexError::Write { shard, .. }) if *shard == unwritable), "{asked:?}");
}

#[test]
fn an_index_is_written_to_the_folder_that_is_named_and_nowhere_else() {
    let data = folder();
    let shard = data.path().join("a.tar");
    write_shard(&shard, 7);
    // A folder below a file cannot be made.
    for folder in [&shard, &shard.join("below")] {
        let error = open(&shard, Some(folder)).expect_err("there is no place for it");
        assert!(error.to_string().contains("set spec.data.indexPath (--index-path) to a folder"), "{error}");
        let asked = index_shards(std::slice::from_ref(&shard), Some(folder), &SampleKeys::default(), NonZero::<usize>::MIN);
        assert!(matches!(asked, Err(IndexError::Write { .. })), "{asked:?}");
    }
    assert_eq!(fs::read_dir(data.path()).expect("the folder is listed").count(), 1, "nothing is written beside the shard");
    // One that is there is used, whatever the folder is.
    open(&shard, None).expect("the index is built");
    assert!(!in_memory(&open(&shard, Some(&shard)).expect("the index is opened")));
}

#[test]
fn a_read_only_data_folder_with_an_index_folder_needs_no_memory() {
    let (data, indexes) = (folder(), folder());
    let shard = data.path().join("a.tar");
    write_shard(&shard, 7);
    let (_open, unwritable) = in_unwritable_folder(&shard);
    let index = open(&unwritable, Some(indexes.path())).expect("the index is built");
    assert!(!in_memory(&index));
    assert_eq!(records(&index).expect("the records are read").len(), 7);
}

#[test]
fn an_index_can_be_read_by_everyone_who_can_read_the_shard() {
    use std::os::unix::fs::PermissionsExt;
    let data = folder();
    let shard = data.path().join("a.tar");
    write_shard(&shard, 1);
    open(&shard, None).expect("the index is built");
    let mode = |name: &str| fs::metadata(data.path().join(name)).expect("the file is there").permissions().mode() & 0o777;
    assert_eq!(mode("a.tar.lclindex"), mode("a.tar"));
    fs::write(data.path().join("ordinary"), "").expect("a file is written");
    assert_eq!(mode("a.tar.lclindex"), mode("ordinary") & 0o644);
}

#[test]
fn the_index_command_writes_what_is_missing_and_names_the_shard_that_fails() {
    let data = folder();
    let shards: Vec<PathBuf> = (0..6).map(|number| data.path().join(format!("{number}.tar"))).collect();
    for (number, shard) in shards.iter().enumerate() {
        write_shard(shard, number + 1);
    }
    let threads = NonZero::new(3).expect("three is not zero");
    open(&shards[2], None).expect("the index is built");
    let index = || index_shards(&shards, None, &SampleKeys::default(), threads).expect("nothing is wrong with all of them");
    let reports: Vec<_> = index().into_iter().map(|outcome| outcome.expect("the index is built")).collect();
    assert_eq!(reports.iter().map(|report| report.findings.samples).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    assert_eq!(reports.iter().map(|report| report.written).collect::<Vec<_>>(), [true, true, false, true, true, true]);
    assert!(reports.iter().all(|report| report.index.is_file()));
    // What is wrong with some keeps no other from being indexed.
    fs::write(&shards[1], "not a tar").expect("the shard is damaged");
    fs::remove_file(&shards[4]).expect("the shard is removed");
    write_shard(&shards[5], 9);
    let outcomes = index();
    let samples: Vec<_> = outcomes.iter().map(|outcome| outcome.as_ref().ok().map(|report| report.findings.samples)).collect();
    assert_eq!(samples, [Some(1), None, Some(3), Some(4), None, Some(9)]);
    assert!(matches!(&outcomes[1], Err(IndexError::Shard(ShardError::Truncated { path, .. })) if *path == shards[1]), "{outcomes:?}");
    assert!(matches!(&outcomes[4], Err(IndexError::Shard(ShardError::Missing { path })) if *path == shards[4]), "{outcomes:?}");
}

#[test]
fn what_is_wrong_with_all_shards_is_told_once_and_ends_the_work() {
    let data = folder();
    let shards: Vec<PathBuf> = (0..3).map(|number| data.path().join(format!("{number}.tar"))).collect();
    for shard in &shards {
        write_shard(shard, 1);
    }
    let keys = SampleKeys { filter: Some("similarity >".to_owned()), ..SampleKeys::default() };
    let error = index_shards(&shards, None, &keys, NonZero::<usize>::MIN).expect_err("it is no filter");
    assert!(matches!(error, IndexError::Filter { .. }), "{error:?}");
    // No further item is begun behind an error, and the first in their order is what is told.
    let begun = std::sync::Mutex::new(Vec::new());
    let failed = over_all(NonZero::<usize>::MIN, &[0, 1, 2, 3], |number| {
        begun.lock().expect("nobody panics").push(*number);
        if *number < 1 { Ok(()) } else { Err(*number) }
    });
    assert_eq!((failed, begun.into_inner().expect("nobody panics")), (Err(1), vec![0, 1]));
}

#[test]
fn many_at_once_build_one_sound_index() {
    let data = folder();
    let shard = data.path().join("a.tar");
    write_shard(&shard, 50);
    let expected = records(&open(&shard, None).expect("the index is built")).expect("the records are read");
    for _ in 0..20 {
        fs::remove_file(data.path().join("a.tar.lclindex")).expect("the index is removed");
        let barrier = std::sync::Barrier::new(8);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    barrier.wait();
                    let index = open(&shard, None).expect("the index is opened or built");
                    assert!(!in_memory(&index));
                    assert_eq!(records(&index).expect("the records are read"), expected);
                });
            }
        });
    }
    assert_eq!(fs::read_dir(data.path()).expect("the folder is listed").count(), 2, "temporary files are left");
}

#[test]
fn what_was_found_is_kept_in_the_index_and_read_back() {
    let data = folder();
    let shard = data.path().join("a.tar");
    let mut writer = ShardWriter::create(&shard).expect("the shard is begun");
    let image = Some((ImageKind::Jpg, b"pixels".as_slice()));
    for (key, image, caption) in [("0", image, Some("text")), ("1", image, None), ("1", image, Some("again")), ("2", None, Some("half"))] {
        writer.append(key, image, caption).expect("a sample is written");
    }
    writer.append_member("3", "json", b"{}").expect("a member is written");
    writer.finish().expect("the shard is finished");
    for written in [true, false] {
        let reports =
            index_shards(std::slice::from_ref(&shard), None, &SampleKeys::default(), NonZero::<usize>::MIN).expect("the index is there");
        let [Ok(IndexReport { findings, written: now, .. })] = reports.as_slice() else { panic!("{reports:?}") };
        assert_eq!(*now, written);
        assert_eq!((findings.samples, findings.with_image, findings.with_caption, findings.usable), (4, 2, 3, 1));
        assert_eq!((findings.doubled, findings.doubled_keys.as_slice()), (1, ["1".to_owned()].as_slice()));
        assert_eq!((findings.extensions_listed().as_str(), findings.archives), ("txt 3, jpg 2, json 1", 1));
        let index = open(&shard, None).expect("the index is opened");
        assert_eq!(index.findings(), findings);
        let doubled: Vec<bool> = records(&index).expect("the records are read").iter().map(|record| record.doubled).collect();
        assert_eq!(doubled, [false, true, false, false]);
    }
}

#[test]
fn an_index_made_with_other_keys_is_not_taken_and_not_taken_away() {
    let data = folder();
    let shard = data.path().join("a.tar");
    let mut writer = ShardWriter::create(&shard).expect("the shard is begun");
    for (extension, contents) in [("jpg", "image"), ("txt", "short"), ("caption", "much longer")] {
        writer.append_member("0", extension, contents.as_bytes()).expect("written");
    }
    writer.finish().expect("the shard is finished");
    let others = SampleKeys { caption: vec!["caption".to_owned()], ..SampleKeys::default() };
    let length = |index: &ShardIndex| records(index).expect("the records are read")[0].caption.expect("there is a caption").length;
    let usual = open(&shard, None).expect("the index is built");
    let written = fs::read(data.path().join("a.tar.lclindex")).expect("the index is read");
    let other = ShardIndex::open(&shard, None, &others).expect("the index is built");
    assert_eq!((length(&usual), length(&other)), (5, 11));
    assert!(!in_memory(&other));
    assert_eq!(fs::read(data.path().join("a.tar.lclindex")).expect("the index is read"), written, "it was written over");
    // Under the name of the other, as after a change of the program: what is in the file counts.
    let [place] = &index_files(&shard, None, &others)[..] else { panic!("one place without an index folder") };
    fs::write(place, &written).expect("the index is replaced");
    assert_eq!(length(&ShardIndex::open(&shard, None, &others).expect("the index is built")), 11);
}

#[test]
fn the_index_knows_how_many_samples_are_whole() {
    let data = folder();
    let shard = data.path().join("a.tar");
    let mut writer = ShardWriter::create(&shard).expect("the shard is begun");
    let image = Some((ImageKind::Webp, b"image".as_slice()));
    for (key, image, caption) in [("0", image, None), ("1", None, Some("text")), ("2", image, Some("text"))] {
        writer.append(key, image, caption).expect("written");
    }
    writer.append_member("3", "gif", b"GIF89a").expect("written");
    writer.finish().expect("the shard is finished");
    for _ in 0..2 {
        let index = open(&shard, None).expect("the index is built or opened");
        assert_eq!((index.count(), index.findings().usable), (4, 1));
    }
}

/// A shard as img2dataset leaves it: PAX headers, and jpg, json and txt of each sample in this order.
fn write_img2dataset(path: &Path, sidecars: &[Option<&str>]) {
    let mut archive = tar::Builder::new(File::create(path).expect("the shard is begun"));
    let mut append = |name: &str, contents: &[u8]| {
        for (kind, name, contents) in
            [(tar::EntryType::XHeader, "PaxHeader", &b"27 mtime=1700000000.123456\n"[..]), (tar::EntryType::Regular, name, contents)]
        {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(kind);
            header.set_size(contents.len() as u64);
            header.set_mode(0o444);
            archive.append_data(&mut header, name, contents).expect("a member is written");
        }
    };
    for (number, sidecar) in sidecars.iter().enumerate() {
        append(&format!("{number:09}.jpg"), format!("image {number}").as_bytes());
        if let Some(sidecar) = sidecar {
            append(&format!("{number:09}.json"), sidecar.as_bytes());
        }
        append(&format!("{number:09}.txt"), format!("text {number}").as_bytes());
    }
    archive.finish().expect("the shard is finished");
}

fn sidecar(similarity: f64, nsfw: &str) -> String {
    format!(
        "{{\n    \"similarity\": {similarity},\n    \"NSFW\": {nsfw},\n    \"LICENSE\": \"?\",\n    \"caption\": \"c\",\n    \"url\": \
         \"http://a.b/c.jpg\",\n    \"width\": 256,\n    \"exif\": \"{{\\\"a\\\": \\\"\\\"}}\"\n}}"
    )
}

#[test]
fn samples_that_a_filter_leaves_out_take_no_number_and_have_no_record() {
    let data = folder();
    let shard = data.path().join("00000.tar");
    let sound = sidecar(0.31, "\"UNLIKELY\"");
    let sidecars = [
        sound.clone(),
        sidecar(0.2, "\"UNLIKELY\""),
        sidecar(0.4, "null"),
        sidecar(0.4, "\"NSFW\""),
        "{\"caption\": \"c\"}".to_owned(),
        "{".to_owned(),
        "x".repeat(lcl_filter::SIDECAR_BYTES_LIMIT as usize + 1),
        sound.replace("0.31", "NaN"),
        sound,
    ];
    let all: Vec<Option<&str>> = sidecars.iter().map(|sidecar| Some(sidecar.as_str())).chain([None]).collect();
    write_img2dataset(&shard, &all);
    let keys = SampleKeys { filter: Some("similarity >= 0.28 && NSFW != \"NSFW\"".to_owned()), ..SampleKeys::default() };
    for _ in 0..2 {
        let index = ShardIndex::open(&shard, None, &keys).expect("the index is built, then opened");
        let found = index.findings();
        assert_eq!((index.count(), found.samples, found.usable, found.with_caption, found.filtered_count()), (3, 3, 3, 3, 7));
        assert_eq!(
            found.filtered.iter().map(|(cause, left_out)| (cause.as_str(), left_out.count, left_out.first.as_str())).collect::<Vec<_>>(),
            [
                ("broken_sidecar", 2, "000000005: the json is no JSON object: EOF while parsing an object at line 1 column 1"),
                ("excluded", 2, "000000001"),
                ("missing_field", 1, "000000004: similarity"),
                ("no_sidecar", 1, "000000009"),
                ("wrong_type", 1, "000000007: similarity is null, not a number"),
            ]
        );
        assert_eq!(found.extensions_listed(), "jpg 10, txt 10, json 9");
        let bytes = fs::read(&shard).expect("the shard is read");
        let texts = records(&index).expect("the records are read").into_iter().map(|record| {
            let caption = record.caption.expect("there is a caption");
            String::from_utf8_lossy(&bytes[caption.offset as usize..][..caption.length as usize]).into_owned()
        });
        assert_eq!(texts.collect::<Vec<_>>(), ["text 0", "text 2", "text 8"]);
    }
    // Each filter, and none, has an index of its own.
    let other = SampleKeys { filter: Some("similarity >= 0.1".to_owned()), ..SampleKeys::default() };
    let counts = [&keys, &other, &SampleKeys::default()].map(|keys| ShardIndex::open(&shard, None, keys).expect("built").count());
    assert_eq!(counts, [3, 5, 10]);
    assert_eq!(fs::read_dir(data.path()).expect("the folder is read").count(), 4);
}

#[test]
fn the_index_names_every_file_that_a_caption_may_come_from_and_no_weight() {
    let data = folder();
    let shard = data.path().join("00000.tar");
    write_img2dataset(&shard, &[Some("{\"caption\": \"c\"}"), None]);
    let keys = |weight, path: &str| {
        let choice = |from| CaptionChoice { from, weight };
        let captions = [CaptionFrom::Key("txt".to_owned()), CaptionFrom::Json(path.to_owned()), CaptionFrom::Key("none".to_owned())];
        SampleKeys { captions: captions.map(choice).into(), ..SampleKeys::default() }
    };
    let bytes = fs::read(&shard).expect("the shard is read");
    let index = ShardIndex::open(&shard, None, &keys(1, "caption")).expect("the index is built");
    assert!(!in_memory(&index));
    let found: Vec<Vec<String>> = records(&index)
        .expect("the records are read")
        .into_iter()
        .map(|record| {
            let extents = [record.caption].into_iter().chain(record.others);
            let text = |extent: Extent| String::from_utf8_lossy(&bytes[extent.offset as usize..][..extent.length as usize]).into_owned();
            extents.map(|extent| extent.map_or("-".to_owned(), text)).collect()
        })
        .collect();
    assert_eq!(found, [["text 0", "{\"caption\": \"c\"}", "-"], ["text 1", "-", "-"]]);
    // Other weights and fields are found in the same files.
    let reports = index_shards(std::slice::from_ref(&shard), None, &keys(7, "alt_text"), NonZero::<usize>::MIN).expect("it is there");
    assert!(reports[0].as_ref().is_ok_and(|report| !report.written));
    let usual = open(&shard, None).expect("the index is built");
    assert!(records(&usual).expect("the records are read").iter().all(|record| record.others.is_empty()));
    assert_eq!(fs::read_dir(data.path()).expect("the folder is read").count(), 3);
}
