//! A job that keeps every rule, with its unions and presets resolved.

use k8s_openapi::{
    api::core::v1::{Container, PodSpec},
    apimachinery::pkg::api::resource::Quantity as Text,
};
use lcl_crds::{
    DataSpec, KeySeparatorSpec, LCLTrainingJob, LCLTrainingJobSpec, LayoutSpec, MAX_WORKERS, MixtureUnitSpec, Mmc4LayoutSpec, Mmc4Spec,
    ModelShapeSpec, ModelSpec, ObelicsSpec, ObjectiveSpec, PrecisionSpec, PresetName, ScheduleSpec, WORKER_CONTAINER, WebdatasetSpec,
};
use lcl_trainer_config::{
    CaptionChoice, CaptionFrom, DataSource, DocumentsConfig, KeySeparator, MixedSource, MixtureConfig, MixtureUnit, Mmc4Config, Mmc4Images,
    ModelConfig, ModelShape, ObelicsConfig, Objective, Precision, Preset, SampleKeys, Schedule, SpecialTokens, TextShape, VOCAB_SIZE,
    VisionShape,
};

use crate::{quantity::Quantity, validate::FieldError};

/// Most images of a document in tar shards: that of MMC4 and OBELICS.
const DEFAULT_MAX_IMAGES: u32 = 6;

/// A job that keeps every rule. Only [`crate::validate`] makes one.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidatedJob {
    name: String,
    model: ModelConfig,
    schedule: Schedule,
    source: DataSource,
    job: LCLTrainingJob,
}

/// Sizes of a job in workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct World {
    /// Fewest it runs with.
    pub min: i32,
    /// Wanted.
    pub desired: i32,
    /// Most it may grow to.
    pub max: i32,
}

impl ValidatedJob {
    /// Resolves what the schema writes as "exactly one of": an error here means that a rule of the definition is missing.
    pub(crate) fn new(job: LCLTrainingJob) -> Result<Self, FieldError> {
        let name = job.metadata.name.clone().ok_or_else(|| FieldError::missing("metadata.name"))?;
        let model = resolve_model(&job.spec.model)?;
        let schedule = resolve_schedule(&job.spec.optimization.schedule)?;
        let source = resolve_source(&job.spec.data)?;
        Ok(Self { name, model, schedule, source, job })
    }

    /// The job's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the user wrote, with defaults filled in.
    #[must_use]
    pub fn spec(&self) -> &LCLTrainingJobSpec {
        &self.job.spec
    }

    /// The model, presets expanded.
    #[must_use]
    pub fn model(&self) -> &ModelConfig {
        &self.model
    }

    /// The learning rate's schedule.
    #[must_use]
    pub fn schedule(&self) -> Schedule {
        self.schedule
    }

    /// The data set, with paths in the worker's container.
    #[must_use]
    pub fn source(&self) -> &DataSource {
        &self.source
    }

    /// Training processes in each worker: as many as it has accelerators, unless the job says so.
    #[must_use]
    pub fn members_per_worker(&self) -> u32 {
        let workers = &self.job.spec.workers;
        let limits = workers.resources.as_ref().and_then(|resources| resources.limits.as_ref());
        let accelerators = limits.and_then(|limits| limits.get(&workers.accelerator_resource)).and_then(|Text(text)| text.parse().ok());
        workers.members_per_worker.map(i32::unsigned_abs).or(accelerators).unwrap_or(1).max(1)
    }

    /// Processors that each worker asks for, or else is limited to.
    pub(crate) fn processors_per_worker(&self) -> Option<Quantity> {
        let resources = self.job.spec.workers.resources.as_ref()?;
        let amounts = [&resources.requests, &resources.limits];
        amounts.into_iter().flatten().find_map(|amounts| amounts.get("cpu")).and_then(|Text(text)| Quantity::parse(text))
    }

    /// Between how many workers the job runs. Without `elastic` all three are `workers.replicas`. None is more than a definition ever allowed,
    /// also in a job that was read unchecked.
    #[must_use]
    pub fn world(&self) -> World {
        let desired = self.job.spec.workers.replicas;
        let (min, max) = self.job.spec.elastic.as_ref().map_or((desired, desired), |elastic| (elastic.min_workers, elastic.max_workers));
        let [min, desired, max] = [min, desired, max].map(|workers| workers.clamp(0, MAX_WORKERS));
        World { min, desired, max }
    }

    /// The worker's pod as far as the user gave it.
    #[must_use]
    pub fn pod(&self) -> Option<&PodSpec> {
        self.job.spec.workers.template.as_ref()?.spec.as_ref()
    }

    /// The container that runs the trainer, as far as the user gave it.
    #[must_use]
    pub fn worker_container(&self) -> Option<&Container> {
        self.pod()?.containers.iter().find(|container| container.name == WORKER_CONTAINER)
    }
}

fn resolve_model(model: &ModelSpec) -> Result<ModelConfig, FieldError> {
    let (shape, drop_path, layer_scale) = match (model.preset, &model.shape) {
        (Some(name), None) => {
            let preset = to_preset(name);
            (preset.shape(), preset.drop_path(), preset.layer_scale())
        }
        (None, Some(shape)) => (to_shape(shape), 0.0, None),
        _ => return Err(FieldError::missing("spec.model.preset")),
    };
    Ok(ModelConfig {
        shape,
        objective: resolve_objective(&model.objective)?,
        drop_path: model.drop_path.unwrap_or(drop_path),
        layer_scale: match model.layer_scale {
            None => layer_scale,
            // The manifest's way to switch a preset's layer-scale off.
            Some(0.0) => None,
            Some(initial) => Some(initial),
        },
        activation_checkpointing: model.activation_checkpointing,
        precision: match model.precision {
            PrecisionSpec::Float32 => Precision::Float32,
            PrecisionSpec::Bfloat16 => Precision::Bfloat16,
        },
    })
}

fn to_preset(name: PresetName) -> Preset {
    match name {
        PresetName::VitB16Laion => Preset::VitB16Laion,
        PresetName::VitB32Laion => Preset::VitB32Laion,
        PresetName::VitB32Mmc4 => Preset::VitB32Mmc4,
        PresetName::VitL14Laion => Preset::VitL14Laion,
        PresetName::Tiny => Preset::Tiny,
        PresetName::TinyMmc4 => Preset::TinyMmc4,
    }
}

fn to_shape(shape: &ModelShapeSpec) -> ModelShape {
    let (vision, text) = (&shape.vision, &shape.text);
    ModelShape {
        vision: VisionShape {
            image_size: vision.image_size.into(),
            patch_size: vision.patch_size.into(),
            width: vision.width.into(),
            layers: vision.layers.into(),
            heads: vision.heads.into(),
        },
        text: TextShape {
            width: text.width.into(),
            layers: text.layers.into(),
            heads: text.heads.into(),
            context_length: text.context_length.into(),
            vocab_size: VOCAB_SIZE,
        },
        embed_dim: shape.embed_dim.into(),
        pool_heads: shape.pool_heads.into(),
        special_tokens: SpecialTokens::CLIP,
    }
}

fn resolve_source(data: &DataSpec) -> Result<DataSource, FieldError> {
    let Some(mixture) = &data.mixture else {
        return resolve_single(data.webdataset.as_ref(), data.mmc4.as_ref(), data.obelics.as_ref());
    };
    let sources = mixture.sources.iter().map(|mixed| {
        let source = resolve_single(mixed.webdataset.as_ref(), mixed.mmc4.as_ref(), mixed.obelics.as_ref())?;
        Ok(MixedSource { name: mixed.name.clone(), weight: mixed.weight.unsigned_abs(), source })
    });
    let by = match mixture.by {
        MixtureUnitSpec::Images => MixtureUnit::Images,
        MixtureUnitSpec::Samples => MixtureUnit::Samples,
    };
    Ok(DataSource::Mixture { mixture: MixtureConfig { by, sources: sources.collect::<Result<_, FieldError>>()? } })
}

fn resolve_single(
    webdataset: Option<&WebdatasetSpec>,
    mmc4: Option<&Mmc4Spec>,
    obelics: Option<&ObelicsSpec>,
) -> Result<DataSource, FieldError> {
    if let Some(webdataset) = webdataset {
        return resolve_webdataset(webdataset);
    }
    if let Some(mmc4) = mmc4 {
        let images = match (&mmc4.images.folder, &mmc4.images.shards, mmc4.images.layout) {
            (Some(folder), None, Mmc4LayoutSpec::Flat) => Mmc4Images::Flat { folder: folder.clone() },
            (Some(folder), None, Mmc4LayoutSpec::ByShard) => Mmc4Images::ByShard { folder: folder.clone() },
            (None, Some(shards), _) => Mmc4Images::Store { shards: shards.clone() },
            _ => return Err(FieldError::missing("spec.data.mmc4.images.folder")),
        };
        let (min_similarity, max_images) = (mmc4.min_similarity, mmc4.max_images.unsigned_abs());
        return Ok(DataSource::Mmc4 { mmc4: Mmc4Config { shards: mmc4.shards.clone(), images, min_similarity, max_images } });
    }
    let obelics = obelics.ok_or_else(|| FieldError::missing("spec.data.webdataset"))?;
    let (shards, images) = (obelics.shards.clone(), obelics.images.clone());
    Ok(DataSource::Obelics {
        obelics: ObelicsConfig { shards, images, split: obelics.split, max_images: obelics.max_images.unsigned_abs() },
    })
}

fn resolve_webdataset(webdataset: &WebdatasetSpec) -> Result<DataSource, FieldError> {
    let shards = webdataset.shards.clone();
    Ok(match webdataset.layout {
        LayoutSpec::Pairs => DataSource::Webdataset { shards, keys: to_sample_keys(webdataset)? },
        LayoutSpec::Documents => {
            let max_images = webdataset.max_images.map_or(DEFAULT_MAX_IMAGES, i32::unsigned_abs);
            DataSource::Documents { documents: DocumentsConfig { shards, max_images } }
        }
    })
}

fn to_sample_keys(webdataset: &WebdatasetSpec) -> Result<SampleKeys, FieldError> {
    let captions = webdataset.captions.iter().flatten().map(|caption| {
        let from = match (&caption.key, &caption.json) {
            (Some(key), None) => CaptionFrom::Key(key.clone()),
            (None, Some(path)) => CaptionFrom::Json(path.clone()),
            _ => return Err(FieldError::missing("spec.data.webdataset.captions.key")),
        };
        Ok(CaptionChoice { from, weight: u32::try_from(caption.weight).unwrap_or(u32::MAX) })
    });
    Ok(SampleKeys {
        image: webdataset.image_keys.clone(),
        caption: webdataset.caption_keys.clone(),
        captions: captions.collect::<Result<_, _>>()?,
        filter: webdataset.filter.clone(),
        separator: match webdataset.key_separator {
            KeySeparatorSpec::FirstDot => KeySeparator::FirstDot,
            KeySeparatorSpec::LastDot => KeySeparator::LastDot,
        },
    })
}

fn resolve_objective(objective: &ObjectiveSpec) -> Result<Objective, FieldError> {
    match (&objective.lcl, &objective.clip) {
        (Some(lcl), None) => Ok(Objective::Lcl { generation_weight: lcl.generation_weight, contrastive_weight: lcl.contrastive_weight }),
        (None, Some(_)) => Ok(Objective::Clip),
        _ => Err(FieldError::missing("spec.model.objective.lcl")),
    }
}

fn resolve_schedule(schedule: &ScheduleSpec) -> Result<Schedule, FieldError> {
    match (&schedule.cosine, &schedule.constant) {
        (Some(cosine), None) => Ok(Schedule::Cosine { warmup_steps: cosine.warmup_steps.map(i64::unsigned_abs) }),
        (None, Some(constant)) => Ok(Schedule::Constant { warmup_steps: constant.warmup_steps.map(i64::unsigned_abs) }),
        _ => Err(FieldError::missing("spec.optimization.schedule.cosine")),
    }
}
