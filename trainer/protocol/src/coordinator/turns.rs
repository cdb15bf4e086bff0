//! Which of several processes of one name is the newest. Not by their clocks, which need not agree: by the order in which their runs were
//! given tickets here or by a coordinator before, and within a run by how often its worker has started them.
//!
//! Comes in: who attaches, with the ticket that it shows. Goes out: how it stands, and new tickets. A ticket counts from when it is shown;
//! nothing is remembered of one that never is.

use std::collections::{BTreeMap, btree_map::Entry};

use super::{Identity, MemberName, Ticket, Turn};

/// How a process that attaches stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Its run shows no ticket and has not attached here: it may be new, or have died since it said so.
    Unknown,
    /// No newer one has attached. This is its run's ticket.
    Newest(Ticket),
    /// A newer one has.
    Superseded {
        /// Where it stands.
        own: Turn,
        /// Where the newest stands.
        newest: Turn,
    },
}

/// The processes of one name.
#[derive(Debug)]
struct Line {
    /// Of every run that has attached here. What an older run's worker starts again shows no ticket, and is known by this. A few bytes for
    /// each time that a worker was replaced.
    tickets: BTreeMap<u64, Ticket>,
    newest_run: u64,
    newest: Turn,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Turns {
    /// The last ticket of this epoch that was given, or shown.
    last: Ticket,
    lines: BTreeMap<MemberName, Line>,
}

impl Turns {
    pub(super) const fn new(epoch: u64) -> Self {
        Self { last: Ticket { epoch, n: 0 }, lines: BTreeMap::new() }
    }

    /// A ticket higher than all before.
    pub(super) const fn give(&mut self) -> Ticket {
        self.last.n = self.last.n.saturating_add(1);
        self.last
    }

    /// How a process stands that shows this ticket.
    pub(super) fn judge(&self, identity: &Identity, shown: Option<Ticket>) -> Standing {
        let Identity { name, incarnation, .. } = identity;
        let line = self.lines.get(name);
        let Some(ticket) = line.and_then(|line| line.tickets.get(&incarnation.run)).copied().or(shown) else { return Standing::Unknown };
        let own = Turn { ticket, start: incarnation.start };
        match line {
            Some(Line { newest_run, newest, .. }) if *newest_run == incarnation.run && own < *newest => {
                Standing::Superseded { own, newest: *newest }
            }
            Some(Line { newest_run, newest, .. }) if *newest_run != incarnation.run && ticket <= newest.ticket => {
                Standing::Superseded { own, newest: *newest }
            }
            _ => Standing::Newest(ticket),
        }
    }

    /// A process that stands as the newest has attached.
    pub(super) fn admit(&mut self, identity: &Identity, ticket: Ticket) {
        let run = identity.incarnation.run;
        let newest = Turn { ticket, start: identity.incarnation.start };
        // Given by another process with the same epoch: going on above it keeps tickets from being given twice.
        self.last = self.last.max(ticket);
        match self.lines.entry(identity.name.clone()) {
            Entry::Vacant(entry) => {
                entry.insert(Line { tickets: BTreeMap::from([(run, ticket)]), newest_run: run, newest });
            }
            Entry::Occupied(mut entry) => {
                let line = entry.get_mut();
                line.tickets.insert(run, ticket);
                (line.newest_run, line.newest) = (run, newest);
            }
        }
    }
}

#[cfg(test)]
mod tests;
