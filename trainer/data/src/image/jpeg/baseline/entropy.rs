//! The data of a sequential JPEG: Huffman codes to coefficients (ITU-T T.81, annex F.2.2).
//!
//! Comes in: code tables and the data. Goes out: blocks of coefficients as they were written, not yet multiplied by their quantization. Most
//! looks into a table give two coefficients, with their runs of zeros. Whatever is not as it should be ends it without a result.

#![expect(clippy::inline_always, reason = "reading codes is more than half of decoding, which takes a tenth longer where these are calls")]

use memchr::memchr;

/// Bits that are looked up at once: tables of 4 and 8 KiB. Fewer or more are slower on photographs, by more looks or by the fastest cache.
const LOOKAHEAD: u32 = 10;

/// Longest code of the standard.
const LONGEST: usize = 16;

/// Where the n-th coefficient of the data stands in its block.
pub(super) const NATURAL: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21, 28, 35, 42, 49, 56,
    57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// A Huffman table.
pub(super) struct Codes {
    /// For every value of the next [`LOOKAHEAD`] bits, from the lowest bit on: bits of the code and its value together (8 bits), the coefficients to
    /// go on by (8 bits), bits of the code (8 bits), bits of the value (8 bits). 0 for longer codes.
    lookup: Box<[u32; 1 << LOOKAHEAD]>,
    /// For every length the first code, its number and how many there are.
    long: [(u32, u32, u32); LONGEST + 1],
    /// For every value of the next [`LOOKAHEAD`] bits what all codes and values that are whole among them come to: bits (4 bits), coefficients to go on
    /// by (10 bits), whether the block ends with them (the highest bit). 0 when there is none.
    skips: Box<[u16; 1 << LOOKAHEAD]>,
    /// For every value of the next [`LOOKAHEAD`] bits one or two coefficients that are whole among them, from the lowest bit on: bits of all (8 bits),
    /// the coefficients to go on by to the first and from it to the second (8 bits each), bits of the first (8 bits), both values (16 bits each).
    /// Where there is no second, it is the first again. 0 when none is whole.
    pairs: Box<[u64; 1 << LOOKAHEAD]>,
    /// What it was made from.
    counts: [u8; 16],
    symbols: Vec<u8>,
    defined: bool,
}

impl Default for Codes {
    fn default() -> Self {
        Self {
            lookup: Box::new([0; _]),
            long: [(0, 0, 0); _],
            skips: Box::new([0; _]),
            pairs: Box::new([0; _]),
            counts: [0; 16],
            symbols: Vec::new(),
            defined: false,
        }
    }
}

impl Codes {
    /// From here on it counts as not defined; its content is kept for a file that defines it in the same way.
    pub(super) fn forget(&mut self) {
        self.defined = false;
    }

    /// Takes the table of these counts, one for each length from 1 to 16, and symbols; nothing when they contradict each other.
    pub(super) fn define(&mut self, counts: &[u8; 16], symbols: &[u8], alternating: bool) -> Option<()> {
        if self.counts != *counts || self.symbols != symbols {
            self.counts = [0; 16];
            self.symbols.clear();
            self.fill(counts, symbols)?;
            let Self { lookup, skips, pairs, .. } = self;
            if alternating {
                (0..).zip(skips.iter_mut()).for_each(|(bits, entry)| *entry = skip(lookup, bits));
                (0..).zip(pairs.iter_mut()).for_each(|(bits, entry)| *entry = pair(lookup, bits));
            }
            self.counts = *counts;
            self.symbols.extend_from_slice(symbols);
        }
        self.defined = !symbols.is_empty();
        Some(())
    }

    fn fill(&mut self, counts: &[u8; 16], symbols: &[u8]) -> Option<()> {
        self.lookup.fill(0);
        let (mut code, mut number) = (0_u32, 0_u32);
        for (length, count) in (1..=LONGEST as u32).zip(counts) {
            let count = u32::from(*count);
            if code + count > 1 << length {
                return None;
            }
            *self.long.get_mut(length as usize)? = (code, number, count);
            let these = symbols.get(number as usize..(number + count) as usize)?;
            if length <= LOOKAHEAD {
                let free = LOOKAHEAD - length;
                for (code, symbol) in (code..).zip(these) {
                    self.lookup.get_mut((code << free) as usize..((code + 1) << free) as usize)?.fill(entry(length, *symbol));
                }
            }
            (code, number) = ((code + count) << 1, number + count);
        }
        Some(())
    }

    /// The entry of a code longer than [`LOOKAHEAD`].
    #[cold]
    fn find_long(&self, bits: u64) -> Option<u32> {
        (LOOKAHEAD as usize + 1..=LONGEST).find_map(|length| {
            let (first, number, count) = *self.long.get(length)?;
            let place = ((bits >> (64 - length)) as u32).checked_sub(first).filter(|place| *place < count)?;
            Some(entry(length as u32, *self.symbols.get((number + place) as usize)?))
        })
    }
}

/// What is looked up for a code of this length and symbol.
fn entry(length: u32, symbol: u8) -> u32 {
    let size = u32::from(symbol & 15);
    (length + size) | step(symbol) << 8 | length << 16 | size << 24
}

/// What the codes and values at the beginning of [`LOOKAHEAD`] bits come to, see [`Codes::skips`].
fn skip(lookup: &[u32; 1 << LOOKAHEAD], bits: u32) -> u16 {
    let (mut length, mut steps) = (0, 0);
    loop {
        // Bits behind the last count as zeros: a code that needs them is longer than what is left.
        let found = lookup[(bits << length & ((1 << LOOKAHEAD) - 1)) as usize];
        let (taken, step) = (found & 0xff, found >> 8 & 0xff);
        if found == 0 || length + taken > LOOKAHEAD {
            return (length | steps << 4) as u16;
        }
        length += taken;
        if step == END_OF_BLOCK {
            return (length | steps << 4) as u16 | ENDS_BLOCK;
        }
        steps += step;
    }
}

const ENDS_BLOCK: u16 = 1 << 15;

/// One or two coefficients at the beginning of [`LOOKAHEAD`] bits, see [`Codes::pairs`].
fn pair(lookup: &[u32; 1 << LOOKAHEAD], bits: u32) -> u64 {
    // Bits, coefficients to go on by, value; none that needs bits behind the last.
    let whole = |before: u32| {
        let bits = bits << before & ((1 << LOOKAHEAD) - 1);
        let found = lookup[bits as usize];
        let (taken, size) = (found & 0xff, found >> 24);
        let value = (bits >> (LOOKAHEAD - taken.min(LOOKAHEAD))) & ((1 << size) - 1);
        let value = if size > 0 && value >> (size - 1) == 0 { value.wrapping_sub((1 << size) - 1) } else { value };
        (found > 0 && before + taken <= LOOKAHEAD).then_some((u64::from(taken), u64::from(found >> 8 & 0xff), u64::from(value as u16)))
    };
    let Some((length, step, value)) = whole(0) else { return 0 };
    let first = step << 8 | length << 24 | value << 32;
    match whole(length as u32) {
        Some((more, next, second)) if step != u64::from(END_OF_BLOCK) => first | (length + more) | next << 16 | second << 48,
        _ => first | length | value << 48,
    }
}

/// By how many coefficients a symbol goes on: zeros and the one behind them. The end of a block goes beyond all of them.
fn step(symbol: u8) -> u32 {
    match symbol {
        0xf0 => 16,
        symbol if symbol.trailing_zeros() >= 4 => END_OF_BLOCK,
        symbol => u32::from(symbol >> 4) + 1,
    }
}

/// More than a block and the longest step of another symbol together.
const END_OF_BLOCK: u32 = 96;

/// Coefficients of a block, and places for what lies beyond it: the next block's, which is read later.
pub(super) type Block = [i16; 256];

/// Where the n-th coefficient of the data goes. What lies beyond the block goes to the place behind it, so that its end is asked for once for each
/// look.
const PLACES: [u8; 256] = {
    let (mut places, mut number) = ([64; 256], 0);
    while number < NATURAL.len() {
        places[number] = NATURAL[number];
        number += 1;
    }
    places
};

/// The data without stuffing, and where they are cut by restart markers.
#[derive(Default)]
pub(super) struct Data {
    bytes: Vec<u8>,
    /// Ends of the parts; the last is the end of all.
    pub(super) ends: Vec<usize>,
}

impl Data {
    /// Takes the bytes up to the end marker; nothing when another marker than that and the expected restart markers is among them.
    pub(super) fn unpack(&mut self, mut rest: &[u8]) -> Option<()> {
        self.bytes.clear();
        self.ends.clear();
        loop {
            let place = memchr(0xff, rest)?;
            let (&[_, next], behind) = rest.get(place..)?.split_first_chunk()?;
            if next == 0 {
                self.bytes.extend_from_slice(rest.get(..=place)?);
            } else {
                self.bytes.extend_from_slice(rest.get(..place)?);
                self.ends.push(self.bytes.len());
                match next {
                    0xd9 => return Some(()),
                    0xd0..=0xd7 if usize::from(next - 0xd0) == (self.ends.len() - 1) % 8 => {}
                    _ => return None,
                }
            }
            rest = behind;
        }
    }

    pub(super) fn reader(&self) -> Reader<'_> {
        Reader { bytes: &self.bytes, rest: &self.bytes, beyond: 0, bits: 0, count: 0 }
    }
}

/// Bits, the most significant of a byte first. Behind the end come zeros; whoever reads asks at the end of a part.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    /// What is loaded next.
    rest: &'a [u8],
    /// Bytes behind the end that were loaded.
    beyond: usize,
    /// The bits loaded, from the top on; below them some of the next byte.
    bits: u64,
    /// How many, in the lowest six bits.
    count: u32,
}

impl Reader<'_> {
    /// Loads bits until there are 56 at least.
    #[inline(always)]
    fn refill(&mut self) {
        let count = self.count & 63;
        let taken = ((63 - count) / 8) as usize;
        if let Some(word) = self.rest.first_chunk() {
            self.bits |= u64::from_be_bytes(*word) >> count;
            self.rest = &self.rest[taken..];
        } else {
            *self = self.refilled_at_end(count, taken);
        }
        // At least 56; of what is above that, as many bits as are loaded without a whole byte more.
        self.count = count | 0x38;
    }

    /// By value, so that elsewhere all of it may stay in registers.
    #[cold]
    #[inline(never)]
    fn refilled_at_end(mut self, count: u32, taken: usize) -> Self {
        let mut word = [0; 8];
        word.iter_mut().zip(self.rest).for_each(|(target, byte)| *target = *byte);
        self.bits |= u64::from_be_bytes(word) >> count;
        self.beyond += taken.saturating_sub(self.rest.len());
        self.rest = self.rest.get(taken..).unwrap_or_default();
        self
    }

    /// Whether exactly the bytes before `end` were used, the last at least in part; goes on behind them.
    pub(super) fn ends_at(&mut self, end: usize) -> bool {
        let loaded = self.bytes.len() - self.rest.len() + self.beyond;
        let used = (8 * loaded - (self.count & 63) as usize).div_ceil(8);
        (self.rest, self.beyond, self.bits, self.count) = (self.bytes.get(end..).unwrap_or_default(), 0, 0, 0);
        used == end
    }

    /// The next symbol and its value: (coefficients to go on by, value). Takes 31 bits at most.
    #[inline(always)]
    fn symbol(&mut self, codes: &Codes) -> Option<(u32, i32)> {
        let mut found = codes.lookup[(self.bits >> (64 - LOOKAHEAD)) as usize];
        if found == 0 {
            found = codes.find_long(self.bits)?;
        }
        let (length, size) = (found >> 16 & 63, found >> 24 & 63);
        // Without branches: which way they went could not be foreseen. Values that begin with a zero are negative.
        let behind = self.bits << length;
        let negative = !(behind.cast_signed() >> 63);
        let value = ((behind >> 1) >> (63 - size)).cast_signed() + (negative & (1 - (1 << size)));
        self.bits <<= found & 63;
        self.count = self.count.wrapping_sub(found);
        Some((found >> 8 & 0xff, value as i32))
    }

    /// Reads a block of which nothing but its mean is wanted, for the mean of the next one: what several codes come to is looked up at once.
    #[target_feature(enable = "bmi1,bmi2,lzcnt,popcnt")]
    #[inline(never)]
    pub(super) fn skip(&mut self, codes: (&Codes, &Codes), before: &mut i32) -> Option<()> {
        self.refill();
        let (_, difference) = self.symbol(codes.0)?;
        *before = before.wrapping_add(difference);
        let mut place = 0;
        while place < 63 {
            self.refill();
            let found = u32::from(codes.1.skips[(self.bits >> (64 - LOOKAHEAD)) as usize]);
            let (length, steps) = (found & 15, found >> 4 & 0x3ff);
            // Behind the last coefficient there is no code for the end: what follows is of the next block.
            if found > 0 && place + steps < 63 {
                self.bits <<= length;
                self.count = self.count.wrapping_sub(length);
                if found & u32::from(ENDS_BLOCK) > 0 {
                    return Some(());
                }
                place += steps;
            } else {
                place += self.symbol(codes.1)?.0;
            }
        }
        (place == 63 || place >= END_OF_BLOCK).then_some(())
    }

    /// Reads a block. `before` is the mean of the component's block before, and becomes this one's.
    #[inline(always)]
    pub(super) fn block(&mut self, codes: (&Codes, &Codes), before: &mut i32, block: &mut Block) -> Option<()> {
        block.first_chunk_mut::<64>()?.fill(0);
        self.refill();
        let (_, difference) = self.symbol(codes.0)?;
        *before = before.wrapping_add(difference);
        block[0] = *before as i16;
        let pairs = &*codes.1.pairs;
        let mut put = |place: u32, value: u64| block[usize::from(PLACES[usize::from(place as u8)])] = value as i16;
        let mut place = 0_u32;
        let end = 'block: loop {
            self.refill();
            // Two looks take at most 20 bits and leave enough for one symbol of any length.
            for _ in 0..3 {
                let found = pairs[(self.bits >> (64 - LOOKAHEAD)) as usize];
                if found == 0 {
                    let (step, value) = self.symbol(codes.1)?;
                    place += step;
                    put(place, value as u64);
                    if place >= 63 {
                        break 'block place;
                    }
                    break;
                }
                let first = place + (found as u32 >> 8 & 0xff);
                place = first + (found as u32 >> 16 & 0xff);
                put(first, found >> 32);
                put(place, found >> 48);
                if place >= 63 {
                    // Behind the last coefficient there is no code for the end: what follows is of the next block.
                    let (end, length) = if first >= 63 { (first, found as u32 >> 24) } else { (place, found as u32) };
                    self.bits <<= length & 63;
                    self.count = self.count.wrapping_sub(length);
                    break 'block end;
                }
                self.bits <<= found & 63;
                self.count = self.count.wrapping_sub(found as u32);
            }
        };
        // Libjpeg does not mind runs beyond the last coefficient; whoever wrote them is not trusted here.
        (end == 63 || end >= END_OF_BLOCK).then_some(())
    }
}

pub(super) fn both_defined(direct: &Codes, alternating: &Codes) -> bool {
    direct.defined && alternating.defined
}
