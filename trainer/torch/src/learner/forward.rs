//! One micro-batch through the model: from tokens and images to normalised features and the sum of the generation loss.

use tch::{TchError, Tensor};

use super::LearnerError;
use crate::{
    batch::{HostTokens, MicroBatch, check_images, image_places},
    layout::{BatchError, Extent, Layout, Rules},
    loss::Counts,
    model::{
        Model,
        drop_path::{DropPath, DropPathKey},
        layers::gather_rows,
    },
    placement::Placement,
    step_span,
};

/// A micro-batch whose tokens are checked and laid out.
#[derive(Debug)]
pub(crate) struct Prepared {
    batch: MicroBatch,
    tokens: HostTokens,
    images: usize,
    pub(crate) layout: Layout,
}

impl Prepared {
    pub(crate) fn new(batch: MicroBatch, rules: &Rules, image_side: i64, extent: Extent) -> Result<Self, BatchError> {
        let tokens = HostTokens::read(&batch.tokens)?;
        if tokens.count() != batch.slots.len() {
            return Err(BatchError::Slots { rows: tokens.count(), slots: batch.slots.len() });
        }
        let images = check_images(&batch.images, image_side)?;
        let layout = Layout::new(rules, tokens.rows(), images, batch.image_rows.as_deref(), extent)?;
        Ok(Self { batch, tokens, images, layout })
    }

    /// The layout of the same rows for the contrastive loss alone.
    pub(crate) fn contrast_layout(&self, rules: &Rules) -> Result<Layout, BatchError> {
        Layout::new(rules, self.tokens.rows(), self.images, None, Extent::Contrast)
    }

    pub(crate) fn counts(&self) -> Counts {
        Counts { predictions: self.layout.labels.len() as u64, contrast: self.layout.contrast_images.len() as u64 }
    }

    pub(crate) fn batch(&self) -> &MicroBatch {
        &self.batch
    }

    /// That every row has one of `known` sources, unless there are none to tell apart.
    pub(crate) fn check_sources(&self, known: usize) -> Result<(), BatchError> {
        let given = &self.batch.sources;
        let fits = given.len() == self.batch.slots.len() && given.iter().all(|source| (*source as usize) < known);
        if known == 0 || fits {
            return Ok(());
        }
        Err(BatchError::Sources { rows: self.batch.slots.len(), given: given.clone(), known })
    }

    pub(crate) fn source_of(&self, row: usize) -> Option<usize> {
        self.batch.sources.get(row).map(|source| *source as usize)
    }

    /// Row of every predicted token.
    pub(crate) fn prediction_rows(&self) -> impl Iterator<Item = usize> {
        self.layout.row_predictions.iter().enumerate().flat_map(|(row, count)| std::iter::repeat_n(row, *count))
    }

    /// Row of every image that is contrasted.
    pub(crate) fn contrast_rows(&self) -> impl Iterator<Item = usize> {
        let images = self.layout.contrast_images.iter();
        images.filter_map(|image| self.layout.image_rows.get(usize::try_from(*image).ok()?).copied())
    }
}

/// Micro-batches of a member, or of a virtual shard, checked and laid out: what a step needs besides the learner.
#[derive(Debug)]
pub struct PreparedRows(pub(super) Vec<Prepared>);

impl PreparedRows {
    /// What the losses of these rows are sums over.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.0.iter().map(Prepared::counts).sum()
    }
}

/// Prepares rows for a learner, which needs neither parameters nor other members.
#[derive(Clone, Debug)]
pub struct RowPreparer {
    pub(super) rules: Rules,
    /// In pixels.
    pub(super) image_side: i64,
    /// Sources to tell apart.
    pub(super) sources: usize,
}

impl RowPreparer {
    /// Checks micro-batches and lays them out on the host.
    ///
    /// # Errors
    /// [`LearnerError::Batch`], which names the micro-batch.
    pub fn prepare(&self, batches: &[MicroBatch]) -> Result<PreparedRows, LearnerError> {
        let prepare = |(index, batch): (usize, &MicroBatch)| {
            let prepared = Prepared::new(batch.shallow_clone(), &self.rules, self.image_side, Extent::Losses);
            let checked = prepared.and_then(|prepared| prepared.check_sources(self.sources).map(|()| prepared));
            checked.map_err(|source| LearnerError::Batch { index, source })
        };
        Ok(PreparedRows(batches.iter().enumerate().map(prepare).collect::<Result<_, _>>()?))
    }
}

/// Contrastive features of a micro-batch, L2-normalised `[c, E]`; row i of both belongs together.
#[derive(Debug)]
pub(crate) struct Features {
    pub(crate) images: Tensor,
    pub(crate) texts: Tensor,
}

impl Features {
    /// Pairs.
    pub(crate) fn count(&self) -> i64 {
        self.images.size().first().copied().unwrap_or(0)
    }

    /// The same without their graph.
    pub(crate) fn detached(&self) -> Result<Self, TchError> {
        Ok(Self { images: self.images.f_detach()?, texts: self.texts.f_detach()? })
    }
}

/// What the losses are made of.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// `None` without a contrastive image.
    pub(crate) features: Option<Features>,
    /// This micro-batch's part of the generation loss, not weighted; `None` when nothing is predicted.
    pub(crate) generation: Option<Generation>,
}

/// The generation loss of a micro-batch.
#[derive(Debug)]
pub(crate) struct Generation {
    /// Sum of the cross-entropies of the predicted tokens, times the factor.
    pub(crate) loss: Tensor,
    /// Each of them, without the factor; `None` unless asked for.
    pub(crate) terms: Option<Tensor>,
}

/// Features (images, texts) before normalisation, and the generation loss.
type Raw = (Option<[Tensor; 2]>, Option<Generation>);

/// What a run depends on besides the micro-batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunOptions {
    pub(crate) key: DropPathKey,
    /// Factor of every predicted token's cross-entropy. It goes into the fused loss, which forms its gradients in the forward pass.
    pub(crate) prediction_factor: f64,
    /// Whether tokens are predicted; without it the generation loss is left out.
    pub(crate) predicts: bool,
    /// Whether the cross-entropy of every predicted token is asked for.
    pub(crate) terms: bool,
}

/// Runs the model over `layout`'s positions.
pub(crate) fn run(model: &Model, batch: &MicroBatch, layout: &Layout, options: RunOptions) -> Result<Outcome, LearnerError> {
    let _span = step_span!("forward", rows = batch.slots.len());
    let config = model.config();
    let images = layout.image_rows.len();
    let drop_path = (config.drop_path > 0.0)
        .then(|| DropPath::draw(options.key, config.drop_path, config.shape.vision.layers, &image_places(layout, &batch.slots)));
    let failed = |source| LearnerError::Forward { source };
    let image_tokens = images * config.shape.vision.tokens() as usize;
    let placement = Placement::new(layout, image_tokens, model.device()).map_err(failed)?;
    // Positions that take an image token and images that are contrasted need the vision tower; other images change nothing.
    let look = images > 0 && !(layout.image_targets.is_empty() && layout.contrast_images.is_empty());
    let guard = model.autocast().map_err(|error| failed(error.into()))?;
    let compute = || -> Result<Raw, TchError> {
        let pooled = if look { Some(model.see(&batch.images, drop_path.as_ref())?) } else { None };
        let image_tokens = match &pooled {
            Some(pooled) if !layout.image_targets.is_empty() => Some(model.image_tokens(pooled, placement.image_sources())?),
            _ => None,
        };
        if layout.tokens.is_empty() {
            return Ok((None, None));
        }
        let hidden = model.read(&placement, image_tokens.as_ref())?;
        let features = match &pooled {
            Some(pooled) if !layout.contrast_images.is_empty() => {
                let texts = model.text_features(&gather_rows(&hidden, placement.contrast_texts())?)?;
                Some([gather_rows(&pooled.latent, placement.contrast_images())?, texts])
            }
            _ => None,
        };
        if layout.labels.is_empty() || !options.predicts {
            return Ok((features, None));
        }
        let predicting = match placement.predictions() {
            Some(index) => gather_rows(&hidden, index)?,
            None => hidden,
        };
        let (labels, factor) = (placement.labels(), options.prediction_factor);
        let generation = if options.terms {
            let (loss, terms) = model.prediction_terms(&predicting, labels, factor)?;
            Generation { loss, terms: Some(terms) }
        } else {
            Generation { loss: model.prediction_loss(&predicting, labels, factor)?, terms: None }
        };
        Ok((features, Some(generation)))
    };
    let (features, generation) = compute().map_err(failed)?;
    drop(guard);
    let normalize = |[images, texts]: [Tensor; 2]| -> Result<Features, TchError> {
        Ok(Features { images: model.normalize(&images)?, texts: model.normalize(&texts)? })
    };
    Ok(Outcome { features: features.map(normalize).transpose().map_err(failed)?, generation })
}
