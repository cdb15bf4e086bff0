//! Properties of a training step that hold for any model: what may change the cost must not change the result.

mod state;
mod support;

use lcl_torch::{BatchError, Device, Kind, LearnerError, MicroBatch, Model, Tensor, parameter_count};
use lcl_trainer_config::{Objective, Precision, Preset, TrainerConfig};
use support::{ROWS, SOURCES, batch, config, distance, gradients, learner, learner_of_kind, source_of, split_rows};

/// Gradients and losses of the whole batch and of the same rows in micro-batches.
fn check_accumulation(config: &TrainerConfig, kind: Kind, whole: MicroBatch, parts: &[MicroBatch], tolerance: f64) {
    let (mut a, mut b) = (learner_of_kind(config, kind), learner_of_kind(config, kind));
    let at_once = a.compute_gradients(3, &[whole]).expect("at once");
    let in_parts = b.compute_gradients(3, parts).expect("in parts");
    assert_eq!((at_once.contrastive_images, at_once.generation_positions), (in_parts.contrastive_images, in_parts.generation_positions));
    assert!((at_once.total - in_parts.total).abs() <= tolerance * at_once.total.abs(), "{at_once:?} {in_parts:?}");
    let found = distance(&b.gradients(), &a.gradients());
    println!("accumulation, {kind:?}: {found:.2e}");
    assert!(found <= tolerance, "{kind:?}: gradients differ by {found:e}");
}

#[test]
fn accumulated_gradients_equal_those_of_the_whole_batch() {
    for (kind, tolerance) in [(Kind::Double, 1e-12), (Kind::Float, 5e-6)] {
        check_accumulation(&config(), kind, batch(&ROWS), &split_rows(), tolerance);
        let single: Vec<_> = ROWS.iter().map(|row| batch(&[*row])).collect();
        check_accumulation(&config(), kind, batch(&ROWS), &single, tolerance);
    }
}

#[test]
fn accumulation_holds_for_the_clip_objective_and_under_checkpointing() {
    let rows = [("sot t3 eot", 0), ("sot t9 eot", 1), ("sot t1 eot", 2)];
    // With the CLIP objective the image of a row is not in its text.
    let with_images = |rows: &[(&str, u64)]| {
        let pictures: Vec<_> = rows.iter().map(|(_, slot)| ("image", *slot)).collect();
        MicroBatch { images: batch(&pictures).images, image_rows: None, ..batch(rows) }
    };
    let mut clip = config();
    clip.model.objective = Objective::Clip;
    check_accumulation(&clip, Kind::Double, with_images(&rows), &[with_images(&rows[..1]), with_images(&rows[1..])], 1e-12);
    let mut checkpointing = config();
    checkpointing.model.activation_checkpointing = true;
    check_accumulation(&checkpointing, Kind::Double, batch(&ROWS), &split_rows(), 1e-12);
}

/// The losses of each source from what one row says of itself: its own cross-entropies, and its images among all of the batch.
#[test]
fn losses_by_source_are_those_of_its_rows_and_add_up_to_the_losses() {
    // What is looked at by hand has none.
    let mut config = config();
    config.model.drop_path = 0.0;
    let mut learner = learner_of_kind(&config, Kind::Double);
    let similarities = learner.inspect(&batch(&ROWS)).expect("outputs").similarities;
    let to_texts = similarities.log_softmax(1, Kind::Double).diagonal(0, 0, 1);
    let to_images = similarities.log_softmax(0, Kind::Double).diagonal(0, 0, 1);
    let terms = Vec::<f64>::try_from((to_texts + to_images) * -0.5).expect("numbers");
    // Images with something before them, by row.
    let images = [0, 1, 2, 0, 1, 2, 1, 1];
    let mut terms = terms.into_iter();
    let mut expected = [[(0.0, 0); 2]; SOURCES];
    for (row, images) in ROWS.iter().zip(images) {
        let alone = learner.compute_gradients(3, &[batch(&[*row])]).expect("one row");
        let of_row: Vec<f64> = terms.by_ref().take(images).collect();
        let [generation, contrastive] = &mut expected[source_of(row.1) as usize];
        generation.0 += alone.generation * alone.generation_positions as f64;
        generation.1 += alone.generation_positions;
        contrastive.0 += of_row.iter().sum::<f64>();
        contrastive.1 += of_row.len() as u64;
    }
    assert_eq!(terms.next(), None, "an image belongs to no row");
    let without = learner.compute_gradients(3, &[batch(&ROWS)]).expect("not told apart");
    assert_eq!(without.sources, []);
    learner.set_sources(SOURCES);
    for parts in [vec![batch(&ROWS)], split_rows()] {
        let losses = learner.compute_gradients(3, &parts).expect("told apart");
        assert!((losses.total - without.total).abs() <= 1e-12 * without.total);
        let found: Vec<_> = losses.sources.iter().map(|source| [source.generation, source.contrastive]).collect();
        for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
            assert_eq!(found.count, expected.1);
            assert!((found.sum - expected.0).abs() <= 1e-12 * expected.0, "{found:?} {expected:?}");
        }
        for (kind, mean) in [losses.generation, losses.contrastive].into_iter().enumerate() {
            let (sum, count) = found.iter().fold((0.0, 0), |(sum, count), source| (sum + source[kind].sum, count + source[kind].count));
            assert!((sum / count as f64 - mean).abs() <= 1e-12 * mean);
        }
        assert_eq!((found[2][0].mean(), found[2][1].mean()), (None, None), "no row is of the last source");
    }
    let wrong = MicroBatch { sources: vec![3; ROWS.len()], ..batch(&ROWS) };
    let error = learner.compute_gradients(3, &[wrong]).expect_err("there are three");
    let LearnerError::Batch { source, .. } = error else { panic!("{error:?}") };
    assert!(source.to_string().contains("every row needs one of the 3"), "{source}");
}

#[test]
fn activation_checkpointing_does_not_change_gradients() {
    let mut checkpointing = config();
    checkpointing.model.activation_checkpointing = true;
    for (kind, tolerance) in [(Kind::Double, 1e-14), (Kind::Float, 1e-7)] {
        let (mut plain, mut recomputing) = (learner_of_kind(&config(), kind), learner_of_kind(&checkpointing, kind));
        let found = distance(&gradients(&mut recomputing, 5, &[batch(&ROWS)]), &gradients(&mut plain, 5, &[batch(&ROWS)]));
        assert!(found <= tolerance, "{kind:?}: {found:e}");
    }
}

#[test]
fn drop_path_changes_with_the_step_and_is_off_when_encoding() {
    let mut learner = learner(&config());
    let first = gradients(&mut learner, 0, &[batch(&ROWS)]).into_iter().map(|(_, gradient)| gradient).collect::<Vec<_>>();
    let named = |gradients: Vec<Tensor>| gradients.into_iter().map(|gradient| ("", gradient)).collect::<Vec<_>>();
    let again = gradients(&mut learner, 0, &[batch(&ROWS)]).into_iter().map(|(_, gradient)| gradient).collect::<Vec<_>>();
    let other = gradients(&mut learner, 1, &[batch(&ROWS)]).into_iter().map(|(_, gradient)| gradient).collect::<Vec<_>>();
    let first = named(first);
    assert!(distance(&named(again), &first) < 1e-12, "the same step gives the same gradients");
    assert!(distance(&named(other), &first) > 1e-3, "another step drops other paths");
    let images = batch(&ROWS).images;
    let mut without = config();
    without.model.drop_path = 0.0;
    let plain = support::learner(&without);
    let (a, b) = (learner.encode_images(&images).expect("encoding"), plain.encode_images(&images).expect("encoding"));
    assert!(f64::try_from((a - b).abs().max()).expect("a number") == 0.0);
}

#[test]
fn the_generation_loss_that_is_measured_is_that_of_training_without_drop_path() {
    let mut without = config();
    without.model.drop_path = 0.0;
    let trained = support::learner(&without).compute_gradients(0, &[batch(&ROWS)]).expect("losses");
    // With drop-path in its configuration, which measuring leaves alone.
    let learner = learner(&config());
    let (sum, tokens) = learner.generation_loss(&batch(&ROWS)).expect("a loss");
    assert_eq!(tokens, trained.generation_positions);
    assert!((sum / tokens as f64 - trained.generation).abs() <= 1e-6 * trained.generation, "{sum} of {tokens}: {trained:?}");
    assert!(learner.gradients().iter().all(|(_, gradient)| !gradient.defined()), "measuring leaves no gradient");
    let image_alone = learner.generation_loss(&batch(&[("image", 0)])).expect("a loss");
    assert_eq!(image_alone, (0.0, 0));
}

#[test]
fn the_same_seed_gives_the_same_parameters_twice_and_another_seed_others() {
    let run = |seed: u64| {
        let mut config = config();
        config.optimization.seed = seed;
        let mut learner = learner(&config);
        let initial = learner.parameter_hash().expect("a hash");
        for step in 0..4 {
            let report = learner.train_step(step, &split_rows()).expect("a step");
            assert!(!report.skipped);
        }
        (initial, learner.parameter_hash().expect("a hash"), learner.state_hash().expect("a hash"))
    };
    let (first, second, other) = (run(5), run(5), run(6));
    assert_eq!(first, second);
    assert_ne!(first.0, first.1, "training changes parameters");
    assert_ne!(first.0, other.0);
}

#[test]
fn a_preset_is_built_with_the_parameters_that_were_counted() {
    let mut config = config();
    config.model.shape = Preset::Tiny.shape();
    config.model.layer_scale = None;
    let built = Model::new(&config.model, 1, Device::Cpu).expect("a model");
    let elements: usize = built.parameters().iter().map(|parameter| parameter.tensor.numel()).sum();
    assert_eq!(elements as u64, parameter_count(&config.model));
    assert_eq!(elements, 14_428_417);
}

#[test]
fn training_lowers_both_losses() {
    for precision in [Precision::Float32, Precision::Bfloat16] {
        let mut config = config();
        config.model.precision = precision;
        config.model.drop_path = 0.0;
        config.optimization.learning_rate = 3e-3;
        let mut learner = learner(&config);
        let reports: Vec<_> = (0..40).map(|step| learner.train_step(step, &[batch(&ROWS)]).expect("a step")).collect();
        let (first, last) = (&reports[0], &reports[39]);
        assert!(last.generation < 0.8 * first.generation, "{precision:?}: {} → {}", first.generation, last.generation);
        assert!(last.contrastive < 0.8 * first.contrastive, "{precision:?}: {} → {}", first.contrastive, last.contrastive);
    }
}

#[test]
fn bfloat16_stays_near_float32_and_keeps_similarities_in_float32() {
    let mut half = config();
    half.model.precision = Precision::Bfloat16;
    let (mut exact, mut rounded) = (learner(&config()), learner(&half));
    let (a, b) = (exact.compute_gradients(0, &[batch(&ROWS)]), rounded.compute_gradients(0, &[batch(&ROWS)]));
    let (a, b) = (a.expect("float32"), b.expect("bfloat16"));
    assert!((a.total - b.total).abs() < 0.01 * a.total && a != b, "{a:?} {b:?}");
    let found = distance(&rounded.gradients(), &exact.gradients());
    // bfloat16 has 8 bits of mantissa: a product is off by 0.2 %, a network of a few layers by several times that.
    assert!(found > 1e-4 && found < 0.05, "gradients differ by {found}");
    assert!(rounded.gradients().iter().all(|(_, gradient)| gradient.kind() == Kind::Float));
    let seen = rounded.inspect(&batch(&ROWS)).expect("an inspection");
    assert_eq!((seen.similarities.kind(), seen.image_features.kind(), seen.text_features.kind()), (Kind::Float, Kind::Float, Kind::Float));
    let norms = f64::try_from((seen.image_features.square().sum_dim_intlist([1].as_slice(), false, Kind::Float) - 1.0).abs().max());
    assert!(norms.expect("a number") < 1e-6, "features are normalised in float32");
    let mut checkpointing = half.clone();
    checkpointing.model.activation_checkpointing = true;
    let mut recomputing = learner(&checkpointing);
    recomputing.compute_gradients(0, &[batch(&ROWS)]).expect("gradients");
    assert!(distance(&recomputing.gradients(), &rounded.gradients()) < 1e-6, "the second run of a block is in bfloat16, too");
}

#[test]
fn a_batch_without_contrastive_images_has_no_contrastive_loss() {
    let mut learner = learner(&config());
    for rows in [vec![("t5", 0), ("sot t4 eot", 1)], vec![("image t5 eot", 0)]] {
        let report = learner.train_step(0, &[batch(&rows)]).expect("a step");
        assert_eq!((report.contrastive, report.contrastive_images, report.skipped), (0.0, 0, false));
        assert!(report.total > 0.0 && report.gradient_norm > 0.0);
    }
}

#[test]
fn a_batch_that_teaches_nothing_still_decays_weights_alike() {
    // Every slot may be empty (bad records): all gradients are zero, none is missing.
    for micro_batches in [vec![], vec![batch(&[])], vec![batch(&[("image", 0)]), batch(&[])]] {
        let mut learner = learner(&config());
        let before = learner.parameter_hash().expect("a hash");
        let report = learner.train_step(0, &micro_batches).expect("a step");
        assert_eq!((report.total, report.gradient_norm, report.skipped), (0.0, 0.0, false));
        assert_ne!(learner.parameter_hash().expect("a hash"), before, "weight decay applies");
        assert_eq!(learner.completed_updates(), 1);
    }
}

#[test]
fn a_step_that_is_not_finite_is_skipped_and_changes_nothing() {
    let mut learner = learner(&config());
    learner.train_step(0, &[batch(&ROWS)]).expect("a step");
    let before = learner.state_hash().expect("a hash");
    let poisoned = batch(&ROWS);
    let _ = poisoned.images.get(3).fill_(f64::NAN);
    for micro_batches in [vec![poisoned], split_rows()] {
        let poisoned = micro_batches.len() == 1;
        let report = learner.train_step(1, &micro_batches).expect("a step");
        assert_eq!(report.skipped, poisoned, "{report:?}");
        assert_eq!(learner.state_hash().expect("a hash") == before, poisoned);
        assert_eq!(learner.completed_updates(), if poisoned { 1 } else { 2 });
    }
}

#[test]
fn a_gradient_that_overflows_is_skipped_even_if_the_loss_is_finite() {
    let mut config = config();
    // The loss stays far below the largest float32; a sum of squares does not.
    config.model.objective = Objective::Lcl { generation_weight: 1e30, contrastive_weight: 0.1 };
    let mut learner = learner(&config);
    let before = learner.state_hash().expect("a hash");
    let report = learner.train_step(0, &[batch(&ROWS)]).expect("a step");
    assert!(report.total.is_finite() && !report.gradient_norm.is_finite() && report.skipped, "{report:?}");
    assert_eq!(learner.state_hash().expect("a hash"), before);
}

#[test]
fn the_temperature_stays_within_its_bounds() {
    for (start, expected) in [(7.0, 100.0), (-3.0, 1.0)] {
        let mut learner = learner(&config());
        let _ = lcl_torch::no_grad(|| learner.model().logit_scale().shallow_clone().fill_(start));
        let report = learner.train_step(0, &[batch(&ROWS)]).expect("a step");
        assert!((report.logit_scale - expected).abs() < 1e-4, "{start}: {}", report.logit_scale);
    }
}

#[test]
fn malformed_micro_batches_are_named_and_leave_everything_as_it_was() {
    let mut learner = learner(&config());
    let before = learner.state_hash().expect("a hash");
    let mut check = |index: usize, micro_batches: Vec<MicroBatch>, expected: &str| {
        let error = learner.train_step(0, &micro_batches).expect_err("an error");
        let LearnerError::Batch { index: found, source } = &error else { panic!("{error:?}") };
        assert_eq!(*found, index);
        assert!(source.to_string().contains(expected), "{source}");
    };
    let good = || batch(&ROWS[..2]);
    check(1, vec![good(), MicroBatch { slots: vec![1], ..good() }], "2 rows with 1 slots");
    check(0, vec![MicroBatch { tokens: good().tokens.to_kind(Kind::Float), ..good() }], "int64");
    check(0, vec![MicroBatch { images: good().images.narrow(2, 0, 4), ..good() }], "[n, 3, 8, 8]");
    check(0, vec![MicroBatch { images: good().images.narrow(0, 0, 1), ..good() }], "places for 2 images, but 1");
    check(0, vec![MicroBatch { image_rows: Some(vec![1, 1]), ..good() }], "image 0");
    check(0, vec![batch(&[("t41", 0)])], "context is 40");
    assert_eq!(learner.state_hash().expect("a hash"), before);
    let texts = learner.encode_texts(&Tensor::zeros([1, 4], (Kind::Int64, Device::Cpu)));
    assert!(matches!(texts, Err(LearnerError::Encode(BatchError::EmptyText { row: 0 }))));
}

#[test]
fn computing_only_needed_positions_does_not_change_features() {
    let mut config = config();
    config.model.drop_path = 0.0;
    let mut learner = learner(&config);
    let everything = learner.inspect(&batch(&ROWS)).expect("an inspection");
    let losses = learner.compute_gradients(0, &[batch(&ROWS)]).expect("losses");
    let reference = everything.logits.cross_entropy_for_logits(&everything.labels);
    assert!((f64::try_from(reference).expect("a number") - losses.generation).abs() < 1e-6 * losses.generation);
    let rows = everything.similarities.log_softmax(1, Kind::Float).diagonal(0, 0, 1)
        + everything.similarities.log_softmax(0, Kind::Float).diagonal(0, 0, 1);
    let reference = -0.5 * f64::try_from(rows.mean(Kind::Float)).expect("a number");
    assert!((reference - losses.contrastive).abs() < 1e-6 * losses.contrastive);
}
