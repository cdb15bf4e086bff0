//! The files `metrics.jsonl` (a line a step) and `run.jsonl` (starts, checkpoints, ends): appended to line by line, cut back to the restored
//! step when a run goes on.
//!
//! Comes in: [`Record`]s. Goes out: files in which every step from 0 stands exactly once, whatever killed the processes before.
//! A full disk does not stop training: lines wait in memory and are written when there is room again. Older lines lie in files of their own
//! ([`segments`]), so that neither opening nor sending the newest grows with the run.
//! Nothing here knows checkpoints or tensors.

pub mod segments;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use lcl_checkpoint::sync;
use serde::{Serialize, de::DeserializeOwned};

use self::segments::Segment;
use crate::run::records::{GenerationRecord, Record, StepRecord};

/// The steps' file in the run's folder.
pub const METRICS_FILE: &str = "metrics.jsonl";
/// The file of everything else.
pub const RUN_FILE: &str = "run.jsonl";

/// Lines kept in memory while the disk takes none. A line has about 700 bytes, so this is at most some 50 MB and, at a step a second, more
/// than half a day.
const MOST_PENDING: usize = 65_536;

/// A file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file is there but cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A whole line is no record.
    #[error("line {line} of {} is no record of this program: repair or remove that line", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Its number, from 1.
        line: usize,
        /// Why.
        source: serde_json::Error,
    },
}

/// What the files held when they were opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// Step lines that were taken out because they lie beyond the restored step.
    pub superseded: u64,
    /// Lines that are no records (a machine that lost power may leave such), taken out too.
    pub broken: u64,
    /// Step lines that are missing below the restored step (a machine that lost power may lose its last lines).
    pub missing: u64,
    /// The step after the last one that stands in the file.
    pub end: u64,
}

/// The open files.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    metrics: LineFile,
    run: LineFile,
    /// Steps before these stand in segments.
    begin: u64,
    /// The step after the last line, and lines of `metrics.jsonl`.
    end: u64,
    lines: usize,
    /// Lines after which the next file is begun.
    most_lines: usize,
}

/// A file that is only appended to, whole lines at a time.
#[derive(Debug)]
struct LineFile {
    path: PathBuf,
    /// `None`: what it was open as leads nowhere any more, as after a network volume was away. It is opened anew with the next line.
    file: Option<File>,
    /// Bytes of whole lines; a failed write is cut back to here.
    length: u64,
    /// The last whole line.
    last: String,
    pending: VecDeque<String>,
}

impl Journal {
    /// Opens the files in `folder` for a run that has `completed_steps` steps; records beyond them are taken out.
    pub fn open(folder: &Path, completed_steps: u64) -> Result<(Self, Opened), JournalError> {
        let listed = segments::list(folder).map_err(|source| JournalError::Read { path: folder.to_owned(), source })?;
        Self::open_after(folder, completed_steps, listed)
    }

    /// As [`Journal::open`], of a folder that lies in an object store: `listed` are all segments there, of which `folder` needs to have only
    /// those with steps from `completed_steps` on.
    pub fn open_after(folder: &Path, completed_steps: u64, listed: Vec<Segment>) -> Result<(Self, Opened), JournalError> {
        let (kept, cut) = segments::cut(listed, completed_steps);
        let begin = kept.last().map_or(0, |segment| segment.steps.end);
        let (mut found, mut broken_steps) = (Vec::new(), 0);
        for path in segments::paths(folder, &cut).chain([folder.join(METRICS_FILE)]) {
            let (records, broken) = usable::<StepRecord>(&path)?;
            found.extend(records);
            broken_steps += broken;
        }
        let lines = found.len();
        let mut steps = current(found);
        steps.retain(|record| (begin..completed_steps).contains(&record.step));
        let (mut events, broken_events) = usable::<Record>(&folder.join(RUN_FILE))?;
        events.retain(|record| record.completed_steps() <= completed_steps);
        let opened = Opened {
            superseded: (lines - steps.len()) as u64,
            broken: broken_steps + broken_events,
            missing: completed_steps.saturating_sub(begin).saturating_sub(steps.len() as u64),
            end: steps.iter().map(|record| record.step + 1).max().unwrap_or(begin),
        };
        let metrics = LineFile::replace(folder, METRICS_FILE, &steps)?;
        let run = LineFile::replace(folder, RUN_FILE, &events)?;
        // What they had is in the file with the newest lines now.
        for path in segments::paths(folder, &cut) {
            fs::remove_file(&path).or_else(ignore_missing).map_err(|source| JournalError::Write { path: path.clone(), source })?;
        }
        let (folder, lines) = (folder.to_owned(), steps.len());
        Ok((Self { folder, metrics, run, begin, end: opened.end, lines, most_lines: segments::LINES }, opened))
    }

    /// Appends one line to the file where it belongs. An error means that the line waits in memory and is tried again with the next one.
    pub fn append(&mut self, record: &Record) -> io::Result<()> {
        let Record::Step(step) = record else { return self.run.append(line_of(record)) };
        self.metrics.append(line_of(step))?;
        self.end = step.step + 1;
        self.lines += 1;
        if self.lines >= self.most_lines && self.begin < self.end {
            self.close_segment();
        }
        Ok(())
    }

    /// The file with the newest lines becomes a segment, unless it is another leader's by now. What fails is tried again with the next line.
    fn close_segment(&mut self) {
        let segment = Segment::new(self.begin..self.end);
        let place = self.folder.join(&segment.name);
        if !self.metrics.is_in_its_place() || fs::rename(&self.metrics.path, &place).is_err() {
            return;
        }
        // Until there is a new file a reader finds every line in the segments.
        match LineFile::replace(&self.folder, METRICS_FILE, &[] as &[StepRecord]) {
            Ok(file) => (self.metrics, self.begin, self.lines) = (file, self.end, 0),
            Err(_) => drop(fs::rename(&place, &self.metrics.path)),
        }
    }

    /// The segments that are in the folder: those that this process has closed, and in a run's own folder all.
    #[must_use]
    pub fn segments(&self) -> Vec<PathBuf> {
        let listed = segments::list(&self.folder).unwrap_or_default();
        segments::paths(&self.folder, &listed).collect()
    }

    /// Makes what was written survive a loss of power. May take long; training goes on meanwhile.
    pub fn sync_in_background(&self) {
        for file in [&self.metrics.file, &self.run.file].into_iter().flatten() {
            if let Ok(file) = file.try_clone() {
                // Unsynced lines are noticed and reported when the run goes on.
                std::thread::spawn(move || file.sync_data());
            }
        }
    }
}

impl LineFile {
    /// Writes `records` as the whole of `folder/name` and opens it for more.
    fn replace(folder: &Path, name: &str, records: &[impl Serialize]) -> Result<Self, JournalError> {
        let path = folder.join(name);
        let lines: Vec<String> = records.iter().map(line_of).collect();
        let (text, last) = (lines.concat(), lines.last().cloned().unwrap_or_default());
        // Written beside and renamed: a kill at any moment leaves either the old file or the new one.
        let beside = folder.join(format!("{name}.new"));
        let write = || -> io::Result<File> {
            let mut file = File::create(&beside)?;
            file.write_all(text.as_bytes())?;
            sync(&file, &beside)?;
            fs::rename(&beside, &path)?;
            OpenOptions::new().append(true).open(&path)
        };
        let file = write().map_err(|source| JournalError::Write { path: path.clone(), source })?;
        Ok(Self { path, file: Some(file), length: text.len() as u64, last, pending: VecDeque::new() })
    }

    /// Whether its name leads to the file that this process writes.
    fn is_in_its_place(&self) -> bool {
        let Some(own) = self.file.as_ref().and_then(|file| file.metadata().ok()) else { return false };
        fs::metadata(&self.path).is_ok_and(|there| (there.dev(), there.ino()) == (own.dev(), own.ino()))
    }

    fn append(&mut self, line: String) -> io::Result<()> {
        if self.pending.len() == MOST_PENDING {
            self.pending.pop_front();
        }
        self.pending.push_back(line);
        while let Some(line) = self.pending.front() {
            let mut file = match self.file.take() {
                Some(file) => file,
                None => self.reopen()?,
            };
            if let Err(error) = file.write_all(line.as_bytes()) {
                // Half a line must not stay: the next try would be glued to it. Making a file shorter needs no room. A file that does not even
                // take that is opened anew.
                self.file = file.set_len(self.length).is_ok().then_some(file);
                return Err(error);
            }
            self.file = Some(file);
            self.length += line.len() as u64;
            self.last = self.pending.pop_front().unwrap_or_default();
        }
        Ok(())
    }

    /// Opens the file anew and cuts off what an interrupted write has left. Only the file that this process has written: the leader of a later
    /// generation may have put its own in this place, which is nobody else's to change.
    fn reopen(&self) -> io::Result<File> {
        let mut file = OpenOptions::new().read(true).append(true).open(&self.path)?;
        let replaced = || io::Error::other("it is not what this process has written: another leader goes on there");
        let mut end = Vec::new();
        file.seek(SeekFrom::Start(self.length.saturating_sub(self.last.len() as u64)))?;
        file.read_to_end(&mut end)?;
        let left = end.strip_prefix(self.last.as_bytes()).ok_or_else(replaced)?;
        if !self.pending.front().is_some_and(|line| line.as_bytes().starts_with(left)) {
            return Err(replaced());
        }
        file.set_len(self.length)?;
        Ok(file)
    }
}

/// The step lines of a run's folder, in the order of its files; none when there are none.
pub fn read_steps(folder: &Path) -> Result<Vec<StepRecord>, JournalError> {
    let listed = segments::list(folder).map_err(|source| JournalError::Read { path: folder.to_owned(), source })?;
    let mut steps = Vec::new();
    for path in segments::paths(folder, &listed).chain([folder.join(METRICS_FILE)]) {
        steps.extend(read(&path)?);
    }
    Ok(steps)
}

/// Everything else that was recorded in a run's folder.
pub fn read_events(folder: &Path) -> Result<Vec<Record>, JournalError> {
    read(&folder.join(RUN_FILE))
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, JournalError> {
    parse(&contents(path)?, path)
}

/// The records of a file and the number of its lines that are none. Metrics must not keep a run from going on.
fn usable<T: DeserializeOwned>(path: &Path) -> Result<(Vec<T>, u64), JournalError> {
    let bytes = contents(path)?;
    let (mut records, mut broken) = (Vec::new(), 0);
    for (line, parsed) in parsed_lines(&bytes).enumerate() {
        match parsed {
            Ok(record) => records.push(record),
            Err(error) => {
                broken += 1;
                tracing::warn!(file = %path.display(), line = line + 1, %error, "this line is no record and is taken out");
            }
        }
    }
    Ok((records, broken))
}

fn contents(path: &Path) -> Result<Vec<u8>, JournalError> {
    match fs::read(path) {
        Ok(bytes) => Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(JournalError::Read { path: path.to_owned(), source }),
    }
}

/// The records in a file's contents; `path` is what messages call it. A last line without its end is left out: its writer was killed.
pub fn parse<T: DeserializeOwned>(bytes: &[u8], path: &Path) -> Result<Vec<T>, JournalError> {
    let named = |(index, parsed): (usize, serde_json::Result<T>)| {
        parsed.map_err(|source| JournalError::Line { path: path.to_owned(), line: index + 1, source })
    };
    parsed_lines(bytes).enumerate().map(named).collect()
}

fn parsed_lines<T: DeserializeOwned>(bytes: &[u8]) -> impl Iterator<Item = serde_json::Result<T>> {
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    bytes.get(..whole).unwrap_or_default().split_inclusive(|byte| *byte == b'\n').map(serde_json::from_slice)
}

/// Of several lines for one step, the one of the last generation.
#[must_use]
pub fn current(records: Vec<StepRecord>) -> Vec<StepRecord> {
    let mut newest = HashMap::<u64, GenerationRecord>::new();
    for record in &records {
        let generation = newest.entry(record.step).or_insert(record.generation);
        *generation = (*generation).max(record.generation);
    }
    let mut seen = HashSet::new();
    let mut kept = records;
    kept.retain(|record| newest.get(&record.step) == Some(&record.generation) && seen.insert(record.step));
    kept
}

fn ignore_missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

fn line_of(record: &impl Serialize) -> String {
    // A record is plain data with string keys: turning it into JSON cannot fail.
    let mut line = serde_json::to_string(record).unwrap_or_default();
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::records::{CheckpointCommitted, tests::step_record};

    fn steps_in(folder: &Path) -> Vec<u64> {
        read_steps(folder).unwrap().iter().map(|record| record.step).collect()
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

    /// A leader that takes over writes the lines of the one before anew; a reader of numbers that is nearly right would change them a little
    /// each time.
    #[test]
    fn a_line_that_is_read_and_written_again_is_the_same() {
        let mut loss = 9.0;
        for step in 0..2_000 {
            loss *= 0.997_310_513_7;
            let line = line_of(&StepRecord { loss, gradient_norm: loss.sqrt(), ..step_record(step) });
            let read: StepRecord = serde_json::from_str(&line).unwrap();
            assert_eq!(line_of(&read), line);
        }
    }

    #[test]
    fn a_line_cut_short_by_a_kill_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        write_steps(folder.path(), 0, 0..3);
        let path = folder.path().join(METRICS_FILE);
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
    fn a_broken_line_is_named_to_a_reader_and_does_not_keep_a_run_from_going_on() {
        let folder = tempfile::tempdir().unwrap();
        write_steps(folder.path(), 0, 0..3);
        let path = folder.path().join(METRICS_FILE);
        let mut lines: Vec<String> = fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect();
        lines[1] = "\0\0\0".to_owned();
        fs::write(&path, lines.join("\n") + "\n").unwrap();
        let error = read_steps(folder.path()).unwrap_err();
        assert!(matches!(error, JournalError::Line { line: 2, .. }), "{error}");
        let (_, opened) = Journal::open(folder.path(), 3).unwrap();
        assert_eq!(opened, Opened { superseded: 0, broken: 1, missing: 1, end: 3 });
        assert_eq!(steps_in(folder.path()), [0, 2]);
    }

    #[test]
    fn of_two_lines_for_a_step_the_last_generation_counts() {
        let old = step_record(1);
        let new = StepRecord { generation: GenerationRecord { epoch: 2, n: 0 }, ..step_record(1) };
        assert_eq!(current(vec![old.clone(), new.clone()]), std::slice::from_ref(&new));
        assert_eq!(current(vec![new.clone(), old]), [new]);
    }

    #[test]
    fn what_is_no_step_lies_in_a_file_of_its_own_and_is_cut_back_too() {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(folder.path(), 0).unwrap();
        for completed_steps in [5, 10] {
            journal
                .append(&Record::CheckpointCommitted(CheckpointCommitted {
                    completed_steps,
                    generation: GenerationRecord { epoch: 1, n: 0 },
                    stall_seconds: 0.0,
                    write_seconds: 0.0,
                    bytes: 1,
                }))
                .unwrap();
        }
        assert_eq!(read_events(folder.path()).unwrap().len(), 2);
        assert!(steps_in(folder.path()).is_empty());
        Journal::open(folder.path(), 5).unwrap();
        let left: Vec<u64> = read_events(folder.path()).unwrap().iter().map(Record::completed_steps).collect();
        assert_eq!(left, [5]);
    }

    #[test]
    fn lines_wait_while_the_file_takes_none_and_no_half_line_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(folder.path(), 0).unwrap();
        // A handle that cannot be written to stands for the full disk.
        for step in 0..2 {
            journal.metrics.file = Some(File::open(folder.path().join(METRICS_FILE)).unwrap());
            assert!(journal.append(&Record::Step(Box::new(step_record(step)))).is_err());
        }
        assert!(steps_in(folder.path()).is_empty());
        journal.append(&Record::Step(Box::new(step_record(2)))).unwrap();
        assert_eq!(steps_in(folder.path()), [0, 1, 2]);
    }

    #[test]
    fn half_a_line_left_by_a_volume_that_went_away_is_cut_off_when_it_is_back() {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(folder.path(), 0).unwrap();
        journal.append(&Record::Step(Box::new(step_record(0)))).unwrap();
        // The write got half way, and the handle took neither the rest nor the cut.
        let path = folder.path().join(METRICS_FILE);
        let half = line_of(&step_record(1));
        OpenOptions::new().append(true).open(&path).unwrap().write_all(&half.as_bytes()[..half.len() / 2]).unwrap();
        journal.metrics.file = None;
        journal.append(&Record::Step(Box::new(step_record(1)))).unwrap();
        journal.append(&Record::Step(Box::new(step_record(2)))).unwrap();
        assert_eq!(steps_in(folder.path()), [0, 1, 2]);
    }

    fn names(folder: &Path) -> Vec<String> {
        segments::list(folder).unwrap().into_iter().map(|segment| segment.name).collect()
    }

    /// A run of so many steps whose files have so few lines.
    fn write_short_files(folder: &Path, from: u64, most_lines: usize, steps: std::ops::Range<u64>) -> (Journal, Opened) {
        let (mut journal, opened) = Journal::open(folder, from).unwrap();
        journal.most_lines = most_lines;
        for step in steps {
            journal.append(&Record::Step(Box::new(step_record(step)))).unwrap();
        }
        (journal, opened)
    }

    #[test]
    fn older_lines_lie_in_files_of_their_own_which_a_run_that_goes_on_does_not_touch() {
        let folder = tempfile::tempdir().unwrap();
        write_short_files(folder.path(), 0, 4, 0..10);
        let closed = [Segment::new(0..4).name, Segment::new(4..8).name];
        assert_eq!(names(folder.path()), closed);
        assert_eq!(steps_in(folder.path()), (0..10).collect::<Vec<_>>());
        let before = closed.each_ref().map(|name| fs::metadata(folder.path().join(name)).unwrap().ino());
        let (_, opened) = write_short_files(folder.path(), 9, 4, 9..13);
        assert_eq!(opened, Opened { superseded: 1, broken: 0, missing: 0, end: 9 });
        assert_eq!(names(folder.path()), [&closed[..], &[Segment::new(8..12).name]].concat());
        assert_eq!(closed.each_ref().map(|name| fs::metadata(folder.path().join(name)).unwrap().ino()), before);
        assert_eq!(steps_in(folder.path()), (0..13).collect::<Vec<_>>());
        let file = fs::read_to_string(folder.path().join(METRICS_FILE)).unwrap();
        assert_eq!(file.lines().count(), 1, "step 12");
    }

    #[test]
    fn a_run_that_goes_back_beyond_a_segment_takes_its_lines_into_the_open_file() {
        let folder = tempfile::tempdir().unwrap();
        write_short_files(folder.path(), 0, 4, 0..14);
        let (_, opened) = write_short_files(folder.path(), 6, 4, 6..8);
        assert_eq!(opened, Opened { superseded: 8, broken: 0, missing: 0, end: 6 });
        assert_eq!(names(folder.path()), [Segment::new(0..4).name, Segment::new(4..8).name]);
        assert_eq!(steps_in(folder.path()), (0..8).collect::<Vec<_>>());
        write_short_files(folder.path(), 0, 4, 0..1);
        assert_eq!((names(folder.path()), steps_in(folder.path())), (vec![], vec![0]));
    }

    #[test]
    fn lines_that_are_lost_between_segments_are_noticed_by_whoever_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        write_short_files(folder.path(), 0, 4, 0..6);
        let (_, opened) = write_short_files(folder.path(), 8, 4, 8..9);
        assert_eq!((opened.missing, opened.end), (2, 6));
    }

    /// Killed after the file got its new name and before the next one was made.
    #[test]
    fn a_run_without_its_newest_file_goes_on_behind_its_segments() {
        let folder = tempfile::tempdir().unwrap();
        write_short_files(folder.path(), 0, 4, 0..4);
        fs::remove_file(folder.path().join(METRICS_FILE)).unwrap();
        assert_eq!(steps_in(folder.path()), [0, 1, 2, 3]);
        let (_, opened) = write_short_files(folder.path(), 4, 4, 4..5);
        assert_eq!((opened, steps_in(folder.path())), (Opened { end: 4, ..Opened::default() }, vec![0, 1, 2, 3, 4]));
    }

    #[test]
    fn a_leader_whose_file_was_replaced_closes_no_segment() {
        let folder = tempfile::tempdir().unwrap();
        let (mut late, _) = write_short_files(folder.path(), 0, 4, 0..3);
        write_short_files(folder.path(), 2, 9, 2..7);
        late.append(&Record::Step(Box::new(step_record(3)))).unwrap();
        late.append(&Record::Step(Box::new(step_record(4)))).unwrap();
        assert_eq!((names(folder.path()), steps_in(folder.path())), (vec![], (0..7).collect::<Vec<_>>()));
    }

    /// A leader that was away for longer must not write into its successor's files, nor cut them.
    #[test]
    fn a_file_that_another_leader_has_put_in_its_place_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(folder.path(), 0).unwrap();
        for step in 0..4 {
            journal.append(&Record::Step(Box::new(step_record(step)))).unwrap();
        }
        write_steps(folder.path(), 2, 2..7);
        let before = fs::read(folder.path().join(METRICS_FILE)).unwrap();
        journal.metrics.file = None;
        let error = journal.append(&Record::Step(Box::new(step_record(4)))).unwrap_err();
        assert!(error.to_string().contains("another leader"), "{error}");
        assert_eq!(fs::read(folder.path().join(METRICS_FILE)).unwrap(), before);
    }
}
