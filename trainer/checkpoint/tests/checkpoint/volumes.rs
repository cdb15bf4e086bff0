//! Volumes as they are found: without hard links, without flushing, read-only, full, away and back. Each is a real folder whose calls fail for
//! a process of its own.

use std::{
    fs,
    num::{NonZeroU32, NonZeroUsize},
    path::Path,
    process::Command,
};

use lcl_checkpoint::{CheckpointWriter, RestoreError, Retention, StoreError, WriteError, WriterOptions, restore_latest};
use lcl_tests::volume::{CHANGES, Call, GROWS, Volume};
use rustix::io::Errno;

use crate::{
    concurrency::race,
    support::{folder, id, latest, open, snapshot, state, write},
};

const SCENE: &str = "LCL_CHECKPOINT_SCENE";
const FOLDER: &str = "LCL_CHECKPOINT_VOLUME";

type Scene = fn(&Path);

/// What the process of its own does; named by its variable.
const SCENES: [(&str, Scene); 7] = [
    ("everything", everything),
    ("write", write_second),
    ("newest", newest_is_second),
    ("older", newest_is_first),
    ("unread", nothing_can_be_read),
    ("probe", probe_is_refused),
    ("room", no_room),
];

/// Seconds that a scene waits for the volume: two pauses where it comes back, one where it does not.
fn patience(scene: &str) -> &'static str {
    if matches!(scene, "write" | "newest") { "1" } else { "0.2" }
}

/// Plays a scene in `folder`, which lies on the volume, and expects it to go well. What it printed.
fn play(volume: &Volume, folder: &Path, scene: &str) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "volumes::child", "--nocapture"])
        .env(SCENE, scene)
        .env(FOLDER, folder)
        .env("LCL_VOLUME_PATIENCE", patience(scene));
    volume.mount(&mut command);
    let output = command.output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{scene}: {text}");
    text
}

#[test]
fn child() {
    let (Ok(scene), Some(folder)) = (std::env::var(SCENE), std::env::var_os(FOLDER)) else { return };
    let (_, play) = SCENES.iter().find(|(name, _)| *name == scene).unwrap();
    play(folder.as_ref());
}

/// All that a checkpoint promises, on whatever volume.
fn everything(folder: &Path) {
    let store = open(folder, true);
    store.probe().unwrap();
    assert_eq!([store.claim_epoch().unwrap(), store.claim_epoch().unwrap()], [1, 2]);
    let retention = Some(Retention { keep_last: NonZeroU32::MIN, keep_every_steps: None });
    let mut writer =
        CheckpointWriter::new(store.clone(), WriterOptions { retention, shards: NonZeroUsize::new(3), ..WriterOptions::default() });
    for step in [1, 2] {
        writer.submit(snapshot(step, 1, state(step, 5, 64))).unwrap();
        writer.wait().unwrap().unwrap();
    }
    let error = write(&open(folder, true), snapshot(2, 1, state(9, 5, 64))).unwrap_err();
    assert!(matches!(error, WriteError::AlreadyCommitted { .. }), "{error}");
    assert_eq!(store.list().unwrap().len(), 1);
    assert_eq!(latest(&store).tensors, state(2, 5, 64));
    store.remove(id(2, 1)).unwrap();
    race(folder);
}

/// `link` is not there on buckets and blobs that are mounted (`ENOSYS`) and on vfat (`EPERM`); `renameat2` is not there on most of these.
#[test]
fn a_volume_without_hard_links_keeps_every_promise() {
    for (link, rename) in [(Errno::PERM, None), (Errno::NOSYS, Some(Errno::INVAL)), (Errno::OPNOTSUPP, Some(Errno::NOSYS))] {
        let target = folder();
        let volume = Volume::new(target.folder.path()).unwrap();
        volume.fail(&[Call::Link], link, None).unwrap();
        if let Some(rename) = rename {
            volume.fail(&[Call::RenameNew], rename, None).unwrap();
        }
        play(&volume, target.folder.path(), "everything");
        assert!(volume.met(Call::Link).unwrap() > 0 && (volume.met(Call::RenameNew).unwrap() > 0) == rename.is_some());
        // Nothing half written is left, in any folder.
        let left: Vec<_> = files(target.folder.path()).into_iter().filter(|name| name.contains('#') && !name.ends_with("#0")).collect();
        assert_eq!(left, Vec::<String>::new());
    }
}

fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path.display().to_string()] }).collect()
}

#[test]
fn a_volume_that_knows_nothing_of_stable_storage_is_written_to_all_the_same() {
    let target = folder();
    let volume = Volume::new(target.folder.path()).unwrap();
    volume.fail(&[Call::Sync], Errno::INVAL, None).unwrap();
    play(&volume, target.folder.path(), "everything");
    assert!(volume.met(Call::Sync).unwrap() > 0);
}

/// A creator that died between its claim and the name: the folder is no checkpoint, and goes as any other that was not completed.
#[test]
fn a_claim_whose_creator_died_is_no_checkpoint_and_goes_with_the_next_one() {
    let target = folder();
    write(&target.store, snapshot(1, 1, state(1, 5, 64))).unwrap();
    write(&target.store, snapshot(2, 1, state(2, 5, 64))).unwrap();
    let manifest = target.path(id(2, 1), "manifest.json");
    fs::rename(&manifest, manifest.with_file_name("manifest.json#1")).unwrap();
    fs::write(manifest.with_file_name("manifest.json#0"), "").unwrap();
    assert_eq!(latest(&target.store).id, id(1, 1));
    let volume = Volume::new(target.folder.path()).unwrap();
    volume.fail(&[Call::Link, Call::RenameNew], Errno::INVAL, None).unwrap();
    // Another attempt of the same generation is refused, and says why.
    let text = play(&volume, target.folder.path(), "write");
    assert!(text.contains("manifest.json is already there with other contents"), "{text}");
    let retention = Some(Retention { keep_last: NonZeroU32::MIN, keep_every_steps: None });
    let mut writer = CheckpointWriter::new(target.store.clone(), WriterOptions { retention, ..WriterOptions::default() });
    writer.submit(snapshot(3, 2, state(3, 5, 64))).unwrap();
    writer.wait().unwrap().unwrap();
    assert_eq!(target.store.list().unwrap().len(), 1);
    assert!(!manifest.parent().unwrap().exists());
}

/// Writes the second checkpoint and prints what became of it.
fn write_second(folder: &Path) {
    let store = open(folder, true);
    match write(&store, snapshot(2, 1, state(2, 5, 64))) {
        Ok(_) => println!("committed"),
        Err(error) => println!("{:#}", anyhow::Error::from(error)),
    }
}

/// Each kind of call fails at its first two times.
#[test]
fn a_volume_that_goes_away_and_comes_back_costs_no_checkpoint() {
    let target = folder();
    write(&target.store, snapshot(1, 1, state(1, 5, 64))).unwrap();
    for (error, call) in [
        (Errno::IO, Call::OpenToWrite),
        (Errno::IO, Call::Write),
        (Errno::IO, Call::Sync),
        (Errno::STALE, Call::Look),
        (Errno::NOTCONN, Call::MakeFolder),
        (Errno::TIMEDOUT, Call::Link),
        (Errno::STALE, Call::OpenToRead),
    ] {
        let volume = Volume::new(target.folder.path()).unwrap();
        volume.fail(&[call], error, Some(2)).unwrap();
        let text = play(&volume, target.folder.path(), "write");
        assert!(text.contains("committed"), "{call:?}: {text}");
        assert_eq!(volume.met(call).unwrap(), 2, "{call:?}");
        assert_eq!(latest(&target.store).tensors, state(2, 5, 64), "{call:?}");
        target.store.remove(id(2, 1)).unwrap();
    }
}

#[test]
fn a_volume_that_is_full_or_takes_no_writes_fails_the_checkpoint_and_keeps_the_one_before() {
    let target = folder();
    write(&target.store, snapshot(1, 1, state(1, 5, 64))).unwrap();
    for (error, calls, words) in [
        (Errno::NOSPC, &GROWS[..], "No space left on device"),
        (Errno::ROFS, &CHANGES[..], "Read-only file system"),
        (Errno::IO, &[Call::Write], "Input/output error"),
    ] {
        let volume = Volume::new(target.folder.path()).unwrap();
        volume.fail(calls, error, None).unwrap();
        let text = play(&volume, target.folder.path(), "write");
        assert!(text.contains("cannot write step-00000002-g000001-000000/") && text.contains(words), "{text}");
        assert_eq!(latest(&target.store).tensors, state(1, 5, 64));
    }
}

fn newest_is_second(folder: &Path) {
    assert_eq!(latest(&open(folder, true)).tensors, state(2, 5, 64));
}

fn newest_is_first(folder: &Path) {
    let restored = latest(&open(folder, true));
    assert_eq!((restored.id, restored.rejected.len()), (id(1, 1), 1));
    assert!(restored.rejected[0].unread && restored.rejected[0].reason.contains("Input/output error"), "{:?}", restored.rejected);
}

fn nothing_can_be_read(folder: &Path) {
    let error = restore_latest(&open(folder, true), None).unwrap_err();
    assert!(matches!(error, RestoreError::Unread { .. } | RestoreError::Store { .. }), "{error}");
    assert!(format!("{:#}", anyhow::Error::from(error)).contains("Input/output error"));
}

/// Once a file that was not given out was taken for a damaged one: the run fell back to an older checkpoint, or ended for good.
#[test]
fn what_a_volume_does_not_give_out_is_not_taken_for_damaged() {
    let target = folder();
    for step in [1, 2] {
        write(&target.store, snapshot(step, 1, state(step, 5, 64))).unwrap();
    }
    for call in [Call::OpenToRead, Call::Read] {
        let volume = Volume::new(target.folder.path()).unwrap();
        volume.fail(&[call], Errno::IO, Some(2)).unwrap();
        play(&volume, target.folder.path(), "newest");
        assert_eq!(volume.met(call).unwrap(), 2);
        volume.fail(&[call], Errno::IO, None).unwrap();
        play(&volume, target.folder.path(), "unread");
        // A bad place on a medium that works otherwise.
        let place = Volume::new(&target.path(id(2, 1), "")).unwrap();
        place.fail(&[call], Errno::IO, None).unwrap();
        play(&place, target.folder.path(), "older");
    }
}

fn probe_is_refused(folder: &Path) {
    let error = open(folder, true).probe().unwrap_err();
    println!("permanent: {}, {:#}", error.is_permanent(), anyhow::Error::from(error));
}

#[test]
fn a_volume_that_cannot_hold_a_run_is_refused_with_its_name_and_the_reason() {
    let target = folder();
    let check = |calls: &[Call], error: Errno, expected: &[&str]| {
        let volume = Volume::new(target.folder.path()).unwrap();
        volume.fail(calls, error, None).unwrap();
        let text = play(&volume, target.folder.path(), "probe");
        let folder = target.folder.path().display().to_string();
        for words in expected.iter().copied().chain(["the volume /", folder.as_str()]) {
            assert!(text.contains(words), "{words} is not in: {text}");
        }
    };
    check(&CHANGES, Errno::ROFS, &["permanent: true", "make a folder", "mount it writable", "Read-only file system"]);
    check(&[Call::MakeFolder, Call::OpenToWrite], Errno::ACCESS, &["permanent: true", "Permission denied"]);
    check(&[Call::Write], Errno::NOSPC, &["permanent: false", "write a file", "make room", "No space left on device"]);
    // A bucket that is mounted without renaming.
    check(&[Call::Link, Call::RenameNew, Call::Rename], Errno::NOSYS, &["permanent: true", "rename a file", "s3://"]);
    check(&[Call::MakeFolder], Errno::IO, &["permanent: false", "does not answer", "Input/output error"]);
    assert_eq!(fs::read_dir(target.folder.path()).unwrap().count(), 0);
}

fn no_room(folder: &Path) {
    let store = open(folder, true);
    let error = store.check_room(2_500_000).unwrap_err();
    assert!(matches!(error, StoreError::NoRoom { free: 0, .. }) && !error.is_permanent());
    assert!(error.to_string().contains("has 0 MB free where a checkpoint in") && error.to_string().contains("takes 3 MB"), "{error}");
}

#[test]
fn a_volume_too_full_for_a_checkpoint_is_told_before_training() {
    let target = folder();
    target.store.check_room(1).unwrap();
    let volume = Volume::new(target.folder.path()).unwrap();
    volume.fail(&[Call::Room], Errno::NOSPC, None).unwrap();
    play(&volume, target.folder.path(), "room");
}
