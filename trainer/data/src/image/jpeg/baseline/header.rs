//! What stands before the data of the JPEGs that [`super`] decodes.
//!
//! Comes in: a file's bytes. Goes out: its frame and tables and where the data begin; or nothing for whatever is not the usual case, which is
//! left to libjpeg-turbo.

use super::entropy::Codes;

/// A component of the frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Component {
    id: u8,
    /// Sampling factors, 1 or 2.
    pub(super) across: usize,
    pub(super) down: usize,
    /// Numbers of its tables.
    pub(super) quantization: usize,
    pub(super) direct: usize,
    pub(super) alternating: usize,
}

/// Tables as they are defined while the headers are read. Kept from file to file: most files define the same ones.
#[derive(Default)]
pub(super) struct Tables {
    /// In the order of the data.
    pub(super) quantization: [Option<[i16; 64]>; 4],
    pub(super) direct: [Codes; 4],
    pub(super) alternating: [Codes; 4],
}

/// What the headers say.
#[derive(Debug)]
pub(super) struct Header<'a> {
    pub(super) width: usize,
    pub(super) height: usize,
    /// One or three.
    pub(super) components: ([Component; 3], usize),
    /// Units between two restart markers; 0: none.
    pub(super) restart_interval: usize,
    /// From the first byte behind the scan header.
    pub(super) data: &'a [u8],
}

impl Header<'_> {
    pub(super) fn components(&self) -> &[Component] {
        self.components.0.get(..self.components.1).unwrap_or_default()
    }
}

/// How a segment begins that has a part of a colour profile; its number and that of all parts follow.
const PROFILE: &[u8] = b"ICC_PROFILE\0";

/// Reads all headers.
pub(super) fn read<'a>(bytes: &'a [u8], tables: &mut Tables) -> Option<Header<'a>> {
    tables.quantization = [None; 4];
    for codes in tables.direct.iter_mut().chain(&mut tables.alternating) {
        codes.forget();
    }
    let mut rest = bytes.strip_prefix(&[0xff, 0xd8])?;
    let (mut frame, mut restart_interval, mut known_colours, mut profile) = (None, 0, false, false);
    loop {
        let (&[mark, marker, high, low], behind) = rest.split_first_chunk()?;
        let length = usize::from(u16::from_be_bytes([high, low])).checked_sub(2)?;
        let (payload, behind) = behind.split_at_checked(length)?;
        rest = behind;
        if mark != 0xff {
            return None;
        }
        match marker {
            0xc0 | 0xc1 if frame.is_none() => frame = Some(read_frame(payload)?),
            0xc4 => read_codes(payload, tables)?,
            0xdb => read_quantization(payload, tables)?,
            0xdd => restart_interval = usize::from(u16::from_be_bytes(*payload.as_array()?)),
            0xe0 => known_colours |= jfif_without_fault(payload)?,
            // Of several parts libjpeg looks whether all are there.
            0xe2 if payload.starts_with(PROFILE) => {
                if profile || !payload.get(PROFILE.len()..)?.starts_with(&[1, 1]) || payload.len() < PROFILE.len() + 3 {
                    return None;
                }
                profile = true;
            }
            0xee => known_colours |= adobe_with_luminance(payload)?,
            0xe1..=0xed | 0xef | 0xfe => {}
            0xda => {
                let (width, height, (mut components, count)) = frame?;
                read_scan(payload, components.get_mut(..count)?)?;
                let ids = [components[0].id, components[1].id, components[2].id];
                if count == 3 && !known_colours && ids != [1, 2, 3] {
                    return None;
                }
                return Some(Header { width, height, components: (components, count), restart_interval, data: rest });
            }
            _ => return None,
        }
    }
}

/// Columns, rows and components of a frame that has one component, or three of which only the first may have more samples than the others.
fn read_frame(payload: &[u8]) -> Option<(usize, usize, ([Component; 3], usize))> {
    let (&[precision, h1, h0, w1, w0, count], rest) = payload.split_first_chunk()?;
    let (width, height) = (usize::from(u16::from_be_bytes([w1, w0])), usize::from(u16::from_be_bytes([h1, h0])));
    let count = usize::from(count);
    if precision != 8 || width == 0 || height == 0 || !matches!(count, 1 | 3) || rest.len() != 3 * count {
        return None;
    }
    let mut components = [Component { id: 0, across: 1, down: 1, quantization: 0, direct: 0, alternating: 0 }; 3];
    for (number, (component, &[id, sampling, table])) in components.iter_mut().zip(rest.as_chunks().0).enumerate() {
        let (across, down) = (usize::from(sampling >> 4), usize::from(sampling & 15));
        let allowed = if number == 0 { matches!((across, down), (1 | 2, 1 | 2)) } else { (across, down) == (1, 1) };
        if !allowed || table > 3 {
            return None;
        }
        (component.id, component.quantization) = (id, usize::from(table));
        // A single component has blocks one behind the other, whatever its factors.
        (component.across, component.down) = if count == 1 { (1, 1) } else { (across, down) };
    }
    let distinct = count == 1
        || (components[0].id != components[1].id && components[1].id != components[2].id && components[0].id != components[2].id);
    distinct.then_some((width, height, (components, count)))
}

/// The scan header: all components, in the frame's order, with all coefficients.
fn read_scan(payload: &[u8], components: &mut [Component]) -> Option<()> {
    let (&count, rest) = payload.split_first()?;
    if usize::from(count) != components.len() || rest.len() != 2 * components.len() + 3 || !rest.ends_with(&super::super::ALL_COEFFICIENTS)
    {
        return None;
    }
    for (component, &[id, tables]) in components.iter_mut().zip(rest.as_chunks().0) {
        let (direct, alternating) = (tables >> 4, tables & 15);
        if id != component.id || direct > 3 || alternating > 3 {
            return None;
        }
        (component.direct, component.alternating) = (usize::from(direct), usize::from(alternating));
    }
    Some(())
}

fn read_codes(mut payload: &[u8], tables: &mut Tables) -> Option<()> {
    while let Some((&[place], rest)) = payload.split_first_chunk() {
        let (counts, rest) = rest.split_first_chunk::<16>()?;
        let number = counts.iter().map(|count| usize::from(*count)).sum();
        let (symbols, rest) = rest.split_at_checked(number)?;
        payload = rest;
        let (tables, greatest) = if place >> 4 == 0 { (&mut tables.direct, 15) } else { (&mut tables.alternating, 255) };
        if place >> 4 > 1 || symbols.iter().any(|symbol| *symbol > greatest) {
            return None;
        }
        tables.get_mut(usize::from(place & 15))?.define(counts, symbols, place >> 4 == 1)?;
    }
    Some(())
}

fn read_quantization(mut payload: &[u8], tables: &mut Tables) -> Option<()> {
    while let Some((&[place], rest)) = payload.split_first_chunk() {
        let table = tables.quantization.get_mut(usize::from(place & 15))?.insert([0; 64]);
        let (length, rest) = match place >> 4 {
            0 => {
                table.iter_mut().zip(rest).for_each(|(value, byte)| *value = i16::from(*byte));
                (64, rest)
            }
            1 => {
                // What multiplies with them keeps 16 bits of the product, for which the sign does not matter.
                table.iter_mut().zip(rest.as_chunks().0).for_each(|(value, bytes)| *value = i16::from_be_bytes(*bytes));
                (128, rest)
            }
            _ => return None,
        };
        payload = rest.get(length..)?;
    }
    Some(())
}

/// Whether it is JFIF, and with it which colours the components are; nothing when libjpeg finds fault with it.
fn jfif_without_fault(payload: &[u8]) -> Option<bool> {
    match payload {
        [b'J', b'F', b'I', b'F', 0, major, rest @ ..] => (*major == 1 && rest.len() >= 8).then_some(true),
        [b'J', b'F', ..] => None,
        _ => Some(false),
    }
}

/// Whether Adobe's segment says that there are luminance and two colour differences; nothing when it says something else.
fn adobe_with_luminance(payload: &[u8]) -> Option<bool> {
    match payload {
        [b'A', b'd', b'o', b'b', b'e', _, _, _, _, _, _, 1, ..] => Some(true),
        [b'A', b'd', ..] => None,
        _ => Some(false),
    }
}
