//! The coordinator's stream as the place where the writers of a checkpoint meet.

use std::time::Duration;

use lcl_checkpoint::{Meeting, MeetingError};
use lcl_coordinator::{GroupStore, StoreError};

/// Of operations that wait for nobody. The coordinator answers within milliseconds; one that does not is as good as lost.
const PATIENCE: Duration = Duration::from_secs(10);

/// One generation's store: it answers only while the generation is open.
#[derive(Debug)]
pub(super) struct MeetingPlace(GroupStore);

impl MeetingPlace {
    pub(super) fn new(store: GroupStore) -> Self {
        Self(store)
    }
}

fn translate(error: &StoreError) -> MeetingError {
    MeetingError { reason: crate::chain(error) }
}

impl Meeting for MeetingPlace {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), MeetingError> {
        self.0.set(key, value, PATIENCE).map_err(|error| translate(&error))
    }

    fn get(&self, key: &str, patience: Duration) -> Result<Option<Vec<u8>>, MeetingError> {
        match self.0.get(key, patience) {
            Ok(value) => Ok(Some(value)),
            Err(StoreError::TimedOut { .. }) => Ok(None),
            Err(error) => Err(translate(&error)),
        }
    }

    fn contains(&self, key: &str) -> Result<bool, MeetingError> {
        self.0.check(&[key.to_owned()], PATIENCE).map_err(|error| translate(&error))
    }

    fn delete(&self, key: &str) -> Result<(), MeetingError> {
        self.0.delete(key, PATIENCE).map(drop).map_err(|error| translate(&error))
    }

    fn is_over(&self) -> bool {
        self.0.is_over()
    }
}
