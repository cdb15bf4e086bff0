//! The shards of one pass, one behind the other in an order of their own.
//!
//! Comes in: the permutation of the shards and where each ends. Goes out: which sample stands at a place. Costs eight bytes a shard.

use std::ops::Range;

use crate::permutation::Permutation;

/// One pass's order of shards.
#[derive(Debug)]
pub(super) struct Tape {
    pub(super) pass: u64,
    /// The place after each shard's last sample, in the order of the tape.
    ends: Vec<u64>,
    shards: Permutation,
}

impl Tape {
    pub(super) fn new(pass: u64, shards: &Permutation, ends: &[u64]) -> Self {
        let mut end = 0;
        let ends = (0..ends.len() as u64).map(|turn| {
            let samples = samples_of(shards.at(turn).unwrap_or_default(), ends);
            end += samples.end - samples.start;
            end
        });
        Self { pass, ends: ends.collect(), shards: shards.clone() }
    }

    /// The sample at a place; `None` behind the end.
    pub(super) fn sample(&self, place: u64, ends: &[u64]) -> Option<u64> {
        let turn = self.turn(place);
        let shard = self.shards.at(turn as u64)?;
        Some(samples_of(shard, ends).start + (place - self.begin(turn)))
    }

    /// The samples at these places as stretches, one for each shard that they touch.
    pub(super) fn stretches(&self, places: Range<u64>, ends: &[u64]) -> Vec<Range<u64>> {
        let mut stretches = Vec::new();
        let mut place = places.start;
        while place < places.end {
            let turn = self.turn(place);
            let (Some(end), Some(first)) = (self.ends.get(turn), self.sample(place, ends)) else { break };
            let length = (*end).min(places.end) - place;
            stretches.push(first..first + length);
            place += length;
        }
        stretches
    }

    /// Which shard in the order of the tape holds a place.
    fn turn(&self, place: u64) -> usize {
        self.ends.partition_point(|end| *end <= place)
    }

    fn begin(&self, turn: usize) -> u64 {
        turn.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0)
    }
}

/// The samples of a shard, by where each shard ends.
fn samples_of(shard: u64, ends: &[u64]) -> Range<u64> {
    let end = |shard: u64| ends.get(shard as usize).copied().unwrap_or(0);
    shard.checked_sub(1).map_or(0, end)..end(shard)
}
