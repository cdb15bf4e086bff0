//! The model, its losses and its optimizer against tensors recorded from the published implementation.
//!
//! Everything is driven by the folder's `manifest.json` and by which files are there; `LCL_GOLDEN=DIR` compares another folder,
//! `LCL_DEVICE=cuda` compares on a GPU.

mod compare;
mod reference;

use anyhow::{Context, Result, ensure};
use compare::{Differences, FORWARD, GRADIENT, LOSS};
use lcl_torch::{
    Kind, LayoutFaults, Learner, LearnerOptions, MicroBatch, ModelFaults, Tensor, parameter_count, parameter_specs, set_threads,
};
use reference::{Reference, Run, Tensors, device, state_tensors};
use serde_json::Value;

fn learner(reference: &Reference, coefficient: f64, clip: Option<f64>, options: LearnerOptions) -> Result<Learner> {
    // Tests run side by side on models too small to share: more threads would only wait for each other.
    set_threads(Some(1))?;
    let mut learner = Learner::with_options(&reference.config(coefficient, clip), device(), options)?;
    learner.load_parameters(state_tensors(&reference.read("weights.safetensors")?))?;
    Ok(learner)
}

fn batch(inputs: &Tensors) -> Result<MicroBatch> {
    let tokens = inputs.get("text").context("`text` is not recorded")?.tensor()?;
    let slots = (0..tokens.size2()?.0.unsigned_abs()).collect();
    Ok(MicroBatch {
        tokens,
        images: inputs.get("image").context("`image` is not recorded")?.tensor()?,
        slots,
        image_rows: None,
        sources: Vec::new(),
    })
}

fn compare_forward(reference: &Reference, options: LearnerOptions) -> Result<()> {
    let mut differences = Differences::default();
    for scenario in reference.scenarios()? {
        let inputs = reference.read(&format!("{scenario}/io.safetensors"))?;
        let found = learner(reference, 0.1, None, options)?.inspect(&batch(&inputs)?)?;
        for (name, tensor) in [
            ("image_latent_unnormalised", &found.image_latent),
            ("image_embs", &found.image_tokens),
            ("text_outputs", &found.text_outputs),
            ("image_features", &found.image_features),
            ("text_features", &found.text_features),
            ("logits", &found.logits),
        ] {
            differences.tensor(&format!("{scenario}: {name}"), tensor, inputs.get(name), FORWARD)?;
        }
        // Similarities are multiplied by the temperature's factor, and so is their rounding.
        let factor = inputs.get("logit_scale_exp").and_then(|scale| scale.values().first().copied()).map_or(1.0, f64::from);
        let per_text = found.similarities.transpose(0, 1);
        for (name, tensor) in [("contrastive_logits_per_image", &found.similarities), ("contrastive_logits_per_text", &per_text)] {
            differences.tensor(&format!("{scenario}: {name}"), tensor, inputs.get(name), FORWARD * factor.max(1.0))?;
        }
        let labels = Vec::<i64>::try_from(&found.labels.to_device(lcl_torch::Device::Cpu))?;
        let recorded = Vec::<i64>::try_from(&inputs.get("labels").context("`labels` is not recorded")?.tensor()?)?;
        if labels != recorded {
            differences.note(format!("{scenario}: labels differ ({} of them, recorded {})", labels.len(), recorded.len()));
        }
    }
    differences.finish()
}

fn compare_gradients(reference: &Reference, options: LearnerOptions) -> Result<()> {
    let mut differences = Differences::default();
    for scenario in reference.scenarios()? {
        let inputs = batch(&reference.read(&format!("{scenario}/io.safetensors"))?)?;
        let manifest = reference.scenario(&scenario);
        let losses = manifest["losses"].as_object().with_context(|| format!("`losses` of {scenario}"))?;
        for (coefficient, recorded) in losses {
            let what = |part: &str| format!("{scenario} c{coefficient}: {part}");
            let weight: f64 = coefficient.parse()?;
            let mut learner = learner(reference, weight, None, options)?;
            let found = learner.compute_gradients(0, std::slice::from_ref(&inputs))?;
            for (name, value) in [
                ("generation", found.generation),
                ("contrastive_weighted", found.contrastive * weight),
                ("contrastive_unweighted", found.contrastive),
                ("total", found.total),
            ] {
                differences.number(&what(name), value, number(recorded, name)?, LOSS);
            }
            for (name, value) in [("contrastive_pairs", found.contrastive_images), ("generation_positions", found.generation_positions)] {
                if manifest["counts"][name].as_u64() != Some(value) {
                    differences.note(format!("{}: {value}, recorded {}", what(name), manifest["counts"][name]));
                }
            }
            let gradients = learner.gradients();
            let mut squares = 0.0;
            for (name, gradient) in &gradients {
                let values = lcl_torch::to_host(gradient)?;
                squares += values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
                if *name == "logit_scale" {
                    let found = values.first().copied().map_or(f64::NAN, f64::from);
                    differences.number(&what("logit_scale_grad"), found, number(recorded, "logit_scale_grad")?, GRADIENT);
                }
            }
            differences.number(&what("grad_norm_l2"), squares.sqrt(), number(recorded, "grad_norm_l2")?, GRADIENT);
        }
        for coefficient in reference.files(&scenario, "grads_c")? {
            let mut learner = learner(reference, coefficient.parse()?, None, options)?;
            learner.compute_gradients(0, std::slice::from_ref(&inputs))?;
            let recorded = reference.read(&format!("{scenario}/grads_c{coefficient}.safetensors"))?;
            let what = format!("{scenario}: grads_c{coefficient}");
            differences.gradients(&what, &learner.gradients(), &recorded, coefficient.parse()?)?;
        }
    }
    differences.finish()
}

/// Every trajectory of the manifest and every file of parameters, each by the learner's own training step.
fn compare_training(reference: &Reference, options: LearnerOptions) -> Result<()> {
    let mut differences = Differences::default();
    for scenario in reference.scenarios()? {
        let inputs = batch(&reference.read(&format!("{scenario}/io.safetensors"))?)?;
        let mut runs: Vec<Run> = Vec::new();
        if let Some(recorded) = reference.scenario(&scenario)["adamw"].as_object() {
            runs.extend(recorded.keys().filter_map(|name| Run::parse(name)));
        }
        let files = reference.files(&scenario, "params_")?;
        for name in &files {
            let run = Run::parse(name).with_context(|| format!("{scenario}/params_{name}.safetensors has an unknown name"))?;
            runs.push(run);
        }
        for run in runs {
            compare_run(reference, &scenario, &inputs, &run, options, &mut differences)?;
        }
    }
    differences.finish()
}

fn compare_run(
    reference: &Reference,
    scenario: &str,
    inputs: &MicroBatch,
    run: &Run,
    options: LearnerOptions,
    differences: &mut Differences,
) -> Result<()> {
    let weight: f64 = run.coefficient.parse()?;
    let mut learner = learner(reference, weight, run.clip()?, options)?;
    let name = format!("c{}_clip{}", run.coefficient, run.clip);
    let trajectory = reference.scenario(scenario)["adamw"][&name]["trajectory"].as_array().cloned().unwrap_or_default();
    let recorded_steps = trajectory.iter().filter(|entry| entry["step"].is_u64()).count() as u64;
    for step in 0..run.steps.unwrap_or(recorded_steps) {
        let report = learner.train_step(step, std::slice::from_ref(inputs))?;
        ensure!(!report.skipped, "{scenario} {name}: step {step} was skipped");
        let Some(recorded) = trajectory.iter().find(|entry| entry["step"].as_u64() == Some(step + 1)) else { continue };
        let mut check = |part: &str, found: f64, tolerance: f64| -> Result<()> {
            differences.number(&format!("{scenario} {name} step {}: {part}", step + 1), found, number(recorded, part)?, tolerance);
            Ok(())
        };
        check("total", report.total, LOSS)?;
        check("generation", report.generation, LOSS)?;
        // Later steps see parameters that may be a rounding apart.
        let (loss, norm) = if step == 0 { (LOSS, GRADIENT) } else { (LATER_CONTRAST, LATER_NORM) };
        check("contrastive_weighted", report.contrastive * weight, loss)?;
        check("grad_norm_before_clip", report.gradient_norm, norm)?;
        check("logit_scale_after", report.logit_scale.ln(), LOSS)?;
    }
    if let Some(steps) = run.steps {
        let file = format!("{scenario}/params_{name}_step{steps}.safetensors");
        return differences.parameters(&format!("{scenario}: params_{name}_step{steps}"), &learner.state(), &reference.read(&file)?);
    }
    if let Some(recorded) = trajectory.iter().find(|entry| entry["step"].as_str() == Some(&format!("eval_after_{recorded_steps}"))) {
        let report = learner.compute_gradients(recorded_steps, std::slice::from_ref(inputs))?;
        differences.number(&format!("{scenario} {name} after: total"), report.total, number(recorded, "total")?, LOSS);
        let found = report.contrastive * weight;
        let expected = number(recorded, "contrastive_weighted")?;
        differences.number(&format!("{scenario} {name} after: contrastive_weighted"), found, expected, LATER_CONTRAST);
    }
    Ok(())
}

/// Tolerances after the first update. Two float32 runs drift apart: the manifest's own float64 run differs from its float32 one by up to
/// 2e-7 of the total, nearly all of it in the contrastive loss, which by then is a hundredth of it.
const LATER_CONTRAST: f64 = 2e-5;
const LATER_NORM: f64 = 2e-5;

fn compare_encoders(reference: &Reference, options: LearnerOptions) -> Result<()> {
    let mut differences = Differences::default();
    if reference.has("encode.safetensors") {
        let recorded = reference.read("encode.safetensors")?;
        let input = |name: &str| recorded.get(name).with_context(|| format!("`{name}` is not recorded"))?.tensor();
        let learner = learner(reference, 0.1, None, options)?;
        let images = learner.encode_images(&input("image")?)?;
        differences.tensor("encode: image", &images, recorded.get("image_features_normalised"), FORWARD)?;
        let texts = learner.encode_texts(&input("text")?)?;
        differences.tensor("encode: text", &texts, recorded.get("text_features_normalised"), FORWARD)?;
    } else {
        println!("not here: encode.safetensors");
    }
    differences.finish()
}

fn number(value: &Value, name: &str) -> Result<f64> {
    value[name].as_f64().with_context(|| format!("`{name}` is not recorded"))
}

#[test]
fn every_file_is_the_recorded_one() -> Result<()> {
    ensure!(Reference::open()?.check_files()? > 0, "no file was checked");
    Ok(())
}

#[test]
fn parameters_have_the_references_names_order_and_shapes() -> Result<()> {
    let reference = Reference::open()?;
    let config = reference.config(0.1, None).model;
    let specs = parameter_specs(&config);
    let recorded = reference.read("weights.safetensors")?;
    let listed = reference.manifest["files"]["weights.safetensors"]["tensors"].as_object().context("tensors of the weights")?;
    let mut found: Vec<_> = specs.iter().map(|spec| spec.name.as_str()).collect();
    let learner = learner(&reference, 0.1, None, LearnerOptions::default())?;
    let built: Vec<_> = learner.model().parameters().iter().map(|parameter| parameter.name.as_str()).collect();
    assert_eq!(found, built);
    for (spec, parameter) in specs.iter().zip(learner.model().parameters()) {
        assert_eq!(spec.shape, parameter.tensor.size(), "{}", spec.name);
        let shape: Vec<_> = spec.shape.iter().map(|size| *size as usize).collect();
        assert_eq!(recorded.get(&spec.name).map(|tensor| &tensor.shape), Some(&shape), "{}", spec.name);
    }
    found.sort_unstable();
    let mut names: Vec<_> = listed.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(found, names);
    assert_eq!(Some(parameter_count(&config)), reference.manifest["n_parameters"].as_u64());
    Ok(())
}

#[test]
fn weight_decay_applies_to_the_references_parameters() -> Result<()> {
    let reference = Reference::open()?;
    let groups = reference.manifest["param_groups"].as_object().context("`param_groups` of the manifest")?;
    let specs = parameter_specs(&reference.config(0.1, None).model);
    for (group, names) in groups {
        let decays = group != "no_weight_decay";
        // Both lists are in the order of the model, and so tell the order of parameters, too.
        let recorded: Vec<_> = names.as_array().context("a group is a list")?.iter().filter_map(Value::as_str).collect();
        let found: Vec<_> = specs.iter().filter(|spec| spec.decays() == decays).map(|spec| spec.name.as_str()).collect();
        assert_eq!(found, recorded, "{group}");
    }
    Ok(())
}

#[test]
fn forward_outputs_agree() -> Result<()> {
    compare_forward(&Reference::open()?, LearnerOptions::default())
}

#[test]
fn losses_and_gradients_agree() -> Result<()> {
    compare_gradients(&Reference::open()?, LearnerOptions::default())
}

#[test]
fn training_steps_agree() -> Result<()> {
    compare_training(&Reference::open()?, LearnerOptions::default())
}

#[test]
fn encoders_agree() -> Result<()> {
    compare_encoders(&Reference::open()?, LearnerOptions::default())
}

/// The recording with two ranks, computed by one process: its normalisation and the gradients that the ranks average to. What the ranks
/// exchange is compared where there are two members.
#[test]
fn per_rank_normalisation_agrees_with_two_ranks() -> Result<()> {
    let reference = Reference::open()?;
    if !reference.has("ddp2/io.safetensors") || !reference.has("paired/io.safetensors") {
        println!("not here: ddp2 of the paired scenario");
        return Ok(());
    }
    let whole = batch(&reference.read("paired/io.safetensors")?)?;
    let half = whole.tokens.size2()?.0 / 2;
    let ranks: Vec<[MicroBatch; 1]> = [0, half]
        .into_iter()
        .map(|start| {
            let slots = (start..start + half).map(i64::unsigned_abs).collect();
            let cut = |tensor: &Tensor| tensor.narrow(0, start, half);
            // One image per row: images are cut as rows are.
            [MicroBatch { tokens: cut(&whole.tokens), images: cut(&whole.images), slots, image_rows: None, sources: Vec::new() }]
        })
        .collect();
    let members: Vec<&[MicroBatch]> = ranks.iter().map(<[MicroBatch; 1]>::as_slice).collect();
    let mut differences = Differences::default();
    for (coefficient, recorded) in reference.scenario("ddp2")["losses"].as_object().context("`losses` of ddp2")? {
        let mut learner = learner(&reference, coefficient.parse()?, None, LearnerOptions::default())?;
        let found = learner.compute_gradients_of_members(0, &members)?;
        differences.number(&format!("ddp2 c{coefficient}: total"), found.total, number(recorded, "mean_total_over_ranks")?, LOSS);
        let gradients = learner.gradients();
        let logit_scale = gradients.iter().find(|(name, _)| *name == "logit_scale").context("no gradient of logit_scale")?;
        let expected = number(recorded, "logit_scale_grad_averaged")?;
        differences.number(&format!("ddp2 c{coefficient}: logit_scale_grad"), f64::try_from(&logit_scale.1)?, expected, GRADIENT);
        let file = format!("ddp2/grads_averaged_c{coefficient}.safetensors");
        if reference.has(&file) {
            let what = format!("ddp2: grads_averaged_c{coefficient}");
            differences.gradients(&what, &gradients, &reference.read(&file)?, coefficient.parse()?)?;
        }
    }
    differences.finish()
}

/// In float64 the model must come as close to the recorded float32 numbers as these are to the truth.
#[test]
fn float64_agrees_as_well() -> Result<()> {
    let options = LearnerOptions { kind: Kind::Double, ..LearnerOptions::default() };
    compare_gradients(&Reference::open()?, options)
}

type Comparison = fn(&Reference, LearnerOptions) -> Result<()>;

/// The comparisons themselves are tested: each of these faults must turn the ones named red.
#[test]
fn small_faults_are_noticed() -> Result<()> {
    let reference = Reference::open()?;
    let model = |model_faults| LearnerOptions { model_faults, ..LearnerOptions::default() };
    let layout = |layout_faults| LearnerOptions { layout_faults, ..LearnerOptions::default() };
    let comparisons: [(&str, Comparison); 4] =
        [("forward", compare_forward), ("gradients", compare_gradients), ("training", compare_training), ("encoders", compare_encoders)];
    let check = |fault: &str, options: LearnerOptions, noticed_by: &[&str]| {
        for (name, compare) in comparisons {
            let error = compare(&reference, options).err().map(|error| error.to_string());
            let noticed = error.as_ref().is_some_and(|error| error.contains("differences:"));
            assert_eq!(noticed, noticed_by.contains(&name), "{fault}: {name} comparison gave {error:?}");
        }
    };
    let everything = ["forward", "gradients", "training", "encoders"];
    check("tanh GELU", model(ModelFaults { tanh_gelu: true, ..ModelFaults::default() }), &everything);
    check("layer norm epsilon", model(ModelFaults { layer_norm_epsilon: Some(1e-6), ..ModelFaults::default() }), &everything);
    // Only whole sequences know positions and labels; images and texts alone do not.
    let leading = LayoutFaults { count_leading_image: true, ..LayoutFaults::default() };
    check("image at position 0", layout(leading), &["forward", "gradients", "training"]);
    let end = LayoutFaults { count_end_of_image: true, ..LayoutFaults::default() };
    check("label eoi", layout(end), &["forward", "gradients", "training"]);
    Ok(())
}

#[test]
fn names_of_runs_are_taken_apart() {
    let run = |coefficient: &str, clip: &str, steps| Some(Run { coefficient: coefficient.to_owned(), clip: clip.to_owned(), steps });
    assert_eq!(Run::parse("c0.1_clipnone_step5"), run("0.1", "none", Some(5)));
    assert_eq!(Run::parse("c1.0_clip0.5"), run("1.0", "0.5", None));
    assert_eq!(Run::parse("clip0.5"), None);
}

#[test]
fn tensors_of_a_batch_are_on_the_wanted_device() -> Result<()> {
    let learner = learner(&Reference::open()?, 0.1, None, LearnerOptions::default())?;
    assert_eq!(learner.model().device(), device());
    let none = Tensor::zeros([0, 5], (Kind::Int64, lcl_torch::Device::Cpu));
    assert_eq!(learner.encode_texts(&none)?.device(), device());
    Ok(())
}
