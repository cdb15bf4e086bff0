//! The key-value store over which members of a generation find each other.
//!
//! libtorch asks it while a group forms (`c10d::Store`); whoever implements [`Store`] decides how it travels. Each implementation is one
//! member's session for one group: cancelling it ends every call that waits, at once, and touches no other group.

use std::time::Duration;

/// A call to the store fails.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// [`Store::cancel`] was called.
    #[error("the store's session was cancelled")]
    Cancelled,
    /// A key did not appear in time, or no answer came.
    #[error("waited {timeout:?} for `{key}`")]
    Timeout {
        /// The key, or the first of several.
        key: String,
        /// The call's time-out.
        timeout: Duration,
    },
    /// [`Store::add`] met a value that is no decimal number.
    #[error("the value of `{key}` is no number")]
    NotANumber {
        /// The key.
        key: String,
    },
    /// The way to the store is broken.
    #[error("the store cannot be reached: {reason}")]
    Unreachable {
        /// What happened.
        reason: String,
    },
}

/// One member's session with a shared map of keys and bytes. Calls come from any thread, several at a time.
///
/// Every call returns within its time-out, and at once after [`Store::cancel`]. Semantics are those of `c10d::Store` in libtorch 2.11.
pub trait Store: Send + Sync {
    /// Sets a value.
    fn set(&self, key: &str, value: &[u8], timeout: Duration) -> Result<(), StoreError>;

    /// Waits until `key` is there and returns its value.
    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, StoreError>;

    /// Sets `desired` if the value is `expected`, or if there is none and `expected` is empty. Returns the value afterwards, or `expected`
    /// when there is none.
    fn compare_set(&self, key: &str, expected: &[u8], desired: &[u8], timeout: Duration) -> Result<Vec<u8>, StoreError>;

    /// Adds to a decimal number, 0 when there is none, and returns the sum.
    fn add(&self, key: &str, amount: i64, timeout: Duration) -> Result<i64, StoreError>;

    /// Appends to a value, which is empty when there is none. What several members append at once is all there, in some order.
    fn append(&self, key: &str, value: &[u8], timeout: Duration) -> Result<(), StoreError>;

    /// Deletes a key and tells whether it was there.
    fn delete(&self, key: &str, timeout: Duration) -> Result<bool, StoreError>;

    /// Whether all keys are there now.
    fn contains(&self, keys: &[&str], timeout: Duration) -> Result<bool, StoreError>;

    /// Number of keys.
    fn count(&self, timeout: Duration) -> Result<u64, StoreError>;

    /// Waits until all keys are there.
    fn wait(&self, keys: &[&str], timeout: Duration) -> Result<(), StoreError>;

    /// Ends every call that waits and refuses later ones, with [`StoreError::Cancelled`]. Must not wait for anything itself.
    fn cancel(&self);
}
