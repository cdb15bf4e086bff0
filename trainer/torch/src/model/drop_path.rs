//! Drop-path (stochastic depth, Huang et al., arXiv 1603.09382): whole residual branches of the vision tower are left out at random.
//!
//! The choice for an image is a function of (seed, step, slot of its row, image of the row, block, branch), so it is the same in both
//! passes of accumulation, in a checkpointed block's second run, and however slots are spread over members. A branch is computed for the
//! images that keep it, and for no others.

use tch::{Device, TchError, Tensor};

use crate::random::{Draws, Stream};

/// Factors of all blocks for the images of a micro-batch.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DropPath {
    /// `factors[block][branch][image]`.
    factors: Vec<[Vec<f32>; 2]>,
}

/// What the choice depends on besides the image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DropPathKey {
    pub(crate) seed: u64,
    pub(crate) step: u64,
}

impl DropPath {
    /// `highest`: the last block's probability; it rises linearly from 0 at the first (paper §4). `images`: slot and place in its row of
    /// every image.
    pub(crate) fn draw(key: DropPathKey, highest: f64, blocks: i64, images: &[(u64, u64)]) -> Self {
        let draws: Vec<(Draws, u64)> =
            images.iter().map(|&(slot, image)| (Draws::at(key.seed, Stream::DropPath, key.step, slot), image)).collect();
        let factors = (0..blocks).map(|block| {
            let probability = if blocks > 1 { highest * block as f64 / (blocks - 1) as f64 } else { 0.0 };
            [0, 1].map(|branch| {
                let choose = |&(draws, image): &(Draws, u64)| {
                    let dropped = draws.uniform(image, 2 * block as u64 + branch) < probability;
                    if dropped { 0.0 } else { (1.0 / (1.0 - probability)) as f32 }
                };
                draws.iter().map(choose).collect()
            })
        });
        Self { factors: factors.collect() }
    }

    /// Factors of one branch of a block for images of a test.
    #[cfg(test)]
    pub(crate) fn factors_of<const IMAGES: usize>(&self, block: usize, branch: usize) -> [f32; IMAGES] {
        std::array::from_fn(|image| self.factors[block][branch][image])
    }

    /// Moves the choice to the device, all of it by one copy.
    pub(crate) fn place(&self, device: Device) -> Result<PlacedDropPath, TchError> {
        let mut indices: Vec<i64> = Vec::new();
        let mut place = |factors: &[f32]| {
            let first = indices.len() as i64;
            indices.extend((0..).zip(factors).filter(|(_, factor)| **factor > 0.0).map(|(image, _)| image));
            let count = indices.len() as i64 - first;
            let factor = factors.iter().copied().fold(0.0, f32::max);
            (first, count, count == factors.len() as i64, factor)
        };
        let ranges: Vec<_> = self.factors.iter().map(|[attention, mlp]| [place(attention), place(mlp)]).collect();
        let indices = Tensor::f_from_slice(&indices)?.f_to_device(device)?;
        let kept = |(first, count, is_all, factor): (i64, i64, bool, f32)| -> Result<Option<Kept>, TchError> {
            let images = if is_all { KeptImages::All } else { KeptImages::Some { index: indices.f_narrow(0, first, count)?, count } };
            Ok((!is_all || factor > 1.0).then(|| Kept { images, factor: f64::from(factor) }))
        };
        let blocks = ranges.into_iter().map(|[attention, mlp]| Ok([kept(attention)?, kept(mlp)?]));
        Ok(PlacedDropPath { blocks: blocks.collect::<Result<_, TchError>>()? })
    }
}

/// What of a branch is computed: the images that keep it, and the factor of its result.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) images: KeptImages,
    /// 1 / keep probability.
    pub(crate) factor: f64,
}

/// The images of a micro-batch that keep a branch.
#[derive(Debug)]
pub(crate) enum KeptImages {
    All,
    Some {
        /// Their places, ascending, `[count]` on the device.
        index: Tensor,
        /// How many; may be none.
        count: i64,
    },
}

impl Kept {
    pub(crate) fn share(&self) -> Self {
        let images = match &self.images {
            KeptImages::All => KeptImages::All,
            KeptImages::Some { index, count } => KeptImages::Some { index: index.shallow_clone(), count: *count },
        };
        Self { images, factor: self.factor }
    }
}

/// A [`DropPath`] on the device.
#[derive(Debug)]
pub(crate) struct PlacedDropPath {
    /// Of each block the attention's and the perceptron's; `None` is computed for all images as it is.
    blocks: Vec<[Option<Kept>; 2]>,
}

impl PlacedDropPath {
    /// One block's branches.
    pub(crate) fn of_block(&self, block: usize) -> [Option<&Kept>; 2] {
        self.blocks.get(block).map_or([None, None], |kept| kept.each_ref().map(Option::as_ref))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(step: u64, images: &[(u64, u64)]) -> DropPath {
        DropPath::draw(DropPathKey { seed: 5, step }, 0.4, 3, images)
    }

    #[test]
    fn an_image_is_treated_alike_in_whatever_batch_it_comes() {
        let images: Vec<(u64, u64)> = (0..40).map(|index| (index / 2, index % 2)).collect();
        let all = draw(3, &images);
        for (place, image) in images.iter().enumerate() {
            let alone = draw(3, &[*image]);
            for block in 0..3 {
                for branch in 0..2 {
                    assert!((all.factors[block][branch][place] - alone.factors[block][branch][0]).abs() < f32::EPSILON);
                }
            }
        }
        assert_ne!(draw(3, &images), draw(4, &images), "steps differ");
    }

    #[test]
    fn probability_rises_linearly_with_depth_and_what_is_kept_is_scaled_up() {
        let images: Vec<(u64, u64)> = (0..20_000).map(|slot| (slot, 0)).collect();
        let drop = draw(0, &images);
        for (block, probability) in [(0, 0.0), (1, 0.2), (2, 0.4)] {
            for branch in &drop.factors[block] {
                let dropped = branch.iter().filter(|factor| **factor == 0.0).count() as f64 / branch.len() as f64;
                assert!((dropped - probability).abs() < 0.015, "block {block}: {dropped} dropped instead of {probability}");
                let mean = branch.iter().map(|factor| f64::from(*factor)).sum::<f64>() / branch.len() as f64;
                assert!((mean - 1.0).abs() < 0.02, "block {block}: mean factor {mean}");
            }
        }
        assert_ne!(drop.factors[2][0], drop.factors[2][1], "the two branches are drawn apart");
    }
}
