//! Checkpoints whose tensors are still being copied when they are begun.

use std::sync::Arc;

use lcl_checkpoint::{CheckpointWriter, ComingTensors, Handover, Part, Snapshot, SubmitError, TensorData, WriteError};

use crate::{
    meeting::{Board, Local},
    support::{folder, id, latest, open, snapshot, state},
    together::{part, plan, writer},
};

fn coming(snapshot: Snapshot) -> (Handover, Snapshot<ComingTensors>, Vec<TensorData>) {
    let Snapshot { step, generation, config_digest, metadata, tensors: given } = snapshot;
    let (handover, tensors) = ComingTensors::new();
    (handover, Snapshot { step, generation, config_digest, metadata, tensors }, given)
}

fn coming_part(part: Part) -> (Handover, Part<ComingTensors>, Vec<TensorData>) {
    let Part { id, plan, writer, tensors: given, config_digest, metadata, meeting, attempt } = part;
    let (handover, tensors) = ComingTensors::new();
    (handover, Part { id, plan, writer, tensors, config_digest, metadata, meeting, attempt }, given)
}

#[test]
fn what_is_still_being_copied_is_written_once_it_is_there_and_is_the_same_checkpoint() {
    let [target, other] = [folder(), folder()];
    let mut writer = writer(&target.store);
    let (handover, snapshot, tensors) = coming(snapshot(1, 1, state(1, 5, 40)));
    writer.submit_coming(snapshot, plan(&tensors, 1)).unwrap();
    assert!(writer.is_busy() && writer.poll().is_none());
    assert!(
        matches!(writer.submit(crate::support::snapshot(2, 1, state(2, 5, 40))), Err(SubmitError::Busy { busy_with, .. }) if busy_with == id(1, 1))
    );
    assert_eq!(target.store.list().unwrap(), []);
    handover.give(Ok(tensors.clone()));
    let committed = writer.wait().unwrap().unwrap();
    let mut at_once = self::writer(&other.store);
    at_once.submit(crate::support::snapshot(1, 1, tensors.clone())).unwrap();
    assert_eq!(committed.bytes, at_once.wait().unwrap().unwrap().bytes);
    assert_eq!(latest(&target.store).tensors, tensors);
    let manifest = |folder: &crate::support::Folder| std::fs::read(folder.path(id(1, 1), "manifest.json")).unwrap();
    assert_eq!(manifest(&target), manifest(&other));
}

#[test]
fn what_cannot_be_copied_fails_its_checkpoint_by_name_and_the_next_is_written() {
    let target = folder();
    let mut writer = writer(&target.store);
    let begin = |writer: &mut CheckpointWriter| {
        let (handover, snapshot, tensors) = coming(snapshot(1, 1, state(1, 3, 4)));
        writer.submit_coming(snapshot, plan(&tensors, 1)).unwrap();
        (handover, tensors)
    };
    let (handover, _) = begin(&mut writer);
    handover.give(Err("copying `model.x`".to_owned()));
    let error = writer.wait().unwrap().unwrap_err();
    assert!(matches!(&error, WriteError::Copy { id: of, .. } if *of == id(1, 1)) && error.to_string().contains("`model.x`"), "{error}");
    let (handover, _) = begin(&mut writer);
    drop(handover);
    let error = writer.wait().unwrap().unwrap_err();
    assert!(error.to_string().contains("whoever copied it is gone"), "{error}");
    // Not what was planned.
    let (handover, tensors) = begin(&mut writer);
    handover.give(Ok(tensors[1..].to_vec()));
    let error = writer.wait().unwrap().unwrap_err();
    assert!(matches!(&error, WriteError::Tensors { .. }), "{error}");
    assert_eq!(std::fs::read_dir(target.folder.path()).unwrap().count(), 0);
    let (handover, tensors) = begin(&mut writer);
    handover.give(Ok(tensors.clone()));
    assert_eq!(writer.wait().unwrap().unwrap().id, id(1, 1));
    assert_eq!(latest(&target.store).tensors, tensors);
}

#[test]
fn a_copy_that_fails_at_one_writer_fails_the_checkpoint_for_all() {
    for failing in [None, Some(0), Some(1)] {
        let (target, board) = (folder(), Board::new());
        let tensors = state(1, 6, 40);
        let mut writers: Vec<_> = (0..2).map(|_| writer(&open(target.folder.path(), true))).collect();
        for (rank, writer) in writers.iter_mut().enumerate() {
            let (handover, part, own) = coming_part(part(1, 1, &tensors, 2, rank, Arc::new(Local(Arc::clone(&board)))));
            writer.submit_coming_part(part).unwrap();
            handover.give(if failing == Some(rank) { Err("copying `moment2.y`".to_owned()) } else { Ok(own) });
        }
        let outcomes: Vec<_> = writers.iter_mut().map(|writer| writer.wait().unwrap()).collect();
        let Some(failing) = failing else {
            assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
            assert_eq!(latest(&target.store).tensors, tensors);
            continue;
        };
        for (rank, outcome) in outcomes.into_iter().enumerate() {
            let error = outcome.unwrap_err();
            assert!(error.to_string().contains("copying `moment2.y`"), "{failing}, {rank}: {error}");
            assert_eq!(error.is_of_others(), rank != failing, "{failing}, {rank}: {error}");
        }
        assert!(target.store.list().unwrap().iter().all(|entry| !entry.complete));
    }
}

#[test]
fn a_part_that_is_still_being_copied_can_be_given_up_and_its_memory_comes_back() {
    let (target, board) = (folder(), Board::new());
    let tensors = state(1, 4, 4);
    let mut writer = writer(&target.store);
    let (handover, part, own) = coming_part(part(1, 1, &tensors, 1, 0, Arc::new(Local(board))));
    writer.submit_coming_part(part).unwrap();
    assert!(writer.abandon("the group is over") && !writer.is_busy());
    let error = writer.poll().unwrap().unwrap_err();
    assert!(matches!(&error, WriteError::Abandoned { .. }), "{error}");
    handover.give(Ok(own));
    // What comes after it is written, in the same folder.
    writer.submit(snapshot(2, 2, state(2, 4, 4))).unwrap();
    writer.wait().unwrap().unwrap();
    let complete: Vec<_> = target.store.list().unwrap().into_iter().filter(|entry| entry.complete).map(|entry| entry.id).collect();
    assert_eq!(complete, [id(2, 2)]);
}
