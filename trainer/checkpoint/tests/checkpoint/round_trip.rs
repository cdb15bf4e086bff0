//! What was saved comes back, on every store and in every split.

use std::{num::NonZeroUsize, sync::Arc};

use lcl_checkpoint::{
    CheckpointStore, CheckpointWriter, Dtype, Manifest, RestoreError, Snapshot, StoreError, StoreOptions, TensorData, TensorSpec,
    WriteError, WriterOptions, restore, restore_latest,
};
use object_store::memory::InMemory;
use proptest::prelude::*;

use crate::support::{Watched, elements, folder, id, latest, no_space, open, snapshot, state, write};

/// A store in memory that takes anything above 100 bytes in parts.
fn in_memory() -> CheckpointStore {
    CheckpointStore::from_object_store("memory:///", Arc::new(InMemory::new()), 100).unwrap()
}

fn any_state() -> impl Strategy<Value = Vec<TensorData>> {
    let dtype = prop::sample::select(vec![Dtype::F32, Dtype::BF16, Dtype::I64, Dtype::BOOL, Dtype::F64]);
    prop::collection::vec((dtype, prop::collection::vec(0_usize..7, 0..4), any::<u64>()), 1..20).prop_map(|tensors| {
        let one = |(index, (dtype, shape, seed)): (usize, (Dtype, Vec<usize>, u64))| {
            let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
            TensorData { name: format!("{index} \"ü\"/.."), shape, dtype, data: elements(&seed.to_string(), bytes) }
        };
        tensors.into_iter().enumerate().map(one).collect()
    })
}

fn check(store: &CheckpointStore, saved: &Snapshot, shards: usize, threads: usize) {
    let options =
        WriterOptions { shards: NonZeroUsize::new(shards), threads: NonZeroUsize::new(threads).unwrap(), ..WriterOptions::default() };
    let mut writer = CheckpointWriter::new(store.clone(), options);
    writer.submit(saved.clone()).unwrap();
    let committed = writer.wait().unwrap().unwrap();
    assert_eq!(committed.id, saved.id());
    let specs: Vec<TensorSpec> = saved.tensors.iter().map(TensorData::spec).collect();
    let restored = restore_latest(store, Some(&specs)).unwrap().unwrap();
    assert_eq!(restored.id, saved.id());
    assert_eq!(restored.config_digest, saved.config_digest);
    assert_eq!(restored.metadata, saved.metadata);
    assert_eq!(restored.tensors, saved.tensors);
    assert_eq!(restored.rejected, []);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_state_comes_back_from_files(tensors in any_state(), shards in 1_usize..6, threads in 1_usize..4) {
        let folder = tempfile::tempdir().unwrap();
        check(&open(folder.path(), false), &snapshot(7, 1, tensors), shards, threads);
    }

    #[test]
    fn any_state_comes_back_from_an_object_store_written_in_parts(tensors in any_state(), shards in 1_usize..6, threads in 1_usize..4) {
        check(&in_memory(), &snapshot(7, 1, tensors), shards, threads);
    }
}

#[test]
fn a_folder_looks_as_documented_and_holds_nothing_else() {
    let target = folder();
    write(&target.store, snapshot(1200, 1, state(1200, 5, 10))).unwrap();
    let mut files: Vec<String> = std::fs::read_dir(target.folder.path().join("step-00001200-g000001-000000"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    assert_eq!(
        files,
        ["manifest.json", "shard-00000-of-00003.safetensors", "shard-00001-of-00003.safetensors", "shard-00002-of-00003.safetensors"]
    );
    let text = std::fs::read_to_string(target.path(id(1200, 1), "manifest.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["version"], 1);
    assert_eq!(json["manifest"]["step"], 1200);
    assert_eq!(json["manifest"]["tensors"][0]["name"], "model.layer0.weight");
}

#[test]
fn folders_with_unusual_names_work() {
    let parent = tempfile::tempdir().unwrap();
    for name in ["with space", "ümlaut", "per%20cent", "hash#1", "plus+and&"] {
        let store = open(&parent.path().join(name), true);
        write(&store, snapshot(1, 1, state(1, 2, 3))).unwrap();
        assert_eq!(latest(&store).tensors, state(1, 2, 3), "{name}");
        assert!(parent.path().join(name).join("step-00000001-g000001-000000/manifest.json").exists(), "{name}");
    }
}

#[test]
fn other_files_in_the_folder_are_left_alone() {
    let target = folder();
    let root = target.folder.path();
    std::fs::write(root.join("metrics.jsonl"), "{}").unwrap();
    std::fs::create_dir(root.join("step-latest")).unwrap();
    assert!(restore_latest(&target.store, None).unwrap().is_none());
    write(&target.store, snapshot(1, 1, state(1, 2, 3))).unwrap();
    assert_eq!(target.store.list().unwrap().len(), 1);
    assert!(root.join("metrics.jsonl").exists() && root.join("step-latest").exists());
}

#[test]
fn an_empty_or_new_folder_has_nothing_to_restore() {
    let target = folder();
    assert!(restore_latest(&target.store, None).unwrap().is_none());
    let new = open(&target.folder.path().join("a/b/c"), true);
    assert!(restore_latest(&new, None).unwrap().is_none());
}

#[test]
fn a_missing_folder_is_an_error_for_whoever_only_reads() {
    let parent = tempfile::tempdir().unwrap();
    let uri = url::Url::from_directory_path(parent.path().join("missing")).unwrap();
    let error = CheckpointStore::open(uri.as_str(), StoreOptions { create: false, ..StoreOptions::default() }).unwrap_err();
    assert!(matches!(&error, StoreError::Folder { .. }) && error.to_string().contains("missing"), "{error}");
}

#[test]
fn a_uri_that_cannot_be_used_is_named_with_what_to_write_instead() {
    let check = |uri: &str, expected: &str| {
        let error = CheckpointStore::open(uri, StoreOptions::default()).unwrap_err().to_string();
        assert!(error.contains(uri) && error.contains(expected), "{uri}: {error}");
    };
    check("/runs/a", "file:///runs/a");
    check("ftp://host/a", "use file, s3, gs or az");
    check("file://host/a", "write file:///folder");
    check("s3:///a", "s3://bucket/folder");
    check("memory:///", "use file, s3, gs or az");
}

#[test]
fn cloud_uris_open_without_contact() {
    for uri in ["s3://bucket/run", "gs://bucket/run", "az://container/run"] {
        match CheckpointStore::open(uri, StoreOptions::default()) {
            Ok(store) => assert_eq!(store.uri(), uri),
            // Azure cannot do without an account's name, which the environment of a test does not have.
            Err(error) => assert!(matches!(error, StoreError::Access { .. }) && uri.starts_with("az"), "{uri}: {error:?}"),
        }
    }
}

#[test]
fn a_checkpoint_of_another_model_is_an_error_that_names_the_tensor() {
    let target = folder();
    write(&target.store, snapshot(1, 1, state(1, 2, 3))).unwrap();
    write(&target.store, snapshot(2, 1, state(2, 2, 4))).unwrap();
    let specs = |tensors: &[TensorData]| -> Vec<TensorSpec> { tensors.iter().map(TensorData::spec).collect() };
    let check = |expected: &[TensorSpec], message: &str| {
        let error = restore_latest(&target.store, Some(expected)).unwrap_err();
        assert!(matches!(error, RestoreError::Mismatch { .. }) && error.to_string().contains(message), "{error}");
    };
    // The older one would fit, but taking it would undo training without a word.
    check(&specs(&state(1, 2, 3)), "tensor `model.layer0.weight` is [4, 64] of F32 where [3, 64] of F32 is expected");
    check(&specs(&state(1, 3, 4)), "tensor `model.layer2.weight` is missing");
    check(&specs(&state(1, 1, 4)), "tensor `model.layer1.weight` is not expected");
}

#[test]
fn one_checkpoint_can_be_restored_by_name() {
    let target = folder();
    write(&target.store, snapshot(1, 1, state(1, 2, 3))).unwrap();
    write(&target.store, snapshot(2, 1, state(2, 2, 3))).unwrap();
    assert_eq!(restore(&target.store, id(1, 1), None).unwrap().tensors, state(1, 2, 3));
    let error = restore(&target.store, id(3, 1), None).unwrap_err().to_string();
    assert!(error.contains("step-00000003-g000001-000000/manifest.json: is not there"), "{error}");
    assert_eq!(target.store.manifest(id(2, 1)).unwrap().tensors.len(), 3);
    target.store.verify(id(2, 1)).unwrap();
}

#[test]
fn a_commit_whose_shard_is_gone_is_refused() {
    let target = folder();
    write(&target.store, snapshot(1, 1, state(1, 2, 3))).unwrap();
    let manifest = target.store.manifest(id(1, 1)).unwrap();
    target.store.remove(id(1, 1)).unwrap();
    let error = target.store.commit(&manifest).unwrap_err().to_string();
    assert!(error.contains("shard-00000-of-00003.safetensors is no longer there"), "{error}");
    assert!(restore_latest(&target.store, None).unwrap().is_none());
}

#[test]
fn a_manifest_is_never_overwritten_and_committing_it_again_changes_nothing() {
    let target = folder();
    write(&target.store, snapshot(1, 1, state(1, 2, 3))).unwrap();
    let manifest = target.store.manifest(id(1, 1)).unwrap();
    target.store.commit(&manifest).unwrap();
    let other = Manifest { config_digest: "another".into(), ..manifest.clone() };
    assert!(matches!(target.store.commit(&other), Err(WriteError::AlreadyCommitted { .. })));
    assert_eq!(target.store.manifest(id(1, 1)).unwrap(), manifest);
}

#[test]
fn a_failed_part_fails_the_checkpoint_on_an_object_store() {
    let store = Watched::over(&in_memory(), |_, path| if path.contains("shard-00001") { Err(no_space()) } else { Ok(()) });
    let error = write(&store, snapshot(1, 1, state(1, 5, 10))).unwrap_err();
    assert!(error.to_string().contains("shard-00001-of-00003.safetensors"), "{error}");
    assert_eq!(store.list().unwrap(), []);
}
