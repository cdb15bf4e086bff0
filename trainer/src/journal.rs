//! The file `metrics.jsonl`: appended to line by line, cut back to the restored step when a run goes on.
//!
//! Comes in: [`Record`]s. Goes out: a file in which every step from 0 stands exactly once, whatever killed the processes before.
//! A full disk does not stop training: lines wait in memory and are written when there is room again.
//! Nothing here knows checkpoints or tensors.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use crate::records::{GenerationRecord, Record};

/// Name of the file in the run's folder.
pub const FILE_NAME: &str = "metrics.jsonl";

/// Lines kept in memory while the disk takes none. A line has about 600 bytes, so this is at most some 40 MB and, at a step a second, more
/// than half a day.
const MOST_PENDING: usize = 65_536;

/// The journal could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file is there but cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A whole line is no record.
    #[error("line {line} of {path} is no metrics record: repair or remove that line")]
    Line {
        /// The file.
        path: PathBuf,
        /// Its number, from 1.
        line: usize,
        /// Why.
        source: serde_json::Error,
    },
}

/// What a journal held when it was opened.
#[derive(Debug, Default)]
pub struct Opened {
    /// Records that were taken out because they lie beyond the restored step.
    pub superseded: u64,
    /// Step lines that are missing below the restored step (a machine that lost power may lose its last lines).
    pub missing: u64,
}

/// The open file.
#[derive(Debug)]
pub struct Journal {
    file: File,
    /// Bytes of whole lines; a failed write is cut back to here.
    length: u64,
    pending: VecDeque<String>,
    dropped: u64,
}

impl Journal {
    /// Opens `folder/metrics.jsonl` for a run that has `completed_steps` steps; records beyond them are taken out.
    pub fn open(folder: &Path, completed_steps: u64) -> Result<(Self, Opened), JournalError> {
        let path = folder.join(FILE_NAME);
        let write_error = |source| JournalError::Write { path: path.clone(), source };
        let records = read(&path)?;
        let found = records.len();
        let kept: Vec<Record> = current(records).into_iter().filter(|record| record.completed_steps() <= completed_steps).collect();
        let steps = kept.iter().filter(|record| matches!(record, Record::Step(_))).count() as u64;
        let opened = Opened { superseded: (found - kept.len()) as u64, missing: completed_steps.saturating_sub(steps) };

        // Written beside and renamed: a kill at any moment leaves either the old file or the new one.
        let beside = folder.join(format!("{FILE_NAME}.new"));
        let mut text = String::new();
        for record in &kept {
            text.push_str(&line_of(record));
        }
        fs::write(&beside, &text).map_err(write_error)?;
        File::open(&beside).and_then(|file| file.sync_all()).map_err(write_error)?;
        fs::rename(&beside, &path).map_err(write_error)?;
        let file = OpenOptions::new().append(true).open(&path).map_err(write_error)?;
        Ok((Self { file, length: text.len() as u64, pending: VecDeque::new(), dropped: 0 }, opened))
    }

    /// Appends one line. An error means that the line waits in memory and is tried again with the next one.
    pub fn append(&mut self, record: &Record) -> io::Result<()> {
        if self.pending.len() == MOST_PENDING {
            self.pending.pop_front();
            self.dropped += 1;
        }
        self.pending.push_back(line_of(record));
        self.flush()
    }

    /// Writes the lines that wait.
    pub fn flush(&mut self) -> io::Result<()> {
        while let Some(line) = self.pending.front() {
            if let Err(error) = self.file.write_all(line.as_bytes()) {
                // Half a line must not stay: the next try would be glued to it. Making a file shorter needs no room.
                self.file.set_len(self.length)?;
                self.file.seek(SeekFrom::End(0))?;
                return Err(error);
            }
            self.length += line.len() as u64;
            self.pending.pop_front();
        }
        Ok(())
    }

    /// Lines that wait for room, and lines given up because too many waited.
    #[must_use]
    pub fn backlog(&self) -> (usize, u64) {
        (self.pending.len(), self.dropped)
    }

    /// Another handle of the file, to make it durable without holding up the training thread.
    pub fn handle(&self) -> io::Result<File> {
        self.file.try_clone()
    }
}

/// Reads every record of a file; a file that is not there has none. A last line without its end is left out: its writer was killed.
pub fn read(path: &Path) -> Result<Vec<Record>, JournalError> {
    let read_error = |source| JournalError::Read { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(read_error(error)),
    };
    let mut reader = BufReader::new(file);
    let mut records = Vec::new();
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        if reader.read_until(b'\n', &mut bytes).map_err(read_error)? == 0 || bytes.last() != Some(&b'\n') {
            break;
        }
        let record = serde_json::from_slice(&bytes).map_err(|source| JournalError::Line { path: path.to_owned(), line, source })?;
        records.push(record);
    }
    Ok(records)
}

/// Of several lines for one step, the one of the last generation.
#[must_use]
pub fn current(records: Vec<Record>) -> Vec<Record> {
    let mut newest = std::collections::HashMap::<u64, GenerationRecord>::new();
    for record in &records {
        if let Record::Step(step) = record {
            let generation = newest.entry(step.step).or_insert(step.generation);
            *generation = (*generation).max(step.generation);
        }
    }
    let mut seen = std::collections::HashSet::new();
    let mut kept: Vec<Record> = records
        .into_iter()
        .rev()
        .filter(|record| match record {
            Record::Step(step) => newest.get(&step.step) == Some(&step.generation) && seen.insert(step.step),
            _ => true,
        })
        .collect();
    kept.reverse();
    kept
}

fn line_of(record: &Record) -> String {
    // A record is plain data with string keys: turning it into JSON cannot fail.
    let mut line = serde_json::to_string(record).unwrap_or_default();
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{StepRecord, tests::step_record};

    fn steps_in(folder: &Path) -> Vec<u64> {
        read(&folder.join(FILE_NAME))
            .unwrap()
            .into_iter()
            .filter_map(|record| if let Record::Step(step) = record { Some(step.step) } else { None })
            .collect()
    }

    fn write_steps(folder: &Path, from: u64, steps: std::ops::Range<u64>) -> Opened {
        let (mut journal, opened) = Journal::open(folder, from).unwrap();
        for step in steps {
            journal.append(&Record::Step(Box::new(step_record(step)))).unwrap();
        }
        opened
    }

    #[test]
    fn going_on_from_a_step_takes_out_what_lies_beyond_it() {
        let folder = tempfile::tempdir().unwrap();
        write_steps(folder.path(), 0, 0..10);
        let opened = write_steps(folder.path(), 4, 4..6);
        assert_eq!((opened.superseded, opened.missing), (6, 0));
        assert_eq!(steps_in(folder.path()), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_line_cut_short_by_a_kill_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        write_steps(folder.path(), 0, 0..3);
        let path = folder.path().join(FILE_NAME);
        let text = fs::read(&path).unwrap();
        fs::write(&path, &text[..text.len() - 20]).unwrap();
        let opened = write_steps(folder.path(), 2, 2..4);
        assert_eq!(opened.missing, 0);
        assert_eq!(steps_in(folder.path()), [0, 1, 2, 3]);
    }

    #[test]
    fn lines_that_were_lost_are_noticed() {
        let folder = tempfile::tempdir().unwrap();
        write_steps(folder.path(), 0, 0..3);
        assert_eq!(write_steps(folder.path(), 5, 5..6).missing, 2);
    }

    #[test]
    fn a_broken_line_in_the_middle_is_named() {
        let folder = tempfile::tempdir().unwrap();
        write_steps(folder.path(), 0, 0..2);
        let path = folder.path().join(FILE_NAME);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{text}nonsense\n")).unwrap();
        let error = Journal::open(folder.path(), 2).unwrap_err();
        assert!(matches!(error, JournalError::Line { line: 3, .. }), "{error}");
    }

    #[test]
    fn of_two_lines_for_a_step_the_last_generation_counts() {
        let old = Record::Step(Box::new(step_record(1)));
        let new = Record::Step(Box::new(StepRecord { generation: GenerationRecord { epoch: 2, n: 0 }, ..step_record(1) }));
        assert_eq!(current(vec![old.clone(), new.clone()]), std::slice::from_ref(&new));
        assert_eq!(current(vec![new.clone(), old]), [new]);
    }
}
