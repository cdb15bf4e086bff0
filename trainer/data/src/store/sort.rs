//! Sorting more records than fit into memory.
//!
//! Comes in: records in any order. Goes out: the same ones in order. Full buffers are sorted and written to working files, runs, which are then merged,
//! in several rounds when there are too many for one. The files have no names: whatever ends the process, nothing of them stays.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    fs::File,
    io::{self, BufReader, BufWriter, Read, Seek, Write},
    path::{Path, PathBuf},
    vec,
};

use crate::store::record::{RECORD_BYTES, Record};

/// Least bytes of a run that are read at once when memory allows: below it a disk seeks more than it reads.
const READ_BYTES: usize = 64 << 10;

/// Most runs that are merged at once. Each is an open file, and a process usually may have 1,024 of them.
const RUNS_AT_ONCE: usize = 256;

/// Takes records and sorts them.
#[derive(Debug)]
pub(crate) struct Sorter {
    folder: PathBuf,
    memory: usize,
    buffer: Vec<Record>,
    runs: VecDeque<File>,
}

impl Sorter {
    /// One that holds at most `memory` bytes of records, but at least two records, and keeps working files in `folder`.
    pub(crate) fn new(folder: &Path, memory: usize) -> Self {
        // Reserved, not touched: what is never filled takes no memory.
        let buffer = Vec::with_capacity((memory / RECORD_BYTES).max(2));
        Self { folder: folder.to_owned(), memory, buffer, runs: VecDeque::new() }
    }

    pub(crate) fn push(&mut self, record: Record) -> io::Result<()> {
        if self.buffer.len() == self.buffer.capacity() {
            self.write_run()?;
        }
        self.buffer.push(record);
        Ok(())
    }

    /// Where the working files are.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    fn write_run(&mut self) -> io::Result<()> {
        self.buffer.sort_unstable();
        let run = write_run(&self.folder, self.buffer.iter().copied().map(Ok))?;
        self.runs.push_back(run);
        self.buffer.clear();
        Ok(())
    }

    /// The records in order.
    pub(crate) fn finish(mut self) -> io::Result<Sorted> {
        if self.runs.is_empty() {
            self.buffer.sort_unstable();
            return Ok(Sorted::Memory(self.buffer.into_iter()));
        }
        if !self.buffer.is_empty() {
            self.write_run()?;
        }
        let Self { folder, memory, buffer, mut runs } = self;
        drop(buffer);
        let at_once = (memory / READ_BYTES).clamp(2, RUNS_AT_ONCE);
        while runs.len() > at_once {
            let merged = Merge::new(runs.drain(..at_once), memory)?;
            runs.push_back(write_run(&folder, merged)?);
        }
        Ok(Sorted::Files(Merge::new(runs.into_iter(), memory)?))
    }
}

fn write_run(folder: &Path, records: impl Iterator<Item = io::Result<Record>>) -> io::Result<File> {
    let mut writer = BufWriter::with_capacity(READ_BYTES, tempfile::tempfile_in(folder)?);
    for record in records {
        writer.write_all(&record?.encode())?;
    }
    writer.into_inner().map_err(io::IntoInnerError::into_error)
}

/// Records in order.
#[derive(Debug)]
pub(crate) enum Sorted {
    /// All of them fitted into memory.
    Memory(vec::IntoIter<Record>),
    /// They come from working files.
    Files(Merge),
}

impl Iterator for Sorted {
    type Item = io::Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Memory(records) => records.next().map(Ok),
            Self::Files(merge) => merge.next(),
        }
    }
}

/// Several runs as one.
#[derive(Debug)]
pub(crate) struct Merge {
    runs: Vec<BufReader<File>>,
    /// The next record of every run that has one.
    heads: BinaryHeap<Reverse<(Record, usize)>>,
}

impl Merge {
    /// Reads with at most `memory` bytes of buffers, but at least a record for each run.
    fn new(runs: impl ExactSizeIterator<Item = File>, memory: usize) -> io::Result<Self> {
        let bytes = (memory / runs.len().max(1)).max(RECORD_BYTES);
        let mut merge = Self { heads: BinaryHeap::with_capacity(runs.len()), runs: Vec::with_capacity(runs.len()) };
        for (number, mut file) in runs.enumerate() {
            file.rewind()?;
            merge.runs.push(BufReader::with_capacity(bytes, file));
            merge.advance(number)?;
        }
        Ok(merge)
    }

    /// Puts the next record of a run among the heads.
    fn advance(&mut self, number: usize) -> io::Result<()> {
        let Some(run) = self.runs.get_mut(number) else { return Ok(()) };
        let mut bytes = [0; RECORD_BYTES];
        match run.read_exact(&mut bytes) {
            Ok(()) => self.heads.extend(Record::decode(&bytes).map(|record| Reverse((record, number)))),
            // Runs hold whole records, so this is a run's end.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

impl Iterator for Merge {
    type Item = io::Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        let Reverse((record, number)) = self.heads.pop()?;
        Some(self.advance(number).map(|()| record))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{index::Extent, store::record::Digest};

    proptest! {
        // Each case writes some dozen files.
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn records_come_out_in_order_however_little_memory_there_is(
            keys in prop::collection::vec((0u64..50, 0u32..3), 0..600),
            memory in 0usize..6_000,
        ) {
            let records = || keys.iter().zip(0u32..).map(|((key, check), number)| {
                let extent = Extent { offset: 512, length: number };
                Record::new(Digest { key: *key, check: *check }, number % 5, extent).expect("the offset is small")
            });
            let folder = tempfile::tempdir().expect("a temporary folder");
            let mut sorter = Sorter::new(folder.path(), memory);
            for record in records() {
                sorter.push(record).expect("a record is taken");
            }
            let held = (memory / RECORD_BYTES).max(2);
            prop_assert_eq!(sorter.runs.len(), keys.len().saturating_sub(1) / held);
            prop_assert_eq!(std::fs::read_dir(folder.path()).expect("the folder is read").count(), 0, "working files have names");
            let sorted: Vec<Record> = sorter.finish().and_then(Iterator::collect).expect("the runs are merged");
            let mut expected: Vec<Record> = records().collect();
            expected.sort();
            prop_assert_eq!(sorted, expected);
        }
    }
}
