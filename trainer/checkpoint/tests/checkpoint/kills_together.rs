//! kill -9 of one of several processes that write a checkpoint together, at every phase and at random moments: no incomplete checkpoint
//! is ever visible, the one before stays, and the next membership goes on from the newest.
//!
//! A round is one membership of three processes, each this test program run again. They write one checkpoint after the other until one of
//! them is killed; then the parent declares the membership over, as the coordinator does, and the others find out and end.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{BufRead, BufReader, Write},
    num::NonZeroU32,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use lcl_checkpoint::{CheckpointWriter, Retention, WriterOptions, restore_latest};

use crate::{
    meeting::{Board, Remote},
    support::{Moment, Watched, open, state},
    together::part,
};

const ROUND: &str = "LCL_CHECKPOINT_TOGETHER_ROUND";
/// Seed of the random moments; a failing run prints it.
const SEED: &str = "LCL_CHECKPOINT_KILL_SEED";

const WRITERS: usize = 3;
const TENSORS: usize = 16;
const ROWS: usize = 256;

/// Who is killed, and where it stops first, by what it asks of the object store. Shards are numbered as their writers.
const PHASES: [(usize, Moment, &str); 12] = [
    (0, Moment::BeforePut, "shard-00000"),
    (0, Moment::AfterPut, "shard-00000"),
    (0, Moment::BeforePut, "manifest.json"),
    (0, Moment::AfterPut, "manifest.json"),
    (0, Moment::BeforeDelete, "manifest.json"),
    (0, Moment::AfterDelete, "manifest.json"),
    (0, Moment::BeforeDelete, "shard-00001"),
    (0, Moment::AfterDelete, "shard-00001"),
    (1, Moment::BeforePut, "shard-00001"),
    (1, Moment::AfterPut, "shard-00001"),
    (2, Moment::BeforePut, "shard-00002"),
    (2, Moment::AfterPut, "shard-00002"),
];

/// Checkpoints written before the victim stops: without one before it, with one, and with retention at work.
const DEPTHS: [u64; 3] = [0, 1, 3];

/// Kills at random moments; with the phases 72 in all.
const RANDOM_KILLS: u64 = 36;

/// What a writer is told.
struct Orders {
    folder: String,
    address: String,
    epoch: u64,
    first: u64,
    writer: usize,
    /// Phase at which it stops, if it is this one's, and after how many checkpoints.
    phase: usize,
    depth: u64,
}

impl Orders {
    fn encode(&self) -> String {
        let Self { folder, address, epoch, first, writer, phase, depth } = self;
        format!("{address} {epoch} {first} {writer} {phase} {depth} {folder}")
    }

    fn decode(text: &str) -> Self {
        let mut words = text.splitn(7, ' ');
        let mut next = || words.next().unwrap();
        let address = next().to_owned();
        let mut number = || next().parse::<u64>().unwrap();
        let (epoch, first, writer, phase, depth) = (number(), number(), number() as usize, number() as usize, number());
        Self { address, epoch, first, writer, phase, depth, folder: next().to_owned() }
    }
}

#[test]
fn child() {
    let Ok(orders) = env::var(ROUND) else { return };
    let orders = Orders::decode(&orders);
    let say = |line: &str| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "\nchild: {line}").unwrap();
        out.flush().unwrap();
    };
    let armed = Arc::new(AtomicBool::new(false));
    let is_armed = Arc::clone(&armed);
    let own = orders.writer;
    let phase = PHASES.get(orders.phase).filter(|(victim, ..)| *victim == own);
    let hook = move |moment, path: &str| {
        if let Some((_, at, file)) = phase
            && *at == moment
            && path.contains(file)
            && is_armed.load(Ordering::SeqCst)
        {
            say("stopped");
            loop {
                thread::park();
            }
        }
        Ok(())
    };
    let retention = Retention { keep_last: NonZeroU32::MIN.saturating_add(1), keep_every_steps: None };
    let options = WriterOptions { retention: Some(retention), ..WriterOptions::default() };
    let plain = open(orders.folder.as_ref(), orders.epoch.is_multiple_of(2));
    let mut writer = CheckpointWriter::new(Watched::over(&plain, hook), options);
    say("begins");
    for step in orders.first.. {
        armed.store(step - orders.first >= orders.depth, Ordering::SeqCst);
        let meeting = Arc::new(Remote(orders.address.parse().unwrap()));
        writer.submit_part(part(step, orders.epoch, &state(step, TENSORS, ROWS), WRITERS, own, meeting)).unwrap();
        match writer.wait().unwrap() {
            Ok(_) => say(&format!("committed {step}")),
            Err(error) => {
                assert!(error.is_by_membership(), "{error}");
                return say(&format!("ends: {error}"));
            }
        }
    }
}

/// What a membership did until its end.
struct Round {
    committed: u64,
    stopped: bool,
    lines: Vec<String>,
}

/// Three processes write from step `first` on, until `victim` is killed: when it has stopped at its phase, or `delay` after all began.
fn round(folder: &Path, epoch: u64, first: u64, victim: usize, phase: usize, depth: u64, delay: Option<Duration>) -> Round {
    let board = Board::new();
    let address = board.serve().to_string();
    let (sender, lines) = mpsc::channel();
    let mut children: Vec<Child> = (0..WRITERS)
        .map(|writer| {
            let orders =
                Orders { folder: folder.to_str().unwrap().to_owned(), address: address.clone(), epoch, first, writer, phase, depth };
            let mut child = Command::new(env::current_exe().unwrap())
                .args(["--exact", "kills_together::child", "--nocapture"])
                .env(ROUND, orders.encode())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let (output, sender) = (child.stdout.take().unwrap(), sender.clone());
            thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    if let Some(line) = line.strip_prefix("child: ") {
                        let _ = sender.send((writer, line.to_owned()));
                    }
                }
            });
            child
        })
        .collect();
    drop(sender);
    let mut round = Round { committed: 0, stopped: false, lines: Vec::new() };
    let mut begun = 0;
    // Ends when every child has closed its output.
    for (writer, line) in lines {
        begun += usize::from(line == "begins");
        round.committed = round.committed.max(line.strip_prefix("committed ").map_or(0, |step| step.parse().unwrap()));
        let all_begun = line == "begins" && begun == WRITERS;
        round.stopped |= line == "stopped";
        if line == "stopped" || (all_begun && delay.is_some()) {
            thread::sleep(delay.unwrap_or_default());
            children[victim].kill().unwrap();
            board.end();
        }
        round.lines.push(format!("{writer}: {line}"));
    }
    for (writer, child) in children.iter_mut().enumerate() {
        let status = child.wait().unwrap();
        assert_eq!(status.success(), writer != victim, "writer {writer}: {status}: {:?}", round.lines);
    }
    round
}

/// The newest complete checkpoint is at least the one that was reported, and right; gives its step.
fn check_after(folder: &Path, before: u64, round: &Round) -> u64 {
    let reported = before.max(round.committed);
    let restored = restore_latest(&open(folder, false), None).unwrap_or_else(|error| panic!("{error}: {:?}", round.lines));
    let Some(restored) = restored else {
        assert_eq!(reported, 0, "{:?}", round.lines);
        return 0;
    };
    assert!((reported..=reported + 1).contains(&restored.id.step), "{} after {reported}: {:?}", restored.id.step, round.lines);
    assert_eq!(restored.tensors, state(restored.id.step, TENSORS, ROWS));
    assert_eq!(restored.rejected.iter().find(|rejected| rejected.complete), None, "{:?}", round.lines);
    restored.id.step
}

/// Shards in every folder that has no manifest.
fn incomplete(folder: &Path) -> Vec<usize> {
    let folders = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let incomplete = folders.filter(|path| !path.join("manifest.json").exists());
    let shards =
        |path| fs::read_dir(path).unwrap().filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|end| end == "safetensors"));
    incomplete.map(|path| shards(path).count()).collect()
}

#[test]
fn a_writer_killed_at_any_phase_leaves_the_newest_complete_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let (mut newest, mut epoch) = (0, 0);
    let mut seen = BTreeMap::<usize, usize>::new();
    for depth in DEPTHS {
        for (phase, (victim, ..)) in PHASES.iter().enumerate() {
            epoch += 1;
            let round = round(folder.path(), epoch, newest + 1, *victim, phase, depth, None);
            assert!(round.stopped, "phase {phase} was not reached: {:?}", round.lines);
            for shards in incomplete(folder.path()) {
                *seen.entry(shards).or_default() += 1;
            }
            newest = check_after(folder.path(), newest, &round);
        }
    }
    // All shards and no manifest: the kill between the two.
    assert!(seen.contains_key(&WRITERS) && seen.len() >= 2, "{seen:?}");
}

#[test]
fn a_writer_killed_at_a_random_moment_leaves_the_newest_complete_checkpoint() {
    let seed = env::var(SEED).unwrap_or_else(|_| "lcl".to_owned());
    println!("to repeat: {SEED}={seed}");
    let folder = tempfile::tempdir().unwrap();
    let mut newest = 0;
    for number in 0..RANDOM_KILLS {
        let hash = blake3::hash(format!("{seed}/together/{number}").as_bytes());
        let [low, high, victim, ..] = *hash.as_bytes();
        let delay = Duration::from_micros(u64::from(u16::from_le_bytes([low, high])));
        let round = round(folder.path(), number + 1, newest + 1, usize::from(victim) % WRITERS, usize::MAX, 0, Some(delay));
        newest = check_after(folder.path(), newest, &round);
    }
    println!("{newest} steps");
    assert!(newest > 0);
}
