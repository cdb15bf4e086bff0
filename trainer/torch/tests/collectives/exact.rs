//! Exact mode: the same bits at every number of members.

use lcl_torch::{Kind, Learner, MicroBatch, OwnShards, PreparedRows, PreparedShards, SourceLosses, Verified, shards_of};
use lcl_trainer_config::{Precision, TrainerConfig};

use crate::{
    as_members,
    steps::member,
    support::{ROWS, SOURCES, batch, config, distance, gradients, learner_of_kind},
};

const SHARDS: usize = 8;
const STEPS: u64 = 20;

/// The step's global batch of 16 rows in 8 shards: pairs and documents of all kinds and lengths, one shard without an image, one of two
/// micro-batches.
fn shards(step: u64) -> Vec<Vec<MicroBatch>> {
    let row = |slot: u64| (ROWS[((slot * 5 + step) % 8) as usize].0, step * 16 + slot);
    let shard = |index: u64| match index {
        2 => vec![batch(&[("t17", step * 16 + 4), ("t6", step * 16 + 5)])],
        5 => vec![batch(&[row(10)]), batch(&[row(11)])],
        _ => vec![batch(&[row(2 * index), row(2 * index + 1)])],
    };
    (0..SHARDS as u64).map(shard).collect()
}

fn training(precision: Precision) -> TrainerConfig {
    let mut config = config();
    config.model.drop_path = 0.2;
    config.model.precision = precision;
    config.optimization.gradient_clip = Some(1.0);
    config
}

/// Steps `steps` on the shards of `rank`; a member where there is a group.
fn train(
    learner: &mut Learner,
    steps: std::ops::Range<u64>,
    mut group: Option<&mut lcl_torch::collectives::Group>,
    keep_activations: bool,
) -> Vec<SourceLosses> {
    learner.set_sources(SOURCES);
    let mut sources = Vec::new();
    for step in steps {
        let (rank, world) = group.as_ref().map_or((0, 1), |group| (group.rank(), group.world_size()));
        let all = shards(step);
        let own: Vec<&[MicroBatch]> = all[shards_of(rank, world, SHARDS)].iter().map(Vec::as_slice).collect();
        let share = OwnShards { shards: &own, total: SHARDS, keep_activations };
        let (report, agreement) = learner.train_step_exactly(step, share, group.as_deref_mut().map(member)).expect("a step");
        assert!(!report.skipped && report.contrastive > 0.0 && report.generation > 0.0, "{report:?}");
        if group.is_some() {
            assert_eq!(agreement.wishes, (10..10 + world as i64).collect::<Vec<_>>());
        }
        sources.extend(report.sources);
    }
    sources
}

/// Hash of the state after all steps, and every step's losses by source.
type Trained = (String, Vec<SourceLosses>);

fn train_all(config: &TrainerConfig, group: Option<&mut lcl_torch::collectives::Group>, keep_activations: bool) -> Trained {
    let mut learner = learner_of_kind(config, Kind::Float);
    let sources = train(&mut learner, 0..STEPS, group, keep_activations);
    (learner.state_hash().expect("a hash"), sources)
}

fn hash_alone(config: &TrainerConfig, keep_activations: bool) -> String {
    train_all(config, None, keep_activations).0
}

#[test]
fn the_result_has_the_same_bits_at_every_number_of_members() {
    for precision in [Precision::Float32, Precision::Bfloat16] {
        let config = training(precision);
        let alone = train_all(&config, None, false);
        assert_eq!(train_all(&config, None, true), alone, "{precision:?}: keeping activations changes the cost alone");
        for world in [1, 2, 3, 4, 5, 8] {
            let found = as_members(world, |group| train_all(&config, Some(group), world % 2 == 0));
            assert!(found.iter().all(|found| *found == alone), "{precision:?}, {world} members: {found:?}, alone {alone:?}");
        }
    }
}

#[test]
fn the_number_of_members_may_change_between_steps() {
    let config = training(Precision::Float32);
    let alone = hash_alone(&config, false);
    let hashes = as_members(3, |group| {
        let mut learner = learner_of_kind(&config, Kind::Float);
        train(&mut learner, 0..5, None, false);
        train(&mut learner, 5..STEPS, Some(group), false);
        learner.state_hash().expect("a hash")
    });
    assert!(hashes.iter().all(|hash| *hash == alone), "{hashes:?}, alone {alone}");
}

#[test]
fn it_is_the_step_of_fast_mode_up_to_rounding() {
    let config = training(Precision::Float32);
    for (kind, tolerance) in [(Kind::Double, 1e-12), (Kind::Float, 1e-6)] {
        let all = shards(3);
        let batches: Vec<MicroBatch> = shards(3).into_iter().flatten().collect();
        let mut fast = learner_of_kind(&config, kind);
        let whole = fast.compute_gradients(3, &batches).expect("gradients");
        let expected = gradients(&mut fast, 3, &batches);
        let own: Vec<&[MicroBatch]> = all.iter().map(Vec::as_slice).collect();
        let mut exact = learner_of_kind(&config, kind);
        let share = OwnShards { shards: &own, total: SHARDS, keep_activations: false };
        let (losses, _) = exact.compute_gradients_exactly(3, share, None).expect("gradients");
        let apart = distance(&exact.gradients(), &expected);
        assert!(apart <= tolerance, "{kind:?}: {apart:e}");
        assert!((losses.total - whole.total).abs() <= tolerance * whole.total, "{losses:?} {whole:?}");
        assert_eq!((losses.contrastive_images, losses.generation_positions), (whole.contrastive_images, whole.generation_positions));
    }
}

#[test]
fn shards_that_are_not_the_members_own_are_refused() {
    let config = training(Precision::Float32);
    let mut learner = learner_of_kind(&config, Kind::Float);
    let all = shards(0);
    let own: Vec<&[MicroBatch]> = all[..3].iter().map(Vec::as_slice).collect();
    let share = OwnShards { shards: &own, total: SHARDS, keep_activations: false };
    let error = learner.compute_gradients_exactly(0, share, None).expect_err("three of eight");
    assert!(error.to_string().contains("rank 0 of 1 has 3 of 8 virtual shards instead of 8"), "{error}");
}

/// Two of three members compute a shard; `faulty` has a flipped bit in its weights.
fn verify(shard: usize, second: usize, faulty: Option<usize>) -> Vec<Result<String, String>> {
    let config = training(Precision::Float32);
    as_members(3, |group| {
        let mut learner = learner_of_kind(&config, Kind::Float);
        if faulty == Some(group.rank()) {
            learner.flip_bit().expect("a bit");
        }
        learner.set_sources(SOURCES);
        let all = shards(0);
        let prepare = |batches: &Vec<MicroBatch>| learner.prepare(batches).expect("rows");
        let own: Vec<PreparedRows> = all[shards_of(group.rank(), 3, SHARDS)].iter().map(prepare).collect();
        let rows = (group.rank() == second).then(|| prepare(&all[shard]));
        let verified = Some(Verified { shard, rows: rows.as_ref() });
        let own = PreparedShards { shards: &own, total: SHARDS, keep_activations: true, verified };
        let result = learner.train_prepared_exactly(0, own, Some(member(group)));
        result.map_err(|error| error.to_string())?;
        Ok(learner.state_hash().expect("a hash"))
    })
}

#[test]
fn a_shard_that_a_second_member_computes_has_the_same_bits_there_and_changes_none_of_the_result() {
    let config = training(Precision::Float32);
    let mut alone = learner_of_kind(&config, Kind::Float);
    train(&mut alone, 0..1, None, false);
    let expected = Ok(alone.state_hash().expect("a hash"));
    // Shards 0 to 2 are rank 0's, 6 and 7 rank 2's.
    for (shard, second) in [(0, 2), (7, 0), (4, 2)] {
        let found = verify(shard, second, None);
        assert!(found.iter().all(|found| *found == expected), "shard {shard}: {found:?}");
    }
}

#[test]
fn a_shard_that_two_members_compute_differently_ends_the_step_on_all_and_names_both() {
    for (faulty, second) in [(0, 2), (2, 2)] {
        let found = verify(1, second, Some(faulty));
        let named = |found: &Result<String, String>| {
            found.as_ref().is_err_and(|error| error.contains("virtual shard 1 has other bits on rank 0 than on rank 2"))
        };
        assert!(found.iter().all(named), "{found:?}");
    }
    // Whose fault does not meet the shard is not found by it.
    assert!(verify(1, 2, Some(1)).iter().all(Result::is_ok));
}
