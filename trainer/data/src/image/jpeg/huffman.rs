//! Huffman codes and bits of a JPEG's data (ITU-T T.81, annexes C and F.2.2).
//!
//! Comes in: a table as a file defines it, and data without stuffing. Goes out: symbols and bits, or nothing where the data end or no code
//! begins: no bit is ever made up.

/// Bits that are looked up at once; longer codes are rare.
const LOOKAHEAD: u32 = 8;

/// Longest code of the standard.
const LONGEST: u32 = 16;

/// A Huffman table.
#[derive(Clone)]
pub(super) struct Table {
    /// For every value of the next [`LOOKAHEAD`] bits, the length of the code they begin with and its symbol; length 0 for longer codes.
    short: Vec<(u8, u8)>,
    /// For every length, the first code and, for each from there on, its symbol.
    long: Vec<(u32, Vec<u8>)>,
}

impl Table {
    /// The table of these counts, one for each length from 1 to 16, and symbols; nothing when they contradict each other.
    pub(super) fn new(counts: &[u8; 16], symbols: &[u8]) -> Option<Self> {
        let (mut short, mut long) = (vec![(0, 0); 1 << LOOKAHEAD], Vec::with_capacity(LONGEST as usize));
        let (mut code, mut rest) = (0_u32, symbols);
        for (length, count) in (1..=LONGEST).zip(counts) {
            let (these, others) = rest.split_at_checked(usize::from(*count))?;
            rest = others;
            if code + these.len() as u32 > 1 << length {
                return None;
            }
            long.push((code, these.to_vec()));
            if length <= LOOKAHEAD {
                let free = LOOKAHEAD - length;
                for (code, symbol) in (code..).zip(these) {
                    let range = (code << free) as usize..((code + 1) << free) as usize;
                    short.get_mut(range)?.fill((length as u8, *symbol));
                }
            }
            code = (code + these.len() as u32) << 1;
        }
        Some(Self { short, long })
    }
}

/// Bits, the most significant of a byte first.
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    next: usize,
    buffer: u64,
    count: u32,
}

impl<'a> Bits<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, next: 0, buffer: 0, count: 0 }
    }

    /// Bytes of which at least one bit was taken.
    pub(super) fn consumed(&self) -> usize {
        self.next - (self.count / 8) as usize
    }

    fn refill(&mut self) {
        while self.count <= 56
            && let Some(byte) = self.bytes.get(self.next)
        {
            self.buffer = self.buffer << 8 | u64::from(*byte);
            self.next += 1;
            self.count += 8;
        }
    }

    /// The next `count` bits, at most 16.
    pub(super) fn take(&mut self, count: u32) -> Option<u32> {
        if self.count < count {
            self.refill();
        }
        self.count = self.count.checked_sub(count)?;
        Some((self.buffer >> self.count) as u32 & ((1 << count) - 1))
    }

    /// The symbol of the next code.
    pub(super) fn symbol(&mut self, table: &Table) -> Option<u8> {
        if self.count < LONGEST {
            self.refill();
        }
        let ahead = if self.count >= LOOKAHEAD { self.buffer >> (self.count - LOOKAHEAD) } else { self.buffer << (LOOKAHEAD - self.count) };
        let (length, symbol) = *table.short.get((ahead & 0xff) as usize)?;
        if length > 0 {
            self.count = self.count.checked_sub(u32::from(length))?;
            return Some(symbol);
        }
        for (length, (first, symbols)) in (1..=LONGEST).zip(&table.long).skip(LOOKAHEAD as usize) {
            let left = self.count.checked_sub(length)?;
            let code = (self.buffer >> left) as u32 & ((1 << length) - 1);
            if let Some(symbol) = code.checked_sub(*first).and_then(|place| symbols.get(place as usize)) {
                self.count = left;
                return Some(*symbol);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Codes 0, 10, 110 and, of 16 bits, 1110000000000000 and the one after it.
    fn table() -> Table {
        let mut counts = [0; 16];
        (counts[0], counts[1], counts[2], counts[15]) = (1, 1, 1, 2);
        Table::new(&counts, &[7, 8, 9, 10, 11]).expect("a table")
    }

    #[test]
    fn codes_of_every_length_give_their_symbols_and_what_is_no_code_gives_none() {
        // 0 10 110, then the two long ones, then 111111....
        let bytes = [0b0101_1011, 0b1000_0000, 0b0000_0011, 0b1000_0000, 0b0000_0111, 0xff, 0xff];
        let (table, mut bits) = (table(), Bits::new(&bytes));
        assert_eq!(std::array::from_fn(|_| bits.symbol(&table)), [Some(7), Some(8), Some(9), Some(10), Some(11), None]);
    }

    #[test]
    fn bits_end_with_the_bytes_and_those_used_are_counted() {
        let mut bits = Bits::new(&[0b1010_0101, 0xff]);
        assert_eq!((bits.take(3), bits.consumed()), (Some(0b101), 1));
        assert_eq!((bits.take(5), bits.consumed()), (Some(0b101), 1));
        assert_eq!((bits.take(0), bits.take(7), bits.consumed()), (Some(0), Some(0b111_1111), 2));
        assert_eq!((bits.take(2), bits.take(1), bits.take(1)), (None, Some(1), None));
    }

    #[test]
    fn a_table_of_more_codes_than_bits_allow_or_of_too_few_symbols_is_none() {
        let counts = |first| {
            let mut counts = [0; 16];
            counts[0] = first;
            counts
        };
        assert!(Table::new(&counts(3), &[1, 2, 3]).is_none());
        assert!(Table::new(&counts(2), &[1]).is_none());
        assert!(Table::new(&counts(2), &[1, 2]).is_some());
    }
}
