//! Several writers and readers at once: generations keep them apart.

use std::{
    collections::HashSet,
    num::NonZeroU32,
    path::Path,
    sync::{Once, mpsc},
    thread,
};

use lcl_checkpoint::{CheckpointWriter, Retention, WriteError, WriterOptions, restore};

use crate::support::{Moment, Watched, folder, id, latest, no_space, open, snapshot, state, write};

fn keep_one() -> WriterOptions {
    WriterOptions { retention: Some(Retention { keep_last: NonZeroU32::MIN, keep_every_steps: None }), ..WriterOptions::default() }
}

#[test]
fn the_later_generation_wins_at_the_same_step_and_the_later_step_wins_over_it() {
    let target = folder();
    for (step, epoch) in [(5, 2), (5, 1), (4, 3)] {
        // Different bytes for the same step, as two generations may have.
        write(&target.store, snapshot(step, epoch, state(step * 100 + epoch, 3, 4))).unwrap();
    }
    let restored = latest(&target.store);
    assert_eq!((restored.id, restored.tensors), (id(5, 2), state(502, 3, 4)));
}

#[test]
fn a_stale_writer_can_overwrite_nothing() {
    let target = folder();
    write(&target.store, snapshot(5, 2, state(52, 3, 4))).unwrap();
    let whole = || {
        let files = std::fs::read_dir(target.path(id(5, 2), "")).unwrap();
        let mut files: Vec<_> = files.map(|entry| entry.unwrap().path()).map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
        files.sort();
        files
    };
    let before = whole();
    // The same step by an earlier generation, and by the same generation a second time.
    let mut stale = CheckpointWriter::new(open(target.folder.path(), true), keep_one());
    stale.submit(snapshot(5, 1, state(51, 3, 4))).unwrap();
    stale.wait().unwrap().unwrap();
    let error = write(&target.store, snapshot(5, 2, state(99, 3, 4))).unwrap_err();
    assert!(matches!(error, WriteError::AlreadyCommitted { .. }), "{error}");
    assert_eq!(whole(), before);
    assert_eq!(latest(&target.store).tensors, state(52, 3, 4));
}

/// Once a writer that failed for a reason of its own cleared away what another had committed meanwhile.
#[test]
fn a_writer_that_fails_leaves_what_another_has_committed_meanwhile() {
    let target = folder();
    let (path, once) = (target.folder.path().to_owned(), Once::new());
    let store = Watched::over(&target.store, move |moment, _| {
        if moment != Moment::BeforePut {
            return Ok(());
        }
        once.call_once(|| {
            let path = path.clone();
            let other = thread::spawn(move || write(&open(&path, false), snapshot(1, 1, state(2, 3, 64))).map(drop));
            other.join().unwrap().unwrap();
        });
        Err(no_space())
    });
    let error = write(&store, snapshot(1, 1, state(1, 3, 64))).unwrap_err();
    assert!(matches!(error, WriteError::Put { .. }), "{error}");
    assert_eq!(latest(&target.store).tensors, state(2, 3, 64));
}

#[test]
fn two_writers_of_one_step_and_generation_never_make_a_mixture() {
    race(folder().folder.path());
}

/// Two writers of the same step and generation, again and again, in `folder`.
pub(crate) fn race(folder: &Path) {
    let target = open(folder, false);
    let mut committed = 0;
    for round in 0..20 {
        let results: Vec<_> = thread::scope(|scope| {
            let writers: Vec<_> = (0..2)
                .map(|writer| {
                    let store = open(folder, false);
                    scope.spawn(move || write(&store, snapshot(round, 1, state(round * 10 + writer, 3, 64))).map(|_| writer))
                })
                .collect();
            writers.into_iter().map(|writer| writer.join().unwrap()).collect()
        });
        let winners: Vec<u64> = results.into_iter().filter_map(Result::ok).collect();
        assert!(winners.len() <= 1);
        let visible = restore(&target, id(round, 1), None).map(|restored| restored.tensors).ok();
        assert_eq!(visible, winners.first().map(|winner| state(round * 10 + winner, 3, 64)));
        committed += winners.len();
    }
    println!("{committed} of 20 committed");
}

#[test]
fn what_a_cut_off_write_of_the_same_step_and_generation_left_is_used_when_equal_and_never_overwritten() {
    let target = folder();
    write(&target.store, snapshot(1, 1, state(1, 3, 64))).unwrap();
    let manifest = target.path(id(1, 1), "manifest.json");
    std::fs::remove_file(&manifest).unwrap();
    let error = write(&target.store, snapshot(1, 1, state(2, 3, 64))).unwrap_err();
    assert!(matches!(error, WriteError::Contested { .. }), "{error}");
    write(&target.store, snapshot(1, 1, state(1, 3, 64))).unwrap();
    assert_eq!(latest(&target.store).tensors, state(1, 3, 64));
}

#[test]
fn restore_finds_a_whole_checkpoint_at_every_moment_of_two_writers_with_retention() {
    let target = folder();
    write(&target.store, snapshot(0, 1, state(0, 3, 64))).unwrap();
    // Each may write one checkpoint, or two, while the reader reads once: with processors of their own they would otherwise remove what it
    // has listed before it comes to read it, more often in a row than it bears.
    thread::scope(|scope| {
        let (turns, writers): (Vec<_>, Vec<_>) = [1, 2]
            .into_iter()
            .map(|epoch| {
                let store = open(target.folder.path(), false);
                let (turn, turns) = mpsc::sync_channel(1);
                let writer = scope.spawn(move || {
                    let mut writer = CheckpointWriter::new(store, keep_one());
                    // Ends early when the reader has failed.
                    for (step, ()) in (1..=40).zip(turns) {
                        writer.submit(snapshot(step, epoch, state(step, 3, 64))).unwrap();
                        // The stale writer's folders are swept by the newer one: it may fail, it may not damage.
                        let result = writer.wait().unwrap();
                        assert!(epoch == 1 || result.is_ok(), "{result:?}");
                    }
                });
                (turn, writer)
            })
            .unzip();
        let mut seen = 0;
        while writers.iter().any(|writer| !writer.is_finished()) {
            let restored = latest(&target.store);
            assert_eq!(restored.tensors, state(restored.id.step, 3, 64));
            // A stale writer may commit just while its folder is swept: visible for a moment, found to be damaged, and then gone.
            let damaged = |epoch| restored.rejected.iter().any(|rejected| rejected.complete && rejected.id.generation.epoch == epoch);
            assert!(!damaged(2), "{:?}", restored.rejected);
            assert!(restored.id.step >= seen, "{} after {seen}", restored.id.step);
            seen = restored.id.step;
            for turn in &turns {
                // One that is still writing has its next turn already.
                let _ = turn.try_send(());
            }
        }
    });
    assert_eq!(latest(&target.store).id, id(40, 2));
    // The stale one may have committed its last just while that was swept: what is damaged then goes with the newer one's next.
    let mut writer = CheckpointWriter::new(open(target.folder.path(), false), keep_one());
    writer.submit(snapshot(41, 2, state(41, 3, 64))).unwrap();
    writer.wait().unwrap().unwrap();
    assert_eq!(latest(&target.store).id, id(41, 2));
    for entry in target.store.list().unwrap() {
        assert!(!entry.complete || target.store.verify(entry.id).is_ok(), "{entry:?}");
    }
}

#[test]
fn every_run_gets_an_epoch_of_its_own() {
    let target = folder();
    assert_eq!(target.store.claim_epoch().unwrap(), 1);
    write(&target.store, snapshot(3, 7, state(3, 2, 4))).unwrap();
    assert_eq!(target.store.claim_epoch().unwrap(), 8);
    let claimed: Vec<u64> = thread::scope(|scope| {
        let claims: Vec<_> = (0..8)
            .map(|_| {
                let store = open(target.folder.path(), false);
                scope.spawn(move || (0..5).map(|_| store.claim_epoch().unwrap()).collect::<Vec<_>>())
            })
            .collect();
        claims.into_iter().flat_map(|claim| claim.join().unwrap()).collect()
    });
    assert_eq!(claimed.iter().collect::<HashSet<_>>().len(), 40);
    assert!(claimed.iter().all(|&epoch| epoch > 8));
    // Claims are no checkpoints.
    assert_eq!(latest(&target.store).id, id(3, 7));
}
