//! What a process computes of a step: its slots, and their rows, prepared for the learner.

use lcl_data::{Batch, Orders, Slots};
use lcl_protocol::Plan;
use lcl_torch::{
    Counts, Device, Learner, LearnerError, MemberStep, PreparedRows, PreparedShards, StepReport, emulates_bfloat16, machine, set_threads,
    shards_of, shim::runtime::set_deterministic,
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

/// The rows of a process in a step: of all of its slots, in exact mode of each of its virtual shards.
pub(super) struct OwnRows {
    rows: Vec<PreparedRows>,
    keep_activations: bool,
}

impl OwnRows {
    /// Of `batch`, which has the slots of member `rank` of `world`.
    pub(super) fn prepare(
        learner: &mut Learner,
        batch: &Batch,
        (rank, world): (usize, usize),
        (config, order): (&TrainerConfig, &Orders),
    ) -> Result<Self, TrainError> {
        let optimization = &config.optimization;
        let cap = optimization.micro_batch_size;
        let target = Target { image_size: config.model.shape.vision.image_size, cap, device: learner.model().device(), order };
        learner.set_sources(order.names().len());
        let parts: Vec<_> = match optimization.exact {
            None => std::iter::once(0..optimization.global_batch_size).collect(),
            Some(exact) => {
                let size = shard_size(optimization, exact);
                let shards = shards_of(rank, world, exact.virtual_shards as usize);
                shards.map(|shard| shard as u64 * size..(shard as u64 + 1) * size).collect()
            }
        };
        let prepare = |slots| Ok(learner.prepare(&micro_batches(batch, slots, target)?)?);
        let rows = parts.into_iter().map(prepare).collect::<Result<_, TrainError>>()?;
        Ok(Self { rows, keep_activations: cap.is_none_or(|cap| batch.rows.len() as u64 <= cap) })
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
                learner.train_prepared_exactly(step, PreparedShards { shards, total, keep_activations: self.keep_activations }, member)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use lcl_protocol::{Division, Generation, Role};

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
        optimization.exact = Some(ExactConfig { virtual_shards: 4, threads: 1 });
        assert_eq!(all(&optimization), [0..12, 12..18, 18..24].map(Slots::from));
    }
}
