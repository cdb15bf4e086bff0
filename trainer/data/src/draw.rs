//! The random choices of one slot and the tokens that follow from them, shared by the loader and by what shows a sample.
//!
//! Comes in: (seed, step, slot), an encoded image and a caption. Goes out: the choices made. Pure.

use lcl_trainer_config::{AugmentationConfig, Objective};

use crate::{
    image::{CropBox, random_resized_crop},
    random::{SlotRandom, Stream},
    sequence::{SequenceLimits, append_caption, append_pair},
};

/// Largest side of the model's input in pixels; a slip of the finger beyond that would take all memory.
pub(crate) const IMAGE_SIZE_LIMIT: u32 = 16_384;

/// Numbers of the sequence that a crop has for itself; it draws 22 at most.
const DRAWS_OF_A_CROP: u64 = 64;

/// What the random choices of a slot depend on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draw {
    pub(crate) seed: u64,
    pub(crate) step: u64,
    pub(crate) slot: u64,
}

impl Draw {
    /// The crop of an image of this size.
    pub(crate) fn crop(self, augmentation: AugmentationConfig, width: u32, height: u32) -> CropBox {
        let mut random = SlotRandom::new(self.seed, self.step, self.slot, Stream::Crop);
        random_resized_crop(width, height, augmentation.scale, augmentation.ratio, &mut || random.uniform())
    }

    /// The crop of an image of a document: the image has this number there, and the document was drawn at this attempt.
    pub(crate) fn crop_in_document(
        self,
        augmentation: AugmentationConfig,
        (attempt, image): (u32, u32),
        width: u32,
        height: u32,
    ) -> CropBox {
        let random = SlotRandom::of_attempt(self.seed, self.step, self.slot, Stream::Crop, attempt);
        let mut random = random.at(u64::from(image) * DRAWS_OF_A_CROP);
        random_resized_crop(width, height, augmentation.scale, augmentation.ratio, &mut || random.uniform())
    }

    /// The number of a caption among several with these weights, of which one is not 0.
    pub(crate) fn caption(self, weights: &[u64]) -> usize {
        let drawn = SlotRandom::new(self.seed, self.step, self.slot, Stream::Caption).below(weights.iter().sum());
        let mut end = 0;
        let is_drawn = |weight: &u64| {
            end += weight;
            drawn < end
        };
        weights.iter().position(is_drawn).unwrap_or(0)
    }

    /// Whether the image precedes its caption.
    pub(crate) fn image_first(self, probability: f64) -> bool {
        SlotRandom::new(self.seed, self.step, self.slot, Stream::ImageFirst).uniform() < probability
    }
}

/// The sequence of a caption and its image. `image_first` matters to the LCL objective only.
pub(crate) fn tokens(caption: &[u32], image_first: bool, limits: &SequenceLimits, objective: Objective) -> Vec<i64> {
    let mut tokens = Vec::new();
    append_tokens((caption, image_first), limits, objective, &mut tokens);
    tokens
}

/// As [`tokens`], behind what is there.
pub(crate) fn append_tokens((caption, image_first): (&[u32], bool), limits: &SequenceLimits, objective: Objective, tokens: &mut Vec<i64>) {
    match objective {
        Objective::Lcl { .. } => append_pair(caption, image_first, limits, tokens),
        Objective::Clip => append_caption(caption, limits, tokens),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_are_drawn_by_their_weights_and_one_without_weight_never() {
        for weights in [vec![1], vec![1, 2], vec![3, 0, 1], vec![1, 1, 1, 1]] {
            let (draws, total) = (20_000, weights.iter().sum::<u64>() as f64);
            let mut counts = vec![0_f64; weights.len()];
            for slot in 0..draws {
                counts[Draw { seed: 5, step: 7, slot }.caption(&weights)] += 1.0;
            }
            for (count, weight) in counts.iter().zip(&weights) {
                let part = *weight as f64 / total;
                let deviation = (draws as f64 * part * (1.0 - part)).sqrt();
                // Five standard deviations of a binomial; the seed is fixed, so this is no matter of luck.
                assert!((count - draws as f64 * part).abs() <= 5.0 * deviation, "{weights:?}: {counts:?}");
            }
        }
    }
}
