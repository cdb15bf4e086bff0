//! The last things that happened, numbered.

use std::{collections::VecDeque, time::Duration};

use super::{HistoryEntry, HistoryEvent};

/// Entries that a status carries: a few recoveries of a large job, and still small.
const MOST_ENTRIES: usize = 64;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct History {
    entries: VecDeque<HistoryEntry>,
    /// Number of the newest.
    sequence: u64,
}

impl History {
    /// Notes what has happened now, and gives it back with its number.
    pub(super) fn record(&mut self, at: Duration, event: HistoryEvent) -> HistoryEntry {
        self.sequence += 1;
        let entry = HistoryEntry { sequence: self.sequence, at, event };
        self.entries.push_back(entry.clone());
        if self.entries.len() > MOST_ENTRIES {
            self.entries.pop_front();
        }
        entry
    }

    /// Oldest first.
    pub(super) fn entries(&self) -> Vec<HistoryEntry> {
        self.entries.iter().cloned().collect()
    }
}
