//! The usual JPEG (sequential, Huffman codes, gray or luminance with two colour differences) without libjpeg, to the same pixels.
//!
//! Comes in: a file's bytes, a reduction and the part that is wanted. Goes out: rows of that part alone. Reading codes is what decoding a photograph
//! takes longest for, and libjpeg-turbo looks into two tables for each coefficient where one is enough; parts that are not wanted are neither
//! transformed nor coloured. Files of any other kind, and all that libjpeg might find fault with, are left to libjpeg: here nothing is
//! tolerated and nothing reported. Nothing is allocated once buffers are as large as the images.

mod colour;
mod entropy;
mod header;
mod transform;

use std::ops::Range;

use super::CropBox;
use crate::image::lines::Lines;
use colour::{Bands, Spread, colour_row, spread_row};
use entropy::{Block, Codes, Data, Reader, Targets};
use header::{Component, Header, Tables};
use transform::put_block;

/// Buffers, kept from file to file.
#[derive(Default)]
pub(super) struct Baseline {
    tables: Tables,
    data: Data,
    planes: [Vec<u8>; 3],
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
        let layout = Layout::new(&header, reduction);
        self.data.unpack(header.data)?;
        self.decode_bands(&header, &layout, wanted, lines)
    }
}

/// How the image is divided.
struct Layout {
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

impl Layout {
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

/// The units that have samples which pixels from `start` to `end` depend on; interpolated chroma reaches one sample further.
fn units_of(start: usize, end: usize, unit: usize) -> Range<usize> {
    start.saturating_sub(2) / unit..(end + 2).div_ceil(unit)
}

/// Codes and quantization of a component.
type Part<'a> = ((&'a Codes, &'a Codes), Targets);

impl Baseline {
    /// Reads all blocks, a row of units after the other, and transforms and colours what is wanted.
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    fn decode_bands(&mut self, header: &Header<'_>, layout: &Layout, wanted: CropBox, lines: &mut dyn Lines) -> Option<()> {
        let Self { tables, data, planes, rows: buffers, sums } = self;
        let [top, left, height, width] = [wanted.top, wanted.left, wanted.height, wanted.width].map(|value| value as usize);
        if left + width > layout.width || top + height > layout.height || width == 0 {
            return None;
        }
        for ((plane, component), (side, stride)) in planes.iter_mut().zip(header.components()).zip(layout.blocks) {
            let length = 2 * stride * component.down * side;
            if plane.len() < length {
                plane.resize(length, 0);
            }
        }
        let mut units = Units {
            header,
            layout,
            parts: parts_of(header, tables)?,
            columns: units_of(left, left + width, layout.unit.0),
            before: [0; 3],
            block: [0; 128],
        };
        let rows = units_of(top, top + height, layout.unit.1);
        let (mut reader, mut ends) = (data.reader(), data.ends.iter());
        let mut left_in_part = header.restart_interval;
        let mut next = top;
        for row in 0..layout.units.1 {
            for column in 0..layout.units.0 {
                if header.restart_interval > 0 {
                    if left_in_part == 0 {
                        if !reader.ends_at(*ends.next()?) {
                            return None;
                        }
                        (units.before, left_in_part) = ([0; 3], header.restart_interval);
                    }
                    left_in_part -= 1;
                }
                units.read(&mut reader, (column, row), rows.contains(&row), planes)?;
            }
            // The last row of a band may depend on the one below.
            let complete = if row + 1 == layout.units.1 { layout.height } else { (row + 1) * layout.unit.1 - 1 };
            let these = next..complete.min(top + height);
            if rows.contains(&row) && !these.is_empty() {
                next = these.end;
                colour_rows(header, layout, planes, (buffers, sums), (these, left, width), lines)?;
            }
        }
        let end = *ends.next()?;
        (reader.ends_at(end) && ends.next().is_none()).then_some(())
    }
}

fn parts_of<'a>(header: &Header<'_>, tables: &'a Tables) -> Option<[Option<Part<'a>>; 3]> {
    let mut parts = [const { None }; 3];
    for (part, component) in parts.iter_mut().zip(header.components()) {
        let (direct, alternating) = (tables.direct.get(component.direct)?, tables.alternating.get(component.alternating)?);
        if !entropy::both_defined(direct, alternating) {
            return None;
        }
        *part = Some(((direct, alternating), entropy::targets(tables.quantization.get(component.quantization)?.as_ref()?)));
    }
    Some(parts)
}

/// What reading units needs.
struct Units<'a> {
    header: &'a Header<'a>,
    layout: &'a Layout,
    parts: [Option<Part<'a>>; 3],
    /// Columns of units that are wanted.
    columns: Range<usize>,
    /// Mean of the block before, of each component.
    before: [i32; 3],
    block: Block,
}

impl Units<'_> {
    /// Reads the blocks of a unit and, if it is wanted, puts their samples into the bands.
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    #[inline]
    fn read(&mut self, reader: &mut Reader<'_>, (column, row): (usize, usize), wanted: bool, planes: &mut [Vec<u8>; 3]) -> Option<()> {
        let wanted = wanted && self.columns.contains(&column);
        let block = &mut self.block;
        for (number, component) in self.header.components().iter().enumerate() {
            let Component { across, down, .. } = *component;
            let (side, stride) = self.layout.blocks[number];
            let Some((codes, targets)) = &self.parts[number] else { return None };
            for y in 0..down {
                for x in 0..across {
                    if !wanted {
                        reader.skip(*codes, &mut self.before[number])?;
                        continue;
                    }
                    block.first_chunk_mut::<64>()?.fill(0);
                    let extent = reader.block(*codes, targets, &mut self.before[number], block)?;
                    let place = ((row % 2 * down + y) * stride + column * across + x) * side;
                    put_block(block.first_chunk()?, extent, side, &mut planes[number], place, stride)?;
                }
            }
        }
        Some(())
    }
}

/// Colours rows and columns of pixels into the next lines.
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
fn colour_rows(
    header: &Header<'_>,
    layout: &Layout,
    planes: &[Vec<u8>; 3],
    (buffers, sums): (&mut [Vec<u8>; 2], &mut Vec<u16>),
    (rows, left, width): (Range<usize>, usize, usize),
    lines: &mut dyn Lines,
) -> Option<()> {
    let bands = |number: usize| -> Option<Bands<'_>> {
        let (component, first) = (header.components.0[number], header.components.0[0]);
        let (side, stride) = layout.blocks[number];
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
    let (columns, twice) = (layout.unit.0 > layout.blocks[1].0, layout.unit.1 > layout.blocks[1].0);
    let smooth = (columns && blue.width > 2 || !columns && twice) && layout.reduction < 8;
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
