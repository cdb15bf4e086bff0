//! The usual JPEG (sequential, Huffman codes, gray or luminance with two colour differences) without libjpeg, to the same pixels.
//!
//! Comes in: a file's bytes, a reduction and the part that is wanted. Goes out: rows of that part alone. Reading codes is what decoding a photograph
//! takes longest for, and libjpeg-turbo looks into two tables for each coefficient where one is enough for two; parts that are not wanted are
//! neither transformed nor coloured. Files of any other kind, and all that libjpeg might find fault with, are left to libjpeg: here nothing is
//! tolerated and nothing reported. Nothing is allocated once buffers are as large as the images.

mod colour;
mod entropy;
mod header;
mod transform;

use std::ops::Range;

use super::CropBox;
use crate::image::lines::Lines;
use colour::{Bands, Spread, colour_row, spread_row};
use entropy::{Codes, Data, Reader};
use header::{Header, Tables};
use transform::{Factors, factors, put_block};

/// Buffers, kept from file to file.
#[derive(Default)]
pub(super) struct Baseline {
    tables: Tables,
    data: Data,
    planes: [Vec<u8>; 3],
    /// Coefficients of a few units.
    blocks: Vec<i16>,
    /// Chroma of one row, and sums on the way.
    rows: [Vec<u8>; 2],
    sums: Vec<u16>,
}

impl Baseline {
    /// Most bytes that a buffer keeps between images: as those of [`super::super::Scratch`].
    const KEPT_BYTES: usize = 16 << 20;

    /// Gives the rows of the part `wanted` of the image at 1 / `reduction` of its size; `None`, after some rows or before, when the file is not a
    /// usual one.
    pub(super) fn decode(&mut self, bytes: &[u8], reduction: usize, wanted: CropBox, lines: &mut dyn Lines) -> Option<()> {
        if !is_x86_feature_detected!("avx2") || !is_x86_feature_detected!("bmi1") || !is_x86_feature_detected!("bmi2") {
            return None;
        }
        for plane in &mut self.planes {
            if plane.capacity() > Self::KEPT_BYTES {
                *plane = Vec::new();
            }
        }
        #[expect(unsafe_code, reason = "the processor was asked above for the instructions that the function is compiled for")]
        unsafe {
            self.decode_here(bytes, reduction, wanted, lines)
        }
    }

    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    fn decode_here(&mut self, bytes: &[u8], reduction: usize, wanted: CropBox, lines: &mut dyn Lines) -> Option<()> {
        let header = header::read(bytes, &mut self.tables)?;
        let geometry = Geometry::new(&header, reduction);
        self.data.unpack(header.data)?;
        self.decode_bands(&header, &geometry, wanted, lines)
    }
}

/// How the image is divided.
struct Geometry {
    /// Columns and rows of the image at its reduced size.
    width: usize,
    height: usize,
    /// Columns and rows of a unit at the reduced size, and units.
    unit: (usize, usize),
    units: (usize, usize),
    /// For each component: side of a block after the transform, columns of the plane.
    blocks: [(usize, usize); 3],
    reduction: usize,
}

impl Geometry {
    fn new(header: &Header<'_>, reduction: usize) -> Self {
        let least = 8 / reduction;
        let first = header.components.0[0];
        let (across, down) = (first.across, first.down);
        let units = (header.width.div_ceil(8 * across), header.height.div_ceil(8 * down));
        let mut blocks = [(least, units.0 * across * least); 3];
        for (component, block) in header.components().iter().zip(&mut blocks) {
            // Chroma of fewer samples is reduced less, as long as it does not become larger than luminance.
            let mut side = least;
            while side < 8
                && (across * least).is_multiple_of(component.across * side * 2)
                && (down * least).is_multiple_of(component.down * side * 2)
            {
                side *= 2;
            }
            *block = (side, units.0 * component.across * side);
        }
        let (width, height) = (header.width.div_ceil(reduction), header.height.div_ceil(reduction));
        Self { width, height, unit: (across * least, down * least), units, blocks, reduction }
    }
}

/// Those of `count` units that have samples which pixels from `start` to `end` depend on; interpolated chroma reaches one sample further.
fn units_of(start: usize, end: usize, unit: usize, count: usize) -> Range<usize> {
    start.saturating_sub(2) / unit..(end + 2).div_ceil(unit).min(count)
}

/// Codes and quantization of a component.
type Part<'a> = ((&'a Codes, &'a Codes), Factors);

impl Baseline {
    /// Reads all blocks, a row of units after the other, and transforms and colours what is wanted.
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    fn decode_bands(&mut self, header: &Header<'_>, geometry: &Geometry, wanted: CropBox, lines: &mut dyn Lines) -> Option<()> {
        let Self { tables, data, planes, blocks, rows: buffers, sums } = self;
        let [top, left, height, width] = [wanted.top, wanted.left, wanted.height, wanted.width].map(|value| value as usize);
        if left + width > geometry.width || top + height > geometry.height || width == 0 {
            return None;
        }
        for ((plane, component), (side, stride)) in planes.iter_mut().zip(header.components()).zip(geometry.blocks) {
            let length = 2 * stride * component.down * side;
            if plane.len() < length {
                plane.resize(length, 0);
            }
        }
        blocks.resize(64 * BLOCKS + BEHIND, 0);
        let places = header.components().iter().enumerate().flat_map(|(number, component)| {
            (0..component.down).flat_map(move |y| (0..component.across).map(move |x| Place { component: number, x, y }))
        });
        let mut unit = ([Place::default(); 6], 0);
        for (target, place) in unit.0.iter_mut().zip(places) {
            (*target, unit.1) = (place, unit.1 + 1);
        }
        let mut units = Units {
            header,
            geometry,
            parts: parts_of(header, tables)?,
            unit: unit.0.get(..unit.1)?,
            reader: data.reader(),
            ends: data.ends.iter(),
            left_in_part: header.restart_interval,
            before: [0; 3],
        };
        let columns = units_of(left, left + width, geometry.unit.0, geometry.units.0);
        let rows = units_of(top, top + height, geometry.unit.1, geometry.units.1);
        let mut next = top;
        for row in 0..geometry.units.1 {
            let wanted = if rows.contains(&row) { columns.clone() } else { 0..0 };
            units.skip(wanted.start)?;
            let at_once = BLOCKS / units.unit.len().max(1);
            for column in wanted.clone().step_by(at_once) {
                let these = column..wanted.end.min(column + at_once);
                units.read(these.len(), blocks)?;
                units.put(blocks, (these, row), planes)?;
            }
            units.skip(geometry.units.0 - wanted.end)?;
            // The last row of a band may depend on the one below.
            let complete = if row + 1 == geometry.units.1 { geometry.height } else { (row + 1) * geometry.unit.1 - 1 };
            let these = next..complete.min(top + height);
            if rows.contains(&row) && !these.is_empty() {
                next = these.end;
                colour_rows(header, geometry, planes, (buffers, sums), (these, left, width), lines)?;
            }
        }
        let end = *units.ends.next()?;
        (units.reader.ends_at(end) && units.ends.next().is_none()).then_some(())
    }
}

/// Most blocks that are read before they are transformed: 6 kB. Samples that were just written cannot be read several at once without a wait.
const BLOCKS: usize = 48;

/// Places behind the last block: a block is read into as many as a byte can name.
const BEHIND: usize = 256 - 64;

fn parts_of<'a>(header: &Header<'_>, tables: &'a Tables) -> Option<[Option<Part<'a>>; 3]> {
    let mut parts = [const { None }; 3];
    for (part, component) in parts.iter_mut().zip(header.components()) {
        let (direct, alternating) = (tables.direct.get(component.direct)?, tables.alternating.get(component.alternating)?);
        if !entropy::both_defined(direct, alternating) {
            return None;
        }
        *part = Some(((direct, alternating), factors(tables.quantization.get(component.quantization)?.as_ref()?)));
    }
    Some(parts)
}

/// Where a block of a unit lies in it.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    component: usize,
    x: usize,
    y: usize,
}

/// What reading units needs.
struct Units<'a> {
    header: &'a Header<'a>,
    geometry: &'a Geometry,
    parts: [Option<Part<'a>>; 3],
    /// The blocks of a unit.
    unit: &'a [Place],
    reader: Reader<'a>,
    /// Ends of the parts between restart markers that are still to come, and units until the next.
    ends: std::slice::Iter<'a, usize>,
    left_in_part: usize,
    /// Mean of the block before, of each component.
    before: [i32; 3],
}

impl Units<'_> {
    /// At the beginning of each unit.
    #[inline]
    fn begin(&mut self) -> Option<()> {
        if self.header.restart_interval > 0 {
            if self.left_in_part == 0 {
                if !self.reader.ends_at(*self.ends.next()?) {
                    return None;
                }
                (self.before, self.left_in_part) = ([0; 3], self.header.restart_interval);
            }
            self.left_in_part -= 1;
        }
        Some(())
    }

    /// Reads units that are not wanted.
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    fn skip(&mut self, count: usize) -> Option<()> {
        for _ in 0..count {
            self.begin()?;
            for Place { component, .. } in self.unit {
                let (codes, _) = self.parts.get(*component)?.as_ref()?;
                self.reader.skip(*codes, self.before.get_mut(*component)?)?;
            }
        }
        Some(())
    }

    /// Reads units to `blocks`.
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    #[inline(never)]
    fn read(&mut self, count: usize, blocks: &mut [i16]) -> Option<()> {
        let mut at = 0;
        for _ in 0..count {
            self.begin()?;
            // A copy, which stays in registers.
            let mut reader = self.reader;
            for Place { component, .. } in self.unit {
                let (codes, _) = self.parts.get(*component)?.as_ref()?;
                let (before, block) = (self.before.get_mut(*component)?, blocks.get_mut(at..)?.first_chunk_mut()?);
                if self.geometry.blocks.get(*component)?.0 == 1 {
                    // Of one sample is wanted what the mean says.
                    reader.skip(*codes, before)?;
                    block[0] = *before as i16;
                } else {
                    reader.block(*codes, before, block)?;
                }
                at += 64;
            }
            self.reader = reader;
        }
        Some(())
    }

    /// Puts the samples of units that were read into the bands.
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    #[inline(never)]
    fn put(&self, blocks: &[i16], (columns, row): (Range<usize>, usize), planes: &mut [Vec<u8>; 3]) -> Option<()> {
        let mut blocks = blocks.as_chunks::<64>().0.iter();
        for column in columns {
            for Place { component: number, x, y } in self.unit {
                let (component, (side, stride)) = (self.header.components.0.get(*number)?, *self.geometry.blocks.get(*number)?);
                let (_, factors) = self.parts.get(*number)?.as_ref()?;
                let at = ((row % 2 * component.down + y) * stride + column * component.across + x) * side;
                put_block(blocks.next()?, factors, side, planes.get_mut(*number)?, at, stride)?;
            }
        }
        Some(())
    }
}

/// Colours rows and columns of pixels into the next lines.
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
fn colour_rows(
    header: &Header<'_>,
    geometry: &Geometry,
    planes: &[Vec<u8>; 3],
    (buffers, sums): (&mut [Vec<u8>; 2], &mut Vec<u16>),
    (rows, left, width): (Range<usize>, usize, usize),
    lines: &mut dyn Lines,
) -> Option<()> {
    let bands = |number: usize| -> Option<Bands<'_>> {
        let (component, first) = (header.components.0[number], header.components.0[0]);
        let (side, stride) = geometry.blocks[number];
        let along = |length: usize, factor: usize, greatest: usize| (length * factor * side).div_ceil(8 * greatest);
        Some(Bands {
            samples: planes.get(number)?,
            stride,
            rows: component.down * side,
            width: along(header.width, component.across, first.across),
            height: along(header.height, component.down, first.down),
        })
    };
    let (luminance, blue, red) = (bands(0)?, bands(1)?, bands(2)?);
    let (columns, twice) = (geometry.unit.0 > geometry.blocks[1].0, geometry.unit.1 > geometry.blocks[1].0);
    let smooth = (columns && blue.width > 2 || !columns && twice) && geometry.reduction < 8;
    let how = Spread { columns, rows: twice, smooth };
    let [blues, reds] = buffers;
    for y in rows {
        let luminance = luminance.row(y)?.get(left..left + width)?;
        if header.components().len() == 1 {
            for colour in lines.line() {
                colour.iter_mut().zip(luminance).for_each(|(target, sample)| *target = *sample);
            }
        } else {
            let start = spread_row(&blue, how, (y, left, left + width), sums, blues)?;
            spread_row(&red, how, (y, left, left + width), sums, reds)?;
            colour_row(luminance, blues.get(start..start + width)?, reds.get(start..start + width)?, lines.line());
        }
        lines.filled();
    }
    Some(())
}
