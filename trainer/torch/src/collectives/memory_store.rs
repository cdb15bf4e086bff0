//! A [`Store`] for members that are threads of one process: tests, and the self-test at start-up.

use std::{
    collections::HashMap,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::store::{Store, StoreError};

type Values = HashMap<String, Vec<u8>>;

#[derive(Debug, Default)]
struct Shared {
    values: Mutex<Values>,
    changed: Condvar,
}

impl Shared {
    /// A panic of another holder leaves the map as it was after a whole operation: each writes once.
    fn lock(&self) -> MutexGuard<'_, Values> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The shared map. Clones are the same map.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore(Arc<Shared>);

impl MemoryStore {
    /// A session for one member and one group.
    #[must_use]
    pub fn session(&self) -> MemorySession {
        MemorySession { shared: Arc::clone(&self.0), cancelled: AtomicBool::new(false) }
    }
}

/// A member's session with a [`MemoryStore`].
#[derive(Debug)]
pub struct MemorySession {
    shared: Arc<Shared>,
    cancelled: AtomicBool,
}

impl MemorySession {
    fn lock(&self) -> Result<MutexGuard<'_, Values>, StoreError> {
        let values = self.shared.lock();
        if self.cancelled.load(Ordering::Acquire) { Err(StoreError::Cancelled) } else { Ok(values) }
    }

    /// Waits until all keys are there and returns the map, still locked.
    fn wait_for(&self, keys: &[&str], timeout: Duration) -> Result<MutexGuard<'_, Values>, StoreError> {
        let end = Instant::now() + timeout;
        let mut values = self.lock()?;
        while let Some(missing) = keys.iter().find(|key| !values.contains_key(**key)) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(StoreError::Timeout { key: (*missing).to_owned(), timeout });
            }
            values = self.shared.changed.wait_timeout(values, left).unwrap_or_else(PoisonError::into_inner).0;
            if self.cancelled.load(Ordering::Acquire) {
                return Err(StoreError::Cancelled);
            }
        }
        Ok(values)
    }
}

impl Store for MemorySession {
    fn set(&self, key: &str, value: &[u8], _timeout: Duration) -> Result<(), StoreError> {
        self.lock()?.insert(key.to_owned(), value.to_vec());
        self.shared.changed.notify_all();
        Ok(())
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, StoreError> {
        Ok(self.wait_for(&[key], timeout)?.get(key).cloned().unwrap_or_default())
    }

    fn compare_set(&self, key: &str, expected: &[u8], desired: &[u8], _timeout: Duration) -> Result<Vec<u8>, StoreError> {
        let mut values = self.lock()?;
        let found = match values.get(key) {
            Some(value) if value != expected => value.clone(),
            None if !expected.is_empty() => expected.to_vec(),
            _ => {
                values.insert(key.to_owned(), desired.to_vec());
                self.shared.changed.notify_all();
                desired.to_vec()
            }
        };
        Ok(found)
    }

    fn add(&self, key: &str, amount: i64, _timeout: Duration) -> Result<i64, StoreError> {
        let mut values = self.lock()?;
        let wrong = || StoreError::NotANumber { key: key.to_owned() };
        let parse = |value: &Vec<u8>| std::str::from_utf8(value).ok()?.parse::<i64>().ok();
        let former = values.get(key).map_or(Ok(0), |value| parse(value).ok_or_else(wrong))?;
        let sum = former.checked_add(amount).ok_or_else(wrong)?;
        values.insert(key.to_owned(), sum.to_string().into_bytes());
        self.shared.changed.notify_all();
        Ok(sum)
    }

    fn append(&self, key: &str, value: &[u8], _timeout: Duration) -> Result<(), StoreError> {
        self.lock()?.entry(key.to_owned()).or_default().extend_from_slice(value);
        self.shared.changed.notify_all();
        Ok(())
    }

    fn delete(&self, key: &str, _timeout: Duration) -> Result<bool, StoreError> {
        Ok(self.lock()?.remove(key).is_some())
    }

    fn contains(&self, keys: &[&str], _timeout: Duration) -> Result<bool, StoreError> {
        let values = self.lock()?;
        Ok(keys.iter().all(|key| values.contains_key(*key)))
    }

    fn count(&self, _timeout: Duration) -> Result<u64, StoreError> {
        Ok(self.lock()?.len() as u64)
    }

    fn wait(&self, keys: &[&str], timeout: Duration) -> Result<(), StoreError> {
        self.wait_for(keys, timeout).map(drop)
    }

    fn cancel(&self) {
        // Under the lock: a waiter is either before its check or in its wait, and misses nothing.
        let _values = self.shared.lock();
        self.cancelled.store(true, Ordering::Release);
        self.shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;

    const LONG: Duration = Duration::from_mins(1);

    #[test]
    fn values_are_shared_between_sessions() -> Result<(), StoreError> {
        let store = MemoryStore::default();
        let (a, b) = (store.session(), store.session());
        a.set("x", b"1", LONG)?;
        assert_eq!(b.get("x", LONG)?, b"1");
        assert_eq!((b.add("x", 4, LONG)?, a.add("y", -2, LONG)?), (5, -2));
        assert_eq!((a.contains(&["x", "y"], LONG)?, a.contains(&["x", "z"], LONG)?, a.count(LONG)?), (true, false, 2));
        assert_eq!((a.delete("x", LONG)?, a.delete("x", LONG)?, b.count(LONG)?), (true, false, 1));
        a.set("text", b"no number", LONG)?;
        assert_eq!(a.add("text", 1, LONG), Err(StoreError::NotANumber { key: "text".to_owned() }));
        Ok(())
    }

    #[test]
    fn compare_set_follows_c10d() -> Result<(), StoreError> {
        let store = MemoryStore::default().session();
        assert_eq!(store.compare_set("x", b"other", b"new", LONG)?, b"other", "there is nothing to replace");
        assert_eq!(store.compare_set("x", b"", b"first", LONG)?, b"first", "an empty value stands for none");
        assert_eq!(store.compare_set("x", b"other", b"second", LONG)?, b"first", "the value is another");
        assert_eq!(store.compare_set("x", b"first", b"second", LONG)?, b"second");
        Ok(())
    }

    #[test]
    fn a_waiter_is_woken_by_the_key_by_its_time_out_and_by_cancelling_its_own_session() -> Result<(), StoreError> {
        let store = MemoryStore::default();
        let (waiting, other) = (Arc::new(store.session()), store.session());
        let timeout = Duration::from_millis(5);
        assert_eq!(waiting.wait(&["x"], timeout), Err(StoreError::Timeout { key: "x".to_owned(), timeout }));
        let (sender, receiver) = mpsc::channel();
        let waiter = Arc::clone(&waiting);
        let thread = thread::spawn(move || {
            for key in ["x", "y"] {
                if sender.send(waiter.get(key, LONG)).is_err() {
                    break;
                }
            }
        });
        other.set("x", b"here", LONG)?;
        assert_eq!(receiver.recv().ok(), Some(Ok(b"here".to_vec())));
        waiting.cancel();
        assert_eq!(receiver.recv().ok(), Some(Err(StoreError::Cancelled)));
        assert!(thread.join().is_ok());
        assert_eq!(waiting.set("z", b"", LONG), Err(StoreError::Cancelled));
        other.set("z", b"", LONG)
    }
}
