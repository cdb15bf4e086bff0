//! The files that rank 0 writes for all, whether the store gives them out or not.
//!
//! Comes in: records. Goes out: lines of `metrics.jsonl` and `run.jsonl`, points of an event file. Training needs no store: while it is away
//! or full records wait in memory, and the files are opened when that can be done. A folder's files are opened by the training thread, since
//! only who leads may put a file in another's place; those of an object store are copies of this process's own, which a thread fetches.

use std::{
    collections::VecDeque,
    io,
    path::PathBuf,
    sync::mpsc::{self, Receiver, TryRecvError},
    thread,
    time::{Duration, Instant},
};

use lcl_checkpoint::{CheckpointStore, while_away};
use lcl_protocol::Generation;
use lcl_trainer_config::ExitCode;

use crate::{
    chain,
    run::{
        journal::{Journal, METRICS_FILE, RUN_FILE},
        records::{Record, StepRecord},
        run_folder::{RunFolder, ToSend},
        tensorboard::EventFile,
    },
    training::{
        TrainError, host_name,
        ledger::{Writing, write_record},
        unix_time,
    },
};

/// Pauses between two attempts to open the files: the first, which doubles, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// Records kept while there is no file: as many as a file keeps that takes none (`journal.rs`).
const MOST_WAITING: usize = 65_536;

/// Bytes of an event file that grows, and is sent whole each time, in an object store.
const EVENTS_AT_A_TIME: u64 = 4 << 20;

/// What is needed to open the files.
#[derive(Clone)]
pub(in crate::training) struct Place {
    pub(in crate::training) store: CheckpointStore,
    pub(in crate::training) generation: Generation,
    /// Of the state that the leader begins with.
    pub(in crate::training) completed_steps: u64,
}

impl Place {
    /// The files, and the step after the last one that stands there.
    fn open(&self) -> Result<(Open, u64), TrainError> {
        // Not locked: who leads is the coordinator's decision, and a leader that was evicted may still exist for a while. Its journal is
        // another file by then, and its checkpoints carry its generation.
        let mut folder = RunFolder::of_member(self.store.clone())?;
        let (journal, opened) = folder.open_journal(self.completed_steps)?;
        let unique = format!("{}.{}.{}-{}", host_name(), std::process::id(), self.generation.epoch, self.generation.n);
        let before = folder.event_files()?;
        let events = EventFile::create(folder.path(), &before, unix_time(), &unique, self.completed_steps + 1);
        let events = events.map_err(|source| TrainError::Events { source })?;
        Ok((Open::new(folder, journal, events), opened.end))
    }
}

/// The files, to be written.
pub(in crate::training) struct Open {
    folder: RunFolder,
    journal: Journal,
    events: EventFile,
    /// Event files that were written before this one.
    closed_events: Vec<PathBuf>,
}

impl Open {
    pub(in crate::training) fn new(folder: RunFolder, journal: Journal, events: EventFile) -> Self {
        Self { folder, journal, events, closed_events: Vec::new() }
    }

    fn write(&mut self, record: &Record) -> io::Result<()> {
        write_record(record, &mut self.journal, &mut self.events)
    }

    /// Sends what has not been sent, and what grows as it is now.
    fn upload(&mut self) -> bool {
        let files = self.take_stock();
        self.folder.upload(&files)
    }

    /// What an object store has to get; nothing for a folder.
    fn take_stock(&mut self) -> ToSend {
        if self.folder.store().is_local() {
            return ToSend::default();
        }
        if let Ok(Some(closed)) = self.events.continue_after(EVENTS_AT_A_TIME, unix_time()) {
            self.closed_events.push(closed);
        }
        let folder = self.folder.path();
        ToSend {
            closed: self.journal.segments().into_iter().chain(self.closed_events.iter().cloned()).collect(),
            open: vec![folder.join(METRICS_FILE), folder.join(RUN_FILE), self.events.path().to_owned()],
        }
    }
}

/// How they are to be opened.
enum Opening {
    /// By the next record after this time.
    At { time: Instant, pause: Duration },
    /// By a thread.
    UnderWay(Receiver<Result<(Open, u64), TrainError>>),
}

enum State {
    Open(Box<Open>),
    Waiting {
        /// Lines of steps that the leader before may not have written any more.
        kept: Vec<StepRecord>,
        records: VecDeque<Record>,
        opening: Opening,
    },
}

/// See the module's description.
pub(in crate::training) struct Files {
    place: Place,
    state: State,
    writing: Writing,
    /// Why they cannot be opened, ever.
    failure: Option<TrainError>,
}

impl Files {
    /// Files that are open already.
    pub(in crate::training) fn opened(place: Place, open: Open) -> Self {
        Self { place, state: State::Open(Box::new(open)), writing: Writing::default(), failure: None }
    }

    /// `kept`: what the leader before may not have written any more. Fails when starting again would fail again.
    pub(super) fn begin(place: Place, kept: Vec<StepRecord>) -> Result<Self, TrainError> {
        let opening = Opening::At { time: Instant::now(), pause: FIRST_PAUSE };
        let state = State::Waiting { kept, records: VecDeque::new(), opening };
        let mut files = Self { place, state, writing: Writing::default(), failure: None };
        files.open_if_due();
        files.check()?;
        Ok(files)
    }

    /// An error when the files cannot be opened, ever.
    pub(super) fn check(&mut self) -> Result<(), TrainError> {
        self.failure.take().map_or(Ok(()), Err)
    }

    pub(super) fn write(&mut self, record: &Record) {
        self.open_if_due();
        match &mut self.state {
            State::Open(open) => {
                let written = open.write(record);
                self.writing.note(written, self.place.store.uri());
            }
            State::Waiting { records, .. } => {
                if records.len() == MOST_WAITING {
                    records.pop_front();
                }
                records.push_back(record.clone());
            }
        }
    }

    /// Has what the files hold survive a loss of power.
    pub(super) fn sync(&mut self) {
        if let State::Open(open) = &self.state {
            open.journal.sync_in_background();
        }
    }

    /// Sends the files to an object store, unless they are on their way. Whether they are up to date there when that has been done.
    pub(super) fn upload(&mut self) -> bool {
        let State::Open(open) = &mut self.state else { return false };
        open.upload()
    }

    /// Has everything where it belongs, and waits for it, as long as for a volume that is away.
    pub(super) fn finish(&mut self) {
        let opened = match &mut self.state {
            State::Open(_) => Ok(()),
            State::Waiting { opening: Opening::UnderWay(opened), .. } => match opened.recv() {
                Ok(opened) => opened.map(|opened| self.take(opened)),
                Err(_) => Err(TrainError::Panicked),
            },
            State::Waiting { .. } => while_away(|| self.place.open()).map(|opened| self.take(opened)),
        };
        let State::Open(open) = &mut self.state else {
            let error = opened.err().map(|error| chain(&error)).unwrap_or_default();
            return tracing::error!(error, "the last metrics are lost: the run's files cannot be opened");
        };
        let files = open.take_stock();
        if let Err(reason) = open.folder.finish_upload(&files) {
            tracing::error!(reason, "the last metrics are not in the store");
        }
    }

    fn open_if_due(&mut self) {
        let State::Waiting { opening, .. } = &mut self.state else { return };
        let outcome = match opening {
            Opening::At { time, .. } if Instant::now() < *time => return,
            Opening::At { .. } if !self.place.store.is_local() => {
                // It may take minutes to say that it does not answer.
                let ((sender, receiver), place) = (mpsc::channel(), self.place.clone());
                thread::spawn(move || drop(sender.send(place.open())));
                *opening = Opening::UnderWay(receiver);
                return;
            }
            Opening::At { .. } => self.place.open(),
            Opening::UnderWay(opened) => match opened.try_recv() {
                Ok(outcome) => outcome,
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => Err(TrainError::Panicked),
            },
        };
        match outcome {
            Ok(opened) => self.take(opened),
            Err(error) if error.exit_code() == ExitCode::Retryable => self.try_later(&error),
            Err(error) => self.failure = Some(error),
        }
    }

    fn try_later(&mut self, error: &TrainError) {
        let uri = self.place.store.uri();
        self.writing.note(Err(io::Error::other(chain(error))), uri);
        if let State::Waiting { opening, .. } = &mut self.state {
            let pause = match opening {
                Opening::At { pause, .. } => (*pause * 2).min(LONGEST_PAUSE),
                Opening::UnderWay(_) => LONGEST_PAUSE,
            };
            *opening = Opening::At { time: Instant::now() + pause, pause };
        }
    }

    /// They are open: what waited is written.
    fn take(&mut self, (mut open, end): (Open, u64)) {
        let mut written = Ok(());
        if let State::Waiting { kept, records, .. } = &mut self.state {
            let kept = kept.drain(..).filter(|record| record.step >= end).map(|record| Record::Step(Box::new(record)));
            for record in kept.chain(records.drain(..)) {
                // One that is not written waits in the journal.
                written = open.write(&record);
            }
        }
        self.writing.note(written, self.place.store.uri());
        open.upload();
        self.state = State::Open(Box::new(open));
    }
}
