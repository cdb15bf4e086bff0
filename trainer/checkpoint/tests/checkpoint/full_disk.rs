//! A disk that has no more room: the error says so, what was there stays, what was begun goes, and training goes on.

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use crate::support::{Moment, Watched, folder, id, latest, no_space, open, snapshot, state, write};

const CHILD: &str = "LCL_CHECKPOINT_FULL_DISK_FOLDER";

#[test]
fn a_write_that_the_system_cuts_off_leaves_nothing_behind() {
    let target = folder();
    // A limit on the size of files is a real refusal in the middle of a write that needs no privilege. 512 blocks of 512 or 1024 bytes.
    let status = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 512; exec \"$0\" --exact full_disk::child --nocapture"])
        .arg(std::env::current_exe().unwrap())
        .env(CHILD, target.folder.path())
        .status()
        .unwrap();
    assert!(status.success());
    let restored = latest(&target.store);
    assert_eq!((restored.id, restored.tensors), (id(3, 1), state(3, 5, 64)));
    assert_eq!(target.store.list().unwrap().len(), 2);
}

#[test]
fn child() {
    let Some(folder) = std::env::var_os(CHILD) else { return };
    let store = open(folder.as_ref(), true);
    write(&store, snapshot(1, 1, state(1, 5, 64))).unwrap();
    // A shard of 2 MB.
    let error = write(&store, snapshot(2, 1, state(2, 3, 8192))).unwrap_err();
    let text = format!("{:#}", anyhow::Error::from(error));
    assert!(text.contains("step-00000002-g000001-000000/shard-") && text.contains("File too large"), "{text}");
    assert!(!std::path::Path::new(&folder).join(id(2, 1).to_string()).exists());
    assert_eq!(latest(&store).tensors, state(1, 5, 64));
    write(&store, snapshot(3, 1, state(3, 5, 64))).unwrap();
}

#[test]
fn whichever_file_does_not_fit_the_checkpoint_before_stays() {
    // Files until the disk is full: the first, second and third shard, the manifest; 4 fit.
    for files in 0..4 {
        let target = folder();
        write(&target.store, snapshot(1, 1, state(1, 5, 64))).unwrap();
        let room = Arc::new(AtomicI64::new(files));
        let left = Arc::clone(&room);
        let store = Watched::over(&target.store, move |moment, _| {
            if moment == Moment::BeforePut && left.fetch_sub(1, Ordering::SeqCst) <= 0 { Err(no_space()) } else { Ok(()) }
        });
        let error = format!("{:#}", anyhow::Error::from(write(&store, snapshot(2, 1, state(2, 5, 64))).unwrap_err()));
        assert!(error.contains("cannot write step-00000002-g000001-000000/") && error.contains("no storage space"), "{error}");
        assert_eq!(latest(&store).tensors, state(1, 5, 64));
        assert_eq!(store.list().unwrap().len(), 1, "{files} files");
        room.store(100, Ordering::SeqCst);
        write(&store, snapshot(2, 1, state(2, 5, 64))).unwrap();
        assert_eq!(latest(&store).tensors, state(2, 5, 64));
    }
}
