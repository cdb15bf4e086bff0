//! The store takes a URI for what the manifest's rule takes it for.

use lcl_checkpoint::{CheckpointStore, StoreError, StoreOptions};
use lcl_trainer_config::check_run_uri;

/// Every manifest that is valid offline names a place that the store understands, and every URI that the store refuses is refused offline.
#[test]
fn uris_are_judged_as_lcl_validate_does() {
    let options = StoreOptions { create: false, ..StoreOptions::default() };
    let mut wrong = Vec::new();
    for line in include_str!("../../../config/tests/uris.txt").lines().filter(|line| !line.starts_with('#')) {
        let (verdict, uri) = line.split_once(' ').unwrap();
        // Folders that are not there and credentials that nobody gave are no fault of the URI.
        let is_understood = !matches!(CheckpointStore::open(uri, options), Err(StoreError::Uri { .. }));
        let expected = match verdict {
            "accepted" => check_run_uri(uri).is_ok() && is_understood,
            "refused" => check_run_uri(uri).is_err() && !is_understood,
            "stricter" => check_run_uri(uri).is_err() && is_understood,
            other => panic!("{other} is no verdict"),
        };
        wrong
            .extend((!expected).then(|| format!("{line}: the rule says {:?}, the store understands: {is_understood}", check_run_uri(uri))));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
