//! A folder of recorded tensors: its manifest, files and configuration.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, ensure};
use lcl_torch::{Device, Kind, StateTensor, Tensor};
use lcl_trainer_config::{
    CheckpointConfig, DataConfig, DataSource, Device as WantedDevice, FORMAT_VERSION, GradientCompression, ModelConfig, ModelShape,
    Normalization, Objective, OptimizationConfig, Precision, RuntimeConfig, Schedule, SpecialTokens, TextShape, TrainerConfig, VisionShape,
};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// What the recording used where the manifest does not say it (README of the folder).
const LEARNING_RATE: f64 = 3e-4;
const BETAS: [f64; 2] = [0.9, 0.98];
const EPSILON: f64 = 1e-6;
/// `open_clip`'s default when a vision configuration does not give it.
const HEAD_WIDTH: i64 = 64;

/// A folder of recorded tensors.
pub(crate) struct Reference {
    folder: PathBuf,
    pub(crate) manifest: Value,
    pub(crate) shape: ModelShape,
}

/// A tensor of a safetensors file.
pub(crate) struct Recorded {
    pub(crate) shape: Vec<usize>,
    pub(crate) kind: Kind,
    pub(crate) bytes: Vec<u8>,
}

impl Recorded {
    pub(crate) fn tensor(&self) -> Result<Tensor> {
        let shape: Vec<i64> = self.shape.iter().map(|size| *size as i64).collect();
        Ok(Tensor::f_from_data_size(&self.bytes, &shape, self.kind)?)
    }

    pub(crate) fn values(&self) -> Vec<f32> {
        self.bytes.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect()
    }
}

pub(crate) type Tensors = BTreeMap<String, Recorded>;

/// `params_c<coefficient>_clip<clip>_step<steps>.safetensors`, or a trajectory of the manifest.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Run {
    pub(crate) coefficient: String,
    pub(crate) clip: String,
    pub(crate) steps: Option<u64>,
}

impl Run {
    /// Takes `c0.1_clip1.0_step5` or `c0.1_clip1.0` apart.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let (coefficient, rest) = name.strip_prefix('c')?.split_once("_clip")?;
        let (clip, steps) = match rest.split_once("_step") {
            Some((clip, steps)) => (clip, Some(steps.parse().ok()?)),
            None => (rest, None),
        };
        Some(Self { coefficient: coefficient.to_owned(), clip: clip.to_owned(), steps })
    }

    pub(crate) fn clip(&self) -> Result<Option<f64>> {
        if self.clip == "none" { Ok(None) } else { Ok(Some(self.clip.parse().with_context(|| format!("clip value `{}`", self.clip))?)) }
    }
}

impl Reference {
    /// The folder in `LCL_GOLDEN`, or the project's own.
    pub(crate) fn open() -> Result<Self> {
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
        let folder = std::env::var_os("LCL_GOLDEN").map_or(own, PathBuf::from);
        let path = folder.join("manifest.json");
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let manifest: Value = serde_json::from_str(&text).with_context(|| format!("parsing {}", path.display()))?;
        let shape = model_shape(&manifest["config"]).context("`config` of the manifest")?;
        Ok(Self { folder, manifest, shape })
    }

    /// Names of the scenarios that one member can compute.
    pub(crate) fn scenarios(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for name in self.manifest["scenarios"].as_object().context("`scenarios` of the manifest")?.keys() {
            if name == "ddp2" {
                println!("left to the tests of collectives: scenario ddp2, which needs two members");
            } else if self.has(&format!("{name}/io.safetensors")) {
                names.push(name.clone());
            } else {
                println!("left out: scenario {name} has no io.safetensors here");
            }
        }
        ensure!(!names.is_empty(), "no scenario can be compared in {}", self.folder.display());
        Ok(names)
    }

    pub(crate) fn scenario(&self, name: &str) -> &Value {
        &self.manifest["scenarios"][name]
    }

    pub(crate) fn has(&self, file: &str) -> bool {
        self.folder.join(file).is_file()
    }

    /// Files of a scenario's folder that start with `prefix`, the prefix and the extension taken off, in order.
    pub(crate) fn files(&self, scenario: &str, prefix: &str) -> Result<Vec<String>> {
        let folder = self.folder.join(scenario);
        let mut names = Vec::new();
        for entry in fs::read_dir(&folder).with_context(|| format!("listing {}", folder.display()))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if let Some(name) = name.strip_prefix(prefix).and_then(|name| name.strip_suffix(".safetensors")) {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// Compares the SHA-256 of every file that the manifest lists and that is here; returns how many these are.
    pub(crate) fn check_files(&self) -> Result<usize> {
        let mut checked = 0;
        for (name, entry) in self.manifest["files"].as_object().context("`files` of the manifest")? {
            if !self.has(name) {
                println!("not here: {name}");
                continue;
            }
            let expected = entry["sha256"].as_str().with_context(|| format!("sha256 of {name}"))?;
            let found = format!("{:x}", Sha256::digest(fs::read(self.folder.join(name))?));
            ensure!(found == expected, "{name} has SHA-256 {found}, recorded was {expected}");
            checked += 1;
        }
        Ok(checked)
    }

    pub(crate) fn read(&self, file: &str) -> Result<Tensors> {
        let bytes = fs::read(self.folder.join(file)).with_context(|| format!("reading {file}"))?;
        let parsed = safetensors::SafeTensors::deserialize(&bytes).with_context(|| format!("parsing {file}"))?;
        let convert = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
            let kind = match view.dtype() {
                safetensors::Dtype::F32 => Kind::Float,
                safetensors::Dtype::I64 => Kind::Int64,
                other => return Err(anyhow!("{file}: `{name}` has type {other:?}")),
            };
            Ok((name, Recorded { shape: view.shape().to_vec(), kind, bytes: view.data().to_vec() }))
        };
        parsed.tensors().into_iter().map(convert).collect()
    }

    /// Weight decay, learning rate and the rest as recorded; `param_groups` says the decay in the name of its key.
    pub(crate) fn config(&self, coefficient: f64, clip: Option<f64>) -> TrainerConfig {
        let optimizer = &self.manifest["optimizer"];
        let number = |name: &str, default: f64| optimizer[name].as_f64().unwrap_or(default);
        let objective = Objective::Lcl { generation_weight: 1.0, contrastive_weight: coefficient };
        TrainerConfig {
            version: FORMAT_VERSION,
            job: "golden".to_owned(),
            model: ModelConfig {
                shape: self.shape.clone(),
                objective,
                drop_path: 0.0,
                layer_scale: None,
                activation_checkpointing: false,
                precision: Precision::Float32,
            },
            data: DataConfig { max_bad_fraction: 1.0, prefetch: 1, ..DataConfig::new(DataSource::webdataset(vec!["none.tar".to_owned()])) },
            optimization: OptimizationConfig {
                steps: 1_000,
                global_batch_size: 8,
                micro_batch_size: None,
                learning_rate: number("lr", LEARNING_RATE),
                weight_decay: number("weight_decay", self.weight_decay_of_groups().unwrap_or(0.1)),
                betas: BETAS,
                epsilon: number("eps", EPSILON),
                schedule: Schedule::Constant { warmup_steps: Some(0) },
                gradient_clip: clip,
                normalization: Normalization::PerRank,
                gradient_compression: GradientCompression::None,
                exact: None,
                seed: 1,
                max_consecutive_skipped_steps: 1,
            },
            checkpoint: CheckpointConfig { uri: "file:///unused".to_owned(), every_steps: 1, keep_last: 1, keep_every_steps: None },
            runtime: RuntimeConfig { device: WantedDevice::Cpu, threads: None },
        }
    }

    /// `weight_decay_0_1` → 0.1.
    fn weight_decay_of_groups(&self) -> Option<f64> {
        let groups = self.manifest["param_groups"].as_object()?;
        groups.keys().find_map(|name| name.strip_prefix("weight_decay_")?.replacen('_', ".", 1).parse().ok())
    }
}

/// Tensors for [`lcl_torch::Learner::load_parameters`].
pub(crate) fn state_tensors(tensors: &Tensors) -> impl Iterator<Item = StateTensor<'_>> {
    tensors.iter().map(|(name, tensor)| StateTensor { name, shape: &tensor.shape, data: &tensor.bytes })
}

/// `LCL_DEVICE=cuda` runs the comparison on a GPU.
pub(crate) fn device() -> Device {
    match std::env::var("LCL_DEVICE").as_deref() {
        Ok("cuda") => lcl_torch::choose_device(WantedDevice::Cuda, 0).expect("LCL_DEVICE=cuda asks for a GPU"),
        _ => Device::Cpu,
    }
}

fn model_shape(config: &Value) -> Result<ModelShape> {
    let number = |value: &Value, name: &str| value[name].as_i64().with_context(|| format!("`{name}` is no whole number"));
    let (vision, text, pool) = (&config["vision_cfg"], &config["text_cfg"], &config["pool_project_cfg"]);
    let special = |name: &str| number(&config["special_token_ids"], name);
    let width = number(vision, "width")?;
    let embed_dim = number(config, "embed_dim")?;
    ensure!(number(pool, "input_dim")? == width && number(pool, "output_dim")? == embed_dim, "sizes of the pooling");
    Ok(ModelShape {
        vision: VisionShape {
            image_size: number(vision, "image_size")?,
            patch_size: number(vision, "patch_size")?,
            width,
            layers: number(vision, "layers")?,
            heads: width / vision["head_width"].as_i64().unwrap_or(HEAD_WIDTH),
        },
        text: TextShape {
            width: number(text, "width")?,
            layers: number(text, "layers")?,
            heads: number(text, "heads")?,
            context_length: number(text, "context_length")?,
            vocab_size: number(text, "vocab_size")?,
        },
        embed_dim,
        pool_heads: number(pool, "attn_num_heads")?,
        special_tokens: SpecialTokens {
            start_of_text: special("<start_of_text>")?,
            end_of_text: special("<end_of_text>")?,
            image_placeholder: special("<img_placehold>")?,
            start_of_image: special("<start_of_img>")?,
            end_of_image: special("<end_of_img>")?,
        },
    })
}
