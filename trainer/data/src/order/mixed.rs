//! Which sample stands in a slot, when the data set has one source or several.
//!
//! Comes in: the order of each source, and how positions are divided among them. Goes out: for an index of the endless sequence of positions
//! (step · global batch + slot) its source and its sample. Samples of all sources are numbered through, one source behind the other.

use std::ops::Range;

use super::{Order, Walk};
use crate::mixture::Mixture;

/// Which sample stands in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// The source, from 0.
    pub source: usize,
    /// Walk over that source, from 0.
    pub pass: u64,
    /// Place in that walk.
    pub position: u64,
    /// Number of the sample in the data set.
    pub sample: u64,
}

/// The orders of all sources of a data set.
#[derive(Debug)]
pub struct Orders {
    mixture: Mixture,
    /// Of the sources of a mixture.
    names: Vec<String>,
    /// The first sample of each source, and its order.
    sources: Vec<(u64, Order)>,
}

impl Orders {
    /// The orders of sources among which positions are divided by `mixture`, each with its own first sample. A mixture's have names.
    #[must_use]
    pub fn new(mixture: Mixture, names: Vec<String>, sources: Vec<(u64, Order)>) -> Self {
        Self { mixture, names, sources }
    }

    /// Samples of one pass over every source.
    #[must_use]
    pub fn samples_per_pass(&self) -> u64 {
        self.sources.iter().map(|(_, order)| order.samples_per_pass()).sum()
    }

    /// Names of the sources of a mixture; none when there is but one source.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The number of the source that a sample belongs to.
    #[must_use]
    pub fn source_of(&self, sample: u64) -> usize {
        self.sources.partition_point(|(first, _)| *first <= sample).saturating_sub(1)
    }

    /// The sample at an index of the endless sequence.
    #[must_use]
    pub fn locate(&self, index: u64) -> Location {
        self.locate_by(index, |source, pass, position| self.sources.get(source).and_then(|(_, order)| order.at(pass, position)))
    }

    /// The samples at these indexes, in their order: what [`Orders::locate`] gives for each, for a fraction of the time.
    pub fn locate_all(&self, indexes: Range<u64>) -> impl Iterator<Item = Location> + '_ {
        let mut walks: Vec<Walk<'_>> = self.sources.iter().map(|(_, order)| order.walk()).collect();
        indexes.map(move |index| {
            self.locate_by(index, |source, pass, position| walks.get_mut(source).and_then(|walk| walk.at(pass, position)))
        })
    }

    /// The sample at an index, when `at` knows the sample of a source at a position of one of its passes.
    fn locate_by(&self, index: u64, at: impl FnOnce(usize, u64, u64) -> Option<u64>) -> Location {
        let turn = self.mixture.turn(index);
        // A mixture has as many sources as orders.
        let (first, samples) = self.sources.get(turn.source).map_or((0, 1), |(first, order)| (*first, order.samples_per_pass().max(1)));
        let (pass, position) = (turn.index / samples, turn.index % samples);
        // The position is below the number of samples, so there is one.
        Location { source: turn.source, pass, position, sample: first + at(turn.source, pass, position).unwrap_or_default() }
    }

    /// The sample of a source that is drawn at an attempt, from 1, to fill a slot whose own sample gives nothing.
    #[must_use]
    pub fn redraw(&self, source: usize, step: u64, slot: u64, attempt: u32) -> u64 {
        self.sources.get(source).map_or(0, |(first, order)| first + order.redraw(step, slot, attempt))
    }

    /// Which positions of each source's own sequence belong to these indexes.
    #[must_use]
    pub fn positions(&self, indexes: Range<u64>) -> Vec<Range<u64>> {
        let (begin, end) = (self.mixture.counts(indexes.start), self.mixture.counts(indexes.end));
        begin.into_iter().zip(end).map(|(begin, end)| begin..end).collect()
    }
}
