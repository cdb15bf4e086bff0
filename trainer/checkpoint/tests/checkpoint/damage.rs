//! Whatever is damaged, restore says so and takes the checkpoint before; with none before it, it refuses.

use std::{fs, path::Path};

use lcl_checkpoint::{RestoreError, restore_latest};

use crate::support::{Folder, elements, folder, id, latest, snapshot, state, write};

const SHARD: &str = "shard-00001-of-00003.safetensors";

/// Two checkpoints, the newer one to be damaged.
fn two() -> Folder {
    let target = folder();
    write(&target.store, snapshot(10, 1, state(10, 5, 16))).unwrap();
    write(&target.store, snapshot(20, 1, state(20, 5, 16))).unwrap();
    target
}

/// Damages the newer of two and the only one, and expects the same reason in the warning and in the error.
fn check(file: &str, damage: impl Fn(&Path), reason: &str) {
    let target = two();
    damage(&target.path(id(20, 1), file));
    let restored = latest(&target.store);
    assert_eq!(restored.id, id(10, 1), "{file}: {reason}");
    assert_eq!(restored.tensors, state(10, 5, 16));
    let rejected = restored.rejected.first().map(ToString::to_string).unwrap_or_default();
    assert!(rejected.starts_with(&format!("step-00000020-g000001-000000/{file}: ")) && rejected.contains(reason), "{rejected}");
    assert!(target.store.verify(id(20, 1)).is_err() && target.store.verify(id(10, 1)).is_ok());

    target.store.remove(id(10, 1)).unwrap();
    let error = restore_latest(&target.store, None).unwrap_err();
    assert!(matches!(error, RestoreError::NoneUsable { .. }), "{file}: {error}");
    assert!(error.to_string().contains(file) && error.to_string().contains(reason), "{error}");
}

fn flip(path: &Path, position: impl Fn(usize) -> usize, bit: u8) {
    let mut bytes = fs::read(path).unwrap();
    let position = position(bytes.len());
    bytes[position] ^= 1 << bit;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_flipped_bit_in_a_shard_is_found_wherever_it_is() {
    let reason = "its checksum does not match";
    // Length of the header, header, first and last element.
    for position in [|_| 0, |_| 40, |length| length - 4 * 64 * 16, |length| length - 1] as [fn(usize) -> usize; 4] {
        check(SHARD, |path| flip(path, position, 3), reason);
    }
}

#[test]
fn a_shard_of_another_length_is_found_without_reading_it() {
    check(SHARD, |path| fs::write(path, &fs::read(path).unwrap()[..100]).unwrap(), "has 100 bytes where");
    check(SHARD, |path| fs::write(path, []).unwrap(), "has 0 bytes where");
    check(SHARD, |path| fs::write(path, [fs::read(path).unwrap(), vec![0]].concat()).unwrap(), "bytes where");
}

#[test]
fn a_missing_or_unreadable_shard_is_named() {
    check(SHARD, |path| fs::remove_file(path).unwrap(), "is missing");
    let replace_by_folder = |path: &Path| {
        fs::remove_file(path).unwrap();
        fs::create_dir(path).unwrap();
    };
    check(SHARD, replace_by_folder, "");
}

#[test]
fn shards_that_were_exchanged_are_found() {
    let exchange = |path: &Path| {
        fs::copy(path.with_file_name("shard-00002-of-00003.safetensors"), path).unwrap();
    };
    check(SHARD, exchange, "");
}

#[test]
fn every_flipped_bit_of_a_manifest_is_found() {
    let target = two();
    let path = target.path(id(20, 1), "manifest.json");
    let whole = fs::read(&path).unwrap();
    // Restoring reads shards: without them each of some thousand cases is a parse. The manifest's own check comes first.
    let mut accepted = Vec::new();
    for position in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[position] ^= 1 << (position % 8);
        fs::write(&path, bytes).unwrap();
        if target.store.manifest(id(20, 1)).is_ok() {
            accepted.push(position);
        }
    }
    assert_eq!(accepted, Vec::<usize>::new());
}

#[test]
fn a_manifest_that_cannot_be_believed_is_named() {
    let file = "manifest.json";
    let edit = |from: &'static str, to: &'static str| {
        move |path: &Path| {
            let text = fs::read_to_string(path).unwrap();
            assert!(text.contains(from));
            fs::write(path, text.replacen(from, to, 1)).unwrap();
        }
    };
    check(file, |path| fs::write(path, []).unwrap(), "not a manifest of this format");
    check(file, |path| fs::write(path, &fs::read(path).unwrap()[..200]).unwrap(), "not a manifest of this format");
    check(file, edit("\"version\":1", "\"version\":2"), "format version 2 is unknown: this program reads version 1");
    check(file, edit("lcl-checkpoint", "other"), "format is `other`");
    check(file, edit("\"samples\": 1280", "\"samples\": 1281"), "its checksum does not match its contents");
}

#[test]
fn a_folder_that_was_renamed_is_found() {
    let target = two();
    fs::rename(target.folder.path().join(id(10, 1).to_string()), target.folder.path().join(id(30, 1).to_string())).unwrap();
    let restored = latest(&target.store);
    assert_eq!(restored.id, id(20, 1));
    assert!(restored.rejected[0].reason.contains("it describes step-00000010-g000001-000000"), "{:?}", restored.rejected);
}

#[test]
fn folders_without_a_manifest_are_no_checkpoints_but_are_mentioned() {
    let target = two();
    fs::remove_file(target.path(id(20, 1), "manifest.json")).unwrap();
    let restored = latest(&target.store);
    assert_eq!(restored.id, id(10, 1));
    assert_eq!(restored.rejected[0].reason, "is missing: the write did not end");
    fs::remove_file(target.path(id(10, 1), "manifest.json")).unwrap();
    // Killed during the first write: nothing was ever saved.
    assert!(restore_latest(&target.store, None).unwrap().is_none());
    // One damaged checkpoint among them and it is an error again.
    write(&target.store, snapshot(5, 1, state(5, 5, 16))).unwrap();
    flip(&target.path(id(5, 1), SHARD), |length| length / 2, 0);
    assert!(matches!(restore_latest(&target.store, None), Err(RestoreError::NoneUsable { rejected, .. }) if rejected.len() == 1));
}

#[test]
fn several_damaged_ones_are_passed_over_and_each_is_named() {
    let target = two();
    write(&target.store, snapshot(30, 1, state(30, 5, 16))).unwrap();
    flip(&target.path(id(20, 1), SHARD), |length| length / 2, 0);
    fs::remove_file(target.path(id(30, 1), SHARD)).unwrap();
    let restored = latest(&target.store);
    assert_eq!(restored.id, id(10, 1));
    assert_eq!(restored.rejected.iter().map(|rejected| rejected.id).collect::<Vec<_>>(), [id(30, 1), id(20, 1)]);
}

/// Changes a manifest and gives it a valid checksum again, as a program with a bug could.
fn reseal(path: &Path, edit: impl FnOnce(&mut serde_json::Value)) {
    let mut envelope: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    edit(&mut envelope["manifest"]);
    let inner = serde_json::to_string(&envelope["manifest"]).unwrap();
    let hash = blake3::hash(inner.as_bytes()).to_hex();
    fs::write(path, format!(r#"{{"format":"lcl-checkpoint","version":1,"blake3":"{hash}","manifest":{inner}}}"#)).unwrap();
}

#[test]
fn a_manifest_with_a_valid_checksum_is_still_not_believed_blindly() {
    let check = |edit: fn(&mut serde_json::Value), reason: &str| {
        let target = two();
        reseal(&target.path(id(20, 1), "manifest.json"), edit);
        let restored = latest(&target.store);
        assert_eq!(restored.id, id(10, 1), "{reason}");
        assert!(restored.rejected[0].reason.contains(reason), "{:?}", restored.rejected);
    };
    // The file's own size is looked at before memory is asked for.
    check(|manifest| manifest["shards"][1]["bytes"] = u64::MAX.into(), "bytes where 18446744073709551615 were written");
    check(
        |manifest| manifest["shards"][1]["file"] = "../../secret".into(),
        "shard 1 is called `../../secret` where `shard-00001-of-00003.safetensors` is expected",
    );
    check(|manifest| manifest["tensors"][0]["shard"] = 3.into(), "tensor `model.layer0.weight` lies in shard 3 of 3");
    check(|manifest| manifest["tensors"][0]["shape"] = serde_json::json!([64, 16]), "where the manifest says [64, 16] of F32");
    check(|manifest| manifest["tensors"][0]["name"] = "other".into(), "tensor `model.layer0.weight` is not in the manifest");
    let duplicate = |manifest: &mut serde_json::Value| manifest["tensors"][1]["name"] = "model.layer0.weight".into();
    check(duplicate, "tensor `model.layer0.weight` is there twice");
    let surplus = |manifest: &mut serde_json::Value| {
        let tensor = serde_json::json!({ "name": "other", "shape": [], "dtype": "F32", "shard": 0 });
        manifest["tensors"].as_array_mut().unwrap().push(tensor);
    };
    check(surplus, "tensor `other` is missing");
}

#[test]
fn shards_of_random_bytes_never_panic() {
    for case in 0..50_usize {
        let target = folder();
        write(&target.store, snapshot(1, 1, state(1, 2, 2))).unwrap();
        // A shard of arbitrary bytes with the right checksum gets as far as the parser; half of them with a plausible header length.
        let noise = elements(&case.to_string(), case);
        let length = (case as u64).to_le_bytes();
        let noise = if case % 2 == 0 { noise.to_vec() } else { [&length[..], &noise[..]].concat() };
        fs::write(target.path(id(1, 1), "shard-00000-of-00003.safetensors"), &noise).unwrap();
        reseal(&target.path(id(1, 1), "manifest.json"), |manifest| {
            manifest["shards"][0]["bytes"] = noise.len().into();
            manifest["shards"][0]["blake3"] = blake3::hash(&noise).to_hex().to_string().into();
        });
        assert!(matches!(restore_latest(&target.store, None), Err(RestoreError::NoneUsable { .. })));
    }
}
