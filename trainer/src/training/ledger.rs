//! A record's way into the run's files, and what is said when they take none.
//!
//! Comes in: records. Goes out: lines in the journal, points in the event file. A volume that takes nothing never stops training: what is to be
//! written waits in memory.

use std::io;

use super::{describe::scalars, unix_time};
use crate::run::{journal::Journal, records::Record, tensorboard::EventFile};

/// Writes a record into both files. One that cannot be written waits, and is written with a later one.
pub(super) fn write_record(record: &Record, journal: &mut Journal, events: &mut EventFile) -> io::Result<()> {
    let line = journal.append(record);
    let scalars = scalars(record);
    let points = if scalars.is_empty() { Ok(()) } else { events.scalars(unix_time(), record.completed_steps(), &scalars) };
    line.and(points)
}

/// Whether the files take what is written, so that it is said once when they do not, and once when they do again.
#[derive(Debug, Default)]
pub(super) struct Writing {
    is_failing: bool,
}

impl Writing {
    /// After every write to files in `folder`, a URI or a path.
    pub(super) fn note(&mut self, written: io::Result<()>, folder: &str) {
        match written {
            Ok(()) if self.is_failing => {
                self.is_failing = false;
                tracing::info!(folder, "metrics are written again, with those that waited");
            }
            Err(error) if !self.is_failing => {
                self.is_failing = true;
                tracing::warn!(%error, folder, "metrics wait in memory: the file takes none");
            }
            Ok(()) | Err(_) => {}
        }
    }
}
