//! What stands for a model: numbers that depend on every slot of every step, and the frames in which they travel.
//!
//! Pure. The exact number is the same whatever the members: a slot that is left out, taken twice or taken from an aborted step changes it
//! for ever. The fast number depends on who committed, too, as sums in another order do.

use lcl_protocol::{Flags, Generation, StateLabel};

/// Samples per step; no multiple of 3, so that shares differ. A number of a frame has a bit for each.
pub(crate) const GLOBAL_BATCH: u64 = 16;

/// What travels between members: eight numbers, the first of which says what they are.
pub(crate) type Frame = [u64; 8];

const STATE: u64 = 1;
const PART: u64 = 2;

/// Weights and moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    /// Completed steps, and the generation that committed the last of them (or restored them).
    pub(crate) label: StateLabel,
    /// In exact mode: a function of the step alone.
    pub(crate) exact: u64,
    /// In fast mode: a function of the label.
    pub(crate) fast: u64,
}

/// What one member gives to a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) step: u64,
    pub(crate) slots: Vec<u64>,
    /// The state from which its gradients were computed.
    pub(crate) exact: u64,
    pub(crate) fast: u64,
    pub(crate) flags: Flags,
}

/// One round of `splitmix64`, which spreads every bit over all.
fn mix(hash: u64, value: u64) -> u64 {
    let mut mixed = hash ^ value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn next_exact(before: u64, step: u64, mut slots: Vec<u64>) -> u64 {
    // A sum does not know in which order it was made.
    slots.sort_unstable();
    slots.into_iter().fold(mix(before, step), mix)
}

/// The exact numbers of an undisturbed run, by completed steps.
#[derive(Debug)]
pub(crate) struct Undisturbed(Vec<u64>);

impl Default for Undisturbed {
    fn default() -> Self {
        Self(vec![0])
    }
}

impl Undisturbed {
    pub(crate) fn after(&mut self, steps: u64) -> u64 {
        while self.0.len() as u64 <= steps {
            let before = self.0.last().copied().unwrap_or_default();
            self.0.push(next_exact(before, self.0.len() as u64, (0..GLOBAL_BATCH).collect()));
        }
        self.0[steps as usize]
    }
}

impl State {
    /// Before the first step.
    pub(crate) fn initial(generation: Generation) -> Self {
        Self { label: StateLabel { step: 0, generation }, exact: 0, fast: 0 }
    }

    /// After an update with these parts.
    pub(crate) fn updated(self, generation: Generation, parts: &[Part]) -> Self {
        let step = self.label.step + 1;
        let slots = parts.iter().flat_map(|part| part.slots.clone()).collect();
        let fast = [generation.epoch, generation.n].into_iter().fold(mix(self.fast, step), mix);
        Self { label: StateLabel { step, generation }, exact: next_exact(self.exact, step, slots), fast }
    }

    pub(crate) fn to_frame(self) -> Frame {
        let StateLabel { step, generation } = self.label;
        [STATE, step, generation.epoch, generation.n, self.exact, self.fast, 0, 0]
    }

    pub(crate) fn from_frame(frame: Frame) -> Option<Self> {
        let [STATE, step, epoch, n, exact, fast, ..] = frame else { return None };
        Some(Self { label: StateLabel { step, generation: Generation { epoch, n } }, exact, fast })
    }
}

impl Part {
    pub(crate) fn to_frame(&self) -> Frame {
        let slots = self.slots.iter().fold(0, |slots, slot| slots | 1 << slot);
        [PART, self.step, slots, self.exact, self.fast, self.flags.bits().into(), 0, 0]
    }

    pub(crate) fn from_frame(frame: Frame) -> Option<Self> {
        let [PART, step, slots, exact, fast, flags, ..] = frame else { return None };
        let slots = (0..GLOBAL_BATCH).filter(|slot| slots >> slot & 1 == 1).collect();
        Some(Self { step, slots, exact, fast, flags: Flags::from_bits(u32::try_from(flags).ok()?) })
    }
}
