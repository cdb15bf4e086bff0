//! What a process computes of a step: its slots, and their rows, prepared for the learner.

use std::ops::Range;

use lcl_data::{Batch, Orders, Slots};
use lcl_protocol::{Generation, Plan};
use lcl_torch::{
    Counts, Device, Learner, LearnerError, MemberStep, PreparedRows, PreparedShards, RowPreparer, StepReport, Verified, emulates_bfloat16,
    machine, set_threads, shards_of, shim::runtime::set_deterministic,
};
use lcl_trainer_config::{ExactConfig, OptimizationConfig, Precision, TrainerConfig};

use super::{
    TrainError,
    tensors::{Target, micro_batches},
};

/// Slots of the global batch that the member of this plan computes: those of its seat, and its part of those of empty seats. In exact mode
/// they are whole virtual shards, consecutive in rank order, since sums are made along a tree of them.
pub(super) fn slots(optimization: &OptimizationConfig, plan: &Plan) -> Slots {
    let Some(exact) = optimization.exact else { return plan.division.slots_of(plan.seat, optimization.global_batch_size).into() };
    let shards = shards_of(plan.rank as usize, plan.world.max(1) as usize, exact.virtual_shards as usize);
    let size = shard_size(optimization, exact);
    (shards.start as u64 * size..shards.end as u64 * size).into()
}

fn shard_size(optimization: &OptimizationConfig, exact: ExactConfig) -> u64 {
    optimization.global_batch_size / u64::from(exact.virtual_shards.max(1))
}

/// A virtual shard that a second member computes, too, so that both compare its bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Second {
    shard: usize,
    /// The second member.
    pub(super) rank: usize,
    /// The shard's slots.
    pub(super) slots: Range<u64>,
}

/// The one of a step, if there is one: each shard in turn. Who is the second changes with the generation, so that a step that is done again is
/// verified by another pair where there are more than two members.
pub(super) fn second_of(optimization: &OptimizationConfig, step: u64, world: usize, generation: Generation) -> Option<Second> {
    let exact = optimization.exact?;
    let every = exact.verify_every_steps.filter(|every| world > 1 && step.is_multiple_of(*every))?;
    let total = exact.virtual_shards as usize;
    let shard = ((step / every) % u64::from(exact.virtual_shards.max(1))) as usize;
    let owner = (0..world).find(|rank| shards_of(*rank, world, total).contains(&shard))?;
    let others = (world - 1) as u64;
    let rank = (owner + 1 + (generation.n % others) as usize) % world;
    let size = shard_size(optimization, exact);
    Some(Second { shard, rank, slots: shard as u64 * size..(shard as u64 + 1) * size })
}

/// Sets what the whole process computes with.
pub(super) fn prepare_process(config: &TrainerConfig) -> Result<(), TrainError> {
    let exact = config.optimization.exact;
    set_threads(exact.map(|exact| exact.threads as usize).or(config.runtime.threads))?;
    if exact.is_some() {
        set_deterministic(true).map_err(|source| TrainError::Deterministic { source: source.into() })?;
    }
    Ok(())
}

/// What the bits of this process's results depend on; `None` where they do not have to be the same everywhere. After [`prepare_process`].
pub(super) fn machine_of(config: &TrainerConfig, device: Device) -> Result<Option<String>, TrainError> {
    Ok(config.optimization.exact.is_some().then(|| machine(device)).transpose()?)
}

/// Bytes of a checkpoint's tensors: weights and both moments.
pub(super) fn checkpoint_bytes(learner: &Learner) -> u64 {
    let elements = |sizes: Vec<i64>| sizes.iter().map(|size| *size as u64).product::<u64>();
    learner.state().iter().map(|(_, tensor)| elements(tensor.size()) * size_of::<f32>() as u64).sum()
}

/// Says so when steps will take far longer than they have to.
pub(super) fn warn_of_slow_precision(config: &TrainerConfig, device: Device) -> Result<(), TrainError> {
    if config.model.precision == Precision::Bfloat16 && emulates_bfloat16(device)? {
        tracing::warn!(
            "spec.model.precision is bfloat16, which this machine can only emulate: steps take many times as long as with float32"
        );
    }
    Ok(())
}

/// What batches become rows by; needs no learner, which may be computing.
#[derive(Clone, Copy)]
pub(super) struct RowMaker<'a> {
    pub(super) preparer: &'a RowPreparer,
    pub(super) device: Device,
    pub(super) config: &'a TrainerConfig,
    pub(super) order: &'a Orders,
}

impl RowMaker<'_> {
    fn rows(&self, batch: &Batch, slots: Range<u64>) -> Result<PreparedRows, TrainError> {
        let cap = self.config.optimization.micro_batch_size;
        let target = Target { image_size: self.config.model.shape.vision.image_size, cap, device: self.device, order: self.order };
        Ok(self.preparer.prepare(&micro_batches(batch, slots, target)?)?)
    }
}

/// The rows of a process in a step: of all of its slots, in exact mode of each of its virtual shards.
pub(super) struct OwnRows {
    rows: Vec<PreparedRows>,
    keep_activations: bool,
    /// A shard that two members compute, with its rows on the second one.
    second: Option<(usize, Option<PreparedRows>)>,
}

impl OwnRows {
    /// Of `batch`, which has the slots of member `rank` of `world`.
    pub(super) fn prepare(maker: RowMaker<'_>, batch: &Batch, (rank, world): (usize, usize)) -> Result<Self, TrainError> {
        let optimization = &maker.config.optimization;
        let cap = optimization.micro_batch_size;
        let parts: Vec<_> = match optimization.exact {
            None => std::iter::once(0..optimization.global_batch_size).collect(),
            Some(exact) => {
                let size = shard_size(optimization, exact);
                let shards = shards_of(rank, world, exact.virtual_shards as usize);
                shards.map(|shard| shard as u64 * size..(shard as u64 + 1) * size).collect()
            }
        };
        let rows = parts.into_iter().map(|slots| maker.rows(batch, slots)).collect::<Result<_, TrainError>>()?;
        Ok(Self { rows, keep_activations: cap.is_none_or(|cap| batch.rows.len() as u64 <= cap), second: None })
    }

    /// In this step a shard is computed by two members; `batch`: what it has, on the second one.
    pub(super) fn verify(&mut self, second: &Second, batch: Option<&Batch>, maker: RowMaker<'_>) -> Result<(), TrainError> {
        let rows = batch.map(|batch| maker.rows(batch, second.slots.clone())).transpose()?;
        self.second = Some((second.shard, rows));
        Ok(())
    }

    /// What their losses are sums over.
    pub(super) fn counts(&self) -> Vec<Counts> {
        self.rows.iter().map(PreparedRows::counts).collect()
    }

    /// One step; alone without `member`.
    pub(super) fn train(
        &self,
        learner: &mut Learner,
        step: u64,
        exact: Option<ExactConfig>,
        member: Option<MemberStep<'_>>,
    ) -> Result<StepReport, LearnerError> {
        match (exact, self.rows.as_slice()) {
            (None, [rows]) => learner.train_prepared(step, rows, member),
            (exact, shards) => {
                let total = exact.map_or(shards.len(), |exact| exact.virtual_shards as usize);
                let verified = self.second.as_ref().map(|(shard, rows)| Verified { shard: *shard, rows: rows.as_ref() });
                learner.train_prepared_exactly(
                    step,
                    PreparedShards { shards, total, keep_activations: self.keep_activations, verified },
                    member,
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use lcl_protocol::{Division, Role};

    use super::*;
    use crate::test_support::tiny_config;

    #[test]
    fn a_member_has_the_slots_of_its_seat_and_in_exact_mode_whole_shards_by_its_rank() {
        let mut optimization = tiny_config().optimization;
        optimization.global_batch_size = 24;
        // Rank 0 sits behind the others, and a seat is empty.
        let plan = |rank: u32| Plan {
            generation: Generation { epoch: 1, n: 1 },
            rank,
            world: 3,
            division: Division::new(4, std::iter::once(1..2).collect()).unwrap(),
            seat: [3, 0, 2][rank as usize],
            list_digest: 0,
            base: None,
            role: Role::Level,
            lost: Vec::new(),
            further_losses: 0,
        };
        let all = |optimization: &OptimizationConfig| [0, 1, 2].map(|rank| slots(optimization, &plan(rank)));
        assert_eq!(all(&optimization), [vec![10..12, 18..24].into(), (0..8).into(), vec![8..10, 12..18].into()]);
        optimization.exact = Some(ExactConfig { virtual_shards: 4, threads: 1, verify_every_steps: None });
        assert_eq!(all(&optimization), [0..12, 12..18, 18..24].map(Slots::from));
    }

    #[test]
    fn each_shard_has_its_turn_and_its_second_member_is_never_its_owner() {
        let mut optimization = tiny_config().optimization;
        optimization.global_batch_size = 24;
        let at = |optimization: &OptimizationConfig, step, world, n| second_of(optimization, step, world, Generation { epoch: 1, n });
        assert_eq!(at(&optimization, 0, 3, 1), None, "not in exact mode");
        optimization.exact = Some(ExactConfig { virtual_shards: 4, threads: 1, verify_every_steps: None });
        assert_eq!(at(&optimization, 0, 3, 1), None);
        optimization.exact = Some(ExactConfig { virtual_shards: 4, threads: 1, verify_every_steps: Some(5) });
        assert_eq!(at(&optimization, 6, 3, 1), None);
        assert_eq!(at(&optimization, 5, 1, 1), None, "nobody else is there");
        // Ranks have shards 0 and 1, 2, 3.
        let found: Vec<_> = [0, 5, 10, 15, 20].map(|step| at(&optimization, step, 3, 2)).into_iter().flatten().collect();
        assert_eq!(found.iter().map(|second| (second.shard, second.rank)).collect::<Vec<_>>(), [(0, 1), (1, 1), (2, 2), (3, 0), (0, 1)]);
        assert_eq!(found[1].slots, 6..12);
        assert_eq!(at(&optimization, 5, 3, 3).map(|second| second.rank), Some(2), "another one when the step is done again");
        assert_eq!([1, 2].map(|n| at(&optimization, 5, 2, n).map(|second| second.rank)), [Some(1); 2]);
    }
}
