//! The LCL model (arXiv 2406.07543, §3; OpenGVLab/LCL): parameters under the reference's names, and the forward computation.
//!
//! Comes in: a [`ModelConfig`] and a seed, then images and laid-out tokens. Goes out: hidden states and features, as tensors in a graph.
//! It computes no loss over more than one micro-batch, knows no optimizer and no other member.

pub(crate) mod block;
pub(crate) mod drop_path;
mod init;
mod language;
pub(crate) mod layers;
pub(crate) mod parameters;
mod vision;
mod weights;

use std::collections::HashMap;

use lcl_trainer_config::{ConfigError, ModelConfig, Objective, Precision};
use tch::{Device, Kind, TchError, Tensor};

pub(crate) use block::Packing;
pub use layers::ModelFaults;
pub use parameters::{Initial, ParameterSpec, parameter_count, parameter_specs};
pub(crate) use vision::Pooled;

use self::{
    drop_path::DropPath,
    language::LanguageModel,
    vision::{Pooling, VisionTower},
    weights::Weights,
};
use crate::{
    placement::Placement,
    shim::{AutocastGuard, ShimError},
};

/// A model cannot be made or run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Sizes do not fit each other.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A parameter could not be made.
    #[error("making parameter `{name}`")]
    Parameter {
        /// The parameter.
        name: String,
        /// libtorch's reason.
        #[source]
        source: TchError,
    },
    /// The list of parameters and the model's parts disagree: a fault of this crate.
    #[error("no parameter has the name `{name}`")]
    MissingParameter {
        /// The parameter.
        name: String,
    },
}

/// A parameter of the model.
#[derive(Debug)]
pub struct Parameter {
    /// The reference's name.
    pub name: String,
    /// The values; a leaf that requires gradients.
    pub tensor: Tensor,
    /// Whether weight decay applies.
    pub decays: bool,
}

/// The model on a device.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    parameters: Vec<Parameter>,
    logit_scale: Tensor,
    vision: VisionTower,
    pooling: Pooling,
    language: LanguageModel,
    device: Device,
    kind: Kind,
}

impl Model {
    /// A model with initial weights drawn from `seed`; they depend on neither the device nor the number of threads.
    pub fn new(config: &ModelConfig, seed: u64, device: Device) -> Result<Self, ModelError> {
        Self::with_kind(config, seed, device, Kind::Float, ModelFaults::default())
    }

    /// As [`Model::new`] in another floating-point type, with the departures that a test wants.
    pub(crate) fn with_kind(config: &ModelConfig, seed: u64, device: Device, kind: Kind, faults: ModelFaults) -> Result<Self, ModelError> {
        config.validate()?;
        let specs = parameter_specs(config);
        let mut parameters = Vec::with_capacity(specs.len());
        for (index, spec) in specs.into_iter().enumerate() {
            let tensor = init::initial_tensor(&spec, index, seed, kind, device).and_then(|tensor| tensor.f_set_requires_grad(true));
            let tensor = tensor.map_err(|source| ModelError::Parameter { name: spec.name.clone(), source })?;
            parameters.push(Parameter { decays: spec.decays(), name: spec.name, tensor });
        }
        let by_name: HashMap<_, _> =
            parameters.iter().map(|parameter| (parameter.name.clone(), parameter.tensor.shallow_clone())).collect();
        let weights = Weights { by_name, faults };
        let checkpointing = config.activation_checkpointing;
        let has_head = matches!(config.objective, Objective::Lcl { .. });
        Ok(Self {
            logit_scale: weights.get("logit_scale")?,
            vision: VisionTower::new(&weights, &config.shape, checkpointing)?,
            pooling: Pooling::new(&weights, &config.shape)?,
            language: LanguageModel::new(&weights, &config.shape, has_head, checkpointing)?,
            config: config.clone(),
            parameters,
            device,
            kind,
        })
    }

    /// What the model was made of.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Every parameter in the order of the reference's `state_dict`.
    #[must_use]
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The parameter `logit_scale`, a scalar: the logarithm of the factor of the similarities.
    pub fn logit_scale(&self) -> &Tensor {
        &self.logit_scale
    }

    /// Where the parameters are.
    #[must_use]
    pub fn device(&self) -> Device {
        self.device
    }

    /// Type of the parameters.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Switches on bfloat16 matrix products while the guard lives, where the configuration asks for them.
    pub(crate) fn autocast(&self) -> Result<Option<AutocastGuard>, ShimError> {
        match self.config.precision {
            Precision::Float32 => Ok(None),
            Precision::Bfloat16 => AutocastGuard::bfloat16(self.device).map(Some),
        }
    }

    /// Images `[n, 3, S, S]`, n > 0, → one vector each and the values of their patches.
    pub(crate) fn see(&self, images: &Tensor, drop_path: Option<&DropPath>) -> Result<Pooled, TchError> {
        let images_on_device = images.f_to_device(self.device)?.f_to_kind(self.kind)?.f_contiguous()?;
        let patches = self.vision.forward(&images_on_device, drop_path)?;
        self.pooling.forward(&patches, images.size4()?.0)
    }

    /// Image tokens `[K, W]` of the patches at `index`, or of all.
    pub(crate) fn image_tokens(&self, pooled: &Pooled, index: Option<&Tensor>) -> Result<Tensor, TchError> {
        self.pooling.project(&pooled.values, index)
    }

    /// Hidden states of the placement's outputs, `[outputs, W]`.
    pub(crate) fn read(&self, placement: &Placement, image_tokens: Option<&Tensor>) -> Result<Tensor, TchError> {
        self.language.forward(placement, image_tokens)
    }

    /// Contrastive text features of hidden states, `[K, E]`, not normalised.
    pub(crate) fn text_features(&self, hidden: &Tensor) -> Result<Tensor, TchError> {
        self.language.features(hidden)
    }

    /// `scale` times the sum of the cross-entropies of predicting `labels` from `hidden`, a scalar.
    pub(crate) fn prediction_loss(&self, hidden: &Tensor, labels: &Tensor, scale: f64) -> Result<Tensor, TchError> {
        self.language.prediction_loss(hidden, labels, scale)
    }

    /// As [`Model::prediction_loss`], and the cross-entropies themselves, not scaled.
    pub(crate) fn prediction_terms(&self, hidden: &Tensor, labels: &Tensor, scale: f64) -> Result<(Tensor, Tensor), TchError> {
        self.language.prediction_terms(hidden, labels, scale)
    }

    /// Logits of hidden states, `[K, V]`.
    pub(crate) fn logits(&self, hidden: &Tensor) -> Result<Tensor, TchError> {
        self.language.logits(hidden)
    }

    /// L2-normalises rows in at least float32: similarities do not take part in autocast.
    pub(crate) fn normalize(&self, features: &Tensor) -> Result<Tensor, TchError> {
        let features = features.f_to_kind(self.kind)?;
        // PyTorch's `F.normalize`: the norm is kept above 1e-12.
        let norms = features.f_norm_scalaropt_dim(2, [-1], true)?.f_clamp_min(1e-12)?;
        features.f_div(&norms)
    }
}
