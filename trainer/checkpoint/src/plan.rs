//! Which tensor goes into which shard, and who writes it. Pure: every member computes the same plan from the same tensors.

use std::{cmp::Reverse, collections::BinaryHeap, num::NonZeroUsize};

use crate::{id::shard_file_name, tensor::TensorSpec};

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

/// Who writes which tensors of a state into which files. Equal on all members that make it from the same state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WritePlan {
    tensors: Vec<TensorSpec>,
    shards: Vec<PlannedShard>,
    writers: usize,
}

/// A file of a [`WritePlan`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedShard {
    /// Who writes it.
    pub writer: usize,
    /// Indices of its tensors, ascending.
    pub tensors: Vec<usize>,
}

impl WritePlan {
    /// Distributes whole tensors over the writers, balanced by bytes, and each writer's over `shards_each` files (`None`: one per
    /// 128 MiB). When there are fewer tensors than writers, the last ones have nothing to write.
    #[must_use]
    pub fn new(tensors: Vec<TensorSpec>, writers: NonZeroUsize, shards_each: Option<NonZeroUsize>) -> Self {
        let mut shards = Vec::new();
        for (writer, part) in plan_shards(&tensors, writers.get()).into_iter().enumerate() {
            let own: Vec<TensorSpec> = part.iter().filter_map(|&index| tensors.get(index).cloned()).collect();
            let bytes = own.iter().filter_map(TensorSpec::byte_len).map(|bytes| bytes as u64).sum();
            let count = shards_each.map_or_else(|| default_shard_count(bytes), NonZeroUsize::get);
            for files in plan_shards(&own, count) {
                let tensors = files.into_iter().filter_map(|index| part.get(index).copied()).collect();
                shards.push(PlannedShard { writer, tensors });
            }
        }
        Self { tensors, shards, writers: writers.get() }
    }

    /// All tensors, in the order in which restore gives them back.
    #[must_use]
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    /// All files.
    #[must_use]
    pub fn shards(&self) -> &[PlannedShard] {
        &self.shards
    }

    /// How many share the work.
    #[must_use]
    pub fn writers(&self) -> usize {
        self.writers
    }

    /// The tensors of one writer.
    pub fn tensors_of(&self, writer: usize) -> impl Iterator<Item = &TensorSpec> {
        self.shards_of(writer).flat_map(|(_, shard)| &shard.tensors).filter_map(|&index| self.tensors.get(index))
    }

    /// The files of one writer with their numbers.
    pub fn shards_of(&self, writer: usize) -> impl Iterator<Item = (usize, &PlannedShard)> {
        self.shards.iter().enumerate().filter(move |(_, shard)| shard.writer == writer)
    }

    /// The same for equal plans only: how members find out that they did not plan the same.
    pub(crate) fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for TensorSpec { name, shape, dtype } in &self.tensors {
            hasher.update(format!("{name:?} {shape:?} {dtype}\n").as_bytes());
        }
        for (index, PlannedShard { writer, tensors }) in self.shards.iter().enumerate() {
            hasher.update(format!("{} {writer} {tensors:?}\n", shard_file_name(index, self.shards.len())).as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }
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

        #[test]
        fn a_plan_gives_every_tensor_to_one_writer_evenly_and_is_the_same_on_all(
            sizes in prop::collection::vec(0_usize..5000, 1..60), writers in 1_usize..20, each in prop::option::of(1_usize..4)
        ) {
            let tensors: Vec<TensorSpec> = sizes.iter().enumerate().map(|(index, &size)| spec(index, size)).collect();
            let make = || WritePlan::new(tensors.clone(), NonZeroUsize::new(writers).unwrap(), each.and_then(NonZeroUsize::new));
            let plan = make();
            prop_assert_eq!(&plan, &make());
            prop_assert_eq!(plan.digest(), make().digest());

            let mut seen: Vec<&str> = (0..writers).flat_map(|writer| plan.tensors_of(writer)).map(|tensor| tensor.name.as_str()).collect();
            seen.sort_unstable();
            let mut all: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
            all.sort_unstable();
            prop_assert_eq!(seen, all);
            prop_assert!(plan.shards().iter().all(|shard| shard.writer < writers && !shard.tensors.is_empty()));
            prop_assert_eq!((0..writers).map(|writer| plan.shards_of(writer).count()).sum::<usize>(), plan.shards().len());

            // As far as there are tensors for all, nobody has more than the others by more than one tensor.
            let load = |writer| plan.tensors_of(writer).map(|tensor| tensor.byte_len().unwrap()).sum::<usize>();
            let loads: Vec<usize> = (0..writers.min(tensors.len())).map(load).collect();
            let largest = tensors.iter().filter_map(TensorSpec::byte_len).max().unwrap();
            prop_assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= largest);
        }

        #[test]
        fn plans_of_other_members_or_states_have_other_digests(sizes in prop::collection::vec(1_usize..50, 4..20), change in 0_usize..3) {
            let mut tensors: Vec<TensorSpec> = sizes.iter().enumerate().map(|(index, &size)| spec(index, size)).collect();
            let writers = NonZeroUsize::new(3).unwrap();
            let plan = WritePlan::new(tensors.clone(), writers, None);
            let other = match change {
                0 => WritePlan::new(tensors, NonZeroUsize::MIN.saturating_add(1), None),
                1 => {
                    tensors[0].shape.push(1);
                    WritePlan::new(tensors, writers, None)
                }
                _ => {
                    tensors[1].name.push('x');
                    WritePlan::new(tensors, writers, None)
                }
            };
            prop_assert_ne!(plan.digest(), other.digest());
        }
    }
}
