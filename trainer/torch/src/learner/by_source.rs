//! Losses of a step by the source of its rows.
//!
//! Comes in: the terms that a loss is made of, in the order of a layout. Goes out: their sums and numbers by source. Sums are made on the host
//! and in double precision, one term behind the other, so that they do not depend on a device's order; those of the parts of a step are added
//! up by whoever adds the losses. It must not wait for a device: terms are read together with the loss that they make up.

use tch::{Kind, TchError, Tensor};

use super::forward::Prepared;

/// Sum and number of some terms of a loss.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Terms {
    /// Their sum.
    pub sum: f64,
    /// How many there are.
    pub count: u64,
}

impl Terms {
    /// Their mean; `None` without any.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }

    fn add(&mut self, term: f64) {
        self.sum += term;
        self.count += 1;
    }
}

/// Losses of the rows of one source, over the global batch and not weighted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SourceLosses {
    /// Cross-entropies of the predicted tokens.
    pub generation: Terms,
    /// Contrastive terms of the images with a context before them: of each the mean of its cross-entropy over all texts of the step, and of its
    /// text's over all images.
    pub contrastive: Terms,
}

/// Numbers of [`SourceLosses`] on their way to other members.
pub(super) const NUMBERS: usize = 4;

impl SourceLosses {
    /// Counts are exact as floating-point numbers up to 2^53.
    fn numbers(&self) -> [f64; NUMBERS] {
        let Self { generation, contrastive } = self;
        [generation.sum, generation.count as f64, contrastive.sum, contrastive.count as f64]
    }

    fn add_numbers(&mut self, numbers: &[f64; NUMBERS]) {
        let [generation, predictions, contrastive, images] = *numbers;
        self.generation.sum += generation;
        self.generation.count += predictions as u64;
        self.contrastive.sum += contrastive;
        self.contrastive.count += images as u64;
    }
}

/// Losses of a part of a step: of a member, or of a virtual shard.
#[derive(Clone, Debug)]
pub(super) struct PartLosses {
    /// Of all rows, weighted by the factors of their member: the parts add up to the loss.
    pub(super) generation: f64,
    pub(super) contrastive: f64,
    /// By source; empty unless they are asked for.
    pub(super) sources: Vec<SourceLosses>,
}

impl PartLosses {
    /// None so far, with so many sources told apart.
    pub(super) fn new(sources: usize) -> Self {
        Self { generation: 0.0, contrastive: 0.0, sources: vec![SourceLosses::default(); sources] }
    }

    /// How many [`PartLosses::numbers`] there are with so many sources.
    pub(super) fn width(sources: usize) -> usize {
        2 + NUMBERS * sources
    }

    pub(super) fn numbers(&self) -> Vec<f64> {
        [self.generation, self.contrastive].into_iter().chain(self.sources.iter().flat_map(SourceLosses::numbers)).collect()
    }

    /// Adds the [`PartLosses::numbers`] of another part.
    pub(super) fn add_numbers(&mut self, numbers: &[f64]) {
        let [generation, contrastive, sources @ ..] = numbers else { return };
        self.generation += generation;
        self.contrastive += contrastive;
        for (sum, numbers) in self.sources.iter_mut().zip(sources.as_chunks().0) {
            sum.add_numbers(numbers);
        }
    }

    /// Takes in the terms of a micro-batch's predictions, in the order of its layout.
    pub(super) fn add_predictions(&mut self, prepared: &Prepared, terms: &[f64]) {
        for (row, term) in prepared.prediction_rows().zip(terms) {
            if let Some(losses) = self.source_of(prepared, row) {
                losses.generation.add(*term);
            }
        }
    }

    /// Takes in the terms of the images of micro-batches, in the order of their layouts.
    pub(super) fn add_images<'a>(&mut self, parts: impl Iterator<Item = &'a Prepared>, terms: &[f64]) {
        let images = parts.flat_map(|prepared| prepared.contrast_rows().map(move |row| (prepared, row)));
        for ((prepared, row), term) in images.zip(terms) {
            if let Some(losses) = self.source_of(prepared, row) {
                losses.contrastive.add(*term);
            }
        }
    }

    fn source_of(&mut self, prepared: &Prepared, row: usize) -> Option<&mut SourceLosses> {
        self.sources.get_mut(prepared.source_of(row)?)
    }
}

/// A loss and the terms that it is made of, read at once: more of them do not wait for a device more often.
pub(super) fn read(loss: &Tensor, terms: Option<&Tensor>) -> Result<(f64, Vec<f64>), TchError> {
    let Some(terms) = terms else { return Ok((loss.f_double_value(&[])?, Vec::new())) };
    let joined = Tensor::f_cat(&[&loss.f_detach()?.f_view([1])?.f_to_kind(terms.kind())?, terms], 0)?;
    let mut values = Vec::<f64>::try_from(&joined.f_to_kind(Kind::Double)?)?;
    let terms = values.split_off(1);
    Ok((values.first().copied().unwrap_or_default(), terms))
}
