//! The background writer: order, busy, memory given back, retention, failures.

use std::{
    num::{NonZeroU32, NonZeroU64},
    sync::{Arc, Barrier, Mutex},
};

use lcl_checkpoint::{
    CheckpointEntry, CheckpointWriter, Dtype, Retention, SubmitError, TensorData, WriteError, WriterOptions, restore_latest, shared_bytes,
};

use crate::support::{Moment, Watched, folder, id, latest, no_space, snapshot, state, write};

fn retention(keep_last: u32, every: Option<u64>) -> WriterOptions {
    let retention = Retention { keep_last: NonZeroU32::new(keep_last).unwrap(), keep_every_steps: every.and_then(NonZeroU64::new) };
    WriterOptions { retention: Some(retention), ..WriterOptions::default() }
}

#[test]
fn a_second_snapshot_is_handed_back_while_the_first_is_written() {
    let target = folder();
    let (reached, go_on) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let hook = {
        let (reached, go_on, once) = (Arc::clone(&reached), Arc::clone(&go_on), Mutex::new(true));
        move |moment, _: &str| {
            if moment == Moment::BeforePut && std::mem::take(&mut *once.lock().unwrap()) {
                reached.wait();
                go_on.wait();
            }
            Ok(())
        }
    };
    let mut writer = CheckpointWriter::new(Watched::over(&target.store, hook), WriterOptions::default());
    assert!(!writer.is_busy() && writer.poll().is_none() && writer.wait().is_none());
    writer.submit(snapshot(1, 1, state(1, 3, 4))).unwrap();
    reached.wait();
    assert!(writer.is_busy() && writer.poll().is_none());
    let Err(SubmitError::Busy { busy_with, snapshot: back }) = writer.submit(snapshot(2, 1, state(2, 3, 4))) else {
        panic!("a second snapshot was taken");
    };
    assert_eq!((busy_with, back.id()), (id(1, 1), id(2, 1)));
    go_on.wait();
    assert_eq!(writer.wait().unwrap().unwrap().id, id(1, 1));
    assert_eq!(writer.last_committed(), Some(id(1, 1)));
    writer.submit(*back).unwrap();
    drop(writer);
    assert_eq!(latest(&target.store).tensors, state(2, 3, 4));
}

#[test]
fn the_callers_memory_is_free_again_when_the_result_is_there() {
    let target = folder();
    let mut buffer = Arc::new(vec![7_u8; 4096]);
    let address = buffer.as_ptr();
    let check = |writer: &mut CheckpointWriter, buffer: &mut Arc<Vec<u8>>, step, succeeds: bool| {
        let view = |index: usize| TensorData {
            name: format!("t{index}"),
            shape: vec![1024],
            dtype: Dtype::U8,
            data: shared_bytes(buffer, move |all| &all[index * 1024..(index + 1) * 1024]),
        };
        writer.submit(snapshot(step, 1, (0..4).map(view).collect())).unwrap();
        assert_eq!(writer.wait().unwrap().is_ok(), succeeds);
        Arc::get_mut(buffer).expect("the writer still holds the memory").fill(step as u8);
    };
    let mut writer = CheckpointWriter::new(target.store.clone(), WriterOptions::default());
    check(&mut writer, &mut buffer, 1, true);
    check(&mut writer, &mut buffer, 2, true);
    assert_eq!(buffer.as_ptr(), address);
    let restored = latest(&target.store);
    assert!(restored.tensors.iter().all(|tensor| tensor.data.iter().all(|&byte| byte == 1)));
    // A failing write gives it back too.
    let full = Watched::over(&target.store, |_, _| Err(no_space()));
    check(&mut CheckpointWriter::new(full, WriterOptions::default()), &mut buffer, 3, false);
}

#[test]
fn retention_keeps_the_last_ones_and_every_nth() {
    let target = folder();
    let mut writer = CheckpointWriter::new(target.store.clone(), retention(2, Some(20)));
    for step in [10, 20, 30, 40, 50, 60, 65] {
        writer.submit(snapshot(step, 1, state(step, 2, 4))).unwrap();
        let committed = writer.wait().unwrap().unwrap();
        assert_eq!(committed.retention_problems, Vec::<String>::new());
    }
    let left: Vec<u64> = target.store.list().unwrap().iter().map(|entry| entry.id.step).collect();
    assert_eq!(left, [65, 60, 40, 20]);
    assert_eq!(std::fs::read_dir(target.folder.path()).unwrap().count(), 4);
    for entry in target.store.list().unwrap() {
        target.store.verify(entry.id).unwrap();
    }
}

#[test]
fn leftovers_of_killed_writes_are_swept_even_files_that_no_listing_shows() {
    let target = folder();
    let leftover = target.path(id(3, 1), "shard-00000-of-00003.safetensors#1");
    std::fs::create_dir_all(leftover.parent().unwrap()).unwrap();
    std::fs::write(&leftover, "half a shard").unwrap();
    // Beyond the commit: may be under way.
    let newer = target.path(id(3, 9), "shard-00000-of-00003.safetensors");
    std::fs::create_dir_all(newer.parent().unwrap()).unwrap();
    std::fs::write(&newer, "half a shard").unwrap();
    let mut writer = CheckpointWriter::new(target.store.clone(), retention(1, None));
    writer.submit(snapshot(4, 2, state(4, 2, 4))).unwrap();
    assert_eq!(writer.wait().unwrap().unwrap().removed, [id(3, 1)]);
    let left = target.store.list().unwrap();
    assert_eq!(left, [CheckpointEntry { id: id(4, 2), complete: true }, CheckpointEntry { id: id(3, 9), complete: false }]);
    assert!(!leftover.exists());
}

#[test]
fn a_checkpoint_is_removed_manifest_first() {
    let target = folder();
    write(&target.store, snapshot(1, 1, state(1, 4, 4))).unwrap();
    let deleted = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&deleted);
    let store = Watched::over(&target.store, move |moment, path| {
        if moment == Moment::AfterDelete {
            log.lock().unwrap().push(path.rsplit('/').next().unwrap_or_default().to_owned());
        }
        Ok(())
    });
    store.remove(id(1, 1)).unwrap();
    let deleted = deleted.lock().unwrap();
    assert_eq!((deleted.len(), deleted[0].as_str()), (4, "manifest.json"));
    assert_eq!(std::fs::read_dir(target.folder.path()).unwrap().count(), 0);
}

#[test]
fn a_retention_that_fails_does_not_fail_the_checkpoint() {
    let target = folder();
    let store = Watched::over(&target.store, |moment, _| if moment == Moment::BeforeDelete { Err(no_space()) } else { Ok(()) });
    let mut writer = CheckpointWriter::new(store, retention(1, None));
    for step in [1, 2] {
        writer.submit(snapshot(step, 1, state(step, 2, 4))).unwrap();
        let committed = writer.wait().unwrap().unwrap();
        assert_eq!(committed.retention_problems.len(), usize::from(step == 2));
    }
    assert_eq!(latest(&target.store).id, id(2, 1));
}

#[test]
fn an_error_is_reported_once_and_the_same_step_can_be_submitted_again() {
    let target = folder();
    let broken = Arc::new(Mutex::new(true));
    let switch = Arc::clone(&broken);
    let store = Watched::over(&target.store, move |_, _| if *switch.lock().unwrap() { Err(no_space()) } else { Ok(()) });
    let mut writer = CheckpointWriter::new(store, WriterOptions::default());
    writer.submit(snapshot(1, 1, state(1, 2, 4))).unwrap();
    assert!(matches!(writer.wait(), Some(Err(WriteError::Put { .. }))));
    assert!(writer.wait().is_none() && writer.last_committed().is_none());
    *broken.lock().unwrap() = false;
    writer.submit(snapshot(1, 1, state(1, 2, 4))).unwrap();
    assert_eq!(writer.wait().unwrap().unwrap().id, id(1, 1));
    assert!(matches!(writer.submit(snapshot(1, 1, state(1, 2, 4))), Err(SubmitError::NotLater { .. })));
}

#[test]
fn what_cannot_be_saved_is_refused_at_once() {
    let target = folder();
    let mut writer = CheckpointWriter::new(target.store.clone(), WriterOptions::default());
    let mut tensors = state(1, 2, 4);
    tensors[0].shape = vec![1000];
    let error = writer.submit(snapshot(1, 1, tensors)).unwrap_err();
    assert!(matches!(error, SubmitError::Tensors { .. }));
    assert!(!writer.is_busy());
    assert!(restore_latest(&target.store, None).unwrap().is_none());
}

#[test]
fn the_store_can_be_used_and_dropped_inside_an_async_runtime() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    runtime.block_on(async {
        let target = folder();
        write(&target.store, snapshot(1, 1, state(1, 2, 4))).unwrap();
        assert_eq!(latest(&target.store).id, id(1, 1));
        drop(target.store);
    });
}
