//! kill -9 at every phase of a write and at random moments: the process that starts next finds the newest complete checkpoint, and
//! every byte of it is right.
//!
//! The child is this test program run again. It restores, checks what it got and writes one checkpoint after the other; at a named
//! moment it says so on its standard output and stops there, and the parent kills it.

use std::{
    collections::BTreeSet,
    env, fs,
    io::{BufRead, BufReader, Write},
    num::{NonZeroU32, NonZeroUsize},
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use lcl_checkpoint::{CheckpointStore, CheckpointWriter, Retention, WriterOptions, restore_latest};

use crate::support::{Moment, Watched, open, snapshot, state};

const FOLDER: &str = "LCL_CHECKPOINT_KILL_FOLDER";
const STOP: &str = "LCL_CHECKPOINT_KILL_STOP";
/// Seed of the random moments; a failing run prints it.
const SEED: &str = "LCL_CHECKPOINT_KILL_SEED";

const SHARDS: usize = 3;
/// Matrices of 64 kB: a checkpoint of 1 MB takes long enough to be hit in the middle of a file.
const TENSORS: usize = 16;
const ROWS: usize = 256;

/// Where the child stops, by what is asked of the object store and how often it has been asked before.
const PHASES: [(&str, Moment, &str); 10] = [
    ("before the first shard", Moment::BeforePut, "shard-00000"),
    ("after the first shard", Moment::AfterPut, "shard-00000"),
    ("before the last shard", Moment::BeforePut, "shard-00002"),
    ("after the last shard", Moment::AfterPut, "shard-00002"),
    ("between shards and manifest", Moment::BeforePut, "manifest.json"),
    ("after the manifest", Moment::AfterPut, "manifest.json"),
    ("before a manifest is removed", Moment::BeforeDelete, "manifest.json"),
    ("after a manifest is removed", Moment::AfterDelete, "manifest.json"),
    ("before a shard is removed", Moment::BeforeDelete, "shard-00001"),
    ("after a shard is removed", Moment::AfterDelete, "shard-00001"),
];

/// Checkpoints the child writes before it stops at a phase: different depths of retention.
const DEPTHS: [u64; 3] = [0, 1, 3];

/// Kills at random moments; with the phases more than 60 in all.
const RANDOM_KILLS: u64 = 36;

fn writer(store: CheckpointStore) -> CheckpointWriter {
    let retention = Retention { keep_last: NonZeroU32::MIN.saturating_add(1), keep_every_steps: None };
    CheckpointWriter::new(
        store,
        WriterOptions { retention: Some(retention), shards: NonZeroUsize::new(SHARDS), ..WriterOptions::default() },
    )
}

#[test]
fn child() {
    let Some(folder) = env::var_os(FOLDER) else { return };
    let stop = env::var(STOP).unwrap();
    let mut stop = stop.split('/').map(|number| number.parse::<u64>().unwrap());
    let (phase, depth) = (stop.next().unwrap(), stop.next().unwrap());
    let say = |line: &str| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "\nchild: {line}").unwrap();
        out.flush().unwrap();
    };
    // Random moments come with and without syncs: without, files appear in quicker succession.
    let plain = open(folder.as_ref(), depth % 2 == 0);
    let epoch = plain.claim_epoch().unwrap();
    let first = match restore_latest(&plain, None).unwrap() {
        Some(restored) => {
            assert_eq!(restored.tensors, state(restored.id.step, TENSORS, ROWS));
            restored.id.step + 1
        }
        None => 1,
    };
    let armed = std::sync::Arc::new(AtomicBool::new(false));
    let is_armed = std::sync::Arc::clone(&armed);
    let hook = move |moment, path: &str| {
        if let Some((name, at, file)) = PHASES.get(phase as usize)
            && *at == moment
            && path.contains(file)
            && is_armed.load(Ordering::SeqCst)
        {
            say(&format!("at {name}"));
            loop {
                thread::park();
            }
        }
        Ok(())
    };
    let mut writer = writer(Watched::over(&plain, hook));
    say(&format!("from {first}"));
    for step in first.. {
        armed.store(step - first >= depth, Ordering::SeqCst);
        writer.submit(snapshot(step, epoch, state(step, TENSORS, ROWS))).unwrap();
        writer.wait().unwrap().unwrap();
        say(&format!("committed {step}"));
    }
}

struct Killed {
    committed: u64,
    lines: Vec<String>,
}

/// Starts a child and kills it when `until` says so after one of its lines; gives back what it said.
fn kill(folder: &Path, stop: &str, mut until: impl FnMut(&str) -> bool) -> Killed {
    let mut child: Child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "kills::child", "--nocapture"])
        .env(FOLDER, folder)
        .env(STOP, stop)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let Some(line) = line.unwrap().strip_prefix("child: ").map(str::to_owned) else { continue };
        let now = until(&line);
        lines.push(line);
        if now {
            // SIGKILL on Unix.
            child.kill().unwrap();
        }
    }
    let status = child.wait().unwrap();
    assert!(!status.success() && status.code().is_none(), "the child ended by itself ({status}): {lines:?}");
    let committed = lines.iter().filter_map(|line| line.strip_prefix("committed ")?.parse().ok()).max().unwrap_or(0);
    Killed { committed, lines }
}

/// What a kill left behind, to know which kinds of leftovers were met.
fn leftovers(folder: &Path) -> BTreeSet<&'static str> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if !entry.file_name().to_string_lossy().starts_with("step-") {
            continue;
        }
        let files: Vec<String> = fs::read_dir(entry.path()).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        let shards = files.iter().filter(|file| file.ends_with(".safetensors")).count();
        if files.iter().any(|file| file.contains("safetensors#")) {
            found.insert("part of a shard");
        }
        if files.iter().all(|file| file != "manifest.json") {
            found.insert(if shards == SHARDS { "all shards, no manifest" } else { "some shards, no manifest" });
        }
    }
    found
}

/// After a kill: the newest complete checkpoint is at least the one the child had reported, and it is right.
fn check_after(folder: &Path, committed_before: u64, killed: &Killed) -> u64 {
    let restored = restore_latest(&open(folder, false), None).unwrap_or_else(|error| panic!("{error}: {:?}", killed.lines));
    let reported = committed_before.max(killed.committed);
    let Some(restored) = restored else {
        assert_eq!(reported, 0, "{:?}", killed.lines);
        return 0;
    };
    assert!((reported..=reported + 1).contains(&restored.id.step), "{} after {reported}: {:?}", restored.id.step, killed.lines);
    assert_eq!(restored.tensors, state(restored.id.step, TENSORS, ROWS));
    assert_eq!(restored.rejected.iter().find(|rejected| rejected.complete), None);
    restored.id.step
}

#[test]
fn a_kill_at_any_phase_leaves_the_newest_complete_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let (mut committed, mut kinds) = (0, BTreeSet::new());
    for depth in DEPTHS {
        for (phase, (name, _, _)) in PHASES.iter().enumerate() {
            let killed = kill(folder.path(), &format!("{phase}/{depth}"), |line| line.starts_with("at "));
            assert!(killed.lines.iter().any(|line| line == &format!("at {name}")), "{name} was not reached: {:?}", killed.lines);
            kinds.extend(leftovers(folder.path()));
            committed = check_after(folder.path(), committed, &killed);
        }
    }
    assert!(kinds.contains("all shards, no manifest") && kinds.contains("some shards, no manifest"), "{kinds:?}");
}

#[test]
fn a_kill_at_a_random_moment_leaves_the_newest_complete_checkpoint() {
    let seed = env::var(SEED).unwrap_or_else(|_| "lcl".to_owned());
    println!("to repeat: {SEED}={seed}");
    let folder = tempfile::tempdir().unwrap();
    let (mut committed, mut kinds) = (0, BTreeSet::new());
    for kill_number in 0..RANDOM_KILLS {
        let hash = blake3::hash(format!("{seed}/{kill_number}").as_bytes());
        let [low, high, ..] = *hash.as_bytes();
        // Up to 65 ms after the child begins to write: some checkpoints, or the middle of the first.
        let delay = Duration::from_micros(u64::from(u16::from_le_bytes([low, high])));
        let killed = kill(folder.path(), &format!("99/{kill_number}"), |line| {
            if line.starts_with("from ") {
                thread::sleep(delay);
            }
            line.starts_with("from ")
        });
        kinds.extend(leftovers(folder.path()));
        committed = check_after(folder.path(), committed, &killed);
    }
    println!("{committed} steps, leftovers met: {kinds:?}");
    assert!(committed > 0);
    assert!(!kinds.is_empty(), "no kill hit a write: {kinds:?}");
}
