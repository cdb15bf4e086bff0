//! Training steps of several members against the same step of one.

use std::sync::Barrier;

use lcl_torch::{Kind, Learner, LearnerError, MemberStep, MicroBatch, Tensor, collectives::Group};
use lcl_trainer_config::{GradientCompression, Normalization, Objective, TrainerConfig};

use crate::{
    TIMEOUT, as_members,
    support::{ROWS, SOURCES, batch, config, distance, learner_of_kind},
};

/// A member's micro-batches, each a list of rows.
type Rows = &'static [(&'static str, u64)];
type Share = &'static [Rows];

/// Members with uneven rows, several micro-batches, no image, no rows, and none at all.
pub(crate) const SPLITS: [&[Share]; 6] = [
    &[&[&ROWS]],
    &[&[ROWS.split_at(3).0], &[ROWS.split_at(3).1]],
    // Rank 0 has three micro-batches, the last without an image; rank 1 one.
    &[&[ROWS.split_at(2).0, LATE, TEXT], &[EARLY]],
    // Rank 0 has no image at all.
    &[&[TEXT], &[ROWS.split_at(3).0, ROWS.split_at(4).1]],
    // Rank 1 has nothing, rank 0 an empty micro-batch at the end.
    &[&[&ROWS, &[]], &[]],
    &[&[ROWS.split_at(3).0], &[TEXT], &[ROWS.split_at(4).1]],
];
const TEXT: Rows = ROWS.split_at(3).1.split_at(1).0;
const LATE: Rows = ROWS.split_at(6).1;
const EARLY: Rows = &[ROWS[2], ROWS[4], ROWS[5]];

pub(crate) fn batches(share: Share) -> Vec<MicroBatch> {
    share.iter().map(|rows| batch(rows)).collect()
}

pub(crate) fn member(group: &mut Group) -> MemberStep<'_> {
    let wish = 10 + group.rank() as i64;
    MemberStep { group, wish, counts: None, timeout: TIMEOUT }
}

/// Gradients that live on without their learner, and pass between threads.
type Gradients = Vec<(String, Tensor)>;

fn copies(learner: &Learner) -> Gradients {
    learner.gradients().into_iter().map(|(name, gradient)| (name.to_owned(), gradient.copy())).collect()
}

fn apart(found: &Gradients, expected: &Gradients) -> f64 {
    let view = |gradients: &Gradients| gradients.iter().map(|(_, tensor)| ("", tensor.shallow_clone())).collect::<Vec<_>>();
    distance(&view(found), &view(expected))
}

fn same_bits(found: &Gradients, expected: &Gradients) -> bool {
    found.len() == expected.len() && found.iter().zip(expected).all(|((_, a), (_, b))| a.equal(b))
}

/// Gradients, losses and counts of the split step against those of the whole batch on one member.
fn check(config: &TrainerConfig, kind: Kind, split: &'static [Share], tolerance: f64) {
    let learner_of_kind = |config: &TrainerConfig, kind| {
        let mut learner = learner_of_kind(config, kind);
        learner.set_sources(SOURCES);
        learner
    };
    let mut alone = learner_of_kind(config, kind);
    let whole = alone.compute_gradients(3, &[batch(&ROWS)]).expect("one member");
    let expected = copies(&alone);
    let found = as_members(split.len(), |group| {
        let mut learner = learner_of_kind(config, kind);
        let share = batches(split[group.rank()]);
        // Twice: after the first step the Reducer orders its buckets anew.
        [0, 1].map(|_| {
            let (losses, agreement) = learner.compute_gradients_with(3, &share, member(group)).expect("gradients");
            assert_eq!(agreement.wishes, (10..10 + split.len() as i64).collect::<Vec<_>>());
            (losses, copies(&learner))
        })
    });
    for (rank, rounds) in found.iter().enumerate() {
        for (round, (losses, gradients)) in rounds.iter().enumerate() {
            let apart = apart(gradients, &expected);
            println!("{kind:?}, {} members, rank {rank}, round {round}: {apart:.2e}", split.len());
            assert_eq!((losses.contrastive_images, losses.generation_positions), (whole.contrastive_images, whole.generation_positions));
            let sources = losses.sources.iter().flat_map(|source| [source.generation, source.contrastive]);
            let expected = whole.sources.iter().flat_map(|source| [source.generation, source.contrastive]);
            let of_sources = sources.zip(expected).map(|(found, expected)| {
                assert_eq!(found.count, expected.count);
                (found.sum, expected.sum)
            });
            let of_all = [(losses.total, whole.total), (losses.generation, whole.generation), (losses.contrastive, whole.contrastive)];
            for (found, expected) in of_all.into_iter().chain(of_sources) {
                assert!((found - expected).abs() <= tolerance * expected.abs(), "{losses:?} {whole:?}");
            }
            assert!(apart <= tolerance, "{kind:?}, {split:?}, rank {rank}, round {round}: gradients differ by {apart:e}");
            assert!(same_bits(gradients, &found[0][round].1) && *losses == found[0][round].0, "all members have the same bits");
        }
    }
}

#[test]
fn members_compute_what_one_member_computes() {
    for split in SPLITS {
        check(&config(), Kind::Double, split, 1e-12);
        check(&config(), Kind::Float, split, 1e-6);
    }
}

#[test]
fn compressed_gradients_are_near_the_others_the_same_on_all_members_and_half_the_bytes() {
    let train = |compression| {
        let mut config = config();
        config.optimization.gradient_compression = compression;
        let all = Barrier::new(2);
        // While nobody sends.
        let received = |group: &Group| {
            all.wait();
            let bytes = group.received_bytes().expect("open connections");
            all.wait();
            bytes
        };
        // Two: of three in one process each would find connections between the other two, and count them, too.
        as_members(2, |group| {
            let mut learner = learner_of_kind(&config, Kind::Float);
            let share = batches(SPLITS[1][group.rank()]);
            // After the first step the Reducer orders its buckets anew, and exchanges the order before the second.
            learner.compute_gradients_with(3, &share, member(group)).expect("gradients");
            learner.compute_gradients_with(3, &share, member(group)).expect("gradients");
            let before = received(group);
            learner.compute_gradients_with(3, &share, member(group)).expect("gradients");
            let after = received(group);
            (copies(&learner), after - before)
        })
    };
    let (plain, compressed) = (train(GradientCompression::None), train(GradientCompression::Bf16));
    for (rank, ((whole, whole_bytes), (halved, halved_bytes))) in plain.iter().zip(&compressed).enumerate() {
        let apart = apart(halved, whole);
        let part = *halved_bytes as f64 / *whole_bytes as f64;
        println!("rank {rank}: {apart:.2e}, {halved_bytes} of {whole_bytes} bytes");
        assert!((1e-5..1e-2).contains(&apart), "rank {rank}: {apart:e}");
        // Counts, features and losses travel as they are.
        assert!((0.5..0.55).contains(&part), "rank {rank}: {part}");
        assert!(same_bits(halved, &compressed[0].0), "rank {rank} has other bits than rank 0");
        assert!(halved.iter().all(|(_, gradient)| gradient.kind() == Kind::Float));
    }
}

#[test]
fn members_agree_with_one_member_under_activation_checkpointing() {
    let mut config = config();
    config.model.activation_checkpointing = true;
    for split in SPLITS {
        check(&config, Kind::Double, split, 1e-12);
    }
}

#[test]
fn per_rank_normalisation_is_what_one_process_computes_for_those_members() {
    let mut config = config();
    let mut alone = learner_of_kind(&config, Kind::Double);
    alone.set_sources(SOURCES);
    let global = alone.compute_gradients(3, &[batch(&ROWS)]).expect("one member");
    config.optimization.normalization = Normalization::PerRank;
    for split in SPLITS {
        let shares: Vec<Vec<MicroBatch>> = split.iter().map(|share| batches(share)).collect();
        let mut together = learner_of_kind(&config, Kind::Double);
        let members: Vec<&[MicroBatch]> = shares.iter().map(Vec::as_slice).collect();
        let expected = together.compute_gradients_of_members(3, &members).expect("one process");
        let gradients = copies(&together);
        let found = as_members(split.len(), |group| {
            let mut learner = learner_of_kind(&config, Kind::Double);
            let share = batches(split[group.rank()]);
            learner.set_sources(SOURCES);
            let (losses, _) = learner.compute_gradients_with(3, &share, member(group)).expect("gradients");
            (losses, copies(&learner))
        });
        for (losses, found) in found {
            let (total, apart) = (losses.total, apart(&found, &gradients));
            assert!((total - expected.total).abs() <= 1e-12 * expected.total && apart <= 1e-12, "{total} {expected:?} {apart:e}");
            // A source's are of all its terms, whichever members they are on.
            for (found, expected) in losses.sources.iter().zip(&global.sources) {
                let pairs = [(found.generation, expected.generation), (found.contrastive, expected.contrastive)];
                assert!(
                    pairs
                        .iter()
                        .all(|(found, expected)| found.count == expected.count && (found.sum - expected.sum).abs() <= 1e-12 * expected.sum),
                    "{found:?} {expected:?}"
                );
            }
        }
    }
}

#[test]
fn no_contrastive_image_anywhere_gives_zero_and_the_clip_objective_works() {
    let rows: [Rows; 2] = [&[("t5", 0)], &[("sot t4 eot", 1), ("t2", 2)]];
    let found = as_members(2, |group| {
        let mut learner = learner_of_kind(&config(), Kind::Float);
        let (report, _) = learner.train_step_with(0, &[batch(rows[group.rank()])], member(group)).expect("a step");
        (report, learner.state_hash().expect("a hash"))
    });
    assert_eq!(found[0], found[1]);
    assert_eq!((found[0].0.contrastive, found[0].0.contrastive_images, found[0].0.skipped), (0.0, 0, false));
    let mut clip = config();
    clip.model.objective = Objective::Clip;
    let pairs = [("sot t3 eot", 0), ("sot t9 eot", 1), ("sot t1 eot", 2)];
    // With the CLIP objective the image of a row is not in its text.
    let with_images = |rows: &[(&'static str, u64)]| {
        let pictures: Vec<_> = rows.iter().map(|(_, slot)| ("image", *slot)).collect();
        MicroBatch { images: batch(&pictures).images, image_rows: None, ..batch(rows) }
    };
    let mut alone = learner_of_kind(&clip, Kind::Double);
    let expected = alone.compute_gradients(0, &[with_images(&pairs)]).expect("one member");
    let gradients = copies(&alone);
    let found = as_members(2, |group| {
        let mut learner = learner_of_kind(&clip, Kind::Double);
        let own = if group.rank() == 0 { with_images(&pairs[..1]) } else { with_images(&pairs[1..]) };
        let (losses, _) = learner.compute_gradients_with(0, &[own], member(group)).expect("gradients");
        assert!((losses.total - expected.total).abs() < 1e-12);
        copies(&learner)
    });
    assert!(found.iter().all(|found| apart(found, &gradients) < 1e-12));
}

#[test]
fn a_gradient_that_is_not_finite_on_one_member_is_skipped_by_all() {
    let skipped = as_members(2, |group| {
        let mut learner = learner_of_kind(&config(), Kind::Float);
        let before = learner.state_hash().expect("a hash");
        let own = batch(if group.rank() == 0 { &ROWS[..3] } else { &ROWS[3..] });
        if group.rank() == 1 {
            let _ = own.images.get(0).fill_(f64::NAN);
        }
        let (report, _) = learner.train_step_with(0, &[own], member(group)).expect("a step");
        report.skipped && learner.state_hash().expect("a hash") == before
    });
    assert_eq!(skipped, [true, true]);
}

/// A member that fails before or within a backward pass must not leave the other waiting, and nothing may be left to apply.
#[test]
fn an_error_on_one_member_ends_the_step_of_the_other_and_leaves_no_gradient() {
    let found = as_members(2, |group| {
        let rank = group.rank();
        let mut learner = learner_of_kind(&config(), Kind::Float);
        let before = learner.state_hash().expect("a hash");
        let good = batch(&ROWS[..3]);
        let own = if rank == 0 { good } else { MicroBatch { slots: vec![1], ..good } };
        let error = learner.compute_gradients_with(0, &[own], member(group)).expect_err("an error");
        assert!(!group.is_live());
        assert!(learner.gradients().iter().all(|(_, gradient)| !gradient.defined()), "no gradient is left");
        assert_eq!(learner.state_hash().expect("a hash"), before);
        // The learner goes on alone: hooks of the lost group are gone.
        learner.train_step(0, &[batch(&ROWS)]).expect("a step alone");
        matches!((rank, error), (0, LearnerError::Collective(_)) | (1, LearnerError::Batch { .. }))
    });
    assert_eq!(found, [true, true]);
}

#[test]
fn a_learner_can_change_between_groups_and_no_group() {
    let hashes = as_members(2, |group| {
        let (mut learner, mut other) = (learner_of_kind(&config(), Kind::Float), learner_of_kind(&config(), Kind::Float));
        let own = || batch(&ROWS[..4]);
        learner.train_step_with(0, &[own()], member(group)).expect("a step");
        // The group goes over to another learner and back; in between the first one steps alone.
        other.train_step_with(0, &[own()], member(group)).expect("a step");
        learner.train_step(1, &[own()]).expect("a step alone");
        learner.train_step_with(2, &[own()], member(group)).expect("a step");
        learner.state_hash().expect("a hash")
    });
    assert_eq!(hashes[0], hashes[1]);
}
