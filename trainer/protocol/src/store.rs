//! The key-value store through which a group finds together, as libtorch's `c10d::Store` wants it, for one generation.
//!
//! Comes in: operations of the generation's members. Goes out: answers, at once or when the awaited keys are there. A wait has no
//! time-out here; it ends with the generation. What it must not do: outlive its generation, or grow without bound.

use std::collections::{BTreeMap, BTreeSet};

use crate::coordinator::ConnectionId;

/// Most bytes of keys and values that one generation may hold: it keeps a mistake from filling the coordinator's memory. What a member stores
/// for a meeting is some 300 bytes, whatever the size of the group: there is room for 200,000 of them.
pub const MAX_STORE_BYTES: usize = 64 << 20;

/// An operation, with the meaning it has in `c10d::Store`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreRequest {
    /// Sets a key.
    Set {
        /// The key.
        key: String,
        /// Its new value.
        value: Vec<u8>,
    },
    /// The value of a key; answered when it is there.
    Get {
        /// The key.
        key: String,
    },
    /// Answered when all keys are there.
    Wait {
        /// The keys.
        keys: Vec<String>,
    },
    /// Whether all keys are there.
    Check {
        /// The keys.
        keys: Vec<String>,
    },
    /// Adds to a number, which is kept as decimal text and is 0 when absent.
    Add {
        /// The key.
        key: String,
        /// What is added.
        amount: i64,
    },
    /// Sets the key when its value is `expected` (or it is absent and `expected` empty). Answers with the value afterwards; for an absent
    /// key and another expectation, with `expected`.
    CompareSet {
        /// The key.
        key: String,
        /// The value it must have.
        expected: Vec<u8>,
        /// Its new value.
        desired: Vec<u8>,
    },
    /// Appends to a value, which is empty when absent.
    Append {
        /// The key.
        key: String,
        /// What is appended.
        value: Vec<u8>,
    },
    /// Deletes a key; answers whether it was there.
    Delete {
        /// The key.
        key: String,
    },
    /// How many keys there are.
    CountKeys,
}

/// The answer to a [`StoreRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreResponse {
    /// Done (set, wait, append).
    Done,
    /// A value (get, compare-set).
    Value(Vec<u8>),
    /// A number (add, count).
    Number(i64),
    /// Yes or no (check, delete).
    Flag(bool),
    /// The generation has ended; nothing was done.
    Cancelled {
        /// Why.
        reason: String,
    },
    /// The operation makes no sense here; nothing was done.
    Refused {
        /// Why.
        reason: String,
    },
}

/// An answer and where it goes: connection, number of the request.
pub(crate) type Answer = (ConnectionId, u64, StoreResponse);

/// One generation's keys and those who wait for some.
#[derive(Debug, Default)]
pub(crate) struct Store {
    values: BTreeMap<String, Vec<u8>>,
    /// Bytes of all keys and values.
    bytes: usize,
    waiters: BTreeMap<(ConnectionId, u64), Waiter>,
    /// Who waits for a key.
    waiting_for: BTreeMap<String, BTreeSet<(ConnectionId, u64)>>,
}

#[derive(Debug)]
struct Waiter {
    missing: BTreeSet<String>,
    /// The key whose value is the answer; `None` for a mere wait.
    get: Option<String>,
}

impl Store {
    /// Carries out one operation. The answers are this one's, if it need not wait, and those of waiters it woke.
    pub(crate) fn apply(&mut self, connection: ConnectionId, id: u64, request: StoreRequest) -> Vec<Answer> {
        let mut woken = Vec::new();
        let response = match request {
            StoreRequest::Set { key, value } => self.put(key, value, &mut woken).map(|()| StoreResponse::Done),
            StoreRequest::Get { key } => match self.values.get(&key) {
                Some(value) => Ok(StoreResponse::Value(value.clone())),
                None => return self.wait(connection, id, BTreeSet::from([key.clone()]), Some(key)),
            },
            StoreRequest::Wait { keys } => {
                let missing: BTreeSet<String> = keys.into_iter().filter(|key| !self.values.contains_key(key)).collect();
                if !missing.is_empty() {
                    return self.wait(connection, id, missing, None);
                }
                Ok(StoreResponse::Done)
            }
            StoreRequest::Check { keys } => Ok(StoreResponse::Flag(keys.iter().all(|key| self.values.contains_key(key)))),
            StoreRequest::Add { key, amount } => self.add(key, amount, &mut woken),
            StoreRequest::CompareSet { key, expected, desired } => self.compare_set(key, expected, desired, &mut woken),
            // In place: members of a large group append to values of some megabytes. Nobody waits for one that is there.
            StoreRequest::Append { key, value } if self.has_room_to_append(&key, &value) => {
                self.bytes += value.len();
                self.values.entry(key).or_default().extend_from_slice(&value);
                Ok(StoreResponse::Done)
            }
            StoreRequest::Append { key, value } => {
                let mut whole = self.values.get(&key).cloned().unwrap_or_default();
                whole.extend_from_slice(&value);
                self.put(key, whole, &mut woken).map(|()| StoreResponse::Done)
            }
            StoreRequest::Delete { key } => {
                let old = self.values.remove(&key);
                self.bytes -= old.as_ref().map_or(0, |value| key.len() + value.len());
                Ok(StoreResponse::Flag(old.is_some()))
            }
            StoreRequest::CountKeys => Ok(StoreResponse::Number(self.values.len() as i64)),
        };
        let response = response.unwrap_or_else(|reason| StoreResponse::Refused { reason });
        woken.insert(0, (connection, id, response));
        woken
    }

    fn has_room_to_append(&self, key: &str, value: &[u8]) -> bool {
        self.values.contains_key(key) && self.bytes + value.len() <= MAX_STORE_BYTES
    }

    /// Bytes of all keys and values.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Forgets the waits of a connection that is gone.
    pub(crate) fn forget(&mut self, connection: ConnectionId) {
        self.waiters.retain(|(waiting, _), _| *waiting != connection);
        self.waiting_for.retain(|_, waiting| {
            waiting.retain(|(waiting, _)| *waiting != connection);
            !waiting.is_empty()
        });
    }

    /// Ends the store: what all who still wait are told.
    pub(crate) fn cancel(&mut self, reason: &str) -> Vec<Answer> {
        let waiters = std::mem::take(self).waiters;
        waiters.into_keys().map(|(connection, id)| (connection, id, StoreResponse::Cancelled { reason: reason.to_owned() })).collect()
    }

    fn wait(&mut self, connection: ConnectionId, id: u64, missing: BTreeSet<String>, get: Option<String>) -> Vec<Answer> {
        for key in &missing {
            self.waiting_for.entry(key.clone()).or_default().insert((connection, id));
        }
        self.waiters.insert((connection, id), Waiter { missing, get });
        Vec::new()
    }

    fn put(&mut self, key: String, value: Vec<u8>, woken: &mut Vec<Answer>) -> Result<(), String> {
        let old = self.values.get(&key).map_or(0, |old| key.len() + old.len());
        let bytes = self.bytes - old + key.len() + value.len();
        if bytes > MAX_STORE_BYTES {
            return Err(format!("the store of one group holds at most {MAX_STORE_BYTES} bytes, with `{key}` it would be {bytes}"));
        }
        self.bytes = bytes;
        for waiting in self.waiting_for.remove(&key).unwrap_or_default() {
            let Some(waiter) = self.waiters.get_mut(&waiting) else { continue };
            waiter.missing.remove(&key);
            if !waiter.missing.is_empty() {
                continue;
            }
            let response = if waiter.get.is_some() { StoreResponse::Value(value.clone()) } else { StoreResponse::Done };
            self.waiters.remove(&waiting);
            woken.push((waiting.0, waiting.1, response));
        }
        self.values.insert(key, value);
        Ok(())
    }

    fn add(&mut self, key: String, amount: i64, woken: &mut Vec<Answer>) -> Result<StoreResponse, String> {
        let old = match self.values.get(&key) {
            None => 0,
            Some(value) => std::str::from_utf8(value)
                .ok()
                .and_then(|text| text.parse::<i64>().ok())
                .ok_or_else(|| format!("the value of `{key}` is no decimal number, so nothing can be added"))?,
        };
        let sum = old.checked_add(amount).ok_or_else(|| format!("adding {amount} to `{key}`, which is {old}, exceeds 64 bits"))?;
        self.put(key, sum.to_string().into_bytes(), woken)?;
        Ok(StoreResponse::Number(sum))
    }

    fn compare_set(&mut self, key: String, expected: Vec<u8>, desired: Vec<u8>, woken: &mut Vec<Answer>) -> Result<StoreResponse, String> {
        let matches = match self.values.get(&key) {
            Some(value) if *value == expected => true,
            Some(value) => return Ok(StoreResponse::Value(value.clone())),
            None => expected.is_empty(),
        };
        if !matches {
            return Ok(StoreResponse::Value(expected));
        }
        self.put(key, desired.clone(), woken)?;
        Ok(StoreResponse::Value(desired))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: ConnectionId = ConnectionId(1);
    const TWO: ConnectionId = ConnectionId(2);

    fn set(key: &str, value: &str) -> StoreRequest {
        StoreRequest::Set { key: key.to_owned(), value: value.as_bytes().to_vec() }
    }

    fn get(key: &str) -> StoreRequest {
        StoreRequest::Get { key: key.to_owned() }
    }

    fn value(text: &str) -> StoreResponse {
        StoreResponse::Value(text.as_bytes().to_vec())
    }

    #[test]
    fn a_get_is_answered_when_the_key_is_set() {
        let mut store = Store::default();
        assert_eq!(store.apply(ONE, 1, get("a")), []);
        assert_eq!(store.apply(TWO, 1, set("a", "x")), [(TWO, 1, StoreResponse::Done), (ONE, 1, value("x"))]);
        assert_eq!(store.apply(ONE, 2, get("a")), [(ONE, 2, value("x"))]);
    }

    #[test]
    fn a_wait_is_answered_when_the_last_key_is_set() {
        let mut store = Store::default();
        let keys = || vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(store.apply(ONE, 1, StoreRequest::Wait { keys: keys() }), []);
        assert_eq!(store.apply(TWO, 1, set("a", "")).len(), 1);
        assert_eq!(store.apply(TWO, 2, StoreRequest::Check { keys: keys() }), [(TWO, 2, StoreResponse::Flag(false))]);
        assert_eq!(store.apply(TWO, 3, set("b", "")), [(TWO, 3, StoreResponse::Done), (ONE, 1, StoreResponse::Done)]);
        assert_eq!(store.apply(ONE, 2, StoreRequest::Wait { keys: keys() }), [(ONE, 2, StoreResponse::Done)]);
    }

    #[test]
    fn numbers_are_decimal_text_and_bad_ones_are_refused() {
        let mut store = Store::default();
        let add = |amount| StoreRequest::Add { key: "n".to_owned(), amount };
        assert_eq!(store.apply(ONE, 1, add(2)), [(ONE, 1, StoreResponse::Number(2))]);
        assert_eq!(store.apply(ONE, 2, add(-5)), [(ONE, 2, StoreResponse::Number(-3))]);
        assert_eq!(store.apply(ONE, 3, get("n")), [(ONE, 3, value("-3"))]);
        assert!(matches!(store.apply(ONE, 4, add(i64::MIN)).first(), Some((_, _, StoreResponse::Refused { .. }))));
        store.apply(ONE, 5, set("n", "x"));
        assert!(matches!(store.apply(ONE, 6, add(1)).first(), Some((_, _, StoreResponse::Refused { .. }))));
    }

    #[test]
    fn compare_set_append_delete_and_count_do_what_c10d_says() {
        let mut store = Store::default();
        let swap = |expected: &str, desired: &str| StoreRequest::CompareSet {
            key: "k".to_owned(),
            expected: expected.into(),
            desired: desired.into(),
        };
        assert_eq!(store.apply(ONE, 1, swap("x", "y")), [(ONE, 1, value("x"))]);
        assert_eq!(store.apply(ONE, 2, swap("", "y")), [(ONE, 2, value("y"))]);
        assert_eq!(store.apply(ONE, 3, swap("x", "z")), [(ONE, 3, value("y"))]);
        assert_eq!(store.apply(ONE, 4, swap("y", "z")), [(ONE, 4, value("z"))]);
        store.apply(ONE, 5, StoreRequest::Append { key: "k".to_owned(), value: b"!".to_vec() });
        assert_eq!(store.apply(ONE, 6, get("k")), [(ONE, 6, value("z!"))]);
        assert_eq!(store.apply(ONE, 7, StoreRequest::CountKeys), [(ONE, 7, StoreResponse::Number(1))]);
        let delete = || StoreRequest::Delete { key: "k".to_owned() };
        assert_eq!(store.apply(ONE, 8, delete()), [(ONE, 8, StoreResponse::Flag(true))]);
        assert_eq!(store.apply(ONE, 9, delete()), [(ONE, 9, StoreResponse::Flag(false))]);
        assert_eq!(store.bytes, 0);
        let append = |bytes| StoreRequest::Append { key: "k".to_owned(), value: vec![b'x'; bytes] };
        assert_eq!(store.apply(ONE, 10, append(2)), [(ONE, 10, StoreResponse::Done)]);
        assert!(matches!(store.apply(ONE, 11, append(MAX_STORE_BYTES - 2)).first(), Some((_, _, StoreResponse::Refused { .. }))));
        assert_eq!((store.apply(ONE, 12, append(1)), store.bytes), (vec![(ONE, 12, StoreResponse::Done)], 4));
        assert_eq!(store.apply(ONE, 13, get("k")), [(ONE, 13, value("xxx"))]);
    }

    #[test]
    fn those_who_wait_are_cancelled_at_the_end_and_forgotten_when_they_are_gone() {
        let mut store = Store::default();
        store.apply(ONE, 1, get("a"));
        store.apply(TWO, 7, get("a"));
        store.forget(ONE);
        let cancelled = store.cancel("the generation ended");
        assert_eq!(cancelled, [(TWO, 7, StoreResponse::Cancelled { reason: "the generation ended".to_owned() })]);
        assert_eq!(store.cancel("again"), []);
    }

    /// What the members of a group append to one value: Gloo's host and address of each, where it listens, and how long both are.
    fn tell(store: &mut Store, members: std::ops::Range<usize>, bytes: usize) -> Option<StoreResponse> {
        for rank in members {
            let request = StoreRequest::Append { key: format!("g000001-000001/members/{}", rank / 4096), value: vec![0; bytes] };
            let (_, _, response) = store.apply(ConnectionId(rank as u64), 1, request).remove(0);
            if response != StoreResponse::Done {
                return Some(response);
            }
        }
        None
    }

    #[test]
    fn there_is_room_for_groups_that_nobody_has_and_one_that_finds_none_is_refused_with_the_reason() {
        const ENTRY: usize = 300;
        let mut store = Store::default();
        assert_eq!(tell(&mut store, 0..200_000, ENTRY), None);
        // One waits for the entries of a member that finds no room.
        assert_eq!(store.apply(ONE, 7, get("all-told")), []);
        let Some(StoreResponse::Refused { reason }) = tell(&mut store, 200_000..300_000, ENTRY) else {
            panic!("300,000 members found room")
        };
        assert!(reason.contains("at most 67108864 bytes") && reason.contains("`g000001-000001/members/54`"), "{reason}");
        // Who is refused reports it, which ends the group; and with it the wait.
        let cancelled = store.cancel("group g000001-000001 has ended");
        assert!(matches!(cancelled.as_slice(), [(ONE, 7, StoreResponse::Cancelled { .. })]), "{cancelled:?}");
    }

    #[test]
    fn what_exceeds_the_bound_is_refused_and_changes_nothing() {
        let mut store = Store::default();
        let big = StoreRequest::Set { key: "big".to_owned(), value: vec![0; MAX_STORE_BYTES] };
        assert!(matches!(store.apply(ONE, 1, big).first(), Some((_, _, StoreResponse::Refused { .. }))));
        assert_eq!((store.bytes, store.values.len()), (0, 0));
    }
}
