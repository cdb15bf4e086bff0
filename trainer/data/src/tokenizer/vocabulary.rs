//! The 49,408 entries of the CLIP vocabulary and the order of their merges.
//!
//! Comes in: `assets/clip-merges.bin`, one pair of ids per merge, embedded in the program (195 kB).
//! Goes out: byte → id, (id, id) → id, id → bytes. It knows nothing of text: no Unicode, no splitting.
//!
//! An entry's id is at once its rank: entries 0..256 are the single bytes, 256..512 the same bytes at the end of a word, and
//! entry 512 + k is what the k-th merge joins, so that of two possible merges the one with the lower result comes first.

use std::sync::LazyLock;

/// Merges of the published list that are used: `merges[1:49152-256-2+1]` in the reference. With 512 single bytes before them
/// and two special tokens after them they make the 49,408 entries.
const MERGES: usize = 49_152 - 256 - 2;
/// Added to a byte's entry when the byte ends a word.
const WORD_END: u32 = 256;
/// First entry that a merge makes.
const FIRST_MERGED: u32 = 512;
/// `<start_of_text>`: also what that literal text is encoded as.
pub(super) const START_OF_TEXT: u32 = FIRST_MERGED + MERGES as u32;
/// `<end_of_text>`: also what that literal text is encoded as.
pub(super) const END_OF_TEXT: u32 = START_OF_TEXT + 1;
/// Number of entries.
pub(super) const ENTRIES: u32 = END_OF_TEXT + 1;
/// Slots of the merge table: a power of two that keeps it three eighths full, so a look-up touches one cache line as a rule.
const SLOTS: usize = 1 << 17;
/// No pair has this key: it would name entry 65,535.
const FREE: u64 = u64::MAX;

/// Little-endian pairs of 16-bit ids, in merge order. `tests/vocabulary.rs` makes it from the published list and says how.
static PACKED_MERGES: &[u8; MERGES * 4] = include_bytes!("../../assets/clip-merges.bin");

static CLIP: LazyLock<Vocabulary> = LazyLock::new(Vocabulary::load);

/// The vocabulary, ready for look-ups.
pub(super) struct Vocabulary {
    /// Entry of every byte inside a word.
    entry_of_byte: [u16; 256],
    /// Byte of every entry below 256.
    byte_of_entry: [u8; 256],
    /// (left << 16 | right) << 32 | result, open addressing; `FREE` where nothing is.
    merges: Box<[u64]>,
}

impl Vocabulary {
    /// The one vocabulary of the program; made on the first call (about a millisecond).
    pub(super) fn clip() -> &'static Self {
        &CLIP
    }

    fn load() -> Self {
        let byte_of_entry = byte_order();
        let mut entry_of_byte = [0; 256];
        for (entry, byte) in byte_of_entry.iter().enumerate() {
            entry_of_byte[usize::from(*byte)] = entry as u16;
        }
        let mut merges = vec![FREE; SLOTS].into_boxed_slice();
        for (rank, pair) in PACKED_MERGES.chunks_exact(4).enumerate() {
            let (left, right) = parts(pair);
            let key = left << 16 | right;
            let mut slot = slot_of(key);
            while merges[slot] != FREE {
                slot = (slot + 1) % SLOTS;
            }
            merges[slot] = u64::from(key) << 32 | u64::from(FIRST_MERGED + rank as u32);
        }
        Self { entry_of_byte, byte_of_entry, merges }
    }

    /// Entry of one byte; `ends_word` for the last byte of a word.
    #[inline]
    pub(super) fn byte(&self, byte: u8, ends_word: bool) -> u32 {
        u32::from(self.entry_of_byte[usize::from(byte)]) + if ends_word { WORD_END } else { 0 }
    }

    /// What two neighbouring entries merge into. The lower the result, the earlier the merge.
    #[inline]
    pub(super) fn merge(&self, left: u32, right: u32) -> Option<u32> {
        let key = left << 16 | right;
        let mut slot = slot_of(key);
        loop {
            let found = self.merges[slot];
            if (found >> 32) as u32 == key && found != FREE {
                return Some(found as u32);
            }
            if found == FREE {
                return None;
            }
            slot = (slot + 1) % SLOTS;
        }
    }

    /// Appends the bytes of an entry; returns whether the entry ends a word. The special tokens have no bytes here.
    pub(super) fn append_bytes(&self, entry: u32, bytes: &mut Vec<u8>) -> bool {
        if entry < WORD_END {
            bytes.push(self.byte_of_entry[entry as usize]);
            false
        } else if entry < FIRST_MERGED {
            bytes.push(self.byte_of_entry[(entry - WORD_END) as usize]);
            true
        } else if entry < START_OF_TEXT {
            let at = (entry - FIRST_MERGED) as usize * 4;
            let (left, right) = parts(&PACKED_MERGES[at..at + 4]);
            // Both parts are older than what they make, so this ends.
            self.append_bytes(left, bytes);
            self.append_bytes(right, bytes)
        } else {
            false
        }
    }
}

/// Bytes in the order of their entries: those the reference shows as themselves first, then the rest (`bytes_to_unicode`).
fn byte_order() -> [u8; 256] {
    let shown = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut order = [0; 256];
    let bytes = (0..=u8::MAX).filter(shown).chain((0..=u8::MAX).filter(|byte| !shown(byte)));
    for (place, byte) in order.iter_mut().zip(bytes) {
        *place = byte;
    }
    order
}

fn parts(pair: &[u8]) -> (u32, u32) {
    (u32::from(u16::from_le_bytes([pair[0], pair[1]])), u32::from(u16::from_le_bytes([pair[2], pair[3]])))
}

/// Fibonacci hashing: the multiplier is 2^32 / golden ratio, the top bits choose the slot.
#[inline]
fn slot_of(key: u32) -> usize {
    (key.wrapping_mul(0x9E37_79B9) >> (32 - SLOTS.trailing_zeros())) as usize
}
