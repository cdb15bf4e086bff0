//! Which sample of a source stands at a position of a pass.
//!
//! Comes in: how many samples each shard has, a seed, and at which pace steps take samples ([`Pace`]). Goes out: for any (pass, position) a
//! sample, each once a pass. A pure function: nothing is stored for a sample, no state goes from step to step, and the number of members does
//! not come in. It must not read data.
//!
//! A permutation over all samples would read each of them from another place. Here whoever follows a few slots reads long stretches:
//!
//! 1. The shards of a pass are permuted and put one behind the other: the *tape*.
//! 2. The slots of a step are divided into *lanes*, each a run of neighbouring slots. Each lane has a stretch of the tape of its own, as long
//!    as the number of positions that its slots have in the pass ([`lanes`]).
//! 3. A lane walks its stretch window by window, and each window is permuted.
//!
//! So a batch mixes as many places of the data set as there are lanes, and a lane reads one window after the other, each of which lies in
//! one or two shards. A source that has no more samples than a window is permuted as a whole.

mod lanes;
mod mixed;
mod tape;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use lanes::Lanes;
pub use lanes::Pace;
pub use mixed::{Location, Orders};
use tape::Tape;

use crate::{
    permutation::Permutation,
    random::{SlotRandom, Stream},
};

/// Tapes that are kept: lanes come to the end of a pass at about the same time, and a loader that reads ahead is in the next one.
const KEPT_TAPES: usize = 3;

/// The order of all passes over one source.
#[derive(Debug)]
pub struct Order {
    seed: u64,
    source: u16,
    window: u64,
    /// For every shard, the number of the sample after its last one.
    ends: Arc<[u64]>,
    lanes: Lanes,
    tapes: Mutex<VecDeque<Arc<Tape>>>,
}

/// Samples among which one position's sample is drawn: what has to be at hand when it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Places on the tape of the pass.
    places: Range<u64>,
    /// Stretches of neighbouring samples, in the order of the tape.
    pub stretches: Vec<Range<u64>>,
}

impl Order {
    /// The order of source number `source`, whose shards end at the samples of `ends`, when steps take samples at this pace, in so many lanes
    /// (no more than samples of a step) that mix so many samples at most.
    #[must_use]
    pub fn new(seed: u64, source: u16, ends: Arc<[u64]>, pace: Pace, lanes: u64, window: u64) -> Self {
        Self { seed, source, window: window.max(1), ends, lanes: Lanes::new(pace, lanes), tapes: Mutex::default() }
    }

    /// Samples of a pass.
    #[must_use]
    pub fn samples_per_pass(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The sample that is drawn at an attempt, from 1, to fill a slot whose own sample gives nothing. Uniform over all samples.
    #[must_use]
    pub fn redraw(&self, step: u64, slot: u64, attempt: u32) -> u64 {
        SlotRandom::of_attempt(self.seed, step, slot, Stream::Redraw, attempt).below(self.samples_per_pass())
    }

    /// The sample at a position of a pass, or `None` when the position is not below the number of samples.
    #[must_use]
    pub fn at(&self, pass: u64, position: u64) -> Option<u64> {
        let count = self.samples_per_pass();
        if position >= count {
            return None;
        }
        if count <= self.window {
            return self.permutation(pass, 0, Stream::Order, count).at(position);
        }
        let (window, place) = self.place(pass, position);
        let begin = window.start;
        let place = begin + self.permutation(pass, begin, Stream::Window, window.end - begin).at(place - begin)?;
        self.tape(pass).sample(place, &self.ends)
    }

    /// Goes along the positions: those that follow each other within a lane cost a tenth of what [`Order::at`] does.
    pub(crate) fn walk(&self) -> Walk<'_> {
        Walk { order: self, tape: None, window: None }
    }

    /// The samples among which that of a position is drawn. Positions of a lane that lie near each other have the same.
    #[must_use]
    pub fn window(&self, pass: u64, position: u64) -> Option<Window> {
        let count = self.samples_per_pass();
        if position >= count {
            return None;
        }
        if count <= self.window {
            return Some(Window { places: 0..count, stretches: std::iter::once(0..count).collect() });
        }
        let (places, _) = self.place(pass, position);
        Some(Window { stretches: self.tape(pass).stretches(places.clone(), &self.ends), places })
    }

    /// The window of a position, as places on the tape, and the position's own place before the window is permuted.
    fn place(&self, pass: u64, position: u64) -> (Range<u64>, u64) {
        let stretch = self.lanes.stretch(pass, self.samples_per_pass(), position);
        let length = stretch.end - stretch.begin;
        // As many windows as are needed, of equal length: a last one of a few samples would hardly be mixed.
        let windows = length.div_ceil(self.window).max(1);
        let border = |number: u64| stretch.begin + scale(length, number, windows);
        // The greatest number whose border is not behind the place.
        let number = (u128::from(stretch.place + 1) * u128::from(windows) - 1) / u128::from(length.max(1));
        let number = number as u64;
        (border(number)..border(number + 1), stretch.begin + stretch.place)
    }

    fn permutation(&self, pass: u64, place: u64, stream: Stream, count: u64) -> Permutation {
        Permutation::from_random(SlotRandom::of_source(self.seed, pass, place, stream, self.source), count)
    }

    fn tape(&self, pass: u64) -> Arc<Tape> {
        let mut tapes = self.tapes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tape) = tapes.iter().find(|tape| tape.pass == pass) {
            return Arc::clone(tape);
        }
        let shards = self.permutation(pass, 0, Stream::Order, self.ends.len() as u64);
        let tape = Arc::new(Tape::new(pass, &shards, &self.ends));
        tapes.push_back(Arc::clone(&tape));
        if tapes.len() > KEPT_TAPES {
            tapes.pop_front();
        }
        tape
    }
}

/// A walk along an order. It remembers the tape and the window of the position before, and gives what [`Order::at`] gives.
#[derive(Debug)]
pub(crate) struct Walk<'a> {
    order: &'a Order,
    tape: Option<Arc<Tape>>,
    window: Option<Walked>,
}

/// Where a walk is.
#[derive(Debug)]
struct Walked {
    pass: u64,
    /// Position, lane and place on the tape of the step before.
    position: u64,
    lane: u64,
    place: u64,
    window: Range<u64>,
    permutation: Permutation,
}

impl Walk<'_> {
    /// The sample at a position of a pass, or `None` when the position is not below the number of samples.
    pub(crate) fn at(&mut self, pass: u64, position: u64) -> Option<u64> {
        let (order, count) = (self.order, self.order.samples_per_pass());
        if position >= count || count <= order.window {
            return order.at(pass, position);
        }
        let lane = order.lanes.lane(u128::from(pass) * u128::from(count) + u128::from(position));
        let follows = |before: &Walked| {
            (before.pass, before.lane, before.position + 1) == (pass, lane, position) && before.place + 1 < before.window.end
        };
        let walked = if let Some(before) = self.window.take().filter(follows) {
            Walked { position, place: before.place + 1, ..before }
        } else {
            let (window, place) = order.place(pass, position);
            let permutation = order.permutation(pass, window.start, Stream::Window, window.end - window.start);
            Walked { pass, position, lane, place, window, permutation }
        };
        let tape = match self.tape.take().filter(|tape| tape.pass == pass) {
            Some(tape) => tape,
            None => order.tape(pass),
        };
        let place = walked.window.start + walked.permutation.at(walked.place - walked.window.start)?;
        let sample = tape.sample(place, &order.ends);
        (self.tape, self.window) = (Some(tape), Some(walked));
        sample
    }
}

/// `length · number / parts`, rounded down.
fn scale(length: u64, number: u64, parts: u64) -> u64 {
    (u128::from(length) * u128::from(number) / u128::from(parts)) as u64
}
