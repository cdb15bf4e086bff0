//! A store in which all members of a group learn of all others by a few operations each.
//!
//! libtorch's Gloo has each member set one key and then wait for and get the key of each other one, so that a group of n costs 2 n² operations.
//! Here what a member sets is appended, with its listening address, to one of a few values; when all have done so each member reads these,
//! and the waits and gets are answered from what was read. Of what a member sets most are eight bytes for each other member, which Gloo
//! counts up from one connection to the next: such a row of numbers is told as its first, their difference and their number, so that what a
//! member tells does not grow with the group.
//!
//! Comes in: the member's session. Goes out: a session that gives libtorch the same answers. Other keys pass through.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use super::store::{Store, StoreError};

/// Members whose entries share a value: at some 300 bytes each one of them stays far below the 16 MiB of a message.
const TOGETHER: usize = 4096;

/// What a member has told.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    listener: Vec<u8>,
    value: Vec<u8>,
}

/// See the module's description.
pub(super) struct GatheringStore {
    inner: Arc<dyn Store>,
    prefix: String,
    rank: usize,
    world: usize,
    listener: Vec<u8>,
    found: OnceLock<BTreeMap<usize, Entry>>,
}

impl GatheringStore {
    /// For one group; `listener`: what the others are to know of this member besides what libtorch tells them.
    pub(super) fn new(inner: Arc<dyn Store>, prefix: &str, (rank, world): (usize, usize), listener: Vec<u8>) -> Self {
        Self { inner, prefix: prefix.to_owned(), rank, world, listener, found: OnceLock::new() }
    }

    /// What the others want to be known of them, by rank; this member's own among them. Waits for all.
    pub(super) fn listeners(&self, timeout: Duration) -> Result<Vec<(usize, Vec<u8>)>, StoreError> {
        Ok(self.gathered(timeout)?.iter().map(|(rank, entry)| (*rank, entry.listener.clone())).collect())
    }

    fn key(&self, what: &str) -> String {
        format!("{}/{what}", self.prefix)
    }

    /// The rank whose key this is, in which Gloo has its address and what belongs to each of its connections.
    fn rank_of(&self, key: &str) -> Option<usize> {
        let number = key.strip_prefix(self.prefix.as_str())?.strip_prefix("/0/")?;
        number.parse().ok().filter(|rank| *rank < self.world)
    }

    fn tell(&self, value: &[u8], timeout: Duration) -> Result<(), StoreError> {
        let entry = Entry { listener: self.listener.clone(), value: pack(value) };
        self.inner.append(&self.key(&format!("members/{}", self.rank / TOGETHER)), &entry.frame(self.rank), timeout)?;
        if self.inner.add(&self.key("told"), 1, timeout)? == self.world as i64 {
            self.inner.set(&self.key("all-told"), b"", timeout)?;
        }
        Ok(())
    }

    fn gathered(&self, timeout: Duration) -> Result<&BTreeMap<usize, Entry>, StoreError> {
        if let Some(found) = self.found.get() {
            return Ok(found);
        }
        self.inner.wait(&[&self.key("all-told")], timeout)?;
        let mut found = BTreeMap::new();
        for part in 0..self.world.div_ceil(TOGETHER) {
            let key = self.key(&format!("members/{part}"));
            let wrong = || StoreError::Unreachable { reason: format!("`{key}` is not what the members of this group have written") };
            let bytes = self.inner.get(&key, timeout)?;
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let (rank, entry) = Entry::take(&mut rest).ok_or_else(wrong)?;
                found.insert(rank, entry);
            }
        }
        if !found.keys().copied().eq(0..self.world) {
            return Err(StoreError::Unreachable { reason: format!("{} of {} members have told of themselves", found.len(), self.world) });
        }
        Ok(self.found.get_or_init(|| found))
    }

    fn value_of(&self, rank: usize, timeout: Duration) -> Result<Vec<u8>, StoreError> {
        let packed = self.gathered(timeout)?.get(&rank).map(|entry| entry.value.as_slice()).unwrap_or_default();
        unpack(packed).ok_or_else(|| StoreError::Unreachable { reason: format!("what rank {rank} has told of itself cannot be read") })
    }
}

impl Entry {
    fn frame(&self, rank: usize) -> Vec<u8> {
        let numbers = [rank, self.listener.len(), self.value.len()].map(|number| (number as u32).to_le_bytes());
        [numbers.concat(), self.listener.clone(), self.value.clone()].concat()
    }

    /// The first of some entries, which are shorter by it then.
    fn take(bytes: &mut &[u8]) -> Option<(usize, Self)> {
        let mut number = || {
            let (number, rest) = bytes.split_first_chunk::<4>()?;
            *bytes = rest;
            Some(u32::from_le_bytes(*number) as usize)
        };
        let (rank, listener, value) = (number()?, number()?, number()?);
        let (listener, rest) = bytes.split_at_checked(listener)?;
        let (value, rest) = rest.split_at_checked(value)?;
        *bytes = rest;
        Some((rank, Self { listener: listener.to_vec(), value: value.to_vec() }))
    }
}

/// Eight bytes each.
type Words = [[u8; 8]];

/// A value with its last words as rows of numbers that have one difference: the number of bytes before them, these bytes, and each row's
/// length, first number and difference.
fn pack(value: &[u8]) -> Vec<u8> {
    let (head, mut words) = value.as_rchunks::<8>();
    let mut packed = [(head.len() as u32).to_le_bytes().as_slice(), head].concat();
    while let [first, ..] = words {
        let number = u64::from_le_bytes(*first);
        let difference = words.get(1).map_or(0, |second| u64::from_le_bytes(*second).wrapping_sub(number));
        let follows = |(word, next): (&[u8; 8], &[u8; 8])| u64::from_le_bytes(*word).wrapping_add(difference) == u64::from_le_bytes(*next);
        let length = 1 + words.iter().zip(words.iter().skip(1)).take_while(|pair| follows(*pair)).count();
        packed.extend([length as u64, number, difference].map(u64::to_le_bytes).concat());
        words = words.get(length..).unwrap_or_default();
    }
    packed
}

/// What [`pack`] was given; nothing for what it has not made.
fn unpack(packed: &[u8]) -> Option<Vec<u8>> {
    /// More words than any group has members, so that no mistake takes the memory.
    const MOST: u64 = 1 << 20;
    let (length, rest) = packed.split_first_chunk::<4>()?;
    let (head, rows) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    let mut value = head.to_vec();
    let (rows, []) = rows.as_chunks::<24>() else { return None };
    for row in rows {
        let words: &Words = row.as_chunks::<8>().0;
        let [length, first, difference] = words.iter().map(|word| u64::from_le_bytes(*word)).collect::<Vec<_>>().try_into().ok()?;
        for index in (length <= MOST).then_some(0..length)? {
            value.extend(first.wrapping_add(difference.wrapping_mul(index)).to_le_bytes());
        }
    }
    Some(value)
}

impl Store for GatheringStore {
    fn set(&self, key: &str, value: &[u8], timeout: Duration) -> Result<(), StoreError> {
        if self.rank_of(key) == Some(self.rank) { self.tell(value, timeout) } else { self.inner.set(key, value, timeout) }
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, StoreError> {
        match self.rank_of(key) {
            Some(rank) => self.value_of(rank, timeout),
            None => self.inner.get(key, timeout),
        }
    }

    fn compare_set(&self, key: &str, expected: &[u8], desired: &[u8], timeout: Duration) -> Result<Vec<u8>, StoreError> {
        self.inner.compare_set(key, expected, desired, timeout)
    }

    fn add(&self, key: &str, amount: i64, timeout: Duration) -> Result<i64, StoreError> {
        self.inner.add(key, amount, timeout)
    }

    fn append(&self, key: &str, value: &[u8], timeout: Duration) -> Result<(), StoreError> {
        self.inner.append(key, value, timeout)
    }

    fn delete(&self, key: &str, timeout: Duration) -> Result<bool, StoreError> {
        self.inner.delete(key, timeout)
    }

    fn contains(&self, keys: &[&str], timeout: Duration) -> Result<bool, StoreError> {
        self.inner.contains(keys, timeout)
    }

    fn count(&self, timeout: Duration) -> Result<u64, StoreError> {
        self.inner.count(timeout)
    }

    fn wait(&self, keys: &[&str], timeout: Duration) -> Result<(), StoreError> {
        if keys.iter().any(|key| self.rank_of(key).is_some()) {
            self.gathered(timeout)?;
        }
        let others: Vec<&str> = keys.iter().copied().filter(|key| self.rank_of(key).is_none()).collect();
        if others.is_empty() { Ok(()) } else { self.inner.wait(&others, timeout) }
    }

    fn cancel(&self) {
        self.inner.cancel();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::collectives::MemoryStore;

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn all_members_learn_what_each_has_set_by_a_few_operations() {
        // More than share a value.
        let world = TOGETHER + 3;
        let store = MemoryStore::default();
        let member = |rank: usize| {
            let gathering = GatheringStore::new(Arc::new(store.session()), "g1", (rank, world), format!("port {rank}").into_bytes());
            gathering.set(&format!("g1/0/{rank}"), format!("value {rank}").as_bytes(), LONG).unwrap();
            gathering
        };
        let members: Vec<_> = (0..world).map(member).collect();
        for member in [&members[0], &members[world - 1]] {
            for rank in [0, 7, world - 1] {
                member.wait(&[&format!("g1/0/{rank}")], LONG).unwrap();
                assert_eq!(member.get(&format!("g1/0/{rank}"), LONG).unwrap(), format!("value {rank}").into_bytes());
            }
            let listeners = member.listeners(LONG).unwrap();
            assert_eq!((listeners.len(), &listeners[9]), (world, &(9, b"port 9".to_vec())));
        }
        // Two values, their count, and that it is complete: none for each member.
        assert_eq!(store.session().count(LONG), Ok(4));
    }

    #[test]
    fn numbers_in_a_row_are_told_as_a_row_whatever_else_there_is() {
        let rows = |rows: &[(u64, u64, usize)]| -> Vec<u8> {
            rows.iter()
                .flat_map(|(first, step, length)| (0..*length as u64).flat_map(move |index| (first + step * index).to_le_bytes()))
                .collect()
        };
        for (value, most) in [
            (Vec::new(), 4),
            (b"a".to_vec(), 5),
            ([b"host and address".to_vec(), rows(&[(7, 1, 4096)])].concat(), 100),
            ([b"own place empty: ".to_vec(), rows(&[(5, 2, 100), (0, 0, 1), (400, 2, 4000)])].concat(), 150),
            ([b"xyz".to_vec(), rows(&[(3, 9, 1), (1, 5, 1), (u64::MAX - 9, 1, 8)])].concat(), 100),
        ] {
            let packed = pack(&value);
            assert_eq!(unpack(&packed).as_deref(), Some(value.as_slice()));
            assert!(packed.len() <= most, "{} bytes as {}", value.len(), packed.len());
        }
        assert_eq!([&b""[..], b"abc", b"\xff\0\0\0", &[&[0; 4][..], &[0xff; 24]].concat(), &[0; 5]].map(unpack), [const { None }; 5]);
    }

    #[test]
    fn what_gloos_members_tell_does_not_grow_with_the_group() {
        let told = |world: usize| {
            let store = MemoryStore::default();
            let member = |rank: usize| {
                let options = crate::collectives::GroupOptions {
                    store: Arc::new(store.session()),
                    prefix: "g1".to_owned(),
                    rank,
                    world_size: world,
                    host: std::net::Ipv4Addr::LOCALHOST.into(),
                    device: tch::Device::Cpu,
                    timeout: LONG,
                };
                crate::collectives::Group::form(options, &crate::collectives::AbortHandle::new()).unwrap().leave(LONG).unwrap();
            };
            let member = &member;
            thread::scope(|scope| {
                for rank in 0..world {
                    scope.spawn(move || member(rank));
                }
            });
            store.session().get("g1/members/0", LONG).unwrap().len() / world
        };
        let (few, many) = (told(3), told(24));
        // A number for each of 21 more would be 168 bytes.
        assert!(few < 400 && many < few + 84, "{few} bytes a member of three, {many} of 24");
    }

    #[test]
    fn who_is_early_waits_for_the_last_and_other_keys_pass_through() {
        let store = MemoryStore::default();
        let member = |rank| GatheringStore::new(Arc::new(store.session()), "g1", (rank, 2), Vec::new());
        let (first, second) = (member(0), member(1));
        first.set("g1/0/0", b"a", LONG).unwrap();
        let short = Duration::from_millis(20);
        assert!(matches!(first.get("g1/0/1", short), Err(StoreError::Timeout { .. })));
        thread::scope(|scope| {
            let early = scope.spawn(|| first.get("g1/0/1", LONG));
            second.set("g1/0/1", b"b", LONG).unwrap();
            assert_eq!(early.join().unwrap(), Ok(b"b".to_vec()));
        });
        for key in ["g1/nccl/0", "g2/0/0", "g1/0/2", "g1/0/x"] {
            first.set(key, b"other", LONG).unwrap();
            assert_eq!(store.session().get(key, LONG), Ok(b"other".to_vec()), "{key}");
        }
    }

    #[test]
    fn a_value_that_others_have_written_is_an_error() {
        let store = MemoryStore::default();
        let member = GatheringStore::new(Arc::new(store.session()), "g1", (0, 2), Vec::new());
        store.session().set("g1/all-told", b"", LONG).unwrap();
        store.session().set("g1/members/0", b"\x01\x02\x03", LONG).unwrap();
        let error = member.get("g1/0/1", LONG).unwrap_err();
        assert!(error.to_string().contains("`g1/members/0` is not what"), "{error}");
        store.session().set("g1/members/0", b"", LONG).unwrap();
        let error = member.get("g1/0/1", LONG).unwrap_err();
        assert!(error.to_string().contains("0 of 2 members have told of themselves"), "{error}");
    }

    #[test]
    fn a_cancelled_session_ends_the_wait_for_the_others() {
        let member = GatheringStore::new(Arc::new(MemoryStore::default().session()), "g1", (0, 2), Vec::new());
        thread::scope(|scope| {
            let waits = scope.spawn(|| member.get("g1/0/1", LONG));
            member.cancel();
            assert_eq!(waits.join().unwrap(), Err(StoreError::Cancelled));
        });
    }
}
