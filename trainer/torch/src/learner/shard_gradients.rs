//! Gradients of a member's virtual shards, on their way to be summed along the tree.
//!
//! Comes in: each shard's gradients as backward passes leave them, a list in the order of the parameters. Goes out: their sum, or one
//! vector with what other members need of them.

use std::ops::Range;

use tch::{Device, TchError, Tensor};

use super::tree::{Node, PartialSums};
use crate::shim::optimizer as kernels;

/// Numbers that are added at once on a processor: their sum is still in its cache when it is read again.
const CACHED: i64 = 1 << 16;

/// A list in the order of the parameters.
type Gradients = Vec<Tensor>;

/// Gradients of consecutive shards. Those of the last one are not added to the others' before they have to be: see
/// [`ShardGradients::pack`].
#[derive(Debug)]
pub(super) struct ShardGradients {
    sums: PartialSums<Gradients>,
    last: Option<(usize, Gradients)>,
}

impl ShardGradients {
    /// Of `total` shards in all.
    pub(super) fn new(total: usize) -> Self {
        Self { sums: PartialSums::new(total), last: None }
    }

    /// Takes in the shard that follows the last one.
    pub(super) fn push(&mut self, shard: usize, gradients: Gradients) -> Result<(), TchError> {
        self.settle()?;
        self.last = Some((shard, gradients));
        Ok(())
    }

    /// Adds the last shard to the others, as far as the tree allows.
    fn settle(&mut self) -> Result<(), TchError> {
        let Some((shard, gradients)) = self.last.take() else { return Ok(()) };
        let add = |sum: &mut Gradients, next: Gradients| kernels::add_tensors(sum, &next);
        Ok(self.sums.push_shard(shard, gradients, add)?)
    }

    /// The sum of all shards, once every one was taken in.
    pub(super) fn into_sum(mut self) -> Result<Option<Gradients>, TchError> {
        self.settle()?;
        Ok(self.sums.into_root())
    }

    fn first(&self) -> Option<&Gradients> {
        self.last.as_ref().map(|(_, gradients)| gradients)
    }

    /// Numbers of one shard's gradients.
    pub(super) fn numbers(&self) -> i64 {
        self.first().into_iter().flatten().map(|tensor| tensor.numel() as i64).sum()
    }

    /// Where they are; `None` without a shard.
    pub(super) fn device(&self) -> Option<Device> {
        self.first()?.first().map(Tensor::device)
    }

    /// Shapes of one shard's gradients.
    pub(super) fn into_shapes(self) -> Vec<Vec<i64>> {
        self.first().into_iter().flatten().map(Tensor::size).collect()
    }

    /// The `nodes` partial sums that remain of these shards, as one vector: for each of `parts`, which cover all numbers one after the
    /// other, that part of each sum. `None` without a shard.
    ///
    /// The last shard is added piece by piece on the way into that vector: a sum that is written to memory first costs two passes over all
    /// numbers more.
    pub(super) fn pack(&self, parts: &[Range<i64>], nodes: usize) -> Result<Option<Tensor>, TchError> {
        let Some((shard, last)) = &self.last else { return Ok(None) };
        let Some(first) = last.first() else { return Ok(None) };
        let packed = Tensor::f_empty([nodes as i64 * self.numbers()], (first.kind(), first.device()))?;
        let flat = |gradients: &Gradients| gradients.iter().map(|tensor| tensor.f_view([-1])).collect::<Result<Vec<_>, _>>();
        let sums: Vec<(Node, Vec<Tensor>)> =
            self.sums.get().iter().map(|(node, sum)| Ok((*node, flat(sum)?))).collect::<Result<_, TchError>>()?;
        let last = flat(last)?;
        for part in parts {
            let length = part.end - part.start;
            let begin = nodes as i64 * part.start;
            let mut start = 0;
            for (index, tensor) in last.iter().enumerate() {
                let end = start + tensor.numel() as i64;
                let inside = part.start.clamp(start, end)..part.end.clamp(start, end);
                for piece in pieces(inside, piece_length(tensor.device())) {
                    let cut = |tensor: &Tensor| tensor.f_narrow(0, piece.start - start, piece.end - piece.start);
                    let mut left = PartialSums::new(self.sums.total());
                    // They have been added as far as possible: nothing is added here but the last shard.
                    for (node, sum) in &sums {
                        left.push(*node, cut(&sum[index])?, |sum, next| add_beside(sum, &next))?;
                    }
                    left.push_shard(*shard, cut(tensor)?, |sum, next| add_beside(sum, &next))?;
                    for (place, (_, sum)) in (0..).zip(left.into_sums()) {
                        let at = begin + place * length + piece.start - part.start;
                        packed.f_narrow(0, at, piece.end - piece.start)?.f_copy_(&sum)?;
                    }
                }
                start = end;
            }
        }
        Ok(Some(packed))
    }
}

/// Adds into memory of its own: what is added here are views of gradients.
pub(super) fn add_beside(sum: &mut Tensor, next: &Tensor) -> Result<(), TchError> {
    *sum = sum.f_add(next)?;
    Ok(())
}

/// Numbers to add at once: as many as stay in a processor's cache, and all of them on a GPU.
pub(super) fn piece_length(device: Device) -> i64 {
    if device == Device::Cpu { CACHED } else { i64::MAX }
}

/// The range, cut into pieces of at most this length.
pub(super) fn pieces(range: Range<i64>, length: i64) -> impl Iterator<Item = Range<i64>> {
    let mut start = range.start;
    std::iter::from_fn(move || {
        let piece = start..start.saturating_add(length).min(range.end);
        start = piece.end;
        (!piece.is_empty()).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    /// A gradient longer than a piece, one shorter, one of no axis.
    fn gradients(shard: i64) -> Gradients {
        let drawn = |shape: &[i64]| {
            let count: i64 = shape.iter().product();
            Tensor::arange(count, (Kind::Float, Device::Cpu)).f_add_scalar(shard * 1000).unwrap().f_sin().unwrap().view(shape)
        };
        vec![drawn(&[2, CACHED]), drawn(&[5]), drawn(&[])]
    }

    fn line(tensor: &Tensor) -> Tensor {
        tensor.view([-1])
    }

    /// The sum of some shards, as one vector.
    fn flat(shards: &[i64]) -> Tensor {
        let mut sums = shards.iter().map(|shard| Tensor::cat(&gradients(*shard).iter().map(line).collect::<Vec<_>>(), 0));
        let first = sums.next().unwrap();
        sums.fold(first, |sum, next| sum + next)
    }

    fn of(shards: Range<i64>) -> ShardGradients {
        let mut own = ShardGradients::new(8);
        for shard in shards {
            own.push(shard as usize, gradients(shard)).unwrap();
        }
        own
    }

    #[test]
    fn what_travels_is_each_part_of_each_partial_sum() {
        let own = of(4..7);
        let numbers = own.numbers();
        assert_eq!(numbers, 2 * CACHED + 6);
        let parts = [0..7, 7..CACHED + 3, CACHED + 3..CACHED + 3, CACHED + 3..numbers];
        let packed = own.pack(&parts, 2).unwrap().unwrap();
        let sums = [flat(&[4, 5]), flat(&[6])];
        let expected: Vec<Tensor> =
            parts.iter().flat_map(|part| sums.iter().map(|sum| sum.narrow(0, part.start, part.end - part.start))).collect();
        assert!(packed.equal(&Tensor::cat(&expected, 0)));
        assert_eq!(own.into_shapes(), [vec![2, CACHED], vec![5], vec![]]);
    }

    #[test]
    fn the_last_shard_is_added_on_the_way() {
        let own = of(0..4);
        let packed = own.pack(&[0..3, 3..own.numbers()], 1).unwrap().unwrap();
        assert!(packed.equal(&((flat(&[0, 1])) + flat(&[2, 3]))));
    }

    #[test]
    fn the_sum_of_all_is_there_when_all_are() {
        let sum = of(0..8).into_sum().unwrap().unwrap();
        let halves = [[[0, 1], [2, 3]], [[4, 5], [6, 7]]].map(|[left, right]| flat(&left) + flat(&right));
        let sum: Vec<Tensor> = sum.iter().map(line).collect();
        assert!(Tensor::cat(&sum, 0).equal(&(&halves[0] + &halves[1])));
        assert!(of(0..7).into_sum().unwrap().is_none());
        assert!(of(0..0).pack(&[], 0).unwrap().is_none());
    }

    #[test]
    fn pieces_cover_a_range() {
        assert_eq!(pieces(3..10, 4).collect::<Vec<_>>(), [3..7, 7..10]);
        assert_eq!(pieces(3..7, i64::MAX).map(|piece| (piece.start, piece.end)).collect::<Vec<_>>(), [(3, 7)]);
        assert_eq!(pieces(3..3, 4).count(), 0);
    }
}
