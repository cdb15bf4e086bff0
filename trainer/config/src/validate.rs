//! The rules every configuration keeps, whoever wrote it. The operator checks them before it renders, the trainer when it reads.

use std::{borrow::Cow, fmt};

use crate::{
    FORMAT_VERSION,
    fields::Field,
    keys::KeyKind,
    model::{ModelConfig, Objective},
    shards::ShardEntry,
    training::{DataConfig, DataSource, GradientCompression, MixtureConfig, Normalization, Schedule, TrainerConfig, in_mixture},
    uri::check_run_uri,
};

/// What a field has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule(pub Cow<'static, str>);

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A field breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} is {value}, but {rule}", Field(field))]
pub struct ConfigError {
    /// Path of the field in the trainer's configuration, in camel case; the message has the manifest's.
    pub field: String,
    /// Its value.
    pub value: String,
    /// What it has to be.
    pub rule: Rule,
}

fn require(condition: bool, field: &str, value: impl fmt::Debug, rule: &'static str) -> Result<(), ConfigError> {
    if condition { Ok(()) } else { Err(broken(field, value, rule)) }
}

fn broken(field: &str, value: impl fmt::Debug, rule: impl Into<Cow<'static, str>>) -> ConfigError {
    ConfigError { field: field.to_owned(), value: format!("{value:?}"), rule: Rule(rule.into()) }
}

impl TrainerConfig {
    /// Checks every rule; the first broken one is returned.
    pub fn validate(&self) -> Result<(), ConfigError> {
        require(
            self.version == FORMAT_VERSION,
            "version",
            self.version,
            "this program reads version 1: use the operator and the trainer of one release",
        )?;
        self.model.validate()?;
        self.data.validate()?;
        self.validate_optimization()?;
        let checkpoint = &self.checkpoint;
        let problem = check_run_uri(&checkpoint.uri).err();
        require(problem.is_none(), "checkpoint.uri", &checkpoint.uri, problem.unwrap_or_default())?;
        require(checkpoint.every_steps >= 1, "checkpoint.everySteps", checkpoint.every_steps, "must be at least 1")?;
        require(checkpoint.keep_last >= 1, "checkpoint.keepLast", checkpoint.keep_last, "must be at least 1")?;
        require(
            checkpoint.keep_every_steps != Some(0),
            "checkpoint.keepEverySteps",
            checkpoint.keep_every_steps,
            "must be at least 1 when given",
        )?;
        require(self.runtime.threads != Some(0), "runtime.threads", self.runtime.threads, "must be at least 1 when given")
    }

    fn validate_optimization(&self) -> Result<(), ConfigError> {
        let o = &self.optimization;
        let in_unit = |x: f64| (0.0..1.0).contains(&x);
        require(o.steps >= 1, "optimization.steps", o.steps, "must be at least 1")?;
        require(o.global_batch_size >= 1, "optimization.globalBatchSize", o.global_batch_size, "must be at least 1")?;
        require(o.micro_batch_size != Some(0), "optimization.microBatchSize", o.micro_batch_size, "must be at least 1 when given")?;
        require(
            o.learning_rate.is_finite() && o.learning_rate > 0.0,
            "optimization.learningRate",
            o.learning_rate,
            "must be a positive number",
        )?;
        require(o.weight_decay.is_finite() && o.weight_decay >= 0.0, "optimization.weightDecay", o.weight_decay, "must not be negative")?;
        require(o.betas.into_iter().all(in_unit), "optimization.betas", o.betas, "each must lie in [0, 1)")?;
        require(o.epsilon.is_finite() && o.epsilon > 0.0, "optimization.epsilon", o.epsilon, "must be a positive number")?;
        require(
            o.gradient_clip.is_none_or(|clip| clip.is_finite() && clip > 0.0),
            "optimization.gradientClip",
            o.gradient_clip,
            "must be a positive number when given",
        )?;
        require(
            o.max_consecutive_skipped_steps >= 1,
            "optimization.maxConsecutiveSkippedSteps",
            o.max_consecutive_skipped_steps,
            "must be at least 1",
        )?;
        if let Some(exact) = o.exact {
            let shards = u64::from(exact.virtual_shards);
            require(shards >= 1, "optimization.exact.virtualShards", shards, "must be at least 1")?;
            require(exact.threads >= 1, "optimization.exact.threads", exact.threads, "must be at least 1")?;
            let every = exact.verify_every_steps.unwrap_or(1);
            require(every >= 1, "optimization.exact.verifyEverySteps", every, "must be at least 1")?;
            require(
                o.global_batch_size.is_multiple_of(shards),
                "optimization.globalBatchSize",
                o.global_batch_size,
                "must be a multiple of spec.optimization.exact.virtualShards",
            )?;
            require(
                o.normalization == Normalization::Global,
                "optimization.normalization",
                o.normalization,
                "must be Global when spec.optimization.exact is given",
            )?;
            require(
                o.gradient_compression == GradientCompression::None,
                "optimization.gradientCompression",
                o.gradient_compression,
                "must be None when spec.optimization.exact is given",
            )?;
        }
        // Only what somebody wrote can be wrong, and it is called what the manifest calls it.
        let warmup_field = match o.schedule {
            Schedule::Cosine { .. } => "optimization.schedule.cosine.warmupSteps",
            Schedule::Constant { .. } => "optimization.schedule.constant.warmupSteps",
        };
        let warmup_steps = o.schedule.warmup_steps().unwrap_or_default();
        require(warmup_steps <= o.steps, warmup_field, warmup_steps, "must not exceed spec.optimization.steps")
    }
}

impl ModelConfig {
    /// Checks sizes that have to fit each other; the first broken rule is returned.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let (vision, text) = (&self.shape.vision, &self.shape.text);
        for (field, value) in [
            ("model.shape.vision.imageSize", vision.image_size),
            ("model.shape.vision.patchSize", vision.patch_size),
            ("model.shape.vision.width", vision.width),
            ("model.shape.vision.layers", vision.layers),
            ("model.shape.vision.heads", vision.heads),
            ("model.shape.text.width", text.width),
            ("model.shape.text.layers", text.layers),
            ("model.shape.text.heads", text.heads),
            ("model.shape.text.contextLength", text.context_length),
            ("model.shape.embedDim", self.shape.embed_dim),
            ("model.shape.poolHeads", self.shape.pool_heads),
        ] {
            require(value >= 1, field, value, "must be at least 1")?;
        }
        require(
            vision.image_size % vision.patch_size == 0,
            "model.shape.vision.patchSize",
            vision.patch_size,
            "must divide the image size",
        )?;
        require(vision.width % vision.heads == 0, "model.shape.vision.heads", vision.heads, "must divide the vision width")?;
        require(text.width % text.heads == 0, "model.shape.text.heads", text.heads, "must divide the text width")?;
        require(self.shape.embed_dim % self.shape.pool_heads == 0, "model.shape.poolHeads", self.shape.pool_heads, "must divide embedDim")?;
        require(
            matches!(self.objective, Objective::Clip) || text.width == self.shape.embed_dim,
            "model.shape.text.width",
            text.width,
            "must equal embedDim: the language model takes the image's tokens among its own (clip alone does not)",
        )?;
        let special = self.shape.special_tokens;
        let highest = [special.start_of_text, special.end_of_text, special.image_placeholder, special.start_of_image, special.end_of_image]
            .into_iter()
            .max()
            .unwrap_or(0);
        require(text.vocab_size > highest, "model.shape.text.vocabSize", text.vocab_size, "must exceed every special token's id")?;
        // Four tokens around the image (start, end of image; start or end of text) and at least one of text.
        require(
            text.context_length > vision.tokens() + 4,
            "model.shape.text.contextLength",
            text.context_length,
            "must exceed the image's tokens plus 4",
        )?;
        require((0.0..1.0).contains(&self.drop_path), "model.dropPath", self.drop_path, "must lie in [0, 1)")?;
        require(self.layer_scale.is_none_or(f64::is_finite), "model.layerScale", self.layer_scale, "must be finite when given")
    }
}

impl DataConfig {
    /// Checks ranges; the first broken rule is returned.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.source.validate()?;
        require(
            (0.0..=1.0).contains(&self.image_first_probability),
            "data.imageFirstProbability",
            self.image_first_probability,
            "must lie in [0, 1]",
        )?;
        let [least, greatest] = self.augmentation.scale;
        require(
            least > 0.0 && least <= greatest && greatest <= 1.0,
            "data.augmentation.scale",
            self.augmentation.scale,
            "must be two ascending numbers in (0, 1]",
        )?;
        let [least, greatest] = self.augmentation.ratio;
        require(
            least > 0.0 && least <= greatest && greatest.is_finite(),
            "data.augmentation.ratio",
            self.augmentation.ratio,
            "must be two ascending positive numbers",
        )?;
        require(self.shuffle.lanes != Some(0), "data.shuffle.lanes", 0, "must be at least 1")?;
        require(self.shuffle.window >= 1, "data.shuffle.window", self.shuffle.window, "must be at least 1")?;
        let fraction = self.max_bad_fraction;
        require((0.0..=1.0).contains(&fraction), "data.maxBadFraction", fraction, "must lie in [0, 1]")?;
        require(self.threads >= 1, "data.threads", self.threads, "must be at least 1")?;
        require(self.prefetch >= 1, "data.prefetch", self.prefetch, "must be at least 1")
    }
}

fn validate_shards(field: &str, shards: &[String]) -> Result<(), ConfigError> {
    require(!shards.is_empty(), field, shards, "must name at least one shard")?;
    for (index, shard) in shards.iter().enumerate() {
        ShardEntry::parse(shard).map_err(|error| broken(&format!("{field}[{index}]"), shard, error.to_string()))?;
    }
    Ok(())
}

impl DataSource {
    fn validate(&self) -> Result<(), ConfigError> {
        self.validate_at(&|field| field.to_owned())
    }

    /// Checks a source whose fields have the paths that `name` makes of those that they have by themselves.
    fn validate_at(&self, name: &dyn Fn(&str) -> String) -> Result<(), ConfigError> {
        match self {
            Self::Webdataset { shards, keys } => {
                validate_shards(&name("data.source.shards"), shards)?;
                let Some((kind, rule)) = keys.find_fault() else { return Ok(()) };
                let field = name(&format!("data.source.keys.{}", kind.name()));
                Err(match kind {
                    KeyKind::Image => broken(&field, &keys.image, rule),
                    KeyKind::Caption => broken(&field, &keys.caption, rule),
                    KeyKind::Captions => {
                        broken(&field, keys.captions.iter().map(|choice| choice.from.to_string()).collect::<Vec<_>>(), rule)
                    }
                    KeyKind::Filter => broken(&field, keys.filter.as_deref().unwrap_or_default(), rule),
                })
            }
            Self::Documents { documents } => {
                validate_shards(&name("data.source.documents.shards"), &documents.shards)?;
                require(documents.max_images >= 1, &name("data.source.documents.maxImages"), documents.max_images, "must be at least 1")
            }
            Self::Mmc4 { mmc4 } => {
                validate_shards(&name("data.source.mmc4.shards"), &mmc4.shards)?;
                let similarity = mmc4.min_similarity;
                let field = name("data.source.mmc4.minSimilarity");
                require((-1.0..=1.0).contains(&similarity), &field, similarity, "must be a cosine: a number in [-1, 1]")?;
                require(mmc4.max_images >= 1, &name("data.source.mmc4.maxImages"), mmc4.max_images, "must be at least 1")
            }
            Self::Obelics { obelics } => {
                validate_shards(&name("data.source.obelics.shards"), &obelics.shards)?;
                validate_shards(&name("data.source.obelics.images"), &obelics.images)?;
                require(obelics.max_images >= 1, &name("data.source.obelics.maxImages"), obelics.max_images, "must be at least 1")
            }
            Self::Mixture { mixture: MixtureConfig { sources, .. } } => {
                require(sources.len() >= 2, &name("data.source.mixture.sources"), sources.len(), "must be two or more")?;
                for (index, mixed) in sources.iter().enumerate() {
                    let field = |last: &str| name(&format!("data.source.mixture.sources[{index}].{last}"));
                    require(mixed.weight >= 1, &field("weight"), mixed.weight, "must be at least 1")?;
                    let others = sources.iter().take(index);
                    require(
                        others.clone().all(|other| other.name != mixed.name),
                        &field("name"),
                        &mixed.name,
                        "must differ from the others",
                    )?;
                    require(!matches!(mixed.source, Self::Mixture { .. }), &field("source"), "a mixture", "must be no mixture")?;
                    mixed.source.validate_at(&|field| in_mixture(index, field))?;
                }
                Ok(())
            }
        }
    }
}
