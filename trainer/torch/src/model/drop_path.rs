//! Drop-path (stochastic depth, Huang et al., arXiv 1603.09382): whole residual branches of the vision tower are left out at random.
//!
//! The choice for an image is a function of (seed, step, slot of its row, image of the row, block, branch), so it is the same in both
//! passes of accumulation, in a checkpointed block's second run, and however slots are spread over members.

use tch::{Device, Kind, TchError, Tensor};

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

    /// Factors of one block's branches for every token, `[images · tokens, 1]`; `None` when the block keeps everything.
    pub(crate) fn masks(&self, block: usize, tokens: i64, kind: Kind, device: Device) -> Result<Option<[Tensor; 2]>, TchError> {
        let Some([attention, mlp]) = self.factors.get(block) else { return Ok(None) };
        if attention.iter().chain(mlp).all(|factor| (factor - 1.0).abs() < f32::EPSILON) {
            return Ok(None);
        }
        let mask = |factors: &[f32]| {
            let images = factors.len() as i64;
            let column = Tensor::f_from_slice(factors)?.f_to_kind(kind)?.f_to_device(device)?.f_view([images, 1])?;
            column.f_expand([images, tokens], false)?.f_reshape([images * tokens, 1])
        };
        Ok(Some([mask(attention)?, mask(mlp)?]))
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
