//! Random numbers that depend on nothing but their key.
//!
//! Comes in: (seed, step, slot, [`Stream`]). Goes out: a sequence of numbers that is the same on every machine, in every world size and after
//! every restart. There is no sampler state to save, and it must never read a clock or the operating system's randomness.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

/// What a sequence is used for. Sequences of different streams are independent; the numbers are part of the result's definition and are never
/// reused for another purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Stream {
    /// Keys of a pass's order; keyed by (seed, pass, 0).
    Order = 1,
    /// Whether the image precedes its caption.
    ImageFirst = 2,
    /// The training transform's crop.
    Crop = 3,
    /// Spread of the waiting times between attempts to read; has no effect on any result.
    Backoff = 4,
    /// Order within a window of a lane; keyed by (seed, pass, first place of the window in the pass).
    Window = 5,
    /// Whether an image of a document stands before or after its sentence; the draws count by the image's number in the document.
    Placement = 6,
    /// Which of a sentence's images is kept; the draws count by the sentence's number in the document.
    KeptImage = 7,
    /// Which document takes the place of one that gives no sequence; keyed by the attempt as well.
    Redraw = 8,
    /// Which of a sample's captions is used.
    Caption = 9,
}

/// The sequence of one (seed, step, slot, stream).
///
/// The four numbers, little-endian, are the 256-bit key of the stream cipher `ChaCha` with 8 rounds (Bernstein 2008), whose key stream is the
/// sequence: every key gives an unrelated one, so neighbouring steps and slots need no further mixing.
#[derive(Clone, Debug)]
pub struct SlotRandom {
    generator: ChaCha8Rng,
}

impl SlotRandom {
    /// The sequence from its beginning. Costs about as much as drawing the first number.
    #[must_use]
    pub fn new(seed: u64, step: u64, slot: u64, stream: Stream) -> Self {
        Self::keyed([seed, step, slot], stream, 0, 0)
    }

    /// The sequence of a source of a mixture; that of source 0 is [`SlotRandom::new`]'s.
    #[must_use]
    pub fn of_source(seed: u64, step: u64, slot: u64, stream: Stream, source: u16) -> Self {
        Self::keyed([seed, step, slot], stream, source, 0)
    }

    /// The sequence of one of several attempts to fill a slot, from its beginning; that of attempt 0 is [`SlotRandom::new`]'s.
    #[must_use]
    pub fn of_attempt(seed: u64, step: u64, slot: u64, stream: Stream, attempt: u32) -> Self {
        Self::keyed([seed, step, slot], stream, 0, attempt)
    }

    fn keyed([seed, step, slot]: [u64; 3], stream: Stream, source: u16, attempt: u32) -> Self {
        // A stream's number takes a byte at most, so source and attempt have parts of the key to themselves.
        let stream = stream as u64 | (u64::from(source) << 16) | (u64::from(attempt) << 32);
        let mut key = [0; 32];
        for (part, number) in key.chunks_exact_mut(8).zip([seed, step, slot, stream]) {
            part.copy_from_slice(&number.to_le_bytes());
        }
        Self { generator: ChaCha8Rng::from_seed(key) }
    }

    /// Goes to the number at `index`, from 0: the next one drawn is that one, whatever was drawn before.
    #[must_use]
    pub fn at(mut self, index: u64) -> Self {
        // A number is two words of the key stream.
        self.generator.set_word_pos(2 * u128::from(index));
        self
    }

    /// The next 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.generator.next_u64()
    }

    /// Uniform in [0, 1), a multiple of 2^-53.
    pub fn uniform(&mut self) -> f64 {
        // A float64 has 53 significant bits; more would round up to 1.
        (self.bits() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }

    /// Uniform in 0..`count`, from one draw; 0 when `count` is 0.
    ///
    /// The upper half of the draw times `count`. Chances differ by less than `count` / 2^64, which no run can notice, and in return a draw is
    /// always one number of the sequence.
    pub fn below(&mut self, count: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(count)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_stream_is_that_of_the_published_chacha8_vector() {
        // draft-strombergson-chacha-test-vectors-01, TC1: 256-bit key of zeros, 8 rounds.
        let mut random = SlotRandom { generator: ChaCha8Rng::from_seed([0; 32]) };
        let bytes: Vec<u8> = (0..4).flat_map(|_| random.bits().to_le_bytes()).collect();
        assert_eq!(
            bytes,
            [
                0x3e, 0x00, 0xef, 0x2f, 0x89, 0x5f, 0x40, 0xd6, 0x7f, 0x5b, 0xb8, 0xe8, 0x1f, 0x09, 0xa5, 0xa1, 0x2c, 0x84, 0x0e, 0xc3,
                0xce, 0x9a, 0x7f, 0x3b, 0x18, 0x1b, 0xe1, 0x88, 0xef, 0x71, 0x1a, 0x1e
            ]
        );
    }

    #[test]
    fn the_recorded_numbers_never_change() {
        let mut random = SlotRandom::new(1, 2, 3, Stream::Crop);
        assert_eq!([random.bits(), random.bits(), random.bits()], RECORDED);
    }

    /// Recorded when the generator was written: a change of these numbers changes every trained model.
    const RECORDED: [u64; 3] = [153_503_955_074_568_316, 9_139_330_118_539_918_927, 8_866_752_622_158_590_693];

    const STREAMS: [Stream; 9] = [
        Stream::Order,
        Stream::ImageFirst,
        Stream::Crop,
        Stream::Backoff,
        Stream::Window,
        Stream::Placement,
        Stream::KeptImage,
        Stream::Redraw,
        Stream::Caption,
    ];

    #[test]
    fn the_numbers_of_the_streams_never_change() {
        assert_eq!(STREAMS.map(|stream| stream as u64), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn the_first_attempt_draws_as_if_there_were_no_others() {
        assert_eq!(SlotRandom::of_attempt(1, 2, 3, Stream::Crop, 0).bits(), RECORDED[0]);
    }

    #[test]
    fn a_number_is_the_same_whether_it_is_gone_to_or_reached() {
        let begin = SlotRandom::new(1, 2, 3, Stream::Placement);
        let mut walked = begin.clone();
        for index in 0..200 {
            assert_eq!(begin.clone().at(index).bits(), walked.bits(), "{index}");
        }
        assert_eq!(walked.at(0).bits(), begin.clone().bits());
        let _ = begin.at(u64::MAX).bits();
    }

    #[test]
    fn numbers_below_a_count_are_spread_evenly_and_stay_below_it() {
        for count in [1_u64, 2, 3, 7, 10] {
            let mut counts = vec![0_f64; count as usize];
            let draws = 20_000;
            for slot in 0..draws {
                counts[SlotRandom::new(11, 5, slot, Stream::Redraw).below(count) as usize] += 1.0;
            }
            let expected = draws as f64 / count as f64;
            // Five standard deviations of a binomial; the seed is fixed, so this is no matter of luck.
            assert!(counts.iter().all(|found| (found - expected).abs() <= 5.0 * expected.sqrt()), "{count}: {counts:?}");
        }
        let mut random = SlotRandom::new(0, 0, 0, Stream::Redraw);
        assert_eq!(random.below(0), 0);
        assert!((0..100).all(|_| random.below(u64::MAX) < u64::MAX));
    }

    #[test]
    fn every_part_of_the_key_matters() {
        let first = |seed, step, slot, stream| SlotRandom::new(seed, step, slot, stream).bits();
        let mut seen = std::collections::HashSet::new();
        for seed in 0..8 {
            for step in 0..8 {
                for slot in 0..8 {
                    for stream in STREAMS {
                        assert!(seen.insert(first(seed, step, slot, stream)));
                        assert!(seen.insert(SlotRandom::of_source(seed, step, slot, stream, 1).bits()));
                        for attempt in 1..4 {
                            assert!(seen.insert(SlotRandom::of_attempt(seed, step, slot, stream, attempt).bits()));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn uniform_numbers_of_neighbouring_slots_are_spread_evenly() {
        let mut counts = [0_f64; 64];
        let draws = 64_000;
        for slot in 0..draws {
            let value = SlotRandom::new(7, 9, slot, Stream::ImageFirst).uniform();
            assert!((0.0..1.0).contains(&value));
            counts[(value * 64.0) as usize] += 1.0;
        }
        let expected = draws as f64 / 64.0;
        let chi_square: f64 = counts.iter().map(|count| (count - expected).powi(2) / expected).sum();
        // 63 degrees of freedom: mean 63, standard deviation 11.2; the seed is fixed, so this is no matter of luck.
        assert!(chi_square < 63.0 + 4.0 * 11.2, "chi square {chi_square}");
    }
}
