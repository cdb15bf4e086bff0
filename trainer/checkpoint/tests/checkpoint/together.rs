//! Several writers of one checkpoint: each its part, one commits, and only while they belong together.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Barrier},
    thread,
    time::Duration,
};

use lcl_checkpoint::{
    CheckpointStore, CheckpointWriter, Committed, Meeting, MeetingError, Part, Retention, SubmitError, TensorData, WriteError, WritePlan,
    WriterOptions, restore_latest,
};

use crate::{
    meeting::{Board, Local},
    support::{Moment, Watched, folder, generation, id, latest, no_space, open, snapshot, state, write},
};

pub(crate) fn plan(tensors: &[TensorData], writers: usize) -> Arc<WritePlan> {
    let specs = tensors.iter().map(TensorData::spec).collect();
    Arc::new(WritePlan::new(specs, NonZeroUsize::new(writers).unwrap(), None))
}

/// The part of one writer in writing `tensors` as the checkpoint of `step`.
pub(crate) fn part(step: u64, epoch: u64, tensors: &[TensorData], writers: usize, writer: usize, meeting: Arc<dyn Meeting>) -> Part {
    let plan = plan(tensors, writers);
    let own: Vec<&str> = plan.tensors_of(writer).map(|spec| spec.name.as_str()).collect();
    let tensors = tensors.iter().filter(|tensor| own.contains(&tensor.name.as_str())).cloned().collect();
    let said = snapshot(step, epoch, Vec::new());
    Part { id: id(step, epoch), writer, tensors, config_digest: said.config_digest, metadata: said.metadata, meeting, attempt: step, plan }
}

pub(crate) fn writer(store: &CheckpointStore) -> CheckpointWriter {
    CheckpointWriter::new(store.clone(), WriterOptions::default())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Get,
    Contains,
}

/// A writer's end of a board to which something happens before the writer is answered.
#[derive(Debug)]
struct Hooked {
    inner: Local,
    before: fn(&Board, Asked, &str),
}

impl Hooked {
    fn over(board: &Arc<Board>, before: fn(&Board, Asked, &str)) -> Arc<dyn Meeting> {
        Arc::new(Self { inner: Local(Arc::clone(board)), before })
    }
}

impl Meeting for Hooked {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), MeetingError> {
        self.inner.set(key, value)
    }

    fn get(&self, key: &str, patience: Duration) -> Result<Option<Vec<u8>>, MeetingError> {
        (self.before)(&self.inner.0, Asked::Get, key);
        self.inner.get(key, patience)
    }

    fn contains(&self, key: &str) -> Result<bool, MeetingError> {
        (self.before)(&self.inner.0, Asked::Contains, key);
        self.inner.contains(key)
    }

    fn delete(&self, key: &str) -> Result<(), MeetingError> {
        self.inner.delete(key)
    }

    fn is_over(&self) -> bool {
        self.inner.is_over()
    }
}

type Outcome = Result<Committed, WriteError>;

/// All write the state of a step, each with its store; their results in order.
fn write_together(stores: &[CheckpointStore], step: u64, meeting: impl Fn() -> Arc<dyn Meeting>) -> Vec<Outcome> {
    let tensors = state(step, 5, 8);
    let mut writers: Vec<CheckpointWriter> = stores.iter().map(writer).collect();
    for (index, writer) in writers.iter_mut().enumerate() {
        writer.submit_part(part(step, 1, &tensors, stores.len(), index, meeting())).unwrap();
    }
    writers.iter_mut().map(|writer| writer.wait().unwrap()).collect()
}

fn local(board: &Arc<Board>) -> impl Fn() -> Arc<dyn Meeting> {
    || Arc::new(Local(Arc::clone(board)))
}

#[test]
fn several_writers_make_one_checkpoint_and_each_writes_only_its_own() {
    // Also more writers than tensors, of which there are six.
    for writers in [1, 2, 3, 8] {
        let (target, board) = (folder(), Board::new());
        // Each opens the store for itself.
        let stores: Vec<CheckpointStore> = (0..writers).map(|_| open(target.folder.path(), true)).collect();
        for result in write_together(&stores, 9, local(&board)) {
            assert_eq!(result.unwrap().id, id(9, 1));
        }
        let restored = latest(&target.store);
        assert_eq!((restored.id, restored.tensors), (id(9, 1), state(9, 5, 8)));
        assert_eq!(restored.metadata["samples"], 9 * 64);
        assert_eq!(target.store.manifest(id(9, 1)).unwrap().shards.len(), writers.min(6));
    }
}

#[test]
fn keys_do_not_pile_up_and_retention_is_the_committers() {
    let (target, board) = (folder(), Board::new());
    let keep = Retention { keep_last: std::num::NonZeroU32::MIN, keep_every_steps: None };
    let options = WriterOptions { retention: Some(keep), ..WriterOptions::default() };
    let mut writers: Vec<CheckpointWriter> = (0..3).map(|_| CheckpointWriter::new(target.store.clone(), options)).collect();
    for step in 1..=5 {
        let tensors = state(step, 5, 8);
        for (index, writer) in writers.iter_mut().enumerate() {
            writer.submit_part(part(step, 1, &tensors, 3, index, local(&board)())).unwrap();
            assert!(matches!(
                writer.submit_part(part(step + 1, 1, &tensors, 3, index, local(&board)())),
                Err(SubmitError::Occupied { .. } | SubmitError::NotLater { .. })
            ));
        }
        let removed: Vec<usize> = writers.iter_mut().map(|writer| writer.wait().unwrap().unwrap().removed.len()).collect();
        assert_eq!(removed, [usize::from(step > 1), 0, 0]);
        // Those of the last two attempts: not everybody may have read them.
        let kept = [step - 1, step].map(|step| format!("checkpoint/{step}/"));
        assert!(board.keys().len() <= 8 && board.keys().iter().all(|key| kept.iter().any(|attempt| key.starts_with(attempt))), "{board:?}");
    }
    assert_eq!(target.store.list().unwrap().len(), 1);
}

#[test]
fn a_slow_writer_learns_that_a_checkpoint_was_committed_though_the_next_is_under_way() {
    let (target, board) = (folder(), Board::new());
    // It comes to read an outcome only when the attempt of step 3 is open.
    let late = || {
        Hooked::over(&board, |board, asked, key| {
            let is_open = |key: &String| key.starts_with("checkpoint/3/") && key.ends_with("open");
            while asked == Asked::Get && key.ends_with("outcome") && !board.keys().iter().any(is_open) {
                thread::yield_now();
            }
        })
    };
    let [mut committer, mut slow] = [0, 1].map(|_| writer(&target.store));
    let part = |step, writer, meeting| part(step, 1, &state(step, 5, 8), 2, writer, meeting);
    committer.submit_part(part(2, 0, local(&board)())).unwrap();
    slow.submit_part(part(2, 1, late())).unwrap();
    assert_eq!(committer.wait().unwrap().unwrap().id, id(2, 1));
    committer.submit_part(part(3, 0, local(&board)())).unwrap();
    assert_eq!(slow.wait().unwrap().unwrap().id, id(2, 1));
    slow.submit_part(part(3, 1, late())).unwrap();
    for writer in [&mut committer, &mut slow] {
        assert_eq!(writer.wait().unwrap().unwrap().id, id(3, 1));
    }
}

#[test]
fn a_part_that_fails_fails_the_checkpoint_for_all_and_nothing_of_it_is_left() {
    for broken in 0..3 {
        let (target, board) = (folder(), Board::new());
        write(&target.store, snapshot(1, 1, state(1, 5, 8))).unwrap();
        let failing = Watched::over(&target.store, |moment, _| if moment == Moment::BeforePut { Err(no_space()) } else { Ok(()) });
        let stores: Vec<CheckpointStore> = (0..3).map(|writer| if writer == broken { &failing } else { &target.store }.clone()).collect();
        for (writer, result) in write_together(&stores, 2, local(&board)).into_iter().enumerate() {
            let error = result.unwrap_err();
            let expected = match (writer == broken, writer) {
                (true, _) => matches!(error, WriteError::Put { .. }),
                (false, 0) => matches!(error, WriteError::Part { writer, .. } if writer == broken),
                (false, _) => matches!(error, WriteError::NotCommitted { .. }),
            };
            assert!(expected && !error.is_by_membership(), "writer {writer}: {error}");
        }
        assert_eq!(latest(&target.store).id, id(1, 1));
        // The next one of the same membership is not disturbed by it.
        assert!(write_together(&vec![target.store.clone(); 3], 3, local(&board)).iter().all(Result::is_ok));
        assert_eq!(latest(&target.store).tensors, state(3, 5, 8));
    }
}

#[test]
fn a_committer_whose_membership_is_over_commits_nothing_though_it_has_all_records() {
    let (target, board) = (folder(), Board::new());
    write(&target.store, snapshot(1, 1, state(1, 5, 8))).unwrap();
    // Over at the moment at which the committer asks whether it is.
    let over_at_the_fence = |board: &Board, asked, _: &str| {
        if asked == Asked::Contains {
            board.end();
        }
    };
    let results = write_together(&vec![target.store.clone(); 3], 2, || Hooked::over(&board, over_at_the_fence));
    for result in results {
        let error = result.unwrap_err();
        assert!(error.is_by_membership(), "{error}");
    }
    assert_eq!(latest(&target.store).id, id(1, 1));
    assert!(!target.path(id(2, 1), "manifest.json").exists());
}

#[test]
fn what_the_writers_wait_for_ends_with_their_membership_and_with_an_emptied_store() {
    for emptied in [false, true] {
        let (target, board) = (folder(), Board::new());
        let tensors = state(2, 5, 8);
        let reached = Arc::new(Barrier::new(2));
        let here = Arc::clone(&reached);
        // Writer 2 is stuck in its shard and never reports.
        let stuck = Watched::over(&target.store, move |moment, _| {
            if moment == Moment::BeforePut {
                here.wait();
                loop {
                    thread::park();
                }
            }
            Ok(())
        });
        let mut writers = [writer(&target.store), writer(&target.store), writer(&stuck)];
        for (index, writer) in writers.iter_mut().enumerate() {
            writer.submit_part(part(2, 1, &tensors, 3, index, local(&board)())).unwrap();
        }
        reached.wait();
        let report = |board: &Board| board.keys().iter().any(|key| key.ends_with("part-00001"));
        while !report(&board) {
            thread::yield_now();
        }
        if emptied {
            board.empty();
        } else {
            board.end();
        }
        for writer in &mut writers[..2] {
            let error = writer.wait().unwrap().unwrap_err();
            assert!(error.is_by_membership() || (emptied && error.is_of_others()), "{error}");
        }
        // The stuck one is given up at once, and the next membership writes.
        assert!(writers[2].is_busy() && writers[2].abandon("the group was closed"));
        assert!(matches!(writers[2].wait(), Some(Err(WriteError::Abandoned { .. }))));
        assert!(!writers[2].abandon("again") && !writers[2].is_busy());
        assert!(restore_latest(&target.store, None).unwrap().is_none());
        let next = Board::new();
        assert!(write_together(&vec![target.store.clone(); 2], 2, local(&next)).iter().all(Result::is_ok));
    }
}

/// The committer lost its store before or after it had opened the attempt there, and the other writer comes to the next store only then.
#[test]
fn a_writer_that_comes_to_a_new_store_is_told_of_the_committers_failure_in_the_old_one() {
    for is_opened in [false, true] {
        let (target, board) = (folder(), Board::new());
        let tensors = state(2, 5, 8);
        let go_on = Arc::new(Barrier::new(2));
        let here = Arc::clone(&go_on);
        let slow = Watched::over(&target.store, move |moment, path| {
            if moment == Moment::BeforePut && path.contains("shard-00001") {
                here.wait();
            }
            Ok(())
        });
        let mut writers = [writer(&target.store), writer(&slow)];
        board.set_gone(!is_opened);
        for (index, writer) in writers.iter_mut().enumerate() {
            writer.submit_part(part(2, 1, &tensors, 2, index, local(&board)())).unwrap();
        }
        while !is_opened && board.refused() == 0 || is_opened && board.keys().is_empty() {
            thread::yield_now();
        }
        board.set_gone(false);
        go_on.wait();
        let [committer, other] = writers.each_mut().map(|writer| writer.wait().unwrap().unwrap_err());
        assert!(matches!(other, WriteError::NotCommitted { .. }), "{other}");
        assert!(matches!(committer, WriteError::Meeting { .. } | WriteError::StoreEmptied { .. }), "{committer}");
    }
}

#[test]
fn a_checkpoint_that_is_being_committed_cannot_be_given_up() {
    let (target, board) = (folder(), Board::new());
    let (reached, go_on) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let store = {
        let (reached, go_on) = (Arc::clone(&reached), Arc::clone(&go_on));
        Watched::over(&target.store, move |moment, path| {
            if moment == Moment::BeforePut && path.ends_with("g000001-000000/manifest.json") {
                reached.wait();
                go_on.wait();
            }
            Ok(())
        })
    };
    let mut committer = writer(&store);
    committer.submit_part(part(2, 1, &state(2, 5, 8), 1, 0, local(&board)())).unwrap();
    reached.wait();
    assert!(!committer.abandon("too late") && committer.is_busy());
    go_on.wait();
    assert_eq!(committer.wait().unwrap().unwrap().id, id(2, 1));
    // A later generation may have gone back behind it.
    let mut next = part(1, 2, &state(1, 5, 8), 1, 0, local(&Board::new())());
    next.id.generation = generation(2);
    committer.submit_part(next).unwrap();
    assert_eq!(committer.wait().unwrap().unwrap().id, id(1, 2));
}

#[test]
fn writers_that_did_not_plan_the_same_commit_nothing() {
    let (target, board) = (folder(), Board::new());
    let tensors = state(2, 5, 8);
    let mut writers = [writer(&target.store), writer(&target.store)];
    writers[0].submit_part(part(2, 1, &tensors, 2, 0, local(&board)())).unwrap();
    writers[1].submit_part(part(2, 1, &tensors[..4], 2, 1, local(&board)())).unwrap();
    assert!(matches!(writers[0].wait(), Some(Err(WriteError::OtherPlan { writer: 1, .. }))));
    assert!(matches!(writers[1].wait(), Some(Err(WriteError::NotCommitted { .. }))));
    assert!(restore_latest(&target.store, None).unwrap().is_none());
    // A part without a tensor that was planned is refused at once.
    let mut lacking = part(3, 1, &tensors, 2, 0, local(&board)());
    lacking.tensors.pop();
    assert!(matches!(writers[0].submit_part(lacking), Err(SubmitError::Tensors { .. })));
}
