//! A real S3 server: round trip, conditional commit, several writers, and two that believe they are alone.
//!
//! The store takes its address and credentials from the environment, so the work is done by this test program run again with one that names
//! the server.

use std::{env, process::Command, sync::Arc, thread};

use lcl_checkpoint::{CheckpointStore, StoreOptions, WriteError, restore};
use lcl_tests::s3::Server;

use crate::{
    meeting::{Board, Local},
    support::{id, latest, snapshot, state, write},
    together::{part, writer},
};

const CHILD: &str = "LCL_CHECKPOINT_S3_CHILD";

/// Runs one of the children below against it.
fn run(server: &Server, child: &str) {
    let status = Command::new(env::current_exe().unwrap())
        .args(["--exact", &format!("s3::{child}"), "--nocapture"])
        .env(CHILD, child)
        .envs(server.environment())
        .status()
        .unwrap();
    assert!(status.success(), "{child}: {status}");
}

fn is_child(name: &str) -> bool {
    env::var(CHILD).is_ok_and(|child| child == name)
}

fn open(run: &str) -> CheckpointStore {
    CheckpointStore::open(&Server::uri(run), StoreOptions::default()).unwrap()
}

#[test]
fn checkpoints_on_a_real_s3_server_are_written_together_committed_once_and_restored() {
    let server = Server::start().unwrap();
    run(&server, "round_trip_child");
    run(&server, "two_writers_child");
}

#[test]
fn round_trip_child() {
    if !is_child("round_trip_child") {
        return;
    }
    let store = open("round-trip");
    assert_eq!(store.list().unwrap(), []);
    assert_eq!(store.claim_epoch().unwrap(), 1);
    // One writer; the second commit of the same step and generation fails and changes nothing.
    write(&store, snapshot(1, 1, state(1, 5, 8))).unwrap();
    let error = write(&store, snapshot(1, 1, state(2, 5, 8))).unwrap_err();
    assert!(matches!(error, WriteError::AlreadyCommitted { .. }), "{error}");
    assert_eq!(latest(&store).tensors, state(1, 5, 8));
    // Three writers, and one of them with a shard above the limit of a single request: 96 MiB.
    let board = Board::new();
    let mut tensors = state(2, 5, 8);
    tensors.push(state(3, 1, 96 << 12).remove(0));
    tensors.last_mut().unwrap().name = "large".to_owned();
    let mut writers: Vec<_> = (0..3).map(|_| writer(&open("round-trip"))).collect();
    for (index, writer) in writers.iter_mut().enumerate() {
        writer.submit_part(part(2, 1, &tensors, 3, index, Arc::new(Local(Arc::clone(&board))))).unwrap();
    }
    for writer in &mut writers {
        writer.wait().unwrap().unwrap();
    }
    let restored = latest(&store);
    assert_eq!((restored.id, restored.tensors == tensors), (id(2, 1), true));
    // Its manifest cannot be created a second time, whatever it says.
    let mut manifest = store.manifest(id(2, 1)).unwrap();
    store.commit(&manifest).unwrap();
    manifest.config_digest = "another".to_owned();
    assert!(matches!(store.commit(&manifest), Err(WriteError::AlreadyCommitted { .. })));
    store.remove(id(2, 1)).unwrap();
    assert_eq!(latest(&store).id, id(1, 1));
}

#[test]
fn two_writers_child() {
    if !is_child("two_writers_child") {
        return;
    }
    let mut committed = 0;
    for round in 0..10 {
        let winners: Vec<u64> = thread::scope(|scope| {
            let writers: Vec<_> = (0..2)
                .map(|writer| {
                    scope.spawn(move || write(&open("contested"), snapshot(round, 1, state(round * 10 + writer, 3, 64))).map(|_| writer))
                })
                .collect();
            writers.into_iter().filter_map(|writer| writer.join().unwrap().ok()).collect()
        });
        assert!(winners.len() <= 1);
        let visible = restore(&open("contested"), id(round, 1), None).map(|restored| restored.tensors).ok();
        assert_eq!(visible, winners.first().map(|winner| state(round * 10 + winner, 3, 64)));
        committed += winners.len();
    }
    println!("{committed} of 10 committed");
}
