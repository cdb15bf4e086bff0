//! The coordinator's stream as the store over which a group forms.

use std::time::Duration;

use lcl_coordinator::{GroupStore, StoreError as Failure};
use lcl_torch::collectives::{Store, StoreError};

/// One member's session for one generation.
pub(super) struct Rendezvous(GroupStore);

impl Rendezvous {
    pub(super) fn new(store: GroupStore) -> Self {
        Self(store)
    }
}

fn translate(key: &str) -> impl FnOnce(Failure) -> StoreError {
    let key = key.to_owned();
    move |failure| match failure {
        Failure::Cancelled { .. } => StoreError::Cancelled,
        Failure::TimedOut { patience, .. } => StoreError::Timeout { key, timeout: patience },
        other => StoreError::Unreachable { reason: crate::chain(&other) },
    }
}

fn owned(keys: &[&str]) -> Vec<String> {
    keys.iter().map(|key| (*key).to_owned()).collect()
}

impl Store for Rendezvous {
    fn set(&self, key: &str, value: &[u8], timeout: Duration) -> Result<(), StoreError> {
        self.0.set(key, value, timeout).map_err(translate(key))
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, StoreError> {
        self.0.get(key, timeout).map_err(translate(key))
    }

    fn compare_set(&self, key: &str, expected: &[u8], desired: &[u8], timeout: Duration) -> Result<Vec<u8>, StoreError> {
        self.0.compare_set(key, expected, desired, timeout).map_err(translate(key))
    }

    fn add(&self, key: &str, amount: i64, timeout: Duration) -> Result<i64, StoreError> {
        self.0.add(key, amount, timeout).map_err(translate(key))
    }

    fn append(&self, key: &str, value: &[u8], timeout: Duration) -> Result<(), StoreError> {
        self.0.append(key, value, timeout).map_err(translate(key))
    }

    fn delete(&self, key: &str, timeout: Duration) -> Result<bool, StoreError> {
        self.0.delete(key, timeout).map_err(translate(key))
    }

    fn contains(&self, keys: &[&str], timeout: Duration) -> Result<bool, StoreError> {
        self.0.check(&owned(keys), timeout).map_err(translate(keys.first().unwrap_or(&"")))
    }

    fn count(&self, timeout: Duration) -> Result<u64, StoreError> {
        self.0.count_keys(timeout).map(i64::unsigned_abs).map_err(translate("all keys"))
    }

    fn wait(&self, keys: &[&str], timeout: Duration) -> Result<(), StoreError> {
        self.0.wait(&owned(keys), timeout).map_err(translate(keys.first().unwrap_or(&"")))
    }

    fn cancel(&self) {
        self.0.cancel("the group was dropped");
    }
}
