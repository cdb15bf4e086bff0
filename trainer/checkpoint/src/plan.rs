//! Which tensor goes into which shard. Pure: every member computes the same plan from the same tensors.

use std::{cmp::Reverse, collections::BinaryHeap};

use crate::tensor::TensorSpec;

/// Bytes a shard should have: small enough that a few threads (or members) share the work evenly, large enough that a file's fixed
/// cost (an fsync, a request) does not count.
const TARGET_SHARD_BYTES: u64 = 128 << 20;

/// More files than this help nobody: at this number and [`TARGET_SHARD_BYTES`] the state has 128 GiB.
const MOST_SHARDS: usize = 1024;

/// Shards for a state of this many bytes when nobody asks for a number.
#[must_use]
pub fn default_shard_count(total_bytes: u64) -> usize {
    usize::try_from(total_bytes.div_ceil(TARGET_SHARD_BYTES)).unwrap_or(MOST_SHARDS).clamp(1, MOST_SHARDS)
}

/// Distributes whole tensors over `count` shards (at least one, at most one per tensor), balanced by bytes.
///
/// Returns the indices into `tensors` of each shard, ascending. Largest first, each to the shard with the fewest bytes so far: the
/// fullest shard exceeds the emptiest by at most the largest tensor. Ties are broken by name, so the assignment of a tensor does not
/// depend on the order of `tensors`.
#[must_use]
pub fn plan_shards(tensors: &[TensorSpec], count: usize) -> Vec<Vec<usize>> {
    let count = count.clamp(1, tensors.len().max(1));
    let mut order: Vec<(u64, &str, usize)> = tensors
        .iter()
        .enumerate()
        .map(|(index, tensor)| (tensor.byte_len().map_or(u64::MAX, |bytes| bytes as u64), tensor.name.as_str(), index))
        .collect();
    order.sort_unstable_by_key(|&(bytes, name, _)| (Reverse(bytes), name));

    let mut shards = vec![Vec::new(); count];
    // (bytes, tensors, shard): the number of tensors breaks ties, so that tensors without bytes are spread too and no shard is empty.
    let mut loads: BinaryHeap<Reverse<(u64, usize, usize)>> = (0..count).map(|shard| Reverse((0, 0, shard))).collect();
    for (bytes, _, index) in order {
        let Some(Reverse((load, held, shard))) = loads.pop() else { break };
        if let Some(shard) = shards.get_mut(shard) {
            shard.push(index);
        }
        loads.push(Reverse((load.saturating_add(bytes), held + 1, shard)));
    }
    for shard in &mut shards {
        shard.sort_unstable();
    }
    shards
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use safetensors::Dtype;

    use super::*;

    fn spec(name: usize, elements: usize) -> TensorSpec {
        TensorSpec { name: format!("t{name}"), shape: vec![elements], dtype: Dtype::F32 }
    }

    fn bytes(tensors: &[TensorSpec], shard: &[usize]) -> usize {
        shard.iter().map(|&index| tensors[index].byte_len().unwrap()).sum()
    }

    #[test]
    fn a_gigabyte_takes_eight_shards() {
        assert_eq!(default_shard_count(0), 1);
        assert_eq!(default_shard_count(1 << 30), 8);
        assert_eq!(default_shard_count(u64::MAX), MOST_SHARDS);
    }

    proptest! {
        #[test]
        fn a_plan_is_complete_balanced_and_independent_of_order(
            sizes in prop::collection::vec(0_usize..5000, 1..60), count in 0_usize..70, rotation in 0_usize..60
        ) {
            let tensors: Vec<TensorSpec> = sizes.iter().enumerate().map(|(index, &size)| spec(index, size)).collect();
            let plan = plan_shards(&tensors, count);

            prop_assert_eq!(plan.len(), count.clamp(1, tensors.len()));
            prop_assert!(plan.iter().all(|shard| !shard.is_empty() && shard.is_sorted()));
            let mut seen: Vec<usize> = plan.iter().flatten().copied().collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..tensors.len()).collect::<Vec<_>>());

            let loads: Vec<usize> = plan.iter().map(|shard| bytes(&tensors, shard)).collect();
            let largest = tensors.iter().filter_map(TensorSpec::byte_len).max().unwrap();
            prop_assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= largest);

            let mut rotated = tensors.clone();
            rotated.rotate_left(rotation % tensors.len());
            let names = |tensors: &[TensorSpec], plan: &[Vec<usize>]| -> Vec<Vec<String>> {
                plan.iter().map(|shard| {
                    let mut names: Vec<String> = shard.iter().map(|&index| tensors[index].name.clone()).collect();
                    names.sort();
                    names
                }).collect()
            };
            prop_assert_eq!(names(&rotated, &plan_shards(&rotated, count)), names(&tensors, &plan));
        }
    }
}
