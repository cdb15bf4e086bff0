//! The fixed binary tree along which exact mode sums over virtual shards. Pure.
//!
//! Leaf `i` is shard `i`; a node of level `l` and index `k` is the sum of shards `k·2^l` to `(k+1)·2^l`, as far as they exist. Numbers in
//! floating point are not associative, so whoever adds two siblings adds them in this order, and the root has the same bits wherever the
//! shards were computed.

use std::ops::Range;

/// A node of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Node {
    level: u32,
    index: usize,
}

impl Node {
    fn parent(self) -> Self {
        Self { level: self.level + 1, index: self.index / 2 }
    }

    fn is_root(self, total: usize) -> bool {
        self.index == 0 && 1_usize << self.level >= total
    }

    /// Whether the shards of its right sibling do not exist.
    fn is_last(self, total: usize) -> bool {
        (self.index + 1) << self.level >= total
    }
}

/// Sums of consecutive shards, added as early as the tree allows: never more of them at once than the tree has levels, twice.
#[derive(Debug)]
pub(super) struct PartialSums<T> {
    total: usize,
    sums: Vec<(Node, T)>,
}

impl<T> PartialSums<T> {
    /// Of `total` shards in all.
    pub(super) fn new(total: usize) -> Self {
        Self { total, sums: Vec::new() }
    }

    /// Takes in the shard that follows the last one.
    pub(super) fn push_shard<E>(&mut self, shard: usize, value: T, add: impl FnMut(&mut T, T) -> Result<(), E>) -> Result<(), E> {
        self.push(Node { level: 0, index: shard }, value, add)
    }

    /// Takes in the node that follows the last one.
    pub(super) fn push<E>(&mut self, mut node: Node, mut value: T, mut add: impl FnMut(&mut T, T) -> Result<(), E>) -> Result<(), E> {
        while !node.is_root(self.total) {
            if node.index.is_multiple_of(2) {
                if !node.is_last(self.total) {
                    break;
                }
            } else {
                let left = Node { index: node.index - 1, ..node };
                let Some((_, mut sum)) = self.sums.pop_if(|(last, _)| *last == left) else { break };
                add(&mut sum, value)?;
                value = sum;
            }
            node = node.parent();
        }
        self.sums.push((node, value));
        Ok(())
    }

    /// Shards in all.
    pub(super) fn total(&self) -> usize {
        self.total
    }

    /// What is there, from left to right.
    pub(super) fn get(&self) -> &[(Node, T)] {
        &self.sums
    }

    /// See [`PartialSums::get`].
    pub(super) fn into_sums(self) -> Vec<(Node, T)> {
        self.sums
    }

    /// The sum of all shards, once every one was taken in.
    pub(super) fn into_root(mut self) -> Option<T> {
        let (node, value) = self.sums.pop()?;
        (node.is_root(self.total) && self.sums.is_empty()).then_some(value)
    }
}

/// The nodes that remain when the sums of consecutive shards are added as far as possible.
pub(super) fn nodes_of(shards: Range<usize>, total: usize) -> Vec<Node> {
    let mut sums = PartialSums::new(total);
    for shard in shards {
        // Nothing to add, so nothing to fail.
        let Ok(()) = sums.push_shard(shard, (), |(), ()| Ok::<(), std::convert::Infallible>(()));
    }
    sums.into_sums().into_iter().map(|(node, ())| node).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The order of additions when shards are split at `ends`.
    fn order(total: usize, ends: &[usize]) -> String {
        let join = |left: &mut String, right: String| {
            *left = format!("({left} {right})");
            Ok::<(), ()>(())
        };
        let (mut start, mut whole) = (0, PartialSums::new(total));
        for &end in ends {
            let mut own = PartialSums::new(total);
            for shard in start..end {
                own.push_shard(shard, shard.to_string(), join).unwrap();
            }
            let nodes = nodes_of(start..end, total);
            let sums = own.into_sums();
            assert_eq!(sums.iter().map(|(node, _)| *node).collect::<Vec<_>>(), nodes);
            for (node, sum) in sums {
                whole.push(node, sum, join).unwrap();
            }
            start = end;
        }
        whole.into_root().expect("all shards were there")
    }

    #[test]
    fn the_order_of_additions_does_not_depend_on_who_has_which_shards() {
        assert_eq!(order(8, &[8]), "(((0 1) (2 3)) ((4 5) (6 7)))");
        assert_eq!(order(6, &[6]), "(((0 1) (2 3)) (4 5))");
        assert_eq!(order(1, &[1]), "0");
        for total in 1..=9 {
            let whole = order(total, &[total]);
            for first in 0..=total {
                for second in first..=total {
                    assert_eq!(order(total, &[first, second, total]), whole, "{total} shards, split at {first} and {second}");
                }
            }
        }
    }

    #[test]
    fn a_missing_shard_leaves_no_root() {
        let mut sums = PartialSums::new(4);
        for shard in [0, 1, 3] {
            sums.push_shard(shard, (), |(), ()| Ok::<(), ()>(())).unwrap();
        }
        assert_eq!(sums.into_root(), None);
    }
}
