//! A [`Layout`]'s index lists on the device of the model.

use tch::{Device, TchError, Tensor};

use crate::{layout::Layout, model::Packing};

/// Index lists on a device, each int64 and one-dimensional; [`Layout`] says what each holds.
///
/// A list that would only count from 0 to the end is `None`: nothing has to be gathered.
#[derive(Debug)]
pub(crate) struct Placement {
    rows: i64,
    length: i64,
    tokens: Tensor,
    positions: Tensor,
    unpack_and_pack: Option<(Tensor, Tensor)>,
    image_targets: Tensor,
    image_sources: Option<Tensor>,
    outputs: Option<Tensor>,
    predictions: Option<Tensor>,
    labels: Tensor,
    contrast_texts: Tensor,
    contrast_images: Tensor,
}

impl Placement {
    /// Copies the lists of a layout. `image_tokens`: how many the batch's images have in all.
    pub(crate) fn new(layout: &Layout, image_tokens: usize, device: Device) -> Result<Self, TchError> {
        let lists = [
            &layout.tokens,
            &layout.positions,
            &layout.unpack,
            &layout.pack,
            &layout.image_targets,
            &layout.image_sources,
            &layout.outputs,
            &layout.predictions,
            &layout.labels,
            &layout.contrast_texts,
            &layout.contrast_images,
        ];
        // They travel as one tensor, since every copy to a GPU has a fixed cost.
        let joined: Vec<i64> = lists.iter().flat_map(|list| list.iter().copied()).collect();
        let joined = Tensor::f_from_slice(&joined)?.f_to_device(device)?;
        let mut start = 0;
        let mut next = |list: &[i64]| {
            let part = joined.f_narrow(0, start, list.len() as i64);
            start += list.len() as i64;
            part
        };
        let parts = lists.map(|list| next(list));
        let [tokens, positions, unpack, pack, image_targets, image_sources, outputs, predictions, labels, texts, images] = parts;
        let unless_counting = |list: &[i64], end: usize, part: Result<Tensor, TchError>| {
            let counting = list.len() == end && list.iter().enumerate().all(|(index, value)| index as i64 == *value);
            if counting { Ok(None) } else { part.map(Some) }
        };
        Ok(Self {
            rows: layout.rows as i64,
            length: layout.length as i64,
            tokens: tokens?,
            positions: positions?,
            unpack_and_pack: if layout.is_dense() { None } else { Some((unpack?, pack?)) },
            image_targets: image_targets?,
            image_sources: unless_counting(&layout.image_sources, image_tokens, image_sources)?,
            outputs: unless_counting(&layout.outputs, layout.tokens.len(), outputs)?,
            predictions: unless_counting(&layout.predictions, layout.outputs.len(), predictions)?,
            labels: labels?,
            contrast_texts: texts?,
            contrast_images: images?,
        })
    }

    /// Token of every packed position.
    pub(crate) fn tokens(&self) -> &Tensor {
        &self.tokens
    }

    /// Place in its row of every packed position.
    pub(crate) fn positions(&self) -> &Tensor {
        &self.positions
    }

    /// How packed rows become a padded matrix.
    pub(crate) fn packing(&self) -> Packing {
        let indices = self.unpack_and_pack.as_ref().map(|(unpack, pack)| (unpack.shallow_clone(), pack.shallow_clone()));
        Packing { rows: self.rows, length: self.length, indices }
    }

    /// Packed positions that take an image token.
    pub(crate) fn image_targets(&self) -> &Tensor {
        &self.image_targets
    }

    /// Which image token each takes; `None`: all in order.
    pub(crate) fn image_sources(&self) -> Option<&Tensor> {
        self.image_sources.as_ref()
    }

    /// Packed positions that are read; `None`: all.
    pub(crate) fn outputs(&self) -> Option<&Tensor> {
        self.outputs.as_ref()
    }

    /// Outputs that predict the next token; `None`: all.
    pub(crate) fn predictions(&self) -> Option<&Tensor> {
        self.predictions.as_ref()
    }

    /// What they have to predict.
    pub(crate) fn labels(&self) -> &Tensor {
        &self.labels
    }

    /// Outputs that are contrastive text features.
    pub(crate) fn contrast_texts(&self) -> &Tensor {
        &self.contrast_texts
    }

    /// The image of each.
    pub(crate) fn contrast_images(&self) -> &Tensor {
        &self.contrast_images
    }
}
