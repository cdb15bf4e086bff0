//! Whether the data of a JPEG's scans are all there: every block of every component read to its end (ITU-T T.81, annexes F and G).
//!
//! Comes in: the frame, the tables in force and the bytes behind a scan header. Goes out: the scan's data without what does not belong to them,
//! and where they end; or nothing, when a bit is missing or no code fits. Values of pixels are not computed.

use memchr::memchr;

use super::huffman::{Bits, Table};

/// A component of the frame.
#[derive(Clone, Debug)]
struct Component {
    id: u8,
    /// Sampling factors.
    across: u32,
    down: u32,
    /// For progressive files: one bit for each coefficient of each block that is not zero so far.
    nonzero: Vec<u64>,
}

/// What the frame header says.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) progressive: bool,
    pub(super) arithmetic: bool,
    width: u32,
    height: u32,
    components: Vec<Component>,
}

impl Frame {
    /// From the marker and payload of a frame header of 8 bits; nothing for kinds that are not decoded or contradictory ones.
    pub(super) fn new(marker: u8, payload: &[u8]) -> Option<Self> {
        let (&[_, high_rows, low_rows, high_columns, low_columns, count], rest) = payload.split_first_chunk()?;
        let progressive = matches!(marker, 0xc2 | 0xca);
        let mut components = Vec::new();
        for description in rest.chunks_exact(3).take(usize::from(count)) {
            let &[id, sampling, _] = description else { return None };
            let (across, down) = (u32::from(sampling >> 4), u32::from(sampling & 15));
            if !(1..=4).contains(&across) || !(1..=4).contains(&down) {
                return None;
            }
            components.push(Component { id, across, down, nonzero: Vec::new() });
        }
        if components.is_empty() || components.len() != usize::from(count) || !matches!(marker, 0xc0..=0xc2 | 0xc9 | 0xca) {
            return None;
        }
        let (width, height) = (u16::from_be_bytes([high_columns, low_columns]).into(), u16::from_be_bytes([high_rows, low_rows]).into());
        let mut frame = Self { progressive, arithmetic: marker >= 0xc9, width, height, components };
        if progressive {
            let (columns, rows) = frame.units();
            for component in &mut frame.components {
                component.nonzero = vec![0; (columns * component.across * rows * component.down) as usize];
            }
        }
        Some(frame)
    }

    /// Number of components.
    pub(super) fn components(&self) -> usize {
        self.components.len()
    }

    /// Greatest sampling factors.
    fn sampling(&self) -> (u32, u32) {
        let most = |factor: fn(&Component) -> u32| self.components.iter().map(factor).max().unwrap_or(1);
        (most(|component| component.across), most(|component| component.down))
    }

    /// Columns and rows of minimum coded units when all components are in one scan.
    fn units(&self) -> (u32, u32) {
        let (across, down) = self.sampling();
        (self.width.div_ceil(8 * across), self.height.div_ceil(8 * down))
    }
}

/// Tables and restart interval in force.
#[derive(Default)]
pub(super) struct Tables {
    direct: [Option<Table>; 4],
    alternating: [Option<Table>; 4],
    restart_interval: u32,
}

impl Tables {
    /// Takes the Huffman tables of a segment.
    pub(super) fn define(&mut self, mut payload: &[u8]) -> Option<()> {
        while let Some((&[which, ref counts @ ..], rest)) = payload.split_first_chunk::<17>() {
            let symbols = counts.iter().map(|&count| usize::from(count)).sum();
            let (symbols, rest) = rest.split_at_checked(symbols)?;
            payload = rest;
            let tables = if which >> 4 == 0 { &mut self.direct } else { &mut self.alternating };
            *tables.get_mut(usize::from(which & 15))? = Some(Table::new(counts, symbols)?);
        }
        Some(())
    }

    /// Takes the restart interval of a segment.
    pub(super) fn restart(&mut self, payload: &[u8]) -> Option<()> {
        self.restart_interval = u16::from_be_bytes(*payload.first_chunk()?).into();
        Some(())
    }
}

/// What the scan header says.
pub(super) struct Header {
    /// Place of each component in the frame, and its tables for the first coefficient and the others.
    parts: Vec<(usize, usize, usize)>,
    /// First and last coefficient.
    first: u32,
    last: u32,
    /// Whether it refines what earlier scans said.
    refines: bool,
}

impl Header {
    pub(super) fn new(frame: &Frame, payload: &[u8]) -> Option<Self> {
        let (count, rest) = payload.split_first()?;
        let (selectors, parameters) = rest.split_at_checked(2 * usize::from(*count))?;
        let mut parts = Vec::new();
        for selector in selectors.chunks_exact(2) {
            let &[id, tables] = selector else { return None };
            let place = frame.components.iter().position(|component| component.id == id)?;
            parts.push((place, usize::from(tables >> 4), usize::from(tables & 15)));
        }
        let &[first, last, approximation] = parameters.first_chunk()?;
        let whole = Self { parts, first: 0, last: 63, refines: false };
        if whole.parts.is_empty() {
            return None;
        }
        if !frame.progressive {
            return Some(whole);
        }
        (first <= last && last < 64).then_some(Self { first: first.into(), last: last.into(), refines: approximation >> 4 > 0, ..whole })
    }

    /// Number of components in the scan.
    pub(super) fn components(&self) -> usize {
        self.parts.len()
    }
}

/// What reading a scan found.
pub(super) struct Read {
    /// The data as they should be.
    pub(super) data: Vec<u8>,
    /// Bytes of the file that were read; a marker or what does not belong to the scan follows.
    pub(super) length: usize,
    /// Bytes were left out before a restart marker.
    pub(super) extra: bool,
    /// A restart marker had the wrong number.
    pub(super) renumbered: bool,
}

/// Reads the data of a scan from the beginning of `bytes`; nothing when a part of them is missing.
pub(super) fn read(frame: &mut Frame, tables: &Tables, header: &Header, bytes: &[u8]) -> Option<Read> {
    let walk = Walk::new(frame, header)?;
    let interval = if tables.restart_interval == 0 { walk.units } else { tables.restart_interval };
    let mut found = Read { data: Vec::new(), length: 0, extra: false, renumbered: false };
    let (mut unit, mut number) = (0, 0_u8);
    loop {
        let (plain, ends) = plain_until_marker(bytes.get(found.length..)?);
        let mut bits = Bits::new(&plain);
        let end = walk.units.min(unit + interval);
        let mut run = 0;
        for unit in unit..end {
            walk.read_unit(frame, tables, header, unit, &mut (&mut bits, &mut run))?;
        }
        unit = end;
        let used = plain.get(..bits.consumed())?;
        let whole = used.len() == plain.len();
        put_stuffed(&mut found.data, used);
        if unit == walk.units {
            // What follows is the caller's, extra bytes included.
            found.length += if whole { ends } else { length_of(bytes.get(found.length..)?, used.len())? };
            return Some(found);
        }
        found.extra |= !whole;
        let marker = found.length + ends;
        // Fill bytes may stand before a marker.
        let fill = bytes.get(marker..)?.iter().take_while(|&&byte| byte == 0xff).count();
        let offset = bytes.get(marker + fill)?.checked_sub(0xd0).filter(|offset| *offset < 8)?;
        // As `jpeg_resync_to_restart` of libjpeg decides: a near number means that data were lost, any other is only a wrong number.
        match (8 + offset - number) % 8 {
            0 => {}
            3..=5 => found.renumbered = true,
            _ => return None,
        }
        found.data.extend([0xff, 0xd0 + number]);
        found.length = marker + fill + 1;
        number = (number + 1) % 8;
    }
}

/// The data up to the next marker without stuffing, and the bytes of the file that they took.
fn plain_until_marker(bytes: &[u8]) -> (Vec<u8>, usize) {
    let (mut plain, mut at) = (Vec::new(), 0);
    while let Some(rest) = bytes.get(at..) {
        let Some(next) = memchr(0xff, rest) else { break };
        let fill = rest.iter().skip(next).take_while(|&&byte| byte == 0xff).count();
        plain.extend_from_slice(rest.get(..next).unwrap_or_default());
        at += next;
        if rest.get(next + fill) != Some(&0) {
            return (plain, at);
        }
        plain.push(0xff);
        at += fill + 1;
    }
    plain.extend_from_slice(bytes.get(at..).unwrap_or_default());
    (plain, bytes.len())
}

/// Bytes of the file that hold the first `count` bytes of its data.
fn length_of(bytes: &[u8], count: usize) -> Option<usize> {
    let mut at = 0;
    for _ in 0..count {
        let fill = bytes.get(at..)?.iter().take_while(|&&byte| byte == 0xff).count();
        at += fill + 1;
    }
    Some(at)
}

fn put_stuffed(out: &mut Vec<u8>, plain: &[u8]) {
    for byte in plain {
        out.push(*byte);
        if *byte == 0xff {
            out.push(0);
        }
    }
}

/// Bits of the data and how many further blocks the band's end already covers.
type Source<'a, 'b> = (&'a mut Bits<'b>, &'a mut u32);

/// The order of a scan's blocks.
struct Walk {
    /// Minimum coded units.
    units: u32,
    /// Units in a row.
    columns: u32,
    /// Whether a unit is one block of the only component.
    apart: bool,
    /// Units in a row when components are together, from which the place of a block follows.
    together: u32,
}

impl Walk {
    fn new(frame: &Frame, header: &Header) -> Option<Self> {
        let (together, rows) = frame.units();
        let &[(place, ..)] = header.parts.as_slice() else {
            return Some(Self { units: together * rows, columns: together, apart: false, together });
        };
        let (component, (across, down)) = (frame.components.get(place)?, frame.sampling());
        let columns = (frame.width * component.across).div_ceil(8 * across);
        let rows = (frame.height * component.down).div_ceil(8 * down);
        Some(Self { units: columns * rows, columns, apart: true, together })
    }

    fn read_unit(&self, frame: &mut Frame, tables: &Tables, header: &Header, unit: u32, source: &mut Source<'_, '_>) -> Option<()> {
        let (row, column) = (unit / self.columns.max(1), unit % self.columns.max(1));
        for &(place, direct, alternating) in &header.parts {
            let tables = (tables.direct.get(direct)?.as_ref(), tables.alternating.get(alternating)?.as_ref());
            let component = frame.components.get_mut(place)?;
            let (across, down) = if self.apart { (1, 1) } else { (component.across, component.down) };
            for (y, x) in (0..down).flat_map(|y| (0..across).map(move |x| (y, x))) {
                if !frame.progressive {
                    read_block(tables, source.0)?;
                    continue;
                }
                let at = (row * down + y) * self.together * component.across + column * across + x;
                let nonzero = component.nonzero.get_mut(at as usize)?;
                match (header.first, header.refines) {
                    (0, false) => read_direct(tables.0?, source.0)?,
                    (0, true) => drop(source.0.take(1)?),
                    (_, false) => read_band(tables.1?, header, nonzero, source)?,
                    (_, true) => refine_band(tables.1?, header, nonzero, source)?,
                }
            }
        }
        Some(())
    }
}

/// The first coefficient of a block.
fn read_direct(table: &Table, bits: &mut Bits<'_>) -> Option<()> {
    let size = u32::from(bits.symbol(table)?);
    bits.take(Some(size).filter(|size| *size < 16)?).map(drop)
}

/// A whole block of a sequential file.
fn read_block((direct, alternating): (Option<&Table>, Option<&Table>), bits: &mut Bits<'_>) -> Option<()> {
    read_direct(direct?, bits)?;
    let (alternating, mut at) = (alternating?, 1);
    while at < 64 {
        let symbol = bits.symbol(alternating)?;
        let (zeros, size) = (u32::from(symbol >> 4), u32::from(symbol & 15));
        if size > 0 {
            bits.take(size)?;
        } else if zeros != 15 {
            break;
        }
        at += zeros + 1;
    }
    Some(())
}

/// A band of a block, said for the first time.
fn read_band(table: &Table, header: &Header, nonzero: &mut u64, (bits, run): &mut Source<'_, '_>) -> Option<()> {
    if **run > 0 {
        **run -= 1;
        return Some(());
    }
    let mut at = header.first;
    while at <= header.last {
        let symbol = bits.symbol(table)?;
        let (zeros, size) = (u32::from(symbol >> 4), u32::from(symbol & 15));
        if size > 0 {
            at += zeros;
            bits.take(size)?;
            *nonzero |= 1_u64.checked_shl(at).unwrap_or(0);
        } else if zeros == 15 {
            at += zeros;
        } else {
            **run = (1 << zeros) + bits.take(zeros)? - 1;
            break;
        }
        at += 1;
    }
    Some(())
}

/// One more bit of the coefficients of a band, and those that are new with it.
fn refine_band(table: &Table, header: &Header, nonzero: &mut u64, (bits, run): &mut Source<'_, '_>) -> Option<()> {
    let known = |nonzero: u64, at: u32| nonzero.checked_shr(at).is_some_and(|rest| rest & 1 == 1);
    let mut at = header.first;
    if **run == 0 {
        while at <= header.last {
            let symbol = bits.symbol(table)?;
            let (mut zeros, new) = (u32::from(symbol >> 4), symbol & 15);
            match new {
                0 if zeros < 15 => {
                    **run = (1 << zeros) + bits.take(zeros)?;
                    break;
                }
                0 => {}
                1 => drop(bits.take(1)?),
                _ => return None,
            }
            while at <= header.last {
                if known(*nonzero, at) {
                    bits.take(1)?;
                } else if zeros == 0 {
                    break;
                } else {
                    zeros -= 1;
                }
                at += 1;
            }
            if new == 1 {
                *nonzero |= 1_u64.checked_shl(at).unwrap_or(0);
            }
            at += 1;
        }
    }
    if **run > 0 {
        for at in at..=header.last {
            if known(*nonzero, at) {
                bits.take(1)?;
            }
        }
        **run -= 1;
    }
    Some(())
}
