//! The store of a generation for blocking threads: what a `c10d::Store` forwards to.

use std::time::Duration;

use lcl_protocol::{Generation, MemberError, StoreRequest, StoreResponse};

use super::MemberClient;

/// A store operation gave no result.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The generation has ended, or the stream to the coordinator broke: drop the group.
    #[error("{operation} in {generation} was cancelled: {reason}")]
    Cancelled {
        /// What was asked for.
        operation: String,
        /// In which generation.
        generation: Generation,
        /// Why.
        reason: String,
    },
    /// The coordinator refused it.
    #[error("{operation} in {generation} was refused: {reason}")]
    Refused {
        /// What was asked for.
        operation: String,
        /// In which generation.
        generation: Generation,
        /// Why.
        reason: String,
    },
    /// No answer in time: a peer has not set what this one waits for.
    #[error("{operation} in {generation} had no answer within {patience:?}: look for the member that does not take part")]
    TimedOut {
        /// What was asked for.
        operation: String,
        /// In which generation.
        generation: Generation,
        /// How long was waited.
        patience: Duration,
    },
    /// The coordinator gave an answer to another question.
    #[error("{operation} in {generation} had an answer of another kind: use images of one release for all parts of a job")]
    WrongAnswer {
        /// What was asked for.
        operation: String,
        /// In which generation.
        generation: Generation,
    },
    /// A mistake in the program.
    #[error("{operation} in {generation} was not possible")]
    Misuse {
        /// What was asked for.
        operation: String,
        /// In which generation.
        generation: Generation,
        /// Why.
        source: MemberError,
    },
}

/// One generation's store. Operations block the calling thread, at most for `patience`, and end at once when the generation does.
#[derive(Clone, Debug)]
pub struct GroupStore {
    pub(super) client: MemberClient,
    pub(super) generation: Generation,
}

impl GroupStore {
    pub(super) const fn new(client: MemberClient, generation: Generation) -> Self {
        Self { client, generation }
    }

    /// Ends every operation that waits, in all stores of this generation.
    pub fn cancel(&self, reason: &str) {
        self.client.shared.lock().cancel(self.generation, reason);
    }

    /// Whether the generation has ended for this member. As long as it has not, a store that cannot be reached may come back, empty, with
    /// the next coordinator.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.client.shared.lock().machine.generation() != Some(self.generation)
    }

    /// Sets a key.
    pub fn set(&self, key: &str, value: &[u8], patience: Duration) -> Result<(), StoreError> {
        let request = StoreRequest::Set { key: key.to_owned(), value: value.to_vec() };
        self.ask(format!("set `{key}`"), request, patience, |answer| matches!(answer, StoreResponse::Done).then_some(()))
    }

    /// The value of a key, as soon as it is there.
    pub fn get(&self, key: &str, patience: Duration) -> Result<Vec<u8>, StoreError> {
        self.ask(format!("get `{key}`"), StoreRequest::Get { key: key.to_owned() }, patience, value)
    }

    /// Waits until all keys are there.
    pub fn wait(&self, keys: &[String], patience: Duration) -> Result<(), StoreError> {
        let request = StoreRequest::Wait { keys: keys.to_vec() };
        let done = |answer| matches!(answer, StoreResponse::Done).then_some(());
        self.ask(format!("wait for `{}`", keys.join("`, `")), request, patience, done)
    }

    /// Whether all keys are there.
    pub fn check(&self, keys: &[String], patience: Duration) -> Result<bool, StoreError> {
        self.ask(format!("check `{}`", keys.join("`, `")), StoreRequest::Check { keys: keys.to_vec() }, patience, |answer| flag(&answer))
    }

    /// Adds to a number (0 when absent) and returns the sum.
    pub fn add(&self, key: &str, amount: i64, patience: Duration) -> Result<i64, StoreError> {
        self.ask(format!("add to `{key}`"), StoreRequest::Add { key: key.to_owned(), amount }, patience, |answer| number(&answer))
    }

    /// Sets a key when its value is `expected`; returns its value afterwards. See [`StoreRequest::CompareSet`].
    pub fn compare_set(&self, key: &str, expected: &[u8], desired: &[u8], patience: Duration) -> Result<Vec<u8>, StoreError> {
        let request = StoreRequest::CompareSet { key: key.to_owned(), expected: expected.to_vec(), desired: desired.to_vec() };
        self.ask(format!("compare and set `{key}`"), request, patience, value)
    }

    /// Appends to a value (empty when absent).
    pub fn append(&self, key: &str, value: &[u8], patience: Duration) -> Result<(), StoreError> {
        let request = StoreRequest::Append { key: key.to_owned(), value: value.to_vec() };
        self.ask(format!("append to `{key}`"), request, patience, |answer| matches!(answer, StoreResponse::Done).then_some(()))
    }

    /// Deletes a key; whether it was there.
    pub fn delete(&self, key: &str, patience: Duration) -> Result<bool, StoreError> {
        self.ask(format!("delete `{key}`"), StoreRequest::Delete { key: key.to_owned() }, patience, |answer| flag(&answer))
    }

    /// Number of keys.
    pub fn count_keys(&self, patience: Duration) -> Result<i64, StoreError> {
        self.ask("count the keys".to_owned(), StoreRequest::CountKeys, patience, |answer| number(&answer))
    }

    fn ask<T>(
        &self,
        operation: String,
        request: StoreRequest,
        patience: Duration,
        read: impl FnOnce(StoreResponse) -> Option<T>,
    ) -> Result<T, StoreError> {
        let generation = self.generation;
        let pending = match self.request(request) {
            Ok(pending) => pending,
            Err(source) => return Err(StoreError::Misuse { operation, generation, source }),
        };
        match pending.take(patience) {
            Some(StoreResponse::Cancelled { reason }) => Err(StoreError::Cancelled { operation, generation, reason }),
            Some(StoreResponse::Refused { reason }) => Err(StoreError::Refused { operation, generation, reason }),
            Some(answer) => read(answer).ok_or(StoreError::WrongAnswer { operation, generation }),
            None => Err(StoreError::TimedOut { operation, generation, patience }),
        }
    }
}

fn value(answer: StoreResponse) -> Option<Vec<u8>> {
    match answer {
        StoreResponse::Value(value) => Some(value),
        _ => None,
    }
}

fn number(answer: &StoreResponse) -> Option<i64> {
    match answer {
        StoreResponse::Number(number) => Some(*number),
        _ => None,
    }
}

fn flag(answer: &StoreResponse) -> Option<bool> {
    match answer {
        StoreResponse::Flag(flag) => Some(*flag),
        _ => None,
    }
}
