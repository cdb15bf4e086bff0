//! Weights that leave and enter: the reference's golden weights through import and export, and the vision encoder read from outside.

use std::{
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use lcl_checkpoint::{Dtype, TensorData, read_safetensors, write_safetensors};
use lcl_torch::{Device, Kind, Learner, Tensor};
use lcl_trainer::evaluation::{
    trained::{Source, Trained},
    weights::{export, import},
};
use lcl_trainer_config::{
    CheckpointConfig, DataConfig, DataSource, Device as Wanted, FORMAT_VERSION, GradientCompression, ModelConfig, ModelShape,
    Normalization, Objective, OptimizationConfig, Precision, RuntimeConfig, Schedule, SpecialTokens, TextShape, TrainerConfig, VisionShape,
};
use tempfile::TempDir;

/// Largest difference between the vectors of the trainer and of plain numpy in double precision.
const TOLERANCE: &str = "1e-4";

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned()
}

fn golden(name: &str) -> PathBuf {
    workspace().join("tests/golden").join(name)
}

/// The configuration of the golden weights, as `manifest.json` beside them gives it.
fn golden_shape() -> Result<ModelShape> {
    let manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(golden("manifest.json"))?)?;
    let config = &manifest["config"];
    let number = |value: &serde_json::Value| value.as_i64().context("the manifest lacks a size");
    let (vision, text) = (&config["vision_cfg"], &config["text_cfg"]);
    let special = |name: &str| number(&config["special_token_ids"][name]);
    Ok(ModelShape {
        vision: VisionShape {
            image_size: number(&vision["image_size"])?,
            patch_size: number(&vision["patch_size"])?,
            width: number(&vision["width"])?,
            layers: number(&vision["layers"])?,
            heads: number(&vision["width"])? / number(&vision["head_width"])?,
        },
        text: TextShape {
            width: number(&text["width"])?,
            layers: number(&text["layers"])?,
            heads: number(&text["heads"])?,
            context_length: number(&text["context_length"])?,
            vocab_size: number(&text["vocab_size"])?,
        },
        embed_dim: number(&config["embed_dim"])?,
        pool_heads: number(&config["pool_project_cfg"]["attn_num_heads"])?,
        special_tokens: SpecialTokens {
            start_of_text: special("<start_of_text>")?,
            end_of_text: special("<end_of_text>")?,
            image_placeholder: special("<img_placehold>")?,
            start_of_image: special("<start_of_img>")?,
            end_of_image: special("<end_of_img>")?,
        },
    })
}

fn config(folder: &Path, shape: ModelShape, layer_scale: Option<f64>) -> Result<TrainerConfig> {
    let uri = url::Url::from_file_path(folder).map_err(|()| anyhow::anyhow!("no absolute path"))?;
    Ok(TrainerConfig {
        version: FORMAT_VERSION,
        job: "export-test".to_owned(),
        model: ModelConfig {
            shape,
            objective: Objective::Lcl { generation_weight: 1.0, contrastive_weight: 0.1 },
            drop_path: 0.0,
            layer_scale,
            activation_checkpointing: false,
            precision: Precision::Float32,
        },
        data: DataConfig { max_bad_fraction: 1.0, prefetch: 1, ..DataConfig::new(DataSource::webdataset(vec!["unused.tar".to_owned()])) },
        optimization: OptimizationConfig {
            steps: 1,
            global_batch_size: 1,
            micro_batch_size: None,
            learning_rate: 1e-3,
            weight_decay: 0.1,
            betas: [0.9, 0.98],
            epsilon: 1e-6,
            schedule: Schedule::Constant { warmup_steps: Some(0) },
            gradient_clip: None,
            normalization: Normalization::Global,
            gradient_compression: GradientCompression::None,
            exact: None,
            seed: 5,
            max_consecutive_skipped_steps: 1,
        },
        checkpoint: CheckpointConfig { uri: uri.into(), every_steps: 1, keep_last: 1, keep_every_steps: None },
        runtime: RuntimeConfig { device: Wanted::Cpu, threads: Some(1) },
    })
}

fn by_name(path: &Path) -> Result<BTreeMap<String, TensorData>> {
    Ok(read_safetensors(path)?.tensors.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect())
}

#[test]
fn the_references_weights_come_back_with_every_byte() -> Result<()> {
    let folder = TempDir::new()?;
    let config = config(&folder.path().join("run"), golden_shape()?, None)?;
    import(&golden("weights.safetensors"), &config)?;
    let file = folder.path().join("exported.safetensors");
    export(&Source::Run(config.checkpoint.uri.clone()), &file, false)?;
    ensure!(by_name(&file)? == by_name(&golden("weights.safetensors"))?);
    Ok(())
}

fn python() -> Result<PathBuf> {
    let path = env::var_os("LCL_TEST_PYTHON").map_or_else(|| workspace().join(".deps/test-py/bin/python"), PathBuf::from);
    ensure!(
        path.exists(),
        "{} is missing: `make test` installs it, or set LCL_TEST_PYTHON to a Python with what tests/python/requirements.txt names",
        path.display()
    );
    Ok(path)
}

fn tensor_data(name: &str, tensor: &Tensor) -> Result<TensorData> {
    let tensor = tensor.f_detach()?.f_to_kind(Kind::Float)?.f_contiguous()?;
    let values = Vec::<f32>::try_from(&tensor.f_view([-1])?)?;
    Ok(TensorData {
        name: name.to_owned(),
        shape: tensor.size().iter().map(|size| usize::try_from(*size)).collect::<Result<_, _>>()?,
        dtype: Dtype::F32,
        data: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    })
}

/// Exports the vision encoder of the weights in `file` and has numpy compute the vectors of some images.
fn check_in_python(file: &Path, config: &TrainerConfig, images: &Tensor, folder: &Path) -> Result<()> {
    import(file, config)?;
    let source = Source::Run(config.checkpoint.uri.clone());
    let (exported, expected) = (folder.join("vision.safetensors"), folder.join("expected.safetensors"));
    export(&source, &exported, true)?;
    let learner = Trained::read(&source)?.learner(Wanted::Cpu, Some(1))?;
    let features = learner.encode_images(images)?;
    write_safetensors(&expected, &[tensor_data("images", images)?, tensor_data("features", &features)?], &BTreeMap::new())?;
    let output = Command::new(python()?)
        .arg(workspace().join("tests/python/vision_encoder.py"))
        .args([exported.as_os_str(), expected.as_os_str(), TOLERANCE.as_ref()])
        .output()
        .context("starting Python")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    println!("{}", text(&output.stdout));
    Ok(())
}

#[test]
fn the_exported_vision_encoder_gives_the_same_vectors_in_numpy() -> Result<()> {
    let folder = TempDir::new()?;
    let config = config(&folder.path().join("run"), golden_shape()?, None)?;
    let encode = by_name(&golden("encode.safetensors"))?;
    let image = encode.get("image").context("no images")?;
    let shape: Vec<i64> = image.shape.iter().map(|size| i64::try_from(*size)).collect::<Result<_, _>>()?;
    let images = Tensor::f_from_data_size(&image.data, &shape, Kind::Float)?;
    check_in_python(&golden("weights.safetensors"), &config, &images, folder.path())
}

#[test]
fn so_does_one_with_layer_scale_and_another_shape() -> Result<()> {
    let folder = TempDir::new()?;
    let mut shape = golden_shape()?;
    shape.vision = VisionShape { image_size: 48, patch_size: 12, width: 48, layers: 3, heads: 3 };
    let config = config(&folder.path().join("run"), shape, Some(0.3))?;
    let learner = Learner::new(&config, Device::Cpu)?;
    let parameters = learner.model().parameters();
    let weights: Vec<TensorData> =
        parameters.iter().map(|parameter| tensor_data(&parameter.name, &parameter.tensor)).collect::<Result<_>>()?;
    ensure!(weights.iter().any(|tensor| tensor.name == "visual.transformer.resblocks.2.ls_1.gamma"));
    let file = folder.path().join("weights.safetensors");
    write_safetensors(&file, &weights, &BTreeMap::new())?;
    // Any numbers serve as images; these differ from pixel to pixel.
    let images = Tensor::f_arange(2 * 3 * 48 * 48, (Kind::Float, Device::Cpu))?.f_sin()?.f_view([2, 3, 48, 48])?;
    check_in_python(&file, &config, &images, folder.path())
}
