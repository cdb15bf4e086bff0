//! The random choices of one slot and the layout that follows from them, shared by the loader and by what shows a sample.
//!
//! Comes in: (seed, step, slot), an encoded image and a caption. Goes out: the choices made. Pure.

use lcl_trainer_config::{AugmentationConfig, Objective};

use crate::{
    image::{CropBox, random_resized_crop},
    random::{SlotRandom, Stream},
    sequence::{Layout, caption_sequence, pair_sequence},
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

    /// Whether the image precedes its caption.
    pub(crate) fn image_first(self, probability: f64) -> bool {
        SlotRandom::new(self.seed, self.step, self.slot, Stream::ImageFirst).uniform() < probability
    }
}

/// The sequence of a caption and its image. `image_first` matters to the LCL objective only.
pub(crate) fn tokens(caption: &[u32], image_first: bool, layout: &Layout, objective: Objective) -> Vec<i64> {
    match objective {
        Objective::Lcl { .. } => pair_sequence(caption, image_first, layout),
        Objective::Clip => caption_sequence(caption, layout),
    }
}
