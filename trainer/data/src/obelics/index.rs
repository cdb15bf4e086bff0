//! Which stretches of a file are samples.
//!
//! Comes in: a file, and for every address whether the store has it. Goes out: the samples of one row group after the other, and what was
//! found. What is in memory at once is a row group's two columns as they are stored, some rows of them, and 12 bytes a sample of the group.

use std::collections::BTreeMap;

use crate::{
    obelics::{DocumentFile, ObelicsError, Part, RowFault, row::Row},
    retry::{sleep, with_retries},
    store::StoreError,
};

/// Rows that are decoded at once: some 300 kB of the published set, and enough that what a call costs does not count.
const BATCH_ROWS: usize = 128;

/// A stretch that is a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleAt {
    /// Number of the row in its row group.
    pub row: u32,
    /// Number of the stretch in its row.
    pub stretch: u32,
    /// How many of its images are in the store, whether or not they can be decoded. At least 1.
    pub images: u32,
}

/// Rows that give no document for one cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultyRows {
    /// How many.
    pub count: u64,
    /// The first one and what is wrong with it.
    pub first: String,
}

/// What was found in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileFindings {
    /// Rows, faulty ones included.
    pub rows: u64,
    /// Stretches of the others.
    pub stretches: u64,
    /// Those that are samples.
    pub samples: u64,
    /// Addresses of images.
    pub images: u64,
    /// Those that are in the store.
    pub stored: u64,
    /// Faulty rows by the name of their fault ([`crate::obelics::RowFault::name`]).
    pub faults: BTreeMap<&'static str, FaultyRows>,
}

/// Finds the samples of a file. `visit` gets the number of each row group and its samples, in their order; `is_stored` is usually
/// [`crate::store::AddressTable::find`]. Errors that may pass are retried for about a minute.
pub fn index_file(
    file: &DocumentFile,
    split: bool,
    is_stored: impl FnMut(&str) -> Result<bool, StoreError>,
    mut visit: impl FnMut(usize, &[SampleAt]),
) -> Result<FileFindings, ObelicsError> {
    index_file_with(file, split, is_stored, |row_group, samples, _| visit(row_group, samples))
}

/// What gives no sample.
pub(crate) struct LeftOutAt {
    /// Number of the row in its row group.
    pub(crate) row: u32,
    pub(crate) why: Why,
}

/// Why something gives no sample.
pub(crate) enum Why {
    /// The row is faulty.
    Fault(RowFault),
    /// No image of this stretch of it is in the store.
    NoImageStored {
        /// Number of the stretch in its row.
        stretch: u32,
    },
}

/// As [`index_file`]; `visit` gets what gives no sample as well.
pub(crate) fn index_file_with(
    file: &DocumentFile,
    split: bool,
    mut is_stored: impl FnMut(&str) -> Result<bool, StoreError>,
    mut visit: impl FnMut(usize, &[SampleAt], &[LeftOutAt]),
) -> Result<FileFindings, ObelicsError> {
    let mut findings = FileFindings::default();
    for row_group in 0..file.row_groups() {
        let group = with_retries(row_group as u64, sleep, ObelicsError::io, || {
            let (samples, left_out, findings) = (Vec::new(), Vec::new(), FileFindings::default());
            let mut group = RowGroup { number: row_group, split, row: 0, samples, left_out, findings };
            file.for_each_batch(row_group, BATCH_ROWS, |rows| rows.iter().try_for_each(|row| group.take(row, &mut is_stored)))?;
            Ok::<_, ObelicsError>(group)
        })?;
        findings.add(group.findings);
        visit(row_group, &group.samples, &group.left_out);
    }
    Ok(findings)
}

/// A row group that is looked through.
struct RowGroup {
    number: usize,
    split: bool,
    /// Number of the next row.
    row: u32,
    samples: Vec<SampleAt>,
    left_out: Vec<LeftOutAt>,
    findings: FileFindings,
}

impl RowGroup {
    fn take(&mut self, row: &Row, is_stored: &mut impl FnMut(&str) -> Result<bool, StoreError>) -> Result<(), ObelicsError> {
        let number = self.row;
        self.row += 1;
        self.findings.rows += 1;
        let stretches = match row.stretches(self.split) {
            Ok(stretches) => stretches,
            Err(fault) => {
                let first = || FaultyRows { count: 0, first: format!("row {number} of row group {}: {fault}", self.number) };
                self.findings.faults.entry(fault.name()).or_insert_with(first).count += 1;
                self.left_out.push(LeftOutAt { row: number, why: Why::Fault(fault) });
                return Ok(());
            }
        };
        for (stretch, parts) in (0..).zip(&stretches) {
            let mut images = 0;
            for part in parts {
                if let Part::Image(address) = part {
                    self.findings.images += 1;
                    images += u32::from(is_stored(address)?);
                }
            }
            self.findings.stretches += 1;
            self.findings.stored += u64::from(images);
            if images > 0 {
                self.findings.samples += 1;
                self.samples.push(SampleAt { row: number, stretch, images });
            } else {
                self.left_out.push(LeftOutAt { row: number, why: Why::NoImageStored { stretch } });
            }
        }
        Ok(())
    }
}

impl FileFindings {
    /// Adds what was found behind it.
    fn add(&mut self, other: Self) {
        self.rows += other.rows;
        self.stretches += other.stretches;
        self.samples += other.samples;
        self.images += other.images;
        self.stored += other.stored;
        for (name, faulty) in other.faults {
            let count = faulty.count;
            self.faults.entry(name).and_modify(|before| before.count += count).or_insert(faulty);
        }
    }
}
